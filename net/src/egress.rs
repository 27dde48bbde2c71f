//! Everything that leaves: the output loop, the queue of ready-made frames, routing to the device or back into the stack.

use crate::addr::{Ip, Tuple};
use crate::iface::Route;
use crate::neighbour::{Asker, Found};
use crate::socket::{Kind, Sock};
use crate::stack::{Stack, cx};
use crate::tcp::conn::is;
use crate::tcp::head::{self, ETH, HEAD_MAX, Out, Path};
use crate::types::{FrameSink, IpOptions, Output, Sent};
use crate::{Handle, NetHdr, Offload};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Most ready-made frames that wait for the device; what is beyond is lost, as on any network.
const QUEUE_FRAMES: usize = 1024;
/// Bytes and frames that may be on the way from ourselves to ourselves.
const LOCAL_BYTES: usize = 2 << 20;
const LOCAL_FRAMES: usize = 2048;
/// Frames to ourselves that one `output` handles; the rest is left to the next, lest a conversation with ourselves go on for ever.
const LOCAL_BURST: u32 = 16_384;
/// Largest packet of a connection to ourselves; super-frames go beyond it.
pub(crate) const LOCAL_MTU: usize = 16_384 + 40;

/// A whole frame, its Ethernet header blank until the next hop is known.
pub(crate) struct Frame {
    pub hdr: NetHdr,
    pub bytes: Vec<u8>,
    /// The UDP socket whose send buffer it fills.
    pub owner: Option<Handle>,
}

/// A TCP segment without payload.
#[derive(Default)]
pub(crate) struct Control<'a> {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: &'a [u8],
    pub ip: IpOptions,
}

impl Frame {
    /// Memory that it takes while it waits, bytes.
    pub fn held(&self) -> usize {
        size_of::<Frame>() + self.bytes.len()
    }
}

pub(crate) struct Egress {
    queue: VecDeque<Frame>,
    local: VecDeque<Frame>,
    local_bytes: usize,
}

impl Egress {
    pub const fn new() -> Egress {
        Egress { queue: VecDeque::new(), local: VecDeque::new(), local_bytes: 0 }
    }

    fn push_local(&mut self, frame: Frame) {
        self.local_bytes += frame.bytes.len();
        self.local.push_back(frame);
    }

    fn pop_local(&mut self) -> Option<Frame> {
        let f = self.local.pop_front()?;
        self.local_bytes -= f.bytes.len();
        Some(f)
    }

    pub fn has_local(&self) -> bool {
        !self.local.is_empty()
    }

    fn local_full(&self) -> bool {
        self.local_bytes >= LOCAL_BYTES || self.local.len() >= LOCAL_FRAMES
    }
}

/// Frames of connections to ourselves.
struct LocalSink<'a>(&'a mut Egress);

impl FrameSink for LocalSink<'_> {
    fn send(&mut self, hdr: NetHdr, head: &[u8], payload: &[&[u8]]) -> Sent {
        if self.0.local_full() {
            return Sent::Full;
        }
        let len = head.len() + payload.iter().map(|p| p.len()).sum::<usize>();
        let mut bytes = Vec::new();
        // Without memory it is lost, and sent again.
        if bytes.try_reserve_exact(len).is_ok() {
            bytes.extend_from_slice(head);
            for p in payload {
                bytes.extend_from_slice(p);
            }
            self.0.push_local(Frame { hdr, bytes, owner: None });
        }
        Sent::Done
    }
}

/// A limit on answers per second.
pub(crate) struct Bucket {
    rate: u32,
    tokens: u32,
    filled: u64,
}

impl Bucket {
    pub const fn new(rate: u32) -> Bucket {
        Bucket { rate, tokens: rate, filled: 0 }
    }

    pub fn take(&mut self, now: u64) -> bool {
        let nanos = 1_000_000_000 / u64::from(self.rate);
        let fresh = now.saturating_sub(self.filled) / nanos;
        if fresh > 0 {
            self.tokens = u64::from(self.tokens).saturating_add(fresh).min(u64::from(self.rate)) as u32;
            self.filled = now;
        }
        let ok = self.tokens > 0;
        self.tokens -= u32::from(ok);
        ok
    }

    /// The same, at the price of up to two more that nobody can foresee.
    pub fn take_some(&mut self, now: u64, random: u64) -> bool {
        let ok = self.take(now);
        self.tokens = self.tokens.saturating_sub((random % 3) as u32);
        ok
    }
}

/// What came of one connection's turn.
enum Turn {
    Next,
    Full,
}

impl Stack {
    /// Runs timers that are due and loopback traffic, and sends what may be sent.
    pub fn output(&mut self, now: u64, sink: &mut dyn FrameSink) -> Output {
        self.now = now.max(self.now);
        self.run_timers();
        let mut full = false;
        let mut local = 0;
        loop {
            while local < LOCAL_BURST
                && let Some(frame) = self.egress.pop_local()
            {
                local += 1;
                self.packet_input(frame.hdr, frame.bytes.get(ETH..).unwrap_or(&[]), true);
                self.sent(frame.owner, frame.bytes.len());
            }
            if local < LOCAL_BURST
                && let Some(slot) = self.ready_local.pop_front()
            {
                self.local_turn(slot);
                continue;
            }
            while !full && let Some(frame) = self.egress.queue.front() {
                if sink.send(frame.hdr, &frame.bytes, &[]) == Sent::Full {
                    full = true;
                } else if let Some(frame) = self.egress.queue.pop_front() {
                    self.sent(frame.owner, frame.bytes.len());
                }
            }
            if full {
                return Output::Full;
            }
            match self.ready.pop_front() {
                None if local >= LOCAL_BURST || (!self.egress.has_local() && self.ready_local.is_empty()) => {
                    return Output::Idle;
                }
                None => {}
                Some(slot) => {
                    if let Turn::Full = self.device_turn(slot, sink) {
                        full = true;
                    }
                }
            }
        }
    }

    /// Whether [`Stack::output`] has something to do before the next deadline.
    pub fn wants_output(&self) -> bool {
        !(self.ready.is_empty()
            && self.ready_local.is_empty()
            && self.egress.queue.is_empty()
            && self.egress.local.is_empty())
    }

    /// Puts a socket into the queue of those that have something to send.
    pub(crate) fn mark_ready(&mut self, slot: u32) {
        let Some(sock) = self.sockets.get_mut(slot) else { return };
        if sock.queued {
            return;
        }
        sock.queued = true;
        let local = matches!(&sock.kind, Kind::Tcp(c) if c.has(is::LOCAL));
        if local { self.ready_local.push_back(slot) } else { self.ready.push_back(slot) }
    }

    fn local_turn(&mut self, slot: u32) {
        let path = self.local_path();
        let cx = cx!(self);
        // Whoever has the slot now is not queued any more, whatever it is.
        let Some(Sock { kind, queued, .. }) = self.sockets.get_mut(slot) else { return };
        if !core::mem::replace(queued, false) {
            return;
        }
        let Kind::Tcp(c) = kind else { return };
        if !c.has(is::LOCAL) {
            // Whoever was queued was another.
            self.mark_ready(slot);
            return;
        }
        let emit = c.emit(&cx, &path, &mut LocalSink(&mut self.egress));
        self.after_emit(slot);
        if emit != crate::tcp::Emit::Idle {
            self.mark_ready(slot);
        }
    }

    fn device_turn(&mut self, slot: u32, sink: &mut dyn FrameSink) -> Turn {
        // As above.
        let Some(Sock { kind, queued, .. }) = self.sockets.get_mut(slot) else { return Turn::Next };
        if !core::mem::replace(queued, false) {
            return Turn::Next;
        }
        let Kind::Tcp(c) = kind else { return Turn::Next };
        if c.has(is::LOCAL) {
            // Whoever was queued was another.
            self.mark_ready(slot);
            return Turn::Next;
        }
        let remote = c.tuple.remote.ip;
        let path = self.path(remote, slot);
        let cx = cx!(self);
        let Some(Sock { kind: Kind::Tcp(c), .. }) = self.sockets.get_mut(slot) else { return Turn::Next };
        let path = match path {
            Ok(path) => path,
            Err(unreachable) => {
                // It waits for the neighbour, or there is none; a timer makes sure that it is not forgotten.
                c.no_path(&cx, unreachable);
                self.after_emit(slot);
                return Turn::Next;
            }
        };
        let emit = c.emit(&cx, &path, sink);
        self.after_emit(slot);
        match emit {
            crate::tcp::Emit::Idle => Turn::Next,
            crate::tcp::Emit::More => {
                self.mark_ready(slot);
                Turn::Next
            }
            crate::tcp::Emit::Full => {
                if let Some(s) = self.sockets.get_mut(slot) {
                    s.queued = true;
                    self.ready.push_front(slot);
                }
                Turn::Full
            }
        }
    }

    pub(crate) fn local_path(&self) -> Path {
        let offload = Offload { tx_csum: true, tso4: true, tso6: true };
        Path { dst_mac: [0; 6], src_mac: [0; 6], mtu: LOCAL_MTU, offload, local: true }
    }

    /// Largest packet of a family on the link.
    pub(crate) fn link_mtu(&self, v4: bool) -> usize {
        (self.config.mtu as usize).min(usize::from(if v4 { self.iface.mtu4 } else { self.iface.mtu6 }))
    }

    fn link_path(&self, dst_mac: [u8; 6], v4: bool) -> Path {
        Path { dst_mac, src_mac: self.config.mac, mtu: self.link_mtu(v4), offload: self.config.offload, local: false }
    }

    /// How to reach `dst` now. `Err(false)`: the neighbour is being asked, and the connection is queued when it answers. `Err(true)`: no route.
    fn path(&mut self, dst: Ip, slot: u32) -> Result<Path, bool> {
        match self.iface.route(dst) {
            Some(Route::Via(hop)) => match self.resolve(hop, Asker::Connection) {
                Some(mac) => Ok(self.link_path(mac, hop.is_v4())),
                None => {
                    self.neighbours.wait(hop, slot);
                    Err(false)
                }
            },
            Some(Route::Local) => Ok(self.local_path()),
            Some(Route::Group) | None => Err(true),
        }
    }

    fn resolve(&mut self, hop: Ip, asker: Asker) -> Option<[u8; 6]> {
        match self.neighbours.lookup(self.now, hop, asker) {
            Found::Mac(mac) => Some(mac),
            Found::Ask(mac) => {
                self.query(hop, Some(mac));
                Some(mac)
            }
            Found::Query => {
                self.query(hop, None);
                None
            }
            Found::Wait => None,
        }
    }

    /// Sends a packet whose Ethernet header is still blank. False if there is no route.
    pub(crate) fn send_packet(&mut self, dst: Ip, mut frame: Frame) -> bool {
        let v4 = dst.is_v4();
        match self.iface.route(dst) {
            None => return false,
            Some(Route::Local) => {
                if self.egress.local_full() {
                    self.sent(frame.owner, frame.bytes.len());
                } else {
                    self.egress.push_local(frame);
                }
            }
            Some(Route::Group) => {
                let path = self.link_path(dst.multicast_mac(), v4);
                head::ethernet(&mut frame.bytes, &path, v4);
                self.send_frame(frame);
            }
            Some(Route::Via(hop)) => match self.resolve(hop, Asker::Packet) {
                Some(mac) => {
                    let path = self.link_path(mac, v4);
                    head::ethernet(&mut frame.bytes, &path, v4);
                    self.send_frame(frame);
                }
                None => self.park(hop, frame),
            },
        }
        true
    }

    /// Lets a packet wait until the next hop is known. What is too much is lost.
    fn park(&mut self, hop: Ip, frame: Frame) {
        let held = frame.held();
        let lost = if held > self.memory_free() { Some(frame) } else { self.neighbours.park(hop, frame) };
        match lost {
            Some(f) => self.sent(f.owner, f.bytes.len()),
            None => self.memory += held,
        }
    }

    /// Packets that waited in vain are lost, which is no error of their socket: the neighbour may come back (Linux without IP_RECVERR).
    pub(crate) fn lose(&mut self, parked: Vec<Frame>) {
        for f in parked {
            self.memory = self.memory.saturating_sub(f.held());
            self.sent(f.owner, f.bytes.len());
        }
    }

    /// Queues a whole frame for the device.
    pub(crate) fn send_frame(&mut self, frame: Frame) {
        if self.egress.queue.len() >= QUEUE_FRAMES {
            self.sent(frame.owner, frame.bytes.len());
            return;
        }
        self.egress.queue.push_back(frame);
    }

    /// A neighbour is known now: what waited for it goes out.
    pub(crate) fn release(&mut self, r: crate::neighbour::Resolved) {
        let v4 = r.ip.is_v4();
        let path = self.link_path(r.mac, v4);
        for mut f in r.packets {
            self.memory = self.memory.saturating_sub(f.held());
            head::ethernet(&mut f.bytes, &path, v4);
            self.send_frame(f);
        }
        for slot in r.waiting {
            self.mark_ready(slot);
        }
    }

    /// Identification of a packet that may be fragmented on its way. Not a counter, which would tell everybody how much we send to others (RFC 7739);
    /// what must stay whole has 0 (RFC 6864).
    pub(crate) fn ident(&mut self, dst: Ip) -> u16 {
        if dst.is_v4() && !self.iface.is_local(dst) { self.random.next() as u16 } else { 0 }
    }

    /// Sends a TCP segment without payload that belongs to no connection object.
    pub(crate) fn send_control(&mut self, tuple: &Tuple, c: Control) {
        let path = if self.iface.is_local(tuple.remote.ip) {
            self.local_path()
        } else {
            self.link_path([0; 6], tuple.remote.ip.is_v4())
        };
        let Control { seq, ack, flags, window, options, ip } = c;
        let out = Out { tuple, seq, ack, flags, window, options, mss: 0xffff, ident: 0, ip };
        let mut buffer = [0; HEAD_MAX];
        let (len, hdr) = head::tcp(&mut buffer, &path, &out, &[], 0);
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(len).is_err() {
            return;
        }
        bytes.extend_from_slice(buffer.get(..len).unwrap_or(&[]));
        self.send_packet(tuple.remote.ip, Frame { hdr, bytes, owner: None });
    }
}
