//! The end of the machine, with an exit status for whoever started it.

use super::cpu::{inb, outb, outw, stop, triple_fault};
use crate::firmware::Power;
use crate::phys::{Direct, Phys};

/// Exit status: the guest broke down.
pub const CRASH: u8 = 70;
/// Exit status: the image is malformed.
pub const BAD_IMAGE: u8 = 65;
/// Exit status: the machine lacks something.
pub const UNFIT: u8 = 69;
/// Exit status: the command line is wrong.
pub const USAGE: u8 = 2;

/// A debug console here takes the guest's crash report, if there is one, and then the exit status as one byte
/// (QEMU: `-device isa-debugcon,iobase=0xe9`).
const STATUS: u16 = 0xe9;
/// QEMU: `-device isa-debug-exit,iobase=0xf4,iosize=1` ends QEMU with `(value << 1) | 1`.
const DEBUG_EXIT: u16 = 0xf4;

/// Whether somebody listens for the crash report and the exit status.
pub fn heard() -> bool {
    inb(STATUS) == STATUS as u8
}

/// Writes a piece of the crash report to whoever listens.
pub fn report(bytes: &[u8]) {
    bytes.iter().for_each(|b| outb(STATUS, *b));
}

/// Ends the machine: by QEMU's exit device, else by switching it off, else by a reset.
pub fn exit(mem: Option<(&mut Direct, Power)>, status: u8) -> ! {
    if heard() {
        outb(STATUS, status);
    }
    outb(DEBUG_EXIT, status & 0x7f);
    // Still here: there is no such device. Sleep type S5 is 0 on legacy ACPI as QEMU has it, and 5 where ACPI is reduced.
    match mem {
        Some((_, Power::Pm1(port))) => outw(port, 1 << 13),
        Some((_, Power::SleepPort(port))) => outb(port, 5 << 2 | 1 << 5),
        // Mapped when it was found.
        Some((mem, Power::SleepMemory(at))) => mem.write(at, &[5 << 2 | 1 << 5]),
        Some((_, Power::Unknown)) | None => {
            // Firecracker ends at this command of the keyboard controller, a PC resets.
            outb(0x64, 0xfe);
            triple_fault()
        }
    }
    stop()
}
