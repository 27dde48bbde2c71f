//! The guest object: base, library OS and libc door in one static library.
//!
//! `host/image` builds it with `--cfg donjon_guest`, panic=abort and fat LTO, prelinks it into one relocatable object that exports the C
//! names only, and links every image against that.

#![cfg_attr(donjon_guest, no_std)]

#[cfg(donjon_guest)]
extern crate donjon_libc as _;

/// The library OS allocates from the same heap as the program.
#[cfg(donjon_guest)]
#[global_allocator]
static HEAP: donjon_os::mem::Global = donjon_os::mem::Global;

/// A panic of the library OS is a bug of ours: report it and end.
#[cfg(donjon_guest)]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    donjon_os::fault::end(format_args!("library OS: {info}"), donjon_os::fault::STATUS_FAULT)
}
