//! An image file, as everyone reads it who believes nothing: the command, the monitor, and the shim. The hash is made right, since anyone can compute it.

use crate::input::Input;
use crate::machine::{RAM, check, machine};
use donjon_abi::bundle::{self, RawEntry};
use donjon_abi::image::{Extent, HEADER_OFFSET, ImageHeader, MAGIC, PAYLOAD_PADDR, SEGMENTS_MAX, Segment, SegmentProt};
use donjon_abi::{PAGE, VERSION};
use donjon_image::{Image, OpenError};
use donjon_ring0::image::{load, payload_end, physical, seal, spare};
use donjon_ring0::phys::{Phys, PhysAddr};
use donjon_ring0::space::Device;
use rustix::fs::{MemfdFlags, memfd_create};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

const ELF: usize = HEADER_OFFSET as usize;
const HASH: usize = ImageHeader::HASH_OFFSET as usize;
const FILE_LEN: usize = ELF + 16;
/// Most that the shim unpacks here, bytes.
const UNPACKED: u64 = 1 << 20;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.u8();
    let mut file = vec![0; ELF];
    file[..4].copy_from_slice(b"\x7fELF");
    // The header's page is written in few bytes: most of it is zero.
    let header = input.take(ImageHeader::LEN);
    file.extend_from_slice(header);
    file.resize(ELF + PAGE as usize, 0);
    file.extend_from_slice(input.rest());
    file.resize(file.len().next_multiple_of(if flags & 4 != 0 { PAGE as usize } else { 1 }), 0);
    if flags & 1 == 0 {
        let len = (file.len() as u64).to_le_bytes();
        file[FILE_LEN..FILE_LEN + 8].copy_from_slice(&len);
    }
    if flags & 8 == 0 {
        // The corpus outlives a version.
        file[ELF + 8..ELF + 12].copy_from_slice(&VERSION.to_le_bytes());
    }
    if flags & 2 == 0 {
        let hash = hash(&file);
        file[HASH..HASH + 32].copy_from_slice(hash.as_bytes());
    }
    let opened = Image::from_bytes(file.clone(), Path::new("fuzz"));
    let monitors = monitor(&file);
    match (&opened, &monitors) {
        // The command looks at the bundle, the monitor at the relocations.
        (Ok(_), Ok(())) | (Err(_), Err(_)) | (Err(OpenError::Bundle(_)), Ok(())) => {}
        (Ok(_), Err(e)) if e.contains("relocation") => {}
        _ => panic!("command and monitor differ: {:?}, {monitors:?}", opened.as_ref().map(drop)),
    }
    let Ok(image) = opened else { return };
    shim(image.header(), &file);
}

fn hash(file: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&file[..HASH]).update(&[0; 32]).update(&file[HASH + 32..]);
    hasher.finalize()
}

fn monitor(file: &[u8]) -> Result<(), String> {
    let fd = memfd_create("image", MemfdFlags::CLOEXEC).expect("memory for a file");
    let mut memory = std::fs::File::from(fd);
    memory.write_all(file).expect("memory for a file");
    donjon_monitor::fuzzing::open(&PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd())))
}

fn shim(header: &ImageHeader, file: &[u8]) {
    // Tables below the payload, and room behind it.
    let room = file.len() as u64 + header.unpacked.len.min(UNPACKED) + 64 * PAGE;
    let mut space = machine(256 + room / PAGE, 1);
    let end = payload_end(header);
    let start = (PAYLOAD_PADDR - RAM) as usize;
    let payload = &file[ELF..];
    space.mem.ram[start..][..payload.len()].copy_from_slice(payload);
    space.mem.ram[start + payload.len()..].fill(0);
    // What the shim checks first: the payload is in memory.
    if end > RAM + space.mem.ram.len() as u64 {
        return;
    }
    // The free frames are those below the payload, and those of compressed bytes once they are unpacked.
    let mut frames = donjon_ring0::frames::Frames::new();
    frames.add(RAM + PAGE, PAYLOAD_PADDR, &[]);
    let spare = spare(header);
    if header.packed.len > 0 {
        let place = |e: Extent| {
            let start = (physical(e.offset).0 - RAM) as usize;
            start..start + e.len as usize
        };
        let (block, content) = (place(header.packed), place(header.unpacked));
        let (before, behind) = space.mem.ram.split_at_mut(content.start);
        // The command has unpacked it, too.
        assert!(header.unpack(&before[block], &mut behind[..content.len()], &mut donjon_abi::zstd::Tables::new()));
        frames.add(spare.start, spare.end, &[]);
    }
    space.frames = frames;
    if space.map_shim(PhysAddr(RAM), space.mem.ram.len() as u64, Device::No).is_err() {
        return;
    }
    let base = 0x7000_0000_0000;
    if load(&mut space, header, base).is_err() {
        return;
    }
    if seal(&mut space, header).is_err() {
        return;
    }
    let map = check(&space);
    for frame in map.user {
        let payload = frame >= PAYLOAD_PADDR && frame < end.next_multiple_of(PAGE);
        assert!(payload && !(spare.start..spare.end).contains(&frame), "ring 3 is given the frame {frame:x}");
    }
    let _ = space.mem.read_u8(PhysAddr(RAM));
}

/// A small bundle.
pub fn bundle() -> Vec<u8> {
    let names = b"aa/b";
    let mut out = Vec::from(bundle::MAGIC);
    out.extend(2u32.to_le_bytes());
    out.extend((names.len() as u32).to_le_bytes());
    let data_offset = (bundle::HEADER_LEN + 2 * bundle::ENTRY_LEN + names.len()) as u64;
    out.extend(RawEntry { name_len: 1, kind: 2, data_offset, ..RawEntry::default() }.to_bytes());
    out.extend(RawEntry { name_offset: 1, name_len: 3, kind: 1, mtime: 5, data_offset, data_len: 2 }.to_bytes());
    out.extend(names);
    out.extend(b"hi");
    out
}

pub fn seeds() -> Vec<Vec<u8>> {
    let page = PAGE;
    let at = |offset: u64, len: u64| Extent { offset, len };
    let manifest = crate::boot::seeds()[0][1..].to_vec();
    let segment = |offset, len, mem_offset, mem_len, prot: SegmentProt| Segment {
        file: at(offset, len),
        mem_offset,
        mem_len,
        prot: prot as u32,
        _pad: 0,
    };
    let bundle = bundle();
    let mut segments = [Segment::default(); SEGMENTS_MAX];
    segments[0] = segment(3 * page, 64, 0, 64, SegmentProt::ReadExecute);
    segments[1] = segment(4 * page, 64, page, 64, SegmentProt::ReadAfterRelocation);
    segments[2] = segment(5 * page, 64, 2 * page, 2 * page, SegmentProt::ReadWrite);
    let header = ImageHeader {
        magic: MAGIC,
        version: VERSION,
        segment_count: 3,
        file_len: 7 * page,
        hash: [0; 32],
        span: 4 * page,
        entry: 0,
        upcall: 16,
        fault: 32,
        relr: at(2 * page, 24),
        manifest: at(2 * page + 64, manifest.len() as u64),
        bundle: at(6 * page, bundle.len() as u64),
        shim: Extent::default(),
        segments,
        packed: Extent::default(),
        unpacked: Extent::default(),
    };
    let mut body = vec![0; 5 * page as usize];
    for (i, word) in [page + 8, 0b101, 2 * page + 8].into_iter().enumerate() {
        body[i * 8..i * 8 + 8].copy_from_slice(&word.to_le_bytes());
    }
    body[64..64 + manifest.len()].copy_from_slice(&manifest);
    body[4 * page as usize..][..bundle.len()].copy_from_slice(&bundle);
    // The same, compressed: 24 bytes of relocations in front of the text, and zeros.
    let mut block = vec![0xff, 24 - 15];
    block.extend(&body[..24]);
    block.extend([1, 0]);
    block.extend([0xff; 32]);
    block.extend([(2 * page + 64 - 24 - 19 - 32 * 255) as u8, 0]);
    let mut small = header;
    small.file_len = 4 * page;
    small.relr = at(4 * page, 24);
    small.bundle = at(3 * page, bundle.len() as u64);
    small.packed = at(2 * page + 1024, block.len() as u64);
    small.unpacked = at(4 * page, 2 * page + 64);
    small.segments[..3].iter_mut().zip(4..).for_each(|(s, i)| s.file.offset = i * page);
    let mut rest = vec![0; 2 * page as usize];
    rest[64..64 + manifest.len()].copy_from_slice(&manifest);
    rest[1024..1024 + block.len()].copy_from_slice(&block);
    rest[page as usize..][..bundle.len()].copy_from_slice(&bundle);
    vec![[&[0][..], &header.to_bytes(), &body].concat(), [&[0][..], &small.to_bytes(), &rest].concat()]
}
