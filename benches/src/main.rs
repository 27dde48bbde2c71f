//! `cargo xtask bench`: the same program as a guest and as a native process, measured in one run on one machine.
//!
//! Each subject is started afresh. Where root is available, every subject has a network namespace of its own. The server's
//! side is pinned to core 0 and the client to core 1, except under QEMU, whose emulation and device threads get both.

mod run;
mod subject;
mod wrk;

use std::process::ExitCode;

use subject::Subject;

const HELP: &str = "\
cargo xtask bench [OPTION...]

  --example NAME     the program: hello-axum (default) or hello-std
  --only SUBJECT     may be given several times: native-veth, process-tap, process-tap-speed (compiled for speed, as the native
                     program is), native-loopback, process-user, qemu-microvm, qemu-slirp
  --seconds N        length of each load measurement [default: 3]
  --starts N         how often each subject is started for the time to the first answer [default: 9]
  --bulk MB          size of the download and the upload [default: 500; a tenth of it under QEMU]
  --path PATH        what is requested under load [default: /json, or / for hello-std]

Prints a table and writes target/bench.json.
";

/// What to measure.
pub struct Options {
    example: String,
    only: Vec<Subject>,
    seconds: u32,
    starts: usize,
    bulk: u64,
    path: Option<String>,
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(Some(options)) => {
            run::all(&options);
            ExitCode::SUCCESS
        }
        Ok(None) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprint!("bench: {message}\n\n{HELP}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options =
        Options { example: "hello-axum".to_owned(), only: Vec::new(), seconds: 3, starts: 9, bulk: 500, path: None };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} takes a value"));
        let number = |text: String| text.parse().map_err(|_| format!("not a number: {text:?}"));
        match arg.as_str() {
            "--example" => options.example = value()?,
            "--only" => {
                let name = value()?;
                options.only.push(Subject::from_name(&name).ok_or_else(|| format!("no subject {name:?}"))?);
            }
            "--seconds" => options.seconds = number(value()?)?,
            "--starts" => options.starts = number(value()?)?.max(1) as usize,
            "--bulk" => options.bulk = number(value()?)?.into(),
            "--path" => options.path = Some(value()?),
            "--help" | "-h" => return Ok(None),
            other => return Err(format!("what is {other:?}?")),
        }
    }
    Ok(Some(options))
}
