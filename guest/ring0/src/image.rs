//! The image in memory: maps its segments where they lie, relocates them, and places everything at random addresses.

use crate::frames::Span;
use crate::phys::{Phys, PhysAddr};
use crate::space::{Refused, Rights, Space};
use donjon_abi::image::{Extent, HEADER_OFFSET, ImageHeader, PAYLOAD_PADDR, Segment, SegmentProt, relr_offsets};
use donjon_abi::{PAGE, Prot};

/// Why the image cannot be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoadError {
    /// A relocation names a word that is not in a writable or relocated segment's part of the file.
    Relocation(u64),
    /// A page of the file is in a writable segment and in something else that is mapped.
    Shared,
    /// What is compressed cannot be unpacked.
    Packed,
    /// Memory ran out.
    NoMemory,
}

impl From<Refused> for LoadError {
    fn from(_: Refused) -> Self {
        LoadError::NoMemory
    }
}

/// Where a byte of the file lies in memory. What has no bytes may have any offset: of one before the payload, the payload's start.
pub const fn physical(offset: u64) -> PhysAddr {
    PhysAddr(offset.saturating_sub(HEADER_OFFSET).saturating_add(PAYLOAD_PADDR))
}

/// One past the last byte of the payload: all that the header refers to, the shim excepted, and what is unpacked behind it.
pub fn payload_end(header: &ImageHeader) -> u64 {
    end(header, u64::MAX)
}

/// One past the last byte of what the hypervisor loads of it.
pub fn loaded_end(header: &ImageHeader) -> u64 {
    end(header, header.file_len)
}

/// Of what begins before that offset.
#[inline(never)]
fn end(header: &ImageHeader, limit: u64) -> u64 {
    let there = |e: &Extent| e.len > 0 && e.offset < limit;
    let all = extents(header).chain([header.packed, header.unpacked]).filter(there);
    physical(all.map(|e| e.offset + e.len).fold(HEADER_OFFSET + PAGE, u64::max)).0
}

/// What the header refers to, but for the shim and the compressed part.
fn extents(header: &ImageHeader) -> impl Iterator<Item = Extent> + '_ {
    header.segments().map(|(s, _)| s.file).chain([header.relr, header.manifest, header.bundle])
}

/// The pages that have nothing but compressed bytes: free once these are unpacked.
pub fn spare(header: &ImageHeader) -> Span {
    let e = header.packed;
    if e.len == 0 {
        return Span::default();
    }
    let (start, end) = (e.offset.next_multiple_of(PAGE), (e.offset + e.len) & !(PAGE - 1));
    let free = |o: Extent| o.len == 0 || o.offset >= end || o.offset + o.len <= start;
    if start >= end || !extents(header).all(free) {
        return Span::default();
    }
    Span { start: physical(start).0, end: physical(end).0 }
}

/// Maps the image at `base` and relocates it. What a segment has beyond its file pages is zero at first touch.
pub fn load<M: Phys>(space: &mut Space<M>, header: &ImageHeader, base: u64) -> Result<(), LoadError> {
    if shares(header) {
        return Err(LoadError::Shared);
    }
    relocate(&mut space.mem, header, base)?;
    for (segment, prot) in header.segments() {
        let (rights, lazy) = match prot {
            SegmentProt::Read | SegmentProt::ReadAfterRelocation => (Rights::Read, Prot::Read),
            SegmentProt::ReadWrite => (Rights::ReadWrite, Prot::ReadWrite),
            SegmentProt::ReadExecute => (Rights::ReadExecute, Prot::Read),
        };
        let pages = file_pages(&segment);
        map_range(space, base + segment.mem_offset, physical(segment.file.offset), pages, rights)?;
        let rest = segment.mem_len.next_multiple_of(PAGE) - pages;
        if rest > 0 {
            space.protect(base + segment.mem_offset + pages, rest, lazy)?;
        }
    }
    Ok(())
}

/// Bytes that the image's segments have beyond their pages of the file: what they take from the free memory at first touch.
pub fn zeroed_len(header: &ImageHeader) -> u64 {
    let zeroed = |(s, _): (Segment, SegmentProt)| s.mem_len.next_multiple_of(PAGE).saturating_sub(file_pages(&s));
    header.segments().map(zeroed).sum()
}

/// Makes all of the payload that the guest may not write read-only for the shim, too, but for what is [`spare`].
pub fn seal<M: Phys>(space: &mut Space<M>, header: &ImageHeader) -> Result<(), LoadError> {
    let end = payload_end(header).next_multiple_of(PAGE);
    let spare = spare(header);
    let writable = |at: u64| {
        (spare.start..spare.end).contains(&at)
            || header.segments().any(|(s, p)| {
                let start = physical(s.file.offset).0;
                p == SegmentProt::ReadWrite && at >= start && at < start + file_pages(&s)
            })
    };
    for page in (PAYLOAD_PADDR..end).step_by(PAGE as usize).filter(|at| !writable(*at)) {
        space.seal_shim(PhysAddr(page), PAGE)?;
    }
    Ok(())
}

/// Maps `len` bytes (whole pages) of physical memory.
pub fn map_range<M: Phys>(
    space: &mut Space<M>,
    va: u64,
    at: PhysAddr,
    len: u64,
    rights: Rights,
) -> Result<(), Refused> {
    for offset in (0..len).step_by(PAGE as usize) {
        space.map(va + offset, at.add(offset), rights)?;
    }
    Ok(())
}

/// Whether a page that is mapped in place as writable would be mapped otherwise, too.
fn shares(header: &ImageHeader) -> bool {
    let pages = |e: Extent| {
        let end = if e.len == 0 { e.offset } else { (e.offset + e.len).next_multiple_of(PAGE) };
        Span { start: e.offset & !(PAGE - 1), end }
    };
    header.segments().enumerate().any(|(i, (segment, prot))| {
        let own = pages(segment.file);
        let others = header.segments().enumerate().filter(|(j, _)| *j != i).map(|(_, (s, _))| s.file);
        prot == SegmentProt::ReadWrite
            && others
                .chain([header.manifest, header.bundle])
                .map(pages)
                .any(|other| own.start < other.end && other.start < own.end)
    })
}

fn file_pages(segment: &Segment) -> u64 {
    if segment.file.len == 0 { 0 } else { segment.file.len.next_multiple_of(PAGE) }
}

fn relocate(mem: &mut impl Phys, header: &ImageHeader, base: u64) -> Result<(), LoadError> {
    let count = header.relr.len / 8;
    let at = physical(header.relr.offset);
    // The words are read one at a time, before the words that they name change: a table that overlaps a writable
    // segment can only spoil the image itself.
    let mut found = segment_of(header, 0);
    let words = (0..count).map(|i| at.add(i * 8));
    let mut decoder = Relr { next: 0 };
    for word_at in words {
        let word = mem.read_u64(word_at);
        for offset in decoder.word(word) {
            if !found.is_some_and(|s| holds(&s, offset)) {
                found = segment_of(header, offset);
            }
            let segment = found.filter(|s| holds(s, offset)).ok_or(LoadError::Relocation(offset))?;
            let target = physical(segment.file.offset).add(offset - segment.mem_offset);
            let value = mem.read_u64(target).wrapping_add(base);
            mem.write_u64(target, value);
        }
    }
    Ok(())
}

/// Feeds `relr_offsets` word by word, so that memory is borrowed only while a word is read.
struct Relr {
    next: u64,
}

impl Relr {
    fn word(&mut self, word: u64) -> impl Iterator<Item = u64> + use<> {
        let start = self.next;
        self.next = if word & 1 == 0 { word.wrapping_add(8) } else { start.wrapping_add(63 * 8) };
        // A bitmap counts from the end of what came before: replay that as an address word whose own offset is skipped.
        let (words, skip) = if word & 1 == 0 { ([word, 1], 0) } else { ([start.wrapping_sub(8), word], 1) };
        relr_offsets(words.into_iter()).skip(skip)
    }
}

fn segment_of(header: &ImageHeader, offset: u64) -> Option<Segment> {
    header
        .segments()
        .filter(|(_, p)| matches!(p, SegmentProt::ReadWrite | SegmentProt::ReadAfterRelocation))
        .map(|(s, _)| s)
        .find(|s| holds(s, offset))
}

fn holds(segment: &Segment, offset: u64) -> bool {
    offset >= segment.mem_offset
        && offset.checked_add(8).is_some_and(|end| end <= segment.mem_offset + segment.file.len)
}

/// The half of the address space that the guest is placed in: 2^34 pages.
pub const USER: Span = Span { start: 1 << 46, end: (1 << 47) - 2 * PAGE };

/// Picks random places that do not overlap and have a free page around them.
pub struct Places {
    taken: [Span; 12],
    count: usize,
}

impl Places {
    /// Nothing is taken.
    pub const fn new() -> Places {
        Places { taken: [Span { start: 0, end: 0 }; 12], count: 0 }
    }

    /// A page-aligned address for `len` bytes; `random` gives fresh random numbers. `None` if there is no more
    /// randomness, or after 12 places.
    pub fn pick(&mut self, len: u64, mut random: impl FnMut() -> Option<u64>) -> Option<u64> {
        let len = len.next_multiple_of(PAGE);
        let pages = (USER.end - USER.start).checked_sub(len)? / PAGE;
        for _ in 0..64 {
            let start = USER.start + random()?.checked_rem(pages)? * PAGE;
            let wide = Span { start: start - PAGE, end: start + len + PAGE };
            if self.taken.iter().take(self.count).all(|t| wide.end <= t.start || wide.start >= t.end) {
                *self.taken.get_mut(self.count)? = wide;
                self.count += 1;
                return Some(start);
            }
        }
        None
    }
}

impl Default for Places {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::Frames;
    use crate::phys::Fake;
    use crate::space::Access;
    use donjon_abi::image::{MAGIC, SEGMENTS_MAX};

    const BASE: u64 = USER.start + 0x1234_5000;

    fn header() -> ImageHeader {
        let segment = |offset, len, mem_offset, mem_len, prot: SegmentProt| Segment {
            file: Extent { offset, len },
            mem_offset,
            mem_len,
            prot: prot as u32,
            _pad: 0,
        };
        let mut segments = [Segment::default(); SEGMENTS_MAX];
        segments[0] = segment(0x3000, 0x100, 0, 0x100, SegmentProt::ReadExecute);
        segments[1] = segment(0x4000, 0x100, 0x1000, 0x100, SegmentProt::ReadAfterRelocation);
        segments[2] = segment(0x5000, 0x800, 0x2000, 0x3000, SegmentProt::ReadWrite);
        ImageHeader {
            magic: MAGIC,
            version: donjon_abi::VERSION,
            segment_count: 3,
            file_len: 0x6000,
            hash: [0; 32],
            span: 0x5000,
            entry: 0,
            upcall: 0,
            fault: 0,
            relr: Extent { offset: 0x2000, len: 24 },
            manifest: Extent::default(),
            bundle: Extent::default(),
            shim: Extent::default(),
            segments,
            packed: Extent::default(),
            unpacked: Extent::default(),
        }
    }

    /// The same, compressed.
    fn packed() -> ImageHeader {
        let mut h = header();
        h.packed = Extent { offset: 0x2f00, len: 0x2000 };
        h.unpacked = Extent { offset: 0x6000, len: 0x2800 };
        h.relr.offset = 0x2008;
        h.segments.iter_mut().for_each(|s| s.file.offset += 0x3000);
        h
    }

    #[test]
    fn only_whole_pages_of_compressed_bytes_are_spare() {
        let pages = |h| spare(&h).end - spare(&h).start;
        assert_eq!(pages(header()), 0);
        let at = physical(0x3000).0;
        assert_eq!(spare(&packed()), Span { start: at, end: at + 0x1000 });
        for f in [
            (|h| h.bundle = Extent { offset: 0x3fff, len: 1 }) as fn(&mut ImageHeader),
            |h| h.manifest = Extent { offset: 0x2fff, len: 2 },
            |h| h.relr = Extent { offset: 0x3800, len: 8 },
            |h| h.segments[2].file = Extent { offset: 0x3000, len: 0x10 },
            |h| h.packed.len = 0x1100 - 1,
            |h| h.packed = Extent { offset: u64::MAX, len: 0 },
        ] {
            let mut h = packed();
            f(&mut h);
            assert_eq!(pages(h), 0);
        }
        assert_eq!(payload_end(&packed()), PAYLOAD_PADDR + 0x7800);
        assert_eq!(loaded_end(&packed()), PAYLOAD_PADDR + 0x3f00);
        assert_eq!(loaded_end(&header()), payload_end(&header()));
    }

    fn machine(words: [u64; 3]) -> Space<Fake> {
        let mut mem = Fake::new(0x10_0000, 0x20_0000);
        mem.zero(PhysAddr(0x10_0000), 4096);
        mem.zero(PhysAddr(PAYLOAD_PADDR), 0x6000);
        for (i, w) in (0..).zip(words) {
            mem.write_u64(physical(0x2000 + i * 8), w);
        }
        let mut frames = Frames::new();
        frames.add(0x10_1000, 0x12_0000, &[]);
        Space::new(mem, frames, PhysAddr(0x10_0000))
    }

    #[test]
    fn maps_in_place_and_relocates() {
        let mut s = machine([0x1010, 0b101 << 1 | 1, 0x27f8]);
        load(&mut s, &header(), BASE).unwrap();
        for offset in [0x1010, 0x1018, 0x1028, 0x27f8u64] {
            let at = s.touch(BASE + offset, Access::Read).unwrap();
            assert_eq!(s.mem.read_u64(at), BASE, "{offset:x}");
        }
        assert_eq!(s.touch(BASE + 0x1010, Access::Read), Ok(physical(0x4010)));
        let untouched = s.touch(BASE + 0x1020, Access::Read).unwrap();
        assert_eq!(s.mem.read_u64(untouched), 0);
        assert_eq!(s.touch(BASE, Access::Write), Err(Refused::Rights));
        assert_eq!(s.touch(BASE + 0x1000, Access::Write), Err(Refused::Rights));
        assert_eq!(s.touch(BASE + 0x2000, Access::Write), Ok(physical(0x5000)));
        let bss = s.touch(BASE + 0x4ff8, Access::Write).unwrap();
        assert_eq!(s.mem.read_u64(bss), 0);
        assert_eq!(s.touch(BASE + 0x5000, Access::Read), Err(Refused::Rights));
    }

    #[test]
    fn a_segment_without_bytes_in_the_file_may_have_any_offset() {
        for offset in [0, 0xfff, 0x5f_0000, !0xfff, u64::MAX] {
            let mut header = header();
            header.segments[2].file = Extent { offset, len: 0 };
            let mut s = machine([0x1010, 0x1018, 0x1020]);
            load(&mut s, &header, BASE).unwrap();
            let fresh = s.touch(BASE + 0x2000, Access::Write).unwrap();
            assert_eq!(s.mem.read_u64(fresh), 0, "{offset:x}");
            assert!(fresh.0 < PAYLOAD_PADDR, "{offset:x}");
        }
    }

    #[test]
    fn what_the_guest_may_not_write_the_shim_may_not_either() {
        let mut s = machine([0x1010, 0x1018, 0x1020]);
        s.map_shim(PhysAddr(0), 64 << 20, crate::space::Device::No).unwrap();
        let free = s.frames.free();
        seal(&mut s, &header()).unwrap();
        assert_eq!(s.frames.free(), free - 1);
        let pages = [0x1000, 0x2000, 0x3000, 0x4000, 0x5000].map(|o| s.shim_may_write(physical(o)));
        assert_eq!(pages, [false, false, false, false, true]);
        assert!(s.shim_may_write(PhysAddr(PAYLOAD_PADDR + 0x5000)) && s.shim_may_write(PhysAddr(0x40_0000)));
    }

    #[test]
    fn the_decoder_agrees_with_abi_on_any_split() {
        let words = [0x1010u64, 0b1011 << 1 | 1, 1 | 1 << 63, 7, 0x9000, 3];
        let whole: std::vec::Vec<u64> = relr_offsets(words.into_iter()).collect();
        let mut relr = Relr { next: 0 };
        let split: std::vec::Vec<u64> = words.into_iter().flat_map(|w| relr.word(w)).collect();
        assert_eq!(whole, split);
    }

    #[test]
    fn relocations_elsewhere_are_refused() {
        // Text, bss, straddling the end of the file part, beyond everything, wrapping around.
        for bad in [0x10, 0x3000, 0x27fa, 0x8000, u64::MAX - 1] {
            let mut s = machine([0x1010, bad, 0x1020]);
            assert_eq!(load(&mut s, &header(), BASE), Err(LoadError::Relocation(bad)), "{bad:x}");
        }
    }

    #[test]
    fn a_page_is_not_mapped_twice_if_once_writable() {
        for f in [
            (|h| h.segments[0].file.offset = 0x5000) as fn(&mut ImageHeader),
            |h| h.segments[2].file = Extent { offset: 0x3000, len: 0x1001 },
            |h| h.bundle = Extent { offset: 0x5000, len: 1 },
            |h| h.manifest = Extent { offset: 0x5800, len: 8 },
        ] {
            let mut h = header();
            f(&mut h);
            assert_eq!(load(&mut machine([0x1010, 0x1018, 0x1020]), &h, BASE), Err(LoadError::Shared));
        }
        let mut h = header();
        h.relr = Extent { offset: 0x3000, len: 0 };
        h.segments[1].file.offset = 0x3000;
        assert!(!shares(&h));
    }

    #[test]
    fn payload_ends_with_the_last_extent() {
        let mut h = header();
        assert_eq!(payload_end(&h), PAYLOAD_PADDR + 0x4800);
        h.bundle = Extent { offset: 0x6000, len: 5 };
        assert_eq!(payload_end(&h), PAYLOAD_PADDR + 0x5005);
    }

    #[test]
    fn places_are_apart_and_in_the_upper_user_half() {
        let mut p = Places::new();
        let first = p.pick(3 * PAGE, || Some(5)).unwrap();
        let mut values = [5u64, 7, 8, 9, 20].into_iter();
        let second = p.pick(PAGE, || values.next()).unwrap();
        assert_eq!((first - USER.start, second - USER.start), (5 * PAGE, 20 * PAGE));
        assert!(p.pick(PAGE, || None).is_none());
        assert!(p.pick(1 << 47, || Some(1)).is_none());
        assert!(p.pick(1 << 40, || Some(u64::MAX)).unwrap() + (1 << 40) <= USER.end);
    }
}
