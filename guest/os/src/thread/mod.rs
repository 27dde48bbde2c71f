//! Threads as C code knows them: created with a stack size, named, joined or detached.

pub(crate) mod stack;

use crate::signal::Calls;
use crate::{
    errno::{Errno, Result},
    sched::{self, ThreadId, WaitQueue},
};
use donjon_base::preempt;
pub use stack::{DEFAULT as STACK_DEFAULT, MAIN as STACK_MAIN, MIN as STACK_MIN};

/// What a thread runs: gets its two arguments and returns its result.
pub type Run = fn(usize, usize) -> usize;

/// The C side of a thread's record.
#[derive(Debug, Default)]
pub(crate) struct CThread {
    run: Option<(Run, usize, usize)>,
    detached: bool,
    /// Set when the thread ended.
    result: Option<usize>,
    joiner: WaitQueue,
    joining: bool,
    /// Blocked signals, bit n-1 for signal n.
    pub mask: u64,
    /// Signals for this thread alone that wait until it can run their handlers.
    pub sent: u64,
}

impl CThread {
    /// Signals whose handlers this thread is to run.
    pub fn deliverable(&self) -> u64 {
        self.sent & !self.mask
    }
}

/// Starts a thread that runs `run(a, b)`. EAGAIN without memory or when there are too many.
pub fn start(run: Run, a: usize, b: usize, stack: usize, detached: bool) -> Result<ThreadId> {
    let _off = preempt::off();
    let id = prepare(run, a, b, stack, detached)?;
    sched::launch(id);
    Ok(id)
}

/// The same up to [`sched::launch`].
pub(crate) fn prepare(run: Run, a: usize, b: usize, stack: usize, detached: bool) -> Result<ThreadId> {
    let _off = preempt::off();
    let id = sched::create(entry, 0, stack)?;
    let mask = crate::signal::mask();
    sched::with_thread(id, |t| t.c = CThread { run: Some((run, a, b)), detached, mask, ..CThread::default() });
    // The name is inherited, as under Linux.
    let name = name(sched::current()).unwrap_or_default();
    set_name(id, &name)?;
    Ok(id)
}

fn entry(_: usize) {
    let run = sched::with_thread(sched::current(), |t| t.c.run.take()).flatten();
    let result = run.map_or(0, |(run, a, b)| run(a, b));
    exit(result)
}

/// Ends the running thread.
pub fn exit(result: usize) -> ! {
    core::mem::forget(preempt::off());
    let keep = sched::with_thread(sched::current(), |t| {
        t.c.result = Some(result);
        let joiner = core::mem::take(&mut t.c.joiner);
        (!t.c.detached, joiner)
    });
    let keep = match keep {
        Some((keep, mut joiner)) => {
            joiner.wake_all();
            keep
        }
        None => false,
    };
    sched::exit_current(keep)
}

/// Waits for a thread to end and returns its result. ESRCH, EINVAL (detached, or somebody joins it already), EDEADLK.
pub fn join(id: ThreadId) -> Result<usize> {
    let _off = preempt::off();
    let me = sched::current();
    if id == me {
        return Err(Errno::EDEADLK);
    }
    sched::with_thread(id, |t| {
        let free = !t.c.detached && !core::mem::replace(&mut t.c.joining, true);
        if free { Ok(()) } else { Err(Errno::EINVAL) }
    })
    .ok_or(Errno::ESRCH)??;
    loop {
        let result = sched::with_thread(id, |t| t.c.result).ok_or(Errno::ESRCH)?;
        if let Some(result) = result {
            sched::forget(id);
            return Ok(result);
        }
        // The queue is moved out and back: enqueueing needs the scheduler, whose lock `with_thread` holds.
        let mut queue = sched::with_thread(id, |t| core::mem::take(&mut t.c.joiner)).unwrap_or_default();
        queue.enqueue_current();
        sched::with_thread(id, |t| t.c.joiner = queue);
        sched::park(None);
        // As in POSIX, a handler runs, and the wait goes on.
        let _ = crate::signal::interrupted(Calls::GoOn);
    }
}

/// Lets a thread's record go when it ends, or at once if it has. ESRCH, EINVAL if it is detached.
pub fn detach(id: ThreadId) -> Result<()> {
    let _off = preempt::off();
    let ended = sched::with_thread(id, |t| {
        if core::mem::replace(&mut t.c.detached, true) {
            return Err(Errno::EINVAL);
        }
        Ok(t.c.result.is_some())
    })
    .ok_or(Errno::ESRCH)??;
    if ended {
        sched::forget(id);
    }
    Ok(())
}

/// Whether the thread exists and has not been joined.
pub fn exists(id: ThreadId) -> bool {
    sched::with_thread(id, |_| ()).is_some()
}

/// Names a thread; ERANGE if the name is longer than 15 bytes.
pub fn set_name(id: ThreadId, name: &[u8]) -> Result<()> {
    let name = name.split(|b| *b == 0).next().unwrap_or_default();
    if name.len() > 15 {
        return Err(Errno::ERANGE);
    }
    let mut padded = [0; 16];
    padded[..name.len()].copy_from_slice(name);
    sched::with_thread(id, |t| t.name = padded).ok_or(Errno::ESRCH)
}

/// A thread's name, NUL-padded.
pub fn name(id: ThreadId) -> Option<[u8; 16]> {
    sched::with_thread(id, |t| t.name)
}

/// Lowest usable address and length of a thread's stack.
pub fn stack_range(id: ThreadId) -> Option<(usize, usize)> {
    sched::with_thread(id, |t| t.stack.as_ref().map(stack::Stack::range)).flatten()
}
