//! The C functions that this part of the library calls and other parts define.

use core::ffi::{c_char, c_int, c_uint, c_void};

unsafe extern "C" {
    /// Allocates.
    pub fn malloc(n: usize) -> *mut c_void;
    /// Allocates zeroed memory.
    pub fn calloc(count: usize, n: usize) -> *mut c_void;
    /// Changes the size of an allocation.
    pub fn realloc(at: *mut c_void, n: usize) -> *mut c_void;
    /// Gives an allocation back.
    pub fn free(at: *mut c_void);
    /// Ends the guest with a report.
    pub fn abort() -> !;
    /// Writes to a file descriptor.
    pub fn write(fd: c_int, data: *const c_void, n: usize) -> isize;
    /// Reads from a file descriptor.
    pub fn read(fd: c_int, data: *mut c_void, n: usize) -> isize;
    /// Opens a file.
    pub fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    /// Moves a file's position.
    pub fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64;
    /// Does what the command says to a file descriptor.
    pub fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    /// Closes a file descriptor.
    pub fn close(fd: c_int) -> c_int;
    /// Where this thread's error number is.
    pub fn __errno_location() -> *mut c_int;
    /// The text for an error number.
    pub fn strerror(error: c_int) -> *mut c_char;
    /// Lets other threads run.
    pub fn sched_yield() -> c_int;
    /// Sleeps, for microseconds.
    pub fn usleep(time: c_uint) -> c_int;
}

/// Sets this thread's error number.
pub fn set_errno(error: c_int) {
    // SAFETY: the location is this thread's and always valid.
    unsafe { *__errno_location() = error }
}

/// This thread's error number.
pub fn errno() -> c_int {
    // SAFETY: the location is this thread's and always valid.
    unsafe { *__errno_location() }
}

/// Invalid argument.
pub const EINVAL: c_int = 22;
/// Out of range.
pub const ERANGE: c_int = 34;
/// Out of memory.
pub const ENOMEM: c_int = 12;
/// Too large for its type.
pub const EOVERFLOW: c_int = 75;
/// Not a valid multibyte sequence.
pub const EILSEQ: c_int = 84;
/// Not now.
pub const EAGAIN: c_int = 11;
/// Interrupted.
pub const EINTR: c_int = 4;
/// Not open for this.
pub const EBADF: c_int = 9;
/// No such thing.
pub const ENOENT: c_int = 2;
