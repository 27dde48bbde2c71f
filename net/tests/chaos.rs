//! Random owners on both sides of a bad link: streams stay right, nothing panics, and in the end nothing is left.

mod sim;

use donjon_net::*;
use sim::*;

struct Peer {
    side: usize,
    handle: Handle,
    sent: u64,
    got: u64,
    write_shut: bool,
    read_shut: bool,
    /// Which pattern it sends and expects: offset in the one pattern.
    out_base: u64,
    in_base: u64,
}

fn base(port: u16, from_client: bool) -> u64 {
    (u64::from(port) << 24) + if from_client { 1 << 44 } else { 0 }
}

fn chaos(seed: u64, faults: Faults, local: bool) {
    let tso = Offload { tx_csum: true, tso4: true, tso6: true };
    let offload = if seed.is_multiple_of(2) && faults.corrupt == 0 { tso } else { Offload::default() };
    let mut sim = Sim::with(seed, Config { offload, ..config(1) }, Config { offload, ..config(2) });
    sim.faults = faults;
    let mut rng = Rng(seed.wrapping_mul(77) | 1);
    let server_side = if local { 0 } else { 1 };
    let listener = sim.listen(server_side, 80, 8);
    let to = at(server_side as u8 + 1, 80);
    let mut peers: Vec<Peer> = Vec::new();
    let mut started = 0;
    for round in 0..3000u32 {
        if started < 60 && rng.chance(20) {
            let h = sim.connect(0, to);
            let port = sim.stacks[0].local_addr(h).unwrap().port();
            started += 1;
            peers.push(Peer {
                side: 0,
                handle: h,
                sent: 0,
                got: 0,
                write_shut: false,
                read_shut: false,
                out_base: base(port, true),
                in_base: base(port, false),
            });
        }
        if let Ok((h, peer)) = sim.stacks[server_side].accept(listener) {
            peers.push(Peer {
                side: server_side,
                handle: h,
                sent: 0,
                got: 0,
                write_shut: false,
                read_shut: false,
                out_base: base(peer.port(), false),
                in_base: base(peer.port(), true),
            });
        }
        let mut gone = Vec::new();
        for (i, p) in peers.iter_mut().enumerate() {
            let s = &mut sim.stacks[p.side];
            match rng.below(200) {
                0..40 => {
                    let most = if rng.chance(100) { 100_000 } else { 3000 };
                    let n = rng.below(most) as usize;
                    let data = pattern(p.out_base + p.sent, n);
                    let second = match rng.chance(500) {
                        true => lasting_pattern(p.out_base + p.sent + n as u64 / 2, n - n / 2),
                        false => &data[n / 2..],
                    };
                    match s.send(p.handle, &[&data[..n / 2], second]) {
                        Ok(k) => {
                            assert!(k <= n && !p.write_shut);
                            p.sent += k as u64;
                        }
                        Err(Error::WouldBlock) => {}
                        Err(Error::BrokenPipe) => {}
                        Err(Error::ConnectionReset | Error::TimedOut | Error::ConnectionRefused) => gone.push(i),
                        Err(e) => panic!("{e:?}"),
                    }
                }
                40..120 => {
                    let mut a = vec![0; rng.below(5000) as usize + 1];
                    let mut b = vec![0; rng.below(50_000) as usize];
                    match s.recv(p.handle, &mut [&mut a, &mut b], RecvMode::Take) {
                        Ok(n) => {
                            a.extend(&b);
                            assert!(
                                p.read_shut || a[..n] == pattern(p.in_base + p.got, n)[..],
                                "stream {seed} {round}"
                            );
                            p.got += n as u64;
                        }
                        Err(Error::WouldBlock) => {}
                        Err(Error::BrokenPipe) => gone.push(i),
                        Err(Error::ConnectionReset | Error::TimedOut | Error::ConnectionRefused) => gone.push(i),
                        Err(e) => panic!("{e:?}"),
                    }
                }
                120 if rng.chance(300) => {
                    let _ = s.shutdown(p.handle, Shutdown::Write);
                    p.write_shut |= s.tcp_info(p.handle).unwrap().state != TcpState::SynSent;
                }
                121 if rng.chance(50) => {
                    let _ = s.shutdown(p.handle, Shutdown::Read);
                    p.read_shut = true;
                }
                122 if rng.chance(200) => gone.push(i),
                123 if rng.chance(50) => {
                    s.abort(p.handle);
                    gone.push(i);
                }
                124 => {
                    let o = s.tcp_options(p.handle).unwrap();
                    let keep_alive = rng.chance(300).then_some(KeepAlive { idle: 1, interval: 1, count: 5 });
                    let receive_buffer = rng.chance(300).then_some(rng.below(100_000) as u32);
                    let options =
                        TcpOptions { nodelay: rng.chance(500), cork: rng.chance(200), keep_alive, receive_buffer, ..o };
                    s.set_tcp_options(p.handle, options).unwrap();
                }
                _ => {}
            }
        }
        gone.dedup();
        for i in gone.into_iter().rev() {
            let p = peers.remove(i);
            sim.stacks[p.side].close(p.handle);
            assert_eq!(sim.stacks[p.side].readiness(p.handle), Ready(0));
        }
        for s in &mut sim.stacks {
            while s.next_event().is_some() {}
        }
        if rng.chance(500) {
            sim.step();
        } else {
            sim.run(rng.below(3 * MS));
        }
    }
    for p in peers {
        sim.stacks[p.side].close(p.handle);
    }
    sim.stacks[server_side].close(listener);
    sim.run(1200 * SECOND);
    for s in &sim.stacks {
        assert_eq!((s.counts(), s.memory_used(), s.deadline()), ((0, 0, 0), 0, None));
    }
}

#[test]
fn owners_do_anything_over_a_good_link() {
    for seed in 1..5 {
        chaos(seed, Faults::default(), false);
    }
}

#[test]
fn owners_do_anything_over_a_bad_link() {
    for seed in 1..7 {
        let faults =
            Faults { drop: 30, duplicate: 30, reorder: 60, truncate: 5, corrupt: if seed > 3 { 10 } else { 0 } };
        chaos(seed, faults, false);
    }
}

#[test]
fn owners_do_anything_over_loopback() {
    for seed in 1..4 {
        chaos(seed, Faults::default(), true);
    }
}
