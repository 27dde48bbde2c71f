//! Why a run could not start or go on.

use std::io;
use std::net::SocketAddr;

use donjon_image::{OpenError, Protocol};

/// Why a run could not start or go on. How the *guest* ended is an [`crate::ExitStatus`], not an error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The image is missing, damaged, or of another version.
    #[error(transparent)]
    Image(#[from] OpenError),
    /// An option does not fit.
    #[error("{what}")]
    Usage {
        /// What does not fit.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// A port of the host is taken.
    #[error("cannot publish {} port {addr}: {source}", crate::options::protocol_name(*protocol))]
    Publish {
        /// Where the host was to listen.
        addr: SocketAddr,
        /// Its protocol.
        protocol: Protocol,
        /// What the system said.
        source: io::Error,
    },
    /// The TAP device cannot be used.
    #[error("cannot use the TAP device {name}: {source}")]
    Tap {
        /// The interface.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// This host cannot run this engine.
    #[error("the {engine} engine cannot run here: {reason}")]
    EngineUnavailable {
        /// The engine.
        engine: &'static str,
        /// Why.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// The host's system refused something that should have worked.
    #[error("{what}: {source}")]
    Host {
        /// What the monitor was doing.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// A function for `map_err`.
    pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
        move |e| Error::Host { what, source: e.into() }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Image(OpenError::Missing(_)) => "build one with `donjon build -o IMAGE`".into(),
            Error::Image(OpenError::Io(..)) => return None,
            Error::Image(_) => "build it again with `donjon build`".into(),
            Error::Usage { hint, .. } | Error::EngineUnavailable { hint, .. } => (*hint).into(),
            Error::Publish { addr, protocol, source } => match source.kind() {
                io::ErrorKind::AddrInUse => {
                    format!(
                        "something listens there already (`sudo ss -lnp | grep :{}` names it); choose another port with -p",
                        addr.port()
                    )
                }
                io::ErrorKind::PermissionDenied => format!(
                    "ports below 1024 need root; publish another one: -p 8080:PORT/{}",
                    crate::options::protocol_name(*protocol)
                ),
                _ => "the address must be one of this host's own".into(),
            },
            Error::Tap { name, source } => match source.kind() {
                // Not there, down, or somebody else's.
                io::ErrorKind::Other | io::ErrorKind::PermissionDenied => format!(
                    "make it yours and bring it up: `sudo ip tuntap add {name} mode tap user $USER && sudo ip link set {name} up`"
                ),
                io::ErrorKind::NotFound => "the tun module is not loaded: `sudo modprobe tun`".into(),
                io::ErrorKind::ResourceBusy => "another program uses it".into(),
                _ => format!("`ip link show {name}` tells its state"),
            },
            Error::Host { .. } => return None,
        })
    }

    /// The exit code of `donjon run` for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage { .. } => 2,
            Error::Image(OpenError::Missing(_) | OpenError::Io(..)) => 66,
            Error::Image(_) => 65,
            Error::EngineUnavailable { .. } => 69,
            Error::Publish { .. } | Error::Tap { .. } | Error::Host { .. } => 71,
        }
    }
}
