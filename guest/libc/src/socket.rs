//! Sockets.

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: C callers' pointers; see `door`.

use crate::door::{bytes, bytes_mut, put, take, unit, with_iov, with_iov_mut};
use crate::errno::{ret_int, ret_size};
use core::ffi::{c_int, c_uint, c_void};
use donjon_os::errno::{Errno, Result};
use donjon_os::socket::{self as os, Addr, Received, addr::STORAGE};
use libc::{mmsghdr, msghdr, size_t, sockaddr, socklen_t, ssize_t, timespec};

unsafe fn parse(addr: *const sockaddr, len: socklen_t) -> Result<Addr> {
    if len as usize > STORAGE {
        return Err(Errno::EINVAL);
    }
    // SAFETY: by contract of the callers.
    Addr::parse(unsafe { bytes(addr.cast(), len as usize) }?)
}

/// Writes an address as far as there is room; the length tells its full size.
unsafe fn give(addr: &Addr, out: *mut sockaddr, len: *mut socklen_t) -> Result<()> {
    if out.is_null() {
        return Ok(());
    }
    // SAFETY: by contract of the callers.
    let room = unsafe { take(len.cast_const()) }?;
    if room > i32::MAX as u32 {
        return Err(Errno::EINVAL);
    }
    let mut encoded = [0; STORAGE];
    let n = addr.encode(&mut encoded);
    let cut = n.min(room as usize);
    // SAFETY: by contract of the callers.
    unsafe {
        bytes_mut(out.cast(), cut)?.copy_from_slice(&encoded[..cut]);
        put(len, n as socklen_t)
    }
}

/// `socket(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    ret_int(os::socket(domain, kind, protocol))
}

/// `socketpair(2)`.
///
/// # Safety
/// As in C: room for two numbers.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn socketpair(domain: c_int, kind: c_int, protocol: c_int, out: *mut c_int) -> c_int {
    if out.is_null() {
        return unit(Err(Errno::EFAULT));
    }
    // SAFETY: by contract.
    unit(os::pair(domain, kind, protocol).and_then(|(a, b)| unsafe { put(out.cast::<[c_int; 2]>(), [a, b]) }))
}

/// `bind(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn bind(fd: c_int, addr: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: by contract.
    unit(unsafe { parse(addr, len) }.and_then(|a| os::bind(fd, &a)))
}

/// `listen(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn listen(fd: c_int, backlog: c_int) -> c_int {
    unit(os::listen(fd, backlog))
}

/// `accept4(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn accept4(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int {
    ret_int(os::accept(fd, flags).and_then(|(new, peer)| {
        // SAFETY: by contract.
        match unsafe { give(&peer, addr, len) } {
            Ok(()) => Ok(new),
            Err(e) => {
                donjon_os::fd::close(new)?;
                Err(e)
            }
        }
    }))
}

/// `accept(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn accept(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> c_int {
    // SAFETY: the same contract.
    unsafe { accept4(fd, addr, len, 0) }
}

/// `connect(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn connect(fd: c_int, addr: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: by contract.
    unit(unsafe { parse(addr, len) }.and_then(|a| os::connect(fd, &a)))
}

/// `shutdown(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn shutdown(fd: c_int, how: c_int) -> c_int {
    unit(os::shutdown(fd, how))
}

/// `getsockname(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn getsockname(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> c_int {
    // SAFETY: by contract.
    unit(os::local(fd).and_then(|a| unsafe { give(&a, addr, len) }))
}

/// `getpeername(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn getpeername(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> c_int {
    // SAFETY: by contract.
    unit(os::peer(fd).and_then(|a| unsafe { give(&a, addr, len) }))
}

/// `getsockopt(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    out: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    unit((|| {
        // SAFETY: by contract.
        let room = unsafe { take(len.cast_const()) }? as usize;
        let value = os::option(fd, level, name)?;
        let n = value.bytes().len().min(room);
        // SAFETY: by contract.
        unsafe {
            bytes_mut(out, n)?.copy_from_slice(&value.bytes()[..n]);
            put(len, n as socklen_t)
        }
    })())
}

/// `setsockopt(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    // SAFETY: by contract.
    unit(unsafe { bytes(value, len as usize) }.and_then(|v| os::set_option(fd, level, name, v)))
}

/// `sendto(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn sendto(
    fd: c_int,
    data: *const c_void,
    len: size_t,
    flags: c_int,
    addr: *const sockaddr,
    addr_len: socklen_t,
) -> ssize_t {
    ret_size((|| {
        // SAFETY: by contract.
        let (data, to) = unsafe { (bytes(data, len)?, destination(addr, addr_len)?) };
        os::send(fd, &[data], to.as_ref(), flags)
    })())
}

unsafe fn destination(addr: *const sockaddr, len: socklen_t) -> Result<Option<Addr>> {
    // SAFETY: by contract of the callers.
    if addr.is_null() || len == 0 { Ok(None) } else { unsafe { parse(addr, len) }.map(Some) }
}

/// `send(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn send(fd: c_int, data: *const c_void, len: size_t, flags: c_int) -> ssize_t {
    // SAFETY: by contract.
    ret_size(unsafe { bytes(data, len) }.and_then(|b| os::send(fd, &[b], None, flags)))
}

/// What `recv` returns: the real length if the caller asked for it.
fn length(got: &Received, flags: c_int) -> usize {
    if flags & libc::MSG_TRUNC != 0 { got.len } else { got.copied }
}

/// `recvfrom(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn recvfrom(
    fd: c_int,
    data: *mut c_void,
    len: size_t,
    flags: c_int,
    addr: *mut sockaddr,
    addr_len: *mut socklen_t,
) -> ssize_t {
    ret_size((|| {
        // SAFETY: by contract.
        let data = unsafe { bytes_mut(data, len) }?;
        let got = os::recv(fd, &mut [data], flags)?;
        if !addr.is_null() {
            match &got.from {
                // SAFETY: by contract.
                Some(from) => unsafe { give(from, addr, addr_len) }?,
                // A stream has no sender: no address.
                // SAFETY: by contract.
                None => unsafe { put(addr_len, 0) }?,
            }
        }
        Ok(length(&got, flags))
    })())
}

/// `recv(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn recv(fd: c_int, data: *mut c_void, len: size_t, flags: c_int) -> ssize_t {
    // SAFETY: by contract.
    ret_size(unsafe { bytes_mut(data, len) }.and_then(|b| os::recv(fd, &mut [b], flags)).map(|got| length(&got, flags)))
}

unsafe fn send_message(fd: c_int, message: *const msghdr, flags: c_int) -> Result<usize> {
    // SAFETY: by contract of the callers.
    let m = unsafe { take(message) }?;
    // Descriptors and credentials are not passed, packet information is not set.
    if !m.msg_control.is_null() && m.msg_controllen > 0 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: by contract of the callers.
    let to = unsafe { destination(m.msg_name.cast_const().cast(), m.msg_namelen) }?;
    // SAFETY: by contract of the callers.
    unsafe { with_iov(m.msg_iov, m.msg_iovlen, |bufs| os::send(fd, bufs, to.as_ref(), flags)) }
}

/// `sendmsg(2)`. Control data is refused with `EINVAL`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: by contract.
    ret_size(unsafe { send_message(fd, message, flags) })
}

unsafe fn receive_message(fd: c_int, message: *mut msghdr, flags: c_int) -> Result<usize> {
    // SAFETY: by contract of the callers.
    let mut m = unsafe { take(message.cast_const()) }?;
    // SAFETY: by contract of the callers.
    let got = unsafe { with_iov_mut(m.msg_iov, m.msg_iovlen, |bufs| os::recv(fd, bufs, flags)) }?;
    match &got.from {
        Some(from) if !m.msg_name.is_null() => {
            // SAFETY: by contract of the callers.
            unsafe { give(from, m.msg_name.cast(), &raw mut m.msg_namelen) }?;
        }
        _ => m.msg_namelen = 0,
    }
    m.msg_controllen = 0;
    m.msg_flags = if got.len > got.copied { libc::MSG_TRUNC } else { 0 };
    // SAFETY: by contract of the callers.
    unsafe { put(message, m) }?;
    Ok(length(&got, flags))
}

/// `recvmsg(2)`. There is never control data.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: by contract.
    ret_size(unsafe { receive_message(fd, message, flags) })
}

unsafe fn each(
    messages: *mut mmsghdr,
    count: c_uint,
    mut one: impl FnMut(*mut mmsghdr) -> Result<usize>,
) -> Result<c_int> {
    let mut done = 0;
    while done < count.min(1024) {
        // SAFETY: by contract of the callers: `count` elements.
        let at = unsafe { messages.add(done as usize) };
        match one(at) {
            // SAFETY: as above.
            Ok(n) => unsafe { (*at).msg_len = n as c_uint },
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
        done += 1;
    }
    Ok(done as c_int)
}

/// `sendmmsg(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
    // SAFETY: by contract.
    ret_int(unsafe { each(messages, count, |m| send_message(fd, &raw const (*m).msg_hdr, flags)) })
}

/// `recvmmsg(2)`. A timeout is refused with `ENOSYS`: what it means is not defined well enough to rely on.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn recvmmsg(
    fd: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    timeout: *mut timespec,
) -> c_int {
    if !timeout.is_null() {
        return ret_int(Err(Errno::ENOSYS));
    }
    let mut flags = flags;
    let once = flags & libc::MSG_WAITFORONE != 0;
    flags &= !libc::MSG_WAITFORONE;
    // SAFETY: by contract.
    ret_int(unsafe {
        each(messages, count, |m| {
            let got = receive_message(fd, &raw mut (*m).msg_hdr, flags);
            if once {
                flags |= libc::MSG_DONTWAIT;
            }
            got
        })
    })
}

/// `sockatmark(3)`: there is no urgent data.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn sockatmark(fd: c_int) -> c_int {
    ret_int(os::local(fd).map(|_| 0))
}
