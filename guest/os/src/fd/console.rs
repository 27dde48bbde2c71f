//! Descriptors 0, 1 and 2, and what `/dev` calls them: an empty input, and the host-side log.
//!
//! The gate does not say when a full log has room again, so one that took nothing is looked at again from time to time, by a poller.

use super::{Ctl, Object};
use crate::errno::{Errno, Result};
use crate::fd::watch::{Watch, events};
use crate::fs::{Node, Stat};
use crate::global::Global;
use crate::sched::{self, ThreadId, WaitQueue};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use donjon_base::clock;
use donjon_base::gate::{self, Stream};

/// How soon a full log is looked at again, ns.
const RETRY: u64 = 1_000_000;

/// One of the three standard streams.
pub struct Console {
    stream: Option<Stream>,
    /// The place in the tree, if it was opened by its name.
    node: Option<Node>,
    side: Rc<Side>,
}

#[derive(Default)]
struct Side {
    /// It was full, and is among [`Full::sides`].
    full: Cell<bool>,
    watch: Watch,
}

/// The consoles that took nothing lately.
struct Full {
    sides: Vec<Rc<Side>>,
    /// When they are looked at again (monotonic ns).
    until: u64,
    polled: bool,
}

const NONE: Full = Full { sides: Vec::new(), until: 0, polled: false };
static FULL: Global<Full> = Global::new(NONE);

/// Who writes to a stream, and who waits for that.
struct Writing {
    writer: Option<ThreadId>,
    waiting: WaitQueue,
}

const NOBODY: Writing = Writing { writer: None, waiting: WaitQueue::new() };
static OUTPUT: Global<Writing> = Global::new(NOBODY);
static ERRORS: Global<Writing> = Global::new(NOBODY);

fn writing(stream: Stream) -> &'static Global<Writing> {
    match stream {
        Stream::Output => &OUTPUT,
        Stream::Errors => &ERRORS,
    }
}

/// The right to write to a stream: what one call writes stays together, also where the log takes it in pieces.
pub struct Turn(Stream);

impl Turn {
    /// `EAGAIN` if another thread has it and the caller does not wait; `None` if it is the caller's already, whose signal handler writes.
    fn take(stream: Stream, wait: bool) -> Result<Option<Turn>> {
        let me = sched::current();
        loop {
            let writer = writing(stream).with(|w| {
                if wait && w.writer.is_some_and(|other| other != me) {
                    w.waiting.enqueue_current();
                }
                let writer = w.writer;
                w.writer = writer.or(Some(me));
                writer
            });
            match writer {
                None => return Ok(Some(Turn(stream))),
                Some(other) if other == me => return Ok(None),
                Some(_) if !wait => return Err(Errno::EAGAIN),
                Some(_) => {
                    sched::park(None);
                    writing(stream).with(|w| w.waiting.remove(me));
                }
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        writing(self.0).with(|w| {
            w.writer = None;
            w.waiting.wake_one();
        });
    }
}

impl Console {
    /// The input (`None`) or one of the output streams.
    pub fn new(stream: Option<Stream>, node: Option<Node>) -> Self {
        Console { stream, node, side: Rc::default() }
    }

    /// Has the poller look again.
    fn is_full(&self) -> Result<()> {
        if self.side.full.get() {
            return Ok(());
        }
        if !FULL.with(|f| f.polled) {
            sched::register_poller(poll)?;
        }
        FULL.with(|f| {
            f.polled = true;
            f.sides.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            if f.sides.is_empty() {
                f.until = clock::monotonic() + RETRY;
            }
            f.sides.push(self.side.clone());
            Ok(())
        })?;
        self.side.full.set(true);
        Ok(())
    }
}

/// Called by the scheduler: the log may have room again, for all that the guest knows.
fn poll(now: u64) -> Option<u64> {
    let sides = FULL.with(|f| {
        let due = now >= f.until;
        if due || f.sides.is_empty() { Ok(core::mem::take(&mut f.sides)) } else { Err(f.until) }
    });
    for side in sides.as_deref().unwrap_or_default() {
        side.full.set(false);
        side.watch.notify(events::WRITE);
    }
    sides.err()
}

impl Object for Console {
    fn read(&self, _ctl: &Ctl, _bufs: &mut [&mut [u8]]) -> Result<usize> {
        // Nobody types at a sealed machine: end of file.
        if self.stream.is_none() { Ok(0) } else { Err(Errno::EBADF) }
    }

    /// Writes what the log takes now.
    fn write(&self, _ctl: &Ctl, bufs: &[&[u8]]) -> Result<usize> {
        let stream = self.stream.ok_or(Errno::EBADF)?;
        let mut done = 0;
        for buf in bufs {
            let mut rest = *buf;
            while !rest.is_empty() {
                match gate::console(stream, rest) {
                    Ok(n) if n > 0 => {
                        done += n;
                        rest = &rest[n..];
                    }
                    _ if done > 0 => return Ok(done),
                    Ok(_) => {
                        self.is_full()?;
                        return Err(Errno::EAGAIN);
                    }
                    Err(_) => return Err(Errno::EIO),
                }
            }
        }
        Ok(done)
    }

    fn write_turn(&self, wait: bool) -> Result<Option<Turn>> {
        self.stream.map_or(Ok(None), |stream| Turn::take(stream, wait))
    }

    fn ready(&self) -> u32 {
        match self.stream {
            None => events::READ,
            Some(_) if self.side.full.get() => 0,
            Some(_) => events::WRITE,
        }
    }

    fn watch(&self) -> Option<&Watch> {
        Some(&self.side.watch)
    }

    fn stat(&self) -> Stat {
        match &self.node {
            Some(node) => node.stat(),
            // A pipe, not a terminal: isatty must say no.
            None => Stat { mode: 0o010_600, nlink: 1, ..Stat::default() },
        }
    }

    fn as_any(&self) -> &dyn core::any::Any {
        self
    }

    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }
}

/// Forgets that the poller is registered, and who writes, for tests: each has a scheduler of its own.
#[cfg(test)]
pub fn reset() {
    for stream in [&OUTPUT, &ERRORS] {
        drop(stream.with(|w| core::mem::replace(w, NOBODY)));
    }
    drop(FULL.with(|f| core::mem::replace(f, NONE)));
}
