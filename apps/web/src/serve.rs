//! Listening, connections and their limits.

use crate::addresses::Addresses;
use crate::body::Content;
use crate::budget::{self, Budget, For, Promise};
use crate::connection::talk;
use crate::log::{End, Line};
use crate::metrics::{Held, Metrics};
use crate::progress::State;
#[cfg(feature = "auth")]
use crate::progress::Waits;
use crate::respond::{self, Origin, Scheme};
use crate::site::Site;
#[cfg(feature = "tls")]
use crate::tls::Link;
use crate::upload::Upload;
use bytes::Bytes;
use donjon_web_format::Network;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version, header};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// The server's shared state.
pub struct Server {
    /// What is served.
    pub site: Arc<Site>,
    /// Memory.
    pub budget: Budget,
    /// Counters.
    pub metrics: Metrics,
    /// Passwords.
    #[cfg(feature = "auth")]
    pub gatekeeper: crate::auth::Gatekeeper,
    /// Connections to upstreams.
    #[cfg(feature = "proxy")]
    pub upstreams: crate::proxy::Upstreams,
    /// Certificates.
    #[cfg(feature = "tls")]
    pub tls: Option<Arc<crate::tls::Acceptor>>,
    /// One permit per connection that may be open.
    pub places: Arc<Semaphore>,
    /// The same for those who ask for metrics.
    pub metrics_places: Arc<Semaphore>,
    /// Who has how many connections.
    pub addresses: Addresses,
    /// Turns true when the server is asked to stop.
    pub stop: watch::Receiver<bool>,
}

impl Server {
    /// Whether this client's requests are logged.
    fn logs(&self, client: &Client) -> bool {
        self.site.config.log && client.purpose != Purpose::Metrics
    }

    /// Counts and logs an answer without a body to what has not become a request.
    pub fn refused(&self, client: &Client, status: u16) {
        if client.purpose != Purpose::Metrics {
            self.metrics.response(status);
        }
        if self.logs(client) {
            let end = End { status, bytes: 0, took: [Duration::ZERO; 2], complete: true };
            Line::new(client.peer, None).write(&end);
        }
    }
}

/// What a listener is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The site.
    Site(Scheme),
    /// Metrics.
    Metrics,
}

/// Accepts connections until stop.
pub async fn listen(server: Arc<Server>, listener: TcpListener, purpose: Purpose) {
    let mut stop = server.stop.clone();
    loop {
        // Memory is looked for before a connection is taken. One that has come waits for its place, the others in the backlog; a place that waited for a
        // connection would be lost for the other ports. Metrics are to be had even then.
        let places = if purpose == Purpose::Metrics { &server.metrics_places } else { &server.places };
        let accept = async {
            if purpose != Purpose::Metrics {
                server.budget.room(For::Connection).await;
            }
            let accepted = listener.accept().await?;
            // Nobody closes the semaphore.
            Ok::<_, std::io::Error>((accepted, places.clone().acquire_owned().await.map_err(std::io::Error::other)?))
        };
        let accepted = tokio::select! {
            accepted = accept => accepted,
            _ = stopped(&mut stop) => return,
        };
        match accepted {
            Ok(((stream, peer), place)) => {
                let client = Client { peer, purpose, state: Arc::new(State::new()) };
                tokio::spawn(connection(server.clone(), stream, client, place));
            }
            // Out of descriptors or memory, or a client that left early: go on when something has had time to end.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

impl Server {
    /// Whether places or memory are short.
    pub fn is_crowded(&self) -> bool {
        let few = (self.site.config.limits.connections as usize / 8).max(1);
        // At a stop nobody new comes, and whoever waits for the last of the places holds those that are free.
        let full = || self.places.available_permits() < few && !is_stopped(&self.stop);
        full() || self.budget.is_short()
    }
}

/// Whether the server is asked to stop.
pub fn is_stopped(stop: &watch::Receiver<bool>) -> bool {
    *stop.borrow() || stop.has_changed().is_err()
}

/// Resolves when the server is asked to stop.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop, too.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A connection, which keeps its place until it ends.
#[expect(
    clippy::manual_async_fn,
    reason = "in an `async fn` arguments are there twice, for as long as a connection lives"
)]
fn connection(
    server: Arc<Server>,
    stream: TcpStream,
    client: Client,
    place: OwnedSemaphorePermit,
) -> impl Future<Output = ()> {
    async move {
        let _place = &place;
        let _open = Held::new(&server.metrics.open);
        server.metrics.accepted.fetch_add(1, Relaxed);
        let most = server.site.config.limits.connections_per_address;
        let bounded = most > 0 && client.purpose != Purpose::Metrics && !client.is_trusted(&server.site.config.trusted);
        let counted = bounded.then(|| server.addresses.count(client.peer.ip(), most));
        if matches!(counted, Some(None)) {
            return;
        }
        let _ = stream.set_nodelay(true);
        #[cfg(feature = "tls")]
        if let (Purpose::Site(Scheme::Https), Some(tls)) = (client.purpose, &server.tls) {
            let promise = Box::pin(Promise::soon(&server, For::Connection, budget::HANDSHAKE)).await;
            let Some(promise) = promise else { return };
            if let Some(Ok(stream)) = budget::patient(&server, tls.accept(stream)).await {
                drop(promise);
                talk(&server, Link::Tls(stream), &client).await;
            }
            return;
        }
        #[cfg(feature = "tls")]
        let stream = Link::Plain(stream);
        talk(&server, stream, &client).await;
    }
}

/// Who asks, over which connection.
#[derive(Clone)]
pub struct Client {
    /// The other side's address; of a trusted proxy's client it has no port.
    pub peer: SocketAddr,
    /// Which of our ports it came to.
    pub purpose: Purpose,
    /// The connection's progress.
    pub state: Arc<State>,
}

impl Client {
    fn is_trusted(&self, trusted: &[Network]) -> bool {
        trusted.iter().any(|network| network.contains(self.peer.ip()))
    }

    /// Whoever asks by way of trusted proxies: each adds the address of the one that has asked it to the end. The first that is not trusted is the client.
    fn behind(mut self, trusted: &[Network], headers: &HeaderMap) -> Client {
        if !self.is_trusted(trusted) {
            return self;
        }
        'all: for said in headers.get_all("x-forwarded-for").iter().rev() {
            for address in said.to_str().unwrap_or("").rsplit(',') {
                let address = address.trim();
                // An IPv4 address may have a port.
                let bare = address.rsplit_once(':').map_or(address, |(bare, _)| bare);
                let Ok(ip) = if bare.contains(':') { address } else { bare }.parse() else { break 'all };
                self.peer = SocketAddr::new(ip, 0);
                if !self.is_trusted(trusted) {
                    break 'all;
                }
            }
        }
        let said = headers.get_all("x-forwarded-proto").iter().next_back();
        let said = said.and_then(|said| said.as_bytes().rsplit(|b| *b == b',').next());
        if let (Purpose::Site(scheme), Some(said)) = (&mut self.purpose, said) {
            *scheme = match said.trim_ascii() {
                b"https" => Scheme::Https,
                b"http" => Scheme::Http,
                _ => *scheme,
            };
        }
        self
    }
}

/// A request in progress: from its head to the end of its response's body.
pub struct Busy {
    state: Arc<State>,
    server: Arc<Server>,
    promises: [Option<Promise>; 2],
    http2: bool,
    /// Whether it is counted.
    counts: bool,
    start: Instant,
    /// The response's status, and when its head was ready.
    head: Option<(u16, Duration)>,
    bytes: u64,
    complete: bool,
    line: Option<Line>,
}

impl Busy {
    fn new(server: &Arc<Server>, client: &Client, version: Version) -> Busy {
        client.state.begin();
        let counts = client.purpose != Purpose::Metrics;
        server.metrics.active.fetch_add(counts.into(), Relaxed);
        Busy {
            state: client.state.clone(),
            server: server.clone(),
            promises: [None, None],
            http2: version == Version::HTTP_2,
            counts,
            start: Instant::now(),
            head: None,
            bytes: 0,
            complete: false,
            line: None,
        }
    }

    /// The response's head is ready.
    fn head(&mut self, status: u16) {
        self.head = Some((status, self.start.elapsed()));
        if self.counts {
            self.server.metrics.response(status);
        }
    }

    /// A piece of the response's body, which is passed on.
    pub fn pass(&mut self, piece: Bytes) -> Bytes {
        self.bytes += piece.len() as u64;
        if self.http2 { self.state.hold(piece) } else { piece }
    }

    /// All of it is.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// Whether there is memory for a request over HTTP/2, which may wait for as long as its client wants; over HTTP/1 its connection has it.
    fn fits(&mut self) -> bool {
        if self.http2 {
            self.promises[0] = Promise::now(&self.server, For::Request, budget::STREAM);
        }
        !self.http2 || self.promises[0].is_some()
    }

    /// Whether there is memory for a body that is made while it is sent.
    fn fits_growing(&mut self) -> bool {
        self.promises[1] = Promise::now(&self.server, For::Http2, budget::LISTING);
        self.promises[1].is_some()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.state.end();
        let metrics = &self.server.metrics;
        metrics.active.fetch_sub(self.counts.into(), Relaxed);
        if self.counts {
            metrics.bytes.fetch_add(self.bytes, Relaxed);
        }
        if let Some(line) = self.line.take() {
            let all = self.start.elapsed();
            // There is no such status: the client has left before there was one (nginx calls it that).
            let (status, head) = self.head.unwrap_or((499, all));
            line.write(&End { status, bytes: self.bytes, took: [head, all], complete: self.complete });
        }
    }
}

/// Answers one request. Status and length are counted and, if asked for, logged.
pub async fn answer(server: Arc<Server>, request: Request<Incoming>, client: Client) -> Response<Content> {
    let (parts, body) = request.into_parts();
    let client = client.behind(&server.site.config.trusted, &parts.headers);
    let mut busy = Busy::new(&server, &client, parts.version);
    busy.line = server.logs(&client).then(|| Line::new(client.peer, Some(&parts)));
    let body = Upload::new(body, parts.version, &client.state);
    let fits = busy.fits();
    let mut response = match client.purpose {
        _ if !fits => respond::unavailable(),
        // As many as hyper allows in HTTP/1.
        _ if parts.headers.keys_len() > 100 => respond::status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        Purpose::Metrics => metrics(&server, parts.uri.path()),
        Purpose::Site(scheme) => site(&server, &parts, body, &client, scheme, &mut busy).await,
    };
    let len = response.body().len();
    if parts.method == Method::HEAD && len > 0 {
        // hyper leaves a body out of an answer in HTTP/1, but not in HTTP/2.
        if !response.body().grows() {
            response.headers_mut().insert(header::CONTENT_LENGTH, len.into());
        }
        *response.body_mut() = Content::default();
    }
    if client.state.unread() {
        // The client shall know that this is the end, and send nothing after the body.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let closes = match parts.headers.get(header::CONNECTION) {
        Some(value) => value.as_bytes().eq_ignore_ascii_case(b"close"),
        None => parts.version < Version::HTTP_11,
    };
    if closes && parts.version <= Version::HTTP_11 && !response.body().waits() {
        client.state.last();
    }
    busy.head(response.status().as_u16());
    response.body_mut().keep(busy);
    response
}

fn metrics(server: &Server, path: &str) -> Response<Content> {
    if path != "/metrics" {
        return respond::status(StatusCode::NOT_FOUND);
    }
    let response = Response::new(Content::new([server.metrics.text(&server.site.config).into()]));
    respond::with(response, header::CONTENT_TYPE, "text/plain; version=0.0.4")
}

async fn site(
    server: &Arc<Server>,
    parts: &hyper::http::request::Parts,
    body: Upload,
    client: &Client,
    scheme: Scheme,
    busy: &mut Busy,
) -> Response<Content> {
    let site = &server.site;
    let target = match respond::target(site, parts, scheme) {
        Ok(target) => target,
        Err(mut response) => {
            let path = crate::path::normalise(parts.uri.path()).unwrap_or_default();
            respond::dress(site, scheme, Origin::Site, &path, &mut response);
            return *response;
        }
    };
    #[cfg(feature = "auth")]
    let checked = {
        let _waits = Waits::new(&client.state);
        server.gatekeeper.check(&site.config, parts, &target.path, client.peer.ip()).await
    };
    #[cfg(feature = "auth")]
    if let Err(mut response) = checked {
        respond::dress(site, scheme, Origin::Site, &target.path, &mut response);
        return *response;
    }
    #[cfg(feature = "proxy")]
    if let Some(proxy) = crate::proxy::find(&site.config, &target.path) {
        // On the heap: what a request keeps is as large as the largest thing that it might wait for.
        let forwarding = server.upstreams.forward(server, proxy, parts, body, client, scheme);
        return match Box::pin(forwarding).await {
            Ok(mut response) => {
                respond::dress(site, scheme, Origin::Upstream, &target.path, &mut response);
                response
            }
            Err(code) => {
                let mut response = match code {
                    StatusCode::SERVICE_UNAVAILABLE => respond::unavailable(),
                    code => respond::status(code),
                };
                respond::dress(site, scheme, Origin::Site, &target.path, &mut response);
                response
            }
        };
    }
    let _ = (body, client);
    let mut response = respond::content(site, parts, &target);
    if response.body().grows() && !busy.fits_growing() {
        response = respond::unavailable();
    }
    respond::dress(site, scheme, Origin::Site, &target.path, &mut response);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusted_proxies_say_who_asks() {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|network| Network::parse(network).unwrap());
        let ask = |peer: &str, headers: &[(&'static str, &'static str)]| {
            let peer = SocketAddr::new(peer.parse().unwrap(), 5);
            let client = Client { peer, purpose: Purpose::Site(Scheme::Http), state: Arc::new(State::new()) };
            let mut all = HeaderMap::new();
            for (name, value) in headers {
                all.append(*name, HeaderValue::from_static(value));
            }
            let client = client.behind(&trusted, &all);
            (client.peer.to_string(), client.purpose == Purpose::Site(Scheme::Https))
        };
        let (of, proto) = ("x-forwarded-for", "x-forwarded-proto");
        for (peer, headers, who, https) in [
            // A stranger's word is nothing.
            ("192.0.2.1", &[(of, "192.0.2.9"), (proto, "https")][..], "192.0.2.1:5", false),
            ("10.0.0.1", &[], "10.0.0.1:5", false),
            ("10.0.0.1", &[(of, "192.0.2.9"), (proto, "https")], "192.0.2.9:0", true),
            ("::ffff:10.0.0.1", &[(of, "192.0.2.9"), (proto, "ftp")], "192.0.2.9:0", false),
            // Nor is what it has said to the first that is trusted.
            ("10.0.0.1", &[(of, "8.8.8.8, 192.0.2.9, 10.0.0.2")], "192.0.2.9:0", false),
            ("10.0.0.1", &[(of, "8.8.8.8"), (of, "192.0.2.9:77"), (of, "fd00::2,10.1.1.1")], "192.0.2.9:0", false),
            ("fd00::1", &[(of, "2001:db8::1")], "[2001:db8::1]:0", false),
            ("10.0.0.1", &[(of, "192.0.2.9, unknown, 10.0.0.2")], "10.0.0.2:0", false),
            ("10.0.0.1", &[(of, "10.0.0.3")], "10.0.0.3:0", false),
            ("10.0.0.1", &[(proto, "http, https")], "10.0.0.1:5", true),
        ] {
            assert_eq!(ask(peer, headers), (who.into(), https), "{peer} {headers:?}");
        }
    }

    /// What an idle connection costs on the heap, besides the socket, its progress and TLS. A task is some 90 bytes more, up to a multiple of 128; this
    /// makes 768, which is a size of the guest's allocator.
    #[test]
    fn an_idle_connection_is_small() {
        fn size<F: Future>(_: impl FnOnce(Arc<Server>, TcpStream, Client, OwnedSemaphorePermit) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size(connection);
        assert!(bytes <= 672, "{bytes} bytes");
    }
}
