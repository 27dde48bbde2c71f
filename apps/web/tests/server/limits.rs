//! Clients that are slow, greedy or many.

use crate::harness::Server;
use crate::http2::{END_HEADERS, END_STREAM, GOAWAY, HEADERS, SETTINGS, WINDOW_UPDATE};
use donjon_web_format::{Config, Limits};
use std::io::Read;
use std::time::{Duration, Instant};

fn with(limits: Limits) -> Server {
    let config = Config { limits, ..Config::default() };
    Server::start(config, &[("/index.html", b"home"), ("/big", &vec![1; 64 << 20])])
}

#[test]
fn slow_heads() {
    let server = with(Limits { header_seconds: 1, ..Limits::default() });
    // Nothing at all: closed without a word.
    let mut silent = server.connect();
    // One byte now and then: no reason to wait longer.
    let mut slow = server.connect();
    slow.send("GET / HTTP/1.1\r\nHost: h\r\n");
    let start = Instant::now();
    for _ in 0..8 {
        slow.send("a");
        std::thread::sleep(Duration::from_millis(200));
    }
    let r = slow.response(false);
    assert_eq!((r.status, r.header("connection")), (408, Some("close")));
    assert!(slow.is_closed(), "slow");
    assert!(silent.is_closed());
    assert!(start.elapsed() < Duration::from_secs(10));
    // The second request of a connection, too.
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.response(false).status, 200);
    client.send("GET /");
    assert_eq!(client.response(false).status, 408);
    // A beginning of HTTP/2 that does not go on.
    let mut client = server.connect();
    client.send("PRI * HTT");
    assert_eq!(client.response(false).status, 408);
    server.assert_alive();
}

#[test]
fn idle_connections() {
    let server = with(Limits { idle_seconds: 2, header_seconds: 1, ..Limits::default() });
    let mut client = server.connect();
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(client.response(false).status, 200);
        std::thread::sleep(Duration::from_millis(1500));
    }
    let start = Instant::now();
    assert!(client.is_closed());
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn long_heads() {
    let server = Server::plain();
    let long = "a".repeat(12_000);
    // Within what a head may have, beyond it, and before its end has come.
    for len in [9_000, 12_000, 16_300, 16_384, 20_000, 60_000] {
        assert_eq!(server.get(&format!("/{}", "a".repeat(len))).status, 414, "{len}");
    }
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.response(false).status, 200);
    client.send(format!("GET /{}", "a".repeat(17_000)));
    let late = client.response(false);
    assert_eq!((late.status, late.header("connection")), (414, Some("close")));
    assert!(client.is_closed());
    let r = server.ask(&format!("GET / HTTP/1.1\r\nHost: h\r\nX: {long}\r\nY: {long}\r\n\r\n"));
    assert_eq!(r.status, 431);
    let many = "a: b\r\n".repeat(200);
    assert_eq!(server.ask(&format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n")).status, 431);
    server.assert_alive();
}

#[test]
fn more_connections_than_places_wait() {
    let server = with(Limits { connections: 2, header_seconds: 30, ..Limits::default() });
    let mut held: Vec<_> = (0..2).map(|_| server.connect()).collect();
    for client in &mut held {
        client.send("GET /big HTTP/1.1\r\nHost: h\r\n\r\n");
        client.exactly(1);
    }
    let mut waiting = server.connect();
    waiting.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    waiting.stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert!(waiting.stream.read(&mut [0; 1]).is_err(), "a third connection was served");
    drop(held);
    waiting.stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert_eq!(waiting.response(false).status, 200);
}

/// One address cannot have all places.
#[test]
fn connections_of_one_address_are_bounded() {
    let server = with(Limits { connections_per_address: 2, ..Limits::default() });
    // The last of the harness may be counted yet.
    let ask = |client: &mut crate::harness::Client| {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        client.try_response(false).map(|r| r.status)
    };
    let served = || {
        let mut client = server.connect();
        while ask(&mut client) != Some(200) {
            client = server.connect();
        }
        client
    };
    let held = [served(), served()];
    assert_eq!(ask(&mut server.connect()), None);
    drop(held);
    served();
}

#[test]
fn clients_that_take_nothing() {
    let server = with(Limits { stall_seconds: 1, ..Limits::default() });
    let mut client = server.connect();
    client.send("GET /big HTTP/1.1\r\nHost: h\r\n\r\n");
    std::thread::sleep(Duration::from_secs(4));
    // What the sockets hold is left; the rest was given up.
    assert!(client.rest().len() < 64 << 20);
    server.assert_alive();
}

#[test]
fn a_stop_drains() {
    let mut server = with(Limits { drain_seconds: 20, header_seconds: 60, ..Limits::default() });
    let mut silent = server.connect();
    let mut idle = server.connect();
    idle.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(idle.response(false).status, 200);
    let mut busy = server.connect();
    busy.send("GET /big HTTP/1.1\r\nHost: h\r\n\r\n");
    let begun = busy.exactly(1000).len();
    server.terminate();
    assert!(silent.is_closed());
    assert!(idle.is_closed());
    // They did not wait for the end of the drain, which would have been the end of this, too.
    assert!(begun + busy.rest().len() > 64 << 20);
    assert_eq!(server.wait(), 0);
}

/// What the system still has to send would end with a guest: its program waits for the client, also if it was through with it long before the stop.
#[test]
fn a_stop_waits_for_what_is_on_its_way() {
    std::thread::scope(|scope| {
        for (http2, late) in [(false, false), (false, true), (true, false), (true, true)] {
            scope.spawn(move || stop_on_the_way(http2, late));
        }
    });
}

fn stop_on_the_way(http2: bool, late: bool) {
    let limits = Limits { drain_seconds: 60, ..Limits::default() };
    let config = Config { limits, ..Config::default() };
    let mut server = Server::start(config, &[("/index.html", b"home"), ("/some", &vec![1; 1 << 20])]);
    let mut client = server.connect_small();
    if http2 {
        let frame = crate::http2::frame;
        client.send(crate::http2::PREFACE);
        // Windows for all of it at once.
        client.send(frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
        client.send(frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]));
        client.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &crate::http2::request("/some")));
        if late {
            // The end of the connection, which is what the server is through with.
            client.send(frame(GOAWAY, 0, 0, &[0; 8]));
        }
    } else {
        client.send("GET /some HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    }
    let begun = client.exactly(1000).len();
    // Longer than a client is listened to.
    let long = || std::thread::sleep(Duration::from_millis(3500));
    if late {
        long();
    }
    server.terminate();
    long();
    assert!(server.is_running(), "{http2}, {late}");
    assert!(begun + client.rest().len() > 1 << 20, "{http2}, {late}");
    assert_eq!(server.wait(), 0);
}
