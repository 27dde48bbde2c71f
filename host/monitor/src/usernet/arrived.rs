//! Whether what was sent has arrived (`TCP_INFO`, tcp(7)).

#![expect(unsafe_code, reason = "rustix does not have the option")]
// UNSAFETY: a call into libc with pointers to locals.

use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd};

/// Whether the other side's kernel has acknowledged all that was sent, the end too if that was; also if it never will.
pub(super) fn all(socket: &OwnedFd) -> bool {
    // SAFETY: zeros are a valid value.
    let mut info = unsafe { zeroed::<libc::tcp_info>() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: 1. both live for the call, 2. the kernel writes no more than that length, 3. whatever it writes is a valid value.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut len)
    };
    done < 0 || (info.tcpi_unacked == 0 && info.tcpi_notsent_bytes == 0)
}
