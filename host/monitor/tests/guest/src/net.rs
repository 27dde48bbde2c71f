//! Servers and clients on donjon-net, driven straight from the gate.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;

use donjon_abi::{Call, FRAME_MAX, Frame, IoVec, ready};
use donjon_net::*;

use crate::{boot, exit, gate, now, say};

struct Host {
    stack: Stack,
    frame: Vec<u8>,
    stop: bool,
}

struct Gate;

impl FrameSink for Gate {
    fn send(&mut self, header: NetHdr, head: &[u8], payload: &[&[u8]]) -> Sent {
        let header = header.to_bytes();
        let mut iov = [IoVec::default(); 64];
        let mut count = 0;
        for piece in [&header[..], head].into_iter().chain(payload.iter().copied()) {
            iov[count] = IoVec { base: piece.as_ptr() as u64, len: piece.len() as u64 };
            count += 1;
        }
        let mut f = Frame { iov: iov.as_ptr() as u64, iov_count: count as u32, len: 0 };
        if gate(Call::NetSend, &raw mut f as u64, 1, 0) == 1 { Sent::Done } else { Sent::Full }
    }
}

impl Host {
    fn new() -> Host {
        let b = boot();
        let mut key = [0; 32];
        key.copy_from_slice(&b.entropy[..32]);
        let config = Config {
            mac: b.net.mac,
            mtu: b.net.mtu,
            offload: Offload::from_boot_flags(b.net.flags),
            key,
            limits: Limits::for_memory(b.memory),
            lasting: &[],
            any_ip: false,
            dhcp: false,
            slaac: false,
        };
        let mut stack = Stack::new(config, now());
        stack.add_address(b.net.ipv4.into(), b.net.ipv4_prefix).unwrap();
        stack.set_router(Domain::V4, Some(b.net.ipv4_gateway.into()));
        if b.net.ipv6 != [0; 16] {
            stack.add_address(b.net.ipv6.into(), b.net.ipv6_prefix).unwrap();
            stack.set_router(Domain::V6, Some(b.net.ipv6_gateway.into()));
        }
        Host { stack, frame: vec![0; FRAME_MAX], stop: false }
    }

    /// Sends, sleeps until something happens or `until`, receives.
    fn turn(&mut self, until: Option<u64>) {
        let full = self.stack.output(now(), &mut Gate) == Output::Full;
        let deadline = [until, if full { None } else { self.stack.deadline() }].into_iter().flatten().min();
        let timeout = deadline.map_or(u64::MAX, |d| d.saturating_sub(now()));
        let bits = gate(Call::Wait, timeout, 0, 0) as u64;
        self.stop |= bits & ready::STOP != 0;
        loop {
            let iov = IoVec { base: self.frame.as_mut_ptr() as u64, len: self.frame.len() as u64 };
            let mut f = Frame { iov: &raw const iov as u64, iov_count: 1, len: 0 };
            if gate(Call::NetRecv, &raw mut f as u64, 1, 0) != 1 {
                return;
            }
            let (header, frame) = self.frame[..f.len as usize].split_first_chunk::<12>().unwrap();
            self.stack.input(now(), NetHdr::from_bytes(*header), frame);
        }
    }
}

/// One connection of the echo server: what it still has to send.
#[derive(Default)]
struct Echo {
    held: Vec<u8>,
    ended: bool,
    begun: bool,
}

/// What [`echo`] is.
#[derive(PartialEq)]
pub enum Serves {
    Echo,
    /// It fills the console all the time, and does not listen to who asks it to stop.
    Chatter,
    /// The barest web server.
    Http,
}

/// TCP and UDP echo (or something like it) on port 7 after `delay` ms; a first byte of 'R' resets the connection.
pub fn echo(delay: u64, what: Serves) -> ! {
    let http = what == Serves::Http;
    let chatters = what == Serves::Chatter;
    let mut host = Host::new();
    let start = now();
    while now() < start + delay * 1_000_000 {
        host.turn(Some(start + delay * 1_000_000));
    }
    let listener = host.stack.tcp_socket(Domain::V6).unwrap();
    host.stack.bind(listener, "[::]:7".parse().unwrap(), BindOptions::default()).unwrap();
    host.stack.listen(listener, 1024).unwrap();
    let udp = host.stack.udp_socket(Domain::V6).unwrap();
    host.stack.bind(udp, "[::]:7".parse().unwrap(), BindOptions::default()).unwrap();
    say!("ready");
    let mut flows: BTreeMap<Handle, Echo> = BTreeMap::new();
    let mut buffer = vec![0; 65536];
    loop {
        // As much as the console takes.
        while chatters && gate(Call::Console, buffer.as_ptr() as u64, 1000, 1) > 0 {}
        host.turn(chatters.then(|| now() + 1_000_000));
        if host.stop && !chatters {
            exit(0);
        }
        while let Some(event) = host.stack.next_event() {
            if event.handle == listener {
                while let Ok((handle, _)) = host.stack.accept(listener) {
                    flows.insert(handle, Echo::default());
                    serve(&mut host.stack, &mut flows, handle, &mut buffer, http);
                }
            } else if event.handle == udp {
                while let Ok(d) = host.stack.recv_from(udp, &mut [&mut buffer], RecvMode::Take) {
                    let _ = host.stack.send_to(udp, &[&buffer[..d.copied]], Some(d.from), None);
                }
            } else {
                serve(&mut host.stack, &mut flows, event.handle, &mut buffer, http);
            }
        }
    }
}

fn serve(stack: &mut Stack, flows: &mut BTreeMap<Handle, Echo>, handle: Handle, buffer: &mut [u8], http: bool) {
    let Some(flow) = flows.get_mut(&handle) else { return };
    loop {
        if !flow.held.is_empty() {
            match stack.send(handle, &[&flow.held]) {
                Ok(n) => drop(flow.held.drain(..n)),
                Err(Error::WouldBlock | Error::NoMemory) => return,
                Err(_) => break,
            }
        } else if flow.ended {
            stack.close(handle);
            flows.remove(&handle);
            return;
        } else {
            match stack.recv(handle, &mut [&mut *buffer], RecvMode::Take) {
                Ok(0) => flow.ended = true,
                Ok(_) if buffer[0] == b'R' && !flow.begun => break,
                Ok(n) if http => {
                    let requests = buffer[..n].windows(4).filter(|w| w == b"\r\n\r\n").count();
                    (0..requests).for_each(|_| {
                        flow.held.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
                    });
                }
                Ok(n) => {
                    flow.begun = true;
                    flow.held.extend_from_slice(&buffer[..n]);
                }
                Err(Error::WouldBlock) => return,
                Err(_) => break,
            }
        }
    }
    stack.abort(handle);
    flows.remove(&handle);
}

/// Connects, sends `bytes` bytes, then FIN, and reads to the end.
pub fn connect(to: &str, bytes: u64) -> ! {
    let to: SocketAddr = to.parse().unwrap();
    let mut host = Host::new();
    let handle = host.stack.tcp_socket(if to.is_ipv4() { Domain::V4 } else { Domain::V6 }).unwrap();
    host.stack.connect(handle, to).unwrap();
    let chunk: Vec<u8> = (0..=255u8).cycle().take(65536).collect();
    let (mut sent, mut received, mut right, mut shut) = (0u64, 0u64, true, false);
    let mut buffer = vec![0; 65536];
    let until = now() + 20_000_000_000;
    loop {
        host.turn(Some(until));
        assert!(now() < until, "stuck: sent {sent}, received {received}");
        while host.stack.next_event().is_some() {}
        if let Some(e) = host.stack.take_error(handle) {
            say!("error {e:?}");
            exit(1);
        }
        while sent < bytes {
            let from = (sent % 65536) as usize;
            let to = (from as u64 + (bytes - sent)).min(65536) as usize;
            match host.stack.send(handle, &[&chunk[from..to]]) {
                Ok(n) => sent += n as u64,
                Err(_) => break,
            }
        }
        if sent == bytes && !shut {
            shut = host.stack.shutdown(handle, Shutdown::Write).is_ok();
        }
        loop {
            match host.stack.recv(handle, &mut [&mut buffer], RecvMode::Take) {
                Ok(0) => {
                    say!("sent {sent} received {received} right {right}");
                    host.stack.close(handle);
                    // The FIN's acknowledgement.
                    host.turn(Some(now() + 1_000_000));
                    exit(0);
                }
                Ok(n) => {
                    for b in &buffer[..n] {
                        right &= *b == received as u8;
                        received += 1;
                    }
                }
                Err(_) => break,
            }
        }
    }
}

/// Sends a datagram and prints the answer.
pub fn datagram(to: &str) -> ! {
    let to: SocketAddr = to.parse().unwrap();
    let mut host = Host::new();
    let handle = host.stack.udp_socket(if to.is_ipv4() { Domain::V4 } else { Domain::V6 }).unwrap();
    host.stack.send_to(handle, &[b"question"], Some(to), None).unwrap();
    let until = now() + 500_000_000;
    let mut buffer = [0; 2000];
    while now() < until {
        host.turn(Some(until));
        if let Ok(d) = host.stack.recv_from(handle, &mut [&mut buffer], RecvMode::Take) {
            say!("{} says {}", d.from, core::str::from_utf8(&buffer[..d.copied]).unwrap());
            exit(0);
        }
    }
    say!("no answer");
    exit(1)
}

/// A TCP segment without data to the gateway's port, whole but for TCP's checksum.
fn segment(from: u16, port: u16, flags: u8) -> Vec<u8> {
    let net = boot().net;
    let mut f = [&[0xff; 6][..], &net.mac, &[8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]].concat();
    f.extend(net.ipv4);
    f.extend(net.ipv4_gateway);
    let sum = f[14..34].chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    f[24..26].copy_from_slice(&sum.to_be_bytes());
    f.extend(from.to_be_bytes());
    f.extend(port.to_be_bytes());
    f.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    f
}

/// Asks the gateway's port for connections, as fast as it can, with no network stack to hold it back.
pub fn flood(port: u16, count: u64) -> ! {
    for i in 0..count {
        let f = segment(20_000 + i as u16, port, 0x02);
        while Gate.send(NetHdr::default(), &f, &[]) == Sent::Full {}
    }
    say!("asked {count} times");
    exit(0)
}

/// Sends segments to the gateway's port whose checksum is to be written to where it does not belong, and two that are as they should be.
pub fn misplace(port: u16) -> ! {
    let frame = segment(40_000, port, 0x10);
    let send = |csum_start, csum_offset| {
        let header = NetHdr { flags: net_hdr::NEEDS_CSUM, csum_start, csum_offset, ..NetHdr::default() };
        assert_eq!(Gate.send(header, &frame, &[]), Sent::Done);
    };
    // Into the source's and the destination's address, the ports, the flags; from the header's beginning and from before it.
    for (start, offset) in [(20, 6), (20, 12), (34, 0), (34, 2), (34, 12), (20, 16), (24, 12), (24, 22), (34, 14)] {
        send(start, offset);
    }
    send(34, 16);
    assert_eq!(Gate.send(NetHdr::default(), &frame, &[]), Sent::Done);
    say!("misplaced");
    exit(0)
}

/// Sends frames that a guest must not send, straight to the device.
pub fn forge() -> ! {
    let net = boot().net;
    let (own, mac) = (net.ipv4, net.mac);
    let other = [own[0], own[1], own[2], 200];
    let ethernet =
        |from: [u8; 6], kind: u16, payload: &[u8]| [&[0xff; 6][..], &from, &kind.to_be_bytes(), payload].concat();
    let arp = |mac: [u8; 6], sender: [u8; 4], target: [u8; 4]| {
        [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac, &sender, &[0; 6], &target].concat()
    };
    let ip = |first: u8, fragment: u16, protocol: u8, from: [u8; 4], to: [u8; 4]| {
        let mut p = vec![first, 0, 0, 44, 0, 0];
        p.extend(fragment.to_be_bytes());
        p.extend([64, protocol, 0, 0]);
        p.extend(from);
        p.extend(to);
        let sum = p.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum::<u32>();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        p[10..12].copy_from_slice(&sum.to_be_bytes());
        // TCP, SYN, to port 80.
        p.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4]);
        p
    };
    let gateway = net.ipv4_gateway;
    let frames = [
        ethernet([2, 9, 9, 9, 9, 9], 0x0806, &arp([2, 9, 9, 9, 9, 9], own, gateway)),
        ethernet(mac, 0x0806, &arp(mac, gateway, other)),
        ethernet(mac, 0x0806, &arp(mac, own, other)),
        ethernet(mac, 0x0800, &ip(0x45, 0, 6, other, gateway)),
        ethernet(mac, 0x0800, &ip(0x45, 0, 6, own, [169, 254, 169, 254])),
        ethernet(mac, 0x0800, &ip(0x45, 0, 6, own, gateway)),
        ethernet(mac, 0x0800, &ip(0x46, 0, 6, own, gateway)),
        ethernet(mac, 0x0800, &ip(0x45, 0x2000, 6, own, gateway)),
        ethernet(mac, 0x0800, &ip(0x45, 0, 47, own, gateway)),
        ethernet(mac, 0x8100, &[&[0, 0, 8, 0][..], &ip(0x45, 0, 6, own, gateway)].concat()),
        ethernet(mac, 0x88b5, &[0; 60]),
    ];
    for frame in frames {
        assert_eq!(Gate.send(NetHdr::default(), &frame, &[]), Sent::Done);
    }
    say!("forged");
    exit(0)
}
