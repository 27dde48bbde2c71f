//! Keeps the filter on the device for as long as anybody could use the device, and takes it away then.
//!
//! A process of its own, because the monitor has given its rights up by then and may be killed. It waits until nobody reads a pipe any more: the
//! monitor and the guest's process hold the reading end, and nothing is ever written. It keeps the device open until the filter is gone, so that the device can be no
//! other guest's before. If it is killed itself, the filter stays, and the next run replaces it.

use std::io::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use super::tc::{Message, Netlink};
use crate::jail;

/// How long the end of a run waits for it, seconds; it takes some 100 us.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// The process as the monitor sees it.
#[derive(Debug)]
pub(super) struct Keeper {
    /// As long as a copy of this is open, the filter is there.
    hold: Option<OwnedFd>,
    process: OwnedFd,
}

impl Keeper {
    /// Starts it. At the end it sends `undo`. When this returns, it is jailed. The caller has one thread.
    pub fn start(
        netlink: &Netlink,
        undo: &[Message],
        tap: BorrowedFd<'_>,
        without_rule: Option<&str>,
    ) -> Result<Keeper> {
        let (hold, waits) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let (jailed, tell) = pipe_with(PipeFlags::CLOEXEC)?;
        // SAFETY: this process has one thread, so that the child may do what it could.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            keep(netlink, undo, tap, (&waits, &tell), without_rule);
        }
        let pid = Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(Error::last_os_error)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        drop(tell);
        let keeper = Keeper { hold: Some(hold), process };
        match rustix::io::read(&jailed, &mut [0])? {
            1 => Ok(keeper),
            _ => Err(Error::other("the process that keeps the filter could not be jailed")),
        }
    }

    pub fn hold(&self) -> Option<BorrowedFd<'_>> {
        self.hold.as_ref().map(AsFd::as_fd)
    }

    /// Nobody uses the device any more: waits until the filter is gone. False if it is still there.
    pub fn finish(&mut self) -> bool {
        self.hold = None;
        let mut end = [PollFd::new(&self.process, PollFlags::IN)];
        if poll(&mut end, Some(&PATIENCE)) != Ok(1) {
            return false;
        }
        let ended = waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED);
        matches!(ended, Ok(Some(status)) if status.exit_status() == Some(0))
    }
}

/// The process.
fn keep(
    netlink: &Netlink,
    undo: &[Message],
    tap: BorrowedFd<'_>,
    (waits, tell): (&OwnedFd, &OwnedFd),
    without_rule: Option<&str>,
) -> ! {
    // Signals that end the monitor are not for this one.
    // SAFETY: 1. an empty set is a valid one, 2. all pointers are to locals, 3. the strings are constants.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"donjon-filter".as_ptr());
    }
    close_others([netlink.as_fd(), tap, waits.as_fd(), tell.as_fd()].map(|fd| fd.as_raw_fd()));
    if jail::keeper(without_rule).is_ok() && rustix::io::write(tell, &[1]) == Ok(1) {
        // Poll reports the end (ERR) without being asked.
        while !matches!(poll(&mut [PollFd::new(waits, PollFlags::empty())], None), Ok(1)) {}
    }
    for message in undo {
        netlink.tell(message);
    }
    // SAFETY: ends the process without running the parent's destructors.
    unsafe { libc::_exit(0) }
}

/// Closes all descriptors but these.
fn close_others(mut keep: [RawFd; 4]) {
    keep.sort_unstable();
    let mut from = 0u32;
    for fd in keep.into_iter().map(|fd| fd as u32).chain([u32::MAX]) {
        if fd > from {
            // SAFETY: the descriptors' owners are copies of the parent's, which are never used or dropped here.
            unsafe { libc::syscall(libc::SYS_close_range, from, fd - u32::from(fd != u32::MAX), 0) };
        }
        from = fd.saturating_add(1);
    }
}
