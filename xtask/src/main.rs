//! `cargo xtask`: the project's tasks. Thin: each task is a module.

mod crates;
mod demo;
mod drill;
mod fuzz;
mod process;
mod setup;
mod test;
mod web_clients;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask TASK

  setup [--dry-run]                  install the programs that are missing (QEMU, curl, wrk, ...)
  demo [--once] [--engine ENGINE]    build, boot and fetch the axum example; ENGINE is process (default) or qemu
  test [--only STEP]                 everything that can be tested on this machine
  drill [--short] [--only KIND] [--attempt WORD] [--json]
                                     the breach drill: the same exploits against a container and an image
  fuzz [TARGET...] [--seconds N] [--cpu N]
                                     run fuzz targets, each N seconds (60), or until each has had N seconds of processor
                                     time in all its runs; --keep adds what is new to the corpus
  web-clients                        the web server against Chromium and testssl.sh (too big for `test`)
  crates [--engine ENGINE] [NAME...] the tests that published crates carry, as guests; ENGINE is process (default), qemu or
                                     native (no guest, to compare with); what there is: tests/crates/
  tokio [--engine ENGINE] [--all] [FILE...]
                                     of these, tokio's, or some files of them; --all: also the parts that a guest is not
                                     meant to have
  bench [OPTION...]                  measure; `cargo xtask bench --help`
  bench web [OPTION...]              the stock web server against nginx; `cargo xtask bench web --help`
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut words = args.iter().map(String::as_str);
    let result = match words.next() {
        Some("setup") => setup::main(words),
        Some("demo") => demo::main(words),
        Some("test") => test::main(words),
        Some("drill") => drill::main(words),
        Some("fuzz") => fuzz::main(words),
        Some("crates") => crates::main(words),
        Some("tokio") => crates::tokio(words),
        Some("web-clients") => web_clients::main(words),
        Some("bench") => process::bench(words),
        Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => Err(process::usage(format!("there is no task {other:?}"))),
        None => Err(process::usage("which task?".to_owned())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {}", error.message);
            if error.code == process::USAGE {
                eprint!("\n{HELP}");
            }
            ExitCode::from(error.code)
        }
    }
}
