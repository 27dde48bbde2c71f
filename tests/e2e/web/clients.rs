//! What `curl` gets: methods, versions, ranges, conditions, codings, pages for what is not there.

use std::io::{BufReader, Write};

use donjon_tests::{Engine, Guest, Need, http, missing};

use super::{Curl, DATA, Site, data, text};

crate::under_engines! {
    content: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    http2: ProcessUser QemuMicrovm;
    refused_bodies: ProcessUser QemuMicrovm;
    ranges: ProcessUser QemuMicrovm;
    conditions: ProcessUser QemuMicrovm;
    codings: ProcessUser QemuMicrovm;
    pipelining: ProcessUser QemuMicrovm;
    single_page: ProcessUser QemuMicrovm;
    virtual_hosts: ProcessUser QemuMicrovm;
    metrics_and_log: ProcessUser QemuMicrovm;
    passwords: ProcessUser QemuMicrovm;
}

fn get(guest: &Guest, path: &str, args: &[&str]) -> Curl {
    let url = guest.url(path);
    Curl::run(guest, &[args, &[&url]].concat())
}

fn content(engine: Engine) {
    let guest = Site::Plain.start(engine);
    let get = |path: &str, args: &[&str]| get(&guest, path, args);

    let page = get("/", &[]).expect(200);
    assert_eq!((page.version.as_str(), page.header("content-type")), ("1.1", "text/html; charset=utf-8"));
    assert_eq!(page.body, include_bytes!("page/index.html"));
    assert_eq!(page.header("content-length"), page.body.len().to_string());
    assert!(page.header("etag").starts_with('"') && page.header("last-modified").ends_with(" GMT"), "{page:?}");
    assert_eq!((page.header("x-frame-options"), page.header("x-content-type-options")), ("DENY", "nosniff"));

    assert_eq!(get("/data.bin", &[]).expect(200).body, data());
    assert_eq!(get("/empty.txt", &[]).expect(200).body, b"");
    assert_eq!(get("/sub/", &[]).expect(200).text(), "<!doctype html><p>the index of sub\n");
    assert_eq!(get("/files/a%20b.txt", &[]).expect(200).text(), "a file with a space\n");
    assert_eq!(get("/files/%C3%BCber%20&%20%3Cco%3E.txt", &[]).expect(200).text(), "a file with an umlaut\n");
    for (path, kind) in [("/app.js", "text/javascript"), ("/style.css", "text/css"), ("/picture.png", "image/png")] {
        assert!(get(path, &[]).expect(200).header("content-type").starts_with(kind), "{path}");
    }
    assert_eq!(get("/style.css", &[]).header("cache-control"), "public, max-age=3600");
    assert_eq!(get("/app.js", &[]).header("cache-control"), "");

    assert_eq!(get("/sub?a=b", &[]).expect(301).header("location"), "/sub/?a=b");
    let missing = get("/nothing.html", &[]).expect(404);
    assert!(missing.text().contains("nothing here"), "{missing:?}");
    get("/files/", &[]).expect(404);
    get("/.env", &[]).expect(404);
    assert_eq!(get("/healthz", &[]).expect(200).text(), "ok\n");

    let head = get("/data.bin", &["--head"]).expect(200);
    assert_eq!((head.header("content-length"), head.body.len()), (&*DATA.to_string(), 0));
    assert_eq!(get("/nothing.html", &["--head"]).expect(404).body, b"");
    assert_eq!(get("/", &["-X", "OPTIONS"]).expect(204).header("allow"), "GET, HEAD, OPTIONS");
    for method in ["POST", "PUT", "DELETE", "PATCH", "BREW"] {
        assert_eq!(get("/", &["-X", method]).expect(405).header("allow"), "GET, HEAD, OPTIONS", "{method}");
    }
    // HTTP/1.0, without and with a kept connection.
    assert_eq!(get("/text.txt", &["--http1.0"]).expect(200).text(), text());
    assert_eq!(get("/text.txt", &["--http1.0", "-H", "Connection: keep-alive"]).expect(200).text(), text());
    // A body that is announced and not wanted.
    get("/", &["-X", "POST", "-H", "Expect: 100-continue", "--data-binary", "hello"]).expect(405);
}

fn http2(engine: Engine) {
    let guest = Site::Plain.start(engine);
    let page = get(&guest, "/", &["--http2-prior-knowledge"]).expect(200);
    assert_eq!((page.version.as_str(), &page.body[..]), ("2", &include_bytes!("page/index.html")[..]));
    assert_eq!(get(&guest, "/data.bin", &["--http2-prior-knowledge"]).expect(200).body, data());
    let part = get(&guest, "/data.bin", &["--http2-prior-knowledge", "-r", "1000-1999"]).expect(206);
    assert_eq!(part.body, &data()[1000..2000]);
    assert_eq!(get(&guest, "/data.bin", &["--http2-prior-knowledge", "--head"]).expect(200).body, b"");
    get(&guest, "/nothing", &["--http2-prior-knowledge"]).expect(404);
    // Not upgraded from HTTP/1.1 (RFC 9113 has deprecated that): answered as it is.
    assert_eq!(get(&guest, "/", &["--http2"]).expect(200).version, "1.1");
    // Twenty at once over one connection.
    let urls: Vec<String> = (0..20).map(|n| guest.url(&format!("/text.txt?{n}"))).collect();
    let mut args = vec!["--http2-prior-knowledge", "--parallel", "--parallel-immediate"];
    args.extend(urls.iter().map(String::as_str));
    assert_eq!(guest.curl(&args).len(), 20 * text().len());
}

/// Whoever sends a large body where none is wanted is told so, and shows the status: it is not lost in the end of the stream.
fn refused_bodies(engine: Engine) {
    let body = super::scratch().join(format!("body-{engine:?}"));
    for site in [Site::Plain, Site::Secure] {
        let mut guest = site.start(engine);
        let (scheme, port) = if site == Site::Secure { ("https", 1) } else { ("http", 0) };
        let url = format!("{scheme}://{}/", guest.addr_of(port));
        for (len, size) in [(70_000, "70 KB"), (1_000_000, "1 MB"), (100_000_000, "100 MB")] {
            std::fs::File::create(&body).unwrap().set_len(len).unwrap();
            let data = format!("@{}", body.display());
            for version in ["--http2-prior-knowledge", "--http1.1"] {
                let answer = Curl::run(&guest, &[version, "--insecure", "--data-binary", &data, &url]).expect(405);
                assert_eq!(answer.text(), "405 Method Not Allowed\n", "{size}, {version}");
                assert_eq!(answer.version, if version == "--http1.1" { "1.1" } else { "2" }, "{size}");
            }
            if missing("refused_bodies", &[Need::Program("h2load")]) {
                continue;
            }
            // Two at a time over one connection: the one does not take the other's place for ever.
            let mut h2load = guest.command("timeout");
            h2load.args(["120", "h2load", "-n", "4", "-c", "1", "-m", "2", "-d"]).arg(&body).arg(&url);
            let text = String::from_utf8_lossy(&h2load.output().unwrap().stdout).into_owned();
            assert!(text.contains("0 errored, 0 timeout"), "{size}: {text}");
            assert!(text.contains("status codes: 0 2xx, 0 3xx, 4 4xx, 0 5xx"), "{size}: {text}");
        }
        guest.expect_alive();
    }
}

fn ranges(engine: Engine) {
    let guest = Site::Plain.start(engine);
    let get = |args: &[&str]| get(&guest, "/data.bin", args);
    let all = data();
    for (range, want) in
        [("0-0", 0..1), ("500-999", 500..1000), ("1048000-", 1_048_000..DATA), ("-100", DATA - 100..DATA)]
    {
        let part = get(&["-r", range]).expect(206);
        assert_eq!(part.body, &all[want.clone()], "{range}");
        assert_eq!(part.header("content-range"), format!("bytes {}-{}/{DATA}", want.start, want.end - 1));
    }
    let late = get(&["-r", "2000000-"]).expect(416);
    assert_eq!(late.header("content-range"), format!("bytes */{DATA}"));
    // Nonsense, and more than it is worth: the whole.
    for range in ["bytes=5-1", "lines=1-2", "bytes=0-600000,0-600000"] {
        assert_eq!(get(&["-H", &format!("Range: {range}")]).expect(200).body, all, "{range}");
    }
    let etag = get(&[]).header("etag").to_owned();
    assert_eq!(get(&["-r", "0-9", "-H", &format!("If-Range: {etag}")]).expect(206).body, &all[..10]);
    assert_eq!(get(&["-r", "0-9", "-H", "If-Range: \"other\""]).expect(200).body, all);

    let several = get(&["-r", "0-9,100-109,-10"]).expect(206);
    let boundary = several.header("content-type").strip_prefix("multipart/byteranges; boundary=").unwrap().to_owned();
    let mut want = Vec::new();
    for part in [0..10, 100..110, DATA - 10..DATA] {
        let (first, last) = (part.start, part.end - 1);
        let head = format!(
            "\r\n--{boundary}\r\ncontent-type: application/octet-stream\r\ncontent-range: bytes {first}-{last}/{DATA}\r\n\r\n"
        );
        want.extend([head.as_bytes(), &all[part]].concat());
    }
    want.extend(format!("\r\n--{boundary}--\r\n").bytes());
    assert_eq!(several.body, want);
    // An interrupted download that goes on.
    let file = super::scratch().join(format!("resumed-{}", std::process::id()));
    std::fs::write(&file, &all[..300_000]).unwrap();
    guest.curl(&["-C", "-", "-o", file.to_str().unwrap(), &guest.url("/data.bin")]);
    assert_eq!(std::fs::read(&file).unwrap(), all);
}

fn conditions(engine: Engine) {
    let guest = Site::Plain.start(engine);
    let get = |args: &[&str]| get(&guest, "/text.txt", args);
    let first = get(&[]).expect(200);
    let (etag, date) = (first.header("etag").to_owned(), first.header("last-modified").to_owned());
    let with = |field: String| get(&["-H", &field]);
    for field in [
        format!("If-None-Match: {etag}"),
        format!("If-None-Match: W/{etag}"),
        format!("If-None-Match: \"a\", {etag}"),
        "If-None-Match: *".into(),
        format!("If-Modified-Since: {date}"),
    ] {
        let answer = with(field.clone());
        assert_eq!((answer.status, answer.body.len(), answer.header("etag")), (304, 0, &*etag), "{field}");
    }
    for field in ["If-None-Match: \"a\"", "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT", "If-Modified-Since: soon"]
    {
        with(field.into()).expect(200);
    }
    with("If-Match: \"a\"".into()).expect(412);
    with(format!("If-Match: {etag}")).expect(200);
    with("If-Unmodified-Since: Thu, 01 Jan 1970 00:00:00 GMT".into()).expect(412);
    // What curl itself makes of a file that it already has.
    let tag_file = super::scratch().join(format!("etag-{}", std::process::id()));
    let file = tag_file.to_str().unwrap();
    get(&["--etag-save", file]).expect(200);
    get(&["--etag-compare", file]).expect(304);
}

fn codings(engine: Engine) {
    let guest = Site::Plain.start(engine);
    let plain = get(&guest, "/text.txt", &[]).expect(200);
    assert_eq!((plain.header("content-encoding"), plain.header("vary")), ("", "accept-encoding"));
    let mut tags = vec![plain.header("etag").to_owned()];
    for (accept, want) in
        [("br", "br"), ("gzip", "gzip"), ("gzip, br", "br"), ("gzip;q=1, br;q=0.5", "gzip"), ("br;q=0, gzip;q=0", "")]
    {
        let packed = get(&guest, "/text.txt", &["-H", &format!("Accept-Encoding: {accept}")]).expect(200);
        assert_eq!(packed.header("content-encoding"), want, "{accept}");
        assert_eq!(packed.header("vary"), "accept-encoding");
        assert!(want.is_empty() || packed.body.len() < text().len() / 5, "{accept}: {}", packed.body.len());
        tags.push(packed.header("etag").to_owned());
        // And curl can undo it.
        let undone =
            guest.curl(&["--compressed", "-H", &format!("Accept-Encoding: {accept}"), &guest.url("/text.txt")]);
        assert_eq!(undone, text().as_bytes(), "{accept}");
    }
    tags.sort();
    tags.dedup();
    assert_eq!(tags.len(), 3, "one entity tag for each coding: {tags:?}");
    // What does not get smaller is sent as it is.
    assert_eq!(get(&guest, "/data.bin", &["--compressed"]).expect(200).header("content-encoding"), "");
}

fn pipelining(engine: Engine) {
    let guest = Site::Plain.start(engine);
    let mut stream = guest.connect().unwrap();
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
    let paths = ["/text.txt", "/", "/nothing", "/data.bin", "/empty.txt", "/sub/"];
    let whole: String = paths.iter().cycle().take(60).map(|p| request(p)).collect();
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(whole.as_bytes()).unwrap());
        let mut reader = BufReader::new(&mut stream);
        for path in paths.iter().cycle().take(60) {
            let answer = http::read_response(&mut reader).unwrap_or_else(|e| panic!("{path}: {e}\n{}", guest.log()));
            assert_eq!(answer.status, if *path == "/nothing" { 404 } else { 200 }, "{path}");
            match *path {
                "/text.txt" => assert_eq!(answer.text(), text()),
                "/data.bin" => assert!(answer.body == data()),
                "/empty.txt" => assert!(answer.body.is_empty()),
                _ => {}
            }
        }
    });
}

fn single_page(engine: Engine) {
    let guest = Site::App.start(engine);
    let html = ["-H", "Accept: text/html,application/xhtml+xml,*/*;q=0.8"];
    let page = get(&guest, "/any/route/of/the/app", &html).expect(200);
    assert_eq!(page.body, include_bytes!("page/index.html"));
    // A script that asks for data is told the truth.
    get(&guest, "/any/data.json", &["-H", "Accept: application/json"]).expect(404);
    let listing = get(&guest, "/files/", &html).expect(200);
    assert!(listing.text().contains("href=\"./a%20b.txt\"") && !listing.text().contains("<co>"), "{}", listing.text());
}

fn metrics_and_log(engine: Engine) {
    let mut guest = Site::App.builder(engine).port(9100).start_http("/healthz");
    get(&guest, "/text.txt?logged=1", &["-A", "a \"client\""]).expect(200);
    get(&guest, "/files/not-there.json", &["-H", "Accept: application/json"]).expect(404);
    let metrics = Curl::run(&guest, &[&format!("http://{}/metrics", guest.addr_of(1))]).expect(200);
    let count = |name: &str| -> u64 {
        let text = metrics.text();
        let line = text.lines().find_map(|l| l.strip_prefix(name).map(|n| n.trim().parse().unwrap()));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
    };
    assert_eq!(count("donjon_web_responses_total{class=\"4xx\"}"), 1);
    assert!(count("donjon_web_responses_total{class=\"2xx\"}") >= 2);
    // The port of the metrics has nothing else, and the site has no metrics.
    Curl::run(&guest, &[&format!("http://{}/", guest.addr_of(1))]).expect(404);
    guest.wait_console("/text.txt?logged=1");
    let log = guest.log();
    let line = log.lines().find(|l| l.contains("/text.txt?logged=1")).unwrap();
    assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    assert!(line.contains("\"status\":200") && line.contains(r#""agent":"a \"client\"""#), "{line}");
}

fn virtual_hosts(engine: Engine) {
    let guest = Site::App.start(engine);
    let other = get(&guest, "/", &["-H", "Host: other.test"]).expect(200);
    assert_eq!(other.text(), "the other host\n");
    assert_eq!(get(&guest, "/", &["-H", "Host: OTHER.test:8080"]).expect(200).text(), "the other host\n");
    assert_eq!(get(&guest, "/", &["-H", "Host: any.test"]).expect(200).body, include_bytes!("page/index.html"));
    get(&guest, "/other-canary.txt", &[]).expect(404);
    get(&guest, "/text.txt", &["-H", "Host: other.test"]).expect(404);
    // An absolute target wins over the Host header (RFC 9112 §3.2.2).
    let target = ["--request-target", "http://other.test/", "-H", "Host: any.test"];
    assert_eq!(get(&guest, "/", &target).expect(200).text(), "the other host\n");
}

fn passwords(engine: Engine) {
    let guest = Site::App.start(engine);
    let secret = |args: &[&str]| get(&guest, "/private/secret.txt", args);
    let asked = secret(&[]).expect(401);
    assert_eq!(asked.header("www-authenticate"), "Basic realm=\"Restricted\", charset=\"UTF-8\"");
    // The derivation of a key from a password is slow on purpose, and emulation makes it seconds.
    let wrong =
        ["alice:wrong", "bob:correct horse", "alice:", ":"].into_iter().take(if engine.is_qemu() { 1 } else { 4 });
    for _ in 0..2 {
        assert_eq!(secret(&["--user", super::USER]).expect(200).text(), "for alice\n");
    }
    for wrong in wrong {
        secret(&["--user", wrong]).expect(401);
    }
    secret(&["-H", "Authorization: Basic !!!"]).expect(401);
    secret(&["-H", "Authorization: Bearer x"]).expect(401);
    // No other spelling of the path is a way around.
    for path in ["//private/secret.txt", "/%70rivate/secret.txt", "/sub/../private/secret.txt", "/private//secret.txt"]
    {
        get(&guest, path, &[]).expect(401);
        get(&guest, path, &["--http2-prior-knowledge"]).expect(401);
    }
}
