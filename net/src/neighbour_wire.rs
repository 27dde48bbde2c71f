//! ARP (RFC 826) and neighbour discovery (RFC 4861) on the wire.

use crate::NetHdr;
use crate::addr::Ip;
use crate::egress::Frame;
use crate::iface::Route;
use crate::ingress::Meta;
use crate::neighbour::Due;
use crate::socket::{Kind, Sock};
use crate::stack::{Stack, cx};
use alloc::vec;
use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

impl Stack {
    fn send_arp(&mut self, operation: ArpOperation, dst_mac: [u8; 6], src: Ip, target_mac: [u8; 6], target: Ip) {
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: EthernetAddress(self.config.mac),
            source_protocol_addr: src.as_v4(),
            target_hardware_addr: EthernetAddress(target_mac),
            target_protocol_addr: target.as_v4(),
        };
        let mut bytes = vec![0; 14 + repr.buffer_len()];
        bytes[..6].copy_from_slice(&dst_mac);
        bytes[6..12].copy_from_slice(&self.config.mac);
        bytes[12..14].copy_from_slice(&[8, 6]);
        repr.emit(&mut ArpPacket::new_unchecked(&mut bytes[14..]));
        self.send_frame(Frame { hdr: NetHdr { num_buffers: 1, ..NetHdr::default() }, bytes, owner: None });
    }

    pub(crate) fn arp_input(&mut self, packet: &[u8]) {
        let Ok(p) = ArpPacket::new_checked(packet) else { return };
        let Ok(ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        }) = ArpRepr::parse(&p)
        else {
            return;
        };
        let (sender, target) = (Ip::from(source_protocol_addr), Ip::from(target_protocol_addr));
        let mac = source_hardware_addr.0;
        if self.iface.owns(sender) || sender.is_loopback() || self.iface.is_broadcast(sender) {
            return;
        }
        let ours = self.iface.owns(target);
        // Only whoever talks to us gets a new entry; others can only correct one.
        let asks = ours && operation == ArpOperation::Request;
        if let Some(r) = self.neighbours.learn(self.now, sender, mac, asks) {
            self.release(r);
        }
        if asks {
            self.send_arp(ArpOperation::Reply, mac, target, mac, sender);
        }
    }

    /// Asks for a neighbour's Ethernet address: everybody, or itself if it is known.
    pub(crate) fn query(&mut self, hop: Ip, known: Option<[u8; 6]>) {
        let Some(src) = self.iface.any_source(hop) else { return };
        if hop.is_v4() {
            self.send_arp(ArpOperation::Request, known.unwrap_or([0xff; 6]), src, [0; 6], hop);
        } else {
            self.solicit(src, hop, known);
        }
    }

    /// Tells everybody about an address of ours.
    pub(crate) fn announce(&mut self, ip: Ip) {
        if ip.is_v4() {
            self.send_arp(ArpOperation::Request, [0xff; 6], ip, [0; 6], ip);
        } else {
            self.advertise_unsolicited(ip);
        }
    }

    pub(crate) fn neighbour_timers(&mut self) {
        let lost = self.neighbours.take_lost();
        self.lose(lost);
        while let Some(due) = self.neighbours.pop_due(self.now) {
            match due {
                Due::Query(ip, known) => self.query(ip, known),
                Due::Failed { ip, waiting, packets } => {
                    self.lose(packets);
                    for slot in waiting {
                        let cx = cx!(self);
                        if let Some(Sock { kind: Kind::Tcp(c), .. }) = self.sockets.get_mut(slot)
                            // Who waited may be gone, and another have its place, or it may try another peer.
                            && self.iface.route(c.tuple.remote.ip) == Some(Route::Via(ip))
                        {
                            c.no_path(&cx, true);
                            self.after_emit(slot);
                        }
                    }
                }
            }
        }
    }

    pub(crate) fn add_link_local(&mut self) {
        let m = self.config.mac;
        let ip = Ip([0xfe, 0x80, 0, 0, 0, 0, 0, 0, m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]]);
        if self.iface.add(ip, 64) == Some(true) {
            self.announce(ip);
        }
    }

    /// Sends a neighbour discovery message: `kind`, four bytes, the target if there is one, and our Ethernet address as the option `option`.
    pub(crate) fn send_ndp(&mut self, src: Ip, dst: Ip, kind: u8, word: [u8; 4], target: Option<Ip>, option: u8) {
        let [m0, m1, m2, m3, m4, m5] = self.config.mac;
        let link = [option, 1, m0, m1, m2, m3, m4, m5];
        let target = target.map(|t| t.0);
        let target = target.as_ref().map_or(&[][..], |t| t);
        let link: &[u8] = if src.is_unspecified() { &[] } else { &link };
        self.send_ip(src, dst, 58, 255, &[&[kind, 0, 0, 0], &word, target, link], Some(2));
    }

    fn solicit(&mut self, src: Ip, hop: Ip, known: Option<[u8; 6]>) {
        let _ = known;
        self.send_ndp(src, hop.solicited_node(), SOLICITATION, [0; 4], Some(hop), 1);
    }

    fn advertise_unsolicited(&mut self, ip: Ip) {
        // Override.
        self.send_ndp(ip, ALL_NODES, ADVERTISEMENT, [0x20, 0, 0, 0], Some(ip), 2);
    }

    /// A neighbour discovery message whose hop limit and checksum are right.
    pub(crate) fn ndp_input(&mut self, meta: &Meta, kind: u8, data: &[u8]) {
        match kind {
            SOLICITATION | ADVERTISEMENT => {
                let Some((head, options)) = data.split_first_chunk::<24>() else { return };
                let Some(target) = head[8..].first_chunk::<16>().map(|t| Ip(*t)) else { return };
                let mut mac = None;
                options_of(options, |option, body| {
                    if option == if kind == SOLICITATION { 1 } else { 2 } {
                        mac = body.first_chunk::<6>().copied();
                    }
                });
                if kind == SOLICITATION {
                    self.on_solicitation(meta, target, mac);
                } else if let Some(mac) = mac
                    && !self.iface.owns(target)
                    // Without the override flag it is no news about an address that is known (RFC 4861 §7.2.5).
                    && (head[4] & 0x20 != 0 || self.neighbours.known(target).is_none_or(|m| m == mac))
                    && let Some(r) = self.neighbours.learn(self.now, target, mac, false)
                {
                    self.release(r);
                }
            }
            ROUTER_ADVERTISEMENT => self.router_advertisement(meta, data),
            _ => {}
        }
    }

    fn on_solicitation(&mut self, meta: &Meta, target: Ip, mac: Option<[u8; 6]>) {
        if !self.iface.owns(target) || self.iface.owns(meta.src) {
            return;
        }
        if meta.src.is_unspecified() {
            // Somebody wants our address (RFC 4862 §5.4.3).
            self.advertise_unsolicited(target);
            return;
        }
        if let Some(mac) = mac
            && let Some(r) = self.neighbours.learn(self.now, meta.src, mac, true)
        {
            self.release(r);
        }
        // Solicited, override.
        self.send_ndp(target, meta.src, ADVERTISEMENT, [0x60, 0, 0, 0], Some(target), 2);
    }
}

pub(crate) const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const ALL_NODES: Ip = Ip([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// Calls `each` with type and content of the options; a malformed one ends it.
pub(crate) fn options_of(mut options: &[u8], mut each: impl FnMut(u8, &[u8])) {
    while let Some(&[kind, len]) = options.first_chunk::<2>() {
        let len = usize::from(len) * 8;
        let Some((option, rest)) = options.split_at_checked(len) else { return };
        let Some(body) = option.get(2..) else { return };
        each(kind, body);
        options = rest;
    }
}
