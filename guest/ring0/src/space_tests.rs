use super::*;
use crate::phys::Fake;

const BASE: u64 = 0x5555_1234_5000;

fn space(frames: u64) -> Space<Fake> {
    let mut mem = Fake::new(0x10_0000, (frames as usize + 1) * 4096);
    mem.zero(PhysAddr(0x10_0000), 4096);
    let mut f = Frames::new();
    f.add(0x10_1000, 0x10_1000 + frames * 4096, &[]);
    Space::new(mem, f, PhysAddr(0x10_0000))
}

#[test]
fn first_touch_gives_a_zero_page_with_the_declared_rights() {
    let mut s = space(16);
    assert_eq!(s.touch(BASE, Access::Read), Err(Refused::Rights));
    s.protect(BASE, 8 * PAGE, Prot::ReadWrite).unwrap();
    s.protect(BASE + PAGE, PAGE, Prot::Read).unwrap();
    let a = s.touch(BASE + 5, Access::Write).unwrap();
    assert_eq!(a.0 & 4095, 5);
    assert_eq!(s.mem.read_u64(PhysAddr(a.0 & !4095)), 0);
    assert_eq!(s.touch(BASE + PAGE, Access::Write), Err(Refused::Rights));
    s.touch(BASE + PAGE, Access::Read).unwrap();
    assert_eq!(s.touch(BASE + PAGE, Access::Write), Err(Refused::Rights));
    assert_eq!(s.touch(BASE + 8 * PAGE, Access::Read), Err(Refused::Rights));
    assert_eq!(s.touch(BASE - 1, Access::Read), Err(Refused::Rights));
    assert_eq!(s.touch(1 << 47, Access::Read), Err(Refused::Rights));
}

#[test]
fn content_survives_a_time_without_rights() {
    let mut s = space(16);
    s.protect(BASE, PAGE, Prot::ReadWrite).unwrap();
    let a = s.touch(BASE, Access::Write).unwrap();
    s.mem.write_u64(a, 42);
    assert_eq!(s.protect(BASE, PAGE, Prot::None), Ok(Flush::Range));
    assert_eq!(s.touch(BASE, Access::Read), Err(Refused::Rights));
    s.protect(BASE, PAGE, Prot::Read).unwrap();
    assert_eq!(s.touch(BASE, Access::Read), Ok(a));
    assert_eq!(s.mem.read_u64(a), 42);
    assert_eq!(s.touch(BASE, Access::Write), Err(Refused::Rights));
}

#[test]
fn discard_frees_and_the_next_touch_finds_zeros() {
    let mut s = space(16);
    s.protect(BASE, 2 * PAGE, Prot::ReadWrite).unwrap();
    let a = s.touch(BASE, Access::Write).unwrap();
    s.mem.write_u64(a, 42);
    let free = s.frames.free();
    assert_eq!(s.discard(BASE, 2 * PAGE), Ok(Flush::Range));
    assert_eq!(s.frames.free(), free + 1);
    let b = s.touch(BASE, Access::Write).unwrap();
    assert_eq!(s.mem.read_u64(b), 0);
    // Frames that are held for a page without rights are given back, too.
    s.protect(BASE, PAGE, Prot::None).unwrap();
    s.discard(BASE, PAGE).unwrap();
    assert_eq!(s.frames.free(), free + 1);
    assert_eq!(s.touch(BASE, Access::Read), Err(Refused::Rights));
}

#[test]
fn a_large_range_costs_no_tables_until_it_is_touched() {
    let mut s = space(64);
    let free = s.frames.free();
    s.protect(BASE, 64 << 30, Prot::ReadWrite).unwrap();
    let used = free - s.frames.free();
    assert!(used <= 6, "used {used} frames");
    s.touch(BASE + (17 << 30), Access::Write).unwrap();
    // Two tables and the page.
    assert_eq!(free - s.frames.free(), used + 3);
    assert_eq!(s.touch(BASE + (64 << 30), Access::Read), Err(Refused::Rights));
}

#[test]
fn tables_come_back_when_all_below_is_uniform() {
    let mut s = space(64);
    let base = BASE & !(span(2) - 1);
    s.protect(base, span(2), Prot::ReadWrite).unwrap();
    let free = s.frames.free();
    for i in 0..20 {
        s.touch(base + i * 5 * PAGE, Access::Write).unwrap();
    }
    assert_eq!(s.frames.free(), free - 22);
    s.discard(base, span(2)).unwrap();
    assert_eq!(s.frames.free(), free);
    s.touch(base, Access::Write).unwrap();
}

#[test]
fn out_of_memory_is_said() {
    let mut s = space(5);
    s.protect(BASE, 4 * PAGE, Prot::ReadWrite).unwrap();
    s.touch(BASE, Access::Write).unwrap();
    s.touch(BASE + PAGE, Access::Write).unwrap();
    assert_eq!(s.touch(BASE + 2 * PAGE, Access::Write), Err(Refused::NoMemory));
    assert_eq!(s.protect(1 << 45, PAGE, Prot::Read), Err(Refused::NoMemory));
}

#[test]
fn image_pages_are_not_changed_by_discard_and_shim_pages_not_reached() {
    let mut s = space(16);
    s.map(BASE, PhysAddr(0x10_1000), Rights::ReadExecute).unwrap();
    assert_eq!(s.discard(BASE, PAGE), Ok(Flush::None));
    assert_eq!(s.touch(BASE, Access::Write), Err(Refused::Rights));
    assert_eq!(s.touch(BASE + 7, Access::Read), Ok(PhysAddr(0x10_1007)));
    s.map_shim(PhysAddr(0x10_0000), 1 << 20, Device::No).unwrap();
    assert_eq!(s.touch(0x10_0000, Access::Read), Err(Refused::Rights));
    assert_eq!(s.map(0x10_0000, PhysAddr(0x10_1000), Rights::Read), Err(Refused::Rights));
}

/// What is remembered of earlier accesses is what the tables say, whatever was done to them in between.
#[test]
fn touches_are_remembered_only_as_long_as_they_hold() {
    let mut s = space(200);
    let mut state = 7u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let (mut granted, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let (page, len) = (BASE + random(24) * PAGE, (1 + random(6)) * PAGE);
        match random(12) {
            0 => drop(s.protect(page, len, Prot::ReadWrite)),
            1 => drop(s.protect(page, len, Prot::Read)),
            2 => drop(s.protect(page, len, Prot::None)),
            3 => drop(s.discard(page, len)),
            _ => {
                let access = if random(2) == 0 { Access::Read } else { Access::Write };
                let va = page + random(PAGE);
                let got = s.touch(va, access);
                assert_eq!(got, s.look_up(va, access));
                *if got.is_ok() { &mut granted } else { &mut refused } += 1;
            }
        }
    }
    assert!(granted > 1000 && refused > 1000, "{granted} {refused}");
}
