//! Clocks and sleeping.

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: callers' pointers.

use crate::errno::{ret_int, set};
use core::ffi::{c_int, c_uint, c_void};
use donjon_base::clock;
use donjon_os::{
    errno::{Errno, Result},
    sched,
};
pub(crate) use libc::timespec;
use libc::timeval;

const SECOND: u64 = 1_000_000_000;

/// A clock's time in nanoseconds. CPU-time clocks count the time in which the guest was not idle, for the whole process only.
fn now(id: c_int) -> Result<u64> {
    match id {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => Ok(clock::realtime()),
        libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_MONOTONIC_COARSE | libc::CLOCK_BOOTTIME => {
            Ok(clock::monotonic())
        }
        libc::CLOCK_PROCESS_CPUTIME_ID => Ok(sched::busy()),
        _ => Err(Errno::EINVAL),
    }
}

fn split(ns: u64) -> timespec {
    timespec { tv_sec: (ns / SECOND) as i64, tv_nsec: (ns % SECOND) as i64 }
}

/// Nanoseconds of a time; EINVAL if it is not normalised or negative.
///
/// # Safety
/// `t` is readable.
pub(crate) unsafe fn nanoseconds(t: *const timespec) -> Result<u64> {
    // SAFETY: by contract.
    let t = unsafe { t.as_ref() }.ok_or(Errno::EFAULT)?;
    if t.tv_sec < 0 || !(0..SECOND as i64).contains(&t.tv_nsec) {
        return Err(Errno::EINVAL);
    }
    Ok((t.tv_sec as u64).saturating_mul(SECOND).saturating_add(t.tv_nsec as u64))
}

/// The monotonic moment of an absolute time on a clock.
///
/// # Safety
/// `at` is readable.
pub(crate) unsafe fn deadline_of(id: c_int, at: *const timespec) -> Result<u64> {
    // SAFETY: by contract.
    let at = unsafe { nanoseconds(at) }?;
    Ok(clock::monotonic().saturating_add(at.saturating_sub(now(id)?)))
}

/// As [`deadline_of`], for locks: a time before 1970 is over, as in glibc, and no error.
///
/// # Safety
/// `at` is readable.
pub(crate) unsafe fn expiry_of(id: c_int, at: *const timespec) -> Result<u64> {
    // SAFETY: by contract.
    let at = unsafe { at.as_ref() }.ok_or(Errno::EFAULT)?;
    let at = timespec { tv_sec: at.tv_sec.max(0), tv_nsec: at.tv_nsec };
    // SAFETY: a local value.
    unsafe { deadline_of(id, &raw const at) }
}

/// `clock_gettime`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn clock_gettime(id: c_int, out: *mut timespec) -> c_int {
    ret_int(now(id).map(|t| {
        // SAFETY: the caller's pointer is writable.
        unsafe { *out = split(t) };
        0
    }))
}

/// `clock_settime`: the clock is the host's.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn clock_settime(_id: c_int, _to: *const timespec) -> c_int {
    ret_int(Err(Errno::EPERM))
}

/// `clock_getres`: all clocks count nanoseconds.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn clock_getres(id: c_int, out: *mut timespec) -> c_int {
    ret_int(now(id).map(|_| {
        if !out.is_null() {
            // SAFETY: the caller's pointer is writable.
            unsafe { *out = split(1) };
        }
        0
    }))
}

/// `gettimeofday`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn gettimeofday(out: *mut timeval, _zone: *mut c_void) -> c_int {
    let t = clock::realtime();
    // SAFETY: the caller's pointer is writable.
    unsafe { *out = timeval { tv_sec: (t / SECOND) as i64, tv_usec: (t % SECOND / 1000) as i64 } };
    0
}

/// `time`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn time(out: *mut i64) -> i64 {
    let t = (clock::realtime() / SECOND) as i64;
    if !out.is_null() {
        // SAFETY: the caller's pointer is writable.
        unsafe { *out = t };
    }
    t
}

/// `clock`: microseconds in which the guest was not idle.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn clock() -> i64 {
    (sched::busy() / 1000) as i64
}

/// `nanosleep`. Nothing interrupts it.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn nanosleep(t: *const timespec, _left: *mut timespec) -> c_int {
    // SAFETY: the caller's time.
    ret_int(unsafe { nanoseconds(t) }.map(|ns| {
        sched::sleep_until(clock::monotonic().saturating_add(ns));
        0
    }))
}

/// `clock_nanosleep`: returns the error itself.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn clock_nanosleep(id: c_int, flags: c_int, t: *const timespec, _left: *mut timespec) -> c_int {
    let deadline = (|| {
        now(id)?;
        if flags & libc::TIMER_ABSTIME != 0 {
            // SAFETY: the caller's time.
            unsafe { deadline_of(id, t) }
        } else {
            // SAFETY: the caller's time.
            Ok(clock::monotonic().saturating_add(unsafe { nanoseconds(t) }?))
        }
    })();
    match deadline {
        Ok(d) => {
            sched::sleep_until(d);
            0
        }
        Err(e) => e.0,
    }
}

/// `usleep`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn usleep(us: c_uint) -> c_int {
    sched::sleep_until(clock::monotonic().saturating_add(u64::from(us) * 1000));
    0
}

/// `sleep`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn sleep(seconds: c_uint) -> c_uint {
    sched::sleep_until(clock::monotonic().saturating_add(u64::from(seconds) * SECOND));
    0
}

/// `pause`: signal handlers interrupt nothing here, so this sleeps for ever.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pause() -> c_int {
    loop {
        sched::park(None);
    }
}

/// `times`: not kept.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn times(_out: *mut c_void) -> i64 {
    set(Errno::ENOSYS);
    -1
}
