use super::*;
use crate::frames::Frames;
use crate::phys::Fake;
use donjon_abi::{PAGE, Prot};
use std::vec;
use std::vec::Vec;

const REGS: PhysAddr = PhysAddr(0x10_0000);
const USER: u64 = 0x7000_0000_0000;

/// A machine whose device registers are plain memory: what was written is read back.
fn machine(features: u64, queue_max: u32) -> (Space<Fake>, Result<Nic, Lie>, boot::Net) {
    let mut mem = Fake::new(0x10_0000, 400 << 12);
    mem.zero(REGS, 0x2000);
    // The offered features read the same for both halves, so bit 0 of the upper half (VERSION_1) is CSUM, too.
    mem.write_u32(REGS.add(0x10), features as u32 | 1);
    mem.write_u32(REGS.add(0x34), queue_max);
    mem.write(REGS.add(0x100), &[2, 3, 4, 5, 6, 7]);
    let mut frames = Frames::new();
    frames.add(0x10_2000, 0x10_0000 + (400 << 12), &[]);
    let mut space = Space::new(mem, frames, PhysAddr(0x10_1000));
    space.protect(USER, 64 * PAGE, Prot::ReadWrite).unwrap();
    let mut out = boot::Net::default();
    let nic = Nic::start(&mut space, Transport::Mmio { base: REGS }, &mut out);
    (space, nic, out)
}

fn used(mem: &mut Fake, q: &Queue, nth: u16, id: u16, len: u32) {
    let [.., at] = q.parts();
    mem.write_u32(at.add(4 + 8 * u64::from(nth % q.size())), id.into());
    mem.write_u32(at.add(8 + 8 * u64::from(nth % q.size())), len);
    mem.write_u16(at.add(2), nth.wrapping_add(1));
}

/// A frame descriptor at USER whose pieces have these lengths, their data from USER + 0x2000 on without gaps.
fn frame(space: &mut Space<Fake>, lens: &[u64]) -> u64 {
    let mut at = USER + 0x2000;
    for (i, len) in (0..).zip(lens) {
        user::write(space, USER + 0x1000 + i * 16, &at.to_le_bytes()).unwrap();
        user::write(space, USER + 0x1008 + i * 16, &len.to_le_bytes()).unwrap();
        at += len;
    }
    user::write(space, USER, &(USER + 0x1000).to_le_bytes()).unwrap();
    user::write(space, USER + 8, &(lens.len() as u32).to_le_bytes()).unwrap();
    USER
}

#[test]
fn memory_does_not_depend_on_the_queue_that_is_offered() {
    let mut taken = Vec::new();
    for queue_max in [256, 1024, 32768] {
        let (space, nic, out) = machine(feature::MAC, queue_max);
        let nic = nic.unwrap();
        assert_eq!((nic.posted, nic.rx.size(), nic.tx.size()), (RX_STEP[0], RX_MAX[0], SIZE_MAX));
        assert_eq!((out.mac, out.mtu), ([2, 3, 4, 5, 6, 7], 1500));
        taken.push(space.frames.free());
    }
    assert!(taken.iter().all(|t| *t == taken[0]));
    assert!(machine(feature::MAC, 1).1.is_err());
}

#[test]
fn a_frame_is_copied_out_of_the_guest_and_its_header_checked() {
    let (mut space, nic, _) = machine(feature::HOST_TSO4, 256);
    let mut nic = nic.unwrap();
    let f = frame(&mut space, &[12, 20, 3000]);
    let mut header = NetHdr { num_buffers: 1, ..NetHdr::default() };
    let send = |space: &mut Space<Fake>, nic: &mut Nic, header: NetHdr| {
        user::write(space, USER + 0x2000, &header.to_bytes()).unwrap();
        user::write(space, USER + 0x200c, &[9; 3020]).unwrap();
        let before = nic.tx.flying();
        assert_eq!(nic.send(space, f, 1), Ok(1));
        nic.tx.flying() - before
    };
    assert_eq!(send(&mut space, &mut nic, header), 1);
    let sent = nic.tx_pool.at(0);
    let mut bytes = [0; 14];
    space.mem.read(sent, &mut bytes);
    assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 9]);
    assert_eq!(space.mem.read_u32(REGS.add(0x50)), 1, "the device was told about queue 1");
    // A header that is wrong: taken, but dropped.
    header.gso_type = net_hdr::GSO_TCPV4;
    assert_eq!(send(&mut space, &mut nic, header), 0);
}

/// Addresses, ports and flags are what a filter looks at before the device fills the checksum in.
#[test]
fn a_checksum_is_filled_in_where_the_protocol_has_it() {
    const START: usize = 0x200c;
    let (mut space, nic, _) = machine(feature::HOST_TSO4 | feature::HOST_TSO6, 256);
    let mut nic = nic.unwrap();
    let mut sent = |bytes: &[(usize, &[u8])], len: u64, header: NetHdr| {
        let f = frame(&mut space, &[12, len]);
        user::write(&mut space, USER + 0x2000, &header.to_bytes()).unwrap();
        user::write(&mut space, USER + START as u64, &[9; 3000]).unwrap();
        for (at, bytes) in bytes {
            user::write(&mut space, USER + (START + at) as u64, bytes).unwrap();
        }
        let before = nic.tx.flying();
        assert_eq!(nic.send(&mut space, f, 1), Ok(1));
        nic.tx.flying() - before == 1
    };
    let partial = |csum_start, csum_offset| NetHdr { flags: 1, csum_start, csum_offset, ..NetHdr::default() };
    let cut = |gso_type, gso_size, header| NetHdr { gso_type, gso_size, hdr_len: 54, ..header };
    let v4 = |protocol| [(12, vec![8, 0, 0x45]), (20, vec![0x40, 0, 64, protocol])];
    let v6 = |protocol| [(12, vec![0x86, 0xdd, 0x60]), (20, vec![protocol])];
    fn all(parts: &[(usize, Vec<u8>)]) -> Vec<(usize, &[u8])> {
        parts.iter().map(|(at, bytes)| (*at, &bytes[..])).collect()
    }
    let (tcp4, udp4, tcp6, udp6) = (v4(6), v4(17), v6(6), v6(17));
    let (tcp4, udp4, tcp6, udp6) = (&all(&tcp4), &all(&udp4), &all(&tcp6), &all(&udp6));
    for (bytes, start, offset) in [(tcp4, 34, 16), (udp4, 34, 6), (tcp6, 54, 16), (udp6, 54, 6)] {
        assert!(sent(bytes, 100, partial(start, offset)));
        for (bad_start, bad_offset) in [(start, 0), (start, 2), (start, 13), (0, 26), (start - 4, offset + 4), (26, 0)]
        {
            assert!(!sent(bytes, 100, partial(bad_start, bad_offset)), "{bytes:?}: {bad_start} {bad_offset}");
        }
        let needed = u64::from(start + offset) + 2;
        assert!(sent(bytes, needed, partial(start, offset)) && !sent(bytes, needed - 1, partial(start, offset)));
    }
    // Neither TCP nor UDP, a fragment, options, no IP.
    let (icmp, igmp) = (v4(1), v6(58));
    let (mut first, mut later, mut options, mut arp) = (v4(6), v4(17), v4(6), v4(6));
    first[1].1[0] = 0x20;
    later[1].1[1] = 1;
    options[0].1[2] = 0x46;
    arp[0].1[1] = 6;
    for bytes in [&icmp, &igmp, &first, &later, &options, &arp] {
        for offset in [6, 16] {
            assert!(!sent(&all(bytes), 100, partial(34, offset)), "{bytes:?}");
        }
    }
    // Cut as what it is, and not into crumbs.
    let (start4, start6) = (partial(34, 16), partial(54, 16));
    assert!(sent(tcp4, 3000, cut(net_hdr::GSO_TCPV4, 48, start4)));
    assert!(sent(tcp6, 3000, cut(net_hdr::GSO_TCPV6, 1400, start6)));
    assert!(!sent(tcp4, 3000, cut(net_hdr::GSO_TCPV6, 1400, start4)));
    assert!(!sent(tcp6, 3000, cut(net_hdr::GSO_TCPV4, 1400, start6)));
    assert!(!sent(udp4, 3000, cut(net_hdr::GSO_TCPV4, 1400, partial(34, 6))));
    assert!(!sent(tcp4, 3000, cut(net_hdr::GSO_TCPV4, 47, start4)));
    assert!(!sent(tcp4, 53, cut(net_hdr::GSO_TCPV4, 1400, start4)));
    assert!(!sent(tcp4, 3000, cut(net_hdr::GSO_TCPV4, 1400, NetHdr { flags: 0, ..start4 })));
    // Not negotiated.
    let (mut space, nic, _) = machine(feature::HOST_TSO4, 256);
    let mut nic = nic.unwrap();
    let f = frame(&mut space, &[12, 100]);
    for (at, bytes) in
        [(0, &cut(net_hdr::GSO_TCPV6, 1400, start6).to_bytes()[..]), (24, &[0x86, 0xdd, 0x60]), (32, &[6])]
    {
        user::write(&mut space, USER + 0x2000 + at, bytes).unwrap();
    }
    assert_eq!((nic.send(&mut space, f, 1), nic.tx.flying()), (Ok(1), 0));
}

#[test]
fn pointers_that_are_not_the_guests_are_refused() {
    let (mut space, nic, _) = machine(0, 256);
    let mut nic = nic.unwrap();
    let bad = Err(Failure::User(Refused::Rights));
    assert_eq!(nic.send(&mut space, 0x10_0000, 1), bad);
    assert_eq!(nic.send(&mut space, u64::MAX - 8, 1), bad);
    let f = frame(&mut space, &[12, 64]);
    user::write(&mut space, USER + 0x1010, &REGS.0.to_le_bytes()).unwrap();
    assert_eq!(nic.send(&mut space, f, 1), bad);
    user::write(&mut space, USER + 0x1018, &u64::MAX.to_le_bytes()).unwrap();
    assert_eq!(nic.send(&mut space, f, 1), Ok(1), "too long: dropped");
    user::write(&mut space, USER + 8, &65u32.to_le_bytes()).unwrap();
    assert_eq!(nic.send(&mut space, f, 1), Err(Failure::Invalid));
    assert_eq!(nic.send(&mut space, f, u64::MAX), Err(Failure::Invalid));
    assert_eq!((nic.tx.flying(), nic.tx.free()), (0, SIZE_MAX));
}

#[test]
fn a_full_device_takes_fewer_and_says_when_it_has_room() {
    let (mut space, nic, _) = machine(0, 4);
    let mut nic = nic.unwrap();
    let f = frame(&mut space, &[12, 64]);
    for _ in 0..4 {
        assert_eq!(nic.send(&mut space, f, 1), Ok(1));
    }
    assert_eq!(nic.send(&mut space, f, 1), Ok(0));
    assert_eq!(nic.ready(&mut space), Ok(false));
    used(&mut space.mem, &nic.tx, 0, 0, 0);
    assert_eq!(nic.ready(&mut space), Ok(true));
    assert_eq!(nic.send(&mut space, f, 1), Ok(1));
}

#[test]
fn received_frames_are_merged_and_buffers_come_back() {
    let (mut space, nic, out) = machine(feature::MRG_RXBUF | feature::GUEST_CSUM | feature::GUEST_TSO4, 256);
    let mut nic = nic.unwrap();
    assert_eq!(out.flags & net::RX_GSO, net::RX_GSO);
    let f = frame(&mut space, &[12, 5000]);
    assert_eq!(nic.receive(&mut space, f, 1), Ok(0));
    space.mem.write(nic.rx_pool.at(0), &[1; 2048]);
    space.mem.write_u16(nic.rx_pool.at(0).add(10), 2);
    space.mem.write(nic.rx_pool.at(1), &[2; 100]);
    used(&mut space.mem, &nic.rx, 0, 0, 2048);
    used(&mut space.mem, &nic.rx, 1, 1, 100);
    assert_eq!(nic.ready(&mut space), Ok(true));
    assert_eq!(nic.receive(&mut space, f, 1), Ok(1));
    let mut got = [0; 4];
    user::read(&mut space, f + 12, &mut got).unwrap();
    assert_eq!(u32::from_le_bytes(got), 2148);
    user::read(&mut space, USER + 0x2000 + 2046, &mut got).unwrap();
    assert_eq!(got, [1, 1, 2, 2]);
    assert_eq!(nic.rx.flying(), RX_STEP[1]);
    // No room for it: dropped, its buffer posted again.
    let f = frame(&mut space, &[12, 50]);
    space.mem.write_u16(nic.rx_pool.at(2).add(10), 1);
    used(&mut space.mem, &nic.rx, 2, 2, 100);
    assert_eq!(nic.receive(&mut space, f, 1), Ok(0));
    assert_eq!(nic.rx.flying(), RX_STEP[1]);
}

#[test]
fn more_buffers_are_posted_only_after_the_device_ran_out() {
    let (mut space, nic, _) = machine(0, 256);
    let mut nic = nic.unwrap();
    let f = frame(&mut space, &[2048]);
    for i in 0..RX_STEP[0] {
        used(&mut space.mem, &nic.rx, i, i, 60);
    }
    assert_eq!(nic.receive(&mut space, f, 1), Ok(1));
    assert_eq!((nic.posted, nic.rx.flying()), (2 * RX_STEP[0], 2 * RX_STEP[0]));
    assert_eq!(nic.receive(&mut space, f, 1), Ok(1));
    assert_eq!(nic.posted, 2 * RX_STEP[0]);
}

#[test]
fn a_lying_device_is_found_out() {
    for (len, buffers) in [(5000, 1), (3, 1), (100, 0xffff), (100, 2)] {
        let (mut space, nic, _) = machine(feature::MRG_RXBUF, 256);
        let mut nic = nic.unwrap();
        let f = frame(&mut space, &[2048]);
        space.mem.write_u16(nic.rx_pool.at(0).add(10), buffers);
        used(&mut space.mem, &nic.rx, 0, 0, len);
        assert!(matches!(nic.receive(&mut space, f, 1), Err(Failure::Device(_))), "{len} {buffers}");
    }
}

#[test]
fn the_largest_frame_fits_into_the_first_buffers() {
    let tso = feature::MRG_RXBUF | feature::GUEST_CSUM | feature::GUEST_TSO4;
    let (_, nic, _) = machine(tso, 256);
    let nic = nic.unwrap();
    assert!(u64::from(nic.posted) * u64::from(RX_SIZE) >= FRAME_MAX as u64);
    // A device whose queue is too short for that is not asked for such frames.
    let (space, nic, _) = machine(tso, 32);
    assert_eq!(nic.unwrap().posted, RX_STEP[0]);
    let asked = u64::from(space.mem.read_u32(REGS.add(0x20)));
    assert_eq!(asked & (feature::GUEST_TSO4 | feature::MRG_RXBUF), feature::MRG_RXBUF);
}

/// What the device can cut into segments it must be able to take: 17 pages.
#[test]
fn a_short_send_queue_is_not_given_the_largest_frames() {
    let tso = feature::HOST_TSO4 | feature::HOST_TSO6;
    for (queue_max, large) in [(256, true), (32, true), (31, false), (17, false), (16, false), (4, false)] {
        let (space, nic, out) = machine(tso, queue_max);
        let room = u32::from(nic.unwrap().tx.size()) * 4096;
        assert_eq!(out.flags & (net::TX_TSO4 | net::TX_TSO6) != 0, large, "{queue_max}");
        assert_eq!(u64::from(space.mem.read_u32(REGS.add(0x20))) & tso != 0, large, "{queue_max}");
        assert!(!large || room >= FRAME_MAX as u32, "{queue_max}");
    }
}
