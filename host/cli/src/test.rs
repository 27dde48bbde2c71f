//! `donjon test`: a crate's test programs as guests.
//!
//! Each runs in a `donjon run` of its own: what one guest or its monitor does cannot touch another.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use donjon_image::project::{Options, Program, Project};
use donjon_monitor::{Machine, NetMode};

use crate::{
    args::{EngineName, TestArgs},
    build,
    failure::{Failure, code},
    ui,
};

/// Memory of a test guest whose crate does not say.
const MEMORY: u64 = 256 << 20;

pub fn test(args: &TestArgs) -> Result<u8, Failure> {
    if let NetMode::Tap(_) = args.engine.net {
        // It is one guest's, and the programs are many.
        let hint = "--no-run makes the images: `donjon run IMAGE --net tap:NAME` runs one".to_owned();
        return Err(Failure::new(code::USAGE, "tests have user-mode networking (or none), no TAP device", hint));
    }
    let options = Options {
        cargo: args.compile.cargo(),
        plain: !ui::colour(),
        allow_undefined: args.allow_undefined,
        ..Options::default()
    };
    let project = build::load(&args.dir, &options)?;
    let mut cargo: Vec<String> = args.test.iter().flat_map(|t| ["--test".into(), t.clone()]).collect();
    for (on, flag) in [(args.lib, "--lib"), (args.bins, "--bins"), (args.release, "--release")] {
        cargo.extend(on.then(|| flag.to_owned()));
    }
    let programs = project.tests(&cargo, &options).map_err(|e| as_cargo_test(e.into()))?;
    let images = pack(&project, &programs)?;
    if args.no_run {
        images.iter().for_each(|(_, image)| donjon_monitor::say!("donjon: {}", image.display()));
        return Ok(0);
    }
    let results = run_all(args, &project, &images)?;
    let (failed, passed): (Vec<_>, Vec<_>) = results.iter().partition(|r| r.verdict != Verdict::Passed);
    let skipped = images.len() - results.len();
    let mut summary = format!("donjon: {} test programs passed, {} failed", passed.len(), failed.len());
    if skipped > 0 {
        summary += &format!(", {skipped} not run (--no-fail-fast goes on)");
    }
    donjon_monitor::say!("{summary}");
    for r in &failed {
        donjon_monitor::say!("donjon:   {} {}", r.name, r.verdict.text());
    }
    Ok(if failed.is_empty() { 0 } else { code::TEST_FAILED })
}

/// What does not compile ends `cargo test` as a failed test does.
fn as_cargo_test(failure: Failure) -> Failure {
    let code = if failure.code == code::FAILED { code::TEST_FAILED } else { failure.code };
    Failure { code, ..failure }
}

fn pack(project: &Project, programs: &[Program]) -> Result<Vec<(String, PathBuf)>, Failure> {
    let progress = ui::spinner("packing");
    let mut images = Vec::new();
    for program in programs {
        progress.set_message(format!("packing {}", program.name));
        // The file's name has cargo's hash: a library and a program of the same name stay apart.
        let stem = program.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let image = project.target_dir.join("tests").join(format!("{stem}.img"));
        project.pack(program, &image)?;
        images.push((program.name.clone(), image));
    }
    progress.finish_and_clear();
    Ok(images)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed(i32),
    TimedOut,
    NotStarted,
}

impl Verdict {
    fn text(self) -> String {
        match self {
            Verdict::Passed => "passed".into(),
            Verdict::Failed(101) => "failed".into(),
            Verdict::Failed(70 | 134) => "crashed (its report says where; --memory gives it more)".into(),
            Verdict::Failed(status) => format!("failed with status {status}"),
            Verdict::TimedOut => "took too long (--timeout gives it more)".into(),
            Verdict::NotStarted => "could not be started".into(),
        }
    }
}

struct Outcome {
    name: String,
    verdict: Verdict,
}

/// Runs the images, as many at a time as wanted, and relays each one's output in one piece if there are several.
fn run_all(args: &TestArgs, project: &Project, images: &[(String, PathBuf)]) -> Result<Vec<Outcome>, Failure> {
    let (next, stop, outcomes) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(Vec::new()));
    let worker = || {
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some((name, image)) = images.get(index) else { return };
            let start = Instant::now();
            if args.jobs == 1 {
                donjon_monitor::say!("donjon: running {name} ({}/{})", index + 1, images.len());
            }
            let (verdict, output) = run_one(args, project, image).unwrap_or((Verdict::NotStarted, Vec::new()));
            let seconds = start.elapsed().as_secs_f64();
            let mut outcomes = outcomes.lock().unwrap_or_else(|e| e.into_inner());
            if args.jobs > 1 {
                donjon_monitor::say!("donjon: {name} {} ({seconds:.1} s)", verdict.text());
                relay(args, &output);
            }
            if args.json {
                let line = serde_json::json!({
                    "name": name, "image": image.to_string_lossy(), "passed": verdict == Verdict::Passed, "seconds": seconds,
                    "status": match verdict { Verdict::Passed => Some(0), Verdict::Failed(s) => Some(s), _ => None },
                    "timed_out": verdict == Verdict::TimedOut,
                });
                donjon_monitor::out!("{line}");
            }
            if verdict != Verdict::Passed && !args.no_fail_fast {
                stop.store(true, Ordering::Relaxed);
            }
            outcomes.push(Outcome { name: name.clone(), verdict });
        }
    };
    thread::scope(|scope| {
        for _ in 1..args.jobs {
            scope.spawn(worker);
        }
        worker();
    });
    Ok(outcomes.into_inner().unwrap_or_else(|e| e.into_inner()))
}

fn relay(args: &TestArgs, output: &[u8]) {
    use io::Write as _;
    // A reader of our output that has gone is no reason to stop testing.
    _ = if args.json { io::stderr().write_all(output) } else { io::stdout().write_all(output) };
}

fn run_one(args: &TestArgs, project: &Project, image: &Path) -> io::Result<(Verdict, Vec<u8>)> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("run").arg(image).args(["--listen-any", "--egress-any"]).stdin(Stdio::null());
    // No guest outlives us.
    command.arg(format!("--child-of={}", std::process::id()));
    let engine = &args.engine;
    match engine.engine {
        EngineName::Auto => {}
        EngineName::Process => _ = command.args(["--engine", "process"]),
        EngineName::Qemu => {
            let machine = if engine.machine == Machine::Q35 { "q35" } else { "microvm" };
            command.args(["--engine", "qemu", "--machine", machine]);
            if engine.qemu_unconfined {
                command.arg("--qemu-unconfined");
            }
            command.args(engine.qemu_arg.iter().map(|a| format!("--qemu-arg={a}")));
        }
    }
    if let NetMode::None = engine.net {
        command.args(["--net", "none"]);
    }
    let memory = engine.memory.or(project.config.memory).unwrap_or(MEMORY);
    command.arg("--memory").arg(memory.to_string());
    let inherited = [
        "RUST_BACKTRACE",
        "RUST_TEST_THREADS",
        "RUST_TEST_NOCAPTURE",
        "RUST_TEST_SHUFFLE",
        "RUST_MIN_STACK",
        "RUST_LOG",
    ];
    let inherited = inherited.iter().filter_map(|n| Some(format!("{n}={}", env::var(n).ok()?)));
    for variable in project.test_env().into_iter().chain(inherited).chain(args.env.iter().cloned()) {
        command.arg("-e").arg(variable);
    }
    command.arg("--").args(&args.args);

    if args.jobs == 1 {
        if args.json {
            command.stdout(io::stderr());
        }
        return Ok((judge(command.spawn()?, Duration::from_secs(args.timeout))?, Vec::new()));
    }
    // Both streams into one pipe, in the order in which they come.
    let (mut reader, writer) = io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let child = command.spawn()?;
    drop(command); // its copies of the pipe's other end
    let output = thread::spawn(move || {
        let mut output = Vec::new();
        _ = io::Read::read_to_end(&mut reader, &mut output);
        output
    });
    let verdict = judge(child, Duration::from_secs(args.timeout))?;
    Ok((verdict, output.join().unwrap_or_default()))
}

/// Waits for the child, but not for ever.
fn judge(mut child: Child, timeout: Duration) -> io::Result<Verdict> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(match status.code() {
                Some(0) => Verdict::Passed,
                Some(n) => Verdict::Failed(n),
                None => Verdict::Failed(-1),
            });
        }
        if start.elapsed() > timeout {
            child.kill()?;
            child.wait()?;
            return Ok(Verdict::TimedOut);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
