//! Wide characters: UTF-32 inside, UTF-8 outside. The state that these functions carry along is never needed between calls for whole
//! characters; `mbrtowc` keeps the bytes of a partial one in it.

use super::extern_c::{EILSEQ, set_errno};
use core::ffi::{c_char, c_int};

/// Writes a character in UTF-8; returns its bytes, or none if it is no character.
pub fn encode(buffer: &mut [u8; 4], c: u32) -> Option<usize> {
    Some(char::from_u32(c)?.encode_utf8(buffer).len())
}

/// What the start of some bytes is.
enum Decoded {
    /// A character.
    Char(u32),
    /// The start of one.
    Partial,
    /// None.
    Wrong,
}

fn decode(bytes: &[u8]) -> Decoded {
    let Some(&first) = bytes.first() else { return Decoded::Partial };
    let n = match first {
        0..0x80 => return Decoded::Char(first.into()),
        0xc2..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0..0xf5 => 4,
        _ => return Decoded::Wrong,
    };
    match core::str::from_utf8(&bytes[..n.min(bytes.len())]) {
        Ok(text) => text.chars().next().map_or(Decoded::Wrong, |c| Decoded::Char(c.into())),
        Err(error) if error.error_len().is_none() => Decoded::Partial,
        Err(_) => Decoded::Wrong,
    }
}

/// glibc's conversion state: a partial character.
#[repr(C)]
pub struct State {
    count: u32,
    bytes: [u8; 4],
}

/// Not a character.
const WRONG: usize = usize::MAX;
/// The start of a character.
const PARTIAL: usize = usize::MAX - 1;

/// The most bytes that a character has.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn __ctype_get_mb_cur_max() -> usize {
    4
}

/// Reads one character of at most `n` bytes.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mbrtowc(out: *mut u32, s: *const c_char, n: usize, state: *mut State) -> usize {
    if s.is_null() {
        return 0;
    }
    let mut own = State { count: 0, bytes: [0; 4] };
    // SAFETY: C contract.
    unsafe {
        let state = if state.is_null() { &mut own } else { &mut *state };
        let before = (state.count as usize).min(3);
        let mut have = before;
        let mut used = 0;
        loop {
            match decode(&state.bytes[..have]) {
                Decoded::Char(c) => {
                    state.count = 0;
                    if !out.is_null() {
                        *out = c;
                    }
                    return if c == 0 { 0 } else { used };
                }
                Decoded::Wrong => {
                    state.count = 0;
                    set_errno(EILSEQ);
                    return WRONG;
                }
                Decoded::Partial if used == n || have == 4 => {
                    state.count = have as u32;
                    return PARTIAL;
                }
                Decoded::Partial => {
                    state.bytes[have] = *s.add(used) as u8;
                    have += 1;
                    used += 1;
                }
            }
        }
    }
}

/// The bytes of the next character.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mbrlen(s: *const c_char, n: usize, state: *mut State) -> usize {
    // SAFETY: C contract.
    unsafe { mbrtowc(core::ptr::null_mut(), s, n, state) }
}

/// Reads one character of at most `n` bytes, without a state.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mbtowc(out: *mut u32, s: *const c_char, n: usize) -> c_int {
    // SAFETY: C contract.
    let used = unsafe { mbrtowc(out, s, n, core::ptr::null_mut()) };
    if used >= PARTIAL {
        set_errno(EILSEQ);
        return -1;
    }
    used as c_int
}

/// The bytes of the next character, without a state.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mblen(s: *const c_char, n: usize) -> c_int {
    // SAFETY: C contract.
    unsafe { mbtowc(core::ptr::null_mut(), s, n) }
}

/// Whether the state is between characters.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mbsinit(state: *const State) -> c_int {
    // SAFETY: C contract.
    c_int::from(state.is_null() || unsafe { (*state).count } == 0)
}

/// Writes one character.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wcrtomb(out: *mut c_char, c: u32, _state: *mut State) -> usize {
    if out.is_null() {
        return 1;
    }
    let mut buffer = [0; 4];
    let Some(n) = encode(&mut buffer, c) else {
        set_errno(EILSEQ);
        return WRONG;
    };
    // SAFETY: C contract: there is room for any character.
    unsafe { super::mem::memcpy(out.cast(), buffer.as_ptr().cast(), n) };
    n
}

/// Writes one character, without a state.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wctomb(out: *mut c_char, c: u32) -> c_int {
    if out.is_null() {
        return 0;
    }
    // SAFETY: C contract.
    unsafe { wcrtomb(out, c, core::ptr::null_mut()) as c_int }
}

/// Converts a string; at most `n` characters.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mbstowcs(out: *mut u32, s: *const c_char, n: usize) -> usize {
    let mut s = s;
    let mut count = 0;
    while out.is_null() || count < n {
        let mut c = 0;
        // SAFETY: C contract; a zero ends the loop.
        unsafe {
            match mbrtowc(&raw mut c, s, 4, core::ptr::null_mut()) {
                WRONG | PARTIAL => {
                    set_errno(EILSEQ);
                    return WRONG;
                }
                used => s = s.add(used),
            }
            if !out.is_null() {
                *out.add(count) = c;
            }
        }
        if c == 0 {
            break;
        }
        count += 1;
    }
    count
}

/// Converts a wide string; at most `n` bytes, whole characters only.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wcstombs(out: *mut c_char, s: *const u32, n: usize) -> usize {
    let mut bytes = 0;
    let mut buffer = [0; 4];
    for i in 0.. {
        // SAFETY: C contract; a zero ends the loop.
        unsafe {
            let c = *s.add(i);
            let Some(len) = encode(&mut buffer, c) else {
                set_errno(EILSEQ);
                return WRONG;
            };
            if !out.is_null() {
                if bytes + len > n {
                    break;
                }
                super::mem::memcpy(out.add(bytes).cast(), buffer.as_ptr().cast(), len);
            }
            if c == 0 {
                break;
            }
            bytes += len;
        }
    }
    bytes
}

/// An ASCII byte as a character.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn btowc(c: c_int) -> u32 {
    if (0..0x80).contains(&c) { c.cast_unsigned() } else { u32::MAX }
}

/// A character as an ASCII byte.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn wctob(c: u32) -> c_int {
    if c < 0x80 { c.cast_signed() } else { -1 }
}

/// Characters before the zero.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wcslen(s: *const u32) -> usize {
    let mut n = 0;
    // SAFETY: C contract. Volatile: LLVM would turn the loop into a call of this function.
    unsafe {
        while s.add(n).read_volatile() != 0 {
            n += 1;
        }
    }
    n
}

/// Compares two wide strings.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wcscmp(a: *const u32, b: *const u32) -> c_int {
    for i in 0.. {
        // SAFETY: neither string has ended.
        let (x, y) = unsafe { (*a.add(i), *b.add(i)) };
        if x != y {
            return if x.cast_signed() < y.cast_signed() { -1 } else { 1 };
        }
        if x == 0 {
            break;
        }
    }
    0
}

/// Copies a wide string.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wcscpy(dst: *mut u32, src: *const u32) -> *mut u32 {
    // SAFETY: C contract.
    unsafe { super::mem::memcpy(dst.cast(), src.cast(), (wcslen(src) + 1) * 4).cast() }
}

/// Finds a character.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wcschr(s: *const u32, c: u32) -> *mut u32 {
    // SAFETY: C contract.
    unsafe { wmemchr(s, c, wcslen(s) + 1) }
}

/// Finds a character among `n`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wmemchr(s: *const u32, c: u32, n: usize) -> *mut u32 {
    // SAFETY: C contract.
    (0..n).find(|&i| unsafe { *s.add(i) } == c).map_or(core::ptr::null_mut(), |i| s.wrapping_add(i).cast_mut())
}

/// Copies `n` characters.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wmemcpy(dst: *mut u32, src: *const u32, n: usize) -> *mut u32 {
    // SAFETY: C contract.
    unsafe { super::mem::memcpy(dst.cast(), src.cast(), n * 4).cast() }
}

/// Copies `n` characters between ranges that may overlap.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wmemmove(dst: *mut u32, src: *const u32, n: usize) -> *mut u32 {
    // SAFETY: C contract.
    unsafe { super::mem::memmove(dst.cast(), src.cast(), n * 4).cast() }
}

/// Fills `n` characters.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wmemset(dst: *mut u32, c: u32, n: usize) -> *mut u32 {
    // SAFETY: C contract.
    unsafe { core::slice::from_raw_parts_mut(dst, n).fill(c) };
    dst
}

/// Characters before the zero, at most `n`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wcsnlen(s: *const u32, n: usize) -> usize {
    // SAFETY: C contract.
    (0..n).find(|&i| unsafe { *s.add(i) } == 0).unwrap_or(n)
}

/// Finds the last such character.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wcsrchr(s: *const u32, c: u32) -> *mut u32 {
    // SAFETY: C contract.
    unsafe { (0..=wcslen(s)).rev().find(|&i| *s.add(i) == c).map_or(core::ptr::null_mut(), |i| s.add(i).cast_mut()) }
}

/// Compares `n` characters.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wmemcmp(a: *const u32, b: *const u32, n: usize) -> c_int {
    for i in 0..n {
        // SAFETY: C contract.
        let (x, y) = unsafe { (*a.add(i), *b.add(i)) };
        if x != y {
            return if x.cast_signed() < y.cast_signed() { -1 } else { 1 };
        }
    }
    0
}

/// Compares at most `n` characters of two strings.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wcsncmp(a: *const u32, b: *const u32, n: usize) -> c_int {
    // SAFETY: C contract.
    unsafe { wmemcmp(a, b, n.min(wcsnlen(a, n) + 1).min(wcsnlen(b, n) + 1)) }
}

/// Appends a wide string.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wcscat(dst: *mut u32, src: *const u32) -> *mut u32 {
    // SAFETY: C contract.
    unsafe { wcscpy(dst.add(wcslen(dst)), src) };
    dst
}

/// Copies at most `n` characters and fills what is left of them with zeros.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn wcsncpy(dst: *mut u32, src: *const u32, n: usize) -> *mut u32 {
    // SAFETY: C contract.
    unsafe {
        let len = wcsnlen(src, n);
        wmemcpy(dst, src, len);
        wmemset(dst.add(len), 0, n - len);
    }
    dst
}
