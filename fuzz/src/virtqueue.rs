//! The shim's drivers against a device that lies, and against a guest that lies about its buffers; in both directions: what the device
//! writes (used rings, also while the driver reads them, lengths, buffers), and what it is given to read.
//!
//! Only the driver's side exists: under QEMU the devices are QEMU's, and the process engine has none.

use crate::input::Input;
use crate::machine::{Mem, REGS, check, machine};
use donjon_abi::boot;
use donjon_abi::{FRAME_IOV_MAX, FRAME_MAX, PAGE, Prot};
use donjon_ring0::nic::{Failure, Nic};
use donjon_ring0::phys::{Phys, PhysAddr};
use donjon_ring0::rng;
use donjon_ring0::space::Space;
use donjon_ring0::transport::Transport;
use donjon_ring0::user;

const USER: u64 = 0x7000_0000_0000;
const USER_PAGES: u64 = 24;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    if data.first() == Some(&0xff) {
        return entropy(&mut input);
    }
    let mut space = machine(200, 1);
    space.protect(USER, USER_PAGES * PAGE, Prot::ReadWrite).expect("memory for the tables");
    space.mem.features = 1 << 32 | u64::from(input.u32());
    space.mem.queue_max = u32::from(input.u16());
    // A device that refuses the features is no device.
    space.mem.refused = if input.u8() > 0xfa { 8 } else { 0 };
    space.mem.config.copy_from_slice(&pad(input.take(16)));
    let mut out = boot::Net::default();
    let Ok(mut nic) = Nic::start(&mut space, Transport::Mmio { base: REGS }, &mut out) else { return };
    assert!((1280..=9000).contains(&out.mtu), "an MTU of {}", out.mtu);
    let queues = [Rings::new(&space.mem, 0), Rings::new(&space.mem, 1)];
    space.mem.shared = queues.iter().map(|q| q.descriptors.0).collect();
    while !input.is_empty() {
        if matches!(step(&mut input, &mut space, &mut nic, &queues), Err(Failure::Device(_))) {
            // The shim ends the machine.
            break;
        }
    }
    space.mem.racing.set(0);
    descriptors_are_the_shims(&space, &queues);
    nic.stop(&mut space, 3);
}

/// The entropy device, which is asked once, at boot.
fn entropy(input: &mut Input<'_>) {
    let mut space = machine(16, 1);
    input.u8();
    space.mem.features = 1 << 32;
    space.mem.queue_max = u32::from(input.u8());
    let mut out = [0; 64];
    let wanted = usize::from(input.u8() % 65);
    while !input.is_empty() {
        let (id, len) = (input.scaled() as u32, input.scaled() as u32);
        space.mem.answers.push_back((id, len, u16::from(input.u8() % 4)));
    }
    let free = space.frames.free();
    let read = rng::read(&mut space, &Transport::Mmio { base: REGS }, &mut out[..wanted]);
    assert!(out[wanted..].iter().all(|b| *b == 0), "more than was asked for");
    if read.is_some() {
        assert_eq!(space.frames.free(), free, "memory is lost");
    }
    check(&space);
}

fn pad(bytes: &[u8]) -> [u8; 16] {
    std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(0))
}

/// A queue as the device sees it.
struct Rings {
    descriptors: PhysAddr,
    available: PhysAddr,
    used: PhysAddr,
    size: u64,
}

impl Rings {
    fn new(mem: &Mem, index: u64) -> Rings {
        let part = |register: u64| {
            let half = |r: u64| u64::from(mem.regs.get(&(r | index << 32)).copied().unwrap_or(0));
            PhysAddr(half(register) | half(register + 4) << 32)
        };
        // All of a queue is one page, and the parts follow each other.
        let [descriptors, available, used] = [0x80, 0x90, 0xa0].map(part);
        let rings = Rings { descriptors, available, used, size: (available.0 - descriptors.0) / 16 };
        assert!(rings.size.is_power_of_two() && (2..=128).contains(&rings.size), "a queue of {}", rings.size);
        rings
    }
}

fn step(input: &mut Input<'_>, space: &mut Space<Mem>, nic: &mut Nic, queues: &[Rings; 2]) -> Result<(), Failure> {
    let op = input.u8();
    let queue = &queues[usize::from(op >> 7)];
    let mem = &mut space.mem;
    // The harness itself is not raced.
    let race = mem.racing.take();
    match op % 12 {
        // The device.
        0 => {
            let slot = u64::from(input.u8()) % queue.size;
            mem.write_u32(queue.used.add(4 + 8 * slot), input.scaled() as u32);
            mem.write_u32(queue.used.add(8 + 8 * slot), input.scaled() as u32);
        }
        1 => mem.write_u16(queue.used.add(2), input.u16()),
        2 | 3 => {
            // What an honest device does, with a length of its own choice.
            let seen = mem.read_u16(queue.used.add(2));
            let head = mem.read_u16(queue.available.add(4 + 2 * (u64::from(seen) % queue.size)));
            let len = 12 + input.scaled() as u32;
            let slot = u64::from(seen) % queue.size;
            if mem.read_u16(queue.available.add(2)) != seen && u64::from(head) < queue.size {
                let descriptor = queue.descriptors.add(16 * u64::from(head));
                let at = PhysAddr(mem.read_u64(descriptor));
                let room = mem.read_u32(descriptor.add(8)) as usize;
                let writable = mem.read_u16(descriptor.add(12)) & 2 != 0 && room >= 12;
                let bytes = input.take(usize::from(op >> 4 & 7) * 4);
                if writable {
                    mem.write(at, &bytes[..bytes.len().min(room)]);
                    // num_buffers
                    mem.write_u16(at.add(10), u16::from(op >> 4 & 3));
                }
                mem.write_u32(queue.used.add(4 + 8 * slot), head.into());
                mem.write_u32(queue.used.add(8 + 8 * slot), len);
                mem.write_u16(queue.used.add(2), seen.wrapping_add(1));
            }
        }
        4 if op & 16 == 0 => mem.write_u16(queue.used, input.u16()),
        4 => {
            mem.racing.set(input.scaled() as u32);
            return Ok(());
        }
        5 => {
            // Nothing keeps a device from writing to the driver's part of the ring.
            let at = queue.available.add(u64::from(input.u8()) % (4 + 2 * queue.size));
            mem.write(at, &[input.u8()]);
        }
        // The guest.
        6 => {
            let at = USER + u64::from(input.u16());
            let bytes = input.take(usize::from(op >> 4) * 4);
            let _ = user::write(space, at, bytes);
        }
        7 => {
            // A list of pieces that is sound but for what the input says.
            let count = u64::from(input.u8() % 66);
            let mut at = USER + 0x4000;
            for i in 0..count {
                let len = if i == 0 { 12 } else { input.scaled() };
                let _ = user::write(space, USER + 0x1000 + i * 16, &at.to_le_bytes());
                let _ = user::write(space, USER + 0x1008 + i * 16, &len.to_le_bytes());
                at = at.wrapping_add(len);
            }
            let _ = user::write(space, USER, &(USER + 0x1000).to_le_bytes());
            let _ = user::write(space, USER + 8, &(count as u32).to_le_bytes());
        }
        8 | 9 => {
            let frames = if op & 16 == 0 { USER } else { input.u64() };
            let count = if op & 32 == 0 { 1 } else { input.scaled() };
            let watched = op & 64 != 0 && frames == USER && count == 1;
            let sending = op % 12 == 8;
            let before = if watched { Guest::look(space) } else { None };
            let published = space.mem.read_u16(queues[1].available.add(2));
            space.mem.racing.set(race);
            let done = if sending { nic.send(space, frames, count) } else { nic.receive(space, frames, count) };
            space.mem.racing.set(0);
            match before {
                Some(guest) if sending => guest.was_sent(space, &queues[1], published),
                Some(guest) => guest.changed_only_in_buffers(space, done == Ok(1)),
                None => {}
            }
            assert!(done.map_or(true, |n| n <= count), "{done:?} of {count} frames");
            done.map(drop)?;
        }
        10 => {
            mem.racing.set(race);
            nic.ready(space)?;
        }
        _ => {
            nic.interrupts(space, op & 16 != 0);
            nic.acknowledge(space);
        }
    }
    Ok(())
}

/// The guest's memory before a call, and the frame that it names at its beginning.
struct Guest {
    memory: Vec<u8>,
    /// Addresses and lengths; none if the list is not sound.
    pieces: Vec<(u64, u64)>,
}

impl Guest {
    /// `None` if there is no memory to look at all of it.
    fn look(space: &mut Space<Mem>) -> Option<Guest> {
        let mut memory = vec![0; (USER_PAGES * PAGE) as usize];
        user::read(space, USER, &mut memory).ok()?;
        let word = |at: u64| {
            let bytes = memory.get(at as usize..)?.first_chunk::<8>()?;
            Some(u64::from_le_bytes(*bytes))
        };
        let (array, count) = (word(0)?.wrapping_sub(USER), word(8)? as u32);
        let pieces = (0..u64::from(count)).map(|i| {
            let at = array.checked_add(16 * i)?;
            Some((word(at)?, word(at.checked_add(8)?)?))
        });
        let pieces = if count <= FRAME_IOV_MAX { pieces.collect::<Option<_>>().unwrap_or_default() } else { vec![] };
        Some(Guest { memory, pieces })
    }

    /// A received frame, or what of one fitted, is in the buffers that the guest named, and its length is where it belongs.
    fn changed_only_in_buffers(&self, space: &mut Space<Mem>, received: bool) {
        let Some(now) = Guest::look(space) else { return };
        let room = self.pieces.iter().fold(0, |sum: u64, p| sum.saturating_add(p.1));
        let inside = |at: u64| self.pieces.iter().any(|(base, len)| at.wrapping_sub(*base) < *len);
        for (i, (old, new)) in self.memory.chunks(64).zip(now.memory.chunks(64)).enumerate() {
            if old == new {
                continue;
            }
            for (at, _) in (64 * i as u64..).zip(old.iter().zip(new)).filter(|(_, (old, new))| old != new) {
                let length = received && (12..16).contains(&at);
                assert!(length || inside(USER + at), "a write at {at:x}, outside of the guest's buffers");
            }
        }
        let told = u32::from_le_bytes(now.memory[12..16].try_into().expect("four bytes"));
        // (Unless a buffer lies over the length.)
        if received && !self.pieces.iter().any(|p| p.0 < USER + 16) {
            assert!(u64::from(told) <= room, "a frame of {told} in {room} bytes");
        }
    }

    /// What the device is given to read is what the guest has named, but for what the shim decides in the header, and the device writes no checksum elsewhere than
    /// where the frame has one.
    fn was_sent(&self, space: &Space<Mem>, tx: &Rings, published: u16) {
        let mem = &space.mem;
        let now = mem.read_u16(tx.available.add(2));
        if now == published {
            return;
        }
        let mut frame = Vec::new();
        // An empty piece may be anywhere.
        for (base, len) in self.pieces.iter().filter(|p| p.1 > 0) {
            let start = base.checked_sub(USER).expect("a frame from outside of the guest's memory") as usize;
            frame.extend_from_slice(&self.memory[start..start + *len as usize]);
        }
        assert!((27..=FRAME_MAX).contains(&frame.len()), "a frame of {} bytes was sent", frame.len());
        let head = mem.read_u16(tx.available.add(4 + 2 * (u64::from(now.wrapping_sub(1)) % tx.size)));
        let (mut sent, mut next) = (Vec::new(), Some(head));
        while let Some(index) = next {
            let descriptor = tx.descriptors.add(16 * u64::from(index));
            let flags = mem.read_u16(descriptor.add(12));
            assert!(flags & !1 == 0 && sent.len() <= frame.len(), "a descriptor with flags {flags:x}");
            let mut part = vec![0; mem.read_u32(descriptor.add(8)) as usize];
            mem.read(PhysAddr(mem.read_u64(descriptor)), &mut part);
            sent.extend(part);
            next = (flags & 1 != 0).then(|| mem.read_u16(descriptor.add(14)));
        }
        frame[0] &= 1;
        frame[10..12].fill(0);
        if frame[0] == 1 {
            // The device sums, and writes where the protocol has its checksum: the rule written a second time.
            let (head, next) = if frame[26] >> 4 == 4 { (20, 9) } else { (40, 6) };
            let place = match frame[26 + next] {
                6 => 16,
                17 => 6,
                other => panic!("a checksum for protocol {other}"),
            };
            assert!(frame[6..10] == [14 + head, 0, place, 0], "a checksum at {:?}", &frame[6..10]);
            assert!(12 + 14 + usize::from(head + place) + 2 <= frame.len(), "a checksum behind the frame");
        } else {
            assert!(frame[1] == 0, "cut, without a checksum");
        }
        assert!(sent == frame, "{} bytes were sent, of {}, and not the guest's", sent.len(), frame.len());
    }
}

/// ADR 0003: what the device is given is the shim's own, never the guest's, never a table, never a ring.
fn descriptors_are_the_shims(space: &Space<Mem>, queues: &[Rings; 2]) {
    let map = check(space);
    for queue in queues {
        for i in 0..queue.size {
            let descriptor = queue.descriptors.add(16 * i);
            let (at, len) = (space.mem.read_u64(descriptor), u64::from(space.mem.read_u32(descriptor.add(8))));
            if len == 0 {
                // Never used.
                continue;
            }
            let frame = at & !(PAGE - 1);
            assert!(at - frame + len <= PAGE, "a buffer of {len} at {at:x} leaves its page");
            let foreign = map.user.contains(&frame) || map.owned.contains(&frame) || map.tables.contains(&frame);
            let ring = queues.iter().any(|q| q.descriptors.0 == frame);
            assert!(!foreign && !ring, "the device is given the frame {frame:x}");
        }
    }
}
