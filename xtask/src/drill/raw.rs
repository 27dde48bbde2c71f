//! Frames that the attacker makes the victim send, and what the other machines see of them.

use super::attempts::Form;
use super::attempts::Outcome::{self, Broken, Failed, Succeeded};
use super::attempts::errno;
use super::cell::{Answer, Kind, Victim};
use super::gate::gate;
use super::lan::{ATTACKER, DATABASE, MARK, METADATA, NOBODY, RAW_TYPE, SEARCHED, SPOOFED, STRANGER, VICTIM};

/// The Ethernet address of the gateway that the user-mode network is to a guest, who learns it by ARP.
const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
/// A foreign Ethernet address.
pub const FOREIGN_MAC: [u8; 6] = [2, 0xd0, 0, 0, 0, 1];

/// A frame, filled up to the least length.
pub fn frame(to: [u8; 6], from: [u8; 6], rest: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from, rest].concat();
    frame.resize(60, 0);
    frame
}

/// The checksum of the Internet protocols (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// The first segment of a TCP connection, from the Ethernet type on.
pub fn syn(from: [u8; 4], to: [u8; 4], port: u16) -> Vec<u8> {
    let mut ip = [&[0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0][..], &from, &to].concat();
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let mut tcp = [&MARK[..], &port.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]].concat();
    let sum = checksum(&[&from[..], &to, &[0, 6, 0, 20], &tcp].concat());
    tcp[16..18].copy_from_slice(&sum);
    [&[8, 0][..], &ip, &tcp].concat()
}

/// An ARP packet, from the Ethernet type on.
pub fn arp(operation: u8, mac: [u8; 6], from: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    [&[8, 6, 0, 1, 8, 0, 6, 4, 0, operation][..], &mac, &from, &[0xff; 6], &target].concat()
}

/// What there is instead of an attempt on the gate of an image whose gate is not found.
pub fn no_gate() -> Outcome {
    Broken("the gate was not found".into())
}

/// Sends frames as they are, which are made for the sender's Ethernet address: through the gate of an image, through a raw socket elsewhere. The inner error is the
/// outcome if there is no way.
fn send_raw(v: &mut Victim<'_>, make: impl Fn([u8; 6]) -> Vec<Vec<u8>>) -> Answer<Result<String, Outcome>> {
    v.lan.take_frames();
    if v.kind.is_donjon() {
        let Some((gate, mac)) = gate(v)? else { return Ok(Err(no_gate())) };
        let frames = make(mac);
        let mut taken = 0;
        for frame in &frames {
            // struct Frame { iov, iov_count, len }, then two pieces: the offload header and the frame.
            let at = v.alloc(0x1000)?;
            let mut bytes = Vec::new();
            for word in [at + 16, 2, at + 64, 12, at + 80, frame.len() as u64] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.resize(80, 0);
            bytes.extend(frame);
            v.poke(at, &bytes)?;
            taken += v.call(gate, &[4, at, 1])?;
        }
        return Ok(Ok(format!("net_send took {taken} of {}", frames.len())));
    }
    // AF_PACKET, SOCK_RAW, ETH_P_ALL
    let fd = v.syscall(41, &[17, 3, 0x0300])?;
    if fd < 0 {
        return Ok(Err(Failed(format!("socket: {}", errno(-fd)))));
    }
    for frame in make(FOREIGN_MAC) {
        for device in 2..12u8 {
            let address = v.alloc(0x1000)?;
            v.poke(address, &[17, 0, 3, 0, device, 0, 0, 0, 0, 0, 0, 6, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0])?;
            let at = v.alloc(0x1000)?;
            v.poke(at, &frame)?;
            v.syscall(44, &[fd as u64, at, frame.len() as u64, 0, address, 20])?;
        }
    }
    v.syscall(3, &[fd as u64])?;
    Ok(Ok("sent".into()))
}

/// What became of raw frames.
pub fn arrived(v: &mut Victim<'_>, sent: Result<String, Outcome>) -> Outcome {
    let seen = v.lan.take_frames();
    match sent {
        _ if !seen.is_empty() => Succeeded(format!("others saw {}", seen.join(", "))),
        Ok(said) => Failed(format!("{said}; none was seen by another machine")),
        Err(outcome) => outcome,
    }
}

/// To everybody: a type that nobody speaks, an ARP reply that claims another's address, and the first segment of a connection to the database, once from another's
/// address and once from the victim's own.
pub fn raw_frames(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let frames = |mac| {
        let claim = arp(2, mac, SPOOFED, NOBODY);
        [RAW_TYPE.to_vec(), claim, syn(STRANGER, DATABASE, 5432), syn(VICTIM, DATABASE, 5432)]
            .map(|rest| frame([0xff; 6], mac, &rest))
    };
    let sent = send_raw(v, |mac| [frames(mac), frames(FOREIGN_MAC)].concat())?;
    Ok(arrived(v, sent))
}

/// The victim's own address: in the user-mode network, or on the bridge.
pub fn own_address(kind: Kind) -> [u8; 4] {
    if kind.is_donjon() && !kind.is_on_tap() { [10, 0, 2, 15] } else { VICTIM }
}

/// Sends these, made for the sender's own addresses, to everybody and to the gateway.
fn from_oneself(v: &mut Victim<'_>, make: impl Fn([u8; 6], [u8; 4]) -> Vec<Vec<u8>>) -> Answer<Outcome> {
    let own = own_address(v.kind);
    let sent = send_raw(v, |mac| {
        let packets = make(mac, own);
        [[0xff; 6], GATEWAY_MAC].iter().flat_map(|to| packets.iter().map(|rest| frame(*to, mac, rest))).collect()
    })?;
    Ok(arrived(v, sent))
}

/// Asks for neighbours, and knocks at ports.
pub fn scan_raw(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    from_oneself(v, |mac, own| {
        let neighbours = SEARCHED.map(|last| arp(1, mac, own, [10, 66, 0, last]));
        let ports =
            [(DATABASE, 22), (DATABASE, 5432), (ATTACKER, 22), (SPOOFED, 80)].map(|(to, port)| syn(own, to, port));
        neighbours.into_iter().chain(ports).collect()
    })
}

pub fn metadata_raw(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    from_oneself(v, |mac, own| vec![arp(1, mac, own, METADATA), syn(own, METADATA, 80)])
}
