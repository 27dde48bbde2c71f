//! Open files and directories.

use super::dev::{self, Dev};
use super::path::dirent_type;
use super::{BundleNode, Node, Stat, TmpNode, bundle, tmpfs};
use crate::errno::{Errno, Result};
use crate::fd::watch::{Watch, events};
use crate::fd::{self, Ctl, FileRef, O_APPEND, Object};
use crate::global::Global;
use crate::sorted::Sorted;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// An open node of the tree.
pub struct OpenFile {
    node: Node,
    cursor: RefCell<Cursor>,
    lock: Cell<Option<LockKind>>,
}

impl OpenFile {
    /// Opens a node.
    pub fn new(node: Node) -> Self {
        OpenFile { node, cursor: RefCell::default(), lock: Cell::new(None) }
    }

    fn tmp(&self) -> Result<&Rc<TmpNode>> {
        match &self.node {
            Node::Tmp(tmp) => Ok(tmp),
            _ => Err(Errno::EINVAL),
        }
    }
}

fn read_slice(data: &[u8], bufs: &mut [&mut [u8]], at: u64) -> usize {
    let mut rest = usize::try_from(at).ok().and_then(|at| data.get(at..)).unwrap_or(&[]);
    let mut n = 0;
    for buf in bufs {
        let take = rest.len().min(buf.len());
        buf[..take].copy_from_slice(&rest[..take]);
        rest = &rest[take..];
        n += take;
    }
    n
}

impl Object for OpenFile {
    fn read(&self, ctl: &Ctl, bufs: &mut [&mut [u8]]) -> Result<usize> {
        let n = self.read_at(bufs, ctl.offset.get())?;
        ctl.offset.set(ctl.offset.get() + n as u64);
        Ok(n)
    }

    fn write(&self, ctl: &Ctl, bufs: &[&[u8]]) -> Result<usize> {
        if ctl.flags.get() & O_APPEND != 0
            && let Node::Tmp(tmp) = &self.node
        {
            ctl.offset.set(tmp.size());
        }
        let n = self.write_at(bufs, ctl.offset.get())?;
        ctl.offset.set(ctl.offset.get() + n as u64);
        Ok(n)
    }

    fn read_at(&self, bufs: &mut [&mut [u8]], at: u64) -> Result<usize> {
        match &self.node {
            Node::Bundle(b) if b.is_dir() => Err(Errno::EISDIR),
            Node::Bundle(b) => Ok(read_slice(b.data(), bufs, at)),
            Node::Tmp(tmp) => tmp.read_at(bufs, at),
            Node::Dev(dev) => dev.read(bufs),
        }
    }

    fn write_at(&self, bufs: &[&[u8]], at: u64) -> Result<usize> {
        match &self.node {
            Node::Bundle(_) => Err(Errno::EBADF),
            Node::Tmp(tmp) => tmp.write_at(bufs, at),
            Node::Dev(dev) => dev.write(bufs),
        }
    }

    fn stat(&self) -> Stat {
        self.node.stat()
    }

    fn as_any(&self) -> &dyn core::any::Any {
        self
    }

    fn seek_end(&self) -> Result<u64> {
        match &self.node {
            Node::Bundle(b) => Ok(b.data().len() as u64),
            Node::Tmp(tmp) => Ok(tmp.size()),
            Node::Dev(Dev::Stdin | Dev::Stdout | Dev::Stderr) => Err(Errno::ESPIPE),
            Node::Dev(_) => Ok(0),
        }
    }

    fn seeked(&self, to: u64) {
        if self.node.is_dir() {
            self.cursor.borrow_mut().seek(&self.node, to);
        }
    }

    fn truncate(&self, len: u64) -> Result<()> {
        self.tmp()?.set_len(len)
    }

    fn allocate(&self, at: u64, len: u64, keep_size: bool) -> Result<()> {
        match &self.node {
            Node::Tmp(tmp) => tmp.allocate(at, len, keep_size),
            _ => Err(Errno::ENODEV),
        }
    }

    fn sync(&self) -> Result<()> {
        match &self.node {
            // Memory is all that there is; the content is as durable as it will ever be.
            Node::Tmp(_) | Node::Bundle(_) => Ok(()),
            Node::Dev(_) => Err(Errno::EINVAL),
        }
    }

    fn available(&self) -> Result<usize> {
        Err(Errno::ENOTTY)
    }

    fn node(&self) -> Option<&Node> {
        Some(&self.node)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(kind) = self.lock.take() {
            LOCKS.with(|l| l.release(self.node.stat(), kind));
            lock_watch().notify(events::READ);
        }
    }
}

/// One entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// Inode number.
    pub ino: u64,
    /// `d_type`.
    pub kind: u8,
    /// The position behind this entry (`d_off`).
    pub next: u64,
    /// The name.
    pub name: Vec<u8>,
}

/// Where a listing stands.
#[derive(Default)]
struct Cursor {
    /// Entries given so far.
    count: u64,
    /// In the bundle: the entry to go on from. In `/dev`: the same.
    from: u32,
    /// In the tmpfs: the last name.
    after: Option<Vec<u8>>,
}

/// What the root directory has beside the bundle's entries.
const MOUNTS: [&str; 2] = ["tmp", "dev"];

impl Cursor {
    fn seek(&mut self, node: &Node, to: u64) {
        *self = Cursor::default();
        while self.count < to && self.next(node).is_some() {}
    }

    fn next(&mut self, node: &Node) -> Option<DirEntry> {
        let (name, stat): (Vec<u8>, Stat) = match self.count {
            0 => (b".".to_vec(), node.stat()),
            1 => (b"..".to_vec(), node.parent().stat()),
            n => match node {
                Node::Bundle(BundleNode { entry: None }) if n < 2 + MOUNTS.len() as u64 => {
                    let name = MOUNTS[n as usize - 2];
                    (name.as_bytes().to_vec(), node.child(name.as_bytes()).ok()?.stat())
                }
                Node::Bundle(dir) => loop {
                    let entry = dir.next_child(self.from)?;
                    self.from = entry.index + 1;
                    let name = bundle::split(entry.path).1;
                    // Hidden below a mount.
                    if dir.entry.is_none() && MOUNTS.contains(&name) {
                        continue;
                    }
                    break (name.as_bytes().to_vec(), BundleNode { entry: Some(entry.index) }.stat());
                },
                Node::Tmp(dir) => {
                    let (name, child) = dir.next_child(self.after.as_deref())?;
                    self.after = Some(name.clone());
                    (name, child.stat())
                }
                Node::Dev(_) => {
                    let (name, dev) = dev::ALL.get(self.from as usize)?;
                    self.from += 1;
                    (name.as_bytes().to_vec(), dev.stat())
                }
            },
        };
        self.count += 1;
        Some(DirEntry { ino: stat.ino, kind: dirent_type(stat.mode), next: self.count, name })
    }
}

/// The next entry of an open directory; `None` at its end.
pub fn read_dir(fd: i32) -> Result<Option<DirEntry>> {
    let _guard = donjon_base::preempt::off();
    let file = fd::get(fd)?;
    let open = file.obj.as_any().downcast_ref::<OpenFile>().ok_or(Errno::ENOTDIR)?;
    if !open.node.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    let entry = open.cursor.borrow_mut().next(&open.node);
    if let Some(e) = &entry {
        file.ctl.offset.set(e.next);
    }
    Ok(entry)
}

/// Kinds of `flock` locks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockKind {
    /// `LOCK_SH`.
    Shared,
    /// `LOCK_EX`.
    Exclusive,
}

struct Locks(Sorted<(u64, u64), i32>);

static LOCKS: Global<Locks> = Global::new(Locks(Sorted::new()));
static LOCK_WATCH: Global<Option<Rc<Watch>>> = Global::new(None);

fn lock_watch() -> Rc<Watch> {
    LOCK_WATCH.with(|w| w.get_or_insert_with(|| Rc::new(Watch::new())).clone())
}

impl Locks {
    fn take(&mut self, stat: Stat, kind: LockKind) -> bool {
        let Some(held) = self.0.get_or_try_insert((stat.dev, stat.ino), || Some(0)) else { return false };
        match kind {
            LockKind::Shared if *held >= 0 => *held += 1,
            LockKind::Exclusive if *held == 0 => *held = -1,
            _ => return false,
        }
        true
    }

    fn release(&mut self, stat: Stat, kind: LockKind) {
        let key = (stat.dev, stat.ino);
        if let Some(held) = self.0.get_mut(&key) {
            *held = if kind == LockKind::Exclusive { 0 } else { *held - 1 };
            if *held <= 0 {
                self.0.remove(&key);
            }
        }
    }
}

/// `flock`: takes (`Some`) or gives back (`None`) a lock of the open file description.
pub fn flock(fd: i32, kind: Option<LockKind>, wait: bool) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    let file = fd::get(fd)?;
    let open = file.obj.as_any().downcast_ref::<OpenFile>().ok_or(Errno::EBADF)?;
    let stat = open.node.stat();
    // Each time anew: while this thread waits, another one may take or change the lock of the same description.
    while open.lock.get() != kind {
        // A change of kind gives the old lock back first and is not atomic, as flock(2) says.
        if let Some(old) = open.lock.take() {
            LOCKS.with(|l| l.release(stat, old));
            lock_watch().notify(events::READ);
        }
        let Some(new) = kind else { break };
        if LOCKS.with(|l| l.take(stat, new)) {
            open.lock.set(kind);
        } else if wait {
            fd::wait_on(&lock_watch(), events::READ, None)?;
        } else {
            return Err(Errno::EAGAIN);
        }
    }
    Ok(())
}

/// `copy_file_range`, `sendfile`: copies up to `len` bytes; positions are the descriptions' own where `None`. Returns how many bytes, and
/// the new positions are in the arguments.
pub fn copy_range(from: i32, from_at: Option<&mut u64>, to: i32, to_at: Option<&mut u64>, len: usize) -> Result<usize> {
    let _guard = donjon_base::preempt::off();
    let (source, target) = (fd::get(from)?, fd::get(to)?);
    source.ctl.readable()?;
    target.ctl.writable()?;
    if to_at.is_some() || from_at.is_some() {
        source.obj.seek_end().map_err(|_| Errno::EINVAL)?;
    }
    let mut from_pos = from_at.as_ref().map_or(source.ctl.offset.get(), |p| **p);
    let mut to_pos = to_at.as_ref().map(|p| **p);
    let mut put = |target: &FileRef, data: &[u8]| -> Result<usize> {
        match &mut to_pos {
            Some(at) => {
                let n = target.obj.write_at(&[data], *at)?;
                *at += n as u64;
                Ok(n)
            }
            None => fd::write_all(target, &[data], target.ctl.nonblocking(), |b| target.obj.write(&target.ctl, b)),
        }
    };
    let done = match source.obj.node() {
        // Straight from the image: no copy in between.
        Some(Node::Bundle(b)) if !b.is_dir() => {
            let data = usize::try_from(from_pos).ok().and_then(|at| b.data().get(at..)).unwrap_or(&[]);
            let data = &data[..data.len().min(len)];
            let n = if data.is_empty() { 0 } else { put(&target, data)? };
            from_pos += n as u64;
            n
        }
        Some(Node::Tmp(tmp)) if !tmp.is_dir() => {
            let mut chunk = Vec::new();
            chunk.try_reserve_exact(tmpfs::COPY_CHUNK).map_err(|_| Errno::ENOMEM)?;
            chunk.resize(tmpfs::COPY_CHUNK, 0);
            let mut done = 0;
            while done < len {
                let want = (len - done).min(chunk.len());
                let got = tmp.read_at(&mut [&mut chunk[..want]], from_pos)?;
                if got == 0 {
                    break;
                }
                match put(&target, &chunk[..got]) {
                    Ok(n) => {
                        done += n;
                        from_pos += n as u64;
                        if n < got {
                            break;
                        }
                    }
                    Err(_) if done > 0 => break,
                    Err(e) => return Err(e),
                }
            }
            done
        }
        _ => return Err(Errno::EINVAL),
    };
    match from_at {
        Some(at) => *at = from_pos,
        None => source.ctl.offset.set(from_pos),
    }
    if let (Some(at), Some(pos)) = (to_at, to_pos) {
        *at = pos;
    }
    Ok(done)
}
