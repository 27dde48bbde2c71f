//! User-mode networking: the guest's TCP connections and UDP datagrams end here and go on as ordinary sockets of the host.
//!
//! The guest's frames come over a socket of packets ([`device`]); [`donjon_net`] speaks TCP/IP with it under every address that the guest may
//! reach, so no rights are needed on the host. The network is that of QEMU's user mode ([`policy`]): guest 10.0.2.15, gateway 10.0.2.2 (the
//! host's loopback), resolver 10.0.2.3. Every queue is bounded, and one side is not read while the other does not take.

mod arrived;
pub(crate) mod device;
mod ending;
mod flow;
mod own;
mod peers;
mod pktinfo;
pub(crate) mod policy;
mod slab;
#[cfg(test)]
mod tests;
mod udp;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use donjon_abi::boot;
use donjon_image::{Manifest, Protocol};
use donjon_net::{
    BindOptions, Config, Domain, Error as NetError, FrameSink, Handle, Limits, NetHdr, Offload, Output, Ready as Bits,
    Sent, Stack, TcpOptions,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::error::Error;
use crate::filter::rules::Rules;
use crate::filter::{Filter, Frame, Reason, Way};
use crate::jail;
use crate::options::{Publish, RunOptions, protocol_name};
use crate::reactor::{Interest, Reactor, Ready, Token};
use device::Device;
pub(crate) use device::Wire;
use flow::{Flow, HELD_MAX, Phase, Total, Verdict};
use peers::Peers;
use policy::{
    DNS4, DNS6, GATEWAY_MAC, GATEWAY4, GATEWAY6, GUEST_MAC, GUEST4, GUEST6, PREFIX4, PREFIX6, Policy, TCP, UDP,
};
use slab::Slab;
use udp::{Pair, Published, presented};

/// Bytes that one read or write moves at most.
const SCRATCH: usize = 128 * 1024;
/// Frames that are taken from the guest before the host's sockets get their turn, and their bytes: super-frames would fill the queues of many connections.
const FRAMES_PER_TURN: usize = 256;
const BYTES_PER_TURN: usize = 256 * 1024;
/// Connections that linger at most.
const LINGERING_MAX: usize = 1024;
/// Half-open attempts of the guest, and the host's backlog.
const BACKLOG: u32 = 1024;
/// A guest that refuses a published port in its first seconds may still be booting: it is asked again.
const BOOTING: u64 = 10_000_000_000;
/// Time between two such tries, growing; ns.
const AGAIN: std::ops::Range<u64> = 1_000_000..50_000_000;
/// How long to wait when the host has no memory or no descriptor for one more connection.
const PAUSE: u64 = 100_000_000;

/// User-mode networking for a guest that has not started yet. The published ports are taken already.
#[derive(Debug)]
pub(crate) struct Prepared {
    device: Device,
    listeners: Vec<(OwnedFd, Publish)>,
    rules: Rules,
    policy: Policy,
    held: Total,
}

impl Prepared {
    /// Takes the ports, and makes the link. The second value is the guest's end.
    pub fn open(options: &RunOptions, manifest: &Manifest, wire: Wire) -> Result<(Prepared, OwnedFd), Error> {
        raise_descriptor_limit();
        let rules = Rules::new(manifest, &Self::boot(wire), options);
        if let Some(p) = options.publish.iter().find(|p| !rules.serves(p.protocol as u8, p.guest)) {
            return Err(Error::Usage {
                what: format!("the image does not declare to listen on {} port {}", protocol_name(p.protocol), p.guest),
                hint: "add it to `listen` in Donjon.toml and build again, or run with --listen-any",
            });
        }
        let listeners = options.publish.iter().map(|p| Ok((listen(p)?, *p))).collect::<Result<Vec<_>, Error>>()?;
        let (device, guest) = Device::pair(wire).map_err(Error::host("cannot create a socket pair"))?;
        let held = Total::new(options.held.unwrap_or(HELD_MAX));
        let policy = Policy::new(rules.clone());
        Ok((Prepared { device, listeners, rules, policy, held }, guest))
    }

    /// What the jail must leave to it.
    pub fn needs(&self) -> jail::Network {
        let tcp = || self.rules.egress.iter().filter(|e| e.protocol != UDP);
        match self.rules.egress[..] {
            [] => jail::Network::Serve,
            _ if tcp().any(|e| e.port == 0) => jail::Network::Dial(None),
            _ => jail::Network::Dial(Some(tcp().map(|e| e.port).collect())),
        }
    }

    /// What the guest is told.
    pub fn boot(wire: Wire) -> boot::Net {
        use boot::net::{RX_GSO, TX_CSUM, TX_TSO4, TX_TSO6};
        boot::Net {
            flags: TX_CSUM | TX_TSO4 | TX_TSO6 | RX_GSO,
            mtu: wire.mtu(),
            mac: GUEST_MAC,
            ipv4_prefix: PREFIX4,
            ipv6_prefix: PREFIX6,
            ipv4: GUEST4.octets(),
            ipv4_gateway: GATEWAY4.octets(),
            ipv4_dns: [DNS4.octets(), [0; 4]],
            ipv6: GUEST6.octets(),
            ipv6_gateway: GATEWAY6.octets(),
            ipv6_dns: DNS6.octets(),
        }
    }
}

fn listen(p: &Publish) -> Result<OwnedFd, Error> {
    let open = || -> rustix::io::Result<OwnedFd> {
        let kind = match p.protocol {
            Protocol::Tcp => SocketType::STREAM,
            Protocol::Udp => SocketType::DGRAM,
        };
        let socket = socket(p.host, kind)?;
        if p.host.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        if p.protocol == Protocol::Tcp {
            sockopt::set_socket_reuseaddr(&socket, true)?;
            // Those that it accepts inherit it.
            probe(&socket)?;
        }
        rustix::net::bind(&socket, &p.host)?;
        if p.protocol == Protocol::Udp && p.host.ip().is_unspecified() {
            pktinfo::ask(&socket, p.host.ip()).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        }
        if p.protocol == Protocol::Tcp {
            rustix::net::listen(&socket, BACKLOG as i32)?;
        }
        Ok(socket)
    };
    open().map_err(|e| Error::Publish { addr: p.host, protocol: p.protocol, source: e.into() })
}

fn socket(towards: SocketAddr, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let family = if towards.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// Has the kernel ask whether the other side is still there. The guest's own probes (`SO_KEEPALIVE`) are answered by our stack.
fn probe(socket: &OwnedFd) -> rustix::io::Result<()> {
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(socket, 4)?;
    sockopt::set_socket_keepalive(socket, true)
}

/// Each connection is a descriptor.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// User-mode networking at work.
pub(crate) struct UserNet {
    stack: Stack,
    device: Device,
    device_interest: Interest,
    filter: Filter,
    policy: Policy,
    /// Added to all tokens.
    base: Token,
    start: Instant,
    scratch: Vec<u8>,
    /// What all connections hold together.
    held: Total,
    any_tcp: Handle,
    any_udp: Handle,
    sources: Slab<Source>,
    /// Flows that connect to the host, and some that did.
    dialing: Vec<u64>,
    tcp_listeners: Vec<Listener>,
    udp_listeners: Vec<(u64, Published)>,
    /// Who has sent to these.
    peers: Peers,
    /// Connections by the stack's name for them.
    by_handle: HashMap<Handle, u64>,
    /// Pairs by guest address and destination.
    pairs: HashMap<(SocketAddr, SocketAddr), u64>,
    /// When silent pairs are looked for next.
    pairs_check: u64,
    /// Connections that have more to do at once.
    todo: Vec<u64>,
    /// Connections that are to be looked at again at a time.
    later: Vec<(u64, u64)>,
    /// Those that [linger](Phase::Lingers), the oldest first.
    lingering: VecDeque<u64>,
    /// Most entries of `sources`.
    sources_max: usize,
    /// Listeners are not watched while there are too many connections, and not before this time.
    paused: Option<u64>,
    /// Connections that wait for the guest's first frame; `None` once it has come.
    ///
    /// A virtual machine's device forgets what was sent to it before its driver was there, and the retransmission would come a whole second later.
    before_first_frame: Option<Vec<u64>>,
}

impl std::fmt::Debug for UserNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserNet").field("sources", &self.sources.len()).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Listener {
    socket: OwnedFd,
    publish: Publish,
    number: u64,
    /// The guest has accepted a connection on its port.
    proven: bool,
}

/// What a descriptor of the host is for.
#[derive(Debug)]
enum Source {
    Device,
    TcpListener(usize),
    UdpListener(usize),
    Flow(Box<Flow>),
    Pair(Pair),
}

impl UserNet {
    /// Starts to work. Its tokens begin at `base`.
    pub fn new(prepared: Prepared, base: Token, reactor: &Reactor) -> Result<UserNet, Error> {
        let mut key = [0; 32];
        for part in key.chunks_mut(8) {
            part.copy_from_slice(&crate::random().to_ne_bytes());
        }
        let config = Config {
            mac: GATEWAY_MAC,
            mtu: prepared.device.wire.mtu(),
            offload: if prepared.device.wire == Wire::Offload {
                Offload { tx_csum: true, tso4: true, tso6: true }
            } else {
                Offload::default()
            },
            key,
            limits: Limits {
                sockets: 32 * 1024,
                memory: 64 << 20,
                half_open: 4096,
                time_wait: 4096,
                orphans: 4096,
                neighbours: 16,
                send_buffer: 1 << 20,
                receive_buffer: 1 << 20,
            },
            lasting: &[],
            any_ip: true,
            dhcp: false,
            slaac: false,
        };
        let failed = |e: NetError| Error::Host {
            what: "cannot start user-mode networking",
            source: std::io::Error::from_raw_os_error(e.errno()),
        };
        let start = Instant::now();
        let wire = prepared.device.wire;
        let mut stack = Stack::new(config, 1);
        // The first of each family is where connections to the guest come from. The resolver is on the link too: the guest asks for its Ethernet address.
        for address in [GATEWAY4, DNS4] {
            stack.add_address(address.into(), PREFIX4).map_err(failed)?;
        }
        for address in [GATEWAY6, DNS6] {
            stack.add_address(address.into(), PREFIX6).map_err(failed)?;
        }
        let any_tcp = stack.listen_any(BACKLOG).map_err(failed)?;
        let any_udp = stack.bind_any().map_err(failed)?;
        let mut net = UserNet {
            stack,
            device: prepared.device,
            device_interest: Interest::READ,
            filter: Filter::new(prepared.rules),
            policy: prepared.policy,
            base,
            start,
            scratch: vec![0; SCRATCH],
            held: prepared.held,
            any_tcp,
            any_udp,
            sources: Slab::new(),
            dialing: Vec::new(),
            tcp_listeners: Vec::new(),
            udp_listeners: Vec::new(),
            peers: Peers::default(),
            by_handle: HashMap::new(),
            pairs: HashMap::new(),
            pairs_check: 0,
            todo: Vec::new(),
            later: Vec::new(),
            lingering: VecDeque::new(),
            sources_max: rustix::process::getrlimit(rustix::process::Resource::Nofile)
                .current
                .map_or(30_000, |n| n.saturating_sub(64).min(30_000) as usize),
            paused: None,
            before_first_frame: (wire == Wire::Plain).then(Vec::new),
        };
        let watch = |e| Error::host("cannot watch a socket")(e);
        // The first entry: number 0.
        net.sources.insert_with(|_| Source::Device);
        reactor.add(&net.device, net.base, Interest::READ).map_err(watch)?;
        for (socket, publish) in prepared.listeners {
            match publish.protocol {
                Protocol::Tcp => {
                    let index = net.tcp_listeners.len();
                    let number = net.sources.insert_with(|_| Source::TcpListener(index));
                    reactor.add(&socket, net.base + number, Interest::READ).map_err(watch)?;
                    net.tcp_listeners.push(Listener { socket, publish, number, proven: false });
                }
                Protocol::Udp => {
                    let index = net.udp_listeners.len();
                    let number = net.sources.insert_with(|_| Source::UdpListener(index));
                    reactor.add(&socket, net.base + number, Interest::READ).map_err(watch)?;
                    net.udp_listeners.push((number, Published { socket, port: publish.guest }));
                }
            }
        }
        net.work(reactor);
        Ok(net)
    }

    /// When [`Self::work`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        if !self.todo.is_empty() {
            return Some(self.start);
        }
        let later = self.later.iter().map(|(at, _)| *at).min();
        let pairs = (!self.pairs.is_empty()).then_some(self.pairs_check);
        // While the device is full, the stack has nothing that it could do.
        let stack = if self.device.full { None } else { self.stack.deadline() };
        let paused = self.paused.filter(|_| self.may_accept());
        let at = [later, pairs, stack, paused].into_iter().flatten().min()?;
        Some(self.start + Duration::from_nanos(at.saturating_sub(1)))
    }

    /// Takes an event.
    pub fn ready(&mut self, ready: Ready, reactor: &Reactor) {
        let number = ready.token - self.base;
        match self.sources.get_mut(number) {
            None => {}
            Some(Source::Device) => {
                if ready.write {
                    self.device.full = false;
                }
                let any = self.receive_frames(reactor);
                if ready.hangup && !any {
                    // The guest has ended, and its process is about to: until then this end would be ready all the time.
                    reactor.remove(&self.device);
                    self.device.full = false;
                    self.device_interest = Interest { read: true, write: false };
                }
            }
            Some(Source::TcpListener(index)) => {
                let index = *index;
                self.accept(index, reactor);
            }
            Some(Source::UdpListener(index)) => {
                let index = *index;
                self.published_datagrams(index);
            }
            Some(Source::Flow(_)) => self.flow_ready(number, ready, reactor),
            Some(Source::Pair(_)) => self.answers(number, reactor),
        }
    }

    /// After all events of a round: timers, connections that had more to do, and what the stack wants to send.
    pub fn work(&mut self, reactor: &Reactor) {
        let now = self.now();
        self.next_turn(reactor);
        if self.later.iter().any(|(at, _)| *at <= now) {
            let (due, later) = std::mem::take(&mut self.later).into_iter().partition(|(at, _)| *at <= now);
            self.later = later;
            for (_, number) in due {
                self.again(number, reactor);
            }
        }
        if !self.pairs.is_empty() && now >= self.pairs_check {
            self.pairs_check = now + udp::CHECK;
            self.forget_pairs(now);
        }
        self.output();
        // What was sent may have made room or ended something.
        if self.events(reactor) {
            self.output();
        }
        let interest = Interest { read: true, write: self.device.full };
        if interest != self.device_interest && reactor.modify(&self.device, self.base, interest).is_ok() {
            self.device_interest = interest;
        }
        if self.paused.is_some_and(|until| now >= until) && self.may_accept() {
            self.pause_listeners(None, reactor);
        }
    }

    /// Whether a frame has come from the guest (always, if it was there from the start).
    pub fn heard(&self) -> bool {
        self.before_first_frame.is_none()
    }

    /// How many frames were dropped by the filter.
    pub fn dropped(&self, way: Way) -> [u64; Reason::ALL.len()] {
        match way {
            Way::FromGuest => self.filter.dropped(way),
            Way::ToGuest => [0; _],
        }
    }

    /// Nanoseconds since the start, never 0.
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64 + 1
    }

    fn output(&mut self) {
        if !self.device.full {
            let now = self.now();
            match self.stack.output(now, &mut Filtered { device: &mut self.device, filter: &mut self.filter }) {
                Output::Idle => {}
                Output::Full => self.device.full = true,
            }
        }
    }

    /// True if there was one.
    fn receive_frames(&mut self, reactor: &Reactor) -> bool {
        let (mut any, mut bytes) = (false, 0);
        for _ in 0..FRAMES_PER_TURN {
            let now = self.start.elapsed().as_nanos() as u64 + 1;
            let Some(packet) = self.device.receive() else { break };
            any = true;
            let Some((header, frame)) = packet else { continue };
            bytes += frame.len();
            // Where it may not go is refused by [`Policy`].
            if self.filter.outbound_to_stack(header, frame.into()).is_ok() {
                self.stack.input(now, header, frame);
            }
            for number in self.before_first_frame.take().into_iter().flatten() {
                self.dial_guest(number);
            }
            if bytes >= BYTES_PER_TURN {
                break;
            }
        }
        self.events(reactor);
        any
    }

    /// Handles what the stack has to say; true if there was something.
    fn events(&mut self, reactor: &Reactor) -> bool {
        let mut any = false;
        while let Some(event) = self.stack.next_event() {
            any = true;
            if event.handle == self.any_tcp {
                self.dial_host(reactor);
            } else if event.handle == self.any_udp {
                self.datagrams(reactor);
            } else if let Some(&number) = self.by_handle.get(&event.handle) {
                self.flow_event(number, event.ready, reactor);
            }
        }
        any
    }
}

/// The device, seen by the filter, which so learns whom the guest may answer. Its verdict does not count: the frames are our own.
struct Filtered<'a> {
    device: &'a mut Device,
    filter: &'a mut Filter,
}

impl FrameSink for Filtered<'_> {
    fn send(&mut self, header: NetHdr, head: &[u8], payload: &[&[u8]]) -> Sent {
        let len = head.len() + payload.iter().map(|p| p.len()).sum::<usize>();
        self.filter.inbound(Frame { bytes: head, len });
        self.device.send(header, head, payload)
    }
}

/// TCP.
impl UserNet {
    /// The guest wants to connect to somewhere.
    fn dial_host(&mut self, reactor: &Reactor) {
        while let Ok((pending, to, _guest)) = self.stack.next_pending(self.any_tcp) {
            let socket = if self.sources.len() >= self.sources_max || !self.may_dial() {
                None
            } else {
                self.policy.translate(TCP, to).and_then(|to| connect(to).ok())
            };
            let Some(socket) = socket else {
                self.stack.refuse(pending);
                continue;
            };
            let interest = Interest { read: false, write: true };
            let flow = Flow::new(socket, Phase::DialHost(pending), None, interest, &self.held);
            let number = self.add_flow(flow, interest, reactor);
            self.dialing.extend(number);
        }
    }

    /// Whether another connection to the host may be under way. Half of all sockets are for other things, and those that the guest has given up are ended first:
    /// a SYN and a RST cost it nothing, and the host two minutes if nobody answers.
    fn may_dial(&mut self) -> bool {
        let most = (self.sources_max / 2).min(2 * BACKLOG as usize);
        if self.dialing.len() >= most {
            let mut given_up = Vec::new();
            self.dialing.retain(|number| match self.sources.get_mut(*number) {
                Some(Source::Flow(flow)) => match flow.phase {
                    Phase::DialHost(pending) if self.stack.is_pending(pending) => true,
                    Phase::DialHost(_) => {
                        given_up.push(*number);
                        false
                    }
                    _ => false,
                },
                _ => false,
            });
            given_up.into_iter().for_each(|number| self.end_flow(number, Verdict::Reset));
        }
        self.dialing.len() < most
    }

    fn add_flow(&mut self, flow: Flow, interest: Interest, reactor: &Reactor) -> Option<u64> {
        let number = self.sources.insert_with(|_| Source::Flow(Box::new(flow)));
        let Some(Source::Flow(flow)) = self.sources.get_mut(number) else { return None };
        if reactor.add(&flow.socket, self.base + number, interest).is_err() {
            self.end_flow(number, Verdict::Reset);
            return None;
        }
        Some(number)
    }

    /// Somebody has connected to a published port.
    fn accept(&mut self, index: usize, reactor: &Reactor) {
        for _ in 0..64 {
            if !self.may_accept() {
                return self.pause_listeners(Some(0), reactor);
            }
            let listener = &self.tcp_listeners[index];
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (socket, peer) = match rustix::net::acceptfrom_with(&listener.socket, flags) {
                Ok(accepted) => accepted,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                    // Whoever has what it takes does not tell when there is some again.
                    return self.pause_listeners(Some(self.now() + PAUSE), reactor);
                }
                Err(_) => return,
            };
            let _ = sockopt::set_tcp_nodelay(&socket, true);
            let peer = peer.and_then(|p| SocketAddr::try_from(p).ok());
            let phase = Phase::DialGuest { listener: index, again: None, tries: 0 };
            let flow = Flow::new(socket, phase, peer, Interest::default(), &self.held);
            if let Some(number) = self.add_flow(flow, Interest::default(), reactor) {
                match &mut self.before_first_frame {
                    Some(waiting) => waiting.push(number),
                    None => self.dial_guest(number),
                }
            }
        }
    }

    /// Connects to the guest's port for a connection to a published one.
    fn dial_guest(&mut self, number: u64) {
        let Some(Source::Flow(flow)) = self.sources.get_mut(number) else { return };
        let Phase::DialGuest { listener, again, .. } = &mut flow.phase else { return };
        *again = None;
        let publish = self.tcp_listeners[*listener].publish;
        let (guest, gateway): (IpAddr, IpAddr) = match publish.host.ip() {
            IpAddr::V4(_) => (GUEST4.into(), GATEWAY4.into()),
            IpAddr::V6(_) => (GUEST6.into(), GATEWAY6.into()),
        };
        let domain = if guest.is_ipv4() { Domain::V4 } else { Domain::V6 };
        let peer = flow.peer.map(|p| SocketAddr::new(presented(p.ip(), gateway), p.port()));
        let stack = &mut self.stack;
        let mut dial = |from: Option<SocketAddr>| -> Result<Handle, NetError> {
            let handle = stack.tcp_socket(domain)?;
            let connected = (|| {
                if let Some(from) = from {
                    stack.bind(handle, from, BindOptions { reuse_addr: true, ..BindOptions::default() })?;
                }
                nodelay(stack, handle);
                stack.connect(handle, SocketAddr::new(guest, publish.guest))
            })();
            match connected {
                Ok(()) => Ok(handle),
                Err(e) => {
                    stack.abort(handle);
                    Err(e)
                }
            }
        };
        // The guest sees who it is, where it is somebody else than this host.
        let named = peer.filter(|p| p.ip() != gateway).and_then(|p| dial(Some(p)).ok());
        match named.map_or_else(|| dial(None), Ok) {
            Ok(handle) => {
                flow.handle = Some(handle);
                self.by_handle.insert(handle, number);
            }
            Err(_) => self.end_flow(number, Verdict::Reset),
        }
    }

    fn flow_event(&mut self, number: u64, bits: Bits, reactor: &Reactor) {
        let Some(Source::Flow(flow)) = self.sources.get_mut(number) else { return };
        if let Phase::DialGuest { listener, again, tries } = &mut flow.phase {
            let Some(handle) = flow.handle else { return };
            if bits.intersects(Bits::ERROR) {
                let error = self.stack.take_error(handle);
                let listener = &self.tcp_listeners[*listener];
                let now = self.start.elapsed().as_nanos() as u64 + 1;
                if error == Some(NetError::ConnectionRefused) && !listener.proven && now < BOOTING {
                    let pause = AGAIN.start.saturating_mul(1 << (*tries).min(10)).min(AGAIN.end);
                    *again = Some(now + pause);
                    *tries += 1;
                    self.later.push((now + pause, number));
                    self.by_handle.remove(&handle);
                    flow.handle = None;
                    self.stack.abort(handle);
                } else {
                    self.end_flow(number, Verdict::Reset);
                }
                return;
            }
            if !bits.intersects(Bits::CONNECTED.union(Bits::WRITABLE)) {
                return;
            }
            self.tcp_listeners[*listener].proven = true;
            flow.phase = Phase::Open;
        }
        self.flow_work(number, true, reactor);
    }

    fn flow_ready(&mut self, number: u64, ready: Ready, reactor: &Reactor) {
        let Some(Source::Flow(flow)) = self.sources.get_mut(number) else { return };
        match flow.phase {
            Phase::Open | Phase::Lingers => {
                if ready.hangup && flow.interest == Interest::default() {
                    // Nobody would read it, nor learn that the client has given up.
                    if !matches!(sockopt::socket_error(&flow.socket), Ok(Ok(()))) {
                        return self.end_flow(number, Verdict::Reset);
                    }
                    reactor.remove(&flow.socket);
                    flow.watched = false;
                }
                self.flow_work(number, ready.read, reactor);
            }
            Phase::DialGuest { .. } => {
                // Nothing is asked for but the end of the socket.
                if ready.hangup {
                    self.end_flow(number, Verdict::Reset);
                }
            }
            Phase::DialHost(pending) => {
                let connected = matches!(sockopt::socket_error(&flow.socket), Ok(Ok(())));
                match if connected { self.stack.complete(pending) } else { Err(NetError::ConnectionRefused) } {
                    Ok(handle) => {
                        nodelay(&mut self.stack, handle);
                        flow.handle = Some(handle);
                        flow.phase = Phase::Open;
                        self.by_handle.insert(handle, number);
                        self.flow_work(number, true, reactor);
                    }
                    Err(_) => self.end_flow(number, Verdict::Reset),
                }
            }
        }
    }

    fn flow_work(&mut self, number: u64, readable: bool, reactor: &Reactor) {
        let Some(Source::Flow(flow)) = self.sources.get_mut(number) else { return };
        if flow.has_failed(&self.stack) {
            self.lingering.push_back(number);
            self.bound_lingering();
        }
        let Some(Source::Flow(flow)) = self.sources.get_mut(number) else { return };
        let verdict = flow.work(&mut self.stack, &mut self.scratch, readable);
        match verdict {
            Verdict::Keep | Verdict::More | Verdict::Later(_) => {
                let wanted = flow.wanted();
                if wanted != flow.interest {
                    let token = self.base + number;
                    let changed = match flow.watched {
                        true => reactor.modify(&flow.socket, token, wanted),
                        false => reactor.add(&flow.socket, token, wanted),
                    };
                    match changed {
                        Ok(()) => (flow.interest, flow.watched) = (wanted, true),
                        Err(_) => return self.end_flow(number, Verdict::Reset),
                    }
                }
                self.list(number, verdict);
            }
            Verdict::Done | Verdict::Reset => self.end_flow(number, verdict),
        }
    }

    /// Notes that a connection is to be looked at again; once, however many events there are meanwhile.
    fn list(&mut self, number: u64, verdict: Verdict) {
        let Some(Source::Flow(flow)) = self.sources.get_mut(number) else { return };
        match verdict {
            Verdict::More if !std::mem::replace(&mut flow.in_todo, true) => self.todo.push(number),
            Verdict::Later(pause) if !std::mem::replace(&mut flow.in_later, true) => {
                let at = self.now() + pause;
                self.later.push((at, number));
            }
            _ => {}
        }
    }

    /// The turn of connections that had more to do.
    fn next_turn(&mut self, reactor: &Reactor) {
        for number in std::mem::take(&mut self.todo) {
            if let Some(Source::Flow(flow)) = self.sources.get_mut(number) {
                flow.in_todo = false;
            }
            self.flow_work(number, true, reactor);
        }
    }

    /// The time of an entry of `later` has come.
    fn again(&mut self, number: u64, reactor: &Reactor) {
        let Some(Source::Flow(flow)) = self.sources.get_mut(number) else { return };
        flow.in_later = false;
        if matches!(flow.phase, Phase::DialGuest { again: Some(_), .. }) {
            self.dial_guest(number);
        } else {
            self.flow_work(number, true, reactor);
        }
    }

    /// Clients that take nothing must not hold the places of others: the one that has lingered longest goes first.
    fn bound_lingering(&mut self) {
        if self.lingering.len() > (self.sources_max / 8).min(LINGERING_MAX)
            && let Some(&oldest) = self.lingering.front()
            && let Some(Source::Flow(flow)) = self.sources.get_mut(oldest)
        {
            // All that it waits for may be the kernel's to bring.
            let verdict = if flow.is_delivered() { Verdict::Done } else { Verdict::Reset };
            self.end_flow(oldest, verdict);
        }
    }

    fn end_flow(&mut self, number: u64, verdict: Verdict) {
        let Some(Source::Flow(flow)) = self.sources.remove(number) else { return };
        if flow.phase == Phase::Lingers {
            self.lingering.retain(|n| *n != number);
        }
        if let Phase::DialHost(pending) = flow.phase {
            self.stack.refuse(pending);
        }
        if let Some(handle) = flow.handle {
            self.by_handle.remove(&handle);
            match verdict {
                Verdict::Done => self.stack.close(handle),
                _ => self.stack.abort(handle),
            }
        }
        if verdict != Verdict::Done {
            // RST instead of FIN when it is dropped.
            let _ = sockopt::set_socket_linger(&flow.socket, Some(Duration::ZERO));
        }
    }

    /// Whether one more client may have a place. Some are left for what the guest does itself: clients that only connect would keep it from its own servers and from DNS.
    fn may_accept(&self) -> bool {
        self.sources.len() < self.sources_max - self.sources_max / 8
    }

    fn pause_listeners(&mut self, paused: Option<u64>, reactor: &Reactor) {
        self.paused = paused;
        for l in &self.tcp_listeners {
            let interest = Interest { read: paused.is_none(), write: false };
            let _ = reactor.modify(&l.socket, self.base + l.number, interest);
        }
    }
}

fn connect(to: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let socket = socket(to, SocketType::STREAM)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    probe(&socket)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e),
    }
}

/// What is handed over has been waited for once already.
fn nodelay(stack: &mut Stack, handle: Handle) {
    if let Ok(options) = stack.tcp_options(handle) {
        let _ = stack.set_tcp_options(handle, TcpOptions { nodelay: true, ..options });
    }
}

impl AsFd for UserNet {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.device.as_fd()
    }
}
