//! One guest per forbidden thing: whoever survives prints FAILURE.

use donjon_tests::{Engine, Exit, Guest, test_guest};

crate::under_engines! {
    writes_to_what_is_read_only: ProcessUser QemuMicrovm QemuQ35;
    executes_what_is_writable: ProcessUser QemuMicrovm QemuQ35;
    null_pointers: ProcessUser QemuMicrovm QemuQ35;
    stack_overflow_hits_a_guard_page: ProcessUser QemuMicrovm QemuQ35;
    large_allocations_lie_between_guard_pages: ProcessUser QemuMicrovm QemuQ35;
    nothing_lies_beside_the_image: ProcessUser QemuMicrovm QemuQ35;
    rights_cannot_be_widened: ProcessUser QemuMicrovm QemuQ35;
    network_is_what_the_manifest_names: ProcessUser QemuMicrovm;
    wrong_frees_end_the_guest: ProcessUser QemuMicrovm;
    freed_memory_is_not_handed_out_at_once: ProcessUser QemuMicrovm;
    every_start_has_its_own_secrets: ProcessUser QemuMicrovm;
    descriptor_tables_are_not_for_programs: QemuMicrovm QemuQ35;
    raw_system_calls: ProcessUser QemuMicrovm QemuQ35;
    privileged_instructions: ProcessUser QemuMicrovm QemuQ35;
    crash_reports_name_what_happened: ProcessUser QemuMicrovm QemuQ35;
}

/// Runs the case and fails if the guest got away with it.
fn attempt(engine: Engine, case: &str) -> Exit {
    let exit = Guest::builder(&test_guest("security"), engine).args([case]).run();
    exit.expect_text(&format!("trying {case}"));
    assert!(!exit.stdout.contains("FAILURE") && exit.code != Some(0), "{engine}: {case} succeeded\n{exit}");
    exit
}

/// The case must end the guest.
fn ends(engine: Engine, case: &str) {
    let exit = attempt(engine, case);
    assert!(exit.code != Some(3), "{engine}: {case} was refused instead of ending the guest\n{exit}");
    // Never silent: it says that and why it ended. (A virtual machine has one console, so look at both streams.)
    let words = format!("{}{}", exit.stdout, exit.stderr).replace(&format!("trying {case}"), "");
    assert!(!words.trim().is_empty(), "{engine}: {case} ended without a word\n{exit}");
}

/// The case must end the guest by a page fault, and not by a mistake of its own on the way.
fn faults(engine: Engine, case: &str) {
    let exit = attempt(engine, case);
    assert_eq!(exit.code, Some(70), "{exit}");
    let words = format!("{}{}", exit.stdout, exit.stderr).to_lowercase();
    assert!(["page fault", "overflowed its stack"].iter().any(|w| words.contains(w)), "{exit}");
}

fn writes_to_what_is_read_only(engine: Engine) {
    for case in ["write-text", "write-rodata", "write-relro"] {
        ends(engine, case);
    }
}

fn executes_what_is_writable(engine: Engine) {
    for case in ["exec-heap", "exec-stack", "exec-data"] {
        ends(engine, case);
    }
}

fn null_pointers(engine: Engine) {
    for case in ["null-read", "null-write", "null-page-end", "null-call"] {
        ends(engine, case);
    }
}

fn stack_overflow_hits_a_guard_page(engine: Engine) {
    ends(engine, "stack-overflow");
    ends(engine, "thread-stack-overflow");
    for case in
        ["stack-below", "stack-page-below", "thread-stack-below", "thread-stack-page-below", "thread-stack-write-below"]
    {
        faults(engine, case);
    }
}

fn large_allocations_lie_between_guard_pages(engine: Engine) {
    for case in ["heap-below", "heap-above", "heap-write-above", "heap-grown-above"] {
        faults(engine, case);
    }
}

fn nothing_lies_beside_the_image(engine: Engine) {
    for case in ["image-below", "image-above"] {
        faults(engine, case);
    }
}

fn rights_cannot_be_widened(engine: Engine) {
    for case in ["mprotect-exec", "mprotect-text-write", "mprotect-wx", "mmap-exec"] {
        attempt(engine, case).expect_code(3).expect_text("REFUSED");
    }
}

fn network_is_what_the_manifest_names(engine: Engine) {
    for case in
        ["listen", "listen-any-port", "bind-datagrams", "connect", "connect-gateway", "connect-metadata", "datagram"]
    {
        attempt(engine, case).expect_code(3).expect_text("REFUSED");
    }
}

fn wrong_frees_end_the_guest(engine: Engine) {
    for case in ["double-free", "double-free-large", "free-inside", "free-stack"] {
        ends(engine, case);
    }
}

fn freed_memory_is_not_handed_out_at_once(engine: Engine) {
    for case in ["reuse", "reuse-when-full"] {
        attempt(engine, case).expect_code(3).expect_text("REFUSED");
    }
}

/// UMIP under the shim. (Linux, under the process engine, answers with made-up addresses instead.)
fn descriptor_tables_are_not_for_programs(engine: Engine) {
    ends(engine, "sgdt");
}

/// Addresses with at least 28 random bits each, and a canary and random numbers that no other start has.
fn every_start_has_its_own_secrets(engine: Engine) {
    const STARTS: usize = 8;
    const BITS: u32 = 28;
    let starts: Vec<Vec<(String, u64)>> = (0..STARTS)
        .map(|_| {
            let exit = Guest::builder(&test_guest("security"), engine).args(["secrets"]).run();
            let pair = |line: &str| {
                let (name, value) = line.trim().split_once(' ')?;
                Some((name.to_owned(), u64::from_str_radix(value, 16).ok()?))
            };
            exit.stdout.lines().filter_map(pair).collect()
        })
        .collect();
    for (i, (name, first)) in starts[0].iter().enumerate() {
        let values: Vec<u64> = starts.iter().map(|s| s.get(i).expect("the same lines").1).collect();
        let varying = values.iter().fold(0, |bits, v| bits | (v ^ first)).count_ones();
        assert!(varying >= BITS, "{engine}: {name} varies in {varying} bits only: {values:x?}");
        for (j, value) in values.iter().enumerate() {
            assert!(*value != 0 && !values[..j].contains(value), "{engine}: {name} came twice: {values:x?}");
        }
    }
    assert_eq!(starts[0].len(), 7, "{:?}", starts[0]);
}

fn raw_system_calls(engine: Engine) {
    for case in ["syscall-open", "syscall-close", "syscall-socket", "syscall-execve", "syscall-mprotect", "int80"] {
        ends(engine, case);
    }
}

fn privileged_instructions(engine: Engine) {
    for case in ["hlt", "cr3", "out"] {
        ends(engine, case);
    }
}

fn crash_reports_name_what_happened(engine: Engine) {
    let exit = attempt(engine, "null-read");
    exit.expect_code(70);
    let text = format!("{}{}", exit.stdout, exit.stderr).to_lowercase();
    assert!(text.contains("page fault"), "{exit}");
    assert!(text.contains("0x0") || text.contains("address 0"), "{exit}");
}
