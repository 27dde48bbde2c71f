//! The CPU's random number generator.

#![expect(unsafe_code, reason = "RDRAND")]
// UNSAFETY: an instruction that the boot page says is there.

/// A number from RDRAND, if the CPU has it and it delivers.
pub fn rdrand() -> Option<u64> {
    if crate::boot().flags & donjon_abi::boot::flags::RDRAND == 0 {
        return None;
    }
    (0..10).find_map(|_| {
        let (value, ok): (u64, u8);
        // SAFETY: the host says that the instruction exists; it touches no memory.
        unsafe { core::arch::asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) ok, options(nomem, nostack)) };
        (ok == 1).then_some(value)
    })
}
