//! UDP (RFC 768).

use crate::addr::{End, Ip, Tuple};
use crate::checksum::Sum;
use crate::egress::Frame;
use crate::iface::Route;
use crate::ingress::Meta;
use crate::ports::{self, Best};
use crate::socket::{Kind, Sock};
use crate::stack::Stack;
use crate::tcp::head::{ETH, IpHead, ip_len};
use crate::types::*;
use crate::{Error, Handle, NetHdr};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::SocketAddr;
use donjon_abi::net_hdr;
use smoltcp::wire::UdpPacket;

/// Default size of each queue, bytes (Linux' `rmem_default`).
const BUFFER: u32 = 212_992;
/// What a queued datagram costs besides its data.
const OVERHEAD: usize = 96;
/// Largest payload.
pub(crate) const DATAGRAM_MAX: usize = 65_507;

struct Received {
    from: End,
    to: End,
    data: Vec<u8>,
}

pub(crate) struct Udp {
    pub domain: Domain,
    pub local: End,
    pub bound: bool,
    /// The local address is what `connect` picked.
    picked: bool,
    pub reuse: bool,
    pub reuse_port: bool,
    pub v6_only: bool,
    pub any: bool,
    pub remote: Option<End>,
    pub ip: IpOptions,
    pub error: Option<Error>,
    queue: VecDeque<Received>,
    /// Bytes in the queue with overhead, and most of them.
    held: usize,
    receive_limit: u32,
    /// Bytes on the way to the device, and most of them.
    sending: usize,
    send_limit: u32,
    /// An event says when there is room on the way to the device again.
    wants_room: bool,
    read_shut: bool,
    write_shut: bool,
}

impl Udp {
    fn new(domain: Domain) -> Udp {
        Udp {
            domain,
            local: End::NONE,
            bound: false,
            picked: false,
            reuse: false,
            reuse_port: false,
            v6_only: false,
            any: false,
            remote: None,
            ip: IpOptions::default(),
            error: None,
            queue: VecDeque::new(),
            held: 0,
            receive_limit: BUFFER,
            sending: 0,
            send_limit: BUFFER,
            wants_room: false,
            read_shut: false,
            write_shut: false,
        }
    }

    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether enough room is left on the way to the device to wake a writer.
    fn has_room(&self) -> bool {
        self.sending * 3 < self.send_limit as usize * 2
    }

    pub fn readiness(&self) -> Ready {
        let mut r = 0;
        if !self.queue.is_empty() || self.error.is_some() || self.read_shut {
            r |= Ready::READABLE.0;
        }
        if self.has_room() || self.error.is_some() {
            r |= Ready::WRITABLE.0;
        }
        if self.error.is_some() {
            r |= Ready::ERROR.0;
        }
        if self.read_shut {
            r |= Ready::READ_CLOSED.0;
        }
        if self.read_shut && self.write_shut {
            r |= Ready::HANGUP.0;
        }
        Ready(r)
    }

    pub fn shutdown(&mut self, how: Shutdown) -> Result<(), Error> {
        if self.remote.is_none() {
            return Err(Error::NotConnected);
        }
        self.read_shut |= how != Shutdown::Write;
        self.write_shut |= how != Shutdown::Read;
        Ok(())
    }
}

/// UDP.
impl Stack {
    /// A new UDP socket. Broadcast needs no option here.
    pub fn udp_socket(&mut self, domain: Domain) -> Result<Handle, Error> {
        self.new_socket(Kind::Udp(Box::new(Udp::new(domain))))
    }

    /// Only with [`crate::Config::any_ip`]: a UDP socket that gets every datagram that no other socket takes.
    pub fn bind_any(&mut self) -> Result<Handle, Error> {
        if !self.config.any_ip {
            return Err(Error::NotSupported);
        }
        if self.any_udp.is_some() {
            return Err(Error::AddressInUse);
        }
        let mut u = Udp::new(Domain::V6);
        u.any = true;
        let handle = self.new_socket(Kind::Udp(Box::new(u)))?;
        self.any_udp = Some(handle.slot);
        Ok(handle)
    }

    pub(crate) fn udp_connect(&mut self, handle: Handle, remote: End) -> Result<(), Error> {
        let source = self.source(remote.ip)?;
        self.bind_if_needed(handle)?;
        let Kind::Udp(u) = self.kind_mut(handle)? else { return Err(Error::Invalid) };
        if !u.local.ip.is_unspecified() && u.local.ip.is_v4() != remote.ip.is_v4() {
            return Err(Error::NetworkUnreachable);
        }
        u.remote = Some(remote);
        if u.local.ip.is_unspecified() {
            u.local.ip = source;
            u.picked = true;
        }
        Ok(())
    }

    /// Undoes `connect` (connect to AF_UNSPEC). An address that `bind` said stays.
    pub fn disconnect(&mut self, handle: Handle) -> Result<(), Error> {
        let Kind::Udp(u) = self.kind_mut(handle)? else { return Err(Error::NotSupported) };
        u.remote = None;
        if core::mem::take(&mut u.picked) {
            u.local.ip = if u.domain == Domain::V4 { Ip::ANY4 } else { Ip::ANY };
        }
        Ok(())
    }

    /// Sends one datagram made of the pieces, `to` the peer if `None`. `from` overrides the source ("any" sockets must give it). Binds if necessary. A datagram larger than the
    /// path is fragmented; MessageSize above 65507 bytes. A pending ICMP error is returned instead (ConnectionRefused).
    pub fn send_to(
        &mut self,
        handle: Handle,
        pieces: &[&[u8]],
        to: Option<SocketAddr>,
        from: Option<SocketAddr>,
    ) -> Result<usize, Error> {
        let Kind::Udp(u) = self.kind_mut(handle)? else { return Err(Error::NotSupported) };
        if let Some(e) = u.error.take() {
            return Err(e);
        }
        if u.write_shut {
            return Err(Error::BrokenPipe);
        }
        let mut to = to.map(End::from).or(u.remote).ok_or(Error::DestinationRequired)?;
        let (any, domain, v6_only) = (u.any, u.domain, u.v6_only);
        if to.port == 0 {
            return Err(Error::Invalid);
        }
        if (domain == Domain::V4 && !to.ip.is_v4() && to.ip != Ip::ANY) || (v6_only && to.ip.is_v4()) {
            return Err(Error::AddressFamily);
        }
        if to.ip.is_unspecified() {
            to.ip = if domain == Domain::V4 || to.ip == Ip::ANY4 {
                crate::config::LOCALHOST4.into()
            } else {
                crate::config::LOCALHOST6.into()
            };
        }
        let from = match from {
            Some(f) if self.config.any_ip || self.iface.is_local(f.ip().into()) => End::from(f),
            Some(_) => return Err(Error::AddressNotAvailable),
            None if any => return Err(Error::Invalid),
            None => {
                self.bind_if_needed(handle)?;
                let Kind::Udp(u) = self.kind(handle)? else { return Err(Error::Invalid) };
                let mut local = u.local;
                if local.ip.is_unspecified() || local.ip.is_multicast() || self.iface.is_broadcast(local.ip) {
                    local.ip = self.source(to.ip)?;
                }
                local
            }
        };
        if from.ip.is_v4() != to.ip.is_v4() {
            return Err(Error::NetworkUnreachable);
        }
        let len = pieces.iter().map(|p| p.len()).sum::<usize>();
        if len > DATAGRAM_MAX {
            return Err(Error::MessageSize);
        }
        let free = self.memory_free();
        let Kind::Udp(u) = self.kind_mut(handle)? else { return Err(Error::Invalid) };
        if u.sending > 0 && u.sending + len > u.send_limit as usize {
            u.wants_room = true;
            return Err(Error::WouldBlock);
        }
        if free < len {
            return Err(Error::NoMemory);
        }
        self.udp_output(from, to, pieces, len, Some(handle))?;
        Ok(len)
    }

    /// Builds and sends a datagram.
    pub(crate) fn udp_output(
        &mut self,
        from: End,
        to: End,
        pieces: &[&[u8]],
        len: usize,
        owner: Option<Handle>,
    ) -> Result<(), Error> {
        let route = self.iface.route(to.ip).ok_or(Error::NetworkUnreachable)?;
        let options = match owner.map(|h| self.kind(h)) {
            Some(Ok(Kind::Udp(u))) => u.ip,
            _ => IpOptions::default(),
        };
        let local = route == Route::Local;
        let ip = ip_len(from.ip);
        let at = ETH + ip;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(at + 8 + len).map_err(|_| Error::NoMemory)?;
        bytes.resize(at, 0);
        bytes.extend_from_slice(&from.port.to_be_bytes());
        bytes.extend_from_slice(&to.port.to_be_bytes());
        bytes.extend_from_slice(&((len + 8) as u16).to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        for p in pieces {
            bytes.extend_from_slice(p);
        }
        let mtu = self.path_mtus.get(self.now, to.ip, self.link_mtu(to.ip.is_v4()));
        let whole = local || ip + 8 + len <= mtu;
        let mut hdr = NetHdr { num_buffers: 1, ..NetHdr::default() };
        if local {
            hdr.flags = net_hdr::DATA_VALID;
        } else {
            let mut sum = Sum::pseudo(from.ip, to.ip, 17, 8 + len);
            let field = if whole && self.config.offload.tx_csum {
                hdr.flags = net_hdr::NEEDS_CSUM;
                (hdr.csum_start, hdr.csum_offset) = (at as u16, 6);
                sum.partial()
            } else {
                sum.add(bytes.get(at..).unwrap_or(&[]));
                match sum.finish() {
                    [0, 0] => [0xff, 0xff],
                    s => s,
                }
            };
            if let Some(place) = bytes.get_mut(at + 6..at + 8) {
                place.copy_from_slice(&field);
            }
        }
        if !whole {
            return self.send_fragments(from.ip, to.ip, mtu, (17, options), bytes.get(at..).unwrap_or(&[]), owner);
        }
        let ident = self.ident(to.ip);
        if let Some(h) = bytes.get_mut(ETH..) {
            IpHead { src: from.ip, dst: to.ip, protocol: 17, options, ident, whole: false }.write(h, 8 + len);
        }
        self.charge_sending(owner, bytes.len());
        self.send_packet(to.ip, Frame { hdr, bytes, owner });
        Ok(())
    }

    pub(crate) fn charge_sending(&mut self, owner: Option<Handle>, bytes: usize) {
        if let Some(owner) = owner
            && let Ok(Kind::Udp(u)) = self.kind_mut(owner)
        {
            u.sending += bytes;
            u.wants_room |= !u.has_room();
        }
    }

    /// A frame of a socket has left (or is lost).
    pub(crate) fn sent(&mut self, owner: Option<Handle>, bytes: usize) {
        let Some(owner) = owner else { return };
        let Ok(Kind::Udp(u)) = self.kind_mut(owner) else { return };
        u.sending = u.sending.saturating_sub(bytes);
        self.udp_room(owner);
    }

    /// Says that there is room on the way to the device, if somebody may wait for that.
    fn udp_room(&mut self, handle: Handle) {
        if let Ok(Kind::Udp(u)) = self.kind_mut(handle)
            && u.wants_room
            && u.has_room()
        {
            u.wants_room = false;
            self.raise(handle.slot, Ready::WRITABLE);
        }
    }

    /// Receives one datagram.
    pub fn recv_from(&mut self, handle: Handle, buffers: &mut [&mut [u8]], mode: RecvMode) -> Result<Datagram, Error> {
        let Kind::Udp(u) = self.kind_mut(handle)? else { return Err(Error::NotSupported) };
        if let Some(e) = u.error.take() {
            return Err(e);
        }
        let Some(first) = u.queue.front() else {
            if u.read_shut {
                let nobody = SocketAddr::from(u.remote.unwrap_or(End::NONE));
                return Ok(Datagram { from: nobody, to: u.local.into(), copied: 0, len: 0 });
            }
            return Err(Error::WouldBlock);
        };
        let mut copied = 0;
        for b in buffers.iter_mut() {
            let n = b.len().min(first.data.len() - copied);
            b[..n].copy_from_slice(&first.data[copied..copied + n]);
            copied += n;
        }
        let datagram = Datagram { from: first.from.into(), to: first.to.into(), copied, len: first.data.len() };
        if mode == RecvMode::Take {
            let cost = first.data.capacity() + OVERHEAD;
            u.queue.pop_front();
            u.held -= cost;
            if u.queue.is_empty() {
                u.queue = VecDeque::new();
            }
            self.memory = self.memory.saturating_sub(cost);
        }
        Ok(datagram)
    }

    /// Length of the next datagram, if there is one (FIONREAD).
    pub fn next_datagram_len(&self, handle: Handle) -> Option<usize> {
        match self.kind(handle) {
            Ok(Kind::Udp(u)) => u.queue.front().map(|d| d.data.len()),
            _ => None,
        }
    }

    /// Sets how many bytes the receive and send queue may hold (default 208 KiB each), cut to the limits. (receive, send)
    pub fn set_udp_buffers(&mut self, handle: Handle, receive: u32, send: u32) -> Result<(), Error> {
        let limits = self.config.limits;
        let Kind::Udp(u) = self.kind_mut(handle)? else { return Err(Error::NotSupported) };
        u.receive_limit = receive.clamp(2048, limits.receive_buffer.max(2048));
        u.send_limit = send.clamp(2048, limits.send_buffer.max(2048));
        u.wants_room |= !u.has_room();
        self.udp_room(handle);
        Ok(())
    }

    /// The size of the queues: receive, send.
    pub fn udp_buffers(&self, handle: Handle) -> Result<(u32, u32), Error> {
        match self.kind(handle)? {
            Kind::Udp(u) => Ok((u.receive_limit, u.send_limit)),
            _ => Err(Error::NotSupported),
        }
    }

    /// The socket that gets a datagram: the one connected to the sender, else the most closely bound one, among equals the last, or if
    /// they share the port (SO_REUSEPORT), the one that the hash of the two ends says.
    fn find_udp(&self, local: End, remote: End) -> Option<u32> {
        let mut best = Best::default();
        for &slot in self.ports.binders(ports::UDP, local.port) {
            let Some(Sock { kind: Kind::Udp(u), .. }) = self.sockets.get(slot) else { continue };
            let mut score = match u.local.ip {
                ip if ip == local.ip => 3,
                Ip::ANY4 if local.ip.is_v4() => 2,
                Ip::ANY if !(u.v6_only && local.ip.is_v4()) => 1,
                // A connected socket still gets broadcasts and multicasts of its peer.
                _ => continue,
            };
            if let Some(r) = u.remote {
                if r != remote {
                    continue;
                }
                score += 4;
            }
            best.offer(score, slot, u.reuse_port.then(|| self.tuple_hash(&Tuple { local, remote })));
        }
        best.slot.or(self.any_udp)
    }

    pub(crate) fn udp_input(&mut self, meta: &Meta, data: &[u8], packet: &[u8]) {
        let Ok(p) = UdpPacket::new_checked(data) else { return };
        let data = data.get(..usize::from(p.len())).unwrap_or(data);
        // No checksum is allowed in IPv4 only.
        let unsummed = p.checksum() == 0 && meta.src.is_v4();
        if !unsummed && !self.sum_is_valid(meta, data) {
            return;
        }
        let (local, remote) = (End::new(meta.dst, p.dst_port()), End::new(meta.src, p.src_port()));
        if local.port == 68 && self.dhcp.is_on() && remote.port == 67 {
            self.dhcp_input(p.payload());
            return;
        }
        if !meta.unicast
            && !self.config.any_ip
            && meta.dst.is_v4()
            && self.dhcp.wants_anything()
            && !meta.dst.is_limited_broadcast()
        {
            return;
        }
        let Some(slot) = self.find_udp(local, remote) else {
            if meta.unicast && remote.port != 0 {
                self.port_unreachable(meta, packet);
            }
            return;
        };
        let free = self.memory_free();
        let Some(Sock { kind: Kind::Udp(u), .. }) = self.sockets.get_mut(slot) else { return };
        let payload = p.payload();
        let cost = payload.len() + OVERHEAD;
        if u.read_shut || cost > free || (u.held > 0 && u.held + cost > u.receive_limit as usize) {
            return;
        }
        let mut own = Vec::new();
        if own.try_reserve_exact(payload.len()).is_err() || u.queue.try_reserve(1).is_err() {
            return;
        }
        own.extend_from_slice(payload);
        let cost = own.capacity() + OVERHEAD;
        u.held += cost;
        u.queue.push_back(Received { from: remote, to: local, data: own });
        self.memory += cost;
        self.raise(slot, Ready::READABLE);
    }

    /// Whether a socket is bound to that port that may talk to that peer.
    pub(crate) fn is_udp_of_ours(&self, local: End, remote: End) -> bool {
        self.iface.owns(local.ip)
            && self.ports.binders(ports::UDP, local.port).iter().any(|&slot| {
                matches!(self.sockets.get(slot), Some(Sock { kind: Kind::Udp(u), .. }) if u.remote.is_none_or(|r| r == remote))
            })
    }

    /// ICMP says that a datagram did not arrive.
    pub(crate) fn udp_error(&mut self, local: End, remote: End, error: Error) {
        for &slot in self.ports.binders(ports::UDP, local.port) {
            if let Some(Sock { kind: Kind::Udp(u), .. }) = self.sockets.get_mut(slot)
                && u.remote == Some(remote)
            {
                u.error = Some(error);
                self.raise(slot, Ready::ERROR.union(Ready::READABLE).union(Ready::WRITABLE));
                return;
            }
        }
    }
}
