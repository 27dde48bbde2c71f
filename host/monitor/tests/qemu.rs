//! The QEMU launcher against a stand-in that behaves as QEMU does towards its parent. (Real guests under the real QEMU: `tests/` of the workspace.)

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use common::{Ran, Spec, first_line, image, launcher, pack, write};

/// A folder with a `qemu-system-x86_64` that runs this shell script. `$status` is where the guest's status byte goes.
fn stand_in(name: &str, script: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("qemu-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("qemu-system-x86_64");
    let find = r#"for a in "$@"; do case "$a" in file,id=status,path=*) status=${a#file,id=status,path=};; esac; done"#;
    std::fs::write(&path, format!("#!/bin/sh\n{find}\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn with(name: &str, script: &str, options: &[&str], args: &[&str]) -> Command {
    let options = [&["--engine", "qemu"], options].concat();
    let mut command = launcher(image(), &options, args);
    command.env("PATH", format!("{}:/usr/bin:/bin", stand_in(name, script).display()));
    command
}

fn ran(mut command: Command) -> Ran {
    command.output().unwrap().into()
}

#[test]
fn a_missing_qemu_is_named_with_its_package() {
    let mut command = launcher(image(), &["--engine", "qemu"], &[]);
    command.env("PATH", "/nowhere");
    let r = ran(command);
    assert_eq!(r.code, Some(69), "{r:?}");
    assert!(r.err.contains("qemu-system-x86_64 is not installed") && r.err.contains("qemu-system-x86 "), "{r:?}");
}

#[test]
fn output_and_exact_status_are_passed_on() {
    let r = ran(with("status", r#"echo "the guest says"; printf '\206' > "$status"; exit 13"#, &[], &[]));
    assert_eq!((r.code, r.out.as_str()), (Some(134), "the guest says\n"), "{r:?}");
    // A crash report comes before the byte.
    let r = ran(with("report", r#"printf 'it broke\n\106' > "$status"; exit 13"#, &[], &[]));
    assert!(r.code == Some(70) && r.err.contains("the guest crashed\nit broke"), "{r:?}");
    // Without the byte: what isa-debug-exit makes of 6.
    assert_eq!(ran(with("odd", "exit 13", &[], &[])).code, Some(6));
    let r = ran(with("fails", "echo qemu: bad option >&2; exit 1", &[], &[]));
    assert!(r.code == Some(69) && r.err.contains("qemu: bad option"), "{r:?}");
    let r = ran(with("dies", "kill -9 $$", &[], &[]));
    assert!(r.code == Some(70) && r.err.contains("signal 9"), "{r:?}");
}

#[test]
fn the_command_line_carries_everything() {
    let script = r#"for a in "$@"; do echo "$a"; done; printf '\0' > "$status""#;
    let r = ran(with("words", script, &["-m", "64", "-e", "A=b c"], &["x y", "z"]));
    assert_eq!(r.code, Some(0), "{r:?}");
    let expected = "donjon.ip=10.0.2.15/24 donjon.gw=10.0.2.2 donjon.dns=10.0.2.3 donjon.ip6=fd00::15/64 donjon.gw6=fd00::2 \
                    donjon.dns6=fd00::3 donjon.started=";
    let (_, rest) = r.out.split_once(expected).unwrap_or_else(|| panic!("{}", r.out));
    let (nanos, rest) = rest.split_once(' ').unwrap();
    let age = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() - nanos.parse::<u128>().unwrap();
    assert!(age < 3_600_000_000_000, "{nanos}");
    assert!(rest.starts_with("\"donjon.env=A=b c\" -- \"x y\" z\n"), "{rest}");
    for word in ["microvm,acpi=off\n", "-nodefaults\n", "64M\n", "tcg\n", "virtio-net-device,netdev=n0"] {
        assert!(r.out.contains(word), "{word} in {}", r.out);
    }
    // Nothing that the image does not declare.
    let silent = write("silent-machine", &pack(&Spec { listen: vec![], ..Spec::default() }));
    let mut command = launcher(&silent, &["--engine", "qemu"], &[]);
    command.env("PATH", format!("{}:/usr/bin:/bin", stand_in("silent", script).display()));
    let r = ran(command);
    assert!(r.code == Some(0) && r.out.contains("donjon.ip=none") && !r.out.contains("-netdev"), "{r:?}");
    assert!(!r.out.contains("virtio-net"), "{r:?}");
    let r = ran(with("long", script, &[], &[&"x".repeat(5000)]));
    assert!(r.code == Some(2) && r.err.contains("4095"), "{r:?}");
    let r = ran(with("small", script, &["-m", "4"], &[]));
    assert!(r.code == Some(2) && r.err.contains("needs at least"), "{r:?}");
}

#[test]
fn stop_is_asked_for_through_the_serial_port() {
    let script = r#"echo ready; byte=$(head -c 1 | od -An -tu1); echo "got" $byte; printf '\5' > "$status"; exit 11"#;
    let mut child = with("stop", script, &[], &[]).spawn().unwrap();
    assert_eq!(first_line(&mut child), "ready");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let r: Ran = child.wait_with_output().unwrap().into();
    assert_eq!((r.code, r.out.as_str()), (Some(5), "got 3\n"), "{r:?}");
}

#[test]
fn a_deaf_machine_is_ended() {
    let mut child = with("deaf", "echo ready; exec sleep 1000", &["--stop-timeout-ms", "100"], &[]).spawn().unwrap();
    assert_eq!(first_line(&mut child), "ready");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

/// The user's own arguments open the files that they name, and nothing else; only another flag opens all.
#[test]
fn arguments_for_qemu_open_what_they_name() {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("qemu-named-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let [named, other] = ["named", "other"].map(|name| {
        let path = dir.join(name);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        path.display().to_string()
    });
    let script = format!(
        r#"for a in "$@"; do echo "$a"; done
        for f in {named} {other}; do (echo hello > "$f") && cat "$f" || echo "refused $f"; done
        printf '\0' > "$status""#
    );
    let extra = ["--qemu-arg", "-chardev", "--qemu-arg", &format!("file,id=x,path={named}")];
    let r = ran(with("named", &script, &extra, &[]));
    assert!(r.code == Some(0) && r.out.contains("-sandbox\non,obsolete=deny"), "{r:?}");
    assert!(r.out.contains(&format!("hello\nrefused {other}\n")), "{r:?}");
    let r = ran(with("open", &script, &[&extra[..], &["--qemu-unconfined"]].concat(), &[]));
    assert!(r.code == Some(0) && !r.out.contains("-sandbox\n") && r.out.contains("hello\nhello\n"), "{r:?}");
    // Another -sandbox takes the place of ours; Landlock stays.
    let own = ["--qemu-arg", "-sandbox", "--qemu-arg", "on"];
    let r = ran(with("own", &script, &[&extra[..], &own].concat(), &[]));
    assert!(r.out.contains("-sandbox\non\n") && !r.out.contains("obsolete=deny"), "{r:?}");
    assert!(r.out.contains(&format!("refused {other}\n")), "{r:?}");
}

/// QEMU leaves no core dump, whatever its parent may.
#[test]
fn qemu_has_no_core_dumps() {
    let r = ran(with("core", r#"ulimit -c; ulimit -Hc; printf '\0' > "$status""#, &[], &[]));
    assert_eq!((r.code, r.out.as_str()), (Some(0), "0\n0\n"), "{r:?}");
}

/// Nobody waits for a QEMU that was never let start.
#[test]
fn explaining_the_jail_ends() {
    let r = ran(with("explain", "echo started", &["--explain-jail"], &[]));
    assert_eq!(r.code, Some(0), "{r:?}");
    assert!(r.out.contains("QEMU") && r.out.contains("Landlock") && !r.out.contains("started"), "{r:?}");
}
