//! Addresses as the stack keeps them: 16 bytes, IPv4 as `::ffff:a.b.c.d`, so that one table and one connection type serve both families.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address of either family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ip(pub [u8; 16]);

impl Ip {
    /// `::`, the wildcard of both families.
    pub const ANY: Ip = Ip([0; 16]);
    /// `0.0.0.0`, the wildcard of IPv4 only.
    pub const ANY4: Ip = Ip::v4([0; 4]);

    pub const fn v4(a: [u8; 4]) -> Ip {
        Ip([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]])
    }

    /// As two words in the machine's byte order.
    pub fn halves(self) -> [u64; 2] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])]
    }

    pub fn is_v4(self) -> bool {
        let [a, b] = self.halves();
        a == 0 && b as u32 == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    pub fn as_v4(self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[12], self.0[13], self.0[14], self.0[15])
    }

    pub fn as_v6(self) -> Ipv6Addr {
        Ipv6Addr::from(self.0)
    }

    pub fn is_unspecified(self) -> bool {
        self == Ip::ANY || self == Ip::ANY4
    }

    pub fn is_loopback(self) -> bool {
        if self.is_v4() { self.0[12] == 127 } else { self.as_v6().is_loopback() }
    }

    pub fn is_multicast(self) -> bool {
        if self.is_v4() { self.0[12] & 0xf0 == 0xe0 } else { self.0[0] == 0xff }
    }

    /// 255.255.255.255.
    pub fn is_limited_broadcast(self) -> bool {
        self == Ip::v4([255; 4])
    }

    pub fn is_link_local_v6(self) -> bool {
        self.0[0] == 0xfe && self.0[1] & 0xc0 == 0x80
    }

    /// fc00::/7 (RFC 4193).
    pub fn is_unique_local(self) -> bool {
        self.0[0] & 0xfe == 0xfc
    }

    /// Bits of the 16 bytes that are equal from the start.
    pub fn common_prefix(self, other: Ip) -> u32 {
        (u128::from_be_bytes(self.0) ^ u128::from_be_bytes(other.0)).leading_zeros()
    }

    /// Whether both are in the network of that prefix length (of the family's own length).
    pub fn same_network(self, other: Ip, prefix: u8) -> bool {
        if self.is_v4() != other.is_v4() {
            return false;
        }
        let bits = u32::from(prefix) + if self.is_v4() { 96 } else { 0 };
        let differ = u128::from_be_bytes(self.0) ^ u128::from_be_bytes(other.0);
        differ.checked_shr(128u32.saturating_sub(bits)).unwrap_or(0) == 0
    }

    /// The broadcast address of an IPv4 network.
    pub fn directed_broadcast(self, prefix: u8) -> Ip {
        let host = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        Ip::v4((u32::from(self.as_v4()) | host).to_be_bytes())
    }

    /// The group to which neighbour solicitations for this IPv6 address go (RFC 4291 §2.7.1).
    pub fn solicited_node(self) -> Ip {
        let [.., a, b, c] = self.0;
        Ip([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
    }

    /// The Ethernet address of a multicast or broadcast destination.
    pub fn multicast_mac(self) -> [u8; 6] {
        let a = self.0;
        if !self.is_v4() {
            [0x33, 0x33, a[12], a[13], a[14], a[15]]
        } else if self.is_multicast() {
            [1, 0, 0x5e, a[13] & 0x7f, a[14], a[15]]
        } else {
            [0xff; 6]
        }
    }
}

impl From<IpAddr> for Ip {
    fn from(a: IpAddr) -> Ip {
        match a {
            IpAddr::V4(a) => Ip::v4(a.octets()),
            IpAddr::V6(a) => Ip(a.octets()),
        }
    }
}

impl From<Ipv4Addr> for Ip {
    fn from(a: Ipv4Addr) -> Ip {
        Ip::v4(a.octets())
    }
}

impl From<Ipv6Addr> for Ip {
    fn from(a: Ipv6Addr) -> Ip {
        Ip(a.octets())
    }
}

impl From<Ip> for IpAddr {
    fn from(a: Ip) -> IpAddr {
        if a.is_v4() { IpAddr::V4(a.as_v4()) } else { IpAddr::V6(a.as_v6()) }
    }
}

/// Address and port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct End {
    pub ip: Ip,
    pub port: u16,
}

impl End {
    pub const NONE: End = End { ip: Ip::ANY, port: 0 };

    pub fn new(ip: Ip, port: u16) -> End {
        End { ip, port }
    }
}

impl From<SocketAddr> for End {
    fn from(a: SocketAddr) -> End {
        End { ip: a.ip().into(), port: a.port() }
    }
}

impl From<End> for SocketAddr {
    fn from(a: End) -> SocketAddr {
        SocketAddr::new(a.ip.into(), a.port)
    }
}

/// What names a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub local: End,
    pub remote: End,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let a = Ip::v4([10, 0, 2, 15]);
        assert!(a.same_network(Ip::v4([10, 0, 2, 2]), 24));
        assert!(!a.same_network(Ip::v4([10, 0, 3, 2]), 24));
        assert!(a.same_network(Ip::v4([10, 0, 3, 2]), 23));
        assert!(a.same_network(Ip::v4([99, 0, 3, 2]), 0));
        assert!(!a.same_network(Ip::ANY, 0));
        assert!(a == a && a.same_network(a, 32));
        assert!(a.directed_broadcast(24) == Ip::v4([10, 0, 2, 255]));
        assert!(a.directed_broadcast(32) == a);
        assert!(Ip([0xfe; 16]).same_network(Ip([0xfe; 16]), 128));
    }
}
