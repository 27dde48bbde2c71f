//! Socket options: their numbers, and values as bytes.

use crate::errno::{Errno, Result};

/// `SOL_SOCKET`.
pub const SOL_SOCKET: i32 = 1;
/// `IPPROTO_IP`.
pub const IPPROTO_IP: i32 = 0;
/// `IPPROTO_TCP`.
pub const IPPROTO_TCP: i32 = 6;
/// `IPPROTO_UDP`.
pub const IPPROTO_UDP: i32 = 17;
/// `IPPROTO_IPV6`.
pub const IPPROTO_IPV6: i32 = 41;

/// Options of `SOL_SOCKET`.
#[expect(missing_docs, reason = "socket(7) describes them")]
pub mod so {
    pub const REUSEADDR: i32 = 2;
    pub const TYPE: i32 = 3;
    pub const ERROR: i32 = 4;
    pub const DONTROUTE: i32 = 5;
    pub const BROADCAST: i32 = 6;
    pub const SNDBUF: i32 = 7;
    pub const RCVBUF: i32 = 8;
    pub const KEEPALIVE: i32 = 9;
    pub const OOBINLINE: i32 = 10;
    pub const LINGER: i32 = 13;
    pub const REUSEPORT: i32 = 15;
    pub const PASSCRED: i32 = 16;
    pub const PEERCRED: i32 = 17;
    pub const RCVTIMEO: i32 = 20;
    pub const SNDTIMEO: i32 = 21;
    pub const ACCEPTCONN: i32 = 30;
    pub const PROTOCOL: i32 = 38;
    pub const DOMAIN: i32 = 39;
}

/// Options of `IPPROTO_TCP`.
#[expect(missing_docs, reason = "tcp(7) describes them")]
pub mod tcp {
    pub const NODELAY: i32 = 1;
    pub const MAXSEG: i32 = 2;
    pub const CORK: i32 = 3;
    pub const KEEPIDLE: i32 = 4;
    pub const KEEPINTVL: i32 = 5;
    pub const KEEPCNT: i32 = 6;
    pub const INFO: i32 = 11;
    pub const QUICKACK: i32 = 12;
    pub const USER_TIMEOUT: i32 = 18;
}

/// Options of `IPPROTO_IP`.
#[expect(missing_docs, reason = "ip(7) describes them")]
pub mod ip {
    pub const TOS: i32 = 1;
    pub const TTL: i32 = 2;
}

/// Options of `IPPROTO_IPV6`.
#[expect(missing_docs, reason = "ipv6(7) describes them")]
pub mod ipv6 {
    pub const UNICAST_HOPS: i32 = 16;
    pub const V6ONLY: i32 = 26;
    pub const TCLASS: i32 = 67;
}

/// The largest value: `struct tcp_info` as of Linux 4.2 (what programs ask for; shorter answers are allowed).
pub const VALUE_MAX: usize = 192;

/// The value of an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Value {
    bytes: [u8; VALUE_MAX],
    len: usize,
}

impl Value {
    /// From its bytes; cut at [`VALUE_MAX`].
    pub fn new(bytes: &[u8]) -> Value {
        let mut value = Value { bytes: [0; VALUE_MAX], len: bytes.len().min(VALUE_MAX) };
        value.bytes[..value.len].copy_from_slice(&bytes[..value.len]);
        value
    }

    /// An `int`.
    pub fn int(n: i32) -> Value {
        Value::new(&n.to_ne_bytes())
    }

    /// A `struct timeval`; `None` is zero.
    pub fn timeval(ns: Option<u64>) -> Value {
        let ns = ns.unwrap_or(0);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(ns / 1_000_000_000).to_ne_bytes());
        bytes[8..].copy_from_slice(&(ns % 1_000_000_000 / 1000).to_ne_bytes());
        Value::new(&bytes)
    }

    /// A `struct linger`.
    pub fn linger(seconds: Option<u32>) -> Value {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&i32::from(seconds.is_some()).to_ne_bytes());
        bytes[4..].copy_from_slice(&seconds.unwrap_or(0).to_ne_bytes());
        Value::new(&bytes)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Reads an `int`.
pub fn int(value: &[u8]) -> Result<i32> {
    value.first_chunk::<4>().map(|b| i32::from_ne_bytes(*b)).ok_or(Errno::EINVAL)
}

/// Reads a `struct timeval` as ns; zero is `None`.
pub fn timeval(value: &[u8]) -> Result<Option<u64>> {
    let b = value.first_chunk::<16>().ok_or(Errno::EINVAL)?;
    let (sec, usec) = b.split_at(8);
    let read = |b: &[u8]| b.first_chunk::<8>().map_or(0, |b| i64::from_ne_bytes(*b));
    let (sec, usec) = (read(sec), read(usec));
    if !(0..1_000_000).contains(&usec) {
        return Err(Errno::EDOM);
    }
    // Negative seconds mean "do not wait" in Linux.
    let ns = if sec < 0 { 1 } else { (sec as u64).saturating_mul(1_000_000_000).saturating_add(usec as u64 * 1000) };
    Ok((ns != 0).then_some(ns))
}

/// Reads a `struct linger`.
pub fn linger(value: &[u8]) -> Result<Option<u32>> {
    let b = value.first_chunk::<8>().ok_or(Errno::EINVAL)?;
    let on = i32::from_ne_bytes([b[0], b[1], b[2], b[3]]) != 0;
    Ok(on.then(|| u32::from_ne_bytes([b[4], b[5], b[6], b[7]])))
}
