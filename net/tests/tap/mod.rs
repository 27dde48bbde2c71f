//! A TAP device as a frame sink and source.
#![expect(unsafe_code, reason = "TUNSETIFF and poll have no safe form in std")]
// UNSAFETY: libc calls on a file descriptor that is ours.

use donjon_net::{FrameSink, NetHdr, Sent};
use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Result, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

#[repr(C)]
struct IfReq {
    name: [u8; 16],
    flags: i16,
    pad: [u8; 22],
}

#[repr(C)]
struct PollFd {
    fd: i32,
    events: i16,
    revents: i16,
}

unsafe extern "C" {
    fn ioctl(fd: i32, request: u64, ...) -> i32;
    fn poll(fds: *mut PollFd, count: u64, timeout: i32) -> i32;
}

/// The device, with the offload header in front of every frame.
pub struct Tap(pub File);

impl Tap {
    /// Opens (or makes) the device.
    pub fn open(name: &str, gso: bool) -> Result<Tap> {
        let tap = OpenOptions::new().read(true).write(true).custom_flags(0o4000).open("/dev/net/tun")?;
        // IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        let mut req = IfReq { name: [0; 16], flags: 0x0002 | 0x1000 | 0x4000, pad: [0; 22] };
        req.name[..name.len()].copy_from_slice(name.as_bytes());
        let size = 12i32;
        // TUN_F_CSUM | TSO4 | TSO6
        let offload: u64 = if gso { 1 | 2 | 4 } else { 0 };
        let fd = tap.as_raw_fd();
        // SAFETY: 1. `req` is a valid ifreq; 2. the other two take a pointer to an int and an int.
        let failed = unsafe {
            ioctl(fd, 0x4004_54ca, &mut req) != 0
                || ioctl(fd, 0x4004_54d8, &size) != 0
                || ioctl(fd, 0x4004_54d0, offload) != 0
        };
        if failed { Err(std::io::Error::last_os_error()) } else { Ok(Tap(tap)) }
    }

    /// Waits until there is a frame (or room, if `full`), for that many ms at most; -1 is for ever.
    pub fn wait(&self, full: bool, ms: i32) {
        let mut p = PollFd { fd: self.0.as_raw_fd(), events: if full { 5 } else { 1 }, revents: 0 };
        // SAFETY: 1. `p` is one valid pollfd.
        unsafe { poll(&mut p, 1, ms) };
    }
}

impl FrameSink for Tap {
    fn send(&mut self, header: NetHdr, head: &[u8], payload: &[&[u8]]) -> Sent {
        let hdr = header.to_bytes();
        let mut v = [IoSlice::new(&[]); 62];
        v[0] = IoSlice::new(&hdr);
        v[1] = IoSlice::new(head);
        for (slot, p) in v[2..].iter_mut().zip(payload) {
            *slot = IoSlice::new(p);
        }
        match self.0.write_vectored(&v[..2 + payload.len()]) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Sent::Full,
            _ => Sent::Done,
        }
    }
}
