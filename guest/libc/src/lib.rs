//! The libc door: the C symbols that std and C code call. Thin: convert, call the library OS, set `errno`.
//!
//! Only in a guest (`--cfg donjon_guest`) do the functions bear their C names.
//!
//! - Start and end: `start`, [`process`]. Threads: [`thread`], [`sync`], [`syscall`] (futexes). Memory: [`heap`]. Time: [`time`].
//!   [`env`], [`errno`], [`signal`], `unwind`.
//! - Descriptors, files, sockets: [`io`], [`file`], [`utime`], [`xattr`], [`dirent`], [`socket`], [`netdb`], [`poll`].
//! - What needs no operating system (strings, numbers, streams, …): [`c`].

#![no_std]
#![cfg_attr(not(donjon_guest), allow(dead_code, reason = "on a test host nothing starts a program"))]

extern crate alloc;
#[cfg(any(test, not(donjon_guest)))]
extern crate std;

pub mod c;
pub mod dirent;
mod door;
pub mod env;
pub mod errno;
pub mod file;
pub mod heap;
pub mod io;
pub mod netdb;
pub mod poll;
pub mod process;
pub mod refused;
pub mod signal;
pub mod socket;
#[cfg(donjon_guest)]
mod start;
pub mod sync;
pub mod syscall;
pub mod terminal;
pub mod thread;
pub mod time;
#[cfg(donjon_guest)]
mod unwind;
pub mod utime;
pub mod xattr;
