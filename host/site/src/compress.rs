//! Compressed variants of contents, kept from one time to the next: the best compression takes a second per megabyte.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Files below this size are not compressed: the headers would outweigh the gain.
const COMPRESS_FROM: usize = 256;
/// Files above these sizes are compressed at faster levels.
const SLOW_TO: usize = 1 << 20;
const MIDDLE_TO: usize = 16 << 20;
/// Changes whenever what is kept would be made differently.
const REVISION: &str = "1";

/// Where compressed contents are kept; without a place, each is made anew.
pub(crate) struct Compressor<'a> {
    place: Option<&'a Path>,
}

/// The brotli and the gzip variant, as far as they save something.
#[derive(Default)]
pub(crate) struct Compressed {
    pub brotli: Option<Vec<u8>>,
    pub gzip: Option<Vec<u8>>,
}

impl<'a> Compressor<'a> {
    pub fn new(place: Option<&'a Path>) -> Compressor<'a> {
        Compressor { place }
    }

    /// Compresses `data`, whose BLAKE3 hash in hexadecimal is `hash`.
    pub fn compress(&self, content_type: &str, data: &[u8], hash: &str) -> Compressed {
        if !compressible(content_type) || data.len() < COMPRESS_FROM {
            return Compressed::default();
        }
        // Worth its place in the image only if it saves something.
        let smaller = |packed: Vec<u8>| Some(packed).filter(|p| p.len() + p.len() / 20 < data.len());
        Compressed {
            brotli: smaller(self.kept(hash, "br", || brotli(data))),
            gzip: smaller(self.kept(hash, "gz", || gzip(data))),
        }
    }

    /// What is kept is only ever a shortcut: whatever goes wrong with it, it is made anew.
    fn kept(&self, hash: &str, kind: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
        let Some(place) = self.place else { return make() };
        let path: PathBuf = place.join(format!("{hash}-{REVISION}.{kind}"));
        // The first 32 bytes say what the rest must be, so that a damaged file is not served.
        let checked = |bytes: Vec<u8>| {
            let (sum, rest) = bytes.split_at_checked(32)?;
            (blake3::hash(rest).as_bytes() == sum).then(|| rest.to_vec())
        };
        if let Some(bytes) = fs::read(&path).ok().and_then(checked) {
            return bytes;
        }
        let bytes = make();
        let part = path.with_extension(format!("{kind}.{}.part", std::process::id()));
        let whole = [&blake3::hash(&bytes).as_bytes()[..], &bytes].concat();
        if fs::create_dir_all(place).and_then(|()| fs::write(&part, whole)).is_ok() {
            _ = fs::rename(&part, &path);
        }
        bytes
    }
}

fn compressible(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or("");
    essence.starts_with("text/")
        || ["json", "javascript", "xml", "wasm", "manifest", "x-icon", "font/ttf", "font/otf", "bmp", "pdf"]
            .iter()
            .any(|part| essence.ends_with(part))
}

fn brotli(data: &[u8]) -> Vec<u8> {
    let quality = match data.len() {
        n if n <= SLOW_TO => 11,
        n if n <= MIDDLE_TO => 9,
        _ => 5,
    };
    let params = brotli::enc::BrotliEncoderParams { quality, lgwin: 22, ..Default::default() };
    let mut out = vec![];
    // Writing to a vector cannot fail; if it did, a variant that saves nothing is left out.
    match brotli::BrotliCompress(&mut &data[..], &mut out, &params) {
        Ok(_) => out,
        Err(_) => data.to_vec(),
    }
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
    match encoder.write_all(data).and_then(|()| encoder.finish()) {
        Ok(out) => out,
        Err(_) => data.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_used_if_it_is_sound() {
        let dir = std::env::temp_dir().join(format!("donjon-compress-{}", std::process::id()));
        let (c, data) = (Compressor::new(Some(&dir)), b"<p>hello</p>".repeat(100));
        let first = c.compress("text/html", &data, "h").brotli.unwrap();
        let path = dir.join(format!("h-{REVISION}.br"));
        let made = fs::read(&path).unwrap();
        assert_eq!(made[32..], first[..]);
        let other = [&blake3::hash(b"other").as_bytes()[..], b"other"].concat();
        fs::write(&path, other).unwrap();
        assert_eq!(c.compress("text/html", &data, "h").brotli.unwrap(), b"other");
        fs::write(&path, b"damaged").unwrap();
        assert_eq!(c.compress("text/html", &data, "h").brotli.unwrap(), first);
        assert!(c.compress("image/png", &data, "h").brotli.is_none());
        assert!(c.compress("text/html", b"short", "s").gzip.is_none());
        fs::remove_dir_all(dir).unwrap();
    }
}
