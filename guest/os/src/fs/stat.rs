//! What `stat` tells.

/// The one user and group, as `getuid` and `getgid` tell them.
pub const USER: u32 = 1000;

/// A moment.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Time {
    /// Seconds since 1970.
    pub sec: i64,
    /// And nanoseconds.
    pub nsec: u32,
}

impl Time {
    /// From nanoseconds since 1970.
    pub const fn from_ns(ns: u64) -> Time {
        Time { sec: (ns / 1_000_000_000) as i64, nsec: (ns % 1_000_000_000) as u32 }
    }
}

/// File type bits of [`Stat::mode`].
pub mod kind {
    /// Mask.
    pub const MASK: u32 = 0o170_000;
    /// Socket.
    pub const SOCKET: u32 = 0o140_000;
    /// Symbolic link.
    pub const LINK: u32 = 0o120_000;
    /// Regular file.
    pub const FILE: u32 = 0o100_000;
    /// Directory.
    pub const DIR: u32 = 0o040_000;
    /// Character device.
    pub const CHAR: u32 = 0o020_000;
    /// Pipe.
    pub const FIFO: u32 = 0o010_000;
}

/// The status of a file.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Stat {
    /// Device: 1 bundle, 2 tmpfs, 3 devices, 0 all else.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// For devices: major * 256 + minor.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// Bytes that are really taken.
    pub used: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of status.
    pub ctime: Time,
}
