//! From a directory of web content to the site that the stock web server finds in its image.
//!
//! [`Options`] is what a user says, on the command line or in the `[web]` table of `Donjon.toml`; [`prepare`] checks it,
//! reads the content, computes entity tags, types and compressed variants, and returns the files of the bundle, the features that the
//! server needs, and the ports that the image has to declare.

mod certificate;
mod compress;
mod content;
mod options;

pub use content::{Places, Prepared, prepare};
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
    /// A file has other bytes than when it was first read.
    #[error("{0} has changed while it was read")]
    Changed(PathBuf),
    /// There is no place for what is made on the way.
    #[error("cannot write to {0}: {1}")]
    Scratch(PathBuf, #[source] io::Error),
    /// A link or name that cannot be served.
    #[error("{0}: {1}")]
    Name(PathBuf, &'static str),
    /// More content than an image can have.
    #[error("{0} has more than {1}")]
    TooMuch(PathBuf, &'static str),
    /// A file that is served although it must not be.
    #[error("{0} is in the directory that would be served to everybody")]
    Exposed(PathBuf),
    /// A certificate or key that cannot be used.
    #[error("{0}: {1}")]
    Certificate(PathBuf, String),
    /// The file with the options cannot be understood.
    #[error("{0}: {1}")]
    Config(PathBuf, String),
    /// An option has a value that makes no sense.
    #[error("{option}: {problem}")]
    Option {
        /// The option, as in `Donjon.toml`.
        option: &'static str,
        /// What is wrong.
        problem: String,
    },
}

impl Error {
    /// What to do about it, where that is not in the message.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::NoDirectory(_) => Some("name the directory that has the content: `donjon serve DIR`"),
            Error::TooMuch(..) => Some(
                "links to directories are followed, and what is in them counts each time; files whose names begin with a dot are left out",
            ),
            Error::Changed(_) => Some("run it again when nobody writes there"),
            Error::Exposed(_) => Some("move it out of the directory: it is a secret"),
            Error::Certificate(..) => Some(
                "a certificate is a PEM file with the chain, the server's own first; its key is a PEM file without password",
            ),
            Error::Option { option: "proxy", .. } => Some(
                "an upstream is ADDRESS:PORT, such as --proxy /api=10.0.0.5:8080; a service of this host is 10.0.2.2",
            ),
            Error::Option { option: "auth", .. } => Some(
                "an area is USER:FILE for all paths, or PATTERN=USER:FILE for some, such as '/admin/*=alice:pw.txt'",
            ),
            Error::Option { option: "hosts", .. } => Some(
                "a name is ASCII (`xn--...` for others) and has no port and no dot at its end; `*` alone is for all other names",
            ),
            Error::Option { option: "header", .. } => Some(
                "a header is 'NAME: VALUE', or 'PATTERN=NAME: VALUE' for some paths, such as '*.html=X-Frame-Options: DENY'",
            ),
            _ => None,
        }
    }
}
