//! A listener: two bounded queues, and no buffer for a connection that does not exist yet.

use super::SECOND;
use crate::addr::End;
use crate::types::{IpOptions, TcpOptions};
use alloc::collections::VecDeque;

/// Largest backlog (Linux' `somaxconn`).
pub(crate) const BACKLOG_MAX: u32 = 4096;

/// See [`Listener::on_syn`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnSyn {
    /// SYN-ACK.
    Answer,
    /// It waits.
    Park,
    /// It is lost.
    Drop,
}

pub(crate) struct Listener {
    pub local: End,
    pub v6_only: bool,
    /// Others may listen at the same address and port.
    pub reuse_port: bool,
    /// For every address and port.
    pub any: bool,
    pub backlog: u32,
    /// Half-open connections of this listener.
    pub half: u32,
    /// Those of them for which a place in the accept queue is kept.
    pub claims: u32,
    /// Until then no places are kept: one was kept in vain.
    pub doubt: u64,
    /// Slots and generations of established connections.
    pub ready: VecDeque<(u32, u32)>,
    /// Slots and generations of half-open entries that wait for the owner's decision ("any") or for room in the accept queue.
    pub pending: VecDeque<(u32, u32)>,
    pub options: TcpOptions,
    pub ip: IpOptions,
}

impl Listener {
    /// What becomes of a SYN. A crowd that comes at once is answered as fast as the program accepts, so that nobody's SYN or acknowledgement finds
    /// the accept queue full and is repeated after a second. In a flood, those that never acknowledge are not to keep places from others: it is
    /// answered at once, as long as the queue has room.
    pub fn on_syn(&self, now: u64) -> OnSyn {
        match self.any {
            true if self.half < self.backlog => OnSyn::Park,
            true => OnSyn::Drop,
            false if self.has_room(now) => OnSyn::Answer,
            false if self.pending.len() < self.crowd() as usize / 4 * 3 => OnSyn::Park,
            false if self.takes_connection() => OnSyn::Answer,
            false => OnSyn::Drop,
        }
    }

    /// Whether a place in the accept queue is free that is kept for nobody.
    pub fn has_room(&self, now: u64) -> bool {
        let kept = if now < self.doubt { 0 } else { self.claims };
        self.ready.len() as u32 + kept < self.backlog
    }

    /// A place was kept for a peer that has not acknowledged in time.
    pub fn claim_lapsed(&mut self, now: u64) {
        self.claims = self.claims.saturating_sub(1);
        self.doubt = now + SECOND;
    }

    fn crowd(&self) -> u32 {
        self.backlog.max(16) * 16
    }

    /// Whether another half-open connection needs the place of an older one. An honest peer whose entry is gone when its
    /// acknowledgement arrives is reset, so there is room for a crowd that comes at once to a slow machine: 2,048 with the
    /// backlog of 128 that std asks for.
    pub fn is_crowded(&self) -> bool {
        !self.any && self.half >= self.crowd()
    }

    /// Room for another established connection.
    pub fn takes_connection(&self) -> bool {
        (self.ready.len() as u32) < self.backlog
    }
}
