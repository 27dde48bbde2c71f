//! Signals, as far as a machine with one process has any.
//!
//! What can be sent: "please stop" by the host (`Ready::stop`), and whatever the program sends itself. The host's request is SIGTERM, or
//! SIGINT for a program that handles only that; with neither handled the guest ends with status 143. A handler runs on an ordinary thread:
//! on the sender's for `raise`, on the one that is named for `pthread_kill`, on a new one for the host's request. A handler that runs while its
//! thread waits interrupts the call (EINTR), or lets it go on, as in Linux; one on another thread interrupts nothing but `pause`.

use crate::{
    errno::{Errno, Result},
    exit,
    sched::{self, ThreadId, WaitQueue},
    thread,
};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use donjon_base::{Lock, preempt};

/// Broken pipe.
pub const SIGPIPE: i32 = 13;
/// Interrupt from the terminal.
pub const SIGINT: i32 = 2;
/// Stop, please.
pub const SIGTERM: i32 = 15;
/// Abort.
pub const SIGABRT: i32 = 6;

/// What a signal does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Disposition {
    /// Linux's default: ends the guest, or nothing (SIGCHLD, SIGURG, SIGWINCH, SIGCONT).
    #[default]
    Default,
    /// Nothing.
    Ignore,
    /// Calls a function of the program.
    Handler,
}

/// A signal's action, as sigaction(2) has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Action {
    /// What happens.
    pub disposition: Disposition,
    /// Address of the handler.
    pub handler: usize,
    /// `sa_flags`, kept for the caller.
    pub flags: u32,
    /// `sa_mask`: what waits while the handler runs.
    pub mask: u64,
}

/// Calls a handler: in the libc door, which knows its type.
pub type Deliver = fn(signal: i32, action: Action);

struct Signals {
    actions: [Action; 64],
    /// Bit n-1 for a signal that waits until it is unblocked.
    pending: u64,
    doors: Option<(Deliver, fn())>,
    /// The thread that will run the handler for the host's next request, made while there is memory.
    stopper: Option<ThreadId>,
}

static SIGNALS: Lock<Signals> = Lock::new(Signals {
    actions: [Action { disposition: Disposition::Default, handler: 0, flags: 0, mask: 0 }; 64],
    pending: 0,
    doors: None,
    stopper: None,
});

/// Handlers that have run, and who waits for one.
static HANDLED: AtomicU32 = AtomicU32::new(0);
static PAUSED: Lock<WaitQueue> = Lock::new(WaitQueue::new());

/// What a handler means to a call that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Calls {
    /// It ends.
    End,
    /// It ends unless the handler was set with `SA_RESTART`.
    Restart,
    /// Nothing.
    GoOn,
}

/// Says who calls handlers, and who ends the thread that ran one for the host.
pub fn init(deliver: Deliver, end: fn()) {
    SIGNALS.lock().doors = Some((deliver, end));
}

/// The action of a signal from 1 to 64.
pub fn action(signal: i32) -> Result<Action> {
    Ok(SIGNALS.lock().actions[index(signal)?])
}

/// Sets the action of a signal. Faults are always reported and end the guest, so SIGSEGV and its kin, like SIGKILL and SIGSTOP,
/// cannot be handled: EINVAL.
pub fn set_action(signal: i32, action: Action) -> Result<()> {
    let i = index(signal)?;
    if is_fixed(signal) {
        return Err(Errno::EINVAL);
    }
    SIGNALS.lock().actions[i] = action;
    if action.disposition == Disposition::Handler && matches!(signal, SIGTERM | SIGINT) {
        prepare_stop();
    }
    Ok(())
}

/// Whether the signal's action cannot be changed: SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGKILL, SIGSEGV, SIGSTOP, SIGSYS.
pub fn is_fixed(signal: i32) -> bool {
    matches!(signal, 4 | 5 | 7 | 8 | 9 | 11 | 19 | 31)
}

fn index(signal: i32) -> Result<usize> {
    if (1..=64).contains(&signal) { Ok(signal as usize - 1) } else { Err(Errno::EINVAL) }
}

/// The running thread's blocked signals.
pub fn mask() -> u64 {
    sched::with_thread(sched::current(), |t| t.c.mask).unwrap_or(0)
}

/// Sets the running thread's blocked signals; what was pending and is not blocked any more is delivered.
pub fn set_mask(mask: u64) {
    // SIGKILL and SIGSTOP cannot be blocked.
    let mask = mask & !(1 << 8 | 1 << 18);
    sched::with_thread(sched::current(), |t| t.c.mask = mask);
    let _ = interrupted(Calls::GoOn);
    loop {
        let signal = {
            let mut s = SIGNALS.lock();
            let ready = s.pending & !mask;
            if ready == 0 {
                return;
            }
            let bit = ready.trailing_zeros();
            s.pending &= !(1 << bit);
            bit as i32 + 1
        };
        deliver(signal);
    }
}

/// Signals that wait until they are unblocked.
pub fn pending() -> u64 {
    let own = sched::with_thread(sched::current(), |t| t.c.sent).unwrap_or(0);
    SIGNALS.lock().pending | own
}

/// Sends a signal to a thread. Another one runs the handler when a wait of it ends, which this does, or when it goes on.
pub fn send(id: ThreadId, signal: i32) -> Result<()> {
    let i = index(signal)?;
    let _off = preempt::off();
    if id == sched::current() {
        return preempt::on(|| raise(signal));
    }
    let blocked = sched::with_thread(id, |t| t.c.mask >> i & 1 == 1).ok_or(Errno::ESRCH)?;
    if !blocked && action(signal)?.disposition != Disposition::Handler {
        deliver(signal);
        return Ok(());
    }
    sched::with_thread(id, |t| t.c.sent |= 1 << i);
    sched::unpark(id);
    Ok(())
}

/// Whether [`interrupted`] has something to do.
pub(crate) fn any_sent() -> bool {
    sched::with_thread(sched::current(), |t| t.c.deliverable() != 0).unwrap_or(false)
}

/// Runs the handlers of what was sent to the running thread; EINTR if the call that it waits in is to end. Called where it could be switched away
/// from, with nothing borrowed.
pub(crate) fn interrupted(calls: Calls) -> Result<()> {
    const SA_RESTART: u32 = 0x1000_0000;
    let mut result = Ok(());
    while any_sent() {
        let bit = sched::with_thread(sched::current(), |t| {
            let bit = t.c.deliverable().trailing_zeros();
            t.c.sent &= !(1 << bit);
            bit
        });
        let Some(signal) = bit.map(|b| b as i32 + 1) else { break };
        let action = action(signal)?;
        let ends = calls == Calls::End || (calls == Calls::Restart && action.flags & SA_RESTART == 0);
        if ends && action.disposition == Disposition::Handler {
            result = Err(Errno::EINTR);
        }
        preempt::on(|| deliver(signal));
    }
    result
}

/// Waits until a handler has run, on whichever thread.
pub fn pause() {
    let _off = preempt::off();
    let before = HANDLED.load(Relaxed);
    while HANDLED.load(Relaxed) == before {
        PAUSED.lock().enqueue_current();
        sched::park(None);
        PAUSED.lock().remove(sched::current());
        let _ = interrupted(Calls::GoOn);
    }
}

/// Sends a signal to the running thread: its handler has run when this returns, unless it is blocked.
pub fn raise(signal: i32) -> Result<()> {
    let i = index(signal)?;
    if mask() >> i & 1 == 1 {
        SIGNALS.lock().pending |= 1 << i;
        return Ok(());
    }
    deliver(signal);
    Ok(())
}

fn deliver(signal: i32) {
    let (action, f) = {
        let s = SIGNALS.lock();
        (s.actions[signal as usize - 1], s.doors)
    };
    match (action.disposition, f) {
        (Disposition::Handler, Some((f, _))) => {
            const SA_RESETHAND: u32 = 0x8000_0000;
            if action.flags & SA_RESETHAND != 0 {
                SIGNALS.lock().actions[signal as usize - 1] = Action::default();
            }
            // While it runs, the signal waits, as do those of its `sa_mask`.
            const SA_NODEFER: u32 = 0x4000_0000;
            let before = mask();
            let own = if action.flags & SA_NODEFER == 0 { 1 << (signal - 1) } else { 0 };
            sched::with_thread(sched::current(), |t| t.c.mask = before | own | action.mask);
            f(signal, action);
            HANDLED.fetch_add(1, Relaxed);
            PAUSED.lock().wake_all();
            set_mask(before);
        }
        (Disposition::Ignore, _) => {}
        // SIGCHLD, SIGCONT, SIGURG, SIGWINCH: ignored by default.
        (_, _) if matches!(signal, 17 | 18 | 23 | 28) => {}
        (_, _) => exit(128 + signal),
    }
}

/// Makes the thread for the host's next request. Without memory that request finds none, and tries again.
fn prepare_stop() {
    let _off = preempt::off();
    if SIGNALS.lock().stopper.is_none() {
        let made = thread::prepare(stop_thread, 0, 0, thread::STACK_MIN, true);
        SIGNALS.lock().stopper = made.ok();
    }
}

/// The host asks the guest to stop. Called by the scheduler, with preemption off.
pub(crate) fn stop_requested() {
    if stop_signal().is_none() {
        return;
    }
    // Not on the thread that happens to look: it may hold a lock that the handler needs.
    prepare_stop();
    let stopper = SIGNALS.lock().stopper.take();
    let Some(id) = stopper else { exit(128 + SIGTERM) };
    // What its maker has blocked is that thread's own.
    sched::with_thread(id, |t| t.c.mask = 0);
    sched::launch(id);
}

/// What the host's request is to the program, if it is not ignored.
fn stop_signal() -> Option<i32> {
    let disposition = |signal: i32| SIGNALS.lock().actions[signal as usize - 1].disposition;
    match (disposition(SIGTERM), disposition(SIGINT)) {
        (Disposition::Handler, _) => Some(SIGTERM),
        (_, Disposition::Handler) => Some(SIGINT),
        (Disposition::Ignore, _) => None,
        (Disposition::Default, _) => exit(128 + SIGTERM),
    }
}

fn stop_thread(_: usize, _: usize) -> usize {
    if let Some(signal) = stop_signal() {
        deliver(signal);
    }
    prepare_stop();
    let doors = SIGNALS.lock().doors;
    if let Some((_, end)) = doors {
        end();
    }
    0
}

/// Forgets the prepared thread, whose scheduler a test has taken away.
#[cfg(test)]
pub(crate) fn reset() {
    SIGNALS.lock().stopper = None;
}
