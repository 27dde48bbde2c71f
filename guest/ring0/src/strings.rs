//! Arguments and environment, as lists of NUL-terminated strings in read-only pages of the guest.

use crate::phys::{Phys, PhysAddr};
use crate::space::{Refused, Rights, Space};
use donjon_abi::PAGE;
use donjon_abi::boot::Range;
pub use donjon_abi::manifest::STRINGS_MAX;

/// Writes strings one after another; pages appear as they are needed.
pub struct Strings {
    base: u64,
    used: u64,
    list: u64,
    page: PhysAddr,
}

/// Why a string was not written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StringsError {
    /// More than [`STRINGS_MAX`].
    TooLong,
    /// No frame is left.
    NoMemory,
}

impl Strings {
    /// Writes from `base` on, where [`STRINGS_MAX`] bytes of address space are free.
    pub const fn new(base: u64) -> Strings {
        Strings { base, used: 0, list: 0, page: PhysAddr(0) }
    }

    /// Appends `parts`, joined, and a NUL.
    pub fn push<M: Phys>(&mut self, space: &mut Space<M>, parts: &[&[u8]]) -> Result<(), StringsError> {
        for byte in parts.iter().copied().flatten().chain(&[0]) {
            if self.used == STRINGS_MAX {
                return Err(StringsError::TooLong);
            }
            let offset = self.used % PAGE;
            if offset == 0 {
                let Space { mem, frames, .. } = space;
                self.page = frames.alloc(mem).ok_or(StringsError::NoMemory)?;
                let mapped = space.map(self.base + self.used, self.page, Rights::Read);
                mapped.map_err(|_: Refused| StringsError::NoMemory)?;
            }
            space.mem.write(self.page.add(offset), &[*byte]);
            self.used += 1;
        }
        Ok(())
    }

    /// Ends a list: the strings since the last end.
    pub fn end(&mut self) -> Range {
        let range = Range { base: self.base + self.list, len: self.used - self.list };
        self.list = self.used;
        range
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::Frames;
    use crate::phys::Fake;

    const BASE: u64 = 0x7000_0000_0000;

    #[test]
    fn lists_cross_pages_and_end_at_the_limit() {
        let mut mem = Fake::new(0, 64 << 12);
        mem.zero(PhysAddr(0), 4096);
        let mut frames = Frames::new();
        frames.add(0x1000, 64 << 12, &[]);
        let mut space = Space::new(mem, frames, PhysAddr(0));
        let mut s = Strings::new(BASE);
        let long = [b'x'; 5000];
        s.push(&mut space, &[b"name"]).unwrap();
        s.push(&mut space, &[b"A=", &long]).unwrap();
        assert_eq!(s.end(), Range { base: BASE, len: 5 + 5003 });
        s.push(&mut space, &[]).unwrap();
        assert_eq!(s.end(), Range { base: BASE + 5008, len: 1 });
        let mut got = [0; 8];
        crate::user::read(&mut space, BASE + 3, &mut got).unwrap();
        assert_eq!(&got, b"e\0A=xxxx");
        let all = [b'y'; STRINGS_MAX as usize];
        assert_eq!(s.push(&mut space, &[&all]), Err(StringsError::TooLong));
    }
}
