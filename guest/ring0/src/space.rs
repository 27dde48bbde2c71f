//! The address space: page tables and the rights of every page.
//!
//! Four levels of 512 entries. An entry that is not present may still say something (bits that the CPU ignores then):
//! the rights that the page will have when it is first touched, or a frame that is kept while its page has no rights.
//! Such an entry may stand at an upper level for all that lies below it, so that giving rights to a gigabyte costs nothing.

use crate::frames::Frames;
use crate::phys::{Phys, PhysAddr};
use donjon_abi::{PAGE, Prot};

/// Entry bits (Intel SDM vol. 3 §4.5).
pub mod bits {
    /// Present.
    pub const P: u64 = 1;
    /// Writable.
    pub const W: u64 = 1 << 1;
    /// Ring 3 may use it.
    pub const U: u64 = 1 << 2;
    /// Not cached (PWT and PCD).
    pub const UNCACHED: u64 = 3 << 3;
    /// Accessed and dirty, set beforehand to spare the CPU the store.
    pub const AD: u64 = 3 << 5;
    /// A large page (levels 1 and 2).
    pub const LARGE: u64 = 1 << 7;
    /// Survives a reload of CR3.
    pub const GLOBAL: u64 = 1 << 8;
    /// Software, not present: readable at first touch.
    pub const LAZY_R: u64 = 1 << 9;
    /// Software, not present: readable and writable at first touch.
    pub const LAZY_RW: u64 = 1 << 10;
    /// Software: the frame belongs to this page and is freed with it.
    pub const OWNED: u64 = 1 << 11;
    /// Not executable.
    pub const NX: u64 = 1 << 63;
    /// The frame's address.
    pub const ADDR: u64 = 0x000f_ffff_ffff_f000;
}
use bits::{AD, ADDR, GLOBAL, LARGE, LAZY_R, LAZY_RW, NX, OWNED, P, U, UNCACHED, W};

/// Why an access or a change was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The page has no such rights, or is not the guest's.
    Rights,
    /// No frame is left.
    NoMemory,
}

/// What an access wants to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Load.
    Read,
    /// Store.
    Write,
}

/// Rights of a page that is mapped at boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rights {
    /// Ring 3 may read.
    Read,
    /// Ring 3 may read and write.
    ReadWrite,
    /// Ring 3 may read and execute.
    ReadExecute,
}

impl Rights {
    const fn entry(self) -> u64 {
        match self {
            Rights::Read => P | U | AD | NX,
            Rights::ReadWrite => P | U | AD | NX | W,
            Rights::ReadExecute => P | U | AD,
        }
    }
}

/// What to do to a range of the guest's memory.
#[derive(Clone, Copy)]
enum Change {
    Protect(Prot),
    Discard,
}

/// What the TLB must forget after a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Flush {
    /// Nothing.
    #[default]
    None,
    /// The pages of the range that was changed.
    Range,
}

/// Physical memory, its free frames, and the page tables in it.
pub struct Space<M> {
    /// Memory.
    pub mem: M,
    /// Free frames.
    pub frames: Frames,
    root: PhysAddr,
    zapped: Flush,
    /// What [`Space::touch`] found last: by the low bits of the page's number, the page's address (and [`STORE`]), and its frame.
    found: [(u64, PhysAddr); FOUND],
}

/// Pages whose frames are remembered: a call of the gate touches a handful, again and again.
const FOUND: usize = 32;
/// In the place of an address: nothing is remembered.
const NONE: (u64, PhysAddr) = (u64::MAX, PhysAddr(0));
/// The page may be stored to.
const STORE: u64 = 1;

const fn span(level: u32) -> u64 {
    PAGE << (9 * level)
}

const fn index(va: u64, level: u32) -> u64 {
    va >> (12 + 9 * level) & 511
}

impl<M: Phys> Space<M> {
    /// Works on the tables below `root`.
    pub const fn new(mem: M, frames: Frames, root: PhysAddr) -> Self {
        Space { mem, frames, root, zapped: Flush::None, found: [NONE; FOUND] }
    }

    /// Maps one page of the guest to a frame that stays its own for ever (the image's, or one from `frames`).
    pub fn map(&mut self, va: u64, frame: PhysAddr, rights: Rights) -> Result<(), Refused> {
        self.found = [NONE; FOUND];
        let at = self.leaf(va, P | W | U)?;
        self.mem.write_u64(at, frame.0 & ADDR | rights.entry());
        Ok(())
    }

    /// Maps `[start, start + len)` of physical memory at its own address for the shim alone, in large pages that are not executable.
    /// What is mapped already stays as it is.
    pub fn map_shim(&mut self, start: PhysAddr, len: u64, device: Device) -> Result<(), Refused> {
        let end = start.0.checked_add(len).filter(|e| *e < 1 << 46).ok_or(Refused::Rights)?;
        let flags = P | W | AD | LARGE | GLOBAL | NX | if device == Device::Yes { UNCACHED } else { 0 };
        let mut at = start.0 & !(span(1) - 1);
        while at < end {
            let mut table = self.root;
            for level in [3, 2] {
                table = self.below(table, at, level, P | W)?;
            }
            let entry = table.add(index(at, 1) * 8);
            if self.mem.read_u64(entry) & P == 0 {
                self.mem.write_u64(entry, at | flags);
            }
            at += span(1);
        }
        Ok(())
    }

    /// Takes the shim's own right to write to whole pages of memory that [`Self::map_shim`] or `boot.s` mapped: no frame is
    /// writable under one address and executable or constant under another.
    pub fn seal_shim(&mut self, start: PhysAddr, len: u64) -> Result<(), Refused> {
        for page in (start.0..start.0 + len).step_by(PAGE as usize) {
            let mut table = self.root;
            for level in (1..4).rev() {
                let at = table.add(index(page, level) * 8);
                let entry = self.mem.read_u64(at);
                if entry & P == 0 {
                    return Ok(());
                }
                if entry & LARGE == 0 {
                    table = PhysAddr(entry & ADDR);
                    continue;
                }
                if level > 1 {
                    // Not made by this module.
                    return Err(Refused::Rights);
                }
                table = self.frames.alloc(&mut self.mem).ok_or(Refused::NoMemory)?;
                let first = entry & ADDR;
                for i in 0..512 {
                    self.mem.write_u64(table.add(i * 8), (first + i * PAGE) | entry & !(ADDR | LARGE));
                }
                self.mem.write_u64(at, table.0 | P | W | AD);
            }
            let at = table.add(index(page, 0) * 8);
            let entry = self.mem.read_u64(at);
            self.mem.write_u64(at, entry & !W);
        }
        Ok(())
    }

    /// Sets the rights of whole pages. On [`Refused::NoMemory`] a part of the range may have been changed.
    pub fn protect(&mut self, va: u64, len: u64, prot: Prot) -> Result<Flush, Refused> {
        self.change(va, len, Change::Protect(prot))
    }

    /// Frees the frames of whole pages; their rights stay.
    pub fn discard(&mut self, va: u64, len: u64) -> Result<Flush, Refused> {
        self.change(va, len, Change::Discard)
    }

    /// The frame and offset behind a guest address, after making the page present if its rights allow the access.
    #[inline]
    pub fn touch(&mut self, va: u64, access: Access) -> Result<PhysAddr, Refused> {
        let wanted = va & !(PAGE - 1) | if access == Access::Write { STORE } else { 0 };
        let slot = (va / PAGE) as usize % FOUND;
        if let Some((known, frame)) = self.found.get(slot)
            && (*known == wanted || *known == wanted | STORE)
        {
            return Ok(frame.add(va & (PAGE - 1)));
        }
        let at = self.look_up(va, access)?;
        if let Some(found) = self.found.get_mut(slot) {
            *found = (wanted, PhysAddr(at.0 & !(PAGE - 1)));
        }
        Ok(at)
    }

    #[inline(never)]
    fn look_up(&mut self, va: u64, access: Access) -> Result<PhysAddr, Refused> {
        if va >= 1 << 47 {
            return Err(Refused::Rights);
        }
        let mut table = self.root;
        for level in (0..4).rev() {
            let at = table.add(index(va, level) * 8);
            let entry = self.mem.read_u64(at);
            if entry & P != 0 {
                if entry & U == 0 || entry & LARGE != 0 && level > 0 {
                    return Err(Refused::Rights);
                }
                if level > 0 {
                    table = PhysAddr(entry & ADDR);
                    continue;
                }
                return match access {
                    Access::Write if entry & W == 0 => Err(Refused::Rights),
                    _ => Ok(PhysAddr(entry & ADDR | va & (PAGE - 1))),
                };
            }
            let allowed = match access {
                Access::Read => LAZY_R | LAZY_RW,
                Access::Write => LAZY_RW,
            };
            if entry & allowed == 0 {
                return Err(Refused::Rights);
            }
            if level > 0 {
                table = self.split(at, entry)?;
                continue;
            }
            let frame = self.frames.alloc(&mut self.mem).ok_or(Refused::NoMemory)?;
            self.mem.write_u64(at, frame.0 | lazy_to_present(entry));
            return Ok(frame.add(va & (PAGE - 1)));
        }
        Err(Refused::Rights)
    }

    fn change(&mut self, va: u64, len: u64, change: Change) -> Result<Flush, Refused> {
        let end = va.checked_add(len).filter(|e| *e <= 1 << 47).ok_or(Refused::Rights)?;
        self.zapped = Flush::None;
        self.found = [NONE; FOUND];
        self.walk(self.root, 3, va, end, change)?;
        Ok(self.zapped)
    }

    /// Applies `change` to `[va, end)`, all of which lies below `table`.
    fn walk(&mut self, table: PhysAddr, level: u32, mut va: u64, end: u64, change: Change) -> Result<(), Refused> {
        while va < end {
            let at = table.add(index(va, level) * 8);
            let start = va & !(span(level) - 1);
            let next = (start + span(level)).min(end);
            let whole = va == start && next == start + span(level);
            let entry = self.mem.read_u64(at);
            if level == 0 {
                self.change_page(at, entry, change);
            } else if entry & P != 0 {
                let below = PhysAddr(entry & ADDR);
                self.walk(below, level - 1, va, next, change)?;
                if whole {
                    self.collapse(at, below);
                }
            } else {
                let changed = match change {
                    Change::Protect(prot) => lazy(prot),
                    Change::Discard => entry,
                };
                if changed != entry {
                    if whole && level < 3 {
                        self.mem.write_u64(at, changed);
                    } else {
                        let below = self.split(at, entry)?;
                        self.walk(below, level - 1, va, next, change)?;
                    }
                }
            }
            va = next;
        }
        Ok(())
    }

    fn change_page(&mut self, at: PhysAddr, entry: u64, change: Change) {
        let new = match change {
            Change::Protect(prot) if entry & OWNED != 0 => match prot {
                // The content outlives a time without rights, as with mprotect.
                Prot::None => entry & ADDR | OWNED,
                Prot::Read => entry & ADDR | OWNED | Rights::Read.entry(),
                Prot::ReadWrite => entry & ADDR | OWNED | Rights::ReadWrite.entry(),
            },
            Change::Protect(prot) => lazy(prot),
            Change::Discard if entry & OWNED != 0 => {
                self.frames.release(&mut self.mem, PhysAddr(entry & ADDR));
                match (entry & P != 0, entry & W != 0) {
                    (false, _) => 0,
                    (true, false) => LAZY_R,
                    (true, true) => LAZY_RW,
                }
            }
            Change::Discard => entry,
        };
        if new != entry {
            if entry & P != 0 {
                self.zapped = Flush::Range;
            }
            self.mem.write_u64(at, new);
        }
    }

    /// Frees the table `below` if its entries are all the same and none of them refers to anything.
    fn collapse(&mut self, at: PhysAddr, below: PhysAddr) {
        let first = self.mem.read_u64(below);
        if first & (P | OWNED) == 0 && (1..512).all(|i| self.mem.read_u64(below.add(i * 8)) == first) {
            self.mem.write_u64(at, first);
            self.frames.release(&mut self.mem, below);
            // The CPU may have cached the upper-level entry.
            self.zapped = Flush::Range;
        }
    }

    /// Puts a table in place of an entry that stood for all that lies below it.
    fn split(&mut self, at: PhysAddr, entry: u64) -> Result<PhysAddr, Refused> {
        let table = self.frames.alloc(&mut self.mem).ok_or(Refused::NoMemory)?;
        if entry != 0 {
            for i in 0..512 {
                self.mem.write_u64(table.add(i * 8), entry);
            }
        }
        self.mem.write_u64(at, table.0 | P | W | U | AD);
        Ok(table)
    }

    /// The table below `table` on the way to `va`, made if there is none.
    fn below(&mut self, table: PhysAddr, va: u64, level: u32, flags: u64) -> Result<PhysAddr, Refused> {
        let at = table.add(index(va, level) * 8);
        let entry = self.mem.read_u64(at);
        if entry & P == 0 {
            let below = self.frames.alloc(&mut self.mem).ok_or(Refused::NoMemory)?;
            self.mem.write_u64(at, below.0 | flags | AD);
            return Ok(below);
        }
        if entry & LARGE != 0 || entry & flags & U != flags & U {
            return Err(Refused::Rights);
        }
        Ok(PhysAddr(entry & ADDR))
    }

    /// Whether the shim's own mapping of a page is writable.
    #[cfg(test)]
    pub fn shim_may_write(&self, at: PhysAddr) -> bool {
        let mut table = self.root;
        for level in (0..4).rev() {
            let entry = self.mem.read_u64(table.add(index(at.0, level) * 8));
            if entry & P == 0 || level == 0 || entry & LARGE != 0 {
                return entry & (P | W) == P | W;
            }
            table = PhysAddr(entry & ADDR);
        }
        false
    }

    fn leaf(&mut self, va: u64, flags: u64) -> Result<PhysAddr, Refused> {
        let mut table = self.root;
        for level in [3, 2, 1] {
            table = self.below(table, va, level, flags)?;
        }
        Ok(table.add(index(va, 0) * 8))
    }
}

/// Whether a range is a device's registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// Registers: not cached.
    Yes,
    /// Memory.
    No,
}

const fn lazy(prot: Prot) -> u64 {
    match prot {
        Prot::None => 0,
        Prot::Read => LAZY_R,
        Prot::ReadWrite => LAZY_RW,
    }
}

const fn lazy_to_present(entry: u64) -> u64 {
    OWNED | if entry & LAZY_RW != 0 { Rights::ReadWrite.entry() } else { Rights::Read.entry() }
}

#[cfg(test)]
#[path = "space_tests.rs"]
mod tests;
