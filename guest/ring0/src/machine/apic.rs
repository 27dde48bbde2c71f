//! Interrupts: the local APIC with its timer, and the I/O APICs.

use super::cpu::{self, Features};
use super::segments;
use crate::firmware::IOAPICS;
use crate::phys::{Direct, Phys, PhysAddr};

const LAPIC: PhysAddr = PhysAddr(0xfee0_0000);
const ID: u32 = 0x20;
const EOI: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const TIMER: u32 = 0x320;
const LINT0: u32 = 0x350;
const LINT1: u32 = 0x360;
const ERROR: u32 = 0x370;
const INITIAL: u32 = 0x380;
const CURRENT: u32 = 0x390;
const DIVIDE: u32 = 0x3e0;
const MASKED: u32 = 1 << 16;
const DEADLINE_MODE: u32 = 2 << 17;
const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;

/// The local APIC. Its registers are mapped (see [`LAPIC_RANGE`]).
pub struct Apic {
    x2: bool,
    deadline: bool,
}

/// Registers that must be mapped before [`Apic::enable`].
pub const LAPIC_RANGE: (PhysAddr, u64) = (LAPIC, 4096);

impl Apic {
    /// Switches the APIC on, everything masked, and starts the timer's counter from its largest value.
    pub fn enable(mem: &mut Direct, features: &Features) -> Apic {
        // The PICs, if any, stay silent.
        cpu::outb(0x21, 0xff);
        cpu::outb(0xa1, 0xff);
        let apic = Apic { x2: features.x2apic, deadline: features.tsc_deadline };
        let base = LAPIC.0 | 1 << 11 | u64::from(features.x2apic) << 10;
        set_msr(APIC_BASE, base | cpu::rdmsr(APIC_BASE) & 1 << 8);
        apic.write(mem, SPURIOUS, 1 << 8 | segments::SPURIOUS as u32);
        for lvt in [TIMER, LINT0, LINT1, ERROR] {
            apic.write(mem, lvt, MASKED);
        }
        apic.write(mem, DIVIDE, 0b1011);
        apic.restart(mem);
        apic
    }

    /// Starts the timer's counter from its largest value again.
    pub fn restart(&self, mem: &mut Direct) {
        self.write(mem, INITIAL, u32::MAX);
    }

    /// Timer ticks since [`Self::restart`] (until [`Self::start_timer`]); `u32::MAX` if it has run out since.
    pub fn elapsed(&self, mem: &Direct) -> u32 {
        u32::MAX - self.read(mem, CURRENT)
    }

    /// From now on [`Self::arm`] works.
    pub fn start_timer(&self, mem: &mut Direct) {
        self.write(mem, INITIAL, 0);
        let mode = if self.deadline { DEADLINE_MODE } else { 0 };
        self.write(mem, TIMER, mode | segments::TIMER as u32);
    }

    /// One interrupt after that time, in place of an earlier one: `ticks` of this timer, or `tsc` of the TSC.
    pub fn arm(&self, mem: &mut Direct, ticks: u64, tsc: u64) {
        if self.deadline {
            set_msr(TSC_DEADLINE, cpu::rdtsc().saturating_add(tsc).max(1));
        } else {
            self.write(mem, INITIAL, u32::try_from(ticks).unwrap_or(u32::MAX).max(1));
        }
    }

    /// This CPU's number, for interrupt messages.
    pub fn id(&self, mem: &Direct) -> u32 {
        let id = self.read(mem, ID);
        if self.x2 { id } else { id >> 24 }
    }

    /// The interrupt in service is done.
    pub fn end(&self, mem: &mut Direct) {
        self.write(mem, EOI, 0);
    }

    fn read(&self, mem: &Direct, register: u32) -> u32 {
        if self.x2 { cpu::rdmsr(0x800 + (register >> 4)) as u32 } else { mem.read_u32(LAPIC.add(register.into())) }
    }

    fn write(&self, mem: &mut Direct, register: u32, value: u32) {
        if self.x2 {
            set_msr(0x800 + (register >> 4), value.into());
        } else {
            mem.write_u32(LAPIC.add(register.into()), value);
        }
    }
}

/// Which interrupts of the I/O APICs lead to this CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lines {
    /// The serial port only.
    Serial,
    /// All that may be a virtio-mmio device's, and the serial port.
    All,
}

/// Routes lines of the I/O APICs, whose registers are mapped, to this CPU, edge-triggered. Which pin a virtio-mmio device has stands in
/// ACPI's byte code; instead of interpreting that, all pins above the legacy devices lead to one vector, and a handler of
/// that vector asks every device.
pub fn route(mem: &mut Direct, ioapics: &[u32; IOAPICS], lines: Lines, apic_id: u32) {
    for (number, base) in ioapics.iter().enumerate().filter(|(_, b)| **b != 0) {
        let base = PhysAddr(u64::from(*base));
        mem.write_u32(base, 1);
        let pins = (mem.read_u32(base.add(16)) >> 16 & 0xff) + 1;
        for pin in 0..pins {
            let vector = match (number, pin) {
                (0, 4) => segments::SERIAL as u32,
                (0, 0..=4 | 8) => MASKED,
                _ if lines == Lines::All => segments::DEVICE as u32,
                _ => MASKED,
            };
            mem.write_u32(base, 0x11 + 2 * pin);
            mem.write_u32(base.add(16), apic_id << 24);
            mem.write_u32(base, 0x10 + 2 * pin);
            mem.write_u32(base.add(16), vector);
        }
    }
}

fn set_msr(msr: u32, value: u64) {
    #![expect(unsafe_code, reason = "writes an APIC register")]
    // UNSAFETY: see below.
    // SAFETY: (1) the MSR exists: APIC base in every 64-bit CPU, the others as CPUID declared; (2) the APIC delivers interrupts
    // only to vectors of `segments`, and to no memory.
    unsafe { cpu::wrmsr(msr, value) }
}
