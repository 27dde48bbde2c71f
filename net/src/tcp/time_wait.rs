//! TIME-WAIT (RFC 9293 §3.3.2): a compact entry without a connection. Bounded: the oldest goes when a new one does not fit.

use super::{SECOND, lt};
use crate::addr::Tuple;
use crate::slab::Slab;
use alloc::collections::VecDeque;

/// How long an entry stays, ns (2 MSL as Linux has it).
const TIME: u64 = 60 * SECOND;

/// What is left of a connection.
pub(crate) struct Old {
    pub tuple: Tuple,
    pub hash: u32,
    pub snd_nxt: u32,
    pub rcv_nxt: u32,
    /// Last timestamp of the peer, if timestamps were in use, and our offset.
    pub ts: Option<(u32, u32)>,
    pub window: u16,
}

pub(crate) struct TimeWait {
    pub slab: Slab<Old>,
    order: VecDeque<(u64, u32, u32)>,
}

impl TimeWait {
    pub const fn new(max: u32) -> TimeWait {
        TimeWait { slab: Slab::new(max), order: VecDeque::new() }
    }

    pub fn is_full(&self, max: u32) -> bool {
        self.slab.len() >= max
    }

    pub fn insert(&mut self, now: u64, old: Old) -> Option<u32> {
        // Entries that were reused are dead here; they must not pile up.
        if self.order.len() > 2 * self.slab.len() as usize + 64 {
            for _ in 0..self.order.len() {
                if let Some(e) = self.order.pop_front()
                    && self.slab.is(e.1, e.2)
                {
                    self.order.push_back(e);
                }
            }
        }
        self.order.try_reserve(1).ok()?;
        let (slot, generation) = self.slab.insert(old)?;
        self.order.push_back((now + TIME, slot, generation));
        Some(slot)
    }

    pub fn deadline(&self) -> Option<u64> {
        self.order.front().map(|e| e.0)
    }

    /// An entry that has expired, or with `now` at its maximum the oldest one. The caller removes it.
    pub fn pop_due(&mut self, now: u64) -> Option<u32> {
        while let Some(&(time, slot, generation)) = self.order.front() {
            let alive = self.slab.is(slot, generation);
            if alive && time > now {
                return None;
            }
            self.order.pop_front();
            if alive {
                return Some(slot);
            }
        }
        None
    }
}

impl Old {
    /// Whether a SYN may begin a new connection with the same name (RFC 9293 §3.10.7.4, RFC 6191).
    pub fn yields_to(&self, seq: u32, ts: Option<u32>) -> bool {
        match (self.ts, ts) {
            (Some((last, _)), Some(new)) if new != last => lt(last, new),
            _ => lt(self.rcv_nxt, seq),
        }
    }
}
