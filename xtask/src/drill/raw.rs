//! Frames that the attacker makes the victim send, and what the other machines see of them.

use super::attempts::Form;
use super::attempts::Outcome::{self, Absent, Broken, Failed, Succeeded};
use super::attempts::errno;
use super::cell::{Answer, Door, Kind, Victim};
use super::gate::gate;
use super::lan::{ATTACKER, ATTACKER_MAC, BRIDGE_MAC, DATABASE, DATABASE_MAC, MARK, METADATA, NOBODY, OPENED};
use super::lan::{RAW_TYPE, SEARCHED, SPOOFED, STRANGER, VICTIM};

/// The Ethernet address of the gateway that the user-mode network is to a guest, who learns it by ARP.
const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
/// Whom the frames are for: everybody, the gateway, and each machine that there is.
const RECEIVERS: [[u8; 6]; 5] = [[0xff; 6], GATEWAY_MAC, BRIDGE_MAC, DATABASE_MAC, ATTACKER_MAC];
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

/// Sends frames as they are, which are made for the sender's Ethernet address: through the gate of an image, through a raw socket elsewhere. How many were taken,
/// which is all of them; the inner error is the outcome if there is no way.
fn send_raw(v: &mut Victim<'_>, make: impl Fn([u8; 6]) -> Vec<Vec<u8>>) -> Answer<Result<usize, Outcome>> {
    v.lan.take_frames();
    if v.kind.is_donjon() {
        let Some((gate, mac)) = gate(v)? else { return Ok(Err(no_gate())) };
        let frames = make(mac);
        let at = v.alloc(0x1000)?;
        for frame in &frames {
            // struct Frame { iov, iov_count, len }, then two pieces: the offload header and the frame.
            let mut bytes = Vec::new();
            for word in [at + 16, 2, at + 64, 12, at + 80, frame.len() as u64] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.resize(80, 0);
            bytes.extend(frame);
            v.poke(at, &bytes)?;
            if let Err(said) = taken(1, |_| v.call(gate, &[4, at, 1]))? {
                return Ok(Err(Broken(said)));
            }
        }
        return Ok(Ok(frames.len()));
    }
    // AF_PACKET, SOCK_RAW, ETH_P_ALL
    let fd = v.syscall(41, &[17, 3, 0x0300])?;
    if fd < 0 {
        return Ok(Err(Failed(format!("socket: {}", errno(-fd)))));
    }
    let frames = make(FOREIGN_MAC);
    let (address, at) = (v.alloc(0x1000)?, v.alloc(0x1000)?);
    let mut devices = 2..12u8;
    let mut device = devices.next();
    for frame in &frames {
        v.poke(at, frame)?;
        // The first device that takes one is the network's.
        loop {
            let Some(number) = device else { return Ok(Err(Broken("no device took a frame".into()))) };
            v.poke(address, &[17, 0, 3, 0, number, 0, 0, 0, 0, 0, 0, 6, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0])?;
            if v.syscall(44, &[fd as u64, at, frame.len() as u64, 0, address, 20])? == frame.len() as i64 {
                break;
            }
            device = devices.next();
        }
    }
    v.syscall(3, &[fd as u64])?;
    Ok(Ok(frames.len()))
}

/// Has `send` offer frames from that number on to the network device until it has taken `count`: a full one takes them later. The inner error says why it has not.
pub fn taken(count: u64, mut send: impl FnMut(u64) -> Answer) -> Answer<Result<(), String>> {
    let (mut done, mut idle) = (0, 0);
    while done < count {
        match send(done)? {
            0 if idle < 1000 => idle += 1,
            0 => return Ok(Err(format!("net_send took {done} of {count} frames and no more"))),
            n if n < 0 => return Ok(Err(format!("net_send took {done} of {count} frames, then: {}", errno(-n)))),
            n => (done, idle) = (done + n.cast_unsigned(), 0),
        }
    }
    Ok(Ok(()))
}

/// What became of raw frames: `all` is what the other machines see of them if nothing stands between.
fn arrived(v: &mut Victim<'_>, sent: Result<usize, Outcome>, all: &[&'static str]) -> Answer<Outcome> {
    // Its answer comes behind them.
    v.request("/", b"")?;
    let seen = v.lan.take_frames();
    let count = match sent {
        Ok(count) => count,
        Err(outcome) if seen.is_empty() => return Ok(outcome),
        Err(_) => 0,
    };
    // The user-mode network has no way for any frame but those of connections.
    let all = if v.door == Door::Open && !v.kind.is_on_tap() { &[OPENED][..] } else { all };
    let missing = all.iter().find(|what| !seen.contains(what));
    Ok(match missing {
        Some(missing) if !v.kind.is_donjon() || v.door == Door::Open => {
            Broken(format!("{count} frames sent, others did not see {missing}, only {seen:?}"))
        }
        _ if !seen.is_empty() => Succeeded(format!("others saw {}", seen.join(", "))),
        _ => match v.dropped()? {
            Ok(dropped) if dropped >= count as u64 => {
                Failed(format!("net_send took {count} of {count}, the filter dropped {dropped}"))
            }
            Ok(dropped) => Broken(format!("net_send took {count}, the filter says that it dropped {dropped}")),
            Err(said) => Broken(said),
        },
    })
}

/// To everybody and to each machine: a type that nobody speaks, an ARP reply that claims another's address, and the first segment of a connection to the database,
/// once from another's address and once from the victim's own.
pub fn raw_frames(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let own = own_address(v.kind);
    let frames = |mac| {
        let claim = arp(2, mac, SPOOFED, NOBODY);
        [RAW_TYPE.to_vec(), claim, syn(STRANGER, DATABASE, 5432), syn(own, DATABASE, 5432)]
            .into_iter()
            .flat_map(move |rest| RECEIVERS.map(|to| frame(to, mac, &rest)))
    };
    let sent = send_raw(v, |mac| frames(mac).chain(frames(FOREIGN_MAC)).collect())?;
    let all = [
        "a connection attempt to the database",
        "a frame of an unknown type",
        "a packet from another's address",
        "an ARP reply for another's address",
    ];
    arrived(v, sent, &all)
}

/// The victim's own address: in the user-mode network, or on the bridge.
pub fn own_address(kind: Kind) -> [u8; 4] {
    if kind.is_donjon() && !kind.is_on_tap() { [10, 0, 2, 15] } else { VICTIM }
}

/// Sends these, made for the sender's own addresses, to everybody, to the gateway and to each machine.
fn from_oneself(
    v: &mut Victim<'_>,
    all: &[&'static str],
    make: impl Fn([u8; 6], [u8; 4]) -> Vec<Vec<u8>>,
) -> Answer<Outcome> {
    let own = own_address(v.kind);
    let sent = send_raw(v, |mac| {
        let packets = make(mac, own);
        RECEIVERS.iter().flat_map(|to| packets.iter().map(|rest| frame(*to, mac, rest))).collect()
    })?;
    arrived(v, sent, all)
}

/// Asks for neighbours, and knocks at ports.
pub fn scan_raw(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let all = ["a connection attempt to the database", "a scan of ports", "a search for neighbours"];
    from_oneself(v, &all, |mac, own| {
        let neighbours = SEARCHED.map(|last| arp(1, mac, own, [10, 66, 0, last]));
        let ports =
            [(DATABASE, 22), (DATABASE, 5432), (ATTACKER, 22), (SPOOFED, 80)].map(|(to, port)| syn(own, to, port));
        neighbours.into_iter().chain(ports).collect()
    })
}

pub fn metadata_raw(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    if v.door == Door::Open && !v.kind.is_on_tap() {
        return Ok(Absent("no option of the user-mode network opens it"));
    }
    let all = ["a connection attempt to the metadata address", "a question for the metadata address"];
    from_oneself(v, &all, |mac, own| vec![arp(1, mac, own, METADATA), syn(own, METADATA, 80)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_the_device_does_not_take_are_no_frames_sent() {
        let all_of = |answers: &[i64]| {
            let mut answers = answers.iter();
            let mut from = Vec::new();
            let said = taken(8, |done| {
                from.push(done);
                Ok(answers.next().copied().unwrap_or(0))
            });
            (said.unwrap_or_else(|e| panic!("{e:?}")), from)
        };
        // A full device takes the rest later.
        assert_eq!(all_of(&[5, 0, 0, 3]), (Ok(()), vec![0, 5, 5, 5]));
        let (said, _) = all_of(&[-14]);
        assert_eq!(said, Err("net_send took 0 of 8 frames, then: EFAULT".into()));
        assert_eq!(all_of(&[7]).0, Err("net_send took 7 of 8 frames and no more".into()));
    }
}
