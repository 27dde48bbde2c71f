//! Forwarding to upstreams: pooled HTTP/1.1 connections, streaming both ways, upgrades (WebSocket).

mod head;
mod pool;
mod stream;
mod tunnel;

pub use pool::Upstreams;
pub use stream::Stream;
pub use tunnel::{Joined, tunnel};

use crate::body::Content;
use crate::budget::{self, For, Promise};
use crate::path::bare;
use crate::progress::State;
use crate::respond::Scheme;
use crate::serve::{Client, Server};
use crate::upload::Upload;
use donjon_web_format::{Config, Proxy};
use head::{has_dots, incoming, outgoing, upgrade_of};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header;
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use pool::{CONNECT, Link, Upstream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;
use stream::{BodyError, Moved};
use tokio::time::{timeout, timeout_at};
use tunnel::switch;

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
        let promise = Arc::new(Exchange::new(promise, &client.state));
        let moved = Arc::new(Moved::new());
        let stream = Stream {
            body: Some(body),
            left: limits.body_bytes,
            stall: Duration::from_secs(limits.stall_seconds.into()),
            due: None,
            sleep: None,
            moved: Some(moved.clone()),
            back: None,
            exchange: Some(promise.clone()),
        };
        let upgrade = upgrade_of(parts, &stream);
        let request = |stream| outgoing(proxy, parts, stream, client, scheme, upgrade.as_ref());
        let upstream = self.of(&proxy.upstream);
        let exchange = exchange(&upstream, stream, request);
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
            _ => Ok(incoming(server, upstream.clone(), response, link, promise, moved)),
        }
    }
}

/// Sends a request and gets an answer, over a connection that is there or a new one.
async fn exchange(
    upstream: &Upstream,
    stream: Stream,
    request: impl Fn(Stream) -> Request<Stream>,
) -> Result<(Response<Incoming>, Link), StatusCode> {
    let repeatable = stream.is_end_stream();
    let mut request_now = request(stream);
    let repeatable = repeatable && request_now.method().is_idempotent();
    // A pooled connection may die while the request is on its way to it. `try_send_request` gives an unsent request back; one that was sent is
    // repeated where that is harmless: once, on a connection that cannot be stale (RFC 9110 §9.2.2).
    while let Some(mut link) = upstream.take() {
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
    let connected = timeout(CONNECT, upstream.connect()).await.map_err(|_| StatusCode::GATEWAY_TIMEOUT);
    let stream = connected?.ok_or(StatusCode::BAD_GATEWAY)?;
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(&stream).set_send_buffer_size(budget::QUEUE);
    let handshake = http1::Builder::new().max_buf_size(budget::BUFFER).handshake(TokioIo::new(stream));
    let (sender, connection) = handshake.await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    let task = tokio::spawn(connection.with_upgrades()).abort_handle();
    let mut link = Link::new(sender, task);
    let response = link.sender.send_request(request_now).await.map_err(|e| failure(&e))?;
    Ok((response, link))
}

/// Memory for an exchange, and the client's connection, which may have to wait for the upstream; that connection may keep this ([`Joined`]).
pub struct Exchange {
    promise: Promise,
    state: Weak<State>,
    waits: AtomicBool,
}

impl Exchange {
    fn new(promise: Promise, state: &Arc<State>) -> Exchange {
        let exchange = Exchange { promise, state: Arc::downgrade(state), waits: AtomicBool::new(false) };
        exchange.waits(true);
        exchange
    }

    /// Notes whether it is the upstream that is waited for.
    fn waits(&self, waits: bool) {
        if self.waits.swap(waits, Relaxed) != waits
            && let Some(state) = self.state.upgrade()
        {
            state.forwarded(waits);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.waits(false);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
