//! What a guest's C library refuses is written down: each function of `guest/libc/src/refused.rs` is named in `docs/compatibility.md`.

use std::collections::BTreeSet;

use crate::repo_root;

/// The functions that refuse, from the text of that file: those of the lists, and those that stand by themselves.
fn refused(source: &str) -> Vec<&str> {
    let mut out = Vec::new();
    for list in ["\nrefused! {", "\nrefused_directly! {"] {
        let lists = source.split(list).skip(1).filter_map(|rest| rest.split_once('}'));
        out.extend(lists.flat_map(|(names, _)| names.split_whitespace()));
    }
    let functions = source.lines().filter_map(|l| l.strip_prefix("pub extern \"C\" fn "));
    out.extend(functions.filter_map(|f| f.split('(').next()));
    out
}

/// What the document names between backquotes.
fn named(document: &str) -> BTreeSet<&str> {
    document.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// Whether it is named, or a stem of it is: `wait*`.
fn is_named(function: &str, named: &BTreeSet<&str>) -> bool {
    named.contains(function)
        || named.iter().filter_map(|n| n.strip_suffix('*')).any(|stem| stem.len() >= 4 && function.starts_with(stem))
}

#[test]
fn what_is_refused_is_documented() {
    let read = |path: &str| std::fs::read_to_string(repo_root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let (source, document) = (read("guest/libc/src/refused.rs"), read("docs/compatibility.md"));
    let (refused, named) = (refused(&source), named(&document));
    assert!(refused.len() > 100, "only {} functions were found: this test is broken", refused.len());
    let absent: Vec<&&str> = refused.iter().filter(|f| !is_named(f, &named)).collect();
    assert!(absent.is_empty(), "docs/compatibility.md does not name {absent:?}");
}

#[test]
fn what_is_not_documented_is_found_out() {
    let source = "macro_rules! refused {\n    x }\nrefused! { fork wait4\n    nice }\n\nrefused_directly! {\n  posix_spawn\n}\n        \
                  pub extern \"C\" fn $name() -> c_int {\npub extern \"C\" fn system() -> c_int {\n";
    let functions = refused(source);
    assert_eq!(functions, ["fork", "wait4", "nice", "posix_spawn", "system"]);
    let named = named("- `fork`, `wait*`, `posix_spawn*` (returns `ENOSYS`), nice\n`a*` `sys*`");
    let absent: Vec<_> = functions.into_iter().filter(|f| !is_named(f, &named)).collect();
    assert_eq!(absent, ["nice", "system"]);
}
