//! Writes the headers of a TCP frame.

use super::flag;
use crate::Offload;
use crate::addr::{Ip, Tuple};
use crate::checksum::Sum;
use crate::types::IpOptions;
use donjon_abi::{NetHdr, net_hdr};

/// Ethernet, IPv6 and TCP with all options.
pub(crate) const HEAD_MAX: usize = 14 + 40 + 60;
pub(crate) const ETH: usize = 14;

/// How frames to a destination look.
#[derive(Clone, Copy)]
pub(crate) struct Path {
    pub dst_mac: [u8; 6],
    pub src_mac: [u8; 6],
    /// Largest IP packet.
    pub mtu: usize,
    pub offload: Offload,
    /// Stays inside the stack: no checksums at all.
    pub local: bool,
}

/// A segment to be sent.
pub(crate) struct Out<'a> {
    pub tuple: &'a Tuple,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: &'a [u8],
    /// Payload per segment, should this be a super-frame.
    pub mss: usize,
    pub ident: u16,
    pub ip: IpOptions,
}

/// Bytes of an IP header.
pub(crate) fn ip_len(ip: Ip) -> usize {
    if ip.is_v4() { 20 } else { 40 }
}

/// Writes an Ethernet header.
pub(crate) fn ethernet(out: &mut [u8], path: &Path, v4: bool) {
    let Some(h) = out.first_chunk_mut::<ETH>() else { return };
    h[..6].copy_from_slice(&path.dst_mac);
    h[6..12].copy_from_slice(&path.src_mac);
    h[12..].copy_from_slice(if v4 { &[8, 0] } else { &[0x86, 0xdd] });
}

/// What an IP header says.
pub(crate) struct IpHead {
    pub src: Ip,
    pub dst: Ip,
    pub protocol: u8,
    pub options: IpOptions,
    /// IPv4 only.
    pub ident: u16,
    /// Must not be fragmented (IPv4 only).
    pub whole: bool,
}

impl IpHead {
    /// Writes the header for `len` bytes behind it.
    pub fn write(&self, out: &mut [u8], len: usize) {
        if self.src.is_v4() {
            let Some(h) = out.first_chunk_mut::<20>() else { return };
            *h = [0; 20];
            h[0] = 0x45;
            h[2..4].copy_from_slice(&((len + 20) as u16).to_be_bytes());
            h[4..6].copy_from_slice(&self.ident.to_be_bytes());
            h[6] = if self.whole { 0x40 } else { 0 };
            h[1] = self.options.tos;
            h[8] = self.options.hop_limit;
            h[9] = self.protocol;
            h[12..16].copy_from_slice(&self.src.0[12..]);
            h[16..].copy_from_slice(&self.dst.0[12..]);
            let mut sum = Sum::new();
            sum.add(h);
            h[10..12].copy_from_slice(&sum.finish());
        } else {
            let Some(h) = out.first_chunk_mut::<40>() else { return };
            let tos = self.options.tos;
            h[..4].copy_from_slice(&[0x60 | tos >> 4, tos << 4, 0, 0]);
            h[4..6].copy_from_slice(&(len as u16).to_be_bytes());
            h[6] = self.protocol;
            h[7] = self.options.hop_limit;
            h[8..24].copy_from_slice(&self.src.0);
            h[24..].copy_from_slice(&self.dst.0);
        }
    }
}

/// Turns an IPv4 header into that of a fragment.
pub(crate) fn set_fragment(out: &mut [u8], offset: usize, more: bool) {
    let Some(h) = out.first_chunk_mut::<20>() else { return };
    let field = (offset / 8) as u16 & 0x1fff | if more { 0x2000 } else { 0 };
    h[6..8].copy_from_slice(&field.to_be_bytes());
    h[10..12].fill(0);
    let mut sum = Sum::new();
    sum.add(h);
    h[10..12].copy_from_slice(&sum.finish());
}

/// Writes all headers for `payload`; returns their length and the offload header.
pub(crate) fn tcp(
    out: &mut [u8; HEAD_MAX],
    path: &Path,
    o: &Out,
    payload: &[&[u8]],
    payload_len: usize,
) -> (usize, NetHdr) {
    let v4 = o.tuple.local.ip.is_v4();
    let (src, dst) = (o.tuple.local.ip, o.tuple.remote.ip);
    let ip_at = ETH;
    let tcp_at = ip_at + ip_len(src);
    let tcp_len = 20 + o.options.len();
    let end = tcp_at + tcp_len;
    ethernet(out, path, v4);
    IpHead { src, dst, protocol: 6, options: o.ip, ident: o.ident, whole: true }
        .write(&mut out[ip_at..], tcp_len + payload_len);
    let Some(h) = out[tcp_at..].first_chunk_mut::<20>() else { return (0, NetHdr::default()) };
    h[..2].copy_from_slice(&o.tuple.local.port.to_be_bytes());
    h[2..4].copy_from_slice(&o.tuple.remote.port.to_be_bytes());
    h[4..8].copy_from_slice(&o.seq.to_be_bytes());
    h[8..12].copy_from_slice(&if o.flags & flag::ACK != 0 { o.ack } else { 0 }.to_be_bytes());
    h[12] = (tcp_len as u8 / 4) << 4;
    h[13] = o.flags;
    h[14..16].copy_from_slice(&o.window.to_be_bytes());
    h[16..].fill(0);
    if let Some(place) = out.get_mut(tcp_at + 20..end) {
        place.copy_from_slice(o.options);
    }
    let mut hdr = NetHdr { num_buffers: 1, ..NetHdr::default() };
    if path.local {
        hdr.flags = net_hdr::DATA_VALID;
        return (end, hdr);
    }
    let mut sum = Sum::pseudo(src, dst, 6, tcp_len + payload_len);
    let field = if path.offload.tx_csum {
        hdr.flags = net_hdr::NEEDS_CSUM;
        hdr.csum_start = tcp_at as u16;
        hdr.csum_offset = 16;
        if payload_len > o.mss {
            hdr.gso_type = if v4 { net_hdr::GSO_TCPV4 } else { net_hdr::GSO_TCPV6 };
            hdr.gso_size = o.mss as u16;
            hdr.hdr_len = end as u16;
        }
        sum.partial()
    } else {
        sum.add(&out[tcp_at..end]);
        for p in payload {
            sum.add(p);
        }
        sum.finish()
    };
    out[tcp_at + 16..tcp_at + 18].copy_from_slice(&field);
    (end, hdr)
}
