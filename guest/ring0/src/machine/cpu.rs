//! The CPU: ports, model-specific registers, control registers, features.
#![expect(unsafe_code, reason = "privileged instructions")]
// UNSAFETY: each function wraps one privileged instruction. The shim is the machine's only ring-0 code and runs on one CPU, so
// nobody else's state is changed behind their back; what a value may break stands at each function.

use crate::mix;
use core::arch::{asm, x86_64::__cpuid_count};

/// Reads a byte from an I/O port.
pub fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: reading a port does not touch memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a byte to an I/O port of a device that does no DMA.
pub fn outb(port: u16, value: u8) {
    // SAFETY: the devices that the shim drives through ports do no DMA.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// Writes 16 bits to an I/O port (power management only).
pub fn outw(port: u16, value: u16) {
    // SAFETY: as for `outb`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) };
}

/// Reads 32 bits from an I/O port (PCI configuration).
pub fn inl(port: u16) -> u32 {
    let value;
    // SAFETY: reading a port does not touch memory.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes 32 bits to an I/O port (PCI configuration).
pub fn outl(port: u16, value: u32) {
    // SAFETY: the PCI code gives a device only addresses of its own rings and buffers.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) };
}

/// Reads a model-specific register. It must exist, else the shim reports a fault of its own.
pub fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading an MSR has no effect on memory.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The register exists and its new value keeps every promise that the shim's code depends on.
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: by this function's contract.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// CPUID leaf and subleaf as `[eax, ebx, ecx, edx]`; zeros where there is no such basic leaf.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    if leaf < 0x4000_0000 && leaf > __cpuid_count(0, 0).eax {
        return [0; 4];
    }
    let r = __cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// The time-stamp counter.
pub fn rdtsc() -> u64 {
    // SAFETY: every 64-bit CPU has a TSC.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The address of the last page fault.
pub fn fault_address() -> u64 {
    let value;
    // SAFETY: reading CR2 has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Forgets the translations of `[va, va + len)`.
pub fn flush(va: u64, len: u64) {
    const SINGLY: u64 = 64 * donjon_abi::PAGE;
    if len <= SINGLY {
        for page in (va..va + len).step_by(donjon_abi::PAGE as usize) {
            // SAFETY: dropping a cached translation is always allowed.
            unsafe { asm!("invlpg [{}]", in(reg) page, options(nostack, preserves_flags)) };
        }
    } else {
        // SAFETY: CR3 keeps its value; only translations that are not global are forgotten.
        unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags)) };
    }
}

/// Forgets all translations, global ones included.
pub fn flush_all() {
    // SAFETY: switching CR4.PGE off and on again drops everything cached and changes nothing else (Intel SDM vol. 3 §4.10.4.1).
    unsafe {
        asm!("mov {0}, cr4", "btr {0}, 7", "mov cr4, {0}", "bts {0}, 7", "mov cr4, {0}", out(reg) _, options(nostack));
    }
}

/// A random number from the CPU, if it has an instruction for that and the instruction works.
pub fn random(features: &Features) -> Option<u64> {
    mix::from_cpu(|| features.rdseed.then(rdseed).flatten(), || features.rdrand.then(rdrand).flatten())
}

/// Only if CPUID declares it.
fn rdseed() -> Option<u64> {
    let (value, ok): (u64, u8);
    // SAFETY: the instruction exists, by the caller's word, and touches no memory.
    unsafe { asm!("rdseed {}", "setc {}", out(reg) value, out(reg_byte) ok, options(nomem, nostack)) };
    (ok != 0).then_some(value)
}

/// Only if CPUID declares it.
fn rdrand() -> Option<u64> {
    let (value, ok): (u64, u8);
    // SAFETY: as for `rdseed`.
    unsafe { asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) ok, options(nomem, nostack)) };
    (ok != 0).then_some(value)
}

/// What this CPU has.
#[derive(Clone, Copy)]
pub struct Features {
    /// Ring 3 may set its FS base.
    pub fsgsbase: bool,
    /// RDRAND.
    pub rdrand: bool,
    /// RDSEED.
    pub rdseed: bool,
    /// x2APIC.
    pub x2apic: bool,
    /// The local APIC's timer takes a TSC value.
    pub tsc_deadline: bool,
    /// Supervisor-mode access prevention is on.
    pub smap: bool,
    /// Four letters each: the hypervisor's name in CPUID 0x4000_0000, zeros on bare metal.
    pub hypervisor: [u32; 3],
}

/// `b"TCGTCGTCGTCG"` as CPUID gives it.
pub const TCG: [u32; 3] = [0x5447_4354, 0x4354_4743, 0x4743_5447];
/// `b"KVMKVMKVM\0\0\0"`.
pub const KVM: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];

impl Features {
    /// Finds out and switches on what protects: write protection in ring 0 (by boot.s), SMEP, SMAP, UMIP; and what programs need:
    /// SSE, AVX state, FSGSBASE.
    pub fn enable() -> Features {
        let [_, _, c1, d1] = cpuid(1, 0);
        let [_, b7, c7, _] = cpuid(7, 0);
        let hypervisor = if c1 >> 31 & 1 == 1 {
            let [_, b, c, d] = cpuid(0x4000_0000, 0);
            [b, c, d]
        } else {
            [0; 3]
        };
        let features = Features {
            fsgsbase: b7 & 1 == 1,
            rdrand: c1 >> 30 & 1 == 1,
            rdseed: b7 >> 18 & 1 == 1,
            x2apic: c1 >> 21 & 1 == 1,
            tsc_deadline: c1 >> 24 & 1 == 1,
            smap: b7 >> 20 & 1 == 1,
            hypervisor,
        };
        let xsave = c1 >> 26 & 1 == 1;
        let wanted = [
            (features.fsgsbase, 16),
            (b7 >> 7 & 1 == 1, 20),
            (features.smap, 21),
            (c7 >> 2 & 1 == 1, 11),
            (xsave, 18),
            (d1 >> 7 & 1 == 1, 6),
        ];
        // PAE, PGE, OSFXSR, OSXMMEXCPT; above, MCE among others: a machine check is an exception, not a reset.
        let cr4 = wanted.iter().filter(|w| w.0).fold(0x6a0u64, |cr4, w| cr4 | 1 << w.1);
        // SAFETY: (1) only features that CPUID declares; (2) the shim's code lies in pages without the user bit, and it reads
        // the guest's memory only through its own mapping, so SMEP and SMAP hold.
        unsafe { asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags)) };
        if xsave {
            // x87, SSE, AVX, AVX-512: what compilers dispatch on. Not PKRU, not AMX.
            let state = (cpuid(0xd, 0)[0] & 0xe7) | 3;
            // SAFETY: OSXSAVE is on, and the bits are supported ones.
            unsafe {
                asm!("xsetbv", in("ecx") 0, in("eax") state, in("edx") 0, options(nomem, nostack, preserves_flags))
            };
        }
        features
    }
}

/// Ring 0 must not be able to touch pages of ring 3 by accident, whatever the interrupted code set.
pub fn close_user_access(features: &Features) {
    if features.smap {
        // SAFETY: clears RFLAGS.AC; the instruction exists where SMAP does.
        unsafe { asm!("clac", options(nomem, nostack)) };
    }
}

/// Stops for ever.
pub fn stop() -> ! {
    loop {
        // SAFETY: with interrupts off this CPU does nothing any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Resets the machine by a triple fault.
pub fn triple_fault() -> ! {
    let none = [0u64; 2];
    // SAFETY: the machine ends here, and that is the purpose.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &none, options(noreturn)) };
}
