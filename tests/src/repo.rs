//! Where things are in the repository, and how they are built: once per process.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

/// The repository's root.
pub fn repo_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository")
}

/// Cargo's target directory.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repo_root().join("target"), PathBuf::from)
}

/// The target directory that all examples and test guests share, so that a dependency is built once.
pub fn guests_target_dir() -> PathBuf {
    target_dir().join("guests")
}

static BIN: OnceLock<PathBuf> = OnceLock::new();

/// Takes this `donjon` program from now on; nothing is built. Without effect after the first use.
pub fn choose_donjon(program: PathBuf) {
    _ = BIN.set(program);
}

/// The `donjon` program: what `DONJON_BIN` names, else `target/release/donjon`, built at the first call.
pub fn donjon() -> &'static Path {
    BIN.get_or_init(|| {
        if let Some(bin) = std::env::var_os("DONJON_BIN") {
            return bin.into();
        }
        run(cargo().args(["build", "--quiet", "--release", "--package", "donjon-cli"]).current_dir(repo_root()))
            .unwrap_or_else(|e| panic!("{e}"));
        target_dir().join("release/donjon")
    })
}

/// A `donjon` command with the shared target directory set and nothing on standard input.
pub fn donjon_command() -> Command {
    let mut command = Command::new(donjon());
    command.env("CARGO_TARGET_DIR", guests_target_dir()).stdin(Stdio::null());
    command
}

/// The image of `examples/NAME`.
pub fn example(name: &str) -> PathBuf {
    image(&repo_root().join("examples").join(name))
}

/// The image of `tests/guests/NAME`.
pub fn test_guest(name: &str) -> PathBuf {
    image(&repo_root().join("tests/guests").join(name))
}

/// The image of the crate in `dir`, built at the first call; later calls wait for the first and share its result.
pub fn image(dir: &Path) -> PathBuf {
    image_as(dir, "", &[])
}

/// The same, compressed.
pub fn compressed(dir: &Path) -> PathBuf {
    image_as(dir, "-compressed", &["--compress"])
}

/// The same, compiled for speed.
pub fn for_speed(dir: &Path) -> PathBuf {
    image_as(dir, "-speed", &["--speed"])
}

fn image_as(dir: &Path, suffix: &str, options: &[&str]) -> PathBuf {
    let images = target_dir().join("images");
    let name = dir.file_name().expect("a crate's directory has a name").to_string_lossy() + suffix;
    once_per(&images.join(&*name), || {
        std::fs::create_dir_all(&images).expect("target directory is writable");
        // Several test processes may build at the same time: each writes its own file and renames it into place.
        let scratch = images.join(format!("{name}.{}.img", std::process::id()));
        let finished = images.join(format!("{name}.img"));
        run(donjon_command().arg("build").arg(dir).args(options).arg("-o").arg(&scratch))?;
        for suffix in ["", ".debug"] {
            let [from, to] = [&scratch, &finished].map(|p| format!("{}{suffix}", p.display()));
            std::fs::rename(&from, &to).map_err(|e| format!("{from}: {e}"))?;
        }
        Ok(finished)
    })
}

/// `examples/NAME` as an ordinary Linux program, for comparisons: optimised for speed and stripped.
pub fn host_program(name: &str) -> PathBuf {
    let dir = repo_root().join("examples").join(name);
    let target = target_dir().join("native");
    once_per(&target.join(name), || {
        // The best that plain cargo offers, so that no comparison is against a handicapped program.
        let profile = [("OPT_LEVEL", "3"), ("LTO", "fat"), ("CODEGEN_UNITS", "1"), ("STRIP", "symbols")];
        let profile = profile.map(|(key, value)| (format!("CARGO_PROFILE_RELEASE_{key}"), value));
        let mut command = cargo();
        command.args(["build", "--quiet", "--release"]).envs(profile).env("CARGO_TARGET_DIR", &target);
        run(command.current_dir(&dir))?;
        Ok(target.join("release").join(name))
    })
}

/// `cargo run` in `examples/NAME`, as its README has it: not optimised, and with a target directory that the examples share.
pub fn cargo_run(name: &str) -> Command {
    let mut command = cargo();
    let target = target_dir().join("native");
    command
        .args(["run", "--quiet"])
        .env("CARGO_TARGET_DIR", target)
        .current_dir(repo_root().join("examples").join(name));
    command
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.stdin(Stdio::null());
    // Set by `cargo test` for this crate's tests; another crate's build must not see them.
    command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_PKG_NAME");
    command
}

/// Makes something at the first call; later calls, from any thread, get the first one's result, and its failure too.
fn once_per(key: &Path, make: impl FnOnce() -> Result<PathBuf, String>) -> PathBuf {
    type Cell = Arc<OnceLock<Result<PathBuf, String>>>;
    static CELLS: LazyLock<Mutex<HashMap<PathBuf, Cell>>> = LazyLock::new(Mutex::default);
    let cell = {
        // A panic elsewhere does not make a map of finished paths wrong.
        let mut cells = CELLS.lock().unwrap_or_else(|e| e.into_inner());
        cells.entry(key.to_owned()).or_default().clone()
    };
    cell.get_or_init(make).clone().unwrap_or_else(|e| panic!("{e}"))
}

/// Runs a command to its end; the error has its output.
fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("cannot run {command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let [out, err] = [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b).into_owned());
    Err(format!("{command:?}: {}\n{out}{err}", output.status))
}
