//! What a test needs from the machine, and how it says that it could not run.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Something that not every machine has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// The rights to make a network namespace and a TAP device.
    Tap,
    /// `qemu-system-x86_64`.
    Qemu,
    /// Another program, by name.
    Program(&'static str),
}

/// Whether the machine has it.
pub fn have(need: Need) -> bool {
    match need {
        Need::Tap => is_root() && Path::new("/dev/net/tun").exists() && have_program("ip") && have_program("nsenter"),
        Need::Qemu => have_program("qemu-system-x86_64"),
        Need::Program(name) => have_program(name),
    }
}

/// Whether a program of that name is on the path (`/usr/sbin` and `/sbin` included, which ordinary users often lack).
pub fn have_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir: std::path::PathBuf| dir.join(name).is_file())
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// If something that `test` needs is missing: says so, as a line `SKIP test: reason` on standard error and in the file that `DONJON_SKIP_LOG`
/// names (`cargo xtask test` counts those), and returns true.
pub fn missing(test: &str, needs: &[Need]) -> bool {
    missing_in(std::env::var_os("DONJON_SKIP_LOG").map(PathBuf::from).as_deref(), test, needs)
}

/// The same with the file to write to, if there is one.
pub fn missing_in(log: Option<&Path>, test: &str, needs: &[Need]) -> bool {
    let reasons: Vec<String> = needs
        .iter()
        .filter(|n| !have(**n))
        .map(|n| match n {
            Need::Tap => "needs root, /dev/net/tun and iproute2".to_owned(),
            Need::Qemu => "needs qemu-system-x86_64".to_owned(),
            Need::Program(name) => format!("needs {name}"),
        })
        .collect();
    if reasons.is_empty() {
        return false;
    }
    let line = format!("SKIP {test}: {}\n", reasons.join(", "));
    // Written past the test runner's capture: a skip is never silent. A closed stderr leaves nobody to tell.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(log) = log {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(log);
        file.and_then(|mut f| f.write_all(line.as_bytes())).expect("the list of skips is writable");
    }
    true
}
