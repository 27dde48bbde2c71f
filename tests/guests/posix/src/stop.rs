//! SIGTERM, when the host asks the guest to stop.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::{Outcome, ensure};

static HEARD: AtomicU32 = AtomicU32::new(0);

extern "C" fn hear(_signal: libc::c_int) {
    HEARD.fetch_add(1, Ordering::SeqCst);
}

/// A program may take a second SIGTERM for impatience: one request is one signal, however long the program then takes.
pub fn is_heard_once() -> Outcome {
    // SAFETY: the handler only counts.
    let before = unsafe { libc::signal(libc::SIGTERM, hear as *const () as libc::sighandler_t) };
    ensure(before != libc::SIG_ERR, "signal")?;
    println!("waiting");
    while HEARD.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Longer than the monitor takes to ask a virtual machine four times.
    std::thread::sleep(Duration::from_millis(1100));
    let heard = HEARD.load(Ordering::SeqCst);
    ensure(heard == 1, format!("heard {heard} times"))
}
