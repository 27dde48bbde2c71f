//! Datagrams with the address of this host's that they came to (`IP_PKTINFO`, ip(7), ipv6(7)), for sockets that are bound to all addresses: the answer must come from that one, or a
//! client that has connected its socket never sees it.

#![expect(unsafe_code, reason = "rustix has neither the option nor the control message")]
// UNSAFETY: calls into libc with pointers to locals, and what the kernel has written there.

use std::io::{Error, Result};
use std::mem::zeroed;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::addr::SocketAddrArg;

/// Room for one control message: its length, level and kind, then [`libc::in_pktinfo`] (interface, address, destination) or [`libc::in6_pktinfo`] (address, interface).
#[repr(C, align(8))]
struct Control([u8; 40]);

const HEADER: usize = size_of::<libc::cmsghdr>();
const _: () = assert!(HEADER == 16 && size_of::<libc::in_pktinfo>() == 12 && size_of::<libc::in6_pktinfo>() == 20);

/// Has [`receive`] tell the address, for a socket of the same family as `like`.
pub(super) fn ask(socket: &OwnedFd, like: IpAddr) -> Result<()> {
    let (level, name) = match like {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    let on: libc::c_int = 1;
    // SAFETY: the value lives for the call, and that is its length.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), size_of_val(&on) as libc::socklen_t)
    };
    if done < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// A datagram's length, its sender, and the address that it came to, if it was asked for.
pub(super) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<(usize, Option<SocketAddr>, Option<IpAddr>)> {
    let mut control = Control([0; _]);
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: zeros are valid values of these.
    let (mut from, mut message) = unsafe { (zeroed::<libc::sockaddr_storage>(), zeroed::<libc::msghdr>()) };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = size_of_val(&from) as libc::socklen_t;
    (message.msg_iov, message.msg_iovlen) = (&raw mut iov, 1);
    (message.msg_control, message.msg_controllen) = ((&raw mut control).cast(), size_of::<Control>());
    // SAFETY: all that it points to lives for the call, with these lengths.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    if n < 0 {
        return Err(Error::last_os_error());
    }
    Ok((n as usize, sender(&from), control.address()))
}

/// Sends a datagram, from this one of the host's addresses if there is one.
pub(super) fn send(socket: &OwnedFd, bytes: &[u8], to: SocketAddr, from: Option<IpAddr>) -> Result<()> {
    let (mut control, len) = Control::new(from);
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: 1. zeros are a valid message, 2. the address lives while the function runs that is called with it, everything else longer, 3. the kernel does not write to any of it.
    let sent = unsafe {
        to.with_sockaddr(|address, address_len| {
            let mut message = zeroed::<libc::msghdr>();
            (message.msg_name, message.msg_namelen) = (address.cast_mut().cast(), address_len);
            (message.msg_iov, message.msg_iovlen) = (&raw mut iov, 1);
            (message.msg_control, message.msg_controllen) = ((&raw mut control).cast(), len);
            libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
        })
    };
    if sent < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

impl Control {
    /// One that says where to send from, and its length.
    fn new(from: Option<IpAddr>) -> (Control, usize) {
        let mut control = Control([0; _]);
        let Some(from) = from else { return (control, 0) };
        let (level, kind, len) = match from {
            IpAddr::V4(a) => {
                control.0[HEADER + 4..HEADER + 8].copy_from_slice(&a.octets());
                (libc::IPPROTO_IP, libc::IP_PKTINFO, HEADER + size_of::<libc::in_pktinfo>())
            }
            IpAddr::V6(a) => {
                control.0[HEADER..HEADER + 16].copy_from_slice(&a.octets());
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, HEADER + size_of::<libc::in6_pktinfo>())
            }
        };
        control.0[..8].copy_from_slice(&len.to_ne_bytes());
        control.0[8..12].copy_from_slice(&level.to_ne_bytes());
        control.0[12..16].copy_from_slice(&kind.to_ne_bytes());
        (control, len.next_multiple_of(8))
    }

    /// The address that is in it; never a group's, which nobody can send from.
    fn address(&self) -> Option<IpAddr> {
        let (header, data) = self.0.split_at(HEADER);
        let word = |at: usize| Some(i32::from_ne_bytes(*header.get(at..)?.first_chunk()?));
        let address: IpAddr = match (word(8)?, word(12)?) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => Ipv4Addr::from(*data.get(4..)?.first_chunk::<4>()?).into(),
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => Ipv6Addr::from(*data.first_chunk::<16>()?).into(),
            _ => return None,
        };
        (!address.is_multicast() && !address.is_unspecified()).then_some(address)
    }
}

fn sender(from: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(from.ss_family) {
        libc::AF_INET => {
            // SAFETY: 1. the kernel says that it is one, 2. it is not longer, nor aligned otherwise.
            let a = unsafe { &*(&raw const *from).cast::<libc::sockaddr_in>() };
            Some(SocketAddr::from((a.sin_addr.s_addr.to_ne_bytes(), u16::from_be(a.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let a = unsafe { &*(&raw const *from).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(a.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(a.sin6_port), a.sin6_flowinfo, a.sin6_scope_id).into())
        }
        _ => None,
    }
}
