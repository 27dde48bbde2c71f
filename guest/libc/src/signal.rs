//! Signals: see `donjon_os::signal` for what there is of them.

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: callers' pointers and handlers.

use crate::errno::{ret_errno, ret_int, set};
use core::ffi::{c_int, c_void};
use donjon_os::{
    errno::{Errno, Result},
    signal::{self, Action, Disposition},
};

/// `struct sigaction` as glibc has it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct SigAction {
    handler: usize,
    mask: [u64; 16],
    flags: u32,
    restorer: usize,
}

const _: () = assert!(size_of::<SigAction>() == 152);

const SIG_DFL: usize = 0;
const SIG_IGN: usize = 1;
const SIG_ERR: usize = usize::MAX;
const SA_SIGINFO: u32 = 4;

/// Tells the library OS how handlers are called.
pub(crate) fn init() {
    signal::init(deliver, crate::thread::ended);
}

fn deliver(number: i32, action: Action) {
    // `siginfo_t`: number, errno, code (SI_USER), sender.
    let mut info = [0u32; 32];
    info[0] = number as u32;
    // SAFETY: the program registered this function for this call.
    unsafe {
        if action.flags & SA_SIGINFO != 0 {
            let f: unsafe extern "C" fn(c_int, *mut c_void, *mut c_void) =
                core::mem::transmute(action.handler as *const ());
            f(number, info.as_mut_ptr().cast(), core::ptr::null_mut());
        } else {
            let f: unsafe extern "C" fn(c_int) = core::mem::transmute(action.handler as *const ());
            f(number);
        }
    }
}

fn to_c(number: c_int, a: Action) -> SigAction {
    let mut mask = [0; 16];
    mask[0] = a.mask;
    let handler = match a.disposition {
        // Faults have a handler: the one that writes the report.
        Disposition::Default if is_fault(number) => report as *const () as usize,
        Disposition::Default => SIG_DFL,
        Disposition::Ignore => SIG_IGN,
        Disposition::Handler => a.handler,
    };
    SigAction { handler, mask, flags: a.flags, restorer: 0 }
}

/// SIGILL, SIGBUS, SIGFPE, SIGSEGV.
fn is_fault(number: c_int) -> bool {
    matches!(number, 4 | 7 | 8 | 11)
}

/// Stands for the library OS's own handling of faults.
extern "C" fn report(_: c_int) {
    crate::process::abort()
}

/// `SIGRTMIN`, as glibc leaves it to programs.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn __libc_current_sigrtmin() -> c_int {
    34
}

/// `SIGRTMAX`: the last signal that can have an action.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn __libc_current_sigrtmax() -> c_int {
    64
}

/// `sigaction`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn sigaction(number: c_int, new: *const SigAction, old: *mut SigAction) -> c_int {
    ret_int((|| {
        let before = signal::action(number)?;
        // SAFETY: null or the caller's action.
        if let Some(new) = unsafe { new.as_ref() } {
            let disposition = match new.handler {
                SIG_DFL => Disposition::Default,
                SIG_IGN => Disposition::Ignore,
                _ => Disposition::Handler,
            };
            signal::set_action(
                number,
                Action { disposition, handler: new.handler, flags: new.flags, mask: new.mask[0] },
            )?;
        }
        if !old.is_null() {
            // SAFETY: the caller's pointer is writable.
            unsafe { *old = to_c(number, before) };
        }
        Ok(0)
    })())
}

/// `signal`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn signal(number: c_int, handler: usize) -> usize {
    let new = SigAction { handler, mask: [0; 16], flags: 0, restorer: 0 };
    let mut old = new;
    // SAFETY: live structures.
    if unsafe { sigaction(number, &raw const new, &raw mut old) } < 0 { SIG_ERR } else { old.handler }
}

/// `raise`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn raise(number: c_int) -> c_int {
    ret_int(signal::raise(number).map(|()| 0))
}

/// `kill`: this process only; signal 0 asks whether it exists.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn kill(pid: c_int, number: c_int) -> c_int {
    ret_int(match (pid, number) {
        (-1..=1, 0) => Ok(0),
        (0 | 1, n) => signal::raise(n).map(|()| 0),
        _ => Err(Errno::ESRCH),
    })
}

/// `pthread_kill`; signal 0 asks whether the thread exists.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pthread_kill(thread: usize, number: c_int) -> c_int {
    let id = donjon_os::sched::ThreadId::from_number(thread as u32);
    ret_errno(if !donjon_os::thread::exists(id) {
        Err(Errno::ESRCH)
    } else if number == 0 {
        Ok(())
    } else {
        signal::send(id, number)
    })
}

fn change_mask(how: c_int, new: Option<u64>) -> Result<u64> {
    let old = signal::mask();
    if let Some(new) = new {
        signal::set_mask(match how {
            libc::SIG_BLOCK => old | new,
            libc::SIG_UNBLOCK => old & !new,
            libc::SIG_SETMASK => new,
            _ => return Err(Errno::EINVAL),
        });
    }
    Ok(old)
}

/// `pthread_sigmask`: returns the error itself.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_sigmask(how: c_int, new: *const u64, old: *mut [u64; 16]) -> c_int {
    // SAFETY: null or the caller's set, whose first word has the 64 signals.
    ret_errno(change_mask(how, unsafe { new.as_ref() }.copied()).map(|before| {
        if !old.is_null() {
            let mut set = [0; 16];
            set[0] = before;
            // SAFETY: the caller's pointer is writable.
            unsafe { *old = set };
        }
    }))
}

/// `sigprocmask`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn sigprocmask(how: c_int, new: *const u64, old: *mut [u64; 16]) -> c_int {
    // SAFETY: the same contract.
    match unsafe { pthread_sigmask(how, new, old) } {
        0 => 0,
        e => ret_int(Err(Errno(e))),
    }
}

/// `sigpending`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn sigpending(out: *mut u64) -> c_int {
    // SAFETY: the caller's pointer is writable.
    unsafe { *out = signal::pending() };
    0
}

/// `sigaltstack`: handlers run on ordinary stacks, and faults are reported on the host's. Asking says "disabled"; setting is ENOSYS.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn sigaltstack(new: *const libc::stack_t, old: *mut libc::stack_t) -> c_int {
    if !old.is_null() {
        // SAFETY: the caller's pointer is writable.
        unsafe { *old = libc::stack_t { ss_sp: core::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 } };
    }
    // SAFETY: null or the caller's value.
    match unsafe { new.as_ref() } {
        Some(n) if n.ss_flags & libc::SS_DISABLE == 0 => {
            set(Errno::ENOSYS);
            -1
        }
        _ => 0,
    }
}

macro_rules! sets {
    ($($name:ident($set:ident $(, $n:ident)?) $body:expr;)*) => {$(
        #[doc = concat!("`", stringify!($name), "`.")]
        ///
        /// # Safety
        /// As in C.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($set: *mut [u64; 16] $(, $n: c_int)?) -> c_int {
            $(if !(1..=64).contains(&$n) {
                set(Errno::EINVAL);
                return -1;
            })?
            // SAFETY: the caller's set is writable.
            let $set = unsafe { &mut *$set };
            $body
        }
    )*};
}

sets! {
    sigemptyset(s) { *s = [0; 16]; 0 };
    sigfillset(s) { *s = [!0; 16]; 0 };
    sigaddset(s, n) { s[0] |= 1 << (n - 1); 0 };
    sigdelset(s, n) { s[0] &= !(1 << (n - 1)); 0 };
    sigismember(s, n) (s[0] >> (n - 1) & 1) as c_int;
}
