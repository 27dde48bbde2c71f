//! Terminals: there is none, so what asks about one is told ENOTTY (or EBADF).

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: C callers' pointers.

use crate::errno::{ret_errno, ret_int};
use core::ffi::{c_char, c_int, c_void};
use donjon_os::errno::{Errno, Result};
use donjon_os::fd;

fn none(fd: c_int) -> Result<()> {
    fd::status(fd).and(Err(Errno::ENOTTY))
}

/// `isatty(3)`: nothing is a terminal.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn isatty(fd: c_int) -> c_int {
    ret_int(none(fd).map(|()| 0)).max(0)
}

/// `tcgetattr(3)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn tcgetattr(fd: c_int, _out: *mut c_void) -> c_int {
    ret_int(none(fd).map(|()| 0))
}

/// `tcsetattr(3)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn tcsetattr(fd: c_int, _when: c_int, _new: *const c_void) -> c_int {
    ret_int(none(fd).map(|()| 0))
}

/// `ttyname_r(3)`: returns the error itself.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn ttyname_r(fd: c_int, _name: *mut c_char, _len: usize) -> c_int {
    ret_errno(none(fd))
}

/// `cfmakeraw(3)`: changes the caller's structure only.
///
/// # Safety
/// `t` points to a `termios`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn cfmakeraw(t: *mut libc::termios) {
    use libc::{
        BRKINT, CS8, CSIZE, ECHO, ECHONL, ICANON, ICRNL, IEXTEN, IGNBRK, IGNCR, INLCR, ISIG, ISTRIP, IXON, OPOST,
        PARENB, PARMRK, VMIN, VTIME,
    };
    // SAFETY: by contract.
    let t = unsafe { &mut *t };
    t.c_iflag &= !(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
    t.c_oflag &= !OPOST;
    t.c_lflag &= !(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
    t.c_cflag = t.c_cflag & !(CSIZE | PARENB) | CS8;
    (t.c_cc[VMIN], t.c_cc[VTIME]) = (1, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_is_what_glibc_makes_it() {
        // SAFETY: plain structures.
        unsafe {
            let mut ours: libc::termios = core::mem::zeroed();
            (ours.c_iflag, ours.c_oflag, ours.c_lflag, ours.c_cflag) = (!0, !0, !0, !libc::CS8);
            let mut theirs = ours;
            cfmakeraw(&mut ours);
            libc::cfmakeraw(&mut theirs);
            let flags = |t: &libc::termios| (t.c_iflag, t.c_oflag, t.c_lflag, t.c_cflag, t.c_cc);
            assert_eq!(flags(&ours), flags(&theirs));
        }
    }
}
