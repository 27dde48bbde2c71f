//! How a virtio device is reached: registers in memory, either virtio-mmio (virtio 1.3 §4.2) or virtio-pci (§4.1).

use crate::phys::{Phys, PhysAddr};
use crate::virtq::{Lie, Queue};

/// What a device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Network card.
    Net,
    /// Entropy source.
    Rng,
}

impl Kind {
    /// The kind with this virtio device number (§5).
    pub const fn from_number(number: u32) -> Option<Kind> {
        match number {
            1 => Some(Kind::Net),
            4 => Some(Kind::Rng),
            _ => None,
        }
    }
}

/// The registers of one device, all of them mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// virtio-mmio.
    Mmio {
        /// The register block.
        base: PhysAddr,
    },
    /// virtio-pci, modern. MSI-X entry 0 leads to this CPU.
    Pci {
        /// Common configuration.
        common: PhysAddr,
        /// Notification area.
        notify: PhysAddr,
        /// Length of the notification area.
        notify_len: u32,
        /// Bytes between the notification addresses of two queues.
        notify_step: u32,
        /// Device-specific configuration.
        config: PhysAddr,
    },
}

/// Device status (§2.1).
pub mod status {
    /// The driver has noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// The features are agreed upon.
    pub const FEATURES_OK: u8 = 8;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}

/// Feature: the device follows virtio 1.0 and later (§6).
pub const VERSION_1: u64 = 1 << 32;
/// Feature: the device reaches memory through an IOMMU, or only parts of it.
const ACCESS_PLATFORM: u64 = 1 << 33;

/// What a virtio-mmio register block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probe {
    /// Nothing, or a kind that the shim does not drive.
    None,
    /// A device of before virtio 1.0.
    Legacy(Kind),
    /// A device.
    Found(Kind),
}

/// Looks at a virtio-mmio register block.
pub fn probe_mmio(mem: &impl Phys, base: PhysAddr) -> Probe {
    if mem.read_u32(base) != u32::from_le_bytes(*b"virt") {
        return Probe::None;
    }
    match (Kind::from_number(mem.read_u32(base.add(8))), mem.read_u32(base.add(4))) {
        (Some(kind), 2) => Probe::Found(kind),
        (Some(kind), 1) => Probe::Legacy(kind),
        _ => Probe::None,
    }
}

/// Most rounds that a reset may take.
const PATIENCE: u32 = 1_000_000;

impl Transport {
    /// Resets the device and agrees on those of the `wanted` features that it offers, and [`VERSION_1`].
    pub fn negotiate(&self, mem: &mut impl Phys, wanted: u64) -> Result<u64, Lie> {
        self.set_status(mem, 0);
        // Counting devices that are slow to reset (§4.1.4.3.2).
        (0..PATIENCE).find(|_| self.status(mem) == 0).ok_or(Lie("it does not reset"))?;
        self.set_status(mem, status::ACKNOWLEDGE);
        self.set_status(mem, status::ACKNOWLEDGE | status::DRIVER);
        let offered = self.features(mem);
        let features = offered & (wanted | VERSION_1);
        if features & VERSION_1 == 0 {
            self.set_status(mem, status::FAILED);
            return Err(Lie("it does not offer virtio 1.0"));
        }
        self.set_features(mem, features);
        let state = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.set_status(mem, state);
        if self.status(mem) & status::FEATURES_OK != 0 {
            return Ok(features);
        }
        self.set_status(mem, status::FAILED);
        Err(Lie(if offered & ACCESS_PLATFORM != 0 {
            "it requires ACCESS_PLATFORM, feature 33 (QEMU: iommu_platform=off)"
        } else {
            "it refuses the features that it offers"
        }))
    }

    /// Lets the device run.
    pub fn start(&self, mem: &mut impl Phys) {
        use status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
        self.set_status(mem, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Stops the device for good.
    pub fn reset(&self, mem: &mut impl Phys) {
        self.set_status(mem, 0);
    }

    /// How many descriptors the device's queue `index` may have; 0 if there is no such queue.
    pub fn queue_max(&self, mem: &mut impl Phys, index: u16) -> u16 {
        match *self {
            Transport::Mmio { base } => {
                mem.write_u32(base.add(0x30), index.into());
                u16::try_from(mem.read_u32(base.add(0x34))).unwrap_or(u16::MAX)
            }
            Transport::Pci { common, .. } => {
                mem.write_u16(common.add(0x16), index);
                mem.read_u16(common.add(0x18))
            }
        }
    }

    /// Tells the device where queue `index` is.
    pub fn set_queue(&self, mem: &mut impl Phys, index: u16, queue: &Queue) {
        match *self {
            Transport::Mmio { base } => {
                mem.write_u32(base.add(0x30), index.into());
                mem.write_u32(base.add(0x38), queue.size().into());
                for (register, part) in [0x80, 0x90, 0xa0].into_iter().zip(queue.parts()) {
                    mem.write_u32(base.add(register), part.0 as u32);
                    mem.write_u32(base.add(register + 4), (part.0 >> 32) as u32);
                }
                mem.write_u32(base.add(0x44), 1);
            }
            Transport::Pci { common, .. } => {
                mem.write_u16(common.add(0x16), index);
                mem.write_u16(common.add(0x18), queue.size());
                // MSI-X entry 0.
                mem.write_u16(common.add(0x1a), 0);
                for (register, part) in [0x20, 0x28, 0x30].into_iter().zip(queue.parts()) {
                    mem.write_u32(common.add(register), part.0 as u32);
                    mem.write_u32(common.add(register + 4), (part.0 >> 32) as u32);
                }
                mem.write_u16(common.add(0x1c), 1);
            }
        }
    }

    /// Where to write the index of queue `index` to notify the device; `None` if the device names a place outside of its area.
    pub fn notify_address(&self, mem: &mut impl Phys, index: u16) -> Option<PhysAddr> {
        match *self {
            Transport::Mmio { base } => Some(base.add(0x50)),
            Transport::Pci { common, notify, notify_len, notify_step, .. } => {
                mem.write_u16(common.add(0x16), index);
                let offset = u64::from(mem.read_u16(common.add(0x1e))) * u64::from(notify_step);
                (offset + 2 <= u64::from(notify_len)).then(|| notify.add(offset))
            }
        }
    }

    /// Notifies the device, at the address from [`Self::notify_address`].
    pub fn notify(&self, mem: &mut impl Phys, at: PhysAddr, index: u16) {
        match self {
            Transport::Mmio { .. } => mem.write_u32(at, index.into()),
            Transport::Pci { .. } => mem.write_u16(at, index),
        }
    }

    /// Acknowledges the device's interrupt.
    pub fn acknowledge(&self, mem: &mut impl Phys) {
        if let Transport::Mmio { base } = *self {
            // Both causes (§4.2.2: used buffers, change of configuration), whichever it was: one that came between a look and the answer to it would
            // keep the line high, and no edge would follow.
            mem.write_u32(base.add(0x64), 3);
        }
    }

    /// A byte of the device-specific configuration.
    pub fn config(&self, mem: &impl Phys, offset: u64) -> u8 {
        match *self {
            Transport::Mmio { base } => mem.read_u8(base.add(0x100 + offset)),
            Transport::Pci { config, .. } => mem.read_u8(config.add(offset)),
        }
    }

    fn status(&self, mem: &impl Phys) -> u8 {
        match *self {
            Transport::Mmio { base } => mem.read_u32(base.add(0x70)) as u8,
            Transport::Pci { common, .. } => mem.read_u8(common.add(0x14)),
        }
    }

    fn set_status(&self, mem: &mut impl Phys, value: u8) {
        match *self {
            Transport::Mmio { base } => mem.write_u32(base.add(0x70), value.into()),
            Transport::Pci { common, .. } => mem.write_u8(common.add(0x14), value),
        }
    }

    fn features(&self, mem: &mut impl Phys) -> u64 {
        let (select, value) = match *self {
            Transport::Mmio { base } => (base.add(0x14), base.add(0x10)),
            Transport::Pci { common, .. } => (common, common.add(4)),
        };
        mem.write_u32(select, 1);
        let high = mem.read_u32(value);
        mem.write_u32(select, 0);
        u64::from(high) << 32 | u64::from(mem.read_u32(value))
    }

    fn set_features(&self, mem: &mut impl Phys, features: u64) {
        let (select, value) = match *self {
            Transport::Mmio { base } => (base.add(0x24), base.add(0x20)),
            Transport::Pci { common, .. } => (common.add(8), common.add(12)),
        };
        for half in [1, 0] {
            mem.write_u32(select, half);
            mem.write_u32(value, (features >> (32 * half)) as u32);
        }
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
