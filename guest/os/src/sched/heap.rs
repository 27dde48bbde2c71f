//! Timers of parked threads: a binary heap whose elements know their position, so that they can be removed.

use super::thread::Threads;
use crate::errno::{Errno, Result};
use alloc::vec::Vec;

/// The heap; the earliest deadline is first.
#[derive(Debug)]
pub(super) struct Timers(Vec<(u64, u32)>);

impl Timers {
    pub const fn new() -> Self {
        Timers(Vec::new())
    }

    /// Makes room for that many timers, so that adding one cannot fail.
    pub fn reserve(&mut self, count: usize) -> Result<()> {
        self.0.try_reserve(count.saturating_sub(self.0.len())).map_err(|_| Errno::ENOMEM)
    }

    /// The earliest deadline and its thread's slot.
    pub fn first(&self) -> Option<(u64, u32)> {
        self.0.first().copied()
    }

    pub fn add(&mut self, deadline: u64, slot: u32, threads: &mut Threads) {
        self.0.push((deadline, slot));
        self.up(self.0.len() - 1, threads);
    }

    pub fn remove(&mut self, at: u32, threads: &mut Threads) {
        let at = at as usize;
        self.0.swap_remove(at);
        if at < self.0.len() {
            self.up(at, threads);
            let at = threads.get(self.0[at].1).timer.map_or(at, |t| t as usize);
            self.down(at, threads);
        }
    }

    fn up(&mut self, mut at: usize, threads: &mut Threads) {
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.0[parent].0 <= self.0[at].0 {
                break;
            }
            self.0.swap(parent, at);
            self.place(at, threads);
            at = parent;
        }
        self.place(at, threads);
    }

    fn down(&mut self, mut at: usize, threads: &mut Threads) {
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            let mut least = at;
            for child in [left, right] {
                if child < self.0.len() && self.0[child].0 < self.0[least].0 {
                    least = child;
                }
            }
            if least == at {
                break;
            }
            self.0.swap(least, at);
            self.place(at, threads);
            at = least;
        }
        self.place(at, threads);
    }

    fn place(&self, at: usize, threads: &mut Threads) {
        threads.get_mut(self.0[at].1).timer = Some(at as u32);
    }
}
