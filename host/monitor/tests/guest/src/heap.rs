//! A heap in the reserve: free lists of powers of two.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;

use donjon_abi::Call;

struct Heap(UnsafeCell<State>);

struct State {
    next: u64,
    ready: u64,
    free: [u64; 32],
}

// One thread, and the upcall does not allocate.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new(State { next: 0, ready: 0, free: [0; 32] }));

unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let s = unsafe { &mut *self.0.get() };
        let size = layout.size().max(layout.align()).max(16).next_power_of_two() as u64;
        let class = size.trailing_zeros() as usize;
        if s.free[class] != 0 {
            let at = s.free[class] as *mut u64;
            s.free[class] = unsafe { at.read() };
            return at.cast();
        }
        if s.next == 0 {
            // Behind what the tests of the reserve use.
            s.next = crate::boot().reserve.base + (1 << 28);
            s.ready = s.next;
        }
        let at = s.next.next_multiple_of(size);
        if at + size > s.ready {
            let len = (at + size - s.ready).next_multiple_of(1 << 20);
            if crate::gate(Call::Protect, s.ready, len, 2) != 0 {
                return core::ptr::null_mut();
            }
            s.ready += len;
        }
        s.next = at + size;
        at as *mut u8
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let s = unsafe { &mut *self.0.get() };
        let class = layout.size().max(layout.align()).max(16).next_power_of_two().trailing_zeros() as usize;
        unsafe { at.cast::<u64>().write(s.free[class]) };
        s.free[class] = at as u64;
    }
}
