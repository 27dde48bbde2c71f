//! The slot layer: `malloc` and its kin over [`Pages`].
//!
//! Small sizes come from spans that are divided into equal slots, with one bit per slot kept outside the memory that
//! the program sees: a wild write cannot reach it, and a double or invalid `free` is recognised. A freed slot is reused only when
//! the search for a free one has come round, not at once.

#![expect(unsafe_code, reason = "the allocator")]
// UNSAFETY: copies and clears memory that it hands out.

use super::class::{self, CLASSES};
use super::pages::{Kind, Pages};
use donjon_base::PAGE;

/// Why a pointer was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadPointer {
    /// It never came from this allocator, or does not point to the start of an allocation.
    Invalid,
    /// It is free already.
    Free,
}

/// A pointer's allocation.
enum Place {
    Slot { span: u32, slot: usize, size: usize },
    Large { span: u32, pages: u32 },
}

impl Pages {
    /// Allocates `size` bytes, 16-byte aligned. `None`: out of memory. The flag says whether all bytes are known to be zero.
    #[inline]
    pub fn malloc(&mut self, size: usize) -> Option<(*mut u8, bool)> {
        if size <= class::LARGEST {
            return self.slot(class::of(size)).map(|p| (p, false));
        }
        self.large(size, 1)
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
        self.large(size.max(1), align.div_ceil(PAGE))
    }

    /// Frees an allocation.
    #[inline]
    pub fn dealloc(&mut self, ptr: usize) -> Result<(), BadPointer> {
        match self.find(ptr)? {
            Place::Slot { span, slot, .. } => {
                let s = self.span(span);
                s.free[slot / 64] |= 1 << (slot % 64);
                s.used -= 1;
                let (used, slots, class) = (s.used, s.slots, s.class as usize);
                if used + 1 == slots {
                    self.push_partial(class, span);
                } else if used == 0 {
                    self.maybe_release(class, span);
                }
            }
            Place::Large { span, .. } => self.free(span),
        }
        Ok(())
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
                if size > class::LARGEST {
                    let want = size.div_ceil(PAGE);
                    let Ok(want) = u32::try_from(want) else { return Ok(None) };
                    let fits = match want.cmp(&pages) {
                        core::cmp::Ordering::Equal => true,
                        core::cmp::Ordering::Less => want > pages - pages / 8 || self.shrink(span, want),
                        core::cmp::Ordering::Greater => self.grow(span, want),
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

    fn large(&mut self, size: usize, align: usize) -> Option<(*mut u8, bool)> {
        let pages = u32::try_from(size.div_ceil(PAGE)).ok()?;
        let a = self.alloc(pages, u32::try_from(align).ok()?, pages, Kind::Large)?;
        Some((a.addr as *mut u8, a.zeroed))
    }

    #[inline]
    fn slot(&mut self, class: usize) -> Option<*mut u8> {
        let mut span = self.partial[class];
        if span == 0 {
            span = self.new_span(class)?;
        }
        let s = self.span(span);
        let cursor = s.cursor as usize;
        let mut word = cursor / 64;
        let mut bits = s.free[word] & (!0 << (cursor % 64));
        while bits == 0 {
            // A span in the list has a free slot, so this ends.
            word = (word + 1) % s.free.len();
            bits = s.free[word];
        }
        let bit = bits.trailing_zeros() as usize;
        let slot = word * 64 + bit;
        s.free[word] &= !(1 << bit);
        s.used += 1;
        s.cursor = ((slot + 1) % class::SLOTS_MAX) as u16;
        let (start, full) = (s.start, s.used == s.slots);
        if full {
            self.unlink_partial(class, span);
        }
        Some((self.addr(start) + slot * CLASSES[class].size as usize) as *mut u8)
    }

    #[cold]
    fn new_span(&mut self, class: usize) -> Option<u32> {
        let c = &CLASSES[class];
        let span = self.alloc(c.pages, 1, c.pages, Kind::Slots)?.span;
        let s = self.span(span);
        s.class = class as u8;
        s.slots = c.slots as u16;
        for (i, word) in s.free.iter_mut().enumerate() {
            *word = match (c.slots as usize).saturating_sub(i * 64) {
                n if n >= 64 => !0,
                n => (1 << n) - 1,
            };
        }
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

    fn push_partial(&mut self, class: usize, span: u32) {
        // Behind the head: the head stays the span that is being filled.
        let head = self.partial[class];
        if head == 0 {
            self.partial[class] = span;
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

    fn unlink_partial(&mut self, class: usize, span: u32) {
        let s = *self.span(span);
        if s.prev == 0 {
            self.partial[class] = s.next;
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
            Kind::Slots => {
                let c = &CLASSES[class];
                let slot = ((offset as u64 * u64::from(c.magic)) >> 32) as usize;
                if slot * c.size as usize != offset || slot >= c.slots as usize {
                    return Err(BadPointer::Invalid);
                }
                if self.span(span).free[slot / 64] >> (slot % 64) & 1 == 1 {
                    return Err(BadPointer::Free);
                }
                Ok(Place::Slot { span, slot, size: c.size as usize })
            }
            Kind::Large if offset == 0 => Ok(Place::Large { span, pages }),
            Kind::Free => Err(BadPointer::Free),
            _ => Err(BadPointer::Invalid),
        }
    }
}
