//! The stock web server (`apps/web`), prebuilt once for every set of its features and linked with the guest object.
//!
//! The `donjon` command carries these programs, so that making an image of a site is packing and needs no compiler. A site gets the variant that
//! contains what it uses and nothing else.

use std::io::{self, Read as _};

include!(concat!(env!("OUT_DIR"), "/table.rs"));

/// A linked program, compressed.
struct Packed {
    len: usize,
    bytes: &'static [u8],
}

/// One variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant(usize);

impl Variant {
    /// The variant with exactly these of [`FEATURES`]; `None` if there is no such feature.
    pub fn with(features: &[&str]) -> Option<Variant> {
        let bit = |feature: &&str| Some(1 << FEATURES.iter().position(|f| f == feature)?);
        features.iter().map(bit).sum::<Option<usize>>().map(Variant)
    }

    /// Each feature, and whether it is in this variant.
    pub fn features(self) -> impl Iterator<Item = (&'static str, bool)> {
        FEATURES.iter().enumerate().map(move |(i, name)| (*name, self.0 >> i & 1 == 1))
    }

    /// The linked program with its symbol table, an ELF file.
    ///
    /// # Errors
    /// Only if this program's own file is damaged.
    pub fn program(self) -> io::Result<Vec<u8>> {
        let packed = &PROGRAMS[self.0];
        if packed.bytes.is_empty() {
            return Err(io::Error::other("this program was built for measurements, without this variant"));
        }
        let mut out = Vec::with_capacity(packed.len);
        brotli_decompressor::Decompressor::new(packed.bytes, 64 * 1024).read_to_end(&mut out)?;
        if out.len() == packed.len { Ok(out) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_of_features_has_its_program() {
        let mut sizes = vec![];
        for set in 0..1 << FEATURES.len() {
            let wanted: Vec<&str> = (0..FEATURES.len()).filter(|i| set >> i & 1 == 1).map(|i| FEATURES[i]).collect();
            let variant = Variant::with(&wanted).unwrap();
            let there: Vec<&str> = variant.features().filter(|(_, on)| *on).map(|(name, _)| name).collect();
            assert_eq!(there, wanted);
            let program = variant.program().unwrap();
            assert!(program.starts_with(b"\x7fELF"));
            sizes.push(program.len());
        }
        assert_eq!(sizes.iter().min(), sizes.first(), "without features it is smallest: {sizes:?}");
        assert_eq!(sizes.iter().max(), sizes.last(), "with all of them it is largest: {sizes:?}");
        assert_eq!(Variant::with(&["gopher"]), None);
    }
}
