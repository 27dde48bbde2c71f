//! UDP: each pair of guest address and destination has a socket of the host, for as long as it is used.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

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

/// How the guest sees a host address.
pub(super) fn presented(ip: IpAddr, gateway: IpAddr) -> IpAddr {
    let ip = ip.to_canonical();
    if ip.is_loopback() || ip.is_ipv4() != gateway.is_ipv4() { gateway } else { ip }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_shown_as_the_gateway() {
        let gateway = "10.0.2.2".parse().unwrap();
        assert_eq!(presented("127.0.0.1".parse().unwrap(), gateway), gateway);
        assert_eq!(presented("::ffff:9.9.9.9".parse().unwrap(), gateway), "9.9.9.9".parse::<IpAddr>().unwrap());
        assert_eq!(presented("2001:db8::1".parse().unwrap(), gateway), gateway);
    }
}
