//! Half-open connections: a SYN has come, and SYN-ACK goes out until the handshake's third segment is here. A few dozen bytes each,
//! bounded over all listeners; when there is no room, the one that has waited longest goes.

use super::{MS, SECOND, SYN_ACK_RETRIES};
use crate::addr::Tuple;
use crate::slab::Slab;
use alloc::collections::VecDeque;
use core::num::NonZeroU32;

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
    /// When SYN-ACK went out, µs; nothing if it did so more than once.
    pub answered_at: Option<NonZeroU32>,
    pub stage: Stage,
}

/// What a half-open connection waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Room in the accept queue; SYN-ACK goes out then.
    Parked,
    /// The peer's acknowledgement of our SYN-ACK. A place in the accept queue is kept for it.
    Claims,
    /// The same, but it has had its time.
    Overdue,
    /// The owner of an "any" listener: SYN-ACK goes out with `complete`.
    Owner,
}

impl Stage {
    /// Whether SYN-ACK has gone out.
    pub fn is_answered(self) -> bool {
        matches!(self, Stage::Claims | Stage::Overdue)
    }
}

/// Rounds of waiting: those of parked entries and of claims, then 1, 2, 4, ... s before the next SYN-ACK, then that of entries that wait for
/// their owner.
const ROUNDS: usize = SYN_ACK_RETRIES as usize + 4;
const PARKED_ROUND: usize = 0;
const CLAIMS_ROUND: usize = 1;
const OVERDUE_ROUND: usize = 2;
const OWNER_ROUND: usize = ROUNDS - 1;
/// After that a parked entry is forgotten: the peer's next SYN is due, and finds none.
const PARKED_TIME: u64 = 900 * MS;
/// How long a place is kept: more than the round trip of a peer that is not at the other end of the world.
const CLAIM_TIME: u64 = 200 * MS;
/// How long the owner of an "any" listener has to decide. A peer's SYNs end after about 127 s.
const OWNER_TIME: u64 = 120 * SECOND;

/// Records of ended entries that a round may have in any case.
const FEW: usize = 64;

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
        let (slot, _) = self.slab.insert(half)?;
        self.wait_again(now, slot);
        Some(slot)
    }

    /// Starts the timer of an entry that has none.
    pub fn wait_again(&mut self, now: u64, slot: u32) {
        let generation = self.slab.generation(slot);
        if let Some(h) = self.slab.get(slot) {
            let (round, time) = match h.stage {
                Stage::Parked => (PARKED_ROUND, PARKED_TIME),
                Stage::Claims => (CLAIMS_ROUND, CLAIM_TIME),
                Stage::Overdue if h.retries == 0 => (OVERDUE_ROUND, SECOND - CLAIM_TIME),
                Stage::Overdue => (OVERDUE_ROUND + usize::from(h.retries), SECOND << h.retries),
                Stage::Owner => (OWNER_ROUND, OWNER_TIME),
            };
            self.wait(now + time, slot, generation, round);
        }
    }

    /// A parked entry is answered from now on: under another name, so that its old timer is void. `None` if it is gone.
    pub fn unpark(&mut self, now: u64, slot: u32) -> Option<u32> {
        let half = self.slab.remove(slot)?;
        self.insert(now, Half { stage: Stage::Claims, ..half })
    }

    fn wait(&mut self, time: u64, slot: u32, generation: u32, round: usize) {
        if let Some(r) = self.rounds.get_mut(round) {
            while r.front().is_some_and(|e| !self.slab.is(e.1, e.2)) {
                r.pop_front();
            }
            // Behind one that hangs there may be any number that have ended since.
            if r.len() > 2 * self.slab.len() as usize + FEW {
                r.retain(|e| self.slab.is(e.1, e.2));
                r.shrink_to(2 * r.len() + FEW);
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

    /// The entry that has waited longest, of those that are not their owner's business; a parked one only if there is no other.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::End;

    /// One attempt that hangs, and a million that are refused at once: no record of them stays.
    #[test]
    fn ended_entries_leave_no_records() {
        let mut half = HalfOpen::new(1024);
        let entry = || Half {
            tuple: Tuple { local: End::NONE, remote: End::NONE },
            hash: 0,
            listener: (0, 0),
            iss: 0,
            irs: 0,
            mss: 0,
            scale: None,
            window: 0,
            ts_recent: 0,
            sack: false,
            ts: false,
            retries: 0,
            answered_at: None,
            stage: Stage::Owner,
        };
        half.insert(1, entry()).unwrap();
        for now in 2..1_000_000 {
            let slot = half.insert(now, entry()).unwrap();
            half.slab.remove(slot);
        }
        let records: usize = half.rounds.iter().map(VecDeque::capacity).sum();
        assert!(records < 500, "{records}");
        assert_eq!(half.deadline(), Some(1 + OWNER_TIME));
    }
}
