//! Where everything of a guest is in its address space.

use donjon_abi::PAGE;
use donjon_abi::boot::Range;

/// First address that a guest may use.
const LOWEST: u64 = 0x0100_0000_0000;
/// End of the addresses that a guest may use. Above it are the monitor's own program, libraries and stack (Linux maps
/// position-independent programs from two thirds of the user half up), which the child still has while it maps the guest.
const HIGHEST: u64 = 0x5400_0000_0000;
/// Pages that are never mapped between two ranges.
const GAP: u64 = 16 * PAGE;
/// End of the user half (4-level paging, one page less: `TASK_SIZE`).
pub const USER_END: u64 = 0x7fff_ffff_f000;

/// The signal stack: kernel frames with AMX state take 11 KiB.
const SIGNAL_STACK: u64 = 32 * 1024;
const FAULT_STACK: u64 = 64 * 1024;
/// The first stack. Touched pages are what it costs.
const STACK: u64 = 8 << 20;

/// Tries to find a place for a range.
const TRIES_MAX: usize = 1000;

/// Lengths that depend on image and options.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    pub image: u64,
    pub bundle: u64,
    pub boot: u64,
    pub stub: u64,
    pub reserve: u64,
    pub secrets: u64,
}

/// Address ranges, none overlapping another, each at its own random place.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub image: Range,
    pub bundle: Range,
    pub boot: Range,
    pub stub: Range,
    pub reserve: Range,
    pub stack: Range,
    pub fault_stack: Range,
    pub signal_stack: Range,
    pub secrets: Range,
}

impl Layout {
    /// Chooses places with `random`, which gives 64 random bits per call. `None` if there is no room.
    pub fn choose(lengths: Lengths, mut random: impl FnMut() -> u64) -> Option<Layout> {
        let mut taken: Vec<Range> = Vec::with_capacity(8);
        let mut place = |len: u64| {
            if len == 0 {
                return Some(Range::default());
            }
            let len = len.checked_next_multiple_of(PAGE)?;
            let pages = (HIGHEST - LOWEST).checked_sub(len).filter(|rest| *rest >= PAGE)? / PAGE;
            // 2^34.3 pages to choose from; at most a tenth is taken, so this ends at one of the first tries.
            for _ in 0..TRIES_MAX {
                let range = Range { base: LOWEST + random() % pages * PAGE, len };
                let free = |t: &Range| range.base >= t.base + t.len + GAP || range.base + len + GAP <= t.base;
                if taken.iter().all(free) {
                    taken.push(range);
                    return Some(range);
                }
            }
            None
        };
        // The largest first: the others leave no hole of its length.
        let reserve = place(lengths.reserve)?;
        Some(Layout {
            bundle: place(lengths.bundle)?,
            image: place(lengths.image)?,
            boot: place(lengths.boot)?,
            stub: place(lengths.stub)?,
            reserve,
            stack: place(STACK)?,
            fault_stack: place(FAULT_STACK)?,
            signal_stack: place(SIGNAL_STACK)?,
            secrets: place(lengths.secrets)?,
        })
    }

    /// Everything that is the guest's.
    pub fn all(&self) -> [Range; 9] {
        [
            self.image,
            self.bundle,
            self.boot,
            self.stub,
            self.secrets,
            self.reserve,
            self.stack,
            self.fault_stack,
            self.signal_stack,
        ]
    }
}

/// What lies between the ranges that are kept, from 0 to the end of the user half.
pub fn gaps(keep: impl IntoIterator<Item = Range>) -> Vec<Range> {
    let mut keep: Vec<Range> = keep.into_iter().filter(|r| r.len > 0).collect();
    keep.sort_by_key(|r| r.base);
    let mut out = Vec::with_capacity(keep.len() + 1);
    let mut at = 0;
    for r in keep {
        if r.base > at {
            out.push(Range { base: at, len: r.base - at });
        }
        at = at.max(r.base + r.len);
    }
    if at < USER_END {
        out.push(Range { base: at, len: USER_END - at });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_not_overlap_and_use_the_bits() {
        let mut state = 1u64;
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state ^ state >> 29
        };
        let lengths =
            Lengths { image: 1 << 20, bundle: 1 << 20, boot: 4096, stub: 3 * 4096, reserve: 1 << 40, secrets: 100 };
        let mut seen_bits = [0u64; 9];
        for _ in 0..2000 {
            let l = Layout::choose(lengths, &mut next).unwrap();
            let mut all: Vec<_> = l.all().into_iter().filter(|r| r.len > 0).collect();
            all.sort_by_key(|r| r.base);
            assert!(all.iter().all(|r| r.base % PAGE == 0 && r.base >= LOWEST && r.base + r.len <= HIGHEST));
            assert!(all.windows(2).all(|w| w[0].base + w[0].len + GAP <= w[1].base), "{l:x?}");
            seen_bits.iter_mut().zip(l.all()).for_each(|(seen, range)| *seen |= range.base);
        }
        for (i, seen) in seen_bits.into_iter().enumerate() {
            assert!((12..40).all(|bit| seen >> bit & 1 == 1), "28 bits of range {i} vary");
        }
    }

    #[test]
    fn what_has_no_room_ends() {
        let small = Lengths { image: 4096, bundle: 4096, boot: 4096, stub: 4096, reserve: 4 << 30, secrets: 0 };
        let mut state = 0u64;
        let mut choose = |l: Lengths| {
            Layout::choose(l, || {
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                state ^ state >> 29
            })
        };
        // The most memory that there may be.
        assert!(choose(Lengths { reserve: 8 << 40, ..small }).is_some());
        for len in [80 << 40, HIGHEST - LOWEST, 1 << 60, u64::MAX] {
            assert!(choose(Lengths { reserve: len, bundle: len, ..small }).is_none(), "{len:#x}");
        }
    }

    #[test]
    fn gaps_are_the_complement() {
        let r = |base, len| Range { base, len };
        assert_eq!(gaps([r(8192, 4096), r(4096, 4096), r(0, 0)]), [r(0, 4096), r(12288, USER_END - 12288)]);
        assert_eq!(gaps([]), [r(0, USER_END)]);
    }
}
