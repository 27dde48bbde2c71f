//! `timerfd_create(2)`.

use crate::errno::{Errno, Result};
use crate::fd::watch::{Watch, events};
use crate::fd::{self, Anon, Ctl, Object};
use crate::fs::Stat;
use crate::global::Global;
use crate::sorted::Sorted;
use alloc::rc::{Rc, Weak};
use core::cell::Cell;
use donjon_base::clock;

/// `TFD_TIMER_ABSTIME`.
pub const ABSOLUTE: i32 = 1;
/// `TFD_TIMER_CANCEL_ON_SET`: the clock is never set, so it changes nothing.
pub const CANCEL_ON_SET: i32 = 2;

/// Which clock absolute times mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clock {
    /// `CLOCK_REALTIME`.
    Real,
    /// `CLOCK_MONOTONIC`, `CLOCK_BOOTTIME`.
    Monotonic,
}

/// `struct itimerspec`, in nanoseconds.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Setting {
    /// Period; 0: once.
    pub interval: u64,
    /// First expiration; 0: disarmed.
    pub value: u64,
}

struct TimerFd {
    timer: Rc<Timer>,
}

struct Timer {
    clock: Clock,
    id: u64,
    interval: Cell<u64>,
    /// Next expiration on the monotonic clock; 0: disarmed.
    next: Cell<u64>,
    /// Expirations since the last read, as far as they were counted.
    count: Cell<u64>,
    watch: Watch,
}

struct Queue {
    armed: Sorted<(u64, u64), Weak<Timer>>,
    next_id: u64,
}

static QUEUE: Global<Queue> = Global::new(Queue { armed: Sorted::new(), next_id: 0 });

/// Called by the scheduler: expires what is due, says when to come again.
fn poll(now: u64) -> Option<u64> {
    loop {
        let due = QUEUE.with(|q| {
            let &((at, id), ref timer) = q.armed.first()?;
            if at > now {
                return None;
            }
            let timer = timer.upgrade();
            q.armed.remove(&(at, id));
            Some(timer)
        });
        match due {
            Some(Some(timer)) => timer.advance(now),
            Some(None) => {}
            None => return QUEUE.with(|q| q.armed.first().map(|(k, _)| k.0)),
        }
    }
}

impl Timer {
    /// Counts what expired until `now`, tells who waits, and arms the next expiration. Whoever notices an expiry first does it: the poller comes too
    /// late for one that somebody else has noticed.
    fn advance(self: &Rc<Self>, now: u64) {
        let next = self.next.get();
        if next == 0 || next > now {
            return;
        }
        QUEUE.with(|q| q.armed.remove(&(next, self.id)));
        let interval = self.interval.get();
        // There is room for an entry that was there before.
        match (now - next).checked_div(interval) {
            Some(periods) => {
                let expired = periods + 1;
                self.count.set(self.count.get().saturating_add(expired));
                let _ = self.arm(next.saturating_add(expired.saturating_mul(interval)));
            }
            // Only once.
            None => {
                self.count.set(self.count.get() + 1);
                self.next.set(0);
            }
        }
        self.watch.notify(events::READ);
    }

    fn arm(self: &Rc<Self>, at: u64) -> Result<()> {
        if at != 0 {
            QUEUE.with(|q| q.armed.insert((at, self.id), Rc::downgrade(self)))?;
        }
        self.next.set(at);
        Ok(())
    }

    fn setting(&self, now: u64) -> Setting {
        let next = self.next.get();
        Setting { interval: self.interval.get(), value: if next == 0 { 0 } else { next.saturating_sub(now).max(1) } }
    }
}

/// `timerfd_create`.
pub fn create(clock: Clock, flags: i32) -> Result<i32> {
    if flags & !(fd::O_NONBLOCK | fd::O_CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    let _guard = donjon_base::preempt::off();
    if QUEUE.with(|q| q.next_id) == 0 {
        crate::sched::register_poller(poll)?;
    }
    let id = QUEUE.with(|q| {
        q.next_id += 1;
        q.next_id
    });
    let timer =
        Timer { clock, id, interval: Cell::new(0), next: Cell::new(0), count: Cell::new(0), watch: Watch::new() };
    let file = fd::open_file(TimerFd { timer: Rc::new(timer) }, fd::O_RDWR | flags & fd::O_NONBLOCK)?;
    fd::install(file, flags & fd::O_CLOEXEC != 0)
}

fn with_timer<T>(fd: i32, f: impl FnOnce(&Rc<Timer>) -> Result<T>) -> Result<T> {
    let _guard = donjon_base::preempt::off();
    let file = fd::get(fd)?;
    let object = file.obj.as_any().downcast_ref::<TimerFd>().ok_or(Errno::EINVAL)?;
    f(&object.timer)
}

/// `timerfd_settime`: the setting before.
pub fn set(fd: i32, flags: i32, new: Setting) -> Result<Setting> {
    if flags & !(ABSOLUTE | CANCEL_ON_SET) != 0 {
        return Err(Errno::EINVAL);
    }
    with_timer(fd, |timer| {
        let now = clock::monotonic();
        timer.advance(now);
        let old = timer.setting(now);
        QUEUE.with(|q| q.armed.remove(&(timer.next.get(), timer.id)));
        let at = match new.value {
            0 => 0,
            v if flags & ABSOLUTE == 0 => now.saturating_add(v),
            v if timer.clock == Clock::Monotonic => v,
            // The wall clock runs beside the monotonic one at a fixed distance.
            v => now.saturating_add(v.saturating_sub(clock::realtime())).max(1),
        };
        // Only fails for one that was not armed, which then stays so.
        timer.arm(at)?;
        timer.count.set(0);
        timer.interval.set(new.interval);
        timer.advance(now);
        Ok(old)
    })
}

/// `timerfd_gettime`.
pub fn get(fd: i32) -> Result<Setting> {
    with_timer(fd, |timer| {
        let now = clock::monotonic();
        timer.advance(now);
        Ok(timer.setting(now))
    })
}

impl Object for TimerFd {
    fn read(&self, _ctl: &Ctl, bufs: &mut [&mut [u8]]) -> Result<usize> {
        let out = bufs.iter_mut().find(|b| !b.is_empty()).and_then(|b| b.get_mut(..8)).ok_or(Errno::EINVAL)?;
        self.timer.advance(clock::monotonic());
        match self.timer.count.replace(0) {
            0 => Err(Errno::EAGAIN),
            n => {
                out.copy_from_slice(&n.to_ne_bytes());
                Ok(8)
            }
        }
    }

    fn ready(&self) -> u32 {
        self.timer.advance(clock::monotonic());
        if self.timer.count.get() > 0 { events::READ } else { 0 }
    }

    fn watch(&self) -> Option<&Watch> {
        Some(&self.timer.watch)
    }

    fn stat(&self) -> Stat {
        Anon::stat()
    }

    fn as_any(&self) -> &dyn core::any::Any {
        self
    }
}

impl Drop for TimerFd {
    fn drop(&mut self) {
        QUEUE.with(|q| q.armed.remove(&(self.timer.next.get(), self.timer.id)));
    }
}

/// Forgets that the poller is registered, for tests: each has a scheduler of its own.
#[cfg(test)]
pub fn reset() {
    let old = QUEUE.with(|q| core::mem::replace(q, Queue { armed: Sorted::new(), next_id: 0 }));
    drop(old);
}
