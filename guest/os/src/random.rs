//! Random numbers: ChaCha20, seeded by the host and RDRAND, with fast key erasure. Each refill takes RDRAND again, if there is one: two machines
//! that were made from one snapshot go different ways when their buffers are used up.
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

/// The key is the host's 64 bytes, folded through the cipher, with RDRAND on top: no source can undo another.
fn first_key(host: &[u8; 2 * KEY], cpu: [u64; KEY / 8]) -> [u8; KEY] {
    let (mut first, mut key) = ([0; KEY], [0; KEY]);
    first.copy_from_slice(&host[..KEY]);
    ChaCha20Rng::from_seed(first).fill_bytes(&mut key);
    for (k, h) in key.iter_mut().zip(&host[KEY..]) {
        *k ^= h;
    }
    mix(&mut key, cpu);
    key
}

/// Numbers from RDRAND; zeros, which change nothing, where there is none.
fn fresh() -> [u64; KEY / 8] {
    core::array::from_fn(|_| rdrand().unwrap_or(0))
}

fn mix(key: &mut [u8; KEY], cpu: [u64; KEY / 8]) {
    let cpu = cpu.iter().flat_map(|word| word.to_ne_bytes());
    key.iter_mut().zip(cpu).for_each(|(k, c)| *k ^= c);
}

impl Pool {
    fn seed(&mut self) {
        self.key = first_key(&boot().entropy, fresh());
        self.seeded = true;
        self.used = BUFFER;
    }

    fn take(&mut self, out: &mut [u8]) {
        let mut done = 0;
        while done < out.len() {
            if self.used == BUFFER {
                self.refill(fresh());
            }
            let n = (out.len() - done).min(BUFFER - self.used);
            let from = &mut self.buffer[self.used..self.used + n];
            out[done..done + n].copy_from_slice(from);
            from.fill(0);
            self.used += n;
            done += n;
        }
    }

    fn refill(&mut self, cpu: [u64; KEY / 8]) {
        mix(&mut self.key, cpu);
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

    /// With one source stuck, whatever it is stuck at, each bit of the other still makes another key.
    #[test]
    fn one_bad_source_is_harmless() {
        for stuck in [0, 0x55, 0xff] {
            let (host, cpu) = ([stuck; 64], [u64::from_ne_bytes([stuck; 8]); 4]);
            let one = || HashSet::from([first_key(&host, cpu)]);
            let mut seen = one();
            for bit in 0..512 {
                let mut host = host;
                host[bit / 8] ^= 1 << (bit % 8);
                assert!(
                    seen.insert(first_key(&host, cpu)),
                    "RDRAND stuck at {stuck:#x}: bit {bit} of the host's is lost"
                );
            }
            let mut seen = one();
            for bit in 0..256 {
                let mut cpu = cpu;
                cpu[bit / 64] ^= 1 << (bit % 64);
                assert!(
                    seen.insert(first_key(&host, cpu)),
                    "the host's stuck at {stuck:#x}: bit {bit} of RDRAND is lost"
                );
            }
        }
    }

    /// What two machines give that were made from one snapshot.
    #[test]
    fn each_refill_takes_the_cpus_numbers() {
        let refilled = |cpu| {
            let mut p = Pool { key: [7; KEY], buffer: [0; BUFFER], used: BUFFER, seeded: true };
            p.refill(cpu);
            (p.key, p.buffer)
        };
        let seen: HashSet<_> =
            (0..256).map(|bit| refilled(core::array::from_fn(|i| u64::from(bit / 64 == i) << (bit % 64)))).collect();
        assert_eq!(seen.len(), 256);
        assert!(!seen.contains(&refilled([0; 4])));
    }

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
