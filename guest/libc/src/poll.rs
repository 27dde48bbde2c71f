//! `poll`, `select`, `epoll`.

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: C callers' pointers; see `door`.

use crate::door::{after, after_ms, nanoseconds, nanoseconds_of, take, unit};
use crate::errno::ret_int;
use core::ffi::{c_int, c_void};
use donjon_os::errno::{Errno, Result};
use donjon_os::io::epoll::{self, Event, Op};
use donjon_os::io::poll::{self as os, PollFd, Sets};
use libc::{epoll_event, nfds_t, pollfd, sigset_t, timespec, timeval};

const _: () = {
    assert!(size_of::<PollFd>() == size_of::<pollfd>());
    assert!(core::mem::offset_of!(PollFd, events) == core::mem::offset_of!(pollfd, events));
    assert!(core::mem::offset_of!(PollFd, revents) == core::mem::offset_of!(pollfd, revents));
};

/// Events that are collected in one go.
const BATCH: usize = 64;

unsafe fn poll_until(fds: *mut pollfd, n: nfds_t, deadline: Option<u64>) -> Result<c_int> {
    let n = usize::try_from(n).ok().filter(|n| *n <= 1 << 20).ok_or(Errno::EINVAL)?;
    let fds: &mut [PollFd] = match n {
        0 => &mut [],
        _ if fds.is_null() => return Err(Errno::EFAULT),
        // SAFETY: 1. by contract of the callers; 2. the layouts are the same (asserted above).
        _ => unsafe { core::slice::from_raw_parts_mut(fds.cast(), n) },
    };
    os::poll(fds, deadline).map(|n| n as c_int)
}

/// `poll(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn poll(fds: *mut pollfd, n: nfds_t, timeout: c_int) -> c_int {
    // SAFETY: by contract.
    ret_int(unsafe { poll_until(fds, n, after_ms(timeout)) })
}

unsafe fn deadline(timeout: *const timespec) -> Result<Option<u64>> {
    if timeout.is_null() {
        return Ok(None);
    }
    // SAFETY: by contract of the callers.
    Ok(after(nanoseconds(unsafe { take(timeout) }?)?))
}

/// `ppoll(2)`. There are no signals to block.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn ppoll(fds: *mut pollfd, n: nfds_t, timeout: *const timespec, _mask: *const sigset_t) -> c_int {
    // SAFETY: by contract.
    ret_int(unsafe { deadline(timeout) }.and_then(|d| unsafe { poll_until(fds, n, d) }))
}

/// Fortified `poll`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __poll_chk(fds: *mut pollfd, n: nfds_t, timeout: c_int, size: usize) -> c_int {
    if size / size_of::<pollfd>() < n as usize {
        donjon_os::fatal(format_args!("poll: more descriptors than the array has"));
    }
    // SAFETY: by contract.
    unsafe { poll(fds, n, timeout) }
}

unsafe fn select_until(
    n: c_int,
    read: *mut u64,
    write: *mut u64,
    except: *mut u64,
    deadline: Option<u64>,
) -> Result<c_int> {
    let count = usize::try_from(n).ok().filter(|n| *n <= 1 << 20).ok_or(Errno::EINVAL)?;
    let words = count.div_ceil(64);
    let set = |p: *mut u64| {
        // SAFETY: by contract of the callers; a set has at least as many bits as `n` says.
        (!p.is_null() && words > 0).then(|| unsafe { core::slice::from_raw_parts_mut(p, words) })
    };
    let mut sets = Sets { read: set(read), write: set(write), except: set(except) };
    os::select(count, &mut sets, deadline).map(|n| n as c_int)
}

/// `select(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn select(
    n: c_int,
    read: *mut u64,
    write: *mut u64,
    except: *mut u64,
    timeout: *mut timeval,
) -> c_int {
    ret_int((|| {
        // SAFETY: by contract.
        let time = if timeout.is_null() { None } else { Some(unsafe { take(timeout.cast_const()) }?) };
        let deadline = time.map(nanoseconds_of).transpose()?.and_then(after);
        // SAFETY: by contract.
        let result = unsafe { select_until(n, read, write, except, deadline) };
        if let Some(deadline) = deadline {
            // What is left of the time, as in Linux.
            let left = deadline.saturating_sub(donjon_base::clock::monotonic()) / 1000;
            let left = timeval { tv_sec: (left / 1_000_000) as i64, tv_usec: (left % 1_000_000) as i64 };
            // SAFETY: by contract; it is not null, as there is a deadline.
            unsafe { timeout.write(left) };
        }
        result
    })())
}

/// `pselect(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pselect(
    n: c_int,
    read: *mut u64,
    write: *mut u64,
    except: *mut u64,
    timeout: *const timespec,
    _mask: *const c_void,
) -> c_int {
    // SAFETY: by contract.
    ret_int(unsafe { deadline(timeout) }.and_then(|d| unsafe { select_until(n, read, write, except, d) }))
}

/// `epoll_create(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn epoll_create(size: c_int) -> c_int {
    ret_int(if size <= 0 { Err(Errno::EINVAL) } else { epoll::create(false) })
}

/// `epoll_create1(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn epoll_create1(flags: c_int) -> c_int {
    ret_int(match flags {
        0 => epoll::create(false),
        libc::EPOLL_CLOEXEC => epoll::create(true),
        _ => Err(Errno::EINVAL),
    })
}

/// `epoll_ctl(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn epoll_ctl(epfd: c_int, op: c_int, fd: c_int, event: *mut epoll_event) -> c_int {
    // SAFETY: by contract.
    let event = || unsafe { take(event.cast_const()) }.map(|e| Event { events: e.events, data: e.u64 });
    unit(
        match op {
            libc::EPOLL_CTL_ADD => event().map(Op::Add),
            libc::EPOLL_CTL_MOD => event().map(Op::Modify),
            libc::EPOLL_CTL_DEL => Ok(Op::Delete),
            _ => Err(Errno::EINVAL),
        }
        .and_then(|op| epoll::ctl(epfd, fd, op)),
    )
}

unsafe fn wait_until(epfd: c_int, out: *mut epoll_event, max: c_int, deadline: Option<u64>) -> Result<c_int> {
    let max = usize::try_from(max).ok().filter(|m| *m > 0).ok_or(Errno::EINVAL)?;
    if out.is_null() {
        return Err(Errno::EFAULT);
    }
    let mut events = [Event::default(); BATCH];
    let n = epoll::wait(epfd, &mut events[..max.min(BATCH)], deadline)?;
    for (i, e) in events[..n].iter().enumerate() {
        // SAFETY: by contract of the callers: room for `max` events, and `n` is not more.
        unsafe { out.add(i).write_unaligned(epoll_event { events: e.events, u64: e.data }) };
    }
    Ok(n as c_int)
}

/// `epoll_wait(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn epoll_wait(epfd: c_int, out: *mut epoll_event, max: c_int, timeout: c_int) -> c_int {
    // SAFETY: by contract.
    ret_int(unsafe { wait_until(epfd, out, max, after_ms(timeout)) })
}

/// `epoll_pwait(2)`. There are no signals to block.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn epoll_pwait(
    epfd: c_int,
    out: *mut epoll_event,
    max: c_int,
    timeout: c_int,
    _mask: *const sigset_t,
) -> c_int {
    // SAFETY: by contract.
    ret_int(unsafe { wait_until(epfd, out, max, after_ms(timeout)) })
}

/// `epoll_pwait2(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn epoll_pwait2(
    epfd: c_int,
    out: *mut epoll_event,
    max: c_int,
    timeout: *const timespec,
    _mask: *const sigset_t,
) -> c_int {
    // SAFETY: by contract.
    ret_int(unsafe { deadline(timeout) }.and_then(|d| unsafe { wait_until(epfd, out, max, d) }))
}
