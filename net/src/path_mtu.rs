//! What routers have said about the paths of UDP over IPv6 (RFC 8201), which only its sender may cut. TCP connections know their path themselves, and IPv4's routers cut.

use crate::addr::Ip;
use crate::tcp::SECOND;
use alloc::vec::Vec;

/// Most destinations; the one that was told of first goes when there is another.
const MAX: usize = 32;
/// After that a larger packet is tried again (RFC 8201 §4).
const TIME: u64 = 600 * SECOND;

struct Known {
    dst: Ip,
    mtu: usize,
    until: u64,
}

/// Few, and no step of TCP's: a list, in order of time.
pub(crate) struct PathMtus(Vec<Known>);

impl PathMtus {
    pub const fn new() -> PathMtus {
        PathMtus(Vec::new())
    }

    /// The largest packet that goes through, if that is known to be less than `link`.
    pub fn get(&self, now: u64, dst: Ip, link: usize) -> usize {
        let known = self.0.iter().find(|k| k.dst == dst && now < k.until);
        known.map_or(link, |k| k.mtu.min(link))
    }

    /// A router says that packets of `mtu` bytes go through.
    pub fn learn(&mut self, now: u64, dst: Ip, mtu: usize) {
        // A forged or old message makes it only smaller (RFC 8201 §4).
        let mtu = self.get(now, dst, mtu);
        self.0.retain(|k| k.dst != dst && now < k.until);
        if self.0.len() >= MAX {
            self.0.remove(0);
        }
        if self.0.try_reserve(1).is_ok() {
            self.0.push(Known { dst, mtu, until: now + TIME });
        }
    }
}
