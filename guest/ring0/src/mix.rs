//! Random numbers from two sources, the CPU and a device. One that is missing or stuck does no harm while the other is good.

/// Numbers from the device; as many as a boot needs, with some to spare.
const COUNT: usize = 48;

/// What to ask the device for, bytes.
pub const LEN: usize = COUNT * 8;

/// Numbers of the device that are still to be used.
pub struct Mix {
    device: [u64; COUNT],
    left: usize,
}

impl Mix {
    /// Without a device.
    pub const fn new() -> Mix {
        Mix { device: [0; COUNT], left: 0 }
    }

    /// Takes what the device has given. What has the same number twice is no randomness, and counts as none.
    pub fn fill(&mut self, bytes: &[u8; LEN]) {
        for (word, chunk) in self.device.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
        }
        let repeats = self.device.iter().enumerate().any(|(i, word)| self.device.iter().skip(i + 1).any(|w| w == word));
        self.left = if repeats { 0 } else { COUNT };
    }

    /// A fresh number, out of one from the CPU if that has any; `None` if no source is left.
    pub fn next(&mut self, from_cpu: Option<u64>) -> Option<u64> {
        let from_device = self.left.checked_sub(1).and_then(|left| {
            self.left = left;
            self.device.get_mut(left).map(core::mem::take)
        });
        match (from_cpu, from_device) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(0) ^ b.unwrap_or(0)),
        }
    }
}

/// Most attempts with one instruction.
const TRIES: u32 = 32;

/// A number from the CPU: from RDSEED, which runs dry when others on the host ask too often, else from RDRAND. Either gives `None` if it
/// fails, or is not there.
pub fn from_cpu(mut rdseed: impl FnMut() -> Option<u64>, mut rdrand: impl FnMut() -> Option<u64>) -> Option<u64> {
    for attempt in 0..2 * TRIES {
        match if attempt < TRIES { rdseed() } else { rdrand() } {
            // All zeros and all ones are what broken generators return.
            None | Some(0 | u64::MAX) => core::hint::spin_loop(),
            number => return number,
        }
    }
    None
}

impl Default for Mix {
    fn default() -> Mix {
        Mix::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that do not repeat, another row of them for each number.
    fn bytes(row: u8) -> [u8; LEN] {
        core::array::from_fn(|i| (i / 8) as u8 ^ row.wrapping_mul((i % 8) as u8 + 1))
    }

    fn all(device: &[u8; LEN], cpu: impl Fn(u64) -> Option<u64>) -> Vec<Option<u64>> {
        let mut mix = Mix::new();
        mix.fill(device);
        (0..COUNT as u64).map(|i| mix.next(cpu(i))).collect()
    }

    /// No number of a boot is another boot's if only one of the sources differs, whatever the other is stuck at.
    #[test]
    fn one_bad_source_is_harmless() {
        let differ = |a: Vec<Option<u64>>, b: Vec<Option<u64>>| a.iter().zip(&b).all(|(a, b)| a.is_some() && a != b);
        for stuck in [None, Some(0), Some(0x5555_5555_5555_5555), Some(u64::MAX)] {
            assert!(differ(all(&bytes(1), |_| stuck), all(&bytes(2), |_| stuck)), "CPU: {stuck:x?}");
        }
        for stuck in [[0; LEN], [0x55; LEN], [0xff; LEN], bytes(3)] {
            assert!(differ(all(&stuck, Some), all(&stuck, |i| Some(i + 1000))), "device: {:x?}", &stuck[..8]);
        }
    }

    #[test]
    fn a_device_that_repeats_itself_is_no_source() {
        for stuck in [0, 0x55, 0xff] {
            assert_eq!(all(&[stuck; LEN], |_| None), [None; COUNT]);
        }
        let mut once = bytes(1);
        once.copy_within(8..16, 200);
        assert_eq!(all(&once, |_| None), [None; COUNT]);
    }

    #[test]
    fn the_cpu_has_two_generators() {
        let dry = || None;
        assert_eq!(from_cpu(|| Some(1), || panic!("not needed")), Some(1));
        assert_eq!(from_cpu(dry, || Some(2)), Some(2));
        for broken in [0, u64::MAX] {
            assert_eq!(from_cpu(|| Some(broken), || Some(2)), Some(2));
            assert_eq!(from_cpu(dry, || Some(broken)), None);
        }
        assert_eq!(from_cpu(dry, dry), None);
        // Dry for a moment only.
        let mut asked = 0;
        let moment = || {
            asked += 1;
            (asked == 20).then_some(3)
        };
        assert_eq!(from_cpu(moment, || Some(2)), Some(3));
    }

    #[test]
    fn a_number_is_given_once() {
        let mut mix = Mix::new();
        assert_eq!((mix.next(None), mix.next(Some(5))), (None, Some(5)));
        mix.fill(&bytes(1));
        let given: std::collections::HashSet<_> = (0..COUNT).map(|_| mix.next(None).unwrap()).collect();
        assert_eq!((given.len(), mix.next(None), mix.next(Some(5))), (COUNT, None, Some(5)));
        assert_eq!(mix.device, [0; COUNT], "nothing of them stays");
    }
}
