//! Keeps the filter on the device for as long as anybody could use the device, and takes it away then.
//!
//! A process of its own, because the monitor has given its rights up by then and may be killed. It waits until nobody reads a pipe any more: the
//! monitor and the guest's process hold the reading end, and nothing is ever written. It keeps the device open until the filter is gone, so that the device can be no
//! other guest's before. If it is killed itself, the filter stays, and the next run replaces it.
//!
//! It also puts the filter on, before it is jailed: that takes longer than all that the monitor does meanwhile, and the monitor waits for its word before the guest starts.

use std::io::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use super::tc::{Message, Netlink};
use crate::jail;

/// How long the end of a run waits for it, seconds; it takes some 100 us.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// What it says when the filter is on and it is jailed. Anything else is why not, in words.
const READY: &[u8] = &[1];
/// Longest of these, bytes.
const WORDS_MAX: usize = 512;

/// The process as the monitor sees it.
#[derive(Debug)]
pub(super) struct Keeper {
    /// As long as a copy of this is open, the filter is there.
    hold: Option<OwnedFd>,
    process: OwnedFd,
    /// Where it says that it is ready.
    said: Option<OwnedFd>,
}

impl Keeper {
    /// Starts it: it calls `attach`, which puts the filter on and gives what takes it away again, and is jailed then. `uses` is the only descriptor that `attach`
    /// has beside `netlink` and `tap`. The caller has one thread.
    pub fn start(
        netlink: &Netlink,
        tap: BorrowedFd<'_>,
        uses: BorrowedFd<'_>,
        without_rule: Option<&str>,
        attach: impl FnOnce() -> Result<Vec<Message>>,
    ) -> Result<Keeper> {
        let (hold, waits) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let (said, tell) = pipe_with(PipeFlags::CLOEXEC)?;
        // SAFETY: this process has one thread, so that the child may do what it could.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            keep(netlink, tap, uses, (&waits, &tell), without_rule, attach);
        }
        let pid = Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(Error::last_os_error)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Keeper { hold: Some(hold), process, said: Some(said) })
    }

    /// Waits until the filter is on and the process jailed.
    pub fn wait(&mut self) -> Result<()> {
        let Some(said) = self.said.take() else { return Ok(()) };
        let mut words = [0; WORDS_MAX];
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&said, &mut words))?;
        let why = match &words[..read] {
            READY => return Ok(()),
            [] => "the process that keeps the filter could not be jailed".into(),
            words => String::from_utf8_lossy(words).into_owned(),
        };
        self.finish();
        Err(Error::other(why))
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
    tap: BorrowedFd<'_>,
    uses: BorrowedFd<'_>,
    (waits, tell): (&OwnedFd, &OwnedFd),
    without_rule: Option<&str>,
    attach: impl FnOnce() -> Result<Vec<Message>>,
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
    let kept = [netlink.as_fd(), tap, waits.as_fd(), tell.as_fd()];
    close_others(kept.into_iter().chain([uses]));
    match attach() {
        Ok(undo) => {
            close_others(kept.into_iter());
            if jail::keeper(without_rule).is_ok() && rustix::io::write(tell, READY) == Ok(READY.len()) {
                // Poll reports the end (ERR) without being asked.
                while !matches!(poll(&mut [PollFd::new(waits, PollFlags::empty())], None), Ok(1)) {}
            }
            for message in &undo {
                netlink.tell(message);
            }
        }
        Err(e) => {
            let words = e.to_string();
            let _ = rustix::io::write(tell, &words.as_bytes()[..words.len().min(WORDS_MAX)]);
        }
    }
    // SAFETY: ends the process without running the parent's destructors.
    unsafe { libc::_exit(0) }
}

/// Closes all descriptors but these.
fn close_others<'a>(keep: impl Iterator<Item = BorrowedFd<'a>>) {
    let mut keep: Vec<u32> = keep.map(|fd| fd.as_raw_fd() as u32).collect();
    keep.sort_unstable();
    let mut from = 0u32;
    for fd in keep.into_iter().chain([u32::MAX]) {
        if fd > from {
            // SAFETY: the descriptors' owners are copies of the parent's, which are never used or dropped here.
            unsafe { libc::syscall(libc::SYS_close_range, from, fd - u32::from(fd != u32::MAX), 0) };
        }
        from = fd.saturating_add(1);
    }
}
