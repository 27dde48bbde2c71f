//! The neighbour cache: Ethernet addresses of next hops, learned by ARP (RFC 826) and neighbour discovery (RFC 4861).

use crate::addr::Ip;
use crate::egress::Frame;
use crate::hash::Key;
use crate::slab::Slab;
use crate::table::Table;
use crate::tcp::{MS, SECOND};
use crate::timers::Timers;
use alloc::vec::Vec;

/// An entry is used without a question for this long after it was confirmed.
const FRESH: u64 = 30 * SECOND;
/// Time between questions.
const RETRY: u64 = 1000 * MS;
/// Questions to the neighbour itself, if it is known, and then to all, without an answer; after that it is unreachable. Until then, what is known
/// is used.
const TRIES: u8 = 3;
/// Time between looks at all entries for one that makes room.
const LOOK: u64 = 10 * MS;
/// Bytes of packets that wait for one answer: as many as the largest datagram has in fragments.
const WAITING_BYTES: usize = 72 << 10;
/// Bytes of packets that wait for all answers. Who waits for one may have no more than what then is left to the others.
const PARKED_MAX: usize = 512 << 10;

struct Neighbour {
    ip: Ip,
    mac: Option<[u8; 6]>,
    /// When that was said; before, when it was first asked for.
    confirmed: u64,
    /// Questions that nobody has answered yet.
    tries: u8,
    /// Connections that wait for the answer (slots, which others may have by then).
    waiting: Vec<u32>,
    packets: Vec<Frame>,
    /// Bytes that they take.
    parked: usize,
}

/// Who goes first when an entry must make room.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Worth {
    /// Has not answered the first question.
    Silent,
    /// Was not in use since it was confirmed long ago.
    Stale,
    /// Was asked for a moment ago.
    Asked,
    /// Reachable, and what is in use is asked again in time.
    Known,
}

impl Neighbour {
    fn worth(&self, now: u64) -> Worth {
        match self.mac {
            None if now >= self.confirmed + RETRY => Worth::Silent,
            None => Worth::Asked,
            Some(_) if self.tries == 0 && now >= self.confirmed + FRESH => Worth::Stale,
            Some(_) => Worth::Known,
        }
    }
}

pub(crate) struct Neighbours {
    table: Table,
    slab: Slab<Neighbour>,
    timers: Timers,
    key: Key,
    max: u32,
    /// The last answer: most traffic goes to one neighbour.
    last: Option<(Ip, [u8; 6], u64)>,
    /// Nobody made room when that was last looked for.
    full_until: u64,
    /// Bytes that waiting packets take, and those that wait no more because their entry had to make room.
    parked: usize,
    lost: Vec<Frame>,
}

/// For whom a neighbour is looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asker {
    /// A connection, or somebody who has told us of himself.
    Connection,
    /// A packet without one, which may be an answer to a stranger, of whom there are as many as somebody pleases.
    Packet,
}

/// What a lookup found.
pub(crate) enum Found {
    /// Use it.
    Mac([u8; 6]),
    /// Use it, and ask whether it is still true.
    Ask([u8; 6]),
    /// Not known; the question is under way.
    Wait,
    /// Not known; send a question.
    Query,
}

/// What became of an entry.
pub(crate) struct Resolved {
    pub ip: Ip,
    pub mac: [u8; 6],
    pub waiting: Vec<u32>,
    pub packets: Vec<Frame>,
}

/// What a due entry wants.
pub(crate) enum Due {
    /// To it alone if its Ethernet address is known and it may still be there.
    Query(Ip, Option<[u8; 6]>),
    Failed {
        ip: Ip,
        waiting: Vec<u32>,
        packets: Vec<Frame>,
    },
}

impl Neighbours {
    pub fn new(key: Key, max: u32) -> Neighbours {
        let max = max.max(4);
        Neighbours {
            table: Table::new(),
            slab: Slab::new(max),
            timers: Timers::new(),
            key,
            max,
            last: None,
            full_until: 0,
            parked: 0,
            lost: Vec::new(),
        }
    }

    fn find(&self, ip: Ip) -> Option<u32> {
        let hash = self.key.ip(ip) as u32;
        self.table.find(hash, |s| self.slab.get(s).is_some_and(|n| n.ip == ip))
    }

    fn remove(&mut self, slot: u32) -> Option<Neighbour> {
        let n = self.slab.remove(slot)?;
        self.table.remove(self.key.ip(n.ip) as u32, slot);
        self.timers.cancel(slot);
        self.last = None;
        Some(n)
    }

    /// A new entry.
    fn add(&mut self, now: u64, ip: Ip, asker: Asker) -> Option<u32> {
        if self.slab.len() >= self.max {
            if now < self.full_until && asker == Asker::Packet {
                return None;
            }
            let slots = (0..self.slab.slots()).filter_map(|s| self.slab.get(s).map(|n| (n.worth(now), n.confirmed, s)));
            let (worth, _, slot) = slots.min()?;
            if worth == Worth::Asked && asker == Asker::Packet {
                // Strangers' packets must neither put out each other's questions nor make us ask for as many as they please; nor look through all
                // entries for each of them.
                self.full_until = now + LOOK;
                return None;
            }
            self.lost.try_reserve(self.slab.get(slot)?.packets.len()).ok()?;
            let mut n = self.remove(slot)?;
            self.lost.append(&mut n.packets);
        }
        let n =
            Neighbour { ip, mac: None, confirmed: now, tries: 0, waiting: Vec::new(), packets: Vec::new(), parked: 0 };
        let (slot, _) = self.slab.insert(n)?;
        if !self.table.insert(self.key.ip(ip) as u32, slot) {
            self.slab.remove(slot);
            return None;
        }
        Some(slot)
    }

    /// Looks an address up; unknown ones get an entry.
    pub fn lookup(&mut self, now: u64, ip: Ip, asker: Asker) -> Found {
        if let Some((last, mac, until)) = self.last
            && last == ip
            && now < until
        {
            return Found::Mac(mac);
        }
        let Some(slot) = self.find(ip).or_else(|| self.add(now, ip, asker)) else { return Found::Wait };
        let Some(n) = self.slab.get_mut(slot) else { return Found::Wait };
        match n.mac {
            Some(mac) if now < n.confirmed + FRESH => {
                self.last = Some((ip, mac, n.confirmed + FRESH));
                Found::Mac(mac)
            }
            known => {
                let asks = n.tries == 0;
                if asks {
                    n.tries = 1;
                    self.timers.set(slot, now + RETRY);
                }
                match known {
                    Some(mac) if asks => Found::Ask(mac),
                    Some(mac) => Found::Mac(mac),
                    None if asks => Found::Query,
                    None => Found::Wait,
                }
            }
        }
    }

    /// The Ethernet address that is known, fresh or not.
    pub fn known(&self, ip: Ip) -> Option<[u8; 6]> {
        self.find(ip).and_then(|s| self.slab.get(s)).and_then(|n| n.mac)
    }

    /// Lets a connection wait for the answer.
    pub fn wait(&mut self, ip: Ip, slot: u32) {
        if let Some(s) = self.find(ip)
            && let Some(n) = self.slab.get_mut(s)
            && n.waiting.try_reserve(1).is_ok()
        {
            n.waiting.push(slot);
        }
    }

    /// Lets a packet wait for the answer; gives it back if there is no room.
    pub fn park(&mut self, ip: Ip, frame: Frame) -> Option<Frame> {
        let Some(n) = self.find(ip).and_then(|s| self.slab.get_mut(s)) else { return Some(frame) };
        let parked = n.parked + frame.held();
        if parked > WAITING_BYTES.min(PARKED_MAX - self.parked) || n.packets.try_reserve(1).is_err() {
            return Some(frame);
        }
        self.parked += frame.held();
        n.parked = parked;
        n.packets.push(frame);
        None
    }

    /// A neighbour has said what its Ethernet address is. Unknown neighbours are only taken up if `create`.
    pub fn learn(&mut self, now: u64, ip: Ip, mac: [u8; 6], create: bool) -> Option<Resolved> {
        if mac[0] & 1 != 0 || mac == [0; 6] || ip.is_unspecified() || ip.is_multicast() {
            return None;
        }
        let slot = match self.find(ip) {
            Some(s) => s,
            None if create => self.add(now, ip, Asker::Connection)?,
            None => return None,
        };
        self.timers.cancel(slot);
        self.last = None;
        let n = self.slab.get_mut(slot)?;
        n.mac = Some(mac);
        n.confirmed = now;
        n.tries = 0;
        self.parked -= core::mem::take(&mut n.parked);
        let (waiting, packets) = (core::mem::take(&mut n.waiting), core::mem::take(&mut n.packets));
        Some(Resolved { ip, mac, waiting, packets })
    }

    /// Packets whose entry had to make room.
    pub fn take_lost(&mut self) -> Vec<Frame> {
        self.parked -= self.lost.iter().map(Frame::held).sum::<usize>();
        core::mem::take(&mut self.lost)
    }

    pub fn deadline(&self) -> Option<u64> {
        self.timers.first()
    }

    /// A question that has to be asked again, or that nobody answers.
    pub fn pop_due(&mut self, now: u64) -> Option<Due> {
        let slot = self.timers.pop(now)?;
        let n = self.slab.get_mut(slot)?;
        let most = if n.mac.is_some() { 2 * TRIES } else { TRIES };
        if n.tries < most {
            n.tries += 1;
            let known = n.mac.filter(|_| n.tries <= TRIES);
            self.timers.set(slot, now + RETRY);
            return Some(Due::Query(n.ip, known));
        }
        let n = self.remove(slot)?;
        self.parked -= n.parked;
        Some(Due::Failed { ip: n.ip, waiting: n.waiting, packets: n.packets })
    }
}
