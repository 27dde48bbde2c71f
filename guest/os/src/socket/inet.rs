//! `AF_INET` and `AF_INET6`: TCP and UDP over [`crate::netif`].

mod tcp;
mod udp;

use super::addr::{AF_INET, Addr, mapped};
use super::option::{self, IPPROTO_IP, IPPROTO_IPV6, Value, ip, ipv6};
use super::{Common, SOCK_DGRAM, SOCK_STREAM};
use crate::errno::{Errno, Result};
use crate::fd::FileRef;
use crate::netif;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use donjon_net::{BindOptions, Domain, Error, Handle, IpOptions};

/// Makes a socket; starts the network if it is the first one.
pub fn socket(domain: i32, kind: i32, protocol: i32, status: i32) -> Result<FileRef> {
    use super::option::{IPPROTO_TCP, IPPROTO_UDP};
    match (kind, protocol) {
        (SOCK_STREAM, 0 | IPPROTO_TCP) => {
            netif::start()?;
            tcp::socket(domain, status)
        }
        (SOCK_DGRAM, 0 | IPPROTO_UDP) => {
            netif::start()?;
            udp::socket(domain, status)
        }
        (SOCK_STREAM | SOCK_DGRAM, _) => Err(Errno::EPROTONOSUPPORT),
        // Raw packets would let a program forge what the stack promises.
        (3, _) => Err(Errno::EPERM),
        _ => Err(Errno::ESOCKTNOSUPPORT),
    }
}

fn err(e: Error) -> Errno {
    Errno(e.errno())
}

fn stack_domain(domain: i32) -> Domain {
    if domain == AF_INET { Domain::V4 } else { Domain::V6 }
}

/// Checks that an address fits the socket's family.
fn fitting(domain: i32, addr: &Addr) -> Result<SocketAddr> {
    let addr = addr.inet()?;
    match (domain == AF_INET, addr) {
        (true, SocketAddr::V4(_)) | (false, SocketAddr::V6(_)) => Ok(addr),
        _ => Err(Errno::EAFNOSUPPORT),
    }
}

/// The destination that is meant: the wildcard address is this machine, as in Linux.
fn destination(domain: i32, addr: &Addr) -> Result<SocketAddr> {
    let mut addr = fitting(domain, addr)?;
    if addr.ip().is_unspecified() {
        addr.set_ip(if addr.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    Ok(addr)
}

/// The address for the routing decision.
fn plain(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// How the socket shows an address.
fn shown(domain: i32, addr: SocketAddr) -> Addr {
    Addr::Inet(if domain == AF_INET { addr } else { mapped(addr) })
}

/// How the socket's options want it to be bound.
fn bind_options(common: &Common) -> BindOptions {
    BindOptions {
        reuse_addr: common.reuse_addr.get(),
        reuse_port: common.reuse_port.get(),
        v6_only: common.v6_only.get(),
    }
}

/// The options of the IP layer that both protocols have; `None` if it is not one of them.
fn ip_option(handle: Handle, common: &Common, level: i32, name: i32) -> Option<Result<Value>> {
    let get = |pick: fn(IpOptions) -> u8| {
        Some(netif::with(|s| s.ip_options(handle)).and_then(|o| o.map_err(err)).map(|o| Value::int(pick(o).into())))
    };
    match (level, name) {
        (IPPROTO_IP, ip::TTL) | (IPPROTO_IPV6, ipv6::UNICAST_HOPS) => get(|o| o.hop_limit),
        (IPPROTO_IP, ip::TOS) | (IPPROTO_IPV6, ipv6::TCLASS) => get(|o| o.tos),
        (IPPROTO_IPV6, ipv6::V6ONLY) if common.domain != AF_INET => Some(Ok(Value::int(common.v6_only.get().into()))),
        _ => None,
    }
}

/// Sets one of them.
fn set_ip_option(handle: Handle, common: &Common, level: i32, name: i32, value: &[u8]) -> Option<Result<()>> {
    const DEFAULT_HOPS: u8 = 64;
    let set = |low: i32, standard: u8, change: fn(&mut IpOptions, u8)| {
        Some((|| {
            let value = match option::int(value)? {
                -1 => standard,
                v if v >= low && v <= 255 => v as u8,
                _ => return Err(Errno::EINVAL),
            };
            netif::with(|s| {
                let mut options = s.ip_options(handle)?;
                change(&mut options, value);
                s.set_ip_options(handle, options)
            })?
            .map_err(err)
        })())
    };
    match (level, name) {
        (IPPROTO_IP, ip::TTL) | (IPPROTO_IPV6, ipv6::UNICAST_HOPS) => set(1, DEFAULT_HOPS, |o, v| o.hop_limit = v),
        (IPPROTO_IP, ip::TOS) | (IPPROTO_IPV6, ipv6::TCLASS) => set(0, 0, |o, v| o.tos = v),
        (IPPROTO_IPV6, ipv6::V6ONLY) if common.domain != AF_INET => Some((|| {
            // Not any more when it is bound.
            if netif::with(|s| s.local_addr(handle))?.map_err(err)?.port() != 0 {
                return Err(Errno::EINVAL);
            }
            common.v6_only.set(option::int(value)? != 0);
            Ok(())
        })()),
        _ => None,
    }
}
