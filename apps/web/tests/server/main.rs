//! The server as a process, and clients that behave and that do not: bytes over sockets.

mod harness;
mod http1;
mod http2;
mod limits;
#[cfg(feature = "proxy")]
mod proxy;
mod records;
#[cfg(feature = "tls")]
mod tls;
