//! What a connection sends now: which bytes, in which frames, with which flags.

use super::conn::{Conn, is};
use super::head::{self, HEAD_MAX, Out, Path, ip_len};
use super::*;
use crate::types::{FrameSink, Sent, TcpState};

/// Pieces of payload per frame.
const PIECES: usize = 60;
/// Frames that one connection may send before others get their turn.
const BURST: u32 = 8;

/// How `emit` ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Emit {
    /// Nothing left to send now.
    Idle,
    /// There is more; it is the turn of others.
    More,
    /// The sink is full.
    Full,
}

/// A segment (or super-segment) that shall go out.
struct Plan {
    seq: u32,
    len: u32,
    flags: u8,
    again: bool,
}

impl Conn {
    /// Sends what may be sent.
    pub fn emit(&mut self, cx: &Cx, path: &Path, sink: &mut dyn FrameSink) -> Emit {
        if self.state == TcpState::Closed {
            return Emit::Idle;
        }
        self.shrink_mss(path);
        for _ in 0..BURST {
            let Some(plan) = self.next(cx, path) else {
                if self.has(is::PROBE) {
                    // One old byte's sequence number and no data: the peer must answer (RFC 9293 §3.8.4). It looks at nothing else that
                    // this says, so what is due is still due after it.
                    let (due, edge) = (self.has(is::ACK_NOW) || self.ack_at != NEVER, self.rcv_adv);
                    let probe = Plan { seq: self.snd_una.wrapping_sub(1), len: 0, flags: 0, again: true };
                    if self.transmit(cx, path, sink, &probe) == Sent::Full {
                        return Emit::Full;
                    }
                    self.flags &= !is::PROBE;
                    if due || self.rcv_adv != edge {
                        self.flags |= is::ACK_NOW;
                    }
                }
                if self.synchronized() && (self.has(is::ACK_NOW) || self.window_update_due(cx)) {
                    let ack = Plan { seq: self.bare_seq(), len: 0, flags: 0, again: false };
                    if self.transmit(cx, path, sink, &ack) == Sent::Full {
                        return Emit::Full;
                    }
                }
                self.arm(cx);
                return Emit::Idle;
            };
            if self.transmit(cx, path, sink, &plan) == Sent::Full {
                return Emit::Full;
            }
            self.account(cx, &plan);
        }
        Emit::More
    }

    /// Whether `emit` may have something to do. Cheap, and never wrong when it says no.
    pub fn wants_to_send(&self, cx: &Cx) -> bool {
        let control = u32::from(self.has(is::FIN_QUEUED));
        self.has(is::ACK_NOW | is::FORCE | is::PROBE | is::RECOVERY | is::TAIL_PROBE)
            || self.snd_nxt != self.data_end().wrapping_add(control)
            || (self.outstanding() && self.rto_at == NEVER)
            || self.window_update_due(cx)
    }

    /// The sequence number of a segment without data: beyond all that was sent, also after a timeout, or a peer that has it all ignores the segment
    /// (RFC 9293 §3.10.7.4). But not beyond the peer's window, if that has shrunk, or if FIN went out as a probe of it when it was closed; what is
    /// lost of the window by its scale may be.
    pub fn bare_seq(&self) -> u32 {
        let edge = self.snd_una.wrapping_add(self.snd_wnd);
        let fin_is_probe = self.snd_wnd == 0 && self.has(is::FIN_QUEUED) && lt(self.data_end(), self.snd_max);
        let slack = if fin_is_probe { 0 } else { 1 << self.snd_scale };
        if self.snd_max.wrapping_sub(edge) as i32 <= slack { self.snd_max } else { edge }
    }

    /// The link may have become narrower than when the connection began.
    fn shrink_mss(&mut self, path: &Path) {
        let room = path.mtu.saturating_sub(ip_len(self.tuple.local.ip) + 20 + if self.has(is::TS) { 12 } else { 0 });
        self.mss = self.mss.min(room.min(65_535) as u16).max(MSS_MIN - 12);
    }

    /// Bytes that are probably in the network (RFC 6675 `pipe`).
    fn pipe(&self) -> u32 {
        let flight = self.snd_nxt.wrapping_sub(self.snd_una);
        if !self.has(is::SACK) {
            return flight.saturating_sub(u32::from(self.dup_acks) * u32::from(self.mss));
        }
        if self.sacked.is_empty() {
            return flight;
        }
        let mut pipe = flight.saturating_sub(self.sacked.covered(self.snd_una, self.snd_nxt));
        if self.has(is::RECOVERY)
            && let Some(edge) = self.lost_edge()
        {
            let from = later(self.rexmit, self.snd_una);
            if lt(from, edge) {
                let lost = edge.wrapping_sub(from).saturating_sub(self.sacked.covered(from, edge));
                pipe = pipe.saturating_sub(lost);
            }
        }
        pipe
    }

    /// The next segment, if one may be sent.
    fn next(&mut self, cx: &Cx, path: &Path) -> Option<Plan> {
        match self.state {
            TcpState::SynSent | TcpState::SynReceived => {
                let flags = flag::SYN | if self.state == TcpState::SynReceived { flag::ACK } else { 0 };
                let again = self.snd_nxt != self.snd_max;
                return (self.snd_nxt == self.iss).then_some(Plan { seq: self.iss, len: 0, flags, again });
            }
            TcpState::FinWait2 | TcpState::TimeWait => return None,
            _ => {}
        }
        let mss = u32::from(self.mss);
        let end = self.data_end();
        let pipe = self.pipe();
        if self.has(is::RECOVERY)
            && let Some(plan) = self.next_lost(end, pipe)
        {
            return Some(plan);
        }
        if self.has(is::TAIL_PROBE) {
            let stop = if lt(end, self.snd_max) { end } else { self.snd_max };
            let len = stop.wrapping_sub(self.snd_una).min(mss);
            let fin = if lt(end, self.snd_max) { flag::FIN } else { 0 };
            return Some(Plan { seq: stop.wrapping_sub(len), len, flags: flag::ACK | flag::PSH | fin, again: true });
        }
        let mut limit = end;
        if lt(self.snd_nxt, self.snd_max) {
            // After a timeout: again from the start, without what has arrived.
            let (start, stop) = self.sacked.hole(self.snd_nxt);
            self.snd_nxt = start;
            if let Some(stop) = stop {
                limit = stop;
            }
        }
        let fin_due = self.has(is::FIN_QUEUED) && le(self.snd_nxt, end);
        let left = if lt(self.snd_nxt, limit) { limit.wrapping_sub(self.snd_nxt) } else { 0 };
        if left == 0 {
            let again = lt(end, self.snd_max);
            let may = fin_due && self.snd_nxt == end && self.may_send_fin(end);
            return may.then_some(Plan { seq: end, len: 0, flags: flag::FIN | flag::ACK, again });
        }
        if self.snd_nxt == self.snd_una && cx.now.saturating_sub(self.sent_at) > self.rto_ns() && !self.outstanding() {
            self.cubic.on_idle(mss);
        }
        let again = lt(self.snd_nxt, self.snd_max);
        let edge = self.snd_una.wrapping_add(self.snd_wnd);
        let window = if lt(self.snd_nxt, edge) { edge.wrapping_sub(self.snd_nxt) } else { 0 };
        let congestion = self.cubic.cwnd.saturating_sub(pipe);
        if congestion < left.min(window) {
            self.flags |= is::LIMITED;
        } else if pipe.saturating_add(left) < self.cubic.cwnd / 2 {
            self.flags &= !is::LIMITED;
        }
        let allowed = left.min(window).min(congestion);
        let mut len = allowed.min(self.super_segment(path));
        if len >= mss {
            if len < left || self.holds_back_tail() {
                len -= len % mss;
            }
        } else {
            let may = if len == left {
                again || (fin_due && limit == end) || !self.holds_back_tail() || self.has(is::PROBE)
            } else {
                // Limited by the peer's window: silly-window avoidance (RFC 9293 §3.8.6.2.1), which the persist timer overrides.
                len > 0 && len == window && (again || len >= self.snd_wnd_max / 2 || self.has(is::PROBE))
            };
            if !may {
                return None;
            }
        }
        let mut flags = flag::ACK;
        let stop = self.snd_nxt.wrapping_add(len);
        if stop == end {
            flags |= flag::PSH | if self.has(is::FIN_QUEUED) && self.may_send_fin(end) { flag::FIN } else { 0 };
        }
        Some(Plan { seq: self.snd_nxt, len, flags, again })
    }

    /// FIN takes a place in the peer's window as well: beyond it, the sequence numbers of what follows would be too. As a probe it may be, and again.
    fn may_send_fin(&self, end: u32) -> bool {
        lt(end, self.snd_una.wrapping_add(self.snd_wnd)) || lt(end, self.snd_max) || self.has(is::PROBE)
    }

    /// The next hole to fill in fast recovery.
    fn next_lost(&mut self, end: u32, pipe: u32) -> Option<Plan> {
        let mss = u32::from(self.mss);
        let forced = self.has(is::FORCE);
        let (start, stop) = self.sacked.hole(later(self.rexmit, self.snd_una));
        if !forced {
            let edge = self.lost_edge()?;
            if !lt(start, edge) || pipe.saturating_add(mss) > self.cubic.cwnd {
                return None;
            }
        }
        let mut limit = if lt(end, self.snd_max) { end } else { self.snd_max };
        if let Some(stop) = stop
            && lt(stop, limit)
        {
            limit = stop;
        }
        let len = if lt(start, limit) { limit.wrapping_sub(start).min(mss) } else { 0 };
        let fin = self.has(is::FIN_QUEUED) && start.wrapping_add(len) == end && lt(end, self.snd_max);
        if len == 0 && !fin {
            self.flags &= !is::FORCE;
            return None;
        }
        Some(Plan { seq: start, len, flags: flag::ACK | if fin { flag::FIN } else { 0 }, again: true })
    }

    /// Whether a last segment that is not full must wait (Nagle as of Minshall, or cork).
    fn holds_back_tail(&self) -> bool {
        if self.has(is::FIN_QUEUED) {
            return false;
        }
        self.has(is::CORK | is::MORE) || (!self.has(is::NODELAY) && lt(self.snd_una, self.snd_small))
    }

    /// Largest payload of one frame.
    fn super_segment(&self, path: &Path) -> u32 {
        let mss = u32::from(self.mss);
        let tso = if self.tuple.local.ip.is_v4() { path.offload.tso4 } else { path.offload.tso6 };
        if !tso {
            return mss;
        }
        // An IP packet's length has 16 bits.
        let most = 65_535 - 100;
        most - most % mss
    }

    /// Window to advertise, as the field's value; updates the advertised edge.
    fn advertise(&mut self, cx: &Cx, syn: bool) -> u16 {
        let limit = self.window_limit(cx);
        let free = limit.saturating_sub(self.recv.len() as u32);
        let now = self.window();
        // Never shrink; do not advertise silly increases (RFC 9293 §3.8.6.2.2).
        let step = (limit / 2).min(2 * u32::from(self.rcv_mss));
        let mut window = if free >= now.saturating_add(step) || syn { free.max(now) } else { now };
        if syn {
            window = self.rcv_limit.min(WINDOW_INITIAL);
        } else {
            window = window.min(65_535 << self.rcv_scale);
        }
        let field = if syn { window } else { window >> self.rcv_scale }.min(65_535);
        let edge = self.rcv_nxt.wrapping_add(if syn { field } else { field << self.rcv_scale });
        self.rcv_adv = later(self.rcv_adv, edge);
        field as u16
    }

    /// Bytes by which the receive queue may grow now. Under pressure it has its allowance; an empty one may take two segments in any case, or
    /// everybody would wait for everybody.
    pub fn receive_room(&self, cx: &Cx) -> usize {
        let room = cx.allowance().saturating_sub(self.recv.held()).min(cx.spare());
        let least = if self.recv.is_empty() { (2 * usize::from(self.rcv_mss)).clamp(2920, 16 << 10) } else { 0 };
        room.max(least)
    }

    /// Bytes that the receive queue may have when the peer has filled the window that it would be told of now.
    fn window_limit(&self, cx: &Cx) -> u32 {
        (self.rcv_limit as usize).min(self.recv.len() + self.receive_room(cx)) as u32
    }

    /// Whether the owner has read so much that the peer should know.
    pub fn window_update_due(&self, cx: &Cx) -> bool {
        if !self.synchronized() || self.has(is::FIN_RECEIVED) {
            return false;
        }
        // No field can tell of more, nor of what its scale cuts off.
        let limit = self.window_limit(cx).min(65_535 << self.rcv_scale);
        let free = limit.saturating_sub(self.recv.len() as u32) >> self.rcv_scale << self.rcv_scale;
        let now = self.window();
        let more = free.saturating_sub(now);
        let mss = u32::from(self.rcv_mss);
        let much = more >= 2 * mss && (more >= limit / 4 || now <= limit / 8 || limit <= 8 * mss);
        more > 0 && (more >= limit / 2 || much)
    }

    /// The owner took data: maybe grow the window, maybe send an update. Whether something is to be sent.
    pub fn after_recv(&mut self, cx: &Cx) -> bool {
        if !self.has(is::FIXED_RECEIVE) && self.drained >= self.rcv_limit {
            self.drained = 0;
            if self.recv.len() < self.rcv_limit as usize / 2 && cx.memory_free / 8 > self.rcv_limit as usize {
                self.rcv_limit = self.rcv_limit.saturating_mul(2).min(cx.limits.receive_buffer.max(WINDOW_INITIAL));
            }
        }
        self.window_update_due(cx)
    }

    /// Writes the frame and hands it over.
    fn transmit(&mut self, cx: &Cx, path: &Path, sink: &mut dyn FrameSink, plan: &Plan) -> Sent {
        let syn = plan.flags & flag::SYN != 0;
        let mut options = [0u8; 40];
        let mut opt_len = 0;
        let mut put = |bytes: &[u8]| {
            if let Some(place) = options.get_mut(opt_len..opt_len + bytes.len()) {
                place.copy_from_slice(bytes);
                opt_len += bytes.len();
            }
        };
        let ts_value = cx.ms().wrapping_add(self.ts_offset);
        if syn {
            let first = self.state == TcpState::SynSent;
            let mss = path.mtu.saturating_sub(ip_len(self.tuple.local.ip) + 20).min(65_535) as u16;
            let [a, b] = mss.to_be_bytes();
            put(&[2, 4, a, b]);
            if first || self.has(is::TS) {
                put(&if first || self.has(is::SACK) { [4, 2] } else { [1, 1] });
                put(&[8, 10]);
                put(&ts_value.to_be_bytes());
                put(&self.ts_recent.to_be_bytes());
            } else if self.has(is::SACK) {
                put(&[1, 1, 4, 2]);
            }
            if first || self.rcv_scale != 0 {
                put(&[1, 3, 3, WINDOW_SCALE]);
            }
        } else {
            if self.has(is::TS) {
                put(&[1, 1, 8, 10]);
                put(&ts_value.to_be_bytes());
                put(&self.ts_recent.to_be_bytes());
            }
            if self.has(is::SACK) && !self.ahead.is_empty() {
                let mut blocks = [(0, 0); 3];
                let n = self.ahead.blocks(&mut blocks);
                put(&[1, 1, 5, 2 + 8 * n as u8]);
                for (from, to) in blocks.iter().take(n) {
                    put(&from.to_be_bytes());
                    put(&to.to_be_bytes());
                }
            }
        }
        // SACK blocks make the header longer than the mss allows for; they and data rarely meet.
        let edge = self.rcv_adv;
        let window = self.advertise(cx, syn);
        let mut pieces: [&[u8]; PIECES] = [&[]; PIECES];
        let mut count = 0;
        let mut len = 0;
        if plan.len > 0 {
            let mut want = plan.len as usize;
            let mss = usize::from(self.mss);
            let extra = opt_len.saturating_sub(if self.has(is::TS) { 12 } else { 0 });
            if extra > 0 && want > mss - extra.min(mss) && want <= mss {
                want = (mss - extra.min(mss)).max(1);
            }
            let offset = plan.seq.wrapping_sub(self.snd_una) as usize;
            self.send.seek(offset);
            (count, len) = self.send.slices(offset, want, &mut pieces);
        }
        let short = len < plan.len as usize;
        let out = Out {
            tuple: &self.tuple,
            seq: plan.seq,
            ack: self.rcv_nxt,
            flags: (plan.flags | if plan.flags == flag::SYN { 0 } else { flag::ACK })
                & if short { !(flag::FIN | flag::PSH) } else { 0xff },
            window,
            options: options.get(..opt_len).unwrap_or(&[]),
            mss: usize::from(self.mss) - opt_len.saturating_sub(if self.has(is::TS) { 12 } else { 0 }).min(40),
            ident: plan.seq as u16,
            ip: self.ip,
        };
        let mut buffer = [0; HEAD_MAX];
        let payload = pieces.get(..count).unwrap_or(&[]);
        let (head_len, hdr) = head::tcp(&mut buffer, path, &out, payload, len);
        let sent = sink.send(hdr, buffer.get(..head_len).unwrap_or(&[]), payload);
        if sent == Sent::Full {
            self.rcv_adv = edge;
            return sent;
        }
        if !syn || self.state == TcpState::SynReceived {
            self.last_ack = self.rcv_nxt;
            self.flags &= !is::ACK_NOW;
            self.ack_at = NEVER;
        }
        if len > 0 {
            self.sent_at = cx.now;
        }
        self.last_len = len as u32;
        sent
    }

    /// Moves the send variables behind a segment that went out.
    fn account(&mut self, cx: &Cx, plan: &Plan) {
        if self.has(is::TAIL_PROBE) {
            self.flags &= !is::TAIL_PROBE;
            if self.has(is::TS) || le(plan.seq, self.timed_seq) {
                // What is acknowledged from now on may have had to wait for the probe; a timestamp tells.
                self.flags &= !is::TIMED;
            }
            self.retransmits = self.retransmits.saturating_add(1);
            return;
        }
        let len = self.last_len;
        let whole = len == plan.len;
        let control = u32::from(plan.flags & flag::SYN != 0) + u32::from(whole && plan.flags & flag::FIN != 0);
        let stop = plan.seq.wrapping_add(len + control);
        if self.has(is::RECOVERY) && plan.again && lt(plan.seq, self.snd_nxt) {
            self.rexmit = later(self.rexmit, stop);
            if self.has(is::FORCE) {
                // A timeout from here: the one that runs is that of what went out a round trip ago (RFC 6675 §6).
                self.arm_rto(cx.now);
                self.flags &= !is::FORCE;
            }
            if lt(self.timed_seq, stop) {
                self.flags &= !is::TIMED;
            }
            self.retransmits = self.retransmits.saturating_add(1);
        } else {
            self.snd_nxt = stop;
            if !len.is_multiple_of(u32::from(self.mss)) {
                self.snd_small = stop;
            }
        }
        if lt(self.snd_max, stop) {
            if !self.outstanding() {
                // A timer that waited for a window, for more, or for the next hop's address is none of what goes out now.
                (self.progress_at, self.rto_at) = (cx.now, NEVER);
            }
            // Only what is new: it may be the end of a segment that begins with what was sent before.
            self.start_timing(later(plan.seq, self.snd_max), cx.now);
            self.snd_max = stop;
            if self.has(is::TAIL_ARMED) {
                // The probe waits for what is new as well, but not longer than the timeout of the oldest would (RFC 8985 §7.2).
                let latest = self.progress_at + self.rto_ns();
                self.arm_rto(cx.now);
                self.rto_at = self.rto_at.min(latest);
            } else if self.rto_at == NEVER {
                self.arm_rto(cx.now);
            }
        }
        self.flags &= !is::PROBE;
        if self.rto_at == NEVER {
            self.arm_rto(cx.now);
        }
    }

    /// Arms the timer if data waits for a window (or is corked) and nothing is under way that would bring news.
    fn arm(&mut self, cx: &Cx) {
        if self.rto_at == NEVER && self.synchronized() && (self.outstanding() || self.has_unsent()) {
            let held_back = !self.outstanding() && self.snd_wnd > 0 && self.backoff == 0;
            self.rto_at = cx.now + if held_back { HOLD_BACK } else { self.rto_ns() };
        }
    }
}
