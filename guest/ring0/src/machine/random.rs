//! Random numbers for the boot page and the places of things: from the CPU's generator, from virtio-rng, or from both.

use super::cpu::{self, Features};
use crate::mix::{LEN, Mix};
use crate::phys::Direct;
use crate::rng;
use crate::space::Space;
use crate::transport::Transport;

/// The sources that this machine has.
pub struct Random {
    mix: Mix,
    cpu: bool,
}

impl Random {
    /// The CPU's generator, if it has one.
    pub fn new(features: &Features) -> Random {
        Random { mix: Mix::new(), cpu: cpu::random(features).is_some() }
    }

    /// Adds numbers from the device.
    pub fn fill(&mut self, space: &mut Space<Direct>, transport: &Transport) {
        let mut bytes = [0; LEN];
        if rng::read(space, transport, &mut bytes).is_some() {
            self.mix.fill(&bytes);
        }
    }

    /// A fresh number; `None` if no source is left.
    pub fn next(&mut self, features: &Features) -> Option<u64> {
        self.mix.next(if self.cpu { cpu::random(features) } else { None })
    }
}
