//! What cannot be had from outside: a connection without a stack, brought where it would be after hours.

use super::conn::{Conn, is};
use super::head::Path;
use super::segment::Segment;
use super::*;
use crate::addr::{End, Ip, Tuple};
use crate::types::{FrameSink, RecvMode, Sent, TcpOptions, TcpState};
use crate::{Limits, Offload};
use std::vec::Vec;

/// Frames of an IPv4 connection without a timestamp option: sequence number, flags, payload.
struct Frames(Vec<(u32, u8, Vec<u8>)>);

impl FrameSink for Frames {
    fn send(&mut self, _: donjon_abi::NetHdr, head: &[u8], payload: &[&[u8]]) -> Sent {
        let seq = u32::from_be_bytes(head[38..42].try_into().unwrap());
        self.0.push((seq, head[47], payload.concat()));
        Sent::Done
    }
}

const PATH: Path = Path {
    dst_mac: [2; 6],
    src_mac: [4; 6],
    mtu: 1500,
    offload: Offload { tx_csum: false, tso4: false, tso6: false },
    local: false,
};

/// A connection and the clock of its world.
struct Lone {
    conn: Conn,
    now: u64,
    limits: Limits,
}

impl Lone {
    /// Established with a peer that knows no option and has a window of 64 KB.
    fn established(iss: u32) -> Lone {
        let limits = Limits::for_memory(64 << 20);
        let end = |n| End::new(Ip::v4([10, 0, 0, n]), 80);
        let tuple = Tuple { local: end(1), remote: end(2) };
        let conn = Conn::new(tuple, 0, iss, 0, &TcpOptions::default(), &limits, 0);
        let mut lone = Lone { conn, now: 0, limits };
        assert_eq!(lone.sent().len(), 1);
        lone.receive(5000, iss.wrapping_add(1), flag::SYN | flag::ACK);
        assert!(lone.conn.state == TcpState::Established);
        lone.sent();
        lone
    }

    fn receive(&mut self, seq: u32, ack: u32, flags: u8) {
        self.receive_with(seq, ack, flags, None, &[]);
    }

    fn receive_with(&mut self, seq: u32, ack: u32, flags: u8, ts: Option<(u32, u32)>, payload: &[u8]) {
        let segment = Segment {
            src_port: 80,
            dst_port: 80,
            seq,
            ack,
            flags,
            window: 65_535,
            ts,
            sack: [None; 3],
            mss: None,
            scale: None,
            sack_permitted: false,
            payload,
        };
        let cx = Cx { now: self.now, memory_free: 32 << 20, limits: &self.limits, lasting: &[] };
        self.conn.on_segment(&cx, segment, 1460);
    }

    fn queue(&mut self, data: &[u8]) {
        let cx = Cx { now: self.now, memory_free: 32 << 20, limits: &self.limits, lasting: &[] };
        assert_eq!(self.conn.send(&cx, &[data], false), Ok(data.len()));
    }

    /// What it sends now; it must come to an end.
    fn sent(&mut self) -> Vec<(u32, u8, Vec<u8>)> {
        let cx = Cx { now: self.now, memory_free: 32 << 20, limits: &self.limits, lasting: &[] };
        let mut frames = Frames(Vec::new());
        for _ in 0..100 {
            if self.conn.emit(&cx, &PATH, &mut frames) == Emit::Idle {
                return frames.0;
            }
        }
        panic!("sends for ever: {:?}", frames.0.last());
    }

    /// What the peer gets of more data.
    fn deliver_new(&mut self, data: &[u8]) -> Vec<u8> {
        self.queue(data);
        self.deliver(self.conn.snd_nxt).0
    }

    /// Sends it all to a peer that acknowledges each frame; returns what the peer has got, and whether the end.
    fn deliver(&mut self, from: u32) -> (Vec<u8>, bool) {
        let (mut got, mut end) = (Vec::new(), false);
        let mut next = from;
        for _ in 0..100 {
            let frames = self.sent();
            if frames.iter().all(|f| f.2.is_empty() && f.1 & flag::FIN == 0) {
                break;
            }
            for (seq, flags, payload) in frames {
                assert_eq!(seq, next);
                next = next.wrapping_add(payload.len() as u32);
                got.extend(payload);
                if flags & flag::FIN != 0 {
                    (end, next) = (true, next.wrapping_add(1));
                }
                self.receive(5001, next, flag::ACK);
            }
        }
        (got, end)
    }
}

/// After 4 GiB `snd_una` is at the initial sequence number again, exactly so if the peer acknowledges to the byte.
#[test]
fn sequence_numbers_come_around_to_the_first() {
    // 1000 bytes before it, with nothing to send there, and with FIN; and in the midst of data.
    for (before, total, close) in [(1000, 1000, false), (1000, 1000, true), (536, 3000, false), (1072, 3000, true)] {
        let mut lone = Lone::established(7);
        lone.conn.iss = lone.conn.snd_una.wrapping_add(before);
        let data: Vec<u8> = (0..total).map(|i: u32| (i / 7) as u8).collect();
        lone.queue(&data);
        if close {
            lone.conn.shut_write();
        }
        assert!(lone.deliver(8) == (data, close), "{before} {total} {close}");
        assert_eq!(lone.conn.send.len(), 0);
    }
    // At that place, what is queued goes out, and what is in flight is not counted one too short.
    let mut lone = Lone::established(7);
    lone.conn.iss = lone.conn.snd_una.wrapping_add(1000);
    assert_eq!(lone.deliver_new(&[1; 1000]), [1; 1000]);
    assert_eq!(lone.deliver_new(&[2; 3000]), [2; 3000]);
}

/// Marks of what happened 2 GiB ago do not lie ahead.
#[test]
fn old_marks_do_not_come_around() {
    let mut lone = Lone::established(7);
    let behind = lone.conn.snd_una.wrapping_sub(i32::MAX as u32 - 700);
    (lone.conn.recover, lone.conn.snd_small) = (behind, behind);
    assert_eq!(lone.deliver_new(&[1; 1072]), [1; 1072]);
    // The last segment is not held back although others are in flight, all of which were full (Minshall's variant of Nagle).
    let una = lone.conn.snd_una;
    lone.conn.cubic.cwnd = 100_000;
    lone.queue(&[2; 536 * 5 + 10]);
    assert_eq!(lone.sent().len(), 6);
    // And three duplicates find out that the first one is lost.
    for _ in 0..3 {
        lone.receive(5001, una, flag::ACK);
    }
    assert_eq!(lone.sent().iter().map(|f| f.0).collect::<Vec<_>>(), [una]);
}

/// A peer's timestamp clock may have come around in a silence, more than once (RFC 7323 §5.5).
#[test]
fn timestamps_become_old() {
    for days in [25, 60, 2000] {
        let mut lone = Lone::established(7);
        lone.conn.flags |= is::TS;
        let una = lone.conn.snd_una;
        lone.receive_with(5001, una, flag::ACK, Some((1 << 31, 0)), &[]);
        lone.now += days * 86_400 * SECOND;
        lone.queue(&[1; 10]);
        lone.sent();
        let end = lone.conn.snd_max;
        lone.receive_with(5001, end, flag::ACK, Some(((1 << 31) - 1, 0)), &[]);
        assert_eq!((lone.conn.snd_una, lone.conn.ts_recent), (end, (1 << 31) - 1), "{days}");
        // From then on it counts again.
        lone.receive_with(5001, end, flag::ACK, Some(((1 << 31) - 2, 0)), &[]);
        assert_eq!(lone.conn.ts_recent, (1 << 31) - 1);
    }
}

/// Under memory pressure an update of the window that cannot tell of anything is none; two that have the same trouble would exchange them for ever.
#[test]
fn a_window_that_cannot_grow_is_not_told() {
    let mut lone = Lone::established(7);
    lone.conn.rcv_scale = WINDOW_SCALE;
    lone.conn.rcv_adv = lone.conn.rcv_nxt;
    lone.conn.recv.push(&[1]);
    for (spare, due) in [(0, false), (100, false), (3000, true)] {
        let memory_free = lone.limits.memory / 16 + spare;
        let cx = Cx { now: lone.now, memory_free, limits: &lone.limits, lasting: &[] };
        assert_eq!(lone.conn.window_update_due(&cx), due, "{spare}");
    }
}

/// RST counts only exactly at the next byte (RFC 5961 §3.2), whatever data it has: else whoever guesses hits with each segment a range as long as that.
#[test]
fn a_reset_with_data_is_not_cut_to_the_window() {
    for (seq, payload, dead) in [(4901, &[0; 200][..], false), (5000, &[0; 2], false), (5001, &[0; 200], true)] {
        let mut lone = Lone::established(7);
        lone.receive_with(seq, 8, flag::RST | flag::ACK, None, payload);
        assert_eq!(lone.conn.state == TcpState::Closed, dead, "{seq}");
        assert!(dead || lone.sent().len() == 1, "challenge ACK");
    }
}

/// Every other byte, and then those between: what is ready to be read takes no more memory than if it had come in order.
#[test]
fn single_bytes_out_of_order_stay_small() {
    let mut lone = Lone::established(7);
    for first in [1, 0] {
        for i in 0..1000 {
            lone.receive_with(5001 + first + 2 * i, 8, flag::ACK, None, &[(first + 2 * i) as u8]);
        }
    }
    let mut got = [0; 3000];
    let held = lone.conn.held() - size_of::<Conn>();
    assert_eq!(lone.conn.recv(&mut [&mut got], RecvMode::Take), Ok(2000));
    assert!(got[..2000].iter().enumerate().all(|(i, b)| *b == i as u8));
    assert!(held < 4 * 2000, "{held}");
}
