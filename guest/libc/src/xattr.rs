//! What one may ask of files besides `stat`: extended attributes, of which there are none, and `statfs`.

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: C callers' pointers; see `door`.

use crate::door::{alias, path, put, unit};
use crate::errno::ret_size;
use core::ffi::{c_char, c_int, c_void};
use donjon_os::errno::{Errno, Result};
use donjon_os::fd;
use donjon_os::fs::{self, At, Stat};
use libc::{size_t, ssize_t};

/// The file of that name, if it is there.
unsafe fn named(name: *const c_char, follow: bool) -> Result<Stat> {
    // SAFETY: by contract of the callers.
    unsafe { path(name) }.and_then(|p| fs::stat(At::Cwd, p, follow, false))
}

/// What a file system says that keeps no attributes.
fn none(file: Result<Stat>) -> Result<usize> {
    file.and(Err(Errno::EOPNOTSUPP))
}

macro_rules! attributes {
    ($get:ident $set:ident $list:ident $remove:ident ($file:ident: $t:ty) $find:expr) => {
        #[doc = concat!("`", stringify!($get), "(2)`: `EOPNOTSUPP`.")]
        ///
        /// # Safety
        /// As in C.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $get($file: $t, _name: *const c_char, _value: *mut c_void, _size: size_t) -> ssize_t {
            ret_size(none($find))
        }

        #[doc = concat!("`", stringify!($set), "(2)`: `EOPNOTSUPP`.")]
        ///
        /// # Safety
        /// As in C.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $set(
            $file: $t,
            _name: *const c_char,
            _value: *const c_void,
            _size: size_t,
            _flags: c_int,
        ) -> c_int {
            unit(none($find).map(|_| ()))
        }

        #[doc = concat!("`", stringify!($list), "(2)`: an empty list.")]
        ///
        /// # Safety
        /// As in C.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $list($file: $t, _list: *mut c_char, _size: size_t) -> ssize_t {
            ret_size($find.map(|_: Stat| 0))
        }

        #[doc = concat!("`", stringify!($remove), "(2)`: `EOPNOTSUPP`.")]
        ///
        /// # Safety
        /// As in C.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $remove($file: $t, _name: *const c_char) -> c_int {
            unit(none($find).map(|_| ()))
        }
    };
}

attributes! { getxattr setxattr listxattr removexattr (file: *const c_char)
// SAFETY: by contract.
unsafe { named(file, true) } }
attributes! { lgetxattr lsetxattr llistxattr lremovexattr (file: *const c_char)
// SAFETY: by contract.
unsafe { named(file, false) } }
attributes! { fgetxattr fsetxattr flistxattr fremovexattr (file: c_int) fd::stat(file) }

/// The tmpfs's figures, which are the only ones, as `statvfs` has them.
fn figures(file: &Stat) -> libc::statfs {
    const ROMFS: libc::c_long = 0x7275;
    let (used, limit) = fs::usage();
    // SAFETY: all zeros is a valid `statfs`.
    let mut s: libc::statfs = unsafe { core::mem::zeroed() };
    s.f_type = if file.dev == 2 { libc::TMPFS_MAGIC } else { ROMFS };
    s.f_bsize = 4096;
    s.f_frsize = 4096;
    s.f_blocks = limit / 4096;
    s.f_bfree = limit.saturating_sub(used) / 4096;
    s.f_bavail = s.f_bfree;
    s.f_namelen = fs::NAME_MAX as libc::c_long;
    s
}

/// `statfs(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn statfs(name: *const c_char, out: *mut libc::statfs) -> c_int {
    // SAFETY: by contract.
    unit(unsafe { named(name, true).and_then(|file| put(out, figures(&file))) })
}

/// `fstatfs(2)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn fstatfs(fd: c_int, out: *mut libc::statfs) -> c_int {
    // SAFETY: by contract.
    unit(fd::stat(fd).and_then(|file| unsafe { put(out, figures(&file)) }))
}

alias! {
    statfs64 = statfs(name: *const c_char, out: *mut libc::statfs) -> c_int;
    fstatfs64 = fstatfs(fd: c_int, out: *mut libc::statfs) -> c_int;
}
