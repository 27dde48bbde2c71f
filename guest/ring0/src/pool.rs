//! The network device's buffers, which get memory when they are first used.

use crate::phys::{Phys, PhysAddr};
use crate::space::Space;
use crate::virtq::SIZE_MAX;
use donjon_abi::PAGE;

/// Buffers, one for each descriptor of a queue.
pub struct Pool {
    /// 0: none yet.
    pages: [PhysAddr; SIZE_MAX as usize],
    /// Size of each.
    pub each: Each,
}

/// How large a buffer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Each {
    /// 4096 bytes.
    Page,
    /// 2048 bytes.
    HalfPage,
}

impl Each {
    /// Power of two of the bytes.
    pub const fn shift(self) -> u32 {
        match self {
            Each::Page => 12,
            Each::HalfPage => 11,
        }
    }

    /// Bytes.
    pub const fn size(self) -> u32 {
        1 << self.shift()
    }
}

impl Pool {
    /// No buffer has memory yet.
    pub const fn new(each: Each) -> Pool {
        Pool { pages: [PhysAddr(0); SIZE_MAX as usize], each }
    }

    /// Number of the page and offset in it.
    const fn place(&self, index: u16) -> (usize, u64) {
        let offset = (index as u64) << self.each.shift();
        ((offset / PAGE) as usize, offset % PAGE)
    }

    /// The buffer's memory; it has some since [`Self::back`].
    pub fn at(&self, index: u16) -> PhysAddr {
        let (page, offset) = self.place(index);
        self.pages.get(page).copied().unwrap_or_default().add(offset)
    }

    /// Gives the buffer memory if it has none.
    pub fn back<M: Phys>(&mut self, space: &mut Space<M>, index: u16) -> Option<PhysAddr> {
        let (number, _) = self.place(index);
        let page = self.pages.get_mut(number)?;
        if *page == PhysAddr(0) {
            *page = space.frames.alloc(&mut space.mem)?;
        }
        Some(self.at(index))
    }
}
