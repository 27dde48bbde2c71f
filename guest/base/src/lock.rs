//! [`Lock`]: the cell that library-OS state lives in.

#![expect(unsafe_code, reason = "a cell with a run-time borrow flag")]
// UNSAFETY: hands out `&mut` from `&self`.

use crate::preempt;
use core::cell::{Cell, UnsafeCell};

/// A mutually exclusive cell. Locking turns preemption off; there being one CPU, that is all it takes.
///
/// A lock that is already held can only be held by the running thread, or by one that parked with it: both are bugs of the
/// library OS, and `lock` panics.
pub struct Lock<T> {
    held: Cell<bool>,
    value: UnsafeCell<T>,
}

// SAFETY: 1. `held` and `value` are only touched with preemption off, by the one CPU; 2. on a test host, by the one thread
// that holds the session (`preempt::off` asserts it).
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// A lock that holds `value`.
    pub const fn new(value: T) -> Self {
        Lock { held: Cell::new(false), value: UnsafeCell::new(value) }
    }

    /// Takes the lock.
    ///
    /// # Panics
    /// If it is held.
    #[inline]
    #[track_caller]
    pub fn lock(&self) -> LockGuard<'_, T> {
        let off = preempt::off();
        if self.held.replace(true) {
            held_twice();
        }
        LockGuard { lock: self, _off: off }
    }

    /// Whether the lock is held. For fault reports, which must not fault themselves.
    pub fn is_held(&self) -> bool {
        self.held.get()
    }
}

#[cold]
#[track_caller]
fn held_twice() -> ! {
    panic!("library OS: lock taken twice")
}

/// Access to what a [`Lock`] holds.
pub struct LockGuard<'a, T> {
    lock: &'a Lock<T>,
    // Dropped after `drop` below ran, so a pending tick finds the lock free.
    _off: preempt::Guard,
}

impl<T> core::ops::Deref for LockGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `held` makes this guard the only one.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> core::ops::DerefMut for LockGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: `held` makes this guard the only one.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for LockGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.held.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excludes_and_counts() {
        let _s = crate::host::session();
        let lock = Lock::new(1);
        {
            let mut g = lock.lock();
            *g += 1;
            assert_eq!(preempt::count(), 1);
            assert!(lock.is_held());
        }
        assert_eq!(preempt::count(), 0);
        assert_eq!(*lock.lock(), 2);
    }

    #[test]
    #[should_panic(expected = "lock taken twice")]
    fn refuses_reentrance() {
        let _s = crate::host::session();
        let lock = Lock::new(());
        let _a = lock.lock();
        let _b = lock.lock();
    }
}
