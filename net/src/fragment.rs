//! IP fragments, in and out (RFC 791, RFC 8200 §4.5). Bounded in number, bytes and time; overlaps are not tolerated (RFC 5722).

use crate::addr::Ip;
use crate::egress::Frame;
use crate::ingress::Meta;
use crate::stack::Stack;
use crate::tcp::SECOND;
use crate::tcp::head::{self, ETH, IpHead, ip_len};
use crate::{Error, Handle, IpOptions, NetHdr};
use alloc::vec::Vec;

/// Datagrams being put together at a time.
const DATAGRAMS_MAX: usize = 16;
/// Bytes of all their fragments.
const BYTES_MAX: usize = 512 << 10;
/// Fragments of one.
const PIECES_MAX: usize = 128;
const TIME: u64 = 30 * SECOND;

struct Partial {
    src: Ip,
    dst: Ip,
    protocol: u8,
    id: u32,
    expires: u64,
    /// Known once the last fragment is here.
    total: Option<usize>,
    bytes: usize,
    /// Offset and data, sorted.
    pieces: Vec<(usize, Vec<u8>)>,
}

pub(crate) struct Fragments {
    /// In order of time.
    partial: Vec<Partial>,
    bytes: usize,
}

impl Fragments {
    pub const fn new() -> Fragments {
        Fragments { partial: Vec::new(), bytes: 0 }
    }

    pub fn deadline(&self) -> Option<u64> {
        self.partial.first().map(|p| p.expires)
    }

    pub fn expire(&mut self, now: u64) {
        while self.partial.first().is_some_and(|p| p.expires <= now) {
            self.remove(0);
        }
    }

    fn remove(&mut self, at: usize) -> Partial {
        let p = self.partial.remove(at);
        self.bytes -= p.bytes;
        p
    }

    /// Adds a fragment; returns the datagram if it is whole now.
    fn add(&mut self, now: u64, meta: &Meta, id: u32, offset: usize, more: bool, data: &[u8]) -> Option<Vec<u8>> {
        if data.is_empty() || offset + data.len() > 65_535 || (more && !data.len().is_multiple_of(8)) {
            return None;
        }
        let found = self
            .partial
            .iter()
            .position(|p| p.id == id && p.src == meta.src && p.dst == meta.dst && p.protocol == meta.protocol);
        while self.bytes + data.len() > BYTES_MAX || (found.is_none() && self.partial.len() >= DATAGRAMS_MAX) {
            if found.is_some() {
                return None;
            }
            self.remove(0);
        }
        let at = found.unwrap_or_else(|| {
            self.partial.push(Partial {
                src: meta.src,
                dst: meta.dst,
                protocol: meta.protocol,
                id,
                expires: now + TIME,
                total: None,
                bytes: 0,
                pieces: Vec::new(),
            });
            self.partial.len() - 1
        });
        let p = self.partial.get_mut(at)?;
        let end = offset + data.len();
        let place = p.pieces.partition_point(|x| x.0 < offset);
        if p.pieces.get(place).is_some_and(|x| x.0 == offset && x.1.len() == data.len()) {
            return None;
        }
        let overlaps = p.pieces.get(place).is_some_and(|x| x.0 < end)
            || place.checked_sub(1).and_then(|i| p.pieces.get(i)).is_some_and(|x| x.0 + x.1.len() > offset)
            || p.total.is_some_and(|t| end > t || (!more && end != t))
            || (!more && p.pieces.last().is_some_and(|x| x.0 + x.1.len() > end));
        if overlaps || p.pieces.len() >= PIECES_MAX {
            self.remove(at);
            return None;
        }
        let mut own = Vec::new();
        own.try_reserve_exact(data.len()).ok()?;
        own.extend_from_slice(data);
        p.pieces.insert(place, (offset, own));
        p.bytes += data.len();
        self.bytes += data.len();
        if !more {
            p.total = Some(end);
        }
        if p.total != Some(p.bytes) {
            return None;
        }
        let p = self.remove(at);
        let mut whole = Vec::new();
        whole.try_reserve_exact(p.bytes).ok()?;
        for (_, piece) in p.pieces {
            whole.extend_from_slice(&piece);
        }
        Some(whole)
    }
}

impl Stack {
    /// Takes a fragment: identification, offset in bytes, whether more follow.
    pub(crate) fn fragment_input(&mut self, mut meta: Meta, (id, offset, more): (u32, u16, bool), data: &[u8]) {
        // What the device knows is about the fragment at most.
        meta.trusted = meta.local;
        meta.fragments = true;
        if let Some(whole) = self.fragments.add(self.now, &meta, id, usize::from(offset), more, data) {
            self.transport_input(meta, &whole, &[]);
        }
    }

    /// Sends a datagram of that protocol, its checksum done, in fragments that make packets of up to `mtu` bytes.
    pub(crate) fn send_fragments(
        &mut self,
        src: Ip,
        dst: Ip,
        mtu: usize,
        (protocol, options): (u8, IpOptions),
        data: &[u8],
        owner: Option<Handle>,
    ) -> Result<(), Error> {
        let ip = ip_len(src);
        let extra = if src.is_v4() { 0 } else { 8 };
        let room = (mtu - ip - extra) & !7;
        let id = self.random.next() as u32;
        let hdr = NetHdr { num_buffers: 1, ..NetHdr::default() };
        let mut offset = 0;
        while let Some(rest) = data.get(offset..)
            && !rest.is_empty()
        {
            let piece = rest.get(..room).unwrap_or(rest);
            let more = piece.len() < rest.len();
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(ETH + ip + extra + piece.len()).map_err(|_| Error::NoMemory)?;
            bytes.resize(ETH + ip, 0);
            let len = extra + piece.len();
            let h = bytes.get_mut(ETH..).unwrap_or(&mut []);
            let protocol_here = if extra == 0 { protocol } else { 44 };
            IpHead { src, dst, protocol: protocol_here, options, ident: id as u16, whole: false }.write(h, len);
            if extra == 0 {
                head::set_fragment(h, offset, more);
            } else {
                let [o0, o1] = (offset as u16 | u16::from(more)).to_be_bytes();
                bytes.extend_from_slice(&[protocol, 0, o0, o1]);
                bytes.extend_from_slice(&id.to_be_bytes());
            }
            bytes.extend_from_slice(piece);
            offset += piece.len();
            self.charge_sending(owner, bytes.len());
            self.send_packet(dst, Frame { hdr, bytes, owner });
        }
        Ok(())
    }
}
