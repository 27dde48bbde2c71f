//! One file of tests: how it is started, and what it says.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::{LIB, Suite};
use crate::process::{Result, cargo, failed};
use donjon_tests::target_dir;

/// What runs the tests.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Process,
    Qemu,
    /// No guest: `cargo test`, to compare with.
    Native,
}

impl Engine {
    pub fn from_name(name: &str) -> Option<Engine> {
        [Engine::Process, Engine::Qemu, Engine::Native].into_iter().find(|e| e.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Engine::Process => "process",
            Engine::Qemu => "qemu",
            Engine::Native => "native",
        }
    }

    /// How long one file may run. QEMU without KVM is ten times slower.
    fn patience(self) -> Duration {
        Duration::from_secs(if self == Engine::Qemu { 1200 } else { 300 })
    }
}

/// What came of one file.
#[derive(Default)]
pub struct Outcome {
    announced: u64,
    pub passed: BTreeSet<String>,
    pub failed: BTreeSet<String>,
    pub ignored: u64,
    pub seconds: f64,
    /// Why the run as a whole is not to be believed, if so.
    pub broken: Option<String>,
}

impl Outcome {
    /// Tests that were announced and of which nothing was heard.
    pub fn missing(&self) -> u64 {
        self.announced.saturating_sub(self.passed.len() as u64 + self.failed.len() as u64 + self.ignored)
    }
}

/// The command that builds these files and runs none.
pub fn build(dir: &Path, suite: &Suite, files: &[String], engine: Engine) -> Command {
    let mut command = command(dir, suite, files, engine);
    command.arg("--no-run");
    command
}

fn command(dir: &Path, suite: &Suite, files: &[String], engine: Engine) -> Command {
    let mut command = if engine == Engine::Native {
        let mut command = cargo();
        command.args(["test", "--quiet"]).env("CARGO_TARGET_DIR", target_dir().join("native"));
        command
    } else {
        // `donjon test` ends a guest that takes too long; we end `donjon test` only if that did not help.
        let seconds = (engine.patience() - Duration::from_secs(20)).as_secs().to_string();
        let mut command = donjon_tests::donjon_command();
        command.args(["test", "--engine", engine.name(), "--timeout", &seconds]);
        command.args(suite.memory.iter().flat_map(|memory| ["--memory", memory]));
        command
    };
    if !suite.features.is_empty() {
        command.args(["--features", &suite.features]);
    }
    for file in files {
        if file == LIB {
            command.arg("--lib")
        } else {
            command.args(["--test", file])
        };
    }
    command.current_dir(dir);
    command
}

/// Runs a file; `skip` are tests that must not be tried. All that it says goes to `log`.
pub fn file(dir: &Path, suite: &Suite, file: &str, engine: Engine, skip: &[&str], log: &Path) -> Result<Outcome> {
    let started = Instant::now();
    let mut command = command(dir, suite, &[file.to_owned()], engine);
    // libtest writes a test's line in two parts if it runs one test at a time, and output gets between them.
    command.args(["--", "--test-threads=2", "--format=pretty"]);
    command.args(skip.iter().flat_map(|test| ["--skip", test]));
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| failed(format!("cannot run {file}: {e}")))?;
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
    let patience = engine.patience();
    loop {
        match lines.recv_timeout(patience.saturating_sub(started.elapsed())) {
            Ok(line) => {
                note(&mut outcome, &line);
                text.push_str(&line);
                text.push('\n');
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                outcome.broken = Some(format!("no end after {} s", patience.as_secs()));
                // It and its guest are a process group of their own.
                let _ = Command::new("kill").args(["--", &format!("-{}", child.id())]).status();
                break;
            }
        }
    }
    let status = child.wait().map_err(|e| failed(format!("wait: {e}")))?;
    outcome.seconds = started.elapsed().as_secs_f64();
    let text = text + "--- stderr\n" + &errors.join().unwrap_or_default();
    std::fs::create_dir_all(log.parent().expect("in a directory"))
        .and_then(|()| std::fs::write(log, text))
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
}
