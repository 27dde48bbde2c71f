//! The Internet checksum (RFC 1071), 8 bytes at a time.

use crate::addr::Ip;

/// A running one's-complement sum over pieces, in native byte order.
#[derive(Clone, Copy)]
pub(crate) struct Sum {
    sum: u64,
    odd: bool,
}

impl Sum {
    pub const fn new() -> Sum {
        Sum { sum: 0, odd: false }
    }

    /// The pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1).
    pub fn pseudo(src: Ip, dst: Ip, protocol: u8, len: usize) -> Sum {
        let mut s = Sum::new();
        let from = if src.is_v4() { 12 } else { 0 };
        s.add(&src.0[from..]);
        s.add(&dst.0[from..]);
        s.add(&(len as u32).to_be_bytes());
        s.add(&[0, protocol]);
        s
    }

    pub fn add(&mut self, data: &[u8]) {
        let mut sum = 0u64;
        let (words, rest) = data.as_chunks::<8>();
        for w in words {
            let w = u64::from_ne_bytes(*w);
            sum += (w & 0xffff_ffff) + (w >> 32);
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let w = u64::from_ne_bytes(last);
        sum += (w & 0xffff_ffff) + (w >> 32);
        let folded = fold(sum);
        let folded = if self.odd { folded.swap_bytes() } else { folded };
        self.sum += u64::from(folded);
        self.odd ^= data.len() & 1 != 0;
    }

    /// The sum, not complemented: what a partial checksum field holds. As the bytes of the field.
    pub fn partial(self) -> [u8; 2] {
        fold(self.sum).to_ne_bytes()
    }

    /// The checksum, as the bytes of the field.
    pub fn finish(self) -> [u8; 2] {
        (!fold(self.sum)).to_ne_bytes()
    }

    /// Whether data that contains its own checksum is sound.
    pub fn is_valid(self) -> bool {
        fold(self.sum) == 0xffff
    }
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn agrees_with_smoltcp_in_any_pieces() {
        let data: Vec<u8> = (0..4099u32).map(|i| ((i * i) >> 3) as u8).collect();
        for len in [0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 1460, 4099] {
            let want = !smoltcp::wire::checksum::data(&data[..len]);
            for cut in [0, 1, 5, 8, 33] {
                let mut s = Sum::new();
                let cut = cut.min(len);
                s.add(&data[..cut]);
                s.add(&data[cut..len]);
                assert_eq!(u16::from_be_bytes(s.finish()), want, "{len} {cut}");
            }
        }
    }
}
