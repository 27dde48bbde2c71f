//! The branch filter of compressed images (what xz calls BCJ): relative calls and jumps with the target's distance become ones with its place, so that calls of
//! one function look alike to a compressor. Same length, exactly reversible for any bytes.

/// Distances and places that are changed are below this, of either sign.
const REACH: i32 = 1 << 24;

/// Before compression. `code` begins at place 0.
pub fn encode(code: &mut [u8]) {
    convert(code, i32::wrapping_add);
}

/// After decompression.
pub fn decode(code: &mut [u8]) {
    convert(code, i32::wrapping_sub);
}

/// Both directions look at the same numbers, none of which shares a byte with another: whether one is changed depends on its being within reach, and within
/// reach it stays.
fn convert(code: &mut [u8], change: impl Fn(i32, i32) -> i32) {
    let mut at = 0;
    while let Some(rest) = code.get_mut(at..) {
        let Some(found) = rest.iter().position(|b| b & 0xfe == 0xe8) else { return };
        let Some(number) = rest.get_mut(found + 1..).and_then(|r| r.first_chunk_mut()) else { return };
        at += found + 5;
        let value = i32::from_le_bytes(*number);
        if (-REACH..REACH).contains(&value) {
            // Modulo twice the reach, sign extended.
            *number = (change(value, at as i32) << 7 >> 7).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    #[test]
    fn calls_of_one_function_look_alike() {
        let mut code = *b"\xe8\x0b\0\0\0\x90\xe9\x05\0\0\0\xe8\xf0\xff\xff\xff";
        encode(&mut code);
        assert_eq!(&code, b"\xe8\x10\0\0\0\x90\xe9\x10\0\0\0\xe8\0\0\0\0");
        decode(&mut code);
        assert_eq!(&code, b"\xe8\x0b\0\0\0\x90\xe9\x05\0\0\0\xe8\xf0\xff\xff\xff");
    }

    #[test]
    fn any_bytes_come_back() {
        let mut state = 1u64;
        for round in 0..2000 {
            // Many opcodes, and numbers near the reach.
            let bytes: Vec<u8> = (0..round % 64)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let r = (state >> 33) as usize;
                    [0xe8, 0xe9, 0, 0xff, 1, 0xfe, 0x7f, r as u8][r >> 8 & 7]
                })
                .collect();
            let mut changed = bytes.clone();
            encode(&mut changed);
            decode(&mut changed);
            assert_eq!(changed, bytes, "round {round}");
        }
    }
}
