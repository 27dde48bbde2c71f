//! Sorting and searching.

use super::extern_c::{free, malloc};
use super::mem::memcpy;
use core::ffi::{c_int, c_void};
use core::ptr::null_mut;

/// Compares two elements.
pub type Compare = unsafe extern "C" fn(*const c_void, *const c_void) -> c_int;
/// Compares two elements, given a context.
pub type CompareWith = unsafe extern "C" fn(*const c_void, *const c_void, *mut c_void) -> c_int;

/// What is sorted. Whatever the comparison answers, even nonsense, no access leaves the array.
struct Array<'a> {
    base: *mut u8,
    size: usize,
    compare: &'a dyn Fn(*const c_void, *const c_void) -> c_int,
}

impl Array<'_> {
    fn at(&self, i: usize) -> *mut u8 {
        self.base.wrapping_add(i * self.size)
    }

    /// # Safety
    /// Both are in the array.
    unsafe fn swap(&self, i: usize, j: usize) {
        let (a, b) = (self.at(i), self.at(j));
        if i != j {
            // SAFETY: the caller's, and they differ.
            unsafe { core::ptr::swap_nonoverlapping(a, b, self.size) };
        }
    }

    fn less(&self, i: usize, j: usize) -> bool {
        (self.compare)(self.at(i).cast(), self.at(j).cast()) < 0
    }

    /// Sorts `from..to` stably; `spare` has room for half of it, rounded down.
    ///
    /// # Safety
    /// The range is in the array.
    unsafe fn merge_sort(&self, from: usize, to: usize, spare: *mut u8) {
        let half = (to - from) / 2;
        if half == 0 {
            return;
        }
        let middle = from + half;
        // SAFETY: 1. ranges within the range; 2. `out` never overtakes `right`, as long as something is left in `spare`.
        unsafe {
            self.merge_sort(from, middle, spare);
            self.merge_sort(middle, to, spare);
            if !self.less(middle, middle - 1) {
                return;
            }
            memcpy(spare.cast(), self.at(from).cast(), half * self.size);
            let (mut left, left_end) = (spare, spare.wrapping_add(half * self.size));
            let (mut right, right_end) = (self.at(middle), self.at(to));
            let mut out = self.at(from);
            while left < left_end {
                let from_right = right < right_end && (self.compare)(right.cast(), left.cast()) < 0;
                let source = if from_right { &mut right } else { &mut left };
                memcpy(out.cast(), source.cast(), self.size);
                *source = source.wrapping_add(self.size);
                out = out.wrapping_add(self.size);
            }
        }
    }

    /// Sorts without spare memory.
    ///
    /// # Safety
    /// There are `n` elements.
    unsafe fn heap_sort(&self, n: usize) {
        // SAFETY: all indices are below `n`.
        unsafe {
            for root in (0..n / 2).rev() {
                self.sift(root, n);
            }
            for end in (1..n).rev() {
                self.swap(0, end);
                self.sift(0, end);
            }
        }
    }

    /// # Safety
    /// As for `heap_sort`.
    unsafe fn sift(&self, mut root: usize, n: usize) {
        while root * 2 + 1 < n {
            let mut child = root * 2 + 1;
            if child + 1 < n && self.less(child, child + 1) {
                child += 1;
            }
            if !self.less(root, child) {
                return;
            }
            // SAFETY: both are below `n`.
            unsafe { self.swap(root, child) };
            root = child;
        }
    }
}

/// # Safety
/// `base` has `n` elements of `size` bytes.
unsafe fn sort(base: *mut c_void, n: usize, size: usize, compare: &dyn Fn(*const c_void, *const c_void) -> c_int) {
    let array = Array { base: base.cast(), size, compare };
    let needed = n / 2 * size;
    if needed == 0 {
        return;
    }
    let mut small = [0u128; 64];
    // SAFETY: 1. the caller's; 2. the spare memory is large enough.
    unsafe {
        if needed <= size_of_val(&small) {
            return array.merge_sort(0, n, small.as_mut_ptr().cast());
        }
        let spare = malloc(needed);
        if spare.is_null() {
            return array.heap_sort(n);
        }
        array.merge_sort(0, n, spare.cast());
        free(spare);
    }
}

/// Sorts; equal elements keep their order unless memory is short.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn qsort(base: *mut c_void, n: usize, size: usize, compare: Compare) {
    // SAFETY: C contract.
    unsafe { sort(base, n, size, &|a, b| compare(a, b)) }
}

/// Sorts with a context for the comparison.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn qsort_r(base: *mut c_void, n: usize, size: usize, compare: CompareWith, context: *mut c_void) {
    // SAFETY: C contract.
    unsafe { sort(base, n, size, &|a, b| compare(a, b, context)) }
}

/// Sorts without memory, for the tests.
#[cfg(test)]
pub unsafe fn heap_sort(base: *mut c_void, n: usize, size: usize, compare: Compare) {
    // SAFETY: the caller's.
    unsafe { Array { base: base.cast(), size, compare: &|a, b| compare(a, b) }.heap_sort(n) }
}

/// Finds an element in a sorted array.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn bsearch(
    key: *const c_void,
    base: *const c_void,
    n: usize,
    size: usize,
    compare: Compare,
) -> *mut c_void {
    let (mut from, mut to) = (0, n);
    while from < to {
        let middle = from + (to - from) / 2;
        let at = base.wrapping_byte_add(middle * size);
        // SAFETY: C contract.
        match unsafe { compare(key, at) } {
            0 => return at.cast_mut(),
            ..0 => to = middle,
            1.. => from = middle + 1,
        }
    }
    null_mut()
}
