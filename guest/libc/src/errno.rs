//! `errno`, and the texts of its values.

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: writes to callers' buffers.

use core::ffi::{c_char, c_int};
use donjon_base::tls;
use donjon_os::errno::{Errno, Result};

/// Sets the running thread's `errno`.
#[inline]
pub fn set(e: Errno) {
    tls::tcb().errno.set(e.0);
}

/// The value, or -1 and `errno`.
#[inline]
pub fn ret_int(r: Result<i32>) -> c_int {
    r.unwrap_or_else(|e| {
        set(e);
        -1
    })
}

/// The value, or -1 and `errno`.
#[inline]
pub fn ret_size(r: Result<usize>) -> isize {
    match r {
        Ok(n) => n as isize,
        Err(e) => {
            set(e);
            -1
        }
    }
}

/// The error number itself, as the pthread functions return it; 0 is success.
#[inline]
pub fn ret_errno(r: Result<()>) -> c_int {
    match r {
        Ok(()) => 0,
        Err(e) => e.0,
    }
}

/// Where the running thread's `errno` is.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn __errno_location() -> *mut c_int {
    tls::tcb().errno.as_ptr()
}

/// The message for an error number, NUL included; `unknown` is used for numbers without one.
fn text(number: c_int, unknown: &mut [u8; 32]) -> &[u8] {
    let known = match number {
        0 => Some("Success"),
        n => Errno(n).text(),
    };
    let Some(known) = known else {
        let mut at = 0;
        let mut digits = [0; 10];
        let mut n = number.unsigned_abs();
        let mut count = 0;
        while count == 0 || n > 0 {
            digits[count] = b'0' + (n % 10) as u8;
            n /= 10;
            count += 1;
        }
        let sign: &[u8] = if number < 0 { b"-" } else { b"" };
        for b in b"Unknown error ".iter().chain(sign).chain(digits[..count].iter().rev()) {
            unknown[at] = *b;
            at += 1;
        }
        return &unknown[..at];
    };
    known.as_bytes()
}

/// `strerror_r`, the POSIX one: fills the buffer; ERANGE if the message does not fit.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __xpg_strerror_r(number: c_int, to: *mut c_char, len: usize) -> c_int {
    let mut unknown = [0; 32];
    let message = text(number, &mut unknown);
    if len == 0 {
        return Errno::ERANGE.0;
    }
    let n = message.len().min(len - 1);
    // SAFETY: `n` and the NUL fit into the caller's `len` bytes.
    unsafe {
        core::ptr::copy_nonoverlapping(message.as_ptr(), to.cast(), n);
        *to.add(n) = 0;
    }
    if n < message.len() { Errno::ERANGE.0 } else { 0 }
}

/// `strerror_r`, glibc's: returns the message.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strerror_r(number: c_int, to: *mut c_char, len: usize) -> *mut c_char {
    // SAFETY: the caller's contract is the same.
    unsafe { __xpg_strerror_r(number, to, len) };
    to
}

/// `strerror`: the message, valid until the next call on any thread.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn strerror(number: c_int) -> *mut c_char {
    static BUFFER: [core::sync::atomic::AtomicU8; 64] = [const { core::sync::atomic::AtomicU8::new(0) }; 64];
    let at = BUFFER.as_ptr().cast_mut().cast::<c_char>();
    // SAFETY: 1. atomics may be written through a shared pointer; 2. concurrent calls may mix their messages, as C allows, but the last
    // byte is never written, so the text always ends.
    unsafe { __xpg_strerror_r(number, at, 64) };
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_fit_or_say_that_they_do_not() {
        let mut buffer = [1; 64];
        let text =
            |b: &[c_char]| b.iter().take_while(|c| **c != 0).map(|c| *c as u8 as char).collect::<std::string::String>();
        // SAFETY: the buffer has the length that is passed.
        unsafe {
            assert_eq!(__xpg_strerror_r(2, buffer.as_mut_ptr(), 64), 0);
            assert_eq!(text(&buffer), "No such file or directory");
            assert_eq!(__xpg_strerror_r(-7, buffer.as_mut_ptr(), 64), 0);
            assert_eq!(text(&buffer), "Unknown error -7");
            assert_eq!(__xpg_strerror_r(2, buffer.as_mut_ptr(), 8), 34);
            assert_eq!(text(&buffer), "No such");
            assert_eq!(__xpg_strerror_r(2, buffer.as_mut_ptr(), 0), 34);
        }
    }
}
