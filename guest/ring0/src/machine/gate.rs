//! The gate's server side.
#![expect(unsafe_code, reason = "entered from assembly; sets the guest's FS base")]
// UNSAFETY: `shim_gate` is called by `trap.s` for each system call of ring 3.

use super::shim::{Shim, current};
use super::{console, cpu, exit};
use crate::nic::Failure;
use crate::space::{Access, Flush, Refused};
use crate::user;
use donjon_abi::{Call, Error, FAULT_MAX, PAGE, Prot};

/// Most bytes that one call writes to the console: a port is slow, and interrupts are off meanwhile.
const CONSOLE_MAX: u64 = 1024;
const FS_BASE: u32 = 0xc000_0100;

#[unsafe(no_mangle)]
extern "C" fn shim_gate(call: u64, a: u64, b: u64, c: u64, _d: u64) -> i64 {
    // SAFETY: an entry from ring 3.
    let shim = unsafe { current() };
    let Some(call) = Call::from_number(call) else { return -(Error::NoSuchCall as i64) };
    match serve(shim, call, a, b, c) {
        Ok(value) => value.cast_signed(),
        Err(e) => -(e as i64),
    }
}

fn serve(shim: &mut Shim, call: Call, a: u64, b: u64, c: u64) -> Result<u64, Error> {
    match call {
        Call::Exit => shim.exit(a as u8),
        Call::Fault => {
            // What cannot be read is left out: the report is all that remains of the guest.
            let write = if exit::heard() { exit::report } else { console::write };
            let shown = print(shim, a, b.min(FAULT_MAX), |bytes| {
                write(bytes);
                bytes.len()
            });
            if shown.is_err() {
                console::say(&["the guest's crash report cannot be read".into()]);
            }
            shim.exit(c as u8)
        }
        Call::Console => print(shim, a, b.min(CONSOLE_MAX), console::offer),
        Call::Wait => Ok(shim.wait(a)),
        Call::NetSend | Call::NetRecv => {
            let nic = shim.nic.as_mut().ok_or(Error::NoSuchCall)?;
            let done = match call {
                Call::NetSend => nic.send(&mut shim.space, a, b),
                _ => nic.receive(&mut shim.space, a, b),
            };
            done.map_err(|failure| match failure {
                Failure::User(Refused::Rights) => Error::BadAddress,
                Failure::User(Refused::NoMemory) => shim.out_of_memory(),
                Failure::Invalid => Error::Invalid,
                Failure::Device(lie) => shim.device_lied(lie),
            })
        }
        Call::Protect => {
            let prot = Prot::from_number(c).ok_or(Error::Invalid)?;
            change(shim, a, b, |shim| shim.space.protect(a, b, prot))
        }
        Call::Discard => change(shim, a, b, |shim| shim.space.discard(a, b)),
        Call::SetTls => {
            if a >= 1 << 47 {
                return Err(Error::BadAddress);
            }
            // SAFETY: a canonical address in the guest's half; the shim uses no FS base.
            unsafe { cpu::wrmsr(FS_BASE, a) };
            Ok(0)
        }
    }
}

/// Writes what the guest has there until `write` takes less than it gets; returns how many bytes it took.
fn print(shim: &mut Shim, va: u64, len: u64, write: impl Fn(&[u8]) -> usize) -> Result<u64, Error> {
    let mut chunk = [0; 256];
    let (mut taken, mut full) = (0, false);
    let shown = user::pieces(&mut shim.space, va, len, Access::Read, |space, at, n| {
        for start in (0..n).step_by(chunk.len()) {
            if full {
                return;
            }
            let part = &mut chunk[..(n - start).min(256)];
            crate::phys::Phys::read(&space.mem, at.add(start as u64), part);
            let now = write(part);
            taken += now as u64;
            full = now < part.len();
        }
    });
    shim.granted(shown).map(|()| taken).ok_or(Error::BadAddress)
}

fn change(
    shim: &mut Shim,
    va: u64,
    len: u64,
    f: impl FnOnce(&mut Shim) -> Result<Flush, Refused>,
) -> Result<u64, Error> {
    if !va.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) {
        return Err(Error::Invalid);
    }
    let inside = va >= shim.reserve.start && va.checked_add(len).is_some_and(|end| end <= shim.reserve.end);
    if !inside {
        return Err(Error::BadAddress);
    }
    match f(shim) {
        Ok(flush) => {
            shim.flush(va, len, flush);
            Ok(0)
        }
        Err(Refused::NoMemory) => {
            // A part may have changed.
            shim.flush(va, len, Flush::Range);
            Err(Error::NoMemory)
        }
        Err(Refused::Rights) => Err(Error::BadAddress),
    }
}
