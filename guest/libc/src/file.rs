//! Files by name: `open`, `stat`, `unlink`, `rename` and their kin.

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: C callers' pointers; see `door`.

use crate::door::{alias, bytes_mut, path, put, unit};
use crate::errno::{ret_int, ret_size, set};
use core::ffi::{c_char, c_int, c_uint, c_void};
use core::ptr::null_mut;
use donjon_os::errno::{Errno, Result};
use donjon_os::fd;
use donjon_os::fs::{self, At, LockKind, Stat};
use libc::{AT_FDCWD, AT_SYMLINK_NOFOLLOW, mode_t, off_t, size_t, ssize_t};

fn at(fd: c_int) -> At {
    if fd == AT_FDCWD { At::Cwd } else { At::Fd(fd) }
}

/// `openat(2)`. The variable argument arrives in the fourth register.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn openat(dir: c_int, name: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let mode = if flags & libc::O_CREAT != 0 { mode } else { 0 };
    // SAFETY: by contract.
    ret_int(unsafe { path(name) }.and_then(|p| fs::open(at(dir), p, flags & !libc::O_LARGEFILE, mode)))
}

/// `open(2)`. The variable argument arrives in the third register.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn open(name: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the same contract.
    unsafe { openat(AT_FDCWD, name, flags, mode) }
}

/// `creat(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn creat(name: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the same contract.
    unsafe { openat(AT_FDCWD, name, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode) }
}

/// Fortified `open`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __open_2(name: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the same contract.
    unsafe { openat(AT_FDCWD, name, flags, 0) }
}

alias! {
    open64 = open(name: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    openat64 = openat(dir: c_int, name: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    creat64 = creat(name: *const c_char, mode: mode_t) -> c_int;
    __open64_2 = __open_2(name: *const c_char, flags: c_int) -> c_int;
    stat64 = stat(name: *const c_char, out: *mut libc::stat) -> c_int;
    lstat64 = lstat(name: *const c_char, out: *mut libc::stat) -> c_int;
    fstat64 = fstat(fd: c_int, out: *mut libc::stat) -> c_int;
    fstatat64 = fstatat(dir: c_int, name: *const c_char, out: *mut libc::stat, flags: c_int) -> c_int;
    truncate64 = truncate(name: *const c_char, len: off_t) -> c_int;
    statvfs64 = statvfs(name: *const c_char, out: *mut libc::statvfs) -> c_int;
    fstatvfs64 = fstatvfs(fd: c_int, out: *mut libc::statvfs) -> c_int;
}

fn convert(s: &Stat) -> libc::stat {
    // SAFETY: all zeros is a valid `stat`.
    let mut out: libc::stat = unsafe { core::mem::zeroed() };
    out.st_dev = s.dev;
    out.st_ino = s.ino;
    out.st_mode = s.mode;
    out.st_nlink = u64::from(s.nlink);
    out.st_uid = s.uid;
    out.st_gid = s.gid;
    out.st_rdev = s.rdev;
    out.st_size = s.size as i64;
    out.st_blksize = 4096;
    out.st_blocks = s.used.div_ceil(512) as i64;
    out.st_atime = s.atime.sec;
    out.st_atime_nsec = i64::from(s.atime.nsec);
    out.st_mtime = s.mtime.sec;
    out.st_mtime_nsec = i64::from(s.mtime.nsec);
    out.st_ctime = s.ctime.sec;
    out.st_ctime_nsec = i64::from(s.ctime.nsec);
    out
}

unsafe fn give(stat: Result<Stat>, out: *mut libc::stat) -> c_int {
    // SAFETY: by contract of the callers.
    unit(stat.and_then(|s| unsafe { put(out, convert(&s)) }))
}

/// `stat(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn stat(name: *const c_char, out: *mut libc::stat) -> c_int {
    // SAFETY: by contract.
    unsafe { give(path(name).and_then(|p| fs::stat(At::Cwd, p, true, false)), out) }
}

/// `lstat(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn lstat(name: *const c_char, out: *mut libc::stat) -> c_int {
    // SAFETY: by contract.
    unsafe { give(path(name).and_then(|p| fs::stat(At::Cwd, p, false, false)), out) }
}

/// `fstat(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fstat(fd: c_int, out: *mut libc::stat) -> c_int {
    // SAFETY: by contract.
    unsafe { give(fd::stat(fd), out) }
}

/// `fstatat(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fstatat(dir: c_int, name: *const c_char, out: *mut libc::stat, flags: c_int) -> c_int {
    let (follow, empty) = (flags & AT_SYMLINK_NOFOLLOW == 0, flags & libc::AT_EMPTY_PATH != 0);
    // SAFETY: by contract.
    unsafe { give(path(name).and_then(|p| fs::stat(at(dir), p, follow, empty)), out) }
}

/// `statx(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn statx(
    dir: c_int,
    name: *const c_char,
    flags: c_int,
    _mask: c_uint,
    out: *mut libc::statx,
) -> c_int {
    let (follow, empty) = (flags & AT_SYMLINK_NOFOLLOW == 0, flags & libc::AT_EMPTY_PATH != 0);
    // SAFETY: by contract.
    unit(unsafe { path(name) }.and_then(|p| fs::stat(at(dir), p, follow, empty)).and_then(|s| {
        // SAFETY: all zeros is a valid `statx`.
        let mut x: libc::statx = unsafe { core::mem::zeroed() };
        let time = |t: fs::Time| {
            // SAFETY: all zeros is a valid `statx_timestamp`.
            let mut out: libc::statx_timestamp = unsafe { core::mem::zeroed() };
            out.tv_sec = t.sec;
            out.tv_nsec = t.nsec;
            out
        };
        // No birth time: it is not kept.
        x.stx_mask = libc::STATX_BASIC_STATS;
        x.stx_blksize = 4096;
        x.stx_nlink = s.nlink;
        x.stx_uid = s.uid;
        x.stx_gid = s.gid;
        x.stx_mode = s.mode as u16;
        x.stx_ino = s.ino;
        x.stx_size = s.size;
        x.stx_blocks = s.used.div_ceil(512);
        x.stx_atime = time(s.atime);
        x.stx_mtime = time(s.mtime);
        x.stx_ctime = time(s.ctime);
        x.stx_rdev_major = (s.rdev >> 8) as u32;
        x.stx_rdev_minor = (s.rdev & 0xff) as u32;
        x.stx_dev_minor = s.dev as u32;
        // SAFETY: by contract.
        unsafe { put(out, x) }
    }))
}

fn space(out: *mut libc::statvfs, known: Result<()>) -> c_int {
    unit(known.and_then(|()| {
        let (used, limit) = fs::usage();
        // SAFETY: all zeros is a valid `statvfs`.
        let mut v: libc::statvfs = unsafe { core::mem::zeroed() };
        v.f_bsize = 4096;
        v.f_frsize = 4096;
        v.f_blocks = limit / 4096;
        v.f_bfree = limit.saturating_sub(used) / 4096;
        v.f_bavail = v.f_bfree;
        v.f_namemax = fs::NAME_MAX as u64;
        // SAFETY: C's contract.
        unsafe { put(out, v) }
    }))
}

/// `statvfs(3)`: the figures of the tmpfs, the only place that has any.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn statvfs(name: *const c_char, out: *mut libc::statvfs) -> c_int {
    // SAFETY: by contract.
    space(out, unsafe { path(name) }.and_then(|p| fs::stat(At::Cwd, p, true, false)).map(|_| ()))
}

/// `fstatvfs(3)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fstatvfs(fd: c_int, out: *mut libc::statvfs) -> c_int {
    space(out, fd::stat(fd).map(|_| ()))
}

/// `faccessat(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn faccessat(dir: c_int, name: *const c_char, mode: c_int, flags: c_int) -> c_int {
    let follow = flags & AT_SYMLINK_NOFOLLOW == 0;
    // SAFETY: by contract.
    unit(unsafe { path(name) }.and_then(|p| fs::access(at(dir), p, mode as u32, follow)))
}

/// `access(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn access(name: *const c_char, mode: c_int) -> c_int {
    // SAFETY: the same contract.
    unsafe { faccessat(AT_FDCWD, name, mode, 0) }
}

alias! {
    euidaccess = access(name: *const c_char, mode: c_int) -> c_int;
    eaccess = access(name: *const c_char, mode: c_int) -> c_int;
}

/// `truncate(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn truncate(name: *const c_char, len: off_t) -> c_int {
    // SAFETY: by contract.
    unit(unsafe { path(name) }.and_then(|p| fs::truncate(p, len)))
}

/// `mkdirat(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mkdirat(dir: c_int, name: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: by contract.
    unit(unsafe { path(name) }.and_then(|p| fs::mkdir(at(dir), p, mode)))
}

/// `mkdir(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mkdir(name: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the same contract.
    unsafe { mkdirat(AT_FDCWD, name, mode) }
}

/// `mkfifoat(3)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mkfifoat(dir: c_int, name: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: by contract.
    unit(unsafe { path(name) }.and_then(|p| fs::mkfifo(at(dir), p, mode)))
}

/// `mkfifo(3)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mkfifo(name: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the same contract.
    unsafe { mkfifoat(AT_FDCWD, name, mode) }
}

/// `mknodat(2)`: named pipes; everything else is `EPERM`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mknodat(dir: c_int, name: *const c_char, mode: mode_t, _device: u64) -> c_int {
    if mode & libc::S_IFMT != libc::S_IFIFO {
        return unit(Err(Errno::EPERM));
    }
    // SAFETY: the same contract.
    unsafe { mkfifoat(dir, name, mode & 0o777) }
}

/// `mknod(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mknod(name: *const c_char, mode: mode_t, device: u64) -> c_int {
    // SAFETY: the same contract.
    unsafe { mknodat(AT_FDCWD, name, mode, device) }
}

/// `unlinkat(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn unlinkat(dir: c_int, name: *const c_char, flags: c_int) -> c_int {
    if flags & !libc::AT_REMOVEDIR != 0 {
        return unit(Err(Errno::EINVAL));
    }
    // SAFETY: by contract.
    unit(unsafe { path(name) }.and_then(|p| fs::unlink(at(dir), p, flags != 0)))
}

/// `unlink(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn unlink(name: *const c_char) -> c_int {
    // SAFETY: the same contract.
    unsafe { unlinkat(AT_FDCWD, name, 0) }
}

/// `rmdir(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn rmdir(name: *const c_char) -> c_int {
    // SAFETY: the same contract.
    unsafe { unlinkat(AT_FDCWD, name, libc::AT_REMOVEDIR) }
}

/// `remove(3)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn remove(name: *const c_char) -> c_int {
    // SAFETY: by contract.
    unit(unsafe { path(name) }.and_then(|p| match fs::unlink(At::Cwd, p, false) {
        Err(Errno::EISDIR) => fs::unlink(At::Cwd, p, true),
        done => done,
    }))
}

/// `renameat2(2)` with `RENAME_NOREPLACE` or no flag.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn renameat2(
    from_dir: c_int,
    from: *const c_char,
    to_dir: c_int,
    to: *const c_char,
    flags: c_uint,
) -> c_int {
    if flags & !libc::RENAME_NOREPLACE != 0 {
        return unit(Err(Errno::EINVAL));
    }
    // SAFETY: by contract.
    let (from, to) = unsafe { (path(from), path(to)) };
    unit(from.and_then(|f| fs::rename(at(from_dir), f, at(to_dir), to?, flags == 0)))
}

/// `renameat(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn renameat(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char) -> c_int {
    // SAFETY: the same contract.
    unsafe { renameat2(from_dir, from, to_dir, to, 0) }
}

/// `rename(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the same contract.
    unsafe { renameat2(AT_FDCWD, from, AT_FDCWD, to, 0) }
}

/// `linkat(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn linkat(
    from_dir: c_int,
    from: *const c_char,
    to_dir: c_int,
    to: *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: by contract.
    let (from, to) = unsafe { (path(from), path(to)) };
    let follow = flags & libc::AT_SYMLINK_FOLLOW != 0;
    unit(from.and_then(|f| fs::link(at(from_dir), f, at(to_dir), to?, follow)))
}

/// `link(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn link(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the same contract.
    unsafe { linkat(AT_FDCWD, from, AT_FDCWD, to, 0) }
}

/// `symlinkat(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn symlinkat(target: *const c_char, dir: c_int, name: *const c_char) -> c_int {
    // SAFETY: by contract.
    let (target, name) = unsafe { (path(target), path(name)) };
    unit(target.and_then(|t| fs::symlink(t, at(dir), name?)))
}

/// `symlink(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn symlink(target: *const c_char, name: *const c_char) -> c_int {
    // SAFETY: the same contract.
    unsafe { symlinkat(target, AT_FDCWD, name) }
}

/// `readlinkat(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn readlinkat(dir: c_int, name: *const c_char, out: *mut c_char, len: size_t) -> ssize_t {
    ret_size((|| {
        // SAFETY: by contract.
        let (name, out) = unsafe { (path(name)?, bytes_mut(out.cast(), len)?) };
        if out.is_empty() {
            return Err(Errno::EINVAL);
        }
        let target = fs::read_link(at(dir), name)?;
        let n = target.len().min(out.len());
        out[..n].copy_from_slice(&target[..n]);
        Ok(n)
    })())
}

/// `readlink(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn readlink(name: *const c_char, out: *mut c_char, len: size_t) -> ssize_t {
    // SAFETY: the same contract.
    unsafe { readlinkat(AT_FDCWD, name, out, len) }
}

/// `fchmodat(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fchmodat(dir: c_int, name: *const c_char, mode: mode_t, flags: c_int) -> c_int {
    // SAFETY: by contract.
    unit(unsafe { path(name) }.and_then(|p| fs::chmod(at(dir), Some(p), mode, flags & AT_SYMLINK_NOFOLLOW == 0)))
}

/// `chmod(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn chmod(name: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the same contract.
    unsafe { fchmodat(AT_FDCWD, name, mode, 0) }
}

/// `fchmod(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn fchmod(fd: c_int, mode: mode_t) -> c_int {
    unit(fs::chmod(At::Fd(fd), None, mode, true))
}

/// `fchownat(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fchownat(dir: c_int, name: *const c_char, uid: u32, gid: u32, flags: c_int) -> c_int {
    let follow = flags & AT_SYMLINK_NOFOLLOW == 0;
    // SAFETY: by contract.
    unit(unsafe { path(name) }.and_then(|p| fs::chown(at(dir), Some(p), uid, gid, follow)))
}

/// `chown(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn chown(name: *const c_char, uid: u32, gid: u32) -> c_int {
    // SAFETY: the same contract.
    unsafe { fchownat(AT_FDCWD, name, uid, gid, 0) }
}

/// `lchown(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn lchown(name: *const c_char, uid: u32, gid: u32) -> c_int {
    // SAFETY: the same contract.
    unsafe { fchownat(AT_FDCWD, name, uid, gid, AT_SYMLINK_NOFOLLOW) }
}

/// `fchown(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn fchown(fd: c_int, uid: u32, gid: u32) -> c_int {
    unit(fs::chown(At::Fd(fd), None, uid, gid, true))
}

/// `umask(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn umask(mask: mode_t) -> mode_t {
    fs::set_umask(mask)
}

/// `flock(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn flock(fd: c_int, operation: c_int) -> c_int {
    let wait = operation & libc::LOCK_NB == 0;
    unit(match operation & !libc::LOCK_NB {
        libc::LOCK_SH => fs::flock(fd, Some(LockKind::Shared), wait),
        libc::LOCK_EX => fs::flock(fd, Some(LockKind::Exclusive), wait),
        libc::LOCK_UN => fs::flock(fd, None, wait),
        _ => Err(Errno::EINVAL),
    })
}

/// Gives a path to a caller that may or may not have brought a buffer.
///
/// # Safety
/// `out` is null or has `len` bytes of room.
unsafe fn give_path(text: &[u8], out: *mut c_char, len: usize) -> *mut c_char {
    let out = if out.is_null() { donjon_os::mem::malloc(len.max(text.len() + 1)).cast::<c_char>() } else { out };
    if out.is_null() {
        set(Errno::ENOMEM);
        return null_mut();
    }
    // SAFETY: there is room for the text and its NUL: checked by the callers, or just allocated.
    unsafe {
        core::ptr::copy_nonoverlapping(text.as_ptr(), out.cast::<u8>(), text.len());
        out.add(text.len()).write(0);
    }
    out
}

/// `getcwd(3)`. With a null buffer it is allocated.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn getcwd(out: *mut c_char, len: size_t) -> *mut c_char {
    let text = match fs::cwd() {
        Ok(text) => text,
        Err(e) => {
            set(e);
            return null_mut();
        }
    };
    let error = match len {
        0 if !out.is_null() => Some(Errno::EINVAL),
        0 => None,
        _ if text.len() + 1 > len => Some(Errno::ERANGE),
        _ => None,
    };
    if let Some(e) = error {
        set(e);
        return null_mut();
    }
    // SAFETY: by contract; the length was checked.
    unsafe { give_path(&text, out, len) }
}

/// `chdir(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn chdir(name: *const c_char) -> c_int {
    // SAFETY: by contract.
    unit(unsafe { path(name) }.and_then(fs::chdir))
}

/// `fchdir(2)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn fchdir(fd: c_int) -> c_int {
    unit(fs::fchdir(fd))
}

/// `realpath(3)`.
///
/// # Safety
/// As in C: `out` is null or has `PATH_MAX` bytes of room.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn realpath(name: *const c_char, out: *mut c_char) -> *mut c_char {
    // SAFETY: by contract.
    match unsafe { path(name) }.and_then(fs::real_path) {
        Ok(text) if text.len() <= fs::PATH_MAX => {
            // SAFETY: by contract.
            unsafe { give_path(&text, out, 0) }
        }
        Ok(_) => {
            set(Errno::ENAMETOOLONG);
            null_mut()
        }
        Err(e) => {
            set(e);
            null_mut()
        }
    }
}

/// Fortified `realpath`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __realpath_chk(name: *const c_char, out: *mut c_char, _size: size_t) -> *mut c_char {
    // SAFETY: the same contract.
    unsafe { realpath(name, out) }
}

/// `memfd_create(2)`: not there.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn memfd_create(_name: *const c_void, _flags: c_uint) -> c_int {
    unit(Err(Errno::ENOSYS))
}

/// `mkstemp(3)`.
///
/// # Safety
/// As in C: `template` ends in `XXXXXX` and is writable.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mkstemp(template: *mut c_char) -> c_int {
    // SAFETY: the same contract.
    unsafe { mkostemp(template, 0) }
}

alias! {
    mkstemp64 = mkstemp(template: *mut c_char) -> c_int;
    mkostemp64 = mkostemp(template: *mut c_char, flags: c_int) -> c_int;
}

/// Fills the six letters at the end of a template and tries the name until it is a new one.
unsafe fn unique<T>(template: *mut c_char, make: impl Fn(&[u8]) -> Result<T>) -> Result<T> {
    // SAFETY: by contract of the callers.
    let len = unsafe { path(template) }?.len();
    // SAFETY: by contract of the callers: writable, and nobody else's now.
    let text = unsafe { bytes_mut(template.cast(), len) }?;
    if !text.ends_with(b"XXXXXX") {
        return Err(Errno::EINVAL);
    }
    for _ in 0..100 {
        let mut random = [0; 6];
        donjon_os::random::fill(&mut random);
        for (byte, r) in text[len - 6..].iter_mut().zip(random) {
            *byte = b"abcdefghijklmnopqrstuvwxyz012345"[usize::from(r) & 31];
        }
        match make(text) {
            Err(Errno::EEXIST) => {}
            done => return done,
        }
    }
    Err(Errno::EEXIST)
}

/// `mkostemp(3)`.
///
/// # Safety
/// As in C: `template` ends in `XXXXXX` and is writable.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mkostemp(template: *mut c_char, flags: c_int) -> c_int {
    let flags = flags & !libc::O_ACCMODE | libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    // SAFETY: by contract.
    ret_int(unsafe { unique(template, |name| fs::open(At::Cwd, name, flags, 0o600)) })
}

/// `mkdtemp(3)`.
///
/// # Safety
/// As in C: `template` ends in `XXXXXX` and is writable.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mkdtemp(template: *mut c_char) -> *mut c_char {
    // SAFETY: by contract.
    match unsafe { unique(template, |name| fs::mkdir(At::Cwd, name, 0o700)) } {
        Ok(()) => template,
        Err(e) => {
            set(e);
            null_mut()
        }
    }
}

/// `pathconf(3)`: the limits of the file tree; -1 without an error for what has none.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pathconf(name: *const c_char, what: c_int) -> core::ffi::c_long {
    // SAFETY: by contract.
    limit(unsafe { path(name) }.and_then(|p| fs::stat(At::Cwd, p, true, false)), what)
}

/// `fpathconf(3)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn fpathconf(fd: c_int, what: c_int) -> core::ffi::c_long {
    limit(fd::stat(fd), what)
}

fn limit(file: Result<Stat>, what: c_int) -> core::ffi::c_long {
    if let Err(e) = file {
        set(e);
        return -1;
    }
    match what {
        libc::_PC_NAME_MAX => fs::NAME_MAX as i64,
        libc::_PC_PATH_MAX => fs::PATH_MAX as i64 + 1,
        libc::_PC_PIPE_BUF => 4096,
        libc::_PC_LINK_MAX => i64::from(u32::MAX),
        libc::_PC_NO_TRUNC | libc::_PC_CHOWN_RESTRICTED => 1,
        libc::_PC_2_SYMLINKS => 1,
        libc::_PC_FILESIZEBITS => 64,
        libc::_PC_SYMLINK_MAX => -1,
        _ => {
            set(Errno::EINVAL);
            -1
        }
    }
}
