//! Everything that arrives: Ethernet, IPv4 and IPv6, down to the transport protocols.

use crate::NetHdr;
use crate::addr::Ip;
use crate::checksum::Sum;
use crate::stack::Stack;
use donjon_abi::net_hdr;
use smoltcp::wire::{Ipv4Packet, Ipv6Packet};

/// What the IP layer knows about a packet.
#[derive(Clone, Copy)]
pub(crate) struct Meta {
    pub src: Ip,
    pub dst: Ip,
    pub protocol: u8,
    /// Checksums need no look: the device or we ourselves vouch for the data.
    pub trusted: bool,
    /// Came from ourselves.
    pub local: bool,
    /// Sent to one address of ours, not to a group or to all.
    pub unicast: bool,
    pub hop_limit: u8,
    /// Came in fragments.
    pub fragments: bool,
}

impl Stack {
    /// Takes a received Ethernet frame (trailing bytes are cut by the IP length). `header` says what the device knows: NEEDS_CSUM and DATA_VALID
    /// frames are not verified, super-frames are welcome.
    pub fn input(&mut self, now: u64, header: NetHdr, frame: &[u8]) {
        self.now = now.max(self.now);
        let Some((ethernet, packet)) = frame.split_first_chunk::<14>() else { return };
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *ethernet;
        let (dst, src) = ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]);
        if dst != self.config.mac && dst[0] & 1 == 0 {
            return;
        }
        if src == self.config.mac {
            return;
        }
        match [t0, t1] {
            [0x08, 0x00] | [0x86, 0xdd] => self.packet_input(header, packet, false),
            [0x08, 0x06] => self.arp_input(packet),
            _ => {}
        }
    }

    /// Takes an IP packet.
    pub(crate) fn packet_input(&mut self, header: NetHdr, packet: &[u8], local: bool) {
        let trusted = local || header.flags & (net_hdr::NEEDS_CSUM | net_hdr::DATA_VALID) != 0;
        match packet.first().map(|b| b >> 4) {
            Some(4) => self.ipv4_input(packet, trusted, local),
            Some(6) => self.ipv6_input(packet, trusted, local),
            _ => {}
        }
    }

    fn ipv4_input(&mut self, packet: &[u8], trusted: bool, local: bool) {
        let Ok(p) = Ipv4Packet::new_checked(packet) else { return };
        if p.version() != 4 || (!local && !p.verify_checksum()) {
            return;
        }
        let (src, dst) = (Ip::from(p.src_addr()), Ip::from(p.dst_addr()));
        if src.is_multicast() || self.iface.is_broadcast(src) || (!local && self.is_forged(src, dst)) {
            return;
        }
        let mut meta = Meta {
            src,
            dst,
            protocol: p.next_header().into(),
            trusted,
            local,
            unicast: local,
            hop_limit: p.hop_limit(),
            fragments: false,
        };
        if !self.accepts(&mut meta) {
            return;
        }
        if p.more_frags() || p.frag_offset() != 0 {
            let id = (u32::from(p.ident()), p.frag_offset(), p.more_frags());
            self.fragment_input(meta, id, p.payload());
            return;
        }
        self.transport_input(meta, p.payload(), packet);
    }

    fn ipv6_input(&mut self, packet: &[u8], trusted: bool, local: bool) {
        let Ok(p) = Ipv6Packet::new_checked(packet) else { return };
        if p.version() != 6 {
            return;
        }
        let (src, dst) = (Ip::from(p.src_addr()), Ip::from(p.dst_addr()));
        // A mapped address on the wire would be taken for IPv4.
        if src.is_multicast() || src.is_v4() || dst.is_v4() || (!local && self.is_forged(src, dst)) {
            return;
        }
        let hop_limit = p.hop_limit();
        let mut meta = Meta { src, dst, protocol: 0, trusted, local, unicast: local, hop_limit, fragments: false };
        if !self.accepts(&mut meta) {
            return;
        }
        let mut next: u8 = p.next_header().into();
        let mut rest = p.payload();
        // Extension headers (RFC 8200 §4), no more than a sane packet has.
        for _ in 0..8 {
            match next {
                // Hop-by-hop, routing and destination options: skipped.
                0 | 43 | 60 => {
                    let (Some(&following), Some(&len)) = (rest.first(), rest.get(1)) else { return };
                    if next == 43 && rest.get(3).is_none_or(|&left| left != 0) {
                        return;
                    }
                    let Some(after) = rest.get(8 + usize::from(len) * 8..) else { return };
                    (next, rest) = (following, after);
                }
                44 => {
                    let Some((h, data)) = rest.split_first_chunk::<8>() else { return };
                    let [following, _, o0, o1, i0, i1, i2, i3] = *h;
                    let offset = u16::from_be_bytes([o0, o1]);
                    let id = (u32::from_be_bytes([i0, i1, i2, i3]), offset & !7, offset & 1 != 0);
                    meta.protocol = following;
                    if id.1 == 0 && !id.2 {
                        // An atomic fragment (RFC 6946).
                        meta.fragments = true;
                        (next, rest) = (following, data);
                        continue;
                    }
                    self.fragment_input(meta, id, data);
                    return;
                }
                59 => return,
                _ => {
                    meta.protocol = next;
                    self.transport_input(meta, rest, packet);
                    return;
                }
            }
        }
    }

    /// Whether a packet that came over the wire has addresses that it can have only inside. One datagram from our own address to a service that answers
    /// would go to and fro there for ever.
    fn is_forged(&self, src: Ip, dst: Ip) -> bool {
        src.is_loopback() || dst.is_loopback() || self.iface.owns(src)
    }

    /// Whether a packet is for us; sets `unicast`.
    fn accepts(&self, meta: &mut Meta) -> bool {
        let dst = meta.dst;
        if meta.local || self.iface.owns(dst) {
            meta.unicast = true;
            return true;
        }
        if dst.is_multicast() || self.iface.is_broadcast(dst) {
            return true;
        }
        meta.unicast = self.config.any_ip && !dst.is_unspecified();
        // Before we have an address, a DHCP server may answer to the one it offers.
        meta.unicast || (dst.is_v4() && self.dhcp.wants_anything())
    }

    /// Takes a whole transport datagram. `packet` is the IP packet around it, for error messages.
    pub(crate) fn transport_input(&mut self, meta: Meta, data: &[u8], packet: &[u8]) {
        match meta.protocol {
            6 if meta.unicast && !meta.src.is_unspecified() && self.sum_is_valid(&meta, data) => {
                self.tcp_input(meta.src, meta.dst, data)
            }
            17 => self.udp_input(&meta, data, packet),
            1 if meta.src.is_v4() => self.icmp4_input(&meta, data),
            58 if !meta.src.is_v4() && self.sum_is_valid(&meta, data) => self.icmp6_input(&meta, data),
            _ => {}
        }
    }

    pub(crate) fn sum_is_valid(&self, meta: &Meta, data: &[u8]) -> bool {
        if meta.trusted {
            return true;
        }
        let mut sum = Sum::pseudo(meta.src, meta.dst, meta.protocol, data.len());
        sum.add(data);
        sum.is_valid()
    }
}
