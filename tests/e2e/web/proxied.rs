//! Requests that go on to an upstream.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use donjon_tests::{Engine, Guest, HOST_IP, Netns, PATIENCE};
use tungstenite::{Message, client};

use super::{Curl, Site, Upstream, data};

crate::under_engines! {
    requests: ProcessUser QemuMicrovm;
    bodies: ProcessUser QemuMicrovm;
    broken_upstreams: ProcessUser QemuMicrovm;
    connections_are_kept: ProcessUser ProcessTap QemuMicrovm;
    slow_upstreams: ProcessUser ProcessTap QemuMicrovm;
    websocket: ProcessUser QemuMicrovm QemuQ35;
}

fn get(guest: &Guest, path: &str, args: &[&str]) -> Curl {
    let url = guest.url(path);
    Curl::run(guest, &[args, &[&url]].concat())
}

fn requests(engine: Engine) {
    let guest = Site::App.start(engine);
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let answer =
            get(&guest, "/api/a%20path?q=%2F", &[version, "-H", "X-Forwarded-For: 1.2.3.4", "-H", "X-Mine: yes"]);
        let answer = answer.expect(200);
        let text = answer.text().to_ascii_lowercase();
        assert_eq!(answer.header("x-upstream"), "yes");
        for want in ["get /api/a%20path?q=%2f http/1.1\r\n", "x-mine: yes", "x-forwarded-proto: http\r\n"] {
            assert!(text.contains(want), "{want:?} is missing from {text}");
        }
        // What the client claims about hops before us is not passed on.
        assert!(!text.contains("1.2.3.4"), "{text}");
        assert!(text.contains(&format!("host: {}", guest.addr())), "{text}");
    }
    assert_eq!(get(&guest, "/api/x", &["--head"]).expect(200).body, b"");
    // A longer name is another place.
    get(&guest, "/apiary", &["-H", "Accept: application/json"]).expect(404);
}

fn bodies(engine: Engine) {
    let guest = Site::App.start(engine);
    let file = super::content().join("data.bin");
    let upload = format!("@{}", file.display());
    let length = data().len();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let text = get(&guest, "/api/up", &[version, "--data-binary", &upload]).expect(200).text();
        assert!(text.ends_with(&format!("body {length}\n")), "{version}: {text}");
        let chunked = [version, "-H", "Transfer-Encoding: chunked", "--data-binary", &upload];
        let text = get(&guest, "/api/up", &chunked).expect(200).text();
        assert!(text.ends_with(&format!("body {length}\n")), "{version}: {text}");
        let want: String = (0..100).map(|n| format!("chunk {n:03}\n")).collect();
        assert_eq!(get(&guest, "/api/chunks", &[version]).expect(200).text(), want);
    }
    let expecting = ["-H", "Expect: 100-continue", "--data-binary", &upload];
    assert!(get(&guest, "/api/up", &expecting).expect(200).text().ends_with(&format!("body {length}\n")));
    // Announced as too large, and too large without saying so.
    let big = super::scratch().join(format!("big-{engine:?}"));
    std::fs::write(&big, vec![b'x'; 3_000_000]).unwrap();
    let big = format!("@{}", big.display());
    get(&guest, "/api/up", &["--data-binary", &big]).expect(413);
    get(&guest, "/api/up", &["-H", "Transfer-Encoding: chunked", "--data-binary", &big]).expect(413);
    get(&guest, "/api/after", &[]).expect(200);
}

fn broken_upstreams(engine: Engine) {
    let mut guest = Site::App.start(engine);
    get(&guest, "/down/x", &[]).expect(502);
    get(&guest, "/api/garbage", &[]).expect(502);
    let split = get(&guest, "/api/split", &[]);
    assert!(split.status == 502 || split.header("x-two").is_empty(), "{split:?}");
    get(&guest, "/api/after", &[]).expect(200);
    guest.expect_alive();
}

/// A guest with a backend of its own, where the guest reaches it under this engine.
fn with_own_upstream(engine: Engine, name: &str, options: &[&str]) -> (Guest, &'static Upstream) {
    let (ns, upstream, host) = if engine == Engine::ProcessTap {
        let ns = Netns::with_tap();
        let listener = ns.run(|| TcpListener::bind((HOST_IP, 0)).unwrap());
        (Some(ns), Upstream::start(listener), HOST_IP)
    } else {
        (None, Upstream::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()), "10.0.2.2")
    };
    let mut all = vec![super::content().display().to_string(), format!("--proxy=/api={host}:{}", upstream.port())];
    all.extend(options.iter().map(|o| (*o).to_owned()));
    let image = super::pack(&format!("{name}-{engine:?}"), &all);
    let mut guest = Guest::builder(&image, engine).port(80).start_in(ns);
    guest.wait_http("/healthz");
    (guest, upstream)
}

/// Clients that come and go share a connection to the upstream.
fn connections_are_kept(engine: Engine) {
    let (guest, upstream) = with_own_upstream(engine, "kept", &[]);
    for n in 0..20 {
        assert_eq!(guest.get(&format!("/api/{n}")).unwrap().status, 200);
    }
    // Ten over one connection of the client, and one over HTTP/2.
    assert!(guest.curl(&["--http1.1", &guest.url("/api/[20-29]")]).starts_with(b"GET /api/20 "));
    get(&guest, "/api/30", &["--http2-prior-knowledge"]).expect(200);
    assert_eq!((upstream.seen().len(), upstream.connections()), (31, 1), "requests, connections");
}

/// An upstream that says nothing for longer than it may costs this request only.
fn slow_upstreams(engine: Engine) {
    let (mut guest, upstream) = with_own_upstream(engine, "slow", &["--upstream-seconds=1"]);
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        get(&guest, "/api/hold", &[version]).expect(504);
        get(&guest, "/api/after", &[version]).expect(200);
    }
    assert_eq!(upstream.seen().iter().filter(|line| line.contains("hold")).count(), 2, "asked once each");
    upstream.release();
    guest.expect_alive();
}

fn websocket(engine: Engine) {
    let guest = Site::App.start(engine);
    let stream: TcpStream = guest.connect().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut socket, answer) = client(format!("ws://{}/api/echo", guest.addr()), stream).unwrap();
    assert_eq!(answer.status().as_u16(), 101);
    for length in [0, 1, 125, 126, 65_535, 65_536, 1_000_000] {
        let text = Message::text("x".repeat(length));
        socket.send(text.clone()).unwrap();
        assert_eq!(socket.read().unwrap(), text, "{length}");
    }
    for n in 0..500 {
        socket.send(Message::text(n.to_string())).unwrap();
    }
    for n in 0..500 {
        assert_eq!(socket.read().unwrap(), Message::text(n.to_string()));
    }
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
}
