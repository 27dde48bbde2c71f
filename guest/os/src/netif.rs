//! The network device: owns the TCP/IP stack, moves frames between it and the gate, and tells sockets what happened.
//!
//! Nothing here exists before the first Internet socket is made; a program that makes none is linked without it.

use crate::errno::{Errno, Result};
use crate::fd::watch::{Watch, events};
use crate::fd::{self, FileRef, WeakFile};
use crate::global::Global;
use crate::mem::{PageRun, sparing};
use alloc::boxed::Box;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use donjon_abi::boot::{flags, net};
use donjon_abi::{FRAME_MAX, NET_HDR_LEN, NetHdr};
use donjon_base::gate::{self, Piece, PieceMut, RxFrame, TxFrame};
use donjon_base::{boot, clock, preempt};
use donjon_net::{Config, Domain, Event, FrameSink, Handle, Limits, Offload, Output, OwnAddress, Ready, Sent, Stack};

/// Frames that are taken from the device at a time.
const BATCH: usize = 16;
/// Batches in a row before threads get their turn.
const ROUNDS: usize = 8;
/// Room for a frame without segmentation offload: header, Ethernet, MTU up to 1500 and some.
const SMALL: usize = 2048;
/// Frames of up to [`SMALL`] bytes that go out together.
const OUT_BATCH: usize = 16;
/// See [`Device::push`].
const FEW: usize = 2;
/// How long a later send may wait for company, ns: the first one after a look at the device goes out at once, the others with the next look
/// (when the thread parks or asks for events, or at the tick), so that a burst of answers is one call of the gate.
const DEFER: u64 = 50_000;
/// How long a connection attempt waits for an address after the network was started.
const ADDRESS_WAIT: u64 = 5_000_000_000;

/// How long a guest that ends waits for peers to take what its connections still have, ns.
const LAST_WORDS: u64 = 1_000_000_000;

struct Net {
    stack: Stack,
    device: Option<Device>,
    /// Who owns a socket, by the slot number of its handle.
    owners: Vec<Option<(u64, WeakFile)>>,
    /// Goes up with every change of addresses.
    generation: u32,
    started: u64,
    /// The device was full; the rest goes out when it has room.
    full: bool,
    /// When something was sent since the last look at the device.
    sent_at: Option<u64>,
    /// Ended waits when the device was last found empty.
    empty_at: Option<u32>,
}

/// Buffers for frames.
struct Device {
    /// Room for what comes in.
    room: PageRun,
    each: usize,
    /// Small frames that wait for the gate call, and their lengths. Those before `sent` are gone.
    out: PageRun,
    lengths: [u16; OUT_BATCH],
    filled: usize,
    sent: usize,
}

/// The sink of a guest without a device: frames vanish.
struct Nowhere;

static NET: Global<Option<Box<Net>>> = Global::new(None);
static ADDRESSES: Global<Option<Rc<Watch>>> = Global::new(None);

impl Device {
    /// Hands waiting frames to the gate. Whether all are gone.
    fn push(&mut self) -> bool {
        while self.sent < self.filled {
            // Lists for a full batch take longer to make than the few frames that there mostly are.
            let count = match self.filled - self.sent {
                1..=FEW => self.push_at_most::<FEW>(),
                _ => self.push_at_most::<OUT_BATCH>(),
            };
            if count == 0 {
                return false;
            }
            self.sent += count;
        }
        (self.sent, self.filled) = (0, 0);
        true
    }

    /// Hands up to `N` waiting frames to the gate; how many are gone.
    fn push_at_most<const N: usize>(&self) -> usize {
        let frame = |i: usize| {
            let i = (self.sent + i).min(self.filled - 1);
            let frame = &self.out[i * SMALL..][..usize::from(self.lengths[i])];
            let (header, rest) = frame.split_at(NET_HDR_LEN.min(frame.len()));
            [Piece::new(header), Piece::new(rest)]
        };
        let pieces: [[Piece<'_>; 2]; N] = core::array::from_fn(frame);
        let frames: [TxFrame<'_>; N] = core::array::from_fn(|i| TxFrame::new(&pieces[i]));
        let batch = &frames[..N.min(self.filled - self.sent)];
        // What the device refuses for good is lost, as networks lose frames.
        gate::net_send(batch).unwrap_or(batch.len())
    }
}

impl FrameSink for Device {
    fn send(&mut self, header: NetHdr, head: &[u8], payload: &[&[u8]]) -> Sent {
        let header = header.to_bytes();
        let total = NET_HDR_LEN + head.len() + payload.iter().map(|p| p.len()).sum::<usize>();
        if self.filled == OUT_BATCH && !self.push() {
            return Sent::Full;
        }
        if total <= SMALL {
            let mut rest = &mut self.out[self.filled * SMALL..][..total];
            for piece in [&header[..], head].into_iter().chain(payload.iter().copied()) {
                let (here, later) = rest.split_at_mut(piece.len());
                here.copy_from_slice(piece);
                rest = later;
            }
            self.lengths[self.filled] = total as u16;
            self.filled += 1;
            return Sent::Done;
        }
        // In order: what waits goes first.
        if !self.push() {
            return Sent::Full;
        }
        let mut pieces = [Piece::new(&[]); 62];
        pieces[0] = Piece::new(&header);
        pieces[1] = Piece::new(head);
        let count = payload.len().min(60);
        for (piece, bytes) in pieces[2..].iter_mut().zip(payload) {
            *piece = Piece::new(bytes);
        }
        match gate::net_send(&[TxFrame::new(&pieces[..2 + count])]) {
            Ok(0) => Sent::Full,
            Ok(_) | Err(_) => Sent::Done,
        }
    }
}

impl FrameSink for Nowhere {
    fn send(&mut self, _header: NetHdr, _head: &[u8], _payload: &[&[u8]]) -> Sent {
        Sent::Done
    }
}

impl Net {
    fn new(now: u64) -> Result<Box<Net>> {
        let page = boot();
        let info = &page.net;
        let present = page.flags & flags::NET != 0;
        let mut key = [0; 32];
        crate::random::fill(&mut key);
        let mut stack = Stack::new(
            Config {
                mac: info.mac,
                mtu: if present { info.mtu } else { 65_535 },
                offload: Offload::from_boot_flags(if present { info.flags } else { 0 }),
                key,
                limits: Limits::for_memory(page.memory),
                lasting: donjon_base::bytes(page.bundle),
                any_ip: false,
                dhcp: present && info.flags & net::DHCP != 0,
                slaac: present && info.flags & net::SLAAC != 0,
            },
            now,
        );
        let mut device = None;
        if present {
            configure(&mut stack);
            device = Some(Device::new(info.flags & net::RX_GSO != 0, page.memory)?);
        }
        Ok(Box::new(Net {
            stack,
            device,
            owners: Vec::new(),
            generation: 0,
            started: now,
            full: false,
            sent_at: None,
            empty_at: None,
        }))
    }

    fn finish(&mut self) {
        for (raw, file) in self.owners.iter().flatten() {
            let file = Weak::upgrade(file);
            // `SO_LINGER` of 0 s; other times are for `close`.
            if file.is_some_and(|f| f.obj.socket().is_some_and(|s| s.common().linger.get() == Some(0))) {
                self.stack.abort(Handle::from_raw(*raw));
            }
        }
        self.stack.close_all();
        let mut now = clock::monotonic();
        let end = now + LAST_WORDS;
        loop {
            self.output(now);
            if now >= end || self.device.is_none() || !(self.full || self.stack.any_unsent()) {
                break;
            }
            let next = self.stack.deadline().map_or(end, |d| d.clamp(now, end));
            gate::wait(Some(next - now));
            now = clock::monotonic();
            self.input(now);
        }
        self.stack.reset_unsent();
        self.output(now);
    }

    fn output(&mut self, now: u64) {
        let done = match &mut self.device {
            Some(device) => {
                let done = self.stack.output(now, device);
                if device.push() { done } else { Output::Full }
            }
            None => self.stack.output(now, &mut Nowhere),
        };
        self.full = done == Output::Full;
    }

    /// Takes one batch of frames from the device: whether there were any, and whether there may be more.
    fn input(&mut self, now: u64) -> (bool, bool) {
        let Some(device) = &mut self.device else { return (false, false) };
        if crate::sched::before_wait() && self.empty_at == Some(crate::sched::waits()) {
            return (false, false);
        }
        let mut sizes = [0usize; BATCH];
        let each = device.each;
        let usable = (device.room.len() / each).min(BATCH);
        let count = {
            let mut buffers = device.room.chunks_exact_mut(each);
            let mut pieces: [[PieceMut<'_>; 1]; BATCH] =
                core::array::from_fn(|_| [PieceMut::new(buffers.next().unwrap_or_default())]);
            let mut frames = pieces.each_mut().map(|p| RxFrame::new(p));
            let got = gate::net_recv(&mut frames[..usable]).unwrap_or(0);
            for (size, frame) in sizes.iter_mut().zip(&frames[..got]) {
                *size = frame.received().min(each);
            }
            got
        };
        for (buffer, size) in device.room.chunks_exact(each).zip(&sizes[..count]) {
            if let Some((header, frame)) = buffer[..*size].split_first_chunk::<NET_HDR_LEN>() {
                self.stack.input(now, NetHdr::from_bytes(*header), frame);
            }
        }
        self.empty_at = (count < usable).then(crate::sched::waits);
        (count > 0, count == usable)
    }
}

impl Device {
    fn new(gso: bool, memory: u64) -> Result<Device> {
        let (each, count) = match gso {
            false => (SMALL.max((boot().net.mtu as usize + 64).next_multiple_of(64)).min(FRAME_MAX), BATCH),
            // Pages that no frame touches cost nothing, but they count; a small guest takes its frames in smaller batches.
            true => (FRAME_MAX.next_multiple_of(donjon_base::PAGE), (memory >> 22).clamp(2, BATCH as u64) as usize),
        };
        Ok(Device {
            room: PageRun::new(each * count).ok_or(Errno::ENOMEM)?,
            each,
            out: PageRun::new(SMALL * OUT_BATCH).ok_or(Errno::ENOMEM)?,
            lengths: [0; OUT_BATCH],
            filled: 0,
            sent: 0,
        })
    }
}

/// Gives the stack the boot page's static addresses.
fn configure(stack: &mut Stack) {
    let info = &boot().net;
    let v4 = Ipv4Addr::from(info.ipv4);
    if info.flags & net::DHCP == 0 && !v4.is_unspecified() {
        // Errors mean that the host gave nonsense; then there is no address, and connecting says so.
        let _ = stack.add_address(IpAddr::V4(v4), info.ipv4_prefix);
        let router = Ipv4Addr::from(info.ipv4_gateway);
        if !router.is_unspecified() {
            stack.set_router(Domain::V4, Some(IpAddr::V4(router)));
        }
    }
    let v6 = Ipv6Addr::from(info.ipv6);
    if !v6.is_unspecified() {
        let _ = stack.add_address(IpAddr::V6(v6), info.ipv6_prefix);
    }
    let router = Ipv6Addr::from(info.ipv6_gateway);
    if !router.is_unspecified() {
        stack.set_router(Domain::V6, Some(IpAddr::V6(router)));
    }
}

/// Starts the network, once.
pub fn start() -> Result<()> {
    // Nobody else may make one in the meantime: the first one's sockets would be lost.
    let _off = preempt::off();
    if NET.with(|n| n.is_some()) {
        return Ok(());
    }
    // Its first tables are not checked one by one.
    fd::headroom()?;
    let net = Net::new(clock::monotonic())?;
    crate::sched::register_poller(poll)?;
    NET.with(|n| *n = Some(net));
    ADDRESSES.with(|w| *w = Some(Rc::new(Watch::new())));
    flush();
    Ok(())
}

/// Runs `f` on the stack. Follow with [`flush`] when it may have made work.
pub fn with<R>(f: impl FnOnce(&mut Stack) -> R) -> Result<R> {
    NET.with(|n| n.as_mut().map(|n| sparing(|| f(&mut n.stack)))).ok_or(Errno::ENETDOWN)
}

/// Sends what is to be sent and tells the sockets what happened (loopback traffic arrives here). The first call after a look at the
/// device does so at once; others within [`DEFER`] leave it to the next look.
pub fn flush() {
    let _off = preempt::off();
    let worked = NET.with(|n| match n {
        Some(n) if n.stack.wants_output() && !n.full => {
            let now = clock::monotonic();
            if n.sent_at.is_some_and(|at| now.saturating_sub(at) < DEFER) {
                return false;
            }
            n.sent_at = Some(now);
            sparing(|| n.output(now));
            true
        }
        _ => false,
    });
    if worked {
        deliver();
    }
}

/// The same, at once.
pub fn flush_now() {
    NET.with(|n| n.as_mut().map(|n| n.sent_at = None));
    flush();
}

/// [`flush`] for what was sent to `local` (this machine itself: at once, as loopback traffic always is) or elsewhere.
pub fn flush_to(local: bool) {
    if local { flush_now() } else { flush() }
}

/// The guest ends: closes all connections as Linux does for a process, and sends what there is to send, for [`LAST_WORDS`] at most.
pub fn finish() {
    let _off = preempt::off();
    NET.with(|n| n.as_mut().map(|n| sparing(|| n.finish())));
}

/// Whether packets to that address stay in this machine.
pub fn is_local(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_loopback()
        || NET.with(|n| n.as_ref().is_some_and(|n| n.stack.addresses().iter().any(|a| a.address.to_canonical() == ip)))
}

/// Called by the scheduler: on ticks, when idle, and when someone looks for news.
fn poll(now: u64) -> Option<u64> {
    let mut now = now;
    for round in 0..ROUNDS {
        let more = NET.with(|n| {
            let Some(n) = n else { return false };
            n.sent_at = None;
            sparing(|| {
                let (some, more) = n.input(now);
                if some || n.full || n.stack.wants_output() || n.stack.deadline().is_some_and(|d| d <= now) {
                    n.output(now);
                }
                more
            })
        });
        deliver();
        if !more {
            break;
        }
        if round + 1 == ROUNDS {
            // More frames wait: come again as soon as the threads had a turn.
            return Some(now);
        }
        now = clock::monotonic();
    }
    NET.with(|n| n.as_ref().and_then(|n| n.stack.deadline()))
}

/// Passes the stack's events on to watch lists.
fn deliver() {
    debug_assert!(preempt::count() > 0);
    loop {
        let next = NET.with(|n| {
            let n = n.as_mut()?;
            let Event { handle, ready } = n.stack.next_event()?;
            let raw = handle.to_raw();
            let owner = n.owners.get(raw as u32 as usize).and_then(Option::as_ref);
            Some((owner.filter(|o| o.0 == raw).and_then(|o| Weak::upgrade(&o.1)), ready))
        });
        match next {
            Some((Some(file), ready)) => {
                if let Some(watch) = file.obj.watch() {
                    watch.notify(poll_bits(ready));
                }
            }
            // A connection that nobody has accepted yet.
            Some((None, _)) => {}
            None => break,
        }
    }
    let changed = NET.with(|n| match n {
        Some(n) if n.stack.config_generation() != n.generation => {
            n.generation = n.stack.config_generation();
            true
        }
        _ => false,
    });
    if changed && let Some(watch) = ADDRESSES.with(|w| w.clone()) {
        watch.notify(events::READ);
    }
}

/// Readiness of the stack as poll bits.
pub fn poll_bits(ready: Ready) -> u32 {
    let mut bits = 0;
    if ready.intersects(Ready::READABLE.union(Ready::ACCEPT)) {
        bits |= events::READ;
    }
    if ready.intersects(Ready::WRITABLE.union(Ready::CONNECTED)) {
        bits |= events::WRITE;
    }
    if ready.contains(Ready::READ_CLOSED) {
        bits |= events::READ | events::RDHUP;
    }
    if ready.contains(Ready::HANGUP) {
        bits |= events::HUP;
    }
    if ready.contains(Ready::ERROR) {
        bits |= events::ERR;
    }
    bits
}

/// From now on, `file` hears of the socket's events.
pub fn own(handle: Handle, file: &FileRef) -> Result<()> {
    let raw = handle.to_raw();
    let slot = raw as u32 as usize;
    NET.with(|n| {
        let n = n.as_mut().ok_or(Errno::ENETDOWN)?;
        if slot >= n.owners.len() {
            let more = slot + 1 - n.owners.len();
            n.owners.try_reserve(more).map_err(|_| Errno::ENOBUFS)?;
            n.owners.resize_with(slot + 1, || None);
        }
        n.owners[slot] = Some((raw, Rc::downgrade(file)));
        Ok(())
    })
}

/// The socket is closed: nobody hears of it any more.
pub fn disown(handle: Handle) {
    let raw = handle.to_raw();
    let old = NET.with(|n| {
        let slot = n.as_mut()?.owners.get_mut(raw as u32 as usize)?;
        if slot.as_ref().is_some_and(|o| o.0 == raw) { slot.take() } else { None }
    });
    drop(old);
}

/// Waits until there is a source address for `remote`, for a bounded time after the start: DHCP may be under way.
pub fn await_address(remote: IpAddr) -> Result<()> {
    let _off = preempt::off();
    loop {
        let (known, dynamic, deadline) = NET.with(|n| {
            let n = n.as_ref().ok_or(Errno::ENETDOWN)?;
            let dynamic = n.device.is_some() && boot().net.flags & (net::DHCP | net::SLAAC) != 0;
            Ok((n.stack.source_for(remote).is_ok(), dynamic, n.started + ADDRESS_WAIT))
        })?;
        if known || !dynamic {
            return Ok(());
        }
        let watch = ADDRESSES.with(|w| w.clone()).ok_or(Errno::ENETDOWN)?;
        if fd::wait_on(&watch, events::READ, Some(deadline))? == fd::Woken::TimedOut {
            return Ok(());
        }
    }
}

/// Waits until DHCP has answered, for the same bounded time, so that its resolvers are known.
pub fn await_configuration() {
    // Any address outside: it is reachable once there is a router.
    let _ = await_address(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
}

/// Our addresses, without loopback; empty before the first socket.
pub fn addresses() -> Vec<OwnAddress> {
    NET.with(|n| n.as_ref().map_or_else(Vec::new, |n| n.stack.addresses().to_vec()))
}

/// The resolvers: what DHCP said, or the boot page's.
pub fn resolvers() -> Vec<IpAddr> {
    let info = &boot().net;
    let mut found = Vec::new();
    if let Some(lease) = NET.with(|n| n.as_ref().and_then(|n| n.stack.dhcp_lease())) {
        found.extend(lease.dns.iter().filter(|a| !a.is_unspecified()).map(|a| IpAddr::V4(*a)));
    }
    if let Some(ip) = NET.with(|n| n.as_ref().and_then(|n| n.stack.advertised_dns())) {
        found.push(IpAddr::V6(ip));
    }
    let fixed = info.ipv4_dns.iter().map(|a| IpAddr::V4(Ipv4Addr::from(*a)));
    for ip in fixed.chain([IpAddr::V6(Ipv6Addr::from(info.ipv6_dns))]) {
        if !ip.is_unspecified() && !found.contains(&ip) {
            found.push(ip);
        }
    }
    found
}

/// Forgets the network, for tests.
#[cfg(test)]
pub fn reset() {
    let old = NET.with(Option::take);
    drop(old);
}
