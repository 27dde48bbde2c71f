//! A listener: two bounded queues, and no buffer for a connection that does not exist yet.

use crate::addr::End;
use crate::types::{IpOptions, TcpOptions};
use alloc::collections::VecDeque;

/// Largest backlog (Linux' `somaxconn`).
pub(crate) const BACKLOG_MAX: u32 = 4096;

pub(crate) struct Listener {
    pub local: End,
    pub v6_only: bool,
    /// For every address and port.
    pub any: bool,
    pub backlog: u32,
    /// Half-open connections of this listener.
    pub half: u32,
    /// Slots and generations of established connections.
    pub ready: VecDeque<(u32, u32)>,
    /// Slots and generations of half-open entries that wait for the owner's decision.
    pub pending: VecDeque<(u32, u32)>,
    pub options: TcpOptions,
    pub ip: IpOptions,
}

impl Listener {
    /// Whether a SYN is looked at. Not when the accept queue is full, since it could only end in a retry.
    pub fn takes_syn(&self) -> bool {
        if self.any { self.half < self.backlog } else { self.takes_connection() }
    }

    /// Whether another half-open connection needs the place of an older one. An honest peer whose entry is gone when its
    /// acknowledgement arrives is reset, so there is room for a crowd that comes at once to a slow machine: 2,048 with the
    /// backlog of 128 that std asks for.
    pub fn is_crowded(&self) -> bool {
        !self.any && self.half >= self.backlog.max(16) * 16
    }

    /// Room for another established connection.
    pub fn takes_connection(&self) -> bool {
        (self.ready.len() as u32) < self.backlog
    }
}
