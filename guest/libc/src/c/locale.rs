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

/// What a `locale_t` points to.
static LOCALE: u8 = 0;

/// A locale, if it is the one there is.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn newlocale(_mask: c_int, name: *const c_char, _base: *const u8) -> *const u8 {
    // SAFETY: C contract.
    if unsafe { setlocale(0, name) }.is_null() {
        super::extern_c::set_errno(super::extern_c::ENOENT);
        return core::ptr::null();
    }
    &raw const LOCALE
}

/// The locale of this thread: always the same.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn uselocale(_locale: *const u8) -> *const u8 {
    &raw const LOCALE
}

/// The same locale.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn duplocale(locale: *const u8) -> *const u8 {
    locale
}

/// Nothing to do: there is one locale, and it stays.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn freelocale(_locale: *const u8) {}

/// `strtod`: the locale is always the same.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strtod_l(s: *const c_char, end: *mut *mut c_char, _locale: *const u8) -> f64 {
    // SAFETY: C contract.
    unsafe { super::strto::strtod(s, end) }
}

/// `strtof`: the locale is always the same.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strtof_l(s: *const c_char, end: *mut *mut c_char, _locale: *const u8) -> f32 {
    // SAFETY: C contract.
    unsafe { super::strto::strtof(s, end) }
}
