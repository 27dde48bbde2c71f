//! Secrets: what a guest is handed at its start and what never stands in its image.
//!
//! They are a memory region of their own, read-only to the guest, wiped by the host when the guest has ended. The region is a file bundle
//! ([`crate::bundle`]) with the directory `run/secrets`, so that a guest finds each of them as the file `/run/secrets/NAME`. An image
//! declares the names ([`crate::manifest::Tag::Secret`]), in ascending order.

use crate::bundle::{ENTRY_LEN, HEADER_LEN, Kind, MAGIC, RawEntry};

/// Longest name, bytes.
pub const NAME_MAX: usize = 32;
/// Most secrets of a guest.
pub const COUNT_MAX: usize = 16;
/// Most bytes of the region, a multiple of the page size.
pub const REGION_MAX: usize = 64 * 1024;
/// QEMU's fw_cfg item that holds a secret is called this and its name.
pub const FW_CFG_PREFIX: &str = "opt/donjon/secret/";

const DIRS: [&str; 2] = ["run", "run/secrets"];
const PATH: &str = "run/secrets/";

/// Whether this can be the name of a secret: 1 to [`NAME_MAX`] letters, digits, `-`, `_` and `.`, not beginning with a dot.
pub fn is_name(name: &[u8]) -> bool {
    let letter = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=NAME_MAX).contains(&name.len()) && name[0] != b'.' && name.iter().all(letter)
}

/// Bytes of the region for secrets of these names and lengths, or `None` if they are too many, too long, not in ascending order or not named
/// like secrets. No secrets take no bytes.
pub fn region_len(secrets: &[(&[u8], usize)]) -> Option<usize> {
    let sorted = secrets.windows(2).all(|w| w[0].0 < w[1].0);
    if !sorted || secrets.len() > COUNT_MAX || !secrets.iter().all(|(name, _)| is_name(name)) {
        return None;
    }
    if secrets.is_empty() {
        return Some(0);
    }
    let mut len = contents_at(secrets);
    for (_, n) in secrets {
        len = len.next_multiple_of(16).checked_add(*n).filter(|len| *len <= REGION_MAX)?;
    }
    Some(len)
}

/// Encodes the region into `out`, which is full of zeros and of [`region_len`] bytes; `fill` puts the content of the secret of that position
/// into its place.
pub fn encode<E>(
    secrets: &[(&[u8], usize)],
    out: &mut [u8],
    mut fill: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = out.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    if secrets.is_empty() {
        return Ok(());
    }
    let count = secrets.len() + DIRS.len();
    let (names_at, names_end) = (HEADER_LEN + count * ENTRY_LEN, contents_at(secrets));
    put(0, &MAGIC);
    put(8, &(count as u32).to_le_bytes());
    put(12, &((names_end - names_at) as u32).to_le_bytes());
    let (mut entry_at, mut name_at, mut data_at) = (HEADER_LEN, names_at, names_end);
    let dirs = DIRS.iter().map(|d| (&b""[..], d.as_bytes(), None));
    let files = secrets.iter().map(|(name, len)| (PATH.as_bytes(), *name, Some(*len)));
    for (path, name, len) in dirs.chain(files) {
        if len.is_some() {
            data_at = data_at.next_multiple_of(16);
        }
        let entry = RawEntry {
            name_offset: (name_at - names_at) as u32,
            name_len: (path.len() + name.len()) as u32,
            kind: if len.is_some() { Kind::File } else { Kind::Dir } as u32,
            mtime: 0,
            data_offset: data_at as u64,
            data_len: len.unwrap_or(0) as u64,
        };
        put(entry_at, &entry.to_bytes());
        put(name_at, path);
        put(name_at + path.len(), name);
        entry_at += ENTRY_LEN;
        name_at += path.len() + name.len();
        data_at += len.unwrap_or(0);
    }
    let mut data_at = names_end;
    for (i, (_, len)) in secrets.iter().enumerate() {
        data_at = data_at.next_multiple_of(16);
        if let Some(place) = out.get_mut(data_at..data_at + len) {
            fill(i, place)?;
        }
        data_at += len;
    }
    Ok(())
}

fn contents_at(secrets: &[(&[u8], usize)]) -> usize {
    let names: usize = secrets.iter().map(|(name, _)| PATH.len() + name.len()).sum();
    let dirs: usize = DIRS.iter().map(|d| d.len()).sum();
    HEADER_LEN + (secrets.len() + DIRS.len()) * ENTRY_LEN + dirs + names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Bundle;
    extern crate std;
    use std::vec;

    #[test]
    fn the_region_is_a_bundle() {
        let contents: [&[u8]; 3] = [b"key", b"", &[7; 5000]];
        let secrets: [(&[u8], usize); 3] = [(b"a", 3), (b"b.c", 0), (b"tls-key", 5000)];
        let mut out = vec![0; region_len(&secrets).unwrap()];
        encode(&secrets, &mut out, |i, place| {
            place.copy_from_slice(contents[i]);
            Ok::<(), ()>(())
        })
        .unwrap();
        let b = Bundle::parse(&out).unwrap();
        for ((name, _), content) in secrets.iter().zip(contents) {
            let path = std::format!("run/secrets/{}", std::str::from_utf8(name).unwrap());
            assert_eq!(b.lookup(&path).unwrap().data, content);
        }
        assert_eq!(b.lookup("run/secrets").unwrap().kind, Kind::Dir);
        assert_eq!(b.len(), 5);
        assert_eq!(encode(&secrets, &mut out, |_, _| Err("cannot read")), Err("cannot read"));
        assert_eq!((region_len(&[]), encode(&[], &mut [], |_, _| Err(()))), (Some(0), Ok(())));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let long = [b'x'; NAME_MAX + 1];
        for bad in [&b""[..], b".", b"..", b".a", b"a/b", b"a b", b"\xc3\xa4", &long] {
            assert_eq!(region_len(&[(bad, 1)]), None, "{bad:?}");
        }
        assert!(region_len(&[(&long[..NAME_MAX], 1)]).is_some());
        assert_eq!(region_len(&[(b"b", 1), (b"a", 1)]), None, "not sorted");
        assert_eq!(region_len(&[(b"a", 1), (b"a", 1)]), None, "twice");
        assert_eq!(region_len(&[(b"a", REGION_MAX)]), None);
        assert_eq!(region_len(&[(b"a", usize::MAX)]), None);
        let names: [[u8; 1]; COUNT_MAX + 1] = core::array::from_fn(|i| [b'a' + i as u8]);
        let many: std::vec::Vec<(&[u8], usize)> = names.iter().map(|n| (&n[..], 1)).collect();
        assert!(region_len(&many[..COUNT_MAX]).is_some() && region_len(&many).is_none());
    }
}
