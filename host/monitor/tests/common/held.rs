//! A program some of whose system calls, and its children's, wait until the test lets them go on (seccomp_unotify(2)).

#![expect(unsafe_code, reason = "seccomp, and ioctls of its listener")]
// UNSAFETY: system calls of a child of ours before exec, and ioctls; their arguments are numbers, constants and locals.

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Where the child has the listener until it is fetched.
const LISTENER: i32 = 100;

// linux/seccomp.h
const RECEIVE: u64 = 0xc050_2100;
const SEND: u64 = 0xc018_2101;
const CONTINUE: u32 = 1;

/// A call that waits: `struct seccomp_notif`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Call {
    id: u64,
    /// Who makes it.
    pub pid: u32,
    _flags: u32,
    /// Its number.
    pub number: i32,
    _arch: u32,
    _rest: [u64; 7],
}

/// The calls that wait.
pub struct Calls(OwnedFd);

/// Starts the program; calls of these numbers wait.
pub fn spawn(command: &mut Command, numbers: [u32; 2]) -> Result<(Child, Calls)> {
    let program = filter(numbers);
    // SAFETY: 1. between fork and exec these are system calls only, 2. the program is the closure's, and lives for the call.
    unsafe { command.pre_exec(move || listen(&program)) };
    let child = command.spawn()?;
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let listener = pidfd_getfd(&process, LISTENER, PidfdGetfdFlags::empty())?;
    Ok((child, Calls(listener)))
}

impl Calls {
    /// The next one, which must come within a minute.
    pub fn next(&self) -> Call {
        assert!(self.wait(60), "no call comes");
        let mut call = Call::default();
        // SAFETY: the structure is whole, all zeros, and lives for the call.
        let got = unsafe { libc::ioctl(self.0.as_raw_fd(), RECEIVE, &raw mut call) };
        assert_eq!(got, 0, "{}", Error::last_os_error());
        call
    }

    /// Whether there is another one now.
    pub fn more(&self) -> bool {
        self.wait(0)
    }

    fn wait(&self, seconds: i64) -> bool {
        let timeout = Timespec { tv_sec: seconds, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)) == Ok(1)
    }

    /// Lets it be made.
    pub fn go_on(&self, call: Call) {
        // `struct seccomp_notif_resp`: id, value, then error and flags.
        let answer = [call.id, 0, u64::from(CONTINUE) << 32];
        // SAFETY: the structure is whole and lives for the call.
        let sent = unsafe { libc::ioctl(self.0.as_raw_fd(), SEND, answer.as_ptr()) };
        assert_eq!(sent, 0, "{}", Error::last_os_error());
    }
}

/// Loads the number; these are for the listener, all others pass.
fn filter([a, b]: [u32; 2]) -> [u64; 5] {
    let instruction = |code: u16, yes: u8, no: u8, value: u32| {
        u64::from(code) | u64::from(yes) << 16 | u64::from(no) << 24 | u64::from(value) << 32
    };
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    [
        instruction(LOAD, 0, 0, 0),
        instruction(EQUAL, 2, 0, a),
        instruction(EQUAL, 1, 0, b),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
    ]
}

fn listen(program: &[u64; 5]) -> Result<()> {
    #[repr(C)]
    struct Program {
        len: u16,
        code: *const u64,
    }
    let program = Program { len: 5, code: program.as_ptr() };
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the program lives for the call.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, u64::from(mode), flags, &raw const program) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let listener = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // Its copy outlives exec.
    // SAFETY: numbers.
    if unsafe { libc::dup2(listener.as_raw_fd(), LISTENER) } < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}
