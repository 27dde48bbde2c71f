//! What the descriptor side of the door shares: C pointers to slices, results to return values.

#![expect(unsafe_code, reason = "turns a C caller's pointers into slices")]
// UNSAFETY: the caller's pointers are believed, as every C library must: caller and library share one address space and one ring.

use crate::errno;
use alloc::vec::Vec;
use core::ffi::{CStr, c_char, c_int, c_void};
use donjon_os::errno::{Errno, Result};
use libc::{iovec, timespec, timeval};

/// Vectors of this many pieces and fewer need no allocation.
const INLINE: usize = 16;
/// `IOV_MAX`.
const IOV_MAX: usize = 1024;

/// Another name for a function.
macro_rules! alias {
    ($($alias:ident = $name:ident($($a:ident: $t:ty),*) -> $r:ty;)*) => {$(
        #[doc = concat!("`", stringify!($name), "` under another name.")]
        ///
        /// # Safety
        /// As the other.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $alias($($a: $t),*) -> $r {
            // SAFETY: the same contract.
            #[allow(unused_unsafe, reason = "some of the functions are safe")]
            unsafe { $name($($a),*) }
        }
    )*};
}
pub(crate) use alias;

/// 0, or -1 and `errno`.
pub fn unit(result: Result<()>) -> c_int {
    errno::ret_int(result.map(|()| 0))
}

/// A path or name without its NUL.
///
/// # Safety
/// `path` is null or points to a string that ends with a NUL and stays as it is for `'a`.
pub unsafe fn path<'a>(path: *const c_char) -> Result<&'a [u8]> {
    if path.is_null() {
        return Err(Errno::EFAULT);
    }
    // SAFETY: by contract.
    Ok(unsafe { CStr::from_ptr(path) }.to_bytes())
}

/// A buffer to read from.
///
/// # Safety
/// `data` points to `len` readable bytes that stay as they are for `'a`, or `len` is 0.
pub unsafe fn bytes<'a>(data: *const c_void, len: usize) -> Result<&'a [u8]> {
    match len {
        0 => Ok(&[]),
        _ if data.is_null() => Err(Errno::EFAULT),
        // SAFETY: by contract.
        _ => Ok(unsafe { core::slice::from_raw_parts(data.cast(), len.min(isize::MAX as usize)) }),
    }
}

/// A buffer to write to. What it holds is not looked at before it is written.
///
/// # Safety
/// `data` points to `len` writable bytes that nobody else uses for `'a`, or `len` is 0.
pub unsafe fn bytes_mut<'a>(data: *mut c_void, len: usize) -> Result<&'a mut [u8]> {
    match len {
        0 => Ok(&mut []),
        _ if data.is_null() => Err(Errno::EFAULT),
        // SAFETY: by contract.
        _ => Ok(unsafe { core::slice::from_raw_parts_mut(data.cast(), len.min(isize::MAX as usize)) }),
    }
}

/// Writes a result through a pointer that may not be null.
///
/// # Safety
/// `to` is null or points to writable memory for a `T`.
pub unsafe fn put<T>(to: *mut T, value: T) -> Result<()> {
    if to.is_null() {
        return Err(Errno::EFAULT);
    }
    // SAFETY: by contract.
    unsafe { to.write_unaligned(value) };
    Ok(())
}

/// Reads a value through a pointer that may not be null.
///
/// # Safety
/// `from` is null or points to a readable `T`.
pub unsafe fn take<T: Copy>(from: *const T) -> Result<T> {
    if from.is_null() {
        return Err(Errno::EFAULT);
    }
    // SAFETY: by contract.
    Ok(unsafe { from.read_unaligned() })
}

unsafe fn vectors<'a>(iov: *const iovec, count: usize) -> Result<&'a [iovec]> {
    if count > IOV_MAX {
        return Err(Errno::EINVAL);
    }
    if count == 0 {
        return Ok(&[]);
    }
    if iov.is_null() {
        return Err(Errno::EFAULT);
    }
    // SAFETY: by contract of the callers.
    let vectors = unsafe { core::slice::from_raw_parts(iov, count) };
    let total = vectors.iter().try_fold(0usize, |sum, v| sum.checked_add(v.iov_len));
    if total.is_none_or(|t| t > isize::MAX as usize) {
        return Err(Errno::EINVAL);
    }
    Ok(vectors)
}

/// Runs `f` on the pieces of an `iovec` array, for reading from them.
///
/// # Safety
/// `iov` points to `count` vectors whose memory is readable and stays as it is.
pub unsafe fn with_iov<R>(iov: *const iovec, count: usize, f: impl FnOnce(&[&[u8]]) -> Result<R>) -> Result<R> {
    // SAFETY: by contract.
    let vectors = unsafe { vectors(iov, count) }?;
    let mut inline: [&[u8]; INLINE] = [&[]; INLINE];
    let mut heap: Vec<&[u8]> = Vec::new();
    let pieces = if vectors.len() <= INLINE {
        &mut inline[..vectors.len()]
    } else {
        heap.try_reserve_exact(vectors.len()).map_err(|_| Errno::ENOMEM)?;
        heap.resize(vectors.len(), &[]);
        &mut heap[..]
    };
    for (piece, v) in pieces.iter_mut().zip(vectors) {
        // SAFETY: by contract.
        *piece = unsafe { bytes(v.iov_base, v.iov_len) }?;
    }
    f(pieces)
}

/// Runs `f` on the pieces of an `iovec` array, for writing to them.
///
/// # Safety
/// `iov` points to `count` vectors whose memory is writable and nobody else's.
pub unsafe fn with_iov_mut<R>(
    iov: *const iovec,
    count: usize,
    f: impl FnOnce(&mut [&mut [u8]]) -> Result<R>,
) -> Result<R> {
    // SAFETY: by contract.
    let vectors = unsafe { vectors(iov, count) }?;
    let mut inline: [&mut [u8]; INLINE] = Default::default();
    let mut heap: Vec<&mut [u8]> = Vec::new();
    let pieces = if vectors.len() <= INLINE {
        &mut inline[..vectors.len()]
    } else {
        heap.try_reserve_exact(vectors.len()).map_err(|_| Errno::ENOMEM)?;
        heap.resize_with(vectors.len(), Default::default);
        &mut heap[..]
    };
    for (piece, v) in pieces.iter_mut().zip(vectors) {
        // SAFETY: by contract.
        *piece = unsafe { bytes_mut(v.iov_base, v.iov_len) }?;
    }
    f(pieces)
}

/// Nanoseconds of a `timespec` that must not be negative.
pub fn nanoseconds(t: timespec) -> Result<u64> {
    if t.tv_sec < 0 || !(0..1_000_000_000).contains(&t.tv_nsec) {
        return Err(Errno::EINVAL);
    }
    Ok((t.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(t.tv_nsec as u64))
}

/// Nanoseconds of a `timeval` that must not be negative.
pub fn nanoseconds_of(t: timeval) -> Result<u64> {
    if t.tv_sec < 0 || !(0..1_000_000).contains(&t.tv_usec) {
        return Err(Errno::EINVAL);
    }
    Ok((t.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(t.tv_usec as u64 * 1000))
}

/// The monotonic moment that is `ns` from now; `Some(0)` for none, so that nothing waits.
pub fn after(ns: u64) -> Option<u64> {
    match ns {
        0 => Some(0),
        ns => Some(donjon_base::clock::monotonic().saturating_add(ns)),
    }
}

/// The same for milliseconds as `poll` and `epoll_wait` take them: negative is for ever.
pub fn after_ms(ms: c_int) -> Option<u64> {
    match u64::try_from(ms) {
        Ok(ms) => after(ms * 1_000_000),
        Err(_) => None,
    }
}
