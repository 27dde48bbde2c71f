//! Page frames: which physical memory is free.
//!
//! Fresh frames come from a cursor over the machine's memory, so that memory which nobody needs is never touched; freed
//! ones are linked through their own first word and reused first.

use crate::phys::{Phys, PhysAddr};
use donjon_abi::PAGE;

/// Most separate ranges of memory.
pub const RANGES: usize = 24;

/// A free range; both ends page-aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// The free frames.
pub struct Frames {
    spans: [Span; RANGES],
    count: usize,
    /// First freed frame, or 0.
    freed: PhysAddr,
    free: u64,
}

impl Frames {
    /// No memory yet.
    pub const fn new() -> Frames {
        Frames { spans: [Span { start: 0, end: 0 }; RANGES], count: 0, freed: PhysAddr(0), free: 0 }
    }

    /// Adds `[start, end)` rounded inwards to whole pages, without the parts that `taken` names. What no
    /// longer fits into the table is left unused.
    pub fn add(&mut self, start: u64, end: u64, taken: &[Span]) {
        // In the last page of all there is no whole one.
        let Some(start) = start.checked_next_multiple_of(PAGE) else { return };
        let start = start.max(PAGE);
        let end = end & !(PAGE - 1);
        if start >= end {
            return;
        }
        for t in taken {
            if t.start < end && t.end > start && t.start < t.end {
                self.add(start, t.start & !(PAGE - 1), taken);
                self.add(t.end.next_multiple_of(PAGE), end, taken);
                return;
            }
        }
        if let Some(slot) = self.spans.get_mut(self.count) {
            *slot = Span { start, end };
            self.count += 1;
            self.free += (end - start) / PAGE;
        }
    }

    /// Number of free frames.
    pub const fn free(&self) -> u64 {
        self.free
    }

    /// A frame full of zeros.
    pub fn alloc(&mut self, mem: &mut impl Phys) -> Option<PhysAddr> {
        let frame = self.take(mem)?;
        mem.zero(frame, PAGE as usize);
        Some(frame)
    }

    fn take(&mut self, mem: &mut impl Phys) -> Option<PhysAddr> {
        let frame = if self.freed != PhysAddr(0) {
            let frame = self.freed;
            self.freed = PhysAddr(mem.read_u64(frame));
            frame
        } else {
            let span = self.spans.iter_mut().take(self.count).find(|s| s.start < s.end)?;
            let frame = PhysAddr(span.start);
            span.start += PAGE;
            frame
        };
        self.free -= 1;
        Some(frame)
    }

    /// Gives a frame back. It came from [`Self::alloc`], and nothing refers to it any more.
    pub fn release(&mut self, mem: &mut impl Phys, frame: PhysAddr) {
        mem.write_u64(frame, self.freed.0);
        self.freed = frame;
        self.free += 1;
    }
}

impl Default for Frames {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phys::Fake;

    /// Found by the fuzz target `firmware`: rounding up wrapped around, and all of the address space was free memory.
    #[test]
    fn a_range_at_the_very_end_is_none() {
        let mut f = Frames::new();
        f.add(u64::MAX - 4, u64::MAX, &[]);
        assert_eq!(f.free(), 0);
    }

    #[test]
    fn taken_ranges_are_never_handed_out() {
        let mut mem = Fake::new(0, 64 * 4096);
        let mut f = Frames::new();
        let taken = [Span { start: 0x3001, end: 0x5001 }, Span { start: 0x8000, end: 0x9000 }, Span::default()];
        f.add(10, 0xb123, &taken);
        let mut got = std::vec![];
        while let Some(p) = f.alloc(&mut mem) {
            assert!(mem.bytes[p.0 as usize..][..4096].iter().all(|b| *b == 0));
            got.push(p.0);
        }
        assert_eq!(got, [0x1000, 0x2000, 0x6000, 0x7000, 0x9000, 0xa000]);
        assert_eq!(f.free(), 0);
    }

    #[test]
    fn freed_frames_come_back_cleared() {
        let mut mem = Fake::new(0, 16 * 4096);
        let mut f = Frames::new();
        f.add(0x1000, 0x3000, &[]);
        let (a, b) = (f.alloc(&mut mem).unwrap(), f.alloc(&mut mem).unwrap());
        assert!(f.alloc(&mut mem).is_none());
        mem.write(a, &[7; 4096]);
        f.release(&mut mem, a);
        f.release(&mut mem, b);
        assert_eq!(f.free(), 2);
        assert_eq!(f.alloc(&mut mem), Some(b));
        assert_eq!(f.alloc(&mut mem), Some(a));
        assert!(mem.bytes[a.0 as usize..][..4096].iter().all(|b| *b == 0));
    }
}
