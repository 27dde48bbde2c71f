//! How TCP finds out what was lost, and when.

mod sim;

use donjon_net::*;
use sim::*;

/// A peer that closes its window while data is under way, all of which but the first segment gets lost.
#[test]
fn a_window_that_closes_over_data_in_flight_is_probed() {
    let mut sim = Sim::new(40);
    let (c, s) = sim.pair(80);
    sim.edit = Some(|side, frame| {
        let tcp = side == 1 && frame[12..14] == [8, 0] && frame[23] == 6;
        if tcp {
            frame[48..50].fill(0);
        }
        tcp
    });
    let mut count = 0;
    sim.filter = Some(Box::new(move |side, frame| {
        count += u32::from(side == 0 && frame.len() > 1000);
        side == 0 && frame.len() > 1000 && count > 1
    }));
    assert_eq!(sim.stacks[0].send(c, &[&pattern(0, 14_480)]), Ok(14_480));
    sim.run(5 * SECOND);
    let window = sim.stacks[0].tcp_info(c).unwrap().congestion_window;
    let before = sim.frames[0];
    sim.run(2000 * SECOND);
    // At least one each two minutes, and the peer's answers keep the connection alive.
    let probes = sim.frames[0] - before;
    assert!((16..100).contains(&probes), "{probes}");
    assert!(!sim.stacks[0].readiness(c).contains(Ready::ERROR));
    assert_eq!(sim.stacks[0].tcp_info(c).unwrap().congestion_window, window, "nothing tells of congestion");
    // The window is open again; no update tells of that, but the answer to a probe. All that was lost comes at once then.
    (sim.edit, sim.filter) = (None, None);
    let before = sim.frames[1];
    assert!(sim.run_until(121 * SECOND, |sim| sim.frames[1] > before));
    let (start, mut got) = (sim.now, 0);
    assert!(sim.run_until(SECOND, |sim| {
        got = drain(&mut sim.stacks[1], s, got).0;
        got == 14_480
    }));
    assert!(sim.now - start < 10 * MS, "{}", sim.now - start);
}

/// Makes frames of either side look as if nobody spoke of timestamps.
fn no_timestamps(_: usize, frame: &mut [u8]) -> bool {
    let syn = frame[12..14] == [8, 0] && frame[23] == 6 && frame[47] & 2 != 0;
    let at = frame.windows(2).position(|w| w == [8, 10]).filter(|at| syn && *at >= 54);
    if let Some(at) = at {
        frame[at..at + 10].fill(1);
    }
    at.is_some()
}

/// Segments that are acknowledged only after the timeout are all sent twice, so that none of them can be timed; the timeout must grow nevertheless.
#[test]
fn a_longer_path_is_learned_from_what_was_sent_twice() {
    for edit in [None, Some(no_timestamps as Edit)] {
        let mut sim = Sim::new(41);
        sim.delay = 100 * MS;
        sim.edit = edit;
        let (c, s) = sim.pair(80);
        transfer_and_back(&mut sim, c, s, 20_000_000);
        sim.delay = 400 * MS;
        let took = transfer_and_back(&mut sim, c, s, 20_000_000);
        sim.run(5 * SECOND);
        let info = sim.stacks[0].tcp_info(c).unwrap();
        assert!(info.rto_us > 800_000 && took < 15 * SECOND, "{} {info:?}", took / MS);
        // And from then on nothing is sent twice.
        transfer_and_back(&mut sim, c, s, 5_000_000);
        let after = sim.stacks[0].tcp_info(c).unwrap();
        assert_eq!(after.retransmits, info.retransmits);
    }
}

/// A pair on a path of that many ms, one way, on which the variance of the round trip has settled.
fn settled(seed: u64, delay: u64) -> (Sim, Handle, Handle) {
    let mut sim = Sim::new(seed);
    sim.delay = delay * MS;
    let (c, s) = sim.pair(80);
    for _ in 0..2 {
        transfer_and_back(&mut sim, c, s, 20_000_000);
    }
    sim.run(SECOND);
    (sim, c, s)
}

/// The timeout leaves room for a delayed acknowledgement on a long path too, on which the variance has settled.
#[test]
fn a_delayed_acknowledgement_is_waited_for_on_a_long_path() {
    for delay in [80, 150] {
        let (mut sim, c, _) = settled(42, delay);
        let before = sim.stacks[0].tcp_info(c).unwrap();
        assert!(before.rto_us >= before.rtt_us + 200_000, "{before:?}");
        sim.stacks[0].send(c, &[b"ping"]).unwrap();
        sim.run(SECOND);
        let after = sim.stacks[0].tcp_info(c).unwrap();
        assert_eq!(after.retransmits, before.retransmits, "{delay}");
        assert!(after.congestion_window >= 10 * 1448, "{delay} {after:?}");
    }
}

/// A retransmission in fast recovery has a whole timeout to be acknowledged, not what the lost segment has left of its own.
#[test]
fn a_fast_retransmission_has_time_to_arrive() {
    for delay in [80, 150] {
        let (mut sim, c, s) = settled(43, delay);
        let before = sim.stacks[0].tcp_info(c).unwrap();
        let mut count = 0;
        sim.filter = Some(Box::new(move |side, frame| {
            count += u32::from(side == 0 && frame.len() > 1000);
            side == 0 && frame.len() > 1000 && count == 1
        }));
        for len in [1, 3] {
            sim.stacks[0].send(c, &[&pattern(0, len * 1448)]).unwrap();
            sim.run(150 * MS);
        }
        sim.run(SECOND);
        assert_eq!(drain_all(&mut sim.stacks[1], s), 4 * 1448);
        let after = sim.stacks[0].tcp_info(c).unwrap();
        assert_eq!(after.retransmits, before.retransmits + 1, "{delay} {after:?}");
        assert!(after.congestion_window > 2 * 1448, "{delay} {after:?}");
    }
}

/// Sends `segments` full segments from side 0, of which those with these numbers are lost; retransmissions count on. How long until the last byte
/// was there, ms, and how many segments that took.
fn burst(sim: &mut Sim, (c, s): (Handle, Handle), segments: usize, lost: &'static [usize]) -> (u64, usize) {
    let count = std::rc::Rc::new(std::cell::Cell::new(0));
    let counter = count.clone();
    sim.filter = Some(Box::new(move |side, frame| {
        let data = side == 0 && frame.len() > 1000;
        counter.set(counter.get() + usize::from(data));
        data && lost.contains(&counter.get())
    }));
    let (start, total) = (sim.now, segments * 1448);
    assert_eq!(sim.stacks[0].send(c, &[&pattern(0, total)]), Ok(total));
    let mut got = 0;
    assert!(sim.run_until(10 * SECOND, |sim| {
        got += drain_all(&mut sim.stacks[1], s);
        got == total
    }));
    let took = (sim.now - start) / MS;
    sim.run(SECOND);
    sim.filter = None;
    (took, count.get())
}

/// A pair that knows its round trip of 1 ms.
fn warm(seed: u64) -> (Sim, (Handle, Handle)) {
    let mut sim = Sim::new(seed);
    let (c, s) = sim.pair(80);
    transfer_and_back(&mut sim, c, s, 200_000);
    sim.run(100 * MS);
    (sim, (c, s))
}

/// Too few arrive behind the hole for a fast retransmission, and a probe of the tail would tell nothing new.
#[test]
fn a_lost_segment_near_the_tail_costs_no_timeout() {
    for lost in [&[8][..], &[9], &[8, 9], &[7, 9]] {
        let (mut sim, pair) = warm(44);
        let (took, sent) = burst(&mut sim, pair, 10, lost);
        assert!(took <= 60, "{lost:?}: {took} ms");
        assert_eq!(sent, 10 + lost.len(), "{lost:?}");
    }
}

/// The acknowledgement of the first hole's retransmission ends before the second hole, behind which nothing has arrived.
#[test]
fn recovery_goes_on_without_news_from_behind() {
    for lost in [&[1, 10][..], &[1, 9, 10], &[5, 10]] {
        let (mut sim, pair) = warm(45);
        let (took, sent) = burst(&mut sim, pair, 10, lost);
        assert!(took <= 50, "{lost:?}: {took} ms");
        assert_eq!(sent, 10 + lost.len(), "{lost:?}");
    }
}

/// What is sent again after a timeout and lost again begins no fast recovery (RFC 6675 §5.1), and counts once for the threshold (RFC 5681 §3.1).
#[test]
fn after_a_timeout_nothing_counts_as_lost_twice() {
    // Three holes, and their first retransmissions; and what goes out for the third hole after the timeout.
    let thresholds = [&[3, 6, 9, 21, 22, 23][..], &[3, 6, 9, 21, 22, 23, 26]].map(|lost| {
        let (mut sim, pair) = warm(46);
        let (_, sent) = burst(&mut sim, pair, 20, lost);
        assert_eq!(sent, 20 + lost.len());
        sim.stacks[0].tcp_info(pair.0).unwrap().slow_start_threshold
    });
    assert_eq!(thresholds[0], thresholds[1]);
}

/// A short answer that is lost does not make forget what the path carries.
#[test]
fn a_lost_short_answer_leaves_the_threshold() {
    let mut sim = Sim::new(47);
    sim.delay = 50 * MS;
    let (c, s) = sim.pair(80);
    transfer_and_back(&mut sim, c, s, 5_000_000);
    sim.run(250 * MS);
    let before = sim.stacks[0].tcp_info(c).unwrap();
    // And the probe for it.
    let mut lost = 0;
    sim.filter = Some(Box::new(move |side, frame| {
        let answer = side == 0 && frame.len() > 100;
        lost += u32::from(answer);
        answer && lost <= 2
    }));
    sim.stacks[0].send(c, &[&[1; 100]]).unwrap();
    sim.run(SECOND);
    assert_eq!(drain_all(&mut sim.stacks[1], s), 100);
    let after = sim.stacks[0].tcp_info(c).unwrap();
    assert_eq!(after.congestion_window, 1448, "a timeout: {after:?}");
    assert!(after.slow_start_threshold >= before.congestion_window / 2, "{before:?} {after:?}");
}

/// A server knows the round trip from its SYN-ACK, with and without timestamps.
#[test]
fn a_lost_first_answer_costs_no_second() {
    for edit in [None, Some(no_timestamps as Edit)] {
        let mut sim = Sim::new(48);
        sim.delay = 50 * MS;
        sim.edit = edit;
        let (c, s) = sim.pair(80);
        let rtt = sim.stacks[1].tcp_info(s).unwrap().rtt_us;
        assert!((100_000..=101_000).contains(&rtt), "{rtt}");
        let mut lost = 0;
        sim.filter = Some(Box::new(move |side, frame| {
            lost += u32::from(side == 1 && frame.len() > 500);
            side == 1 && frame.len() > 500 && lost == 1
        }));
        let start = sim.now;
        sim.stacks[1].send(s, &[&[1; 500]]).unwrap();
        assert!(sim.run_until(5 * SECOND, |sim| drain_all(&mut sim.stacks[0], c) == 500));
        assert!(sim.now - start < 400 * MS, "{}", (sim.now - start) / MS);
    }
    // An answer that was sent twice is not timed, but tells the round trip if it has a timestamp.
    for (edit, least, most) in [(None, 100_000, 101_000), (Some(no_timestamps as Edit), 0, 0)] {
        let mut sim = Sim::new(49);
        sim.delay = 50 * MS;
        sim.edit = edit;
        let mut lost = 0;
        sim.filter = Some(Box::new(move |side, frame| {
            let answer = side == 1 && frame[12..14] == [8, 0] && frame[47] == 0x12;
            lost += u32::from(answer);
            answer && lost == 1
        }));
        let (_, s) = sim.pair(80);
        let rtt = sim.stacks[1].tcp_info(s).unwrap().rtt_us;
        assert!((least..=most).contains(&rtt), "{rtt}");
    }
}

/// After a timeout we go on from the start, but the peer may have it all.
#[test]
fn a_reset_is_heard_after_a_timeout() {
    let (mut sim, (c, s)) = warm(50);
    // No acknowledgement comes back, and nothing arrives twice: that would be answered, and the answer with a reset.
    let mut count = 0;
    sim.filter = Some(Box::new(move |side, _| {
        count += u32::from(side == 0);
        side == 1 || count > 4
    }));
    sim.stacks[0].send(c, &[&[1; 5000]]).unwrap();
    assert!(sim.run_until(10 * SECOND, |sim| sim.stacks[0].tcp_info(c).unwrap().retransmits > 1));
    sim.filter = None;
    sim.stacks[0].abort(c);
    sim.run(SECOND);
    assert_eq!(sim.stacks[1].take_error(s), Some(Error::ConnectionReset));
}

/// Whoever sends a little now and then does not put off the timeout for ever.
#[test]
fn a_trickle_of_data_does_not_delay_the_timeout() {
    let (mut sim, (c, _)) = warm(51);
    let options = TcpOptions { nodelay: true, ..sim.stacks[0].tcp_options(c).unwrap() };
    sim.stacks[0].set_tcp_options(c, options).unwrap();
    sim.filter = Some(Box::new(|_, _| true));
    for _ in 0..10 {
        sim.stacks[0].send(c, &[b"drop"]).unwrap();
        sim.run(30 * MS);
    }
    assert!(sim.stacks[0].tcp_info(c).unwrap().retransmits >= 1);
}

/// Peers that know no timestamps, or no SACK either, get everything over a bad link.
#[test]
fn survives_loss_without_options() {
    let no_options: Edit = |side, frame| {
        let edited = no_timestamps(side, frame);
        let sack = frame.windows(2).position(|w| w == [4, 2]).filter(|at| edited && *at >= 54);
        if let Some(at) = sack {
            frame[at..at + 2].fill(1);
        }
        edited
    };
    for (seed, edit) in [no_timestamps as Edit, no_options].into_iter().cycle().take(8).enumerate() {
        let mut sim = Sim::new(60 + seed as u64);
        sim.edit = Some(edit);
        let (c, s) = sim.pair(80);
        sim.faults = Faults { drop: if seed < 6 { 30 } else { 150 }, ..Faults::default() };
        let total = if seed < 6 { 1_000_000 } else { 50_000 };
        let time = transfer(&mut sim, 0, c, s, total, 900 * SECOND);
        println!("{seed}: {} ms", time / MS);
    }
}

/// Whoever has long sent nothing gives nothing up, because nothing is due to it: the first that it sends finds the next hop's address unknown.
#[test]
fn long_silence_is_no_timeout() {
    // It only receives.
    let mut sim = Sim::new(70);
    let (c, s) = sim.pair(80);
    for round in 0..8 {
        sim.run(200 * SECOND);
        sim.forget_neighbour();
        sim.stacks[1].send(s, &[b"hello"]).unwrap();
        sim.run(10 * SECOND);
        assert_eq!(drain_all(&mut sim.stacks[0], c), 5, "round {round}");
        assert_eq!(sim.stacks[0].tcp_info(c).unwrap().state, TcpState::Established, "round {round}");
    }
    // A keep-alive probe.
    let options = sim.stacks[0].tcp_options(c).unwrap();
    let keep_alive = Some(KeepAlive { idle: 1000, interval: 75, count: 9 });
    sim.stacks[0].set_tcp_options(c, TcpOptions { keep_alive, ..options }).unwrap();
    sim.run(900 * SECOND);
    sim.forget_neighbour();
    sim.run(200 * SECOND);
    assert_eq!(sim.stacks[0].take_error(c), None);
    sim.stacks[0].set_tcp_options(c, options).unwrap();
    // Data, of which the first question for the address is lost.
    sim.run(1000 * SECOND);
    sim.forget_neighbour();
    let mut questions = 0;
    sim.filter = Some(Box::new(move |side, f| {
        questions += u32::from(side == 0 && f[12..14] == [8, 6]);
        questions == 1
    }));
    sim.stacks[0].send(c, &[b"hello"]).unwrap();
    sim.run(5 * SECOND);
    assert_eq!(sim.stacks[0].take_error(c), None);
    assert_eq!(drain_all(&mut sim.stacks[1], s), 5);
}

/// A peer that never answers after a silence still ends the connection, in its time.
#[test]
fn a_next_hop_that_is_gone_is_a_timeout() {
    let mut sim = Sim::new(71);
    let (c, _) = sim.pair(80);
    sim.run(200 * SECOND);
    sim.forget_neighbour();
    let options = sim.stacks[0].tcp_options(c).unwrap();
    sim.stacks[0].set_tcp_options(c, TcpOptions { user_timeout: 30_000, ..options }).unwrap();
    sim.filter = Some(Box::new(|_, _| true));
    sim.stacks[0].send(c, &[b"hello"]).unwrap();
    let start = sim.now;
    assert!(sim.run_until(200 * SECOND, |sim| sim.stacks[0].readiness(c).contains(Ready::ERROR)));
    assert_eq!(sim.stacks[0].take_error(c), Some(Error::TimedOut));
    assert!((30..100).contains(&((sim.now - start) / SECOND)), "{} s", (sim.now - start) / SECOND);
}

/// What is held back for more waits 200 ms, however long the path is, and whatever time has passed before.
#[test]
fn a_held_back_segment_waits_for_a_moment() {
    let mut sim = Sim::new(72);
    sim.delay = 150 * MS;
    let (c, s) = sim.pair(80);
    let options = TcpOptions { user_timeout: 30_000, ..sim.stacks[0].tcp_options(c).unwrap() };
    sim.stacks[0].set_tcp_options(c, options).unwrap();
    for _ in 0..3 {
        sim.run(60 * SECOND);
        let start = sim.now;
        sim.stacks[0].send_more(c, &[b"hello"]).unwrap();
        assert!(sim.run_until(10 * SECOND, |sim| sim.stacks[1].tcp_info(s).unwrap().receive_queue > 0));
        assert_eq!((sim.now - start) / MS - 150, 200);
        assert_eq!(drain_all(&mut sim.stacks[1], s), 5);
        assert_eq!(sim.stacks[0].tcp_info(c).unwrap().retransmits, 0);
    }
}

/// The moment for what is held back is no timeout for what goes out before it is over.
#[test]
fn more_that_comes_in_time_is_sent_once() {
    let mut sim = Sim::new(74);
    sim.delay = 150 * MS;
    let (c, s) = sim.pair(80);
    sim.stacks[0].send_more(c, &[b"hello"]).unwrap();
    sim.run(MS);
    sim.stacks[0].send(c, &[&[7; 10_000]]).unwrap();
    sim.run(2 * SECOND);
    assert_eq!(drain_all(&mut sim.stacks[1], s), 10_005);
    assert_eq!(sim.stacks[0].tcp_info(c).unwrap().retransmits, 0);
}

/// A window that has been closed for long without anything to send: the peer has all its time when there is.
#[test]
fn a_closed_window_is_no_timeout() {
    let mut sim = Sim::new(73);
    let (c, s) = sim.pair(80);
    let mut sent = 0;
    sim.run_until(5 * SECOND, |sim| {
        sent = feed(&mut sim.stacks[0], c, sent, 65_416);
        false
    });
    let info = sim.stacks[1].tcp_info(s).unwrap();
    assert!(info.receive_queue == 65_416 && info.receive_window < 128, "{info:?}");
    sim.run(1000 * SECOND);
    sim.stacks[0].send(c, &[b"hello"]).unwrap();
    sim.run(5 * SECOND);
    assert_eq!(sim.stacks[0].take_error(c), None);
    assert_eq!(drain_all(&mut sim.stacks[1], s), 65_416);
    sim.run(130 * SECOND);
    assert_eq!(drain_all(&mut sim.stacks[1], s), 5);
}

/// Data that comes out of order, and then the acknowledgement of what came before it: the window in that is the newer one.
#[test]
fn a_window_is_not_older_than_its_acknowledgement() {
    let mut sim = Sim::new(74);
    let (c, s) = sim.pair(80);
    let options = TcpOptions { receive_buffer: Some(65_535), ..sim.stacks[1].tcp_options(s).unwrap() };
    sim.stacks[1].set_tcp_options(s, options).unwrap();
    transfer_and_back(&mut sim, c, s, 2_000_000);
    sim.run(50 * MS);
    let over = std::rc::Rc::new(std::cell::Cell::new(0));
    let (seen, mut edge, mut first, mut seconds, mut again) = (over.clone(), None, None, 0, false);
    sim.filter = Some(Box::new(move |side, f| {
        if f[12..14] != [8, 0] {
            return false;
        }
        let word = |at: usize| u32::from_be_bytes(f[at..at + 4].try_into().unwrap());
        if side == 0 {
            let beyond =
                word(38).wrapping_add(f.len() as u32 - 66).wrapping_sub(edge.unwrap_or(word(38) + 65_535)) as i32;
            seen.set(seen.get().max(if f.len() > 100 { beyond } else { 0 }));
            return false;
        }
        edge = Some(word(42).wrapping_add((word(46) & 0xffff) << 7));
        let data = f.len() > 1000;
        // Of what side 1 sends, the second segment arrives, and then the first, which comes again and has the first acknowledgement.
        match (data, first) {
            (true, None) => first = Some(word(38)),
            (true, Some(seq)) if seq == word(38) => again = true,
            (true, Some(_)) if seconds == 0 => {
                seconds = 1;
                return false;
            }
            _ => {}
        }
        !again
    }));
    sim.stacks[1].send(s, &[&[7; 2 * 1448]]).unwrap();
    let sent = feed(&mut sim.stacks[0], c, 2_000_000, 2_120_000);
    sim.run(5 * SECOND);
    assert_eq!(drain_all(&mut sim.stacks[0], c), 2 * 1448);
    assert_eq!(over.get(), 0, "bytes beyond the window");
    // And all of it arrives.
    let mut got = 2_000_000;
    assert!(sim.run_until(10 * SECOND, |sim| {
        got = drain(&mut sim.stacks[1], s, got).0;
        got == sent
    }));
}

/// FIN waits for a window as data does: else what the sender acknowledges later lies beyond the window and is ignored. It comes with the window, or as a
/// probe.
#[test]
fn fin_waits_for_a_window() {
    for reads in [false, true] {
        let mut sim = Sim::new(75);
        let (c, s) = sim.pair(80);
        assert_eq!(feed(&mut sim.stacks[0], c, 0, 65_416), 65_416);
        sim.run(SECOND);
        assert!(sim.stacks[1].tcp_info(s).unwrap().receive_window < 128);
        let has_fin = |sim: &Sim| sim.stacks[1].readiness(s).contains(Ready::READ_CLOSED);
        sim.stacks[0].shutdown(c, Shutdown::Write).unwrap();
        sim.run(100 * MS);
        assert!(!has_fin(&sim));
        if reads {
            assert_eq!(drain(&mut sim.stacks[1], s, 0), (65_416, false));
            sim.run(10 * MS);
        } else {
            sim.run(SECOND);
        }
        assert!(has_fin(&sim), "reads: {reads}");
        assert_eq!(sim.stacks[0].tcp_info(c).unwrap().state, TcpState::FinWait2);
    }
}

/// A peer may refuse FIN as a probe; what we acknowledge meanwhile must not lie behind it, beyond the window.
#[test]
fn a_fin_beyond_the_window_takes_no_acknowledgement_with_it() {
    let mut sim = Sim::new(77);
    // Without a scale the window can be filled to the last byte.
    sim.edit = Some(|_, f| {
        let syn = f[12..14] == [8, 0] && f[23] == 6 && f[47] & 2 != 0;
        let scale = f.windows(3).position(|w| w == [3, 3, 7]).filter(|at| syn && *at >= 54);
        scale.map(|at| f[at..at + 3].fill(1)).is_some()
    });
    let (c, s) = sim.pair(80);
    let mut sent = 0;
    sim.run_until(5 * SECOND, |sim| {
        sent = feed(&mut sim.stacks[0], c, sent, 65_535);
        false
    });
    assert_eq!(sim.stacks[1].tcp_info(s).unwrap().receive_window, 0);
    sim.filter = Some(Box::new(|side, f| side == 0 && f[12..14] == [8, 0] && f[23] == 6 && f[47] & 1 != 0));
    sim.stacks[0].shutdown(c, Shutdown::Write).unwrap();
    sim.run(5 * SECOND);
    sim.stacks[1].send(s, &[b"hello"]).unwrap();
    sim.run(150 * MS);
    let info = sim.stacks[1].tcp_info(s).unwrap();
    assert_eq!((info.send_queue, info.retransmits), (0, 0));
}

/// A probe is looked at by nobody; what is due at the same time is sent as well: an acknowledgement, or that the window is open.
#[test]
fn a_probe_takes_nothing_with_it() {
    for updates_window in [true, false] {
        let mut sim = Sim::new(76);
        let (c, s) = sim.pair(80);
        let mut sent = 0;
        sim.run_until(100 * SECOND, |sim| {
            sent = feed(&mut sim.stacks[0], c, sent, 10_000_000);
            false
        });
        // Nothing but side 0's probe of the window is due, and that in some seconds.
        let due = |sim: &Sim| sim.stacks[0].deadline().unwrap_or(0);
        assert!(sim.run_until(300 * SECOND, |sim| due(sim) > sim.now + 10 * SECOND));
        let due = due(&sim);
        if updates_window {
            // Side 1's keep-alive probe is due in the moment in which its owner reads.
            sim.run(due - sim.now - 2 * SECOND);
            let (before, _) = drain(&mut sim.stacks[1], s, 0);
            let keep_alive = Some(KeepAlive { idle: 1, interval: 10, count: 9 });
            let options = TcpOptions { keep_alive, ..sim.stacks[1].tcp_options(s).unwrap() };
            sim.stacks[1].set_tcp_options(s, options).unwrap();
            sim.run(10 * MS);
            assert!(drain(&mut sim.stacks[1], s, before).0 > before);
        } else {
            // Data arrives 1 ms before the probe of side 1's window.
            sim.run(due - sim.now - 2 * MS);
            sim.stacks[1].send(s, &[b"hello"]).unwrap();
            sim.run(60 * MS);
            let info = sim.stacks[1].tcp_info(s).unwrap();
            assert_eq!((info.send_queue, info.retransmits), (0, 0));
        }
    }
}

/// Acknowledgements that get lost tell nothing of the path: what is sent again is acknowledged with its own timestamp, not with that of the first time.
#[test]
fn lost_acknowledgements_do_not_lengthen_the_timeout() {
    // Until before the tail loss probe, and until before the timeout.
    for (segments, deaf) in [(1, 40), (10, 40), (1, 150), (10, 150)] {
        let (mut sim, c, s) = settled(57, 10);
        let before = sim.stacks[0].tcp_info(c).unwrap();
        let mut got = 40_000_000;
        for _ in 0..20 {
            assert_eq!(sim.stacks[0].send(c, &[&pattern(got, segments * 1448)]), Ok(segments * 1448));
            sim.filter = Some(Box::new(|side, _| side == 1));
            sim.run(deaf * MS);
            sim.filter = None;
            assert!(sim.run_until(300 * SECOND, |sim| sim.stacks[0].tcp_info(c).unwrap().send_queue == 0));
            got = drain(&mut sim.stacks[1], s, got).0;
        }
        let after = sim.stacks[0].tcp_info(c).unwrap();
        assert!(after.rto_us < 2 * before.rto_us, "{segments} {deaf} {before:?} {after:?}");
    }
}

/// The same of the SYN-ACK.
#[test]
fn a_lost_answer_to_a_syn_does_not_lengthen_the_timeout() {
    let mut sim = Sim::new(58);
    sim.delay = 10 * MS;
    sim.listen(1, 80, 8);
    let c = sim.connect(0, at(2, 80));
    let mut lost = false;
    sim.filter = Some(Box::new(move |side, f| {
        side == 1 && f[12..14] == [8, 0] && f[23] == 6 && !std::mem::replace(&mut lost, true)
    }));
    assert!(sim.run_until(10 * SECOND, |sim| sim.stacks[0].readiness(c).contains(Ready::WRITABLE)));
    let info = sim.stacks[0].tcp_info(c).unwrap();
    assert!((20_000..50_000).contains(&info.rtt_us), "{info:?}");
}

/// After a pause nothing is known of the path, also if there was something to acknowledge meanwhile (RFC 5681 §4.1).
#[test]
fn a_window_is_not_used_whole_after_a_pause() {
    let (mut sim, c, s) = settled(59, 10);
    assert!(sim.stacks[0].tcp_info(c).unwrap().congestion_window > 100 * 1448);
    for _ in 0..50 {
        sim.stacks[1].send(s, &[b"hello"]).unwrap();
        sim.run(100 * MS);
        drain_all(&mut sim.stacks[0], c);
    }
    let before = sim.frames[0];
    assert_eq!(sim.stacks[0].send(c, &[&pattern(0, 100_000)]), Ok(100_000));
    sim.flush();
    assert_eq!(sim.frames[0] - before, 10);
}
