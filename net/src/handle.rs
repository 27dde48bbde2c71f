//! Names of sockets: slot number and generation, so that an old handle never reaches a new socket.

/// Names a socket. Stays valid until `close` or `abort`; afterwards every call with it gives [`crate::Error::BadHandle`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Handle {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl Handle {
    /// A number that is unique among all handles that are ever given out.
    pub const fn to_raw(self) -> u64 {
        (self.generation as u64) << 32 | self.slot as u64
    }

    /// The handle of that number.
    pub const fn from_raw(raw: u64) -> Handle {
        Handle { slot: raw as u32, generation: (raw >> 32) as u32 }
    }
}

/// Names a connection attempt at an "any" listener that waits for `complete` or `refuse`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pending {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}
