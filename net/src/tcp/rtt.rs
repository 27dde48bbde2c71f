//! Round-trip time and retransmission timeout (RFC 6298).

use super::conn::{Conn, is};
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
        self.rto = self.srtt.saturating_add(self.rttvar.saturating_mul(4).max(1000)).clamp(RTO_MIN, RTO_MAX);
    }

    /// Times `seq` if nothing is being timed (one sample per round trip, Karn's rule).
    pub fn start_timing(&mut self, seq: u32, now: u64) {
        if !self.has(is::TIMED) {
            self.flags |= is::TIMED;
            (self.timed_seq, self.timed_at) = (seq, now);
        }
    }

    /// Takes the sample if `ack` covers the timed segment.
    pub fn stop_timing(&mut self, ack: u32, now: u64) {
        if self.has(is::TIMED) && lt(self.timed_seq, ack) {
            self.flags &= !is::TIMED;
            let us = now.saturating_sub(self.timed_at) / 1000;
            self.rtt_sample(us.min(u64::from(u32::MAX)) as u32);
        }
    }

    /// The timeout with its back-off, ns.
    pub fn rto_ns(&self) -> u64 {
        let us = u64::from(self.rto) << self.backoff.min(20);
        us.min(u64::from(RTO_MAX)) * 1000
    }
}
