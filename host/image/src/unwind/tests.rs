//! Tables of a small program made by hand.

use super::*;
use donjon_abi::unwind::find;

const TEXT: u64 = 0x10_0000;
const FRAMES: u64 = 0x2000;
const PERSONALITY: u64 = 0x20_0000;
const EXCEPTIONS: u64 = 0x1800;

/// `push rbp; push rbx; sub rsp, 24; call +0; add rsp, 24; pop rbx; pop rbp; ret`, padded to 32 bytes.
const PUSHES: [u8; 32] = [
    0x55, 0x53, 0x48, 0x83, 0xec, 24, 0xe8, 0, 0, 0, 0, 0x48, 0x83, 0xc4, 24, 0x5b, 0x5d, 0xc3, //
    0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc,
];
/// What a compiler writes for it.
const RULES: [u8; 28] = [
    0x41, 0x0e, 16, 0x41, 0x0e, 24, 0x44, 0x0e, 48, 0x83, 3, 0x86, 2, // the prologue
    0x49, 0x0e, 24, 0x41, 0x0e, 16, 0x41, 0x0e, 8, 0, 0, 0, 0, 0, 0,
];
const LEAF: [u8; 32] = [0xc3; 32];

/// A program of these functions, 32 bytes each: code, rules, whether it has an exception table.
struct Sample {
    text: Vec<u8>,
    frames: Vec<u8>,
}

impl Sample {
    fn new(functions: &[([u8; 32], &[u8], bool)]) -> Sample {
        let (mut text, mut frames) = (vec![], vec![]);
        let mut plain = vec![1, b'z', b'R', 0, 1, 0x78, 16, 1, PCREL_SDATA4];
        plain.extend(INITIAL);
        let mut full = vec![1, b'z', b'P', b'L', b'R', 0, 1, 0x78, 16, 7, INDIRECT_PCREL_SDATA4];
        // The plain CIE's 4 + 4 + 14 bytes, this one's length and id, and what stands above.
        full.extend(((PERSONALITY - (FRAMES + 22 + 8 + full.len() as u64)) as u32).to_le_bytes());
        full.extend([PCREL_SDATA4, PCREL_SDATA4]);
        full.extend(INITIAL);
        let mut starts = vec![];
        for cie in [plain, full] {
            starts.push(frames.len());
            frames.extend((cie.len() as u32 + 4).to_le_bytes());
            frames.extend([0; 4]);
            frames.extend(cie);
        }
        for (code, rules, exceptions) in functions {
            let fixed = if *exceptions { 17 } else { 13 };
            frames.extend((fixed + rules.len() as u32).to_le_bytes());
            frames.extend(((frames.len() - starts[usize::from(*exceptions)]) as u32).to_le_bytes());
            let here = FRAMES + frames.len() as u64;
            frames.extend(((TEXT + text.len() as u64 - here) as u32).to_le_bytes());
            frames.extend(32u32.to_le_bytes());
            frames.push(if *exceptions { 4 } else { 0 });
            if *exceptions {
                let here = FRAMES + frames.len() as u64;
                frames.extend((EXCEPTIONS.wrapping_sub(here) as u32).to_le_bytes());
            }
            frames.extend(*rules);
            text.extend(code);
        }
        frames.extend([0; 4]);
        Sample { text, frames }
    }

    fn compact(&self) -> Option<Vec<u8>> {
        let memory = |r: Range<u64>| {
            let of = |start: u64, bytes: &'_ [u8]| {
                let from = usize::try_from(r.start.checked_sub(start)?).ok()?;
                let to = usize::try_from(r.end.checked_sub(start)?).ok()?;
                (to <= bytes.len()).then_some(from..to)
            };
            match of(FRAMES, &self.frames) {
                Some(range) => self.frames.get(range),
                None => self.text.get(of(TEXT, &self.text)?),
            }
        };
        compact(&memory, FRAMES..FRAMES + self.frames.len() as u64, FRAMES)
    }
}

/// The CIE's and the FDE's instructions for an address, and the exception table's address, read as libgcc reads them.
fn look_up(table: &[u8], address: u64) -> Option<(u64, Vec<u8>, Vec<u8>, u64)> {
    let found = find(table, address as u32)?;
    let record = |at: usize| {
        let len = u32::from_le_bytes(*table[at..].first_chunk().unwrap()) as usize;
        &table[at + 4..at + 4 + len]
    };
    let fde = record(found.fde);
    let cie_at = found.fde + 4 - u32::from_le_bytes(*fde.first_chunk().unwrap()) as usize;
    let cie = record(cie_at);
    assert_eq!(cie[..5], [0, 0, 0, 0, 1]);
    let letters: Vec<u8> = cie[5..].iter().copied().take_while(|&b| b != 0).collect();
    let mut at = 5 + letters.len() + 1 + 3;
    let rules = at + 1 + usize::from(cie[at]);
    at += 1;
    for letter in &letters[1..] {
        match letter {
            b'P' => {
                let distance = i32::from_le_bytes(*cie[at + 1..].first_chunk().unwrap());
                let here = FRAMES + (cie_at + 4 + at + 1) as u64;
                assert_eq!((cie[at], here.checked_add_signed(distance.into())), (0x9b, Some(PERSONALITY)));
                at += 5;
            }
            b'L' => at += 1,
            b'R' => assert_eq!(cie[at], UDATA2),
            other => panic!("{other}"),
        }
    }
    let lsda_len = usize::from(fde[8]);
    let mut exceptions = 0;
    if lsda_len > 0 {
        let bytes = &fde[9..9 + lsda_len];
        let bits = bytes.iter().rev().fold(0i64, |n, b| n << 7 | i64::from(b & 0x7f));
        let sign = 64 - 7 * lsda_len;
        let here = FRAMES + (found.fde + 4 + 9) as u64;
        exceptions = here.checked_add_signed(bits << sign >> sign).unwrap();
    }
    Some((u64::from(found.function), cie[rules..].to_vec(), fde[9 + lsda_len..].to_vec(), exceptions))
}

#[test]
fn prologues_are_shared_and_epilogues_left_out() {
    let table = Sample::new(&[(PUSHES, &RULES[..], false); 20]).compact().unwrap();
    // The registers' places, then the pushes, then the room.
    let prologue = [0x0c, 7, 8, 0x90, 1, 0x41, 0x0e, 16, 0x41, 0x0e, 24, 0x83, 3, 0x86, 2, 0x44, 0x0e, 48];
    for i in 0..20 {
        let (start, cie, fde, exceptions) = look_up(&table, TEXT + 32 * i + 31).unwrap();
        assert_eq!((start, fde, exceptions), (TEXT + 32 * i, vec![], 0));
        assert_eq!(cie, prologue);
    }
    assert_eq!(look_up(&table, TEXT + 32 * 20), None);
    assert_eq!(look_up(&table, TEXT - 1), None);
    assert!(table.len() < 20 * 16 + 100, "{}", table.len());
}

#[test]
fn exception_tables_and_personality_are_found() {
    let table = Sample::new(&[(PUSHES, &RULES, true), (PUSHES, &RULES, false)]).compact().unwrap();
    let (_, cie, fde, exceptions) = look_up(&table, TEXT).unwrap();
    // Too few to share a prologue.
    assert_eq!((&cie[..], exceptions), (&INITIAL[..], EXCEPTIONS));
    assert_eq!(fde, [0x41, 0x0e, 16, 0x41, 0x0e, 24, 0x83, 3, 0x86, 2, 0x44, 0x0e, 48]);
    assert_eq!(look_up(&table, TEXT + 32).unwrap().3, 0);
}

#[test]
fn a_rule_that_matters_after_an_epilogue_stays() {
    // `push rbx; jz +2; pop rbx; ret; call +0; pop rbx; ret`: after the first epilogue the frame is again as before it.
    let mut code = [0xcc; 32];
    code[..12].copy_from_slice(&[0x53, 0x74, 2, 0x5b, 0xc3, 0xe8, 0, 0, 0, 0, 0x5b, 0xc3]);
    let rules = [0x41, 0x0e, 16, 0x83, 2, 0x43, 0x0e, 8, 0x41, 0x0e, 16, 0x46, 0x0e, 8];
    let table = Sample::new(&[(code, &rules, false)]).compact().unwrap();
    assert_eq!(look_up(&table, TEXT).unwrap().2, [0x83, 2, 0x41, 0x0e, 16]);
    // With a call in between, the frame does matter.
    code[4..10].copy_from_slice(&[0xe8, 0, 0, 0, 0, 0x90]);
    let table = Sample::new(&[(code, &rules, false)]).compact().unwrap();
    assert_eq!(look_up(&table, TEXT).unwrap().2, [0x83, 2, 0x41, 0x0e, 16, 0x43, 0x0e, 8, 0x41, 0x0e, 16]);
}

#[test]
fn instructions_that_save_the_whole_state_are_left_as_they_are() {
    let rules = [0x41, 0x0e, 16, 0x83, 2, 0x43, 0x0a, 0x0e, 8, 0x41, 0x0b];
    let table = Sample::new(&[(PUSHES, &rules, false)]).compact().unwrap();
    assert_eq!(look_up(&table, TEXT).unwrap().2, rules);
}

/// ring's assembly says `def_cfa rsp, 8` twice; another initial rule is kept, and nothing about its functions is changed.
#[test]
fn unusual_initial_rules() {
    let mut sample = Sample::new(&[(PUSHES, &RULES, false)]);
    let longer = |sample: &Sample, more: &[u8]| {
        let mut frames = sample.frames.clone();
        frames.splice(22..22, more.iter().copied());
        frames[0] += more.len() as u8;
        // The FDE and the other CIE have moved away from the first CIE and from the text.
        let fde = 22 + more.len() + 30 + 4;
        frames[fde] += more.len() as u8;
        let start = u32::from_le_bytes(*frames[fde + 4..].first_chunk().unwrap()) - more.len() as u32;
        frames[fde + 4..fde + 8].copy_from_slice(&start.to_le_bytes());
        frames
    };
    let twice = longer(&sample, &[0x0c, 7, 8]);
    let usual = look_up(&sample.compact().unwrap(), TEXT);
    let other = longer(&sample, &[0x86, 3]);
    sample.frames = twice;
    assert_eq!(look_up(&sample.compact().unwrap(), TEXT), usual);
    sample.frames = other;
    let (_, cie, fde, _) = look_up(&sample.compact().unwrap(), TEXT).unwrap();
    assert_eq!((&cie[5..], &fde[..]), (&[0x86, 3][..], &RULES[..]));
}

#[test]
fn neighbours_without_rules_share_a_record() {
    let table = Sample::new(&[(LEAF, &[], false), (LEAF, &[], false), (PUSHES, &RULES, false)]).compact().unwrap();
    let start = |at| look_up(&table, at).map(|f| f.0);
    assert_eq!((start(TEXT + 40), start(TEXT + 64)), (Some(TEXT), Some(TEXT + 64)));
}

#[test]
fn damaged_tables_are_refused_or_read() {
    let sample = Sample::new(&[(PUSHES, &RULES, true), (PUSHES, &RULES, false)]);
    for n in 0..sample.frames.len() {
        for bit in 0..8 {
            let mut frames = sample.frames.clone();
            frames[n] ^= 1 << bit;
            Sample { text: sample.text.clone(), frames }.compact();
        }
        Sample { text: sample.text.clone(), frames: sample.frames[..n].to_vec() }.compact();
    }
}
