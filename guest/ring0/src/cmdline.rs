//! The kernel command line.
//!
//! Words are separated by blanks; `"` begins and ends a part in which blanks are literal, `\` makes the next character literal.
//! Words up to the word `--` configure the machine, words after it are the program's arguments (and replace those in the manifest).
//!
//! | word | meaning | default |
//! | --- | --- | --- |
//! | `donjon.ip=A.B.C.D/P` or `dhcp` or `none` | IPv4 address | `dhcp` |
//! | `donjon.gw=A.B.C.D` | IPv4 router | none |
//! | `donjon.dns=A.B.C.D[,E.F.G.H]` | IPv4 resolvers | none |
//! | `donjon.ip6=ADDRESS/P` or `auto` or `none` | IPv6 address | `auto` (router advertisements) |
//! | `donjon.gw6=ADDRESS` | IPv6 router | none |
//! | `donjon.dns6=ADDRESS` | IPv6 resolver | none |
//! | `donjon.listen=any` | the guest may serve on any port | manifest |
//! | `donjon.egress=any` | the guest may connect to anything | manifest |
//! | `donjon.time=N` | wall clock, nanoseconds since 1970 | the machine's clock |
//! | `donjon.started=N` | when the host started the machine, nanoseconds since 1970: refines a clock that has whole seconds | |
//! | `donjon.env=NAME=VALUE` | environment entry, any number | manifest |
//! | `virtio_mmio.device=SIZE@BASE:IRQ` | where a virtio device is (written by hypervisors) | fixed places |
//!
//! An unknown `donjon.` word is an error; other words are for other kernels and are passed over. Hypervisors append `virtio_mmio.device` words at the very
//! end, so after `--` they are settings too, and never arguments.

use crate::text;
use donjon_abi::boot::{Net, flags, net};

/// Most places of virtio-mmio devices that are looked at; what is named after them is passed over. (Firecracker names each of its devices.)
pub const MMIO: usize = 32;

/// A command line, cut into words.
#[derive(Debug)]
pub struct Words<'a> {
    /// NUL-terminated words.
    settings: &'a [u8],
    arguments: Option<&'a [u8]>,
}

/// What is wrong with the command line: the word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadWord<'a>(pub &'a [u8]);

/// What the words before `--` say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Addresses; `mac` and `mtu` are left alone.
    pub net: Net,
    /// Wall clock, ns since 1970.
    pub time: Option<u64>,
    /// When the host started the machine, ns since 1970.
    pub started: Option<u64>,
    /// What the operator opens that the manifest closes: `flags::LISTEN_ANY`, `flags::EGRESS_ANY`.
    pub open: u32,
    /// Addresses of virtio-mmio devices; 0 in unused slots.
    pub mmio: [u64; MMIO],
}

/// Cuts `text` (up to its first NUL) into words, in place. `None` if a quote is not closed.
pub fn split(text: &mut [u8]) -> Option<Words<'_>> {
    let (mut from, mut to, mut start) = (0, 0, 0);
    let (mut quoted, mut literal, mut separator) = (false, false, None);
    loop {
        let c = text.get(from).copied().unwrap_or(0);
        from += 1;
        match c {
            b'"' => {
                quoted = !quoted;
                literal = true;
            }
            b'\\' if text.get(from).is_some_and(|c| *c != 0) => {
                *text.get_mut(to)? = *text.get(from)?;
                to += 1;
                from += 1;
                literal = true;
            }
            0 | b' ' | b'\t' | b'\n' if !quoted || c == 0 => {
                if quoted {
                    return None;
                }
                if to > start || literal {
                    let is_separator = !literal && separator.is_none() && text.get(start..to) == Some(b"--");
                    *text.get_mut(to)? = 0;
                    to += 1;
                    if is_separator {
                        separator = Some((start, to));
                    }
                    start = to;
                }
                literal = false;
                if c == 0 {
                    break;
                }
            }
            _ => {
                *text.get_mut(to)? = c;
                to += 1;
            }
        }
    }
    let (end, arguments) = separator.map_or((to, None), |(end, next)| (end, Some(next)));
    let arguments = match arguments {
        Some(next) => Some(text.get(next..to)?),
        None => None,
    };
    Some(Words { settings: text.get(..end)?, arguments })
}

const DEVICE: &[u8] = b"virtio_mmio.device=";

fn words(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut left = bytes;
    core::iter::from_fn(move || {
        let (word, rest) = left.split_at_checked(left.iter().position(|c| *c == 0)?)?;
        left = rest.get(1..)?;
        Some(word)
    })
}

impl<'a> Words<'a> {
    /// The program's arguments, if there was a `--`.
    pub fn arguments(&self) -> Option<impl Iterator<Item = &'a [u8]> + use<'a>> {
        self.arguments.map(|bytes| words(bytes).filter(|w| !w.starts_with(DEVICE)))
    }

    /// The environment entries.
    pub fn env(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        words(self.settings).filter_map(|w| w.strip_prefix(b"donjon.env="))
    }

    /// All else.
    pub fn settings(&self) -> Result<Settings, BadWord<'a>> {
        let mut s = Settings { net: Net::default(), time: None, started: None, open: 0, mmio: [0; MMIO] };
        s.net.flags = net::DHCP | net::SLAAC;
        let mut places = 0;
        for (part, before) in [(self.settings, true), (self.arguments.unwrap_or_default(), false)] {
            for word in words(part) {
                if let Some(device) = word.strip_prefix(DEVICE) {
                    let base = mmio(device).ok_or(BadWord(word))?;
                    if let Some(place) = s.mmio.get_mut(places) {
                        *place = base;
                        places += 1;
                    }
                } else if let Some(setting) = word.strip_prefix(b"donjon.").filter(|_| before) {
                    apply(&mut s, setting).ok_or(BadWord(word))?;
                }
            }
        }
        Ok(s)
    }
}

impl Settings {
    /// Whether the guest is to have an address.
    pub fn network(&self) -> bool {
        let Net { flags, ipv4, ipv6, .. } = self.net;
        flags & (net::DHCP | net::SLAAC) != 0 || ipv4 != [0; 4] || ipv6 != [0; 16]
    }
}

fn apply(s: &mut Settings, setting: &[u8]) -> Option<()> {
    let (key, value) = text::cut(setting, b'=')?;
    match (key, value) {
        (b"ip", b"dhcp") => s.net.flags |= net::DHCP,
        (b"ip", b"none") => s.net.flags &= !net::DHCP,
        (b"ip", _) => {
            let (address, prefix) = text::cut(value, b'/')?;
            s.net.ipv4 = text::ipv4(address)?;
            s.net.ipv4_prefix = text::decimal(prefix).filter(|p| *p <= 32)? as u8;
            s.net.flags &= !net::DHCP;
        }
        (b"gw", _) => s.net.ipv4_gateway = text::ipv4(value)?,
        (b"dns", _) => {
            let (first, second) = text::cut(value, b',').unwrap_or((value, b"0.0.0.0"));
            s.net.ipv4_dns = [text::ipv4(first)?, text::ipv4(second)?];
        }
        (b"ip6", b"auto") => s.net.flags |= net::SLAAC,
        (b"ip6", b"none") => s.net.flags &= !net::SLAAC,
        (b"ip6", _) => {
            let (address, prefix) = text::cut(value, b'/')?;
            s.net.ipv6 = text::ipv6(address)?;
            s.net.ipv6_prefix = text::decimal(prefix).filter(|p| *p <= 128)? as u8;
            s.net.flags &= !net::SLAAC;
        }
        (b"gw6", _) => s.net.ipv6_gateway = text::ipv6(value)?,
        (b"dns6", _) => s.net.ipv6_dns = text::ipv6(value)?,
        (b"listen", b"any") => s.open |= flags::LISTEN_ANY,
        (b"egress", b"any") => s.open |= flags::EGRESS_ANY,
        (b"time", _) => s.time = Some(text::decimal(value)?),
        (b"started", _) => s.started = Some(text::decimal(value)?),
        (b"env", _) => drop(text::cut(value, b'=')?),
        _ => return None,
    }
    Some(())
}

/// `SIZE@BASE:IRQ[:ID]`: the base (Linux, `virtio_mmio.c`).
fn mmio(device: &[u8]) -> Option<u64> {
    let (_, rest) = text::cut(device, b'@')?;
    let (base, _) = text::cut(rest, b':')?;
    let base = match base.strip_prefix(b"0x") {
        Some(hex) => text::number(hex, 16)?,
        None => text::decimal(base)?,
    };
    (base != 0 && base.is_multiple_of(4)).then_some(base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn check(line: &str, f: impl FnOnce(&Words<'_>)) {
        let mut text = line.as_bytes().to_vec();
        text.push(0);
        f(&split(&mut text).unwrap());
    }

    fn strings<'a>(i: impl Iterator<Item = &'a [u8]>) -> Vec<&'a str> {
        i.map(|w| core::str::from_utf8(w).unwrap()).collect()
    }

    #[test]
    fn quoting_and_arguments() {
        check(r#"quiet donjon.env=A=1 "donjon.env=B=x y" -- --port "80 80" a\"b "" -- \\"#, |w| {
            assert_eq!(strings(w.env()), ["A=1", "B=x y"]);
            assert_eq!(strings(w.arguments().unwrap()), ["--port", "80 80", "a\"b", "", "--", "\\"]);
        });
        check("donjon.ip=none -- a virtio_mmio.device=512@0xfeb00e00:12", |w| {
            assert_eq!(strings(w.arguments().unwrap()), ["a"]);
            assert_eq!(w.settings().unwrap().mmio[0], 0xfeb0_0e00);
        });
        check("  a  ", |w| assert!(w.arguments().is_none()));
        check("", |w| assert!(w.arguments().is_none() && w.env().next().is_none()));
        check("x --", |w| assert_eq!(w.arguments().unwrap().count(), 0));
        check(r#""--" y"#, |w| assert!(w.arguments().is_none()));
        assert!(split(&mut b"a \"b\0".to_vec()).is_none());
        // A line that fills its buffer has no room for the last NUL.
        assert!(split(&mut b"ab".to_vec()).is_none());
    }

    #[test]
    fn a_guest_without_any_address_has_no_network() {
        for (line, network) in [
            ("", true),
            ("donjon.ip=none", true),
            ("donjon.ip=none donjon.ip6=fd00::2/64", true),
            ("donjon.ip=10.0.0.2/24 donjon.ip6=none", true),
            ("donjon.ip=none donjon.ip6=none", false),
        ] {
            check(line, |w| assert_eq!(w.settings().unwrap().network(), network, "{line}"));
        }
    }

    #[test]
    fn addresses() {
        check(
            "donjon.ip=10.0.2.15/24 donjon.gw=10.0.2.2 donjon.dns=10.0.2.3 donjon.time=5 donjon.ip6=fe80::1/64",
            |w| {
                let s = w.settings().unwrap();
                assert_eq!((s.net.ipv4, s.net.ipv4_prefix, s.net.ipv4_gateway), ([10, 0, 2, 15], 24, [10, 0, 2, 2]));
                assert_eq!((s.net.ipv4_dns, s.time), ([[10, 0, 2, 3], [0; 4]], Some(5)));
                assert_eq!((s.net.flags, s.net.ipv6_prefix, s.net.ipv6[15]), (0, 64, 1));
            },
        );
        check("virtio_mmio.device=512@0xfeb00e00:12 console=ttyS0", |w| {
            let s = w.settings().unwrap();
            assert_eq!((s.mmio[0], s.mmio[1], s.net.flags), (0xfeb0_0e00, 0, net::DHCP | net::SLAAC));
        });
    }

    /// A hypervisor may have more devices than an image has use for.
    #[test]
    fn many_devices_are_no_error() {
        for count in [9, MMIO, MMIO + 1, 100] {
            let line: String = (1..=count).map(|i| std::format!("virtio_mmio.device=4K@{}:5 ", i * 4096)).collect();
            check(&line, |w| {
                let mmio = w.settings().unwrap().mmio;
                assert!(mmio.iter().zip(1..).all(|(at, i)| *at == if i <= count as u64 { i * 4096 } else { 0 }));
            });
        }
    }

    #[test]
    fn bad_words_are_named() {
        for bad in [
            "donjon.ip=10.0.2.15",
            "donjon.ip=10.0.2.15/33",
            "donjon.ip=10.0.2/24",
            "donjon.nope=1",
            "donjon.listen=80",
            "donjon.ip",
            "donjon.env=A",
            "donjon.time=x",
            "donjon.started=",
            "virtio_mmio.device=512@0:1",
            "virtio_mmio.device=512",
        ] {
            check(bad, |w| assert_eq!(w.settings(), Err(BadWord(bad.as_bytes()))));
        }
    }
}
