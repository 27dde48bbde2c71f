//! `cargo xtask web-clients`: the tests of the web server whose clients are too big, or take too long, for `cargo xtask test`.

use crate::process::{Result, failed, usage};
use crate::setup;
use crate::test::{Counts, e2e_command, stream};

/// What is said where these tests are not run.
pub const NOT_RUN: &str =
    "NOT RUN HERE: headless Chromium and testssl.sh against the web server: `cargo xtask web-clients`";

/// The task.
pub fn main<'a>(mut args: impl Iterator<Item = &'a str>) -> Result {
    if let Some(arg) = args.next() {
        return Err(usage(format!("web-clients does not know {arg:?}")));
    }
    let missing = [setup::ensure()?, setup::ensure_web_clients()?].concat();
    if !missing.is_empty() {
        return Err(failed(format!("these packages are missing: {}", missing.join(" "))));
    }
    let mut counts = Counts::default();
    stream(e2e_command().args(["--ignored", "--nocapture", "web::"]), &mut counts)?;
    println!("{} passed, {} failed", counts.passed, counts.failed);
    Ok(())
}
