//! One guest per forbidden thing: whoever survives prints FAILURE.

use std::mem::offset_of;
use std::path::Path;
use std::process::{Command, Stdio};

use donjon_abi::boot::BootPage;
use donjon_tests::{Engine, Exit, Guest, test_guest};

crate::under_engines! {
    writes_to_what_is_read_only: ProcessUser QemuMicrovm QemuQ35;
    executes_what_is_writable: ProcessUser QemuMicrovm QemuQ35;
    wild_jumps_are_reported: ProcessUser QemuMicrovm QemuQ35;
    null_pointers: ProcessUser QemuMicrovm QemuQ35;
    stack_overflow_hits_a_guard_page: ProcessUser QemuMicrovm QemuQ35;
    large_allocations_lie_between_guard_pages: ProcessUser QemuMicrovm QemuQ35;
    nothing_lies_beside_the_image: ProcessUser QemuMicrovm QemuQ35;
    rights_cannot_be_widened: ProcessUser QemuMicrovm QemuQ35;
    network_is_what_the_manifest_names: ProcessUser QemuMicrovm QemuQ35;
    wrong_frees_end_the_guest: ProcessUser QemuMicrovm QemuQ35;
    freed_memory_is_not_handed_out_at_once: ProcessUser QemuMicrovm QemuQ35;
    every_start_has_its_own_secrets: ProcessUser QemuMicrovm QemuQ35;
    descriptor_tables_are_not_for_programs: QemuMicrovm QemuQ35;
    raw_system_calls: ProcessUser QemuMicrovm QemuQ35;
    privileged_instructions: ProcessUser QemuMicrovm QemuQ35;
    crash_reports_name_what_happened: ProcessUser QemuMicrovm QemuQ35;
}

/// Runs the case, and fails if the guest got away with it, does not know the case, or ended by a mistake of its own.
fn attempt(engine: Engine, case: &str) -> Exit {
    let exit = Guest::builder(&test_guest("security"), engine).args([case]).run();
    exit.expect_text(&format!("trying {case}"));
    assert!(!exit.stdout.contains("FAILURE") && exit.code != Some(0), "{engine}: {case} succeeded\n{exit}");
    assert!(exit.code != Some(NO_SUCH_CASE) && exit.code != Some(PANIC), "{engine}: {case} was not tried\n{exit}");
    exit
}

/// The guest's exit codes: for a case that it does not know, and for an errno where one is expected. Rust's for a panic.
const NO_SUCH_CASE: i32 = 2;
const REFUSED: i32 = 3;
const PANIC: i32 = 101;
/// `donjon run`'s, for a crash (docs/cli.md), and that of `abort`.
const CRASH: i32 = 70;
const ABORT: i32 = 134;

/// The case must end the guest with this exit code, and a line of the report must say why.
fn ends_with(engine: Engine, case: &str, code: i32, why: &str) {
    let exit = attempt(engine, case);
    assert_eq!(exit.code, Some(code), "{engine}: {case} ended in another way\n{exit}");
    // A virtual machine has one console, so look at both streams.
    let said = [&exit.stdout, &exit.stderr].iter().any(|text| text.lines().any(|line| line.trim_end().contains(why)));
    assert!(said, "{engine}: {case}: no line says {why:?}\n{exit}");
}

/// The case must crash the guest.
fn ends(engine: Engine, case: &str, why: &str) {
    ends_with(engine, case, CRASH, why);
}

/// The case must be answered with an errno.
fn refused(engine: Engine, case: &str) {
    attempt(engine, case).expect_code(REFUSED).expect_text("REFUSED");
}

fn writes_to_what_is_read_only(engine: Engine) {
    for case in ["write-text", "write-rodata", "write-relro"] {
        ends(engine, case, "page fault: write at 0x");
    }
}

fn executes_what_is_writable(engine: Engine) {
    for case in ["exec-heap", "exec-stack", "exec-data"] {
        ends(engine, case, "page fault: execution at 0x");
    }
}

fn wild_jumps_are_reported(engine: Engine) {
    for (case, address) in [("call-nowhere", "0x10000000"), ("call-kernel", "0xffffffff81000000")] {
        let exit = attempt(engine, case);
        exit.expect_code(CRASH);
        let text = format!("{}{}", exit.stdout, exit.stderr);
        // Where it went, and who sent it there.
        for part in [&format!("page fault: execution at {address}"), &format!("0: {address}"), "1: image+0x"] {
            assert!(text.contains(part), "{engine}: {case}: no {part:?}\n{exit}");
        }
    }
}

fn null_pointers(engine: Engine) {
    ends(engine, "null-read", "page fault: read at 0x0");
    ends(engine, "null-write", "page fault: write at 0x0");
    ends(engine, "null-page-end", "page fault: read at 0xfff");
    ends(engine, "null-call", "page fault: execution at 0x0");
}

fn stack_overflow_hits_a_guard_page(engine: Engine) {
    for case in [
        "stack-overflow",
        "thread-stack-overflow",
        "stack-below",
        "stack-page-below",
        "thread-stack-below",
        "thread-stack-page-below",
        "thread-stack-write-below",
    ] {
        ends(engine, case, "has overflowed its stack");
    }
}

fn large_allocations_lie_between_guard_pages(engine: Engine) {
    for case in ["heap-below", "heap-above", "heap-grown-above"] {
        ends(engine, case, "page fault: read at 0x");
    }
    ends(engine, "heap-write-above", "page fault: write at 0x");
}

fn nothing_lies_beside_the_image(engine: Engine) {
    for case in ["image-below", "image-above"] {
        ends(engine, case, "page fault: read at 0x");
    }
}

fn rights_cannot_be_widened(engine: Engine) {
    for case in ["mprotect-exec", "mprotect-text-write", "mprotect-wx", "mmap-exec"] {
        refused(engine, case);
    }
}

fn network_is_what_the_manifest_names(engine: Engine) {
    for case in
        ["listen", "listen-any-port", "bind-datagrams", "connect", "connect-gateway", "connect-metadata", "datagram"]
    {
        refused(engine, case);
    }
}

fn wrong_frees_end_the_guest(engine: Engine) {
    for case in ["double-free", "double-free-large"] {
        ends_with(engine, case, ABORT, "is free already (double free)");
    }
    for case in ["free-inside", "free-stack"] {
        ends_with(engine, case, ABORT, "is not an allocation");
    }
}

fn freed_memory_is_not_handed_out_at_once(engine: Engine) {
    for case in ["reuse", "reuse-when-full"] {
        refused(engine, case);
    }
}

/// UMIP under the shim, and no local table. (Linux, under the process engine, answers with made-up addresses instead.)
fn descriptor_tables_are_not_for_programs(engine: Engine) {
    ends(engine, "sgdt", "general protection fault");
    refused(engine, "local-descriptors");
}

/// Addresses with at least 28 random bits each, none at the same distance from another, and a canary and random numbers that no other
/// start has.
fn every_start_has_its_own_secrets(engine: Engine) {
    const STARTS: usize = 8;
    const BITS: u32 = 28;
    // Fields of the boot page: addresses of what the host places each by itself.
    let fields = [
        ("image-base", offset_of!(BootPage, image)),
        ("gate", offset_of!(BootPage, gate)),
        ("bundle", offset_of!(BootPage, bundle)),
        ("reserve", offset_of!(BootPage, reserve)),
        ("first-stack", offset_of!(BootPage, stack)),
        ("fault-stack", offset_of!(BootPage, fault_stack)),
    ];
    let image = test_guest("security");
    let boot = boot_pointer(&image);
    let words = [format!("{boot:x}")].into_iter().chain(fields.iter().map(|(name, at)| format!("{name}={at:x}")));
    let words: Vec<String> = ["secrets".to_owned()].into_iter().chain(words).collect();
    // Per line its name and the number of each start.
    let mut seen: Vec<(String, Vec<u64>)> = Vec::new();
    for start in 0..STARTS {
        let exit = Guest::builder(&image, engine).args(words.clone()).run();
        exit.expect_code(0);
        let pair = |line: &str| {
            let (name, value) = line.trim().split_once(' ')?;
            Some((name.to_owned(), u64::from_str_radix(value, 16).ok()?))
        };
        let lines: Vec<(String, u64)> = exit.stdout.lines().filter_map(pair).collect();
        let expected = ["image", "heap", "large", "stack", "thread", "canary", "random", "boot"];
        let expected = expected.into_iter().chain(fields.iter().map(|f| f.0));
        assert!(lines.iter().map(|(name, _)| name.as_str()).eq(expected), "{engine}: start {start}\n{exit}");
        for (i, (name, value)) in lines.into_iter().enumerate() {
            assert_ne!(value, 0, "{engine}: {name} of start {start}");
            if start == 0 {
                seen.push((name.clone(), Vec::new()));
            }
            seen[i].1.push(value);
        }
    }
    let check = |what: &str, values: &[u64]| {
        let varying = values.iter().fold(0, |bits, v| bits | (v ^ values[0])).count_ones();
        assert!(varying >= BITS, "{engine}: {what} varies in {varying} bits only: {values:x?}");
        for (i, value) in values.iter().enumerate() {
            assert!(!values[..i].contains(value), "{engine}: {what} came twice: {values:x?}");
        }
    };
    for (name, values) in &seen {
        check(name, values);
    }
    // No one slide for all, nor for two of them.
    let placed: Vec<_> = seen.iter().filter(|(name, _)| name == "boot" || fields.iter().any(|f| f.0 == name)).collect();
    for (i, (name, values)) in placed.iter().enumerate() {
        for (other, others) in &placed[..i] {
            let distances: Vec<u64> = values.iter().zip(others).map(|(a, b)| a.wrapping_sub(*b)).collect();
            check(&format!("the distance from {other} to {name}"), &distances);
        }
    }
}

/// Where in the image the library OS keeps its pointer to the boot page, by the symbols beside it.
fn boot_pointer(image: &Path) -> u64 {
    let debug = format!("{}.debug", image.display());
    let output = Command::new("readelf").args(["-sW", &debug]).output().expect("readelf (package binutils)");
    let table = String::from_utf8_lossy(&output.stdout);
    let line = table.lines().find(|l| l.contains("donjon_base") && l.contains("BOOT"));
    let address = line.and_then(|l| u64::from_str_radix(l.split_whitespace().nth(1)?, 16).ok());
    address.unwrap_or_else(|| panic!("{debug}: no symbol for the pointer to the boot page"))
}

fn raw_system_calls(engine: Engine) {
    // The host's filter ends the process; the shim serves nobody but the gate's page, and has no gate for `int 0x80`.
    const SECCOMP: &str = "a system call that the gate does not have (ended by seccomp)";
    let (syscall, int80) =
        if engine.is_qemu() { ("invalid instruction", "general protection fault") } else { (SECCOMP, SECCOMP) };
    for case in ["syscall-open", "syscall-close", "syscall-socket", "syscall-execve", "syscall-mprotect"] {
        ends(engine, case, syscall);
    }
    ends(engine, "int80", int80);
}

fn privileged_instructions(engine: Engine) {
    for case in ["hlt", "cr3", "out"] {
        ends(engine, case, "general protection fault");
    }
}

fn crash_reports_name_what_happened(engine: Engine) {
    let exit = attempt(engine, "null-read");
    exit.expect_code(CRASH);
    let text = format!("{}{}", exit.stdout, exit.stderr);
    // What, where in memory, and where in the program.
    for part in ["the guest crashed", "thread 'main': page fault: read at 0x0", "0: image+0x"] {
        assert!(text.contains(part), "no {part:?}\n{exit}");
    }
}

/// A guest that crashes while nobody reads what its monitor says about it: the monitor ends all the same, and with the right status.
#[test]
fn a_crash_that_nobody_reads_about() {
    for _ in 0..10 {
        let mut command = donjon_tests::donjon_command();
        command.arg("run").arg(test_guest("security")).args(["--engine", "process", "--", "free-stack"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        let Some(status) = donjon_tests::poll_until(donjon_tests::PATIENCE, || child.try_wait().unwrap()) else {
            child.kill().unwrap();
            panic!("it does not end: {:?}", child.wait());
        };
        assert_eq!(status.code(), Some(134));
    }
}
