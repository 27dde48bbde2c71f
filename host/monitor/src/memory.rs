//! The monitor's own memory, of which a guest shall not have to pay for what only starting it took.

#![expect(unsafe_code, reason = "functions of the C library about its memory")]
// UNSAFETY: malloc_trim, dl_iterate_phdr and madvise, on what the allocator has freed and on maps that cannot be written.

use std::ffi::{c_int, c_void};

/// Gives freed memory back to the host.
pub(crate) fn release_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called at any time.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Takes the pages of the program and its libraries that cannot be written out of this process: what is used again comes back from their files. Most of it
/// has done its work when the guest begins: reading options, image and kernel interfaces.
pub(crate) fn release_program() {
    // SAFETY: the function fits, has no state, and does not unwind.
    unsafe { libc::dl_iterate_phdr(Some(release_object), std::ptr::null_mut()) };
}

/// For one of the loaded objects.
unsafe extern "C" fn release_object(info: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr(3): valid for this call, headers and all.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
        let from = (base + header.p_vaddr) & !(donjon_abi::PAGE - 1);
        let len = base + header.p_vaddr + header.p_memsz - from;
        // SAFETY: 1. the loader has mapped all of it, privately, from the object's file, 2. nobody has written to it: its flags forbid that, and a
        // program that is linked as Rust's has no relocations there. So each page comes back as it was.
        unsafe { libc::madvise(from as *mut c_void, len as usize, libc::MADV_DONTNEED) };
    }
    0
}
