//! Compressed variants of contents, kept from one time to the next: the best compression takes a second per megabyte.
//!
//! Contents are read and variants written as streams, so that memory depends on how many threads compress and not on how large files are.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::Error;
use donjon_image::bundle::Source;

/// Files below this size are not compressed: the headers would outweigh the gain.
const COMPRESS_FROM: u64 = 256;
/// Files above these sizes are compressed at faster levels.
const SLOW_TO: u64 = 1 << 20;
const MIDDLE_TO: u64 = 16 << 20;
/// Changes whenever what is kept would be made differently. (What is kept under "2" may be of a file that changed while it was read.)
const REVISION: &str = "3";
/// Bytes that are copied at a time.
const CHUNK: usize = 64 * 1024;

/// Where compressed contents are kept; without a place, each is made anew.
pub(crate) struct Compressor<'a> {
    place: Option<&'a Path>,
}

/// A file of this machine whose variants are to be made.
pub(crate) struct Content<'a> {
    pub path: &'a Path,
    pub content_type: &'a str,
    pub len: u64,
    pub hash: blake3::Hash,
}

/// The brotli and the gzip variant, as far as they save something.
#[derive(Default)]
pub(crate) struct Compressed {
    pub brotli: Option<Packed>,
    pub gzip: Option<Packed>,
}

/// A variant.
pub(crate) struct Packed {
    pub source: Source,
    pub len: u64,
    /// Of the variant's own bytes: another version of an encoder makes others of the same content.
    pub hash: blake3::Hash,
}

/// Where one thread puts the variants that it has made: a file without a name, which is gone when nobody has it open.
pub(crate) struct Spool {
    file: Arc<File>,
    end: u64,
}

impl Spool {
    /// Makes the file in `dir`.
    pub fn new(dir: &Path) -> io::Result<Spool> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!(".donjon-{}-{n}.spool", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        fs::remove_file(&path)?;
        Ok(Spool { file: Arc::new(file), end: 0 })
    }

    /// Keeps what was written from `end` on.
    fn keep(&mut self, len: u64) -> Source {
        let start = self.end;
        self.end += len;
        Source::Part(self.file.clone(), start..self.end)
    }

    /// Has `write` write behind what is kept. Returns what it returns, and how many bytes it has written.
    fn write<T>(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<T>) -> io::Result<(T, u64)> {
        (&*self.file).seek(SeekFrom::Start(self.end))?;
        let mut out = BufWriter::with_capacity(CHUNK, &*self.file);
        let done = write(&mut out)?;
        out.flush()?;
        drop(out);
        let len = (&*self.file).stream_position()? - self.end;
        Ok((done, len))
    }

    /// Copies `len` bytes that are not kept yet.
    fn copy(&self, len: u64, out: &mut impl Write) -> io::Result<()> {
        (&*self.file).seek(SeekFrom::Start(self.end))?;
        let copied = io::copy(&mut (&*self.file).take(len), out)?;
        if copied == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

impl<'a> Compressor<'a> {
    pub fn new(place: Option<&'a Path>) -> Compressor<'a> {
        Compressor { place }
    }

    /// Compresses a content into `spool`.
    pub fn compress(&self, content: &Content<'_>, spool: &mut Spool) -> Result<Compressed, Error> {
        if !compressible(content.content_type) || content.len < COMPRESS_FROM {
            return Ok(Compressed::default());
        }
        // Worth its place in the image only if it saves something.
        let smaller = |len: u64| len + len / 20 < content.len;
        let mut variant = |kind: &str, encode: Encode| {
            let (hash, len) = self.kept(content, kind, encode, spool)?;
            Ok::<_, Error>(smaller(len).then(|| Packed { source: spool.keep(len), len, hash }))
        };
        Ok(Compressed { brotli: variant("br", brotli)?, gzip: variant("gz", gzip)? })
    }

    /// Writes a variant into the spool and returns its hash and length. What is kept is only ever a shortcut: whatever goes wrong with it, it is
    /// made anew.
    fn kept(
        &self,
        content: &Content<'_>,
        kind: &str,
        encode: Encode,
        spool: &mut Spool,
    ) -> Result<(blake3::Hash, u64), Error> {
        let name = format!("{}-{REVISION}.{kind}", content.hash.to_hex());
        let path = self.place.map(|place| place.join(name));
        if let Some(Ok(Some(kept))) = path.as_ref().map(|path| restore(path, spool)) {
            return Ok(kept);
        }
        let made = spool.write(|out| {
            // One byte more than there was: a file that has grown is another one.
            let file = File::open(content.path)?.take(content.len + 1);
            let mut file = Hashed { inner: file, hasher: blake3::Hasher::new() };
            let mut out = Hashed { inner: out, hasher: blake3::Hasher::new() };
            encode(&mut file, content.len, &mut out)?;
            Ok((file.hasher.finalize(), out.hasher.finalize()))
        });
        let ((read, sum), len) = made.map_err(|e| Error::Io(content.path.into(), e))?;
        // What the encoder has read goes by the hash of what was read before.
        if read != content.hash {
            return Err(Error::Changed(content.path.into()));
        }
        let (Some(place), Some(path)) = (self.place, path) else { return Ok((sum, len)) };
        let part = path.with_extension(format!("{kind}.{}.part", std::process::id()));
        let save = || {
            fs::create_dir_all(place)?;
            let mut file = File::create(&part)?;
            file.write_all(sum.as_bytes())?;
            spool.copy(len, &mut file)?;
            fs::rename(&part, &path)
        };
        if save().is_err() {
            _ = fs::remove_file(&part);
        }
        Ok((sum, len))
    }
}

/// Copies what is kept into the spool. Its first 32 bytes say what the rest must be, so that a damaged file is not served.
fn restore(path: &Path, spool: &mut Spool) -> io::Result<Option<(blake3::Hash, u64)>> {
    let mut file = File::open(path)?;
    let mut sum = [0; 32];
    file.read_exact(&mut sum)?;
    let (got, len) = spool.write(|out| {
        let mut hashed = Hashed { inner: out, hasher: blake3::Hasher::new() };
        io::copy(&mut file, &mut hashed)?;
        Ok(hashed.hasher.finalize())
    })?;
    // What is not used for long is removed.
    _ = file.set_modified(SystemTime::now());
    Ok((got == sum).then_some((got, len)))
}

/// Hashes what is read or written through it.
struct Hashed<T> {
    inner: T,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }
}

fn compressible(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or("");
    essence.starts_with("text/")
        || ["json", "javascript", "xml", "wasm", "manifest", "x-icon", "font/ttf", "font/otf", "bmp", "pdf"]
            .iter()
            .any(|part| essence.ends_with(part))
}

/// Encodes a content, of which the length is known, to its end.
type Encode = fn(&mut dyn Read, u64, &mut dyn Write) -> io::Result<()>;

fn brotli(mut data: &mut dyn Read, len: u64, mut out: &mut dyn Write) -> io::Result<()> {
    // The window is what memory goes by: with 4 MB, quality 9 takes 77 MB instead of 50, and saves 1 % of 2 MB of source text.
    let (quality, window) = match len {
        n if n <= SLOW_TO => (11, 22),
        n if n <= MIDDLE_TO => (9, 20),
        _ => (5, 20),
    };
    // One that is larger than the file is memory for nothing.
    let bits = len.next_power_of_two().trailing_zeros().cast_signed() + 1;
    let params = brotli::enc::BrotliEncoderParams { quality, lgwin: bits.clamp(16, window), ..Default::default() };
    brotli::BrotliCompress(&mut data, &mut out, &params).map(drop)
}

fn gzip(data: &mut dyn Read, _: u64, out: &mut dyn Write) -> io::Result<()> {
    let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::best());
    io::copy(data, &mut encoder)?;
    encoder.finish().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    fn bytes(packed: &Packed) -> Vec<u8> {
        let Source::Part(file, range) = &packed.source else { panic!("in the spool") };
        let mut out = vec![0; packed.len as usize];
        file.read_exact_at(&mut out, range.start).unwrap();
        assert_eq!(packed.hash, blake3::hash(&out));
        out
    }

    #[test]
    fn what_is_kept_is_used_if_it_is_sound() {
        let dir = std::env::temp_dir().join(format!("donjon-compress-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (c, mut spool) = (Compressor::new(Some(&dir)), Spool::new(&dir).unwrap());
        let text = b"<p>hello</p>".repeat(100);
        let path = dir.join("page");
        fs::write(&path, &text).unwrap();
        let mut made = |content_type: &str, len: u64| {
            let content = Content { path: &path, content_type, len, hash: blake3::hash(&text) };
            c.compress(&content, &mut spool).unwrap()
        };
        let first = made("text/html", 1200);
        let (brotli, gzip) = (bytes(first.brotli.as_ref().unwrap()), bytes(first.gzip.as_ref().unwrap()));
        let mut plain = vec![];
        brotli_decompressor(&brotli, &mut plain);
        assert_eq!(plain, text);
        plain.clear();
        flate2::read::GzDecoder::new(&gzip[..]).read_to_end(&mut plain).unwrap();
        assert_eq!(plain, text);

        let kept = dir.join(format!("{}-{REVISION}.br", blake3::hash(&text)));
        assert_eq!(fs::read(&kept).unwrap()[32..], brotli[..]);
        fs::write(&kept, [&blake3::hash(b"other").as_bytes()[..], b"other"].concat()).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH;
        File::options().write(true).open(&kept).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(bytes(&made("text/html", 1200).brotli.unwrap()), b"other");
        assert_ne!(fs::metadata(&kept).unwrap().modified().unwrap(), long_ago, "it counts as used");
        for damaged in [&b"damaged"[..], &[7; 100]] {
            fs::write(&kept, damaged).unwrap();
            let again = made("text/html", 1200);
            assert_eq!((bytes(&again.brotli.unwrap()), bytes(&again.gzip.unwrap())), (brotli.clone(), gzip.clone()));
            assert_eq!(fs::read(&kept).unwrap()[32..], brotli[..], "it is kept anew");
        }
        assert!(made("image/png", 1200).brotli.is_none());
        assert!(made("text/html", 255).gzip.is_none());
        assert_eq!(bytes(first.brotli.as_ref().unwrap()), brotli, "what was kept first is still there");
        let names = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        assert!(names.into_iter().all(|n| !n.ends_with("spool") && !n.ends_with("part")));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_file_that_changes_leaves_nothing() {
        let dir = std::env::temp_dir().join(format!("donjon-changes-{}", std::process::id()));
        fs::create_dir_all(dir.join("kept")).unwrap();
        let (path, kept) = (dir.join("page"), dir.join("kept"));
        let before = b"<p>hello</p>".repeat(100);
        let mut spool = Spool::new(&dir).unwrap();
        for now in [b"<p>HELLO</p>".repeat(100), before[1..].to_vec(), [&before[..], b"x"].concat()] {
            fs::write(&path, now).unwrap();
            let content = Content { path: &path, content_type: "text/html", len: 1200, hash: blake3::hash(&before) };
            for place in [Some(kept.as_path()), None] {
                let made = Compressor::new(place).compress(&content, &mut spool);
                assert!(matches!(made, Err(Error::Changed(file)) if file == path));
            }
            assert_eq!(fs::read_dir(&kept).unwrap().count(), 0);
        }
        fs::remove_dir_all(dir).unwrap();
    }

    fn brotli_decompressor(data: &[u8], out: &mut Vec<u8>) {
        brotli::BrotliDecompress(&mut &data[..], out).unwrap();
    }
}
