//! A split virtqueue (virtio 1.3 §2.7), driver side, in one page.
//!
//! What the driver must know later is kept in private memory; of the shared page it reads the used ring alone, each value once, and
//! believes none of it.

use crate::phys::{Phys, PhysAddr};

/// Most descriptors: so that the three parts fit into one page.
pub const SIZE_MAX: u16 = 128;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;
const END: u8 = u8::MAX;

/// The device broke the rules; what it did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lie(pub &'static str);

/// Who writes to a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writer {
    /// The driver: the device reads.
    Driver,
    /// The device.
    Device,
}

/// A queue whose descriptor `i` always names the owner's buffer `i`.
pub struct Queue {
    page: PhysAddr,
    size: u16,
    /// Next free place of the available ring; published by [`Queue::publish`].
    available: u16,
    published: u16,
    /// How far the used ring has been read.
    seen: u16,
    /// For each descriptor: the next one of its chain, or of the free list; [`END`].
    next: [u8; SIZE_MAX as usize],
    /// Whether a chain that begins at the descriptor is the device's at present.
    in_flight: [bool; SIZE_MAX as usize],
    free: u8,
    free_count: u16,
    flying: u16,
}

/// A chain that the device is done with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Used {
    /// First descriptor of the chain.
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

impl Queue {
    /// A queue of the largest power of two that is at most `offered` and `wanted`, in the cleared frame `page`. `None` if the device offers
    /// fewer than two.
    pub fn new(page: PhysAddr, offered: u16, wanted: u16) -> Option<Queue> {
        let most = offered.min(wanted).min(SIZE_MAX);
        if most < 2 {
            return None;
        }
        let size = 1 << most.ilog2();
        let mut next = [END; SIZE_MAX as usize];
        for (i, n) in next.iter_mut().enumerate().take(usize::from(size) - 1) {
            *n = i as u8 + 1;
        }
        Some(Queue {
            page,
            size,
            available: 0,
            published: 0,
            seen: 0,
            next,
            in_flight: [false; SIZE_MAX as usize],
            free: 0,
            free_count: size,
            flying: 0,
        })
    }

    /// Number of descriptors.
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Addresses of the descriptor table, the available ring and the used ring.
    pub const fn parts(&self) -> [PhysAddr; 3] {
        let available = self.page.add(16 * self.size as u64);
        let used = (available.0 + 6 + 2 * self.size as u64).next_multiple_of(4);
        [self.page, available, PhysAddr(used)]
    }

    /// Number of free descriptors.
    pub const fn free(&self) -> u16 {
        self.free_count
    }

    /// Number of chains that the device has.
    pub const fn flying(&self) -> u16 {
        self.flying
    }

    /// Takes a free descriptor.
    pub fn take(&mut self) -> Option<u16> {
        let index = self.free;
        let next = self.next.get(usize::from(index))?;
        self.free = *next;
        self.free_count -= 1;
        Some(index.into())
    }

    /// Gives a descriptor back that was taken and not [`Self::push`]ed.
    pub fn give(&mut self, index: u16) {
        if let Some(next) = self.next.get_mut(usize::from(index)) {
            *next = self.free;
            self.free = index as u8;
            self.free_count += 1;
        }
    }

    /// Hands a chain of taken descriptors, each with its buffer, to the device, which sees it after [`Self::publish`].
    pub fn push(&mut self, mem: &mut impl Phys, chain: impl Iterator<Item = (u16, PhysAddr, u32)>, writer: Writer) {
        let mut chain = chain.peekable();
        let Some((head, ..)) = chain.peek().copied() else { return };
        let write = if writer == Writer::Device { WRITE } else { 0 };
        while let Some((index, at, len)) = chain.next() {
            let following = chain.peek().map(|c| c.0);
            let descriptor = self.page.add(u64::from(index) * 16);
            mem.write_u64(descriptor, at.0);
            mem.write_u32(descriptor.add(8), len);
            mem.write_u16(descriptor.add(12), write | if following.is_some() { NEXT } else { 0 });
            mem.write_u16(descriptor.add(14), following.unwrap_or(0));
            if let Some(next) = self.next.get_mut(usize::from(index)) {
                *next = following.map_or(END, |f| f as u8);
            }
        }
        if let Some(flying) = self.in_flight.get_mut(usize::from(head)) {
            *flying = true;
        }
        self.flying += 1;
        let [_, ring, _] = self.parts();
        mem.write_u16(ring.add(4 + 2 * u64::from(self.available & (self.size - 1))), head);
        self.available = self.available.wrapping_add(1);
    }

    /// Lets the device see what was pushed; whether it wants to be told.
    pub fn publish(&mut self, mem: &mut impl Phys) -> bool {
        if self.published == self.available {
            return false;
        }
        let [_, ring, used] = self.parts();
        mem.fence();
        mem.write_u16(ring.add(2), self.available);
        self.published = self.available;
        mem.fence();
        mem.read_u16(used) & NO_NOTIFY == 0
    }

    /// Whether the device shall interrupt when it is done with a chain.
    pub fn interrupts(&self, mem: &mut impl Phys, on: bool) {
        let [_, ring, _] = self.parts();
        mem.write_u16(ring, if on { 0 } else { NO_INTERRUPT });
        mem.fence();
    }

    /// Number of chains that the device is done with.
    pub fn pending(&self, mem: &impl Phys) -> Result<u16, Lie> {
        let [.., used] = self.parts();
        let pending = mem.read_u16(used.add(2)).wrapping_sub(self.seen);
        if pending > self.flying {
            return Err(Lie("its used index is out of range"));
        }
        Ok(pending)
    }

    /// The next chain that the device is done with. Its descriptors are the owner's again: see [`Self::release`].
    pub fn pop(&mut self, mem: &impl Phys) -> Result<Option<Used>, Lie> {
        if self.pending(mem)? == 0 {
            return Ok(None);
        }
        mem.fence();
        let [.., used] = self.parts();
        let element = used.add(4 + 8 * u64::from(self.seen & (self.size - 1)));
        let (id, len) = (mem.read_u32(element), mem.read_u32(element.add(4)));
        let flying = self.in_flight.get_mut(id as usize).filter(|f| **f);
        *flying.ok_or(Lie("it used a descriptor that it did not have"))? = false;
        self.flying -= 1;
        self.seen = self.seen.wrapping_add(1);
        Ok(Some(Used { head: id as u16, len }))
    }

    /// Frees all descriptors of a popped chain.
    pub fn release(&mut self, head: u16) {
        let mut index = head as u8;
        while let Some(next) = self.next.get(usize::from(index)).copied() {
            self.give(index.into());
            index = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phys::Fake;

    const PAGE: PhysAddr = PhysAddr(0x1000);

    fn queue(offered: u16) -> (Fake, Queue) {
        let mut mem = Fake::new(0x1000, 4096);
        mem.zero(PAGE, 4096);
        (mem, Queue::new(PAGE, offered, SIZE_MAX).unwrap())
    }

    /// What a device does: uses the chain.
    fn complete(mem: &mut Fake, q: &Queue, nth: u16, id: u32, len: u32) {
        let [.., used] = q.parts();
        mem.write_u32(used.add(4 + 8 * u64::from(nth % q.size())), id);
        mem.write_u32(used.add(8 + 8 * u64::from(nth % q.size())), len);
        mem.write_u16(used.add(2), nth.wrapping_add(1));
    }

    fn send(mem: &mut Fake, q: &mut Queue, pieces: usize) -> u16 {
        let chain: std::vec::Vec<_> = (0..pieces).map(|_| (q.take().unwrap(), PhysAddr(0x9000), 10)).collect();
        q.push(mem, chain.iter().copied(), Writer::Driver);
        chain[0].0
    }

    #[test]
    fn the_parts_fit_into_a_page() {
        for offered in [2, 3, 64, 127, 128, 256, 1024, 32768, 65535] {
            let (_, q) = queue(offered);
            let [d, a, u] = q.parts();
            assert!(q.size().is_power_of_two() && q.size() <= offered.min(SIZE_MAX));
            assert!(d.0 + 16 * u64::from(q.size()) <= a.0 && a.0 + 6 + 2 * u64::from(q.size()) <= u.0);
            assert!(u.0 + 6 + 8 * u64::from(q.size()) <= PAGE.0 + 4096 && u.0 % 4 == 0);
        }
        assert!(Queue::new(PAGE, 1, 64).is_none());
    }

    #[test]
    fn chains_go_and_come_back_in_any_order() {
        let (mut mem, mut q) = queue(8);
        for round in 0..1000u16 {
            let a = send(&mut mem, &mut q, 3);
            let b = send(&mut mem, &mut q, 2);
            assert_eq!((q.free(), q.flying()), (3, 2));
            assert!(q.publish(&mut mem) && !q.publish(&mut mem));
            complete(&mut mem, &q, round * 2, b.into(), 7);
            assert_eq!(q.pop(&mem), Ok(Some(Used { head: b, len: 7 })));
            q.release(b);
            complete(&mut mem, &q, round * 2 + 1, a.into(), 0);
            assert_eq!(q.pop(&mem).unwrap().unwrap().head, a);
            q.release(a);
            assert_eq!((q.free(), q.pop(&mem)), (8, Ok(None)));
        }
    }

    #[test]
    fn descriptors_are_chained_as_the_device_expects() {
        let (mut mem, mut q) = queue(4);
        let chain = [(q.take().unwrap(), PhysAddr(0x5000), 100), (q.take().unwrap(), PhysAddr(0x6000), 20)];
        q.push(&mut mem, chain.into_iter(), Writer::Device);
        q.publish(&mut mem);
        assert_eq!(
            (mem.read_u64(PAGE), mem.read_u32(PAGE.add(8)), mem.read_u32(PAGE.add(12))),
            (0x5000, 100, 3 | 1 << 16)
        );
        assert_eq!((mem.read_u64(PAGE.add(16)), mem.read_u32(PAGE.add(28))), (0x6000, 2));
        let [_, ring, used] = q.parts();
        assert_eq!((mem.read_u16(ring.add(2)), mem.read_u16(ring.add(4))), (1, 0));
        q.interrupts(&mut mem, false);
        assert_eq!(mem.read_u16(ring), 1);
        mem.write_u16(used, 1);
        send(&mut mem, &mut q, 1);
        assert!(!q.publish(&mut mem), "the device does not want to be told");
    }

    #[test]
    fn a_lying_device_is_found_out() {
        let lies: [fn(&mut Fake, &Queue); 4] = [
            |m, q| complete(m, q, 0, 1, 0),
            |m, q| complete(m, q, 0, 4000, 0),
            |m, q| complete(m, q, 0, u32::MAX, 0),
            |m, q| complete(m, q, 7, 0, 0),
        ];
        for lie in lies {
            let (mut mem, mut q) = queue(8);
            send(&mut mem, &mut q, 2);
            lie(&mut mem, &q);
            assert!(q.pop(&mem).is_err());
        }
        let (mut mem, mut q) = queue(8);
        send(&mut mem, &mut q, 1);
        send(&mut mem, &mut q, 1);
        complete(&mut mem, &q, 0, 0, 0);
        q.pop(&mem).unwrap();
        complete(&mut mem, &q, 1, 0, 0);
        assert!(q.pop(&mem).is_err(), "the same chain twice");
    }
}
