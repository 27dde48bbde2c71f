//! `donjon`: builds, runs, serves, tests and inspects images. Thin over `donjon-image`, `donjon-site` and `donjon-monitor`.
//!
//! Standard output is data (the guest's own output, `--json`), standard error is talk.

mod args;
mod build;
mod cache;
mod failure;
mod inspect;
mod new;
mod run;
mod serve;
mod site;
mod test;
mod ui;

use std::process::ExitCode;

use args::Command;

fn main() -> ExitCode {
    // rustc calls us as its linker while `donjon build` runs.
    if let Some(status) = donjon_image::linker::run_if_linker() {
        return status.into();
    }
    let done = match Command::parse() {
        Command::New(args) => new::new(&args),
        Command::Build(args) => build::build(&args),
        Command::Run(args) => run::run(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::Test(args) => test::test(&args),
        Command::Inspect(args) => inspect::inspect(&args),
    };
    match done {
        Ok(code) => code.into(),
        Err(failure) => {
            failure.print();
            failure.code.into()
        }
    }
}
