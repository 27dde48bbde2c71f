//! The clock: how fast the TSC and the APIC timer run, and what time it is.

use super::apic::Apic;
use super::cpu::{self, Features, inb, outb};
use crate::phys::{Direct, Phys, PhysAddr};
use donjon_abi::boot;

const SECOND: u64 = 1_000_000_000;

/// The calibrated clock.
#[derive(Clone, Copy)]
pub struct Clock {
    tsc_base: u64,
    /// ns = ticks * mult >> 32.
    mult: u64,
    /// TSC ticks = ns * per_ns >> 32.
    tsc_per_ns: u64,
    /// Ticks of the APIC timer = ns * per_ns >> 32.
    timer_per_ns: u64,
}

/// A comparison of clocks that has begun.
pub struct Calibration {
    known: Known,
    first: Sample,
}

/// A clock whose speed is known.
#[derive(Clone, Copy)]
enum Known {
    /// QEMU's and KVM's APIC timer runs at exactly 1 GHz.
    Apic,
    /// The interval timer runs at 1,193,182 Hz on every PC.
    Pit,
}

#[derive(Clone, Copy)]
struct Sample {
    tsc: u64,
    known: u64,
    apic: u64,
}

impl Calibration {
    /// Takes the first sample.
    pub fn begin(mem: &Direct, apic: &Apic, features: &Features) -> Calibration {
        let known = if matches!(features.hypervisor, cpu::TCG | cpu::KVM) { Known::Apic } else { Known::Pit };
        if let Known::Pit = known {
            // Channel 2, mode 0 from 0xffff; gate on, speaker off.
            outb(0x61, inb(0x61) & !2 | 1);
            outb(0x43, 0xb0);
            outb(0x42, 0xff);
            outb(0x42, 0xff);
        }
        Calibration { known, first: Sample::take(mem, apic, known) }
    }

    /// Takes the last sample, not before the window has passed. `None` if no clock of known speed runs.
    pub fn finish(self, mem: &mut Direct, apic: &Apic, features: &Features, scratch: PhysAddr) -> Option<Clock> {
        let tsc_known = told_by_hypervisor(mem, features, scratch).or_else(told_by_cpu);
        let (mut last, mut patience) = (Sample::take(mem, apic, self.known), 10_000_000u32);
        while self.known.ns(&self.first, &last) < self.known.window() && patience > 0 {
            last = Sample::take(mem, apic, self.known);
            patience -= 1;
        }
        let (tsc, timer) = (last.tsc - self.first.tsc, last.apic.wrapping_sub(self.first.apic));
        let ns = match tsc_known {
            Some(hz) => u64::try_from((u128::from(tsc) * u128::from(SECOND)).checked_div(u128::from(hz))?).ok()?,
            None => self.known.ns(&self.first, &last),
        };
        if ns < self.known.window() / 2 || tsc == 0 {
            return None;
        }
        let ratio = |a: u64, b: u64| (u128::from(a) << 32).checked_div(u128::from(b)).map_or(0, |r| r as u64);
        let timer_per_ns = match self.known {
            Known::Apic => 1 << 32,
            Known::Pit => ratio(timer, ns),
        };
        Some(Clock { tsc_base: self.first.tsc, mult: ratio(ns, tsc), tsc_per_ns: ratio(tsc, ns), timer_per_ns })
    }
}

impl Known {
    /// How long the TSC is compared with it at least, ns. Longer is more exact, and a later first answer.
    const fn window(self) -> u64 {
        match self {
            Known::Apic => 2_000_000,
            // A tick is 838 ns.
            Known::Pit => 20_000_000,
        }
    }

    fn ns(self, from: &Sample, to: &Sample) -> u64 {
        match self {
            Known::Apic => to.known.wrapping_sub(from.known),
            // A 16-bit counter that runs downwards; the window is far shorter than its period of 55 ms.
            Known::Pit => (from.known.wrapping_sub(to.known) & 0xffff) * SECOND / 1_193_182,
        }
    }

    fn read(self, mem: &Direct, apic: &Apic) -> u64 {
        match self {
            Known::Apic => apic.elapsed(mem).into(),
            Known::Pit => {
                outb(0x43, 0x80);
                let low = inb(0x42);
                u64::from(low) | u64::from(inb(0x42)) << 8
            }
        }
    }
}

impl Sample {
    /// The tightest of a few attempts: the host may take the CPU away in the middle of one.
    fn take(mem: &Direct, apic: &Apic, known: Known) -> Sample {
        let mut best = (u64::MAX, Sample { tsc: 0, known: 0, apic: 0 });
        for _ in 0..4 {
            let before = cpu::rdtsc();
            let value = known.read(mem, apic);
            let width = cpu::rdtsc().wrapping_sub(before);
            if width < best.0 {
                best = (
                    width,
                    Sample { tsc: before.wrapping_add(width / 2), known: value, apic: apic.elapsed(mem).into() },
                );
            }
        }
        best.1
    }
}

impl Clock {
    /// Nanoseconds since boot.
    pub fn now(&self) -> u64 {
        scale(cpu::rdtsc().wrapping_sub(self.tsc_base), self.mult)
    }

    /// A span of time as ticks of the APIC timer and of the TSC.
    pub fn ticks(&self, ns: u64) -> (u64, u64) {
        (scale(ns, self.timer_per_ns), scale(ns, self.tsc_per_ns))
    }

    /// For the boot page; `wall` is the time since 1970 now, ns.
    pub fn describe(&self, wall: u64) -> boot::Clock {
        boot::Clock {
            mult: self.mult,
            shift: 32,
            tsc_base: self.tsc_base,
            mono_base: 0,
            wall_offset: wall.saturating_sub(self.now()),
            ..boot::Clock::default()
        }
    }
}

fn scale(value: u64, mult: u64) -> u64 {
    u64::try_from((u128::from(value) * u128::from(mult)) >> 32).unwrap_or(u64::MAX)
}

/// KVM's paravirtual clock (Linux, `Documentation/virt/kvm/x86/msr.rst`) tells the TSC's frequency in Hz.
fn told_by_hypervisor(mem: &mut Direct, features: &Features, scratch: PhysAddr) -> Option<u64> {
    with_kvm_clock(features, scratch, 0x4b56_4d01, scratch.0 | 1)?;
    let (mul, shift) = (u64::from(mem.read_u32(scratch.add(24))), mem.read_u32(scratch.add(28)) as u8 as i8);
    set_kvm_msr(0x4b56_4d01, 0);
    if mul == 0 || !(-31..=31).contains(&shift) {
        return None;
    }
    let hz = (u128::from(SECOND) << 32) / u128::from(mul);
    let hz = if shift < 0 { hz << -shift } else { hz >> shift };
    u64::try_from(hz).ok().filter(|hz| *hz > 1_000_000)
}

/// KVM's wall clock at boot plus its time since boot.
fn kvm_wall(mem: &mut Direct, features: &Features, scratch: PhysAddr) -> Option<u64> {
    with_kvm_clock(features, scratch, 0x4b56_4d01, scratch.0 | 1)?;
    let since_boot = mem.read_u64(scratch.add(16));
    set_kvm_msr(0x4b56_4d01, 0);
    set_kvm_msr(0x4b56_4d00, scratch.0);
    let (seconds, ns) = (mem.read_u32(scratch.add(4)), mem.read_u32(scratch.add(8)));
    if seconds == 0 {
        return None;
    }
    Some(u64::from(seconds) * SECOND + u64::from(ns) + since_boot)
}

fn with_kvm_clock(features: &Features, _scratch: PhysAddr, msr: u32, value: u64) -> Option<()> {
    let has = features.hypervisor == cpu::KVM && cpu::cpuid(0x4000_0001, 0)[0] >> 3 & 1 == 1;
    has.then(|| set_kvm_msr(msr, value))
}

fn set_kvm_msr(msr: u32, value: u64) {
    #![expect(unsafe_code, reason = "KVM's clock registers")]
    // UNSAFETY: see below.
    // SAFETY: (1) KVM declared its clock in CPUID; (2) it writes at most 32 bytes to the frame named, which is the caller's.
    unsafe { cpu::wrmsr(msr, value) }
}

/// CPUID leaf 0x15 (Intel SDM vol. 3 §20.7.3): only if it is complete.
fn told_by_cpu() -> Option<u64> {
    let [denominator, numerator, crystal, _] = cpu::cpuid(0x15, 0);
    if denominator == 0 || numerator == 0 || crystal == 0 {
        return None;
    }
    Some(u64::from(crystal) * u64::from(numerator) / u64::from(denominator))
}

/// Nanoseconds since 1970: KVM's clock, else the PC's real-time clock (to the second).
pub fn wall(mem: &mut Direct, features: &Features, scratch: PhysAddr) -> u64 {
    kvm_wall(mem, features, scratch).or_else(rtc).unwrap_or(0)
}

fn rtc() -> Option<u64> {
    let register = |at: u8| {
        outb(0x70, at);
        inb(0x71)
    };
    let read = || [0u8, 2, 4, 7, 8, 9].map(register);
    for _ in 0..1000 {
        // Two equal readings outside of an update are one consistent time.
        if register(10) & 0x80 != 0 {
            continue;
        }
        let first = read();
        if first == read() {
            return crate::calendar::from_rtc(first, register(11)).map(|s| s * SECOND);
        }
    }
    None
}
