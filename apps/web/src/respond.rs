//! From a request to a response: everything but upstreams. No I/O but opening content.

use crate::body::Content;
use crate::negotiate::{Precondition, accepts, precondition, range_applies, text};
use crate::path::{encode, normalise};
use crate::range::{Ranges, parse};
use crate::site::{Page, Site, Variant};
use bytes::Bytes;
use core::ops::Range;
use donjon_web_format::matches;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use std::sync::Arc;

/// Over which kind of port a request came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheme {
    /// Plain.
    Http,
    /// TLS.
    Https,
}

/// Whose response it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Ours.
    Site,
    /// What an upstream has answered.
    #[cfg(feature = "proxy")]
    Upstream,
}

/// A checked request target.
pub struct Target {
    /// Content root.
    pub root: u32,
    /// Normalised path.
    pub path: String,
}

/// Methods that content can be asked with.
const METHODS: &str = "GET, HEAD, OPTIONS";
/// Longest path with query, bytes.
const TARGET_MAX: usize = 8192;

/// Finds root and path, or the response that says why not.
pub fn target(site: &Site, request: &Parts, scheme: Scheme) -> Result<Target, Box<Response<Content>>> {
    let uri = &request.uri;
    if uri.path_and_query().is_some_and(|p| p.as_str().len() > TARGET_MAX) {
        return Err(status(StatusCode::URI_TOO_LONG).into());
    }
    let (host, mut fields) = (host(request), request.headers.get_all(header::HOST).iter());
    let good = match fields.next() {
        Some(field) => field.to_str().is_ok_and(is_host) && fields.next().is_none(),
        None => request.version != hyper::Version::HTTP_11,
    };
    if !good || !host.is_none_or(is_host) {
        return Err(status(StatusCode::BAD_REQUEST).into());
    }
    if uri.path() == "*" && request.method == Method::OPTIONS {
        return Err(with(empty(StatusCode::NO_CONTENT), header::ALLOW, METHODS).into());
    }
    // Neither is for an upstream: an answer to TRACE shows what was asked, cookies and passwords included.
    if request.method == Method::CONNECT || request.method == Method::TRACE {
        return Err(with(status(StatusCode::METHOD_NOT_ALLOWED), header::ALLOW, METHODS).into());
    }
    let Some(path) = normalise(uri.path()) else { return Err(status(StatusCode::BAD_REQUEST).into()) };
    // First: a redirect is kept, and goes to names that are ours only, if these are known.
    let Some(root) = site.root(host) else { return Err(status(StatusCode::MISDIRECTED_REQUEST).into()) };
    if let (Scheme::Http, Some(port)) = (scheme, site.config.redirect)
        && path != "/healthz"
    {
        return Err(to_https(request, host, port).into());
    }
    Ok(Target { root, path })
}

/// The name that the client used for us: from an absolute target or `:authority`, else the Host header.
pub fn host(request: &Parts) -> Option<&str> {
    request.uri.authority().map(|a| a.as_str()).or_else(|| request.headers.get(header::HOST)?.to_str().ok())
}

/// Whether this is a host name or address, perhaps with a port, and nothing else. (A name may be empty: RFC 9110 §7.2.)
fn is_host(host: &str) -> bool {
    let (name, port) = match host.rfind(':').filter(|&colon| !host[colon..].contains(']')) {
        Some(colon) => (&host[..colon], &host[colon + 1..]),
        None => (host, ""),
    };
    let plain = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let address = |inner: &str| inner.parse::<std::net::Ipv6Addr>().is_ok();
    let bracketed = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    port.bytes().all(|b| b.is_ascii_digit()) && bracketed.map_or_else(|| plain(name), address)
}

/// Answers from the site's content.
pub fn content(site: &Arc<Site>, request: &Parts, target: &Target) -> Response<Content> {
    let reads = request.method == Method::GET || request.method == Method::HEAD;
    if target.path == "/healthz" && reads && site.file(target.root, "/healthz").is_none() {
        return with(plain(StatusCode::OK, "ok\n"), header::CACHE_CONTROL, "no-store");
    }
    if request.method == Method::OPTIONS {
        return with(empty(StatusCode::NO_CONTENT), header::ALLOW, METHODS);
    }
    if !reads {
        return with(status(StatusCode::METHOD_NOT_ALLOWED), header::ALLOW, METHODS);
    }
    let (root, path) = (target.root, target.path.as_str());
    if path.ends_with('/') {
        if let Some(page) = site.file(root, &format!("{path}index.html")) {
            return file(site, request, page, typed_as(site, path, page), StatusCode::OK);
        }
        if site.config.listing && (site.has(root, path) || path == "/") {
            let mut response = typed(StatusCode::OK, "text/html; charset=utf-8", Bytes::new());
            *response.body_mut() = Content::listing(crate::listing::page(site, root, path));
            return response;
        }
    } else if let Some(page) = site.file(root, path) {
        return file(site, request, page, typed_as(site, path, page), StatusCode::OK);
    } else if site.has(root, &format!("{path}/")) {
        let mut to = encode(&format!("{path}/"));
        if let Some(query) = request.uri.query() {
            to = format!("{to}?{query}");
        }
        return with(status(StatusCode::MOVED_PERMANENTLY), header::LOCATION, &to);
    }
    missing(site, request, root)
}

/// Adds the headers that the configuration asks for. What an upstream has set stays, and how long that may be kept is for the upstream to say.
pub fn dress(site: &Site, scheme: Scheme, origin: Origin, path: &str, response: &mut Response<Content>) {
    let status = response.status();
    let headers = response.headers_mut();
    let ours = origin == Origin::Site;
    if ours {
        headers.entry("x-content-type-options").or_insert(HeaderValue::from_static("nosniff"));
    }
    // What says already how long it may be kept is no file.
    let success = ours
        && (status.is_success() || status == StatusCode::NOT_MODIFIED)
        && !headers.contains_key(header::CACHE_CONTROL);
    let rules = || site.rules.iter().filter(|r| (success || !r.success) && matches(&r.pattern, path));
    if ours {
        for rule in rules() {
            let (name, value) = rule.header.clone();
            if name == header::VARY {
                // In addition to what we have looked at.
                headers.append(name, value);
            } else if name != header::CONTENT_TYPE {
                headers.insert(name, value);
            }
        }
    } else {
        // What is there stays: theirs, or of a later rule.
        for rule in rules().rev() {
            headers.entry(&rule.header.0).or_insert_with(|| rule.header.1.clone());
        }
    }
    if let (Scheme::Https, Some(age)) = (scheme, site.config.hsts)
        && let Ok(value) = HeaderValue::try_from(format!("max-age={age}; includeSubDomains"))
    {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, value);
    }
}

/// A short text.
pub fn plain(code: StatusCode, body: &'static str) -> Response<Content> {
    typed(code, "text/plain; charset=utf-8", Bytes::from_static(body.as_bytes()))
}

/// The response for an error: its code and reason as text.
pub fn status(code: StatusCode) -> Response<Content> {
    let body = format!("{} {}\n", code.as_str(), code.canonical_reason().unwrap_or(""));
    typed(code, "text/plain; charset=utf-8", Bytes::from(body))
}

/// A refusal for want of memory.
pub fn unavailable() -> Response<Content> {
    with(status(StatusCode::SERVICE_UNAVAILABLE), header::RETRY_AFTER, "1")
}

/// Sets a header whose value is known to be sound; one that is not is left out.
pub fn with(mut response: Response<Content>, name: HeaderName, value: &str) -> Response<Content> {
    if let Ok(value) = HeaderValue::try_from(value) {
        response.headers_mut().insert(name, value);
    }
    response
}

fn empty(code: StatusCode) -> Response<Content> {
    let mut response = Response::new(Content::default());
    *response.status_mut() = code;
    response
}

fn typed(code: StatusCode, content_type: &str, body: Bytes) -> Response<Content> {
    let mut response = Response::new(Content::new([body]));
    *response.status_mut() = code;
    with(response, header::CONTENT_TYPE, content_type)
}

fn to_https(request: &Parts, host: Option<&str>, port: u16) -> Response<Content> {
    let host = host.unwrap_or("");
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    if name.is_empty() {
        return status(StatusCode::BAD_REQUEST);
    }
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let rest = request.uri.path_and_query().map_or("/", |p| p.as_str());
    // 308 keeps method and body.
    with(status(StatusCode::PERMANENT_REDIRECT), header::LOCATION, &format!("https://{name}{port}{rest}"))
}

fn missing(site: &Site, request: &Parts, root: u32) -> Response<Content> {
    let html = text(&request.headers, header::ACCEPT)
        .is_some_and(|a| a.as_bytes().windows(9).any(|part| part == b"text/html"));
    let page = |path: &Option<String>| path.as_ref().and_then(|p| site.file(root, p));
    let mut response = if let Some(page) = page(&site.config.spa).filter(|_| html) {
        file(site, request, page, &page.content_type, StatusCode::OK)
    } else if let Some(page) = page(&site.config.not_found) {
        file(site, request, page, &page.content_type, StatusCode::NOT_FOUND)
    } else {
        status(StatusCode::NOT_FOUND)
    };
    if site.config.spa.is_some() {
        response.headers_mut().append(header::VARY, HeaderValue::from_static("accept"));
    }
    response
}

/// A page's type at this path, which the configuration may set.
fn typed_as<'a>(site: &'a Site, path: &str, page: &'a Page) -> &'a HeaderValue {
    let rule = site.rules.iter().rfind(|r| r.header.0 == header::CONTENT_TYPE && matches(&r.pattern, path));
    rule.map_or(&page.content_type, |r| &r.header.1)
}

fn file(site: &Site, request: &Parts, page: &Page, content_type: &HeaderValue, code: StatusCode) -> Response<Content> {
    let (variant, coding) = choose(request, page);
    let ok = code == StatusCode::OK;
    let varies = page.brotli.is_some() || page.gzip.is_some();
    let time = page.modified.as_ref().map(|(time, _)| *time);
    let met = if ok { precondition(&request.headers, &variant.tag, time) } else { Precondition::Go };
    let mut response = match met {
        Precondition::Failed => return status(StatusCode::PRECONDITION_FAILED),
        Precondition::NotModified => empty(StatusCode::NOT_MODIFIED),
        Precondition::Go => {
            let ranges = request
                .headers
                .get(header::RANGE)
                .and_then(|v| v.to_str().ok())
                .filter(|_| ok && request.method == Method::GET)
                // All variants have the same date, so it does not tell of which a client has a part.
                .filter(|_| range_applies(&request.headers, &variant.tag, time.filter(|_| !varies)))
                .map_or(Ranges::Whole, |v| parse(v, variant.len));
            if ranges == Ranges::Unsatisfiable {
                let all = format!("bytes */{}", variant.len);
                return with(status(StatusCode::RANGE_NOT_SATISFIABLE), header::CONTENT_RANGE, &all);
            }
            let Ok(content) = site.content(variant) else { return status(StatusCode::INTERNAL_SERVER_ERROR) };
            match ranges {
                Ranges::Parts(parts) => partial(&content, &parts, content_type, variant),
                _ => whole(code, content, content_type),
            }
        }
    };
    let headers = response.headers_mut();
    if ok {
        headers.insert(header::ETAG, variant.tag.clone());
        if let Some((_, date)) = &page.modified {
            headers.insert(header::LAST_MODIFIED, date.clone());
        }
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    }
    if let Some(coding) = coding {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
    }
    if varies {
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
    response
}

fn whole(code: StatusCode, content: Bytes, content_type: &HeaderValue) -> Response<Content> {
    let mut response = Response::new(Content::new([content]));
    *response.status_mut() = code;
    // Room for what is usual, at once.
    response.headers_mut().reserve(12);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
    response
}

fn choose<'a>(request: &Parts, page: &'a Page) -> (&'a Variant, Option<&'static str>) {
    // Several ranges become a multipart body, which is not what was encoded (RFC 9110 §15.3.7.2): their parts are of the file as it is.
    if request.headers.get(header::RANGE).is_some_and(|v| v.as_bytes().contains(&b',')) {
        return (&page.plain, None);
    }
    let brotli = page.brotli.as_ref().and_then(|v| Some((accepts(&request.headers, "br")?, v, "br")));
    let gzip = page.gzip.as_ref().and_then(|v| Some((accepts(&request.headers, "gzip")?, v, "gzip")));
    let identity = accepts(&request.headers, "identity").unwrap_or(0);
    // The heavier weight wins, then the smaller file; the file as it is if the client likes it more than either.
    let best = [brotli, gzip].into_iter().flatten().max_by_key(|(weight, v, _)| (*weight, core::cmp::Reverse(v.len)));
    let best = best.filter(|(weight, ..)| *weight >= identity);
    best.map_or((&page.plain, None), |(_, variant, coding)| (variant, Some(coding)))
}

fn partial(content: &Bytes, parts: &[Range<u64>], page_type: &HeaderValue, variant: &Variant) -> Response<Content> {
    let slice = |r: &Range<u64>| content.slice(r.start as usize..r.end as usize);
    let field = |r: &Range<u64>| format!("bytes {}-{}/{}", r.start, r.end - 1, variant.len);
    let (pieces, content_type, range) = match parts {
        [one] => (vec![slice(one)], None, Some(field(one))),
        several => {
            let tag = variant.tag.to_str().unwrap_or_default();
            let boundary = format!("donjon{}", tag.trim_matches('"'));
            let mut pieces = vec![];
            for r in several {
                pieces.push(Bytes::from(format!(
                    "\r\n--{boundary}\r\ncontent-type: {}\r\ncontent-range: {}\r\n\r\n",
                    page_type.to_str().unwrap_or_default(),
                    field(r)
                )));
                pieces.push(slice(r));
            }
            pieces.push(Bytes::from(format!("\r\n--{boundary}--\r\n")));
            (pieces, Some(format!("multipart/byteranges; boundary={boundary}")), None)
        }
    };
    let mut response = Response::new(Content::new(pieces));
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    response = match content_type {
        Some(several) => with(response, header::CONTENT_TYPE, &several),
        None => {
            response.headers_mut().insert(header::CONTENT_TYPE, page_type.clone());
            response
        }
    };
    match range {
        Some(range) => with(response, header::CONTENT_RANGE, &range),
        None => response,
    }
}

#[cfg(test)]
mod tests;
