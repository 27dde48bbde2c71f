//! Numbers from text.

use super::ctype::is_space;
use super::extern_c::{EINVAL, ERANGE, set_errno};
use core::arch::naked_asm;
use core::ffi::{c_char, c_int, c_long};

/// Stores where parsing ended, if the caller wants to know.
///
/// # Safety
/// `end` is null or writable.
unsafe fn store_end(end: *mut *mut c_char, at: *const u8) {
    if !end.is_null() {
        // SAFETY: the caller's.
        unsafe { *end = at.cast_mut().cast() };
    }
}

/// Skips white space and a sign; returns where the rest starts, and whether the sign was a minus.
///
/// # Safety
/// `at` is a string.
unsafe fn skip_sign(mut at: *const u8) -> (*const u8, bool) {
    // SAFETY: the string has not ended.
    unsafe {
        while is_space(*at) {
            at = at.add(1);
        }
        match *at {
            b'-' => (at.add(1), true),
            b'+' => (at.add(1), false),
            _ => (at, false),
        }
    }
}

/// Which prefixes count.
#[derive(Clone, Copy, PartialEq)]
enum Standard {
    C99,
    /// `0b` too.
    C23,
}

/// A sign, and an amount or none if it is too large for 64 bits.
type Whole = (bool, Option<u64>);

/// # Safety
/// `s` is a string, and `end` null or writable.
unsafe fn whole(s: *const c_char, end: *mut *mut c_char, base: c_int, standard: Standard) -> Whole {
    let Ok(mut base @ (0 | 2..=36)) = u32::try_from(base) else {
        set_errno(EINVAL);
        return (false, Some(0));
    };
    let digit = |byte: u8, base: u32| char::from(byte).to_digit(base);
    // SAFETY: the string has not ended.
    unsafe {
        let (mut at, negative) = skip_sign(s.cast());
        // A prefix counts only with a digit behind it.
        if *at == b'0' {
            let prefix = match *at.add(1) | 0x20 {
                b'x' => 16,
                b'b' if standard == Standard::C23 => 2,
                _ => 0,
            };
            if prefix != 0 && (base == 0 || base == prefix) && digit(*at.add(2), prefix).is_some() {
                base = prefix;
                at = at.add(2);
            } else if base == 0 {
                base = 8;
            }
        } else if base == 0 {
            base = 10;
        }
        let start = at;
        let mut value = Some(0u64);
        while let Some(d) = digit(*at, base) {
            value = value.and_then(|v| v.checked_mul(base.into())?.checked_add(d.into()));
            at = at.add(1);
        }
        store_end(end, if at == start { s.cast() } else { at });
        (negative, value)
    }
}

fn signed((negative, amount): Whole) -> i64 {
    let (value, limit) = match negative {
        false => (amount.and_then(|a| i64::try_from(a).ok()), i64::MAX),
        true => (amount.and_then(|a| 0i64.checked_sub_unsigned(a)), i64::MIN),
    };
    value.unwrap_or_else(|| {
        set_errno(ERANGE);
        limit
    })
}

fn unsigned((negative, amount): Whole) -> u64 {
    match amount {
        // C says that a minus negates the unsigned value.
        Some(value) if negative => value.wrapping_neg(),
        Some(value) => value,
        None => {
            set_errno(ERANGE);
            u64::MAX
        }
    }
}

/// Defines the integer conversions under their many names.
macro_rules! whole_numbers {
    ($($name:ident $ret:ty, $to:ident, $standard:ident;)*) => {$(
        /// Converts text to a whole number; out of range is the nearest value and `ERANGE`.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $name(s: *const c_char, end: *mut *mut c_char, base: c_int) -> $ret {
            // SAFETY: C contract.
            $to(unsafe { whole(s, end, base, Standard::$standard) })
        }
    )*};
}

whole_numbers! {
    strtol i64, signed, C99;
    strtoll i64, signed, C99;
    strtoimax i64, signed, C99;
    strtoq i64, signed, C99;
    strtoul u64, unsigned, C99;
    strtoull u64, unsigned, C99;
    strtoumax u64, unsigned, C99;
    strtouq u64, unsigned, C99;
    __isoc23_strtol i64, signed, C23;
    __isoc23_strtoll i64, signed, C23;
    __isoc23_strtoimax i64, signed, C23;
    __isoc23_strtoul u64, unsigned, C23;
    __isoc23_strtoull u64, unsigned, C23;
    __isoc23_strtoumax u64, unsigned, C23;
}

/// A decimal integer.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn atoi(s: *const c_char) -> c_int {
    // SAFETY: C contract.
    unsafe { strtol(s, core::ptr::null_mut(), 10) as c_int }
}

/// A decimal integer.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn atol(s: *const c_char) -> c_long {
    // SAFETY: C contract.
    unsafe { strtol(s, core::ptr::null_mut(), 10) }
}

/// A decimal integer.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn atoll(s: *const c_char) -> i64 {
    // SAFETY: C contract.
    unsafe { strtol(s, core::ptr::null_mut(), 10) }
}

/// A floating point number.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn atof(s: *const c_char) -> f64 {
    // SAFETY: C contract.
    unsafe { strtod(s, core::ptr::null_mut()) }
}

/// What text says, before it is rounded to a format.
enum Number<'a> {
    Infinite,
    Nan,
    /// Text that Rust's parser understands, and whether one of its digits is not zero.
    Decimal(&'a str, bool),
    /// `mantissa * 2^exponent`, and a little more if `sticky`.
    Binary {
        mantissa: u64,
        sticky: bool,
        exponent: i64,
    },
}

/// Reads a number without its sign; returns it and its length, or none.
///
/// # Safety
/// `s` is a string.
unsafe fn number<'a>(s: *const u8) -> Option<(Number<'a>, usize)> {
    // SAFETY: 1. nothing behind the zero is read; 2. decimal text is ASCII.
    unsafe {
        let starts =
            |at: usize, word: &[u8]| word.iter().enumerate().all(|(i, &b)| (*s.add(at + i)).to_ascii_lowercase() == b);
        match *s | 0x20 {
            b'i' if starts(0, b"inf") => return Some((Number::Infinite, if starts(3, b"inity") { 8 } else { 3 })),
            b'n' if starts(0, b"nan") => {
                let mut n = 3;
                if *s.add(n) == b'(' {
                    n += 1;
                    while (*s.add(n)).is_ascii_alphanumeric() || *s.add(n) == b'_' {
                        n += 1;
                    }
                    n = if *s.add(n) == b')' { n + 1 } else { 3 };
                }
                return Some((Number::Nan, n));
            }
            _ => {}
        }
        if *s == b'0'
            && *s.add(1) | 0x20 == b'x'
            && ((*s.add(2)).is_ascii_hexdigit() || (*s.add(2) == b'.' && (*s.add(3)).is_ascii_hexdigit()))
        {
            return Some(hexadecimal(s));
        }
        let (mut n, mut digits, mut nonzero) = (0, 0, false);
        let mut point = false;
        loop {
            match *s.add(n) {
                b'.' if !point => point = true,
                c if c.is_ascii_digit() => {
                    digits += 1;
                    nonzero |= c != b'0';
                }
                _ => break,
            }
            n += 1;
        }
        if digits == 0 {
            return None;
        }
        n += exponent(s.add(n), b'e').1;
        let text = core::str::from_utf8_unchecked(core::slice::from_raw_parts(s, n));
        Some((Number::Decimal(text, nonzero), n))
    }
}

/// Reads an exponent: its value, limited to what still matters, and its length.
///
/// # Safety
/// `s` is a string.
unsafe fn exponent(s: *const u8, letter: u8) -> (i64, usize) {
    // SAFETY: nothing behind the zero is read.
    unsafe {
        if *s | 0x20 != letter {
            return (0, 0);
        }
        let negative = *s.add(1) == b'-';
        let mut n = 1 + usize::from(negative || *s.add(1) == b'+');
        if !(*s.add(n)).is_ascii_digit() {
            return (0, 0);
        }
        let mut value = 0i64;
        while (*s.add(n)).is_ascii_digit() {
            value = (value * 10 + i64::from(*s.add(n) - b'0')).min(1 << 50);
            n += 1;
        }
        (if negative { -value } else { value }, n)
    }
}

/// # Safety
/// `s` is a string that starts with `0x` and a digit, or a point and a digit.
unsafe fn hexadecimal<'a>(s: *const u8) -> (Number<'a>, usize) {
    let (mut mantissa, mut sticky, mut scale, mut point) = (0u64, false, 0i64, false);
    let mut n = 2;
    // SAFETY: nothing behind the zero is read.
    unsafe {
        loop {
            let byte = *s.add(n);
            if byte == b'.' && !point {
                point = true;
            } else if let Some(digit) = char::from(byte).to_digit(16) {
                if mantissa >> 60 == 0 {
                    mantissa = mantissa << 4 | u64::from(digit);
                    scale -= if point { 4 } else { 0 };
                } else {
                    sticky |= digit != 0;
                    scale += if point { 0 } else { 4 };
                }
            } else {
                break;
            }
            n += 1;
        }
        let (exponent, length) = exponent(s.add(n), b'p');
        (Number::Binary { mantissa, sticky, exponent: exponent + scale }, n + length)
    }
}

/// Rounds `mantissa * 2^exponent` to a format with `digits` bits and the least normal exponent `least`: the bits of the format, and
/// whether the range was left. Half to even.
fn round(mantissa: u64, sticky: bool, exponent: i64, digits: u32, least: i64) -> (u64, bool) {
    if mantissa == 0 {
        return (0, false);
    }
    let zeros = mantissa.leading_zeros();
    let mantissa = mantissa << zeros;
    // Of the first bit.
    let first = exponent - i64::from(zeros) + 63;
    let infinity = (((1 - 2 * least) + 2) as u64) << (digits - 1);
    if first > -least + 1 {
        return (infinity, true);
    }
    let cut = (i64::from(64 - digits) + (least - first).max(0)).min(100) as u32;
    let (wide, half) = (u128::from(mantissa), 1u128 << (cut - 1));
    let rest = (wide & ((1 << cut) - 1)) << 1 | u128::from(sticky);
    let mut value = (wide >> cut) as u64;
    if rest > half << 1 || (rest == half << 1 && value & 1 != 0) {
        value += 1;
    }
    let inexact = rest != 0;
    if first < least {
        return (value, inexact);
    }
    let bits = (((first - least) as u64) << (digits - 1)) + value;
    (bits.min(infinity), bits >= infinity)
}

/// Defines `strtod` and `strtof`.
macro_rules! floating {
    ($name:ident, $type:ty, $digits:literal, $least:literal) => {
        /// Converts text to a floating point number, correctly rounded; out of range is infinity, zero or a subnormal number, and `ERANGE`.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $name(s: *const c_char, end: *mut *mut c_char) -> $type {
            // SAFETY: C contract.
            unsafe {
                let (start, negative) = skip_sign(s.cast());
                let Some((number, n)) = number(start) else {
                    store_end(end, s.cast());
                    return 0.0;
                };
                store_end(end, start.add(n));
                let (value, out_of_range) = match number {
                    Number::Infinite => (<$type>::INFINITY, false),
                    Number::Nan => (<$type>::NAN, false),
                    Number::Decimal(text, nonzero) => {
                        let value: $type = text.parse().unwrap_or(0.0);
                        (value, nonzero && (value.is_infinite() || value < <$type>::MIN_POSITIVE))
                    }
                    Number::Binary { mantissa, sticky, exponent } => {
                        let (bits, out) = round(mantissa, sticky, exponent, $digits, $least);
                        (<$type>::from_bits(bits as _), out)
                    }
                };
                if out_of_range {
                    set_errno(ERANGE);
                }
                if negative { -value } else { value }
            }
        }
    };
}

floating!(strtod, f64, 53, -1022);
floating!(strtof, f32, 24, -126);

/// Converts text to a `long double` with the precision of a `double`: a value that Rust has no type for, returned on the x87 stack.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn strtold(s: *const c_char, end: *mut *mut c_char) {
    naked_asm!("sub rsp, 24", "call {}", "movsd [rsp], xmm0", "fld qword ptr [rsp]", "add rsp, 24", "ret", sym strtod)
}
