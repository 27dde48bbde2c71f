//! `cargo xtask setup`: installs, by package name, the programs that demo, tests and benches use.
//!
//! Nothing is installed that is already there. Without root (or `sudo` that asks nothing) the command to type is printed instead, and what
//! needs the programs is skipped later, loudly.
//!
//! QEMU is the difficult one. Where `qemu-utils` came from Debian's backports, the stable release's `qemu-system-x86` cannot be
//! installed beside it: apt then either fails or wants to remove `qemu-utils`. So every plan is simulated first, and the first that removes
//! nothing is used: stable; the backports suite; stable with `qemu-utils` replaced.

use std::path::Path;
use std::process::Command;

use donjon_tests::{have_program, is_root};

use crate::process::{self, Result, failed, output, show, usage};

/// Programs and the Debian packages that contain them.
const PROGRAMS: &[(&str, &str)] = &[
    ("curl", "curl"),
    ("wrk", "wrk"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    // The drill's containers, and the symbols that its attacker reads.
    ("bwrap", "bubblewrap"),
    ("readelf", "binutils"),
    ("h2load", "nghttp2-client"),
    ("openssl", "openssl"),
    ("slowhttptest", "slowhttptest"),
    // libFuzzer is C++.
    ("c++", "g++"),
    ("qemu-system-x86_64", QEMU),
];
const QEMU: &str = "qemu-system-x86";
/// What only `cargo xtask web-clients` uses: hundreds of megabytes.
const WEB_CLIENTS: &[(&str, &str)] = &[("chromium", "chromium"), ("testssl", "testssl.sh")];

/// The task.
pub fn main<'a>(args: impl Iterator<Item = &'a str>) -> Result {
    let mut dry_run = false;
    for arg in args {
        match arg {
            "--dry-run" => dry_run = true,
            _ => return Err(usage(format!("setup does not know {arg:?}"))),
        }
    }
    if dry_run {
        return dry();
    }
    let missing = ensure()?;
    if missing.is_empty() {
        eprintln!("setup: everything is there");
        return Ok(());
    }
    Err(failed(format!("still missing: {}", missing.join(" "))))
}

/// Installs what is missing and returns the packages that could not be installed. Fails only if an installation was tried and failed.
pub fn ensure() -> Result<Vec<&'static str>> {
    ensure_all(PROGRAMS)
}

/// The same for what `cargo xtask web-clients` needs beyond that.
pub fn ensure_web_clients() -> Result<Vec<&'static str>> {
    ensure_all(WEB_CLIENTS)
}

fn ensure_all(programs: &[(&str, &'static str)]) -> Result<Vec<&'static str>> {
    let missing = missing_packages(programs);
    if missing.is_empty() {
        return Ok(missing);
    }
    if !have_program("apt-get") {
        eprintln!("setup: SKIPPED: no apt-get here; install these by your own means: {}", missing.join(" "));
        return Ok(missing);
    }
    let Some(apt) = Apt::privileged() else {
        eprintln!("setup: SKIPPED: installing needs root. What needs these programs will be skipped. To install them:");
        eprintln!("\n    sudo apt-get update && sudo apt-get install --no-install-recommends {}\n", missing.join(" "));
        return Ok(missing);
    };
    eprintln!("setup: installing {}", missing.join(" "));
    apt.run(&["update", "-qq"])?;
    let plain: Vec<&str> = missing.iter().copied().filter(|p| *p != QEMU).collect();
    if !plain.is_empty() {
        apt.install(&plain)?;
    }
    if missing.contains(&QEMU) {
        let plan = qemu_plan(&apt, |suite| add_backports(&apt, suite))?;
        apt.install(&plan.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    Ok(missing_packages(programs))
}

fn missing_packages(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    programs.iter().filter(|(program, _)| !have_program(program)).map(|(_, package)| *package).collect()
}

/// Prints what would be done for QEMU, by simulation only, as any user, whether or not it is installed. `APT_CONFIG` can name a configuration with
/// another package database, which is how the plans are tried on one machine.
fn dry() -> Result {
    println!("missing: {:?}", missing_packages(PROGRAMS));
    let apt = Apt { sudo: false };
    let plan = qemu_plan(&apt, |suite| {
        println!("would add the suite {suite} from:\n{}", backports_source(suite)?.1);
        Ok(())
    })?;
    println!("would run: apt-get install {}", plan.join(" "));
    Ok(())
}

struct Apt {
    sudo: bool,
}

impl Apt {
    /// With the rights to install, if this user can have them without being asked.
    fn privileged() -> Option<Apt> {
        if is_root() {
            return Some(Apt { sudo: false });
        }
        let quiet = have_program("sudo")
            && Command::new("sudo").args(["-n", "true"]).output().is_ok_and(|output| output.status.success());
        quiet.then_some(Apt { sudo: true })
    }

    fn privileged_command(&self, program: &str) -> Command {
        if !self.sudo {
            return Command::new(program);
        }
        let mut command = Command::new("sudo");
        command.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive", program]);
        command
    }

    fn run(&self, args: &[&str]) -> Result {
        process::run(self.privileged_command("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(args))
    }

    fn install(&self, args: &[&str]) -> Result {
        self.run(&[&["install", "--yes", "--quiet", "--no-install-recommends"], args].concat())
    }

    /// Whether the installation would work, and without removing anything.
    fn would_install(&self, args: &[&str]) -> Result<bool> {
        let mut command = Command::new("apt-get");
        command.args(["--simulate", "install", "--no-install-recommends"]).args(args).env("LC_ALL", "C");
        let (worked, text) = output(&mut command)?;
        let removes = text.lines().any(|line| line.starts_with("Remv "));
        eprintln!(
            "setup: {}: {}",
            show(&command),
            match (worked, removes) {
                (false, _) => "does not work",
                (true, true) => "would remove packages",
                (true, false) => "works",
            }
        );
        Ok(worked && !removes)
    }
}

/// Arguments for `apt-get install` that get QEMU onto this machine.
fn qemu_plan(apt: &Apt, add_suite: impl FnOnce(&str) -> Result) -> Result<Vec<String>> {
    let owned = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    if apt.would_install(&[QEMU])? {
        return Ok(owned(&[QEMU]));
    }
    if let Some(codename) = codename() {
        let suite = format!("{codename}-backports");
        if !suites()?.contains(&suite) {
            // Not fatal: the last plan needs no other suite.
            if let Err(e) = add_suite(&suite) {
                eprintln!("setup: cannot add the suite {suite}: {}", e.message);
            }
        }
        if suites()?.contains(&suite) && apt.would_install(&["-t", &suite, QEMU])? {
            return Ok(owned(&["-t", &suite, QEMU]));
        }
    }
    if let Some(version) = stable_version("qemu-utils")? {
        let utils = format!("qemu-utils={version}");
        let plan = ["--allow-downgrades", QEMU, &utils];
        if apt.would_install(&plan)? {
            return Ok(owned(&plan));
        }
    }
    Err(failed(format!("apt finds no way to install {QEMU}; see its messages: apt-get --simulate install {QEMU}")))
}

fn codename() -> Option<String> {
    let release = std::fs::read_to_string("/etc/os-release").ok()?;
    release.lines().find_map(|line| Some(line.strip_prefix("VERSION_CODENAME=")?.trim_matches('"').to_owned()))
}

/// The suites that apt has package lists of.
fn suites() -> Result<Vec<String>> {
    let (_, text) =
        output(Command::new("apt-get").args(["indextargets", "--format", "$(RELEASE)", "Identifier: Packages"]))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The newest version of a package in a suite that is not a backports one.
fn stable_version(package: &str) -> Result<Option<String>> {
    let (_, text) = output(Command::new("apt-cache").args(["madison", package]))?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split('|').map(str::trim);
            let (_, version, source) = (fields.next()?, fields.next()?, fields.next()?);
            (!source.contains("-backports")).then(|| version.to_owned())
        })
        .next())
}

/// A source entry for `suite`, made from the machine's own entry for the release itself: the same server and the same key, whatever they are.
/// Returns the file's name and content.
fn backports_source(suite: &str) -> Result<(String, String)> {
    let codename = suite.trim_end_matches("-backports");
    let mut files: Vec<_> = std::fs::read_dir("/etc/apt/sources.list.d")
        .map(|dir| dir.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    files.push("/etc/apt/sources.list".into());
    files.sort();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let extension = file.extension().and_then(|e| e.to_str());
        let found = match extension {
            Some("sources") => deb822_entry(&text, codename, suite),
            Some("list") => one_line_entry(&text, codename, suite),
            _ => None,
        };
        if let Some(entry) = found {
            return Ok((format!("donjon-backports.{}", extension.unwrap_or_default()), entry));
        }
    }
    Err(failed(format!("no source entry for {codename} in /etc/apt")))
}

/// From a deb822 file: the paragraph for `codename`, for `suite` instead.
fn deb822_entry(text: &str, codename: &str, suite: &str) -> Option<String> {
    let paragraph = text.split("\n\n").find(|paragraph| {
        let suites = paragraph.lines().find_map(|line| line.strip_prefix("Suites:"));
        let binary = paragraph.lines().find_map(|line| line.strip_prefix("Types:"));
        suites.is_some_and(|s| s.split_whitespace().any(|s| s == codename))
            && binary.is_some_and(|t| t.split_whitespace().any(|t| t == "deb"))
    })?;
    let mut entry: String = paragraph
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| if line.starts_with("Suites:") { format!("Suites: {suite}\n") } else { format!("{line}\n") })
        .collect();
    entry.insert_str(0, "# Added by `cargo xtask setup` for QEMU.\n");
    Some(entry)
}

/// From a one-line-style file: the entry for `codename`, for `suite` instead.
fn one_line_entry(text: &str, codename: &str, suite: &str) -> Option<String> {
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with("deb ") && line.split_whitespace().any(|word| word == codename))?;
    let entry: Vec<&str> = line.split_whitespace().map(|word| if word == codename { suite } else { word }).collect();
    Some(format!("# Added by `cargo xtask setup` for QEMU.\n{}\n", entry.join(" ")))
}

fn add_backports(apt: &Apt, suite: &str) -> Result {
    let (name, content) = backports_source(suite)?;
    let target = Path::new("/etc/apt/sources.list.d").join(name);
    eprintln!("setup: adding the suite {suite} in {}", target.display());
    let scratch = std::env::temp_dir().join(format!("donjon-backports-{}", std::process::id()));
    std::fs::write(&scratch, content).map_err(|e| failed(format!("{}: {e}", scratch.display())))?;
    let copied = process::run(apt.privileged_command("install").args(["-m", "644"]).arg(&scratch).arg(&target));
    // Our own scratch file; nothing depends on its removal.
    let _ = std::fs::remove_file(&scratch);
    copied?;
    apt.run(&["update", "-qq"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derives_a_deb822_entry() {
        let text = "Types: deb\n# snapshot\nURIs: mirror:/a\nSuites: bookworm bookworm-updates\nSigned-By: /k.gpg\n\n\
                    Types: deb\nURIs: mirror:/security\nSuites: bookworm-security\n";
        assert_eq!(
            deb822_entry(text, "bookworm", "bookworm-backports").as_deref(),
            Some(
                "# Added by `cargo xtask setup` for QEMU.\nTypes: deb\nURIs: mirror:/a\nSuites: bookworm-backports\n\
                 Signed-By: /k.gpg\n"
            )
        );
        assert_eq!(deb822_entry(text, "trixie", "trixie-backports"), None);
        assert_eq!(deb822_entry("Types: deb-src\nSuites: bookworm\n", "bookworm", "x"), None);
    }

    #[test]
    fn derives_a_one_line_entry() {
        let text = "# deb m bookworm main\ndeb-src m bookworm main\ndeb [signed-by=/k] m:/d bookworm main contrib\n";
        assert_eq!(
            one_line_entry(text, "bookworm", "bookworm-backports").as_deref(),
            Some("# Added by `cargo xtask setup` for QEMU.\ndeb [signed-by=/k] m:/d bookworm-backports main contrib\n")
        );
        assert_eq!(one_line_entry(text, "noble", "noble-backports"), None);
    }
}
