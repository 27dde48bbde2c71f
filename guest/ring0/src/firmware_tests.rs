use super::*;
use crate::frames::Frames;
use crate::phys::Fake;

const INFO: PhysAddr = PhysAddr(0x2000);

fn memory() -> Fake {
    let mut mem = Fake::new(0, 0x12_0000);
    mem.zero(PhysAddr(0), 0x12_0000);
    mem
}

fn pvh(entries: &[(u64, u64, u32)]) -> Fake {
    let mut mem = memory();
    mem.write_u32(INFO, PVH_MAGIC);
    mem.write_u32(INFO.add(4), 1);
    mem.write_u64(INFO.add(24), 0x3000);
    mem.write_u64(INFO.add(32), 0xf_0000);
    mem.write_u64(INFO.add(40), 0x4000);
    mem.write_u32(INFO.add(48), entries.len() as u32);
    for (i, (start, len, kind)) in (0..).zip(entries) {
        let at = PhysAddr(0x4000 + i * 24);
        mem.write_u64(at, *start);
        mem.write_u64(at.add(8), *len);
        mem.write_u32(at.add(16), *kind);
    }
    mem
}

#[test]
fn pvh_memory_map() {
    let mem = pvh(&[(0, 0x9_fc00, 1), (0xf_0000, 0x1_0000, 2), (0x10_0000, 0x1f0_0000, 1), (u64::MAX, 2, 1)]);
    let m = Machine::read(&mem, Protocol::Pvh, INFO).unwrap();
    assert_eq!(m.ram(), [Span { start: 0, end: 0x9_fc00 }, Span { start: 0x10_0000, end: 0x200_0000 }]);
    assert_eq!(m.total(), 0x9_fc00 + 0x1f0_0000);
    assert!(m.has(0x10_0000, 0x200_0000) && !m.has(0x9_f000, 0x10_1000));
    assert_eq!((m.command_line, m.rsdp), (PhysAddr(0x3000), PhysAddr(0xf_0000)));
}

#[test]
fn strange_boot_information_is_refused() {
    assert!(Machine::read(&pvh(&[]), Protocol::Pvh, INFO).is_none());
    let mut mem = pvh(&[(0, 4096, 1)]);
    mem.write_u32(INFO.add(4), 0);
    assert!(Machine::read(&mem, Protocol::Pvh, INFO).is_none());
    assert!(Machine::read(&memory(), Protocol::Pvh, INFO).is_none());
    let many = [(0x1000, 0x1000, 1); 100];
    assert_eq!(Machine::read(&pvh(&many), Protocol::Pvh, INFO).unwrap().ram().len(), RANGES);
}

#[test]
fn linux_zero_page() {
    let mut mem = memory();
    mem.write(INFO.add(0x1e8), &[1]);
    mem.write_u32(INFO.add(0x228), 0x2_0000);
    mem.write_u64(INFO.add(0x2d0), 0x10_0000);
    mem.write_u64(INFO.add(0x2d8), 0x10_0000);
    mem.write_u32(INFO.add(0x2e0), 1);
    let m = Machine::read(&mem, Protocol::Linux, INFO).unwrap();
    assert_eq!(m.ram(), [Span { start: 0x10_0000, end: 0x20_0000 }]);
    assert_eq!(m.command_line, PhysAddr(0x2_0000));
}

fn put_table(mem: &mut Fake, at: u64, name: &[u8; 4], body: &[u8]) {
    mem.write(PhysAddr(at), name);
    mem.write_u32(PhysAddr(at + 4), 36 + body.len() as u32);
    mem.write(PhysAddr(at + 36), body);
}

fn space(mut mem: Fake) -> Space<Fake> {
    mem.write(PhysAddr(0xf_0000), b"RSD PTR ");
    mem.write_u32(PhysAddr(0xf_0010), 0xf_1000);
    let mut frames = Frames::new();
    frames.add(0x10_1000, 0x12_0000, &[]);
    Space::new(mem, frames, PhysAddr(0x10_0000))
}

#[test]
fn acpi_interrupt_controllers_and_power() {
    let mut mem = memory();
    let rsdt: std::vec::Vec<u8> = [0xf_2000u32, 0, 0xf_3000].iter().flat_map(|a| a.to_le_bytes()).collect();
    put_table(&mut mem, 0xf_1000, b"RSDT", &rsdt);
    let mut madt = std::vec![0; 8];
    madt.extend([0, 8, 0, 0, 1, 0, 0, 0]);
    madt.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    madt.extend([1, 12, 1, 0, 0, 0, 0xc1, 0xfe, 24, 0, 0, 0]);
    madt.extend([1, 12, 1, 0]);
    put_table(&mut mem, 0xf_2000, b"APIC", &madt);
    let mut fadt = [0; 240];
    fadt[64 - 36..][..4].copy_from_slice(&0x604u32.to_le_bytes());
    put_table(&mut mem, 0xf_3000, b"FACP", &fadt);
    let legacy = acpi(&mut space(mem), PhysAddr(0));
    assert_eq!(legacy, Acpi { ioapics: [0xfec0_0000, 0xfec1_0000, 0, 0], power: Power::Pm1(0x604) });

    fadt[112 - 36..][..4].copy_from_slice(&(1u32 << 20).to_le_bytes());
    fadt[248 - 36..][..8].copy_from_slice(&0xfea0_0200u64.to_le_bytes());
    let mut mem = memory();
    put_table(&mut mem, 0xf_1000, b"RSDT", &rsdt);
    put_table(&mut mem, 0xf_3000, b"FACP", &fadt);
    let reduced = acpi(&mut space(mem), PhysAddr(0xf_0000));
    assert_eq!(reduced, Acpi { ioapics: [0xfec0_0000, 0, 0, 0], power: Power::SleepMemory(PhysAddr(0xfea0_0200)) });
}

#[test]
fn broken_acpi_is_passed_over() {
    let mut mem = memory();
    put_table(&mut mem, 0xf_1000, b"RSDT", &[1, 2, 3]);
    assert_eq!(acpi(&mut space(mem), PhysAddr(0)).power, Power::Unknown);
    let mut mem = memory();
    mem.write_u32(PhysAddr(0xf_1004), u32::MAX);
    assert_eq!(acpi(&mut space(mem), PhysAddr(0)).ioapics[0], 0xfec0_0000);
    let mut none = Space::new(memory(), Frames::new(), PhysAddr(0x10_0000));
    assert_eq!(acpi(&mut none, PhysAddr(0)).ioapics[0], 0xfec0_0000);
}
