//! Takes code out of a program that cannot work in an image, before it is linked.
//!
//! - std's panic handler symbolises backtraces inside the process: it opens the program's own file and decodes DWARF, for which it
//!   carries decoders of more than 150 KB. In an image there is no such file; our hosts symbolise from the `.debug` file
//!   instead. `std::backtrace::Backtrace` then has frames without names, as it would have had; the backtrace of a panic is printed by the
//!   guest object in the form that our hosts symbolise.
//! - std handles SIGSEGV on stacks of its own, one for each thread, to say "has overflowed its stack". In an image a fault goes to the
//!   host, which reports it, and there is no such signal.
//!
//! `lld` cannot know that, so we cut the functions that lead there: each gets the body `xor eax, eax; ret` (nothing, a null
//! pointer, or `Ok(())`), or a jump to a function of the guest object, and loses its relocations, and `--gc-sections` does the rest. Where a function is not found as
//! expected (another std, no LTO), nothing changes.

/// A function that is cut.
struct Cut {
    /// How its mangled name begins.
    start: &'static str,
    /// What else is in its mangled name.
    parts: &'static [&'static str],
    /// It is cut only if the last cut in the list that does not follow another was made.
    follows: bool,
    /// The function of the guest object that takes its place.
    instead: Option<&'static str>,
}

const CUTS: [Cut; 8] = [
    // `std::backtrace_rs::symbolize::gimli::Cache::with_global::<…>()`
    Cut {
        start: "_RI",
        parts: &["12backtrace_rs9symbolize5gimli", "5Cache11with_global"],
        follows: false,
        instead: None,
    },
    // The callbacks that it would have called with a symbol: the closure in the closure in `_print_fmt(&Symbol)`, and
    // `<SymbolName as Display>::fmt() -> Result<(), Error>`.
    Cut { start: "_RNCNC", parts: &["3std3sys9backtrace10__print_fmt"], follows: true, instead: None },
    Cut {
        start: "_RNvX",
        parts: &["3std12backtrace_rs9symbolize", "10SymbolName", "3fmt7Display3fmt"],
        follows: false,
        instead: None,
    },
    // `<BacktraceLock::print::DisplayBacktrace as Display>::fmt(…) -> Result<(), Error>`: the backtrace of a panic.
    Cut {
        start: "_RNvX",
        parts: &["3std3sys9backtrace", "13BacktraceLock5print", "16DisplayBacktrace", "3fmt7Display3fmt"],
        follows: false,
        instead: Some("donjon_backtrace"),
    },
    // `std::sys::pal::unix::stack_overflow::imp::make_handler(bool, …) -> Handler`, which is a pointer that may be null.
    Cut {
        start: "_RN",
        parts: &["3std3sys3pal4unix14stack_overflow3imp12make_handler"],
        follows: false,
        instead: None,
    },
    // `drop_handler(*mut c_void)`, the handler itself, which is registered and never called, and `thread_info::set_current_info(…)`, which
    // only the handler would have read.
    Cut { start: "_RN", parts: &["3std3sys3pal4unix14stack_overflow3imp12drop_handler"], follows: true, instead: None },
    Cut {
        start: "_RN",
        parts: &["3std3sys3pal4unix14stack_overflow3imp14signal_handler"],
        follows: true,
        instead: None,
    },
    Cut {
        start: "_RN",
        parts: &["3std3sys3pal4unix14stack_overflow11thread_info16set_current_info"],
        follows: true,
        instead: None,
    },
];

/// `xor eax, eax; ret`
const BODY: [u8; 3] = [0x31, 0xc0, 0xc3];
/// `jmp rel32`
const JUMP: [u8; 5] = [0xe9, 0, 0, 0, 0];

const SHT_SYMTAB: u32 = 2;
const SHT_RELA: u32 = 4;
const STT_FUNC: u8 = 2;
const R_X86_64_PLT32: u64 = 4;

/// Cuts what cannot work out of a relocatable object. Returns whether there was anything.
pub fn cut(object: &mut Vec<u8>) -> bool {
    let (mut any, mut led) = (false, false);
    for cut in &CUTS {
        if cut.follows && !led {
            continue;
        }
        let wanted = |name: &str| name.starts_with(cut.start) && cut.parts.iter().all(|part| name.contains(part));
        let found = functions(object, wanted).unwrap_or_default();
        let one = |f: &Function| match cut.instead {
            None => replace(object, f, &BODY, None),
            Some(name) => {
                let symbol = add_symbol(object, f.table, name)?;
                replace(object, f, &JUMP, Some(symbol))
            }
        };
        let made = found.iter().map(one).fold(false, |any, one| any | one.is_some());
        if !cut.follows {
            led = made;
        }
        any |= made;
    }
    any
}

/// A function that has a section to itself.
struct Function {
    /// File offset of its symbol table's section header.
    table: usize,
    /// Its symbol's offset within that table.
    symbol: usize,
    /// File offset of its section's header.
    section: usize,
    /// That section's number.
    index: u32,
}

fn functions(b: &[u8], wanted: impl Fn(&str) -> bool) -> Option<Vec<Function>> {
    if b.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let mut out = Vec::new();
    let sections: Vec<usize> = headers(b)?.collect();
    for &symtab in sections.iter().filter(|&&s| u32_at(b, s + 4) == Some(SHT_SYMTAB)) {
        let strtab = *sections.get(u32_at(b, symtab + 40)? as usize)?;
        let (names, at, len) = (u64_at(b, strtab + 24)?, u64_at(b, symtab + 24)?, u64_at(b, symtab + 32)?);
        for offset in (0..len).step_by(24) {
            let symbol = at.checked_add(offset)?;
            let (info, index) = (*b.get(symbol + 4)?, u32::from(u16_at(b, symbol + 6)?));
            let Some(&section) = sections.get(index as usize).filter(|_| info & 15 == STT_FUNC && index != 0) else {
                continue;
            };
            let alone = u64_at(b, symbol + 8)? == 0 && u64_at(b, symbol + 16)? == u64_at(b, section + 32)?;
            let name = b.get(names.checked_add(u32_at(b, symbol)? as usize)?..)?;
            let name = name.split(|&c| c == 0).next().and_then(|n| std::str::from_utf8(n).ok())?;
            if alone && u64_at(b, symbol + 16)? >= JUMP.len() && wanted(name) {
                out.push(Function { table: symtab, symbol: offset, section, index });
            }
        }
    }
    Some(out)
}

/// Gives a function another body. `target` is the symbol that its one relocation, one byte into it, names.
fn replace(b: &mut [u8], f: &Function, body: &[u8], target: Option<u64>) -> Option<()> {
    let relocations: Vec<usize> =
        headers(b)?.filter(|&s| u32_at(b, s + 4) == Some(SHT_RELA) && u32_at(b, s + 44) == Some(f.index)).collect();
    if let Some(symbol) = target {
        // The function's first relocation becomes this one.
        let &[table] = relocations.as_slice() else { return None };
        let entry = u64_at(b, table + 24).filter(|_| u64_at(b, table + 32) >= Some(24))?;
        for (at, word) in [(0, 1), (8, symbol << 32 | R_X86_64_PLT32), (16, 4u64.wrapping_neg())] {
            b.get_mut(entry + at..entry + at + 8)?.copy_from_slice(&word.to_le_bytes());
        }
    }
    let code = u64_at(b, f.section + 24)?;
    b.get_mut(code..code.checked_add(body.len())?)?.copy_from_slice(body);
    // The symbol table may have moved since the function was found; its section header has not.
    let symbol = u64_at(b, f.table + 24)?.checked_add(f.symbol)?;
    for size in [f.section + 32, symbol + 16] {
        b.get_mut(size..size.checked_add(8)?)?.copy_from_slice(&(body.len() as u64).to_le_bytes());
    }
    for s in relocations {
        let len: u64 = if target.is_some() { 24 } else { 0 };
        b.get_mut(s + 32..s + 40)?.copy_from_slice(&len.to_le_bytes());
    }
    Some(())
}

/// Adds an undefined global symbol; returns its number. Both tables move to the end of the file.
fn add_symbol(b: &mut Vec<u8>, table: usize, name: &str) -> Option<u64> {
    let names = headers(b)?.nth(u32_at(b, table + 40)? as usize)?;
    let content = |header: usize| -> Option<Vec<u8>> {
        let at = u64_at(b, header + 24)?;
        Some(b.get(at..at.checked_add(u64_at(b, header + 32)?)?)?.to_vec())
    };
    let (mut symbols, mut strings) = (content(table)?, content(names)?);
    let number = symbols.len() as u64 / 24;
    symbols.extend(u32::try_from(strings.len()).ok()?.to_le_bytes());
    symbols.extend([0x10, 0, 0, 0]); // global, of no type, undefined
    symbols.extend([0; 16]);
    strings.extend(name.bytes().chain([0]));
    for (header, content) in [(table, symbols), (names, strings)] {
        b.resize(b.len().next_multiple_of(8), 0);
        for (field, value) in [(24, b.len()), (32, content.len())] {
            b.get_mut(header + field..header + field + 8)?.copy_from_slice(&(value as u64).to_le_bytes());
        }
        b.extend(content);
    }
    Some(number)
}

/// File offsets of the section headers.
fn headers(b: &[u8]) -> Option<impl Iterator<Item = usize> + use<>> {
    let at = u64_at(b, 40)?;
    let count = match u16_at(b, 60)? {
        0 => u64_at(b, at.checked_add(32)?)?, // more than fit: the first header says how many
        n => n as usize,
    };
    let end = at.checked_add(count.checked_mul(64)?)?;
    (end <= b.len()).then(|| (at..end).step_by(64))
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*b.get(at..)?.first_chunk()?))
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*b.get(at..)?.first_chunk()?))
}

fn u64_at(b: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(*b.get(at..)?.first_chunk()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::{
        Architecture, BinaryFormat, Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, SymbolFlags,
        SymbolKind, SymbolScope,
        write::{Object, Relocation, StandardSection, Symbol, SymbolSection},
    };

    fn sample(name: &str) -> Vec<u8> {
        let mut o = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        let mut symbols = Vec::new();
        for name in ["other", name] {
            let section = o.add_subsection(StandardSection::Text, name.as_bytes());
            let symbol = o.add_symbol(Symbol {
                name: name.into(),
                value: 0,
                size: 0,
                kind: SymbolKind::Text,
                scope: SymbolScope::Compilation,
                weak: false,
                section: SymbolSection::Undefined,
                flags: SymbolFlags::None,
            });
            o.add_symbol_data(symbol, section, &[0x90; 20], 16);
            symbols.push((section, symbol));
        }
        let call = object::write::RelocationFlags::Elf { r_type: object::elf::R_X86_64_PLT32 };
        o.add_relocation(symbols[1].0, Relocation { offset: 4, symbol: symbols[0].1, addend: -4, flags: call })
            .unwrap();
        o.write().unwrap()
    }

    #[test]
    fn dead_functions_are_cut_and_nothing_else() {
        let name = "_RINvMs0_NtNtNtCs1_3std12backtrace_rs9symbolize5gimliNtB6_5Cache11with_globalE";
        let mut bytes = sample(name);
        assert!(cut(&mut bytes));
        let o = object::File::parse(&*bytes).unwrap();
        let section = |n: &str| {
            let symbol = o.symbols().find(|s| s.name() == Ok(n)).unwrap();
            (o.section_by_index(symbol.section_index().unwrap()).unwrap(), symbol.size())
        };
        let (emptied, size) = section(name);
        assert_eq!((emptied.data().unwrap(), size, emptied.relocations().count()), (&BODY[..], 3, 0));
        assert_eq!(section("other").0.data().unwrap(), [0x90; 20]);
        let mut bytes = sample("_ZN4user4main");
        let before = bytes.clone();
        assert!(!cut(&mut bytes));
        assert_eq!(bytes, before);
    }

    #[test]
    fn a_panic_s_backtrace_is_printed_by_the_guest_object() {
        let name = "_RNvXNvMNtNtCs1_3std3sys9backtraceNtB5_13BacktraceLock5printNtB2_16DisplayBacktraceNtNtCs2_4core3fmt7Display3fmt";
        let mut bytes = sample(name);
        assert!(cut(&mut bytes));
        let o = object::File::parse(&*bytes).unwrap();
        let symbol = o.symbols().find(|s| s.name() == Ok(name)).unwrap();
        let section = o.section_by_index(symbol.section_index().unwrap()).unwrap();
        assert_eq!(section.data().unwrap(), JUMP);
        let [(at, relocation)] = section.relocations().collect::<Vec<_>>().try_into().unwrap();
        let object::RelocationTarget::Symbol(target) = relocation.target() else { panic!("no symbol") };
        let target = o.symbol_by_index(target).unwrap();
        assert_eq!((at, relocation.addend(), target.name()), (1, -4, Ok("donjon_backtrace")));
        assert!(target.is_undefined() && target.is_global());
    }

    #[test]
    fn a_cut_that_follows_needs_the_one_before() {
        // Without `make_handler`, `drop_handler` has work to do.
        assert!(!cut(&mut sample("_RNvNtCs1_3std3sys3pal4unix14stack_overflow3imp12drop_handler")));
        assert!(cut(&mut sample("_RNvNtCs1_3std3sys3pal4unix14stack_overflow3imp12make_handler")));
    }

    #[test]
    fn damaged_objects_are_left_alone() {
        let bytes = sample("_RI5Cache11with_global12backtrace_rs9symbolize5gimli");
        for n in 0..bytes.len() {
            cut(&mut bytes[..n].to_vec());
        }
    }
}
