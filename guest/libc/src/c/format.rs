//! The engine behind the `printf` family: C99 with `%b`, `%m` and `%lc`/`%ls` in UTF-8, floating point exactly rounded.
//!
//! Refused with `EINVAL`: `%n` (it serves attackers more than programs), positional arguments (`%1$d`) and unknown conversions.

use super::decimal::{Decimal, LIMBS_DOUBLE, LIMBS_LONG};
use super::extern_c::{EILSEQ, EINVAL, EOVERFLOW, errno, set_errno, strerror};
use super::string::strnlen;
use super::valist::VaList;
use super::wide::encode;
use core::ffi::{c_char, c_int};

/// Where formatted text goes.
pub trait Sink {
    /// Takes the next bytes.
    fn put(&mut self, bytes: &[u8]);
}

/// Formats into `sink`; returns the bytes put, or -1 with errno set.
///
/// # Safety
/// `format` is a string whose conversions fit what the list holds.
pub unsafe fn format(sink: &mut dyn Sink, format: *const c_char, list: &mut VaList) -> c_int {
    let mut out = Output { sink, total: 0 };
    // SAFETY: the caller's.
    unsafe {
        match run(&mut out, format.cast(), list) {
            Ok(()) => c_int::try_from(out.total).unwrap_or_else(|_| {
                set_errno(EOVERFLOW);
                -1
            }),
            Err(error) => {
                set_errno(error);
                -1
            }
        }
    }
}

/// Counts what goes into a sink.
struct Output<'a> {
    sink: &'a mut dyn Sink,
    total: usize,
}

impl Output<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.sink.put(bytes);
        self.total += bytes.len();
    }

    fn fill(&mut self, byte: u8, mut n: usize) {
        let block = [byte; 32];
        while n > 0 {
            let part = n.min(32);
            self.put(&block[..part]);
            n -= part;
        }
    }

    /// Puts `prefix` and a body of `n` bytes, padded to the width.
    fn pad(&mut self, spec: &Spec, prefix: &[u8], n: usize, body: impl FnOnce(&mut Self)) {
        let padding = spec.width.saturating_sub(prefix.len() + n);
        if !spec.left && !spec.zero {
            self.fill(b' ', padding);
        }
        self.put(prefix);
        if !spec.left && spec.zero {
            self.fill(b'0', padding);
        }
        body(self);
        if spec.left {
            self.fill(b' ', padding);
        }
    }
}

/// What stands between `%` and the conversion.
#[derive(Default)]
struct Spec {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
    length: Length,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Length {
    Char,
    Short,
    #[default]
    Int,
    Long,
    LongDouble,
}

/// # Safety
/// As for [`format`].
unsafe fn run(out: &mut Output, mut at: *const u8, list: &mut VaList) -> Result<(), c_int> {
    // SAFETY: 1. nothing behind the zero of `at` is read; 2. the list fits by the caller's word.
    unsafe {
        loop {
            let start = at;
            while *at != 0 && *at != b'%' {
                at = at.add(1);
            }
            out.put(core::slice::from_raw_parts(start, at as usize - start as usize));
            if *at == 0 {
                return Ok(());
            }
            at = at.add(1);
            if *at == b'%' {
                out.put(b"%");
                at = at.add(1);
                continue;
            }
            let spec = Spec::parse(&mut at, list)?;
            convert(out, *at, spec, list)?;
            at = at.add(1);
        }
    }
}

impl Spec {
    /// # Safety
    /// As for [`format`].
    unsafe fn parse(at: &mut *const u8, list: &mut VaList) -> Result<Self, c_int> {
        let mut spec = Self::default();
        // SAFETY: as in `run`.
        unsafe {
            loop {
                match **at {
                    b'-' => spec.left = true,
                    b'+' => spec.plus = true,
                    b' ' => spec.space = true,
                    b'#' => spec.alternate = true,
                    b'0' => spec.zero = true,
                    // Grouping: there is none in the "C" locale.
                    b'\'' => {}
                    _ => break,
                }
                *at = at.add(1);
            }
            let width = number(at, list)?.unwrap_or(0);
            spec.left |= width < 0;
            spec.width = width.unsigned_abs() as usize;
            if **at == b'.' {
                *at = at.add(1);
                // A negative precision counts as none.
                spec.precision = usize::try_from(number(at, list)?.unwrap_or(0)).ok();
            }
            spec.length = match (**at, *at.add(usize::from(**at != 0))) {
                (b'h', b'h') => Length::Char,
                (b'h', _) => Length::Short,
                (b'l' | b'j' | b'z' | b't' | b'q', _) => Length::Long,
                (b'L', _) => Length::LongDouble,
                _ => Length::Int,
            };
            while let b'h' | b'l' | b'j' | b'z' | b't' | b'q' | b'L' = **at {
                *at = at.add(1);
            }
        }
        Ok(spec)
    }
}

/// Digits or `*`.
///
/// # Safety
/// As for [`format`].
unsafe fn number(at: &mut *const u8, list: &mut VaList) -> Result<Option<i32>, c_int> {
    let mut value = None;
    // SAFETY: as in `run`.
    unsafe {
        if **at == b'*' {
            *at = at.add(1);
            return Ok(Some(list.integer() as i32));
        }
        while (**at).is_ascii_digit() {
            let digit = i32::from(**at - b'0');
            value = Some(value.unwrap_or(0i32).checked_mul(10).and_then(|v| v.checked_add(digit)).ok_or(EOVERFLOW)?);
            *at = at.add(1);
        }
    }
    Ok(value)
}

/// # Safety
/// As for [`format`].
unsafe fn convert(out: &mut Output, conversion: u8, mut spec: Spec, list: &mut VaList) -> Result<(), c_int> {
    // SAFETY: the list fits by the caller's word.
    unsafe {
        match conversion {
            b'd' | b'i' => {
                let raw = list.integer().cast_signed();
                let value = match spec.length {
                    Length::Char => i64::from(raw as i8),
                    Length::Short => i64::from(raw as i16),
                    Length::Int => i64::from(raw as i32),
                    Length::Long | Length::LongDouble => raw,
                };
                let sign = sign(&spec, value < 0);
                integer(out, &mut spec, value.unsigned_abs(), 10, b'd', sign);
            }
            b'u' | b'x' | b'X' | b'o' | b'b' | b'B' => {
                let raw = list.integer();
                let value = match spec.length {
                    Length::Char => u64::from(raw as u8),
                    Length::Short => u64::from(raw as u16),
                    Length::Int => u64::from(raw as u32),
                    Length::Long | Length::LongDouble => raw,
                };
                let base = match conversion {
                    b'u' => 10,
                    b'o' => 8,
                    b'b' | b'B' => 2,
                    _ => 16,
                };
                integer(out, &mut spec, value, base, conversion, b"");
            }
            b'p' => match list.integer() {
                0 => text(out, &mut spec, b"(nil)"),
                value => {
                    spec.alternate = true;
                    let sign = sign(&spec, false);
                    integer(out, &mut spec, value, 16, b'x', sign);
                }
            },
            b'c' | b'C' => {
                let raw = list.integer();
                spec.precision = None;
                if conversion == b'C' || spec.length == Length::Long {
                    let mut buffer = [0; 4];
                    let n = encode(&mut buffer, raw as u32).ok_or(EILSEQ)?;
                    text(out, &mut spec, &buffer[..n]);
                } else {
                    text(out, &mut spec, &[raw as u8]);
                }
            }
            b's' if spec.length == Length::Long => wide_text(out, &mut spec, list.pointer())?,
            b'S' => wide_text(out, &mut spec, list.pointer())?,
            b's' => string(out, &mut spec, list.pointer()),
            b'm' => string(out, &mut spec, strerror(errno())),
            b'f' | b'F' | b'e' | b'E' | b'g' | b'G' | b'a' | b'A' => {
                if spec.length == Length::LongDouble {
                    let (mantissa, head) = list.long_double();
                    float_long(out, &mut spec, conversion, mantissa, head);
                } else {
                    float_double(out, &mut spec, conversion, list.double());
                }
            }
            _ => return Err(EINVAL),
        }
    }
    Ok(())
}

/// The sign of a number.
fn sign(spec: &Spec, negative: bool) -> &'static [u8] {
    match () {
        () if negative => b"-",
        () if spec.plus => b"+",
        () if spec.space => b" ",
        () => b"",
    }
}

fn integer(out: &mut Output, spec: &mut Spec, value: u64, base: u32, conversion: u8, sign: &[u8]) {
    let mut buffer = [0; 64];
    let mut first = buffer.len();
    let mut rest = value;
    while rest > 0 {
        first -= 1;
        let digit = (rest % u64::from(base)) as u8;
        buffer[first] = if digit < 10 { b'0' + digit } else { digit - 10 + (conversion - (b'x' - b'a')) };
        rest /= u64::from(base);
    }
    let digits = &buffer[first..];
    let mut least = spec.precision.unwrap_or(1);
    let mut prefix = sign;
    let base_prefix = [b'0', conversion];
    if spec.alternate {
        match base {
            8 => least = least.max(digits.len() + 1),
            10 => {}
            _ if value == 0 => {}
            // A sign comes along with a base only in `%+p`, which prints the sign in glibc.
            _ if sign.is_empty() => prefix = &base_prefix,
            _ => prefix = if sign == b"+" { b"+0x" } else { b" 0x" },
        }
    }
    if spec.precision.is_some() {
        spec.zero = false;
    }
    let zeros = least.saturating_sub(digits.len());
    out.pad(spec, prefix, zeros + digits.len(), |out| {
        out.fill(b'0', zeros);
        out.put(digits);
    });
}

/// Text that the precision does not cut.
fn text(out: &mut Output, spec: &mut Spec, text: &[u8]) {
    spec.zero = false;
    out.pad(spec, b"", text.len(), |out| out.put(text));
}

/// # Safety
/// `s` is null, or a string, or has as many bytes as the precision.
unsafe fn string(out: &mut Output, spec: &mut Spec, s: *const c_char) {
    if s.is_null() {
        // glibc prints all of it or nothing.
        let whole = spec.precision.is_none_or(|p| p >= 6);
        return text(out, spec, if whole { b"(null)" } else { b"" });
    }
    // SAFETY: the caller's.
    unsafe {
        let n = strnlen(s, spec.precision.unwrap_or(usize::MAX));
        text(out, spec, core::slice::from_raw_parts(s.cast(), n));
    }
}

/// # Safety
/// `s` is null, or a wide string, or has as many characters as the precision asks for.
unsafe fn wide_text(out: &mut Output, spec: &mut Spec, s: *const u32) -> Result<(), c_int> {
    if s.is_null() {
        // SAFETY: null.
        unsafe { string(out, spec, core::ptr::null()) };
        return Ok(());
    }
    let limit = spec.precision.unwrap_or(usize::MAX);
    let mut buffer = [0; 4];
    let (mut bytes, mut count) = (0, 0);
    // SAFETY: the string has not ended.
    unsafe {
        while bytes < limit && *s.add(count) != 0 {
            let n = encode(&mut buffer, *s.add(count)).ok_or(EILSEQ)?;
            if bytes + n > limit {
                break;
            }
            bytes += n;
            count += 1;
        }
        spec.zero = false;
        let wide = core::slice::from_raw_parts(s, count);
        out.pad(spec, b"", bytes, |out| {
            for &c in wide {
                let n = encode(&mut buffer, c).unwrap_or(0);
                out.put(&buffer[..n]);
            }
        });
    }
    Ok(())
}

/// A float without its sign: `mantissa * 2^exponent`.
#[derive(Clone, Copy)]
enum Float {
    Infinite,
    NotANumber,
    Finite { mantissa: u64, exponent: i32 },
}

// Not inlined, so that only a `long double` costs its array on the stack.
#[inline(never)]
fn float_double(out: &mut Output, spec: &mut Spec, conversion: u8, value: f64) {
    let bits = value.to_bits();
    let fraction = bits & ((1 << 52) - 1);
    let float = match (bits >> 52 & 0x7ff) as i32 {
        0x7ff if fraction == 0 => Float::Infinite,
        0x7ff => Float::NotANumber,
        0 => Float::Finite { mantissa: fraction, exponent: -1074 },
        e => Float::Finite { mantissa: fraction | 1 << 52, exponent: e - 1075 },
    };
    float_any(out, spec, conversion, value.is_sign_negative(), float, 52, &mut [0; LIMBS_DOUBLE]);
}

#[inline(never)]
fn float_long(out: &mut Output, spec: &mut Spec, conversion: u8, mantissa: u64, head: u16) {
    let float = match i32::from(head & 0x7fff) {
        0x7fff if mantissa << 1 == 0 => Float::Infinite,
        0x7fff => Float::NotANumber,
        // Without its explicit first bit, a number that is not subnormal is none.
        e if e != 0 && mantissa >> 63 == 0 => Float::NotANumber,
        e => Float::Finite { mantissa, exponent: e.max(1) - 16_446 },
    };
    // The first hexadecimal digit is a whole one, as in glibc.
    float_any(out, spec, conversion, head >> 15 != 0, float, 60, &mut [0; LIMBS_LONG]);
}

fn float_any(
    out: &mut Output,
    spec: &mut Spec,
    conversion: u8,
    negative: bool,
    float: Float,
    fraction_bits: u32,
    limbs: &mut [u32],
) {
    let prefix = sign(spec, negative);
    let upper = conversion.is_ascii_uppercase();
    let special: &[u8; 3] = match (float, upper) {
        (Float::Infinite, false) => b"inf",
        (Float::Infinite, true) => b"INF",
        (Float::NotANumber, false) => b"nan",
        (Float::NotANumber, true) => b"NAN",
        (Float::Finite { mantissa, exponent }, _) => {
            return match conversion | 0x20 {
                b'a' => hexadecimal(out, spec, prefix, upper, mantissa, exponent, fraction_bits),
                style => decimal(out, spec, prefix, style, upper, Decimal::new(limbs, mantissa, exponent)),
            };
        }
    };
    spec.zero = false;
    out.pad(spec, prefix, 3, |out| out.put(special));
}

/// `%f`, `%e` and `%g`.
fn decimal(out: &mut Output, spec: &Spec, prefix: &[u8], style: u8, upper: bool, mut number: Decimal) {
    let mut precision = spec.precision.unwrap_or(6).min(i32::MAX as usize / 2) as i32;
    let mut exponent = number.top();
    let scientific = match style {
        b'f' => {
            number.round(-precision);
            false
        }
        _ => {
            if style == b'g' {
                precision = (precision - 1).max(0);
            }
            number.round(exponent - precision);
            exponent = number.top();
            style == b'e' || exponent < -4 || exponent > precision
        }
    };
    if !scientific {
        if style == b'g' {
            precision -= exponent;
        }
        exponent = 0;
    }
    if style == b'g' && !spec.alternate {
        precision = precision.min(number.places() + exponent).max(0);
        while precision > 0 && number.digit(exponent - precision) == 0 {
            precision -= 1;
        }
    }
    let first = if scientific { exponent } else { number.top().max(0) };
    let point = precision > 0 || spec.alternate;
    let mut suffix = [0; 8];
    let suffix =
        if scientific { exponent_text(&mut suffix, if upper { b'E' } else { b'e' }, exponent, 2) } else { b"" };
    let n = (first - exponent + 1) as usize + usize::from(point) + precision as usize + suffix.len();
    out.pad(spec, prefix, n, |out| {
        digits(out, &number, first, exponent);
        if point {
            out.put(b".");
        }
        digits(out, &number, exponent - 1, exponent - precision);
        out.put(suffix);
    });
}

/// Puts the digits of the powers `first` down to `last`.
fn digits(out: &mut Output, number: &Decimal, first: i32, last: i32) {
    let mut buffer = [0; 32];
    let mut n = 0;
    for at in (last..=first).rev() {
        buffer[n] = b'0' + number.digit(at);
        n += 1;
        if n == buffer.len() {
            out.put(&buffer);
            n = 0;
        }
    }
    out.put(&buffer[..n]);
}

/// An exponent as `e+05`, with at least `least` digits.
fn exponent_text(buffer: &mut [u8; 8], letter: u8, exponent: i32, least: usize) -> &[u8] {
    let mut at = buffer.len();
    let mut rest = exponent.unsigned_abs();
    while rest > 0 || buffer.len() - at < least {
        at -= 1;
        buffer[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    at -= 2;
    buffer[at] = letter;
    buffer[at + 1] = if exponent < 0 { b'-' } else { b'+' };
    &buffer[at..]
}

/// `%a`: a digit, a point and the fraction.
fn hexadecimal(
    out: &mut Output,
    spec: &Spec,
    sign: &[u8],
    upper: bool,
    mantissa: u64,
    exponent: i32,
    fraction_bits: u32,
) {
    let mut exponent = if mantissa == 0 { 0 } else { exponent + fraction_bits.cast_signed() };
    let nibbles = (fraction_bits / 4) as usize;
    let wanted = spec.precision.unwrap_or(nibbles);
    let mut value = u128::from(mantissa);
    if wanted < nibbles {
        let cut = (nibbles - wanted) as u32 * 4;
        let (rest, half) = (value & ((1 << cut) - 1), 1 << (cut - 1));
        value >>= cut;
        if rest > half || (rest == half && value & 1 != 0) {
            value += 1;
        }
        value <<= cut;
    }
    if value >> fraction_bits > 15 {
        value >>= 4;
        exponent += 4;
    }
    let mut text = [0; 16];
    let letters = if upper { b"0123456789ABCDEF" } else { b"0123456789abcdef" };
    for (i, digit) in text[..=nibbles].iter_mut().enumerate() {
        *digit = letters[(value >> (4 * (nibbles - i)) & 15) as usize];
    }
    let mut shown = wanted.min(nibbles);
    if spec.precision.is_none() {
        while shown > 0 && text[shown] == b'0' {
            shown -= 1;
        }
    }
    let zeros = if spec.precision.is_some() { wanted - shown } else { 0 };
    let point = shown + zeros > 0 || spec.alternate;
    let mut prefix = [b'0'; 3];
    prefix[..sign.len()].copy_from_slice(sign);
    prefix[sign.len() + 1] = if upper { b'X' } else { b'x' };
    let mut suffix = [0; 8];
    let suffix = exponent_text(&mut suffix, if upper { b'P' } else { b'p' }, exponent, 1);
    out.pad(spec, &prefix[..sign.len() + 2], 1 + usize::from(point) + shown + zeros + suffix.len(), |out| {
        out.put(&text[..1]);
        if point {
            out.put(b".");
        }
        out.put(&text[1..=shown]);
        out.fill(b'0', zeros);
        out.put(suffix);
    });
}
