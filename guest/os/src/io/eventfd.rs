//! `eventfd(2)`.

use crate::errno::{Errno, Result};
use crate::fd::watch::{Watch, events};
use crate::fd::{self, Anon, Ctl, Object};
use crate::fs::Stat;
use core::cell::Cell;

/// `EFD_SEMAPHORE`.
pub const SEMAPHORE: i32 = 1;
/// The count never goes above this.
const MAX: u64 = u64::MAX - 1;

struct EventFd {
    count: Cell<u64>,
    semaphore: bool,
    watch: Watch,
}

/// `eventfd2`.
pub fn create(initial: u32, flags: i32) -> Result<i32> {
    if flags & !(fd::O_NONBLOCK | fd::O_CLOEXEC | SEMAPHORE) != 0 {
        return Err(Errno::EINVAL);
    }
    let _guard = donjon_base::preempt::off();
    let object =
        EventFd { count: Cell::new(u64::from(initial)), semaphore: flags & SEMAPHORE != 0, watch: Watch::new() };
    let file = fd::open_file(object, fd::O_RDWR | flags & fd::O_NONBLOCK)?;
    fd::install(file, flags & fd::O_CLOEXEC != 0)
}

impl Object for EventFd {
    fn read(&self, _ctl: &Ctl, bufs: &mut [&mut [u8]]) -> Result<usize> {
        let out = bufs.iter_mut().find(|b| !b.is_empty()).ok_or(Errno::EINVAL)?;
        let out = out.get_mut(..8).ok_or(Errno::EINVAL)?;
        let count = self.count.get();
        if count == 0 {
            return Err(Errno::EAGAIN);
        }
        let taken = if self.semaphore { 1 } else { count };
        self.count.set(count - taken);
        out.copy_from_slice(&taken.to_ne_bytes());
        self.watch.notify(events::WRITE);
        Ok(8)
    }

    fn write(&self, _ctl: &Ctl, bufs: &[&[u8]]) -> Result<usize> {
        let bytes = bufs.iter().find(|b| !b.is_empty()).and_then(|b| b.first_chunk::<8>()).ok_or(Errno::EINVAL)?;
        let add = u64::from_ne_bytes(*bytes);
        if add > MAX {
            return Err(Errno::EINVAL);
        }
        let sum = self.count.get().checked_add(add).filter(|s| *s <= MAX).ok_or(Errno::EAGAIN)?;
        self.count.set(sum);
        self.watch.notify(events::READ);
        Ok(8)
    }

    fn ready(&self) -> u32 {
        let mut ready = 0;
        if self.count.get() > 0 {
            ready |= events::READ;
        }
        if self.count.get() < MAX {
            ready |= events::WRITE;
        }
        ready
    }

    fn watch(&self) -> Option<&Watch> {
        Some(&self.watch)
    }

    fn stat(&self) -> Stat {
        Anon::stat()
    }

    fn as_any(&self) -> &dyn core::any::Any {
        self
    }
}
