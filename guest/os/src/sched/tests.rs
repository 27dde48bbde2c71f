use super::*;
use crate::{mem, thread};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use donjon_base::host;

/// A session with memory and a first thread.
fn start() -> host::Session {
    let s = host::session();
    crate::mem::tests::fresh_global();
    init().expect("memory");
    s
}

static LOG: Lock<Vec<usize>> = Lock::new(Vec::new());

fn log() -> Vec<usize> {
    core::mem::take(&mut LOG.lock())
}

#[test]
fn threads_take_turns_and_end() {
    let _s = start();
    log();
    fn worker(arg: usize) {
        for _ in 0..2 {
            LOG.lock().push(arg);
            yield_now();
        }
    }
    for i in 1..4 {
        spawn(worker, i, 16 << 10).expect("memory");
    }
    while thread_count() > 1 {
        yield_now();
    }
    assert_eq!(log(), [1, 2, 3, 1, 2, 3]);
}

#[test]
fn sleepers_wake_in_order_and_time_passes_only_as_needed() {
    let _s = start();
    log();
    fn sleeper(ms: usize) {
        sleep_until(clock::monotonic() + ms as u64 * 1_000_000);
        LOG.lock().push(ms);
    }
    let begin = clock::monotonic();
    for ms in [30, 10, 20, 5, 25, 15] {
        spawn(sleeper, ms, 16 << 10).expect("memory");
    }
    sleep_until(begin + 100_000_000);
    assert_eq!(log(), [5, 10, 15, 20, 25, 30]);
    assert_eq!(clock::monotonic(), begin + 100_000_000);
}

#[test]
fn an_unpark_before_the_park_is_not_lost() {
    let _s = start();
    unpark(current());
    assert_eq!(park(None), Wake::Unparked);
    let deadline = clock::monotonic() + 5;
    assert_eq!(park(Some(deadline)), Wake::Deadline);
}

#[test]
#[should_panic(expected = "deadlock")]
fn waiting_for_ever_is_found_by_the_fake_host() {
    let _s = start();
    park(None);
}

#[test]
fn futex_waits_wakes_and_times_out() {
    let _s = start();
    log();
    static WORD: AtomicU32 = AtomicU32::new(0);
    fn address() -> usize {
        WORD.as_ptr() as usize
    }
    fn waiter(arg: usize) {
        // SAFETY: a static.
        let r = unsafe { futex::wait(address(), 0, 1 << arg, None) };
        assert_eq!(r, Ok(()));
        LOG.lock().push(arg);
    }
    for i in 0..4 {
        spawn(waiter, i, 16 << 10).expect("memory");
    }
    // SAFETY: a static.
    unsafe {
        assert_eq!(futex::wait(address(), 1, !0, None), Err(crate::errno::Errno::EAGAIN));
        let d = clock::monotonic() + 1000;
        assert_eq!(futex::wait(address(), 0, 1 << 9, Some(d)), Err(crate::errno::Errno::ETIMEDOUT));
    }
    assert_eq!(futex::wake(address(), 10, 1 << 2), 1);
    yield_now();
    assert_eq!(log(), [2]);
    assert_eq!(futex::requeue(address(), 1, address() + 4, 1), 2);
    assert_eq!(futex::wake(address(), 10, !0), 1);
    assert_eq!(futex::wake(address() + 4, 10, !0), 1);
    while thread_count() > 1 {
        yield_now();
    }
    assert_eq!(log(), [0, 3, 1]);
    WORD.store(0, SeqCst);
}

#[test]
fn join_returns_the_result_once() {
    let _s = start();
    fn run(a: usize, b: usize) -> usize {
        sleep_until(clock::monotonic() + 1000);
        a + b
    }
    let t = thread::start(run, 1, 2, 16 << 10, false).expect("memory");
    assert_eq!(thread::join(t), Ok(3));
    assert_eq!(thread::join(t), Err(crate::errno::Errno::ESRCH));
    let t = thread::start(run, 1, 2, 16 << 10, false).expect("memory");
    thread::detach(t).expect("exists");
    assert_eq!(thread::join(t), Err(crate::errno::Errno::EINVAL));
    sleep_until(clock::monotonic() + 10_000);
    assert!(!thread::exists(t));
    assert_eq!(thread_count(), 1);
}

#[test]
fn too_many_threads_is_eagain_and_recovers() {
    let _s = start();
    fn sleeper(_: usize) {
        park(None);
    }
    let mut all = Vec::new();
    let e = loop {
        match spawn(sleeper, 0, 16 << 10) {
            Ok(t) => all.push(t),
            Err(e) => break e,
        }
    };
    assert_eq!(e, crate::errno::Errno::EAGAIN);
    assert!(all.len() > 1000, "{}", all.len());
    yield_now();
    for t in all {
        unpark(t);
    }
    while thread_count() > 1 {
        yield_now();
    }
    assert!(mem::available() > mem::total() / 2);
    spawn(sleeper, 0, 16 << 10).expect("memory again");
}

#[test]
fn a_stack_that_is_too_large_is_eagain() {
    let _s = start();
    for size in (usize::MAX - 0x13000..=usize::MAX).step_by(64) {
        assert_eq!(spawn(|_| {}, 0, size), Err(crate::errno::Errno::EAGAIN), "{size:x}");
    }
}

#[test]
fn a_pending_tick_runs_when_preemption_goes_on() {
    let _s = start();
    log();
    fn worker(arg: usize) {
        LOG.lock().push(arg);
    }
    spawn(worker, 7, 16 << 10).expect("memory");
    {
        let _off = preempt::off();
        preempt::host_set_pending();
        assert_eq!(log(), []);
    }
    assert_eq!(log(), [7]);
}

#[test]
fn pollers_bound_the_wait() {
    let _s = start();
    static CALLS: AtomicU32 = AtomicU32::new(0);
    fn poller(now: u64) -> Option<u64> {
        CALLS.fetch_add(1, SeqCst);
        Some(now + 1_000_000)
    }
    CALLS.store(0, SeqCst);
    register_poller(poller).expect("memory");
    sleep_until(clock::monotonic() + 10_000_000);
    assert!((10..40).contains(&CALLS.load(SeqCst)));
}

#[test]
fn wait_queue_is_first_come_first_served() {
    let _s = start();
    log();
    static QUEUE: Lock<WaitQueue> = Lock::new(WaitQueue::new());
    fn waiter(arg: usize) {
        let _off = preempt::off();
        QUEUE.lock().enqueue_current();
        park(None);
        LOG.lock().push(arg);
    }
    for i in 0..3 {
        spawn(waiter, i, 16 << 10).expect("memory");
    }
    yield_now();
    assert!(QUEUE.lock().wake_one());
    yield_now();
    assert_eq!(log(), [0]);
    QUEUE.lock().wake_all();
    assert!(QUEUE.lock().is_empty());
    yield_now();
    assert_eq!(log(), [1, 2]);
}

#[test]
#[should_panic(expected = "guest exited with status 143")]
fn a_stop_that_nobody_handles_ends_the_guest() {
    let _s = start();
    host::machine(|m| m.stop = true);
    sleep_until(clock::monotonic() + 1000);
}

#[test]
fn a_stop_is_sigterm_or_else_sigint_on_a_thread_of_its_own() {
    use crate::signal::{self, Action, Disposition};
    let _s = start();
    static GOT: AtomicU32 = AtomicU32::new(0);
    static ENDED: AtomicU32 = AtomicU32::new(0);
    fn end() {
        ENDED.fetch_add(1, SeqCst);
    }
    signal::init(|number, _| GOT.store(number as u32, SeqCst), end);
    let handler = Action { disposition: Disposition::Handler, ..Action::default() };
    signal::set_action(signal::SIGINT, handler).expect("allowed");
    host::machine(|m| m.stop = true);
    sleep_until(clock::monotonic() + 1000);
    assert_eq!(GOT.load(SeqCst), 2);
    signal::set_action(signal::SIGTERM, handler).expect("allowed");
    host::machine(|m| m.stop = true);
    sleep_until(clock::monotonic() + 1000);
    assert_eq!((GOT.load(SeqCst), ENDED.load(SeqCst), thread_count()), (15, 2, 1));
    for n in [signal::SIGINT, signal::SIGTERM] {
        signal::set_action(n, Action::default()).expect("allowed");
    }
}

#[test]
fn a_stop_is_heard_when_the_memory_is_used_up() {
    use crate::signal::{self, Action, Disposition};
    let _s = start();
    static GOT: AtomicU32 = AtomicU32::new(0);
    signal::init(|number, _| GOT.store(number as u32, SeqCst), || ());
    signal::set_action(signal::SIGTERM, Action { disposition: Disposition::Handler, ..Action::default() })
        .expect("allowed");
    for size in [1 << 20, 4096, 64] {
        while !mem::malloc(size).is_null() {}
    }
    assert_eq!((thread_count(), is_last()), (1, true));
    assert_eq!(spawn(|_| (), 0, 0), Err(crate::errno::Errno::EAGAIN));
    host::machine(|m| m.stop = true);
    sleep_until(clock::monotonic() + 1000);
    assert_eq!(GOT.load(SeqCst), 15);
    signal::set_action(signal::SIGTERM, Action::default()).expect("allowed");
}

#[test]
fn signals_wait_while_blocked_and_faults_cannot_be_handled() {
    use crate::{
        errno::Errno,
        signal::{self, Action, Disposition},
    };
    let _s = start();
    static GOT: AtomicU32 = AtomicU32::new(0);
    GOT.store(0, SeqCst);
    signal::init(|number, _| GOT.store(number as u32, SeqCst), || ());
    let handler = Action { disposition: Disposition::Handler, ..Action::default() };
    signal::set_action(10, handler).expect("allowed");
    signal::set_mask(1 << 9);
    signal::raise(10).expect("valid");
    assert_eq!((GOT.load(SeqCst), signal::pending()), (0, 1 << 9));
    signal::set_mask(0);
    assert_eq!((GOT.load(SeqCst), signal::pending()), (10, 0));
    assert_eq!(signal::set_action(11, handler), Err(Errno::EINVAL));
    assert_eq!(signal::raise(65), Err(Errno::EINVAL));
    signal::set_action(10, Action::default()).expect("allowed");
}

/// Sets SIGUSR1's handler, which logs 100 and the thread's number.
fn log_signals(flags: u32) {
    use crate::signal::{self, Action, Disposition};
    signal::init(|_, _| LOG.lock().push(100 + current().number() as usize), || ());
    signal::set_action(10, Action { disposition: Disposition::Handler, flags, ..Action::default() }).expect("allowed");
}

#[test]
fn a_signal_interrupts_what_its_thread_waits_for() {
    use crate::{
        errno::Errno,
        io::{epoll, pipe, poll},
        signal,
    };
    const SA_RESTART: u32 = 0x1000_0000;
    static WORD: AtomicU32 = AtomicU32::new(0);
    static PIPE: AtomicU32 = AtomicU32::new(0);
    static SET: AtomicU32 = AtomicU32::new(0);
    let calls: [fn() -> Result<()>; 5] = [
        || {
            // SAFETY: a static.
            unsafe { futex::wait(WORD.as_ptr() as usize, 0, !0, None) }
        },
        || crate::fd::read(PIPE.load(SeqCst) as i32, &mut [&mut [0]]).map(|_| ()),
        || nap_until(u64::MAX / 2),
        || {
            let fd = PIPE.load(SeqCst) as i32;
            poll::poll(&mut [poll::PollFd { fd, events: 1, revents: 0 }], None).map(|_| ())
        },
        || epoll::wait(SET.load(SeqCst) as i32, &mut [epoll::Event::default()], None).map(|_| ()),
    ];
    let _s = crate::fd::tests::start();
    log();
    fn caller(call: usize) {
        // SAFETY: what was cast below.
        let call: fn() -> Result<()> = unsafe { core::mem::transmute(call) };
        let result = call();
        LOG.lock().push(result.map_or_else(|e| e.0 as usize, |()| 0));
    }
    let (r, w) = pipe::create(0).expect("memory");
    PIPE.store(r as u32, SeqCst);
    SET.store(epoll::create(false).expect("memory") as u32, SeqCst);
    for flags in [0, SA_RESTART] {
        for (i, call) in calls.into_iter().enumerate() {
            log_signals(flags);
            let t = spawn(caller, call as usize, 64 << 10).expect("memory");
            yield_now();
            signal::send(t, 10).expect("it is there");
            yield_now();
            let handled = 100 + t.number() as usize;
            if flags == SA_RESTART && i < 2 {
                // It waits on.
                assert_eq!(log(), [handled], "{i}");
                WORD.store(1, SeqCst);
                futex::wake(WORD.as_ptr() as usize, 1, !0);
                crate::fd::write(w, &[b"x"]).expect("room");
                yield_now();
                assert_eq!(log(), [0], "{i}");
                if i == 0 {
                    crate::fd::read(r, &mut [&mut [0]]).expect("it is there");
                }
                WORD.store(0, SeqCst);
            } else {
                assert_eq!(log(), [handled, Errno::EINTR.0 as usize], "{i}");
            }
            assert_eq!(signal::send(t, 10), Err(Errno::ESRCH));
        }
    }
    signal::set_action(10, signal::Action::default()).expect("allowed");
}

#[test]
fn a_signal_reaches_a_thread_that_runs_when_it_lets_it() {
    use crate::signal;
    let _s = start();
    log();
    log_signals(0);
    fn running(_: usize) {
        let me = current().number() as usize;
        come_tick();
        // It has run when the thread goes on.
        assert_eq!(log(), [100 + me]);
        signal::set_mask(1 << 9);
        yield_now();
        assert_eq!((log(), signal::pending()), (std::vec![], 1 << 9));
        signal::set_mask(0);
        assert_eq!((log(), signal::pending()), (std::vec![100 + me], 0));
    }
    let t = spawn(running, 0, 64 << 10).expect("memory");
    yield_now();
    signal::send(t, 10).expect("it is there");
    yield_now();
    signal::send(t, 10).expect("it is there");
    while thread_count() > 1 {
        yield_now();
    }
    // To oneself, at once.
    signal::send(current(), 10).expect("valid");
    assert_eq!(log(), [101]);
    signal::set_action(10, signal::Action::default()).expect("allowed");
}

#[test]
fn a_signal_waits_while_its_handler_runs() {
    use crate::signal::{self, Action, Disposition};
    let _s = start();
    log();
    signal::init(
        |number, _| {
            LOG.lock().push(number as usize);
            if log_len() < 3 {
                signal::raise(10).expect("valid");
                signal::raise(12).expect("valid");
            }
            LOG.lock().push(0);
        },
        || (),
    );
    fn log_len() -> usize {
        LOG.lock().len()
    }
    let action = Action { disposition: Disposition::Handler, mask: 1 << 11, ..Action::default() };
    for n in [10, 12] {
        signal::set_action(n, action).expect("allowed");
    }
    signal::raise(10).expect("valid");
    assert_eq!((log(), signal::mask()), (std::vec![10, 0, 10, 0, 12, 0], 0));
    for n in [10, 12] {
        signal::set_action(n, Action::default()).expect("allowed");
    }
}

#[test]
fn pause_ends_when_a_handler_has_run() {
    use crate::signal;
    let _s = start();
    log();
    log_signals(0);
    signal::set_action(signal::SIGTERM, signal::action(10).expect("valid")).expect("allowed");
    host::machine(|m| m.stop = true);
    spawn(|_| sleep_until(clock::monotonic() + 1_000_000), 0, 16 << 10).expect("memory");
    signal::pause();
    assert_eq!(log().len(), 1);
    for n in [10, signal::SIGTERM] {
        signal::set_action(n, signal::Action::default()).expect("allowed");
    }
}

/// A mutex as std has it: 0 free, 1 taken, 2 taken and somebody waits.
static MUTEX: AtomicU32 = AtomicU32::new(0);

fn acquire() {
    if MUTEX.compare_exchange(0, 1, SeqCst, SeqCst).is_ok() {
        return;
    }
    while MUTEX.swap(2, SeqCst) != 0 {
        // SAFETY: a static.
        let _ = unsafe { futex::wait(MUTEX.as_ptr() as usize, 2, !0, None) };
    }
}

fn release() {
    if MUTEX.swap(0, SeqCst) == 2 {
        futex::wake(MUTEX.as_ptr() as usize, 1, !0);
    }
}

#[test]
fn a_lock_that_is_taken_again_and_again_goes_to_those_who_wait() {
    let _s = start();
    log();
    MUTEX.store(0, SeqCst);
    fn other(_: usize) {
        for _ in 0..20 {
            acquire();
            LOG.lock().push(1);
            release();
            sleep_until(clock::monotonic() + 300_000);
        }
    }
    spawn(other, 0, 16 << 10).expect("memory");
    for round in 0..1000 {
        acquire();
        host::machine(|m| m.now += 200_000);
        // A time slice ends, always with the lock taken.
        if round % 50 == 0 {
            come_tick();
        }
        release();
    }
    assert_eq!(log().len(), 20);
}

#[test]
fn who_is_woken_runs_first_but_not_all_the_time_and_not_inside_a_guard() {
    let _s = start();
    log();
    fn sleeper(arg: usize) {
        loop {
            park(None);
            LOG.lock().push(arg);
        }
    }
    fn ready(arg: usize) {
        LOG.lock().push(arg);
    }
    let sleepers = [1, 2].map(|i| spawn(sleeper, i, 16 << 10).expect("memory"));
    yield_now();
    spawn(ready, 9, 16 << 10).expect("memory");
    {
        let _off = preempt::off();
        unpark(sleepers[0]);
        unpark(sleepers[1]);
        assert_eq!(log(), []);
    }
    // The first of them; who wakes goes on before the others.
    assert_eq!(log(), [1]);
    unpark(sleepers[0]);
    assert_eq!(log(), []);
    yield_now();
    assert_eq!(log(), [9, 2, 1]);
    host::machine(|m| m.now += WAKE_INTERVAL);
    unpark(sleepers[0]);
    assert_eq!(log(), [1]);
    // One that parks anyway leaves no request behind.
    host::machine(|m| m.now += WAKE_INTERVAL);
    let until = clock::monotonic() + 5;
    {
        let _off = preempt::off();
        unpark(sleepers[0]);
        park(Some(until));
    }
    spawn(ready, 9, 16 << 10).expect("memory");
    drop(preempt::off());
    assert_eq!(log(), [1]);
}

/// What a tick does that comes outside of the library OS.
fn come_tick() {
    preempt::host_set_pending();
    drop(preempt::off());
}

#[test]
fn who_waited_runs_before_those_that_compute() {
    let _s = start();
    log();
    fn computing(arg: usize) {
        for _ in 0..6 {
            come_tick();
            LOG.lock().push(arg);
        }
    }
    fn waiting(arg: usize) {
        park(None);
        LOG.lock().push(arg);
    }
    let waiting = [7, 8].map(|i| spawn(waiting, i, 16 << 10).expect("memory"));
    for i in 1..4 {
        spawn(computing, i, 16 << 10).expect("memory");
    }
    // This one computes, too.
    for _ in 0..4 {
        come_tick();
    }
    log();
    // Within this guard nobody runs at once.
    let off = preempt::off();
    waiting.iter().for_each(|t| unpark(*t));
    preempt::host_set_pending();
    drop(off);
    assert_eq!(log()[..2], [7, 8]);
    while thread_count() > 1 {
        yield_now();
    }
}

#[test]
fn those_that_wake_each_other_all_the_time_leave_turns_to_those_that_compute() {
    let _s = start();
    log();
    static PAIR: Lock<[Option<ThreadId>; 2]> = Lock::new([None; 2]);
    static TURN: AtomicU32 = AtomicU32::new(0);
    TURN.store(0, SeqCst);
    fn computing(_: usize) {
        for _ in 0..10 {
            come_tick();
            LOG.lock().push(0);
        }
    }
    fn pass_on(from: usize) {
        TURN.store(1 - from as u32, SeqCst);
        let other = PAIR.lock()[1 - from];
        other.into_iter().for_each(unpark);
    }
    fn waking(me: usize) {
        for _ in 0..100 {
            {
                let _off = preempt::off();
                pass_on(me);
                while TURN.load(SeqCst) != me as u32 {
                    park(None);
                }
            }
            come_tick();
        }
        LOG.lock().push(1);
        pass_on(me);
    }
    spawn(computing, 0, 16 << 10).expect("memory");
    let pair = [0, 1].map(|i| Some(spawn(waking, i, 16 << 10).expect("memory")));
    *PAIR.lock() = pair;
    while thread_count() > 1 {
        sleep_until(clock::monotonic() + 1000);
    }
    assert_eq!(log(), [[0; 10].as_slice(), &[1, 1]].concat());
}

#[test]
fn a_deadline_that_has_passed_costs_no_turn() {
    let _s = start();
    log();
    spawn(|_| LOG.lock().push(1), 0, 16 << 10).expect("memory");
    assert_eq!(park(Some(clock::monotonic())), Wake::Deadline);
    assert_eq!(log(), []);
    yield_now();
    assert_eq!(log(), [1]);
}
