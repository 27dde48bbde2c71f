//! A map for the few places of the library OS that need order: entries in one sorted vector.
//!
//! Every instance of the B-tree of `alloc` puts 4 KB of code into each image; these come to a tenth of that. An insertion in the
//! middle moves what is behind it, which at the sizes here (directories, files in `/tmp`, armed timers) is one short `memmove`.

use crate::errno::{Errno, Result as Answer};
use alloc::vec::Vec;
use core::borrow::Borrow;
use core::ops::Range;

/// Keys with their values, ascending.
pub(crate) struct Sorted<K, V>(Vec<(K, V)>);

impl<K: Ord, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Sorted::new()
    }
}

impl<K: Ord, V> Sorted<K, V> {
    /// An empty map.
    pub const fn new() -> Self {
        Sorted(Vec::new())
    }

    /// Where the key is, or where it would go.
    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> Result<usize, usize>
    where
        K: Borrow<Q>,
    {
        // What is written in order comes last.
        match self.0.last() {
            Some((last, _)) if last.borrow() < key => Err(self.0.len()),
            _ => self.0.binary_search_by(|(k, _)| k.borrow().cmp(key)),
        }
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> core::slice::Iter<'_, (K, V)> {
        self.0.iter()
    }

    pub fn first(&self) -> Option<&(K, V)> {
        self.0.first()
    }

    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.find(key).ok().map(|at| &self.0[at].1)
    }

    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.find(key).ok().map(|at| &mut self.0[at].1)
    }

    /// The first entry behind the key.
    pub fn after<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&(K, V)>
    where
        K: Borrow<Q>,
    {
        self.0.get(self.find(key).map_or_else(|at| at, |at| at + 1))
    }

    /// Makes room for one more entry.
    pub fn reserve(&mut self) -> Answer<()> {
        self.0.try_reserve(1).map_err(|_| Errno::ENOMEM)
    }

    /// Adds an entry or replaces its value; the old one. `ENOMEM` if there is no memory for the entry.
    pub fn insert(&mut self, key: K, value: V) -> Answer<Option<V>> {
        match self.find(&key) {
            Ok(at) => Ok(Some(core::mem::replace(&mut self.0[at].1, value))),
            Err(at) => {
                self.reserve()?;
                self.0.insert(at, (key, value));
                Ok(None)
            }
        }
    }

    /// The value of the key, made if there is none; `None` if it cannot be made or there is no memory for the entry.
    pub fn get_or_try_insert(&mut self, key: K, make: impl FnOnce() -> Option<V>) -> Option<&mut V> {
        let at = match self.find(&key) {
            Ok(at) => at,
            Err(at) => {
                self.reserve().ok()?;
                self.0.insert(at, (key, make()?));
                at
            }
        };
        Some(&mut self.0[at].1)
    }

    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.find(key).ok().map(|at| self.0.remove(at).1)
    }

    fn within(&self, keys: &Range<K>) -> Range<usize> {
        let [from, to] = [&keys.start, &keys.end].map(|key| self.find(key).unwrap_or_else(|at| at));
        from..to.max(from)
    }

    /// How many entries are within the range of keys.
    pub fn count(&self, keys: &Range<K>) -> usize {
        self.within(keys).len()
    }

    /// Removes those entries.
    pub fn take(&mut self, keys: &Range<K>) -> alloc::vec::Drain<'_, (K, V)> {
        let range = self.within(keys);
        self.0.drain(range)
    }

    /// Removes the entries from the key on; how many those were.
    pub fn truncate(&mut self, key: &K) -> usize {
        let keep = self.find(key).unwrap_or_else(|at| at);
        let gone = self.0.len() - keep;
        self.0.truncate(keep);
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use alloc::collections::BTreeMap;

    /// Against the map of the standard library, with every operation.
    #[test]
    fn it_is_a_map() {
        let (mut map, mut model) = (Sorted::new(), BTreeMap::new());
        let mut seed = 7_u32;
        for round in 0..4000_u32 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let key = u64::from(seed >> 24);
            match seed >> 8 & 7 {
                0..=2 => assert_eq!(map.insert(key, round), Ok(model.insert(key, round))),
                3 => assert_eq!(map.remove(&key), model.remove(&key)),
                4 => assert_eq!(map.get_mut(&key), model.get_mut(&key)),
                5 if round % 16 == 0 => assert_eq!(map.truncate(&key), model.split_off(&key).len()),
                5 if round % 16 == 1 => {
                    let keys = key..key + 9;
                    assert_eq!(map.count(&keys), model.range(keys.clone()).count());
                    let gone: alloc::vec::Vec<_> = map.take(&keys).collect();
                    assert!(gone.iter().map(|(k, v)| (k, v)).eq(model.range(keys.clone())));
                    model.retain(|k, _| !keys.contains(k));
                }
                6 => assert_eq!(map.get_or_try_insert(key, || Some(round)), Some(model.entry(key).or_insert(round))),
                _ => {
                    use core::ops::Bound::{Excluded, Unbounded};
                    let next = model.range((Excluded(key), Unbounded)).next();
                    assert_eq!(map.after(&key).map(|(k, v)| (k, v)), next);
                    assert_eq!(map.get(&key), model.get(&key));
                }
            }
            assert_eq!(map.len(), model.len());
            assert_eq!(map.first().map(|(k, v)| (k, v)), model.first_key_value());
            assert!(map.iter().map(|(k, v)| (k, v)).eq(&model));
        }
        assert!(!map.is_empty());
    }

    #[test]
    fn keys_may_be_borrowed() {
        let mut map = Sorted::<Box<[u8]>, u8>::new();
        map.insert((*b"b").into(), 2).unwrap();
        map.insert((*b"a").into(), 1).unwrap();
        assert_eq!((map.get(&b"a"[..]), map.get(&b"c"[..])), (Some(&1), None));
        assert_eq!(map.after(&b"a"[..]).map(|(_, v)| *v), Some(2));
        assert_eq!(map.get_or_try_insert((*b"c").into(), || None), None);
        assert_eq!((map.remove(&b"b"[..]), map.len()), (Some(2), 1));
    }
}
