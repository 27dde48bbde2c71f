//! The access log and the metrics.

use crate::harness::{Server, free_address};
use donjon_web_format::{Config, Limits};

#[test]
fn requests_are_logged_and_counted() {
    let metrics = free_address();
    let config = Config { log: true, metrics: Some(metrics.port()), ..Config::default() };
    let mut server = Server::start(config, &[("/index.html", b"home")]);
    for (request, status, bytes) in [
        ("GET /?q=1 HTTP/1.1\r\nHost: h\r\nUser-Agent: \"test\"\r\n\r\n", 200, 4),
        ("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", 200, 0),
        ("GET /none HTTP/1.1\r\nHost: h\r\n\r\n", 404, 14),
    ] {
        assert_eq!(server.ask(request).status, status);
        let line = server.logged();
        let (method, target) = request.split_once(' ').unwrap();
        let target = target.split(' ').next().unwrap();
        for part in [
            "{\"time\":".to_owned(),
            // The listener is dual-stack.
            ",\"client\":\"127.0.0.1:".to_owned(),
            format!(",\"method\":\"{method}\",\"target\":\"{target}\",\"version\":\"HTTP/1.1\",\"host\":\"h\","),
            format!(",\"status\":{status},\"bytes\":{bytes},\"micros\":"),
        ] {
            assert!(line.contains(&part) && line.ends_with("}\n"), "{part} in {line}");
        }
        assert_eq!(line.contains(r#""agent":"\"test\"""#), target == "/?q=1", "{line}");
    }
    let scrape = |path: &str| {
        let mut client = server.connect_to(metrics);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        client.response(false)
    };
    let r = scrape("/metrics");
    assert_eq!((r.status, r.header("content-type")), (200, Some("text/plain; version=0.0.4")));
    for line in [
        "donjon_web_responses_total{class=\"2xx\"} 2",
        "donjon_web_responses_total{class=\"4xx\"} 1",
        "donjon_web_responses_total{class=\"5xx\"} 0",
        "donjon_web_body_bytes_total 18",
        "donjon_web_requests_active 0",
    ] {
        assert!(r.text().lines().any(|l| l == line), "{line} in {}", r.text());
    }
    // Nothing else is there, and they are nowhere else.
    assert_eq!((scrape("/").status, server.get("/metrics").status), (404, 404));
}

/// Also what never became a request.
#[test]
fn refusals_are_logged_and_counted() {
    let metrics = free_address();
    let limits = Limits { header_seconds: 1, ..Limits::default() };
    let config = Config { log: true, metrics: Some(metrics.port()), limits, ..Config::default() };
    let mut server = Server::start(config, &[("/index.html", b"home")]);
    let many = "a: b\r\n".repeat(200);
    let requests = [
        ("GET / HTTP/1.1\r\nHost".to_owned(), 408),
        ("PRI * HTT".to_owned(), 408),
        (format!("GET /{}", "a".repeat(17_000)), 414),
        (format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n"), 431),
        ("GET / HTTP/1.1\r\nHost h\r\n\r\n".to_owned(), 400),
        ("PRI * HTTP/2.0\r\nHost: h\r\n\r\n".to_owned(), 400),
    ];
    for (request, status) in &requests {
        assert_eq!(server.ask(request).status, *status);
    }
    let scrape = || {
        let mut client = server.connect_to(metrics);
        client.send("GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
        client.response(false).text()
    };
    let line = format!("donjon_web_responses_total{{class=\"4xx\"}} {}", requests.len());
    let text = scrape();
    assert!(text.lines().any(|l| l == line), "{line} in {text}");
    // Who only leaves is not refused.
    let mut client = server.connect();
    client.send("GET / HT");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    client.rest();
    let mut client = server.connect_to(metrics);
    client.send("GET\r\n\r\n");
    assert_eq!(client.response(false).status, 400);
    assert_eq!(server.get("/").status, 200);
    server.terminate();
    for (_, status) in &requests {
        let line = server.logged();
        assert!(line.contains(",\"client\":\"127.0.0.1:") && line.starts_with("{\"time\":"), "{line}");
        assert!(line.contains(&format!(",\"status\":{status},")) && line.ends_with("}\n"), "{line}");
        assert!(!line.contains("target"), "{line}");
    }
    assert!(server.logged().contains("\"status\":200,"), "metrics are not logged");
}
