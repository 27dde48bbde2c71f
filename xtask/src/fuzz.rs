//! `cargo xtask fuzz`: runs the targets of `fuzz/` with libFuzzer, on stable Rust.
//!
//! What a run finds new goes to `target/fuzz/TARGET`, a crash's input too; `--keep` merges it into the committed corpus. With `--cpu N` each target has had N seconds of
//! processor time in all when it is done, runs before counted in, in turns of a minute: for long runs beside other work.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use donjon_tests::{is_root, repo_root, target_dir};

use crate::process::{Result, cargo, failed, show, usage};

/// The targets; `fuzz/src/lib.rs` says what each is.
const TARGETS: [&str; 12] =
    ["image", "zstd", "boot", "gate", "virtqueue", "firmware", "frames", "dhcp", "dns", "http", "usernet", "filter"];
/// Seconds for each target in `cargo xtask test`, after the corpus.
const SMOKE: u64 = 3;
/// How many of them at once.
const SMOKES: usize = 2;
/// What a target says that has tried nothing.
const NOT_FUZZED: &str = "not fuzzed";
/// Processor time of a turn, seconds.
const TURN: f64 = 60.0;

/// The task.
pub fn main<'a>(mut args: impl Iterator<Item = &'a str>) -> Result {
    let (mut chosen, mut seconds, mut cpu, mut keep) = (Vec::new(), 60, None, false);
    while let Some(arg) = args.next() {
        match arg {
            "--seconds" => {
                let n = args.next().and_then(|n| n.parse().ok());
                seconds = n.ok_or_else(|| usage("--seconds takes a number"))?;
            }
            "--cpu" => {
                let n = args.next().and_then(|n| n.parse().ok());
                cpu = Some(n.ok_or_else(|| usage("--cpu takes a number of seconds"))?);
            }
            "--keep" => keep = true,
            name if TARGETS.contains(&name) => chosen.push(name),
            other => return Err(usage(format!("{other:?} is no target; there are {}", TARGETS.join(", ")))),
        }
    }
    if chosen.is_empty() {
        chosen = TARGETS.to_vec();
    }
    let fuzzer = build()?;
    if let Some(goal) = cpu {
        spend(&fuzzer, &chosen, goal)?;
    }
    for target in chosen {
        if cpu.is_none() {
            let found = run(&fuzzer, target, seconds)?;
            println!("{target}: {found}");
        }
        if keep {
            merge(&fuzzer, target)?;
        }
    }
    Ok(())
}

/// The corpus and a few seconds more of each target; how many went well.
pub fn smoke(passed: &mut u64) -> Result {
    let fuzzer = build()?;
    // Each has one thread.
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(target) = TARGETS.get(next.fetch_add(1, Relaxed)) {
            let result = run(&fuzzer, target, SMOKE);
            if let Ok(found) = &result {
                println!("{target:<10} {found}");
            }
            let skipped = result.as_ref().is_ok_and(|found| found.contains(NOT_FUZZED));
            if skipped {
                donjon_tests::skip_in(
                    Some(&crate::test::skip_log()),
                    &format!("fuzz::{target}"),
                    "needs a network namespace of its own",
                );
            }
            results.lock().expect("nobody panics").push((result.map(drop), skipped));
        }
    };
    std::thread::scope(|s| (0..SMOKES).for_each(|_| drop(s.spawn(work))));
    let results = results.into_inner().expect("nobody panics");
    *passed += results.iter().filter(|(r, skipped)| r.is_ok() && !skipped).count() as u64;
    results.into_iter().try_for_each(|(r, _)| r)
}

fn build() -> Result<PathBuf> {
    let target_dir = target_dir().join("fuzz-build");
    let mut command = cargo();
    // Its `.cargo/config.toml` says how to instrument.
    command.current_dir(repo_root().join("fuzz")).args(["build", "--release", "--quiet"]);
    crate::process::run(command.env("CARGO_TARGET_DIR", &target_dir))?;
    Ok(target_dir.join("x86_64-unknown-linux-gnu/release/donjon-fuzz"))
}

/// A command for a target; in a network namespace without a way out where that takes a new user.
fn command(fuzzer: &PathBuf, target: &str) -> Command {
    let mut command = if target == "usernet" && !is_root() {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net"]).arg(fuzzer);
        command
    } else {
        Command::new(fuzzer)
    };
    command.env("DONJON_FUZZ_TARGET", target).stdin(Stdio::null());
    command
}

fn corpus(target: &str) -> PathBuf {
    repo_root().join("fuzz/corpus").join(target)
}

fn found(target: &str) -> PathBuf {
    target_dir().join("fuzz").join(target)
}

/// The fuzzer on a target, for that long at most.
fn fuzzing(fuzzer: &PathBuf, target: &str, seconds: u64) -> Result<Command> {
    let found = found(target);
    let mut command = command(fuzzer, target);
    command.current_dir(&found);
    command.arg(format!("-max_total_time={seconds}"));
    // A quarter of a minute for one input is a hang.
    command.args(["-timeout=15", "-rss_limit_mb=2048", "-max_len=20000", "-print_final_stats=1"]);
    command.arg(format!("-artifact_prefix={}/", found.display()));
    command.arg(found.join("corpus")).arg(corpus(target));
    let inputs = found.join("corpus");
    fs::create_dir_all(&inputs).map_err(|e| failed(format!("{}: {e}", inputs.display())))?;
    Ok(command)
}

/// Runs a target; the fuzzer's last lines.
fn run(fuzzer: &PathBuf, target: &str, seconds: u64) -> Result<String> {
    let mut command = fuzzing(fuzzer, target, seconds)?;
    let shown = show(&command);
    let output = command.output().map_err(|e| failed(format!("cannot run {shown}: {e}")))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(broke(target, &shown, &text));
    }
    summary(&text).ok_or_else(|| failed(format!("fuzz target {target}: it ended without having run\n{text}")))
}

fn broke(target: &str, shown: &str, text: &str) -> crate::process::Error {
    let tail: Vec<&str> = text.lines().rev().take(60).collect();
    tail.iter().rev().for_each(|line| eprintln!("{line}"));
    failed(format!("fuzz target {target} broke; run again with: DONJON_FUZZ_TARGET={target} {shown}"))
}

/// Gives each target processor time, in turns, until each has had that much in all.
fn spend(fuzzer: &PathBuf, targets: &[&str], goal: f64) -> Result {
    let mut left = targets.to_vec();
    while !left.is_empty() {
        for target in &left {
            turn(fuzzer, target, goal)?;
        }
        left.retain(|target| spent(target).0 < goal);
    }
    Ok(())
}

fn turn(fuzzer: &PathBuf, target: &str, goal: f64) -> Result {
    let (seconds, executions) = spent(target);
    // At least what the clock in /proc can tell.
    let wanted = (goal - seconds).clamp(0.02, TURN);
    // It is stopped by what it has used.
    let mut command = fuzzing(fuzzer, target, 24 * 3600)?;
    let shown = show(&command);
    let log = found(target).join("log");
    let failed_at = |e: std::io::Error| failed(format!("{}: {e}", log.display()));
    let mut child = command.stderr(File::create(&log).map_err(failed_at)?).spawn().map_err(failed_at)?;
    let mut used = 0.0;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed_at)? {
            break status;
        }
        used = processor_time(&child).unwrap_or(used);
        if used >= wanted {
            // libFuzzer's own signal for an orderly end.
            let _ =
                rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::USR1);
            break child.wait().map_err(failed_at)?;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    let text = fs::read_to_string(&log).map_err(failed_at)?;
    let (true, Some(n)) = (status.success(), executed(&text)) else { return Err(broke(target, &shown, &text)) };
    let all = (seconds + used, executions + n);
    fs::write(found(target).join("spent"), format!("{} {}\n", all.0, all.1)).map_err(failed_at)?;
    println!(
        "{target}: {:.0} s of processor time in all, {} executions; {}",
        all.0,
        all.1,
        summary(&text).unwrap_or_default()
    );
    Ok(())
}

/// Seconds and executions that `--cpu` has given a target so far.
fn spent(target: &str) -> (f64, u64) {
    let text = fs::read_to_string(found(target).join("spent")).unwrap_or_default();
    let mut words = text.split_ascii_whitespace();
    let mut next = || words.next();
    (next().and_then(|w| w.parse().ok()).unwrap_or(0.0), next().and_then(|w| w.parse().ok()).unwrap_or(0))
}

/// User and system time of a process, seconds: hundredths in `/proc/PID/stat`.
fn processor_time(child: &Child) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{}/stat", child.id())).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    Some((fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?) / 100.0)
}

fn executed(text: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix("stat::number_of_executed_units:"))?.trim().parse().ok()
}

/// Executions and coverage, from libFuzzer's own lines.
fn summary(text: &str) -> Option<String> {
    let runs = executed(text)?;
    let last = text.lines().rev().find(|l| l.contains(" cov: "))?;
    let words: Vec<&str> = last.split_whitespace().collect();
    let after = |name: &str| words.iter().position(|w| *w == name).and_then(|i| words.get(i + 1)).copied();
    let skipped = text.lines().find(|l| l.contains(NOT_FUZZED)).map(|l| format!(" ({l})")).unwrap_or_default();
    Some(format!("{runs} executions, {} edges, {} features{skipped}", after("cov:")?, after("ft:")?))
}

/// Adds what reaches something new to the committed corpus.
fn merge(fuzzer: &PathBuf, target: &str) -> Result {
    let mut command = command(fuzzer, target);
    command
        .args(["-merge=1", "-use_counters=0", "-max_len=4096"])
        .arg(corpus(target))
        .arg(found(target).join("corpus"));
    crate::process::run(command.current_dir(found(target)).stderr(Stdio::null()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_the_fuzzers_lines() {
        let text = "#7\tINITED cov: 13 ft: 14 corp: 1/7b\n#99\tDONE   cov: 292 ft: 508 corp: 38/187b lim: 11\n\
                    stat::number_of_executed_units: 1947\n";
        assert_eq!(summary(text).as_deref(), Some("1947 executions, 292 edges, 508 features"));
        assert_eq!(summary("nothing"), None);
        let without = summary(&format!("usernet: no network namespace of its own: not fuzzed\n{text}"));
        assert!(without.is_some_and(|found| found.contains(NOT_FUZZED)));
    }

    #[test]
    fn every_target_has_a_corpus_and_is_one_of_the_fuzzer() {
        let source = std::fs::read_to_string(repo_root().join("fuzz/src/lib.rs")).unwrap();
        for target in TARGETS {
            assert!(source.contains(&format!("name: \"{target}\"")), "{target}");
            // Not only what it began with and what was mended: what long runs have found.
            let inputs = std::fs::read_dir(corpus(target)).unwrap().map(|e| e.unwrap().file_name());
            let inputs = inputs.map(|n| n.to_string_lossy().into_owned());
            let kept = inputs.filter(|n| !n.starts_with("seed-") && !n.starts_with("found-")).count();
            assert!(kept >= 20, "{target}: {kept}");
        }
        assert_eq!(source.matches("name: \"").count(), TARGETS.len());
    }
}
