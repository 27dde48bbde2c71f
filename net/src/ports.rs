//! Who has which port.

use crate::addr::Ip;
use crate::slab::Slab;
use crate::table::Table;
use alloc::vec::Vec;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// First port that is given out.
pub(crate) const EPHEMERAL: u16 = 32768;
/// How many there are: up to 60999, as on Linux.
pub(crate) const EPHEMERAL_COUNT: u16 = 60999 - 32768 + 1;

pub(crate) struct Port {
    protocol: u8,
    number: u16,
    /// Slots of sockets that are bound: listeners, UDP sockets, TCP sockets that are neither yet.
    pub binders: Vec<u32>,
    /// Connections and TIME-WAIT entries.
    users: u32,
}

impl Port {
    pub fn in_use(&self) -> bool {
        self.users > 0
    }
}

pub(crate) struct Ports {
    table: Table,
    slab: Slab<Port>,
}

/// No key is needed: peers do not choose our ports.
fn hash(protocol: u8, port: u16) -> u32 {
    (u32::from(protocol) << 16 | u32::from(port)).wrapping_mul(0x9e37_79b1).rotate_left(16)
}

impl Ports {
    pub const fn new() -> Ports {
        Ports { table: Table::new(), slab: Slab::new(u32::MAX) }
    }

    fn find(&self, protocol: u8, number: u16) -> Option<u32> {
        let is = |slot| self.slab.get(slot).is_some_and(|p| p.number == number && p.protocol == protocol);
        self.table.find(hash(protocol, number), is)
    }

    pub fn get(&self, protocol: u8, port: u16) -> Option<&Port> {
        self.slab.get(self.find(protocol, port)?)
    }

    /// The slots that are bound to a port.
    pub fn binders(&self, protocol: u8, port: u16) -> &[u32] {
        self.get(protocol, port).map_or(&[], |p| &p.binders)
    }

    fn entry(&mut self, protocol: u8, number: u16) -> Option<&mut Port> {
        let slot = match self.find(protocol, number) {
            Some(slot) => slot,
            None => {
                let (slot, _) = self.slab.insert(Port { protocol, number, binders: Vec::new(), users: 0 })?;
                if !self.table.insert(hash(protocol, number), slot) {
                    self.slab.remove(slot);
                    return None;
                }
                slot
            }
        };
        self.slab.get_mut(slot)
    }

    fn drop_if_free(&mut self, slot: u32) {
        if let Some(p) = self.slab.get(slot)
            && p.binders.is_empty()
            && p.users == 0
        {
            self.table.remove(hash(p.protocol, p.number), slot);
            self.slab.remove(slot);
        }
    }

    /// False if there is no memory.
    pub fn bind(&mut self, protocol: u8, port: u16, slot: u32) -> bool {
        let Some(p) = self.entry(protocol, port) else { return false };
        let room = p.binders.try_reserve(1).is_ok();
        if room {
            p.binders.push(slot);
        }
        room
    }

    pub fn unbind(&mut self, protocol: u8, port: u16, slot: u32) {
        if let Some(at) = self.find(protocol, port)
            && let Some(p) = self.slab.get_mut(at)
        {
            if let Some(i) = p.binders.iter().position(|&s| s == slot) {
                p.binders.remove(i);
            }
            self.drop_if_free(at);
        }
    }

    /// A connection begins to use a TCP port. Without memory the port counts as free, which costs an error message later at most.
    pub fn join(&mut self, port: u16) {
        if let Some(p) = self.entry(TCP, port) {
            p.users = p.users.saturating_add(1);
        }
    }

    /// And ends.
    pub fn leave(&mut self, port: u16) {
        if let Some(at) = self.find(TCP, port)
            && let Some(p) = self.slab.get_mut(at)
        {
            p.users = p.users.saturating_sub(1);
            self.drop_if_free(at);
        }
    }
}

/// Looks for the socket that fits a packet best, among those that are bound to its port.
#[derive(Default)]
pub(crate) struct Best {
    /// It.
    pub slot: Option<u32>,
    score: u8,
    weight: u32,
}

impl Best {
    /// One more: how well it fits, and if it shares its port, a hash of the packet's two ends. Among equals the last is it. Among equals that share,
    /// each peer has its own order of them, so that a peer keeps its socket when another one goes.
    pub fn offer(&mut self, score: u8, slot: u32, hash: Option<u32>) {
        let weight = hash.map_or(u32::MAX, |hash| mix(hash ^ mix(slot)));
        if self.slot.is_none() || (score, weight) >= (self.score, self.weight) {
            *self = Best { slot: Some(slot), score, weight };
        }
    }
}

/// MurmurHash3's last step: a bit of the input changes half of the output's.
fn mix(mut h: u32) -> u32 {
    h = (h ^ h >> 16).wrapping_mul(0x85eb_ca6b);
    h = (h ^ h >> 13).wrapping_mul(0xc2b2_ae35);
    h ^ h >> 16
}

/// Whether two local addresses can get the same packet. Flags: IPv6 only.
pub(crate) fn overlap(a: Ip, a6: bool, b: Ip, b6: bool) -> bool {
    a == b || ((a.is_unspecified() || b.is_unspecified()) && families(a, a6) & families(b, b6) != 0)
}

/// The families that an address takes packets of: 1 is IPv4, 2 is IPv6.
fn families(ip: Ip, only6: bool) -> u8 {
    match ip {
        Ip::ANY if !only6 => 3,
        _ if ip.is_v4() => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps() {
        let a4 = Ip::v4([10, 0, 0, 1]);
        let a6 = Ip([0xfd; 16]);
        assert!(overlap(Ip::ANY, false, Ip::ANY4, false));
        assert!(!overlap(Ip::ANY, true, Ip::ANY4, false));
        assert!(!overlap(Ip::ANY4, false, Ip::ANY, true));
        assert!(overlap(Ip::ANY, false, a4, false));
        assert!(!overlap(Ip::ANY, true, a4, false));
        assert!(overlap(a6, false, Ip::ANY, true));
        assert!(!overlap(a6, false, Ip::ANY4, false));
        assert!(!overlap(a6, false, a4, false));
        assert!(overlap(a4, false, Ip::ANY4, false));
    }
}
