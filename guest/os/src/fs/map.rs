//! What `mmap` of a file needs to know.

use super::{Node, dev::Dev};
use crate::errno::{Errno, Result};
use crate::fd;

/// Where the pages of a mapping come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapSource {
    /// The file lies in the image, page-aligned: from the offset to the end of the file, with zeros behind it if the mapping reaches that far. A
    /// read-only mapping may use it as it is.
    Static(&'static [u8]),
    /// The content has to be copied with [`crate::fd::pread_into`].
    Copy,
    /// As `Copy`, and it may change later.
    Changing,
}

/// Where a private mapping of `len` bytes from `offset` on may get its pages.
pub fn map_source(fd: i32, offset: u64, len: usize) -> Result<MapSource> {
    let _guard = donjon_base::preempt::off();
    let file = fd::get(fd)?;
    file.ctl.readable().map_err(|_| Errno::EACCES)?;
    if len == 0 || !offset.is_multiple_of(donjon_base::PAGE as u64) {
        return Err(Errno::EINVAL);
    }
    match file.obj.node().ok_or(Errno::ENODEV)? {
        node if node.is_dir() => Err(Errno::ENODEV),
        Node::Bundle(b) => {
            let data = usize::try_from(offset).ok().and_then(|at| b.data().get(at..)).unwrap_or(&[]);
            // A mapping that goes beyond the file's last page would show what is not the file's.
            let whole = len.next_multiple_of(donjon_base::PAGE) <= data.len().next_multiple_of(donjon_base::PAGE);
            let aligned = data.as_ptr().addr() % donjon_base::PAGE == 0;
            // What is packed behind a file may begin in its last page, which has to read as zeros there.
            let ends = len.next_multiple_of(donjon_base::PAGE) <= data.len() || zeros_follow(data);
            Ok(if whole && aligned && ends { MapSource::Static(data) } else { MapSource::Copy })
        }
        Node::Tmp(_) => Ok(MapSource::Changing),
        // Its zeros are a new mapping's own.
        Node::Dev(Dev::Zero) => Ok(MapSource::Copy),
        Node::Dev(_) => Err(Errno::ENODEV),
    }
}

/// Whether the rest of the last page of the bundle's `data` is empty.
fn zeros_follow(data: &[u8]) -> bool {
    let bundle = donjon_base::bytes(donjon_base::boot().bundle);
    let end = data.as_ptr_range().end.addr().wrapping_sub(bundle.as_ptr().addr());
    let rest = data.len().next_multiple_of(donjon_base::PAGE) - data.len();
    bundle.get(end..).and_then(|b| b.get(..rest)).is_some_and(|b| b.iter().all(|byte| *byte == 0))
}
