//! Strings that end in a zero byte.

use super::extern_c::{calloc, malloc};
use super::mem::{memchr, memcpy, memmem, memrchr, memset, rawmemchr};
use super::sse::{cmpeq_mask, in_page, load_aligned, load_in_page, none_in_64, splat};
use core::ffi::{c_char, c_int, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

/// Bytes before the zero.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strlen(s: *const c_char) -> usize {
    // SAFETY: the string has its zero.
    unsafe { rawmemchr(s.cast(), 0) as usize - s as usize }
}

/// Like [`strlen`], at most `n`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strnlen(s: *const c_char, n: usize) -> usize {
    // SAFETY: C contract.
    unsafe {
        let end = memchr(s.cast(), 0, n);
        if end.is_null() { n } else { end as usize - s as usize }
    }
}

/// Finds the first `c`, or the end of the string.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strchrnul(s: *const c_char, c: c_int) -> *mut c_char {
    let (want, zero) = (splat(c as u8), splat(0));
    let mut block = s.map_addr(|a| a & !15).cast::<u8>();
    // SAFETY: 1. no block after the one with the zero is read; 2. aligned loads stay in its page.
    unsafe {
        let mut data = load_aligned(block);
        let mut mask = (cmpeq_mask(data, want) | cmpeq_mask(data, zero)) & (!0 << (s as usize & 15));
        while mask == 0 {
            block = block.wrapping_add(16);
            if block as usize & 63 == 0 {
                while none_in_64(block, want) && none_in_64(block, zero) {
                    block = block.wrapping_add(64);
                }
            }
            data = load_aligned(block);
            mask = cmpeq_mask(data, want) | cmpeq_mask(data, zero);
        }
        block.wrapping_add(mask.trailing_zeros() as usize).cast_mut().cast()
    }
}

/// Finds the first `c`; zero counts as part of the string.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strchr(s: *const c_char, c: c_int) -> *mut c_char {
    // SAFETY: C contract.
    unsafe {
        let at = strchrnul(s, c);
        if *at as u8 == c as u8 { at } else { null_mut() }
    }
}

/// Finds the last `c`; zero counts as part of the string.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strrchr(s: *const c_char, c: c_int) -> *mut c_char {
    // SAFETY: C contract.
    unsafe { memrchr(s.cast(), c, strlen(s) + 1).cast() }
}

/// [`strchr`] under its BSD name.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn index(s: *const c_char, c: c_int) -> *mut c_char {
    // SAFETY: C contract.
    unsafe { strchr(s, c) }
}

/// [`strrchr`] under its BSD name.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn rindex(s: *const c_char, c: c_int) -> *mut c_char {
    // SAFETY: C contract.
    unsafe { strrchr(s, c) }
}

/// Compares two strings as unsigned bytes.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strcmp(a: *const c_char, b: *const c_char) -> c_int {
    // SAFETY: C contract.
    unsafe { strncmp(a, b, usize::MAX) }
}

/// [`strcmp`]: the only locale is "C".
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strcoll(a: *const c_char, b: *const c_char) -> c_int {
    // SAFETY: C contract.
    unsafe { strncmp(a, b, usize::MAX) }
}

/// Copies: the only locale is "C". Returns the length that was needed.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strxfrm(dst: *mut c_char, src: *const c_char, n: usize) -> usize {
    // SAFETY: C contract.
    unsafe { strlcpy(dst, src, n) }
}

/// Compares at most `n` bytes of two strings.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strncmp(a: *const c_char, b: *const c_char, n: usize) -> c_int {
    let (mut a, mut b) = (a.cast::<u8>(), b.cast::<u8>());
    let mut left = n;
    let zero = splat(0);
    // SAFETY: 1. nothing is read behind a zero or a difference, save in the same page; 2. hits behind `n` are masked.
    unsafe {
        while left > 0 {
            if in_page(a) && in_page(b) {
                let x = load_in_page(a);
                let stop = cmpeq_mask(x, zero) | (cmpeq_mask(x, load_in_page(b)) ^ 0xffff);
                if stop != 0 {
                    let at = stop.trailing_zeros() as usize;
                    return if at < left { c_int::from(*a.add(at)) - c_int::from(*b.add(at)) } else { 0 };
                }
                a = a.wrapping_add(16);
                b = b.wrapping_add(16);
                left = left.saturating_sub(16);
            } else {
                let (x, y) = (*a, *b);
                if x != y || x == 0 {
                    return c_int::from(x) - c_int::from(y);
                }
                a = a.add(1);
                b = b.add(1);
                left -= 1;
            }
        }
    }
    0
}

/// Compares without regard to ASCII case.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strcasecmp(a: *const c_char, b: *const c_char) -> c_int {
    // SAFETY: C contract.
    unsafe { strncasecmp(a, b, usize::MAX) }
}

/// Compares at most `n` bytes without regard to ASCII case.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strncasecmp(a: *const c_char, b: *const c_char, n: usize) -> c_int {
    for i in 0..n {
        // SAFETY: neither string has ended before `i`.
        let (x, y) = unsafe { (*a.add(i) as u8, *b.add(i) as u8) };
        let difference = c_int::from(x.to_ascii_lowercase()) - c_int::from(y.to_ascii_lowercase());
        if difference != 0 || x == 0 {
            return difference;
        }
    }
    0
}

/// Copies a string with its zero.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strcpy(dst: *mut c_char, src: *const c_char) -> *mut c_char {
    // SAFETY: C contract.
    unsafe { memcpy(dst.cast(), src.cast(), strlen(src) + 1).cast() }
}

/// Copies a string with its zero; returns where that is.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn stpcpy(dst: *mut c_char, src: *const c_char) -> *mut c_char {
    // SAFETY: C contract.
    unsafe {
        let n = strlen(src);
        memcpy(dst.cast(), src.cast(), n + 1);
        dst.add(n)
    }
}

/// Copies at most `n` bytes and fills what is left of them with zeros.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strncpy(dst: *mut c_char, src: *const c_char, n: usize) -> *mut c_char {
    // SAFETY: C contract.
    unsafe { stpncpy(dst, src, n) };
    dst
}

/// Like [`strncpy`]; returns the end of the copied text.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn stpncpy(dst: *mut c_char, src: *const c_char, n: usize) -> *mut c_char {
    // SAFETY: C contract.
    unsafe {
        let len = strnlen(src, n);
        memcpy(dst.cast(), src.cast(), len);
        memset(dst.add(len).cast(), 0, n - len);
        dst.add(len)
    }
}

/// Copies what fits in `n` bytes with a zero; returns the length of `src`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strlcpy(dst: *mut c_char, src: *const c_char, n: usize) -> usize {
    // SAFETY: C contract.
    unsafe {
        let len = strlen(src);
        if n > 0 {
            let fits = len.min(n - 1);
            memcpy(dst.cast(), src.cast(), fits);
            *dst.add(fits) = 0;
        }
        len
    }
}

/// Appends what fits in `n` bytes in all; returns the length that was tried.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strlcat(dst: *mut c_char, src: *const c_char, n: usize) -> usize {
    // SAFETY: C contract.
    unsafe {
        let at = strnlen(dst, n);
        if at == n { n + strlen(src) } else { at + strlcpy(dst.add(at), src, n - at) }
    }
}

/// Appends a string.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strcat(dst: *mut c_char, src: *const c_char) -> *mut c_char {
    // SAFETY: C contract.
    unsafe { strcpy(dst.add(strlen(dst)), src) };
    dst
}

/// Appends at most `n` bytes of a string, and a zero.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strncat(dst: *mut c_char, src: *const c_char, n: usize) -> *mut c_char {
    // SAFETY: C contract.
    unsafe {
        let end = dst.add(strlen(dst));
        let len = strnlen(src, n);
        memcpy(end.cast(), src.cast(), len);
        *end.add(len) = 0;
    }
    dst
}

/// Finds a string in a string.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strstr(hay: *const c_char, needle: *const c_char) -> *mut c_char {
    // SAFETY: C contract.
    unsafe { memmem(hay.cast(), strlen(hay), needle.cast(), strlen(needle)).cast() }
}

/// Finds a string in a string without regard to ASCII case.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strcasestr(hay: *const c_char, needle: *const c_char) -> *mut c_char {
    // SAFETY: C contract.
    unsafe {
        let n = strlen(needle);
        (0..(strlen(hay) + 1).saturating_sub(n))
            .find(|&at| strncasecmp(hay.add(at), needle, n) == 0)
            .map_or(null_mut(), |at| hay.add(at).cast_mut())
    }
}

/// A set of bytes.
struct Set([u64; 4]);

impl Set {
    /// The bytes of a string.
    ///
    /// # Safety
    /// `s` is a string.
    unsafe fn new(s: *const c_char) -> Self {
        let mut set = Self([0; 4]);
        let mut s = s.cast::<u8>();
        // SAFETY: the string has not ended.
        unsafe {
            while *s != 0 {
                set.0[usize::from(*s >> 6)] |= 1 << (*s & 63);
                s = s.add(1);
            }
        }
        set
    }

    fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] >> (byte & 63) & 1 != 0
    }
}

/// How many bytes at the start are in `accept`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strspn(s: *const c_char, accept: *const c_char) -> usize {
    // SAFETY: C contract; zero is never in the set.
    unsafe {
        let set = Set::new(accept);
        let mut n = 0;
        while set.contains(*s.add(n) as u8) {
            n += 1;
        }
        n
    }
}

/// How many bytes at the start are not in `reject`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strcspn(s: *const c_char, reject: *const c_char) -> usize {
    // SAFETY: C contract.
    unsafe {
        let mut set = Set::new(reject);
        set.0[0] |= 1;
        let mut n = 0;
        while !set.contains(*s.add(n) as u8) {
            n += 1;
        }
        n
    }
}

/// Finds the first byte that is in `accept`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strpbrk(s: *const c_char, accept: *const c_char) -> *mut c_char {
    // SAFETY: C contract.
    unsafe {
        let at = s.add(strcspn(s, accept));
        if *at == 0 { null_mut() } else { at.cast_mut() }
    }
}

/// Cuts the next token off `*state`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strtok_r(s: *mut c_char, delimiters: *const c_char, state: *mut *mut c_char) -> *mut c_char {
    // SAFETY: C contract.
    unsafe {
        let mut s = if s.is_null() { *state } else { s };
        if s.is_null() {
            return s;
        }
        s = s.add(strspn(s, delimiters));
        if *s == 0 {
            *state = s;
            return null_mut();
        }
        let end = s.add(strcspn(s, delimiters));
        *state = end;
        if *end != 0 {
            *end = 0;
            *state = end.add(1);
        }
        s
    }
}

/// [`strtok_r`] with one state for the whole program.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strtok(s: *mut c_char, delimiters: *const c_char) -> *mut c_char {
    static STATE: AtomicPtr<c_char> = AtomicPtr::new(null_mut());
    let mut state = STATE.load(Ordering::Relaxed);
    // SAFETY: C contract.
    let token = unsafe { strtok_r(s, delimiters, &raw mut state) };
    STATE.store(state, Ordering::Relaxed);
    token
}

/// Cuts the next field, which may be empty, off `*s`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strsep(s: *mut *mut c_char, delimiters: *const c_char) -> *mut c_char {
    // SAFETY: C contract.
    unsafe {
        let start = *s;
        if start.is_null() {
            return start;
        }
        let end = start.add(strcspn(start, delimiters));
        if *end == 0 {
            *s = null_mut();
        } else {
            *end = 0;
            *s = end.add(1);
        }
        start
    }
}

/// Copies a string into memory from `malloc`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strdup(s: *const c_char) -> *mut c_char {
    // SAFETY: C contract; the copy is as long as asked for.
    unsafe {
        let n = strlen(s) + 1;
        let copy = malloc(n);
        if copy.is_null() { null_mut() } else { memcpy(copy, s.cast(), n).cast() }
    }
}

/// Copies at most `n` bytes of a string into memory from `malloc`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn strndup(s: *const c_char, n: usize) -> *mut c_char {
    // SAFETY: C contract; `calloc` wrote the zero.
    unsafe {
        let n = strnlen(s, n);
        let copy: *mut c_void = calloc(n + 1, 1);
        if copy.is_null() { null_mut() } else { memcpy(copy, s.cast(), n).cast() }
    }
}

/// [`strdup`] under the name that some glibc headers give it.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __strdup(s: *const c_char) -> *mut c_char {
    // SAFETY: C contract.
    unsafe { strdup(s) }
}

/// The last part of a path, which may be cut at trailing slashes (POSIX's `basename`).
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __xpg_basename(path: *mut c_char) -> *mut c_char {
    // SAFETY: C contract; indices stay below the length.
    unsafe {
        let mut n = if path.is_null() { 0 } else { strlen(path) };
        if n == 0 {
            return c".".as_ptr().cast_mut();
        }
        while n > 1 && *path.add(n - 1) == (b'/' as c_char) {
            n -= 1;
            *path.add(n) = 0;
        }
        let mut start = n;
        while start > 0 && *path.add(start - 1) != (b'/' as c_char) {
            start -= 1;
        }
        // A path of slashes only is its own last part.
        path.add(if start == n { start - 1 } else { start })
    }
}

/// What follows the last slash (GNU's `basename`).
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn basename(path: *const c_char) -> *mut c_char {
    // SAFETY: C contract.
    unsafe {
        let slash = strrchr(path, b'/'.into());
        if slash.is_null() { path.cast_mut() } else { slash.add(1) }
    }
}

/// A path without its last part; the path is cut.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn dirname(path: *mut c_char) -> *mut c_char {
    // SAFETY: C contract; indices stay below the length.
    unsafe {
        let mut n = if path.is_null() { 0 } else { strlen(path) };
        // Trailing slashes, the last part, and the slashes before it.
        for slashes in [true, false, true] {
            while n > 0 && (*path.add(n - 1) == (b'/' as c_char)) == slashes {
                n -= 1;
            }
        }
        if n == 0 {
            let absolute = !path.is_null() && *path == (b'/' as c_char);
            return if absolute { c"/" } else { c"." }.as_ptr().cast_mut();
        }
        *path.add(n) = 0;
        path
    }
}
