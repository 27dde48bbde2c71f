//! State of which there is one: the descriptor table, the file tree, the network.

#![expect(unsafe_code, reason = "says that reference-counted state may be reached by every thread")]
// UNSAFETY: a `Send` that the compiler cannot see.

use donjon_base::Lock;

/// A cell for state that is not `Send` because it counts references without atomics.
///
/// All threads of the guest run on one CPU, and library-OS state is only touched with preemption off.
pub struct Global<T>(Lock<Owned<T>>);

struct Owned<T>(T);

// SAFETY: 1. the value is only reached through `Global::with`, which holds the lock, that is, with preemption off; 2. clones of the
// counted references inside are used by library-OS code only, which runs with preemption off wherever it touches them
// (`crate::enter`); 3. there is one CPU, so no two such uses overlap; on a test host the session has one thread.
unsafe impl<T> Send for Owned<T> {}

impl<T> Global<T> {
    /// A cell that holds `value`.
    pub const fn new(value: T) -> Self {
        Global(Lock::new(Owned(value)))
    }

    /// Runs `f` on the value. `f` must not come back to the same cell, nor park.
    ///
    /// # Panics
    /// If the cell is in use further up the stack: a bug of the library OS.
    #[inline]
    #[track_caller]
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock().0)
    }
}
