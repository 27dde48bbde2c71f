//! Memory: the heap, and runs of pages for stacks, mappings and large buffers.
//!
//! - `class`: the size classes; `pages`: runs of pages, accounted against the boot page's memory; `heap`: slots over these.
//!
//! Running out is never a panic: the functions here return null or `None`, and the libc door turns that into ENOMEM.

#![expect(unsafe_code, reason = "raw memory is handed out")]
// UNSAFETY: this module's functions are `malloc` and its kin.
#![cfg_attr(donjon_soft_heap, expect(dead_code, reason = "the hardening's own"))]

mod class;
mod heap;
mod pages;
#[cfg(donjon_soft_heap)]
mod soft;
#[cfg(test)]
pub(crate) mod tests;

use crate::{errno::Errno, fatal};
use core::alloc::Layout;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use donjon_abi::Prot;
use donjon_base::{Lock, PAGE, boot, gate};
use heap::BadPointer;
use pages::{Kind, Pages};

static HEAP: Lock<Pages> = Lock::new(Pages::empty());

/// Takes over the reserve. Returns whether it is large enough for anything.
pub fn init() -> bool {
    let b = boot();
    // SAFETY: the reserve is the guest's, and nothing else uses it.
    let pages = unsafe { Pages::new(b.reserve.base as usize, b.reserve.len as usize, b.memory as usize) };
    match pages {
        Some(p) => {
            *HEAP.lock() = p;
            true
        }
        None => false,
    }
}

/// Bytes that can still be allocated, of which the program does not get the last few ([`Global`]). For decisions up front ("is there room for one
/// more connection?").
pub fn available() -> usize {
    HEAP.lock().available()
}

/// Bytes that the program can still allocate.
pub fn left() -> usize {
    let heap = HEAP.lock();
    heap.available().saturating_sub(heap.reserved as usize * PAGE)
}

/// Bytes of memory in all, of which `available` are left.
pub fn total() -> usize {
    HEAP.lock().limit()
}

/// Bytes in use and bytes in all, or `None` if the heap is not accessible. For fault reports.
pub(crate) fn try_usage() -> Option<(usize, usize)> {
    if HEAP.is_held() {
        return None;
    }
    let heap = HEAP.lock();
    Some((heap.limit() - heap.available(), heap.limit()))
}

/// Time between two looks at what was free all the while, ns.
const DECAY: u64 = 50_000_000;
/// When to look next.
static DECAY_AT: AtomicU64 = AtomicU64::new(0);

/// For the scheduler: gives back free memory that nobody has needed for a while.
pub(crate) fn decay(now: u64) -> Option<u64> {
    let at = DECAY_AT.load(Relaxed);
    let (at, more) = if now < at {
        (at, HEAP.lock().has_surplus())
    } else {
        DECAY_AT.store(now + DECAY, Relaxed);
        (now + DECAY, HEAP.lock().decay())
    };
    more.then_some(at)
}

/// Gives free memory that is kept for reuse back to the host.
pub fn trim() {
    HEAP.lock().trim();
}

/// Allocates `size` bytes, 16-byte aligned; null if there is no memory.
#[inline]
pub fn malloc(size: usize) -> *mut u8 {
    match HEAP.lock().malloc(size) {
        Some((p, _)) => p,
        None => core::ptr::null_mut(),
    }
}

/// Allocates `size` zeroed bytes, 16-byte aligned; null if there is no memory.
pub fn calloc(size: usize) -> *mut u8 {
    zeroed(HEAP.lock().malloc(size), size)
}

/// Allocates `size` bytes at a multiple of `align`, which must be a power of two; null if there is no memory.
pub fn aligned(align: usize, size: usize) -> *mut u8 {
    HEAP.lock().aligned(align, size).map_or(core::ptr::null_mut(), |(p, _)| p)
}

/// As [`aligned`], zeroed.
pub fn aligned_zeroed(align: usize, size: usize) -> *mut u8 {
    zeroed(HEAP.lock().aligned(align, size), size)
}

fn zeroed(p: Option<(*mut u8, bool)>, size: usize) -> *mut u8 {
    match p {
        Some((p, true)) => p,
        Some((p, false)) => {
            // SAFETY: the allocation has at least `size` bytes.
            unsafe { core::ptr::write_bytes(p, 0, size) };
            p
        }
        None => core::ptr::null_mut(),
    }
}

/// Frees an allocation; null is nothing. A pointer that is not an allocation ends the guest with a report.
///
/// # Safety
/// Nobody uses the allocation any more.
#[inline]
pub unsafe fn free(p: *mut u8) {
    if p.is_null() {
        return;
    }
    // The lock is released before a report is made.
    let result = HEAP.lock().dealloc(p as usize);
    if let Err(e) = result {
        bad_pointer("free", p, e);
    }
}

/// Changes an allocation's size; null if there is no memory (the old one stays). Null and 0 are as for C.
///
/// # Safety
/// The old address is not used any more, unless null was returned.
pub unsafe fn realloc(p: *mut u8, size: usize) -> *mut u8 {
    if p.is_null() {
        return malloc(size);
    }
    let result = HEAP.lock().realloc(p as usize, size);
    match result {
        Ok(new) => new.unwrap_or(core::ptr::null_mut()),
        Err(e) => bad_pointer("realloc", p, e),
    }
}

/// Bytes that the allocation has room for.
pub fn usable_size(p: *mut u8) -> usize {
    if p.is_null() {
        return 0;
    }
    let result = HEAP.lock().usable(p as usize);
    match result {
        Ok(size) => size,
        Err(e) => bad_pointer("malloc_usable_size", p, e),
    }
}

#[cold]
fn bad_pointer(function: &str, p: *mut u8, e: BadPointer) -> ! {
    match e {
        BadPointer::Free => fatal(format_args!("{function}: {p:p} is free already (double free)")),
        BadPointer::Invalid => fatal(format_args!("{function}: {p:p} is not an allocation")),
    }
}

// ---- runs of pages ----

/// Allocates a zeroed, page-aligned mapping of `len` bytes (rounded up to pages), of which `charge` bytes count against the memory
/// limit. `align` is in bytes, a power of two.
pub fn map(len: usize, align: usize, charge: usize) -> Option<usize> {
    let pages = u32::try_from(len.div_ceil(PAGE)).ok()?;
    let charge = u32::try_from(charge.div_ceil(PAGE)).ok()?.min(pages);
    let align = u32::try_from(align.div_ceil(PAGE)).ok()?.max(1);
    let a = HEAP.lock().alloc(pages, align, charge, Kind::Mapping)?;
    if !a.zeroed {
        // SAFETY: the run was just allocated.
        unsafe { core::ptr::write_bytes(a.addr as *mut u8, 0, pages as usize * PAGE) };
    }
    Some(a.addr)
}

/// Frees the mappings in the whole pages of `[addr, addr + len)`; what is free already is passed over, as by `munmap`. Returns false if any of it
/// is something else, or if there is no memory for the bookkeeping of a partial unmap; what was freed before that stays freed.
///
/// # Safety
/// Nobody uses the memory any more.
pub unsafe fn unmap(addr: usize, len: usize) -> bool {
    each(addr, len, |heap, span| {
        if heap.span(span).cursor & CHANGED != 0 {
            let (start, pages) = (heap.span(span).start, heap.span(span).pages);
            // SAFETY: rights are added to memory that nobody uses.
            if unsafe { gate::protect(heap.addr(start), pages as usize * PAGE, Prot::ReadWrite) }.is_err() {
                return false;
            }
        }
        heap.free(span);
        true
    })
}

/// In a mapping's `cursor`: its rights are not read-write throughout.
const CHANGED: u16 = 1;
/// Its content is a copy of a file's.
const COPY: u16 = 2;
/// The program could write to it at some time.
const WRITABLE: u16 = 4;

/// Cuts mappings at the ends of the range and calls `f` for each span in it. False if some of it is neither mapped nor free or `f` says so.
fn each(addr: usize, len: usize, mut f: impl FnMut(&mut Pages, u32) -> bool) -> bool {
    let mut heap = HEAP.lock();
    let Some(end) = addr.checked_add(len).and_then(|e| e.checked_next_multiple_of(PAGE)) else { return false };
    let mut at = addr;
    while at < end {
        let Some((mut span, start, stop)) = mapping(&mut heap, at) else {
            if !heap.is_hole(at) {
                return false;
            }
            at += PAGE;
            continue;
        };
        if start < at {
            let Some(rest) = heap.cut(span, ((at - start) / PAGE) as u32) else { return false };
            span = rest;
        }
        if stop > end && heap.cut(span, ((end - at) / PAGE) as u32).is_none() {
            return false;
        }
        if !f(&mut heap, span) {
            return false;
        }
        at = stop.min(end);
    }
    true
}

/// Whether `[addr, addr + len)` is wholly inside mappings.
pub fn is_mapped(addr: usize, len: usize) -> bool {
    let mut heap = HEAP.lock();
    let mut at = addr;
    while at < addr.saturating_add(len) {
        match mapping(&mut heap, at) {
            Some((_, _, stop)) => at = stop,
            None => return false,
        }
    }
    true
}

/// The mapping that contains `addr`: span, first address, end.
fn mapping(heap: &mut Pages, addr: usize) -> Option<(u32, usize, usize)> {
    let span = heap.span_of(addr);
    if span == 0 {
        return None;
    }
    let s = *heap.span(span);
    let start = heap.addr(s.start);
    let stop = start + s.pages as usize * PAGE;
    (s.kind == Kind::Mapping && (start..stop).contains(&addr)).then_some((span, start, stop))
}

/// Sets the rights of whole pages inside one mapping, without counting anything against the memory limit: for guard pages.
///
/// # Safety
/// No reference relies on the old rights.
pub unsafe fn protect(addr: usize, len: usize, prot: Prot) -> Result<(), donjon_abi::Error> {
    {
        let mut heap = HEAP.lock();
        let (span, ..) = mapping(&mut heap, addr).ok_or(donjon_abi::Error::BadAddress)?;
        heap.span(span).cursor |= CHANGED;
    }
    // SAFETY: by contract.
    unsafe { gate::protect(addr, len, prot) }
}

/// Sets the rights of whole pages of mappings. Pages that get any count against the memory limit from then on: under a hypervisor a page that is
/// only read has memory of its own, too.
/// ENOMEM if they do not fit or if some of the range is not mapped.
///
/// # Safety
/// No reference relies on the old rights.
pub unsafe fn change(addr: usize, len: usize, prot: Prot) -> Result<(), Errno> {
    if !is_mapped(addr, len) {
        return Err(Errno::ENOMEM);
    }
    // What is asked for must still be there when it is taken.
    let _off = donjon_base::preempt::off();
    if prot != Prot::None {
        // All of it or nothing: what fails must not count.
        let mut more = 0;
        let cut = each(addr, len, |heap, span| {
            let s = heap.span(span);
            more += s.pages - s.charge;
            true
        });
        let fits = cut && HEAP.lock().make_room(more);
        let charged = fits
            && each(addr, len, |heap, span| {
                let pages = heap.span(span).pages;
                heap.recharge(span, pages)
            });
        if !charged {
            return Err(Errno::ENOMEM);
        }
    }
    let mut heap = HEAP.lock();
    let mut at = addr;
    while at < addr + len {
        let (span, _, stop) = mapping(&mut heap, at).ok_or(Errno::ENOMEM)?;
        heap.span(span).cursor |= if prot == Prot::ReadWrite { CHANGED | WRITABLE } else { CHANGED };
        at = stop;
    }
    drop(heap);
    // SAFETY: by contract.
    unsafe { gate::protect(addr, len, prot) }.map_err(|_| Errno::ENOMEM)
}

/// Says that the new mapping at `addr` is a copy of a file's content, and whether the program can write to it.
pub fn set_copy(addr: usize, writable: bool) {
    let mut heap = HEAP.lock();
    if let Some((span, ..)) = mapping(&mut heap, addr) {
        heap.span(span).cursor |= if writable { COPY | WRITABLE } else { COPY };
    }
}

/// What a range of mappings holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Nothing of any file.
    Own,
    /// Files' content, as it was when it was mapped.
    Copy,
    /// Files' content that may have been changed, or both kinds.
    Mixed,
}

/// What is in whole pages of mappings.
pub fn content(addr: usize, len: usize) -> Content {
    let mut heap = HEAP.lock();
    let (mut at, mut all) = (addr, None);
    while at < addr.saturating_add(len)
        && let Some((span, _, stop)) = mapping(&mut heap, at)
    {
        let here = match heap.span(span).cursor & (COPY | WRITABLE) {
            COPY => Content::Copy,
            f if f & COPY == 0 => Content::Own,
            _ => Content::Mixed,
        };
        all = Some(if all.is_none_or(|a| a == here) { here } else { Content::Mixed });
        at = stop;
    }
    all.unwrap_or(Content::Own)
}

/// Whole pages of mappings have become anonymous memory again, which `discard` has emptied. Without rights they count for nothing.
pub fn renewed(addr: usize, len: usize, prot: Prot) {
    // Where there is no memory for the bookkeeping it stays as it was: no more than a charge too much.
    each(addr, len, |heap, span| {
        heap.span(span).cursor &= !COPY;
        prot != Prot::None || heap.recharge(span, 0)
    });
}

/// Gives the content of whole pages back to the host: they read as zeros next.
///
/// # Safety
/// Nobody relies on the content.
pub unsafe fn discard(addr: usize, len: usize) -> Result<(), donjon_abi::Error> {
    // SAFETY: by contract.
    unsafe { gate::discard(addr, len) }
}

/// Memory in whole pages, zeroed at first, freed when dropped. For buffers whose size a peer or the program chooses.
#[derive(Debug)]
pub struct PageRun {
    addr: usize,
    len: usize,
}

impl PageRun {
    /// `len` bytes; `None` if there is no memory.
    pub fn new(len: usize) -> Option<PageRun> {
        let len = len.max(1).next_multiple_of(PAGE);
        map(len, PAGE, len).map(|addr| PageRun { addr, len })
    }

    /// Address of the first byte.
    pub fn addr(&self) -> usize {
        self.addr
    }

    /// Makes it read-only, or writable again. While it is read-only, a write to it ends the guest.
    pub fn set_rights(&mut self, prot: Prot) -> Result<(), Errno> {
        // SAFETY: the run is this value's own, and nobody has a reference into it.
        unsafe { protect(self.addr, self.len, prot) }.map_err(|_| Errno::ENOMEM)
    }

    /// Length in bytes, a multiple of the page size.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.len
    }
}

impl core::ops::Deref for PageRun {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the run owns this initialised (zeroed) memory.
        unsafe { core::slice::from_raw_parts(self.addr as *const u8, self.len) }
    }
}

impl core::ops::DerefMut for PageRun {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the run owns this initialised (zeroed) memory.
        unsafe { core::slice::from_raw_parts_mut(self.addr as *mut u8, self.len) }
    }
}

impl Drop for PageRun {
    fn drop(&mut self) {
        // SAFETY: the run is this value's own.
        unsafe { unmap(self.addr, self.len) };
    }
}

/// The library OS works with much memory that it can do without.
static SPARING: AtomicBool = AtomicBool::new(false);
/// The most that it then gets from the reserve at a time.
const SPARE: usize = 1024;

/// Runs `f`, which asks for memory that peers and not the program choose the size of, and goes on without: the reserve is not for that. Preemption is
/// off.
pub(crate) fn sparing<R>(f: impl FnOnce() -> R) -> R {
    let before = SPARING.swap(true, Relaxed);
    let result = f();
    SPARING.store(before, Relaxed);
    result
}

/// The guest's global allocator, which is the library OS's: the same heap as the program's, and a small reserve that only this one may use when the
/// program has used up the rest. Most of the library OS's own allocations are small and do not live long; they cannot fail.
#[derive(Debug)]
pub struct Global;

/// Memory that there is no more of otherwise; null if there is none in the reserve either.
#[cold]
#[inline(never)]
fn reserve(layout: Layout) -> *mut u8 {
    if layout.align() > 16 || (layout.size() > SPARE && SPARING.load(Relaxed)) {
        return core::ptr::null_mut();
    }
    HEAP.lock().take_reserve(layout.size()).unwrap_or(core::ptr::null_mut())
}

// SAFETY: `malloc` and its kin give distinct allocations of the size and alignment asked for.
unsafe impl core::alloc::GlobalAlloc for Global {
    #[inline]
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        let p = if l.align() <= 16 { malloc(l.size()) } else { aligned(l.align(), l.size()) };
        if p.is_null() { reserve(l) } else { p }
    }
    #[inline]
    unsafe fn dealloc(&self, p: *mut u8, _: Layout) {
        // SAFETY: by the trait's contract.
        unsafe { free(p) }
    }
    unsafe fn alloc_zeroed(&self, l: Layout) -> *mut u8 {
        let p = aligned_zeroed(l.align(), l.size());
        if !p.is_null() {
            return p;
        }
        zeroed(Some((reserve(l), false)).filter(|(p, _)| !p.is_null()), l.size())
    }
    unsafe fn realloc(&self, p: *mut u8, l: Layout, size: usize) -> *mut u8 {
        if l.align() <= 16 {
            // SAFETY: by the trait's contract.
            let new = unsafe { realloc(p, size) };
            if !new.is_null() {
                return new;
            }
        }
        // SAFETY: by the trait's contract, the new layout is a layout.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, l.align())) };
        if !new.is_null() {
            // SAFETY: both allocations hold this many bytes; the old one is given up by the caller.
            unsafe {
                core::ptr::copy_nonoverlapping(p, new, l.size().min(size));
                free(p);
            }
        }
        new
    }
}
