//! `epoll(7)`: level- and edge-triggered, one-shot, nested; a wait costs O(ready).

use crate::errno::{Errno, Result};
use crate::fd::watch::{Watch, events};
use crate::fd::{self, Anon, FileRef, Object, WeakFile};
use crate::signal::Calls;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::RefCell;

/// Bits of an event mask beyond the readiness bits.
pub mod flags {
    /// At most one of several sets need be told; we may tell all (epoll_ctl(2) allows "one or more").
    pub const EXCLUSIVE: u32 = 1 << 28;
    /// Keeps the machine awake: without meaning here.
    pub const WAKEUP: u32 = 1 << 29;
    /// Disabled after one event.
    pub const ONESHOT: u32 = 1 << 30;
    /// Edge-triggered.
    pub const ET: u32 = 1 << 31;
}

/// One event, as `epoll_wait` reports it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Event {
    /// Readiness bits.
    pub events: u32,
    /// What the caller registered.
    pub data: u64,
}

/// Sets may be nested this deep, as in Linux.
const NEST_MAX: u32 = 5;
const NONE: u32 = u32::MAX;

/// An epoll set as a file.
pub struct Epoll {
    interest: Rc<Interest>,
}

/// The state of an epoll set; watch lists refer to it.
pub struct Interest {
    inner: RefCell<Inner>,
    /// Who waits for this set: `epoll_wait`, `poll`, or another set.
    watch: Watch,
}

#[derive(Default)]
struct Inner {
    slots: Vec<Slot>,
    /// Head of the list of free slots, linked by `next`.
    free: Option<u32>,
    /// First slot of each descriptor number.
    by_fd: Vec<u32>,
    ready_head: Option<u32>,
    ready_tail: Option<u32>,
    ready_len: u32,
}

struct Slot {
    file: Option<WeakFile>,
    data: u64,
    mask: u32,
    fd: i32,
    /// Next slot with the same descriptor number: another description that had that number before.
    same_fd: u32,
    next: u32,
    prev: u32,
    queued: bool,
    /// After a one-shot event, until the next modification.
    disabled: bool,
}

impl Inner {
    fn unqueue(&mut self, at: u32) {
        let (prev, next) = {
            let slot = &mut self.slots[at as usize];
            if !slot.queued {
                return;
            }
            slot.queued = false;
            (slot.prev, slot.next)
        };
        match prev {
            NONE => self.ready_head = (next != NONE).then_some(next),
            p => self.slots[p as usize].next = next,
        }
        match next {
            NONE => self.ready_tail = (prev != NONE).then_some(prev),
            n => self.slots[n as usize].prev = prev,
        }
        self.ready_len -= 1;
    }

    fn queue(&mut self, at: u32) {
        let tail = self.ready_tail;
        let slot = &mut self.slots[at as usize];
        if slot.queued || slot.file.is_none() {
            return;
        }
        slot.queued = true;
        slot.next = NONE;
        slot.prev = tail.unwrap_or(NONE);
        match tail {
            Some(t) => self.slots[t as usize].next = at,
            None => self.ready_head = Some(at),
        }
        self.ready_tail = Some(at);
        self.ready_len += 1;
    }

    fn find(&self, fd: i32, file: &FileRef) -> Option<u32> {
        let mut at = *self.by_fd.get(usize::try_from(fd).ok()?)?;
        while at != NONE {
            let slot = &self.slots[at as usize];
            if slot.file.as_ref().is_some_and(|w| fd::same(w, file)) {
                return Some(at);
            }
            at = slot.same_fd;
        }
        None
    }

    fn insert(&mut self, fd: i32, file: &FileRef, mask: u32, data: u64) -> Result<u32> {
        let index = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        fd::headroom()?;
        if index >= self.by_fd.len() {
            let more = index + 1 - self.by_fd.len();
            self.by_fd.try_reserve(more).map_err(|_| Errno::ENOMEM)?;
            self.by_fd.resize(index + 1, NONE);
        }
        let slot = Slot {
            file: Some(Rc::downgrade(file)),
            data,
            mask,
            fd,
            same_fd: self.by_fd[index],
            next: NONE,
            prev: NONE,
            queued: false,
            disabled: false,
        };
        let at = match self.free {
            Some(at) => {
                let next = self.slots[at as usize].next;
                self.free = (next != NONE).then_some(next);
                self.slots[at as usize] = slot;
                at
            }
            None => {
                self.slots.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        };
        self.by_fd[index] = at;
        Ok(at)
    }

    /// Frees a slot; gives back what it referred to.
    fn remove(&mut self, at: u32) -> Option<WeakFile> {
        self.unqueue(at);
        let file = self.slots.get_mut(at as usize)?.file.take()?;
        let (fd, after) = (self.slots[at as usize].fd as usize, self.slots[at as usize].same_fd);
        if self.by_fd[fd] == at {
            self.by_fd[fd] = after;
        } else {
            let mut p = self.by_fd[fd];
            while self.slots[p as usize].same_fd != at {
                p = self.slots[p as usize].same_fd;
            }
            self.slots[p as usize].same_fd = after;
        }
        self.slots[at as usize].next = self.free.unwrap_or(NONE);
        self.free = Some(at);
        Some(file)
    }
}

impl Interest {
    /// An object has an event for the registration in `slot`.
    pub fn raise(&self, slot: u32) {
        {
            let mut inner = self.inner.borrow_mut();
            match inner.slots.get(slot as usize) {
                Some(s) if !s.disabled => {}
                _ => return,
            }
            inner.queue(slot);
        }
        self.watch.notify(events::READ);
    }

    /// An object was closed.
    pub fn forget(&self, slot: u32) {
        self.inner.borrow_mut().remove(slot);
    }

    /// Takes ready events. Registrations that turn out not to be ready leave the list.
    fn collect(&self, out: &mut [Event]) -> usize {
        let mut budget = self.inner.borrow().ready_len;
        let mut n = 0;
        while budget > 0 && n < out.len() {
            budget -= 1;
            let (at, file, mask) = {
                let mut inner = self.inner.borrow_mut();
                let Some(at) = inner.ready_head else { break };
                inner.unqueue(at);
                let slot = &inner.slots[at as usize];
                (at, slot.file.as_ref().and_then(Weak::upgrade), slot.mask)
            };
            let Some(file) = file else { continue };
            let ready = file.obj.ready() & (mask | events::ERR | events::HUP) & events::ALL;
            if ready == 0 {
                continue;
            }
            let mut inner = self.inner.borrow_mut();
            // Asking may have raised it (a timer that has just expired): this is what it is told with.
            inner.unqueue(at);
            let slot = &mut inner.slots[at as usize];
            out[n] = Event { events: ready, data: slot.data };
            n += 1;
            if mask & flags::ONESHOT != 0 {
                slot.disabled = true;
            } else if mask & flags::ET == 0 {
                inner.queue(at);
            }
        }
        n
    }

    /// Whether a wait would return at once.
    fn any_ready(&self) -> bool {
        loop {
            let (at, file, mask) = {
                let inner = self.inner.borrow();
                let Some(at) = inner.ready_head else { return false };
                let slot = &inner.slots[at as usize];
                (at, slot.file.as_ref().and_then(Weak::upgrade), slot.mask)
            };
            if let Some(file) = file
                && file.obj.ready() & (mask | events::ERR | events::HUP) & events::ALL != 0
            {
                return true;
            }
            self.inner.borrow_mut().unqueue(at);
        }
    }

    /// Levels of sets below this one and with it. `ELOOP` if `target` is among them or there are too many.
    fn depth_below(self: &Rc<Self>, target: &Rc<Interest>, level: u32) -> Result<u32> {
        if Rc::ptr_eq(self, target) || level > NEST_MAX {
            return Err(Errno::ELOOP);
        }
        let mut deepest = level;
        let mut at = 0;
        loop {
            let file = match self.inner.borrow().slots.get(at) {
                Some(slot) => slot.file.as_ref().and_then(Weak::upgrade),
                None => return Ok(deepest),
            };
            if let Some(set) = file.as_ref().and_then(|f| f.obj.as_any().downcast_ref::<Epoll>()) {
                deepest = deepest.max(set.interest.depth_below(target, level + 1)?);
            }
            at += 1;
        }
    }

    /// Levels of sets above this one and with it.
    fn depth_above(&self, level: u32) -> u32 {
        let mut deepest = level;
        if level <= NEST_MAX {
            self.watch.epolls(|outer| deepest = deepest.max(outer.depth_above(level + 1)));
        }
        deepest
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        let me = Rc::downgrade(&self.interest);
        let slots = core::mem::take(&mut *self.interest.inner.borrow_mut()).slots;
        for (at, slot) in slots.into_iter().enumerate() {
            if let Some(file) = slot.file.as_ref().and_then(Weak::upgrade)
                && let Some(watch) = file.obj.watch()
            {
                watch.remove_epoll(&me, at as u32);
            }
        }
    }
}

impl Object for Epoll {
    fn ready(&self) -> u32 {
        if self.interest.any_ready() { events::READ } else { 0 }
    }

    fn watch(&self) -> Option<&Watch> {
        Some(&self.interest.watch)
    }

    fn stat(&self) -> crate::fs::Stat {
        Anon::stat()
    }

    fn as_any(&self) -> &dyn core::any::Any {
        self
    }
}

/// `epoll_create1`.
pub fn create(cloexec: bool) -> Result<i32> {
    let _guard = donjon_base::preempt::off();
    let interest = Rc::new(Interest { inner: RefCell::new(Inner::default()), watch: Watch::new() });
    fd::install(fd::open_file(Epoll { interest }, fd::O_RDWR)?, cloexec)
}

/// What `epoll_ctl` is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// `EPOLL_CTL_ADD`.
    Add(Event),
    /// `EPOLL_CTL_MOD`.
    Modify(Event),
    /// `EPOLL_CTL_DEL`.
    Delete,
}

fn set_of(file: &FileRef) -> Result<&Epoll> {
    file.obj.as_any().downcast_ref::<Epoll>().ok_or(Errno::EINVAL)
}

/// `epoll_ctl`.
pub fn ctl(epfd: i32, fd: i32, op: Op) -> Result<()> {
    let _guard = donjon_base::preempt::off();
    let set_file = fd::get(epfd)?;
    let file = fd::get(fd)?;
    let watch = file.obj.watch().ok_or(Errno::EPERM)?;
    let set = &set_of(&set_file)?.interest;
    if Rc::ptr_eq(&set_file, &file) {
        return Err(Errno::EINVAL);
    }
    let me = Rc::downgrade(set);
    let found = set.inner.borrow().find(fd, &file);
    let (slot, event) = match op {
        Op::Add(event) => {
            if found.is_some() {
                return Err(Errno::EEXIST);
            }
            if let Some(inner) = file.obj.as_any().downcast_ref::<Epoll>() {
                if event.events & flags::EXCLUSIVE != 0 {
                    return Err(Errno::EINVAL);
                }
                // The new edge goes from `set` to `inner`: it must not be possible to come from `inner` to `set`.
                if inner.interest.depth_below(set, 1)? + set.depth_above(1) > NEST_MAX {
                    return Err(Errno::ELOOP);
                }
            }
            let slot = set.inner.borrow_mut().insert(fd, &file, event.events, event.data)?;
            if let Err(e) = watch.add_epoll(me, slot, event.events & events::ALL) {
                set.inner.borrow_mut().remove(slot);
                return Err(e);
            }
            (slot, event)
        }
        Op::Modify(event) => {
            let slot = found.ok_or(Errno::ENOENT)?;
            {
                let mut inner = set.inner.borrow_mut();
                let s = &mut inner.slots[slot as usize];
                if (s.mask | event.events) & flags::EXCLUSIVE != 0 {
                    return Err(Errno::EINVAL);
                }
                s.mask = event.events;
                s.data = event.data;
                s.disabled = false;
            }
            watch.modify_epoll(&me, slot, event.events & events::ALL);
            (slot, event)
        }
        Op::Delete => {
            let slot = found.ok_or(Errno::ENOENT)?;
            set.inner.borrow_mut().remove(slot);
            watch.remove_epoll(&me, slot);
            return Ok(());
        }
    };
    if file.obj.ready() & (event.events | events::ERR | events::HUP) & events::ALL != 0 {
        set.raise(slot);
    }
    Ok(())
}

/// `epoll_wait` until `deadline` (monotonic ns; `None`: for ever, `Some(0)`: do not wait).
pub fn wait(epfd: i32, out: &mut [Event], deadline: Option<u64>) -> Result<usize> {
    let _guard = donjon_base::preempt::off();
    let file = fd::get(epfd)?;
    let set = set_of(&file)?;
    if out.is_empty() {
        return Err(Errno::EINVAL);
    }
    loop {
        let mut n = set.interest.collect(out);
        if n == 0 {
            match deadline {
                Some(0) => crate::sched::poll_now(),
                _ => fd::look_before_parking(),
            }
            n = set.interest.collect(out);
        }
        if n > 0 {
            return Ok(n);
        }
        let woken = fd::wait_as(Calls::End, &set.interest.watch, events::READ, deadline);
        if woken != Ok(fd::Woken::Event) {
            n = set.interest.collect(out);
            return if n > 0 { Ok(n) } else { woken.map(|_| 0) };
        }
    }
}
