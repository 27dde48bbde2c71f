//! `pipe(7)` and `fifo(7)`: 64 KiB, writes of up to `PIPE_BUF` bytes are atomic.

use super::ring::Ring;
use crate::errno::{Errno, Result};
use crate::fd::watch::{Watch, events};
use crate::fd::{self, Ctl, FileRef, O_ACCMODE, O_CLOEXEC, O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY, Object, Woken};
use crate::fs::{Stat, kind};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

const CAPACITY: usize = 65_536;
/// Largest atomic write (`PIPE_BUF`).
const ATOMIC: usize = 4096;

/// What the ends of a pipe share.
#[derive(Default)]
pub struct Pipe {
    ring: RefCell<Ring>,
    readers: Cell<u32>,
    writers: Cell<u32>,
    /// Openings so far for reading and for writing, for those who wait for the other side of a named pipe.
    opened: [Cell<u32>; 2],
    /// Watch lists of the ends, and of openings that wait.
    ends: RefCell<Vec<Rc<Watch>>>,
}

struct End {
    pipe: Rc<Pipe>,
    reads: bool,
    writes: bool,
    watch: Rc<Watch>,
    /// Openings for writing that this end knows nothing of: they were over before it was opened.
    before: u32,
    /// The place in the tree, of a named pipe.
    node: Option<crate::fs::Node>,
}

/// `pipe2`: the read end and the write end. `flags` may hold `O_NONBLOCK` and `O_CLOEXEC`.
pub fn create(flags: i32) -> Result<(i32, i32)> {
    if flags & !(O_NONBLOCK | O_CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    let _guard = donjon_base::preempt::off();
    fd::headroom()?;
    let pipe = Rc::new(Pipe::default());
    let (status, cloexec) = (flags & O_NONBLOCK, flags & O_CLOEXEC != 0);
    let reader = pipe.end(status | O_RDONLY, None)?;
    let writer = pipe.end(status | O_WRONLY, None)?;
    let read_fd = fd::install(reader, cloexec)?;
    match fd::install(writer, cloexec) {
        Ok(write_fd) => Ok((read_fd, write_fd)),
        Err(e) => {
            fd::close(read_fd)?;
            Err(e)
        }
    }
}

/// Opens a named pipe. A blocking opening waits for the other side; a non-blocking one for writing fails without a reader.
pub fn open(pipe: &Rc<Pipe>, node: crate::fs::Node, flags: i32) -> Result<FileRef> {
    let mode = flags & O_ACCMODE;
    if mode == O_WRONLY && flags & O_NONBLOCK != 0 && pipe.readers.get() == 0 {
        return Err(Errno::ENXIO);
    }
    let file = pipe.end(flags, Some(node))?;
    if flags & O_NONBLOCK != 0 || mode == O_RDWR {
        return Ok(file);
    }
    // Who came and went again meanwhile counts, too: a reader must see the end, a writer the broken pipe.
    let [reads, writes] = &pipe.opened;
    let (others, opened) = if mode == O_RDONLY { (&pipe.writers, writes) } else { (&pipe.readers, reads) };
    let before = opened.get();
    let missing = || others.get() == 0 && opened.get() == before;
    while missing() {
        let watch = file.obj.watch().ok_or(Errno::EINVAL)?;
        if fd::wait_on(watch, events::ALL, None)? == Woken::TimedOut {
            break;
        }
    }
    Ok(file)
}

impl Pipe {
    fn end(self: &Rc<Self>, flags: i32, node: Option<crate::fs::Node>) -> Result<FileRef> {
        let mode = flags & O_ACCMODE;
        let watch = Rc::new(Watch::new());
        self.ends.borrow_mut().try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.ends.borrow_mut().push(watch.clone());
        let [reads, writes] = &self.opened;
        let before = writes.get().wrapping_sub(u32::from(self.writers.get() > 0));
        let end = End { pipe: self.clone(), reads: mode != O_WRONLY, writes: mode != O_RDONLY, watch, before, node };
        for (side, count, opened) in [(end.reads, &self.readers, reads), (end.writes, &self.writers, writes)] {
            count.set(count.get() + u32::from(side));
            opened.set(opened.get().wrapping_add(u32::from(side)));
        }
        // From here on, dropping `end` takes all this back.
        let file = fd::open_file(end, flags)?;
        self.notify(events::READ | events::WRITE);
        Ok(file)
    }

    fn notify(&self, events: u32) {
        for watch in self.ends.borrow().iter() {
            watch.notify(events);
        }
    }
}

impl Object for End {
    fn read(&self, _ctl: &Ctl, bufs: &mut [&mut [u8]]) -> Result<usize> {
        if bufs.iter().all(|b| b.is_empty()) {
            return Ok(0);
        }
        let n = self.pipe.ring.borrow_mut().read(bufs, false);
        if n > 0 {
            self.pipe.notify(events::WRITE);
            return Ok(n);
        }
        if self.pipe.writers.get() > 0 { Err(Errno::EAGAIN) } else { Ok(0) }
    }

    fn write(&self, _ctl: &Ctl, bufs: &[&[u8]]) -> Result<usize> {
        if self.pipe.readers.get() == 0 {
            return Err(Errno::EPIPE);
        }
        let total: usize = bufs.iter().map(|b| b.len()).sum();
        if total == 0 {
            return Ok(0);
        }
        let mut ring = self.pipe.ring.borrow_mut();
        let room = CAPACITY - ring.len();
        if room == 0 || (total <= ATOMIC && room < total) {
            return Err(Errno::EAGAIN);
        }
        let n = ring.write(bufs, room)?;
        drop(ring);
        self.pipe.notify(events::READ);
        Ok(n)
    }

    fn ready(&self) -> u32 {
        let mut ready = 0;
        let held = self.pipe.ring.borrow().len();
        if self.reads {
            if held > 0 {
                ready |= events::READ;
            }
            // As in Linux, a named pipe that nobody has opened for writing since then has not been hung up.
            if self.pipe.writers.get() == 0 && self.pipe.opened[1].get() != self.before {
                ready |= events::HUP;
            }
        }
        if self.writes {
            // Linux says writable as soon as an atomic write fits.
            if CAPACITY - held >= ATOMIC {
                ready |= events::WRITE;
            }
            if self.pipe.readers.get() == 0 {
                ready |= events::WRITE | events::ERR;
            }
        }
        ready
    }

    fn watch(&self) -> Option<&Watch> {
        Some(&self.watch)
    }

    fn stat(&self) -> Stat {
        match &self.node {
            Some(node) => node.stat(),
            None => Stat { mode: kind::FIFO | 0o600, nlink: 1, ..Stat::default() },
        }
    }

    fn as_any(&self) -> &dyn core::any::Any {
        self
    }

    fn available(&self) -> Result<usize> {
        Ok(self.pipe.ring.borrow().len())
    }

    fn node(&self) -> Option<&crate::fs::Node> {
        self.node.as_ref()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let pipe = &self.pipe;
        for (side, count) in [(self.reads, &pipe.readers), (self.writes, &pipe.writers)] {
            count.set(count.get() - u32::from(side));
        }
        pipe.ends.borrow_mut().retain(|w| !Rc::ptr_eq(w, &self.watch));
        // What nobody can read any more is gone; a named pipe keeps it as long as someone has it open.
        if pipe.readers.get() == 0 && (self.node.is_none() || pipe.writers.get() == 0) {
            pipe.ring.borrow_mut().clear();
        }
        if self.reads && pipe.readers.get() == 0 {
            pipe.notify(events::WRITE | events::ERR);
        }
        if self.writes && pipe.writers.get() == 0 {
            pipe.notify(events::READ | events::HUP);
        }
    }
}
