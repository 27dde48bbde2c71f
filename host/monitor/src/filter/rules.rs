//! What the frames of one guest may say: its addresses, its declared ports and destinations.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use donjon_abi::boot;
use donjon_abi::manifest::{Egress, Limit};
use donjon_image::Manifest;

use crate::options::RunOptions;

/// TCP's protocol number.
pub(crate) const TCP: u8 = 6;
/// UDP's.
pub(crate) const UDP: u8 = 17;

/// Most destinations and ports that a filter takes: the kernel's version tests them one by one.
pub(crate) const ENTRIES_MAX: usize = 256;

/// Where the guest's IPv4 address comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source4 {
    /// It has none.
    None,
    /// The operator says it.
    Static(Ipv4Addr),
    /// A DHCP server says it; until then the guest may do nothing but ask.
    Dhcp,
}

/// The rules of a filter.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// The guest's Ethernet address.
    pub mac: [u8; 6],
    /// Its IPv4 address.
    pub source4: Source4,
    /// Its IPv4 router; with a static address it may ask for the Ethernet address of this one, of destinations, and of who talks to it.
    pub gateway4: Option<Ipv4Addr>,
    /// Its static IPv6 address. The link-local one follows from `mac`.
    pub source6: Option<Ipv6Addr>,
    /// Addresses that a router announces count too, with the interface identifier that follows from `mac`.
    pub slaac: bool,
    /// Ports on which it may be reached.
    pub listen: Vec<(u8, u16)>,
    /// It may be reached on any port.
    pub listen_any: bool,
    /// Where it may go.
    pub egress: Vec<Egress>,
    /// How fast it may send.
    pub limit: Limit,
    /// How many flows the kernel's filter remembers.
    pub flows: u32,
}

/// As many flows as the guest may have connections: one takes 2 KiB of its memory at the least, buffers and the program's own state counted in. The kernel takes 50 ns and 88 bytes for
/// each of them when the guest starts.
fn flows(memory: u64) -> u32 {
    (memory / 2048).clamp(16 * 1024, 64 * 1024) as u32
}

impl Rules {
    /// From what the image declares, what the guest is told about its network, and what the operator opens.
    pub fn new(manifest: &Manifest, net: &boot::Net, options: &RunOptions) -> Rules {
        let v4 = |a: [u8; 4]| Some(Ipv4Addr::from(a)).filter(|a| !a.is_unspecified());
        let v6 = |a: [u8; 16]| Some(Ipv6Addr::from(a)).filter(|a| !a.is_unspecified());
        let mut egress = manifest.egress.clone();
        if options.egress_any {
            egress.push(Egress { protocol: 0, prefix: 0, port: 0, addr: [0; 16] });
        }
        if !egress.is_empty() {
            // Names are needed by whoever may go anywhere at all.
            let resolvers = net.ipv4_dns.into_iter().filter_map(v4).map(|a| mapped(a.into()));
            let resolvers = resolvers.chain(v6(net.ipv6_dns).map(|a| a.octets()));
            egress.extend(resolvers.map(|addr| Egress { protocol: 0, prefix: 128, port: 53, addr }));
        }
        Rules {
            mac: net.mac,
            source4: match v4(net.ipv4) {
                _ if net.flags & boot::net::DHCP != 0 => Source4::Dhcp,
                Some(a) => Source4::Static(a),
                None => Source4::None,
            },
            gateway4: v4(net.ipv4_gateway),
            source6: v6(net.ipv6),
            slaac: net.flags & boot::net::SLAAC != 0,
            listen: manifest.listen.iter().map(|p| (p.protocol as u8, p.port)).collect(),
            listen_any: options.listen_any,
            egress,
            limit: Limit {
                connections: options.limit_connections.unwrap_or(manifest.limit.connections),
                send: options.limit_send.unwrap_or(manifest.limit.send),
            },
            flows: flows(options.memory.unwrap_or(manifest.memory)),
        }
    }

    /// Whether the guest may send to that destination of its own accord.
    pub fn permits(&self, protocol: u8, to: [u8; 16], port: u16) -> bool {
        self.egress.iter().any(|e| e.reaches(protocol, to, port))
    }

    /// Whether it may by an entry for that one address.
    pub fn names(&self, protocol: u8, to: [u8; 16], port: u16) -> bool {
        self.egress.iter().any(|e| e.prefix == 128 && e.reaches(protocol, to, port))
    }

    /// Whether there is any port at which it may do so.
    pub fn permits_address(&self, to: [u8; 16]) -> bool {
        self.egress.iter().any(|e| Egress { protocol: 0, port: 0, ..*e }.reaches(0, to, 0))
    }

    /// Whether others may reach it on that port.
    pub fn serves(&self, protocol: u8, port: u16) -> bool {
        self.listen_any || self.listen.contains(&(protocol, port))
    }

    /// The interface identifier that follows from the Ethernet address (RFC 4291, appendix A).
    pub fn interface_id(&self) -> [u8; 8] {
        let [a, b, c, d, e, f] = self.mac;
        [a ^ 2, b, c, 0xff, 0xfe, d, e, f]
    }
}

/// An address as in the manifest: IPv4 as ::ffff:a.b.c.d.
pub(crate) fn mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}
