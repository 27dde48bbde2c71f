//! How fast other clocks run, by the PC's interval timer (Intel 8254), which counts at 1,193,182 Hz everywhere.

/// Ports, and the clocks that are measured.
pub trait Pc {
    /// Writes a byte to a port.
    fn out(&mut self, port: u16, value: u8);
    /// Reads a byte from a port.
    fn inp(&mut self, port: u16) -> u8;
    /// The TSC.
    fn tsc(&mut self) -> u64;
    /// Ticks of the APIC timer, which does not run out meanwhile.
    fn timer(&mut self) -> u64;
}

/// What passed on each clock in one span of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Nanoseconds.
    pub ns: u64,
    /// Ticks of the TSC.
    pub tsc: u64,
    /// Ticks of the APIC timer.
    pub timer: u64,
}

const SECOND: u64 = 1_000_000_000;
const HZ: u64 = 1_193_182;
/// Ticks to wait for: 20 ms. A tick is 838 ns.
const WINDOW: u16 = 23_864;
/// Windows that a busy host may spoil.
const WINDOWS: u32 = 100;
/// A counter that shows the same in so many samples, each of twenty accesses to ports, stands still.
const STILL: u32 = 100;

#[derive(Clone, Copy)]
struct Sample {
    tsc: u64,
    timer: u64,
    count: u16,
}

enum Bad {
    /// The counter has passed zero: it says no longer how much time is over.
    Over,
    /// There is no such timer.
    Absent,
}

/// Compares the clocks for 20 ms, from now on. `None` if there is no such timer, or if the host took the CPU away for more than 30 ms each time.
pub fn measure(pc: &mut impl Pc) -> Option<Span> {
    for _ in 0..WINDOWS {
        // Counter 2, both bytes, mode 0 (its output is low until zero is reached); gate on, speaker off.
        let gate = pc.inp(0x61) & !2 | 1;
        pc.out(0x61, gate);
        pc.out(0x43, 0xb0);
        pc.out(0x42, 0xff);
        pc.out(0x42, 0xff);
        match window(pc) {
            Ok(span) => return Some(span),
            Err(Bad::Over) => {}
            Err(Bad::Absent) => return None,
        }
    }
    None
}

fn window(pc: &mut impl Pc) -> Result<Span, Bad> {
    let first = sample(pc)?;
    let (mut shown, mut still) = (first.count, 0);
    loop {
        let last = sample(pc)?;
        let ticks = first.count.wrapping_sub(last.count);
        if ticks >= WINDOW {
            let (tsc, timer) = (last.tsc.wrapping_sub(first.tsc), last.timer.wrapping_sub(first.timer));
            return Ok(Span { ns: u64::from(ticks) * SECOND / HZ, tsc, timer });
        }
        still = if last.count == shown { still + 1 } else { 0 };
        if still == STILL {
            return Err(Bad::Absent);
        }
        shown = last.count;
    }
}

/// The tightest of a few attempts: the host may take the CPU away in the middle of one.
fn sample(pc: &mut impl Pc) -> Result<Sample, Bad> {
    let mut best = (u64::MAX, Err(Bad::Over));
    for _ in 0..4 {
        let before = pc.tsc();
        // Latches state and count of counter 2 at once.
        pc.out(0x43, 0xc8);
        let width = pc.tsc().wrapping_sub(before);
        let timer = pc.timer();
        let [state, low, high] = [0x42; 3].map(|port| pc.inp(port));
        match state {
            0x30 if width < best.0 => {
                let count = u16::from_le_bytes([low, high]);
                best = (width, Ok(Sample { tsc: before.wrapping_add(width / 2), timer, count }));
            }
            // 0x70: what was written is not in the counter yet.
            0x30 | 0x70 => {}
            0xb0 => return Err(Bad::Over),
            _ => return Err(Bad::Absent),
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TSC of 3 GHz, an APIC timer of 100 MHz, and a port access that takes a microsecond.
    #[derive(Default)]
    struct Fake {
        now: u64,
        loaded: u64,
        latched: Vec<u8>,
        absent: bool,
        stopped: bool,
        /// Whether it has a port 0x61 (QEMU's microvm does not).
        speaker: bool,
        /// From when to when the host takes the CPU away, ns, and after how long it does so again.
        stall: Option<(u64, u64, u64)>,
        windows: u32,
    }

    impl Fake {
        fn pass(&mut self) {
            self.now += 1000;
            if let Some((start, end, again)) = self.stall.filter(|s| (s.0..s.1).contains(&self.now)) {
                self.now = end;
                self.stall = Some((start + again, end + again, again));
            }
        }
    }

    impl Pc for Fake {
        fn out(&mut self, port: u16, value: u8) {
            self.pass();
            match (port, value) {
                (0x43, 0xb0) => self.windows += 1,
                (0x42, 0xff) => self.loaded = self.now,
                (0x43, 0xc8) => {
                    let passed = if self.stopped { 0 } else { (self.now - self.loaded) * HZ / SECOND };
                    let state = if passed >= 0xffff { 0xb0 } else { 0x30 };
                    let [low, high] = (0xffff_u16.wrapping_sub(passed as u16)).to_le_bytes();
                    self.latched = vec![high, low, state];
                }
                (0x61, _) => {}
                other => panic!("{other:x?}"),
            }
        }
        fn inp(&mut self, port: u16) -> u8 {
            self.pass();
            match port {
                0x42 if !self.absent => self.latched.pop().unwrap(),
                0x61 if self.speaker => 0,
                _ => 0xff,
            }
        }
        fn tsc(&mut self) -> u64 {
            self.now * 3
        }
        fn timer(&mut self) -> u64 {
            self.now / 10
        }
    }

    fn check(span: Span) {
        let near = |got: u64, wanted: u64| got.abs_diff(wanted) < wanted / 5000;
        assert!((20_000_000..55_000_000).contains(&span.ns), "{span:?}");
        assert!(near(span.tsc, span.ns * 3) && near(span.timer, span.ns / 10), "{span:?}");
    }

    #[test]
    fn clocks_are_compared_whatever_came_before() {
        for speaker in [false, true] {
            for before in [0, 54_000_000, 56_000_000, 3_000_000_000] {
                let mut pc = Fake { now: before, speaker, ..Fake::default() };
                check(measure(&mut pc).unwrap());
                assert!(pc.now < before + 21_000_000 && pc.windows == 1);
            }
        }
    }

    /// The counter has 55 ms: with what is longer it has the same value again.
    #[test]
    fn a_window_that_the_host_spoils_is_measured_again() {
        for stall in [36, 50, 55, 60, 90, 5000].map(|ms| ms * 1_000_000) {
            for start in [1000, 20_000, 10_000_000] {
                let mut pc = Fake { stall: Some((start, start + stall, u64::MAX / 2)), ..Fake::default() };
                check(measure(&mut pc).unwrap());
            }
        }
        // A host that never leaves it 20 ms: no clock is better than a wrong one.
        let stall = Some((10_000_000, 70_000_000, 70_000_000));
        assert_eq!(measure(&mut Fake { stall, ..Fake::default() }), None);
    }

    #[test]
    fn without_a_timer_that_runs_there_is_no_wait() {
        for (absent, stopped) in [(true, false), (false, true)] {
            let mut pc = Fake { absent, stopped, ..Fake::default() };
            assert_eq!(measure(&mut pc), None);
            assert!(pc.now < 5_000_000, "{} ns", pc.now);
        }
    }
}
