//! The read-only bundle.

use super::stat::{Stat, Time, kind};
use crate::global::Global;
use donjon_abi::bundle::{Bundle, Entry, Kind};

/// A place in the bundle: an entry, or the root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BundleNode {
    /// Index of the entry; `None` is the root directory.
    pub entry: Option<u32>,
}

static BUNDLE: Global<Option<Bundle<'static>>> = Global::new(None);

/// The bundle. A malformed one is an empty one: the packer and the host check it, and a file that is then missing says so.
pub fn bundle() -> Bundle<'static> {
    BUNDLE.with(|slot| {
        *slot.get_or_insert_with(|| {
            Bundle::parse(donjon_base::bytes(donjon_base::boot().bundle)).unwrap_or(Bundle::EMPTY)
        })
    })
}

/// A path's directory, unless that is the root, and its last part. Without the searchers for `char`, which are large.
pub fn split(path: &str) -> (Option<&str>, &str) {
    let slash = path.bytes().rposition(|b| b == b'/');
    let name = slash.and_then(|at| path.get(at + 1..));
    (slash.and_then(|at| path.get(..at)), name.unwrap_or(path))
}

impl BundleNode {
    /// The root directory.
    pub const ROOT: BundleNode = BundleNode { entry: None };

    fn get(self) -> Option<Entry<'static>> {
        self.entry.and_then(|i| bundle().get(i))
    }

    /// Whether it is a directory.
    pub fn is_dir(self) -> bool {
        self.get().is_none_or(|e| e.kind == Kind::Dir)
    }

    /// The path without the leading slash.
    pub fn path(self) -> &'static str {
        self.get().map_or("", |e| e.path)
    }

    /// The content.
    pub fn data(self) -> &'static [u8] {
        self.get().map_or(&[], |e| e.data)
    }

    /// The child of that name.
    pub fn child(self, name: &[u8]) -> Option<BundleNode> {
        let name = core::str::from_utf8(name).ok()?;
        let dir = self.path();
        let found = if dir.is_empty() {
            bundle().lookup(name)
        } else {
            let mut path = alloc::string::String::with_capacity(dir.len() + 1 + name.len());
            path.push_str(dir);
            path.push('/');
            path.push_str(name);
            bundle().lookup(&path)
        };
        found.map(|e| BundleNode { entry: Some(e.index) })
    }

    /// The directory that it is in; the root is its own.
    pub fn parent(self) -> BundleNode {
        match split(self.path()).0 {
            Some(dir) => BundleNode { entry: bundle().lookup(dir).map(|e| e.index) },
            None => BundleNode::ROOT,
        }
    }

    /// The first child at or behind entry `from`.
    pub fn next_child(self, from: u32) -> Option<Entry<'static>> {
        bundle().children(self.path(), from).next()
    }

    /// Status.
    pub fn stat(self) -> Stat {
        let time = Time { sec: self.get().map_or(0, |e| e.mtime) as i64, nsec: 0 };
        let dir = self.is_dir();
        let size = self.data().len() as u64;
        Stat {
            dev: 1,
            ino: self.entry.map_or(1, |i| u64::from(i) + 2),
            mode: if dir { kind::DIR | 0o555 } else { kind::FILE | 0o444 },
            nlink: if dir { 2 } else { 1 },
            size,
            used: size,
            atime: time,
            mtime: time,
            ctime: time,
            ..Stat::default()
        }
    }
}
