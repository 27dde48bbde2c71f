//! Keyed hashing (SipHash-1-3): an attacker who chooses 4-tuples can neither aim at one chain of a table nor predict a sequence number.

use crate::addr::{Ip, Tuple};

/// A 128-bit key.
#[derive(Clone, Copy)]
pub(crate) struct Key(pub u64, pub u64);

impl Key {
    /// The keys that a configuration's 32 random bytes make: one for tables, one for what goes on the wire.
    pub fn pair(bytes: &[u8; 32]) -> (Key, Key) {
        let word = |i: usize| {
            let mut w = [0; 8];
            w.copy_from_slice(&bytes[i * 8..i * 8 + 8]);
            u64::from_le_bytes(w)
        };
        (Key(word(0), word(1)), Key(word(2), word(3)))
    }

    /// SipHash-1-3 of the words.
    pub fn hash(self, words: &[u64]) -> u64 {
        let mut v = [
            self.0 ^ 0x736f_6d65_7073_6575,
            self.1 ^ 0x646f_7261_6e64_6f6d,
            self.0 ^ 0x6c79_6765_6e65_7261,
            self.1 ^ 0x7465_6462_7974_6573,
        ];
        for &w in words {
            v[3] ^= w;
            round(&mut v);
            v[0] ^= w;
        }
        let end = (words.len() as u64) << 59;
        v[3] ^= end;
        round(&mut v);
        v[0] ^= end;
        v[2] ^= 0xff;
        for _ in 0..3 {
            round(&mut v);
        }
        v[0] ^ v[1] ^ v[2] ^ v[3]
    }

    /// Of a connection's name.
    pub fn tuple(self, t: &Tuple) -> u64 {
        let (l0, l1) = words(t.local.ip);
        let (r0, r1) = words(t.remote.ip);
        self.hash(&[l0, l1, r0, r1, u64::from(t.local.port) << 16 | u64::from(t.remote.port)])
    }

    /// Of an address.
    pub fn ip(self, ip: Ip) -> u64 {
        let (a, b) = words(ip);
        self.hash(&[a, b])
    }
}

fn words(ip: Ip) -> (u64, u64) {
    let all = ip.0;
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = all;
    (u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p]))
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

/// Unpredictable numbers: the key's hash of a counter.
pub(crate) struct Random {
    key: Key,
    counter: u64,
}

impl Random {
    pub fn new(key: Key) -> Random {
        Random { key, counter: 0 }
    }

    pub fn next(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(1);
        self.key.hash(&[self.counter])
    }
}
