//! Running other programs, and how a task fails.

use std::process::Command;

use donjon_tests::repo_root;

/// Exit code for wrong arguments.
pub const USAGE: u8 = 2;

/// Why a task failed.
pub struct Error {
    pub message: String,
    pub code: u8,
}

pub type Result<T = ()> = std::result::Result<T, Error>;

/// A failure.
pub fn failed(message: impl Into<String>) -> Error {
    Error { message: message.into(), code: 1 }
}

/// Wrong arguments.
pub fn usage(message: impl Into<String>) -> Error {
    Error { message: message.into(), code: USAGE }
}

/// The `cargo` that runs this program, in the repository's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repo_root());
    command
}

/// Runs a command, its output shown, and fails if it fails.
pub fn run(command: &mut Command) -> Result {
    let shown = show(command);
    let status = command.status().map_err(|e| failed(format!("cannot run {shown}: {e}")))?;
    if status.success() { Ok(()) } else { Err(failed(format!("{shown}: {status}"))) }
}

/// Runs a command and returns its standard output, whatever its exit status.
pub fn output(command: &mut Command) -> Result<(bool, String)> {
    let shown = show(command);
    let output = command.output().map_err(|e| failed(format!("cannot run {shown}: {e}")))?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// A command as a user would type it.
pub fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// `cargo xtask bench`: the programs in `benches/`, built for release; `bench web` is one of its own.
pub fn bench<'a>(args: impl Iterator<Item = &'a str>) -> Result {
    let mut args = args.peekable();
    let bin = if args.next_if_eq(&"web").is_some() { "donjon-bench-web" } else { "donjon-benches" };
    let cargo_args = ["run", "--quiet", "--release", "--package", "donjon-benches", "--bin", bin, "--"];
    run(cargo().args(cargo_args).args(args))
}
