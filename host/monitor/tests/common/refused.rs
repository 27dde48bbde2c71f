//! A program whose kernel seems not to have one of its system calls.

#![expect(unsafe_code, reason = "seccomp")]
// UNSAFETY: system calls of a child of ours before exec; their arguments are numbers and the closure's own program.

use std::io::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The call of this number fails with ENOSYS, from exec on.
pub fn from_the_start(command: &mut Command, number: u32) {
    let instruction = |code: u32, no: u8, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: no, k };
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let put_on = move || {
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: 1. numbers, 2. the program lives for the call.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
        };
        if failed { Err(Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec these are system calls only.
    unsafe { command.pre_exec(put_on) };
}
