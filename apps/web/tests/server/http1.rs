//! HTTP/1.1 over the wire: what RFC 9110 and 9112 promise to clients, and what is refused.

use crate::harness::Server;
use donjon_web_format::{Config, Host, Rule};

#[test]
fn get_and_head_agree() {
    let config = Config { listing: true, ..Config::default() };
    let server = Server::start(config, &[("/index.html", b"home"), ("/d/<b>.txt", b"x"), ("/big", &[7; 300_000])]);
    for (path, status) in [("/", 200), ("/big", 200), ("/d/", 200), ("/d", 301), ("/none", 404), ("/healthz", 200)] {
        let mut client = server.connect();
        // HEAD first, on the same connection: a body that was sent all the same would be taken for the next response.
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: h\r\n\r\nGET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        let (head, get) = (client.response(true), client.response(false));
        assert_eq!((head.status, get.status), (status, status), "{path}");
        for name in ["content-length", "content-type", "etag", "last-modified", "location"] {
            assert_eq!(head.header(name), get.header(name), "{path} {name}");
        }
        assert!(head.header("date").is_some());
    }
    assert!(server.get("/d/").text().contains("&lt;b&gt;.txt"));
    assert_eq!(server.get("/big").body, [7; 300_000]);
}

/// The page of a large directory is made while it is sent, so that those who do not read it cost little.
#[test]
fn large_listings() {
    let names: Vec<String> = (0..5000).map(|n| format!("/d/{n:04}{}", "'".repeat(240))).collect();
    let mut files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    files.push(("/small/x", b""));
    let server = Server::start(Config { listing: true, ..Config::default() }, &files);
    let before = server.resident();
    let mut crowd: Vec<_> = (0..10).map(|_| server.connect()).collect();
    for client in &mut crowd {
        client.send("HEAD /d/ HTTP/1.1\r\nHost: h\r\n\r\nGET /d/ HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    for client in &mut crowd {
        assert_eq!(client.response(true).status, 200);
        client.stream.peek(&mut [0]).unwrap();
    }
    // Each page has 12 MB, which is more than the system holds.
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 20 << 20, "{grown} bytes");
    server.assert_alive();
    assert_eq!(server.ask("HEAD /d/ HTTP/1.1\r\nHost: h\r\n\r\n").header("content-length"), None);
    let page = crowd.pop().unwrap().response(false).text();
    let line = |name: &String| format!("<li><a href=\"./{0}\">{0}</a>\n", name[3..].replace('\'', "&#39;"));
    let head = "<!doctype html><meta charset=utf-8><title>/d/</title><h1>/d/</h1><ul>\n<li><a href=\"../\">../</a>\n";
    assert!(page == head.to_string() + &names.iter().map(line).collect::<String>() + "</ul>\n", "{page}");
    // Without chunks, it ends with the connection.
    let old = server.ask("GET /d/ HTTP/1.0\r\n\r\n");
    assert!(old.header("transfer-encoding").is_none() && old.text() == page);
    assert!(server.get("/small/").header("content-length").is_some());
}

#[test]
fn conditions_and_ranges() {
    let server = Server::start(Config::default(), &[("/f", b"0123456789")]);
    let ask = |headers: &str| server.ask(&format!("GET /f HTTP/1.1\r\nHost: h\r\n{headers}\r\n"));
    let r = ask("If-None-Match: \"tag\"\r\nIf-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT\r\n");
    assert_eq!((r.status, r.header("etag")), (304, Some("\"tag\"")));
    assert_eq!(ask("If-None-Match: \"other\"\r\nIf-Modified-Since: Thu, 01 Jan 2030 00:00:00 GMT\r\n").status, 200);
    assert_eq!(ask("If-Match: \"other\"\r\n").status, 412);
    let r = ask("Range: bytes=2-4\r\n");
    assert_eq!((r.status, r.header("content-range"), r.text().as_str()), (206, Some("bytes 2-4/10"), "234"));
    let r = ask("Range: bytes=0-0,-1\r\n");
    assert!(r.status == 206 && r.header("content-type").unwrap().starts_with("multipart/byteranges; boundary="));
    assert_eq!(r.text().matches("content-range").count(), 2);
    assert_eq!(r.body.len().to_string(), r.header("content-length").unwrap());
    let r = ask("Range: bytes=10-\r\n");
    assert_eq!((r.status, r.header("content-range")), (416, Some("bytes */10")));
    assert_eq!(ask("Range: bytes=0-1\r\nIf-Range: \"other\"\r\n").status, 200);
}

#[test]
fn targets_and_hosts() {
    let server = Server::plain();
    for (request, status) in [
        ("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 204),
        ("OPTIONS / HTTP/1.1\r\nHost: h\r\n\r\n", 204),
        ("GET http://h/ HTTP/1.1\r\nHost: other\r\n\r\n", 200),
        ("GET / HTTP/1.0\r\n\r\n", 200),
        ("CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi", 405),
        ("TRACE / HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        ("POST /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", 405),
        ("BREW / HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET http://h/ HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        ("GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET nonsense HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET / HTTP/3.7\r\nHost: h\r\n\r\n", 400),
        ("nonsense\r\n\r\n", 400),
    ] {
        assert_eq!(server.ask(request).status, status, "{request}");
    }
    assert_eq!(server.ask("PUT / HTTP/1.1\r\nHost: h\r\n\r\n").header("allow"), Some("GET, HEAD, OPTIONS"));
}

#[test]
fn nothing_outside_the_root_is_reached() {
    let server = Server::plain();
    let ups =
        ["..", "%2e%2e", "%2E.", ".%2e", "..%00", "..%5c", "..\\", "%c0%ae%c0%ae", "..;", "%252e%252e", "%u002e."];
    let slashes = ["/", "%2f", "%5c", "\\", "//", "/./"];
    let mut client = server.connect();
    for up in ups {
        for slash in slashes {
            for depth in 1..4 {
                for end in ["secret.txt", ".donjon/web.conf", "etc/passwd"] {
                    let path = format!("/{}{end}", format!("{up}{slash}").repeat(depth));
                    client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
                    let Some(r) = client.try_response(false) else {
                        client = server.connect();
                        continue;
                    };
                    assert!(matches!(r.status, 400 | 404), "{path}: {}", r.status);
                    if r.header("connection") == Some("close") {
                        client = server.connect();
                    }
                }
            }
        }
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::plain();
    let mut client = server.connect();
    let wanted = ["/a.txt", "/", "/none", "/", "/a.txt"];
    let all: String = wanted.iter().map(|p| format!("GET {p} HTTP/1.1\r\nHost: h\r\n\r\n")).collect();
    // In three parts, cut within requests, with a pause that is longer than an idle connection keeps its buffers.
    let (first, rest) = all.split_at(all.len() - 30);
    let (second, third) = rest.split_at(15);
    for part in [first, second, third] {
        client.send(part);
        std::thread::sleep(std::time::Duration::from_millis(1200));
    }
    for path in wanted {
        let r = client.response(false);
        let want = match path {
            "/" => (200, 4),
            "/a.txt" => (200, 100_000),
            _ => (404, r.body.len()),
        };
        assert_eq!((r.status, r.body.len()), want);
    }
}

#[test]
fn connections_last_over_pauses_and_close_when_asked() {
    let server = Server::plain();
    let mut client = server.connect();
    for _ in 0..3 {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(client.response(false).text(), "home");
        std::thread::sleep(std::time::Duration::from_millis(1300));
    }
    client.send("GET /a.txt HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_eq!(client.response(false).body.len(), 100_000);
    assert!(client.is_closed());
}

/// A body that nobody reads must not be taken for a request; nor among so many connections that none keeps its buffers, however the body is cut.
#[test]
fn bodies_are_not_requests() {
    let server = Server::plain();
    let inner = "GET /a.txt HTTP/1.1\r\nHost: smuggled\r\n\r\n";
    let mut crowd = vec![];
    for (method, status) in [("GET", 200), ("POST", 405), ("GET", 200), ("POST", 405)] {
        for padding in [0, 1000, 4500, 10_000, 30_000] {
            let body = format!("{}{inner}", "\r\n".repeat(padding));
            let head = format!("{method} / HTTP/1.1\r\nHost: h\r\n");
            for (framing, body) in [
                (format!("Content-Length: {}", body.len()), body.clone()),
                ("Transfer-Encoding: chunked".into(), format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())),
            ] {
                for pause in [false, true] {
                    let case = format!("{method}, {framing}, {padding}, {pause}, {} others", crowd.len());
                    let mut client = server.connect();
                    client.send(format!("{head}{framing}\r\n\r\n"));
                    let first = pause.then(|| client.response(false));
                    client.send(&body);
                    let first = first.unwrap_or_else(|| client.response(false));
                    assert_eq!(first.status, status, "{case}");
                    client.send("GET /next HTTP/1.1\r\nHost: h\r\n\r\n");
                    if let Some(next) = client.try_response(false) {
                        assert_eq!(next.status, 404, "{case}");
                    }
                }
            }
        }
        if method == "POST" && crowd.is_empty() {
            // One more than there may be before nothing is kept.
            crowd = (0..257).map(|_| server.connect()).collect();
            server.assert_alive();
        }
    }
}

#[test]
fn no_invitation_to_send_what_nobody_wants() {
    let server = Server::plain();
    let r = server.ask("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(r.status, 405);
}

/// Whatever two servers could understand differently is refused, or at least never answered twice.
#[test]
fn ambiguous_requests() {
    let server = Server::plain();
    let tail = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";
    for head in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 99999999999999999999999\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding : chunked\r\n",
        "X: a\r\n Transfer-Encoding: chunked\r\n",
        "X: a\rTransfer-Encoding: chunked\r\n",
        "X: a\0b\r\n",
        "X\0: b\r\n",
        " X: b\r\n",
        ": b\r\n",
        "no colon\r\n",
    ] {
        let mut client = server.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: h\r\n{head}\r\n{tail}"));
        let response = client.try_response(false);
        assert!(response.as_ref().is_none_or(|r| r.status == 400), "{head:?}: {response:?}");
        assert!(client.try_response(false).is_none(), "{head:?}: answered twice");
    }
    for (framing, body) in [
        ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "5\nhello\n0\n\n"),
        ("Transfer-Encoding: chunked\r\n", "zz\r\n"),
        ("Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\n"),
    ] {
        let mut client = server.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: h\r\n{framing}\r\n{body}{tail}"));
        let mut statuses = vec![];
        while let Some(r) = client.try_response(false) {
            statuses.push(r.status);
            if statuses.len() == 2 || r.header("connection") == Some("close") {
                break;
            }
        }
        // Either the connection ends after the first, or what follows a body that is complete is a request of its own.
        let tail_is_body = body != "0\r\n\r\n";
        assert!(
            matches!(statuses[..], [400 | 405]) || !tail_is_body && statuses == [405, 404],
            "{framing}: {statuses:?}"
        );
    }
    server.assert_alive();
}

/// Headers for a pattern are also on what is answered without a look at the content.
#[test]
fn headers_of_refusals() {
    let headers = vec![Rule { pattern: "/a*".into(), name: "x-frame-options".into(), value: "DENY".into() }];
    let hosts = vec![Host { name: "h".into(), root: 0 }];
    let config = Config { headers, hosts, redirect: Some(443), ..Config::default() };
    let server = Server::start(config.clone(), &[]);
    let check = |server: &Server, request: &str, status: u16| {
        let r = server.ask(request);
        assert_eq!((r.status, r.header("x-frame-options")), (status, Some("DENY")), "{request}");
    };
    check(&server, "GET //a HTTP/1.1\r\nHost: h\r\n\r\n", 308);
    check(&server, "GET /a HTTP/1.1\r\nHost: other\r\n\r\n", 421);
    check(&server, "GET /a HTTP/1.1\r\n\r\n", 400);
    assert_eq!(server.get("/b").header("x-frame-options"), None);
    #[cfg(feature = "auth")]
    {
        let (pattern, realm, user) = ("*".into(), "r".into(), "u".into());
        let area = donjon_web_format::Auth { pattern, realm, user, rounds: 1, salt: "00".into(), key: "00".repeat(32) };
        let server = Server::start(Config { auth: vec![area], redirect: None, ..config }, &[]);
        check(&server, "GET /a HTTP/1.1\r\nHost: h\r\n\r\n", 401);
    }
}
