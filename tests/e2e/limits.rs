//! Running out of things inside the guest is an error that the program sees, never the guest's end.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::process::Stdio;

use donjon_tests::{Engine, Guest, donjon_command, test_guest};

crate::under_engines! {
    out_of_memory: ProcessUser QemuMicrovm;
    out_of_threads: ProcessUser QemuMicrovm;
    out_of_sockets: ProcessUser QemuMicrovm;
    out_of_files: ProcessUser QemuMicrovm;
    full_tmpfs: ProcessUser QemuMicrovm;
    honest_madvise: ProcessUser QemuMicrovm QemuQ35;
    shared_mappings_of_changing_files: ProcessUser QemuMicrovm;
    decommitted_memory: ProcessUser QemuMicrovm;
    freed_memory_is_used_again: ProcessUser QemuMicrovm;
    preemption: ProcessUser QemuMicrovm QemuQ35;
    a_mutex_goes_round: ProcessUser QemuMicrovm;
    a_full_log_blocks_its_writer: ProcessUser;
    panics_unwind: ProcessUser QemuMicrovm QemuQ35;
    clocks: ProcessUser QemuMicrovm QemuQ35;
    refused_by_design: ProcessUser QemuMicrovm;
    empty_stdin: ProcessUser QemuMicrovm;
    arguments_and_environment: ProcessUser QemuMicrovm QemuQ35;
    exit_codes: ProcessUser QemuMicrovm QemuQ35;
    too_little_memory_says_how_much: ProcessUser QemuMicrovm;
}

fn pass(engine: Engine, case: &str, memory: &str) {
    let exit = Guest::builder(&test_guest("limits"), engine).memory(memory).args([case]).run();
    exit.expect_code(0).expect_text(&format!("PASS {case}"));
}

fn out_of_memory(engine: Engine) {
    pass(engine, "memory", "32M");
    pass(engine, "memory", "33M");
}

fn out_of_threads(engine: Engine) {
    pass(engine, "threads", "32M");
}

fn out_of_sockets(engine: Engine) {
    pass(engine, "sockets", "32M");
}

fn out_of_files(engine: Engine) {
    pass(engine, "files", "32M");
}

fn full_tmpfs(engine: Engine) {
    pass(engine, "tmpfs", "64M");
}

fn honest_madvise(engine: Engine) {
    pass(engine, "madvise", "32M");
}

fn shared_mappings_of_changing_files(engine: Engine) {
    pass(engine, "mappings", "32M");
}

fn decommitted_memory(engine: Engine) {
    pass(engine, "decommitted", "32M");
}

fn freed_memory_is_used_again(engine: Engine) {
    pass(engine, "returned", "48M");
}

fn preemption(engine: Engine) {
    pass(engine, "preemption", "32M");
}

fn a_mutex_goes_round(engine: Engine) {
    pass(engine, "mutex", "32M");
}

fn a_full_log_blocks_its_writer(_: Engine) {
    let mut command = donjon_command();
    command.arg("run").arg(test_guest("limits")).args(["-m", "32M", "--", "log"]);
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("donjon runs");
    let mut heard = String::new();
    let mut errors = BufReader::new(run.stderr.take().expect("a pipe"));
    while !heard.contains("the other thread goes on") && errors.read_line(&mut heard).expect("text") > 0 {}
    let mut said = String::new();
    run.stdout.take().expect("a pipe").read_to_string(&mut said).expect("text");
    errors.read_to_string(&mut heard).expect("text");
    let lines = said.lines().filter(|line| line.len() == 99 && line.bytes().all(|b| b == b'x')).count();
    assert!(run.wait().expect("an end").success(), "{heard}");
    assert_eq!(lines, 100_000, "{heard}");
    assert!(said.contains("PASS log"), "{heard}");
}

fn panics_unwind(engine: Engine) {
    pass(engine, "panic", "32M");
}

fn refused_by_design(engine: Engine) {
    pass(engine, "refused", "32M");
}

fn empty_stdin(engine: Engine) {
    let image = test_guest("limits");
    let engine = if engine.is_qemu() { "qemu" } else { "process" };
    // What `donjon run` has there is neither given to the guest nor used up (ADR 0012).
    let mut input = File::open(&image).expect("the image is a file");
    let mut command = donjon_command();
    command.arg("run").arg(&image).args(["-m", "32M", "--engine", engine, "--", "stdin"]);
    let output = command.stdin(input.try_clone().expect("a descriptor")).output().expect("donjon runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("PASS stdin"), "{output:?}");
    assert_eq!(input.stream_position().expect("a position"), 0, "shared with donjon's own standard input");
}

fn clocks(engine: Engine) {
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let before = now();
    let exit = Guest::builder(&test_guest("limits"), engine).args(["time"]).run();
    exit.expect_code(0);
    let wall = exit.stdout.split("wall=").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    let wall: u64 = wall.unwrap_or_else(|| panic!("{exit}"));
    assert!((before.saturating_sub(2)..=now() + 2).contains(&wall), "guest's clock {wall}, ours {}", now());
}

fn arguments_and_environment(engine: Engine) {
    let exit = Guest::builder(&test_guest("limits"), engine)
        .options(["--env", "DONJON_TEST=a value"])
        .args(["environment", "one", "two words", ""])
        .run();
    exit.expect_code(0).expect_text("PASS environment");
}

fn exit_codes(engine: Engine) {
    let run = |case: &str| Guest::builder(&test_guest("limits"), engine).args([case]).run();
    run("exit").expect_code(42);
    run("abort").expect_code(134).expect_text("thread 'main': aborted");
    run("main-panics").expect_code(101).expect_text("on purpose");
    run("no-such-case").expect_code(1).expect_text("FAILURE no-such-case");
}

fn too_little_memory_says_how_much(engine: Engine) {
    let exit = Guest::builder(&test_guest("limits"), engine).memory("64K").args(["exit"]).run();
    assert!(!matches!(exit.code, Some(0 | 42) | None), "{exit}");
    let text = exit.stderr.to_lowercase();
    assert!(text.contains("memory") && text.contains("need"), "{exit}");
}
