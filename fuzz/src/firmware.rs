//! What the hypervisor tells the shim: command line, boot information, ACPI tables, PCI configuration space.
//!
//! The hypervisor is trusted with the machine, but not to make sense: nothing here may panic, loop, or write to memory.

use crate::input::Input;
use crate::machine::ROOT;
use donjon_ring0::cmdline;
use donjon_ring0::firmware::{Machine, Protocol, acpi};
use donjon_ring0::frames::Frames;
use donjon_ring0::pci::{self, Config, Function};
use donjon_ring0::phys::{Phys, PhysAddr};
use donjon_ring0::space::Space;
use donjon_ring0::text;
use donjon_ring0::transport::Kind;
use std::collections::HashMap;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 3 {
        0 => command_line(input.rest()),
        1 => tables(input.u8(), input.rest()),
        _ => bus(input.rest()),
    }
}

fn command_line(line: &[u8]) {
    let mut line = line.to_vec();
    line.push(0);
    let len = line.len();
    let Some(words) = cmdline::split(&mut line) else { return };
    let bytes: usize = words.env().chain(words.arguments().into_iter().flatten()).map(<[u8]>::len).sum();
    assert!(bytes <= len, "{bytes} bytes of words from a line of {len}");
    if let Ok(settings) = words.settings() {
        assert!(settings.net.ipv4_prefix <= 32 && settings.net.ipv6_prefix <= 128);
    }
    let _ = text::cut(line.first_chunk::<1>().map_or(&[], |c| c), b'=');
}

/// Memory that is the input over and over, so that every pointer in it leads into it; and the tables of the shim, which are memory.
struct Repeated<'a> {
    bytes: &'a [u8],
    own: HashMap<u64, u8>,
}

/// The shim's own frames.
const OWN: std::ops::Range<u64> = 0x10_0000..0x30_0000;
/// Where registers may be, as far as a BAR and a 32-bit offset reach.
const DEVICES: std::ops::Range<u64> = 0xf000_0000..0x3_0000_0000;

impl Phys for Repeated<'_> {
    fn read_u8(&self, at: PhysAddr) -> u8 {
        if OWN.contains(&at.0) {
            return self.own.get(&at.0).copied().unwrap_or(0);
        }
        self.bytes.get((at.0 as usize).checked_rem(self.bytes.len()).unwrap_or(0)).copied().unwrap_or(0)
    }
    fn write_u8(&mut self, at: PhysAddr, value: u8) {
        assert!(OWN.contains(&at.0) || DEVICES.contains(&at.0), "a write to {at:?}");
        self.own.insert(at.0, value);
    }
    fn read_u16(&self, at: PhysAddr) -> u16 {
        let mut b = [0; 2];
        self.read(at, &mut b);
        u16::from_le_bytes(b)
    }
    fn read_u32(&self, at: PhysAddr) -> u32 {
        let mut b = [0; 4];
        self.read(at, &mut b);
        u32::from_le_bytes(b)
    }
    fn read_u64(&self, at: PhysAddr) -> u64 {
        let mut b = [0; 8];
        self.read(at, &mut b);
        u64::from_le_bytes(b)
    }
    fn write_u16(&mut self, at: PhysAddr, value: u16) {
        self.write(at, &value.to_le_bytes());
    }
    fn write_u32(&mut self, at: PhysAddr, value: u32) {
        self.write(at, &value.to_le_bytes());
    }
    fn write_u64(&mut self, at: PhysAddr, value: u64) {
        self.write(at, &value.to_le_bytes());
    }
    fn read(&self, at: PhysAddr, out: &mut [u8]) {
        for (i, b) in (0..).zip(out) {
            *b = self.read_u8(at.add(i));
        }
    }
    fn write(&mut self, at: PhysAddr, data: &[u8]) {
        for (i, b) in (0..).zip(data) {
            self.write_u8(at.add(i), *b);
        }
    }
    fn copy(&mut self, from: PhysAddr, to: PhysAddr, len: usize) {
        for i in 0..len as u64 {
            let b = self.read_u8(from.add(i));
            self.write_u8(to.add(i), b);
        }
    }
    fn zero(&mut self, at: PhysAddr, len: usize) {
        for i in 0..len as u64 {
            assert!(OWN.contains(&(at.0 + i)), "a write to {at:?}");
            self.own.remove(&(at.0 + i));
        }
    }
    fn fence(&self) {}
}

fn space(bytes: &[u8]) -> Space<Repeated<'_>> {
    let mut frames = Frames::new();
    frames.add(OWN.start + 4096, OWN.end, &[]);
    Space::new(Repeated { bytes, own: HashMap::new() }, frames, ROOT)
}

fn tables(which: u8, bytes: &[u8]) {
    let mut space = space(bytes);
    let protocol = if which & 1 == 0 { Protocol::Pvh } else { Protocol::Linux };
    if let Some(machine) = Machine::read(&space.mem, protocol, PhysAddr(0x9_0000)) {
        assert!(!machine.ram().is_empty());
        let mut frames = Frames::new();
        for span in machine.ram() {
            assert!(span.start <= span.end);
            frames.add(span.start, span.end, &[]);
        }
        if machine.ram().iter().all(|s| s.end < 1 << 50) {
            machine.total();
        }
        let _ = machine.has(0x10_0000, 0x20_0000);
    }
    // At 0 the search of the BIOS area begins, 8192 words of it.
    let rsdp = if which & 2 == 0 { (bytes.len() as u64).max(1) * 0x1000 } else { 0 };
    acpi(&mut space, PhysAddr(rsdp));
}

struct Bus<'a>(&'a [u8]);

impl Config for Bus<'_> {
    fn read(&mut self, function: Function, offset: u8) -> u32 {
        assert!(offset.is_multiple_of(4) && function.device < 32 && function.function < 8);
        // Device 0 to 3 of the first two buses, 256 bytes each.
        if function.bus > 1 || function.device > 3 || function.function > 0 {
            return u32::MAX;
        }
        let at = usize::from(function.bus) * 1024 + usize::from(function.device) * 256 + usize::from(offset);
        let byte = |i| u32::from(self.0.get(at + i).copied().unwrap_or(0));
        byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24
    }
    fn write(&mut self, _function: Function, offset: u8, _value: u32) {
        assert!(offset.is_multiple_of(4));
    }
}

fn bus(bytes: &[u8]) {
    let mut found = Vec::new();
    pci::scan(&mut Bus(bytes), Some(Kind::Net), |_, function, _| found.push(function));
    for function in found {
        // The MSI-X table is written to wherever the BAR says: the hypervisor's business. Here it must be where writes are allowed.
        let mut window = bytes.to_vec();
        let first = usize::from(function.bus) * 1024 + usize::from(function.device) * 256;
        for bar in 0..6 {
            if let Some(b) = window.get_mut(first + 0x10 + bar * 4..first + 0x14 + bar * 4) {
                // The type bits stay.
                b[0] &= 0x0f;
                (b[1], b[2], b[3]) = (0, 0, DEVICES.start.to_le_bytes()[3]);
            }
        }
        let mut space = space(&[]);
        let _ = pci::open(&mut Bus(&window), &mut space, function, (0xfee0_0000, 0x31));
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let line = |text: &str| [&[0], text.as_bytes()].concat();
    let mut device = vec![2u8; 1];
    let mut config = vec![0; 256];
    config[0..4].copy_from_slice(&[0xf4, 0x1a, 0x41, 0x10]);
    config[0x10..0x14].copy_from_slice(&[0, 0, 0x28, 0]);
    config[0x34] = 0x40;
    for (i, kind) in [1u8, 2, 4].into_iter().enumerate() {
        let at = 0x40 + i * 0x14;
        config[at..at + 4].copy_from_slice(&[9, at as u8 + 0x14, 0x14, kind]);
        config[at + 12..at + 16].copy_from_slice(&0x100u32.to_le_bytes());
    }
    config[0x7c..0x80].copy_from_slice(&[0x11, 0, 0, 0]);
    device.extend(config);
    let mut root = vec![1, 0];
    root.extend(*b"RSD PTR ");
    root.extend([0, b'D', b'O', b'N', b'J', b'O', b'N', 2]);
    root.extend([0; 64]);
    let mut pvh = vec![1, 0];
    pvh.extend(0x336e_c578u32.to_le_bytes());
    pvh.extend([1, 0, 0, 0]);
    pvh.extend([0; 40]);
    pvh.extend([2, 0, 0, 0, 0, 0, 0, 0]);
    vec![
        line(
            "donjon.ip=10.0.2.15/24 donjon.gw=10.0.2.2 donjon.dns=10.0.2.3,9.9.9.9 donjon.time=5 -- -v \"a b\" \\\" virtio_mmio.device=512@0xfeb00e00:12",
        ),
        line("donjon.ip6=fe80::1/64 donjon.gw6=fe80::2 donjon.dns6=::1 donjon.env=A=\"b c\" donjon.ip=none x=y"),
        device,
        root,
        pvh,
    ]
}
