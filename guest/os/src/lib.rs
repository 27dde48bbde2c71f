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
pub mod thread;

pub use fault::fatal;

/// Ends the guest at once.
pub fn exit(status: i32) -> ! {
    donjon_base::gate::exit(status)
}
