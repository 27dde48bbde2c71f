//! `donjon_fault`: where the host enters the image when ring-3 code raised an exception.

#![expect(unsafe_code, reason = "an entry point")]
// UNSAFETY: a symbol that the host calls.

/// What the host says about an exception.
#[derive(Clone, Copy, Debug)]
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
    /// Reports the fault and ends the guest; in the libc door, which is above this crate.
    safe fn donjon_guest_fault(fault: &Fault) -> !;
}

/// The fault entry (abi, ImageHeader). Runs on the boot page's fault stack.
#[unsafe(no_mangle)]
extern "C" fn donjon_fault(vector: u64, address: u64, rip: u64, rsp: u64, rbp: u64, error: u64) -> ! {
    crate::preempt::set_count(1 << 16);
    donjon_guest_fault(&Fault { vector, address, rip, rsp, rbp, error })
}
