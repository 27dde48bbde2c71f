//! Programs that do not outlive us.

#![expect(unsafe_code, reason = "something is to be done between fork and exec")]
// UNSAFETY: registers a closure that makes two system calls.

use std::{io, os::unix::process::CommandExt as _, process::Command};

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

/// Has `command` be asked to stop when the thread that starts it ends, however it does. That thread is to wait for it.
pub(crate) fn ends_with_us(command: &mut Command) -> &mut Command {
    let us = getpid();
    let ask = move || {
        set_parent_process_death_signal(Some(Signal::TERM))?;
        // We may have ended before that.
        if getppid() == Some(us) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: 1. the closure makes two system calls and nothing else: it takes no memory and no lock, which another thread could have held at the fork.
    unsafe { command.pre_exec(ask) }
}
