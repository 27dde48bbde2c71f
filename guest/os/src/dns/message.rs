//! DNS messages (RFC 1035 §4): questions out, answers in. Answers are untrusted.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const CLASS_IN: u16 = 1;
const CNAME: u16 = 5;
/// Aliases that are followed within an answer.
const CHAIN_MAX: usize = 16;
/// Records of a kind that are kept: of a long answer over TCP, whose names are short to write and long to keep, all would be megabytes.
const RECORDS_MAX: usize = 128;
/// Compression pointers that are followed within a name.
const JUMPS_MAX: usize = 32;
const HEADER: usize = 12;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Kind {
    /// IPv4 addresses.
    A = 1,
    /// IPv6 addresses.
    Aaaa = 28,
}

/// What came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// These; none if the name has other records only.
    Addresses(Vec<IpAddr>),
    /// There is no such name.
    NoName,
    /// The answer did not fit: ask over TCP.
    Cut,
    /// The server could not or would not find out (SERVFAIL, NOTIMP, REFUSED): another may.
    Unable,
    /// What the server says makes no sense.
    Failed,
}

/// Whether a text can be asked for: labels of 1 to 63 bytes, 253 in all, no blanks or control characters.
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.split('.').all(|label| (1..=63).contains(&label.len()))
        && text.bytes().all(|b| b > b' ' && b < 0x7f)
}

/// A question. The name is one that [`is_name`] accepts.
pub fn query(id: u16, name: &str, kind: Kind) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + name.len() + 6);
    out.extend_from_slice(&id.to_be_bytes());
    // Recursion desired; one question.
    out.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend_from_slice(&(kind as u16).to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    out
}

/// Reads the answer to a question; `None` if it is not an answer to this question.
pub fn parse(bytes: &[u8], id: u16, name: &str, kind: Kind) -> Option<Answer> {
    let mut r = Reader { bytes, at: 0 };
    let (got_id, flags) = (r.u16()?, r.u16()?);
    let (questions, answers) = (r.u16()?, r.u16()?);
    r.at = HEADER;
    // QR set, opcode 0.
    if got_id != id || flags & 0xf800 != 0x8000 || questions != 1 {
        return None;
    }
    let mut owner = Vec::new();
    owner.extend(name.bytes().map(|b| b.to_ascii_lowercase()));
    if r.name()? != owner || r.u16()? != kind as u16 || r.u16()? != CLASS_IN {
        return None;
    }
    match flags & 0xf {
        0 => {}
        2 | 4 | 5 => return Some(Answer::Unable),
        3 => return Some(Answer::NoName),
        _ => return Some(Answer::Failed),
    }
    if flags & 0x200 != 0 {
        return Some(Answer::Cut);
    }
    Some(records(r, answers, owner, kind).map_or(Answer::Failed, Answer::Addresses))
}

fn records(mut r: Reader<'_>, count: u16, mut owner: Vec<u8>, kind: Kind) -> Option<Vec<IpAddr>> {
    let mut aliases = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..count {
        let name = r.name()?;
        let (what, class) = (r.u16()?, r.u16()?);
        r.take(4)?;
        let len = usize::from(r.u16()?);
        let start = r.at;
        let data = r.take(len)?;
        if class != CLASS_IN {
            continue;
        }
        if what == CNAME && aliases.len() < RECORDS_MAX {
            let mut inner = Reader { bytes: r.bytes, at: start };
            aliases.push((name, inner.name()?));
        } else if what == kind as u16 && addresses.len() < RECORDS_MAX {
            let ip = match kind {
                Kind::A => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?)),
                Kind::Aaaa => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?)),
            };
            addresses.push((name, ip));
        }
    }
    for _ in 0..CHAIN_MAX {
        let found: Vec<IpAddr> = addresses.iter().filter(|(n, _)| *n == owner).map(|(_, ip)| *ip).collect();
        if !found.is_empty() {
            return Some(found);
        }
        match aliases.iter().find(|(n, _)| *n == owner) {
            Some((_, target)) => owner = target.clone(),
            None => break,
        }
    }
    Some(Vec::new())
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let piece = self.bytes.get(self.at..self.at.checked_add(n)?)?;
        self.at += n;
        Some(piece)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    /// A name in lower case, labels joined by dots.
    fn name(&mut self) -> Option<Vec<u8>> {
        let mut out: Vec<u8> = Vec::new();
        let mut at = self.at;
        let mut jumped = false;
        let mut jumps = 0;
        loop {
            let len = *self.bytes.get(at)?;
            at += 1;
            match len {
                0 => break,
                1..=63 => {
                    let label = self.bytes.get(at..at + usize::from(len))?;
                    if !out.is_empty() {
                        out.push(b'.');
                    }
                    out.extend(label.iter().map(u8::to_ascii_lowercase));
                    if out.len() > 255 {
                        return None;
                    }
                    at += usize::from(len);
                }
                0xc0.. => {
                    let low = *self.bytes.get(at)?;
                    at += 1;
                    if !jumped {
                        self.at = at;
                        jumped = true;
                    }
                    jumps += 1;
                    if jumps > JUMPS_MAX {
                        return None;
                    }
                    at = usize::from(len & 0x3f) << 8 | usize::from(low);
                }
                _ => return None,
            }
        }
        if !jumped {
            self.at = at;
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reply to `query`, with the given flags and records after the question.
    fn reply(query: &[u8], flags: u16, answers: &[&[u8]]) -> Vec<u8> {
        let mut out = query.to_vec();
        out[2..4].copy_from_slice(&flags.to_be_bytes());
        out[6..8].copy_from_slice(&(answers.len() as u16).to_be_bytes());
        answers.iter().for_each(|a| out.extend_from_slice(a));
        out
    }

    fn record(name: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
        let mut out = name.to_vec();
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 1, 0, 0, 0, 60]);
        out.extend_from_slice(&(data.len() as u16).to_be_bytes());
        out.extend_from_slice(data);
        out
    }

    const SAME: &[u8] = &[0xc0, 12];

    #[test]
    fn addresses_and_aliases() {
        let q = query(7, "Example.org", Kind::A);
        let a = record(SAME, 1, &[1, 2, 3, 4]);
        let got = parse(&reply(&q, 0x8180, &[&a]), 7, "example.ORG", Kind::A);
        assert_eq!(got, Some(Answer::Addresses(Vec::from([IpAddr::from([1, 2, 3, 4])]))));
        let alias = record(SAME, CNAME, b"\x01w\x03net\x00");
        let b = record(b"\x01W\x03NET\x00", 1, &[5, 6, 7, 8]);
        let stray = record(b"\x01x\x03net\x00", 1, &[9, 9, 9, 9]);
        let got = parse(&reply(&q, 0x8180, &[&alias, &stray, &b]), 7, "example.org", Kind::A);
        assert_eq!(got, Some(Answer::Addresses(Vec::from([IpAddr::from([5, 6, 7, 8])]))));
    }

    #[test]
    fn of_a_long_answer_some_are_kept() {
        let q = query(7, "a.b", Kind::A);
        let (a, alias) = (record(SAME, 1, &[1, 2, 3, 4]), record(b"\x01x\0", CNAME, SAME));
        let answers: Vec<&[u8]> = (0..2000).flat_map(|_| [&alias[..], &a]).collect();
        let got = parse(&reply(&q, 0x8180, &answers), 7, "a.b", Kind::A);
        assert_eq!(got, Some(Answer::Addresses([IpAddr::from([1, 2, 3, 4])].repeat(RECORDS_MAX))));
    }

    #[test]
    fn only_answers_to_the_question_count() {
        let q = query(7, "a.b", Kind::A);
        let good = reply(&q, 0x8180, &[]);
        assert_eq!(parse(&good, 7, "a.b", Kind::A), Some(Answer::Addresses(Vec::new())));
        assert_eq!(parse(&good, 8, "a.b", Kind::A), None);
        assert_eq!(parse(&good, 7, "a.c", Kind::A), None);
        assert_eq!(parse(&good, 7, "a.b", Kind::Aaaa), None);
        assert_eq!(parse(&q, 7, "a.b", Kind::A), None);
        assert_eq!(parse(&reply(&q, 0x8183, &[]), 7, "a.b", Kind::A), Some(Answer::NoName));
        for flags in [0x8182, 0x8184, 0x8185] {
            assert_eq!(parse(&reply(&q, flags, &[]), 7, "a.b", Kind::A), Some(Answer::Unable), "{flags:#x}");
        }
        assert_eq!(parse(&reply(&q, 0x8181, &[]), 7, "a.b", Kind::A), Some(Answer::Failed));
        assert_eq!(parse(&reply(&q, 0x8380, &[]), 7, "a.b", Kind::A), Some(Answer::Cut));
    }

    #[test]
    fn malformed_answers_end() {
        let q = query(7, "a.b", Kind::A);
        // A name that points at itself, and a record that is longer than the message.
        let at = (q.len()) as u8;
        let looped = reply(&q, 0x8180, &[&[0xc0, at, 0, 1]]);
        assert_eq!(parse(&looped, 7, "a.b", Kind::A), Some(Answer::Failed));
        let a = record(SAME, 1, &[1, 2, 3, 4]);
        let whole = reply(&q, 0x8180, &[&a]);
        for n in 0..whole.len() {
            assert!(!matches!(parse(&whole[..n], 7, "a.b", Kind::A), Some(Answer::Addresses(_))), "length {n}");
        }
        assert!(!is_name("a..b") && !is_name("") && !is_name("a b") && is_name("_x.a-b.c"));
    }
}
