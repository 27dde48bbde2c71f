//! Signals from one thread to another.

use crate::{Outcome, ensure, fails_with};
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread::{self, JoinHandle};

/// The thread that ran the handler last.
static HANDLED_BY: AtomicU32 = AtomicU32::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
static PAUSED: AtomicBool = AtomicBool::new(true);

extern "C" fn handle(_signal: libc::c_int) {
    HANDLED_BY.store(unsafe { libc::gettid() } as u32, SeqCst);
    STOP.store(true, SeqCst);
}

/// Sends the signal until the thread has ended: it may come before what it is to interrupt.
fn interrupt<T>(thread: JoinHandle<T>) -> Result<T, String> {
    while !thread.is_finished() {
        let result = unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) };
        ensure(result == 0, format!("pthread_kill: {result}"))?;
        thread::yield_now();
    }
    thread.join().map_err(|_| "it panicked".into())
}

pub fn between_threads() -> Outcome {
    // Without SA_RESTART.
    let action: libc::sigaction = unsafe { std::mem::zeroed() };
    let action = libc::sigaction { sa_sigaction: handle as *const () as usize, ..action };
    ensure(unsafe { libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()) } == 0, "sigaction")?;

    // One that waits.
    let mut pipe = [0; 2];
    ensure(unsafe { libc::pipe(pipe.as_mut_ptr()) } == 0, "pipe")?;
    let reader = thread::spawn(move || {
        let mut byte = 0u8;
        let result = unsafe { libc::read(pipe[0], (&raw mut byte).cast(), 1) };
        fails_with(result, libc::EINTR, "read").map(|()| unsafe { libc::gettid() })
    });
    let number = interrupt(reader)??;
    ensure(HANDLED_BY.load(SeqCst) == number as u32, "another thread ran the handler")?;

    // One that computes, and calls nothing: its registers must be as they were.
    let computing = thread::spawn(|| {
        let (mut sum, mut rounds) = (0.0, 0u64);
        STOP.store(false, SeqCst);
        while !STOP.load(SeqCst) {
            rounds += 1;
            sum += 0.5;
        }
        (sum, rounds)
    });
    let (sum, rounds) = interrupt(computing)?;
    ensure(sum == rounds as f64 / 2.0, format!("{sum} after {rounds} rounds"))?;

    // One that pauses: this one.
    let me = unsafe { libc::pthread_self() };
    let sender = thread::spawn(move || {
        while PAUSED.load(SeqCst) {
            thread::yield_now();
            unsafe { libc::pthread_kill(me, libc::SIGUSR1) };
        }
    });
    let paused = fails_with(unsafe { libc::pause() } as isize, libc::EINTR, "pause");
    PAUSED.store(false, SeqCst);
    paused?;
    sender.join().map_err(|_| "the sender panicked".into())
}
