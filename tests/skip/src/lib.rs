//! What a test needs from the machine, and how it says that it could not run.
//!
//! Test runners take what a test prints, and a test that returns has passed. So a test of any crate that lacks something calls [`missing`] or [`skip`]: they write past
//! the runner's capture, and into the list that `cargo xtask test` counts. It fails in CI for each line there that it does not expect.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Something that not every machine has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Root's rights over other processes, and to mount.
    Root,
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
        Need::Root => is_root(),
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
        .any(|dir: PathBuf| dir.join(name).is_file())
}

/// Whether this process is root.
pub fn is_root() -> bool {
    // proc(5): real, effective, saved set and file system user.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ids = status.lines().find_map(|l| l.strip_prefix("Uid:"));
    ids.and_then(|ids| ids.split_ascii_whitespace().nth(1)) == Some("0")
}

/// If something that `test` needs is missing: [`skip`]s it, and returns true.
pub fn missing(test: &str, needs: &[Need]) -> bool {
    missing_in(log().as_deref(), test, needs)
}

/// The same with the list to write to, if there is one.
pub fn missing_in(log: Option<&Path>, test: &str, needs: &[Need]) -> bool {
    let reasons: Vec<String> = needs
        .iter()
        .filter(|n| !have(**n))
        .map(|n| match n {
            Need::Root => "needs root".to_owned(),
            Need::Tap => "needs root, /dev/net/tun and iproute2".to_owned(),
            Need::Qemu => "needs qemu-system-x86_64".to_owned(),
            Need::Program(name) => format!("needs {name}"),
        })
        .collect();
    if reasons.is_empty() {
        return false;
    }
    skip_in(log, test, &reasons.join(", "));
    true
}

/// For what a test, or a part of it, finds out by trying. Says a line `SKIP test: reason` on standard error and in the file that `DONJON_SKIP_LOG` names.
pub fn skip(test: &str, reason: &str) {
    skip_in(log().as_deref(), test, reason);
}

/// The same with the list to write to, if there is one.
pub fn skip_in(log: Option<&Path>, test: &str, reason: &str) {
    let line = format!("SKIP {test}: {reason}\n");
    // Past the runner's capture, which is for the macros that print. A closed stderr leaves nobody to tell.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(log) = log {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(log);
        file.and_then(|mut f| f.write_all(line.as_bytes())).expect("the list of skips is writable");
    }
}

/// The name of the test that runs, for what several share: the runner gives it to the thread.
pub fn this_test() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

fn log() -> Option<PathBuf> {
    std::env::var_os("DONJON_SKIP_LOG").map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_in_the_list() {
        let list = std::env::temp_dir().join(format!("donjon-skip-{}", std::process::id()));
        assert!(!missing_in(Some(&list), "nothing", &[]) && !list.exists());
        assert!(missing_in(Some(&list), "a", &[Need::Program("no-such-program"), Need::Program("nor-this")]));
        skip_in(Some(&list), &this_test(), "for a test");
        let text = std::fs::read_to_string(&list).unwrap();
        std::fs::remove_file(&list).unwrap();
        let this = module_path!().split_once("::").unwrap().1.to_owned() + "::a_skip_is_in_the_list";
        assert_eq!(text, format!("SKIP a: needs no-such-program, needs nor-this\nSKIP {this}: for a test\n"));
    }
}
