//! The `scanf` family: C99, without `%ms`. A number may have up to 500 characters.

use super::ctype::is_space;
use super::extern_c::{EINVAL, set_errno};
use super::stdio::{EOF, File, Stream, stdin, with};
use super::strto::{__isoc23_strtoll, __isoc23_strtoull, strtod, strtof, strtoll, strtoull};
use super::valist::{VaList, variadic};
use core::arch::asm;
use core::ffi::{c_char, c_int};
use core::ptr::null_mut;

/// Where text comes from.
trait Source {
    fn next(&mut self) -> Option<u8>;
    /// Takes the last byte back.
    fn back(&mut self, byte: u8);
}

/// A string.
struct Text(*const u8);

impl Source for Text {
    fn next(&mut self) -> Option<u8> {
        // SAFETY: the string has not ended.
        let byte = unsafe { *self.0 };
        if byte == 0 {
            return None;
        }
        self.0 = self.0.wrapping_add(1);
        Some(byte)
    }

    fn back(&mut self, _byte: u8) {
        self.0 = self.0.wrapping_sub(1);
    }
}

impl Source for Stream {
    fn next(&mut self) -> Option<u8> {
        self.get()
    }

    fn back(&mut self, byte: u8) {
        self.unget(byte);
    }
}

/// A source that one can look ahead into.
struct Input<'a> {
    source: &'a mut dyn Source,
    ahead: Option<u8>,
    taken: usize,
    ended: bool,
}

impl Input<'_> {
    fn peek(&mut self) -> Option<u8> {
        if self.ahead.is_none() && !self.ended {
            self.ahead = self.source.next();
            self.ended = self.ahead.is_none();
        }
        self.ahead
    }

    fn skip(&mut self) {
        self.ahead = None;
        self.taken += 1;
    }

    fn take_if(&mut self, wanted: impl FnOnce(u8) -> bool) -> Option<u8> {
        let byte = self.peek().filter(|&b| wanted(b))?;
        self.skip();
        Some(byte)
    }

    fn skip_space(&mut self) {
        while self.take_if(is_space).is_some() {}
    }
}

/// The characters of a number, limited by the width.
struct Word {
    text: [u8; 501],
    used: usize,
    limit: usize,
}

impl Word {
    fn new(width: usize) -> Self {
        Self { text: [0; 501], used: 0, limit: width.min(500) }
    }

    fn take(&mut self, input: &mut Input, wanted: impl FnOnce(u8) -> bool) -> bool {
        if self.used == self.limit {
            return false;
        }
        let Some(byte) = input.take_if(wanted) else { return false };
        self.text[self.used] = byte;
        self.used += 1;
        true
    }

    fn pointer(&self) -> *const c_char {
        self.text.as_ptr().cast()
    }

    /// Takes a whole number of a base, which 0 leaves to the prefix.
    fn whole(&mut self, input: &mut Input, mut base: u32, binary: bool) {
        self.take(input, |b| b == b'+' || b == b'-');
        if matches!(base, 0 | 16 | 2) && self.take(input, |b| b == b'0') {
            if base != 2 && self.take(input, |b| b | 0x20 == b'x') {
                base = 16;
            } else if base != 16 && binary && self.take(input, |b| b | 0x20 == b'b') {
                base = 2;
            } else if base == 0 {
                base = 8;
            }
        }
        let base = if base == 0 { 10 } else { base };
        while self.take(input, |b| char::from(b).is_digit(base)) {}
    }

    /// Takes a floating point number.
    fn floating(&mut self, input: &mut Input) {
        self.take(input, |b| b == b'+' || b == b'-');
        for word in ["infinity", "nan"] {
            if self.take(input, |b| b | 0x20 == word.as_bytes()[0]) {
                for &letter in &word.as_bytes()[1..] {
                    if !self.take(input, |b| b | 0x20 == letter) {
                        break;
                    }
                }
                return;
            }
        }
        let mut base = 10;
        if self.take(input, |b| b == b'0') && self.take(input, |b| b | 0x20 == b'x') {
            base = 16;
        }
        let mut point = false;
        while self.take(input, |b| char::from(b).is_digit(base) || (b == b'.' && !core::mem::replace(&mut point, true)))
        {
        }
        let letter = if base == 16 { b'p' } else { b'e' };
        if self.take(input, |b| b | 0x20 == letter) {
            self.take(input, |b| b == b'+' || b == b'-');
            while self.take(input, |b| b.is_ascii_digit()) {}
        }
    }
}

/// Sizes of targets.
#[derive(Clone, Copy, PartialEq)]
enum Length {
    Char,
    Short,
    Int,
    Long,
    LongDouble,
}

/// Stores the low bytes of a number.
///
/// # Safety
/// `target` is null or has the size.
unsafe fn store(target: *mut u8, value: u64, length: Length) {
    if target.is_null() {
        return;
    }
    // SAFETY: the caller's.
    unsafe {
        match length {
            Length::Char => *target = value as u8,
            Length::Short => target.cast::<u16>().write(value as u16),
            Length::Int => target.cast::<u32>().write(value as u32),
            Length::Long | Length::LongDouble => target.cast::<u64>().write(value),
        }
    }
}

/// A set of bytes from `%[…]`.
///
/// # Safety
/// `at` is a string, behind the `[`.
unsafe fn scan_set(at: &mut *const u8) -> Result<[bool; 256], c_int> {
    let mut set = [false; 256];
    // SAFETY: the string has not ended.
    unsafe {
        let inverted = **at == b'^';
        if inverted {
            *at = at.add(1);
        }
        let mut first = true;
        while **at != b']' || first {
            let from = **at;
            if from == 0 {
                return Err(EINVAL);
            }
            let mut to = from;
            if *at.add(1) == b'-' && *at.add(2) != b']' && *at.add(2) != 0 {
                to = *at.add(2);
                *at = at.add(2);
            }
            for byte in from..=to {
                set[usize::from(byte)] = true;
            }
            *at = at.add(1);
            first = false;
        }
        *at = at.add(1);
        if inverted {
            set = set.map(|b| !b);
        }
    }
    Ok(set)
}

/// How a conversion ended if not well.
enum Stop {
    /// The input is over.
    Input,
    /// The input does not match.
    Matching,
    /// The format is wrong.
    Format(c_int),
}

/// # Safety
/// `format` is a string whose conversions fit what the list holds.
unsafe fn scan(source: &mut dyn Source, format: *const c_char, list: &mut VaList, binary: bool) -> c_int {
    let mut input = Input { source, ahead: None, taken: 0, ended: false };
    let mut stored = 0;
    // SAFETY: the caller's.
    let result = unsafe { run(&mut input, format.cast(), list, &mut stored, binary) };
    if let Some(byte) = input.ahead {
        input.source.back(byte);
    }
    match result {
        Err(Stop::Input) if stored == 0 => EOF,
        Err(Stop::Format(error)) => {
            set_errno(error);
            if stored == 0 { EOF } else { stored }
        }
        _ => stored,
    }
}

/// # Safety
/// As for [`scan`].
unsafe fn run(
    input: &mut Input,
    mut at: *const u8,
    list: &mut VaList,
    stored: &mut c_int,
    binary: bool,
) -> Result<(), Stop> {
    // SAFETY: 1. nothing behind the zero of the format is read; 2. the list fits by the caller's word.
    unsafe {
        while *at != 0 {
            let byte = *at;
            at = at.add(1);
            if is_space(byte) {
                input.skip_space();
                continue;
            }
            if byte != b'%' || *at == b'%' {
                if byte == b'%' {
                    at = at.add(1);
                    input.skip_space();
                }
                match input.peek() {
                    Some(b) if b == byte => input.skip(),
                    Some(_) => return Err(Stop::Matching),
                    None => return Err(Stop::Input),
                }
                continue;
            }
            let suppressed = *at == b'*';
            if suppressed {
                at = at.add(1);
            }
            let mut width = 0usize;
            while (*at).is_ascii_digit() {
                width = width.saturating_mul(10).saturating_add(usize::from(*at - b'0'));
                at = at.add(1);
            }
            let length = match (*at, *at.add(usize::from(*at != 0))) {
                (b'h', b'h') => Length::Char,
                (b'h', _) => Length::Short,
                (b'l', b'l') | (b'L', _) => Length::LongDouble,
                (b'l' | b'j' | b'z' | b't' | b'q', _) => Length::Long,
                _ => Length::Int,
            };
            while let b'h' | b'l' | b'j' | b'z' | b't' | b'q' | b'L' = *at {
                at = at.add(1);
            }
            let conversion = *at;
            at = at.add(usize::from(conversion != 0));
            if !matches!(conversion, b'c' | b'[' | b'n') {
                input.skip_space();
            }
            let target = |list: &mut VaList| if suppressed { null_mut() } else { list.pointer::<u8>() };
            if conversion == b'n' {
                store(target(list), input.taken as u64, length);
                continue;
            }
            if input.peek().is_none() {
                return Err(Stop::Input);
            }
            let limit = if width == 0 { usize::MAX } else { width };
            match conversion {
                b'd' | b'i' | b'u' | b'o' | b'x' | b'X' | b'p' => {
                    let base = match conversion {
                        b'i' => 0,
                        b'o' => 8,
                        b'x' | b'X' | b'p' => 16,
                        _ => 10,
                    };
                    let mut word = Word::new(limit);
                    word.whole(input, base, binary && base == 0);
                    let mut end = null_mut();
                    let (text, base) = (word.pointer(), base.cast_signed());
                    let value = match (matches!(conversion, b'd' | b'i'), binary) {
                        (true, false) => strtoll(text, &raw mut end, base).cast_unsigned(),
                        (true, true) => __isoc23_strtoll(text, &raw mut end, base).cast_unsigned(),
                        (false, false) => strtoull(text, &raw mut end, base),
                        (false, true) => __isoc23_strtoull(text, &raw mut end, base),
                    };
                    // `0x` is 0, as in glibc; C would have it fail.
                    if core::ptr::eq(end, text) {
                        return Err(Stop::Matching);
                    }
                    store(target(list), value, if conversion == b'p' { Length::Long } else { length });
                }
                b'a' | b'A' | b'e' | b'E' | b'f' | b'F' | b'g' | b'G' => {
                    let mut word = Word::new(limit);
                    word.floating(input);
                    let mut end = null_mut();
                    let text = word.pointer();
                    let single = if length == Length::Int { strtof(text, &raw mut end) } else { 0.0 };
                    let double = if length == Length::Int { 0.0 } else { strtod(text, &raw mut end) };
                    // `1e` is 1, as in glibc; C would have it fail.
                    let used = end as usize - text as usize;
                    if used == 0 || (used != word.used && !matches!(word.text[used] | 0x20, b'e' | b'p')) {
                        return Err(Stop::Matching);
                    }
                    let target = target(list);
                    match length {
                        _ if target.is_null() => {}
                        Length::Int => target.cast::<f32>().write(single),
                        Length::LongDouble => {
                            asm!("fld qword ptr [{}]", "fstp tbyte ptr [{}]", in(reg) &raw const double, in(reg) target,
                            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _, options(nostack))
                        }
                        _ => target.cast::<f64>().write(double),
                    }
                }
                b'c' | b's' | b'[' => {
                    if length == Length::Long {
                        // Wide targets.
                        return Err(Stop::Format(EINVAL));
                    }
                    let set = if conversion == b'[' { scan_set(&mut at).map_err(Stop::Format)? } else { [true; 256] };
                    let limit = if conversion == b'c' { width.max(1) } else { limit };
                    let target = target(list);
                    let mut n = 0;
                    while n < limit {
                        let wanted = |b: u8| set[usize::from(b)] && (conversion != b's' || !is_space(b));
                        let Some(byte) = input.take_if(wanted) else { break };
                        if !target.is_null() {
                            *target.add(n) = byte;
                        }
                        n += 1;
                    }
                    if n == 0 {
                        return Err(Stop::Matching);
                    }
                    if conversion != b'c' && !target.is_null() {
                        *target.add(n) = 0;
                    }
                }
                _ => return Err(Stop::Format(EINVAL)),
            }
            *stored += c_int::from(!suppressed);
        }
    }
    Ok(())
}

/// Defines the functions that differ in whether `%i` takes `0b`.
macro_rules! scanners {
    ($binary:literal: $string:ident, $stream:ident, $standard:ident) => {
        /// Scans a string.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $string(s: *const c_char, format: *const c_char, list: *mut VaList) -> c_int {
            // SAFETY: C contract.
            unsafe { scan(&mut Text(s.cast()), format, &mut *list, $binary) }
        }

        /// Scans a stream.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $stream(file: *mut File, format: *const c_char, list: *mut VaList) -> c_int {
            // SAFETY: C contract.
            unsafe { with(file, |file| scan(file, format, &mut *list, $binary)) }
        }

        /// Scans `stdin`.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $standard(format: *const c_char, list: *mut VaList) -> c_int {
            // SAFETY: C contract.
            unsafe { $stream(stdin.get(), format, list) }
        }
    };
}

scanners!(false: vsscanf, vfscanf, vscanf);
scanners!(true: __isoc23_vsscanf, __isoc23_vfscanf, __isoc23_vscanf);

/// [`vsscanf`] under the name that glibc's headers give it.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __isoc99_vsscanf(s: *const c_char, format: *const c_char, list: *mut VaList) -> c_int {
    // SAFETY: C contract.
    unsafe { vsscanf(s, format, list) }
}

/// [`vfscanf`] under the name that glibc's headers give it.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __isoc99_vfscanf(file: *mut File, format: *const c_char, list: *mut VaList) -> c_int {
    // SAFETY: C contract.
    unsafe { vfscanf(file, format, list) }
}

variadic! {
    /// Scans a string.
    sscanf(s: *const c_char, format: *const c_char) -> c_int, 16, "rdx", vsscanf;
    /// Scans a string.
    __isoc99_sscanf(s: *const c_char, format: *const c_char) -> c_int, 16, "rdx", vsscanf;
    /// Scans a string.
    __isoc23_sscanf(s: *const c_char, format: *const c_char) -> c_int, 16, "rdx", __isoc23_vsscanf;
    /// Scans a stream.
    fscanf(file: *mut File, format: *const c_char) -> c_int, 16, "rdx", vfscanf;
    /// Scans a stream.
    __isoc99_fscanf(file: *mut File, format: *const c_char) -> c_int, 16, "rdx", vfscanf;
    /// Scans a stream.
    __isoc23_fscanf(file: *mut File, format: *const c_char) -> c_int, 16, "rdx", __isoc23_vfscanf;
    /// Scans `stdin`.
    scanf(format: *const c_char) -> c_int, 8, "rsi", vscanf;
    /// Scans `stdin`.
    __isoc99_scanf(format: *const c_char) -> c_int, 8, "rsi", vscanf;
    /// Scans `stdin`.
    __isoc23_scanf(format: *const c_char) -> c_int, 8, "rsi", __isoc23_vscanf;
}
