//! What happens when a connection's time has come.

use super::conn::{Conn, is};
use super::head::ip_len;
use super::*;
use crate::Error;
use crate::types::TcpState;

impl Conn {
    /// The earliest of its timers.
    pub fn deadline(&self) -> u64 {
        self.rto_at.min(self.ack_at).min(self.misc_at)
    }

    /// Handles what is due.
    pub fn on_timer(&mut self, cx: &Cx) {
        if self.ack_at <= cx.now {
            self.ack_at = NEVER;
            self.flags |= is::ACK_NOW;
        }
        if self.rto_at <= cx.now {
            self.rto_at = NEVER;
            self.on_rto(cx);
        }
        if self.misc_at <= cx.now && self.state != TcpState::Closed {
            self.misc_at = NEVER;
            self.on_misc(cx);
        }
    }

    fn on_rto(&mut self, cx: &Cx) {
        if self.has(is::TAIL_ARMED) {
            self.flags &= !is::TAIL_ARMED;
            if self.outstanding() && self.snd_nxt == self.snd_max && self.snd_wnd > 0 {
                if self.sacked.is_empty() {
                    self.flags |= is::TAIL_PROBE;
                } else if self.may_recover() {
                    // Something behind has arrived: what a probe would tell is known (as RACK's reordering timer, RFC 8985 §6.2).
                    self.flags |= is::EARLY;
                    self.enter_recovery();
                    return;
                } else {
                    // The same after a timeout, for which no recovery may begin: only once more what is missing, within the window.
                    self.snd_nxt = self.snd_una;
                    self.flags &= !is::TIMED;
                    self.retransmits = self.retransmits.saturating_add(1);
                }
                self.flags |= is::PROBED;
                self.arm_rto(cx.now);
                return;
            }
        }
        if self.synchronized() && !self.outstanding() && self.backoff == 0 {
            if !self.has_unsent() {
                // Only an acknowledgement had to wait, for the next hop's address.
                return;
            }
            // Nothing was under way: the peer's silence begins now.
            self.progress_at = cx.now;
            if self.snd_wnd > 0 && !self.has(is::PROBE) {
                // What was held back for more goes out.
                self.flags |= is::PROBE;
                return;
            }
        }
        let patience = match self.user_timeout {
            0 if self.has(is::ORPHAN) => ORPHAN_TIME,
            0 => GIVE_UP,
            ms => u64::from(ms) * MS,
        };
        let syn = matches!(self.state, TcpState::SynSent | TcpState::SynReceived);
        if cx.now.saturating_sub(self.progress_at) >= patience || (syn && self.backoff >= SYN_RETRIES) {
            self.die(Some(self.error.unwrap_or(Error::TimedOut)));
            return;
        }
        self.backoff = self.backoff.saturating_add(1).min(20);
        if !self.outstanding() || (self.snd_wnd == 0 && !syn) {
            // The persist timer (RFC 9293 §3.8.6.1); `output` arms it again. That the peer takes nothing, not even what is in flight, tells
            // nothing of congestion.
            self.flags |= is::PROBE;
            return;
        }
        if !syn {
            if self.backoff > 1 {
                // The receiver may have dropped what it had reported (RFC 2018 §8).
                self.sacked.clear();
            }
            if self.has(is::RECOVERY) || self.may_recover() {
                self.cubic.on_timeout(u32::from(self.mss));
            } else {
                // It has been sent again after a timeout already: the threshold stays (RFC 5681 §3.1).
                self.cubic.cwnd = u32::from(self.mss);
            }
        }
        self.start_over();
        self.retransmits = self.retransmits.saturating_add(1);
    }

    /// All that is in flight is sent again, but what has arrived.
    pub fn start_over(&mut self) {
        self.snd_nxt = self.snd_una;
        self.dup_acks = 0;
        self.recover = self.snd_max;
        self.flags &= !(is::RECOVERY | is::FORCE | is::TIMED | is::TAIL_PROBE | is::EARLY);
    }

    /// There is no way to the peer: for ever (`unreachable`), or until the next hop answers.
    pub fn no_path(&mut self, cx: &Cx, unreachable: bool) {
        if unreachable && self.state == TcpState::SynSent {
            self.die(Some(Error::HostUnreachable));
        } else if unreachable && self.synchronized() && !self.outstanding() && !self.has_unsent() {
            // An acknowledgement that nobody can get: what the peer sends again asks for the next one.
            self.flags &= !(is::ACK_NOW | is::PROBE);
            self.ack_at = NEVER;
        } else if self.rto_at == NEVER && self.state != TcpState::Closed {
            self.rto_at = cx.now + self.rto_ns();
        }
    }

    /// A router on the path lets only packets of `mtu` bytes through (RFC 1191, RFC 8201).
    pub fn on_path_mtu(&mut self, mtu: usize) {
        let headers = ip_len(self.tuple.local.ip) + 20 + if self.has(is::TS) { 12 } else { 0 };
        // Not below what every path must carry, whatever an attacker claims.
        let mss = mtu.max(576).saturating_sub(headers).min(65_535) as u16;
        if mss < self.mss {
            self.mss = mss;
            if self.synchronized() && self.outstanding() {
                self.start_over();
            }
        }
    }

    fn on_misc(&mut self, cx: &Cx) {
        if self.has(is::ORPHAN) {
            self.die(None);
            return;
        }
        let Some(k) = self.keep_alive else { return };
        if !self.synchronized() {
            return;
        }
        let quiet_since = self.heard_at + u64::from(k.idle.max(1)) * SECOND;
        if self.outstanding() || !self.send.is_empty() || (self.probes == 0 && quiet_since > cx.now) {
            // Retransmissions probe as well.
            self.probes = 0;
            self.misc_at = quiet_since.max(cx.now + SECOND);
            return;
        }
        if self.probes >= k.count {
            self.die(Some(Error::TimedOut));
            return;
        }
        self.probes += 1;
        self.flags |= is::PROBE;
        self.misc_at = cx.now + u64::from(k.interval.max(1)) * SECOND;
    }
}
