//! The manifest of an image as a value, and its encoding into records.

use std::ops::RangeInclusive;

use donjon_abi::manifest::{Egress, Limit, RecordError, STRINGS_MAX, Tag, records, write_record};
use donjon_abi::secrets::{COUNT_MAX, is_name};

/// What a guest may have, bytes.
pub const MEMORY: RangeInclusive<u64> = 1 << 20..=1 << 40;

/// What a guest may take to end, seconds.
pub const STOP: RangeInclusive<u64> = 1..=86_400;

/// Longest manifest, in bytes.
pub const LEN_MAX: u64 = 1 << 20;

/// What a guest was declared to be and to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Name of the image.
    pub name: String,
    /// Default memory, bytes.
    pub memory: u64,
    /// Ports on which the guest may listen.
    pub listen: Vec<Port>,
    /// Destinations that the guest may reach.
    pub egress: Vec<Egress>,
    /// Default arguments, without the program's name.
    pub args: Vec<String>,
    /// Default environment, `NAME=value`.
    pub env: Vec<String>,
    /// Largest total size of `/tmp`, bytes; `None` leaves it to the library OS.
    pub tmpfs: Option<u64>,
    /// Version of the tool that made the image.
    pub tool: String,
    /// Names of the secrets that the guest is handed at its start.
    pub secrets: Vec<String>,
    /// Parts of the program that could have been left out, and whether they are there.
    pub parts: Vec<(String, bool)>,
    /// How fast the guest may send.
    pub limit: Limit,
    /// Seconds that the guest may take to end after it was asked to; `None` is [`STOP_SECONDS`](donjon_abi::manifest::STOP_SECONDS).
    pub stop: Option<u64>,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
}

/// A port of a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port {
    /// The protocol.
    pub protocol: Protocol,
    /// The number, not 0.
    pub port: u16,
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{}/{protocol}", self.port)
    }
}

impl std::str::FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Port, String> {
        let (port, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((port, "tcp")) => (port, Protocol::Tcp),
            Some((port, "udp")) => (port, Protocol::Udp),
            Some((_, other)) => return Err(format!("`{other}` is not a protocol (expected tcp or udp)")),
        };
        match port.parse() {
            Ok(port @ 1..) => Ok(Port { protocol, port }),
            _ => Err(format!("`{port}` is not a port (expected 1 to 65535)")),
        }
    }
}

/// Why manifest records were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// A record reaches past the end.
    #[error("its manifest is truncated")]
    Truncated,
    /// A record that this version does not know.
    #[error("its manifest has an unknown record with tag {0}")]
    Tag(u16),
    /// A record whose value cannot be right.
    #[error("its manifest's {0:?} record is malformed")]
    Value(Tag),
    /// A record that must be there.
    #[error("its manifest has no {0:?} record")]
    Missing(Tag),
    /// A record that may be there only once.
    #[error("its manifest has more than one {0:?} record")]
    Twice(Tag),
    /// Longer than [`LEN_MAX`].
    #[error("its manifest is {0} bytes long; at most 1 MiB can be opened")]
    Length(u64),
    /// More bytes than [`STRINGS_MAX`].
    #[error("its name, arguments and environment are {0} bytes; at most 64 KiB can be started")]
    Strings(u64),
    /// More than [`COUNT_MAX`].
    #[error("it has {0} secrets; at most {COUNT_MAX} can be handed over")]
    Secrets(usize),
}

/// Whether a character may make a terminal show something else than the text: control characters (C0, DEL, C1), and those that change the
/// direction of what follows.
pub fn deceives(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text of somebody else for a terminal: what [`deceives`] is written as in JSON, `\u001b`.
pub fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match deceives(c) {
            // All of them have four digits.
            true => out += &format!("\\u{:04x}", u32::from(c)),
            false => out.push(c),
        }
    }
    out
}

impl Manifest {
    /// Reads the records.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let (mut name, mut memory, mut tool, mut limit) = (None, None, None, None);
        let mut out = Manifest::default();
        for record in records(bytes) {
            let (tag, value) = record.map_err(|e| match e {
                RecordError::Tag(tag) => ManifestError::Tag(tag),
                _ => ManifestError::Truncated,
            })?;
            let bad = || ManifestError::Value(tag);
            let text = || std::str::from_utf8(value).ok().filter(|t| !t.contains('\0')).map(String::from).ok_or(bad());
            // What is shown to people; arguments and environment may be anything.
            let label = || text().ok().filter(|t| !t.contains(deceives)).ok_or_else(bad);
            let number = || value.try_into().map(u64::from_le_bytes).map_err(|_| bad());
            let once = |first: bool| if first { Ok(()) } else { Err(ManifestError::Twice(tag)) };
            match tag {
                Tag::Name => once(name.replace(label()?).is_none())?,
                Tag::Memory => {
                    let bytes = number()?;
                    once(memory.replace(bytes).is_none())?;
                    if !MEMORY.contains(&bytes) {
                        return Err(bad());
                    }
                }
                Tag::Tool => once(tool.replace(label()?).is_none())?,
                Tag::Stop => {
                    let seconds = number().ok().filter(|s| STOP.contains(s)).ok_or_else(bad)?;
                    once(out.stop.replace(seconds).is_none())?;
                }
                Tag::Tmpfs => once(out.tmpfs.replace(number()?).is_none())?,
                Tag::Listen => out.listen.push(Port::from_record(value).ok_or_else(bad)?),
                Tag::Egress => out.egress.push(Egress::from_bytes(value).ok_or_else(bad)?),
                Tag::Arg => out.args.push(text()?),
                Tag::Secret => {
                    let name = text().ok().filter(|n| is_name(n.as_bytes())).ok_or_else(bad)?;
                    // In ascending order, as the shim relies on.
                    if out.secrets.last().is_some_and(|last| *last >= name) || out.secrets.len() == COUNT_MAX {
                        return Err(bad());
                    }
                    out.secrets.push(name);
                }
                Tag::Part => match value.split_first().map(|(there, name)| (there, std::str::from_utf8(name))) {
                    Some((there @ 0..=1, Ok(name))) if !name.contains(deceives) => {
                        out.parts.push((name.into(), *there == 1))
                    }
                    _ => return Err(bad()),
                },
                Tag::Limit => once(limit.replace(Limit::from_bytes(value).ok_or_else(bad)?).is_none())?,
                Tag::Env => out.env.push(text().ok().filter(|t| t.find('=') > Some(0)).ok_or_else(bad)?),
            }
        }
        out.limit = limit.unwrap_or_default();
        out.name = name.ok_or(ManifestError::Missing(Tag::Name))?;
        out.memory = memory.ok_or(ManifestError::Missing(Tag::Memory))?;
        out.tool = tool.ok_or(ManifestError::Missing(Tag::Tool))?;
        Ok(out)
    }

    /// The records, for an image: what nobody could open or start is refused.
    pub fn to_image(&self) -> Result<Vec<u8>, ManifestError> {
        let bytes = self.to_bytes();
        if bytes.len() as u64 > LEN_MAX {
            return Err(ManifestError::Length(bytes.len() as u64));
        }
        let strings = [&self.name].into_iter().chain(&self.args).chain(&self.env).map(|s| s.len() as u64 + 1).sum();
        if strings > STRINGS_MAX {
            return Err(ManifestError::Strings(strings));
        }
        if self.secrets.len() > COUNT_MAX {
            return Err(ManifestError::Secrets(self.secrets.len()));
        }
        Manifest::parse(&bytes).map(|_| bytes)
    }

    /// The records.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |tag, value: &[u8]| write_record(tag, value, |b| out.extend_from_slice(b));
        put(Tag::Name, self.name.as_bytes());
        put(Tag::Memory, &self.memory.to_le_bytes());
        self.listen.iter().for_each(|p| put(Tag::Listen, &p.to_record()));
        self.egress.iter().for_each(|e| put(Tag::Egress, &e.to_bytes()));
        self.args.iter().for_each(|a| put(Tag::Arg, a.as_bytes()));
        self.env.iter().for_each(|e| put(Tag::Env, e.as_bytes()));
        if let Some(tmpfs) = self.tmpfs {
            put(Tag::Tmpfs, &tmpfs.to_le_bytes());
        }
        if let Some(stop) = self.stop {
            put(Tag::Stop, &stop.to_le_bytes());
        }
        put(Tag::Tool, self.tool.as_bytes());
        let mut secrets: Vec<&String> = self.secrets.iter().collect();
        secrets.sort_unstable();
        secrets.iter().for_each(|s| put(Tag::Secret, s.as_bytes()));
        if self.limit != Limit::default() {
            put(Tag::Limit, &self.limit.to_bytes());
        }
        self.parts.iter().for_each(|(name, there)| put(Tag::Part, &[&[u8::from(*there)], name.as_bytes()].concat()));
        out
    }
}

impl Port {
    fn from_record(value: &[u8]) -> Option<Port> {
        let &[protocol, 0, low, high] = value else { return None };
        let protocol = match protocol {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            _ => return None,
        };
        Some(Port { protocol, port: u16::from_le_bytes([low, high]) }).filter(|p| p.port != 0)
    }

    fn to_record(self) -> [u8; 4] {
        let [low, high] = self.port.to_le_bytes();
        [self.protocol as u8, 0, low, high]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            name: "web".into(),
            memory: 1 << 26,
            listen: vec!["80".parse().unwrap(), "53/udp".parse().unwrap()],
            egress: vec![Egress { protocol: 6, prefix: 120, port: 443, addr: [7; 16] }],
            args: vec!["-v".into(), String::new()],
            env: vec!["A=b".into()],
            tmpfs: Some(4096),
            stop: Some(32),
            tool: "0.1".into(),
            secrets: vec!["db".into(), "tls-key".into()],
            parts: vec![("proxy".into(), false), ("tls".into(), true)],
            limit: Limit { connections: 9, send: 1 << 40 },
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(Manifest::parse(&manifest().to_bytes()), Ok(manifest()));
    }

    #[test]
    fn refuses_what_is_missing_doubled_or_malformed() {
        let bytes = manifest().to_bytes();
        let twice = [&bytes[..], &bytes[..]].concat();
        assert_eq!(Manifest::parse(&twice), Err(ManifestError::Twice(Tag::Name)));
        assert_eq!(Manifest::parse(&[]), Err(ManifestError::Missing(Tag::Name)));
        assert_eq!(Manifest::parse(&bytes[..bytes.len() - 8]), Err(ManifestError::Truncated));
        let mut m = manifest();
        for bad in ["no equals sign", "=no name"] {
            m.env = vec![bad.into()];
            assert_eq!(Manifest::parse(&m.to_bytes()), Err(ManifestError::Value(Tag::Env)), "{bad}");
        }
        for bad in ["", "../x", "a b"] {
            m = manifest();
            m.secrets = vec![bad.into()];
            assert_eq!(Manifest::parse(&m.to_bytes()), Err(ManifestError::Value(Tag::Secret)), "{bad}");
        }
        m = manifest();
        m.secrets = vec!["a".into(), "a".into()];
        assert_eq!(Manifest::parse(&m.to_bytes()), Err(ManifestError::Value(Tag::Secret)), "twice");
        for bad in ["a\x1b[2J", "a\n", "\u{9b}1A", "\x7f", "a\u{202e}b", "\u{2066}", "a\0"] {
            for (tag, change) in [
                (Tag::Name, (|m, text| m.name = text) as fn(&mut Manifest, String)),
                (Tag::Tool, |m, text| m.tool = text),
                (Tag::Part, |m, text| m.parts = vec![(text, true)]),
            ] {
                m = manifest();
                change(&mut m, bad.into());
                assert_eq!(Manifest::parse(&m.to_bytes()), Err(ManifestError::Value(tag)), "{bad:?}");
            }
        }
        for (bytes, good) in
            [(1 << 20, true), (1 << 40, true), ((1 << 20) - 1, false), (10 << 40, false), (u64::MAX, false)]
        {
            m = manifest();
            m.memory = bytes;
            assert_eq!(Manifest::parse(&m.to_bytes()).is_ok(), good, "{bytes}");
        }
        m = manifest();
        m.listen[0].port = 0;
        assert_eq!(Manifest::parse(&m.to_bytes()), Err(ManifestError::Value(Tag::Listen)));
    }

    #[test]
    fn an_image_can_be_opened_and_started() {
        let mut m = manifest();
        assert_eq!(m.to_image(), Ok(m.to_bytes()));
        // A NUL ends each; "web", "-v" and "" are there.
        m.env = vec![format!("A={}", "x".repeat((64 << 10) - 4 - 3 - 1 - 3))];
        assert_eq!(m.to_image(), Ok(m.to_bytes()));
        m.args[1].push('x');
        assert_eq!(m.to_image(), Err(ManifestError::Strings((64 << 10) + 1)));
        m = manifest();
        m.secrets = (0..=COUNT_MAX).map(|n| format!("s{n}")).collect();
        assert_eq!(m.to_image(), Err(ManifestError::Secrets(17)));
        m.secrets.pop();
        assert_eq!(m.to_image(), Ok(m.to_bytes()));
        m.secrets = vec![".hidden".into()];
        assert_eq!(m.to_image(), Err(ManifestError::Value(Tag::Secret)));
        m = manifest();
        m.listen = vec![m.listen[0]; 1 << 16];
        assert!(matches!(m.to_image(), Err(ManifestError::Length(LEN_MAX..))));
    }

    #[test]
    fn what_is_shown_hides_nothing() {
        for text in ["plain", "größe 日本 \u{a0}\u{200f}", r"C:\x \u{1b}"] {
            assert_eq!(shown(text), text);
        }
        assert_eq!(shown("a\x1b[1A\x1b[2K\r\nb"), r"a\u001b[1A\u001b[2K\u000d\u000ab");
        assert_eq!(
            shown("\x7f\u{80}\u{9b}\u{9f}\u{202a}\u{202e}\u{2066}\u{2069}"),
            r"\u007f\u0080\u009b\u009f\u202a\u202e\u2066\u2069"
        );
    }

    #[test]
    fn ports_parse() {
        assert_eq!("8080".parse::<Port>().unwrap().to_string(), "8080/tcp");
        assert_eq!("53/udp".parse::<Port>().unwrap().to_string(), "53/udp");
        for bad in ["0", "65536", "x", "80/sctp", "", "-1"] {
            assert!(bad.parse::<Port>().is_err(), "{bad}");
        }
    }
}
