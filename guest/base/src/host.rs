//! A fake machine for tests on an ordinary host: a gate that records and replays, a virtual clock, a reserve of ordinary
//! memory.
//!
//! The library OS's state is global, so a test that touches it holds a [`session`]: one test at a time. Green threads work in it
//! (the context switch is real), preemption does not happen, and time passes only in `gate::wait`, which is why a
//! test never sleeps and a guest that would wait for ever is a panic.

#![expect(unsafe_code, reason = "plays the host")]
// UNSAFETY: dereferences the pointers of gate calls.

use donjon_abi::{
    Call, Frame, IoVec, Prot,
    boot::{BootPage, Range, flags},
    ready,
};
use std::{
    alloc::{Layout, alloc_zeroed},
    cell::Cell,
    collections::{BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

/// Bytes of fake reserve; the host's kernel backs what is touched.
const RESERVE: usize = 8 << 30;

/// The fake machine's state.
#[derive(Default)]
pub struct Machine {
    /// The virtual monotonic clock, ns.
    pub now: u64,
    /// What the guest wrote, stream and bytes.
    pub console: Vec<(u64, Vec<u8>)>,
    /// How many bytes more the console takes, if there is a bound.
    pub console_room: Option<usize>,
    /// Frames that the guest sent, offload header included.
    pub sent: Vec<Vec<u8>>,
    /// Frames that the guest will receive, offload header included.
    pub to_receive: VecDeque<Vec<u8>>,
    /// The next wait reports STOP.
    pub stop: bool,
    /// Number of `wait` calls.
    pub waits: u64,
    /// Fail the next this many `protect` calls with NoMemory.
    pub fail_protect: u32,
    /// Addresses of pages whose rights were taken away. They can be read and written all the same.
    pub closed: BTreeSet<u64>,
}

static MACHINE: Mutex<Option<Machine>> = Mutex::new(None);
static SESSION: Mutex<()> = Mutex::new(());
thread_local!(static HAS_SESSION: Cell<bool> = const { Cell::new(false) });

/// The right to use the library OS's global state, exclusively among the tests of a process.
pub struct Session(#[expect(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

/// Starts a session with a fresh machine. Global state of crates above is not reset.
pub fn session() -> Session {
    let guard = SESSION.lock().unwrap_or_else(PoisonError::into_inner);
    *machine_slot() = Some(Machine { now: 1_000_000_000, ..Machine::default() });
    HAS_SESSION.set(true);
    crate::preempt::set_count(0);
    crate::preempt::PENDING.store(0, std::sync::atomic::Ordering::Relaxed);
    Session(guard)
}

impl Drop for Session {
    fn drop(&mut self) {
        crate::preempt::set_count(0);
        HAS_SESSION.set(false);
    }
}

/// Runs `f` on the machine's state.
pub fn machine<R>(f: impl FnOnce(&mut Machine) -> R) -> R {
    f(machine_slot().get_or_insert_with(Machine::default))
}

fn machine_slot() -> MutexGuard<'static, Option<Machine>> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// # Panics
/// Outside a session.
#[track_caller]
pub fn assert_session() {
    assert!(HAS_SESSION.get(), "a test that uses the library OS holds donjon_base::host::session()");
}

/// Makes the whole reserve zero again, as if nobody had touched it.
pub fn reset_reserve() {
    let reserve = crate::boot().reserve;
    zero(reserve.base, reserve.len);
}

unsafe extern "C" {
    fn madvise(addr: *mut u8, len: usize, advice: i32) -> i32;
}

fn zero(addr: u64, len: u64) {
    const MADV_DONTNEED: i32 = 4;
    // SAFETY: whole pages of the reserve, which is a private anonymous mapping: an allocation of gigabytes is not carved from a heap.
    let status = unsafe { madvise(addr as *mut u8, len as usize, MADV_DONTNEED) };
    assert_eq!(status, 0, "madvise");
}

pub(crate) fn now() -> u64 {
    machine(|m| m.now)
}

/// The fake boot page: 64 MiB of memory in a large reserve, a fixed entropy.
pub fn boot_page() -> *mut BootPage {
    static PAGE: OnceLock<usize> = OnceLock::new();
    *PAGE.get_or_init(|| {
        const ALIGN: usize = 2 << 20;
        // Not by asking for the alignment: the allocator would then write all the zeros itself, gigabytes of them.
        let layout = Layout::from_size_align(RESERVE + ALIGN, 16).expect("a valid layout");
        // SAFETY: the layout is not empty.
        let reserve = unsafe { alloc_zeroed(layout) };
        assert!(!reserve.is_null(), "no address space for the fake reserve");
        let reserve = (reserve as usize).next_multiple_of(ALIGN);
        let mut page = BootPage::empty();
        page.flags = flags::NET | flags::LISTEN_ANY | flags::EGRESS_ANY;
        page.reserve = Range { base: reserve as u64, len: RESERVE as u64 };
        page.net.mac = [2, 0, 0, 0, 0, 1];
        page.net.mtu = 1500;
        page.memory = 64 << 20;
        page.clock.wall_offset = 1_700_000_000_000_000_000;
        page.entropy = [7; 64];
        Box::into_raw(Box::new(page)) as usize
    }) as *mut BootPage
}

pub(crate) fn gate(call: Call, [a, b, c, _d]: [u64; 4]) -> i64 {
    match call {
        Call::Exit => panic!("guest exited with status {a}"),
        // SAFETY: the guest passes a live slice.
        Call::Fault => panic!("guest fault: {}", String::from_utf8_lossy(unsafe { slice(a, b) })),
        Call::Console => {
            // SAFETY: the guest passes a live slice.
            let text = unsafe { slice(a, b) };
            machine(|m| {
                let n = m.console_room.unwrap_or(usize::MAX).min(text.len());
                m.console_room = m.console_room.map(|room| room - n);
                m.console.push((c, text[..n].to_vec()));
                n as i64
            })
        }
        Call::Wait => machine(|m| {
            m.waits += 1;
            let mut bits = 0;
            if !m.to_receive.is_empty() {
                bits |= ready::NET;
            }
            if core::mem::take(&mut m.stop) {
                bits |= ready::STOP;
            }
            if bits == 0 {
                assert!(a != u64::MAX, "deadlock: the guest waits for ever");
                m.now += a;
            }
            bits as i64
        }),
        Call::NetSend => {
            for i in 0..b {
                // SAFETY: the guest passes `b` frames whose pieces are live.
                let frame = unsafe { pieces(a, i) }.flat_map(|v| unsafe { slice(v.base, v.len) }.to_vec()).collect();
                machine(|m| m.sent.push(frame));
            }
            b as i64
        }
        Call::NetRecv => {
            for i in 0..b {
                let Some(frame) = machine(|m| m.to_receive.pop_front()) else { return i as i64 };
                let mut rest = &frame[..];
                // SAFETY: the guest passes `b` frames whose pieces are live and exclusively borrowed.
                for v in unsafe { pieces(a, i) } {
                    let (now, later) = rest.split_at(rest.len().min(v.len as usize));
                    // SAFETY: as above; `now` is no longer than the piece.
                    unsafe { core::ptr::copy_nonoverlapping(now.as_ptr(), v.base as *mut u8, now.len()) };
                    rest = later;
                }
                // SAFETY: as above.
                unsafe { (*(a as *mut Frame).add(i as usize)).len = (frame.len() - rest.len()) as u32 };
            }
            b as i64
        }
        Call::Protect => machine(|m| {
            if m.fail_protect > 0 {
                m.fail_protect -= 1;
                return -12;
            }
            match Prot::from_number(c) {
                Some(Prot::None) => m.closed.extend((a..a + b).step_by(donjon_abi::PAGE as usize)),
                _ => m.closed.retain(|page| !(a..a + b).contains(page)),
            }
            0
        }),
        Call::Discard => {
            zero(a, b);
            0
        }
        Call::SetTls => 0,
    }
}

unsafe fn slice<'a>(base: u64, len: u64) -> &'a [u8] {
    if len == 0 {
        return &[];
    }
    // SAFETY: by contract of the callers.
    unsafe { core::slice::from_raw_parts(base as *const u8, len as usize) }
}

unsafe fn pieces<'a>(frames: u64, index: u64) -> impl Iterator<Item = &'a IoVec> {
    // SAFETY: by contract of the callers.
    let frame = unsafe { &*(frames as *const Frame).add(index as usize) };
    // SAFETY: as above.
    unsafe { core::slice::from_raw_parts(frame.iov as *const IoVec, frame.iov_count as usize) }.iter()
}
