//! `/dev`: null, zero, full, random, urandom, stdin, stdout, stderr.

use super::stat::{Stat, kind};
use crate::errno::{Errno, Result};
use donjon_base::gate::Stream;

/// A device, or the directory of devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dev {
    /// `/dev`.
    Dir,
    /// Takes everything, has nothing.
    Null,
    /// Takes everything, gives zeros.
    Zero,
    /// Takes nothing (`ENOSPC`), gives zeros.
    Full,
    /// Random bytes; what is written is thrown away, as the generator needs no help.
    Random,
    /// The same.
    Urandom,
    /// Descriptor 0.
    Stdin,
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// Name and device, in the order of listing.
pub const ALL: [(&str, Dev); 8] = [
    ("null", Dev::Null),
    ("zero", Dev::Zero),
    ("full", Dev::Full),
    ("random", Dev::Random),
    ("urandom", Dev::Urandom),
    ("stdin", Dev::Stdin),
    ("stdout", Dev::Stdout),
    ("stderr", Dev::Stderr),
];

impl Dev {
    /// The device of that name.
    pub fn child(self, name: &[u8]) -> Option<Dev> {
        if self != Dev::Dir {
            return None;
        }
        ALL.iter().find(|(n, _)| n.as_bytes() == name).map(|(_, d)| *d)
    }

    /// Status.
    pub fn stat(self) -> Stat {
        let (major, minor, mode) = match self {
            Dev::Dir => return Stat { dev: 3, ino: 1, mode: kind::DIR | 0o555, nlink: 2, ..Stat::default() },
            Dev::Null => (1, 3, kind::CHAR | 0o666),
            Dev::Zero => (1, 5, kind::CHAR | 0o666),
            Dev::Full => (1, 7, kind::CHAR | 0o666),
            Dev::Random => (1, 8, kind::CHAR | 0o666),
            Dev::Urandom => (1, 9, kind::CHAR | 0o666),
            Dev::Stdin => (0, 0, kind::FIFO | 0o400),
            Dev::Stdout | Dev::Stderr => (0, 0, kind::FIFO | 0o200),
        };
        Stat { dev: 3, ino: self as u64 + 1, mode, nlink: 1, rdev: major * 256 + minor, ..Stat::default() }
    }

    /// For the three consoles: the stream, none for the input.
    pub fn console(self) -> Option<Option<Stream>> {
        match self {
            Dev::Stdin => Some(None),
            Dev::Stdout => Some(Some(Stream::Output)),
            Dev::Stderr => Some(Some(Stream::Errors)),
            _ => None,
        }
    }

    /// Reads.
    pub fn read(self, bufs: &mut [&mut [u8]]) -> Result<usize> {
        let mut n = 0;
        for buf in bufs {
            match self {
                Dev::Dir => return Err(Errno::EISDIR),
                Dev::Null => return Ok(0),
                Dev::Stdin | Dev::Stdout | Dev::Stderr => return Err(Errno::EBADF),
                Dev::Zero | Dev::Full => buf.fill(0),
                Dev::Random | Dev::Urandom => crate::random::fill(buf),
            }
            n += buf.len();
        }
        Ok(n)
    }

    /// Writes.
    pub fn write(self, bufs: &[&[u8]]) -> Result<usize> {
        let total = bufs.iter().map(|b| b.len()).sum();
        match self {
            Dev::Null | Dev::Zero | Dev::Random | Dev::Urandom => Ok(total),
            Dev::Full => Err(Errno::ENOSPC),
            // A console is another kind of object.
            Dev::Dir | Dev::Stdin | Dev::Stdout | Dev::Stderr => Err(Errno::EBADF),
        }
    }
}
