//! `donjon_fault`: where the host enters the image when ring-3 code raised an exception.

#![expect(unsafe_code, reason = "an entry point")]
// UNSAFETY: a symbol that the host calls; assembly with hand-written unwind tables.

use crate::frames;

/// What the host says about an exception. The entry's assembly pushes exactly this.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Fault {
    /// x86 vector number.
    pub vector: u64,
    /// Faulting data address (page faults).
    pub address: u64,
    /// Address of the instruction.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Frame pointer.
    pub rbp: u64,
    /// x86 error code.
    pub error: u64,
}

unsafe extern "Rust" {
    /// Whether the stack is sound enough to be walked; in the library OS, which is above this crate.
    safe fn donjon_guest_walkable(fault: &Fault) -> bool;
    /// Reports the fault and ends the guest; as above.
    safe fn donjon_guest_fault(fault: &Fault) -> !;
}

extern "C" fn walkable(fault: &Fault) -> bool {
    crate::preempt::set_count(1 << 16);
    donjon_guest_walkable(fault)
}

extern "C" fn report(fault: &Fault) -> ! {
    donjon_guest_fault(fault)
}

/// The fault entry (abi, ImageHeader). Runs on the boot page's fault stack.
///
/// Its unwind tables (in `frames`) say that it was "called" by the faulting instruction: the frame address is the saved stack pointer, and
/// return address and rbp lie in the [`Fault`] on this stack.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn donjon_fault(vector: u64, address: u64, rip: u64, rsp: u64, rbp: u64, error: u64) -> ! {
    core::arch::naked_asm!(
        "cld",
        "and rsp, -16",
        "push r9",
        "push r8",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "mov rdi, rsp",
        "call {walkable}",
        "test al, al",
        "jz 2f",
        "mov rax, [rip + _Unwind_Backtrace@GOTPCREL]",
        "test rax, rax",
        "jz 2f",
        "lea rdi, [rip + {step}]",
        "xor esi, esi",
        "call rax",
        "2:",
        "mov rdi, rsp",
        "call {report}",
        "ud2",
        walkable = sym walkable,
        step = sym frames::step,
        report = sym report,
    )
}
