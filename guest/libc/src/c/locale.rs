//! The only locale, "C", with UTF-8 as its encoding.

use core::ffi::{CStr, c_char, c_int};
use core::ptr::null_mut;

/// Names the locale, or sets it if it is the one there is.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn setlocale(_category: c_int, name: *const c_char) -> *mut c_char {
    // SAFETY: C contract.
    let known = name.is_null()
        || matches!(unsafe { CStr::from_ptr(name) }.to_bytes(), b"" | b"C" | b"POSIX" | b"C.UTF-8" | b"C.utf8");
    if known { c"C".as_ptr().cast_mut() } else { null_mut() }
}

/// How numbers are written: `struct lconv` of C.
#[repr(C)]
pub struct Conventions {
    decimal_point: *const c_char,
    texts: [*const c_char; 9],
    /// All of them "not available".
    numbers: [c_char; 14],
}

// SAFETY: constants.
unsafe impl Sync for Conventions {}

static CONVENTIONS: Conventions =
    Conventions { decimal_point: c".".as_ptr(), texts: [c"".as_ptr(); 9], numbers: [c_char::MAX; 14] };

/// How numbers are written.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn localeconv() -> *const Conventions {
    &raw const CONVENTIONS
}

/// Texts of the locale: its encoding and its decimal point; all else is empty.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn nl_langinfo(item: c_int) -> *const c_char {
    match item {
        // CODESET and RADIXCHAR in glibc's numbers.
        14 => c"UTF-8".as_ptr(),
        0x1_0000 => c".".as_ptr(),
        _ => c"".as_ptr(),
    }
}
