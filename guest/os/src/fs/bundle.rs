//! The read-only bundle, and the secrets, which are a bundle of their own beside it.

use super::stat::{Stat, Time, kind};
use crate::global::Global;
use donjon_abi::bundle::{Bundle, Entry, Kind};

/// A place in the bundle: an entry, or the root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BundleNode {
    /// Index of the entry, in the secrets if it is [`SECRET`] or more; `None` is the root directory.
    pub entry: Option<u32>,
}

/// Indices from here on are those of the secrets.
const SECRET: u32 = 1 << 31;

static BUNDLE: Global<Option<Bundle<'static>>> = Global::new(None);

/// The bundle. A malformed one is an empty one: the packer and the host check it, and a file that is then missing says so.
pub fn bundle() -> Bundle<'static> {
    BUNDLE.with(|slot| {
        *slot.get_or_insert_with(|| {
            Bundle::parse(donjon_base::bytes(donjon_base::boot().bundle)).unwrap_or(Bundle::EMPTY)
        })
    })
}

/// The secrets. There are few, and they are seldom opened: checked anew each time.
fn secrets() -> Bundle<'static> {
    Bundle::parse(donjon_base::bytes(donjon_base::boot().secrets)).unwrap_or(Bundle::EMPTY)
}

fn entry(index: u32) -> Option<Entry<'static>> {
    if index < SECRET { bundle().get(index) } else { secrets().get(index - SECRET).map(secret) }
}

/// The entry of a path: in the bundle, else among the secrets.
fn find(path: &str) -> Option<u32> {
    let secret = || secrets().lookup(path).map(|e| secret(e).index);
    bundle().lookup(path).map(|e| e.index).or_else(secret)
}

fn secret(e: Entry<'static>) -> Entry<'static> {
    Entry { index: e.index | SECRET, ..e }
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
        self.entry.and_then(entry)
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
        let entry = if dir.is_empty() {
            find(name)
        } else {
            let mut path = alloc::string::String::with_capacity(dir.len() + 1 + name.len());
            path.push_str(dir);
            path.push('/');
            path.push_str(name);
            find(&path)
        };
        entry.map(|i| BundleNode { entry: Some(i) })
    }

    /// The directory that it is in; the root is its own.
    pub fn parent(self) -> BundleNode {
        match split(self.path()).0 {
            Some(dir) => BundleNode { entry: find(dir) },
            None => BundleNode::ROOT,
        }
    }

    /// The first child at or behind entry `from`.
    pub fn next_child(self, from: u32) -> Option<Entry<'static>> {
        let path = self.path();
        if from < SECRET
            && let Some(e) = bundle().children(path, from).next()
        {
            return Some(e);
        }
        // A directory that both have is listed once.
        let new = |e: &Entry<'_>| bundle().lookup(e.path).is_none();
        secrets().children(path, from.saturating_sub(SECRET)).find(new).map(secret)
    }

    /// Status.
    pub fn stat(self) -> Stat {
        let time = Time { sec: self.get().map_or(0, |e| e.mtime) as i64, nsec: 0 };
        let dir = self.is_dir();
        let size = self.data().len() as u64;
        // Secrets are their owner's only.
        let mask = if self.entry.is_some_and(|i| i >= SECRET) { 0o700 } else { 0o777 };
        Stat {
            dev: 1,
            ino: self.entry.map_or(1, |i| u64::from(i) + 2),
            mode: if dir { kind::DIR | 0o555 & mask } else { kind::FILE | 0o444 & mask },
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
