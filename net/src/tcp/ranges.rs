//! The sender's scoreboard: which ranges of the sequence space beyond the cumulative acknowledgement have arrived (RFC 2018, RFC 6675).

use super::{later, le, lt};
use alloc::vec::Vec;

/// Most ranges that are kept; a peer that claims more is believed less.
const MAX: usize = 64;

/// Sorted, disjoint, non-adjacent half-open ranges.
pub(crate) struct Ranges(Vec<(u32, u32)>);

impl Ranges {
    pub const fn new() -> Ranges {
        Ranges(Vec::new())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn clear(&mut self) {
        self.0 = Vec::new();
    }

    /// Adds a range; returns whether anything is new.
    pub fn add(&mut self, from: u32, to: u32) -> bool {
        if !lt(from, to) {
            return false;
        }
        let first = self.0.partition_point(|r| lt(r.1, from));
        let mut last = first;
        let (mut start, mut end) = (from, to);
        while let Some(&(a, b)) = self.0.get(last)
            && le(a, to)
        {
            if le(a, from) && le(to, b) {
                return false;
            }
            start = if lt(a, start) { a } else { start };
            end = later(b, end);
            last += 1;
        }
        if first < last {
            self.0.drain(first + 1..last);
            self.0[first] = (start, end);
        } else if self.0.len() < MAX && self.0.try_reserve(1).is_ok() {
            self.0.insert(first, (start, end));
        } else {
            return false;
        }
        true
    }

    /// Forgets all before `seq`.
    pub fn trim(&mut self, seq: u32) {
        let gone = self.0.partition_point(|r| le(r.1, seq));
        self.0.drain(..gone);
        match self.0.first_mut() {
            None => self.clear(),
            Some(r) if lt(r.0, seq) => r.0 = seq,
            Some(_) => {}
        }
    }

    /// Bytes of [from, to) that are in.
    pub fn covered(&self, from: u32, to: u32) -> u32 {
        let mut sum = 0u32;
        for &(a, b) in &self.0 {
            let start = later(a, from);
            let end = if lt(b, to) { b } else { to };
            if lt(start, end) {
                sum = sum.wrapping_add(end.wrapping_sub(start));
            }
        }
        sum
    }

    /// Everything before this and not in is lost: more than two segments above it have arrived (RFC 6675 `IsLost`).
    pub fn lost_edge(&self, mss: u32) -> Option<u32> {
        let mut above = 0u32;
        for &(a, b) in self.0.iter().rev() {
            above = above.saturating_add(b.wrapping_sub(a));
            if above > mss.saturating_mul(2) {
                return Some(a);
            }
        }
        None
    }

    /// The first hole at or after `from`: where it starts and where the next range begins, if one does.
    pub fn hole(&self, from: u32) -> (u32, Option<u32>) {
        let mut start = from;
        for &(a, b) in &self.0 {
            if lt(start, a) {
                return (start, Some(a));
            }
            if lt(start, b) {
                start = b;
            }
        }
        (start, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_trims_and_finds_holes() {
        let base = u32::MAX - 50;
        let at = |n: u32| base.wrapping_add(n);
        let mut r = Ranges::new();
        assert!(r.add(at(10), at(20)));
        assert!(r.add(at(30), at(40)));
        assert!(!r.add(at(12), at(20)));
        assert!(r.add(at(60), at(100)));
        assert_eq!(r.0.len(), 3);
        assert!(r.add(at(20), at(30)));
        assert_eq!(r.0, [(at(10), at(40)), (at(60), at(100))]);
        assert_eq!(r.covered(at(0), at(70)), 40);
        assert_eq!(r.hole(at(0)), (at(0), Some(at(10))));
        assert_eq!(r.hole(at(15)), (at(40), Some(at(60))));
        assert_eq!(r.hole(at(60)), (at(100), None));
        assert_eq!(r.lost_edge(10), Some(at(60)));
        assert_eq!(r.lost_edge(30), Some(at(10)));
        assert_eq!(r.lost_edge(35), None);
        r.trim(at(35));
        assert_eq!(r.0, [(at(35), at(40)), (at(60), at(100))]);
        assert!(r.add(at(0), at(200)));
        assert_eq!(r.0, [(at(0), at(200))]);
        r.trim(at(200));
        assert!(r.is_empty());
    }

    #[test]
    fn is_bounded() {
        let mut r = Ranges::new();
        for i in 0..1000 {
            r.add(i * 10, i * 10 + 5);
        }
        assert_eq!(r.0.len(), MAX);
    }
}
