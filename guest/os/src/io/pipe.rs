//! `pipe(7)`: 64 KiB, writes of up to `PIPE_BUF` bytes are atomic.

use super::ring::Ring;
use crate::errno::{Errno, Result};
use crate::fd::watch::{Watch, events};
use crate::fd::{self, Ctl, Object};
use crate::fs::Stat;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};

const CAPACITY: usize = 65_536;
/// Largest atomic write (`PIPE_BUF`).
const ATOMIC: usize = 4096;

struct Shared {
    ring: RefCell<Ring>,
    read_watch: Watch,
    write_watch: Watch,
    readers: Cell<bool>,
    writers: Cell<bool>,
}

struct ReadEnd(Rc<Shared>);
struct WriteEnd(Rc<Shared>);

/// `pipe2`: the read end and the write end. `flags` may hold `O_NONBLOCK` and `O_CLOEXEC`.
pub fn create(flags: i32) -> Result<(i32, i32)> {
    if flags & !(fd::O_NONBLOCK | fd::O_CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    let _guard = donjon_base::preempt::off();
    let shared = Rc::new(Shared {
        ring: RefCell::new(Ring::new()),
        read_watch: Watch::new(),
        write_watch: Watch::new(),
        readers: Cell::new(true),
        writers: Cell::new(true),
    });
    let status = flags & fd::O_NONBLOCK;
    let cloexec = flags & fd::O_CLOEXEC != 0;
    let reader = fd::open_file(ReadEnd(shared.clone()), status | fd::O_RDONLY)?;
    let writer = fd::open_file(WriteEnd(shared), status | fd::O_WRONLY)?;
    let read_fd = fd::install(reader, cloexec)?;
    match fd::install(writer, cloexec) {
        Ok(write_fd) => Ok((read_fd, write_fd)),
        Err(e) => {
            fd::close(read_fd)?;
            Err(e)
        }
    }
}

fn fifo_stat() -> Stat {
    Stat { mode: 0o010_600, nlink: 1, ..Stat::default() }
}

impl Object for ReadEnd {
    fn read(&self, _ctl: &Ctl, bufs: &mut [&mut [u8]]) -> Result<usize> {
        if bufs.iter().all(|b| b.is_empty()) {
            return Ok(0);
        }
        let n = self.0.ring.borrow_mut().read(bufs, false);
        if n > 0 {
            self.0.write_watch.notify(events::WRITE);
            return Ok(n);
        }
        if self.0.writers.get() { Err(Errno::EAGAIN) } else { Ok(0) }
    }

    fn ready(&self) -> u32 {
        let mut ready = 0;
        if !self.0.ring.borrow().is_empty() {
            ready |= events::READ;
        }
        if !self.0.writers.get() {
            ready |= events::HUP;
        }
        ready
    }

    fn watch(&self) -> Option<&Watch> {
        Some(&self.0.read_watch)
    }

    fn stat(&self) -> Stat {
        fifo_stat()
    }

    fn as_any(&self) -> &dyn core::any::Any {
        self
    }

    fn available(&self) -> Result<usize> {
        Ok(self.0.ring.borrow().len())
    }
}

impl Drop for ReadEnd {
    fn drop(&mut self) {
        self.0.readers.set(false);
        self.0.ring.borrow_mut().clear();
        self.0.write_watch.notify(events::WRITE | events::ERR);
    }
}

impl Object for WriteEnd {
    fn write(&self, _ctl: &Ctl, bufs: &[&[u8]]) -> Result<usize> {
        if !self.0.readers.get() {
            return Err(Errno::EPIPE);
        }
        let total: usize = bufs.iter().map(|b| b.len()).sum();
        if total == 0 {
            return Ok(0);
        }
        let mut ring = self.0.ring.borrow_mut();
        let room = CAPACITY - ring.len();
        if room == 0 || (total <= ATOMIC && room < total) {
            return Err(Errno::EAGAIN);
        }
        let n = ring.write(bufs, room)?;
        drop(ring);
        self.0.read_watch.notify(events::READ);
        Ok(n)
    }

    fn ready(&self) -> u32 {
        if !self.0.readers.get() {
            return events::WRITE | events::ERR;
        }
        // Linux says writable as soon as an atomic write fits.
        if CAPACITY - self.0.ring.borrow().len() >= ATOMIC { events::WRITE } else { 0 }
    }

    fn watch(&self) -> Option<&Watch> {
        Some(&self.0.write_watch)
    }

    fn stat(&self) -> Stat {
        fifo_stat()
    }

    fn as_any(&self) -> &dyn core::any::Any {
        self
    }

    fn available(&self) -> Result<usize> {
        Ok(self.0.ring.borrow().len())
    }
}

impl Drop for WriteEnd {
    fn drop(&mut self) {
        self.0.writers.set(false);
        self.0.read_watch.notify(events::READ | events::HUP);
    }
}
