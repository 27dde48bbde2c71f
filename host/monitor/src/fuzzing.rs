//! What `fuzz/` needs of this crate's inside.

use crate::options::RunOptions;
use crate::reactor::Reactor;
use crate::usernet::{Prepared, UserNet, Wire};
use donjon_abi::manifest::Egress;
use donjon_image::Manifest;
use rustix::net::{RecvFlags, SendFlags};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// Opens an image as an engine does.
pub fn open(path: &Path) -> Result<(), String> {
    crate::source::Source::open(path).map(drop).map_err(|e| e.to_string())
}

/// Switches the loopback device of the network namespace on.
pub fn loopback_up() -> std::io::Result<()> {
    let status = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    if status.success() { Ok(()) } else { Err(std::io::Error::other("ip link set lo up")) }
}

/// User-mode networking with nobody but the fuzzer at the guest's end.
pub struct Net {
    net: UserNet,
    reactor: Reactor,
    guest: OwnedFd,
}

impl Net {
    /// The guest may reach port 80 of the host's loopback; with `any`, everything that `--egress-any` allows.
    pub fn new(any: bool) -> Net {
        let gateway = Ipv4Addr::new(10, 0, 2, 2).to_ipv6_mapped().octets();
        let egress = vec![Egress { protocol: 0, prefix: 128, port: 80, addr: gateway }];
        let manifest = Manifest { egress, ..Manifest::default() };
        let options = RunOptions { egress_any: any, ..RunOptions::default() };
        let (prepared, guest) = Prepared::open(&options, &manifest, Wire::Offload).expect("a socket pair");
        let reactor = Reactor::new().expect("an epoll instance");
        let net = UserNet::new(prepared, 0, &reactor).expect("a network");
        Net { net, reactor, guest }
    }

    /// The guest sends a frame.
    pub fn frame(&mut self, header: &[u8; 12], frame: &[u8]) {
        let _ = rustix::net::send(&self.guest, &[header, frame].concat(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }

    /// One turn of the loop; what came to the guest.
    pub fn turn(&mut self) -> Vec<Vec<u8>> {
        let mut events = Vec::new();
        for _ in 0..2 {
            self.reactor.wait(Some(Duration::ZERO), &mut events).expect("epoll works");
            for ready in events.drain(..) {
                self.net.ready(ready, &self.reactor);
            }
            self.net.work(&self.reactor);
        }
        let mut frames = Vec::new();
        let mut room = vec![0; donjon_abi::FRAME_MAX];
        while let Ok((n @ 1.., _)) = rustix::net::recv(&self.guest, &mut *room, RecvFlags::DONTWAIT) {
            frames.push(room[..n].to_vec());
        }
        frames
    }
}
