//! `_start`: where the host enters the image.

#![expect(unsafe_code, reason = "the entry point")]
// UNSAFETY: code that no Rust code calls.

use donjon_abi::boot::BootPage;

unsafe extern "C" {
    /// Starts the library OS and the program; in the libc door, which is above this crate.
    fn donjon_guest_start() -> !;
}

/// The entry point. `rdi` is the boot page, `rsp` the top of the boot stack.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    core::arch::naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",
        "xor ebp, ebp",
        "and rsp, -16",
        "call {}",
        "ud2",
        ".cfi_endproc",
        sym start
    )
}

unsafe extern "C" fn start(page: *mut BootPage) -> ! {
    // SAFETY: the host passes the boot page.
    if !unsafe { crate::boot::set(page) } {
        // There is no gate to say anything through. The host's version check comes first, so this is not reached.
        // SAFETY: `ud2` is an exception, and ends the guest.
        unsafe { core::arch::asm!("ud2", options(noreturn)) }
    }
    crate::upcall::init();
    // SAFETY: defined with this type.
    unsafe { donjon_guest_start() }
}
