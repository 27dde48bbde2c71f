//! The types of the calls of [`crate::Stack`].

use crate::{Handle, NetHdr};
use core::net::SocketAddr;

/// Bits that say what a socket is ready for. Level-triggered when they come from [`crate::Stack::readiness`]; in an [`Event`] they say what may
/// have changed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ready(pub u16);

impl Ready {
    /// `recv` would not block: data, end of stream, or an error (POLLIN).
    pub const READABLE: Ready = Ready(1);
    /// `send` would not block (POLLOUT). With hysteresis: only when a third of the send buffer is free.
    pub const WRITABLE: Ready = Ready(2);
    /// A listener has a connection to accept, or an "any" listener a pending one.
    pub const ACCEPT: Ready = Ready(4);
    /// A connect has succeeded (an event only; the level is "writable").
    pub const CONNECTED: Ready = Ready(8);
    /// The peer has sent FIN: it will send no more (POLLRDHUP).
    pub const READ_CLOSED: Ready = Ready(16);
    /// Both directions are done (POLLHUP).
    pub const HANGUP: Ready = Ready(32);
    /// `take_error` has something (POLLERR).
    pub const ERROR: Ready = Ready(64);

    /// Whether all bits of `other` are in.
    pub const fn contains(self, other: Ready) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any bit of `other` is in.
    pub const fn intersects(self, other: Ready) -> bool {
        self.0 & other.0 != 0
    }

    /// Both together.
    pub const fn union(self, other: Ready) -> Ready {
        Ready(self.0 | other.0)
    }
}

/// Something happened to a socket. Events of one handle are merged until they are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// The socket.
    pub handle: Handle,
    /// What may have changed.
    pub ready: Ready,
}

/// Which addresses a socket talks to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Domain {
    /// AF_INET.
    V4,
    /// AF_INET6. Unless `v6_only` is set at `bind`, IPv4 works too: a wildcard bind takes both, and addresses come and go as
    /// `IpAddr::V4` (or as `::ffff:a.b.c.d`, which is understood wherever an address goes in).
    V6,
}

/// Which halves to shut down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shutdown {
    /// Receiving: `recv` gives what has arrived and then the end of the stream; what arrives later is thrown away.
    Read,
    /// Sending: FIN after what is queued.
    Write,
    /// Both.
    Both,
}

/// Whether `recv` takes the data out of the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecvMode {
    /// It does.
    Take,
    /// It stays (MSG_PEEK).
    Peek,
}

/// Keep-alive probes; times in seconds (Linux: 7200, 75, 9).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeepAlive {
    /// Idle time before the first probe.
    pub idle: u32,
    /// Time between probes.
    pub interval: u32,
    /// Unanswered probes after which the connection is dead (ETIMEDOUT).
    pub count: u8,
}

/// Options of a TCP socket. A listener's options are inherited by its connections.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct TcpOptions {
    /// True: no Nagle, every write goes out at once (TCP_NODELAY). Default false.
    pub nodelay: bool,
    /// True: hold back segments that are not full (TCP_CORK), for at most 200 ms after all before it is acknowledged. Default false.
    pub cork: bool,
    /// When data is acknowledged (TCP_QUICKACK). True: at once. False: late, with data of our own, with every second full segment, or after 40 ms.
    /// Default: late, but the first full segments at once.
    pub quick_ack: Option<bool>,
    /// Keep-alive probes. Default none.
    pub keep_alive: Option<KeepAlive>,
    /// Give up on a peer that has not acknowledged for that many ms; 0: the default, about 15 minutes (TCP_USER_TIMEOUT).
    pub user_timeout: u32,
    /// Bytes that `send` queues at most. Default: grows from 128 KiB with the congestion window up to the limit; set: fixed.
    pub send_buffer: Option<u32>,
    /// Largest receive window. Default: grows from 64 KiB up to the limit as the application drains; set: fixed.
    pub receive_buffer: Option<u32>,
}

/// What the IP headers of a socket's packets say; a listener's are inherited by its connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpOptions {
    /// TTL or hop limit. Default 64.
    pub hop_limit: u8,
    /// TOS or traffic class. Default 0. The ECN bits are not sent for TCP.
    pub tos: u8,
}

impl Default for IpOptions {
    fn default() -> Self {
        IpOptions { hop_limit: 64, tos: 0 }
    }
}

/// How to bind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BindOptions {
    /// SO_REUSEADDR with Linux's meaning: connections and TIME-WAIT entries on the port do not matter, another listener does.
    /// For UDP it lets several sockets bind the same port; the last one gets the datagrams.
    pub reuse_addr: bool,
    /// SO_REUSEPORT: several sockets that all ask for it may have the same address and port. Connections and datagrams of one peer go to the same one of
    /// them, peers are spread over them.
    pub reuse_port: bool,
    /// IPV6_V6ONLY.
    pub v6_only: bool,
}

/// State of a TCP socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TcpState {
    /// Connected (Linux numbers, as in `tcpi_state`).
    Established = 1,
    /// SYN sent.
    SynSent = 2,
    /// SYN received.
    SynReceived = 3,
    /// We have sent FIN.
    FinWait1 = 4,
    /// It is acknowledged.
    FinWait2 = 5,
    /// Waiting for old segments to die.
    TimeWait = 6,
    /// Not connected.
    Closed = 7,
    /// The peer has sent FIN.
    CloseWait = 8,
    /// Both have, ours is not acknowledged.
    LastAck = 9,
    /// Listening.
    Listen = 10,
    /// Both have at the same time.
    Closing = 11,
}

/// Figures about a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpInfo {
    /// State.
    pub state: TcpState,
    /// Smoothed round-trip time, µs; 0 before the first sample.
    pub rtt_us: u32,
    /// Its variation, µs.
    pub rtt_var_us: u32,
    /// Retransmission timeout, µs.
    pub rto_us: u32,
    /// Congestion window, bytes.
    pub congestion_window: u32,
    /// Slow-start threshold, bytes.
    pub slow_start_threshold: u32,
    /// Largest segment that we send, bytes of payload.
    pub send_mss: u16,
    /// Segments sent again, in total.
    pub retransmits: u32,
    /// Bytes in the send queue, sent or not, that the peer has not acknowledged (SIOCOUTQ).
    pub send_queue: u32,
    /// Bytes in the receive queue (FIONREAD).
    pub receive_queue: u32,
    /// Window that we advertise, bytes.
    pub receive_window: u32,
}

/// A datagram that was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// Who sent it.
    pub from: SocketAddr,
    /// Where it was sent to.
    pub to: SocketAddr,
    /// Bytes written into the caller's buffers.
    pub copied: usize,
    /// Length of the datagram; more than `copied` if it was cut (MSG_TRUNC).
    pub len: usize,
}

/// What a [`FrameSink`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// The frame is taken (or lost, as networks do).
    Done,
    /// No room now. The frame was not taken, and `output` returns.
    Full,
}

/// Where frames go.
pub trait FrameSink {
    /// Sends the frame that consists of `head` (Ethernet, IP and transport header) and the pieces of `payload`, at most 60. `header` goes in front of
    /// it in the virtio layout.
    fn send(&mut self, header: NetHdr, head: &[u8], payload: &[&[u8]]) -> Sent;
}

/// How `output` ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// Everything that may be sent now has been sent.
    Idle,
    /// The sink was full. Call again when it has room.
    Full,
}
