//! A program whose kernel seems not to have one of its system calls.

#![expect(unsafe_code, reason = "seccomp")]
// UNSAFETY: system calls of a child of ours before exec; their arguments are numbers and the closure's own program.

use std::io::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;

const fn instruction(code: u32, (yes, no): (u8, u8), k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: yes, jf: no, k }
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const EQUALS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const HAS: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
/// Where a call's first argument is, its lower half.
const FIRST: u32 = 16;

/// The call of this number fails with ENOSYS, from exec on.
pub fn from_the_start(command: &mut Command, number: u32) {
    let refuse = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    under(
        command,
        [
            instruction(LOAD, (0, 0), 0),
            instruction(EQUALS, (0, 1), number),
            instruction(RETURN, (0, 0), refuse),
            instruction(RETURN, (0, 0), libc::SECCOMP_RET_ALLOW),
        ],
    );
}

/// The call of this number fails with EPERM, from exec on, but with one of these bits in its first argument.
pub fn without_bits(command: &mut Command, number: u32, bits: u32) {
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    under(
        command,
        [
            instruction(LOAD, (0, 0), 0),
            instruction(EQUALS, (0, 3), number),
            instruction(LOAD, (0, 0), FIRST),
            instruction(HAS, (1, 0), bits),
            instruction(RETURN, (0, 0), refuse),
            instruction(RETURN, (0, 0), libc::SECCOMP_RET_ALLOW),
        ],
    );
}

fn under<const N: usize>(command: &mut Command, mut program: [libc::sock_filter; N]) {
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
