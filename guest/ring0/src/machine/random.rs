//! Random numbers for the boot page and the places of things: from the CPU's generator, from virtio-rng, or from both.

use super::cpu::{self, Features};
use crate::phys::Direct;
use crate::rng;
use crate::space::Space;
use crate::transport::Transport;

/// Numbers from the device; as many as a boot needs, with some to spare.
const COUNT: usize = 48;

/// The sources that this machine has.
pub struct Random {
    pool: [u64; COUNT],
    left: usize,
    cpu: bool,
}

impl Random {
    /// The CPU's generator, if it has one.
    pub fn new(features: &Features) -> Random {
        Random { pool: [0; COUNT], left: 0, cpu: cpu::random(features).is_some() }
    }

    /// Adds numbers from the device.
    pub fn fill(&mut self, space: &mut Space<Direct>, transport: &Transport) {
        let mut bytes = [0; COUNT * 8];
        if rng::read(space, transport, &mut bytes).is_none() {
            return;
        }
        for (word, chunk) in self.pool.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
        }
        // A device that hands out zeros has no entropy.
        if self.pool.iter().filter(|w| **w == 0).count() < 4 {
            self.left = COUNT;
        }
    }

    /// A fresh number; `None` if no source is left.
    pub fn next(&mut self, features: &Features) -> Option<u64> {
        let from_cpu = if self.cpu { cpu::random(features) } else { None };
        let from_device = self.left.checked_sub(1).and_then(|left| {
            self.left = left;
            self.pool.get(left).copied()
        });
        match (from_cpu, from_device) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(0) ^ b.unwrap_or(0)),
        }
    }
}
