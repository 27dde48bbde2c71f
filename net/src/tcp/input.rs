//! A segment arrives (RFC 9293 §3.10.7).

use super::conn::{Conn, Syn, is};
use super::segment::Segment;
use super::*;
use crate::Error;
use crate::types::{Ready, TcpState};

/// What the stack has to do for a segment, besides what the connection's state says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Done,
    /// Answer this segment with RST.
    Reset,
}

impl Conn {
    /// Takes a segment for this connection.
    pub fn on_segment(&mut self, cx: &Cx, mut seg: Segment, link_mss: u16) -> Verdict {
        if self.state == TcpState::Closed {
            return Verdict::Reset;
        }
        if self.state == TcpState::SynSent {
            return self.in_syn_sent(cx, seg, link_mss);
        }
        if self.has(is::TS)
            && let Some((value, _)) = seg.ts
            && !seg.has(flag::RST)
            && lt(value, self.ts_recent)
            && cx.seconds().wrapping_sub(self.ts_recent_at) < TS_VALID
        {
            // PAWS (RFC 7323 §5.3).
            self.challenge(cx, &seg);
            return Verdict::Done;
        }
        if self.state == TcpState::SynReceived
            && seg.flags & (flag::SYN | flag::ACK) == flag::SYN | flag::ACK
            && seg.seq.wrapping_add(1) == self.rcv_nxt
        {
            // Simultaneous open (RFC 9293 §3.5): the peer's SYN is known, what counts is its acknowledgement.
            seg.flags &= !flag::SYN;
            seg.seq = self.rcv_nxt;
        }
        let seq = seg.seq;
        if !self.trim(&mut seg) {
            if !seg.has(flag::RST) {
                if self.state == TcpState::SynReceived && seg.has(flag::SYN) {
                    // The SYN again: so is our answer.
                    self.snd_nxt = self.iss;
                } else {
                    let recent = self.last_ack.wrapping_sub(self.rcv_limit);
                    if seg.has(flag::ACK) && !self.is_strange(seg.ack) && seg.len() > 0 && le(recent, seq) {
                        // Sent again since our acknowledgement got lost. The next one must not echo the timestamp of the first time, or the peer
                        // takes its timeout for the round trip, and waits even longer when that gets lost. Only what a window can have
                        // held: a forged segment has to guess as well as one with data that we would take.
                        self.note_timestamp(cx, &seg, seq);
                    }
                    self.challenge(cx, &seg);
                }
            }
            return Verdict::Done;
        }
        if seg.has(flag::RST) {
            // Exactly there, not only when it is cut to the window: whoever guesses may send data with it.
            if seq == self.rcv_nxt {
                self.die(Some(match self.state {
                    TcpState::CloseWait => Error::BrokenPipe,
                    TcpState::SynReceived if self.error.is_none() => Error::ConnectionRefused,
                    _ => Error::ConnectionReset,
                }));
            } else {
                // RFC 5961 §3.2.
                self.challenge(cx, &seg);
            }
            return Verdict::Done;
        }
        if seg.has(flag::SYN) {
            // RFC 5961 §4.2.
            self.challenge(cx, &seg);
            return Verdict::Done;
        }
        if !seg.has(flag::ACK) {
            return Verdict::Done;
        }
        if self.is_strange(seg.ack) {
            if self.state == TcpState::SynReceived {
                return Verdict::Reset;
            }
            // RFC 5961 §5.2.
            self.challenge(cx, &seg);
            return Verdict::Done;
        }
        if self.state == TcpState::SynReceived {
            if !lt(self.snd_una, seg.ack) {
                return Verdict::Reset;
            }
            self.establish(cx);
        }
        self.heard_at = cx.now;
        self.probes = 0;
        self.note_timestamp(cx, &seg, seq);
        self.on_ack(cx, &seg);
        if self.state == TcpState::Closed {
            return Verdict::Done;
        }
        self.on_data(cx, &seg, link_mss)
    }

    /// Whether an acknowledgement is of something that we have never sent, or older than it can be (RFC 5961 §5.2).
    fn is_strange(&self, ack: u32) -> bool {
        lt(self.snd_max, ack) || lt(ack, self.snd_una.wrapping_sub(self.snd_wnd_max))
    }

    /// Remembers the timestamp of a segment that began at `seq` and that PAWS has let through (RFC 7323 §4.3).
    fn note_timestamp(&mut self, cx: &Cx, seg: &Segment, seq: u32) {
        if self.has(is::TS)
            && let Some((value, _)) = seg.ts
            && le(seq, self.last_ack)
        {
            self.ts_recent = value;
            self.ts_recent_at = cx.seconds();
        }
    }

    fn in_syn_sent(&mut self, cx: &Cx, seg: Segment, link_mss: u16) -> Verdict {
        let acked = seg.has(flag::ACK);
        if acked && (le(seg.ack, self.iss) || lt(self.snd_max, seg.ack)) {
            return if seg.has(flag::RST) { Verdict::Done } else { Verdict::Reset };
        }
        if seg.has(flag::RST) {
            if acked {
                self.die(Some(Error::ConnectionRefused));
            }
            return Verdict::Done;
        }
        if !seg.has(flag::SYN) {
            return Verdict::Done;
        }
        let mss = seg.mss.unwrap_or(MSS_DEFAULT).min(link_mss);
        let ts = seg.ts.map(|t| t.0);
        let syn = Syn { irs: seg.seq, window: seg.window, scale: seg.scale, sack: seg.sack_permitted, ts, mss };
        self.receive_syn(&syn, cx.now);
        self.heard_at = cx.now;
        if acked {
            self.learn_rtt(cx, &seg);
            self.snd_wl2 = seg.ack;
            self.snd_una = seg.ack;
            self.snd_nxt = later(self.snd_nxt, seg.ack);
            self.flags &= !is::SYN_UNACKED;
            self.establish(cx);
            self.flags |= is::ACK_NOW;
            self.rto_at = NEVER;
            self.event(Ready::CONNECTED);
        } else {
            // Simultaneous open: our SYN goes out again, with an acknowledgement.
            self.state = TcpState::SynReceived;
            self.snd_nxt = self.iss;
        }
        Verdict::Done
    }

    fn establish(&mut self, cx: &Cx) {
        self.backoff = 0;
        self.error = None;
        self.progress_at = cx.now;
        self.state = if self.has(is::FIN_QUEUED) { TcpState::FinWait1 } else { TcpState::Established };
        self.event(Ready::CONNECTED.union(Ready::WRITABLE));
        self.schedule_misc();
    }

    /// Cuts the segment to the receive window; false if nothing of it is acceptable.
    fn trim(&mut self, seg: &mut Segment) -> bool {
        let window = self.window();
        let len = seg.len();
        if len == 0 {
            // Right at the edge is fine: that is where the acknowledgements of a peer are that has filled the window.
            return le(self.rcv_nxt, seg.seq) && seg.seq.wrapping_sub(self.rcv_nxt) <= window;
        }
        if lt(seg.seq, self.rcv_nxt) {
            let mut old = self.rcv_nxt.wrapping_sub(seg.seq);
            if old >= len {
                return false;
            }
            if seg.has(flag::SYN) {
                seg.flags &= !flag::SYN;
                old -= 1;
            }
            seg.payload = seg.payload.get(old as usize..).unwrap_or(&[]);
            seg.seq = self.rcv_nxt;
        }
        let offset = seg.seq.wrapping_sub(self.rcv_nxt);
        if offset > window || (offset == window && offset != 0) {
            return false;
        }
        let fits = (window - offset) as usize;
        if seg.payload.len() > fits {
            // Among others a probe of a closed window, which must be answered (RFC 9293 §3.8.6.1).
            self.flags |= is::ACK_NOW;
            seg.payload = seg.payload.get(..fits).unwrap_or(&[]);
            seg.flags &= !flag::FIN;
        }
        true
    }

    /// An acknowledgement that answers something suspicious; one per 2 ms at most (RFC 5961 §7), and where that has no data one per 500 ms, as on Linux: two
    /// peers that find each other suspicious would answer answers for ever.
    fn challenge(&mut self, cx: &Cx, seg: &Segment) {
        let pause = if seg.payload.is_empty() { 500 * MS } else { 2 * MS };
        if self.challenged_at == 0 || cx.now >= self.challenged_at + pause {
            self.challenged_at = cx.now;
            self.flags |= is::ACK_NOW;
        }
    }

    fn on_ack(&mut self, cx: &Cx, seg: &Segment) {
        let mut news = false;
        if self.has(is::SACK) {
            for (from, to) in seg.sack.iter().flatten() {
                // Only what we have sent and what is not acknowledged (D-SACK blocks are below).
                if lt(self.snd_una, *to) && le(*to, self.snd_max) && lt(*from, *to) && le(self.snd_una, *from) {
                    news |= self.sacked.add(*from, *to);
                }
            }
        }
        let window = u32::from(seg.window) << self.snd_scale;
        let window_same = window == self.snd_wnd;
        let advances = lt(self.snd_una, seg.ack);
        if advances {
            self.on_new_ack(cx, seg);
        } else if seg.ack == self.snd_una && self.outstanding() && self.snd_nxt == self.snd_max {
            let duplicate = if self.has(is::SACK) { news } else { seg.payload.is_empty() && window_same };
            if duplicate && !seg.has(flag::FIN) {
                self.on_duplicate();
            }
        }
        // What acknowledges something new is newer than a segment from further ahead that came out of order (as Linux has it).
        if advances || lt(self.snd_wl1, seg.seq) || (self.snd_wl1 == seg.seq && le(self.snd_wl2, seg.ack)) {
            let opens = self.snd_wnd < u32::from(self.mss) && window > self.snd_wnd;
            // What was in flight when the window closed lay beyond its edge: the peer has thrown it away (RFC 9293 §3.8.6).
            let closed_over = self.outstanding() && self.snd_wnd == 0 && self.backoff > 0;
            if opens && (closed_over || !self.outstanding()) {
                // The persist timer has done its work.
                if closed_over {
                    self.start_over();
                }
                self.backoff = 0;
                self.rto_at = NEVER;
            }
            if window == 0 && self.user_timeout == 0 && !self.has(is::ORPHAN) {
                // A peer that answers our probes with a closed window is alive.
                self.progress_at = cx.now;
            }
            self.snd_wnd = window;
            self.snd_wnd_max = self.snd_wnd_max.max(window);
            self.snd_wl1 = seg.seq;
            self.snd_wl2 = seg.ack;
        }
    }

    fn on_new_ack(&mut self, cx: &Cx, seg: &Segment) {
        let ack = seg.ack;
        let acked = ack.wrapping_sub(self.snd_una);
        let mss = u32::from(self.mss);
        let end = self.data_end();
        let fin_acked = self.has(is::FIN_QUEUED) && lt(end, ack);
        let syn = u32::from(self.has(is::SYN_UNACKED));
        let bytes = acked - syn - u32::from(fin_acked);
        self.flags &= !is::SYN_UNACKED;
        self.learn_rtt(cx, seg);
        self.send.consume(bytes as usize);
        self.snd_una = ack;
        self.snd_nxt = later(self.snd_nxt, ack);
        self.sacked.trim(ack);
        self.backoff = 0;
        self.progress_at = cx.now;
        if !self.has(is::RECOVERY) {
            // Marks stay near, or they would be ahead again after 2 GiB.
            self.recover = later(self.recover, ack);
        }
        self.snd_small = later(self.snd_small, ack);
        if self.has(is::RECOVERY) {
            let filled = le(self.rexmit, ack);
            self.rexmit = later(self.rexmit, ack);
            if le(self.recover, ack) {
                self.flags &= !(is::RECOVERY | is::FORCE | is::EARLY);
                self.dup_acks = 0;
            } else if !self.has(is::SACK) || (filled && self.sacked.is_empty()) {
                // Partial acknowledgement (RFC 6582 §3.2 step 3): the next hole starts here. With SACK, if nothing behind it has arrived
                // that would tell (there, RFC 6675 §4 has its rescue retransmission).
                self.rexmit = ack;
                self.flags |= is::FORCE;
                self.dup_acks = self.dup_acks.saturating_sub((acked / mss).min(255) as u8);
            }
        } else {
            self.dup_acks = 0;
            if self.has(is::LIMITED) && bytes > 0 {
                self.cubic.on_ack(cx.now, bytes, mss, self.srtt);
            }
            let lost = self.has(is::SACK) && self.lost_edge().is_some() && self.snd_nxt == self.snd_max;
            if lost && self.may_recover() {
                self.enter_recovery();
            }
        }
        self.flags &= !is::PROBED;
        if self.outstanding() {
            self.arm_rto(cx.now);
        } else {
            self.rto_at = NEVER;
        }
        if !self.has(is::FIXED_SEND) {
            // Two windows' worth, so that the application can stay ahead.
            let want = self.cubic.cwnd.saturating_mul(2).min(cx.limits.send_buffer);
            self.send_limit = self.send_limit.max(want);
        }
        if bytes > 0 {
            self.tell_room();
        }
        if fin_acked {
            // Whoever closes and waits until the peer has everything (SO_LINGER) hears of it.
            self.event(Ready::WRITABLE);
            match self.state {
                TcpState::FinWait1 => {
                    self.state = TcpState::FinWait2;
                    if self.has(is::ORPHAN) {
                        self.misc_at = cx.now + ORPHAN_TIME;
                    }
                }
                TcpState::Closing => self.state = TcpState::TimeWait,
                TcpState::LastAck => self.die(None),
                _ => {}
            }
        }
    }

    fn on_duplicate(&mut self) {
        self.dup_acks = self.dup_acks.saturating_add(1);
        if self.has(is::RECOVERY) || !self.may_recover() {
            return;
        }
        if self.has(is::PROBED) && self.has(is::SACK) {
            // The answer to a tail loss probe: what it leaves out is gone.
            self.flags |= is::EARLY;
        }
        let lost = self.has(is::SACK) && self.lost_edge().is_some();
        if self.dup_acks >= 3 || lost {
            self.enter_recovery();
        }
    }

    /// Whether recovery may begin: not for what was sent before the last timeout (RFC 6582 §3.2 step 1, RFC 6675 §5.1).
    pub fn may_recover(&self) -> bool {
        le(self.recover, self.snd_una)
    }

    pub fn enter_recovery(&mut self) {
        self.flags |= is::RECOVERY | is::FORCE;
        self.flags &= !(is::TIMED | is::TAIL_PROBE);
        self.recover = self.snd_max;
        self.rexmit = self.snd_una;
        self.cubic.on_loss(u32::from(self.mss));
    }

    fn on_data(&mut self, cx: &Cx, seg: &Segment, link_mss: u16) -> Verdict {
        let fin = seg.has(flag::FIN);
        if seg.payload.is_empty() && !fin {
            return Verdict::Done;
        }
        if self.has(is::FIN_RECEIVED) {
            // Nothing comes after FIN.
            self.flags |= is::ACK_NOW;
            return Verdict::Done;
        }
        if !seg.payload.is_empty() && self.has(is::ORPHAN) {
            // Nobody will read it (RFC 9293 §3.6.1).
            self.die(None);
            return Verdict::Reset;
        }
        if seg.seq != self.rcv_nxt {
            // Only while memory is plentiful: what is ahead of its turn can be had again.
            let plenty = cx.memory_free.saturating_sub(seg.payload.len()) > cx.limits.memory / 4;
            // The window bounds the data; this is about what it takes to keep them.
            if plenty && self.ahead.held() + seg.payload.len() <= 2 * self.rcv_limit as usize {
                self.ahead.insert(seg.seq, seg.payload);
            }
            if fin {
                self.flags |= is::FIN_AHEAD;
                self.fin_seq = seg.seq.wrapping_add(seg.payload.len() as u32);
            }
            self.flags |= is::ACK_NOW;
            return Verdict::Done;
        }
        let len = seg.payload.len();
        // A super-frame does not tell how large the peer's segments are.
        if len > usize::from(self.rcv_mss) && len <= usize::from(link_mss) {
            self.rcv_mss = len as u16;
        }
        let taken = if self.has(is::READ_SHUT) {
            len
        } else {
            let mut room = self.receive_room(cx);
            if room < len {
                // What is ahead of its turn makes room for what is not: the peer still has it (RFC 2018 §8).
                room += self.ahead.held();
                self.ahead.clear();
            }
            self.recv.push(seg.payload.get(..room).unwrap_or(seg.payload))
        };
        self.rcv_nxt = self.rcv_nxt.wrapping_add(taken as u32);
        if taken > 0 {
            self.event(Ready::READABLE);
        }
        if taken < len {
            self.flags |= is::ACK_NOW;
            return Verdict::Done;
        }
        let had_holes = !self.ahead.is_empty();
        while let Some((seq, mut piece)) = self.ahead.pop(self.rcv_nxt) {
            let old = self.rcv_nxt.wrapping_sub(seq) as usize;
            if old >= piece.len() {
                continue;
            }
            piece.drain(..old);
            let fresh = piece.len();
            let taken = if self.has(is::READ_SHUT) { fresh } else { self.recv.push_owned(piece) };
            self.rcv_nxt = self.rcv_nxt.wrapping_add(taken as u32);
            if taken < fresh {
                break;
            }
        }
        let fin = fin || (self.has(is::FIN_AHEAD) && self.rcv_nxt == self.fin_seq);
        if fin {
            self.on_fin();
        }
        self.acknowledge(cx, len, had_holes || fin);
        Verdict::Done
    }

    fn on_fin(&mut self) {
        self.flags |= is::FIN_RECEIVED;
        self.rcv_nxt = self.rcv_nxt.wrapping_add(1);
        self.ahead.clear();
        self.event(Ready::READABLE.union(Ready::READ_CLOSED));
        if self.has(is::FIN_QUEUED) {
            self.event(Ready::HANGUP);
        }
        self.state = match self.state {
            TcpState::Established => TcpState::CloseWait,
            TcpState::FinWait1 => TcpState::Closing,
            TcpState::FinWait2 => TcpState::TimeWait,
            other => other,
        };
    }

    /// Decides when to acknowledge `len` new bytes (RFC 9293 §3.8.6.3, RFC 5681 §4.2).
    fn acknowledge(&mut self, cx: &Cx, len: usize, at_once: bool) {
        let unacked = self.rcv_nxt.wrapping_sub(self.last_ack);
        let full = len >= usize::from(self.rcv_mss);
        if self.has(is::QUICK_ACK) {
            self.flags |= is::ACK_NOW;
        } else if full && self.quick > 0 && !self.has(is::LATE_ACK) {
            self.quick -= 1;
            self.flags |= is::ACK_NOW;
        }
        if at_once || unacked >= 2 * u32::from(self.rcv_mss) {
            self.flags |= is::ACK_NOW;
        } else if self.ack_at == NEVER {
            self.ack_at = cx.now + ACK_DELAY;
        }
    }
}
