//! The file bundle: host files become the read-only tree that the guest sees at `/`.
//!
//! A bundle is laid out first ([`Layout`]) and read when it is written into the image, so that content of any size is packed without being held in
//! memory.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use donjon_abi::{
    PAGE,
    bundle::{ALIGN_FROM, ENTRY_LEN, HEADER_LEN, Kind, MAGIC, RawEntry},
};

use crate::config::Files;

/// Modification time of everything in a bundle, so that the same content gives the same image: 1980-01-01.
const MTIME: u64 = 315_532_800;
/// Bytes that are copied at a time.
const CHUNK: u64 = 256 * 1024;

/// Why files could not be bundled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// `files` names something that is not there.
    #[error("`files` names {0}, which does not exist")]
    Missing(PathBuf),
    /// A pattern that matches nothing.
    #[error("the pattern `{0}` in `files` matches nothing")]
    NoMatch(String),
    /// A malformed pattern.
    #[error("the pattern `{0}` in `files` is malformed: {1}")]
    Pattern(String, String),
    /// A path or link that leaves the project's directory.
    #[error("{0} leads out of the project's directory")]
    Outside(PathBuf),
    /// Two files for one place.
    #[error("both {1} and {2} would become /{0}")]
    Twice(String, PathBuf, PathBuf),
    /// A name that is not UTF-8, or a guest path with `..`.
    #[error("{0} cannot be the name of a bundled file")]
    Name(PathBuf),
    /// Neither a file nor a directory.
    #[error("{0} is neither a file nor a directory")]
    Special(PathBuf),
    /// A file could not be read.
    #[error("cannot read {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// A file has another length than when the bundle was laid out, or another content than it must have.
    #[error("{0} has changed while it was packed")]
    Changed(PathBuf),
    /// The bundle could not be written.
    #[error("{0}")]
    Write(#[source] io::Error),
}

/// Bundles what `files` lists, relative to the directory `root`. No files give no bytes. What is `left_out` is bundled only if it is listed by its own
/// name.
pub fn bundle(root: &Path, files: &[Files], left_out: &dyn Fn(&Path) -> bool) -> Result<Layout, BundleError> {
    let root = root.canonicalize().map_err(|e| BundleError::Io(root.into(), e))?;
    let mut tree = Tree { root, left_out, nodes: BTreeMap::new() };
    for entry in files {
        tree.entry(entry)?;
    }
    tree.layout()
}

/// Bundles files from anywhere: guest paths (absolute or not) and where their content comes from.
pub fn bundle_sources(files: impl IntoIterator<Item = (String, Source)>) -> Result<Layout, BundleError> {
    let mut tree = Tree { root: PathBuf::new(), left_out: &|_| false, nodes: BTreeMap::new() };
    for (path, source) in files {
        let guest = guest_path(&path)?;
        if guest.is_empty() {
            return Err(BundleError::Name(path.into()));
        }
        tree.parents(&guest, Path::new(&path))?;
        if tree.nodes.insert(guest.clone(), Node::File(source)).is_some() {
            return Err(BundleError::Twice(guest, path.clone().into(), path.into()));
        }
    }
    tree.layout()
}

/// Where a file's content comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file of the host.
    Path(PathBuf),
    /// A file of the host that something else in the bundle describes: it must have this length and this hash (BLAKE3).
    Exactly(PathBuf, u64, [u8; blake3::OUT_LEN]),
    /// These bytes.
    Bytes(Vec<u8>),
    /// A part of an open file, which must be in it.
    Part(Arc<File>, Range<u64>),
}

impl Source {
    fn name(&self) -> PathBuf {
        match self {
            Source::Path(path) | Source::Exactly(path, ..) => path.clone(),
            Source::Bytes(_) | Source::Part(..) => "generated content".into(),
        }
    }

    /// Writes the content.
    pub fn write_to(&self, out: &mut impl Write) -> Result<(), BundleError> {
        self.copy_to(self.len()?, out)
    }

    fn len(&self) -> Result<u64, BundleError> {
        match self {
            Source::Path(path) => fs::metadata(path).map(|m| m.len()).map_err(|e| BundleError::Io(path.clone(), e)),
            Source::Exactly(_, len, _) => Ok(*len),
            Source::Bytes(bytes) => Ok(bytes.len() as u64),
            Source::Part(_, range) => Ok(range.end.saturating_sub(range.start)),
        }
    }

    /// Writes the content, which must have `len` bytes.
    fn copy_to(&self, len: u64, out: &mut impl Write) -> Result<(), BundleError> {
        match self {
            Source::Bytes(bytes) => out.write_all(bytes).map_err(BundleError::Write),
            Source::Path(path) => whole(path, len, out),
            Source::Exactly(path, _, hash) => {
                let mut hashed = Hashed { out, hasher: blake3::Hasher::new() };
                whole(path, len, &mut hashed)?;
                if hashed.hasher.finalize() == *hash { Ok(()) } else { Err(BundleError::Changed(path.clone())) }
            }
            Source::Part(file, range) => copy(file, range.clone(), out, &self.name()),
        }
    }
}

enum Node {
    Dir,
    File(Source),
}

struct Tree<'a> {
    root: PathBuf,
    left_out: &'a dyn Fn(&Path) -> bool,
    nodes: BTreeMap<String, Node>,
}

impl Tree<'_> {
    fn entry(&mut self, entry: &Files) -> Result<(), BundleError> {
        let to = |rest: &str| match (&entry.to, rest) {
            (None, _) => guest_path(rest),
            (Some(to), "") => guest_path(to),
            (Some(to), _) => guest_path(&format!("{to}/{rest}")),
        };
        if !entry.from.contains(['*', '?', '[']) {
            // A single file with `to` gets that name, a directory becomes it.
            let rest = if entry.to.is_some() { "" } else { entry.from.as_str() };
            return self.add(&self.root.join(&entry.from), to(rest)?, 0);
        }
        let bad = |e: String| BundleError::Pattern(entry.from.clone(), e);
        // The directory's own name is no pattern.
        let full = Path::new(&glob::Pattern::escape(&self.root.to_string_lossy())).join(&entry.from);
        let paths = glob::glob(&full.to_string_lossy()).map_err(|e| bad(e.to_string()))?;
        let mut any = false;
        // With `to`, the part before the first pattern is cut off.
        let fixed: PathBuf = Path::new(&entry.from)
            .components()
            .take_while(|c| !c.as_os_str().to_string_lossy().contains(['*', '?', '[']))
            .collect();
        for path in paths {
            let path = path.map_err(|e| bad(e.to_string()))?;
            if (self.left_out)(&path) {
                continue;
            }
            let base = if entry.to.is_some() { self.root.join(&fixed) } else { self.root.clone() };
            let rest = path.strip_prefix(&base).unwrap_or(&path);
            let rest = rest.to_str().ok_or_else(|| BundleError::Name(path.clone()))?;
            self.add(&path, to(rest)?, 0)?;
            any = true;
        }
        if any { Ok(()) } else { Err(BundleError::NoMatch(entry.from.clone())) }
    }

    fn add(&mut self, path: &Path, guest: String, depth: u32) -> Result<(), BundleError> {
        let real = path.canonicalize().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => BundleError::Missing(path.into()),
            _ => BundleError::Io(path.into(), e),
        })?;
        if !real.starts_with(&self.root) || depth > 64 {
            return Err(BundleError::Outside(path.into()));
        }
        let kind = fs::metadata(&real).map_err(|e| BundleError::Io(path.into(), e))?.file_type();
        if kind.is_file() {
            if guest.is_empty() {
                return Err(BundleError::Name(path.into()));
            }
            self.parents(&guest, path)?;
            return match self.nodes.insert(guest.clone(), Node::File(Source::Path(real.clone()))) {
                Some(Node::File(other)) if other.name() != real => Err(BundleError::Twice(guest, other.name(), real)),
                Some(Node::Dir) => Err(BundleError::Twice(guest, path.into(), real)),
                _ => Ok(()),
            };
        }
        if !kind.is_dir() {
            return Err(BundleError::Special(path.into()));
        }
        if !guest.is_empty() {
            self.parents(&guest, path)?;
            self.dir(&guest, path)?;
        }
        let list = fs::read_dir(&real).map_err(|e| BundleError::Io(path.into(), e))?;
        for child in list {
            let child = child.map_err(|e| BundleError::Io(path.into(), e))?;
            if (self.left_out)(&path.join(child.file_name())) {
                continue;
            }
            let name = child.file_name().into_string().map_err(|_| BundleError::Name(child.path()))?;
            let below = if guest.is_empty() { name } else { format!("{guest}/{name}") };
            self.add(&path.join(child.file_name()), below, depth + 1)?;
        }
        Ok(())
    }

    fn parents(&mut self, guest: &str, path: &Path) -> Result<(), BundleError> {
        guest.match_indices('/').try_for_each(|(at, _)| self.dir(&guest[..at], path))
    }

    fn dir(&mut self, guest: &str, path: &Path) -> Result<(), BundleError> {
        match self.nodes.entry(guest.into()).or_insert(Node::Dir) {
            Node::Dir => Ok(()),
            Node::File(other) => Err(BundleError::Twice(guest.into(), other.name(), path.into())),
        }
    }

    fn layout(self) -> Result<Layout, BundleError> {
        let mut out = Layout::default();
        if self.nodes.is_empty() {
            return Ok(out);
        }
        let names: String = self.nodes.keys().map(String::as_str).collect();
        out.head.extend(MAGIC);
        out.head.extend((self.nodes.len() as u32).to_le_bytes());
        out.head.extend((names.len() as u32).to_le_bytes());
        out.len = (HEADER_LEN + self.nodes.len() * ENTRY_LEN + names.len()) as u64;
        let lens = self.nodes.values().map(|node| match node {
            Node::Dir => Ok(0),
            Node::File(source) => source.len(),
        });
        let lens = lens.collect::<Result<Vec<u64>, _>>()?;
        // Small files first, so that behind each large one there are zeros up to the end of its last page: it can be mapped as it is.
        let large = |len: u64| len >= ALIGN_FROM;
        let mut places = vec![0; lens.len()];
        for (pass, align) in [(false, 16), (true, PAGE)] {
            for ((len, at), name) in lens.iter().zip(&mut places).zip(self.nodes.keys()) {
                if *len > 0 && large(*len) == pass {
                    *at = out.len.next_multiple_of(align);
                    out.len = at.checked_add(*len).ok_or_else(|| BundleError::Name(name.into()))?;
                }
            }
        }
        if lens.iter().any(|len| large(*len)) {
            out.len = out.len.next_multiple_of(PAGE);
        }
        let mut name_offset = 0;
        for ((name, node), (len, at)) in self.nodes.into_iter().zip(lens.into_iter().zip(places)) {
            let name_len = name.len() as u32;
            let kind = if let Node::Dir = node { Kind::Dir } else { Kind::File };
            let raw =
                RawEntry { name_offset, name_len, kind: kind as u32, mtime: MTIME, data_offset: at, data_len: len };
            out.head.extend(raw.to_bytes());
            if let (Node::File(source), true) = (node, len > 0) {
                out.files.push(Placed { at, len, source });
            }
            name_offset += name_len;
        }
        out.files.sort_unstable_by_key(|f| f.at);
        out.head.extend(names.bytes());
        Ok(out)
    }
}

/// A bundle: where each file will be. Its content is read when it is written.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Header, entries and names.
    head: Vec<u8>,
    files: Vec<Placed>,
    len: u64,
}

#[derive(Clone, Debug)]
struct Placed {
    at: u64,
    len: u64,
    source: Source,
}

impl Layout {
    /// Bytes of the bundle.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes the bundle: exactly [`Layout::len`] bytes.
    pub fn write_to(&self, out: &mut impl Write) -> Result<(), BundleError> {
        out.write_all(&self.head).map_err(BundleError::Write)?;
        let mut at = self.head.len() as u64;
        let zeros = |from: u64, to: u64, out: &mut _| {
            let gap = &[0; PAGE as usize][..(to - from) as usize];
            Write::write_all(out, gap).map_err(BundleError::Write)
        };
        for file in &self.files {
            zeros(at, file.at, out)?;
            file.source.copy_to(file.len, out)?;
            at = file.at + file.len;
        }
        zeros(at, self.len, out)
    }

    /// The bundle in memory.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BundleError> {
        let mut out = Vec::new();
        self.write_to(&mut out)?;
        Ok(out)
    }
}

/// Copies a file that must have `len` bytes.
fn whole(path: &Path, len: u64, out: &mut impl Write) -> Result<(), BundleError> {
    let io = |e| BundleError::Io(path.into(), e);
    let file = File::open(path).map_err(io)?;
    copy(&file, 0..len, out, path)?;
    let now = file.metadata().map_err(io)?.len();
    if now == len { Ok(()) } else { Err(BundleError::Changed(path.into())) }
}

/// Copies a part of a file that must be there.
fn copy(file: &File, range: Range<u64>, out: &mut impl Write, name: &Path) -> Result<(), BundleError> {
    let mut chunk = vec![0; CHUNK.min(range.end.saturating_sub(range.start)) as usize];
    let mut at = range.start;
    while at < range.end {
        let part = &mut chunk[..CHUNK.min(range.end - at) as usize];
        match file.read_exact_at(part, at) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(BundleError::Changed(name.into()));
            }
            other => other.map_err(|e| BundleError::Io(name.into(), e))?,
        }
        out.write_all(part).map_err(BundleError::Write)?;
        at += part.len() as u64;
    }
    Ok(())
}

/// Hashes what is written through it.
pub(crate) struct Hashed<'a, W> {
    pub out: &'a mut W,
    pub hasher: blake3::Hasher,
}

impl<W: Write> Write for Hashed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A guest path without its leading `/`, and without what could lead out of a directory.
fn guest_path(text: &str) -> Result<String, BundleError> {
    let parts: Vec<&str> = text.split('/').filter(|p| !matches!(*p, "" | ".")).collect();
    if parts.iter().any(|p| *p == ".." || p.contains('\0')) {
        return Err(BundleError::Outside(text.into()));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use donjon_abi::bundle::Bundle;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("donjon-bundle-{name}-{}", std::process::id()));
        _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("project/www/sub")).unwrap();
        fs::write(dir.join("project/www/index.html"), "hello").unwrap();
        fs::write(dir.join("project/www/sub/big.bin"), [7; 5000]).unwrap();
        fs::write(dir.join("project/a.json"), "{}").unwrap();
        dir
    }

    fn from(text: &str, to: Option<&str>) -> Files {
        Files { from: text.into(), to: to.map(Into::into) }
    }

    fn paths(bytes: &[u8]) -> Vec<String> {
        let b = Bundle::parse(bytes).unwrap();
        (0..b.len()).map(|i| b.get(i).unwrap().path.to_owned()).collect()
    }

    #[test]
    fn directories_files_and_patterns() {
        let dir = scratch("tree");
        let root = dir.join("pro[j]?ect*");
        fs::rename(dir.join("project"), &root).unwrap();
        let bundle = |files: &[Files]| bundle(&root, files, &|_| false).unwrap().to_bytes().unwrap();
        let bytes = bundle(&[from("www", None), from("*.json", Some("/etc"))]);
        assert_eq!(paths(&bytes), ["etc", "etc/a.json", "www", "www/index.html", "www/sub", "www/sub/big.bin"]);
        let b = Bundle::parse(&bytes).unwrap();
        assert_eq!(b.lookup("www/index.html").unwrap().data, b"hello");
        let big = b.lookup("www/sub/big.bin").unwrap().data;
        assert_eq!(big, [7; 5000]);
        // A large file has its pages for itself, the last one, too, whatever comes after it by name.
        let end = big.as_ptr_range().end as usize - bytes.as_ptr() as usize;
        assert_eq!((&bytes[end..], bytes.len() % PAGE as usize), (&[0; 8192 - 5000][..], 0));
        assert_eq!((big.as_ptr() as usize - bytes.as_ptr() as usize) % PAGE as usize, 0);
        assert_eq!(bytes, bundle(&[from("*.json", Some("etc")), from("www/", None)]));
        assert_eq!(paths(&bundle(&[from("www", Some("/"))])), ["index.html", "sub", "sub/big.bin"]);
        assert_eq!(paths(&bundle(&[from("a.json", Some("/x/b.json"))])), ["x", "x/b.json"]);
        assert!(bundle(&[]).is_empty());
        let left_out = |path: &Path| path == root.join("www/sub") || path == root.join("a.json");
        let rest = |files: &[Files]| paths(&super::bundle(&root, files, &left_out).unwrap().to_bytes().unwrap());
        assert_eq!(rest(&[from(".", Some("/")), from("*", None)]), ["www", "www/index.html"]);
        assert_eq!(rest(&[from("a.json", None), from("www/sub", None)]).len(), 4, "listed by their own names");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_is_missing_or_outside_is_refused() {
        let dir = scratch("refuse");
        let root = dir.join("project");
        fs::write(dir.join("secret"), "s").unwrap();
        std::os::unix::fs::symlink("../../secret", root.join("www/link")).unwrap();
        let error = |f: Files| bundle(&root, &[f], &|_| false).unwrap_err();
        assert!(matches!(error(from("www", None)), BundleError::Outside(_)));
        assert!(matches!(error(from("../secret", None)), BundleError::Outside(_)));
        assert!(matches!(error(from("a.json", Some("../x"))), BundleError::Outside(_)));
        assert!(matches!(error(from("none", None)), BundleError::Missing(_)));
        assert!(matches!(error(from("*.none", None)), BundleError::NoMatch(_)));
        let two = [from("a.json", Some("/x")), from("www/index.html", Some("/x"))];
        assert!(matches!(bundle(&root, &two, &|_| false), Err(BundleError::Twice(..))));
        fs::remove_file(root.join("www/link")).unwrap();
        std::os::unix::fs::symlink("..", root.join("www/up")).unwrap();
        assert!(matches!(error(from("www", None)), BundleError::Outside(_)), "an endless loop");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn sources_of_all_kinds_and_files_that_change() {
        let dir = scratch("sources");
        let path = dir.join("project/www/sub/big.bin");
        let part = Source::Part(Arc::new(File::open(&path).unwrap()), 1..3000);
        let files = [("/p", Source::Path(path.clone())), ("/q", part), ("/r", Source::Bytes(b"r".to_vec()))];
        let layout = bundle_sources(files.map(|(name, source)| (name.into(), source))).unwrap();
        let bytes = layout.to_bytes().unwrap();
        assert_eq!(bytes.len() as u64, layout.len());
        let b = Bundle::parse(&bytes).unwrap();
        assert_eq!(b.lookup("p").unwrap().data, [7; 5000]);
        assert_eq!((b.lookup("q").unwrap().data, b.lookup("r").unwrap().data), (&[7; 2999][..], &b"r"[..]));
        for other in [vec![7; 4999], vec![7; 5001]] {
            fs::write(&path, other).unwrap();
            assert!(matches!(layout.to_bytes(), Err(BundleError::Changed(p)) if p == path));
        }
        // Of what is known in advance, neither the length nor a byte may be another.
        let exactly = Source::Exactly(path.clone(), 5000, blake3::hash(&[7; 5000]).into());
        let layout = bundle_sources([("/p".into(), exactly)]).unwrap();
        for (now, same) in
            [(vec![7; 5000], true), (vec![8; 5000], false), (vec![7; 4999], false), (vec![7; 5001], false)]
        {
            fs::write(&path, now).unwrap();
            match layout.to_bytes() {
                Ok(bytes) => assert!(same && Bundle::parse(&bytes).unwrap().lookup("p").unwrap().data == [7; 5000]),
                Err(e) => assert!(!same && matches!(e, BundleError::Changed(p) if p == path)),
            }
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
