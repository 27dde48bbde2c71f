//! The site: configuration, index and content, all from the bundle.

use crate::negotiate::http_date;
use bytes::Bytes;
use donjon_web_format::{CONFIG_PATH, Config, INDEX_PATH, Resource, parse_index};
use hyper::header::{HeaderName, HeaderValue};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// From this length on, a file is mapped. The packer aligns files to pages from here on (`ALIGN_FROM` in `abi/src/bundle.rs`): in an image, the
/// mapping is the bundle itself.
const MAP_FROM: u64 = 2048;
/// Heap for the content of smaller files that is kept, bytes. The rest is read for each request.
const KEPT_MAX: u64 = 4 << 20;
/// What the allocator and [`Bytes`] take beside the content, about.
const KEPT_EXTRA: u64 = 64;

/// One encoding of a file, its content opened at first use: see [`Site::content`].
pub struct Variant {
    file: PathBuf,
    /// Entity tag, with its quotes.
    pub tag: HeaderValue,
    /// Bytes.
    pub len: u64,
    content: OnceLock<Bytes>,
}

/// A file of the site.
pub struct Page {
    /// Content-Type.
    pub content_type: HeaderValue,
    /// When it was changed, if that is known: seconds since 1970, and the same as Last-Modified.
    pub modified: Option<(u64, HeaderValue)>,
    /// As it is.
    pub plain: Variant,
    /// Brotli.
    pub brotli: Option<Variant>,
    /// Gzip.
    pub gzip: Option<Variant>,
}

/// A header for the paths that match a pattern.
pub struct Rule {
    /// As [`donjon_web_format::matches`] takes it.
    pub pattern: String,
    /// Its name and value.
    pub header: (HeaderName, HeaderValue),
    /// For successes (and 304) only.
    pub success: bool,
}

/// All that is served.
pub struct Site {
    /// The configuration.
    pub config: Config,
    /// The configuration's headers and cache rules: those of the latter are for successes only.
    pub rules: Vec<Rule>,
    /// Sorted by root and path.
    files: Vec<((u32, String), Page)>,
    /// What is left of [`KEPT_MAX`].
    room: AtomicU64,
}

impl Site {
    /// Reads configuration and index below `base` (`/` in an image).
    pub fn load(base: &Path) -> Result<Site, String> {
        let read = |path: &str| {
            let path = below(base, path);
            std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
        };
        let config = Config::parse(&read(CONFIG_PATH)?).map_err(|e| format!("{CONFIG_PATH}: {e}"))?;
        let index = read(INDEX_PATH)?;
        // As much as it takes and no more: growing would, for a moment, take two and a half times that.
        let mut files = Vec::with_capacity(index.lines().count());
        let value =
            |text: &str| HeaderValue::try_from(text).map_err(|_| format!("{text:?} cannot be a header's value"));
        for resource in parse_index(&index) {
            let r: Resource<'_> = resource.map_err(|e| format!("{INDEX_PATH}: {e}"))?;
            let variant = |v: donjon_web_format::Variant<'_>| {
                let (file, tag) = (below(base, v.file), value(&format!("\"{}\"", v.etag))?);
                Ok::<_, String>(Variant { file, tag, len: v.len, content: OnceLock::new() })
            };
            let page = Page {
                content_type: value(r.content_type)?,
                modified: if r.mtime == 0 { None } else { Some((r.mtime, value(&http_date(r.mtime))?)) },
                plain: variant(r.plain)?,
                brotli: r.brotli.map(variant).transpose()?,
                gzip: r.gzip.map(variant).transpose()?,
            };
            files.push(((r.root, String::from(r.path)), page));
        }
        let mut rules = vec![];
        // In this order: who names a header has the last word.
        for (list, success) in [(&config.cache, true), (&config.headers, false)] {
            for r in list {
                let name = HeaderName::try_from(&r.name).map_err(|_| format!("{}: not a header's name", r.name))?;
                rules.push(Rule { pattern: r.pattern.clone(), header: (name, value(&r.value)?), success });
            }
        }
        if !files.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(format!("{INDEX_PATH}: not sorted"));
        }
        Ok(Site { config, rules, files, room: AtomicU64::new(KEPT_MAX) })
    }

    /// The content root for a Host header's value.
    pub fn root(&self, host: Option<&str>) -> Option<u32> {
        let hosts = &self.config.hosts;
        if hosts.is_empty() {
            return Some(0);
        }
        let name = host.unwrap_or("").rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        let name = name.map_or(host.unwrap_or(""), |(name, _)| name).trim_end_matches('.');
        let exact = hosts.iter().find(|h| h.name.eq_ignore_ascii_case(name));
        exact.or_else(|| hosts.iter().find(|h| h.name == "*")).map(|h| h.root)
    }

    /// The file of exactly this path.
    pub fn file(&self, root: u32, path: &str) -> Option<&Page> {
        let at = self.files.binary_search_by(|((r, p), _)| (*r, p.as_str()).cmp(&(root, path))).ok()?;
        Some(&self.files[at].1)
    }

    /// Whether there is anything in `directory`, which ends with `/`.
    pub fn has(&self, root: u32, directory: &str) -> bool {
        self.entry(root, directory, self.first(root, directory)).is_some()
    }

    /// The place of the first name in `directory`, which ends with `/`.
    pub fn first(&self, root: u32, directory: &str) -> usize {
        self.files.partition_point(|((r, p), _)| (*r, p.as_str()) < (root, directory))
    }

    /// The name at a place of `directory`, of a file or a directory in it (these end with `/`), and the next one's place. Names are in the order of
    /// their bytes.
    pub fn entry(&self, root: u32, directory: &str, at: usize) -> Option<(&str, usize)> {
        let ((r, path), _) = self.files.get(at)?;
        let rest = path.strip_prefix(directory).filter(|_| *r == root)?;
        let Some(slash) = rest.bytes().position(|b| b == b'/') else { return Some((rest, at + 1)) };
        // What is in one directory is in one place.
        let below = &path[..=directory.len() + slash];
        let all = self.files[at..].partition_point(|((r, p), _)| *r == root && p.starts_with(below));
        Some((&rest[..=slash], at + all))
    }

    /// The content of one of the site's variants, mapped or, if it is small, from the heap.
    pub fn content(&self, variant: &Variant) -> io::Result<Bytes> {
        if let Some(content) = variant.content.get() {
            return Ok(content.clone());
        }
        let file = File::open(&variant.file)?;
        let len = file.metadata()?.len();
        if len != variant.len {
            return Err(io::Error::other("the content does not have the length that the index says"));
        }
        let mapped = len >= MAP_FROM;
        let content = if mapped { map(&file)? } else { read(file, len)? };
        let fits = |room: u64| room.checked_sub(len + KEPT_EXTRA);
        if mapped || self.room.fetch_update(Relaxed, Relaxed, fits).is_ok() {
            return Ok(variant.content.get_or_init(|| content).clone());
        }
        Ok(content)
    }
}

fn read(mut file: File, len: u64) -> io::Result<Bytes> {
    let mut content = Vec::with_capacity(len as usize);
    file.read_to_end(&mut content)?;
    Ok(content.into())
}

#[expect(unsafe_code, reason = "UNSAFETY: maps a file of the bundle, whose bytes never change")]
fn map(file: &File) -> io::Result<Bytes> {
    // SAFETY: the bundle is read-only and part of the sealed image, so the bytes cannot change under the slice. (Run as an ordinary process, the
    // server relies on nobody truncating the prepared site while it is served.)
    let map = unsafe { memmap2::Mmap::map(file)? };
    Ok(Bytes::from_owner(map))
}

fn below(base: &Path, path: &str) -> PathBuf {
    base.join(path.trim_start_matches('/'))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use donjon_web_format::{Host, Variant as V, index_line};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Writes a prepared site to a fresh directory: `files` are path and content, root 0.
    pub fn site(config: &Config, files: &[(&str, &[u8])]) -> Arc<Site> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("donjon-web-test-{}-{n}", std::process::id()));
        let put = |path: &str, data: &[u8]| {
            let path = below(&dir, path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, data).unwrap();
        };
        let mut index = String::new();
        let mut files = files.to_vec();
        files.sort_unstable();
        for (path, data) in files {
            let name = format!("/site/0{path}");
            put(&name, data);
            let packed = format!("/br/0{path}");
            put(&packed, b"brotli");
            let line = index_line(&Resource {
                root: 0,
                path,
                content_type: "text/plain",
                mtime: 1_500_000_000,
                plain: V { file: &name, etag: "plain", len: data.len() as u64 },
                brotli: path.ends_with(".txt").then_some(V { file: &packed, etag: "packed", len: 6 }),
                gzip: None,
            });
            index.push_str(&line.unwrap());
        }
        put(CONFIG_PATH, config.to_text().unwrap().as_bytes());
        put(INDEX_PATH, index.as_bytes());
        Arc::new(Site::load(&dir).unwrap())
    }

    #[test]
    fn lookup_list_and_content() {
        let big = vec![7; 10_000];
        let s = site(
            &Config::default(),
            &[
                ("/index.html", b"hi"),
                ("/a/b.txt", &big),
                ("/a/c/d", b""),
                ("/a-b", b""),
                ("/a/c/e", b""),
                ("/a0", b""),
            ],
        );
        assert_eq!(s.content(&s.file(0, "/a/b.txt").unwrap().plain).unwrap(), big);
        assert!(s.file(0, "/a").is_none());
        assert!(s.file(1, "/index.html").is_none());
        let list = |directory| {
            let mut names = vec![];
            let mut at = s.first(0, directory);
            while let Some((name, next)) = s.entry(0, directory, at) {
                names.push(name);
                at = next;
            }
            assert_eq!(s.has(0, directory), !names.is_empty(), "{directory}");
            names
        };
        assert_eq!(list("/"), ["a-b", "a/", "a0", "index.html"]);
        assert_eq!(list("/a/"), ["b.txt", "c/"]);
        assert_eq!(list("/a/c/"), ["d", "e"]);
        assert!(list("/x/").is_empty() && list("/b/").is_empty() && list("/a-b/").is_empty());
        assert!(!s.has(1, "/") && s.has(0, "/"));
    }

    /// The heap does not grow with the number of small files.
    #[test]
    fn little_is_kept_of_many_small_files() {
        let data: Vec<u8> = (0..MAP_FROM - 1).map(|i| i as u8).collect();
        let paths: Vec<String> = (0..3000).map(|i| format!("/{i}")).collect();
        let files: Vec<(&str, &[u8])> = paths.iter().map(|p| (p.as_str(), &data[..])).collect();
        let s = site(&Config::default(), &files);
        for _ in 0..2 {
            for path in &paths {
                assert_eq!(s.content(&s.file(0, path).unwrap().plain).unwrap(), data);
            }
        }
        let kept = s.files.iter().filter_map(|(_, page)| page.plain.content.get());
        let bytes: u64 = kept.map(|c| c.len() as u64 + KEPT_EXTRA).sum();
        assert_eq!(bytes, KEPT_MAX - s.room.load(Relaxed));
        assert!((KEPT_MAX - 2 * MAP_FROM..=KEPT_MAX).contains(&bytes), "{bytes}");
    }

    #[test]
    fn hosts() {
        let host = |name: &str, root| Host { name: name.into(), root };
        let config = Config { hosts: vec![host("a.example", 1), host("*", 2)], ..Config::default() };
        let s = site(&config, &[]);
        assert_eq!(s.root(Some("a.example")), Some(1));
        assert_eq!(s.root(Some("A.EXAMPLE.:8080")), Some(1));
        assert_eq!(s.root(Some("[::1]:80")), Some(2));
        assert_eq!(s.root(None), Some(2));
        let only = Config { hosts: vec![host("a.example", 1)], ..Config::default() };
        assert_eq!(site(&only, &[]).root(Some("b.example")), None);
        assert_eq!(site(&Config::default(), &[]).root(None), Some(0));
    }
}
