//! `cargo xtask crates`: the tests that published crates carry, unmodified, one guest per file.
//!
//! Each crate has a data file, `tests/crates/NAME.toml`. The crate is fetched by cargo, copied under `target/`, and made to stand alone; `donjon test`
//! does the rest, as it would for any crate. The data file lists what is expected to fail, with the reason; anything else that fails fails the
//! task, and so does a listed test that passes. So does, unless files are named, a share of tests that pass below 95 %.

mod run;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use donjon_tests::{repo_root, target_dir};
use serde::Deserialize;

use crate::process::{self, Result, cargo, failed, output, usage};
use crate::test::Counts;
use run::{Engine, Outcome};

/// Of a hundred tests that ran, how many must pass: the list of expected failures is no place to put everything.
const LEAST_PASSED: u64 = 95;
/// What the unit tests of a library are called among the files of tests.
const LIB: &str = "lib";

/// A crate's data file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    version: String,
    /// Comma-separated, besides the default ones.
    #[serde(default)]
    features: String,
    /// Memory of a guest, as `donjon test --memory` takes it.
    memory: Option<String>,
    /// Beginnings of names of files of tests (`lib` is the library's unit tests); without them, all.
    #[serde(default)]
    files: Vec<String>,
    /// The files that `cargo xtask test` runs, chosen for short builds.
    #[serde(default)]
    quick: Vec<String>,
    /// file -> test -> reason; the test `*` stands for the whole file.
    #[serde(default)]
    expected: BTreeMap<String, BTreeMap<String, Reason>>,
}

/// Why a test is expected to fail: under every engine, or engine -> reason. A test whose reason begins with `hangs: ` is not run (it counts as failed);
/// with `sometimes: ` it may pass as well.
#[derive(Deserialize)]
#[serde(untagged)]
enum Reason {
    Everywhere(String),
    Under(BTreeMap<String, String>),
}

impl Reason {
    fn under(&self, engine: Engine) -> Option<&str> {
        match self {
            Reason::Everywhere(reason) => Some(reason),
            Reason::Under(reasons) => reasons.get(engine.name()).map(String::as_str),
        }
    }
}

impl Suite {
    fn load(name: &str) -> Result<Suite> {
        let path = data_dir().join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&path).map_err(|e| {
            usage(format!("{}: {e}; there is one for: {}", path.display(), names().unwrap_or_default().join(", ")))
        })?;
        toml::from_str(&text).map_err(|e| failed(format!("{}: {e}", path.display())))
    }

    /// What is expected to fail in a file: test -> reason. Nothing is, natively.
    fn known(&self, file: &str, engine: Engine) -> BTreeMap<&str, &str> {
        if engine == Engine::Native {
            return BTreeMap::new();
        }
        let tests = self.expected.get(file).into_iter().flatten();
        tests.filter_map(|(test, reason)| Some((test.as_str(), reason.under(engine)?))).collect()
    }
}

fn data_dir() -> PathBuf {
    repo_root().join("tests/crates")
}

/// The crates that have a data file.
fn names() -> Result<Vec<String>> {
    stems(&data_dir(), ".toml")
}

/// The names of a directory's files that end so, without the end.
fn stems(dir: &Path, end: &str) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).map_err(|e| failed(format!("{}: {e}", dir.display())))?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(end)?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// `cargo xtask crates`.
pub fn main<'a>(mut args: impl Iterator<Item = &'a str>) -> Result {
    let mut engine = Engine::Process;
    let mut wanted: Vec<String> = Vec::new();
    while let Some(arg) = args.next() {
        match arg {
            "--engine" => engine = engine_option(args.next())?,
            _ if arg.starts_with('-') => return Err(usage(format!("crates does not know {arg:?}"))),
            _ => wanted.push(arg.to_owned()),
        }
    }
    if wanted.is_empty() {
        wanted = names()?;
    }
    let mut rows = Vec::new();
    let mut bad = Vec::new();
    for name in &wanted {
        let suite = Suite::load(name)?;
        let mut counts = Counts::default();
        // One crate that cannot even be built is no reason not to look at the others.
        let result = prepare(name, &suite)
            .and_then(|dir| run_files(name, &suite, &dir, &files(&suite, &dir)?, engine, LEAST_PASSED, &mut counts));
        if let Err(e) = &result {
            println!("FAILED {name}: {}", e.message);
            bad.push(name.as_str());
        }
        rows.push((format!("{name} {}", suite.version), counts));
    }
    println!("\n{:<28} {:>6} {:>6} {:>6} {:>7}  {}", "crate", "passed", "failed", "known", "ignored", engine.name());
    for (name, c) in &rows {
        println!("{name:<28} {:>6} {:>6} {:>6} {:>7}", c.passed, c.failed, c.known, c.ignored);
    }
    if bad.is_empty() { Ok(()) } else { Err(failed(format!("failed: {}", bad.join(", ")))) }
}

/// `cargo xtask tokio`: of that one crate, files may be chosen.
pub fn tokio<'a>(mut args: impl Iterator<Item = &'a str>) -> Result {
    let mut engine = Engine::Process;
    let mut chosen: Vec<String> = Vec::new();
    let mut all = false;
    while let Some(arg) = args.next() {
        match arg {
            "--engine" => engine = engine_option(args.next())?,
            "--all" => all = true,
            _ if arg.starts_with('-') => return Err(usage(format!("tokio does not know {arg:?}"))),
            _ => chosen.push(arg.to_owned()),
        }
    }
    let suite = Suite::load("tokio")?;
    let dir = prepare("tokio", &suite)?;
    // One file may have most of the failures.
    let least = if chosen.is_empty() { LEAST_PASSED } else { 0 };
    if all {
        chosen = stems(&dir.join("tests"), ".rs")?;
    } else if chosen.is_empty() {
        chosen = files(&suite, &dir)?;
    }
    run_files("tokio", &suite, &dir, &chosen, engine, least, &mut Counts::default())
}

fn engine_option(name: Option<&str>) -> Result<Engine> {
    name.and_then(Engine::from_name).ok_or_else(|| usage("--engine takes process, qemu or native"))
}

/// The bounded set for `cargo xtask test`.
pub fn subset(counts: &mut Counts) -> Result {
    let mut result = Ok(());
    for name in names()? {
        let suite = Suite::load(&name)?;
        if suite.quick.is_empty() {
            continue;
        }
        let mut own = Counts::default();
        let one = prepare(&name, &suite)
            .and_then(|dir| run_files(&name, &suite, &dir, &suite.quick, Engine::Process, LEAST_PASSED, &mut own));
        counts.add(&own);
        // All of them, so that one failure does not hide another.
        result = result.and(one);
    }
    result
}

/// Copies a crate's published source under `target/` and makes it a workspace of its own. Returns the directory.
fn prepare(name: &str, suite: &Suite) -> Result<PathBuf> {
    let version = &suite.version;
    let work = target_dir().join("crates");
    let dir = work.join(format!("{name}-{version}"));
    let patched = dir.join("Cargo.toml");
    let mark = "# Appended by cargo xtask crates";
    if std::fs::read_to_string(&patched).is_ok_and(|text| text.contains(mark)) {
        return Ok(dir);
    }
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |e: std::io::Error| failed(format!("{path}: {e}"))
    };
    // A crate that does nothing but depend on it: cargo then fetches it and knows where it is.
    let fetch = work.join("fetch").join(name);
    std::fs::create_dir_all(fetch.join("src")).map_err(io(&fetch))?;
    std::fs::write(fetch.join("src/lib.rs"), "").map_err(io(&fetch))?;
    let manifest = format!(
        "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[dependencies]\n{name} = \"={version}\"\n[workspace]\n"
    );
    std::fs::write(fetch.join("Cargo.toml"), manifest).map_err(io(&fetch))?;
    patiently(cargo().current_dir(&fetch).args(["fetch", "--quiet"]))?;
    let (worked, metadata) = output(
        cargo().current_dir(&fetch).args(["metadata", "--quiet", "--format-version", "1"]).stderr(Stdio::inherit()),
    )?;
    let source = metadata
        .split('"')
        .find_map(|word| word.strip_suffix("/Cargo.toml").filter(|path| path.ends_with(&format!("/{name}-{version}"))))
        .filter(|_| worked)
        .ok_or_else(|| failed(format!("cargo could not fetch {name} {version}")))?;

    if dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(io(&dir))?;
    }
    process::run(Command::new("cp").args(["-r", "--", source]).arg(&dir))?;
    // Published crates have a lock file, so that the versions are those of the day. Ours is for a crate whose own does not suit.
    let lock = data_dir().join(format!("{name}.lock"));
    if lock.exists() {
        std::fs::copy(&lock, dir.join("Cargo.lock")).map_err(io(&lock))?;
    }
    let text = std::fs::read_to_string(&patched).map_err(io(&patched))?;
    // Its dev-dependencies may depend on it too: on this very copy.
    std::fs::write(
        &patched,
        format!("{text}\n{mark}.\n[patch.crates-io]\n{name} = {{ path = \".\" }}\n\n[workspace]\n"),
    )
    .map_err(io(&patched))?;
    Ok(dir)
}

/// Runs what depends on the network, up to three times.
fn patiently(command: &mut Command) -> Result {
    let mut result = process::run(command);
    for pause in [5, 30] {
        if result.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_secs(pause));
        result = process::run(command);
    }
    result
}

/// The crate's files of tests that are wanted.
fn files(suite: &Suite, dir: &Path) -> Result<Vec<String>> {
    let mut files = vec![LIB.to_owned()];
    if dir.join("tests").is_dir() {
        files.extend(stems(&dir.join("tests"), ".rs")?);
    }
    files.retain(|f| suite.files.is_empty() || suite.files.iter().any(|begin| f.starts_with(begin)));
    Ok(files)
}

fn run_files(
    name: &str,
    suite: &Suite,
    dir: &Path,
    files: &[String],
    engine: Engine,
    least: u64,
    counts: &mut Counts,
) -> Result {
    let mut unexpected = Vec::new();
    let mut stale = Vec::new();
    println!("\n{name}: building {} files of tests", files.len());
    // So that a registry's bad moment is no failure of `donjon test`.
    patiently(cargo().current_dir(dir).args(["fetch", "--quiet", "--target", "x86_64-unknown-linux-gnu"]))?;
    process::run(&mut run::build(dir, suite, files, engine))?;
    println!(
        "{:<28} {:>6} {:>6} {:>7} {:>8} {:>7}  {}",
        "file",
        "passed",
        "failed",
        "ignored",
        "expected",
        "seconds",
        engine.name()
    );
    for file in files {
        let known = suite.known(file, engine);
        let hangs: Vec<&str> =
            known.iter().filter(|(_, why)| why.starts_with("hangs: ")).map(|(test, _)| *test).collect();
        let log = target_dir().join("crates/logs").join(format!("{name}.{file}.{}.txt", engine.name()));
        let mut outcome = run::file(dir, suite, file, engine, &hangs, &log)?;
        outcome.failed.extend(hangs.iter().map(|test| (*test).to_owned()));
        let whole = known.contains_key("*");
        let surprising: Vec<&String> =
            outcome.failed.iter().filter(|t| !whole && !known.contains_key(t.as_str())).collect();
        unexpected.extend(surprising.iter().map(|t| format!("{file}::{t}")));
        stale.extend(outcome.passed.iter().filter(|t| is_stale(&known, t)).map(|t| format!("{file}::{t}")));
        if let Some(why) = outcome.broken.as_ref().filter(|_| !whole) {
            unexpected.push(format!("{file}: {why}"));
        }
        count(&outcome, surprising.len() as u64, file, counts);
    }
    let run = counts.passed + counts.failed + counts.known;
    println!(
        "{name} {}, {}: {} of {run} passed ({:.1} %), {} ignored by the crate itself",
        suite.version,
        engine.name(),
        counts.passed,
        100.0 * counts.passed as f64 / (run.max(1)) as f64,
        counts.ignored
    );
    for name in &unexpected {
        println!("unexpected failure: {name}");
    }
    for test in &stale {
        println!("listed as failing, but passes (remove it from tests/crates/{name}.toml): {test}");
    }
    verdict(unexpected.len(), stale.len(), least, counts)
}

/// Whether the list says that a test fails which has passed.
fn is_stale(known: &BTreeMap<&str, &str>, passed: &str) -> bool {
    known.get(passed).is_some_and(|reason| !reason.starts_with("sometimes: "))
}

/// Adds what came of a file, and shows it in a line.
fn count(outcome: &Outcome, surprising: u64, file: &str, counts: &mut Counts) {
    let lost = outcome.failed.len() as u64 + outcome.missing();
    let known_lost = lost - surprising.min(lost);
    println!(
        "{file:<28} {:>6} {lost:>6} {:>7} {known_lost:>8} {:>7.1}  {}",
        outcome.passed.len(),
        outcome.ignored,
        outcome.seconds,
        outcome.broken.as_deref().unwrap_or("")
    );
    counts.add(&Counts {
        passed: outcome.passed.len() as u64,
        failed: lost - known_lost,
        known: known_lost,
        ignored: outcome.ignored,
    });
}

fn verdict(unexpected: usize, stale: usize, least: u64, counts: &Counts) -> Result {
    let run = counts.passed + counts.failed + counts.known;
    let mut wrong = Vec::new();
    if unexpected > 0 {
        wrong.push(format!("{unexpected} unexpected failures"));
    }
    if stale > 0 {
        wrong.push(format!("{stale} listed failures that pass"));
    }
    // One may always be: of a dozen tests it would be more than the share.
    if counts.failed + counts.known > 1 && counts.passed * 100 < run * least {
        wrong.push(format!("{} of {run} passed, expected at least {least} %", counts.passed));
    }
    if wrong.is_empty() { Ok(()) } else { Err(failed(wrong.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_entries_and_few_passes_are_failures() {
        let counts = |passed, failed, known| Counts { passed, failed, known, ..Counts::default() };
        assert!(verdict(0, 0, 95, &counts(95, 0, 5)).is_ok());
        assert!(verdict(0, 0, 95, &Counts::default()).is_ok());
        assert!(verdict(1, 0, 95, &counts(99, 1, 0)).is_err());
        assert!(verdict(0, 1, 95, &counts(100, 0, 0)).is_err());
        assert!(verdict(0, 0, 95, &counts(94, 0, 6)).is_err());
        assert!(verdict(0, 0, 0, &counts(1, 0, 1)).is_ok());
        assert!(verdict(0, 0, 95, &counts(1, 0, 1)).is_ok());
    }

    #[test]
    fn a_reason_may_be_for_one_engine() {
        let text = "version = '1.0.0'\n[expected.lib]\na = 'no'\nb = { qemu = 'slow' }\n";
        let suite: Suite = toml::from_str(text).unwrap_or_else(|e| panic!("{e}"));
        let known = |engine| suite.known(LIB, engine).into_iter().collect::<Vec<_>>();
        assert_eq!(known(Engine::Process), [("a", "no")]);
        assert_eq!(known(Engine::Qemu), [("a", "no"), ("b", "slow")]);
        assert_eq!(known(Engine::Native), []);
        let known = BTreeMap::from([("always", "no"), ("now and then", "sometimes: a race")]);
        let stale = ["always", "now and then", "unlisted"].map(|test| is_stale(&known, test));
        assert_eq!(stale, [true, false, false]);
        assert_eq!(suite.known("other", Engine::Qemu), BTreeMap::new());
    }

    #[test]
    fn every_data_file_is_readable() {
        let engines = [Engine::Process, Engine::Qemu, Engine::Native].map(Engine::name);
        for name in names().unwrap_or_else(|e| panic!("{}", e.message)) {
            let suite = Suite::load(&name).unwrap_or_else(|e| panic!("{}", e.message));
            for reason in suite.expected.values().flat_map(BTreeMap::values) {
                if let Reason::Under(reasons) = reason {
                    assert!(reasons.keys().all(|e| engines.contains(&e.as_str())), "{name}: {:?}", reasons.keys());
                }
            }
        }
    }
}
