//! Attempts on the gate and on what is behind it: the monitor, the network device, the shim.

use std::mem::offset_of;

use donjon_abi::boot::{BootPage, Net};

use super::attempts::Form;
use super::attempts::Outcome::{self, Absent, Broken, Failed, Succeeded};
use super::cell::{Answer, Kind, Victim};
use super::end::{Access, Cause};
use super::lan::{DATABASE, NOBODY, RAW_TYPE, SPOOFED, STRANGER};
use super::raw::{arp, frame, no_gate, own_address, syn, taken};

/// The gate's address and the device's Ethernet address, from the boot page: found with the image's symbols and one leaked address, as an attacker would who has the same image.
pub fn gate(v: &mut Victim<'_>) -> Answer<Option<(u64, [u8; 6])>> {
    let Some(distance) = v.made.boot else { return Ok(None) };
    let text = v.sym("text")?;
    let pointer = v.peek(text.wrapping_add(distance), 8)?;
    let page = u64::from_le_bytes(pointer.try_into().unwrap_or_default());
    const GATE: usize = offset_of!(BootPage, gate);
    const MAC: usize = offset_of!(BootPage, net) + offset_of!(Net, mac);
    let head = v.peek(page, size_of::<BootPage>() as u64)?;
    let gate = head.get(GATE..GATE + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let mac = head.get(MAC..MAC + 6).and_then(|b| b.try_into().ok());
    Ok(if head.starts_with(b"DONJBOOT") { gate.zip(mac) } else { None })
}

pub fn gate_calls(v: &mut Victim<'_>, form: Form) -> Answer<Outcome> {
    if !v.kind.is_donjon() {
        return Ok(Absent("there is no gate"));
    }
    let rounds = match (v.kind, form) {
        (Kind::Process | Kind::Tap, Form::Whole) => 3000,
        (Kind::Process | Kind::Tap, Form::Short) => 300,
        (_, Form::Whole) => 600,
        (_, Form::Short) => 100,
    };
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let (mut refused, mut ended) = (0, 0);
    let mut address = None;
    for _ in 0..rounds {
        let gate = match address {
            Some(gate) => gate,
            None => {
                let Some((gate, _)) = gate(v)? else { return Ok(no_gate()) };
                *address.insert(gate)
            }
        };
        // Not `exit` and `fault`, which do what they say, nor a `wait` for ever.
        let call = [2, 4, 5, 6, 7, 8, 9, 255, u64::MAX][(random() % 9) as usize];
        let args = [(); 3].map(|()| match random() % 6 {
            0 => random(),
            1 => random() % 64,
            2 => random() % 0x8000_0000_0000,
            3 => (random() % 0x8000_0000_0000) & !0xfff,
            4 => u64::MAX - random() % 8192,
            _ => gate & !0xfff,
        });
        let answer = v.call(gate, &[call, args[0], args[1], args[2]]);
        match v.or_ended(answer, Cause::Astray)? {
            Some(result) if result < 0 => refused += 1,
            Some(_) => {}
            None => {
                ended += 1;
                address = None;
            }
        }
    }
    serves_anew(v)?;
    Ok(Failed(format!("{rounds} calls: {refused} refused, {ended} ended the instance; the host side lives")))
}

/// The host, and a new instance, are as before.
fn serves_anew(v: &mut Victim<'_>) -> Answer<()> {
    v.restart();
    v.request("/", b"").map(drop)
}

/// A piece of a frame: where the gate's caller says that it is, and how long.
type Piece = (u64, u64);

/// Bytes of an offload header.
const HEADER: usize = 12;

/// Offload headers (virtio 1.3 §5.1.6) that no driver makes, with the few that one could make among them.
fn headers() -> impl Iterator<Item = [u8; HEADER]> {
    // Header length, segment size, where the checksum begins and is written, buffers.
    const REST: [[u16; 5]; 9] = [
        [0; 5],
        // What belongs to a segment of TCP over IPv4.
        [54, 536, 34, 16, 1],
        // Segments of one byte, and of none.
        [54, 1, 34, 16, 0xffff],
        [54, 0, 34, 16, 0],
        // Beyond the frame's end, at it, and just before it.
        [0xffff; 5],
        [60, 60, 60, 0, 2],
        [0, 65_535, 58, 1, 0],
        // Into the Ethernet source and the IP source, after whoever has judged them.
        [14, 1448, 0, 6, 0],
        [34, 8, 14, 12, 0],
    ];
    let flags = [0u8, 1, 2, 4, 7, 0xff];
    // None, TCP over IPv4, UDP fragments, TCP over IPv6, UDP segments, the same with the bit for ECN, none that there is.
    let kinds = [0u8, 1, 3, 4, 5, 0x80, 0x81, 0xff];
    flags.into_iter().flat_map(move |flags| {
        kinds.into_iter().flat_map(move |kind| {
            REST.into_iter().map(move |rest| {
                let mut header = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                for (to, word) in header[2..].chunks_exact_mut(2).zip(rest) {
                    to.copy_from_slice(&word.to_le_bytes());
                }
                header
            })
        })
    })
}

/// Frames of which no other machine may see any, whatever stands in front of them.
fn forbidden(kind: Kind, mac: [u8; 6]) -> Vec<Vec<u8>> {
    let own = syn(own_address(kind), DATABASE, 5432);
    // IEEE 802.1Q, which a receiver takes off.
    let tagged = [&[0x81, 0, 0, 1][..], &own].concat();
    [RAW_TYPE.to_vec(), arp(2, mac, SPOOFED, NOBODY), syn(STRANGER, DATABASE, 5432), own, tagged]
        .map(|rest| frame([0xff; 6], mac, &rest))
        .into()
}

/// Lists of pieces that no driver makes, each with the number of pieces that it claims: `at` is the address of an offload header, right behind which a frame of 60 bytes lies.
fn lists(at: u64) -> Vec<(Vec<Piece>, u32)> {
    let header = (at, HEADER as u64);
    let data = at + HEADER as u64;
    let mut out = vec![(vec![], 0), (vec![header], 1), (vec![(at, 0)], 1), (vec![header, (data, 60)], 0)];
    // The header in another piece than the first, in parts, and not at its length.
    out.extend([0, 1, 11, 13, 72].map(|len| (vec![(at, len), (at + len, 72 - len)], 2)));
    let by_bytes = (0..64).map(|i| (at + i, 1)).collect();
    out.push((by_bytes, 64));
    // Lengths: shorter than an Ethernet header, larger than any frame, and such as wrap.
    for len in [0, 1, 13, 0x1_0000, 0x2_0000, 1 << 31, 1 << 32, 1 << 47, 1 << 63, u64::MAX, u64::MAX - 11] {
        out.push((vec![header, (data, len)], 2));
    }
    out.push((vec![header, (data, 60), (data, u64::MAX), (data, 1 << 63), (data, 1 << 63)], 5));
    // Addresses that are not the guest's.
    for (_, place) in PLACES {
        out.push((vec![header, (*place, 60)], 2));
        out.push((vec![(*place, HEADER as u64), (data, 60)], 2));
    }
    // More pieces than there may be, and than there are.
    for count in [65, 1024, 1025, 0x1000_0000, u32::MAX] {
        out.push((vec![header; 70], count));
    }
    out
}

fn words(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// What was tried, and what came of it.
#[derive(Default)]
struct Tally {
    calls: u32,
    refused: u32,
    ended: u32,
}

impl Tally {
    /// Takes the answer to a call; false if it was the instance's end.
    fn take(&mut self, v: &Victim<'_>, answer: Answer) -> Answer<bool> {
        self.calls += 1;
        let answer = v.or_ended(answer, Cause::Astray)?;
        self.refused += u32::from(answer.is_some_and(|r| r < 0));
        self.ended += u32::from(answer.is_none());
        Ok(answer.is_some())
    }
}

/// Hands the network device what no driver hands it: under QEMU by the gate, which is all that there is; under the process engine also by the system calls that it stands for.
pub fn malformed_frames(v: &mut Victim<'_>, form: Form) -> Answer<Outcome> {
    if !v.kind.is_donjon() {
        return Ok(Absent("there is no gate"));
    }
    v.lan.take_frames();
    let mut tally = Tally::default();
    let step = if form == Form::Whole { 1 } else { 5 };
    let frames = match send_headers(v, step, &mut tally)? {
        Ok(frames) => frames,
        Err(outcome) => return Ok(outcome),
    };
    let mut calls = Vec::new();
    // `net_send` and `net_recv`; `writev` and `readv`, of the network device, of the descriptor beside it, and of two that are closed.
    calls.extend([4, 5].map(|call| (true, call, 0)));
    if !v.kind.is_qemu() {
        calls.extend([4, 5, 0, 6].into_iter().flat_map(|fd| [(false, 20, fd), (false, 19, fd)]));
    }
    for (by_gate, call, fd) in calls {
        let mut place = None;
        for number in (0..lists(0).len()).step_by(step) {
            let (gate, at) = match place {
                Some(place) => place,
                None => {
                    let Some((gate, mac)) = gate(v)? else { return Ok(no_gate()) };
                    let at = v.alloc(0x1_0000)?;
                    let first = forbidden(v.kind, mac).swap_remove(0);
                    v.poke(at + 0x8000, &[&[0; HEADER][..], &first].concat())?;
                    *place.insert((gate, at))
                }
            };
            let (pieces, count) = lists(at + 0x8000).swap_remove(number);
            let pieces = words(pieces.into_iter().flat_map(|(base, len)| [base, len]));
            v.poke(at, &[words([at + 16, count.into()]), pieces].concat())?;
            let answer = match by_gate {
                true => v.call(gate, &[call, at, 1]),
                false => v.syscall(call, &[fd, at + 16, count.into()]),
            };
            if !tally.take(v, answer)? {
                place = None;
            }
        }
    }
    for call in [4, 5] {
        // Lists that are not there, and more of them than there are.
        for (list, count) in [(0, 1), (u64::MAX - 7, 1), (1 << 47, 1), (PLACES[0].1, 64), (1, u64::MAX), (2, 0x1_0000)]
        {
            let Some((gate, _)) = gate(v)? else { return Ok(no_gate()) };
            let list = if (1..16).contains(&list) { v.alloc(0x1000)? } else { list };
            let answer = v.call(gate, &[call, list, count]);
            tally.take(v, answer)?;
        }
    }
    serves_anew(v)?;
    let Tally { calls, refused, ended } = tally;
    let seen = v.lan.take_frames();
    if !seen.is_empty() {
        return Ok(Succeeded(format!("others saw {}", seen.join(", "))));
    }
    Ok(Failed(format!(
        "{frames} frames taken and {calls} calls: {refused} refused, {ended} ended the instance; none was seen by another machine"
    )))
}

/// Sends each forbidden frame with each `step`th header, some thousand frames in all, as fast as it goes. How many there were, all of which the device
/// has taken; the inner error is the outcome where it has not.
fn send_headers(v: &mut Victim<'_>, step: usize, tally: &mut Tally) -> Answer<Result<u64, Outcome>> {
    let Some((gate, mac)) = gate(v)? else { return Ok(Err(no_gate())) };
    let frames: Vec<Vec<u8>> = headers()
        .step_by(step)
        .flat_map(|header| forbidden(v.kind, mac).into_iter().map(move |frame| [&header[..], &frame].concat()))
        .collect();
    let mut sent = 0;
    for frames in frames.chunks(1000) {
        let count = frames.len() as u64;
        let at = v.alloc(0x4_0000)?;
        let (pieces, mut data) = (at + 16 * count, at + 48 * count);
        let (mut lists, mut tail) = (Vec::new(), Vec::new());
        for (i, frame) in frames.iter().enumerate() {
            lists.extend(words([pieces + 32 * i as u64, 2]));
            tail.extend(words([data, HEADER as u64, data + HEADER as u64, (frame.len() - HEADER) as u64]));
            data += frame.len() as u64;
        }
        tail.extend(frames.concat());
        v.poke(at, &[lists, tail].concat())?;
        // Three times over.
        for _ in 0..3 {
            let offered = taken(count, |done| {
                tally.calls += 1;
                v.call(gate, &[4, at + 16 * done, count - done])
            });
            if let Err(said) = offered? {
                return Ok(Err(Broken(said)));
            }
            sent += count;
        }
    }
    Ok(Ok(sent))
}

/// Where something lies that is not the guest's: under the shim, which maps physical memory one to one, on the machines that QEMU makes, and under Linux.
const PLACES: &[(&str, u64)] = &[
    ("the shim's code", 0x10_0000),
    ("the shim's data", 0x12_0000),
    ("the first page", 0x10),
    ("the BIOS's data", 0x400),
    ("the screen", 0xb_8000),
    ("the BIOS", 0xf_0000),
    ("the end of memory", 0x1ff_f000),
    ("PCI configuration", 0xb000_0000),
    ("PCI's window", 0xc000_0000),
    ("the end of PCI's window", 0xfe00_0000),
    ("the first virtio device", 0xfeb0_0000),
    ("the last virtio device", 0xfeb0_2e00),
    ("the I/O APIC", 0xfec0_0000),
    ("the HPET", 0xfed0_0000),
    ("the local APIC", 0xfee0_0000),
    ("the firmware's flash", 0xffff_0000),
    ("no address", 1 << 47),
    ("the upper half", 0xffff_8000_0000_0000),
    ("Linux's window on all memory", 0xffff_8880_0000_0000),
    ("Linux's text", 0xffff_ffff_8100_0000),
];

/// Reads and writes there, which must be a fault at that address, and asks the gate to do it instead.
pub fn by_address(v: &mut Victim<'_>, form: Form) -> Answer<Outcome> {
    let (mut faults, mut refused) = (0, 0);
    for (what, at) in PLACES.iter().step_by(if form == Form::Whole { 1 } else { 5 }) {
        let answer = v.peek(*at, 8);
        if let Some(bytes) = v.or_ended(answer, Cause::Access(Access::Read, *at))? {
            return Ok(Succeeded(format!("{what} was read: {bytes:x?}")));
        }
        let answer = v.poke(*at, &[0; 8]);
        if v.or_ended(answer, Cause::Access(Access::Write, *at))?.is_some() {
            return Ok(Succeeded(format!("{what} was written")));
        }
        faults += 2;
        if !v.kind.is_donjon() {
            continue;
        }
        let Some((gate, _)) = gate(v)? else { return Ok(no_gate()) };
        let (list, page) = (v.alloc(0x1000)?, at & !0xfff);
        v.poke(list, &words([list + 16, 2, list + 64, HEADER as u64, *at, 60]))?;
        // `console`, `net_send` of a frame there, `protect`, `discard`, and `net_send` of a list there.
        for args in [[2, *at, 16, 1], [4, list, 1, 0], [6, page, 0x1000, 2], [7, page, 0x1000, 0], [4, *at, 1, 0]] {
            let answer = v.call(gate, &args);
            // The process engine's gate is the guest's own code: it reads the list itself.
            let cause = Cause::Access(Access::Read, *at);
            match v.or_ended(answer, cause)? {
                Some(result) if result >= 0 => {
                    return Ok(Succeeded(format!("the gate took {what}: {args:x?} gave {result}")));
                }
                Some(_) => refused += 1,
                None => faults += 1,
            }
        }
    }
    let gate = if v.kind.is_donjon() { format!("; the gate refused {refused} calls for them") } else { String::new() };
    // Of a container's ending no more is known than the signal.
    let by = if v.kind.is_donjon() { "a fault at that address" } else { "a signal of a fault" };
    Ok(Failed(format!("{faults} accesses, each of which ended it by {by}{gate}")))
}
