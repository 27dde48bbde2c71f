//! The thread control block and the program's thread-local storage (ELF TLS variant II, x86-64 psABI §3.4).
//!
//! Both lie at the top of each thread's stack: `[guard page][stack …][TLS block][Tcb]`.

#![expect(unsafe_code, reason = "reads the program's own ELF headers, sets the FS base")]
// UNSAFETY: raw reads of linker-provided headers and writes to fresh stack memory.

use core::cell::Cell;

/// The thread control block: what `%fs:0` points to.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Tcb {
    /// The block's own address; compiled code reads it to find TLS variables.
    pub this: usize,
    _dtv: usize,
    _this_too: usize,
    _reserved: [usize; 2],
    /// What `-fstack-protector` code compares with, at `%fs:0x28`.
    pub canary: usize,
    /// What `setjmp` mangles addresses with, at `%fs:0x30`.
    pub pointer_guard: usize,
    /// The C library's `errno`.
    pub errno: Cell<i32>,
    /// The thread's number.
    pub thread: u32,
    /// For the libc door: destructor list and thread-specific data.
    pub libc: [Cell<usize>; 4],
}

const _: () = {
    assert!(core::mem::offset_of!(Tcb, canary) == 0x28);
    assert!(core::mem::offset_of!(Tcb, pointer_guard) == 0x30);
};

/// The running thread's control block.
#[inline]
pub fn tcb() -> &'static Tcb {
    #[cfg(donjon_guest)]
    {
        let at: *const Tcb;
        // SAFETY: the FS base is a `Tcb` from before the first thread runs until the guest ends.
        unsafe { core::arch::asm!("mov {}, fs:[0]", out(reg) at, options(nostack, preserves_flags, readonly, pure)) };
        // SAFETY: 1. as above; 2. it stays mapped while the thread runs, and only that thread gets this reference.
        unsafe { &*at }
    }
    #[cfg(not(donjon_guest))]
    {
        thread_local!(static TCB: &'static Tcb = Box::leak(Box::new(Tcb::new(0, [0; 2], 0))));
        TCB.with(|t| *t)
    }
}

impl Tcb {
    fn new(this: usize, secrets: [usize; 2], thread: u32) -> Self {
        Tcb {
            this,
            _dtv: 0,
            _this_too: this,
            _reserved: [0; 2],
            // The lowest byte is zero, so that string functions do not run over it unnoticed.
            canary: secrets[0] & !0xff,
            pointer_guard: secrets[1],
            errno: Cell::new(0),
            thread,
            libc: [const { Cell::new(0) }; 4],
        }
    }
}

/// Bytes below the top of a stack that [`install`] may use, alignment included.
pub fn size() -> usize {
    let t = template();
    (size_of::<Tcb>() + t.memory + 2 * t.align.max(64)).next_multiple_of(64)
}

/// Writes control block and TLS variables to the memory that ends at `top`. Returns the block's address, below which
/// [`size`] in total is used; the stack may begin at `top - size()`. `secrets` are canary and pointer guard, the same for all threads.
///
/// # Safety
/// `[top - size(), top)` must be writable and otherwise unused.
pub unsafe fn install(top: usize, secrets: [usize; 2], thread: u32) -> usize {
    let t = template();
    let at = (top - size_of::<Tcb>()) & !(t.align.max(64) - 1);
    let block = block_below(at, &t);
    // SAFETY: 1. the block lies within `size()` below `top`; 2. the initial image is part of the program.
    unsafe {
        core::ptr::copy_nonoverlapping(t.image.as_ptr(), block as *mut u8, t.image.len());
        core::ptr::write_bytes((block + t.image.len()) as *mut u8, 0, t.memory - t.image.len());
        core::ptr::write(at as *mut Tcb, Tcb::new(at, secrets, thread));
    }
    at
}

/// Address of a thread's TLS block.
pub fn block(tcb: &Tcb) -> usize {
    let t = template();
    block_below(tcb.this, &t)
}

fn block_below(tcb: usize, t: &Template) -> usize {
    // As lld computes the offsets: the block's start is congruent to `p_vaddr` modulo the alignment.
    tcb - t.memory - (t.vaddr.wrapping_add(t.memory).wrapping_neg() & (t.align - 1))
}

/// Makes `tcb` the running thread's control block.
///
/// # Safety
/// `tcb` was returned by [`install`] and its memory is intact.
#[inline]
pub unsafe fn activate(tcb: usize) {
    #[cfg(donjon_guest)]
    if crate::boot().flags & donjon_abi::boot::flags::FSGSBASE != 0 {
        // SAFETY: the host says that the instruction is available.
        unsafe { core::arch::asm!("wrfsbase {}", in(reg) tcb, options(nostack, preserves_flags)) };
    } else {
        // SAFETY: by contract.
        let _ = unsafe { crate::gate::set_tls(tcb) };
    }
    #[cfg(not(donjon_guest))]
    let _ = tcb;
}

/// The program's `PT_TLS`.
struct Template {
    image: &'static [u8],
    memory: usize,
    align: usize,
    vaddr: usize,
}

#[cfg(donjon_guest)]
fn template() -> Template {
    let mut found = Template { image: &[], memory: 0, align: 1, vaddr: 0 };
    let base = crate::boot().image.base as usize;
    for h in program_headers() {
        if h.kind == PT_TLS {
            // SAFETY: the segment is part of the loaded, read-only or relocated image.
            let image = unsafe { core::slice::from_raw_parts((base + h.vaddr) as *const u8, h.file_len) };
            found = Template { image, memory: h.memory_len, align: h.align.max(1), vaddr: h.vaddr };
        }
    }
    found
}

#[cfg(not(donjon_guest))]
fn template() -> Template {
    Template { image: &[], memory: 0, align: 1, vaddr: 0 }
}

#[cfg(donjon_guest)]
const PT_TLS: u32 = 7;

/// One ELF64 program header.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ProgramHeader {
    /// `p_type`.
    pub kind: u32,
    /// `p_flags`.
    pub flags: u32,
    /// `p_offset`.
    pub offset: usize,
    /// `p_vaddr`: offset from the image base.
    pub vaddr: usize,
    /// `p_paddr`.
    pub paddr: usize,
    /// `p_filesz`.
    pub file_len: usize,
    /// `p_memsz`.
    pub memory_len: usize,
    /// `p_align`.
    pub align: usize,
}

/// The program's own program headers; the linker keeps them in the first segment.
#[cfg(donjon_guest)]
pub fn program_headers() -> &'static [ProgramHeader] {
    unsafe extern "C" {
        #[link_name = "__ehdr_start"]
        static EHDR: [u8; 64];
    }
    // SAFETY: the linker defines `__ehdr_start` as the ELF header inside the first segment.
    let header = unsafe { &EHDR };
    let at = u64::from_le_bytes([
        header[32], header[33], header[34], header[35], header[36], header[37], header[38], header[39],
    ]) as usize;
    let count = usize::from(u16::from_le_bytes([header[56], header[57]]));
    // SAFETY: the headers follow the ELF header in the same, read-only segment.
    unsafe { core::slice::from_raw_parts(header.as_ptr().add(at).cast(), count) }
}

/// Whether the code address is in an executable segment and the instruction before it looks like a call: whether it can be a
/// return address.
#[cfg(donjon_guest)]
pub fn follows_call(addr: usize) -> bool {
    const PT_LOAD: u32 = 1;
    const PF_X: u32 = 1;
    let offset = addr.wrapping_sub(crate::boot().image.base as usize);
    let inside = |h: &ProgramHeader| {
        h.kind == PT_LOAD && h.flags & PF_X != 0 && offset >= h.vaddr + 8 && offset < h.vaddr + h.memory_len
    };
    if !program_headers().iter().any(inside) {
        return false;
    }
    // SAFETY: the eight bytes before `addr` are in an executable, and so readable, segment.
    let b: [u8; 8] = unsafe { core::ptr::read_unaligned((addr - 8) as *const [u8; 8]) };
    // call rel32; call r/m64 of two to seven bytes: FF /2.
    b[3] == 0xe8 || (2..=7).any(|n| b[8 - n] == 0xff && b[8 - n + 1] >> 3 & 7 == 2)
}
