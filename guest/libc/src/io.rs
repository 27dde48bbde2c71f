//! Reading, writing, and descriptors: `read`, `write`, `close`, `dup`, `fcntl`, `ioctl`, `pipe`, `eventfd`, `timerfd`.

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: C callers' pointers; see `door`.

use crate::door::{alias, bytes, bytes_mut, nanoseconds, put, take, unit, with_iov, with_iov_mut};
use crate::errno::{ret_int, ret_size};
use core::ffi::{c_int, c_uint, c_ulong, c_void};
use donjon_os::errno::{Errno, Result};
use donjon_os::io::timerfd::{self, Clock, Setting};
use donjon_os::{fd, fs, io};
use libc::{iovec, itimerspec, off_t, size_t, ssize_t, timespec};

/// `read(2)`.
///
/// # Safety
/// As in C: `data` points to `len` writable bytes.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn read(fd: c_int, data: *mut c_void, len: size_t) -> ssize_t {
    // SAFETY: by contract.
    ret_size(unsafe { bytes_mut(data, len) }.and_then(|b| fd::read(fd, &mut [b])))
}

/// `write(2)`.
///
/// # Safety
/// As in C: `data` points to `len` readable bytes.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn write(fd: c_int, data: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: by contract.
    ret_size(unsafe { bytes(data, len) }.and_then(|b| fd::write(fd, &[b])))
}

fn count(n: c_int) -> usize {
    // Negative counts become huge ones, which are refused.
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// `readv(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn readv(fd: c_int, iov: *const iovec, n: c_int) -> ssize_t {
    // SAFETY: by contract.
    ret_size(unsafe { with_iov_mut(iov, count(n), |b| fd::read(fd, b)) })
}

/// `writev(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn writev(fd: c_int, iov: *const iovec, n: c_int) -> ssize_t {
    // SAFETY: by contract.
    ret_size(unsafe { with_iov(iov, count(n), |b| fd::write(fd, b)) })
}

/// `pread(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pread(fd: c_int, data: *mut c_void, len: size_t, at: off_t) -> ssize_t {
    // SAFETY: by contract.
    ret_size(unsafe { bytes_mut(data, len) }.and_then(|b| fd::read_at(fd, &mut [b], at)))
}

/// `pwrite(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pwrite(fd: c_int, data: *const c_void, len: size_t, at: off_t) -> ssize_t {
    // SAFETY: by contract.
    ret_size(unsafe { bytes(data, len) }.and_then(|b| fd::write_at(fd, &[b], at)))
}

/// `preadv(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn preadv(fd: c_int, iov: *const iovec, n: c_int, at: off_t) -> ssize_t {
    // SAFETY: by contract.
    ret_size(unsafe { with_iov_mut(iov, count(n), |b| fd::read_at(fd, b, at)) })
}

/// `preadv2(2)`: an offset of -1 is the current one. No flag is known.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn preadv2(fd: c_int, iov: *const iovec, n: c_int, at: off_t, flags: c_int) -> ssize_t {
    match (flags, at) {
        // SAFETY: the same contract.
        (0, -1) => unsafe { readv(fd, iov, n) },
        // SAFETY: the same contract.
        (0, _) => unsafe { preadv(fd, iov, n, at) },
        _ => ret_size(Err(Errno::EOPNOTSUPP)),
    }
}

/// `pwritev2(2)`: as `preadv2`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pwritev2(fd: c_int, iov: *const iovec, n: c_int, at: off_t, flags: c_int) -> ssize_t {
    match (flags, at) {
        // SAFETY: the same contract.
        (0, -1) => unsafe { writev(fd, iov, n) },
        // SAFETY: the same contract.
        (0, _) => unsafe { pwritev(fd, iov, n, at) },
        _ => ret_size(Err(Errno::EOPNOTSUPP)),
    }
}

/// `pwritev(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pwritev(fd: c_int, iov: *const iovec, n: c_int, at: off_t) -> ssize_t {
    // SAFETY: by contract.
    ret_size(unsafe { with_iov(iov, count(n), |b| fd::write_at(fd, b, at)) })
}

alias! {
    pread64 = pread(fd: c_int, data: *mut c_void, len: size_t, at: off_t) -> ssize_t;
    pwrite64 = pwrite(fd: c_int, data: *const c_void, len: size_t, at: off_t) -> ssize_t;
    preadv64 = preadv(fd: c_int, iov: *const iovec, n: c_int, at: off_t) -> ssize_t;
    pwritev64 = pwritev(fd: c_int, iov: *const iovec, n: c_int, at: off_t) -> ssize_t;
    lseek64 = lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t;
    ftruncate64 = ftruncate(fd: c_int, len: off_t) -> c_int;
    fallocate64 = fallocate(fd: c_int, mode: c_int, at: off_t, len: off_t) -> c_int;
    posix_fallocate64 = posix_fallocate(fd: c_int, at: off_t, len: off_t) -> c_int;
    posix_fadvise64 = posix_fadvise(fd: c_int, at: off_t, len: off_t, advice: c_int) -> c_int;
    sendfile64 = sendfile(to: c_int, from: c_int, offset: *mut off_t, len: size_t) -> ssize_t;
    fcntl64 = fcntl(fd: c_int, command: c_int, arg: c_ulong) -> c_int;
}

/// `lseek(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t {
    ret_size(fd::seek(fd, offset, whence).map(|at| at as usize)) as off_t
}

/// `ftruncate(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn ftruncate(fd: c_int, len: off_t) -> c_int {
    unit(fd::truncate(fd, len))
}

/// `fallocate(2)`: mode 0 and `FALLOC_FL_KEEP_SIZE`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn fallocate(fd: c_int, mode: c_int, at: off_t, len: off_t) -> c_int {
    unit(match mode {
        0 => fd::allocate(fd, at, len, false),
        libc::FALLOC_FL_KEEP_SIZE => fd::allocate(fd, at, len, true),
        _ => Err(Errno::EOPNOTSUPP),
    })
}

/// `posix_fallocate(3)`: the error is the result.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn posix_fallocate(fd: c_int, at: off_t, len: off_t) -> c_int {
    fd::allocate(fd, at, len, false).map_or_else(|e| e.0, |()| 0)
}

/// `posix_fadvise(2)`: advice about caches; there is none to advise.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn posix_fadvise(fd: c_int, _at: off_t, _len: off_t, _advice: c_int) -> c_int {
    fd::status(fd).map_or_else(|e| e.0, |_| Errno::ENOSYS.0)
}

/// `fsync(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn fsync(fd: c_int) -> c_int {
    unit(fd::sync(fd))
}

/// `fdatasync(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn fdatasync(fd: c_int) -> c_int {
    unit(fd::sync(fd))
}

/// `sync_file_range(2)`: as `fdatasync`, whatever the range. ESPIPE for what is no file.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn sync_file_range(fd: c_int, at: off_t, len: off_t, flags: c_uint) -> c_int {
    let known = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    unit(match at.checked_add(len) {
        Some(_) if at >= 0 && len >= 0 && flags & !known == 0 => {
            fd::sync(fd).map_err(|e| if e == Errno::EINVAL { Errno::ESPIPE } else { e })
        }
        _ => Err(Errno::EINVAL),
    })
}

/// `syncfs(2)`: there is no device that a file system could be written to.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn syncfs(fd: c_int) -> c_int {
    unit(fd::status(fd).map(|_| ()))
}

/// `sync(2)`: the same for all of them.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn sync() {}

/// `close(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn close(fd: c_int) -> c_int {
    unit(fd::close(fd))
}

/// `close_range(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    const CLOEXEC: c_int = 4;
    unit(match flags {
        0 => fd::close_range(first, last, false),
        CLOEXEC => fd::close_range(first, last, true),
        _ => Err(Errno::EINVAL),
    })
}

/// `dup(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn dup(fd: c_int) -> c_int {
    ret_int(fd::dup(fd, 0, false))
}

/// `dup2(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn dup2(fd: c_int, to: c_int) -> c_int {
    if fd == to {
        return ret_int(fd::status(fd).map(|_| fd));
    }
    ret_int(fd::dup_at(fd, to, false))
}

/// `dup3(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn dup3(fd: c_int, to: c_int, flags: c_int) -> c_int {
    if flags & !libc::O_CLOEXEC != 0 {
        return ret_int(Err(Errno::EINVAL));
    }
    ret_int(fd::dup_at(fd, to, flags & libc::O_CLOEXEC != 0))
}

/// `fcntl(2)`. The variable argument arrives in the third register.
///
/// # Safety
/// As in C: for lock commands `arg` points to a `struct flock`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fcntl(fd: c_int, command: c_int, arg: c_ulong) -> c_int {
    let int = arg as c_int;
    ret_int(match command {
        libc::F_DUPFD => fd::dup(fd, int, false),
        libc::F_DUPFD_CLOEXEC => fd::dup(fd, int, true),
        libc::F_GETFD => fd::flags(fd).map(c_int::from),
        libc::F_SETFD => fd::set_flags(fd, int & libc::FD_CLOEXEC != 0).map(|()| 0),
        libc::F_GETFL => fd::status(fd),
        libc::F_SETFL => fd::set_status(fd, int).map(|()| 0),
        // Record locks are between processes, and there is only one.
        libc::F_SETLK | libc::F_SETLKW => fd::status(fd).map(|_| 0),
        libc::F_GETLK => fd::status(fd).and_then(|_| {
            let lock = arg as *mut libc::flock;
            // SAFETY: by contract.
            let mut value = unsafe { take(lock) }?;
            value.l_type = libc::F_UNLCK as i16;
            // SAFETY: by contract.
            unsafe { put(lock, value) }.map(|()| 0)
        }),
        _ => Err(Errno::EINVAL),
    })
}

/// `ioctl(2)`: `FIONBIO`, `FIONREAD`, `SIOCOUTQ` (of TCP), `FIOCLEX`, `FIONCLEX`; everything about terminals fails with `ENOTTY`.
///
/// # Safety
/// As in C: `arg` points to what the request needs.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    unit(match request & 0xffff_ffff {
        libc::FIONBIO => {
            // SAFETY: by contract.
            unsafe { take(arg.cast::<c_int>()) }.and_then(|on| fd::set_nonblocking(fd, on != 0))
        }
        libc::FIONREAD => fd::available(fd).and_then(|n| {
            // SAFETY: by contract.
            unsafe { put(arg.cast::<c_int>(), c_int::try_from(n).unwrap_or(c_int::MAX)) }
        }),
        // SIOCOUTQ is the same number.
        libc::TIOCOUTQ => fd::unsent(fd).and_then(|n| {
            // SAFETY: by contract.
            unsafe { put(arg.cast::<c_int>(), c_int::try_from(n).unwrap_or(c_int::MAX)) }
        }),
        libc::FIOCLEX => fd::set_flags(fd, true),
        libc::FIONCLEX => fd::set_flags(fd, false),
        _ => fd::status(fd).and(Err(Errno::ENOTTY)),
    })
}

fn pair(made: Result<(c_int, c_int)>, out: *mut c_int) -> c_int {
    unit(made.and_then(|(a, b)| {
        // SAFETY: C's contract: room for two numbers.
        let done = unsafe { put(out.cast::<[c_int; 2]>(), [a, b]) };
        if done.is_err() {
            fd::close(a)?;
            fd::close(b)?;
        }
        done
    }))
}

/// `pipe(2)`.
///
/// # Safety
/// As in C: `out` points to room for two numbers.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pipe(out: *mut c_int) -> c_int {
    pair(io::pipe::create(0), out)
}

/// `pipe2(2)`.
///
/// # Safety
/// As in C: `out` points to room for two numbers.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pipe2(out: *mut c_int, flags: c_int) -> c_int {
    pair(io::pipe::create(flags), out)
}

/// `eventfd(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn eventfd(initial: c_uint, flags: c_int) -> c_int {
    ret_int(io::eventfd::create(initial, flags))
}

/// `eventfd_read(3)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn eventfd_read(fd: c_int, value: *mut u64) -> c_int {
    let mut bytes = [0; 8];
    // SAFETY: by contract.
    unit(fd::read(fd, &mut [&mut bytes]).and_then(|_| unsafe { put(value, u64::from_ne_bytes(bytes)) }))
}

/// `eventfd_write(3)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn eventfd_write(fd: c_int, value: u64) -> c_int {
    unit(fd::write(fd, &[&value.to_ne_bytes()]).map(|_| ()))
}

/// `timerfd_create(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn timerfd_create(clock: c_int, flags: c_int) -> c_int {
    let clock = match clock {
        libc::CLOCK_REALTIME => Clock::Real,
        libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME => Clock::Monotonic,
        _ => return ret_int(Err(Errno::EINVAL)),
    };
    ret_int(timerfd::create(clock, flags))
}

fn spec(s: Setting) -> itimerspec {
    let time = |ns: u64| timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 };
    itimerspec { it_interval: time(s.interval), it_value: time(s.value) }
}

/// `timerfd_settime(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn timerfd_settime(
    fd: c_int,
    flags: c_int,
    new: *const itimerspec,
    old: *mut itimerspec,
) -> c_int {
    unit((|| {
        // SAFETY: by contract.
        let new = unsafe { take(new) }?;
        let setting = Setting { interval: nanoseconds(new.it_interval)?, value: nanoseconds(new.it_value)? };
        let before = timerfd::set(fd, flags, setting)?;
        if !old.is_null() {
            // SAFETY: by contract.
            unsafe { put(old, spec(before)) }?;
        }
        Ok(())
    })())
}

/// `timerfd_gettime(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn timerfd_gettime(fd: c_int, now: *mut itimerspec) -> c_int {
    // SAFETY: by contract.
    unit(timerfd::get(fd).and_then(|s| unsafe { put(now, spec(s)) }))
}

/// `sendfile(2)`.
///
/// # Safety
/// As in C: `offset` is null or points to a position.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn sendfile(to: c_int, from: c_int, offset: *mut off_t, len: size_t) -> ssize_t {
    // SAFETY: by contract.
    ret_size(unsafe { copy(from, offset, to, core::ptr::null_mut(), len) })
}

/// `copy_file_range(2)`.
///
/// # Safety
/// As in C: the offsets are null or point to positions.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn copy_file_range(
    from: c_int,
    from_at: *mut off_t,
    to: c_int,
    to_at: *mut off_t,
    len: size_t,
    flags: c_uint,
) -> ssize_t {
    if flags != 0 {
        return ret_size(Err(Errno::EINVAL));
    }
    ret_size(fd::stat(to).and_then(|s| {
        if s.mode & fs::kind::MASK != fs::kind::FILE {
            return Err(Errno::EINVAL);
        }
        // SAFETY: by contract.
        unsafe { copy(from, from_at, to, to_at, len) }
    }))
}

/// `splice(2)`: not there.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn splice() -> ssize_t {
    ret_size(Err(Errno::ENOSYS))
}

/// `tee(2)`: not there.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn tee() -> ssize_t {
    ret_size(Err(Errno::ENOSYS))
}

/// `vmsplice(2)`: not there.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn vmsplice() -> ssize_t {
    ret_size(Err(Errno::ENOSYS))
}

unsafe fn copy(from: c_int, from_at: *mut off_t, to: c_int, to_at: *mut off_t, len: usize) -> Result<usize> {
    let position = |p: *mut off_t| -> Result<Option<u64>> {
        if p.is_null() {
            return Ok(None);
        }
        // SAFETY: by contract of the callers.
        u64::try_from(unsafe { take(p) }?).map(Some).map_err(|_| Errno::EINVAL)
    };
    let (mut a, mut b) = (position(from_at)?, position(to_at)?);
    // At most what a signed count can say, as in Linux.
    let n = fs::copy_range(from, a.as_mut(), to, b.as_mut(), len.min(0x7fff_f000))?;
    for (p, at) in [(from_at, a), (to_at, b)] {
        if let Some(at) = at {
            // SAFETY: by contract of the callers; not null, as there is a position.
            unsafe { put(p, at as off_t) }?;
        }
    }
    Ok(n)
}
