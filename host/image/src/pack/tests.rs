//! The packer on programs made by hand, each wrong in one way.

use super::*;
use crate::bundle::Layout;
use crate::bundle::{Source, bundle_sources};
use crate::head::{Head, files as files_of};
use crate::image::{Image, OpenError};
use std::fs::File;
use std::path::Path;

/// A segment: flags, address, content, bytes of zeros after it.
type Load<'a> = (u32, u64, &'a [u8], u64);

/// Makes a static position-independent ELF file.
struct Maker<'a> {
    kind: u16,
    loads: Vec<Load<'a>>,
    relro: (u64, u64),
    dynamic: Vec<(u64, u64)>,
    symbols: Vec<(&'a str, u64)>,
}

impl Maker<'_> {
    fn make(&self) -> Vec<u8> {
        let mut segments: Vec<(u32, u32, u64, Vec<u8>, u64)> = self
            .loads
            .iter()
            .map(|&(flags, at, bytes, zeros)| (elf::PT_LOAD, flags, at, bytes.to_vec(), bytes.len() as u64 + zeros))
            .collect();
        segments.push((elf::PT_GNU_RELRO, elf::PF_R, self.relro.0, Vec::new(), self.relro.1));
        let dynamic: Vec<u8> = self
            .dynamic
            .iter()
            .chain(&[(0, 0)])
            .flat_map(|(t, v)| [t.to_le_bytes(), v.to_le_bytes()].concat())
            .collect();
        let len = dynamic.len() as u64;
        segments.push((elf::PT_DYNAMIC, elf::PF_R, 0, dynamic, len));

        let mut out = vec![0; 64];
        out[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        let put = |out: &mut Vec<u8>, at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(&mut out, 16, &self.kind.to_le_bytes());
        put(&mut out, 18, &elf::EM_X86_64.to_le_bytes());
        put(&mut out, 20, &1u32.to_le_bytes());
        put(&mut out, 24, &0x1000u64.to_le_bytes());
        put(&mut out, 32, &64u64.to_le_bytes());
        put(&mut out, 52, &[64, 0, 56, 0, segments.len() as u8, 0, 64, 0, 3, 0, 2, 0]);
        let mut data_at = (64 + 56 * segments.len()) as u64;
        let mut data: Vec<u8> = Vec::new();
        for (kind, flags, at, bytes, mem) in &segments {
            out.extend([kind.to_le_bytes(), flags.to_le_bytes()].concat());
            for word in [data_at, *at, *at, bytes.len() as u64, *mem, 8] {
                out.extend(word.to_le_bytes());
            }
            data.extend(bytes);
            data_at += bytes.len() as u64;
        }
        out.extend(data);
        let (mut symtab, mut names) = (vec![0; 24], vec![0]);
        for (name, value) in &self.symbols {
            symtab.extend((names.len() as u32).to_le_bytes());
            symtab.extend([0x12, 0, 0xf1, 0xff]); // global function, absolute
            symtab.extend([value.to_le_bytes(), [0; 8]].concat());
            names.extend(name.bytes().chain([0]));
        }
        let (symtab_at, names_at) = (out.len(), out.len() + symtab.len());
        out.extend(&symtab);
        out.extend(&names);
        let sections = out.len() as u64;
        put(&mut out, 40, &sections.to_le_bytes());
        out.extend([0; 64]);
        for (kind, at, len, link, entry) in
            [(2u32, symtab_at, symtab.len(), 2u32, 24u64), (3, names_at, names.len(), 0, 0)]
        {
            out.extend([[0; 4], kind.to_le_bytes()].concat());
            out.extend([0; 16]);
            out.extend([(at as u64).to_le_bytes(), (len as u64).to_le_bytes()].concat());
            out.extend([link.to_le_bytes(), 1u32.to_le_bytes()].concat());
            out.extend([1u64.to_le_bytes(), entry.to_le_bytes()].concat());
        }
        out
    }
}

const R: u32 = elf::PF_R;
const RX: u32 = elf::PF_R | elf::PF_X;
const RW: u32 = elf::PF_R | elf::PF_W;

/// A program with one relocation table entry and two RELR words.
fn program<'a>(rela: &'a [u8], relr: &'a [u8]) -> Maker<'a> {
    let mut dynamic = vec![(u64::from(DT_RELR), 0), (u64::from(DT_RELRSZ), relr.len() as u64)];
    if !rela.is_empty() {
        dynamic.extend([(u64::from(elf::DT_RELA), 0x3000), (u64::from(elf::DT_RELASZ), rela.len() as u64)]);
    }
    Maker {
        kind: elf::ET_DYN,
        loads: vec![
            (R, 0, relr, 0),
            (RX, 0x1000, &[0xc3; 48], 0),
            (RW, 0x2000, &[1; 64], 0xfc0),
            (RW, 0x3000, if rela.is_empty() { &[2; 24] } else { rela }, 5000),
        ],
        relro: (0x2000, 0x1000),
        dynamic,
        symbols: vec![("donjon_upcall", 0x1010), ("donjon_fault", 0x1020)],
    }
}

fn relr(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn rela(at: u64, kind: u64, addend: u64) -> Vec<u8> {
    relr(&[at, kind, addend])
}

fn manifest() -> Manifest {
    Manifest { name: "t".into(), memory: 1 << 20, tool: "t".into(), ..Manifest::default() }
}

fn packed(program: &[u8]) -> Result<Image, PackError> {
    packed_as(program, &Layout::default(), false)
}

fn packed_as(program: &[u8], bundle: &Layout, compress: bool) -> Result<Image, PackError> {
    let manifest = manifest();
    let image = pack(Parts { program, manifest: &manifest, bundle, shim: &[], compress })?;
    let bytes = image.to_bytes().unwrap();
    assert_eq!(bytes.len() as u64, image.len());
    Ok(Image::from_bytes(bytes, Path::new("t")).unwrap())
}

/// What is read of a file without holding it is what is read of it in memory.
#[test]
fn an_image_is_read_from_its_file() {
    let files = [("/a/big", vec![7; 9000]), ("/a/empty", vec![]), ("/b", b"b".to_vec())];
    let bundle = bundle_sources(files.map(|(name, bytes)| (name.into(), Source::Bytes(bytes)))).unwrap();
    let manifest = manifest();
    let program = program(&[], &relr(&[0x2000, 0b1011])).make();
    let image =
        pack(Parts { program: &program, manifest: &manifest, bundle: &bundle, shim: &[], compress: false }).unwrap();
    let path = std::env::temp_dir().join(format!("donjon-head-{}", std::process::id()));
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    image.write_to(&mut file).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes, image.to_bytes().unwrap());
    let (head, whole) = (Head::read(&file, &path).unwrap(), Image::from_bytes(bytes, &path).unwrap());
    assert_eq!((&head.header, &head.manifest), (whole.header(), whole.manifest()));
    assert!(image.is_in(&file));
    let list = files_of(&file, &head.header, &path).unwrap();
    assert_eq!(list, [("a/big", 9000), ("a/empty", 0), ("b", 1)].map(|(name, len)| (name.to_owned(), len)));
    assert_eq!(whole.bundle().lookup("a/big").unwrap().data, [7; 9000]);
    // Counts, names and lengths that cannot be.
    for (at, byte) in [(0, b'd'), (11, 0xff), (15, 0xff), (16 + 3, 0xff), (16 + 7, 0xff), (16 + 31, 1), (16 + 39, 0xff)]
    {
        let mut bytes = image.to_bytes().unwrap();
        bytes[head.header.bundle.offset as usize + at] = byte;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(files_of(&file, &head.header, &path), Err(OpenError::Bundle(_))), "{at}");
    }
    std::fs::remove_file(path).unwrap();
}

/// An image file with a changed byte, wherever it is, is not the same.
#[test]
fn any_difference_is_found() {
    let bundle = bundle_sources([("/a".to_owned(), Source::Bytes(vec![7; 9000]))]).unwrap();
    let manifest = manifest();
    let program = program(&[], &relr(&[0x2000, 0b1011])).make();
    let image =
        pack(Parts { program: &program, manifest: &manifest, bundle: &bundle, shim: &[], compress: false }).unwrap();
    let path = std::env::temp_dir().join(format!("donjon-same-{}", std::process::id()));
    let bytes = image.to_bytes().unwrap();
    let is_in = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        image.is_in(&File::open(&path).unwrap())
    };
    assert!(is_in(&bytes));
    let hash = ImageHeader::HASH_OFFSET as usize;
    for at in (0..bytes.len()).step_by(61).chain(hash - 1..hash + 33).chain([bytes.len() - 1]) {
        let mut other = bytes.clone();
        other[at] ^= 1;
        assert!(!is_in(&other), "byte {at}");
    }
    assert!(!is_in(&bytes[..bytes.len() - 1]) && !is_in(&[&bytes[..], &[0]].concat()) && !is_in(&[]));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_program_becomes_an_image() {
    let words = relr(&[0x2000, 0b1011]);
    let image = packed(&program(&[], &words).make()).unwrap();
    let h = image.header();
    assert_eq!((h.entry, h.upcall, h.fault, h.span), (0x1000, 0x1010, 0x1020, 0x5000));
    let rights: Vec<_> = h.segments().map(|(s, p)| (s.mem_offset, s.mem_len, p)).collect();
    assert_eq!(
        rights,
        [
            (0, 16, SegmentProt::Read),
            (0x1000, 48, SegmentProt::ReadExecute),
            (0x2000, 0x1000, SegmentProt::ReadAfterRelocation),
            (0x3000, 5024, SegmentProt::ReadWrite),
        ]
    );
    // lld's own words are used where they are.
    assert_eq!(image.extent(h.relr), words);
    assert_eq!(h.relr.offset, h.segments[0].file.offset);
    for (s, _) in h.segments() {
        assert!(s.file.offset.is_multiple_of(PAGE));
    }
    assert_eq!(image.bytes(), packed(&program(&[], &words).make()).unwrap().bytes());
}

/// Whatever is compressed says the same when it is unpacked, to the command and to the monitor, and the file is smaller.
#[test]
fn a_compressed_image_is_the_same_image() {
    let code: Vec<u8> =
        (0..9000u32).flat_map(|i| [&[0xe8][..], &(i * 5).wrapping_neg().to_le_bytes()].concat()).collect();
    let (table, words) = (rela(0x20018, 8, 0x1234), relr(&[0x20000, 0b1011]));
    for (table, words) in [(&[][..], &words[..]), (&table, &relr(&[0x20000, 0b101]))] {
        let mut maker = program(table, words);
        maker.loads[1] = (RX, 0x1000, &code, 0);
        for (i, at) in [(2, 0x20000), (3, 0x21000)] {
            maker.loads[i].1 = at;
        }
        maker.relro.0 = 0x20000;
        maker.dynamic.iter_mut().filter(|d| d.1 >= 0x3000).for_each(|d| d.1 += 0x1e000);
        let program = maker.make();
        let files = || bundle_sources([("/a".to_owned(), Source::Bytes(vec![7; 9000]))]).unwrap();
        for bundle in [Layout::default(), files()] {
            let plain = packed_as(&program, &bundle, false).unwrap();
            let image = packed_as(&program, &bundle, true).unwrap();
            assert!(image.bytes().len() + 30_000 < plain.bytes().len());
            assert_eq!(plain.header().packed, Extent::default());
            let parts = |image: &Image| {
                let h = image.header();
                let all = h.segments().map(|(s, p)| (s.mem_offset, s.mem_len, p, image.extent(s.file).to_vec()));
                (all.collect::<Vec<_>>(), image.extent(h.relr).to_vec(), image.extent(h.bundle).to_vec())
            };
            assert!(parts(&image) == parts(&plain));
            let path = std::env::temp_dir().join(format!("donjon-compressed-{}", std::process::id()));
            std::fs::write(&path, image.bytes()).unwrap();
            let head = Head::read(&File::open(&path).unwrap(), &path).unwrap();
            assert_eq!(
                (&head.relr[..], head.content.len() as u64),
                (image.extent(head.header.relr), head.header.unpacked.len)
            );
            // Of another length, or no frame: with the right hash.
            for f in [
                (|h, _| h.unpacked.len += 1) as fn(&mut ImageHeader, &mut Vec<u8>),
                |h, _| h.packed.len -= 1,
                |h, file| file[h.packed.offset as usize] = 0xff,
            ] {
                let (mut h, mut file) = (*image.header(), image.bytes().to_vec());
                f(&mut h, &mut file);
                file[HEADER_OFFSET as usize..][..ImageHeader::LEN].copy_from_slice(&h.to_bytes());
                let hash = crate::image::hash(&file);
                file[ImageHeader::HASH_OFFSET as usize..][..32].copy_from_slice(hash.as_bytes());
                std::fs::write(&path, &file).unwrap();
                let read = Head::read(&File::open(&path).unwrap(), &path).map(drop);
                for e in [read, Image::from_bytes(file, &path).map(drop)] {
                    assert!(matches!(e, Err(OpenError::Field(_, "compressed part"))), "{e:?}");
                }
            }
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn relative_relocations_become_relr() {
    let (table, words) = (rela(0x2018, 8, 0x1234), relr(&[0x2000, 0b101]));
    let image = packed(&program(&table, &words).make()).unwrap();
    let words = image.extent(image.header().relr).as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w));
    assert_eq!(relr_offsets(words).collect::<Vec<_>>(), [0x2000, 0x2010, 0x2018]);
    let relro = image.extent(image.header().segments[2].file);
    assert_eq!(relro[0x18..0x20], 0x1234u64.to_le_bytes());
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let words = relr(&[0x2000]);
    let refused = |f: &dyn Fn(&mut Maker<'_>)| {
        let mut m = program(&[], &words);
        f(&mut m);
        packed(&m.make()).unwrap_err()
    };
    assert!(matches!(refused(&|m| m.kind = elf::ET_EXEC), PackError::Program(_)));
    assert!(matches!(refused(&|m| m.loads[1].0 = RX | RW), PackError::WriteExecute(0x1000)));
    assert!(matches!(refused(&|m| m.loads[1].1 = 0x1008), PackError::Program(_)));
    assert!(matches!(refused(&|m| m.symbols.truncate(1)), PackError::Entry("donjon_fault")));
    assert!(matches!(refused(&|m| m.loads = vec![(RX, 0, &[0xc3], 0); 9]), PackError::Segments { got: 9, .. }));
    for at in [0x1000, 0x2004, 0x2040, 0x9000] {
        let e = packed(&program(&[], &relr(&[at])).make()).unwrap_err();
        assert!(matches!(e, PackError::RelocationPlace(a) if a == at), "{at:#x}: {e}");
    }
    let e = packed(&program(&rela(0x2010, 6, 0), &words).make()).unwrap_err();
    assert!(matches!(e, PackError::Relocation { kind: 6, at: 0x2010 }), "{e}");
    assert!(matches!(packed(b"#!/bin/sh"), Err(PackError::Program(_))));
}

#[test]
fn relr_encoding_is_undone_by_decoding() {
    let sets: [&[u64]; 5] = [&[], &[0], &[8, 16, 24], &[0, 63 * 8, 64 * 8, 127 * 8], &[8, 8 + 64 * 8, 4096, 1 << 20]];
    for offsets in sets {
        let words = encode_relr(offsets);
        assert_eq!(relr_offsets(words.into_iter()).collect::<Vec<_>>(), offsets);
    }
}
