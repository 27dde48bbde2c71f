//! TCP at its edges: how connections begin and end beside others, and what a receiver makes of what arrives.

mod sim;

use donjon_net::*;
use sim::*;

/// A neighbour that does not exist ends the connections that wait for it, not what has their place since.
#[test]
fn a_question_without_answer_ends_only_who_asked() {
    // The slot is used again: by another socket, or by another attempt of the same.
    for same in [false, true] {
        let mut sim = Sim::new(1);
        let (_, _) = sim.pair(80);
        let waits = sim.connect(0, at(77, 80));
        let options = TcpOptions { user_timeout: 500, ..sim.stacks[0].tcp_options(waits).unwrap() };
        sim.stacks[0].set_tcp_options(waits, options).unwrap();
        sim.run(1500 * MS);
        sim.filter = Some(Box::new(|side, f| side == 0 && f[12..14] == [8, 0]));
        let c = if same {
            assert_eq!(sim.stacks[0].take_error(waits), Some(Error::TimedOut));
            sim.stacks[0].set_tcp_options(waits, TcpOptions { user_timeout: 0, ..options }).unwrap();
            sim.stacks[0].connect(waits, at(2, 81)).unwrap();
            waits
        } else {
            sim.stacks[0].abort(waits);
            sim.connect(0, at(2, 81))
        };
        sim.run(3 * SECOND);
        assert!(!sim.stacks[0].readiness(c).contains(Ready::ERROR), "same socket: {same}");
    }
}

/// A handshake's third segment that the connection would not take, as it lies beyond the window or bears an older timestamp, makes none: it
/// would never be ready for anything. The right one still does.
#[test]
fn a_bad_third_segment_makes_no_connection() {
    for old_stamp in [false, true] {
        let mut sim = Sim::new(2);
        let trusted = NetHdr { flags: net_hdr::DATA_VALID, ..NetHdr::default() };
        let l = sim.listen(1, 80, 4);
        let options = TcpOptions { receive_buffer: Some(2048), ..sim.stacks[1].tcp_options(l).unwrap() };
        sim.stacks[1].set_tcp_options(l, options).unwrap();
        let answer = std::rc::Rc::new(std::cell::Cell::new(0));
        let seen = answer.clone();
        sim.filter = Some(Box::new(move |side, f| {
            if side == 1 && f[12..14] == [8, 0] && f[47] == 18 {
                seen.set(u32::from_be_bytes([f[38], f[39], f[40], f[41]]));
            }
            false
        }));
        let packet = |seq: u32, ack: u32, flags: u8, stamp: u32| {
            let mut f = raw_syn([10, 0, 0, 1], 5000, seq);
            f[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
            f[42..46].copy_from_slice(&ack.to_be_bytes());
            f[46] = 0x80;
            f[47] = flags;
            f.extend([1, 1, 8, 10]);
            f.extend(stamp.to_be_bytes());
            f.extend([0; 4]);
            sum_ipv4(&mut f);
            f
        };
        sim.stacks[1].input(sim.now, trusted, &packet(1000, 0, 2, 777));
        // Side 1 learns who that is; side 0 itself gets nothing, or it would answer with RST.
        sim.flush();
        let mut known =
            vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1];
        known.extend([2, 0, 0, 0, 0, 2, 10, 0, 0, 2]);
        sim.stacks[1].input(sim.now, NetHdr::default(), &known);
        sim.flush();
        let ack = answer.get().wrapping_add(1);
        assert_ne!(ack, 1);
        let (seq, stamp) = if old_stamp { (1001, 776) } else { (1001 + 3000, 777) };
        sim.stacks[1].input(sim.now, trusted, &packet(seq, ack, 16, stamp));
        sim.flush();
        assert_eq!(sim.stacks[1].accept(l), Err(Error::WouldBlock), "old stamp: {old_stamp}");
        sim.stacks[1].input(sim.now, trusted, &packet(1001, ack, 16, 777));
        let (c, _) = sim.stacks[1].accept(l).unwrap();
        assert!(sim.stacks[1].readiness(c).contains(Ready::WRITABLE));
    }
}

/// A client that has restarted its timestamp clock: its SYN does not take TIME-WAIT over and is acknowledged, it resets that, and its next SYN is a
/// new connection's, as on Linux.
#[test]
fn a_reset_ends_time_wait() {
    let mut sim = Sim::new(3);
    let l = sim.listen(1, 80, 4);
    // The clock of side 0's SYNs is behind by more than the test takes.
    sim.edit = Some(|side, f| {
        let syn = side == 0 && f[12..14] == [8, 0] && f[23] == 6 && f[47] == 2;
        if syn {
            assert_eq!(f[60..62], [8, 10]);
            let stamp = u32::from_be_bytes([f[62], f[63], f[64], f[65]]);
            f[62..66].copy_from_slice(&stamp.wrapping_sub(1_000_000).to_be_bytes());
        }
        syn
    });
    for _ in 0..3 {
        let s = &mut sim.stacks[0];
        let c = s.tcp_socket(Domain::V4).unwrap();
        s.bind(c, at(1, 4000), BindOptions { reuse_addr: true, ..BindOptions::default() }).unwrap();
        s.connect(c, at(2, 80)).unwrap();
        let mut server = None;
        assert!(sim.run_until(2 * SECOND, |s| {
            server = server.or_else(|| s.stacks[1].accept(l).ok());
            server.is_some() && s.stacks[0].readiness(c).contains(Ready::WRITABLE)
        }));
        sim.stacks[0].send(c, &[b"x"]).unwrap();
        sim.run(100 * MS);
        let server = server.unwrap().0;
        assert_eq!(drain_all(&mut sim.stacks[1], server), 1);
        sim.stacks[1].close(server);
        sim.run(100 * MS);
        sim.stacks[0].close(c);
        sim.run(100 * MS);
        assert_eq!((sim.stacks[0].counts(), sim.stacks[1].counts()), ((0, 0, 0), (1, 0, 1)));
    }
}

/// A super-frame is not taken for one segment: what is a few segments long is acknowledged at once, not after 40 ms.
#[test]
fn super_frames_are_acknowledged_as_the_segments_that_they_are() {
    let offload = Offload { tx_csum: true, tso4: true, tso6: true };
    let mut sim = Sim::with(4, Config { offload, ..config(1) }, Config { offload, ..config(2) });
    let (c, s) = sim.pair(80);
    for len in [14_480, 5792, 2896] {
        let before = sim.frames[1];
        assert_eq!(sim.stacks[0].send(c, &[&pattern(0, len)]), Ok(len));
        sim.run(5 * MS);
        assert!(sim.frames[1] > before, "{len}");
        sim.run(SECOND);
        assert_eq!(drain_all(&mut sim.stacks[1], s), len);
    }
}

/// One lost segment of a large window: the receiver keeps all that follows it, and only that one is sent again.
#[test]
fn a_whole_window_is_kept_behind_a_lost_segment() {
    let mut sim = Sim::new(5);
    sim.delay = 50 * MS;
    let (c, s) = sim.pair(80);
    transfer_and_back(&mut sim, c, s, 20_000_000);
    let payload = std::rc::Rc::new(std::cell::Cell::new(0));
    let sum = payload.clone();
    sim.filter = Some(Box::new(move |side, f| {
        let data = side == 0 && f.len() > 66;
        sum.set(sum.get() + if data { f.len() - 66 } else { 0 });
        // The first one.
        data && sum.get() == f.len() - 66
    }));
    transfer_and_back(&mut sim, c, s, 30_000_000);
    assert!((1448..=5 * 1448).contains(&(payload.get() - 30_000_000)), "{}", payload.get());
}

/// What was set and bound stays with a socket whose attempt failed; shutting down ends an attempt.
#[test]
fn the_next_attempt_is_from_the_same_port() {
    let mut sim = Sim::new(6);
    let ip_options = IpOptions { hop_limit: 9, tos: 0x10 };
    let s = &mut sim.stacks[0];
    let c = s.tcp_socket(Domain::V6).unwrap();
    s.bind(c, "[fd00::1]:4000".parse().unwrap(), BindOptions { v6_only: true, ..BindOptions::default() }).unwrap();
    s.set_ip_options(c, ip_options).unwrap();
    let to = "[fd00::2]:80".parse().unwrap();
    for how in [Shutdown::Write, Shutdown::Read, Shutdown::Both] {
        assert_eq!(sim.stacks[0].connect(c, to), Ok(()));
        assert_eq!(sim.stacks[0].local_addr(c), Ok("[fd00::1]:4000".parse().unwrap()));
        assert_eq!(sim.stacks[0].ip_options(c), Ok(ip_options));
        // Refused, and then ended by hand.
        sim.run(SECOND);
        assert_eq!(sim.stacks[0].take_error(c), Some(Error::ConnectionRefused));
        assert_eq!(sim.stacks[0].connect(c, to), Ok(()));
        assert_eq!(sim.stacks[0].shutdown(c, how), Ok(()));
        assert_eq!(sim.stacks[0].take_error(c), Some(Error::ConnectionReset));
        assert_eq!(sim.stacks[0].shutdown(c, how), Err(Error::NotConnected));
    }
    assert_eq!(sim.stacks[0].connect(c, at(2, 80)), Err(Error::AddressFamily));
    // The port is its again; and when somebody has taken it, it is not.
    let (s, bind) = (&mut sim.stacks[0], BindOptions::default());
    let other = s.tcp_socket(Domain::V6).unwrap();
    assert_eq!(s.bind(other, "[fd00::1]:4000".parse().unwrap(), bind), Err(Error::AddressInUse));
    assert_eq!(s.connect(c, to), Ok(()));
    s.shutdown(c, Shutdown::Both).unwrap();
    assert_eq!(s.bind(other, "[fd00::1]:4000".parse().unwrap(), bind), Ok(()));
    assert_eq!(s.connect(c, to), Err(Error::ConnectionReset));
    assert_eq!(s.connect(c, to), Err(Error::AddressInUse));
    s.close(c);
    s.close(other);
    assert_eq!((s.counts(), s.memory_used()), ((0, 0, 0), 0));
}

/// Bytes that have arrived before `shutdown` can be read after it, as on Linux.
#[test]
fn shutting_down_for_reading_leaves_what_has_arrived() {
    let mut sim = Sim::new(7);
    let (c, s) = sim.pair(80);
    sim.stacks[0].send(c, &[b"before"]).unwrap();
    sim.run(SECOND);
    sim.stacks[1].shutdown(s, Shutdown::Read).unwrap();
    sim.stacks[0].send(c, &[b"after"]).unwrap();
    sim.run(SECOND);
    let mut b = [0; 20];
    assert_eq!(sim.stacks[1].recv(s, &mut [&mut b], RecvMode::Take), Ok(6));
    assert_eq!(sim.stacks[1].recv(s, &mut [&mut b], RecvMode::Take), Ok(0));
}

/// Something on the way changes sequence numbers, so that each side finds the other's acknowledgements wrong: they do not answer each other for ever.
#[test]
fn wrong_acknowledgements_make_no_storm() {
    let mut sim = Sim::new(8);
    sim.delay = 5 * MS;
    let (c, _) = sim.pair(80);
    sim.run(SECOND);
    sim.edit = Some(|_, f| {
        let pure = f.len() == 66 && f[12..14] == [8, 0] && f[23] == 6 && f[47] == 16;
        if pure {
            f[38] ^= 0x40;
        }
        pure
    });
    sim.stacks[0].send(c, &[b"x"]).unwrap();
    let before = sim.frames[0] + sim.frames[1];
    sim.run(10 * SECOND);
    let frames = sim.frames[0] + sim.frames[1] - before;
    assert!((4..=80).contains(&frames), "{frames}");
}

/// Who waits for a neighbour's address is gone when it comes, and another socket has the place, or the same one makes another attempt: that can send.
#[test]
fn a_place_in_the_queue_is_not_inherited() {
    let established = |sim: &mut Sim, c| {
        let done = sim.run_until(500 * MS, |sim| sim.stacks[0].readiness(c).contains(Ready::WRITABLE));
        assert!(done && sim.stacks[0].tcp_info(c).unwrap().state == TcpState::Established);
    };
    for to in [at(2, 80), "127.0.0.1:80".parse().unwrap()] {
        for connects_first in [false, true] {
            let mut sim = Sim::new(9);
            sim.listen(0, 80, 8);
            sim.listen(1, 80, 8);
            let waits = sim.connect(0, at(2, 80));
            // The question is on its way.
            sim.flush();
            sim.stacks[0].close(waits);
            let c = sim.stacks[0].tcp_socket(Domain::V4).unwrap();
            if connects_first {
                let ours = [2, 0, 0, 0, 0, 1, 10, 0, 0, 1];
                let mut answer = arp_reply([2, 0, 0, 0, 0, 2], [10, 0, 0, 2]);
                answer[..6].copy_from_slice(&ours[..6]);
                answer[32..42].copy_from_slice(&ours);
                sim.stacks[0].input(sim.now, NetHdr::default(), &answer);
            } else {
                sim.run(100 * MS);
            }
            sim.stacks[0].connect(c, to).unwrap();
            established(&mut sim, c);
        }
    }
    let mut sim = Sim::new(10);
    sim.listen(1, 80, 8);
    let c = sim.connect(0, at(2, 80));
    sim.stacks[0].shutdown(c, Shutdown::Both).unwrap();
    assert_eq!(sim.stacks[0].take_error(c), Some(Error::ConnectionReset));
    assert_eq!(sim.stacks[0].connect(c, "8.8.8.8:80".parse().unwrap()), Err(Error::NetworkUnreachable));
    sim.run(100 * MS);
    sim.stacks[0].connect(c, at(2, 80)).unwrap();
    established(&mut sim, c);
}

/// Whoever waits until the peer has everything (SO_LINGER) is told when it has FIN, whatever the peer does then.
#[test]
fn the_acknowledgement_of_fin_is_an_event() {
    for peer_closes in [false, true] {
        let mut sim = Sim::new(11);
        let (c, s) = sim.pair(80);
        if peer_closes {
            sim.stacks[1].shutdown(s, Shutdown::Write).unwrap();
            sim.run(SECOND);
        }
        sim.stacks[0].send(c, &[b"hello"]).unwrap();
        sim.stacks[0].shutdown(c, Shutdown::Write).unwrap();
        sim.flush();
        while sim.stacks[0].next_event().is_some() {}
        sim.run(SECOND);
        let info = sim.stacks[0].tcp_info(c).unwrap();
        let state = if peer_closes { TcpState::Closed } else { TcpState::FinWait2 };
        assert_eq!((info.state, info.send_queue), (state, 0));
        let told = std::iter::from_fn(|| sim.stacks[0].next_event()).any(|e| e.handle == c);
        assert!(told, "peer closes: {peer_closes}");
    }
}

/// How many resets others got cannot be told by counting one's own: which connections there are is nobody's business.
#[test]
fn the_limit_of_resets_is_not_exact() {
    let mut sim = Sim::new(12);
    sim.pair(80);
    let trusted = NetHdr { flags: net_hdr::DATA_VALID, ..NetHdr::default() };
    let counts: Vec<u64> = (0..8)
        .map(|_| {
            sim.run(5 * SECOND);
            sim.stacks[1].input(sim.now, NetHdr::default(), &arp_reply([2, 0, 0, 0, 0, 1], [10, 0, 0, 1]));
            let mut count = 0;
            for port in 0..1500 {
                let mut f = raw_syn([10, 0, 0, 1], 1000 + port, 7);
                f[47] = 16;
                let before = sim.frames[1];
                sim.stacks[1].input(sim.now, trusted, &f);
                sim.flush();
                count += sim.frames[1] - before;
            }
            count
        })
        .collect();
    assert!(counts.iter().all(|n| (300..1000).contains(n)), "{counts:?}");
    assert!(counts.iter().collect::<std::collections::BTreeSet<_>>().len() > 3, "{counts:?}");
}
