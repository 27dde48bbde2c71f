//! HTTP/2 (RFC 9113) in plain text with prior knowledge, as frames made by hand, and the attacks that have a name.

use crate::harness::{Client, Server, free_address};
use donjon_web_format::{Config, Limits, Proxy};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `:method GET`, `:scheme http`, `:path`, `:authority h`, without compression.
pub fn request(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x04, path.len() as u8];
    block.extend(path.bytes());
    block.extend([0x01, 1, b'h']);
    block
}

pub fn open(server: &Server) -> Client {
    let mut client = server.connect();
    client.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
    client
}

fn read(client: &mut Client) -> Frame {
    let head = client.exactly(9);
    let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    Frame { kind: head[3], flags: head[4], stream, payload: client.exactly(len) }
}

/// Reads until the headers of this stream. The status, if it is one that HPACK's static table has.
pub fn status(client: &mut Client, stream: u32) -> u16 {
    loop {
        let f = read(client);
        assert_ne!(f.kind, GOAWAY, "{:?}", f.payload);
        assert!(f.kind != RST_STREAM || f.stream != stream, "reset: {:?}", f.payload);
        if f.kind == HEADERS && f.stream == stream {
            // After a change of the table's size, if there is one.
            let index = *f.payload.iter().find(|b| **b & 0xe0 != 0x20).unwrap();
            return [200, 204, 206, 304, 400, 404, 500]
                .get(usize::from(index.wrapping_sub(0x88)))
                .copied()
                .unwrap_or(0);
        }
    }
}

/// Whether the server ends the connection for what the client did: GOAWAY with an error, or a reset, which may take that away.
fn is_refused(client: &mut Client) -> bool {
    let bytes = client.rest();
    let mut rest = &bytes[..];
    while let Some((head, after)) = rest.split_first_chunk::<9>() {
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if let (GOAWAY, Some(code)) = (head[3], after.get(4..8)) {
            return code != [0; 4];
        }
        rest = after.get(len..).unwrap_or(&[]);
    }
    client.reset
}

#[test]
fn the_preface_may_come_in_pieces() {
    let server = Server::plain();
    for cut in [1, 3, 4, 14, 15, 16, 18, 23] {
        let mut client = server.connect();
        client.send(&PREFACE[..cut]);
        std::thread::sleep(std::time::Duration::from_millis(50));
        client.send([&PREFACE[cut..], &frame(SETTINGS, 0, 0, &[])].concat());
        client.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &request("/")));
        assert_eq!(status(&mut client, 1), 200, "{cut}");
    }
    // What begins like it and is something else is a request like any other.
    for (first, rest, status) in [
        ("P", "UT / HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        ("PRI", " / HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        ("PRI * HTTP/2.0\r\n", "Host: h\r\n\r\n", 400),
    ] {
        let mut client = server.connect();
        client.send(first);
        std::thread::sleep(std::time::Duration::from_millis(50));
        client.send(rest);
        assert_eq!(client.response(false).status, status, "{first}{rest}");
    }
    let mut client = server.connect();
    client.send("PRI * HT");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let said = client.rest();
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 400"), "{said:?}");
    server.assert_alive();
}

#[test]
fn requests_and_settings() {
    let server = Server::plain();
    let mut client = open(&server);
    let settings = read(&mut client);
    assert_eq!((settings.kind, settings.flags), (SETTINGS, 0));
    let value = |id: u8| {
        let found = settings.payload.as_chunks::<6>().0.iter().find(|s| s[1] == id);
        found.map(|s| u32::from_be_bytes([s[2], s[3], s[4], s[5]]))
    };
    assert_eq!((value(3), value(6)), (Some(128), Some(16384)), "streams, header list");
    for (stream, path, want) in [(1, "/", 200), (3, "/none", 404), (5, "/a.txt", 200), (7, "/..", 400)] {
        client.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, &request(path)));
        assert_eq!(status(&mut client, stream), want, "{path}");
    }
}

/// What the server allows to be sent.
struct Windows {
    connection: u32,
    stream: u32,
}

impl Windows {
    /// The next frame, which must not be the server's word that something is wrong.
    fn read(&mut self, client: &mut Client, stream: u32) -> Frame {
        let f = read(client);
        assert!(!matches!(f.kind, RST_STREAM | GOAWAY), "{}: {:?}", f.kind, f.payload);
        if f.kind == WINDOW_UPDATE {
            let more = u32::from_be_bytes(f.payload[..].try_into().unwrap());
            match f.stream {
                0 => self.connection += more,
                // For one that is through, it is of no use.
                n if n == stream => self.stream += more,
                _ => {}
            }
        }
        f
    }

    /// Reads to the end of this stream's response.
    fn refused(&mut self, client: &mut Client, stream: u32) {
        loop {
            let f = self.read(client, stream);
            if matches!(f.kind, DATA | HEADERS) && f.flags & END_STREAM != 0 {
                return assert_eq!(f.stream, stream);
            }
        }
    }
}

/// The stream of a request with a body that nobody reads is closed by the body's end, not by a reset that a client takes for an error; the response
/// waits for neither.
#[test]
fn unread_bodies() {
    let server = Server::plain();
    let mut client = open(&server);
    // Its windows are large, and hold from the acknowledgement on.
    let mut windows = Windows { connection: 65_535, stream: 0 };
    let settings = read(&mut client);
    assert_eq!(settings.kind, SETTINGS);
    let initial = settings.payload.as_chunks::<6>().0.iter().find(|s| s[1] == 4).expect("a window for streams");
    let initial = u32::from_be_bytes([initial[2], initial[3], initial[4], initial[5]]);
    client.send(frame(SETTINGS, ACK, 0, &[]));
    // `:method POST`.
    let post = [&[0x83], &request("/")[1..]].concat();
    // The response is complete before the body comes; more of that than any window holds is read.
    for (stream, frames) in [(1, 1), (3, 200)] {
        client.send(frame(HEADERS, END_HEADERS, stream, &post));
        windows.stream = initial;
        windows.refused(&mut client, stream);
        for _ in 0..frames {
            while windows.connection.min(windows.stream) < 16 << 10 {
                windows.read(&mut client, stream);
            }
            client.send(frame(DATA, 0, stream, &[b'x'; 16 << 10]));
            windows.connection -= 16 << 10;
            windows.stream -= 16 << 10;
        }
        client.send(frame(DATA, END_STREAM, stream, &[]));
    }
    let mut refused = |client: &mut Client, stream| windows.refused(client, stream);
    // Ours have been closed in order: nothing was reset.
    client.send(frame(HEADERS, END_STREAM | END_HEADERS, 5, &post));
    refused(&mut client, 5);
    // A body that does not come to an end is not waited for without end; what comes of it is a reset without an error, long after the response.
    client.send(frame(HEADERS, END_HEADERS, 7, &post));
    client.send(frame(DATA, 0, 7, b"x"));
    refused(&mut client, 7);
    client.send(frame(HEADERS, END_HEADERS, 9, &post));
    refused(&mut client, 9);
    let mut reset = vec![];
    while reset.len() < 2 {
        let f = read(&mut client);
        if f.kind != WINDOW_UPDATE {
            assert_eq!((f.kind, &f.payload[..]), (RST_STREAM, &[0; 4][..]));
            reset.push(f.stream);
        }
    }
    reset.sort_unstable();
    assert_eq!(reset, [7, 9]);
}

/// Whatever is sent with it, and whoever refuses it, curl shows the status and is content.
#[test]
fn unread_bodies_with_curl() {
    let mut config = Config { limits: Limits { body_bytes: 300_000, ..Limits::default() }, ..Config::default() };
    // Reads, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in silent.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
        }
    });
    if cfg!(feature = "proxy") {
        let upstream =
            |prefix: &str, address: SocketAddr| Proxy { prefix: prefix.into(), upstream: address.to_string() };
        config.proxies = vec![upstream("/down", free_address()), upstream("/silent", address)];
    }
    let server = Server::start(config, &[]);
    let body = std::env::temp_dir().join(format!("donjon-web-body-{}", std::process::id()));
    let proxied = |status| if cfg!(feature = "proxy") { status } else { "405" };
    for len in [1, 70_000, 1_000_000, 100_000_000] {
        std::fs::File::create(&body).unwrap().set_len(len).unwrap();
        let down = proxied(if len > 300_000 { "413" } else { "502" });
        let mut cases = vec![("/", "", "405"), ("/none", "", "405"), ("/down", "", down)];
        if len > 300_000 {
            // Refused at once, and when too much of a body has come that had not said its length.
            cases.extend([("/silent", "", proxied("413")), ("/silent", "Content-Length:", proxied("413"))]);
        }
        for (path, header, status) in cases {
            let mut curl = Command::new("curl");
            curl.args(["-sS", "--http2-prior-knowledge", "-w", "%{http_code}", "-o", "/dev/null", "-H", header]);
            curl.arg("--data-binary").arg(format!("@{}", body.display()));
            match curl.arg(format!("http://{}{path}", server.address)).output() {
                Err(_) => donjon_skip::skip("http2::unread_bodies_with_curl", "needs curl"),
                Ok(output) => {
                    let shown = (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned());
                    assert_eq!(shown, (Some(0), status.to_owned()), "{path}, {len} bytes, {header:?}: {output:?}");
                }
            }
        }
    }
    std::fs::remove_file(&body).unwrap();
}

/// Asked to stop, the server says so, finishes the answer that is under way however long the client takes for it, begins no other, and ends.
#[test]
fn a_stop_drains() {
    let mut server = Server::plain();
    let mut client = open(&server);
    client.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &request("/a.txt")));
    assert_eq!(status(&mut client, 1), 200);
    let mut body = vec![];
    // As much as the window of a client allows that has not said anything else.
    while body.len() < 65_535 {
        let f = read(&mut client);
        if f.kind == DATA {
            body.extend(f.payload);
        }
    }
    let mut idle = open(&server);
    idle.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &request("/")));
    assert_eq!(status(&mut idle, 1), 200);
    server.terminate();
    // RFC 9113 §6.8: first no number, so that what is on its way is still answered; then, a round trip later, the last stream.
    let goodbyes = |client: &mut Client| {
        let mut last = vec![];
        while last.len() < 2 {
            let f = read(client);
            match f.kind {
                PING if f.flags & ACK == 0 => client.send(frame(PING, ACK, 0, &f.payload)),
                GOAWAY => {
                    assert_eq!(f.payload[4..8], [0; 4], "no error");
                    last.push(u32::from_be_bytes(f.payload[..4].try_into().unwrap()));
                }
                _ => assert!(!matches!(f.kind, RST_STREAM | HEADERS), "{}", f.kind),
            }
        }
        assert_eq!(last, [u32::MAX >> 1, 1]);
    };
    goodbyes(&mut client);
    goodbyes(&mut idle);
    // What else is said to it, after the end of its only stream, is nothing.
    assert!(idle.rest().is_empty());
    client.send(frame(HEADERS, END_STREAM | END_HEADERS, 3, &request("/")));
    for stream in [0, 1] {
        client.send(frame(WINDOW_UPDATE, 0, stream, &100_000u32.to_be_bytes()));
    }
    loop {
        let f = read(&mut client);
        assert!(f.kind != HEADERS && f.kind != RST_STREAM, "{}", f.kind);
        if f.kind == DATA {
            assert_eq!(f.stream, 1);
            body.extend(f.payload);
            if f.flags & END_STREAM != 0 {
                break;
            }
        }
    }
    assert!(body == [b'a'; 100_000], "{} bytes", body.len());
    assert!(client.rest().is_empty() && !client.reset);
    assert_eq!(server.wait(), 0);
}

/// What a client says after the server's last word, such as that it has read a part, does not take away what is still on its way to it.
#[test]
fn a_late_word_costs_nothing() {
    const LEN: usize = 3 << 20;
    let mut server = Server::start(Config::default(), &[("/large", &vec![b'l'; LEN])]);
    // All of it fits its windows.
    let settings = frame(SETTINGS, 0, 0, &[&[0, 4][..], &(1u32 << 30).to_be_bytes()].concat());
    let mut client = server.connect();
    client.send([PREFACE, &settings, &frame(WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes())].concat());
    client.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &request("/large")));
    assert_eq!(status(&mut client, 1), 200);
    server.terminate();
    let mut len = 0;
    while len < LEN {
        let f = read(&mut client);
        match f.kind {
            PING if f.flags & ACK == 0 => client.send(frame(PING, ACK, 0, &f.payload)),
            DATA => {
                len += f.payload.len();
                client.send(frame(WINDOW_UPDATE, 0, 0, &(f.payload.len() as u32).to_be_bytes()));
            }
            _ => {}
        }
    }
    drop(client);
    assert_eq!(server.wait(), 0);
}

/// CVE-2023-44487.
#[test]
fn rapid_reset() {
    let server = Server::plain();
    let mut client = open(&server);
    let mut flood = vec![];
    for i in 0..20_000 {
        let stream = 2 * i + 1;
        flood.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, &request("/a.txt")));
        flood.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
    }
    client.send(&flood);
    assert!(is_refused(&mut client));
    server.assert_alive();
}

/// CVE-2024-27316 and its kin.
#[test]
fn continuation_flood() {
    let server = Server::plain();
    let mut client = open(&server);
    client.send(frame(HEADERS, END_STREAM, 1, &request("/")));
    // Literal headers, never indexed, without end.
    let mut block = vec![];
    for _ in 0..100 {
        block.extend([0x10, 1, b'x', 100]);
        block.extend([b'y'; 100]);
    }
    for _ in 0..2000 {
        client.send(frame(CONTINUATION, 0, 1, &block));
    }
    assert!(is_refused(&mut client));
    server.assert_alive();
}

#[test]
fn large_header_lists() {
    let server = Server::plain();
    let mut client = open(&server);
    let mut block = request("/");
    for _ in 0..150 {
        block.extend([0x10, 1, b'x', 100]);
        block.extend([b'y'; 100]);
    }
    let (first, second) = block.split_at(10_000);
    client.send(frame(HEADERS, END_STREAM, 1, first));
    client.send(frame(CONTINUATION, END_HEADERS, 1, second));
    // The connection goes on: the list is refused with 431, which has no number in the static table.
    assert_eq!(status(&mut client, 1), 0);
    client.send(frame(HEADERS, END_STREAM | END_HEADERS, 3, &request("/")));
    assert_eq!(status(&mut client, 3), 200);
}

/// Frames that ask for an answer, from a client that reads none.
#[test]
fn settings_and_ping_floods() {
    for (kind, payload) in [(SETTINGS, &[][..]), (PING, &[0; 8][..])] {
        let server = Server::plain();
        let mut client = open(&server);
        client.stream.set_write_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        let flood = frame(kind, 0, 0, payload).repeat(10_000);
        for _ in 0..20 {
            client.send(&flood);
        }
        server.assert_alive();
        let rss = server.resident();
        assert!(rss < 40 << 20, "{rss} bytes");
    }
}

#[test]
fn protocol_errors() {
    let server = Server::plain();
    for bytes in [
        frame(HEADERS, END_STREAM | END_HEADERS, 2, &request("/")),
        frame(HEADERS, END_STREAM | END_HEADERS, 0, &request("/")),
        frame(CONTINUATION, END_HEADERS, 1, &request("/")),
        frame(SETTINGS, 0, 1, &[]),
        frame(SETTINGS, 0, 0, &[0; 5]),
        frame(SETTINGS, ACK, 0, &[0; 6]),
        frame(PING, 0, 0, &[0; 7]),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff; 20]),
        frame(0, 0, 0, &vec![0; 20_000]),
    ] {
        let mut client = open(&server);
        client.send(&bytes);
        assert!(is_refused(&mut client));
    }
    server.assert_alive();
}
