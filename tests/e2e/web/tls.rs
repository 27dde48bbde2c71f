//! TLS, as `openssl s_client` and `curl` see it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use donjon_tests::{Certificate, Engine, Guest};

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

/// The program's own server, which accepts whatever this build of it knows: what it says yes to, the client has really offered.
struct Permissive {
    child: Child,
    address: String,
}

impl Permissive {
    fn start() -> Permissive {
        let (one, rsa) = (certificate("one.test"), Certificate::rsa(super::scratch(), "rsa.test"));
        let mut child = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-www", "-cipher", "ALL:eNULL:@SECLEVEL=0"])
            .args([Path::new("-cert"), &one.cert, Path::new("-key"), &one.key])
            .args([Path::new("-dcert"), &rsa.cert, Path::new("-dkey"), &rsa.key])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let address = lines.find_map(|l| l.strip_prefix("ACCEPT ").map(str::to_owned)).expect("its address");
        // It goes on to write there.
        std::thread::spawn(move || lines.for_each(drop));
        Permissive { child, address }
    }

    /// The version and cipher that it agrees on with a client of these options.
    #[track_caller]
    fn accepts(&self, args: &[&str]) -> String {
        let output = Command::new("openssl")
            .args(["s_client", "-connect", &self.address])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
        agreed(&text).unwrap_or_else(|| panic!("{args:?}: {text}"))
    }
}

impl Drop for Permissive {
    fn drop(&mut self) {
        // It may have ended; then the test has said so.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `s_client` says was agreed on: `TLSv1.3, Cipher is TLS_AES_128_GCM_SHA256`.
fn agreed(text: &str) -> Option<String> {
    let line = text.lines().find_map(|l| l.strip_prefix("New, ").or_else(|| l.strip_prefix("Reused, ")))?;
    (!line.contains("(NONE)")).then(|| line.to_owned())
}

/// TLS alerts (RFC 8446 §6).
const HANDSHAKE_FAILURE: u8 = 40;
const PROTOCOL_VERSION: u8 = 70;

fn versions(engine: Engine) {
    let mut guest = Site::Secure.start(engine);
    let permissive = Permissive::start();
    for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let text = works(&guest, &[version]);
        assert!(text.contains(&format!("New, {name}, Cipher is ")), "{text}");
        assert!(text.contains("Secure Renegotiation IS supported") || version == "-tls1_3", "{text}");
        assert!(text.contains("Compression: NONE"), "{text}");
    }
    for suite in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"] {
        works(&guest, &["-tls1_3", "-ciphersuites", suite]);
    }
    for (kind, name) in [("ECDSA", "one.test"), ("RSA", "rsa.test")] {
        for cipher in ["AES128-GCM-SHA256", "AES256-GCM-SHA384"] {
            let cipher = format!("ECDHE-{kind}-{cipher}");
            let text = works(&guest, &["-tls1_2", "-servername", name, "-cipher", &cipher]);
            assert!(text.contains(&format!("New, TLSv1.2, Cipher is {cipher}")), "{text}");
        }
    }
    // What is refused, by the server and not by a client that cannot say it.
    let refused = |args: &[&str], alert: u8| {
        let offered = permissive.accepts(args);
        for name in ["one.test", "rsa.test"] {
            let text = fails(&guest, &[args, &["-servername", name]].concat());
            assert!(agreed(&text).is_none(), "{text}");
            assert!(text.contains(&format!("SSL alert number {alert}\n")), "{args:?}: {text}");
        }
        offered
    };
    for (version, name) in [("-tls1", "TLSv1.0, "), ("-tls1_1", "TLSv1.0, ")] {
        // The name is that of the version which has the cipher. rustls looks for signature algorithms, which TLS 1.2 has brought, before it looks at
        // the version.
        let offered = refused(&[version, "-cipher", "ALL:@SECLEVEL=0"], HANDSHAKE_FAILURE);
        assert!(offered.starts_with(name), "{offered}");
    }
    for cipher in [
        "ECDHE-ECDSA-NULL-SHA",
        "NULL-SHA256",
        "AECDH-AES128-SHA",
        "ADH-AES128-GCM-SHA256",
        "AES128-SHA",
        "AES128-GCM-SHA256",
        "DHE-RSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-SHA",
        "ECDHE-RSA-AES256-SHA384",
        "ECDHE-ECDSA-AES128-SHA",
        "ECDHE-ECDSA-AES128-SHA256",
        "ECDHE-ECDSA-AES128-CCM",
        "ECDHE-ECDSA-CAMELLIA128-SHA256",
        // Left out for its size (ADR 0005), as in the suites of TLS 1.3.
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
    ] {
        let offered = refused(&["-tls1_2", "-cipher", &format!("{cipher}:@SECLEVEL=0")], HANDSHAKE_FAILURE);
        assert!(offered.ends_with(&format!(" {cipher}")), "{cipher}: {offered}");
    }
    let suite = "TLS_CHACHA20_POLY1305_SHA256";
    let offered = refused(&["-tls1_3", "-ciphersuites", suite], HANDSHAKE_FAILURE);
    assert_eq!(offered, format!("TLSv1.3, Cipher is {suite}"));
    what_openssl_does_not_know(&guest);
    guest.expect_alive();
}

/// Ciphers and a version that no build of `openssl` has any more, in a ClientHello that it has made.
fn what_openssl_does_not_know(guest: &Guest) {
    let hello = client_hello(&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"]);
    // Behind the heads of the record (5 bytes) and of the message (4), the version, 32 random bytes, the session's name, and the length of the list.
    let suite = 46 + usize::from(hello[43]);
    assert_eq!(hello[suite..suite + 2], [0xc0, 0x2b]);
    let ask = |bytes: &[u8]| {
        let mut stream = guest.run(|| std::net::TcpStream::connect(guest.addr_of(HTTPS))).unwrap();
        stream.set_read_timeout(Some(donjon_tests::PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).unwrap();
        answer
    };
    // A record of the type handshake with a ServerHello; of the type alert with a fatal one.
    let as_it_is = ask(&hello);
    assert_eq!((as_it_is[0], as_it_is[5]), (22, 2), "{as_it_is:?}");
    let refused = |at: usize, value: [u8; 2], alert: u8| {
        let mut changed = hello.clone();
        changed[at..at + 2].copy_from_slice(&value);
        let answer = ask(&changed);
        assert_eq!((answer[0], &answer[5..]), (21, &[2, alert][..]), "{at}: {value:?}: {answer:?}");
    };
    // TLS_RSA_WITH_RC4_128_SHA, TLS_ECDHE_ECDSA_WITH_RC4_128_SHA, TLS_RSA_WITH_3DES_EDE_CBC_SHA, TLS_ECDHE_ECDSA_WITH_3DES_EDE_CBC_SHA,
    // TLS_RSA_EXPORT_WITH_RC4_40_MD5, TLS_NULL_WITH_NULL_NULL.
    for value in [[0, 0x05], [0xc0, 0x07], [0, 0x0a], [0xc0, 0x08], [0, 0x03], [0, 0]] {
        refused(suite, value, HANDSHAKE_FAILURE);
    }
    // SSL 3.0, TLS 1.0 and 1.1, the version being behind the heads of the record (5 bytes) and of the message (4).
    assert_eq!(hello[9..11], [3, 3]);
    for minor in 0..3 {
        refused(9, [3, minor], PROTOCOL_VERSION);
    }
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
    for (name, want) in [
        ("one.test", "one.test"),
        ("two.test", "two.test"),
        ("TWO.test", "two.test"),
        ("rsa.test", "rsa.test"),
        ("x.test", "one.test"),
    ] {
        let text = works(&guest, &["-servername", name]);
        assert!(text.contains(&format!("subject=CN = {want}")), "{name}: {text}");
        let kind = if name == "rsa.test" { "RSA-PSS" } else { "ECDSA" };
        assert!(text.contains(&format!("Peer signature type: {kind}")), "{name}: {text}");
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
    let rsa = Certificate::rsa(super::scratch(), "rsa.test").cert;
    let (resolve_rsa, url) = (format!("rsa.test:{port}:{address}"), format!("https://rsa.test:{port}/files/a%20b.txt"));
    let answer = Curl::run(&guest, &["--cacert", rsa.to_str().unwrap(), "--resolve", &resolve_rsa, &url]).expect(200);
    assert_eq!(answer.text(), "a file with a space\n");
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
    let hello = client_hello(&[]);
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
        let _ = stream.read_to_end(&mut Vec::new());
        guest.expect_alive();
    }
    works(&guest, &[]);
}

/// A ClientHello of `openssl`, as it goes over the wire.
fn client_hello(args: &[&str]) -> Vec<u8> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &address, "-servername", "one.test"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut head = [0; 5];
    stream.read_exact(&mut head).unwrap();
    let mut body = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    stream.read_exact(&mut body).unwrap();
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
