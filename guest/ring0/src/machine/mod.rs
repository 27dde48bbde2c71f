//! What only ring 0 can do. Compiled for the guest only.
#![expect(unsafe_code, reason = "assembly")]
// UNSAFETY: `boot.s` and `trap.s`, the entries into Rust.

pub mod apic;
pub mod clock;
pub mod console;
pub mod cpu;
pub mod devices;
pub mod exit;
pub mod gate;
pub mod random;
pub mod segments;
pub mod shim;
pub mod start;
pub mod trap;

core::arch::global_asm!(include_str!("boot.s"), options(att_syntax));
core::arch::global_asm!(include_str!("trap.s"), options(att_syntax));

/// One line on the console: pieces of text and numbers.
#[macro_export]
macro_rules! say {
    ($($piece:expr),* $(,)?) => {
        $crate::machine::console::say(&[$($crate::machine::console::Piece::from($piece)),*])
    };
}

/// A panic is a bug of the shim; it is said and the machine ends.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let (file, line) = info.location().map_or(("?", 0), |l| (l.file(), l.line()));
    say!("the shim panicked at ", file, ":", console::Piece::Dec(line.into()));
    exit::exit(None, exit::CRASH)
}
