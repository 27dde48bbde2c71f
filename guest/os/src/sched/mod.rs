//! Threads and their scheduling.
//!
//! One CPU, with the tick upcall as time slice. A thread that blocks parks; whoever makes it runnable
//! unparks it. There is no idle thread: when nothing can run, the thread that parked last looks after the pollers (the network),
//! the timers and the gate's `wait`, on its own stack.
//!
//! Threads whose wait is over run before those that were running when a tick came, so that a request is answered although others compute. Each kind
//! is first come first served. A thread that a second tick finds without a wait in between is one that computes. These are not kept
//! from running: after a tick that found another one, one of them is next.
//!
//! A thread that is woken by another one, not by a poller or a timer, runs at once, that is, when the other one's outermost
//! [`preempt::Guard`] ends, and the other one goes on behind it. Otherwise one that takes a lock again and again would keep everyone else from it: the lock is
//! never free when its time slice ends. A thread gets that at most once a millisecond, so two that wake each other all the time cost little.
//!
//! Parking has *token* semantics: an unpark that comes first makes the next park return at once. So a wake-up is never
//! lost, but may be spurious, and every caller loops.

#![expect(unsafe_code, reason = "switches contexts")]
// UNSAFETY: raw pointers to thread records, which are boxed and stay where they are while a thread exists.

pub mod futex;
mod heap;
#[cfg(test)]
mod tests;
mod thread;
mod waitqueue;

use crate::{
    errno::Result,
    signal::{self, Calls},
};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use donjon_base::{Lock, clock, context, gate, preempt, tls};
use heap::Timers;
use thread::{Queue, State, Thread};
pub use thread::{ThreadId, Threads};
pub use waitqueue::WaitQueue;

/// Why [`park`] returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wake {
    /// Somebody unparked the thread, or nobody did: check what you waited for.
    Unparked,
    /// The deadline passed.
    Deadline,
}

/// Called by the scheduler to make things progress: gets the monotonic time, returns its next deadline.
pub type Poller = fn(now: u64) -> Option<u64>;

/// Thread switches after which the pollers run although there are runnable threads.
const SWITCHES_PER_POLL: u32 = 32;

/// How often a thread may interrupt others by being woken, ns.
const WAKE_INTERVAL: u64 = 1_000_000;

struct Sched {
    threads: Threads,
    timers: Timers,
    /// Slot of the running thread.
    current: u32,
    /// The first ready thread has been woken by the running one and is to run as soon as preemption is on.
    woken: bool,
    /// The next thread is one of those that compute.
    owed: bool,
    /// A thread that has ended and whose stack is still in use until the switch away from it is done.
    zombie: Option<u32>,
    /// Threads that have ended and whose records exist.
    ended: u32,
    /// Threads that have yet to be launched.
    unlaunched: u32,
    switches: u32,
    pollers: Vec<Poller>,
    /// Monotonic time at the start, and time spent in the host's `wait` since, ns.
    started: u64,
    idle: u64,
}

static SCHED: Lock<Sched> = Lock::new(Sched::new());

static POLLING: AtomicBool = AtomicBool::new(false);
/// The pollers run because the guest is about to wait.
static BEFORE_WAIT: AtomicBool = AtomicBool::new(false);
/// Waits that have ended.
static WAITS: AtomicU32 = AtomicU32::new(0);

/// Makes the code that calls it the first thread: for tests.
#[cfg(test)]
pub(crate) fn init() -> Result<()> {
    let mut s = SCHED.lock();
    *s = Sched::new();
    POLLING.store(false, Relaxed);
    signal::reset();
    preempt::set_tick(tick);
    s.add_main().map(|_| ())
}

/// Makes the first thread, with a stack of its own, and continues there.
#[cfg(donjon_guest)]
pub(crate) fn start(entry: extern "C" fn(usize) -> !) -> Result<()> {
    let stack = crate::thread::stack::take(crate::thread::STACK_MAIN)?;
    let (tcb, top) = {
        let mut s = SCHED.lock();
        s.started = clock::monotonic();
        let slot = s.add_main()?;
        let (tcb, top) = stack.prepare(s.threads.id(slot).number());
        let t = s.threads.get_mut(slot);
        t.tcb = tcb;
        t.stack = Some(stack);
        (tcb, top)
    };
    preempt::set_tick(tick);
    // SAFETY: the control block is new and complete.
    unsafe { tls::activate(tcb) };
    // SAFETY: the stack is new; the boot stack is not used again.
    unsafe { context::jump(top, entry, 0) }
}

/// The running thread.
#[inline]
pub fn current() -> ThreadId {
    let s = SCHED.lock();
    s.threads.id(s.current)
}

/// Starts a thread that runs `entry(arg)` and ends when that returns. `stack` is the least stack size in bytes; the thread is
/// detached. For the C library's threads see [`crate::thread`].
pub fn spawn(entry: fn(usize), arg: usize, stack: usize) -> Result<ThreadId> {
    let id = create(entry, arg, stack)?;
    launch(id);
    Ok(id)
}

/// Starts a thread that was just created. It gets its turn: its maker goes on first.
pub(crate) fn launch(id: ThreadId) {
    let mut s = SCHED.lock();
    if let Some(slot) = s.threads.slot(id) {
        s.unlaunched -= 1;
        s.threads.push(Queue::Woken, slot);
    }
}

/// As [`spawn`], but the thread only starts at [`launch`].
pub(crate) fn create(entry: fn(usize), arg: usize, stack: usize) -> Result<ThreadId> {
    let _off = preempt::off();
    let stack = crate::thread::stack::take(stack)?;
    let mut s = SCHED.lock();
    let count = s.threads.len() + 1;
    if let Err(e) = s.timers.reserve(count) {
        crate::thread::stack::give_back(stack);
        return Err(e);
    }
    let slot = s.threads.add_with(stack, entry, arg)?;
    s.unlaunched += 1;
    Ok(s.threads.id(slot))
}

/// Blocks the running thread until it is unparked or the deadline (monotonic, ns) passes. May return for no reason.
/// Preemption may be off; no [`Lock`] may be held.
pub fn park(deadline: Option<u64>) -> Wake {
    let _off = preempt::off();
    {
        let mut s = SCHED.lock();
        let slot = s.current;
        let t = s.threads.get_mut(slot);
        if core::mem::take(&mut t.token) {
            return Wake::Unparked;
        }
        // Nothing to wait for: it keeps its turn.
        if deadline.is_some_and(|d| d <= clock::monotonic()) {
            return Wake::Deadline;
        }
        t.state = State::Parked;
        t.wake = Wake::Unparked;
        t.ticked = false;
        if let Some(d) = deadline {
            s.add_timer(slot, d);
        }
    }
    reschedule();
    let s = SCHED.lock();
    s.threads.get(s.current).wake
}

/// Makes a parked thread runnable, or lets its next park return at once. A thread that no longer exists is ignored.
pub fn unpark(id: ThreadId) {
    let mut s = SCHED.lock();
    if let Some(slot) = s.threads.slot(id) {
        s.unpark(slot);
    }
}

/// Lets the other runnable threads run first.
pub fn yield_now() {
    let _off = preempt::off();
    {
        let mut s = SCHED.lock();
        let slot = s.current;
        s.threads.push(Queue::Others, slot);
    }
    reschedule();
}

/// Adds a poller. It is called with preemption off on any thread's stack, never re-entered, and must not park. It is called before each
/// wait for the host, at each tick, after some thread switches, and by [`poll_now`].
pub fn register_poller(poller: Poller) -> Result<()> {
    let mut s = SCHED.lock();
    s.pollers.try_reserve(1).map_err(|_| crate::errno::Errno::ENOMEM)?;
    s.pollers.push(poller);
    Ok(())
}

/// Runs the pollers and expired timers now.
pub fn poll_now() {
    let _off = preempt::off();
    poll(clock::monotonic());
}

/// For pollers: whether the guest is going to wait at the host unless the poller makes a thread runnable. The wait will return
/// at once if the device has something, so there is no need to look again at a device that was just found empty.
pub fn before_wait() -> bool {
    BEFORE_WAIT.load(Relaxed)
}

/// For pollers: how many waits at the host have ended.
pub fn waits() -> u32 {
    WAITS.load(Relaxed)
}

/// Whether another thread is ready to run, so that parking would not look after the pollers.
pub fn others_ready() -> bool {
    SCHED.lock().threads.any_ready()
}

/// Sleeps until `deadline` (monotonic, ns); EINTR if a handler ran before.
pub fn nap_until(deadline: u64) -> Result<()> {
    let _off = preempt::off();
    while clock::monotonic() < deadline {
        park(Some(deadline));
        signal::interrupted(Calls::End)?;
    }
    Ok(())
}

/// Sleeps until `deadline` (monotonic, ns).
pub fn sleep_until(deadline: u64) {
    while clock::monotonic() < deadline {
        park(Some(deadline));
    }
}

/// Nanoseconds since the guest started.
pub fn uptime() -> u64 {
    clock::monotonic().saturating_sub(SCHED.lock().started)
}

/// Nanoseconds in which the guest was not idle.
pub fn busy() -> u64 {
    uptime().saturating_sub(SCHED.lock().idle)
}

/// Whether the running thread is the only one that has not ended.
pub fn is_last() -> bool {
    let s = SCHED.lock();
    s.ended + 1 == s.count()
}

/// Number of threads that exist.
pub fn thread_count() -> usize {
    SCHED.lock().count() as usize
}

/// Runs `f` on the thread's record, if it exists.
pub(crate) fn with_thread<R>(id: ThreadId, f: impl FnOnce(&mut Thread) -> R) -> Option<R> {
    let mut s = SCHED.lock();
    let slot = s.threads.slot(id)?;
    Some(f(s.threads.get_mut(slot)))
}

/// Number of threads, or `None` if the scheduler's state is not accessible. For fault reports.
pub(crate) fn try_count() -> Option<usize> {
    (!SCHED.is_held()).then(thread_count)
}

/// Runs `f` on the running thread's record, or returns `None` if the scheduler's state is not accessible. For fault reports.
pub(crate) fn try_current<R>(f: impl FnOnce(&mut Thread) -> R) -> Option<R> {
    if SCHED.is_held() {
        return None;
    }
    let mut s = SCHED.lock();
    let slot = s.current;
    if s.threads.len() == 0 {
        return None;
    }
    Some(f(s.threads.get_mut(slot)))
}

/// Ends the running thread. Its record stays if it may be joined.
pub(crate) fn exit_current(keep_record: bool) -> ! {
    // Never dropped: the counter is thread-local, and the thread is gone.
    core::mem::forget(preempt::off());
    {
        let mut s = SCHED.lock();
        let slot = s.current;
        let t = s.threads.get_mut(slot);
        t.state = State::Dead;
        t.keep_record = keep_record;
        s.ended += 1;
        if s.ended == s.count() {
            // The last thread: the process ends with it. The C library's threads have seen that coming.
            crate::exit(0);
        }
    }
    reschedule();
    unreachable!("a dead thread runs")
}

/// Frees the record of a thread that ended with `keep_record`.
pub(crate) fn forget(id: ThreadId) {
    let mut s = SCHED.lock();
    if let Some(slot) = s.threads.slot(id) {
        let t = s.threads.get_mut(slot);
        t.keep_record = false;
        if t.state == State::Dead && s.zombie != Some(slot) && s.current != slot {
            s.remove_ended(slot);
        }
    }
}

impl Sched {
    const fn new() -> Self {
        Sched {
            threads: Threads::new(),
            timers: Timers::new(),
            current: 0,
            woken: false,
            owed: false,
            zombie: None,
            ended: 0,
            unlaunched: 0,
            switches: 0,
            pollers: Vec::new(),
            started: 0,
            idle: 0,
        }
    }

    #[cfg(any(donjon_guest, test))]
    fn add_main(&mut self) -> Result<u32> {
        let slot = self.threads.add(Thread::main(0))?;
        self.timers.reserve(1)?;
        self.current = slot;
        Ok(slot)
    }

    fn unpark(&mut self, slot: u32) {
        let t = self.threads.get_mut(slot);
        if t.state == State::Parked {
            if let Some(at) = t.timer.take() {
                self.timers.remove(at, &mut self.threads);
            }
            if self.interrupts(slot) {
                self.threads.push_first(slot);
                self.woken = true;
                preempt::request();
            } else {
                self.threads.push(Queue::Woken, slot);
            }
        } else {
            t.token = true;
        }
    }

    /// Whether a thread that is woken runs before the running one goes on. Not if nobody runs: pollers are called by threads that park, and
    /// for those that do not they come with a tick. Of several at a time only the first.
    fn interrupts(&mut self, slot: u32) -> bool {
        if self.woken || self.threads.get(self.current).state != State::Running || POLLING.load(Relaxed) {
            return false;
        }
        let now = clock::monotonic();
        let last = &mut self.threads.get_mut(slot).interrupted;
        let may = now.saturating_sub(*last) >= WAKE_INTERVAL;
        if may {
            *last = now;
        }
        may
    }

    /// Takes the thread that is to run next.
    fn next(&mut self) -> Option<u32> {
        let owed = if core::mem::take(&mut self.owed) { self.threads.pop(Queue::Others) } else { None };
        owed.or_else(|| self.threads.pop(Queue::Woken)).or_else(|| self.threads.pop(Queue::Others))
    }

    /// Number of threads that were launched and whose records exist.
    fn count(&self) -> u32 {
        self.threads.len() as u32 - self.unlaunched
    }

    fn remove_ended(&mut self, slot: u32) {
        self.threads.remove(slot);
        self.ended -= 1;
    }

    fn add_timer(&mut self, slot: u32, deadline: u64) {
        self.timers.add(deadline, slot, &mut self.threads);
    }

    /// Makes the threads runnable whose deadline has passed.
    fn expire(&mut self, now: u64) {
        while let Some((deadline, slot)) = self.timers.first() {
            if deadline > now {
                break;
            }
            self.timers.remove(0, &mut self.threads);
            let t = self.threads.get_mut(slot);
            t.timer = None;
            t.wake = Wake::Deadline;
            self.threads.push(Queue::Woken, slot);
        }
    }
}

/// Switches to a runnable thread, which may be this one; waits until there is one. Preemption is off.
fn reschedule() {
    debug_assert!(preempt::count() > 0);
    let mut s = SCHED.lock();
    s.switches += 1;
    if s.switches >= SWITCHES_PER_POLL {
        drop(s);
        poll(clock::monotonic());
        s = SCHED.lock();
    }
    let next = loop {
        if let Some(next) = s.next() {
            break next;
        }
        drop(s);
        idle();
        s = SCHED.lock();
    };
    s.woken = false;
    let me = s.current;
    let t = s.threads.get_mut(next);
    t.state = State::Running;
    if next == me {
        return;
    }
    let (to, tcb): (*const context::Context, usize) = (&raw const t.context, t.tcb);
    s.current = next;
    let t = s.threads.get_mut(me);
    let from = &raw mut t.context;
    if t.state == State::Dead {
        s.zombie = Some(me);
    }
    drop(s);
    let count = preempt::count();
    // SAFETY: `tcb` belongs to the thread that runs next, and nothing uses TLS in between.
    unsafe { tls::activate(tcb) };
    // SAFETY: 1. both records are boxed and exist: a record is only removed when its thread is neither running nor runnable;
    // 2. `to` was filled in when that thread was switched away from, or when it was made.
    unsafe { context::switch(from, to) };
    preempt::set_count(count);
    reap();
}

/// Frees what the thread that ran before left behind. Runs first after every switch.
pub(crate) fn reap() {
    let stack = {
        let mut s = SCHED.lock();
        let me = s.current;
        if s.threads.get(me).c.deliverable() != 0 {
            preempt::request();
        }
        let Some(slot) = s.zombie.take() else { return };
        let t = s.threads.get_mut(slot);
        let stack = t.stack.take();
        if !t.keep_record {
            s.remove_ended(slot);
        }
        stack
    };
    if let Some(stack) = stack {
        crate::thread::stack::give_back(stack);
    }
}

/// Runs pollers and expired timers, and gives unneeded memory back; returns the next deadline of all but the timers.
fn poll(now: u64) -> Option<u64> {
    if POLLING.swap(true, Relaxed) {
        return None;
    }
    let mut deadline: Option<u64> = None;
    for i in 0.. {
        let Some(poller) = SCHED.lock().pollers.get(i).copied() else { break };
        deadline = earlier(deadline, poller(now));
    }
    deadline = earlier(deadline, crate::mem::decay(now));
    let mut s = SCHED.lock();
    s.switches = 0;
    s.expire(now);
    drop(s);
    POLLING.store(false, Relaxed);
    deadline
}

fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Looks after the outside world until a thread can run, or once.
fn idle() {
    let now = clock::monotonic();
    BEFORE_WAIT.store(true, Relaxed);
    let deadline = poll(now);
    BEFORE_WAIT.store(false, Relaxed);
    let deadline = {
        let s = SCHED.lock();
        if s.threads.any_ready() {
            return;
        }
        earlier(deadline, s.timers.first().map(|t| t.0))
    };
    let before = clock::monotonic();
    let ready = gate::wait(deadline.map(|d| d.saturating_sub(before)));
    WAITS.store(WAITS.load(Relaxed).wrapping_add(1), Relaxed);
    SCHED.lock().idle += clock::monotonic().saturating_sub(before);
    if ready.stop {
        signal::stop_requested();
    }
}

/// The tick: the running thread has had its share. Or it has not, and the thread that it has woken goes first.
#[cfg(any(donjon_guest, test))]
fn tick(ticked: bool) {
    take_turns(ticked);
    // What came for this thread while it did not wait for anything.
    let _ = signal::interrupted(Calls::GoOn);
}

#[cfg(any(donjon_guest, test))]
fn take_turns(ticked: bool) {
    if !ticked {
        let mut s = SCHED.lock();
        // A switch that came before has done what the request was for.
        if !s.woken {
            return;
        }
        let me = s.current;
        s.threads.push_second(me);
        drop(s);
        return reschedule();
    }
    if gate::wait(Some(0)).stop {
        signal::stop_requested();
    }
    poll(clock::monotonic());
    let mut s = SCHED.lock();
    let me = s.current;
    // The first tick may have come right after the thread was switched to.
    let computes = core::mem::replace(&mut s.threads.get_mut(me).ticked, true);
    if !s.threads.any_ready() {
        return;
    }
    s.owed = !computes && s.threads.any(Queue::Others);
    s.threads.push(if computes { Queue::Others } else { Queue::Woken }, me);
    drop(s);
    reschedule();
}
