//! Socket addresses: between `struct sockaddr_*` as bytes and typed values.

use crate::errno::{Errno, Result};
use alloc::boxed::Box;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// `AF_UNSPEC`.
pub const AF_UNSPEC: i32 = 0;
/// `AF_UNIX`.
pub const AF_UNIX: i32 = 1;
/// `AF_INET`.
pub const AF_INET: i32 = 2;
/// `AF_INET6`.
pub const AF_INET6: i32 = 10;

/// Bytes in `struct sockaddr_storage`: room for every address.
pub const STORAGE: usize = 128;
/// Bytes in `struct sockaddr_un`.
const UNIX_LEN: usize = 110;

/// The address of a socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Addr {
    /// `AF_UNSPEC`: dissolves an association.
    Unspecified,
    /// `AF_INET`, `AF_INET6`.
    Inet(SocketAddr),
    /// `AF_UNIX`: a path, or an abstract name that starts with a NUL, or nothing for an unnamed socket.
    Unix(Box<[u8]>),
}

impl Addr {
    /// From the bytes of a `struct sockaddr`.
    pub fn parse(bytes: &[u8]) -> Result<Addr> {
        let family = bytes.first_chunk::<2>().map(|b| i32::from(u16::from_ne_bytes(*b))).ok_or(Errno::EINVAL)?;
        match family {
            AF_UNSPEC => Ok(Addr::Unspecified),
            AF_INET => {
                let b = bytes.first_chunk::<8>().filter(|_| bytes.len() >= 16).ok_or(Errno::EINVAL)?;
                let port = u16::from_be_bytes([b[2], b[3]]);
                Ok(Addr::Inet(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(b[4], b[5], b[6], b[7]), port))))
            }
            AF_INET6 => {
                // Linux takes the 24 bytes of the older structure without the scope, too.
                let b = bytes.first_chunk::<24>().ok_or(Errno::EINVAL)?;
                let mut ip = [0; 16];
                ip.copy_from_slice(&b[8..24]);
                let flow = u32::from_be_bytes([b[4], b[5], b[6], b[7]]);
                let scope = bytes.get(24..28).map_or(0, |s| u32::from_ne_bytes([s[0], s[1], s[2], s[3]]));
                let port = u16::from_be_bytes([b[2], b[3]]);
                Ok(Addr::Inet(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope))))
            }
            AF_UNIX => {
                if bytes.len() > UNIX_LEN {
                    return Err(Errno::EINVAL);
                }
                let name = &bytes[2..];
                let name = match name.first() {
                    None => name,
                    Some(0) => name,
                    // A path ends at its first NUL.
                    Some(_) => name.split(|b| *b == 0).next().unwrap_or(name),
                };
                Ok(Addr::Unix(name.into()))
            }
            _ => Err(Errno::EAFNOSUPPORT),
        }
    }

    /// To the bytes of a `struct sockaddr`; returns the length.
    pub fn encode(&self, out: &mut [u8; STORAGE]) -> usize {
        out.fill(0);
        match self {
            Addr::Unspecified => 2,
            Addr::Inet(SocketAddr::V4(a)) => {
                out[..2].copy_from_slice(&(AF_INET as u16).to_ne_bytes());
                out[2..4].copy_from_slice(&a.port().to_be_bytes());
                out[4..8].copy_from_slice(&a.ip().octets());
                16
            }
            Addr::Inet(SocketAddr::V6(a)) => {
                out[..2].copy_from_slice(&(AF_INET6 as u16).to_ne_bytes());
                out[2..4].copy_from_slice(&a.port().to_be_bytes());
                out[4..8].copy_from_slice(&a.flowinfo().to_be_bytes());
                out[8..24].copy_from_slice(&a.ip().octets());
                out[24..28].copy_from_slice(&a.scope_id().to_ne_bytes());
                28
            }
            Addr::Unix(name) => {
                out[..2].copy_from_slice(&(AF_UNIX as u16).to_ne_bytes());
                let n = name.len().min(UNIX_LEN - 2);
                out[2..2 + n].copy_from_slice(&name[..n]);
                // Paths are counted with their NUL.
                let path = name.first().is_some_and(|b| *b != 0);
                2 + n + usize::from(path)
            }
        }
    }

    /// The IP address and port; `EAFNOSUPPORT` for other families.
    pub fn inet(&self) -> Result<SocketAddr> {
        match self {
            Addr::Inet(a) => Ok(*a),
            _ => Err(Errno::EAFNOSUPPORT),
        }
    }
}

/// How an `AF_INET6` socket shows an address: IPv4 as `::ffff:a.b.c.d`.
pub fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(a) => SocketAddr::new(IpAddr::V6(a.ip().to_ipv6_mapped()), a.port()),
        v6 => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        let mut out = [0; STORAGE];
        for text in ["1.2.3.4:80", "[2001:db8::1]:443", "[::]:0"] {
            let addr = Addr::Inet(text.parse().unwrap());
            let n = addr.encode(&mut out);
            assert_eq!(Addr::parse(&out[..n]), Ok(addr));
        }
        for name in [&b"/tmp/a"[..], b"\0abstract\0x", b""] {
            let addr = Addr::Unix(name.into());
            let n = addr.encode(&mut out);
            assert_eq!(Addr::parse(&out[..n]), Ok(addr));
        }
        assert_eq!(Addr::parse(&[2]), Err(Errno::EINVAL));
        assert_eq!(Addr::parse(&[2, 0, 0, 80]), Err(Errno::EINVAL));
        assert_eq!(Addr::parse(&[99, 0]), Err(Errno::EAFNOSUPPORT));
    }
}
