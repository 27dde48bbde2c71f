//! An allocator without the hardening, to measure what the hardening costs. No image that anybody gets contains it: only a build with
//! `DONJON_DEV_CFG=donjon_soft_heap` does, which `cargo xtask bench web --hardening` makes for itself.
//!
//! The slot that was freed last is handed out first, the list of free slots is in the slots themselves, and `free` believes what it is told.

#![expect(unsafe_code, reason = "the list of free slots is in the slots")]
// UNSAFETY: reads and writes the first word of free slots.

use super::class::CLASSES;
use super::pages::Pages;

/// Tells an object that has this allocator.
#[unsafe(no_mangle)]
#[used]
pub static donjon_soft_heap: u8 = 1;

/// In a span's words for free slots: address of the first freed one, and number of those that were handed out at least once.
const FIRST: usize = 0;
const FRESH: usize = 1;

impl Pages {
    /// A new span.
    pub(super) fn soft_span(&mut self, span: u32) {
        self.span(span).free = [0; _];
    }

    /// A slot of a span that has one.
    #[inline]
    pub(super) fn soft_slot(&mut self, class: usize, span: u32) -> *mut u8 {
        let start = self.span(span).start;
        let base = self.addr(start);
        let s = self.span(span);
        let first = s.free[FIRST];
        let at = if first != 0 {
            // SAFETY: a slot of this span that is free, whose first word is the next one's address.
            s.free[FIRST] = unsafe { *(first as *const u64) };
            first as usize
        } else {
            let fresh = s.free[FRESH] as usize;
            s.free[FRESH] += 1;
            base + fresh * CLASSES[class].size as usize
        };
        s.used += 1;
        if s.used == s.slots {
            self.unlink_partial(class, span);
        }
        at as *mut u8
    }

    /// Frees a slot.
    #[inline]
    pub(super) fn soft_dealloc(&mut self, ptr: usize, span: u32) {
        let s = self.span(span);
        // SAFETY: a slot is at least 16 bytes long, and its owner has given it up.
        unsafe { *(ptr as *mut u64) = s.free[FIRST] };
        s.free[FIRST] = ptr as u64;
        s.used -= 1;
        let class = s.class as usize;
        self.after_free(class, span);
    }
}
