//! The `printf` family.

use super::extern_c::{malloc, write};
use super::format::{Sink, format};
use super::stdio::{File, stdout, with};
use super::valist::{VaList, variadic};
use core::ffi::{c_char, c_int};
use core::ptr::null_mut;

/// A buffer that drops what does not fit.
struct Buffer {
    at: *mut u8,
    room: usize,
}

impl Sink for Buffer {
    fn put(&mut self, bytes: &[u8]) {
        let n = bytes.len().min(self.room);
        // SAFETY: there is room.
        unsafe {
            super::mem::memcpy(self.at.cast(), bytes.as_ptr().cast(), n);
        }
        self.at = self.at.wrapping_add(n);
        self.room -= n;
    }
}

/// Gathers small pieces for a stream or a file descriptor.
struct Gather<F: FnMut(&[u8]) -> bool> {
    buffer: [u8; 256],
    used: usize,
    failed: bool,
    to: F,
}

impl<F: FnMut(&[u8]) -> bool> Gather<F> {
    fn new(to: F) -> Self {
        Self { buffer: [0; 256], used: 0, failed: false, to }
    }

    fn flush(&mut self) {
        let n = core::mem::take(&mut self.used);
        self.failed = self.failed || (n > 0 && !(self.to)(&self.buffer[..n]));
    }

    /// The result of the whole call.
    fn finish(mut self, count: c_int) -> c_int {
        self.flush();
        if self.failed { -1 } else { count }
    }
}

impl<F: FnMut(&[u8]) -> bool> Sink for Gather<F> {
    fn put(&mut self, bytes: &[u8]) {
        if bytes.len() > self.buffer.len() - self.used {
            self.flush();
        }
        if bytes.len() > self.buffer.len() {
            self.failed = self.failed || !(self.to)(bytes);
        } else {
            self.buffer[self.used..][..bytes.len()].copy_from_slice(bytes);
            self.used += bytes.len();
        }
    }
}

/// Formats into `n` bytes, the last of which is zero.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn vsnprintf(out: *mut c_char, n: usize, text: *const c_char, list: *mut VaList) -> c_int {
    let mut buffer = Buffer { at: out.cast(), room: n.saturating_sub(1) };
    // SAFETY: C contract.
    unsafe {
        let count = format(&mut buffer, text, &mut *list);
        if n > 0 {
            *buffer.at = 0;
        }
        count
    }
}

/// Formats without a limit.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn vsprintf(out: *mut c_char, text: *const c_char, list: *mut VaList) -> c_int {
    // SAFETY: C contract.
    unsafe { vsnprintf(out, usize::MAX, text, list) }
}

/// Formats into memory from `malloc`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn vasprintf(out: *mut *mut c_char, text: *const c_char, list: *mut VaList) -> c_int {
    // SAFETY: C contract; the second run puts what the first one counted.
    unsafe {
        *out = null_mut();
        let mut again = *list;
        let count = vsnprintf(null_mut(), 0, text, list);
        let Ok(n) = usize::try_from(count) else { return count };
        let memory = malloc(n + 1).cast::<c_char>();
        if memory.is_null() {
            return -1;
        }
        *out = memory;
        vsnprintf(memory, n + 1, text, &raw mut again)
    }
}

/// Formats to a stream.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn vfprintf(file: *mut File, text: *const c_char, list: *mut VaList) -> c_int {
    // SAFETY: C contract.
    unsafe {
        with(file, |file| {
            let mut gather = Gather::new(|bytes| file.put(bytes));
            let count = format(&mut gather, text, &mut *list);
            gather.finish(count)
        })
    }
}

/// Formats to `stdout`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn vprintf(text: *const c_char, list: *mut VaList) -> c_int {
    // SAFETY: C contract.
    unsafe { vfprintf(stdout.get(), text, list) }
}

/// Formats to a file descriptor.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn vdprintf(fd: c_int, text: *const c_char, list: *mut VaList) -> c_int {
    // SAFETY: C contract.
    unsafe {
        let mut gather = Gather::new(|mut bytes| {
            while !bytes.is_empty() {
                match usize::try_from(write(fd, bytes.as_ptr().cast(), bytes.len())) {
                    Ok(n) if n > 0 => bytes = bytes.get(n..).unwrap_or_default(),
                    _ => return false,
                }
            }
            true
        });
        let count = format(&mut gather, text, &mut *list);
        gather.finish(count)
    }
}

variadic! {
    /// Formats into `n` bytes, the last of which is zero.
    snprintf(out: *mut c_char, n: usize, text: *const c_char) -> c_int, 24, "rcx", vsnprintf;
    /// Formats without a limit.
    sprintf(out: *mut c_char, text: *const c_char) -> c_int, 16, "rdx", vsprintf;
    /// Formats into memory from `malloc`.
    asprintf(out: *mut *mut c_char, text: *const c_char) -> c_int, 16, "rdx", vasprintf;
    /// Formats to a stream.
    fprintf(file: *mut File, text: *const c_char) -> c_int, 16, "rdx", vfprintf;
    /// Formats to `stdout`.
    printf(text: *const c_char) -> c_int, 8, "rsi", vprintf;
    /// Formats to a file descriptor.
    dprintf(fd: c_int, text: *const c_char) -> c_int, 16, "rdx", vdprintf;
}
