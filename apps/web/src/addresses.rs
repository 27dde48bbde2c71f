//! How many connections a client has.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The addresses that have connections, in order, with their number.
#[derive(Default)]
pub struct Addresses(Mutex<Vec<(u128, u32)>>);

impl Addresses {
    /// Counts a connection of this client until the result is dropped. `None` if it has `most` of them.
    pub fn count(&self, peer: IpAddr, most: u32) -> Option<Counted<'_>> {
        let client = network(peer);
        let mut all = self.all();
        match all.binary_search_by_key(&client, |(address, _)| *address) {
            Ok(at) if all[at].1 >= most => return None,
            Ok(at) => all[at].1 += 1,
            Err(at) => all.insert(at, (client, 1)),
        }
        Some(Counted(self, client))
    }

    fn all(&self) -> MutexGuard<'_, Vec<(u128, u32)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that is counted.
pub struct Counted<'a>(&'a Addresses, u128);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut all = self.0.all();
        if let Ok(at) = all.binary_search_by_key(&self.1, |(address, _)| *address) {
            all[at].1 -= 1;
            if all[at].1 == 0 {
                all.remove(at);
            }
        }
    }
}

/// What stands for one client: with IPv6, everybody has a /64.
pub fn network(peer: IpAddr) -> u128 {
    match peer.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits() >> 64 << 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_by_client() {
        let addresses = Addresses::default();
        let open = |peer: &str| addresses.count(peer.parse().unwrap(), 2);
        let first = open("10.0.0.1");
        let mut held = vec![open("::ffff:10.0.0.1"), open("10.0.0.0"), open("2001:db8::1"), open("2001:db8::2")];
        assert!(first.is_some() && held.iter().all(Option::is_some));
        assert!(open("10.0.0.1").is_none() && open("2001:db8::3").is_none());
        held.push(open("2001:db8:0:1::3"));
        assert!(held[4].is_some());
        drop(first);
        held.push(open("10.0.0.1"));
        assert!(held[5].is_some() && open("10.0.0.1").is_none());
        drop(held);
        assert!(addresses.all().is_empty());
    }
}
