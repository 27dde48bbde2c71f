//! Making frames that are right in everything but what the input says, and reading those of the stack.

use donjon_net::{FrameSink, NetHdr, Sent};
use std::collections::VecDeque;

/// The fuzzer's machine on the link, and the stack's.
pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const STACK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Frames that the stack sent.
#[derive(Default)]
pub struct Collect {
    pub frames: VecDeque<Vec<u8>>,
    /// Frames that are taken until the device is full; `None`: always.
    pub room: Option<u32>,
}

impl FrameSink for Collect {
    fn send(&mut self, header: NetHdr, head: &[u8], payload: &[&[u8]]) -> Sent {
        match &mut self.room {
            Some(0) => return Sent::Full,
            Some(n) => *n -= 1,
            None => {}
        }
        assert!(payload.len() <= 60, "{} pieces", payload.len());
        let mut bytes = head.to_vec();
        payload.iter().for_each(|p| bytes.extend_from_slice(p));
        assert!((14..=65_535 + 14).contains(&bytes.len()), "a frame of {} bytes", bytes.len());
        if header.flags & 1 != 0 {
            let end = usize::from(header.csum_start) + usize::from(header.csum_offset) + 2;
            assert!(end <= bytes.len(), "a checksum outside of the frame");
        }
        self.frames.push_back(bytes);
        Sent::Done
    }
}

/// An address of either family.
#[derive(Clone, Copy)]
pub enum Pair {
    V4([u8; 4], [u8; 4]),
    V6([u8; 16], [u8; 16]),
}

fn sum(bytes: &[u8], mut start: u32) -> u32 {
    for pair in bytes.chunks(2) {
        start += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    start
}

fn fold(mut sum: u32) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// The Internet checksum over the pseudo header and the segment.
fn transport_sum(pair: Pair, protocol: u8, segment: &[u8]) -> [u8; 2] {
    let addresses = match pair {
        Pair::V4(from, to) => sum(&to, sum(&from, 0)),
        Pair::V6(from, to) => sum(&to, sum(&from, 0)),
    };
    fold(sum(segment, addresses + u32::from(protocol) + segment.len() as u32))
}

/// Puts the checksum where the protocol has it, if the segment reaches that far.
pub fn seal(pair: Pair, protocol: u8, segment: &mut [u8]) {
    let at = match protocol {
        6 => 16,
        17 => 6,
        1 | 58 => 2,
        _ => return,
    };
    if segment.len() < at + 2 {
        return;
    }
    segment[at..at + 2].fill(0);
    let value = if protocol == 1 { fold(sum(segment, 0)) } else { transport_sum(pair, protocol, segment) };
    segment[at..at + 2].copy_from_slice(&value);
}

/// An Ethernet frame with an IP packet. `fragment` is the fragment field of IPv4 or of IPv6's fragment header (as in its word).
pub fn ip(to: [u8; 6], pair: Pair, protocol: u8, fragment: Option<(u16, u16)>, segment: &[u8]) -> Vec<u8> {
    let mut f = Vec::with_capacity(70 + segment.len());
    f.extend(to);
    f.extend(PEER_MAC);
    match pair {
        Pair::V4(from, dst) => {
            f.extend([8, 0]);
            let len = (20 + segment.len()).min(65_535) as u16;
            let (id, word) = fragment.unwrap_or((1, 0));
            let mut h = vec![0x45, 0];
            h.extend(len.to_be_bytes());
            h.extend(id.to_be_bytes());
            h.extend(word.to_be_bytes());
            h.extend([64, protocol, 0, 0]);
            h.extend(from);
            h.extend(dst);
            let check = fold(sum(&h, 0));
            h[10..12].copy_from_slice(&check);
            f.extend(h);
        }
        Pair::V6(from, dst) => {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            let extra = if fragment.is_some() { 8 } else { 0 };
            f.extend(((segment.len() + extra).min(65_535) as u16).to_be_bytes());
            f.extend([if fragment.is_some() { 44 } else { protocol }, if protocol == 58 { 255 } else { 64 }]);
            f.extend(from);
            f.extend(dst);
            if let Some((id, word)) = fragment {
                f.extend([protocol, 0]);
                f.extend(word.to_be_bytes());
                f.extend([0, 0]);
                f.extend(id.to_be_bytes());
            }
        }
    }
    f.extend_from_slice(segment);
    f
}

/// What a TCP segment says.
pub struct Segment<'a> {
    pub ports: (u16, u16),
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    /// Cut to 40 bytes and padded.
    pub options: &'a [u8],
    pub payload: &'a [u8],
}

impl Segment<'_> {
    /// The segment, its checksum not yet there.
    pub fn bytes(&self) -> Vec<u8> {
        let options = &self.options[..self.options.len().min(40)];
        let words = options.len().div_ceil(4);
        let mut s = Vec::with_capacity(20 + 4 * words + self.payload.len());
        s.extend(self.ports.0.to_be_bytes());
        s.extend(self.ports.1.to_be_bytes());
        s.extend(self.seq.to_be_bytes());
        s.extend(self.ack.to_be_bytes());
        s.extend([((5 + words) << 4) as u8, self.flags]);
        s.extend(self.window.to_be_bytes());
        s.extend([0, 0, 0, 0]);
        s.extend_from_slice(options);
        s.resize(20 + 4 * words, 0);
        s.extend_from_slice(self.payload);
        s
    }
}

/// What the stack sent, as far as the targets answer it.
pub enum Seen {
    /// ARP asks for an IPv4 address.
    WhoHas([u8; 4]),
    /// Neighbour discovery asks for an IPv6 address.
    Solicits([u8; 16]),
    /// A TCP segment: ports (from, to), sequence number behind it, flags.
    Tcp {
        ports: (u16, u16),
        end: u32,
        flags: u8,
    },
    /// A UDP datagram: ports and payload.
    Udp {
        to: u16,
        payload: Vec<u8>,
    },
    Other,
}

/// Reads a frame of the stack; every length in it must be right.
pub fn read(frame: &[u8]) -> Seen {
    let word = |b: &[u8], at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
    match word(frame, 12) {
        0x0806 if frame[20..22] == [0, 1] => Seen::WhoHas(frame[38..42].try_into().expect("four bytes")),
        0x0800 => {
            assert_eq!(usize::from(word(frame, 16)), frame.len() - 14, "IPv4 length");
            let header = usize::from(frame[14] & 15) * 4;
            if word(frame, 20) & 0x3fff != 0 {
                return Seen::Other;
            }
            transport(frame[23], &frame[14 + header..])
        }
        0x86dd => {
            assert_eq!(usize::from(word(frame, 18)), frame.len() - 54, "IPv6 length");
            if frame[20] == 58 && frame[54] == 135 {
                return Seen::Solicits(frame[62..78].try_into().expect("sixteen bytes"));
            }
            transport(frame[20], &frame[54..])
        }
        _ => Seen::Other,
    }
}

fn transport(protocol: u8, t: &[u8]) -> Seen {
    let word = |at: usize| u16::from_be_bytes([t[at], t[at + 1]]);
    match protocol {
        6 => {
            let header = usize::from(t[12] >> 4) * 4;
            assert!((20..=t.len()).contains(&header), "TCP header length");
            let seq = u32::from_be_bytes([t[4], t[5], t[6], t[7]]);
            let control = u32::from(t[13] & 1) + u32::from(t[13] >> 1 & 1);
            let end = seq.wrapping_add((t.len() - header) as u32 + control);
            Seen::Tcp { ports: (word(0), word(2)), end, flags: t[13] }
        }
        17 => {
            assert_eq!(usize::from(word(4)), t.len(), "UDP length");
            Seen::Udp { to: word(2), payload: t[8..].to_vec() }
        }
        _ => Seen::Other,
    }
}

/// An ARP reply (`kind` 2) or request (1) of the fuzzer's machine.
pub fn arp(kind: u8, ours: [u8; 4], theirs: [u8; 4]) -> Vec<u8> {
    let mut f = Vec::from(STACK_MAC);
    f.extend(PEER_MAC);
    f.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, kind]);
    f.extend(PEER_MAC);
    f.extend(ours);
    f.extend(STACK_MAC);
    f.extend(theirs);
    f
}

/// A neighbour advertisement of the fuzzer's machine for `target`.
pub fn advertisement(target: [u8; 16], to: [u8; 16]) -> Vec<u8> {
    let pair = Pair::V6(target, to);
    let mut m = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    m.extend(target);
    m.extend([2, 1]);
    m.extend(PEER_MAC);
    seal(pair, 58, &mut m);
    ip(STACK_MAC, pair, 58, None, &m)
}
