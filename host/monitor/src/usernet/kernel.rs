//! What the host's kernel keeps for a connection.

#![expect(unsafe_code, reason = "a socket option that rustix does not have")]
// UNSAFETY: calls into libc with pointers to locals.

use std::io::{Error, Result};
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

/// Bytes that a socket holds unsent before it says that it is full. (The kernel's own bound is `tcp_wmem`: 4 MiB for each client that does not read.)
/// It is writable again at half of that. What is on its way counts apart, so this costs no throughput, however long the way.
static UNSENT: libc::c_int = 128 << 10;

/// Bounds what a TCP socket holds unsent. Those that a listener accepts inherit it.
pub(super) fn bound_unsent(socket: &OwnedFd) -> Result<()> {
    let (value, size) = (&raw const UNSENT, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: 1. the pointer is to a constant of that size, 2. the kernel only reads it, 3. the descriptor is open.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, value.cast(), size) };
    if done == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}
