//! The part of the C library that needs no operating system: strings, numbers, formatting, streams, sorting, mathematics.
//!
//! Crates bring C and assembly along (`ring`, `zstd`, …), and hardened host compilers put names such as `__memcpy_chk` into it; all of
//! that ends here. What is below reaches the system only through the C names in [`extern_c`], which are defined elsewhere in this crate.
//!
//! Only in a guest do the functions bear their C names. On the host they are mangled, so that the tests can hold them against the
//! host's own C library.
//!
//! Each function keeps the contract of the C standard or of POSIX under its name, its "# Safety" too.
#![allow(
    unsafe_code,
    reason = "UNSAFETY: raw pointers are what C functions take; the small safe modules below keep to safe code"
)]
#![allow(clippy::missing_safety_doc, reason = "the contract of a C function is in the C standard")]

#[cfg(test)]
extern crate std;

pub mod chk;
pub mod ctype;
mod decimal;
pub mod extern_c;
mod format;
pub mod locale;
pub mod math;
pub mod mem;
pub mod misc;
pub mod printf;
pub mod scanf;
mod search;
pub mod setjmp;
pub mod sort;
mod sse;
pub mod stdio;
pub mod string;
pub mod strto;
pub mod time;
pub mod valist;
pub mod wide;

#[cfg(test)]
mod tests;
