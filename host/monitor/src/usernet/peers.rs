//! Whom the guest sees behind a published UDP port: each peer under an address of its own, to which the guest answers.

use std::collections::HashMap;
use std::net::SocketAddr;

/// Peers of one generation.
const GENERATION: usize = if cfg!(test) { 8 } else { 4096 };

/// The peers of a port, in two generations: when the young one is full it becomes the old one, whose peers are forgotten unless they have sent since.
#[derive(Debug, Default)]
pub(super) struct Peers {
    young: Generation,
    old: Generation,
}

/// Both ways to look a peer up.
#[derive(Debug, Default)]
struct Generation {
    real: HashMap<SocketAddr, SocketAddr>,
    shown: HashMap<SocketAddr, SocketAddr>,
}

impl Peers {
    /// The address under which the guest sees `real`: `like`, with another port if somebody else has that one. Many addresses of this host look like the gateway, and
    /// the port alone is anybody's choice: the answers to one must not go to another.
    pub fn present(&mut self, real: SocketAddr, like: SocketAddr) -> SocketAddr {
        if let Some(shown) = self.young.real.get(&real) {
            return *shown;
        }
        if self.young.real.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        let mut shown = self.old.real.get(&real).copied().unwrap_or(like);
        // There are more ports than peers.
        while self.real(shown).is_some_and(|other| other != real) {
            shown.set_port(shown.port().checked_add(1).unwrap_or(1024));
        }
        self.young.real.insert(real, shown);
        self.young.shown.insert(shown, real);
        shown
    }

    /// Who it is that the guest sees as `shown`.
    pub fn real(&self, shown: SocketAddr) -> Option<SocketAddr> {
        self.young.shown.get(&shown).or_else(|| self.old.shown.get(&shown)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, host], port))
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
            assert_eq!(peers.real(gateway(shown)), Some(peer(host, port)));
        }
    }

    #[test]
    fn who_is_there_stays_when_others_come() {
        let mut peers = Peers::default();
        let shown = peers.present(peer(1, 4000), gateway(4000));
        let lost = peers.present(peer(1, 5000), gateway(5000));
        for n in 0..1000 {
            peers.present(peer(2, 10_000 + n), gateway(10_000 + n));
            assert_eq!(peers.real(shown), Some(peer(1, 4000)), "{n}");
            assert_eq!(peers.present(peer(1, 4000), gateway(4000)), shown);
        }
        for generation in [&peers.young, &peers.old] {
            assert!(generation.real.len() <= GENERATION && generation.shown.len() == generation.real.len());
        }
        assert_eq!(peers.real(lost), None);
        assert_eq!(peers.real(gateway(10_999)), Some(peer(2, 10_999)));
    }
}
