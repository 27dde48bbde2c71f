//! Listing directories.

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: C callers' pointers; see `door`.

use crate::door::alias;
use crate::errno::{ret_int, set};
use alloc::boxed::Box;
use core::ffi::{c_char, c_int, c_long};
use core::ptr::null_mut;
use donjon_os::errno::{Errno, Result};
use donjon_os::{fd, fs};
use libc::dirent64;

/// `DIR`.
pub struct Dir {
    fd: c_int,
    entry: dirent64,
}

/// `fdopendir(3)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn fdopendir(fd: c_int) -> *mut Dir {
    let checked = fd::stat(fd).and_then(|s| {
        fd::headroom()?;
        if s.mode & fs::kind::MASK == fs::kind::DIR { Ok(()) } else { Err(Errno::ENOTDIR) }
    });
    match checked {
        // SAFETY: all zeros is a valid `dirent64`.
        Ok(()) => Box::into_raw(Box::new(Dir { fd, entry: unsafe { core::mem::zeroed() } })),
        Err(e) => {
            set(e);
            null_mut()
        }
    }
}

/// `opendir(3)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn opendir(name: *const c_char) -> *mut Dir {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: by contract.
    let fd = unsafe { crate::file::open(name, flags, 0) };
    if fd < 0 {
        return null_mut();
    }
    let dir = fdopendir(fd);
    if dir.is_null() {
        // The error to report is the one of `fdopendir`.
        let _ = fd::close(fd);
    }
    dir
}

fn next(dir: &mut Dir) -> Result<bool> {
    let Some(e) = fs::read_dir(dir.fd)? else { return Ok(false) };
    dir.entry.d_ino = e.ino;
    dir.entry.d_off = e.next as i64;
    dir.entry.d_reclen = size_of::<dirent64>() as u16;
    dir.entry.d_type = e.kind;
    let n = e.name.len().min(dir.entry.d_name.len() - 1);
    for (to, from) in dir.entry.d_name.iter_mut().zip(&e.name[..n]) {
        *to = *from as c_char;
    }
    dir.entry.d_name[n] = 0;
    Ok(true)
}

/// `readdir(3)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn readdir(dir: *mut Dir) -> *mut dirent64 {
    // SAFETY: by contract: from `opendir`, and not used by two threads at a time.
    let dir = unsafe { &mut *dir };
    match next(dir) {
        Ok(true) => &raw mut dir.entry,
        Ok(false) => null_mut(),
        Err(e) => {
            set(e);
            null_mut()
        }
    }
}

/// `readdir_r(3)`: the error is the result.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn readdir_r(dir: *mut Dir, entry: *mut dirent64, result: *mut *mut dirent64) -> c_int {
    // SAFETY: by contract.
    let dir = unsafe { &mut *dir };
    match next(dir) {
        // SAFETY: by contract.
        Ok(true) => unsafe {
            entry.write(dir.entry);
            result.write(entry);
            0
        },
        // SAFETY: by contract.
        Ok(false) => unsafe {
            result.write(null_mut());
            0
        },
        Err(e) => e.0,
    }
}

alias! {
    readdir64 = readdir(dir: *mut Dir) -> *mut dirent64;
    readdir64_r = readdir_r(dir: *mut Dir, entry: *mut dirent64, result: *mut *mut dirent64) -> c_int;
}

/// `closedir(3)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn closedir(dir: *mut Dir) -> c_int {
    if dir.is_null() {
        return ret_int(Err(Errno::EBADF));
    }
    // SAFETY: by contract: from `fdopendir`, and given back once.
    let dir = unsafe { Box::from_raw(dir) };
    crate::io::close(dir.fd)
}

/// `dirfd(3)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn dirfd(dir: *mut Dir) -> c_int {
    // SAFETY: by contract.
    unsafe { (*dir).fd }
}

/// `rewinddir(3)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn rewinddir(dir: *mut Dir) {
    // SAFETY: by contract.
    unsafe { seekdir(dir, 0) }
}

/// `seekdir(3)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn seekdir(dir: *mut Dir, to: c_long) {
    // SAFETY: by contract. C gives no way to report that the descriptor was closed meanwhile.
    let _ = fd::seek(unsafe { (*dir).fd }, to, libc::SEEK_SET);
}

/// `telldir(3)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn telldir(dir: *mut Dir) -> c_long {
    // SAFETY: by contract.
    fd::seek(unsafe { (*dir).fd }, 0, libc::SEEK_CUR).map_or(-1, |at| at as c_long)
}
