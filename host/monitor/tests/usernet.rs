//! User-mode networking: real clients and servers of this host against a guest that runs donjon-net.

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use common::{Ran, Spec, first_line, image, launcher, pack, run_with, write};
use donjon_abi::manifest::{Egress, Limit};

struct Guest(Child, u16);

impl Guest {
    /// An echo server behind a port of this host.
    fn echo(delay: &str) -> Guest {
        Guest::echo_with(&[], delay)
    }

    fn echo_with(options: &[&str], delay: &str) -> Guest {
        Guest::echo_of(image(), options, delay)
    }

    fn echo_of(image: &Path, options: &[&str], delay: &str) -> Guest {
        let port = free_port();
        let publish = format!("{port}:7");
        let udp = format!("{port}:7/udp");
        let options = [&["-p", &publish, "-p", &udp], options].concat();
        let child = launcher(image, &options, &["echo", delay]).spawn().unwrap();
        Guest(child, port)
    }

    fn ready(mut self) -> Guest {
        assert_eq!(first_line(&mut self.0), "ready");
        self
    }

    fn connect(&self) -> TcpStream {
        let s = TcpStream::connect((Ipv4Addr::LOCALHOST, self.1)).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        s
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that nothing listens on, for TCP and UDP.
fn free_port() -> u16 {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Answers once: echoes to the end of the stream.
fn echo_server(listener: TcpListener) -> std::thread::JoinHandle<usize> {
    std::thread::spawn(move || {
        let (mut s, _) = listener.accept().unwrap();
        let (mut total, mut buffer) = (0, vec![0; 65536]);
        loop {
            let n = s.read(&mut buffer).unwrap();
            if n == 0 {
                return total;
            }
            total += n;
            s.write_all(&buffer[..n]).unwrap();
        }
    })
}

fn v4(addr: Ipv4Addr, prefix: u8, port: u16) -> Egress {
    Egress { protocol: 0, prefix, port, addr: addr.to_ipv6_mapped().octets() }
}

fn gateway_image(name: &str, port: u16) -> std::path::PathBuf {
    write(name, &pack(&Spec { egress: vec![v4(Ipv4Addr::new(10, 0, 2, 2), 128, port)], ..Spec::default() }))
}

#[test]
fn the_gateway_answers_arp() {
    let r = run_with(image(), &[], &["arp"]);
    assert_eq!(r.out, "gateway [52, 55, a, 0, 2, 2]\n", "{r:?}");
}

#[test]
fn malformed_frames_hurt_nothing() {
    // The same frames in every run.
    for seed in 1..=4 {
        let seed = (0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed)).to_string();
        let r = run_with(image(), &[], &["junk", &seed, "20000"]);
        assert_eq!(r.out, "gateway [52, 55, a, 0, 2, 2]\n", "seed {seed}: {r:?}");
    }
}

#[test]
fn published_port_echoes_and_half_close_passes() {
    let guest = Guest::echo("0").ready();
    for _ in 0..3 {
        let mut s = guest.connect();
        s.write_all(b"hello").unwrap();
        s.shutdown(Shutdown::Write).unwrap();
        let mut all = vec![];
        s.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"hello");
    }
}

#[test]
fn bulk_comes_back_whole() {
    comes_back_whole(&Guest::echo("0").ready());
}

/// The same where the monitor holds nothing: what one side does not take stays with the other.
#[test]
fn bulk_comes_back_whole_without_being_held() {
    comes_back_whole(&Guest::echo_with(&["--held", "0"], "0").ready());
}

fn comes_back_whole(guest: &Guest) {
    let data: Vec<u8> = (0..20_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut s = guest.connect();
    let mut reader = s.try_clone().unwrap();
    let expected = data.clone();
    let reading = std::thread::spawn(move || {
        let mut all = vec![];
        reader.read_to_end(&mut all).unwrap();
        assert!(all == expected, "{} of {} bytes", all.len(), expected.len());
    });
    s.write_all(&data).unwrap();
    s.shutdown(Shutdown::Write).unwrap();
    reading.join().unwrap();
}

#[test]
fn a_slow_reader_stops_the_sender_and_loses_nothing() {
    stops_and_loses_nothing(&Guest::echo("0").ready());
}

#[test]
fn a_slow_reader_loses_nothing_that_is_not_held() {
    let guest = Guest::echo_with(&["--held", "0"], "0").ready();
    stops_and_loses_nothing(&guest);
    // A connection that waits for room is no work as long as there is none.
    let before = processor_time(guest.0.id());
    let mut s = guest.connect();
    s.set_nonblocking(true).unwrap();
    fill(&mut s);
    let filled = processor_time(guest.0.id());
    std::thread::sleep(Duration::from_secs(2));
    let idle = processor_time(guest.0.id()) - filled;
    assert!(idle < 20, "{idle} hundredths of a second while nothing moved (filling took {})", filled - before);
}

/// User and system time of a process so far, hundredths of a second.
fn processor_time(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after = stat.rsplit_once(')').unwrap().1;
    after.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum()
}

fn stops_and_loses_nothing(guest: &Guest) {
    let mut s = guest.connect();
    s.set_nonblocking(true).unwrap();
    let sent = fill(&mut s);
    s.set_nonblocking(false).unwrap();
    s.shutdown(Shutdown::Write).unwrap();
    let mut all = vec![];
    s.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), sent);
}

/// Writes to it as long as it takes anything, and returns how many bytes it took. Nobody reads: after what all queues hold, writing must block.
fn fill(s: &mut TcpStream) -> usize {
    let (chunk, mut sent) = (vec![7u8; 65536], 0usize);
    let mut idle = 0;
    while idle < 200 {
        match s.write(&chunk) {
            Ok(n) => {
                sent += n;
                idle = 0;
                assert!(sent < 200_000_000, "there is no back-pressure");
            }
            Err(_) => {
                idle += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    sent
}

/// What the guest has sent to those who do not read fills no more of the stacks than leaves room for others.
#[test]
fn a_crowd_that_does_not_read_locks_nobody_out() {
    // What the guest holds must not be what is short.
    let large = write("crowd", &pack(&Spec { memory: 256 << 20, ..Spec::default() }));
    let guest = Guest::echo_of(&large, &[], "0").ready();
    let mut crowd: Vec<(TcpStream, usize)> = (0..500).map(|_| (guest.connect(), 0)).collect();
    for (s, _) in &crowd {
        s.set_nonblocking(true).unwrap();
    }
    for round in 0..20 {
        for (s, sent) in &mut crowd {
            while *sent < 600_000
                && let Ok(n) = s.write(&[7; 20_000])
            {
                *sent += n;
            }
        }
        let mut s = guest.connect();
        let mut answer = [0; 5];
        s.write_all(b"hello").and_then(|()| s.read_exact(&mut answer)).unwrap_or_else(|e| panic!("{round}: {e}"));
        assert_eq!(&answer, b"hello");
    }
}

#[test]
fn a_hundred_connections_at_once() {
    let guest = Guest::echo("0").ready();
    let mut all: Vec<TcpStream> = (0..100).map(|_| guest.connect()).collect();
    for (i, s) in all.iter_mut().enumerate() {
        write!(s, "number {i}").unwrap();
    }
    for (i, s) in all.iter_mut().enumerate().rev() {
        let expected = format!("number {i}");
        let mut got = vec![0; expected.len()];
        s.read_exact(&mut got).unwrap();
        assert_eq!(got, expected.as_bytes());
    }
}

#[test]
fn many_connections_one_after_another() {
    let guest = Guest::echo("0").ready();
    for i in 0..2000 {
        let mut s = guest.connect();
        s.write_all(b"x").unwrap();
        let mut got = [0];
        s.read_exact(&mut got).unwrap_or_else(|e| panic!("connection {i}: {e}"));
    }
}

#[test]
fn resets_pass_both_ways() {
    let guest = Guest::echo("0").ready();
    let mut s = guest.connect();
    s.write_all(b"R").unwrap();
    assert_eq!(s.read(&mut [0; 10]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    // A client that disappears in the middle does not hurt the next.
    for _ in 0..10 {
        let mut s = guest.connect();
        s.write_all(&vec![1; 1_000_000]).unwrap();
        rustix::net::sockopt::set_socket_linger(&s, Some(Duration::ZERO)).unwrap();
        drop(s);
    }
    let mut s = guest.connect();
    s.write_all(b"still").unwrap();
    let mut got = [0; 5];
    s.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still");
}

#[test]
fn a_connection_that_comes_while_the_guest_boots_is_served() {
    let guest = Guest::echo("300");
    let mut tries = 0;
    let mut s = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, guest.1)) {
            Ok(s) => break s,
            Err(_) => {
                tries += 1;
                assert!(tries < 2000, "the monitor does not listen");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    };
    s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    s.write_all(b"early").unwrap();
    let mut got = [0; 5];
    s.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"early");
}

#[test]
fn published_udp_echoes() {
    let guest = Guest::echo("0").ready();
    let s = UdpSocket::bind("127.0.0.1:0").unwrap();
    s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for n in [1usize, 1000, 1472, 9000] {
        s.send_to(&vec![n as u8; n], (Ipv4Addr::LOCALHOST, guest.1)).unwrap();
        let mut got = vec![0; 65536];
        let (len, from) = s.recv_from(&mut got).unwrap();
        assert_eq!((len, got[0], from.port()), (n, n as u8, guest.1));
    }
}

/// All of this host's own addresses look like the gateway: an answer goes to whom it is for, not to who has the same port at another of them.
#[test]
fn peers_with_the_same_port_get_their_own_answers() {
    let guest = Guest::echo("0").ready();
    let victim = UdpSocket::bind("127.0.0.1:0").unwrap();
    let other = UdpSocket::bind(("127.0.0.2", victim.local_addr().unwrap().port())).unwrap();
    for (socket, text) in [(&victim, b"a"), (&other, b"b"), (&victim, b"c"), (&other, b"d")] {
        socket.send_to(text, (Ipv4Addr::LOCALHOST, guest.1)).unwrap();
    }
    for (socket, texts) in [(&victim, [b'a', b'c']), (&other, [b'b', b'd'])] {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for text in texts {
            let mut got = [0];
            socket.recv(&mut got).unwrap();
            assert_eq!(got, [text]);
        }
    }
}

/// A port that is published on all addresses, and twice: the answer comes from where the question went to.
#[test]
fn datagrams_are_answered_from_the_address_that_they_came_to() {
    let [first, second, third] = [(); 3].map(|()| free_port());
    let (v4, v6) = (UdpSocket::bind("0.0.0.0:0").unwrap(), UdpSocket::bind("[::1]:0"));
    let mut published = vec![format!("0.0.0.0:{first}:7/udp"), format!("0.0.0.0:{second}:7/udp")];
    published.extend(v6.is_ok().then(|| format!("[::]:{third}:7/udp")));
    let options: Vec<&str> = published.iter().flat_map(|p| ["-p", p]).collect();
    let guest = Guest(launcher(image(), &options, &["echo", "0"]).spawn().unwrap(), first).ready();
    let ask = |socket: &UdpSocket, to: SocketAddr| {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.send_to(b"question", to).unwrap();
        let mut got = [0; 100];
        assert_eq!(socket.recv_from(&mut got).unwrap(), (8, to));
    };
    for _ in 0..2 {
        for (host, port) in [(2, first), (3, first), (1, second), (2, second)] {
            ask(&v4, SocketAddr::from(([127, 0, 0, host], port)));
        }
    }
    match v6 {
        Ok(v6) => ask(&v6, SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, third))),
        Err(_) => donjon_skip::skip(&donjon_skip::this_test(), "needs IPv6's loopback"),
    }
    drop(guest);
}

#[test]
fn the_guest_connects_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let image = gateway_image("out", port);
    let server = echo_server(listener);
    let r = run_with(&image, &[], &["connect", &format!("10.0.2.2:{port}"), "3000000"]);
    assert_eq!((r.code, r.out.as_str()), (Some(0), "sent 3000000 received 3000000 right true\n"), "{r:?}");
    assert_eq!(server.join().unwrap(), 3_000_000);
}

/// The manifest's limit, and the operator's in its place.
#[test]
fn what_the_guest_sends_keeps_to_its_limit() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let gateway = std::net::Ipv4Addr::new(10, 0, 2, 2).to_ipv6_mapped().octets();
    let egress = vec![Egress { protocol: 6, prefix: 128, port, addr: gateway }];
    let limit = Limit { connections: 0, send: 500_000 };
    let image = write("limited", &pack(&Spec { egress, limit, ..Spec::default() }));
    for (options, send) in [(&[][..], 500_000), (&["--limit-send", "1000000"], 1_000_000)] {
        let server = echo_server(listener.try_clone().unwrap());
        let start = std::time::Instant::now();
        let r = run_with(&image, options, &["connect", &format!("10.0.2.2:{port}"), "1500000"]);
        let most = f64::from((send / 4).max(131_072)) + f64::from(send) * start.elapsed().as_secs_f64();
        assert_eq!((r.code, r.out.as_str()), (Some(0), "sent 1500000 received 1500000 right true\n"), "{r:?}");
        assert!(most >= 1_500_000.0 && r.err.contains("faster than its limit"), "{r:?}");
        assert_eq!(server.join().unwrap(), 1_500_000);
    }
}

#[test]
fn the_guest_connects_out_over_ipv6() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        donjon_skip::skip("the_guest_connects_out_over_ipv6", "needs IPv6's loopback");
        return;
    };
    let port = listener.local_addr().unwrap().port();
    let addr = "fd00::2".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let egress = vec![Egress { protocol: 6, prefix: 128, port, addr }];
    let image = write("out6", &pack(&Spec { egress, ..Spec::default() }));
    let server = echo_server(listener);
    let r = run_with(&image, &[], &["connect", &format!("[fd00::2]:{port}"), "1000"]);
    assert_eq!((r.code, r.out.as_str()), (Some(0), "sent 1000 received 1000 right true\n"), "{r:?}");
    server.join().unwrap();
}

#[test]
fn a_refused_connection_is_refused_to_the_guest() {
    let port = free_port();
    let r = run_with(&gateway_image("refused", port), &[], &["connect", &format!("10.0.2.2:{port}"), "1"]);
    assert_eq!(r.out, "error ConnectionRefused\n", "{r:?}");
}

#[test]
fn what_the_manifest_does_not_name_is_out_of_reach() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let to = format!("10.0.2.2:{port}");
    let r = run_with(image(), &[], &["connect", &to, "1"]);
    assert_eq!(r.out, "error ConnectionRefused\n", "FAILURE, the guest got out: {r:?}");
    let other = gateway_image("other-port", port ^ 1);
    let r = run_with(&other, &[], &["connect", &to, "1"]);
    assert_eq!(r.out, "error ConnectionRefused\n", "FAILURE, the guest got out: {r:?}");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "FAILURE, somebody has connected");
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_nonblocking(true).unwrap();
    let r = run_with(image(), &[], &["datagram", &format!("10.0.2.2:{}", udp.local_addr().unwrap().port())]);
    assert_eq!(r.out, "no answer\n", "{r:?}");
    assert!(udp.recv(&mut [0; 10]).is_err(), "FAILURE, a datagram got out");
}

#[test]
fn the_guest_sends_datagrams_out() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let port = udp.local_addr().unwrap().port();
    let image = gateway_image("udp", port);
    let server = std::thread::spawn(move || {
        let mut got = [0; 100];
        let (n, from) = udp.recv_from(&mut got).unwrap();
        assert_eq!(&got[..n], b"question");
        udp.send_to(b"answer", from).unwrap();
    });
    let to = format!("10.0.2.2:{port}");
    let r = run_with(&image, &[], &["datagram", &to]);
    assert_eq!(r.out, format!("{to} says answer\n"), "{r:?}");
    server.join().unwrap();
}

/// The guest's resolver is the host's first one, which the monitor must know before it is in its jail.
#[test]
fn the_guests_resolver_is_the_hosts() {
    let server = UdpSocket::bind("127.0.53.9:53");
    let mounts = std::process::Command::new("unshare").args(["-m", "true"]).status();
    let (Ok(server), true) = (server, mounts.is_ok_and(|s| s.success())) else {
        donjon_skip::skip(&donjon_skip::this_test(), "needs root, for another /etc/resolv.conf and port 53");
        return;
    };
    let conf = write("resolv.conf", b"nameserver 127.0.53.9\n");
    let image = gateway_image("resolver", 1);
    let plain = launcher(&image, &[], &["datagram", "10.0.2.3:53"]);
    let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    let mut command = std::process::Command::new("unshare");
    command.args(["-m", "sh", "-c", script]).arg(conf).arg(plain.get_program()).args(plain.get_args());
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut question = [0; 100];
    let asked =
        server.recv_from(&mut question).map(|(n, from)| (question[..n].to_vec(), server.send_to(b"answer", from)));
    let r: Ran = child.wait_with_output().unwrap().into();
    assert_eq!(r.out, "10.0.2.3:53 says answer\n", "{r:?} {asked:?}");
}

#[test]
fn only_declared_ports_are_published() {
    let r = run_with(image(), &["-p", "8080:80"], &["hello"]);
    assert_eq!((r.code, r.out.as_str()), (Some(2), ""), "{r:?}");
    assert!(r.err.contains("does not declare to listen on tcp port 80") && r.err.contains("--listen-any"), "{r:?}");
    let r = run_with(image(), &["-p", "0:80", "--listen-any"], &["hello"]);
    assert_eq!(r.out, "hello from test-guest\n", "{r:?}");
}

#[test]
fn a_port_in_use_is_said_before_the_guest_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(addr) = taken.local_addr().unwrap() else { panic!("not IPv4") };
    let r: Ran = launcher(image(), &["-p", &format!("{}:7", addr.port())], &["hello"]).output().unwrap().into();
    assert_eq!((r.code, r.out.as_str()), (Some(71), ""), "{r:?}");
    assert!(r.err.contains(&format!("cannot publish tcp port {addr}")) && r.err.contains("hint: "), "{r:?}");
    let r = run_with(image(), &["-p", "192.0.2.1:8080:7"], &["hello"]);
    assert_eq!((r.code, IpAddr::V4(Ipv4Addr::LOCALHOST).is_loopback()), (Some(71), true), "{r:?}");
    let r = run_with(image(), &["--net", "none", "-p", "8080:80"], &["hello"]);
    assert_eq!(r.code, Some(2), "{r:?}");
}
