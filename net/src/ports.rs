//! Who has which port.

use crate::addr::Ip;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// First port that is given out.
pub(crate) const EPHEMERAL: u16 = 32768;
/// How many there are: up to 60999, as on Linux.
pub(crate) const EPHEMERAL_COUNT: u16 = 60999 - 32768 + 1;

#[derive(Default)]
pub(crate) struct Port {
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

pub(crate) struct Ports(BTreeMap<(u8, u16), Port>);

impl Ports {
    pub const fn new() -> Ports {
        Ports(BTreeMap::new())
    }

    pub fn get(&self, protocol: u8, port: u16) -> Option<&Port> {
        self.0.get(&(protocol, port))
    }

    pub fn bind(&mut self, protocol: u8, port: u16, slot: u32) {
        self.0.entry((protocol, port)).or_default().binders.push(slot);
    }

    pub fn unbind(&mut self, protocol: u8, port: u16, slot: u32) {
        if let Some(p) = self.0.get_mut(&(protocol, port)) {
            p.binders.retain(|&s| s != slot);
            if p.binders.is_empty() && p.users == 0 {
                self.0.remove(&(protocol, port));
            }
        }
    }

    /// A connection begins to use a TCP port.
    pub fn join(&mut self, port: u16) {
        let p = self.0.entry((TCP, port)).or_default();
        p.users = p.users.saturating_add(1);
    }

    /// And ends.
    pub fn leave(&mut self, port: u16) {
        if let Some(p) = self.0.get_mut(&(TCP, port)) {
            p.users = p.users.saturating_sub(1);
            if p.binders.is_empty() && p.users == 0 {
                self.0.remove(&(TCP, port));
            }
        }
    }
}

/// Whether two local addresses can get the same packet. Flags: IPv6 only.
pub(crate) fn overlap(a: Ip, a6: bool, b: Ip, b6: bool) -> bool {
    if a == b {
        return true;
    }
    let covers = |wild: Ip, only6: bool, other: Ip| match wild {
        Ip::ANY => !(only6 && other.is_v4()),
        Ip::ANY4 => other.is_v4() || other == Ip::ANY,
        _ => false,
    };
    match (a, b) {
        (Ip::ANY, Ip::ANY4) => !a6,
        (Ip::ANY4, Ip::ANY) => !b6,
        _ => covers(a, a6, b) || covers(b, b6, a),
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
