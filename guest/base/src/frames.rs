//! Backtraces through the program's own unwinder (libgcc's), for crash reports.
//!
//! The library OS has no unwind tables (`ld.lld -r --gc-sections` leaves them out, which saves tens of kilobytes), so its functions cannot
//! start a backtrace. The two entry points that want one (`abort` and the fault entry) are assembly: they call `_Unwind_Backtrace` themselves, with
//! [`step`], and the result is read with [`collected`]. Their tables are written by hand below, in a section that the build of the
//! guest object renames to `.eh_frame`.

#![expect(unsafe_code, reason = "calls the unwinder")]
// UNSAFETY: a C function by an address from the global offset table.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Most frames that are kept.
pub const MAX: usize = 64;

static FRAMES: [AtomicUsize; MAX] = [const { AtomicUsize::new(0) }; MAX];
static COUNT: AtomicUsize = AtomicUsize::new(0);

// A program that aborts on panic has no unwinder, so the references are weak.
core::arch::global_asm!(".weak _Unwind_Backtrace", ".weak _Unwind_GetIP");

// DWARF 5 §6.4 and the LSB's "Exception Frames". Two CIEs, of which the second says "signal frame": the address is the instruction itself.
//
// abort, donjon_backtrace: after `sub rsp, 8` the frame address is rsp + 16.
// donjon_fault: it was "called" by the faulting instruction, on another stack. The frame address is the saved stack pointer, *(rsp + 24);
// the return address is at rsp + 16, rbp at rsp + 32 (see `fault::Fault`; DW_OP_breg7 is 0x77, DW_OP_deref 0x06).
core::arch::global_asm!(
    ".pushsection .donjon_eh,\"aR\",@progbits",
    ".balign 8",
    ".Ldonjon_cie1: .long .Ldonjon_cie1_end - . - 4",
    ".long 0",
    ".byte 1",
    ".asciz \"zR\"",
    ".byte 1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1",
    ".balign 8, 0",
    ".Ldonjon_cie1_end:",
    ".Ldonjon_cie2: .long .Ldonjon_cie2_end - . - 4",
    ".long 0",
    ".byte 1",
    ".asciz \"zRS\"",
    ".byte 1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1",
    ".balign 8, 0",
    ".Ldonjon_cie2_end:",
    ".long .Ldonjon_fde1_end - . - 4",
    ".long . - .Ldonjon_cie1",
    ".long abort - .",
    ".long 64",
    ".byte 0, 0x44, 0x0e, 16",
    ".balign 8, 0",
    ".Ldonjon_fde1_end:",
    ".long .Ldonjon_fde2_end - . - 4",
    ".long . - .Ldonjon_cie2",
    ".long donjon_fault - .",
    ".long 96",
    ".byte 0, 0x0f, 3, 0x77, 24, 0x06, 0x10, 16, 2, 0x77, 16, 0x10, 6, 2, 0x77, 32",
    ".balign 8, 0",
    ".Ldonjon_fde2_end:",
    ".long .Ldonjon_fde3_end - . - 4",
    ".long . - .Ldonjon_cie1",
    ".long donjon_backtrace - .",
    ".long 64",
    ".byte 0, 0x44, 0x0e, 16",
    ".balign 8, 0",
    ".Ldonjon_fde3_end:",
    ".popsection",
);

/// Keeps a frame; what `_Unwind_Backtrace` calls.
///
/// # Safety
/// To be called by the unwinder only.
pub unsafe extern "C" fn step(context: *mut c_void, _: *mut c_void) -> c_int {
    const CONTINUE: c_int = 0;
    const STOP: c_int = 5;
    let get_ip: usize;
    // SAFETY: reads a word of the global offset table.
    unsafe {
        core::arch::asm!("mov {}, [rip + _Unwind_GetIP@GOTPCREL]", out(reg) get_ip, options(nostack, preserves_flags, readonly));
    }
    if get_ip == 0 {
        return STOP;
    }
    // SAFETY: the Itanium C++ ABI's type of this function.
    let get_ip: extern "C" fn(*mut c_void) -> usize = unsafe { core::mem::transmute(get_ip as *const ()) };
    let (ip, n) = (get_ip(context), COUNT.load(Relaxed));
    if ip == 0 || n == MAX {
        return STOP;
    }
    FRAMES[n].store(ip, Relaxed);
    COUNT.store(n + 1, Relaxed);
    CONTINUE
}

/// Forgets the frames that were kept.
pub fn clear() {
    COUNT.store(0, Relaxed);
}

/// The frames that were kept, innermost first. The first is in the entry point itself.
pub fn collected() -> impl Iterator<Item = usize> {
    FRAMES.iter().take(COUNT.load(Relaxed)).map(|f| f.load(Relaxed))
}
