//! The command as its users meet it: help, errors with their hints and exit codes, and a project from `new` to an image.
//!
//! Snapshots are in `tests/snapshots`; `UPDATE=1 cargo test -p donjon-cli` writes them anew.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_donjon"));
    for (name, _) in env::vars().filter(|(n, _)| n.starts_with("CARGO") && n != "CARGO_HOME" || n == "RUSTFLAGS") {
        command.env_remove(name);
    }
    command.current_dir(dir).args(args).env("NO_COLOR", "1").env("COLUMNS", "100");
    command
}

fn donjon(dir: &Path, args: &[&str]) -> Output {
    command(dir, args).output().unwrap()
}

/// Exit code, standard output and standard error as one text, with the scratch directory's name taken out.
fn transcript(dir: &Path, args: &[&str]) -> String {
    let o = donjon(dir, args);
    let text = |b: &[u8]| String::from_utf8_lossy(b).replace(&*dir.to_string_lossy(), "DIR");
    format!(
        "$ donjon {}\nexit code {}\n{}{}",
        args.join(" "),
        o.status.code().unwrap(),
        text(&o.stdout),
        text(&o.stderr)
    )
}

fn snapshot(name: &str, got: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(format!("{name}.txt"));
    if env::var_os("UPDATE").is_some() {
        return fs::write(path, got).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(expected, got, "{} differs; UPDATE=1 writes it anew", path.display());
}

fn scratch(name: &str) -> PathBuf {
    let dir = env::temp_dir().join(format!("donjon-cli-{name}-{}", std::process::id()));
    _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// A project made by `donjon new` and built: its directory and its image.
fn project() -> &'static (PathBuf, PathBuf) {
    static PROJECT: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    PROJECT.get_or_init(|| {
        let dir = scratch("project");
        assert!(donjon(&dir, &["new", "hello"]).status.success());
        let o = donjon(&dir, &["build", "hello", "-o", "hello.img", "--json"]);
        assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
        let made: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
        assert_eq!(made["bytes"], fs::metadata(dir.join("hello.img")).unwrap().len());
        let image = dir.join("hello.img");
        (dir, image)
    })
}

#[test]
fn help() {
    let dir = scratch("help");
    for command in ["new", "build", "run", "serve", "test", "inspect"] {
        snapshot(&format!("help-{command}"), &transcript(&dir, &[command, "--help"]));
    }
    snapshot("help", &transcript(&dir, &["--help"]));
    snapshot("help-none", &transcript(&dir, &[]));
}

#[test]
fn mistakes_on_the_command_line() {
    let dir = scratch("usage");
    fs::create_dir(dir.join("empty")).unwrap();
    fs::create_dir(dir.join("content")).unwrap();
    fs::write(dir.join("content/index.html"), "hello").unwrap();
    fs::write(dir.join("text.img"), "no image").unwrap();
    let mut all = String::new();
    for args in [
        &["build", "empty"][..],
        &["build", "nowhere"],
        &["run", "nowhere.img"],
        &["run", "text.img"],
        &["run", "text.img", "--locked"],
        &["run", "content"],
        &["run", "text.img", "-p", "80"],
        &["run", "text.img", "--memory", "lots"],
        &["run", "text.img", "--net", "bridge"],
        &["run", "text.img", "-e", "novalue"],
        &["inspect", "nowhere.img"],
        &["new", "1abc"],
        &["new", "empty"],
        &["new", "deps"],
        &["new", "fn"],
        &["test", "empty", "--net", "tap:tap0"],
        &["frobnicate"],
    ] {
        all += &transcript(&dir, args);
        all += "\n";
    }
    snapshot("mistakes", &all);
}

#[test]
fn projects_that_do_not_build() {
    let dir = scratch("projects");
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let manifest = "[package]\nname = \"demo\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n";
    write("two/Cargo.toml", manifest);
    write("two/src/bin/a.rs", "fn main() {}");
    write("two/src/bin/b.rs", "fn main() {}");
    write("library/Cargo.toml", manifest);
    write("library/src/lib.rs", "");
    write("key/Cargo.toml", manifest);
    write("key/src/main.rs", "fn main() {}");
    write("key/Donjon.toml", "memroy = \"1M\"\n");
    write("value/Cargo.toml", manifest);
    write("value/src/main.rs", "fn main() {}");
    write("value/Donjon.toml", "listen = [99999]\n");
    write("files/Cargo.toml", manifest);
    write("files/src/main.rs", "fn main() {}");
    write("files/Donjon.toml", "files = [\"static\"]\n");
    let symbol = "unsafe extern \"C\" { fn no_such_function(); }\nfn main() { unsafe { no_such_function() } }";
    write("symbol/Cargo.toml", manifest);
    write("symbol/src/main.rs", symbol);
    let mut all = String::new();
    for args in [
        &["build", "two"][..],
        &["build", "two", "--bin", "c"],
        &["run", "two", "--bin", "c"],
        &["build", "library"],
        &["build", "key"],
        &["build", "value"],
        &["build", "files"],
        &["build", "symbol"],
    ] {
        // What cargo says is cargo's.
        let text = transcript(&dir, args);
        let own = |l: &&str| {
            !["   Compiling", "    Finished", "    Blocking", "error: could not compile"]
                .iter()
                .any(|p| l.starts_with(p))
        };
        all += &text.lines().filter(own).map(|l| format!("{l}\n")).collect::<String>();
        all += "\n";
    }
    snapshot("projects", &all);
}

/// A program's sources in `dir`; its `Donjon.toml` may be somewhere else.
fn program(dir: &Path, manifest: &str) {
    fs::create_dir_all(dir.join("src")).unwrap();
    let package = "[package]\nname = \"demo\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    fs::write(dir.join("Cargo.toml"), format!("{package}{manifest}")).unwrap();
    fs::write(dir.join("src/main.rs"), "fn main() {}").unwrap();
}

#[test]
fn a_file_that_may_have_been_meant_is_named() {
    let dir = scratch("overlooked");
    program(&dir.join("ws/demo"), "");
    fs::write(dir.join("ws/Cargo.toml"), "[workspace]\nmembers = [\"demo\"]\nresolver = \"3\"\n").unwrap();
    fs::write(dir.join("ws/Donjon.toml"), "").unwrap();
    let said = |at: &str| {
        // The directory of the output is refused after the project was read.
        let o = donjon(&dir, &["build", at, "-o", "."]);
        assert_eq!(o.status.code(), Some(2));
        String::from_utf8_lossy(&o.stderr).into_owned()
    };
    let warning = "ws/Donjon.toml is not read: it would be ";
    assert!(said("ws").contains(warning) && said("ws/demo").contains(warning), "{}", said("ws"));
    fs::write(dir.join("ws/demo/Donjon.toml"), "").unwrap();
    assert!(!said("ws").contains("not read"));
    program(&dir.join("small"), "[workspace]\n");
    fs::write(dir.join("small/donjon.toml"), "").unwrap();
    assert!(said("small").contains("small/donjon.toml is not read"));
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn projects_are_found_and_stand_alone() {
    let dir = scratch("around");
    program(&dir.join("ws/member"), "");
    fs::write(dir.join("ws/Cargo.toml"), "[workspace]\nmembers = [\"m*\"]\nresolver = \"3\"\n").unwrap();
    // The directory of the output is refused after the project was read.
    let said = |at: &str| {
        let o = donjon(&dir, &["build", at, "-o", "."]);
        (o.status.code(), String::from_utf8_lossy(&o.stderr).into_owned())
    };
    let refused = |at: &str| {
        let (code, text) = said(at);
        assert!(code == Some(2) && text.contains("is a directory"), "{at}: {text}");
    };
    refused("ws/member/src");
    let (code, text) = said("ws/member/src/main.rs");
    assert!(code == Some(66) && text.contains("no Cargo.toml in it or above"), "{text}");
    // One that is no member, and one that is.
    for name in ["ws/other", "ws/more"] {
        assert!(donjon(&dir, &["new", name]).status.success());
        refused(name);
        let manifest = fs::read_to_string(dir.join(name).join("Cargo.toml")).unwrap();
        assert_eq!(manifest.contains("[workspace]"), name == "ws/other");
    }
    // A Rust without its own linker, as distributions have it, and one without the target.
    let rustc = dir.join("rustc");
    fs::write(
        &rustc,
        format!("#!/bin/sh\n[ \"$*\" != '--print sysroot' ] || exec echo {}\nexec rustc \"$@\"\n", dir.display()),
    )
    .unwrap();
    fs::set_permissions(&rustc, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for hint in ["rustup target add", "install Rust with rustup"] {
        let o = command(&dir, &["build", "ws/member"]).env("RUSTC", &rustc).output().unwrap();
        let text = String::from_utf8_lossy(&o.stderr).into_owned();
        assert!(o.status.code() == Some(69) && text.contains(hint), "{text}");
        fs::create_dir_all(dir.join("lib/rustlib/x86_64-unknown-linux-gnu/lib")).unwrap();
    }
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn cargo_ends_with_the_command() {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::sync::mpsc::RecvTimeoutError;
    let dir = scratch("ends");
    program(&dir.join("demo"), "[workspace]\n");
    let fifo = dir.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // Open on both sides: nobody waits for anybody to open it.
    let word = fs::File::options().read(true).write(true).open(&fifo).unwrap();
    let cargo = dir.join("cargo");
    let script = format!(
        "#!/bin/sh\n[ $1 != $AT ] && exec cargo \"$@\"\necho ready >&2\nread word < {}\necho survived >&2\n",
        fifo.display()
    );
    fs::write(&cargo, script).unwrap();
    fs::set_permissions(&cargo, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for at in ["metadata", "build"] {
        let mut child = command(&dir, &["build", "demo"])
            .env("CARGO", &cargo)
            .env("AT", at)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        while !text.ends_with("ready\n") {
            assert_ne!(said.read_line(&mut text).unwrap(), 0, "{text}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // Who is left alone for that long gets the word, and says so.
        let (tell, ended) = std::sync::mpsc::channel::<()>();
        let mut word = word.try_clone().unwrap();
        let patience = std::thread::spawn(move || {
            if ended.recv_timeout(std::time::Duration::from_secs(30)) == Err(RecvTimeoutError::Timeout) {
                word.write_all(b"go on\n").unwrap();
            }
        });
        said.read_to_string(&mut text).unwrap();
        drop(tell);
        patience.join().unwrap();
        assert!(text.ends_with("ready\n"), "{text}");
    }
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn paths_and_outputs_of_all_kinds() {
    use std::os::unix::ffi::OsStrExt as _;
    let (dir, image) = project();
    let strange = dir.join(std::ffi::OsStr::from_bytes(b"\xff"));
    // A C compiler with arguments.
    let mut build = command(dir, &["build", "--json", "hello", "-o"]);
    let o = build.arg(strange.join("h.img")).env("CC", "env cc").output().unwrap();
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    let made: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
    assert!(made["image"].as_str().unwrap().ends_with("\u{fffd}/h.img") && strange.join("h.img").is_file());
    fs::remove_dir_all(strange).unwrap();
    let o = command(dir, &["build", "hello"]).env("CC", "no-such-compiler x").output().unwrap();
    assert!(
        o.status.code() == Some(69) && String::from_utf8_lossy(&o.stderr).contains("`no-such-compiler` does not start")
    );
    // An output that takes nothing: a file that may have no bytes.
    let script = "trap '' XFSZ; ulimit -f 0; exec \"$0\" inspect --json \"$1\" > full";
    let sh = |script: &str| {
        Command::new("sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_donjon")])
            .arg(image)
            .current_dir(dir)
            .output()
            .unwrap()
    };
    let o = sh(script);
    assert!(o.status.code() == Some(71) && String::from_utf8_lossy(&o.stderr).contains("cannot write"), "{o:?}");
    assert!(sh("{ \"$0\" inspect \"$1\"; echo $? >&2; } | true").stderr.starts_with(b"0"), "a reader that has enough");
}

#[test]
fn images_are_reproducible() {
    let (dir, image) = project();
    // From scratch in another directory of the same depth: paths must not leak in.
    let other = scratch("rebuild");
    assert!(donjon(&other, &["new", "hello"]).status.success());
    assert!(donjon(&other, &["build", "hello", "-o", "again.img"]).status.success());
    assert!(fs::read(image).unwrap() == fs::read(other.join("again.img")).unwrap(), "{}", dir.display());
}

#[test]
fn images_are_inspected() {
    let (dir, image) = project();
    let o = donjon(dir, &["inspect", "hello.img", "--json"]);
    let about: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
    assert_eq!(about["name"], "hello");
    assert_eq!(about["bytes"], fs::metadata(image).unwrap().len());
    assert_eq!(about["listen"][0], "8080/tcp");
    assert_eq!(about["memory"], 16 << 20);
    let rights: Vec<&str> =
        about["segments"].as_array().unwrap().iter().map(|s| s["rights"].as_str().unwrap()).collect();
    assert_eq!(rights, ["r--", "r-x", "r-- after relocation", "rw-"]);
    let human = donjon(dir, &["inspect", "hello.img", "--crates"]);
    let human = String::from_utf8(human.stdout).unwrap();
    assert!(human.contains("listens on    8080/tcp") && human.contains("crate "), "{human}");
}

#[test]
fn damaged_images_are_refused() {
    let (dir, image) = project();
    let good = fs::read(image).unwrap();
    let refused = |name: &str, bytes: &[u8], code: i32, text: &str| {
        fs::write(dir.join(name), bytes).unwrap();
        for command in ["run", "inspect"] {
            let o = donjon(dir, &[command, name]);
            let talk = String::from_utf8_lossy(&o.stderr).into_owned();
            assert_eq!(o.status.code(), Some(code), "{command} {name}: {talk}");
            assert!(
                talk.starts_with("error: ") && talk.contains(text) && talk.contains("hint: "),
                "{command} {name}: {talk}"
            );
            assert!(o.stdout.is_empty());
        }
    };
    refused("truncated.img", &good[..good.len() - 1], 65, "truncated");
    refused("half.img", &good[..good.len() / 2], 65, "truncated");
    refused("head.img", &good[..4096], 65, "not a Donjon image");
    refused("empty.img", &[], 65, "it is empty");
    refused("long.img", &[&good[..], b"x"].concat(), 65, "too long");
    let mut corrupt = good.clone();
    corrupt[good.len() / 2] ^= 1;
    refused("corrupt.img", &corrupt, 65, "BLAKE3");
    let mut version = good.clone();
    version[4096 + 8] = 99;
    refused("version.img", &version, 65, "gate version 99");
}
