//! Bytes that the test guests send and hash, in the same way on both sides.

use std::io::{self, Read};

/// Byte `i` of the pattern that guests send.
pub fn byte(i: u64) -> u8 {
    ((i * 31 + 7) % 251) as u8
}

/// `len` bytes of it.
pub fn bytes(len: usize) -> Vec<u8> {
    let period: Vec<u8> = (0..251).map(byte).collect();
    period.iter().copied().cycle().take(len).collect()
}

/// Reads to the end and checks every byte; returns how many there were.
pub fn check(mut reader: impl Read) -> io::Result<u64> {
    // A whole number of periods, compared block by block.
    let expected = bytes(251 * 256);
    let mut buffer = vec![0; expected.len()];
    let mut total = 0u64;
    loop {
        let at = (total % 251) as usize;
        let room = expected.len() - at;
        let n = reader.read(&mut buffer[..room])?;
        if n == 0 {
            return Ok(total);
        }
        if buffer[..n] != expected[at..at + n] {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("wrong bytes from {total} on")));
        }
        total += n as u64;
    }
}

/// FNV-1a, 64 bits, as 16 hexadecimal digits.
pub fn fnv(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_is_checked() {
        let mut block = bytes(100_000);
        assert_eq!(block[1000], byte(1000));
        assert_eq!(check(&block[..]).unwrap(), 100_000);
        block[99_999] ^= 1;
        assert!(check(&block[..]).is_err());
    }

    #[test]
    fn fnv_matches_the_published_vector() {
        // Landon Curt Noll's test vectors for FNV-1a.
        assert_eq!(fnv(b"foobar"), "85944171f73967e8");
        assert_eq!(fnv(b""), "cbf29ce484222325");
    }
}
