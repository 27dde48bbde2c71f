//! Thread records, and the queues of those that can run.

#![expect(unsafe_code, reason = "writes the first frame of a new stack")]
// UNSAFETY: `Context::new` on a stack that was just made.

use super::{Wake, futex::Waiting};
use crate::{
    errno::{Errno, Result},
    thread::stack::Stack,
};
use alloc::{boxed::Box, vec::Vec};
use donjon_base::{context::Context, preempt};

/// Names a thread for as long as it exists; afterwards it names nobody.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ThreadId(u32);

impl ThreadId {
    /// The number that C code sees (`gettid`, `pthread_t`): positive as an `i32`; the first thread is 1.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The thread that this number names, if any.
    pub const fn from_number(n: u32) -> ThreadId {
        ThreadId(n)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// It runs now.
    Running,
    /// It is in a queue of those that can run.
    Ready,
    /// It waits for an unpark or its timer.
    Parked,
    /// It has ended.
    Dead,
}

/// A thread.
#[derive(Debug)]
pub(crate) struct Thread {
    generation: u16,
    pub state: State,
    /// An unpark came while it did not park.
    pub token: bool,
    pub wake: Wake,
    /// When it last ran at once because it was woken (monotonic ns).
    pub interrupted: u64,
    /// A tick has come while it ran, since it last waited for something.
    pub ticked: bool,
    pub keep_record: bool,
    pub context: Context,
    pub tcb: usize,
    /// Next in the queue.
    next: u32,
    /// Position among the timers.
    pub timer: Option<u32>,
    /// The futex that it waits on.
    pub waiting: Waiting,
    pub stack: Option<Stack>,
    entry: fn(usize),
    arg: usize,
    /// NUL-padded.
    pub name: [u8; 16],
    pub c: crate::thread::CThread,
}

#[cfg(any(donjon_guest, test))]
fn nothing(_: usize) {}

impl Thread {
    /// The record of the thread that runs already.
    #[cfg(any(donjon_guest, test))]
    pub fn main(tcb: usize) -> Thread {
        Thread { state: State::Running, tcb, name: *b"main\0\0\0\0\0\0\0\0\0\0\0\0", ..Thread::blank(nothing, 0) }
    }

    fn blank(entry: fn(usize), arg: usize) -> Thread {
        Thread {
            generation: 0,
            state: State::Parked,
            token: false,
            wake: Wake::Unparked,
            interrupted: 0,
            ticked: false,
            keep_record: false,
            context: Context::running(),
            tcb: 0,
            next: NONE,
            timer: None,
            waiting: Waiting::default(),
            stack: None,
            entry,
            arg,
            name: [0; 16],
            c: crate::thread::CThread::default(),
        }
    }
}

const NONE: u32 = u32::MAX;
/// Slots fit into 16 bits of a thread number, generations into the 15 above.
const SLOTS_MAX: usize = 0xfffe;

/// All threads.
#[derive(Debug)]
pub struct Threads {
    /// A box of one each: records must not move.
    slots: Vec<Option<Box<[Thread]>>>,
    generations: Vec<u16>,
    count: usize,
    queues: [Ends; 2],
}

/// Which of the threads that can run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Queue {
    /// What they waited for has happened, or they are new.
    Woken,
    /// Their time slice was over, or they let others go first.
    Others,
}

/// First and last slot of a queue.
#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u32,
    last: u32,
}

impl Threads {
    pub(crate) const fn new() -> Self {
        Threads { slots: Vec::new(), generations: Vec::new(), count: 0, queues: [Ends { first: NONE, last: NONE }; 2] }
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Adds a record; returns its slot. EAGAIN if there are too many, ENOMEM without memory.
    pub(crate) fn add(&mut self, mut t: Thread) -> Result<u32> {
        let slot = match self.slots.iter().position(Option::is_none) {
            Some(slot) => slot,
            None if self.slots.len() >= SLOTS_MAX => return Err(Errno::EAGAIN),
            None => {
                self.slots.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                self.generations.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                self.slots.push(None);
                self.generations.push(0);
                self.slots.len() - 1
            }
        };
        t.generation = self.generations[slot];
        let mut one = Vec::new();
        one.try_reserve_exact(1).map_err(|_| Errno::ENOMEM)?;
        one.push(t);
        self.slots[slot] = Some(one.into_boxed_slice());
        self.count += 1;
        Ok(slot as u32)
    }

    /// Adds a thread that will run `entry(arg)` on `stack`. On failure the stack is given back.
    pub(crate) fn add_with(&mut self, stack: Stack, entry: fn(usize), arg: usize) -> Result<u32> {
        let mut t = Thread::blank(entry, arg);
        let slot = match self.add({
            t.tcb = 0;
            t
        }) {
            Ok(slot) => slot,
            Err(e) => {
                crate::thread::stack::give_back(stack);
                return Err(e);
            }
        };
        let id = self.id(slot);
        let (tcb, top) = stack.prepare(id.number());
        let t = self.get_mut(slot);
        t.tcb = tcb;
        // SAFETY: the stack is new, and `top` is 16-byte aligned with room below.
        t.context = unsafe { Context::new(top, begin, &raw const *t as usize) };
        t.stack = Some(stack);
        Ok(slot)
    }

    pub(crate) fn remove(&mut self, slot: u32) {
        self.slots[slot as usize] = None;
        let g = &mut self.generations[slot as usize];
        *g = (*g + 1) & 0x7fff;
        self.count -= 1;
    }

    pub(crate) fn id(&self, slot: u32) -> ThreadId {
        ThreadId(u32::from(self.get(slot).generation) << 16 | (slot + 1))
    }

    pub(crate) fn slot(&self, id: ThreadId) -> Option<u32> {
        let slot = (id.0 & 0xffff).checked_sub(1)?;
        let t = self.slots.get(slot as usize)?.as_ref()?;
        (u32::from(t[0].generation) == id.0 >> 16).then_some(slot)
    }

    /// # Panics
    /// If there is no thread in the slot: slots come from this table.
    #[inline]
    pub(crate) fn get(&self, slot: u32) -> &Thread {
        match &self.slots[slot as usize] {
            Some(t) => &t[0],
            None => no_thread(),
        }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u32) -> &mut Thread {
        match &mut self.slots[slot as usize] {
            Some(t) => &mut t[0],
            None => no_thread(),
        }
    }

    /// Appends to a queue.
    pub(crate) fn push(&mut self, which: Queue, slot: u32) {
        let last = core::mem::replace(&mut self.queues[which as usize].last, slot);
        let t = self.get_mut(slot);
        t.state = State::Ready;
        t.next = NONE;
        if last == NONE {
            self.queues[which as usize].first = slot;
        } else {
            self.get_mut(last).next = slot;
        }
    }

    /// Puts at the front of those that were woken.
    pub(crate) fn push_first(&mut self, slot: u32) {
        let queue = &mut self.queues[Queue::Woken as usize];
        let next = core::mem::replace(&mut queue.first, slot);
        if next == NONE {
            queue.last = slot;
        }
        let t = self.get_mut(slot);
        t.state = State::Ready;
        t.next = next;
    }

    /// Puts behind the first of those that were woken, if there is one.
    #[cfg(any(donjon_guest, test))]
    pub(crate) fn push_second(&mut self, slot: u32) {
        let first = self.pop(Queue::Woken);
        self.push_first(slot);
        if let Some(first) = first {
            self.push_first(first);
        }
    }

    /// Takes the first of a queue.
    pub(crate) fn pop(&mut self, which: Queue) -> Option<u32> {
        let slot = self.queues[which as usize].first;
        if slot == NONE {
            return None;
        }
        let next = self.get(slot).next;
        let queue = &mut self.queues[which as usize];
        queue.first = next;
        if next == NONE {
            queue.last = NONE;
        }
        Some(slot)
    }

    /// Whether a thread is in that queue.
    pub(crate) fn any(&self, which: Queue) -> bool {
        self.queues[which as usize].first != NONE
    }

    pub(crate) fn any_ready(&self) -> bool {
        self.any(Queue::Woken) || self.any(Queue::Others)
    }
}

#[cold]
fn no_thread() -> ! {
    panic!("library OS: no such thread")
}

/// First code of every thread but the first.
extern "C" fn begin(record: usize) -> ! {
    let (entry, arg) = {
        // SAFETY: the record is boxed and exists as long as its thread runs.
        let t = unsafe { &*(record as *const Thread) };
        (t.entry, t.arg)
    };
    preempt::set_count(1);
    super::reap();
    preempt::set_count(0);
    entry(arg);
    super::exit_current(false)
}
