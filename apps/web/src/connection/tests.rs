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

fn server(config: &Config) -> (Arc<Server>, watch::Sender<bool>) {
    let (stop, stopped) = watch::channel(false);
    let server = Server {
        #[cfg(feature = "tls")]
        tls: None,
        #[cfg(feature = "auth")]
        gatekeeper: Default::default(),
        upstreams: Default::default(),
        site: crate::site::tests::site(config, &[]),
        budget: budget::Budget::unbounded(),
        metrics: Default::default(),
        places: Arc::new(Semaphore::new(8)),
        metrics_places: Arc::new(Semaphore::new(8)),
        torn: Default::default(),
        stop: stopped,
    };
    (Arc::new(server), stop)
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
    let (server, _stop) = server(&config);
    let (mut theirs, ours) = tokio::io::duplex(40);
    let state = Arc::new(State::new());
    let client =
        Client { peer: ([127, 0, 0, 1], 1).into(), purpose: Purpose::Site(Scheme::Http), state: state.clone() };
    let talking = tokio::spawn(async move { talk(&server, ours, &client).await });
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
