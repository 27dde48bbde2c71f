//! Unpacks an LZ4 block (lz4_Block_format.md of the LZ4 project). For the shim, which has no allocator, as the crates that do it want.

/// So many bytes are copied where fewer would do, if there are as many.
const SHORT: usize = 16;

/// Unpacks `block` into `out`, and says how many bytes that were; `None` if the block is damaged or has more than that.
pub fn unpack(block: &[u8], out: &mut [u8]) -> Option<usize> {
    // The shim is in every image.
    unpack_as::<{ cfg!(not(donjon_guest)) }>(block, out)
}

/// `FAST` is more code, and twice as fast.
fn unpack_as<const FAST: bool>(block: &[u8], out: &mut [u8]) -> Option<usize> {
    let (mut input, mut at) = (block, 0usize);
    loop {
        let token = *input.split_off_first()?;
        let literals = length(token >> 4, &mut input)?;
        let end = at.checked_add(literals)?;
        match (input.first_chunk::<SHORT>(), out.get_mut(at..).and_then(|rest| rest.first_chunk_mut())) {
            // More than is asked for, but at once.
            (Some(from), Some(to)) if FAST && literals <= SHORT => {
                *to = *from;
                input = input.get(literals..)?;
            }
            _ => out.get_mut(at..end)?.copy_from_slice(input.split_off(..literals)?),
        }
        at = end;
        // The last sequence has literals only.
        if input.is_empty() {
            return Some(at);
        }
        let distance = u16::from_le_bytes([*input.split_off_first()?, *input.split_off_first()?]);
        let distance = usize::from(distance);
        let end = at.checked_add(length(token & 15, &mut input)?)?.checked_add(4)?;
        let from = at.checked_sub(distance).filter(|from| *from < at)?;
        if FAST
            && end - at <= SHORT
            && distance >= SHORT
            && let Some((have, rest)) = out.split_at_mut_checked(at)
            && let (Some(from), Some(to)) = (have.get(from..)?.first_chunk::<SHORT>(), rest.first_chunk_mut())
        {
            *to = *from;
            at = end;
            continue;
        }
        let area = out.get_mut(from..end)?;
        // What has been copied is copied again, if the match reaches into itself.
        let mut done = distance;
        while done < area.len() {
            let n = done.min(area.len() - done);
            let (have, to) = area.split_at_mut(done);
            to.get_mut(..n)?.copy_from_slice(have.get(..n)?);
            done += n;
        }
        at = end;
    }
}

/// A length of four bits; 15 is continued in the bytes that follow.
fn length(bits: u8, input: &mut &[u8]) -> Option<usize> {
    let mut len = usize::from(bits);
    let mut more = if bits == 15 { 255 } else { 0 };
    while more == 255 {
        more = *input.split_off_first()?;
        len = len.checked_add(usize::from(more))?;
    }
    Some(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    fn all(block: &[u8], len: usize) -> Option<Vec<u8>> {
        let (mut out, mut slow) = (std::vec![0xaa; len], std::vec![0x55; len]);
        let got = [unpack_as::<true>(block, &mut out), unpack_as::<false>(block, &mut slow)];
        assert_eq!(got[0], got[1]);
        assert!(got[0].is_none() || out[..got[0]?] == slow[..got[0]?]);
        (got[0]? == len).then_some(out)
    }

    #[test]
    fn literals_and_matches() {
        assert_eq!(all(b"\x00", 0).unwrap(), b"");
        assert_eq!(all(b"\x30abc", 3).unwrap(), b"abc");
        // Itself, from one byte and from three; a length of 15 + 255 + 2 + 4.
        assert_eq!(all(b"\x12a\x01\0\x10b", 8).unwrap(), b"aaaaaaab");
        assert_eq!(all(b"\x34abc\x03\0\x10x", 12).unwrap(), b"abcabcabcabx");
        assert_eq!(all(b"\x1fa\x01\0\xff\x02\x00", 277).unwrap(), [b'a'; 277]);
        assert_eq!(all(&[b"\xf0\x00".as_slice(), &[7; 15]].concat(), 15).unwrap(), [7; 15]);
    }

    #[test]
    fn damage_is_found() {
        let blocks: [(&[u8], usize); 9] = [
            (b"", 0),
            (b"\x40abc", 4),         // fewer literals than announced
            (b"\x30abc", 2),         // more than there is room for
            (b"\x12a\x00\0\x00", 7), // distance 0
            (b"\x12a\x02\0\x00", 7), // before the beginning
            (b"\x12a\x01", 7),       // half a distance
            (b"\x12a\x01\0", 7),     // no last sequence
            (b"\x12a\x01\0\x00", 6), // a match beyond the end
            (b"\xf0\xff\xff", 600),  // an endless length
        ];
        for (block, len) in blocks {
            assert_eq!(all(block, len), None, "{block:?}");
        }
    }
}
