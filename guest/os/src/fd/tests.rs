use super::*;
use crate::fd::watch::events::{ERR, HUP, IN, OUT, RDHUP, READ, WRITE};
use crate::io::epoll::{self, Event, Op};
use crate::io::poll::{PollFd, Sets, poll, select};
use crate::io::timerfd::{self, Clock, Setting};
use crate::io::{eventfd, pipe};
use crate::socket::{self, Addr, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM, addr::AF_UNIX, msg};
use donjon_base::{clock, host};
use std::{boxed::Box, vec, vec::Vec};

const TMPFS: u64 = 1 << 20;
const NONBLOCK: i32 = O_NONBLOCK;

/// A session with memory, a first thread, and a fresh set of everything that descriptors lead to.
pub(crate) fn start() -> host::Session {
    let s = host::session();
    let _off = donjon_base::preempt::off();
    // What an earlier test left lives in that test's heap: forget it before the heap is made anew.
    table::reset();
    timerfd::reset();
    console::reset();
    crate::netif::reset();
    crate::fs::reset(TMPFS);
    crate::mem::tests::fresh_global();
    crate::sched::init().expect("memory");
    s
}

fn put(fd: i32, bytes: &[u8]) -> Result<usize> {
    write(fd, &[bytes])
}

fn get_bytes(fd: i32, max: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0; max];
    let n = read(fd, &mut [&mut buf])?;
    buf.truncate(n);
    Ok(buf)
}

fn ready(fd: i32) -> u32 {
    let mut fds = [PollFd { fd, events: -1, revents: 0 }];
    poll(&mut fds, Some(0)).unwrap();
    u32::from(fds[0].revents as u16)
}

fn spawn(entry: fn(usize), arg: usize) {
    crate::sched::spawn(entry, arg, 64 << 10).unwrap();
}

#[test]
fn numbers_are_the_lowest_free_ones() {
    let _s = start();
    let a = eventfd::create(0, 0).unwrap();
    assert_eq!(a, 3);
    assert_eq!(dup(a, 0, false), Ok(4));
    assert_eq!(dup(a, 10, true), Ok(10));
    assert_eq!((flags(4), flags(10)), (Ok(false), Ok(true)));
    assert_eq!(close(3), Ok(()));
    assert_eq!(close(3), Err(Errno::EBADF));
    assert_eq!(eventfd::create(0, O_CLOEXEC), Ok(3));
    assert_eq!(flags(3), Ok(true));
    assert_eq!(dup_at(4, 4, false), Err(Errno::EINVAL));
    assert_eq!(dup_at(4, 7, false), Ok(7));
    assert_eq!(dup_at(99, 7, false), Err(Errno::EBADF));
    assert_eq!(close_range(3, 8, false), Ok(()));
    assert_eq!((get(7).err(), get(10).err()), (Some(Errno::EBADF), None));
    set_limit(6);
    assert_eq!((dup(10, 0, false), dup(10, 0, false), dup(10, 0, false)), (Ok(3), Ok(4), Ok(5)));
    assert_eq!(dup(10, 0, false), Err(Errno::EMFILE));
    assert_eq!(dup_at(3, 6, false), Err(Errno::EBADF));
    assert_eq!(dup(3, 6, false), Err(Errno::EINVAL));
    assert_eq!(socket::socket(AF_UNIX, SOCK_STREAM, 0), Err(Errno::EMFILE));
    assert_eq!(close(4), Ok(()));
    assert_eq!(dup(10, 0, false), Ok(4));
}

#[test]
fn the_console_takes_output_and_has_no_input() {
    let _s = start();
    assert_eq!(put(1, b"out\n"), Ok(4));
    assert_eq!(write(2, &[b"er", b"", b"r"]), Ok(3));
    assert_eq!(get_bytes(0, 4), Ok(vec![]));
    assert_eq!(put(0, b"x"), Err(Errno::EBADF));
    assert_eq!(get_bytes(1, 1), Err(Errno::EBADF));
    let text = host::machine(|m| core::mem::take(&mut m.console));
    let joined: Vec<u8> = text.iter().filter(|t| t.0 == 2).flat_map(|t| t.1.clone()).collect();
    assert_eq!((&text[0], &joined[..]), (&(1, b"out\n".to_vec()), &b"err"[..]));
}

#[test]
fn a_full_console_blocks_its_writer_and_nobody_else() {
    let _s = start();
    fn writer(fd: usize) {
        assert_eq!(write(fd as i32, &[b"hello", b", world\n"]), Ok(13));
    }
    host::machine(|m| m.console_room = Some(5));
    let named = crate::fs::open(crate::fs::At::Cwd, b"/dev/stdout", O_WRONLY, 0).unwrap();
    spawn(writer, 1);
    spawn(writer, named as usize);
    // Another thread goes on meanwhile, and the time passes in which the log has no room.
    crate::sched::sleep_until(clock::monotonic() + 50_000_000);
    assert_eq!(crate::sched::thread_count(), 3);
    let room = host::machine(|m| m.console_room.replace(3));
    assert_eq!(room, Some(0));
    set_nonblocking(named, true).unwrap();
    assert_eq!(put(named, b"x"), Err(Errno::EAGAIN), "it would be in the middle of the other one");
    host::machine(|m| m.console_room = room);
    set_nonblocking(2, true).unwrap();
    assert_eq!((put(2, b"x"), ready(2)), (Err(Errno::EAGAIN), 0));
    let set = epoll::create(false).unwrap();
    add(set, 2, OUT | epoll::flags::ET).unwrap();
    host::machine(|m| m.console_room = None);
    let mut events = [Event { events: 0, data: 0 }; 2];
    assert_eq!(epoll::wait(set, &mut events, None), Ok(1));
    assert_eq!((put(2, b"x"), ready(2)), (Ok(1), WRITE));
    while crate::sched::thread_count() > 1 {
        crate::sched::sleep_until(clock::monotonic() + 1_000_000);
    }
    let text: Vec<u8> = host::machine(|m| m.console.iter().filter(|t| t.0 == 1).flat_map(|t| t.1.clone()).collect());
    assert_eq!(text, b"hello, world\nhello, world\n");
}

#[test]
fn a_handler_writes_where_its_thread_does() {
    use crate::signal::{self, Action, Disposition};
    let _s = start();
    signal::init(|_, _| assert_eq!(put(1, b"handler"), Ok(7)), || ());
    signal::set_action(10, Action { disposition: Disposition::Handler, flags: 0x1000_0000, ..Action::default() })
        .unwrap();
    fn writer(_: usize) {
        assert_eq!(put(1, b"thread"), Ok(6));
    }
    host::machine(|m| m.console_room = Some(0));
    let thread = crate::sched::spawn(writer, 0, 64 << 10).unwrap();
    crate::sched::yield_now();
    signal::send(thread, 10).unwrap();
    crate::sched::yield_now();
    host::machine(|m| m.console_room = None);
    while crate::sched::thread_count() > 1 {
        crate::sched::sleep_until(clock::monotonic() + 1_000_000);
    }
    let text: Vec<u8> = host::machine(|m| m.console.iter().filter(|t| t.0 == 1).flat_map(|t| t.1.clone()).collect());
    assert_eq!(text, b"handlerthread");
    signal::set_action(10, Action::default()).unwrap();
}

#[test]
fn descriptions_are_shared_and_status_flags_change() {
    let _s = start();
    let (r, w) = pipe::create(0).unwrap();
    let r2 = dup(r, 0, false).unwrap();
    set_nonblocking(r2, true).unwrap();
    assert_eq!(status(r), Ok(O_NONBLOCK));
    assert_eq!(get_bytes(r, 1), Err(Errno::EAGAIN));
    set_status(r, O_RDWR | O_APPEND).unwrap();
    assert_eq!(status(r2), Ok(O_APPEND));
    assert_eq!(status(w), Ok(O_WRONLY));
    close(r).unwrap();
    assert_eq!(put(w, b"x"), Ok(1));
    close(r2).unwrap();
    assert_eq!(put(w, b"x"), Err(Errno::EPIPE));
}

#[test]
fn pipes_are_64_kib_and_small_writes_are_atomic() {
    let _s = start();
    let (r, w) = pipe::create(NONBLOCK).unwrap();
    assert_eq!((ready(r), ready(w)), (0, WRITE));
    assert_eq!(put(w, &[1; 70_000]), Ok(65_536));
    assert_eq!(put(w, b"x"), Err(Errno::EAGAIN));
    assert_eq!((ready(r), ready(w)), (READ, 0));
    assert_eq!(get_bytes(r, 4000).unwrap().len(), 4000);
    assert_eq!((put(w, &[2; 4096]), ready(w)), (Err(Errno::EAGAIN), 0));
    assert_eq!(put(w, &[2; 4097]), Ok(4000));
    assert_eq!(get_bytes(r, 65_536).unwrap().len(), 65_536);
    assert_eq!(available(r), Ok(0));
    close(w).unwrap();
    assert_eq!((ready(r), get_bytes(r, 1)), (HUP, Ok(vec![])));
    assert_eq!(seek(r, 0, 0), Err(Errno::ESPIPE));
}

#[test]
fn blocking_reads_and_writes_wait_for_the_other_side() {
    let _s = start();
    let (r, w) = pipe::create(0).unwrap();
    fn writer(fd: usize) {
        assert_eq!(put(fd as i32, &[7; 200_000]), Ok(200_000));
        close(fd as i32).unwrap();
    }
    spawn(writer, w as usize);
    let mut total = 0;
    loop {
        let n = get_bytes(r, 10_000).unwrap();
        if n.is_empty() {
            break;
        }
        assert!(n.iter().all(|b| *b == 7));
        total += n.len();
    }
    assert_eq!(total, 200_000);
}

#[test]
fn event_counters_add_up() {
    let _s = start();
    let e = eventfd::create(2, NONBLOCK).unwrap();
    put(e, &3u64.to_ne_bytes()).unwrap();
    assert_eq!(get_bytes(e, 8), Ok(5u64.to_ne_bytes().to_vec()));
    assert_eq!(get_bytes(e, 8), Err(Errno::EAGAIN));
    assert_eq!(get_bytes(e, 7), Err(Errno::EINVAL));
    assert_eq!(put(e, &u64::MAX.to_ne_bytes()), Err(Errno::EINVAL));
    assert_eq!(put(e, &(u64::MAX - 1).to_ne_bytes()), Ok(8));
    assert_eq!((put(e, &1u64.to_ne_bytes()), ready(e)), (Err(Errno::EAGAIN), READ));
    let s = eventfd::create(2, NONBLOCK | eventfd::SEMAPHORE).unwrap();
    assert_eq!(get_bytes(s, 8), Ok(1u64.to_ne_bytes().to_vec()));
    assert_eq!(get_bytes(s, 8), Ok(1u64.to_ne_bytes().to_vec()));
    assert_eq!(get_bytes(s, 8), Err(Errno::EAGAIN));
}

#[test]
fn timers_count_expirations() {
    let _s = start();
    let t = timerfd::create(Clock::Monotonic, 0).unwrap();
    let ms = 1_000_000;
    timerfd::set(t, 0, Setting { interval: 10 * ms, value: 5 * ms }).unwrap();
    let begin = clock::monotonic();
    assert_eq!(get_bytes(t, 8), Ok(1u64.to_ne_bytes().to_vec()));
    assert_eq!(clock::monotonic() - begin, 5 * ms);
    crate::sched::sleep_until(begin + 36 * ms);
    assert_eq!(get_bytes(t, 8), Ok(3u64.to_ne_bytes().to_vec()));
    assert_eq!(timerfd::get(t), Ok(Setting { interval: 10 * ms, value: 9 * ms }));
    let w = timerfd::create(Clock::Real, NONBLOCK).unwrap();
    timerfd::set(w, timerfd::ABSOLUTE, Setting { interval: 0, value: clock::realtime() + ms }).unwrap();
    assert_eq!((get_bytes(w, 8), ready(w)), (Err(Errno::EAGAIN), 0));
    let mut fds = [PollFd { fd: w, events: 1, revents: 0 }];
    assert_eq!((poll(&mut fds, None), fds[0].revents), (Ok(1), 1));
    assert_eq!(get_bytes(w, 8), Ok(1u64.to_ne_bytes().to_vec()));
    // Long past, absolute.
    timerfd::set(w, timerfd::ABSOLUTE, Setting { interval: 0, value: 1 }).unwrap();
    assert_eq!(get_bytes(w, 8), Ok(1u64.to_ne_bytes().to_vec()));
    assert_eq!(timerfd::set(w, 8, Setting::default()), Err(Errno::EINVAL));
}

#[test]
fn a_timer_that_somebody_looks_at_tells_those_who_wait() {
    use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
    static WOKEN: AtomicU32 = AtomicU32::new(0);
    fn waiter(fd: usize) {
        let mut fds = [PollFd { fd: fd as i32, events: 1, revents: 0 }];
        assert_eq!(poll(&mut fds, None), Ok(1));
        WOKEN.fetch_add(1, SeqCst);
    }
    let _s = start();
    WOKEN.store(0, SeqCst);
    let ms = 1_000_000;
    let t = timerfd::create(Clock::Monotonic, 0).unwrap();
    timerfd::set(t, 0, Setting { interval: 0, value: ms }).unwrap();
    spawn(waiter, t as usize);
    crate::sched::yield_now();
    // No poller comes in between.
    host::machine(|m| m.now += 2 * ms);
    assert_eq!(timerfd::get(t), Ok(Setting::default()));
    crate::sched::yield_now();
    assert_eq!(WOKEN.load(SeqCst), 1);
    // One edge is one event, also if asking is what finds it.
    let ep = epoll::create(false).unwrap();
    timerfd::set(t, 0, Setting { interval: 0, value: ms }).unwrap();
    add(ep, t, IN | epoll::flags::ET).unwrap();
    crate::sched::sleep_until(clock::monotonic() + 2 * ms);
    assert_eq!(get_bytes(t, 8), Ok(1u64.to_ne_bytes().to_vec()));
    timerfd::set(t, 0, Setting { interval: 0, value: ms }).unwrap();
    host::machine(|m| m.now += 2 * ms);
    assert_eq!(wait(ep), [(t as u64, IN)]);
    assert_eq!(wait(ep), []);
}

fn add(ep: i32, fd: i32, events: u32) -> Result<()> {
    epoll::ctl(ep, fd, Op::Add(Event { events, data: fd as u64 }))
}

fn wait(ep: i32) -> Vec<(u64, u32)> {
    let mut out = [Event::default(); 8];
    let n = epoll::wait(ep, &mut out, Some(0)).unwrap();
    out[..n].iter().map(|e| (e.data, e.events)).collect()
}

#[test]
fn epoll_level_edge_and_one_shot() {
    let _s = start();
    let ep = epoll::create(true).unwrap();
    let (r, w) = pipe::create(NONBLOCK).unwrap();
    add(ep, r, IN).unwrap();
    assert_eq!(add(ep, r, IN), Err(Errno::EEXIST));
    assert_eq!(wait(ep), []);
    put(w, b"ab").unwrap();
    assert_eq!(wait(ep), [(r as u64, IN)]);
    assert_eq!(wait(ep), [(r as u64, IN)]);
    epoll::ctl(ep, r, Op::Modify(Event { events: IN | epoll::flags::ET, data: 9 })).unwrap();
    assert_eq!(wait(ep), [(9, IN)]);
    assert_eq!(wait(ep), []);
    // Another arrival is another edge although there was data before.
    put(w, b"c").unwrap();
    assert_eq!(wait(ep), [(9, IN)]);
    assert_eq!(wait(ep), []);
    epoll::ctl(ep, r, Op::Modify(Event { events: IN | epoll::flags::ONESHOT, data: 9 })).unwrap();
    assert_eq!(wait(ep), [(9, IN)]);
    put(w, b"d").unwrap();
    assert_eq!(wait(ep), []);
    epoll::ctl(ep, r, Op::Modify(Event { events: IN | epoll::flags::ONESHOT, data: 1 })).unwrap();
    assert_eq!(wait(ep), [(1, IN)]);
    // Errors and hang-ups need no asking.
    epoll::ctl(ep, r, Op::Modify(Event { events: 0, data: 2 })).unwrap();
    close(w).unwrap();
    assert_eq!(wait(ep), [(2, HUP)]);
    epoll::ctl(ep, r, Op::Delete).unwrap();
    assert_eq!(epoll::ctl(ep, r, Op::Delete), Err(Errno::ENOENT));
    assert_eq!(wait(ep), []);
}

#[test]
fn epoll_forgets_closed_descriptions_only() {
    let _s = start();
    let ep = epoll::create(false).unwrap();
    let (r, w) = pipe::create(NONBLOCK).unwrap();
    add(ep, r, IN).unwrap();
    put(w, b"x").unwrap();
    let other = dup(r, 0, false).unwrap();
    close(r).unwrap();
    // The description lives on under another number, and so does the registration.
    assert_eq!(wait(ep), [(r as u64, IN)]);
    // The number is taken anew; both registrations have the same one.
    let e = eventfd::create(1, 0).unwrap();
    assert_eq!(e, r);
    add(ep, e, IN).unwrap();
    assert_eq!(wait(ep).len(), 2);
    close(other).unwrap();
    assert_eq!(wait(ep), [(e as u64, IN)]);
    close(e).unwrap();
    assert_eq!(wait(ep), []);
    let file = crate::fs::open(crate::fs::At::Cwd, b"/dev/null", O_RDWR, 0).unwrap();
    assert_eq!(add(ep, file, IN), Err(Errno::EPERM));
    assert_eq!(add(ep, ep, IN), Err(Errno::EINVAL));
    assert_eq!(add(file, ep, IN), Err(Errno::EINVAL));
    assert_eq!(add(1, 2, IN), Err(Errno::EINVAL));
    assert_eq!(add(ep, 77, IN), Err(Errno::EBADF));
}

#[test]
fn epoll_sets_nest_but_not_in_rings() {
    let _s = start();
    let (a, b) = (epoll::create(false).unwrap(), epoll::create(false).unwrap());
    let e = eventfd::create(0, 0).unwrap();
    add(a, b, IN).unwrap();
    add(b, e, IN).unwrap();
    assert_eq!(add(b, a, IN), Err(Errno::ELOOP));
    assert_eq!(wait(a), []);
    put(e, &1u64.to_ne_bytes()).unwrap();
    assert_eq!(wait(a), [(b as u64, IN)]);
    get_bytes(e, 8).unwrap();
    assert_eq!(wait(a), []);
    let mut last = a;
    let mut result = Ok(());
    for _ in 0..8 {
        let next = epoll::create(false).unwrap();
        result = result.and(add(next, last, IN));
        last = next;
    }
    assert_eq!(result, Err(Errno::ELOOP));
    for fd in 3..20 {
        let _ = close(fd);
    }
}

#[test]
fn epoll_waits_for_events_of_other_threads_and_for_time() {
    let _s = start();
    let ep = epoll::create(false).unwrap();
    let e = eventfd::create(0, 0).unwrap();
    add(ep, e, IN | epoll::flags::ET).unwrap();
    fn poke(fd: usize) {
        crate::sched::sleep_until(clock::monotonic() + 1_000_000);
        put(fd as i32, &1u64.to_ne_bytes()).unwrap();
    }
    spawn(poke, e as usize);
    let mut out = [Event::default(); 4];
    assert_eq!(epoll::wait(ep, &mut out, None), Ok(1));
    let begin = clock::monotonic();
    assert_eq!(epoll::wait(ep, &mut out, Some(begin + 5_000_000)), Ok(0));
    assert_eq!(clock::monotonic() - begin, 5_000_000);
    // Closing what a waiter waits for wakes nobody and breaks nothing.
    fn shut(fd: usize) {
        close(fd as i32).unwrap();
    }
    spawn(shut, e as usize);
    assert_eq!(epoll::wait(ep, &mut out, Some(begin + 9_000_000)), Ok(0));
}

#[test]
fn idle_registrations_cost_a_wait_nothing() {
    let _s = start();
    let ep = epoll::create(false).unwrap();
    let mut last = 0;
    for _ in 0..5000 {
        last = eventfd::create(0, 0).unwrap();
        add(ep, last, IN).unwrap();
    }
    put(last, &1u64.to_ne_bytes()).unwrap();
    for _ in 0..1000 {
        assert_eq!(wait(ep), [(last as u64, IN)]);
    }
}

#[test]
fn poll_and_select_answer_per_descriptor() {
    let _s = start();
    let (r, w) = pipe::create(0).unwrap();
    let mut fds = [(r, 1), (w, 4), (-1, 1), (99, 1)].map(|(fd, events)| PollFd { fd, events, revents: 7 });
    assert_eq!(poll(&mut fds, None), Ok(2));
    assert_eq!(fds.map(|p| p.revents), [0, 4, 0, 0x20]);
    let (mut rd, mut wr) = ([1u64 << r | 1 << w], [1u64 << w]);
    let mut sets = Sets { read: Some(&mut rd), write: Some(&mut wr), except: None };
    assert_eq!(select(w as usize + 1, &mut sets, Some(0)), Ok(1));
    assert_eq!((rd, wr), ([0], [1 << w]));
    let mut bad = [1u64 << 50];
    let mut sets = Sets { read: Some(&mut bad), write: None, except: None };
    assert_eq!(select(64, &mut sets, Some(0)), Err(Errno::EBADF));
    close(r).unwrap();
    assert_eq!(ready(w), WRITE | ERR);
}

#[test]
fn select_waits_on_where_no_set_counts_a_hang_up() {
    let _s = start();
    let (r, w) = pipe::create(0).unwrap();
    close(w).unwrap();
    let (begin, mut set) = (clock::monotonic(), [1u64 << r]);
    let mut sets = Sets { read: None, write: None, except: Some(&mut set) };
    assert_eq!(select(r as usize + 1, &mut sets, Some(begin + 5_000_000)), Ok(0));
    assert_eq!((clock::monotonic() - begin, set), (5_000_000, [0]));
    // A set that counts it, and a descriptor that is ready beside the one that is not.
    let e = eventfd::create(0, 0).unwrap();
    fn poke(fd: usize) {
        put(fd as i32, &1u64.to_ne_bytes()).unwrap();
    }
    spawn(poke, e as usize);
    let (mut read, mut except) = ([1u64 << e], [1u64 << r]);
    let mut sets = Sets { read: Some(&mut read), write: None, except: Some(&mut except) };
    assert_eq!(select(e as usize + 1, &mut sets, None), Ok(1));
    assert_eq!((read, except), ([1 << e], [0]));
    let mut read = [1u64 << r];
    let mut sets = Sets { read: Some(&mut read), write: None, except: None };
    assert_eq!((select(r as usize + 1, &mut sets, None), read), (Ok(1), [1 << r]));
}

#[test]
fn unix_streams_carry_bytes_and_ends() {
    let _s = start();
    let (a, b) = socket::pair(AF_UNIX, SOCK_STREAM | NONBLOCK, 0).unwrap();
    assert_eq!(put(a, b"hello"), Ok(5));
    assert_eq!(socket::recv(b, &mut [&mut [0; 3]], msg::PEEK).unwrap().copied, 3);
    assert_eq!(get_bytes(b, 9), Ok(b"hello".to_vec()));
    assert_eq!(get_bytes(b, 9), Err(Errno::EAGAIN));
    socket::shutdown(a, 1).unwrap();
    assert_eq!((ready(b), get_bytes(b, 9)), (READ | WRITE | RDHUP, Ok(vec![])));
    assert_eq!(put(a, b"x"), Err(Errno::EPIPE));
    assert_eq!(put(b, b"back"), Ok(4));
    close(a).unwrap();
    // Unread data at the peer's close is a reset.
    assert_eq!(ready(b) & (HUP | ERR), HUP | ERR);
    assert_eq!(get_bytes(b, 9), Err(Errno::ECONNRESET));
    assert_eq!(get_bytes(b, 9), Ok(vec![]));
    assert_eq!(put(b, b"x"), Err(Errno::EPIPE));
    let (a, b) = socket::pair(AF_UNIX, SOCK_STREAM | NONBLOCK, 0).unwrap();
    assert_eq!(put(a, &[0; 300_000]), Ok(212_992));
    assert_eq!(ready(a) & OUT, 0);
    assert_eq!(get_bytes(b, 1000).unwrap().len(), 1000);
    assert_eq!(ready(a) & OUT, OUT);
}

#[test]
fn unix_sockets_listen_by_path() {
    let _s = start();
    let path = Addr::Unix(b"/tmp/s".as_slice().into());
    let l = socket::socket(AF_UNIX, SOCK_STREAM, 0).unwrap();
    assert_eq!(socket::bind(l, &path), Ok(()));
    let c = socket::socket(AF_UNIX, SOCK_STREAM | NONBLOCK, 0).unwrap();
    assert_eq!(socket::bind(c, &path), Err(Errno::EADDRINUSE));
    assert_eq!(socket::connect(c, &path), Err(Errno::ECONNREFUSED));
    socket::listen(l, 1).unwrap();
    socket::connect(c, &path).unwrap();
    assert_eq!(ready(l), READ);
    let d = socket::socket(AF_UNIX, SOCK_STREAM | NONBLOCK, 0).unwrap();
    assert_eq!(socket::connect(d, &path), Err(Errno::EAGAIN));
    let (s, peer) = socket::accept(l, 0).unwrap();
    assert_eq!(
        (peer, socket::peer(c), socket::local(s)),
        (Addr::Unix(Box::default()), Ok(path.clone()), Ok(path.clone()))
    );
    put(c, b"hi").unwrap();
    assert_eq!(get_bytes(s, 9), Ok(b"hi".to_vec()));
    // A blocking connect waits for a place in the backlog.
    set_nonblocking(d, false).unwrap();
    let e = socket::socket(AF_UNIX, SOCK_STREAM, 0).unwrap();
    socket::connect(e, &path).unwrap();
    fn accept(l: usize) {
        crate::sched::sleep_until(clock::monotonic() + 1_000_000);
        socket::accept(l as i32, 0).unwrap();
    }
    spawn(accept, l as usize);
    assert_eq!(socket::connect(d, &path), Ok(()));
    close(l).unwrap();
    assert_eq!(socket::connect(socket::socket(AF_UNIX, SOCK_STREAM, 0).unwrap(), &path), Err(Errno::ECONNREFUSED));
    // Whoever was not accepted sees the end.
    assert_eq!(ready(d) & (HUP | ERR), HUP | ERR);
    assert_eq!(socket::option(e, 1, 4).unwrap().bytes(), [0; 4]);
    let gone = Addr::Unix(b"/tmp/none".as_slice().into());
    assert_eq!(socket::connect(socket::socket(AF_UNIX, SOCK_STREAM, 0).unwrap(), &gone), Err(Errno::ENOENT));
}

#[test]
fn unix_datagrams_keep_their_bounds() {
    let _s = start();
    let name = Addr::Unix(b"\0name".as_slice().into());
    let r = socket::socket(AF_UNIX, SOCK_DGRAM | NONBLOCK, 0).unwrap();
    socket::bind(r, &name).unwrap();
    let w = socket::socket(AF_UNIX, SOCK_DGRAM | NONBLOCK, 0).unwrap();
    assert_eq!(put(w, b"x"), Err(Errno::ENOTCONN));
    assert_eq!(socket::send(w, &[b"one", b"!"], Some(&name), 0), Ok(4));
    socket::connect(w, &name).unwrap();
    assert_eq!(put(w, b""), Ok(0));
    assert_eq!(put(w, b"three"), Ok(5));
    let mut buf = [0; 3];
    let got = socket::recv(r, &mut [&mut buf], 0).unwrap();
    assert_eq!((got.copied, got.len, &buf), (3, 4, b"one"));
    assert_eq!(get_bytes(r, 9), Ok(vec![]));
    assert_eq!(get_bytes(r, 9), Ok(b"three".to_vec()));
    assert_eq!(get_bytes(r, 9), Err(Errno::EAGAIN));
    close(r).unwrap();
    assert_eq!(put(w, b"x"), Err(Errno::ECONNREFUSED));
    let (a, b) = socket::pair(AF_UNIX, SOCK_SEQPACKET | NONBLOCK, 0).unwrap();
    put(a, b"ab").unwrap();
    put(a, b"c").unwrap();
    assert_eq!((get_bytes(b, 9), get_bytes(b, 9)), (Ok(b"ab".to_vec()), Ok(b"c".to_vec())));
    close(a).unwrap();
    assert_eq!(get_bytes(b, 9), Ok(vec![]));
}

#[test]
fn unix_messages_are_writable_when_there_is_room() {
    let _s = start();
    for kind in [SOCK_DGRAM, SOCK_SEQPACKET] {
        for size in [0, 1, 1000, 100_000] {
            let (a, b) = socket::pair(AF_UNIX, kind | NONBLOCK, 0).unwrap();
            let message = vec![0; size];
            // Whoever is told that it can be written can write, and nobody else.
            while ready(a) & OUT != 0 {
                assert_eq!(put(a, &message), Ok(size));
            }
            assert_eq!(put(a, &message), Err(Errno::EAGAIN));
            // Waits without having tried to write.
            fn reader(b: usize) {
                get_bytes(b as i32, 1).unwrap();
            }
            spawn(reader, b as usize);
            let mut fds = [PollFd { fd: a, events: OUT as i16, revents: 0 }];
            assert_eq!(poll(&mut fds, None), Ok(1), "{kind} {size}");
            let mut received = 0;
            while ready(b) & IN != 0 {
                get_bytes(b, 1).unwrap();
                received += 1;
            }
            // The largest, and none larger.
            assert!(received > 1);
            assert_eq!(put(a, &vec![0; 212_993]), Err(Errno::EMSGSIZE));
            assert_eq!((put(a, b"x"), put(a, &vec![0; 212_992])), (Ok(1), Ok(212_992)));
            assert_eq!((put(a, b"x"), ready(a) & OUT), (Err(Errno::EAGAIN), 0));
            // Where nobody receives any more there is nothing to wait for.
            spawn(|b| socket::shutdown(b as i32, 0).unwrap(), b as usize);
            assert_eq!((poll(&mut fds, None), put(a, b"x")), (Ok(1), Err(Errno::EPIPE)));
            close(a).unwrap();
            close(b).unwrap();
        }
    }
}

#[test]
fn a_connection_waits_until_there_is_memory_to_accept_it() {
    let _s = start();
    let path = Addr::Unix(b"/tmp/s".as_slice().into());
    let l = socket::socket(AF_UNIX, SOCK_STREAM | NONBLOCK, 0).unwrap();
    socket::bind(l, &path).unwrap();
    socket::listen(l, 1).unwrap();
    assert_eq!(socket::accept(l, 0).err(), Some(Errno::EAGAIN));
    let c = socket::socket(AF_UNIX, SOCK_STREAM | NONBLOCK, 0).unwrap();
    socket::connect(c, &path).unwrap();
    let all = crate::mem::tests::UsedUp::new();
    assert!(headroom().is_err());
    assert_eq!(socket::accept(l, 0).err(), Some(Errno::ENOMEM));
    assert_eq!((get_bytes(c, 1), ready(l)), (Err(Errno::EAGAIN), READ));
    drop(all);
    let (s, _) = socket::accept(l, 0).unwrap();
    assert_eq!((put(s, b"hi"), get_bytes(c, 9)), (Ok(2), Ok(b"hi".to_vec())));
}

#[test]
fn receive_timeouts_end_a_wait() {
    let _s = start();
    let (a, _b) = socket::pair(AF_UNIX, SOCK_STREAM, 0).unwrap();
    let mut tv = [0; 16];
    tv[8..].copy_from_slice(&20_000u64.to_ne_bytes());
    socket::set_option(a, 1, 20, &tv).unwrap();
    assert_eq!(socket::option(a, 1, 20).unwrap().bytes(), tv);
    let begin = clock::monotonic();
    assert_eq!(get_bytes(a, 1), Err(Errno::EAGAIN));
    assert_eq!(clock::monotonic() - begin, 20_000_000);
    assert_eq!(socket::option(a, 1, 3).unwrap().bytes(), SOCK_STREAM.to_ne_bytes());
    assert_eq!(socket::option(a, 1, 999), Err(Errno::ENOPROTOOPT));
    assert_eq!(socket::recv(1, &mut [&mut [0; 1]], 0).err(), Some(Errno::ENOTSOCK));
}

#[test]
fn the_last_descriptor_is_told_whoever_closes_it() {
    use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
    let _s = start();
    static CLOSED: AtomicU32 = AtomicU32::new(0);
    CLOSED.store(0, SeqCst);
    struct Thing;
    impl Object for Thing {
        fn stat(&self) -> Stat {
            Anon::stat()
        }
        fn as_any(&self) -> &dyn Any {
            self
        }
        fn closing(&self, _file: &File<dyn Object>) {
            CLOSED.fetch_add(1, SeqCst);
        }
    }
    let open = || install(open_file(Thing, O_RDWR).unwrap(), false).unwrap();
    let (a, b, c) = (open(), open(), open());
    dup_at(a, b, false).unwrap();
    assert_eq!(CLOSED.load(SeqCst), 1);
    close_range(a as u32, c as u32, false).unwrap();
    assert_eq!(CLOSED.load(SeqCst), 3);
}

#[test]
fn a_listener_that_is_shut_down_accepts_no_more() {
    use crate::socket::{accept, bind, connect, listen, shutdown};
    let _s = start();
    let name = Addr::Unix(b"\0l".as_slice().into());
    let l = socket::socket(AF_UNIX, SOCK_STREAM, 0).unwrap();
    bind(l, &name).unwrap();
    listen(l, 1).unwrap();
    spawn(|l| assert_eq!(accept(l as i32, 0).map(|_| ()), Err(Errno::EINVAL)), l as usize);
    crate::sched::yield_now();
    shutdown(l, 2).unwrap();
    while crate::sched::thread_count() > 1 {
        crate::sched::yield_now();
    }
    assert_eq!(ready(l), IN | events::RDNORM | RDHUP | HUP);
    let client = socket::socket(AF_UNIX, SOCK_STREAM, 0).unwrap();
    assert_eq!(connect(client, &name), Err(Errno::ECONNREFUSED));
}
