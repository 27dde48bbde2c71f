//! Numbers and addresses in text. `core`'s parsers do the same in six times the code.

/// A decimal number without sign.
pub fn decimal(text: &[u8]) -> Option<u64> {
    number(text, 10)
}

/// A number in the base 10 or 16, without sign or prefix.
pub fn number(text: &[u8], base: u64) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |n, c| {
        let digit = match c {
            b'0'..=b'9' => c - b'0',
            b'a'..=b'f' => c - b'a' + 10,
            b'A'..=b'F' => c - b'A' + 10,
            _ => return None,
        };
        if u64::from(digit) >= base {
            return None;
        }
        n.checked_mul(base)?.checked_add(u64::from(digit))
    })
}

/// What stands before and after the first `separator`.
pub fn cut(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|c| *c == separator)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// An IPv4 address in dotted notation.
pub fn ipv4(text: &[u8]) -> Option<[u8; 4]> {
    let mut out = [0; 4];
    let mut parts = text.split(|c| *c == b'.');
    for byte in &mut out {
        *byte = decimal(parts.next()?).filter(|n| *n < 256)? as u8;
    }
    parts.next().is_none().then_some(out)
}

/// An IPv6 address (RFC 4291 §2.2, without the form that ends in an IPv4 address).
pub fn ipv6(text: &[u8]) -> Option<[u8; 16]> {
    let gap = text.windows(2).position(|w| w == b"::");
    let Some(gap) = gap else {
        let mut out = [0; 16];
        return (groups(text, &mut out)? == 16).then_some(out);
    };
    let (mut head, mut tail) = ([0; 16], [0; 16]);
    let before = groups(text.get(..gap)?, &mut head)?;
    let after = groups(text.get(gap + 2..)?, &mut tail)?;
    // The gap stands for at least one group.
    if before + after > 14 {
        return None;
    }
    head.get_mut(16 - after..)?.iter_mut().zip(tail).for_each(|(to, from)| *to = from);
    Some(head)
}

/// Writes groups of four hexadecimal digits; how many bytes they take.
fn groups(text: &[u8], out: &mut [u8; 16]) -> Option<usize> {
    if text.is_empty() {
        return Some(0);
    }
    let mut at = 0;
    for group in text.split(|c| *c == b':') {
        let value = number(group, 16).filter(|_| group.len() <= 4)? as u16;
        let place: &mut [u8; 2] = out.get_mut(at..)?.first_chunk_mut()?;
        *place = value.to_be_bytes();
        at += 2;
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::string::String;

    #[test]
    fn numbers() {
        assert_eq!((decimal(b"0"), decimal(b"18446744073709551615")), (Some(0), Some(u64::MAX)));
        assert_eq!(number(b"fEb00e00", 16), Some(0xfeb0_0e00));
        for bad in [&b""[..], b"18446744073709551616", b"-1", b"+1", b"1a", b" 1"] {
            assert_eq!(decimal(bad), None);
        }
    }

    #[test]
    fn addresses_agree_with_the_standard_library() {
        for good in ["0.0.0.0", "10.0.2.15", "255.255.255.255"] {
            assert_eq!(ipv4(good.as_bytes()), Some(good.parse::<Ipv4Addr>().unwrap().octets()));
        }
        for bad in ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "1..2.3", "1.2.3.4 ", "a.b.c.d"] {
            assert_eq!(ipv4(bad.as_bytes()), None, "{bad}");
        }
        // Every string of up to six of these pieces.
        let pieces = ["", ":", "::", "1", "fe80", "0", "ffff", "12345", "g", "2:3:4:5:6:7:8"];
        let mut checked = 0;
        for n in 0..pieces.len().pow(5) {
            let text: String = (0..5).map(|i| pieces[n / pieces.len().pow(i) % pieces.len()]).collect();
            let standard = text.parse::<Ipv6Addr>().ok().map(|a| a.octets());
            assert_eq!(ipv6(text.as_bytes()), standard, "{text:?}");
            checked += usize::from(standard.is_some());
        }
        assert!(checked > 1000);
    }
}
