//! The machine layer of the guest: everything below the library OS that needs machine `unsafe`.
//!
//! - [`boot()`]: the boot page, checked once at entry.
//! - [`gate`]: one typed function per gate call.
//! - [`clock`]: monotonic and wall-clock time without a gate call.
//! - [`preempt`]: the preemption-off counter, and [`Lock`], the cell that all library-OS state lives in.
//! - [`context`]: switching between stacks; [`tls`]: the thread control block and the program's `PT_TLS`.
//! - `entry`, `upcall`, `fault` (guest only): the three ways in which the host enters the image.
//!
//! Without `--cfg donjon_guest` this crate builds for an ordinary host, with a fake gate (module `host`), a virtual clock
//! and a reserve of ordinary memory, so that the library OS is tested by plain `cargo test`.

#![cfg_attr(donjon_guest, no_std)]

mod boot;
pub mod clock;
pub mod context;
#[cfg(donjon_guest)]
pub mod entry;
#[cfg(donjon_guest)]
pub mod fault;
#[cfg(donjon_guest)]
pub mod frames;
pub mod gate;
#[cfg(not(donjon_guest))]
pub mod host;
mod lock;
pub mod preempt;
pub mod random;
pub mod tls;
#[cfg(donjon_guest)]
pub mod upcall;

pub use boot::{boot, bytes, strings};
pub use lock::{Lock, LockGuard};

/// Bytes in a page.
pub const PAGE: usize = donjon_abi::PAGE as usize;
