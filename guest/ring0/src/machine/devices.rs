//! Which virtio devices the machine has.

use super::cpu::{inl, outl};
use super::segments;
use crate::cmdline::MMIO;
use crate::pci::{self, Config, Function};
use crate::phys::{Direct, PhysAddr};
use crate::say;
use crate::space::{Device, Space};
use crate::transport::{Kind, Probe, Transport, probe_mmio};

/// Where QEMU's microvm has its virtio-mmio devices: up to 24, 512 bytes each.
const MICROVM: (u64, u64, u64) = (0xfeb0_0000, 512, 24);

/// The devices that the shim drives: the first of each kind.
#[derive(Default)]
pub struct Devices {
    /// Network card.
    pub net: Option<Transport>,
    /// Entropy source.
    pub rng: Option<Transport>,
    /// Whether one of them interrupts through an I/O APIC.
    pub lines: bool,
}

impl Devices {
    /// Looks at PCI, at the places that the command line names, and, where there is no PCI, at those of microvm. A device that is `sought` is
    /// worth a look at all PCI buses.
    pub fn find(space: &mut Space<Direct>, named: &[u64; MMIO], apic_id: u32, sought: Option<Kind>) -> Devices {
        let mut devices = Devices::default();
        if !devices.find_pci(space, apic_id, sought) {
            let (base, step, count) = MICROVM;
            (0..count).for_each(|i| devices.probe(space, base + i * step));
        }
        named.iter().filter(|n| **n != 0).for_each(|n| devices.probe(space, *n));
        devices
    }

    fn add(&mut self, kind: Kind, transport: Transport) {
        let slot = match kind {
            Kind::Net => &mut self.net,
            Kind::Rng => &mut self.rng,
        };
        if slot.is_none() {
            self.lines |= matches!(transport, Transport::Mmio { .. });
            *slot = Some(transport);
        }
    }

    fn probe(&mut self, space: &mut Space<Direct>, base: u64) {
        if space.map_shim(PhysAddr(base), 0x200, Device::Yes).is_err() {
            return;
        }
        match probe_mmio(&space.mem, PhysAddr(base)) {
            Probe::None => {}
            Probe::Found(kind) => self.add(kind, Transport::Mmio { base: PhysAddr(base) }),
            Probe::Legacy(_) => {
                say!(
                    "a virtio-mmio device is of before virtio 1.0 and is not used (QEMU: -global virtio-mmio.force-legacy=false)"
                );
            }
        }
    }

    /// Whether there is PCI.
    fn find_pci(&mut self, space: &mut Space<Direct>, apic_id: u32, sought: Option<Kind>) -> bool {
        let mut ports = Ports;
        if ports.read(Function { bus: 0, device: 0, function: 0 }, 0) as u16 == u16::MAX {
            return false;
        }
        let message = (0xfee0_0000 | (apic_id & 0xff) << 12, segments::DEVICE as u32);
        pci::scan(&mut ports, sought, |ports, at, kind| match pci::open(ports, space, at, message) {
            Ok(transport) => self.add(kind, transport),
            Err(why) => say!("a virtio device on PCI is not used: ", why.0),
        });
        true
    }
}

/// Configuration space through ports (PCI 3.0 §3.2.2.3.2).
struct Ports;

impl Ports {
    fn select(at: Function, offset: u8) {
        let [bus, device, function] = [at.bus, at.device, at.function].map(u32::from);
        outl(0xcf8, 1 << 31 | bus << 16 | device << 11 | function << 8 | u32::from(offset & 0xfc));
    }
}

impl Config for Ports {
    fn read(&mut self, function: Function, offset: u8) -> u32 {
        Ports::select(function, offset);
        inl(0xcfc)
    }

    fn write(&mut self, function: Function, offset: u8, value: u32) {
        Ports::select(function, offset);
        outl(0xcfc, value);
    }
}
