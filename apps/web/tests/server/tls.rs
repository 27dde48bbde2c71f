//! TLS, with openssl as the client.

use crate::harness::{Server, free_address};
#[cfg(feature = "proxy")]
use donjon_web_format::Proxy;
use donjon_web_format::{Certificate, Config, Limits};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Certificates in a directory of their own; `None`, said loudly, if there is no openssl.
struct Keys(PathBuf);

impl Keys {
    fn new(name: &str, hosts: &[&str]) -> Option<Keys> {
        let dir = std::env::temp_dir().join(format!("donjon-web-tls-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let keys = Keys(dir);
        for host in hosts {
            // A host is named after the kind of its key, if that matters.
            let kind: &[&str] = match *host {
                "rsa.example" => &["rsa:2048"],
                "p384.example" => &["ec", "-pkeyopt", "ec_paramgen_curve:secp384r1"],
                "ed25519.example" => &["ed25519"],
                _ => &["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"],
            };
            let mut openssl = Command::new("openssl");
            openssl.args(["req", "-x509", "-nodes", "-newkey"]).args(kind);
            openssl.args(["-days", "2", "-subj", &format!("/CN={host}"), "-keyout"]).arg(keys.path(host, "key"));
            openssl.arg("-out").arg(keys.path(host, "crt")).stderr(Stdio::null());
            let Ok(status) = openssl.status() else {
                donjon_skip::skip(&donjon_skip::this_test(), "needs openssl");
                return None;
            };
            assert!(status.success());
        }
        Some(keys)
    }

    fn path(&self, host: &str, kind: &str) -> PathBuf {
        self.0.join(format!("{host}.{kind}"))
    }

    fn certificate(&self, host: &str) -> Certificate {
        let text = |kind| self.path(host, kind).to_str().unwrap().to_owned();
        Certificate { chain: text("crt"), key: text("key"), names: host.into(), expires: 1_800_000_000 }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What `openssl s_client` prints when told so.
fn client(address: SocketAddr, args: &[&str], input: &str) -> String {
    use std::io::Write;
    let mut openssl = Command::new("openssl");
    openssl.args(["s_client", "-connect", &address.to_string()]).args(args);
    let mut child = openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    // openssl leaves when its input ends, or the server has closed, which is after the answer.
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn versions_names_protocols_and_resumption() {
    let Some(keys) = Keys::new("client", &["a.example", "b.example"]) else { return };
    let address = free_address();
    let certificates = vec![keys.certificate("a.example"), keys.certificate("b.example")];
    let config = Config { https: Some(address.port()), hsts: Some(60), certificates, ..Config::default() };
    let _server = Server::start(config, &[("/index.html", b"home")]);
    let get = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";

    for (args, wanted) in [
        (&["-tls1_2", "-quiet"][..], "home"),
        (&["-tls1_3", "-quiet"], "home"),
        (&["-tls1_3", "-quiet"], "strict-transport-security: max-age=60"),
        (&["-tls1_2"], "Protocol  : TLSv1.2"),
        (&["-servername", "b.example"], "CN = b.example"),
        (&["-servername", "a.example"], "CN = a.example"),
        (&["-servername", "other.example"], "CN = a.example"),
        (&["-alpn", "http/1.1"], "ALPN protocol: http/1.1"),
        (&["-alpn", "h2,http/1.1"], "ALPN protocol: h2"),
    ] {
        let said = client(address, args, get).replace("CN=", "CN = ");
        assert!(said.contains(wanted), "{args:?}: {wanted} in {said}");
    }
    assert!(!client(address, &["-tls1_1"], get).contains("home"));

    for version in ["-tls1_2", "-tls1_3"] {
        let session = keys.path(version, "session");
        let session = session.to_str().unwrap();
        client(address, &[version, "-sess_out", session], get);
        let said = client(address, &[version, "-sess_in", session], get);
        assert!(said.contains("Reused, TLS"), "{version}: {said}");
        assert!(said.contains("home"), "{version}: {said}");
    }
}

#[cfg(feature = "proxy")]
#[test]
fn forwarded_paths_have_hsts() {
    let Some(keys) = Keys::new("forwarded", &["a.example"]) else { return };
    let address = free_address();
    let proxies = vec![Proxy { prefix: "/down".into(), upstream: free_address().to_string() }];
    let certificates = vec![keys.certificate("a.example")];
    let config = Config { https: Some(address.port()), hsts: Some(60), certificates, proxies, ..Config::default() };
    let _server = Server::start(config, &[]);
    let said = client(address, &["-quiet"], "GET /down HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n");
    assert!(said.contains("502 Bad Gateway") && said.contains("strict-transport-security: max-age=60"), "{said}");
}

/// A place that is free is for whoever comes first, on either port.
#[test]
fn one_place_is_for_both_ports() {
    let Some(keys) = Keys::new("place", &["a.example"]) else { return };
    let address = free_address();
    let limits = Limits { connections: 1, ..Limits::default() };
    let certificates = vec![keys.certificate("a.example")];
    let config = Config { https: Some(address.port()), certificates, limits, ..Config::default() };
    let server = Server::start(config, &[("/index.html", b"home")]);
    for _ in 0..3 {
        let mut client = server.connect();
        client.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        assert_eq!(client.response(false).text(), "home");
        drop(client);
        let said = self::client(address, &["-quiet"], "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        assert!(said.contains("home"), "{said}");
    }
}

#[test]
fn kinds_of_keys() {
    let hosts = ["a.example", "rsa.example", "p384.example"];
    let Some(keys) = Keys::new("kinds", &[&hosts[..], &["ed25519.example"]].concat()) else { return };
    let address = free_address();
    let certificates = hosts.iter().map(|host| keys.certificate(host)).collect();
    let config = Config { https: Some(address.port()), certificates, ..Config::default() };
    let _server = Server::start(config, &[("/index.html", b"home")]);
    for host in hosts {
        let get = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        for version in ["-tls1_2", "-tls1_3"] {
            let said = client(address, &[version, "-servername", host], &get).replace("CN=", "CN = ");
            assert!(said.contains("home") && said.contains(&format!("CN = {host}")), "{host} {version}: {said}");
        }
    }
    let ed25519 = vec![keys.certificate("ed25519.example")];
    let config = Config { https: Some(free_address().port()), certificates: ed25519, ..Config::default() };
    assert_ne!(Server::refused(config), 0);
}

#[test]
fn a_key_that_does_not_fit_is_refused() {
    let Some(keys) = Keys::new("mismatch", &["a.example", "b.example"]) else { return };
    let wrong = Certificate { key: keys.certificate("b.example").key, ..keys.certificate("a.example") };
    let config = Config { https: Some(free_address().port()), certificates: vec![wrong], ..Config::default() };
    assert_ne!(Server::refused(config), 0);
}

/// Of the certificates for a name, a client gets one whose key it can use; one that names the host rather than a wildcard.
#[test]
fn certificates_that_a_client_can_use() {
    let Some(keys) = Keys::new("choice", &["a.example", "rsa.example", "wild.example"]) else { return };
    let address = free_address();
    let named = |host: &str, names: &str| Certificate { names: names.into(), ..keys.certificate(host) };
    let certificates = vec![
        named("wild.example", "*.example"),
        named("a.example", "a.example, other.example"),
        named("rsa.example", "a.example"),
    ];
    let config = Config { https: Some(address.port()), certificates, ..Config::default() };
    let _server = Server::start(config, &[("/index.html", b"home")]);
    let get = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    let ecdsa = &["-sigalgs", "ECDSA+SHA256"][..];
    let rsa = &["-sigalgs", "RSA-PSS+SHA256:RSA+SHA256"][..];
    for (host, kind, wanted) in [
        ("a.example", ecdsa, "a.example"),
        ("A.example", ecdsa, "a.example"),
        ("a.example", rsa, "rsa.example"),
        ("b.example", ecdsa, "wild.example"),
        ("other.example", ecdsa, "a.example"),
        // None is for these: the first that can be used.
        ("elsewhere", ecdsa, "wild.example"),
        ("elsewhere", rsa, "rsa.example"),
    ] {
        for version in ["-tls1_2", "-tls1_3"] {
            let said = client(address, &[&[version, "-servername", host], kind].concat(), get).replace("CN=", "CN = ");
            assert!(said.contains("home"), "{host} {kind:?} {version}: {said}");
            assert!(said.contains(&format!("CN = {wanted}")), "{host} {kind:?} {version}: {said}");
        }
    }
    // A certificate for another name is no better than none.
    let said = client(address, &[&["-servername", "other.example"], rsa].concat(), get);
    assert!(!said.contains("home"), "{said}");
}
