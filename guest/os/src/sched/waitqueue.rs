//! Threads that wait for the same thing.

use super::{ThreadId, current, unpark};
use alloc::collections::VecDeque;

/// Threads in the order in which they came. Empty, it owns no memory.
///
/// Use: with preemption off, look whether the thing has happened; if not, `enqueue_current`, `park`, `remove(current())`, and look again.
#[derive(Debug, Default)]
pub struct WaitQueue {
    first: Option<ThreadId>,
    rest: VecDeque<ThreadId>,
}

impl WaitQueue {
    /// A queue without threads.
    pub const fn new() -> Self {
        WaitQueue { first: None, rest: VecDeque::new() }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Appends the running thread, unless it is there already.
    pub fn enqueue_current(&mut self) {
        let me = current();
        match self.first {
            None => self.first = Some(me),
            Some(f) if f != me && !self.rest.contains(&me) => {
                if self.rest.try_reserve(1).is_ok() {
                    self.rest.push_back(me);
                } else {
                    // Without memory to remember it, it must not sleep: its next park returns at once.
                    unpark(me);
                }
            }
            Some(_) => {}
        }
    }

    /// Takes out and unparks the thread that has waited longest. Returns whether there was one.
    pub fn wake_one(&mut self) -> bool {
        let Some(first) = self.first.take() else { return false };
        self.first = self.rest.pop_front();
        unpark(first);
        true
    }

    /// Takes out and unparks all.
    pub fn wake_all(&mut self) {
        while self.wake_one() {}
        self.rest = VecDeque::new();
    }

    /// Takes a thread out.
    pub fn remove(&mut self, id: ThreadId) {
        if self.first == Some(id) {
            self.first = self.rest.pop_front();
        } else {
            self.rest.retain(|t| *t != id);
        }
    }
}
