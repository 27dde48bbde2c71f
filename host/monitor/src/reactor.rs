//! The one event loop of the monitor: epoll, level-triggered.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::{self, Errno};

/// The longest wait, whatever the deadline.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Which source an event is of.
pub(crate) type Token = u64;

/// What to wait for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Interest {
    pub read: bool,
    pub write: bool,
}

impl Interest {
    pub const READ: Interest = Interest { read: true, write: false };

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN | EventFlags::RDHUP, self.read);
        flags.set(EventFlags::OUT, self.write);
        flags
    }
}

/// What has happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    pub token: Token,
    /// Reading will not block: there is data, the end, or an error.
    pub read: bool,
    /// Writing will not block, or gives an error.
    pub write: bool,
    /// Both directions are closed, or there is an error. Reported whatever the interest.
    pub hangup: bool,
}

/// An epoll instance.
pub(crate) struct Reactor {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Reactor {
    pub fn new() -> io::Result<Reactor> {
        Ok(Reactor { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::with_capacity(64) })
    }

    /// Adds a source. `Err(PERM)` is a file that is always ready.
    pub fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token), interest.flags())
    }

    /// Changes what a source waits for.
    pub fn modify(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        epoll::modify(&self.epoll, fd, EventData::new_u64(token), interest.flags())
    }

    /// Takes a source out. (Closing its last descriptor does so too.)
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for events, at most `timeout`. It may come back without any.
    pub fn wait(&mut self, timeout: Option<Duration>, out: &mut Vec<Ready>) -> io::Result<()> {
        out.clear();
        self.events.clear();
        // What fits into milliseconds of 32 bits is left to `epoll_pwait`; the jail has no other call.
        let timeout = timeout.map(|t| t.min(LONGEST));
        let timeout = timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: i64::from(t.subsec_nanos()) });
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(e) => return Err(e),
        }
        out.extend(self.events.iter().map(|e| {
            // Copied: the kernel's structure is packed.
            let (flags, data) = (e.flags, e.data);
            let hangup = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            Ready {
                token: data.u64(),
                read: hangup || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                write: hangup || flags.contains(EventFlags::OUT),
                hangup,
            }
        }));
        Ok(())
    }
}
