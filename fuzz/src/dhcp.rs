//! Answers of a DHCP server, and advertisements of an IPv6 router, to a stack that configures itself by them.

use crate::input::Input;
use crate::packet::{self, Collect, Pair, STACK_MAC, Seen};
use donjon_net::{Config, Limits, NetHdr, Offload, Stack};

const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ROUTER: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const SECOND: u64 = 1_000_000_000;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let config = Config {
        mac: STACK_MAC,
        mtu: 1500,
        offload: Offload::default(),
        key: [3; 32],
        limits: Limits::for_memory(1 << 24),
        lasting: &[],
        any_ip: false,
        dhcp: true,
        slaac: true,
    };
    let mut now = 0;
    let mut stack = Stack::new(config, now);
    let mut xid = [0; 4];
    for _ in 0..300 {
        output(&mut stack, now, &mut xid);
        if input.is_empty() {
            break;
        }
        match input.u8() % 5 {
            0 => now += 1 << (input.u8() % 46),
            // An answer that is right in its fixed part.
            1 => {
                let mut m = vec![0; 240];
                m[..4].copy_from_slice(&[2, 1, 6, 0]);
                m[4..8].copy_from_slice(&xid);
                m[16..20].copy_from_slice(&[10, 0, 0, input.u8()]);
                m[28..34].copy_from_slice(&STACK_MAC);
                m[236..].copy_from_slice(&[99, 130, 83, 99]);
                m.extend([53, 1, input.u8() % 8]);
                let len = usize::from(input.u8());
                m.extend_from_slice(input.take(len));
                answer(&mut stack, now, &m);
            }
            2 => {
                let len = usize::from(input.u16() % 600);
                let bytes = input.take(len).to_vec();
                answer(&mut stack, now, &bytes);
            }
            3 => {
                let mut m = vec![134, 0, 0, 0, 64, input.u8()];
                m.extend(input.u16().to_be_bytes());
                m.extend([0; 8]);
                let len = usize::from(input.u8());
                m.extend_from_slice(input.take(len));
                router(&mut stack, now, m);
            }
            _ => {
                let len = usize::from(input.u16() % 600);
                let bytes = input.take(len).to_vec();
                router(&mut stack, now, bytes);
            }
        }
        assert!(stack.addresses().len() <= 64, "{} addresses", stack.addresses().len());
        if let Some(lease) = stack.dhcp_lease() {
            assert!(lease.prefix <= 32 && !lease.address.is_unspecified());
        }
    }
    // It goes on asking, and never in a loop that stands still.
    for _ in 0..200 {
        let Some(next) = stack.deadline() else { return };
        let before = (now, next);
        now = now.max(next);
        output(&mut stack, now, &mut xid);
        let after = stack.deadline();
        assert!(after.is_none_or(|a| a > now), "a deadline that does not pass: {before:?} {after:?}");
        if now > 4_000_000_000 * SECOND {
            return;
        }
    }
}

fn answer(stack: &mut Stack, now: u64, message: &[u8]) {
    let pair = Pair::V4([10, 0, 0, 1], [255; 4]);
    let mut datagram = vec![0, 67, 0, 68];
    datagram.extend((8 + message.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend_from_slice(message);
    packet::seal(pair, 17, &mut datagram);
    stack.input(now, NetHdr::default(), &packet::ip([255; 6], pair, 17, None, &datagram));
}

fn router(stack: &mut Stack, now: u64, mut message: Vec<u8>) {
    let pair = Pair::V6(ROUTER, ALL_NODES);
    packet::seal(pair, 58, &mut message);
    stack.input(now, NetHdr::default(), &packet::ip([0x33, 0x33, 0, 0, 0, 1], pair, 58, None, &message));
}

fn output(stack: &mut Stack, now: u64, xid: &mut [u8; 4]) {
    let mut sink = Collect::default();
    stack.output(now, &mut sink);
    assert!(sink.frames.len() < 100, "{} frames at once", sink.frames.len());
    for frame in sink.frames {
        if let Seen::Udp { to: 67, payload } = packet::read(&frame)
            && let Some(id) = payload.get(4..8)
        {
            xid.copy_from_slice(id);
        }
    }
    while stack.next_event().is_some() {}
}

pub fn seeds() -> Vec<Vec<u8>> {
    let options = [
        1, 4, 255, 255, 255, 0, 3, 4, 10, 0, 0, 1, 6, 8, 1, 1, 1, 1, 2, 2, 2, 2, 51, 4, 0, 0, 1, 0, 54, 4, 10, 0, 0, 1,
        255,
    ];
    let message = |kind: u8| [&[1, 9, kind, options.len() as u8][..], &options].concat();
    let mut prefix = vec![3, 0, 8, 7, 56, 1, 1, 2, 0, 0, 0, 0, 1, 3, 4, 64, 0xc0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0];
    prefix.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    prefix.extend([25, 3, 0, 0, 0, 0, 1, 0, 0xfe, 0x80, 0, 0, 0, 0, 0, 0]);
    vec![
        [message(2), message(5), vec![0, 36]].concat(),
        [message(2), message(5), vec![0, 40], message(5), vec![0, 45]].concat(),
        [message(2), message(6)].concat(),
        prefix,
    ]
}
