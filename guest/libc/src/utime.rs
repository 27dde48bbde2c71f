//! The times of files: `utimensat` and its kin.

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: C callers' pointers; see `door`.

use crate::door::{path, take, unit};
use core::ffi::{c_char, c_int};
use donjon_os::errno::{Errno, Result};
use donjon_os::fs::{self, At, Time};
use libc::{AT_FDCWD, AT_SYMLINK_NOFOLLOW, timespec, timeval, utimbuf};

/// Access and modification time; `None` is "leave it".
type Times = (Option<Time>, Option<Time>);

fn now() -> Time {
    Time::from_ns(donjon_base::clock::realtime())
}

/// A moment, also one before 1970.
fn moment(t: timespec) -> Result<Time> {
    match u32::try_from(t.tv_nsec) {
        Ok(nsec) if nsec < 1_000_000_000 => Ok(Time { sec: t.tv_sec, nsec }),
        _ => Err(Errno::EINVAL),
    }
}

/// The same in microseconds.
fn moment_of(t: timeval) -> Result<Time> {
    moment(timespec { tv_sec: t.tv_sec, tv_nsec: t.tv_usec.checked_mul(1000).ok_or(Errno::EINVAL)? })
}

/// What `utimensat` is given.
unsafe fn from_spec(spec: *const timespec) -> Result<Times> {
    if spec.is_null() {
        return Ok((Some(now()), Some(now())));
    }
    // SAFETY: by contract of the callers: two elements.
    let [a, m] = unsafe { take(spec.cast::<[timespec; 2]>()) }?;
    let one = |t: timespec| match t.tv_nsec {
        libc::UTIME_NOW => Ok(Some(now())),
        libc::UTIME_OMIT => Ok(None),
        _ => moment(t).map(Some),
    };
    Ok((one(a)?, one(m)?))
}

/// What `utimes` is given.
unsafe fn from_values(values: *const timeval) -> Result<Times> {
    if values.is_null() {
        return Ok((Some(now()), Some(now())));
    }
    // SAFETY: by contract of the callers: two elements.
    let [a, m] = unsafe { take(values.cast::<[timeval; 2]>()) }?;
    Ok((Some(moment_of(a)?), Some(moment_of(m)?)))
}

/// The file `name` in the directory `dir`, or `dir` itself without a name.
unsafe fn set(dir: c_int, name: *const c_char, (a, m): Times, follow: bool) -> Result<()> {
    let at = if dir == AT_FDCWD { At::Cwd } else { At::Fd(dir) };
    // SAFETY: by contract of the callers.
    let name = if name.is_null() { None } else { Some(unsafe { path(name) }?) };
    fs::set_times(at, name, a, m, follow)
}

/// `utimensat(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn utimensat(dir: c_int, name: *const c_char, spec: *const timespec, flags: c_int) -> c_int {
    // SAFETY: by contract.
    unit(unsafe { from_spec(spec).and_then(|times| set(dir, name, times, flags & AT_SYMLINK_NOFOLLOW == 0)) })
}

/// `futimens(3)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn futimens(fd: c_int, spec: *const timespec) -> c_int {
    // SAFETY: by contract.
    unit(unsafe { from_spec(spec).and_then(|times| set(fd, core::ptr::null(), times, true)) })
}

/// `utimes(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn utimes(name: *const c_char, values: *const timeval) -> c_int {
    // SAFETY: by contract.
    unsafe { futimesat(AT_FDCWD, name, values) }
}

/// `lutimes(3)`: of a symbolic link itself.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn lutimes(name: *const c_char, values: *const timeval) -> c_int {
    // SAFETY: by contract.
    unit(unsafe { from_values(values).and_then(|times| named(name).and_then(|n| set(AT_FDCWD, n, times, false))) })
}

/// `futimesat(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn futimesat(dir: c_int, name: *const c_char, values: *const timeval) -> c_int {
    // SAFETY: by contract.
    unit(unsafe { from_values(values).and_then(|times| named(name).and_then(|n| set(dir, n, times, true))) })
}

/// `futimes(3)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn futimes(fd: c_int, values: *const timeval) -> c_int {
    // SAFETY: by contract.
    unit(unsafe { from_values(values).and_then(|times| set(fd, core::ptr::null(), times, true)) })
}

/// `utime(2)`: whole seconds.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn utime(name: *const c_char, times: *const utimbuf) -> c_int {
    unit((|| {
        let whole = |sec| Some(Time { sec, nsec: 0 });
        // SAFETY: by contract.
        let times = match unsafe { times.as_ref() } {
            Some(t) => (whole(t.actime), whole(t.modtime)),
            None => (Some(now()), Some(now())),
        };
        // SAFETY: by contract.
        unsafe { set(AT_FDCWD, named(name)?, times, true) }
    })())
}

/// A name that must be there.
fn named(name: *const c_char) -> Result<*const c_char> {
    if name.is_null() { Err(Errno::EFAULT) } else { Ok(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_before_1970_are_fine_and_fractions_must_be_fractions() {
        let spec = |tv_sec, tv_nsec| moment(timespec { tv_sec, tv_nsec });
        assert_eq!(spec(-5, 999_999_999), Ok(Time { sec: -5, nsec: 999_999_999 }));
        assert_eq!((spec(0, -1), spec(0, 1_000_000_000)), (Err(Errno::EINVAL), Err(Errno::EINVAL)));
        let value = |tv_sec, tv_usec| moment_of(timeval { tv_sec, tv_usec });
        assert_eq!(value(-5, 999_999), Ok(Time { sec: -5, nsec: 999_999_000 }));
        for usec in [-1, 1_000_000, i64::MAX] {
            assert_eq!(value(0, usec), Err(Errno::EINVAL), "{usec}");
        }
    }
}
