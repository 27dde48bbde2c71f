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
        let _ = write_frame(self, number, addr);
    }

    /// Adds the callers of the running code: what the unwinder found, or else what looks like return addresses.
    pub fn backtrace(&mut self) {
        #[cfg(donjon_guest)]
        {
            let mut number = 0;
            // The first is the entry point that asked the unwinder.
            for addr in donjon_base::frames::collected().skip(1) {
                self.frame(number, addr);
                number += 1;
            }
            if number == 0 {
                let here = 0usize;
                scan((&raw const here).addr(), 0, self);
            }
        }
    }

    /// Adds how much memory is in use.
    pub fn memory(&mut self) {
        if let Some((used, total)) = crate::mem::try_usage() {
            let threads = sched::try_count().unwrap_or(0);
            let _ = writeln!(self, "memory: {} of {} KiB in use; threads: {threads}", used / 1024, total / 1024);
        }
    }

    /// Sends the report; the guest ends.
    pub fn send(self, status: i32) -> ! {
        gate::fault(&self.text[..self.len], status)
    }
}

fn write_frame(out: &mut impl Write, number: usize, addr: usize) -> fmt::Result {
    let b = boot();
    let offset = (addr as u64).wrapping_sub(b.image.base);
    if offset < b.image.len {
        writeln!(out, "  {number:2}: image+{offset:#x}")
    } else {
        writeln!(out, "  {number:2}: {addr:#x}")
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
    r.memory();
    r.send(status)
}

/// A line of a backtrace: what does not fit is cut off.
#[cfg(donjon_guest)]
#[derive(Default)]
struct Line {
    text: [u8; 32],
    len: usize,
}

#[cfg(donjon_guest)]
impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for (slot, b) in self.text[self.len..].iter_mut().zip(s.bytes()) {
            *slot = b;
            self.len += 1;
        }
        Ok(())
    }
}

/// Before the unwinder collects the frames of a backtrace that does not end the guest: nobody else collects until
/// [`print_backtrace`] is called.
#[cfg(donjon_guest)]
pub extern "C" fn begin_backtrace() {
    core::mem::forget(preempt::off());
    donjon_base::frames::clear();
}

/// Prints the collected frames to standard error, a line each.
#[cfg(donjon_guest)]
pub extern "C" fn print_backtrace() {
    let mut frames = [0; donjon_base::frames::MAX];
    let mut count = 0;
    // The first is the entry point that asked the unwinder.
    for (slot, addr) in frames.iter_mut().zip(donjon_base::frames::collected().skip(1)) {
        *slot = addr;
        count += 1;
    }
    donjon_base::frames::clear();
    preempt::set_count(preempt::count() - 1);
    // Where standard error is closed, a backtrace is not an error.
    let _ = crate::fd::write(2, &[b"stack backtrace:\n"]);
    for (number, addr) in frames[..count].iter().enumerate() {
        // In one piece: the host looks for addresses in what it relays.
        let mut line = Line::default();
        let _ = write_frame(&mut line, number, *addr);
        let _ = crate::fd::write(2, &[&line.text[..line.len]]);
    }
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
    let mut number = 0;
    for addr in donjon_base::frames::collected().skip(1) {
        r.frame(number, addr);
        number += 1;
    }
    if number < 2 {
        if number == 0 {
            r.frame(0, f.rip as usize);
        }
        scan(f.rsp as usize, 1, &mut r);
    }
    r.memory();
    r.send(STATUS_FAULT)
}

/// Whether the faulting thread's stack can be walked: the stack pointer is in it, and not so low that it has overflowed; and the instruction is one
/// of the image's, as the unwinder reads the instructions that its tables do not know, and after a wild jump there is nothing to read.
#[cfg(donjon_guest)]
#[unsafe(no_mangle)]
fn donjon_guest_walkable(f: &donjon_base::fault::Fault) -> bool {
    let stack = sched::try_current(|t| t.stack.as_ref().map(crate::thread::stack::Stack::range)).flatten();
    let image = &boot().image;
    f.rip.wrapping_sub(image.base) < image.len
        && stack.is_some_and(|(low, len)| (low..low + len).contains(&(f.rsp as usize)))
}

/// Adds what looks like return addresses on the running thread's stack, from `rsp` up.
#[cfg(donjon_guest)]
fn scan(rsp: usize, mut number: usize, r: &mut Report) {
    let b = boot();
    let stack = sched::try_current(|t| t.stack.as_ref().map(crate::thread::stack::Stack::range)).flatten();
    let Some((low, len)) = stack else { return };
    let text = b.image.base as usize..(b.image.base + b.image.len) as usize;
    let mut at = rsp.max(low).next_multiple_of(8);
    let end = (low + len).min(at.saturating_add(64 << 10));
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
