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

/// Requests, and the statuses that are right for each; 0 is a close without an answer.
fn corpus() -> Vec<(Vec<u8>, &'static [u16])> {
    const HOST: &str = "Host: test\r\n";
    let get = |fields: &str| request("GET / HTTP/1.1", fields);
    let line = |line: &str| request(line, HOST);
    let post =
        |fields: &str, body: &str| [request("POST / HTTP/1.1", &format!("{HOST}{fields}")), body.into()].concat();
    let long = |n: usize| "x".repeat(n);
    vec![
        // Request lines.
        (line("GET /"), &[400, 0]),
        (line("GET  / HTTP/1.1"), &[400, 0]),
        (line("GET / HTTP/1.1 x"), &[400, 0]),
        (line("GET / HTTP/1.2"), &[400, 505, 0]),
        (line("GET / HTTP/3.0"), &[400, 505, 0]),
        (line("GET / http/1.1"), &[400, 0]),
        (line("GET / HTTP/1.1\r"), &[400, 0]),
        (line("GET\t/\tHTTP/1.1"), &[400, 0]),
        (line("G\x01T / HTTP/1.1"), &[400, 0]),
        (line("GET relative HTTP/1.1"), &[400, 0]),
        (line("GET http:// HTTP/1.1"), &[400, 0]),
        (line("GET ? HTTP/1.1"), &[400, 0]),
        (line("GET * HTTP/1.1"), &[400, 0]),
        (line("CONNECT / HTTP/1.1"), &[400, 405, 0]),
        (line("CONNECT example.org:443 HTTP/1.1"), &[405, 400, 421]),
        (line("PRI * HTTP/2.0"), &[400, 0]),
        (line(&format!("GET /{} HTTP/1.1", long(9000))), &[414]),
        (line(&format!("GET /{} HTTP/1.1", long(70_000))), &[414, 431, 0]),
        (line(&format!("{} / HTTP/1.1", long(300))), &[400, 405, 0]),
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n".to_vec(), &[200, 400]),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), &[400, 0]),
        (b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), &[400, 0]),
        (b"\0\0\0\0".to_vec(), &[400, 0]),
        (b"GET / HTTP/1.1".to_vec(), &[400, 408, 0]),
        (b"".to_vec(), &[0]),
        // Fields.
        (get(""), &[400]),
        (get("Host: a\r\nHost: b\r\n"), &[400]),
        (get("Host: a/b\r\n"), &[400]),
        (get("Host: a b\r\n"), &[400]),
        (get("Host: user@host\r\n"), &[400]),
        (get("Host: [::1\r\n"), &[400]),
        (get("Host : test\r\n"), &[400, 0]),
        (get("Host: test\r\nX\x00: y\r\n"), &[400, 0]),
        (get("Host: test\r\nX: a\x00b\r\n"), &[400, 0]),
        (get("Host: test\r\nX: a\r\n folded\r\n"), &[400, 0]),
        (get("Host: test\r\n X: leading\r\n"), &[400, 0]),
        (get("Host: test\r\n: no name\r\n"), &[400, 0]),
        (get("Host: test\r\nno colon\r\n"), &[400, 0]),
        (get("Host: test\r\nX: a\rb\r\n"), &[400, 0]),
        // RFC 9112 §2.2 allows a bare LF as the end of a line.
        (b"GET / HTTP/1.1\nHost: test\n\n".to_vec(), &[200, 400, 0]),
        (b"GET / HTTP/1.1\r\nHost: test\n\r\n".to_vec(), &[200, 400, 0]),
        (get(&format!("Host: test\r\nX: {}\r\n", long(20_000))), &[431, 0]),
        (get(&format!("Host: test\r\n{}", "X: y\r\n".repeat(2000))), &[431, 0]),
        (get(&format!("Host: test\r\n{}: y\r\n", long(70_000))), &[400, 431, 0]),
        // Lengths.
        (post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"), &[400, 0]),
        (post("Content-Length: 5, 6\r\n", "hello!"), &[400, 0]),
        (post("Content-Length: -1\r\n", ""), &[400, 0]),
        (post("Content-Length: +5\r\n", "hello"), &[400, 0]),
        (post("Content-Length: 5x\r\n", "hello"), &[400, 0]),
        (post("Content-Length: 0x5\r\n", "hello"), &[400, 0]),
        (post("Content-Length: \r\n", "hello"), &[400, 0]),
        (post("Content-Length: 99999999999999999999\r\n", "hello"), &[400, 413, 0]),
        (post("Content-Length: 18446744073709551615\r\n", "hello"), &[400, 405, 413, 431, 0]),
        (post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), &[400, 501, 0]),
        (post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), &[400, 501, 0]),
        (post("Transfer-Encoding: identity\r\n", ""), &[400, 501, 0]),
        (post("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", "0\r\n\r\n"), &[400, 501, 0]),
        (post("Transfer-Encoding:\x0bchunked\r\n", "0\r\n\r\n"), &[400, 501, 0]),
        (request("POST / HTTP/1.0", "Host: t\r\nTransfer-Encoding: chunked\r\n"), &[400, 0]),
        (post("Transfer-Encoding: chunked\r\n", "zz\r\nhello\r\n0\r\n\r\n"), &[400, 405, 0]),
        (post("Transfer-Encoding: chunked\r\n", "ffffffffffffffffff\r\n"), &[400, 405, 0]),
        (post("Transfer-Encoding: chunked\r\n", "-1\r\n"), &[400, 405, 0]),
        (post("Transfer-Encoding: chunked\r\n", "5;x\nhello\r\n0\r\n\r\n"), &[400, 405, 0]),
        // Splitting of the answer.
        (line("GET /sub%0d%0aInjected:%20x HTTP/1.1"), &[400, 404]),
        (line("GET /sub?%0d%0aInjected:%20x HTTP/1.1"), &[301]),
        (line("GET /sub\rInjected:x HTTP/1.1"), &[400, 0]),
        (line("GET //evil.test/.. HTTP/1.1"), &[200, 400, 404]),
        (line("GET //evil.test HTTP/1.1"), &[400, 404]),
    ]
}

fn malformed(engine: Engine) {
    let mut guest = Site::Plain.start(engine);
    for (request, right) in corpus() {
        let answer = send(&guest, &request);
        let shown = || format!("{:?}", String::from_utf8_lossy(&request[..request.len().min(300)]));
        expect_no_secret(&request, &answer);
        let first = statuses(&answer).first().copied().unwrap_or(0);
        assert!(right.contains(&first), "{first}, not one of {right:?}: {}", shown());
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{}", shown());
        let text = String::from_utf8_lossy(&answer).to_lowercase();
        assert!(!text.contains("\ninjected"), "{}: {text}", shown());
    }
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

fn traversal(engine: Engine) {
    // Passwords, another host's root and a configuration are in one image; private keys in the other.
    for site in [Site::App, Site::Secure] {
        let mut guest = site.start(engine);
        let ways = ways_out();
        let (mut refused, mut missing) = (0, 0);
        for (n, way) in ways.iter().enumerate() {
            if engine.is_qemu() && n % 4 != 0 {
                continue;
            }
            // Without the middle of the way, it goes as it is: no client cleans it up.
            let request = request(&format!("GET {way} HTTP/1.1"), "Host: test\r\nConnection: close\r\n");
            let mut answer = send(&guest, &request);
            if site == Site::Secure {
                // Who has no password has no secret.
                answer = String::from_utf8_lossy(&answer).replace(SECRET, "").into_bytes();
            }
            expect_no_secret(&request, &answer);
            match statuses(&answer)[..] {
                [400] | [] => refused += 1,
                [401 | 404] => missing += 1,
                // What a way comes to may well be something of the site.
                [200 | 301] => {}
                ref other => panic!("{other:?}: {way}"),
            }
        }
        assert!(refused > 50 && missing > 50, "{refused} refused, {missing} not found, of {}", ways.len());
        // The same over HTTP/2, as far as curl can say it; one connection each, because curl 7.88 cannot use one twice that it did not agree on.
        let spoken = ways.iter().filter(|w| w.is_ascii()).step_by(if engine.is_qemu() { 40 } else { 5 });
        for way in spoken {
            let url = guest.url(way);
            let answer = Curl::run(&guest, &["--http2-prior-knowledge", "--globoff", &url]);
            if site == Site::App || !answer.text().contains(SECRET) {
                expect_no_secret(way.as_bytes(), &answer.body);
            }
            assert!([200, 301, 400, 401, 404].contains(&answer.status) && answer.version == "2", "{way}: {answer:?}");
        }
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
    let cases: Vec<(String, String)> = [
        (format!("Content-Length: {whole}\r\nTransfer-Encoding: chunked"), "0\r\n\r\n"),
        (format!("Transfer-Encoding: chunked\r\nContent-Length: {whole}"), "0\r\n\r\n"),
        (format!("Content-Length: {whole}\r\nTransfer-Encoding : chunked"), "0\r\n\r\n"),
        (format!("Content-Length: {whole}\r\nTransfer-Encoding: xchunked"), "0\r\n\r\n"),
        (format!("Content-Length: {whole}\r\nTransfer-Encoding: chunked, identity"), "0\r\n\r\n"),
        (format!("Content-Length: {whole}\r\nTransfer-Encoding:\x0bchunked"), "0\r\n\r\n"),
        (format!("Content-Length: {whole}\r\nTransfer-Encoding\r\n : chunked"), "0\r\n\r\n"),
        (format!("Content-Length: {whole}\r\n Transfer-Encoding: chunked"), "0\r\n\r\n"),
        (format!("Content-Length: {length}\r\nContent-Length: 0"), ""),
        (format!("Content-Length: 0\r\nContent-Length: {length}"), ""),
        (format!("Content-Length: 0, {length}"), ""),
        ("Content-Length: 0x0".into(), ""),
        ("Content-Length: \r\nX: y".into(), ""),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity".into(), "0\r\n\r\n"),
        ("Transfer-Encoding: chunked".into(), "-0\r\n\r\n"),
        ("Transfer-Encoding: chunked".into(), "0x0\r\n\r\n"),
        ("Transfer-Encoding: chunked".into(), "00000000000000000000\r\n\r\n"),
        ("Transfer-Encoding: chunked".into(), "0 x\r\n\r\n"),
        ("Transfer-Encoding: chunked".into(), "100000000000000000\r\n\r\n"),
        ("Transfer-Encoding: chunked".into(), "0\r\nContent-Length: 5\n\n\r\n\r\n"),
    ]
    .into_iter()
    .map(|(fields, body)| (fields, body.to_owned()))
    .collect();
    for (fields, body) in cases {
        let head = format!("POST /api/outer HTTP/1.1\r\nHost: test\r\n{fields}\r\n\r\n");
        let request = format!("{head}{body}{hidden}");
        let before = Upstream::shared().seen().iter().filter(|l| l.contains(&name)).count();
        let answer = send(&guest, request.as_bytes());
        let after = Upstream::shared().seen().iter().filter(|l| l.contains(&name)).count();
        let statuses = statuses(&answer);
        // A chunked body that is whole ends where it ends, and what follows is a request that the client may make: only where
        // two readers could disagree must there be no second one.
        let agreed =
            fields == "Transfer-Encoding: chunked" && (body.starts_with("000") || body.contains("Content-Length"));
        assert!(agreed || (statuses.len() <= 1 && before == after), "{statuses:?} for {request:?}");
    }
    // What an ambiguous request is answered with, if anything at all.
    let both = "POST /api/x HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert!(matches!(statuses(&send(&guest, both.as_bytes()))[..], [200 | 400]));
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
