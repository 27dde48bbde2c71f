//! The filter as eBPF programs, one per direction. They decide as [`super::super::Filter`] does; read them side by side.

use donjon_abi::manifest::METADATA6;

use super::super::rate::{Rate, SHIFT};
use super::super::rules::{Rules, Source4, TCP, UDP};
use super::super::{
    ARP, CHECKSUM_TCP, CHECKSUM_UDP, DATAGRAM, ETH, FRAGMENT6, ICMP, ICMPV6, IPV4, IPV6, NEIGHBOUR, Reason,
    SEGMENT_HEAD, STRANGERS, V4_MAPPED, Way,
};
use super::asm::{Asm, Cmp, Label, Op, Reg, Width};
use Cmp::{Eq, Gt, Ne};
use Reg::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};
use Width::{B, D, H, W};

/// Bytes of the only value of the state array: the lease's address and server, then a counter per way and reason, then when the next connection and the
/// next byte are due, then whom the guest has asked for, then the transaction of its last DHCP message and whether one is open.
pub(super) const STATE_LEN: usize = OPEN as usize + 4;
const CONNECTION_DUE: i16 = 8 + 16 * Reason::ALL.len() as i16;
const BYTE_DUE: i16 = CONNECTION_DUE + 8;
const ASKED: i16 = BYTE_DUE + 8;
const TRANSACTION: i16 = ASKED + 4 * STRANGERS as i16;
const OPEN: i16 = TRANSACTION + 4;
/// Bytes of a key of the flow map: peer's address, its port, the guest's port (network order), protocol (`u32`).
pub(super) const KEY_LEN: usize = 24;

/// What a program returns: go on with the next one (`TC_ACT_UNSPEC`), and drop (`TC_ACT_SHOT`, linux/pkt_cls.h).
const NEXT: i32 = -1;
const DROP: i32 = 2;

/// Helpers (linux/bpf.h).
const MAP_LOOKUP: u32 = 1;
const MAP_UPDATE: u32 = 2;
const NANOSECONDS: u32 = 5;
const STORE_BYTES: u32 = 9;
const REPLACE_CHECKSUM: u32 = 11;
const LOAD_BYTES: u32 = 26;
const CHANGE_TAIL: u32 = 38;
const EINVAL: i32 = 22;

/// Fields of `struct __sk_buff`.
const SKB_LEN: i16 = 0;
const SKB_VLAN_PRESENT: i16 = 20;
const SKB_GSO_SIZE: i16 = 176;

// The stack. The verifier wants words at multiples of their size.
/// The Ethernet header; its bytes 6 and 10 are aligned.
const ETHER: i16 = -18;
/// IP header or ARP packet.
const IP: i16 = -64;
/// First bytes of the transport header.
const L4: i16 = -88;
const KEY: i16 = -112;
const KEY_PEER_PORT: i16 = KEY + 16;
const KEY_PORT: i16 = KEY + 18;
const KEY_PROTOCOL: i16 = KEY + 20;
/// A value for the flow map.
const VALUE: i16 = -116;
/// Not 0 if the frame is a fragment, and its identification in place of the key's ports.
const FRAGMENT: i16 = -120;
const IDENTIFICATION: i16 = -124;
/// DHCP message.
const DHCP: i16 = -168;
const OPTION: i16 = -176;

/// Where a counter is in the state array's value.
pub(super) fn counter_at(way: Way, reason: Reason) -> i16 {
    8 + 8 * (way as i16 * Reason::ALL.len() as i16 + reason as i16)
}

/// Descriptors of the maps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps {
    pub flows: i32,
    pub state: i32,
}

/// A program in the making: `R6` is the frame, `R7` the protocol, `R8` where the transport header begins, `R9` where the IP packet ends.
struct Program<'a> {
    asm: Asm,
    rules: &'a Rules,
    maps: Maps,
    way: Way,
    accept: Label,
    /// The same for TCP and UDP of the guest that is not in fragments; `R7` and `R8` hold.
    accept_ports: Label,
}

/// The program for frames of the guest.
pub(super) fn from_guest(rules: &Rules, maps: Maps) -> Option<Vec<u64>> {
    let mut p = Program::new(rules, maps, Way::FromGuest);
    p.ethernet();
    let (arp, v4, v6) = p.ether_type();
    p.asm.place(arp);
    p.arp_from_guest();
    p.asm.place(v4);
    p.ipv4_from_guest();
    let transport = p.asm.label();
    p.asm.jump(transport);
    p.asm.place(v6);
    p.ipv6_from_guest();
    p.asm.place(transport);
    p.transport_from_guest();
    p.finish()
}

/// The program for frames to the guest.
pub(super) fn to_guest(rules: &Rules, maps: Maps) -> Option<Vec<u64>> {
    let mut p = Program::new(rules, maps, Way::ToGuest);
    p.ethernet();
    let (arp, v4, v6) = p.ether_type();
    p.asm.place(arp);
    p.arp_to_guest();
    p.asm.place(v4);
    p.ipv4_to_guest();
    let transport = p.asm.label();
    p.asm.jump(transport);
    p.asm.place(v6);
    p.ipv6_to_guest();
    p.asm.place(transport);
    p.transport_to_guest();
    p.finish()
}

fn raw16(b: [u8; 2]) -> u32 {
    u32::from(u16::from_ne_bytes(b))
}

fn raw32(b: [u8; 4]) -> u32 {
    u32::from_ne_bytes(b)
}

impl<'a> Program<'a> {
    fn new(rules: &'a Rules, maps: Maps, way: Way) -> Program<'a> {
        let mut asm = Asm::default();
        let (accept, accept_ports) = (asm.label(), asm.label());
        Program { asm, rules, maps, way, accept, accept_ports }
    }

    fn finish(mut self) -> Option<Vec<u64>> {
        self.asm.place(self.accept);
        if self.way == Way::FromGuest {
            self.require_fitting_checksum();
        }
        if let Some(rate) = Rate::send(self.rules.limit).filter(|_| self.way == Way::FromGuest) {
            self.count_bytes();
            self.require_in_time(rate, BYTE_DUE);
        }
        self.asm.op(Op::Mov, R0, NEXT);
        self.asm.exit();
        for (reason, label) in self.asm.drops() {
            self.asm.place(label);
            self.asm.map_value(R1, self.maps.state);
            self.asm.op(Op::Mov, R2, 1);
            self.asm.atomic_add(R1, counter_at(self.way, reason), R2);
            self.asm.op(Op::Mov, R0, DROP);
            self.asm.exit();
        }
        self.asm.finish()
    }

    /// Of what the offload header says, a program sees nothing. But a checksum that is still to be made is written by the kernel, or a network card, to where that header says, after
    /// the filter has judged: into addresses, ports or flags, with a value of the guest's choice. So there may be none to be made, or it lies behind all that was judged.
    fn require_fitting_checksum(&mut self) {
        let (done, misfit, udp) = (self.asm.label(), self.asm.drop(Reason::Offload), self.asm.label());
        self.if_checksum_is_complete(done);
        self.asm.jump(misfit);
        self.asm.place(self.accept_ports);
        self.if_checksum_is_complete(done);
        // `bpf_skb_change_tail` cuts no frame to less than its checksum's end and says EINVAL. What it does cut is dropped.
        self.asm.op_reg(Op::Mov, R2, R8);
        self.asm.op(Op::Add, R2, i32::from(CHECKSUM_UDP) + 1);
        self.asm.jump_if(Ne, R7, TCP.into(), udp);
        self.asm.op(Op::Add, R2, i32::from(CHECKSUM_TCP - CHECKSUM_UDP));
        self.asm.place(udp);
        self.asm.op_reg(Op::Mov, R1, R6);
        self.asm.op(Op::Mov, R3, 0);
        self.asm.call(CHANGE_TAIL);
        self.asm.jump_if(Ne, R0, -EINVAL as u32, misfit);
        self.asm.place(done);
    }

    /// Goes to `yes` if no checksum is to be made: only then does replacing a word in one change its bytes. Any two do; they are the first two, which are put back.
    fn if_checksum_is_complete(&mut self, yes: Label) {
        let (partial, misfit) = (self.asm.label(), self.asm.drop(Reason::Offload));
        for (argument, value) in [(R2, 0), (R3, 0), (R4, 1), (R5, 2)] {
            self.asm.op(Op::Mov, argument, value);
        }
        self.asm.op_reg(Op::Mov, R1, R6);
        self.asm.call(REPLACE_CHECKSUM);
        self.asm.jump_if(Ne, R0, 0, misfit);
        self.fetch(0, L4, 2);
        self.stack(H, R1, ETHER);
        self.stack(H, R2, L4);
        self.asm.jump_if_reg(Eq, R1, R2, partial);
        self.asm.op_reg(Op::Mov, R1, R6);
        self.asm.op(Op::Mov, R2, 0);
        self.asm.op_reg(Op::Mov, R3, R10);
        self.asm.op(Op::Add, R3, i32::from(ETHER));
        self.asm.op(Op::Mov, R4, 2);
        self.asm.op(Op::Mov, R5, 0);
        self.asm.call(STORE_BYTES);
        self.asm.jump_if(Ne, R0, 0, misfit);
        self.asm.jump(yes);
        self.asm.place(partial);
    }

    /// `R7` = [`super::super::bytes_on_the_line`].
    fn count_bytes(&mut self) {
        let whole = self.asm.label();
        self.asm.load(W, R7, R6, SKB_LEN);
        self.asm.load(W, R1, R6, SKB_GSO_SIZE);
        self.asm.jump_if(Eq, R1, 0, whole);
        self.asm.op_reg(Op::Mov, R2, R7);
        self.asm.op_reg(Op::Div, R2, R1);
        self.asm.op(Op::Mul, R2, SEGMENT_HEAD as i32);
        self.asm.op_reg(Op::Add, R7, R2);
        self.asm.place(whole);
    }

    /// Drops unless `R7` units, which are lost, keep to the limit: `Rate::take`. Its state needs no lock: a device's frames come one after the other, from its only
    /// queue.
    fn require_in_time(&mut self, rate: Rate, due: i16) {
        let (late, over) = (self.asm.label(), self.asm.drop(Reason::Rate));
        self.asm.call(NANOSECONDS);
        self.asm.map_value(R1, self.maps.state);
        self.asm.load(D, R2, R1, due);
        self.asm.jump_if_reg(Gt, R2, R0, late);
        self.asm.op_reg(Op::Mov, R2, R0);
        self.asm.place(late);
        self.asm.constant(R3, rate.cost);
        self.asm.op_reg(Op::Mul, R7, R3);
        self.asm.op(Op::Shr, R7, SHIFT.into());
        self.asm.op_reg(Op::Add, R2, R7);
        self.asm.op_reg(Op::Mov, R3, R2);
        self.asm.op_reg(Op::Sub, R3, R0);
        self.asm.constant(R4, rate.burst);
        self.asm.jump_if_reg(Gt, R3, R4, over);
        self.asm.store(D, R1, due, R2);
    }

    /// Copies `len` bytes of the frame to the stack; drops a frame that is shorter.
    fn fetch(&mut self, from: usize, to: i16, len: usize) {
        self.asm.op(Op::Mov, R2, from as i32);
        self.fetch_r2(to, len);
    }

    /// The same at `R8` plus `more`.
    fn fetch_transport(&mut self, to: i16, len: usize) {
        self.asm.op_reg(Op::Mov, R2, R8);
        self.fetch_r2(to, len);
    }

    fn fetch_r2(&mut self, to: i16, len: usize) {
        let short = self.asm.drop(Reason::Truncated);
        self.asm.op_reg(Op::Mov, R1, R6);
        self.asm.op_reg(Op::Mov, R3, R10);
        self.asm.op(Op::Add, R3, i32::from(to));
        self.asm.op(Op::Mov, R4, len as i32);
        self.asm.call(LOAD_BYTES);
        self.asm.jump_if(Ne, R0, 0, short);
    }

    fn stack(&mut self, width: Width, dst: Reg, at: i16) {
        self.asm.load(width, dst, R10, at);
    }

    fn drop_if(&mut self, cmp: Cmp, a: Reg, b: u32, reason: Reason) {
        let to = self.asm.drop(reason);
        self.asm.jump_if(cmp, a, b, to);
    }

    fn drop_always(&mut self, reason: Reason) {
        let to = self.asm.drop(reason);
        self.asm.jump(to);
    }

    /// Drops unless the bytes at `at` are the guest's Ethernet address. `at` and `at + 4` are aligned.
    fn require_mac(&mut self, at: i16, reason: Reason) {
        let [a, b, c, d, e, f] = self.rules.mac;
        self.stack(W, R1, at);
        self.drop_if(Ne, R1, raw32([a, b, c, d]), reason);
        self.stack(H, R1, at + 4);
        self.drop_if(Ne, R1, raw16([e, f]), reason);
    }

    fn ethernet(&mut self) {
        self.asm.op_reg(Op::Mov, R6, R1);
        // The kernel has taken a VLAN tag out of the frame by now.
        self.asm.load(W, R1, R6, SKB_VLAN_PRESENT);
        self.drop_if(Ne, R1, 0, Reason::EtherType);
        self.fetch(0, ETHER, ETH);
        if self.way == Way::FromGuest {
            self.require_mac(ETHER + 6, Reason::SourceMac);
        }
    }

    /// Labels for ARP, IPv4 and IPv6.
    fn ether_type(&mut self) -> (Label, Label, Label) {
        let labels = (self.asm.label(), self.asm.label(), self.asm.label());
        self.stack(H, R1, ETHER + 12);
        for (kind, label) in [(IPV4, labels.1), (IPV6, labels.2), (ARP, labels.0)] {
            self.asm.jump_if(Eq, R1, raw16(kind), label);
        }
        self.drop_always(Reason::EtherType);
        labels
    }

    /// The guest's own IPv4 address, or 0.
    fn own4(&mut self, dst: Reg) {
        match self.rules.source4 {
            Source4::None => self.asm.op(Op::Mov, dst, 0),
            Source4::Static(a) => self.asm.op32(Op::Mov, dst, raw32(a.octets())),
            Source4::Dhcp => {
                self.asm.map_value(dst, self.maps.state);
                self.asm.load(W, dst, dst, 0);
            }
        }
    }

    /// Two halves at addresses that are not aligned for a word.
    fn halves(&mut self, dst: Reg, other: Reg, at: i16) {
        self.stack(H, dst, at);
        self.stack(H, other, at + 2);
        self.asm.op(Op::Shl, other, 16);
        self.asm.op_reg(Op::Or, dst, other);
    }

    /// The key's peer is an IPv4 address.
    fn key_peer4(&mut self, address: Reg) {
        self.asm.store_immediate(D, R10, KEY, 0);
        self.asm.store_immediate(W, R10, KEY + 8, raw32([0, 0, 0xff, 0xff]));
        self.asm.store(W, R10, KEY + 12, address);
    }

    /// The key's peer is the IPv6 address at `at`.
    fn key_peer6(&mut self, at: i16) {
        for half in [0, 8] {
            self.stack(D, R1, at + half);
            self.asm.store(D, R10, KEY + half, R1);
        }
    }

    fn key_neighbour(&mut self) {
        self.asm.store_immediate(W, R10, KEY_PEER_PORT, 0);
        self.asm.store_immediate(W, R10, KEY_PROTOCOL, NEIGHBOUR.into());
    }

    /// Looks the key up: `R0` is 0 if it is not known.
    fn lookup(&mut self) {
        self.asm.map(R1, self.maps.flows);
        self.asm.op_reg(Op::Mov, R2, R10);
        self.asm.op(Op::Add, R2, i32::from(KEY));
        self.asm.call(MAP_LOOKUP);
    }

    /// Remembers the key, and its peer as a neighbour, and accepts the frame.
    fn remember_and_accept(&mut self) {
        self.accept_if_known();
        self.asm.store_immediate(W, R10, VALUE, 0);
        self.add();
        self.key_neighbour();
        self.add();
        self.asm.jump(self.accept);
    }

    /// Puts the key into the map.
    fn add(&mut self) {
        self.asm.map(R1, self.maps.flows);
        for (argument, at) in [(R2, KEY), (R3, VALUE)] {
            self.asm.op_reg(Op::Mov, argument, R10);
            self.asm.op(Op::Add, argument, i32::from(at));
        }
        self.asm.op(Op::Mov, R4, 0);
        self.asm.call(MAP_UPDATE);
    }

    /// Accepts the frame if the key is known, else goes on.
    fn accept_if_known(&mut self) {
        self.lookup();
        // A pointer: all 64 bits count.
        self.asm.op(Op::Mov, R1, 0);
        self.asm.jump_if_reg(Ne, R0, R1, self.accept);
    }

    /// Goes to `yes` if the manifest permits the key's peer: at its port with the protocol in `R7`, or at any.
    fn if_permitted(&mut self, ports: bool, yes: Label) {
        if self.rules.egress.is_empty() {
            return;
        }
        self.least_prefix();
        for e in &self.rules.egress {
            let next = self.asm.label();
            self.asm.jump_if(Gt, R5, e.prefix.into(), next);
            if ports && e.protocol != 0 {
                self.asm.jump_if(Ne, R7, e.protocol.into(), next);
            }
            if ports && e.port != 0 {
                self.asm.load(H, R1, R10, KEY_PEER_PORT);
                self.asm.jump_if(Ne, R1, raw16(e.port.to_be_bytes()), next);
            }
            let mask = u128::MAX.checked_shl(128 - u32::from(e.prefix)).unwrap_or(0).to_be_bytes();
            for (i, (mask, addr)) in mask.as_chunks::<4>().0.iter().zip(e.addr.as_chunks::<4>().0).enumerate() {
                let (mask, addr) = (raw32(*mask), raw32(*addr));
                if mask != 0 {
                    self.asm.load(W, R1, R10, KEY + 4 * i as i16);
                    self.asm.op32(Op::And, R1, mask);
                    self.asm.jump_if(Ne, R1, addr & mask, next);
                }
            }
            self.asm.jump(yes);
            self.asm.place(next);
        }
    }

    /// `R5` = `manifest::least_prefix` of the key's peer.
    fn least_prefix(&mut self) {
        let (v6, done) = (self.asm.label(), self.asm.label());
        self.unless_v4_mapped(v6);
        self.stack(W, R1, KEY + 12);
        self.special(R1, 0xffff, raw16([169, 254]), 112, done);
        self.special(R1, 0xf0, 0xe0, 100, done);
        self.special(R1, u32::MAX, u32::MAX, 128, done);
        self.special(R1, 0xff, 0, 128, done);
        self.special(R1, 0xff, 127, 128, done);
        self.asm.op(Op::Mov, R5, 0);
        self.asm.jump(done);
        self.asm.place(v6);
        self.stack(W, R1, KEY);
        self.special(R1, 0xff, 0xff, 8, done);
        self.special(R1, 0xffff, raw16([0xfe, 0x80]), 16, done);
        let (not, other) = (self.asm.label(), self.asm.label());
        self.unless_metadata6(not);
        self.asm.op(Op::Mov, R5, 48);
        self.asm.jump(done);
        self.asm.place(not);
        for i in 0..3 {
            self.stack(W, R1, KEY + 4 * i);
            self.asm.jump_if(Ne, R1, 0, other);
        }
        self.stack(W, R1, KEY + 12);
        self.special(R1, raw32([255, 255, 255, 0]), 0, 128, done);
        self.asm.place(other);
        self.asm.op(Op::Mov, R5, 0);
        self.asm.place(done);
    }

    /// If `value & mask` is `wanted`: `R5` = `least`, and done.
    fn special(&mut self, value: Reg, mask: u32, wanted: u32, least: i32, done: Label) {
        let next = self.asm.label();
        self.asm.op_reg(Op::Mov, R2, value);
        self.asm.op32(Op::And, R2, mask);
        self.asm.jump_if(Ne, R2, wanted, next);
        self.asm.op(Op::Mov, R5, least);
        self.asm.jump(done);
        self.asm.place(next);
    }

    fn unless_v4_mapped(&mut self, no: Label) {
        for (i, word) in V4_MAPPED.as_chunks::<4>().0.iter().enumerate() {
            self.stack(W, R1, KEY + 4 * i as i16);
            self.asm.jump_if(Ne, R1, raw32(*word), no);
        }
    }

    fn unless_metadata6(&mut self, no: Label) {
        let [a, b, c, d, e, f] = METADATA6;
        self.stack(W, R1, KEY);
        self.asm.jump_if(Ne, R1, raw32([a, b, c, d]), no);
        self.stack(H, R1, KEY + 4);
        self.asm.jump_if(Ne, R1, raw16([e, f]), no);
    }
}

/// From the guest.
impl Program<'_> {
    fn arp_from_guest(&mut self) {
        self.fetch(ETH, IP, 28);
        self.own4(R7);
        self.drop_if(Eq, R7, 0, Reason::Arp);
        self.stack(W, R1, IP);
        self.drop_if(Ne, R1, raw32([0, 1, 8, 0]), Reason::Arp);
        self.stack(H, R1, IP + 4);
        self.drop_if(Ne, R1, raw16([6, 4]), Reason::Arp);
        self.require_mac(IP + 8, Reason::Arp);
        self.halves(R1, R2, IP + 14);
        let other = self.asm.drop(Reason::Arp);
        self.asm.jump_if_reg(Ne, R1, R7, other);
        // Operation: a reply may go to anybody, a request is for an address that the guest has business with.
        self.stack(H, R1, IP + 6);
        self.asm.jump_if(Eq, R1, raw16([0, 2]), self.accept);
        self.drop_if(Ne, R1, raw16([0, 1]), Reason::Arp);
        self.stack(W, R1, IP + 24);
        self.asm.jump_if_reg(Eq, R1, R7, self.accept);
        if let Some(gateway) = self.rules.gateway4 {
            self.asm.jump_if(Eq, R1, raw32(gateway.octets()), self.accept);
        }
        self.key_peer4(R1);
        self.key_neighbour();
        self.if_permitted(false, self.accept);
        self.accept_if_known();
        if self.rules.source4 == Source4::Dhcp {
            self.stack(W, R1, IP + 24);
            self.asm.map_value(R2, self.maps.state);
            for i in 0..STRANGERS as i16 {
                let (at, other) = (ASKED + 4 * i, self.asm.label());
                self.asm.load(W, R3, R2, at);
                self.asm.jump_if_reg(Eq, R3, R1, self.accept);
                self.asm.jump_if(Ne, R3, 0, other);
                self.asm.store(W, R2, at, R1);
                self.asm.jump(self.accept);
                self.asm.place(other);
            }
        }
        self.drop_always(Reason::ArpTarget);
    }

    fn ipv4_from_guest(&mut self) {
        self.fetch(ETH, IP, 20);
        self.stack(B, R1, IP);
        self.drop_if(Ne, R1, 0x45, Reason::Options);
        self.stack(H, R1, IP + 6);
        self.asm.op32(Op::And, R1, raw16([0xbf, 0xff]));
        self.asm.store(W, R10, FRAGMENT, R1);
        self.stack(B, R7, IP + 9);
        let whole = self.asm.label();
        self.asm.jump_if(Eq, R1, 0, whole);
        self.drop_if(Ne, R7, UDP.into(), Reason::Fragment);
        self.asm.op32(Op::And, R1, raw16([0x80, 0]));
        self.drop_if(Ne, R1, 0, Reason::Fragment);
        self.asm.place(whole);
        // R9 = where the packet ends.
        self.stack(H, R9, IP + 2);
        self.packet_end(ETH);
        self.own4(R8);
        if self.rules.source4 == Source4::Dhcp {
            self.dhcp_from_guest();
        }
        let other = self.asm.drop(Reason::SourceAddress);
        self.asm.jump_if(Eq, R8, 0, other);
        self.stack(W, R1, IP + 12);
        self.asm.jump_if_reg(Ne, R1, R8, other);
        self.stack(W, R1, IP + 16);
        self.key_peer4(R1);
        self.stack(H, R1, IP + 4);
        self.asm.op(Op::Shl, R1, 16);
        self.asm.store(W, R10, IDENTIFICATION, R1);
        self.stack(W, R1, FRAGMENT);
        self.asm.op32(Op::And, R1, raw16([0x1f, 0xff]));
        let first = self.asm.label();
        self.asm.jump_if(Eq, R1, 0, first);
        self.later_fragment();
        self.asm.place(first);
        self.asm.op(Op::Mov, R8, ETH as i32 + 20);
    }

    fn later_fragment(&mut self) {
        self.key_datagram();
        self.accept_if_known();
        self.drop_always(Reason::Fragment);
    }

    fn key_datagram(&mut self) {
        self.stack(W, R1, IDENTIFICATION);
        self.asm.store(W, R10, KEY_PEER_PORT, R1);
        self.asm.store_immediate(W, R10, KEY_PROTOCOL, DATAGRAM.into());
    }

    /// Accepts what has passed by its ports; if it is a first fragment, the others may follow.
    fn accept_transport(&mut self, entry: Label) {
        self.asm.place(entry);
        let fragment = self.asm.label();
        self.stack(W, R1, FRAGMENT);
        self.asm.jump_if(Ne, R1, 0, fragment);
        self.asm.jump_if(Eq, R7, TCP.into(), self.accept_ports);
        self.asm.jump_if(Eq, R7, UDP.into(), self.accept_ports);
        self.asm.jump(self.accept);
        self.asm.place(fragment);
        self.asm.store_immediate(W, R10, VALUE, 0);
        self.key_datagram();
        self.add();
        self.asm.jump(self.accept);
    }

    /// `R9` is a length in network order that counts from `from` on: makes it the packet's end, which must lie in the frame.
    fn packet_end(&mut self, from: usize) {
        self.asm.network16(R9);
        self.asm.op(Op::Add, R9, from as i32);
        let short = self.asm.drop(Reason::Truncated);
        self.asm.load(W, R1, R6, SKB_LEN);
        self.asm.jump_if_reg(Gt, R9, R1, short);
    }

    /// A client's questions pass: from nobody to all, or, with the lease in `R8`, to the server as well.
    fn dhcp_from_guest(&mut self) {
        let (other, not_ours, asks) = (self.asm.label(), self.asm.label(), self.asm.label());
        self.asm.jump_if(Ne, R7, UDP.into(), other);
        self.stack(W, R1, FRAGMENT);
        self.asm.jump_if(Ne, R1, 0, other);
        self.fetch(ETH + 20, L4, 4);
        self.stack(W, R1, L4);
        self.asm.jump_if(Ne, R1, raw32([0, 68, 0, 67]), other);
        self.stack(W, R1, IP + 12);
        self.stack(W, R2, IP + 16);
        self.asm.jump_if(Eq, R8, 0, not_ours);
        self.asm.jump_if_reg(Ne, R1, R8, not_ours);
        self.asm.jump_if(Eq, R2, u32::MAX, asks);
        self.asm.map_value(R3, self.maps.state);
        self.asm.load(W, R3, R3, 4);
        self.asm.jump_if_reg(Eq, R2, R3, asks);
        self.asm.jump(other);
        self.asm.place(not_ours);
        self.drop_if(Ne, R1, 0, Reason::SourceAddress);
        self.drop_if(Ne, R2, u32::MAX, Reason::SourceAddress);
        self.asm.place(asks);
        self.fetch(ETH + 32, L4, 4);
        self.stack(W, R1, L4);
        self.asm.map_value(R3, self.maps.state);
        self.asm.store(W, R3, TRANSACTION, R1);
        self.asm.store_immediate(W, R3, OPEN, 1);
        self.asm.op(Op::Mov, R8, ETH as i32 + 20);
        self.asm.jump(self.accept_ports);
        self.asm.place(other);
    }

    fn ipv6_from_guest(&mut self) {
        self.fetch(ETH, IP, 40);
        self.stack(B, R1, IP);
        self.asm.op32(Op::And, R1, 0xf0);
        self.drop_if(Ne, R1, 0x60, Reason::Options);
        self.stack(H, R9, IP + 4);
        self.packet_end(ETH + 40);
        self.require_own6(IP + 8, Reason::SourceAddress);
        self.key_peer6(IP + 24);
        self.stack(B, R7, IP + 6);
        self.asm.op(Op::Mov, R8, ETH as i32 + 40);
        self.asm.store_immediate(W, R10, FRAGMENT, 0);
        let (icmp, fragment, go_on) = (self.asm.label(), self.asm.label(), self.asm.label());
        self.asm.jump_if(Eq, R7, TCP.into(), go_on);
        self.asm.jump_if(Eq, R7, UDP.into(), go_on);
        self.asm.jump_if(Eq, R7, ICMPV6.into(), icmp);
        self.asm.jump_if(Eq, R7, FRAGMENT6.into(), fragment);
        for header in [0, 43, 50, 51, 60, 135, 139, 140] {
            self.drop_if(Eq, R7, header, Reason::Options);
        }
        self.drop_always(Reason::Protocol);
        self.asm.place(fragment);
        self.fragment6_from_guest();
        self.asm.jump(go_on);
        self.asm.place(icmp);
        // Too short for ICMPv6 at all: said further below.
        self.asm.op(Op::Mov, R1, ETH as i32 + 48);
        self.asm.jump_if_reg(Gt, R1, R9, go_on);
        self.fetch(ETH + 40, L4, 8);
        self.stack(B, R2, L4);
        for (kind, option, option_kind) in [(133, 8, 1), (135, 24, 1), (136, 24, 2)] {
            let next = self.asm.label();
            self.asm.jump_if(Ne, R2, kind, next);
            self.neighbour_discovery(kind, option, option_kind);
            self.asm.place(next);
        }
        self.asm.place(go_on);
    }

    fn fragment6_from_guest(&mut self) {
        self.fetch(ETH + 40, L4, 8);
        self.stack(B, R1, L4);
        self.drop_if(Ne, R1, UDP.into(), Reason::Fragment);
        self.stack(W, R1, L4 + 4);
        self.asm.store(W, R10, IDENTIFICATION, R1);
        self.stack(H, R1, L4 + 2);
        self.asm.op32(Op::And, R1, raw16([0xff, 0xf8]));
        let first = self.asm.label();
        self.asm.jump_if(Eq, R1, 0, first);
        self.later_fragment();
        self.asm.place(first);
        self.asm.store_immediate(W, R10, FRAGMENT, 1);
        self.asm.op(Op::Mov, R7, UDP.into());
        self.asm.op(Op::Mov, R8, ETH as i32 + 48);
    }

    fn neighbour_discovery(&mut self, kind: u32, option: usize, option_kind: u8) {
        let reason = Reason::NeighbourDiscovery;
        self.stack(B, R1, IP + 7);
        self.drop_if(Ne, R1, 255, reason);
        self.drop_if(Ne, R9, (ETH + 40 + option + 8) as u32, reason);
        self.fetch(ETH + 40 + option, L4, 8);
        let [a, b, c, d, e, f] = self.rules.mac;
        self.stack(W, R1, L4);
        self.drop_if(Ne, R1, raw32([option_kind, 1, a, b]), reason);
        self.stack(W, R1, L4 + 4);
        self.drop_if(Ne, R1, raw32([c, d, e, f]), reason);
        if kind == 136 {
            self.fetch(ETH + 48, L4, 16);
            self.require_own6(L4, reason);
        }
        // Where to: what a router sends on could carry anything to anybody.
        let network = |dst: [u8; 8]| u64::from_ne_bytes(dst);
        self.stack(D, R1, IP + 24);
        self.stack(D, R2, IP + 32);
        if kind != 133 {
            self.asm.constant(R3, network([0xfe, 0x80, 0, 0, 0, 0, 0, 0]));
            self.asm.jump_if_reg(Eq, R1, R3, self.accept);
        }
        if kind == 136 {
            self.key_neighbour();
            self.accept_if_known();
            self.stack(D, R1, IP + 24);
            self.stack(D, R2, IP + 32);
        }
        let group = match kind {
            133 => [0, 0, 0, 0, 0, 0, 0, 2],
            136 => [0, 0, 0, 0, 0, 0, 0, 1],
            _ => {
                self.asm.constant(R3, network([0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0]));
                self.asm.op_reg(Op::And, R2, R3);
                [0, 0, 0, 1, 0xff, 0, 0, 0]
            }
        };
        let other = self.asm.drop(reason);
        for (half, value) in [(R1, [0xff, 2, 0, 0, 0, 0, 0, 0]), (R2, group)] {
            self.asm.constant(R3, network(value));
            self.asm.jump_if_reg(Ne, half, R3, other);
        }
        self.asm.jump(self.accept);
    }

    /// Drops unless the address at `at` is one of the guest's own.
    fn require_own6(&mut self, at: i16, reason: Reason) {
        let (ok, other) = (self.asm.label(), self.asm.label());
        self.stack(D, R1, at);
        self.stack(D, R2, at + 8);
        if let Some(own) = self.rules.source6 {
            let next = self.asm.label();
            for (half, reg) in own.octets().as_chunks::<8>().0.iter().zip([R1, R2]) {
                self.asm.constant(R3, u64::from_ne_bytes(*half));
                self.asm.jump_if_reg(Ne, reg, R3, next);
            }
            self.asm.jump(ok);
            self.asm.place(next);
        }
        self.asm.constant(R3, u64::from_ne_bytes(self.rules.interface_id()));
        self.asm.jump_if_reg(Ne, R2, R3, other);
        if self.rules.slaac {
            self.stack(B, R3, at);
            self.asm.jump_if(Ne, R3, 0xff, ok);
        } else {
            self.asm.constant(R3, u64::from_ne_bytes([0xfe, 0x80, 0, 0, 0, 0, 0, 0]));
            self.asm.jump_if_reg(Eq, R1, R3, ok);
        }
        self.asm.place(other);
        self.drop_always(reason);
        self.asm.place(ok);
    }

    fn transport_from_guest(&mut self) {
        let (icmp, tcp, ports, known) = (self.asm.label(), self.asm.label(), self.asm.label(), self.asm.label());
        for (protocol, label) in [(TCP, tcp), (ICMP, icmp), (ICMPV6, icmp)] {
            self.asm.jump_if(Eq, R7, protocol.into(), label);
        }
        self.drop_if(Ne, R7, UDP.into(), Reason::Protocol);
        self.require_transport(8);
        self.fetch_transport(L4, 8);
        self.asm.jump(ports);

        self.asm.place(icmp);
        self.require_transport(8);
        self.fetch_transport(L4, 8);
        self.stack(B, R1, L4);
        let (reply6, reply) = (self.asm.label(), self.asm.label());
        self.asm.jump_if(Eq, R7, ICMPV6.into(), reply6);
        self.drop_if(Ne, R1, 0, Reason::Protocol);
        self.asm.jump(reply);
        self.asm.place(reply6);
        self.drop_if(Ne, R1, 129, Reason::Protocol);
        self.asm.place(reply);
        self.key_echo();
        self.asm.jump(known);

        self.asm.place(tcp);
        self.require_transport(20);
        self.fetch_transport(L4, 14);
        self.asm.place(ports);
        self.key_ports(0, 2);
        let passes = self.asm.label();
        let limit = Rate::connections(self.rules.limit).filter(|_| !self.rules.egress.is_empty());
        if let Some(rate) = limit {
            let permitted = self.asm.label();
            self.if_permitted(true, permitted);
            self.asm.jump(known);
            self.asm.place(permitted);
            self.asm.jump_if(Ne, R7, TCP.into(), passes);
            self.tcp_opens(R1);
            self.asm.jump_if(Ne, R1, 0x02, passes);
            self.asm.op(Op::Mov, R7, 1);
            self.require_in_time(rate, CONNECTION_DUE);
            self.asm.op(Op::Mov, R7, TCP.into());
            self.asm.jump(passes);
        } else {
            self.if_permitted(true, passes);
        }

        self.asm.place(known);
        self.drop_metadata();
        self.lookup();
        self.asm.op(Op::Mov, R1, 0);
        let undeclared = self.asm.drop(Reason::Egress);
        self.asm.jump_if_reg(Eq, R0, R1, undeclared);
        self.asm.jump_if(Ne, R7, TCP.into(), passes);
        self.tcp_opens(R1);
        self.drop_if(Eq, R1, 0x02, Reason::Egress);
        self.accept_transport(passes);
    }

    /// Drops unless the IP packet has room for `len` bytes of transport header.
    fn require_transport(&mut self, len: i32) {
        let short = self.asm.drop(Reason::Truncated);
        self.asm.op_reg(Op::Mov, R1, R8);
        self.asm.op(Op::Add, R1, len);
        self.asm.jump_if_reg(Gt, R1, R9, short);
    }

    fn drop_metadata(&mut self) {
        let (v6, done) = (self.asm.label(), self.asm.label());
        self.unless_v4_mapped(v6);
        self.stack(H, R1, KEY + 12);
        self.asm.jump_if(Ne, R1, raw16([169, 254]), done);
        self.own4(R1);
        self.asm.op32(Op::And, R1, 0xffff);
        self.drop_if(Ne, R1, raw16([169, 254]), Reason::Metadata);
        self.asm.jump(done);
        self.asm.place(v6);
        self.unless_metadata6(done);
        self.drop_always(Reason::Metadata);
        self.asm.place(done);
    }

    /// The SYN and ACK bits of the TCP header on the stack.
    fn tcp_opens(&mut self, dst: Reg) {
        self.stack(B, dst, L4 + 13);
        self.asm.op32(Op::And, dst, 0x12);
    }

    /// The key's ports from the transport header, where the guest's and its peer's are; and its protocol.
    fn key_ports(&mut self, own: i16, peer: i16) {
        for (from, to) in [(own, KEY_PORT), (peer, KEY_PEER_PORT)] {
            self.stack(H, R1, L4 + from);
            self.asm.store(H, R10, to, R1);
        }
        self.asm.store(W, R10, KEY_PROTOCOL, R7);
    }

    /// The same for an echo: its identifier.
    fn key_echo(&mut self) {
        self.stack(H, R1, L4 + 4);
        self.asm.store(H, R10, KEY_PORT, R1);
        self.asm.store_immediate(H, R10, KEY_PEER_PORT, 0);
        self.asm.store(W, R10, KEY_PROTOCOL, R7);
    }
}

/// To the guest.
impl Program<'_> {
    fn arp_to_guest(&mut self) {
        self.fetch(ETH, IP, 28);
        self.own4(R7);
        self.asm.jump_if(Eq, R7, 0, self.accept);
        self.stack(W, R1, IP + 24);
        self.asm.jump_if_reg(Ne, R1, R7, self.accept);
        self.stack(B, R1, IP + 7);
        self.asm.jump_if(Ne, R1, 1, self.accept);
        self.halves(R1, R2, IP + 14);
        self.key_peer4(R1);
        self.key_neighbour();
        self.remember_and_accept();
    }

    fn ipv4_to_guest(&mut self) {
        self.fetch(ETH, IP, 20);
        self.stack(B, R1, IP);
        self.drop_if(Ne, R1, 0x45, Reason::Options);
        self.stack(B, R7, IP + 9);
        self.stack(H, R1, IP + 6);
        let whole = self.asm.label();
        self.asm.op32(Op::And, R1, raw16([0x3f, 0xff]));
        self.asm.jump_if(Eq, R1, 0, whole);
        self.drop_if(Eq, R7, TCP.into(), Reason::Fragment);
        self.asm.op32(Op::And, R1, raw16([0x1f, 0xff]));
        self.asm.jump_if(Ne, R1, 0, self.accept);
        self.asm.place(whole);
        if self.rules.source4 == Source4::Dhcp {
            self.dhcp_to_guest();
        }
        self.stack(W, R1, IP + 12);
        self.key_peer4(R1);
        self.asm.op(Op::Mov, R8, ETH as i32 + 20);
    }

    fn dhcp_to_guest(&mut self) {
        const AT: usize = ETH + 28;
        let (other, take) = (self.asm.label(), self.asm.label());
        self.asm.jump_if(Ne, R7, UDP.into(), other);
        self.fetch(ETH + 20, L4, 4);
        self.stack(W, R1, L4);
        self.asm.jump_if(Ne, R1, raw32([0, 67, 0, 68]), other);
        self.fetch(AT, DHCP, 34);
        self.fetch(AT + 240, OPTION, 3);
        let ignore = self.accept;
        self.stack(B, R1, DHCP);
        self.asm.jump_if(Ne, R1, 2, ignore);
        let [a, b, c, d, e, f] = self.rules.mac;
        self.stack(W, R1, DHCP + 28);
        self.asm.jump_if(Ne, R1, raw32([a, b, c, d]), ignore);
        self.stack(H, R1, DHCP + 32);
        self.asm.jump_if(Ne, R1, raw16([e, f]), ignore);
        self.stack(W, R3, IP + 12);
        self.asm.map_value(R4, self.maps.state);
        self.asm.load(W, R1, R4, 0);
        self.asm.jump_if_reg(Eq, R1, R3, ignore);
        self.asm.load(W, R1, R4, OPEN);
        self.asm.jump_if(Eq, R1, 0, ignore);
        self.asm.load(W, R1, R4, TRANSACTION);
        self.stack(W, R2, DHCP + 4);
        self.asm.jump_if_reg(Ne, R1, R2, ignore);
        self.stack(W, R2, DHCP + 16);
        self.asm.jump_if(Eq, R2, 0, ignore);
        self.asm.jump_if(Eq, R2, u32::MAX, ignore);
        self.stack(H, R1, OPTION);
        self.asm.jump_if(Ne, R1, raw16([53, 1]), take);
        self.stack(B, R1, OPTION + 2);
        self.asm.jump_if(Ne, R1, 5, ignore);
        self.asm.store_immediate(W, R4, OPEN, 0);
        self.asm.place(take);
        self.asm.store(W, R4, 0, R2);
        self.asm.store(W, R4, 4, R3);
        self.asm.jump(self.accept);
        self.asm.place(other);
    }

    fn ipv6_to_guest(&mut self) {
        self.fetch(ETH, IP, 40);
        self.stack(B, R1, IP);
        self.asm.op32(Op::And, R1, 0xf0);
        self.drop_if(Ne, R1, 0x60, Reason::Options);
        self.key_peer6(IP + 8);
        self.stack(B, R7, IP + 6);
        self.asm.op(Op::Mov, R8, ETH as i32 + 40);
        let (fragment, icmp, go_on) = (self.asm.label(), self.asm.label(), self.asm.label());
        self.asm.jump_if(Eq, R7, FRAGMENT6.into(), fragment);
        self.asm.jump_if(Eq, R7, ICMPV6.into(), icmp);
        self.asm.jump(go_on);
        self.asm.place(fragment);
        self.fetch(ETH + 40, L4, 8);
        self.stack(B, R1, L4);
        self.drop_if(Eq, R1, TCP.into(), Reason::Fragment);
        self.asm.jump(self.accept);
        self.asm.place(icmp);
        self.fetch(ETH + 40, L4, 8);
        self.stack(B, R1, L4);
        for kind in [1, 2, 3, 4, 133, 134, 136] {
            self.asm.jump_if(Eq, R1, kind, self.accept);
        }
        self.asm.jump_if(Ne, R1, 135, go_on);
        // Whoever asks for our Ethernet address, from the same network, gets an answer.
        self.stack(B, R1, IP + 7);
        self.asm.jump_if(Ne, R1, 255, self.accept);
        self.key_neighbour();
        self.remember_and_accept();
        self.asm.place(go_on);
    }

    fn transport_to_guest(&mut self) {
        let (icmp, tcp, ports) = (self.asm.label(), self.asm.label(), self.asm.label());
        for (protocol, label) in [(TCP, tcp), (ICMP, icmp), (ICMPV6, icmp)] {
            self.asm.jump_if(Eq, R7, protocol.into(), label);
        }
        self.drop_if(Ne, R7, UDP.into(), Reason::Protocol);
        self.fetch_transport(L4, 8);
        self.asm.jump(ports);

        self.asm.place(icmp);
        self.fetch_transport(L4, 8);
        self.stack(B, R1, L4);
        let (v6, echo) = (self.asm.label(), self.asm.label());
        self.asm.jump_if(Eq, R7, ICMPV6.into(), v6);
        self.asm.jump_if(Eq, R1, 3, self.accept);
        self.asm.jump_if(Eq, R1, 11, self.accept);
        self.drop_if(Ne, R1, 8, Reason::Protocol);
        self.asm.jump(echo);
        self.asm.place(v6);
        self.drop_if(Ne, R1, 128, Reason::Protocol);
        self.asm.place(echo);
        self.key_echo();
        let remember = self.asm.label();
        self.asm.jump(remember);

        self.asm.place(tcp);
        self.fetch_transport(L4, 14);
        self.asm.place(ports);
        self.key_ports(2, 0);
        if self.rules.listen_any {
            self.asm.jump(remember);
        } else {
            self.stack(H, R1, KEY_PORT);
            for (protocol, port) in &self.rules.listen {
                let next = self.asm.label();
                self.asm.jump_if(Ne, R7, (*protocol).into(), next);
                self.asm.jump_if(Eq, R1, raw16(port.to_be_bytes()), remember);
                self.asm.place(next);
            }
            let permitted = self.asm.label();
            self.if_permitted(true, permitted);
            self.drop_always(Reason::Listen);
            if !self.rules.egress.is_empty() {
                self.asm.place(permitted);
                self.asm.jump_if(Ne, R7, TCP.into(), self.accept);
                self.tcp_opens(R1);
                self.drop_if(Eq, R1, 0x02, Reason::Listen);
                self.asm.jump(self.accept);
            }
        }
        self.asm.place(remember);
        self.remember_and_accept();
    }
}
