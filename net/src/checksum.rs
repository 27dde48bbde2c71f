//! The Internet checksum (RFC 1071), 8 bytes at a time.

use crate::addr::Ip;

/// A running one's-complement sum over pieces, in native byte order. 64 bits wide: as 2^16 - 1 divides 2^64 - 1, it is folded at the end only.
#[derive(Clone, Copy)]
pub(crate) struct Sum {
    sum: u64,
    odd: bool,
}

/// One's-complement addition.
const fn plus(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u64
}

impl Sum {
    pub const fn new() -> Sum {
        Sum { sum: 0, odd: false }
    }

    /// The pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1).
    pub fn pseudo(src: Ip, dst: Ip, protocol: u8, len: usize) -> Sum {
        let mut sum = u64::from((len as u32).to_be()) + u64::from(u16::from(protocol).to_be());
        for ip in [src, dst] {
            let [a, b] = ip.halves();
            // The constant part of an IPv4 address has no place in the sum.
            sum = plus(sum, if ip.is_v4() { b >> 32 } else { plus(a, b) });
        }
        Sum { sum, odd: false }
    }

    pub fn add(&mut self, data: &[u8]) {
        let mut sum = 0u64;
        let (blocks, rest) = data.as_chunks::<32>();
        for b in blocks {
            for w in b.as_chunks::<8>().0 {
                sum = plus(sum, u64::from_ne_bytes(*w));
            }
        }
        let (words, rest) = rest.as_chunks::<8>();
        for w in words {
            sum = plus(sum, u64::from_ne_bytes(*w));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            for (to, from) in last.iter_mut().zip(rest) {
                *to = *from;
            }
            sum = plus(sum, u64::from_ne_bytes(last));
        }
        // A byte further on in every 16-bit word.
        self.sum = plus(self.sum, if self.odd { sum.rotate_left(8) } else { sum });
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

fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn carries_are_not_lost() {
        for data in [&[0xff; 4096][..], &[0xff; 33], &[0xfe; 41], &[0; 64]] {
            for cut in 0..40.min(data.len()) {
                let mut s = Sum::new();
                s.add(&data[..cut]);
                s.add(&data[cut..]);
                assert_eq!(u16::from_be_bytes(s.finish()), !smoltcp::wire::checksum::data(data), "{cut}");
            }
        }
    }

    #[test]
    fn pseudo_headers_are_the_sums_of_their_bytes() {
        for (src, dst) in [
            (Ip::v4([10, 0, 2, 15]), Ip::v4([255, 254, 253, 252])),
            (Ip([0xff; 16]), Ip([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 255])),
        ] {
            let from = if src.is_v4() { 12 } else { 0 };
            for len in [0, 20, 1500, 65_535] {
                let mut want = Sum::new();
                want.add(&src.0[from..]);
                want.add(&dst.0[from..]);
                want.add(&(len as u32).to_be_bytes());
                want.add(&[0, 6]);
                assert_eq!(Sum::pseudo(src, dst, 6, len).partial(), want.partial());
            }
        }
    }

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
