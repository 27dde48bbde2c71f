//! Frames of a guest that was taken over, at the monitor's filter: what passes bears the guest's own addresses, and goes to a declared destination or back to
//! somebody who came first. The rules are written down here a second time, plainly, and every frame that passes is held against them.

use crate::input::Input;
use crate::packet::{self, Pair, Segment};
use donjon_monitor::fuzzing::Filter;
use std::collections::HashSet;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const OWN4: [u8; 4] = [10, 0, 2, 15];
const OWN6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x15];
const LOCAL6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x50, 0x54, 0, 0xff, 0xfe, 0x12, 0x34, 0x56];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Who came to the guest: protocol, address (IPv4 in front), port, and the guest's port.
type Met = HashSet<(u8, [u8; 16], u16, u16)>;
/// First fragments that passed: where to, identification.
type Begun = HashSet<([u8; 16], u32)>;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut filter = Filter::new();
    let (mut met, mut begun) = (Met::new(), Begun::new());
    for _ in 0..200 {
        if input.is_empty() {
            break;
        }
        let op = input.u8();
        let mut frame = make(op, &mut input);
        // A byte is changed, or the end is cut off, or neither.
        if op & 4 != 0 {
            let at = usize::from(input.u8());
            let value = input.u8();
            if let Some(b) = frame.get_mut(at) {
                *b = value;
            }
        }
        if op & 8 != 0 {
            frame.truncate(usize::from(input.u8()));
        }
        if op & 1 == 0 {
            if filter.inbound(&frame) {
                meet(&frame, &mut met);
            }
        } else {
            let header = offload(&mut input);
            if filter.outbound(&header, &frame) {
                judge(&frame, &met, &mut begun);
                judge_offload(header, &frame);
            }
        }
    }
}

/// What is to be done to a frame after it has passed: nothing, what is right, or anything.
fn offload(input: &mut Input<'_>) -> [u8; 12] {
    let mut header = [0; 12];
    match input.u8() {
        0..128 => {}
        // The checksum of TCP or UDP, over IPv4 or IPv6, more or less.
        n @ 128..240 => {
            header[0] = 1;
            header[6] = [34, 54, 35, 20][usize::from(n & 3)];
            header[8] = [16, 6, 2, 12][usize::from(n >> 2 & 3)];
            header[1] = [0, 1, 4, 0x81][usize::from(n >> 4 & 3)];
            header[4] = input.u8();
        }
        _ => header.iter_mut().zip(input.take(12)).for_each(|(to, from)| *to = *from),
    }
    header
}

/// What is written into a frame later is the checksum of a whole TCP segment or UDP datagram.
fn judge_offload(header: [u8; 12], frame: &[u8]) {
    let field = |at| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    if header[0] & 1 == 0 {
        assert!(header[1] & 0x7f == 0, "cut without a checksum");
        return;
    }
    let (protocol, _, _, at) = open(frame).expect("a first fragment at least");
    assert!(word(frame, 12) != 0x0800 || word(frame, 20) & 0x3fff == 0, "a fragment's checksum");
    let sum = if protocol == TCP { 16 } else { 6 };
    assert!(matches!(protocol, TCP | UDP) && at != 62, "a checksum for {protocol}");
    assert_eq!((field(6), field(8)), (at, sum), "a checksum elsewhere");
}

/// A frame in which everything comes from short lists: so that what is allowed is met as often as what is not.
fn make(op: u8, input: &mut Input<'_>) -> Vec<u8> {
    if op & 0xf0 == 0xf0 {
        let len = usize::from(input.u8());
        return input.take(len).to_vec();
    }
    let choice = input.u8();
    let outward = op & 1 == 1;
    let peers4 = [
        [9, 9, 9, 9],
        [9, 9, 9, 10],
        [169, 254, 169, 254],
        [10, 0, 2, 2],
        [1, 2, 3, 4],
        [255; 4],
        [224, 0, 0, 1],
        OWN4,
    ];
    let peer4 = peers4[usize::from(choice & 7)];
    let mut peer6 = OWN6;
    peer6[0] = [0xfd, 0x20, 0xfe, 0xff][usize::from(choice & 3)];
    peer6[15] = choice >> 2 & 3;
    let ports = [80, 443, 53, 1234, 0, 67, 68, 8080];
    let (near, far) = (ports[usize::from(input.u8() & 7)], ports[usize::from(input.u8() & 7)]);
    let own4 = if choice & 0x80 == 0 { OWN4 } else { [10, 0, 2, 16] };
    let v6 = op & 2 != 0;
    let pair = match (v6, outward) {
        (false, true) => Pair::V4(own4, peer4),
        (false, false) => Pair::V4(peer4, own4),
        (true, true) => Pair::V6(if choice & 64 == 0 { OWN6 } else { LOCAL6 }, peer6),
        (true, false) => Pair::V6(peer6, OWN6),
    };
    let ports = if outward { (near, far) } else { (far, near) };
    let (protocol, bytes) = match op >> 4 & 7 {
        0..=2 => {
            let flags = input.u8();
            (TCP, Segment { ports, seq: 1, ack: 1, flags, window: 9, options: &[], payload: b"x" }.bytes())
        }
        3 | 4 => {
            let mut d = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
            d.extend([0, 9, 0, 0, 7]);
            (UDP, d)
        }
        5 => (if v6 { 58 } else { 1 }, input.take(32).to_vec()),
        6 => {
            let mut f = packet::arp(1 + (choice >> 6 & 1), own4, peer4);
            f[6..12].copy_from_slice(&MAC);
            f[22..28].copy_from_slice(&MAC);
            return f;
        }
        _ => (input.u8(), input.take(24).to_vec()),
    };
    let fragment = (choice & 32 != 0).then(|| (u16::from(input.u8() & 3), input.u16()));
    let mut frame = packet::ip([2; 6], pair, protocol, fragment, &bytes);
    if outward {
        frame[6..12].copy_from_slice(&MAC);
    }
    frame
}

fn mapped(ip: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    if ip.len() == 16 {
        out.copy_from_slice(ip);
    } else {
        out[10..12].fill(0xff);
        out[12..].copy_from_slice(ip);
    }
    out
}

fn word(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([b[at], b[at + 1]])
}

/// Where the transport header is, for a packet that is not a later fragment: protocol, sender, destination, offset.
fn open(frame: &[u8]) -> Option<(u8, [u8; 16], [u8; 16], usize)> {
    match word(frame, 12) {
        0x0800 if word(frame, 20) & 0x1fff == 0 => {
            Some((frame[23], mapped(&frame[26..30]), mapped(&frame[30..34]), 34))
        }
        0x86dd => {
            let (from, to) = (mapped(&frame[22..38]), mapped(&frame[38..54]));
            match frame[20] {
                44 if word(frame, 56) & 0xfff8 == 0 => Some((frame[54], from, to, 62)),
                44 => None,
                next => Some((next, from, to, 54)),
            }
        }
        _ => None,
    }
}

fn meet(frame: &[u8], met: &mut Met) {
    if let Some((protocol @ (TCP | UDP), from, _, at)) = open(frame)
        && frame.len() >= at + 4
    {
        met.insert((protocol, from, word(frame, at), word(frame, at + 2)));
    }
}

/// TCP to 9.9.9.0/24, port 443: what the manifest of [`Filter::new`] declares.
fn declared(protocol: u8, to: [u8; 16], port: u16) -> bool {
    protocol == TCP && to[..15] == mapped(&[9, 9, 9, 0])[..15] && port == 443
}

fn judge(frame: &[u8], met: &Met, begun: &mut Begun) {
    assert!(frame.len() >= 14 && frame[6..12] == MAC, "a frame that is not the guest's");
    match word(frame, 12) {
        0x0806 => {
            assert_eq!(frame[22..28], MAC, "ARP for another's Ethernet address");
            assert_eq!(frame[28..32], OWN4, "ARP for another's address");
            return;
        }
        0x0800 => assert!(frame[26..30] == OWN4 && frame[14] == 0x45, "IPv4 with another's address"),
        0x86dd => assert!(frame[22..38] == OWN6 || frame[22..38] == LOCAL6, "IPv6 with another's address"),
        other => panic!("a frame of type {other:x}"),
    }
    let v4 = word(frame, 12) == 0x0800;
    let to = if v4 { mapped(&frame[30..34]) } else { mapped(&frame[38..54]) };
    let fragment = if v4 { word(frame, 20) & 0x3fff != 0 } else { frame[20] == 44 };
    let id = if v4 {
        u32::from(word(frame, 18))
    } else {
        frame.get(58..62).map_or(0, |b| u32::from_be_bytes(b.try_into().expect("four bytes")))
    };
    let Some((protocol, _, _, at)) = open(frame) else {
        assert!(begun.contains(&(to, id)), "a later fragment without a first one");
        return;
    };
    assert!(to != mapped(&[169, 254, 169, 254]), "to the metadata address");
    match protocol {
        TCP | UDP => {
            let (near, far) = (word(frame, at), word(frame, at + 2));
            let allowed = declared(protocol, to, far);
            assert!(
                allowed || met.contains(&(protocol, to, far, near)),
                "to {to:?} port {far}, protocol {protocol}, unasked"
            );
            let opens = protocol == TCP && frame[at + 13] & 0x12 == 2;
            assert!(allowed || !opens, "a connection of its own to {to:?} port {far}");
        }
        58 if matches!(frame[at], 133 | 135) => {
            assert!(to[..2] == [0xff, 2] || to[..8] == [0xfe, 0x80, 0, 0, 0, 0, 0, 0], "solicits {to:?}")
        }
        1 | 58 => assert!(!fragment),
        other => panic!("protocol {other}"),
    }
    if fragment {
        begun.insert((to, id));
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    vec![
        // A client comes, and is answered; then the guest dials what it may, and what it may not.
        vec![0x00, 4, 0, 3, 2, 0x01, 4, 0, 3, 0x12],
        vec![0x01, 0, 3, 1, 2, 0x01, 2, 3, 0, 2],
        vec![0x30, 4, 0, 3, 0x31, 36, 0, 3, 1, 0, 0x20, 0x31, 36, 0, 3, 1, 9, 0],
        vec![0x61, 3, 0, 0, 0x63, 3, 0, 0, 0x60, 3, 0, 0],
    ]
}
