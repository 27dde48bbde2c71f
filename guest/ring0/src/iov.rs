//! A frame in the guest's memory: the list of its pieces.

use crate::nic::Failure;
use crate::phys::{Phys, PhysAddr};
use crate::space::{Access, Refused, Space};
use crate::user;
use donjon_abi::{FRAME_IOV_MAX, IoVec};

/// The pieces of a guest's frame, read once, and how far they have been used.
pub struct Iov {
    /// As in memory: address, then length.
    pieces: [[u8; 16]; FRAME_IOV_MAX as usize],
    count: usize,
    /// Length of all pieces, bytes.
    pub total: u64,
    at: usize,
    offset: u64,
}

impl Iov {
    /// No pieces. It is 1 KB: made once, and filled anew for each frame.
    pub const EMPTY: Iov = Iov { pieces: [[0; 16]; FRAME_IOV_MAX as usize], count: 0, total: 0, at: 0, offset: 0 };

    /// Reads the `donjon_abi::Frame` at `frame` and its vectors.
    pub fn read<M: Phys>(&mut self, space: &mut Space<M>, frame: u64) -> Result<(), Failure> {
        (self.count, self.at, self.offset) = (0, 0, 0);
        let mut head = [0; 16];
        user::read(space, frame, &mut head)?;
        let head = u128::from_le_bytes(head);
        let (array, count) = (head as u64, (head >> 64) as u32);
        let pieces = self.pieces.get_mut(..count as usize).filter(|p| !p.is_empty()).ok_or(Failure::Invalid)?;
        user::read(space, array, pieces.as_flattened_mut())?;
        self.count = count as usize;
        self.total = (0..self.count).filter_map(|i| self.piece(i)).fold(0, |sum, p| p.len.saturating_add(sum));
        Ok(())
    }

    /// Length of the first piece, bytes.
    pub fn first(&self) -> u64 {
        self.piece(0).map_or(0, |p| p.len)
    }

    fn piece(&self, index: usize) -> Option<IoVec> {
        let bytes = self.pieces.get(..self.count)?.get(index)?;
        let words = u128::from_le_bytes(*bytes);
        Some(IoVec { base: words as u64, len: (words >> 64) as u64 })
    }

    /// Copies the next `len` bytes between the guest's pieces and `own` memory: [`Access::Read`] reads the guest's.
    pub fn copy<M: Phys>(
        &mut self,
        space: &mut Space<M>,
        own: PhysAddr,
        len: u32,
        access: Access,
    ) -> Result<(), Refused> {
        let mut done = 0;
        let len = u64::from(len);
        while done < len {
            let piece = self.piece(self.at).ok_or(Refused::Rights)?;
            let n = (piece.len - self.offset).min(len - done);
            let start = piece.base.checked_add(self.offset).ok_or(Refused::Rights)?;
            user::pieces(space, start, n, access, |s, at, n| {
                match access {
                    Access::Read => s.mem.copy(at, own.add(done), n),
                    Access::Write => s.mem.copy(own.add(done), at, n),
                }
                done += n as u64;
            })?;
            self.offset += n;
            if self.offset == piece.len {
                self.at += 1;
                self.offset = 0;
            }
        }
        Ok(())
    }
}
