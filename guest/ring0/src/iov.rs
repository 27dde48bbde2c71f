//! A frame in the guest's memory: the list of its pieces.

use crate::nic::Failure;
use crate::phys::{Phys, PhysAddr};
use crate::space::{Access, Refused, Space};
use crate::user;
use donjon_abi::{FRAME_IOV_MAX, IoVec};

/// The pieces of a guest's frame, read once, and how far they have been used.
pub struct Iov {
    pieces: [IoVec; FRAME_IOV_MAX as usize],
    count: usize,
    /// Length of all pieces, bytes.
    pub total: u64,
    at: usize,
    offset: u64,
}

impl Iov {
    /// Reads the `donjon_abi::Frame` at `frame` and its vectors.
    pub fn read<M: Phys>(space: &mut Space<M>, frame: u64) -> Result<Iov, Failure> {
        let mut head = [0; 12];
        user::read(space, frame, &mut head)?;
        let ([a, b, c, d, e, f, g, h], [i, j, k, l]) =
            (*head.first_chunk().ok_or(Failure::Invalid)?, *head.last_chunk().ok_or(Failure::Invalid)?);
        let (array, count) = (u64::from_le_bytes([a, b, c, d, e, f, g, h]), u32::from_le_bytes([i, j, k, l]));
        if count == 0 || count > FRAME_IOV_MAX {
            return Err(Failure::Invalid);
        }
        let mut bytes = [0; 16 * FRAME_IOV_MAX as usize];
        let bytes = bytes.get_mut(..count as usize * 16).ok_or(Failure::Invalid)?;
        user::read(space, array, bytes)?;
        let mut iov = Iov {
            pieces: [IoVec::default(); FRAME_IOV_MAX as usize],
            count: count as usize,
            total: 0,
            at: 0,
            offset: 0,
        };
        for (piece, bytes) in iov.pieces.iter_mut().zip(bytes.chunks_exact(16)) {
            let word = |at| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
            *piece = IoVec { base: word(0), len: word(8) };
            iov.total = iov.total.saturating_add(piece.len);
        }
        Ok(iov)
    }

    /// Length of the first piece, bytes.
    pub const fn first(&self) -> u64 {
        self.pieces[0].len
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
            let piece = self.pieces.get(..self.count).and_then(|p| p.get(self.at)).ok_or(Refused::Rights)?;
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
