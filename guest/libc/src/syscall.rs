//! `syscall`: the variadic door that std, parking_lot and some C code use for what the C library has no function for.

#![expect(unsafe_code, reason = "C function")]
// UNSAFETY: arguments are pointers as the call's number says.

use crate::{errno::set, process, time};
use core::ffi::{c_int, c_long};
use donjon_base::clock;
use donjon_os::{
    errno::{Errno, Result},
    sched::futex,
};

/// `syscall(number, …)`. C passes variadic integer arguments as it passes fixed ones, so this needs no variadic definition.
///
/// # Safety
/// As the call with that number.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn syscall(number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long {
    let result = match number {
        // SAFETY: the caller's contract.
        libc::SYS_futex => unsafe { futex_call(a, b as c_int, c as u32, d, e, f as u32) },
        // SAFETY: the caller's contract.
        libc::SYS_getrandom => return unsafe { process::getrandom(a as *mut u8, b, c as u32) as c_long },
        libc::SYS_gettid => return c_long::from(crate::thread::gettid()),
        libc::SYS_tgkill if a == 1 => {
            return match crate::signal::pthread_kill(b, c as c_int) {
                0 => 0,
                e => c_long::from(crate::errno::ret_int(Err(Errno(e)))),
            };
        }
        libc::SYS_getpid => return c_long::from(process::getpid()),
        libc::SYS_sched_yield => return c_long::from(crate::thread::sched_yield()),
        // SAFETY: the caller's contract.
        libc::SYS_clock_gettime => return unsafe { time::clock_gettime(a as c_int, b as *mut _) }.into(),
        libc::SYS_exit | libc::SYS_exit_group => process::_exit(a as c_int),
        libc::SYS_statx => {
            // SAFETY: the caller's contract.
            return unsafe { crate::file::statx(a as c_int, b as *const _, c as c_int, d as u32, e as *mut _) }.into();
        }
        libc::SYS_close_range => return crate::io::close_range(a as u32, b as u32, c as c_int).into(),
        _ => Err(Errno::ENOSYS),
    };
    match result {
        Ok(n) => n as c_long,
        Err(error) => {
            set(error);
            -1
        }
    }
}

unsafe fn futex_call(word: usize, op: c_int, value: u32, d: usize, other: usize, value3: u32) -> Result<usize> {
    const ALL: u32 = u32::MAX;
    if word == 0 || !word.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    // Private or shared makes no difference to one process.
    let command = op & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    match command {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
            let deadline = if d == 0 {
                None
            } else if command == libc::FUTEX_WAIT {
                // SAFETY: the caller's time, relative.
                Some(clock::monotonic().saturating_add(unsafe { time::nanoseconds(d as *const _) }?))
            } else {
                let id =
                    if op & libc::FUTEX_CLOCK_REALTIME != 0 { libc::CLOCK_REALTIME } else { libc::CLOCK_MONOTONIC };
                // SAFETY: the caller's time, absolute.
                Some(unsafe { time::deadline_of(id, d as *const _) }?)
            };
            let bits = if command == libc::FUTEX_WAIT { ALL } else { value3 };
            if bits == 0 {
                return Err(Errno::EINVAL);
            }
            // SAFETY: the caller's word.
            unsafe { futex::wait(word, value, bits, deadline) }.map(|()| 0)
        }
        libc::FUTEX_WAKE => Ok(futex::wake(word, value as usize, ALL)),
        libc::FUTEX_WAKE_BITSET if value3 != 0 => Ok(futex::wake(word, value as usize, value3)),
        libc::FUTEX_REQUEUE => Ok(futex::requeue(word, value as usize, other, d)),
        libc::FUTEX_CMP_REQUEUE => {
            let _off = donjon_base::preempt::off();
            // SAFETY: the caller's word.
            if unsafe { core::ptr::read_volatile(word as *const u32) } != value3 {
                return Err(Errno::EAGAIN);
            }
            Ok(futex::requeue(word, value as usize, other, d))
        }
        libc::FUTEX_WAKE_BITSET => Err(Errno::EINVAL),
        _ => Err(Errno::ENOSYS),
    }
}
