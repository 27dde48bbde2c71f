//! Streams over file descriptors: what C libraries need to print, and to read and write files. Here is the stream itself; the C functions
//! are in `calls`.

mod calls;

use super::extern_c::{EBADF, lseek, malloc, read, sched_yield, set_errno, usleep, write};
use super::mem::memcpy;
pub use calls::*;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// What `EOF` is.
pub const EOF: c_int = -1;

/// glibc's flags, which the macros in its headers read.
const AT_END: c_int = 0x10;
const FAILED: c_int = 0x20;

/// A stream. What glibc's inline functions look at comes first: its flags, and pointers that are always equal, so that those functions
/// call `__uflow` and `__overflow`.
#[repr(C)]
pub struct Stream {
    flags: c_int,
    glibc: [usize; 8],
    fd: c_int,
    buffering: Buffering,
    readable: bool,
    writable: bool,
    /// Whether what is written goes to the end of the file.
    appends: bool,
    buffer: *mut u8,
    capacity: usize,
    own_buffer: bool,
    /// Bytes that were read and not yet taken: `buffer[start..end]`.
    start: usize,
    end: usize,
    /// Bytes to be written: `buffer[..pending]`. Not both kinds at a time.
    pending: usize,
    /// What `ungetc` put back.
    unread: Option<u8>,
}

/// A stream, its lock and its place in the list of streams: what C calls `FILE`.
#[repr(C)]
pub struct File {
    stream: UnsafeCell<Stream>,
    lock: Lock,
    next: UnsafeCell<*mut File>,
}

impl File {
    const fn new(fd: c_int, buffering: Buffering, readable: bool, writable: bool) -> Self {
        Self {
            stream: UnsafeCell::new(Stream::new(fd, buffering, readable, writable)),
            lock: Lock { owner: AtomicUsize::new(0), depth: UnsafeCell::new(0) },
            next: UnsafeCell::new(null_mut()),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Buffering {
    Full,
    Line,
    None,
}

impl Stream {
    const fn new(fd: c_int, buffering: Buffering, readable: bool, writable: bool) -> Self {
        Self {
            flags: 0,
            glibc: [0; 8],
            fd,
            buffering,
            readable,
            writable,
            appends: false,
            buffer: null_mut(),
            capacity: 0,
            own_buffer: false,
            start: 0,
            end: 0,
            pending: 0,
            unread: None,
        }
    }

    /// Writes; false on failure.
    pub fn put(&mut self, bytes: &[u8]) -> bool {
        if !self.writable {
            set_errno(EBADF);
            self.flags |= FAILED;
            return false;
        }
        self.drop_read();
        if self.buffering != Buffering::None {
            self.prepare();
        }
        match self.buffering {
            Buffering::None => self.write_out(bytes),
            Buffering::Full => self.put_buffered(bytes),
            Buffering::Line => match bytes.iter().rposition(|&b| b == b'\n') {
                Some(at) => {
                    let (lines, rest) = bytes.split_at(at + 1);
                    self.put_buffered(lines) && self.flush() && self.put_buffered(rest)
                }
                None => self.put_buffered(bytes),
            },
        }
    }

    fn put_buffered(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > self.capacity - self.pending && !self.flush() {
            return false;
        }
        if bytes.len() >= self.capacity {
            return self.write_out(bytes);
        }
        // SAFETY: room was made above.
        unsafe {
            memcpy(self.buffer.add(self.pending).cast(), bytes.as_ptr().cast(), bytes.len());
        }
        self.pending += bytes.len();
        true
    }

    /// Writes what is pending; false on failure, and then the bytes are gone.
    fn flush(&mut self) -> bool {
        let n = core::mem::take(&mut self.pending);
        // SAFETY: so many bytes were put there.
        n == 0 || self.write_out(unsafe { core::slice::from_raw_parts(self.buffer, n) })
    }

    fn write_out(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            // SAFETY: a slice.
            let n = unsafe { write(self.fd, bytes.as_ptr().cast(), bytes.len()) };
            match usize::try_from(n) {
                Ok(n) if n > 0 => bytes = bytes.get(n..).unwrap_or_default(),
                _ => {
                    self.flags |= FAILED;
                    return false;
                }
            }
        }
        true
    }

    /// Gives an unbuffered or new stream its buffer.
    fn prepare(&mut self) {
        if !self.buffer.is_null() {
            return;
        }
        let size = if self.fd <= 2 { 1024 } else { 4096 };
        // SAFETY: null is checked for.
        self.buffer = unsafe { malloc(size).cast() };
        if self.buffer.is_null() {
            self.buffering = Buffering::None;
        } else {
            self.capacity = size;
            self.own_buffer = true;
            EXIT_HOOK.store(flush_at_exit as *mut (), Ordering::Relaxed);
        }
    }

    /// Forgets what was read ahead, and moves the file's position back over it.
    fn drop_read(&mut self) {
        let ahead = self.end - self.start + usize::from(self.unread.is_some());
        if ahead > 0 {
            // SAFETY: no memory is involved. A pipe has no position; then the bytes are lost, as in other C libraries.
            unsafe { lseek(self.fd, -(ahead as i64), 1) };
        }
        (self.start, self.end, self.unread) = (0, 0, None);
    }

    /// Makes `buffer[start..end]` not empty; false at the end of the file or on failure.
    fn fill(&mut self) -> bool {
        if self.start < self.end {
            return true;
        }
        if !self.readable {
            set_errno(EBADF);
            self.flags |= FAILED;
            return false;
        }
        self.flush();
        self.prepare();
        if self.capacity == 0 {
            self.flags |= FAILED;
            return false;
        }
        // SAFETY: the buffer has so many bytes.
        let n = unsafe { read(self.fd, self.buffer.cast(), self.capacity) };
        (self.start, self.end) = (0, usize::try_from(n).unwrap_or(0).min(self.capacity));
        if n <= 0 {
            self.flags |= if n == 0 { AT_END } else { FAILED };
        }
        n > 0
    }

    /// The next byte.
    pub fn get(&mut self) -> Option<u8> {
        if let Some(byte) = self.unread.take() {
            return Some(byte);
        }
        if !self.fill() {
            return None;
        }
        // SAFETY: `fill` said so.
        let byte = unsafe { *self.buffer.add(self.start) };
        self.start += 1;
        Some(byte)
    }

    /// Puts one byte back; false if one is there already.
    pub fn unget(&mut self, byte: u8) -> bool {
        if self.unread.is_some() {
            return false;
        }
        self.unread = Some(byte);
        self.flags &= !AT_END;
        true
    }

    /// Copies up to `n` bytes to `out`; returns how many.
    ///
    /// # Safety
    /// `out` has room.
    unsafe fn take(&mut self, out: *mut u8, n: usize) -> usize {
        let mut done = 0;
        if n > 0
            && let Some(byte) = self.unread.take()
        {
            // SAFETY: there is room for one.
            unsafe { *out = byte };
            done = 1;
        }
        while done < n && self.fill() {
            let part = (n - done).min(self.end - self.start);
            // SAFETY: both have so many bytes.
            unsafe { memcpy(out.add(done).cast(), self.buffer.add(self.start).cast(), part) };
            self.start += part;
            done += part;
        }
        done
    }

    fn seek(&mut self, offset: i64, whence: c_int) -> i64 {
        if !self.flush() {
            return -1;
        }
        // Relative to where the program is, not to what was read ahead; `drop_read` sees to that.
        self.drop_read();
        self.flags &= !AT_END;
        // SAFETY: no memory is involved.
        unsafe { lseek(self.fd, offset, whence) }
    }

    fn tell(&self) -> i64 {
        // SAFETY: no memory is involved. What is pending goes to the end if it is to be appended.
        let at = unsafe { lseek(self.fd, 0, if self.appends && self.pending > 0 { 2 } else { 1 }) };
        let ahead = (self.end - self.start + usize::from(self.unread.is_some())) as i64;
        if at < 0 { at } else { at - ahead + self.pending as i64 }
    }
}

/// A lock that its thread may take again (`flockfile`). Contention is rare; who waits lets the others run, and sleeps if that does not help: whoever
/// has the lock waits itself, for a peer or a reader.
struct Lock {
    owner: AtomicUsize,
    depth: UnsafeCell<u32>,
}

/// This thread, as a number: the address of its control block.
fn thread() -> usize {
    let at;
    // SAFETY: the x86-64 TLS ABI puts the address there.
    unsafe { asm!("mov {}, fs:[0]", out(reg) at, options(nostack, preserves_flags, readonly, pure)) };
    at
}

impl Lock {
    fn try_acquire(&self) -> bool {
        let me = thread();
        if self.owner.load(Ordering::Relaxed) != me
            && self.owner.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            return false;
        }
        // SAFETY: only the owner is here.
        unsafe { *self.depth.get() += 1 };
        true
    }

    fn acquire(&self) -> bool {
        while !self.acquire_soon() {
            // SAFETY: takes nothing.
            unsafe { usleep(1000) };
        }
        true
    }

    /// The same for `exit`, which cannot wait for a thread that waits itself, with the lock. False if it is not free soon.
    fn acquire_soon(&self) -> bool {
        for _ in 0..100 {
            if self.try_acquire() {
                return true;
            }
            // SAFETY: takes nothing.
            unsafe { sched_yield() };
        }
        false
    }

    fn release(&self) {
        // SAFETY: only the owner is here.
        unsafe {
            *self.depth.get() -= 1;
            if *self.depth.get() == 0 {
                self.owner.store(0, Ordering::Release);
            }
        }
    }
}

/// Runs `f` on a stream that is locked meanwhile.
///
/// # Safety
/// `file` is a stream.
pub unsafe fn with<T>(file: *mut File, f: impl FnOnce(&mut Stream) -> T) -> T {
    // SAFETY: 1. a stream by the caller's word; 2. the lock makes the reference the only one.
    unsafe {
        let file = &*file;
        file.lock.acquire();
        let value = f(&mut *file.stream.get());
        file.lock.release();
        value
    }
}

/// What `exit` calls at its end, once a stream has a buffer. Null before, so that programs without streams do not link them.
pub static EXIT_HOOK: AtomicPtr<()> = AtomicPtr::new(null_mut());

/// Where the list of opened streams starts, and its lock.
struct Streams(UnsafeCell<*mut File>, Lock);

// SAFETY: the pointer is only touched with the lock held.
unsafe impl Sync for Streams {}

static STREAMS: Streams =
    Streams(UnsafeCell::new(null_mut()), Lock { owner: AtomicUsize::new(0), depth: UnsafeCell::new(0) });

/// A standard stream.
#[repr(transparent)]
pub struct Standard(UnsafeCell<File>);

// SAFETY: `with` locks.
unsafe impl Sync for Standard {}

/// A C variable that points to a standard stream.
#[repr(transparent)]
pub struct StandardPointer(*mut File);

// SAFETY: a constant.
unsafe impl Sync for StandardPointer {}

impl StandardPointer {
    /// The stream.
    pub fn get(&self) -> *mut File {
        self.0
    }
}

static STDIN: Standard = Standard(UnsafeCell::new(File::new(0, Buffering::Line, true, false)));
static STDOUT: Standard = Standard(UnsafeCell::new(File::new(1, Buffering::Line, false, true)));
static STDERR: Standard = Standard(UnsafeCell::new(File::new(2, Buffering::None, false, true)));

/// The C variable.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[cfg_attr(not(donjon_guest), expect(non_upper_case_globals, reason = "C name"))]
pub static stdin: StandardPointer = StandardPointer(STDIN.0.get());
/// The C variable.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[cfg_attr(not(donjon_guest), expect(non_upper_case_globals, reason = "C name"))]
pub static stdout: StandardPointer = StandardPointer(STDOUT.0.get());
/// The C variable.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[cfg_attr(not(donjon_guest), expect(non_upper_case_globals, reason = "C name"))]
pub static stderr: StandardPointer = StandardPointer(STDERR.0.get());

/// Flushes every stream that is written to, but for those that cannot be had soon.
extern "C" fn flush_at_exit() -> c_int {
    flush_all(Lock::acquire_soon)
}

/// Flushes every stream that is written to and whose lock can be had.
fn flush_all(lock: fn(&Lock) -> bool) -> c_int {
    let mut result = 0;
    // SAFETY: 1. the list is ours while locked; 2. all in it are streams; 3. each is ours while it is locked, and one look at whether it is for writing,
    // which it is for as long as it is open, needs no lock.
    unsafe {
        let mut each = |file: *mut File| {
            let file = &*file;
            // A thread that reads may wait for long, with the lock.
            if !(*file.stream.get()).writable {
                return;
            }
            if !lock(&file.lock) {
                result = EOF;
                return;
            }
            if !(*file.stream.get()).flush() {
                result = EOF;
            }
            file.lock.release();
        };
        each(stdout.get());
        if !lock(&STREAMS.1) {
            return EOF;
        }
        let mut file = *STREAMS.0.get();
        while !file.is_null() {
            each(file);
            file = *(*file).next.get();
        }
    }
    STREAMS.1.release();
    result
}
