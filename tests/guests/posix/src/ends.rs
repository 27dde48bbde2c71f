//! How a program ends that has more than one thread.

use crate::{Outcome, ensure};
use std::io::Write;
use std::ptr::null_mut;
use std::thread;

extern "C" fn bye() {
    // No buffer of std's is in between.
    let text = "PASS last-thread\n";
    unsafe { libc::write(1, text.as_ptr().cast(), text.len()) };
}

/// Long enough for the other threads to get to where they wait.
fn let_others_run() {
    for _ in 0..1000 {
        thread::yield_now();
    }
}

/// The first thread leaves; with the last one the program ends, as if that had called `exit`.
pub fn with_the_last_thread() -> Outcome {
    ensure(unsafe { libc::atexit(bye) } == 0, "atexit")?;
    thread::spawn(|| {
        let_others_run();
        unsafe { libc::printf(c"held in a stream".as_ptr()) };
    });
    unsafe { libc::pthread_exit(null_mut()) }
}

extern "C" fn destroyed(_: *mut libc::c_void) {
    let text = "FAILURE: a key's destructor\n";
    unsafe { libc::write(1, text.as_ptr().cast(), text.len()) };
}

/// The destructors of keys are for threads that end, not for `exit`.
pub fn without_key_destructors() -> Outcome {
    let mut key = 0;
    let made = unsafe { libc::pthread_key_create(&mut key, Some(destroyed)) };
    ensure(made == 0 && unsafe { libc::pthread_setspecific(key, (&raw const key).cast()) } == 0, "a key")
}

/// `exit` does not wait for threads that wait themselves, in a stream.
pub fn while_others_read() -> Outcome {
    let (mut pipe, mut pair) = ([0; 2], [0; 2]);
    let made = unsafe {
        libc::pipe(pipe.as_mut_ptr()) | libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr())
    };
    ensure(made == 0, "pipe, socketpair")?;
    let read = |fd, mode: &'static std::ffi::CStr| {
        thread::spawn(move || unsafe { libc::fgetc(libc::fdopen(fd, mode.as_ptr())) });
        let_others_run();
    };
    read(pipe[0], c"r");
    unsafe { libc::printf(c"written by fflush; ".as_ptr()) };
    ensure(unsafe { libc::fflush(null_mut()) } == 0, "fflush")?;
    read(pair[0], c"r+");
    unsafe { libc::printf(c"held in a stream".as_ptr()) };
    std::io::stdout().flush().map_err(|e| e.to_string())
}
