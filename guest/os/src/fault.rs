//! Crash reports: what goes to the host when the guest ends in a way that it should not.
//!
//! Addresses are offsets from the image's base (`image+0x…`), so that the host can symbolise them; addresses elsewhere are absolute.

#![cfg_attr(donjon_guest, expect(unsafe_code, reason = "reads a stack that may be broken"))]
// UNSAFETY: reads words of a stack, within the bounds of the memory that the stack is known to be in.

use crate::sched;
use core::fmt::{self, Write};
use donjon_base::{boot, gate, preempt};

/// Exit status of a guest that crashed.
pub const STATUS_FAULT: i32 = 70;
/// Exit status of a guest that called `abort`.
pub const STATUS_ABORT: i32 = 134;

/// Walks the stack: calls the function with the address of each frame's instruction. In the libc door, which knows the
/// unwinder. Returns false if it cannot.
pub type Backtrace = fn(frames: &mut dyn FnMut(usize) -> bool) -> bool;

static BACKTRACE: donjon_base::Lock<Option<Backtrace>> = donjon_base::Lock::new(None);

/// Says who walks stacks.
pub fn init(backtrace: Backtrace) {
    *BACKTRACE.lock() = Some(backtrace);
}

/// A report under construction: fixed size, what does not fit is cut off.
pub struct Report {
    text: [u8; 6000],
    len: usize,
}

impl Report {
    /// Starts a report with a line that says what happened, and one that says where.
    pub fn new(what: fmt::Arguments<'_>) -> Report {
        let mut r = Report { text: [0; 6000], len: 0 };
        let mut name = [0; 16];
        let known = sched::try_current(|t| name = t.name).is_some();
        let name = name.split(|b| *b == 0).next().unwrap_or_default();
        let name = if known { core::str::from_utf8(name).unwrap_or("?") } else { "?" };
        let _ = writeln!(r, "thread '{name}': {what}");
        r
    }

    /// Adds a code address.
    pub fn frame(&mut self, number: usize, addr: usize) {
        let b = boot();
        let offset = (addr as u64).wrapping_sub(b.image.base);
        let _ = if offset < b.image.len {
            writeln!(self, "  {number:2}: image+{offset:#x}")
        } else {
            writeln!(self, "  {number:2}: {addr:#x}")
        };
    }

    /// Adds the callers of the running code.
    pub fn backtrace(&mut self) {
        let f = if BACKTRACE.is_held() { None } else { *BACKTRACE.lock() };
        let mut number = 0;
        if let Some(f) = f {
            f(&mut |addr| {
                self.frame(number, addr);
                number += 1;
                number < 64
            });
        }
    }

    /// Sends the report; the guest ends.
    pub fn send(self, status: i32) -> ! {
        gate::fault(&self.text[..self.len], status)
    }
}

impl Write for Report {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let n = s.len().min(self.text.len() - self.len);
        self.text[self.len..self.len + n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

/// Ends the guest with a report: for what the program must not have done and for what cannot be.
#[cold]
#[inline(never)]
pub fn fatal(what: fmt::Arguments<'_>) -> ! {
    end(what, STATUS_ABORT)
}

/// As [`fatal`], with an exit status.
#[cold]
#[inline(never)]
pub fn end(what: fmt::Arguments<'_>, status: i32) -> ! {
    core::mem::forget(preempt::off());
    let mut r = Report::new(what);
    r.backtrace();
    r.send(status)
}

/// Reports an exception and ends the guest.
#[cfg(donjon_guest)]
#[unsafe(no_mangle)]
fn donjon_guest_fault(f: &donjon_base::fault::Fault) -> ! {
    let overflow = sched::try_current(|t| t.stack.as_ref().is_some_and(|s| s.guards(f.address as usize)));
    let mut r = match f.vector {
        14 if overflow == Some(true) => Report::new(format_args!("has overflowed its stack")),
        14 => Report::new(format_args!(
            "page fault: {} at {:#x}",
            match f.error & 0x12 {
                0x10 => "execution",
                2 => "write",
                _ => "read",
            },
            f.address
        )),
        0 => Report::new(format_args!("division error")),
        6 => Report::new(format_args!("invalid instruction")),
        13 => Report::new(format_args!("general protection fault")),
        v => Report::new(format_args!("exception {v} (error code {:#x})", f.error)),
    };
    r.frame(0, f.rip as usize);
    scan(f.rsp as usize, &mut r);
    r.send(STATUS_FAULT)
}

/// Adds what looks like return addresses on the faulting thread's stack.
#[cfg(donjon_guest)]
fn scan(rsp: usize, r: &mut Report) {
    let b = boot();
    let stack = sched::try_current(|t| t.stack.as_ref().map(crate::thread::stack::Stack::range)).flatten();
    let Some((low, len)) = stack else { return };
    let text = b.image.base as usize..(b.image.base + b.image.len) as usize;
    let mut at = rsp.max(low).next_multiple_of(8);
    let end = (low + len).min(at.saturating_add(64 << 10));
    let mut number = 1;
    while at < end && number < 40 {
        // SAFETY: inside the thread's stack, which is readable.
        let word = unsafe { core::ptr::read_volatile(at as *const usize) };
        if text.contains(&word) && donjon_base::tls::follows_call(word) {
            r.frame(number, word);
            number += 1;
        }
        at += 8;
    }
}
