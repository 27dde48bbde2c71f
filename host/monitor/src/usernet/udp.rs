//! UDP: each pair of guest address and destination has a socket of the host, for as long as it is used.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use super::policy::on_link;

/// A pair that has been silent for this long is forgotten, ns (RFC 4787 §4.3 asks for two minutes).
pub(super) const IDLE: u64 = 120_000_000_000;
/// The same for DNS, where a question has one answer.
pub(super) const IDLE_DNS: u64 = 20_000_000_000;
/// Time between two searches for silent pairs, ns.
pub(super) const CHECK: u64 = 2_000_000_000;
/// Most pairs; the one that has been silent longest makes room for a new one.
pub(super) const PAIRS_MAX: usize = 1024;
/// Most peers that are remembered per published port.
const PEERS_MAX: usize = 4096;

/// One pair.
#[derive(Debug)]
pub(super) struct Pair {
    pub socket: OwnedFd,
    pub guest: SocketAddr,
    /// Where the guest has sent to, in its own terms: answers come from there.
    pub remote: SocketAddr,
    pub used: u64,
}

impl Pair {
    /// When it is forgotten.
    pub fn ends(&self) -> u64 {
        self.used + if self.remote.port() == 53 { IDLE_DNS } else { IDLE }
    }
}

/// A published UDP port.
#[derive(Debug)]
pub(super) struct Published {
    pub socket: OwnedFd,
    /// The guest's port.
    pub port: u16,
    /// As the guest sees a peer: its real address.
    peers: HashMap<SocketAddr, SocketAddr>,
}

impl Published {
    pub fn new(socket: OwnedFd, port: u16) -> Published {
        Published { socket, port, peers: HashMap::new() }
    }

    /// How the guest sees `peer`: an address of the host's own is the gateway.
    pub fn present(&mut self, peer: SocketAddr, gateway: IpAddr) -> SocketAddr {
        let shown = SocketAddr::new(presented(peer.ip(), gateway), peer.port());
        if self.peers.len() >= PEERS_MAX {
            self.peers.clear();
        }
        self.peers.insert(shown, peer);
        shown
    }

    /// Who it is that the guest sees as `shown`.
    pub fn real(&self, shown: SocketAddr) -> Option<SocketAddr> {
        self.peers.get(&shown).copied()
    }
}

/// How the guest sees a host address: as it is, if the guest would send an answer to the gateway.
pub(super) fn presented(ip: IpAddr, gateway: IpAddr) -> IpAddr {
    let ip = ip.to_canonical();
    if ip.is_loopback() || ip.is_ipv4() != gateway.is_ipv4() || on_link(ip) { gateway } else { ip }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_behind_the_gateway_is_shown_as_it() {
        let shown = |ip: &str, gateway: &str| presented(ip.parse().unwrap(), gateway.parse().unwrap()).to_string();
        for (ip, seen) in [
            ("127.0.0.1", "10.0.2.2"),
            ("::ffff:9.9.9.9", "9.9.9.9"),
            ("2001:db8::1", "10.0.2.2"),
            // The host may be in a network of the same numbers; the guest would look for these beside itself.
            ("10.0.2.77", "10.0.2.2"),
            ("10.0.2.15", "10.0.2.2"),
            ("10.0.3.77", "10.0.3.77"),
            ("169.254.1.1", "169.254.1.1"),
        ] {
            assert_eq!(shown(ip, "10.0.2.2"), seen, "{ip}");
        }
        for (ip, seen) in [
            ("::1", "fd00::2"),
            ("2001:db8::1", "2001:db8::1"),
            ("fd00::77", "fd00::2"),
            ("fd00:0:0:1::77", "fd00:0:0:1::77"),
            ("fe80::1", "fd00::2"),
            ("9.9.9.9", "fd00::2"),
        ] {
            assert_eq!(shown(ip, "fd00::2"), seen, "{ip}");
        }
    }
}
