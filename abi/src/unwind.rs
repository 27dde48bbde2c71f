//! Unwind tables as an image carries them.
//!
//! The packer replaces the linked program's `.eh_frame_hdr` and `.eh_frame` (DWARF 5 §6.4 and the LSB's "Exception Frames") by one table, at the place
//! that the program's `PT_GNU_EH_FRAME` header names. The unwinder (libgcc's) still reads CIEs and FDEs; only how an FDE is found is
//! different, and that is [`find`]:
//!
//! ```text
//! 0   MAGIC
//! 4   number of blocks, n
//! 8   n + 1 pairs of u32: first address of the block (offset in the image), offset of its first FDE in the table;
//!     the last pair stands for the end
//! ..  CIEs, then FDEs by ascending address
//! ```
//!
//! An FDE's address encoding is `DW_EH_PE_udata2`: the function's distance from its block's first address, and its length. A length of
//! [`LONG`] means "until the next".

/// The table's first word. (`.eh_frame_hdr` begins with the byte 1.)
pub const MAGIC: u32 = u32::from_le_bytes(*b"DUW1");
/// Bytes before the pairs.
pub const HEADER_LEN: usize = 8;
/// A function of this many bytes or more.
pub const LONG: u16 = u16::MAX;

/// Where the FDE for an address is, and where its function begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Offset of the FDE in the table.
    pub fde: usize,
    /// Offset of the function in the image.
    pub function: u32,
}

/// Finds the FDE that covers the address (an offset in the image). `None` if there is none, or the table is not sound.
pub fn find(table: &[u8], address: u32) -> Option<Found> {
    let word = |at: usize| Some(u32::from_le_bytes(*table.get(at..)?.first_chunk()?));
    let half = |at: usize| Some(u16::from_le_bytes(*table.get(at..)?.first_chunk()?));
    if word(0)? != MAGIC {
        return None;
    }
    let pair = |block: usize| HEADER_LEN + 8 * block;
    // The last block that begins at or before the address.
    let (mut low, mut high) = (0, word(4)? as usize);
    while low < high {
        let middle = low.midpoint(high);
        if word(pair(middle))? <= address { low = middle + 1 } else { high = middle }
    }
    let block = low.checked_sub(1)?;
    let (start, end) = (word(pair(block))?, word(pair(block + 1) + 4)? as usize);
    let distance = address - start;
    let mut at = word(pair(block) + 4)? as usize;
    let mut found = None;
    while at < end {
        let begin = half(at + 8)?;
        if u32::from(begin) > distance {
            break;
        }
        let len = half(at + 10)?;
        let inside = len == LONG || distance < u32::from(begin) + u32::from(len);
        found = inside.then_some(Found { fde: at, function: start + u32::from(begin) });
        at += 4 + word(at)? as usize;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of functions: first address, then begin and length of each.
    fn table(blocks: &[(u32, &[(u16, u16)])]) -> ([u8; 256], usize) {
        let mut out = [0; 256];
        let mut put =
            |at: usize, value: u32, len: usize| out[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        put(0, MAGIC, 4);
        put(4, blocks.len() as u32, 4);
        let mut at = HEADER_LEN + 8 * (blocks.len() + 1);
        for (i, (start, functions)) in blocks.iter().enumerate() {
            put(HEADER_LEN + 8 * i, *start, 4);
            put(HEADER_LEN + 8 * i + 4, at as u32, 4);
            for (begin, len) in *functions {
                put(at, 9, 4);
                put(at + 8, u32::from(*begin), 2);
                put(at + 10, u32::from(*len), 2);
                at += 13;
            }
        }
        put(HEADER_LEN + 8 * blocks.len(), u32::MAX, 4);
        put(HEADER_LEN + 8 * blocks.len() + 4, at as u32, 4);
        (out, at)
    }

    #[test]
    fn functions_are_found_and_gaps_are_not() {
        let (t, len) = table(&[(0x1000, &[(0, 16), (32, 8)]), (0x9000, &[(0, 4), (8, LONG)]), (0x40_0000, &[(0, 1)])]);
        let function = |address| find(&t[..len], address).map(|f| f.function);
        for (address, want) in [
            (0, None),
            (0xfff, None),
            (0x1000, Some(0x1000)),
            (0x100f, Some(0x1000)),
            (0x1010, None),
            (0x1020, Some(0x1020)),
            (0x1028, None),
            (0x8fff, None),
            (0x9003, Some(0x9000)),
            (0x9004, None),
            (0x9008, Some(0x9008)),
            (0x3f_ffff, Some(0x9008)),
            (0x40_0000, Some(0x40_0000)),
            (0x40_0001, None),
            (u32::MAX, None),
        ] {
            assert_eq!(function(address), want, "{address:#x}");
        }
    }

    #[test]
    fn tables_that_are_not_sound_find_nothing_and_end() {
        let (t, len) = table(&[(0x1000, &[(0, 16), (32, 8)])]);
        for n in 0..len {
            find(&t[..n], 0x1020);
        }
        assert_eq!(find(&[1; 64], 0), None);
        let (mut t, len) = table(&[(0x1000, &[(0, 16), (32, 8)])]);
        t[4] = 255;
        find(&t[..len], 0x1020);
    }
}
