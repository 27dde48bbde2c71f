//! Whom the guest sees behind a published UDP port: each peer under an address of its own, to which the guest answers.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// Peers of one generation.
const GENERATION: usize = if cfg!(test) { 8 } else { 4096 };

/// Somebody who has sent to a published port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Peer {
    pub address: SocketAddr,
    /// Which of the host's addresses it was sent to, if the port is published on all of them.
    pub local: Option<IpAddr>,
    /// The number of the listener: several may belong to one port of the guest.
    pub listener: usize,
    /// The guest's port.
    pub port: u16,
}

/// The peers of all ports, in two generations: when the young one is full it becomes the old one, whose peers are forgotten unless they have sent since.
#[derive(Debug, Default)]
pub(super) struct Peers {
    young: Generation,
    old: Generation,
}

/// Both ways to look a peer up.
#[derive(Debug, Default)]
struct Generation {
    real: HashMap<Peer, SocketAddr>,
    /// By the guest's port, and what it sees.
    shown: HashMap<(u16, SocketAddr), Peer>,
}

impl Peers {
    /// The address under which the guest sees `peer`: `like`, with another port if somebody else has that one. Many addresses of this host look like the gateway, and
    /// the port alone is anybody's choice: the answers to one must not go to another.
    pub fn present(&mut self, peer: Peer, like: SocketAddr) -> SocketAddr {
        if let Some(shown) = self.young.real.get(&peer) {
            return *shown;
        }
        if self.young.real.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        let mut shown = self.old.real.get(&peer).copied().unwrap_or(like);
        // There are more ports than peers.
        while self.real(peer.port, shown).is_some_and(|other| other != peer) {
            shown.set_port(shown.port().checked_add(1).unwrap_or(1024));
        }
        self.young.real.insert(peer, shown);
        self.young.shown.insert((peer.port, shown), peer);
        shown
    }

    /// Who it is that the guest sees as `shown` at its `port`.
    pub fn real(&self, port: u16, shown: SocketAddr) -> Option<Peer> {
        let key = (port, shown);
        self.young.shown.get(&key).or_else(|| self.old.shown.get(&key)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(host: u8, port: u16) -> Peer {
        Peer { address: SocketAddr::from(([127, 0, 0, host], port)), local: None, listener: 0, port: 53 }
    }

    fn gateway(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 2, 2], port))
    }

    #[test]
    fn nobody_takes_anothers_address() {
        let mut peers = Peers::default();
        let all = [(1, 4000, 4000), (2, 4000, 4001), (3, 4001, 4002), (1, 65_535, 65_535), (2, 65_535, 1024)];
        for _ in 0..2 {
            for (host, port, shown) in all {
                assert_eq!(peers.present(peer(host, port), gateway(port)), gateway(shown), "{host}:{port}");
            }
        }
        for (host, port, shown) in all {
            assert_eq!(peers.real(53, gateway(shown)), Some(peer(host, port)));
            assert_eq!(peers.real(54, gateway(shown)), None);
        }
        // The same one, by another way in; but to another port of the guest's it looks the same.
        let local = Some([127, 0, 0, 9].into());
        assert_eq!(peers.present(Peer { local, ..peer(1, 4000) }, gateway(4000)), gateway(4003));
        assert_eq!(peers.present(Peer { listener: 1, ..peer(1, 4000) }, gateway(4000)), gateway(4004));
        assert_eq!(peers.present(Peer { port: 54, listener: 2, ..peer(1, 4000) }, gateway(4000)), gateway(4000));
    }

    #[test]
    fn who_is_there_stays_when_others_come() {
        let mut peers = Peers::default();
        let shown = peers.present(peer(1, 4000), gateway(4000));
        let lost = peers.present(peer(1, 5000), gateway(5000));
        for n in 0..1000 {
            peers.present(peer(2, 10_000 + n), gateway(10_000 + n));
            assert_eq!(peers.real(53, shown), Some(peer(1, 4000)), "{n}");
            assert_eq!(peers.present(peer(1, 4000), gateway(4000)), shown);
        }
        for generation in [&peers.young, &peers.old] {
            assert!(generation.real.len() <= GENERATION && generation.shown.len() == generation.real.len());
        }
        assert_eq!(peers.real(53, lost), None);
        assert_eq!(peers.real(53, gateway(10_999)), Some(peer(2, 10_999)));
    }
}
