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
#[derive(Debug)]
pub(super) struct Peers {
    young: Generation,
    old: Generation,
    /// The next port for a peer that is not shown with its own. It counts on: a search that began at the peer's own port would pass all who have come with the same one.
    next: u16,
}

impl Default for Peers {
    fn default() -> Self {
        Peers { young: Generation::default(), old: Generation::default(), next: PORTS }
    }
}

/// The first of these ports; there are more than peers.
const PORTS: u16 = 1024;

/// Both ways to look a peer up.
#[derive(Debug, Default)]
struct Generation {
    real: HashMap<Peer, SocketAddr>,
    /// By the guest's port, and what it sees.
    shown: HashMap<(u16, SocketAddr), Peer>,
}

impl Peers {
    /// The address under which the guest sees `peer`: `like`, with another port if somebody else has that one. Many addresses of this host look like the gateway, and
    /// the port alone is anybody's choice: the answers to one must not go to another. `declared` says where the guest's own datagrams to an address go, which must not go to a
    /// peer either. `None` if there is no address left.
    pub fn present(
        &mut self,
        peer: Peer,
        like: SocketAddr,
        declared: impl Fn(SocketAddr) -> Option<SocketAddr>,
    ) -> Option<SocketAddr> {
        if let Some(shown) = self.young.real.get(&peer) {
            return Some(*shown);
        }
        if self.young.real.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        let mut shown = self.old.real.get(&peer).copied().unwrap_or(like);
        let mut tries = PORTS..=u16::MAX;
        while self.real(peer.port, shown).is_some_and(|other| other != peer)
            || declared(shown).is_some_and(|other| other != peer.address)
        {
            tries.next()?;
            shown.set_port(self.next);
            self.next = self.next.checked_add(1).unwrap_or(PORTS);
        }
        self.young.real.insert(peer, shown);
        self.young.shown.insert((peer.port, shown), peer);
        Some(shown)
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

    fn present(peers: &mut Peers, peer: Peer, like: SocketAddr) -> SocketAddr {
        peers.present(peer, like, |_| None).unwrap()
    }

    #[test]
    fn nobody_takes_anothers_address() {
        let mut peers = Peers::default();
        let all = [(1, 4000, 4000), (2, 4000, 1024), (3, 1024, 1025), (1, 65_535, 65_535), (2, 65_535, 1026)];
        for _ in 0..2 {
            for (host, port, shown) in all {
                assert_eq!(present(&mut peers, peer(host, port), gateway(port)), gateway(shown), "{host}:{port}");
            }
        }
        for (host, port, shown) in all {
            assert_eq!(peers.real(53, gateway(shown)), Some(peer(host, port)));
            assert_eq!(peers.real(54, gateway(shown)), None);
        }
        // The same one, by another way in; but to another port of the guest's it looks the same.
        let local = Some([127, 0, 0, 9].into());
        let like = gateway(4000);
        assert_eq!(present(&mut peers, Peer { local, ..peer(1, 4000) }, like), gateway(1027));
        assert_eq!(present(&mut peers, Peer { listener: 1, ..peer(1, 4000) }, like), gateway(1028));
        assert_eq!(present(&mut peers, Peer { port: 54, listener: 2, ..peer(1, 4000) }, like), like);
    }

    #[test]
    fn nobody_takes_a_declared_destinations_address() {
        let mut peers = Peers::default();
        let service = peer(1, 4000).address;
        let declared = |to: SocketAddr| match to.port() {
            4000 => Some(service),
            1024 => Some(SocketAddr::from(([127, 0, 0, 1], 1024))),
            _ => None,
        };
        assert_eq!(peers.present(peer(2, 4000), gateway(4000), declared), Some(gateway(1025)));
        assert_eq!(peers.present(peer(1, 4000), gateway(4000), declared), Some(gateway(4000)), "it is the same one");
        assert_eq!(peers.present(peer(3, 5000), gateway(5000), |_| Some(service)), None);
        assert_eq!(peers.real(53, gateway(5000)), None);
    }

    #[test]
    fn who_is_there_stays_when_others_come() {
        let mut peers = Peers::default();
        let shown = present(&mut peers, peer(1, 4000), gateway(4000));
        let lost = present(&mut peers, peer(1, 5000), gateway(5000));
        for n in 0..1000 {
            present(&mut peers, peer(2, 10_000 + n), gateway(10_000 + n));
            assert_eq!(peers.real(53, shown), Some(peer(1, 4000)), "{n}");
            assert_eq!(present(&mut peers, peer(1, 4000), gateway(4000)), shown);
        }
        for generation in [&peers.young, &peers.old] {
            assert!(generation.real.len() <= GENERATION && generation.shown.len() == generation.real.len());
        }
        assert_eq!(peers.real(53, lost), None);
        assert_eq!(peers.real(53, gateway(10_999)), Some(peer(2, 10_999)));
    }
}
