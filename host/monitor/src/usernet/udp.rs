//! UDP: each pair of guest address and destination has a socket of the host, for as long as it is used.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use donjon_net::RecvMode;
use rustix::io::Errno;
use rustix::net::SocketType;

use super::peers::Peer;
use super::policy::{GATEWAY4, GATEWAY6, GUEST4, GUEST6, UDP, on_link};
use super::{Source, UserNet, pktinfo, socket};
use crate::reactor::{Interest, Reactor};

/// A pair that has been silent for this long is forgotten, ns (RFC 4787 §4.3 asks for two minutes).
pub(super) const IDLE: u64 = 120_000_000_000;
/// The same for DNS, where a question has one answer.
pub(super) const IDLE_DNS: u64 = 20_000_000_000;
/// Time between two searches for silent pairs, ns.
pub(super) const CHECK: u64 = 2_000_000_000;
/// Most pairs; the one that has been silent longest makes room for a new one.
pub(super) const PAIRS_MAX: usize = 1024;

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
}

/// How the guest sees a host address: as it is, if the guest would send an answer to the gateway.
pub(super) fn presented(ip: IpAddr, gateway: IpAddr) -> IpAddr {
    let ip = ip.to_canonical();
    // The filter takes answers to link-local addresses for attempts to reach a cloud's metadata.
    let link_local = matches!(ip, IpAddr::V4(a) if a.is_link_local());
    if ip.is_loopback() || ip.is_ipv4() != gateway.is_ipv4() || link_local || on_link(ip) { gateway } else { ip }
}

/// At work.
impl UserNet {
    /// Datagrams of the guest.
    pub(super) fn datagrams(&mut self, reactor: &Reactor) {
        while let Ok(d) = self.stack.recv_from(self.any_udp, &mut [&mut self.scratch], RecvMode::Take) {
            if let Some(peer) = self.peers.real(d.from.port(), d.to) {
                if let Some((_, listener)) = self.udp_listeners.get(peer.listener) {
                    let _ = pktinfo::send(&listener.socket, &self.scratch[..d.copied], peer.address, peer.local);
                }
                continue;
            }
            let number = match self.pairs.get(&(d.from, d.to)) {
                Some(number) => *number,
                None => match self.new_pair(d.from, d.to, reactor) {
                    Some(number) => number,
                    None => continue,
                },
            };
            let now = self.now();
            if let Some(Source::Pair(pair)) = self.sources.get_mut(number) {
                pair.used = now;
                // A full socket or an unreachable peer loses the datagram, as networks do.
                let _ = rustix::net::send(&pair.socket, &self.scratch[..d.copied], rustix::net::SendFlags::NOSIGNAL);
            }
        }
    }

    fn new_pair(&mut self, guest: SocketAddr, remote: SocketAddr, reactor: &Reactor) -> Option<u64> {
        let to = self.policy.translate(UDP, remote)?;
        if self.pairs.len() >= PAIRS_MAX || self.sources.len() >= self.sources_max {
            let oldest = self.sources.iter().filter_map(|(n, s)| match s {
                Source::Pair(p) => Some((p.used, n)),
                _ => None,
            });
            let (_, oldest) = oldest.min()?;
            self.remove_pair(oldest);
        }
        let socket = socket(to, SocketType::DGRAM).ok()?;
        rustix::net::connect(&socket, &to).ok()?;
        let used = self.now();
        let number = self.sources.insert_with(|_| Source::Pair(Pair { socket, guest, remote, used }));
        self.pairs.insert((guest, remote), number);
        let Some(Source::Pair(pair)) = self.sources.get_mut(number) else { return None };
        if reactor.add(&pair.socket, self.base + number, Interest::READ).is_err() {
            self.remove_pair(number);
            return None;
        }
        Some(number)
    }

    fn remove_pair(&mut self, number: u64) {
        if let Some(Source::Pair(pair)) = self.sources.remove(number) {
            self.pairs.remove(&(pair.guest, pair.remote));
        }
    }

    pub(super) fn forget_pairs(&mut self, now: u64) {
        let ended: Vec<u64> = self
            .sources
            .iter()
            .filter_map(|(n, s)| matches!(s, Source::Pair(p) if p.ends() <= now).then_some(n))
            .collect();
        for number in ended {
            self.remove_pair(number);
        }
    }

    /// Datagrams from a remote to the guest.
    pub(super) fn answers(&mut self, number: u64, _reactor: &Reactor) {
        let now = self.now();
        let Some(Source::Pair(pair)) = self.sources.get_mut(number) else { return };
        for _ in 0..64 {
            match rustix::net::recv(&pair.socket, &mut *self.scratch, rustix::net::RecvFlags::empty()) {
                Ok((n, _)) => {
                    pair.used = now;
                    let _ =
                        self.stack.send_to(self.any_udp, &[&self.scratch[..n]], Some(pair.guest), Some(pair.remote));
                }
                // An ICMP error (refused) is taken away by the call; the next may succeed.
                Err(Errno::INTR | Errno::CONNREFUSED) => {}
                Err(_) => return,
            }
        }
    }

    /// Datagrams to a published port.
    pub(super) fn published_datagrams(&mut self, index: usize) {
        let Some((_, listener)) = self.udp_listeners.get(index) else { return };
        for _ in 0..64 {
            let (n, address, local) = match pktinfo::receive(&listener.socket, &mut self.scratch) {
                Ok((n, Some(from), local)) => (n, from, local),
                Ok(_) => continue,
                Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::INTR | Errno::CONNREFUSED)) => continue,
                Err(_) => return,
            };
            let (guest, gateway): (IpAddr, IpAddr) =
                if address.is_ipv4() { (GUEST4.into(), GATEWAY4.into()) } else { (GUEST6.into(), GATEWAY6.into()) };
            let like = SocketAddr::new(presented(address.ip(), gateway), address.port());
            let peer = Peer { address, local, listener: index, port: listener.port };
            let Some(shown) = self.peers.present(peer, like, |to| self.policy.declared(to)) else { continue };
            let to = SocketAddr::new(guest, listener.port);
            let _ = self.stack.send_to(self.any_udp, &[&self.scratch[..n]], Some(to), Some(shown));
        }
    }
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
            ("169.254.1.1", "10.0.2.2"),
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
