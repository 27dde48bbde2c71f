//! The standard library's promises, and C and assembly inside crates.

use donjon_tests::{Engine, Guest, test_guest};

crate::under_engines! {
    sockets_over_loopback: ProcessUser QemuMicrovm QemuQ35;
    c_code_has_a_stack_protector: ProcessUser QemuMicrovm;
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

fn c_and_assembly_in_crates(engine: Engine) {
    let exit = Guest::builder(&test_guest("native-code"), engine).memory("128M").run();
    exit.expect_code(0).expect_text("PASS native-code");
}
