//! Between connections and the stack: demultiplexing, handshakes without a connection, and what follows from a connection's change of state.

use crate::addr::{End, Ip, Tuple};
use crate::egress::{Control, LOCAL_MTU};
use crate::ports::{self, Best};
use crate::socket::{Kind, Sock};
use crate::stack::{Stack, cx};
use crate::tcp::conn::{Conn, is};
use crate::tcp::half_open::{Half, Stage};
use crate::tcp::head::ip_len;
use crate::tcp::listen::{Listener, OnSyn};
use crate::tcp::segment::Segment;
use crate::tcp::time_wait::Old;
use crate::tcp::*;
use crate::types::{IpOptions, Ready, TcpOptions, TcpState};
use crate::{Error, Handle};
use alloc::boxed::Box;
use core::num::NonZeroU32;

/// References in the demultiplexer: kind in the two highest bits, slot below.
const KIND: u32 = 3 << 30;
const CONN: u32 = 0;
const HALF: u32 = 1 << 30;
const OLD: u32 = 2 << 30;

impl Stack {
    pub(crate) fn tuple_hash(&self, t: &Tuple) -> u32 {
        self.table_key.tuple(t) as u32
    }

    pub(crate) fn lookup(&self, hash: u32, tuple: &Tuple) -> Option<u32> {
        self.demux.find(hash, |r| {
            let slot = r & !KIND;
            match r & KIND {
                CONN => matches!(self.sockets.get(slot), Some(Sock { kind: Kind::Tcp(c), .. }) if c.tuple == *tuple),
                HALF => self.half.slab.get(slot).is_some_and(|h| h.tuple == *tuple),
                _ => self.time_wait.slab.get(slot).is_some_and(|o| o.tuple == *tuple),
            }
        })
    }

    /// Initial sequence number (RFC 6528): a clock plus a keyed hash. The clock ticks every 64 ns, as Linux's: with the 4 µs of the RFC the number of a tuple that is
    /// used again at once would lie below what the connection before has sent, and its SYN would be taken for an old one.
    pub(crate) fn isn(&self, tuple: &Tuple) -> u32 {
        (self.wire_key.tuple(tuple) as u32).wrapping_add((self.now >> 6) as u32)
    }

    /// Offset of the timestamp clock, per connection so that it tells nothing about others.
    pub(crate) fn ts_offset(&self, tuple: &Tuple) -> u32 {
        (self.wire_key.tuple(tuple) >> 32) as u32
    }

    /// Payload per segment that the link to the peer allows.
    pub(crate) fn link_mss(&self, tuple: &Tuple) -> u16 {
        let mtu = if self.iface.is_local(tuple.remote.ip) { LOCAL_MTU } else { self.link_mtu(tuple.remote.ip.is_v4()) };
        (mtu - ip_len(tuple.local.ip) - 20).min(65_535) as u16
    }

    /// A TCP segment, its checksum verified.
    pub(crate) fn tcp_input(&mut self, src: Ip, dst: Ip, bytes: &[u8]) {
        let Some(seg) = Segment::parse(bytes) else { return };
        let tuple = Tuple { local: End::new(dst, seg.dst_port), remote: End::new(src, seg.src_port) };
        let hash = self.tuple_hash(&tuple);
        match self.lookup(hash, &tuple) {
            Some(r) if r & KIND == CONN => self.conn_input(r, &tuple, seg),
            Some(r) if r & KIND == HALF => self.half_input(r & !KIND, &tuple, seg),
            Some(r) => self.old_input(r & !KIND, &tuple, hash, seg),
            None => self.new_input(&tuple, hash, &seg, None),
        }
    }

    fn conn_input(&mut self, slot: u32, tuple: &Tuple, seg: Segment) {
        let mss = self.link_mss(tuple);
        let brief = brief(&seg);
        let cx = cx!(self);
        let Some(Sock { kind: Kind::Tcp(c), .. }) = self.sockets.get_mut(slot) else { return };
        let verdict = c.on_segment(&cx, seg, mss);
        if verdict == Verdict::Reset {
            self.send_reset(tuple, brief);
        }
        self.settle(slot);
    }

    /// A segment for which there is nothing: a SYN for a listener, or something to be answered with RST.
    /// `min_iss`: our sequence numbers must begin beyond it.
    fn new_input(&mut self, tuple: &Tuple, hash: u32, seg: &Segment, min_iss: Option<u32>) {
        if seg.flags & (flag::SYN | flag::ACK | flag::RST | flag::FIN) == flag::SYN
            && let Some(slot) = self.find_listener(tuple.local, hash)
        {
            self.syn_input(slot, tuple, hash, seg, min_iss);
        } else {
            self.send_reset(tuple, brief(seg));
        }
    }

    /// The listener for an address: one of exactly that address, one of the family's wildcard, one of both, the "any" listener.
    /// Among those that share a port (SO_REUSEPORT) the hash of the connection decides.
    fn find_listener(&self, local: End, hash: u32) -> Option<u32> {
        let mut best = Best::default();
        for &slot in self.ports.binders(ports::TCP, local.port) {
            let Some(Sock { kind: Kind::Listener(l), .. }) = self.sockets.get(slot) else { continue };
            let score = match l.local.ip {
                ip if ip == local.ip => 3,
                Ip::ANY4 if local.ip.is_v4() => 2,
                Ip::ANY if !(l.v6_only && local.ip.is_v4()) => 1,
                _ => continue,
            };
            best.offer(score, slot, l.reuse_port.then_some(hash));
        }
        best.slot.or(self.any_listener)
    }

    fn syn_input(&mut self, slot: u32, tuple: &Tuple, hash: u32, seg: &Segment, min_iss: Option<u32>) {
        let generation = self.sockets.generation(slot);
        let Some(Sock { kind: Kind::Listener(l), .. }) = self.sockets.get(slot) else { return };
        let stage = match l.on_syn(self.now) {
            OnSyn::Drop => return,
            OnSyn::Answer => Stage::Claims,
            OnSyn::Park if l.any => Stage::Owner,
            OnSyn::Park => Stage::Parked,
        };
        // In a flood, whoever has waited longest goes: an honest peer answers within a round trip, a forged one never.
        if l.is_crowded() || self.half.slab.len() >= self.config.limits.half_open {
            match self.half.oldest() {
                Some(oldest) => self.remove_half(oldest),
                None => return,
            }
        }
        let mut iss = self.isn(tuple);
        if let Some(min) = min_iss
            && lt(iss, min)
        {
            iss = min;
        }
        let half = Half {
            tuple: *tuple,
            hash,
            listener: (slot, generation),
            irs: seg.seq,
            iss,
            ts_recent: seg.ts.map_or(0, |t| t.0),
            window: seg.window,
            mss: seg.mss.unwrap_or(MSS_DEFAULT).max(MSS_MIN),
            scale: seg.scale,
            sack: seg.sack_permitted,
            ts: seg.ts.is_some(),
            retries: 0,
            answered_at: None,
            stage,
        };
        let Some(half_slot) = self.half.insert(self.now, half) else { return };
        if !self.demux.insert(hash, half_slot | HALF) {
            self.half.slab.remove(half_slot);
            return;
        }
        let half_generation = self.half.slab.generation(half_slot);
        if let Some(Sock { kind: Kind::Listener(l), .. }) = self.sockets.get_mut(slot) {
            l.half += 1;
            match stage {
                Stage::Claims | Stage::Overdue => l.claims += 1,
                Stage::Parked | Stage::Owner => l.pending.push_back((half_slot, half_generation)),
            }
        }
        match stage {
            Stage::Claims | Stage::Overdue => self.answer_syn(half_slot),
            Stage::Parked => {}
            Stage::Owner => self.raise(slot, Ready::ACCEPT),
        }
    }

    /// Answers the SYNs of a listener that wait for room, as far as there is some, in the order in which they have come.
    pub(crate) fn unpark(&mut self, listener: u32) {
        while let Some(Sock { kind: Kind::Listener(l), .. }) = self.sockets.get_mut(listener)
            && !l.any
            && let Some(&(slot, generation)) = l.pending.front()
        {
            let alive = self.half.slab.is(slot, generation);
            if alive && !l.has_room(self.now) {
                return;
            }
            l.pending.pop_front();
            if alive {
                self.answer_parked(slot);
            }
        }
    }

    fn answer_parked(&mut self, old: u32) {
        let Some(slot) = self.half.unpark(self.now, old) else { return };
        let Some(&Half { hash, listener, .. }) = self.half.slab.get(slot) else { return };
        self.demux.replace(hash, old | HALF, slot | HALF);
        if let Some(Sock { kind: Kind::Listener(l), .. }) = self.sockets.get_mut(listener.0) {
            l.claims += 1;
        }
        self.answer_syn(slot);
    }

    /// SYN-ACK for the first time: it is timed.
    fn answer_syn(&mut self, slot: u32) {
        self.send_syn_ack(slot);
        if let Some(h) = self.half.slab.get_mut(slot) {
            h.answered_at = NonZeroU32::new((self.now / 1000) as u32);
        }
    }

    /// And again: which one the peer acknowledges is not known (Karn's rule).
    fn answer_syn_again(&mut self, slot: u32) {
        if let Some(h) = self.half.slab.get_mut(slot) {
            h.answered_at = None;
        }
        self.send_syn_ack(slot);
    }

    /// The window of a listener's connections in the handshake.
    fn first_window(&self, receive_buffer: Option<u32>) -> u32 {
        let most = self.config.limits.receive_buffer.max(2048);
        receive_buffer.unwrap_or(WINDOW_INITIAL).clamp(2048, most).min(WINDOW_INITIAL)
    }

    fn send_syn_ack(&mut self, slot: u32) {
        let Some(h) = self.half.slab.get(slot) else { return };
        let tuple = h.tuple;
        let mss = self.link_mss(&tuple);
        let (seq, ack) = (h.iss, h.irs.wrapping_add(1));
        let mut options = [1u8; 20];
        let [a, b] = mss.to_be_bytes();
        options[..4].copy_from_slice(&[2, 4, a, b]);
        let mut len = 4;
        if h.ts {
            options[4..8].copy_from_slice(&if h.sack { [4, 2, 8, 10] } else { [1, 1, 8, 10] });
            let value = ((self.now / MS) as u32).wrapping_add(self.ts_offset(&tuple));
            options[8..12].copy_from_slice(&value.to_be_bytes());
            options[12..16].copy_from_slice(&h.ts_recent.to_be_bytes());
            len = 16;
        } else if h.sack {
            options[4..8].copy_from_slice(&[1, 1, 4, 2]);
            len = 8;
        }
        if h.scale.is_some() {
            options[len..len + 4].copy_from_slice(&[1, 3, 3, WINDOW_SCALE]);
            len += 4;
        }
        let (limit, ip) = match self.sockets.get(h.listener.0).map(|s| &s.kind) {
            Some(Kind::Listener(l)) => (l.options.receive_buffer, l.ip),
            _ => (None, IpOptions::default()),
        };
        let window = self.first_window(limit) as u16;
        let options = options.get(..len).unwrap_or(&[]);
        self.send_control(&tuple, Control { seq, ack, flags: flag::SYN | flag::ACK, window, options, ip });
    }

    /// A segment for a half-open connection.
    fn half_input(&mut self, slot: u32, tuple: &Tuple, seg: Segment) {
        let Some(h) = self.half.slab.get_mut(slot) else { return };
        let next = h.irs.wrapping_add(1);
        if seg.has(flag::RST) {
            if seg.seq == next {
                let listener = h.listener.0;
                self.remove_half(slot);
                self.unpark(listener);
            }
            return;
        }
        if seg.has(flag::SYN) {
            // The SYN again. Any other is not answered: the entry's timer will sort it out.
            if seg.seq == h.irs && !seg.has(flag::ACK) {
                if let Some((value, _)) = seg.ts {
                    // The answer echoes this one's timestamp, or the peer counts its timeout as part of the round trip.
                    h.ts_recent = later(h.ts_recent, value);
                }
                if h.stage.is_answered() {
                    self.answer_syn_again(slot);
                }
            }
            return;
        }
        if !seg.has(flag::ACK) || !h.stage.is_answered() {
            return;
        }
        if seg.ack != h.iss.wrapping_add(1) {
            self.send_reset(tuple, brief(&seg));
            return;
        }
        if h.ts && seg.ts.is_some_and(|(value, _)| lt(value, h.ts_recent)) {
            // PAWS (RFC 7323 §5.3). SYN-ACK goes out again later.
            return;
        }
        let (listener, generation) = h.listener;
        let alive = self.sockets.is(listener, generation);
        let (options, ip) = match self.sockets.get(listener).map(|s| &s.kind) {
            // When the queue is full, the acknowledgement is as good as lost; SYN-ACK goes out again later.
            Some(Kind::Listener(l)) if alive && l.takes_connection() => (l.options, l.ip),
            Some(Kind::Listener(_)) if alive => {
                if let Some(h) = self.half.slab.get_mut(slot) {
                    h.answered_at = None;
                }
                return;
            }
            _ => {
                self.remove_half(slot);
                self.send_reset(tuple, brief(&seg));
                return;
            }
        };
        // What the connection would not take must not make one: it would wait for this acknowledgement, and nothing would bring it again.
        let (offset, window) = (seg.seq.wrapping_sub(next), self.first_window(options.receive_buffer));
        if offset > window || (offset == window && seg.len() > 0) {
            return;
        }
        let Ok(handle) = self.promote(slot, &options, ip, is::UNACCEPTED) else { return };
        if let Some(Sock { kind: Kind::Listener(l), .. }) = self.sockets.get_mut(listener) {
            l.ready.push_back((handle.slot, handle.generation));
        }
        self.conn_input(handle.slot, tuple, seg);
        self.raise(listener, Ready::ACCEPT.union(Ready::READABLE));
    }

    /// Makes a connection of a half-open entry.
    pub(crate) fn promote(
        &mut self,
        slot: u32,
        options: &TcpOptions,
        ip: IpOptions,
        flags: u32,
    ) -> Result<Handle, Error> {
        let h = self.half.slab.get(slot).ok_or(Error::BadHandle)?;
        let tuple = h.tuple;
        if self.memory_free() < size_of::<Conn>() {
            return Err(Error::NoMemory);
        }
        let (mss, offset) = (self.link_mss(&tuple), self.ts_offset(&tuple));
        let mut c = Conn::from_half(h, options, &self.config.limits, offset, mss, self.now);
        c.flags |= flags | is::HASHED;
        c.ip = ip;
        if self.iface.is_local(tuple.remote.ip) {
            c.flags |= is::LOCAL;
        }
        let hash = h.hash;
        let handle = self.new_socket(Kind::Tcp(Box::new(c)))?;
        self.demux.replace(hash, slot | HALF, handle.slot | CONN);
        self.ports.join(tuple.local.port);
        self.forget_half(slot);
        Ok(handle)
    }

    /// Removes a half-open entry.
    pub(crate) fn remove_half(&mut self, slot: u32) {
        if let Some(h) = self.half.slab.get(slot) {
            self.demux.remove(h.hash, slot | HALF);
            self.forget_half(slot);
        }
    }

    fn forget_half(&mut self, slot: u32) {
        let Some(h) = self.half.slab.remove(slot) else { return };
        if self.sockets.is(h.listener.0, h.listener.1)
            && let Some(Sock { kind: Kind::Listener(l), .. }) = self.sockets.get_mut(h.listener.0)
        {
            l.half = l.half.saturating_sub(1);
            l.claims = l.claims.saturating_sub(u32::from(h.stage == Stage::Claims));
        }
    }

    pub(crate) fn half_open_timers(&mut self) {
        while let Some(slot) = self.half.pop_due(self.now) {
            let Some(h) = self.half.slab.get_mut(slot) else { continue };
            let (owner, generation) = h.listener;
            let alive = self.sockets.is(owner, generation);
            match (h.stage, self.sockets.get_mut(owner).filter(|_| alive).map(|s| &mut s.kind)) {
                (Stage::Claims, Some(Kind::Listener(l))) => {
                    l.claim_lapsed(self.now);
                    h.stage = Stage::Overdue;
                    self.half.wait_again(self.now, slot);
                }
                (Stage::Overdue, Some(Kind::Listener(_))) if h.retries < SYN_ACK_RETRIES => {
                    h.retries += 1;
                    self.answer_syn_again(slot);
                    self.half.wait_again(self.now, slot);
                }
                _ => self.remove_half(slot),
            }
            self.unpark(owner);
        }
    }

    /// A segment for a TIME-WAIT entry.
    fn old_input(&mut self, slot: u32, tuple: &Tuple, hash: u32, seg: Segment) {
        let Some(o) = self.time_wait.slab.get(slot) else { return };
        if seg.has(flag::RST) {
            // Else ignored, lest an old duplicate kill the state (RFC 1337). Exactly there is the answer of a client whose new SYN we have acknowledged as an old
            // one; ignored as well, its port would be locked. Linux does the same.
            if seg.seq == o.rcv_nxt {
                self.remove_time_wait(slot);
            }
            return;
        }
        if seg.has(flag::SYN) && !seg.has(flag::ACK) && o.yields_to(seg.seq, seg.ts.map(|t| t.0)) {
            let min = o.snd_nxt.wrapping_add(128_000);
            self.remove_time_wait(slot);
            self.new_input(tuple, hash, &seg, Some(min));
            return;
        }
        if seg.len() > 0 && self.reset_bucket.take(self.now) {
            self.acknowledge_old(slot);
        }
    }

    fn acknowledge_old(&mut self, slot: u32) {
        let Some(o) = self.time_wait.slab.get(slot) else { return };
        let mut options = [1u8; 12];
        let mut len = 0;
        if let Some((recent, offset)) = o.ts {
            options[2..4].copy_from_slice(&[8, 10]);
            options[4..8].copy_from_slice(&((self.now / MS) as u32).wrapping_add(offset).to_be_bytes());
            options[8..].copy_from_slice(&recent.to_be_bytes());
            len = 12;
        }
        let (tuple, seq, ack, window) = (o.tuple, o.snd_nxt, o.rcv_nxt, o.window);
        let options = options.get(..len).unwrap_or(&[]);
        self.send_control(&tuple, Control { seq, ack, flags: flag::ACK, window, options, ..Control::default() });
    }

    pub(crate) fn remove_time_wait(&mut self, slot: u32) {
        if let Some(o) = self.time_wait.slab.remove(slot) {
            self.demux.remove(o.hash, slot | OLD);
            self.ports.leave(o.tuple.local.port);
        }
    }

    /// Answers a segment with RST (RFC 9293 §3.10.7.1).
    fn send_reset(&mut self, tuple: &Tuple, seg: Brief) {
        if seg.flags & flag::RST != 0 {
            return;
        }
        // As with port unreachable: an exact limit tells whoever counts resets how many others got, and so which connections there are.
        let random = self.random.next();
        if !self.reset_bucket.take_some(self.now, random) {
            return;
        }
        let reset = if seg.flags & flag::ACK != 0 {
            Control { seq: seg.ack, flags: flag::RST, ..Control::default() }
        } else {
            Control { ack: seg.seq.wrapping_add(seg.len), flags: flag::RST | flag::ACK, ..Control::default() }
        };
        self.send_control(tuple, reset);
    }

    /// Tells a half-open peer that there is nothing for it.
    pub(crate) fn refuse_half(&mut self, slot: u32) {
        let Some(h) = self.half.slab.get(slot) else { return };
        let (tuple, ack) = (h.tuple, h.irs.wrapping_add(1));
        self.remove_half(slot);
        self.send_control(&tuple, Control { ack, flags: flag::RST | flag::ACK, ..Control::default() });
    }

    /// Puts a new connection into the demultiplexer. False if there is no memory.
    pub(crate) fn hash_in(&mut self, slot: u32) -> bool {
        let Some(Sock { kind: Kind::Tcp(c), .. }) = self.sockets.get_mut(slot) else { return false };
        if !self.demux.insert(c.hash, slot | CONN) {
            return false;
        }
        c.flags |= is::HASHED;
        self.ports.join(c.tuple.local.port);
        true
    }

    /// Draws the consequences of whatever happened to a connection, and queues it for sending.
    pub(crate) fn settle(&mut self, slot: u32) {
        self.after_emit(slot);
        let cx = cx!(self);
        if matches!(self.sockets.get(slot), Some(Sock { kind: Kind::Tcp(c), .. }) if c.wants_to_send(&cx)) {
            self.mark_ready(slot);
        }
    }

    /// The same without sending: after sending.
    pub(crate) fn after_emit(&mut self, slot: u32) {
        let now = self.now;
        let Some(Sock { kind: Kind::Tcp(c), orphan, .. }) = self.sockets.get_mut(slot) else { return };
        charge(&mut self.memory, c);
        if c.state == TcpState::TimeWait {
            let old = Old {
                tuple: c.tuple,
                hash: c.hash,
                snd_nxt: c.snd_nxt,
                rcv_nxt: c.rcv_nxt,
                ts: c.has(is::TS).then_some((c.ts_recent, c.ts_offset)),
                window: (c.window() >> c.rcv_scale).min(65_535) as u16,
            };
            c.die(None);
            let (hash, port) = (c.hash, c.tuple.local.port);
            let hashed = c.has(is::HASHED);
            c.flags &= !is::HASHED;
            let gone = *orphan;
            if hashed {
                self.demux.remove(hash, slot | CONN);
                self.enter_time_wait(now, old, hash, port);
            }
            if gone {
                self.remove_socket(slot);
            } else {
                self.flush_events(slot);
                self.recharge(slot);
            }
            return;
        }
        if c.state == TcpState::Closed {
            let gone = *orphan;
            if c.has(is::HASHED) {
                c.flags &= !is::HASHED;
                let (hash, port) = (c.hash, c.tuple.local.port);
                self.demux.remove(hash, slot | CONN);
                self.ports.leave(port);
            }
            self.timers.cancel(slot);
            if gone {
                self.remove_socket(slot);
            } else {
                self.flush_events(slot);
                self.recharge(slot);
            }
            return;
        }
        let deadline = c.deadline();
        if deadline != NEVER {
            self.timers.set(slot, deadline);
        }
        self.flush_events(slot);
    }

    fn recharge(&mut self, slot: u32) {
        if let Some(Sock { kind: Kind::Tcp(c), .. }) = self.sockets.get_mut(slot) {
            charge(&mut self.memory, c);
        }
    }

    fn flush_events(&mut self, slot: u32) {
        let Some(Sock { kind: Kind::Tcp(c), .. }) = self.sockets.get_mut(slot) else { return };
        let events = core::mem::take(&mut c.events);
        if events != Ready(0) && !c.has(is::UNACCEPTED) {
            self.raise(slot, events);
        }
    }

    fn enter_time_wait(&mut self, now: u64, old: Old, hash: u32, port: u16) {
        let max = self.config.limits.time_wait;
        if self.time_wait.is_full(max)
            && let Some(oldest) = self.time_wait.pop_due(u64::MAX)
        {
            self.remove_time_wait(oldest);
        }
        match self.time_wait.insert(now, old) {
            Some(slot) if self.demux.insert(hash, slot | OLD) => self.acknowledge_old(slot),
            Some(slot) => {
                self.time_wait.slab.remove(slot);
                self.ports.leave(port);
            }
            None => self.ports.leave(port),
        }
    }

    pub(crate) fn connection_timer(&mut self, slot: u32) {
        let cx = cx!(self);
        let Some(Sock { kind: Kind::Tcp(c), .. }) = self.sockets.get_mut(slot) else { return };
        if c.deadline() <= cx.now {
            c.on_timer(&cx);
            self.settle(slot);
        } else {
            self.after_emit(slot);
        }
    }

    /// RST to everybody who has not been accepted.
    pub(crate) fn close_listener(&mut self, l: Listener) {
        for (slot, generation) in l.ready {
            if self.sockets.is(slot, generation) {
                self.tcp_abort(slot);
            }
        }
        for (slot, generation) in l.pending {
            if self.half.slab.is(slot, generation) {
                self.refuse_half(slot);
            }
        }
    }
}

/// What is needed of a segment to answer it with RST.
#[derive(Clone, Copy)]
pub(crate) struct Brief {
    seq: u32,
    ack: u32,
    len: u32,
    flags: u8,
}

fn brief(seg: &Segment) -> Brief {
    Brief { seq: seg.seq, ack: seg.ack, len: seg.len(), flags: seg.flags }
}

/// Brings the count of used memory up to date with a connection's queues.
pub(crate) fn charge(memory: &mut usize, c: &mut Conn) {
    let held = c.held();
    *memory = (*memory + held).saturating_sub(c.charged as usize);
    c.charged = held as u32;
}
