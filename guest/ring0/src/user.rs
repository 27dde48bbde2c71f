//! The guest's memory, as the gate reaches it: every pointer is an allegation until its page has been looked up.

use crate::phys::{Phys, PhysAddr};
use crate::space::{Access, Refused, Space};
use donjon_abi::PAGE;

/// Calls `f(space, physical, len)` for each piece of `[va, va + len)` that lies in one page, in order.
pub fn pieces<M: Phys>(
    space: &mut Space<M>,
    mut va: u64,
    mut len: u64,
    access: Access,
    mut f: impl FnMut(&mut Space<M>, PhysAddr, usize),
) -> Result<(), Refused> {
    while len > 0 {
        let n = (PAGE - (va & (PAGE - 1))).min(len);
        let at = space.touch(va, access)?;
        f(space, at, n as usize);
        va = va.checked_add(n).ok_or(Refused::Rights)?;
        len -= n;
    }
    Ok(())
}

/// Copies guest memory into `out`.
pub fn read<M: Phys>(space: &mut Space<M>, va: u64, out: &mut [u8]) -> Result<(), Refused> {
    let mut done = 0;
    pieces(space, va, out.len() as u64, Access::Read, |s, at, n| {
        if let Some(part) = out.get_mut(done..done + n) {
            s.mem.read(at, part);
        }
        done += n;
    })
}

/// Copies `data` into guest memory.
pub fn write<M: Phys>(space: &mut Space<M>, va: u64, data: &[u8]) -> Result<(), Refused> {
    let mut done = 0;
    pieces(space, va, data.len() as u64, Access::Write, |s, at, n| {
        if let Some(part) = data.get(done..done + n) {
            s.mem.write(at, part);
        }
        done += n;
    })
}

/// Reads a 64-bit word.
pub fn read_u64<M: Phys>(space: &mut Space<M>, va: u64) -> Result<u64, Refused> {
    let mut bytes = [0; 8];
    read(space, va, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::Frames;
    use crate::phys::Fake;
    use donjon_abi::Prot;

    const BASE: u64 = 0x7000_0000_0000;

    #[test]
    fn copies_cross_pages_and_stop_at_rights() {
        let mut mem = Fake::new(0, 64 << 12);
        mem.zero(PhysAddr(0), 4096);
        let mut frames = Frames::new();
        frames.add(0x1000, 64 << 12, &[]);
        let mut s = Space::new(mem, frames, PhysAddr(0));
        s.protect(BASE, 3 * PAGE, Prot::ReadWrite).unwrap();
        s.protect(BASE + 2 * PAGE, PAGE, Prot::Read).unwrap();
        let data: std::vec::Vec<u8> = (0..5000).map(|i| i as u8).collect();
        write(&mut s, BASE + 100, &data).unwrap();
        let mut back = std::vec![0; 5000];
        read(&mut s, BASE + 100, &mut back).unwrap();
        assert_eq!(data, back);
        assert_eq!(write(&mut s, BASE + 2 * PAGE - 1, &[1, 2]), Err(Refused::Rights));
        assert_eq!(read(&mut s, BASE + 3 * PAGE - 1, &mut [0; 2]), Err(Refused::Rights));
        assert_eq!(read(&mut s, u64::MAX, &mut [0; 2]), Err(Refused::Rights));
        assert_eq!(read(&mut s, (1 << 47) - 1, &mut [0; 2]), Err(Refused::Rights));
        assert_eq!(read(&mut s, u64::MAX, &mut []), Ok(()));
    }
}
