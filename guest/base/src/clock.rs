//! Time without a gate call: a TSC conversion, or the host kernel's vDSO function.

#![cfg_attr(donjon_guest, expect(unsafe_code, reason = "reads the TSC, calls the vDSO"))]
// UNSAFETY: `rdtsc`, and an indirect call to an address that the host gave.

use crate::boot;
#[cfg(donjon_guest)]
use donjon_abi::boot::Clock;

/// Nanoseconds since some fixed moment; never goes back.
#[inline]
pub fn monotonic() -> u64 {
    #[cfg(donjon_guest)]
    {
        let c = &boot().clock;
        if c.vdso != 0 { vdso(c, 1) } else { tsc(c) }
    }
    #[cfg(not(donjon_guest))]
    crate::host::now()
}

/// Nanoseconds since the Unix epoch.
#[inline]
pub fn realtime() -> u64 {
    #[cfg(donjon_guest)]
    {
        let c = &boot().clock;
        if c.vdso != 0 { vdso(c, 0) } else { tsc(c).wrapping_add(c.wall_offset) }
    }
    #[cfg(not(donjon_guest))]
    crate::host::now().wrapping_add(boot().clock.wall_offset)
}

#[cfg(donjon_guest)]
fn tsc(c: &Clock) -> u64 {
    // SAFETY: `rdtsc` touches no memory.
    let ticks = unsafe { core::arch::x86_64::_rdtsc() }.wrapping_sub(c.tsc_base);
    let ns = (u128::from(ticks) * u128::from(c.mult)) >> c.shift.min(127);
    c.mono_base.wrapping_add(ns as u64)
}

#[cfg(donjon_guest)]
fn vdso(c: &Clock, id: i32) -> u64 {
    type ClockGettime = unsafe extern "C" fn(i32, *mut [i64; 2]) -> i32;
    // SAFETY: the boot page was checked, and a non-zero `vdso` is a function of this type.
    let f: ClockGettime = unsafe { core::mem::transmute(c.vdso as *const ()) };
    let mut time = [0; 2];
    // SAFETY: `time` is a timespec. The vDSO never fails for these two clocks.
    unsafe { f(id, &raw mut time) };
    (time[0] as u64).wrapping_mul(1_000_000_000).wrapping_add(time[1] as u64)
}
