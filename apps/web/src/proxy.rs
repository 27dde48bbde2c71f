//! Forwarding to upstreams: pooled HTTP/1.1 connections, streaming both ways, upgrades (WebSocket).

use crate::body::Content;
use crate::budget::{self, For, Promise};
use crate::path::bare;
use crate::progress::{State, Watched};
use crate::respond::{Scheme, host};
use crate::serve::{Client, Server};
use crate::upload::Upload;
use bytes::Bytes;
use donjon_web_format::{Config, Proxy};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep, timeout, timeout_at};

/// Longest wait for a connection to an upstream.
const CONNECT: Duration = Duration::from_secs(5);
/// Fewest bytes a second that a client must send of a body, on average after a first pause.
const BODY_RATE: u64 = 128;
/// How long one address of an upstream has to answer before the next is asked, too: the first SYN is repeated after that time.
const NEXT: Duration = Duration::from_secs(1);
/// Most idle connections kept for each upstream.
const IDLE_MAX: usize = 32;
/// For how long, unless the upstream says less: after that, something on the way may have forgotten them.
const IDLE_AGE: Duration = Duration::from_secs(30);
/// Headers that concern one connection only (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The proxy whose prefix is the longest that matches at a `/` boundary, with or without the path's parameters.
pub fn find<'a>(config: &'a Config, path: &str) -> Option<&'a Proxy> {
    let under = |p: &Proxy, path: &str| {
        let rest = path.strip_prefix(p.prefix.trim_end_matches('/'));
        rest.is_some_and(|r| r.is_empty() || r.starts_with('/'))
    };
    let bare = if config.proxies.is_empty() { None } else { bare(path) };
    let under = |p: &&Proxy| under(p, path) || bare.as_ref().is_some_and(|b| under(p, b));
    config.proxies.iter().filter(under).max_by_key(|p| p.prefix.len())
}

/// Idle connections, each with the time when it is too old.
type Idle = Vec<(Link, Instant)>;

/// A connection to an upstream, which ends when this is dropped: of itself it would go on waiting for an upstream that does not take what is left of a
/// body, although nobody waits for the answer.
struct Link {
    sender: SendRequest<Stream>,
    task: Option<AbortHandle>,
}

impl Link {
    /// The connection goes on without this.
    fn detach(&mut self) {
        self.task = None;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The same by upstream.
#[derive(Default)]
pub struct Upstreams {
    idle: Mutex<HashMap<String, Idle>>,
}

impl Upstreams {
    /// Forwards one request and returns the upstream's response, or 400, 408, 413, 502 or 504.
    pub async fn forward(
        &self,
        server: &Arc<Server>,
        proxy: &Proxy,
        parts: &Parts,
        body: Upload,
        client: &Client,
        scheme: Scheme,
    ) -> Result<Response<Content>, StatusCode> {
        let limits = server.site.config.limits;
        if body.size_hint().lower() > limits.body_bytes {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        // The path was matched as we understand it; the upstream gets it as it was sent. Both must be the same place.
        if has_dots(parts.uri.path()) {
            return Err(StatusCode::BAD_REQUEST);
        }
        // hyper takes off the last coding only, and what is left would pass for the body itself (RFC 9112 §6.1).
        let mut codings = parts.headers.get_all(header::TRANSFER_ENCODING).iter();
        if codings.next().is_some_and(|c| !c.as_bytes().eq_ignore_ascii_case(b"chunked")) || codings.next().is_some() {
            return Err(StatusCode::NOT_IMPLEMENTED);
        }
        let bytes = budget::exchange(parts.headers.len(), !body.is_end_stream(), parts.version == Version::HTTP_2);
        let promise = Promise::now(server, For::Upstream, bytes).ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
        client.state.forwarded(true);
        let promise = Arc::new(Exchange(promise, client.state.clone()));
        let moved = Arc::new(Moved::new());
        let stream = Stream {
            body: Some(body),
            left: limits.body_bytes,
            stall: Duration::from_secs(limits.stall_seconds.into()),
            sleep: None,
            moved: Some(moved.clone()),
            back: None,
            _promise: Some(promise.clone()),
        };
        let upgrade = upgrade_of(parts, &stream);
        let request = |stream| outgoing(proxy, parts, stream, client, scheme, upgrade.as_ref());
        let exchange = self.exchange(proxy, stream, request);
        let mut exchange = std::pin::pin!(exchange);
        let limit = Duration::from_secs(limits.upstream_seconds.into());
        let mut due = moved.last() + limit;
        let (response, mut link) = loop {
            match timeout_at(due, exchange.as_mut()).await {
                // A long upload is no reason to give up.
                Err(_) if moved.last() + limit > due => due = moved.last() + limit,
                Err(_) => return Err(StatusCode::GATEWAY_TIMEOUT),
                Ok(answer) => break answer?,
            }
        };
        match (response.status(), &upgrade) {
            (StatusCode::SWITCHING_PROTOCOLS, Some(_)) => {
                link.detach();
                Ok(switch(client, response, promise))
            }
            (StatusCode::SWITCHING_PROTOCOLS, None) => Err(StatusCode::BAD_GATEWAY),
            _ => Ok(incoming(server, proxy, response, link, promise)),
        }
    }

    async fn exchange(
        &self,
        proxy: &Proxy,
        stream: Stream,
        request: impl Fn(Stream) -> Request<Stream>,
    ) -> Result<(Response<Incoming>, Link), StatusCode> {
        let repeatable = stream.is_end_stream();
        let mut request_now = request(stream);
        let repeatable = repeatable && request_now.method().is_idempotent();
        // A pooled connection may die while the request is on its way to it. `try_send_request` gives an unsent request back; one that was sent is
        // repeated where that is harmless: once, on a connection that cannot be stale (RFC 9110 §9.2.2).
        while let Some(mut link) = self.take(&proxy.upstream) {
            match link.sender.try_send_request(request_now).await {
                Ok(response) => return Ok((response, link)),
                Err(mut e) => match e.take_message() {
                    Some(unsent) => request_now = unsent,
                    None if repeatable && is_closed(e.error()) => {
                        request_now = request(Stream::default());
                        break;
                    }
                    None => return Err(failure(e.error())),
                },
            }
        }
        let connected = timeout(CONNECT, connect(&proxy.upstream)).await.map_err(|_| StatusCode::GATEWAY_TIMEOUT);
        let stream = connected?.ok_or(StatusCode::BAD_GATEWAY)?;
        let _ = stream.set_nodelay(true);
        let _ = socket2::SockRef::from(&stream).set_send_buffer_size(budget::QUEUE);
        let handshake = http1::Builder::new().max_buf_size(budget::BUFFER).handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(|_| StatusCode::BAD_GATEWAY)?;
        let task = tokio::spawn(connection.with_upgrades()).abort_handle();
        let mut link = Link { sender, task: Some(task) };
        let response = link.sender.send_request(request_now).await.map_err(|e| failure(&e))?;
        Ok((response, link))
    }

    fn take(&self, upstream: &str) -> Option<Link> {
        let mut idle = self.idle.lock().ok()?;
        let list = idle.get_mut(upstream)?;
        prune(list);
        list.pop().map(|(link, _)| link)
    }

    /// Keeps a connection whose exchange is over in both directions. After an early answer the request may still be on its way, as slowly as its
    /// client likes: such a connection ends with it.
    fn put(&self, upstream: &str, mut link: Link, keep: Duration) {
        if !link.sender.is_ready() {
            return link.detach();
        }
        if let Ok(mut idle) = self.idle.lock() {
            let list = idle.entry(upstream.into()).or_default();
            list.push((link, Instant::now() + keep));
            prune(list);
            list.truncate(IDLE_MAX);
        }
    }
}

/// Drops what can be of no use.
fn prune(list: &mut Idle) {
    let now = Instant::now();
    list.retain(|(link, until)| *until > now && link.sender.is_ready());
}

/// For how long an upstream's connection may be kept: for less than it says, so that no request meets its end.
fn keep(headers: &HeaderMap) -> Duration {
    let said = headers.get("keep-alive").and_then(|v| v.to_str().ok()).and_then(|v| {
        let timeout = v.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
        timeout.parse().ok()
    });
    said.map_or(IDLE_AGE, |seconds: u32| IDLE_AGE.min(Duration::from_secs(seconds.saturating_sub(1).into())))
}

/// Connects to an address of an upstream. The next is tried when those before have failed, or have said nothing for a while.
async fn connect(upstream: &str) -> Option<TcpStream> {
    let mut attempts = vec![];
    for name in upstream.split(',') {
        for address in lookup_host(name).await.into_iter().flatten() {
            attempts.push(Box::pin(TcpStream::connect(address)));
            if let Ok(Some(stream)) = timeout(NEXT, first(&mut attempts)).await {
                return Some(stream);
            }
        }
    }
    first(&mut attempts).await
}

/// The first attempt that succeeds; `None` if all have failed.
async fn first<F>(attempts: &mut Vec<Pin<Box<F>>>) -> Option<TcpStream>
where
    F: Future<Output = std::io::Result<TcpStream>>,
{
    poll_fn(|cx| {
        let mut found = None;
        attempts.retain_mut(|attempt| match attempt.as_mut().poll(cx) {
            Poll::Ready(ended) => {
                found = found.take().or(ended.ok());
                false
            }
            Poll::Pending => true,
        });
        if found.is_some() || attempts.is_empty() { Poll::Ready(found) } else { Poll::Pending }
    })
    .await
}

/// Whether a connection ended without an answer. One that cannot be read is an answer.
fn is_closed(error: &hyper::Error) -> bool {
    use std::error::Error;
    error.is_incomplete_message() || error.source().is_some_and(|s| s.is::<std::io::Error>())
}

fn failure(error: &hyper::Error) -> StatusCode {
    use std::error::Error;
    // Our own body's errors come back through hyper.
    match error.source().and_then(|s| s.downcast_ref::<BodyError>()) {
        Some(BodyError::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
        Some(BodyError::Stalled) => StatusCode::REQUEST_TIMEOUT,
        Some(BodyError::Broken(_)) => StatusCode::BAD_REQUEST,
        None => StatusCode::BAD_GATEWAY,
    }
}

/// Whether a path has a component that is `.` or `..` once decoded and without its parameters.
fn has_dots(path: &str) -> bool {
    let plain = path.replace("%2e", ".").replace("%2E", ".").replace("%2f", "/").replace("%2F", "/");
    let plain = plain.replace("%3b", ";").replace("%3B", ";");
    plain.split('/').any(|component| matches!(component.split(';').next(), Some("." | "..")))
}

/// WebSocket, if that and nothing else is what the client asks to go over to (RFC 6455 §4.1). Through a tunnel go requests that we do not see: another
/// protocol, HTTP/2 say, could ask for any path. Whoever names one gets an ordinary answer (RFC 9110 §7.8).
fn upgrade_of(parts: &Parts, body: &Stream) -> Option<HeaderValue> {
    let headers = &parts.headers;
    if parts.version != Version::HTTP_11 || parts.method != Method::GET || !body.is_end_stream() {
        return None;
    }
    let asked = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    asked.flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case("upgrade")).then_some(())?;
    let mut named = headers.get_all(header::UPGRADE).iter();
    let websocket = named.next()?.as_bytes().eq_ignore_ascii_case(b"websocket") && named.next().is_none();
    websocket.then_some(HeaderValue::from_static("websocket"))
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
    headers.remove("http2-settings");
}

/// Whether a header is for a proxy to set, and not for a client; or is the variable of one that is, where `-` and `_` are the same (RFC 3875 §4.1.18), or
/// that of the proxy that a CGI program is to use.
fn is_claim(name: &str) -> bool {
    let like = |claim: &str, name: &str| name.bytes().map(|b| if b == b'_' { b'-' } else { b }).eq(claim.bytes());
    let forwarded = name.get(..11).is_some_and(|start| like("x-forwarded", start));
    forwarded || ["x-real-ip", "forwarded", "proxy"].iter().any(|claim| like(claim, name))
}

fn outgoing(
    proxy: &Proxy,
    parts: &Parts,
    stream: Stream,
    client: &Client,
    scheme: Scheme,
    upgrade: Option<&HeaderValue>,
) -> Request<Stream> {
    let mut headers = parts.headers.clone();
    strip(&mut headers);
    // What a client claims about earlier hops is replaced, not extended: there is no hop before us that we know of.
    for name in parts.headers.keys().filter(|name| is_claim(name.as_str())) {
        headers.remove(name);
    }
    if let Some(host) = host(parts).and_then(|h| HeaderValue::from_str(h).ok()) {
        headers.insert(header::HOST, host.clone());
        headers.insert("x-forwarded-host", host);
    } else if let Some(Ok(upstream)) = proxy.upstream.split(',').next().map(HeaderValue::from_str) {
        // HTTP/1.1 must have one (RFC 9112 §3.2).
        headers.insert(header::HOST, upstream);
    }
    // HTTP/2 may have them in pieces (RFC 9113 §8.2.3).
    let cookies: Vec<&[u8]> = parts.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(all) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, all);
    }
    let via = match parts.version {
        Version::HTTP_2 => "2.0 donjon",
        Version::HTTP_10 => "1.0 donjon",
        _ => "1.1 donjon",
    };
    headers.append(header::VIA, HeaderValue::from_static(via));
    if let Ok(client) = HeaderValue::from_str(&client.peer.ip().to_canonical().to_string()) {
        headers.insert("x-forwarded-for", client);
    }
    let name = if scheme == Scheme::Https { "https" } else { "http" };
    headers.insert("x-forwarded-proto", HeaderValue::from_static(name));
    headers.remove(header::EXPECT);
    // The length is what the body turns out to have, if it is known.
    if headers.remove(header::CONTENT_LENGTH).is_some() && stream.is_end_stream() {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
    let mut request = Request::new(stream);
    *request.method_mut() = parts.method.clone();
    if let Some(path) = parts.uri.path_and_query() {
        *request.uri_mut() = hyper::Uri::from(path.clone());
    }
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = headers;
    request
}

fn incoming(
    server: &Arc<Server>,
    proxy: &Proxy,
    response: Response<Incoming>,
    link: Link,
    promise: Arc<Exchange>,
) -> Response<Content> {
    let (mut head, body) = response.into_parts();
    let keep = keep(&head.headers);
    strip(&mut head.headers);
    head.version = Version::default();
    let back = Back { server: server.clone(), upstream: proxy.upstream.clone(), link, keep };
    let stream = Stream {
        body: Some(Upload::response(body)),
        left: u64::MAX,
        stall: Duration::from_secs(server.site.config.limits.upstream_seconds.into()),
        sleep: None,
        moved: None,
        back: Some(back),
        _promise: Some(promise),
    };
    Response::from_parts(head, Content::stream(stream))
}

/// Passes 101 on. The connection is joined with the upstream when that is written.
fn switch(client: &Client, mut response: Response<Incoming>, promise: Arc<Exchange>) -> Response<Content> {
    client.state.put_upstream((hyper::upgrade::on(&mut response), promise));
    let (mut head, _) = response.into_parts();
    let protocol = head.headers.get(header::UPGRADE).cloned();
    strip(&mut head.headers);
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        head.headers.insert(header::UPGRADE, protocol);
    }
    Response::from_parts(head, Content::default())
}

/// An upstream with which a client is to be joined.
pub type Joined = (OnUpgrade, Arc<Exchange>);

/// Memory for an exchange, and the client's connection, which may have to wait for the upstream.
pub struct Exchange(Promise, Arc<State>);

impl Drop for Exchange {
    fn drop(&mut self) {
        self.1.forwarded(false);
    }
}

/// Joins client and upstream. Ends when both have ended, or nothing has come from either for too long, or at a stop.
pub async fn tunnel<S>(server: &Server, client: Watched<S>, (upstream, promise): Joined)
where
    S: crate::connection::Socket,
{
    let idle = Duration::from_secs(server.site.config.limits.idle_seconds.into());
    let mut stop = server.stop.clone();
    let joined = async {
        if let Ok(upstream) = upstream.await {
            // Nobody else has it: the request has no body, or that has ended.
            let mut promise = Arc::into_inner(promise);
            if let Some(Exchange(promise, _)) = &mut promise {
                promise.shrink(budget::TUNNEL);
            }
            splice(client, TokioIo::new(upstream), idle).await;
        }
    };
    tokio::select! {
        () = joined => {}
        () = crate::serve::stopped(&mut stop) => {}
    }
}

/// Moves bytes both ways, each without waiting for the other, until both have ended or nothing has moved for `idle` to twice that.
async fn splice<A, B>(a: A, b: B, idle: Duration)
where
    A: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    B: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let ((ar, aw), (br, bw)) = (tokio::io::split(a), tokio::io::split(b));
    let moved = AtomicBool::new(false);
    let both = async { tokio::try_join!(pump(ar, bw, &moved), pump(br, aw, &moved)) };
    let stalled = async {
        loop {
            tokio::time::sleep(idle).await;
            if !moved.swap(false, Relaxed) {
                return;
            }
        }
    };
    tokio::select! {
        // An error ends both directions, as it ends the tunnel.
        _ = both => {}
        () = stalled => {}
    }
}

/// One direction.
async fn pump(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    moved: &AtomicBool,
) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 8192];
    loop {
        let n = from.read(&mut buffer).await?;
        moved.store(true, Relaxed);
        match n {
            0 => return to.shutdown().await,
            n => to.write_all(&buffer[..n]).await?,
        }
    }
}

/// Why a body of ours ended early.
#[derive(Debug)]
enum BodyError {
    /// The client sends more than the limit.
    TooLarge,
    /// Nothing came for too long.
    Stalled,
    /// What came is no body.
    Broken(hyper::Error),
}

impl std::fmt::Display for BodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            BodyError::TooLarge => "body too large",
            BodyError::Stalled => "body stalled",
            BodyError::Broken(_) => "broken body",
        })
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            BodyError::Broken(e) => Some(e),
            _ => None,
        }
    }
}

/// What has come of a request's body.
struct Moved {
    start: Instant,
    bytes: AtomicU64,
    /// When the last of them came, in milliseconds since the start.
    last: AtomicU64,
}

impl Moved {
    fn new() -> Moved {
        Moved { start: Instant::now(), bytes: AtomicU64::new(0), last: AtomicU64::new(0) }
    }

    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.last.store(self.start.elapsed().as_millis() as u64, Relaxed);
    }

    /// When something last came, or the exchange began.
    fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last.load(Relaxed))
    }
}

/// A body on its way through: bounded in length, and in the length of its pauses.
#[derive(Default)]
pub struct Stream {
    body: Option<Upload>,
    left: u64,
    stall: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    /// For requests.
    moved: Option<Arc<Moved>>,
    /// For responses: where the connection goes when the body is complete.
    back: Option<Back>,
    /// Memory for the exchange: until both bodies have gone.
    _promise: Option<Arc<Exchange>>,
}

impl Stream {
    /// The connection is free for another request.
    fn give_back(&mut self) {
        if let Some(Back { server, upstream, link, keep }) = self.back.take() {
            server.upstreams.put(&upstream, link, keep);
        }
    }

    /// Whether the sender is so slow that it must be meant to cost us a connection.
    fn too_slow(&self) -> bool {
        self.moved.as_ref().is_some_and(|moved| {
            let allowed = self.stall + Duration::from_secs(moved.bytes.load(Relaxed) / BODY_RATE);
            moved.start.elapsed() > allowed
        })
    }
}

struct Back {
    server: Arc<Server>,
    upstream: String,
    link: Link,
    keep: Duration,
}

/// A body of known length is not asked for its end.
impl Drop for Stream {
    fn drop(&mut self) {
        if self.body.as_ref().is_some_and(Upload::is_end_stream) {
            self.give_back();
        }
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = crate::body::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, crate::body::Error>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        if polled.is_pending() {
            let stall = this.stall;
            let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
            return match std::future::Future::poll(sleep.as_mut(), cx) {
                Poll::Ready(()) => Poll::Ready(Some(Err(BodyError::Stalled.into()))),
                Poll::Pending => Poll::Pending,
            };
        }
        if this.too_slow() {
            return Poll::Ready(Some(Err(BodyError::Stalled.into())));
        }
        this.sleep = None;
        Poll::Ready(match ready!(polled) {
            Some(Ok(frame)) => {
                let len = frame.data_ref().map_or(0, |d| d.len() as u64);
                // Nobody asks for what is after them.
                if frame.is_trailers() {
                    this.give_back();
                }
                if let Some(moved) = &this.moved {
                    moved.add(len);
                }
                match this.left.checked_sub(len) {
                    Some(left) => {
                        this.left = left;
                        Some(Ok(frame))
                    }
                    None => Some(Err(BodyError::TooLarge.into())),
                }
            }
            Some(Err(e)) => Some(Err(BodyError::Broken(e).into())),
            None => {
                this.give_back();
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Upload::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Upload::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn the_longest_prefix_wins_at_boundaries() {
        let proxy = |p: &str| Proxy { prefix: p.into(), upstream: format!("up{p}") };
        let config = Config { proxies: vec![proxy("/api"), proxy("/api/v2/"), proxy("/x")], ..Config::default() };
        for (path, want) in [
            ("/api", Some("up/api")),
            ("/api/v1", Some("up/api")),
            ("/api/v2/y", Some("up/api/v2/")),
            ("/apiary", None),
            ("/", None),
            // With path parameters it is the same place.
            ("/api;a/v1", Some("up/api")),
            ("/api/v2;a/y", Some("up/api/v2/")),
            ("/;/api/v1", Some("up/api")),
            ("/apiary;/api", None),
        ] {
            assert_eq!(find(&config, path).map(|p| p.upstream.as_str()), want, "{path}");
        }
    }

    #[test]
    fn dots_in_all_spellings() {
        for path in [
            "/..",
            "/a/../b",
            "/a/%2e%2e/b",
            "/a/.%2E/b",
            "/a%2f..%2fb",
            "/./a",
            "/a/%2e",
            "/a/..;/b",
            "/a/..;x=y/b",
            "/a/%2e.%3Bx/b",
        ] {
            assert!(has_dots(path), "{path}");
        }
        for path in ["/", "/a...b", "/...", "/%252e%252e/", "/a.b/.c"] {
            assert!(!has_dots(path), "{path}");
        }
    }

    /// A connection to an upstream that never says anything, and its other end.
    async fn silent() -> (Link, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(1024);
        let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
        let task = tokio::spawn(connection).abort_handle();
        sender.ready().await.unwrap();
        (Link { sender, task: Some(task) }, far)
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_grow_old() {
        let upstreams = Upstreams::default();
        let kept = || upstreams.idle.lock().unwrap()["up"].len();
        let (old, _old) = silent().await;
        let (short, _short) = silent().await;
        upstreams.put("up", old, IDLE_AGE);
        upstreams.put("up", short, Duration::from_secs(2));
        tokio::time::advance(Duration::from_secs(3)).await;
        let (new, _new) = silent().await;
        upstreams.put("up", new, IDLE_AGE);
        assert_eq!(kept(), 2, "one has gone without being asked for");
        tokio::time::advance(IDLE_AGE - Duration::from_secs(3)).await;
        assert!(upstreams.take("up").is_some(), "the new one");
        assert!(upstreams.take("up").is_none(), "the old one is too old");
        assert_eq!(kept(), 0);
        let (none, _none) = silent().await;
        upstreams.put("up", none, Duration::ZERO);
        assert_eq!(kept(), 0);
    }

    #[test]
    fn how_long_connections_are_kept() {
        for (value, seconds) in [
            (None, 30),
            (Some("timeout=5"), 4),
            (Some("timeout=5, max=100"), 4),
            (Some("max=100, timeout=20"), 19),
            (Some("timeout=1"), 0),
            (Some("timeout=0"), 0),
            (Some("timeout=3600"), 30),
            (Some("timeout=x"), 30),
            (Some("max=1"), 30),
        ] {
            let value = value.map(|v| (HeaderName::from_static("keep-alive"), HeaderValue::from_static(v)));
            assert_eq!(keep(&value.into_iter().collect()).as_secs(), seconds);
        }
    }

    #[test]
    fn hop_by_hop_headers_are_stripped() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("keep-alive", "x"),
            ("accept", "y"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }

    /// Both ends have more to say than any buffer holds, and the client reads only when it has said it.
    #[tokio::test]
    async fn tunnel_directions_do_not_wait_for_each_other() {
        const LEN: usize = 1 << 20;
        let (client, inner) = tokio::io::duplex(1024);
        let (outer, upstream) = tokio::io::duplex(1024);
        let client = async {
            let (mut read, mut write) = tokio::io::split(client);
            write.write_all(&vec![1; LEN]).await.unwrap();
            write.shutdown().await.unwrap();
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.unwrap();
            got.len()
        };
        let upstream = async {
            let (mut read, mut write) = tokio::io::split(upstream);
            let mut got = Vec::new();
            let send = async {
                write.write_all(&vec![2; LEN]).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let ((), n) = tokio::join!(send, async { read.read_to_end(&mut got).await.unwrap() });
            n
        };
        let ((), sent, received) = tokio::join!(splice(inner, outer, Duration::from_secs(60)), client, upstream);
        assert_eq!((sent, received), (LEN, LEN));
    }

    #[tokio::test]
    async fn silent_tunnels_end() {
        let (_client, inner) = tokio::io::duplex(1024);
        let (outer, _upstream) = tokio::io::duplex(1024);
        splice(inner, outer, Duration::from_millis(10)).await;
    }
}
