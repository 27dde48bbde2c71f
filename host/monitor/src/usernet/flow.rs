//! One TCP connection: a socket of the host on one side, a connection of our stack to the guest on the other.
//!
//! Bytes are held only while the side that they go to does not take them, and then at most one scratch buffer's worth per
//! direction; the side that they come from is not read meanwhile, so that its sender stops. When all connections together hold [`HELD_MAX`],
//! bytes stay where they are until the other side takes them: each is looked at before it is taken, which costs a copy more.

use std::cell::Cell;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use donjon_net::{Error, Handle, KeepAlive, Pending, Ready, RecvMode, Shutdown, Stack, TcpOptions};
use rustix::io::Errno;
use rustix::net::{RecvFlags, sockopt};

use super::arrived;
use crate::reactor::Interest;

/// Bytes that all connections hold together at most, but for one more piece.
pub(super) const HELD_MAX: usize = 32 << 20;

/// Pieces that are moved in one direction before other connections get their turn.
const TURNS: usize = 8;

/// How long to wait when the stack has no memory, ns.
const STARVED: u64 = 5_000_000;

/// Time between two looks at whether all has arrived, growing; ns.
const ARRIVING: std::ops::Range<u64> = 1_000_000..256_000_000;

/// How long a client may take nothing of what a guest has sent that is gone, ms.
const PATIENCE: u32 = 60_000;

/// How the guest's side is looked after when the guest has ended its direction, seconds.
const AFTER_END: KeepAlive = if cfg!(test) {
    KeepAlive { idle: 1, interval: 1, count: 3 }
} else {
    KeepAlive { idle: 30, interval: 10, count: 3 }
};

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The guest has sent SYN; the host's socket is being connected.
    DialHost(Pending),
    /// Somebody has connected to a published port; the guest has our SYN.
    DialGuest {
        /// Number of the listener.
        listener: usize,
        /// When, if the guest has refused, to try again (it may still be booting).
        again: Option<u64>,
        /// Tries so far.
        tries: u32,
    },
    /// Both sides are connected.
    Open,
    /// The guest's side has failed. What it has sent before that is on its way to the client.
    Lingers,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Flow {
    pub socket: OwnedFd,
    pub phase: Phase,
    /// The stack's side; none before there is one.
    pub handle: Option<Handle>,
    /// Who has connected, for published ports.
    pub peer: Option<SocketAddr>,
    pub interest: Interest,
    /// The reactor knows the socket. One that has hung up is reported whatever the interest, and so taken out until it is to be read.
    pub watched: bool,
    /// It is in the list of those that have more to do at once, or at a time.
    pub in_todo: bool,
    pub in_later: bool,
    to_host: Held,
    to_guest: Held,
    /// No more bytes come from the host.
    host_ended: bool,
    /// No more bytes come from the guest.
    guest_ended: bool,
    /// The end has been passed on.
    host_shut: bool,
    guest_shut: bool,
    /// The stack has refused bytes for want of memory.
    starved: bool,
    /// The guest's side has failed before it ended its direction, and the host has got all that came before.
    cut: bool,
    /// Time to the next look at whether that has arrived, ns.
    pause: u64,
    /// A side that has not taken all that it was offered while the bytes stayed with the other.
    host_full: bool,
    guest_full: bool,
    total: Total,
}

/// What becomes of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It waits for events.
    Keep,
    /// It has more to do at once, after the others.
    More,
    /// It is to be looked at again after this time, ns: no event will tell when the stack has memory for it, or when what was sent has arrived.
    Later(u64),
    /// Both directions have ended well.
    Done,
    /// One side has failed; the other is to know.
    Reset,
}

impl Flow {
    /// `total` is that of all connections.
    pub fn new(socket: OwnedFd, phase: Phase, peer: Option<SocketAddr>, interest: Interest, total: &Total) -> Flow {
        Flow {
            socket,
            phase,
            handle: None,
            peer,
            interest,
            watched: true,
            in_todo: false,
            in_later: false,
            to_host: Held::new(total),
            to_guest: Held::new(total),
            host_ended: false,
            guest_ended: false,
            host_shut: false,
            guest_shut: false,
            starved: false,
            cut: false,
            pause: ARRIVING.start,
            host_full: false,
            guest_full: false,
            total: total.clone(),
        }
    }

    /// Moves bytes both ways. `readable`: the host's socket may have some.
    pub fn work(&mut self, stack: &mut Stack, scratch: &mut [u8], mut readable: bool) -> Verdict {
        let Some(handle) = self.handle else { return Verdict::Keep };
        match self.phase {
            Phase::Open => {}
            Phase::Lingers => return self.linger(stack, handle, scratch),
            Phase::DialHost(_) | Phase::DialGuest { .. } => return Verdict::Keep,
        }
        let moved = self
            .towards_host(stack, handle, scratch)
            .and_then(|a| Ok(a | self.towards_guest(stack, handle, scratch, &mut readable)?));
        match moved {
            Err(_) => Verdict::Reset,
            Ok(_) if std::mem::take(&mut self.starved) => Verdict::Later(STARVED),
            Ok(_) if self.host_shut && self.guest_shut => Verdict::Done,
            Ok(true) => Verdict::More,
            Ok(false) => Verdict::Keep,
        }
    }

    /// Whether the guest's side has failed just now; then it [lingers](Phase::Lingers).
    pub fn has_failed(&mut self, stack: &Stack) -> bool {
        let failed = self.phase == Phase::Open
            && self.handle.is_some_and(|handle| stack.readiness(handle).contains(Ready::ERROR));
        if failed {
            self.phase = Phase::Lingers;
            // The kernel ends the socket of a client that takes nothing for so long.
            let _ = sockopt::set_tcp_user_timeout(&self.socket, PATIENCE);
        }
        failed
    }

    /// Brings what the guest has sent before it failed to the client. The host's socket cannot be closed before it has arrived: when the client says
    /// something that nobody has read, or will read, the kernel resets the connection and throws away what it still has for it.
    fn linger(&mut self, stack: &mut Stack, handle: Handle, scratch: &mut [u8]) -> Verdict {
        if !self.host_shut && !self.cut {
            match self.towards_host(stack, handle, scratch) {
                Ok(true) => return Verdict::More,
                Ok(false) if !self.host_shut => return Verdict::Keep,
                Ok(false) => {}
                Err(Failed::Guest) => self.cut = true,
                Err(Failed::Host) => return Verdict::Reset,
            }
        }
        // One that is to be reset need not be read.
        for _ in 0..TURNS {
            if self.cut || self.host_ended {
                break;
            }
            match rustix::net::recv(&self.socket, &mut *scratch, RecvFlags::empty()) {
                // It says nothing any more: the kernel does the rest.
                Ok((_, 0)) => self.host_ended = true,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Verdict::Reset,
            }
        }
        if (self.cut || !self.host_ended) && !arrived::all(&self.socket) {
            let pause = self.pause;
            self.pause = (2 * pause).min(ARRIVING.end);
            return Verdict::Later(pause);
        }
        if self.cut { Verdict::Reset } else { Verdict::Done }
    }

    /// The guest has ended: whether the host must take more first of what it has sent. If not, [`Self::is_delivered`] says whether that was all.
    pub fn deliver(&mut self, stack: &mut Stack, scratch: &mut [u8]) -> bool {
        let Some(handle) = self.handle else { return false };
        loop {
            if self.phase == Phase::Lingers {
                match self.linger(stack, handle, scratch) {
                    Verdict::More => continue,
                    verdict => return matches!(verdict, Verdict::Keep | Verdict::Later(_)),
                }
            }
            match self.towards_host(stack, handle, scratch) {
                Ok(true) => {}
                Ok(false) if self.host_shut => self.phase = Phase::Lingers,
                Ok(false) => return self.guest_ended || stack.readiness(handle).contains(Ready::READ_CLOSED),
                Err(Failed::Guest) => (self.phase, self.cut) = (Phase::Lingers, true),
                Err(Failed::Host) => return false,
            }
        }
    }

    /// Whether all that the guest has said is with the host, the end too.
    pub fn is_delivered(&self) -> bool {
        self.host_shut
    }

    /// What to wait for at the host's socket.
    pub fn wanted(&self) -> Interest {
        match self.phase {
            Phase::DialHost(_) => Interest { read: false, write: true },
            Phase::DialGuest { .. } => Interest::default(),
            // Until all is with the host, the client is not listened to.
            Phase::Lingers => {
                Interest { read: self.host_shut && !self.host_ended, write: !self.to_host.is_empty() || self.host_full }
            }
            Phase::Open => Interest {
                read: !self.host_ended && self.to_guest.is_empty() && !self.guest_full,
                write: !self.to_host.is_empty() || self.host_full,
            },
        }
    }

    /// True if there may be more.
    fn towards_host(&mut self, stack: &mut Stack, handle: Handle, scratch: &mut [u8]) -> Result<bool, Failed> {
        self.host_full = false;
        for _ in 0..TURNS {
            if !self.to_host.is_empty() {
                match write(&self.socket, self.to_host.bytes())? {
                    0 => return Ok(false),
                    n => self.to_host.take(n),
                }
            } else if self.host_shut {
                return Ok(false);
            } else if self.guest_ended {
                // Fails if the host's side is gone already, which reading will tell.
                let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
                self.host_shut = true;
                return Ok(false);
            } else {
                let mode = if self.total.is_full() { RecvMode::Peek } else { RecvMode::Take };
                match stack.recv(handle, &mut [scratch], mode) {
                    Ok(0) => {
                        self.guest_ended = true;
                        look_after(stack, handle);
                    }
                    Ok(n) => {
                        let written = write(&self.socket, &scratch[..n])?;
                        if mode == RecvMode::Take {
                            self.to_host.keep(&scratch[written..n]);
                            continue;
                        }
                        if written > 0 {
                            stack
                                .recv(handle, &mut [&mut scratch[..written]], RecvMode::Take)
                                .map_err(|_| Failed::Guest)?;
                        }
                        if written < n {
                            self.host_full = true;
                            return Ok(false);
                        }
                    }
                    Err(Error::WouldBlock) => return Ok(false),
                    Err(_) => return Err(Failed::Guest),
                }
            }
        }
        Ok(true)
    }

    fn towards_guest(
        &mut self,
        stack: &mut Stack,
        handle: Handle,
        scratch: &mut [u8],
        readable: &mut bool,
    ) -> Result<bool, Failed> {
        // Then nobody has waited for the host's socket.
        *readable |= std::mem::take(&mut self.guest_full);
        for _ in 0..TURNS {
            if !self.to_guest.is_empty() {
                match self.send(stack, handle, None)? {
                    0 => return Ok(false),
                    n => self.to_guest.take(n),
                }
            } else if self.guest_shut {
                return Ok(false);
            } else if self.host_ended {
                let _ = stack.shutdown(handle, Shutdown::Write);
                self.guest_shut = true;
                return Ok(false);
            } else if !*readable {
                return Ok(false);
            } else {
                let frugal = self.total.is_full();
                let flags = if frugal { RecvFlags::PEEK } else { RecvFlags::empty() };
                match rustix::net::recv(&self.socket, &mut *scratch, flags).map(|(n, _)| n) {
                    Ok(0) => self.host_ended = true,
                    Ok(n) => {
                        // Less than asked for: the socket is empty now, and epoll will tell when it is not.
                        *readable = n == scratch.len();
                        let sent = self.send(stack, handle, Some(&scratch[..n]))?;
                        if !frugal {
                            self.to_guest.keep(&scratch[sent..n]);
                            continue;
                        }
                        if sent > 0 {
                            // They are there: this neither waits nor fails.
                            rustix::net::recv(&self.socket, &mut scratch[..sent], RecvFlags::empty())
                                .map_err(|_| Failed::Host)?;
                        }
                        if sent < n {
                            self.guest_full = true;
                            return Ok(false);
                        }
                    }
                    Err(Errno::AGAIN) => *readable = false,
                    Err(Errno::INTR) => {}
                    Err(_) => return Err(Failed::Host),
                }
            }
        }
        Ok(true)
    }

    /// Gives bytes (those that are held, if `None`) to the stack; 0 if it takes nothing now.
    fn send(&mut self, stack: &mut Stack, handle: Handle, bytes: Option<&[u8]>) -> Result<usize, Failed> {
        match stack.send(handle, &[bytes.unwrap_or(self.to_guest.bytes())]) {
            Ok(n) => Ok(n),
            Err(Error::WouldBlock) => Ok(0),
            Err(Error::NoMemory) => {
                self.starved = true;
                Ok(0)
            }
            Err(_) => Err(Failed::Guest),
        }
    }
}

/// When the guest has ended its direction: it may have closed the connection, wait for the client's end for a minute and forget it without a word. Then the client, who may be
/// silent for ever, would hold a place here for ever. Probes tell: a guest that has forgotten answers with a reset, one that still reads with an acknowledgement.
fn look_after(stack: &mut Stack, handle: Handle) {
    if let Ok(options) = stack.tcp_options(handle) {
        let _ = stack.set_tcp_options(handle, TcpOptions { keep_alive: Some(AFTER_END), ..options });
    }
}

/// The side that has failed.
#[derive(Debug)]
enum Failed {
    Host,
    Guest,
}

/// 0 if the socket takes nothing now.
fn write(socket: &OwnedFd, bytes: &[u8]) -> Result<usize, Failed> {
    loop {
        match rustix::net::send(socket, bytes, rustix::net::SendFlags::NOSIGNAL) {
            Ok(n) => return Ok(n),
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::INTR) => {}
            Err(_) => return Err(Failed::Host),
        }
    }
}

/// How many bytes all connections hold, and how many they may.
#[derive(Clone, Debug)]
pub(super) struct Total {
    bytes: Rc<Cell<usize>>,
    most: usize,
}

impl Total {
    pub fn new(most: usize) -> Total {
        Total { bytes: Rc::default(), most }
    }

    fn is_full(&self) -> bool {
        self.bytes.get() >= self.most
    }
}

/// Bytes that one side has not taken yet.
#[derive(Debug)]
struct Held {
    bytes: Vec<u8>,
    start: usize,
    total: Total,
}

impl Held {
    fn new(total: &Total) -> Held {
        Held { bytes: Vec::new(), start: 0, total: total.clone() }
    }

    fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Holds these instead of what it had.
    fn keep(&mut self, bytes: &[u8]) {
        self.total.bytes.update(|total| total - self.bytes.len() + bytes.len());
        self.bytes = bytes.to_vec();
        self.start = 0;
    }

    fn take(&mut self, n: usize) {
        self.start += n;
        if self.is_empty() {
            self.keep(&[]);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.keep(&[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_counts_until_it_is_gone() {
        let total = Total::new(10);
        let (mut a, mut b) = (Held::new(&total), Held::new(&total));
        a.keep(b"123456");
        assert!(!total.is_full());
        b.keep(b"1234");
        assert!(total.is_full());
        a.take(5);
        assert_eq!((a.bytes(), total.bytes.get()), (&b"6"[..], 10));
        a.take(1);
        assert!(a.is_empty());
        assert_eq!(total.bytes.get(), 4);
        drop(b);
        assert_eq!(total.bytes.get(), 0);
    }
}
