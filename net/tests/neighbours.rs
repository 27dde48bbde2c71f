//! The Ethernet addresses of neighbours: how they are asked for, and what becomes of frames meanwhile; routers that take back what they said.

mod sim;

use donjon_net::*;
use sim::*;
use std::cell::RefCell;
use std::rc::Rc;

/// Notes when side 0 asks for an Ethernet address (s), and whether it asks all; answers are lost if `silent`.
fn questions(sim: &mut Sim, silent: bool) -> Rc<RefCell<Vec<bool>>> {
    let asked = Rc::new(RefCell::new(Vec::new()));
    let log = asked.clone();
    sim.filter = Some(Box::new(move |side, f| {
        let arp = f[12..14] == [8, 6];
        if arp && side == 0 && f[21] == 1 {
            log.borrow_mut().push(f[0] == 0xff);
        }
        arp && silent
    }));
    asked
}

fn send(sim: &mut Sim, c: Handle, size: usize) {
    sim.stacks[0].send_to(c, &[&vec![7; size]], Some(at(2, 9)), None).unwrap();
}

/// How many bytes have come to side 1's socket.
fn arrived(sim: &mut Sim, u: Handle) -> Vec<usize> {
    let mut b = vec![0; 70_000];
    std::iter::from_fn(|| sim.stacks[1].recv_from(u, &mut [&mut b], RecvMode::Take).ok()).map(|d| d.len).collect()
}

fn sockets(sim: &mut Sim) -> (Handle, Handle) {
    let u = sim.stacks[1].udp_socket(Domain::V4).unwrap();
    sim.stacks[1].bind(u, at(2, 9), BindOptions::default()).unwrap();
    (sim.stacks[0].udp_socket(Domain::V4).unwrap(), u)
}

/// An address is used, however old, while its owner is asked whether it still has it.
#[test]
fn an_old_address_is_used_while_it_is_asked_for() {
    for age in [31, 121, 10_000] {
        let mut sim = Sim::new(1);
        let (c, u) = sockets(&mut sim);
        send(&mut sim, c, 1);
        sim.run(age * SECOND);
        assert_eq!(arrived(&mut sim, u), [1]);
        let asked = questions(&mut sim, false);
        for _ in 0..100 {
            send(&mut sim, c, 2);
        }
        sim.flush();
        // One way, and no round trip before it.
        sim.run(sim.delay);
        assert_eq!(arrived(&mut sim, u), [2; 100]);
        sim.run(10 * SECOND);
        assert_eq!(*asked.borrow(), [false]);
    }
}

/// Without an answer everybody is asked, and in the end the address is forgotten.
#[test]
fn an_address_that_nobody_confirms_is_forgotten() {
    let mut sim = Sim::new(2);
    let (c, u) = sockets(&mut sim);
    send(&mut sim, c, 1);
    sim.run(200 * SECOND);
    assert_eq!(arrived(&mut sim, u), [1]);
    let asked = questions(&mut sim, true);
    for _ in 0..6 {
        send(&mut sim, c, 2);
        sim.run(SECOND);
        assert_eq!(arrived(&mut sim, u), [2]);
    }
    assert_eq!(*asked.borrow(), [false, false, false, true, true, true]);
    // Nobody knows it any more, and all are asked.
    send(&mut sim, c, 3);
    sim.run(10 * MS);
    assert!(arrived(&mut sim, u).is_empty());
    assert_eq!(asked.borrow().last(), Some(&true));
    sim.run(10 * SECOND);
    assert_eq!((asked.borrow().len(), sim.stacks[0].deadline()), (9, None));
}

/// What is sent first waits for the answer: a burst of SYNs, a datagram of any size. What is beyond that is lost, not kept.
#[test]
fn frames_wait_for_the_first_answer() {
    let mut sim = Sim::new(3);
    let l = sim.listen(1, 80, 128);
    let (c, u) = sockets(&mut sim);
    send(&mut sim, c, 65_507);
    let connections: Vec<_> = (0..64).map(|_| sim.connect(0, at(2, 80))).collect();
    sim.run(100 * MS);
    assert_eq!(arrived(&mut sim, u), [65_507]);
    assert!(connections.iter().all(|c| sim.stacks[0].readiness(*c).contains(Ready::WRITABLE)));
    assert!(sim.stacks[1].accept(l).is_ok());
    // SYN-ACKs, to somebody whose address side 1 does not know yet.
    let mut sim = Sim::new(4);
    let _l = sim.listen(1, 80, 128);
    let trusted = NetHdr { flags: net_hdr::DATA_VALID, ..NetHdr::default() };
    for port in 0..64 {
        sim.stacks[1].input(sim.now, trusted, &raw_syn([10, 0, 0, 9], 1000 + port, 7));
    }
    sim.flush();
    let before = sim.frames[1];
    sim.stacks[1].input(sim.now, NetHdr::default(), &arp_reply([2, 0, 0, 0, 0, 9], [10, 0, 0, 9]));
    sim.flush();
    assert_eq!(sim.frames[1] - before, 64);
    // Much for somebody who is slow to answer: a part is kept.
    let mut sim = Sim::new(5);
    for _ in 0..10 {
        let c = sim.stacks[1].udp_socket(Domain::V4).unwrap();
        sim.stacks[1].send_to(c, &[&[7; 20_000]], Some(at(9, 9)), None).unwrap();
    }
    sim.flush();
    let before = sim.bytes[1];
    sim.stacks[1].input(sim.now, NetHdr::default(), &arp_reply([2, 0, 0, 0, 0, 9], [10, 0, 0, 9]));
    sim.flush();
    let sent = sim.bytes[1] - before;
    assert!((60_000..80_000).contains(&sent), "{sent}");
}

/// Packets from addresses on the link at which there is nobody: who is in use stays known, not everybody is asked for, and there is room again.
#[test]
fn strangers_do_not_take_the_place_of_neighbours() {
    let limits = Limits { neighbours: 8, ..limits() };
    let mut sim = Sim::with(6, config(1), Config { limits, ..config(2) });
    let _l = sim.listen(1, 81, 8);
    let (c, s) = sim.pair(80);
    let options = sim.stacks[0].tcp_options(c).unwrap();
    sim.stacks[0].set_tcp_options(c, TcpOptions { nodelay: true, ..options }).unwrap();
    let asked = Rc::new(RefCell::new(Vec::new()));
    let log = asked.clone();
    sim.filter = Some(Box::new(move |side, f| {
        if side == 1 && f[12..14] == [8, 6] && f[21] == 1 {
            log.borrow_mut().push(f[41]);
        }
        false
    }));
    let before = sim.stacks[1].memory_used();
    for round in 0..40u64 {
        for last in 10..200 {
            let mut syn = raw_syn([10, 0, 0, last], 1000, 7);
            syn[37] = 81;
            sim.stacks[1].input(sim.now, TRUSTED, &syn);
        }
        sim.stacks[0].send(c, &[b"ping"]).unwrap();
        sim.run(10 * MS);
        assert_eq!(drain_all(&mut sim.stacks[1], s), 4, "round {round}");
    }
    assert!(asked.borrow().len() < 10 && !asked.borrow().contains(&1), "{:?}", asked.borrow());
    // A connection's question is asked in any case.
    let c = sim.connect(1, at(250, 9));
    sim.flush();
    assert!(asked.borrow().contains(&250));
    let frames = sim.frames[1];
    sim.stacks[1].input(sim.now, NetHdr::default(), &arp_reply([2, 0, 0, 0, 0, 9], [10, 0, 0, 250]));
    sim.flush();
    assert_eq!(sim.frames[1] - frames, 1);
    sim.stacks[1].abort(c);
    sim.run(100 * SECOND);
    assert_eq!(sim.stacks[1].memory_used(), before);
}

/// What waits for answers counts as memory, is bounded in total, leaves something to each, and is given back.
#[test]
fn what_waits_for_neighbours_is_bounded() {
    let mut sim = Sim::new(7);
    let sockets: Vec<_> = (0..10).map(|_| sim.stacks[1].udp_socket(Domain::V4).unwrap()).collect();
    let mut before = sim.stacks[1].memory_used();
    for (i, u) in sockets.iter().enumerate() {
        for _ in 0..100 {
            let _ = sim.stacks[1].send_to(*u, &[&[7; 1000]], Some(at(100 + i as u8, 9)), None);
        }
        let used = sim.stacks[1].memory_used();
        assert!(used > before && used <= 512 << 10, "{i}: {used}");
        before = used;
    }
    sim.run(10 * SECOND);
    assert_eq!(sim.stacks[1].memory_used(), 0);
    for u in sockets {
        assert!(sim.stacks[1].readiness(u).contains(Ready::WRITABLE));
    }
}

const TRUSTED: NetHdr = NetHdr {
    flags: net_hdr::DATA_VALID,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 0,
    csum_offset: 0,
    num_buffers: 1,
};

/// An ICMPv6 message to side 0 from fe80::9; `fragment` is the header in front of it.
fn icmp6(fragment: &[u8], message: &[u8]) -> Vec<u8> {
    let mut f = vec![0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x86, 0xdd];
    let next = if fragment.is_empty() { 58 } else { 44 };
    f.extend([0x60, 0, 0, 0]);
    f.extend(((fragment.len() + message.len()) as u16).to_be_bytes());
    f.extend([next, 255]);
    f.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    f.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    f.extend(fragment);
    f.extend(message);
    f
}

/// A router advertisement with its lifetime in seconds.
fn advertisement(lifetime: u16, options: &[Vec<u8>]) -> Vec<u8> {
    let mut m = vec![134, 0, 0, 0, 64, 0];
    m.extend(lifetime.to_be_bytes());
    m.extend([0; 8]);
    m.extend([1, 1, 2, 0, 0, 0, 0, 9]);
    m.extend(options.concat());
    icmp6(&[], &m)
}

fn prefix(n: u8, valid: u32, preferred: u32) -> Vec<u8> {
    let mut o = vec![3, 4, 64, 0xc0];
    o.extend(valid.to_be_bytes());
    o.extend(preferred.to_be_bytes());
    o.extend([0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 0, 0, n, 0, 0, 0, 0, 0, 0, 0, 0]);
    o
}

fn resolver(n: u8, lifetime: u32) -> Vec<u8> {
    let mut o = vec![25, 3, 0, 0];
    o.extend(lifetime.to_be_bytes());
    o.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, n, 0, 0, 0, 0, 0, 0, 0, 0x53]);
    o
}

/// With side 0 configured by router advertisements, which has been told that.
fn told(frame: &[u8]) -> Sim {
    let mut sim = Sim::with(9, Config { slaac: true, ..config(1) }, config(2));
    sim.stacks[0].remove_address("fd00::1".parse().unwrap());
    sim.run(SECOND);
    sim.stacks[0].input(sim.now, TRUSTED, frame);
    sim.run(SECOND);
    sim
}

fn own(n: u8) -> std::net::IpAddr {
    format!("2001:db8:0:{n}:0:ff:fe00:1").parse().unwrap()
}

fn has(sim: &Sim, n: u8) -> bool {
    sim.stacks[0].addresses().iter().any(|a| a.address == own(n))
}

/// A network gets another prefix: the old one's address is not used for what is new, nor its resolver.
#[test]
fn a_router_that_renumbers_is_followed() {
    let mut sim = told(&advertisement(1800, &[prefix(1, 86_400, 14_400), resolver(1, 1800)]));
    let far = "2001:4860:4860::8888".parse().unwrap();
    let near = "2001:db8:0:1::7".parse().unwrap();
    assert_eq!(sim.stacks[0].source_for(far), Ok(own(1)));
    let news = [resolver(1, 0), prefix(1, 7200, 0), prefix(2, 86_400, 14_400), resolver(2, 1800)];
    sim.stacks[0].input(sim.now, TRUSTED, &advertisement(1800, &news));
    for to in [far, near] {
        assert_eq!(sim.stacks[0].source_for(to), Ok(own(2)), "{to}");
    }
    assert!(has(&sim, 1));
    assert_eq!(sim.stacks[0].advertised_dns(), Some("2001:db8:0:2::53".parse().unwrap()));
    // The same by time: resolver and router after half an hour, preference after four, the address after a day.
    sim.run(1801 * SECOND);
    assert_eq!((sim.stacks[0].advertised_dns(), sim.stacks[0].router(Domain::V6)), (None, None));
    sim.stacks[0].input(sim.now, TRUSTED, &advertisement(9000, &[prefix(3, 86_400, 20_000)]));
    sim.stacks[0].input(sim.now, TRUSTED, &advertisement(9000, &[prefix(3, 86_400, 20)]));
    sim.run(5400 * SECOND);
    assert!(!has(&sim, 1) && has(&sim, 2) && has(&sim, 3));
    assert_eq!(sim.stacks[0].source_for("2001:db8:0:3::7".parse().unwrap()), Ok(own(2)));
    // Nothing is better than a deprecated address only if there is another.
    sim.stacks[0].input(sim.now, TRUSTED, &advertisement(9000, &[prefix(2, 86_400, 0)]));
    assert!(sim.stacks[0].source_for("2001:db8:0:3::7".parse().unwrap()).is_ok());
    sim.run(86_401 * SECOND);
    assert!(!has(&sim, 2) && !has(&sim, 3));
}

/// However many others a router withdraws, the new one is taken.
#[test]
fn prefixes_that_were_never_ours_leave_room() {
    let mut sim = told(&advertisement(1800, &[prefix(1, 86_400, 14_400)]));
    let gone: Vec<_> =
        (10..16).map(|n| prefix(n, 0, 0)).chain([prefix(1, 7200, 0), prefix(2, 86_400, 14_400)]).collect();
    sim.stacks[0].input(sim.now, TRUSTED, &advertisement(1800, &gone));
    assert!(has(&sim, 1) && has(&sim, 2));
    assert_eq!(sim.stacks[0].source_for("2001:4860:4860::8888".parse().unwrap()), Ok(own(2)));
}

/// Who does not speak for the router takes nobody's address away at once.
#[test]
fn an_address_has_two_hours_left() {
    let mut sim = told(&advertisement(1800, &[prefix(1, 86_400, 14_400)]));
    for valid in [0, 1] {
        sim.stacks[0].input(sim.now, TRUSTED, &advertisement(1800, &[prefix(1, valid, 0)]));
    }
    sim.run(3600 * SECOND);
    assert!(has(&sim, 1));
    sim.stacks[0].input(sim.now, TRUSTED, &advertisement(1800, &[prefix(1, 1, 1)]));
    sim.run(3599 * SECOND);
    assert!(has(&sim, 1));
    sim.run(2 * SECOND);
    assert!(!has(&sim, 1));
}

/// When the router goes, others are asked for.
#[test]
fn another_router_is_looked_for() {
    let mut sim = told(&advertisement(60, &[]));
    let asked = Rc::new(RefCell::new(0));
    let count = asked.clone();
    sim.filter = Some(Box::new(move |side, f| {
        *count.borrow_mut() += u32::from(side == 0 && f[12..14] == [0x86, 0xdd] && f[20] == 58 && f[54] == 133);
        false
    }));
    sim.run(50 * SECOND);
    assert_eq!(*asked.borrow(), 0);
    // What is none does not end the search.
    sim.run(11 * SECOND);
    sim.stacks[0].input(sim.now, TRUSTED, &advertisement(0, &[]));
    sim.run(39 * SECOND);
    assert_eq!(*asked.borrow(), 3);
}

/// Neighbour discovery in fragments is not believed (RFC 6980), nor another Ethernet address that does not say that it overrides.
#[test]
fn weak_advertisements_change_nothing() {
    let whole = advertisement(1800, &[prefix(1, 86_400, 14_400)]);
    // An atomic fragment.
    let sim = told(&icmp6(&[58, 0, 0, 0, 0, 0, 0, 1], &whole[54..]));
    assert!(!has(&sim, 1));
    let mut sim = told(&whole);
    assert!(has(&sim, 1));
    let mac = Rc::new(RefCell::new([0; 6]));
    let seen = mac.clone();
    sim.filter = Some(Box::new(move |side, f| {
        if side == 0 && f[12..14] == [0x86, 0xdd] && f[20] == 17 {
            *seen.borrow_mut() = f[..6].try_into().unwrap();
        }
        false
    }));
    let c = sim.stacks[0].udp_socket(Domain::V6).unwrap();
    for (flags, last) in [(0x40, 9), (0x60, 8)] {
        let mut m = vec![136, 0, 0, 0, flags, 0, 0, 0, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
        m.extend([2, 1, 2, 0, 0, 0, 0, 8]);
        sim.stacks[0].input(sim.now, TRUSTED, &icmp6(&[], &m));
        sim.stacks[0].send_to(c, &[b"x"], Some("[2607::1]:9".parse().unwrap()), None).unwrap();
        sim.flush();
        assert_eq!(*mac.borrow(), [2, 0, 0, 0, 0, last], "{flags:x}");
    }
}
