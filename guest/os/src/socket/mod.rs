//! Sockets: what all families share.

pub mod addr;
pub mod inet;
pub mod option;
mod policy;
#[cfg(test)]
mod tests;
pub mod unix;

pub use addr::Addr;
pub use option::Value;

use crate::errno::{Errno, Result};
use crate::fd::watch::events;
use crate::fd::{self, FileRef, Woken};
use addr::{AF_INET, AF_INET6, AF_UNIX};
use core::cell::Cell;
use option::{SOL_SOCKET, so};

/// `SOCK_STREAM`.
pub const SOCK_STREAM: i32 = 1;
/// `SOCK_DGRAM`.
pub const SOCK_DGRAM: i32 = 2;
/// `SOCK_SEQPACKET`.
pub const SOCK_SEQPACKET: i32 = 5;
const SOCK_NONBLOCK: i32 = fd::O_NONBLOCK;
const SOCK_CLOEXEC: i32 = fd::O_CLOEXEC;

/// Flags of `send` and `recv`.
pub mod msg {
    /// Out-of-band data: refused.
    pub const OOB: i32 = 1;
    /// Look, but leave the data.
    pub const PEEK: i32 = 2;
    /// The control data was cut (output only).
    pub const CTRUNC: i32 = 8;
    /// Give the datagram's real length; in a result: it was cut.
    pub const TRUNC: i32 = 0x20;
    /// Do not wait.
    pub const DONTWAIT: i32 = 0x40;
    /// End of a record.
    pub const EOR: i32 = 0x80;
    /// Wait until the buffer is full.
    pub const WAITALL: i32 = 0x100;
    /// No SIGPIPE; there never is one.
    pub const NOSIGNAL: i32 = 0x4000;
    /// More will follow at once.
    pub const MORE: i32 = 0x8000;
    /// Error queue: always empty.
    pub const ERRQUEUE: i32 = 0x2000;
}

/// What `recv` got.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// Bytes in the caller's buffers.
    pub copied: usize,
    /// Length of the datagram; for streams the same as `copied`.
    pub len: usize,
    /// Sender of a datagram.
    pub from: Option<Addr>,
}

/// Which halves to shut down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// `SHUT_RD`.
    Read,
    /// `SHUT_WR`.
    Write,
    /// `SHUT_RDWR`.
    Both,
}

/// The operations of a socket. None waits: they answer `EAGAIN` or `EINPROGRESS`.
pub trait Socket {
    /// Options that every socket has.
    fn common(&self) -> &Common;
    /// `bind`.
    fn bind(&self, addr: &Addr) -> Result<()>;
    /// `listen`.
    fn listen(&self, _backlog: u32) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }
    /// `accept`: a description with the given status flags, and the peer.
    fn accept(&self, _flags: i32) -> Result<(FileRef, Addr)> {
        Err(Errno::EOPNOTSUPP)
    }
    /// Before `connect`: waits for what must be there first.
    fn before_connect(&self, _addr: &Addr) -> Result<()> {
        Ok(())
    }
    /// `connect`; `EINPROGRESS` if it takes time: then [`Socket::connected`] says how it went.
    fn connect(&self, addr: &Addr) -> Result<()>;
    /// Whether a connection that was started is there, or why it failed.
    fn connected(&self) -> Result<bool> {
        Ok(true)
    }
    /// `sendmsg`.
    fn send(&self, bufs: &[&[u8]], to: Option<&Addr>, flags: i32) -> Result<usize>;
    /// `recvmsg`.
    fn recv(&self, bufs: &mut [&mut [u8]], flags: i32) -> Result<Received>;
    /// `shutdown`.
    fn shutdown(&self, how: How) -> Result<()>;
    /// `getsockname`.
    fn local(&self) -> Result<Addr>;
    /// `getpeername`.
    fn peer(&self) -> Result<Addr>;
    /// Takes `SO_ERROR`.
    fn take_error(&self) -> Option<Errno> {
        None
    }
    /// `getsockopt` of options that are not common.
    fn option(&self, _level: i32, _name: i32) -> Result<Value> {
        Err(Errno::ENOPROTOOPT)
    }
    /// `setsockopt` of options that are not common.
    fn set_option(&self, _level: i32, _name: i32, _value: &[u8]) -> Result<()> {
        Err(Errno::ENOPROTOOPT)
    }
}

/// Options that every socket has.
pub struct Common {
    /// `SO_DOMAIN`.
    pub domain: i32,
    /// `SO_TYPE`.
    pub kind: i32,
    /// `SO_PROTOCOL`.
    pub protocol: i32,
    /// `SO_RCVTIMEO`, ns.
    pub receive_timeout: Cell<Option<u64>>,
    /// `SO_SNDTIMEO`, ns.
    pub send_timeout: Cell<Option<u64>>,
    /// `SO_REUSEADDR`.
    pub reuse_addr: Cell<bool>,
    /// `SO_REUSEPORT`.
    pub reuse_port: Cell<bool>,
    /// `SO_BROADCAST`.
    pub broadcast: Cell<bool>,
    /// `SO_LINGER`, seconds.
    pub linger: Cell<Option<u32>>,
    /// `SO_ACCEPTCONN`.
    pub listening: Cell<bool>,
    /// `IPV6_V6ONLY`.
    pub v6_only: Cell<bool>,
}

impl Common {
    /// The defaults.
    pub const fn new(domain: i32, kind: i32, protocol: i32) -> Self {
        Common {
            domain,
            kind,
            protocol,
            receive_timeout: Cell::new(None),
            send_timeout: Cell::new(None),
            reuse_addr: Cell::new(false),
            reuse_port: Cell::new(false),
            broadcast: Cell::new(false),
            linger: Cell::new(None),
            listening: Cell::new(false),
            v6_only: Cell::new(false),
        }
    }

    /// For what `accept` returns.
    pub fn inherited(&self) -> Self {
        let new = Common::new(self.domain, self.kind, self.protocol);
        new.receive_timeout.set(self.receive_timeout.get());
        new.v6_only.set(self.v6_only.get());
        new.send_timeout.set(self.send_timeout.get());
        new.reuse_addr.set(self.reuse_addr.get());
        new.reuse_port.set(self.reuse_port.get());
        new.linger.set(self.linger.get());
        new
    }

    fn get(&self, name: i32) -> Option<Value> {
        Some(match name {
            so::DOMAIN => Value::int(self.domain),
            so::TYPE => Value::int(self.kind),
            so::PROTOCOL => Value::int(self.protocol),
            so::RCVTIMEO => Value::timeval(self.receive_timeout.get()),
            so::SNDTIMEO => Value::timeval(self.send_timeout.get()),
            so::REUSEADDR => Value::int(self.reuse_addr.get().into()),
            so::BROADCAST => Value::int(self.broadcast.get().into()),
            so::LINGER => Value::linger(self.linger.get()),
            so::ACCEPTCONN => Value::int(self.listening.get().into()),
            so::REUSEPORT => Value::int(self.reuse_port.get().into()),
            so::DONTROUTE => Value::int(0),
            _ => return None,
        })
    }

    fn set(&self, name: i32, value: &[u8]) -> Option<Result<()>> {
        Some(match name {
            so::RCVTIMEO => option::timeval(value).map(|t| self.receive_timeout.set(t)),
            so::SNDTIMEO => option::timeval(value).map(|t| self.send_timeout.set(t)),
            so::REUSEADDR => option::int(value).map(|v| self.reuse_addr.set(v != 0)),
            so::BROADCAST => option::int(value).map(|v| self.broadcast.set(v != 0)),
            so::LINGER => option::linger(value).map(|v| self.linger.set(v)),
            so::REUSEPORT if self.domain == AF_UNIX => {
                option::int(value).and_then(|v| if v == 0 { Ok(()) } else { Err(Errno::EOPNOTSUPP) })
            }
            so::REUSEPORT => option::int(value).map(|v| self.reuse_port.set(v != 0)),
            so::DONTROUTE => option::int(value).and_then(|v| if v == 0 { Ok(()) } else { Err(Errno::ENOPROTOOPT) }),
            so::DOMAIN | so::TYPE | so::PROTOCOL | so::ACCEPTCONN | so::ERROR => Err(Errno::ENOPROTOOPT),
            _ => return None,
        })
    }
}

/// The description behind a descriptor that must be a socket.
fn get(fd: i32) -> Result<FileRef> {
    let file = fd::get(fd)?;
    if file.obj.socket().is_none() { Err(Errno::ENOTSOCK) } else { Ok(file) }
}

fn sock(file: &FileRef) -> Result<&dyn Socket> {
    file.obj.socket().ok_or(Errno::ENOTSOCK)
}

fn split_kind(kind: i32) -> Result<(i32, i32, bool)> {
    if kind & !(SOCK_NONBLOCK | SOCK_CLOEXEC | 0xf) != 0 {
        return Err(Errno::EINVAL);
    }
    Ok((kind & 0xf, kind & SOCK_NONBLOCK, kind & SOCK_CLOEXEC != 0))
}

/// `socket`.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Result<i32> {
    let (kind, status, cloexec) = split_kind(kind)?;
    let _guard = donjon_base::preempt::off();
    fd::has_room()?;
    let file = match domain {
        AF_UNIX => unix::socket(kind, protocol, status)?,
        AF_INET | AF_INET6 => inet::socket(domain, kind, protocol, status)?,
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    fd::install(file, cloexec)
}

/// `socketpair`.
pub fn pair(domain: i32, kind: i32, protocol: i32) -> Result<(i32, i32)> {
    let (kind, status, cloexec) = split_kind(kind)?;
    if domain != AF_UNIX {
        return Err(if matches!(domain, AF_INET | AF_INET6) { Errno::EOPNOTSUPP } else { Errno::EAFNOSUPPORT });
    }
    let _guard = donjon_base::preempt::off();
    let (a, b) = unix::pair(kind, protocol, status)?;
    let a = fd::install(a, cloexec)?;
    match fd::install(b, cloexec) {
        Ok(b) => Ok((a, b)),
        Err(e) => {
            fd::close(a)?;
            Err(e)
        }
    }
}

/// `bind`.
pub fn bind(fd: i32, addr: &Addr) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    sock(&get(fd)?)?.bind(addr)
}

/// `listen`.
pub fn listen(fd: i32, backlog: i32) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    // Linux takes a negative backlog for a huge one.
    sock(&get(fd)?)?.listen(u32::try_from(backlog).unwrap_or(u32::MAX))
}

/// `accept4`.
pub fn accept(fd: i32, flags: i32) -> Result<(i32, Addr)> {
    if flags & !(SOCK_NONBLOCK | SOCK_CLOEXEC) != 0 {
        return Err(Errno::EINVAL);
    }
    let _guard = donjon_base::preempt::off();
    let file = get(fd)?;
    let socket = sock(&file)?;
    let (new, peer) = fd::blocking(&file, events::READ, file.ctl.nonblocking(), || {
        // Each time, as others take numbers while this one waits: a connection must not be taken from the queue when the table is full.
        fd::has_room()?;
        socket.accept(flags & SOCK_NONBLOCK)
    })?;
    Ok((fd::install(new, flags & SOCK_CLOEXEC != 0)?, peer))
}

/// `connect`.
pub fn connect(fd: i32, addr: &Addr) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    let file = get(fd)?;
    let socket = sock(&file)?;
    let nonblocking = file.ctl.nonblocking();
    socket.before_connect(addr)?;
    let started = match socket.connect(addr) {
        Err(Errno::EAGAIN) if !nonblocking => fd::blocking(&file, events::WRITE, false, || socket.connect(addr)),
        other => other,
    };
    match started {
        // The second one: it was started before, and a signal has ended the wait, or it did not wait.
        Err(Errno::EINPROGRESS | Errno::EALREADY) if !nonblocking => {}
        other => return other,
    }
    let deadline = socket.common().send_timeout.get().map(|t| donjon_base::clock::monotonic().saturating_add(t));
    while !socket.connected()? {
        let watch = file.obj.watch().ok_or(Errno::EINVAL)?;
        if fd::wait_on(watch, events::WRITE, deadline)? == Woken::TimedOut {
            return if socket.connected()? { Ok(()) } else { Err(Errno::EINPROGRESS) };
        }
    }
    Ok(())
}

/// `shutdown`.
pub fn shutdown(fd: i32, how: i32) -> Result<()> {
    let how = match how {
        0 => How::Read,
        1 => How::Write,
        2 => How::Both,
        _ => return Err(Errno::EINVAL),
    };
    let _guard = donjon_base::preempt::off();
    sock(&get(fd)?)?.shutdown(how)
}

/// `getsockname`.
pub fn local(fd: i32) -> Result<Addr> {
    let _guard = donjon_base::preempt::off();
    sock(&get(fd)?)?.local()
}

/// `getpeername`.
pub fn peer(fd: i32) -> Result<Addr> {
    let _guard = donjon_base::preempt::off();
    sock(&get(fd)?)?.peer()
}

/// `send`, `sendto`, `sendmsg`.
pub fn send(fd: i32, bufs: &[&[u8]], to: Option<&Addr>, flags: i32) -> Result<usize> {
    if flags & msg::OOB != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let _guard = donjon_base::preempt::off();
    let file = get(fd)?;
    let socket = sock(&file)?;
    let nonblocking = file.ctl.nonblocking() || flags & msg::DONTWAIT != 0;
    if let Some(to) = to {
        socket.before_connect(to)?;
    }
    fd::write_all(&file, bufs, nonblocking, |bufs| socket.send(bufs, to, flags))
}

/// `recv`, `recvfrom`, `recvmsg`.
pub fn recv(fd: i32, bufs: &mut [&mut [u8]], flags: i32) -> Result<Received> {
    if flags & msg::OOB != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & msg::ERRQUEUE != 0 {
        return Err(Errno::EAGAIN);
    }
    let _guard = donjon_base::preempt::off();
    let file = get(fd)?;
    let socket = sock(&file)?;
    let nonblocking = file.ctl.nonblocking() || flags & msg::DONTWAIT != 0;
    let mut got = fd::blocking(&file, events::READ, nonblocking, || socket.recv(bufs, flags))?;
    let all = flags & msg::WAITALL != 0 && flags & msg::PEEK == 0 && socket.common().kind == SOCK_STREAM;
    if all && !nonblocking {
        let total: usize = bufs.iter().map(|b| b.len()).sum();
        while got.copied > 0 && got.copied < total {
            let mut skip = got.copied;
            let Some(rest) = bufs.iter_mut().find_map(|b| {
                if skip < b.len() {
                    return Some(&mut b[skip..]);
                }
                skip -= b.len();
                None
            }) else {
                break;
            };
            match fd::blocking(&file, events::READ, false, || socket.recv(&mut [&mut *rest], flags)) {
                Ok(more) if more.copied > 0 => got.copied += more.copied,
                _ => break,
            }
        }
        got.len = got.copied;
    }
    Ok(got)
}

/// `getsockopt`.
pub fn option(fd: i32, level: i32, name: i32) -> Result<Value> {
    let _guard = donjon_base::preempt::off();
    let file = get(fd)?;
    let socket = sock(&file)?;
    if level == SOL_SOCKET {
        if name == so::ERROR {
            return Ok(Value::int(socket.take_error().map_or(0, |e| e.0)));
        }
        if let Some(value) = socket.common().get(name) {
            return Ok(value);
        }
    }
    socket.option(level, name)
}

/// `setsockopt`.
pub fn set_option(fd: i32, level: i32, name: i32, value: &[u8]) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    let file = get(fd)?;
    let socket = sock(&file)?;
    if level == SOL_SOCKET
        && let Some(done) = socket.common().set(name, value)
    {
        return done;
    }
    socket.set_option(level, name, value)
}
