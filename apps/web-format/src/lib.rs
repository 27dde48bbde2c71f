//! What the stock web server finds in its bundle: the site's configuration and an index of its content.
//!
//! The packer (`donjon serve`, `donjon build --web`) checks what the user wrote, computes etags, types and compressed variants,
//! and writes two text files; the server (`apps/web`) reads them. Both are lines of tab-separated fields: that costs the image a few hundred bytes
//! of parser, where a general format would cost tens of thousands. No field may contain a tab, a newline or another control character, which [`Config::to_text`] and [`index_line`]
//! enforce.

#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr};

/// Path of the configuration in the bundle.
pub const CONFIG_PATH: &str = "/.donjon/web.conf";
/// Path of the content index in the bundle.
pub const INDEX_PATH: &str = "/.donjon/web.index";

/// How a site is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Port for plain HTTP, if any.
    pub http: Option<u16>,
    /// Port for HTTPS, if any.
    pub https: Option<u16>,
    /// Answer plain HTTP with a redirect to HTTPS; the value is the port that clients know.
    pub redirect: Option<u16>,
    /// Port for Prometheus metrics, if any.
    pub metrics: Option<u16>,
    /// Max-age of Strict-Transport-Security in seconds, sent over HTTPS only.
    pub hsts: Option<u32>,
    /// List directories that have no index page.
    pub listing: bool,
    /// Write an access log, one JSON object a line, to the console.
    pub log: bool,
    /// Page for 404, as a path of the site.
    pub not_found: Option<String>,
    /// Page to answer instead of 404 to requests that accept HTML (single-page applications).
    pub spa: Option<String>,
    /// Extra response headers.
    pub headers: Vec<Rule>,
    /// Cache-Control values.
    pub cache: Vec<Rule>,
    /// Areas with a password.
    pub auth: Vec<Auth>,
    /// Virtual hosts; without any, every name is served from host 0.
    pub hosts: Vec<Host>,
    /// Paths that are forwarded to an upstream.
    pub proxies: Vec<Proxy>,
    /// Proxies in front, whose word on their clients is believed.
    pub trusted: Vec<Network>,
    /// Certificates, chosen by SNI; the first is the default.
    pub certificates: Vec<Certificate>,
    /// Limits.
    pub limits: Limits,
}

/// A header for the paths that match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `*` matches any run of characters, `/` included; all else matches itself.
    pub pattern: String,
    /// Header name, lower case. Always `cache-control` in cache rules.
    pub name: String,
    /// Header value.
    pub value: String,
}

/// An area with a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// As in [`Rule`].
    pub pattern: String,
    /// Shown by the browser.
    pub realm: String,
    /// User name.
    pub user: String,
    /// PBKDF2-HMAC-SHA256 iterations.
    pub rounds: u32,
    /// Salt, hexadecimal.
    pub salt: String,
    /// Derived key of 32 bytes, hexadecimal.
    pub key: String,
}

/// A virtual host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Host name, lower case, without a port; `*` for all others.
    pub name: String,
    /// Number of the content root in the index.
    pub root: u32,
}

/// A path that is forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Path prefix, matched at `/` boundaries.
    pub prefix: String,
    /// `HOST:PORT` of the upstream; several addresses of it, to be tried in this order, are separated by commas.
    pub upstream: String,
}

/// A network, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// IPv4 as IPv6 (RFC 4291 §2.5.5.2).
    address: u128,
    bits: u32,
}

impl Network {
    /// `ADDRESS` or `ADDRESS/BITS`, without a bit behind those.
    pub fn parse(text: &str) -> Option<Network> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().ok()?;
        let (before, most) = if address.is_ipv4() { (96, 32) } else { (0, 128) };
        let bits = bits.map_or(Some(most), |bits| bits.parse().ok().filter(|bits| *bits <= most))? + before;
        let address = mapped(address);
        (address.checked_shl(bits).unwrap_or(0) == 0).then_some(Network { address, bits })
    }

    /// Whether this address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        (self.address ^ mapped(address)).checked_shr(128 - self.bits).unwrap_or(0) == 0
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv6Addr::from_bits(self.address), self.bits)
    }
}

fn mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
    .to_bits()
}

/// A certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Path of the PEM chain in the bundle.
    pub chain: String,
    /// Where the PEM private key comes from: `secret:NAME` (handed over at start) or a path in the bundle.
    pub key: String,
    /// Server names, comma-separated.
    pub names: String,
    /// Until when it is valid, seconds since 1970.
    pub expires: i64,
}

/// Limits; every one is answered with the right status or a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections; more wait in the backlog.
    pub connections: u32,
    /// Those of one address, or one /64 of IPv6; more are refused. 0 is no bound.
    pub connections_per_address: u32,
    /// Request line and headers, bytes.
    pub header_bytes: u32,
    /// Time for request line and headers, seconds.
    pub header_seconds: u32,
    /// Request body (it is only read for a proxy), bytes.
    pub body_bytes: u64,
    /// Longest pause within a body or while a response is not taken, seconds.
    pub stall_seconds: u32,
    /// Longest time between two requests of a connection, seconds.
    pub idle_seconds: u32,
    /// Longest wait for an upstream: for the head of its response, while neither it nor the client sends anything.
    pub upstream_seconds: u32,
    /// Longest time for requests in progress after a stop was asked for, seconds.
    pub drain_seconds: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 10_000,
            connections_per_address: 0,
            header_bytes: 16 * 1024,
            header_seconds: 10,
            body_bytes: 16 << 20,
            stall_seconds: 30,
            idle_seconds: 75,
            upstream_seconds: 60,
            drain_seconds: 10,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            http: Some(80),
            https: None,
            redirect: None,
            metrics: None,
            hsts: None,
            listing: false,
            log: false,
            not_found: None,
            spa: None,
            headers: vec![],
            cache: vec![],
            auth: vec![],
            hosts: vec![],
            proxies: vec![],
            trusted: vec![],
            certificates: vec![],
            limits: Limits::default(),
        }
    }
}

/// Why a text was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// Line (from 1) that could not be understood.
    Line(usize),
    /// A field contains a control character.
    Control(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Line(n) => write!(f, "line {n} is not understood"),
            Error::Control(s) => write!(f, "control characters are not allowed here: {s:?}"),
        }
    }
}

impl std::error::Error for Error {}

impl Config {
    /// The configuration as text.
    pub fn to_text(&self) -> Result<String, Error> {
        let mut out = String::new();
        let mut line = |fields: &[&str]| join(&mut out, fields);
        for (key, port) in
            [("http", self.http), ("https", self.https), ("redirect", self.redirect), ("metrics", self.metrics)]
        {
            if let Some(port) = port {
                line(&[key, &port.to_string()])?;
            }
        }
        if let Some(age) = self.hsts {
            line(&["hsts", &age.to_string()])?;
        }
        for (key, on) in [("listing", self.listing), ("log", self.log)] {
            if on {
                line(&[key])?;
            }
        }
        for (key, page) in [("not_found", &self.not_found), ("spa", &self.spa)] {
            if let Some(page) = page {
                line(&[key, page])?;
            }
        }
        for r in &self.headers {
            line(&["header", &r.pattern, &r.name, &r.value])?;
        }
        for r in &self.cache {
            line(&["cache", &r.pattern, &r.name, &r.value])?;
        }
        for a in &self.auth {
            line(&["auth", &a.pattern, &a.realm, &a.user, &a.rounds.to_string(), &a.salt, &a.key])?;
        }
        for h in &self.hosts {
            line(&["host", &h.name, &h.root.to_string()])?;
        }
        for p in &self.proxies {
            line(&["proxy", &p.prefix, &p.upstream])?;
        }
        for network in &self.trusted {
            line(&["trusted", &network.to_string()])?;
        }
        for c in &self.certificates {
            line(&["certificate", &c.chain, &c.key, &c.names, &c.expires.to_string()])?;
        }
        let l = self.limits;
        for (name, value) in [
            ("connections", u64::from(l.connections)),
            ("connections_per_address", u64::from(l.connections_per_address)),
            ("header_bytes", u64::from(l.header_bytes)),
            ("header_seconds", u64::from(l.header_seconds)),
            ("body_bytes", l.body_bytes),
            ("stall_seconds", u64::from(l.stall_seconds)),
            ("idle_seconds", u64::from(l.idle_seconds)),
            ("upstream_seconds", u64::from(l.upstream_seconds)),
            ("drain_seconds", u64::from(l.drain_seconds)),
        ] {
            line(&["limit", name, &value.to_string()])?;
        }
        Ok(out)
    }

    /// Reads a configuration. What is not mentioned is off.
    pub fn parse(text: &str) -> Result<Config, Error> {
        let mut config = Config { http: None, ..Config::default() };
        for (n, line) in text.lines().enumerate() {
            config.line(line).ok_or(Error::Line(n + 1))?;
        }
        Ok(config)
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let mut fields = line.split('\t');
        let key = fields.next()?;
        let mut next = || fields.next().map(String::from);
        match key {
            "http" => self.http = Some(next()?.parse().ok()?),
            "https" => self.https = Some(next()?.parse().ok()?),
            "redirect" => self.redirect = Some(next()?.parse().ok()?),
            "metrics" => self.metrics = Some(next()?.parse().ok()?),
            "hsts" => self.hsts = Some(next()?.parse().ok()?),
            "listing" => self.listing = true,
            "log" => self.log = true,
            "not_found" => self.not_found = Some(next()?),
            "spa" => self.spa = Some(next()?),
            "header" => self.headers.push(Rule { pattern: next()?, name: next()?, value: next()? }),
            "cache" => self.cache.push(Rule { pattern: next()?, name: next()?, value: next()? }),
            "auth" => self.auth.push(Auth {
                pattern: next()?,
                realm: next()?,
                user: next()?,
                rounds: next()?.parse().ok()?,
                salt: next()?,
                key: next()?,
            }),
            "host" => self.hosts.push(Host { name: next()?, root: next()?.parse().ok()? }),
            "proxy" => self.proxies.push(Proxy { prefix: next()?, upstream: next()? }),
            "trusted" => self.trusted.push(Network::parse(&next()?)?),
            "certificate" => {
                let (chain, key, names) = (next()?, next()?, next()?);
                self.certificates.push(Certificate { chain, key, names, expires: next()?.parse().ok()? });
            }
            "limit" => {
                let (name, value) = (next()?, next()?.parse::<u64>().ok()?);
                let limits = &mut self.limits;
                if name == "body_bytes" {
                    limits.body_bytes = value;
                } else {
                    let limit = match name.as_str() {
                        "connections" => &mut limits.connections,
                        "connections_per_address" => &mut limits.connections_per_address,
                        "header_bytes" => &mut limits.header_bytes,
                        "header_seconds" => &mut limits.header_seconds,
                        "stall_seconds" => &mut limits.stall_seconds,
                        "idle_seconds" => &mut limits.idle_seconds,
                        "upstream_seconds" => &mut limits.upstream_seconds,
                        "drain_seconds" => &mut limits.drain_seconds,
                        _ => return None,
                    };
                    *limit = u32::try_from(value).ok()?;
                }
            }
            _ => return None,
        }
        fields.next().is_none().then_some(())
    }
}

/// One file of a site, as the index describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource<'a> {
    /// Number of the content root.
    pub root: u32,
    /// Path as clients ask for it, percent-decoded, starting with `/`. `/dir/index.html` also answers `/dir/`.
    pub path: &'a str,
    /// Content-Type.
    pub content_type: &'a str,
    /// Modification time, seconds since 1970; 0 if it says nothing.
    pub mtime: u64,
    /// The content as it is.
    pub plain: Variant<'a>,
    /// Brotli-compressed, if that is smaller.
    pub brotli: Option<Variant<'a>>,
    /// Gzip-compressed, if that is smaller.
    pub gzip: Option<Variant<'a>>,
}

/// One encoding of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant<'a> {
    /// Path in the bundle.
    pub file: &'a str,
    /// Strong entity tag, without quotes.
    pub etag: &'a str,
    /// Length, bytes.
    pub len: u64,
}

/// One line of the index, with its newline.
pub fn index_line(r: &Resource<'_>) -> Result<String, Error> {
    let (root, mtime) = (r.root.to_string(), r.mtime.to_string());
    let lens: Vec<String> =
        [Some(r.plain), r.brotli, r.gzip].iter().map(|v| v.map_or(String::new(), |v| v.len.to_string())).collect();
    let mut fields = vec![root.as_str(), r.path, r.content_type, &mtime];
    for (variant, len) in [Some(r.plain), r.brotli, r.gzip].iter().zip(&lens) {
        match variant {
            Some(v) => fields.extend([v.file, v.etag, len]),
            None => fields.extend(["", "", ""]),
        }
    }
    let mut out = String::new();
    join(&mut out, &fields)?;
    Ok(out)
}

/// Reads an index: lines sorted by root and path.
pub fn parse_index(text: &str) -> impl Iterator<Item = Result<Resource<'_>, Error>> {
    text.lines().enumerate().map(|(n, line)| resource(line).ok_or(Error::Line(n + 1)))
}

fn resource(line: &str) -> Option<Resource<'_>> {
    let mut fields = line.split('\t');
    let mut next = || fields.next();
    let (root, path, content_type, mtime) = (next()?.parse().ok()?, next()?, next()?, next()?.parse().ok()?);
    let mut variant = || {
        let (file, etag, len) = (next()?, next()?, next()?);
        if file.is_empty() { Some(None) } else { Some(Some(Variant { file, etag, len: len.parse().ok()? })) }
    };
    let (plain, brotli, gzip) = (variant()??, variant()?, variant()?);
    let whole = fields.next().is_none() && path.starts_with('/');
    whole.then_some(Resource { root, path, content_type, mtime, plain, brotli, gzip })
}

/// Whether `path` matches `pattern`, in which `*` stands for any run of characters.
pub fn matches(pattern: &str, path: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = path.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(previous) = last.replace(part) {
            match rest.find(previous) {
                Some(at) => rest = &rest[at + previous.len()..],
                None => return false,
            }
        }
    }
    match last {
        Some(last) => rest.ends_with(last),
        None => rest.is_empty(),
    }
}

fn join(out: &mut String, fields: &[&str]) -> Result<(), Error> {
    for (i, field) in fields.iter().enumerate() {
        if field.chars().any(char::is_control) {
            return Err(Error::Control(String::from(*field)));
        }
        if i > 0 {
            out.push('\t');
        }
        out.push_str(field);
    }
    out.push('\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_round_trips() {
        let rule = |n: &str| Rule { pattern: "/a*".into(), name: n.into(), value: "v w".into() };
        let config = Config {
            http: Some(80),
            https: Some(443),
            redirect: Some(8443),
            metrics: Some(9100),
            hsts: Some(31_536_000),
            listing: true,
            log: true,
            not_found: Some("/404.html".into()),
            spa: Some("/index.html".into()),
            headers: vec![rule("x-frame-options")],
            cache: vec![rule("cache-control")],
            auth: vec![Auth {
                pattern: "/private/*".into(),
                realm: "Private".into(),
                user: "me".into(),
                rounds: 1,
                salt: "00".into(),
                key: "11".into(),
            }],
            hosts: vec![Host { name: "a.example".into(), root: 1 }],
            proxies: vec![Proxy { prefix: "/api".into(), upstream: "10.0.0.5:8080".into() }],
            trusted: ["10.0.0.0/8", "fd00::1"].iter().filter_map(|n| Network::parse(n)).collect(),
            certificates: vec![Certificate {
                chain: "/c.pem".into(),
                key: "secret:k".into(),
                names: "a.example".into(),
                expires: 1_800_000_000,
            }],
            limits: Limits { connections: 5, connections_per_address: 3, ..Limits::default() },
        };
        assert_eq!(Config::parse(&config.to_text().unwrap()), Ok(config));
    }

    #[test]
    fn networks() {
        for (network, address, yes) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "::ffff:10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("0.0.0.0/0", "fd00::1", false),
            ("::/0", "fd00::1", true),
            ("fd00::/8", "fd01::1", true),
            ("fd00::1/128", "fd00::1", true),
            ("fd00::1/128", "fd00::2", false),
        ] {
            let parsed = Network::parse(network).unwrap();
            assert_eq!(parsed.contains(address.parse().unwrap()), yes, "{network} {address}");
            assert_eq!(Network::parse(&parsed.to_string()), Some(parsed), "{parsed}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0.1/8", "fd00::/129", "10.0.0.0/", "10.0.0.0/x", "10.0.0.0/-1", "a"] {
            assert_eq!(Network::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn bad_config_lines_are_named() {
        for bad in ["nonsense", "http\tx", "http\t80\t81", "limit\tspeed\t1", "host\ta"] {
            assert_eq!(Config::parse(&format!("listing\n{bad}\n")), Err(Error::Line(2)), "{bad}");
        }
        let config = Config { not_found: Some("/a\tb".into()), ..Config::default() };
        assert_eq!(config.to_text(), Err(Error::Control("/a\tb".into())));
    }

    #[test]
    fn index_round_trips() {
        let plain = Variant { file: "/site/0/a b.html", etag: "abc", len: 10 };
        let r = Resource {
            root: 0,
            path: "/a b.html",
            content_type: "text/html; charset=utf-8",
            mtime: 7,
            plain,
            brotli: None,
            gzip: Some(Variant { file: "/gz/0/a b.html", etag: "def", len: 5 }),
        };
        let text = index_line(&r).unwrap();
        assert_eq!(parse_index(&text).collect::<Vec<_>>(), [Ok(r)]);
        assert_eq!(parse_index("0\tno-slash\tt\t0\tf\te\t1\t\t\t\t\t\t\n").next(), Some(Err(Error::Line(1))));
    }

    #[test]
    fn patterns() {
        for (pattern, path, yes) in [
            ("/a", "/a", true),
            ("/a", "/ab", false),
            ("/a*", "/ab", true),
            ("*.css", "/x/y.css", true),
            ("*.css", "/x/y.css.map", false),
            ("/a/*/c*", "/a/b/cd", true),
            ("/a/*/c*", "/a/b", false),
            ("*", "/", true),
            ("*ab*ab", "/ab", false),
            ("*ab*ab", "/abab", true),
        ] {
            assert_eq!(matches(pattern, path), yes, "{pattern} {path}");
        }
    }
}
