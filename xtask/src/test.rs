//! `cargo xtask test`: everything that can be tested on this machine, in the order in which failures are cheapest.
//!
//! Test runners' own lines are shown as they come and counted. A test that lacks something says `SKIP name: reason`; where the machine has
//! all that tests need and `CI=true`, a skip is a failure, save those that [`ACCEPTED`] names.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use donjon_tests::{Need, have, missing_in, repo_root, target_dir};

use crate::process::{Error, Result, cargo, failed, show, usage};
use crate::{crates, drill, fuzz, setup, web_clients};

/// What a step's runners reported.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
    /// Failures that a list with reasons expects.
    pub known: u64,
}

impl Counts {
    /// Adds others.
    pub fn add(&mut self, other: &Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.known += other.known;
        self.ignored += other.ignored;
    }
}

struct Step {
    name: &'static str,
    about: &'static str,
    run: fn(&mut Counts) -> Result,
}

const STEPS: &[Step] = &[
    Step { name: "fmt", about: "formatting of every crate", run: fmt },
    Step { name: "clippy", about: "lints, warnings are errors", run: clippy },
    Step { name: "deny", about: "licences and sources of dependencies (if cargo-deny is installed)", run: deny },
    Step { name: "unit", about: "unit tests of all crates, on the host", run: unit },
    Step { name: "demo", about: "the other command of the README, to its first answer", run: demo },
    Step { name: "build", about: "the donjon command, as users build it", run: build },
    Step { name: "e2e", about: "guests under every engine, with real clients", run: e2e },
    Step { name: "fuzz", about: "the fuzz targets' corpus, and a few seconds more of each", run: fuzz_smoke },
    Step { name: "drill", about: "exploits against a container and against an image, in short", run: drill_short },
    Step { name: "crates", about: "a bounded set of tests that published crates carry, as guests", run: crates_subset },
];

/// Skips that are no failure in CI, each with the reason.
const ACCEPTED: &[(&str, &str)] = &[(
    "deny",
    "cargo-deny is built from source, which takes ten minutes; what it looks at changes with Cargo.lock and deny.toml only",
)];

/// Where skips are listed.
pub fn skip_log() -> PathBuf {
    target_dir().join("skipped.txt")
}

/// Whether a part of this task lacks something; says so and counts it, as tests do.
pub fn skipped(part: &str, needs: &[Need]) -> bool {
    missing_in(Some(&skip_log()), part, needs)
}

/// The task.
pub fn main<'a>(mut args: impl Iterator<Item = &'a str>) -> Result {
    let mut only: Vec<&str> = Vec::new();
    while let Some(arg) = args.next() {
        match (arg, args.next()) {
            ("--only", Some(step)) if STEPS.iter().any(|s| s.name == step) => only.push(step),
            _ => {
                let names: Vec<&str> = STEPS.iter().map(|s| s.name).collect();
                return Err(usage(format!("test takes --only STEP; the steps are {}", names.join(", "))));
            }
        }
    }
    setup::ensure()?;
    let skip_log = skip_log();
    std::fs::create_dir_all(target_dir())
        .and_then(|()| std::fs::write(&skip_log, ""))
        .map_err(|e| failed(format!("{}: {e}", skip_log.display())))?;

    let mut rows = Vec::new();
    let mut can_build = true;
    for step in STEPS.iter().filter(|s| only.is_empty() || only.contains(&s.name)) {
        println!("\n=== {}: {}", step.name, step.about);
        let started = Instant::now();
        let mut counts = Counts::default();
        let result = if can_build || !["e2e", "drill", "crates"].contains(&step.name) {
            (step.run)(&mut counts)
        } else {
            Err(failed("not run: the build failed"))
        };
        can_build &= step.name != "build" || result.is_ok();
        if let Err(e) = &result {
            println!("FAILED {}: {}", step.name, e.message);
        }
        rows.push((step.name, result, counts, started.elapsed()));
    }
    summary(rows, &std::fs::read_to_string(&skip_log).unwrap_or_default())
}

fn summary(rows: Vec<(&str, Result, Counts, Duration)>, skipped: &str) -> Result {
    println!("\n=== summary");
    println!("{:<8} {:>7} {:>7} {:>7} {:>7} {:>8}  result", "step", "passed", "failed", "known", "ignored", "seconds");
    let mut total = Counts::default();
    let mut bad = Vec::new();
    for (name, result, counts, took) in &rows {
        println!(
            "{name:<8} {:>7} {:>7} {:>7} {:>7} {:>8.0}  {}",
            counts.passed,
            counts.failed,
            counts.known,
            counts.ignored,
            took.as_secs_f64(),
            result.as_ref().map_or_else(|e| e.message.as_str(), |()| "ok")
        );
        total.add(counts);
        if result.is_err() {
            bad.push(*name);
        }
    }
    let skipped = each_once(skipped);
    let (skips, refused) = (skipped.len(), skipped.iter().filter(|line| accepted(line).is_none()).count());
    for line in skipped {
        println!("{line}{}", accepted(line).map_or_else(String::new, |r| format!(" (accepted: {r})")));
    }
    if rows.iter().any(|(name, ..)| *name == "e2e") {
        println!("{}", web_clients::NOT_RUN);
    }
    println!(
        "{} passed, {} failed, {} known failures, {} ignored, {skips} skipped",
        total.passed, total.failed, total.known, total.ignored
    );
    let complete = have(Need::Tap) && have(Need::Qemu) && have(Need::Program("curl"));
    if std::env::var("CI").is_ok_and(|v| v == "true") && complete && refused > 0 {
        return Err(failed(format!("{refused} tests were skipped on a machine that has all that they need")));
    }
    if bad.is_empty() { Ok(()) } else { Err(failed(format!("failed: {}", bad.join(", ")))) }
}

/// The lines without repeats: a test may lack the same thing at several places.
fn each_once(skipped: &str) -> Vec<&str> {
    let mut seen = std::collections::BTreeSet::new();
    skipped.lines().filter(|line| seen.insert(*line)).collect()
}

/// Why that skip is no failure in CI, if it is none.
fn accepted(line: &str) -> Option<&'static str> {
    let (name, needs) = line.strip_prefix("SKIP ")?.split_once(": ")?;
    let listed = ACCEPTED.iter().find(|(n, _)| *n == name).map(|(_, reason)| *reason);
    // What nobody can install.
    listed.or_else(|| match needs {
        "needs Landlock" if !kernel_has("sys_landlock_create_ruleset") => Some("this kernel has none"),
        "needs IPv6's loopback" if std::net::TcpListener::bind("[::1]:0").is_err() => Some("this machine has none"),
        "\"Signal::INT\" is ignored here" => Some("whoever started the tests ignores it"),
        _ => None,
    })
}

fn kernel_has(symbol: &str) -> bool {
    std::fs::read_to_string("/proc/kallsyms").is_ok_and(|symbols| symbols.contains(symbol))
}

fn fmt(_: &mut Counts) -> Result {
    stream(cargo().args(["fmt", "--all", "--check"]), &mut Counts::default())?;
    let mut manifests = guest_manifests()?;
    manifests.push(repo_root().join("fuzz/Cargo.toml"));
    for manifest in manifests {
        stream(cargo().args(["fmt", "--check", "--manifest-path"]).arg(&manifest), &mut Counts::default())?;
    }
    Ok(())
}

fn clippy(counts: &mut Counts) -> Result {
    let deny = ["--", "-D", "warnings"];
    // The members that `cargo build` builds, with their tests ...
    stream(cargo().args(["clippy", "--quiet", "--all-targets"]).args(deny), counts)?;
    stream(
        cargo().args(["clippy", "--quiet", "--all-targets", "-p", "donjon-tests", "-p", "donjon-benches"]).args(deny),
        counts,
    )?;
    // ... and those that only the guest's own build uses; they have no test harness that links on the host.
    stream(
        cargo()
            .args(["clippy", "--quiet", "-p", "donjon-libc", "-p", "donjon-object", "-p", "donjon-ring0"])
            .args(deny),
        counts,
    )?;
    // `frameworks` is the use of others' crates, which would be built a second time, SQLite among them.
    for manifest in guest_manifests()?.iter().filter(|m| !m.ends_with("frameworks/Cargo.toml")) {
        let mut command = cargo();
        command.args(["clippy", "--quiet", "--manifest-path"]).arg(manifest).args(deny);
        stream(command.env("CARGO_TARGET_DIR", target_dir().join("native")), counts)?;
    }
    Ok(())
}

fn deny(_: &mut Counts) -> Result {
    if skipped("deny", &[Need::Program("cargo-deny")]) {
        return Ok(());
    }
    stream(cargo().args(["deny", "--offline", "check", "bans", "licenses", "sources"]), &mut Counts::default())
}

fn unit(counts: &mut Counts) -> Result {
    let test = |args: &[&str]| {
        let mut command = cargo();
        command.args(["test", "--no-fail-fast"]).args(args);
        command
    };
    let mut web = test(&["--features", "auth,proxy,tls", "--manifest-path"]);
    web.arg(repo_root().join("apps/web/Cargo.toml")).env("CARGO_TARGET_DIR", target_dir().join("native"));
    let mut commands = [
        test(&[]),
        // Members that a plain build leaves out: they end up in guests only.
        test(&["-p", "donjon-libc", "-p", "donjon-ring0", "-p", "donjon-web-format"]),
        web,
        test(&["--lib", "-p", "donjon-tests"]),
    ];
    // All of them, so that one failure does not hide another.
    commands.iter_mut().map(|c| stream(c, counts)).fold(Ok(()), Result::and)
}

/// `cargo xtask demo --once`, as a process of its own. Before `build`, because it makes a `donjon` without the web server.
fn demo(counts: &mut Counts) -> Result {
    let xtask = std::env::current_exe().map_err(|e| failed(format!("cannot tell where xtask is: {e}")))?;
    let wanted = ["HTTP/1.1 200 OK", "first answer", "memory, total"];
    let mut seen = [false; 3];
    relay(Command::new(xtask).args(["demo", "--once"]), |line| {
        wanted.iter().zip(&mut seen).for_each(|(w, s)| *s |= line.contains(w));
    })?;
    match wanted.iter().zip(seen).find(|(_, seen)| !seen) {
        Some((missing, _)) => {
            counts.failed += 1;
            Err(failed(format!("the demo did not show {missing:?}")))
        }
        None => {
            counts.passed += 1;
            Ok(())
        }
    }
}

fn build(counts: &mut Counts) -> Result {
    stream(cargo().args(["build", "--release", "--package", "donjon-cli"]), counts)
}

fn e2e(counts: &mut Counts) -> Result {
    stream(&mut e2e_command(), counts)
}

/// The end-to-end tests; arguments that are added are for the test runner.
pub fn e2e_command() -> Command {
    let mut command = cargo();
    // Guests are processes of their own, and a test waits for much of its time: four keep the two cores busy that the smallest machine has.
    command.args(["test", "--package", "donjon-tests", "--test", "e2e", "--", "--test-threads", "4"]);
    command
}

fn drill_short(counts: &mut Counts) -> Result {
    drill::short(&mut counts.passed)
}

fn fuzz_smoke(counts: &mut Counts) -> Result {
    // libFuzzer is C++.
    if skipped("fuzz", &[Need::Program("c++")]) {
        return Ok(());
    }
    fuzz::smoke(&mut counts.passed)
}

fn crates_subset(counts: &mut Counts) -> Result {
    crates::subset(counts)
}

/// Manifests of the crates outside the workspace.
pub fn guest_manifests() -> Result<Vec<PathBuf>> {
    let mut manifests = Vec::new();
    for dir in ["examples", "tests/guests"] {
        let dir = repo_root().join(dir);
        let entries = std::fs::read_dir(&dir).map_err(|e| failed(format!("{}: {e}", dir.display())))?;
        manifests.extend(
            entries.filter_map(|entry| Some(entry.ok()?.path().join("Cargo.toml"))).filter(|path| path.exists()),
        );
    }
    manifests.push(repo_root().join("apps/web/Cargo.toml"));
    manifests.sort();
    Ok(manifests)
}

/// Runs a command, shows what it prints, and adds up its `test result:` lines.
pub fn stream(command: &mut Command, counts: &mut Counts) -> Result {
    relay(command, |line| {
        if let Some(c) = parse_result(line) {
            counts.passed += c.passed;
            counts.failed += c.failed;
            counts.ignored += c.ignored;
        }
    })
}

/// Runs a command, shows what it prints, and gives each line to `look`. Tests that it runs list their skips.
fn relay(command: &mut Command, mut look: impl FnMut(&str)) -> Result {
    let shown = show(command);
    println!("$ {shown}");
    let cannot = |e: std::io::Error| failed(format!("cannot run {shown}: {e}"));
    command.env("DONJON_SKIP_LOG", skip_log());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(cannot)?;
    let lines = BufReader::new(child.stdout.take().expect("piped"));
    for line in lines.split(b'\n') {
        let line = line.map_err(cannot)?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        look(&line);
    }
    let status = child.wait().map_err(cannot)?;
    if status.success() { Ok(()) } else { Err(Error { message: format!("{shown}: {status}"), code: 1 }) }
}

/// The numbers in libtest's `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
pub fn parse_result(line: &str) -> Option<Counts> {
    let (_, rest) = line.split_once("test result: ")?;
    let number =
        |what: &str| rest.split([';', '.']).find_map(|part| part.trim().strip_suffix(what)?.trim().parse::<u64>().ok());
    Some(Counts { passed: number("passed")?, failed: number("failed")?, ignored: number("ignored")?, known: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_skips_are_accepted() {
        assert!(accepted("SKIP deny: needs cargo-deny").is_some());
        assert!(accepted("SKIP deny::more: needs cargo-deny").is_none());
        for line in ["SKIP fuzz: needs c++", "SKIP drill: needs bwrap", "deny: needs cargo-deny", ""] {
            assert!(accepted(line).is_none(), "{line:?}");
        }
    }

    #[test]
    fn whatever_runs_tests_has_them_list_their_skips() {
        let script = format!("test \"$DONJON_SKIP_LOG\" = {:?}", skip_log());
        assert!(stream(Command::new("sh").args(["-c", &script]), &mut Counts::default()).is_ok());
        assert_eq!(each_once("SKIP a: x\nSKIP b: x\nSKIP a: x\n"), ["SKIP a: x", "SKIP b: x"]);
    }

    #[test]
    fn reads_libtest_results() {
        let c = parse_result("test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 2 filtered out; f");
        assert!(c.is_some_and(|c| (c.passed, c.failed, c.ignored) == (12, 3, 1)));
        assert!(parse_result("test result is unknown").is_none());
        assert!(parse_result("running 3 tests").is_none());
    }
}
