//! Engines that run a Donjon image, and the devices they give it.
//!
//! [`run`] takes an image file and [`RunOptions`], runs the guest to its end and says how it ended.
//!
//! - [`process`](mod@process): the guest as a host process behind a seccomp filter. Needs neither KVM nor root.
//! - [`qemu`]: the guest as a virtual machine in QEMU.
//! - `usernet`: TCP and UDP of the guest end here and go on as ordinary sockets of the host.
//! - `tap`: the guest's frames go to a TAP device of the host.
//! - [`jail`]: what the monitor itself may do while the guest runs.
//! - `filter`: what the guest's frames may say, on either.

/// Says something on standard error. That nobody reads it is no error, and least of all in the jail, where a panic has nowhere to go.
#[macro_export]
macro_rules! say {
    ($($words:tt)*) => {
        _ = ::std::io::Write::write_all(&mut ::std::io::stderr(), format!("{}\n", format_args!($($words)*)).as_bytes())
    };
}

/// The same on standard output.
#[macro_export]
macro_rules! out {
    ($($words:tt)*) => {
        _ = ::std::io::Write::write_all(&mut ::std::io::stdout(), format!("{}\n", format_args!($($words)*)).as_bytes())
    };
}

mod console;
mod error;
mod exit;
mod filter;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod jail;
mod memfd;
mod memory;
mod net;
mod options;
mod probe;
pub mod process;
pub mod qemu;
mod reactor;
mod relay;
mod secrets;
mod signals;
mod source;
mod stop;
pub mod symbols;
mod tap;
mod usernet;

pub use donjon_image::Protocol;
pub use error::Error;
pub use exit::ExitStatus;
#[doc(hidden)]
pub use options::Protection;
pub use options::{Engine, Machine, NetMode, OptionError, Publish, QemuOptions, RunOptions, Starting, TapOptions};
pub use probe::{Fitness, Probe, probe};
pub use secrets::Secret;

use std::path::Path;

/// Runs the image at `path` to its end.
///
/// Guest output goes to this process's standard output and standard error. SIGINT, SIGTERM and SIGHUP are taken over while the guest runs (but for a
/// SIGINT or SIGHUP that is ignored already): the first
/// asks it to stop, the second (or [`RunOptions::stop_timeout`]) ends it.
pub fn run(path: &Path, options: &RunOptions) -> Result<ExitStatus, Error> {
    let most = *donjon_image::MEMORY.end();
    if options.memory.is_some_and(|bytes| bytes > most) {
        let what = format!("the guest cannot have more than {} GiB of memory", most >> 30);
        return Err(Error::Usage { what, hint: "give it less with --memory" });
    }
    let source = source::Source::open(path)?;
    memory::release_freed();
    match &options.engine {
        Engine::Auto if process::unfit().is_some() => qemu::run(&source, options, &QemuOptions::default()),
        Engine::Auto | Engine::Process => process::run(source, options),
        Engine::Qemu(qemu) => qemu::run(&source, options, qemu),
    }
}

/// 64 bits of the kernel's generator.
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    // Cannot fail for 8 bytes once the generator is seeded; before that it blocks.
    while rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) != Ok(8) {}
    u64::from_ne_bytes(bytes)
}
