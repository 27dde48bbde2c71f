//! What a user may say about a site.

use crate::Error;
use donjon_image::secrets;
use donjon_web_format as format;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

/// The file that may have a `[web]` table.
pub(crate) const FILE: &str = "Donjon.toml";

/// The options of a site: the `[web]` table of `Donjon.toml`, and the flags of `donjon serve` of the same names.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Directory of the content, relative to `Donjon.toml`. Default: `public`.
    pub root: Option<PathBuf>,
    /// Port inside the guest for plain HTTP. Default 80; 0 turns it off.
    pub http: Option<u16>,
    /// Port inside the guest for HTTPS, with `tls`. Default 443.
    pub https: Option<u16>,
    /// Certificates; the first is the default, others are chosen by server name.
    pub tls: Vec<Tls>,
    /// Redirect plain HTTP to HTTPS.
    pub redirect: bool,
    /// The port that clients know for HTTPS, if it is not 443: `https` is the guest's.
    pub redirect_port: Option<u16>,
    /// Seconds for Strict-Transport-Security.
    pub hsts: Option<u32>,
    /// List directories without an index page.
    pub listing: bool,
    /// Page for "not found".
    pub not_found: Option<String>,
    /// Page for every path that does not exist (single-page applications).
    pub spa: Option<String>,
    /// Extra headers.
    pub headers: Vec<Rule>,
    /// Cache-Control by pattern, in the order in which it was written: of the patterns that match, the last holds.
    #[serde(deserialize_with = "as_written")]
    pub cache: Vec<(String, String)>,
    /// Areas with a password.
    pub auth: Vec<Auth>,
    /// Virtual hosts: name to directory. `*` is for all other names.
    pub hosts: BTreeMap<String, PathBuf>,
    /// Paths that are forwarded.
    pub proxy: Vec<Proxy>,
    /// Networks of proxies in front, whose word on their clients (X-Forwarded-For, X-Forwarded-Proto) is believed.
    pub trusted_proxy: Vec<String>,
    /// Access log as JSON lines on the console.
    pub log: bool,
    /// Port for Prometheus metrics.
    pub metrics: Option<u16>,
    /// Most open connections.
    pub connections: Option<u32>,
    /// Most of one client: of an IPv4 address, or a /64 of IPv6; 0 is no bound.
    pub connections_per_address: Option<u32>,
    /// Largest request head, bytes.
    pub header_bytes: Option<u32>,
    /// Longest time for a request head, seconds.
    pub header_seconds: Option<u32>,
    /// Largest request body, bytes.
    pub body_bytes: Option<u64>,
    /// Longest pause within a transfer, seconds.
    pub stall_seconds: Option<u32>,
    /// Longest pause between requests, seconds.
    pub idle_seconds: Option<u32>,
    /// Longest wait for an upstream's answer, and for more of it, seconds.
    pub upstream_seconds: Option<u32>,
    /// Longest time for requests in progress after a stop, seconds.
    pub drain_seconds: Option<u32>,
}

/// A certificate.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM file with the certificate and its chain.
    pub cert: PathBuf,
    /// PEM file with the private key. It is *not* put into the image: it is handed over at every start, under the name `secret`. Without it
    /// the image can be made where the key is not.
    pub key: Option<PathBuf>,
    /// Name of the secret. Default: `tls-key`, `tls-key-2`, …
    pub secret: Option<String>,
    /// Server names that choose this certificate. Default: the names in it.
    #[serde(default)]
    pub names: Vec<String>,
    /// Put the private key into the image, where everybody who can read the image can read it.
    #[serde(default)]
    pub embed_key: bool,
}

/// A header by pattern.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Paths; `*` matches any run of characters. Default: all.
    #[serde(default = "all")]
    pub path: String,
    /// Header name.
    pub name: String,
    /// Header value.
    pub value: String,
}

/// An area with a password.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// Paths; default: all.
    #[serde(default = "all")]
    pub path: String,
    /// Shown by the browser. Default: `Restricted`.
    pub realm: Option<String>,
    /// User name.
    pub user: String,
    /// Password. Only a derived key is put into the image.
    pub password: Option<String>,
    /// File whose first line is the password, in place of `password`.
    pub password_file: Option<PathBuf>,
}

/// A path that is forwarded.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Proxy {
    /// Path prefix.
    pub path: String,
    /// `ADDRESS:PORT` or `NAME:PORT`.
    pub to: String,
    /// Look the name up when the image is made: the image may then connect to what was found, and not to that port of any address.
    #[serde(default)]
    pub pin: bool,
}

fn all() -> String {
    "*".into()
}

/// A table in the order of the text, which a map would lose.
fn as_written<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<(String, String)>, D::Error> {
    let table = BTreeMap::<toml::Spanned<String>, String>::deserialize(from)?;
    let mut pairs: Vec<_> = table.into_iter().collect();
    pairs.sort_by_key(|(key, _)| key.span().start);
    Ok(pairs.into_iter().map(|(key, value)| (key.into_inner(), value)).collect())
}

/// PBKDF2 rounds: a compromise between an attacker who has the image and a first request on a small machine.
const ROUNDS: u32 = 200_000;

/// The part of `Donjon.toml` that is ours.
#[derive(Deserialize)]
struct File {
    web: Option<Options>,
}

impl Options {
    /// The `[web]` table of the `Donjon.toml` in `dir`; `None` without one.
    pub fn load(dir: &Path) -> Result<Option<Options>, Error> {
        let path = dir.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let file: File =
                    toml::from_str(&text).map_err(|e| Error::Config(path, e.to_string().trim_end().to_owned()))?;
                Ok(file.web)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::Io(path, e)),
        }
    }

    /// The server's configuration. `hosts` are the virtual hosts with the numbers of their content roots.
    pub(crate) fn config(&self, base: &Path, hosts: Vec<format::Host>) -> Result<format::Config, Error> {
        let option = |option, problem: &str| Err(Error::Option { option, problem: problem.into() });
        let tls = !self.tls.is_empty();
        if self.redirect && !tls {
            return option("redirect", "there is nothing to redirect to without `tls`");
        }
        if self.hsts.is_some() && !tls {
            return option("hsts", "it means something over HTTPS only: add `tls`");
        }
        let http = self.http.or(Some(80)).filter(|p| *p != 0);
        let https = tls.then(|| self.https.unwrap_or(443));
        if http.is_none() && https.is_none() {
            return option("http", "0 turns the only port off");
        }
        let ports = [http, https, self.metrics];
        for (i, port) in ports.iter().enumerate() {
            if port.is_some() && ports[..i].contains(port) {
                return option("metrics", "every port can be used once only");
            }
        }
        if self.upstream_seconds == Some(0) {
            return option("upstream_seconds", "0 would leave an upstream no time at all");
        }
        for (i, host) in hosts.iter().enumerate() {
            host_name(&host.name)?;
            if hosts[..i].iter().any(|h| h.name == host.name) {
                return option("hosts", &format!("`{}` is there twice", host.name));
            }
        }
        let limits = format::Limits::default();
        Ok(format::Config {
            http,
            https,
            redirect: self.redirect.then(|| self.redirect_port.unwrap_or(443)),
            metrics: self.metrics,
            hsts: self.hsts,
            listing: self.listing,
            log: self.log,
            not_found: page("not_found", &self.not_found)?,
            spa: page("spa", &self.spa)?,
            headers: self.headers.iter().map(header).collect::<Result<_, _>>()?,
            cache: self
                .cache
                .iter()
                .map(|(path, value)| rule(path, "cache-control", value, "cache"))
                .collect::<Result<_, _>>()?,
            auth: self.auth.iter().map(|a| auth(base, a)).collect::<Result<_, _>>()?,
            hosts,
            proxies: self.proxy.iter().map(|p| proxy(p, &look_up)).collect::<Result<_, _>>()?,
            trusted: self.trusted_proxy.iter().map(|n| network(n)).collect::<Result<_, _>>()?,
            certificates: self.tls.iter().enumerate().map(certificate).collect::<Result<_, _>>()?,
            limits: format::Limits {
                connections: self.connections.unwrap_or(limits.connections),
                connections_per_address: self.connections_per_address.unwrap_or(limits.connections_per_address),
                header_bytes: self.header_bytes.unwrap_or(limits.header_bytes),
                header_seconds: self.header_seconds.unwrap_or(limits.header_seconds),
                body_bytes: self.body_bytes.unwrap_or(limits.body_bytes),
                stall_seconds: self.stall_seconds.unwrap_or(limits.stall_seconds),
                idle_seconds: self.idle_seconds.unwrap_or(limits.idle_seconds),
                upstream_seconds: self.upstream_seconds.unwrap_or(limits.upstream_seconds),
                drain_seconds: self.drain_seconds.unwrap_or(limits.drain_seconds),
            },
        })
    }
}

impl Tls {
    /// Name of the secret under which the key is handed over, for the certificate at this position.
    pub fn secret_name(&self, index: usize) -> String {
        self.secret.clone().unwrap_or_else(|| match index {
            0 => "tls-key".into(),
            n => format!("tls-key-{}", n + 1),
        })
    }

    /// Where the chain lies in the bundle.
    pub(crate) fn chain_path(index: usize) -> String {
        format!("/.donjon/tls/{index}.pem")
    }

    /// Where the key lies in the bundle, if it does.
    pub(crate) fn key_path(index: usize) -> String {
        format!("/.donjon/tls/{index}.key")
    }
}

fn certificate((index, tls): (usize, &Tls)) -> Result<format::Certificate, Error> {
    let secret = tls.secret_name(index);
    if !secrets::is_name(secret.as_bytes()) {
        let max = secrets::NAME_MAX;
        let problem = format!("`{secret}` is no name: use at most {max} letters, digits, - _ . and no dot in front");
        return Err(Error::Option { option: "tls.secret", problem });
    }
    let key = if tls.embed_key { Tls::key_path(index) } else { format!("secret:{secret}") };
    Ok(format::Certificate { chain: Tls::chain_path(index), key, names: tls.names.join(","), expires: 0 })
}

fn network(text: &str) -> Result<format::Network, Error> {
    let problem = || format!("`{text}` is no network: it is ADDRESS/BITS, without a bit behind those, or ADDRESS");
    format::Network::parse(text).ok_or_else(|| Error::Option { option: "trusted_proxy", problem: problem() })
}

fn page(option: &'static str, path: &Option<String>) -> Result<Option<String>, Error> {
    match path {
        Some(p) if !p.starts_with('/') => {
            Err(Error::Option { option, problem: format!("`{p}` must start with / (a path of the site)") })
        }
        other => Ok(other.clone()),
    }
}

/// Whether a request's `Host`, without its port, can be this name (in lower case): all else would never match.
fn host_name(name: &str) -> Result<(), Error> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    let sound = match name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name == "*" || !name.is_empty() && name.bytes().all(plain) && !name.ends_with('.'),
    };
    if sound {
        return Ok(());
    }
    Err(Error::Option { option: "hosts", problem: format!("`{name}` is not the name of a host as clients send it") })
}

/// A pattern that begins with anything else matches no path.
fn pattern(option: &'static str, pattern: &str) -> Result<String, Error> {
    if pattern.starts_with(['/', '*']) {
        return Ok(pattern.into());
    }
    let problem = format!("the pattern `{pattern}` matches no path: it must start with / or *");
    Err(Error::Option { option, problem })
}

fn header(r: &Rule) -> Result<format::Rule, Error> {
    rule(&r.path, &r.name, &r.value, "header")
}

fn rule(path: &str, name: &str, value: &str, option: &'static str) -> Result<format::Rule, Error> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(Error::Option { option, problem: format!("`{name}` is not the name of a header") });
    }
    if value.chars().any(char::is_control) {
        return Err(Error::Option { option, problem: format!("the value of `{name}` contains control characters") });
    }
    // The server sets these from the content; another value would make the response wrong.
    const OWN: [&str; 5] = ["content-length", "transfer-encoding", "content-encoding", "content-range", "connection"];
    if OWN.iter().any(|own| name.eq_ignore_ascii_case(own)) {
        return Err(Error::Option { option, problem: format!("`{name}` is set by the server") });
    }
    Ok(format::Rule { pattern: pattern(option, path)?, name: name.to_ascii_lowercase(), value: value.into() })
}

fn auth(base: &Path, a: &Auth) -> Result<format::Auth, Error> {
    let pattern = pattern("auth", &a.path)?;
    let password = match (&a.password, &a.password_file) {
        (Some(password), None) => password.clone(),
        (None, Some(file)) => {
            let path = base.join(file);
            let text = std::fs::read_to_string(&path).map_err(|e| Error::Io(path, e))?;
            text.lines().next().unwrap_or_default().to_owned()
        }
        _ => String::new(),
    };
    if a.user.is_empty() || a.user.contains(':') || password.is_empty() {
        let problem = "needs a user (without a colon), and a password or a password_file that is not empty".into();
        return Err(Error::Option { option: "auth", problem });
    }
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|e| Error::Option { option: "auth", problem: format!("no randomness: {e}") })?;
    let mut key = [0; 32];
    pbkdf2::pbkdf2_hmac::<sha2::Sha256>(password.as_bytes(), &salt, ROUNDS, &mut key);
    Ok(format::Auth {
        pattern,
        realm: a.realm.clone().unwrap_or("Restricted".into()),
        user: a.user.clone(),
        rounds: ROUNDS,
        salt: hex(&salt),
        key: hex(&key),
    })
}

/// The addresses of `NAME:PORT`, in the order in which they are to be tried.
fn look_up(name: &str) -> io::Result<Vec<SocketAddr>> {
    Ok(name.to_socket_addrs()?.collect())
}

fn proxy(p: &Proxy, look_up: &dyn Fn(&str) -> io::Result<Vec<SocketAddr>>) -> Result<format::Proxy, Error> {
    let bad = |problem| Err(Error::Option { option: "proxy", problem });
    if !p.path.starts_with('/') {
        return bad(format!("the path `{}` must start with /", p.path));
    }
    if !is_prefix(&p.path) {
        let problem =
            "is for what begins with it, as it is when it is decoded: without `*`, `?`, `#`, `%20`, `//`, `.` and `..`";
        return bad(format!("the path `{}` would match nothing: a path {problem}", p.path));
    }
    let Some((host, port)) = p.to.rsplit_once(':') else { return bad(format!("`{}` is not ADDRESS:PORT", p.to)) };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let name = |h: &str| !h.is_empty() && h.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let sound = bare.map_or_else(|| name(host), |v6| v6.parse::<std::net::Ipv6Addr>().is_ok());
    if !sound || port.parse::<u16>().map_or(true, |p| p == 0) {
        return bad(format!("`{}` is not ADDRESS:PORT", p.to));
    }
    let ip = bare.unwrap_or(host).parse::<std::net::IpAddr>();
    if host.eq_ignore_ascii_case("localhost") || ip.as_ref().is_ok_and(std::net::IpAddr::is_loopback) {
        return bad(format!("`{}` would be the image itself", p.to));
    }
    let mut upstream = p.to.clone();
    if p.pin && ip.is_err() {
        let mut found: Vec<String> = vec![];
        for address in look_up(&p.to).map_err(|e| Error::Option {
            option: "proxy",
            problem: format!("cannot find the address of `{host}`, which is to be pinned: {e}"),
        })? {
            if address.ip().is_loopback() {
                return bad(format!("`{}` is {}, which would be the image itself", p.to, address.ip()));
            }
            if !found.contains(&address.to_string()) {
                found.push(address.to_string());
            }
        }
        if found.is_empty() {
            return bad(format!("`{host}`, which is to be pinned, has no address"));
        }
        upstream = found.join(",");
    }
    Ok(format::Proxy { prefix: p.path.clone(), upstream })
}

/// Whether a request's path, decoded and without `.`, `..` and empty components, can begin with this.
fn is_prefix(path: &str) -> bool {
    let inner = path.strip_suffix('/').unwrap_or(path);
    let encoded = |b: &[u8]| b[0] == b'%' && b[1..].iter().all(u8::is_ascii_hexdigit);
    !path.contains(['*', '?', '#', '\\'])
        && !path.as_bytes().windows(3).any(encoded)
        && inner.split('/').skip(1).all(|component| !matches!(component, "" | "." | ".."))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_to_the_port_that_clients_know() {
        let tls = Tls { cert: "c".into(), key: None, secret: None, names: vec![], embed_key: false };
        for (https, redirect_port, port) in [(None, None, 443), (Some(9443), None, 443), (Some(9443), Some(8443), 8443)]
        {
            let tls = vec![tls.clone()];
            let options = Options { redirect: true, https, redirect_port, tls, ..Options::default() };
            let config = options.config(Path::new("/"), vec![]).unwrap();
            assert_eq!((config.redirect, config.https), (Some(port), https.or(Some(443))));
        }
    }

    #[test]
    fn names_of_upstreams_can_be_pinned() {
        let look_up = |name: &str| match name {
            "two.example:80" => Ok(["10.0.0.5:80", "[fd00::5]:80", "10.0.0.5:80"].map(|a| a.parse().unwrap()).into()),
            "loop.example:80" => Ok(vec!["127.0.1.1:80".parse().unwrap()]),
            "none.example:80" => Ok(vec![]),
            _ => Err(io::Error::other("asked for what is no name")),
        };
        let upstream = |to: &str, pin| {
            let p = Proxy { path: "/a".into(), to: to.into(), pin };
            proxy(&p, &look_up).map(|p| p.upstream).map_err(|e| e.to_string())
        };
        assert_eq!(upstream("two.example:80", true).unwrap(), "10.0.0.5:80,[fd00::5]:80");
        assert_eq!(upstream("two.example:80", false).unwrap(), "two.example:80");
        assert_eq!(upstream("10.0.0.7:80", true).unwrap(), "10.0.0.7:80");
        assert!(upstream("loop.example:80", true).unwrap_err().contains("127.0.1.1, which would be the image itself"));
        assert!(upstream("none.example:80", true).unwrap_err().contains("has no address"));
        assert!(upstream("lost.example:80", true).unwrap_err().contains("cannot find the address of `lost.example`"));
    }
}
