//! Size classes: four per doubling from 128 bytes up, multiples of 16 below.

use donjon_base::PAGE;

/// Largest size that comes from a class; larger allocations are runs of pages.
pub const LARGEST: usize = 16384;
/// Number of classes.
pub const COUNT: usize = 36;
/// Most slots in a span, and so the bits in its bitmap.
pub const SLOTS_MAX: usize = 256;

/// One size class.
#[derive(Clone, Copy, Debug)]
pub struct Class {
    /// Bytes in a slot.
    pub size: u32,
    /// Pages in a span.
    pub pages: u32,
    /// Slots in a span.
    pub slots: u32,
    /// `2^32 / size`, rounded up: divides an offset within a span by multiplication.
    pub magic: u32,
}

/// All classes, ascending.
pub static CLASSES: [Class; COUNT] = classes();

/// Class of each size up to 1024, by `(size + 15) / 16`.
static SMALL: [u8; 65] = small();

/// The smallest class that holds `size` bytes; `size` is at most [`LARGEST`].
#[inline]
pub fn of(size: usize) -> usize {
    if size <= 1024 {
        return SMALL[size.div_ceil(16)] as usize;
    }
    // 2^log < size <= 2^(log+1); four classes between these.
    let log = (usize::BITS - 1 - (size - 1).leading_zeros()) as usize;
    (log - 5) * 4 + ((size - 1) >> (log - 2)) - 4
}

const fn classes() -> [Class; COUNT] {
    let mut out = [Class { size: 0, pages: 0, slots: 0, magic: 0 }; COUNT];
    let mut i = 0;
    while i < COUNT {
        let size = if i < 8 { 16 * (i + 1) } else { (128 << ((i - 8) / 4)) / 4 * (5 + (i - 8) % 4) };
        // The fewest pages that waste at most an eighth and hold a few slots.
        let few = if size <= 1024 { 4 } else { 2 };
        let mut pages = 1;
        while {
            let slots = pages * PAGE / size;
            slots < few || (pages * PAGE - slots * size) * 8 > pages * PAGE
        } {
            pages += 1;
        }
        let slots = pages * PAGE / size;
        out[i] = Class {
            size: size as u32,
            pages: pages as u32,
            slots: slots as u32,
            magic: (1u64 << 32).div_ceil(size as u64) as u32,
        };
        i += 1;
    }
    out
}

const fn small() -> [u8; 65] {
    let table = classes();
    let mut out = [0; 65];
    let mut i = 0;
    while i < out.len() {
        let mut class = 0;
        while (table[class].size as usize) < i * 16 {
            class += 1;
        }
        out[i] = class as u8;
        i += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_is_the_smallest_class_that_fits() {
        for size in 0..=LARGEST {
            let c = of(size);
            assert!(CLASSES[c].size as usize >= size, "{size} -> {c}");
            assert!(c == 0 || (CLASSES[c - 1].size as usize) < size, "{size} -> {c}");
        }
        assert_eq!(CLASSES[COUNT - 1].size as usize, LARGEST);
    }

    #[test]
    fn division_by_magic_is_exact() {
        for c in &CLASSES {
            assert!(c.slots as usize <= SLOTS_MAX && c.slots >= 2);
            for offset in 0..c.pages * PAGE as u32 {
                assert_eq!((u64::from(offset) * u64::from(c.magic)) >> 32, u64::from(offset / c.size));
            }
        }
    }
}
