//! Futexes (futex(2), private ones): a word in memory that threads wait on.

#![expect(unsafe_code, reason = "reads the program's word")]
// UNSAFETY: the caller's address is read; it is the program's own memory.

use super::{Wake, park};
use crate::errno::{Errno, Result};
use crate::signal::{self, Calls};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use donjon_base::{Lock, preempt};

/// A thread's place in a bucket.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waiting {
    /// Address of the word; 0 if the thread waits for none.
    address: usize,
    bits: u32,
    /// Neighbours in the bucket, as slots plus 1.
    prev: u32,
    next: u32,
}

const BUCKETS: usize = 256;

struct Buckets {
    /// First and last waiting thread of each bucket, as slots plus 1.
    ends: [(u32, u32); BUCKETS],
}

static BUCKETS_LOCK: Lock<Buckets> = Lock::new(Buckets { ends: [(0, 0); BUCKETS] });

fn bucket(address: usize) -> usize {
    // Multiplicative hashing; the low two bits of an aligned word say nothing.
    ((address >> 2).wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 56
}

/// Waits until the word is woken with one of `bits`, unless it does not hold `expected` (EAGAIN). ETIMEDOUT at the deadline
/// (monotonic, ns).
///
/// # Safety
/// `address` must be a readable, aligned word.
pub unsafe fn wait(address: usize, expected: u32, bits: u32, deadline: Option<u64>) -> Result<()> {
    let _off = preempt::off();
    // SAFETY: by contract.
    let word = unsafe { AtomicU32::from_ptr(address as *mut u32) };
    if word.load(SeqCst) != expected {
        return Err(Errno::EAGAIN);
    }
    let mut me = insert(address, bits);
    loop {
        let wake = park(deadline);
        // Whoever wakes this thread takes it out first.
        if !is_waiting(me) {
            return Ok(());
        }
        if wake == Wake::Deadline {
            let mut s = super::SCHED.lock();
            remove(&mut BUCKETS_LOCK.lock(), &mut s, me);
            return Err(Errno::ETIMEDOUT);
        }
        if signal::any_sent() {
            // A handler may wait for a futex, too, so that this wait begins anew.
            {
                let mut s = super::SCHED.lock();
                remove(&mut BUCKETS_LOCK.lock(), &mut s, me);
            }
            signal::interrupted(Calls::Restart)?;
            if word.load(SeqCst) != expected {
                return Err(Errno::EAGAIN);
            }
            me = insert(address, bits);
        }
        // Something else unparked it. That may be a token from long ago, so it goes on waiting.
    }
}

/// Wakes up to `count` threads that wait on the word with one of `bits`. Returns how many.
pub fn wake(address: usize, count: usize, bits: u32) -> usize {
    let _off = preempt::off();
    let mut woken = 0;
    let mut s = super::SCHED.lock();
    let mut b = BUCKETS_LOCK.lock();
    let mut at = b.ends[bucket(address)].0;
    while at != 0 && woken < count {
        let w = s.threads.get(at - 1).waiting;
        if w.address == address && w.bits & bits != 0 {
            remove(&mut b, &mut s, at - 1);
            s.unpark(at - 1);
            woken += 1;
        }
        at = w.next;
    }
    woken
}

/// Wakes up to `count` threads and moves up to `requeue` of the others to wait on `to`. Returns how many were touched.
pub fn requeue(address: usize, count: usize, to: usize, requeue: usize) -> usize {
    let _off = preempt::off();
    let woken = wake(address, count, u32::MAX);
    let mut s = super::SCHED.lock();
    let mut b = BUCKETS_LOCK.lock();
    let mut moved = 0;
    let mut at = b.ends[bucket(address)].0;
    while at != 0 && moved < requeue {
        let w = s.threads.get(at - 1).waiting;
        if w.address == address && address != to {
            remove(&mut b, &mut s, at - 1);
            append(&mut b, &mut s, at - 1, to, w.bits);
            moved += 1;
        }
        at = w.next;
    }
    woken + moved
}

fn insert(address: usize, bits: u32) -> u32 {
    let mut s = super::SCHED.lock();
    let me = s.current;
    append(&mut BUCKETS_LOCK.lock(), &mut s, me, address, bits);
    me
}

fn append(b: &mut Buckets, s: &mut super::Sched, slot: u32, address: usize, bits: u32) {
    let ends = &mut b.ends[bucket(address)];
    let last = ends.1;
    s.threads.get_mut(slot).waiting = Waiting { address, bits, prev: last, next: 0 };
    if last == 0 {
        ends.0 = slot + 1;
    } else {
        s.threads.get_mut(last - 1).waiting.next = slot + 1;
    }
    ends.1 = slot + 1;
}

fn is_waiting(slot: u32) -> bool {
    super::SCHED.lock().threads.get(slot).waiting.address != 0
}

fn remove(b: &mut Buckets, s: &mut super::Sched, slot: u32) {
    let w = core::mem::take(&mut s.threads.get_mut(slot).waiting);
    let ends = &mut b.ends[bucket(w.address)];
    if w.prev == 0 {
        ends.0 = w.next;
    } else {
        s.threads.get_mut(w.prev - 1).waiting.next = w.next;
    }
    if w.next == 0 {
        ends.1 = w.prev;
    } else {
        s.threads.get_mut(w.next - 1).waiting.prev = w.prev;
    }
}
