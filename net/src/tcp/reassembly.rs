//! Segments that arrived ahead of their turn.

use super::{le, lt};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Most pieces that are kept, whose places and gaps the peer chooses. Pieces side by side have more than half of `PIECE_MAX` each on average, so that without
/// gaps this is 8 MiB, more than a window.
const MAX: usize = 1024;
/// Neighbours become one up to this length, bytes.
const PIECE_MAX: usize = 16 << 10;
/// What a piece costs besides its data: itself, and what the allocator needs for it.
const OVERHEAD: u32 = 64;

struct Piece {
    seq: u32,
    /// Counts up, so that the piece that changed last is known (RFC 2018 §4: its block comes first).
    stamp: u32,
    data: Vec<u8>,
}

const _: () = assert!(size_of::<Piece>() <= OVERHEAD as usize / 2);

impl Piece {
    fn end(&self) -> u32 {
        self.seq.wrapping_add(self.data.len() as u32)
    }

    fn held(&self) -> u32 {
        self.data.capacity() as u32 + OVERHEAD
    }

    /// Appends data, so that the piece stays below `PIECE_MAX`; `None` without memory.
    fn append(&mut self, held: &mut u32, data: &[u8]) -> Option<()> {
        let (was, len) = (self.data.capacity(), self.data.len());
        if was - len < data.len() {
            let more = (2 * len).clamp(len + data.len(), PIECE_MAX) - len;
            self.data.try_reserve_exact(more).ok()?;
        }
        self.data.extend_from_slice(data);
        *held += (self.data.capacity() - was) as u32;
        Some(())
    }
}

/// Pieces beyond the next expected byte; sorted, not overlapping.
pub(crate) struct Reassembly {
    /// Boxed, since few connections have any.
    #[expect(clippy::box_collection, reason = "size of an idle connection")]
    pieces: Option<Box<VecDeque<Piece>>>,
    held: u32,
    stamp: u32,
}

impl Reassembly {
    pub const fn new() -> Reassembly {
        Reassembly { pieces: None, held: 0, stamp: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_none()
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
        let pieces = self.pieces.get_or_insert_default();
        let mut at = pieces.partition_point(|p| le(p.end(), seq));
        while !data.is_empty() {
            let (mut take, mut skip) = (data.len(), 0);
            if let Some(next) = pieces.get(at) {
                if le(next.seq, seq) {
                    // The start is there already.
                    skip = (next.end().wrapping_sub(seq) as usize).min(data.len());
                    take = 0;
                } else {
                    take = take.min(next.seq.wrapping_sub(seq) as usize);
                }
            }
            self.stamp = self.stamp.wrapping_add(1);
            if take > 0 {
                let part = data.get(..take).unwrap_or(&[]);
                // What follows may be part of that piece now, so it is looked at again.
                let Some(place) = keep(pieces, &mut self.held, at, seq, part, self.stamp) else { break };
                at = place;
            } else {
                if let Some(p) = pieces.get_mut(at) {
                    p.stamp = self.stamp;
                }
                at += 1;
            }
            seq = seq.wrapping_add((take + skip) as u32);
            data = data.get(take + skip..).unwrap_or(&[]);
        }
        if pieces.is_empty() {
            self.pieces = None;
        }
    }

    /// Takes the first piece if it begins at or before `next`; what is before `next` is to be skipped by the caller.
    pub fn pop(&mut self, next: u32) -> Option<(u32, Vec<u8>)> {
        let pieces = self.pieces.as_mut()?;
        if lt(next, pieces.front()?.seq) {
            return None;
        }
        let p = pieces.pop_front()?;
        self.held -= p.held();
        if pieces.is_empty() {
            self.pieces = None;
        }
        Some((p.seq, p.data))
    }

    /// Up to `out.len()` SACK blocks, the one that changed last first; returns how many.
    pub fn blocks(&self, out: &mut [(u32, u32)]) -> usize {
        let mut found: [(u32, u32, u32); 4] = [(0, 0, 0); 4];
        let want = out.len().min(4);
        let mut count = 0;
        let mut i = 0;
        let Some(pieces) = &self.pieces else { return 0 };
        while let Some(p) = pieces.get(i) {
            let (start, mut end, mut stamp) = (p.seq, p.end(), p.stamp);
            i += 1;
            while let Some(n) = pieces.get(i)
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

/// Keeps data of which nothing is there yet, before the piece at `at`: with its neighbours, or as a piece of its own. Returns the index of the piece that has it.
fn keep(pieces: &mut VecDeque<Piece>, held: &mut u32, at: usize, seq: u32, data: &[u8], stamp: u32) -> Option<usize> {
    let mut place = at;
    if let Some(before) = at.checked_sub(1).and_then(|i| pieces.get_mut(i))
        && before.end() == seq
        && before.data.len() + data.len() <= PIECE_MAX
    {
        before.append(held, data)?;
        before.stamp = stamp;
        place -= 1;
    } else {
        let mut own = Vec::new();
        if pieces.len() >= MAX || pieces.try_reserve(1).is_err() || own.try_reserve_exact(data.len()).is_err() {
            return None;
        }
        own.extend_from_slice(data);
        let p = Piece { seq, stamp, data: own };
        *held += p.held();
        pieces.insert(at, p);
    }
    // The next one joins it, or small pieces that come backwards would stay small.
    let (p, next) = (pieces.get(place)?, pieces.get(place + 1));
    if next.is_some_and(|n| n.seq == p.end() && p.data.len() + n.data.len() <= PIECE_MAX) {
        let next = pieces.remove(place + 1)?;
        *held -= next.held();
        // Without memory it is lost, and sent again (RFC 2018 §8).
        pieces.get_mut(place)?.append(held, &next.data);
    }
    Some(place)
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

    /// One byte at a time, in three orders, with and without gaps: few pieces, and what they take is known and bounded.
    #[test]
    fn small_pieces_do_not_pile_up() {
        const LEN: u32 = 100_000;
        // Forwards, backwards, first the even ones, and those alone.
        let orders: [(&dyn Fn(u32) -> u32, u32); 4] =
            [(&|i| i, LEN), (&|i| LEN - 1 - i, LEN), (&|i| i * 2 % (LEN + 1), LEN), (&|i| i * 2, LEN / 2)];
        for (n, (order, count)) in orders.into_iter().enumerate() {
            let mut r = Reassembly::new();
            for i in 0..count {
                r.insert(10 + order(i), &[order(i) as u8]);
                assert!(r.pieces.as_ref().unwrap().len() <= MAX);
            }
            let pieces = r.pieces.as_ref().unwrap();
            assert_eq!(r.held, pieces.iter().map(Piece::held).sum::<u32>());
            assert!(pieces.iter().all(|p| (0..p.data.len()).all(|i| p.data[i] == (p.seq - 10 + i as u32) as u8)));
            if n < 2 {
                assert!(pieces.len() <= 13 && r.held <= 2 * LEN, "{} {}", pieces.len(), r.held);
            } else {
                assert!(r.held <= 2 * LEN + MAX as u32 * (OVERHEAD + 8), "{}", r.held);
            }
            while r.pop(u32::MAX / 4).is_some() {}
            assert!(r.is_empty() && r.held() == 0);
        }
    }
}
