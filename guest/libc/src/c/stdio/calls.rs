//! The C functions of streams.

use super::{
    AT_END, Buffering, EOF, EXIT_HOOK, FAILED, File, Lock, STREAMS, Stream, flush_all, flush_at_exit, stderr, stdin,
    stdout, with,
};
use crate::c::extern_c::{
    EAGAIN, EBADF, EINVAL, close, errno, fcntl, free, lseek, malloc, open, realloc, set_errno, strerror,
};
use crate::c::mem::{memchr, memcpy};
use crate::c::string::strlen;
use core::ffi::{c_char, c_int, c_long, c_void};
use core::ptr::null_mut;
use core::sync::atomic::Ordering;

/// Writes what is pending in a stream, or in all.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fflush(file: *mut File) -> c_int {
    if file.is_null() {
        return flush_all(Lock::acquire);
    }
    // SAFETY: C contract.
    unsafe {
        with(file, |file| {
            if file.writable {
                if file.flush() { 0 } else { EOF }
            } else {
                file.drop_read();
                0
            }
        })
    }
}

/// Writes go to the end.
const O_APPEND: c_int = 0o2000;
/// Asks for a description's flags.
const F_GETFL: c_int = 3;
/// Sets them.
const F_SETFL: c_int = 4;

/// What a mode such as `r+` asks of `open`: flags, and whether it reads and writes.
///
/// # Safety
/// `mode` is a string.
unsafe fn parse_mode(mode: *const c_char) -> Option<(c_int, bool, bool)> {
    // SAFETY: the caller's.
    let mode = unsafe { core::ffi::CStr::from_ptr(mode) }.to_bytes();
    let (&kind, more) = mode.split_first()?;
    let update = more.contains(&b'+');
    let mut flags = match kind {
        b'r' => 0,
        b'w' => 0o1100,
        b'a' => O_APPEND | 0o100,
        _ => return None,
    };
    if more.contains(&b'x') {
        flags |= 0o200;
    }
    if more.contains(&b'e') {
        flags |= 0o200_0000;
    }
    let (readable, writable) = (update || kind == b'r', update || kind != b'r');
    flags |= if update { 2 } else { c_int::from(writable) };
    Some((flags, readable, writable))
}

/// Opens a file.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fopen(path: *const c_char, mode: *const c_char) -> *mut File {
    // SAFETY: C contract.
    unsafe {
        let Some((flags, _, _)) = parse_mode(mode) else {
            set_errno(EINVAL);
            return null_mut();
        };
        let fd = open(path, flags, 0o666 as c_int);
        if fd < 0 {
            return null_mut();
        }
        let file = fdopen(fd, mode);
        if file.is_null() {
            close(fd);
        }
        file
    }
}

/// [`fopen`]: offsets always have 64 bits.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fopen64(path: *const c_char, mode: *const c_char) -> *mut File {
    // SAFETY: C contract.
    unsafe { fopen(path, mode) }
}

/// Makes a stream of a file descriptor.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fdopen(fd: c_int, mode: *const c_char) -> *mut File {
    // SAFETY: 1. `mode` by C contract; 2. fresh memory of the right size and alignment; 3. the list is ours while locked.
    unsafe {
        let Some((flags, readable, writable)) = parse_mode(mode) else {
            set_errno(EINVAL);
            return null_mut();
        };
        let file = malloc(size_of::<File>()).cast::<File>();
        if file.is_null() {
            return file;
        }
        file.write(File::new(fd, Buffering::Full, readable, writable));
        if flags & O_APPEND != 0 {
            (*(*file).stream.get()).appends = true;
            let now = fcntl(fd, F_GETFL);
            if now >= 0 && now & O_APPEND == 0 {
                fcntl(fd, F_SETFL, now | O_APPEND);
            }
            if !readable {
                // What only appends begins at the end, also for `ftell`.
                lseek(fd, 0, 2);
            }
        }
        STREAMS.1.acquire();
        *(*file).next.get() = *STREAMS.0.get();
        *STREAMS.0.get() = file;
        STREAMS.1.release();
        file
    }
}

/// Closes a stream.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fclose(file: *mut File) -> c_int {
    // SAFETY: 1. C contract: nobody uses the stream from here on; 2. the list is ours while locked.
    unsafe {
        STREAMS.1.acquire();
        let mut link = STREAMS.0.get();
        while !(*link).is_null() && *link != file {
            link = (**link).next.get();
        }
        let ours = !(*link).is_null();
        if ours {
            *link = *(*file).next.get();
        }
        STREAMS.1.release();
        let (flushed, closed) = with(file, |file| {
            let flushed = file.flush();
            file.drop_read();
            if core::mem::take(&mut file.own_buffer) {
                free(core::mem::replace(&mut file.buffer, null_mut()).cast());
                file.capacity = 0;
            }
            (flushed, close(core::mem::replace(&mut file.fd, -1)) == 0)
        });
        if ours {
            free(file.cast());
        }
        if flushed && closed { 0 } else { EOF }
    }
}

/// Reads `count` items of `size` bytes.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fread(out: *mut c_void, size: usize, count: usize, file: *mut File) -> usize {
    let Some(n) = size.checked_mul(count).filter(|&n| n > 0) else { return 0 };
    // SAFETY: C contract.
    unsafe { with(file, |file| file.take(out.cast(), n)) / size }
}

/// Writes `count` items of `size` bytes.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fwrite(data: *const c_void, size: usize, count: usize, file: *mut File) -> usize {
    let Some(n) = size.checked_mul(count).filter(|&n| n > 0) else { return 0 };
    // SAFETY: C contract.
    let ok = unsafe { with(file, |file| file.put(core::slice::from_raw_parts(data.cast(), n))) };
    if ok { count } else { 0 }
}

/// Reads a byte.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fgetc(file: *mut File) -> c_int {
    // SAFETY: C contract.
    unsafe { with(file, Stream::get).map_or(EOF, c_int::from) }
}

/// Writes a byte.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fputc(c: c_int, file: *mut File) -> c_int {
    // SAFETY: C contract.
    if unsafe { with(file, |file| file.put(&[c as u8])) } { c_int::from(c as u8) } else { EOF }
}

/// Puts a byte back that the next read returns.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn ungetc(c: c_int, file: *mut File) -> c_int {
    if c == EOF {
        return EOF;
    }
    // SAFETY: C contract.
    unsafe {
        with(file, |file| {
            file.flush();
            if file.unget(c as u8) { c_int::from(c as u8) } else { EOF }
        })
    }
}

/// Writes a string.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fputs(s: *const c_char, file: *mut File) -> c_int {
    // SAFETY: C contract.
    let ok = unsafe { with(file, |file| file.put(core::slice::from_raw_parts(s.cast(), strlen(s)))) };
    if ok { 0 } else { EOF }
}

/// Writes a string and a newline to `stdout`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn puts(s: *const c_char) -> c_int {
    // SAFETY: C contract.
    unsafe {
        with(stdout.get(), |file| {
            let ok = file.put(core::slice::from_raw_parts(s.cast(), strlen(s))) && file.put(b"\n");
            if ok { 0 } else { EOF }
        })
    }
}

/// Reads a line of at most `n - 1` bytes.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fgets(out: *mut c_char, n: c_int, file: *mut File) -> *mut c_char {
    let Some(room) = usize::try_from(n).ok().and_then(|n| n.checked_sub(1)) else { return null_mut() };
    // SAFETY: C contract: `out` has room for `n`.
    unsafe {
        with(file, |file| {
            // An earlier error is not this call's.
            let before = file.flags & FAILED;
            file.flags &= !FAILED;
            let mut done = 0;
            while done < room {
                let Some(byte) = file.get() else { break };
                *out.add(done) = byte.cast_signed();
                done += 1;
                if byte == b'\n' {
                    break;
                }
            }
            let failed = file.flags & FAILED != 0;
            file.flags |= before;
            // What came before there was no more for now is not lost, as in glibc.
            if (done == 0 && room > 0) || (failed && errno() != EAGAIN) {
                return null_mut();
            }
            *out.add(done) = 0;
            out
        })
    }
}

/// Reads up to a delimiter into memory that grows.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn getdelim(
    line: *mut *mut c_char,
    size: *mut usize,
    delimiter: c_int,
    file: *mut File,
) -> isize {
    if line.is_null() || size.is_null() {
        set_errno(EINVAL);
        return -1;
    }
    // SAFETY: C contract: `*line` is null or from `malloc` with `*size` bytes.
    unsafe {
        if (*line).is_null() {
            *size = 0;
        }
        with(file, |file| {
            let mut done = 0;
            let mut more = true;
            while more && (file.unread.is_some() || file.fill()) {
                let (from, part) = match &file.unread {
                    Some(byte) => (core::ptr::from_ref(byte), 1),
                    None => {
                        let from = file.buffer.add(file.start).cast_const();
                        let found = memchr(from.cast(), delimiter, file.end - file.start);
                        more = found.is_null();
                        (from, if more { file.end - file.start } else { found as usize - from as usize + 1 })
                    }
                };
                let needed = done + part + 1;
                if needed > *size {
                    let room = needed.max(120).max(*size * 2);
                    let grown = realloc((*line).cast(), room);
                    if grown.is_null() {
                        file.flags |= FAILED;
                        return -1;
                    }
                    (*line, *size) = (grown.cast(), room);
                }
                memcpy((*line).add(done).cast(), from.cast(), part);
                done += part;
                match file.unread.take() {
                    Some(byte) => more = byte != delimiter as u8,
                    None => file.start += part,
                }
            }
            // What came before an error is not lost, as in glibc; the next call says it.
            if done == 0 {
                return -1;
            }
            *(*line).add(done) = 0;
            done.cast_signed()
        })
    }
}

/// Reads a line into memory that grows.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn getline(line: *mut *mut c_char, size: *mut usize, file: *mut File) -> isize {
    // SAFETY: C contract.
    unsafe { getdelim(line, size, c_int::from(b'\n'), file) }
}

/// Moves the position.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fseeko(file: *mut File, offset: i64, whence: c_int) -> c_int {
    // SAFETY: C contract.
    if unsafe { with(file, |file| file.seek(offset, whence)) } < 0 { -1 } else { 0 }
}

/// The position.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn ftello(file: *mut File) -> i64 {
    // SAFETY: C contract.
    unsafe { with(file, |file| file.tell()) }
}

/// Moves the position.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fseek(file: *mut File, offset: c_long, whence: c_int) -> c_int {
    // SAFETY: C contract.
    unsafe { fseeko(file, offset, whence) }
}

/// The position.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn ftell(file: *mut File) -> c_long {
    // SAFETY: C contract.
    unsafe { ftello(file) }
}

/// Moves the position.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fseeko64(file: *mut File, offset: i64, whence: c_int) -> c_int {
    // SAFETY: C contract.
    unsafe { fseeko(file, offset, whence) }
}

/// The position.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn ftello64(file: *mut File) -> i64 {
    // SAFETY: C contract.
    unsafe { ftello(file) }
}

/// Stores the position; glibc's `fpos_t` starts with it.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fgetpos(file: *mut File, position: *mut i64) -> c_int {
    // SAFETY: C contract.
    unsafe {
        let at = ftello(file);
        if at < 0 {
            return -1;
        }
        *position = at;
    }
    0
}

/// Returns to a position.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fsetpos(file: *mut File, position: *const i64) -> c_int {
    // SAFETY: C contract.
    unsafe { fseeko(file, *position, 0) }
}

/// Moves to the start and forgets errors.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn rewind(file: *mut File) {
    // SAFETY: C contract.
    unsafe {
        fseeko(file, 0, 0);
        clearerr(file);
    }
}

/// Whether a read met the end.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn feof(file: *mut File) -> c_int {
    // SAFETY: C contract.
    unsafe { with(file, |file| c_int::from(file.flags & AT_END != 0)) }
}

/// Whether something failed.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn ferror(file: *mut File) -> c_int {
    // SAFETY: C contract.
    unsafe { with(file, |file| c_int::from(file.flags & FAILED != 0)) }
}

/// Forgets end and errors.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn clearerr(file: *mut File) {
    // SAFETY: C contract.
    unsafe { with(file, |file| file.flags &= !(AT_END | FAILED)) }
}

/// The file descriptor.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fileno(file: *mut File) -> c_int {
    // SAFETY: C contract.
    unsafe {
        with(file, |file| {
            if file.fd < 0 {
                set_errno(EBADF);
            }
            file.fd
        })
    }
}

/// Sets how a stream is buffered, and with what.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn setvbuf(file: *mut File, buffer: *mut c_char, mode: c_int, size: usize) -> c_int {
    let buffering = match mode {
        0 => Buffering::Full,
        1 => Buffering::Line,
        2 => Buffering::None,
        _ => return EOF,
    };
    // SAFETY: C contract: the buffer has `size` bytes and outlives the stream.
    unsafe {
        with(file, |file| {
            file.flush();
            file.buffering = buffering;
            if !buffer.is_null() && size > 0 && file.buffer.is_null() {
                (file.buffer, file.capacity) = (buffer.cast(), size);
                EXIT_HOOK.store(flush_at_exit as *mut (), Ordering::Relaxed);
            }
            0
        })
    }
}

/// Gives a stream a buffer of 8192 bytes, or takes buffering away.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn setbuf(file: *mut File, buffer: *mut c_char) {
    // SAFETY: C contract.
    unsafe { setvbuf(file, buffer, if buffer.is_null() { 2 } else { 0 }, 8192) };
}

/// Writes `message: what errno says` to `stderr`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn perror(message: *const c_char) {
    let error = errno();
    // SAFETY: C contract.
    unsafe {
        with(stderr.get(), |file| {
            if !message.is_null() && *message != 0 {
                file.put(core::slice::from_raw_parts(message.cast(), strlen(message)));
                file.put(b": ");
            }
            let text = strerror(error);
            file.put(core::slice::from_raw_parts(text.cast(), strlen(text)));
            file.put(b"\n");
        });
    }
}

/// Locks a stream.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn flockfile(file: *mut File) {
    // SAFETY: C contract.
    unsafe { (*file).lock.acquire() };
}

/// Locks a stream unless another thread has.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn ftrylockfile(file: *mut File) -> c_int {
    // SAFETY: C contract.
    c_int::from(unsafe { !(*file).lock.try_acquire() })
}

/// Unlocks a stream.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn funlockfile(file: *mut File) {
    // SAFETY: C contract.
    unsafe { (*file).lock.release() }
}

/// Defines other names of functions.
macro_rules! aliases {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty = $call:expr;)*) => {$(
        $(#[$doc])*
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> $ret {
            // SAFETY: C contract.
            unsafe { $call }
        }
    )*};
}

// The unlocked ones lock too: with one vCPU that costs a few instructions.
aliases! {
    /// Reads a byte.
    getc(file: *mut File) -> c_int = fgetc(file);
    /// Reads a byte.
    getc_unlocked(file: *mut File) -> c_int = fgetc(file);
    /// Reads a byte.
    fgetc_unlocked(file: *mut File) -> c_int = fgetc(file);
    /// What glibc's inline functions call for the next byte.
    __uflow(file: *mut File) -> c_int = fgetc(file);
    /// Reads a byte from `stdin`.
    getchar() -> c_int = fgetc(stdin.get());
    /// Writes a byte.
    putc(c: c_int, file: *mut File) -> c_int = fputc(c, file);
    /// Writes a byte.
    putc_unlocked(c: c_int, file: *mut File) -> c_int = fputc(c, file);
    /// Writes a byte.
    fputc_unlocked(c: c_int, file: *mut File) -> c_int = fputc(c, file);
    /// What glibc's inline functions call to write a byte.
    __overflow(file: *mut File, c: c_int) -> c_int = fputc(c, file);
    /// Writes a byte to `stdout`.
    putchar(c: c_int) -> c_int = fputc(c, stdout.get());
    /// Writes a byte to `stdout`.
    putchar_unlocked(c: c_int) -> c_int = fputc(c, stdout.get());
    /// Writes a string.
    fputs_unlocked(s: *const c_char, file: *mut File) -> c_int = fputs(s, file);
    /// Writes items.
    fwrite_unlocked(data: *const c_void, size: usize, count: usize, file: *mut File) -> usize = fwrite(data, size, count, file);
    /// Reads items.
    fread_unlocked(out: *mut c_void, size: usize, count: usize, file: *mut File) -> usize = fread(out, size, count, file);
    /// Writes what is pending.
    fflush_unlocked(file: *mut File) -> c_int = fflush(file);
    /// Reads a line.
    fgets_unlocked(out: *mut c_char, n: c_int, file: *mut File) -> *mut c_char = fgets(out, n, file);
    /// What glibc's inline `getline` calls.
    __getdelim(line: *mut *mut c_char, size: *mut usize, delimiter: c_int, file: *mut File) -> isize = getdelim(line, size, delimiter, file);
    /// The file descriptor.
    fileno_unlocked(file: *mut File) -> c_int = fileno(file);
    /// Forgets end and errors.
    clearerr_unlocked(file: *mut File) -> () = clearerr(file);
    /// Buffers by lines.
    setlinebuf(file: *mut File) -> () = { setvbuf(file, null_mut(), 1, 0); };
    /// Whether a read met the end.
    feof_unlocked(file: *mut File) -> c_int = feof(file);
    /// Whether something failed.
    ferror_unlocked(file: *mut File) -> c_int = ferror(file);
}
