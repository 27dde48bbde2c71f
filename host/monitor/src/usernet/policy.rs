//! The network that the guest sees, what its addresses mean on the host, and where it may go.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::filter::rules::{Rules, mapped};

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

pub(super) use crate::filter::rules::{TCP, UDP};

/// Where the guest may go. The filter has dropped what may not go anywhere before it came here; a connection is checked once more.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    rules: Rules,
    /// The host's first resolver.
    resolver: IpAddr,
    /// The host's own addresses. What goes there does not pass its firewall, which sees it as one of the host's own programs.
    own: Vec<IpAddr>,
}

impl Policy {
    /// What `rules` allow. Reads which resolver and addresses the host has: in the jail it cannot.
    pub fn new(rules: Rules) -> Policy {
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let resolver = first_resolver(&text).unwrap_or(Ipv4Addr::LOCALHOST.into());
        let own = if rules.egress.is_empty() { Vec::new() } else { super::own::addresses() };
        Policy { rules, resolver, own }
    }

    /// Where a packet to `to` goes on the host, or `None` if it may not go anywhere.
    pub fn translate(&self, protocol: u8, to: SocketAddr) -> Option<SocketAddr> {
        let ip = to.ip().to_canonical();
        if to.port() == 0 || !self.rules.permits(protocol, mapped(ip), to.port()) {
            return None;
        }
        let is = |v4: Ipv4Addr, v6: Ipv6Addr| ip == v4 || ip == v6;
        // As for loopback addresses (`least_prefix`): only a rule that names it means it.
        let own = is(GATEWAY4, GATEWAY6) || self.own.contains(&ip);
        if own && !self.rules.names(protocol, mapped(ip), to.port()) {
            return None;
        }
        if is(GATEWAY4, GATEWAY6) {
            let loopback = if ip.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            return Some(SocketAddr::new(loopback, to.port()));
        }
        if is(DNS4, DNS6) {
            return if to.port() == 53 { Some(SocketAddr::new(self.resolver, 53)) } else { None };
        }
        let nowhere = match ip {
            IpAddr::V4(a) => a.is_loopback() || a.is_multicast() || a.is_broadcast() || a.octets()[0] == 0,
            IpAddr::V6(a) => a.is_loopback() || a.is_multicast() || a.is_unspecified(),
        };
        (!nowhere && !on_link(ip)).then_some(SocketAddr::new(ip, to.port()))
    }

    /// Where a datagram to `to` goes by a rule that says the port. One for all ports would leave no address for those who send to the guest.
    pub fn declared(&self, to: SocketAddr) -> Option<SocketAddr> {
        let says = self.rules.egress.iter().any(|e| e.port != 0 && e.reaches(UDP, mapped(to.ip()), to.port()));
        if says { self.translate(UDP, to) } else { None }
    }
}

/// Whether the guest takes that address for one beside it, which it reaches without the gateway.
pub(super) fn on_link(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(a) => a.octets()[..3] == GATEWAY4.octets()[..3],
        IpAddr::V6(a) => a.is_unicast_link_local() || a.segments()[..4] == GATEWAY6.segments()[..4],
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
    use donjon_abi::manifest::Egress;

    fn policy(egress: &[Egress], egress_any: bool) -> Policy {
        let manifest = donjon_image::Manifest { egress: egress.to_vec(), ..Default::default() };
        let options = crate::options::RunOptions { egress_any, ..Default::default() };
        Policy::new(Rules::new(&manifest, &super::super::Prepared::boot(super::super::Wire::Offload), &options))
    }

    fn rule(protocol: u8, addr: &str, prefix: u8, port: u16) -> Egress {
        Egress { protocol, prefix, port, addr: mapped(addr.parse().unwrap()) }
    }

    fn to(policy: &Policy, s: &str) -> Option<String> {
        policy.translate(TCP, s.parse().unwrap()).map(|a| a.to_string())
    }

    #[test]
    fn nothing_is_allowed_at_first() {
        let p = policy(&[], false);
        for a in ["10.0.2.2:80", "10.0.2.3:53", "1.2.3.4:80", "[fd00::2]:80", "[2001:db8::1]:1", "169.254.169.254:80"] {
            assert_eq!(to(&p, a), None, "{a}");
        }
    }

    #[test]
    fn rules_open_what_they_name() {
        let p = policy(&[rule(TCP, "1.2.3.0", 120, 443), rule(0, "10.0.2.2", 128, 8080)], false);
        assert_eq!(to(&p, "1.2.3.9:443").as_deref(), Some("1.2.3.9:443"));
        assert_eq!(to(&p, "1.2.3.9:80"), None);
        assert_eq!(to(&p, "1.2.4.9:443"), None);
        assert_eq!(to(&p, "[::ffff:1.2.3.9]:443").as_deref(), Some("1.2.3.9:443"));
        assert_eq!(to(&p, "10.0.2.2:8080").as_deref(), Some("127.0.0.1:8080"));
        assert_eq!(to(&p, "10.0.2.2:8081"), None);
        assert!(to(&p, "10.0.2.3:53").is_some());
        let wide = policy(&[rule(TCP, "fd00::2", 128, 80), rule(TCP, "10.0.2.2", 127, 8080)], false);
        assert_eq!(to(&wide, "[fd00::2]:80").as_deref(), Some("[::1]:80"));
        assert_eq!(to(&wide, "10.0.2.2:8080"), None, "two addresses are meant, not the gateway");
        assert_eq!(p.translate(UDP, "1.2.3.9:443".parse().unwrap()), None);
        let declared = |to: &str| p.declared(to.parse().unwrap()).map(|a| a.to_string());
        assert_eq!(declared("10.0.2.2:8080").as_deref(), Some("127.0.0.1:8080"));
        assert_eq!((declared("10.0.2.2:8081"), declared("1.2.3.9:443")), (None, None));
        let all = policy(&[rule(UDP, "10.0.2.2", 128, 0)], true);
        assert_eq!(all.declared("10.0.2.2:8080".parse().unwrap()), None);
    }

    #[test]
    fn any_is_still_not_everything() {
        let p = policy(&[rule(0, "::", 0, 0)], true);
        for a in [
            "127.0.0.1:80",
            "0.0.0.0:80",
            "10.0.2.15:80",
            "10.0.2.77:80",
            // The host's own services, which are for nobody else.
            "10.0.2.2:80",
            "[fd00::2]:80",
            "[::ffff:10.0.2.2]:80",
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
            assert_eq!(to(&p, a), None, "{a}");
        }
        assert_eq!(to(&p, "8.8.8.8:80").as_deref(), Some("8.8.8.8:80"));
        let own = |p: Policy| Policy { own: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()], ..p };
        let p = own(p);
        assert_eq!(
            [to(&p, "192.0.2.1:80"), to(&p, "[::ffff:192.0.2.1]:80"), to(&p, "[2001:db8::1]:80")],
            [None, None, None]
        );
        assert!(to(&p, "192.0.2.2:80").is_some());
        let p = own(policy(&[rule(TCP, "192.0.2.1", 128, 80)], true));
        assert_eq!((to(&p, "192.0.2.1:80").as_deref(), to(&p, "192.0.2.1:81")), (Some("192.0.2.1:80"), None));
        let p = policy(&[rule(TCP, "169.254.169.254", 128, 80)], false);
        assert!(to(&p, "169.254.169.254:80").is_some());
    }

    #[test]
    fn the_hosts_addresses_are_known() {
        // This program's address towards others, or, without a network, the loopback one.
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let to = ["192.0.2.1:9", "127.0.0.1:9"];
        assert!(to.iter().any(|to| socket.connect(to).is_ok()));
        assert!(policy(&[], true).own.contains(&socket.local_addr().unwrap().ip()));
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
