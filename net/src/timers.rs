//! A heap of deadlines, one per slot. A deadline that moves later is left where it is until it comes: whoever is woken looks at its
//! real deadline and sets the timer again. So the common case (a retransmission timer that is re-armed by every segment) costs nothing.

use alloc::vec::Vec;

const OUT: u32 = u32::MAX;

pub(crate) struct Timers {
    /// A binary heap of (time, slot).
    heap: Vec<(u64, u32)>,
    /// Slot to position in the heap.
    position: Vec<u32>,
}

impl Timers {
    pub const fn new() -> Timers {
        Timers { heap: Vec::new(), position: Vec::new() }
    }

    /// The earliest deadline.
    pub fn first(&self) -> Option<u64> {
        self.heap.first().map(|e| e.0)
    }

    /// Wakes the slot at `time` or earlier.
    pub fn set(&mut self, slot: u32, time: u64) {
        let index = slot as usize;
        if index >= self.position.len() {
            self.position.resize(index + 1, OUT);
        }
        let at = self.position[index];
        if at == OUT {
            self.heap.push((time, slot));
            self.up(self.heap.len() - 1);
        } else if let Some(e) = self.heap.get_mut(at as usize)
            && e.0 > time
        {
            e.0 = time;
            self.up(at as usize);
        }
    }

    /// Takes the earliest slot that is due.
    pub fn pop(&mut self, now: u64) -> Option<u32> {
        let &(time, slot) = self.heap.first()?;
        if time > now {
            return None;
        }
        self.cancel(slot);
        Some(slot)
    }

    /// Forgets a slot's deadline.
    pub fn cancel(&mut self, slot: u32) {
        let Some(p) = self.position.get_mut(slot as usize) else { return };
        let at = core::mem::replace(p, OUT);
        if at == OUT {
            return;
        }
        let at = at as usize;
        let Some(last) = self.heap.pop() else { return };
        if at < self.heap.len() {
            self.put(at, last);
            self.down(at);
            self.up(at);
        }
    }

    fn put(&mut self, at: usize, e: (u64, u32)) {
        self.heap[at] = e;
        self.position[e.1 as usize] = at as u32;
    }

    fn up(&mut self, mut at: usize) {
        let e = self.heap[at];
        while at > 0 {
            let parent = self.heap[(at - 1) / 2];
            if parent.0 <= e.0 {
                break;
            }
            self.put(at, parent);
            at = (at - 1) / 2;
        }
        self.put(at, e);
    }

    fn down(&mut self, mut at: usize) {
        let e = self.heap[at];
        loop {
            let mut child = at * 2 + 1;
            let Some(&left) = self.heap.get(child) else { break };
            let mut least = left;
            if let Some(&right) = self.heap.get(child + 1)
                && right.0 < left.0
            {
                child += 1;
                least = right;
            }
            if least.0 >= e.0 {
                break;
            }
            self.put(at, least);
            at = child;
        }
        self.put(at, e);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_in_order_and_not_late() {
        let mut t = Timers::new();
        let mut due = std::collections::BTreeMap::new();
        let mut x = 7u64;
        let mut now = 0;
        for step in 0..100_000u64 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let slot = (x >> 33) as u32 % 300;
            match (x >> 50) % 4 {
                0 => {
                    t.cancel(slot);
                    due.remove(&slot);
                }
                1 | 2 => {
                    let time = now + (x >> 20) % 1000;
                    t.set(slot, time);
                    let e = due.entry(slot).or_insert(time);
                    *e = time.min(*e);
                }
                _ => {
                    now = step / 2;
                    while let Some(s) = t.pop(now) {
                        assert!(due.remove(&s).unwrap() <= now);
                    }
                    assert!(due.values().all(|&d| d > now));
                    assert_eq!(t.first(), due.values().min().copied());
                }
            }
        }
    }
}
