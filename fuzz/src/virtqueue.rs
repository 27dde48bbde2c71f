//! The network device's driver against a device that lies, and against a guest that lies about its buffers.
//!
//! Only the driver's side exists: under QEMU the devices are QEMU's, and the process engine has none.

use crate::input::Input;
use crate::machine::{Mem, REGS, check, machine};
use donjon_abi::boot;
use donjon_abi::{PAGE, Prot};
use donjon_ring0::nic::{Failure, Nic};
use donjon_ring0::phys::{Phys, PhysAddr};
use donjon_ring0::space::Space;
use donjon_ring0::transport::Transport;
use donjon_ring0::user;

const USER: u64 = 0x7000_0000_0000;
const USER_PAGES: u64 = 24;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
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
    while !input.is_empty() {
        if matches!(step(&mut input, &mut space, &mut nic, &queues), Err(Failure::Device(_))) {
            // The shim ends the machine.
            break;
        }
    }
    descriptors_are_the_shims(&space, &queues);
    nic.stop(&mut space, 3);
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
        4 => mem.write_u16(queue.used, input.u16()),
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
            let done = if op % 12 == 8 { nic.send(space, frames, count) } else { nic.receive(space, frames, count) };
            assert!(done.map_or(true, |n| n <= count), "{done:?} of {count} frames");
            done.map(drop)?;
        }
        10 => {
            nic.ready(space)?;
        }
        _ => {
            nic.interrupts(space, op & 16 != 0);
            nic.acknowledge(space);
        }
    }
    Ok(())
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
