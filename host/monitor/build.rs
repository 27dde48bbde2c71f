//! Turns the lists of system calls, which are data files for people to read, into constants. Nothing is read when a guest is started.

#[path = "build/rules.rs"]
mod rules;

use std::{env, fs, path::Path, process::ExitCode};

/// The files, and the sections that each must have.
const FILES: [(&str, &str, &[&str]); 3] = [
    ("src/jail/monitor.seccomp.toml", "monitor_rules.rs", &["always", "frames", "usernet", "dial"]),
    ("src/jail/keeper.seccomp.toml", "keeper_rules.rs", &["keeper"]),
    ("src/process/guest.seccomp.toml", "guest_rules.rs", &["rules"]),
];

fn main() -> ExitCode {
    let package = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let out = env::var("OUT_DIR").expect("cargo sets it");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    let mut status = ExitCode::SUCCESS;
    for (from, to, sections) in FILES {
        println!("cargo::rerun-if-changed={from}");
        let text = fs::read_to_string(Path::new(&package).join(from)).unwrap_or_else(|e| panic!("{from}: {e}"));
        match rules::constants(&format!("host/monitor/{from}"), &text, sections) {
            Ok(code) => fs::write(Path::new(&out).join(to), code).unwrap_or_else(|e| panic!("{to}: {e}")),
            Err(e) => {
                println!("cargo::error={e}");
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}
