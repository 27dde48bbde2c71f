//! The access log and the metrics.

use crate::harness::{Server, free_address};
use donjon_web_format::Config;

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
        "donjon_web_requests_active 1",
    ] {
        assert!(r.text().lines().any(|l| l == line), "{line} in {}", r.text());
    }
    // Nothing else is there, and they are nowhere else.
    assert_eq!((scrape("/").status, server.get("/metrics").status), (404, 404));
}
