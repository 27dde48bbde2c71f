//! `poll(2)` and `select(2)`.

use crate::errno::Result;
use crate::fd::watch::events;
use crate::fd::{self, FileRef};
use crate::sched::Wake;
use crate::signal::{self, Calls};
use alloc::vec::Vec;

/// `struct pollfd`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PollFd {
    /// Descriptor; negative ones are passed over.
    pub fd: i32,
    /// What is asked.
    pub events: i16,
    /// The answer.
    pub revents: i16,
}

/// `poll`: the number of entries with an answer. `deadline` is monotonic ns; `None`: for ever.
pub fn poll(fds: &mut [PollFd], deadline: Option<u64>) -> Result<usize> {
    wait(fds, events::ERR | events::HUP, deadline)
}

/// Waits for what is asked, and for `always` of every descriptor.
fn wait(fds: &mut [PollFd], always: u32, deadline: Option<u64>) -> Result<usize> {
    let _guard = donjon_base::preempt::off();
    let mask = |p: &PollFd| u32::from(p.events as u16) | always;
    let mut n = check(fds, mask);
    if n == 0 {
        match deadline {
            Some(0) => crate::sched::poll_now(),
            _ => fd::look_before_parking(),
        }
        n = check(fds, mask);
    }
    if n > 0 || deadline.is_some_and(|d| d <= donjon_base::clock::monotonic()) {
        return Ok(n);
    }
    // The descriptions are kept: another thread may close the numbers while we wait.
    let mut files: Vec<(FileRef, u32)> = Vec::new();
    files.try_reserve_exact(fds.len()).map_err(|_| crate::errno::Errno::ENOMEM)?;
    for p in fds.iter().filter(|p| p.fd >= 0) {
        if let Ok(file) = fd::get(p.fd) {
            files.push((file, mask(p)));
        }
    }
    let me = crate::sched::current();
    loop {
        let mut added = 0;
        let mut failed = None;
        for (file, mask) in &files {
            if let Some(watch) = file.obj.watch()
                && let Err(e) = watch.add_thread(me, *mask)
            {
                failed = Some(e);
                break;
            }
            added += 1;
        }
        let woken = failed.is_none() && crate::sched::park(deadline) == Wake::Unparked;
        for (file, _) in &files[..added] {
            if let Some(watch) = file.obj.watch() {
                watch.remove_thread(me);
            }
        }
        if let Some(e) = failed {
            return Err(e);
        }
        let n = check(fds, mask);
        if n > 0 || !woken {
            return Ok(n);
        }
        signal::interrupted(Calls::End)?;
    }
}

fn check(fds: &mut [PollFd], mask: impl Fn(&PollFd) -> u32) -> usize {
    let mut n = 0;
    for p in fds {
        p.revents = 0;
        if p.fd < 0 {
            continue;
        }
        let ready = match fd::get(p.fd) {
            Ok(file) => file.obj.ready() & mask(p),
            Err(_) => events::NVAL,
        };
        p.revents = ready as i16;
        n += usize::from(ready != 0);
    }
    n
}

/// The three sets of `select`, as bits of 64 descriptors each; any may be absent.
pub struct Sets<'a> {
    /// Wait for reading.
    pub read: Option<&'a mut [u64]>,
    /// Wait for writing.
    pub write: Option<&'a mut [u64]>,
    /// Wait for urgent data.
    pub except: Option<&'a mut [u64]>,
}

/// `select`: the number of bits set in the answer. Descriptors below `count` are looked at.
pub fn select(count: usize, sets: &mut Sets<'_>, deadline: Option<u64>) -> Result<usize> {
    use crate::errno::Errno;
    const READ_SET: u32 = events::READ | events::HUP | events::ERR;
    const WRITE_SET: u32 = events::WRITE | events::ERR;
    let bit = |set: &Option<&mut [u64]>, fd: usize| {
        set.as_ref().and_then(|s| s.get(fd / 64)).is_some_and(|w| w >> (fd % 64) & 1 != 0)
    };
    let mut fds: Vec<PollFd> = Vec::new();
    for fd in 0..count {
        let mut ask = 0;
        for (set, events) in [(&sets.read, READ_SET), (&sets.write, WRITE_SET), (&sets.except, events::PRI)] {
            if bit(set, fd) {
                ask |= events;
            }
        }
        if ask != 0 {
            fds.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            fds.push(PollFd { fd: fd as i32, events: ask as i16, revents: 0 });
        }
    }
    // Errors and hang-ups only where a set counts them: the others wait on.
    wait(&mut fds, 0, deadline)?;
    if fds.iter().any(|p| u32::from(p.revents as u16) & events::NVAL != 0) {
        return Err(Errno::EBADF);
    }
    let mut n = 0;
    for (set, ask, answer) in [
        (&mut sets.read, events::IN, READ_SET),
        (&mut sets.write, events::OUT, WRITE_SET),
        (&mut sets.except, events::PRI, events::PRI),
    ] {
        let Some(set) = set else { continue };
        set.iter_mut().take(count.div_ceil(64)).for_each(|w| *w = 0);
        for p in &fds {
            if u32::from(p.events as u16) & ask != 0 && u32::from(p.revents as u16) & answer != 0 {
                set[p.fd as usize / 64] |= 1 << (p.fd % 64);
                n += 1;
            }
        }
    }
    Ok(n)
}
