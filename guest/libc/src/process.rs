//! The one process: its end, its identity, its limits, what it can learn about the machine.

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: callers' pointers and callbacks.

use crate::errno::{ret_int, ret_size, set};
use alloc::vec::Vec;
use core::ffi::{c_char, c_int, c_long, c_ulong, c_void};
use donjon_base::{Lock, PAGE, boot};
use donjon_os::{
    errno::{Errno, Result},
    fault, fd, mem, random, sched, thread,
};

// ---- the end ----

#[derive(Clone, Copy)]
enum AtExit {
    Plain(extern "C" fn()),
    WithArgument(extern "C" fn(usize), usize),
}

static AT_EXIT: Lock<Vec<AtExit>> = Lock::new(Vec::new());

fn register(f: AtExit) -> c_int {
    let mut list = AT_EXIT.lock();
    if list.try_reserve(1).is_err() {
        return -1;
    }
    list.push(f);
    0
}

/// `atexit`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn atexit(f: extern "C" fn()) -> c_int {
    register(AtExit::Plain(f))
}

/// `__cxa_atexit`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn __cxa_atexit(f: extern "C" fn(usize), argument: usize, _dso: *mut c_void) -> c_int {
    register(AtExit::WithArgument(f, argument))
}

/// `exit`: destructors of the running thread's thread-local variables (those of keys are for threads that end), then `atexit` functions, last registered first, then what streams hold is written.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn exit(status: c_int) -> ! {
    crate::thread::run_local_destructors();
    loop {
        let Some(f) = AT_EXIT.lock().pop() else { break };
        match f {
            AtExit::Plain(f) => f(),
            AtExit::WithArgument(f, a) => f(a),
        }
    }
    let flush = crate::c::stdio::EXIT_HOOK.load(core::sync::atomic::Ordering::Relaxed);
    if !flush.is_null() {
        // SAFETY: only a function of this type is stored there.
        let flush: extern "C" fn() -> c_int = unsafe { core::mem::transmute(flush) };
        flush();
    }
    donjon_os::exit(status)
}

/// `_exit`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn _exit(status: c_int) -> ! {
    donjon_os::exit(status)
}

/// `_Exit`.
#[cfg_attr(not(donjon_guest), expect(non_snake_case, reason = "its C name"))]
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn _Exit(status: c_int) -> ! {
    donjon_os::exit(status)
}

/// `abort`: SIGABRT's handler, if there is one, then a report with a backtrace and exit status 134.
///
/// Assembly, because a backtrace can only start where there are unwind tables (see `donjon_base::frames`).
#[cfg(donjon_guest)]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub extern "C" fn abort() -> ! {
    core::arch::naked_asm!(
        "sub rsp, 8",
        "mov rax, [rip + _Unwind_Backtrace@GOTPCREL]",
        "test rax, rax",
        "jz 2f",
        "lea rdi, [rip + {step}]",
        "xor esi, esi",
        "call rax",
        "2:",
        "call {aborted}",
        "ud2",
        step = sym donjon_base::frames::step,
        aborted = sym aborted,
    )
}

/// `abort`, on a test host.
#[cfg(not(donjon_guest))]
pub extern "C" fn abort() -> ! {
    aborted()
}

extern "C" fn aborted() -> ! {
    use donjon_os::signal::{Disposition, SIGABRT, action, raise};
    if action(SIGABRT).is_ok_and(|a| a.disposition == Disposition::Handler) {
        let _ = raise(SIGABRT);
    }
    fault::end(format_args!("aborted"), fault::STATUS_ABORT)
}

// ---- identity ----

/// The process's number, and its first thread's.
const PID: c_int = 1;
/// There are no users; this is nobody in particular, and not root.
const UID: u32 = 1000;

/// `getpid`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn getpid() -> c_int {
    PID
}

/// `getppid`: none.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn getppid() -> c_int {
    0
}

macro_rules! ids {
    ($($name:ident)*) => {$(
        #[doc = concat!("`", stringify!($name), "`.")]
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub extern "C" fn $name() -> u32 {
            UID
        }
    )*};
}

ids! { getuid geteuid getgid getegid }

macro_rules! nobody {
    ($($name:ident)*) => {$(
        #[doc = concat!("`", stringify!($name), "`: there is no such entry, as there are no users: 0, and null as the result.")]
        ///
        /// # Safety
        /// As in C.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $name(
            _key: usize,
            _entry: *mut c_void,
            _buffer: *mut c_char,
            _len: usize,
            result: *mut *mut c_void,
        ) -> c_int {
            // SAFETY: the caller's pointer is writable.
            unsafe { *result = core::ptr::null_mut() };
            0
        }
    )*};
}

nobody! { getpwuid_r getpwnam_r getgrgid_r getgrnam_r }

macro_rules! nobody_static {
    ($($name:ident)*) => {$(
        #[doc = concat!("`", stringify!($name), "`: there is no such entry: null.")]
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub extern "C" fn $name(_key: usize) -> *mut c_void {
            core::ptr::null_mut()
        }
    )*};
}

nobody_static! { getpwuid getpwnam getgrgid getgrnam }

macro_rules! no_more {
    ($($name:ident)*) => {$(
        #[doc = concat!("`", stringify!($name), "`: the list of users or groups is empty: null.")]
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub extern "C" fn $name() -> *mut c_void {
            core::ptr::null_mut()
        }
    )*};
}

no_more! { getpwent getgrent }

macro_rules! from_the_start {
    ($($name:ident)*) => {$(
        #[doc = concat!("`", stringify!($name), "`: the list of users or groups is empty, wherever in it one is.")]
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub extern "C" fn $name() {}
    )*};
}

from_the_start! { setpwent endpwent setgrent endgrent }

/// `getgroups`: no supplementary ones.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn getgroups(size: c_int, _list: *mut u32) -> c_int {
    ret_int(if size < 0 { Err(Errno::EINVAL) } else { Ok(0) })
}

macro_rules! three_ids {
    ($($name:ident)*) => {$(
        #[doc = concat!("`", stringify!($name), "`: all three are the same.")]
        ///
        /// # Safety
        /// As in C.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $name(real: *mut u32, effective: *mut u32, saved: *mut u32) -> c_int {
            // SAFETY: the caller's pointers are writable.
            unsafe { (*real, *effective, *saved) = (UID, UID, UID) };
            0
        }
    )*};
}

three_ids! { getresuid getresgid }

/// `uname` (6 fields of 65 bytes).
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn uname(out: *mut [[u8; 65]; 6]) -> c_int {
    let engine = &boot().engine;
    let engine = engine.split(|b| *b == 0).next().unwrap_or_default();
    let fields: [&[u8]; 6] =
        [b"Donjon", crate::netdb::host_name(), env!("CARGO_PKG_VERSION").as_bytes(), engine, b"x86_64", b"(none)"];
    // SAFETY: the caller's structure is writable.
    let out = unsafe { &mut *out };
    for (to, from) in out.iter_mut().zip(fields) {
        *to = [0; 65];
        let n = from.len().min(64);
        to[..n].copy_from_slice(&from[..n]);
    }
    0
}

// ---- the machine ----

/// `sysconf`: what is known; everything else is EINVAL, or -1 alone for "no limit".
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn sysconf(name: c_int) -> c_long {
    match name {
        libc::_SC_PAGESIZE => PAGE as c_long,
        libc::_SC_NPROCESSORS_CONF | libc::_SC_NPROCESSORS_ONLN => 1,
        libc::_SC_CLK_TCK => 100,
        libc::_SC_PHYS_PAGES => (boot().memory / PAGE as u64) as c_long,
        libc::_SC_AVPHYS_PAGES => (mem::left() / PAGE) as c_long,
        libc::_SC_IOV_MAX => 1024,
        // Of every x86-64 processor.
        libc::_SC_LEVEL1_DCACHE_LINESIZE => 64,
        libc::_SC_HOST_NAME_MAX => 64,
        libc::_SC_NGROUPS_MAX => 65_536,
        libc::_SC_LINE_MAX => 2048,
        libc::_SC_THREAD_STACK_MIN => thread::STACK_MIN as c_long,
        libc::_SC_THREAD_KEYS_MAX => 1024,
        libc::_SC_OPEN_MAX => c_long::from(fd::limit()),
        libc::_SC_GETPW_R_SIZE_MAX | libc::_SC_GETGR_R_SIZE_MAX | libc::_SC_ARG_MAX | libc::_SC_CHILD_MAX => -1,
        libc::_SC_MONOTONIC_CLOCK | libc::_SC_THREADS => 200_809,
        _ => {
            set(Errno::EINVAL);
            -1
        }
    }
}

/// `getpagesize`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn getpagesize() -> c_int {
    PAGE as c_int
}

/// `get_nprocs`: one.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn get_nprocs() -> c_int {
    1
}

/// `get_nprocs_conf`: one.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn get_nprocs_conf() -> c_int {
    1
}

/// `getauxval`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn getauxval(kind: c_ulong) -> c_ulong {
    match kind {
        6 => PAGE as c_ulong,
        #[cfg(donjon_guest)]
        3 => donjon_base::tls::program_headers().as_ptr().addr() as c_ulong,
        4 => 56,
        #[cfg(donjon_guest)]
        5 => donjon_base::tls::program_headers().len() as c_ulong,
        11..=14 => c_ulong::from(UID),
        16 => c_ulong::from(core::arch::x86_64::__cpuid(1).edx),
        17 => 100,
        // AT_SECURE, AT_FLAGS: 0, and found.
        8 | 23 => 0,
        51 => 2048,
        _ => {
            set(Errno::ENOENT);
            0
        }
    }
}

fn limit(resource: c_int) -> Result<u64> {
    Ok(match resource as u32 {
        libc::RLIMIT_STACK => thread::STACK_MAIN as u64,
        libc::RLIMIT_NOFILE => u64::from(fd::limit()),
        libc::RLIMIT_CORE | libc::RLIMIT_MEMLOCK | libc::RLIMIT_NPROC => 0,
        libc::RLIMIT_AS | libc::RLIMIT_DATA | libc::RLIMIT_RSS => boot().memory,
        libc::RLIMIT_CPU | libc::RLIMIT_FSIZE => libc::RLIM_INFINITY,
        _ => return Err(Errno::EINVAL),
    })
}

/// `getrlimit`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn getrlimit(resource: c_int, out: *mut [u64; 2]) -> c_int {
    ret_int(limit(resource).map(|l| {
        // SAFETY: the caller's pointer is writable.
        unsafe { *out = [l, l] };
        0
    }))
}

/// `getrlimit64`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn getrlimit64(resource: c_int, out: *mut [u64; 2]) -> c_int {
    // SAFETY: the same contract.
    unsafe { getrlimit(resource, out) }
}

/// `setrlimit`: the number of descriptors can be changed. Setting another limit to what it is succeeds, everything else is EPERM.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn setrlimit(resource: c_int, new: *const [u64; 2]) -> c_int {
    // SAFETY: the caller's pointer is readable.
    let new = unsafe { *new };
    if resource as u32 == libc::RLIMIT_NOFILE {
        // Descriptor numbers are `int`s.
        fd::set_limit(new[0].min(i32::MAX as u64) as u32);
        return 0;
    }
    ret_int(limit(resource).and_then(|l| if new == [l, l] { Ok(0) } else { Err(Errno::EPERM) }))
}

/// `setrlimit64`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn setrlimit64(resource: c_int, new: *const [u64; 2]) -> c_int {
    // SAFETY: the same contract.
    unsafe { setrlimit(resource, new) }
}

/// `prlimit`: of the one process.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn prlimit(pid: c_int, resource: c_int, new: *const [u64; 2], old: *mut [u64; 2]) -> c_int {
    if !matches!(pid, 0 | 1) {
        return ret_int(Err(Errno::ESRCH));
    }
    // SAFETY: the same contract.
    if !old.is_null() && unsafe { getrlimit(resource, old) } != 0 {
        return -1;
    }
    // SAFETY: the same contract.
    if new.is_null() { 0 } else { unsafe { setrlimit(resource, new) } }
}

/// `prlimit64`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn prlimit64(pid: c_int, resource: c_int, new: *const [u64; 2], old: *mut [u64; 2]) -> c_int {
    // SAFETY: the same contract.
    unsafe { prlimit(pid, resource, new, old) }
}

/// `getpriority`: nobody has set one.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn getpriority(which: c_int, who: u32) -> c_int {
    ret_int(match (which, who) {
        (0..=2, 0) | (0, 1) => Ok(0),
        (0..=2, _) => Err(Errno::ESRCH),
        _ => Err(Errno::EINVAL),
    })
}

/// `getpgrp`: it cannot fail; the one process leads its group.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn getpgrp() -> c_int {
    1
}

/// `sysinfo`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn sysinfo(out: *mut libc::sysinfo) -> c_int {
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut s: libc::sysinfo = unsafe { core::mem::zeroed() };
    s.uptime = (sched::uptime() / 1_000_000_000) as c_long;
    s.totalram = boot().memory;
    s.freeram = mem::left() as u64;
    s.procs = sched::thread_count() as u16;
    s.mem_unit = 1;
    // SAFETY: the caller's pointer is writable.
    unsafe { *out = s };
    0
}

/// `getloadavg`: not known, which it says with -1.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn getloadavg(_out: *mut f64, _count: c_int) -> c_int {
    -1
}

/// `getrusage`: the time in which the guest was not idle, as user time; nothing else is counted. There are no children (RUSAGE_CHILDREN), and
/// a single thread's time is not kept (RUSAGE_THREAD is EINVAL).
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn getrusage(who: c_int, out: *mut libc::rusage) -> c_int {
    let busy = match who {
        libc::RUSAGE_SELF => sched::busy(),
        libc::RUSAGE_CHILDREN => 0,
        _ => return ret_int(Err(Errno::EINVAL)),
    };
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut r: libc::rusage = unsafe { core::mem::zeroed() };
    r.ru_utime.tv_sec = (busy / 1_000_000_000) as i64;
    r.ru_utime.tv_usec = (busy % 1_000_000_000 / 1000) as i64;
    // SAFETY: the caller's pointer is writable.
    unsafe { *out = r };
    0
}

/// `prctl`: the running thread's name (PR_SET_NAME, PR_GET_NAME); everything else is EINVAL.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn prctl(option: c_int, argument: *mut c_char) -> c_int {
    let me = sched::current();
    ret_int(match option {
        libc::PR_SET_NAME => {
            // SAFETY: the caller's string; longer ones are cut, as Linux does.
            let name = unsafe { core::ffi::CStr::from_ptr(argument) }.to_bytes();
            thread::set_name(me, &name[..name.len().min(15)]).map(|()| 0)
        }
        libc::PR_GET_NAME => {
            let name = thread::name(me).unwrap_or_default();
            // SAFETY: the caller's buffer has 16 bytes.
            unsafe { core::ptr::copy_nonoverlapping(name.as_ptr(), argument.cast(), 16) };
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    })
}

/// `sched_getcpu`: there is one.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn sched_getcpu() -> c_int {
    0
}

// ---- random numbers ----

/// `getrandom`: never blocks, never falls short.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn getrandom(to: *mut u8, len: usize, _flags: u32) -> isize {
    if len == 0 {
        return 0;
    }
    if to.is_null() {
        return ret_size(Err(Errno::EFAULT));
    }
    // SAFETY: the caller's buffer; it is only written to.
    random::fill(unsafe { core::slice::from_raw_parts_mut(to, len) });
    len as isize
}

/// `getentropy`: at most 256 bytes.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn getentropy(to: *mut u8, len: usize) -> c_int {
    if len > 256 {
        return ret_int(Err(Errno::EIO));
    }
    // SAFETY: the same contract.
    if unsafe { getrandom(to, len, 0) } < 0 { -1 } else { 0 }
}

/// `arc4random`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn arc4random() -> u32 {
    random::u64() as u32
}

/// `arc4random_buf`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn arc4random_buf(to: *mut u8, len: usize) {
    // SAFETY: the same contract.
    unsafe { getrandom(to, len, 0) };
}

// ---- dynamic linking: there is none ----

/// `dlsym`: there are no dynamic symbols. Null.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn dlsym(_handle: *mut c_void, _name: *const c_char) -> *mut c_void {
    core::ptr::null_mut()
}

/// `dlopen`: nothing can be loaded. Null.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn dlopen(_name: *const c_char, _flags: c_int) -> *mut c_void {
    core::ptr::null_mut()
}

/// `dlclose`: no handle is valid.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn dlclose(_handle: *mut c_void) -> c_int {
    -1
}

/// `dladdr`: no address belongs to a shared object; 0 is how it says so.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn dladdr(_at: *const c_void, _out: *mut c_void) -> c_int {
    0
}

/// `dlerror`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn dlerror() -> *const c_char {
    c"this program is sealed: nothing can be loaded into it".as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_fixed() {
        let _s = donjon_base::host::session();
        let mut l = [0; 2];
        // SAFETY: live arrays.
        unsafe {
            assert_eq!(getrlimit(libc::RLIMIT_STACK as c_int, &mut l), 0);
            assert_eq!(setrlimit(libc::RLIMIT_STACK as c_int, &l), 0);
            l[0] += 1;
            assert_eq!(setrlimit(libc::RLIMIT_STACK as c_int, &l), -1);
        }
    }
}
