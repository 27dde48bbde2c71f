//! The image file, opened and checked, without keeping its bytes in memory.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use donjon_abi::image::{Extent, ImageHeader, SegmentProt, relr_offsets};
use donjon_abi::manifest::STOP_SECONDS;
use donjon_image::{Head, Manifest, OpenError};
use rustix::fs::StatVfsMountFlags;

use crate::options::RunOptions;

/// A checked image. Engines map the file or hand its path on; only the small parts are held in memory.
#[derive(Debug)]
pub(crate) struct Source {
    pub path: PathBuf,
    pub file: File,
    pub header: ImageHeader,
    pub manifest: Manifest,
    /// The manifest as it is in the file, for the guest.
    pub manifest_bytes: Vec<u8>,
    /// Memory that has a descriptor, from `header.unpacked.offset` on: what is unpacked of a compressed image, or a copy ([`Self::make_executable`]).
    pub content: Option<OwnedFd>,
    /// Bytes of `content`.
    content_len: u64,
    /// Offsets from the image base of the words to relocate. Each word lies within one writable segment.
    pub relocations: Vec<u32>,
}

impl Source {
    /// Opens and checks. The file is opened once, so that what was checked is what is mapped. (Who may write to the file
    /// may still change it afterwards: mapped pages are the page cache's.)
    pub fn open(path: &Path) -> Result<Source, OpenError> {
        let io = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => OpenError::Missing(path.into()),
            _ => OpenError::Io(path.into(), e),
        };
        let file = File::open(path).map_err(io)?;
        let Head { header, manifest, manifest_bytes, relr, content } = Head::read(&file, path)?;
        let relocations = relocations(&header, &relr)
            .ok_or_else(|| OpenError::Field(path.into(), "relocation outside of the writable segments"))?;
        let content_len = header.unpacked.len;
        let content = if content.is_empty() {
            None
        } else {
            Some(crate::memfd::sealed("donjon-image", &mut &content[..]).map_err(io)?)
        };
        Ok(Source { path: path.into(), file, header, manifest, manifest_bytes, content, content_len, relocations })
    }

    /// How long the guest may take to end after it was asked to.
    pub fn stop_timeout(&self, options: &RunOptions) -> Duration {
        options.stop_timeout.unwrap_or_else(|| Duration::from_secs(self.manifest.stop.unwrap_or(STOP_SECONDS)))
    }

    /// Copies the segments into memory if the file cannot be mapped executable, as it is on a file system that is mounted `noexec`.
    pub fn make_executable(&mut self) -> io::Result<()> {
        let mount = rustix::fs::fstatvfs(&self.file)?;
        if self.content.is_some() || !mount.f_flag.contains(StatVfsMountFlags::NOEXEC) {
            return Ok(());
        }
        let mut copy = crate::memfd::create("donjon-image")?;
        for (s, _) in self.header.segments().filter(|(s, _)| s.file.len > 0) {
            // At the same place, so that an offset means the same.
            (&self.file).seek(SeekFrom::Start(s.file.offset))?;
            copy.seek(SeekFrom::Start(s.file.offset))?;
            if io::copy(&mut (&self.file).take(s.file.len), &mut copy)? != s.file.len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.content_len += s.file.len.next_multiple_of(donjon_abi::PAGE);
        }
        self.content = Some(crate::memfd::seal(copy)?);
        Ok(())
    }

    /// Bytes that the image's own writable memory takes at most.
    pub fn private_len(&self) -> u64 {
        self.header
            .segments()
            .filter(|(_, p)| matches!(p, SegmentProt::ReadWrite | SegmentProt::ReadAfterRelocation))
            .map(|(s, _)| s.mem_len)
            .sum()
    }

    /// Bytes of memory that the image takes because it is compressed, or a copy; otherwise its file backs them.
    pub fn unpacked_len(&self) -> u64 {
        self.content_len.next_multiple_of(donjon_abi::PAGE)
    }

    /// Length of the extent in whole pages.
    pub fn pages(e: Extent) -> u64 {
        e.len.next_multiple_of(donjon_abi::PAGE)
    }
}

/// Decodes the relocations, or `None` if one lies outside of what the file has of the writable segments, or not behind the one before: so their number is bounded by the file's length.
fn relocations(header: &ImageHeader, relr: &[u8]) -> Option<Vec<u32>> {
    let writable: Vec<(u64, u64)> = header
        .segments()
        .filter(|(_, p)| matches!(p, SegmentProt::ReadWrite | SegmentProt::ReadAfterRelocation))
        .map(|(s, _)| (s.mem_offset, s.mem_offset + s.file.len))
        .collect();
    let words = relr.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default()));
    let mut out: Vec<u32> = Vec::new();
    for at in relr_offsets(words) {
        let end = at.checked_add(8)?;
        if !writable.iter().any(|(from, to)| at >= *from && end <= *to) {
            return None;
        }
        if out.last().is_some_and(|last| at < u64::from(*last) + 8) {
            return None;
        }
        out.push(u32::try_from(at).ok()?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use donjon_abi::image::{MAGIC, SEGMENTS_MAX, Segment};

    fn header() -> ImageHeader {
        let mut segments = [Segment::default(); SEGMENTS_MAX];
        let seg = |mem_offset, mem_len: u64, prot: SegmentProt| Segment {
            file: Extent { offset: 8192, len: mem_len.min(4096) },
            mem_offset,
            mem_len,
            prot: prot as u32,
            _pad: 0,
        };
        segments[0] = seg(0, 4096, SegmentProt::ReadExecute);
        segments[1] = seg(4096, 8192, SegmentProt::ReadWrite);
        ImageHeader {
            magic: MAGIC,
            version: donjon_abi::VERSION,
            segment_count: 2,
            file_len: 8192,
            hash: [0; 32],
            span: 8192,
            entry: 0,
            upcall: 0,
            fault: 0,
            relr: Extent::default(),
            manifest: Extent::default(),
            bundle: Extent::default(),
            shim: Extent::default(),
            segments,
            packed: Extent::default(),
            unpacked: Extent::default(),
        }
    }

    #[test]
    fn relocations_stay_in_writable_segments() {
        let decode = |words: &[u64]| {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            relocations(&header(), &bytes)
        };
        assert_eq!(decode(&[4096, 3]), Some(vec![4096, 4104]));
        assert_eq!(decode(&[8184]), Some(vec![8184]));
        assert_eq!(decode(&[0]), None, "text");
        assert_eq!(decode(&[8192]), None, "not in the file");
        assert_eq!(decode(&[4096, 4096]), None, "again");
        assert_eq!(decode(&[4104, 4096]), None, "backwards");
        assert_eq!(decode(&[4096, 4100]), None, "overlapping");
        assert_eq!(decode(&[8190]), None, "across the end");
        assert_eq!(decode(&[u64::MAX - 1]), None, "wraps");
        assert_eq!(decode(&[8184, 3]), None, "bitmap past the end");
    }
}
