//! Two stacks, a link between them that misbehaves on request, and a simulated clock. Everything is deterministic.
#![allow(dead_code, reason = "each test uses a part")]

use donjon_net::*;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000_000_000;

/// A small generator (xorshift*), seeded.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    pub fn chance(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.below(1000) < per_mille
    }
}

/// What the link does to frames, per mille.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    pub drop: u64,
    pub duplicate: u64,
    pub reorder: u64,
    pub truncate: u64,
    pub corrupt: u64,
}

/// Whether to drop a frame of that sender.
pub type Filter = Box<dyn FnMut(usize, &[u8]) -> bool>;

/// Whether it has changed a frame of that sender.
pub type Edit = fn(usize, &mut [u8]) -> bool;

pub struct Sim {
    pub now: u64,
    pub stacks: [Stack; 2],
    pub faults: Faults,
    pub delay: u64,
    /// Frames in flight by arrival time: (time, number) to (receiver, header, bytes).
    wire: BTreeMap<(u64, u64), (usize, NetHdr, Vec<u8>)>,
    number: u64,
    pub rng: Rng,
    /// Frames sent by each side.
    pub frames: [u64; 2],
    pub bytes: [u64; 2],
    /// Drops everything that this says yes to: sender, frame.
    pub filter: Option<Filter>,
    /// Changes frames whose checksum then counts as verified: sender, frame; whether it did.
    pub edit: Option<Edit>,
    pub log: bool,
    last_seq: [u32; 2],
    last_end: [u32; 2],
    /// What that side last acknowledged.
    pub last_ack: [u32; 2],
}

pub struct Collect(pub VecDeque<(NetHdr, Vec<u8>)>);

impl FrameSink for Collect {
    fn send(&mut self, header: NetHdr, head: &[u8], payload: &[&[u8]]) -> Sent {
        assert!(payload.len() <= 60);
        let mut bytes = head.to_vec();
        for p in payload {
            bytes.extend_from_slice(p);
        }
        assert!(bytes.len() <= 65_535 + 14, "{}", bytes.len());
        self.0.push_back((header, bytes));
        Sent::Done
    }
}

pub fn limits() -> Limits {
    Limits::for_memory(256 << 20)
}

pub fn config(n: u8) -> Config {
    Config {
        mac: [2, 0, 0, 0, 0, n],
        mtu: 1500,
        offload: Offload::default(),
        key: [n.wrapping_mul(37).wrapping_add(1); 32],
        limits: limits(),
        lasting: lasting(),
        any_ip: false,
        dhcp: false,
        slaac: false,
    }
}

pub fn ip(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

pub fn at(n: u8, port: u16) -> SocketAddr {
    SocketAddr::new(ip(n), port)
}

impl Sim {
    pub fn new(seed: u64) -> Sim {
        Sim::with(seed, config(1), config(2))
    }

    pub fn with(seed: u64, a: Config, b: Config) -> Sim {
        let mut stacks = [Stack::new(a, 0), Stack::new(b, 0)];
        for (i, s) in stacks.iter_mut().enumerate() {
            s.add_address(ip(i as u8 + 1), 24).unwrap();
            let v6 = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, i as u16 + 1]);
            s.add_address(v6, 64).unwrap();
        }
        Sim {
            now: 0,
            stacks,
            faults: Faults::default(),
            delay: MS / 2,
            wire: BTreeMap::new(),
            number: 0,
            rng: Rng(seed | 1),
            frames: [0; 2],
            bytes: [0; 2],
            filter: None,
            edit: None,
            log: false,
            last_seq: [0; 2],
            last_end: [0; 2],
            last_ack: [0; 2],
        }
    }

    /// Runs both stacks at this instant until neither sends.
    pub fn flush(&mut self) {
        for side in 0..2 {
            let mut out = Collect(VecDeque::new());
            self.stacks[side].output(self.now, &mut out);
            for (hdr, bytes) in out.0 {
                self.transmit(side, hdr, bytes);
            }
        }
    }

    fn transmit(&mut self, side: usize, mut hdr: NetHdr, mut bytes: Vec<u8>) {
        if self.edit.is_some_and(|edit| edit(side, &mut bytes)) {
            hdr.flags = donjon_abi::net_hdr::DATA_VALID;
        }
        self.frames[side] += 1;
        self.bytes[side] += bytes.len() as u64;
        if bytes.len() > 66 && bytes[12..14] == [8, 0] && bytes[23] == 6 {
            self.last_seq[side] = u32::from_be_bytes([bytes[38], bytes[39], bytes[40], bytes[41]]);
            self.last_ack[side] = u32::from_be_bytes([bytes[42], bytes[43], bytes[44], bytes[45]]);
            let len = bytes.len() - 34 - usize::from(bytes[46] >> 4) * 4;
            self.last_end[side] = self.last_seq[side].wrapping_add(len as u32);
        }
        if self.log {
            println!("{:>12} {side} -> {}", self.now / 1000, describe(&bytes));
        }
        if let Some(f) = &mut self.filter
            && f(side, &bytes)
        {
            return;
        }
        let f = self.faults;
        if self.rng.chance(f.drop) {
            return;
        }
        let copies = 1 + u64::from(self.rng.chance(f.duplicate));
        for _ in 0..copies {
            let mut time = self.now + self.delay;
            if self.rng.chance(f.reorder) {
                time += self.rng.below(4 * self.delay + 1);
            }
            let mut copy = if copies > 1 { bytes.clone() } else { std::mem::take(&mut bytes) };
            let mut hdr = hdr;
            if self.rng.chance(f.truncate) {
                let keep = self.rng.below(copy.len() as u64 + 1) as usize;
                copy.truncate(keep);
            }
            if self.rng.chance(f.corrupt) && !copy.is_empty() {
                let at = self.rng.below(copy.len() as u64) as usize;
                copy[at] ^= 1 << self.rng.below(8);
                hdr = NetHdr::default();
            }
            self.number += 1;
            self.wire.insert((time, self.number), (1 - side, hdr, copy));
        }
    }

    /// Advances to the next thing that happens; false if nothing ever will.
    pub fn step(&mut self) -> bool {
        self.flush();
        let next_wire = self.wire.keys().next().map(|k| k.0);
        let next = self.stacks.iter().filter_map(|s| s.deadline()).chain(next_wire).min();
        let Some(next) = next else { return false };
        self.now = self.now.max(next);
        while let Some((&key, _)) = self.wire.iter().next() {
            if key.0 > self.now {
                break;
            }
            let (to, hdr, bytes) = self.wire.remove(&key).unwrap();
            self.stacks[to].input(self.now, hdr, &bytes);
        }
        self.flush();
        true
    }

    /// Runs until `done` or `time` has passed; whether it was done.
    pub fn run_until(&mut self, time: u64, mut done: impl FnMut(&mut Sim) -> bool) -> bool {
        let end = self.now + time;
        loop {
            if done(self) {
                return true;
            }
            if self.now > end || !self.step() {
                self.flush();
                return done(self);
            }
        }
    }

    /// Runs for that long.
    pub fn run(&mut self, time: u64) {
        let end = self.now + time;
        loop {
            self.flush();
            let next_wire = self.wire.keys().next().map(|k| k.0);
            let next = self.stacks.iter().filter_map(|s| s.deadline()).chain(next_wire).min();
            match next {
                Some(n) if n <= end => {
                    self.step();
                }
                _ => break,
            }
        }
        self.now = end;
        self.flush();
    }

    pub fn listen(&mut self, side: usize, port: u16, backlog: u32) -> Handle {
        let s = &mut self.stacks[side];
        let l = s.tcp_socket(Domain::V4).unwrap();
        s.bind(
            l,
            SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port),
            BindOptions { reuse_addr: true, ..BindOptions::default() },
        )
        .unwrap();
        s.listen(l, backlog).unwrap();
        l
    }

    pub fn connect(&mut self, side: usize, to: SocketAddr) -> Handle {
        let s = &mut self.stacks[side];
        let c = s.tcp_socket(if to.is_ipv4() { Domain::V4 } else { Domain::V6 }).unwrap();
        s.connect(c, to).unwrap();
        c
    }

    /// A connected pair: (client on side 0, server on side 1).
    pub fn pair(&mut self, port: u16) -> (Handle, Handle) {
        let l = self.listen(1, port, 8);
        let c = self.connect(0, at(2, port));
        let mut server = None;
        assert!(self.run_until(60 * SECOND, |s| {
            server = server.or_else(|| s.stacks[1].accept(l).ok());
            server.is_some() && s.stacks[0].readiness(c).contains(Ready::WRITABLE)
        }));
        self.stacks[1].close(l);
        (c, server.unwrap().0)
    }

    /// After at least two minutes' silence: side 0 has asked for side 1's Ethernet address in vain until it forgot it. Side 1 is sure of side 0's.
    pub fn forget_neighbour(&mut self) {
        self.filter = Some(Box::new(|_, f| f[12..14] == [8, 6]));
        let u = self.stacks[0].udp_socket(Domain::V4).unwrap();
        self.stacks[0].send_to(u, &[b"x"], Some(at(2, 9)), None).unwrap();
        self.run(10 * SECOND);
        self.stacks[0].close(u);
        self.filter = None;
        self.stacks[1].input(self.now, NetHdr::default(), &arp_reply([2, 0, 0, 0, 0, 1], [10, 0, 0, 1]));
    }
}

/// Somebody on the link says to side 1 that he has that address.
pub fn arp_reply(mac: [u8; 6], ip: [u8; 4]) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 2];
    f.extend(mac);
    f.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    f.extend(mac);
    f.extend(ip);
    f.extend([2, 0, 0, 0, 0, 2, 10, 0, 0, 2]);
    f.resize(60, 0);
    f
}

/// One line about a frame.
pub fn describe(b: &[u8]) -> String {
    if b.len() < 54 || b[12..14] != [8, 0] || b[23] != 6 {
        return format!("{} bytes type {:02x?}", b.len(), b.get(12..14));
    }
    let ip_len = usize::from(u16::from_be_bytes([b[16], b[17]]));
    let t = &b[34..];
    let word = |i: usize| u32::from_be_bytes([t[i], t[i + 1], t[i + 2], t[i + 3]]);
    let flags: String = "FSRPA".chars().enumerate().map(|(i, c)| if t[13] >> i & 1 == 1 { c } else { '.' }).collect();
    format!(
        "{} > {} {flags} seq {} ack {} win {} len {}",
        u16::from_be_bytes([t[0], t[1]]),
        u16::from_be_bytes([t[2], t[3]]),
        word(4),
        word(8),
        u16::from_be_bytes([t[14], t[15]]),
        ip_len - 20 - usize::from(t[12] >> 4) * 4
    )
}

/// Bytes that are a function of their position.
/// The pattern's period: a prime, so that no two streams of a test are alike.
const PERIOD: u64 = 1_000_003;
/// Longest piece.
const PIECE_MAX: usize = 200_000;

/// The pattern from `from` on, in memory that lasts.
pub fn lasting_pattern(from: u64, len: usize) -> &'static [u8] {
    &lasting()[(from % PERIOD) as usize..][..len]
}

fn lasting() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let one = |i: u64| ((i % PERIOD).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        (0..PERIOD + PIECE_MAX as u64).map(one).collect()
    })
}

/// The same in memory of its own.
pub fn pattern(from: u64, len: usize) -> Vec<u8> {
    (0..len)
        .step_by(PIECE_MAX)
        .flat_map(|at| lasting_pattern(from + at as u64, (len - at).min(PIECE_MAX)))
        .copied()
        .collect()
}

/// Sends as much of the pattern as fits; returns the new position.
pub fn feed(s: &mut Stack, h: Handle, position: u64, total: u64) -> u64 {
    let mut position = position;
    while position < total {
        let len = (total - position).min(20_000) as usize;
        let chunk = pattern(position, len / 3);
        match s.send(h, &[&chunk, lasting_pattern(position + len as u64 / 3, len - len / 3)]) {
            Ok(n) => position += n as u64,
            Err(Error::WouldBlock) => break,
            Err(e) => panic!("send: {e:?}"),
        }
    }
    position
}

/// Receives what is there and compares it with the pattern; returns the new position and whether the stream has ended.
pub fn drain(s: &mut Stack, h: Handle, position: u64) -> (u64, bool) {
    let mut position = position;
    let mut buffer = vec![0; 30_000];
    loop {
        match s.recv(h, &mut [&mut buffer], RecvMode::Take) {
            Ok(0) => return (position, true),
            Ok(n) => {
                assert!(buffer[..n] == pattern(position, n)[..], "bytes differ from {position}");
                position += n as u64;
            }
            Err(Error::WouldBlock) => return (position, false),
            Err(e) => panic!("recv: {e:?}"),
        }
    }
}

/// Moves `total` bytes from `from` to the other side and closes; panics if it does not work within `time`.
pub fn transfer(sim: &mut Sim, side: usize, from: Handle, to: Handle, total: u64, time: u64) -> u64 {
    let start = sim.now;
    let (mut sent, mut got, mut shut) = (0, 0, false);
    let ok = sim.run_until(time, |s| {
        if !shut {
            sent = feed(&mut s.stacks[side], from, sent, total);
            if sent == total {
                s.stacks[side].shutdown(from, Shutdown::Write).unwrap();
                shut = true;
            }
        }
        let (n, end) = drain(&mut s.stacks[1 - side], to, got);
        got = n;
        end
    });
    assert!(
        ok && got == total,
        "{got} of {total} (sent {sent}) after {} ms\n{:?}\n{:?}",
        (sim.now - start) / MS,
        sim.stacks[side].tcp_info(from),
        sim.stacks[1 - side].tcp_info(to)
    );
    sim.now - start
}

impl Sim {
    /// The sequence number behind the last TCP segment with data that side sent.
    pub fn sequence_end(&self, side: usize) -> u32 {
        self.last_end[side]
    }

    /// And its own.
    pub fn sequence(&self, side: usize) -> u32 {
        self.last_seq[side]
    }
}

/// Sends `total` bytes over an open connection; how long it took.
pub fn transfer_and_back(sim: &mut Sim, c: Handle, s: Handle, total: u64) -> u64 {
    let start = sim.now;
    let (mut sent, mut got) = (0, 0);
    assert!(sim.run_until(60 * SECOND, |sim| {
        sent = feed(&mut sim.stacks[0], c, sent, total);
        got = drain(&mut sim.stacks[1], s, got).0;
        got == total
    }));
    sim.now - start
}

/// A SYN to port 80 of side 1, without a TCP checksum.
pub fn raw_syn(from: [u8; 4], port: u16, seq: u32) -> Vec<u8> {
    let mut f = vec![0; 54];
    f[..6].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    f[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    f[12..14].copy_from_slice(&[8, 0]);
    f[14] = 0x45;
    f[22] = 64;
    f[23] = 6;
    f[26..30].copy_from_slice(&from);
    f[30..34].copy_from_slice(&[10, 0, 0, 2]);
    sum_ipv4(&mut f);
    f[34..36].copy_from_slice(&port.to_be_bytes());
    f[36..38].copy_from_slice(&80u16.to_be_bytes());
    f[38..42].copy_from_slice(&seq.to_be_bytes());
    f[46] = 0x50;
    f[47] = 2;
    f[48..50].copy_from_slice(&[0xff, 0xff]);
    f
}

/// Sets length and checksum of an IPv4 header.
pub fn sum_ipv4(f: &mut [u8]) {
    let len = (f.len() - 14) as u16;
    f[16..18].copy_from_slice(&len.to_be_bytes());
    f[24..26].fill(0);
    let mut sum: u32 = (14..34).step_by(2).map(|i| u32::from(u16::from_be_bytes([f[i], f[i + 1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    f[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// Reads and forgets what is there; how many bytes.
pub fn drain_all(s: &mut Stack, h: Handle) -> usize {
    let mut n = 0;
    let mut b = [0; 4096];
    while let Ok(k) = s.recv(h, &mut [&mut b], RecvMode::Take)
        && k > 0
    {
        n += k;
    }
    n
}
