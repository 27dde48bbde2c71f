//! [`Stack`] itself: its parts, its clock, its events and its addresses.

use crate::addr::{End, Ip};
use crate::dhcp::Dhcp;
use crate::egress::{Bucket, Egress};
use crate::fragment::Fragments;
use crate::hash::{Key, Random};
use crate::iface::Iface;
use crate::neighbour::Neighbours;
use crate::path_mtu::PathMtus;
use crate::ports::Ports;
use crate::slaac::Slaac;
use crate::slab::Slab;
use crate::socket::{Kind, Sock};
use crate::table::Table;
use crate::tcp::NEVER;
use crate::tcp::half_open::HalfOpen;
use crate::tcp::time_wait::TimeWait;
use crate::timers::Timers;
use crate::types::{Domain, Event, Ready};
use crate::{Config, Error, Handle, Lease, OwnAddress};
use alloc::collections::VecDeque;
use core::net::IpAddr;

/// The stack. See the crate's documentation for how to drive it.
pub struct Stack {
    pub(crate) config: Config,
    pub(crate) now: u64,
    /// For tables.
    pub(crate) table_key: Key,
    /// For what peers see.
    pub(crate) wire_key: Key,
    pub(crate) random: Random,

    pub(crate) sockets: Slab<Sock>,
    /// From 4-tuples to connections, half-open and TIME-WAIT entries.
    pub(crate) demux: Table,
    pub(crate) ports: Ports,
    pub(crate) half: HalfOpen,
    pub(crate) time_wait: TimeWait,
    /// Deadlines of connections, by slot.
    pub(crate) timers: Timers,
    /// Slots that have something to send to the device, and to ourselves.
    pub(crate) ready: VecDeque<u32>,
    pub(crate) ready_local: VecDeque<u32>,
    pub(crate) events: VecDeque<u32>,
    /// Bytes in all queues.
    pub(crate) memory: usize,
    pub(crate) orphans: u32,
    /// Slots of the "any" sockets.
    pub(crate) any_listener: Option<u32>,
    pub(crate) any_udp: Option<u32>,

    pub(crate) iface: Iface,
    pub(crate) neighbours: Neighbours,
    pub(crate) egress: Egress,
    pub(crate) fragments: Fragments,
    pub(crate) path_mtus: PathMtus,
    pub(crate) dhcp: Dhcp,
    pub(crate) slaac: Slaac,
    pub(crate) reset_bucket: Bucket,
    pub(crate) icmp_bucket: Bucket,
    /// Apart, or it could be emptied to the last by who wants to count the others.
    pub(crate) echo_bucket: Bucket,
}

impl Stack {
    /// Bytes that an established connection costs while it is idle: its state, its slot, its entry in the table at three quarters' load.
    pub const CONNECTION_SIZE: usize =
        size_of::<crate::tcp::conn::Conn>() + size_of::<Option<Sock>>() + 8 + 4 + 8 * 4 / 3;

    /// A stack. It has the loopback addresses, and no other until [`Stack::add_address`], DHCP or SLAAC give it one.
    pub fn new(mut config: Config, now: u64) -> Stack {
        config.mtu = config.mtu.clamp(1280, 65_535);
        let (table_key, wire_key) = Key::pair(&config.key);
        let limits = config.limits;
        let mut stack = Stack {
            now,
            table_key,
            wire_key,
            random: Random::new(Key(wire_key.0 ^ 0x5bd1_e995, wire_key.1)),
            sockets: Slab::new(limits.sockets),
            demux: Table::new(),
            ports: Ports::new(),
            half: HalfOpen::new(limits.half_open),
            time_wait: TimeWait::new(limits.time_wait),
            timers: Timers::new(),
            ready: VecDeque::new(),
            ready_local: VecDeque::new(),
            events: VecDeque::new(),
            memory: 0,
            orphans: 0,
            any_listener: None,
            any_udp: None,
            iface: Iface::new(),
            neighbours: Neighbours::new(table_key, limits.neighbours),
            egress: Egress::new(),
            fragments: Fragments::new(),
            path_mtus: PathMtus::new(),
            dhcp: Dhcp::new(config.dhcp, now),
            slaac: Slaac::new(config.slaac, now),
            reset_bucket: Bucket::new(1000),
            icmp_bucket: Bucket::new(200),
            echo_bucket: Bucket::new(200),
            config,
        };
        if config.slaac {
            stack.add_link_local();
        }
        stack
    }

    /// When [`Stack::output`] must be called at the latest, same clock as `now`. May be earlier than necessary.
    pub fn deadline(&self) -> Option<u64> {
        let mut first = if self.egress.has_local() || !self.ready_local.is_empty() { self.now } else { NEVER };
        for d in [
            self.timers.first(),
            self.half.deadline(),
            self.time_wait.deadline(),
            self.neighbours.deadline(),
            self.fragments.deadline(),
            self.dhcp.deadline(),
            self.slaac.deadline(),
        ] {
            first = first.min(d.unwrap_or(NEVER));
        }
        (first != NEVER).then_some(first)
    }

    /// Runs everything whose time has come.
    pub(crate) fn run_timers(&mut self) {
        let now = self.now;
        while let Some(slot) = self.timers.pop(now) {
            self.connection_timer(slot);
        }
        self.half_open_timers();
        while let Some(slot) = self.time_wait.pop_due(now) {
            self.remove_time_wait(slot);
        }
        self.neighbour_timers();
        self.fragments.expire(now);
        self.dhcp_timer();
        self.slaac_timer();
    }

    /// The next event.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            let slot = self.events.pop_front()?;
            let generation = self.sockets.generation(slot);
            let Some(sock) = self.sockets.get_mut(slot) else { continue };
            let ready = core::mem::take(&mut sock.events);
            if ready != Ready(0) && !sock.orphan {
                return Some(Event { handle: Handle { slot, generation }, ready });
            }
        }
    }

    /// Notes an event of a socket.
    pub(crate) fn raise(&mut self, slot: u32, ready: Ready) {
        let Some(sock) = self.sockets.get_mut(slot) else { return };
        if sock.events == Ready(0) && !sock.orphan {
            self.events.push_back(slot);
        }
        sock.events = sock.events.union(ready);
    }

    /// What the socket is ready for now; all zero for a dead handle.
    pub fn readiness(&self, handle: Handle) -> Ready {
        match self.kind(handle) {
            Err(_) => Ready(0),
            Ok(Kind::Tcp(c)) => c.readiness(),
            Ok(Kind::Listener(l)) if l.any => {
                if l.pending.is_empty() {
                    Ready(0)
                } else {
                    Ready::ACCEPT
                }
            }
            Ok(Kind::Listener(l)) => {
                if l.ready.is_empty() {
                    Ready(0)
                } else {
                    Ready::ACCEPT.union(Ready::READABLE)
                }
            }
            // As Linux: a TCP socket that is not connected is hung up and writable.
            Ok(Kind::Fresh(_)) => Ready::HANGUP.union(Ready::WRITABLE),
            Ok(Kind::Udp(u)) => u.readiness(),
        }
    }

    /// Bytes in all queues, out of [`crate::Limits::memory`].
    pub fn memory_used(&self) -> usize {
        self.memory
    }

    /// Bytes left of the budget.
    pub(crate) fn memory_free(&self) -> usize {
        self.config.limits.memory.saturating_sub(self.memory)
    }

    /// How much there is of everything, for tests and statistics: sockets, half-open, TIME-WAIT.
    pub fn counts(&self) -> (u32, u32, u32) {
        (self.sockets.len(), self.half.slab.len(), self.time_wait.slab.len())
    }
}

/// A macro since the borrow of `limits` must not be one of the whole stack.
macro_rules! cx {
    ($stack:expr) => {
        crate::tcp::Cx {
            now: $stack.now,
            memory_free: $stack.config.limits.memory.saturating_sub($stack.memory),
            limits: &$stack.config.limits,
            lasting: $stack.config.lasting,
        }
    };
}
pub(crate) use cx;

/// Addresses and routes.
impl Stack {
    /// Adds an address of ours and its on-link route. Announces it (gratuitous ARP, unsolicited NA).
    pub fn add_address(&mut self, address: IpAddr, prefix: u8) -> Result<(), Error> {
        let ip = Ip::from(address);
        if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
            return Err(Error::Invalid);
        }
        if !ip.is_v4()
            && !self.iface.addresses.iter().any(|a| Ip::from(a.address).is_link_local_v6())
            && !ip.is_link_local_v6()
        {
            self.add_link_local();
        }
        if self.iface.add(ip, prefix).ok_or(Error::NoBuffers)? {
            self.announce(ip);
        }
        Ok(())
    }

    /// Removes an address. Connections stay as they are.
    pub fn remove_address(&mut self, address: IpAddr) {
        self.iface.remove(address.into());
    }

    /// Sets (or with `None` removes) the default router of that family.
    pub fn set_router(&mut self, domain: Domain, router: Option<IpAddr>) {
        let router = router.map(Ip::from);
        match domain {
            Domain::V4 => self.iface.router4 = router.filter(|r| r.is_v4()),
            Domain::V6 => self.iface.router6 = router.filter(|r| !r.is_v4()),
        }
        self.iface.generation = self.iface.generation.wrapping_add(1);
    }

    /// The default router.
    pub fn router(&self, domain: Domain) -> Option<IpAddr> {
        match domain {
            Domain::V4 => self.iface.router4,
            Domain::V6 => self.iface.router6,
        }
        .map(IpAddr::from)
    }

    /// Our addresses, without loopback.
    pub fn addresses(&self) -> &[OwnAddress] {
        &self.iface.addresses
    }

    /// What DHCP gave us; `None` before it did and when it ran out.
    pub fn dhcp_lease(&self) -> Option<Lease> {
        self.dhcp.lease()
    }

    /// The resolver that a router advertisement named (RFC 8106), with `slaac`.
    pub fn advertised_dns(&self) -> Option<core::net::Ipv6Addr> {
        self.slaac.dns.map(Ip::as_v6)
    }

    /// Goes up whenever an address, router or lease changes.
    pub fn config_generation(&self) -> u32 {
        self.iface.generation
    }

    /// Which source address we would use towards `remote`.
    pub fn source_for(&self, remote: IpAddr) -> Result<IpAddr, Error> {
        self.source(remote.into()).map(IpAddr::from)
    }

    pub(crate) fn source(&self, dst: Ip) -> Result<Ip, Error> {
        let dst = if dst.is_unspecified() {
            if dst == Ip::ANY { Ip::from(crate::config::LOCALHOST6) } else { Ip::from(crate::config::LOCALHOST4) }
        } else {
            dst
        };
        if self.iface.route(dst).is_none() {
            return Err(Error::NetworkUnreachable);
        }
        self.iface.source(dst).ok_or(Error::NetworkUnreachable)
    }

    /// Whether a socket may have that local address.
    pub(crate) fn may_bind(&self, local: End) -> bool {
        local.ip.is_unspecified()
            || self.config.any_ip
            || self.iface.is_local(local.ip)
            || local.ip.is_multicast()
            || self.iface.is_broadcast(local.ip)
    }
}
