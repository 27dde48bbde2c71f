//! Round-trip time and retransmission timeout (RFC 6298).

use super::conn::{Conn, is};
use super::segment::Segment;
use super::*;

impl Conn {
    /// A segment came back after `us` µs.
    pub fn rtt_sample(&mut self, us: u32) {
        let us = us.clamp(1, RTO_MAX);
        if self.srtt == 0 {
            self.srtt = us;
            self.rttvar = us / 2;
        } else {
            let off = self.srtt.abs_diff(us);
            self.rttvar = self.rttvar - self.rttvar / 4 + off / 4;
            self.srtt = self.srtt - self.srtt / 8 + us / 8;
        }
        self.rto = self.srtt.saturating_add(self.rttvar.saturating_mul(4).max(RTO_MARGIN)).min(RTO_MAX);
    }

    /// Times `seq` if nothing is being timed (one sample per round trip, Karn's rule).
    pub fn start_timing(&mut self, seq: u32, now: u64) {
        if !self.has(is::TIMED) {
            self.flags |= is::TIMED;
            (self.timed_seq, self.timed_at) = (seq, now);
        }
    }

    /// Learns from a segment that acknowledges something new: when the timed one was sent, or else what the timestamp says, which is right
    /// also for what was sent twice (RFC 7323 §4). If nothing is known, the timeout stays as far as it was backed off until something is
    /// (Karn's algorithm; RFC 6298 §5.7 for the SYN): a path that is longer than the timeout could never be timed otherwise.
    pub fn learn_rtt(&mut self, cx: &Cx, seg: &Segment) {
        let sample = if self.has(is::TIMED) {
            let us = cx.now.saturating_sub(self.timed_at) / 1000;
            lt(self.timed_seq, seg.ack).then_some(us.min(u64::from(u32::MAX)) as u32)
        } else if self.has(is::TS) {
            let age = seg.ts.map(|t| cx.ms().wrapping_add(self.ts_offset).wrapping_sub(t.1));
            age.filter(|ms| *ms < RTO_MAX / 1000).map(|ms| ms.max(1) * 1000)
        } else {
            None
        };
        if let Some(us) = sample {
            self.flags &= !is::TIMED;
            self.rtt_sample(us);
        } else if self.backoff > 0 && self.snd_wnd > 0 {
            let most = if self.has(is::SYN_UNACKED) { RTO_AFTER_SYN } else { RTO_MAX };
            self.rto = (self.rto_ns() / 1000).min(u64::from(most)) as u32;
        }
    }

    /// The timeout with its back-off, ns.
    pub fn rto_ns(&self) -> u64 {
        let us = u64::from(self.rto) << self.backoff.min(20);
        us.min(u64::from(RTO_MAX)) * 1000
    }

    /// Arms the retransmission timer. A good while before the timeout, at the latest in its stead, the last segment is sent again (tail loss
    /// probe, RFC 8985 §7): its acknowledgement shows what is missing before it. Never before a peer's delayed acknowledgement is due.
    pub fn arm_rto(&mut self, now: u64) {
        self.flags &= !is::TAIL_ARMED;
        let mut wait = self.rto_ns();
        let may_probe =
            self.has(is::SACK) && !self.has(is::RECOVERY | is::PROBED) && self.backoff == 0 && self.srtt != 0;
        if may_probe && self.synchronized() && self.snd_nxt == self.snd_max {
            wait = wait.min((u64::from(self.srtt) * 2000).max(TAIL_MIN));
            self.flags |= is::TAIL_ARMED;
        }
        self.rto_at = now + wait;
    }

    /// What is missing below this is lost.
    pub fn lost_edge(&self) -> Option<u32> {
        self.sacked.lost_edge(if self.has(is::EARLY) { 0 } else { u32::from(self.mss) })
    }
}
