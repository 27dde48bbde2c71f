//! Finds virtio devices on the PCI bus (PCI 3.0, virtio 1.3 §4.1.2).

use crate::phys::{Phys, PhysAddr};
use crate::space::{Device, Space};
use crate::transport::{Kind, Transport};
use core::cell::Cell;

/// Access to configuration space.
pub trait Config {
    /// Reads the aligned 32-bit word `offset` of a function.
    fn read(&mut self, function: Function, offset: u8) -> u32;
    /// Writes it.
    fn write(&mut self, function: Function, offset: u8, value: u32);
}

/// Bus, device and function number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Function {
    /// Bus.
    pub bus: u8,
    /// Device, below 32.
    pub device: u8,
    /// Function, below 8.
    pub function: u8,
}

/// Why a device that is there cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unusable(pub &'static str);

/// A set of buses.
#[derive(Clone, Copy, Default)]
struct Buses([u64; 4]);

impl Buses {
    fn add(&mut self, bus: u8) {
        if let Some(word) = self.0.get_mut(usize::from(bus / 64)) {
            *word |= 1 << (bus % 64);
        }
    }

    fn has(&self, bus: u8) -> bool {
        self.0.get(usize::from(bus / 64)).is_some_and(|word| word >> (bus % 64) & 1 == 1)
    }
}

/// Calls `f` for each virtio device that the shim drives. If none is of the kind that is `sought`, there may be more than one root bus.
pub fn scan<C: Config>(config: &mut C, sought: Option<Kind>, mut f: impl FnMut(&mut C, Function, Kind)) {
    // Firmware has numbered the buses; those that bridges name are looked at as well.
    let mut buses = Buses::default();
    buses.add(0);
    let found = Cell::new(false);
    let mut f = |config: &mut C, at, kind| {
        found.set(found.get() || Some(kind) == sought);
        f(config, at, kind);
    };
    for bus in 0..=u8::MAX {
        if buses.has(bus) {
            scan_bus(config, bus, &mut buses, &mut f);
        }
    }
    if sought.is_none() || found.get() {
        return;
    }
    // Where another root bus is stands in ACPI's byte code. It has a device 0, as a rule.
    let seen = buses;
    for bus in 0..=u8::MAX {
        let there = |config: &mut C| present(config.read(Function { bus, device: 0, function: 0 }, 0));
        if !seen.has(bus) && (buses.has(bus) || there(config)) {
            scan_bus(config, bus, &mut buses, &mut f);
        }
    }
}

fn present(id: u32) -> bool {
    id & 0xffff != 0xffff && id != 0
}

fn scan_bus<C: Config>(config: &mut C, bus: u8, buses: &mut Buses, f: &mut impl FnMut(&mut C, Function, Kind)) {
    for device in 0..32 {
        for function in 0..8 {
            let at = Function { bus, device, function };
            let id = config.read(at, 0);
            if !present(id) {
                if function == 0 {
                    break;
                }
                continue;
            }
            let header = config.read(at, 0x0c) >> 16;
            if header & 0x7f == 1 {
                let secondary = (config.read(at, 0x18) >> 8) as u8;
                // Buses are looked at in rising order, each once.
                if secondary > bus {
                    buses.add(secondary);
                }
            }
            if let Some(kind) = kind(id) {
                f(config, at, kind);
            }
            if function == 0 && header & 0x80 == 0 {
                break;
            }
        }
    }
}

fn kind(id: u32) -> Option<Kind> {
    match (id & 0xffff, id >> 16) {
        (0x1af4, 0x1000) => Some(Kind::Net),
        (0x1af4, 0x1005) => Some(Kind::Rng),
        (0x1af4, modern @ 0x1040..=0x107f) => Kind::from_number(modern - 0x1040),
        _ => None,
    }
}

/// A piece of a memory BAR.
#[derive(Clone, Copy, Default)]
struct Window {
    at: PhysAddr,
    len: u32,
}

/// Maps the registers of a device, switches it on, and leads its MSI-X entry 0 to `message` (address and data).
pub fn open<M: Phys>(
    config: &mut impl Config,
    space: &mut Space<M>,
    at: Function,
    message: (u32, u32),
) -> Result<Transport, Unusable> {
    let [mut common, mut notify, mut device] = [Window::default(); 3];
    let mut notify_step = 0;
    let mut msix = None;
    let mut offset = (config.read(at, 0x34) & 0xfc) as u8;
    // At most 48 capabilities fit into configuration space: a loop in the list ends.
    for _ in 0..48 {
        if offset < 0x40 {
            break;
        }
        let head = config.read(at, offset);
        match head & 0xff {
            0x09 if offset <= 0xec => {
                let kind = head >> 24;
                let window = match kind {
                    1 => &mut common,
                    2 => &mut notify,
                    4 => &mut device,
                    _ => &mut Window::default(),
                };
                if window.len == 0 && matches!(kind, 1 | 2 | 4) {
                    *window = bar_window(config, space, at, offset)?;
                    if kind == 2 && offset <= 0xe8 {
                        notify_step = config.read(at, offset + 16);
                    }
                }
            }
            0x11 if offset <= 0xf4 => msix = Some(offset),
            _ => {}
        }
        offset = (head >> 8 & 0xfc) as u8;
    }
    if common.len < 0x38 || notify.len < 2 {
        return Err(Unusable("it has no registers of virtio 1.0 (QEMU: disable-modern=off)"));
    }
    let msix = msix.ok_or(Unusable("it has no MSI-X"))?;
    // Memory space, bus master, no INTx.
    let command = config.read(at, 4) & 0xffff;
    config.write(at, 4, command | 0x406);
    let table = config.read(at, msix + 4);
    let table = bar(config, at, table & 7)?.add(u64::from(table & !7));
    space.map_shim(table, 16, Device::Yes).map_err(|_| Unusable("its MSI-X table is out of reach"))?;
    let (address, data) = message;
    for (field, value) in [(0, address), (4, 0), (8, data), (12, 0)] {
        space.mem.write_u32(table.add(field), value);
    }
    let control = config.read(at, msix);
    config.write(at, msix, control & !(1 << 30) | 1 << 31);
    Ok(Transport::Pci { common: common.at, notify: notify.at, notify_len: notify.len, notify_step, config: device.at })
}

/// The window that a virtio capability describes, mapped.
fn bar_window<M: Phys>(
    config: &mut impl Config,
    space: &mut Space<M>,
    at: Function,
    capability: u8,
) -> Result<Window, Unusable> {
    let number = config.read(at, capability + 4) & 0xff;
    let offset = config.read(at, capability + 8);
    let len = config.read(at, capability + 12);
    let start = bar(config, at, number)?.add(offset.into());
    let mapped = space.map_shim(start, u64::from(len.max(1)), Device::Yes);
    mapped.map_err(|_| Unusable("its registers are out of reach"))?;
    Ok(Window { at: start, len })
}

/// The address in memory BAR `number`.
fn bar(config: &mut impl Config, at: Function, number: u32) -> Result<PhysAddr, Unusable> {
    if number > 5 {
        return Err(Unusable("it names a BAR that does not exist"));
    }
    let offset = 0x10 + 4 * number as u8;
    let low = config.read(at, offset);
    if low & 1 == 1 {
        return Err(Unusable("its registers are in I/O space"));
    }
    let wide = low & 6 == 4 && number < 5;
    let high = if wide { config.read(at, offset + 4) } else { 0 };
    let address = u64::from(high) << 32 | u64::from(low & !15);
    // Below 1 MiB there is no memory BAR; 0 is what firmware leaves that assigns nothing.
    if address < 1 << 20 {
        return Err(Unusable("firmware has not assigned its registers"));
    }
    Ok(PhysAddr(address))
}

#[cfg(test)]
#[path = "pci_tests.rs"]
mod tests;
