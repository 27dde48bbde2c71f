//! What a stack is told at its birth.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the device does for us; the bits of `abi::boot::net`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Offload {
    /// The device completes checksums of sent frames (`TX_CSUM`).
    pub tx_csum: bool,
    /// The device cuts TCPv4 super-frames into segments (`TX_TSO4`); needs `tx_csum`.
    pub tso4: bool,
    /// The device cuts TCPv6 super-frames into segments (`TX_TSO6`); needs `tx_csum`.
    pub tso6: bool,
}

impl Offload {
    /// From the flags of the boot page (`abi::boot::net`).
    pub const fn from_boot_flags(flags: u32) -> Offload {
        use donjon_abi::boot::net::*;
        let tx_csum = flags & TX_CSUM != 0;
        Offload { tx_csum, tso4: tx_csum && flags & TX_TSO4 != 0, tso6: tx_csum && flags & TX_TSO6 != 0 }
    }
}

/// Bounds. Nothing in the stack grows beyond what follows from these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most sockets of all kinds, connections included.
    pub sockets: u32,
    /// Bytes that all connections together may hold, their queues included. As it fills, each may queue and is sent less; queues leave the last sixteenth to
    /// new connections and to the little that each may queue in any case.
    pub memory: usize,
    /// Most half-open connections (a few dozen bytes each), over all listeners.
    pub half_open: u32,
    /// Most TIME-WAIT entries (a few dozen bytes each); the oldest is dropped when a new one does not fit.
    pub time_wait: u32,
    /// Most connections that nobody owns any more and that still finish.
    pub orphans: u32,
    /// Most entries of the neighbour cache.
    pub neighbours: u32,
    /// Largest send buffer of one connection (`SO_SNDBUF` is cut to it), bytes.
    pub send_buffer: u32,
    /// Largest receive window that auto-tuning or `SO_RCVBUF` reaches, bytes.
    pub receive_buffer: u32,
}

impl Limits {
    /// Bounds that fit a guest with that many bytes of memory.
    pub const fn for_memory(bytes: u64) -> Limits {
        let bytes = if bytes > 1 << 31 { 1 << 31 } else { bytes as usize };
        let memory = bytes / 4;
        let sockets = bytes / 1024;
        let small = (bytes / 16384) as u32;
        Limits {
            sockets: sockets as u32,
            memory,
            half_open: if small > 4096 {
                4096
            } else if small < 256 {
                256
            } else {
                small
            },
            time_wait: if small > 16384 {
                16384
            } else if small < 512 {
                512
            } else {
                small
            },
            orphans: if small > 8192 {
                8192
            } else if small < 256 {
                256
            } else {
                small
            },
            neighbours: 256,
            send_buffer: 4 << 20,
            receive_buffer: 4 << 20,
        }
    }
}

/// How a stack starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Our Ethernet address.
    pub mac: [u8; 6],
    /// Largest IP packet on the link, bytes; 1280 to 65535 (values outside are cut).
    pub mtu: u32,
    /// What the device does for us.
    pub offload: Offload,
    /// Secret random bytes: initial sequence numbers, ports, hash seeds.
    pub key: [u8; 32],
    /// Bounds.
    pub limits: Limits,
    /// Memory that is neither changed nor freed as long as the program runs: what is sent from there is not copied into the send queue.
    pub lasting: &'static [u8],
    /// The host's mode: packets to any address are ours (beyond the Ethernet address there is no check), sockets may bind
    /// and send from any address, and [`crate::Stack::listen_any`] and [`crate::Stack::bind_any`] work.
    pub any_ip: bool,
    /// Get an IPv4 address, router and resolvers from DHCP.
    pub dhcp: bool,
    /// Get IPv6 addresses and a router from router advertisements. Without it there is only what is added by hand.
    pub slaac: bool,
}

/// What the network told us, from DHCP, or what was set by hand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Our address.
    pub address: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
    /// Default router.
    pub router: Option<Ipv4Addr>,
    /// Resolvers; unspecified ones (0.0.0.0) are none.
    pub dns: [Ipv4Addr; 2],
}

/// An address of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnAddress {
    /// The address.
    pub address: IpAddr,
    /// Prefix length of the on-link network.
    pub prefix: u8,
}

pub(crate) const LOCALHOST4: Ipv4Addr = Ipv4Addr::LOCALHOST;
pub(crate) const LOCALHOST6: Ipv6Addr = Ipv6Addr::LOCALHOST;
