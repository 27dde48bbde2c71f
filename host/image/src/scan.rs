//! Finds instructions that would enter a kernel directly: a guest has none, and such an instruction ends it.

use std::collections::BTreeSet;

use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind};

/// The functions of a linked program that contain `syscall`, `sysenter` or `int 0x80`, by name.
pub fn direct_system_calls(elf: &[u8]) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let Ok(file) = object::File::parse(elf) else { return out };
    let mut symbols: Vec<(u64, &str)> = file
        .symbols()
        .filter(|s| !s.is_undefined())
        .filter_map(|s| Some((s.address(), s.name().ok().filter(|n| !n.is_empty())?)))
        .collect();
    symbols.sort_unstable();
    for section in file.sections().filter(|s| s.kind() == SectionKind::Text) {
        let Ok(code) = section.data() else { continue };
        let suspicious =
            code.array_windows().enumerate().filter(|(_, w)| matches!(w, [0x0f, 0x05 | 0x34] | [0xcd, 0x80]));
        let mut done_to = 0;
        for (at, _) in suspicious {
            if at < done_to {
                continue; // in a function that has been decoded already
            }
            // The two bytes may be a part of another instruction: decode from the function's start.
            let address = section.address() + at as u64;
            let next = symbols.partition_point(|s| s.0 <= address);
            let (start, name) = next.checked_sub(1).map_or((section.address(), "(unknown)"), |i| symbols[i]);
            let start = start.max(section.address());
            let end = symbols.get(next).map_or(u64::MAX, |s| s.0).min(section.address() + code.len() as u64);
            let range = (start - section.address()) as usize..(end - section.address()) as usize;
            done_to = range.end;
            let function = Decoder::with_ip(64, &code[range], start, DecoderOptions::NONE);
            let enters = |i: &iced_x86::Instruction| match i.mnemonic() {
                Mnemonic::Syscall | Mnemonic::Sysenter => true,
                Mnemonic::Int => i.immediate8() == 0x80,
                _ => false,
            };
            if function.into_iter().any(|i| enters(&i)) {
                out.insert(format!("{:#}", rustc_demangle::demangle(name)));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::{
        Architecture, BinaryFormat, Endianness, SymbolFlags, SymbolKind, SymbolScope,
        write::{Object, StandardSection, Symbol, SymbolSection},
    };

    #[test]
    fn instructions_are_told_from_bytes() {
        let mut o = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        let text = o.section_id(StandardSection::Text);
        let functions: [(&[u8], &[u8]); 3] = [
            (b"innocent", &[0xb8, 0x0f, 0x05, 0x00, 0x00, 0xc3]), // mov $0x50f, %eax; ret
            (b"direct", &[0x31, 0xc0, 0x0f, 0x05, 0xc3]),
            (b"_ZN3old4callE", &[0xcd, 0x80, 0xc3]),
        ];
        for (name, code) in functions {
            let symbol = o.add_symbol(Symbol {
                name: name.into(),
                value: 0,
                size: 0,
                kind: SymbolKind::Text,
                scope: SymbolScope::Linkage,
                weak: false,
                section: SymbolSection::Undefined,
                flags: SymbolFlags::None,
            });
            o.add_symbol_data(symbol, text, code, 1);
        }
        let found: Vec<String> = direct_system_calls(&o.write().unwrap()).into_iter().collect();
        assert_eq!(found, ["direct", "old::call"]);
        assert!(direct_system_calls(b"nothing").is_empty());
    }
}
