//! What the documents promise names its test, and the test is there.
//!
//! Looks at each table whose last column is the test: `docs/soundness.md` (claims) and `docs/threat-model.md` (promises).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::repo_root;

/// Functions that tests run, with the files that they are in: those with `#[test]` or tokio's, and those of `under_engines!`.
fn tests() -> HashMap<String, Vec<PathBuf>> {
    let mut out: HashMap<String, Vec<PathBuf>> = HashMap::new();
    for file in sources() {
        let text =
            std::fs::read_to_string(repo_root().join(&file)).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let mut marked = false;
        let mut in_list = false;
        for line in text.lines().map(str::trim) {
            let name =
                |rest: &str| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("").to_owned();
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                marked = true;
            } else if let Some(rest) = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ") {
                if marked {
                    out.entry(name(rest)).or_default().push(file.clone());
                }
                marked = false;
            } else if line.starts_with("crate::under_engines! {") {
                in_list = true;
            } else if line == "}" {
                in_list = false;
            } else if in_list && line.contains(": ") {
                out.entry(name(line)).or_default().push(file.clone());
            }
        }
    }
    out
}

/// Every Rust file of the repository, relative to its root.
fn sources() -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut todo: Vec<PathBuf> =
        ["abi", "apps", "benches", "fuzz/src", "guest", "host", "net", "tests", "xtask"].map(PathBuf::from).into();
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(repo_root().join(&dir)).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let entry = entry.expect("a readable directory");
            let path = dir.join(entry.file_name());
            if entry.path().is_dir() {
                if !path.ends_with("target") {
                    todo.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    out
}

/// Rows of the tables whose last column says which test it is: what is promised, and that column.
fn promises(document: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut is_ours = false;
    for line in document.lines() {
        let Some(row) = line.strip_prefix('|').and_then(|l| l.strip_suffix('|')) else {
            // (Some tables of ours are cut in two by an empty line, and go on.)
            is_ours &= line.is_empty();
            continue;
        };
        let cells: Vec<&str> = row.split(" | ").map(str::trim).collect();
        let last = cells.last().copied().unwrap_or_default();
        if last == "test" || last == "the test for it" {
            is_ours = true;
        } else if is_ours && !last.starts_with("---") {
            let claim = cells[..cells.len() - 1].iter().find(|c| c.contains(' ')).copied().unwrap_or_default();
            out.push((claim.to_owned(), last.to_owned()));
        }
    }
    out
}

/// What a test column names, between backquotes.
fn named(column: &str) -> Vec<&str> {
    column.split('`').skip(1).step_by(2).collect()
}

/// Why that name is no test of ours, if it is none.
fn missing(name: &str, tests: &HashMap<String, Vec<PathBuf>>) -> Option<String> {
    if name.contains('/') {
        return (!repo_root().join(name).exists()).then(|| format!("there is no {name}"));
    }
    let parts: Vec<&str> = name.split("::").collect();
    let (last, modules) = parts.split_last()?;
    // A module is a file, or a directory of files; `tests` is one within a file, or a file.
    let is_in = |file: &Path, module: &str| {
        file.components().any(|c| Path::new(c.as_os_str()).file_stem().is_some_and(|s| s == module))
    };
    let fits = |file: &PathBuf| modules.iter().all(|m| *m == "tests" || is_in(file, m));
    if *last == "*" {
        return (!tests.values().flatten().any(fits)).then(|| format!("there is no test in {name}"));
    }
    match tests.get(*last) {
        Some(files) if files.iter().any(fits) => None,
        Some(files) => Some(format!("{name} is elsewhere: {files:?}")),
        None => Some(format!("there is no test {name}")),
    }
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let tests = tests();
    assert!(tests.len() > 500, "only {} tests were found: this test is broken", tests.len());
    let mut wrong = Vec::new();
    for document in ["docs/soundness.md", "docs/threat-model.md"] {
        let text = std::fs::read_to_string(repo_root().join(document)).expect("a document of this repository");
        let promises = promises(&text);
        assert!(promises.len() >= 9, "only {} promises were found in {document}: this test is broken", promises.len());
        for (claim, column) in promises {
            let names = named(&column);
            if names.is_empty() {
                wrong.push(format!("{document}: {claim}: no test is named"));
            }
            wrong.extend(names.iter().filter_map(|n| missing(n, &tests)).map(|w| format!("{document}: {claim}: {w}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// As `docs/soundness.md` says of the workspace and of the web server.
#[test]
fn every_crate_denies_unsafe_code() {
    let read =
        |path: String| std::fs::read_to_string(repo_root().join(&path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let workspace = read("Cargo.toml".into());
    let (_, members) = workspace.split_once("\nmembers = [").expect("members");
    let members: Vec<&str> = members.split(']').next().unwrap_or_default().split('"').skip(1).step_by(2).collect();
    assert!(members.len() > 10, "{members:?}");
    let wrong: Vec<_> =
        members.iter().filter(|m| !read(format!("{m}/Cargo.toml")).contains("\n[lints]\nworkspace = true\n")).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    for (manifest, table) in [("Cargo.toml", "\n[workspace.lints.rust]\n"), ("apps/web/Cargo.toml", "\n[lints.rust]\n")]
    {
        let text = read(manifest.into());
        let lints = text.split_once(table).unwrap_or_else(|| panic!("{manifest}")).1.split("\n[").next();
        assert!(lints.is_some_and(|l| l.contains("unsafe_code = \"deny\"")), "{manifest}");
    }
}

#[test]
fn what_is_no_test_is_found_out() {
    let tests = tests();
    for good in [
        "security::raw_system_calls",
        "only_listed_calls_pass",
        "hostile::*",
        "filter::tests::nothing_is_spoofed",
        "tests/e2e/boot.rs",
    ] {
        assert_eq!(missing(good, &tests), None);
    }
    for bad in ["no_such_test_anywhere", "limits::raw_system_calls", "nowhere::*", "tests/e2e/none.rs", "tests"] {
        assert!(missing(bad, &tests).is_some(), "{bad}");
    }
    let table = "| claim | test |\n| --- | --- |\n| it holds | `a`, `b::c` |\n\n| so does this | nothing |\ntext\n| it holds | `d` |\n";
    let rows = promises(table);
    assert_eq!(rows.iter().map(|r| r.0.as_str()).collect::<Vec<_>>(), ["it holds", "so does this"]);
    assert_eq!((named(&rows[0].1), named(&rows[1].1)), (vec!["a", "b::c"], vec![]));
}
