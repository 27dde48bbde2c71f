//! The file tree: the read-only bundle at `/`, a size-limited tmpfs at `/tmp`, and a handful of devices in `/dev`.

mod bundle;
mod dev;
mod file;
pub mod map;
mod path;
pub mod shared;
mod stat;
#[cfg(test)]
mod tests;
pub(crate) mod tmpfs;

pub use file::{DirEntry, LockKind, OpenFile, copy_range, flock, read_dir};
pub use path::{At, Node};
pub use stat::{Stat, Time, USER, kind};
pub use tmpfs::usage;

pub(crate) use bundle::BundleNode;
pub use tmpfs::TmpNode;

use crate::errno::{Errno, Result};
use crate::fd::{self, FileRef, console::Console};
use alloc::rc::Rc;
use alloc::vec::Vec;
use path::{Follow, lookup, lookup_parent};

/// Longest path, bytes, as `PATH_MAX` without its NUL.
pub const PATH_MAX: usize = 4095;
/// Longest component.
pub const NAME_MAX: usize = 255;

/// `openat`. Paths are bytes without the NUL.
pub fn open(at: At, path: &[u8], flags: i32, mode: u32) -> Result<i32> {
    let _guard = donjon_base::preempt::off();
    let file = open_file(at, path, flags, mode)?;
    fd::install(file, flags & fd::O_CLOEXEC != 0)
}

fn open_file(at: At, path: &[u8], flags: i32, mode: u32) -> Result<FileRef> {
    if flags & fd::O_ACCMODE == fd::O_ACCMODE {
        return Err(Errno::EINVAL);
    }
    if flags & fd::O_TMPFILE == fd::O_TMPFILE {
        return Err(Errno::EOPNOTSUPP);
    }
    let follow = if flags & fd::O_NOFOLLOW != 0 { Follow::No } else { Follow::Yes };
    let node = if flags & fd::O_CREAT != 0 && flags & fd::O_PATH == 0 {
        create(at, path, flags, mode, follow)?
    } else {
        lookup(at, path, follow)?
    };
    let writing = flags & fd::O_ACCMODE != fd::O_RDONLY && flags & fd::O_PATH == 0;
    if node.is_symlink() && flags & fd::O_PATH == 0 {
        return Err(Errno::ELOOP);
    }
    if node.is_dir() {
        if writing || flags & fd::O_CREAT != 0 {
            return Err(Errno::EISDIR);
        }
    } else if flags & fd::O_DIRECTORY != 0 {
        return Err(Errno::ENOTDIR);
    }
    if writing && node.read_only() {
        return Err(Errno::EROFS);
    }
    if let Node::Tmp(tmp) = &node
        && flags & fd::O_PATH == 0
    {
        if tmp.is_socket() {
            return Err(Errno::ENXIO);
        }
        if let Some(pipe) = tmp.pipe() {
            return crate::io::pipe::open(pipe, node.clone(), flags & !CREATION);
        }
        if flags & fd::O_TRUNC != 0 && writing {
            tmp.set_len(0)?;
        }
    }
    match node {
        Node::Dev(dev)
            if flags & fd::O_PATH == 0
                && let Some(stream) = dev.console() =>
        {
            fd::open_file(Console::new(stream, Some(node)), flags & !CREATION)
        }
        node => fd::open_file(OpenFile::new(node), flags & !CREATION),
    }
}

/// Flags that the description does not keep.
const CREATION: i32 = fd::O_CREAT | fd::O_EXCL | fd::O_TRUNC | fd::O_NOCTTY;

fn create(at: At, path: &[u8], flags: i32, mode: u32, follow: Follow) -> Result<Node> {
    // A dangling symbolic link names the file to create, unless O_EXCL or O_NOFOLLOW forbid to follow it.
    let mut target: Vec<u8> = path.to_vec();
    let mut base = at;
    for _ in 0..path::LINKS_MAX {
        let parent = match lookup_parent(base.clone(), &target) {
            Ok(parent) => parent,
            // "/" and paths that end in "..": they exist, if at all.
            Err(Errno::EBUSY | Errno::EINVAL) if flags & fd::O_EXCL != 0 => return Err(Errno::EEXIST),
            Err(Errno::EBUSY | Errno::EINVAL) => return lookup(base, &target, follow),
            Err(e) => return Err(e),
        };
        match parent.child() {
            Ok(_) if flags & fd::O_EXCL != 0 => return Err(Errno::EEXIST),
            Ok(node) => match node.link_target() {
                Some(link) if follow == Follow::Yes => {
                    base = At::Node(parent.dir.clone());
                    target = link;
                }
                _ => return Ok(node),
            },
            Err(Errno::ENOENT) if parent.must_be_dir => return Err(Errno::EISDIR),
            Err(Errno::ENOENT) => {
                let dir = parent.dir.as_tmp_dir()?;
                return Ok(Node::Tmp(dir.create_file(&parent.name, mode & 0o7777 & !umask())?));
            }
            Err(e) => return Err(e),
        }
    }
    Err(Errno::ELOOP)
}

static UMASK: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0o022);

fn umask() -> u32 {
    UMASK.load(core::sync::atomic::Ordering::Relaxed)
}

/// `umask`: sets it and returns the one before.
pub fn set_umask(mask: u32) -> u32 {
    UMASK.swap(mask & 0o777, core::sync::atomic::Ordering::Relaxed)
}

/// `fstatat`. An empty path is the directory descriptor itself if `empty` (`AT_EMPTY_PATH`).
pub fn stat(at: At, path: &[u8], follow: bool, empty: bool) -> Result<Stat> {
    let _guard = donjon_base::preempt::off();
    if path.is_empty() && empty {
        return match at {
            At::Fd(fd) => Ok(fd::get(fd)?.obj.stat()),
            at => Ok(at.start()?.stat()),
        };
    }
    Ok(lookup(at, path, if follow { Follow::Yes } else { Follow::No })?.stat())
}

/// `faccessat`: the guest is root, so only the read-only bundle refuses writes, and nothing can be executed.
pub fn access(at: At, path: &[u8], mode: u32, follow: bool) -> Result<()> {
    const EXECUTE: u32 = 1;
    const WRITE: u32 = 2;
    if mode & !7 != 0 {
        return Err(Errno::EINVAL);
    }
    let _guard = donjon_base::preempt::off();
    let node = lookup(at, path, if follow { Follow::Yes } else { Follow::No })?;
    if mode & WRITE != 0 && node.read_only() {
        return Err(Errno::EROFS);
    }
    if mode & EXECUTE != 0 && !node.is_dir() {
        return Err(Errno::EACCES);
    }
    Ok(())
}

/// `mkdirat`.
pub fn mkdir(at: At, path: &[u8], mode: u32) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    let parent = match lookup_parent(at, path) {
        Err(Errno::EBUSY | Errno::EINVAL) => return Err(Errno::EEXIST),
        other => other?,
    };
    match parent.child() {
        Ok(_) => Err(Errno::EEXIST),
        Err(Errno::ENOENT) => {
            parent.dir.as_tmp_dir()?.create_dir(&parent.name, mode & 0o1777 & !umask())?;
            Ok(())
        }
        Err(e) => Err(e),
    }
}

/// `mkfifoat`.
pub fn mkfifo(at: At, path: &[u8], mode: u32) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    let parent = match lookup_parent(at, path) {
        Err(Errno::EBUSY | Errno::EINVAL) => return Err(Errno::EEXIST),
        other => other?,
    };
    match parent.child() {
        Ok(_) => Err(Errno::EEXIST),
        Err(Errno::ENOENT) if parent.must_be_dir => Err(Errno::ENOENT),
        Err(Errno::ENOENT) => parent.dir.as_tmp_dir()?.create_pipe(&parent.name, mode & 0o777 & !umask()),
        Err(e) => Err(e),
    }
}

/// `unlinkat`: a directory if `dir` (`AT_REMOVEDIR`), else anything but one.
pub fn unlink(at: At, path: &[u8], dir: bool) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    let parent = lookup_parent(at, path)?;
    let node = parent.child()?;
    if !dir {
        if node.is_dir() {
            return Err(Errno::EISDIR);
        }
        if parent.must_be_dir {
            return Err(Errno::ENOTDIR);
        }
    } else if !node.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    if node.is_mount() {
        return Err(Errno::EBUSY);
    }
    parent.dir.as_tmp_dir()?.remove(&parent.name)
}

/// `renameat2` with the flag `RENAME_NOREPLACE` or none.
pub fn rename(from_at: At, from: &[u8], to_at: At, to: &[u8], replace: bool) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    let from = lookup_parent(from_at, from)?;
    let to = lookup_parent(to_at, to)?;
    let node = from.child()?;
    if node.is_mount() {
        return Err(Errno::EBUSY);
    }
    if (from.must_be_dir || to.must_be_dir) && !node.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    let (from_dir, to_dir) = match (from.dir.as_tmp_dir(), to.dir.as_tmp_dir()) {
        (Ok(a), Ok(b)) => (a, b),
        (Err(a), Err(_)) => return Err(a),
        _ => return Err(Errno::EXDEV),
    };
    tmpfs::rename(&from_dir, &from.name, &to_dir, &to.name, replace)
}

/// `linkat`: hard links of files in the tmpfs.
pub fn link(from_at: At, from: &[u8], to_at: At, to: &[u8], follow: bool) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    let node = lookup(from_at, from, if follow { Follow::Yes } else { Follow::No })?;
    let to = lookup_parent(to_at, to)?;
    if node.is_dir() {
        return Err(Errno::EPERM);
    }
    if to.child().is_ok() {
        return Err(Errno::EEXIST);
    }
    let dir = to.dir.as_tmp_dir()?;
    match node {
        Node::Tmp(tmp) => tmpfs::link(&tmp, &dir, &to.name),
        _ => Err(Errno::EXDEV),
    }
}

/// `symlinkat`.
pub fn symlink(target: &[u8], at: At, path: &[u8]) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    if target.is_empty() {
        return Err(Errno::ENOENT);
    }
    if target.len() > PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let parent = match lookup_parent(at, path) {
        Err(Errno::EBUSY | Errno::EINVAL) => return Err(Errno::EEXIST),
        other => other?,
    };
    if parent.child().is_ok() {
        return Err(Errno::EEXIST);
    }
    parent.dir.as_tmp_dir()?.create_symlink(&parent.name, target)
}

/// `readlinkat`: the target.
pub fn read_link(at: At, path: &[u8]) -> Result<Vec<u8>> {
    let _guard = donjon_base::preempt::off();
    lookup(at, path, Follow::No)?.link_target().ok_or(Errno::EINVAL)
}

/// `truncate`.
pub fn truncate(path: &[u8], len: i64) -> Result<()> {
    let len = u64::try_from(len).map_err(|_| Errno::EINVAL)?;
    let _guard = donjon_base::preempt::off();
    let node = lookup(At::Cwd, path, Follow::Yes)?;
    if node.is_dir() {
        return Err(Errno::EISDIR);
    }
    match node {
        Node::Tmp(tmp) => tmp.set_len(len),
        Node::Bundle(_) => Err(Errno::EROFS),
        Node::Dev(_) => Err(Errno::EINVAL),
    }
}

fn node_of(at: At, path: Option<&[u8]>, follow: bool) -> Result<Node> {
    match (path, at) {
        (Some(path), at) => lookup(at, path, if follow { Follow::Yes } else { Follow::No }),
        (None, At::Fd(fd)) => fd::get(fd)?.obj.node().cloned().ok_or(Errno::EINVAL),
        (None, at) => at.start(),
    }
}

fn tmp_of(at: At, path: Option<&[u8]>, follow: bool) -> Result<Rc<TmpNode>> {
    match node_of(at, path, follow)? {
        Node::Tmp(tmp) => Ok(tmp),
        Node::Bundle(_) => Err(Errno::EROFS),
        Node::Dev(_) => Err(Errno::EPERM),
    }
}

/// `fchmodat`, and `fchmod` when there is no path.
pub fn chmod(at: At, path: Option<&[u8]>, mode: u32, follow: bool) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    tmp_of(at, path, follow)?.set_mode(mode & 0o7777);
    Ok(())
}

/// `fchownat`, and `fchown` when there is no path. `u32::MAX` leaves an id as it is.
pub fn chown(at: At, path: Option<&[u8]>, uid: u32, gid: u32, follow: bool) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    tmp_of(at, path, follow)?.set_owner(uid, gid);
    Ok(())
}

/// `utimensat`, and `futimens` when there is no path: access and modification time; `None` leaves one as it is.
pub fn set_times(at: At, path: Option<&[u8]>, atime: Option<Time>, mtime: Option<Time>, follow: bool) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    tmp_of(at, path, follow)?.set_times(atime, mtime);
    Ok(())
}

/// `getcwd`.
pub fn cwd() -> Result<Vec<u8>> {
    let _guard = donjon_base::preempt::off();
    path::cwd_path()
}

/// `chdir`.
pub fn chdir(path: &[u8]) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    path::set_cwd(lookup(At::Cwd, path, Follow::Yes)?)
}

/// `fchdir`.
pub fn fchdir(fd: i32) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    let node = fd::get(fd)?.obj.node().cloned().ok_or(Errno::ENOTDIR)?;
    path::set_cwd(node)
}

/// `realpath`: absolute, without `.`, `..`, double slashes and symbolic links.
pub fn real_path(path: &[u8]) -> Result<Vec<u8>> {
    let _guard = donjon_base::preempt::off();
    path::real_path(path)
}

/// Binds a socket to a path: a node in the tmpfs that leads to it.
pub(crate) fn bind_socket(path: &[u8], socket: tmpfs::SocketNode) -> Result<()> {
    let parent = match lookup_parent(At::Cwd, path) {
        Err(Errno::EBUSY | Errno::EINVAL) => return Err(Errno::EADDRINUSE),
        other => other?,
    };
    if parent.child().is_ok() {
        return Err(Errno::EADDRINUSE);
    }
    parent.dir.as_tmp_dir()?.create_socket(&parent.name, socket)
}

/// The socket that is bound to a path; `None` if nobody has it open any more.
pub(crate) fn socket_at(path: &[u8]) -> Result<Option<Rc<dyn core::any::Any>>> {
    match lookup(At::Cwd, path, Follow::Yes)? {
        Node::Tmp(tmp) if tmp.is_socket() => Ok(tmp.socket()),
        _ => Err(Errno::ECONNREFUSED),
    }
}

/// An empty tree with a tmpfs of at most that many bytes, for tests.
#[cfg(test)]
pub(crate) fn reset(limit: u64) {
    path::reset();
    tmpfs::reset(limit);
}
