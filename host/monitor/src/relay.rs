//! Frames between the guest and a TAP device by way of the monitor, filtered: for where the kernel cannot filter on the device itself. Costs two more
//! system calls and a copy for each frame.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;

use donjon_abi::{FRAME_MAX, NET_HDR_LEN};
use donjon_net::{FrameSink, NetHdr, Sent};
use rustix::io::Errno;

use crate::error::Error;
use crate::filter::{Filter, Reason, Way};
use crate::reactor::{Interest, Reactor, Ready, Token};
use crate::usernet::device::Device;

/// Frames that are moved in one direction before the other gets its turn.
const FRAMES_PER_TURN: usize = 64;

/// The two ends. Tokens: `base` is the guest's, `base + 1` the TAP's.
#[derive(Debug)]
pub(crate) struct Relay {
    device: Device,
    tap: OwnedFd,
    filter: Filter,
    base: Token,
    frame: Vec<u8>,
    /// Length of the frame that waits for room at the guest.
    held: Option<usize>,
}

impl Relay {
    /// Starts to relay.
    pub fn new(device: Device, tap: OwnedFd, filter: Filter, base: Token, reactor: &Reactor) -> Result<Relay, Error> {
        let watch = || Error::host::<Errno>("cannot watch the network device");
        reactor.add(&device, base, Interest::READ).map_err(watch())?;
        reactor.add(&tap, base + 1, Interest::READ).map_err(watch())?;
        Ok(Relay { device, tap, filter, base, frame: vec![0; NET_HDR_LEN + FRAME_MAX], held: None })
    }

    /// How many frames were dropped by the filter.
    pub fn dropped(&self, way: Way) -> [u64; Reason::ALL.len()] {
        self.filter.dropped(way)
    }

    /// Takes an event. May have something to say.
    pub fn ready(&mut self, ready: Ready, reactor: &Reactor) -> Option<&'static str> {
        if ready.token == self.base {
            let any = self.outbound();
            if ready.hangup && !any {
                reactor.remove(&self.device);
                return None;
            }
            if ready.write {
                self.inbound(reactor);
            }
        } else if !self.inbound(reactor) && ready.hangup {
            // The host has taken the device away. It would be ready all the time.
            reactor.remove(&self.tap);
            return Some("the network device is gone");
        }
        None
    }

    /// The guest has ended: what it has sent before still goes out.
    pub fn finish(&mut self) {
        while self.outbound() {}
    }

    /// True if there was one.
    fn outbound(&mut self) -> bool {
        let mut any = false;
        for _ in 0..FRAMES_PER_TURN {
            let Some(packet) = self.device.receive() else { break };
            any = true;
            let Some((header, frame)) = packet else { continue };
            if self.filter.outbound(header, frame.into()).is_ok() {
                // The device takes it, or it is lost, as on any network.
                let _ = rustix::io::writev(&self.tap, &[IoSlice::new(&header.to_bytes()), IoSlice::new(frame)]);
            }
        }
        any
    }

    /// True if one has come.
    fn inbound(&mut self, reactor: &Reactor) -> bool {
        let (blocked, mut any) = (self.held.is_some(), false);
        for _ in 0..FRAMES_PER_TURN {
            let len = match self.held.take() {
                Some(len) => len,
                None => match rustix::io::readv(&self.tap, &mut [IoSliceMut::new(&mut self.frame)]) {
                    Err(Errno::INTR) => continue,
                    Ok(0) | Err(_) => break,
                    Ok(n) => {
                        any = true;
                        n
                    }
                },
            };
            let Some((header, frame)) = self.frame[..len].split_first_chunk::<NET_HDR_LEN>() else { continue };
            // (A frame that was held is judged a second time, with the same result.)
            if self.filter.inbound(frame.into())
                && self.device.send(NetHdr::from_bytes(*header), frame, &[]) == Sent::Full
            {
                self.held = Some(len);
                break;
            }
        }
        if blocked != self.held.is_some() {
            let full = self.held.is_some();
            let _ = reactor.modify(&self.device, self.base, Interest { read: true, write: full });
            let _ = reactor.modify(&self.tap, self.base + 1, Interest { read: !full, write: false });
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::filter::rules::Rules;
    use crate::usernet::{Prepared, Wire};

    /// Also while a frame waits for room at the guest.
    #[test]
    fn a_device_that_is_gone_is_not_ready_for_ever() {
        for held in [None, Some(20)] {
            let mut reactor = Reactor::new().unwrap();
            let (device, guest) = Device::pair(Wire::Offload).unwrap();
            // Reads 0 where a device fails, and has hung up as well.
            let (tap, other) = rustix::pipe::pipe().unwrap();
            let rules = Rules::new(&Default::default(), &Prepared::boot(Wire::Offload), &Default::default());
            let mut relay = Relay::new(device, tap, Filter::new(rules), 7, &reactor).unwrap();
            relay.held = held;
            drop(other);
            let mut turn = |relay: &mut Relay| {
                let mut events = Vec::new();
                reactor.wait(Some(Duration::ZERO), &mut events).unwrap();
                let said = events.iter().filter_map(|ready| relay.ready(*ready, &reactor)).count();
                assert_eq!(said, events.len());
                events.len()
            };
            assert_eq!([turn(&mut relay), turn(&mut relay)], [1, 0]);
            drop(guest);
        }
    }
}
