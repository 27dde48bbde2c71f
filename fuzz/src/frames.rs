//! The guest's peers: frames into the stack, while an application listens, accepts, reads, writes and closes, and time goes by.
//!
//! An input is a list of operations. Peers are real enough to keep connections open: they know what the stack acknowledged, and the input says by how
//! much they differ from it. The byte at sequence number `n` is `n` modulo 256 whoever sends it, so what an application reads must count up.

use crate::input::Input;
use crate::packet::{self, Collect, Pair, STACK_MAC, Seen, Segment};
use donjon_net::{
    BindOptions, Config, Domain, Handle, IpOptions, KeepAlive, Limits, NetHdr, Offload, Output, RecvMode, Shutdown,
    Stack, TcpOptions,
};
use std::net::{IpAddr, SocketAddr};

const PEER4: [u8; 4] = [10, 0, 0, 1];
const STACK4: [u8; 4] = [10, 0, 0, 2];
const PEER6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const STACK6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const SECOND: u64 = 1_000_000_000;
/// What the application sends without a copy.
static LASTING: [u8; 100_000] = [1; 100_000];
/// Most of what one input may do: enough for every state, and an end.
const OPS_MAX: u32 = 400;

/// The peer's side of a connection.
#[derive(Clone, Copy, Default)]
struct Peer {
    /// The stack's port.
    port: u16,
    /// What it would send next, and what it would acknowledge.
    seq: u32,
    ack: u32,
    v6: bool,
}

/// The application's side.
struct Owned {
    handle: Handle,
    /// The byte that comes next, once there was one.
    next: Option<u8>,
    /// What it reads need not count up: it was told to throw away, or the other end is no peer.
    unchecked: bool,
}

struct World {
    now: u64,
    stack: Stack,
    limits: Limits,
    peers: [Peer; 8],
    listeners: Vec<Handle>,
    owned: Vec<Owned>,
    udp: Handle,
    /// Frames that the device takes before it is full.
    room: Option<u32>,
    /// No frame has gone in whose checksum the stack was told not to look at.
    counted: bool,
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(input.u8());
    for _ in 0..OPS_MAX {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
        world.output();
        world.check();
    }
    world.end();
}

impl World {
    fn new(flags: u8) -> World {
        let limits = Limits {
            sockets: 24,
            memory: 512 << 10,
            half_open: 8,
            time_wait: 8,
            orphans: 8,
            neighbours: 8,
            send_buffer: 256 << 10,
            receive_buffer: 256 << 10,
        };
        let offload = Offload { tx_csum: flags & 1 != 0, tso4: flags & 3 == 3, tso6: flags & 3 == 3 };
        let mtu = if flags & 4 == 0 { 1500 } else { 1280 };
        let config = Config {
            mac: STACK_MAC,
            mtu,
            offload,
            key: [flags; 32],
            limits,
            lasting: &LASTING,
            any_ip: false,
            dhcp: false,
            slaac: false,
        };
        let mut stack = Stack::new(config, 0);
        stack.add_address(STACK4.into(), 24).expect("an address");
        stack.add_address(STACK6.into(), 64).expect("an address");
        stack.set_router(Domain::V4, Some([10, 0, 0, 1].into()));
        let udp = stack.udp_socket(Domain::V6).expect("a socket");
        stack.bind(udp, "[::]:53".parse().expect("an address"), BindOptions::default()).expect("a free port");
        let mut listeners = Vec::new();
        for (domain, address) in [(Domain::V4, "0.0.0.0:80"), (Domain::V6, "[::]:81")] {
            let l = stack.tcp_socket(domain).expect("a socket");
            stack.bind(l, address.parse().expect("an address"), BindOptions::default()).expect("a free port");
            stack.listen(l, 4).expect("a listener");
            listeners.push(l);
        }
        let mut peers = [Peer::default(); 8];
        for (i, p) in peers.iter_mut().enumerate() {
            *p = Peer { port: if i % 2 == 0 { 80 } else { 81 }, v6: i % 4 == 3, ..*p };
        }
        let mut world =
            World { now: 1, stack, limits, peers, listeners, owned: Vec::new(), udp, room: None, counted: true };
        world.output();
        world
    }

    fn pair(v6: bool) -> Pair {
        if v6 { Pair::V6(PEER6, STACK6) } else { Pair::V4(PEER4, STACK4) }
    }

    fn input(&mut self, frame: &[u8]) {
        self.stack.input(self.now, NetHdr::default(), frame);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let op = input.u8();
        let which = usize::from(op >> 5);
        match op & 31 {
            0..=2 => {
                let options = input.take(usize::from(op & 31) * 4);
                self.peers[which].seq = input.u16().into();
                self.segment(which, 2, 0, 0, 0xffff, options, 0);
                self.peers[which].seq = self.peers[which].seq.wrapping_add(1);
            }
            // A segment as the connection expects it, with some data.
            3 | 4 => {
                let len = usize::from(input.u8()) << ((op & 31).saturating_sub(3) * 4);
                self.segment(which, 0x10 | (op & 8), 0, 0, 0xffff, &[], len);
                self.peers[which].seq = self.peers[which].seq.wrapping_add(len as u32);
            }
            // One that does not.
            5..=8 => {
                let flags = input.u8();
                let (seq, ack) = (i32::from(input.u16() as i16), i32::from(input.u16() as i16));
                let scale = 1 << (((op & 31) - 5) * 4);
                let (window, len) = (input.u16(), usize::from(input.u8()) * 7);
                let options = input.take(usize::from(flags >> 6) * 8);
                self.segment(which, flags & 0x3f, seq * scale, ack, window, options, len);
            }
            9 => {
                // FIN, or RST.
                self.segment(which, if which & 1 == 0 { 0x11 } else { 0x14 }, 0, 0, 1000, &[], 0);
                self.peers[which].seq = self.peers[which].seq.wrapping_add(1);
            }
            10 => {
                let len = usize::from(input.u16() % 2000);
                let frame = input.take(len);
                self.input(frame);
            }
            11 => {
                // The device says what it wants about checksums and segments.
                let header: Vec<u8> = input.take(12).to_vec();
                let header = std::array::from_fn(|i| header.get(i).copied().unwrap_or(0));
                let len = usize::from(input.u16() % 4000);
                let frame = input.take(len).to_vec();
                self.counted = false;
                self.stack.input(self.now, NetHdr::from_bytes(header), &frame);
            }
            12..=14 => {
                // Any protocol but TCP, checksums right: ICMP, ICMPv6, UDP, unknown ones; or a fragment.
                let v6 = which & 1 != 0;
                let protocol = match input.u8() {
                    b @ 0..=127 => [1, 58, 17, 2, 0, 43, 60, 59][usize::from(b % 8)],
                    b => b,
                };
                let fragment = (op & 31 == 14).then(|| (input.u16() % 4, input.u16()));
                let len = usize::from(input.u16() % 1500);
                let mut bytes = input.take(len).to_vec();
                if protocol == 6 && fragment.is_some() {
                    self.counted = false;
                }
                packet::seal(World::pair(v6), protocol, &mut bytes);
                if protocol != 6 || fragment.is_some() {
                    self.input(&packet::ip(STACK_MAC, World::pair(v6), protocol, fragment, &bytes));
                }
            }
            15 => {
                // An ICMP error about a packet that the stack may have sent.
                let peer = self.peers[which];
                let mut message = vec![input.u8() % 16, input.u8() % 8, 0, 0, 0, 0];
                message.extend(input.u16().to_be_bytes());
                let inner = Segment {
                    ports: (peer.port, 1000 + which as u16),
                    seq: peer.ack.wrapping_sub(u32::from(input.u8())),
                    ack: peer.seq,
                    flags: 16,
                    window: 1,
                    options: &[],
                    payload: &[],
                };
                let back = Pair::V4(STACK4, PEER4);
                message.extend(&packet::ip(STACK_MAC, back, 6, None, &inner.bytes())[14..]);
                packet::seal(World::pair(false), 1, &mut message);
                self.input(&packet::ip(STACK_MAC, World::pair(false), 1, None, &message));
            }
            16 | 17 => self.now += 1 << (input.u8() % 44),
            18 => {
                let listener = self.listeners[which % 2];
                if let Ok((handle, from)) = self.stack.accept(listener) {
                    // What the application sends to itself does not count up.
                    self.owned.push(Owned { handle, next: None, unchecked: from.ip().is_loopback() });
                }
            }
            19 => self.read(which, usize::from(input.u16())),
            20 => {
                let Some(o) = self.owned.get(which) else { return };
                let len = input.scaled() as usize % 100_000;
                let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
                let sent = if op & 1 == 0 {
                    self.stack.send(o.handle, &[&data])
                } else {
                    self.stack.send_more(o.handle, &[&data[..len / 2], &LASTING[len / 2..len]])
                };
                assert!(sent.map_or(true, |n| n <= len));
            }
            21 => {
                let Some(o) = self.owned.get_mut(which) else { return };
                let how = [Shutdown::Read, Shutdown::Write, Shutdown::Both][usize::from(input.u8() % 3)];
                if self.stack.shutdown(o.handle, how).is_ok() {
                    o.unchecked |= how != Shutdown::Write;
                }
            }
            22 if which < self.owned.len() => {
                let o = self.owned.swap_remove(which);
                self.stack.close(o.handle);
            }
            23 if which < self.owned.len() => {
                let o = self.owned.swap_remove(which);
                self.stack.abort(o.handle);
            }
            24 => self.options(which, input),
            25 => self.connect(which, input.u8()),
            26 => {
                let to = SocketAddr::new(IpAddr::from(PEER4), input.u16());
                let len = input.scaled() as usize % 70_000;
                let _ = self.stack.send_to(self.udp, &[&vec![7; len]], Some(to), None);
                let mut room = [0; 500];
                while self.stack.recv_from(self.udp, &mut [&mut room], RecvMode::Take).is_ok() {}
            }
            27 => self.room = if which == 7 { None } else { Some(which as u32) },
            28 => self.input(&packet::arp(1 + (op >> 5) % 2, [10, 0, 0, input.u8()], STACK4)),
            29 => {
                let mut target = PEER6;
                target[15] = input.u8();
                self.input(&packet::advertisement(target, STACK6));
            }
            _ => {
                let l = self.listeners[which % 2];
                let _ = self.stack.listen(l, u32::from(input.u8()));
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a segment, each from the input")]
    fn segment(&mut self, which: usize, flags: u8, seq: i32, ack: i32, window: u16, options: &[u8], len: usize) {
        let peer = self.peers[which];
        let seq = peer.seq.wrapping_add_signed(seq);
        let first = seq.wrapping_add(u32::from(flags >> 1 & 1));
        let payload: Vec<u8> = (0..len as u32).map(|i| first.wrapping_add(i) as u8).collect();
        let segment = Segment {
            ports: (1000 + which as u16, peer.port),
            seq,
            ack: peer.ack.wrapping_add_signed(ack),
            flags,
            window,
            options,
            payload: &payload,
        };
        let mut bytes = segment.bytes();
        let pair = World::pair(peer.v6);
        packet::seal(pair, 6, &mut bytes);
        self.input(&packet::ip(STACK_MAC, pair, 6, None, &bytes));
    }

    fn read(&mut self, which: usize, len: usize) {
        let Some(o) = self.owned.get_mut(which) else { return };
        let mut room = vec![0; len];
        let mode = if len % 16 == 1 { RecvMode::Peek } else { RecvMode::Take };
        let (a, b) = room.split_at_mut(len / 3);
        let Ok(n) = self.stack.recv(o.handle, &mut [a, b], mode) else { return };
        assert!(n <= len);
        if self.counted && !o.unchecked {
            let mut next = o.next;
            for byte in &room[..n] {
                assert!(next.is_none_or(|e| e == *byte), "the stream skips from {next:?} to {byte}");
                next = Some(byte.wrapping_add(1));
            }
            if mode == RecvMode::Take {
                o.next = next;
            }
        }
    }

    fn options(&mut self, which: usize, input: &mut Input<'_>) {
        let flags = input.u8();
        let options = TcpOptions {
            nodelay: flags & 1 != 0,
            cork: flags & 2 != 0,
            quick_ack: (flags & 64 != 0).then_some(flags & 128 != 0),
            keep_alive: (flags & 4 != 0).then(|| KeepAlive {
                idle: input.u16().into(),
                interval: input.u16().into(),
                count: input.u8(),
            }),
            // Longer ones are kept, as the application wished: the hour at the end would not do.
            user_timeout: if flags & 8 != 0 { input.u16().into() } else { 0 },
            send_buffer: (flags & 16 != 0).then(|| input.u32()),
            receive_buffer: (flags & 32 != 0).then(|| input.u32()),
        };
        let handle = self.owned.get(which).map_or(self.listeners[which % 2], |o| o.handle);
        let _ = self.stack.set_tcp_options(handle, options);
        let _ = self.stack.set_ip_options(handle, IpOptions { hop_limit: flags, tos: flags });
    }

    fn connect(&mut self, which: usize, kind: u8) {
        let to: SocketAddr = match kind % 4 {
            0 => (PEER4, 1000 + which as u16).into(),
            1 => (PEER6, 1000 + which as u16).into(),
            2 => ([127, 0, 0, 1], 80).into(),
            _ => ([10, 9, 9, 9], 443).into(),
        };
        let Ok(handle) = self.stack.tcp_socket(if to.is_ipv4() { Domain::V4 } else { Domain::V6 }) else { return };
        if self.stack.connect(handle, to).is_err() {
            self.stack.close(handle);
            return;
        }
        if let (Ok(local), true) = (self.stack.local_addr(handle), kind % 4 < 2) {
            self.peers[which] = Peer { port: local.port(), v6: kind % 4 == 1, ..self.peers[which] };
        }
        self.owned.push(Owned { handle, next: None, unchecked: to.ip().is_loopback() });
    }

    /// Lets the stack send, and tells the peers; answers questions about addresses.
    fn output(&mut self) {
        for round in 0.. {
            assert!(round < 1000, "the stack does not come to rest");
            let mut sink = Collect { room: self.room, ..Collect::default() };
            let outcome = self.stack.output(self.now, &mut sink);
            self.room = sink.room;
            let quiet = sink.frames.is_empty() || outcome == Output::Full;
            for frame in sink.frames {
                match packet::read(&frame) {
                    Seen::WhoHas(a) if a == PEER4 => self.input(&packet::arp(2, PEER4, STACK4)),
                    Seen::Solicits(a) if a == PEER6 => self.input(&packet::advertisement(PEER6, STACK6)),
                    Seen::Tcp { ports: (from, to), end, flags, .. } => {
                        let peer = self.peers.get_mut(usize::from(to.wrapping_sub(1000)));
                        if let Some(p) = peer.filter(|p| p.port == from && flags & 4 == 0) {
                            p.ack = end;
                        }
                    }
                    _ => {}
                }
            }
            while let Some(event) = self.stack.next_event() {
                let _ = self.stack.readiness(event.handle);
                let _ = self.stack.take_error(event.handle);
            }
            if quiet {
                break;
            }
        }
    }

    fn check(&self) {
        let (sockets, half_open, time_wait) = self.stack.counts();
        let l = &self.limits;
        assert!(sockets <= l.sockets && half_open <= l.half_open && time_wait <= l.time_wait);
        // One segment may arrive while there is one byte of room.
        assert!(self.stack.memory_used() <= l.memory + (128 << 10), "{} bytes in queues", self.stack.memory_used());
        for o in &self.owned {
            let _ = self.stack.readiness(o.handle);
            if let Ok(info) = self.stack.tcp_info(o.handle) {
                assert!(
                    info.receive_window <= l.receive_buffer.max(65_535) && info.send_queue <= l.send_buffer + 100_000
                );
            }
        }
    }

    /// Everybody leaves, and nothing stays: not for ever, whatever the peers did.
    fn end(mut self) {
        self.room = None;
        for o in std::mem::take(&mut self.owned) {
            self.stack.close(o.handle);
        }
        for l in self.listeners.clone() {
            self.stack.close(l);
        }
        self.stack.close(self.udp);
        let end = self.now + 3600 * SECOND;
        for round in 0.. {
            self.output();
            let Some(next) = self.stack.deadline().filter(|d| *d <= end) else { break };
            assert!(round < 20_000, "timers without end");
            self.now = self.now.max(next);
        }
        assert_eq!((self.stack.counts(), self.stack.memory_used()), ((0, 0, 0), 0), "an hour after all is closed");
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let open = [0u8, 0, 5, 0, 4, 0, 18];
    let request = [&open[..], &[4, 200, 19, 255, 3, 20, 200, 7, 16, 30, 4, 0]].concat();
    vec![
        open.to_vec(),
        request.clone(),
        [&request[..], &[9, 22, 16, 40]].concat(),
        // A segment ahead of what is expected, then the one that was missing; SACK, window scale, timestamps.
        [&[3, 2, 2, 4, 5, 0xb4, 3, 3, 7, 4, 2, 9, 0, 3, 0, 18, 5, 0x18, 10, 0, 0, 0, 9, 9, 30, 4, 200, 19, 9, 9][..]]
            .concat(),
        [&[4, 25, 0, 5, 0x12, 0, 0, 0, 0, 9, 9, 0, 4, 30, 19, 8, 8, 21, 1, 16, 38][..]].concat(),
        [&[0, 46, 3, 6, 0, 12, 0, 135, 0, 0, 0, 12, 0, 8, 0, 8, 0, 0, 0, 1, 2, 3, 4][..]].concat(),
    ]
}
