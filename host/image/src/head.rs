//! Checking an image file without holding it in memory: for the monitor, which maps it and may run beside a bundle of any size, and for
//! `donjon inspect`.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use donjon_abi::{
    PAGE,
    bundle::{self, ENTRY_LEN, HEADER_LEN, Kind},
    image::{Extent, HEADER_OFFSET, ImageHeader},
};

use crate::{
    image::{OpenError, check_hash, parse_header, unpack, unpacked},
    manifest::{LEN_MAX, Manifest},
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
    /// The relocations (RELR words, at most [`donjon_abi::image::RELR_MAX`] bytes).
    pub relr: Vec<u8>,
    /// What was compressed: what lies from `header.unpacked.offset` on. Empty if nothing was.
    pub content: Vec<u8>,
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

        if header.manifest.len > LEN_MAX {
            return Err(OpenError::Field(path.into(), "manifest of more than 1 MiB"));
        }
        let extent = |e: Extent| {
            // In the file, so that its length is not the header's invention.
            let mut bytes = vec![0; e.len as usize];
            file.read_exact_at(&mut bytes, e.offset).map(|()| bytes).map_err(io)
        };
        let content = unpack(&header, &extent(header.packed)?, path)?;
        let manifest_bytes = extent(header.manifest)?;
        let relr = match unpacked(&header, &content, header.relr) {
            Some(words) => words.to_vec(),
            None => extent(header.relr)?,
        };
        let manifest = Manifest::parse(&manifest_bytes).map_err(|e| OpenError::Manifest(path.into(), e))?;
        Ok(Head { header, manifest, manifest_bytes, relr, content })
    }
}

/// Path without its leading `/`, and length, of every file in the bundle of the image in `file`, whose header has been checked.
pub fn files(file: &File, header: &ImageHeader, path: &Path) -> Result<Vec<(String, u64)>, OpenError> {
    let extent = header.bundle;
    let part = |from: u64, len: u64| {
        // Never more than is there, so that a length is not the bundle's invention.
        if from.checked_add(len).is_none_or(|end| end > extent.len) {
            return Err(OpenError::Bundle(path.into()));
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, extent.offset + from).map_err(|e| OpenError::Io(path.into(), e))?;
        Ok(bytes)
    };
    if extent.len == 0 {
        return Ok(Vec::new());
    }
    let head = part(0, HEADER_LEN as u64)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n: u64, b| n << 8 | u64::from(*b));
    let entries = part(HEADER_LEN as u64, number(&head[8..12]) * ENTRY_LEN as u64)?;
    let names = part((HEADER_LEN + entries.len()) as u64, number(&head[12..16]))?;
    let one = |e: &[u8; ENTRY_LEN]| {
        let (name, len) = (number(&e[0..4]) as usize, number(&e[4..8]) as usize);
        let name = str::from_utf8(names.get(name..name.checked_add(len)?)?).ok()?;
        let (at, len) = (number(&e[24..32]), number(&e[32..40]));
        at.checked_add(len).filter(|end| *end <= extent.len)?;
        Some((number(&e[8..12]) == Kind::File as u64, name.to_owned(), len))
    };
    let all: Option<Vec<_>> = entries.as_chunks().0.iter().map(one).collect();
    let all = all.filter(|_| head.starts_with(&bundle::MAGIC)).ok_or_else(|| OpenError::Bundle(path.into()))?;
    Ok(all.into_iter().filter(|(file, ..)| *file).map(|(_, name, len)| (name, len)).collect())
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
