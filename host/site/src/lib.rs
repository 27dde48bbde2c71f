//! From a directory of web content to the site that the stock web server finds in its image.
//!
//! [`Options`] is what a user says, on the command line or in the `[web]` table of `Donjon.toml`; [`prepare`] checks it,
//! reads the content, computes entity tags, types and compressed variants, and returns the files of the bundle, the features that the
//! server needs, and the ports that the image has to declare.

mod content;
mod options;

pub use content::{Prepared, prepare};
pub use options::{Auth, Options, Proxy, Rule, Tls};

use std::io;
use std::path::PathBuf;

/// Why a site could not be prepared. Every message names what the user has to change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory is not there, or is not a directory.
    #[error("{0} is not a directory")]
    NoDirectory(PathBuf),
    /// A file could not be read.
    #[error("cannot read {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// A link or name that cannot be served.
    #[error("{0}: {1}")]
    Name(PathBuf, &'static str),
    /// An option has a value that makes no sense.
    #[error("{option}: {problem}")]
    Option {
        /// The option, as in `Donjon.toml`.
        option: &'static str,
        /// What is wrong.
        problem: String,
    },
}
