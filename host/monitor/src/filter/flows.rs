//! Who has talked to the guest: bounded, the least recent are forgotten.

use std::collections::HashSet;

/// Two ends that may talk to each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Flow {
    pub peer: [u8; 16],
    pub peer_port: u16,
    pub port: u16,
    pub protocol: u8,
}

/// Flows of one generation; see [`Flows`].
const GENERATION: usize = 32 * 1024;

/// A set of flows in two generations: when the young one is full it becomes the old one, whose flows are forgotten unless they were seen since.
#[derive(Debug, Default)]
pub(super) struct Flows {
    young: HashSet<Flow>,
    old: HashSet<Flow>,
}

impl Flows {
    /// Remembers a flow; true if it was not among the recent ones.
    pub fn add(&mut self, flow: Flow) -> bool {
        if self.young.contains(&flow) {
            return false;
        }
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(flow)
    }

    /// Whether it is known; then it is fresh again.
    pub fn has(&mut self, flow: Flow) -> bool {
        if self.young.contains(&flow) {
            return true;
        }
        let known = self.old.contains(&flow);
        if known {
            self.add(flow);
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let flow = |n: u32| {
            let mut peer = [0; 16];
            peer[..4].copy_from_slice(&n.to_be_bytes());
            Flow { peer, peer_port: 1, port: 2, protocol: 6 }
        };
        let mut flows = Flows::default();
        flows.add(flow(0));
        for n in 1..200_000 {
            flows.add(flow(n));
            if n % 10_000 == 0 {
                assert!(flows.has(flow(0)), "{n}");
            }
        }
        assert!(flows.young.len() + flows.old.len() <= 2 * GENERATION);
        assert!(!flows.has(flow(1)));
    }
}
