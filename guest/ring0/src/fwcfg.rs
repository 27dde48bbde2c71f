//! QEMU's firmware configuration device (fw_cfg, docs/specs/fw_cfg.rst of QEMU), from which the secrets come.

use donjon_abi::PAGE;
use donjon_abi::secrets::{COUNT_MAX, FW_CFG_PREFIX, REGION_MAX, encode, region_len};

/// Items with fixed selectors.
const SIGNATURE: u16 = 0;
const DIRECTORY: u16 = 0x19;
/// Length of a file's name in the directory, its NUL included.
const NAME_LEN: usize = 56;
/// More files than any machine has: a directory that claims more is not one.
const FILES_MAX: u32 = 4096;

/// The device: an item is selected, then read byte by byte.
pub trait FwCfg {
    /// Goes to the start of an item.
    fn select(&mut self, item: u16);
    /// The next byte.
    fn byte(&mut self) -> u8;
}

fn bytes<const N: usize>(device: &mut impl FwCfg) -> [u8; N] {
    core::array::from_fn(|_| device.byte())
}

/// A file of the device.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Item {
    select: u16,
    len: u32,
}

/// Finds the secret of that name.
fn find(device: &mut impl FwCfg, name: &[u8]) -> Option<Item> {
    device.select(DIRECTORY);
    let count = u32::from_be_bytes(bytes(device));
    for _ in 0..count.min(FILES_MAX) {
        let len = u32::from_be_bytes(bytes(device));
        let select = u16::from_be_bytes(bytes(device));
        let _reserved: [u8; 2] = bytes(device);
        let full: [u8; NAME_LEN] = bytes(device);
        let rest = full.strip_prefix(FW_CFG_PREFIX.as_bytes()).and_then(|r| r.strip_prefix(name));
        if rest.is_some_and(|r| r.first() == Some(&0)) {
            return Some(Item { select, len });
        }
    }
    None
}

/// Secrets that do not fit, or names that are not in ascending order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unfit;

/// Copies the secrets of these names, as far as the device has them, into `out`, which is full of zeros. Returns how many bytes the region takes.
pub fn load<'a>(
    device: &mut impl FwCfg,
    names: impl Iterator<Item = &'a [u8]>,
    out: &mut [u8],
) -> Result<usize, Unfit> {
    device.select(SIGNATURE);
    if bytes(device) != *b"QEMU" {
        return Ok(0);
    }
    let mut list: [(&[u8], usize); COUNT_MAX] = [(&[], 0); COUNT_MAX];
    let mut items = [Item::default(); COUNT_MAX];
    let mut count = 0;
    for name in names {
        if let Some(item) = find(device, name) {
            *list.get_mut(count).ok_or(Unfit)? = (name, item.len as usize);
            *items.get_mut(count).ok_or(Unfit)? = item;
            count += 1;
        }
    }
    let list = list.get(..count).ok_or(Unfit)?;
    let len = region_len(list).ok_or(Unfit)?;
    let out = out.get_mut(..len).ok_or(Unfit)?;
    encode(list, out, |i, place| {
        let item = items.get(i).ok_or(Unfit)?;
        device.select(item.select);
        place.iter_mut().for_each(|b| *b = device.byte());
        Ok(())
    })?;
    Ok(len)
}

/// Bytes of memory that the region may take, where an image asks for secrets.
pub const RESERVED: u64 = (REGION_MAX as u64).next_multiple_of(PAGE);

#[cfg(test)]
mod tests {
    use super::*;
    use donjon_abi::bundle::Bundle;
    use std::vec::Vec;
    use std::{format, vec};

    struct Fake {
        items: Vec<(u16, Vec<u8>)>,
        at: (u16, usize),
    }

    impl FwCfg for Fake {
        fn select(&mut self, item: u16) {
            self.at = (item, 0);
        }
        fn byte(&mut self) -> u8 {
            let item = self.items.iter().find(|(select, _)| *select == self.at.0);
            let byte = item.and_then(|(_, data)| data.get(self.at.1)).copied().unwrap_or(0);
            self.at.1 += 1;
            byte
        }
    }

    fn device(files: &[(&str, &[u8])]) -> Fake {
        let mut directory = (files.len() as u32).to_be_bytes().to_vec();
        let mut items = vec![(SIGNATURE, b"QEMU".to_vec())];
        for (select, (name, data)) in (0x20u16..).zip(files) {
            directory.extend((data.len() as u32).to_be_bytes());
            directory.extend(select.to_be_bytes());
            directory.extend([0; 2]);
            let mut field = name.as_bytes().to_vec();
            field.resize(NAME_LEN, 0);
            directory.extend(field);
            items.push((select, data.to_vec()));
        }
        items.push((DIRECTORY, directory));
        Fake { items, at: (0, 0) }
    }

    fn names<'a>(list: &'a [&'a str]) -> impl Iterator<Item = &'a [u8]> {
        list.iter().map(|n| n.as_bytes())
    }

    #[test]
    fn declared_secrets_are_found_and_nothing_else() {
        let mut d = device(&[
            ("etc/e820", b"x"),
            ("opt/donjon/secret/key-2", b"second"),
            ("opt/donjon/secret/other", b"not declared"),
            ("opt/donjon/secret/key", b"first"),
        ]);
        let mut out = vec![0; RESERVED as usize];
        let len = load(&mut d, names(&["absent", "key", "key-2"]), &mut out).unwrap();
        let b = Bundle::parse(&out[..len]).unwrap();
        let data = |n: &str| b.lookup(&format!("run/secrets/{n}")).map(|e| e.data.to_vec());
        assert_eq!((data("key"), data("key-2")), (Some(b"first".to_vec()), Some(b"second".to_vec())));
        assert_eq!((data("other"), data("absent")), (None, None));
    }

    #[test]
    fn other_machines_and_lies_give_nothing() {
        let mut out = vec![0; RESERVED as usize];
        // Ports where nothing answers read as ones.
        struct Nothing;
        impl FwCfg for Nothing {
            fn select(&mut self, _: u16) {}
            fn byte(&mut self) -> u8 {
                0xff
            }
        }
        assert_eq!(load(&mut Nothing, names(&["a"]), &mut out), Ok(0));
        assert_eq!(load(&mut device(&[]), names(&["a"]), &mut out), Ok(0));
        let mut d = device(&[("opt/donjon/secret/a", b"1"), ("opt/donjon/secret/b", b"2")]);
        assert_eq!(load(&mut d, names(&["b", "a"]), &mut out), Err(Unfit), "not in ascending order");
        d.items.last_mut().unwrap().1[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(load(&mut d, names(&["a"]), &mut out), Err(Unfit), "a length that cannot be");
        d.items.last_mut().unwrap().1[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(load(&mut d, names(&["c"]), &mut out), Ok(0), "a count that cannot be");
    }
}
