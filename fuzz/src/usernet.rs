//! Frames of a guest into the monitor's user-mode network, which makes real sockets: in a network namespace without any way out.

use crate::input::Input;
use crate::packet::{self, Pair, Segment};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::net::TcpListener;
use std::sync::OnceLock;

const GUEST: [u8; 4] = [10, 0, 2, 15];
const GATEWAY: [u8; 4] = [10, 0, 2, 2];
const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];

/// A server on the namespace's loopback, for the one port that the guest may reach.
static SERVER: OnceLock<Option<TcpListener>> = OnceLock::new();

fn server() -> Option<TcpListener> {
    // SAFETY: only this thread makes sockets, and it has made none yet.
    let away = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
    away.ok()?;
    donjon_monitor::fuzzing::loopback_up().ok()?;
    let listener = TcpListener::bind("127.0.0.1:80").ok()?;
    listener.set_nonblocking(true).ok()?;
    Some(listener)
}

/// The frame, from the guest's own Ethernet address: any other comes no further than the filter.
fn own(mut frame: Vec<u8>) -> Vec<u8> {
    if let Some(from) = frame.get_mut(6..12) {
        from.copy_from_slice(&GUEST_MAC);
    }
    frame
}

pub fn run(data: &[u8]) {
    let Some(server) = SERVER.get_or_init(|| {
        let server = server();
        if server.is_none() {
            eprintln!("usernet: no network namespace of its own: not fuzzed");
        }
        server
    }) else {
        return;
    };
    let mut input = Input::new(data);
    let mut net = donjon_monitor::fuzzing::Net::new(input.u8() & 1 != 0);
    let mut clients = Vec::new();
    let mut ack = 0u32;
    let mut seq = 5u32;
    for _ in 0..100 {
        if input.is_empty() {
            break;
        }
        let op = input.u8();
        match op % 8 {
            0 => {
                let len = usize::from(input.u16() % 2000);
                let frame = input.take(len).to_vec();
                net.frame(&[0; 12], &if op & 64 == 0 { own(frame) } else { frame });
            }
            1 => {
                let header: Vec<u8> = input.take(12).to_vec();
                let header = std::array::from_fn(|i| header.get(i).copied().unwrap_or(0));
                let len = usize::from(input.u16() % 4000);
                net.frame(&header, &own(input.take(len).to_vec()));
            }
            2..=4 => {
                let (flags, to) = (input.u8() & 0x3f, input.u8());
                let destination = match to % 4 {
                    0..=2 => GATEWAY,
                    _ => [169, 254, 169, 254],
                };
                let len = if op % 8 == 2 { 0 } else { usize::from(input.u8()) };
                let payload = vec![b'x'; len];
                let delta = if op & 64 == 0 { 0 } else { input.u16().into() };
                let segment = Segment {
                    ports: (1000 + u16::from(op >> 7), if to & 16 == 0 { 80 } else { input.u16() }),
                    seq: seq.wrapping_add(delta),
                    ack,
                    flags,
                    window: 60_000,
                    options: &[],
                    payload: &payload,
                };
                let pair = Pair::V4(GUEST, destination);
                let mut bytes = segment.bytes();
                packet::seal(pair, 6, &mut bytes);
                net.frame(&[0; 12], &own(packet::ip(GATEWAY_MAC, pair, 6, None, &bytes)));
                seq = seq.wrapping_add(len as u32 + u32::from(flags & 1) + u32::from(flags >> 1 & 1));
            }
            5 => {
                let pair = Pair::V4(GUEST, if op & 64 == 0 { GATEWAY } else { [10, 0, 2, 3] });
                let mut datagram = input.u16().to_be_bytes().to_vec();
                datagram.extend([0, if op & 64 == 0 { 80 } else { 53 }]);
                let payload = input.take(usize::from(op >> 4));
                datagram.extend((8 + payload.len() as u16).to_be_bytes());
                datagram.extend([0, 0]);
                datagram.extend_from_slice(payload);
                packet::seal(pair, 17, &mut datagram);
                net.frame(&[0; 12], &own(packet::ip(GATEWAY_MAC, pair, 17, None, &datagram)));
            }
            6 => {
                while let Ok((client, _)) = server.accept() {
                    clients.push(client);
                }
                if op & 64 != 0 {
                    clients.pop();
                }
            }
            _ => {
                let mut frame = own(packet::arp(1 + (op >> 7), [10, 0, 2, input.u8()], GATEWAY));
                frame[22..28].copy_from_slice(&GUEST_MAC);
                net.frame(&[0; 12], &frame);
            }
        }
        for frame in net.turn() {
            // To the guest, with the offload header in front.
            if let Some(bytes) = frame.get(12..).filter(|b| b.len() >= 14)
                && let packet::Seen::Tcp { end, .. } = packet::read(bytes)
            {
                ack = end;
            }
        }
    }
    drop(net);
    while server.accept().is_ok() {}
}
