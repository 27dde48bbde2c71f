//! The console: COM1, polled.

use super::cpu::{inb, outb};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

const COM1: u16 = 0x3f8;
/// Most polls of the line status before a byte is sent regardless: a port that is absent or stuck must not stop the shim's own messages.
const PATIENCE: u32 = 100_000;
/// Most polls for the guest's bytes. Who reads them may come back late, and the guest has better things to do than wait.
const SHORT: u32 = 100;

/// There is no port: what is written is lost, and nobody waits for it.
static ABSENT: AtomicBool = AtomicBool::new(false);

/// 115200 baud, 8N1, FIFO on, interrupt at received bytes.
pub fn init() {
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 0x0b), (1, 1)] {
        outb(COM1 + register, value);
    }
    // Its scratch register keeps what is put there, if it is a port.
    outb(COM1 + 7, 0x5a);
    ABSENT.store(inb(COM1 + 7) != 0x5a, Relaxed);
}

/// Writes bytes as they are.
pub fn write(bytes: &[u8]) {
    for chunk in bytes.chunks(FIFO) {
        wait(PATIENCE);
        chunk.iter().for_each(|b| outb(COM1, *b));
    }
}

/// Writes the bytes that the port takes now, and returns how many.
pub fn offer(bytes: &[u8]) -> usize {
    let mut taken = 0;
    for chunk in bytes.chunks(FIFO) {
        if !ABSENT.load(Relaxed) && !wait(SHORT) {
            break;
        }
        chunk.iter().for_each(|b| outb(COM1, *b));
        taken += chunk.len();
    }
    taken
}

/// Bytes that the FIFO takes once the transmitter is empty.
const FIFO: usize = 16;

/// Whether the transmitter becomes empty within so many polls.
fn wait(polls: u32) -> bool {
    (0..polls).any(|_| inb(COM1 + 5) & 0x20 != 0)
}

/// A received byte, if there is one.
pub fn read() -> Option<u8> {
    let status = inb(COM1 + 5);
    // 0xff: there is no port.
    (status & 1 == 1 && status != 0xff).then(|| inb(COM1))
}

/// A piece of a message.
pub enum Piece<'a> {
    /// Text.
    Text(&'a str),
    /// Hexadecimal number.
    Hex(u64),
    /// Decimal number.
    Dec(u64),
}

impl<'a> From<&'a str> for Piece<'a> {
    fn from(text: &'a str) -> Self {
        Piece::Text(text)
    }
}

/// One line of the shim's own, `donjon: …`.
pub fn say(pieces: &[Piece<'_>]) {
    write(b"donjon: ");
    for piece in pieces {
        match piece {
            Piece::Text(text) => write(text.as_bytes()),
            Piece::Hex(n) => {
                write(b"0x");
                number(*n, 16);
            }
            Piece::Dec(n) => number(*n, 10),
        }
    }
    write(b"\n");
}

fn number(mut n: u64, base: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        if let Some(d) = digits.get_mut(at) {
            *d = b"0123456789abcdef"[(n % base) as usize];
        }
        n /= base;
        if n == 0 || at == 0 {
            break;
        }
    }
    write(digits.get(at..).unwrap_or_default());
}
