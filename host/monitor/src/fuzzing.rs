//! What `fuzz/` needs of this crate's inside.

use crate::options::RunOptions;
use crate::reactor::Reactor;
use crate::usernet::{Prepared, UserNet, Wire};
use donjon_abi::boot;
use donjon_abi::manifest::Egress;
use donjon_image::Manifest;
use donjon_net::NetHdr;
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

/// The frame filter of a guest at 10.0.2.15 and fd00::15 that serves TCP and UDP port 80 and may reach 9.9.9.0/24 by TCP, port 443.
pub struct Filter(crate::filter::Filter);

impl Filter {
    /// A filter that has seen nothing.
    pub fn new() -> Filter {
        let addr = Ipv4Addr::new(9, 9, 9, 0).to_ipv6_mapped().octets();
        let manifest = Manifest {
            egress: vec![Egress { protocol: 6, prefix: 120, port: 443, addr }],
            listen: ["80/tcp", "80/udp"].into_iter().filter_map(|p| p.parse().ok()).collect(),
            ..Manifest::default()
        };
        // Without resolvers: nothing but what the manifest says.
        let net = boot::Net { ipv4_dns: [[0; 4]; 2], ipv6_dns: [0; 16], ..Prepared::boot(Wire::Offload) };
        Filter(crate::filter::Filter::new(crate::filter::rules::Rules::new(&manifest, &net, &RunOptions::default())))
    }

    /// Whether a frame of the guest passes.
    pub fn outbound(&mut self, header: &[u8; 12], frame: &[u8]) -> bool {
        self.0.outbound(NetHdr::from_bytes(*header), frame.into()).is_ok()
    }

    /// Whether a frame for the guest passes.
    pub fn inbound(&mut self, frame: &[u8]) -> bool {
        self.0.inbound(frame.into())
    }
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
