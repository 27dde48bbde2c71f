//! Shared mappings of files in the tmpfs.
//!
//! A range of a file that is mapped lies in one run of pages, which the mappings as well as `read` and `write` use. There is one address space, so
//! every mapping of the range is at the same address. When the last one goes, the content moves back into blocks.

use super::tmpfs::BLOCK;
use super::{Node, TmpNode};
use crate::errno::{Errno, Result};
use crate::fd;
use crate::global::Global;
use crate::mem::PageRun;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;
use donjon_abi::Prot;
use donjon_base::PAGE;

const _: () = assert!(BLOCK == PAGE);

/// A range of a file's blocks that is mapped.
pub(super) struct Run {
    first: u64,
    pages: PageRun,
    mappings: usize,
    /// Whether one of the mappings may write; if none may, the pages are read-only.
    writable: bool,
}

impl Run {
    /// A run of zeros that nobody has mapped yet.
    pub fn new(range: Range<u64>) -> Result<Run> {
        let len =
            usize::try_from(range.end - range.start).ok().and_then(|n| n.checked_mul(BLOCK)).ok_or(Errno::ENOMEM)?;
        let pages = PageRun::new(len).ok_or(Errno::ENOMEM)?;
        Ok(Run { first: range.start, pages, mappings: 0, writable: true })
    }

    /// Whether nobody has it mapped any more.
    pub fn is_idle(&self) -> bool {
        self.mappings == 0
    }

    /// The numbers of its blocks.
    pub fn blocks(&self) -> Range<u64> {
        self.first..self.first + (self.pages.len() / BLOCK) as u64
    }

    /// A block of it.
    pub fn get(&self, index: u64) -> &[u8] {
        let at = (index - self.first) as usize * BLOCK;
        &self.pages[at..at + BLOCK]
    }

    /// Changes a block of it, where the program may not as well.
    pub fn write(&mut self, index: u64, f: impl FnOnce(&mut [u8])) -> Result<()> {
        let at = (index - self.first) as usize * BLOCK;
        if self.writable {
            f(&mut self.pages[at..at + BLOCK]);
            return Ok(());
        }
        self.pages.set_rights(Prot::ReadWrite)?;
        f(&mut self.pages[at..at + BLOCK]);
        self.pages.set_rights(Prot::Read)
    }

    /// One mapping more, from block `first` on; where that is.
    fn map(&mut self, first: u64, writable: bool) -> Result<usize> {
        let writable = writable || self.mappings > 0 && self.writable;
        if writable != self.writable {
            self.pages.set_rights(if writable { Prot::ReadWrite } else { Prot::Read })?;
            self.writable = writable;
        }
        self.mappings += 1;
        Ok(self.pages.addr() + (first - self.first) as usize * BLOCK)
    }
}

/// A mapping, or what is left of one.
struct Mapping {
    at: usize,
    len: usize,
    writable: bool,
    file: Rc<TmpNode>,
}

static MAPPINGS: Global<Vec<Mapping>> = Global::new(Vec::new());

/// Maps `len` bytes (whole pages) of an open file; `None` if it is not in the tmpfs. The range counts against the limit of the tmpfs as if it were
/// written. A range that overlaps with one that is mapped has to lie within it (`ENODEV`), because that cannot move.
pub fn map(fd: i32, offset: u64, len: usize, prot: Prot) -> Result<Option<usize>> {
    let _guard = donjon_base::preempt::off();
    let open = fd::get(fd)?;
    let Some(Node::Tmp(file)) = open.obj.node() else { return Ok(None) };
    let writable = prot == Prot::ReadWrite;
    open.ctl.readable().and(if writable { open.ctl.writable() } else { Ok(()) }).map_err(|_| Errno::EACCES)?;
    let content = file.content().map_err(|_| Errno::ENODEV)?;
    if prot == Prot::None {
        return Err(Errno::ENODEV);
    }
    let (first, count) = (offset / BLOCK as u64, (len / BLOCK) as u64);
    MAPPINGS.with(|m| m.try_reserve(1)).map_err(|_| Errno::ENOMEM)?;
    let at = content.borrow_mut().run(first..first + count)?.map(first, writable);
    if at.is_err() {
        content.borrow_mut().settle();
    }
    let at = at?;
    MAPPINGS.with(|m| m.push(Mapping { at, len, writable, file: file.clone() }));
    Ok(Some(at))
}

/// Ends shared mappings: `None` if there is none in the range, `EINVAL` if it is not wholly within one.
pub fn unmap(at: usize, len: usize) -> Option<Result<()>> {
    let _guard = donjon_base::preempt::off();
    let end = at.checked_add(len)?;
    if !overlaps(at, end) {
        return None;
    }
    let within = |m: &Mapping| m.at <= at && end <= m.at + m.len;
    let Some(index) = MAPPINGS.with(|m| m.iter().position(within)) else { return Some(Err(Errno::EINVAL)) };
    // What is left of it on either side.
    if MAPPINGS.with(|m| m.try_reserve(2)).is_err() {
        return Some(Err(Errno::ENOMEM));
    }
    let whole = MAPPINGS.with(|m| m.swap_remove(index));
    let mut left = 0;
    for (from, to) in [(whole.at, at), (end, whole.at + whole.len)] {
        if from < to {
            left += 1;
            let part = Mapping { at: from, len: to - from, writable: whole.writable, file: whole.file.clone() };
            MAPPINGS.with(|m| m.push(part));
        }
    }
    if let Ok(content) = whole.file.content() {
        let mut content = content.borrow_mut();
        if let Some(run) =
            content.runs().iter_mut().find(|r| (r.pages.addr()..r.pages.addr() + r.pages.len()).contains(&at))
        {
            run.mappings = run.mappings + left - 1;
        }
        content.settle();
    }
    Some(Ok(()))
}

fn overlaps(at: usize, end: usize) -> bool {
    MAPPINGS.with(|m| m.iter().any(|m| m.at < end && at < m.at + m.len))
}

/// Whether a shared mapping reaches into the range, and if so, whether the program may write to all that do.
pub fn mapped(at: usize, len: usize) -> Option<bool> {
    let _guard = donjon_base::preempt::off();
    let end = at.checked_add(len)?;
    overlaps(at, end).then(|| MAPPINGS.with(|m| m.iter().all(|m| m.at >= end || at >= m.at + m.len || m.writable)))
}

/// For tests, which begin with a heap of their own.
#[cfg(test)]
pub(super) fn reset() {
    MAPPINGS.with(|m| core::mem::forget(core::mem::take(m)));
}
