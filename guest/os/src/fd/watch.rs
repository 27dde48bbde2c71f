//! Who wants to know when an object becomes ready: parked threads and epoll registrations.

use crate::errno::{Errno, Result};
use crate::io::epoll::Interest;
use crate::sched::ThreadId;
use alloc::rc::Weak;
use alloc::vec::Vec;
use core::cell::RefCell;

/// Readiness bits, the numbers of `poll(2)` and `epoll_ctl(2)`.
pub mod events {
    /// Data, or an end of file, can be read.
    pub const IN: u32 = 1;
    /// Urgent data.
    pub const PRI: u32 = 2;
    /// A write would make progress.
    pub const OUT: u32 = 4;
    /// An error is pending. Always reported.
    pub const ERR: u32 = 8;
    /// Both directions are closed. Always reported.
    pub const HUP: u32 = 0x10;
    /// `poll` only: not an open descriptor.
    pub const NVAL: u32 = 0x20;
    /// Same as [`IN`].
    pub const RDNORM: u32 = 0x40;
    /// Same as [`OUT`].
    pub const WRNORM: u32 = 0x100;
    /// The peer will not send any more.
    pub const RDHUP: u32 = 0x2000;
    /// Readable, under both of its names.
    pub const READ: u32 = IN | RDNORM;
    /// Writable, under both of its names.
    pub const WRITE: u32 = OUT | WRNORM;
    /// Everything that an object can report.
    pub const ALL: u32 = READ | WRITE | PRI | ERR | HUP | RDHUP;
}

/// The list of watchers of one object.
///
/// [`Watch::notify`] is called on every event, not only when a level changes: edge-triggered registrations
/// count on hearing of each arrival.
#[derive(Default)]
pub struct Watch {
    list: RefCell<Vec<Watcher>>,
}

struct Watcher {
    mask: u32,
    target: Target,
}

enum Target {
    Thread(ThreadId),
    Epoll(Weak<Interest>, u32),
}

impl Watch {
    /// A list without watchers.
    pub const fn new() -> Self {
        Watch { list: RefCell::new(Vec::new()) }
    }

    /// Tells everyone who waits for one of `events`.
    pub fn notify(&self, events: u32) {
        debug_assert!(donjon_base::preempt::count() > 0, "another thread may come to the same list");
        // A list that is borrowed is one that notifies right now, further up the stack: its watchers will hear.
        let Ok(list) = self.list.try_borrow() else { return };
        for w in list.iter() {
            if w.mask & events != 0 {
                match &w.target {
                    Target::Thread(t) => crate::sched::unpark(*t),
                    Target::Epoll(epoll, slot) => {
                        if let Some(epoll) = epoll.upgrade() {
                            epoll.raise(*slot);
                        }
                    }
                }
            }
        }
    }

    /// Whether anyone listens at all.
    pub fn is_watched(&self) -> bool {
        !self.list.borrow().is_empty()
    }

    fn push(&self, watcher: Watcher) -> Result<()> {
        debug_assert!(donjon_base::preempt::count() > 0, "another thread may come to the same list");
        let mut list = self.list.borrow_mut();
        if list.len() == list.capacity() {
            // One watcher is the common case (a connection in an epoll set); no slack for thousands of them.
            let more = list.len().max(1);
            list.try_reserve_exact(more).map_err(|_| Errno::ENOMEM)?;
        }
        list.push(watcher);
        Ok(())
    }

    /// Adds a thread that is going to park. Errors and hang-ups are always in its mask.
    pub fn add_thread(&self, thread: ThreadId, mask: u32) -> Result<()> {
        self.push(Watcher { mask: mask | events::ERR | events::HUP, target: Target::Thread(thread) })
    }

    /// Removes one entry of that thread.
    pub fn remove_thread(&self, thread: ThreadId) {
        let mut list = self.list.borrow_mut();
        let at = list.iter().position(|w| matches!(&w.target, Target::Thread(t) if *t == thread));
        if let Some(at) = at {
            list.swap_remove(at);
        }
    }

    /// Adds a registration of an epoll set.
    pub fn add_epoll(&self, epoll: Weak<Interest>, slot: u32, mask: u32) -> Result<()> {
        self.push(Watcher { mask: mask | events::ERR | events::HUP, target: Target::Epoll(epoll, slot) })
    }

    /// Changes the mask of a registration.
    pub fn modify_epoll(&self, epoll: &Weak<Interest>, slot: u32, mask: u32) {
        for w in self.list.borrow_mut().iter_mut() {
            if matches!(&w.target, Target::Epoll(e, s) if *s == slot && e.ptr_eq(epoll)) {
                w.mask = mask | events::ERR | events::HUP;
            }
        }
    }

    /// Removes a registration.
    pub fn remove_epoll(&self, epoll: &Weak<Interest>, slot: u32) {
        let mut list = self.list.borrow_mut();
        let at = list.iter().position(|w| matches!(&w.target, Target::Epoll(e, s) if *s == slot && e.ptr_eq(epoll)));
        if let Some(at) = at {
            list.swap_remove(at);
        }
    }

    /// The object goes away: tells the epoll sets to forget it.
    pub fn detach(&self) {
        let list = core::mem::take(&mut *self.list.borrow_mut());
        for w in list {
            if let Target::Epoll(epoll, slot) = w.target
                && let Some(epoll) = epoll.upgrade()
            {
                epoll.forget(slot);
            }
        }
    }

    /// Calls `visit` for each epoll set that is registered here.
    pub fn epolls(&self, mut visit: impl FnMut(&alloc::rc::Rc<Interest>)) {
        for w in self.list.borrow().iter() {
            if let Target::Epoll(epoll, _) = &w.target
                && let Some(epoll) = epoll.upgrade()
            {
                visit(&epoll);
            }
        }
    }
}
