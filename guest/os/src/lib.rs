//! The library OS: everything between the C symbols and the gate.
//!
//! One address space, one CPU, many threads. A thread inside the library OS has preemption off ([`donjon_base::preempt`]), so
//! its state needs no other lock; a thread that must wait parks ([`sched::park`]).
//!
//! - [`mem`]: heap and page runs. [`sched`]: scheduling, futexes, wait queues. [`thread`]: threads as C code knows them.
//! - [`random`], [`signal`], [`fault`]: random numbers, signals, crash reports.

#![no_std]

extern crate alloc;
#[cfg(any(test, not(donjon_guest)))]
extern crate std;

pub mod dns;
pub mod errno;
pub mod fault;
pub mod fd;
pub mod fs;
mod global;
pub mod io;
pub mod mem;
pub mod netif;
pub mod random;
pub mod sched;
pub mod signal;
pub mod socket;
mod sorted;
pub mod thread;

pub use fault::fatal;

/// Sets up memory and the first thread, and continues with `entry` on that thread's stack. Returns only if there is not enough memory.
/// `entry` runs with preemption off and calls [`begin`] first.
#[cfg(donjon_guest)]
pub fn start(entry: extern "C" fn(usize) -> !) -> errno::Result<()> {
    if !mem::init() {
        return Err(errno::Errno::ENOMEM);
    }
    sched::start(entry)
}

/// Sets up the rest: what needs the scheduler.
#[cfg(donjon_guest)]
pub fn begin() {
    fd::init();
}

/// Ends the guest. Its connections end as those of a program of Linux do: what was sent goes out, as far as it can at once, and then FIN.
pub fn exit(status: i32) -> ! {
    netif::finish();
    donjon_base::gate::exit(status)
}
