//! The image file: one ELF file that hypervisors can boot and our monitor can run.
//!
//! ```text
//! offset 0      ELF64 header, program headers, PVH note        for hypervisors
//! offset 4096   ImageHeader, one page                          for our hosts and the shim
//!               relocations (RELR), manifest
//!               segments of the application, each page-aligned
//!               file bundle, page-aligned
//!               ring-0 shim
//! ```
//!
//! Everything from offset 4096 to the end of the bundle is one `PT_LOAD` at physical address [`PAYLOAD_PADDR`]; the shim
//! is another at [`SHIM_PADDR`]. Offsets in the header are file offsets; the shim turns them into physical
//! addresses by `PAYLOAD_PADDR + offset - HEADER_OFFSET`.
//!
//! Of a compressed image, the file has one Zstandard frame ([`ImageHeader::packed`]) in place of the segments. Unpacked, they lie behind the end of the
//! file ([`ImageHeader::unpacked`]): the offsets of segments and relocations may be there, and mean the same.

use crate::PAGE;
use crate::zstd::Tables;

/// File offset of the [`ImageHeader`].
pub const HEADER_OFFSET: u64 = PAGE;
/// Physical address at which the shim is linked and loaded. Shim and its bss end below [`PAYLOAD_PADDR`].
pub const SHIM_PADDR: u64 = 0x10_0000;
/// Physical address at which the payload (header to bundle) is loaded.
pub const PAYLOAD_PADDR: u64 = 0x20_0000;
/// First field of an [`ImageHeader`].
pub const MAGIC: [u8; 8] = *b"DONJON\r\n";
/// Most segments that an image may have.
pub const SEGMENTS_MAX: usize = 8;
/// Most bytes that may be unpacked at start.
pub const UNPACKED_MAX: u64 = 64 << 20;
/// Most bytes of RELR words, which name up to 63 words each: they are read into memory, and a file's length may be a hole.
pub const RELR_MAX: u64 = 16 << 20;

/// A range of the image file.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Extent {
    /// File offset of the first byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Final rights of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum SegmentProt {
    /// Read only, never relocated.
    Read = 1,
    /// Read and write.
    ReadWrite = 2,
    /// Read and execute, never relocated.
    ReadExecute = 3,
    /// Relocated by the host, then read only (RELRO).
    ReadAfterRelocation = 4,
}

impl SegmentProt {
    /// The rights of that number.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => SegmentProt::Read,
            2 => SegmentProt::ReadWrite,
            3 => SegmentProt::ReadExecute,
            4 => SegmentProt::ReadAfterRelocation,
            _ => return None,
        })
    }
}

/// One segment of the application.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Segment {
    /// The bytes in the file; the offset is page-aligned. The file is padded so that whole pages can be mapped,
    /// and the padding up to `mem_len` or the end of the page is zero.
    pub file: Extent,
    /// Offset from the image base; page-aligned.
    pub mem_offset: u64,
    /// Length in memory, at least `file.len`; the rest is zero.
    pub mem_len: u64,
    /// A [`SegmentProt`].
    pub prot: u32,
    /// Always 0.
    pub _pad: u32,
}

/// The header at [`HEADER_OFFSET`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ImageHeader {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`crate::VERSION`].
    pub version: u32,
    /// Number of valid elements in `segments`.
    pub segment_count: u32,
    /// Length of the whole file.
    pub file_len: u64,
    /// BLAKE3 of the whole file with these 32 bytes as zeros.
    pub hash: [u8; 32],
    /// Bytes of address space that the segments span, a multiple of the page size.
    pub span: u64,
    /// Entry point, as an offset from the image base.
    pub entry: u64,
    /// Tick upcall, as an offset from the image base. At each tick the host makes ring 3 continue as if the
    /// interrupted code had executed `lea -128(%rsp),%rsp; push next; pushfq; jmp upcall`; the guest resumes with
    /// `popfq; ret $128`. No other register changes.
    pub upcall: u64,
    /// Fault entry, as an offset from the image base. On an exception in ring 3 the host calls
    /// `entry(vector, address, rip, rsp, rbp, error_code)` on the boot page's fault stack (x86 vector numbers). It does
    /// not return; a fault inside it ends the guest at once.
    pub fault: u64,
    /// RELR words (as in `DT_RELR`): each names 8-byte words, by offset from the image base, to which the host adds the base.
    /// All lie in `ReadWrite` or `ReadAfterRelocation` segments.
    pub relr: Extent,
    /// Manifest records ([`crate::manifest`]).
    pub manifest: Extent,
    /// File bundle ([`crate::bundle`]), page-aligned; `len` 0 if there is none.
    pub bundle: Extent,
    /// The shim's bytes.
    pub shim: Extent,
    /// The segments, ascending by `mem_offset`, not overlapping.
    pub segments: [Segment; SEGMENTS_MAX],
    /// The segments' bytes as one Zstandard frame; `len` 0 if the file has them as they are. What is executable went through [`crate::bcj`] before.
    pub packed: Extent,
    /// Where the block's content is taken to lie: whole pages behind the end of the file; `len` is the content's exact length.
    pub unpacked: Extent,
}

/// Why a header was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum HeaderError {
    /// The first bytes are not [`MAGIC`].
    NotAnImage,
    /// Made for another version of the gate.
    Version {
        /// [`crate::VERSION`].
        expected: u32,
        /// What the image says.
        got: u32,
    },
    /// The file is shorter or longer than the header says.
    Length {
        /// What the header says, bytes.
        expected: u64,
        /// The file's length, bytes.
        got: u64,
    },
    /// A field cannot be right.
    Field(&'static str),
}

const U32S: usize = 2;
const HEADER_LEN: usize = 8 + 4 * U32S + 8 + 32 + 8 * 4 + 16 * 6 + SEGMENTS_MAX * 40;

impl ImageHeader {
    /// Length of the encoded header in bytes.
    pub const LEN: usize = HEADER_LEN;
    /// File offset of the hash.
    pub const HASH_OFFSET: u64 = HEADER_OFFSET + core::mem::offset_of!(ImageHeader, hash) as u64;

    /// Reads and checks a header. `bytes` starts at [`HEADER_OFFSET`] of a file of `file_len` bytes. After this, every extent lies
    /// in the file (that of a segment or the relocations in the file or in `unpacked`), every segment in the span, and entry points in executable segments. The hash is not checked.
    pub fn parse(bytes: &[u8], file_len: u64) -> Result<ImageHeader, HeaderError> {
        let mut r = Reader { bytes, at: 0 };
        let short = HeaderError::Field("header length");
        let magic: [u8; 8] = r.array().ok_or(HeaderError::NotAnImage)?;
        if magic != MAGIC {
            return Err(HeaderError::NotAnImage);
        }
        let version = r.u32().ok_or(short)?;
        if version != crate::VERSION {
            return Err(HeaderError::Version { expected: crate::VERSION, got: version });
        }
        let header = (|| {
            Some(ImageHeader {
                magic,
                version,
                segment_count: r.u32()?,
                file_len: r.u64()?,
                hash: r.array()?,
                span: r.u64()?,
                entry: r.u64()?,
                upcall: r.u64()?,
                fault: r.u64()?,
                relr: r.extent()?,
                manifest: r.extent()?,
                bundle: r.extent()?,
                shim: r.extent()?,
                segments: {
                    let mut segments = [Segment::default(); SEGMENTS_MAX];
                    for s in &mut segments {
                        *s = Segment {
                            file: r.extent()?,
                            mem_offset: r.u64()?,
                            mem_len: r.u64()?,
                            prot: r.u32()?,
                            _pad: r.u32()?,
                        };
                    }
                    segments
                },
                packed: r.extent()?,
                unpacked: r.extent()?,
            })
        })()
        .ok_or(short)?;
        if header.file_len != file_len {
            return Err(HeaderError::Length { expected: header.file_len, got: file_len });
        }
        header.check()?;
        Ok(header)
    }

    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut w = Writer { bytes: [0; HEADER_LEN], at: 0 };
        w.put(&self.magic);
        w.put(&self.version.to_le_bytes());
        w.put(&self.segment_count.to_le_bytes());
        w.put(&self.file_len.to_le_bytes());
        w.put(&self.hash);
        for v in [self.span, self.entry, self.upcall, self.fault] {
            w.put(&v.to_le_bytes());
        }
        for e in [self.relr, self.manifest, self.bundle, self.shim] {
            w.extent(e);
        }
        for s in &self.segments {
            w.extent(s.file);
            w.put(&s.mem_offset.to_le_bytes());
            w.put(&s.mem_len.to_le_bytes());
            w.put(&s.prot.to_le_bytes());
            w.put(&s._pad.to_le_bytes());
        }
        w.extent(self.packed);
        w.extent(self.unpacked);
        w.bytes
    }

    /// The valid segments with their rights.
    pub fn segments(&self) -> impl Iterator<Item = (Segment, SegmentProt)> + '_ {
        self.segments
            .iter()
            .take(self.segment_count as usize)
            .filter_map(|s| Some((*s, SegmentProt::from_number(s.prot)?)))
    }

    /// The parts of the unpacked content that are executable, on which [`crate::bcj`] works.
    pub fn code(&self) -> impl Iterator<Item = core::ops::Range<usize>> + '_ {
        self.segments().filter(|(s, p)| *p == SegmentProt::ReadExecute && s.file.len > 0).filter_map(|(s, _)| {
            let start = s.file.offset.checked_sub(self.unpacked.offset)?;
            (self.packed.len > 0).then_some(start as usize..(start + s.file.len) as usize)
        })
    }

    /// Unpacks `frame`, the bytes of `packed`, into `content`, which is as long as `unpacked`. `tables` is room for the time of that.
    /// False if the content has another length or the frame is damaged.
    pub fn unpack(&self, frame: &[u8], content: &mut [u8], tables: &mut Tables) -> bool {
        if crate::zstd::unpack(frame, content, tables) != Some(content.len()) {
            return false;
        }
        self.code().for_each(|range| content.get_mut(range).into_iter().for_each(crate::bcj::decode));
        true
    }

    fn check(&self) -> Result<(), HeaderError> {
        let field = |ok: bool, name| if ok { Ok(()) } else { Err(HeaderError::Field(name)) };
        let in_file = |e: Extent| {
            e.len == 0
                || (e.offset >= HEADER_OFFSET + PAGE
                    && e.offset.checked_add(e.len).is_some_and(|end| end <= self.file_len))
        };
        let unpacked = self.unpacked;
        let packed = self.packed.len > 0;
        field(in_file(self.packed), "compressed part")?;
        field(if packed { unpacked.len > 0 } else { unpacked == Extent::default() }, "unpacked length")?;
        field(unpacked.len <= UNPACKED_MAX && unpacked.len <= self.span, "unpacked length")?;
        field(self.packed.len <= unpacked.len, "compressed part")?;
        let behind = unpacked.offset.is_multiple_of(PAGE) && unpacked.offset >= self.file_len;
        field(!packed || (behind && unpacked.offset <= 1 << 32), "unpacked place")?;
        let in_content = |e: Extent| {
            let end = e.offset.checked_add(e.len);
            packed && e.offset >= unpacked.offset && end.is_some_and(|end| end <= unpacked.offset + unpacked.len)
        };
        field(self.segment_count as usize <= SEGMENTS_MAX && self.segment_count > 0, "segment count")?;
        field(self.span.is_multiple_of(PAGE) && self.span <= 1 << 32, "span")?;
        field(
            (in_file(self.relr) || in_content(self.relr))
                && self.relr.len.is_multiple_of(8)
                && self.relr.len <= self.span.min(RELR_MAX)
                && self.relr.offset.is_multiple_of(8),
            "relocations",
        )?;
        field(in_file(self.manifest), "manifest")?;
        field(in_file(self.bundle) && self.bundle.offset.is_multiple_of(PAGE), "bundle")?;
        field(in_file(self.shim), "shim")?;
        let mut end = 0;
        for s in self.segments.iter().take(self.segment_count as usize) {
            field(SegmentProt::from_number(s.prot).is_some(), "segment rights")?;
            let there = in_file(s.file) || in_content(s.file);
            field(there && s.file.offset.is_multiple_of(PAGE), "segment in file")?;
            field(s.mem_offset.is_multiple_of(PAGE) && s.mem_offset >= end && s.mem_len > 0, "segment order")?;
            field(s.file.len <= s.mem_len, "segment length")?;
            end = s.mem_offset.checked_add(s.mem_len).ok_or(HeaderError::Field("segment length"))?;
            field(end <= self.span, "segment in span")?;
            end = end.next_multiple_of(PAGE);
        }
        let executable = |at: u64| {
            self.segments()
                .any(|(s, p)| p == SegmentProt::ReadExecute && at >= s.mem_offset && at - s.mem_offset < s.mem_len)
        };
        field(executable(self.entry), "entry")?;
        field(executable(self.upcall), "upcall entry")?;
        field(executable(self.fault), "fault entry")
    }
}

/// The words that RELR-encoded relocations name, as offsets from the image base, in ascending order.
/// `words` are the RELR words. Offsets are as the file says: the caller checks each against its segments.
pub fn relr_offsets(words: impl Iterator<Item = u64>) -> impl Iterator<Item = u64> {
    let mut next = 0u64;
    words.flat_map(move |word| {
        // Generic ABI, "RELR": an even word is an address; an odd one is a bitmap of the 63 words that follow.
        let (base, bitmap) = if word & 1 == 0 {
            next = word.wrapping_add(8);
            (word, 1)
        } else {
            let base = next;
            next = next.wrapping_add(63 * 8);
            (base, word >> 1)
        };
        (0..63u64).filter(move |bit| bitmap >> bit & 1 == 1).map(move |bit| base.wrapping_add(bit * 8))
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let out = self.bytes.get(self.at..self.at.checked_add(N)?)?.try_into().ok()?;
        self.at += N;
        Some(out)
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    fn extent(&mut self) -> Option<Extent> {
        Some(Extent { offset: self.u64()?, len: self.u64()? })
    }
}

struct Writer {
    bytes: [u8; HEADER_LEN],
    at: usize,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
    fn extent(&mut self, e: Extent) {
        self.put(&e.offset.to_le_bytes());
        self.put(&e.len.to_le_bytes());
    }
}

const _: () = {
    assert!(size_of::<ImageHeader>() == HEADER_LEN);
    assert!(HEADER_LEN as u64 <= PAGE);
    // Another length is another version.
    assert!(HEADER_LEN == 504 && crate::VERSION == 4);
    assert!(size_of::<Segment>() == 40);
    assert!(core::mem::offset_of!(ImageHeader, hash) == 24);
};

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    fn header() -> ImageHeader {
        let mut segments = [Segment::default(); SEGMENTS_MAX];
        segments[0] = Segment {
            file: Extent { offset: 8192, len: 100 },
            mem_offset: 0,
            mem_len: 4096,
            prot: SegmentProt::ReadExecute as u32,
            _pad: 0,
        };
        segments[1] = Segment {
            file: Extent { offset: 12288, len: 100 },
            mem_offset: 4096,
            mem_len: 5000,
            prot: SegmentProt::ReadWrite as u32,
            _pad: 0,
        };
        ImageHeader {
            magic: MAGIC,
            version: crate::VERSION,
            segment_count: 2,
            file_len: 20480,
            hash: [7; 32],
            span: 12288,
            entry: 16,
            upcall: 32,
            fault: 48,
            relr: Extent::default(),
            manifest: Extent { offset: 16384, len: 10 },
            bundle: Extent::default(),
            shim: Extent::default(),
            segments,
            packed: Extent::default(),
            unpacked: Extent::default(),
        }
    }

    /// The same with its segments in a compressed part.
    fn packed() -> ImageHeader {
        let mut h = header();
        h.packed = Extent { offset: 8192, len: 50 };
        h.unpacked = Extent { offset: 20480, len: 4196 };
        h.segments[0].file.offset = 20480;
        h.segments[1].file.offset = 24576;
        h
    }

    #[test]
    fn header_round_trip() {
        for h in [header(), packed()] {
            assert_eq!(ImageHeader::parse(&h.to_bytes(), h.file_len), Ok(h));
        }
    }

    #[test]
    fn what_is_unpacked_lies_behind_the_file_and_is_bounded() {
        let bad = |f: fn(&mut ImageHeader)| {
            let mut h = packed();
            f(&mut h);
            ImageHeader::parse(&h.to_bytes(), 20480).unwrap_err()
        };
        let field = HeaderError::Field;
        assert_eq!(bad(|h| h.packed.offset = 20470), field("compressed part"));
        assert_eq!(bad(|h| h.packed.len = 4196 + 16 + 17), field("compressed part"));
        assert_eq!(bad(|h| h.packed.len = 0), field("unpacked length"));
        assert_eq!(bad(|h| h.unpacked.len = 0), field("unpacked length"));
        assert_eq!(bad(|h| h.unpacked.len = 12289), field("unpacked length"));
        assert_eq!(bad(|h| h.unpacked.len = u64::MAX), field("unpacked length"));
        assert_eq!(bad(|h| h.unpacked.offset = 16384), field("unpacked place"));
        assert_eq!(bad(|h| h.unpacked.offset = 20481), field("unpacked place"));
        assert_eq!(bad(|h| h.unpacked.offset = !4095), field("unpacked place"));
        assert_eq!(bad(|h| h.segments[1].file.len = 101), field("segment in file"));
        assert_eq!(bad(|h| h.segments[0].file.offset = 28672), field("segment in file"));
        assert_eq!(bad(|h| h.bundle = Extent { offset: 20480, len: 10 }), field("bundle"));
        assert_eq!(bad(|h| h.manifest.offset = 20480), field("manifest"));
        let mut open = header();
        open.segments[0].file.offset = 20480;
        assert_eq!(ImageHeader::parse(&open.to_bytes(), 20480), Err(field("segment in file")));
        open = header();
        open.span = 1 << 30;
        open.packed = Extent { offset: 8192, len: 1 };
        open.unpacked = Extent { offset: 20480, len: UNPACKED_MAX + 1 };
        assert_eq!(ImageHeader::parse(&open.to_bytes(), 20480), Err(field("unpacked length")));
    }

    #[test]
    fn relocations_are_bounded() {
        // 5 GiB of hole.
        let mut h = ImageHeader { span: 1 << 32, file_len: 5 << 30, ..header() };
        let mut with = |len| {
            h.relr = Extent { offset: 1 << 30, len };
            ImageHeader::parse(&h.to_bytes(), h.file_len).map(drop)
        };
        assert_eq!(with(RELR_MAX), Ok(()));
        assert_eq!(with(RELR_MAX + 8), Err(HeaderError::Field("relocations")));
    }

    #[test]
    fn header_refuses_every_truncation() {
        let h = header();
        let bytes = h.to_bytes();
        for n in 0..bytes.len() {
            assert!(ImageHeader::parse(&bytes[..n], h.file_len).is_err(), "length {n}");
        }
    }

    #[test]
    fn header_refuses_bad_fields() {
        let bad = |f: fn(&mut ImageHeader)| {
            let mut h = header();
            f(&mut h);
            ImageHeader::parse(&h.to_bytes(), 20480).unwrap_err()
        };
        assert_eq!(bad(|h| h.magic[0] = 0), HeaderError::NotAnImage);
        assert!(matches!(bad(|h| h.version = 99), HeaderError::Version { got: 99, .. }));
        assert!(matches!(bad(|h| h.file_len = 1), HeaderError::Length { .. }));
        assert_eq!(bad(|h| h.segment_count = 9), HeaderError::Field("segment count"));
        assert_eq!(bad(|h| h.entry = 4096), HeaderError::Field("entry"));
        assert_eq!(bad(|h| h.segments[1].mem_offset = 0), HeaderError::Field("segment order"));
        assert_eq!(bad(|h| h.segments[1].mem_len = u64::MAX), HeaderError::Field("segment length"));
        assert_eq!(bad(|h| h.segments[0].file.offset = !4095), HeaderError::Field("segment in file"));
        assert_eq!(bad(|h| h.segments[0].prot = 7), HeaderError::Field("segment rights"));
        assert_eq!(bad(|h| h.manifest.len = u64::MAX), HeaderError::Field("manifest"));
    }

    #[test]
    fn relr_decodes_addresses_and_bitmaps() {
        let words = [0x1000u64, 0b1011 << 1 | 1, 1 | 1 << 63];
        let got: Vec<u64> = relr_offsets(words.into_iter()).collect();
        let second_base = 0x1008 + 63 * 8;
        assert_eq!(got, [0x1000, 0x1008, 0x1010, 0x1020, second_base + 62 * 8]);
    }
}
