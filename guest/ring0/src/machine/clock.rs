//! The clock: how fast the TSC and the APIC timer run, and what time it is.

use super::apic::Apic;
use super::cpu::{self, Features, inb, outb};
use crate::phys::{Direct, Phys, PhysAddr};
use crate::pit::{self, Span};
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
    first: Sample,
    /// QEMU's and KVM's APIC timer runs at exactly 1 GHz.
    gigahertz: bool,
}

/// How long clocks are compared at least, ns. Longer is more exact, and a later first answer.
const WINDOW: u32 = 2_000_000;
/// Most looks at a clock that may stand still.
const PATIENCE: u32 = 1_000_000;

#[derive(Clone, Copy)]
struct Sample {
    tsc: u64,
    apic: u32,
}

impl Calibration {
    /// Takes the first sample: if the APIC timer's speed is known, the boot is the time in which the TSC is compared with it.
    pub fn begin(mem: &Direct, apic: &Apic, features: &Features) -> Calibration {
        let gigahertz = matches!(features.hypervisor, cpu::TCG | cpu::KVM);
        Calibration { first: Sample::take(mem, apic), gigahertz }
    }

    /// Takes the last sample, not before the window has passed. `None` if no clock of known speed runs.
    pub fn finish(self, mem: &mut Direct, apic: &Apic, features: &Features, scratch: PhysAddr) -> Option<Clock> {
        let tsc_base = self.first.tsc;
        let hz = told_by_hypervisor(mem, features, scratch).or_else(told_by_cpu);
        let span = match hz {
            // Nothing to find out; with a deadline in TSC ticks the APIC timer's own speed is of no use.
            Some(hz) if self.gigahertz || features.tsc_deadline => Span { ns: SECOND, tsc: hz, timer: SECOND },
            None if self.gigahertz => by_apic(mem, apic, self.first)?,
            _ => {
                apic.restart(mem);
                pit::measure(&mut Pc { mem, apic })?
            }
        };
        let ratio = |a: u64, b: u64| (u128::from(a) << 32).checked_div(u128::from(b)).map_or(0, |r| r as u64);
        let (mult, tsc_per_ns) = (ratio(span.ns, span.tsc), ratio(span.tsc, span.ns));
        (mult != 0).then_some(Clock { tsc_base, mult, tsc_per_ns, timer_per_ns: ratio(span.timer, span.ns) })
    }
}

/// The TSC by the APIC timer, which runs at 1 GHz and stands still when it has run out, after 4.29 s: a boot may take longer.
fn by_apic(mem: &mut Direct, apic: &Apic, mut first: Sample) -> Option<Span> {
    for _ in 0..PATIENCE {
        let last = Sample::take(mem, apic);
        if last.apic == u32::MAX {
            apic.restart(mem);
            first = Sample::take(mem, apic);
        } else if last.apic - first.apic >= WINDOW {
            let ns = (last.apic - first.apic).into();
            return Some(Span { ns, tsc: last.tsc - first.tsc, timer: ns });
        }
    }
    None
}

/// For the interval timer.
struct Pc<'a> {
    mem: &'a Direct,
    apic: &'a Apic,
}

impl pit::Pc for Pc<'_> {
    fn out(&mut self, port: u16, value: u8) {
        outb(port, value);
    }
    fn inp(&mut self, port: u16) -> u8 {
        inb(port)
    }
    fn tsc(&mut self) -> u64 {
        cpu::rdtsc()
    }
    fn timer(&mut self) -> u64 {
        self.apic.elapsed(self.mem).into()
    }
}

impl Sample {
    /// The tightest of a few attempts: the host may take the CPU away in the middle of one.
    fn take(mem: &Direct, apic: &Apic) -> Sample {
        let mut best = (u64::MAX, Sample { tsc: 0, apic: 0 });
        for _ in 0..4 {
            let before = cpu::rdtsc();
            let value = apic.elapsed(mem);
            let width = cpu::rdtsc().wrapping_sub(before);
            if width < best.0 {
                best = (width, Sample { tsc: before.wrapping_add(width / 2), apic: value });
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

    /// Nanoseconds since the machine was switched on, where hypervisors set the TSC to 0 then.
    pub fn since_reset(&self) -> u64 {
        scale(cpu::rdtsc(), self.mult)
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
    for _ in 0..1000 {
        // Two equal readings outside of an update are one consistent time.
        if rtc_register(10) & 0x80 != 0 {
            continue;
        }
        let first = rtc_fields();
        if first == rtc_fields() {
            return crate::calendar::from_rtc(first, rtc_register(11)).map(|s| s * SECOND);
        }
    }
    None
}

#[inline(never)]
fn rtc_fields() -> [u8; 6] {
    [0, 2, 4, 7, 8, 9].map(rtc_register)
}

#[inline(never)]
fn rtc_register(at: u8) -> u8 {
    outb(0x70, at);
    inb(0x71)
}
