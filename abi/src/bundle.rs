//! The file bundle inside an image: a read-only tree of files.
//!
//! ```text
//! 0    magic "DONJFILE", count: u32, names_len: u32
//! 16   count × Entry (40 bytes), sorted by path, bytewise
//!      names: the paths, no separators, addressed by the entries
//!      contents: page-aligned for files of 2048 bytes and more, 16-byte aligned below
//! ```
//!
//! Paths are absolute without the leading `/`, `/`-separated, without `.`, `..` or empty components. The root directory is not
//! listed; every other directory is, before its content.

/// First field.
pub const MAGIC: [u8; 8] = *b"DONJFILE";
/// Bytes of the header.
pub const HEADER_LEN: usize = 16;
/// Bytes of an entry.
pub const ENTRY_LEN: usize = 40;
/// Files of this many bytes and more start on a page.
pub const ALIGN_FROM: u64 = 2048;

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// A regular file.
    File = 1,
    /// A directory; its content is the entries whose path starts with its own and a `/`.
    Dir = 2,
}

/// One file or directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// Position among the entries: the inode number is this plus 2.
    pub index: u32,
    /// Path without the leading `/`.
    pub path: &'a str,
    /// File or directory.
    pub kind: Kind,
    /// Modification time, seconds since 1970.
    pub mtime: u64,
    /// Content; empty for directories.
    pub data: &'a [u8],
}

/// Encoded entry: `name_offset u32, name_len u32, kind u32, zero u32, mtime u64, data_offset u64, data_len u64`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct RawEntry {
    /// Offset of the path within the names.
    pub name_offset: u32,
    /// Length of the path, bytes.
    pub name_len: u32,
    /// A [`Kind`].
    pub kind: u32,
    /// Modification time, seconds since 1970.
    pub mtime: u64,
    /// Offset of the content within the bundle.
    pub data_offset: u64,
    /// Length of the content, bytes.
    pub data_len: u64,
}

impl RawEntry {
    /// Encodes the entry.
    pub fn to_bytes(&self) -> [u8; ENTRY_LEN] {
        let mut out = [0; ENTRY_LEN];
        out[0..4].copy_from_slice(&self.name_offset.to_le_bytes());
        out[4..8].copy_from_slice(&self.name_len.to_le_bytes());
        out[8..12].copy_from_slice(&self.kind.to_le_bytes());
        out[16..24].copy_from_slice(&self.mtime.to_le_bytes());
        out[24..32].copy_from_slice(&self.data_offset.to_le_bytes());
        out[32..40].copy_from_slice(&self.data_len.to_le_bytes());
        out
    }
}

/// A checked bundle.
#[derive(Clone, Copy, Debug)]
pub struct Bundle<'a> {
    bytes: &'a [u8],
    names: &'a [u8],
    count: u32,
}

impl<'a> Bundle<'a> {
    /// The bundle without files.
    pub const EMPTY: Bundle<'static> = Bundle { bytes: &[], names: &[], count: 0 };

    /// Checks the header and every entry; `None` if anything is malformed. An empty slice is the empty bundle.
    pub fn parse(bytes: &'a [u8]) -> Option<Bundle<'a>> {
        if bytes.is_empty() {
            return Some(Bundle::EMPTY);
        }
        let head = bytes.get(..HEADER_LEN)?;
        if head[..8] != MAGIC {
            return None;
        }
        let count = u32_at(head, 8)?;
        let names_len = u32_at(head, 12)? as usize;
        let names_at = HEADER_LEN.checked_add((count as usize).checked_mul(ENTRY_LEN)?)?;
        let names = bytes.get(names_at..names_at.checked_add(names_len)?)?;
        let bundle = Bundle { bytes, names, count };
        let mut previous = "";
        for index in 0..count {
            let e = bundle.read(index)?;
            let sound = !e.path.is_empty()
                && (index == 0 || previous < e.path)
                && e.path.split('/').all(|c| !matches!(c, "" | "." | "..") && !c.contains('\0'));
            if !sound {
                return None;
            }
            previous = e.path;
        }
        Some(bundle)
    }

    /// Number of entries.
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// Whether there is no entry.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The entry at `index`.
    pub fn get(&self, index: u32) -> Option<Entry<'a>> {
        if index < self.count { self.read(index) } else { None }
    }

    /// The entry of exactly this path (no leading `/`), by binary search.
    pub fn lookup(&self, path: &str) -> Option<Entry<'a>> {
        let index = self.partition(|p| p < path);
        self.get(index).filter(|e| e.path == path)
    }

    /// The direct children of the directory `path` (`""` is the root), from entry `from` on.
    /// To resume a listing, pass the last child's index plus 1.
    pub fn children(&self, path: &'a str, from: u32) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        let bundle = *self;
        let start = if path.is_empty() { 0 } else { bundle.partition(|p| p <= path) };
        (start.max(from)..bundle.count)
            .map_while(move |i| bundle.read(i))
            // Entries such as "a-b" sort between "a" and "a/x": they are passed over, not an end.
            .take_while(move |e| e.path.starts_with(path))
            .filter(move |e| {
                let rest = e.path.strip_prefix(path);
                let rest = if path.is_empty() { rest } else { rest.and_then(|r| r.strip_prefix('/')) };
                rest.is_some_and(|r| !r.contains('/'))
            })
    }

    fn partition(&self, before: impl Fn(&str) -> bool) -> u32 {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.read(middle).is_some_and(|e| before(e.path)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    fn read(&self, index: u32) -> Option<Entry<'a>> {
        let at = HEADER_LEN + index as usize * ENTRY_LEN;
        let e = self.bytes.get(at..at + ENTRY_LEN)?;
        let name = u32_at(e, 0)? as usize;
        let path = self.names.get(name..name.checked_add(u32_at(e, 4)? as usize)?)?;
        let data = usize::try_from(u64_at(e, 24)?).ok()?;
        Some(Entry {
            index,
            path: core::str::from_utf8(path).ok()?,
            kind: match u32_at(e, 8)? {
                1 => Kind::File,
                2 => Kind::Dir,
                _ => return None,
            },
            mtime: u64_at(e, 16)?,
            data: self.bytes.get(data..data.checked_add(usize::try_from(u64_at(e, 32)?).ok()?)?)?,
        })
    }
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::{vec, vec::Vec};

    fn bundle(files: &[(&str, Kind, &[u8])]) -> Vec<u8> {
        let names: Vec<u8> = files.iter().flat_map(|f| f.0.bytes()).collect();
        let mut out = vec![];
        out.extend(MAGIC);
        out.extend((files.len() as u32).to_le_bytes());
        out.extend((names.len() as u32).to_le_bytes());
        let mut data_at = HEADER_LEN + files.len() * ENTRY_LEN + names.len();
        let mut name_at = 0;
        for (name, kind, data) in files {
            let raw = RawEntry {
                name_offset: name_at,
                name_len: name.len() as u32,
                kind: *kind as u32,
                mtime: 1,
                data_offset: data_at as u64,
                data_len: data.len() as u64,
            };
            out.extend(raw.to_bytes());
            name_at += name.len() as u32;
            data_at += data.len();
        }
        out.extend(names);
        files.iter().for_each(|f| out.extend(f.2));
        out
    }

    #[test]
    fn lookup_and_children() {
        let bytes = bundle(&[
            ("a", Kind::Dir, b""),
            ("a-b", Kind::File, b"1"),
            ("a/x", Kind::File, b"22"),
            ("a/y", Kind::Dir, b""),
            ("a/y/z", Kind::File, b"333"),
            ("b", Kind::File, b""),
        ]);
        let b = Bundle::parse(&bytes).unwrap();
        assert_eq!(b.lookup("a/y/z").unwrap().data, b"333");
        assert!(b.lookup("a/").is_none());
        let list = |p| b.children(p, 0).map(|e| e.path).collect::<Vec<_>>();
        assert_eq!(list(""), ["a", "a-b", "b"]);
        assert_eq!(list("a"), ["a/x", "a/y"]);
        assert_eq!(list("a/y"), ["a/y/z"]);
        assert_eq!(b.children("a", 3).map(|e| e.path).collect::<Vec<_>>(), ["a/y"]);
    }

    #[test]
    fn malformed_bundles_are_refused() {
        let good = bundle(&[("a", Kind::File, b"1"), ("b", Kind::File, b"2")]);
        for n in 1..good.len() {
            assert!(Bundle::parse(&good[..n]).is_none(), "length {n}");
        }
        for files in [
            &[("..", Kind::File, &b""[..])][..],
            &[("b", Kind::File, b""), ("a", Kind::File, b"")],
            &[("a//b", Kind::File, b"")],
        ] {
            assert!(Bundle::parse(&bundle(files)).is_none());
        }
        assert!(Bundle::parse(b"").unwrap().is_empty());
    }
}
