//! Link, pack, open and inspect Donjon images.
//!
//! - `config`: `Donjon.toml`.
//! - `project`: runs cargo on the user's project, with this program as its linker.
//! - `child`: cargo ends when we do.
//! - `linker`: the linker mode: swaps the C library for the guest object and explains what does not link.
//! - `pack`: a linked program becomes an image.
//! - `output`: a file is put in its place, whole.
//! - `image`: an image is opened and checked; `head`: the same without holding it in memory.

pub mod bundle;
#[cfg(feature = "guest")]
mod child;
pub mod config;
pub mod head;
pub mod image;
pub mod linker;
pub mod manifest;
pub mod output;
pub mod pack;
#[cfg(feature = "guest")]
pub mod project;
pub mod scan;
#[cfg(feature = "guest")]
mod settings;
mod shim;
mod trim;
mod unwind;

pub use donjon_abi::secrets;
pub use head::Head;
pub use image::{Image, OpenError};
pub use manifest::{MEMORY, Manifest, Port, Protocol, STOP, deceives, shown};
