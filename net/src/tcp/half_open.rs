//! Half-open connections: a SYN has come, and SYN-ACK goes out until the handshake's third segment is here. A few dozen bytes each,
//! bounded over all listeners; when there is no room, the one that has waited longest goes.

use super::{SECOND, SYN_ACK_RETRIES};
use crate::addr::Tuple;
use crate::slab::Slab;
use alloc::collections::VecDeque;

/// What a SYN said, and what we answer.
pub(crate) struct Half {
    pub tuple: Tuple,
    pub hash: u32,
    /// Slot and generation of the listener.
    pub listener: (u32, u32),
    pub irs: u32,
    pub iss: u32,
    pub ts_recent: u32,
    pub window: u16,
    /// The peer's segment size.
    pub mss: u16,
    pub scale: Option<u8>,
    pub sack: bool,
    pub ts: bool,
    pub retries: u8,
    /// An "any" listener's: nothing is sent before `complete`.
    pub waits: bool,
}

/// Rounds of waiting: 1, 2, 4, ... s before the next SYN-ACK; the last one is that of entries that wait for their owner.
const ROUNDS: usize = SYN_ACK_RETRIES as usize + 2;
const OWNER_ROUND: usize = ROUNDS - 1;
/// How long the owner of an "any" listener has to decide. A peer's SYNs end after about 127 s.
const OWNER_TIME: u64 = 120 * SECOND;

/// All of them. Each round is a queue in order of time, since all its entries wait equally long.
pub(crate) struct HalfOpen {
    pub slab: Slab<Half>,
    rounds: [VecDeque<(u64, u32, u32)>; ROUNDS],
}

impl HalfOpen {
    pub const fn new(max: u32) -> HalfOpen {
        HalfOpen { slab: Slab::new(max), rounds: [const { VecDeque::new() }; ROUNDS] }
    }

    /// Adds an entry and starts its timer.
    pub fn insert(&mut self, now: u64, half: Half) -> Option<u32> {
        let waits = half.waits;
        let (slot, generation) = self.slab.insert(half)?;
        self.wait(now, slot, generation, if waits { OWNER_ROUND } else { 0 });
        Some(slot)
    }

    /// Starts the timer of an entry that has sent SYN-ACK.
    pub fn wait_again(&mut self, now: u64, slot: u32) {
        let generation = self.slab.generation(slot);
        if let Some(h) = self.slab.get(slot) {
            self.wait(now, slot, generation, usize::from(h.retries));
        }
    }

    fn wait(&mut self, now: u64, slot: u32, generation: u32, round: usize) {
        let time = now + if round == OWNER_ROUND { OWNER_TIME } else { SECOND << round };
        if let Some(r) = self.rounds.get_mut(round) {
            while r.front().is_some_and(|e| !self.slab.is(e.1, e.2)) {
                r.pop_front();
            }
            r.push_back((time, slot, generation));
        }
    }

    pub fn deadline(&self) -> Option<u64> {
        self.rounds.iter().filter_map(|r| r.front().map(|e| e.0)).min()
    }

    /// An entry whose time has come; it has no timer any more.
    pub fn pop_due(&mut self, now: u64) -> Option<u32> {
        for round in &mut self.rounds {
            while let Some(&(time, slot, generation)) = round.front() {
                let alive = self.slab.is(slot, generation);
                if alive && time > now {
                    break;
                }
                round.pop_front();
                if alive {
                    return Some(slot);
                }
            }
        }
        None
    }

    /// The entry that has waited longest, of those that are not their owner's business.
    pub fn oldest(&mut self) -> Option<u32> {
        for round in self.rounds.iter_mut().take(OWNER_ROUND).rev() {
            while let Some((_, slot, generation)) = round.pop_front() {
                if self.slab.is(slot, generation) {
                    return Some(slot);
                }
            }
        }
        None
    }
}

/// Whether another SYN-ACK may be sent.
pub(crate) fn may_retry(half: &Half) -> bool {
    !half.waits && half.retries < SYN_ACK_RETRIES
}
