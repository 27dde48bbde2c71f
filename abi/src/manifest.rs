//! The manifest inside an image: what the guest was declared to be and to do.
//!
//! A sequence of records, each `tag: u16, reserved: u16 = 0, len: u32`, then `len` bytes and padding to a multiple of 8. `Donjon.toml` is
//! turned into records by the builder; monitor and guest read only these.

use core::net::Ipv6Addr;

/// Most bytes of name, arguments and environment together, a NUL after each.
pub const STRINGS_MAX: u64 = 64 * 1024;

/// What a record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Tag {
    /// UTF-8 name of the image. Exactly once.
    Name = 1,
    /// Default memory in bytes, `u64`. Exactly once.
    Memory = 2,
    /// A port that the guest may listen on: `protocol: u8` (6 TCP, 17 UDP), `0: u8`, `port: u16`. Any number.
    Listen = 3,
    /// A destination that the guest may reach: see [`Egress`]. Any number; none means none.
    Egress = 4,
    /// One default argument (without the program's name), UTF-8. Any number, in order.
    Arg = 5,
    /// One default environment entry, `NAME=value`, UTF-8. Any number.
    Env = 6,
    /// Largest total size of `/tmp` in bytes, `u64`. At most once.
    Tmpfs = 7,
    /// Version of the tool that made the image, UTF-8. Exactly once.
    Tool = 8,
    /// Name of a secret that the guest is handed at its start ([`crate::secrets`]). Any number, in ascending order.
    Secret = 9,
    /// A part of the program that could have been left out: 1 (it is there) or 0 (it is absent), then its name, UTF-8. Any number.
    Part = 10,
    /// How fast the guest may send: see [`Limit`]. At most once.
    Limit = 11,
    /// Seconds that the guest may take to end after it was asked to, `u64`. At most once; without it [`STOP_SECONDS`].
    Stop = 12,
}

/// Seconds that a guest may take to end after it was asked to, unless its manifest says otherwise.
pub const STOP_SECONDS: u64 = 10;

impl Tag {
    /// The tag of that number.
    pub const fn from_number(number: u16) -> Option<Tag> {
        Some(match number {
            1 => Tag::Name,
            2 => Tag::Memory,
            3 => Tag::Listen,
            4 => Tag::Egress,
            5 => Tag::Arg,
            6 => Tag::Env,
            7 => Tag::Tmpfs,
            8 => Tag::Tool,
            9 => Tag::Secret,
            10 => Tag::Part,
            11 => Tag::Limit,
            12 => Tag::Stop,
            _ => return None,
        })
    }
}

/// Reads the records in `bytes`. Iteration ends at the end, or with an error at the first malformed record.
pub fn records(bytes: &[u8]) -> Records<'_> {
    Records { rest: bytes, failed: false }
}

/// A malformed record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RecordError {
    /// A record reaches past the end.
    Truncated,
    /// An unknown tag.
    Tag(u16),
}

/// Iterator over records.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    failed: bool,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(Tag, &'a [u8]), RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() || self.failed {
            return None;
        }
        let record = (|| {
            let (head, rest) = self.rest.split_at_checked(8).ok_or(RecordError::Truncated)?;
            let tag = u16::from_le_bytes([head[0], head[1]]);
            let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
            let value = rest.get(..len).ok_or(RecordError::Truncated)?;
            self.rest = rest.get(len.next_multiple_of(8)..).ok_or(RecordError::Truncated)?;
            Ok((Tag::from_number(tag).ok_or(RecordError::Tag(tag))?, value))
        })();
        self.failed = record.is_err();
        Some(record)
    }
}

/// Encodes one record by calling `out` with consecutive pieces.
pub fn write_record(tag: Tag, value: &[u8], mut out: impl FnMut(&[u8])) {
    let [t0, t1] = (tag as u16).to_le_bytes();
    let [l0, l1, l2, l3] = (value.len() as u32).to_le_bytes();
    out(&[t0, t1, 0, 0, l0, l1, l2, l3]);
    out(value);
    out(&[0; 8][..value.len().next_multiple_of(8) - value.len()]);
}

/// A destination that a guest may reach, the value of a [`Tag::Egress`] record (20 bytes).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Egress {
    /// 6 TCP, 17 UDP, 0 both.
    pub protocol: u8,
    /// Prefix length within the 16 bytes of `addr` (IPv4 is written as ::ffff:a.b.c.d, so its prefixes are 96 to 128).
    pub prefix: u8,
    /// Port, or 0 for all.
    pub port: u16,
    /// Network address.
    pub addr: [u8; 16],
}

impl Egress {
    /// Decodes a record's value.
    pub fn from_bytes(b: &[u8]) -> Option<Egress> {
        let b: &[u8; 20] = b.try_into().ok()?;
        let mut addr = [0; 16];
        addr.copy_from_slice(&b[4..]);
        (b[1] <= 128).then_some(Egress { protocol: b[0], prefix: b[1], port: u16::from_le_bytes([b[2], b[3]]), addr })
    }

    /// Encodes a record's value.
    pub fn to_bytes(self) -> [u8; 20] {
        let mut out = [0; 20];
        out[0] = self.protocol;
        out[1] = self.prefix;
        out[2..4].copy_from_slice(&self.port.to_le_bytes());
        out[4..].copy_from_slice(&self.addr);
        out
    }

    /// Whether this entry allows a destination, and is narrow enough to mean it ([`least_prefix`]).
    pub fn reaches(&self, protocol: u8, addr: [u8; 16], port: u16) -> bool {
        self.prefix >= least_prefix(addr) && self.allows(protocol, addr, port)
    }

    /// Whether this entry allows a destination.
    pub fn allows(&self, protocol: u8, addr: [u8; 16], port: u16) -> bool {
        let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
        (self.protocol == 0 || self.protocol == protocol)
            && (self.port == 0 || self.port == port)
            && (u128::from_be_bytes(self.addr) ^ u128::from_be_bytes(addr)) & mask == 0
    }
}

/// How fast a guest may send, the value of a [`Tag::Limit`] record (16 bytes). It is the monitor that enforces it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Limit {
    /// TCP connections that it opens, a second; 0 is no limit.
    pub connections: u32,
    /// Bytes of its frames, a second; 0 is no limit.
    pub send: u64,
}

impl Limit {
    /// Decodes a record's value.
    pub fn from_bytes(b: &[u8]) -> Option<Limit> {
        let (connections, rest) = b.split_first_chunk()?;
        let (zero, rest) = rest.split_first_chunk::<4>()?;
        let limit =
            Limit { connections: u32::from_le_bytes(*connections), send: u64::from_le_bytes(rest.try_into().ok()?) };
        (*zero == [0; 4]).then_some(limit)
    }

    /// Encodes a record's value.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..4].copy_from_slice(&self.connections.to_le_bytes());
        out[8..].copy_from_slice(&self.send.to_le_bytes());
        out
    }
}

/// How narrow a destination's entry must at least be to reach this address: some are too special to be meant by a wide one.
pub fn least_prefix(addr: [u8; 16]) -> u8 {
    match Ipv6Addr::from(addr).to_ipv4_mapped() {
        // 169.254.169.254 hands out a cloud machine's credentials.
        Some(a) if a.is_link_local() => 96 + 16,
        Some(a) if a.is_multicast() => 96 + 4,
        Some(a) if a.is_broadcast() || a.octets()[0] == 0 || a.is_loopback() => 128,
        Some(_) => 0,
        None if addr[0] == 0xff => 8,
        None if addr[..2] == [0xfe, 0x80] => 16,
        None if addr[..6] == METADATA6 => 48,
        None if addr[..15] == [0; 15] => 128,
        None => 0,
    }
}

/// First bytes of fd00:ec2::254, Amazon's metadata service over IPv6.
pub const METADATA6: [u8; 6] = [0xfd, 0, 0x0e, 0xc2, 0, 0];

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    #[test]
    fn records_round_trip_and_truncate() {
        let mut bytes = Vec::new();
        for (tag, value) in [(Tag::Name, &b"web"[..]), (Tag::Arg, b""), (Tag::Memory, &[0; 8])] {
            write_record(tag, value, |b| bytes.extend_from_slice(b));
        }
        let all: Vec<_> = records(&bytes).collect::<Result<_, _>>().unwrap();
        assert_eq!(all, [(Tag::Name, &b"web"[..]), (Tag::Arg, b""), (Tag::Memory, &[0; 8])]);
        assert_eq!(records(&bytes[..bytes.len() - 1]).last(), Some(Err(RecordError::Truncated)));
        bytes[0] = 99;
        assert_eq!(records(&bytes).next(), Some(Err(RecordError::Tag(99))));
    }

    #[test]
    fn egress_matches_prefixes() {
        let v4 = |a: [u8; 4]| {
            let mut out = [0; 16];
            out[10..12].fill(0xff);
            out[12..].copy_from_slice(&a);
            out
        };
        let e = Egress { protocol: 6, prefix: 120, port: 443, addr: v4([10, 1, 2, 0]) };
        assert_eq!(Egress::from_bytes(&e.to_bytes()), Some(e));
        assert!(e.allows(6, v4([10, 1, 2, 9]), 443));
        assert!(!e.allows(6, v4([10, 1, 3, 9]), 443));
        assert!(!e.allows(17, v4([10, 1, 2, 9]), 443));
        assert!(!e.allows(6, v4([10, 1, 2, 9]), 80));
        let any = Egress { protocol: 0, prefix: 0, port: 0, addr: [0; 16] };
        assert!(any.allows(17, [9; 16], 1) && any.reaches(17, [9; 16], 1));
        for special in [[169, 254, 169, 254], [224, 0, 0, 1], [255; 4], [127, 0, 0, 1], [0; 4]] {
            assert!(!any.reaches(6, v4(special), 80), "{special:?}");
            assert!(Egress { prefix: 128, addr: v4(special), ..any }.reaches(6, v4(special), 80), "{special:?}");
        }
    }
}
