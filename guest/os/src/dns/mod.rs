//! The stub resolver: literal addresses, `localhost`, `/etc/hosts`, then DNS (RFC 1035, RFC 5452) over UDP, and over TCP when an
//! answer was cut.

pub mod message;
#[cfg(test)]
mod tests;

use crate::errno::{Errno, Result};
use crate::fd::watch::events;
use crate::fd::{self, O_CLOEXEC, O_NONBLOCK};
use crate::fs::{self, At};
use crate::io::poll::{PollFd, poll};
use crate::netif;
use crate::socket::{self, Addr, SOCK_DGRAM, SOCK_STREAM};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use donjon_base::clock;
use message::{Answer, Kind};

/// How long one server has for an answer, ns.
const PATIENCE: u64 = 3_000_000_000;
/// How often all servers are asked.
const ROUNDS: u32 = 2;
/// More servers than this are not asked, as in resolv.conf(5).
const SERVERS_MAX: usize = 3;
const PORT: u16 = 53;

/// Which addresses are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Both.
    Any,
}

impl Family {
    fn wants(self, ip: IpAddr) -> bool {
        match self {
            Family::V4 => ip.is_ipv4(),
            Family::V6 => ip.is_ipv6(),
            Family::Any => true,
        }
    }
}

/// Why there is no address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The name does not exist, or is no name.
    NoName,
    /// The name exists, without an address of the wanted kind.
    NoData,
    /// No server answered or could find out, or there is no server.
    Again,
    /// The servers refuse, or answer nonsense.
    Broken,
    /// A system error.
    System(Errno),
}

impl From<Errno> for Failure {
    fn from(e: Errno) -> Self {
        Failure::System(e)
    }
}

/// The addresses of a name, in the order to be tried.
pub fn resolve(name: &[u8], family: Family) -> core::result::Result<Vec<IpAddr>, Failure> {
    let text = core::str::from_utf8(name).map_err(|_| Failure::NoName)?;
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.eq_ignore_ascii_case("localhost") || ends_with(text, ".localhost") {
        let own = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        return Ok(own.into_iter().filter(|ip| family.wants(*ip)).collect());
    }
    let found = hosts(text, family);
    if !found.is_empty() {
        return Ok(found);
    }
    if !message::is_name(text) {
        return Err(Failure::NoName);
    }
    netif::start()?;
    let mut result = Err(Failure::Again);
    for _ in 0..ROUNDS {
        for server in servers() {
            match ask(server, text, family) {
                Ok(found) => {
                    // A source address decides what is worth trying first (RFC 6724, rule 1); else as answered.
                    return Ok(first(found, |ip| netif::with(|s| s.source_for(*ip).is_ok()).unwrap_or(false)));
                }
                Err(e @ (Failure::NoName | Failure::NoData)) => return Err(e),
                Err(e) => result = Err(e),
            }
        }
    }
    result
}

/// Puts those that `wanted` picks before the others, else in the same order.
fn first(found: Vec<IpAddr>, wanted: impl FnMut(&IpAddr) -> bool) -> Vec<IpAddr> {
    let (mut first, others): (Vec<_>, Vec<_>) = found.into_iter().partition(wanted);
    first.extend(others);
    first
}

fn ends_with(text: &str, end: &str) -> bool {
    text.len() >= end.len() && text.as_bytes()[text.len() - end.len()..].eq_ignore_ascii_case(end.as_bytes())
}

/// A small text file; empty if there is none.
fn file(path: &[u8]) -> Vec<u8> {
    const MAX: usize = 64 * 1024;
    let mut text = Vec::new();
    let Ok(fd) = fs::open(At::Cwd, path, fd::O_RDONLY, 0) else { return text };
    let mut chunk = [0; 512];
    while let Ok(n @ 1..) = fd::read(fd, &mut [&mut chunk]) {
        if text.len() + n > MAX || text.try_reserve(n).is_err() {
            break;
        }
        text.extend_from_slice(&chunk[..n]);
    }
    // It was open a moment ago; nothing depends on how closing it goes.
    let _ = fd::close(fd);
    text
}

/// The words of each line, without comments.
fn lines(text: &str) -> impl Iterator<Item = core::str::SplitAsciiWhitespace<'_>> {
    text.lines().map(|line| line.split(['#', ';']).next().unwrap_or("").split_ascii_whitespace())
}

fn hosts(name: &str, family: Family) -> Vec<IpAddr> {
    let text = file(b"/etc/hosts");
    let mut found = Vec::new();
    for mut words in lines(core::str::from_utf8(&text).unwrap_or("")) {
        let ip = words.next().and_then(|w| w.parse::<IpAddr>().ok());
        if let Some(ip) = ip.filter(|ip| family.wants(*ip))
            && words.any(|w| w.eq_ignore_ascii_case(name))
        {
            found.push(ip);
        }
    }
    found
}

/// Who to ask: `/etc/resolv.conf` of the bundle if it names servers, else what DHCP or the host said.
fn servers() -> Vec<IpAddr> {
    let text = file(b"/etc/resolv.conf");
    let mut found = Vec::new();
    for mut words in lines(core::str::from_utf8(&text).unwrap_or("")) {
        if words.next() == Some("nameserver") {
            found.extend(words.next().and_then(|w| w.parse::<IpAddr>().ok()));
        }
    }
    if found.is_empty() {
        netif::await_configuration();
        found = netif::resolvers();
    }
    found.truncate(SERVERS_MAX);
    found
}

/// A descriptor that is closed at the end.
struct Owned(i32);

impl Drop for Owned {
    fn drop(&mut self) {
        // Only fails for a number that is not open.
        let _ = fd::close(self.0);
    }
}

/// Whether the event comes before the deadline. After it nothing does, however much there is to read: who sends without end is not listened to
/// without end.
fn wait(fd: i32, event: u32, deadline: u64) -> Result<bool> {
    if clock::monotonic() >= deadline {
        return Ok(false);
    }
    let mut fds = [PollFd { fd, events: event as i16, revents: 0 }];
    match poll(&mut fds, Some(deadline)) {
        // As in glibc, a signal does not end the search.
        Err(Errno::EINTR) => wait(fd, event, deadline),
        done => Ok(done? > 0),
    }
}

fn open(server: IpAddr, kind: i32) -> Result<Owned> {
    let domain = if server.is_ipv4() { socket::addr::AF_INET } else { socket::addr::AF_INET6 };
    let socket = Owned(socket::socket(domain, kind | O_NONBLOCK | O_CLOEXEC, 0)?);
    // Connecting makes the stack drop what comes from anyone else, and picks a random port.
    match socket::connect(socket.0, &Addr::Inet(SocketAddr::new(server, PORT))) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(e) => Err(e),
    }
}

fn random_id() -> u16 {
    let mut bytes = [0; 2];
    crate::random::fill(&mut bytes);
    u16::from_ne_bytes(bytes)
}

/// Asks one server for everything that is wanted.
fn ask(server: IpAddr, name: &str, family: Family) -> core::result::Result<Vec<IpAddr>, Failure> {
    let deadline = clock::monotonic() + PATIENCE;
    let socket = open(server, SOCK_DGRAM).map_err(|_| Failure::Again)?;
    let kinds: &[Kind] = match family {
        Family::V4 => &[Kind::A],
        Family::V6 => &[Kind::Aaaa],
        Family::Any => &[Kind::A, Kind::Aaaa],
    };
    let mut open_questions = Vec::new();
    for kind in kinds {
        let id = random_id();
        let query = message::query(id, name, *kind);
        socket::send(socket.0, &[&query], None, 0).map_err(|_| Failure::Again)?;
        open_questions.push((id, *kind));
    }
    let mut found = Vec::new();
    let mut failure = None;
    let mut buffer = [0; 1500];
    while !open_questions.is_empty() {
        if !wait(socket.0, events::IN, deadline)? {
            break;
        }
        let len = match socket::recv(socket.0, &mut [&mut buffer], 0) {
            Ok(got) => got.copied,
            Err(Errno::EAGAIN) => continue,
            // An ICMP error: nobody is there.
            Err(_) => break,
        };
        // What fits no open question is somebody's guess, and not worth a look.
        let Some((at, answer)) = open_questions
            .iter()
            .enumerate()
            .find_map(|(at, (id, kind))| message::parse(&buffer[..len], *id, name, *kind).map(|answer| (at, answer)))
        else {
            continue;
        };
        let (_, kind) = open_questions.swap_remove(at);
        let answer = match answer {
            Answer::Cut => ask_tcp(server, name, kind, deadline),
            other => other,
        };
        match answer {
            Answer::Addresses(ips) if ips.is_empty() => failure = failure.or(Some(Failure::NoData)),
            Answer::Addresses(ips) => found.extend(ips),
            // That there is no such name, or what may hide an address, is more than that it has none of one kind.
            Answer::NoName => failure = Some(Failure::NoName),
            other if failure != Some(Failure::NoName) => {
                failure = Some(if other == Answer::Unable { Failure::Again } else { Failure::Broken });
            }
            _ => {}
        }
    }
    match failure {
        _ if !found.is_empty() => {
            // IPv4 first where both came: it is what every network carries.
            Ok(first(found, IpAddr::is_ipv4))
        }
        Some(f) if open_questions.is_empty() => Err(f),
        _ => Err(Failure::Again),
    }
}

/// The same question over TCP (RFC 7766): each message has its length in front.
fn ask_tcp(server: IpAddr, name: &str, kind: Kind, deadline: u64) -> Answer {
    let attempt = || -> Result<Answer> {
        let socket = open(server, SOCK_STREAM)?;
        let id = random_id();
        let query = message::query(id, name, kind);
        let len = (query.len() as u16).to_be_bytes();
        if !wait(socket.0, events::OUT, deadline)? {
            return Err(Errno::ETIMEDOUT);
        }
        // A fresh connection's buffer holds a question.
        if socket::send(socket.0, &[&len, &query], None, 0)? != query.len() + 2 {
            return Err(Errno::EIO);
        }
        let mut reply = Vec::new();
        let mut chunk = [0; 2048];
        loop {
            if let Some((len, body)) = reply.split_first_chunk::<2>() {
                let len = usize::from(u16::from_be_bytes(*len));
                if body.len() >= len {
                    return message::parse(&body[..len], id, name, kind).ok_or(Errno::EIO);
                }
            }
            if !wait(socket.0, events::IN, deadline)? {
                return Err(Errno::ETIMEDOUT);
            }
            match socket::recv(socket.0, &mut [&mut chunk], 0) {
                Ok(got) if got.copied == 0 => return Err(Errno::EIO),
                Ok(got) => {
                    // No more than a message, whose length has two bytes, and a chunk.
                    reply.try_reserve(got.copied).map_err(|_| Errno::ENOMEM)?;
                    reply.extend_from_slice(&chunk[..got.copied]);
                }
                Err(Errno::EAGAIN) => {}
                Err(e) => return Err(e),
            }
        }
    };
    attempt().unwrap_or(Answer::Unable)
}
