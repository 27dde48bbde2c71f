//! Makes a program's unwind tables small: `.eh_frame_hdr` and `.eh_frame` become the one table of [`donjon_abi::unwind`].
//!
//! Compilers write a rule for every instruction that moves the stack pointer, in every function anew, and round every record up: more than 50 bytes
//! for a function with the search table, a tenth of an image. Here
//!
//! - rules within epilogues are left out: nothing is called there, so no unwinding can pass through;
//! - functions with the same prologue share a CIE that has the rules of that prologue among its initial instructions (libgcc executes
//!   both alike, relative to the function's start);
//! - addresses are 16 bits from the start of a block of functions, the pointer to a function's exception table is a LEB128;
//! - neighbours that need no rules share a record.

use std::{collections::BTreeMap, ops::Range};

use donjon_abi::unwind::{HEADER_LEN, LONG, MAGIC};
use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic, Register};

/// `DW_EH_PE_*`.
const UDATA2: u8 = 0x02;
const PCREL_SLEB128: u8 = 0x19;
const PCREL_SDATA4: u8 = 0x1b;
const INDIRECT_PCREL_SDATA4: u8 = 0x9b;
/// The initial rules of every CIE of x86-64: the frame address is rsp + 8, the return address is below it.
const INITIAL: [u8; 5] = [0x0c, 7, 8, 0x90, 1];
/// Most functions in a block: these are searched one after the other.
const BLOCK: usize = 16;
/// Bytes of a CIE without the rules of a prologue, about.
const CIE_LEN: usize = 26;

/// Reads the records at `frames` (addresses in the linked program) and returns the table, to be placed at `place`. `memory` gives the content of
/// the program's memory. `None` if there is anything in it that is not understood.
pub(crate) fn compact<'a>(
    memory: &impl Fn(Range<u64>) -> Option<&'a [u8]>,
    frames: Range<u64>,
    place: u64,
) -> Option<Vec<u8>> {
    let mut functions = read(memory, frames)?;
    functions.sort_by_key(|f| f.start);
    for f in &mut functions {
        let code = memory(f.start..f.start + f.len)?;
        f.rules = if f.kind.more.is_empty() {
            Rules::read(&f.raw)?.without_epilogues(code, f.start)
        } else {
            // What these rules change is not what is usual.
            Rules { opaque: Some(f.raw.clone()), ..Rules::default() }
        };
    }
    functions.dedup_by(|next, f| {
        let free = |f: &Function| f.rules.is_empty() && f.exceptions == 0;
        let gap = next.start.saturating_sub(f.start + f.len);
        let one = free(f) && free(next) && f.kind == next.kind && gap < 16;
        if one {
            f.len = f.len.max(next.start + next.len - f.start);
        }
        one
    });
    write(&functions, place)
}

/// What a CIE says, apart from rules.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Kind {
    /// Address of the word that holds the personality function's address.
    personality: Option<u64>,
    signal: bool,
    /// What follows the usual rules, if anything does.
    more: Vec<u8>,
}

#[derive(Debug)]
struct Function {
    kind: Kind,
    start: u64,
    len: u64,
    /// Address of the exception table, or 0.
    exceptions: u64,
    raw: Vec<u8>,
    rules: Rules,
}

/// Reads all records.
fn read<'a>(memory: &impl Fn(Range<u64>) -> Option<&'a [u8]>, frames: Range<u64>) -> Option<Vec<Function>> {
    let (mut kinds, mut out) = (BTreeMap::new(), Vec::new());
    let mut at = frames.start;
    while at + 4 <= frames.end {
        let mut r = Reader { bytes: memory(at..frames.end)?, address: at };
        let len = u64::from(r.word()?);
        if len == 0 {
            break;
        }
        r.bytes = r.bytes.get(..usize::try_from(len).ok()?)?;
        let (here, id) = (r.address, r.word()?);
        if id == 0 {
            kinds.insert(at, cie(r)?);
        } else {
            let (kind, lsda) = kinds.get(&here.checked_sub(u64::from(id))?)?;
            let (start, len) = (r.relative()?, u64::from(r.word()?));
            let augmentation = r.uleb()?;
            let exceptions = match (*lsda, augmentation) {
                (true, 4) => r.relative()?,
                (false, 0) => 0,
                _ => return None,
            };
            if len > 0 {
                let rules = Rules::default();
                out.push(Function { kind: kind.clone(), start, len, exceptions, raw: r.bytes.to_vec(), rules });
            }
        }
        at += 4 + len;
    }
    Some(out)
}

/// Reads a CIE; the flag says whether its FDEs have a pointer to an exception table.
fn cie(mut r: Reader<'_>) -> Option<(Kind, bool)> {
    if r.byte()? != 1 {
        return None;
    }
    let end = r.bytes.iter().position(|&b| b == 0)?;
    let augmentation = r.take(end + 1)?;
    if r.take(3)? != [1, 0x78, 16] {
        return None;
    }
    let (mut kind, mut lsda) = (Kind { personality: None, signal: false, more: vec![] }, false);
    let (b'z', letters) = augmentation[..end].split_first()? else { return None };
    r.uleb()?;
    for letter in letters {
        match letter {
            b'P' if r.byte()? == INDIRECT_PCREL_SDATA4 => kind.personality = Some(r.relative()?),
            b'L' if r.byte()? == PCREL_SDATA4 => lsda = true,
            b'R' if r.byte()? == PCREL_SDATA4 => {}
            b'S' => kind.signal = true,
            _ => return None,
        }
    }
    let mut rest = r.bytes.strip_prefix(&INITIAL)?;
    // Hand-written assembly says it twice.
    while let Some(after) = rest.strip_prefix(&INITIAL[..3]) {
        rest = after;
    }
    if rest.iter().any(|&b| b != 0) {
        kind.more = rest.to_vec();
    }
    Some((kind, lsda))
}

/// The rules of one function: what changes at which distance from its start.
#[derive(Clone, Default, Debug)]
struct Rules {
    steps: Vec<Step>,
    /// Steps at the front that belong to the prologue; the last of them saves registers, and nothing else but the frame address changes.
    prologue: usize,
    /// The instructions as they were, if they must not be changed.
    opaque: Option<Vec<u8>>,
}

#[derive(Clone, Default, Debug)]
struct Step {
    at: u64,
    /// The new frame address, if it changes: register, offset.
    frame: Option<(u64, u64)>,
    /// Other rules, as they are.
    other: Vec<u8>,
    /// These are rules of where registers are saved.
    saves: bool,
}

impl Rules {
    fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.opaque.is_none()
    }

    fn read(raw: &[u8]) -> Option<Rules> {
        let mut r = Reader { bytes: raw, address: 0 };
        let mut frame = (7, 8);
        let (mut steps, mut opaque) = (vec![Step::default()], false);
        while !r.bytes.is_empty() {
            let rest = r.bytes;
            let op = r.byte()?;
            let here = steps.last()?.at;
            let advance = match op {
                0x40..0x80 => Some(u64::from(op & 0x3f)),
                0x02 => Some(u64::from(r.byte()?)),
                0x03 => Some(u64::from(u16::from_le_bytes(*r.take(2)?.first_chunk()?))),
                0x04 => Some(u64::from(r.word()?)),
                _ => None,
            };
            if let Some(advance) = advance {
                steps.push(Step { at: here + advance, ..Step::default() });
                continue;
            }
            let step = steps.last_mut()?;
            match op {
                0x00 => continue,
                0x0c => frame = (r.uleb()?, r.uleb()?),
                0x0d => frame.0 = r.uleb()?,
                0x0e => frame.1 = r.uleb()?,
                // offset; restore; restore_extended, undefined, same_value, GNU_args_size; offset_extended, register
                0x80..0xc0 | 0x06..=0x08 | 0x2e => _ = r.uleb()?,
                0xc0..=0xff => {}
                0x05 | 0x09 => _ = (r.uleb()?, r.uleb()?),
                // remember_state, restore_state: what they do to the frame address is not followed here. An expression for it: likewise.
                0x0a | 0x0b => opaque = true,
                0x0f => {
                    opaque = true;
                    let len = r.uleb()?;
                    r.take(usize::try_from(len).ok()?)?;
                }
                0x10 | 0x16 => {
                    r.uleb()?;
                    let len = r.uleb()?;
                    r.take(usize::try_from(len).ok()?)?;
                }
                _ => return None,
            }
            if matches!(op, 0x0c..=0x0e) {
                step.frame = Some(frame);
            } else {
                step.saves = (0x80..0xc0).contains(&op) && (step.saves || step.other.is_empty());
                step.other.extend(&rest[..rest.len() - r.bytes.len()]);
            }
        }
        if opaque {
            return Some(Rules { opaque: Some(raw.to_vec()), ..Rules::default() });
        }
        steps.retain(|s| s.frame.is_some() || !s.other.is_empty());
        Some(Rules { steps, ..Rules::default() })
    }

    /// Leaves out what holds only where no instruction can call.
    fn without_epilogues(mut self, code: &[u8], start: u64) -> Rules {
        let saves = self.steps.iter().rposition(|s| s.saves);
        let ends: Vec<u64> = self.steps.iter().skip(1).map(|s| s.at).chain([code.len() as u64]).collect();
        // What holds according to the rules that are kept, and what holds in truth.
        let (mut kept, mut real) = ((7, 8), (7, 8));
        let mut out: Vec<Step> = Vec::new();
        for (i, (mut step, end)) in std::mem::take(&mut self.steps).into_iter().zip(ends).enumerate() {
            real = step.frame.unwrap_or(real);
            let range = step.at as usize..end as usize;
            let prologue = saves.is_none_or(|last| i <= last);
            let epilogue = |code| leaves(code, start + step.at);
            if !prologue && step.other.is_empty() && code.get(range).is_some_and(epilogue) {
                continue;
            }
            step.frame = (real != kept).then_some(real);
            kept = real;
            if step.frame.is_some() || !step.other.is_empty() {
                out.push(step);
            }
            if Some(i) == saves {
                self.prologue = out.len();
            }
        }
        self.steps = out;
        self
    }

    /// The rules as instructions, cut where they can be divided between a CIE and an FDE.
    fn pieces(&self) -> Vec<Vec<u8>> {
        if let Some(raw) = &self.opaque {
            return vec![raw.clone()];
        }
        let (mut pieces, mut out) = (Vec::new(), Vec::new());
        let (mut at, mut frame) = (0, (7, 8));
        for (i, step) in self.steps.iter().enumerate() {
            // Registers are saved by pushes; the last step of a prologue makes room, and has the rules for all registers. These do not wait
            // for it, so that functions can share all but the size of the room.
            let early = i + 1 == self.prologue;
            if early {
                out.extend(&step.other);
                pieces.push(std::mem::take(&mut out));
            }
            match step.at - at {
                0 => {}
                n @ 1..0x40 => out.push(0x40 | n as u8),
                n @ 0x40..0x100 => out.extend([2, n as u8]),
                n @ 0x100..0x1_0000 => out.extend([&[3], &(n as u16).to_le_bytes()[..]].concat()),
                n => out.extend([&[4], &(n as u32).to_le_bytes()[..]].concat()),
            }
            at = step.at;
            if let Some(new) = step.frame {
                if new.0 == frame.0 {
                    out.push(0x0e);
                } else if new.1 == frame.1 {
                    out.push(0x0d);
                    uleb(&mut out, new.0);
                } else {
                    out.push(0x0c);
                    uleb(&mut out, new.0);
                }
                if new.0 == frame.0 || new.1 != frame.1 {
                    uleb(&mut out, new.1);
                }
                frame = new;
            }
            if early {
                pieces.push(std::mem::take(&mut out));
            } else {
                out.extend(&step.other);
            }
        }
        pieces.push(out);
        pieces
    }
}

/// Whether these instructions do nothing but leave a function: no call, no store that could fault.
fn leaves(code: &[u8], address: u64) -> bool {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    decoder.iter().all(|i| match i.mnemonic() {
        Mnemonic::Pop | Mnemonic::Ret | Mnemonic::Jmp => true,
        Mnemonic::Add => i.op0_register() == Register::RSP,
        _ => i.code() == Code::Int3 || i.mnemonic() == Mnemonic::Nop,
    })
}

/// Writes the table.
fn write(functions: &[Function], place: u64) -> Option<Vec<u8>> {
    let pieces: Vec<Vec<Vec<u8>>> = functions.iter().map(|f| f.rules.pieces()).collect();
    let prologues = choose(functions, &pieces);

    let mut blocks: Vec<Vec<usize>> = Vec::new();
    for (i, f) in functions.iter().enumerate() {
        match blocks.last_mut() {
            Some(b) if b.len() < BLOCK && f.start - functions[b[0]].start < u64::from(LONG) => b.push(i),
            _ => blocks.push(vec![i]),
        }
    }
    let mut out = Vec::new();
    out.extend(MAGIC.to_le_bytes());
    out.extend(u32::try_from(blocks.len()).ok()?.to_le_bytes());
    out.resize(HEADER_LEN + 8 * (blocks.len() + 1), 0);

    let mut cies = BTreeMap::new();
    for (f, prologue) in functions.iter().zip(&prologues) {
        cies.entry((f.kind.clone(), f.exceptions != 0, prologue.clone())).or_insert(0);
    }
    for ((kind, lsda, prologue), at) in &mut cies {
        *at = out.len();
        let mut letters = vec![b'z'];
        let mut augmentation = Vec::new();
        if kind.personality.is_some() {
            letters.push(b'P');
            augmentation.extend([INDIRECT_PCREL_SDATA4, 0, 0, 0, 0]);
        }
        if *lsda {
            letters.push(b'L');
            augmentation.push(PCREL_SLEB128);
        }
        letters.push(b'R');
        augmentation.push(UDATA2);
        letters.extend(kind.signal.then_some(b'S'));
        out.extend([0; 8]);
        out.push(1);
        out.extend(&letters);
        out.extend([0, 1, 0x78, 16, augmentation.len() as u8]);
        if let Some(personality) = kind.personality {
            let here = out.len() + 1;
            let distance = i32::try_from(personality.cast_signed() - (place + here as u64).cast_signed()).ok()?;
            augmentation[1..5].copy_from_slice(&distance.to_le_bytes());
        }
        out.extend(augmentation);
        out.extend(INITIAL);
        out.extend(&kind.more);
        out.extend(prologue);
        close(&mut out, *at);
    }

    for (number, block) in blocks.iter().enumerate() {
        let start = functions[block[0]].start;
        pair(&mut out, number, u32::try_from(start).ok()?);
        for &i in block {
            let (f, at) = (&functions[i], out.len());
            out.extend([0; 4]);
            let cie = cies.get(&(f.kind.clone(), f.exceptions != 0, prologues[i].clone()))?;
            out.extend(u32::try_from(out.len() - cie).ok()?.to_le_bytes());
            out.extend(u16::try_from(f.start - start).ok()?.to_le_bytes());
            out.extend(u16::try_from(f.len).unwrap_or(LONG).to_le_bytes());
            let mut lsda = Vec::new();
            if f.exceptions != 0 {
                sleb(&mut lsda, f.exceptions.cast_signed() - (place + out.len() as u64 + 1).cast_signed());
            }
            out.push(lsda.len() as u8);
            out.extend(lsda);
            out.extend(&pieces[i].concat()[prologues[i].len()..]);
            close(&mut out, at);
        }
    }
    pair(&mut out, blocks.len(), u32::MAX);
    Some(out)
}

/// Fills in the length of the record that begins at `at` and ends here.
fn close(out: &mut [u8], at: usize) {
    let len = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
}

/// Fills in a pair of the table's index: the next record belongs to this block.
fn pair(out: &mut [u8], block: usize, address: u32) {
    let (at, here) = (HEADER_LEN + 8 * block, out.len() as u32);
    out[at..at + 4].copy_from_slice(&address.to_le_bytes());
    out[at + 4..at + 8].copy_from_slice(&here.to_le_bytes());
}

/// Chooses for each function the rules that its CIE has: the longest beginning that enough functions share.
fn choose(functions: &[Function], pieces: &[Vec<Vec<u8>>]) -> Vec<Vec<u8>> {
    let beginnings = |i: usize| (0..=pieces[i].len()).map(move |n| pieces[i][..n].concat());
    let key = |i: usize, b: &Vec<u8>| (functions[i].kind.clone(), functions[i].exceptions != 0, b.clone());
    let mut banned = std::collections::BTreeSet::new();
    loop {
        let mut users: BTreeMap<_, usize> = BTreeMap::new();
        for i in 0..functions.len() {
            beginnings(i).for_each(|b| *users.entry(key(i, &b)).or_default() += 1);
        }
        let pays = |k: &(Kind, bool, Vec<u8>)| {
            k.2.is_empty() || !banned.contains(k) && k.2.len() * users[k] > k.2.len() + CIE_LEN
        };
        let chosen: Vec<Vec<u8>> =
            (0..functions.len()).map(|i| beginnings(i).rfind(|b| pays(&key(i, b))).unwrap_or_default()).collect();
        // What has too few users once others have chosen longer ones goes, and its users choose again.
        let mut used: BTreeMap<_, usize> = BTreeMap::new();
        (0..functions.len()).for_each(|i| *used.entry(key(i, &chosen[i])).or_default() += 1);
        let poor = used.into_iter().filter(|(k, n)| !k.2.is_empty() && k.2.len() * n <= k.2.len() + CIE_LEN);
        let before = banned.len();
        banned.extend(poor.map(|(k, _)| k));
        if banned.len() == before {
            return chosen;
        }
    }
}

fn uleb(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn sleb(out: &mut Vec<u8>, mut value: i64) {
    while !(-0x40..0x40).contains(&value) {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8 & 0x7f);
}

/// Reads fields of known bytes at a known address.
struct Reader<'a> {
    bytes: &'a [u8],
    address: u64,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(n)?;
        (self.bytes, self.address) = (rest, self.address + n as u64);
        Some(head)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn word(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(*self.take(4)?.first_chunk()?))
    }

    /// `DW_EH_PE_pcrel | DW_EH_PE_sdata4`; 0 stays 0.
    fn relative(&mut self) -> Option<u64> {
        let here = self.address;
        match self.word()?.cast_signed() {
            0 => Some(0),
            distance => here.checked_add_signed(distance.into()),
        }
    }

    fn uleb(&mut self) -> Option<u64> {
        let mut out = 0;
        for shift in (0..63).step_by(7) {
            let b = self.byte()?;
            out |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Some(out);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
