//! Opening an image: every check that a host makes before it believes one byte of it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use donjon_abi::zstd::Tables;
use donjon_abi::{
    bundle::Bundle,
    image::{Extent, HEADER_OFFSET, HeaderError, ImageHeader},
};

use crate::manifest::{Manifest, ManifestError};

/// An image whose header, hash, manifest and bundle have been checked.
#[derive(Debug)]
pub struct Image {
    bytes: Vec<u8>,
    /// What was compressed in it.
    content: Vec<u8>,
    header: ImageHeader,
    manifest: Manifest,
}

/// Why an image could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file is not there.
    #[error("there is no image at {0}")]
    Missing(PathBuf),
    /// The file could not be read.
    #[error("cannot read {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// The file is something else.
    #[error("{0} is not a Donjon image{1}")]
    NotAnImage(PathBuf, &'static str),
    /// Made for another version of the gate.
    #[error("{path} was made for gate version {got}, this donjon serves version {expected}")]
    Version {
        /// The file.
        path: PathBuf,
        /// What this program serves.
        expected: u32,
        /// What the image asks for.
        got: u32,
    },
    /// Cut off, or something was appended.
    #[error("{path} is {} : its header says {expected} bytes, the file has {got}", if got < expected { "truncated" } else { "too long" })]
    Length {
        /// The file.
        path: PathBuf,
        /// Length according to the header.
        expected: u64,
        /// Length of the file.
        got: u64,
    },
    /// The header contradicts itself.
    #[error("{0} is damaged: its header's {1} cannot be right")]
    Field(PathBuf, &'static str),
    /// The content is not what was hashed when the image was made.
    #[error("{path} is damaged: its BLAKE3 hash is {got}, the header says {expected}")]
    Hash {
        /// The file.
        path: PathBuf,
        /// Hash in the header, hexadecimal.
        expected: String,
        /// Hash of the file, hexadecimal.
        got: String,
    },
    /// The manifest records make no sense.
    #[error("{0} is damaged: {1}")]
    Manifest(PathBuf, #[source] ManifestError),
    /// The file bundle makes no sense.
    #[error("{0} is damaged: its file bundle cannot be read")]
    Bundle(PathBuf),
}

impl Image {
    /// Reads and checks the image at `path`.
    pub fn open(path: &Path) -> Result<Image, OpenError> {
        let bytes = fs::read(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => OpenError::Missing(path.into()),
            _ => OpenError::Io(path.into(), e),
        })?;
        Image::from_bytes(bytes, path)
    }

    /// Checks the image in `bytes`; `path` is for messages only.
    pub fn from_bytes(bytes: Vec<u8>, path: &Path) -> Result<Image, OpenError> {
        let header = parse_header(&bytes, bytes.len() as u64, path)?;
        check_hash(&header, hash(&bytes), path)?;
        let content = unpack(&header, extent(&bytes, header.packed).unwrap_or_default(), path)?;
        let manifest = Manifest::parse(extent(&bytes, header.manifest).unwrap_or_default())
            .map_err(|e| OpenError::Manifest(path.into(), e))?;
        extent(&bytes, header.bundle).and_then(Bundle::parse).ok_or_else(|| OpenError::Bundle(path.into()))?;
        Ok(Image { bytes, content, header, manifest })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The header.
    pub fn header(&self) -> &ImageHeader {
        &self.header
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The files inside.
    pub fn bundle(&self) -> Bundle<'_> {
        extent(&self.bytes, self.header.bundle).and_then(Bundle::parse).unwrap_or(Bundle::EMPTY)
    }

    /// The bytes of an extent of this image, unpacked; empty if it lies outside, which `open` has excluded for all extents of the header.
    pub fn extent(&self, e: Extent) -> &[u8] {
        unpacked(&self.header, &self.content, e).or_else(|| extent(&self.bytes, e)).unwrap_or_default()
    }
}

/// Checks the beginning of an image file of `len` bytes: at least the ELF header and the image header.
pub(crate) fn parse_header(start: &[u8], len: u64, path: &Path) -> Result<ImageHeader, OpenError> {
    let not = |why| OpenError::NotAnImage(path.into(), why);
    if !start.starts_with(b"\x7fELF") {
        return Err(not(if start.is_empty() { ": it is empty" } else { "" }));
    }
    let page = start.get(HEADER_OFFSET as usize..).ok_or_else(|| not(": it is an ELF file without our header"))?;
    ImageHeader::parse(page, len).map_err(|e| match e {
        HeaderError::NotAnImage => not(": it is an ELF file without our header"),
        HeaderError::Version { expected, got } => OpenError::Version { path: path.into(), expected, got },
        HeaderError::Length { expected, got } => OpenError::Length { path: path.into(), expected, got },
        HeaderError::Field(name) => OpenError::Field(path.into(), name),
        _ => OpenError::Field(path.into(), "header"),
    })
}

/// Compares what was computed with what the header says.
pub(crate) fn check_hash(header: &ImageHeader, got: blake3::Hash, path: &Path) -> Result<(), OpenError> {
    if got.as_bytes() == &header.hash {
        return Ok(());
    }
    Err(OpenError::Hash {
        path: path.into(),
        expected: blake3::Hash::from_bytes(header.hash).to_string(),
        got: got.to_string(),
    })
}

/// What is compressed in an image whose header and hash have been checked, from the bytes of its `packed`.
pub(crate) fn unpack(header: &ImageHeader, block: &[u8], path: &Path) -> Result<Vec<u8>, OpenError> {
    let mut content = vec![0; header.unpacked.len as usize];
    if !content.is_empty() && !header.unpack(block, &mut content, &mut Tables::new()) {
        return Err(OpenError::Field(path.into(), "compressed part"));
    }
    Ok(content)
}

/// The bytes of an extent, if it lies in `content`, which is what [`unpack`] gave.
pub(crate) fn unpacked<'a>(header: &ImageHeader, content: &'a [u8], e: Extent) -> Option<&'a [u8]> {
    let offset = e.offset.checked_sub(header.unpacked.offset).filter(|_| !content.is_empty())?;
    extent(content, Extent { offset, ..e })
}

/// BLAKE3 of an image, its own hash field taken as zeros. `bytes` is longer than a header.
pub(crate) fn hash(bytes: &[u8]) -> blake3::Hash {
    let (head, rest) = bytes.split_at(ImageHeader::HASH_OFFSET as usize);
    let mut hasher = blake3::Hasher::new();
    hasher.update(head).update(&[0; 32]).update(&rest[32..]);
    hasher.finalize()
}

fn extent(bytes: &[u8], e: Extent) -> Option<&[u8]> {
    if e.len == 0 {
        return Some(&[]);
    }
    let start = usize::try_from(e.offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(e.len).ok()?)?)
}
