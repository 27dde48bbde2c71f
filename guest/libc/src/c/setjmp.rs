//! Jumps out of functions. Like glibc, the stack pointer and the target are masked with the guard at `%fs:0x30`, so that overwriting a
//! `jmp_buf` does not choose where to go. Signal masks are not saved.

use super::chk::fatal;
use core::arch::naked_asm;
use core::ffi::c_int;

/// glibc's `jmp_buf`: eight registers, whether a mask was saved, and room for it.
#[repr(C)]
pub struct JmpBuf {
    registers: [u64; 8],
    _mask_saved: c_int,
    _mask: [u64; 16],
}

const _: () = assert!(size_of::<JmpBuf>() == 200);

/// Remembers where it was called and returns 0; returns again when `longjmp` is called, with the value given there.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn setjmp(env: *mut JmpBuf) -> c_int {
    naked_asm!(
        "mov [rdi], rbx",
        "mov [rdi + 8], rbp",
        "mov [rdi + 16], r12",
        "mov [rdi + 24], r13",
        "mov [rdi + 32], r14",
        "mov [rdi + 40], r15",
        "lea rdx, [rsp + 8]",
        "xor rdx, fs:[0x30]",
        "rol rdx, 17",
        "mov [rdi + 48], rdx",
        "mov rdx, [rsp]",
        "xor rdx, fs:[0x30]",
        "rol rdx, 17",
        "mov [rdi + 56], rdx",
        "mov dword ptr [rdi + 64], 0",
        "xor eax, eax",
        "ret",
    )
}

/// [`setjmp`].
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn _setjmp(env: *mut JmpBuf) -> c_int {
    naked_asm!("jmp {}", sym setjmp)
}

/// [`setjmp`]: masks are not saved.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn sigsetjmp(env: *mut JmpBuf, save_mask: c_int) -> c_int {
    naked_asm!("jmp {}", sym setjmp)
}

/// [`setjmp`]: masks are not saved.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn __sigsetjmp(env: *mut JmpBuf, save_mask: c_int) -> c_int {
    naked_asm!("jmp {}", sym setjmp)
}

/// Returns from the `setjmp` that filled `env`, with `value` or, if that is 0, with 1.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn longjmp(env: *const JmpBuf, value: c_int) -> ! {
    naked_asm!(
        "cmp esi, 1",
        "adc esi, 0",
        "mov eax, esi",
        "mov rbx, [rdi]",
        "mov rbp, [rdi + 8]",
        "mov r12, [rdi + 16]",
        "mov r13, [rdi + 24]",
        "mov r14, [rdi + 32]",
        "mov r15, [rdi + 40]",
        "mov rdx, [rdi + 48]",
        "ror rdx, 17",
        "xor rdx, fs:[0x30]",
        "mov rcx, [rdi + 56]",
        "ror rcx, 17",
        "xor rcx, fs:[0x30]",
        "mov rsp, rdx",
        "jmp rcx",
    )
}

/// [`longjmp`].
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn _longjmp(env: *const JmpBuf, value: c_int) -> ! {
    naked_asm!("jmp {}", sym longjmp)
}

/// [`longjmp`].
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn siglongjmp(env: *const JmpBuf, value: c_int) -> ! {
    naked_asm!("jmp {}", sym longjmp)
}

/// [`longjmp`] for hardened code: only up the stack.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn __longjmp_chk(env: *const JmpBuf, value: c_int) -> ! {
    naked_asm!(
        "mov rdx, [rdi + 48]",
        "ror rdx, 17",
        "xor rdx, fs:[0x30]",
        "cmp rsp, rdx",
        "jb {}",
        "and rsp, -16",
        "call {}",
        sym longjmp,
        sym wrong_frame,
    )
}

#[cold]
extern "C" fn wrong_frame() -> ! {
    fatal(b"*** longjmp causes uninitialized stack frame ***\n")
}
