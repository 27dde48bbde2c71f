//! Congestion control: slow start and CUBIC (RFC 9438), in integers. All windows in bytes.

/// State of one connection.
#[derive(Clone, Copy)]
pub(crate) struct Cubic {
    pub cwnd: u32,
    pub ssthresh: u32,
    /// Window at the last loss.
    w_max: u32,
    /// Window that Reno would have.
    w_est: u32,
    /// Time from the epoch until the window is at `w_max` again, ms.
    k: u32,
    /// Start of this growth, ns; 0 is none.
    epoch: u64,
}

impl Cubic {
    /// Initial window of 10 segments (RFC 6928).
    pub fn new(mss: u32) -> Cubic {
        Cubic { cwnd: initial(mss), ssthresh: u32::MAX, w_max: 0, w_est: 0, k: 0, epoch: 0 }
    }

    /// `acked` bytes were acknowledged while the window was in full use.
    pub fn on_ack(&mut self, now: u64, acked: u32, mss: u32, rtt_us: u32) {
        if self.cwnd < self.ssthresh {
            self.cwnd = self.cwnd.saturating_add(acked).min(WINDOW_MAX);
            return;
        }
        let cwnd = u64::from(self.cwnd.max(mss));
        if self.epoch == 0 {
            self.epoch = now.max(1);
            self.w_est = self.cwnd;
            if self.w_max > self.cwnd {
                // K = cbrt((w_max - cwnd) / (C * mss)) s, with C = 0.4 (§4.2).
                let segments = u64::from(self.w_max - self.cwnd) * 10 / (4 * u64::from(mss));
                self.k = cube_root(segments.min(1 << 33) * 1_000_000_000) as u32;
            } else {
                self.w_max = self.cwnd;
                self.k = 0;
            }
        }
        let t = (now.saturating_sub(self.epoch) / 1_000_000 + u64::from(rtt_us) / 1000) as i64;
        let d = (t - i64::from(self.k)).clamp(-40_000, 40_000);
        let growth = (d * d * d).saturating_mul(4 * i64::from(mss.min(16384))) / 10_000_000_000;
        let target = (i64::from(self.w_max) + growth).clamp(self.cwnd.into(), i64::from(self.cwnd) * 3 / 2) as u64;
        let step = (target - cwnd.min(target)) * u64::from(acked) / cwnd;
        // Reno-friendly region (§4.3): alpha = 3 * 0.3 / 1.7 = 0.53.
        let reno = (u64::from(acked) * u64::from(mss) * 53 / (100 * cwnd)) as u32;
        self.w_est = self.w_est.saturating_add(reno).min(WINDOW_MAX);
        self.cwnd = self.cwnd.saturating_add(step as u32).max(self.w_est).min(WINDOW_MAX);
    }

    /// By the window, not by what is in flight (RFC 9438 §4.6): a window that is not used does not grow here, and what it was is not
    /// forgotten because a short answer is lost.
    fn reduce(&mut self, mss: u32) {
        let base = self.cwnd;
        // Fast convergence (§4.7): leave room for newcomers.
        self.w_max = if base < self.w_max { (u64::from(base) * 17 / 20) as u32 } else { base };
        self.ssthresh = ((u64::from(base) * 7 / 10) as u32).max(mss * 2);
        self.epoch = 0;
    }

    /// Loss was found by duplicate acknowledgements.
    pub fn on_loss(&mut self, mss: u32) {
        self.reduce(mss);
        self.cwnd = self.ssthresh;
    }

    /// The retransmission timer expired.
    pub fn on_timeout(&mut self, mss: u32) {
        self.reduce(mss);
        self.cwnd = mss;
    }

    /// Nothing was sent for longer than a timeout (RFC 5681 §4.1).
    pub fn on_idle(&mut self, mss: u32) {
        self.ssthresh = self.ssthresh.max(self.cwnd / 4 * 3);
        self.cwnd = self.cwnd.min(initial(mss));
        self.epoch = 0;
    }
}

const WINDOW_MAX: u32 = 64 << 20;

fn initial(mss: u32) -> u32 {
    mss.saturating_mul(10)
}

fn cube_root(x: u64) -> u64 {
    let (mut low, mut high) = (0u64, 1 << 21);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if middle * middle * middle <= x {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cube_roots() {
        for x in [0u64, 1, 7, 8, 26, 27, 1_000_000_000, u64::MAX / 2] {
            let r = cube_root(x);
            assert!(r * r * r <= x);
            assert!(r == 1 << 21 || (r + 1) * (r + 1) * (r + 1) > x);
        }
    }

    #[test]
    fn comes_back_to_the_old_window_at_k_and_then_goes_beyond() {
        let mss = 1448;
        let mut c = Cubic::new(mss);
        assert_eq!(c.cwnd, 14480);
        c.cwnd = 1000 * mss;
        c.on_loss(mss);
        assert_eq!(c.cwnd, 700 * mss);
        // K = cbrt(300 / 0.4) = 9.08 s.
        let (mut now, rtt) = (1, 50_000_000);
        let mut at_k = 0;
        for _ in 0..400 {
            let (acked, window) = (c.cwnd, c.cwnd);
            for _ in 0..acked / (2 * mss) {
                c.on_ack(now, 2 * mss, mss, 50_000);
            }
            assert!(c.cwnd >= window);
            now += rtt;
            if now < 9_000_000_000 {
                at_k = c.cwnd;
            }
        }
        assert!((950 * mss..1010 * mss).contains(&at_k), "{}", at_k / mss);
        assert!(c.cwnd > 1300 * mss);
    }
}
