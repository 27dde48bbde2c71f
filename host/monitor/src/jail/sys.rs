//! The system calls of the jail.

#![expect(unsafe_code, reason = "prctl, capset, mounts, seccomp")]
// UNSAFETY: system calls whose arguments are numbers, constant strings and locals. They take rights away from this process, never memory.

use std::ffi::CStr;
use std::io::{Error, Result};

fn check(result: i64) -> Result<()> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

fn prctl(option: i32, value: u64) -> Result<()> {
    // SAFETY: the options that are used here take numbers.
    check(unsafe { libc::prctl(option, value, 0, 0, 0) }.into())
}

/// Takes all signal handlers away, the runtime's for faults as well as those of a program that this library is a part of: none could return in the
/// jail, nor end the process. What is ignored stays ignored.
pub(super) fn no_handlers() -> Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: 1. zeros are a valid sigaction, 2. it lives for the call, which only asks.
        let now = unsafe {
            let mut now: libc::sigaction = std::mem::zeroed();
            // Two signals are the C library's own, and asking for them fails.
            if libc::sigaction(signal, std::ptr::null(), &raw mut now) < 0 { libc::SIG_DFL } else { now.sa_sigaction }
        };
        if now == libc::SIG_DFL || now == libc::SIG_IGN {
            continue;
        }
        // SAFETY: no handler is installed.
        if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(Error::last_os_error());
        }
    }
    Ok(())
}

pub(super) fn not_dumpable() -> Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0)
}

pub(super) fn no_new_privileges() -> Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

pub(super) fn limit(resource: libc::__rlimit_resource_t, most: u64) -> Result<()> {
    let mut now = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure lives for both calls.
    unsafe {
        check(libc::getrlimit64(resource, &mut now).into())?;
        let most = most.min(now.rlim_max);
        let most = libc::rlimit64 { rlim_cur: most, rlim_max: most };
        check(libc::setrlimit64(resource, &most).into())
    }
}

pub(super) fn unshare(spaces: i32) -> Result<()> {
    // SAFETY: a number. There is one thread, which shares nothing with another process.
    check(unsafe { libc::unshare(spaces) }.into())
}

/// Makes the root an empty, read-only file system, in a mount namespace of our own. Open files stay open.
pub(super) fn empty_root() -> Result<()> {
    // `/proc` is a directory that is there; what it shows goes away with the old root.
    let place = c"/proc";
    mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE)?;
    mount(c"none", place, c"tmpfs", libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC)?;
    // SAFETY: 1. the strings are constants, 2. nothing of this process depends on where it is in the file system.
    unsafe {
        check(libc::chdir(place.as_ptr()).into())?;
        // pivot_root(2): with twice the same place, the old root is stacked on the new one.
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into())?;
        check(libc::chdir(c"/".as_ptr()).into())
    }
}

fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: u64) -> Result<()> {
    // SAFETY: the strings live for the call; there is no data.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) }.into())
}

/// Empties all capability sets. The bounding and ambient sets need CAP_SETPCAP, which whoever has capabilities to lose has, or the set is
/// without force (an ordinary user cannot gain from it once it has no new privileges).
pub(super) fn no_capabilities(root: bool) -> Result<()> {
    only_capabilities(0, root)
}

/// Whether no program that is executed could get any.
pub(super) fn bounding_set_is_empty() -> bool {
    // EINVAL: beyond the last one.
    // SAFETY: numbers.
    let read = |capability| unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability as u64, 0, 0, 0) };
    (0..64).map(read).take_while(|had| *had >= 0).all(|had| had == 0)
}

/// The same but for these (a set of bits). `root` becomes somebody else next.
pub(super) fn only_capabilities(keep: u32, root: bool) -> Result<()> {
    // To become somebody else, CAP_SETUID and CAP_SETGID are still needed; they go with the change.
    const BECOME: u32 = 1 << 6 | 1 << 7;
    for capability in 0..64 {
        // EPERM: see above.
        if prctl(libc::PR_CAPBSET_DROP, capability).is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL)) {
            // Beyond the last one.
            break;
        }
    }
    let _ = prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64);
    capset(if root { keep | BECOME } else { keep })
}

fn capset(keep: u32) -> Result<()> {
    // capset(2), version 3 of the interface: effective, permitted, inheritable; two words per set, in turns.
    let header = [0x2008_0522u32, 0];
    let sets = [keep, keep, 0, 0, 0, 0];
    // SAFETY: both structures live for the call.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) })
}

/// Root becomes somebody without rights.
pub(super) fn become_user(id: u32) -> Result<()> {
    become_user_with(id, 0)
}

/// Root becomes somebody whose only rights are these (a set of bits), of those that it has.
pub(super) fn become_user_with(id: u32, keep: u32) -> Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, (keep != 0).into())?;
    // SAFETY: numbers, and a null pointer to no groups. The raw calls change this thread, which is the only one.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, 0, 0))?;
        check(libc::syscall(libc::SYS_setresgid, id, id, id))?;
        check(libc::syscall(libc::SYS_setresuid, id, id, id))?;
    }
    prctl(libc::PR_SET_KEEPCAPS, 0)?;
    capset(keep)?;
    not_dumpable()
}

/// The signal that comes when the parent ends. The kernel forgets it when a process's rights change.
pub(super) fn at_parents_end() -> i32 {
    let mut signal = 0i32;
    // SAFETY: the integer lives for the call.
    match unsafe { libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut signal) } {
        0 => signal,
        _ => 0,
    }
}

/// See [`at_parents_end`].
pub(super) fn set_at_parents_end(signal: i32) -> Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as u64)
}

/// Puts a filter program on this process.
pub(super) fn seccomp(program: &[u64]) -> Result<()> {
    #[repr(C)]
    struct Program {
        len: u16,
        code: *const u64,
    }
    const SET_MODE_FILTER: u64 = 1;
    const ALL_THREADS: u64 = 1;
    let program = Program { len: program.len() as u16, code: program.as_ptr() };
    // SAFETY: the program lives for the call.
    check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, ALL_THREADS, &raw const program) })
}
