//! Forwarding, with an upstream that notes what it gets.

use crate::harness::{Server, free_address};
use crate::http2::{self, END_HEADERS, END_STREAM, HEADERS};
use donjon_web_format::{Config, Limits, Proxy, Rule};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What an upstream has seen: connections, and requests with head and body.
#[derive(Default)]
struct Seen {
    connections: AtomicU32,
    requests: Mutex<Vec<(String, Vec<u8>)>>,
}

impl Seen {
    /// How many requests began like this.
    fn count(&self, start: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|(head, _)| head.starts_with(start)).count()
    }

    fn last(&self) -> (String, Vec<u8>) {
        self.requests.lock().unwrap().last().unwrap().clone()
    }
}

/// An HTTP/1.1 server that answers by path.
fn upstream() -> (SocketAddr, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Seen::default()));
    let result = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            seen.connections.fetch_add(1, Ordering::Relaxed);
            let seen = seen.clone();
            std::thread::spawn(move || while answer(&stream, &seen).is_some() {});
        }
    });
    (address, result)
}

fn answer(mut stream: &TcpStream, seen: &Seen) -> Option<()> {
    let mut reader = BufReader::with_capacity(1, stream);
    let (mut head, mut body) = (String::new(), vec![]);
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let lower = head.to_ascii_lowercase();
    let field = |name: &str| lower.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    // Its answer does not wait for a body.
    if head.starts_with("POST /api/early ") {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").ok()?;
    }
    if head.contains(" /api/refused ") {
        // Before the body, which is then read and thrown away.
        let len = field("content-length:")?.parse().ok()?;
        seen.requests.lock().unwrap().push((lower.clone(), vec![]));
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").ok()?;
        return (std::io::copy(&mut reader.take(len), &mut std::io::sink()).ok()? == len).then_some(());
    }
    if field("transfer-encoding:") == Some("chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let len = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut chunk = vec![0; len + 2];
            reader.read_exact(&mut chunk).ok()?;
            body.extend(&chunk[..len]);
            if len == 0 {
                break;
            }
        }
    } else if let Some(len) = field("content-length:") {
        body.resize(len.parse().ok()?, 0);
        reader.read_exact(&mut body).ok()?;
    }
    let path = head.split(' ').nth(1)?.to_owned();
    seen.requests.lock().unwrap().push((lower.clone(), body.clone()));
    let mut say = |text: &str| stream.write_all(text.as_bytes()).ok();
    match path.as_str() {
        "/api/echo" => {
            say(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()))?;
            stream.write_all(&body).ok()
        }
        "/api/stream" => {
            say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-End: 2\r\n\r\n")?;
            for _ in 0..3 {
                say("3\r\nabc\r\n")?;
                std::thread::sleep(Duration::from_millis(300));
            }
            say("0\r\n\r\n")
        }
        "/api/never" => {
            std::thread::sleep(Duration::from_secs(20));
            None
        }
        // Says that the connection stays, and closes it.
        "/api/leaves" => {
            say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            None
        }
        // Closes it without an answer.
        "/api/dies" => None,
        "/api/short-lived" => say("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1, max=9\r\nContent-Length: 2\r\n\r\nok"),
        "/api/trailers" => say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"),
        "/api/empty" => say("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"),
        "/api/nonsense" => say("hello?\r\n\r\n"),
        "/api/cut" => {
            say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")?;
            None
        }
        // Speaks whatever it is asked for: once it has, all that comes is the other protocol's.
        "/api/any" => match field("upgrade:") {
            Some(protocol) => {
                say(&format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: {protocol}\r\n\r\n"
                ))?;
                let mut rest = String::new();
                reader.read_to_string(&mut rest).ok()?;
                seen.requests.lock().unwrap().push((rest, vec![]));
                None
            }
            None => say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"),
        },
        "/api/socket" => {
            say("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nwelcome")?;
            let mut buffer = [0; 1024];
            loop {
                let n = stream.read(&mut buffer).ok().filter(|n| *n > 0)?;
                stream.write_all(&buffer[..n]).ok()?;
            }
        }
        _ => say("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    }
}

fn proxied(upstream: SocketAddr, limits: Limits) -> Server {
    let proxies = vec![Proxy { prefix: "/api".into(), upstream: upstream.to_string() }];
    Server::start(Config { proxies, limits, ..Config::default() }, &[("/index.html", b"home")])
}

#[test]
fn requests_and_headers() {
    let (address, seen) = upstream();
    let server = proxied(address, Limits::default());
    let r = server.ask(
        "POST /api/echo HTTP/1.1\r\nHost: site.example\r\nContent-Length: 5\r\nConnection: x-secret\r\nX-Secret: 1\r\n\
         X-Forwarded-For: 9.9.9.9\r\nForwarded: for=9.9.9.9\r\nTE: trailers\r\nX-Kept: 2\r\nX_Kept: 3\r\nX-Real-IP: 9.9.9.9\r\n\
         X_Real-IP: 9.9.9.9\r\nX_Forwarded_For: 9.9.9.9\r\nX-Forwarded_Host: 9.9.9.9\r\nX-Forwarded-Port: 9999\r\nX_FORWARDED_PROTO: https\r\n\
         Proxy: http://9.9.9.9/\r\n\r\nhello",
    );
    assert_eq!((r.status, r.text().as_str()), (200, "hello"));
    let (head, body) = seen.last();
    assert_eq!(body, b"hello");
    for line in [
        "host: site.example",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: site.example",
        "x-kept: 2",
        "x_kept: 3",
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    for gone in ["x-secret", "9.9.9.9", "9999", "https", "\r\nte:"] {
        assert!(!head.contains(gone), "{gone} in {head}");
    }
    let r = server.get("/api/stream");
    assert_eq!((r.text().as_str(), r.header("x-hop"), r.header("x-end")), ("abcabcabc", None, Some("2")));
    assert_eq!(server.get("/").text(), "home");
    assert_eq!(server.get("/api/unknown?q=1").status, 404);
    assert!(seen.last().0.starts_with("get /api/unknown?q=1 http/1.1"));
}

/// RFC 9113 §8.2.3: HTTP/2 may have a field for each cookie, HTTP/1.1 has one for all.
#[test]
fn cookies_are_one_field() {
    let (address, seen) = upstream();
    let server = proxied(address, Limits::default());
    let mut client = http2::open(&server);
    // `cookie` is 32 in HPACK's static table: 15 and 17.
    let cookie = |value: &str| [&[0x0f, 17, value.len() as u8], value.as_bytes()].concat();
    let block = [http2::request("/api/echo"), cookie("a=1"), cookie("b=2"), cookie("c=\"\"")].concat();
    client.send(http2::frame(HEADERS, END_STREAM | END_HEADERS, 1, &block));
    assert_eq!(http2::status(&mut client, 1), 200);
    let (head, _) = seen.last();
    assert!(head.contains("\r\ncookie: a=1; b=2; c=\"\"\r\n"), "{head}");
    assert_eq!(head.matches("cookie").count(), 1, "{head}");
}

/// HTTP/1.1 has a Host field, whatever the client speaks (RFC 9112 §3.2).
#[test]
fn a_host_is_named() {
    let (address, seen) = upstream();
    let nobody = free_address();
    let proxies = vec![
        Proxy { prefix: "/api".into(), upstream: address.to_string() },
        Proxy { prefix: "/api/second".into(), upstream: format!("{address},{nobody}") },
    ];
    let server = Server::start(Config { proxies, ..Config::default() }, &[]);
    let mut client = http2::open(&server);
    for (stream, path) in [(1, "/api/echo"), (3, "/api/second")] {
        let block = http2::request(path);
        // `:authority` is what comes last.
        client.send(http2::frame(HEADERS, END_STREAM | END_HEADERS, stream, &block[..block.len() - 3]));
        http2::status(&mut client, stream);
        let (head, _) = seen.last();
        assert!(head.starts_with(&format!("get {path} ")), "{head}");
        assert!(head.contains(&format!("\r\nhost: {address}\r\n")), "{head}");
        assert!(!head.contains("x-forwarded-host"), "{head}");
    }
    assert_eq!(server.ask("GET /api/echo HTTP/1.0\r\n\r\n").status, 200);
    assert!(seen.last().0.contains(&format!("\r\nhost: {address}\r\n")));
    let seen_before = seen.requests.lock().unwrap().len();
    let mut client = server.connect();
    client.send(b"GET /api/echo HTTP/1.1\r\nHost: caf\xc3\xa9\r\n\r\n");
    assert_eq!(client.response(false).status, 400);
    assert_eq!(seen.requests.lock().unwrap().len(), seen_before);
}

#[test]
fn codings_and_methods_that_are_not_forwarded() {
    let (address, seen) = upstream();
    let server = proxied(address, Limits::default());
    for coding in ["gzip, chunked", "chunked\r\nTransfer-Encoding: chunked", "gzip\r\nTransfer-Encoding: chunked"] {
        let r = server.ask(&format!(
            "POST /api/echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: {coding}\r\n\r\n1\r\nx\r\n0\r\n\r\n"
        ));
        assert_eq!(r.status, 501, "{coding}");
    }
    let r = server.ask("TRACE /api/echo HTTP/1.1\r\nHost: h\r\nCookie: a=1\r\n\r\n");
    assert_eq!((r.status, r.header("allow").is_some()), (405, true));
    assert!(seen.requests.lock().unwrap().is_empty());
    let r = server.ask("POST /api/echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n");
    assert_eq!((r.status, r.text().as_str()), (200, "x"));
}

/// RFC 9110 §7.6.3.
#[test]
fn a_gateway_says_that_it_is_there() {
    let (address, seen) = upstream();
    let server = proxied(address, Limits::default());
    let via = || {
        let (head, _) = seen.last();
        let values = head.lines().filter_map(|l| l.strip_prefix("via: "));
        values.collect::<Vec<_>>().join(", ")
    };
    server.get("/api/echo");
    assert_eq!(via(), "1.1 donjon");
    server.ask("GET /api/echo HTTP/1.0\r\nVia: 1.1 first, 1.1 second\r\n\r\n");
    assert_eq!(via(), "1.1 first, 1.1 second, 1.0 donjon");
    let mut client = http2::open(&server);
    client.send(http2::frame(HEADERS, END_STREAM | END_HEADERS, 1, &http2::request("/api/echo")));
    assert_eq!(http2::status(&mut client, 1), 200);
    assert_eq!(via(), "2.0 donjon");
}

/// The configuration's headers are on what comes from an upstream, unless that has set them, and on what is said in its place.
#[test]
fn headers_are_added() {
    let (address, _) = upstream();
    let rule = |pattern: &str, name: &str, value: &str| Rule {
        pattern: pattern.into(),
        name: name.into(),
        value: value.into(),
    };
    let headers = vec![rule("*", "x-frame-options", "DENY"), rule("/api/*", "x-end", "ours"), rule("/a", "x-a", "1")];
    let config = Config {
        headers,
        cache: vec![rule("*", "cache-control", "max-age=60")],
        limits: Limits { body_bytes: 1000, ..Limits::default() },
        proxies: vec![
            Proxy { prefix: "/api".into(), upstream: address.to_string() },
            Proxy { prefix: "/down".into(), upstream: free_address().to_string() },
        ],
        ..Config::default()
    };
    let server = Server::start(config, &[("/index.html", b"home")]);
    let long = server.ask("POST /api/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n");
    for (r, status, end) in [
        (server.get("/api/echo"), 200, Some("ours")),
        (server.get("/api/stream"), 200, Some("2")),
        (server.get("/down"), 502, None),
        (long, 413, Some("ours")),
    ] {
        assert_eq!((r.status, r.header("x-frame-options"), r.header("x-end")), (status, Some("DENY"), end), "{r:?}");
        assert_eq!((r.header("x-a"), r.header("cache-control")), (None, None), "{r:?}");
    }
    assert_eq!(server.get("/").header("cache-control"), Some("max-age=60"));
}

#[test]
fn connections_are_reused_and_stale_ones_replaced() {
    let (address, seen) = upstream();
    let server = proxied(address, Limits::default());
    for _ in 0..5 {
        assert_eq!(server.get("/api/echo").status, 200);
    }
    assert_eq!(seen.connections.load(Ordering::Relaxed), 1);
    for _ in 0..5 {
        assert_eq!(server.get("/api/leaves").status, 200);
    }
}

/// Whether an upstream has done something with a request and then failed, nobody can tell: it is asked once more, not once for every connection.
#[test]
fn requests_are_repeated_once() {
    let (address, seen) = upstream();
    let server = proxied(address, Limits::default());
    let prime = |connections: u32| {
        let mut clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send("POST /api/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n");
        }
        let start = Instant::now();
        while seen.connections.load(Ordering::Relaxed) < connections {
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "{} connections",
                seen.connections.load(Ordering::Relaxed)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        for client in &mut clients {
            client.send("x");
            assert_eq!(client.response(false).status, 200);
        }
    };
    prime(10);
    assert_eq!(server.get("/api/dies").status, 502);
    assert_eq!(seen.count("get /api/dies "), 2);
    assert_eq!(seen.connections.load(Ordering::Relaxed), 11, "the second is not for a connection as old as the first");
    // An answer that cannot be read is one.
    assert_eq!(server.get("/api/nonsense").status, 502);
    assert_eq!(seen.count("get /api/nonsense "), 1);
    assert_eq!(server.ask("POST /api/dies HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n").status, 502);
    assert_eq!(seen.count("post /api/dies "), 1);
}

/// An upstream that says for how long it keeps a connection is not asked on one that it is about to close.
#[test]
fn upstreams_say_how_long_connections_live() {
    let (address, seen) = upstream();
    let server = proxied(address, Limits::default());
    for n in 1..4 {
        assert_eq!(server.get("/api/short-lived").text(), "ok");
        assert_eq!(seen.connections.load(Ordering::Relaxed), n);
    }
}

#[test]
fn trailers_do_not_cost_a_connection() {
    let (address, seen) = upstream();
    let server = proxied(address, Limits::default());
    for _ in 0..3 {
        let mut client = server.connect();
        client.send("GET /api/trailers HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        let all = client.rest();
        assert!(all.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&all));
    }
    assert_eq!(seen.connections.load(Ordering::Relaxed), 1);
}

/// A connection on which a body is still on its way is for nobody else.
#[test]
fn uploads_that_were_answered_early_hold_nobody_up() {
    let (address, seen) = upstream();
    let server = proxied(address, Limits { upstream_seconds: 2, ..Limits::default() });
    let mut slow = http2::open(&server);
    // `:method POST`.
    let post = [&[0x83], &http2::request("/api/early")[1..]].concat();
    for stream in [1, 3, 5] {
        slow.send(http2::frame(HEADERS, END_HEADERS, stream, &post));
        assert_eq!(http2::status(&mut slow, stream), 200);
    }
    for _ in 0..4 {
        assert_eq!(server.get("/api/echo").status, 200);
    }
    // None of the bodies has come to an end, and the others have shared a connection.
    assert!(seen.requests.lock().unwrap().iter().all(|(head, _)| head.starts_with("get ")));
    assert_eq!(seen.connections.load(Ordering::Relaxed), 4);
}

#[test]
fn framing_is_ours() {
    let (address, seen) = upstream();
    let server = proxied(address, Limits::default());
    let tail = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";
    for framing in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 50\r\n",
    ] {
        let mut client = server.connect();
        client.send(format!("POST /api/echo HTTP/1.1\r\nHost: h\r\n{framing}\r\n3\r\nabc\r\n0\r\n\r\n{tail}"));
        let Some(r) = client.try_response(false) else { continue };
        assert!(r.status == 400 || r.text() == "abc", "{framing}: {r:?}");
        let (head, _) = seen.last();
        assert!(!(head.contains("\r\ncontent-length:") && head.contains("\r\ntransfer-encoding:")), "{head}");
        assert!(!head.starts_with("get /smuggled"), "{head}");
    }
}

#[test]
fn streaming_to_the_upstream() {
    let (address, _) = upstream();
    let server = proxied(address, Limits::default());
    let mut client = server.connect();
    client.send("POST /api/echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.response(true).status, 100);
    for _ in 0..20 {
        client.send(format!("{:x}\r\n{}\r\n", 50_000, "x".repeat(50_000)));
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.response(false).body.len(), 1_000_000);
}

#[test]
fn bodies_that_are_too_large_or_too_slow() {
    let (address, _) = upstream();
    let server = proxied(address, Limits { body_bytes: 1000, stall_seconds: 1, ..Limits::default() });
    assert_eq!(server.ask("POST /api/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n").status, 413);
    let mut client = server.connect();
    client.send("POST /api/echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..11 {
        client.send(format!("64\r\n{}\r\n", "x".repeat(100)));
    }
    assert_eq!(client.response(false).status, 413);
    let mut client = server.connect();
    client.send("POST /api/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc");
    assert_eq!(client.response(false).status, 408);
    // A byte now and then.
    let mut client = server.connect();
    client.send("POST /api/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n");
    for _ in 0..10 {
        client.send("x");
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(client.response(false).status, 408);
    server.assert_alive();
}

/// What is wrong with a body is not for the upstream to answer for.
#[test]
fn broken_bodies() {
    let (address, seen) = upstream();
    let server = proxied(address, Limits::default());
    for (framing, body) in [
        ("Transfer-Encoding: chunked", "-0\r\n\r\n"),
        ("Transfer-Encoding: chunked", "zz\r\nabc\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", "3\r\nabcd\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", "100000000000000000\r\n"),
        // It ends too early.
        ("Transfer-Encoding: chunked", "3\r\nab"),
        ("Content-Length: 100", "abc"),
    ] {
        let mut client = server.connect();
        client.send(format!("POST /api/echo HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n{body}"));
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(client.response(false).status, 400, "{framing}: {body:?}");
    }
    assert!(seen.requests.lock().unwrap().is_empty());
    server.assert_alive();
}

/// An upstream may answer before it has the body: what is left of that is still no request, and no head that takes too long or is too long.
#[test]
fn a_body_goes_on_after_an_early_answer() {
    let (address, seen) = upstream();
    let server = proxied(address, Limits { header_seconds: 1, ..Limits::default() });
    let inner = "GET / HTTP/1.1\r\nHost: smuggled\r\n\r\n";
    for others in [0, 257] {
        let crowd: Vec<_> = (0..others).map(|_| server.connect()).collect();
        server.assert_alive();
        for (first, second) in [("", inner.to_owned()), ("ab", "x".repeat(40_000) + inner), ("", "x".repeat(40_000))] {
            let mut client = server.connect();
            let length = first.len() + second.len() + 1;
            client.send(format!("POST /api/refused HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{first}"));
            assert_eq!(client.response(false).status, 404);
            // Longer than a connection keeps its buffers without a request.
            std::thread::sleep(Duration::from_millis(1500));
            client.send(&second);
            // Longer than a head may take.
            std::thread::sleep(Duration::from_millis(1500));
            client.send("x");
            client.send("GET /next HTTP/1.1\r\nHost: h\r\n\r\n");
            let next = client.try_response(false);
            assert_eq!(next.map(|r| r.status), Some(404), "{others} others, {first:?}, {} bytes", second.len());
        }
        drop(crowd);
    }
    assert_eq!(seen.requests.lock().unwrap().len(), 6);
    server.assert_alive();
}

#[test]
fn upstreams_that_fail() {
    let server = proxied(free_address(), Limits::default());
    assert_eq!(server.get("/api/echo").status, 502);
    let (address, _) = upstream();
    let server = proxied(address, Limits { upstream_seconds: 1, ..Limits::default() });
    assert_eq!(server.get("/api/never").status, 504);
    assert_eq!(server.get("/api/nonsense").status, 502);
    let mut client = server.connect();
    client.send("GET /api/cut HTTP/1.1\r\nHost: h\r\n\r\n");
    let bytes = client.rest();
    assert!(bytes.ends_with(b"short"), "{:?}", String::from_utf8_lossy(&bytes));
    server.assert_alive();
}

/// Who takes an upload's beginning and no more has as long from then on as who takes all and does not answer.
#[test]
fn upstreams_that_stop_taking_a_body() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let limits = Limits { upstream_seconds: 2, stall_seconds: 1, ..Limits::default() };
    let server = proxied(silent.local_addr().unwrap(), limits);
    let body = std::env::temp_dir().join(format!("donjon-web-upload-{}", std::process::id()));
    std::fs::File::create(&body).unwrap().set_len(8_000_000).unwrap();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let mut curl = std::process::Command::new("curl");
        curl.args([version, "-sS", "-m", "20", "-w", "%{http_code}", "-o", "/dev/null", "--data-binary"]);
        curl.arg(format!("@{}", body.display())).arg(format!("http://{}/api/echo", server.address));
        match curl.output() {
            Err(_) => donjon_skip::skip("proxy::upstreams_that_stop_taking_a_body", "needs curl"),
            Ok(output) => assert_eq!(String::from_utf8_lossy(&output.stdout), "504", "{version}: {output:?}"),
        }
    }
    std::fs::remove_file(&body).unwrap();
    server.assert_alive();
}

#[test]
fn what_could_be_two_places_is_not_forwarded() {
    let (address, seen) = upstream();
    let server = proxied(address, Limits::default());
    for path in ["/api/../api/echo", "/api/%2e%2e/api/echo", "/x/..%2fapi/echo", "/api/./echo"] {
        assert_eq!(server.get(path).status, 400, "{path}");
    }
    assert!(seen.requests.lock().unwrap().is_empty());
}

#[test]
fn upgrades() {
    let (address, _) = upstream();
    let server = proxied(address, Limits { header_seconds: 1, ..Limits::default() });
    let mut client = server.connect();
    client.send(
        "GET /api/socket HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nearly",
    );
    let r = client.response(false);
    assert_eq!((r.status, r.header("upgrade")), (101, Some("websocket")));
    assert_eq!(client.exactly(7), b"welcome");
    assert_eq!(client.exactly(5), b"early");
    // Longer than a head may take, and than an idle connection keeps its buffers.
    std::thread::sleep(Duration::from_millis(2500));
    client.send(vec![b'm'; 100_000]);
    assert_eq!(client.exactly(100_000), vec![b'm'; 100_000]);
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.is_closed());
    // Without being asked for, 101 is an error.
    assert_eq!(server.get("/api/socket").status, 502);
}

/// A client that breaks its connection ends the request to the upstream, and what it has had of an answer is logged.
#[test]
fn clients_that_leave() {
    let waiting = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, _) = upstream();
    let proxies = vec![
        Proxy { prefix: "/api".into(), upstream: address.to_string() },
        Proxy { prefix: "/wait".into(), upstream: waiting.local_addr().unwrap().to_string() },
    ];
    let mut server = Server::start(Config { proxies, log: true, ..Config::default() }, &[("/big", &[0; 64 << 20])]);
    for http2 in [false, true] {
        let mut client = if http2 { http2::open(&server) } else { server.connect() };
        if http2 {
            client.send(http2::frame(HEADERS, END_STREAM | END_HEADERS, 1, &http2::request("/wait")));
        } else {
            client.send("GET /wait HTTP/1.1\r\nHost: h\r\n\r\n");
        }
        let (mut far, _) = waiting.accept().unwrap();
        far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert!(far.read(&mut [0; 4096]).unwrap() > 0);
        // With a reset.
        socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        while far.read(&mut [0; 4096]).expect("the upstream's connection ends") > 0 {}
        let line = server.logged();
        assert!(line.contains("\"target\":\"/wait\"") && line.contains("\"status\":499,\"bytes\":0,"), "{line}");
        assert!(line.ends_with(",\"complete\":false}\n"), "{line}");
    }
    let mut client = server.connect();
    client.send("GET /big HTTP/1.1\r\nHost: h\r\n\r\n");
    client.exactly(1000);
    drop(client);
    let line = server.logged();
    assert!(line.contains("\"status\":200,") && line.ends_with(",\"complete\":false}\n"), "{line}");
    assert!(!line.contains("\"bytes\":67108864,"), "{line}");
    let mut client = server.connect();
    client.send("GET /api/cut HTTP/1.1\r\nHost: h\r\n\r\n");
    client.rest();
    let line = server.logged();
    assert!(line.contains("\"bytes\":5,") && line.ends_with(",\"complete\":false}\n"), "{line}");
    assert_eq!(server.get("/api/stream").text(), "abcabcabc");
    let line = server.logged();
    assert!(line.contains("\"bytes\":9,") && !line.contains("complete"), "{line}");
}

/// They live for as long as requests in progress may take.
#[test]
fn a_stop_leaves_tunnels_time() {
    let (address, _) = upstream();
    let mut server = proxied(address, Limits { drain_seconds: 60, ..Limits::default() });
    let mut idle = server.connect();
    idle.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(idle.response(false).status, 200);
    let mut client = server.connect();
    client.send("GET /api/socket HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(client.response(true).status, 101);
    assert_eq!(client.exactly(7), b"welcome");
    server.terminate();
    assert!(idle.is_closed(), "the server knows");
    client.send("still here");
    assert_eq!(client.exactly(10), b"still here");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.is_closed());
    assert_eq!(server.wait(), 0);
}

/// 204 has no length (RFC 9110 §8.6); HTTP/2 clients take one for an error.
#[test]
fn no_content_has_no_length() {
    let (address, _) = upstream();
    let server = proxied(address, Limits::default());
    let r = server.ask("DELETE /api/empty HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!((r.status, r.header("content-length")), (204, None));
    let mut curl = std::process::Command::new("curl");
    curl.args(["--http2-prior-knowledge", "-sS", "-w", "%{http_code}", "-X", "DELETE"]);
    match curl.arg(format!("http://{}/api/empty", server.address)).output() {
        Err(_) => println!("SKIP proxy::no_content_has_no_length: curl is not installed"),
        Ok(output) => assert!(output.status.success() && output.stdout == b"204", "{output:?}"),
    }
}

/// A tunnel is for WebSocket: over HTTP/2 in the clear, all paths of the upstream would be within reach, with no password asked for.
#[test]
fn other_upgrades_are_no_tunnel() {
    let (address, seen) = upstream();
    let server = proxied(address, Limits::default());
    for (method, fields) in [
        ("GET", "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
        ("GET", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
        ("GET", "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n"),
        ("GET", "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n"),
        ("GET", "Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n"),
        ("GET", "Connection: Upgrade\r\nUpgrade: TLS/1.3\r\n"),
        ("GET", "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n"),
        ("POST", "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n"),
        ("GET", "Upgrade: websocket\r\n"),
    ] {
        let body = if fields.contains("Length: 1") { "x" } else { "" };
        let r = server.ask(&format!("{method} /api/any HTTP/1.1\r\nHost: h\r\n{fields}\r\n{body}"));
        assert_eq!((r.status, r.text().as_str()), (200, "no"), "{method} {fields}");
        let (head, _) = seen.last();
        for gone in ["upgrade", "http2-settings"] {
            assert!(!head.contains(gone), "{gone} in {head}");
        }
    }
    // As browsers ask for it, in any case.
    let mut client = server.connect();
    client.send("GET /api/any HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n\r\n");
    assert_eq!(client.response(true).status, 101);
}

/// A pinned upstream may have several addresses.
#[test]
fn the_first_address_that_accepts_is_used() {
    let (address, seen) = upstream();
    let nobody = free_address();
    for list in [format!("{nobody},{address}"), format!("{address},{nobody}")] {
        let proxies = vec![Proxy { prefix: "/api".into(), upstream: list }];
        let server = Server::start(Config { proxies, ..Config::default() }, &[]);
        let r = server.ask("POST /api/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc");
        assert_eq!((r.status, r.text().as_str()), (200, "abc"));
    }
    assert_eq!(seen.connections.load(Ordering::Relaxed), 2);
    let proxies = vec![Proxy { prefix: "/api".into(), upstream: format!("{nobody},{}", free_address()) }];
    let server = Server::start(Config { proxies, ..Config::default() }, &[]);
    assert_eq!(server.get("/api/echo").status, 502);
}

/// One that does not answer holds nobody up for longer than it takes to ask the next.
#[test]
fn silent_addresses_are_passed_over() {
    let (address, _) = upstream();
    // Nobody accepts: when the backlog is full, nobody answers.
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    silent.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    silent.listen(0).unwrap();
    let full = silent.local_addr().unwrap().as_socket().unwrap();
    let mut held = vec![];
    while let Ok(stream) = TcpStream::connect_timeout(&full, Duration::from_millis(200)) {
        held.push(stream);
        assert!(held.len() < 100, "the backlog has no end");
    }
    for list in [format!("{full},{address}"), format!("{full},{},{address}", free_address())] {
        let proxies = vec![Proxy { prefix: "/api".into(), upstream: list.clone() }];
        let server = Server::start(Config { proxies, ..Config::default() }, &[]);
        assert_eq!(server.get("/api/echo").status, 200, "{list}");
    }
    // Nobody is waited for without end.
    let proxies = vec![Proxy { prefix: "/api".into(), upstream: format!("{full},{}", free_address()) }];
    let server = Server::start(Config { proxies, ..Config::default() }, &[]);
    assert_eq!(server.get("/api/echo").status, 504);
}
