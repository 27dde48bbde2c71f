//! A program that believes that its kernel has no vDSO: there, the C library reads the clock with system calls.

#![expect(unsafe_code, reason = "ptrace")]
// UNSAFETY: ptrace and waitpid, of a child of ours; their arguments are numbers and a local.

use std::fs::{File, OpenOptions, read_to_string};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Starts it, and takes the vDSO's address out of what the kernel has put on its stack, before its first instruction.
pub fn spawn(command: &mut Command) -> io::Result<Child> {
    // SAFETY: 1. between fork and exec this is one system call, 2. it takes no pointer.
    unsafe { command.pre_exec(|| succeed(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0))) };
    // It stops at the end of exec.
    let child = command.spawn()?;
    let pid = child.id() as libc::pid_t;
    let mut status = 0;
    // SAFETY: the integer lives for the call.
    succeed(unsafe { libc::waitpid(pid, &raw mut status, 0) }.into())?;
    assert!(libc::WIFSTOPPED(status), "{status:#x}");
    hide(pid)?;
    // SAFETY: numbers; the process is stopped, and this thread is its tracer.
    succeed(unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, 0, 0) })?;
    Ok(child)
}

fn hide(pid: libc::pid_t) -> io::Result<()> {
    let stat = read_to_string(format!("/proc/{pid}/stat"))?;
    // proc(5), field 28: the start of the stack. The name, field 2, may have spaces.
    let start: u64 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(25).unwrap().parse().unwrap();
    let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
    // The number of arguments, these and the environment, each with a zero behind it, then pairs of words.
    let argc = word(&memory, start)?;
    let mut at = start + 8 * (argc + 2);
    while word(&memory, at)? != 0 {
        at += 8;
    }
    at += 8;
    while word(&memory, at)? != libc::AT_SYSINFO_EHDR {
        assert_ne!(word(&memory, at)?, libc::AT_NULL, "there is no vDSO to hide");
        at += 16;
    }
    memory.write_all_at(&libc::AT_IGNORE.to_ne_bytes(), at)
}

fn word(memory: &File, at: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    memory.read_exact_at(&mut bytes, at)?;
    Ok(u64::from_ne_bytes(bytes))
}

fn succeed(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
