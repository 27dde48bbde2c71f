//! Requests that nobody who means well sends: the right status or a close, never a crash, never a file from outside.

use std::io::{Read, Write};
use std::net::Shutdown;

use donjon_tests::{Engine, Guest};

use super::{CANARY, Curl, SECRET, Site, Upstream};

crate::under_engines! {
    malformed: ProcessUser QemuMicrovm;
    traversal: ProcessUser QemuMicrovm;
    smuggling: ProcessUser QemuMicrovm;
    mutated: ProcessUser QemuMicrovm;
}

/// Sends these bytes and nothing more, and returns all that comes back.
fn send(guest: &Guest, bytes: &[u8]) -> Vec<u8> {
    let mut stream = guest.connect().unwrap_or_else(|e| panic!("{e}\n{}", guest.log()));
    // A server that has heard enough may close while we send.
    if stream.write_all(bytes).is_ok() {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
            panic!("neither answered nor closed: {:?}\n{}", String::from_utf8_lossy(bytes), guest.log())
        }
        // A reset is a close, too.
        _ => answer,
    }
}

/// Status codes of the answers, in order.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    text.split("HTTP/1.").skip(1).filter_map(|t| t.get(2..5)?.parse().ok()).collect()
}

/// Fails if something is in the answer that no client may get.
#[track_caller]
fn expect_no_secret(request: &[u8], answer: &[u8]) {
    let text = String::from_utf8_lossy(answer);
    for secret in [CANARY, "PRIVATE KEY", "root:", "limit\theader_bytes", SECRET] {
        assert!(!text.contains(secret), "{secret:?} in the answer to {:?}", String::from_utf8_lossy(request));
    }
}

fn request(line: &str, fields: &str) -> Vec<u8> {
    format!("{line}\r\n{fields}\r\n").into_bytes()
}

/// Requests, and the one status that is right for each, after which the connection ends; 0 is an end without an answer. RFC 9112 §3 has 400 for a request
/// line that it has no words for, §5 for such a field, §6.3 for a length that cannot be right. Where the server says something else than a specification
/// suggests, the row says what that would be.
fn corpus() -> Vec<(Vec<u8>, u16)> {
    const HOST: &str = "Host: test\r\n";
    let get = |fields: &str| request("GET / HTTP/1.1", fields);
    let line = |line: &str| request(line, HOST);
    let post =
        |fields: &str, body: &str| [request("POST / HTTP/1.1", &format!("{HOST}{fields}")), body.into()].concat();
    let long = |n: usize| "x".repeat(n);
    vec![
        // Request lines.
        (line("GET /"), 400),
        (line("GET  / HTTP/1.1"), 400),
        (line("GET / HTTP/1.1 x"), 400),
        // RFC 9110 §2.5 would have it taken for 1.1; nobody has ever sent it.
        (line("GET / HTTP/1.2"), 400),
        // 505 in RFC 9110 §15.6.6; hyper does not tell a version that it does not know from what is none.
        (line("GET / HTTP/3.0"), 400),
        (line("GET / http/1.1"), 400),
        (line("GET / HTTP/1.1\r"), 400),
        (line("GET\t/\tHTTP/1.1"), 400),
        (line("G\x01T / HTTP/1.1"), 400),
        (line("GET relative HTTP/1.1"), 400),
        (line("GET http:// HTTP/1.1"), 400),
        (line("GET ? HTTP/1.1"), 400),
        (line("GET * HTTP/1.1"), 400),
        // Whatever its target, which is no authority.
        (line("CONNECT / HTTP/1.1"), 405),
        (line("CONNECT example.org:443 HTTP/1.1"), 405),
        (line("PRI * HTTP/2.0"), 400),
        (line(&format!("GET /{} HTTP/1.1", long(9000))), 414),
        (line(&format!("GET /{} HTTP/1.1", long(70_000))), 414),
        // RFC 9110 §9.1 suggests 501 for methods that nobody knows; 405 says, with `Allow`, what there is.
        (line(&format!("{} / HTTP/1.1", long(300))), 405),
        // RFC 9112 §2.2: empty lines before a request are not minded.
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n".to_vec(), 200),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400),
        (b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), 400),
        (b"\0\0\0\0".to_vec(), 400),
        // Nobody waits for an answer to what is not a request yet (RFC 9112 §8).
        (b"GET / HTTP/1.1".to_vec(), 0),
        (b"".to_vec(), 0),
        // Fields.
        (get(""), 400),
        (get("Host: a\r\nHost: b\r\n"), 400),
        (get("Host: a/b\r\n"), 400),
        (get("Host: a b\r\n"), 400),
        (get("Host: user@host\r\n"), 400),
        (get("Host: [::1\r\n"), 400),
        (get("Host : test\r\n"), 400),
        (get("Host: test\r\nX\x00: y\r\n"), 400),
        (get("Host: test\r\nX: a\x00b\r\n"), 400),
        (get("Host: test\r\nX: a\r\n folded\r\n"), 400),
        (get("Host: test\r\n X: leading\r\n"), 400),
        (get("Host: test\r\n: no name\r\n"), 400),
        (get("Host: test\r\nno colon\r\n"), 400),
        (get("Host: test\r\nX: a\rb\r\n"), 400),
        // RFC 9112 §2.2 allows a bare LF as the end of a line.
        (b"GET / HTTP/1.1\nHost: test\n\n".to_vec(), 200),
        (b"GET / HTTP/1.1\r\nHost: test\n\r\n".to_vec(), 200),
        (get(&format!("Host: test\r\nX: {}\r\n", long(20_000))), 431),
        (get(&format!("Host: test\r\n{}", "X: y\r\n".repeat(2000))), 431),
        (get(&format!("Host: test\r\n{}: y\r\n", long(70_000))), 431),
        // Lengths.
        (post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"), 400),
        (post("Content-Length: 5, 6\r\n", "hello!"), 400),
        (post("Content-Length: -1\r\n", ""), 400),
        (post("Content-Length: +5\r\n", "hello"), 400),
        (post("Content-Length: 5x\r\n", "hello"), 400),
        (post("Content-Length: 0x5\r\n", "hello"), 400),
        (post("Content-Length: \r\n", "hello"), 400),
        // More than 64 bits hold.
        (post("Content-Length: 99999999999999999999\r\n", "hello"), 400),
        // The last two that they do hold mean something else in hyper, which says 431 where 413 would be the word.
        (post("Content-Length: 18446744073709551615\r\n", "hello"), 431),
        // Not chunked at last: 400, whatever else it is (§6.3).
        (post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), 400),
        (post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), 400),
        (post("Transfer-Encoding: identity\r\n", ""), 400),
        (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", "0\r\n\r\n"), 400),
        (post("Transfer-Encoding:\x0bchunked\r\n", "0\r\n\r\n"), 400),
        (request("POST / HTTP/1.0", "Host: t\r\nTransfer-Encoding: chunked\r\n"), 400),
        // The method is refused; what is wrong with the body, which nobody reads, only ends the connection.
        (post("Transfer-Encoding: chunked\r\n", "zz\r\nhello\r\n0\r\n\r\n"), 405),
        (post("Transfer-Encoding: chunked\r\n", "ffffffffffffffffff\r\n"), 405),
        (post("Transfer-Encoding: chunked\r\n", "-1\r\n"), 405),
        (post("Transfer-Encoding: chunked\r\n", "5;x\nhello\r\n0\r\n\r\n"), 405),
        // Splitting of the answer.
        (line("GET /sub%0d%0aInjected:%20x HTTP/1.1"), 400),
        (line("GET /sub?%0d%0aInjected:%20x HTTP/1.1"), 301),
        (line("GET /sub\rInjected:x HTTP/1.1"), 400),
        (line("GET //evil.test/.. HTTP/1.1"), 200),
        (line("GET //evil.test HTTP/1.1"), 404),
    ]
}

fn malformed(engine: Engine) {
    let mut guest = Site::Plain.start(engine);
    let mut wrong = Vec::new();
    for (request, right) in corpus() {
        let answer = send(&guest, &request);
        let shown = format!("{:?}", String::from_utf8_lossy(&request[..request.len().min(300)]));
        expect_no_secret(&request, &answer);
        let said = statuses(&answer);
        // One answer or none, and nothing but HTTP.
        if said != if right == 0 { vec![] } else { vec![right] }
            || !(answer.is_empty() || answer.starts_with(b"HTTP/1."))
        {
            wrong.push(format!("{said:?}, not {right}: {shown}"));
        }
        let text = String::from_utf8_lossy(&answer).to_lowercase();
        assert!(!text.contains("\ninjected"), "{shown}: {text}");
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), guest.log());
    guest.expect_alive();
    assert_eq!(guest.get("/text.txt").unwrap().text(), super::text());
}

/// Paths that would lead out of the site for somebody who understands one of these spellings.
fn ways_out() -> Vec<String> {
    let ups = [
        "../",
        "..%2f",
        "..%2F",
        "%2e%2e/",
        "%2e%2e%2f",
        "%2E%2E%2F",
        ".%2e/",
        "%2e./",
        "..%5c",
        "..\\",
        "%2e%2e%5c",
        "..\\/",
        "%252e%252e%252f",
        "%252e%252e/",
        "..%252f",
        "%25252e%25252e%25252f",
        "..%255c",
        "%c0%ae%c0%ae/",
        "%c0%ae%c0%ae%c0%af",
        "..%c0%af",
        "..%c1%9c",
        "%e0%80%ae%e0%80%ae/",
        "%f0%80%80%ae%f0%80%80%ae/",
        "..%ef%bc%8f",
        "%ef%bc%8e%ef%bc%8e/",
        "%uff0e%uff0e/",
        "%u002e%u002e%u2215",
        "....//",
        "..;/",
        ".../",
        "..%00/",
        "..%01/",
        "..%0d%0a/",
        "..%20/",
        "..%09/",
        "..?/",
        "./../",
        "/../",
        "//..//",
        "..//",
        "..././",
        "%%32%65%%32%65/",
        "..%",
        "..%2",
        "\u{2025}/",
    ];
    let goals = [
        "canary.txt",
        "other/other-canary.txt",
        ".env",
        "etc/passwd",
        ".donjon/tls/0.key",
        ".donjon/tls/1.key",
        "site/1/other-canary.txt",
        "site/0/private/secret.txt",
        "private/secret.txt",
        ".donjon/web.conf",
        ".donjon/web.index",
        "other-canary.txt",
    ];
    let mut out = Vec::new();
    for goal in goals {
        out.push(format!("/{goal}"));
        for (n, up) in ups.iter().enumerate() {
            out.push(format!("/{up}{goal}"));
            out.push(format!("/sub/{}{goal}", up.repeat(1 + n % 6)));
            out.push(format!("/private/{up}{goal}"));
        }
    }
    for goal in [
        "/site/0/index.html",
        "file:///etc/passwd",
        "/canary.txt%00.html",
        "/etc/passwd%00",
        "/.env%20",
        "/.env/",
        "/.env.",
    ] {
        out.push(goal.into());
    }
    out
}

/// What is right for a way: it is decoded once and then followed, and nothing is above the root. What cannot be decoded, or has a character that no name
/// should have, is no path.
fn right(site: Site, way: &str) -> u16 {
    let path = way.split('?').next().unwrap_or_default();
    let Some(decoded) = decoded(path).filter(|p| p.starts_with('/')) else { return 400 };
    let mut place = Vec::new();
    for name in decoded.split('/') {
        match name {
            "" | "." => {}
            ".." if place.pop().is_none() => return 400,
            ".." => {}
            name => place.push(name),
        }
    }
    match (site, &place[..]) {
        (Site::App, ["private", ..]) => 401,
        // The page of the site; and here nobody asks for a password.
        (_, [] | ["private", "secret.txt"]) => 200,
        _ => 404,
    }
}

fn decoded(path: &str) -> Option<String> {
    let mut bytes = path.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        let digit = |b: Option<u8>| char::from(b?).to_digit(16);
        out.push(if byte == b'%' { (digit(bytes.next())? * 16 + digit(bytes.next())?) as u8 } else { byte });
    }
    String::from_utf8(out).ok().filter(|text| !text.contains(|c: char| c.is_control() || c == '\\'))
}

fn traversal(engine: Engine) {
    // Passwords, another host's root and a configuration are in one image; private keys in the other.
    for site in [Site::App, Site::Secure] {
        let mut guest = site.start(engine);
        let ways = ways_out();
        let mut wrong = Vec::new();
        for way in ways.iter().step_by(if engine.is_qemu() { 4 } else { 1 }) {
            // Without the middle of the way, it goes as it is: no client cleans it up.
            let request = request(&format!("GET {way} HTTP/1.1"), "Host: test\r\nConnection: close\r\n");
            let mut answer = send(&guest, &request);
            let (said, right) = (statuses(&answer), right(site, way));
            if said != [right] {
                wrong.push(format!("{said:?}, not {right}: {way}"));
            }
            if site == Site::Secure {
                // Who has no password has no secret.
                answer = String::from_utf8_lossy(&answer).replace(SECRET, "").into_bytes();
            }
            expect_no_secret(&request, &answer);
        }
        // The same over HTTP/2, as far as curl can say it; one connection each, because curl 7.88 cannot use one twice that it did not agree on.
        let spoken = ways.iter().filter(|w| w.is_ascii()).step_by(if engine.is_qemu() { 40 } else { 5 });
        for way in spoken {
            let url = guest.url(way);
            let answer = Curl::run(&guest, &["--http2-prior-knowledge", "--globoff", &url]);
            if site == Site::App || !answer.text().contains(SECRET) {
                expect_no_secret(way.as_bytes(), &answer.body);
            }
            if (answer.status, answer.version.as_str()) != (right(site, way), "2") {
                wrong.push(format!("{}, not {}, over HTTP/{}: {way}", answer.status, right(site, way), answer.version));
            }
        }
        assert!(wrong.is_empty(), "{site:?}\n{}", wrong.join("\n"));
        guest.expect_alive();
    }
}

/// What tries to hide a second request in a first one. The upstream must never see it.
fn smuggling(engine: Engine) {
    let mut guest = Site::App.start(engine);
    let name = format!("SMUGGLED-{engine:?}");
    let hidden = format!("GET /api/{name} HTTP/1.1\r\nHost: test\r\n\r\n");
    let length = hidden.len();
    let whole = 5 + length;
    const CHUNKED: &str = "Transfer-Encoding: chunked";
    const END: &str = "0\r\n\r\n";
    // Fields, body, and the statuses of all answers: the hidden request is none of those, except where the body before it is whole for everybody and
    // what follows is a request that the client may make.
    let cases: [(String, &str, &[u16]); 20] = [
        // RFC 9112 §6.3: chunked holds, and the connection ends after it.
        (format!("Content-Length: {whole}\r\n{CHUNKED}"), END, &[200]),
        (format!("{CHUNKED}\r\nContent-Length: {whole}"), END, &[200]),
        (format!("Content-Length: {whole}\r\nTransfer-Encoding : chunked"), END, &[400]),
        (format!("Content-Length: {whole}\r\nTransfer-Encoding: xchunked"), END, &[400]),
        (format!("Content-Length: {whole}\r\nTransfer-Encoding: chunked, identity"), END, &[400]),
        (format!("Content-Length: {whole}\r\nTransfer-Encoding:\x0bchunked"), END, &[400]),
        (format!("Content-Length: {whole}\r\nTransfer-Encoding\r\n : chunked"), END, &[400]),
        (format!("Content-Length: {whole}\r\n Transfer-Encoding: chunked"), END, &[400]),
        (format!("Content-Length: {length}\r\nContent-Length: 0"), "", &[400]),
        (format!("Content-Length: 0\r\nContent-Length: {length}"), "", &[400]),
        (format!("Content-Length: 0, {length}"), "", &[400]),
        ("Content-Length: 0x0".into(), "", &[400]),
        ("Content-Length: \r\nX: y".into(), "", &[400]),
        (format!("{CHUNKED}\r\nTransfer-Encoding: identity"), END, &[400]),
        (CHUNKED.into(), "-0\r\n\r\n", &[400]),
        (CHUNKED.into(), "0x0\r\n\r\n", &[400]),
        (CHUNKED.into(), "0 x\r\n\r\n", &[400]),
        (CHUNKED.into(), "100000000000000000\r\n\r\n", &[400]),
        (CHUNKED.into(), "00000000000000000000\r\n\r\n", &[200, 200]),
        // A field after the body says nothing about its length. Such fields are not forwarded: nobody reads them, so that the connection ends there.
        (CHUNKED.into(), "0\r\nContent-Length: 5\n\n\r\n\r\n", &[200]),
    ];
    let mut wrong = Vec::new();
    for (fields, body, right) in cases {
        let head = format!("POST /api/outer HTTP/1.1\r\nHost: test\r\n{fields}\r\n\r\n");
        let request = format!("{head}{body}{hidden}");
        let seen = || Upstream::shared().seen().iter().filter(|l| l.contains(&name)).count();
        let before = seen();
        let statuses = statuses(&send(&guest, request.as_bytes()));
        if statuses != right || seen() - before != right.len() - 1 {
            wrong.push(format!("{statuses:?}, not {right:?}, {} seen: {request:?}", seen() - before));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    guest.expect_alive();
}

/// Requests with random damage: the server lives, answers in HTTP or closes, and hands out no secret.
fn mutated(engine: Engine) {
    let mut guest = Site::App.start(engine);
    let mut seeds: Vec<Vec<u8>> = corpus().into_iter().map(|(request, _)| request).filter(|r| r.len() < 2000).collect();
    seeds.extend(ways_out().iter().step_by(20).map(|w| request(&format!("GET {w} HTTP/1.1"), "Host: test\r\n")));
    for fields in [
        "Host: test\r\nRange: bytes=0-9,20-29\r\nIf-Range: \"x\"\r\nAccept-Encoding: br;q=0.5, gzip\r\n",
        "Host: test\r\nAuthorization: Basic YWxpY2U6Y29ycmVjdCBob3JzZQ==\r\nIf-None-Match: \"a\", W/\"b\"\r\n",
        "Host: test\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n",
    ] {
        seeds.push(request("GET /data.bin HTTP/1.1", fields));
        seeds.push(request("GET /api/x HTTP/1.1", fields));
    }
    let mut http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    // HEADERS with END_STREAM and END_HEADERS: GET http / and an authority, from the static table.
    http2.extend(b"\0\0\x09\x01\x05\0\0\0\x01\x82\x86\x84\x41\x04test\0\0\x08\x06\0\0\0\0\0abcdefgh");
    seeds.push(http2);
    let words: [&[u8]; 14] = [
        b"\r\n",
        b"\n",
        b"\0",
        b"%00",
        b"%2e%2e",
        b"../",
        b": ",
        b"chunked",
        b"Content-Length: 1\r\n",
        b"\xff\xfe",
        b"999999999999999999999",
        b"HTTP/1.1",
        b",,,,",
        b"-",
    ];
    let mut random = Random(0x5eed);
    let rounds = if engine.is_qemu() { 300 } else { 3000 };
    for round in 0..rounds {
        let mut bytes = seeds[random.below(seeds.len())].clone();
        for _ in 0..1 + random.below(4) {
            let at = random.below(bytes.len() + 1);
            match random.below(5) {
                0 if at < bytes.len() => bytes[at] = random.below(256) as u8,
                1 if at < bytes.len() => drop(bytes.drain(at..(at + 1 + random.below(8)).min(bytes.len()))),
                2 => drop(bytes.splice(at..at, words[random.below(words.len())].iter().copied())),
                3 => {
                    let part = bytes[at..(at + random.below(40)).min(bytes.len())].to_vec();
                    bytes.splice(at..at, part);
                }
                _ => {
                    let other = &seeds[random.below(seeds.len())];
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[random.below(other.len() + 1)..]);
                }
            }
        }
        let answer = send(&guest, &bytes);
        let text = String::from_utf8_lossy(&bytes);
        if !text.contains("Basic YWxpY2U6") {
            expect_no_secret(&bytes, &answer);
        }
        // An answer in HTTP/1, or the SETTINGS or GOAWAY frame with which HTTP/2 begins.
        let http2 = answer.len() >= 9 && answer[0] == 0 && matches!(answer[3], 4 | 7);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.") || http2, "round {round}: {text:?}");
        // A crash shows at once, with the request that did it.
        if let Some(status) = guest.exit_status() {
            panic!("round {round}: {status}: {text:?}\n{}", guest.log());
        }
    }
    assert_eq!(guest.get("/text.txt").unwrap().text(), super::text());
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}
