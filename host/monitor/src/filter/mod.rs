//! The frame filter: what a guest's frames may say, enforced outside of the guest, so that it holds for a guest that has been taken over.
//!
//! It knows the guest's Ethernet and IP addresses, the ports on which the image declares to serve, and the destinations that it declares to
//! reach ([`rules`]). A frame of the guest passes if it bears the guest's own addresses and goes to a declared destination, or answers somebody
//! who has sent something to a declared port before ([`flows`]). A frame for the guest passes if it is for a declared port, comes from a declared
//! destination, or is what address resolution and path MTU discovery need. Everything else is dropped and counted by [`Reason`]. What passes can be limited
//! to a [`rate`].
//!
//! There are two implementations of the same decisions: [`Filter`] in Rust, for frames that pass through the monitor (user-mode networking, under both
//! engines), and [`kernel`], an eBPF program on the TAP device, for guests that read and write the TAP themselves. A test runs both over the same frames.

mod flows;
pub(crate) mod kernel;
mod rate;
pub(crate) mod rules;
#[cfg(test)]
mod tests;

use std::time::Instant;

use donjon_net::{NetHdr, net_hdr};

use donjon_abi::manifest::METADATA6;
use flows::{Flow, Flows};
use rate::Rate;
use rules::{Rules, Source4, TCP, UDP, mapped};

/// Why a frame was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub(crate) enum Reason {
    Truncated,
    EtherType,
    SourceMac,
    Arp,
    ArpTarget,
    SourceAddress,
    Options,
    Fragment,
    Protocol,
    NeighbourDiscovery,
    Metadata,
    Egress,
    Listen,
    Offload,
    Rate,
}

impl Reason {
    /// All, in the order of their numbers.
    pub const ALL: [Reason; 15] = [
        Reason::Truncated,
        Reason::EtherType,
        Reason::SourceMac,
        Reason::Arp,
        Reason::ArpTarget,
        Reason::SourceAddress,
        Reason::Options,
        Reason::Fragment,
        Reason::Protocol,
        Reason::NeighbourDiscovery,
        Reason::Metadata,
        Reason::Egress,
        Reason::Listen,
        Reason::Offload,
        Reason::Rate,
    ];

    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Reason::Truncated => "shorter than its headers say",
            Reason::EtherType => "neither IP nor ARP",
            Reason::SourceMac => "another Ethernet source address than the guest's",
            Reason::Arp => "ARP with addresses that are not the guest's",
            Reason::ArpTarget => "ARP for an address that the guest has no business with",
            Reason::SourceAddress => "another IP source address than the guest's",
            Reason::Options => "IP options or extension headers",
            Reason::Fragment => "an IP fragment",
            Reason::Protocol => "a protocol other than TCP and UDP",
            Reason::NeighbourDiscovery => "neighbour discovery with addresses that are not the guest's",
            Reason::Metadata => "to a cloud metadata address",
            Reason::Egress => "to a destination that `egress` in the manifest does not allow",
            Reason::Listen => "to a port that `listen` in the manifest does not declare",
            Reason::Offload => "an offload header that does not fit the frame",
            Reason::Rate => "faster than its limit",
        }
    }
}

/// Which way a frame goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    FromGuest = 0,
    ToGuest = 1,
}

/// What is to be said of what was dropped: what the guest has tried, and, if asked for, what others have sent to it.
pub(crate) fn report(dropped: impl Fn(Way) -> [u64; Reason::ALL.len()], verbose: bool) -> Vec<String> {
    let mut said = Vec::new();
    let ways = [(Way::FromGuest, "by"), (Way::ToGuest, "for")];
    for (way, word) in &ways[..if verbose { 2 } else { 1 }] {
        for (reason, count) in Reason::ALL.into_iter().zip(dropped(*way)).filter(|(_, n)| *n > 0) {
            let s = if count == 1 { "" } else { "s" };
            said.push(format!("the network filter dropped {count} frame{s} {word} the guest: {}", reason.describe()));
        }
    }
    said
}

/// A guest's filter and what it remembers.
#[derive(Debug)]
pub(crate) struct Filter {
    rules: Rules,
    flows: Flows,
    lease: Lease,
    /// The transaction of the guest's last DHCP message, while it has not been acknowledged.
    transaction: Option<[u8; 4]>,
    /// Whom it has asked for an Ethernet address although nothing is known about them.
    asked: [[u8; 4]; STRANGERS],
    start: Instant,
    connections: Option<Rate>,
    send: Option<Rate>,
    /// When the next connection and the next byte are due.
    due: [u64; 2],
    dropped: [[u64; Reason::ALL.len()]; 2],
}

/// What a DHCP server has given to the guest.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Lease {
    address: [u8; 4],
    server: [u8; 4],
}

/// A frame, of which at least the headers are at hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    /// Its first bytes.
    pub bytes: &'a [u8],
    /// How long all of it is.
    pub len: usize,
}

impl<'a> From<&'a [u8]> for Frame<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Frame { bytes, len: bytes.len() }
    }
}

impl Frame<'_> {
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Reason> {
        self.bytes.get(at..).and_then(|b| b.first_chunk::<N>()).copied().ok_or(Reason::Truncated)
    }
}

const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Length of the Ethernet header.
const ETH: usize = 14;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const FRAGMENT6: u8 = 44;
/// Stands for "whatever it says" in a [`Flow`]: somebody who has asked for the guest's Ethernet address.
const NEIGHBOUR: u8 = 255;
/// A datagram in fragments, whose first one has passed; the identification is in place of the ports.
const DATAGRAM: u8 = 254;

/// With DHCP the filter does not know the router: how many addresses the guest may ask for, besides those that it has business with.
const STRANGERS: usize = 8;

/// TCP's SYN without ACK: the first segment of whoever opens a connection.
fn opens(flags: u8) -> bool {
    flags & 0x12 == 0x02
}

/// Whether an IP packet of the guest's, whose headers have been looked at, is a TCP segment that does not open a connection.
fn goes_on(frame: Frame<'_>) -> bool {
    let (protocol, at) = if frame.array(12) == Ok(IPV4) { (ETH + 9, ETH + 20) } else { (ETH + 6, ETH + 40) };
    frame.array(protocol) == Ok([TCP]) && frame.array::<14>(at).is_ok_and(|h| !opens(h[13]))
}

impl Filter {
    /// A filter that has seen nothing.
    pub fn new(rules: Rules) -> Filter {
        Filter {
            flows: Flows::default(),
            lease: Lease::default(),
            transaction: None,
            asked: [[0; 4]; STRANGERS],
            start: Instant::now(),
            connections: Rate::connections(rules.limit),
            send: Rate::send(rules.limit),
            due: [0; 2],
            rules,
            dropped: [[0; _]; 2],
        }
    }

    /// How many frames were dropped that went this way, by reason.
    pub fn dropped(&self, way: Way) -> [u64; Reason::ALL.len()] {
        self.dropped[way as usize]
    }

    /// Whether a frame of the guest may pass, and else why not.
    pub fn outbound(&mut self, header: NetHdr, frame: Frame<'_>) -> Result<(), Reason> {
        let verdict = offload_fits(header, frame)
            .and_then(|()| self.check_from_guest(frame))
            .and_then(|()| self.in_time(self.send, 1, bytes_on_the_line(frame.len, header)));
        self.count(Way::FromGuest, verdict);
        verdict
    }

    /// The same for a frame to user-mode networking, which refuses itself what may not go anywhere, so that the guest learns of it at once. Those frames pass too, at the
    /// same pace; what they ask for counts as dropped. (Later segments of a connection pass whoever it is to: there is one, or nobody answers.)
    pub fn outbound_to_stack(&mut self, header: NetHdr, frame: Frame<'_>) -> Result<(), Reason> {
        let judged = offload_fits(header, frame).and_then(|()| self.check_from_guest(frame));
        let refused = matches!(judged, Err(Reason::Egress | Reason::Metadata));
        let verdict = if refused { Ok(()) } else { judged };
        let verdict = verdict.and_then(|()| self.in_time(self.send, 1, bytes_on_the_line(frame.len, header)));
        let asks = refused && verdict.is_ok() && !goes_on(frame);
        self.count(Way::FromGuest, if asks { judged } else { verdict });
        verdict
    }

    /// Whether a frame may be given to the guest.
    pub fn inbound(&mut self, frame: Frame<'_>) -> bool {
        let verdict = self.check_to_guest(frame);
        self.count(Way::ToGuest, verdict);
        verdict.is_ok()
    }

    fn count(&mut self, way: Way, verdict: Result<(), Reason>) {
        if let Err(reason) = verdict {
            let count = &mut self.dropped[way as usize][reason as usize];
            *count = count.saturating_add(1);
        }
    }
}

/// From the guest.
impl Filter {
    fn check_from_guest(&mut self, frame: Frame<'_>) -> Result<(), Reason> {
        let ethernet: [u8; ETH] = frame.array(0)?;
        if ethernet[6..12] != self.rules.mac {
            return Err(Reason::SourceMac);
        }
        match [ethernet[12], ethernet[13]] {
            ARP => self.arp_from_guest(frame.array(ETH)?),
            IPV4 => self.ipv4_from_guest(frame),
            IPV6 => self.ipv6_from_guest(frame),
            _ => Err(Reason::EtherType),
        }
    }

    /// Whether so many units keep to a limit, whose state is that one of `due`.
    fn in_time(&mut self, limit: Option<Rate>, due: usize, units: u64) -> Result<(), Reason> {
        let Some(rate) = limit else { return Ok(()) };
        let now = self.start.elapsed().as_nanos() as u64;
        if rate.take(&mut self.due[due], now, units) { Ok(()) } else { Err(Reason::Rate) }
    }

    fn own4(&self) -> Option<[u8; 4]> {
        match self.rules.source4 {
            Source4::None => None,
            Source4::Static(a) => Some(a.octets()),
            Source4::Dhcp => Some(self.lease.address).filter(|a| *a != [0; 4]),
        }
    }

    fn owns6(&self, address: [u8; 16]) -> bool {
        let (network, id) = address.split_at(8);
        self.rules.source6.is_some_and(|a| a.octets() == address)
            || id == self.rules.interface_id()
                && (self.rules.slaac && network[0] != 0xff || network == [0xfe, 0x80, 0, 0, 0, 0, 0, 0])
    }

    /// RFC 826: `0 1 0800 06 04`, operation, sender's addresses, target's addresses.
    fn arp_from_guest(&mut self, p: [u8; 28]) -> Result<(), Reason> {
        let own = self.own4().ok_or(Reason::Arp)?;
        let request = p[7] == 1;
        if p[..7] != [0, 1, 8, 0, 6, 4, 0] || !(request || p[7] == 2) {
            return Err(Reason::Arp);
        }
        if p[8..14] != self.rules.mac || p[14..18] != own {
            return Err(Reason::Arp);
        }
        let target = [p[24], p[25], p[26], p[27]];
        if !request || target == own {
            return Ok(());
        }
        let peer = mapped(std::net::Ipv4Addr::from(target).into());
        let known = self.rules.gateway4.is_some_and(|g| g.octets() == target)
            || self.rules.permits_address(peer)
            || self.flows.has(Flow { peer, peer_port: 0, port: 0, protocol: NEIGHBOUR });
        if known || self.rules.source4 == Source4::Dhcp && self.may_ask(target) {
            Ok(())
        } else {
            Err(Reason::ArpTarget)
        }
    }

    /// Whether a stranger was asked for before, or is one of the first.
    fn may_ask(&mut self, target: [u8; 4]) -> bool {
        for asked in &mut self.asked {
            if *asked == target {
                return true;
            }
            if *asked == [0; 4] {
                *asked = target;
                return true;
            }
        }
        false
    }

    fn ipv4_from_guest(&mut self, frame: Frame<'_>) -> Result<(), Reason> {
        let h: [u8; 20] = frame.array(ETH)?;
        if h[0] != 0x45 {
            return Err(Reason::Options);
        }
        // Bit 0x4000 is "do not fragment", 0x2000 "more fragments", 0x8000 must be zero; the rest is the offset.
        let fragment = u16::from_be_bytes([h[6], h[7]]) & 0xbfff;
        if fragment != 0 && (h[9] != UDP || fragment & 0x8000 != 0) {
            return Err(Reason::Fragment);
        }
        let len = usize::from(u16::from_be_bytes([h[2], h[3]]));
        if len > frame.len - ETH {
            return Err(Reason::Truncated);
        }
        let (from, to) = ([h[12], h[13], h[14], h[15]], [h[16], h[17], h[18], h[19]]);
        let client = self.rules.source4 == Source4::Dhcp
            && h[9] == UDP
            && fragment == 0
            && frame.array(ETH + 20)? == [0, 68, 0, 67];
        if self.own4() != Some(from) {
            if !(client && from == [0; 4] && to == [255; 4]) {
                return Err(Reason::SourceAddress);
            }
            self.transaction = Some(frame.array(ETH + 32)?);
            return Ok(());
        }
        if client && (to == [255; 4] || to == self.lease.server) {
            self.transaction = Some(frame.array(ETH + 32)?);
            return Ok(());
        }
        let peer = mapped(std::net::Ipv4Addr::from(to).into());
        let datagram = Flow { peer, peer_port: 0, port: u16::from_be_bytes([h[4], h[5]]), protocol: DATAGRAM };
        if fragment & 0x1fff != 0 {
            return self.later_fragment(datagram);
        }
        self.transport_from_guest(frame, ETH + 20, h[9], peer, ETH + len)?;
        if fragment != 0 {
            self.flows.add(datagram);
        }
        Ok(())
    }

    /// Fragments of datagrams pass if the first one did, which has the ports (those of TCP never: its stack does not send any). They can change nothing of what
    /// the first one says, since their offset is not 0.
    fn later_fragment(&mut self, datagram: Flow) -> Result<(), Reason> {
        if self.flows.has(datagram) { Ok(()) } else { Err(Reason::Fragment) }
    }

    fn ipv6_from_guest(&mut self, frame: Frame<'_>) -> Result<(), Reason> {
        let h: [u8; 40] = frame.array(ETH)?;
        if h[0] >> 4 != 6 {
            return Err(Reason::Options);
        }
        let len = usize::from(u16::from_be_bytes([h[4], h[5]]));
        if len > frame.len - ETH - 40 {
            return Err(Reason::Truncated);
        }
        let (from, to) = (address(&h, 8), address(&h, 24));
        if !self.owns6(from) {
            return Err(Reason::SourceAddress);
        }
        match h[6] {
            ICMPV6 if len >= 8 => {
                let kind = frame.array::<8>(ETH + 40)?[0];
                if matches!(kind, 133 | 135 | 136) {
                    return self.neighbour_discovery(frame, kind, to, h[7], len);
                }
            }
            TCP | UDP | ICMPV6 => {}
            FRAGMENT6 => {
                // RFC 8200 §4.5: next header, reserved, offset and "more", identification.
                let f: [u8; 8] = frame.array(ETH + 40)?;
                if f[0] != UDP {
                    return Err(Reason::Fragment);
                }
                let datagram = Flow { peer: to, peer_port: port(&f, 4), port: port(&f, 6), protocol: DATAGRAM };
                if port(&f, 2) & 0xfff8 != 0 {
                    return self.later_fragment(datagram);
                }
                self.transport_from_guest(frame, ETH + 48, UDP, to, ETH + 40 + len)?;
                self.flows.add(datagram);
                return Ok(());
            }
            0 | 43 | 50 | 51 | 60 | 135 | 139 | 140 => return Err(Reason::Options),
            _ => return Err(Reason::Protocol),
        }
        self.transport_from_guest(frame, ETH + 40, h[6], to, ETH + 40 + len)
    }

    /// Router solicitation, neighbour solicitation and advertisement (RFC 4861 §4): the sender's own address is the only one that it may claim. They go to the groups that are meant for them,
    /// to link-local addresses, and to who has asked: a router would send them on, with whatever is in them, to anybody.
    fn neighbour_discovery(
        &mut self,
        frame: Frame<'_>,
        kind: u8,
        to: [u8; 16],
        hop_limit: u8,
        len: usize,
    ) -> Result<(), Reason> {
        let bad = Err(Reason::NeighbourDiscovery);
        // With exactly one option: our Ethernet address.
        let option = if kind == 133 { 8 } else { 24 };
        if hop_limit != 255 || len != option + 8 {
            return bad;
        }
        let o: [u8; 8] = frame.array(ETH + 40 + option)?;
        if o[0] != if kind == 136 { 2 } else { 1 } || o[1] != 1 || o[2..] != self.rules.mac {
            return bad;
        }
        if kind == 136 && !self.owns6(frame.array(ETH + 48)?) {
            return bad;
        }
        let link_local = to[..8] == [0xfe, 0x80, 0, 0, 0, 0, 0, 0];
        let group = |end: [u8; 8]| to[..8] == [0xff, 2, 0, 0, 0, 0, 0, 0] && to[8..] == end;
        let stays = match kind {
            133 => group([0, 0, 0, 0, 0, 0, 0, 2]),
            135 => link_local || group([0, 0, 0, 1, 0xff, to[13], to[14], to[15]]),
            _ => {
                link_local
                    || group([0, 0, 0, 0, 0, 0, 0, 1])
                    || self.flows.has(Flow { peer: to, peer_port: 0, port: 0, protocol: NEIGHBOUR })
            }
        };
        if stays { Ok(()) } else { bad }
    }

    /// `end` is where the IP packet ends.
    fn transport_from_guest(
        &mut self,
        frame: Frame<'_>,
        at: usize,
        protocol: u8,
        peer: [u8; 16],
        end: usize,
    ) -> Result<(), Reason> {
        let least = match protocol {
            TCP => 20,
            UDP | ICMP | ICMPV6 => 8,
            _ => return Err(Reason::Protocol),
        };
        if end < at + least {
            return Err(Reason::Truncated);
        }
        let p: [u8; 8] = frame.array(at)?;
        let flow = match protocol {
            TCP | UDP => Flow { peer, port: port(&p, 0), peer_port: port(&p, 2), protocol },
            _ => {
                // Echo replies only.
                if p[0] != if protocol == ICMP { 0 } else { 129 } {
                    return Err(Reason::Protocol);
                }
                Flow { peer, port: port(&p, 4), peer_port: 0, protocol }
            }
        };
        let ported = matches!(protocol, TCP | UDP);
        if ported && self.rules.permits(protocol, peer, flow.peer_port) {
            return match protocol == TCP && opens(frame.array::<14>(at)?[13]) {
                true => self.in_time(self.connections, 0, 1),
                false => Ok(()),
            };
        }
        if is_metadata(peer) && !self.lives_there(peer) {
            return Err(Reason::Metadata);
        }
        if !self.flows.has(flow) || protocol == TCP && opens(frame.array::<14>(at)?[13]) {
            return Err(Reason::Egress);
        }
        Ok(())
    }

    /// The guest's own address is a link-local one of IPv4, so its neighbours' are too.
    fn lives_there(&self, peer: [u8; 16]) -> bool {
        peer[..12] == V4_MAPPED && self.own4().is_some_and(|own| own[..2] == [169, 254])
    }
}

/// To the guest.
impl Filter {
    fn check_to_guest(&mut self, frame: Frame<'_>) -> Result<(), Reason> {
        let ethernet: [u8; ETH] = frame.array(0)?;
        match [ethernet[12], ethernet[13]] {
            ARP => self.arp_to_guest(frame.array(ETH)?),
            IPV4 => self.ipv4_to_guest(frame),
            IPV6 => self.ipv6_to_guest(frame),
            _ => Err(Reason::EtherType),
        }
    }

    fn arp_to_guest(&mut self, p: [u8; 28]) -> Result<(), Reason> {
        // Whoever asks for our address gets an answer, and we may ask for theirs.
        if self.own4().is_some_and(|own| p[24..28] == own) && p[7] == 1 {
            let peer = mapped(std::net::Ipv4Addr::new(p[14], p[15], p[16], p[17]).into());
            self.flows.add(Flow { peer, peer_port: 0, port: 0, protocol: NEIGHBOUR });
        }
        Ok(())
    }

    fn ipv4_to_guest(&mut self, frame: Frame<'_>) -> Result<(), Reason> {
        let h: [u8; 20] = frame.array(ETH)?;
        if h[0] != 0x45 {
            return Err(Reason::Options);
        }
        let fragment = u16::from_be_bytes([h[6], h[7]]);
        if h[9] == TCP && fragment & 0x3fff != 0 {
            // Its flags may be in another fragment than its ports.
            return Err(Reason::Fragment);
        }
        if fragment & 0x1fff != 0 {
            // Of use only together with a first one.
            return Ok(());
        }
        let from = [h[12], h[13], h[14], h[15]];
        if h[9] == UDP && self.rules.source4 == Source4::Dhcp && frame.array::<4>(ETH + 20)? == [0, 67, 0, 68] {
            return self.dhcp_to_guest(frame, from);
        }
        self.transport_to_guest(frame, ETH + 20, h[9], mapped(std::net::Ipv4Addr::from(from).into()))
    }

    /// A DHCP server's answer (RFC 2131 §2): `yiaddr` is what the guest may call itself from now on, if it is an acknowledgement. Servers put the kind of message
    /// first among the options; of one that does not, offers count too.
    fn dhcp_to_guest(&mut self, frame: Frame<'_>, from: [u8; 4]) -> Result<(), Reason> {
        const AT: usize = ETH + 28;
        let fixed: [u8; 34] = frame.array(AT)?;
        let option: [u8; 3] = frame.array(AT + 240)?;
        let address = [fixed[16], fixed[17], fixed[18], fixed[19]];
        let (kind, acknowledges) = (option[..2] == [53, 1], option[2] == 5);
        // The guest's own message that has come back to it, or somebody's who has not heard its question.
        let answers = from != self.lease.address && self.transaction == Some([fixed[4], fixed[5], fixed[6], fixed[7]]);
        if fixed[0] == 2
            && fixed[28..34] == self.rules.mac
            && answers
            && address != [0; 4]
            && address != [255; 4]
            && (!kind || acknowledges)
        {
            self.lease = Lease { address, server: from };
            if kind {
                self.transaction = None;
            }
        }
        Ok(())
    }

    fn ipv6_to_guest(&mut self, frame: Frame<'_>) -> Result<(), Reason> {
        let h: [u8; 40] = frame.array(ETH)?;
        let from = address(&h, 8);
        match h[6] {
            _ if h[0] >> 4 != 6 => Err(Reason::Options),
            FRAGMENT6 => match frame.array::<8>(ETH + 40)?[0] {
                TCP => Err(Reason::Fragment),
                _ => Ok(()),
            },
            ICMPV6 if matches!(frame.array::<8>(ETH + 40)?[0], 1..=4 | 133..=136) => {
                // Whoever asks for our Ethernet address, from the same network, gets an answer.
                if frame.bytes[ETH + 40] == 135 && h[7] == 255 {
                    self.flows.add(Flow { peer: from, peer_port: 0, port: 0, protocol: NEIGHBOUR });
                }
                Ok(())
            }
            next => self.transport_to_guest(frame, ETH + 40, next, from),
        }
    }

    /// Somebody has sent something that the guest may answer. It may also ask for their Ethernet address, which they need not have shown by ARP.
    fn met(&mut self, flow: Flow) {
        if self.flows.add(flow) {
            self.flows.add(Flow { peer_port: 0, port: 0, protocol: NEIGHBOUR, ..flow });
        }
    }

    fn transport_to_guest(&mut self, frame: Frame<'_>, at: usize, protocol: u8, peer: [u8; 16]) -> Result<(), Reason> {
        match protocol {
            TCP | UDP => {
                let opens = protocol == TCP && opens(frame.array::<14>(at)?[13]);
                let p: [u8; 8] = frame.array(at)?;
                let flow = Flow { peer, peer_port: port(&p, 0), port: port(&p, 2), protocol };
                if self.rules.serves(protocol, flow.port) {
                    self.met(flow);
                    return Ok(());
                }
                if self.rules.permits(protocol, peer, flow.peer_port) && !opens {
                    return Ok(());
                }
                Err(Reason::Listen)
            }
            ICMP | ICMPV6 => {
                let p: [u8; 8] = frame.array(at)?;
                match (protocol, p[0]) {
                    (ICMP, 8) | (ICMPV6, 128) => {
                        self.met(Flow { peer, peer_port: 0, port: port(&p, 4), protocol });
                        Ok(())
                    }
                    (ICMP, 3 | 11) => Ok(()),
                    _ => Err(Reason::Protocol),
                }
            }
            _ => Err(Reason::Protocol),
        }
    }
}

const V4_MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

fn is_metadata(peer: [u8; 16]) -> bool {
    peer[..12] == V4_MAPPED && peer[12..14] == [169, 254] || peer[..6] == METADATA6
}

fn port(p: &[u8; 8], at: usize) -> u16 {
    u16::from_be_bytes([p[at], p[at + 1]])
}

fn address(h: &[u8; 40], at: usize) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&h[at..at + 16]);
    out
}

/// `gso_type`: congestion was experienced.
const GSO_ECN: u8 = 0x80;

/// Where the checksum is in the headers of TCP and UDP.
const CHECKSUM_TCP: u8 = 16;
const CHECKSUM_UDP: u8 = 6;
/// Bytes of Ethernet, IP and TCP header before a segment, about.
const SEGMENT_HEAD: usize = 66;

/// How many bytes a frame is once it has been cut into segments.
fn bytes_on_the_line(len: usize, header: NetHdr) -> u64 {
    let segmented = header.gso_type & !GSO_ECN != net_hdr::GSO_NONE;
    let cuts = if segmented { len / usize::from(header.gso_size.max(1)) } else { 0 };
    (len + cuts * SEGMENT_HEAD) as u64
}

/// Whether an offload header (virtio 1.3 §5.1.6) means what its frame is: what has to be filled in or cut after the filter has judged must be no part of what was judged.
fn offload_fits(header: NetHdr, frame: Frame<'_>) -> Result<(), Reason> {
    let kind = header.gso_type & !GSO_ECN;
    if header.flags & net_hdr::NEEDS_CSUM == 0 {
        return if kind == net_hdr::GSO_NONE { Ok(()) } else { Err(Reason::Offload) };
    }
    let ip: [u8; 20] = frame.array(ETH).map_err(|_| Reason::Offload)?;
    let whole = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff == 0;
    let (at, protocol, cut) = match frame.array(12)? {
        IPV4 if ip[0] == 0x45 && whole => (ETH + 20, ip[9], net_hdr::GSO_TCPV4),
        IPV6 => (ETH + 40, ip[6], net_hdr::GSO_TCPV6),
        _ => return Err(Reason::Offload),
    };
    let sum = match protocol {
        TCP => CHECKSUM_TCP,
        UDP => CHECKSUM_UDP,
        _ => return Err(Reason::Offload),
    };
    let fits = usize::from(header.csum_start) == at
        && header.csum_offset == u16::from(sum)
        && at + usize::from(sum) + 2 <= frame.len
        && (kind == net_hdr::GSO_NONE
            || kind == cut && protocol == TCP && header.gso_size != 0 && usize::from(header.hdr_len) <= frame.len);
    if fits { Ok(()) } else { Err(Reason::Offload) }
}
