//! Descriptors: numbers to open file descriptions, and the operations that every kind of file shares.
//!
//! An [`Object`] has only operations that never wait; they answer `EAGAIN`. Waiting is done here, once, for all kinds: try, park on
//! the object's [`Watch`], try again.

pub mod console;
mod table;
#[cfg(test)]
pub(crate) mod tests;
pub mod watch;

pub use crate::fs::map::{MapSource, map_source};

pub use table::{close, close_range, dup, dup_at, flags, get, has_room, init, install, limit, set_flags, set_limit};

use crate::errno::{Errno, Result};
use crate::fs::Stat;
use crate::sched::Wake;
use crate::signal::{self, Calls};
use alloc::rc::{Rc, Weak};
use core::any::Any;
use core::cell::Cell;
use watch::{Watch, events};

/// Access mode: read only.
pub const O_RDONLY: i32 = 0;
/// Access mode: write only.
pub const O_WRONLY: i32 = 1;
/// Access mode: both.
pub const O_RDWR: i32 = 2;
/// Mask of the access mode.
pub const O_ACCMODE: i32 = 3;
/// Create the file.
pub const O_CREAT: i32 = 0o100;
/// Fail if it exists.
pub const O_EXCL: i32 = 0o200;
/// No controlling terminal: without meaning here.
pub const O_NOCTTY: i32 = 0o400;
/// Empty the file.
pub const O_TRUNC: i32 = 0o1000;
/// Every write goes to the end.
pub const O_APPEND: i32 = 0o2000;
/// Operations do not wait.
pub const O_NONBLOCK: i32 = 0o4000;
/// Only directories.
pub const O_DIRECTORY: i32 = 0o200_000;
/// Not through a symbolic link at the end.
pub const O_NOFOLLOW: i32 = 0o400_000;
/// Close at exec: kept and reported; there is no exec.
pub const O_CLOEXEC: i32 = 0o2_000_000;
/// Only a place in the tree.
pub const O_PATH: i32 = 0o10_000_000;
/// A file without a name.
pub const O_TMPFILE: i32 = 0o20_200_000;

/// What the open file description itself keeps, apart from the object.
pub struct Ctl {
    /// Access mode and status flags.
    pub flags: Cell<i32>,
    /// Position of the next read or write.
    pub offset: Cell<u64>,
}

impl Ctl {
    /// Whether operations must not wait.
    pub fn nonblocking(&self) -> bool {
        self.flags.get() & O_NONBLOCK != 0
    }

    /// Fails with `EBADF` unless the description is open for reading.
    pub fn readable(&self) -> Result<()> {
        if self.flags.get() & (O_ACCMODE | O_PATH) == O_WRONLY || self.flags.get() & O_PATH != 0 {
            return Err(Errno::EBADF);
        }
        Ok(())
    }

    /// Fails with `EBADF` unless the description is open for writing.
    pub fn writable(&self) -> Result<()> {
        if self.flags.get() & O_ACCMODE == O_RDONLY || self.flags.get() & O_PATH != 0 {
            return Err(Errno::EBADF);
        }
        Ok(())
    }
}

/// An open file description: shared by the descriptors that `dup` makes.
pub struct File<T: Object + ?Sized> {
    /// Flags and position.
    pub ctl: Ctl,
    /// What is open.
    pub obj: T,
}

impl<T: Object + ?Sized> Drop for File<T> {
    fn drop(&mut self) {
        if let Some(watch) = self.obj.watch() {
            watch.detach();
        }
    }
}

/// A description that is in use.
pub type FileRef = Rc<File<dyn Object>>;
/// A description that may be gone.
pub type WeakFile = Weak<File<dyn Object>>;

/// Whether a weak reference is to this description.
pub fn same(weak: &WeakFile, file: &FileRef) -> bool {
    core::ptr::addr_eq(weak.as_ptr(), Rc::as_ptr(file))
}

/// Something that can be open. No operation waits.
pub trait Object: 'static {
    /// Reads into `bufs` in order; 0 is the end of the file.
    fn read(&self, _ctl: &Ctl, _bufs: &mut [&mut [u8]]) -> Result<usize> {
        Err(Errno::EINVAL)
    }

    /// Writes `bufs` in order.
    fn write(&self, _ctl: &Ctl, _bufs: &[&[u8]]) -> Result<usize> {
        Err(Errno::EINVAL)
    }

    /// Keeps other threads from writing as long as it is there, where what one call writes must stay together. `EAGAIN` if one writes and the caller
    /// does not wait.
    fn write_turn(&self, _wait: bool) -> Result<Option<console::Turn>> {
        Ok(None)
    }

    /// Readiness now, as [`events`] bits.
    fn ready(&self) -> u32 {
        events::READ | events::WRITE
    }

    /// Where to wait. `None`: always ready, and nothing for epoll (`EPERM`).
    fn watch(&self) -> Option<&Watch> {
        None
    }

    /// `fstat`.
    fn stat(&self) -> Stat;

    /// For asking what kind of object it is.
    fn as_any(&self) -> &dyn Any;

    /// Reads at a position.
    fn read_at(&self, _bufs: &mut [&mut [u8]], _at: u64) -> Result<usize> {
        Err(Errno::ESPIPE)
    }

    /// Writes at a position.
    fn write_at(&self, _bufs: &[&[u8]], _at: u64) -> Result<usize> {
        Err(Errno::ESPIPE)
    }

    /// Size for `lseek(SEEK_END)`; an error for what has no position.
    fn seek_end(&self) -> Result<u64> {
        Err(Errno::ESPIPE)
    }

    /// The position was set by `lseek`.
    fn seeked(&self, _to: u64) {}

    /// `fallocate`.
    fn allocate(&self, _at: u64, _len: u64, _keep_size: bool) -> Result<()> {
        Err(Errno::ENODEV)
    }

    /// `ftruncate`.
    fn truncate(&self, _len: u64) -> Result<()> {
        Err(Errno::EINVAL)
    }

    /// `fsync`. Succeeds only where there is nothing to do or it was done.
    fn sync(&self) -> Result<()> {
        Err(Errno::EINVAL)
    }

    /// Bytes that a read would give at once (`FIONREAD`).
    fn available(&self) -> Result<usize> {
        Err(Errno::ENOTTY)
    }

    /// Bytes that were written and that the other side does not have yet (`SIOCOUTQ`).
    fn unsent(&self) -> Result<usize> {
        Err(Errno::ENOTTY)
    }

    /// The place in the file tree, for files that have one.
    fn node(&self) -> Option<&crate::fs::Node> {
        None
    }

    /// The socket operations, for sockets.
    fn socket(&self) -> Option<&dyn crate::socket::Socket> {
        None
    }

    /// The last descriptor of the description was closed. May wait.
    fn closing(&self, _file: &File<dyn Object>) {}

    /// Times out waits for reading (`true`) or writing: `SO_RCVTIMEO`, `SO_SNDTIMEO`, ns.
    fn timeout(&self, _reading: bool) -> Option<u64> {
        None
    }
}

/// `fstat` of what has no place in any tree.
pub struct Anon;

impl Anon {
    /// The status.
    pub fn stat() -> Stat {
        Stat { mode: 0o600, nlink: 1, ..Stat::default() }
    }
}

/// Makes a description. Fails early when memory is short, so that the small allocations around it do not.
pub fn open_file<T: Object>(obj: T, flags: i32) -> Result<FileRef> {
    headroom()?;
    Ok(Rc::new(File { ctl: Ctl { flags: Cell::new(flags & !O_CLOEXEC), offset: Cell::new(0) }, obj }))
}

/// How often a blocked socket looks for memory, ns.
const MEMORY_RETRY: u64 = 10_000_000;

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// Something happened; look again.
    Event,
    /// The deadline has passed.
    TimedOut,
}

/// Parks the calling thread until `watch` hears of one of `mask` or the deadline (monotonic ns) passes. EINTR if a handler ran meanwhile that does
/// not let calls go on (`SA_RESTART`).
pub fn wait_on(watch: &Watch, mask: u32, deadline: Option<u64>) -> Result<Woken> {
    wait_as(Calls::Restart, watch, mask, deadline)
}

/// As [`wait_on`], for a call that handlers end in its own way.
pub fn wait_as(calls: Calls, watch: &Watch, mask: u32, deadline: Option<u64>) -> Result<Woken> {
    if deadline.is_some_and(|d| d <= donjon_base::clock::monotonic()) {
        return Ok(Woken::TimedOut);
    }
    let me = crate::sched::current();
    watch.add_thread(me, mask)?;
    let woken = crate::sched::park(deadline);
    watch.remove_thread(me);
    signal::interrupted(calls)?;
    Ok(if woken == Wake::Unparked { Woken::Event } else { Woken::TimedOut })
}

/// Looks at the devices before the running thread parks. If no other thread is ready, parking itself does that, without a switch.
pub fn look_before_parking() {
    if crate::sched::others_ready() {
        crate::sched::poll_now();
    }
}

/// Repeats `attempt` until it does not answer `EAGAIN`, waiting for `mask` between attempts.
pub fn blocking<T>(
    file: &File<dyn Object>,
    mask: u32,
    nonblocking: bool,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    // A socket that gets no memory waits for some, as in Linux: others give theirs back when their data is acknowledged or read.
    let short = |e: Errno| e == Errno::ENOMEM && file.obj.socket().is_some();
    match attempt() {
        Err(e) if !nonblocking && (e == Errno::EAGAIN || short(e)) => {}
        done => return done,
    }
    let reading = mask & events::IN != 0;
    let deadline = file.obj.timeout(reading).map(|t| donjon_base::clock::monotonic().saturating_add(t));
    look_before_parking();
    loop {
        let until = match attempt() {
            Err(Errno::EAGAIN) => deadline,
            Err(e) if short(e) => {
                let soon = donjon_base::clock::monotonic().saturating_add(MEMORY_RETRY);
                Some(deadline.map_or(soon, |d| d.min(soon)))
            }
            done => return done,
        };
        let watch = file.obj.watch().ok_or(Errno::EAGAIN)?;
        match wait_on(watch, mask, until) {
            Ok(Woken::TimedOut) if until == deadline => return attempt(),
            Ok(_) => {}
            // What has come meanwhile is more than that.
            Err(e) => return attempt().map_err(|again| if again == Errno::EAGAIN { e } else { again }),
        }
    }
}

/// `read`, `readv`.
pub fn read(fd: i32, bufs: &mut [&mut [u8]]) -> Result<usize> {
    let _guard = donjon_base::preempt::off();
    let file = get(fd)?;
    file.ctl.readable()?;
    blocking(&file, events::READ, file.ctl.nonblocking(), || file.obj.read(&file.ctl, bufs))
}

/// `write`, `writev`. A blocking write of a stream returns when everything is written or after an error.
pub fn write(fd: i32, bufs: &[&[u8]]) -> Result<usize> {
    let _guard = donjon_base::preempt::off();
    let file = get(fd)?;
    file.ctl.writable()?;
    write_all(&file, bufs, file.ctl.nonblocking(), |bufs| file.obj.write(&file.ctl, bufs))
}

/// Repeats `attempt` with what is left of `bufs` until all is written, as blocking writes of streams do. Objects that take all or
/// nothing come back after the first success.
pub fn write_all(
    file: &File<dyn Object>,
    bufs: &[&[u8]],
    nonblocking: bool,
    mut attempt: impl FnMut(&[&[u8]]) -> Result<usize>,
) -> Result<usize> {
    let total: usize = bufs.iter().map(|b| b.len()).sum();
    let _turn = file.obj.write_turn(!nonblocking)?;
    let first = blocking(file, events::WRITE, nonblocking, || attempt(bufs))?;
    if nonblocking || first == 0 {
        return Ok(first);
    }
    let mut done = first;
    while done < total {
        let mut skip = done;
        let from = bufs.iter().position(|b| {
            let here = skip < b.len();
            if !here {
                skip -= b.len();
            }
            here
        });
        let Some(from) = from else { break };
        let rest = &bufs[from][skip..];
        let step = blocking(file, events::WRITE, false, || attempt(&[rest]));
        match step {
            Ok(0) | Err(_) => break,
            Ok(n) => done += n,
        }
    }
    Ok(done)
}

/// `pread`, `preadv`.
pub fn read_at(fd: i32, bufs: &mut [&mut [u8]], at: i64) -> Result<usize> {
    let _guard = donjon_base::preempt::off();
    let file = get(fd)?;
    file.ctl.readable()?;
    file.obj.read_at(bufs, u64::try_from(at).map_err(|_| Errno::EINVAL)?)
}

/// `pwrite`, `pwritev`.
pub fn write_at(fd: i32, bufs: &[&[u8]], at: i64) -> Result<usize> {
    let _guard = donjon_base::preempt::off();
    let file = get(fd)?;
    file.ctl.writable()?;
    file.obj.write_at(bufs, u64::try_from(at).map_err(|_| Errno::EINVAL)?)
}

/// `lseek` with whence 0 to 4 (`SEEK_SET`, `SEEK_CUR`, `SEEK_END`, `SEEK_DATA`, `SEEK_HOLE`). The last two see a file without holes.
pub fn seek(fd: i32, offset: i64, whence: i32) -> Result<u64> {
    let _guard = donjon_base::preempt::off();
    let file = get(fd)?;
    let end = file.obj.seek_end()?;
    let base = match whence {
        0 => 0,
        1 => file.ctl.offset.get(),
        2 => end,
        3 | 4 => {
            let at = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
            if at >= end {
                return Err(Errno::ENXIO);
            }
            let to = if whence == 3 { at } else { end };
            file.ctl.offset.set(to);
            return Ok(to);
        }
        _ => return Err(Errno::EINVAL),
    };
    let to = i64::try_from(base).ok().and_then(|b| b.checked_add(offset)).ok_or(Errno::EOVERFLOW)?;
    let to = u64::try_from(to).map_err(|_| Errno::EINVAL)?;
    file.ctl.offset.set(to);
    file.obj.seeked(to);
    Ok(to)
}

/// `fstat`.
pub fn stat(fd: i32) -> Result<Stat> {
    let _guard = donjon_base::preempt::off();
    Ok(get(fd)?.obj.stat())
}

/// `ftruncate`.
pub fn truncate(fd: i32, len: i64) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    let file = get(fd)?;
    let len = u64::try_from(len).map_err(|_| Errno::EINVAL)?;
    file.ctl.writable().map_err(|_| Errno::EINVAL)?;
    file.obj.truncate(len)
}

/// `fallocate` with mode 0 or `FALLOC_FL_KEEP_SIZE`.
pub fn allocate(fd: i32, at: i64, len: i64, keep_size: bool) -> Result<()> {
    let (Ok(at), Ok(len @ 1..)) = (u64::try_from(at), u64::try_from(len)) else { return Err(Errno::EINVAL) };
    let _guard = donjon_base::preempt::off();
    let file = get(fd)?;
    file.ctl.writable()?;
    file.obj.allocate(at, len, keep_size)
}

/// Reads at a position into one buffer, for mappings of files.
pub fn pread_into(fd: i32, buf: &mut [u8], at: u64) -> Result<usize> {
    let _guard = donjon_base::preempt::off();
    get(fd)?.obj.read_at(&mut [buf], at)
}

/// Bytes that must be free before an object is made. The allocations around it are small and are not checked one by one.
const HEADROOM: usize = 32 * 1024;

/// `ENOMEM` when memory is so short that the library OS itself might not get what it needs.
pub fn headroom() -> Result<()> {
    if crate::mem::available() < HEADROOM { Err(Errno::ENOMEM) } else { Ok(()) }
}

/// `fsync`, `fdatasync`.
pub fn sync(fd: i32) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    get(fd)?.obj.sync()
}

/// `ioctl(FIONREAD)`.
pub fn available(fd: i32) -> Result<usize> {
    let _guard = donjon_base::preempt::off();
    get(fd)?.obj.available()
}

/// `ioctl(SIOCOUTQ)`.
pub fn unsent(fd: i32) -> Result<usize> {
    let _guard = donjon_base::preempt::off();
    get(fd)?.obj.unsent()
}

/// `fcntl(F_GETFL)`.
pub fn status(fd: i32) -> Result<i32> {
    let _guard = donjon_base::preempt::off();
    Ok(get(fd)?.ctl.flags.get())
}

/// `fcntl(F_SETFL)`: only `O_APPEND` and `O_NONBLOCK` change, as in Linux (`O_ASYNC` and `O_DIRECT` are refused).
pub fn set_status(fd: i32, flags: i32) -> Result<()> {
    const O_ASYNC: i32 = 0o20000;
    const O_DIRECT: i32 = 0o40000;
    let _guard = donjon_base::preempt::off();
    let file = get(fd)?;
    if flags & (O_ASYNC | O_DIRECT) != 0 {
        return Err(Errno::EINVAL);
    }
    let keep = file.ctl.flags.get() & !(O_APPEND | O_NONBLOCK);
    file.ctl.flags.set(keep | flags & (O_APPEND | O_NONBLOCK));
    Ok(())
}

/// `ioctl(FIONBIO)`.
pub fn set_nonblocking(fd: i32, on: bool) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    let file = get(fd)?;
    let flags = file.ctl.flags.get();
    file.ctl.flags.set(if on { flags | O_NONBLOCK } else { flags & !O_NONBLOCK });
    Ok(())
}
