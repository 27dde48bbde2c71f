//! The slot layer: `malloc` and its kin over [`Pages`].
//!
//! Small sizes come from spans that are divided into equal slots, with one bit per slot kept outside the memory that
//! the program sees: a wild write cannot reach it, and a double or invalid `free` is recognised. The slots that were freed last wait in a
//! [`Quarantine`] before they can be found again, and then the search for a free one must come round to them. Large allocations lie between guard pages.
//!
//! `soft` replaces all that by what it costs nothing to do, for `cargo xtask bench web --hardening` and for nothing else.

#![expect(unsafe_code, reason = "the allocator")]
// UNSAFETY: copies and clears memory that it hands out, takes the rights of pages between; compares vectors.

use super::class::{self, CLASSES};
use super::pages::{Kind, Pages};
use donjon_abi::Prot;
use donjon_base::{PAGE, gate};

/// Why a pointer was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadPointer {
    /// It never came from this allocator, or does not point to the start of an allocation.
    Invalid,
    /// It is free already.
    Free,
}

/// From this many pages on (1 MiB) an allocation lies between two pages without rights. They cost four calls of the gate for an allocation and its end: little
/// beside what it takes to fill that much, and more than it takes to fill less.
const GUARDED: u32 = if cfg!(donjon_soft_heap) { u32::MAX } else { (1 << 20) / PAGE as u32 };
/// In a large run's `cursor`: its first and its last page are such pages, unless the host has refused one when the run's length was changed.
const GUARDS: u16 = 1;

/// Slots in quarantine at most, for each class.
const HELD: usize = 8;
/// How many of each class: no more than a page of them, if that is any.
static HOLD: [u8; class::COUNT] = {
    let mut hold = [0; class::COUNT];
    let mut class = 0;
    while class < class::COUNT {
        let slots = PAGE / CLASSES[class].size as usize;
        hold[class] = if slots > HELD {
            HELD as u8
        } else if slots == 0 {
            1
        } else {
            slots as u8
        };
        class += 1;
    }
    hold
};

/// The slots of a class that were freed last, oldest at `next`. For their span they are in use.
#[derive(Clone, Copy)]
pub(super) struct Quarantine {
    /// [`held`], or 0.
    held: [u32; HELD],
    next: u8,
}

/// A slot in a word: its span's number, which is never 0, and its own.
const fn held(span: u32, slot: usize) -> u32 {
    const { assert!(class::SLOTS_MAX <= 1 << 8) };
    span << 8 | slot as u32
}

impl Quarantine {
    /// Nothing.
    pub const EMPTY: Quarantine = Quarantine { held: [0; HELD], next: 0 };

    #[inline]
    fn holds(&self, slot: u32) -> bool {
        // All at once; the compiler makes a loop of a plain search, which is three times as long.
        use core::arch::x86_64::{
            __m128i, _mm_cmpeq_epi32, _mm_loadu_si128, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi32,
        };
        const { assert!(HELD == 8) };
        let held = self.held.as_ptr().cast::<__m128i>();
        // SAFETY: 1. SSE2 is part of x86-64, 2. the slots are two vectors long.
        unsafe {
            let wanted = _mm_set1_epi32(slot.cast_signed());
            let first = _mm_cmpeq_epi32(_mm_loadu_si128(held), wanted);
            let second = _mm_cmpeq_epi32(_mm_loadu_si128(held.add(1)), wanted);
            _mm_movemask_epi8(_mm_or_si128(first, second)) != 0
        }
    }

    /// Takes a slot in; the one that has waited longest comes out (0: none).
    #[inline]
    fn swap(&mut self, slot: u32, hold: u8) -> u32 {
        let Some(place) = self.held.get_mut(usize::from(self.next)) else { return slot };
        let oldest = core::mem::replace(place, slot);
        self.next += 1;
        if self.next == hold {
            self.next = 0;
        }
        oldest
    }
}

/// A pointer's allocation.
enum Place {
    Slot {
        span: u32,
        slot: usize,
        size: usize,
    },
    /// `pages` without its guards.
    Large {
        span: u32,
        pages: u32,
    },
}

impl Pages {
    /// Allocates `size` bytes, 16-byte aligned. `None`: out of memory. The flag says whether all bytes are known to be zero.
    #[inline]
    pub fn malloc(&mut self, size: usize) -> Option<(*mut u8, bool)> {
        if size <= class::LARGEST {
            return self.slot(class::of(size)).map(|p| (p, false));
        }
        self.large(size, 1).or_else(|| self.let_out().then(|| self.large(size, 1))?)
    }

    /// For the library OS, when `malloc` has no more: from the reserve. The program never gets one of the free slots that this leaves.
    #[cold]
    pub fn take_reserve(&mut self, size: usize) -> Option<*mut u8> {
        if size > class::LARGEST {
            return None;
        }
        let (class, reserved) = (class::of(size), core::mem::take(&mut self.reserved));
        let p = if CLASSES[class].pages == 1 { self.own_slot(class) } else { self.large(size, 1).map(|(p, _)| p) };
        self.reserved = reserved;
        p
    }

    fn own_slot(&mut self, class: usize) -> Option<*mut u8> {
        let span = match self.partial[class::COUNT + class] {
            0 => self.new_span(class, Kind::Own)?,
            span => span,
        };
        Some(self.slot_of(class, span))
    }

    /// Allocates `size` bytes at a multiple of `align`, a power of two.
    pub fn aligned(&mut self, align: usize, size: usize) -> Option<(*mut u8, bool)> {
        if align <= 16 {
            return self.malloc(size);
        }
        if align <= PAGE && size <= class::LARGEST {
            // Spans start on a page, so a slot is aligned if the class's size is a multiple.
            let mut class = class::of(size.max(align));
            while let Some(c) = CLASSES.get(class) {
                if (c.size as usize).is_multiple_of(align) {
                    return self.slot(class).map(|p| (p, false));
                }
                class += 1;
            }
        }
        let align = align.div_ceil(PAGE);
        self.large(size.max(1), align).or_else(|| self.let_out().then(|| self.large(size.max(1), align))?)
    }

    /// Frees an allocation.
    #[inline]
    pub fn dealloc(&mut self, ptr: usize) -> Result<(), BadPointer> {
        match self.find(ptr)? {
            #[cfg(donjon_soft_heap)]
            Place::Slot { span, .. } => self.soft_dealloc(ptr, span),
            #[cfg(not(donjon_soft_heap))]
            Place::Slot { span, slot, .. } => {
                let class = self.span(span).class as usize;
                let oldest = self.quarantine[class].swap(held(span, slot), HOLD[class]);
                if oldest != 0 {
                    self.give_back(class, oldest);
                }
            }
            Place::Large { span, .. } => self.free_large(span),
        }
        Ok(())
    }

    /// A slot has been free for long enough.
    #[inline]
    fn give_back(&mut self, class: usize, held: u32) {
        let (span, slot) = (held >> 8, held as usize & 0xff);
        let s = self.span(span);
        s.free[slot / 64] |= 1 << (slot % 64);
        s.used -= 1;
        self.after_free(class, span);
    }

    /// A slot of the span has become free.
    #[inline]
    pub(super) fn after_free(&mut self, class: usize, span: u32) {
        let s = self.span(span);
        let (used, slots) = (s.used, s.slots);
        if used + 1 == slots {
            self.push_partial(class, span);
        } else if used == 0 {
            self.maybe_release(class, span);
        }
    }

    /// Ends all quarantines, because memory has run out. Whether there was anything in them.
    #[cold]
    fn let_out(&mut self) -> bool {
        let mut any = false;
        for class in 0..class::COUNT {
            for slot in core::mem::replace(&mut self.quarantine[class], Quarantine::EMPTY).held {
                if slot != 0 {
                    any = true;
                    self.give_back(class, slot);
                }
            }
        }
        any
    }

    /// Bytes that the allocation at `ptr` has room for.
    pub fn usable(&mut self, ptr: usize) -> Result<usize, BadPointer> {
        Ok(match self.find(ptr)? {
            Place::Slot { size, .. } => size,
            Place::Large { pages, .. } => pages as usize * PAGE,
        })
    }

    /// Changes an allocation's size, in place if possible. `Ok(None)`: out of memory, nothing changed.
    pub fn realloc(&mut self, ptr: usize, size: usize) -> Result<Option<*mut u8>, BadPointer> {
        let old = match self.find(ptr)? {
            Place::Slot { size: room, .. } => {
                // In place as long as the slot is not far too large.
                if size <= room && (size > room / 2 || room <= 64) {
                    return Ok(Some(ptr as *mut u8));
                }
                room
            }
            Place::Large { span, pages } => {
                let want = size.div_ceil(PAGE);
                let Ok(want) = u32::try_from(want) else { return Ok(None) };
                // What gets or loses its guards moves.
                if size > class::LARGEST && (want >= GUARDED) == (self.span(span).cursor == GUARDS) {
                    let fits = match want.cmp(&pages) {
                        core::cmp::Ordering::Equal => true,
                        core::cmp::Ordering::Less => want > pages - pages / 8 || self.resize(span, want, Pages::shrink),
                        core::cmp::Ordering::Greater => self.resize(span, want, Pages::grow),
                    };
                    if fits {
                        return Ok(Some(ptr as *mut u8));
                    }
                }
                pages as usize * PAGE
            }
        };
        let Some((new, _)) = self.malloc(size) else {
            // A smaller size always succeeds: the old place will do.
            return Ok((size <= old).then_some(ptr as *mut u8));
        };
        // SAFETY: both are allocations of at least this many bytes, and they are distinct.
        unsafe { core::ptr::copy_nonoverlapping(ptr as *const u8, new, old.min(size)) };
        self.dealloc(ptr)?;
        Ok(Some(new))
    }

    /// Runs that are to lie at a multiple of more than one page have no guards.
    fn large(&mut self, size: usize, align: usize) -> Option<(*mut u8, bool)> {
        let (pages, align) = (u32::try_from(size.div_ceil(PAGE)).ok()?, u32::try_from(align).ok()?);
        if pages < GUARDED || align > 1 {
            let a = self.alloc(pages, align, pages, Kind::Large)?;
            return Some((a.addr as *mut u8, a.zeroed));
        }
        let whole = pages.checked_add(2)?;
        let a = self.alloc(whole, 1, whole, Kind::Large)?;
        self.span(a.span).cursor = GUARDS;
        if !(self.first(a.span, Prot::None) && self.last(a.span, Prot::None)) {
            self.free_large(a.span);
            return None;
        }
        Some(((a.addr + PAGE) as *mut u8, a.zeroed))
    }

    fn free_large(&mut self, span: u32) {
        if self.span(span).cursor == GUARDS && !(self.first(span, Prot::ReadWrite) && self.last(span, Prot::ReadWrite))
        {
            // Nobody gets a page without rights: the run is lost.
            self.span(span).kind = Kind::Mapping;
            return;
        }
        self.free(span);
    }

    /// Makes a large run `pages` pages long, apart from its guards, by `change`. Whether that was possible.
    fn resize(&mut self, span: u32, pages: u32, change: fn(&mut Pages, u32, u32) -> bool) -> bool {
        if self.span(span).cursor != GUARDS {
            return change(self, span, pages);
        }
        if !self.last(span, Prot::ReadWrite) {
            return false;
        }
        let done = change(self, span, pages.saturating_add(2));
        self.last(span, Prot::None);
        done
    }

    /// Sets the rights of a run's first page. Whether the host did.
    fn first(&mut self, span: u32, prot: Prot) -> bool {
        let page = self.span(span).start;
        self.rights(page, prot)
    }

    /// Sets the rights of a run's last page. Whether the host did.
    fn last(&mut self, span: u32, prot: Prot) -> bool {
        let s = self.span(span);
        let page = s.start + s.pages - 1;
        self.rights(page, prot)
    }

    fn rights(&self, page: u32, prot: Prot) -> bool {
        // SAFETY: a guard, which nobody has a reference to.
        unsafe { gate::protect(self.addr(page), PAGE, prot) }.is_ok()
    }

    #[inline]
    fn slot(&mut self, class: usize) -> Option<*mut u8> {
        let mut span = self.partial[class];
        if span == 0 {
            span = self.new_span(class, Kind::Slots).or_else(|| self.let_out().then(|| self.any_span(class))?)?;
        }
        Some(self.slot_of(class, span))
    }

    /// A span with free slots, after some have become free.
    #[cold]
    fn any_span(&mut self, class: usize) -> Option<u32> {
        match self.partial[class] {
            0 => self.new_span(class, Kind::Slots),
            span => Some(span),
        }
    }

    #[cfg(donjon_soft_heap)]
    #[inline]
    fn slot_of(&mut self, class: usize, span: u32) -> *mut u8 {
        self.soft_slot(class, span)
    }

    /// A free slot of a span in a list, which has one.
    #[cfg(not(donjon_soft_heap))]
    #[inline]
    fn slot_of(&mut self, class: usize, span: u32) -> *mut u8 {
        let start = self.span(span).start;
        let base = self.addr(start);
        let size = CLASSES[class].size as usize;
        let s = self.span(span);
        let cursor = s.cursor as usize;
        let mut word = cursor / 64;
        let mut bits = s.free[word] & (!0 << (cursor % 64));
        while bits == 0 {
            word = (word + 1) % s.free.len();
            bits = s.free[word];
        }
        let slot = word * 64 + bits.trailing_zeros() as usize;
        s.free[slot / 64] &= !(1 << (slot % 64));
        s.used += 1;
        s.cursor = ((slot + 1) % class::SLOTS_MAX) as u16;
        if s.used == s.slots {
            self.unlink_partial(class, span);
        }
        (base + slot * size) as *mut u8
    }

    #[cold]
    fn new_span(&mut self, class: usize, kind: Kind) -> Option<u32> {
        let c = &CLASSES[class];
        let span = self.alloc(c.pages, 1, c.pages, kind)?.span;
        let s = self.span(span);
        s.class = class as u8;
        s.slots = c.slots as u16;
        for (i, word) in s.free.iter_mut().enumerate() {
            *word = match (c.slots as usize).saturating_sub(i * 64) {
                n if n >= 64 => !0,
                n => (1 << n) - 1,
            };
        }
        #[cfg(donjon_soft_heap)]
        self.soft_span(span);
        self.push_partial(class, span);
        Some(span)
    }

    /// Releases an empty span unless it is the class's only one with free slots.
    #[cold]
    fn maybe_release(&mut self, class: usize, span: u32) {
        if self.partial[class] == span && self.span(span).next == 0 {
            return;
        }
        self.unlink_partial(class, span);
        self.free(span);
    }

    /// Which list of the class the span belongs to.
    fn list_of(&mut self, class: usize, span: u32) -> usize {
        if self.span(span).kind == Kind::Own { class::COUNT + class } else { class }
    }

    fn push_partial(&mut self, class: usize, span: u32) {
        // Behind the head: the head stays the span that is being filled.
        let list = self.list_of(class, span);
        let head = self.partial[list];
        if head == 0 {
            self.partial[list] = span;
            let s = self.span(span);
            (s.prev, s.next) = (0, 0);
            return;
        }
        let after = self.span(head).next;
        self.span(head).next = span;
        let s = self.span(span);
        (s.prev, s.next) = (head, after);
        if after != 0 {
            self.span(after).prev = span;
        }
    }

    pub(super) fn unlink_partial(&mut self, class: usize, span: u32) {
        let s = *self.span(span);
        if s.prev == 0 {
            let list = self.list_of(class, span);
            self.partial[list] = s.next;
        } else {
            self.span(s.prev).next = s.next;
        }
        if s.next != 0 {
            self.span(s.next).prev = s.prev;
        }
    }

    #[inline]
    fn find(&mut self, ptr: usize) -> Result<Place, BadPointer> {
        let span = self.span_of(ptr);
        if span == 0 {
            return Err(BadPointer::Invalid);
        }
        let s = self.span(span);
        let (start, pages, kind, class) = (s.start, s.pages, s.kind, s.class as usize);
        // The map may be out of date for the middle of a free run.
        let offset = ptr.wrapping_sub(self.addr(start));
        if offset >= pages as usize * PAGE {
            return Err(BadPointer::Invalid);
        }
        match kind {
            #[cfg(donjon_soft_heap)]
            Kind::Slots | Kind::Own => Ok(Place::Slot { span, slot: 0, size: CLASSES[class].size as usize }),
            #[cfg(not(donjon_soft_heap))]
            Kind::Slots | Kind::Own => {
                let c = &CLASSES[class];
                let slot = ((offset as u64 * u64::from(c.magic)) >> 32) as usize;
                if slot * c.size as usize != offset || slot >= c.slots as usize {
                    return Err(BadPointer::Invalid);
                }
                let free = self.span(span).free[slot / 64] >> (slot % 64) & 1 == 1;
                if free | self.quarantine[class].holds(held(span, slot)) {
                    return Err(BadPointer::Free);
                }
                Ok(Place::Slot { span, slot, size: c.size as usize })
            }
            Kind::Large => {
                let guards = u32::from(self.span(span).cursor);
                if offset != guards as usize * PAGE {
                    return Err(BadPointer::Invalid);
                }
                Ok(Place::Large { span, pages: pages - 2 * guards })
            }
            Kind::Free => Err(BadPointer::Free),
            _ => Err(BadPointer::Invalid),
        }
    }
}
