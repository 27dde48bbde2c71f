//! Mutexes, condition variables, read-write locks, once, semaphores: for C code, on futexes.
//!
//! All-zero static initialisers work, and so does glibc's for recursive mutexes. There is one CPU, so with preemption off a plain
//! look-then-change is atomic.

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: callers' objects are reached by pointer.

use crate::errno::{ret_errno, ret_int};
use crate::time::{expiry_of, timespec};
use core::{
    ffi::{c_int, c_uint, c_void},
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};
use donjon_base::{preempt, tls};
use donjon_os::{
    errno::{Errno, Result},
    sched::futex,
};

/// Waits while the word holds `expected`.
fn wait(word: &AtomicU32, expected: u32, deadline: Option<u64>) -> Result<()> {
    // SAFETY: a live word.
    match unsafe { futex::wait(word.as_ptr() as usize, expected, !0, deadline) } {
        Err(Errno::ETIMEDOUT) => Err(Errno::ETIMEDOUT),
        _ => Ok(()),
    }
}

fn wake(word: &AtomicU32, count: usize) {
    futex::wake(word.as_ptr() as usize, count, !0);
}

// ---- mutexes ----

/// `pthread_mutex_t` (40 bytes; `kind` where glibc has it).
#[repr(C)]
pub struct Mutex {
    /// 0 free, 1 locked, 2 locked and somebody waits.
    state: AtomicU32,
    depth: AtomicU32,
    owner: AtomicU32,
    _users: u32,
    kind: AtomicU32,
    _rest: [u32; 5],
}

const _: () = assert!(size_of::<Mutex>() == 40);
const RECURSIVE: u32 = 1;
const ERRORCHECK: u32 = 2;

impl Mutex {
    /// Its type. An adaptive one (3), which spins before it waits, is a plain one where there is one CPU.
    fn kind(&self) -> u32 {
        match self.kind.load(SeqCst) & 3 {
            3 => 0,
            kind => kind,
        }
    }

    fn lock(&self, deadline: Option<u64>) -> Result<()> {
        let _off = preempt::off();
        let me = tls::tcb().thread;
        let kind = self.kind();
        if kind != 0 && self.state.load(SeqCst) != 0 && self.owner.load(SeqCst) == me {
            if kind == ERRORCHECK {
                return Err(Errno::EDEADLK);
            }
            self.depth.fetch_add(1, SeqCst);
            return Ok(());
        }
        let mut taken = 1;
        while self.state.load(SeqCst) != 0 {
            self.state.store(2, SeqCst);
            wait(&self.state, 2, deadline)?;
            // There may be others that still wait.
            taken = 2;
        }
        self.state.store(taken, SeqCst);
        self.owner.store(me, SeqCst);
        Ok(())
    }

    fn try_lock(&self) -> Result<()> {
        let _off = preempt::off();
        let me = tls::tcb().thread;
        if self.state.load(SeqCst) == 0 {
            self.state.store(1, SeqCst);
            self.owner.store(me, SeqCst);
            return Ok(());
        }
        if self.kind() == RECURSIVE && self.owner.load(SeqCst) == me {
            self.depth.fetch_add(1, SeqCst);
            return Ok(());
        }
        Err(Errno::EBUSY)
    }

    fn unlock(&self) -> Result<()> {
        let _off = preempt::off();
        if self.kind() != 0 {
            if self.state.load(SeqCst) == 0 || self.owner.load(SeqCst) != tls::tcb().thread {
                return Err(Errno::EPERM);
            }
            if self.depth.load(SeqCst) > 0 {
                self.depth.fetch_sub(1, SeqCst);
                return Ok(());
            }
        }
        self.owner.store(0, SeqCst);
        if self.state.swap(0, SeqCst) == 2 {
            wake(&self.state, 1);
        }
        Ok(())
    }
}

/// `pthread_mutex_init`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_mutex_init(m: *mut Mutex, attr: *const u32) -> c_int {
    // SAFETY: null, or an initialised attribute, which holds the kind.
    let kind = unsafe { attr.as_ref() }.copied().unwrap_or(0);
    // SAFETY: the caller's memory for a mutex.
    unsafe {
        core::ptr::write_bytes(m, 0, 1);
        (*m).kind.store(kind & 3, SeqCst);
    }
    0
}

/// `pthread_mutex_destroy`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_mutex_destroy(m: *mut Mutex) -> c_int {
    // SAFETY: the caller's mutex.
    if unsafe { (*m).state.load(SeqCst) } == 0 { 0 } else { Errno::EBUSY.0 }
}

/// `pthread_mutex_lock`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_mutex_lock(m: *mut Mutex) -> c_int {
    // SAFETY: the caller's mutex.
    ret_errno(unsafe { &*m }.lock(None))
}

/// `pthread_mutex_timedlock`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_mutex_timedlock(m: *mut Mutex, at: *const timespec) -> c_int {
    // SAFETY: the caller's mutex and time.
    ret_errno(unsafe { expiry_of(libc::CLOCK_REALTIME, at) }.and_then(|d| unsafe { &*m }.lock(Some(d))))
}

/// `pthread_mutex_trylock`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_mutex_trylock(m: *mut Mutex) -> c_int {
    // SAFETY: the caller's mutex.
    ret_errno(unsafe { &*m }.try_lock())
}

/// `pthread_mutex_unlock`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_mutex_unlock(m: *mut Mutex) -> c_int {
    // SAFETY: the caller's mutex.
    ret_errno(unsafe { &*m }.unlock())
}

/// `pthread_mutexattr_init`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_mutexattr_init(attr: *mut u32) -> c_int {
    // SAFETY: the caller's pointer is writable.
    unsafe { *attr = 0 };
    0
}

/// `pthread_mutexattr_destroy`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pthread_mutexattr_destroy(_attr: *mut u32) -> c_int {
    0
}

/// `pthread_mutexattr_settype`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_mutexattr_settype(attr: *mut u32, kind: c_int) -> c_int {
    if !(0..=3).contains(&kind) {
        return Errno::EINVAL.0;
    }
    // SAFETY: the caller's attribute.
    unsafe { *attr = kind as u32 };
    0
}

// ---- condition variables ----

/// `pthread_cond_t` (48 bytes).
#[repr(C)]
pub struct Cond {
    /// Counts signals.
    sequence: AtomicU32,
    clock: AtomicU32,
    _rest: [u32; 10],
}

const _: () = assert!(size_of::<Cond>() == 48);

impl Cond {
    fn wait(&self, m: &Mutex, deadline: Option<u64>) -> Result<()> {
        let _off = preempt::off();
        let sequence = self.sequence.load(SeqCst);
        m.unlock()?;
        // Nobody runs between the unlock and this.
        let result = wait(&self.sequence, sequence, deadline);
        m.lock(None)?;
        result
    }

    fn signal(&self, count: usize) {
        let _off = preempt::off();
        self.sequence.fetch_add(1, SeqCst);
        wake(&self.sequence, count);
    }
}

/// `pthread_cond_init`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_cond_init(c: *mut Cond, attr: *const u32) -> c_int {
    // SAFETY: null, or an initialised attribute, which holds the clock.
    let clock = unsafe { attr.as_ref() }.copied().unwrap_or(0);
    // SAFETY: the caller's memory for a condition variable.
    unsafe {
        core::ptr::write_bytes(c, 0, 1);
        (*c).clock.store(clock, SeqCst);
    }
    0
}

/// `pthread_cond_destroy`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pthread_cond_destroy(_c: *mut Cond) -> c_int {
    0
}

/// `pthread_cond_wait`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_cond_wait(c: *mut Cond, m: *mut Mutex) -> c_int {
    // SAFETY: the caller's objects.
    ret_errno(unsafe { (*c).wait(&*m, None) })
}

/// `pthread_cond_timedwait`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_cond_timedwait(c: *mut Cond, m: *mut Mutex, at: *const timespec) -> c_int {
    // SAFETY: the caller's objects.
    unsafe {
        let clock = (*c).clock.load(SeqCst) as c_int;
        ret_errno(expiry_of(clock, at).and_then(|d| (*c).wait(&*m, Some(d))))
    }
}

/// `pthread_cond_clockwait`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_cond_clockwait(
    c: *mut Cond,
    m: *mut Mutex,
    clock: c_int,
    at: *const timespec,
) -> c_int {
    // SAFETY: the caller's objects.
    unsafe { ret_errno(expiry_of(clock, at).and_then(|d| (*c).wait(&*m, Some(d)))) }
}

/// `pthread_cond_signal`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_cond_signal(c: *mut Cond) -> c_int {
    // SAFETY: the caller's object.
    unsafe { (*c).signal(1) };
    0
}

/// `pthread_cond_broadcast`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_cond_broadcast(c: *mut Cond) -> c_int {
    // SAFETY: the caller's object.
    unsafe { (*c).signal(usize::MAX) };
    0
}

/// `pthread_condattr_init`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_condattr_init(attr: *mut u32) -> c_int {
    // SAFETY: the caller's pointer is writable.
    unsafe { *attr = 0 };
    0
}

/// `pthread_condattr_destroy`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pthread_condattr_destroy(_attr: *mut u32) -> c_int {
    0
}

/// `pthread_condattr_setclock`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_condattr_setclock(attr: *mut u32, clock: c_int) -> c_int {
    if clock != libc::CLOCK_REALTIME && clock != libc::CLOCK_MONOTONIC {
        return Errno::EINVAL.0;
    }
    // SAFETY: the caller's attribute.
    unsafe { *attr = clock as u32 };
    0
}

// ---- read-write locks ----

/// `pthread_rwlock_t` (56 bytes).
#[repr(C)]
pub struct RwLock {
    /// Number of readers, or [`WRITER`].
    state: AtomicU32,
    /// Counts releases; waited on.
    released: AtomicU32,
    /// The thread that holds it for writing.
    owner: AtomicU32,
    _rest: [u32; 11],
}

const _: () = assert!(size_of::<RwLock>() == 56);
const WRITER: u32 = u32::MAX;

impl RwLock {
    fn lock(&self, write: bool, block: bool) -> Result<()> {
        let _off = preempt::off();
        let me = tls::tcb().thread;
        loop {
            let state = self.state.load(SeqCst);
            if if write { state == 0 } else { state < WRITER - 1 } {
                self.state.store(if write { WRITER } else { state + 1 }, SeqCst);
                self.owner.store(me, SeqCst);
                return Ok(());
            }
            if !block {
                return Err(Errno::EBUSY);
            }
            if state == WRITER && self.owner.load(SeqCst) == me {
                return Err(Errno::EDEADLK);
            }
            wait(&self.released, self.released.load(SeqCst), None)?;
        }
    }

    fn unlock(&self) {
        let _off = preempt::off();
        let state = self.state.load(SeqCst);
        let left = if state == WRITER { 0 } else { state.saturating_sub(1) };
        self.state.store(left, SeqCst);
        if left == 0 {
            self.released.fetch_add(1, SeqCst);
            wake(&self.released, usize::MAX);
        }
    }
}

/// `pthread_rwlock_init`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_rwlock_init(l: *mut RwLock, _attr: *const c_void) -> c_int {
    // SAFETY: the caller's memory for a lock.
    unsafe { core::ptr::write_bytes(l, 0, 1) };
    0
}

/// `pthread_rwlock_destroy`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pthread_rwlock_destroy(_l: *mut RwLock) -> c_int {
    0
}

macro_rules! rwlock {
    ($($name:ident $write:literal $block:literal)*) => {$(
        #[doc = concat!("`", stringify!($name), "`.")]
        ///
        /// # Safety
        /// As in C.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $name(l: *mut RwLock) -> c_int {
            // SAFETY: the caller's lock.
            ret_errno(unsafe { (*l).lock($write, $block) })
        }
    )*};
}

rwlock! {
    pthread_rwlock_rdlock false true
    pthread_rwlock_tryrdlock false false
    pthread_rwlock_wrlock true true
    pthread_rwlock_trywrlock true false
}

/// `pthread_rwlock_unlock`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_rwlock_unlock(l: *mut RwLock) -> c_int {
    // SAFETY: the caller's lock.
    unsafe { (*l).unlock() };
    0
}

// ---- once ----

/// `pthread_once`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_once(once: *mut u32, f: extern "C" fn()) -> c_int {
    const RUNNING: u32 = 1;
    const DONE: u32 = 2;
    // SAFETY: the caller's word.
    let word = unsafe { AtomicU32::from_ptr(once) };
    loop {
        match word.compare_exchange(0, RUNNING, SeqCst, SeqCst) {
            Ok(_) => {
                f();
                word.store(DONE, SeqCst);
                wake(word, usize::MAX);
                return 0;
            }
            Err(DONE) => return 0,
            Err(_) => {
                let _ = wait(word, RUNNING, None);
            }
        }
    }
}

// ---- semaphores ----

/// `sem_init`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn sem_init(s: *mut u32, _shared: c_int, value: c_uint) -> c_int {
    // SAFETY: the caller's memory for a semaphore.
    unsafe { AtomicU32::from_ptr(s) }.store(value, SeqCst);
    0
}

/// `sem_destroy`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn sem_destroy(_s: *mut u32) -> c_int {
    0
}

fn sem_take(s: &AtomicU32, block: bool, deadline: Option<u64>) -> Result<i32> {
    let _off = preempt::off();
    loop {
        let value = s.load(SeqCst);
        if value > 0 {
            s.store(value - 1, SeqCst);
            return Ok(0);
        }
        if !block {
            return Err(Errno::EAGAIN);
        }
        wait(s, 0, deadline)?;
    }
}

/// `sem_wait`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn sem_wait(s: *mut u32) -> c_int {
    // SAFETY: the caller's semaphore.
    ret_int(sem_take(unsafe { AtomicU32::from_ptr(s) }, true, None))
}

/// `sem_trywait`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn sem_trywait(s: *mut u32) -> c_int {
    // SAFETY: the caller's semaphore.
    ret_int(sem_take(unsafe { AtomicU32::from_ptr(s) }, false, None))
}

/// `sem_timedwait`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn sem_timedwait(s: *mut u32, at: *const timespec) -> c_int {
    // SAFETY: the caller's semaphore and time.
    ret_int(unsafe {
        expiry_of(libc::CLOCK_REALTIME, at).and_then(|d| sem_take(AtomicU32::from_ptr(s), true, Some(d)))
    })
}

/// `sem_post`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn sem_post(s: *mut u32) -> c_int {
    // SAFETY: the caller's semaphore.
    let word = unsafe { AtomicU32::from_ptr(s) };
    if word.fetch_update(SeqCst, SeqCst, |v| (v < i32::MAX as u32).then_some(v + 1)).is_err() {
        return ret_int(Err(Errno::EOVERFLOW));
    }
    wake(word, 1);
    0
}

/// `sem_getvalue`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn sem_getvalue(s: *mut u32, out: *mut c_int) -> c_int {
    // SAFETY: the caller's semaphore and result.
    unsafe { *out = AtomicU32::from_ptr(s).load(SeqCst) as c_int };
    0
}
