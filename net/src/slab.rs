//! Slots that are named by number and generation.

use alloc::vec::Vec;

struct Entry<T> {
    /// Goes up each time the slot is freed, so that a handle to an earlier tenant is known to be dead.
    generation: u32,
    value: Option<T>,
}

/// A growing array with a free list.
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    used: u32,
    max: u32,
}

impl<T> Slab<T> {
    pub const fn new(max: u32) -> Slab<T> {
        Slab { entries: Vec::new(), free: Vec::new(), used: 0, max }
    }

    pub fn len(&self) -> u32 {
        self.used
    }

    /// One more than the highest slot there has been.
    pub fn slots(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Slot and generation, or `None` at the limit or without memory.
    pub fn insert(&mut self, value: T) -> Option<(u32, u32)> {
        if self.used >= self.max {
            return None;
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.entries.try_reserve(1).ok()?;
                // So that `remove` never needs memory.
                self.free.try_reserve(self.entries.len() + 1).ok()?;
                self.entries.push(Entry { generation: 1, value: None });
                self.entries.len() as u32 - 1
            }
        };
        let entry = self.entries.get_mut(slot as usize)?;
        entry.value = Some(value);
        self.used += 1;
        Some((slot, entry.generation))
    }

    pub fn remove(&mut self, slot: u32) -> Option<T> {
        let entry = self.entries.get_mut(slot as usize)?;
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.used -= 1;
        self.free.push(slot);
        Some(value)
    }

    pub fn get(&self, slot: u32) -> Option<&T> {
        self.entries.get(slot as usize)?.value.as_ref()
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.entries.get_mut(slot as usize)?.value.as_mut()
    }

    pub fn generation(&self, slot: u32) -> u32 {
        self.entries.get(slot as usize).map_or(0, |e| e.generation)
    }

    /// Whether slot and generation name a living value.
    pub fn is(&self, slot: u32, generation: u32) -> bool {
        self.entries.get(slot as usize).is_some_and(|e| e.generation == generation && e.value.is_some())
    }
}
