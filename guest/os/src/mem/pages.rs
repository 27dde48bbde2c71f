//! The page layer: runs of pages from the reserve, each described by a [`Span`] outside of the memory that it describes.
//!
//! ```text
//! reserve:  [page map: one u32 per page][no access][span table][no access][pages … frontier … untouched]
//! ```
//!
//! The page map names the span that a page belongs to (0: none); for a free run, only its first and last page are
//! kept. All of the metadata is backed on demand, so it is sized for the worst case.
//!
//! Accounting: `used` counts the pages that the guest is promised, `dirty` the free ones that still hold memory. Their sum stays
//! below the limit. Free memory beyond a threshold goes back to the host when it was not needed for a while ([`Pages::decay`]): to
//! give it back at once would cost a busy server a page fault for every page that it uses again.

#![expect(unsafe_code, reason = "the page allocator")]
// UNSAFETY: metadata lives in raw memory of the reserve, at computed addresses; see the invariants above.

use super::class::{COUNT, SLOTS_MAX};
use super::heap::Quarantine;
use donjon_abi::Prot;
use donjon_base::{PAGE, gate};

/// What a span is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// The record is not in use.
    Vacant = 0,
    /// A free run.
    Free = 1,
    /// Divided into slots of a class.
    Slots = 2,
    /// The same from the reserve: its slots are for the library OS.
    Own = 5,
    /// One allocation of `malloc` and its kin.
    Large = 3,
    /// A mapping or a stack: not for `free`.
    Mapping = 4,
}

/// A run of pages.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Span {
    /// First page, counted from the start of the page area.
    pub start: u32,
    /// Number of pages.
    pub pages: u32,
    /// Pages that count against the limit (used runs), or that may hold memory (free runs).
    pub charge: u32,
    /// Neighbours in the list of a bin or class.
    pub prev: u32,
    /// See `prev`.
    pub next: u32,
    /// What it is.
    pub kind: Kind,
    /// Size class of `Kind::Slots` and `Kind::Own`.
    pub class: u8,
    /// Slots in use.
    pub used: u16,
    /// Where the search for a free slot continues.
    pub cursor: u16,
    /// Number of slots.
    pub slots: u16,
    /// A one for each free slot.
    pub free: [u64; SLOTS_MAX / 64],
}

const _: () = assert!(size_of::<Span>() == 64);

const NONE: u32 = 0;
/// Most span records: so that a slot's span and its number in it fit into a word.
const SPANS_MAX: u32 = 1 << 24;
const BINS: usize = 16 + 8 * 22;
/// Pages that stay for the library OS, in guests of 8 MiB and more.
const RESERVED: usize = 16;
/// Address space that is made writable at a time, at least.
const STEP: usize = 256;

/// The page allocator.
pub struct Pages {
    map: *mut u32,
    spans: *mut Span,
    /// Span records that may be touched.
    spans_backed: u32,
    /// Records ever used; record 0 is none.
    spans_used: u32,
    /// List of vacant records, by `next`.
    vacant: u32,
    /// First page's address.
    base: usize,
    /// Pages in all.
    total: u32,
    /// Pages from here on were never used.
    frontier: u32,
    /// Pages below are readable and writable, apart from guard pages.
    writable: u32,
    bins: [u32; BINS],
    bins_set: [u64; BINS.div_ceil(64)],
    used: u32,
    dirty: u32,
    /// Least `dirty` since the last `decay`.
    unneeded: u32,
    limit: u32,
    /// Dirty pages that are never given back without need.
    keep: u32,
    /// Pages below the limit that stay for the library OS.
    pub(super) reserved: u32,
    /// For each class the spans with free slots, and then those of the reserve; kept here for the slot layer.
    pub(super) partial: [u32; 2 * COUNT],
    /// For each class the slots that were freed last; the slot layer's, too.
    pub(super) quarantine: [Quarantine; COUNT],
}

// SAFETY: the pointers are to memory that this value owns.
unsafe impl Send for Pages {}

/// A run that was allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// Index of the span.
    pub span: u32,
    /// Address of the first byte.
    pub addr: usize,
    /// All bytes are known to be zero.
    pub zeroed: bool,
}

impl Pages {
    /// No pages at all.
    pub const fn empty() -> Self {
        Pages {
            map: core::ptr::null_mut(),
            spans: core::ptr::null_mut(),
            spans_backed: 0,
            spans_used: 1,
            vacant: NONE,
            base: 0,
            total: 0,
            frontier: 0,
            writable: 0,
            bins: [NONE; BINS],
            bins_set: [0; BINS.div_ceil(64)],
            used: 0,
            dirty: 0,
            unneeded: 0,
            limit: 0,
            keep: 0,
            reserved: 0,
            partial: [NONE; 2 * COUNT],
            quarantine: [Quarantine::EMPTY; COUNT],
        }
    }

    /// The allocator of a reserve without rights, of which `memory` bytes may be backed.
    ///
    /// # Safety
    /// The range is the caller's, page-aligned, all zero, and from now on this value's.
    pub unsafe fn new(reserve: usize, len: usize, memory: usize) -> Option<Self> {
        let mut p = Pages::empty();
        // Enough address space for many sparsely used stacks, but no page map out of proportion.
        let len = len.min(memory.saturating_mul(64).saturating_add(1 << 30)).min(64 << 30);
        let total = len / PAGE;
        let map_len = (total * 4).next_multiple_of(PAGE);
        let spans_len = (total * 64 / 2).next_multiple_of(PAGE);
        let overhead = map_len + PAGE + spans_len + PAGE;
        if overhead + 64 * PAGE > len {
            return None;
        }
        p.map = reserve as *mut u32;
        p.spans = (reserve + map_len + PAGE) as *mut Span;
        p.base = reserve + overhead;
        p.total = ((len - overhead) / PAGE) as u32;
        // What the metadata may need: four bytes a page, a span record for every other page.
        let pages = memory / PAGE;
        p.limit = (pages - pages / 64 - (pages * 4).div_ceil(PAGE).min(pages / 64)) as u32;
        p.keep = (p.limit / 16).clamp(64, 8192);
        p.reserved = (pages / 128).min(RESERVED) as u32;
        // SAFETY: nothing refers into the reserve yet.
        unsafe { gate::protect(reserve, map_len, Prot::ReadWrite) }.ok()?;
        p.back_spans()?;
        Some(p)
    }

    /// Bytes that can still be allocated, with the reserve, fragmentation apart.
    pub fn available(&self) -> usize {
        self.limit.saturating_sub(self.used) as usize * PAGE
    }

    /// Bytes promised, and free bytes that still hold memory.
    #[cfg(test)]
    pub fn usage(&self) -> (usize, usize) {
        (self.used as usize * PAGE, self.dirty as usize * PAGE)
    }

    /// The limit in bytes.
    pub fn limit(&self) -> usize {
        self.limit as usize * PAGE
    }

    /// Address of a page.
    #[inline]
    pub fn addr(&self, page: u32) -> usize {
        self.base + page as usize * PAGE
    }

    /// Index of the span of an address within a used run; 0 if there is none.
    #[inline]
    pub fn span_of(&self, addr: usize) -> u32 {
        let page = addr.wrapping_sub(self.base) / PAGE;
        if page >= self.frontier as usize {
            return NONE;
        }
        // SAFETY: the map has a word for each page.
        unsafe { *self.map.add(page) }
    }

    /// Whether nothing uses the page of an address.
    pub fn is_hole(&mut self, addr: usize) -> bool {
        let page = addr.wrapping_sub(self.base) / PAGE;
        let span = self.span_of(addr);
        if span == NONE {
            return page < self.total as usize;
        }
        // For a page that is free, the map may have a record that has gone elsewhere since.
        let s = *self.span(span);
        matches!(s.kind, Kind::Vacant | Kind::Free) || !(s.start..s.start + s.pages).contains(&(page as u32))
    }

    /// A span's record.
    #[inline]
    pub fn span(&mut self, index: u32) -> &mut Span {
        debug_assert!(index != NONE && index < self.spans_used);
        // SAFETY: 1. indices come from the map and the lists, which hold only used ones; 2. `&mut self` makes it exclusive.
        unsafe { &mut *self.spans.add(index as usize) }
    }

    /// Allocates `pages` pages at an address that is a multiple of `align` pages, of which `charge` count against the limit.
    pub fn alloc(&mut self, pages: u32, align: u32, charge: u32, kind: Kind) -> Option<Allocated> {
        if pages == 0 || pages > self.total || !self.make_room(charge) {
            return None;
        }
        let need = pages.checked_add(align - 1)?;
        let (span, dirty) = match self.take_free(need) {
            Some(found) => found,
            None => (self.take_frontier(need)?, 0),
        };
        let first = self.span(span).start;
        let skew = self.base / PAGE;
        let aligned = ((skew + first as usize).next_multiple_of(align as usize) - skew) as u32;
        if aligned > first {
            // Splitting needs a span record; without one the whole run goes back.
            let Some(rest) = self.split(span, aligned - first) else {
                self.release(span);
                return None;
            };
            self.release_part(span, dirty);
            return self.finish(rest, pages, charge, kind, dirty);
        }
        self.finish(span, pages, charge, kind, dirty)
    }

    fn finish(&mut self, span: u32, pages: u32, charge: u32, kind: Kind, dirty: u32) -> Option<Allocated> {
        if self.span(span).pages > pages {
            match self.split(span, pages) {
                Some(rest) => self.release_part(rest, dirty),
                None => {
                    self.release_part(span, dirty);
                    return None;
                }
            }
        }
        let s = self.span(span);
        s.kind = kind;
        s.charge = charge;
        s.cursor = 0;
        let start = s.start;
        self.used += charge;
        for page in start..start + pages {
            self.set_map(page, span);
        }
        let addr = self.addr(start);
        // A run that is charged for less than it spans must not hold more than it is charged for.
        // SAFETY: the run is nobody's yet.
        let zeroed = dirty == 0 || (charge < pages && unsafe { gate::discard(addr, pages as usize * PAGE) }.is_ok());
        // Where the dirty pages of a run are is not known, so that each of its parts may count all of them.
        if self.used + self.dirty > self.limit {
            self.discard_down_to(self.limit.saturating_sub(self.used));
        }
        Some(Allocated { span, addr, zeroed })
    }

    /// Frees a used run.
    pub fn free(&mut self, span: u32) {
        let charge = self.span(span).charge;
        self.used -= charge;
        self.release(span);
    }

    /// Shortens a used run to `pages` pages, freeing the rest. Returns whether it did (it needs a span record).
    pub fn shrink(&mut self, span: u32, pages: u32) -> bool {
        let Some(rest) = self.split(span, pages) else { return false };
        let kept = self.span(span).charge.min(pages);
        let freed = self.span(span).charge - kept;
        self.span(span).charge = kept;
        self.used -= freed;
        self.release(rest);
        true
    }

    /// Cuts a used run in two at `pages`; both keep the kind. Returns the second part's span.
    pub fn cut(&mut self, span: u32, pages: u32) -> Option<u32> {
        let rest = self.split(span, pages)?;
        let (kind, charge, cursor) = (self.span(span).kind, self.span(span).charge, self.span(span).cursor);
        self.span(span).charge = charge.min(pages);
        let (start, len) = (self.span(rest).start, self.span(rest).pages);
        let s = self.span(rest);
        (s.kind, s.cursor) = (kind, cursor);
        s.charge = charge - charge.min(pages);
        for page in start..start + len {
            self.set_map(page, rest);
        }
        Some(rest)
    }

    /// Lengthens a used run to `pages` pages in place if the memory behind it is free. Returns whether it did.
    pub fn grow(&mut self, span: u32, pages: u32) -> bool {
        let s = *self.span(span);
        let end = s.start + s.pages;
        let Some(more) = pages.checked_sub(s.pages).filter(|m| *m <= self.total - end) else { return false };
        if !self.make_room(more) {
            return false;
        }
        if end == self.frontier {
            let Some(new_end) = end.checked_add(more) else { return false };
            if !self.back(new_end) {
                return false;
            }
            self.frontier = new_end;
        } else {
            let next = self.map(end);
            if !self.is_free(next, |n| n.start == end && n.pages >= more) {
                return false;
            }
            let n = *self.span(next);
            if n.pages > more {
                let Some(rest) = ({
                    self.unlink(next);
                    self.split(next, more)
                }) else {
                    self.link(next);
                    return false;
                };
                self.span(rest).charge = n.charge.min(n.pages - more);
                self.span(next).charge = n.charge - n.charge.min(n.pages - more);
                self.link(rest);
            } else {
                self.unlink(next);
            }
            self.dirty -= self.span(next).charge;
            self.vacate(next);
        }
        for page in end..end + more {
            self.set_map(page, span);
        }
        let s = self.span(span);
        s.pages = pages;
        s.charge += more;
        self.used += more;
        true
    }

    /// Changes how many pages of a used run count against the limit; false if the limit would be passed.
    pub fn recharge(&mut self, span: u32, charge: u32) -> bool {
        let old = self.span(span).charge;
        if charge > old && !self.make_room(charge - old) {
            return false;
        }
        self.used = self.used - old + charge;
        self.span(span).charge = charge;
        true
    }

    /// Gives back what was free all the time since the last call, but for the part that is always kept. Returns whether there is
    /// still more than that.
    pub fn decay(&mut self) -> bool {
        if self.has_surplus() {
            self.discard_down_to((self.dirty - self.unneeded.min(self.dirty)).max(self.keep / 2));
        }
        self.unneeded = self.dirty;
        self.has_surplus()
    }

    /// Whether there is more free memory than is always kept.
    pub fn has_surplus(&self) -> bool {
        self.dirty > self.keep
    }

    /// Gives all free memory back to the host.
    pub fn trim(&mut self) {
        self.discard_down_to(0);
    }

    // ---- free runs ----

    /// Makes `charge` more pages fit below the limit, discarding free memory if need be.
    pub fn make_room(&mut self, charge: u32) -> bool {
        let Some(left) = self.limit.checked_sub(self.used).and_then(|l| l.checked_sub(charge)) else { return false };
        // What counts for nothing (address space) needs no memory.
        if charge > 0 && left < self.reserved {
            return false;
        }
        if self.dirty > left {
            self.discard_down_to(left);
        }
        true
    }

    fn discard_down_to(&mut self, goal: u32) {
        // Largest runs first: the most memory for the fewest calls.
        for bin in (0..BINS).rev() {
            if self.bins_set[bin / 64] >> (bin % 64) & 1 == 0 {
                continue;
            }
            let mut at = self.bins[bin];
            while at != NONE {
                if self.dirty <= goal {
                    return;
                }
                let s = *self.span(at);
                if s.charge > 0 {
                    // SAFETY: the run is free.
                    if unsafe { gate::discard(self.addr(s.start), s.pages as usize * PAGE) }.is_ok() {
                        self.dirty -= s.charge;
                        self.span(at).charge = 0;
                    }
                }
                at = s.next;
            }
        }
    }

    /// Finds and unlinks a free run of at least `pages` pages; says how many of its pages are not known to be zero.
    fn take_free(&mut self, pages: u32) -> Option<(u32, u32)> {
        let floor = bin_of(pages);
        let mut found = NONE;
        if pages > 16 {
            // The floor bin holds runs both shorter and longer.
            let mut at = self.bins[floor];
            for _ in 0..16 {
                if at == NONE || self.span(at).pages >= pages {
                    break;
                }
                at = self.span(at).next;
            }
            if at != NONE && self.span(at).pages >= pages {
                found = at;
            }
        }
        if found == NONE {
            let from = if pages > 16 { floor + 1 } else { floor };
            found = self.bins[self.first_bin(from)?];
        }
        self.unlink(found);
        let dirty = self.span(found).charge;
        self.dirty -= dirty;
        self.unneeded = self.unneeded.min(self.dirty);
        Some((found, dirty))
    }

    fn first_bin(&self, from: usize) -> Option<usize> {
        let mut word = from / 64;
        let mut bits = self.bins_set.get(word)? & (!0 << (from % 64));
        while bits == 0 {
            word += 1;
            bits = *self.bins_set.get(word)?;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    fn take_frontier(&mut self, pages: u32) -> Option<u32> {
        let end = self.frontier.checked_add(pages).filter(|e| *e <= self.total)?;
        if !self.back(end) {
            return None;
        }
        let span = self.record()?;
        let start = self.frontier;
        self.frontier = end;
        let s = self.span(span);
        (s.start, s.pages) = (start, pages);
        Some(span)
    }

    /// Makes the pages below `end` writable.
    fn back(&mut self, end: u32) -> bool {
        if end <= self.writable {
            return true;
        }
        // Larger steps as the heap grows: fewer calls, and no cost in memory.
        let step = STEP.max(self.writable as usize / 4) as u32;
        let goal = end.saturating_add(step).min(self.total);
        let from = self.addr(self.writable);
        // SAFETY: rights are added only.
        let ok = unsafe { gate::protect(from, (goal - self.writable) as usize * PAGE, Prot::ReadWrite) }.is_ok();
        if ok {
            self.writable = goal;
        }
        ok
    }

    /// Turns a run into a free one whose memory may all be backed, and merges it with its neighbours.
    fn release(&mut self, span: u32) {
        self.release_part(span, u32::MAX);
    }

    /// The same for a run of which at most `dirty` pages may be backed.
    fn release_part(&mut self, span: u32, dirty: u32) {
        let mut s = *self.span(span);
        s.charge = s.pages.min(dirty);
        self.dirty += s.charge;
        s.kind = Kind::Free;
        *self.span(span) = s;
        if s.start > 0 {
            let before = self.map(s.start - 1);
            if self.is_free(before, |b| b.start + b.pages == s.start) {
                self.unlink(before);
                let b = *self.span(before);
                let s = self.span(span);
                s.start = b.start;
                s.pages += b.pages;
                s.charge += b.charge;
                self.vacate(before);
            }
        }
        let s = *self.span(span);
        let end = s.start + s.pages;
        if end < self.frontier {
            let after = self.map(end);
            if self.is_free(after, |a| a.start == end) {
                self.unlink(after);
                let a = *self.span(after);
                let s = self.span(span);
                s.pages += a.pages;
                s.charge += a.charge;
                self.vacate(after);
            }
        }
        self.link(span);
    }

    /// Whether `span`, an entry of the map that may be out of date, is the free run that `is_it` recognises.
    fn is_free(&mut self, span: u32, is_it: impl Fn(&Span) -> bool) -> bool {
        span != NONE && {
            let s = self.span(span);
            s.kind == Kind::Free && is_it(s)
        }
    }

    /// Cuts a run (in no list) in two: `span` keeps the first `pages`. The map is the caller's business.
    fn split(&mut self, span: u32, pages: u32) -> Option<u32> {
        let rest = self.record()?;
        let s = self.span(span);
        let (start, len) = (s.start, s.pages);
        debug_assert!(pages > 0 && pages < len);
        s.pages = pages;
        let r = self.span(rest);
        (r.start, r.pages) = (start + pages, len - pages);
        Some(rest)
    }

    fn link(&mut self, span: u32) {
        let s = *self.span(span);
        // Only the ends of a free run are looked up; a pointer into its middle must not find what was there before.
        self.set_map(s.start, span);
        self.set_map(s.start + s.pages - 1, span);
        let bin = bin_of(s.pages);
        let head = self.bins[bin];
        let s = self.span(span);
        (s.prev, s.next) = (NONE, head);
        s.kind = Kind::Free;
        if head != NONE {
            self.span(head).prev = span;
        }
        self.bins[bin] = span;
        self.bins_set[bin / 64] |= 1 << (bin % 64);
    }

    fn unlink(&mut self, span: u32) {
        let s = *self.span(span);
        let bin = bin_of(s.pages);
        if s.prev == NONE {
            self.bins[bin] = s.next;
            if s.next == NONE {
                self.bins_set[bin / 64] &= !(1 << (bin % 64));
            }
        } else {
            self.span(s.prev).next = s.next;
        }
        if s.next != NONE {
            self.span(s.next).prev = s.prev;
        }
        self.span(span).kind = Kind::Vacant;
    }

    // ---- records and the page map ----

    fn record(&mut self) -> Option<u32> {
        let index = if self.vacant != NONE {
            let index = self.vacant;
            self.vacant = self.span(index).next;
            index
        } else {
            if self.spans_used == self.spans_backed {
                self.back_spans()?;
            }
            self.spans_used += 1;
            self.spans_used - 1
        };
        *self.span(index) = Span {
            start: 0,
            pages: 0,
            charge: 0,
            prev: NONE,
            next: NONE,
            kind: Kind::Vacant,
            class: 0,
            used: 0,
            cursor: 0,
            slots: 0,
            free: [0; SLOTS_MAX / 64],
        };
        Some(index)
    }

    fn vacate(&mut self, index: u32) {
        let next = self.vacant;
        let s = self.span(index);
        s.kind = Kind::Vacant;
        s.next = next;
        self.vacant = index;
    }

    /// Makes more span records usable.
    fn back_spans(&mut self) -> Option<()> {
        let per_step = (256 * PAGE / size_of::<Span>()) as u32;
        let table = (self.base - PAGE - self.spans as usize) / size_of::<Span>();
        let more = per_step.min((table as u32).min(SPANS_MAX) - self.spans_backed);
        if more == 0 {
            return None;
        }
        let from = self.spans as usize + self.spans_backed as usize * size_of::<Span>();
        // SAFETY: rights are added only.
        unsafe { gate::protect(from, (more as usize * size_of::<Span>()).next_multiple_of(PAGE), Prot::ReadWrite) }
            .ok()?;
        self.spans_backed += more;
        Some(())
    }

    #[inline]
    fn map(&self, page: u32) -> u32 {
        debug_assert!(page < self.frontier);
        // SAFETY: the map has a word for each page.
        unsafe { *self.map.add(page as usize) }
    }

    #[inline]
    fn set_map(&mut self, page: u32, span: u32) {
        debug_assert!(page < self.total);
        // SAFETY: the map has a word for each page.
        unsafe { *self.map.add(page as usize) = span }
    }
}

/// Bin of free runs of that many pages: exact up to 16 pages, eight per doubling above.
fn bin_of(pages: u32) -> usize {
    if pages <= 16 {
        return pages as usize - 1;
    }
    let log = 31 - pages.leading_zeros() as usize;
    (16 + (log - 4) * 8 + ((pages as usize >> (log - 3)) & 7)).min(BINS - 1)
}
