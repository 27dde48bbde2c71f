//! Clocks and sleeping.

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: callers' pointers.

use crate::errno::{ret_errno, ret_int, set};
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

/// Sleeps; on EINTR it says what is left.
///
/// # Safety
/// `left` is null or writable.
unsafe fn nap(deadline: u64, left: *mut timespec) -> Result<()> {
    sched::nap_until(deadline).inspect_err(|_| {
        if !left.is_null() {
            // SAFETY: by contract.
            unsafe { left.write(split(deadline.saturating_sub(clock::monotonic()))) };
        }
    })
}

/// `nanosleep`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn nanosleep(t: *const timespec, left: *mut timespec) -> c_int {
    // SAFETY: the caller's times.
    ret_int(unsafe { nanoseconds(t).and_then(|ns| nap(clock::monotonic().saturating_add(ns), left)) }.map(|()| 0))
}

/// `clock_nanosleep`: returns the error itself.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn clock_nanosleep(id: c_int, flags: c_int, t: *const timespec, left: *mut timespec) -> c_int {
    let left = if flags & libc::TIMER_ABSTIME != 0 { core::ptr::null_mut() } else { left };
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
    // SAFETY: the caller's place for what is left.
    ret_errno(deadline.and_then(|d| unsafe { nap(d, left) }))
}

/// `usleep`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn usleep(us: c_uint) -> c_int {
    ret_int(sched::nap_until(clock::monotonic().saturating_add(u64::from(us) * 1000)).map(|()| 0))
}

/// `sleep`: returns the seconds that are left when a handler has run.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn sleep(seconds: c_uint) -> c_uint {
    let end = clock::monotonic().saturating_add(u64::from(seconds) * SECOND);
    match sched::nap_until(end) {
        Ok(()) => 0,
        Err(_) => end.saturating_sub(clock::monotonic()).div_ceil(SECOND) as c_uint,
    }
}

/// `pause`: until a handler has run, also the one for the host's request, which has a thread of its own.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pause() -> c_int {
    donjon_os::signal::pause();
    ret_int(Err(Errno::EINTR))
}

/// `times`: not kept.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn times(_out: *mut c_void) -> i64 {
    set(Errno::ENOSYS);
    -1
}
