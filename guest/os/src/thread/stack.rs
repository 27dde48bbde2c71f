//! Thread stacks: `[guard page][stack …][TLS block][Tcb]`, backed as they are touched.

#![expect(unsafe_code, reason = "guard pages, TLS at the top of a stack")]
// UNSAFETY: changes the rights of memory that this module allocated.

use crate::{
    errno::{Errno, Result},
    mem, random,
};
use alloc::vec::Vec;
use donjon_abi::Prot;
use donjon_base::{Lock, PAGE, tls};

/// Stack of threads that do not say how much they need.
pub const DEFAULT: usize = 2 << 20;
/// Least size that may be asked for (Linux's PTHREAD_STACK_MIN).
pub const MIN: usize = 16 << 10;
/// Stack of the first thread.
pub const MAIN: usize = 8 << 20;
/// Room that is added to what is asked for: the library OS runs on its callers' stacks.
const EXTRA: usize = 64 << 10;
/// What a stack counts against the memory limit: what a typical thread touches.
const CHARGE: usize = 16 << 10;
/// What a stack that waits for reuse keeps backed.
const KEEP: usize = 32 << 10;
/// Most stacks that wait for reuse.
const CACHED_MAX: usize = 16;

/// A stack.
#[derive(Debug)]
pub(crate) struct Stack {
    /// Address of the guard page.
    base: usize,
    len: usize,
}

static CACHE: Lock<Vec<Stack>> = Lock::new(Vec::new());

/// A stack of at least `size` bytes. EAGAIN if there is no memory, as pthread_create(3) wants it.
pub(crate) fn take(size: usize) -> Result<Stack> {
    let whole = size.max(MIN).checked_add(EXTRA + tls::size()).and_then(|len| len.checked_next_multiple_of(PAGE));
    let len = whole.and_then(|len| len.checked_add(PAGE)).ok_or(Errno::EAGAIN)?;
    let cached = {
        let mut cache = CACHE.lock();
        cache.iter().position(|s| s.len == len).map(|at| cache.swap_remove(at))
    };
    if let Some(stack) = cached {
        return Ok(stack);
    }
    let base = mem::map(len, PAGE, CHARGE).ok_or(Errno::EAGAIN)?;
    // SAFETY: the mapping is new.
    if unsafe { mem::protect(base, PAGE, Prot::None) }.is_err() {
        // SAFETY: nobody has seen it.
        unsafe { mem::unmap(base, len) };
        return Err(Errno::EAGAIN);
    }
    Ok(Stack { base, len })
}

/// Takes a stack back that nobody runs on any more.
pub(crate) fn give_back(s: Stack) {
    // What a deep recursion touched goes back at once; the top is likely to be needed again.
    let deep = (s.base + PAGE, s.len.saturating_sub(PAGE + KEEP));
    // SAFETY: nobody uses the stack.
    let discarded = deep.1 == 0 || unsafe { mem::discard(deep.0, deep.1) }.is_ok();
    if discarded {
        let mut cache = CACHE.lock();
        if cache.len() < CACHED_MAX && cache.try_reserve(1).is_ok() {
            cache.push(s);
            return;
        }
    }
    // SAFETY: nobody uses the stack. If the guard cannot be lifted, the address space is lost, and no more.
    unsafe { mem::unmap(s.base, s.len) };
}

/// Stack canary and pointer guard of this boot.
fn secrets() -> [usize; 2] {
    static SECRETS: Lock<Option<[usize; 2]>> = Lock::new(None);
    *SECRETS.lock().get_or_insert_with(|| [random::u64() as usize, random::u64() as usize])
}

impl Stack {
    /// Puts TLS at the top for the thread of that number. Returns the control block's address and where the stack begins.
    pub fn prepare(&self, thread: u32) -> (usize, usize) {
        let top = self.base + self.len;
        // SAFETY: the stack is new, and longer than `tls::size()`.
        let tcb = unsafe { tls::install(top, secrets(), thread) };
        (tcb, (top - tls::size()) & !15)
    }

    /// Lowest usable address, and length up to the top.
    pub fn range(&self) -> (usize, usize) {
        (self.base + PAGE, self.len - PAGE)
    }

    /// Whether the address is in the guard page.
    #[cfg_attr(not(donjon_guest), expect(dead_code, reason = "asked by fault reports only"))]
    pub fn guards(&self, addr: usize) -> bool {
        (self.base..self.base + PAGE).contains(&addr)
    }
}

/// Forgets the stacks that wait for reuse, whose memory a test has taken away.
#[cfg(test)]
pub(crate) fn forget_cache() {
    core::mem::take(&mut *CACHE.lock()).into_iter().for_each(core::mem::forget);
}
