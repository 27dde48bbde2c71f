//! `Donjon.toml`: what a project declares about its image.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use donjon_abi::manifest::{Egress, Limit, STRINGS_MAX};
use serde::Deserialize;

use crate::manifest::{MEMORY, Manifest, Port, STOP, deceives};

/// Name of the file, beside `Cargo.toml`.
pub const FILE: &str = "Donjon.toml";
/// Memory of a guest whose project does not say.
pub const DEFAULT_MEMORY: u64 = 64 << 20;

/// The content of `Donjon.toml`; a project without one has the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Name of the image; the program's name if not given.
    pub name: Option<String>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Ports on which the guest may listen.
    pub listen: Vec<Port>,
    /// Destinations that the guest may reach.
    pub egress: Vec<Egress>,
    /// How fast the guest may send.
    pub limit: Limit,
    /// Files for the bundle.
    pub files: Vec<Files>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Arguments.
    pub args: Vec<String>,
    /// Largest size of `/tmp`, bytes.
    pub tmpfs: Option<u64>,
    /// Seconds that the guest may take to end after it was asked to.
    pub stop: Option<u64>,
    /// Names of the secrets that the guest is handed at its start.
    pub secrets: Vec<String>,
    /// What the compiler aims at.
    pub optimize: Optimize,
    /// Which of the package's programs.
    pub bin: Option<String>,
    /// Whether the image is compressed.
    pub compress: Option<bool>,
}

/// One item of `files`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// A file, a directory or a pattern, relative to the project.
    pub from: String,
    /// Where in the guest; by default the same path below `/`.
    pub to: Option<String>,
}

/// What the compiler aims at, where the project's own profile does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimize {
    /// Few bytes (`opt-level = "s"`).
    #[default]
    Size,
    /// Speed (`opt-level = 3`).
    Speed,
}

/// Why a `Donjon.toml` was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// Not TOML, or a value of the wrong type.
    #[error("{0}: {1}")]
    Syntax(PathBuf, String),
    /// An unknown key.
    #[error("{path}: unknown key `{key}`{}", suggestion.map(|s| format!(" (did you mean `{s}`?)")).unwrap_or_default())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// A known key that looks like it.
        suggestion: Option<&'static str>,
    },
    /// A value that cannot be right.
    #[error("{path}: `{key}`: {message}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

/// All keys.
pub const KEYS: [&str; 15] = [
    "name", "memory", "listen", "egress", "limit", "files", "env", "args", "tmpfs", "stop", "secrets", "optimize",
    "bin", "compress", "web",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: Option<String>,
    memory: Option<Size>,
    #[serde(default)]
    listen: Vec<NumberOrText>,
    #[serde(default)]
    egress: Vec<String>,
    #[serde(default)]
    limit: RawLimit,
    #[serde(default)]
    files: Vec<RawFiles>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    args: Vec<String>,
    tmpfs: Option<Size>,
    stop: Option<u64>,
    #[serde(default)]
    secrets: Vec<String>,
    #[serde(default)]
    optimize: Optimize,
    bin: Option<String>,
    compress: Option<bool>,
    /// The options of the stock web server, which donjon-site reads.
    #[serde(rename = "web")]
    _web: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a port such as 8080 or \"53/udp\"")]
enum NumberOrText {
    Number(i64),
    Text(String),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a size in bytes, or a text such as \"64M\"")]
enum Size {
    Bytes(u64),
    Text(String),
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimit {
    connections: Option<u32>,
    send: Option<Size>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a path such as \"static\", or { from = \"static\", to = \"/www\" }")]
enum RawFiles {
    Path(String),
    Pair(Pair),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    from: String,
    to: String,
}

impl Config {
    /// Reads the `Donjon.toml` in `dir`; none there is the default.
    pub fn load(dir: &Path) -> Result<Config, ConfigError> {
        let path = dir.join(FILE);
        match fs::read_to_string(&path) {
            Ok(text) => Config::parse(&text, &path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Config::default()),
            Err(e) => Err(ConfigError::Io(path, e)),
        }
    }

    /// Reads the text of a `Donjon.toml`; `path` is for messages only.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let syntax = |e: toml::de::Error| ConfigError::Syntax(path.into(), e.to_string().trim_end().to_owned());
        let table: toml::Table = toml::from_str(text).map_err(syntax)?;
        if let Some(key) = table.keys().find(|k| !KEYS.contains(&k.as_str())) {
            return Err(ConfigError::Key { path: path.into(), key: key.clone(), suggestion: similar(key) });
        }
        let value = |key, message: String| ConfigError::Value { path: path.into(), key, message };
        if table.get("env").is_some_and(|env| !env.is_table()) {
            return Err(value("env", "expected a table, such as env = { LOG = \"info\" }".into()));
        }
        let raw: Raw = toml::from_str(text).map_err(syntax)?;
        let size = |key, s: Size| match s {
            Size::Bytes(n) => Ok(n),
            Size::Text(t) => parse_size(&t).map_err(|m| value(key, m)),
        };
        let port = |p: NumberOrText| {
            let text = match p {
                NumberOrText::Number(n) => n.to_string(),
                NumberOrText::Text(t) => t,
            };
            text.parse().map_err(|m| value("listen", m))
        };
        if let Some(bad) = raw.env.iter().find(|(k, v)| k.is_empty() || k.contains(['=', '\0']) || v.contains('\0')) {
            return Err(value("env", format!("`{}` cannot be the name of a variable", bad.0)));
        }
        if raw.args.iter().any(|a| a.contains('\0')) {
            return Err(value("args", "an argument cannot contain a NUL".into()));
        }
        let env = raw.env.iter().map(|(k, v)| k.len() + v.len() + 2);
        let strings: usize = raw.args.iter().map(|a| a.len() + 1).chain(env).sum();
        if strings as u64 > STRINGS_MAX {
            let message = format!("with `env` these are {strings} bytes, expected at most 64K together");
            return Err(value("args", message));
        }
        if raw.name.as_deref().is_some_and(|n| n.is_empty() || n.contains('/') || n.contains(deceives)) {
            return Err(value("name", "a name is not empty and has no `/` and no control characters".into()));
        }
        let memory = raw.memory.map(|m| size("memory", m)).transpose()?;
        if memory.is_some_and(|m| !MEMORY.contains(&m)) {
            return Err(value("memory", "expected between 1M and 1T".into()));
        }
        if let Some(bad) = raw.secrets.iter().find(|s| !donjon_abi::secrets::is_name(s.as_bytes())) {
            let max = donjon_abi::secrets::NAME_MAX;
            let message = format!("`{bad}` is not a name: expected at most {max} letters, digits, `-`, `_` and `.`");
            return Err(value("secrets", message));
        }
        if raw.secrets.len() > donjon_abi::secrets::COUNT_MAX {
            return Err(value("secrets", format!("expected at most {}", donjon_abi::secrets::COUNT_MAX)));
        }
        let send = raw.limit.send.map(|s| size("limit", s)).transpose()?;
        if raw.limit.connections == Some(0) || send == Some(0) {
            return Err(value("limit", "0 would be none at all; leave it out for no limit".into()));
        }
        if raw.stop.is_some_and(|s| !STOP.contains(&s)) {
            return Err(value("stop", format!("expected {} to {} seconds", STOP.start(), STOP.end())));
        }
        let mut secrets = raw.secrets;
        secrets.sort_unstable();
        secrets.dedup();
        let files = raw.files.into_iter().map(|f| match f {
            RawFiles::Path(from) => Files { from, to: None },
            RawFiles::Pair(Pair { from, to }) => Files { from, to: Some(to) },
        });
        Ok(Config {
            name: raw.name,
            memory,
            listen: raw.listen.into_iter().map(port).collect::<Result<_, _>>()?,
            egress: raw
                .egress
                .iter()
                .map(|e| parse_egress(e).map_err(|m| value("egress", m)))
                .collect::<Result<_, _>>()?,
            limit: Limit { connections: raw.limit.connections.unwrap_or(0), send: send.unwrap_or(0) },
            files: files.collect(),
            env: raw.env,
            args: raw.args,
            stop: raw.stop,
            tmpfs: raw.tmpfs.map(|t| size("tmpfs", t)).transpose()?,
            secrets,
            optimize: raw.optimize,
            bin: raw.bin,
            compress: raw.compress,
        })
    }

    /// The manifest of an image of the program `name`.
    pub fn manifest(&self, name: &str) -> Manifest {
        Manifest {
            name: self.name.clone().unwrap_or_else(|| name.into()),
            memory: self.memory.unwrap_or(DEFAULT_MEMORY),
            listen: self.listen.clone(),
            egress: self.egress.clone(),
            args: self.args.clone(),
            env: self.env.iter().map(|(k, v)| format!("{k}={v}")).collect(),
            tmpfs: self.tmpfs,
            stop: self.stop,
            tool: concat!("donjon ", env!("CARGO_PKG_VERSION")).into(),
            secrets: self.secrets.clone(),
            parts: Vec::new(),
            limit: self.limit,
        }
    }
}

/// Reads `65536`, `512K`, `64M`, `1G` (powers of 1024; `MB`, `MiB` and so on as well).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is not a size (expected for example 64M, 512K or 1G)");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let number: u64 = trimmed[..digits].parse().map_err(|_| bad())?;
    let shift = match trimmed[digits..].trim().to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(bad()),
    };
    number.checked_mul(1 << shift).ok_or_else(bad)
}

/// Reads `any`, `ADDR[/PREFIX][:PORT][/tcp|/udp]`; IPv6 addresses with a port are in brackets.
pub fn parse_egress(text: &str) -> Result<Egress, String> {
    let bad =
        || format!("`{text}` is not a destination (expected for example 10.0.0.0/8:443/tcp, [2001:db8::]/32, or any)");
    let (rest, protocol) = match text {
        _ if text.ends_with("/tcp") => (&text[..text.len() - 4], 6),
        _ if text.ends_with("/udp") => (&text[..text.len() - 4], 17),
        _ => (text, 0),
    };
    let port_of = |p: &str| p.parse::<u16>().ok().filter(|p| *p != 0).ok_or_else(bad);
    let (host, prefix, port) = if let Some(inner) = rest.strip_prefix('[') {
        let (addr, tail) = inner.split_once(']').ok_or_else(bad)?;
        let (tail, port) = match tail.split_once(':') {
            Some((tail, port)) => (tail, port_of(port)?),
            None => (tail, 0),
        };
        let prefix = match tail {
            "" => None,
            _ => Some(tail.strip_prefix('/').ok_or_else(bad)?),
        };
        (addr, prefix, port)
    } else {
        let (net, port) = match rest.split_once(':') {
            Some((net, port)) if !port.contains(':') => (net, port_of(port)?),
            _ => (rest, 0),
        };
        let (host, prefix) = net.split_once('/').map_or((net, None), |(h, p)| (h, Some(p)));
        (host, prefix, port)
    };
    if host == "any" && prefix.is_none() {
        return Ok(Egress { protocol, prefix: 0, port, addr: [0; 16] });
    }
    let (addr, width, shift) = match host.parse().map_err(|_| bad())? {
        IpAddr::V4(a) => (a.to_ipv6_mapped().octets(), 32u8, 96u8),
        IpAddr::V6(a) => (a.octets(), 128, 0),
    };
    let prefix = match prefix {
        None => width,
        Some(p) => p.parse().ok().filter(|p| *p <= width).ok_or_else(bad)?,
    };
    Ok(Egress { protocol, prefix: prefix + shift, port, addr })
}

/// The text that [`parse_egress`] would read.
pub fn show_egress(e: &Egress) -> String {
    let addr = std::net::Ipv6Addr::from(e.addr);
    let mut out = match addr.to_ipv4_mapped() {
        _ if e.prefix == 0 => "any".into(),
        Some(v4) if e.prefix >= 96 => format!("{v4}/{}", e.prefix - 96),
        _ => format!("[{addr}]/{}", e.prefix),
    };
    if e.port != 0 {
        out += &format!(":{}", e.port);
    }
    out + match e.protocol {
        6 => "/tcp",
        17 => "/udp",
        _ => "",
    }
}

/// The known key that is closest to `key`, if one is close.
fn similar(key: &str) -> Option<&'static str> {
    let key = key.to_ascii_lowercase();
    let known = [("ram", "memory"), ("mem", "memory"), ("ports", "listen"), ("port", "listen"), ("arguments", "args")];
    let known = known.iter().chain(&[("environment", "env"), ("tmp", "tmpfs"), ("opt", "optimize"), ("binary", "bin")]);
    if let Some((_, k)) = known.into_iter().find(|(from, _)| *from == key) {
        return Some(k);
    }
    KEYS.into_iter().map(|k| (distance(&key, k), k)).min().filter(|(d, k)| *d <= k.len().div_ceil(3)).map(|(_, k)| k)
}

/// Levenshtein's distance.
pub fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("Donjon.toml"))
    }

    #[test]
    fn everything_at_once() {
        let c = parse(
            r#"
            name = "web"
            memory = "32M"
            listen = [80, "53/udp"]
            egress = ["10.0.0.0/8:443/tcp", "any"]
            files = ["static", { from = "conf/*.toml", to = "/etc" }]
            args = ["--quiet"]
            tmpfs = 1048576
            secrets = ["tls-key", "db"]
            optimize = "speed"
            bin = "server"
            compress = true
            [env]
            RUST_LOG = "info"
            [limit]
            connections = 20
            send = "10M"
            "#,
        )
        .unwrap();
        assert_eq!(c.memory, Some(32 << 20));
        assert_eq!(c.listen[1].to_string(), "53/udp");
        assert_eq!(c.files[1].to.as_deref(), Some("/etc"));
        assert_eq!((c.tmpfs, c.optimize, c.compress), (Some(1 << 20), Optimize::Speed, Some(true)));
        assert_eq!(c.secrets, ["db", "tls-key"]);
        assert_eq!(c.limit, Limit { connections: 20, send: 10 << 20 });
        let m = c.manifest("x");
        assert_eq!((m.name.as_str(), m.env.as_slice()), ("web", &["RUST_LOG=info".to_owned()][..]));
        assert_eq!(Manifest::parse(&m.to_bytes()), Ok(m));
    }

    #[test]
    fn mistakes_are_explained() {
        let error = |t| parse(t).unwrap_err().to_string();
        assert_eq!(error("memroy = \"1M\""), "Donjon.toml: unknown key `memroy` (did you mean `memory`?)");
        assert_eq!(error("ports = [80]"), "Donjon.toml: unknown key `ports` (did you mean `listen`?)");
        assert_eq!(error("frobnicate = 1"), "Donjon.toml: unknown key `frobnicate`");
        assert!(error("listen = [70000]").contains("`listen`: `70000` is not a port"));
        assert!(error("secrets = [\"a/b\"]").contains("`secrets`: `a/b` is not a name"));
        assert!(error("limit = { send = 0 }").contains("`limit`: 0 would be none at all"));
        assert!(error("limit = { bytes = 5 }").contains("unknown field `bytes`"));
        assert!(error("memory = \"lots\"").contains("`memory`: `lots` is not a size"));
        assert!(error("memory = \"1K\"").contains("between 1M and 1T"));
        assert!(error("egress = [\"example.org\"]").contains("`egress`"));
        assert!(error("optimize = \"fast\"").contains("fast"));
        assert!(error("env = [\"A=b\"]").contains("`env`: expected a table, such as env = { LOG = \"info\" }"));
        assert!(error("memory = ").contains("line 1"));
        // A NUL ends each argument and each variable.
        let strings = |n: usize| format!("args = [\"{}\"]\nenv = {{ A = \"b\" }}", "x".repeat((64 << 10) - 1 - 4 + n));
        assert!(parse(&strings(0)).is_ok());
        assert!(error(&strings(1)).contains("`args`: with `env` these are 65537 bytes"));
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size(" 512 KiB "), Ok(512 << 10));
        assert_eq!(parse_size("123"), Ok(123));
        for bad in ["", "M", "1.5G", "-1", "99999999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn destinations() {
        for text in ["any", "any:53/udp", "10.0.0.0/8:443/tcp", "192.0.2.1/32", "[2001:db8::]/32:80", "[::1]/128/udp"] {
            assert_eq!(show_egress(&parse_egress(text).unwrap()), text);
        }
        assert_eq!(show_egress(&parse_egress("192.0.2.1").unwrap()), "192.0.2.1/32");
        assert_eq!(show_egress(&parse_egress("2001:db8::1").unwrap()), "[2001:db8::1]/128");
        for bad in ["", "any/8", "10.0.0.0/33", "1.2.3.4:0", "1.2.3.4:x", "[::1", "host:80"] {
            assert!(parse_egress(bad).is_err(), "{bad}");
        }
    }
}
