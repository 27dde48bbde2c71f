//! The public face: [`Stack`] and the types of its calls.

use crate::{Config, Error, Handle, Lease, NetHdr, OwnAddress, Pending};
use core::net::{IpAddr, SocketAddr};

/// Bits that say what a socket is ready for. Level-triggered when they come from [`Stack::readiness`]; in an [`Event`] they say what may
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
    /// Receiving: buffered data is discarded, `recv` gives end of stream, what arrives later is thrown away.
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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpOptions {
    /// True: no Nagle, every write goes out at once (TCP_NODELAY). Default false.
    pub nodelay: bool,
    /// True: hold back segments that are not full (TCP_CORK), for at most 200 ms. Default false.
    pub cork: bool,
    /// Keep-alive probes. Default none.
    pub keep_alive: Option<KeepAlive>,
    /// Give up on a peer that has not acknowledged for that many ms; 0: the default, about 15 minutes (TCP_USER_TIMEOUT).
    pub user_timeout: u32,
    /// Bytes that `send` queues at most. Default: grows from 128 KiB with the congestion window up to the limit; set: fixed.
    pub send_buffer: Option<u32>,
    /// Largest receive window. Default: grows from 64 KiB up to the limit as the application drains; set: fixed.
    pub receive_buffer: Option<u32>,
}

/// How to bind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BindOptions {
    /// SO_REUSEADDR with Linux's meaning: connections and TIME-WAIT entries on the port do not matter, another listener does.
    /// For UDP it lets several sockets bind the same port; the last one gets the datagrams.
    pub reuse_addr: bool,
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

/// The stack.
pub struct Stack {
    _config: Config,
}

/// Frames, time, events.
impl Stack {
    /// A stack. It has the loopback addresses, and no other until [`Stack::add_address`], DHCP or SLAAC give it one.
    pub fn new(config: Config, now: u64) -> Stack {
        let _ = now;
        Stack { _config: config }
    }

    /// Takes a received Ethernet frame (without padding rules: trailing bytes are cut by the IP length). `header` says what the device knows: NEEDS_CSUM and DATA_VALID
    /// frames are not verified, super-frames are welcome.
    pub fn input(&mut self, now: u64, header: NetHdr, frame: &[u8]) {
        let _ = (now, header, frame);
        todo!()
    }

    /// Runs timers that are due and loopback traffic, and sends what may be sent.
    pub fn output(&mut self, now: u64, sink: &mut dyn FrameSink) -> Output {
        let _ = (now, sink);
        todo!()
    }

    /// Whether [`Stack::output`] has something to do before the next deadline.
    pub fn wants_output(&self) -> bool {
        todo!()
    }

    /// When [`Stack::output`] must be called at the latest, same clock as `now`. May be earlier than necessary.
    pub fn deadline(&self) -> Option<u64> {
        todo!()
    }

    /// The next event.
    pub fn next_event(&mut self) -> Option<Event> {
        todo!()
    }

    /// What the socket is ready for now; all zero for a dead handle.
    pub fn readiness(&self, handle: Handle) -> Ready {
        let _ = handle;
        todo!()
    }

    /// Bytes in all queues, out of [`crate::Limits::memory`].
    pub fn memory_used(&self) -> usize {
        todo!()
    }
}

/// Addresses and routes.
impl Stack {
    /// Adds an address of ours and its on-link route. Announces it (gratuitous ARP, unsolicited NA).
    pub fn add_address(&mut self, address: IpAddr, prefix: u8) -> Result<(), Error> {
        let _ = (address, prefix);
        todo!()
    }

    /// Removes an address. Connections stay as they are.
    pub fn remove_address(&mut self, address: IpAddr) {
        let _ = address;
        todo!()
    }

    /// Sets (or with `None` removes) the default router of that family.
    pub fn set_router(&mut self, domain: Domain, router: Option<IpAddr>) {
        let _ = (domain, router);
        todo!()
    }

    /// The default router.
    pub fn router(&self, domain: Domain) -> Option<IpAddr> {
        let _ = domain;
        todo!()
    }

    /// Our addresses, without loopback.
    pub fn addresses(&self) -> &[OwnAddress] {
        todo!()
    }

    /// What DHCP gave us; `None` before it did and when it ran out.
    pub fn dhcp_lease(&self) -> Option<Lease> {
        todo!()
    }

    /// Goes up whenever an address, router or lease changes.
    pub fn config_generation(&self) -> u32 {
        todo!()
    }

    /// Which source address we would use towards `remote`.
    pub fn source_for(&self, remote: IpAddr) -> Result<IpAddr, Error> {
        let _ = remote;
        todo!()
    }
}

/// All sockets.
impl Stack {
    /// Binds a TCP or UDP socket. Port 0 picks a random free one from 32768 to 60999.
    pub fn bind(&mut self, handle: Handle, local: SocketAddr, options: BindOptions) -> Result<(), Error> {
        let _ = (handle, local, options);
        todo!()
    }

    /// TCP: starts to connect; CONNECTED or ERROR follows as an event. UDP: sets the peer (datagrams of others are dropped). Binds if necessary.
    pub fn connect(&mut self, handle: Handle, remote: SocketAddr) -> Result<(), Error> {
        let _ = (handle, remote);
        todo!()
    }

    /// The local address; unspecified and port 0 before `bind`.
    pub fn local_addr(&self, handle: Handle) -> Result<SocketAddr, Error> {
        let _ = handle;
        todo!()
    }

    /// The peer; NotConnected if there is none.
    pub fn peer_addr(&self, handle: Handle) -> Result<SocketAddr, Error> {
        let _ = handle;
        todo!()
    }

    /// Takes the pending error (SO_ERROR). Calls that fail with it take it as well.
    pub fn take_error(&mut self, handle: Handle) -> Option<Error> {
        let _ = handle;
        todo!()
    }

    /// Gives the handle up. A connection sends what is queued and FIN and finishes in the background; with data unread it
    /// sends RST, as Linux does. A listener resets what was not accepted.
    pub fn close(&mut self, handle: Handle) {
        let _ = handle;
        todo!()
    }

    /// Gives the handle up at once; a connection sends RST (SO_LINGER with 0).
    pub fn abort(&mut self, handle: Handle) {
        let _ = handle;
        todo!()
    }
}

/// TCP.
impl Stack {
    /// A new TCP socket.
    pub fn tcp_socket(&mut self, domain: Domain) -> Result<Handle, Error> {
        let _ = domain;
        todo!()
    }

    /// Makes a bound socket (an unbound one gets a port) a listener, or changes a listener's backlog. The accept queue holds `backlog` connections (1 to 4096).
    pub fn listen(&mut self, handle: Handle, backlog: u32) -> Result<(), Error> {
        let _ = (handle, backlog);
        todo!()
    }

    /// Takes an established connection.
    pub fn accept(&mut self, handle: Handle) -> Result<(Handle, SocketAddr), Error> {
        let _ = handle;
        todo!()
    }

    /// Only with [`Config::any_ip`]: a listener for every address and port that no other listener has. Its SYNs wait in a queue of
    /// `backlog` entries for [`Stack::complete`] or [`Stack::refuse`]; see [`Stack::next_pending`].
    pub fn listen_any(&mut self, backlog: u32) -> Result<Handle, Error> {
        let _ = backlog;
        todo!()
    }

    /// The next connection attempt at an "any" listener: its name, where it wants to go, and who asks. WouldBlock if there is none.
    pub fn next_pending(&mut self, handle: Handle) -> Result<(Pending, SocketAddr, SocketAddr), Error> {
        let _ = handle;
        todo!()
    }

    /// Goes on with a connection attempt: SYN-ACK goes out. The handle may be used at once; CONNECTED follows as an event.
    /// `local_addr` is where the peer wanted to go. BadHandle if the peer has given up meanwhile.
    pub fn complete(&mut self, pending: Pending) -> Result<Handle, Error> {
        let _ = pending;
        todo!()
    }

    /// Answers a connection attempt with RST.
    pub fn refuse(&mut self, pending: Pending) {
        let _ = pending;
        todo!()
    }

    /// Queues the pieces, as far as there is room; returns how many bytes. WouldBlock if there is no room at all.
    /// BrokenPipe after a shutdown or a received RST (the caller raises SIGPIPE where it wants to).
    pub fn send(&mut self, handle: Handle, pieces: &[&[u8]]) -> Result<usize, Error> {
        let _ = (handle, pieces);
        todo!()
    }

    /// Fills the buffers in order; returns how many bytes. 0 is the end of the stream (or empty buffers). WouldBlock if there is nothing.
    pub fn recv(&mut self, handle: Handle, buffers: &mut [&mut [u8]], mode: RecvMode) -> Result<usize, Error> {
        let _ = (handle, buffers, mode);
        todo!()
    }

    /// Shuts down. NotConnected before a connection exists. On a listener, `Read` or `Both` ends the listening.
    pub fn shutdown(&mut self, handle: Handle, how: Shutdown) -> Result<(), Error> {
        let _ = (handle, how);
        todo!()
    }

    /// The socket's options.
    pub fn tcp_options(&self, handle: Handle) -> Result<TcpOptions, Error> {
        let _ = handle;
        todo!()
    }

    /// Replaces the socket's options (read, change, set).
    pub fn set_tcp_options(&mut self, handle: Handle, options: TcpOptions) -> Result<(), Error> {
        let _ = (handle, options);
        todo!()
    }

    /// Figures.
    pub fn tcp_info(&self, handle: Handle) -> Result<TcpInfo, Error> {
        let _ = handle;
        todo!()
    }
}

/// UDP.
impl Stack {
    /// A new UDP socket. Broadcast needs no option here.
    pub fn udp_socket(&mut self, domain: Domain) -> Result<Handle, Error> {
        let _ = domain;
        todo!()
    }

    /// Only with [`Config::any_ip`]: a UDP socket that gets every datagram that no other socket takes.
    pub fn bind_any(&mut self) -> Result<Handle, Error> {
        todo!()
    }

    /// Undoes `connect` (connect to AF_UNSPEC).
    pub fn disconnect(&mut self, handle: Handle) -> Result<(), Error> {
        let _ = handle;
        todo!()
    }

    /// Sends one datagram made of the pieces, `to` the peer if `None`. `from` overrides the source ("any" sockets must give it). Binds if necessary. A datagram larger than the
    /// path is fragmented; MessageSize above 65507 bytes. A pending ICMP error is returned instead (ConnectionRefused).
    pub fn send_to(
        &mut self,
        handle: Handle,
        pieces: &[&[u8]],
        to: Option<SocketAddr>,
        from: Option<SocketAddr>,
    ) -> Result<usize, Error> {
        let _ = (handle, pieces, to, from);
        todo!()
    }

    /// Receives one datagram.
    pub fn recv_from(&mut self, handle: Handle, buffers: &mut [&mut [u8]], mode: RecvMode) -> Result<Datagram, Error> {
        let _ = (handle, buffers, mode);
        todo!()
    }

    /// Length of the next datagram, if there is one (FIONREAD).
    pub fn next_datagram_len(&self, handle: Handle) -> Option<usize> {
        let _ = handle;
        todo!()
    }

    /// Sets how many bytes the receive and send queue may hold (default 208 KiB each), cut to the limits. (receive, send)
    pub fn set_udp_buffers(&mut self, handle: Handle, receive: u32, send: u32) -> Result<(), Error> {
        let _ = (handle, receive, send);
        todo!()
    }
}
