//! ICMP (RFC 792) and ICMPv6 (RFC 4443): echo, errors in, port unreachable out.

use crate::Error;
use crate::addr::{End, Ip, Tuple};
use crate::checksum::Sum;
use crate::egress::Frame;
use crate::ingress::Meta;
use crate::socket::{Kind, Sock};
use crate::stack::Stack;
use crate::tcp::head::{ETH, IpHead, ip_len};
use crate::tcp::le;
use crate::types::{IpOptions, TcpState};
use crate::{NetHdr, net_hdr};
use alloc::vec::Vec;

/// Largest error message that we send (RFC 1812 §4.3.2.3, RFC 4443 §2.4).
const ERROR_MAX: usize = 548;

impl Stack {
    /// Sends an IP packet made of pieces. If `sum_at` is given, the checksum field there is filled in: over the pieces, and in IPv6 over the pseudo-header.
    pub(crate) fn send_ip(&mut self, src: Ip, dst: Ip, protocol: u8, ttl: u8, pieces: &[&[u8]], sum_at: Option<usize>) {
        let at = ETH + ip_len(src);
        let len = pieces.iter().map(|p| p.len()).sum::<usize>();
        let mut bytes = Vec::new();
        if len > 65_000 || bytes.try_reserve_exact(at + len).is_err() {
            return;
        }
        bytes.resize(at, 0);
        for p in pieces {
            bytes.extend_from_slice(p);
        }
        if let Some(sum_at) = sum_at {
            let mut sum = if src.is_v4() { Sum::new() } else { Sum::pseudo(src, dst, protocol, len) };
            sum.add(bytes.get(at..).unwrap_or(&[]));
            if let Some(field) = bytes.get_mut(at + sum_at..at + sum_at + 2) {
                field.copy_from_slice(&sum.finish());
            }
        }
        let mtu = self.path_mtus.get(self.now, dst, self.link_mtu(dst.is_v4()));
        if at - ETH + len > mtu && !self.iface.is_local(dst) {
            let options = IpOptions { hop_limit: ttl, tos: 0 };
            // Without memory for a fragment all is lost.
            let _ = self.send_fragments(src, dst, mtu, (protocol, options), bytes.get(at..).unwrap_or(&[]), None);
            return;
        }
        let ident = self.ident(dst);
        if let Some(h) = bytes.get_mut(ETH..) {
            IpHead { src, dst, protocol, options: IpOptions { hop_limit: ttl, tos: 0 }, ident, whole: false }
                .write(h, len);
        }
        let flags = if self.iface.is_local(dst) { net_hdr::DATA_VALID } else { 0 };
        let hdr = NetHdr { flags, num_buffers: 1, ..NetHdr::default() };
        self.send_packet(dst, Frame { hdr, bytes, owner: None });
    }

    pub(crate) fn icmp4_input(&mut self, meta: &Meta, data: &[u8]) {
        let mut sum = Sum::new();
        sum.add(data);
        if !sum.is_valid() {
            return;
        }
        let Some((&[kind, code, _, _, _, _, m0, m1], rest)) = data.split_first_chunk::<8>() else { return };
        match kind {
            8 => self.echo(meta, data, 0),
            3 | 11 => {
                let error = match (kind, code) {
                    (3, 2 | 3) => Error::ConnectionRefused,
                    (3, 0 | 6 | 9 | 11) => Error::NetworkUnreachable,
                    _ => Error::HostUnreachable,
                };
                // No route, no answer, wrong type of service: that may pass (as Linux' `icmp_err_convert`).
                let soft = kind != 3 || matches!(code, 0 | 1 | 4 | 5 | 11 | 12);
                // A router from before RFC 1191 does not say what fits.
                let mtu = (kind == 3 && code == 4).then(|| match u16::from_be_bytes([m0, m1]) {
                    0 => 576,
                    m => usize::from(m),
                });
                let Some(&first) = rest.first() else { return };
                let header = usize::from(first & 15) * 4;
                if first >> 4 != 4 || header < 20 {
                    return;
                }
                let (Some(h), Some(inner)) = (rest.first_chunk::<20>(), rest.get(header..)) else { return };
                let src = Ip::v4([h[12], h[13], h[14], h[15]]);
                let dst = Ip::v4([h[16], h[17], h[18], h[19]]);
                self.transport_error(src, dst, h[9], inner, (error, soft), mtu);
            }
            _ => {}
        }
    }

    pub(crate) fn icmp6_input(&mut self, meta: &Meta, data: &[u8]) {
        let Some((&[kind, code, _, _, m0, m1, m2, m3], rest)) = data.split_first_chunk::<8>() else { return };
        match kind {
            128 => self.echo(meta, data, 129),
            1..=3 => {
                let error = match (kind, code) {
                    (1, 4) => Error::ConnectionRefused,
                    (1, 0) => Error::NetworkUnreachable,
                    _ => Error::HostUnreachable,
                };
                let soft = kind != 1 || !matches!(code, 1 | 4 | 5 | 6);
                let mtu = (kind == 2).then(|| u32::from_be_bytes([m0, m1, m2, m3]).clamp(1280, 65_535) as usize);
                let Some((h, inner)) = rest.split_first_chunk::<40>() else { return };
                let (Some(src), Some(dst)) = (h[8..24].first_chunk::<16>(), h[24..40].first_chunk::<16>()) else {
                    return;
                };
                let (src, dst) = (Ip(*src), Ip(*dst));
                if h[0] >> 4 == 6 && !src.is_v4() && !dst.is_v4() {
                    self.transport_error(src, dst, h[6], inner, (error, soft), mtu);
                }
            }
            // Never in fragments (RFC 6980).
            133..=137 if meta.hop_limit == 255 && code == 0 && !meta.fragments => self.ndp_input(meta, kind, data),
            _ => {}
        }
    }

    fn echo(&mut self, meta: &Meta, data: &[u8], reply: u8) {
        let ours = meta.local || self.iface.owns(meta.dst);
        if !ours || !meta.unicast || meta.src.is_unspecified() || !self.echo_bucket.take(self.now) {
            return;
        }
        let rest = data.get(4..).unwrap_or(&[]);
        self.send_ip(meta.dst, meta.src, meta.protocol, 64, &[&[reply, 0, 0, 0], rest], Some(2));
    }

    /// An error (and whether it may pass) about a packet of ours from `src` to `dst`, of which the first bytes are in `inner`.
    fn transport_error(
        &mut self,
        src: Ip,
        dst: Ip,
        protocol: u8,
        inner: &[u8],
        (error, soft): (Error, bool),
        mtu: Option<usize>,
    ) {
        let Some(&[s0, s1, d0, d1, q0, q1, q2, q3]) = inner.first_chunk::<8>() else { return };
        let local = End::new(src, u16::from_be_bytes([s0, s1]));
        let remote = End::new(dst, u16::from_be_bytes([d0, d1]));
        match (protocol, mtu) {
            // What may pass is no error of a socket (RFC 1122 §4.1.3.3; Linux without IP_RECVERR).
            (17, None) if !soft => self.udp_error(local, remote, error),
            // Only if a socket of ours can have sent it (RFC 8201 §4).
            (17, Some(mtu)) if !src.is_v4() && self.is_udp_of_ours(local, remote) => {
                self.path_mtus.learn(self.now, dst, mtu);
            }
            (6, _) => self.tcp_error(Tuple { local, remote }, u32::from_be_bytes([q0, q1, q2, q3]), error, mtu),
            _ => {}
        }
    }

    fn tcp_error(&mut self, tuple: Tuple, seq: u32, error: Error, mtu: Option<usize>) {
        let hash = self.tuple_hash(&tuple);
        let Some(slot) = self.lookup(hash, &tuple) else { return };
        let Some(Sock { kind: Kind::Tcp(c), .. }) = self.sockets.get_mut(slot) else { return };
        // Only about something that is under way (RFC 5927 §4.1).
        if c.tuple != tuple || !le(c.snd_una, seq) || !le(seq, c.snd_max) {
            return;
        }
        match mtu {
            Some(mtu) => c.on_path_mtu(mtu),
            None if c.state == TcpState::SynSent => c.die(Some(error)),
            // A soft error: the timers decide (RFC 5461).
            None => return,
        }
        self.settle(slot);
    }

    /// Tells the sender of a datagram that nobody listens.
    pub(crate) fn port_unreachable(&mut self, meta: &Meta, packet: &[u8]) {
        let ours = meta.local || self.iface.owns(meta.dst);
        if packet.is_empty() || !ours || meta.src.is_unspecified() {
            return;
        }
        // Were the limit exact, whoever counts our answers could tell how many there were to others, and so which ports are open (SAD DNS; Linux does the same).
        let random = self.random.next();
        if !self.icmp_bucket.take_some(self.now, random) {
            return;
        }
        let quote = packet.get(..ERROR_MAX).unwrap_or(packet);
        let (protocol, head) =
            if meta.src.is_v4() { (1, [3, 3, 0, 0, 0, 0, 0, 0]) } else { (58, [1, 4, 0, 0, 0, 0, 0, 0]) };
        self.send_ip(meta.dst, meta.src, protocol, 64, &[&head, quote], Some(2));
    }
}
