//! What one may ask of files and limits, and the times of files: the C functions that std does not call.

use crate::{Outcome, ensure, fails_with};
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::{null, null_mut};

const DIR: &str = "/tmp/posix-files";
const FILE: &CStr = c"/tmp/posix-files/file";
const LINK: &CStr = c"/tmp/posix-files/link";
const MISSING: &CStr = c"/tmp/posix-files/missing";

pub fn all() -> Outcome {
    std::fs::create_dir(DIR).map_err(|e| format!("{DIR}: {e}"))?;
    let (file, link) = (format!("{DIR}/file"), format!("{DIR}/link"));
    std::fs::write(&file, b"0123456789").map_err(|e| e.to_string())?;
    std::os::unix::fs::symlink(&file, &link).map_err(|e| e.to_string())?;
    let result = times(&file, &link).and(attributes()).and(figures()).and(vectors(&file)).and(limits());
    std::fs::remove_dir_all(DIR).map_err(|e| format!("{DIR}: {e}"))?;
    result
}

fn times(file: &str, link: &str) -> Outcome {
    let time = |tv_sec| libc::timeval { tv_sec, tv_usec: 5 };
    // Of the link itself, and before 1970.
    ensure(unsafe { libc::lutimes(LINK.as_ptr(), [time(-7), time(-8)].as_ptr()) } == 0, "lutimes")?;
    let seen = |m: std::io::Result<std::fs::Metadata>| m.map(|m| (m.atime(), m.mtime(), m.mtime_nsec()));
    // Before anything follows it.
    let l = seen(std::fs::symlink_metadata(link));
    ensure(unsafe { libc::utimes(LINK.as_ptr(), [time(100), time(200)].as_ptr()) } == 0, "utimes")?;
    let f = seen(std::fs::metadata(file));
    ensure(matches!(l, Ok((-7, -8, 5000))), format!("times of a link: {l:?}"))?;
    ensure(matches!(f, Ok((100, 200, 5000))), format!("times of a file: {f:?}"))?;
    let bad = libc::timeval { tv_sec: 0, tv_usec: 1_000_000 };
    fails_with(unsafe { libc::utimes(FILE.as_ptr(), [bad, bad].as_ptr()) } as isize, libc::EINVAL, "a second too many")
}

fn attributes() -> Outcome {
    let name = c"user.x".as_ptr();
    // Nothing is set, as Linux says where it could be, and where it could not.
    let got = unsafe { libc::getxattr(FILE.as_ptr(), name, null_mut(), 0) };
    let error = std::io::Error::last_os_error().raw_os_error();
    ensure(
        got == -1 && matches!(error, Some(libc::EOPNOTSUPP | libc::ENODATA)),
        format!("an attribute: {got}, {error:?}"),
    )?;
    let list = unsafe { libc::llistxattr(LINK.as_ptr(), null_mut(), 0) };
    ensure(list == 0, format!("attributes of a link: {list}"))?;
    let gone = unsafe { libc::getxattr(MISSING.as_ptr(), name, null_mut(), 0) };
    fails_with(gone, libc::ENOENT, "attribute of no file")?;
    fails_with(unsafe { libc::fgetxattr(-1, name, null_mut(), 0) }, libc::EBADF, "attribute of no descriptor")
}

fn figures() -> Outcome {
    let mut s: libc::statfs = unsafe { std::mem::zeroed() };
    ensure(unsafe { libc::statfs(FILE.as_ptr(), &raw mut s) } == 0, "statfs")?;
    ensure(s.f_bsize > 0 && s.f_blocks >= s.f_bfree && s.f_namelen == 255, "figures of statfs")?;
    fails_with(unsafe { libc::statfs(MISSING.as_ptr(), &raw mut s) } as isize, libc::ENOENT, "statfs of no file")
}

fn vectors(file: &str) -> Outcome {
    let f = File::open(file).map_err(|e| e.to_string())?;
    let read = |at| {
        let mut bytes = [0u8; 3];
        let iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: 3 };
        let n = unsafe { libc::preadv2(f.as_raw_fd(), &raw const iov, 1, at, 0) };
        (n, bytes)
    };
    // -1 reads where the last such one has stopped; other offsets leave that alone.
    let seen = [read(-1), read(5), read(-1)];
    ensure(seen == [(3, *b"012"), (3, *b"567"), (3, *b"345")], format!("preadv2: {seen:?}"))
}

fn limits() -> Outcome {
    let mut l = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let get = |pid, l: &mut libc::rlimit| unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, null(), l) };
    ensure(get(0, &mut l) == 0 && l.rlim_cur > 0, "prlimit")?;
    fails_with(get(i32::MAX, &mut l) as isize, libc::ESRCH, "limits of another process")?;
    ensure(unsafe { libc::getpgrp() } > 0, "getpgrp")?;
    let time = libc::timespec { tv_sec: 1, tv_nsec: 0 };
    // Not as root, if this is Linux.
    if unsafe { libc::geteuid() } != 0 {
        let set = unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) };
        fails_with(set as isize, libc::EPERM, "clock_settime")?;
    }
    Ok(())
}
