//! Everything but TCP: UDP, ICMP, ARP, neighbour discovery, DHCP, SLAAC, fragments, and what hostile frames do (nothing).

mod sim;

use donjon_net::*;
use sim::*;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

fn udp(s: &mut Stack, domain: Domain, local: &str) -> Handle {
    let h = s.udp_socket(domain).unwrap();
    s.bind(h, local.parse().unwrap(), BindOptions::default()).unwrap();
    h
}

fn recv(s: &mut Stack, h: Handle, size: usize) -> Result<(Vec<u8>, Datagram), Error> {
    let mut b = vec![0; size];
    let d = s.recv_from(h, &mut [&mut b], RecvMode::Take)?;
    b.truncate(d.copied);
    Ok((b, d))
}

#[test]
fn datagrams_of_every_size_arrive_in_both_families() {
    for offload in [false, true] {
        let caps = Offload { tx_csum: offload, ..Offload::default() };
        let mut sim = Sim::with(1, Config { offload: caps, ..config(1) }, Config { offload: caps, ..config(2) });
        let server = udp(&mut sim.stacks[1], Domain::V6, "[::]:53");
        let c4 = sim.stacks[0].udp_socket(Domain::V4).unwrap();
        let c6 = sim.stacks[0].udp_socket(Domain::V6).unwrap();
        for (c, to) in [(c4, "10.0.0.2:53"), (c6, "[fd00::2]:53")] {
            let to: SocketAddr = to.parse().unwrap();
            for size in [0, 1, 7, 1000, 1472, 1473, 3000, 30_001, 65_507] {
                let data = pattern(size as u64, size);
                assert_eq!(sim.stacks[0].send_to(c, &[&data[..size / 3], &data[size / 3..]], Some(to), None), Ok(size));
                sim.run(100 * MS);
                let (got, d) = recv(&mut sim.stacks[1], server, 70_000).unwrap();
                assert_eq!((got == data, d.len, d.to), (true, size, to));
                // And back.
                sim.stacks[1].send_to(server, &[&got], Some(d.from), None).unwrap();
                sim.run(100 * MS);
                let (got, d) = recv(&mut sim.stacks[0], c, 70_000).unwrap();
                assert_eq!((got == data, d.from), (true, to));
            }
            assert_eq!(sim.stacks[0].send_to(c, &[&[0; 65_508]], Some(to), None), Err(Error::MessageSize));
        }
        assert_eq!(sim.stacks[0].memory_used() + sim.stacks[1].memory_used(), 0);
    }
}

#[test]
fn loopback_datagrams_truncation_and_peek() {
    let mut sim = Sim::new(2);
    let a = udp(&mut sim.stacks[0], Domain::V4, "127.0.0.1:1000");
    let b = udp(&mut sim.stacks[0], Domain::V4, "0.0.0.0:1001");
    sim.stacks[0].send_to(a, &[b"hello"], Some("127.0.0.1:1001".parse().unwrap()), None).unwrap();
    sim.flush();
    assert_eq!(sim.stacks[0].next_datagram_len(b), Some(5));
    let mut small = [0; 2];
    let d = sim.stacks[0].recv_from(b, &mut [&mut small], RecvMode::Peek).unwrap();
    assert_eq!((d.copied, d.len), (2, 5));
    let d = sim.stacks[0].recv_from(b, &mut [&mut small], RecvMode::Take).unwrap();
    assert_eq!((d.copied, d.len, d.from), (2, 5, "127.0.0.1:1000".parse().unwrap()));
    assert_eq!(recv(&mut sim.stacks[0], b, 9).unwrap_err(), Error::WouldBlock);
}

#[test]
fn port_unreachable_reaches_connected_sockets() {
    let mut sim = Sim::new(3);
    for to in ["10.0.0.2:99", "[fd00::2]:99", "127.0.0.1:99"] {
        let to: SocketAddr = to.parse().unwrap();
        let s = &mut sim.stacks[0];
        let c = s.udp_socket(if to.is_ipv4() { Domain::V4 } else { Domain::V6 }).unwrap();
        s.connect(c, to).unwrap();
        s.send_to(c, &[b"anybody?"], None, None).unwrap();
        sim.run(100 * MS);
        assert!(sim.stacks[0].readiness(c).contains(Ready::ERROR), "{to}");
        assert_eq!(recv(&mut sim.stacks[0], c, 9).unwrap_err(), Error::ConnectionRefused);
        assert_eq!(recv(&mut sim.stacks[0], c, 9).unwrap_err(), Error::WouldBlock);
    }
}

/// How many of a crowd of datagrams to closed ports are answered is bounded, and nobody can tell how many others have used up.
#[test]
fn the_limit_of_port_unreachable_is_not_exact() {
    let mut sim = Sim::new(15);
    sim.stacks[0].connect_udp_warmup();
    sim.run(SECOND);
    let mut datagram = vec![0x12, 0x34, 0x30, 0x39, 0, 9, 0, 0, b'x'];
    let mut answers = Vec::new();
    for round in 0..10 {
        sim.run(2 * SECOND);
        let before = sim.frames[1];
        for port in 0..400u16 {
            datagram[2..4].copy_from_slice(&(20_000 + 400 * round + port).to_be_bytes());
            sim.stacks[1].input(sim.now, NetHdr::default(), &frame4(17, [10, 0, 0, 1], &datagram));
            sim.flush();
        }
        answers.push(sim.frames[1] - before);
    }
    assert!(answers.iter().all(|n| (70..200).contains(n)), "{answers:?}");
    assert!(answers.iter().collect::<std::collections::BTreeSet<_>>().len() > 3, "{answers:?}");
}

/// What may pass is no error of a datagram socket: only hard ones are, as on Linux.
#[test]
fn soft_errors_are_none_of_datagram_sockets() {
    let mut sim = Sim::new(14);
    // Nobody answers there.
    let c = sim.stacks[1].udp_socket(Domain::V4).unwrap();
    sim.stacks[1].connect(c, at(77, 53)).unwrap();
    sim.stacks[1].send_to(c, &[b"x"], None, None).unwrap();
    sim.run(10 * SECOND);
    assert_eq!(sim.stacks[1].take_error(c), None);
    let port = sim.stacks[1].local_addr(c).unwrap().port();
    let cases = [
        (3, 0, None),
        (3, 1, None),
        (11, 0, None),
        (3, 3, Some(Error::ConnectionRefused)),
        (3, 6, Some(Error::NetworkUnreachable)),
        (3, 13, Some(Error::HostUnreachable)),
    ];
    for (kind, code, error) in cases {
        let mut icmp = vec![kind, code, 0, 0, 0, 0, 0, 0];
        icmp.extend([0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 77]);
        icmp.extend(port.to_be_bytes());
        icmp.extend([0, 53, 0, 9, 0, 0]);
        let sum = ones(&icmp);
        icmp[2..4].copy_from_slice(&sum);
        sim.stacks[1].input(sim.now, NetHdr::default(), &frame4(1, [10, 0, 0, 1], &icmp));
        assert_eq!(sim.stacks[1].take_error(c), error, "{kind} {code}");
    }
}

#[test]
fn connected_sockets_hear_only_their_peer() {
    let mut sim = Sim::new(4);
    let c = udp(&mut sim.stacks[0], Domain::V4, "0.0.0.0:500");
    let all = sim.stacks[0].local_addr(c).unwrap();
    assert_eq!(all.port(), 500);
    sim.stacks[0].connect(c, at(2, 7)).unwrap();
    assert_eq!(sim.stacks[0].local_addr(c).unwrap(), at(1, 500));
    let friend = udp(&mut sim.stacks[1], Domain::V4, "0.0.0.0:7");
    let stranger = udp(&mut sim.stacks[1], Domain::V4, "0.0.0.0:8");
    sim.stacks[1].send_to(stranger, &[b"no"], Some(at(1, 500)), None).unwrap();
    sim.stacks[1].send_to(friend, &[b"yes"], Some(at(1, 500)), None).unwrap();
    sim.run(100 * MS);
    assert_eq!(recv(&mut sim.stacks[0], c, 9).unwrap().0, b"yes");
    assert!(recv(&mut sim.stacks[0], c, 9).is_err());
}

#[test]
fn receive_queues_are_bounded() {
    let mut sim = Sim::new(5);
    let server = udp(&mut sim.stacks[1], Domain::V4, "0.0.0.0:53");
    let c = sim.stacks[0].udp_socket(Domain::V4).unwrap();
    for _ in 0..2000 {
        match sim.stacks[0].send_to(c, &[&[0; 1000]], Some(at(2, 53)), None) {
            Ok(_) | Err(Error::WouldBlock) => sim.run(MS),
            Err(e) => panic!("{e:?}"),
        }
    }
    assert!(sim.stacks[1].memory_used() <= 220_000);
    let mut n = 0;
    while recv(&mut sim.stacks[1], server, 2000).is_ok() {
        n += 1;
    }
    assert!((150..220).contains(&n), "{n}");
    assert_eq!(sim.stacks[1].memory_used(), 0);
}

/// Also after a datagram that was taken: who polls then is told to wait.
#[test]
fn a_full_queue_of_datagrams_raises_writable_when_it_drains() {
    let mut sim = Sim::new(6);
    let c = sim.stacks[0].udp_socket(Domain::V4).unwrap();
    sim.stacks[0].set_udp_buffers(c, 9_000, 9_000).unwrap();
    for (size, event) in [(5_000, false), (7_000, true)] {
        sim.stacks[0].send_to(c, &[&vec![0; size]], Some(at(2, 53)), None).unwrap();
        assert_eq!(sim.stacks[0].readiness(c).contains(Ready::WRITABLE), !event);
        sim.run(SECOND);
        assert!(sim.stacks[0].readiness(c).contains(Ready::WRITABLE));
        assert_eq!(sim.stacks[0].next_event().is_some_and(|e| e.ready.contains(Ready::WRITABLE)), event);
    }
}

#[test]
fn any_mode_takes_and_sends_from_every_address() {
    let mut sim = Sim::with(6, config(1), Config { any_ip: true, ..config(2) });
    sim.stacks[0].set_router(Domain::V4, Some(ip(2)));
    let any = sim.stacks[1].bind_any().unwrap();
    let c = sim.stacks[0].udp_socket(Domain::V4).unwrap();
    for to in ["9.9.9.9:53", "255.255.255.255:67", "10.0.0.255:5353"] {
        let to: SocketAddr = to.parse().unwrap();
        sim.stacks[0].send_to(c, &[b"query"], Some(to), None).unwrap();
        sim.run(100 * MS);
        let (_, d) = recv(&mut sim.stacks[1], any, 100).unwrap();
        assert_eq!(d.to, to);
    }
    let from: SocketAddr = "9.9.9.9:53".parse().unwrap();
    let back = SocketAddr::new(ip(1), sim.stacks[0].local_addr(c).unwrap().port());
    sim.stacks[1].send_to(any, &[b"answer"], Some(back), Some(from)).unwrap();
    sim.run(100 * MS);
    let (got, d) = recv(&mut sim.stacks[0], c, 100).unwrap();
    assert_eq!((&got[..], d.from), (&b"answer"[..], from));
}

/// An IPv4 packet in an Ethernet frame for side 1.
fn frame4(protocol: u8, from: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let len = (20 + body.len()) as u16;
    let mut h = vec![0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0, 0, 64, protocol, 0, 0];
    h.extend(from);
    h.extend([10, 0, 0, 2]);
    let sum = ones(&h);
    h[10..12].copy_from_slice(&sum);
    f.extend(h);
    f.extend(body);
    f
}

fn ones(data: &[u8]) -> [u8; 2] {
    let mut sum: u32 = data.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[test]
fn answers_pings_but_not_a_flood_of_them() {
    let mut sim = Sim::new(7);
    let mut echo = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
    echo.extend(b"some payload");
    let sum = ones(&echo);
    echo[2..4].copy_from_slice(&sum);
    sim.stacks[0].connect_udp_warmup();
    let before = sim.frames[1];
    sim.stacks[1].input(sim.now, NetHdr::default(), &frame4(1, [10, 0, 0, 1], &echo));
    sim.run(10 * MS);
    assert!(sim.frames[1] > before);
    for _ in 0..10_000 {
        sim.stacks[1].input(sim.now, NetHdr::default(), &frame4(1, [10, 0, 0, 1], &echo));
        sim.flush();
    }
    assert!(sim.frames[1] - before <= 260, "{}", sim.frames[1] - before);
    // A wrong checksum is no ping.
    sim.run(10 * SECOND);
    let before = sim.frames[1];
    echo[9] ^= 1;
    sim.stacks[1].input(sim.now, NetHdr::default(), &frame4(1, [10, 0, 0, 1], &echo));
    sim.run(10 * MS);
    assert_eq!(sim.frames[1], before);
}

trait Warmup {
    fn connect_udp_warmup(&mut self);
}

impl Warmup for Stack {
    /// Makes the neighbour known.
    fn connect_udp_warmup(&mut self) {
        let c = self.udp_socket(Domain::V4).unwrap();
        let _ = self.send_to(c, &[b"x"], Some(at(2, 9)), None);
        self.close(c);
    }
}

/// The least a DHCP server does, on an any-mode stack.
fn dhcp_server(s: &mut Stack, any: Handle, lease: u32, replies: &mut Vec<u8>) {
    while let Ok((m, d)) = recv(s, any, 1000) {
        assert_eq!(d.to.port(), 67);
        let kind = m[242];
        replies.push(kind);
        let mut r = m[..240].to_vec();
        r[0] = 2;
        r[16..20].copy_from_slice(&[10, 0, 0, 15]);
        r.extend([53, 1, if kind == 1 { 2 } else { 5 }, 54, 4, 10, 0, 0, 2, 1, 4, 255, 255, 255, 0, 3, 4, 10, 0, 0, 2]);
        r.extend([26, 2, 0x05, 0x78]);
        r.extend([6, 8, 10, 0, 0, 3, 10, 0, 0, 4, 51, 4]);
        r.extend(lease.to_be_bytes());
        r.push(255);
        let to = if d.from.ip().is_unspecified() { "255.255.255.255:68".parse().unwrap() } else { d.from };
        s.send_to(any, &[&r], Some(to), Some("10.0.0.2:67".parse().unwrap())).unwrap();
    }
}

#[test]
fn dhcp_gets_keeps_and_loses_a_lease() {
    let mut sim = Sim::with(8, Config { dhcp: true, ..config(1) }, Config { any_ip: true, ..config(2) });
    sim.stacks[0].remove_address(ip(1));
    let any = sim.stacks[1].bind_any().unwrap();
    let mut seen = Vec::new();
    assert!(sim.run_until(10 * SECOND, |sim| {
        dhcp_server(&mut sim.stacks[1], any, 600, &mut seen);
        sim.stacks[0].dhcp_lease().is_some()
    }));
    assert!(sim.now < 100 * MS, "{} ms", sim.now / MS);
    assert_eq!(seen, [1, 3]);
    let lease = sim.stacks[0].dhcp_lease().unwrap();
    assert_eq!(lease.address, Ipv4Addr::new(10, 0, 0, 15));
    assert_eq!((lease.prefix, lease.router), (24, Some(Ipv4Addr::new(10, 0, 0, 2))));
    assert_eq!(lease.dns, [Ipv4Addr::new(10, 0, 0, 3), Ipv4Addr::new(10, 0, 0, 4)]);
    assert_eq!(sim.stacks[0].router(Domain::V4), Some(ip(2)));
    assert_eq!(sim.stacks[0].source_for("1.2.3.4".parse().unwrap()), Ok(ip(15)));
    // The server said 1400 (option 26).
    assert_eq!(largest_frame_of_datagram(&mut sim, "10.0.0.2:53"), 14 + 20 + 1376);
    assert_eq!(recv(&mut sim.stacks[1], any, 4000).unwrap().0, [7; 3000]);
    // Renewed at half time.
    sim.run_until(2000 * SECOND, |sim| {
        dhcp_server(&mut sim.stacks[1], any, 600, &mut seen);
        false
    });
    assert!(sim.stacks[0].dhcp_lease().is_some());
    assert!((7..=9).contains(&seen.len()) && seen[2..].iter().all(|&k| k == 3), "{seen:?}");
    // The server is gone: so is the address, in the end.
    sim.filter = Some(Box::new(|_, _| true));
    sim.run(700 * SECOND);
    assert_eq!(sim.stacks[0].dhcp_lease(), None);
    assert_eq!(sim.stacks[0].router(Domain::V4), None);
    // And it comes back with it.
    sim.filter = None;
    assert!(sim.run_until(100 * SECOND, |sim| {
        dhcp_server(&mut sim.stacks[1], any, 600, &mut seen);
        sim.stacks[0].dhcp_lease().is_some()
    }));
}

/// A lease of two minutes outlives a lost request: it is asked for again in time.
#[test]
fn a_short_lease_survives_a_lost_request() {
    let mut sim = Sim::with(8, Config { dhcp: true, ..config(1) }, Config { any_ip: true, ..config(2) });
    sim.stacks[0].remove_address(ip(1));
    let any = sim.stacks[1].bind_any().unwrap();
    let mut seen = Vec::new();
    for round in 0..5 {
        // The first renewal of each lease is lost.
        let lost = seen.len() + if round == 0 { 2 } else { 0 };
        assert!(sim.run_until(120 * SECOND, |sim| {
            if seen.len() == lost && lost > 0 && recv(&mut sim.stacks[1], any, 1000).is_ok() {
                seen.push(0);
            }
            dhcp_server(&mut sim.stacks[1], any, 120, &mut seen);
            assert!(seen.len() <= 2 || sim.stacks[0].dhcp_lease().is_some());
            seen.len() > lost + 1
        }));
    }
    assert_eq!(seen[..6], [1, 3, 0, 3, 0, 3]);
}

#[test]
fn router_advertisements_give_address_router_and_resolver() {
    let mut sim = Sim::with(9, Config { slaac: true, ..config(1) }, config(2));
    let mut ra = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    ra.extend([1, 1, 2, 0, 0, 0, 0, 9]);
    ra.extend([3, 4, 64, 0xc0, 0, 0, 0, 100, 0, 0, 0, 50, 0, 0, 0, 0]);
    ra.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    ra.extend([25, 3, 0, 0, 0, 0, 0, 100]);
    ra.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x53]);
    let mut f = vec![0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x86, 0xdd];
    f.extend([0x60, 0, 0, 0, 0, ra.len() as u8, 58, 255]);
    f.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    f.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    f.extend(&ra);
    let trusted = NetHdr { flags: net_hdr::DATA_VALID, ..NetHdr::default() };
    sim.run(SECOND);
    // A hop limit below 255 means that it came through a router: not believed.
    let mut far = f.clone();
    far[21] = 254;
    sim.stacks[0].input(sim.now, trusted, &far);
    assert_eq!(sim.stacks[0].router(Domain::V6), None);
    sim.stacks[0].input(sim.now, trusted, &f);
    let router: IpAddr = "fe80::9".parse().unwrap();
    let own: IpAddr = "2001:db8:0:1:0:ff:fe00:1".parse().unwrap();
    assert_eq!(sim.stacks[0].router(Domain::V6), Some(router));
    assert!(sim.stacks[0].addresses().iter().any(|a| a.address == own && a.prefix == 64));
    assert_eq!(sim.stacks[0].advertised_dns(), Some("2001:db8::53".parse().unwrap()));
    sim.run(101 * SECOND);
    assert!(!sim.stacks[0].addresses().iter().any(|a| a.address == own));
    sim.run(1800 * SECOND);
    assert_eq!(sim.stacks[0].router(Domain::V6), None);
}

#[test]
fn a_narrower_path_is_found_out() {
    let mut sim = Sim::new(10);
    let (c, s) = sim.pair(80);
    // A router that lets 1000 bytes through, and says so.
    sim.filter = Some(Box::new(|side, f| side == 0 && f.len() > 1014));
    let (mut sent, mut got) = (0, 0);
    let mut told = 0;
    assert!(sim.run_until(60 * SECOND, |sim| {
        sent = feed(&mut sim.stacks[0], c, sent, 200_000);
        got = drain(&mut sim.stacks[1], s, got).0;
        if sent > 0 && told < 3 && got == 0 {
            told += 1;
            let info = sim.stacks[0].tcp_info(c).unwrap();
            assert_eq!(info.send_mss, 1448);
            let (l, p) = (sim.stacks[0].local_addr(c).unwrap(), sim.stacks[0].peer_addr(c).unwrap());
            let mut quote = vec![0x45, 0, 5, 0xdc, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
            quote.extend(l.port().to_be_bytes());
            quote.extend(p.port().to_be_bytes());
            quote.extend(sim.sequence(0).to_be_bytes());
            let mut icmp = vec![3, 4, 0, 0, 0, 0, 0x03, 0xe8];
            icmp.extend(quote);
            let sum = ones(&icmp);
            icmp[2..4].copy_from_slice(&sum);
            let mut f = frame4(1, [10, 0, 0, 2], &icmp);
            f[5] = 1;
            f[11] = 2;
            f[30..34].copy_from_slice(&[10, 0, 0, 1]);
            f[24..26].fill(0);
            let sum = ones(&f[14..34]);
            f[24..26].copy_from_slice(&sum);
            sim.stacks[0].input(sim.now, NetHdr::default(), &f);
        }
        got == 200_000
    }));
    assert_eq!(sim.stacks[0].tcp_info(c).unwrap().send_mss, 948);
}

/// An IPv6 packet in an Ethernet frame for side 0, from a link-local address; checksums do not count.
fn frame6(hop_limit: u8, body: &[u8]) -> Vec<u8> {
    let mut f = vec![0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x86, 0xdd];
    f.extend([0x60, 0, 0, 0, 0, body.len() as u8, 58, hop_limit]);
    f.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    f.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    f.extend(body);
    f
}

const TRUSTED: NetHdr = NetHdr { flags: net_hdr::DATA_VALID, ..NO_HEADER };
const NO_HEADER: NetHdr =
    NetHdr { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0, num_buffers: 0 };

/// The largest frame that side 0 sends for a datagram of 3000 bytes.
fn largest_frame_of_datagram(sim: &mut Sim, to: &str) -> usize {
    let largest = std::rc::Rc::new(std::cell::Cell::new(0));
    let seen = largest.clone();
    sim.filter = Some(Box::new(move |side, f| {
        seen.set(if side == 0 { f.len().max(seen.get()) } else { seen.get() });
        false
    }));
    let c = sim.stacks[0].udp_socket(Domain::V6).unwrap();
    sim.stacks[0].send_to(c, &[&[7; 3000]], Some(to.parse().unwrap()), None).unwrap();
    sim.run(SECOND);
    sim.stacks[0].close(c);
    sim.filter = None;
    largest.get()
}

/// Each prefix gives an address, and only one that is on-link gives neighbours; the source is the one that is closest to the destination; the link's
/// MTU is heeded.
#[test]
fn router_advertisements_with_several_prefixes() {
    let mut sim = Sim::with(13, Config { slaac: true, ..config(1) }, config(2));
    sim.stacks[0].remove_address("fd00::1".parse().unwrap());
    let prefix = |flags: u8, start: [u8; 8]| {
        let mut o = vec![3, 4, 64, flags, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0];
        o.extend(start);
        o.extend([0; 8]);
        o
    };
    let mut ra = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    ra.extend([1, 1, 2, 0, 0, 0, 0, 9]);
    ra.extend(prefix(0xc0, [0xfd, 0, 0, 0, 0, 0, 0, 7]));
    ra.extend(prefix(0xc0, [0x20, 1, 0xd, 0xb8, 0, 0, 0, 1]));
    // Not on-link.
    ra.extend(prefix(0x40, [0x26, 0, 0, 0, 0, 0, 0, 1]));
    ra.extend([5, 1, 0, 0, 0, 0, 0x05, 0x14]);
    sim.run(SECOND);
    sim.stacks[0].input(sim.now, TRUSTED, &frame6(255, &ra));
    let own = |s: &str| -> IpAddr { format!("{s}:0:ff:fe00:1").parse().unwrap() };
    let have = |sim: &Sim| -> Vec<(IpAddr, u8)> {
        let all = sim.stacks[0].addresses().iter().map(|a| (a.address, a.prefix));
        all.filter(|a| a.0.is_ipv6() && !a.0.to_string().starts_with("fe80")).collect()
    };
    let (ula, near, far) = (own("fd00:0:0:7"), own("2001:db8:0:1"), own("2600:0:0:1"));
    assert_eq!(have(&sim), [(ula, 64), (near, 64), (far, 128)]);
    let pairs = [
        ("fd00:0:0:9::1", ula),
        ("2001:db8:0:1::5", near),
        ("2001:db8:9::5", near),
        ("2600:0:0:1::5", far),
        ("2607:f8b0::1", far),
    ];
    for (to, from) in pairs {
        assert_eq!(sim.stacks[0].source_for(to.parse().unwrap()), Ok(from), "{to}");
    }
    // The router says 1300.
    assert_eq!(largest_frame_of_datagram(&mut sim, "[2607:f8b0::1]:53"), 14 + 40 + 8 + 1248);
    // To an address with a prefix that is not on-link goes a datagram by way of the router; nobody is asked.
    let to_router = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let seen = to_router.clone();
    sim.filter = Some(Box::new(move |_, f| {
        seen.borrow_mut().push(f[..6].to_vec());
        false
    }));
    let c = sim.stacks[0].udp_socket(Domain::V6).unwrap();
    sim.stacks[0].send_to(c, &[b"x"], Some("[2600:0:0:1::5]:53".parse().unwrap()), None).unwrap();
    sim.flush();
    assert_eq!(*to_router.borrow(), [[2, 0, 0, 0, 0, 9]]);
    // Now it is on-link; a router that does not say so does not take that back.
    for flags in [0xc0, 0x40] {
        let mut ra = ra[..16].to_vec();
        ra.extend(prefix(flags, [0x26, 0, 0, 0, 0, 0, 0, 1]));
        sim.stacks[0].input(sim.now, TRUSTED, &frame6(255, &ra));
        assert_eq!(have(&sim), [(ula, 64), (near, 64), (far, 64)]);
    }
}

/// Datagrams over IPv6 are cut to what a router lets through, if it speaks of one that a socket of ours can have sent.
#[test]
fn a_narrower_path_is_found_out_by_datagrams() {
    let mut sim = Sim::new(12);
    let server = udp(&mut sim.stacks[1], Domain::V6, "[::]:53");
    let c = udp(&mut sim.stacks[0], Domain::V6, "[::]:5000");
    let to: SocketAddr = "[fd00::2]:53".parse().unwrap();
    sim.filter = Some(Box::new(|side, f| side == 0 && f.len() > 14 + 1300));
    let data = pattern(0, 4000);
    let arrives = |sim: &mut Sim, size: usize| {
        sim.stacks[0].send_to(c, &[&data[..size]], Some(to), None).unwrap();
        sim.run(SECOND);
        match recv(&mut sim.stacks[1], server, 5000) {
            Ok((got, _)) => {
                assert!(got == data[..size]);
                true
            }
            Err(_) => false,
        }
    };
    assert!(arrives(&mut sim, 100) && !arrives(&mut sim, 1400));
    let told = |port: u16, mtu: u32| {
        let mut icmp = vec![2, 0, 0, 0];
        icmp.extend(mtu.to_be_bytes());
        icmp.extend([0x60, 0, 0, 0, 5, 0xdc, 17, 64]);
        icmp.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        icmp.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        icmp.extend(port.to_be_bytes());
        icmp.extend([0, 53, 5, 0xb4, 0, 0]);
        let mut f = frame6(64, &icmp);
        // To side 0's own address.
        f[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        f[38..54].copy_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        f
    };
    // Nobody here sends from that port.
    sim.stacks[0].input(sim.now, TRUSTED, &told(5001, 1300));
    assert!(!arrives(&mut sim, 1400));
    sim.stacks[0].input(sim.now, TRUSTED, &told(5000, 1300));
    assert!(arrives(&mut sim, 1400) && arrives(&mut sim, 4000));
    // Larger is not believed, and less than 1280 not either.
    sim.stacks[0].input(sim.now, TRUSTED, &told(5000, 1400));
    assert!(arrives(&mut sim, 1400));
    sim.stacks[0].input(sim.now, TRUSTED, &told(5000, 100));
    let before = sim.frames[0];
    assert!(arrives(&mut sim, 2000));
    assert_eq!(sim.frames[0] - before, 2);
    // After ten minutes the whole is tried again.
    sim.run(601 * SECOND);
    assert!(!arrives(&mut sim, 1400));
}

#[test]
fn a_hundred_thousand_bad_frames_do_nothing() {
    let mut sim = Sim::with(11, Config { any_ip: true, slaac: true, dhcp: true, ..config(1) }, config(2));
    // Real frames to start from.
    let corpus = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let log = corpus.clone();
    sim.filter = Some(Box::new(move |side, f| {
        if log.borrow().len() < 400 {
            log.borrow_mut().push((side, f.to_vec()));
        }
        false
    }));
    let (c, s) = sim.pair(80);
    let u = udp(&mut sim.stacks[1], Domain::V6, "[::]:53");
    let any = sim.stacks[0].bind_any().unwrap();
    let l = sim.stacks[0].listen_any(8).unwrap();
    let client = sim.stacks[0].udp_socket(Domain::V6).unwrap();
    for size in [10, 3000, 1472] {
        for to in ["10.0.0.2:53", "[fd00::2]:53", "10.0.0.2:54"] {
            sim.stacks[0].send_to(client, &[&vec![7; size]], Some(to.parse().unwrap()), None).unwrap();
            sim.run(MS);
        }
    }
    for _ in 0..20 {
        sim.stacks[0].send(c, &[b"abcdefgh"]).unwrap();
        sim.stacks[1].send(s, &[&[1; 3000]]).unwrap();
        sim.run(5 * MS);
    }
    sim.filter = None;
    let corpus = corpus.borrow().clone();
    assert!(corpus.len() > 60);
    let mut rng = Rng(4711);
    for i in 0..150_000u64 {
        let (side, frame) = &corpus[rng.below(corpus.len() as u64) as usize];
        let mut f = frame.clone();
        match rng.below(8) {
            0 => f.truncate(rng.below(f.len() as u64 + 1) as usize),
            1 => f = (0..rng.below(120)).map(|_| rng.next() as u8).collect(),
            2 => f.extend((0..rng.below(60)).map(|_| rng.next() as u8)),
            _ => {}
        }
        for _ in 0..rng.below(6) {
            if !f.is_empty() {
                let at = rng.below((f.len() as u64).min(if i % 2 == 0 { 90 } else { 2000 })) as usize;
                f[at] = match rng.below(4) {
                    0 => 0,
                    1 => 0xff,
                    2 => f[at] ^ (1 << rng.below(8)),
                    _ => rng.next() as u8,
                };
            }
        }
        let flags = if rng.chance(700) { net_hdr::DATA_VALID } else { 0 };
        let hdr = NetHdr { flags, gso_type: rng.next() as u8, gso_size: rng.next() as u16, ..NetHdr::default() };
        let to = if rng.chance(800) { 1 - side } else { *side };
        sim.stacks[to].input(sim.now, hdr, &f);
        if i % 16 == 0 {
            sim.now += rng.below(20 * MS);
            sim.flush();
            for stack in &mut sim.stacks {
                while stack.next_event().is_some() {}
            }
            let mut b = [0; 4000];
            let _ = sim.stacks[0].recv(c, &mut [&mut b], RecvMode::Take);
            let _ = sim.stacks[1].recv(s, &mut [&mut b], RecvMode::Take);
            let _ = sim.stacks[0].recv_from(any, &mut [&mut b], RecvMode::Take);
            let _ = sim.stacks[1].recv_from(u, &mut [&mut b], RecvMode::Take);
            if let Ok((p, ..)) = sim.stacks[0].next_pending(l) {
                match rng.below(3) {
                    0 => sim.stacks[0].refuse(p),
                    1 => {
                        if let Ok(h) = sim.stacks[0].complete(p) {
                            sim.stacks[0].abort(h);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    for stack in &sim.stacks {
        assert!(stack.memory_used() < 4 << 20);
    }
}

/// `disconnect` takes away what `connect` picked, not what `bind` said: a socket of loopback is not opened to the network.
#[test]
fn disconnecting_keeps_a_bound_address() {
    let mut sim = Sim::new(16);
    for (bound, after) in [("127.0.0.1:9", "127.0.0.1:9"), ("0.0.0.0:10", "0.0.0.0:10")] {
        let u = udp(&mut sim.stacks[1], Domain::V4, bound);
        sim.stacks[1].connect(u, "127.0.0.1:20".parse().unwrap()).unwrap();
        assert_eq!(sim.stacks[1].local_addr(u).unwrap().ip(), IpAddr::from([127, 0, 0, 1]));
        sim.stacks[1].disconnect(u).unwrap();
        assert_eq!(sim.stacks[1].local_addr(u), Ok(after.parse().unwrap()));
    }
}

/// A source that stands for all is none: the answer would go to everybody.
#[test]
fn a_broadcast_is_not_answered_as_a_source() {
    let mut sim = Sim::new(17);
    sim.listen(1, 80, 8);
    sim.run(SECOND);
    let server = udp(&mut sim.stacks[1], Domain::V4, "0.0.0.0:53");
    let datagram = [0x12, 0x34, 0, 53, 0, 9, 0, 0, b'x'];
    for (last, answered) in [(255, false), (254, true)] {
        let before = sim.frames[1];
        sim.stacks[1].input(sim.now, TRUSTED, &raw_syn([10, 0, 0, last], 5555, 9));
        sim.stacks[1].input(sim.now, NO_HEADER, &frame4(17, [10, 0, 0, last], &datagram));
        sim.flush();
        assert_eq!(sim.frames[1] > before, answered);
        assert_eq!(recv(&mut sim.stacks[1], server, 9).is_ok(), answered);
    }
}

/// From the wire our own address is a forged one: a service that answers would answer itself for ever. Inside it is as good as any.
#[test]
fn our_own_address_does_not_come_over_the_wire() {
    let mut sim = Sim::new(25);
    sim.listen(0, 80, 8);
    sim.listen(1, 80, 8);
    let v4 = udp(&mut sim.stacks[1], Domain::V4, "0.0.0.0:53");
    let v6 = udp(&mut sim.stacks[0], Domain::V6, "[::]:53");
    sim.run(SECOND);
    let datagram = [0, 53, 0, 53, 0, 9, 0, 0, b'x'];
    for (last, taken) in [(2, false), (3, true)] {
        let before = sim.stacks[1].counts().1;
        sim.stacks[1].input(sim.now, TRUSTED, &raw_syn([10, 0, 0, last], 5555, 9));
        assert_eq!(sim.stacks[1].counts().1 > before, taken);
        sim.stacks[1].input(sim.now, NO_HEADER, &frame4(17, [10, 0, 0, last], &datagram));
        assert_eq!(recv(&mut sim.stacks[1], v4, 9).is_ok(), taken);
    }
    for (last, taken) in [(1, false), (3, true)] {
        let mut f = frame6(64, &datagram);
        f[20] = 17;
        let ip = |n| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n];
        f[22..38].copy_from_slice(&ip(last));
        f[38..54].copy_from_slice(&ip(1));
        sim.stacks[0].input(sim.now, TRUSTED, &f);
        assert_eq!(recv(&mut sim.stacks[0], v6, 9).is_ok(), taken);
    }
    let c = sim.stacks[0].udp_socket(Domain::V6).unwrap();
    for to in ["10.0.0.1:53", "[fd00::1]:53", "127.0.0.1:53", "[::1]:53"] {
        sim.stacks[0].send_to(c, &[b"x"], Some(to.parse().unwrap()), None).unwrap();
        sim.run(MS);
        assert_eq!(recv(&mut sim.stacks[0], v6, 9).unwrap().1.from.ip(), to.parse::<SocketAddr>().unwrap().ip());
    }
}

/// Pings do not use up what there is of port unreachable, the rest of which could be counted then.
#[test]
fn pings_leave_the_limit_of_port_unreachable() {
    let mut sim = Sim::new(18);
    sim.stacks[0].connect_udp_warmup();
    sim.run(SECOND);
    let mut echo = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
    let sum = ones(&echo);
    echo[2..4].copy_from_slice(&sum);
    for _ in 0..300 {
        sim.stacks[1].input(sim.now, NO_HEADER, &frame4(1, [10, 0, 0, 1], &echo));
    }
    sim.flush();
    let before = sim.frames[1];
    sim.stacks[1].input(sim.now, NO_HEADER, &frame4(17, [10, 0, 0, 1], &[0x12, 0x34, 0, 99, 0, 9, 0, 0, b'x']));
    sim.flush();
    assert_eq!(sim.frames[1] - before, 1);
}

/// The identification of IPv4 packets tells nobody how many there were to others.
#[test]
fn identifications_are_no_counter() {
    let mut sim = Sim::new(19);
    let (_c, _s) = sim.pair(80);
    let seen = std::rc::Rc::new(std::cell::RefCell::new([vec![], vec![]]));
    let log = seen.clone();
    sim.filter = Some(Box::new(move |side, f| {
        if side == 1 && f[12..14] == [8, 0] {
            let tcp = usize::from(f[23] == 6);
            log.borrow_mut()[tcp].push(u16::from_be_bytes([f[18], f[19]]));
        }
        false
    }));
    let server = udp(&mut sim.stacks[1], Domain::V4, "0.0.0.0:53");
    for port in 0..8u8 {
        // RST, port unreachable, a datagram.
        let mut f = raw_syn([10, 0, 0, 1], 1000 + u16::from(port), 77);
        f[47] = 16;
        sim.stacks[1].input(sim.now, TRUSTED, &f);
        sim.stacks[1].input(sim.now, NO_HEADER, &frame4(17, [10, 0, 0, 1], &[1, port, 0, 99, 0, 9, 0, 0, b'x']));
        sim.stacks[1].send_to(server, &[b"x"], Some(at(1, 9)), None).unwrap();
        sim.flush();
    }
    let seen = seen.borrow();
    assert_eq!(seen[1], [0; 8]);
    let near = seen[0].windows(2).filter(|w| w[1].wrapping_sub(w[0]) < 100).count();
    assert!(seen[0].len() >= 16 && near <= 1, "{:?}", seen[0]);
}

/// A ping that comes in fragments is answered in fragments.
#[test]
fn a_large_ping_is_answered_within_the_mtu() {
    let mut sim = Sim::new(20);
    sim.stacks[0].connect_udp_warmup();
    sim.run(SECOND);
    let mut echo = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
    echo.extend(pattern(0, 4000));
    let sum = ones(&echo);
    echo[2..4].copy_from_slice(&sum);
    let answer = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let seen = answer.clone();
    sim.filter = Some(Box::new(move |side, f| {
        if side == 1 && f[23] == 1 {
            assert!(f.len() <= 1514, "{}", f.len());
            seen.borrow_mut().extend_from_slice(&f[34..]);
        }
        false
    }));
    for (i, piece) in echo.chunks(1480).enumerate() {
        let mut f = frame4(1, [10, 0, 0, 1], piece);
        let field = (i * 185) as u16 | if i < 2 { 0x2000 } else { 0 };
        f[20..22].copy_from_slice(&field.to_be_bytes());
        sum_ipv4(&mut f);
        sim.stacks[1].input(sim.now, NO_HEADER, &f);
    }
    sim.flush();
    let answer = answer.borrow();
    assert_eq!((answer[0], answer[4..] == echo[4..], ones(&answer)), (0, true, [0, 0]));
}
