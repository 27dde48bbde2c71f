use super::*;
use crate::frames::Frames;
use crate::phys::Fake;
use std::vec::Vec;

/// Configuration space of a bus with a bridge to bus 2 and one virtio device there; all else is absent.
struct Bus {
    bridge: [u32; 64],
    card: [u32; 64],
}

const BRIDGE: Function = Function { bus: 0, device: 3, function: 0 };
const CARD: Function = Function { bus: 2, device: 0, function: 1 };
const BAR: u64 = 0x20_0000;

impl Config for Bus {
    fn read(&mut self, function: Function, offset: u8) -> u32 {
        assert_eq!(offset % 4, 0);
        let word = usize::from(offset / 4);
        match function {
            BRIDGE => self.bridge[word],
            CARD => self.card[word],
            // A multi-function device whose function 0 is not ours.
            Function { bus: 2, device: 0, function: 0 } => {
                [0x1234_8086, 0, 0, 0x0080_0000].get(word).copied().unwrap_or(0)
            }
            _ => u32::MAX,
        }
    }
    fn write(&mut self, function: Function, offset: u8, value: u32) {
        assert_eq!(function, CARD);
        self.card[usize::from(offset / 4)] = value;
    }
}

fn bus() -> Bus {
    let mut b = Bus { bridge: [0; 64], card: [0; 64] };
    b.bridge[0] = 0x0001_8086;
    b.bridge[3] = 0x0001_0000;
    b.bridge[6] = 0x0002_0200;
    let c = &mut b.card;
    c[0] = 0x1041_1af4;
    // BAR 0: 64-bit memory; BAR 4: 32-bit.
    c[4] = BAR as u32 | 0xc;
    c[8] = 0x40_0000;
    c[0x34 / 4] = 0x40;
    // MSI-X with its table in BAR 4.
    c[0x40 / 4] = 0x8000_5011 | 0x4003_0000;
    c[0x44 / 4] = 0x104;
    let mut capability = |at: usize, next: u32, kind: u32, offset: u32, len: u32| {
        c[at / 4] = kind << 24 | 0x10_0000 | next << 8 | 9;
        c[at / 4 + 1] = 0;
        c[at / 4 + 2] = offset;
        c[at / 4 + 3] = len;
    };
    capability(0x50, 0x60, 1, 0, 0x38);
    capability(0x60, 0x80, 4, 0x2000, 0x100);
    capability(0x80, 0x98, 2, 0x3000, 0x1000);
    capability(0x98, 0, 3, 0x1000, 4);
    c[0x90 / 4] = 4;
    b
}

fn space() -> Space<Fake> {
    let mut mem = Fake::new(0x10_0000, 0x40_0000);
    mem.zero(PhysAddr(0x10_0000), 4096);
    let mut frames = Frames::new();
    frames.add(0x10_1000, 0x12_0000, &[]);
    Space::new(mem, frames, PhysAddr(0x10_0000))
}

#[test]
fn a_card_behind_a_bridge_is_found_and_opened() {
    let mut b = bus();
    let mut found = Vec::new();
    scan(&mut b, None, |_, at, kind| found.push((at, kind)));
    assert_eq!(found, [(CARD, Kind::Net)]);
    let mut s = space();
    let t = open(&mut b, &mut s, CARD, (0xfee0_1000, 0x21)).unwrap();
    let expected = Transport::Pci {
        common: PhysAddr(BAR),
        notify: PhysAddr(BAR + 0x3000),
        notify_len: 0x1000,
        notify_step: 4,
        config: PhysAddr(BAR + 0x2000),
    };
    assert_eq!(t, expected);
    assert_eq!(b.card[1] & 0x406, 0x406, "memory space, bus master, no INTx");
    assert_eq!(b.card[0x40 / 4] >> 30, 2, "MSI-X on, not masked");
    let table = PhysAddr(0x40_0100);
    assert_eq!([0, 4, 8, 12].map(|o| s.mem.read_u32(table.add(o))), [0xfee0_1000, 0, 0x21, 0]);
}

/// Configuration space of single functions, by bus: bridges and devices, each device 0 of its bus.
struct Tree(Vec<(u8, u32, u8)>);

impl Config for Tree {
    fn read(&mut self, f: Function, offset: u8) -> u32 {
        let at = self.0.iter().filter(|(bus, ..)| *bus == f.bus).nth(f.device.into()).filter(|_| f.function == 0);
        let Some((bus, id, secondary)) = at else { return u32::MAX };
        match offset {
            0 => *id,
            0x0c if *secondary != 0 => 0x0001_0000,
            0x18 => u32::from(*secondary) << 8 | u32::from(*bus),
            _ => 0,
        }
    }
    fn write(&mut self, _: Function, _: u8, _: u32) {
        panic!("nothing is changed")
    }
}

const PORT: u32 = 0x000c_1b36;
const NET: u32 = 0x1041_1af4;
const RNG: u32 = 0x1044_1af4;

fn found(tree: &[(u8, u32, u8)], sought: Option<Kind>) -> Vec<(u8, Kind)> {
    let mut out = Vec::new();
    scan(&mut Tree(tree.to_vec()), sought, |_, at, kind| out.push((at.bus, kind)));
    out
}

#[test]
fn a_bus_may_have_any_number() {
    // Bridges to themselves and back lead nowhere.
    let tree =
        [(0, PORT, 1), (0, PORT, 20), (0, PORT, 0xff), (1, RNG, 0), (20, PORT, 64), (64, NET, 0), (64, PORT, 20)];
    assert_eq!(found(&tree, Some(Kind::Net)), [(1, Kind::Rng), (64, Kind::Net)]);
    assert_eq!(found(&[(0, PORT, 0xff), (0xff, NET, 0)], None), [(0xff, Kind::Net)]);
}

#[test]
fn another_root_bus_is_found_if_need_be() {
    let tree = [(0, RNG, 0), (0x40, PORT, 0x41), (0x41, NET, 0), (0x80, RNG, 0)];
    assert_eq!(found(&tree, None), [(0, Kind::Rng)]);
    assert_eq!(found(&tree, Some(Kind::Rng)), [(0, Kind::Rng)]);
    assert_eq!(found(&tree, Some(Kind::Net)), [(0, Kind::Rng), (0x41, Kind::Net), (0x80, Kind::Rng)]);
}

#[test]
fn what_cannot_be_used_is_said() {
    type Spoil = fn(&mut Bus);
    let spoil: [(Spoil, &str); 6] = [
        (|b| b.card[4] = 0xc, "firmware has not assigned its registers"),
        (|b| b.card[4] = 0xc001, "its registers are in I/O space"),
        (|b| b.card[0x54 / 4] = 7, "it names a BAR that does not exist"),
        (|b| b.card[0x34 / 4] = 0x50, "it has no MSI-X"),
        (|b| b.card[5] = 0x8000_0000, "its registers are out of reach"),
        (|b| b.card[0x34 / 4] = 0, "it has no registers of virtio 1.0 (QEMU: disable-modern=off)"),
    ];
    for (f, why) in spoil {
        let mut b = bus();
        f(&mut b);
        assert_eq!(open(&mut b, &mut space(), CARD, (0, 0)), Err(Unusable(why)));
    }
    // A list of capabilities that runs in a circle ends.
    let mut b = bus();
    b.card[0x98 / 4] = 3 << 24 | 0x4009;
    assert!(open(&mut b, &mut space(), CARD, (0, 0)).is_ok());
}

#[test]
fn a_notification_outside_of_its_area_is_refused() {
    let mut b = bus();
    let mut s = space();
    let t = open(&mut b, &mut s, CARD, (0, 0)).unwrap();
    s.mem.write_u16(PhysAddr(BAR + 0x1e), 1);
    assert_eq!(t.notify_address(&mut s.mem, 1), Some(PhysAddr(BAR + 0x3004)));
    s.mem.write_u16(PhysAddr(BAR + 0x1e), 0xffff);
    assert_eq!(t.notify_address(&mut s.mem, 1), None);
}
