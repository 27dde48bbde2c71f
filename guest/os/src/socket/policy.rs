//! The manifest's `listen` and `egress` at the socket calls. The host enforces the same on the frames, where it can; this half is what is left where it cannot
//! (a hypervisor that is not ours), and what tells an honest program at once.

use super::option::{IPPROTO_TCP, IPPROTO_UDP};
use crate::errno::{Errno, Result};
use crate::netif;
use core::net::{IpAddr, SocketAddr};
use donjon_abi::boot::flags;
use donjon_abi::manifest::{Egress, Tag, records};

/// Whether a socket may serve at its local address: loopback, or a declared port.
pub fn serve(protocol: i32, local: SocketAddr) -> Result<()> {
    let open = donjon_base::boot().flags & flags::LISTEN_ANY != 0;
    let declared = || serves(manifest(), protocol as u8, local.port());
    if open || local.ip().to_canonical().is_loopback() || declared() { Ok(()) } else { Err(Errno::EACCES) }
}

/// Whether a UDP socket may be bound to that address. A client may name its own port.
pub fn bind_datagram(local: SocketAddr) -> Result<()> {
    if local.port() == 0 || speaks(IPPROTO_UDP as u8) { Ok(()) } else { serve(IPPROTO_UDP, local) }
}

/// Whether a connection or datagram may go to `remote`. `local` is the socket's own port, which counts if it serves datagrams: who has asked gets an answer.
pub fn reach(protocol: i32, local: impl FnOnce() -> u16, remote: SocketAddr) -> Result<()> {
    if netif::is_local(remote.ip()) {
        return Ok(());
    }
    let to = octets(remote.ip());
    let boot = donjon_base::boot();
    const ANYTHING: Egress = Egress { protocol: 0, prefix: 0, port: 0, addr: [0; 16] };
    if boot.flags & flags::EGRESS_ANY != 0 && ANYTHING.reaches(protocol as u8, to, remote.port()) {
        return Ok(());
    }
    if reaches(manifest(), protocol as u8, to, remote.port()) {
        return Ok(());
    }
    // Names are needed by whoever may go anywhere at all.
    let somewhere = || boot.flags & flags::EGRESS_ANY != 0 || destinations(manifest()).next().is_some();
    if remote.port() == 53 && somewhere() && netif::resolvers().contains(&remote.ip().to_canonical()) {
        return Ok(());
    }
    let answers = || protocol == IPPROTO_UDP && serve(IPPROTO_UDP, SocketAddr::new(remote.ip(), local())).is_ok();
    if ANYTHING.reaches(protocol as u8, to, remote.port()) && answers() { Ok(()) } else { Err(Errno::EACCES) }
}

/// For TCP, where a socket that listens does not connect.
pub fn dial(remote: SocketAddr) -> Result<()> {
    reach(IPPROTO_TCP, || 0, remote)
}

fn manifest() -> &'static [u8] {
    donjon_base::bytes(donjon_base::boot().manifest)
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

fn of(manifest: &[u8], wanted: Tag) -> impl Iterator<Item = &[u8]> {
    records(manifest)
        .filter_map(core::result::Result::ok)
        .filter(move |(tag, _)| *tag == wanted)
        .map(|(_, value)| value)
}

fn destinations(manifest: &[u8]) -> impl Iterator<Item = Egress> {
    of(manifest, Tag::Egress).filter_map(Egress::from_bytes)
}

/// Whether the manifest allows any destination of that protocol.
fn speaks(protocol: u8) -> bool {
    donjon_base::boot().flags & flags::EGRESS_ANY != 0
        || destinations(manifest()).any(|e| e.protocol == 0 || e.protocol == protocol)
}

fn reaches(manifest: &[u8], protocol: u8, to: [u8; 16], port: u16) -> bool {
    destinations(manifest).any(|e| e.reaches(protocol, to, port))
}

fn serves(manifest: &[u8], protocol: u8, port: u16) -> bool {
    let [p0, p1] = port.to_le_bytes();
    of(manifest, Tag::Listen).any(|value| value == [protocol, 0, p0, p1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use donjon_abi::manifest::write_record;
    use std::vec::Vec;

    #[test]
    fn the_manifest_is_read() {
        let mut bytes = Vec::new();
        let db = Egress { protocol: 6, prefix: 128, port: 5432, addr: octets("192.0.2.8".parse().expect("address")) };
        let any = Egress { protocol: 17, prefix: 0, port: 123, addr: [0; 16] };
        for (tag, value) in [(Tag::Name, &b"x"[..]), (Tag::Listen, &[6, 0, 80, 0]), (Tag::Listen, &[17, 0, 0x90, 0x1f])]
        {
            write_record(tag, value, |b| bytes.extend_from_slice(b));
        }
        for e in [db, any] {
            write_record(Tag::Egress, &e.to_bytes(), |b| bytes.extend_from_slice(b));
        }
        assert!(serves(&bytes, 6, 80) && serves(&bytes, 17, 8080));
        assert!(!serves(&bytes, 17, 80) && !serves(&bytes, 6, 81) && !serves(&bytes, 6, 8080));
        let to = |ip: &str| octets(ip.parse().expect("address"));
        assert!(reaches(&bytes, 6, db.addr, 5432) && reaches(&bytes, 17, to("9.9.9.9"), 123));
        assert!(!reaches(&bytes, 17, db.addr, 5432) && !reaches(&bytes, 6, to("192.0.2.9"), 5432));
        assert!(!reaches(&bytes, 17, to("169.254.169.254"), 123), "too special for `any`");
        assert!(!serves(&[], 6, 80) && !reaches(&[], 6, db.addr, 5432));
    }
}
