//! From a path to a node.

use super::bundle::BundleNode;
use super::dev::Dev;
use super::stat::{Stat, kind};
use super::{NAME_MAX, PATH_MAX, TmpNode, tmpfs};
use crate::errno::{Errno, Result};
use crate::global::Global;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// Symbolic links that a lookup follows before it gives up (`ELOOP`).
pub const LINKS_MAX: usize = 40;

/// A place in the file tree.
#[derive(Clone)]
pub enum Node {
    /// In the bundle.
    Bundle(BundleNode),
    /// In the tmpfs.
    Tmp(Rc<TmpNode>),
    /// In `/dev`.
    Dev(Dev),
}

impl Node {
    pub(super) const ROOT: Node = Node::Bundle(BundleNode::ROOT);

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        match self {
            Node::Bundle(b) => b.is_dir(),
            Node::Tmp(t) => t.is_dir(),
            Node::Dev(d) => *d == Dev::Dir,
        }
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        matches!(self, Node::Tmp(t) if t.link_target().is_some())
    }

    /// Whether writes fail with `EROFS`.
    pub fn read_only(&self) -> bool {
        matches!(self, Node::Bundle(_) | Node::Dev(Dev::Dir))
    }

    /// Whether another tree is mounted there.
    pub fn is_mount(&self) -> bool {
        match self {
            Node::Bundle(b) => b.entry.is_none(),
            Node::Tmp(t) => t.is_dir() && Rc::ptr_eq(t, &tmpfs::root()),
            Node::Dev(d) => *d == Dev::Dir,
        }
    }

    /// Where a symbolic link leads.
    pub fn link_target(&self) -> Option<Vec<u8>> {
        match self {
            Node::Tmp(t) => t.link_target().map(<[u8]>::to_vec),
            _ => None,
        }
    }

    /// The tmpfs directory that this is, for making and removing entries; `EROFS` elsewhere.
    pub fn as_tmp_dir(&self) -> Result<Rc<TmpNode>> {
        match self {
            Node::Tmp(t) if t.is_dir() => Ok(t.clone()),
            node if node.is_dir() => Err(Errno::EROFS),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// Status.
    pub fn stat(&self) -> Stat {
        match self {
            Node::Bundle(b) => b.stat(),
            Node::Tmp(t) => t.stat(),
            Node::Dev(d) => d.stat(),
        }
    }

    pub(super) fn child(&self, name: &[u8]) -> Result<Node> {
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        match self {
            Node::Bundle(BundleNode { entry: None }) if name == b"tmp" => Some(Node::Tmp(tmpfs::root())),
            Node::Bundle(BundleNode { entry: None }) if name == b"dev" => Some(Node::Dev(Dev::Dir)),
            Node::Bundle(b) => b.child(name).map(Node::Bundle),
            Node::Tmp(t) => t.child(name).map(Node::Tmp),
            Node::Dev(d) => d.child(name).map(Node::Dev),
        }
        .ok_or(Errno::ENOENT)
    }

    pub(super) fn parent(&self) -> Node {
        match self {
            Node::Bundle(b) => Node::Bundle(b.parent()),
            Node::Tmp(t) => t.parent().map_or(Node::ROOT, Node::Tmp),
            Node::Dev(_) => Node::ROOT,
        }
    }
}

/// Where a relative path starts.
#[derive(Clone)]
pub enum At {
    /// At the current directory (`AT_FDCWD`).
    Cwd,
    /// At the directory that is open as this descriptor.
    Fd(i32),
    /// At this node.
    Node(Node),
}

impl At {
    /// The node.
    pub fn start(&self) -> Result<Node> {
        match self {
            At::Cwd => Ok(cwd()),
            At::Fd(fd) => crate::fd::get(*fd)?.obj.node().cloned().ok_or(Errno::ENOTDIR),
            At::Node(node) => Ok(node.clone()),
        }
    }
}

/// Whether a symbolic link at the end of the path is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// It is.
    Yes,
    /// It is the result itself.
    No,
}

static CWD: Global<Option<Node>> = Global::new(None);

fn cwd() -> Node {
    CWD.with(|c| c.clone()).unwrap_or(Node::ROOT)
}

/// Back to the root, for tests.
#[cfg(test)]
pub fn reset() {
    let old = CWD.with(Option::take);
    drop(old);
}

pub(super) fn set_cwd(node: Node) -> Result<()> {
    if !node.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    let old = CWD.with(|c| c.replace(node));
    drop(old);
    Ok(())
}

pub(super) fn cwd_path() -> Result<Vec<u8>> {
    dir_path(&cwd())
}

/// The path of a directory, from the root.
fn dir_path(node: &Node) -> Result<Vec<u8>> {
    let mut path = Vec::new();
    match node {
        Node::Bundle(b) => {
            path.push(b'/');
            path.extend_from_slice(b.path().as_bytes());
        }
        Node::Dev(_) => path.extend_from_slice(b"/dev"),
        Node::Tmp(tmp) => {
            let mut names = Vec::new();
            let mut dir = tmp.clone();
            let mut len = b"/tmp".len();
            while let Some(up) = dir.parent() {
                // Nobody knows how deep it is; the first few need no more than there always is.
                if names.len() >= 64 {
                    crate::fd::headroom()?;
                }
                names.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                names.push(up.name_of(&dir).ok_or(Errno::ENOENT)?);
                len += 1 + names.last().map_or(0, Vec::len);
                dir = up;
            }
            if !Rc::ptr_eq(&dir, &tmpfs::root()) {
                // Removed while it was in use.
                return Err(Errno::ENOENT);
            }
            path.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
            path.extend_from_slice(b"/tmp");
            for name in names.iter().rev() {
                path.push(b'/');
                path.extend_from_slice(name);
            }
        }
    }
    Ok(path)
}

fn check(path: &[u8]) -> Result<()> {
    if path.is_empty() {
        return Err(Errno::ENOENT);
    }
    if path.len() > PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    Ok(())
}

/// The node of a path.
pub fn lookup(at: At, path: &[u8], follow: Follow) -> Result<Node> {
    check(path)?;
    let mut node = if path[0] == b'/' { Node::ROOT } else { at.start()? };
    let mut text = path.to_vec();
    let mut pos = 0;
    let mut links = 0;
    loop {
        while text.get(pos) == Some(&b'/') {
            pos += 1;
        }
        if pos == text.len() {
            // A path that ends in a slash names a directory.
            if text.last() == Some(&b'/') && !node.is_dir() {
                return Err(Errno::ENOTDIR);
            }
            return Ok(node);
        }
        if !node.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        let end = text[pos..].iter().position(|b| *b == b'/').map_or(text.len(), |n| pos + n);
        let next = match &text[pos..end] {
            b"." => node.clone(),
            b".." => node.parent(),
            name => node.child(name)?,
        };
        let last = end == text.len();
        match next.link_target() {
            Some(mut target) if !last || follow == Follow::Yes => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::ELOOP);
                }
                if target.first() == Some(&b'/') {
                    node = Node::ROOT;
                }
                target.extend_from_slice(&text[end..]);
                if target.len() > PATH_MAX {
                    return Err(Errno::ENAMETOOLONG);
                }
                text = target;
                pos = 0;
            }
            _ => {
                node = next;
                pos = end;
            }
        }
    }
}

/// A directory and a name in it, which may exist or not.
pub struct Parent {
    /// The directory.
    pub dir: Node,
    /// The name.
    pub name: Vec<u8>,
    /// The path ended in a slash.
    pub must_be_dir: bool,
}

impl Parent {
    /// The node, if it exists.
    pub fn child(&self) -> Result<Node> {
        self.dir.child(&self.name)
    }
}

/// The directory of a path's last component. `EBUSY` for the root and for `..`, `EINVAL` for `.`: such paths exist or not, but
/// nothing can be made, removed or renamed there.
pub fn lookup_parent(at: At, path: &[u8]) -> Result<Parent> {
    check(path)?;
    let end = path.iter().rposition(|b| *b != b'/').ok_or(Errno::EBUSY)? + 1;
    let start = path[..end].iter().rposition(|b| *b == b'/').map_or(0, |n| n + 1);
    let name = match &path[start..end] {
        b".." => return Err(Errno::EBUSY),
        b"." => return Err(Errno::EINVAL),
        name if name.len() > NAME_MAX => return Err(Errno::ENAMETOOLONG),
        name => name.to_vec(),
    };
    let dir = if start == 0 { at.start()? } else { lookup(at, &path[..start], Follow::Yes)? };
    if !dir.is_dir() {
        return Err(Errno::ENOTDIR);
    }
    Ok(Parent { dir, name, must_be_dir: end < path.len() })
}

/// See [`super::real_path`].
pub(super) fn real_path(path: &[u8]) -> Result<Vec<u8>> {
    let mut at = At::Cwd;
    let mut text = path.to_vec();
    for _ in 0..LINKS_MAX {
        let parent = match lookup_parent(at.clone(), &text) {
            Err(Errno::EBUSY | Errno::EINVAL) => return dir_path(&lookup(at, &text, Follow::Yes)?),
            other => other?,
        };
        let child = parent.child()?;
        match child.link_target() {
            Some(target) => {
                at = At::Node(parent.dir);
                text = target;
            }
            None if child.is_dir() => return dir_path(&child),
            None if parent.must_be_dir => return Err(Errno::ENOTDIR),
            None => {
                let mut path = dir_path(&parent.dir)?;
                if path.last() != Some(&b'/') {
                    path.push(b'/');
                }
                path.extend_from_slice(&parent.name);
                return Ok(path);
            }
        }
    }
    Err(Errno::ELOOP)
}

/// `d_type` of a directory entry.
pub fn dirent_type(mode: u32) -> u8 {
    ((mode & kind::MASK) >> 12) as u8
}
