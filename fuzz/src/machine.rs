//! A machine for the shim's logic: memory that panics when it is reached where nothing is, and one virtio-mmio register block.

use donjon_ring0::frames::Frames;
use donjon_ring0::phys::{Phys, PhysAddr};
use donjon_ring0::space::{Space, bits};
use std::cell::Cell;
use std::collections::{HashMap, HashSet, VecDeque};

/// Start of memory.
pub const RAM: u64 = 0x10_0000;
/// Where the tables begin.
pub const ROOT: PhysAddr = PhysAddr(RAM);
/// Registers of the virtio device; outside of memory.
pub const REGS: PhysAddr = PhysAddr(0xfeb0_0000);
/// Length of the register block.
pub const REGS_LEN: u64 = 0x200;

/// Memory and the registers.
pub struct Mem {
    pub ram: Vec<u8>,
    /// Registers as they were last written.
    pub regs: HashMap<u64, u32>,
    /// What the device says.
    pub features: u64,
    pub queue_max: u32,
    pub config: [u8; 16],
    /// Bits of the status that the device does not take.
    pub refused: u32,
    /// Writes to the notification register.
    pub notified: Vec<u32>,
    /// What a device that answers at once does on each notification: descriptor, length, and how far the used index goes.
    pub answers: VecDeque<(u32, u32, u16)>,
    /// Frames that the device writes to while the driver reads them ...
    pub shared: Vec<u64>,
    /// ... and what it adds to the next number that is read there.
    pub racing: Cell<u32>,
}

impl Mem {
    fn at(&self, at: PhysAddr, len: usize) -> std::ops::Range<usize> {
        let start = at.0.checked_sub(RAM).expect("an access below memory") as usize;
        assert!(start.checked_add(len).is_some_and(|end| end <= self.ram.len()), "an access outside of memory: {at:?}");
        start..start + len
    }

    fn get<const N: usize>(&self, at: PhysAddr) -> [u8; N] {
        self.ram[self.at(at, N)].try_into().expect("the length that was asked for")
    }

    /// What the device has changed a moment ago, if it is a frame that it writes to.
    fn race(&self, at: PhysAddr) -> u32 {
        if self.shared.contains(&(at.0 & !0xfff)) { self.racing.take() } else { 0 }
    }

    fn answer(&mut self, queue: u32) {
        let Some((id, len, step)) = self.answers.pop_front() else { return };
        let half = |r: u64| u64::from(self.regs.get(&(r | u64::from(queue) << 32)).copied().unwrap_or(0));
        let used = PhysAddr(half(0xa0) | half(0xa4) << 32);
        let size = u64::from(self.regs.get(&0x38).copied().unwrap_or(1)).max(1);
        let seen = self.read_u16(used.add(2));
        let element = used.add(4 + 8 * (u64::from(seen) % size));
        self.write_u32(element, id);
        self.write_u32(element.add(4), len);
        self.write_u16(used.add(2), seen.wrapping_add(step));
    }

    fn register(&self, at: PhysAddr) -> Option<u64> {
        (REGS.0..REGS.0 + REGS_LEN).contains(&at.0).then(|| at.0 - REGS.0)
    }
}

impl Phys for Mem {
    fn read_u8(&self, at: PhysAddr) -> u8 {
        match self.register(at) {
            Some(r) => self.config.get((r as usize).wrapping_sub(0x100)).copied().unwrap_or(0),
            None => self.get::<1>(at)[0],
        }
    }
    fn write_u8(&mut self, at: PhysAddr, value: u8) {
        self.write(at, &[value]);
    }
    fn read_u16(&self, at: PhysAddr) -> u16 {
        u16::from_le_bytes(self.get(at)).wrapping_add(self.race(at) as u16)
    }
    fn read_u32(&self, at: PhysAddr) -> u32 {
        let Some(register) = self.register(at) else {
            return u32::from_le_bytes(self.get(at)).wrapping_add(self.race(at));
        };
        let written = |r| self.regs.get(&r).copied().unwrap_or(0);
        match register {
            0x10 => (self.features >> (32 * written(0x14).min(1))) as u32,
            0x34 => self.queue_max,
            0x70 => written(0x70) & !self.refused,
            r => written(r),
        }
    }
    fn read_u64(&self, at: PhysAddr) -> u64 {
        u64::from_le_bytes(self.get(at))
    }
    fn write_u16(&mut self, at: PhysAddr, value: u16) {
        self.write(at, &value.to_le_bytes());
    }
    fn write_u32(&mut self, at: PhysAddr, value: u32) {
        let Some(mut register) = self.register(at) else { return self.write(at, &value.to_le_bytes()) };
        if register == 0x50 {
            self.notified.push(value);
            self.answer(value);
        }
        if (0x80..0xb0).contains(&register) {
            // One set for each queue.
            register |= u64::from(self.regs.get(&0x30).copied().unwrap_or(0)) << 32;
        }
        self.regs.insert(register, value);
    }
    fn write_u64(&mut self, at: PhysAddr, value: u64) {
        self.write(at, &value.to_le_bytes());
    }
    fn read(&self, at: PhysAddr, out: &mut [u8]) {
        out.copy_from_slice(&self.ram[self.at(at, out.len())]);
    }
    fn write(&mut self, at: PhysAddr, data: &[u8]) {
        let range = self.at(at, data.len());
        self.ram[range].copy_from_slice(data);
    }
    fn copy(&mut self, from: PhysAddr, to: PhysAddr, len: usize) {
        let (from, to) = (self.at(from, len), self.at(to, len));
        assert!(from.end <= to.start || to.end <= from.start, "a copy between ranges that overlap");
        self.ram.copy_within(from, to.start);
    }
    fn zero(&mut self, at: PhysAddr, len: usize) {
        let range = self.at(at, len);
        self.ram[range].fill(0);
    }
    fn fence(&self) {}
}

/// A machine with that many pages of memory, of which the first is the root table and the rest, from `free` on, is free.
pub fn machine(pages: u64, free: u64) -> Space<Mem> {
    // Not zero: nothing may rely on memory that it did not clear.
    let mut mem = Mem {
        ram: vec![0xa5; (pages << 12) as usize],
        regs: HashMap::new(),
        features: 0,
        queue_max: 256,
        config: [0; 16],
        refused: 0,
        notified: Vec::new(),
        answers: VecDeque::new(),
        shared: Vec::new(),
        racing: Cell::new(0),
    };
    mem.zero(ROOT, 4096);
    let mut frames = Frames::new();
    frames.add(RAM + (free << 12), RAM + (pages << 12), &[]);
    Space::new(mem, frames, ROOT)
}

/// What the tables map.
#[derive(Default)]
pub struct Map {
    /// Frames that ring 3 can write, execute, or reach at all.
    pub writable: HashSet<u64>,
    pub executable: HashSet<u64>,
    pub user: HashSet<u64>,
    /// Frames that belong to their page, mapped or kept.
    pub owned: HashSet<u64>,
    /// The tables themselves.
    pub tables: HashSet<u64>,
    /// Frames that the shim's own mapping can write to, of those that ring 3 executes.
    pub shim_writable: HashSet<u64>,
}

/// Walks all tables, and checks what must hold whatever the guest did.
pub fn check(space: &Space<Mem>) -> Map {
    let mut map = Map::default();
    walk(space, ROOT, 3, 0, true, true, &mut map);
    let shared = map.writable.intersection(&map.executable).next();
    assert!(shared.is_none(), "ring 3 can write and execute the frame {shared:x?}");
    let reached = map.user.intersection(&map.tables).next();
    assert!(reached.is_none(), "ring 3 reaches the page table {reached:x?}");
    let both = map.shim_writable.intersection(&map.executable).next();
    assert!(both.is_none(), "the shim can write to the text at {both:x?}");
    map
}

fn walk(space: &Space<Mem>, table: PhysAddr, level: u32, va: u64, write: bool, user: bool, map: &mut Map) {
    assert!(map.tables.insert(table.0), "two entries lead to the table {table:?}");
    let bytes = &space.mem.ram[space.mem.at(table, 4096)];
    for (i, entry) in (0..).zip(bytes.chunks_exact(8)) {
        let entry = u64::from_le_bytes(entry.try_into().expect("eight bytes"));
        if entry == 0 {
            continue;
        }
        let at = va | i << (12 + 9 * level);
        let frame = entry & bits::ADDR;
        let (write, user) = (write && entry & bits::W != 0, user && entry & bits::U != 0);
        if level == 0 && entry & bits::OWNED != 0 {
            assert!(map.owned.insert(frame), "two pages own the frame {frame:x}, one at {at:x}");
        }
        if entry & bits::P == 0 {
            continue;
        }
        if level > 0 && entry & bits::LARGE == 0 {
            walk(space, PhysAddr(frame), level - 1, at, write, user, map);
            continue;
        }
        if !user {
            if write && level == 0 {
                map.shim_writable.insert(frame);
            }
            continue;
        }
        assert!(level == 0, "a large page for ring 3 at {at:x}");
        let executable = entry & bits::NX == 0;
        assert!(!(write && executable), "a page that is writable and executable at {at:x}");
        map.user.insert(frame);
        if write {
            map.writable.insert(frame);
        }
        if executable {
            map.executable.insert(frame);
        }
    }
}
