//! The calls of TCP sockets.

use crate::addr::{End, Tuple};
use crate::egress::Control;
use crate::ports::{self, EPHEMERAL, EPHEMERAL_COUNT};
use crate::socket::{Fresh, Kind, Sock};
use crate::stack::{Stack, cx};
use crate::tcp::conn::{Bound, Conn, is};
use crate::tcp::listen::{BACKLOG_MAX, Listener};
use crate::tcp::{NEVER, ORPHAN_TIME, flag};
use crate::tcp_glue::charge;
use crate::types::*;
use crate::{Error, Handle, Pending};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::net::SocketAddr;

/// TCP.
impl Stack {
    /// A new TCP socket.
    pub fn tcp_socket(&mut self, domain: Domain) -> Result<Handle, Error> {
        self.new_socket(Kind::Fresh(Box::new(Fresh::new(domain, TcpOptions::default()))))
    }

    /// Makes a bound socket (an unbound one gets a port) a listener, or changes a listener's backlog. The accept queue holds `backlog` connections (1 to 4096).
    pub fn listen(&mut self, handle: Handle, backlog: u32) -> Result<(), Error> {
        let backlog = backlog.clamp(1, BACKLOG_MAX);
        match self.kind_mut(handle)? {
            Kind::Listener(l) => {
                l.backlog = backlog;
                return Ok(());
            }
            Kind::Fresh(_) => {}
            Kind::Tcp(_) => return Err(Error::Invalid),
            Kind::Udp(_) => return Err(Error::NotSupported),
        }
        self.bind_if_needed(handle)?;
        let Kind::Fresh(f) = self.kind(handle)? else { return Err(Error::Invalid) };
        // Two sockets may be bound alike with SO_REUSEADDR, but only with SO_REUSEPORT may both listen.
        let clash = self.ports.binders(ports::TCP, f.local.port).iter().any(|&s| {
            matches!(self.sockets.get(s), Some(Sock { kind: Kind::Listener(l), .. })
                if !(l.reuse_port && f.reuse_port) && ports::overlap(l.local.ip, l.v6_only, f.local.ip, f.v6_only))
        });
        if clash {
            return Err(Error::AddressInUse);
        }
        let listener = Listener {
            local: f.local,
            v6_only: f.v6_only,
            reuse_port: f.reuse_port,
            any: false,
            backlog,
            half: 0,
            claims: 0,
            doubt: 0,
            ready: VecDeque::new(),
            pending: VecDeque::new(),
            options: f.options,
            ip: f.ip,
        };
        *self.kind_mut(handle)? = Kind::Listener(Box::new(listener));
        Ok(())
    }

    /// Takes an established connection, which lets a SYN that waited for room be answered. What the connection is ready for already makes no event
    /// any more: look at its readiness.
    pub fn accept(&mut self, handle: Handle) -> Result<(Handle, SocketAddr), Error> {
        loop {
            let Kind::Listener(l) = self.kind_mut(handle)? else { return Err(Error::Invalid) };
            let (slot, generation) = l.ready.pop_front().ok_or(Error::WouldBlock)?;
            if self.sockets.is(slot, generation)
                && let Some(Sock { kind: Kind::Tcp(c), .. }) = self.sockets.get_mut(slot)
            {
                c.flags &= !is::UNACCEPTED;
                let accepted = (Handle { slot, generation }, c.tuple.remote.into());
                self.unpark(handle.slot);
                return Ok(accepted);
            }
        }
    }

    /// Only with [`crate::Config::any_ip`]: a listener for every address and port that no other listener has. Its SYNs wait in a queue of
    /// `backlog` entries for [`Stack::complete`] or [`Stack::refuse`]; see [`Stack::next_pending`].
    pub fn listen_any(&mut self, backlog: u32) -> Result<Handle, Error> {
        if !self.config.any_ip {
            return Err(Error::NotSupported);
        }
        if self.any_listener.is_some() {
            return Err(Error::AddressInUse);
        }
        let listener = Listener {
            local: End::NONE,
            v6_only: false,
            reuse_port: false,
            any: true,
            backlog: backlog.clamp(1, BACKLOG_MAX),
            half: 0,
            claims: 0,
            doubt: 0,
            ready: VecDeque::new(),
            pending: VecDeque::new(),
            options: TcpOptions::default(),
            ip: IpOptions::default(),
        };
        let handle = self.new_socket(Kind::Listener(Box::new(listener)))?;
        self.any_listener = Some(handle.slot);
        Ok(handle)
    }

    /// The next connection attempt at an "any" listener: its name, where it wants to go, and who asks. WouldBlock if there is none.
    pub fn next_pending(&mut self, handle: Handle) -> Result<(Pending, SocketAddr, SocketAddr), Error> {
        loop {
            let Kind::Listener(l) = self.kind_mut(handle)? else { return Err(Error::Invalid) };
            let (slot, generation) = l.pending.pop_front().ok_or(Error::WouldBlock)?;
            if self.half.slab.is(slot, generation)
                && let Some(h) = self.half.slab.get(slot)
            {
                return Ok((Pending { slot, generation }, h.tuple.local.into(), h.tuple.remote.into()));
            }
        }
    }

    /// Whether that connection attempt still waits for a decision: its peer may have given up.
    pub fn is_pending(&self, pending: Pending) -> bool {
        self.half.slab.is(pending.slot, pending.generation)
    }

    /// Goes on with a connection attempt: SYN-ACK goes out. The handle may be used at once; CONNECTED follows as an event.
    /// `local_addr` is where the peer wanted to go. BadHandle if the peer has given up meanwhile.
    pub fn complete(&mut self, pending: Pending) -> Result<Handle, Error> {
        if !self.half.slab.is(pending.slot, pending.generation) {
            return Err(Error::BadHandle);
        }
        let options = match self.any_listener.and_then(|s| self.sockets.get(s)) {
            Some(Sock { kind: Kind::Listener(l), .. }) => l.options,
            _ => TcpOptions::default(),
        };
        let handle = self.promote(pending.slot, &options, IpOptions::default(), 0)?;
        if let Some(Sock { kind: Kind::Tcp(c), .. }) = self.sockets.get_mut(handle.slot) {
            (c.snd_nxt, c.snd_max) = (c.iss, c.iss);
        }
        self.settle(handle.slot);
        Ok(handle)
    }

    /// Answers a connection attempt with RST.
    pub fn refuse(&mut self, pending: Pending) {
        if self.half.slab.is(pending.slot, pending.generation) {
            self.refuse_half(pending.slot);
        }
    }

    pub(crate) fn tcp_connect(&mut self, handle: Handle, remote: End) -> Result<(), Error> {
        let Kind::Fresh(f) = self.kind(handle)? else { return Err(Error::Invalid) };
        let (mut local, bound, options, domain, ip) = (f.local, f.bound, f.options, f.domain, f.ip);
        let bit = |on, bit| if on { bit } else { 0 };
        let remains = bit(bound, Bound::PORT)
            | bit(!local.ip.is_unspecified(), Bound::ADDRESS)
            | bit(f.reuse, Bound::REUSE)
            | bit(f.reuse_port, Bound::REUSE_PORT)
            | bit(f.v6_only, Bound::V6_ONLY);
        if remote.port == 0 || remote.ip.is_multicast() || self.iface.is_broadcast(remote.ip) {
            return Err(Error::NetworkUnreachable);
        }
        if local.ip.is_unspecified() {
            local.ip = self.source(remote.ip)?;
        } else if local.ip.is_v4() != remote.ip.is_v4() {
            return Err(Error::NetworkUnreachable);
        }
        if self.memory_free() < size_of::<Conn>() {
            return Err(Error::NoMemory);
        }
        let mut tuple = Tuple { local, remote };
        if bound {
            let hash = self.tuple_hash(&tuple);
            if self.lookup(hash, &tuple).is_some() {
                return Err(Error::AddressNotAvailable);
            }
        } else {
            tuple.local.port = self.free_tuple_port(tuple).ok_or(Error::AddressNotAvailable)?;
        }
        let hash = self.tuple_hash(&tuple);
        let (iss, offset) = (self.isn(&tuple), self.ts_offset(&tuple));
        let mut c = Conn::new(tuple, hash, iss, offset, &options, &self.config.limits, self.now);
        if self.iface.is_local(remote.ip) {
            c.flags |= is::LOCAL;
        }
        c.ip = ip;
        c.bound = Bound(remains);
        if domain == Domain::V6 {
            c.flags |= is::V6;
        }
        let old = core::mem::replace(self.kind_mut(handle)?, Kind::Tcp(Box::new(c)));
        if !self.hash_in(handle.slot) {
            *self.kind_mut(handle)? = old;
            return Err(Error::NoMemory);
        }
        if bound {
            self.ports.unbind(ports::TCP, tuple.local.port, handle.slot);
        }
        self.settle(handle.slot);
        Ok(())
    }

    /// A random port that makes the tuple unique and that nobody is bound to.
    fn free_tuple_port(&mut self, mut tuple: Tuple) -> Option<u16> {
        let start = (self.random.next() % u64::from(EPHEMERAL_COUNT)) as u32;
        for i in 0..u32::from(EPHEMERAL_COUNT) {
            let port = EPHEMERAL + ((start + i) % u32::from(EPHEMERAL_COUNT)) as u16;
            if port == tuple.remote.port && tuple.local.ip == tuple.remote.ip {
                // We would be connected to ourselves.
                continue;
            }
            match self.ports.get(ports::TCP, port) {
                None => return Some(port),
                Some(p) if !p.binders.is_empty() => {}
                Some(_) => {
                    tuple.local.port = port;
                    let hash = self.tuple_hash(&tuple);
                    if self.lookup(hash, &tuple).is_none() {
                        return Some(port);
                    }
                }
            }
        }
        None
    }

    /// Queues the pieces, as far as there is room; returns how many bytes. WouldBlock if there is no room at all.
    /// BrokenPipe after a shutdown or a received RST (the caller raises SIGPIPE where it wants to).
    pub fn send(&mut self, handle: Handle, pieces: &[&[u8]]) -> Result<usize, Error> {
        self.send_pieces(handle, pieces, false)
    }

    /// The same, when more follows at once (MSG_MORE): a last segment that is not full waits for it, at most 200 ms after all before it is
    /// acknowledged.
    pub fn send_more(&mut self, handle: Handle, pieces: &[&[u8]]) -> Result<usize, Error> {
        self.send_pieces(handle, pieces, true)
    }

    fn send_pieces(&mut self, handle: Handle, pieces: &[&[u8]], more: bool) -> Result<usize, Error> {
        match self.kind(handle)? {
            Kind::Tcp(_) => {}
            Kind::Fresh(_) | Kind::Listener(_) => return Err(Error::NotConnected),
            Kind::Udp(_) => return self.send_to(handle, pieces, None, None),
        }
        let cx = cx!(self);
        let Some(Sock { kind: Kind::Tcp(c), .. }) = self.sockets.get_mut(handle.slot) else {
            return Err(Error::BadHandle);
        };
        let result = c.send(&cx, pieces, more);
        if result.is_ok() {
            self.settle(handle.slot);
        }
        result
    }

    /// Fills the buffers in order; returns how many bytes. 0 is the end of the stream (or empty buffers). WouldBlock if there is nothing.
    pub fn recv(&mut self, handle: Handle, buffers: &mut [&mut [u8]], mode: RecvMode) -> Result<usize, Error> {
        match self.kind(handle)? {
            Kind::Tcp(_) => {}
            Kind::Fresh(_) | Kind::Listener(_) => return Err(Error::NotConnected),
            Kind::Udp(_) => return self.recv_from(handle, buffers, mode).map(|d| d.copied),
        }
        let cx = cx!(self);
        let Some(Sock { kind: Kind::Tcp(c), .. }) = self.sockets.get_mut(handle.slot) else {
            return Err(Error::BadHandle);
        };
        let n = c.recv(buffers, mode)?;
        if mode == RecvMode::Take && n > 0 {
            let update = c.after_recv(&cx);
            charge(&mut self.memory, c);
            if update {
                self.mark_ready(handle.slot);
            }
        }
        Ok(n)
    }

    /// Shuts down. NotConnected before a connection exists; one that is being made ends with ConnectionReset. On a listener, `Read` or `Both` ends the listening.
    pub fn shutdown(&mut self, handle: Handle, how: Shutdown) -> Result<(), Error> {
        match self.kind_mut(handle)? {
            Kind::Tcp(c) => {
                if c.state == TcpState::Closed {
                    return Err(Error::NotConnected);
                }
                if c.state == TcpState::SynSent {
                    // Ends the attempt, whatever is shut down, as on Linux.
                    c.die(Some(Error::ConnectionReset));
                    self.settle(handle.slot);
                    return Ok(());
                }
                if how != Shutdown::Write {
                    c.shut_read();
                }
                if how != Shutdown::Read {
                    c.shut_write();
                }
                self.settle(handle.slot);
                Ok(())
            }
            Kind::Listener(l) if how != Shutdown::Write && !l.any => {
                let (ready, local, v6_only, reuse_port, options, ip) =
                    (core::mem::take(&mut l.ready), l.local, l.v6_only, l.reuse_port, l.options, l.ip);
                let domain = if local.ip.is_v4() { Domain::V4 } else { Domain::V6 };
                for (slot, generation) in ready {
                    if self.sockets.is(slot, generation) {
                        self.tcp_abort(slot);
                    }
                }
                let (bound, reuse) = (true, true);
                let fresh = Fresh { domain, local, bound, reuse, reuse_port, v6_only, options, ip, error: None };
                *self.kind_mut(handle)? = Kind::Fresh(Box::new(fresh));
                self.raise(handle.slot, Ready::HANGUP.union(Ready::READABLE));
                Ok(())
            }
            Kind::Listener(_) | Kind::Fresh(_) => Err(Error::NotConnected),
            Kind::Udp(u) => u.shutdown(how),
        }
    }

    /// The socket's options.
    pub fn tcp_options(&self, handle: Handle) -> Result<TcpOptions, Error> {
        match self.kind(handle)? {
            Kind::Fresh(f) => Ok(f.options),
            Kind::Tcp(c) => Ok(c.options()),
            Kind::Listener(l) => Ok(l.options),
            Kind::Udp(_) => Err(Error::NotSupported),
        }
    }

    /// Replaces the socket's options (read, change, set).
    pub fn set_tcp_options(&mut self, handle: Handle, options: TcpOptions) -> Result<(), Error> {
        let limits = self.config.limits;
        match self.kind_mut(handle)? {
            Kind::Fresh(f) => f.options = options,
            Kind::Listener(l) => l.options = options,
            Kind::Udp(_) => return Err(Error::NotSupported),
            Kind::Tcp(c) => {
                c.set_options(&options, &limits);
                self.settle(handle.slot);
            }
        }
        Ok(())
    }

    /// Figures.
    pub fn tcp_info(&self, handle: Handle) -> Result<TcpInfo, Error> {
        match self.kind(handle)? {
            Kind::Tcp(c) => Ok(c.info()),
            Kind::Udp(_) => Err(Error::NotSupported),
            other => Ok(TcpInfo {
                state: if matches!(other, Kind::Listener(_)) { TcpState::Listen } else { TcpState::Closed },
                rtt_us: 0,
                rtt_var_us: 0,
                rto_us: 0,
                congestion_window: 0,
                slow_start_threshold: 0,
                send_mss: 0,
                retransmits: 0,
                send_queue: 0,
                receive_queue: 0,
                receive_window: 0,
            }),
        }
    }

    /// The owner goes; the connection finishes by itself.
    pub(crate) fn tcp_close(&mut self, slot: u32) {
        let Some(Sock { kind: Kind::Tcp(c), .. }) = self.sockets.get_mut(slot) else { return };
        let abort = !c.recv.is_empty() || matches!(c.state, TcpState::SynSent | TcpState::SynReceived);
        if c.state != TcpState::Closed && (abort || self.orphans >= self.config.limits.orphans) {
            self.tcp_abort(slot);
            return;
        }
        if c.state == TcpState::Closed {
            self.after_emit(slot);
            self.remove_socket(slot);
            return;
        }
        c.shut_write();
        c.flags |= is::ORPHAN;
        c.flags &= !is::CORK;
        c.misc_at = if c.state == TcpState::FinWait2 { self.now + ORPHAN_TIME } else { NEVER };
        if let Some(s) = self.sockets.get_mut(slot) {
            s.orphan = true;
            self.orphans += 1;
        }
        self.settle(slot);
    }

    /// RST, and the slot is free.
    pub(crate) fn tcp_abort(&mut self, slot: u32) {
        let Some(Sock { kind: Kind::Tcp(c), .. }) = self.sockets.get_mut(slot) else { return };
        let tuple = c.tuple;
        let (seq, ack) = (c.bare_seq(), c.rcv_nxt);
        let tell = c.synchronized() || c.state == TcpState::SynReceived;
        c.die(None);
        self.after_emit(slot);
        self.remove_socket(slot);
        if tell {
            self.send_control(&tuple, Control { seq, ack, flags: flag::RST | flag::ACK, ..Control::default() });
        }
    }
}
