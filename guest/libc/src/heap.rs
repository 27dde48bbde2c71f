//! `malloc` and its kin, `mmap` and its kin.

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: raw memory is handed out.

use crate::errno::{ret_int, set};
use core::ffi::{c_int, c_void};
use donjon_abi::Prot;
use donjon_base::PAGE;
use donjon_os::{
    errno::{Errno, Result},
    fd,
    fs::{
        map::{MapSource, map_source},
        shared,
    },
    mem::{self, Content},
};

fn or_enomem(p: *mut u8) -> *mut c_void {
    if p.is_null() {
        set(Errno::ENOMEM);
    }
    p.cast()
}

/// `malloc`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn malloc(size: usize) -> *mut c_void {
    or_enomem(mem::malloc(size))
}

/// `calloc`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        Some(total) => or_enomem(mem::calloc(total)),
        None => or_enomem(core::ptr::null_mut()),
    }
}

/// `realloc`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn realloc(p: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the caller's contract.
    or_enomem(unsafe { mem::realloc(p.cast(), size) })
}

/// `reallocarray`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn reallocarray(p: *mut c_void, count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller's contract.
        Some(total) => unsafe { realloc(p, total) },
        None => or_enomem(core::ptr::null_mut()),
    }
}

/// `free`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn free(p: *mut c_void) {
    // SAFETY: the caller's contract.
    unsafe { mem::free(p.cast()) }
}

/// `posix_memalign`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> c_int {
    if !align.is_power_of_two() || align < 8 {
        return Errno::EINVAL.0;
    }
    let p = mem::aligned(align, size);
    if p.is_null() {
        return Errno::ENOMEM.0;
    }
    // SAFETY: the caller's pointer is writable.
    unsafe { *out = p.cast() };
    0
}

/// `aligned_alloc`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    if !align.is_power_of_two() {
        set(Errno::EINVAL);
        return core::ptr::null_mut();
    }
    or_enomem(mem::aligned(align, size))
}

/// `memalign`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    aligned_alloc(align, size)
}

/// `malloc_usable_size`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn malloc_usable_size(p: *mut c_void) -> usize {
    mem::usable_size(p.cast())
}

/// `malloc_trim`: gives free memory back; returns 1.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn malloc_trim(_keep: usize) -> c_int {
    mem::trim();
    1
}

// ---- mappings ----

fn rights(prot: c_int) -> Result<Prot> {
    if prot & libc::PROT_EXEC != 0 {
        // Nobody in a guest can make memory executable.
        return Err(Errno::EACCES);
    }
    Ok(match (prot & libc::PROT_READ != 0, prot & libc::PROT_WRITE != 0) {
        (_, true) => Prot::ReadWrite,
        (true, false) => Prot::Read,
        (false, false) => Prot::None,
    })
}

/// `mmap`: anonymous memory, private mappings of files, shared ones of files in the tmpfs, read-only ones of the bundle's. Never executable
/// (EACCES).
///
/// # Safety
/// As in C: with MAP_FIXED, what was at the address is gone.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mmap(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    file: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: the caller's contract.
    match unsafe { map(addr as usize, len, prot, flags, file, offset) } {
        Ok(at) => at as *mut c_void,
        Err(e) => {
            set(e);
            libc::MAP_FAILED
        }
    }
}

/// `mmap64`.
///
/// # Safety
/// As `mmap`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mmap64(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    file: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: the same contract.
    unsafe { mmap(addr, len, prot, flags, file, offset) }
}

unsafe fn map(addr: usize, len: usize, prot: c_int, flags: c_int, file: c_int, offset: i64) -> Result<usize> {
    let rights = rights(prot)?;
    if len == 0 || offset % PAGE as i64 != 0 || offset < 0 {
        return Err(Errno::EINVAL);
    }
    let len = len.checked_next_multiple_of(PAGE).ok_or(Errno::ENOMEM)?;
    let shared = match flags & libc::MAP_TYPE {
        libc::MAP_PRIVATE => false,
        // One process shares with nobody, so for anonymous memory this is the same.
        libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE => true,
        _ => return Err(Errno::EINVAL),
    };
    let anonymous = flags & libc::MAP_ANONYMOUS != 0;
    if flags & (libc::MAP_HUGETLB | libc::MAP_GROWSDOWN) != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & libc::MAP_FIXED_NOREPLACE != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    if flags & libc::MAP_FIXED != 0 {
        if !anonymous || !addr.is_multiple_of(PAGE) || shared::mapped(addr, len).is_some() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: the caller gives up what is there.
        unsafe {
            mem::change(addr, len, rights)?;
            mem::discard(addr, len).map_err(|_| Errno::ENOMEM)?;
        }
        mem::renewed(addr, len, rights);
        return Ok(addr);
    }
    if anonymous {
        let charge = if rights == Prot::None { 0 } else { len };
        let at = mem::map(len, PAGE, charge).ok_or(Errno::ENOMEM)?;
        return finish(at, len, rights);
    }
    if shared && let Some(at) = shared::map(file, offset as u64, len, rights)? {
        return Ok(at);
    }
    let source = map_source(file, offset as u64, len)?;
    // A copy would not follow the file: only what nobody can write to may be shared.
    if shared && (rights == Prot::ReadWrite || source == MapSource::Changing) {
        return Err(Errno::ENODEV);
    }
    if let (MapSource::Static(data), Prot::Read) = (source, rights) {
        return Ok(data.as_ptr().addr());
    }
    let at = mem::map(len, PAGE, len).ok_or(Errno::ENOMEM)?;
    // SAFETY: the mapping is new, zeroed and nobody else's.
    let buffer = unsafe { core::slice::from_raw_parts_mut(at as *mut u8, len) };
    let mut done = 0;
    while done < len {
        match fd::pread_into(file, &mut buffer[done..], offset as u64 + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) => {
                // SAFETY: nobody has seen it.
                unsafe { mem::unmap(at, len) };
                return Err(e);
            }
        }
    }
    mem::set_copy(at, rights == Prot::ReadWrite);
    finish(at, len, rights)
}

/// Gives a new mapping its rights.
fn finish(at: usize, len: usize, rights: Prot) -> Result<usize> {
    if rights != Prot::ReadWrite {
        // SAFETY: the mapping is new.
        if unsafe { mem::protect(at, len, rights) }.is_err() {
            // SAFETY: nobody has seen it.
            unsafe { mem::unmap(at, len) };
            return Err(Errno::ENOMEM);
        }
    }
    Ok(at)
}

/// `munmap`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn munmap(addr: *mut c_void, len: usize) -> c_int {
    let at = addr as usize;
    if at.is_multiple_of(PAGE)
        && len > 0
        && let Some(len) = len.checked_next_multiple_of(PAGE)
        && let Some(done) = shared::unmap(at, len)
    {
        return ret_int(done.map(|()| 0));
    }
    let ok = at.is_multiple_of(PAGE)
        && len > 0
        // A file in the image stays where it is.
        && (in_bundle(at, len) ||
            // SAFETY: the caller's contract.
            unsafe { mem::unmap(at, len) });
    ret_int(if ok { Ok(0) } else { Err(Errno::EINVAL) })
}

fn in_bundle(at: usize, len: usize) -> bool {
    let b = donjon_base::boot().bundle;
    let (base, end) = (b.base as usize, (b.base + b.len.next_multiple_of(PAGE as u64)) as usize);
    at >= base && at.checked_add(len).is_some_and(|e| e <= end)
}

/// `mprotect`, for mappings; never executable (EACCES).
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn mprotect(addr: *mut c_void, len: usize, prot: c_int) -> c_int {
    let at = addr as usize;
    let result = (|| {
        let rights = rights(prot)?;
        if !at.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        if len == 0 {
            return Ok(0);
        }
        let len = len.checked_next_multiple_of(PAGE).ok_or(Errno::ENOMEM)?;
        match shared::mapped(at, len) {
            // The file's pages have the rights that their mappings were made with.
            Some(writable) if writable && rights == Prot::ReadWrite => Ok(0),
            Some(_) => Err(Errno::EACCES),
            // SAFETY: the caller's contract.
            None => unsafe { mem::change(at, len, rights) }.map(|()| 0),
        }
    })();
    ret_int(result)
}

/// `madvise`: MADV_DONTNEED and MADV_FREE on anonymous mappings do their work; advice that asks for nothing is taken; everything else
/// is EINVAL. So is MADV_DONTNEED for a private mapping of a file that could be written to: it would have to read the file again.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn madvise(addr: *mut c_void, len: usize, advice: c_int) -> c_int {
    let at = addr as usize;
    let result = match advice {
        _ if !at.is_multiple_of(PAGE) => Err(Errno::EINVAL),
        libc::MADV_DONTNEED | libc::MADV_FREE => {
            let len = len.next_multiple_of(PAGE);
            if len == 0 {
                Ok(0)
            } else if shared::mapped(at, len).is_some() || in_bundle(at, len) || mem::content(at, len) == Content::Copy
            {
                // The content is the file's. For it, giving the mapping's pages back means nothing, and freeing them is an error.
                if advice == libc::MADV_FREE { Err(Errno::EINVAL) } else { Ok(0) }
            } else if mem::content(at, len) == Content::Mixed {
                Err(Errno::EINVAL)
            } else if mem::is_mapped(at, len) {
                // SAFETY: the caller gives the content up.
                unsafe { mem::discard(at, len) }.map(|()| 0).map_err(|_| Errno::EINVAL)
            } else {
                Err(Errno::ENOMEM)
            }
        }
        // About the order of accesses: no promise is made. About fork and core dumps: there are none.
        libc::MADV_NORMAL
        | libc::MADV_RANDOM
        | libc::MADV_SEQUENTIAL
        | libc::MADV_WILLNEED
        | libc::MADV_DONTFORK
        | libc::MADV_DODUMP
        | libc::MADV_DONTDUMP => Ok(0),
        _ => Err(Errno::EINVAL),
    };
    ret_int(result)
}

/// `msync`: a shared mapping is the file's own memory, so there is nothing to write; what is not mapped is ENOMEM.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn msync(addr: *mut c_void, len: usize, flags: c_int) -> c_int {
    let at = addr as usize;
    let both = libc::MS_SYNC | libc::MS_ASYNC;
    ret_int(if flags & !(both | libc::MS_INVALIDATE) != 0 || flags & both == both || !at.is_multiple_of(PAGE) {
        Err(Errno::EINVAL)
    } else if in_bundle(at, len) || mem::is_mapped(at, len) {
        Ok(0)
    } else {
        Err(Errno::ENOMEM)
    })
}
