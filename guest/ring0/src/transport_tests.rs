use super::*;
use core::cell::Cell;

/// A virtio-mmio device at address 0 that has both causes of an interrupt, the second from the first look on.
struct Device {
    offered: u64,
    select: u32,
    required: u64,
    accepted: Cell<u64>,
    status: Cell<u32>,
    why: Cell<u32>,
}

fn device(offered: u64, required: u64) -> Device {
    Device { offered, select: 0, required, accepted: Cell::new(0), status: Cell::new(0), why: Cell::new(1) }
}

impl Phys for Device {
    fn read_u32(&self, at: PhysAddr) -> u32 {
        match at.0 {
            0x10 => (self.offered >> (32 * self.select)) as u32,
            0x60 => {
                let why = self.why.get();
                self.why.set(why | 2);
                why
            }
            0x70 => self.status.get(),
            other => panic!("read of {other:#x}"),
        }
    }
    fn write_u32(&mut self, at: PhysAddr, value: u32) {
        match at.0 {
            0x14 | 0x24 => self.select = value,
            0x20 => self.accepted.set(self.accepted.get() | u64::from(value) << (32 * self.select)),
            0x64 => self.why.set(self.why.get() & !value),
            // It takes FEATURES_OK back if it misses something (§2.2.2).
            0x70 if self.accepted.get() & self.required != self.required => self.status.set(value & !8),
            0x70 => self.status.set(value),
            other => panic!("write of {other:#x}"),
        }
    }
    fn read_u8(&self, _: PhysAddr) -> u8 {
        unreachable!()
    }
    fn write_u8(&mut self, _: PhysAddr, _: u8) {
        unreachable!()
    }
    fn read_u16(&self, _: PhysAddr) -> u16 {
        unreachable!()
    }
    fn read_u64(&self, _: PhysAddr) -> u64 {
        unreachable!()
    }
    fn write_u16(&mut self, _: PhysAddr, _: u16) {
        unreachable!()
    }
    fn write_u64(&mut self, _: PhysAddr, _: u64) {
        unreachable!()
    }
    fn read(&self, _: PhysAddr, _: &mut [u8]) {
        unreachable!()
    }
    fn write(&mut self, _: PhysAddr, _: &[u8]) {
        unreachable!()
    }
    fn copy(&mut self, _: PhysAddr, _: PhysAddr, _: usize) {
        unreachable!()
    }
    fn zero(&mut self, _: PhysAddr, _: usize) {
        unreachable!()
    }
    fn fence(&self) {}
}

const MMIO: Transport = Transport::Mmio { base: PhysAddr(0) };

#[test]
fn an_acknowledged_interrupt_leaves_the_line_low() {
    for why in 0..4 {
        let mut d = device(0, 0);
        d.why.set(why);
        MMIO.acknowledge(&mut d);
        assert_eq!(d.why.get(), 0, "{why}");
    }
}

#[test]
fn a_device_says_why_it_cannot_be_used() {
    let why = |offered, required| MMIO.negotiate(&mut device(offered, required), 5).map_err(|lie| lie.0);
    assert_eq!(why(VERSION_1 | 6, VERSION_1), Ok(VERSION_1 | 4));
    assert_eq!(why(6, 0), Err("it does not offer virtio 1.0"));
    assert_eq!(why(VERSION_1 | 6, 2), Err("it refuses the features that it offers"));
    assert!(why(VERSION_1 | ACCESS_PLATFORM, ACCESS_PLATFORM).unwrap_err().contains("ACCESS_PLATFORM, feature 33"));
    // One that can do without.
    assert_eq!(why(VERSION_1 | ACCESS_PLATFORM, 0), Ok(VERSION_1));
}
