//! Sockets that share a port (SO_REUSEPORT).

mod sim;

use donjon_net::*;
use sim::*;
use std::collections::BTreeMap;
use std::net::SocketAddr;

const SHARED: BindOptions = BindOptions { reuse_addr: false, reuse_port: true, v6_only: false };

fn listener(sim: &mut Sim, port: u16) -> Handle {
    let s = &mut sim.stacks[1];
    let l = s.tcp_socket(Domain::V4).unwrap();
    s.bind(l, at(2, port), SHARED).unwrap();
    s.listen(l, 1000).unwrap();
    l
}

/// Takes what the listener has: the peers.
fn accept_all(sim: &mut Sim, l: Handle) -> Vec<SocketAddr> {
    std::iter::from_fn(|| sim.stacks[1].accept(l).ok()).map(|(_, peer)| peer).collect()
}

#[test]
fn connections_are_spread_over_listeners_that_share_a_port() {
    let mut sim = Sim::new(40);
    let listeners: Vec<Handle> = (0..4).map(|_| listener(&mut sim, 80)).collect();
    for _ in 0..400 {
        sim.connect(0, at(2, 80));
    }
    sim.run(SECOND);
    let got: Vec<usize> = listeners.iter().map(|&l| accept_all(&mut sim, l).len()).collect();
    assert_eq!(got.iter().sum::<usize>(), 400);
    // 100 each, with a deviation of 9; the stack's key and ports are the same in every run.
    assert!(got.iter().all(|n| (60..=140).contains(n)), "{got:?}");
}

#[test]
fn a_port_is_shared_only_by_those_that_all_want_it() {
    let mut sim = Sim::new(41);
    listener(&mut sim, 80);
    let s = &mut sim.stacks[1];
    let bind = |s: &mut Stack, to: &str, options| {
        let h = s.tcp_socket(Domain::V4).unwrap();
        s.bind(h, to.parse().unwrap(), options).map(|()| h)
    };
    let reuse_addr = BindOptions { reuse_addr: true, ..BindOptions::default() };
    for options in [BindOptions::default(), reuse_addr] {
        assert_eq!(bind(s, "10.0.0.2:80", options), Err(Error::AddressInUse));
        assert_eq!(bind(s, "0.0.0.0:80", options), Err(Error::AddressInUse));
    }
    bind(s, "0.0.0.0:80", SHARED).unwrap();
    // Bound alike thanks to SO_REUSEADDR, but only one may listen.
    let (a, b) = (bind(s, "0.0.0.0:81", reuse_addr).unwrap(), bind(s, "0.0.0.0:81", reuse_addr).unwrap());
    assert_eq!((s.listen(a, 1), s.listen(b, 1)), (Ok(()), Err(Error::AddressInUse)));
}

#[test]
fn a_peer_keeps_its_socket_when_others_come_and_go() {
    let mut sim = Sim::new(42);
    // The neighbours know each other, so that no datagram waits for that.
    sim.pair(80);
    let bind = |sim: &mut Sim| {
        let s = &mut sim.stacks[1];
        let h = s.udp_socket(Domain::V4).unwrap();
        s.bind(h, at(2, 53), SHARED).unwrap();
        h
    };
    let mut servers: Vec<Handle> = (0..4).map(|_| bind(&mut sim)).collect();
    let peers: Vec<Handle> = (0..200).map(|_| sim.stacks[0].udp_socket(Domain::V4).unwrap()).collect();
    // Peer and server of every datagram.
    let round = |sim: &mut Sim, servers: &[Handle]| {
        let mut got = BTreeMap::new();
        for &p in &peers {
            sim.stacks[0].send_to(p, &[b"x"], Some(at(2, 53)), None).unwrap();
        }
        sim.run(100 * MS);
        for (i, &h) in servers.iter().enumerate() {
            while let Ok(d) = sim.stacks[1].recv_from(h, &mut [&mut [0; 1]], RecvMode::Take) {
                assert_eq!(got.insert(d.from, i), None);
            }
        }
        assert_eq!(got.len(), peers.len());
        got
    };
    let first = round(&mut sim, &servers);
    for i in 0..4 {
        let n = first.values().filter(|&&s| s == i).count();
        assert!((25..=80).contains(&n), "server {i}: {n} of 200");
    }
    assert_eq!(round(&mut sim, &servers), first);
    // Another one takes some peers of each, and when it goes they are back where they were.
    servers.push(bind(&mut sim));
    let second = round(&mut sim, &servers);
    assert!(second.iter().all(|(peer, &s)| s == 4 || first[peer] == s));
    assert!(second.values().filter(|&&s| s == 4).count() > 10);
    sim.stacks[1].close(servers.pop().unwrap());
    assert_eq!(round(&mut sim, &servers), first);
}

#[test]
fn a_closer_address_comes_before_sharing() {
    let mut sim = Sim::new(43);
    let near = listener(&mut sim, 80);
    let s = &mut sim.stacks[1];
    let far = s.tcp_socket(Domain::V4).unwrap();
    s.bind(far, "0.0.0.0:80".parse().unwrap(), SHARED).unwrap();
    s.listen(far, 1000).unwrap();
    for _ in 0..50 {
        sim.connect(0, at(2, 80));
    }
    sim.run(SECOND);
    assert_eq!((accept_all(&mut sim, near).len(), accept_all(&mut sim, far).len()), (50, 0));
}
