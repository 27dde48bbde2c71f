//! A DHCP client (RFC 2131).

use crate::Lease;
use crate::addr::{End, Ip};
use crate::stack::Stack;
use crate::tcp::{NEVER, SECOND};
use core::net::Ipv4Addr;
use smoltcp::wire::DhcpPacket;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Off,
    /// DISCOVER is out.
    Discovering,
    /// An offer came, REQUEST is out.
    Requesting,
    Bound,
    /// Half of the lease is over; REQUEST is out.
    Renewing,
}

pub(crate) struct Dhcp {
    state: State,
    xid: u32,
    tries: u8,
    /// When to send next, or to renew.
    at: u64,
    started: u64,
    /// T2, at seven eighths of the lease.
    rebind: u64,
    expires: u64,
    offered: Ipv4Addr,
    server: Ipv4Addr,
    lease: Option<Lease>,
}

impl Dhcp {
    pub fn new(on: bool, now: u64) -> Dhcp {
        Dhcp {
            state: if on { State::Discovering } else { State::Off },
            xid: 0,
            tries: 0,
            at: now,
            started: now,
            rebind: NEVER,
            expires: NEVER,
            offered: Ipv4Addr::UNSPECIFIED,
            server: Ipv4Addr::UNSPECIFIED,
            lease: None,
        }
    }

    pub fn is_on(&self) -> bool {
        self.state != State::Off
    }

    /// Whether an answer may be addressed to an address that is not ours yet.
    pub fn wants_anything(&self) -> bool {
        matches!(self.state, State::Discovering | State::Requesting)
    }

    pub fn lease(&self) -> Option<Lease> {
        self.lease
    }

    pub fn deadline(&self) -> Option<u64> {
        self.is_on().then_some(self.at.min(self.expires)).filter(|&t| t != NEVER)
    }
}

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;

impl Stack {
    pub(crate) fn dhcp_timer(&mut self) {
        let now = self.now;
        if !self.dhcp.is_on() || now < self.dhcp.at.min(self.dhcp.expires) {
            return;
        }
        if now >= self.dhcp.expires {
            self.drop_lease();
        }
        match self.dhcp.state {
            State::Off => return,
            State::Bound => {
                self.dhcp.state = State::Renewing;
                self.dhcp.tries = 0;
                self.dhcp.xid = self.random.next() as u32;
            }
            State::Requesting if self.dhcp.tries >= 5 => {
                self.dhcp.state = State::Discovering;
                self.dhcp.tries = 0;
            }
            _ => {}
        }
        if self.dhcp.state == State::Discovering && self.dhcp.tries == 0 {
            self.dhcp.xid = self.random.next() as u32;
            self.dhcp.started = now;
        }
        self.dhcp_send();
        let wait = if self.dhcp.state == State::Renewing {
            // Half of what is left until T2, and then until the end, but not more often than once a minute (§4.4.5); in any case again at T2.
            match self.dhcp.rebind.saturating_sub(now) {
                0 => (self.dhcp.expires.saturating_sub(now) / 2).max(60 * SECOND),
                left => (left / 2).max(60 * SECOND).min(left),
            }
        } else {
            SECOND << self.dhcp.tries.min(5)
        };
        self.dhcp.tries = self.dhcp.tries.saturating_add(1);
        self.dhcp.at = now + wait;
    }

    fn dhcp_send(&mut self) {
        let d = &self.dhcp;
        let mut m = [0u8; 300];
        m[..4].copy_from_slice(&[1, 1, 6, 0]);
        m[4..8].copy_from_slice(&d.xid.to_be_bytes());
        let seconds = (self.now.saturating_sub(d.started) / SECOND).min(65_535) as u16;
        m[8..10].copy_from_slice(&seconds.to_be_bytes());
        let renewing = d.state == State::Renewing;
        // Answers to all: we cannot be asked for our Ethernet address yet.
        m[10] = if renewing { 0 } else { 0x80 };
        if renewing && let Some(l) = d.lease {
            m[12..16].copy_from_slice(&l.address.octets());
        }
        m[28..34].copy_from_slice(&self.config.mac);
        m[236..240].copy_from_slice(&[99, 130, 83, 99]);
        let mut len = 240;
        let mut put = |bytes: &[u8]| {
            if let Some(place) = m.get_mut(len..len + bytes.len()) {
                place.copy_from_slice(bytes);
                len += bytes.len();
            }
        };
        put(&[53, 1, if d.state == State::Discovering { DISCOVER } else { REQUEST }]);
        if d.state == State::Requesting {
            put(&[50, 4]);
            put(&d.offered.octets());
            put(&[54, 4]);
            put(&d.server.octets());
        }
        put(&[61, 7, 1]);
        put(&self.config.mac);
        // Mask, router, DNS, MTU, lease time, T1.
        put(&[55, 6, 1, 3, 6, 26, 51, 58]);
        put(&[255]);
        let source = match d.lease {
            Some(l) if renewing => l.address,
            _ => Ipv4Addr::UNSPECIFIED,
        };
        let unicast = renewing && d.tries == 0 && !d.server.is_unspecified();
        let to = if unicast { d.server } else { Ipv4Addr::BROADCAST };
        let (from, to) = (End::new(source.into(), 68), End::new(to.into(), 67));
        // A lost message is sent again by the timer.
        let _ = self.udp_output(from, to, &[&m], m.len(), None);
    }

    pub(crate) fn dhcp_input(&mut self, data: &[u8]) {
        let Ok(p) = DhcpPacket::new_checked(data) else { return };
        if u8::from(p.opcode()) != 2
            || p.transaction_id() != self.dhcp.xid
            || data.get(28..34) != Some(&self.config.mac[..])
            || p.magic_number() != 0x6382_5363
        {
            return;
        }
        let (mut kind, mut prefix, mut router, mut server) = (0, 24, None, Ipv4Addr::UNSPECIFIED);
        let mut dns = [Ipv4Addr::UNSPECIFIED; 2];
        let (mut seconds, mut renew, mut mtu) = (3600u32, None, u16::MAX);
        for o in p.options() {
            let word = o.data.first_chunk::<4>().copied();
            match (o.kind, word) {
                (53, _) => kind = o.data.first().copied().unwrap_or(0),
                (1, Some(w)) => prefix = u32::from_be_bytes(w).leading_ones() as u8,
                (3, Some(w)) => router = Some(Ipv4Addr::from(w)),
                (6, Some(w)) => {
                    dns[0] = w.into();
                    if let Some(w) = o.data.get(4..8).and_then(|d| d.first_chunk::<4>()) {
                        dns[1] = (*w).into();
                    }
                }
                // Interface MTU (RFC 2132 §5.1), not below what every path must carry.
                (26, _) => mtu = o.data.first_chunk::<2>().map_or(mtu, |m| u16::from_be_bytes(*m).max(576)),
                (51, Some(w)) => seconds = u32::from_be_bytes(w),
                (54, Some(w)) => server = w.into(),
                (58, Some(w)) => renew = Some(u32::from_be_bytes(w)),
                _ => {}
            }
        }
        let address = p.your_ip();
        match (self.dhcp.state, kind) {
            (State::Discovering, OFFER) if !address.is_unspecified() && !address.is_broadcast() => {
                self.dhcp.offered = address;
                self.dhcp.server = server;
                self.dhcp.state = State::Requesting;
                self.dhcp.tries = 0;
                self.dhcp.at = self.now;
            }
            (State::Requesting | State::Renewing, ACK) if !address.is_unspecified() && !address.is_broadcast() => {
                self.iface.mtu4 = mtu;
                self.take_lease(Lease { address, prefix, router, dns }, seconds.max(60), renew);
            }
            (State::Requesting | State::Renewing, NAK) => {
                self.drop_lease();
                self.dhcp.at = self.now + SECOND;
            }
            _ => {}
        }
    }

    fn take_lease(&mut self, lease: Lease, seconds: u32, renew: Option<u32>) {
        let old = self.dhcp.lease;
        if let Some(old) = old
            && old.address != lease.address
        {
            self.iface.remove(old.address.into());
        }
        self.dhcp.lease = Some(lease);
        self.dhcp.state = State::Bound;
        self.dhcp.tries = 0;
        if seconds == u32::MAX {
            (self.dhcp.expires, self.dhcp.rebind, self.dhcp.at) = (NEVER, NEVER, NEVER);
        } else {
            let renew = renew.filter(|&r| r > 0 && r < seconds).unwrap_or(seconds / 2);
            self.dhcp.expires = self.now + u64::from(seconds) * SECOND;
            self.dhcp.rebind = self.dhcp.expires - u64::from(seconds) * SECOND / 8;
            self.dhcp.at = self.now + u64::from(renew) * SECOND;
        }
        if old != Some(lease) {
            let ip = Ip::from(lease.address);
            self.iface.router4 = lease.router.map(Ip::from);
            if self.iface.add(ip, lease.prefix) == Some(true) {
                self.announce(ip);
            }
        }
    }

    fn drop_lease(&mut self) {
        if let Some(old) = self.dhcp.lease.take() {
            self.iface.remove(old.address.into());
            self.iface.mtu4 = u16::MAX;
            if self.iface.router4 == old.router.map(Ip::from) {
                self.iface.router4 = None;
            }
        }
        self.dhcp.state = State::Discovering;
        self.dhcp.tries = 0;
        self.dhcp.expires = NEVER;
    }
}
