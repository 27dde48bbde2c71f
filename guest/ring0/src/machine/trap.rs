//! Exceptions and interrupts.
#![expect(unsafe_code, reason = "entered from assembly")]
// UNSAFETY: the functions here are called by `trap.s` with a complete frame on the trap stack.

use super::console::Piece::Hex;
use super::segments::TIMER;
use super::shim::{Shim, current};
use super::{cpu, exit};
use crate::say;
use crate::space::Access;
use crate::user;
use donjon_abi::{PAGE, TICK_NS};

/// Registers of the interrupted code, as `trap.s` pushes them.
#[repr(C)]
#[derive(Clone, Copy, Default)]
#[expect(missing_docs, reason = "register names")]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

const PAGE_FAULT: u64 = 14;
/// Error code of a page fault (Intel SDM vol. 3 §4.7).
const WRITE: u64 = 1 << 1;
const FETCH: u64 = 1 << 4;

#[unsafe(no_mangle)]
extern "C" fn shim_trap(frame: &mut Frame) {
    // SAFETY: an entry from ring 3.
    let shim = unsafe { current() };
    cpu::close_user_access(&shim.features);
    if frame.vector >= 32 {
        if shim.interrupt(frame.vector) && frame.vector == TIMER {
            shim.arm(shim.clock.now(), TICK_NS);
            tick(shim, frame);
        }
        return;
    }
    let address = if frame.vector == PAGE_FAULT { cpu::fault_address() } else { 0 };
    if matches!(frame.vector, 2 | 8 | 18) {
        // On the stack of its own, whatever ran: a hardware failure, not the guest's.
        say!("fatal exception ", Hex(frame.vector), " at ", Hex(frame.rip));
        shim.exit(exit::CRASH);
    }
    if frame.vector == PAGE_FAULT && frame.error & FETCH == 0 {
        let access = if frame.error & WRITE != 0 { Access::Write } else { Access::Read };
        let touched = shim.space.touch(address, access);
        if shim.granted(touched).is_some() {
            if frame.error & 1 != 0 {
                // The rights suffice: the CPU remembered older ones.
                cpu::flush(address & !(PAGE - 1), PAGE);
            }
            return;
        }
    }
    deliver(shim, frame, address);
}

/// Lets ring 3 continue at its tick upcall (`abi::image::ImageHeader::upcall`). Where its stack has no room, the tick is dropped: the code will
/// meet its guard page by itself.
fn tick(shim: &mut Shim, frame: &mut Frame) {
    if shim.fault_entry.is_none() {
        return;
    }
    let rsp = frame.rsp.wrapping_sub(128 + 16);
    let words = u128::from(frame.rip) << 64 | u128::from(frame.rflags);
    let written = user::write(&mut shim.space, rsp, &words.to_le_bytes());
    if shim.granted(written).is_some() {
        frame.rsp = rsp;
        frame.rip = shim.upcall;
    }
}

/// Calls the image's fault entry; a second fault ends the guest.
fn deliver(shim: &mut Shim, frame: &mut Frame, address: u64) {
    let entry = shim.fault_entry.take();
    let stack = shim.fault_stack - 8;
    let zero = user::write(&mut shim.space, stack, &[0; 8]);
    let (Some(entry), Some(())) = (entry, shim.granted(zero)) else {
        report("the guest faulted in its fault entry", frame, address);
        shim.exit(exit::CRASH);
    };
    *frame = Frame {
        rdi: frame.vector,
        rsi: address,
        rdx: frame.rip,
        rcx: frame.rsp,
        r8: frame.rbp,
        r9: frame.error,
        rip: entry,
        cs: frame.cs,
        rflags: 0x202,
        rsp: stack,
        ss: frame.ss,
        ..Frame::default()
    };
}

fn report(what: &str, frame: &Frame, address: u64) {
    say!(
        what,
        ": exception ",
        Hex(frame.vector),
        " error ",
        Hex(frame.error),
        " rip ",
        Hex(frame.rip),
        " rsp ",
        Hex(frame.rsp),
        " address ",
        Hex(address)
    );
}

/// An exception in ring 0: a bug of the shim, or a failure of the machine.
#[unsafe(no_mangle)]
extern "C" fn shim_fatal(frame: &Frame) -> ! {
    report("exception in the shim", frame, cpu::fault_address());
    exit::exit(None, exit::CRASH)
}
