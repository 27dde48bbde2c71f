//! `AF_UNIX`: pairs, and sockets bound to a path in the tmpfs or to an abstract name. Descriptors and credentials are not passed.

use super::option::{SOL_SOCKET, so};
use super::{Addr, Common, How, Received, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM, Socket, Value, addr::AF_UNIX, msg};
use crate::errno::{Errno, Result};
use crate::fd::watch::{Watch, events};
use crate::fd::{self, Anon, Ctl, FileRef, Object};
use crate::fs::{self, Stat, kind};
use crate::global::Global;
use crate::io::ring::Ring;
use crate::sorted::Sorted;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// Bytes that a receiver holds, Linux's default.
const CAPACITY: usize = 212_992;
/// Messages that a receiver holds: empty ones cost something, too.
const MESSAGES_MAX: usize = 4096;
/// Longest backlog, as `somaxconn`.
const BACKLOG_MAX: u32 = 4096;

static ABSTRACT: Global<Sorted<Box<[u8]>, Weak<Half>>> = Global::new(Sorted::new());

struct Unix {
    common: Common,
    me: Rc<Half>,
}

/// One end. Ends know each other weakly; the open file description owns its end, a backlog those that nobody has accepted.
struct Half {
    kind: i32,
    watch: Watch,
    inbound: RefCell<Inbound>,
    name: RefCell<Box<[u8]>>,
    peer: RefCell<Option<Weak<Half>>>,
    read_shut: Cell<bool>,
    write_shut: Cell<bool>,
    closed: Cell<bool>,
    /// The peer closed without reading everything.
    reset: Cell<bool>,
    backlog: RefCell<Option<Backlog>>,
    /// Who waits for room here: datagram senders, connecting sockets.
    waiting: RefCell<Vec<Weak<Half>>>,
}

struct Backlog {
    limit: usize,
    queue: VecDeque<Rc<Half>>,
}

#[derive(Default)]
struct Inbound {
    stream: Ring,
    messages: VecDeque<Message>,
    bytes: usize,
}

struct Message {
    data: Box<[u8]>,
    from: Box<[u8]>,
}

impl Half {
    fn new(kind: i32) -> Rc<Half> {
        Rc::new(Half {
            kind,
            watch: Watch::new(),
            inbound: RefCell::default(),
            name: RefCell::default(),
            peer: RefCell::new(None),
            read_shut: Cell::new(false),
            write_shut: Cell::new(false),
            closed: Cell::new(false),
            reset: Cell::new(false),
            backlog: RefCell::new(None),
            waiting: RefCell::default(),
        })
    }

    fn peer(&self) -> Option<Rc<Half>> {
        self.peer.borrow().as_ref().and_then(Weak::upgrade)
    }

    fn connected(&self) -> bool {
        self.peer.borrow().is_some()
    }

    fn link(a: &Rc<Half>, b: &Rc<Half>) {
        *a.peer.borrow_mut() = Some(Rc::downgrade(b));
        *b.peer.borrow_mut() = Some(Rc::downgrade(a));
    }

    fn held(&self) -> usize {
        let inbound = self.inbound.borrow();
        inbound.stream.len() + inbound.bytes
    }

    /// Whether it takes nothing more until something is received. A message that begins below the limit may go beyond it, as in Linux: then
    /// whoever is told that there is room can send a message of any size.
    fn full(&self) -> bool {
        self.held() >= CAPACITY || self.inbound.borrow().messages.len() >= MESSAGES_MAX
    }

    /// Whether the peer of a connection sends no more.
    fn ended(&self) -> bool {
        self.peer().is_none_or(|p| p.write_shut.get() || p.closed.get())
    }

    fn wake_waiting(&self) {
        let waiting = core::mem::take(&mut *self.waiting.borrow_mut());
        for half in waiting {
            if let Some(half) = half.upgrade() {
                half.watch.notify(events::WRITE);
            }
        }
    }

    fn wait_for_room(&self, who: &Rc<Half>) -> Result<()> {
        let mut waiting = self.waiting.borrow_mut();
        waiting.retain(|w| w.strong_count() > 0);
        let me = Rc::downgrade(who);
        if !waiting.iter().any(|w| w.ptr_eq(&me)) {
            waiting.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            waiting.push(me);
        }
        Ok(())
    }

    fn close(&self) {
        self.closed.set(true);
        let unread = self.held() > 0;
        let backlog = self.backlog.borrow_mut().take();
        for half in backlog.into_iter().flat_map(|b| b.queue) {
            half.close();
            // Whoever was never accepted learns it as an error, not as an end.
            if let Some(client) = half.peer() {
                client.reset.set(true);
            }
        }
        if self.kind != SOCK_DGRAM
            && let Some(peer) = self.peer()
        {
            peer.reset.set(unread);
            peer.watch.notify(events::ALL);
        }
        self.wake_waiting();
    }
}

fn check(kind: i32, protocol: i32) -> Result<()> {
    if !matches!(kind, SOCK_STREAM | SOCK_DGRAM | SOCK_SEQPACKET) {
        return Err(Errno::ESOCKTNOSUPPORT);
    }
    if !matches!(protocol, 0 | AF_UNIX) {
        return Err(Errno::EPROTONOSUPPORT);
    }
    Ok(())
}

fn open(me: Rc<Half>, status: i32) -> Result<FileRef> {
    let common = Common::new(AF_UNIX, me.kind, 0);
    fd::open_file(Unix { common, me }, fd::O_RDWR | status)
}

/// `socket(AF_UNIX)`.
pub fn socket(kind: i32, protocol: i32, status: i32) -> Result<FileRef> {
    check(kind, protocol)?;
    open(Half::new(kind), status)
}

/// `socketpair`.
pub fn pair(kind: i32, protocol: i32, status: i32) -> Result<(FileRef, FileRef)> {
    check(kind, protocol)?;
    let (a, b) = (Half::new(kind), Half::new(kind));
    Half::link(&a, &b);
    Ok((open(a, status)?, open(b, status)?))
}

/// The socket of a name.
fn find(addr: &Addr, kind: i32) -> Result<Rc<Half>> {
    let Addr::Unix(name) = addr else { return Err(Errno::EINVAL) };
    let half = match name.first() {
        None => return Err(Errno::EINVAL),
        Some(0) => ABSTRACT.with(|a| a.get(name).and_then(Weak::upgrade)),
        Some(_) => fs::socket_at(name)?.and_then(|any| any.downcast::<Half>().ok()),
    };
    let half = half.filter(|h| !h.closed.get()).ok_or(Errno::ECONNREFUSED)?;
    if half.kind == kind { Ok(half) } else { Err(Errno::EPROTOTYPE) }
}

impl Unix {
    fn send_message(&self, target: &Rc<Half>, bufs: &[&[u8]]) -> Result<usize> {
        let len = bufs.iter().map(|b| b.len()).sum::<usize>();
        if len > CAPACITY {
            return Err(Errno::EMSGSIZE);
        }
        if target.full() {
            if self.me.kind == SOCK_DGRAM {
                target.wait_for_room(&self.me)?;
            }
            return Err(Errno::EAGAIN);
        }
        fd::headroom()?;
        let mut data = Vec::new();
        data.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
        bufs.iter().for_each(|b| data.extend_from_slice(b));
        let mut inbound = target.inbound.borrow_mut();
        inbound.messages.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        inbound.bytes += len;
        inbound.messages.push_back(Message { data: data.into(), from: self.me.name.borrow().clone() });
        drop(inbound);
        target.watch.notify(events::READ);
        Ok(len)
    }
}

impl Socket for Unix {
    fn common(&self) -> &Common {
        &self.common
    }

    fn bind(&self, addr: &Addr) -> Result<()> {
        let Addr::Unix(name) = addr else { return Err(Errno::EINVAL) };
        if !self.me.name.borrow().is_empty() {
            return Err(Errno::EINVAL);
        }
        let weak = Rc::downgrade(&self.me);
        let name = match name.first() {
            None => autobind(weak)?,
            Some(0) => {
                let free = ABSTRACT.with(|a| {
                    let free = a.get(name).is_none_or(|w| w.strong_count() == 0);
                    if free {
                        a.insert(name.clone(), weak)?;
                    }
                    Ok(free)
                })?;
                if !free {
                    return Err(Errno::EADDRINUSE);
                }
                name.clone()
            }
            Some(_) => {
                fs::bind_socket(name, weak)?;
                name.clone()
            }
        };
        *self.me.name.borrow_mut() = name;
        Ok(())
    }

    fn listen(&self, backlog: u32) -> Result<()> {
        if self.me.kind == SOCK_DGRAM {
            return Err(Errno::EOPNOTSUPP);
        }
        if self.me.name.borrow().is_empty() || self.me.connected() {
            return Err(Errno::EINVAL);
        }
        let limit = backlog.clamp(1, BACKLOG_MAX) as usize;
        match &mut *self.me.backlog.borrow_mut() {
            Some(b) => b.limit = limit,
            none => *none = Some(Backlog { limit, queue: VecDeque::new() }),
        }
        self.common.listening.set(true);
        Ok(())
    }

    fn accept(&self, flags: i32) -> Result<(FileRef, Addr)> {
        let half = match &mut *self.me.backlog.borrow_mut() {
            Some(b) if b.queue.is_empty() => {
                return Err(if self.me.read_shut.get() { Errno::EINVAL } else { Errno::EAGAIN });
            }
            Some(b) => {
                // Where there is no memory for its description, a connection waits in the queue.
                fd::headroom()?;
                b.queue.pop_front().ok_or(Errno::EAGAIN)?
            }
            None => return Err(if self.me.kind == SOCK_DGRAM { Errno::EOPNOTSUPP } else { Errno::EINVAL }),
        };
        self.me.wake_waiting();
        let from = half.peer().map(|p| p.name.borrow().clone()).unwrap_or_default();
        Ok((open(half, flags)?, Addr::Unix(from)))
    }

    fn connect(&self, addr: &Addr) -> Result<()> {
        if self.me.kind == SOCK_DGRAM {
            let peer = match addr {
                Addr::Unspecified => None,
                addr => Some(Rc::downgrade(&find(addr, SOCK_DGRAM)?)),
            };
            *self.me.peer.borrow_mut() = peer;
            return Ok(());
        }
        if self.me.connected() {
            return Err(Errno::EISCONN);
        }
        if self.common.listening.get() {
            return Err(Errno::EINVAL);
        }
        let listener = find(addr, self.me.kind)?;
        fd::headroom()?;
        {
            let mut backlog = listener.backlog.borrow_mut();
            let backlog = backlog.as_mut().filter(|_| !listener.read_shut.get()).ok_or(Errno::ECONNREFUSED)?;
            if backlog.queue.len() >= backlog.limit {
                listener.wait_for_room(&self.me)?;
                return Err(Errno::EAGAIN);
            }
            let server = Half::new(self.me.kind);
            *server.name.borrow_mut() = listener.name.borrow().clone();
            Half::link(&self.me, &server);
            backlog.queue.push_back(server);
        }
        listener.watch.notify(events::READ);
        Ok(())
    }

    fn send(&self, bufs: &[&[u8]], to: Option<&Addr>, _flags: i32) -> Result<usize> {
        if self.me.write_shut.get() {
            return Err(Errno::EPIPE);
        }
        if self.me.kind == SOCK_DGRAM {
            let target = match to {
                Some(addr) => find(addr, SOCK_DGRAM)?,
                None if !self.me.connected() => return Err(Errno::ENOTCONN),
                None => self.me.peer().filter(|p| !p.closed.get()).ok_or(Errno::ECONNREFUSED)?,
            };
            if target.read_shut.get() {
                return Err(Errno::EPIPE);
            }
            return self.send_message(&target, bufs);
        }
        if to.is_some() {
            return Err(if self.me.connected() { Errno::EISCONN } else { Errno::EOPNOTSUPP });
        }
        if !self.me.connected() {
            return Err(Errno::ENOTCONN);
        }
        let peer = self.me.peer().filter(|p| !p.closed.get() && !p.read_shut.get()).ok_or(Errno::EPIPE)?;
        if self.me.kind == SOCK_SEQPACKET {
            return self.send_message(&peer, bufs);
        }
        if bufs.iter().all(|b| b.is_empty()) {
            return Ok(0);
        }
        let mut inbound = peer.inbound.borrow_mut();
        let room = CAPACITY - inbound.stream.len();
        if room == 0 {
            return Err(Errno::EAGAIN);
        }
        let n = inbound.stream.write(bufs, room)?;
        drop(inbound);
        peer.watch.notify(events::READ);
        Ok(n)
    }

    fn recv(&self, bufs: &mut [&mut [u8]], flags: i32) -> Result<Received> {
        let peek = flags & msg::PEEK != 0;
        let me = &self.me;
        if me.kind != SOCK_DGRAM && !me.connected() {
            return Err(if me.kind == SOCK_STREAM { Errno::EINVAL } else { Errno::ENOTCONN });
        }
        let mut inbound = me.inbound.borrow_mut();
        if me.kind == SOCK_STREAM {
            let n = inbound.stream.read(bufs, peek);
            drop(inbound);
            if n > 0 {
                if !peek && let Some(peer) = me.peer() {
                    peer.watch.notify(events::WRITE);
                }
                return Ok(Received { copied: n, len: n, from: None });
            }
            if bufs.iter().all(|b| b.is_empty()) {
                return Ok(Received::default());
            }
        } else if let Some(message) = inbound.messages.front() {
            let mut rest = &message.data[..];
            let mut copied = 0;
            for buf in bufs {
                let n = rest.len().min(buf.len());
                buf[..n].copy_from_slice(&rest[..n]);
                rest = &rest[n..];
                copied += n;
            }
            let len = message.data.len();
            let from = (me.kind == SOCK_DGRAM).then(|| Addr::Unix(message.from.clone()));
            if !peek {
                inbound.messages.pop_front();
                inbound.bytes -= len;
                drop(inbound);
                if me.kind == SOCK_DGRAM {
                    me.wake_waiting();
                } else if let Some(peer) = me.peer() {
                    peer.watch.notify(events::WRITE);
                }
            }
            return Ok(Received { copied, len, from });
        } else {
            drop(inbound);
        }
        if me.reset.take() {
            return Err(Errno::ECONNRESET);
        }
        if me.read_shut.get() || (me.kind != SOCK_DGRAM && me.ended()) {
            return Ok(Received::default());
        }
        Err(Errno::EAGAIN)
    }

    fn shutdown(&self, how: How) -> Result<()> {
        if !self.me.connected() && !self.common.listening.get() {
            return Err(Errno::ENOTCONN);
        }
        if how != How::Write {
            self.me.read_shut.set(true);
            // Whoever waits for room learns that it is of no use.
            self.me.wake_waiting();
        }
        if how != How::Read {
            self.me.write_shut.set(true);
        }
        if self.me.kind != SOCK_DGRAM
            && let Some(peer) = self.me.peer()
        {
            peer.watch.notify(events::ALL);
        }
        self.me.watch.notify(events::ALL);
        Ok(())
    }

    fn local(&self) -> Result<Addr> {
        Ok(Addr::Unix(self.me.name.borrow().clone()))
    }

    fn peer(&self) -> Result<Addr> {
        if !self.me.connected() {
            return Err(Errno::ENOTCONN);
        }
        let peer = self.me.peer();
        if self.me.kind == SOCK_DGRAM && peer.is_none() {
            return Err(Errno::ENOTCONN);
        }
        Ok(Addr::Unix(peer.map(|p| p.name.borrow().clone()).unwrap_or_default()))
    }

    fn take_error(&self) -> Option<Errno> {
        self.me.reset.take().then_some(Errno::ECONNRESET)
    }

    fn option(&self, level: i32, name: i32) -> Result<Value> {
        match (level, name) {
            (SOL_SOCKET, so::PEERCRED) => {
                // struct ucred: there is one process, 1, and one user.
                let (pid, id) = if self.me.connected() { (1i32, fs::USER) } else { (0, u32::MAX) };
                let mut bytes = [0; 12];
                bytes[..4].copy_from_slice(&pid.to_ne_bytes());
                bytes[4..8].copy_from_slice(&id.to_ne_bytes());
                bytes[8..].copy_from_slice(&id.to_ne_bytes());
                Ok(Value::new(&bytes))
            }
            (SOL_SOCKET, so::SNDBUF | so::RCVBUF) => Ok(Value::int(CAPACITY as i32)),
            (SOL_SOCKET, so::PASSCRED | so::KEEPALIVE | so::OOBINLINE) => Ok(Value::int(0)),
            (SOL_SOCKET, _) => Err(Errno::ENOPROTOOPT),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn set_option(&self, level: i32, _name: i32, _value: &[u8]) -> Result<()> {
        Err(if level == SOL_SOCKET { Errno::ENOPROTOOPT } else { Errno::EOPNOTSUPP })
    }
}

/// A fresh abstract name: five hexadecimal digits, as unix(7) says.
fn autobind(weak: Weak<Half>) -> Result<Box<[u8]>> {
    static NEXT: Global<u32> = Global::new(0);
    loop {
        let number = NEXT.with(|n| {
            *n = (*n + 1) & 0xf_ffff;
            *n
        });
        let mut name = *b"\0\0\0\0\0\0";
        for (i, byte) in name[1..].iter_mut().enumerate() {
            *byte = b"0123456789abcdef"[(number >> (16 - 4 * i)) as usize & 0xf];
        }
        let free = ABSTRACT.with(|a| {
            let free = a.get(&name[..]).is_none_or(|w| w.strong_count() == 0);
            if free {
                a.insert(name.into(), weak.clone())?;
            }
            Ok(free)
        })?;
        if free {
            return Ok(name.into());
        }
    }
}

impl Object for Unix {
    fn read(&self, _ctl: &Ctl, bufs: &mut [&mut [u8]]) -> Result<usize> {
        Ok(self.recv(bufs, 0)?.copied)
    }

    fn write(&self, _ctl: &Ctl, bufs: &[&[u8]]) -> Result<usize> {
        self.send(bufs, None, 0)
    }

    fn ready(&self) -> u32 {
        let me = &self.me;
        if let Some(backlog) = &*me.backlog.borrow() {
            return match (me.read_shut.get(), me.write_shut.get()) {
                (true, true) => events::READ | events::RDHUP | events::HUP,
                (true, false) => events::READ | events::RDHUP,
                _ if backlog.queue.is_empty() => 0,
                _ => events::READ,
            };
        }
        let mut bits = 0;
        let waiting = {
            let inbound = me.inbound.borrow();
            !inbound.stream.is_empty() || !inbound.messages.is_empty()
        };
        if waiting || me.read_shut.get() {
            bits |= events::READ;
        }
        if me.kind == SOCK_DGRAM {
            // Who finds no room is told when there is some; if there is no memory to note that, trying says so.
            let waits = |p: Rc<Half>| p.full() && !p.closed.get() && !p.read_shut.get() && p.wait_for_room(me).is_ok();
            if !me.peer().is_some_and(waits) {
                bits |= events::WRITE;
            }
            return bits;
        }
        if !me.connected() {
            return bits | events::WRITE | events::HUP;
        }
        let peer = me.peer().filter(|p| !p.closed.get());
        if me.ended() || me.read_shut.get() {
            bits |= events::READ | events::RDHUP;
        }
        match peer {
            None => bits |= events::WRITE | events::HUP,
            Some(peer) => {
                if !peer.full() || peer.read_shut.get() {
                    bits |= events::WRITE;
                }
                if me.write_shut.get() && (peer.write_shut.get() || me.read_shut.get()) {
                    bits |= events::HUP;
                }
            }
        }
        if me.reset.get() {
            bits |= events::ERR;
        }
        bits
    }

    fn watch(&self) -> Option<&Watch> {
        Some(&self.me.watch)
    }

    fn stat(&self) -> Stat {
        Stat { mode: kind::SOCKET | 0o777, ..Anon::stat() }
    }

    fn as_any(&self) -> &dyn core::any::Any {
        self
    }

    fn available(&self) -> Result<usize> {
        if self.common.listening.get() {
            return Err(Errno::EINVAL);
        }
        let inbound = self.me.inbound.borrow();
        Ok(match self.me.kind {
            SOCK_STREAM => inbound.stream.len(),
            _ => inbound.messages.front().map_or(0, |m| m.data.len()),
        })
    }

    fn socket(&self) -> Option<&dyn Socket> {
        Some(self)
    }

    fn timeout(&self, reading: bool) -> Option<u64> {
        if reading { self.common.receive_timeout.get() } else { self.common.send_timeout.get() }
    }
}

impl Drop for Unix {
    fn drop(&mut self) {
        self.me.close();
        let name = core::mem::take(&mut *self.me.name.borrow_mut());
        if name.first() == Some(&0) {
            let me = Rc::downgrade(&self.me);
            ABSTRACT.with(|a| {
                if a.get(&name).is_some_and(|w| w.ptr_eq(&me)) {
                    a.remove(&name);
                }
            });
        }
    }
}
