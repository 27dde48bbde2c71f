//! The TCP/IP stack of Donjon: sans-IO, bounded in every direction.
//!
//! [`Stack`] is the whole of it: Ethernet frames go in with [`Stack::input`], come out with [`Stack::output`], and time is an
//! argument (nanoseconds of a monotonic clock). It ends TCP for the guest's library OS and, in "any" mode, for
//! the monitor's user-mode networking. See ADR 0002 for why it exists.
//!
//! How to drive it:
//!
//! 1. `input` every received frame; call socket functions as the application asks.
//! 2. `output` after each batch of either, and when [`Stack::deadline`] passes. It also runs timers and loopback traffic.
//! 3. `next_event` until it is `None`; wake whoever waits for that handle and let them look at [`Stack::readiness`].
//!
//! What there is: IPv4 and IPv6 with fragments in and out, ARP, neighbour discovery, DHCPv4, SLAAC, ICMP echo and errors, path MTU discovery, UDP, and TCP
//! (RFC 9293) with window scale, timestamps and PAWS (7323), SACK (2018, 6675), CUBIC (9438), RTO (6298), Nagle and delayed acknowledgements, keep-alive, user
//! timeout, challenge acknowledgements (5961), keyed sequence numbers (6528) and TIME-WAIT reuse (6191).
//!
//! What there is not: multicast membership (nor MLD reports for our own groups), duplicate address detection, DHCPv6, several interfaces or routes, urgent data (it is read in line), ECN, TCP fast open,
//! SYN cookies (in a flood the half-open entry that has waited longest makes room), raw sockets.
//!
//! No function blocks, none panics on what a peer sends, and no per-packet step walks over all sockets.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod addr;
mod bytes;
mod checksum;
mod config;
mod dhcp;
mod egress;
mod error;
mod fragment;
mod handle;
mod hash;
mod icmp;
mod iface;
mod ingress;
mod neighbour;
mod neighbour_wire;
mod path_mtu;
mod ports;
mod slaac;
mod slab;
mod socket;
mod stack;
mod table;
mod tcp;
mod tcp_calls;
mod tcp_glue;
mod timers;
mod types;
mod udp;

pub use config::{Config, Lease, Limits, Offload, OwnAddress};
pub use donjon_abi::{NetHdr, net_hdr};
pub use error::Error;
pub use handle::{Handle, Pending};
pub use stack::Stack;
pub use types::*;
