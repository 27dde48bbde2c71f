use super::pages::Pages;
use donjon_base::{boot, host};
use std::vec::Vec;

fn fresh(memory: usize) -> Pages {
    let b = boot();
    // The tests share one fake reserve, one after the other.
    // SAFETY: the session makes this the only user.
    unsafe {
        let len = (b.reserve.len as usize).min(memory * 64 + (1 << 30));
        host::reset_reserve();
        Pages::new(b.reserve.base as usize, len, memory).expect("room")
    }
}

/// A fresh global heap, for tests of what is built on it.
pub(crate) fn fresh_global() {
    host::reset_reserve();
    super::super::thread::stack::forget_cache();
    assert!(super::init());
}

/// All of the global heap, but for less than a page: also what the program does not get.
pub(crate) struct UsedUp {
    _program: super::PageRun,
    own: Vec<*mut u8>,
}

const OWN: core::alloc::Layout = core::alloc::Layout::new::<[u128; 256]>();

impl UsedUp {
    pub fn new() -> UsedUp {
        use core::alloc::GlobalAlloc;
        let _program = super::PageRun::new(super::left()).expect("memory");
        // SAFETY: the size is not 0.
        let own = core::iter::from_fn(|| Some(unsafe { super::Global.alloc(OWN) }).filter(|p| !p.is_null())).collect();
        UsedUp { _program, own }
    }
}

impl Drop for UsedUp {
    fn drop(&mut self) {
        use core::alloc::GlobalAlloc;
        // SAFETY: they were allocated so, and are freed once.
        self.own.iter().for_each(|p| unsafe { super::Global.dealloc(*p, OWN) });
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}

/// Whether the host has taken away the rights of a page that begins there.
fn closed(addresses: core::ops::Range<usize>) -> bool {
    host::machine(|m| m.closed.range(addresses.start as u64..addresses.end as u64).next().is_some())
}

/// A live allocation has all rights to itself, and from 1 MiB on none to what is next to it.
fn guarded(heap: &mut Pages, p: usize, align: usize) {
    let room = heap.usable(p).expect("live");
    assert!(!closed(p & !4095..p + room));
    if room >= 1 << 20 && align <= 4096 {
        assert!(closed(p - 4096..p) && closed(p + room..p + room + 4096), "{room} bytes without a guard");
    }
}

/// Live allocations as a model: no two overlap, contents survive, alignment holds, and at the end everything is free again.
fn run_model(seed: u64, steps: usize, memory: usize, largest: usize) {
    let mut heap = fresh(memory);
    let mut r = Random(seed);
    let mut live: Vec<(usize, usize, u8)> = Vec::new();
    host::machine(|m| m.closed.clear());
    // SAFETY: a live allocation of the model.
    let fill = |p: usize, len: usize, b: u8| unsafe { core::ptr::write_bytes(p as *mut u8, b, len) };
    let intact = |p: usize, len: usize, b: u8| {
        // SAFETY: a live allocation of the model.
        let s = unsafe { core::slice::from_raw_parts(p as *const u8, len) };
        s.iter().all(|x| *x == b)
    };
    for step in 0..steps {
        let size = match r.next(10) {
            0 => r.next(largest),
            1..3 => r.next(20_000),
            _ => r.next(600),
        };
        let tag = step as u8;
        match r.next(8) {
            0..4 => {
                let align = if r.next(4) == 0 { 1 << r.next(15) } else { 16 };
                let Some((p, zero)) = heap.aligned(align, size) else { continue };
                let p = p as usize;
                assert_eq!(p % align.max(16), 0);
                guarded(&mut heap, p, align);
                assert!(!zero || intact(p, size, 0));
                for (q, len, _) in &live {
                    assert!(p + size.max(1) <= *q || *q + len.max(&1) <= p, "overlap at step {step}");
                }
                fill(p, size, tag);
                live.push((p, size, tag));
            }
            4..7 if !live.is_empty() => {
                let (p, len, b) = live.swap_remove(r.next(live.len()));
                assert!(intact(p, len, b), "content at step {step}");
                heap.dealloc(p).expect("live");
                assert!(heap.dealloc(p).is_err(), "double free found");
            }
            _ if !live.is_empty() => {
                let i = r.next(live.len());
                let (p, len, b) = live[i];
                let Some(q) = heap.realloc(p, size).expect("live") else { continue };
                let q = q as usize;
                assert!(intact(q, len.min(size), b));
                assert!(heap.usable(q).expect("live") >= size);
                guarded(&mut heap, q, if q == p { 8192 } else { 16 });
                fill(q, size, b);
                live[i] = (q, size, b);
                for (j, (o, len, _)) in live.iter().enumerate() {
                    assert!(j == i || q + size.max(1) <= *o || *o + len.max(&1) <= q, "overlap at step {step}");
                }
            }
            _ => {}
        }
        let (used, dirty) = heap.usage();
        assert!(used + dirty <= memory, "limit at step {step}");
        let sum: usize = live.iter().map(|l| l.1).sum();
        assert!(sum <= used);
    }
    for (p, len, b) in live {
        assert!(intact(p, len, b));
        heap.dealloc(p).expect("live");
    }
    assert!(host::machine(|m| m.closed.is_empty()), "free memory without rights");
    // Each class may keep one empty span.
    assert!(heap.usage().0 < 1 << 20, "{} left", heap.usage().0);
    heap.trim();
    assert_eq!(heap.usage().1, 0);
}

#[test]
fn random_programs_agree_with_a_model() {
    let _s = host::session();
    for seed in 1..6 {
        run_model(seed * 7919, 6000, 64 << 20, 300_000);
    }
    run_model(4711, 3000, 64 << 20, 3 << 20);
}

#[test]
fn running_out_is_null_and_recovers() {
    let _s = host::session();
    run_model(77, 6000, 2 << 20, 200_000);
    let mut heap = fresh(4 << 20);
    let mut all = Vec::new();
    while let Some((p, _)) = heap.malloc(100) {
        all.push(p as usize);
    }
    assert!(all.len() * 112 > 3 << 20, "{}", all.len());
    assert!(heap.malloc(1 << 20).is_none());
    for p in all {
        heap.dealloc(p).expect("live");
    }
    assert!(heap.malloc(3 << 20).is_some());
}

#[test]
fn wrong_pointers_are_recognised() {
    let _s = host::session();
    let mut heap = fresh(8 << 20);
    let (p, _) = heap.malloc(40).expect("memory");
    let p = p as usize;
    assert!(heap.dealloc(p + 16).is_err());
    assert!(heap.dealloc(p + 8).is_err());
    assert!(heap.dealloc(0x1000).is_err());
    assert!(heap.dealloc(usize::MAX - 4096).is_err());
    heap.dealloc(p).expect("live");
    assert!(heap.dealloc(p).is_err());
    for size in [100_000, 1 << 20] {
        let (big, _) = heap.malloc(size).expect("memory");
        let big = big as usize;
        for wrong in [big - 4096, big + 4096, big + heap.usable(big).expect("live")] {
            assert!(heap.dealloc(wrong).is_err());
        }
        heap.dealloc(big).expect("live");
        assert!(heap.dealloc(big).is_err());
    }
}

#[test]
fn large_allocations_lie_between_guards_whatever_their_length_becomes() {
    let _s = host::session();
    let mut heap = fresh(64 << 20);
    let mut all: Vec<usize> = (0..3).map(|_| heap.malloc(2 << 20).expect("memory").0 as usize).collect();
    // Shorter and longer in place, to and from what has no guards, and elsewhere.
    for size in [1_500_000, 2 << 20, 100_000, 200_000, 3 << 20, 1 << 20, (1 << 20) - 4096, 2 << 20] {
        for p in &mut all {
            *p = heap.realloc(*p, size).expect("live").expect("memory") as usize;
            guarded(&mut heap, *p, 16);
        }
    }
    // A host that has no memory for a guard.
    let (used, _) = heap.usage();
    host::machine(|m| m.fail_protect = 1);
    assert!(heap.malloc(1 << 20).is_none());
    assert_eq!((heap.usage().0, host::machine(|m| m.fail_protect)), (used, 0));
    all.into_iter().for_each(|p| heap.dealloc(p).expect("live"));
    assert_eq!(heap.usage().0, 0);
    assert!(host::machine(|m| m.closed.is_empty()));
}

#[test]
fn a_freed_slot_is_not_reused_at_once() {
    let _s = host::session();
    let mut heap = fresh(8 << 20);
    let (a, _) = heap.malloc(64).expect("memory");
    heap.dealloc(a as usize).expect("live");
    let (b, _) = heap.malloc(64).expect("memory");
    assert_ne!(a, b);
}

/// Also where it is the only free one that there is: in a span that was full.
#[test]
fn what_was_freed_last_waits_even_if_all_else_is_taken() {
    let _s = host::session();
    for size in [16, 64, 500, 512] {
        let mut heap = fresh(8 << 20);
        // Whole spans: 256 slots is the most that one has.
        let all: Vec<usize> = (0..1024).map(|_| heap.malloc(size).expect("memory").0 as usize).collect();
        let freed = &all[100..108];
        for p in freed {
            heap.dealloc(*p).expect("live");
            assert!(heap.dealloc(*p).is_err(), "double free found");
            let (q, _) = heap.malloc(size).expect("memory");
            assert!(!freed.contains(&(q as usize)), "{size} bytes were handed out again at once");
        }
    }
}

#[test]
fn what_waits_is_not_lost_when_memory_runs_out() {
    let _s = host::session();
    let mut heap = fresh(4 << 20);
    let mut all = Vec::new();
    while let Some((p, _)) = heap.malloc(500) {
        all.push(p as usize);
    }
    for p in &all[40..45] {
        heap.dealloc(*p).expect("live");
    }
    let again: Vec<usize> = std::iter::from_fn(|| Some(heap.malloc(500)?.0 as usize)).collect();
    assert_eq!(again.len(), 5);
    assert!(again.iter().all(|p| all[40..45].contains(p)));
}

#[test]
fn memory_goes_back_and_large_reallocs_grow_in_place() {
    let _s = host::session();
    let mut heap = fresh(64 << 20);
    let (p, _) = heap.malloc(1 << 20).expect("memory");
    let q = heap.realloc(p as usize, 2 << 20).expect("live").expect("memory");
    assert_eq!(p, q);
    heap.dealloc(q as usize).expect("live");
    let (big, _) = heap.malloc(40 << 20).expect("memory");
    heap.dealloc(big as usize).expect("live");
    // It was in use in the first interval, so it stays.
    let held = heap.usage().1;
    assert!(heap.decay(), "a surplus");
    assert_eq!(heap.usage(), (0, held));
    // So does what is used again and again: 36 of the 40 MB.
    let (again, _) = heap.malloc(36 << 20).expect("memory");
    heap.dealloc(again as usize).expect("live");
    heap.decay();
    let (used, dirty) = heap.usage();
    assert!(used == 0 && (36 << 20..=37 << 20).contains(&dirty), "{dirty} of {held}");
    // What nobody wanted goes.
    assert!(!heap.decay(), "no surplus");
    let (used, dirty) = heap.usage();
    assert!(used == 0 && dirty <= 4 << 20, "{used} {dirty}");
}

#[test]
fn mappings_are_cut_protected_and_freed() {
    use donjon_abi::Prot;
    let _s = host::session();
    fresh_global();
    let before = super::available();
    let at = super::map(16 * 4096, 4096, 16 * 4096).expect("memory");
    assert!(super::is_mapped(at, 16 * 4096));
    assert!(!super::is_mapped(at, 17 * 4096));
    // SAFETY: the mapping is this test's own.
    unsafe {
        core::ptr::write_bytes(at as *mut u8, 7, 16 * 4096);
        // From the middle, then the rest, which is in two pieces.
        assert!(super::unmap(at + 4 * 4096, 4 * 4096));
        assert!(!super::is_mapped(at, 16 * 4096));
        assert!(super::is_mapped(at, 4 * 4096) && super::is_mapped(at + 8 * 4096, 8 * 4096));
        assert_eq!(*((at + 8 * 4096) as *const u8), 7);
        assert!(super::unmap(at, 16 * 4096), "a hole is passed over");
        assert!(super::unmap(at, 16 * 4096), "so is one that is all there is");
    }
    assert_eq!(super::available(), before);
    // What is not a mapping stays.
    let p = super::malloc(1 << 20);
    // SAFETY: it refuses.
    unsafe {
        assert!(!super::unmap(p as usize, 1 << 20));
        assert!(!super::unmap(donjon_base::boot().reserve.base as usize - 4096, 4096));
        super::free(p);
    }
    // Address space without rights costs nothing until it gets some.
    let at = super::map(64 * 4096, 4096, 0).expect("memory");
    assert_eq!(super::available(), before);
    // SAFETY: as above.
    unsafe {
        super::change(at + 4096, 2 * 4096, Prot::ReadWrite).expect("memory");
        assert_eq!(super::available(), before - 2 * 4096);
        super::change(at + 4096, 2 * 4096, Prot::ReadWrite).expect("memory");
        assert_eq!(super::available(), before - 2 * 4096, "charged once");
        assert!(super::change(at, 65 * 4096, Prot::Read).is_err());
        assert!(super::unmap(at, 64 * 4096));
    }
    assert_eq!(super::available(), before);
    assert!(super::map(usize::MAX, 4096, 4096).is_none());
    assert!(super::map(super::total() + 4096, 4096, super::total() + 4096).is_none());
    assert_eq!(super::available(), before);
}

#[test]
fn page_runs_are_zeroed_even_when_reused() {
    let _s = host::session();
    fresh_global();
    for fill in 1..4 {
        let mut run = super::PageRun::new(100_000).expect("memory");
        assert!(run.iter().all(|b| *b == 0));
        run.fill(fill);
    }
}

#[test]
fn a_host_that_has_no_memory_is_an_error_and_not_an_end() {
    let _s = host::session();
    let mut heap = fresh(64 << 20);
    host::machine(|m| m.fail_protect = 1);
    assert!(heap.malloc(8 << 20).is_none());
    assert!(heap.malloc(8 << 20).is_some());
}

#[test]
fn what_the_program_has_used_up_leaves_a_reserve() {
    let _s = host::session();
    let mut heap = fresh(8 << 20);
    let all = heap.available();
    let use_up = |heap: &mut Pages| {
        let mut got = Vec::new();
        for size in [1 << 20, 1 << 16, 16384, 4096, 1024, 512, 256, 100, 64, 48, 32, 16] {
            while let Some((p, _)) = heap.malloc(size) {
                got.push(p as usize);
            }
        }
        got
    };
    let mut program = use_up(&mut heap);
    let reserve = heap.available();
    assert_eq!(reserve, 64 << 10);
    // Whatever the library OS takes and gives back, the program gets nothing of it.
    let mut own = Vec::new();
    for round in 0..40 {
        own.push(heap.take_reserve(100).expect("reserve") as usize);
        let (a, b) = (heap.take_reserve(100).expect("reserve"), heap.take_reserve(4096).expect("reserve"));
        assert!(use_up(&mut heap).is_empty(), "round {round}");
        heap.dealloc(a as usize).expect("live");
        heap.dealloc(b as usize).expect("live");
        assert!(use_up(&mut heap).is_empty(), "round {round}");
    }
    assert!(heap.available() >= reserve / 2, "{} left", heap.available());
    assert!(heap.take_reserve(16385).is_none(), "large ones can fail");
    while let Some(p) = heap.take_reserve(48) {
        own.push(p as usize);
    }
    assert_eq!(heap.available(), 0);
    // All of it comes back.
    own.drain(..).for_each(|p| heap.dealloc(p).expect("live"));
    program.drain(..).for_each(|p| heap.dealloc(p).expect("live"));
    let program = use_up(&mut heap);
    assert_eq!(heap.available(), reserve);
    program.into_iter().for_each(|p| heap.dealloc(p).expect("live"));
    assert!(all - heap.available() < 1 << 20, "{} of {all}", heap.available());
}

#[test]
fn memory_without_rights_and_content_counts_for_nothing() {
    use donjon_abi::Prot;
    let _s = host::session();
    fresh_global();
    let before = super::available();
    let at = super::map(16 * 4096, 4096, 16 * 4096).expect("memory");
    // What mmap with MAP_FIXED does in its middle.
    super::renewed(at + 4 * 4096, 8 * 4096, Prot::None);
    assert_eq!(super::available(), before - 8 * 4096);
    super::renewed(at + 4 * 4096, 8 * 4096, Prot::None);
    assert_eq!(super::available(), before - 8 * 4096);
    // SAFETY: the mapping is this test's own.
    unsafe {
        super::change(at, 16 * 4096, Prot::ReadWrite).expect("memory");
        assert_eq!(super::available(), before - 16 * 4096);
        assert!(super::unmap(at, 16 * 4096));
    }
    assert_eq!(super::available(), before);
}

#[test]
fn rights_that_do_not_fit_count_for_nothing() {
    use donjon_abi::Prot;
    let _s = host::session();
    fresh_global();
    let len = super::total();
    let at = super::map(len, 4096, 0).expect("address space");
    let before = super::available();
    // SAFETY: the mapping is this test's own.
    unsafe {
        // Two spans, of which only the first would fit.
        super::change(at, 4096, Prot::None).expect("mapped");
        super::renewed(at, 4096, Prot::None);
        assert_eq!(super::change(at, len, Prot::ReadWrite), Err(super::Errno::ENOMEM));
        assert_eq!(super::available(), before);
        super::change(at, 8 * 4096, Prot::ReadWrite).expect("memory");
        assert_eq!(super::available(), before - 8 * 4096);
        assert_eq!(super::change(at, len, Prot::Read), Err(super::Errno::ENOMEM));
        super::change(at, 9 * 4096, Prot::Read).expect("memory");
        assert_eq!(super::available(), before - 9 * 4096);
        assert!(super::unmap(at, len));
    }
}

#[test]
fn copies_of_files_are_told_from_the_programs_own_memory() {
    use super::Content;
    use donjon_abi::Prot;
    let _s = host::session();
    fresh_global();
    const LEN: usize = 4 * 4096;
    let own = super::map(LEN, 4096, LEN).expect("memory");
    let copy = super::map(LEN, 4096, LEN).expect("memory");
    super::set_copy(copy, false);
    let written = super::map(LEN, 4096, LEN).expect("memory");
    super::set_copy(written, true);
    assert_eq!([own, copy, written].map(|at| super::content(at, LEN)), [Content::Own, Content::Copy, Content::Mixed]);
    // SAFETY: the mappings are this test's own.
    unsafe { super::change(copy + 4096, 4096, Prot::ReadWrite).expect("memory") };
    assert_eq!(super::content(copy, 4096), Content::Copy);
    assert_eq!(super::content(copy, LEN), Content::Mixed);
    super::renewed(copy + 4096, 4096, Prot::ReadWrite);
    assert_eq!(super::content(copy + 4096, 4096), Content::Own);
    assert_eq!(super::content(copy + 2 * 4096, 2 * 4096), Content::Copy);
    assert_eq!(super::content(copy, LEN), Content::Mixed);
}
