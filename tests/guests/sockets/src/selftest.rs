//! The tests. Each prints `PASS name` or `FAILURE name: why`.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

type Outcome = Result<(), String>;
type Test = (&'static str, fn() -> Outcome);

pub fn main() {
    let tests: &[Test] = &[
        ("read-timeout", read_timeout),
        ("write-timeout", write_timeout),
        ("connect-timeout", connect_timeout),
        ("udp-timeout", udp_timeout),
        ("half-close", half_close),
        ("shutdown-both", shutdown_both),
        ("shutdown-read", shutdown_read),
        ("nodelay-is-not-inverted", nodelay),
        ("peek", peek),
        ("nonblocking", nonblocking),
        ("refused", refused),
        ("address-in-use", address_in_use),
        ("ports-never-zero", ports_never_zero),
        ("ephemeral-connects", ephemeral_connects),
        ("ipv6", ipv6),
        ("dual-stack", dual_stack),
        ("udp", udp),
        ("udp-unreachable", udp_unreachable),
        ("reset-is-seen", reset_is_seen),
        ("broken-pipe", broken_pipe),
        ("big-transfer", big_transfer),
        ("backlog", backlog),
        ("listener-survives", listener_survives),
        ("ttl", ttl),
        ("localhost", localhost),
        ("vectored", vectored),
    ];
    let mut failed = 0;
    for (name, test) in tests {
        match test() {
            Ok(()) => println!("PASS {name}"),
            Err(why) => {
                failed += 1;
                println!("FAILURE {name}: {why}");
            }
        }
    }
    println!("selftest: {} passed, {failed} failed", tests.len() - failed);
    std::process::exit(i32::from(failed > 0));
}

fn text(e: io::Error) -> String {
    format!("{e} ({:?})", e.raw_os_error())
}

fn ensure(ok: bool, what: impl Into<String>) -> Outcome {
    if ok { Ok(()) } else { Err(what.into()) }
}

fn pair() -> Result<(TcpStream, TcpStream), String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
    let client = TcpStream::connect(listener.local_addr().map_err(text)?).map_err(text)?;
    let (server, peer) = listener.accept().map_err(text)?;
    ensure(Some(peer) == client.local_addr().ok(), "accept's address is not the client's")?;
    Ok((client, server))
}

fn is_timeout(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn read_timeout() -> Outcome {
    let (mut client, mut server) = pair()?;
    let wait = Duration::from_millis(60);
    client.set_read_timeout(Some(wait)).map_err(text)?;
    ensure(client.read_timeout().map_err(text)? == Some(wait), "the timeout is not what was set")?;
    let started = Instant::now();
    let error = client.read(&mut [0; 8]).err().ok_or("read something")?;
    ensure(is_timeout(&error), format!("{error:?}"))?;
    ensure(started.elapsed() >= wait, format!("too early: {:?}", started.elapsed()))?;
    // It is a timeout, not an end.
    server.write_all(b"late").map_err(text)?;
    let mut got = [0; 4];
    client.read_exact(&mut got).map_err(text)?;
    ensure(&got == b"late", format!("{got:?}"))
}

fn write_timeout() -> Outcome {
    let (mut client, _server) = pair()?;
    client.set_write_timeout(Some(Duration::from_millis(50))).map_err(text)?;
    let block = [0; 64 << 10];
    for _ in 0..100_000 {
        let started = Instant::now();
        match client.write(&block) {
            Ok(_) => {}
            Err(e) if is_timeout(&e) => {
                return ensure(started.elapsed() < Duration::from_secs(5), "took far too long");
            }
            Err(e) => return Err(text(e)),
        }
    }
    Err("6 GB written that nobody reads".into())
}

fn connect_timeout() -> Outcome {
    // TEST-NET-1 (RFC 5737): nobody answers. Without a route the answer is an error at once, which is right too.
    let started = Instant::now();
    let error = TcpStream::connect_timeout(&"192.0.2.1:81".parse().expect("address"), Duration::from_millis(200))
        .err()
        .ok_or("connected")?;
    let kinds =
        [ErrorKind::TimedOut, ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable, ErrorKind::ConnectionRefused];
    ensure(kinds.contains(&error.kind()), text(error))?;
    ensure(started.elapsed() < Duration::from_secs(5), "took far too long")
}

fn udp_timeout() -> Outcome {
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(text)?;
    socket.set_read_timeout(Some(Duration::from_millis(30))).map_err(text)?;
    let error = socket.recv(&mut [0; 8]).err().ok_or("received something")?;
    ensure(is_timeout(&error), text(error))
}

fn half_close() -> Outcome {
    let (mut client, mut server) = pair()?;
    client.write_all(b"question").map_err(text)?;
    client.shutdown(Shutdown::Write).map_err(text)?;
    let mut got = String::new();
    server.read_to_string(&mut got).map_err(text)?;
    ensure(got == "question", format!("server got {got:?}"))?;
    let answer = vec![b'a'; 300_000];
    let sender = std::thread::spawn(move || server.write_all(&answer).map_err(text));
    let mut got = Vec::new();
    client.read_to_end(&mut got).map_err(text)?;
    sender.join().map_err(|_| "panic")??;
    ensure(got.len() == 300_000, format!("client got {} bytes", got.len()))?;
    let error = client.write(b"more").err().ok_or("wrote after shutdown")?;
    ensure(error.kind() == ErrorKind::BrokenPipe, text(error))
}

fn shutdown_both() -> Outcome {
    let (mut client, mut server) = pair()?;
    client.shutdown(Shutdown::Both).map_err(text)?;
    ensure(client.read(&mut [0; 4]).map_err(text)? == 0, "own read after shutdown is not EOF")?;
    ensure(server.read(&mut [0; 4]).map_err(text)? == 0, "peer does not see EOF")
}

fn shutdown_read() -> Outcome {
    let (mut client, mut server) = pair()?;
    client.shutdown(Shutdown::Read).map_err(text)?;
    ensure(client.read(&mut [0; 4]).map_err(text)? == 0, "not EOF")?;
    client.write_all(b"still").map_err(text)?;
    let mut got = [0; 5];
    server.read_exact(&mut got).map_err(text)?;
    ensure(&got == b"still", "the other direction is closed too")
}

fn nodelay() -> Outcome {
    let (client, _server) = pair()?;
    ensure(!client.nodelay().map_err(text)?, "on at first")?;
    client.set_nodelay(true).map_err(text)?;
    ensure(client.nodelay().map_err(text)?, "off after it was switched on")?;
    client.set_nodelay(false).map_err(text)?;
    ensure(!client.nodelay().map_err(text)?, "on after it was switched off")
}

fn peek() -> Outcome {
    let (mut client, mut server) = pair()?;
    server.write_all(b"abc").map_err(text)?;
    let mut got = [0; 3];
    while client.peek(&mut got).map_err(text)? < 3 {}
    client.read_exact(&mut got).map_err(text)?;
    ensure(&got == b"abc", format!("{got:?}"))
}

fn nonblocking() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
    listener.set_nonblocking(true).map_err(text)?;
    let error = listener.accept().err().ok_or("accepted something")?;
    ensure(error.kind() == ErrorKind::WouldBlock, text(error))?;
    let (mut client, _server) = pair()?;
    client.set_nonblocking(true).map_err(text)?;
    let error = client.read(&mut [0; 4]).err().ok_or("read something")?;
    ensure(error.kind() == ErrorKind::WouldBlock, text(error))
}

fn refused() -> Outcome {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(text)?;
    let error = TcpStream::connect(free).err().ok_or("connected")?;
    ensure(error.kind() == ErrorKind::ConnectionRefused, text(error))
}

fn address_in_use() -> Outcome {
    let first = TcpListener::bind("127.0.0.1:0").map_err(text)?;
    let error = TcpListener::bind(first.local_addr().map_err(text)?).err().ok_or("bound twice")?;
    ensure(error.kind() == ErrorKind::AddrInUse, text(error))?;
    let address = first.local_addr().map_err(text)?;
    drop(first);
    TcpListener::bind(address).map(drop).map_err(text)
}

fn ports_never_zero() -> Outcome {
    // More than there are ports: the choice must wrap around, and not onto 0.
    for i in 0..70_000 {
        let port = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).map_err(text)?.port();
        ensure(port >= 1024, format!("bind {i} gave port {port}"))?;
    }
    Ok(())
}

fn ephemeral_connects() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
    let address = listener.local_addr().map_err(text)?;
    for i in 0..2_000 {
        let client = TcpStream::connect(address).map_err(|e| format!("connection {i}: {}", text(e)))?;
        let (mut server, peer) = listener.accept().map_err(text)?;
        ensure(peer.port() >= 1024, format!("connection {i} from port {}", peer.port()))?;
        drop(client);
        ensure(server.read(&mut [0; 1]).map_err(text)? == 0, "no EOF")?;
    }
    Ok(())
}

fn ipv6() -> Outcome {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).map_err(text)?;
    let mut client = TcpStream::connect(listener.local_addr().map_err(text)?).map_err(text)?;
    let (mut server, peer) = listener.accept().map_err(text)?;
    ensure(peer.ip() == Ipv6Addr::LOCALHOST, format!("{peer}"))?;
    client.write_all(b"six").map_err(text)?;
    let mut got = [0; 3];
    server.read_exact(&mut got).map_err(text)?;
    ensure(&got == b"six", format!("{got:?}"))
}

fn dual_stack() -> Outcome {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 9000)).map_err(text)?;
    let port = listener.local_addr().map_err(text)?.port();
    let _client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(text)?;
    let (_, peer) = listener.accept().map_err(text)?;
    match peer {
        SocketAddr::V6(a) if a.ip().to_ipv4_mapped() == Some(Ipv4Addr::LOCALHOST) => Ok(()),
        other => Err(format!("peer {other}")),
    }
}

fn udp() -> Outcome {
    let a = UdpSocket::bind("127.0.0.1:0").map_err(text)?;
    let b = UdpSocket::bind("127.0.0.1:0").map_err(text)?;
    let (at_a, at_b) = (a.local_addr().map_err(text)?, b.local_addr().map_err(text)?);
    a.send_to(b"one", at_b).map_err(text)?;
    a.send_to(&[], at_b).map_err(text)?;
    a.send_to(&[7; 1400], at_b).map_err(text)?;
    let mut buffer = [0; 2000];
    ensure(b.peek_from(&mut buffer).map_err(text)? == (3, at_a), "peek")?;
    ensure(b.recv_from(&mut buffer).map_err(text)? == (3, at_a) && &buffer[..3] == b"one", "first")?;
    ensure(b.recv_from(&mut buffer).map_err(text)? == (0, at_a), "empty datagram")?;
    // What does not fit is cut off, and the rest of the datagram is gone.
    ensure(b.recv_from(&mut buffer[..10]).map_err(text)? == (10, at_a), "truncated")?;
    b.connect(at_a).map_err(text)?;
    b.send(b"back").map_err(text)?;
    ensure(a.recv(&mut buffer).map_err(text)? == 4, "reply")?;
    let stranger = UdpSocket::bind("127.0.0.1:0").map_err(text)?;
    stranger.send_to(b"no", at_b).map_err(text)?;
    a.send_to(b"yes!", at_b).map_err(text)?;
    ensure(b.recv(&mut buffer).map_err(text)? == 4, "a connected socket heard a stranger")?;
    let error = a.send_to(&vec![0; 70_000], at_b).err().ok_or("sent 70,000 bytes in one datagram")?;
    ensure(error.raw_os_error() == Some(90), text(error))
}

fn udp_unreachable() -> Outcome {
    let free = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).map_err(text)?;
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(text)?;
    socket.connect(free).map_err(text)?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).map_err(text)?;
    socket.send(b"anyone?").map_err(text)?;
    let error = socket.recv(&mut [0; 8]).err().ok_or("received something")?;
    ensure(error.kind() == ErrorKind::ConnectionRefused, text(error))
}

fn reset_is_seen() -> Outcome {
    let (mut client, server) = pair()?;
    // Closing with unread data resets (RFC 2525 §2.17).
    client.write_all(b"unread").map_err(text)?;
    let mut one = [0];
    server.peek(&mut one).map_err(text)?;
    drop(server);
    client.set_read_timeout(Some(Duration::from_secs(5))).map_err(text)?;
    match client.read(&mut one) {
        Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

fn broken_pipe() -> Outcome {
    let (mut client, server) = pair()?;
    drop(server);
    for _ in 0..1000 {
        if let Err(e) = client.write(&[0; 1000]) {
            let expected = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
            return ensure(expected.contains(&e.kind()), text(e));
        }
        std::thread::yield_now();
    }
    Err("1000 writes to a closed connection succeeded".into())
}

fn big_transfer() -> Outcome {
    let (mut client, mut server) = pair()?;
    const LEN: usize = 8 << 20;
    let sender = std::thread::spawn(move || {
        let mut sent = 0usize;
        while sent < LEN {
            let n = 1 + (sent * 7) % 50_000;
            let n = n.min(LEN - sent);
            let block: Vec<u8> = (sent..sent + n).map(|i| (i % 251) as u8).collect();
            client.write_all(&block).map_err(text)?;
            sent += n;
        }
        Ok::<(), String>(())
    });
    let mut got = Vec::new();
    server.read_to_end(&mut got).map_err(text)?;
    sender.join().map_err(|_| "panic")??;
    ensure(got.len() == LEN, format!("{} bytes", got.len()))?;
    ensure(got.iter().enumerate().all(|(i, b)| *b == (i % 251) as u8), "bytes differ")
}

fn backlog() -> Outcome {
    // Connections wait to be accepted, with their data.
    let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
    let address = listener.local_addr().map_err(text)?;
    let mut clients = Vec::new();
    for i in 0..50u8 {
        let mut client = TcpStream::connect_timeout(&address, Duration::from_secs(10)).map_err(text)?;
        client.write_all(&[i]).map_err(text)?;
        clients.push(client);
    }
    for _ in 0..50 {
        let (mut server, _) = listener.accept().map_err(text)?;
        let mut one = [0];
        server.read_exact(&mut one).map_err(text)?;
        server.write_all(&one).map_err(text)?;
    }
    for (i, client) in clients.iter_mut().enumerate() {
        let mut one = [0];
        client.read_exact(&mut one).map_err(text)?;
        ensure(usize::from(one[0]) == i, "answers are mixed up")?;
    }
    Ok(())
}

fn listener_survives() -> Outcome {
    // A client that is gone before it is accepted costs the listener nothing.
    let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
    let address = listener.local_addr().map_err(text)?;
    for _ in 0..100 {
        drop(TcpStream::connect(address).map_err(text)?);
    }
    let mut client = TcpStream::connect(address).map_err(text)?;
    client.write_all(b"!").map_err(text)?;
    for _ in 0..101 {
        let (mut server, _) = listener.accept().map_err(text)?;
        let mut one = [0];
        if server.read(&mut one).map_err(text)? == 1 {
            return Ok(());
        }
    }
    Err("the last connection was not accepted".into())
}

fn ttl() -> Outcome {
    let (client, _server) = pair()?;
    client.set_ttl(17).map_err(text)?;
    ensure(client.ttl().map_err(text)? == 17, "not what was set")
}

fn localhost() -> Outcome {
    let found: Vec<SocketAddr> = ("localhost", 80).to_socket_addrs().map_err(text)?.collect();
    ensure(found.iter().any(|a| a.ip().is_loopback()), format!("{found:?}"))?;
    let numeric: Vec<SocketAddr> = "10.1.2.3:4".to_socket_addrs().map_err(text)?.collect();
    ensure(numeric == ["10.1.2.3:4".parse().expect("address")], format!("{numeric:?}"))?;
    let missing = ("no-such-name.invalid", 80).to_socket_addrs();
    ensure(missing.is_err(), "a name under .invalid was found")
}

fn vectored() -> Outcome {
    let (mut client, mut server) = pair()?;
    let sent = client
        .write_vectored(&[io::IoSlice::new(b"ab"), io::IoSlice::new(b""), io::IoSlice::new(b"cde")])
        .map_err(text)?;
    ensure(sent == 5, format!("sent {sent}"))?;
    let (mut a, mut b) = ([0; 1], [0; 4]);
    let got = server.read_vectored(&mut [io::IoSliceMut::new(&mut a), io::IoSliceMut::new(&mut b)]).map_err(text)?;
    ensure(got == 5 && &a == b"a" && &b == b"bcde", format!("{got} {a:?} {b:?}"))
}
