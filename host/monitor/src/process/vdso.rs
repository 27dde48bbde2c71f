//! Finds `__vdso_clock_gettime` in this process's vDSO, and the pages that it needs.

#![expect(unsafe_code, reason = "reads an ELF image that the kernel has mapped")]
// UNSAFETY: one read of the kernel's own pages, bounded by the mapping's length from /proc/self/maps.

use donjon_abi::boot::Range;

/// The vDSO and its data.
#[derive(Clone, Debug, Default)]
pub struct Vdso {
    /// Address of `clock_gettime`, or 0.
    pub clock_gettime: u64,
    /// Mappings that must stay: the vDSO's text and its data pages.
    pub keep: Vec<Range>,
}

/// Looks at this process (the child has the same vDSO).
pub fn find() -> std::io::Result<Vdso> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mut out = Vdso::default();
    for (range, name) in special_maps(&maps) {
        if name == "[vdso]" {
            // SAFETY: 1. the kernel has just said that this range is mapped readable, 2. nobody unmaps a vDSO.
            let image = unsafe { core::slice::from_raw_parts(range.base as *const u8, range.len as usize) };
            out.clock_gettime = symbol(image, b"__vdso_clock_gettime").map_or(0, |offset| range.base + offset);
        }
        out.keep.push(range);
    }
    Ok(out)
}

/// The lines `[vdso]`, `[vvar]`, `[vvar_vclock]` of a maps file.
fn special_maps(maps: &str) -> impl Iterator<Item = (Range, &str)> {
    maps.lines().filter_map(|line| {
        let name = line.split_ascii_whitespace().nth(5)?;
        if !matches!(name, "[vdso]") && !name.starts_with("[vvar") {
            return None;
        }
        let (from, to) = line.split(' ').next()?.split_once('-')?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        Some((Range { base: from, len: to.checked_sub(from)? }, name))
    })
}

/// Value of a dynamic symbol of an ELF64 shared object (System V gABI), by its section-free tables.
fn symbol(image: &[u8], name: &[u8]) -> Option<u64> {
    let u16_at = |at: usize| Some(u16::from_le_bytes(image.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(image.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(image.get(at..at.checked_add(8)?)?.try_into().ok()?));
    let phoff = u64_at(32)? as usize;
    let (mut dynamic, mut load) = (None, None);
    for i in 0..usize::from(u16_at(56)?) {
        let ph = phoff.checked_add(i * 56)?;
        match u32_at(ph)? {
            1 if load.is_none() => load = Some(u64_at(ph + 16)?.wrapping_sub(u64_at(ph + 8)?)),
            2 => dynamic = Some(u64_at(ph + 8)? as usize),
            _ => {}
        }
    }
    let bias = load?;
    let (mut symtab, mut strtab, mut hash, mut gnu_hash) = (None, None, None, None);
    let dynamic = dynamic?;
    for i in 0..64 {
        let value = u64_at(dynamic + i * 16 + 8)?.wrapping_sub(bias) as usize;
        match u64_at(dynamic + i * 16)? {
            0 => break,
            4 => hash = Some(value),
            5 => strtab = Some(value),
            6 => symtab = Some(value),
            0x6fff_fef5 => gnu_hash = Some(value),
            _ => {}
        }
    }
    let (symtab, strtab) = (symtab?, strtab?);
    let count = match (hash, gnu_hash) {
        (Some(hash), _) => u32_at(hash + 4)? as usize,
        // Without DT_HASH: the symbol table ends where the string table begins, in every vDSO so far.
        (None, Some(_)) => strtab.checked_sub(symtab)? / 24,
        _ => return None,
    };
    (0..count.min(256)).find_map(|i| {
        let entry = symtab + i * 24;
        let at = strtab.checked_add(u32_at(entry)? as usize)?;
        let defined = u16_at(entry + 6)? != 0;
        let found = image.get(at..at.checked_add(name.len() + 1)?)?;
        (defined && found.split_last() == Some((&0, name))).then(|| u64_at(entry + 8))?.map(|v| v.wrapping_sub(bias))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_clock() {
        let vdso = find().unwrap();
        assert!(vdso.keep.len() >= 2, "{vdso:x?}");
        assert!(vdso.keep.iter().any(|r| vdso.clock_gettime > r.base && vdso.clock_gettime < r.base + r.len));
    }

    #[test]
    fn maps_lines_parse() {
        let maps = "7ffe0000-7ffe4000 r--p 00000000 00:00 0     [vvar]\n7ffe4000-7ffe5000 r--p 00000000 00:00 0 [vvar_vclock]\n\
                    7ffe5000-7ffe7000 r-xp 00000000 00:00 0 [vdso]\n1000-2000 r--p 0 00:00 0 /bin/[vdso]\n";
        let got: Vec<_> = special_maps(maps).map(|(r, n)| (r.base, r.len, n)).collect();
        assert_eq!(
            got,
            [(0x7ffe0000, 0x4000, "[vvar]"), (0x7ffe4000, 0x1000, "[vvar_vclock]"), (0x7ffe5000, 0x2000, "[vdso]")]
        );
    }

    #[test]
    fn junk_is_no_elf() {
        for n in [0, 40, 64, 200] {
            assert_eq!(symbol(&vec![0xff; n], b"x"), None);
        }
    }
}
