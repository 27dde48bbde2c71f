//! What libgcc's unwinder asks for, and backtraces through it.

#![expect(unsafe_code, reason = "reads the program's headers, calls the unwinder")]
// UNSAFETY: C structures, and a symbol that may be missing.

use core::ffi::{c_char, c_int, c_void};
use donjon_base::{boot, tls::ProgramHeader, tls::program_headers};

const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const PT_TLS: u32 = 7;

/// `struct dl_phdr_info`.
#[repr(C)]
pub struct PhdrInfo {
    addr: usize,
    name: *const c_char,
    headers: *const ProgramHeader,
    count: u16,
    adds: u64,
    subs: u64,
    tls_module: usize,
    tls_data: *mut c_void,
}

/// `dl_iterate_phdr`: there is one object.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dl_iterate_phdr(
    f: unsafe extern "C" fn(*mut PhdrInfo, usize, *mut c_void) -> c_int,
    data: *mut c_void,
) -> c_int {
    let headers = program_headers();
    let has_tls = headers.iter().any(|h| h.kind == PT_TLS);
    let mut info = PhdrInfo {
        addr: boot().image.base as usize,
        name: c"".as_ptr(),
        headers: headers.as_ptr(),
        count: headers.len() as u16,
        adds: 1,
        subs: 0,
        tls_module: usize::from(has_tls),
        tls_data: core::ptr::null_mut(),
    };
    // SAFETY: the caller's function, with what it asks for.
    unsafe { f(&raw mut info, size_of::<PhdrInfo>(), data) }
}

/// `struct dwarf_eh_bases`.
#[repr(C)]
pub struct Bases {
    text: usize,
    data: usize,
    function: usize,
}

/// `_Unwind_Find_FDE`, in place of libgcc's: the packer has made the program's tables smaller (see [`donjon_abi::unwind`]). Null if the address is in
/// no function that can be unwound.
///
/// # Safety
/// To be called by the unwinder only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _Unwind_Find_FDE(pc: usize, bases: *mut Bases) -> *const c_void {
    let base = boot().image.base as usize;
    let found = || {
        let h = program_headers().iter().find(|h| h.kind == PT_GNU_EH_FRAME)?;
        // SAFETY: the header describes a part of the program's first, read-only segment.
        let table = unsafe { core::slice::from_raw_parts((base + h.vaddr) as *const u8, h.memory_len) };
        let found = donjon_abi::unwind::find(table, u32::try_from(pc.checked_sub(base)?).ok()?)?;
        Some((table.get(found.fde..)?.as_ptr(), found.function))
    };
    let Some((fde, function)) = found() else { return core::ptr::null() };
    // SAFETY: the caller's structure is writable.
    unsafe { *bases = Bases { text: 0, data: 0, function: base + function as usize } };
    fde.cast()
}

/// Prints the running thread's callers to standard error. The builder puts a jump to it in place of the function of std that prints the
/// backtrace of a panic (`host/image/src/trim.rs`), hence the result: 0 is its `Ok(())`.
///
/// Assembly, because a backtrace can only start where there are unwind tables (see `donjon_base::frames`).
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub extern "C" fn donjon_backtrace() -> c_int {
    core::arch::naked_asm!(
        "sub rsp, 8",
        "call {begin}",
        "mov rax, [rip + _Unwind_Backtrace@GOTPCREL]",
        "test rax, rax",
        "jz 2f",
        "lea rdi, [rip + {step}]",
        "xor esi, esi",
        "call rax",
        "2:",
        "call {end}",
        "xor eax, eax",
        "add rsp, 8",
        "ret",
        begin = sym donjon_os::fault::begin_backtrace,
        step = sym donjon_base::frames::step,
        end = sym donjon_os::fault::print_backtrace,
    )
}

/// `__tls_get_addr`: linkers turn its uses into direct ones in a program like ours; this is for objects where they cannot.
///
/// # Safety
/// As the ABI says: module (always 1) and offset.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __tls_get_addr(index: *const [usize; 2]) -> *mut c_void {
    // SAFETY: the compiler's own structure.
    let [_, offset] = unsafe { *index };
    (donjon_base::tls::block(donjon_base::tls::tcb()) + offset) as *mut c_void
}

/// C++'s handle of this object.
#[unsafe(no_mangle)]
pub static __dso_handle: usize = 0;
