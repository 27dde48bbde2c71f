//! Segments, the task state (stacks for traps), and the interrupt table.
#![expect(unsafe_code, reason = "loads descriptor tables")]
// UNSAFETY: the tables are statics of this module that are filled once by `load`, before any trap can happen, and then read by the
// CPU alone.

use super::cpu::wrmsr;
use core::arch::asm;
use core::cell::UnsafeCell;

/// Ring-0 code.
pub const KERNEL_CODE: u16 = 0x08;
/// Ring-3 data, with its privilege level.
pub const USER_DATA: u16 = 0x20 | 3;
/// Ring-3 code, with its privilege level. There is no 32-bit code segment.
pub const USER_CODE: u16 = 0x28 | 3;
const TSS: u16 = 0x30;
const VECTORS: usize = 48;

/// Timer interrupt.
pub const TIMER: u64 = 0x20;
/// Device interrupt.
pub const DEVICE: u64 = 0x21;
/// Serial port interrupt.
pub const SERIAL: u64 = 0x22;
/// Spurious interrupt of the local APIC.
pub const SPURIOUS: u64 = 0x2f;

#[repr(C, align(16))]
struct Table<T>(UnsafeCell<T>);
// SAFETY: one CPU; written by `load` only.
unsafe impl<T> Sync for Table<T> {}

static GDT: Table<[u64; 8]> = Table(UnsafeCell::new([0; 8]));
static IDT: Table<[[u64; 2]; VECTORS]> = Table(UnsafeCell::new([[0; 2]; VECTORS]));
static TASK: Table<[u32; 26]> = Table(UnsafeCell::new([0; 26]));

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

unsafe extern "C" {
    static shim_trap_stubs: u8;
    static __stack_top: u8;
    static __ist_top: u8;
    fn shim_syscall();
}

/// Loads all tables and the system-call registers. Called once, at boot, with interrupts off.
pub fn load() {
    let stack = (&raw const __stack_top) as u64;
    let ist = (&raw const __ist_top) as u64;
    // SAFETY: (1) called once, at boot; (2) nothing else refers to the tables.
    let (gdt, idt, task) = unsafe { (&mut *GDT.0.get(), &mut *IDT.0.get(), &mut *TASK.0.get()) };
    let halves = |value: u64| [value as u32, (value >> 32) as u32];
    // Intel SDM vol. 3 §8.7: rsp0 at byte 4, ist1 at byte 36, the I/O map's offset (beyond the limit: none) in the last word.
    let ([rsp0, rsp0_high], [ist1, ist1_high]) = (halves(stack), halves(ist));
    [task[1], task[2]] = [rsp0, rsp0_high];
    [task[9], task[10], task[25]] = [ist1, ist1_high, 104 << 16];
    let base = TASK.0.get() as u64;
    // Flat segments (Intel SDM vol. 3 §3.4.5): ring-0 code and data, nothing, ring-3 data and code.
    [gdt[1], gdt[2]] = [0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    [gdt[4], gdt[5]] = [0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
    [gdt[6], gdt[7]] = [103 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56, base >> 32];
    for (vector, gate) in (0u64..).zip(idt.iter_mut()) {
        let at = (&raw const shim_trap_stubs) as u64 + vector * 16;
        // NMI, double fault and machine check come on a stack of their own; `int3` is the only one that ring 3 may ask for.
        let on_ist = u64::from(matches!(vector, 2 | 8 | 18));
        let level: u64 = if vector == 3 { 3 } else { 0 };
        *gate = [
            at & 0xffff
                | u64::from(KERNEL_CODE) << 16
                | on_ist << 32
                | (0x8e | level << 5) << 40
                | (at >> 16 & 0xffff) << 48,
            at >> 32,
        ];
    }
    let gdt = Pointer { limit: 63, base: GDT.0.get() as u64 };
    let idt = Pointer { limit: (VECTORS * 16 - 1) as u16, base: IDT.0.get() as u64 };
    // SAFETY: (1) the tables are complete and live for ever; (2) the code and data selectors in use keep their meaning;
    // (3) the MSRs exist in every 64-bit CPU, and `shim_syscall` is their handler: IF, TF, DF, AC, NT, RF, IOPL are cleared on entry.
    unsafe {
        asm!("lgdt [{}]", "lidt [{}]", "ltr {2:x}", in(reg) &gdt, in(reg) &idt, in(reg) TSS, options(nostack));
        // After a reset the local table is at address 0, 64 KiB long and valid: whatever lies there would be descriptors that ring 3 may load.
        asm!("lldt {0:x}", in(reg) 0, options(nostack));
        wrmsr(0xc000_0081, 0x001b_0008 << 32);
        wrmsr(0xc000_0082, shim_syscall as *const () as u64);
        wrmsr(0xc000_0084, 0x0005_7700 | 0x3000);
    }
}
