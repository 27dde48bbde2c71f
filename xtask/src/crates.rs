//! `cargo xtask tokio`: tokio's own integration tests, unmodified, one guest per file.
//!
//! The tests are in tokio's published crate. It is fetched by cargo, copied under `target/`, and made to stand alone; `donjon test` does
//! the rest, as it would for any crate. `tests/tokio/expected.toml` lists what is expected to fail, with the reason; anything else that fails
//! fails the task, and so does a listed test that passes. So does, unless files are
//! named, a share of tests that pass below 95 %.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use donjon_tests::{repo_root, target_dir};

use crate::process::{self, Result, cargo, failed, output, usage};
use crate::test::Counts;

const VERSION: &str = "1.54.1";
const FEATURES: &str = "full,test-util";
/// The parts of tokio that a guest is meant to have.
const PREFIXES: &[&str] = &["net_", "tcp_", "udp", "time_", "sync_", "io_", "rt_", "fs"];
/// What `cargo xtask test` runs: something of every part, chosen for short builds.
const SUBSET: &[&str] = &[
    "tcp_accept",
    "tcp_connect",
    "tcp_echo",
    "tcp_peek",
    "tcp_shutdown",
    "tcp_socket",
    "tcp_stream",
    "udp",
    "net_lookup_host",
    "time_sleep",
    "time_timeout",
    "sync_mpsc",
    "sync_broadcast",
    "io_async_fd",
    "io_copy",
    "io_split",
    "rt_basic",
    "rt_threaded",
    "fs_dir",
    "fs_file",
];
/// Of a hundred tests that ran, how many must pass: the list of expected failures is no place to put everything.
const LEAST_PASSED: u64 = 95;
/// How long one file's guest may run.
const PATIENCE: Duration = Duration::from_secs(300);

/// The task.
pub fn main<'a>(mut args: impl Iterator<Item = &'a str>) -> Result {
    let mut engine = "process";
    let mut files: Vec<String> = Vec::new();
    let mut all = false;
    while let Some(arg) = args.next() {
        match arg {
            "--engine" => engine = args.next().ok_or_else(|| usage("--engine takes process or qemu"))?,
            "--all" => all = true,
            _ if arg.starts_with('-') => return Err(usage(format!("tokio does not know {arg:?}"))),
            _ => files.push(arg.to_owned()),
        }
    }
    let dir = prepare()?;
    // One file may have most of the failures.
    let least = if files.is_empty() { LEAST_PASSED } else { 0 };
    if files.is_empty() {
        files = test_files(&dir)?.into_iter().filter(|f| all || PREFIXES.iter().any(|p| f.starts_with(p))).collect();
    }
    run_files(&dir, &files, engine, least, &mut Counts::default())
}

/// The bounded set for `cargo xtask test`.
pub fn subset(counts: &mut Counts) -> Result {
    let dir = prepare()?;
    run_files(&dir, &SUBSET.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(), "process", LEAST_PASSED, counts)
}

/// Copies tokio's published source under `target/` and makes it a workspace of its own. Returns the directory.
fn prepare() -> Result<PathBuf> {
    let work = target_dir().join("tokio");
    let dir = work.join(format!("tokio-{VERSION}"));
    let patched = dir.join("Cargo.toml");
    let mark = "# Appended by cargo xtask tokio";
    if std::fs::read_to_string(&patched).is_ok_and(|text| text.contains(mark)) {
        return Ok(dir);
    }
    let io = |path: &Path| {
        let path = path.display().to_string();
        move |e: std::io::Error| failed(format!("{path}: {e}"))
    };
    // A crate that does nothing but depend on it: cargo then fetches it and knows where it is.
    let fetch = work.join("fetch");
    std::fs::create_dir_all(fetch.join("src")).map_err(io(&fetch))?;
    std::fs::write(fetch.join("src/lib.rs"), "").map_err(io(&fetch))?;
    let manifest = format!(
        "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[dependencies]\ntokio = \"={VERSION}\"\n[workspace]\n"
    );
    std::fs::write(fetch.join("Cargo.toml"), manifest).map_err(io(&fetch))?;
    let (worked, metadata) = output(
        cargo().current_dir(&fetch).args(["metadata", "--quiet", "--format-version", "1"]).stderr(Stdio::inherit()),
    )?;
    let source = metadata
        .split('"')
        .find_map(|word| word.strip_suffix("/Cargo.toml").filter(|path| path.ends_with(&format!("/tokio-{VERSION}"))))
        .filter(|_| worked)
        .ok_or_else(|| failed(format!("cargo could not fetch tokio {VERSION}")))?;

    if dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(io(&dir))?;
    }
    process::run(Command::new("cp").args(["-r", "--", source]).arg(&dir))?;
    let lock = repo_root().join("tests/tokio/Cargo.lock");
    std::fs::copy(&lock, dir.join("Cargo.lock")).map_err(io(&lock))?;
    let text = std::fs::read_to_string(&patched).map_err(io(&patched))?;
    // Its dev-dependencies depend on tokio too: on this very copy.
    std::fs::write(
        &patched,
        format!("{text}\n{mark}.\n[patch.crates-io]\ntokio = {{ path = \".\" }}\n\n[workspace]\n"),
    )
    .map_err(io(&patched))?;
    Ok(dir)
}

fn test_files(dir: &Path) -> Result<Vec<String>> {
    let tests = dir.join("tests");
    let entries = std::fs::read_dir(&tests).map_err(|e| failed(format!("{}: {e}", tests.display())))?;
    let mut files: Vec<String> =
        entries.filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".rs")?.to_owned())).collect();
    files.sort();
    Ok(files)
}

/// file -> test -> reason; the test `*` stands for the whole file.
type Expected = BTreeMap<String, BTreeMap<String, String>>;

fn expected() -> Result<Expected> {
    let path = repo_root().join("tests/tokio/expected.toml");
    let text = std::fs::read_to_string(&path).map_err(|e| failed(format!("{}: {e}", path.display())))?;
    toml::from_str(&text).map_err(|e| failed(format!("{}: {e}", path.display())))
}

/// What came of one file.
#[derive(Default)]
struct Outcome {
    announced: u64,
    passed: BTreeSet<String>,
    failed: BTreeSet<String>,
    ignored: u64,
    seconds: f64,
    /// Why the run as a whole is not to be believed, if so.
    broken: Option<String>,
}

impl Outcome {
    /// Tests that were announced and of which nothing was heard.
    fn missing(&self) -> u64 {
        self.announced.saturating_sub(self.passed.len() as u64 + self.failed.len() as u64 + self.ignored)
    }
}

fn run_files(dir: &Path, files: &[String], engine: &str, least: u64, counts: &mut Counts) -> Result {
    let expected = expected()?;
    let none = BTreeMap::new();
    let mut unexpected = Vec::new();
    let mut stale = Vec::new();
    println!("building {} test files as images", files.len());
    let mut build = test_command(dir, engine);
    build.arg("--no-run").args(files.iter().flat_map(|f| ["--test", f]));
    process::run(&mut build)?;
    println!(
        "{:<28} {:>6} {:>6} {:>7} {:>8} {:>7}  {engine}",
        "file", "passed", "failed", "ignored", "expected", "seconds"
    );
    for file in files {
        let known = expected.get(file).unwrap_or(&none);
        let hangs: Vec<&str> =
            known.iter().filter(|(_, why)| why.starts_with("hangs: ")).map(|(test, _)| test.as_str()).collect();
        let mut outcome = run_file(dir, file, engine, &hangs)?;
        outcome.failed.extend(hangs.iter().map(|test| (*test).to_owned()));
        let whole = known.contains_key("*");
        let surprising: Vec<&String> = outcome.failed.iter().filter(|t| !whole && !known.contains_key(*t)).collect();
        unexpected.extend(surprising.iter().map(|t| format!("{file}::{t}")));
        stale.extend(outcome.passed.iter().filter(|t| known.contains_key(*t)).map(|t| format!("{file}::{t}")));
        if let Some(why) = outcome.broken.as_ref().filter(|_| !whole) {
            unexpected.push(format!("{file}: {why}"));
        }
        let lost = outcome.failed.len() as u64 + outcome.missing();
        let known_lost = lost - (surprising.len() as u64).min(lost);
        println!(
            "{file:<28} {:>6} {lost:>6} {:>7} {:>8} {:>7.1}  {}",
            outcome.passed.len(),
            outcome.ignored,
            known_lost,
            outcome.seconds,
            outcome.broken.as_deref().unwrap_or("")
        );
        counts.passed += outcome.passed.len() as u64;
        counts.failed += lost - known_lost;
        counts.known += known_lost;
        counts.ignored += outcome.ignored;
    }
    let run = counts.passed + counts.failed + counts.known;
    println!(
        "tokio {VERSION}, {engine}: {} of {run} passed ({:.1} %), {} ignored by tokio itself",
        counts.passed,
        100.0 * counts.passed as f64 / (run.max(1)) as f64,
        counts.ignored
    );
    for name in &unexpected {
        println!("unexpected failure: {name}");
    }
    for name in &stale {
        println!("listed as failing, but passes (remove it from tests/tokio/expected.toml): {name}");
    }
    verdict(unexpected.len(), stale.len(), least, counts)
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
    if counts.passed * 100 < run * least {
        wrong.push(format!("{} of {run} passed, expected at least {least} %", counts.passed));
    }
    if wrong.is_empty() { Ok(()) } else { Err(failed(wrong.join(", "))) }
}

fn test_command(dir: &Path, engine: &str) -> Command {
    let mut command = donjon_tests::donjon_command();
    // `donjon test` ends a guest that takes too long; we end `donjon test` only if that did not help.
    let seconds = (PATIENCE - Duration::from_secs(20)).as_secs().to_string();
    command.current_dir(dir).args(["test", "--engine", engine, "--features", FEATURES, "--timeout", &seconds]);
    command
}

fn run_file(dir: &Path, file: &str, engine: &str, skip: &[&str]) -> Result<Outcome> {
    let started = Instant::now();
    let mut command = test_command(dir, engine);
    // libtest writes a test's line in two parts if it runs one test at a time, and output gets between them.
    command.args(["--test", file, "--", "--test-threads=2"]);
    command.args(skip.iter().flat_map(|test| ["--skip", test]));
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| failed(format!("cannot run donjon test: {e}")))?;
    let (sender, lines) = mpsc::channel();
    let stdout = child.stdout.take().expect("piped");
    let mut stderr = child.stderr.take().expect("piped");
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        // What could be read is all there is to show.
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(std::io::Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let mut outcome = Outcome::default();
    let mut text = String::new();
    loop {
        match lines.recv_timeout(PATIENCE.saturating_sub(started.elapsed())) {
            Ok(line) => {
                note(&mut outcome, &line);
                text.push_str(&line);
                text.push('\n');
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                outcome.broken = Some(format!("no end after {} s", PATIENCE.as_secs()));
                // It and its guest are a process group of their own.
                let _ = Command::new("kill").args(["--", &format!("-{}", child.id())]).status();
                break;
            }
        }
    }
    let status = child.wait().map_err(|e| failed(format!("wait: {e}")))?;
    outcome.seconds = started.elapsed().as_secs_f64();
    let text = text + "--- stderr\n" + &errors.join().unwrap_or_default();
    let log = target_dir().join("tokio/logs").join(format!("{file}.{engine}.txt"));
    std::fs::create_dir_all(log.parent().expect("in a directory"))
        .and_then(|()| std::fs::write(&log, text))
        .map_err(|e| failed(format!("{}: {e}", log.display())))?;
    if outcome.broken.is_none() && outcome.missing() > 0 {
        outcome.broken = Some(format!("{status}, {} tests without a result, see {}", outcome.missing(), log.display()));
    } else if outcome.broken.is_none() && outcome.failed.is_empty() && !status.success() {
        outcome.broken = Some(format!("{status} though no test failed, see {}", log.display()));
    }
    Ok(outcome)
}

fn note(outcome: &mut Outcome, line: &str) {
    if let Some(count) = line.strip_prefix("running ").and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok()) {
        outcome.announced += count;
    }
    let Some((name, result)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) else { return };
    // `- should panic` is a note of libtest's, not a part of the name.
    let name = name.split(" - ").next().unwrap_or(name).to_owned();
    match result.trim() {
        "ok" => drop(outcome.passed.insert(name)),
        "FAILED" => drop(outcome.failed.insert(name)),
        r if r.starts_with("ignored") => outcome.ignored += 1,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_results_and_what_is_missing() {
        let mut outcome = Outcome::default();
        for line in [
            "running 5 tests",
            "test a ... ok",
            "test b - should panic ... ok",
            "test c ... FAILED",
            "test d ... ignored, not here",
            "test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out",
        ] {
            note(&mut outcome, line);
        }
        assert_eq!(outcome.passed.iter().map(String::as_str).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(outcome.failed.iter().map(String::as_str).collect::<Vec<_>>(), ["c"]);
        assert_eq!((outcome.ignored, outcome.missing()), (1, 1));
    }

    #[test]
    fn stale_entries_and_few_passes_are_failures() {
        let counts = |passed, failed, known| Counts { passed, failed, known, ..Counts::default() };
        assert!(verdict(0, 0, 95, &counts(95, 0, 5)).is_ok());
        assert!(verdict(0, 0, 95, &Counts::default()).is_ok());
        assert!(verdict(1, 0, 95, &counts(99, 1, 0)).is_err());
        assert!(verdict(0, 1, 95, &counts(100, 0, 0)).is_err());
        assert!(verdict(0, 0, 95, &counts(94, 0, 6)).is_err());
        assert!(verdict(0, 0, 0, &counts(1, 0, 1)).is_ok());
    }

    #[test]
    fn the_list_of_expected_failures_is_readable() {
        assert!(expected().is_ok());
    }
}
