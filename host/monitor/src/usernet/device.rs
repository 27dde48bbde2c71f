//! The monitor's end of the link to the guest: a socket of packets, one frame each, with the offload header in front.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use donjon_abi::{FRAME_MAX, NET_HDR_LEN};
use donjon_net::{FrameSink, NetHdr, Sent};
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// Bytes that may be under way in each direction: a few super-frames. The kernel cuts it to its own limit.
const IN_FLIGHT: usize = 1 << 20;

/// How frames go over the link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wire {
    /// With the offload header in front: checksums may be partial, super-frames of 64 KiB go through. For the process engine.
    Offload,
    /// Bare frames of at most the MTU, checksums complete. For QEMU, whose network backends know no header.
    Plain,
}

impl Wire {
    /// Largest IP packet on the link, bytes; super-frames are larger. Without those each frame costs an emulated guest some 50 µs, so
    /// they are jumbo frames.
    pub const fn mtu(self) -> u32 {
        match self {
            Wire::Offload => 1500,
            Wire::Plain => 9000,
        }
    }
}

/// The monitor's end.
#[derive(Debug)]
pub(crate) struct Device {
    pub wire: Wire,
    fd: OwnedFd,
    frame: Vec<u8>,
    /// The last frame was not taken.
    pub full: bool,
}

impl Device {
    /// Both ends: the monitor's, and the guest's.
    pub fn pair(wire: Wire) -> rustix::io::Result<(Device, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = match wire {
            // The guest sees the end of it.
            Wire::Offload => SocketType::SEQPACKET,
            // What QEMU takes.
            Wire::Plain => SocketType::DGRAM,
        };
        let (ours, guests) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
        for end in [&ours, &guests] {
            let _ = set_socket_send_buffer_size(end, IN_FLIGHT);
            let _ = set_socket_recv_buffer_size(end, IN_FLIGHT);
        }
        Ok((Device { wire, fd: ours, frame: vec![0; FRAME_MAX], full: false }, guests))
    }

    /// The next packet that the guest has sent: a frame, or `Some(None)` if it is too short to be one. That counts too: each costs a call, and it is the guest
    /// who says how many there are.
    pub fn receive(&mut self) -> Option<Option<(NetHdr, &[u8])>> {
        loop {
            match rustix::io::readv(&self.fd, &mut [IoSliceMut::new(&mut self.frame)]) {
                Ok(0) => return None,
                Ok(n) if n < 14 => return Some(None),
                Ok(n) if self.wire == Wire::Plain => return Some(Some((NetHdr::default(), &self.frame[..n]))),
                Ok(n) if n < NET_HDR_LEN + 14 => return Some(None),
                Ok(n) => {
                    let (header, frame) = self.frame[..n].split_first_chunk::<NET_HDR_LEN>()?;
                    return Some(Some((NetHdr::from_bytes(*header), frame)));
                }
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }
}

impl FrameSink for Device {
    fn send(&mut self, header: NetHdr, head: &[u8], payload: &[&[u8]]) -> Sent {
        let header = header.to_bytes();
        let mut pieces = [IoSlice::new(&[]); 64];
        pieces[0] = IoSlice::new(&header);
        pieces[1] = IoSlice::new(head);
        let count = payload.len().min(62);
        for (to, from) in pieces[2..].iter_mut().zip(payload) {
            *to = IoSlice::new(from);
        }
        loop {
            let first = usize::from(self.wire == Wire::Plain);
            match rustix::io::writev(&self.fd, &pieces[first..2 + count]) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.full = true;
                    return Sent::Full;
                }
                // Taken, or lost: the guest is gone, or the kernel has no memory for it.
                _ => return Sent::Done,
            }
        }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
