use super::addr::{AF_INET, AF_INET6};
use super::*;
use crate::fd::tests::start;
use crate::fd::watch::events::{HUP, IN, OUT, RDHUP};
use crate::io::poll::{PollFd, poll};
use crate::netif;
use donjon_abi::NetHdr;
use donjon_base::{clock, host};
use donjon_net::{BindOptions, Config, Domain, Error, FrameSink, Handle, Limits, Offload, RecvMode, Sent, Stack};
use std::{iter, vec, vec::Vec};

fn at(text: &str) -> Addr {
    Addr::Inet(text.parse().unwrap())
}

fn listener(domain: i32, addr: &str) -> (i32, Addr) {
    let l = socket(domain, SOCK_STREAM, 0).unwrap();
    bind(l, &at(addr)).unwrap();
    listen(l, 16).unwrap();
    (l, local(l).unwrap())
}

fn read(fd: i32, max: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0; max];
    let n = crate::fd::read(fd, &mut [&mut buf])?;
    buf.truncate(n);
    Ok(buf)
}

fn ready(fd: i32) -> u32 {
    let mut fds = [PollFd { fd, events: -1, revents: 0 }];
    poll(&mut fds, Some(0)).unwrap();
    u32::from(fds[0].revents as u16)
}

#[test]
fn tcp_over_loopback_echoes() {
    let _s = start();
    let (l, addr) = listener(AF_INET, "127.0.0.1:0");
    fn server(l: usize) {
        let (c, _) = accept(l as i32, 0).unwrap();
        loop {
            let data = read(c, 5000).unwrap();
            if data.is_empty() {
                break;
            }
            assert_eq!(crate::fd::write(c, &[&data]), Ok(data.len()));
        }
        crate::fd::close(c).unwrap();
    }
    crate::sched::spawn(server, l as usize, 64 << 10).unwrap();
    let c = socket(AF_INET, SOCK_STREAM, 0).unwrap();
    connect(c, &addr).unwrap();
    assert_eq!(connect(c, &addr), Err(Errno::EISCONN));
    assert_eq!(peer(c), Ok(addr));
    fn writer(c: usize) {
        let data: Vec<u8> = (0..400_000u32).map(|i| (i % 251) as u8).collect();
        assert_eq!(crate::fd::write(c as i32, &[&data[..1000], &data[1000..]]), Ok(400_000));
        shutdown(c as i32, 1).unwrap();
    }
    crate::sched::spawn(writer, c as usize, 64 << 10).unwrap();
    let mut total = 0u32;
    loop {
        let data = read(c, 7001).unwrap();
        if data.is_empty() {
            break;
        }
        for b in data {
            assert_eq!(b, (total % 251) as u8);
            total += 1;
        }
    }
    assert_eq!(total, 400_000);
    assert_eq!(crate::fd::write(c, &[b"x"]), Err(Errno::EPIPE));
}

#[test]
fn non_blocking_connects_report_by_readiness() {
    let _s = start();
    let c = socket(AF_INET, SOCK_STREAM | crate::fd::O_NONBLOCK, 0).unwrap();
    let refused = connect(c, &at("127.0.0.1:9"));
    if refused == Err(Errno::EINPROGRESS) {
        assert_ne!(ready(c), 0);
        assert_eq!(option(c, 1, 4).unwrap().bytes(), Errno::ECONNREFUSED.0.to_ne_bytes());
    } else {
        assert_eq!(refused, Err(Errno::ECONNREFUSED));
    }
    let (l, addr) = listener(AF_INET, "0.0.0.0:0");
    let Addr::Inet(a) = addr else { panic!() };
    let c = socket(AF_INET, SOCK_STREAM | crate::fd::O_NONBLOCK, 0).unwrap();
    let started = connect(c, &at(&std::format!("127.0.0.1:{}", a.port())));
    assert!(matches!(started, Ok(()) | Err(Errno::EINPROGRESS)), "{started:?}");
    assert_eq!(ready(c) & (OUT | HUP), OUT);
    assert_eq!(option(c, 1, 4).unwrap().bytes(), [0; 4]);
    assert_eq!(ready(l) & IN, IN);
    let (s, _) = accept(l, crate::fd::O_NONBLOCK).unwrap();
    assert_eq!(read(s, 1), Err(Errno::EAGAIN));
    let begin = clock::monotonic();
    crate::fd::close(c).unwrap();
    assert_eq!(ready(s) & (IN | RDHUP), IN | RDHUP);
    assert_eq!(read(s, 1), Ok(vec![]));
    assert_eq!(clock::monotonic(), begin);
    assert_eq!(accept(s, 0).err(), Some(Errno::EINVAL));
}

#[test]
fn dual_stack_listeners_show_mapped_addresses() {
    let _s = start();
    let (l, addr) = listener(AF_INET6, "[::]:0");
    let Addr::Inet(a) = addr else { panic!() };
    let c = socket(AF_INET, SOCK_STREAM, 0).unwrap();
    connect(c, &at(&std::format!("127.0.0.1:{}", a.port()))).unwrap();
    let (s, from) = accept(l, 0).unwrap();
    let Addr::Inet(from) = from else { panic!() };
    assert_eq!(from.ip(), "::ffff:127.0.0.1".parse::<core::net::IpAddr>().unwrap());
    assert_eq!(local(s), Ok(at(&std::format!("[::ffff:127.0.0.1]:{}", a.port()))));
    let c6 = socket(AF_INET6, SOCK_STREAM, 0).unwrap();
    connect(c6, &at(&std::format!("[::1]:{}", a.port()))).unwrap();
    assert_eq!(accept(l, 0).map(|_| ()), Ok(()));
    assert_eq!(connect(c, &at("[::1]:1")), Err(Errno::EAFNOSUPPORT));
    // The same port is taken for IPv4 as well, unless only IPv6 was bound.
    let other = socket(AF_INET, SOCK_STREAM, 0).unwrap();
    assert_eq!(bind(other, &at(&std::format!("0.0.0.0:{}", a.port()))), Err(Errno::EADDRINUSE));
}

/// `SIOCOUTQ`.
#[test]
fn what_the_peer_has_no_room_for_is_unsent() {
    let _s = start();
    let (l, addr) = listener(AF_INET, "127.0.0.1:0");
    let c = socket(AF_INET, SOCK_STREAM | crate::fd::O_NONBLOCK, 0).unwrap();
    let _ = connect(c, &addr);
    let (s, _) = accept(l, 0).unwrap();
    assert_eq!((crate::fd::unsent(c), crate::fd::unsent(l)), (Ok(0), Err(Errno::EINVAL)));
    let written = crate::fd::write(c, &[&vec![7; 64 << 20]]).unwrap();
    let unsent = crate::fd::unsent(c).unwrap();
    assert!(unsent > 0 && unsent <= written, "{unsent} of {written}");
    let mut left = written;
    while left > 0 {
        left -= read(s, 65_536).unwrap().len();
    }
    while crate::fd::unsent(c) != Ok(0) {
        poll(&mut [], Some(clock::monotonic() + 1_000_000)).unwrap();
    }
}

#[test]
fn udp_over_loopback() {
    let _s = start();
    let a = socket(AF_INET, SOCK_DGRAM | crate::fd::O_NONBLOCK, 0).unwrap();
    bind(a, &at("127.0.0.1:0")).unwrap();
    let b = socket(AF_INET, SOCK_DGRAM | crate::fd::O_NONBLOCK, 0).unwrap();
    let to = local(a).unwrap();
    assert_eq!(send(b, &[b"x"], None, 0), Err(Errno::EDESTADDRREQ));
    assert_eq!(send(b, &[b"hello, ", b"world"], Some(&to), 0), Ok(12));
    assert_eq!(crate::fd::available(a), Ok(12));
    let mut buf = [0; 5];
    let got = recv(a, &mut [&mut buf], msg::PEEK).unwrap();
    assert_eq!((got.copied, got.len), (5, 12));
    let got = recv(a, &mut [&mut buf[..2], &mut [0; 100]], 0).unwrap();
    assert_eq!((got.copied, got.len, &buf[..2]), (12, 12, &b"he"[..]));
    connect(a, &got.from.unwrap()).unwrap();
    assert_eq!(crate::fd::write(a, &[b"back"]), Ok(4));
    assert_eq!(read(b, 9), Ok(b"back".to_vec()));
    assert_eq!(read(b, 9), Err(Errno::EAGAIN));
    assert_eq!(send(b, &[&vec![0; 65_508]], Some(&to), 0), Err(Errno::EMSGSIZE));
    assert_eq!(send(b, &[b"x"], Some(&at("255.255.255.255:9")), 0), Err(Errno::EACCES));
    connect(a, &Addr::Unspecified).unwrap();
    assert_eq!(peer(a), Err(Errno::ENOTCONN));
}

#[test]
fn options_are_kept_or_refused() {
    let _s = start();
    let s = socket(AF_INET, SOCK_STREAM, 0).unwrap();
    let int = |level, name| option(s, level, name).map(|v| i32::from_ne_bytes(v.bytes().try_into().unwrap()));
    let set = |level, name, v: i32| set_option(s, level, name, &v.to_ne_bytes());
    for (level, name, value) in [
        (6, 1, 1),
        (1, 9, 1),
        (6, 4, 11),
        (6, 5, 12),
        (6, 6, 13),
        (6, 12, 0),
        (6, 12, 1),
        (1, 2, 1),
        (1, 15, 1),
        (6, 18, 5000),
        (0, 2, 33),
        (0, 1, 16),
    ] {
        assert_eq!(set(level, name, value), Ok(()), "{level} {name}");
        assert_eq!(int(level, name), Ok(value), "{level} {name}");
    }
    assert_eq!((int(1, 39), int(1, 3), int(1, 38), int(1, 30)), (Ok(2), Ok(1), Ok(6), Ok(0)));
    assert_eq!(set(1, 8, 10_000), Ok(()));
    assert_eq!(int(1, 8), Ok(20_000));
    assert_eq!((set(0, 2, 0), set(0, 2, 256), set(0, 2, -1)), (Err(Errno::EINVAL), Err(Errno::EINVAL), Ok(())));
    assert_eq!(int(0, 2), Ok(64));
    assert_eq!(set(1, 5, 1), Err(Errno::ENOPROTOOPT));
    assert_eq!(set(0, 12345, 1), Err(Errno::ENOPROTOOPT));
    assert_eq!(socket(AF_INET, 3, 1), Err(Errno::EPERM));
    assert_eq!(socket(AF_INET, SOCK_STREAM, 99), Err(Errno::EPROTONOSUPPORT));
    assert_eq!(socket(77, SOCK_STREAM, 0), Err(Errno::EAFNOSUPPORT));
    assert_eq!(send(s, &[b"x"], None, 0).err(), Some(Errno::EPIPE));
    assert_eq!(read(s, 1), Err(Errno::ENOTCONN));
}

#[test]
fn two_threads_that_start_the_network_get_one() {
    let _s = start();
    fn other(_: usize) {
        listener(AF_INET, "127.0.0.1:81");
    }
    crate::sched::spawn(other, 0, 64 << 10).unwrap();
    // The other one's turn comes in the middle, if it may.
    donjon_base::preempt::host_set_pending();
    crate::netif::start().unwrap();
    crate::sched::yield_now();
    let c = socket(AF_INET, SOCK_STREAM, 0).unwrap();
    assert_eq!(connect(c, &at("127.0.0.1:81")), Ok(()), "the listener is not in this network");
}

#[test]
fn a_connection_is_not_lost_when_the_table_fills_up_while_accept_waits() {
    let _s = start();
    for (domain, name) in [(AF_INET, at("127.0.0.1:0")), (AF_UNIX, Addr::Unix((*b"\0full").into()))] {
        let l = socket(domain, SOCK_STREAM, 0).unwrap();
        bind(l, &name).unwrap();
        listen(l, 16).unwrap();
        fn server(l: usize) {
            assert_eq!(accept(l as i32, 0), Err(Errno::EMFILE));
        }
        crate::sched::spawn(server, l as usize, 64 << 10).unwrap();
        crate::sched::yield_now();
        let c = socket(domain, SOCK_STREAM, 0).unwrap();
        let before = crate::fd::limit();
        crate::fd::set_limit(c as u32 + 1);
        connect(c, &local(l).unwrap()).unwrap();
        while crate::sched::thread_count() > 1 {
            crate::sched::yield_now();
        }
        assert_eq!(accept(l, 0), Err(Errno::EMFILE));
        crate::fd::set_limit(before);
        let (a, _) = accept(l, 0).unwrap();
        assert_eq!(crate::fd::write(c, &[b"here"]), Ok(4));
        assert_eq!(read(a, 9).unwrap(), b"here");
    }
}

#[test]
fn what_is_closed_has_no_events_while_it_lingers() {
    use crate::io::epoll::{self, Event, Op};
    let _s = start();
    let (l, addr) = listener(AF_INET, "127.0.0.1:0");
    let c = socket(AF_INET, SOCK_STREAM, 0).unwrap();
    connect(c, &addr).unwrap();
    let (a, _) = accept(l, SOCK_NONBLOCK).unwrap();
    while crate::fd::write(a, &[&[0; 4096]]).is_ok() {}
    crate::fd::set_nonblocking(a, false).unwrap();
    set_option(a, SOL_SOCKET, so::LINGER, &[1, 0, 0, 0, 2, 0, 0, 0]).unwrap();
    let set = epoll::create(false).unwrap();
    epoll::ctl(set, a, Op::Add(Event { events: IN | OUT | RDHUP, data: 7 })).unwrap();
    fn closer(fd: usize) {
        crate::fd::close(fd as i32).unwrap();
    }
    crate::sched::spawn(closer, a as usize, 64 << 10).unwrap();
    crate::sched::yield_now();
    assert_eq!(crate::fd::status(a), Err(Errno::EBADF));
    crate::fd::write(c, &[b"too late"]).unwrap();
    let mut events = [Event::default(); 4];
    assert_eq!(epoll::wait(set, &mut events, Some(0)), Ok(0), "{events:?}");
    assert_eq!(crate::sched::thread_count(), 2, "nobody lingers");
}

/// Another machine on the guest's network, 10.0.0.2.
struct Peer(Stack);

struct ToGuest;

impl FrameSink for ToGuest {
    fn send(&mut self, header: NetHdr, head: &[u8], payload: &[&[u8]]) -> Sent {
        let frame = [&header.to_bytes(), head, &payload.concat()].concat();
        host::machine(|m| m.to_receive.push_back(frame));
        Sent::Done
    }
}

impl Peer {
    /// It listens at port 80; the guest is 10.0.0.1.
    fn new() -> (Peer, Handle) {
        netif::start().unwrap();
        netif::with(|s| s.add_address([10, 0, 0, 1].into(), 24)).unwrap().unwrap();
        let config = Config {
            mac: [2, 0, 0, 0, 0, 2],
            mtu: 1500,
            offload: Offload::default(),
            key: [1; 32],
            limits: Limits::for_memory(64 << 20),
            lasting: &[],
            any_ip: false,
            dhcp: false,
            slaac: false,
        };
        let mut s = Stack::new(config, clock::monotonic());
        s.add_address([10, 0, 0, 2].into(), 24).unwrap();
        let l = s.tcp_socket(Domain::V4).unwrap();
        s.bind(l, "10.0.0.2:80".parse().unwrap(), BindOptions::default()).unwrap();
        s.listen(l, 4).unwrap();
        (Peer(s), l)
    }

    /// Takes and answers what the guest has sent. Whether there was anything.
    fn turn(&mut self) -> bool {
        let now = clock::monotonic();
        let sent = host::machine(|m| core::mem::take(&mut m.sent));
        for frame in &sent {
            let (header, frame) = frame.split_first_chunk().unwrap();
            self.0.input(now, NetHdr::from_bytes(*header), frame);
        }
        self.0.output(now, &mut ToGuest);
        !sent.is_empty()
    }

    /// A connection of the guest's: its socket, and the peer's.
    fn connection(&mut self, listener: Handle) -> (i32, Handle) {
        let c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0).unwrap();
        assert_eq!(connect(c, &at("10.0.0.2:80")), Err(Errno::EINPROGRESS));
        while self.turn() {
            crate::sched::poll_now();
        }
        (c, self.0.accept(listener).unwrap().0)
    }
}

#[test]
fn at_the_end_connections_are_reset_or_finished_as_they_say() {
    let _s = start();
    let (mut peer, l) = Peer::new();
    let mut connection = || peer.connection(l);
    let (plain, reset, left) = (connection(), connection(), connection());
    crate::fd::write(plain.0, &[b"the end"]).unwrap();
    set_option(reset.0, SOL_SOCKET, so::LINGER, &[1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    // More than may be under way at a time.
    while crate::fd::write(left.0, &[&[0; 4096]]).is_ok() {}
    crate::fd::close(left.0).unwrap();
    netif::finish();
    peer.turn();
    let mut end = |s| {
        let mut buf = [0; 65536];
        let mut got = iter::repeat_with(|| peer.0.recv(s, &mut [&mut buf], RecvMode::Take));
        got.find(|r| !matches!(r, Ok(1..)))
    };
    assert_eq!(end(plain.1), Some(Ok(0)));
    assert_eq!([end(reset.1), end(left.1)], [Some(Err(Error::ConnectionReset)); 2]);
}

#[test]
fn a_second_connect_waits_for_what_the_first_one_began() {
    let _s = start();
    let (mut peer, l) = Peer::new();
    // They know each other's Ethernet addresses then.
    peer.connection(l);
    let c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0).unwrap();
    let addr = at("10.0.0.2:80");
    assert_eq!([connect(c, &addr), connect(c, &addr)], [Err(Errno::EINPROGRESS), Err(Errno::EALREADY)]);
    peer.turn();
    crate::fd::set_nonblocking(c, false).unwrap();
    assert_eq!([connect(c, &addr), connect(c, &addr)], [Ok(()), Err(Errno::EISCONN)]);
}
