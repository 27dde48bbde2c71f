//! The tmpfs at `/tmp`: files of 4 KiB blocks that exist only where something was written, within a limit.

use super::shared::Run;
use super::stat::{Stat, Time, USER, kind};
use crate::errno::{Errno, Result};
use crate::global::Global;
use crate::io::pipe::Pipe;
use crate::sorted::Sorted;
use alloc::boxed::Box;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Range;
use donjon_abi::manifest::{Tag, records};

pub(super) const BLOCK: usize = 4096;
/// Buffer for copies between files.
pub const COPY_CHUNK: usize = 16 * BLOCK;
/// What a node costs apart from its content, and each name of it but one, for the limit: directories full of empty files must end somewhere, too.
const NODE_COST: u64 = 256;
/// Largest file; far below where arithmetic could overflow.
const SIZE_MAX: u64 = 1 << 46;

struct Space {
    root: Option<Rc<TmpNode>>,
    used: u64,
    limit: u64,
    next_ino: u64,
}

static SPACE: Global<Space> = Global::new(Space { root: None, used: 0, limit: 0, next_ino: 2 });

/// The limit from the manifest, or an eighth of the memory.
fn limit() -> u64 {
    let manifest = donjon_base::bytes(donjon_base::boot().manifest);
    let declared = records(manifest).filter_map(core::result::Result::ok).find(|(tag, _)| *tag == Tag::Tmpfs);
    declared
        .and_then(|(_, value)| Some(u64::from_le_bytes(value.try_into().ok()?)))
        .unwrap_or(donjon_base::boot().memory / 8)
}

/// The directory `/tmp`.
pub fn root() -> Rc<TmpNode> {
    // Nobody else may make one in the meantime.
    let _off = donjon_base::preempt::off();
    if let Some(root) = SPACE.with(|s| s.root.clone()) {
        return root;
    }
    let dir = Kind::Dir { children: RefCell::new(Sorted::new()), parent: RefCell::new(Weak::new()) };
    let now = now();
    let root = Rc::new(TmpNode {
        ino: 1,
        kind: dir,
        mode: Cell::new(0o1777),
        nlink: Cell::new(2),
        owner: Cell::new((0, 0)),
        atime: Cell::new(now),
        mtime: Cell::new(now),
        ctime: Cell::new(now),
    });
    SPACE.with(|s| {
        s.limit = limit();
        s.root = Some(root.clone());
    });
    root
}

/// Bytes in use and the limit, for `statvfs`.
pub fn usage() -> (u64, u64) {
    // The root's references are counted, too.
    let _off = donjon_base::preempt::off();
    root();
    SPACE.with(|s| (s.used, s.limit))
}

fn charge(bytes: u64) -> Result<()> {
    SPACE.with(|s| {
        let used = s.used.checked_add(bytes).filter(|u| *u <= s.limit).ok_or(Errno::ENOSPC)?;
        s.used = used;
        Ok(())
    })
}

fn refund(bytes: u64) {
    SPACE.with(|s| s.used -= bytes);
}

fn now() -> Time {
    Time::from_ns(donjon_base::clock::realtime())
}

/// A file, directory, symbolic link or socket.
pub struct TmpNode {
    ino: u64,
    kind: Kind,
    mode: Cell<u32>,
    nlink: Cell<u32>,
    owner: Cell<(u32, u32)>,
    atime: Cell<Time>,
    mtime: Cell<Time>,
    ctime: Cell<Time>,
}

/// Names and nodes.
type Children = Sorted<Box<[u8]>, Rc<TmpNode>>;

enum Kind {
    File(RefCell<Content>),
    Dir { children: RefCell<Children>, parent: RefCell<Weak<TmpNode>> },
    Link(Box<[u8]>),
    Socket(SocketNode),
    Pipe(Rc<Pipe>),
}

impl Kind {
    fn cost(&self) -> u64 {
        NODE_COST
            + match self {
                Kind::File(content) => content.borrow().used() * BLOCK as u64,
                Kind::Link(target) => target.len() as u64,
                _ => 0,
            }
    }
}

/// What a path of a bound AF_UNIX socket leads to.
pub type SocketNode = Weak<dyn core::any::Any>;

#[derive(Default)]
pub(super) struct Content {
    len: u64,
    blocks: Sorted<u64, Box<[u8; BLOCK]>>,
    /// What is mapped; none of their blocks is among `blocks`.
    runs: Vec<Run>,
}

impl Content {
    /// What a block has; `None` for a hole.
    fn get(&self, index: u64) -> Option<&[u8]> {
        match self.runs.iter().find(|r| r.blocks().contains(&index)) {
            Some(run) => Some(run.get(index)),
            None => self.blocks.get(&index).map(|block| &block[..]),
        }
    }

    /// Changes a block, which is made if it does not exist.
    fn with_block(&mut self, index: u64, f: impl FnOnce(&mut [u8])) -> Result<()> {
        match self.runs.iter_mut().find(|r| r.blocks().contains(&index)) {
            Some(run) => run.write(index, f),
            None => self.block(index).map(|block| f(block)),
        }
    }

    /// Blocks that exist.
    fn used(&self) -> u64 {
        self.blocks.len() as u64 + self.runs.iter().map(|r| r.blocks().end - r.blocks().start).sum::<u64>()
    }

    /// What is mapped of it.
    pub(super) fn runs(&mut self) -> &mut Vec<Run> {
        &mut self.runs
    }

    /// The run that has all of `range`, made if none overlaps with it; `ENODEV` if one does.
    pub(super) fn run(&mut self, range: Range<u64>) -> Result<&mut Run> {
        let has = |r: &Run| r.blocks().start <= range.start && range.end <= r.blocks().end;
        if let Some(at) = self.runs.iter().position(has) {
            return Ok(&mut self.runs[at]);
        }
        if self.runs.iter().any(|r| r.blocks().start < range.end && range.start < r.blocks().end) {
            return Err(Errno::ENODEV);
        }
        self.runs.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        let missing = (range.end - range.start - self.blocks.count(&range) as u64) * BLOCK as u64;
        charge(missing).map_err(|_| Errno::ENOMEM)?;
        let mut run = Run::new(range.clone()).inspect_err(|_| refund(missing))?;
        for (index, block) in self.blocks.take(&range) {
            run.write(index, |to| to.copy_from_slice(&block[..]))?;
        }
        self.runs.push(run);
        let last = self.runs.len() - 1;
        Ok(&mut self.runs[last])
    }

    /// Moves what nobody has mapped any more back into blocks. Where there is no memory for that, it stays as it is.
    pub(super) fn settle(&mut self) {
        let mut at = 0;
        while let Some(run) = self.runs.get(at) {
            let range = run.blocks();
            if !run.is_idle() {
                at += 1;
            } else if self.copy_back(at).is_none() {
                drop(self.blocks.take(&range));
                at += 1;
            } else {
                drop(self.runs.swap_remove(at));
                refund((range.end - range.start - self.blocks.count(&range) as u64) * BLOCK as u64);
            }
        }
    }

    /// Makes blocks of what run number `at` has; `None` if there is no memory for one of them.
    fn copy_back(&mut self, at: usize) -> Option<()> {
        let run = &self.runs[at];
        let range = run.blocks();
        for index in range.start..range.end.min(self.len.div_ceil(BLOCK as u64)) {
            // What the program has written beyond the end of the file is not part of it.
            let len = (self.len - index * BLOCK as u64).min(BLOCK as u64) as usize;
            let bytes = &run.get(index)[..len];
            // Zeros are as good as a hole.
            if bytes.iter().any(|b| *b != 0) {
                self.blocks.get_or_try_insert(index, zeroed_block)?[..len].copy_from_slice(bytes);
            }
        }
        Some(())
    }

    /// Makes the bytes from `from` to `to` zeros where they are mapped. The program can write there beyond the end of the file, and what it has
    /// written must not become part of the file.
    fn clear(&mut self, from: u64, to: u64) -> Result<()> {
        let block = BLOCK as u64;
        for run in &mut self.runs {
            let blocks = run.blocks();
            for index in blocks.start.max(from / block)..blocks.end.min(to.div_ceil(block)) {
                let (start, end) = (from.max(index * block), to.min((index + 1) * block));
                run.write(index, |b| b[(start - index * block) as usize..(end - index * block) as usize].fill(0))?;
            }
        }
        Ok(())
    }

    fn block(&mut self, index: u64) -> Result<&mut [u8; BLOCK]> {
        let make = || {
            // What one writes does not use up what the library OS keeps for itself.
            crate::fd::headroom().ok()?;
            charge(BLOCK as u64).ok()?;
            let block = zeroed_block();
            if block.is_none() {
                refund(BLOCK as u64);
            }
            block
        };
        self.blocks.get_or_try_insert(index, make).map(|block| &mut **block).ok_or(Errno::ENOSPC)
    }

    fn set_len(&mut self, len: u64) -> Result<()> {
        self.clear(len.min(self.len), len.max(self.len))?;
        // Also what was allocated behind the end.
        if len <= self.len {
            let keep = len.div_ceil(BLOCK as u64);
            refund(self.blocks.truncate(&keep) as u64 * BLOCK as u64);
            let cut = (len % BLOCK as u64) as usize;
            if cut != 0
                && let Some(block) = self.blocks.get_mut(&(len / BLOCK as u64))
            {
                block[cut..].fill(0);
            }
        }
        self.len = len;
        Ok(())
    }
}

fn zeroed_block() -> Option<Box<[u8; BLOCK]>> {
    let mut block = Vec::new();
    block.try_reserve_exact(BLOCK).ok()?;
    block.resize(BLOCK, 0);
    block.into_boxed_slice().try_into().ok()
}

impl Drop for TmpNode {
    fn drop(&mut self) {
        if self.ino != 1 {
            refund(self.kind.cost());
        }
    }
}

impl TmpNode {
    fn new(kind: Kind, mode: u32) -> Result<Rc<TmpNode>> {
        crate::fd::headroom()?;
        charge(kind.cost())?;
        let ino = SPACE.with(|s| {
            s.next_ino += 1;
            s.next_ino
        });
        let now = now();
        let nlink = if matches!(kind, Kind::Dir { .. }) { 2 } else { 1 };
        Ok(Rc::new(TmpNode {
            ino,
            kind,
            mode: Cell::new(mode),
            nlink: Cell::new(nlink),
            owner: Cell::new((USER, USER)),
            atime: Cell::new(now),
            mtime: Cell::new(now),
            ctime: Cell::new(now),
        }))
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir { .. })
    }

    /// Whether it is a socket.
    pub fn is_socket(&self) -> bool {
        matches!(self.kind, Kind::Socket(_))
    }

    /// The socket, if it is one and it is still open.
    pub fn socket(&self) -> Option<Rc<dyn core::any::Any>> {
        match &self.kind {
            Kind::Socket(socket) => socket.upgrade(),
            _ => None,
        }
    }

    /// The pipe, if it is a named one.
    pub fn pipe(&self) -> Option<&Rc<Pipe>> {
        match &self.kind {
            Kind::Pipe(pipe) => Some(pipe),
            _ => None,
        }
    }

    /// Where a symbolic link leads.
    pub fn link_target(&self) -> Option<&[u8]> {
        match &self.kind {
            Kind::Link(target) => Some(target),
            _ => None,
        }
    }

    fn children(&self) -> Result<&RefCell<Children>> {
        match &self.kind {
            Kind::Dir { children, .. } => Ok(children),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// The child of that name.
    pub fn child(&self, name: &[u8]) -> Option<Rc<TmpNode>> {
        self.children().ok()?.borrow().get(name).cloned()
    }

    /// The directory that a directory is in; `None` for `/tmp` itself and for removed ones.
    pub fn parent(&self) -> Option<Rc<TmpNode>> {
        match &self.kind {
            Kind::Dir { parent, .. } => parent.borrow().upgrade(),
            _ => None,
        }
    }

    /// Name under which `child` is in this directory.
    pub fn name_of(&self, child: &Rc<TmpNode>) -> Option<Vec<u8>> {
        let children = self.children().ok()?.borrow();
        children.iter().find(|(_, c)| Rc::ptr_eq(c, child)).map(|(n, _)| n.to_vec())
    }

    /// The first child whose name is behind `after` (all, if `None`).
    pub fn next_child(&self, after: Option<&[u8]>) -> Option<(Vec<u8>, Rc<TmpNode>)> {
        let children = self.children().ok()?.borrow();
        let next = after.map_or_else(|| children.first(), |name| children.after(name));
        next.map(|(n, c)| (n.to_vec(), c.clone()))
    }

    /// Puts a node into this directory.
    pub fn insert(self: &Rc<Self>, name: &[u8], node: Rc<TmpNode>) -> Result<()> {
        if self.nlink.get() == 0 {
            return Err(Errno::ENOENT);
        }
        self.children()?.borrow_mut().insert(name.into(), node.clone())?;
        if let Kind::Dir { parent, .. } = &node.kind {
            *parent.borrow_mut() = Rc::downgrade(self);
            self.nlink.set(self.nlink.get() + 1);
        }
        self.touch();
        Ok(())
    }

    fn touch(&self) {
        let now = now();
        self.mtime.set(now);
        self.ctime.set(now);
    }

    /// A new empty file.
    pub fn create_file(self: &Rc<Self>, name: &[u8], mode: u32) -> Result<Rc<TmpNode>> {
        let node = TmpNode::new(Kind::File(RefCell::default()), mode)?;
        self.insert(name, node.clone())?;
        Ok(node)
    }

    /// A new directory.
    pub fn create_dir(self: &Rc<Self>, name: &[u8], mode: u32) -> Result<()> {
        let kind = Kind::Dir { children: RefCell::new(Sorted::new()), parent: RefCell::new(Weak::new()) };
        self.insert(name, TmpNode::new(kind, mode)?)
    }

    /// A new symbolic link.
    pub fn create_symlink(self: &Rc<Self>, name: &[u8], target: &[u8]) -> Result<()> {
        self.insert(name, TmpNode::new(Kind::Link(target.into()), 0o777)?)
    }

    /// A new socket.
    pub fn create_socket(self: &Rc<Self>, name: &[u8], socket: SocketNode) -> Result<()> {
        self.insert(name, TmpNode::new(Kind::Socket(socket), 0o755)?)
    }

    /// A new named pipe.
    pub fn create_pipe(self: &Rc<Self>, name: &[u8], mode: u32) -> Result<()> {
        self.insert(name, TmpNode::new(Kind::Pipe(Rc::default()), mode)?)
    }

    /// Removes an entry; a directory must be empty.
    pub fn remove(&self, name: &[u8]) -> Result<()> {
        let node = self.child(name).ok_or(Errno::ENOENT)?;
        if let Kind::Dir { children, parent } = &node.kind {
            if !children.borrow().is_empty() {
                return Err(Errno::ENOTEMPTY);
            }
            *parent.borrow_mut() = Weak::new();
            node.nlink.set(0);
            self.nlink.set(self.nlink.get() - 1);
        } else {
            node.nlink.set(node.nlink.get().saturating_sub(1));
            if node.nlink.get() > 0 {
                refund(NODE_COST);
            }
        }
        self.children()?.borrow_mut().remove(name);
        node.ctime.set(now());
        self.touch();
        Ok(())
    }

    pub(super) fn content(&self) -> Result<&RefCell<Content>> {
        match &self.kind {
            Kind::File(content) => Ok(content),
            Kind::Dir { .. } => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Bytes of content.
    pub fn size(&self) -> u64 {
        match &self.kind {
            Kind::File(content) => content.borrow().len,
            Kind::Link(target) => target.len() as u64,
            Kind::Dir { children, .. } => children.borrow().len() as u64 * 32,
            Kind::Socket(_) | Kind::Pipe(_) => 0,
        }
    }

    /// `truncate`: cuts, or makes a hole at the end.
    pub fn set_len(&self, len: u64) -> Result<()> {
        if len > SIZE_MAX {
            return Err(Errno::EFBIG);
        }
        self.content()?.borrow_mut().set_len(len)?;
        self.touch();
        Ok(())
    }

    /// `fallocate`: makes sure that the blocks exist, or changes nothing.
    pub fn allocate(&self, at: u64, len: u64, keep_size: bool) -> Result<()> {
        let end = at.checked_add(len).filter(|e| *e <= SIZE_MAX).ok_or(Errno::EFBIG)?;
        let mut content = self.content()?.borrow_mut();
        let mut made: Vec<Range<u64>> = Vec::new();
        for index in at / BLOCK as u64..end.div_ceil(BLOCK as u64) {
            if content.get(index).is_some() {
                continue;
            }
            let result = match made.last_mut() {
                Some(last) if last.end == index => {
                    last.end += 1;
                    Ok(())
                }
                _ => made.try_reserve(1).map(|()| made.push(index..index + 1)).map_err(|_| Errno::ENOSPC),
            };
            if let Err(e) = result.and_then(|()| content.block(index).map(|_| ())) {
                for range in made {
                    refund(content.blocks.take(&range).len() as u64 * BLOCK as u64);
                }
                return Err(e);
            }
        }
        if !keep_size && end > content.len {
            content.set_len(end)?;
        }
        Ok(())
    }

    /// Reads at a position; holes are zeros.
    pub fn read_at(&self, bufs: &mut [&mut [u8]], at: u64) -> Result<usize> {
        let content = self.content()?.borrow();
        let mut at = at;
        let mut n = 0;
        for buf in bufs {
            let left = content.len.saturating_sub(at).min(buf.len() as u64) as usize;
            let mut out = &mut buf[..left];
            n += left;
            while !out.is_empty() {
                let within = (at % BLOCK as u64) as usize;
                let (now, later) = out.split_at_mut((BLOCK - within).min(out.len()));
                match content.get(at / BLOCK as u64) {
                    Some(block) => now.copy_from_slice(&block[within..within + now.len()]),
                    None => now.fill(0),
                }
                at += now.len() as u64;
                out = later;
            }
        }
        Ok(n)
    }

    /// Writes at a position; what fits, or `ENOSPC` if nothing does.
    pub fn write_at(&self, bufs: &[&[u8]], at: u64) -> Result<usize> {
        let total: u64 = bufs.iter().map(|b| b.len() as u64).sum();
        if at.checked_add(total).is_none_or(|end| end > SIZE_MAX) {
            return Err(Errno::EFBIG);
        }
        let mut content = self.content()?.borrow_mut();
        let mut at = at;
        let mut n = 0;
        'all: for buf in bufs {
            let mut rest = *buf;
            while !rest.is_empty() {
                let within = (at % BLOCK as u64) as usize;
                let (now, later) = rest.split_at((BLOCK - within).min(rest.len()));
                let end = at + now.len() as u64;
                if end > content.len {
                    let len = content.len;
                    content.clear(len, end)?;
                }
                match content.with_block(at / BLOCK as u64, |b| b[within..within + now.len()].copy_from_slice(now)) {
                    Ok(()) => {}
                    Err(_) if n > 0 => break 'all,
                    Err(e) => return Err(e),
                }
                at += now.len() as u64;
                n += now.len();
                content.len = content.len.max(at);
                rest = later;
            }
        }
        drop(content);
        if n > 0 {
            self.touch();
        }
        Ok(n)
    }

    /// `chmod`.
    pub fn set_mode(&self, mode: u32) {
        self.mode.set(mode);
        self.ctime.set(now());
    }

    /// `chown`.
    pub fn set_owner(&self, uid: u32, gid: u32) {
        let (u, g) = self.owner.get();
        self.owner.set((if uid == u32::MAX { u } else { uid }, if gid == u32::MAX { g } else { gid }));
        self.ctime.set(now());
    }

    /// `utimens`.
    pub fn set_times(&self, atime: Option<Time>, mtime: Option<Time>) {
        if let Some(t) = atime {
            self.atime.set(t);
        }
        if let Some(t) = mtime {
            self.mtime.set(t);
        }
        self.ctime.set(now());
    }

    /// Status.
    pub fn stat(&self) -> Stat {
        let (kind, used) = match &self.kind {
            Kind::File(content) => (kind::FILE, content.borrow().used() * BLOCK as u64),
            Kind::Dir { .. } => (kind::DIR, 0),
            Kind::Link(_) => (kind::LINK, 0),
            Kind::Socket(_) => (kind::SOCKET, 0),
            Kind::Pipe(_) => (kind::FIFO, 0),
        };
        let (uid, gid) = self.owner.get();
        Stat {
            dev: 2,
            ino: self.ino,
            mode: kind | self.mode.get(),
            nlink: self.nlink.get(),
            uid,
            gid,
            rdev: 0,
            size: self.size(),
            used,
            atime: self.atime.get(),
            mtime: self.mtime.get(),
            ctime: self.ctime.get(),
        }
    }
}

/// `rename`. Both directories are in the tmpfs, and so is the node.
pub fn rename(from: &Rc<TmpNode>, from_name: &[u8], to: &Rc<TmpNode>, to_name: &[u8], replace: bool) -> Result<()> {
    let node = from.child(from_name).ok_or(Errno::ENOENT)?;
    // A directory that was removed and is somebody's working directory still.
    if to.nlink.get() == 0 {
        return Err(Errno::ENOENT);
    }
    if let Some(old) = to.child(to_name) {
        if !replace {
            return Err(Errno::EEXIST);
        }
        if Rc::ptr_eq(&old, &node) {
            return Ok(());
        }
        match (node.is_dir(), old.is_dir()) {
            (true, false) => return Err(Errno::ENOTDIR),
            (false, true) => return Err(Errno::EISDIR),
            _ => {}
        }
    }
    if node.is_dir() {
        // Not into itself.
        let mut up = Some(to.clone());
        while let Some(dir) = up {
            if Rc::ptr_eq(&dir, &node) {
                return Err(Errno::EINVAL);
            }
            up = dir.parent();
        }
    }
    // From here on nothing fails.
    to.children()?.borrow_mut().reserve()?;
    if to.child(to_name).is_some() {
        to.remove(to_name)?;
    }
    // First in its new place, so that a failure leaves it in the old one.
    to.insert(to_name, node.clone())?;
    from.children()?.borrow_mut().remove(from_name);
    if node.is_dir() {
        from.nlink.set(from.nlink.get() - 1);
    }
    from.touch();
    node.ctime.set(now());
    Ok(())
}

/// `link`: another name for a node that is no directory.
pub fn link(node: &Rc<TmpNode>, to: &Rc<TmpNode>, name: &[u8]) -> Result<()> {
    crate::fd::headroom()?;
    charge(NODE_COST)?;
    to.insert(name, node.clone()).inspect_err(|_| refund(NODE_COST))?;
    node.nlink.set(node.nlink.get() + 1);
    Ok(())
}

/// An empty tmpfs with a limit, for tests.
#[cfg(test)]
pub fn reset(limit: u64) {
    super::shared::reset();
    let old = SPACE.with(|s| s.root.take());
    drop(old);
    SPACE.with(|s| *s = Space { root: None, used: 0, limit: 0, next_ino: 2 });
    root();
    SPACE.with(|s| s.limit = limit);
}
