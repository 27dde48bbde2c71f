//! Addresses and routes of the one interface.

use crate::addr::Ip;
use crate::config::OwnAddress;
use alloc::vec::Vec;

/// Most own addresses.
const ADDRESSES_MAX: usize = 16;

pub(crate) struct Iface {
    pub addresses: Vec<OwnAddress>,
    /// The same in the form in which every packet's addresses are compared with them.
    own: Vec<(Ip, u8)>,
    /// Those of ours that are not to be used for what is new, if there is another.
    deprecated: Vec<Ip>,
    pub router4: Option<Ip>,
    pub router6: Option<Ip>,
    /// What a DHCP server and a router say that the link carries, in either family; what the device says bounds it.
    pub mtu4: u16,
    pub mtu6: u16,
    /// Goes up with each change.
    pub generation: u32,
}

/// Where a packet goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// It stays here.
    Local,
    /// To a group, or to all, on the link.
    Group,
    /// To that neighbour.
    Via(Ip),
}

impl Iface {
    pub const fn new() -> Iface {
        Iface {
            addresses: Vec::new(),
            own: Vec::new(),
            deprecated: Vec::new(),
            router4: None,
            router6: None,
            mtu4: u16::MAX,
            mtu6: u16::MAX,
            generation: 0,
        }
    }

    /// Returns whether it is new; `None` if there are too many.
    pub fn add(&mut self, ip: Ip, prefix: u8) -> Option<bool> {
        self.generation = self.generation.wrapping_add(1);
        let prefix = prefix.min(if ip.is_v4() { 32 } else { 128 });
        let full = self.own.len() >= ADDRESSES_MAX;
        let known = self.own.iter_mut().find(|o| o.0 == ip).map(|own| own.1 = prefix);
        if known.is_none() {
            if full {
                return None;
            }
            self.own.push((ip, prefix));
        }
        self.list();
        Some(known.is_none())
    }

    pub fn remove(&mut self, ip: Ip) {
        self.generation = self.generation.wrapping_add(1);
        self.own.retain(|o| o.0 != ip);
        self.deprecated.retain(|&d| d != ip);
        self.list();
    }

    /// Says whether an address of ours is deprecated (RFC 4862 §5.5.4).
    pub fn deprecate(&mut self, ip: Ip, deprecated: bool) {
        if self.deprecated.contains(&ip) == deprecated {
            return;
        }
        self.generation = self.generation.wrapping_add(1);
        self.deprecated.retain(|&d| d != ip);
        if deprecated {
            self.deprecated.push(ip);
        }
    }

    fn list(&mut self) {
        self.addresses.clear();
        self.addresses.extend(self.own.iter().map(|&(ip, prefix)| OwnAddress { address: ip.into(), prefix }));
    }

    pub fn owns(&self, ip: Ip) -> bool {
        self.own.iter().any(|o| o.0 == ip)
    }

    /// Whether packets to this address stay inside the stack.
    pub fn is_local(&self, ip: Ip) -> bool {
        ip.is_loopback() || self.owns(ip)
    }

    /// Whether it is the broadcast address of one of our networks, or of all.
    pub fn is_broadcast(&self, ip: Ip) -> bool {
        // It ends in at least two ones: most addresses need no closer look.
        ip.0[15] & 3 == 3
            && ip.is_v4()
            && (ip.is_limited_broadcast()
                || self
                    .own
                    .iter()
                    .any(|&(own, prefix)| own.is_v4() && prefix < 31 && own.directed_broadcast(prefix) == ip))
    }

    pub fn route(&self, dst: Ip) -> Option<Route> {
        if self.is_local(dst) {
            return Some(Route::Local);
        }
        if dst.is_multicast() || self.is_broadcast(dst) {
            return Some(Route::Group);
        }
        if dst.is_unspecified() {
            return None;
        }
        let on_link = self.own.iter().any(|o| o.0.same_network(dst, o.1));
        if on_link || dst.is_link_local_v6() {
            return Some(Route::Via(dst));
        }
        if dst.is_v4() { self.router4 } else { self.router6 }.map(Route::Via)
    }

    /// The address of ours to use towards `dst` (a short form of RFC 6724 §5): same network first, then one of the same scope (rule 2); in IPv6 then one that is
    /// not deprecated (rule 3, also before the same network), unique local if `dst` is (rule 6), then that with the longest common prefix (rule 8).
    pub fn source(&self, dst: Ip) -> Option<Ip> {
        if self.is_local(dst) {
            return Some(dst);
        }
        let mut best: Option<((u8, bool, bool, u32), Ip)> = None;
        for &(own, prefix) in &self.own {
            if own.is_v4() != dst.is_v4() {
                continue;
            }
            let preferred = !self.deprecated.contains(&own);
            let scope = if preferred && own.same_network(dst, prefix) {
                3
            } else if own.is_link_local_v6() == (dst.is_link_local_v6() || (!dst.is_v4() && dst.is_multicast())) {
                2
            } else {
                1
            };
            let score = if dst.is_v4() {
                (scope, true, true, 0)
            } else {
                (scope, preferred, own.is_unique_local() == dst.is_unique_local(), own.common_prefix(dst).min(64))
            };
            if best.is_none_or(|b| score > b.0) {
                best = Some((score, own));
            }
        }
        best.map(|b| b.1)
    }

    /// An address of ours in the same family, for asking neighbours.
    pub fn any_source(&self, like: Ip) -> Option<Ip> {
        self.source(like)
    }
}
