//! TCP (RFC 9293). One connection is a [`conn::Conn`]: `input` takes its segments, `output` makes them, `timer` its timeouts; none of them
//! knows the stack. Half-open and TIME-WAIT connections are compact entries of their own.

pub(crate) mod conn;
pub(crate) mod cubic;
pub(crate) mod half_open;
pub(crate) mod head;
mod input;
pub(crate) mod listen;
mod output;
pub(crate) mod ranges;
pub(crate) mod reassembly;
mod rtt;
pub(crate) mod segment;
#[cfg(test)]
mod tests;
pub(crate) mod time_wait;
mod timer;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000_000_000;
/// A deadline that never comes.
pub(crate) const NEVER: u64 = u64::MAX;

/// The retransmission timeout is longer than the round trip by this at least, µs: a peer may delay its acknowledgement that much. (RFC 6298
/// has 1 s for the whole; this is Linux's.)
pub(crate) const RTO_MARGIN: u32 = 200_000;
/// Longest timeout, µs.
pub(crate) const RTO_MAX: u32 = 120_000_000;
/// First timeout, µs (RFC 6298 §2.1).
pub(crate) const RTO_INITIAL: u32 = 1_000_000;
/// Largest first timeout of data if the SYN had to be sent again, µs (RFC 6298 §5.7).
pub(crate) const RTO_AFTER_SYN: u32 = 3_000_000;
/// Retransmissions of a SYN or SYN-ACK: 1 + 2 + 4 + 8 + 16 + 32 + 64 s, as Linux.
pub(crate) const SYN_RETRIES: u8 = 6;
pub(crate) const SYN_ACK_RETRIES: u8 = 5;
/// Give up on a silent peer after this long by default (Linux' 15 retries come to the same), ns.
pub(crate) const GIVE_UP: u64 = 924 * SECOND;
/// An orphan that the peer does not let finish, ns.
pub(crate) const ORPHAN_TIME: u64 = 60 * SECOND;
/// Delay of an acknowledgement, ns.
pub(crate) const ACK_DELAY: u64 = 40 * MS;
/// A segment that is not full waits for more this long at most when nothing is under way, ns.
pub(crate) const HOLD_BACK: u64 = 200 * MS;
/// Shortest time before a tail loss probe, ns.
pub(crate) const TAIL_MIN: u64 = 50 * MS;
/// Window scale that we announce: a window of 4 MiB and more.
pub(crate) const WINDOW_SCALE: u8 = 7;
/// First receive window, bytes.
pub(crate) const WINDOW_INITIAL: u32 = 65_535;
/// First send buffer, bytes.
pub(crate) const SEND_INITIAL: u32 = 128 << 10;
/// Payload per segment if the peer does not say (RFC 9293 §3.7.1).
pub(crate) const MSS_DEFAULT: u16 = 536;
/// Smallest payload per segment that we let a peer or router talk us into.
pub(crate) const MSS_MIN: u16 = 88;

/// A peer's timestamp says nothing any more after that long, s: its clock may have come around (RFC 7323 §5.5).
pub(crate) const TS_VALID: u32 = 24 * 86_400;

pub(crate) mod flag {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
}

/// `a < b` of sequence numbers.
pub(crate) fn lt(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// `a <= b` of sequence numbers.
pub(crate) fn le(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) <= 0
}

/// The later one.
pub(crate) fn later(a: u32, b: u32) -> u32 {
    if lt(a, b) { b } else { a }
}

/// What a connection sees of the world around it.
pub(crate) struct Cx<'a> {
    pub now: u64,
    /// Bytes left of the memory budget. Most questions are for [`Cx::spare`].
    pub memory_free: usize,
    pub limits: &'a crate::Limits,
    /// See [`crate::Config::lasting`].
    pub lasting: &'static [u8],
}

impl Cx<'_> {
    /// Bytes left for what connections have queued: the last sixteenth of the memory is for new connections, and for the little that each
    /// gets in any case, so that a crowd locks nobody out.
    pub fn spare(&self) -> usize {
        self.memory_free.saturating_sub(self.limits.memory / 16)
    }

    /// Bytes that one connection may have queued each way, by how much memory is left: the first ones may take much, but a crowd that does not
    /// read leaves enough for those that do.
    pub fn allowance(&self) -> usize {
        let all = self.limits.memory;
        match self.memory_free {
            free if free > all / 2 => usize::MAX,
            free if free > all / 4 => (128 << 10).min(all / 16),
            free if free > all / 8 => (32 << 10).min(all / 64),
            _ => (8 << 10).min(all / 256),
        }
    }

    /// The same bytes for as long as we please, if they lie in memory that lasts.
    pub fn lasting(&self, piece: &[u8]) -> Option<&'static [u8]> {
        let offset = piece.as_ptr().addr().checked_sub(self.lasting.as_ptr().addr())?;
        self.lasting.get(offset..offset.checked_add(piece.len())?)
    }

    /// The clock by which a peer's timestamp becomes old.
    pub fn seconds(&self) -> u32 {
        (self.now / SECOND) as u32
    }

    /// The clock of the timestamp option.
    pub fn ms(&self) -> u32 {
        (self.now / MS) as u32
    }
}

pub(crate) use input::Verdict;
pub(crate) use output::Emit;
