//! Signals as events.

#![expect(unsafe_code, reason = "signal masks, signalfd and timers on another process's clock")]
// UNSAFETY: calls into libc with pointers to locals.

use std::io::{Error, Result};
use std::mem::zeroed;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// Sent by [`CpuTimer`].
pub(crate) const CPU_TIMER: i32 = libc::SIGURG;

/// SIGINT, SIGTERM, SIGHUP and [`CPU_TIMER`] of this thread, blocked and readable while this lives; but not what was ignored at the start, which
/// stays so: SIGHUP under nohup(1), SIGINT of what a script starts with `&`.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: OwnedFd,
    before: libc::sigset_t,
}

impl std::fmt::Debug for CpuTimer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CpuTimer")
    }
}

impl Signals {
    pub fn take() -> Result<Signals> {
        // SAFETY: 1. a sigset is plain bytes, and sigemptyset initialises it, 2. both sets and the action outlive the calls, 3. a sigaction of zeros is
        // valid, and with a null pointer nothing is changed, 4. the descriptor is new and nobody else's.
        unsafe {
            let mut set: libc::sigset_t = zeroed();
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, CPU_TIMER] {
                let mut action: libc::sigaction = zeroed();
                libc::sigaction(signal, std::ptr::null(), &mut action);
                let ignored = action.sa_sigaction == libc::SIG_IGN;
                if !(ignored && matches!(signal, libc::SIGINT | libc::SIGHUP)) {
                    libc::sigaddset(&mut set, signal);
                }
            }
            let mut before: libc::sigset_t = zeroed();
            let failed = libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before);
            if failed != 0 {
                return Err(Error::from_raw_os_error(failed));
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                let error = Error::last_os_error();
                libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
                return Err(error);
            }
            Ok(Signals { fd: OwnedFd::from_raw_fd(fd), before })
        }
    }

    /// The next signal that has arrived.
    pub fn next(&self) -> Option<i32> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.fd, &mut info) {
            Ok(n) if n == info.len() => Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]])),
            _ => None,
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: `before` is what pthread_sigmask returned.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

/// Sends [`CPU_TIMER`] to this thread for each period of processor time that another process uses: an idle process causes no wakeups.
pub(crate) struct CpuTimer(libc::timer_t);

impl CpuTimer {
    pub fn new(pid: i32, period_ns: i64) -> Result<CpuTimer> {
        // clock_getcpuclockid(3): the clock of a process's scheduled time.
        let clock = !pid << 3 | 2;
        // SAFETY: 1. a sigevent of zeros is valid, 2. all structures outlive the calls.
        unsafe {
            let mut event: libc::sigevent = zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = CPU_TIMER;
            event.sigev_notify_thread_id = libc::gettid();
            let mut timer: libc::timer_t = zeroed();
            if libc::timer_create(clock, &mut event, &mut timer) != 0 {
                return Err(Error::last_os_error());
            }
            let timer = CpuTimer(timer);
            let period = libc::timespec { tv_sec: 0, tv_nsec: period_ns };
            let times = libc::itimerspec { it_interval: period, it_value: period };
            if libc::timer_settime(timer.0, 0, &times, std::ptr::null_mut()) != 0 {
                return Err(Error::last_os_error());
            }
            Ok(timer)
        }
    }
}

impl Drop for CpuTimer {
    fn drop(&mut self) {
        // SAFETY: the timer is ours and is deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}
