//! Random numbers: ChaCha20, seeded by the host and RDRAND, with fast key erasure.
//!
//! Each refill makes a new key and a buffer of output from the old key; what has been handed out is erased. So whoever reads this
//! memory later learns nothing about numbers given before.

use donjon_base::{Lock, boot, random::rdrand};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore, SeedableRng},
};

const KEY: usize = 32;
const BUFFER: usize = 480;

struct Pool {
    key: [u8; KEY],
    buffer: [u8; BUFFER],
    /// Bytes of the buffer that are used up, and zero.
    used: usize,
    seeded: bool,
}

static POOL: Lock<Pool> = Lock::new(Pool { key: [0; KEY], buffer: [0; BUFFER], used: BUFFER, seeded: false });

/// Fills `out` with random bytes. Never fails: the host's entropy is there from the first instruction.
pub fn fill(out: &mut [u8]) {
    let mut p = POOL.lock();
    if !p.seeded {
        p.seed();
    }
    if out.len() > BUFFER {
        // A long request gets a key of its own, so that the lock is not held for long.
        let mut key = [0; KEY];
        p.take(&mut key);
        drop(p);
        ChaCha20Rng::from_seed(key).fill_bytes(out);
        return;
    }
    p.take(out);
}

/// A random number.
pub fn u64() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

impl Pool {
    /// The key is the host's 64 bytes, folded through the cipher, with RDRAND on top: no source can undo another.
    fn seed(&mut self) {
        let entropy = &boot().entropy;
        let mut first = [0; KEY];
        first.copy_from_slice(&entropy[..KEY]);
        ChaCha20Rng::from_seed(first).fill_bytes(&mut self.key);
        for (k, e) in self.key.iter_mut().zip(&entropy[KEY..]) {
            *k ^= e;
        }
        for word in self.key.chunks_exact_mut(8) {
            for (k, r) in word.iter_mut().zip(rdrand().unwrap_or(0).to_ne_bytes()) {
                *k ^= r;
            }
        }
        self.seeded = true;
        self.used = BUFFER;
    }

    fn take(&mut self, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            if self.used == BUFFER {
                self.refill();
            }
            let n = (out.len() - done).min(BUFFER - self.used);
            let from = &mut self.buffer[self.used..self.used + n];
            out[done..done + n].copy_from_slice(from);
            from.fill(0);
            self.used += n;
            done += n;
        }
    }

    fn refill(&mut self) {
        let mut rng = ChaCha20Rng::from_seed(self.key);
        rng.fill_bytes(&mut self.key);
        rng.fill_bytes(&mut self.buffer);
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashSet, vec};

    #[test]
    fn output_does_not_repeat_and_is_erased() {
        let _s = donjon_base::host::session();
        let mut seen = HashSet::new();
        for len in [1usize, 7, 16, 480, 481, 5000] {
            let mut a = vec![0; len];
            fill(&mut a);
            assert!(len < 7 || seen.insert(a));
        }
        assert!((0..1000).all(|_| seen.insert(vec::Vec::from(u64().to_ne_bytes()))));
        let p = POOL.lock();
        assert!(p.buffer[..p.used].iter().all(|b| *b == 0));
    }
}
