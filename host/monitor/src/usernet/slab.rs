//! A table whose entries have numbers, with a generation in each number so that a late event never finds a new entry.

/// The table.
#[derive(Debug)]
pub(super) struct Slab<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub const fn new() -> Self {
        Slab { slots: Vec::new(), free: Vec::new() }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Makes room for an entry, whose number is passed to `make`.
    pub fn insert_with(&mut self, make: impl FnOnce(u64) -> T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        let number = u64::from(slot.0) << 32 | u64::from(index);
        slot.1 = Some(make(number));
        number
    }

    pub fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let slot = self.slots.get_mut(number as u32 as usize)?;
        if u64::from(slot.0) == number >> 32 { slot.1.as_mut() } else { None }
    }

    pub fn remove(&mut self, number: u64) -> Option<T> {
        let slot = self.slots.get_mut(number as u32 as usize)?;
        if u64::from(slot.0) != number >> 32 {
            return None;
        }
        let value = slot.1.take()?;
        // 24 bits: numbers stay below 2^56, so that tokens can be made of them.
        slot.0 = (slot.0 + 1) & 0xff_ffff;
        self.free.push(number as u32);
        Some(value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(i, (generation, v))| Some((u64::from(*generation) << 32 | i as u64, v.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_numbers_find_nothing() {
        let mut s = Slab::new();
        let a = s.insert_with(|n| n);
        assert_eq!(s.get_mut(a), Some(&mut a.clone()));
        assert_eq!(s.remove(a), Some(a));
        let b = s.insert_with(|n| n);
        assert_ne!(a, b);
        assert_eq!(s.get_mut(a), None);
        assert_eq!(s.remove(a), None);
        assert_eq!((s.len(), s.iter().count()), (1, 1));
    }
}
