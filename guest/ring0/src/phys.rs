//! Physical memory, as the rest of the shim sees it.
//!
//! All logic that edits page tables, rings and tables of the firmware goes through [`Phys`], so that it runs on the host
//! against a plain vector, too.

/// A guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct PhysAddr(pub u64);

impl PhysAddr {
    /// The address `bytes` further on (wrapping: callers have checked their ranges).
    pub const fn add(self, bytes: u64) -> PhysAddr {
        PhysAddr(self.0.wrapping_add(bytes))
    }
}

/// Access to physical memory. Scalar accesses are single and volatile: a device may write at the same time.
///
/// Addresses come from the frame allocator, from page-table entries that the shim wrote, or were checked against the
/// machine's memory map; never from the guest.
pub trait Phys {
    /// Reads a byte.
    fn read_u8(&self, at: PhysAddr) -> u8;
    /// Writes a byte.
    fn write_u8(&mut self, at: PhysAddr, value: u8);
    /// Reads a little-endian 16-bit word.
    fn read_u16(&self, at: PhysAddr) -> u16;
    /// Reads a little-endian 32-bit word.
    fn read_u32(&self, at: PhysAddr) -> u32;
    /// Reads a little-endian 64-bit word.
    fn read_u64(&self, at: PhysAddr) -> u64;
    /// Writes a little-endian 16-bit word.
    fn write_u16(&mut self, at: PhysAddr, value: u16);
    /// Writes a little-endian 32-bit word.
    fn write_u32(&mut self, at: PhysAddr, value: u32);
    /// Writes a little-endian 64-bit word.
    fn write_u64(&mut self, at: PhysAddr, value: u64);
    /// Copies memory into `out`.
    fn read(&self, at: PhysAddr, out: &mut [u8]);
    /// Copies `data` into memory.
    fn write(&mut self, at: PhysAddr, data: &[u8]);
    /// Copies `len` bytes within memory; the ranges do not overlap.
    fn copy(&mut self, from: PhysAddr, to: PhysAddr, len: usize);
    /// Fills with zeros.
    fn zero(&mut self, at: PhysAddr, len: usize);
    /// A value stored by one side is visible to the other before any later access.
    fn fence(&self);
}

#[cfg(donjon_guest)]
pub use direct::Direct;

#[cfg(donjon_guest)]
mod direct {
    #![expect(unsafe_code, reason = "raw access to physical memory")]
    // UNSAFETY: the shim maps physical memory at its own address; this is the one place that turns such an address into
    // a pointer. Premise of every block below: the address lies in memory or in a device window that `boot.s` or
    // `Space::map_device` mapped, and no Rust reference to it exists (the shim's own statics are not reached this way).
    use super::{Phys, PhysAddr};

    /// The machine's memory, through the shim's one-to-one mapping.
    pub struct Direct(());

    impl Direct {
        /// Claims physical memory.
        ///
        /// # Safety
        /// The one-to-one mapping is in place.
        pub const unsafe fn claim() -> Direct {
            Direct(())
        }

        /// Memory as a slice.
        ///
        /// # Safety
        /// All of it is memory, and nobody writes to it while the slice lives.
        pub unsafe fn bytes(&self, at: PhysAddr, len: usize) -> &'static [u8] {
            // SAFETY: module premise and this function's contract.
            unsafe { core::slice::from_raw_parts(at.0 as *const u8, len) }
        }

        /// Memory as a slice.
        ///
        /// # Safety
        /// All of it is memory, and nobody else refers to it while the slice lives.
        pub unsafe fn bytes_mut(&mut self, at: PhysAddr, len: usize) -> &'static mut [u8] {
            // SAFETY: module premise and this function's contract.
            unsafe { core::slice::from_raw_parts_mut(at.0 as *mut u8, len) }
        }

        /// Stores a value at an address that is aligned for it.
        pub fn place<T: Copy>(&mut self, at: PhysAddr, value: &T) {
            // SAFETY: module premise; callers pass the start of a frame of their own, and `T` is at most a page.
            unsafe { (at.0 as *mut T).write(*value) }
        }
    }

    impl Phys for Direct {
        fn read_u8(&self, at: PhysAddr) -> u8 {
            // SAFETY: module premise.
            unsafe { (at.0 as *const u8).read_volatile() }
        }
        fn write_u8(&mut self, at: PhysAddr, value: u8) {
            // SAFETY: module premise.
            unsafe { (at.0 as *mut u8).write_volatile(value) }
        }
        fn read_u16(&self, at: PhysAddr) -> u16 {
            // SAFETY: module premise.
            unsafe { (at.0 as *const u16).read_volatile() }
        }
        fn read_u32(&self, at: PhysAddr) -> u32 {
            // SAFETY: module premise.
            unsafe { (at.0 as *const u32).read_volatile() }
        }
        fn read_u64(&self, at: PhysAddr) -> u64 {
            // SAFETY: module premise.
            unsafe { (at.0 as *const u64).read_volatile() }
        }
        fn write_u16(&mut self, at: PhysAddr, value: u16) {
            // SAFETY: module premise.
            unsafe { (at.0 as *mut u16).write_volatile(value) }
        }
        fn write_u32(&mut self, at: PhysAddr, value: u32) {
            // SAFETY: module premise.
            unsafe { (at.0 as *mut u32).write_volatile(value) }
        }
        fn write_u64(&mut self, at: PhysAddr, value: u64) {
            // SAFETY: module premise.
            unsafe { (at.0 as *mut u64).write_volatile(value) }
        }
        fn read(&self, at: PhysAddr, out: &mut [u8]) {
            // SAFETY: module premise; `out` is the shim's own and disjoint.
            unsafe { core::ptr::copy_nonoverlapping(at.0 as *const u8, out.as_mut_ptr(), out.len()) }
        }
        fn write(&mut self, at: PhysAddr, data: &[u8]) {
            // SAFETY: module premise; `data` is the shim's own and disjoint.
            unsafe { core::ptr::copy_nonoverlapping(data.as_ptr(), at.0 as *mut u8, data.len()) }
        }
        fn copy(&mut self, from: PhysAddr, to: PhysAddr, len: usize) {
            // SAFETY: module premise for both ranges.
            unsafe { core::ptr::copy(from.0 as *const u8, to.0 as *mut u8, len) }
        }
        fn zero(&mut self, at: PhysAddr, len: usize) {
            // SAFETY: module premise.
            unsafe { core::ptr::write_bytes(at.0 as *mut u8, 0, len) }
        }
        fn fence(&self) {
            core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        }
    }
}

/// Memory for tests: a vector.
#[cfg(test)]
#[expect(missing_docs, reason = "tests only")]
pub struct Fake {
    pub base: u64,
    pub bytes: std::vec::Vec<u8>,
}

#[cfg(test)]
#[expect(missing_docs, reason = "tests only")]
impl Fake {
    pub fn new(base: u64, len: usize) -> Fake {
        // Not zero: nothing may rely on memory that it did not clear.
        Fake { base, bytes: std::vec![0xa5; len] }
    }
    fn at(&self, at: PhysAddr, len: usize) -> core::ops::Range<usize> {
        let start = (at.0 - self.base) as usize;
        assert!(start + len <= self.bytes.len(), "access outside of memory at {at:?}");
        start..start + len
    }
    fn get<const N: usize>(&self, at: PhysAddr) -> [u8; N] {
        self.bytes[self.at(at, N)].try_into().unwrap()
    }
}

#[cfg(test)]
impl Phys for Fake {
    fn read_u8(&self, at: PhysAddr) -> u8 {
        self.get::<1>(at)[0]
    }
    fn write_u8(&mut self, at: PhysAddr, value: u8) {
        self.write(at, &[value]);
    }
    fn read_u16(&self, at: PhysAddr) -> u16 {
        u16::from_le_bytes(self.get(at))
    }
    fn read_u32(&self, at: PhysAddr) -> u32 {
        u32::from_le_bytes(self.get(at))
    }
    fn read_u64(&self, at: PhysAddr) -> u64 {
        u64::from_le_bytes(self.get(at))
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
        out.copy_from_slice(&self.bytes[self.at(at, out.len())]);
    }
    fn write(&mut self, at: PhysAddr, data: &[u8]) {
        let range = self.at(at, data.len());
        self.bytes[range].copy_from_slice(data);
    }
    fn copy(&mut self, from: PhysAddr, to: PhysAddr, len: usize) {
        let (from, to) = (self.at(from, len), self.at(to, len));
        self.bytes.copy_within(from, to.start);
    }
    fn zero(&mut self, at: PhysAddr, len: usize) {
        let range = self.at(at, len);
        self.bytes[range].fill(0);
    }
    fn fence(&self) {}
}
