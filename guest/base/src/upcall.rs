//! `donjon_upcall`: where the host enters the image at each tick.
//!
//! The host has pushed the next instruction's address and the flags below the red zone (abi, ImageHeader). The upcall notes
//! the tick. If preemption is off, that is all. Else it saves what a function call does not preserve, extended state included, on the
//! interrupted stack, and calls [`crate::preempt::tick`], which may switch to another thread.

#![expect(unsafe_code, reason = "an entry point that preserves every register")]
// UNSAFETY: assembly; CPUID.

use crate::preempt::{OFF, PENDING, TICKED, tick};
use core::arch::x86_64::{__cpuid_count, _xgetbv};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// 0: FXSAVE; 1: XSAVE; 2: XSAVEC.
static MODE: AtomicU32 = AtomicU32::new(0);
/// Bytes of the save area.
static SIZE: AtomicU32 = AtomicU32::new(512);
/// State components to save. AMX tiles (bits 17, 18) are left out: nobody in a guest can have permission to use them.
static MASK: AtomicU32 = AtomicU32::new(3);

const AMX: u32 = 3 << 17;

/// Finds out which instruction saves the extended state and how much room it needs.
pub(crate) fn init() {
    const OSXSAVE: u32 = 1 << 27;
    let (basic, highest) = (__cpuid_count(1, 0), __cpuid_count(0, 0).eax);
    if basic.ecx & OSXSAVE == 0 || highest < 0xd {
        return;
    }
    // SAFETY: OSXSAVE says that XGETBV may be executed.
    let enabled = (unsafe { xcr0() }) as u32 & !AMX;
    let compact = __cpuid_count(0xd, 1).eax & 2 != 0;
    // 512 legacy bytes and the 64-byte header; extended components follow.
    let mut size = 576;
    for component in 2..32 {
        if enabled >> component & 1 == 0 {
            continue;
        }
        let leaf = __cpuid_count(0xd, component);
        if compact {
            let start: u32 = if leaf.ecx & 2 != 0 { u32::next_multiple_of(size, 64) } else { size };
            size = start + leaf.eax;
        } else {
            size = size.max(leaf.ebx + leaf.eax);
        }
    }
    MASK.store(enabled, Relaxed);
    SIZE.store(size.next_multiple_of(64), Relaxed);
    MODE.store(if compact { 2 } else { 1 }, Relaxed);
}

/// # Safety
/// CPUID must report OSXSAVE.
#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: by contract.
    unsafe { _xgetbv(0) }
}

/// The tick upcall.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn donjon_upcall() {
    core::arch::naked_asm!(
        // For unwinders: the return address lies above the flags, the red zone above it.
        ".cfi_startproc",
        ".cfi_signal_frame",
        ".cfi_def_cfa rsp, 144",
        ".cfi_offset rip, -136",
        "or byte ptr [rip + {pending}], {ticked}",
        "cmp dword ptr [rip + {off}], 0",
        "jne 9f",
        "mov dword ptr [rip + {off}], 1",
        "push rbp",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_offset rbp, -152",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "push rax",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push rbx",
        "cld",
        "mov eax, [rip + {size}]",
        "sub rsp, rax",
        "and rsp, -64",
        "mov eax, [rip + {mask}]",
        "xor edx, edx",
        "mov ebx, [rip + {mode}]",
        "test ebx, ebx",
        "je 2f",
        // The header's reserved bytes must be zero when the state is restored (SDM vol. 1 §13.4.2).
        "xor ecx, ecx",
        "mov [rsp + 512], rcx",
        "mov [rsp + 520], rcx",
        "mov [rsp + 528], rcx",
        "mov [rsp + 536], rcx",
        "mov [rsp + 544], rcx",
        "mov [rsp + 552], rcx",
        "mov [rsp + 560], rcx",
        "mov [rsp + 568], rcx",
        "cmp ebx, 2",
        "je 3f",
        "xsave64 [rsp]",
        "jmp 4f",
        "3:",
        "xsavec64 [rsp]",
        "4:",
        "call {tick}",
        "mov eax, [rip + {mask}]",
        "xor edx, edx",
        "xrstor64 [rsp]",
        "jmp 8f",
        "2:",
        "fxsave64 [rsp]",
        "call {tick}",
        "fxrstor64 [rsp]",
        "jmp 8f",
        "8:",
        "mov rbx, [rbp - 80]",
        "lea rsp, [rbp - 72]",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "pop rbp",
        "popfq",
        "ret 128",
        "9:",
        ".cfi_def_cfa rsp, 144",
        "popfq",
        "ret 128",
        ".cfi_endproc",
        off = sym OFF,
        pending = sym PENDING,
        ticked = const TICKED,
        size = sym SIZE,
        mask = sym MASK,
        mode = sym MODE,
        tick = sym tick,
    )
}
