//! TLS, as `openssl s_client` and `curl` see it.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use donjon_tests::{Engine, Guest};

use super::{Curl, Site, certificate, data};

crate::under_engines! {
    versions: ProcessUser QemuMicrovm;
    application_protocols: ProcessUser QemuMicrovm;
    certificates_by_name: ProcessUser QemuMicrovm;
    resumption: ProcessUser QemuMicrovm;
    over_curl: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    redirect: ProcessUser QemuMicrovm;
    rubbish: ProcessUser QemuMicrovm;
}

/// Which of the published ports is HTTPS, in [`Site::Secure`] and [`Site::Redirect`].
const HTTPS: usize = 1;

/// Runs `openssl s_client`, asks for a page, and returns whether that worked and all that it said.
fn s_client(guest: &Guest, args: &[&str]) -> (bool, String) {
    let mut command = guest.command("timeout");
    command.args(["60", "openssl", "s_client", "-ign_eof", "-connect", &guest.addr_of(HTTPS).to_string()]).args(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let request = b"GET /files/a%20b.txt HTTP/1.1\r\nHost: one.test\r\nConnection: close\r\n\r\n";
    // If the handshake fails, nobody reads it.
    let _ = child.stdin.take().unwrap().write_all(request);
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
    (output.status.success() && text.contains("a file with a space"), text)
}

#[track_caller]
fn works(guest: &Guest, args: &[&str]) -> String {
    let (worked, text) = s_client(guest, args);
    assert!(worked, "{args:?}: {text}\n{}", guest.log());
    text
}

#[track_caller]
fn fails(guest: &Guest, args: &[&str]) -> String {
    let (worked, text) = s_client(guest, args);
    assert!(!worked, "{args:?}: {text}");
    text
}

fn versions(engine: Engine) {
    let mut guest = Site::Secure.start(engine);
    for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let text = works(&guest, &[version]);
        assert!(text.contains(&format!("New, {name}, Cipher is ")), "{text}");
        assert!(text.contains("Secure Renegotiation IS supported") || version == "-tls1_3", "{text}");
        assert!(text.contains("Compression: NONE"), "{text}");
    }
    for version in ["-tls1", "-tls1_1"] {
        let text = fails(&guest, &[version, "-cipher", "ALL:@SECLEVEL=0"]);
        assert!(text.contains("SSL alert number"), "the server must say no, not this client: {text}");
    }
    for cipher in ["NULL", "RC4", "3DES", "aNULL", "AES128-SHA", "ECDHE-ECDSA-AES128-SHA"] {
        fails(&guest, &["-tls1_2", "-cipher", &format!("{cipher}:@SECLEVEL=0")]);
    }
    for suite in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"] {
        works(&guest, &["-tls1_3", "-ciphersuites", suite]);
    }
    for cipher in ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"] {
        works(&guest, &["-tls1_2", "-cipher", cipher]);
    }
    // Left out for its size (ADR 0005).
    fails(&guest, &["-tls1_3", "-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"]);
    guest.expect_alive();
}

fn application_protocols(engine: Engine) {
    let guest = Site::Secure.start(engine);
    let agreed = |offer: &str| s_client(&guest, &["-alpn", offer]).1;
    assert!(agreed("http/1.1").contains("ALPN protocol: http/1.1"));
    // The answer is then HTTP/2 and none to our request: only what was agreed on counts.
    for offer in ["h2", "h2,http/1.1", "http/1.1,h2"] {
        assert!(agreed(offer).contains("ALPN protocol: h2"), "{offer}");
    }
    assert!(works(&guest, &[]).contains("No ALPN negotiated"));
    let text = fails(&guest, &["-alpn", "gopher"]);
    assert!(text.contains("alert no application protocol"), "{text}");
}

fn certificates_by_name(engine: Engine) {
    let guest = Site::Secure.start(engine);
    for (name, want) in
        [("one.test", "one.test"), ("two.test", "two.test"), ("TWO.test", "two.test"), ("x.test", "one.test")]
    {
        let text = works(&guest, &["-servername", name]);
        assert!(text.contains(&format!("subject=CN = {want}")), "{name}: {text}");
    }
    assert!(works(&guest, &["-noservername"]).contains("subject=CN = one.test"));
}

fn resumption(engine: Engine) {
    let guest = Site::Secure.start(engine);
    for version in ["-tls1_2", "-tls1_3"] {
        let session = super::scratch().join(format!("session{version}-{engine:?}"));
        let session = session.to_str().unwrap();
        assert!(works(&guest, &[version, "-sess_out", session]).contains("New, TLS"));
        let text = works(&guest, &[version, "-sess_in", session]);
        assert!(text.contains("Reused, TLS"), "{version}: {text}");
    }
    // By session id alone, for clients that take no tickets.
    let session = super::scratch().join(format!("session-id-{engine:?}"));
    let session = session.to_str().unwrap();
    works(&guest, &["-tls1_2", "-no_ticket", "-sess_out", session]);
    let text = works(&guest, &["-tls1_2", "-no_ticket", "-sess_in", session]);
    assert!(text.contains("Reused, TLS"), "{text}");
}

fn over_curl(engine: Engine) {
    let guest = Site::Secure.start(engine);
    let port = guest.addr_of(HTTPS).port();
    let address = guest.addr_of(HTTPS).ip();
    let cert = certificate("one.test").cert;
    let resolve = format!("one.test:{port}:{address}");
    // The certificate is checked, too.
    let trusted = ["--cacert", cert.to_str().unwrap(), "--resolve", &resolve];
    for (args, version) in [
        (&["--http1.1"][..], "1.1"),
        (&["--http2"], "2"),
        (&["--http1.1", "--tls-max", "1.2"], "1.1"),
        (&["--http2", "--tls-max", "1.2"], "2"),
    ] {
        let url = format!("https://one.test:{port}/data.bin");
        let answer = Curl::run(&guest, &[&trusted[..], args, &[&url]].concat()).expect(200);
        assert_eq!(answer.version, version, "{args:?}");
        assert!(answer.body == data(), "{args:?}");
        let part = Curl::run(&guest, &[&trusted[..], args, &["-r", "16380-16390", &url]].concat()).expect(206);
        assert_eq!(part.body, &data()[16_380..=16_390]);
        let text = format!("https://one.test:{port}/text.txt");
        let text = guest.curl(&[&trusted[..], args, &["--compressed", &text]].concat());
        assert_eq!(text, super::text().as_bytes());
    }
}

fn redirect(engine: Engine) {
    let guest = Site::Redirect.start(engine);
    let plain = Curl::run(&guest, &["-H", "Host: one.test:8080", &guest.url("/sub/?a=b")]).expect(308);
    assert_eq!(plain.header("location"), "https://one.test:8443/sub/?a=b");
    assert_eq!(plain.header("strict-transport-security"), "", "over TLS only: RFC 6797 §7.2");
    let url = format!("https://{}/", guest.addr_of(HTTPS));
    let secure = Curl::run(&guest, &["--insecure", &url]).expect(200);
    assert!(secure.header("strict-transport-security").starts_with("max-age=31536000"), "{secure:?}");
    // The place that is redirected to is not the client's to choose.
    let split = Curl::run(&guest, &["-H", "Host: one.test", &guest.url("/%0d%0aInjected:x")]);
    assert!(split.header("injected").is_empty() && [308, 400].contains(&split.status), "{split:?}");
    Curl::run(&guest, &["-H", "Host: evil.test/x?", &guest.url("/")]).expect(400);
}

/// What is no TLS, or stops in the middle, costs this connection only.
fn rubbish(engine: Engine) {
    let mut guest = Site::Secure.start(engine);
    let address = guest.addr_of(HTTPS);
    let connect = || {
        let stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(donjon_tests::PATIENCE)).unwrap();
        stream
    };
    let hello = client_hello();
    let mut cases: Vec<Vec<u8>> =
        vec![b"GET / HTTP/1.1\r\nHost: test\r\n\r\n".to_vec(), vec![0; 100], vec![0xff; 40_000]];
    cases.extend((0..hello.len()).step_by(7).map(|at| {
        let mut damaged = hello.clone();
        damaged[at] ^= 0x80;
        damaged
    }));
    cases.extend((0..hello.len()).step_by(13).map(|at| hello[..at].to_vec()));
    for case in cases {
        let mut stream = connect();
        if stream.write_all(&case).is_ok() {
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
        // An alert or nothing; what matters is that it ends. A reset is an end, too.
        let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
        guest.expect_alive();
    }
    works(&guest, &[]);
}

/// A ClientHello of `openssl`, as it goes over the wire.
fn client_hello() -> Vec<u8> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut child = std::process::Command::new("openssl")
        .args(["s_client", "-connect", &address, "-servername", "one.test"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut head = [0; 5];
    std::io::Read::read_exact(&mut stream, &mut head).unwrap();
    let mut body = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    std::io::Read::read_exact(&mut stream, &mut body).unwrap();
    drop(stream);
    child.wait().unwrap();
    [&head[..], &body].concat()
}

/// A key that is in the image is not to be had from outside; see also `hostile::traversal`.
#[test]
fn keys_are_in_the_image_only_when_asked_for() {
    let key = fs::read_to_string(certificate("one.test").key).unwrap();
    let line = key.lines().nth(1).unwrap().as_bytes().to_vec();
    let contains = |image: &std::path::Path| fs::read(image).unwrap().windows(line.len()).any(|w| w == line);
    assert!(contains(&Site::Secure.image()), "--embed-key");
    let c = certificate("one.test");
    let (cert, key) = (c.cert.display().to_string(), c.key.display().to_string());
    let without = super::pack("no-key", &[super::content().display().to_string(), "--tls".into(), cert, key]);
    assert!(!contains(&without));
}
