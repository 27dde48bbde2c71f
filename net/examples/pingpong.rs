//! Two stacks in one process, without a device: what the stack itself costs. `pingpong CONNECTIONS ROUNDS` exchanges requests of 100 bytes and answers of
//! 1 KB on every connection in turn, then moves 1 GB over one. Run it under `perf stat -e instructions:u` to compare versions on a busy machine.

use donjon_net::*;
use std::net::SocketAddr;
use std::time::Instant;

/// Hands frames to the other stack at once.
struct Cable(Vec<(NetHdr, Vec<u8>)>);

impl FrameSink for Cable {
    fn send(&mut self, header: NetHdr, head: &[u8], payload: &[&[u8]]) -> Sent {
        let mut f = Vec::with_capacity(head.len() + payload.iter().map(|p| p.len()).sum::<usize>());
        f.extend_from_slice(head);
        for p in payload {
            f.extend_from_slice(p);
        }
        self.0.push((header, f));
        Sent::Done
    }
}

fn exchange(stacks: &mut [Stack; 2], now: &mut u64) {
    loop {
        let mut any = false;
        for side in 0..2 {
            let mut cable = Cable(Vec::new());
            stacks[side].output(*now, &mut cable);
            for (hdr, f) in cable.0 {
                any = true;
                stacks[1 - side].input(*now, hdr, &f);
            }
        }
        *now += 1000;
        if !any {
            return;
        }
    }
}

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>().expect("a number"));
    let (connections, rounds) = (args.next().unwrap_or(1000), args.next().unwrap_or(200));
    let mut now = 0;
    let mut stacks = [1u8, 2].map(|n| {
        let config = Config {
            mac: [2, 0, 0, 0, 0, n],
            mtu: 1500,
            offload: Offload { tx_csum: true, tso4: true, tso6: true },
            key: [n; 32],
            limits: Limits::for_memory(1 << 30),
            lasting: &[],
            any_ip: false,
            dhcp: false,
            slaac: false,
        };
        let mut s = Stack::new(config, 0);
        s.add_address([10, 0, 0, n].into(), 24).expect("address");
        s
    });
    let to = SocketAddr::from(([10, 0, 0, 2], 80));
    let l = stacks[1].tcp_socket(Domain::V4).expect("socket");
    stacks[1].bind(l, to, BindOptions::default()).expect("bind");
    stacks[1].listen(l, 4096).expect("listen");
    let mut pairs = Vec::new();
    let start = Instant::now();
    for _ in 0..connections {
        let c = stacks[0].tcp_socket(Domain::V4).expect("socket");
        stacks[0].connect(c, to).expect("connect");
        exchange(&mut stacks, &mut now);
        let (s, _) = stacks[1].accept(l).expect("accept");
        pairs.push((c, s));
    }
    println!("{} ns to connect and accept", start.elapsed().as_nanos() / connections as u128);
    println!("{} bytes per idle connection, by the stack's own count", stacks[1].memory_used() / connections);
    let mut buffer = vec![0; 256 << 10];
    let start = Instant::now();
    for _ in 0..rounds {
        for (c, s) in &pairs {
            stacks[0].send(*c, &[&[1; 100]]).expect("send");
            exchange(&mut stacks, &mut now);
            assert_eq!(stacks[1].recv(*s, &mut [&mut buffer], RecvMode::Take), Ok(100));
            stacks[1].send(*s, &[&[2; 1024]]).expect("send");
            exchange(&mut stacks, &mut now);
            assert_eq!(stacks[0].recv(*c, &mut [&mut buffer], RecvMode::Take), Ok(1024));
            while stacks[0].next_event().is_some() {}
            while stacks[1].next_event().is_some() {}
        }
    }
    println!("{} ns per request and answer, both stacks", start.elapsed().as_nanos() / (connections * rounds) as u128);
    let (c, s) = pairs[0];
    let start = Instant::now();
    let mut got = 0;
    while got < 1 << 30 {
        let _ = stacks[0].send(c, &[&buffer[..128 << 10]]);
        exchange(&mut stacks, &mut now);
        let mut sink = vec![0; 128 << 10];
        while let Ok(n) = stacks[1].recv(s, &mut [&mut sink], RecvMode::Take) {
            got += n;
        }
    }
    println!("{:.2} GB/s", got as f64 / start.elapsed().as_nanos() as f64);
}
