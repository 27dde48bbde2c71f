//! The harness of the end-to-end tests; `benches` and `xtask` use it too.
//!
//! A test asks for an [`image`], starts it with [`Guest::builder`] under one [`Engine`], waits until it answers, and talks to it with a real
//! client. Dropping the [`Guest`] ends it, by process id. Nothing here sleeps in order to synchronise: every wait polls a
//! condition and has a deadline far above anything that a healthy run needs.

mod certificate;
mod guest;
pub mod http;
pub mod measure;
mod netns;
pub mod pattern;
#[cfg(test)]
mod promises;
pub mod qemu;
#[cfg(test)]
mod refusals;
mod repo;

pub use certificate::Certificate;
pub use donjon_skip::{Need, have, have_program, is_root, missing, missing_in, skip, skip_in};
pub use guest::{Builder, Engine, Exit, Guest, PATIENCE, poll_until};
pub use netns::{GUEST_IP, HOST_IP, Netns};
pub use repo::{
    cargo_run, choose_donjon, compressed, donjon, donjon_command, example, for_speed, guests_target_dir, host_program,
    image, repo_root, target_dir, test_guest,
};
