//! The environment: `environ`, `getenv`, `setenv` and their kin.

#![expect(unsafe_code, reason = "C functions over C arrays")]
// UNSAFETY: `environ` is an array of strings that the program may change itself.

use crate::errno::{ret_int, set};
use core::{
    ffi::{CStr, c_char, c_int},
    sync::atomic::{AtomicPtr, Ordering::Relaxed},
};
use donjon_base::preempt;
use donjon_os::{
    errno::{Errno, Result},
    mem,
};

/// The environment, a null-terminated array of `NAME=value` strings.
#[cfg_attr(not(donjon_guest), expect(non_upper_case_globals, reason = "its C name"))]
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub static environ: AtomicPtr<*mut c_char> = AtomicPtr::new(core::ptr::null_mut());
/// `environ` under another name.
#[cfg_attr(not(donjon_guest), expect(non_upper_case_globals, reason = "its C name"))]
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub static __environ: AtomicPtr<*mut c_char> = AtomicPtr::new(core::ptr::null_mut());

/// Copies strings into a null-terminated C array on the heap. `None`: no memory.
pub(crate) fn c_array<'a>(strings: impl Iterator<Item = &'a [u8]> + Clone) -> Option<(*mut *mut c_char, usize)> {
    let count = strings.clone().count();
    let array = mem::calloc((count + 1) * size_of::<*mut c_char>()).cast::<*mut c_char>();
    if array.is_null() {
        return None;
    }
    for (i, s) in strings.enumerate() {
        let copy = mem::malloc(s.len() + 1);
        if copy.is_null() {
            return None;
        }
        // SAFETY: the copy has room for the string and its NUL, the array for the pointer.
        unsafe {
            core::ptr::copy_nonoverlapping(s.as_ptr(), copy, s.len());
            *copy.add(s.len()) = 0;
            *array.add(i) = copy.cast();
        }
    }
    Some((array, count))
}

/// Sets the first environment.
pub(crate) fn init(array: *mut *mut c_char) {
    environ.store(array, Relaxed);
    __environ.store(array, Relaxed);
}

/// Position of a variable, and its value.
unsafe fn find(name: &[u8]) -> Option<(usize, *mut c_char)> {
    let array = environ.load(Relaxed);
    if array.is_null() {
        return None;
    }
    for i in 0.. {
        // SAFETY: the array ends with null.
        let entry = unsafe { *array.add(i) };
        if entry.is_null() {
            break;
        }
        // SAFETY: entries are strings.
        let text = unsafe { CStr::from_ptr(entry) }.to_bytes();
        if text.len() > name.len() && text[name.len()] == b'=' && text.starts_with(name) {
            // SAFETY: inside the entry.
            return Some((i, unsafe { entry.add(name.len() + 1) }));
        }
    }
    None
}

fn count() -> usize {
    let array = environ.load(Relaxed);
    // SAFETY: the array ends with null.
    if array.is_null() { 0 } else { (0..).take_while(|i| !unsafe { *array.add(*i) }.is_null()).count() }
}

/// `getenv`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn getenv(name: *const c_char) -> *mut c_char {
    let _off = preempt::off();
    // SAFETY: the caller's string.
    unsafe { find(CStr::from_ptr(name).to_bytes()) }.map_or(core::ptr::null_mut(), |f| f.1)
}

/// `secure_getenv`: nothing is set-user-id here.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn secure_getenv(name: *const c_char) -> *mut c_char {
    // SAFETY: the same contract.
    unsafe { getenv(name) }
}

/// Puts an entry, already on the heap, into the array.
fn put(entry: *mut c_char, name: &[u8]) -> Result<()> {
    let array = environ.load(Relaxed);
    // SAFETY: the environment is intact, and preemption is off.
    if let Some((i, _)) = unsafe { find(name) } {
        // SAFETY: inside the array. The old string stays: somebody may have asked for it.
        unsafe { *array.add(i) = entry };
        return Ok(());
    }
    let n = count();
    // A new array each time: the program may hold the old one.
    let new = mem::calloc((n + 2) * size_of::<*mut c_char>()).cast::<*mut c_char>();
    if new.is_null() {
        return Err(Errno::ENOMEM);
    }
    // SAFETY: the new array has room for `n` entries, the new one and null.
    unsafe {
        if n > 0 {
            core::ptr::copy_nonoverlapping(array, new, n);
        }
        *new.add(n) = entry;
    }
    init(new);
    Ok(())
}

fn valid(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.contains(&b'=') { Err(Errno::EINVAL) } else { Ok(()) }
}

/// `setenv`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn setenv(name: *const c_char, value: *const c_char, overwrite: c_int) -> c_int {
    if name.is_null() {
        return ret_int(Err(Errno::EINVAL));
    }
    let _off = preempt::off();
    // SAFETY: the caller's strings.
    let (name, value) = unsafe { (CStr::from_ptr(name).to_bytes(), CStr::from_ptr(value).to_bytes()) };
    ret_int((|| {
        valid(name)?;
        // SAFETY: the environment is intact.
        if overwrite == 0 && unsafe { find(name) }.is_some() {
            return Ok(0);
        }
        let entry = mem::malloc(name.len() + value.len() + 2);
        if entry.is_null() {
            return Err(Errno::ENOMEM);
        }
        // SAFETY: the entry has room for both, `=` and NUL.
        unsafe {
            core::ptr::copy_nonoverlapping(name.as_ptr(), entry, name.len());
            *entry.add(name.len()) = b'=';
            core::ptr::copy_nonoverlapping(value.as_ptr(), entry.add(name.len() + 1), value.len());
            *entry.add(name.len() + 1 + value.len()) = 0;
        }
        put(entry.cast(), name).map(|()| 0)
    })())
}

/// `putenv`.
///
/// # Safety
/// As in C: the string becomes part of the environment.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn putenv(entry: *mut c_char) -> c_int {
    // SAFETY: the caller's string.
    let text = unsafe { CStr::from_ptr(entry) }.to_bytes();
    let Some(at) = text.iter().position(|b| *b == b'=') else {
        // SAFETY: as above.
        return unsafe { unsetenv(entry) };
    };
    let _off = preempt::off();
    ret_int(put(entry, &text[..at]).map(|()| 0))
}

/// `unsetenv`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn unsetenv(name: *const c_char) -> c_int {
    let _off = preempt::off();
    // SAFETY: the caller's string.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    if let Err(e) = valid(name) {
        set(e);
        return -1;
    }
    // SAFETY: the environment is intact; entries are moved down within the array, null included.
    while let Some((i, _)) = unsafe { find(name) } {
        let array = environ.load(Relaxed);
        for j in i..count() {
            // SAFETY: as above.
            unsafe { *array.add(j) = *array.add(j + 1) };
        }
    }
    0
}

/// `clearenv`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn clearenv() -> c_int {
    init(core::ptr::null_mut());
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe fn get(name: &CStr) -> Option<std::string::String> {
        // SAFETY: a string; what is found is one too.
        unsafe {
            let value = getenv(name.as_ptr());
            (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned())
        }
    }

    #[test]
    fn variables_are_set_changed_and_removed() {
        let _s = donjon_base::host::session();
        assert!(mem::init());
        let (array, count) = c_array([&b"A=1"[..], b"AB=2"].into_iter()).expect("memory");
        assert_eq!(count, 2);
        init(array);
        // SAFETY: all pointers are to live strings.
        unsafe {
            assert_eq!(get(c"A").as_deref(), Some("1"));
            assert_eq!(get(c"AB").as_deref(), Some("2"));
            assert_eq!(get(c""), None);
            assert_eq!(setenv(c"A".as_ptr(), c"no".as_ptr(), 0), 0);
            assert_eq!(get(c"A").as_deref(), Some("1"));
            assert_eq!(setenv(c"A".as_ptr(), c"yes".as_ptr(), 1), 0);
            assert_eq!(setenv(c"NEW".as_ptr(), c"".as_ptr(), 1), 0);
            assert_eq!(get(c"A").as_deref(), Some("yes"));
            assert_eq!(get(c"NEW").as_deref(), Some(""));
            assert_eq!(setenv(c"A=B".as_ptr(), c"".as_ptr(), 1), -1);
            assert_eq!(unsetenv(c"A".as_ptr()), 0);
            assert_eq!(get(c"A"), None);
            assert_eq!(get(c"AB").as_deref(), Some("2"));
            assert_eq!(clearenv(), 0);
            assert_eq!(get(c"AB"), None);
            assert_eq!(setenv(c"X".as_ptr(), c"1".as_ptr(), 1), 0);
            assert_eq!(get(c"X").as_deref(), Some("1"));
        }
        init(core::ptr::null_mut());
    }
}
