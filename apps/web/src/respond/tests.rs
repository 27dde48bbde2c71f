use super::*;
use crate::site::tests::site;
use donjon_web_format::{Config, Rule};
use hyper::Request;

fn get(site: &Arc<Site>, path: &str, headers: &[(&str, &str)]) -> Response<Content> {
    ask(site, "GET", path, headers)
}

fn ask(site: &Arc<Site>, method: &str, path: &str, headers: &[(&str, &str)]) -> Response<Content> {
    let mut request = Request::builder().method(method).uri(path).header("host", "h");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    match target(site, &parts, Scheme::Http) {
        Ok(t) => {
            let mut response = content(site, &parts, &t);
            dress(site, Scheme::Http, Origin::Site, &t.path, &mut response);
            response
        }
        Err(response) => *response,
    }
}

fn body(response: Response<Content>) -> Vec<u8> {
    use http_body::Body;
    let mut body = response.into_body();
    let mut out = vec![];
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    while let std::task::Poll::Ready(Some(Ok(frame))) = std::pin::Pin::new(&mut body).poll_frame(&mut cx) {
        out.extend(frame.into_data().unwrap());
    }
    out
}

fn head<'a>(response: &'a Response<Content>, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |v| v.to_str().unwrap())
}

#[test]
fn files_indexes_and_redirects() {
    let s = site(&Config::default(), &[("/index.html", b"home"), ("/a/index.html", b"sub"), ("/a/x y.txt", b"text")]);
    assert_eq!(body(get(&s, "/", &[])), b"home");
    assert_eq!(body(get(&s, "/a/", &[])), b"sub");
    let r = get(&s, "/a?q=1", &[]);
    assert_eq!((r.status().as_u16(), head(&r, "location")), (301, "/a/?q=1"));
    assert_eq!(body(get(&s, "/a/x%20y.txt", &[])), b"text");
    assert_eq!(get(&s, "/nothing", &[]).status(), 404);
    assert_eq!(get(&s, "/%2e%2e/etc/passwd", &[]).status(), 400);
    assert_eq!(get(&s, "/.donjon/web.conf", &[]).status(), 404);
    assert_eq!(body(get(&s, "/healthz", &[])), b"ok\n");
    let r = ask(&s, "POST", "/", &[]);
    assert_eq!((r.status().as_u16(), head(&r, "allow")), (405, "GET, HEAD, OPTIONS"));
    assert_eq!(ask(&s, "OPTIONS", "/", &[]).status(), 204);
    assert_eq!(get(&s, "/", &[("host", "second")]).status(), 400);
}

#[test]
fn ranges_and_conditions() {
    let s = site(&Config::default(), &[("/f", b"0123456789")]);
    let r = get(&s, "/f", &[("range", "bytes=2-4")]);
    assert_eq!((r.status().as_u16(), head(&r, "content-range")), (206, "bytes 2-4/10"));
    assert_eq!(body(r), b"234");
    let r = get(&s, "/f", &[("range", "bytes=0-0,9-9")]);
    assert_eq!(head(&r, "content-type"), "multipart/byteranges; boundary=donjonplain");
    let text = String::from_utf8(body(r)).unwrap();
    assert_eq!(text.matches("content-range: bytes ").count(), 2);
    assert!(text.contains("bytes 9-9/10\r\n\r\n9\r\n--donjonplain--"), "{text}");
    let r = get(&s, "/f", &[("range", "bytes=10-")]);
    assert_eq!((r.status().as_u16(), head(&r, "content-range")), (416, "bytes */10"));
    assert_eq!(get(&s, "/f", &[("range", "bytes=1-"), ("if-range", "\"other\"")]).status(), 200);
    assert_eq!(get(&s, "/f", &[("range", "bytes=1-"), ("if-range", "\"plain\"")]).status(), 206);
    let r = get(&s, "/f", &[("if-none-match", "\"plain\"")]);
    assert_eq!((r.status().as_u16(), head(&r, "etag")), (304, "\"plain\""));
    assert!(body(r).is_empty());
    assert_eq!(get(&s, "/f", &[("if-match", "\"other\"")]).status(), 412);
}

#[test]
fn codings() {
    let s = site(&Config::default(), &[("/f.txt", b"0123456789"), ("/g", b"x")]);
    let r = get(&s, "/f.txt", &[("accept-encoding", "gzip, br")]);
    assert_eq!(
        (head(&r, "content-encoding"), head(&r, "vary"), head(&r, "etag")),
        ("br", "accept-encoding", "\"packed\"")
    );
    assert_eq!(body(r), b"brotli");
    let r = get(&s, "/f.txt", &[]);
    assert_eq!(
        (head(&r, "content-encoding"), head(&r, "vary"), head(&r, "etag")),
        ("", "accept-encoding", "\"plain\"")
    );
    assert_eq!(head(&get(&s, "/g", &[("accept-encoding", "br")]), "vary"), "");
    // A client may like it best as it is.
    for (accepted, coding) in [
        ("br;q=0.1, identity;q=1", ""),
        ("br;q=0.1, *", ""),
        ("br;q=0.1", "br"),
        ("br, identity", "br"),
        ("*", "br"),
        ("br, identity;q=0", "br"),
        ("gzip, identity;q=0", ""),
    ] {
        assert_eq!(
            head(&get(&s, "/f.txt", &[("accept-encoding", accepted)]), "content-encoding"),
            coding,
            "{accepted}"
        );
    }
    // A part of one variant is not continued with the other, whose date is the same.
    let date = crate::negotiate::http_date(1_500_000_000);
    for (path, status) in [("/f.txt", 200), ("/g", 206)] {
        let r = get(&s, path, &[("range", "bytes=0-0"), ("if-range", &date)]);
        assert_eq!((r.status().as_u16(), head(&r, "last-modified")), (status, &*date), "{path}");
    }
    // A part is one of what is encoded; several parts are of what is not.
    let r = get(&s, "/f.txt", &[("accept-encoding", "br"), ("range", "bytes=1-2")]);
    assert_eq!((head(&r, "content-encoding"), head(&r, "content-range")), ("br", "bytes 1-2/6"));
    assert_eq!(body(r), b"ro");
    let r = get(&s, "/f.txt", &[("accept-encoding", "br"), ("range", "bytes=1-2,9-")]);
    assert_eq!((r.status().as_u16(), head(&r, "content-encoding"), head(&r, "etag")), (206, "", "\"plain\""));
    assert!(head(&r, "content-type").starts_with("multipart/byteranges"));
    let text = String::from_utf8(body(r)).unwrap();
    assert!(text.contains("bytes 1-2/10\r\n\r\n12\r\n") && text.contains("bytes 9-9/10\r\n\r\n9\r\n"), "{text}");
}

#[test]
fn rules_pages_and_listing() {
    let rule = |p: &str, n: &str, v: &str| Rule { pattern: p.into(), name: n.into(), value: v.into() };
    let config = Config {
        listing: true,
        not_found: Some("/404.html".into()),
        spa: Some("/app.html".into()),
        headers: vec![rule("*", "x-frame-options", "DENY"), rule("*.css", "cache-control", "no-cache")],
        cache: vec![rule("*.txt", "cache-control", "max-age=60"), rule("*.css", "cache-control", "max-age=60")],
        ..Config::default()
    };
    let s = site(&config, &[("/404.html", b"gone"), ("/app.html", b"app"), ("/d/<a>.txt", b""), ("/x.css", b"")]);
    let r = get(&s, "/x", &[]);
    assert_eq!((r.status().as_u16(), head(&r, "x-frame-options"), head(&r, "etag")), (404, "DENY", ""));
    assert_eq!(head(&r, "vary"), "accept");
    assert_eq!(body(r), b"gone");
    let r = get(&s, "/x", &[("accept", "text/html")]);
    assert_eq!((r.status().as_u16(), head(&r, "vary")), (200, "accept"));
    assert_eq!(body(r), b"app");
    let r = get(&s, "/d/%3Ca%3E.txt", &[]);
    assert_eq!(head(&r, "cache-control"), "max-age=60");
    assert_eq!(head(&get(&s, "/x.css", &[]), "cache-control"), "no-cache");
    let page = String::from_utf8(body(get(&s, "/d/", &[]))).unwrap();
    assert!(page.contains("<a href=\"./%3Ca%3E.txt\">&lt;a&gt;.txt</a>"), "{page}");
}

/// A rule for a header does not replace what a message needs.
#[test]
fn rules_keep_messages_whole() {
    let rule = |p: &str, n: &str, v: &str| Rule { pattern: p.into(), name: n.into(), value: v.into() };
    let config = Config {
        not_found: Some("/404.html".into()),
        headers: vec![rule("*", "vary", "origin"), rule("*.txt", "content-type", "text/x")],
        cache: vec![rule("*", "cache-control", "max-age=60")],
        ..Config::default()
    };
    let s = site(&config, &[("/f.txt", b"0123456789"), ("/404.html", b"gone"), ("/g", b"x")]);
    let vary =
        |r: &Response<Content>| r.headers().get_all("vary").iter().map(|v| v.as_bytes().to_vec()).collect::<Vec<_>>();
    let r = get(&s, "/f.txt", &[("accept-encoding", "br")]);
    assert_eq!(vary(&r), [&b"accept-encoding"[..], b"origin"]);
    assert_eq!(vary(&get(&s, "/g", &[])), [b"origin"]);
    for (path, range, status, content_type) in [
        ("/f.txt", "", 200, "text/x"),
        ("/f.txt", "bytes=1-2", 206, "text/x"),
        ("/f.txt", "bytes=1-2,4-5", 206, "multipart/byteranges; boundary=donjonplain"),
        ("/f.txt", "bytes=10-", 416, "text/plain; charset=utf-8"),
        ("/none.txt", "", 404, "text/plain"),
        ("/g", "", 200, "text/plain"),
    ] {
        let r = get(&s, path, &[("range", range)]);
        assert_eq!((r.status().as_u16(), head(&r, "content-type")), (status, content_type), "{path} {range}");
        let parts = String::from_utf8(body(r)).unwrap().matches("content-type: text/x\r\n").count();
        assert_eq!(parts, if range.contains(',') { 2 } else { 0 }, "{path} {range}");
    }
    assert_eq!(head(&get(&s, "/f.txt", &[("if-match", "\"other\"")]), "content-type"), "text/plain; charset=utf-8");
    // Whether the server is well is not for a cache.
    assert_eq!(head(&get(&s, "/healthz", &[]), "cache-control"), "no-store");
    assert_eq!(head(&get(&s, "/g", &[]), "cache-control"), "max-age=60");
}

#[test]
fn https_redirect() {
    let s = site(&Config { redirect: Some(8443), ..Config::default() }, &[]);
    let r = get(&s, "/a?b=c", &[]);
    assert_eq!((r.status().as_u16(), head(&r, "location")), (308, "https://h:8443/a?b=c"));
    assert_eq!(get(&s, "/healthz", &[]).status(), 200);
    // Where the site's names are known, nobody is sent anywhere else.
    let hosts = vec![donjon_web_format::Host { name: "a.example".into(), root: 0 }];
    let s = site(&Config { redirect: Some(443), hosts, ..Config::default() }, &[]);
    for (uri, status, location) in
        [("http://a.example/x", 308, "https://a.example/x"), ("http://b.example/x", 421, ""), ("/x", 421, "")]
    {
        let r = get(&s, uri, &[]);
        assert_eq!((r.status().as_u16(), head(&r, "location")), (status, location), "{uri}");
    }
}

#[test]
fn hosts_and_targets() {
    for (host, yes) in [
        ("a.example", true),
        ("a.example:80", true),
        ("a.example:", true),
        ("10.0.0.1:8080", true),
        ("[::1]", true),
        ("[::1]:443", true),
        ("", true),
        ("a b", false),
        ("a/b", false),
        ("user@a", false),
        ("a:b", false),
        ("[::1", false),
        ("[x]", false),
        ("::1", false),
        ("a\"b", false),
    ] {
        assert_eq!(is_host(host), yes, "{host}");
    }
    let s = site(&Config::default(), &[]);
    let long = format!("/{}", "a".repeat(9000));
    assert_eq!(get(&s, &long, &[]).status(), 414);
    let r = ask(&s, "OPTIONS", "*", &[]);
    assert_eq!((r.status().as_u16(), head(&r, "allow")), (204, "GET, HEAD, OPTIONS"));
    assert_eq!(ask(&s, "CONNECT", "a.example:80", &[]).status(), 405);
    assert_eq!(get(&s, "http://user@h/", &[]).status(), 400);
}
