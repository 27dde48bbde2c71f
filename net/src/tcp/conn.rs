//! A connection: its state, and what its owner does with it.

use super::cubic::Cubic;
use super::half_open::Half;
use super::ranges::Ranges;
use super::reassembly::Reassembly;
use super::*;
use crate::addr::Tuple;
use crate::bytes::ByteQueue;
use crate::types::{IpOptions, KeepAlive, Ready, RecvMode, TcpInfo, TcpOptions, TcpState};
use crate::{Error, Limits};

/// Bits of [`Conn::flags`].
pub(crate) mod is {
    /// TCP_NODELAY.
    pub const NODELAY: u32 = 1;
    /// TCP_CORK.
    pub const CORK: u32 = 1 << 1;
    /// The peer takes SACK.
    pub const SACK: u32 = 1 << 2;
    /// Timestamps are in use.
    pub const TS: u32 = 1 << 3;
    /// We want to send FIN after the queue.
    pub const FIN_QUEUED: u32 = 1 << 4;
    /// The peer's FIN has arrived in order.
    pub const FIN_RECEIVED: u32 = 1 << 5;
    /// The owner does not read any more.
    pub const READ_SHUT: u32 = 1 << 6;
    /// An acknowledgement must go out.
    pub const ACK_NOW: u32 = 1 << 7;
    /// Fast recovery.
    pub const RECOVERY: u32 = 1 << 8;
    /// Send the segment at `rexmit` whatever the window.
    pub const FORCE: u32 = 1 << 9;
    /// `timed_seq` is being timed.
    pub const TIMED: u32 = 1 << 10;
    /// Nobody has the handle any more.
    pub const ORPHAN: u32 = 1 << 11;
    /// Still in a listener's queue: no events.
    pub const UNACCEPTED: u32 = 1 << 12;
    /// Send a probe (zero window, keep-alive).
    pub const PROBE: u32 = 1 << 13;
    /// SO_RCVBUF and SO_SNDBUF were set.
    pub const FIXED_RECEIVE: u32 = 1 << 14;
    pub const FIXED_SEND: u32 = 1 << 15;
    /// An event says when there is room in the send queue again.
    pub const WANTS_ROOM: u32 = 1 << 17;
    /// The congestion window was in full use at the last sending.
    pub const LIMITED: u32 = 1 << 18;
    /// FIN has arrived ahead of its turn, at `fin_seq`.
    pub const FIN_AHEAD: u32 = 1 << 19;
    /// The tuple is in the demultiplexer.
    pub const HASHED: u32 = 1 << 20;
    /// Both ends are in this stack.
    pub const LOCAL: u32 = 1 << 21;
    /// A write was cut short because memory is scarce; writable again when the queue is empty.
    pub const PRESSED: u32 = 1 << 16;
    /// An AF_INET6 socket.
    pub const V6: u32 = 1 << 22;
    /// The owner said that more follows at once (MSG_MORE).
    pub const MORE: u32 = 1 << 23;
    /// `rto_at` is the time for a tail loss probe, not for a timeout.
    pub const TAIL_ARMED: u32 = 1 << 24;
    /// Send the last segment again.
    pub const TAIL_PROBE: u32 = 1 << 25;
    /// That was done, and nothing was acknowledged since.
    pub const PROBED: u32 = 1 << 26;
    /// Acknowledge at once.
    pub const QUICK_ACK: u32 = 1 << 28;
    /// Acknowledge late, from the first segment on.
    pub const LATE_ACK: u32 = 1 << 29;
    /// Everything below what has arrived is lost: it had the time of a probe.
    pub const EARLY: u32 = 1 << 27;
    /// Our SYN is not acknowledged. (That `snd_una` is `iss` says no such thing: it comes around after 4 GiB.)
    pub const SYN_UNACKED: u32 = 1 << 30;
}

/// Pieces of lasting memory from this length on, bytes, are referred to; below, a copy costs less than what a reference takes.
const REFER_FROM: usize = 2048;

/// A connection. Sequence numbers and windows as in RFC 9293 §3.3.1; times in ns unless they say otherwise.
pub(crate) struct Conn {
    pub tuple: Tuple,
    pub hash: u32,
    pub state: TcpState,
    pub flags: u32,
    pub error: Option<Error>,
    pub ip: IpOptions,
    /// Events that the stack has yet to queue.
    pub events: Ready,

    pub iss: u32,
    pub snd_una: u32,
    pub snd_nxt: u32,
    /// Beyond everything that was ever sent; `snd_nxt` goes back after a timeout.
    pub snd_max: u32,
    pub snd_wnd: u32,
    pub snd_wl1: u32,
    pub snd_wl2: u32,
    pub snd_wnd_max: u32,
    /// End of the last segment that was not full (Minshall's variant of Nagle).
    pub snd_small: u32,
    /// Payload per segment that we send, options considered.
    pub mss: u16,
    pub snd_scale: u8,
    pub rcv_scale: u8,
    pub send_limit: u32,
    /// Unacknowledged and unsent data; its first byte is `snd_una` once the SYN is acknowledged.
    pub send: ByteQueue,

    pub rcv_nxt: u32,
    /// Right edge of the window that we have advertised.
    pub rcv_adv: u32,
    pub last_ack: u32,
    /// Current limit of the receive window.
    pub rcv_limit: u32,
    /// Bytes that the owner has taken since the limit last grew.
    pub drained: u32,
    /// Largest payload seen: the peer's segment size.
    pub rcv_mss: u16,
    /// Full segments that are still acknowledged at once.
    pub quick: u8,
    pub recv: ByteQueue,
    pub ahead: Reassembly,
    pub fin_seq: u32,

    pub ts_offset: u32,
    pub ts_recent: u32,
    /// When that was, s.
    pub ts_recent_at: u32,

    /// µs.
    pub srtt: u32,
    pub rttvar: u32,
    pub rto: u32,
    pub timed_seq: u32,
    pub timed_at: u64,
    pub backoff: u8,
    pub dup_acks: u8,
    /// What `bind` said, for the next attempt to connect.
    pub bound: Bound,
    /// Unanswered keep-alive probes.
    pub probes: u8,

    pub cubic: Cubic,
    pub sacked: Ranges,
    /// Everything before it was retransmitted in this recovery.
    pub rexmit: u32,
    /// Recovery ends when this is acknowledged.
    pub recover: u32,
    pub retransmits: u32,
    /// Payload of the last frame.
    pub last_len: u32,

    /// Retransmission timer, or persist timer if nothing is in flight.
    pub rto_at: u64,
    pub ack_at: u64,
    /// Keep-alive, cork, or the end of an orphan.
    pub misc_at: u64,
    /// Last progress of what is outstanding.
    pub progress_at: u64,
    pub heard_at: u64,
    /// When data last went out.
    pub sent_at: u64,
    pub challenged_at: u64,
    pub keep_alive: Option<KeepAlive>,
    /// ms.
    pub user_timeout: u32,
    /// Bytes that the stack has counted for this connection.
    pub charged: u32,
}

/// What remains of a `bind` in a connection.
#[derive(Clone, Copy)]
pub(crate) struct Bound(pub u8);

impl Bound {
    pub const PORT: u8 = 1;
    pub const ADDRESS: u8 = 2;
    pub const REUSE: u8 = 4;
    pub const V6_ONLY: u8 = 8;
    pub const REUSE_PORT: u8 = 16;

    pub fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }
}

/// What a SYN says.
pub(crate) struct Syn {
    pub irs: u32,
    pub window: u16,
    pub scale: Option<u8>,
    pub sack: bool,
    pub ts: Option<u32>,
    /// Payload per segment that both the peer and the link allow.
    pub mss: u16,
}

impl Conn {
    /// A connection that has sent nothing yet.
    pub fn new(
        tuple: Tuple,
        hash: u32,
        iss: u32,
        ts_offset: u32,
        options: &TcpOptions,
        limits: &Limits,
        now: u64,
    ) -> Conn {
        let mut c = Conn {
            tuple,
            hash,
            state: TcpState::SynSent,
            flags: is::SYN_UNACKED,
            error: None,
            ip: IpOptions::default(),
            events: Ready(0),
            iss,
            snd_una: iss,
            snd_nxt: iss,
            snd_max: iss,
            snd_wnd: 0,
            snd_wl1: 0,
            snd_wl2: 0,
            snd_wnd_max: 0,
            snd_small: iss,
            mss: MSS_DEFAULT,
            snd_scale: 0,
            rcv_scale: 0,
            send_limit: SEND_INITIAL.min(limits.send_buffer),
            send: ByteQueue::new(),
            rcv_nxt: 0,
            rcv_adv: 0,
            last_ack: 0,
            rcv_limit: WINDOW_INITIAL.min(limits.receive_buffer),
            drained: 0,
            rcv_mss: MSS_DEFAULT,
            quick: 16,
            recv: ByteQueue::new(),
            ahead: Reassembly::new(),
            fin_seq: 0,
            ts_offset,
            ts_recent: 0,
            ts_recent_at: 0,
            srtt: 0,
            rttvar: 0,
            rto: RTO_INITIAL,
            timed_seq: 0,
            timed_at: 0,
            backoff: 0,
            dup_acks: 0,
            bound: Bound(0),
            probes: 0,
            cubic: Cubic::new(u32::from(MSS_DEFAULT)),
            sacked: Ranges::new(),
            rexmit: iss,
            recover: iss,
            retransmits: 0,
            last_len: 0,
            rto_at: NEVER,
            ack_at: NEVER,
            misc_at: NEVER,
            progress_at: now,
            heard_at: now,
            sent_at: now,
            challenged_at: 0,
            keep_alive: None,
            user_timeout: 0,
            charged: 0,
        };
        c.set_options(options, limits);
        c
    }

    /// The connection that a half-open entry becomes. `mss` is what the link allows.
    pub fn from_half(h: &Half, options: &TcpOptions, limits: &Limits, ts_offset: u32, mss: u16, now: u64) -> Conn {
        let mut c = Conn::new(h.tuple, h.hash, h.iss, ts_offset, options, limits, now);
        c.state = TcpState::SynReceived;
        c.snd_nxt = h.iss.wrapping_add(1);
        c.snd_max = c.snd_nxt;
        let ts = h.ts.then_some(h.ts_recent);
        let syn = Syn { irs: h.irs, window: h.window, scale: h.scale, sack: h.sack, ts, mss: h.mss.min(mss) };
        c.receive_syn(&syn, now);
        if let Some(at) = h.answered_at {
            // The handshake is the first round trip: without it, what is lost of the first answer would cost a second.
            let us = ((now / 1000) as u32).wrapping_sub(at.get());
            c.start_timing(h.iss, now.saturating_sub(u64::from(us) * 1000));
        }
        c
    }

    /// Takes what the peer's SYN says.
    pub fn receive_syn(&mut self, syn: &Syn, now: u64) {
        self.rcv_nxt = syn.irs.wrapping_add(1);
        self.last_ack = self.rcv_nxt;
        // What the SYN or SYN-ACK advertised, unscaled.
        self.rcv_adv = self.rcv_nxt.wrapping_add(self.rcv_limit.min(WINDOW_INITIAL));
        self.snd_wnd = u32::from(syn.window);
        self.snd_wnd_max = self.snd_wnd;
        self.snd_wl1 = syn.irs;
        if let Some(scale) = syn.scale {
            self.snd_scale = scale;
            self.rcv_scale = WINDOW_SCALE;
        }
        if syn.sack {
            self.flags |= is::SACK;
        }
        self.mss = syn.mss.max(MSS_MIN);
        if let Some(value) = syn.ts {
            self.flags |= is::TS;
            self.ts_recent = value;
            self.ts_recent_at = (now / SECOND) as u32;
            self.mss -= 12;
        }
        self.cubic = Cubic::new(u32::from(self.mss));
    }

    pub fn has(&self, bits: u32) -> bool {
        self.flags & bits != 0
    }

    /// Memory that the connection takes, itself included, bytes.
    pub fn held(&self) -> usize {
        size_of::<Conn>() + self.send.held() + self.recv.held() + self.ahead.held()
    }

    /// Bytes that the peer may still send by what we have advertised.
    pub fn window(&self) -> u32 {
        // FIN may lie just beyond the edge.
        let w = self.rcv_adv.wrapping_sub(self.rcv_nxt);
        if w > u32::MAX / 2 { 0 } else { w }
    }

    /// Sequence number behind the last queued byte, which is FIN's if it is queued.
    pub fn data_end(&self) -> u32 {
        let syn = u32::from(self.has(is::SYN_UNACKED));
        self.snd_una.wrapping_add(syn).wrapping_add(self.send.len() as u32)
    }

    /// Whether there is something in the queue, data or FIN, that was never sent.
    pub fn has_new(&self) -> bool {
        let fin = u32::from(matches!(self.state, TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck));
        lt(self.snd_max, self.data_end().wrapping_add(fin))
    }

    /// Whether something was sent that is not acknowledged.
    pub fn outstanding(&self) -> bool {
        self.snd_una != self.snd_max
    }

    /// Whether there is something in the queue, data or FIN, that has yet to be sent (again).
    pub fn has_unsent(&self) -> bool {
        lt(self.snd_nxt, self.data_end())
            || (!self.outstanding() && matches!(self.state, TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck))
    }

    pub fn synchronized(&self) -> bool {
        !matches!(self.state, TcpState::SynSent | TcpState::SynReceived | TcpState::Closed)
    }

    /// Bytes of payload that the send queue may hold.
    fn send_room(&self) -> usize {
        (self.send_limit as usize).saturating_sub(self.send.len())
    }

    /// Whether the send queue has enough room to wake a writer.
    fn writable(&self) -> bool {
        if self.has(is::PRESSED) {
            return self.send.is_empty();
        }
        self.send_room() * 3 >= self.send_limit as usize
    }

    /// See [`Ready`].
    pub fn readiness(&self) -> Ready {
        let mut r = 0;
        let dead = self.state == TcpState::Closed;
        let end = self.has(is::FIN_RECEIVED | is::READ_SHUT) || dead;
        if !self.recv.is_empty() || end {
            r |= Ready::READABLE.0;
        }
        if end {
            r |= Ready::READ_CLOSED.0;
        }
        let write_shut = self.has(is::FIN_QUEUED);
        if dead || (self.synchronized() && (write_shut || self.writable())) {
            r |= Ready::WRITABLE.0;
        }
        if dead || (end && write_shut) {
            r |= Ready::HANGUP.0;
        }
        if self.error.is_some() {
            r |= Ready::ERROR.0;
        }
        Ready(r)
    }

    pub fn event(&mut self, ready: Ready) {
        self.events = self.events.union(ready);
    }

    /// Says that there is room in the send queue, if somebody may wait for that.
    pub fn tell_room(&mut self) {
        if self.has(is::WANTS_ROOM) && self.readiness().contains(Ready::WRITABLE) {
            self.flags &= !is::WANTS_ROOM;
            self.event(Ready::WRITABLE);
        }
    }

    /// Queues data; `more`: hold the last segment back if it is not full.
    pub fn send(&mut self, cx: &Cx, pieces: &[&[u8]], more: bool) -> Result<usize, Error> {
        if let Some(e) = self.error.take() {
            return Err(e);
        }
        if self.state == TcpState::Closed || self.has(is::FIN_QUEUED) {
            return Err(Error::BrokenPipe);
        }
        if !self.synchronized() {
            return Err(Error::WouldBlock);
        }
        // Under pressure the room shrinks; whoever has nothing queued gets a little in any case, or it would wait for an event that never comes.
        let least = if self.send.is_empty() { 1024 } else { 0 };
        let share = cx.allowance().saturating_sub(self.send.len()).min(cx.spare()).max(least);
        let mut room = self.send_room();
        self.flags &= !is::PRESSED;
        if share < room {
            room = share;
            self.flags |= is::PRESSED;
        }
        let (mut taken, mut short) = (0, false);
        for piece in pieces {
            let part = piece.get(..room).unwrap_or(piece);
            let n = match cx.lasting(part).filter(|_| part.len() >= REFER_FROM) {
                Some(part) => self.send.push_lasting(part),
                None => self.send.push(part),
            };
            taken += n;
            room -= n;
            if n < piece.len() {
                short = true;
                break;
            }
        }
        if room > 0 {
            self.flags &= !is::PRESSED;
        }
        if short || !self.writable() {
            // Cut short, if not by the room then by an allocation that failed; or taken whole, after which whoever polls is told to wait.
            self.flags |= is::WANTS_ROOM;
        }
        if taken == 0 && short {
            return Err(if self.send.is_empty() { Error::NoMemory } else { Error::WouldBlock });
        }
        self.flags = self.flags & !is::MORE | if more { is::MORE } else { 0 };
        Ok(taken)
    }

    pub fn recv(&mut self, buffers: &mut [&mut [u8]], mode: RecvMode) -> Result<usize, Error> {
        let n = self.recv.peek(buffers);
        if n > 0 {
            if mode == RecvMode::Take {
                self.recv.consume(n);
                self.drained = self.drained.saturating_add(n as u32);
            }
            return Ok(n);
        }
        if !self.recv.is_empty() {
            return Ok(0);
        }
        // A reset after the end does not take the end away, as on Linux.
        if self.has(is::FIN_RECEIVED) {
            return Ok(0);
        }
        if let Some(e) = self.error.take() {
            return Err(e);
        }
        if self.has(is::READ_SHUT) || self.state == TcpState::Closed {
            return Ok(0);
        }
        Err(Error::WouldBlock)
    }

    /// Queues FIN.
    pub fn shut_write(&mut self) {
        if self.has(is::FIN_QUEUED) {
            return;
        }
        let next = match self.state {
            TcpState::SynReceived | TcpState::Established => TcpState::FinWait1,
            TcpState::CloseWait => TcpState::LastAck,
            _ => return,
        };
        self.flags |= is::FIN_QUEUED;
        if self.state != TcpState::SynReceived {
            self.state = next;
        }
        self.event(Ready::WRITABLE);
        if self.has(is::FIN_RECEIVED | is::READ_SHUT) {
            self.event(Ready::HANGUP);
        }
    }

    /// Discards what will come; what is queued can still be read, as on Linux.
    pub fn shut_read(&mut self) {
        self.flags |= is::READ_SHUT;
        self.event(Ready::READABLE.union(Ready::READ_CLOSED));
        if self.has(is::FIN_QUEUED) {
            self.event(Ready::HANGUP);
        }
    }

    /// The end: no more sending or receiving. What was received stays readable unless there is an error.
    pub fn die(&mut self, error: Option<Error>) {
        self.state = TcpState::Closed;
        self.send.consume(usize::MAX);
        self.ahead.clear();
        self.sacked.clear();
        (self.rto_at, self.ack_at, self.misc_at) = (NEVER, NEVER, NEVER);
        self.flags &= !(is::ACK_NOW | is::FORCE | is::PROBE);
        let mut what = Ready::READABLE.0 | Ready::WRITABLE.0 | Ready::READ_CLOSED.0 | Ready::HANGUP.0;
        if error.is_some() {
            self.error = error;
            what |= Ready::ERROR.0;
        }
        self.event(Ready(what));
    }

    pub fn options(&self) -> TcpOptions {
        TcpOptions {
            nodelay: self.has(is::NODELAY),
            cork: self.has(is::CORK),
            quick_ack: self.has(is::QUICK_ACK | is::LATE_ACK).then_some(self.has(is::QUICK_ACK)),
            keep_alive: self.keep_alive,
            user_timeout: self.user_timeout,
            send_buffer: self.has(is::FIXED_SEND).then_some(self.send_limit),
            receive_buffer: self.has(is::FIXED_RECEIVE).then_some(self.rcv_limit),
        }
    }

    pub fn set_options(&mut self, o: &TcpOptions, limits: &Limits) {
        self.flags &= !(is::NODELAY | is::CORK | is::FIXED_SEND | is::FIXED_RECEIVE | is::QUICK_ACK | is::LATE_ACK);
        self.flags |= if o.nodelay { is::NODELAY } else { 0 } | if o.cork { is::CORK } else { 0 };
        self.flags |= o.quick_ack.map_or(0, |on| if on { is::QUICK_ACK } else { is::LATE_ACK });
        if o.quick_ack == Some(true) && self.ack_at != NEVER {
            // What is due anyway.
            self.flags |= is::ACK_NOW;
        }
        if let Some(n) = o.send_buffer {
            self.flags |= is::FIXED_SEND;
            self.send_limit = n.clamp(2048, limits.send_buffer.max(2048));
            if !self.writable() {
                self.flags |= is::WANTS_ROOM;
            }
            self.tell_room();
        }
        if let Some(n) = o.receive_buffer {
            self.flags |= is::FIXED_RECEIVE;
            self.rcv_limit = n.clamp(2048, limits.receive_buffer.max(2048));
        }
        self.keep_alive = o.keep_alive;
        self.user_timeout = o.user_timeout;
        self.probes = 0;
        self.schedule_misc();
    }

    /// Sets the timer for the first keep-alive probe.
    pub fn schedule_misc(&mut self) {
        if self.has(is::ORPHAN) {
            return;
        }
        self.misc_at = match self.keep_alive {
            Some(k) if self.synchronized() => self.heard_at + u64::from(k.idle.max(1)) * SECOND,
            _ => NEVER,
        };
    }

    pub fn info(&self) -> TcpInfo {
        TcpInfo {
            state: self.state,
            rtt_us: self.srtt,
            rtt_var_us: self.rttvar,
            rto_us: self.rto,
            congestion_window: self.cubic.cwnd,
            slow_start_threshold: self.cubic.ssthresh,
            send_mss: self.mss,
            retransmits: self.retransmits,
            send_queue: self.send.len() as u32,
            receive_queue: self.recv.len() as u32,
            receive_window: self.window(),
        }
    }
}
