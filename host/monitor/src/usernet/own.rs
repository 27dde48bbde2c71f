//! The host's own addresses.

#![expect(unsafe_code, reason = "getifaddrs")]
// UNSAFETY: reads a list of the C library's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Those that its interfaces have now; none if the host does not say.
pub(super) fn addresses() -> Vec<IpAddr> {
    let (mut list, mut found) = (std::ptr::null_mut(), Vec::new());
    // SAFETY: the pointer is written to.
    if unsafe { libc::getifaddrs(&raw mut list) } < 0 {
        return found;
    }
    let mut at = list;
    // SAFETY: an entry of the list, or null at its end; it is freed below.
    while let Some(entry) = unsafe { at.as_ref() } {
        // SAFETY: the entry's address, or null.
        let family = unsafe { entry.ifa_addr.as_ref() }.map(|a| libc::c_int::from(a.sa_family));
        match family {
            // SAFETY: the family says what it is.
            Some(libc::AF_INET) => found.push(IpAddr::V4(Ipv4Addr::from(unsafe {
                (*entry.ifa_addr.cast::<libc::sockaddr_in>()).sin_addr.s_addr.to_ne_bytes()
            }))),
            // SAFETY: as above.
            Some(libc::AF_INET6) => found.push(IpAddr::V6(Ipv6Addr::from(unsafe {
                (*entry.ifa_addr.cast::<libc::sockaddr_in6>()).sin6_addr.s6_addr
            }))),
            _ => {}
        }
        at = entry.ifa_next;
    }
    // SAFETY: it came from `getifaddrs`, and nothing of it is kept.
    unsafe { libc::freeifaddrs(list) };
    found
}
