//! The preemption-off counter.
//!
//! There is one CPU. A thread is switched away from at three points only: where it parks, where a tick upcall
//! finds this counter at zero, and where the end of the outermost [`Guard`] brings it to zero and something is pending: a tick that found more,
//! or a [`request`]. So code that holds a guard has the library OS to itself, and code that holds none may be switched away from anywhere.
//!
//! Plain loads and stores of the counter suffice, although an upcall may come between them: an upcall that finds zero may switch threads, but it
//! leaves zero behind when this thread continues; an upcall that finds more changes nothing but `PENDING`.

use core::sync::atomic::{
    AtomicPtr, AtomicU8, AtomicU32,
    Ordering::{Relaxed, SeqCst},
    compiler_fence,
};

/// How many guards exist in the running thread. Guests start at 1: no preemption before the scheduler exists.
pub(crate) static OFF: AtomicU32 = AtomicU32::new(if cfg!(donjon_guest) { 1 } else { 0 });
/// What is to be done when preemption goes on: [`TICKED`], [`REQUESTED`]. Read-modify-write only, in one instruction: upcalls set bits, too.
pub(crate) static PENDING: AtomicU8 = AtomicU8::new(0);
/// A tick came.
pub(crate) const TICKED: u8 = 1;
/// See [`request`].
const REQUESTED: u8 = 2;
static TICK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Preemption is off while this exists.
#[derive(Debug)]
#[must_use]
pub struct Guard(core::marker::PhantomData<*mut ()>);

/// Turns preemption off until the guard is dropped. Nests. Cheap.
///
/// A guard may be held across `sched::park`: the counter belongs to the thread.
#[inline]
pub fn off() -> Guard {
    #[cfg(not(donjon_guest))]
    crate::host::assert_session();
    OFF.store(OFF.load(Relaxed) + 1, Relaxed);
    compiler_fence(SeqCst);
    Guard(core::marker::PhantomData)
}

impl Drop for Guard {
    #[inline]
    fn drop(&mut self) {
        compiler_fence(SeqCst);
        let count = OFF.load(Relaxed) - 1;
        OFF.store(count, Relaxed);
        if count == 0 && PENDING.load(Relaxed) != 0 {
            tick();
        }
    }
}

/// The running thread's counter.
#[inline]
pub fn count() -> u32 {
    OFF.load(Relaxed)
}

/// Runs `f`, which is the program's code, with preemption on, and with it off again afterwards if it was. The caller could be switched away from.
pub fn on<R>(f: impl FnOnce() -> R) -> R {
    let before = count();
    set_count(0);
    let result = f();
    set_count(before);
    result
}

/// Sets the running thread's counter. For the scheduler, which saves and restores it around a switch, and for
/// the entry code.
#[inline]
pub fn set_count(count: u32) {
    compiler_fence(SeqCst);
    OFF.store(count, Relaxed);
    compiler_fence(SeqCst);
}

/// What is called when there was a tick (`true`), or a request only.
pub type Tick = fn(ticked: bool);

/// Says what a tick calls (the scheduler). It is called with preemption off, on the running thread's stack.
pub fn set_tick(f: Tick) {
    TICK.store(f as *mut (), Relaxed);
}

/// Has the end of the running thread's outermost guard call the scheduler, as if a tick had come. Preemption is off.
#[inline]
pub fn request() {
    PENDING.fetch_or(REQUESTED, Relaxed);
}

/// Handles what is pending: called by the upcall when it finds the counter at zero, and by the guard whose end brings it there.
#[cold]
#[inline(never)]
#[expect(unsafe_code, reason = "the function pointer goes through an atomic")]
pub fn tick() {
    OFF.store(1, Relaxed);
    compiler_fence(SeqCst);
    let pending = PENDING.swap(0, Relaxed);
    let f = TICK.load(Relaxed);
    if !f.is_null() {
        // SAFETY: only `set_tick` stores here, and it stores a `Tick`.
        let f: Tick = unsafe { core::mem::transmute(f) };
        f(pending & TICKED != 0);
    }
    compiler_fence(SeqCst);
    OFF.store(0, Relaxed);
}

/// Marks a tick as pending, as an upcall does. For tests.
#[cfg(not(donjon_guest))]
pub fn host_set_pending() {
    PENDING.fetch_or(TICKED, Relaxed);
}
