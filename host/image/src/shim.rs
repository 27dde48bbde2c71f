//! The ring-0 shim as part of an image, and the ELF head by which hypervisors load both.

use std::ops::Range;

use donjon_abi::image::{Extent, HEADER_OFFSET, PAYLOAD_PADDR, SHIM_PADDR};
use object::{
    Endianness, elf,
    read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _},
};

const LE: Endianness = Endianness::Little;
const EHDR_LEN: u64 = 64;
const PHDR_LEN: u64 = 56;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the 32-bit entry point of the PVH boot protocol.
const PVH_NOTE: u32 = 18;

/// The linked shim, flat.
#[derive(Default)]
pub(crate) struct Shim {
    /// What is loaded at [`SHIM_PADDR`].
    pub bytes: Vec<u8>,
    /// Bytes of memory from [`SHIM_PADDR`] on, zeros at the end included.
    mem_len: u64,
    /// Entry of the Linux 64-bit boot protocol.
    entry: u64,
    /// Entry of PVH.
    pvh: u32,
}

impl Shim {
    /// Reads the linked shim; nothing gives the shim that is not there.
    pub fn read(file: &[u8]) -> Result<Shim, &'static str> {
        if file.is_empty() {
            return Ok(Shim::default());
        }
        let elf = ElfFile64::<Endianness>::parse(file).map_err(|_| "not an ELF file")?;
        let mut out = Shim { entry: elf.elf_header().e_entry(LE), ..Shim::default() };
        for h in elf.elf_program_headers() {
            if let Ok(Some(mut notes)) = h.notes(LE, file) {
                while let Ok(Some(note)) = notes.next() {
                    if note.n_type(LE) == PVH_NOTE && note.name() == b"Xen" {
                        let entry = note.desc().first_chunk().ok_or("its PVH note is too short")?;
                        out.pvh = u32::from_le_bytes(*entry);
                    }
                }
            }
            if h.p_type(LE) != elf::PT_LOAD || h.p_memsz(LE) == 0 {
                continue;
            }
            let start = h.p_paddr(LE).checked_sub(SHIM_PADDR).ok_or("a segment lies below its load address")?;
            let end = start.checked_add(h.p_memsz(LE)).ok_or("a segment is too long")?;
            if end > PAYLOAD_PADDR - SHIM_PADDR {
                return Err("it reaches into the payload");
            }
            let data = h.data(LE, file).map_err(|()| "a segment is outside of the file")?;
            let (from, to) = (start as usize, start as usize + data.len());
            if data.len() > out.bytes.len().saturating_sub(from) {
                out.bytes.resize(to, 0);
            }
            out.bytes[from..to].copy_from_slice(data);
            out.mem_len = out.mem_len.max(end);
        }
        let len = out.bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
        out.bytes.truncate(len);
        if out.pvh == 0 {
            return Err("it has no PVH note");
        }
        Ok(out)
    }
}

/// The first bytes of an image: ELF header, program headers, PVH note. Shorter than [`HEADER_OFFSET`].
/// The payload is `payload` of the file, and takes memory up to offset `memory_end`.
pub(crate) fn elf_head(shim: &Shim, shim_at: Extent, payload: Range<u64>, memory_end: u64) -> Vec<u8> {
    let note_at = EHDR_LEN + 3 * PHDR_LEN;
    let mut note = Vec::new();
    for word in [4, 4, PVH_NOTE, u32::from_le_bytes(*b"Xen\0"), shim.pvh] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    let payload_len = payload.end - payload.start;
    let bootable = !shim.bytes.is_empty();
    let phdrs = [
        (elf::PT_NOTE, elf::PF_R, note_at, 0, note.len() as u64, note.len() as u64, 4),
        (elf::PT_LOAD, elf::PF_R | elf::PF_W | elf::PF_X, shim_at.offset, SHIM_PADDR, shim_at.len, shim.mem_len, 16),
        (
            elf::PT_LOAD,
            elf::PF_R | elf::PF_W,
            payload.start,
            PAYLOAD_PADDR,
            payload_len,
            memory_end - payload.start,
            4096,
        ),
    ];

    let mut out = Vec::new();
    out.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for half in [elf::ET_EXEC, elf::EM_X86_64] {
        out.extend_from_slice(&half.to_le_bytes());
    }
    out.extend_from_slice(&1u32.to_le_bytes());
    for word in [shim.entry, EHDR_LEN, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&0u32.to_le_bytes());
    let count = if bootable { phdrs.len() as u16 } else { 0 };
    for half in [EHDR_LEN as u16, PHDR_LEN as u16, count, 0, 0, 0] {
        out.extend_from_slice(&half.to_le_bytes());
    }
    if bootable {
        for (kind, flags, offset, paddr, file_len, mem_len, align) in phdrs {
            out.extend_from_slice(&kind.to_le_bytes());
            out.extend_from_slice(&flags.to_le_bytes());
            for word in [offset, paddr, paddr, file_len, mem_len, align] {
                out.extend_from_slice(&u64::to_le_bytes(word));
            }
        }
        out.extend_from_slice(&note);
    }
    debug_assert!((out.len() as u64) < HEADER_OFFSET);
    out
}
