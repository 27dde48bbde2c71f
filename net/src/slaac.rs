//! Stateless address configuration (RFC 4862): router solicitations out, router advertisements in. Duplicate address detection is not done: the
//! addresses derive from an Ethernet address that the host assigns.

use crate::addr::Ip;
use crate::ingress::Meta;
use crate::neighbour_wire::{ROUTER_SOLICITATION, options_of};
use crate::stack::Stack;
use crate::tcp::SECOND;
use alloc::vec::Vec;

const ALL_ROUTERS: Ip = Ip([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
/// Solicitations, and the time between them (RFC 4861 §10).
const SOLICITATIONS: u8 = 3;
const INTERVAL: u64 = 4 * SECOND;
/// What remains of an address at least when an advertisement wants to end it at once: it is not authenticated (RFC 4862 §5.5.3 e).
const TWO_HOURS: u32 = 7200;
/// Most addresses that advertisements give us.
const ADDRESSES_MAX: usize = 4;

pub(crate) struct Slaac {
    on: bool,
    sent: u8,
    solicit_at: Option<u64>,
    /// When the router's word ends.
    router_until: Option<u64>,
    addresses: Vec<Given>,
    pub dns: Option<Ip>,
    dns_until: Option<u64>,
}

/// An address that a router gave us. Its times end with the address, and with its being a source for what is new.
#[derive(Clone, Copy)]
struct Given {
    ip: Ip,
    end: Option<u64>,
    preferred: Option<u64>,
}

impl Slaac {
    pub fn new(on: bool, now: u64) -> Slaac {
        let solicit_at = on.then_some(now);
        Slaac { on, sent: 0, solicit_at, router_until: None, addresses: Vec::new(), dns: None, dns_until: None }
    }

    pub fn deadline(&self) -> Option<u64> {
        let addresses = self.addresses.iter().flat_map(|a| [a.end, a.preferred]).flatten().min();
        [self.solicit_at, self.router_until, self.dns_until, addresses].into_iter().flatten().min()
    }
}

/// Whether that time is over.
fn over(end: Option<u64>, now: u64) -> bool {
    end.is_some_and(|t| t <= now)
}

/// A lifetime in seconds as a point in time; `u32::MAX` is for ever.
fn until(now: u64, seconds: u32) -> Option<u64> {
    (seconds != u32::MAX).then(|| now + u64::from(seconds) * SECOND)
}

impl Stack {
    pub(crate) fn slaac_timer(&mut self) {
        let now = self.now;
        if over(self.slaac.router_until, now) {
            self.slaac.router_until = None;
            self.iface.router6 = None;
            self.iface.generation = self.iface.generation.wrapping_add(1);
            // Is there another?
            (self.slaac.sent, self.slaac.solicit_at) = (0, Some(now));
        }
        if over(self.slaac.solicit_at, now) {
            self.slaac.sent += 1;
            self.slaac.solicit_at = (self.slaac.sent < SOLICITATIONS).then_some(now + INTERVAL);
            if let Some(src) = self.iface.source(ALL_ROUTERS) {
                self.send_ndp(src, ALL_ROUTERS, ROUTER_SOLICITATION, [0; 4], None, 1);
            }
        }
        if over(self.slaac.dns_until, now) {
            (self.slaac.dns, self.slaac.dns_until) = (None, None);
            self.iface.generation = self.iface.generation.wrapping_add(1);
        }
        self.slaac.addresses.retain_mut(|a| {
            if over(a.end, now) {
                self.iface.remove(a.ip);
                return false;
            }
            if over(a.preferred, now) {
                a.preferred = None;
                self.iface.deprecate(a.ip, true);
            }
            true
        });
    }

    pub(crate) fn router_advertisement(&mut self, meta: &Meta, data: &[u8]) {
        if !self.slaac.on || !meta.src.is_link_local_v6() {
            return;
        }
        let Some((head, options)) = data.split_first_chunk::<16>() else { return };
        let now = self.now;
        let lifetime = u16::from_be_bytes([head[6], head[7]]);
        if lifetime > 0 {
            // Only a router ends the search for one (RFC 4861 §6.3.7).
            self.slaac.solicit_at = None;
            if self.iface.router6 != Some(meta.src) {
                self.iface.router6 = Some(meta.src);
                self.iface.generation = self.iface.generation.wrapping_add(1);
            }
            self.slaac.router_until = Some(now + u64::from(lifetime) * SECOND);
        } else if self.iface.router6 == Some(meta.src) {
            self.slaac.router_until = Some(now);
        }
        let mut link = None;
        let mut prefixes = [(Ip::ANY, 0, 0, 0); ADDRESSES_MAX];
        let mut count = 0;
        let (mut dns, mut gone) = (None, false);
        let mut mtu = None;
        let m = self.config.mac;
        let mut ours = [None; ADDRESSES_MAX];
        ours.iter_mut().zip(&self.slaac.addresses).for_each(|(to, a)| *to = Some(a.ip));
        options_of(options, |kind, body| match kind {
            1 => link = body.first_chunk::<6>().copied(),
            // Prefix information (RFC 4861 §4.6.2): 64 bits, for autonomous configuration. If it is not on-link, only the address is ours, and its neighbours
            // are behind the router.
            3 => {
                let Some(b) = body.first_chunk::<30>() else { return };
                let valid = u32::from_be_bytes([b[2], b[3], b[4], b[5]]);
                let preferred = u32::from_be_bytes([b[6], b[7], b[8], b[9]]);
                let mut a = [0; 16];
                a[..8].copy_from_slice(&b[14..22]);
                a[8..].copy_from_slice(&[m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]]);
                let ip = Ip(a);
                if b[0] == 64
                    && b[1] & 0x40 != 0
                    // One that is withdrawn takes no place of one that is not, unless it was ours.
                    && (valid > 0 || ours.contains(&Some(ip)))
                    && preferred <= valid
                    && !ip.is_link_local_v6()
                    && !ip.is_multicast()
                    && let Some(place) = prefixes.get_mut(count)
                {
                    *place = (ip, valid, preferred, if b[1] & 0x80 != 0 { 64 } else { 128 });
                    count += 1;
                }
            }
            // MTU (RFC 4861 §4.6.4).
            5 => mtu = body.get(2..6).and_then(|m| m.first_chunk::<4>()).map(|m| u32::from_be_bytes(*m)),
            // Recursive DNS server (RFC 8106 §5.1).
            25 => {
                let Some(b) = body.first_chunk::<22>() else { return };
                let lifetime = u32::from_be_bytes([b[2], b[3], b[4], b[5]]);
                let mut a = [0; 16];
                a.copy_from_slice(&b[6..]);
                // With 0 it is withdrawn, whichever it is; the first of the others counts.
                if lifetime == 0 && self.slaac.dns == Some(Ip(a)) {
                    gone = true;
                } else if lifetime > 0 && dns.is_none() {
                    dns = Some((Ip(a), until(now, lifetime)));
                }
            }
            _ => {}
        });
        let (resolver, end) = match dns {
            Some((ip, end)) => (Some(ip), end),
            None if gone => (None, None),
            None => (self.slaac.dns, self.slaac.dns_until),
        };
        if self.slaac.dns != resolver {
            self.slaac.dns = resolver;
            self.iface.generation = self.iface.generation.wrapping_add(1);
        }
        self.slaac.dns_until = end;
        if let Some(mtu) = mtu.filter(|&m| m >= 1280) {
            self.iface.mtu6 = mtu.min(65_535) as u16;
        }
        for &(ip, valid, preferred, prefix) in prefixes.iter().take(count) {
            let (mut end, fresh) = (until(now, valid), until(now, preferred));
            if let Some(a) = self.slaac.addresses.iter_mut().find(|a| a.ip == ip) {
                if valid <= TWO_HOURS {
                    // Longer than it has left, or two hours; what has less left keeps that.
                    let least = until(now, TWO_HOURS);
                    let left = a.end.unwrap_or(u64::MAX);
                    end = if end >= Some(left) { end } else { least.min(Some(left)) };
                }
                (a.end, a.preferred) = (end, fresh.filter(|_| preferred > 0));
                // A prefix that is not on-link here says nothing about what another option said (§6.3.4).
                if prefix == 64 && self.iface.addresses.iter().any(|a| Ip::from(a.address) == ip && a.prefix != 64) {
                    self.iface.add(ip, 64);
                }
            } else if valid > 0
                && self.slaac.addresses.len() < ADDRESSES_MAX
                && !self.iface.owns(ip)
                && self.iface.add(ip, prefix).is_some()
            {
                self.slaac.addresses.push(Given { ip, end, preferred: fresh.filter(|_| preferred > 0) });
                self.announce(ip);
            } else {
                continue;
            }
            self.iface.deprecate(ip, preferred == 0);
        }
        if let Some(mac) = link
            && let Some(r) = self.neighbours.learn(now, meta.src, mac, true)
        {
            self.release(r);
        }
    }
}
