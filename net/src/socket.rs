//! What all kinds of sockets have in common: slots, binding, addresses, closing.

use crate::addr::{End, Ip};
use crate::ports::{self, EPHEMERAL, EPHEMERAL_COUNT, overlap};
use crate::stack::Stack;
use crate::tcp::conn::{Bound, Conn, is};
use crate::tcp::listen::Listener;
use crate::types::{BindOptions, Domain, IpOptions, Ready, TcpOptions, TcpState};
use crate::udp::Udp;
use crate::{Error, Handle};
use alloc::boxed::Box;
use core::net::SocketAddr;

/// A slot's content.
pub(crate) struct Sock {
    pub kind: Kind,
    /// Events not yet taken; if any, the slot is in the event queue.
    pub events: Ready,
    /// The slot is in a ready queue.
    pub queued: bool,
    /// The handle was given up.
    pub orphan: bool,
}

pub(crate) enum Kind {
    /// A TCP socket that is neither connected nor listening yet.
    Fresh(Box<Fresh>),
    Tcp(Box<Conn>),
    Listener(Box<Listener>),
    Udp(Box<Udp>),
}

pub(crate) struct Fresh {
    pub domain: Domain,
    pub local: End,
    pub bound: bool,
    pub reuse: bool,
    pub reuse_port: bool,
    pub v6_only: bool,
    pub options: TcpOptions,
    pub ip: IpOptions,
    pub error: Option<Error>,
}

impl Fresh {
    pub fn new(domain: Domain, options: TcpOptions) -> Fresh {
        let ip = IpOptions::default();
        let (local, bound, reuse, reuse_port, v6_only) = (End::NONE, false, false, false, false);
        Fresh { domain, local, bound, reuse, reuse_port, v6_only, options, ip, error: None }
    }
}

impl Stack {
    pub(crate) fn new_socket(&mut self, kind: Kind) -> Result<Handle, Error> {
        let sock = Sock { kind, events: Ready(0), queued: false, orphan: false };
        let (slot, generation) = self.sockets.insert(sock).ok_or(Error::NoBuffers)?;
        Ok(Handle { slot, generation })
    }

    pub(crate) fn kind(&self, handle: Handle) -> Result<&Kind, Error> {
        if !self.sockets.is(handle.slot, handle.generation) {
            return Err(Error::BadHandle);
        }
        self.sockets.get(handle.slot).filter(|s| !s.orphan).map(|s| &s.kind).ok_or(Error::BadHandle)
    }

    pub(crate) fn kind_mut(&mut self, handle: Handle) -> Result<&mut Kind, Error> {
        if !self.sockets.is(handle.slot, handle.generation) {
            return Err(Error::BadHandle);
        }
        self.sockets.get_mut(handle.slot).filter(|s| !s.orphan).map(|s| &mut s.kind).ok_or(Error::BadHandle)
    }

    /// Whether a socket of that domain can use that address; and the address as it is used.
    fn check_domain(domain: Domain, v6_only: bool, mut end: End) -> Result<End, Error> {
        match domain {
            Domain::V4 if end.ip == Ip::ANY => end.ip = Ip::ANY4,
            Domain::V4 if !end.ip.is_v4() => return Err(Error::AddressFamily),
            Domain::V6 if v6_only && end.ip.is_v4() => return Err(Error::AddressFamily),
            _ => {}
        }
        Ok(end)
    }

    /// Binds a TCP or UDP socket. Port 0 picks a random free one from 32768 to 60999.
    pub fn bind(&mut self, handle: Handle, local: SocketAddr, options: BindOptions) -> Result<(), Error> {
        let (protocol, domain, bound) = match self.kind(handle)? {
            Kind::Fresh(f) => (ports::TCP, f.domain, f.bound),
            Kind::Udp(u) => (ports::UDP, u.domain, u.bound),
            _ => return Err(Error::Invalid),
        };
        if bound {
            return Err(Error::Invalid);
        }
        let v6_only = options.v6_only && domain == Domain::V6;
        let mut local = Self::check_domain(domain, v6_only, local.into())?;
        if !self.may_bind(local) || (protocol == ports::TCP && local.ip.is_multicast()) {
            return Err(Error::AddressNotAvailable);
        }
        if local.port == 0 {
            local.port = self.free_port(protocol).ok_or(Error::AddressInUse)?;
        } else if !self.port_available(protocol, local, BindOptions { v6_only, ..options }) {
            return Err(Error::AddressInUse);
        }
        if !self.ports.bind(protocol, local.port, handle.slot) {
            return Err(Error::NoMemory);
        }
        match self.kind_mut(handle)? {
            Kind::Fresh(f) => {
                (f.local, f.bound, f.v6_only) = (local, true, v6_only);
                (f.reuse, f.reuse_port) = (options.reuse_addr, options.reuse_port);
            }
            Kind::Udp(u) => {
                (u.local, u.bound, u.v6_only) = (local, true, v6_only);
                (u.reuse, u.reuse_port) = (options.reuse_addr, options.reuse_port);
            }
            _ => {}
        }
        Ok(())
    }

    /// Binds to a random port if it is not bound yet.
    pub(crate) fn bind_if_needed(&mut self, handle: Handle) -> Result<(), Error> {
        let (bound, domain, v6_only) = match self.kind(handle)? {
            Kind::Fresh(f) => (f.bound, f.domain, f.v6_only),
            Kind::Udp(u) => (u.bound, u.domain, u.v6_only),
            _ => (true, Domain::V4, false),
        };
        if bound {
            return Ok(());
        }
        let ip = if domain == Domain::V4 { Ip::ANY4 } else { Ip::ANY };
        self.bind(handle, End::new(ip, 0).into(), BindOptions { v6_only, ..BindOptions::default() })
    }

    fn port_available(&self, protocol: u8, local: End, options: BindOptions) -> bool {
        let BindOptions { reuse_addr, reuse_port, v6_only } = options;
        let Some(port) = self.ports.get(protocol, local.port) else { return true };
        if port.in_use() && !reuse_addr && !reuse_port {
            return false;
        }
        port.binders.iter().all(|&slot| {
            let (other, other6, other_reuse, other_port) = match self.sockets.get(slot).map(|s| &s.kind) {
                Some(Kind::Fresh(f)) => (f.local, f.v6_only, f.reuse, f.reuse_port),
                Some(Kind::Listener(l)) => (l.local, l.v6_only, false, l.reuse_port),
                Some(Kind::Udp(u)) => (u.local, u.v6_only, u.reuse, u.reuse_port),
                _ => return true,
            };
            (reuse_addr && other_reuse) || (reuse_port && other_port) || !overlap(local.ip, v6_only, other.ip, other6)
        })
    }

    /// A random port that nobody has.
    pub(crate) fn free_port(&mut self, protocol: u8) -> Option<u16> {
        let start = (self.random.next() % u64::from(EPHEMERAL_COUNT)) as u16;
        (0..EPHEMERAL_COUNT)
            .map(|i| EPHEMERAL + ((u32::from(start) + u32::from(i)) % u32::from(EPHEMERAL_COUNT)) as u16)
            .find(|&p| self.ports.get(protocol, p).is_none())
    }

    /// TCP: starts to connect; CONNECTED or ERROR follows as an event. UDP: sets the peer (datagrams of others are dropped). Binds if necessary.
    pub fn connect(&mut self, handle: Handle, remote: SocketAddr) -> Result<(), Error> {
        let (domain, v6_only) = match self.kind(handle)? {
            Kind::Fresh(f) => (f.domain, f.v6_only),
            Kind::Udp(u) => (u.domain, u.v6_only),
            Kind::Tcp(c) if c.state == TcpState::Closed => {
                // An attempt that failed, or a connection that is over: the socket may try again.
                let domain = if c.has(is::V6) { Domain::V6 } else { Domain::V4 };
                let mut fresh = Fresh::new(domain, c.options());
                fresh.ip = c.ip;
                let (local, bound, charged) = (c.tuple.local, c.bound, c.charged);
                if let Some(e) = c.error {
                    self.take_error(handle);
                    return Err(e);
                }
                // It is still bound to what it was bound to, if nobody has taken the port meanwhile.
                (fresh.reuse, fresh.reuse_port) = (bound.has(Bound::REUSE), bound.has(Bound::REUSE_PORT));
                fresh.v6_only = bound.has(Bound::V6_ONLY);
                if bound.has(Bound::ADDRESS) {
                    fresh.local.ip = local.ip;
                } else if domain == Domain::V4 {
                    fresh.local.ip = Ip::ANY4;
                }
                if bound.has(Bound::PORT) {
                    fresh.local.port = local.port;
                    let Fresh { reuse: reuse_addr, reuse_port, v6_only, .. } = fresh;
                    if !self.port_available(ports::TCP, fresh.local, BindOptions { reuse_addr, reuse_port, v6_only }) {
                        return Err(Error::AddressInUse);
                    }
                    fresh.bound = self.ports.bind(ports::TCP, local.port, handle.slot);
                }
                let v6_only = fresh.v6_only;
                self.memory = self.memory.saturating_sub(charged as usize);
                *self.kind_mut(handle)? = Kind::Fresh(Box::new(fresh));
                (domain, v6_only)
            }
            Kind::Tcp(c) => return Err(if c.synchronized() { Error::IsConnected } else { Error::Already }),
            Kind::Listener(_) => return Err(Error::Invalid),
        };
        let mut remote = Self::check_domain(domain, v6_only, remote.into())?;
        if remote.ip.is_unspecified() {
            // As Linux: the wildcard as a destination is this host.
            let v6 = remote.ip == Ip::ANY;
            remote.ip = if v6 { crate::config::LOCALHOST6.into() } else { crate::config::LOCALHOST4.into() };
        }
        if matches!(self.kind(handle)?, Kind::Udp(_)) {
            self.udp_connect(handle, remote)
        } else {
            self.tcp_connect(handle, remote)
        }
    }

    /// The local address; unspecified and port 0 before `bind`.
    pub fn local_addr(&self, handle: Handle) -> Result<SocketAddr, Error> {
        Ok(match self.kind(handle)? {
            Kind::Fresh(f) => wildcard(f.local, f.domain),
            Kind::Tcp(c) => c.tuple.local,
            Kind::Listener(l) => l.local,
            Kind::Udp(u) => wildcard(u.local, u.domain),
        }
        .into())
    }

    /// The peer; NotConnected if there is none.
    pub fn peer_addr(&self, handle: Handle) -> Result<SocketAddr, Error> {
        match self.kind(handle)? {
            Kind::Tcp(c) if c.synchronized() || c.state == TcpState::SynReceived => Ok(c.tuple.remote.into()),
            Kind::Udp(u) => u.remote.map(SocketAddr::from).ok_or(Error::NotConnected),
            _ => Err(Error::NotConnected),
        }
    }

    /// Takes the pending error (SO_ERROR). Calls that fail with it take it as well.
    pub fn take_error(&mut self, handle: Handle) -> Option<Error> {
        match self.kind_mut(handle).ok()? {
            Kind::Fresh(f) => f.error.take(),
            Kind::Tcp(c) => c.error.take(),
            Kind::Listener(_) => None,
            Kind::Udp(u) => u.error.take(),
        }
    }

    /// What the socket's IP headers say.
    pub fn ip_options(&self, handle: Handle) -> Result<IpOptions, Error> {
        Ok(match self.kind(handle)? {
            Kind::Fresh(f) => f.ip,
            Kind::Tcp(c) => c.ip,
            Kind::Listener(l) => l.ip,
            Kind::Udp(u) => u.ip,
        })
    }

    /// Sets what the socket's IP headers say.
    pub fn set_ip_options(&mut self, handle: Handle, mut options: IpOptions) -> Result<(), Error> {
        if options.hop_limit == 0 {
            return Err(Error::Invalid);
        }
        if !matches!(self.kind(handle)?, Kind::Udp(_)) {
            options.tos &= !3;
        }
        match self.kind_mut(handle)? {
            Kind::Fresh(f) => f.ip = options,
            Kind::Tcp(c) => c.ip = options,
            Kind::Listener(l) => l.ip = options,
            Kind::Udp(u) => u.ip = options,
        }
        Ok(())
    }

    /// Gives the handle up. A connection sends what is queued and FIN and finishes in the background; with data unread it
    /// sends RST, as Linux does. A listener resets what was not accepted.
    pub fn close(&mut self, handle: Handle) {
        match self.kind(handle) {
            Ok(Kind::Tcp(_)) => self.tcp_close(handle.slot),
            Ok(_) => self.remove_socket(handle.slot),
            Err(_) => {}
        }
    }

    /// Closes all connections, as [`Stack::close`] does: the program has ended. What nobody has accepted is reset first.
    pub fn close_all(&mut self) {
        for slot in 0..self.sockets.slots() {
            if matches!(self.sockets.get(slot), Some(Sock { kind: Kind::Listener(_), .. })) {
                self.remove_socket(slot);
            }
        }
        for slot in 0..self.sockets.slots() {
            if matches!(self.sockets.get(slot), Some(Sock { kind: Kind::Tcp(_), orphan: false, .. })) {
                self.tcp_close(slot);
            }
        }
    }

    /// Whether a connection has something left that was never sent.
    pub fn any_unsent(&self) -> bool {
        (0..self.sockets.slots()).any(|slot| self.is_unsent(slot))
    }

    /// Resets the connections, also those that were closed before, that have something left that was never sent: nobody will send it any more, and
    /// the peer must neither wait for the rest nor take what it has for all.
    pub fn reset_unsent(&mut self) {
        for slot in 0..self.sockets.slots() {
            if self.is_unsent(slot) {
                self.tcp_abort(slot);
            }
        }
    }

    fn is_unsent(&self, slot: u32) -> bool {
        matches!(self.sockets.get(slot), Some(Sock { kind: Kind::Tcp(c), .. }) if c.has_new())
    }

    /// Gives the handle up at once; a connection sends RST (SO_LINGER with 0).
    pub fn abort(&mut self, handle: Handle) {
        match self.kind(handle) {
            Ok(Kind::Tcp(_)) => self.tcp_abort(handle.slot),
            Ok(_) => self.remove_socket(handle.slot),
            Err(_) => {}
        }
    }

    /// Frees a slot and all that belongs to it. Connections leave the demultiplexer first; see `tcp_glue`.
    pub(crate) fn remove_socket(&mut self, slot: u32) {
        let Some(sock) = self.sockets.remove(slot) else { return };
        match sock.kind {
            Kind::Fresh(f) if f.bound => self.ports.unbind(ports::TCP, f.local.port, slot),
            Kind::Fresh(_) => {}
            Kind::Tcp(c) => {
                self.timers.cancel(slot);
                self.memory = self.memory.saturating_sub(c.charged as usize);
                if sock.orphan {
                    self.orphans = self.orphans.saturating_sub(1);
                }
            }
            Kind::Listener(l) => {
                if l.any {
                    self.any_listener = None;
                } else {
                    self.ports.unbind(ports::TCP, l.local.port, slot);
                }
                self.close_listener(*l);
            }
            Kind::Udp(u) => {
                self.memory = self.memory.saturating_sub(u.held());
                if self.any_udp == Some(slot) {
                    self.any_udp = None;
                }
                if u.bound {
                    self.ports.unbind(ports::UDP, u.local.port, slot);
                }
            }
        }
    }
}

/// The unspecified address in the socket's family.
fn wildcard(end: End, domain: Domain) -> End {
    if domain == Domain::V4 && end.ip == Ip::ANY { End::new(Ip::ANY4, end.port) } else { end }
}
