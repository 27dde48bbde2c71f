//! Checking an image file without holding it in memory: for the monitor, which maps it and may run beside a bundle of any size.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use donjon_abi::{
    PAGE,
    image::{Extent, HEADER_OFFSET, ImageHeader},
};

use crate::{
    image::{OpenError, check_hash, parse_header},
    manifest::Manifest,
};

/// Bytes that are read and hashed at a time; the header lies in the first ones.
const CHUNK: usize = 64 * 1024;
const _: () = assert!(ImageHeader::HASH_OFFSET as usize + 32 <= CHUNK);

/// The small parts of an image whose header, hash and manifest have been checked.
#[derive(Debug)]
pub struct Head {
    /// The header.
    pub header: ImageHeader,
    /// The manifest.
    pub manifest: Manifest,
    /// The manifest's records.
    pub manifest_bytes: Vec<u8>,
    /// The relocations (RELR words).
    pub relr: Vec<u8>,
}

impl Head {
    /// Checks the image in `file`; `path` is for messages only. The bundle is not looked at: its hash is right, and the guest checks it when it
    /// opens it.
    pub fn read(file: &File, path: &Path) -> Result<Head, OpenError> {
        let io = |e| OpenError::Io(path.into(), e);
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(OpenError::NotAnImage(path.into(), ": it is not a regular file"));
        }
        let len = meta.len();
        let mut chunk = vec![0; CHUNK];
        let n = read_chunk(file, &mut chunk, 0).map_err(io)?;
        let header = parse_header(&chunk[..n.min((HEADER_OFFSET + PAGE) as usize)], len, path)?;

        let mut hasher = blake3::Hasher::new();
        let (mut at, mut n) = (0, n);
        let own = ImageHeader::HASH_OFFSET as usize;
        chunk[own..own + 32].fill(0);
        while n > 0 {
            hasher.update(&chunk[..n]);
            at += n as u64;
            n = read_chunk(file, &mut chunk, at).map_err(io)?;
        }
        // The file has shrunk or grown meanwhile.
        if at != len {
            return Err(OpenError::Length { path: path.into(), expected: len, got: at });
        }
        check_hash(&header, hasher.finalize(), path)?;

        let extent = |e: Extent| {
            // In the file, so that its length is not the header's invention.
            let mut bytes = vec![0; e.len as usize];
            file.read_exact_at(&mut bytes, e.offset).map(|()| bytes).map_err(io)
        };
        let (manifest_bytes, relr) = (extent(header.manifest)?, extent(header.relr)?);
        let manifest = Manifest::parse(&manifest_bytes).map_err(|e| OpenError::Manifest(path.into(), e))?;
        Ok(Head { header, manifest, manifest_bytes, relr })
    }
}

/// Fills `chunk` as far as the file reaches.
fn read_chunk(file: &File, chunk: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match file.read_at(&mut chunk[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
