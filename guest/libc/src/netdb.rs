//! Names of hosts and interfaces: `getaddrinfo`, `getnameinfo`, `gethostname`, `getifaddrs`.

#![expect(unsafe_code, reason = "C functions")]
// UNSAFETY: C callers' pointers; see `door`. Lists are made of boxes that the matching `free…` takes apart.

use crate::door::{bytes, bytes_mut, path, put, unit};
use crate::errno::set;
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::ffi::{c_char, c_int, c_uint, c_void};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::ptr::null_mut;
use donjon_abi::manifest::{Tag, records};
use donjon_os::dns::{self, Failure, Family};
use donjon_os::errno::{Errno, Result};
use donjon_os::socket::Addr;
use donjon_os::socket::addr::STORAGE;
use donjon_os::{fd, netif};
use libc::{addrinfo, size_t, sockaddr, socklen_t};

/// What an `addrinfo` in a list really is: the address and the name lie behind it.
#[repr(C)]
struct Entry {
    info: addrinfo,
    address: Aligned,
    name: [c_char; 256],
}

/// Bytes with the alignment of every `sockaddr`.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Aligned([u8; STORAGE]);

struct Service {
    kind: c_int,
    protocol: c_int,
}

const STREAM: Service = Service { kind: libc::SOCK_STREAM, protocol: libc::IPPROTO_TCP };
const DATAGRAM: Service = Service { kind: libc::SOCK_DGRAM, protocol: libc::IPPROTO_UDP };

/// The services that are known by name.
const SERVICES: [(&[u8], u16); 12] = [
    (b"http", 80),
    (b"https", 443),
    (b"domain", 53),
    (b"ftp", 21),
    (b"ssh", 22),
    (b"telnet", 23),
    (b"smtp", 25),
    (b"ntp", 123),
    (b"imap", 143),
    (b"ldap", 389),
    (b"imaps", 993),
    (b"postgresql", 5432),
];

/// A literal of the other family (not in the `libc` crate).
const EAI_ADDRFAMILY: c_int = -9;

type Lookup<T> = core::result::Result<T, c_int>;

/// Literal IPv4 and IPv6 addresses, the latter with a scope as in `fe80::1%eth0`.
fn literal(host: &str) -> Option<(IpAddr, u32)> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Some((ip, 0));
    }
    let (ip, scope) = host.split_once('%')?;
    let ip = ip.parse::<Ipv6Addr>().ok()?;
    let index = scope.parse().ok().or_else(|| index_of(scope.as_bytes()))?;
    Some((IpAddr::V6(ip), index))
}

fn port(service: Option<&[u8]>, flags: c_int) -> Lookup<u16> {
    let Some(service) = service.filter(|s| !s.is_empty()) else { return Ok(0) };
    if let Some(port) = core::str::from_utf8(service).ok().and_then(|s| s.parse().ok()) {
        return Ok(port);
    }
    if flags & libc::AI_NUMERICSERV != 0 {
        return Err(libc::EAI_NONAME);
    }
    SERVICES.iter().find(|(n, _)| *n == service).map(|(_, p)| *p).ok_or(libc::EAI_SERVICE)
}

fn failure(f: Failure) -> c_int {
    match f {
        Failure::NoName => libc::EAI_NONAME,
        Failure::NoData => libc::EAI_NODATA,
        Failure::Again => libc::EAI_AGAIN,
        Failure::Broken => libc::EAI_FAIL,
        Failure::System(e) => {
            set(e);
            libc::EAI_SYSTEM
        }
    }
}

fn look_up(host: Option<&[u8]>, service: Option<&[u8]>, hints: &addrinfo) -> Lookup<*mut addrinfo> {
    const KNOWN: c_int = libc::AI_PASSIVE
        | libc::AI_CANONNAME
        | libc::AI_NUMERICHOST
        | libc::AI_V4MAPPED
        | libc::AI_ALL
        | libc::AI_ADDRCONFIG
        | libc::AI_NUMERICSERV;
    let flags = hints.ai_flags;
    if flags & !KNOWN != 0 || (flags & libc::AI_CANONNAME != 0 && host.is_none()) {
        return Err(libc::EAI_BADFLAGS);
    }
    if host.is_none() && service.is_none() {
        return Err(libc::EAI_NONAME);
    }
    let family = match hints.ai_family {
        libc::AF_UNSPEC => Family::Any,
        libc::AF_INET => Family::V4,
        libc::AF_INET6 => Family::V6,
        _ => return Err(libc::EAI_FAMILY),
    };
    let services: &[Service] = match (hints.ai_socktype, hints.ai_protocol) {
        (0, 0) => &[STREAM, DATAGRAM],
        (libc::SOCK_STREAM, 0 | libc::IPPROTO_TCP) | (0, libc::IPPROTO_TCP) => &[STREAM],
        (libc::SOCK_DGRAM, 0 | libc::IPPROTO_UDP) | (0, libc::IPPROTO_UDP) => &[DATAGRAM],
        _ => return Err(libc::EAI_SOCKTYPE),
    };
    let port = port(service, flags)?;
    let wants = |ip: &IpAddr| match family {
        Family::Any => true,
        Family::V4 => ip.is_ipv4(),
        Family::V6 => ip.is_ipv6(),
    };
    let mut scope = 0;
    let mut addresses: Vec<IpAddr> = match host {
        None if flags & libc::AI_PASSIVE != 0 => {
            [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)].into()
        }
        None => [IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)].into(),
        Some(host) => match core::str::from_utf8(host).ok().and_then(literal) {
            Some((ip, index)) => {
                scope = index;
                match (ip, family) {
                    (IpAddr::V4(v4), Family::V6) if flags & libc::AI_V4MAPPED != 0 => {
                        [IpAddr::V6(v4.to_ipv6_mapped())].into()
                    }
                    (IpAddr::V4(_), Family::V6) | (IpAddr::V6(_), Family::V4) => {
                        return Err(EAI_ADDRFAMILY);
                    }
                    _ => [ip].into(),
                }
            }
            None if flags & libc::AI_NUMERICHOST != 0 => return Err(libc::EAI_NONAME),
            None => match dns::resolve(host, family) {
                Err(Failure::NoData) if family == Family::V6 && flags & libc::AI_V4MAPPED != 0 => {
                    let v4 = dns::resolve(host, Family::V4).map_err(failure)?;
                    v4.into_iter().map(|ip| IpAddr::V6(map(ip))).collect()
                }
                done => done.map_err(failure)?,
            },
        },
    };
    addresses.retain(wants);
    if addresses.is_empty() {
        return Err(libc::EAI_NONAME);
    }
    let canonical = host.filter(|_| flags & libc::AI_CANONNAME != 0);
    let mut head: *mut addrinfo = null_mut();
    for (i, ip) in addresses.iter().enumerate().rev() {
        for (j, service) in services.iter().enumerate().rev() {
            if fd::headroom().is_err() {
                // SAFETY: the list was made here.
                unsafe { freeaddrinfo(head) };
                return Err(libc::EAI_MEMORY);
            }
            let name = canonical.filter(|_| i == 0 && j == 0);
            head = entry(SocketAddr::new(*ip, port), scope, service, name, head);
        }
    }
    Ok(head)
}

fn map(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn entry(
    mut address: SocketAddr,
    scope: u32,
    service: &Service,
    name: Option<&[u8]>,
    next: *mut addrinfo,
) -> *mut addrinfo {
    if let SocketAddr::V6(v6) = &mut address {
        v6.set_scope_id(scope);
    }
    // SAFETY: all zeros is a valid `addrinfo`.
    let info: addrinfo = unsafe { core::mem::zeroed() };
    let mut entry = Box::new(Entry { info, address: Aligned([0; STORAGE]), name: [0; 256] });
    let len = Addr::Inet(address).encode(&mut entry.address.0);
    entry.info.ai_family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    entry.info.ai_socktype = service.kind;
    entry.info.ai_protocol = service.protocol;
    entry.info.ai_addrlen = len as socklen_t;
    entry.info.ai_next = next;
    let raw = Box::into_raw(entry);
    // SAFETY: `raw` is a live, exclusively owned entry; the pointers lead into the same allocation.
    unsafe {
        (*raw).info.ai_addr = (&raw mut (*raw).address).cast();
        if let Some(name) = name {
            let to = &mut (*raw).name;
            for (to, from) in to[..255].iter_mut().zip(name) {
                *to = *from as c_char;
            }
            (*raw).info.ai_canonname = (&raw mut (*raw).name).cast();
        }
    }
    raw.cast()
}

/// `getaddrinfo(3)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn getaddrinfo(
    host: *const c_char,
    service: *const c_char,
    hints: *const addrinfo,
    out: *mut *mut addrinfo,
) -> c_int {
    // SAFETY: all zeros is a valid `addrinfo`.
    let mut defaults: addrinfo = unsafe { core::mem::zeroed() };
    // What POSIX says for null hints, as glibc has it.
    defaults.ai_flags = libc::AI_V4MAPPED | libc::AI_ADDRCONFIG;
    // SAFETY: by contract.
    let hints = unsafe { hints.as_ref() }.unwrap_or(&defaults);
    // SAFETY: by contract; null is none.
    let (host, service) = unsafe { (path(host).ok(), path(service).ok()) };
    match look_up(host, service, hints) {
        Ok(list) => {
            // SAFETY: by contract.
            unsafe { out.write(list) };
            0
        }
        Err(e) => e,
    }
}

/// `freeaddrinfo(3)`.
///
/// # Safety
/// As in C: a list of `getaddrinfo`, given back once.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn freeaddrinfo(list: *mut addrinfo) {
    let mut at = list;
    while !at.is_null() {
        // SAFETY: by contract: each element was made by `entry`.
        let entry = unsafe { Box::from_raw(at.cast::<Entry>()) };
        at = entry.info.ai_next;
    }
}

/// `gnu_get_libc_version(3)`: std asks before it works around a resolver bug of glibc before 2.26.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn gnu_get_libc_version() -> *const c_char {
    c"2.36".as_ptr()
}

/// `gai_strerror(3)`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn gai_strerror(error: c_int) -> *const c_char {
    match error {
        libc::EAI_BADFLAGS => c"Bad value for ai_flags",
        libc::EAI_NONAME => c"Name or service not known",
        libc::EAI_AGAIN => c"Temporary failure in name resolution",
        libc::EAI_FAIL => c"Non-recoverable failure in name resolution",
        libc::EAI_NODATA => c"No address associated with hostname",
        libc::EAI_FAMILY => c"ai_family not supported",
        libc::EAI_SOCKTYPE => c"ai_socktype not supported",
        libc::EAI_SERVICE => c"Servname not supported for ai_socktype",
        EAI_ADDRFAMILY => c"Address family for hostname not supported",
        libc::EAI_MEMORY => c"Memory allocation failure",
        libc::EAI_SYSTEM => c"System error",
        libc::EAI_OVERFLOW => c"Argument buffer overflow",
        _ => c"Unknown error",
    }
    .as_ptr()
}

/// `res_init`: the configuration is read for each lookup anyway.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn __res_init() -> c_int {
    0
}

/// Writes text and its NUL.
unsafe fn give_text(text: &str, out: *mut c_char, room: usize) -> Lookup<()> {
    if out.is_null() || room == 0 {
        return Ok(());
    }
    if text.len() + 1 > room {
        return Err(libc::EAI_OVERFLOW);
    }
    // SAFETY: by contract of the callers: `room` bytes.
    let out = unsafe { core::slice::from_raw_parts_mut(out.cast::<u8>(), room) };
    out[..text.len()].copy_from_slice(text.as_bytes());
    out[text.len()] = 0;
    Ok(())
}

/// `getnameinfo(3)`: numeric; there is no reverse lookup.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn getnameinfo(
    addr: *const sockaddr,
    addr_len: socklen_t,
    host: *mut c_char,
    host_len: socklen_t,
    service: *mut c_char,
    service_len: socklen_t,
    flags: c_int,
) -> c_int {
    let attempt = || -> Lookup<()> {
        // SAFETY: by contract.
        let raw = unsafe { bytes(addr.cast::<c_void>(), addr_len as usize) }.map_err(|_| libc::EAI_FAMILY)?;
        let Ok(Addr::Inet(address)) = Addr::parse(raw) else { return Err(libc::EAI_FAMILY) };
        let local = address.ip().is_loopback() && flags & libc::NI_NUMERICHOST == 0;
        if !host.is_null() && flags & libc::NI_NAMEREQD != 0 && !local {
            return Err(libc::EAI_NONAME);
        }
        let text = if local { "localhost".into() } else { format!("{}", address.ip()) };
        let port = address.port();
        let named = SERVICES.iter().find(|(_, p)| *p == port && flags & libc::NI_NUMERICSERV == 0);
        // SAFETY: by contract.
        unsafe {
            give_text(&text, host, host_len as usize)?;
            match named.and_then(|(n, _)| core::str::from_utf8(n).ok()) {
                Some(name) => give_text(name, service, service_len as usize),
                None => give_text(&format!("{port}"), service, service_len as usize),
            }
        }
    };
    attempt().map_or_else(|e| e, |()| 0)
}

/// The name of the image, or `donjon`.
pub fn host_name() -> &'static [u8] {
    let manifest = donjon_base::bytes(donjon_base::boot().manifest);
    let name = records(manifest).filter_map(core::result::Result::ok).find(|(tag, _)| *tag == Tag::Name);
    name.map_or(b"donjon", |(_, name)| &name[..name.len().min(64)])
}

/// `gethostname(2)`: the image's name.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn gethostname(out: *mut c_char, len: size_t) -> c_int {
    let name = host_name();
    // SAFETY: by contract.
    unit(unsafe { bytes_mut(out.cast(), len) }.and_then(|out| {
        if name.len() + 1 > out.len() {
            return Err(Errno::ENAMETOOLONG);
        }
        out[..name.len()].copy_from_slice(name);
        out[name.len()] = 0;
        Ok(())
    }))
}

const INTERFACES: [(&core::ffi::CStr, u32); 2] = [(c"lo", 1), (c"eth0", 2)];

fn present(index: u32) -> bool {
    index == 1 || (index == 2 && donjon_base::boot().flags & donjon_abi::boot::flags::NET != 0)
}

fn index_of(name: &[u8]) -> Option<u32> {
    INTERFACES.iter().find(|(n, i)| n.to_bytes() == name && present(*i)).map(|(_, i)| *i)
}

/// `if_nametoindex(3)`.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn if_nametoindex(name: *const c_char) -> c_uint {
    // SAFETY: by contract.
    match unsafe { path(name) }.ok().and_then(index_of) {
        Some(index) => index,
        None => {
            set(Errno::ENODEV);
            0
        }
    }
}

/// `if_indextoname(3)`.
///
/// # Safety
/// As in C: room for `IF_NAMESIZE` bytes.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn if_indextoname(index: c_uint, out: *mut c_char) -> *mut c_char {
    match INTERFACES.iter().find(|(_, i)| *i == index && present(*i)) {
        Some((name, _)) => {
            let name = name.to_bytes_with_nul();
            // SAFETY: by contract; the names are short.
            unsafe { core::ptr::copy_nonoverlapping(name.as_ptr(), out.cast(), name.len()) };
            out
        }
        None => {
            set(Errno::ENXIO);
            null_mut()
        }
    }
}

/// What a `struct ifaddrs` in a list really is.
#[repr(C)]
struct Interface {
    info: libc::ifaddrs,
    address: Aligned,
    mask: Aligned,
}

fn mask(ip: IpAddr, prefix: u8) -> IpAddr {
    match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0))),
    }
}

/// `getifaddrs(3)`: the addresses of `lo` and `eth0`. Starts the network, as only then are there any.
///
/// # Safety
/// As in C.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn getifaddrs(out: *mut *mut libc::ifaddrs) -> c_int {
    unit((|| -> Result<()> {
        netif::start()?;
        netif::await_configuration();
        let mut all: Vec<(u32, IpAddr, u8)> = Vec::new();
        all.push((1, Ipv4Addr::LOCALHOST.into(), 8));
        all.push((1, Ipv6Addr::LOCALHOST.into(), 128));
        all.extend(netif::addresses().iter().map(|a| (2, a.address, a.prefix)));
        let mut head: *mut libc::ifaddrs = null_mut();
        for (index, ip, prefix) in all.into_iter().rev() {
            fd::headroom()?;
            // SAFETY: all zeros is a valid `ifaddrs`.
            let info: libc::ifaddrs = unsafe { core::mem::zeroed() };
            let mut i = Box::new(Interface { info, address: Aligned([0; STORAGE]), mask: Aligned([0; STORAGE]) });
            let mut address = SocketAddr::new(ip, 0);
            if let SocketAddr::V6(v6) = &mut address
                && v6.ip().is_unicast_link_local()
            {
                v6.set_scope_id(index);
            }
            Addr::Inet(address).encode(&mut i.address.0);
            Addr::Inet(SocketAddr::new(mask(ip, prefix), 0)).encode(&mut i.mask.0);
            let name = if index == 1 { c"lo" } else { c"eth0" };
            i.info.ifa_name = name.as_ptr().cast_mut();
            let kind = if index == 1 { libc::IFF_LOOPBACK } else { libc::IFF_BROADCAST };
            i.info.ifa_flags = (libc::IFF_UP | libc::IFF_RUNNING | kind) as c_uint;
            i.info.ifa_next = head;
            let raw = Box::into_raw(i);
            // SAFETY: `raw` is live and exclusively owned; the pointers lead into the same allocation.
            unsafe {
                (*raw).info.ifa_addr = (&raw mut (*raw).address).cast();
                (*raw).info.ifa_netmask = (&raw mut (*raw).mask).cast();
            }
            head = raw.cast();
        }
        // SAFETY: by contract.
        unsafe { put(out, head) }
    })())
}

/// `freeifaddrs(3)`.
///
/// # Safety
/// As in C: a list of `getifaddrs`, given back once.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn freeifaddrs(list: *mut libc::ifaddrs) {
    let mut at = list;
    while !at.is_null() {
        // SAFETY: by contract: each element was made by `getifaddrs`.
        let i = unsafe { Box::from_raw(at.cast::<Interface>()) };
        at = i.info.ifa_next;
    }
}
