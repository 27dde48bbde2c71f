//! The ring-0 shim: serves the gate inside an image that a standard hypervisor boots.
//!
//! Everything that decides (page tables, frames, rings, tables of the firmware, command line) is safe code over
//! [`phys::Phys`] and is tested on the host; `machine/` is what only ring 0 can do.
#![cfg_attr(donjon_guest, no_std)]

pub mod calendar;
pub mod cmdline;
pub mod firmware;
pub mod frames;
pub mod fwcfg;
pub mod image;
pub mod iov;
#[cfg(donjon_guest)]
pub mod machine;
pub mod mix;
pub mod nic;
pub mod pci;
pub mod phys;
pub mod pit;
pub mod pool;
pub mod rng;
pub mod space;
pub mod stop;
pub mod strings;
pub mod text;
pub mod transport;
pub mod user;
pub mod virtq;
