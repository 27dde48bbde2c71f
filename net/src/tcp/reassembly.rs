//! Segments that arrived ahead of their turn.

use super::{le, lt};
use alloc::vec::Vec;

/// Most pieces that are kept.
const MAX: usize = 256;

struct Piece {
    seq: u32,
    data: Vec<u8>,
    /// Counts up, so that the piece that changed last is known (RFC 2018 §4: its block comes first).
    stamp: u32,
}

impl Piece {
    fn end(&self) -> u32 {
        self.seq.wrapping_add(self.data.len() as u32)
    }
}

/// Pieces beyond the next expected byte; sorted, not overlapping.
pub(crate) struct Reassembly {
    pieces: Vec<Piece>,
    held: u32,
    stamp: u32,
}

impl Reassembly {
    pub const fn new() -> Reassembly {
        Reassembly { pieces: Vec::new(), held: 0, stamp: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes of memory in use.
    pub fn held(&self) -> usize {
        self.held as usize
    }

    pub fn clear(&mut self) {
        *self = Reassembly::new();
    }

    /// Keeps what is new of a piece, if there is room.
    pub fn insert(&mut self, mut seq: u32, mut data: &[u8]) {
        let mut at = self.pieces.partition_point(|p| le(p.end(), seq));
        while !data.is_empty() {
            let (mut take, mut skip) = (data.len(), 0);
            if let Some(next) = self.pieces.get(at) {
                if le(next.seq, seq) {
                    // The start is there already.
                    skip = (next.end().wrapping_sub(seq) as usize).min(data.len());
                    take = 0;
                } else {
                    take = take.min(next.seq.wrapping_sub(seq) as usize);
                }
            }
            self.stamp = self.stamp.wrapping_add(1);
            if take > 0 && !self.keep(at, seq, data.get(..take).unwrap_or(&[])) {
                return;
            }
            if take == 0
                && let Some(p) = self.pieces.get_mut(at)
            {
                p.stamp = self.stamp;
            }
            at += 1;
            seq = seq.wrapping_add((take + skip) as u32);
            data = data.get(take + skip..).unwrap_or(&[]);
        }
    }

    fn keep(&mut self, at: usize, seq: u32, data: &[u8]) -> bool {
        let mut own = Vec::new();
        if self.pieces.len() >= MAX || self.pieces.try_reserve(1).is_err() || own.try_reserve_exact(data.len()).is_err()
        {
            return false;
        }
        own.extend_from_slice(data);
        self.held += own.capacity() as u32;
        self.pieces.insert(at, Piece { seq, data: own, stamp: self.stamp });
        true
    }

    /// Takes the first piece if it begins at or before `next`; what is before `next` is to be skipped by the caller.
    pub fn pop(&mut self, next: u32) -> Option<(u32, Vec<u8>)> {
        if lt(next, self.pieces.first()?.seq) {
            return None;
        }
        let p = self.pieces.remove(0);
        self.held -= p.data.capacity() as u32;
        if self.pieces.is_empty() {
            self.pieces = Vec::new();
        }
        Some((p.seq, p.data))
    }

    /// Up to `out.len()` SACK blocks, the one that changed last first; returns how many.
    pub fn blocks(&self, out: &mut [(u32, u32)]) -> usize {
        let mut found: [(u32, u32, u32); 4] = [(0, 0, 0); 4];
        let want = out.len().min(4);
        let mut count = 0;
        let mut i = 0;
        while let Some(p) = self.pieces.get(i) {
            let (start, mut end, mut stamp) = (p.seq, p.end(), p.stamp);
            i += 1;
            while let Some(n) = self.pieces.get(i)
                && n.seq == end
            {
                end = n.end();
                stamp = stamp.max(n.stamp);
                i += 1;
            }
            // Insertion sort into the few that are reported.
            let place = found[..count].iter().position(|f| stamp > f.0).unwrap_or(count);
            if place < want {
                count = (count + 1).min(want);
                found[place..count].rotate_right(1);
                found[place] = (stamp, start, end);
            }
        }
        for (o, f) in out.iter_mut().zip(&found[..count]) {
            *o = (f.1, f.2);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_shuffled_and_overlapping_pieces_in_order() {
        let data: Vec<u8> = (0..3000u32).map(|i| ((i * 7) >> 2) as u8).collect();
        let base = u32::MAX - 1000;
        let mut x = 5u64;
        let mut r = Reassembly::new();
        let mut next = 0usize;
        for _ in 0..100_000 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let from = next + (x >> 33) as usize % 400;
            let to = (from + (x >> 50) as usize % 120).min(data.len());
            if from >= to {
                continue;
            }
            r.insert(base.wrapping_add(from as u32), &data[from..to]);
            let mut blocks = [(0, 0); 3];
            let n = r.blocks(&mut blocks);
            let first = blocks[0];
            assert!(n > 0 && le(first.0, base.wrapping_add(from as u32)) && le(base.wrapping_add(to as u32), first.1));
            if x.is_multiple_of(7) {
                while let Some((seq, piece)) = r.pop(base.wrapping_add(next as u32)) {
                    let skip = base.wrapping_add(next as u32).wrapping_sub(seq) as usize;
                    let piece = &piece[skip.min(piece.len())..];
                    assert_eq!(piece, &data[next..next + piece.len()]);
                    next += piece.len();
                }
            }
            if next == data.len() {
                break;
            }
        }
        assert_eq!(next, data.len());
        assert!(r.is_empty() && r.held() == 0);
    }
}
