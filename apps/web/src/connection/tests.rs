use super::*;
use crate::respond::Scheme;
use crate::serve::Purpose;
use donjon_web_format::{Config, Limits, Proxy};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

impl Socket for tokio::io::DuplexStream {
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

fn server(config: &Config, files: &[(&str, &[u8])]) -> (Arc<Server>, watch::Sender<bool>) {
    let (stop, stopped) = watch::channel(false);
    let server = Server {
        #[cfg(feature = "tls")]
        tls: None,
        #[cfg(feature = "auth")]
        gatekeeper: Default::default(),
        upstreams: Default::default(),
        site: crate::site::tests::site(config, files),
        budget: budget::Budget::unbounded(),
        metrics: Default::default(),
        places: Arc::new(Semaphore::new(8)),
        metrics_places: Arc::new(Semaphore::new(8)),
        addresses: Default::default(),
        stop: stopped,
    };
    (Arc::new(server), stop)
}

/// Serves a connection.
fn talking(server: Arc<Server>, stream: tokio::io::DuplexStream) -> (tokio::task::JoinHandle<()>, Arc<State>) {
    let state = Arc::new(State::new());
    let client =
        Client { peer: ([127, 0, 0, 1], 1).into(), purpose: Purpose::Site(Scheme::Http), state: state.clone() };
    (tokio::spawn(async move { talk(&server, stream, &client).await }), state)
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// An HTTP/2 client with little room for what a stream sends.
struct Narrow(tokio::io::DuplexStream);

impl Narrow {
    const WINDOW: usize = 1000;

    async fn new(mut stream: tokio::io::DuplexStream) -> Narrow {
        let settings = [&[0, 4][..], &(Narrow::WINDOW as u32).to_be_bytes()].concat();
        let start = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &settings)].concat();
        stream.write_all(&start).await.unwrap();
        Narrow(stream)
    }

    /// Asks for `/a`.
    async fn ask(&mut self, stream: u32) {
        let request = [0x82, 0x86, 0x04, 2, b'/', b'a', 0x01, 1, b'h'];
        self.0.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &request)).await.unwrap();
    }

    /// The next frame: kind, flags and payload.
    async fn read(&mut self) -> (u8, u8, Vec<u8>) {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).await.unwrap();
        (head[3], head[4], payload)
    }

    /// Reads until a stream that was asked for has sent so much.
    async fn take(&mut self, len: usize) {
        let (mut got, mut last) = (0, 0);
        while got < len {
            let (kind, flags, payload) = self.read().await;
            if kind == DATA {
                (got, last) = (got + payload.len(), flags);
            }
        }
        assert_eq!((got, last & END_STREAM != 0), (len, len != Narrow::WINDOW));
    }

    /// Takes the answer, of which all but a window's worth waits for long.
    async fn take_late(&mut self, stream: u32, meanwhile: impl FnOnce()) {
        self.take(Narrow::WINDOW).await;
        meanwhile();
        tokio::time::sleep(LINGER * 5).await;
        self.0.write_all(&frame(WINDOW_UPDATE, 0, stream, &100_000u32.to_be_bytes())).await.unwrap();
        self.take(LARGE.len() - Narrow::WINDOW).await;
    }
}

/// More than a window, and so little that HTTP/2 takes it at once.
const LARGE: &[u8] = &[b'a'; 30_000];

/// As many places as there are.
fn places() -> Limits {
    Limits { connections: 8, ..Limits::default() }
}

/// What HTTP/2 keeps for a window is under way, whether its body is complete or not.
#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_what_waits_for_a_window() {
    let (server, stop) = server(&Config { limits: places(), ..Config::default() }, &[("/a", LARGE)]);
    let (theirs, ours) = tokio::io::duplex(64 * 1024);
    let (talking, _) = talking(server, ours);
    let mut client = Narrow::new(theirs).await;
    client.ask(1).await;
    client.take_late(1, || stop.send(true).unwrap()).await;
    talking.await.unwrap();
}

/// A request may be on its way when an idle connection gets its GOAWAY.
#[tokio::test(start_paused = true)]
async fn a_request_that_meets_goaway_is_answered() {
    let limits = Limits { idle_seconds: 1, ..places() };
    let (server, _stop) = server(&Config { limits, ..Config::default() }, &[("/a", LARGE)]);
    let (theirs, ours) = tokio::io::duplex(64 * 1024);
    let (talking, _) = talking(server, ours);
    let mut client = Narrow::new(theirs).await;
    while client.read().await.0 != GOAWAY {}
    client.ask(1).await;
    client.take_late(1, || {}).await;
    talking.await.unwrap();
}

/// Who has to go for others is told.
#[tokio::test(start_paused = true)]
async fn a_crowd_says_goodbye() {
    let limits = Limits { connections: 100, ..places() };
    let (server, _stop) = server(&Config { limits, ..Config::default() }, &[]);
    assert!(server.is_crowded());
    let (theirs, ours) = tokio::io::duplex(64 * 1024);
    let (talking, _) = talking(server, ours);
    let mut client = Narrow::new(theirs).await;
    while client.read().await.0 != GOAWAY {}
    client.0.read_to_end(&mut vec![]).await.unwrap();
    drop(client);
    talking.await.unwrap();
}

/// However few places there are, who is slow goes when none is left.
#[tokio::test]
async fn few_places_can_be_crowded() {
    let limits = Limits { connections: 4, ..places() };
    let (server, _stop) = server(&Config { limits, ..Config::default() }, &[]);
    let all = server.places.clone().try_acquire_many_owned(8).unwrap();
    assert!(server.is_crowded());
    drop(all);
    assert!(!server.is_crowded());
}

/// Who waits for a password to be checked is not slow.
#[cfg(feature = "auth")]
#[tokio::test(start_paused = true)]
async fn a_crowd_leaves_time_for_passwords() {
    let mut key = [0; 32];
    let rounds = 20_000;
    pbkdf2::pbkdf2_hmac::<sha2::Sha256>(b"c", b"\x01", rounds, &mut key);
    let area = donjon_web_format::Auth {
        pattern: "*".into(),
        realm: "R".into(),
        user: "ab".into(),
        rounds,
        salt: "01".into(),
        key: key.iter().map(|b| format!("{b:02x}")).collect(),
    };
    let limits = Limits { connections: 100, ..places() };
    let (server, _stop) = server(&Config { limits, auth: vec![area], ..Config::default() }, &[("/a", b"")]);
    let (mut theirs, ours) = tokio::io::duplex(64 * 1024);
    let (talking, _) = talking(server.clone(), ours);
    theirs.write_all(b"GET /a HTTP/1.0\r\nAuthorization: Basic YWI6Yw==\r\n\r\n").await.unwrap();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(server.is_crowded() && server.metrics.active.load(Relaxed) == 1);
    tokio::time::advance(CROWDED * 2).await;
    let mut said = String::new();
    theirs.read_to_string(&mut said).await.unwrap();
    assert!(said.starts_with("HTTP/1.0 200"), "{said}");
    drop(theirs);
    talking.await.unwrap();
}

/// What the system has for a client is waited for while he takes some of it; at a stop in any case.
#[tokio::test(start_paused = true)]
async fn what_was_sent_is_waited_for() {
    let (server, stop) = server(&Config { limits: places(), ..Config::default() }, &[]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut ours, _) = listener.accept().await.unwrap();
    let (fd, mut len) = (Some(ours.as_raw_fd()), 0);
    ours.writable().await.unwrap();
    while let Ok(n) = ours.try_write(&[b'a'; 100_000]) {
        len += n;
    }
    let start = Instant::now();
    sent(&server, &mut ours, fd).await;
    assert!(start.elapsed() >= pause(&server), "{:?}", start.elapsed());
    stop.send(true).unwrap();
    assert!(timeout(pause(&server) * 10, sent(&server, &mut ours, fd)).await.is_err());
    let take = async { theirs.read_exact(&mut vec![0; len]).await.unwrap() };
    tokio::join!(sent(&server, &mut ours, fd), take);
}

/// A client that asks for a WebSocket and does not take the answer: nothing of it is left.
#[tokio::test]
async fn an_upgrade_that_is_not_taken_ends() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config {
        proxies: vec![Proxy { prefix: "/api".into(), upstream: upstream.local_addr().unwrap().to_string() }],
        limits: Limits { stall_seconds: 1, upstream_seconds: 1, ..Limits::default() },
        ..Config::default()
    };
    let (server, _stop) = server(&config, &[]);
    let (mut theirs, ours) = tokio::io::duplex(40);
    let (talking, state) = talking(server, ours);
    let request = b"GET /api/x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    theirs.write_all(request).await.unwrap();
    let (mut far, _) = upstream.accept().await.unwrap();
    let mut buffer = [0; 1000];
    assert!(far.read(&mut buffer).await.unwrap() > 0);
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    far.write_all(answer).await.unwrap();
    talking.await.unwrap();
    drop(state);
    // Whoever keeps the upstream's connection would be waited for without end.
    let end = timeout(Duration::from_secs(10), far.read(&mut buffer)).await;
    assert_eq!(end.expect("the upstream's connection ends").unwrap(), 0);
}

/// An upstream that answers early and takes no more, and a client that goes: neither holds memory.
#[tokio::test]
async fn an_early_answer_gives_memory_back() {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.set_recv_buffer_size(4096).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(1).unwrap();
    let upstream = TcpListener::from_std(listener.into()).unwrap();
    let config = Config {
        proxies: vec![Proxy { prefix: "/api".into(), upstream: upstream.local_addr().unwrap().to_string() }],
        limits: Limits { stall_seconds: 1, upstream_seconds: 1, ..places() },
        ..Config::default()
    };
    let (server, _stop) = server(&config, &[]);
    let (mut theirs, ours) = tokio::io::duplex(64 * 1024);
    let (talking, _) = talking(server.clone(), ours);
    theirs.write_all(b"POST /api/x HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n").await.unwrap();
    let (mut far, _) = upstream.accept().await.unwrap();
    assert!(far.read(&mut [0; 1000]).await.unwrap() > 0);
    // As much as is taken.
    while timeout(LOOK_SENT[1], theirs.write_all(&[b'a'; 1000])).await.is_ok() {}
    assert!(server.budget.promised() > 0);
    far.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    let mut said = [0; 15];
    theirs.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"HTTP/1.1 200 OK");
    talking.await.unwrap();
    let released = async {
        while server.budget.promised() > 0 {
            tokio::time::sleep(LOOK_SENT[0]).await;
        }
    };
    timeout(Duration::from_secs(20), released).await.expect("memory is given back");
}
