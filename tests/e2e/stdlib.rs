//! The standard library's promises, and C and assembly inside crates.

use donjon_tests::{Engine, Guest, test_guest};

crate::under_engines! {
    sockets_over_loopback: ProcessUser QemuMicrovm QemuQ35;
    c_code_has_a_stack_protector: ProcessUser QemuMicrovm;
    c_code_knows_the_size_of_its_buffers: ProcessUser QemuMicrovm;
    c_and_assembly_in_crates: ProcessUser QemuMicrovm QemuQ35;
}

fn sockets_over_loopback(engine: Engine) {
    let exit = Guest::builder(&test_guest("sockets"), engine).memory("64M").args(["selftest"]).run();
    assert!(!exit.stdout.contains("FAILURE"), "{exit}");
    exit.expect_code(0).expect_text(" passed, 0 failed");
}

fn c_code_has_a_stack_protector(engine: Engine) {
    let run = |len: &str| Guest::builder(&test_guest("native-code"), engine).memory("128M").args([len]).run();
    // Within the buffer, it returns (and says so).
    assert!(run("16").stdout.contains("FAILURE: returned"));
    let exit = run("32");
    assert!(!exit.stdout.contains("FAILURE") && exit.code != Some(0), "{engine}: it returned\n{exit}");
    assert!(format!("{}{}", exit.stdout, exit.stderr).contains("stack smashing"), "{exit}");
}

fn c_code_knows_the_size_of_its_buffers(engine: Engine) {
    let run = |level: &str, what: &str, len: &str| {
        Guest::builder(&test_guest("native-code"), engine).memory("128M").args([level, what, len]).run()
    };
    // Under emulation one of each level, to keep the run short: the C code is the same.
    let all = ["memcpy", "memmove", "memset", "strcpy", "strcat", "strncpy", "sprintf", "snprintf", "read"];
    let some = if engine.is_qemu() { &all[..1] } else { &all[..] };
    let level_3 = [some, &["heap"]].concat();
    for (level, what) in some.iter().map(|w| ("2", w)).chain(level_3.iter().map(|w| ("3", w))) {
        let exit = run(level, what, "12");
        assert!(exit.code == Some(0) && exit.stdout.contains("returned"), "level {level}, {what}: {exit}");
        let exit = run(level, what, "17");
        assert!(exit.code == Some(134) && !exit.stdout.contains("returned"), "level {level}, {what}: {exit}");
        exit.expect_text("buffer overflow detected").expect_text("thread 'main': aborted");
    }
}

fn c_and_assembly_in_crates(engine: Engine) {
    let exit = Guest::builder(&test_guest("native-code"), engine).memory("128M").run();
    exit.expect_code(0).expect_text("PASS native-code");
}
