//! What happens when an allocation fails. In a program of its own, since every test in it would see that.
#![allow(unsafe_code, reason = "an allocator")]

mod sim;

use donjon_net::*;
use sim::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Fails for the thread that says so, after so many allocations of at least `LARGE` bytes.
struct Failing;

const LARGE: usize = 512;

thread_local! {
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

// SAFETY: [1] What is handed out is the system's, and goes back to it.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LARGE
            && let Some(left) = LEFT.get()
        {
            if left == 0 {
                return std::ptr::null_mut();
            }
            LEFT.set(Some(left - 1));
        }
        // SAFETY: [1] The caller's promises about `layout` are the system's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: [1] `p` is from the system, with this layout.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// A write that is cut short for want of memory: its owner waits for the event that there is room, which comes.
#[test]
fn a_write_cut_short_by_an_allocation_goes_on() {
    let mut sim = Sim::new(1);
    let (c, s) = sim.pair(80);
    let data = pattern(0, 100_000);
    while sim.stacks[0].next_event().is_some() {}
    LEFT.set(Some(1));
    let taken = sim.stacks[0].send(c, &[&data]);
    LEFT.set(None);
    assert!(taken.is_ok_and(|n| n > 0 && n < data.len()), "{taken:?}");
    assert!(sim.run_until(SECOND, |sim| {
        drain_all(&mut sim.stacks[1], s);
        std::iter::from_fn(|| sim.stacks[0].next_event()).any(|e| e.ready.contains(Ready::WRITABLE))
    }));
}
