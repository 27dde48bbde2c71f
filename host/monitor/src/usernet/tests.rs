//! User-mode networking with a guest that is made of bytes.

use super::*;
use crate::options::RunOptions;
use crate::signals::Signals;
use donjon_abi::manifest::Egress;
use donjon_abi::net_hdr;
use donjon_image::Manifest;
use donjon_image::manifest::Port;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// A TCP segment of the guest's to the gateway.
fn segment(from: u16, to: u16, seq: u32, flags: u8) -> Vec<u8> {
    let mut f = vec![0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 0];
    f.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
    let sum: u32 = f[14..].chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    f[24..26].copy_from_slice(&sum.to_be_bytes());
    f.extend([from.to_be_bytes(), to.to_be_bytes()].concat());
    f.extend(seq.to_be_bytes());
    f.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    f
}

/// A guest that connects and resets, to a server that answers nobody, holds no more of the host than one that waits.
#[test]
fn attempts_that_the_guest_gives_up_end_on_the_host() {
    // Its queue is full: the kernel drops the SYNs of all others.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&server, 0).unwrap();
    let address = server.local_addr().unwrap();
    let _full: Vec<TcpStream> =
        (0..2).filter_map(|_| TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok()).collect();
    let gateway = Egress { protocol: 0, prefix: 128, port: 0, addr: GATEWAY4.to_ipv6_mapped().octets() };
    let manifest = Manifest { egress: vec![gateway], ..Manifest::default() };
    let Wired { mut net, guest, mut reactor, .. } = Wired::new(&RunOptions::default(), &manifest);
    let most = (net.sources_max / 2).min(2 * BACKLOG as usize);
    let header = NetHdr { flags: net_hdr::DATA_VALID, ..NetHdr::default() }.to_bytes();
    let (others, mut seen, mut events) = (net.sources.len(), 0, Vec::new());
    for i in 0..2 * most as u32 + 500 {
        let (from, seq) = (1024 + (i % 60_000) as u16, i.wrapping_mul(77_777));
        for (seq, flags) in [(seq, 2), (seq.wrapping_add(1), 4)] {
            let frame = segment(from, address.port(), seq, flags);
            rustix::net::send(&guest, &[&header[..], &frame].concat(), rustix::net::SendFlags::NOSIGNAL).unwrap();
            reactor.wait(Some(Duration::ZERO), &mut events).unwrap();
            for ready in events.drain(..) {
                net.ready(ready, &reactor);
            }
            net.work(&reactor);
        }
        let mut room = [0; 2048];
        while rustix::net::recv(&guest, &mut room[..], rustix::net::RecvFlags::DONTWAIT).is_ok_and(|(n, _)| n > 0) {}
        seen = seen.max(net.sources.len());
        assert!(net.sources.len() <= most + others, "{} sockets after {i} attempts", net.sources.len());
    }
    // They were under way at all.
    assert!(seen > most / 2, "{seen} of {most}");
}

/// A net, and the guest's end of its wire.
struct Wired {
    net: UserNet,
    guest: OwnedFd,
    reactor: Reactor,
    /// Number and port of the last client's first segment.
    syn: (u32, u16),
}

impl Wired {
    fn new(options: &RunOptions, manifest: &Manifest) -> Wired {
        let (prepared, guest) = Prepared::open(options, manifest, Wire::Offload).unwrap();
        let reactor = Reactor::new().unwrap();
        let net = UserNet::new(prepared, 0, &reactor).unwrap();
        Wired { net, guest, reactor, syn: (0, 0) }
    }

    fn turn(&mut self) {
        let mut events = Vec::new();
        self.reactor.wait(Some(Duration::from_millis(1)), &mut events).unwrap();
        for ready in events {
            self.net.ready(ready, &self.reactor);
        }
        self.net.work(&self.reactor);
    }

    fn send(&mut self, frame: &[u8]) {
        let header = NetHdr { flags: net_hdr::DATA_VALID, ..NetHdr::default() }.to_bytes();
        rustix::net::send(&self.guest, &[&header[..], frame].concat(), rustix::net::SendFlags::NOSIGNAL).unwrap();
        self.turn();
    }

    /// The next frame for the guest, without its offload header. Questions for its Ethernet address are answered here.
    fn receive(&mut self) -> Vec<u8> {
        let started = Instant::now();
        let mut room = vec![0; 70_000];
        loop {
            assert!(started.elapsed() < Duration::from_secs(30), "no frame comes");
            self.turn();
            let Ok((n @ 27.., _)) = rustix::net::recv(&self.guest, &mut room[..], rustix::net::RecvFlags::DONTWAIT)
            else {
                continue;
            };
            let frame = &room[12..n];
            match frame[12..14] {
                [8, 0] => return frame.to_vec(),
                [8, 6] => {
                    let mut answer = frame[..42].to_vec();
                    answer[..6].copy_from_slice(&frame[6..12]);
                    answer[6..12].copy_from_slice(&policy::GUEST_MAC);
                    answer[21] = 2;
                    answer[22..28].copy_from_slice(&policy::GUEST_MAC);
                    answer[28..32].copy_from_slice(&frame[38..42]);
                    answer[32..42].copy_from_slice(&frame[22..32]);
                    self.send(&answer);
                }
                _ => {}
            }
        }
    }
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Number, acknowledgement and flags of a frame's TCP header.
fn tcp(frame: &[u8]) -> (u32, u32, u8) {
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    (word(38), word(42), frame[47])
}

/// A connection of a client to port 80 of the guest.
struct Connection {
    client: TcpStream,
    /// Its number among the net's sources.
    number: u64,
    /// The client's port as the guest sees it.
    port: u16,
    /// The number of the client's first byte.
    first: u32,
}

impl Connection {
    /// A segment of the guest's in it.
    fn segment(&self, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
        let mut f = segment(80, self.port, seq, flags);
        f[42..46].copy_from_slice(&ack.to_be_bytes());
        f
    }

    /// The client writes until nobody takes anything from its socket any more; how many bytes it wrote.
    fn fill(&mut self, wired: &mut Wired) -> usize {
        let mut sent = 0;
        while wired.flow(self.number).interest.read {
            sent += self.client.write(&[7; 20_000]).unwrap();
            wired.turn();
        }
        sent
    }

    /// The client ends with a reset, of which the guest learns.
    fn reset(self, wired: &mut Wired) {
        sockopt::set_socket_linger(&self.client, Some(Duration::ZERO)).unwrap();
        drop(self.client);
        while tcp(&wired.receive()).2 & RST == 0 {}
    }
}

impl Wired {
    /// A client, and a guest that has accepted: its first byte will have the number 1001.
    fn connection(&mut self) -> Connection {
        let (client, number) = self.client();
        let (first, port) = (self.syn.0.wrapping_add(1), self.syn.1);
        let connection = Connection { client, number, port, first };
        self.send(&connection.segment(1000, first, SYN | ACK));
        connection
    }

    fn flow(&mut self, number: u64) -> &mut Flow {
        let Some(Source::Flow(flow)) = self.net.sources.get_mut(number) else { panic!("it has ended") };
        flow
    }

    /// Waits until the guest's end has been passed on.
    fn delivered(&mut self, number: u64) {
        while !self.flow(number).is_delivered() {
            self.turn();
        }
    }
}

/// A client that stays silent, when the guest has closed the connection and forgotten it, holds no place; if the guest still reads, it stays.
#[test]
fn a_silent_client_does_not_outlive_the_guests_connection() {
    let (options, manifest) = serving();
    let mut wired = Wired::new(&options, &manifest);
    let others = wired.net.sources.len();
    let mut c = wired.connection();
    wired.send(&c.segment(1001, c.first, FIN | ACK));
    // The client sees the end.
    assert_eq!(c.client.read(&mut [0; 9]).unwrap(), 0);
    let first = c.first;
    let probe = |wired: &mut Wired| {
        loop {
            let (seq, ack, flags) = tcp(&wired.receive());
            // Just before what has been acknowledged (RFC 9293 §3.8.4).
            if (seq.wrapping_add(1), ack, flags & FIN) == (first, 1002, 0) {
                return;
            }
        }
    };
    probe(&mut wired);
    wired.send(&c.segment(1002, first, ACK));
    assert_eq!(wired.net.sources.len(), others + 1, "the guest may still read");
    probe(&mut wired);
    wired.send(&c.segment(1002, 0, RST));
    assert_eq!(wired.net.sources.len(), others, "nobody holds it any more");
}

/// Who resets after the end of its direction, or with more on its way than the guest takes, has a socket that is not read. It must not be ready for ever.
#[test]
fn a_reset_of_a_client_that_is_not_read_reaches_the_guest() {
    let (options, manifest) = serving();
    let mut wired = Wired::new(&options, &manifest);
    let others = wired.net.sources.len();
    let mut c = wired.connection();
    c.client.write_all(b"x").unwrap();
    c.client.shutdown(std::net::Shutdown::Write).unwrap();
    while tcp(&wired.receive()).2 & FIN == 0 {}
    wired.send(&c.segment(1001, c.first.wrapping_add(2), ACK));
    c.reset(&mut wired);
    assert_eq!(wired.net.sources.len(), others);
    let mut c = wired.connection();
    c.fill(&mut wired);
    c.reset(&mut wired);
    assert_eq!(wired.net.sources.len(), others);
    // The guest has ended its direction, and all of that is with the client: it is to learn all the same that the client has not.
    let mut c = wired.connection();
    wired.send(&c.segment(1001, c.first, FIN | ACK));
    wired.delivered(c.number);
    c.fill(&mut wired);
    c.reset(&mut wired);
    assert_eq!(wired.net.sources.len(), others);
}

/// Both directions have ended, but the guest has not taken all: no work until it does.
#[test]
fn a_socket_that_has_hung_up_waits_for_the_guest() {
    let (options, manifest) = serving();
    let mut wired = Wired::new(&options, &manifest);
    let others = wired.net.sources.len();
    let mut c = wired.connection();
    wired.send(&c.segment(1001, c.first, FIN | ACK));
    wired.delivered(c.number);
    let sent = (c.fill(&mut wired) + c.client.write(&[7; 20_000]).unwrap()) as u32;
    c.client.shutdown(std::net::Shutdown::Write).unwrap();
    wired.turn();
    let mut events = Vec::new();
    wired.reactor.wait(Some(Duration::ZERO), &mut events).unwrap();
    assert!(events.iter().all(|ready| ready.token != c.number), "it is ready all the time: {events:?}");
    let mut next = c.first;
    while next.wrapping_sub(c.first) <= sent {
        let frame = wired.receive();
        let (seq, _, flags) = tcp(&frame);
        let payload = frame.len() as u32 - 54 + u32::from(flags & FIN);
        if seq == next {
            next = next.wrapping_add(payload);
            wired.send(&c.segment(1002, next, ACK));
        }
    }
    assert_eq!(wired.net.sources.len(), others, "all has come, and the end");
}

/// Options and manifest of a guest that serves port 80.
fn serving() -> (RunOptions, Manifest) {
    let publish = "127.0.0.1:0:80".parse().unwrap();
    let options = RunOptions { publish: vec![publish], ..RunOptions::default() };
    (options, Manifest { listen: vec![Port { protocol: Protocol::Tcp, port: 80 }], ..Manifest::default() })
}

impl Wired {
    /// A client of the published port, and the number of its connection.
    fn client(&mut self) -> (TcpStream, u64) {
        let address = rustix::net::getsockname(&self.net.tcp_listeners[0].socket).unwrap();
        let client = TcpStream::connect(SocketAddr::try_from(address).unwrap()).unwrap();
        let syn = loop {
            let frame = self.receive();
            if tcp(&frame).2 & (SYN | ACK) == SYN {
                break frame;
            }
        };
        self.syn = (tcp(&syn).0, u16::from_be_bytes([syn[34], syn[35]]));
        let number = self.net.sources.iter().find_map(|(n, s)| match s {
            Source::Flow(flow) if matches!(flow.phase, Phase::DialGuest { .. }) => Some(n),
            _ => None,
        });
        (client, number.unwrap())
    }
}

#[test]
fn packets_that_are_no_frames_count() {
    let Wired { mut net, guest, reactor, .. } = Wired::new(&RunOptions::default(), &Manifest::default());
    let short = |guest: &OwnedFd| rustix::net::send(guest, b"x", rustix::net::SendFlags::NOSIGNAL).is_ok();
    let sent = (0..1000).take_while(|_| short(&guest)).count();
    assert!(sent > FRAMES_PER_TURN, "{sent}");
    assert!(net.receive_frames(&reactor));
    let left = std::iter::from_fn(|| net.device.receive().map(|packet| assert!(packet.is_none()))).count();
    assert_eq!(left, sent - FRAMES_PER_TURN);
}

#[test]
fn a_connection_is_listed_once() {
    let (options, manifest) = serving();
    let mut wired = Wired::new(&options, &manifest);
    let (_client, number) = wired.client();
    let Wired { net, reactor, .. } = &mut wired;
    for _ in 0..2 {
        for _ in 0..1000 {
            net.list(number, Verdict::Later(1));
            net.list(number, Verdict::More);
        }
        assert_eq!((net.later.len(), net.todo.len()), (1, 1));
        // Its time comes, and it may wait again.
        net.next_turn(reactor);
        net.later.clear();
        net.again(number, reactor);
        assert_eq!((net.later.len(), net.todo.len()), (0, 0));
    }
}

/// The guest's own probes end at our stack.
#[test]
fn the_kernel_asks_whether_the_other_side_is_there() {
    let (options, manifest) = serving();
    let mut wired = Wired::new(&options, &manifest);
    let accepted = wired.connection();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let dialled = connect(server.local_addr().unwrap()).unwrap();
    for socket in [&wired.flow(accepted.number).socket, &dialled] {
        let after = (sockopt::tcp_keepidle(socket), sockopt::tcp_keepintvl(socket), sockopt::tcp_keepcnt(socket));
        assert_eq!(sockopt::socket_keepalive(socket), Ok(true));
        assert_eq!(after, (Ok(Duration::from_secs(60)), Ok(Duration::from_secs(15)), Ok(4)));
    }
}

/// Clients that only connect leave room for what the guest does itself.
#[test]
fn clients_leave_room_for_the_guest() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = Egress { protocol: 0, prefix: 128, port: 0, addr: GATEWAY4.to_ipv6_mapped().octets() };
    let (options, manifest) = serving();
    let mut wired = Wired::new(&options, &Manifest { egress: vec![gateway], ..manifest });
    wired.net.sources_max = 32;
    let address = rustix::net::getsockname(&wired.net.tcp_listeners[0].socket).unwrap();
    let address = SocketAddr::try_from(address).unwrap();
    let mut clients: Vec<_> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
    while wired.net.paused.is_none() {
        wired.turn();
    }
    assert_eq!(wired.net.sources.len(), 28);
    assert_eq!(
        wired.net.deadline().map(|at| at > wired.net.start),
        Some(true),
        "it waits for a place, not all the time"
    );
    wired.send(&segment(5000, server.local_addr().unwrap().port(), 1000, SYN));
    let answer = loop {
        let frame = wired.receive();
        if frame[36..38] == 5000u16.to_be_bytes() {
            break tcp(&frame);
        }
    };
    assert_eq!((answer.1, answer.2), (1001, SYN | ACK));
    // Clients that go make room for others.
    for client in clients.drain(..20) {
        sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    }
    while wired.net.paused.is_some() {
        wired.turn();
    }
}

/// Where the host has no descriptor (or no memory) for one more connection, it is asked again after a while, not all the time. In a process of its own, whose limit is its own too.
#[test]
fn a_host_without_room_for_a_connection_is_asked_again() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const ALONE: &str = "DONJON_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let mut this = std::process::Command::new(std::env::current_exe().unwrap());
        this.args(["--exact", "usernet::tests::a_host_without_room_for_a_connection_is_asked_again"]);
        let out = this.env(ALONE, "1").output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let (options, manifest) = serving();
    let mut wired = Wired::new(&options, &manifest);
    let address = rustix::net::getsockname(&wired.net.tcp_listeners[0].socket).unwrap();
    let _client = TcpStream::connect(SocketAddr::try_from(address).unwrap()).unwrap();
    let (others, before) = (wired.net.sources.len(), getrlimit(Resource::Nofile));
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..before }).unwrap();
    wired.turn();
    assert!(wired.net.paused.is_some() && wired.net.deadline().is_some_and(|at| at > wired.net.start));
    let mut events = Vec::new();
    wired.reactor.wait(Some(Duration::ZERO), &mut events).unwrap();
    assert!(events.is_empty(), "{events:?}");
    setrlimit(Resource::Nofile, before).unwrap();
    while wired.net.sources.len() == others {
        wired.turn();
    }
}

/// A frame with a payload.
fn carrying(mut frame: Vec<u8>, payload: &[u8]) -> Vec<u8> {
    frame[16..18].copy_from_slice(&(40 + payload.len() as u16).to_be_bytes());
    frame[24..26].fill(0);
    let sum: u32 = frame[14..34].chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend(payload);
    frame
}

/// More than the client's kernel takes while nobody reads there, less than the host's holds.
const UNREAD: u32 = 200_000;

impl Wired {
    /// A client that does not read, to whom the guest has sent [`UNREAD`] bytes: its next one has the number in the second place.
    fn unread(&mut self) -> (Connection, u32) {
        let c = self.connection();
        sockopt::set_socket_send_buffer_size(&self.flow(c.number).socket, UNREAD as usize).unwrap();
        let mut next = 1001;
        while next < 1001 + UNREAD {
            self.send(&carrying(c.segment(next, c.first, ACK), &[7; 1000]));
            next += 1000;
        }
        assert!(!self.flow(c.number).wanted().write && !arrived::all(&self.flow(c.number).socket));
        (c, next)
    }

    /// What the client reads from now on, and how that ends, while the net works until it has forgotten it.
    fn read_all(&mut self, mut client: TcpStream, others: usize) -> (usize, Result<usize, std::io::ErrorKind>) {
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let end = client.read_to_end(&mut bytes).map_err(|e| e.kind());
            (bytes.len(), end.map(|_| 0))
        });
        while self.net.sources.len() > others || !reader.is_finished() {
            self.turn();
        }
        assert!(self.net.lingering.is_empty() && self.net.by_handle.is_empty());
        reader.join().unwrap()
    }
}

/// A client may say something that nobody hears any more, before it has read what the guest said.
#[test]
fn what_a_client_says_after_the_guests_end_takes_nothing_from_it() {
    let (options, manifest) = serving();
    let mut wired = Wired::new(&options, &manifest);
    let others = wired.net.sources.len();
    let (mut c, next) = wired.unread();
    wired.send(&c.segment(next, c.first, FIN | ACK));
    wired.delivered(c.number);
    c.client.write_all(b"x").unwrap();
    while wired.receive().len() != 55 {}
    wired.send(&c.segment(next + 1, 0, RST));
    c.client.write_all(&[7; 300_000]).unwrap();
    assert_eq!(wired.read_all(c.client, others), (UNREAD as usize, Ok(0)));
}

/// What came before a reset arrives before it; and an end is an end.
#[test]
fn a_reset_of_the_guest_takes_nothing_from_the_client() {
    let (options, manifest) = serving();
    let mut wired = Wired::new(&options, &manifest);
    let others = wired.net.sources.len();
    for (fin, end) in [(0, Err(std::io::ErrorKind::ConnectionReset)), (1, Ok(0))] {
        let (mut c, next) = wired.unread();
        // All at once.
        let header = NetHdr { flags: net_hdr::DATA_VALID, ..NetHdr::default() }.to_bytes();
        let last = carrying(c.segment(next, c.first, ACK | fin), &[7; 1000]);
        let reset = c.segment(next + 1000 + u32::from(fin), 0, RST);
        for frame in [last, reset] {
            rustix::net::send(&wired.guest, &[&header[..], &frame].concat(), rustix::net::SendFlags::NOSIGNAL).unwrap();
        }
        wired.turn();
        assert_eq!(wired.flow(c.number).phase, Phase::Lingers);
        c.client.write_all(b"x").unwrap();
        assert_eq!(wired.read_all(c.client, others), (UNREAD as usize + 1000, end));
    }
}

/// Clients that take nothing hold few places.
#[test]
fn the_oldest_connection_that_lingers_makes_room() {
    let (options, manifest) = serving();
    let mut wired = Wired::new(&options, &manifest);
    wired.net.sources_max = 32;
    let mut clients = Vec::new();
    for _ in 0..6 {
        let (c, next) = wired.unread();
        wired.send(&c.segment(next, 0, RST));
        clients.push(c);
    }
    assert_eq!(wired.net.lingering, clients[2..].iter().map(|c| c.number).collect::<Vec<_>>());
    let mut ends = clients.into_iter().map(|mut c| c.client.read_to_end(&mut Vec::new()).map_err(|e| e.kind()));
    assert_eq!(ends.next(), Some(Err(std::io::ErrorKind::ConnectionReset)));
}

/// The same if the guest has ended altogether.
#[test]
fn what_a_client_says_to_an_ended_guest_takes_nothing_from_it() {
    let (options, manifest) = serving();
    let mut wired = Wired::new(&options, &manifest);
    let (mut c, next) = wired.unread();
    wired.send(&c.segment(next, c.first, FIN | ACK));
    let Wired { mut net, guest, reactor, .. } = wired;
    drop(guest);
    c.client.write_all(b"x").unwrap();
    let (over, is_over) = std::sync::mpsc::channel::<()>();
    let reader = std::thread::spawn(move || {
        // It is not over before all has been read; were it, that would be read too late.
        let _ = is_over.recv_timeout(Duration::from_millis(300));
        let _ = c.client.write_all(b"x");
        c.client.read_to_end(&mut Vec::new()).map_err(|e| e.kind())
    });
    net.finish(&reactor, &Signals::take().unwrap(), Instant::now() + Duration::from_secs(60));
    drop((net, over));
    assert_eq!(reader.join().unwrap(), Ok(UNREAD as usize));
}

/// The guest has sent more than its client took so far, and ended: the client gets all of it, or an error, but never an end in the middle.
#[test]
fn what_an_ended_guest_has_sent_arrives_or_the_client_learns_of_it() {
    let reset = Err(std::io::ErrorKind::ConnectionReset);
    for (end, time, all) in [(FIN, 60, true), (FIN, 0, false), (0, 60, false)] {
        let (options, manifest) = serving();
        let mut wired = Wired::new(&options, &manifest);
        let mut c = wired.connection();
        sockopt::set_socket_send_buffer_size(&wired.flow(c.number).socket, 4096).unwrap();
        let mut sent = 0;
        let mut send = |wired: &mut Wired, flags: u8, payload: &[u8]| {
            wired.send(&carrying(c.segment(1001 + sent, c.first, flags | ACK), payload));
            sent += payload.len() as u32;
        };
        while !wired.flow(c.number).interest.write {
            send(&mut wired, 0, &[7; 1400]);
        }
        for _ in 0..40 {
            send(&mut wired, 0, &[7; 1400]);
        }
        send(&mut wired, end, &[7]);
        let Wired { mut net, guest, reactor, .. } = wired;
        drop(guest);
        let signals = Signals::take().unwrap();
        let mut read = move || {
            let mut bytes = Vec::new();
            c.client.read_to_end(&mut bytes).map_err(|e| e.kind())
        };
        let until = Instant::now() + Duration::from_secs(time);
        if all {
            let reader = std::thread::spawn(read);
            net.finish(&reactor, &signals, until);
            drop(net);
            assert_eq!(reader.join().unwrap(), Ok(sent as usize));
        } else {
            net.finish(&reactor, &signals, until);
            drop(net);
            assert_eq!(read(), reset, "{end} {time}");
        }
    }
}
