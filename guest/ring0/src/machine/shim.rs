//! The shim's state while the guest runs.
#![expect(unsafe_code, reason = "traps find the state in a static")]
// UNSAFETY: a trap comes with no argument that could carry the state, so it lies in one cell that is filled once, before ring 3 starts.
// There is one CPU, and interrupts are off in ring 0 except in `halt`, whose interrupts do not reach Rust.

use super::apic::Apic;
use super::clock::Clock;
use super::console::{self, Piece};
use super::cpu::{self, Features};
use super::exit;
use super::segments::{DEVICE, SERIAL, TIMER};
use crate::firmware::Power;
use crate::frames::Span;
use crate::nic::Nic;
use crate::phys::{Direct, Phys, PhysAddr};
use crate::say;
use crate::space::{Flush, Refused, Space};
use crate::stop;
use crate::virtq::Lie;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use donjon_abi::{TICK_NS, ready};

/// Most looks at the send queue until the last frames are gone.
const DRAIN: u32 = 1_000_000;

/// All that the traps and the gate work on.
pub struct Shim {
    /// Memory.
    pub space: Space<Direct>,
    /// What the CPU has.
    pub features: Features,
    /// Interrupts and timer.
    pub apic: Apic,
    /// Time.
    pub clock: Clock,
    /// How to switch off.
    pub power: Power,
    /// Memory with the secrets.
    pub secrets: Span,
    /// Guest addresses that `protect` and `discard` may change.
    pub reserve: Span,
    /// The image's tick upcall.
    pub upcall: u64,
    /// The image's fault entry, until it has been called once.
    pub fault_entry: Option<u64>,
    /// Top of the fault stack.
    pub fault_stack: u64,
    /// Memory of the machine in bytes, for messages.
    pub total: u64,
    /// Network device.
    pub nic: Option<Nic>,
    /// When the timer runs out, in nanoseconds since boot; 0 if it does not run.
    pub expires: u64,
    /// Whether the host wants the guest to stop.
    pub stop: stop::Request,
}

struct Cell(UnsafeCell<MaybeUninit<Shim>>);
// SAFETY: one CPU; see the module comment.
unsafe impl Sync for Cell {}
static SHIM: Cell = Cell(UnsafeCell::new(MaybeUninit::uninit()));

/// Puts the state where traps find it.
///
/// # Safety
/// Called once, before ring 3 starts.
pub unsafe fn install(shim: Shim) -> &'static mut Shim {
    // SAFETY: by the contract nobody has or gets another reference before this one ends in `enter`.
    unsafe { (*SHIM.0.get()).write(shim) }
}

/// The state, for a trap or a gate call from ring 3.
///
/// # Safety
/// Called once for each entry from ring 3, after [`install`]; the reference ends before the return to ring 3.
pub unsafe fn current() -> &'static mut Shim {
    // SAFETY: (1) filled before ring 3 started; (2) entries from ring 3 do not nest.
    unsafe { (*SHIM.0.get()).assume_init_mut() }
}

unsafe extern "C" {
    fn shim_halt() -> u64;
}

impl Shim {
    /// Sleeps until something is ready or the time has passed; the gate's `wait`.
    pub fn wait(&mut self, timeout: u64) -> u64 {
        let deadline = self.clock.now().saturating_add(timeout);
        let found = loop {
            let mut found = self.ready();
            if found == 0 && timeout != 0 {
                // Interrupts on, then look again: what came before is seen, what comes later wakes.
                self.interrupts(true);
                found = self.ready();
            }
            if found != 0 || timeout == 0 {
                break found;
            }
            let now = self.clock.now();
            if now >= deadline {
                break 0;
            }
            // A timer that runs out earlier wakes this loop once more, which is cheaper than setting it for each short sleep.
            if !(now..=deadline).contains(&self.expires) {
                self.arm(now, deadline - now);
            }
            // SAFETY: interrupts are off; they come on together with the `hlt`, so none is missed in between.
            let vector = unsafe { shim_halt() };
            self.interrupt(vector);
        };
        if timeout != 0 {
            self.interrupts(false);
            let now = self.clock.now();
            if !(now..=now + TICK_NS).contains(&self.expires) {
                self.arm(now, TICK_NS);
            }
        }
        found
    }

    /// The next timer interrupt comes `ns` after `now`.
    pub fn arm(&mut self, now: u64, ns: u64) {
        self.expires = now.saturating_add(ns);
        let (timer, tsc) = self.clock.ticks(ns);
        self.apic.arm(&mut self.space.mem, timer, tsc);
    }

    /// Acknowledges an interrupt; whether it was one.
    pub fn interrupt(&mut self, vector: u64) -> bool {
        match vector {
            TIMER => self.expires = 0,
            DEVICE => {
                if let Some(nic) = &self.nic {
                    nic.acknowledge(&mut self.space);
                }
            }
            SERIAL => self.serial(),
            // A spurious interrupt must not be acknowledged.
            _ => return false,
        }
        self.apic.end(&mut self.space.mem);
        true
    }

    /// Takes what the serial port has received.
    pub fn serial(&mut self) {
        while let Some(byte) = console::read() {
            if byte == 3 {
                self.stop.ask();
            }
        }
    }

    fn ready(&mut self) -> u64 {
        let mut found = 0;
        if self.stop.take() {
            found |= ready::STOP;
        }
        match self.nic.as_mut().map_or(Ok(false), |nic| nic.ready(&mut self.space)) {
            Ok(true) => found |= ready::NET,
            Ok(false) => {}
            Err(lie) => self.device_lied(lie),
        }
        found
    }

    fn interrupts(&mut self, on: bool) {
        if let Some(nic) = &self.nic {
            nic.interrupts(&mut self.space, on);
        }
    }

    /// Ends the machine because the network device broke the rules.
    pub fn device_lied(&mut self, lie: Lie) -> ! {
        say!("the network device breaks the rules of virtio: ", lie.0);
        self.nic = None;
        self.exit(exit::UNFIT)
    }

    /// Ends the machine.
    pub fn exit(&mut self, status: u8) -> ! {
        if let Some(nic) = &mut self.nic {
            nic.stop(&mut self.space, DRAIN);
        }
        let Span { start, end } = self.secrets;
        self.space.mem.zero(PhysAddr(start), (end - start) as usize);
        exit::exit(Some((&mut self.space.mem, self.power)), status)
    }

    /// Ends the machine because a page that the guest may use has no frame.
    pub fn out_of_memory(&mut self) -> ! {
        let mib = Piece::Dec(self.total.div_ceil(1 << 20));
        say!("out of memory: this guest needs more than ", mib, " MiB (use a larger -m)");
        self.exit(exit::CRASH)
    }

    /// Unwraps an access to the guest's memory that ring 3 asked for: lack of memory ends the guest.
    pub fn granted<T>(&mut self, result: Result<T, Refused>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Refused::Rights) => None,
            Err(Refused::NoMemory) => self.out_of_memory(),
        }
    }

    /// Makes the CPU forget what changed in a range.
    pub fn flush(&self, va: u64, len: u64, flush: Flush) {
        if flush == Flush::Range {
            cpu::flush(va, len);
        }
    }
}
