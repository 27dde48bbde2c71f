//! The commands of `docs/web.md`, run as they stand there: from a folder to HTTPS, under QEMU without `donjon`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use donjon_tests::{Guest, Need, Netns, PATIENCE, donjon, missing, poll_until, repo_root};

/// The shell commands of the document, each a line or several that are continued.
fn commands() -> Vec<String> {
    let document = fs::read_to_string(repo_root().join("docs/web.md")).unwrap();
    let blocks = document.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let lines = blocks.map(|block| block.replace("\\\n", " ")).collect::<String>();
    lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The one that begins and goes on like this.
#[track_caller]
fn command(begins: &str, contains: &str) -> String {
    let all = commands();
    let found: Vec<&String> = all.iter().filter(|c| c.starts_with(begins) && c.contains(contains)).collect();
    let [one] = found[..] else { panic!("{begins} … {contains}: {found:?} of {all:#?}") };
    one.clone()
}

/// A shell for a command in this directory, with `donjon` on its path.
fn shell(mut command: Command, dir: &Path, line: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::join_paths([donjon().parent().unwrap().to_owned()].into_iter().chain(std::env::split_paths(&path)));
    command.args(["-c", line]).current_dir(dir).env("PATH", path.unwrap());
    command
}

/// A directory in which the document's commands before these have been run.
fn prepared(name: &str, lines: &[String]) -> PathBuf {
    let dir = super::scratch().join(name);
    fs::create_dir_all(&dir).unwrap();
    for line in lines {
        let output = shell(Command::new("sh"), &dir, line).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    dir
}

#[test]
fn the_documents_qemu_command_serves_over_tls() {
    let needs = [Need::Qemu, Need::Tap, Need::Program("curl"), Need::Program("openssl")];
    if missing("the_documents_qemu_command_serves_over_tls", &needs) {
        return;
    }
    let make =
        [command("mkdir public", ""), command("openssl req", ""), command("donjon build", "--tls cert.pem key.pem")];
    let dir = prepared("documented", &make);
    let line = command("qemu-system-x86_64 ", "name=opt/donjon/secret/tls-key,file=key.pem");
    let ns = Netns::empty();
    // So that the shell's process is QEMU's.
    let qemu = shell(ns.command("sh"), &dir, &format!("exec {line}"));
    let mut guest = Guest::program("the document's command", qemu, "127.0.0.1:8443".parse().unwrap(), Some(ns.clone()));
    let curl = command("curl --cacert cert.pem ", "https://localhost:8443/");
    let mut last = None;
    let page = poll_until(PATIENCE, || {
        guest.expect_alive();
        let output = shell(ns.command("sh"), &dir, &curl).output().unwrap();
        let page = output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned());
        last = Some(output);
        page
    });
    assert_eq!(page.as_deref(), Some("<h1>It works</h1>\n"), "{last:?}\n{}", guest.log());
}
