//! Descriptors 0, 1 and 2: an empty input, and the host-side log.

use super::{Ctl, Object};
use crate::errno::{Errno, Result};
use crate::fd::watch::{Watch, events};
use crate::fs::Stat;
use donjon_base::gate::{self, Stream};

/// One of the three standard streams.
pub struct Console {
    stream: Option<Stream>,
    /// Never notified: the console is always ready. Exists so that epoll takes it, as it takes a terminal.
    watch: Watch,
}

impl Console {
    /// The input (`None`) or one of the output streams.
    pub fn new(stream: Option<Stream>) -> Self {
        Console { stream, watch: Watch::new() }
    }
}

/// Writes everything to stream 1 or 2.
pub fn write(stream: Stream, bufs: &[&[u8]]) -> Result<usize> {
    let mut done = 0;
    for buf in bufs {
        let mut rest = *buf;
        while !rest.is_empty() {
            match gate::console(stream, rest) {
                Ok(n) if n > 0 => {
                    done += n;
                    rest = &rest[n..];
                }
                _ if done > 0 => return Ok(done),
                _ => return Err(Errno::EIO),
            }
        }
    }
    Ok(done)
}

impl Object for Console {
    fn read(&self, _ctl: &Ctl, _bufs: &mut [&mut [u8]]) -> Result<usize> {
        // Nobody types at a sealed machine: end of file.
        Ok(0)
    }

    fn write(&self, _ctl: &Ctl, bufs: &[&[u8]]) -> Result<usize> {
        write(self.stream.ok_or(Errno::EBADF)?, bufs)
    }

    fn ready(&self) -> u32 {
        if self.stream.is_none() { events::READ } else { events::WRITE }
    }

    fn watch(&self) -> Option<&Watch> {
        Some(&self.watch)
    }

    fn stat(&self) -> Stat {
        // A pipe, not a terminal: isatty must say no.
        Stat { mode: 0o010_600, nlink: 1, ..Stat::default() }
    }

    fn as_any(&self) -> &dyn core::any::Any {
        self
    }

    fn sync(&self) -> Result<()> {
        Err(Errno::EINVAL)
    }
}
