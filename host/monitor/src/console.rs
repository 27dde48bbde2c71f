//! The guest's console: from its pipes to the monitor's standard output and standard error.
//!
//! The monitor never blocks on its own output: it holds [`HELD_MAX`] bytes, then the pipe fills, then the guest's console call takes fewer
//! bytes. Where terminals and pipes are concerned, no promise of theirs to take bytes is relied on ([`reopened`]). Control characters do not reach a terminal.

use std::io::IsTerminal;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::reactor::{Interest, Reactor, Token};
use crate::symbols::Names;

/// Most bytes that the monitor holds per stream.
const HELD_MAX: usize = 64 * 1024;
/// A pipe that is ready for writing takes this many bytes without blocking (PIPE_BUF).
const WRITE_MAX: usize = 4096;

/// Ends colours, and what else a colour sequence may say: there is one that hides text.
const RESET: &[u8] = b"\x1b[0m";

/// Parts that are read from a pipe before something else gets its turn.
const PARTS_PER_TURN: usize = 8;

/// One of the monitor's own streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stream {
    Output,
    Errors,
}

impl Stream {
    fn fd(self) -> BorrowedFd<'static> {
        match self {
            Stream::Output => rustix::stdio::stdout(),
            Stream::Errors => rustix::stdio::stderr(),
        }
    }
}

/// A pipe from the guest and where it goes.
#[derive(Debug)]
pub(crate) struct Relay {
    from: Option<OwnedFd>,
    stream: Stream,
    /// The stream's terminal or pipe, opened once more.
    own: Option<OwnedFd>,
    tokens: (Token, Token),
    /// For a terminal.
    filter: Option<Filter>,
    names: Option<Names>,
    /// Bytes that have been read but may be the beginning of a line of a backtrace.
    begun: Vec<u8>,
    held: Vec<u8>,
    reading: bool,
    writing: bool,
    broken: bool,
    /// Bytes that the stream did not take, and why not the last ones.
    lost: Option<(u64, Errno)>,
}

impl Relay {
    /// Relays `from`, a non-blocking pipe, to `stream`. `tokens` are for the pipe and for the stream.
    pub fn new(from: OwnedFd, stream: Stream, tokens: (Token, Token), reactor: &Reactor) -> rustix::io::Result<Relay> {
        reactor.add(&from, tokens.0, Interest::READ)?;
        let terminal = match stream {
            Stream::Output => std::io::stdout().is_terminal(),
            Stream::Errors => std::io::stderr().is_terminal(),
        };
        Ok(Relay {
            from: Some(from),
            stream,
            own: reopened(stream.fd()),
            tokens,
            filter: terminal.then(Filter::default),
            names: None,
            begun: Vec::new(),
            held: Vec::new(),
            reading: true,
            writing: false,
            broken: false,
            lost: None,
        })
    }

    /// Adds the names of functions to the addresses in backtraces.
    pub fn with_names(mut self, names: Names) -> Relay {
        self.names = Some(names);
        self
    }

    /// Moves what can be moved without blocking.
    pub fn pump(&mut self, reactor: &Reactor) {
        let mut blocked = false;
        // A guest that writes without end must not keep the network from its turn.
        for _ in 0..PARTS_PER_TURN {
            while !self.held.is_empty() && !blocked {
                blocked = !self.takes(Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) || !self.write();
            }
            if self.held.len() >= HELD_MAX || !self.read() {
                break;
            }
        }
        self.listen(reactor, blocked);
    }

    /// Says a line of the monitor's own, when there is room: nothing is to wait for whoever reads it.
    pub fn say(&mut self, line: &str, reactor: &Reactor) {
        self.add(line);
        self.pump(reactor);
    }

    /// The same if somebody at a terminal reads it.
    pub fn tell(&mut self, line: &str, reactor: &Reactor) {
        if self.filter.is_some() {
            self.say(line, reactor);
        }
    }

    /// After the guest's end: moves everything that is left, waiting for the stream if it must, but not beyond `until`. What was lost is among what is to be said.
    pub fn finish(&mut self, until: Option<Instant>, said: &mut Vec<String>) {
        self.drain(until);
        if self.filter.as_ref().is_some_and(|filter| filter.coloured) && !self.broken {
            // What others say after it is to be seen.
            self.held.extend_from_slice(RESET);
            self.drain(until);
        }
        if let Some((bytes, why)) = self.lost {
            let what = if self.stream == Stream::Output { "output" } else { "errors" };
            said.push(format!("{bytes} bytes of the guest's {what} are lost: {why}"));
        }
    }

    /// The same, and then these lines of the monitor's own.
    pub fn finish_with(mut self, until: Option<Instant>, mut said: Vec<String>) {
        self.finish(until, &mut said);
        said.iter().for_each(|line| self.add(line));
        self.drain(until);
    }

    fn add(&mut self, line: &str) {
        if !self.broken {
            if self.filter.as_ref().is_some_and(|filter| filter.coloured) {
                self.held.extend_from_slice(RESET);
            }
            self.held.extend_from_slice(format!("donjon: {line}\n").as_bytes());
        }
    }

    fn drain(&mut self, until: Option<Instant>) {
        loop {
            while !self.held.is_empty() {
                let left = until.map(|t| t.saturating_duration_since(Instant::now()));
                let left = left.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: t.subsec_nanos().into() });
                if !self.takes(left.as_ref()) && left.is_some() {
                    return;
                }
                self.write();
            }
            if !self.read() {
                if self.begun.is_empty() || self.broken {
                    break;
                }
                self.take(self.begun.len());
            }
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.own.as_ref().map_or_else(|| self.stream.fd(), AsFd::as_fd)
    }

    /// Whether the stream takes bytes within this time. Files always do.
    fn takes(&self, timeout: Option<&Timespec>) -> bool {
        let fd = self.fd();
        let mut polled = [PollFd::new(&fd, PollFlags::OUT)];
        matches!(poll(&mut polled, timeout), Ok(n) if n > 0)
    }

    /// Writes a part of what is held; false if the stream did not take it now.
    fn write(&mut self) -> bool {
        let part = &self.held[..self.held.len().min(WRITE_MAX)];
        match rustix::io::write(self.fd(), part) {
            Ok(n) => {
                self.held.drain(..n);
                true
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            Err(Errno::PIPE | Errno::BADF) => {
                // Nobody reads any more. The guest goes on without.
                self.broken = true;
                self.held.clear();
                true
            }
            Err(why) => {
                // A full disk may have room again.
                let len = part.len();
                self.held.drain(..len);
                self.lost = Some((self.lost.map_or(0, |l| l.0) + len as u64, why));
                true
            }
        }
    }

    /// Reads a part; false if there is none now.
    fn read(&mut self) -> bool {
        let Some(from) = &self.from else { return false };
        let mut part = [0; 8192];
        match rustix::io::read(from, &mut part) {
            Ok(0) => {
                self.from = None;
                false
            }
            Ok(n) => {
                if !self.broken {
                    self.begun.extend_from_slice(&part[..n]);
                    // A line of a backtrace may come in pieces: its beginning waits for its end.
                    let line = self.begun.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
                    let whole = self.names.is_none() || !begins_frame(&self.begun[line..]);
                    self.take(if whole { self.begun.len() } else { line });
                }
                true
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            Err(_) => {
                self.from = None;
                false
            }
        }
    }

    /// Takes the first `len` bytes of what has begun, named and filtered.
    fn take(&mut self, len: usize) {
        let mut part: Vec<u8> = self.begun.drain(..len).collect();
        if let Some(names) = &mut self.names {
            part = part.utf8_chunks().fold(Vec::new(), |mut out, chunk| {
                let named = names.annotate(chunk.valid());
                out.extend_from_slice(named.as_deref().unwrap_or(chunk.valid()).as_bytes());
                out.extend_from_slice(chunk.invalid());
                out
            });
        }
        match &mut self.filter {
            Some(filter) => filter.push(&part, &mut self.held),
            None => self.held.extend_from_slice(&part),
        }
    }

    fn listen(&mut self, reactor: &Reactor, blocked: bool) {
        let reading = self.held.len() < HELD_MAX;
        if let Some(from) = &self.from
            && reading != self.reading
        {
            let _ = reactor.modify(from, self.tokens.0, Interest { read: reading, write: false });
            self.reading = reading;
        }
        if blocked != self.writing {
            if blocked {
                // Some streams cannot be waited for (files); these are never blocked either.
                let _ = reactor.add(self.fd(), self.tokens.1, Interest { read: false, write: true });
            } else {
                reactor.remove(self.fd());
            }
            self.writing = blocked;
        }
    }
}

impl AsFd for Relay {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.from.as_ref().map_or_else(|| self.fd(), AsFd::as_fd)
    }
}

/// A terminal or pipe once more, non-blocking for us and nobody else who has it. A write to a terminal that takes a byte waits until it has taken all, and
/// another writer may be first to fill a pipe. `None` for everything else, and where the host refuses (another user's terminal): then what poll(2) says must do.
fn reopened(fd: BorrowedFd<'_>) -> Option<OwnedFd> {
    let stat = rustix::fs::fstat(fd).ok()?;
    // Whoever opens a pseudoterminal's master gets another terminal.
    let master = stat.st_rdev == rustix::fs::makedev(5, 2);
    let fifo = FileType::from_raw_mode(stat.st_mode) == FileType::Fifo;
    if !fifo && (master || !fd.is_terminal()) {
        return None;
    }
    let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::open(name, OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// Whether an unfinished line may become one of a backtrace: `  12: image+0x1234`.
fn begins_frame(line: &[u8]) -> bool {
    let digits = |s: &[u8]| s.iter().take_while(|b| b.is_ascii_digit()).count();
    if line.len() > 48 || !line.starts_with(b" ") {
        return false;
    }
    let rest = line.trim_ascii_start();
    let rest = &rest[digits(rest)..];
    let (mark, hex) = rest.split_at(rest.len().min(b": image+0x".len()));
    b": image+0x".starts_with(mark) && hex.iter().all(u8::is_ascii_hexdigit)
}

/// Keeps control characters from a terminal: they could hide text, change the title, or type answers. Line feeds, tabs, carriage returns and
/// colours (`ESC [ numbers m`) pass; other control characters are shown as `^X`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    state: FilterState,
    /// A colour sequence so far, without its ESC.
    sequence: Vec<u8>,
    /// One has passed.
    coloured: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum FilterState {
    #[default]
    Text,
    Escape,
    /// After byte 0xc2, the first of U+0080 to U+00BF, whose first half are control characters too.
    Latin,
}

impl Filter {
    /// Longest colour sequence that passes.
    const SEQUENCE_MAX: usize = 24;

    /// Filters `bytes` into `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for &b in bytes {
            self.byte(b, out);
        }
    }

    fn byte(&mut self, b: u8, out: &mut Vec<u8>) {
        match self.state {
            FilterState::Text => match b {
                0x1b => self.state = FilterState::Escape,
                0xc2 => self.state = FilterState::Latin,
                b'\n' | b'\t' | b'\r' | 0x20..=0x7e | 0x80.. => out.push(b),
                _ => out.extend([b'^', b ^ 0x40]),
            },
            FilterState::Latin => {
                self.state = FilterState::Text;
                match b {
                    0x80..=0x9f => out.push(b'?'),
                    _ => {
                        out.push(0xc2);
                        self.byte(b, out);
                    }
                }
            }
            FilterState::Escape => {
                let first = self.sequence.is_empty();
                let inside = if first { b == b'[' } else { matches!(b, b'0'..=b'9' | b';') };
                if inside && self.sequence.len() < Self::SEQUENCE_MAX {
                    self.sequence.push(b);
                    return;
                }
                self.state = FilterState::Text;
                let sequence = std::mem::take(&mut self.sequence);
                let colour = !first && b == b'm';
                self.coloured |= colour;
                out.extend_from_slice(if colour { b"\x1b" } else { b"^[" });
                out.extend_from_slice(&sequence);
                if colour { out.push(b) } else { self.byte(b, out) }
            }
        }
    }
}

/// `bytes` as text that is safe on a terminal.
pub(crate) fn harmless(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len());
    let mut filter = Filter::default();
    filter.push(bytes, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(s: &str) -> String {
        // One byte at a time: the state must survive any split.
        let (mut filter, mut out) = (Filter::default(), vec![]);
        s.bytes().for_each(|b| filter.push(&[b], &mut out));
        assert_eq!(String::from_utf8_lossy(&out), harmless(s.as_bytes()));
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn lines_of_backtraces_are_waited_for() {
        let line = "  12: image+0x1b77a\n";
        for n in 1..line.len() {
            assert!(begins_frame(&line.as_bytes()[..n]), "{n}");
        }
        for other in ["", "a", "  a", "  12: b", "  12: image+0xg", "12: image+0x1", line] {
            assert!(!begins_frame(other.as_bytes()), "{other:?}");
        }
    }

    #[test]
    fn text_and_colours_pass() {
        for s in ["plain\n\ttext\r\n", "\x1b[31mred\x1b[0m", "\x1b[1;38;5;200mx\x1b[m", "größe ü £ 日本"] {
            assert_eq!(filtered(s), s);
        }
    }

    #[test]
    fn control_does_not() {
        assert_eq!(filtered("\x1b]0;title\x07"), "^[]0;title^G");
        assert_eq!(filtered("\x1b[2J"), "^[[2J");
        assert_eq!(filtered("\x1b[6n"), "^[[6n");
        assert_eq!(filtered("a\x08\x7f\0b"), "a^H^?^@b");
        assert_eq!(filtered("\u{9b}2J"), "?2J");
        assert_eq!(filtered("\x1b\x1b[31mx"), "^[\x1b[31mx");
        let long = format!("\x1b[{}m", "1;".repeat(100));
        assert!(!filtered(&long).contains('\x1b'));
    }
}
