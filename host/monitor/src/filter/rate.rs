//! Rate limits for what a guest sends, by virtual scheduling (ITU-T I.371, annex A): each unit moves the time at which the next one is due, and what would be
//! due too far ahead is dropped. One number of state, so that the kernel's version is a few instructions.

use donjon_abi::manifest::Limit;

/// Bits after the point of a unit's cost.
pub(super) const SHIFT: u8 = 16;
/// Bytes that may always be sent at once: a frame with segmentation offload, twice.
const BURST_LEAST: u64 = 128 * 1024;

/// One limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rate {
    /// What a unit costs: nanoseconds times 2^[`SHIFT`].
    pub cost: u64,
    /// How far ahead a unit may be due, nanoseconds.
    pub burst: u64,
}

impl Rate {
    fn new(per_second: u64, burst: u64) -> Rate {
        // Rounded up: never faster, and never without any limit.
        let cost = (1_000_000_000u64 << SHIFT).div_ceil(per_second);
        Rate { cost, burst: burst.saturating_mul(cost) >> SHIFT }
    }

    /// New TCP connections: those of a second may come at once.
    pub fn connections(limit: Limit) -> Option<Rate> {
        (limit.connections > 0).then(|| Rate::new(limit.connections.into(), limit.connections.into()))
    }

    /// Bytes: those of a quarter of a second may come at once.
    pub fn send(limit: Limit) -> Option<Rate> {
        (limit.send > 0).then(|| Rate::new(limit.send, (limit.send / 4).max(BURST_LEAST)))
    }

    /// Whether so many units may pass now. `due` is the limit's state, at first 0; times are nanoseconds.
    pub fn take(self, due: &mut u64, now: u64, units: u64) -> bool {
        let next = (*due).max(now).saturating_add(units.saturating_mul(self.cost) >> SHIFT);
        let passes = next - now <= self.burst;
        if passes {
            *due = next;
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn what_passes_is_the_burst_and_then_the_rate() {
        let rate = Rate::connections(Limit { connections: 10, send: 0 }).unwrap();
        let mut due = 0;
        let at = |due: &mut u64, now| (0..100).filter(|_| rate.take(due, now, 1)).count();
        assert_eq!(at(&mut due, 5 * SECOND), 10);
        assert_eq!(at(&mut due, 5 * SECOND + SECOND / 10), 1);
        assert_eq!(at(&mut due, 5 * SECOND + SECOND / 2), 4);
        assert_eq!(at(&mut due, 60 * SECOND), 10, "what was not used is not saved up");
    }

    #[test]
    fn extremes_are_limits_too() {
        for (send, seconds) in [(1, 1 << 20), (1000, 1000), (1 << 20, 20), (10 << 30, 2), (u64::MAX, 1)] {
            let rate = Rate::send(Limit { connections: 0, send }).unwrap();
            let (mut due, mut passed) = (0, 0u64);
            for now in 0..2000 {
                let now = now * seconds * SECOND / 2000;
                passed += (0..200).filter(|_| rate.take(&mut due, now, 65_000)).count() as u64 * 65_000;
            }
            let most = u128::from(send) * u128::from(seconds) + u128::from((send / 4).max(BURST_LEAST));
            assert!(u128::from(passed) <= most + 65_000, "{passed} bytes at {send} a second");
            assert!(passed >= 2 * 65_000, "{passed} bytes at {send} a second");
        }
        assert_eq!(Rate::send(Limit::default()), None);
        assert_eq!(Rate::connections(Limit::default()), None);
    }
}
