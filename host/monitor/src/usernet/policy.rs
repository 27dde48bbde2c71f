//! The network that the guest sees, what its addresses mean on the host, and where it may go.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use donjon_abi::manifest::Egress;

/// The guest.
pub(crate) const GUEST4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The gateway. Its ports are the ports of the host's loopback address.
pub(crate) const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The resolver: the host's.
pub(crate) const DNS4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Prefix length of the IPv4 network.
pub(crate) const PREFIX4: u8 = 24;
/// The guest.
pub(crate) const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x15);
/// The gateway.
pub(crate) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
/// The resolver.
pub(crate) const DNS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
/// Prefix length of the IPv6 network.
pub(crate) const PREFIX6: u8 = 64;
/// The guest's Ethernet address.
pub(crate) const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// The gateway's.
pub(crate) const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];

/// A transport protocol's number.
pub(super) const TCP: u8 = 6;
/// See [`TCP`].
pub(super) const UDP: u8 = 17;

/// Where the guest may go.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    allowed: Vec<Egress>,
    any: bool,
    resolver: Option<IpAddr>,
}

impl Policy {
    /// `any` allows everything that makes sense, whatever the manifest says.
    pub fn new(allowed: &[Egress], any: bool) -> Policy {
        Policy { allowed: allowed.to_vec(), any, resolver: None }
    }

    /// Where a packet to `to` goes on the host, or `None` if it may not go anywhere.
    pub fn translate(&mut self, protocol: u8, to: SocketAddr) -> Option<SocketAddr> {
        let ip = to.ip().to_canonical();
        if to.port() == 0 || !self.allows(protocol, ip, to.port()) {
            return None;
        }
        let is = |v4: Ipv4Addr, v6: Ipv6Addr| ip == v4 || ip == v6;
        if is(GATEWAY4, GATEWAY6) {
            let loopback = if ip.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            return Some(SocketAddr::new(loopback, to.port()));
        }
        if is(DNS4, DNS6) {
            return if to.port() == 53 { Some(SocketAddr::new(self.resolver()?, 53)) } else { None };
        }
        let outside = match ip {
            IpAddr::V4(a) => {
                !(a.is_loopback()
                    || a.is_multicast()
                    || a.is_broadcast()
                    || a.octets()[0] == 0
                    || a.octets()[..3] == GATEWAY4.octets()[..3])
            }
            IpAddr::V6(a) => {
                !(a.is_loopback()
                    || a.is_multicast()
                    || a.is_unspecified()
                    || a.is_unicast_link_local()
                    || a.segments()[..4] == GATEWAY6.segments()[..4])
            }
        };
        outside.then_some(SocketAddr::new(ip, to.port()))
    }

    fn allows(&self, protocol: u8, ip: IpAddr, port: u16) -> bool {
        // Names are needed by whoever may go anywhere at all.
        if port == 53 && (ip == DNS4 || ip == DNS6) {
            return self.any || !self.allowed.is_empty();
        }
        let octets = match ip {
            IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
            IpAddr::V6(a) => a.octets(),
        };
        // 169.254.169.254 hands out a cloud machine's credentials: only a rule that means it reaches it.
        let link_local = matches!(ip, IpAddr::V4(a) if a.is_link_local());
        let least = if link_local { 96 + 16 } else { 0 };
        (self.any && !link_local) || self.allowed.iter().any(|e| e.prefix >= least && e.allows(protocol, octets, port))
    }

    /// The host's first resolver, read when it is first needed.
    fn resolver(&mut self) -> Option<IpAddr> {
        if self.resolver.is_none() {
            let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
            self.resolver = Some(first_resolver(&text).unwrap_or(Ipv4Addr::LOCALHOST.into()));
        }
        self.resolver
    }
}

/// The first `nameserver` of a resolv.conf(5).
fn first_resolver(text: &str) -> Option<IpAddr> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        // An address may carry a scope that we cannot use.
        if words.next()? == "nameserver" { words.next()?.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(protocol: u8, addr: &str, prefix: u8, port: u16) -> Egress {
        let addr = match addr.parse().unwrap() {
            IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
            IpAddr::V6(a) => a.octets(),
        };
        Egress { protocol, prefix, port, addr }
    }

    fn to(policy: &mut Policy, s: &str) -> Option<String> {
        policy.translate(TCP, s.parse().unwrap()).map(|a| a.to_string())
    }

    #[test]
    fn nothing_is_allowed_at_first() {
        let mut p = Policy::new(&[], false);
        for a in ["10.0.2.2:80", "10.0.2.3:53", "1.2.3.4:80", "[fd00::2]:80", "[2001:db8::1]:1", "169.254.169.254:80"] {
            assert_eq!(to(&mut p, a), None, "{a}");
        }
    }

    #[test]
    fn rules_open_what_they_name() {
        let mut p = Policy::new(&[rule(TCP, "1.2.3.0", 120, 443), rule(0, "10.0.2.2", 128, 8080)], false);
        assert_eq!(to(&mut p, "1.2.3.9:443").as_deref(), Some("1.2.3.9:443"));
        assert_eq!(to(&mut p, "1.2.3.9:80"), None);
        assert_eq!(to(&mut p, "1.2.4.9:443"), None);
        assert_eq!(to(&mut p, "[::ffff:1.2.3.9]:443").as_deref(), Some("1.2.3.9:443"));
        assert_eq!(to(&mut p, "10.0.2.2:8080").as_deref(), Some("127.0.0.1:8080"));
        assert_eq!(to(&mut p, "10.0.2.2:8081"), None);
        assert!(to(&mut p, "10.0.2.3:53").is_some());
        assert_eq!(p.translate(UDP, "1.2.3.9:443".parse().unwrap()), None);
    }

    #[test]
    fn any_is_still_not_everything() {
        let mut p = Policy::new(&[rule(0, "::", 0, 0)], true);
        for a in [
            "127.0.0.1:80",
            "0.0.0.0:80",
            "10.0.2.15:80",
            "10.0.2.77:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "10.0.2.3:80",
            "169.254.169.254:80",
            "[::1]:80",
            "[::]:80",
            "[ff02::1]:80",
            "[fe80::1]:80",
            "[fd00::9]:80",
            "1.2.3.4:0",
        ] {
            assert_eq!(to(&mut p, a), None, "{a}");
        }
        assert_eq!(to(&mut p, "[fd00::2]:80").as_deref(), Some("[::1]:80"));
        assert_eq!(to(&mut p, "8.8.8.8:80").as_deref(), Some("8.8.8.8:80"));
        let mut p = Policy::new(&[rule(TCP, "169.254.169.254", 128, 80)], false);
        assert!(to(&mut p, "169.254.169.254:80").is_some());
    }

    #[test]
    fn resolv_conf_is_read() {
        assert_eq!(
            first_resolver("# c\nsearch x\nnameserver fe80::1%eth0\nnameserver 10.1.1.1\n"),
            Some("10.1.1.1".parse().unwrap())
        );
        assert_eq!(first_resolver("options x\n"), None);
    }
}
