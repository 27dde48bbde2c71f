//! Heads on their way through: what is added and what is taken off.

use super::Exchange;
use super::pool::{Link, Upstream, keep};
use super::stream::{Back, Moved, Stream};
use crate::body::Content;
use crate::respond::{Scheme, host};
use crate::serve::{Client, Server};
use crate::upload::Upload;
use donjon_web_format::Proxy;
use http_body::Body;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode, Version};
use std::sync::Arc;
use std::time::Duration;

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

/// Whether a path has a component that is `.` or `..` once decoded and without its parameters.
pub(super) fn has_dots(path: &str) -> bool {
    let plain = path.replace("%2e", ".").replace("%2E", ".").replace("%2f", "/").replace("%2F", "/");
    let plain = plain.replace("%3b", ";").replace("%3B", ";");
    plain.split('/').any(|component| matches!(component.split(';').next(), Some("." | "..")))
}

/// WebSocket, if that and nothing else is what the client asks to go over to (RFC 6455 §4.1). Through a tunnel go requests that we do not see: another
/// protocol, HTTP/2 say, could ask for any path. Whoever names one gets an ordinary answer (RFC 9110 §7.8).
pub(super) fn upgrade_of(parts: &Parts, body: &Stream) -> Option<HeaderValue> {
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

pub(super) fn strip(headers: &mut HeaderMap) {
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

pub(super) fn outgoing(
    proxy: &Proxy,
    parts: &Parts,
    stream: Stream,
    client: &Client,
    scheme: Scheme,
    upgrade: Option<&HeaderValue>,
) -> Request<Stream> {
    let mut headers = parts.headers.clone();
    strip(&mut headers);
    // What a client claims about earlier hops is replaced, not extended: those before us that are trusted have been asked (`Client::behind`).
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

pub(super) fn incoming(
    server: &Arc<Server>,
    upstream: Arc<Upstream>,
    response: Response<Incoming>,
    link: Link,
    promise: Arc<Exchange>,
    moved: Arc<Moved>,
) -> Response<Content> {
    let (mut head, body) = response.into_parts();
    // From here on, it may be the client.
    promise.waits(false);
    let keep = keep(&head.headers);
    strip(&mut head.headers);
    if head.status == StatusCode::NO_CONTENT {
        // RFC 9110 §8.6.
        head.headers.remove(header::CONTENT_LENGTH);
    }
    head.version = Version::default();
    let back = Back { server: server.clone(), upstream, link, keep, moved };
    let stream = Stream {
        body: Some(Upload::response(body)),
        left: u64::MAX,
        stall: Duration::from_secs(server.site.config.limits.upstream_seconds.into()),
        due: None,
        sleep: None,
        moved: None,
        back: Some(back),
        exchange: Some(promise),
    };
    Response::from_parts(head, Content::stream(stream))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
