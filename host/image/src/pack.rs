//! A linked program becomes an image.
//!
//! The input is a static position-independent ELF file as [`crate::linker`] makes it. What a host would have to trust is
//! checked here and laid down as data: segments with their final rights, relocations that only ever add the base.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::PathBuf,
};

use donjon_abi::{
    PAGE, bcj,
    image::{
        Extent, HEADER_OFFSET, ImageHeader, MAGIC, PAYLOAD_PADDR, SEGMENTS_MAX, SHIM_PADDR, Segment, SegmentProt,
        UNPACKED_MAX, relr_offsets,
    },
};
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _,
    elf::{self, ProgramHeader64},
    read::elf::{Dyn as _, ElfFile64, FileHeader as _, ProgramHeader as _, Rela as _},
};

use crate::{
    bundle::{BundleError, Hashed, Layout},
    manifest::{Manifest, ManifestError},
    shim::Shim,
    unwind,
};

/// Zstandard's best level.
const COMPRESSION: i32 = 22;
const LE: Endianness = Endianness::Little;
/// Dynamic tags of the generic ABI that are newer than the `object` crate's list.
const DT_RELRSZ: u32 = 35;
const DT_RELR: u32 = 36;
type Elf<'a> = ElfFile64<'a, Endianness>;

/// Why a program was not made into an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// Not the kind of ELF file that the linker mode makes.
    #[error("the linked program is not a static position-independent x86-64 ELF file: {0}")]
    Program(String),
    /// A segment that breaks W^X.
    #[error("the linked program has a segment at {0:#x} that is both writable and executable")]
    WriteExecute(u64),
    /// More segments than an image can have.
    #[error("the linked program has {got} segments, an image can have at most {expected}")]
    Segments {
        /// [`SEGMENTS_MAX`].
        expected: usize,
        /// What it has.
        got: usize,
    },
    /// A relocation that is more than "add the base".
    #[error("the linked program needs a relocation of type {kind} at {at:#x}; only relative ones can be packed")]
    Relocation {
        /// ELF relocation type (`R_X86_64_*`).
        kind: u32,
        /// Where.
        at: u64,
    },
    /// A relocation outside of writable memory.
    #[error("the linked program has a relocation at {0:#x}, which is unaligned or not in a writable segment")]
    RelocationPlace(u64),
    /// An entry point is missing.
    #[error("the linked program does not define `{0}`: it was not linked with the guest object")]
    Entry(&'static str),
    /// What the image would declare.
    #[error("nobody could use the image: {0}")]
    Manifest(#[from] ManifestError),
    /// The embedded shim is unusable.
    #[error("the ring-0 shim is unusable: {0}")]
    Shim(&'static str),
    /// The payload would not fit below 4 GiB.
    #[error("the image would be {0} bytes; at most 3 GiB can be loaded")]
    TooLarge(u64),
    /// A file could not be read or written.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

/// The parts of an image.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The linked program.
    pub program: &'a [u8],
    /// The manifest.
    pub manifest: &'a Manifest,
    /// The files; none give no bundle.
    pub bundle: &'a Layout,
    /// The linked ring-0 shim (an ELF file), or nothing: then no hypervisor can boot the image.
    pub shim: &'a [u8],
    /// Whether the program's segments are compressed, if that makes the image smaller (ADR 0011).
    pub compress: bool,
}

/// An image that is complete but for its content, which is read when it is written.
#[derive(Debug)]
pub struct Packed<'a> {
    /// All before the bundle, the hash being zeros.
    front: Vec<u8>,
    bundle: &'a Layout,
    /// All after the bundle.
    back: Vec<u8>,
}

impl Packed<'_> {
    /// Bytes of the image.
    pub fn len(&self) -> u64 {
        self.front.len() as u64 + self.bundle.len() + self.back.len() as u64
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.front.is_empty()
    }

    /// Writes the image to an empty file: memory does not depend on how large the content is.
    ///
    /// # Errors
    /// Also if a file of the content has changed meanwhile.
    pub fn write_to(&self, out: &mut (impl Write + Seek)) -> Result<(), BundleError> {
        let io = BundleError::Write;
        let hash = self.hash_through(out)?;
        out.seek(SeekFrom::Start(ImageHeader::HASH_OFFSET)).map_err(io)?;
        out.write_all(hash.as_bytes()).map_err(io)?;
        out.flush().map_err(io)
    }

    /// Whether `file` holds this image already, to its last byte. Stops at the first difference, writes nothing.
    pub fn is_in(&self, file: &File) -> bool {
        let mut old = Compared { file, at: 0, chunk: vec![] };
        let mut hash = [0; blake3::OUT_LEN];
        file.metadata().is_ok_and(|m| m.len() == self.len())
            && file.read_exact_at(&mut hash, ImageHeader::HASH_OFFSET).is_ok()
            && self.hash_through(&mut old).is_ok_and(|own| own == hash)
    }

    /// Writes all of it, with zeros for the hash, which it returns.
    fn hash_through(&self, out: &mut impl Write) -> Result<blake3::Hash, BundleError> {
        let mut hashed = Hashed { out, hasher: blake3::Hasher::new() };
        hashed.write_all(&self.front).map_err(BundleError::Write)?;
        self.bundle.write_to(&mut hashed)?;
        hashed.write_all(&self.back).map_err(BundleError::Write)?;
        Ok(hashed.hasher.finalize())
    }

    /// The image in memory.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BundleError> {
        let mut out = io::Cursor::new(Vec::new());
        self.write_to(&mut out)?;
        Ok(out.into_inner())
    }
}

/// Fails if it is given anything but an image file's own bytes, of which the hash is taken for zeros.
struct Compared<'a> {
    file: &'a File,
    at: u64,
    chunk: Vec<u8>,
}

impl Write for Compared<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        const HASH: Range<u64> = ImageHeader::HASH_OFFSET..ImageHeader::HASH_OFFSET + blake3::OUT_LEN as u64;
        self.chunk.resize(bytes.len(), 0);
        self.file.read_exact_at(&mut self.chunk, self.at)?;
        let end = self.at + bytes.len() as u64;
        for at in HASH.start.max(self.at)..HASH.end.min(end) {
            self.chunk[(at - self.at) as usize] = 0;
        }
        if self.chunk != bytes {
            return Err(io::Error::other("another content"));
        }
        self.at = end;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes an image. The same parts give the same bytes.
pub fn pack<'a>(parts: Parts<'a>) -> Result<Packed<'a>, PackError> {
    let program = Program::read(parts.program)?;
    let shim = Shim::read(parts.shim).map_err(PackError::Shim)?;
    let mut out = vec![0; (HEADER_OFFSET + PAGE) as usize];
    let manifest = append(&mut out, &parts.manifest.to_image()?, 8);
    // lld has already put the words into a read-only segment, unless there were other relocations as well.
    let mut relr = Extent::default();
    if program.relr.is_none() {
        let words: Vec<u8> = encode_relr(&program.relocations).iter().flat_map(|w| w.to_le_bytes()).collect();
        relr = append(&mut out, &words, 8);
    }

    let compressed = if parts.compress { program.compressed() } else { None };
    let mut packed = Extent::default();
    if let Some((block, _)) = &compressed {
        packed = append(&mut out, block, 8);
    } else {
        pad(&mut out, PAGE as usize);
        out.extend(program.content());
    }
    let content_end = out.len() as u64;
    // Whole pages of a segment are mapped, and of the bundle.
    if compressed.is_none() || !parts.bundle.is_empty() {
        pad(&mut out, PAGE as usize);
    }
    let mut bundle = Extent::default();
    if !parts.bundle.is_empty() {
        bundle = Extent { offset: out.len() as u64, len: parts.bundle.len() };
    }
    let bundle_end = out.len() as u64 + bundle.len;
    let payload_end = bundle_end.next_multiple_of(16);
    if payload_end > 3 << 30 {
        return Err(PackError::TooLarge(payload_end));
    }
    let mut back = vec![0; (payload_end - bundle_end) as usize];
    back.extend(&shim.bytes);
    let file_len = bundle_end + back.len() as u64;
    let mut shim_at = Extent::default();
    if !shim.bytes.is_empty() {
        shim_at = Extent { offset: payload_end, len: shim.bytes.len() as u64 };
    }

    let (unpacked, content_at, memory_end) = match compressed {
        None => (Extent::default(), content_end - program.content_len(), payload_end),
        Some((_, len)) => {
            let offset = file_len.next_multiple_of(PAGE);
            (Extent { offset, len }, offset, offset + len)
        }
    };
    let mut segments = [Segment::default(); SEGMENTS_MAX];
    for ((slot, s), at) in segments.iter_mut().zip(&program.segments).zip(program.places()) {
        let file = Extent { offset: content_at + at, len: s.bytes.len() as u64 };
        if let Some((at, len)) = program.relr
            && (s.mem_offset..s.mem_offset + s.bytes.len() as u64).contains(&at)
        {
            relr = Extent { offset: file.offset + (at - s.mem_offset), len };
        }
        *slot = Segment { file, mem_offset: s.mem_offset, mem_len: s.mem_len, prot: s.prot as u32, _pad: 0 };
    }

    let end = program.segments.last().map_or(0, |s| s.mem_offset + s.mem_len);
    let header = ImageHeader {
        magic: MAGIC,
        version: donjon_abi::VERSION,
        segment_count: program.segments.len() as u32,
        file_len,
        hash: [0; 32],
        span: end.next_multiple_of(PAGE),
        entry: program.entry,
        upcall: program.upcall,
        fault: program.fault,
        relr,
        manifest,
        bundle,
        shim: shim_at,
        segments,
        packed,
        unpacked,
    };
    let elf = crate::shim::elf_head(&shim, shim_at, HEADER_OFFSET..payload_end, memory_end);
    out[..elf.len()].copy_from_slice(&elf);
    let at = HEADER_OFFSET as usize;
    out[at..at + ImageHeader::LEN].copy_from_slice(&header.to_bytes());
    const { assert!(SHIM_PADDR < PAYLOAD_PADDR) };
    Ok(Packed { front: out, bundle: parts.bundle, back })
}

/// A linked program, checked and relocated as far as can be done without knowing the base.
struct Program {
    segments: Vec<Loaded>,
    /// Offsets of the words to which the base is added, ascending.
    relocations: Vec<u64>,
    /// Offset and length of the same in RELR encoding, if that is in a segment.
    relr: Option<(u64, u64)>,
    entry: u64,
    upcall: u64,
    fault: u64,
}

struct Loaded {
    mem_offset: u64,
    mem_len: u64,
    prot: SegmentProt,
    /// Without the zeros at the end.
    bytes: Vec<u8>,
}

impl Program {
    fn read(file: &[u8]) -> Result<Program, PackError> {
        let bad = |e: &dyn std::fmt::Display| PackError::Program(e.to_string());
        let elf = Elf::parse(file).map_err(|e| bad(&e))?;
        let header = elf.elf_header();
        if header.e_machine.get(LE) != elf::EM_X86_64 || header.e_type.get(LE) != elf::ET_DYN {
            return Err(bad(&"wrong machine or type"));
        }
        let headers = elf.elf_program_headers();
        let mut segments = segments(file, headers)?;
        // There are no section headers in an image.
        if let Some(head) = segments.first_mut().filter(|s| s.bytes.starts_with(b"\x7fELF")) {
            head.bytes[0x28..0x30].fill(0);
            head.bytes[0x3c..0x40].fill(0);
        }
        let mut program = Program {
            segments,
            relocations: Vec::new(),
            relr: None,
            entry: header.e_entry(LE),
            upcall: symbol(&elf, "donjon_upcall")?,
            fault: symbol(&elf, "donjon_fault")?,
        };
        program.relocate(file, headers)?;
        program.compact_unwind_tables(&elf)?;
        for s in &mut program.segments {
            let used = s.bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
            // Words that a host relocates are whole in the file.
            let end = s.mem_offset + s.bytes.len() as u64;
            let last = program.relocations.iter().rev().find(|at| (s.mem_offset..end).contains(at));
            let relocated = last.map_or(0, |at| (at - s.mem_offset) as usize + 8);
            s.bytes.truncate(used.max(relocated));
        }
        Ok(program)
    }

    /// Where each segment begins in [`Self::content`]: at a page.
    fn places(&self) -> impl Iterator<Item = u64> + '_ {
        self.segments.iter().scan(0, |end: &mut u64, s| {
            let at = end.next_multiple_of(PAGE);
            *end = at + s.bytes.len() as u64;
            Some(at)
        })
    }

    /// Bytes of [`Self::content`].
    fn content_len(&self) -> u64 {
        self.places().zip(&self.segments).last().map_or(0, |(at, s)| at + s.bytes.len() as u64)
    }

    /// The segments, one after the other.
    fn content(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.content_len() as usize);
        for s in &self.segments {
            append(&mut out, &s.bytes, PAGE as usize);
        }
        out
    }

    /// The same as one Zstandard frame, and its length before; nothing if that would not be smaller, or too much to unpack.
    fn compressed(&self) -> Option<(Vec<u8>, u64)> {
        let mut content = self.content();
        if content.len() as u64 > UNPACKED_MAX {
            return None;
        }
        for (at, s) in self.places().zip(&self.segments).filter(|(_, s)| s.prot == SegmentProt::ReadExecute) {
            bcj::encode(&mut content[at as usize..][..s.bytes.len()]);
        }
        let frame = zstd::bulk::compress(&content, COMPRESSION).ok()?;
        (frame.len() < content.len()).then_some((frame, content.len() as u64))
    }

    /// Puts the table of [`crate::unwind`] in the place of the linker's.
    fn compact_unwind_tables(&mut self, elf: &Elf<'_>) -> Result<(), PackError> {
        let mut headers = elf.elf_program_headers().iter().enumerate();
        let Some((index, header)) = headers.find(|(_, h)| h.p_type(LE) == elf::PT_GNU_EH_FRAME) else { return Ok(()) };
        let Some(frames) = elf.section_by_name(".eh_frame") else { return Ok(()) };
        let bad = |what: &str| PackError::Program(format!("its unwind tables {what}"));
        let (place, frames) = (header.p_vaddr(LE), frames.address()..frames.address() + frames.size());
        if !(place + header.p_memsz(LE)..=place + header.p_memsz(LE) + 8).contains(&frames.start) {
            return Err(bad("are not in one place"));
        }
        let memory = |range: Range<u64>| {
            self.segments.iter().find_map(|s| {
                let from = usize::try_from(range.start.checked_sub(s.mem_offset)?).ok()?;
                s.bytes.get(from..usize::try_from(range.end - s.mem_offset).ok()?)
            })
        };
        let table = unwind::compact(&memory, frames.clone(), place).ok_or_else(|| bad("are of an unknown form"))?;
        let inside = |s: &&mut Loaded| s.mem_offset <= place && frames.end <= s.mem_offset + s.bytes.len() as u64;
        let segment = self.segments.iter_mut().find(inside).ok_or_else(|| bad("are outside of the file"))?;
        let (from, to) = ((place - segment.mem_offset) as usize, (frames.end - segment.mem_offset) as usize);
        let area = &mut segment.bytes[from..to];
        let (head, rest) = area.split_at_mut_checked(table.len()).ok_or_else(|| bad("are smaller than ours"))?;
        head.copy_from_slice(&table);
        rest.fill(0);
        if segment.mem_len == to as u64 {
            segment.mem_len = (from + table.len()) as u64;
            segment.bytes.truncate(from + table.len());
        }
        // The guest looks the table up in the program headers in its first segment.
        let at = elf.elf_header().e_phoff(LE) as usize + index * size_of::<ProgramHeader64<Endianness>>();
        let first = &mut self.segments[0];
        for field in [32, 40] {
            let size = first.bytes.get_mut(at + field..at + field + 8).ok_or_else(|| bad("have no program header"))?;
            size.copy_from_slice(&(table.len() as u64).to_le_bytes());
        }
        Ok(())
    }

    /// Collects all relocations, with their addends in place.
    fn relocate(&mut self, file: &[u8], headers: &[ProgramHeader64<Endianness>]) -> Result<(), PackError> {
        let bad = |e: object::Error| PackError::Program(e.to_string());
        let mut tags = BTreeMap::new();
        for segment in headers {
            for d in segment.dynamic(LE, file).map_err(bad)?.unwrap_or_default() {
                if let Some(tag) = d.tag32(LE) {
                    tags.insert(tag, d.d_val.get(LE));
                }
            }
        }
        let table = |at: u32, size: u32| -> Result<Vec<u8>, PackError> {
            let (Some(&at), Some(&len)) = (tags.get(&at), tags.get(&size)) else { return Ok(Vec::new()) };
            let found = self.segments.iter().find_map(|s| {
                let start = usize::try_from(at.checked_sub(s.mem_offset)?).ok()?;
                s.bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
            });
            found.map(<[u8]>::to_vec).ok_or_else(|| PackError::Program("a dynamic table is outside of the file".into()))
        };
        let relr = table(DT_RELR, DT_RELRSZ)?;
        let mut rela = table(elf::DT_RELA, elf::DT_RELASZ)?;
        rela.extend(table(elf::DT_JMPREL, elf::DT_PLTRELSZ)?);

        let words = relr.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w));
        self.relocations.extend(relr_offsets(words));
        if rela.is_empty() {
            self.relr = tags.get(&DT_RELR).map(|&at| (at, relr.len() as u64)).filter(|(at, _)| at.is_multiple_of(8));
        }
        let entries = object::pod::slice_from_all_bytes::<elf::Rela64<Endianness>>(&rela)
            .map_err(|()| PackError::Program("a relocation table is cut off".into()))?;
        for r in entries {
            let (at, kind) = (r.r_offset(LE), r.r_type(LE, false));
            if kind != elf::R_X86_64_RELATIVE {
                return Err(PackError::Relocation { kind, at });
            }
            let word = self.writable(at).ok_or(PackError::RelocationPlace(at))?;
            word.copy_from_slice(&r.r_addend(LE).to_le_bytes());
            self.relocations.push(at);
        }
        self.relocations.sort_unstable();
        self.relocations.dedup();
        match self.relocations.clone().into_iter().find(|&at| self.writable(at).is_none()) {
            Some(at) => Err(PackError::RelocationPlace(at)),
            None => Ok(()),
        }
    }

    /// The word at that offset of the image, if it is aligned and in a segment that is relocated.
    fn writable(&mut self, at: u64) -> Option<&mut [u8]> {
        let s = self.segments.iter_mut().find(|s| at >= s.mem_offset && at - s.mem_offset < s.mem_len)?;
        let start = usize::try_from(at - s.mem_offset).ok()?;
        let relocated = matches!(s.prot, SegmentProt::ReadWrite | SegmentProt::ReadAfterRelocation);
        if relocated && at.is_multiple_of(8) { s.bytes.get_mut(start..start + 8) } else { None }
    }
}

fn segments(file: &[u8], headers: &[ProgramHeader64<Endianness>]) -> Result<Vec<Loaded>, PackError> {
    let of = |kind| headers.iter().filter(move |h| h.p_type(LE) == kind);
    let relro: Vec<_> = of(elf::PT_GNU_RELRO).map(|h| (h.p_vaddr(LE), h.p_memsz(LE))).collect();
    let mut out = Vec::new();
    for h in of(elf::PT_LOAD).filter(|h| h.p_memsz(LE) > 0) {
        let (at, len) = (h.p_vaddr(LE), h.p_memsz(LE));
        let rights = h.p_flags(LE) & (elf::PF_R | elf::PF_W | elf::PF_X);
        let prot = match (rights & elf::PF_W != 0, rights & elf::PF_X != 0) {
            (true, true) => return Err(PackError::WriteExecute(at)),
            (false, true) => SegmentProt::ReadExecute,
            (false, false) => SegmentProt::Read,
            (true, false) => {
                let end = (at + len).next_multiple_of(PAGE);
                let covered = |&(start, n): &(u64, u64)| at >= start && end <= (start + n).next_multiple_of(PAGE);
                if relro.iter().any(covered) { SegmentProt::ReadAfterRelocation } else { SegmentProt::ReadWrite }
            }
        };
        if !at.is_multiple_of(PAGE) {
            return Err(PackError::Program(format!("its segment at {at:#x} is not page-aligned")));
        }
        let bytes = h.data(LE, file).map_err(|()| PackError::Program("a segment is outside of the file".into()))?;
        out.push(Loaded { mem_offset: at, mem_len: len, prot, bytes: bytes.to_vec() });
    }
    if out.len() > SEGMENTS_MAX {
        return Err(PackError::Segments { expected: SEGMENTS_MAX, got: out.len() });
    }
    Ok(out)
}

fn symbol(elf: &Elf<'_>, name: &'static str) -> Result<u64, PackError> {
    elf.symbols().find(|s| !s.is_undefined() && s.name() == Ok(name)).map(|s| s.address()).ok_or(PackError::Entry(name))
}

/// Encodes ascending, aligned offsets as RELR words (generic ABI): an even word is an address, an odd one a bitmap of the 63
/// words that follow.
fn encode_relr(offsets: &[u64]) -> Vec<u64> {
    let (mut out, mut i) = (Vec::new(), 0);
    while let Some(&at) = offsets.get(i) {
        out.push(at);
        i += 1;
        let mut base = at + 8;
        loop {
            let mut bitmap = 0;
            while let Some(&next) = offsets.get(i).filter(|&&next| next - base < 63 * 8) {
                bitmap |= 1 << ((next - base) / 8);
                i += 1;
            }
            if bitmap == 0 {
                break;
            }
            out.push(bitmap << 1 | 1);
            base += 63 * 8;
        }
    }
    out
}

/// Appends `bytes` at a multiple of `align`.
fn append(out: &mut Vec<u8>, bytes: &[u8], align: usize) -> Extent {
    pad(out, align);
    let offset = out.len() as u64;
    out.extend_from_slice(bytes);
    Extent { offset, len: bytes.len() as u64 }
}

fn pad(out: &mut Vec<u8>, align: usize) {
    out.resize(out.len().next_multiple_of(align), 0);
}

#[cfg(test)]
mod tests;
