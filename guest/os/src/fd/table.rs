//! The descriptor table.

use super::{FileRef, O_RDONLY, O_WRONLY, console, open_file};
use crate::errno::{Errno, Result};
use crate::global::Global;
use alloc::rc::Rc;
use alloc::vec::Vec;
use donjon_base::gate::Stream;

/// The default of `RLIMIT_NOFILE`: high enough for a server, low enough that a leak is found.
const LIMIT: u32 = 65_536;

struct Table {
    slots: Vec<Option<Slot>>,
    /// No free slot is below this index.
    lowest: usize,
    limit: u32,
    standard_opened: bool,
}

struct Slot {
    file: FileRef,
    cloexec: bool,
}

static TABLE: Global<Table> = Global::new(Table { slots: Vec::new(), lowest: 0, limit: LIMIT, standard_opened: false });

impl Table {
    /// Opens 0, 1 and 2 at the first use of the table.
    fn standard(&mut self) -> Result<()> {
        if !self.standard_opened {
            for (stream, flags) in
                [(None, O_RDONLY), (Some(Stream::Output), O_WRONLY), (Some(Stream::Errors), O_WRONLY)]
            {
                self.insert(open_file(console::Console::new(stream, None), flags)?, false, 0)?;
            }
            self.standard_opened = true;
        }
        Ok(())
    }

    fn slot(&self, fd: i32) -> Result<&Slot> {
        usize::try_from(fd).ok().and_then(|i| self.slots.get(i)).and_then(Option::as_ref).ok_or(Errno::EBADF)
    }

    fn insert(&mut self, file: FileRef, cloexec: bool, from: usize) -> Result<i32> {
        let mut at = from.max(self.lowest);
        while self.slots.get(at).is_some_and(Option::is_some) {
            at += 1;
        }
        self.put(at, file, cloexec)?;
        if from <= self.lowest {
            self.lowest = at + 1;
        }
        Ok(at as i32)
    }

    fn put(&mut self, at: usize, file: FileRef, cloexec: bool) -> Result<Option<Slot>> {
        if at >= self.limit as usize {
            return Err(Errno::EMFILE);
        }
        if at >= self.slots.len() {
            self.slots.try_reserve(at + 1 - self.slots.len()).map_err(|_| Errno::ENOMEM)?;
            self.slots.resize_with(at + 1, || None);
        }
        Ok(self.slots[at].replace(Slot { file, cloexec }))
    }

    fn take(&mut self, fd: i32) -> Option<Slot> {
        let at = usize::try_from(fd).ok()?;
        let slot = self.slots.get_mut(at)?.take()?;
        self.lowest = self.lowest.min(at);
        Some(slot)
    }
}

fn with<T>(f: impl FnOnce(&mut Table) -> Result<T>) -> Result<T> {
    TABLE.with(|table| {
        table.standard()?;
        f(table)
    })
}

/// Opens the standard streams. Where memory is too short for that, the first use of the table tries again and reports it.
pub fn init() {
    let _ = with(|_| Ok(()));
}

/// The description behind a descriptor.
pub fn get(fd: i32) -> Result<FileRef> {
    with(|t| Ok(t.slot(fd)?.file.clone()))
}

/// Gives a description the lowest free number.
pub fn install(file: FileRef, cloexec: bool) -> Result<i32> {
    with(|t| t.insert(file, cloexec, 0))
}

/// The error with which the next [`install`] would fail: `EMFILE` for want of a number, `ENOMEM` for want of memory.
pub fn has_room() -> Result<()> {
    with(|t| {
        let free = (t.lowest..t.limit as usize).find(|at| t.slots.get(*at).is_none_or(Option::is_none));
        let len = free.ok_or(Errno::EMFILE)? + 1;
        t.slots.try_reserve(len.saturating_sub(t.slots.len())).map_err(|_| Errno::ENOMEM)
    })
}

/// `close`.
pub fn close(fd: i32) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    // Dropped outside of the table: closing may send, wake and free.
    let slot = with(|t| t.take(fd).ok_or(Errno::EBADF))?;
    let_go(Some(slot));
    Ok(())
}

/// What was in the table is there no more. Preemption is off.
fn let_go(slot: Option<Slot>) {
    if let Some(slot) = slot
        && Rc::strong_count(&slot.file) == 1
    {
        // Before it may wait: epoll sets must not report a number that is closed, and that another file may have by then.
        if let Some(watch) = slot.file.obj.watch() {
            watch.detach();
        }
        slot.file.obj.closing(&slot.file);
    }
}

/// `close_range` without flags, or with `CLOSE_RANGE_CLOEXEC`.
pub fn close_range(first: u32, last: u32, only_cloexec: bool) -> Result<()> {
    if first > last {
        return Err(Errno::EINVAL);
    }
    let _guard = donjon_base::preempt::off();
    let end = with(|t| Ok((t.slots.len() as u64).min(u64::from(last) + 1) as u32))?;
    for fd in first..end {
        let slot = with(|t| {
            if only_cloexec {
                if let Some(Some(slot)) = t.slots.get_mut(fd as usize) {
                    slot.cloexec = true;
                }
                return Ok(None);
            }
            Ok(t.take(fd as i32))
        })?;
        let_go(slot);
    }
    Ok(())
}

/// `dup`, `fcntl(F_DUPFD)`: the lowest free number from `from` on.
pub fn dup(fd: i32, from: i32, cloexec: bool) -> Result<i32> {
    let _guard = donjon_base::preempt::off();
    with(|t| {
        let file = t.slot(fd)?.file.clone();
        let from = u32::try_from(from).ok().filter(|f| *f < t.limit).ok_or(Errno::EINVAL)?;
        t.insert(file, cloexec, from as usize)
    })
}

/// `dup2`, `dup3`: exactly that number; `EINVAL` if it is the same.
pub fn dup_at(fd: i32, to: i32, cloexec: bool) -> Result<i32> {
    let _guard = donjon_base::preempt::off();
    let old = with(|t| {
        let file = t.slot(fd)?.file.clone();
        if fd == to {
            return Err(Errno::EINVAL);
        }
        let at = u32::try_from(to).ok().filter(|n| *n < t.limit).ok_or(Errno::EBADF)?;
        t.put(at as usize, file, cloexec)
    })?;
    let_go(old);
    Ok(to)
}

/// `fcntl(F_GETFD)`: whether close-on-exec is set.
pub fn flags(fd: i32) -> Result<bool> {
    let _guard = donjon_base::preempt::off();
    with(|t| Ok(t.slot(fd)?.cloexec))
}

/// `fcntl(F_SETFD)`.
pub fn set_flags(fd: i32, cloexec: bool) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    with(|t| {
        let index = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        t.slots.get_mut(index).and_then(Option::as_mut).ok_or(Errno::EBADF)?.cloexec = cloexec;
        Ok(())
    })
}

/// `getrlimit(RLIMIT_NOFILE)`.
pub fn limit() -> u32 {
    let _guard = donjon_base::preempt::off();
    TABLE.with(|t| t.limit)
}

/// `setrlimit(RLIMIT_NOFILE)`: applies to new descriptors.
pub fn set_limit(limit: u32) {
    let _guard = donjon_base::preempt::off();
    TABLE.with(|t| t.limit = limit);
}

/// Forgets everything, for tests.
#[cfg(test)]
pub fn reset() {
    let old = TABLE.with(|t| {
        let slots = core::mem::take(&mut t.slots);
        *t = Table { slots: Vec::new(), lowest: 0, limit: LIMIT, standard_opened: false };
        slots
    });
    drop(old);
}
