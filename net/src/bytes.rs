//! The byte queue behind every socket: a list of chunks that exist only while they hold data. A chunk is memory of its own, or a place in
//! memory that lasts, to which the queue only refers.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Largest chunk that is allocated, bytes.
const CHUNK_MAX: usize = 64 << 10;
/// Largest chunk that is allocated in the hope that more data follows.
const AHEAD_MAX: usize = 16 << 10;
/// Smallest chunk that is taken as it is, bytes.
const OWNED_MIN: usize = 2048;

enum Chunk {
    Owned(Vec<u8>),
    Lasting(&'static [u8]),
}

// As small as its larger half: an idle connection has two.
const _: () = assert!(size_of::<Chunk>() == size_of::<Vec<u8>>());

impl Chunk {
    const NONE: Chunk = Chunk::Owned(Vec::new());

    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Owned(v) => v,
            Chunk::Lasting(s) => s,
        }
    }

    /// Bytes allocated.
    fn held(&self) -> u32 {
        match self {
            Chunk::Owned(v) => v.capacity() as u32,
            Chunk::Lasting(_) => 0,
        }
    }

    /// Room behind the bytes.
    fn room(&mut self) -> Option<(&mut Vec<u8>, usize)> {
        match self {
            Chunk::Owned(v) => Some(v.capacity() - v.len()).filter(|n| *n > 0).map(|n| (v, n)),
            Chunk::Lasting(_) => None,
        }
    }
}

/// A queue of bytes. The first chunk stands apart so that a queue of one chunk needs one allocation.
pub(crate) struct ByteQueue {
    first: Chunk,
    /// Boxed, since an idle connection has none, and there are many idle connections.
    #[expect(clippy::box_collection, reason = "size of an idle connection")]
    rest: Option<Box<VecDeque<Chunk>>>,
    /// Bytes of `first` that are gone.
    head: u32,
    len: u32,
    /// Bytes allocated.
    held: u32,
    /// Where [`ByteQueue::slices`] last stopped: index of a chunk, and offset in the queue of its first byte.
    cursor: (u32, u32),
}

impl ByteQueue {
    pub const fn new() -> ByteQueue {
        ByteQueue { first: Chunk::NONE, rest: None, head: 0, len: 0, held: 0, cursor: (0, 0) }
    }

    /// Bytes in the queue.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory in use.
    pub fn held(&self) -> usize {
        self.held as usize
    }

    /// Appends; returns how many bytes were taken, fewer only if there is no memory.
    pub fn push(&mut self, data: &[u8]) -> usize {
        let mut rest = data;
        let tail = self.rest.as_mut().and_then(|r| r.back_mut()).unwrap_or(&mut self.first);
        let growing = matches!(tail, Chunk::Owned(_));
        if let Some((tail, room)) = tail.room() {
            let (now, later) = rest.split_at(room.min(rest.len()));
            tail.extend_from_slice(now);
            rest = later;
        }
        while !rest.is_empty() {
            let want = rest.len().min(CHUNK_MAX);
            // Alone, a chunk is exact; behind others it grows with them, so that many small pieces end in few chunks. But not behind what lasts: there it
            // may be a head, and what lasts comes again.
            let queued = self.len() + (data.len() - rest.len());
            let capacity = match queued {
                0 => want,
                _ if growing => want.max(self.held().clamp(512, AHEAD_MAX)),
                _ => want.max(512),
            };
            let mut chunk = Vec::new();
            let mut now = rest.get(..want).unwrap_or(rest);
            if chunk.try_reserve_exact(capacity).is_err() {
                // Memory is short or in small pieces.
                now = now.get(..512).unwrap_or(now);
                if chunk.try_reserve_exact(now.len()).is_err() {
                    break;
                }
            }
            chunk.extend_from_slice(now);
            let taken = now.len();
            if !self.append(Chunk::Owned(chunk)) {
                break;
            }
            rest = rest.get(taken..).unwrap_or(&[]);
        }
        let taken = data.len() - rest.len();
        self.len += taken as u32;
        taken
    }

    fn append(&mut self, chunk: Chunk) -> bool {
        let held = chunk.held();
        if self.first.bytes().is_empty() {
            self.first = chunk;
        } else {
            let rest = self.rest.get_or_insert_default();
            if rest.try_reserve(1).is_err() {
                return false;
            }
            rest.push_back(chunk);
        }
        self.held += held;
        true
    }

    /// Appends a buffer without copying it, unless it is small: a peer that sends single bytes out of order could have a chunk for each. Returns how many bytes
    /// were taken, fewer only if there is no memory.
    pub fn push_owned(&mut self, chunk: Vec<u8>) -> usize {
        let len = chunk.len();
        if len < OWNED_MIN {
            return self.push(&chunk);
        }
        if !self.append(Chunk::Owned(chunk)) {
            return 0;
        }
        self.len += len as u32;
        len
    }

    /// Appends memory that lasts, without copying it; returns how many bytes were taken: all, or none if there is no memory for the reference.
    pub fn push_lasting(&mut self, data: &'static [u8]) -> usize {
        if data.is_empty() || !self.append(Chunk::Lasting(data)) {
            return 0;
        }
        self.len += data.len() as u32;
        data.len()
    }

    /// Drops the first `n` bytes (or all).
    pub fn consume(&mut self, n: usize) {
        let mut n = n.min(self.len());
        let gone = n as u32;
        self.len -= gone;
        self.cursor = if self.cursor.1 >= gone { (self.cursor.0, self.cursor.1 - gone) } else { (0, 0) };
        if self.len == 0 {
            self.first = Chunk::NONE;
            self.rest = None;
            (self.head, self.held, self.cursor) = (0, 0, (0, 0));
            return;
        }
        while n > 0 {
            let there = self.first.bytes().len() - self.head as usize;
            if n < there {
                self.head += n as u32;
                return;
            }
            n -= there;
            self.held -= self.first.held();
            self.first = self.rest.as_mut().and_then(|r| r.pop_front()).unwrap_or(Chunk::NONE);
            self.head = 0;
            self.cursor.0 = self.cursor.0.saturating_sub(1);
            if self.cursor.0 == 0 {
                self.cursor.1 = 0;
            }
        }
    }

    fn chunk(&self, index: usize) -> &[u8] {
        if index == 0 {
            self.first.bytes().get(self.head as usize..).unwrap_or(&[])
        } else {
            self.rest.as_ref().and_then(|r| r.get(index - 1)).map_or(&[], Chunk::bytes)
        }
    }

    /// Copies from the front without taking; returns how many bytes.
    pub fn peek(&self, buffers: &mut [&mut [u8]]) -> usize {
        let (mut index, mut source) = (0, self.chunk(0));
        let mut copied = 0;
        for buffer in buffers.iter_mut() {
            let mut target = &mut **buffer;
            while !target.is_empty() {
                if source.is_empty() {
                    index += 1;
                    source = self.chunk(index);
                    if source.is_empty() {
                        return copied;
                    }
                }
                let n = target.len().min(source.len());
                let (now, later) = target.split_at_mut(n);
                now.copy_from_slice(&source[..n]);
                target = later;
                source = &source[n..];
                copied += n;
            }
        }
        copied
    }

    /// Moves the cursor to the chunk that holds the byte at `offset`. Cheap if it is near or after the last place.
    pub fn seek(&mut self, offset: usize) {
        if self.cursor.1 as usize > offset {
            self.cursor = (0, 0);
        }
        loop {
            let len = self.chunk(self.cursor.0 as usize).len();
            if len == 0 || offset < self.cursor.1 as usize + len {
                return;
            }
            self.cursor = (self.cursor.0 + 1, self.cursor.1 + len as u32);
        }
    }

    /// The pieces that hold up to `want` bytes from `offset`; `seek(offset)` first. Returns number of pieces and bytes.
    pub fn slices<'a>(&'a self, offset: usize, want: usize, out: &mut [&'a [u8]]) -> (usize, usize) {
        let (mut index, start) = (self.cursor.0 as usize, self.cursor.1 as usize);
        let mut skip = offset.saturating_sub(start);
        let (mut count, mut bytes) = (0, 0);
        for place in out.iter_mut() {
            let chunk = self.chunk(index);
            let Some(piece) = chunk.get(skip..) else { break };
            if piece.is_empty() || bytes == want {
                break;
            }
            let n = piece.len().min(want - bytes);
            *place = &piece[..n];
            (count, bytes) = (count + 1, bytes + n);
            index += 1;
            skip = 0;
        }
        (count, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    static LASTING: [u8; 100_000] = {
        let mut bytes = [0; 100_000];
        let mut i = 0;
        while i < bytes.len() {
            bytes[i] = ((i * 31) >> 3) as u8;
            i += 1;
        }
        bytes
    };

    #[test]
    fn behaves_as_a_queue() {
        let mut q = ByteQueue::new();
        let mut model = VecDeque::new();
        let mut x = 3u64;
        let mut next = 0u8;
        let mut lasting = 0;
        for _ in 0..20_000 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let n = (x >> 40) as usize % if x >> 60 == 0 { 70_000 } else { 700 };
            match (x >> 33) % 4 {
                0 if x & 3 == 0 && model.len() < 300_000 => {
                    let from = (x >> 8) as usize % (LASTING.len() - n);
                    let (data, held) = (&LASTING[from..from + n], q.held());
                    assert_eq!(q.push_lasting(data), n);
                    assert_eq!(q.held(), held, "only referred to");
                    model.extend(data);
                    lasting += n;
                }
                0 | 1 if model.len() < 300_000 => {
                    let data: Vec<u8> = (0..n)
                        .map(|_| {
                            next = next.wrapping_add(7);
                            next
                        })
                        .collect();
                    if x & 1 == 0 {
                        assert_eq!(q.push(&data), n);
                    } else {
                        assert_eq!(q.push_owned(data.clone()), n);
                    }
                    model.extend(&data);
                }
                2 => {
                    q.consume(n);
                    model.drain(..n.min(model.len()));
                }
                _ => {
                    let offset = if model.is_empty() { 0 } else { (x >> 20) as usize % model.len() };
                    q.seek(offset);
                    let mut pieces: [&[u8]; 8] = [&[]; 8];
                    let (count, bytes) = q.slices(offset, n, &mut pieces);
                    let got = pieces[..count].concat();
                    assert_eq!(got.len(), bytes);
                    assert!(bytes == n.min(model.len() - offset) || count == 8);
                    assert!(got.iter().eq(model.iter().skip(offset).take(bytes)));
                    let mut a = vec![0; n / 3];
                    let mut b = vec![0; n];
                    let copied = q.peek(&mut [&mut a, &mut b]);
                    a.extend(&b);
                    assert_eq!(copied, model.len().min(n / 3 + n));
                    assert!(a[..copied].iter().eq(model.iter().take(copied)));
                }
            }
            assert_eq!(q.len(), model.len());
            assert!(q.held() + lasting >= q.len());
            if q.is_empty() {
                assert_eq!(q.held(), 0);
                lasting = 0;
            }
        }
        q.consume(usize::MAX);
        assert_eq!(q.held(), 0);
    }

    #[test]
    fn small_heads_between_what_lasts_stay_small() {
        let mut q = ByteQueue::new();
        for _ in 0..100 {
            q.push(&[1; 200]);
            q.push_lasting(&LASTING[..5000]);
        }
        assert!(q.held() <= 100 * 512, "{}", q.held());
    }
}
