//! TCP between two stacks over a simulated link.

mod sim;

use donjon_net::*;
use sim::*;
use std::net::SocketAddr;

#[test]
fn connects_moves_bytes_and_closes() {
    let mut sim = Sim::new(1);
    let (c, s) = sim.pair(80);
    transfer(&mut sim, 0, c, s, 3_000_000, 60 * SECOND);
    // Half-closed: the other direction still works.
    transfer(&mut sim, 1, s, c, 2_000_000, 60 * SECOND);
    sim.stacks[0].close(c);
    sim.stacks[1].close(s);
    sim.run(SECOND);
    assert_eq!(sim.stacks[0].counts(), (0, 0, 1));
    assert_eq!(sim.stacks[1].counts(), (0, 0, 0));
    assert_eq!(sim.stacks[0].memory_used() + sim.stacks[1].memory_used(), 0);
    sim.run(61 * SECOND);
    assert_eq!(sim.stacks[0].counts(), (0, 0, 0));
    assert_eq!(sim.stacks[0].deadline(), None);
}

#[test]
fn refuses_where_nobody_listens() {
    let mut sim = Sim::new(2);
    let c = sim.connect(0, at(2, 81));
    assert!(sim.run_until(SECOND, |s| s.stacks[0].readiness(c).contains(Ready::ERROR)));
    assert_eq!(sim.stacks[0].take_error(c), Some(Error::ConnectionRefused));
    sim.stacks[0].close(c);
    assert_eq!(sim.stacks[0].counts(), (0, 0, 0));
}

fn lossy(seed: u64, faults: Faults, total: u64, offload: bool) {
    let caps = Offload { tx_csum: offload, tso4: offload, tso6: offload };
    // The injector changes bytes, so the device must not vouch for them: without offload both sides verify.
    let mut sim = Sim::with(seed, Config { offload: caps, ..config(1) }, Config { offload: caps, ..config(2) });
    let (c, s) = sim.pair(80);
    sim.faults = faults;
    let time = transfer(&mut sim, 0, c, s, total, 900 * SECOND);
    let back = transfer(&mut sim, 1, s, c, total / 2, 900 * SECOND);
    println!("{seed}: {} ms, back {} ms", time / MS, back / MS);
    sim.stacks[0].close(c);
    sim.stacks[1].close(s);
    sim.run(200 * SECOND);
    assert_eq!(sim.stacks[0].counts(), (0, 0, 0));
    assert_eq!(sim.stacks[1].counts(), (0, 0, 0));
    assert_eq!(sim.stacks[0].memory_used() + sim.stacks[1].memory_used(), 0);
}

#[test]
fn survives_loss() {
    for seed in 1..8 {
        lossy(seed, Faults { drop: 30, ..Faults::default() }, 1_000_000, false);
    }
    lossy(100, Faults { drop: 200, ..Faults::default() }, 100_000, false);
}

#[test]
fn survives_everything_at_once() {
    for seed in 1..8 {
        let faults = Faults { drop: 20, duplicate: 20, reorder: 50, truncate: 10, corrupt: 20 };
        lossy(seed, faults, 500_000, false);
    }
}

#[test]
fn survives_loss_of_super_frames() {
    for seed in 1..5 {
        lossy(seed, Faults { drop: 50, duplicate: 20, reorder: 50, ..Faults::default() }, 3_000_000, true);
    }
}

#[test]
fn a_lost_segment_costs_one_round_trip_and_not_a_timeout() {
    let mut sim = Sim::new(5);
    sim.delay = 10 * MS;
    let (c, s) = sim.pair(80);
    let clean = transfer_and_back(&mut sim, c, s, 500_000);
    let mut count = 0;
    sim.filter = Some(Box::new(move |side, frame| {
        count += u32::from(side == 0 && frame.len() > 1000);
        side == 0 && frame.len() > 1000 && count == 100
    }));
    let lossy = transfer_and_back(&mut sim, c, s, 500_000);
    println!("{} {}", clean / MS, lossy / MS);
    assert!(lossy < clean + 100 * MS, "{} {}", clean / MS, lossy / MS);
    assert!(sim.stacks[0].tcp_info(c).unwrap().retransmits >= 1);
    assert!(sim.stacks[0].tcp_info(c).unwrap().retransmits <= 3);
}

#[test]
fn retransmits_by_the_clock_and_gives_up() {
    let mut sim = Sim::new(3);
    let (c, s) = sim.pair(80);
    transfer_and_back(&mut sim, c, s, 10);
    sim.run(SECOND);
    // The peer vanishes.
    let times = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let log = times.clone();
    sim.filter = Some(Box::new(move |side, _| {
        if side == 0 {
            log.borrow_mut().push(());
        }
        true
    }));
    sim.stacks[0].send(c, &[b"hello"]).unwrap();
    let start = sim.now;
    sim.flush();
    let mut at = vec![0];
    while at.len() < 6 {
        sim.step();
        if times.borrow().len() > at.len() {
            at.push(sim.now - start);
        }
    }
    // A tail loss probe, a timeout of 200 ms and the round trip after it, and doubling (RFC 8985 §7.3, RFC 6298 §5.5).
    let gaps: Vec<u64> = at.windows(2).map(|w| (w[1] - w[0]) / MS).collect();
    let rto = sim.stacks[0].tcp_info(c).unwrap().rto_us as f64 / 1000.0;
    assert!((201.0..210.0).contains(&rto), "{rto}");
    assert_eq!(gaps, [50, rto as u64, (rto * 2.0) as u64, (rto * 4.0) as u64, (rto * 8.0) as u64]);
    assert!(sim.run_until(2000 * SECOND, |s| s.stacks[0].readiness(c).contains(Ready::ERROR)));
    assert!((800..1100).contains(&((sim.now - start) / SECOND)), "{}", (sim.now - start) / SECOND);
    assert_eq!(sim.stacks[0].recv(c, &mut [&mut [0; 9]], RecvMode::Take), Err(Error::TimedOut));
}

#[test]
fn user_timeout_ends_it_earlier() {
    let mut sim = Sim::new(3);
    let (c, _) = sim.pair(80);
    let options = TcpOptions { user_timeout: 5000, ..sim.stacks[0].tcp_options(c).unwrap() };
    sim.stacks[0].set_tcp_options(c, options).unwrap();
    sim.filter = Some(Box::new(|_, _| true));
    sim.stacks[0].send(c, &[b"hello"]).unwrap();
    let start = sim.now;
    assert!(sim.run_until(2000 * SECOND, |s| s.stacks[0].readiness(c).contains(Ready::ERROR)));
    assert!((5..10).contains(&((sim.now - start) / SECOND)));
}

#[test]
fn zero_window_is_probed_and_reopens() {
    let mut sim = Sim::new(4);
    let (c, s) = sim.pair(80);
    let sent = {
        let mut sent = 0;
        sim.run_until(10 * SECOND, |sim| {
            sent = feed(&mut sim.stacks[0], c, sent, 10_000_000);
            false
        });
        sent
    };
    let queued = sim.stacks[1].tcp_info(s).unwrap();
    assert!(queued.receive_window < 1460 && queued.receive_queue > 60_000, "{queued:?}");
    // The update that opens the window is lost; a probe finds out.
    sim.filter = Some(Box::new(|side, _| side == 1));
    let (mut got, _) = drain(&mut sim.stacks[1], s, 0);
    sim.flush();
    sim.filter = None;
    assert!(sim.run_until(200 * SECOND, |sim| {
        got = drain(&mut sim.stacks[1], s, got).0;
        got == sent
    }));
}

#[test]
fn a_silent_receiver_keeps_the_connection_alive() {
    let mut sim = Sim::new(4);
    let (c, s) = sim.pair(80);
    let mut sent = 0;
    sim.run_until(3 * SECOND, |sim| {
        sent = feed(&mut sim.stacks[0], c, sent, 10_000_000);
        false
    });
    sim.run(3000 * SECOND);
    assert!(!sim.stacks[0].readiness(c).contains(Ready::ERROR));
    let mut got = 0;
    assert!(sim.run_until(200 * SECOND, |sim| {
        got = drain(&mut sim.stacks[1], s, got).0;
        got == sent
    }));
}

#[test]
fn the_window_grows_while_the_owner_drains() {
    let mut sim = Sim::new(6);
    sim.delay = 50 * MS;
    let (c, s) = sim.pair(80);
    let time = transfer_and_back(&mut sim, c, s, 50_000_000);
    sim.run(SECOND);
    let info = sim.stacks[1].tcp_info(s).unwrap();
    assert!(info.receive_window > 2 << 20, "{info:?}");
    // With a window of 64 KB this takes 76 s.
    assert!(time < 10 * SECOND, "{} ms", time / MS);
}

#[test]
fn reset_tells_both() {
    let mut sim = Sim::new(7);
    let (c, s) = sim.pair(80);
    sim.stacks[0].send(c, &[b"bye"]).unwrap();
    sim.run(SECOND);
    sim.stacks[0].abort(c);
    sim.run(SECOND);
    let mut b = [0; 10];
    // What had arrived can still be read, as on Linux.
    assert_eq!(sim.stacks[1].recv(s, &mut [&mut b], RecvMode::Take), Ok(3));
    assert_eq!(sim.stacks[1].recv(s, &mut [&mut b], RecvMode::Take), Err(Error::ConnectionReset));
    assert_eq!(sim.stacks[1].send(s, &[b"x"]), Err(Error::BrokenPipe));
    assert_eq!(sim.stacks[0].counts(), (0, 0, 0));
    sim.stacks[1].close(s);
    assert_eq!(sim.stacks[1].counts(), (0, 0, 0));
}

/// As on Linux, too: what the peer has sent is complete.
#[test]
fn a_reset_after_the_end_leaves_the_end() {
    let mut sim = Sim::new(7);
    let (c, s) = sim.pair(80);
    sim.stacks[0].send(c, &[b"bye"]).unwrap();
    sim.stacks[0].shutdown(c, Shutdown::Write).unwrap();
    sim.run(SECOND);
    sim.stacks[0].abort(c);
    sim.run(SECOND);
    let mut b = [0; 10];
    assert!(sim.stacks[1].readiness(s).contains(Ready::ERROR));
    assert_eq!(sim.stacks[1].recv(s, &mut [&mut b], RecvMode::Take), Ok(3));
    assert_eq!(sim.stacks[1].recv(s, &mut [&mut b], RecvMode::Take), Ok(0));
    assert_eq!(sim.stacks[1].take_error(s), Some(Error::BrokenPipe));
}

#[test]
fn close_with_unread_data_resets() {
    let mut sim = Sim::new(8);
    let (c, s) = sim.pair(80);
    sim.stacks[0].send(c, &[b"unread"]).unwrap();
    sim.run(SECOND);
    sim.stacks[1].close(s);
    sim.run(SECOND);
    assert!(sim.stacks[0].readiness(c).contains(Ready::ERROR));
    assert_eq!(sim.stacks[0].take_error(c), Some(Error::ConnectionReset));
}

#[test]
fn close_sends_what_is_queued_in_the_background() {
    let mut sim = Sim::new(9);
    let (c, s) = sim.pair(80);
    let sent = feed(&mut sim.stacks[0], c, 0, 100_000);
    assert_eq!(sent, 100_000);
    sim.stacks[0].close(c);
    assert_eq!(sim.stacks[0].send(c, &[b"x"]), Err(Error::BadHandle));
    let (mut got, mut end) = (0, false);
    assert!(sim.run_until(10 * SECOND, |sim| {
        (got, end) = drain(&mut sim.stacks[1], s, got);
        end
    }));
    assert_eq!(got, 100_000);
}

#[test]
fn all_connections_of_a_program_that_ends_are_closed() {
    let mut sim = Sim::new(10);
    let pairs = [sim.pair(80), sim.pair(81), sim.pair(82)];
    let closed = pairs[1].0;
    sim.stacks[0].close(closed);
    // The third has something that its program has not read.
    sim.stacks[1].send(pairs[2].1, &[b"unread"]).unwrap();
    sim.run(SECOND);
    sim.stacks[0].send(pairs[0].0, &[b"last words"]).unwrap();
    sim.stacks[0].close_all();
    sim.run(SECOND);
    let mut b = [0; 20];
    let mut recv = |s: Handle| sim.stacks[1].recv(s, &mut [&mut b], RecvMode::Take);
    assert_eq!([recv(pairs[0].1), recv(pairs[0].1), recv(pairs[1].1)], [Ok(10), Ok(0), Ok(0)]);
    assert_eq!(recv(pairs[2].1), Err(Error::ConnectionReset));
    for (_, s) in pairs {
        sim.stacks[1].close(s);
    }
    sim.run(SECOND);
    assert_eq!(sim.stacks[0].counts().0, 0, "none is left, nor counted twice");
}

#[test]
fn what_a_program_that_ends_leaves_unsent_is_reset() {
    let mut sim = Sim::new(11);
    let pairs = [sim.pair(80), sim.pair(81), sim.pair(82)];
    // One is all sent, one is closed before, one is not; nobody reads the last two, whose windows fill up.
    sim.stacks[0].send(pairs[0].0, &[b"all"]).unwrap();
    for (c, _) in &pairs[1..] {
        while sim.stacks[0].send(*c, &[&[7; 4096]]).is_ok() {
            sim.run(SECOND);
        }
    }
    sim.stacks[0].close(pairs[1].0);
    sim.stacks[0].close_all();
    sim.run(SECOND);
    assert!(sim.stacks[0].any_unsent());
    sim.stacks[0].reset_unsent();
    assert!(!sim.stacks[0].any_unsent());
    sim.run(SECOND);
    let mut b = vec![0; 1 << 20];
    let mut recv = |s: Handle| sim.stacks[1].recv(s, &mut [&mut b], RecvMode::Take);
    assert_eq!([recv(pairs[0].1), recv(pairs[0].1)], [Ok(3), Ok(0)]);
    for (_, s) in &pairs[1..] {
        let end = core::iter::repeat_with(|| recv(*s)).find(|got| !matches!(got, Ok(1..)));
        assert_eq!(end, Some(Err(Error::ConnectionReset)));
    }
}

#[test]
fn what_nobody_accepted_is_reset_when_the_program_ends() {
    let mut sim = Sim::new(12);
    sim.listen(1, 80, 4);
    let c = sim.connect(0, at(2, 80));
    sim.run(SECOND);
    sim.stacks[1].close_all();
    sim.run(SECOND);
    assert_eq!(sim.stacks[0].take_error(c), Some(Error::ConnectionReset));
}

/// A connection from the same port each time, made within `time`: the client's and the server's side.
fn from_one_port(sim: &mut Sim, listener: Handle, time: u64, round: u32) -> (Handle, Handle) {
    let s = &mut sim.stacks[0];
    let c = s.tcp_socket(Domain::V4).unwrap();
    s.bind(c, at(1, 4000), BindOptions { reuse_addr: true, ..BindOptions::default() }).unwrap();
    s.connect(c, at(2, 80)).unwrap();
    let mut server = None;
    let accepted = sim.run_until(time, |s| {
        server = s.stacks[1].accept(listener).ok();
        server.is_some()
    });
    assert!(accepted, "{round}");
    (c, server.unwrap().0)
}

#[test]
fn a_new_syn_takes_over_time_wait() {
    let mut sim = Sim::new(14);
    let l = sim.listen(1, 80, 4);
    for round in 0..50 {
        let (c, server) = from_one_port(&mut sim, l, SECOND, round);
        // The server closes first, so that the TIME-WAIT is its.
        sim.stacks[1].close(server);
        sim.run(100 * MS);
        sim.stacks[0].close(c);
        sim.run(100 * MS);
        assert_eq!(sim.stacks[1].counts().2, 1);
        assert_eq!(sim.stacks[0].counts(), (0, 0, 0));
    }
}

/// A random port can be the one of the connection before, whose TIME-WAIT is microseconds old: no SYN may be lost on it, which would come again after a second.
#[test]
fn a_port_is_used_again_at_once() {
    let mut sim = Sim::new(14);
    sim.delay = 5_000;
    let l = sim.listen(1, 80, 4);
    for round in 0..50 {
        let (c, server) = from_one_port(&mut sim, l, 500 * MS, round);
        assert_eq!(sim.stacks[0].send(c, &[&[7; 200]]), Ok(200));
        let mut buffer = [0; 300];
        assert!(sim.run_until(SECOND, |s| s.stacks[1].recv(server, &mut [&mut buffer], RecvMode::Take).is_ok()));
        sim.stacks[1].close(server);
        assert!(sim.run_until(SECOND, |s| s.stacks[0].recv(c, &mut [&mut buffer], RecvMode::Take) == Ok(0)));
        sim.stacks[0].close(c);
        assert!(sim.run_until(SECOND, |s| s.stacks[0].counts() == (0, 0, 0)));
        assert_eq!(sim.stacks[1].counts().2, 1);
    }
}

#[test]
fn reuse_addr_as_on_linux() {
    let mut sim = Sim::new(15);
    let (c, s) = sim.pair(80);
    sim.stacks[1].close(s);
    sim.run(100 * MS);
    sim.stacks[0].close(c);
    sim.run(100 * MS);
    // A TIME-WAIT entry is on port 80 now.
    let st = &mut sim.stacks[1];
    let l = st.tcp_socket(Domain::V4).unwrap();
    let options = |reuse_addr| BindOptions { reuse_addr, ..BindOptions::default() };
    assert_eq!(st.bind(l, at(2, 80), options(false)), Err(Error::AddressInUse));
    assert_eq!(st.bind(l, at(2, 80), options(true)), Ok(()));
    st.listen(l, 1).unwrap();
    let m = st.tcp_socket(Domain::V4).unwrap();
    assert_eq!(st.bind(m, at(2, 80), options(true)), Err(Error::AddressInUse));
    st.close(l);
    assert_eq!(st.bind(m, at(2, 80), options(true)), Ok(()));
    assert_eq!(st.bind(m, at(2, 81), options(true)), Err(Error::Invalid));
    let n = st.tcp_socket(Domain::V4).unwrap();
    assert_eq!(st.bind(n, at(9, 80), options(true)), Err(Error::AddressNotAvailable));
}

#[test]
fn nagle_holds_back_and_nodelay_does_not() {
    for nodelay in [false, true] {
        let mut sim = Sim::new(16);
        sim.delay = 20 * MS;
        let (c, s) = sim.pair(80);
        let options = TcpOptions { nodelay, ..sim.stacks[0].tcp_options(c).unwrap() };
        sim.stacks[0].set_tcp_options(c, options).unwrap();
        sim.run(SECOND);
        let before = sim.frames[0];
        for _ in 0..10 {
            sim.stacks[0].send(c, &[b"tiny"]).unwrap();
            sim.flush();
        }
        // All before any acknowledgement.
        assert_eq!(sim.frames[0] - before, if nodelay { 10 } else { 1 });
        let start = sim.now;
        let mut n = 0;
        assert!(sim.run_until(SECOND, |sim| {
            let mut b = [0; 100];
            if let Ok(k) = sim.stacks[1].recv(s, &mut [&mut b], RecvMode::Take) {
                n += k;
            }
            n == 40
        }));
        let took = (sim.now - start) / MS;
        assert!(if nodelay { took == 20 } else { (60..=101).contains(&took) }, "{took}");
    }
}

#[test]
fn data_is_acknowledged_when_the_owner_wants() {
    // How long a byte waits for its acknowledgement, ms: there and back is 20.
    for (quick_ack, expected) in [(None, 60), (Some(false), 60), (Some(true), 20)] {
        let mut sim = Sim::new(18);
        sim.delay = 10 * MS;
        let (c, s) = sim.pair(80);
        let options = TcpOptions { quick_ack, ..sim.stacks[1].tcp_options(s).unwrap() };
        sim.stacks[1].set_tcp_options(s, options).unwrap();
        assert_eq!(sim.stacks[1].tcp_options(s).unwrap().quick_ack, quick_ack);
        sim.run(SECOND);
        let start = sim.now;
        sim.stacks[0].send(c, &[b"x"]).unwrap();
        assert!(sim.run_until(SECOND, |sim| sim.stacks[0].tcp_info(c).unwrap().send_queue == 0));
        assert_eq!((sim.now - start) / MS, expected, "{quick_ack:?}");
    }
    // It takes effect on what is already waiting.
    let mut sim = Sim::new(18);
    let (c, s) = sim.pair(80);
    sim.run(SECOND);
    sim.stacks[0].send(c, &[b"x"]).unwrap();
    sim.run(5 * MS);
    assert_eq!(sim.stacks[0].tcp_info(c).unwrap().send_queue, 1);
    let options = TcpOptions { quick_ack: Some(true), ..sim.stacks[1].tcp_options(s).unwrap() };
    sim.stacks[1].set_tcp_options(s, options).unwrap();
    sim.run(5 * MS);
    assert_eq!(sim.stacks[0].tcp_info(c).unwrap().send_queue, 0);
}

#[test]
fn acknowledgements_are_delayed_and_ride_on_answers() {
    let mut sim = Sim::new(17);
    let (c, s) = sim.pair(80);
    sim.run(SECOND);
    // A request without an answer is acknowledged after 40 ms.
    let before = sim.frames[1];
    sim.stacks[0].send(c, &[b"ping"]).unwrap();
    let start = sim.now;
    sim.run_until(SECOND, |sim| sim.frames[1] > before);
    assert_eq!((sim.now - start) / MS, 40);
    drain_all(&mut sim.stacks[1], s);
    // With an answer at once there is no frame but the answer.
    let before = sim.frames[1];
    sim.stacks[0].send(c, &[b"ping"]).unwrap();
    sim.run_until(SECOND, |sim| sim.stacks[1].readiness(s).contains(Ready::READABLE));
    drain_all(&mut sim.stacks[1], s);
    sim.stacks[1].send(s, &[b"pong"]).unwrap();
    sim.run(20 * MS);
    assert_eq!(sim.frames[1] - before, 1);
}

/// A peer without window scaling (QEMU's user network is one) is not told of room that no window field can tell of.
#[test]
fn a_window_without_scale_is_not_updated_for_nothing() {
    let mut sim = Sim::new(18);
    sim.edit = Some(|_, frame| {
        // The SYN's window scale option becomes three times nothing.
        let syn = frame[23] == 6 && frame[47] & 2 != 0;
        let scale = frame.windows(3).position(|w| w[..2] == [3, 3]).filter(|at| syn && *at >= 54);
        if let Some(at) = scale {
            frame[at..at + 3].fill(1);
        }
        scale.is_some()
    });
    let (c, s) = sim.pair(80);
    // Enough for the receive buffer to grow.
    let (mut sent, mut got) = (0, 0);
    assert!(sim.run_until(60 * SECOND, |sim| {
        sent = feed(&mut sim.stacks[0], c, sent, 1_000_000);
        got = drain(&mut sim.stacks[1], s, got).0;
        got == 1_000_000
    }));
    sim.run(SECOND);
    let before = sim.frames[1];
    for _ in 0..1000 {
        sim.stacks[0].send(c, &[&[1; 40]]).unwrap();
        sim.run_until(SECOND, |sim| sim.stacks[1].readiness(s).contains(Ready::READABLE));
        drain_all(&mut sim.stacks[1], s);
        sim.stacks[1].send(s, &[b"answer"]).unwrap();
        sim.run_until(SECOND, |sim| sim.stacks[0].readiness(c).contains(Ready::READABLE));
        drain_all(&mut sim.stacks[0], c);
    }
    assert_eq!(sim.frames[1] - before, 1000);
}

#[test]
fn keep_alive_finds_a_dead_peer_and_spares_a_living_one() {
    let mut sim = Sim::new(18);
    let (c, _) = sim.pair(80);
    let keep_alive = Some(KeepAlive { idle: 10, interval: 5, count: 3 });
    let options = TcpOptions { keep_alive, ..sim.stacks[0].tcp_options(c).unwrap() };
    sim.stacks[0].set_tcp_options(c, options).unwrap();
    sim.run(1000 * SECOND);
    assert!(!sim.stacks[0].readiness(c).contains(Ready::ERROR));
    sim.filter = Some(Box::new(|_, _| true));
    let start = sim.now;
    assert!(sim.run_until(1000 * SECOND, |s| s.stacks[0].readiness(c).contains(Ready::ERROR)));
    let took = (sim.now - start) / SECOND;
    assert!((15..=26).contains(&took), "{took}");
    assert_eq!(sim.stacks[0].take_error(c), Some(Error::TimedOut));
}

#[test]
fn connect_to_nobody_times_out_or_is_unreachable() {
    let mut sim = Sim::new(19);
    // No such neighbour: three questions.
    let c = sim.connect(0, at(77, 80));
    let start = sim.now;
    assert!(sim.run_until(100 * SECOND, |s| s.stacks[0].readiness(c).contains(Ready::ERROR)));
    assert_eq!(sim.stacks[0].take_error(c), Some(Error::HostUnreachable));
    assert!((sim.now - start) / SECOND <= 4);
    // A neighbour that does not answer SYNs.
    let (_, _) = sim.pair(80);
    sim.filter = Some(Box::new(|_, f| f[12..14] == [8, 0]));
    let c = sim.connect(0, at(2, 82));
    let start = sim.now;
    assert!(sim.run_until(300 * SECOND, |s| s.stacks[0].readiness(c).contains(Ready::ERROR)));
    assert_eq!(sim.stacks[0].take_error(c), Some(Error::TimedOut));
    assert_eq!((sim.now - start) / SECOND, 127);
    // No route at all.
    let s = &mut sim.stacks[0];
    let c = s.tcp_socket(Domain::V4).unwrap();
    assert_eq!(s.connect(c, "8.8.8.8:80".parse().unwrap()), Err(Error::NetworkUnreachable));
}

#[test]
fn loopback_and_ipv6_and_dual_stack() {
    let mut sim = Sim::new(20);
    let s = &mut sim.stacks[0];
    let l = s.tcp_socket(Domain::V6).unwrap();
    s.bind(l, "[::]:80".parse().unwrap(), BindOptions::default()).unwrap();
    s.listen(l, 8).unwrap();
    for to in ["127.0.0.1:80", "[::1]:80", "10.0.0.1:80", "[fd00::1]:80", "0.0.0.0:80", "127.9.9.9:80"] {
        let c = sim.connect(0, to.parse().unwrap());
        let mut server = None;
        assert!(
            sim.run_until(SECOND, |s| {
                server = server.or_else(|| s.stacks[0].accept(l).ok());
                server.is_some()
            }),
            "{to}"
        );
        let (h, peer) = server.unwrap();
        assert_eq!(peer, sim.stacks[0].local_addr(c).unwrap());
        let (mut sent, mut got) = (0, 0);
        assert!(sim.run_until(10 * SECOND, |sim| {
            sent = feed(&mut sim.stacks[0], c, sent, 5_000_000);
            got = drain(&mut sim.stacks[0], h, got).0;
            got == 5_000_000
        }));
        sim.stacks[0].close(c);
        sim.stacks[0].close(h);
    }
    assert!(sim.frames[0] <= 4, "only announcements leave: {}", sim.frames[0]);
    // Over the link, IPv6.
    let c = sim.connect(1, "[fd00::1]:80".parse().unwrap());
    let mut server = None;
    assert!(sim.run_until(SECOND, |s| {
        server = server.or_else(|| s.stacks[0].accept(l).ok());
        server.is_some()
    }));
    transfer(&mut sim, 1, c, server.unwrap().0, 3_000_000, 10 * SECOND);
}

#[test]
fn deferred_accept_in_any_mode() {
    let mut sim = Sim::with(21, config(1), Config { any_ip: true, ..config(2) });
    let router = ip(2);
    sim.stacks[0].set_router(Domain::V4, Some(router));
    let l = sim.stacks[1].listen_any(16).unwrap();
    let to = "93.184.216.34:443".parse().unwrap();
    let c = sim.connect(0, to);
    let mut found = None;
    assert!(sim.run_until(SECOND, |s| {
        found = s.stacks[1].next_pending(l).ok();
        found.is_some()
    }));
    let (pending, local, _) = found.unwrap();
    assert_eq!(local, to);
    // The owner takes two seconds; SYNs come again meanwhile and make no second one.
    sim.run(4 * SECOND);
    assert_eq!(sim.stacks[1].next_pending(l), Err(Error::WouldBlock));
    assert!(!sim.stacks[0].readiness(c).contains(Ready::WRITABLE));
    let s = sim.stacks[1].complete(pending).unwrap();
    assert!(sim.run_until(SECOND, |sim| sim.stacks[0].readiness(c).contains(Ready::WRITABLE)));
    assert_eq!(sim.stacks[1].local_addr(s).unwrap(), to);
    assert!(sim.run_until(SECOND, |sim| sim.stacks[1].readiness(s).contains(Ready::WRITABLE)));
    transfer(&mut sim, 0, c, s, 1_000_000, 10 * SECOND);
    transfer(&mut sim, 1, s, c, 1_000_000, 10 * SECOND);
    // And refused.
    let c = sim.connect(0, to);
    assert!(sim.run_until(SECOND, |s| match s.stacks[1].next_pending(l) {
        Ok((p, ..)) => {
            s.stacks[1].refuse(p);
            true
        }
        Err(_) => false,
    }));
    assert!(sim.run_until(SECOND, |s| s.stacks[0].readiness(c).contains(Ready::ERROR)));
    assert_eq!(sim.stacks[0].take_error(c), Some(Error::ConnectionRefused));
    assert_eq!(sim.stacks[1].complete(pending), Err(Error::BadHandle));
}

#[test]
fn events_tell_what_happens() {
    let mut sim = Sim::new(24);
    let l = sim.listen(1, 80, 8);
    let c = sim.connect(0, at(2, 80));
    sim.run(100 * MS);
    let mut got = Ready(0);
    while let Some(e) = sim.stacks[0].next_event() {
        assert_eq!(e.handle, c);
        got = got.union(e.ready);
    }
    assert!(got.contains(Ready::CONNECTED) && got.contains(Ready::WRITABLE));
    let e = sim.stacks[1].next_event().unwrap();
    assert!(e.handle == l && e.ready.contains(Ready::ACCEPT));
    assert_eq!(sim.stacks[1].next_event(), None);
    let (s, _) = sim.stacks[1].accept(l).unwrap();
    sim.stacks[0].send(c, &[b"x"]).unwrap();
    sim.run(100 * MS);
    let e = sim.stacks[1].next_event().unwrap();
    assert!(e.handle == s && e.ready.contains(Ready::READABLE) && !e.ready.contains(Ready::READ_CLOSED));
    sim.stacks[0].shutdown(c, Shutdown::Write).unwrap();
    sim.run(100 * MS);
    let e = sim.stacks[1].next_event().unwrap();
    assert!(e.ready.contains(Ready::READ_CLOSED) && !e.ready.contains(Ready::HANGUP));
    drain_all(&mut sim.stacks[1], s);
    // A full send queue raises WRITABLE when it drains.
    let mut sent = 0;
    for _ in 0..50 {
        sent = feed(&mut sim.stacks[1], s, sent, 1 << 30);
        sim.run(10 * MS);
    }
    while sim.stacks[1].next_event().is_some() {}
    assert!(!sim.stacks[1].readiness(s).contains(Ready::WRITABLE));
    let mut got = 0;
    assert!(sim.run_until(10 * SECOND, |sim| {
        got = drain(&mut sim.stacks[0], c, got).0;
        std::iter::from_fn(|| sim.stacks[1].next_event()).any(|e| e.ready.contains(Ready::WRITABLE))
    }));
}

/// Whoever polls after a write that was taken whole may be told to wait; then an event has to say when that is over. Whoever has room all the time hears nothing.
#[test]
fn a_write_that_was_taken_whole_raises_writable_too() {
    let mut sim = Sim::new(26);
    let (c, _s) = sim.pair(80);
    let options = TcpOptions { send_buffer: Some(9_000), ..sim.stacks[0].tcp_options(c).unwrap() };
    sim.stacks[0].set_tcp_options(c, options).unwrap();
    let writable = |sim: &mut Sim| {
        std::iter::from_fn(|| sim.stacks[0].next_event()).filter(|e| e.ready.contains(Ready::WRITABLE)).count()
    };
    writable(&mut sim);
    assert_eq!(sim.stacks[0].send(c, &[&[0; 5_000]]), Ok(5_000));
    assert!(sim.stacks[0].readiness(c).contains(Ready::WRITABLE));
    sim.run(SECOND);
    assert_eq!(writable(&mut sim), 0);
    assert_eq!(sim.stacks[0].send(c, &[&[0; 7_000]]), Ok(7_000));
    assert!(!sim.stacks[0].readiness(c).contains(Ready::WRITABLE));
    sim.run(SECOND);
    assert!(sim.stacks[0].readiness(c).contains(Ready::WRITABLE));
    assert_eq!(writable(&mut sim), 1);
    // A buffer that becomes smaller or larger under what is queued.
    assert_eq!(sim.stacks[0].send(c, &[&[0; 5_000]]), Ok(5_000));
    for (size, ready) in [(6_000, false), (9_000, true)] {
        sim.stacks[0].set_tcp_options(c, TcpOptions { send_buffer: Some(size), ..options }).unwrap();
        assert_eq!(sim.stacks[0].readiness(c).contains(Ready::WRITABLE), ready);
        assert_eq!(writable(&mut sim), usize::from(ready));
    }
}

#[test]
fn cork_holds_back_for_a_while_and_uncorking_sends() {
    let mut sim = Sim::new(25);
    let (c, s) = sim.pair(80);
    let options = TcpOptions { cork: true, ..sim.stacks[0].tcp_options(c).unwrap() };
    sim.stacks[0].set_tcp_options(c, options).unwrap();
    sim.stacks[0].send(c, &[b"head"]).unwrap();
    sim.run(100 * MS);
    assert!(!sim.stacks[1].readiness(s).contains(Ready::READABLE));
    sim.stacks[0].set_tcp_options(c, TcpOptions { cork: false, ..options }).unwrap();
    sim.run(10 * MS);
    assert_eq!(drain_all(&mut sim.stacks[1], s), 4);
    sim.stacks[0].set_tcp_options(c, options).unwrap();
    sim.stacks[0].send(c, &[b"tail"]).unwrap();
    sim.run(300 * MS);
    assert_eq!(drain_all(&mut sim.stacks[1], s), 4);
}

#[test]
fn a_socket_may_connect_again_after_a_failure() {
    let mut sim = Sim::new(26);
    let c = sim.connect(0, at(2, 80));
    assert_eq!(sim.stacks[0].connect(c, at(2, 80)), Err(Error::Already));
    sim.run(100 * MS);
    assert_eq!(sim.stacks[0].connect(c, at(2, 80)), Err(Error::ConnectionRefused));
    let l = sim.listen(1, 80, 1);
    assert_eq!(sim.stacks[0].connect(c, at(2, 80)), Ok(()));
    sim.run(100 * MS);
    assert!(sim.stacks[1].accept(l).is_ok());
    assert_eq!(sim.stacks[0].connect(c, at(2, 80)), Err(Error::IsConnected));
}

#[test]
fn a_probe_with_data_into_a_closed_window_is_answered() {
    let mut sim = Sim::new(28);
    let (c, s) = sim.pair(80);
    let mut sent = 0;
    sim.run_until(10 * SECOND, |sim| {
        sent = feed(&mut sim.stacks[0], c, sent, 10_000_000);
        false
    });
    let _ = s;
    // As BSD does it, with data; 118 bytes are left below the granularity of the scaled window, so more than that.
    let (l, p) = (sim.stacks[0].local_addr(c).unwrap(), sim.stacks[0].peer_addr(c).unwrap());
    assert_eq!(p.port(), 80);
    let mut f = raw_syn([10, 0, 0, 1], l.port(), sim.sequence_end(0));
    f[42..46].copy_from_slice(&sim.last_ack[0].to_be_bytes());
    f[47] = 16;
    f.extend([b'x'; 200]);
    sum_ipv4(&mut f);
    let before = sim.frames[1];
    sim.stacks[1].input(sim.now, NetHdr { flags: net_hdr::DATA_VALID, ..NetHdr::default() }, &f);
    sim.flush();
    assert_eq!(sim.frames[1], before + 1, "{:?}", sim.stacks[1].tcp_info(s));
}

#[test]
fn more_to_come_and_header_options() {
    let mut sim = Sim::new(29);
    let l = sim.listen(1, 80, 8);
    sim.stacks[1].set_ip_options(l, IpOptions { hop_limit: 9, tos: 0x10 }).unwrap();
    assert_eq!(sim.stacks[1].set_ip_options(l, IpOptions { hop_limit: 0, tos: 0 }), Err(Error::Invalid));
    let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let log = seen.clone();
    sim.filter = Some(Box::new(move |side, f| {
        if side == 1 && f[12..14] == [8, 0] {
            log.borrow_mut().push((f[22], f[15]));
        }
        false
    }));
    let c = sim.connect(0, at(2, 80));
    sim.run(100 * MS);
    let (s, _) = sim.stacks[1].accept(l).unwrap();
    assert_eq!(sim.stacks[1].ip_options(s).unwrap(), IpOptions { hop_limit: 9, tos: 0x10 });
    assert_eq!(sim.stacks[1].send_more(s, &[b"head"]), Ok(4));
    sim.run(50 * MS);
    assert!(!sim.stacks[0].readiness(c).contains(Ready::READABLE));
    sim.stacks[1].send(s, &[b"body"]).unwrap();
    sim.run(50 * MS);
    assert_eq!(drain_all(&mut sim.stacks[0], c), 8);
    assert!(seen.borrow().len() >= 2 && seen.borrow().iter().all(|&s| s == (9, 0x10)), "{seen:?}");
}

#[test]
fn simultaneous_open_and_a_connection_to_itself() {
    let mut sim = Sim::new(30);
    for s in 0..2 {
        let other = at(2 - s as u8, 5000);
        let st = &mut sim.stacks[s];
        // Both know each other already, so that the SYNs cross.
        let u = st.udp_socket(Domain::V4).unwrap();
        st.send_to(u, &[b"x"], Some(other), None).unwrap();
        st.close(u);
    }
    sim.run(SECOND);
    let h: Vec<Handle> = (0..2)
        .map(|s| {
            let st = &mut sim.stacks[s];
            let c = st.tcp_socket(Domain::V4).unwrap();
            st.bind(c, at(s as u8 + 1, 5000), BindOptions::default()).unwrap();
            st.connect(c, at(2 - s as u8, 5000)).unwrap();
            c
        })
        .collect();
    sim.run(100 * MS);
    assert!((0..2).all(|s| sim.stacks[s].tcp_info(h[s]).unwrap().state == TcpState::Established));
    transfer(&mut sim, 0, h[0], h[1], 100_000, 10 * SECOND);
    transfer(&mut sim, 1, h[1], h[0], 100_000, 10 * SECOND);

    let st = &mut sim.stacks[0];
    let own = "127.0.0.1:6000".parse().unwrap();
    let c = st.tcp_socket(Domain::V4).unwrap();
    st.bind(c, own, BindOptions::default()).unwrap();
    st.connect(c, own).unwrap();
    sim.run(100 * MS);
    assert_eq!(sim.stacks[0].tcp_info(c).unwrap().state, TcpState::Established);
    sim.stacks[0].send(c, &[b"echo"]).unwrap();
    sim.run(100 * MS);
    assert_eq!(drain_all(&mut sim.stacks[0], c), 4);
    sim.stacks[0].close(c);
    sim.run(100 * SECOND);
    // Where nobody listens, no port of ours is picked that would answer itself.
    for port in 40_000..40_200 {
        let c = sim.connect(0, SocketAddr::from(([127, 0, 0, 1], port)));
        sim.run(MS);
        assert_eq!(sim.stacks[0].take_error(c), Some(Error::ConnectionRefused));
        sim.stacks[0].close(c);
    }
    assert_eq!(sim.stacks[0].counts().0, 1);
}

#[test]
fn a_lost_tail_costs_a_probe_and_not_a_timeout() {
    for lost in 1..=5u32 {
        let mut sim = Sim::new(31);
        let (c, s) = sim.pair(80);
        transfer_and_back(&mut sim, c, s, 20_000);
        sim.run(SECOND);
        // Of ten segments the last few are lost, once.
        let mut count = 0;
        sim.filter = Some(Box::new(move |side, frame| {
            count += u32::from(side == 0 && frame.len() > 1000);
            side == 0 && frame.len() > 1000 && (11 - lost..=10).contains(&count)
        }));
        let start = sim.now;
        assert_eq!(sim.stacks[0].send(c, &[&pattern(0, 14_480)]), Ok(14_480));
        let mut got = 0;
        assert!(sim.run_until(10 * SECOND, |sim| {
            got += drain_all(&mut sim.stacks[1], s);
            got == 14_480
        }));
        let took = (sim.now - start) / MS;
        assert!((50..=60).contains(&took), "{lost} lost: {took} ms");
    }
}

/// Counts payload by where it lies.
struct Origins {
    lasting: usize,
    copied: usize,
}

impl FrameSink for Origins {
    fn send(&mut self, _: NetHdr, _: &[u8], payload: &[&[u8]]) -> Sent {
        let from = config(1).lasting.as_ptr_range();
        for p in payload {
            let place = if from.contains(&p.as_ptr()) { &mut self.lasting } else { &mut self.copied };
            *place += p.len();
        }
        Sent::Done
    }
}

#[test]
fn what_lasts_is_sent_from_where_it_lies() {
    let mut sim = Sim::new(31);
    let (c, _) = sim.pair(80);
    let s = &mut sim.stacks[0];
    // A head, a body, and a piece that is too small to be referred to.
    let pieces = [&pattern(0, 300)[..], lasting_pattern(300, 8000), lasting_pattern(8300, 200)];
    assert_eq!(s.send(c, &pieces), Ok(8500));
    assert_eq!(s.tcp_info(c).unwrap().send_queue, 8500);
    let mut seen = Origins { lasting: 0, copied: 0 };
    s.output(sim.now, &mut seen);
    assert_eq!((seen.lasting, seen.copied), (8000, 500));
    // Nobody got it. It is sent again from there, and only as far as there is room.
    assert_eq!(s.send(c, &[lasting_pattern(8500, 200_000)]), Ok((128 << 10) - 8500));
    assert_eq!(s.send(c, &[lasting_pattern(0, 4000)]), Err(Error::WouldBlock));
    let mut again = Origins { lasting: 0, copied: 0 };
    for _ in 0..10 {
        sim.now = s.deadline().unwrap();
        s.output(sim.now, &mut again);
    }
    assert!(again.lasting > 0, "{}", again.copied);
}
