//! A hash table from keys that are stored elsewhere to 32-bit references: open addressing, linear probing, deletion by back-shift.

use alloc::vec::Vec;

const EMPTY: u32 = u32::MAX;

/// `(hash, reference)` pairs; whoever looks something up compares the key behind the reference.
pub(crate) struct Table {
    slots: Vec<(u32, u32)>,
    used: usize,
}

impl Table {
    pub const fn new() -> Table {
        Table { slots: Vec::new(), used: 0 }
    }

    fn mask(&self) -> usize {
        self.slots.len().wrapping_sub(1)
    }

    /// The reference of that hash for which `is` holds.
    pub fn find(&self, hash: u32, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut at = hash as usize & self.mask();
        loop {
            let &(h, r) = self.slots.get(at)?;
            if r == EMPTY {
                return None;
            }
            if h == hash && is(r) {
                return Some(r);
            }
            at = (at + 1) & self.mask();
        }
    }

    /// Adds a reference that is not in yet. False if there is no memory.
    pub fn insert(&mut self, hash: u32, reference: u32) -> bool {
        if (self.used + 1) * 4 > self.slots.len() * 3 && !self.resize((self.slots.len() * 2).max(16)) {
            return false;
        }
        self.place(hash, reference);
        self.used += 1;
        true
    }

    fn place(&mut self, hash: u32, reference: u32) {
        let mask = self.mask();
        let mut at = hash as usize & mask;
        while let Some(slot) = self.slots.get_mut(at) {
            if slot.1 == EMPTY {
                *slot = (hash, reference);
                return;
            }
            at = (at + 1) & mask;
        }
    }

    fn resize(&mut self, size: usize) -> bool {
        let mut new = Vec::new();
        if new.try_reserve_exact(size).is_err() {
            return false;
        }
        new.resize(size, (0, EMPTY));
        let old = core::mem::replace(&mut self.slots, new);
        for (h, r) in old {
            if r != EMPTY {
                self.place(h, r);
            }
        }
        true
    }

    /// Replaces a reference by another one of the same key.
    pub fn replace(&mut self, hash: u32, old: u32, new: u32) {
        if let Some(at) = self.position(hash, old)
            && let Some(slot) = self.slots.get_mut(at)
        {
            slot.1 = new;
        }
    }

    fn position(&self, hash: u32, reference: u32) -> Option<usize> {
        let mut at = hash as usize & self.mask();
        loop {
            let slot = self.slots.get(at)?;
            if *slot == (hash, reference) {
                return Some(at);
            }
            if slot.1 == EMPTY {
                return None;
            }
            at = (at + 1) & self.mask();
        }
    }

    /// Removes a reference.
    pub fn remove(&mut self, hash: u32, reference: u32) {
        let Some(mut hole) = self.position(hash, reference) else { return };
        let mask = self.mask();
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let Some(&(h, r)) = self.slots.get(at) else { break };
            if r == EMPTY {
                break;
            }
            // An entry may fill the hole unless its own home lies after the hole.
            let home = h as usize & mask;
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                if let Some(slot) = self.slots.get_mut(hole) {
                    *slot = (h, r);
                }
                hole = at;
            }
        }
        if let Some(slot) = self.slots.get_mut(hole) {
            *slot = (0, EMPTY);
        }
        self.used -= 1;
        if self.slots.len() > 64 && self.used * 8 < self.slots.len() {
            self.resize(self.slots.len() / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_as_a_map() {
        let mut t = Table::new();
        let mut model = std::collections::BTreeSet::new();
        let mut x = 1u64;
        for _ in 0..200_000 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let r = (x >> 40) as u32 % 500;
            let hash = r.wrapping_mul(0x9e37) & 0xff3f;
            if model.remove(&r) {
                t.remove(hash, r);
            } else {
                assert!(t.insert(hash, r));
                model.insert(r);
            }
            let probe = (x >> 20) as u32 % 500;
            let hash = probe.wrapping_mul(0x9e37) & 0xff3f;
            assert_eq!(t.find(hash, |r| r == probe).is_some(), model.contains(&probe));
        }
    }
}
