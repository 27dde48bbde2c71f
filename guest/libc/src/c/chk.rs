//! What hardened C code calls: the functions that know the size of their target (`-D_FORTIFY_SOURCE`), and the end of a function
//! whose stack was overwritten (`-fstack-protector`).

use super::extern_c::{abort, write};
use super::mem::{explicit_bzero, memcpy, memmove, mempcpy, memset};
use super::printf::{vasprintf, vdprintf, vfprintf, vprintf, vsnprintf};
use super::stdio::File;
use super::string::{stpcpy, stpncpy, strcat, strcpy, strlcat, strlcpy, strlen, strncat, strncpy, strnlen};
use super::valist::{VaList, variadic};
use core::ffi::{c_char, c_int, c_long, c_void};

unsafe extern "C" {
    fn recv(fd: c_int, out: *mut c_void, n: usize, flags: c_int) -> isize;
    fn recvfrom(fd: c_int, out: *mut c_void, n: usize, flags: c_int, from: *mut c_void, length: *mut u32) -> isize;
    fn pread(fd: c_int, out: *mut c_void, n: usize, offset: i64) -> isize;
    fn readlink(path: *const c_char, out: *mut c_char, n: usize) -> isize;
    fn getcwd(out: *mut c_char, n: usize) -> *mut c_char;
    fn gethostname(out: *mut c_char, n: usize) -> c_int;
}

/// Reports and ends the guest.
#[cold]
pub fn fatal(message: &[u8]) -> ! {
    // SAFETY: a slice.
    unsafe {
        write(2, message.as_ptr().cast(), message.len());
        abort()
    }
}

/// A copy would have overrun its target.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[cold]
pub extern "C" fn __chk_fail() -> ! {
    fatal(b"*** buffer overflow detected ***\n")
}

/// A function found its stack canary overwritten.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[cold]
pub extern "C" fn __stack_chk_fail() -> ! {
    fatal(b"*** stack smashing detected ***\n")
}

/// Ends the guest if more is to be written than there is room for.
fn check(n: usize, room: usize) {
    if n > room {
        __chk_fail();
    }
}

/// Defines functions that first compare sizes: `name(arguments) -> result, needed, room => call`.
macro_rules! checked {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty, $need:expr, $room:expr => $call:expr;)*) => {$(
        /// The function without `__` and `_chk`, after a look at the size of its target.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> $ret {
            // SAFETY: C contract.
            unsafe {
                check($need, $room);
                $call
            }
        }
    )*};
}

checked! {
    __memcpy_chk(to: *mut c_void, from: *const c_void, n: usize, room: usize) -> *mut c_void, n, room => memcpy(to, from, n);
    __mempcpy_chk(to: *mut c_void, from: *const c_void, n: usize, room: usize) -> *mut c_void, n, room => mempcpy(to, from, n);
    __memmove_chk(to: *mut c_void, from: *const c_void, n: usize, room: usize) -> *mut c_void, n, room => memmove(to, from, n);
    __memset_chk(to: *mut c_void, c: c_int, n: usize, room: usize) -> *mut c_void, n, room => memset(to, c, n);
    __explicit_bzero_chk(to: *mut c_void, n: usize, room: usize) -> (), n, room => explicit_bzero(to, n);
    __strcpy_chk(to: *mut c_char, from: *const c_char, room: usize) -> *mut c_char, strlen(from) + 1, room => strcpy(to, from);
    __stpcpy_chk(to: *mut c_char, from: *const c_char, room: usize) -> *mut c_char, strlen(from) + 1, room => stpcpy(to, from);
    __strncpy_chk(to: *mut c_char, from: *const c_char, n: usize, room: usize) -> *mut c_char, n, room => strncpy(to, from, n);
    __stpncpy_chk(to: *mut c_char, from: *const c_char, n: usize, room: usize) -> *mut c_char, n, room => stpncpy(to, from, n);
    __strcat_chk(to: *mut c_char, from: *const c_char, room: usize) -> *mut c_char,
        strlen(to) + strlen(from) + 1, room => strcat(to, from);
    __strncat_chk(to: *mut c_char, from: *const c_char, n: usize, room: usize) -> *mut c_char,
        strlen(to) + strnlen(from, n) + 1, room => strncat(to, from, n);
    __read_chk(fd: c_int, to: *mut c_void, n: usize, room: usize) -> isize, n, room => super::extern_c::read(fd, to, n);
    __recv_chk(fd: c_int, to: *mut c_void, n: usize, room: usize, flags: c_int) -> isize, n, room => recv(fd, to, n, flags);
    __recvfrom_chk(fd: c_int, to: *mut c_void, n: usize, room: usize, flags: c_int, from: *mut c_void, length: *mut u32) -> isize,
        n, room => recvfrom(fd, to, n, flags, from, length);
    __pread_chk(fd: c_int, to: *mut c_void, n: usize, offset: i64, room: usize) -> isize, n, room => pread(fd, to, n, offset);
    __pread64_chk(fd: c_int, to: *mut c_void, n: usize, offset: i64, room: usize) -> isize, n, room => pread(fd, to, n, offset);
    __readlink_chk(path: *const c_char, to: *mut c_char, n: usize, room: usize) -> isize, n, room => readlink(path, to, n);
    __getcwd_chk(to: *mut c_char, n: usize, room: usize) -> *mut c_char, n, room => getcwd(to, n);
    __gethostname_chk(to: *mut c_char, n: usize, room: usize) -> c_int, n, room => gethostname(to, n);
    __strlcpy_chk(to: *mut c_char, from: *const c_char, n: usize, room: usize) -> usize, n, room => strlcpy(to, from, n);
    __strlcat_chk(to: *mut c_char, from: *const c_char, n: usize, room: usize) -> usize, n, room => strlcat(to, from, n);
    __fgets_chk(to: *mut c_char, room: usize, n: c_int, file: *mut File) -> *mut c_char,
        usize::try_from(n).unwrap_or(0), room => super::stdio::fgets(to, n, file);
    __fread_chk(to: *mut c_void, room: usize, size: usize, count: usize, file: *mut File) -> usize,
        size.saturating_mul(count), room => super::stdio::fread(to, size, count, file);
    __vsnprintf_chk(to: *mut c_char, n: usize, _flag: c_int, room: usize, text: *const c_char, list: *mut VaList) -> c_int,
        n, room => vsnprintf(to, n, text, list);
}

/// Like `vsprintf`, into `room` bytes.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __vsprintf_chk(
    to: *mut c_char,
    _flag: c_int,
    room: usize,
    text: *const c_char,
    list: *mut VaList,
) -> c_int {
    // SAFETY: C contract.
    unsafe {
        let n = vsnprintf(to, room, text, list);
        if let Ok(n) = usize::try_from(n) {
            check(n.saturating_add(1), room);
        }
        n
    }
}

/// Like `vfprintf`; `%n` is refused anyhow.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __vfprintf_chk(
    file: *mut File,
    _flag: c_int,
    text: *const c_char,
    list: *mut VaList,
) -> c_int {
    // SAFETY: C contract.
    unsafe { vfprintf(file, text, list) }
}

/// Like `vprintf`; `%n` is refused anyhow.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __vprintf_chk(_flag: c_int, text: *const c_char, list: *mut VaList) -> c_int {
    // SAFETY: C contract.
    unsafe { vprintf(text, list) }
}

/// Like `vasprintf`; `%n` is refused anyhow.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __vasprintf_chk(
    out: *mut *mut c_char,
    _flag: c_int,
    text: *const c_char,
    list: *mut VaList,
) -> c_int {
    // SAFETY: C contract.
    unsafe { vasprintf(out, text, list) }
}

/// Like `vdprintf`; `%n` is refused anyhow.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __vdprintf_chk(fd: c_int, _flag: c_int, text: *const c_char, list: *mut VaList) -> c_int {
    // SAFETY: C contract.
    unsafe { vdprintf(fd, text, list) }
}

variadic! {
    /// Like `snprintf`, after a look at the size of its target.
    __snprintf_chk(to: *mut c_char, n: usize, flag: c_int, room: usize, text: *const c_char) -> c_int, 40, "r9", __vsnprintf_chk;
    /// Like `sprintf`, into `room` bytes.
    __sprintf_chk(to: *mut c_char, flag: c_int, room: usize, text: *const c_char) -> c_int, 32, "r8", __vsprintf_chk;
    /// Like `fprintf`.
    __fprintf_chk(file: *mut File, flag: c_int, text: *const c_char) -> c_int, 24, "rcx", __vfprintf_chk;
    /// Like `printf`.
    __printf_chk(flag: c_int, text: *const c_char) -> c_int, 16, "rdx", __vprintf_chk;
    /// Like `asprintf`.
    __asprintf_chk(out: *mut *mut c_char, flag: c_int, text: *const c_char) -> c_int, 24, "rcx", __vasprintf_chk;
    /// Like `dprintf`.
    __dprintf_chk(fd: c_int, flag: c_int, text: *const c_char) -> c_int, 24, "rcx", __vdprintf_chk;
}

/// The word of an `fd_set` in which `fd` is.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn __fdelt_chk(fd: c_long) -> c_long {
    if !(0..1024).contains(&fd) {
        __chk_fail();
    }
    fd / 64
}
