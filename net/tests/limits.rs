//! What bounds TCP: queues, memory, ports; many connections at a time and one after another.

mod sim;

use donjon_net::*;
use sim::*;

#[test]
fn ten_thousand_connections_one_after_another() {
    let mut sim = Sim::new(10);
    sim.delay = 10_000;
    let l = sim.listen(1, 80, 64);
    for i in 0..10_000u32 {
        let c = sim.connect(0, at(2, 80));
        let mut server = None;
        let mut got = 0;
        let ok = sim.run_until(5 * SECOND, |sim| {
            if server.is_none()
                && let Ok((s, _)) = sim.stacks[1].accept(l)
            {
                sim.stacks[1].send(s, &[&i.to_be_bytes()]).unwrap();
                sim.stacks[1].close(s);
                server = Some(s);
            }
            let mut b = [0; 8];
            match sim.stacks[0].recv(c, &mut [&mut b], RecvMode::Take) {
                Ok(n) => {
                    got += n;
                    n == 0
                }
                Err(Error::WouldBlock) => false,
                Err(e) => panic!("{i}: {e:?}"),
            }
        });
        assert!(ok && got == 4, "{i}");
        assert_ne!(sim.stacks[0].local_addr(c).unwrap().port(), 0);
        sim.stacks[0].close(c);
    }
    sim.run(SECOND);
    let (sockets, half, old) = sim.stacks[1].counts();
    assert_eq!((sockets, half), (1, 0));
    assert!(old <= limits().time_wait);
}

#[test]
fn ports_are_random_in_range_and_never_zero() {
    let mut sim = Sim::new(11);
    sim.filter = Some(Box::new(|_, _| true));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..28_232 {
        let c = sim.connect(0, at(2, 80));
        let port = sim.stacks[0].local_addr(c).unwrap().port();
        assert!((32768..=60999).contains(&port) && seen.insert(port));
    }
    assert_eq!(sim.stacks[0].counts().0, 28_232);
    // All are taken now.
    let s = &mut sim.stacks[0];
    let c = s.tcp_socket(Domain::V4).unwrap();
    assert_eq!(s.connect(c, at(2, 80)), Err(Error::AddressNotAvailable));
    // But not towards somebody else.
    assert_eq!(s.connect(c, at(3, 80)), Ok(()));
    let mut order: Vec<u16> = seen.into_iter().collect();
    order.dedup();
    assert_eq!(order.len(), 28_232);
}

#[test]
fn a_syn_flood_leaves_bounded_state_and_a_listener_that_works() {
    let mut sim = Sim::new(12);
    let l = sim.listen(1, 80, 16);
    let mut rng = Rng(99);
    for i in 0..100_000u64 {
        let frame = raw_syn([172, 16, rng.below(200) as u8, rng.below(250) as u8 + 1], rng.next() as u16 | 1, i as u32);
        sim.stacks[1].input(sim.now, NetHdr { flags: net_hdr::DATA_VALID, ..NetHdr::default() }, &frame);
        if i % 1000 == 0 {
            sim.flush();
        }
    }
    let (sockets, half, old) = sim.stacks[1].counts();
    assert_eq!((sockets, old), (1, 0));
    assert!(half <= limits().half_open && half <= 16 * 16, "{half}");
    // In the middle of it, an honest client gets through: its round trip is shorter than it takes to push it out.
    let c = sim.connect(0, at(2, 80));
    assert!(sim.run_until(10 * SECOND, |s| {
        for i in 0..10 {
            let frame = raw_syn([172, 16, 200, rng.below(250) as u8 + 1], rng.next() as u16 | 1, i);
            s.stacks[1].input(s.now, NetHdr { flags: net_hdr::DATA_VALID, ..NetHdr::default() }, &frame);
        }
        s.stacks[1].accept(l).is_ok()
    }));
    assert!(sim.stacks[0].readiness(c).contains(Ready::WRITABLE));
    sim.run(70 * SECOND);
    assert_eq!(sim.stacks[1].counts(), (2, 0, 0));
}

#[test]
fn backlog_overflow_drops_and_recovers() {
    let mut sim = Sim::new(13);
    let l = sim.listen(1, 80, 4);
    let clients: Vec<Handle> = (0..20).map(|_| sim.connect(0, at(2, 80))).collect();
    sim.run(SECOND / 2);
    let (sockets, ..) = sim.stacks[1].counts();
    assert!(sockets <= 1 + 4, "{sockets}");
    // All get in once somebody accepts.
    let mut accepted = Vec::new();
    assert!(sim.run_until(60 * SECOND, |s| {
        while let Ok((h, _)) = s.stacks[1].accept(l) {
            accepted.push(h);
        }
        accepted.len() == 20
    }));
    for c in clients {
        assert!(sim.stacks[0].readiness(c).contains(Ready::WRITABLE));
    }
}

/// A thousand SYNs at once, and a program that accepts one connection in a while: nothing is lost, so nobody waits for a retransmission.
#[test]
fn a_crowd_waits_for_the_program_and_not_for_a_timer() {
    let mut sim = Sim::new(14);
    // What std asks for.
    let l = sim.listen(1, 80, 128);
    let clients: Vec<Handle> = (0..1000).map(|_| sim.connect(0, at(2, 80))).collect();
    let mut accepted = 0;
    for _ in 0..1000 {
        // All of them have to be in long before the first retransmission of a SYN or of data.
        sim.run(SECOND / 20_000);
        let (sockets, ..) = sim.stacks[1].counts();
        assert!(sockets <= 1 + accepted + 128, "{sockets} with {accepted} accepted");
        accepted += u32::from(sim.stacks[1].accept(l).is_ok());
    }
    assert!(accepted > 900, "{accepted}");
    sim.run(SECOND / 20);
    while sim.stacks[1].accept(l).is_ok() {
        accepted += 1;
    }
    assert_eq!((accepted, sim.stacks[1].counts().1), (1000, 0));
    for c in clients {
        assert!(sim.stacks[0].readiness(c).contains(Ready::WRITABLE));
        assert_eq!(sim.stacks[0].tcp_info(c).unwrap().retransmits, 0);
    }
}

/// Peers that never acknowledge keep an honest one waiting for a moment only.
#[test]
fn forged_syns_keep_no_places() {
    let mut sim = Sim::new(15);
    let l = sim.listen(1, 80, 4);
    for i in 0..40 {
        let frame = raw_syn([172, 16, 0, i + 1], 1000, 7);
        sim.stacks[1].input(sim.now, NetHdr { flags: net_hdr::DATA_VALID, ..NetHdr::default() }, &frame);
    }
    let start = sim.now;
    let c = sim.connect(0, at(2, 80));
    assert!(sim.run_until(SECOND, |s| s.stacks[1].accept(l).is_ok()));
    assert!(sim.stacks[0].readiness(c).contains(Ready::WRITABLE));
    assert!(sim.now - start < SECOND / 4, "{}", sim.now - start);
}

#[test]
fn idle_connections_are_small() {
    let mut sim = Sim::new(22);
    let (c, s) = sim.pair(80);
    transfer_and_back(&mut sim, c, s, 2_000_000);
    sim.run(10 * SECOND);
    assert!(sim.stacks[0].memory_used() <= 512, "{}", sim.stacks[0].memory_used());
    assert!(sim.stacks[1].memory_used() <= 512);
    assert_eq!(sim.stacks[0].deadline(), None);
    assert_eq!(sim.stacks[1].deadline(), None);
    const { assert!(Stack::CONNECTION_SIZE <= 512) };
}

#[test]
fn a_backlog_costs_nothing_before_it_fills() {
    let used = |backlog| {
        let mut sim = Sim::new(26);
        sim.listen(1, 80, backlog);
        sim.stacks[1].memory_used()
    };
    assert_eq!(used(4096), used(1));
}

#[test]
fn the_memory_budget_holds() {
    let small = Limits { memory: 300_000, ..limits() };
    let mut sim = Sim::with(23, config(1), Config { limits: small, ..config(2) });
    let mut pairs = Vec::new();
    for i in 0..20 {
        pairs.push(sim.pair(100 + i));
    }
    let mut sent = [0; 20];
    sim.run_until(20 * SECOND, |sim| {
        for (i, p) in pairs.iter().enumerate() {
            sent[i] = feed(&mut sim.stacks[0], p.0, sent[i], 1_000_000);
        }
        assert!(sim.stacks[1].memory_used() <= 300_000 + 70_000, "{}", sim.stacks[1].memory_used());
        false
    });
    // Nothing is lost for good when somebody reads again.
    let mut got = [0; 20];
    let ok = sim.run_until(600 * SECOND, |sim| {
        for (i, p) in pairs.iter().enumerate() {
            sent[i] = feed(&mut sim.stacks[0], p.0, sent[i], 1_000_000);
            got[i] = drain(&mut sim.stacks[1], p.1, got[i]).0;
        }
        got.iter().all(|&g| g == 1_000_000)
    });
    let infos: Vec<_> = pairs.iter().map(|p| (sim.stacks[0].tcp_info(p.0), sim.stacks[1].tcp_info(p.1))).collect();
    assert!(ok, "{got:?} {} {:?}", sim.stacks[1].memory_used(), &infos[..3]);
}

#[test]
fn scarce_memory_slows_writers_down_and_forgets_none() {
    let small = Limits { memory: 200_000, ..limits() };
    let mut sim = Sim::with(27, Config { limits: small, ..config(1) }, config(2));
    let pairs: Vec<_> = (0..20).map(|i| sim.pair(100 + i)).collect();
    let (mut sent, mut got) = ([0; 20], [0; 20]);
    // The readers sleep at first.
    let wake = sim.now + 5 * SECOND;
    let ok = sim.run_until(600 * SECOND, |sim| {
        for (i, p) in pairs.iter().enumerate() {
            if sim.stacks[0].readiness(p.0).contains(Ready::WRITABLE) {
                let before = sent[i];
                sent[i] = feed(&mut sim.stacks[0], p.0, before, 500_000);
                // Others may have taken the memory since it was told to be writable; but then it is not any more, or it would be told for ever.
                let writable = sim.stacks[0].readiness(p.0).contains(Ready::WRITABLE);
                assert!(sent[i] > before || before == 500_000 || !writable, "writable, and yet not");
            }
            if sim.now > wake {
                got[i] = drain(&mut sim.stacks[1], p.1, got[i]).0;
            }
        }
        assert!(sim.stacks[0].memory_used() <= 200_000 + 20 * 1024);
        got.iter().all(|&g| g == 500_000)
    });
    assert!(ok, "{got:?} {sent:?}");
}

#[test]
fn a_crowd_that_does_not_read_leaves_room_for_those_who_do() {
    // As a guest with 64 MB has it.
    let limits = Limits::for_memory(64 << 20);
    let mut sim = Sim::with(32, Config { limits, ..config(1) }, config(2));
    let sleepers: Vec<_> = (0..140).map(|i| sim.pair(100 + i)).collect();
    let mut sent = [0; 140];
    let end = sim.now + 20 * SECOND;
    sim.run_until(30 * SECOND, |sim| {
        for (i, p) in sleepers.iter().enumerate() {
            sent[i] = feed(&mut sim.stacks[0], p.0, sent[i], 1 << 40);
        }
        sim.now > end
    });
    let used = sim.stacks[0].memory_used();
    assert!(used > limits.memory / 2 && used < limits.memory, "{used}");
    let (c, s) = sim.pair(80);
    let time = transfer(&mut sim, 0, c, s, 10_000_000, 60 * SECOND);
    assert!(time < 2 * SECOND, "{} ms", time / MS);
}

/// A crowd whose data nobody reads: it may not hold so much that others cannot connect, or have nothing to talk with.
#[test]
fn a_crowd_that_is_not_read_locks_nobody_out() {
    // As a guest with 32 MB has it.
    let limits = Limits::for_memory(32 << 20);
    let mut sim = Sim::with(33, config(1), Config { limits, ..config(2) });
    sim.filter = Some(no_edge_goes_back());
    let crowd: Vec<_> = (0..300).map(|i| sim.pair(1000 + i)).collect();
    let (mut sent, mut got) = ([0; 300], [0; 300]);
    // Some were read at first, so that their windows have grown.
    for (i, &(c, s)) in crowd[..20].iter().enumerate() {
        transfer_and_back(&mut sim, c, s, 500_000);
        (sent[i], got[i]) = (500_000, 500_000);
    }
    for _ in 0..100 {
        for (i, p) in crowd.iter().enumerate() {
            sent[i] = feed(&mut sim.stacks[0], p.0, sent[i], 1_000_000);
        }
        sim.run(50 * MS);
        let used = sim.stacks[1].memory_used();
        assert!(used < limits.memory, "{used}");
    }
    let used = sim.stacks[1].memory_used();
    assert!(used > limits.memory / 4 * 3, "{used}");
    // Others come in from both sides, and are served.
    let (c, s) = sim.pair(80);
    let time = transfer(&mut sim, 0, c, s, 100_000, 60 * SECOND) + transfer(&mut sim, 1, s, c, 100_000, 60 * SECOND);
    assert!(time < 2 * SECOND, "{} ms", time / MS);
    let l = sim.listen(0, 81, 8);
    let c = sim.connect(1, at(1, 81));
    let mut server = None;
    assert!(sim.run_until(SECOND, |s| {
        server = server.or_else(|| s.stacks[0].accept(l).ok());
        server.is_some()
    }));
    transfer(&mut sim, 1, c, server.unwrap().0, 100_000, 2 * SECOND);
    // Whoever was kept waiting gets on when somebody reads: nothing is lost.
    for _ in 0..600 {
        sim.run(100 * MS);
        for (i, p) in crowd.iter().enumerate() {
            got[i] = drain(&mut sim.stacks[1], p.1, got[i]).0;
        }
    }
    assert!(got == sent, "{got:?} of {sent:?}");
}

/// Watches the windows that side 1 advertises: their right edge may not shrink (RFC 9293 §3.8.6).
fn no_edge_goes_back() -> Filter {
    let mut edges = std::collections::BTreeMap::new();
    Box::new(move |side, frame| {
        if side == 1 && frame.len() >= 54 && frame[12..14] == [8, 0] && frame[23] == 6 && frame[47] & 7 == 0 {
            let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
            let edge = word(42).wrapping_add((word(46) & 0xffff) << 7);
            let last = edges.insert(word(34), edge).unwrap_or(edge);
            // What a window that is closing does not fill of the scale's unit may be lost.
            assert!(edge.wrapping_sub(last) as i32 > -128, "{}", describe(frame));
        }
        false
    })
}
