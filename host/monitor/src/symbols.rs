//! Names for the addresses in a crash report.
//!
//! The guest knows no names: its image has no symbols. The builder leaves the linked program, symbols included, beside the image
//! (`IMAGE.debug`); a report's `image+0x…` is looked up there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use object::{Object, ObjectSymbol, SymbolKind};

/// What precedes an address in a report.
const MARK: &str = "image+0x";

/// The largest file that is read, bytes: it is read as a whole.
const FILE_MAX: u64 = 1 << 30;

/// Adds names to each `image+0x…` in `report` if there is a file with symbols beside the image.
pub fn annotate(report: &str, image: &Path) -> String {
    Names::new(image).annotate(report).unwrap_or_else(|| report.into())
}

/// The names of an image's functions: the file is opened at once (later the monitor cannot), and read when the first name is asked for.
#[derive(Debug)]
pub struct Names {
    /// The file and its length when it was opened, bytes: it may be another by the time it is read.
    file: Option<(File, u64)>,
    table: Option<Option<Table>>,
}

impl Names {
    /// Names for the image at this path.
    pub fn new(image: &Path) -> Names {
        let small = |file: File| {
            let is = file.metadata().ok().filter(|m| m.is_file() && m.len() <= FILE_MAX)?;
            Some((file, is.len()))
        };
        Names { file: File::open(beside(image)).ok().and_then(small), table: None }
    }

    /// The size of the file.
    pub fn bytes(&self) -> u64 {
        self.file.as_ref().map_or(0, |(_, len)| *len)
    }

    /// A crash report with names, as text that is safe on a terminal: neither is the host's own.
    pub(crate) fn report(&mut self, report: &[u8]) -> String {
        let text = String::from_utf8_lossy(report);
        let named = self.annotate(&text);
        crate::console::harmless(named.as_deref().unwrap_or(&text).as_bytes())
    }

    /// `text` with a name behind each `image+0x…`; `None` if there is nothing to add.
    pub fn annotate(&mut self, text: &str) -> Option<String> {
        if !text.contains(MARK) {
            return None;
        }
        let file = &self.file;
        let read = || {
            let (file, len) = file.as_ref()?;
            Table::parse(&whole(file, *len)?)
        };
        let table = self.table.get_or_insert_with(read).as_ref()?;
        let mut out = String::with_capacity(text.len() * 2);
        let mut rest = text;
        while let Some(at) = rest.find(MARK) {
            let digits = at + MARK.len();
            let len = rest[digits..].bytes().take_while(u8::is_ascii_hexdigit).count();
            let (before, after) = rest.split_at(digits + len);
            out.push_str(before);
            let address = u64::from_str_radix(&rest[digits..digits + len], 16).ok();
            if let Some(name) = address.and_then(|a| table.name(a, is_caller(&rest[..at]))) {
                out.push_str(" (");
                out.push_str(&name);
                out.push(')');
            }
            rest = after;
        }
        out.push_str(rest);
        Some(out)
    }
}

/// The content of a file of this length, bytes; nothing if it is shorter now. More than that is not read: the monitor's memory is bounded.
fn whole(file: &File, len: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).ok()?];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(bytes)
}

/// The file with symbols of an image: its path and `.debug`.
pub fn beside(image: &Path) -> PathBuf {
    let mut path = image.as_os_str().to_owned();
    path.push(".debug");
    path.into()
}

/// Whether what stands before an address says that it is a caller's: `  1: ` and so on, but not `  0: `.
fn is_caller(before: &str) -> bool {
    let number = before.strip_suffix(": ").map(|b| b.trim_end_matches(|c: char| c.is_ascii_digit()).len());
    number.is_some_and(|at| before[at..].trim_end_matches(": ").parse::<u32>().is_ok_and(|n| n > 0))
}

/// Functions by address.
#[derive(Debug)]
struct Table(Vec<(u64, u64, String)>);

impl Table {
    fn parse(bytes: &[u8]) -> Option<Table> {
        let file = object::File::parse(bytes).ok()?;
        let mut functions: Vec<_> = file
            .symbols()
            .filter(|s| s.kind() == SymbolKind::Text && s.is_definition())
            .filter_map(|s| Some((s.address(), s.size(), s.name().ok()?.to_owned())))
            .collect();
        functions.sort();
        Some(Table(functions))
    }

    /// `function+0x…` for an address; assembly without a size reaches to the next function. The address of a caller is where
    /// the call returns to, which is in the next function if the call was the last instruction.
    fn name(&self, address: u64, caller: bool) -> Option<String> {
        let inside = address.checked_sub(u64::from(caller))?;
        let index = self.0.partition_point(|(start, ..)| *start <= inside).checked_sub(1)?;
        let (start, size, name) = &self.0[index];
        let offset = address - start;
        // Return addresses may lie just behind a function that does not return.
        if *size > 0 && offset > *size {
            return None;
        }
        Some(format!("{:#}+{offset:#x}", rustc_demangle::demangle(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_added_where_they_are_known() {
        let table =
            Table(vec![(0x1000, 0x10, "_ZN4core3fmt5write17h0123456789abcdefE".into()), (0x2000, 0, "asm".into())]);
        assert_eq!(table.name(0x1004, false).as_deref(), Some("core::fmt::write+0x4"));
        assert_eq!(table.name(0x1010, false).as_deref(), Some("core::fmt::write+0x10"));
        assert_eq!(table.name(0x1011, false), None);
        assert_eq!(table.name(0x2fff, false).as_deref(), Some("asm+0xfff"));
        assert_eq!(table.name(0xfff, false), None);
    }

    #[test]
    fn names_do_nothing_to_a_terminal() {
        let table = Table(vec![(0x1000, 0x10, "\x1b[2Jf\u{9b}1A".into())]);
        let mut names = Names { file: None, table: Some(Some(table)) };
        assert_eq!(names.report(b"\x1b[1Aat image+0x1004"), "^[[1Aat image+0x1004 (^[[2Jf?1A+0x4)");
        assert_eq!(names.report(b"\x9b2J\x07"), "\u{fffd}2J^G");
    }

    #[test]
    fn a_caller_is_where_the_call_is() {
        let table = Table(vec![(0x1000, 0x10, "caller".into()), (0x1010, 0x10, "next".into())]);
        assert_eq!(table.name(0x1010, true).as_deref(), Some("caller+0x10"));
        assert_eq!(table.name(0x1010, false).as_deref(), Some("next+0x0"));
        assert!(is_caller("  1: ") && is_caller("x\n  12: "));
        assert!(!is_caller("  0: ") && !is_caller("fault at ") && !is_caller(": ") && !is_caller(""));
    }

    #[test]
    fn reports_are_annotated_with_this_very_program() {
        let dir = std::env::temp_dir().join(format!("donjon-symbols-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let image = dir.join("x.img");
        assert_eq!(annotate("at image+0x10", &image), "at image+0x10", "no file");
        std::fs::copy(std::env::current_exe().unwrap(), beside(&image)).unwrap();
        let bytes = std::fs::read(beside(&image)).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let here = file.symbols().find(|s| s.name().is_ok_and(|n| n.contains("beside"))).unwrap().address();
        let got = annotate(&format!("fault at image+{here:#x}, called by image+0x1"), &image);
        assert!(
            got.starts_with(&format!("fault at image+{here:#x} (donjon_monitor::symbols::beside+0x0), called")),
            "{got}"
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
