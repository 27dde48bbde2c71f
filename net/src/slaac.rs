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
/// Most addresses that advertisements give us.
const ADDRESSES_MAX: usize = 4;

pub(crate) struct Slaac {
    on: bool,
    sent: u8,
    solicit_at: Option<u64>,
    /// When the router's word ends.
    router_until: Option<u64>,
    /// Addresses and when their time is over.
    addresses: Vec<(Ip, Option<u64>)>,
    pub dns: Option<Ip>,
}

impl Slaac {
    pub fn new(on: bool, now: u64) -> Slaac {
        Slaac { on, sent: 0, solicit_at: on.then_some(now), router_until: None, addresses: Vec::new(), dns: None }
    }

    pub fn deadline(&self) -> Option<u64> {
        let addresses = self.addresses.iter().filter_map(|a| a.1).min();
        [self.solicit_at, self.router_until, addresses].into_iter().flatten().min()
    }
}

/// A lifetime in seconds as a point in time; `u32::MAX` is for ever.
fn until(now: u64, seconds: u32) -> Option<u64> {
    (seconds != u32::MAX).then(|| now + u64::from(seconds) * SECOND)
}

impl Stack {
    pub(crate) fn slaac_timer(&mut self) {
        let now = self.now;
        if self.slaac.solicit_at.is_some_and(|t| t <= now) {
            self.slaac.sent += 1;
            self.slaac.solicit_at = (self.slaac.sent < SOLICITATIONS).then_some(now + INTERVAL);
            if let Some(src) = self.iface.source(ALL_ROUTERS) {
                self.send_ndp(src, ALL_ROUTERS, ROUTER_SOLICITATION, [0; 4], None, 1);
            }
        }
        if self.slaac.router_until.is_some_and(|t| t <= now) {
            self.slaac.router_until = None;
            self.iface.router6 = None;
            self.iface.generation = self.iface.generation.wrapping_add(1);
        }
        while let Some(at) = self.slaac.addresses.iter().position(|a| a.1.is_some_and(|t| t <= now)) {
            let (ip, _) = self.slaac.addresses.remove(at);
            self.iface.remove(ip);
        }
    }

    pub(crate) fn router_advertisement(&mut self, meta: &Meta, data: &[u8]) {
        if !self.slaac.on || !meta.src.is_link_local_v6() {
            return;
        }
        let Some((head, options)) = data.split_first_chunk::<16>() else { return };
        let now = self.now;
        self.slaac.solicit_at = None;
        let lifetime = u16::from_be_bytes([head[6], head[7]]);
        if lifetime > 0 {
            if self.iface.router6 != Some(meta.src) {
                self.iface.router6 = Some(meta.src);
                self.iface.generation = self.iface.generation.wrapping_add(1);
            }
            self.slaac.router_until = Some(now + u64::from(lifetime) * SECOND);
        } else if self.iface.router6 == Some(meta.src) {
            self.slaac.router_until = Some(now);
        }
        let mut link = None;
        let mut prefixes = [(Ip::ANY, None, 0); ADDRESSES_MAX];
        let mut count = 0;
        let mut dns = None;
        let mut mtu = None;
        let m = self.config.mac;
        options_of(options, |kind, body| match kind {
            1 => link = body.first_chunk::<6>().copied(),
            // Prefix information (RFC 4861 §4.6.2): 64 bits, for autonomous configuration. If it is not on-link, only the address is ours, and its neighbours
            // are behind the router.
            3 => {
                let Some(b) = body.first_chunk::<30>() else { return };
                let valid = u32::from_be_bytes([b[2], b[3], b[4], b[5]]);
                let mut a = [0; 16];
                a[..8].copy_from_slice(&b[14..22]);
                a[8..].copy_from_slice(&[m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]]);
                let ip = Ip(a);
                if b[0] == 64
                    && b[1] & 0x40 != 0
                    && valid > 0
                    && !ip.is_link_local_v6()
                    && !ip.is_multicast()
                    && let Some(place) = prefixes.get_mut(count)
                {
                    *place = (ip, until(now, valid), if b[1] & 0x80 != 0 { 64 } else { 128 });
                    count += 1;
                }
            }
            // MTU (RFC 4861 §4.6.4).
            5 => mtu = body.get(2..6).and_then(|m| m.first_chunk::<4>()).map(|m| u32::from_be_bytes(*m)),
            // Recursive DNS server (RFC 8106 §5.1).
            25 => dns = body.get(6..22).and_then(|d| d.first_chunk::<16>()).map(|d| Ip(*d)),
            _ => {}
        });
        if let Some(dns) = dns
            && self.slaac.dns != Some(dns)
        {
            self.slaac.dns = Some(dns);
            self.iface.generation = self.iface.generation.wrapping_add(1);
        }
        if let Some(mtu) = mtu.filter(|&m| m >= 1280) {
            self.iface.mtu6 = mtu.min(65_535) as u16;
        }
        for &(ip, end, prefix) in prefixes.iter().take(count) {
            if let Some(a) = self.slaac.addresses.iter_mut().find(|a| a.0 == ip) {
                a.1 = end;
                // A prefix that is not on-link here says nothing about what another option said (§6.3.4).
                if prefix == 64 && self.iface.addresses.iter().any(|a| Ip::from(a.address) == ip && a.prefix != 64) {
                    self.iface.add(ip, 64);
                }
            } else if self.slaac.addresses.len() < ADDRESSES_MAX
                && !self.iface.owns(ip)
                && self.iface.add(ip, prefix).is_some()
            {
                self.slaac.addresses.push((ip, end));
                self.announce(ip);
            }
        }
        if let Some(mac) = link
            && let Some(r) = self.neighbours.learn(now, meta.src, mac, true)
        {
            self.release(r);
        }
    }
}
