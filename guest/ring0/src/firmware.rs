//! What the hypervisor and its firmware say about the machine: memory map, command line, ACPI.

use crate::frames::{RANGES, Span};
use crate::phys::{Phys, PhysAddr};
use crate::space::{Device, Space};

/// How the shim was started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// PVH: the information is a `hvm_start_info` (Xen, `arch-x86/hvm/start_info.h`).
    Pvh,
    /// Linux 64-bit boot protocol: it is a `boot_params` (Linux, `Documentation/arch/x86/zero-page.rst`).
    Linux,
}

/// The machine as the boot protocol describes it.
#[derive(Clone, Debug)]
pub struct Machine {
    ram: [Span; RANGES],
    count: usize,
    /// The command line, NUL-terminated; 0 if there is none.
    pub command_line: PhysAddr,
    /// ACPI's root pointer; 0 if not told.
    pub rsdp: PhysAddr,
}

const PVH_MAGIC: u32 = 0x336e_c578;
const TYPE_RAM: u32 = 1;

impl Machine {
    /// Reads the boot information at `info`. `None` if it is not what the protocol says, or has no memory map.
    pub fn read(mem: &impl Phys, protocol: Protocol, info: PhysAddr) -> Option<Machine> {
        let (table, count, size, command_line, rsdp) = match protocol {
            Protocol::Pvh => {
                if mem.read_u32(info) != PVH_MAGIC || mem.read_u32(info.add(4)) == 0 {
                    return None;
                }
                let field = |at| PhysAddr(mem.read_u64(info.add(at)));
                (field(40), u64::from(mem.read_u32(info.add(48))), 24, field(24), field(32))
            }
            Protocol::Linux => {
                let count = u64::from(mem.read_u16(info.add(0x1e8)) & 0xff);
                let command_line = PhysAddr(u64::from(mem.read_u32(info.add(0x228))));
                (info.add(0x2d0), count, 20, command_line, PhysAddr(mem.read_u64(info.add(0x70))))
            }
        };
        let mut machine = Machine { ram: [Span::default(); RANGES], count: 0, command_line, rsdp };
        for i in 0..count.min(128) {
            let at = table.add(i * size);
            let (start, len, kind) = (mem.read_u64(at), mem.read_u64(at.add(8)), mem.read_u32(at.add(16)));
            if let (TYPE_RAM, Some(end)) = (kind, start.checked_add(len))
                && let Some(slot) = machine.ram.get_mut(machine.count)
            {
                *slot = Span { start, end };
                machine.count += 1;
            }
        }
        (machine.count > 0).then_some(machine)
    }

    /// Usable memory.
    pub fn ram(&self) -> &[Span] {
        self.ram.get(..self.count).unwrap_or_default()
    }

    /// Bytes of usable memory.
    pub fn total(&self) -> u64 {
        self.ram().iter().map(|s| s.end - s.start).sum()
    }

    /// One past the last byte of usable memory.
    pub fn end(&self) -> u64 {
        self.ram().iter().map(|s| s.end).max().unwrap_or(0)
    }

    /// Whether all of `[start, end)` is one piece of usable memory.
    pub fn has(&self, start: u64, end: u64) -> bool {
        self.ram().iter().any(|s| s.start <= start && end <= s.end)
    }
}

/// Most I/O interrupt controllers.
pub const IOAPICS: usize = 4;

/// What the shim needs from ACPI.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Acpi {
    /// Registers of the I/O interrupt controllers; 0 in unused slots.
    pub ioapics: [u32; IOAPICS],
    /// How to switch the machine off.
    pub power: Power,
}

/// The register that switches the machine off (ACPI 6.5 §4.8.3.2, §4.8.3.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Power {
    /// Not known.
    #[default]
    Unknown,
    /// PM1a control block: an I/O port.
    Pm1(u16),
    /// Sleep control register: an I/O port.
    SleepPort(u16),
    /// Sleep control register: memory.
    SleepMemory(PhysAddr),
}

/// Reads the tables. Whatever is malformed is passed over: all has a default.
pub fn acpi<M: Phys>(space: &mut Space<M>, rsdp: PhysAddr) -> Acpi {
    let mut acpi = Acpi::default();
    let rsdp = if rsdp.0 == 0 { find_rsdp(&space.mem) } else { Some(rsdp) };
    if let Some(root) = rsdp {
        read_root(space, root, &mut acpi);
    }
    if acpi.ioapics[0] == 0 {
        acpi.ioapics[0] = 0xfec0_0000;
    }
    acpi
}

const RSDP: u64 = u64::from_le_bytes(*b"RSD PTR ");

fn find_rsdp(mem: &impl Phys) -> Option<PhysAddr> {
    (0xe_0000..0x10_0000).step_by(16).map(PhysAddr).find(|at| mem.read_u64(*at) == RSDP)
}

fn read_root<M: Phys>(space: &mut Space<M>, rsdp: PhysAddr, acpi: &mut Acpi) -> Option<()> {
    reach(space, rsdp, 36)?;
    if space.mem.read_u64(rsdp) != RSDP {
        return None;
    }
    // Revision 2 and later have the 64-bit table.
    let extended = space.mem.read_u16(rsdp.add(14)) >> 8 >= 2;
    let xsdt = if extended { space.mem.read_u64(rsdp.add(24)) } else { 0 };
    let (at, width) = if xsdt != 0 { (xsdt, 8) } else { (u64::from(space.mem.read_u32(rsdp.add(16))), 4) };
    let root = PhysAddr(at);
    let len = table(space, root)?;
    for offset in (36..len).step_by(width).take(64) {
        if offset + width as u64 > len {
            break;
        }
        let at = root.add(offset);
        let entry = PhysAddr(if width == 8 { space.mem.read_u64(at) } else { u64::from(space.mem.read_u32(at)) });
        let Some(len) = table(space, entry) else { continue };
        match &space.mem.read_u32(entry).to_le_bytes() {
            b"APIC" => read_madt(&space.mem, entry, len, &mut acpi.ioapics),
            b"FACP" => acpi.power = read_fadt(&space.mem, entry, len),
            _ => {}
        }
    }
    Some(())
}

/// Makes a table readable; its length.
fn table<M: Phys>(space: &mut Space<M>, at: PhysAddr) -> Option<u64> {
    reach(space, at, 36)?;
    let len = u64::from(space.mem.read_u32(at.add(4)));
    if !(36..=1 << 20).contains(&len) {
        return None;
    }
    reach(space, at, len)?;
    Some(len)
}

fn reach<M: Phys>(space: &mut Space<M>, at: PhysAddr, len: u64) -> Option<()> {
    if at.0 < 0x1000 {
        return None;
    }
    space.map_shim(at, len, Device::No).ok()
}

fn read_madt(mem: &impl Phys, at: PhysAddr, len: u64, ioapics: &mut [u32; IOAPICS]) {
    let mut free = ioapics.iter_mut();
    let mut offset = 44;
    while offset + 2 <= len {
        let head = mem.read_u16(at.add(offset));
        let (kind, size) = (head & 0xff, u64::from(head >> 8));
        if size < 2 || offset + size > len {
            return;
        }
        if kind == 1
            && size >= 12
            && let Some(slot) = free.next()
        {
            *slot = mem.read_u32(at.add(offset + 4));
        }
        offset += size;
    }
}

fn read_fadt(mem: &impl Phys, at: PhysAddr, len: u64) -> Power {
    let hardware_reduced = len >= 116 && mem.read_u32(at.add(112)) >> 20 & 1 == 1;
    if hardware_reduced {
        if len < 256 {
            return Power::Unknown;
        }
        let address = mem.read_u64(at.add(248));
        return match (mem.read_u16(at.add(244)) & 0xff, address) {
            (_, 0) => Power::Unknown,
            (0, a) => Power::SleepMemory(PhysAddr(a)),
            (1, a) => u16::try_from(a).map_or(Power::Unknown, Power::SleepPort),
            _ => Power::Unknown,
        };
    }
    if len < 68 {
        return Power::Unknown;
    }
    match u16::try_from(mem.read_u32(at.add(64))) {
        Ok(port) if port != 0 => Power::Pm1(port),
        _ => Power::Unknown,
    }
}

#[cfg(test)]
#[path = "firmware_tests.rs"]
mod tests;
