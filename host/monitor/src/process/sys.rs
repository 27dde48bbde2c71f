//! Raw system calls for the child between `clone` and the guest: no libc, no errno, no locks, no allocation.

#![expect(unsafe_code, reason = "system calls")]
// UNSAFETY: the child must not use libc (its locks may be held by a thread that no longer exists), so it calls the kernel itself.

use core::arch::asm;

/// A failed system call's errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

/// Calls the kernel.
///
/// # Safety
/// The call must not break what Rust relies on: in particular not unmap or overwrite memory that is in use.
pub unsafe fn syscall(nr: i64, args: [u64; 6]) -> Result<u64, Errno> {
    let result: i64;
    // SAFETY: 1. the kernel changes rax, rcx and r11 only, 2. what the call does is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    if (-4095..0).contains(&result) { Err(Errno(-result as i32)) } else { Ok(result as u64) }
}
