//! A byte queue that grows on demand up to a limit, and gives its memory back when it is empty.

use crate::errno::{Errno, Result};
use alloc::vec::Vec;

/// Small rings are kept while empty; larger ones are freed.
const KEEP: usize = 4096;

/// A first-in first-out queue of bytes.
#[derive(Default)]
pub struct Ring {
    /// The storage; its length is 0 or a power of two.
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Ring {
    /// An empty queue, without memory.
    pub const fn new() -> Self {
        Ring { bytes: Vec::new(), start: 0, len: 0 }
    }

    /// Bytes in the queue.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn grow(&mut self, need: usize) -> Result<()> {
        if need <= self.bytes.len() {
            return Ok(());
        }
        crate::fd::headroom()?;
        let size = need.next_power_of_two().max(256);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(size).map_err(|_| Errno::ENOMEM)?;
        let (a, b) = self.pieces();
        bytes.extend_from_slice(a);
        bytes.extend_from_slice(b);
        bytes.resize(size, 0);
        self.bytes = bytes;
        self.start = 0;
        Ok(())
    }

    fn pieces(&self) -> (&[u8], &[u8]) {
        let end = self.start + self.len;
        if end <= self.bytes.len() {
            (&self.bytes[self.start..end], &[])
        } else {
            (&self.bytes[self.start..], &self.bytes[..end - self.bytes.len()])
        }
    }

    /// Appends all of `data`.
    pub fn push(&mut self, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.grow(self.len + data.len())?;
        let size = self.bytes.len();
        let at = (self.start + self.len) & (size - 1);
        let first = data.len().min(size - at);
        self.bytes[at..at + first].copy_from_slice(&data[..first]);
        self.bytes[..data.len() - first].copy_from_slice(&data[first..]);
        self.len += data.len();
        Ok(())
    }

    /// Copies out up to `out.len()` bytes from `skip` bytes behind the front.
    pub fn peek(&self, skip: usize, out: &mut [u8]) -> usize {
        let (a, b) = self.pieces();
        let mut n = 0;
        let mut skip = skip;
        for piece in [a, b] {
            let from = skip.min(piece.len());
            skip -= from;
            let take = (piece.len() - from).min(out.len() - n);
            out[n..n + take].copy_from_slice(&piece[from..from + take]);
            n += take;
        }
        n
    }

    /// Drops `n` bytes from the front.
    pub fn consume(&mut self, n: usize) {
        let n = n.min(self.len);
        self.len -= n;
        if self.len == 0 {
            self.start = 0;
            if self.bytes.len() > KEEP {
                self.bytes = Vec::new();
            }
        } else {
            self.start = (self.start + n) & (self.bytes.len() - 1);
        }
    }

    /// Fills the buffers in order; returns how many bytes.
    pub fn read(&mut self, bufs: &mut [&mut [u8]], peek: bool) -> usize {
        let mut n = 0;
        for buf in bufs {
            let got = self.peek(n, buf);
            n += got;
            if got < buf.len() {
                break;
            }
        }
        if !peek {
            self.consume(n);
        }
        n
    }

    /// Appends the buffers in order, up to `room` bytes.
    pub fn write(&mut self, bufs: &[&[u8]], room: usize) -> Result<usize> {
        let mut n = 0;
        for buf in bufs {
            let take = buf.len().min(room - n);
            if let Err(e) = self.push(&buf[..take]) {
                return if n > 0 { Ok(n) } else { Err(e) };
            }
            n += take;
            if take < buf.len() {
                break;
            }
        }
        Ok(n)
    }

    /// Empties the queue.
    pub fn clear(&mut self) {
        *self = Ring::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_across_wraps_and_growth() {
        let _s = crate::fd::tests::start();
        let mut ring = Ring::new();
        let mut next_in = 0u32;
        let mut next_out = 0u32;
        // Sizes that do not divide the capacity, so that the ends meet everywhere.
        for round in 0..2000usize {
            let n = (round * 7) % 97;
            for _ in 0..n {
                ring.push(&[next_in as u8]).unwrap();
                next_in += 1;
            }
            let mut a = [0; 31];
            let mut b = [0; 20];
            let got = ring.read(&mut [&mut a, &mut b], false);
            for byte in a.iter().chain(&b).take(got) {
                assert_eq!(*byte, next_out as u8);
                next_out += 1;
            }
        }
        assert_eq!(ring.len() as u32, next_in - next_out);
    }

    #[test]
    fn peek_leaves_and_room_is_kept() {
        let _s = crate::fd::tests::start();
        let mut ring = Ring::new();
        assert_eq!(ring.write(&[b"abc", b"def"], 5).unwrap(), 5);
        let mut out = [0; 8];
        assert_eq!(ring.read(&mut [&mut out[..]], true), 5);
        assert_eq!(ring.len(), 5);
        assert_eq!(ring.read(&mut [&mut out[..2]], false), 2);
        assert_eq!(ring.read(&mut [&mut out[..]], false), 3);
        assert_eq!(&out[..3], b"cde");
        assert!(ring.is_empty());
    }
}
