//! Threads: `pthread_create` and its kin, attributes, thread-specific data, destructors of thread-local variables.

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: callers' pointers and callbacks.

use crate::errno::{ret_errno, ret_int};
use alloc::vec::Vec;
use core::ffi::{c_char, c_int, c_void};
use donjon_base::{Lock, preempt, tls};
use donjon_os::{
    errno::{Errno, Result},
    mem,
    sched::{self, ThreadId},
    thread,
};

/// `pthread_t`: the thread's number.
pub type Pthread = usize;

type Start = unsafe extern "C" fn(*mut c_void) -> *mut c_void;
type Destructor = unsafe extern "C" fn(*mut c_void);

/// `pthread_attr_t` (56 bytes under glibc).
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Attr {
    stack_size: usize,
    guard_size: usize,
    /// Lowest address; only set by `pthread_getattr_np`.
    stack_address: usize,
    detached: c_int,
    _reserved: [u32; 7],
}

const _: () = assert!(size_of::<Attr>() == 56);
const GUARD: usize = donjon_base::PAGE;

impl Attr {
    const DEFAULT: Attr =
        Attr { stack_size: thread::STACK_DEFAULT, guard_size: GUARD, stack_address: 0, detached: 0, _reserved: [0; 7] };
}

fn id(t: Pthread) -> ThreadId {
    ThreadId::from_number(u32::try_from(t).unwrap_or(0))
}

/// `pthread_create`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_create(out: *mut Pthread, attr: *const Attr, start: Start, arg: *mut c_void) -> c_int {
    // SAFETY: null or an initialised attribute.
    let attr = unsafe { attr.as_ref() }.copied().unwrap_or(Attr::DEFAULT);
    let detached = attr.detached == libc::PTHREAD_CREATE_DETACHED;
    let _off = preempt::off();
    ret_errno(thread::start(run, start as usize, arg as usize, attr.stack_size, detached).map(|t| {
        // SAFETY: the caller's pointer is writable.
        unsafe { *out = t.number() as usize }
    }))
}

fn run(start: usize, arg: usize) -> usize {
    // SAFETY: `pthread_create` got this as a `Start`.
    let start: Start = unsafe { core::mem::transmute(start as *const ()) };
    // SAFETY: the program's own contract between its start routine and its argument.
    let result = unsafe { start(arg as *mut c_void) };
    end(result)
}

/// Ends the running thread, and with the last one the process, as if that had called `exit(0)` (pthread_exit(3)).
fn end(result: *mut c_void) -> ! {
    run_destructors();
    {
        // No other thread may end between the question and this one's end.
        let off = preempt::off();
        if !sched::is_last() {
            thread::exit(result as usize)
        }
        drop(off);
    }
    crate::process::exit(0)
}

/// A thread that C code has not started has come to its end.
pub(crate) fn ended() {
    end(core::ptr::null_mut())
}

/// `pthread_exit`. Destructors of thread-local data run; the stack is not unwound.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pthread_exit(result: *mut c_void) -> ! {
    end(result)
}

/// `pthread_join`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_join(t: Pthread, out: *mut *mut c_void) -> c_int {
    ret_errno(thread::join(id(t)).map(|result| {
        if !out.is_null() {
            // SAFETY: the caller's pointer is writable.
            unsafe { *out = result as *mut c_void }
        }
    }))
}

/// `pthread_detach`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pthread_detach(t: Pthread) -> c_int {
    ret_errno(thread::detach(id(t)))
}

/// `pthread_self`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pthread_self() -> Pthread {
    tls::tcb().thread as usize
}

/// `pthread_equal`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pthread_equal(a: Pthread, b: Pthread) -> c_int {
    c_int::from(a == b)
}

/// `gettid`: the first thread's number is the process's.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn gettid() -> c_int {
    tls::tcb().thread as c_int
}

/// `sched_yield`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn sched_yield() -> c_int {
    sched::yield_now();
    0
}

/// `sched_getaffinity`: one CPU, number 0. Returns 0; the set is filled as glibc does.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn sched_getaffinity(_pid: c_int, size: usize, set: *mut u8) -> c_int {
    if size < 8 {
        return ret_int(Err(Errno::EINVAL));
    }
    // SAFETY: the caller's set has `size` bytes.
    unsafe {
        core::ptr::write_bytes(set, 0, size);
        *set = 1;
    }
    0
}

/// `__sched_cpucount`, what `CPU_COUNT` calls: how many CPUs are in a set.
///
/// # Safety
/// `set` points to `size` readable bytes.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __sched_cpucount(size: usize, set: *const u8) -> c_int {
    // SAFETY: by contract.
    unsafe { core::slice::from_raw_parts(set, size) }.iter().map(|b| b.count_ones() as c_int).sum()
}

/// `pthread_setname_np`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_setname_np(t: Pthread, name: *const c_char) -> c_int {
    // SAFETY: a string that ends with a NUL.
    let name = unsafe { core::ffi::CStr::from_ptr(name) };
    ret_errno(thread::set_name(id(t), name.to_bytes()))
}

/// `pthread_getname_np`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_getname_np(t: Pthread, to: *mut c_char, len: usize) -> c_int {
    ret_errno((|| {
        let name = thread::name(id(t)).ok_or(Errno::ESRCH)?;
        let used = name.iter().position(|b| *b == 0).unwrap_or(15) + 1;
        if len < used {
            return Err(Errno::ERANGE);
        }
        // SAFETY: the caller's buffer has `len` bytes; the name's last byte is always 0.
        unsafe { core::ptr::copy_nonoverlapping(name.as_ptr(), to.cast(), used) };
        Ok(())
    })())
}

// ---- attributes ----

/// `pthread_attr_init`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_attr_init(attr: *mut Attr) -> c_int {
    // SAFETY: the caller's pointer is writable.
    unsafe { attr.write(Attr::DEFAULT) };
    0
}

/// `pthread_attr_destroy`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pthread_attr_destroy(_attr: *mut Attr) -> c_int {
    0
}

/// `pthread_attr_setstacksize`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_attr_setstacksize(attr: *mut Attr, size: usize) -> c_int {
    if size < thread::STACK_MIN {
        return Errno::EINVAL.0;
    }
    // SAFETY: an initialised attribute.
    unsafe { (*attr).stack_size = size };
    0
}

/// `pthread_attr_getstacksize`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_attr_getstacksize(attr: *const Attr, size: *mut usize) -> c_int {
    // SAFETY: an initialised attribute, a writable result.
    unsafe { *size = (*attr).stack_size };
    0
}

/// `pthread_attr_getguardsize`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_attr_getguardsize(attr: *const Attr, size: *mut usize) -> c_int {
    // SAFETY: an initialised attribute, a writable result.
    unsafe { *size = (*attr).guard_size };
    0
}

/// `pthread_attr_setguardsize`: every stack has a guard of one page; a larger one is refused.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pthread_attr_setguardsize(_attr: *mut Attr, size: usize) -> c_int {
    if size <= GUARD { 0 } else { Errno::EINVAL.0 }
}

/// `pthread_attr_getstack`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_attr_getstack(
    attr: *const Attr,
    address: *mut *mut c_void,
    size: *mut usize,
) -> c_int {
    // SAFETY: an initialised attribute, writable results.
    unsafe {
        *address = (*attr).stack_address as *mut c_void;
        *size = (*attr).stack_size;
    }
    0
}

/// `pthread_attr_setstack`: stacks of the caller's own have no guard page; refused.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pthread_attr_setstack(_attr: *mut Attr, _address: *mut c_void, _size: usize) -> c_int {
    Errno::ENOSYS.0
}

/// `pthread_attr_setdetachstate`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_attr_setdetachstate(attr: *mut Attr, state: c_int) -> c_int {
    if state != libc::PTHREAD_CREATE_DETACHED && state != libc::PTHREAD_CREATE_JOINABLE {
        return Errno::EINVAL.0;
    }
    // SAFETY: an initialised attribute.
    unsafe { (*attr).detached = state };
    0
}

/// `pthread_attr_getdetachstate`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_attr_getdetachstate(attr: *const Attr, state: *mut c_int) -> c_int {
    // SAFETY: an initialised attribute, a writable result.
    unsafe { *state = (*attr).detached };
    0
}

/// `pthread_getattr_np`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_getattr_np(t: Pthread, attr: *mut Attr) -> c_int {
    ret_errno(thread::stack_range(id(t)).ok_or(Errno::ESRCH).map(|(base, len)| {
        // SAFETY: the caller's pointer is writable.
        unsafe { attr.write(Attr { stack_size: len, stack_address: base, ..Attr::DEFAULT }) }
    }))
}

// ---- thread-specific data ----

const KEYS_MAX: usize = 1024;
/// Rounds in which destructors run that set new values (PTHREAD_DESTRUCTOR_ITERATIONS).
const ROUNDS: usize = 4;

#[derive(Clone, Copy)]
struct Key {
    /// Odd while the key is in use; counts up with each creation and deletion, so that a new key finds no old values.
    sequence: usize,
    destructor: Option<Destructor>,
}

static KEYS: Lock<Vec<Key>> = Lock::new(Vec::new());

/// One thread's value of a key.
#[derive(Clone, Copy)]
#[repr(C)]
struct Value {
    sequence: usize,
    value: *mut c_void,
}

/// `pthread_key_create`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_key_create(out: *mut u32, destructor: Option<Destructor>) -> c_int {
    ret_errno(new_key(destructor).map(|key| {
        // SAFETY: the caller's pointer is writable.
        unsafe { *out = key }
    }))
}

/// `__pthread_key_create`: libgcc's unwinder looks for this name to learn whether there are threads.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __pthread_key_create(out: *mut u32, destructor: Option<Destructor>) -> c_int {
    // SAFETY: the same contract.
    unsafe { pthread_key_create(out, destructor) }
}

fn new_key(destructor: Option<Destructor>) -> Result<u32> {
    let mut keys = KEYS.lock();
    if let Some(i) = keys.iter().position(|k| k.sequence % 2 == 0) {
        keys[i] = Key { sequence: keys[i].sequence + 1, destructor };
        return Ok(i as u32);
    }
    if keys.len() >= KEYS_MAX {
        return Err(Errno::EAGAIN);
    }
    keys.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
    keys.push(Key { sequence: 1, destructor });
    Ok(keys.len() as u32 - 1)
}

/// `pthread_key_delete`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pthread_key_delete(key: u32) -> c_int {
    let mut keys = KEYS.lock();
    match keys.get_mut(key as usize).filter(|k| k.sequence % 2 == 1) {
        Some(k) => {
            *k = Key { sequence: k.sequence + 1, destructor: None };
            0
        }
        None => Errno::EINVAL.0,
    }
}

const VALUES: usize = 0;
const VALUES_LEN: usize = 1;
const DESTRUCTORS: usize = 2;

/// The running thread's values.
fn values() -> &'static mut [Value] {
    let t = tls::tcb();
    let (at, len) = (t.libc[VALUES].get(), t.libc[VALUES_LEN].get());
    if len == 0 {
        return &mut [];
    }
    // SAFETY: 1. `pthread_setspecific` allocated them; 2. only this thread uses them, and no two borrows of them overlap.
    unsafe { core::slice::from_raw_parts_mut(at as *mut Value, len) }
}

/// `pthread_getspecific`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn pthread_getspecific(key: u32) -> *mut c_void {
    let sequence = KEYS.lock().get(key as usize).map_or(0, |k| k.sequence);
    match values().get(key as usize) {
        Some(v) if v.sequence == sequence => v.value,
        _ => core::ptr::null_mut(),
    }
}

/// `pthread_setspecific`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_setspecific(key: u32, value: *mut c_void) -> c_int {
    let index = key as usize;
    let Some(sequence) = KEYS.lock().get(index).map(|k| k.sequence).filter(|s| s % 2 == 1) else {
        return Errno::EINVAL.0;
    };
    let len = values().len();
    if index >= len {
        let new_len = (index + 1).next_multiple_of(16);
        let t = tls::tcb();
        let old = t.libc[VALUES].get() as *mut u8;
        // SAFETY: the old array is this thread's own (or null).
        let new = unsafe { mem::realloc(old, new_len * size_of::<Value>()) };
        if new.is_null() {
            return Errno::ENOMEM.0;
        }
        // SAFETY: the new array has room for `new_len` values; zeros are empty ones.
        unsafe { core::ptr::write_bytes(new.cast::<Value>().add(len), 0, new_len - len) };
        t.libc[VALUES].set(new as usize);
        t.libc[VALUES_LEN].set(new_len);
    }
    values()[index] = Value { sequence, value };
    0
}

// ---- destructors ----

/// A destructor of a thread-local variable.
#[repr(C)]
struct Node {
    destructor: Destructor,
    object: *mut c_void,
    next: usize,
}

/// `__cxa_thread_atexit_impl`: runs a destructor when the thread ends. -1 without memory.
///
/// # Safety
/// As the C++ ABI says.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __cxa_thread_atexit_impl(
    destructor: Destructor,
    object: *mut c_void,
    _dso: *mut c_void,
) -> c_int {
    let node = mem::malloc(size_of::<Node>()).cast::<Node>();
    if node.is_null() {
        return -1;
    }
    let list = &tls::tcb().libc[DESTRUCTORS];
    // SAFETY: the node is new.
    unsafe { node.write(Node { destructor, object, next: list.get() }) };
    list.set(node as usize);
    0
}

/// Runs the running thread's destructors: first those of thread-local variables, then those of thread-specific data.
fn run_destructors() {
    run_local_destructors();
    run_key_destructors();
}

/// Runs the destructors of the running thread's thread-local variables, last registered first.
pub(crate) fn run_local_destructors() {
    let t = tls::tcb();
    while t.libc[DESTRUCTORS].get() != 0 {
        let at = t.libc[DESTRUCTORS].get() as *mut Node;
        // SAFETY: a node of this thread's list.
        let node = unsafe { at.read() };
        t.libc[DESTRUCTORS].set(node.next);
        // SAFETY: the node came from `malloc`.
        unsafe { mem::free(at.cast()) };
        // SAFETY: the program registered this call.
        unsafe { (node.destructor)(node.object) };
    }
}

fn run_key_destructors() {
    for _ in 0..ROUNDS {
        let mut again = false;
        for i in 0..values().len() {
            let v = values()[i];
            let key = KEYS.lock().get(i).copied();
            let Some(Key { sequence, destructor: Some(f) }) = key else { continue };
            if v.sequence == sequence && !v.value.is_null() {
                values()[i].value = core::ptr::null_mut();
                // SAFETY: the program registered this call.
                unsafe { f(v.value) };
                again = true;
            }
        }
        if !again {
            break;
        }
    }
    let t = tls::tcb();
    let old = t.libc[VALUES].replace(0);
    t.libc[VALUES_LEN].set(0);
    // SAFETY: this thread's own array.
    unsafe { mem::free(old as *mut u8) };
}
