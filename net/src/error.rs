//! Why a socket call failed.

/// An error of a socket call or of a connection. [`Error::errno`] is Linux's number for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[non_exhaustive]
pub enum Error {
    /// Nothing to do now; wait for an event.
    WouldBlock = 11,
    /// The global memory budget is exhausted.
    NoMemory = 12,
    /// An argument makes no sense in this state.
    Invalid = 22,
    /// The handle names no socket (any more).
    BadHandle = 9,
    /// Sending after the sending half was shut down.
    BrokenPipe = 32,
    /// UDP: the datagram is larger than what can be sent.
    MessageSize = 90,
    /// The call does not fit the kind of socket.
    NotSupported = 95,
    /// The socket's address family cannot reach that address.
    AddressFamily = 97,
    /// The local address and port are taken, or no port is free.
    AddressInUse = 98,
    /// The local address is not ours.
    AddressNotAvailable = 99,
    /// No route to that address.
    NetworkUnreachable = 101,
    /// The connection was given up on before it was accepted.
    ConnectionAborted = 103,
    /// The peer sent RST.
    ConnectionReset = 104,
    /// Too many sockets ([`crate::Limits::sockets`]).
    NoBuffers = 105,
    /// Already connected.
    IsConnected = 106,
    /// Not connected.
    NotConnected = 107,
    /// The peer does not answer any more.
    TimedOut = 110,
    /// The peer refused: RST to our SYN, or ICMP port unreachable.
    ConnectionRefused = 111,
    /// The next hop does not answer, or a router says so.
    HostUnreachable = 113,
    /// A connect is under way.
    Already = 114,
    /// UDP: no destination given and not connected.
    DestinationRequired = 89,
}

impl Error {
    /// Linux's errno.
    pub const fn errno(self) -> i32 {
        self as i32
    }
}
