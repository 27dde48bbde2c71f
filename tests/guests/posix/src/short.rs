//! What ordinary calls say when the program has used up its memory: that there is none, or they work. The guest goes on.

use crate::{Outcome, ensure};
use libc::{c_char, c_int, c_void};
use std::ffi::CString;
use std::hint::black_box;
use std::mem::zeroed;
use std::ptr::null_mut;

const ROUNDS: usize = 3;
/// Entries at which a table of them is full.
const MANY: usize = 4096;

/// Takes all that `malloc` has, for good.
fn squeeze() {
    for size in [1 << 20, 1 << 16, 16384, 8192, 4096, 2048, 1024, 768, 512, 384, 256, 192, 128, 96, 80, 64, 48, 32, 16]
    {
        while !black_box(unsafe { libc::malloc(black_box(size)) }).is_null() {}
    }
}

fn errno() -> i32 {
    unsafe { *libc::__errno_location() }
}

/// 0, or -1 for a null pointer.
fn some<T>(p: *mut T) -> i64 {
    if p.is_null() { -1 } else { 0 }
}

/// An abstract name, as an address.
fn name(number: usize) -> (libc::sockaddr_un, u32) {
    let mut at: libc::sockaddr_un = unsafe { zeroed() };
    at.sun_family = libc::AF_UNIX as u16;
    for (digit, to) in at.sun_path[1..7].iter_mut().enumerate() {
        *to = b'0' as c_char + (number / 10_usize.pow(digit as u32) % 10) as c_char;
    }
    (at, 9)
}

fn bind(socket: c_int, number: usize) -> c_int {
    let (at, len) = name(number);
    unsafe { libc::bind(socket, (&raw const at).cast(), len) }
}

fn look_up(host: &std::ffi::CStr) -> i64 {
    let mut out = null_mut();
    match unsafe { libc::getaddrinfo(host.as_ptr(), c"80".as_ptr(), std::ptr::null(), &mut out) } {
        0 => 0,
        // The reason is not in `errno`, but memory is the only one here.
        _ => {
            unsafe { *libc::__errno_location() = libc::ENOMEM };
            -1
        }
    }
}

extern "C" fn nothing(p: *mut c_void) -> *mut c_void {
    p
}

pub fn ordinary_calls() -> Outcome {
    let dots = CString::new(format!("/tmp/{}a", "./".repeat(900))).map_err(|e| e.to_string())?;
    let fresh: Vec<CString> =
        (0..8 * ROUNDS).filter_map(|i| CString::new(format!("/tmp/a-name-that-is-new-{i}")).ok()).collect();
    let old: Vec<CString> = (0..ROUNDS).filter_map(|i| CString::new(format!("/tmp/old-{i}")).ok()).collect();
    for path in &old {
        std::fs::write(path.to_str().unwrap_or_default(), "x").map_err(|e| e.to_string())?;
    }
    let (mut pair, mut pipe) = ([0; 2], [0; 2]);
    let mut many = vec![libc::pollfd { fd: 0, events: 0, revents: 0 }; 4000];
    let mut buffer = vec![0_u8; 8192];
    let (at, most) = (buffer.as_mut_ptr(), buffer.len());
    let pieces = vec![libc::iovec { iov_base: at.cast(), iov_len: 1 }; 500];
    let mut said = Vec::with_capacity(64 * ROUNDS);
    unsafe {
        let file = libc::open(c"/tmp/a".as_ptr(), libc::O_RDWR | libc::O_CREAT, 0o600);
        libc::symlink(c"/tmp/a".as_ptr(), c"/tmp/l".as_ptr());
        libc::mkdir(c"/tmp/d".as_ptr(), 0o755);
        libc::chdir(c"/tmp/d".as_ptr());
        libc::write(file, at.cast(), 8);
        let set = libc::epoll_create1(0);
        let events: [c_int; ROUNDS] = std::array::from_fn(|_| libc::eventfd(0, 0));
        let timers: [c_int; ROUNDS] = std::array::from_fn(|_| libc::timerfd_create(libc::CLOCK_MONOTONIC, 0));
        let sockets: [c_int; 3 * ROUNDS] = std::array::from_fn(|_| libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0));
        libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, pair.as_mut_ptr());
        libc::pipe2(pipe.as_mut_ptr(), libc::O_NONBLOCK);
        let dir = libc::opendir(c"/tmp".as_ptr());
        let server = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
        bind(server, 999_999);
        libc::listen(server, 10);
        let spare = black_box(libc::malloc(1 << 18));
        ensure(file >= 0 && set >= 0 && timers[0] >= 0 && server >= 0 && !dir.is_null(), "nothing to begin with")?;

        for round in 0..ROUNDS {
            let new = |n: usize| fresh[8 * round + n].as_ptr();
            let mut note = |call: &'static str, works: bool, f: &mut dyn FnMut() -> i64| {
                squeeze();
                *libc::__errno_location() = 0;
                let result = f();
                said.push((call, works, result, errno()));
            };
            note("stat", true, &mut || libc::stat(dots.as_ptr(), at.cast()).into());
            note("realpath", true, &mut || some(libc::realpath(c"/tmp/l".as_ptr(), at.cast())));
            note("getcwd", true, &mut || some(libc::getcwd(at.cast(), most)));
            note("chdir", true, &mut || libc::chdir(c"/tmp/d".as_ptr()).into());
            note("readlink", true, &mut || libc::readlink(c"/tmp/l".as_ptr(), at.cast(), most) as i64);
            note("rename", true, &mut || libc::rename(c"/tmp/a".as_ptr(), c"/tmp/b".as_ptr()).into());
            note("rename back", true, &mut || libc::rename(c"/tmp/b".as_ptr(), c"/tmp/a".as_ptr()).into());
            note("unlink", true, &mut || libc::unlink(old[round].as_ptr()).into());
            note("readdir", true, &mut || {
                libc::rewinddir(dir);
                some(libc::readdir(dir))
            });
            note("open", false, &mut || libc::open(c"/tmp/a".as_ptr(), libc::O_RDONLY).into());
            note("create", false, &mut || libc::open(new(0), libc::O_RDWR | libc::O_CREAT, 0o600).into());
            note("mkdir", false, &mut || libc::mkdir(new(1), 0o700).into());
            note("symlink", false, &mut || libc::symlink(c"/tmp/a".as_ptr(), new(2)).into());
            note("link", false, &mut || libc::link(c"/tmp/a".as_ptr(), new(3)).into());
            note("mkfifo", false, &mut || libc::mkfifo(new(4), 0o600).into());
            note("opendir", false, &mut || some(libc::opendir(c"/tmp".as_ptr())));
            note("fopen", false, &mut || some(libc::fopen(c"/tmp/a".as_ptr(), c"r".as_ptr())));
            note("write", false, &mut || {
                let rest = [9_u8; 4096];
                (0..64).map(|_| libc::write(file, rest.as_ptr().cast(), rest.len()) as i64).min().unwrap_or(0)
            });
            note("flock", false, &mut || libc::flock(file, libc::LOCK_EX).into());
            note("timerfd_settime", false, &mut || {
                let mut when: libc::itimerspec = zeroed();
                when.it_value.tv_sec = 1000;
                libc::timerfd_settime(timers[round], 0, &when, null_mut()).into()
            });
            note("epoll_ctl", false, &mut || {
                let mut event = libc::epoll_event { events: 1, u64: 1 };
                libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, events[round], &mut event).into()
            });
            note("eventfd", false, &mut || libc::eventfd(0, 0).into());
            note("poll", false, &mut || libc::poll(many.as_mut_ptr(), many.len() as u64, 1).into());
            note("pipe", false, &mut || libc::pipe([0; 2].as_mut_ptr()).into());
            note("write to a pipe", false, &mut || libc::write(pipe[1], at.cast(), 4096) as i64);
            note("writev", false, &mut || libc::writev(pipe[1], pieces.as_ptr(), 500) as i64);
            note("socketpair", false, &mut || {
                libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, [0; 2].as_mut_ptr()).into()
            });
            note("bind", false, &mut || bind(sockets[round], round).into());
            note("bind to a path", false, &mut || {
                let mut place = name(0).0;
                for (to, from) in place.sun_path.iter_mut().zip(std::ffi::CStr::from_ptr(new(5)).to_bytes_with_nul()) {
                    *to = *from as c_char;
                }
                libc::bind(sockets[ROUNDS + round], (&raw const place).cast(), size_of_val(&place) as u32).into()
            });
            note("connect", false, &mut || {
                let (to, len) = name(999_999);
                libc::connect(sockets[2 * ROUNDS + round], (&raw const to).cast(), len).into()
            });
            note("send", false, &mut || {
                let send = |_| libc::send(pair[0], at.cast(), 100, libc::MSG_DONTWAIT) as i64;
                (0..4096).map(send).min().unwrap_or(0)
            });
            note("socket", false, &mut || libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0).into());
            note("getaddrinfo of an address", false, &mut || look_up(c"127.0.0.1"));
            note("getaddrinfo", false, &mut || look_up(c"some.host.example"));
            note("getifaddrs", false, &mut || libc::getifaddrs(&mut null_mut()).into());
            note("setenv", false, &mut || libc::setenv(c"ABCD".as_ptr(), c"x".as_ptr(), 1).into());
            note("pthread_create", false, &mut || {
                let mut thread = 0;
                match libc::pthread_create(&mut thread, std::ptr::null(), nothing, null_mut()) {
                    0 => 0,
                    e => {
                        *libc::__errno_location() = e;
                        -1
                    }
                }
            });
        }
        libc::free(spare);
    }
    let known = [libc::ENOMEM, libc::ENOSPC, libc::ENOBUFS, libc::EAGAIN];
    for (call, works, result, error) in said {
        let fine = result >= 0 || !works && known.contains(&error);
        ensure(fine, format!("{call}: {result}, errno {error}"))?;
    }
    Ok(())
}

/// Tables that are full and would have to be moved: one more entry is refused.
pub fn full_tables() -> Outcome {
    let path = |i: usize| CString::new(format!("/tmp/many-{i}")).unwrap_or_default();
    let create = |path: &CString| unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CREAT, 0o600) };
    for i in 0..MANY {
        let fd = create(&path(i));
        ensure(fd >= 0 && unsafe { libc::close(fd) } == 0, "a file")?;
    }
    let timers: Vec<c_int> = (0..=MANY).map(|_| unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, 0) }).collect();
    let sockets: Vec<c_int> = (0..=MANY).map(|_| unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0) }).collect();
    let arm = |fd: c_int| unsafe {
        let mut when: libc::itimerspec = zeroed();
        when.it_value.tv_sec = 1000;
        libc::timerfd_settime(fd, 0, &when, null_mut())
    };
    ensure(timers[..MANY].iter().all(|fd| arm(*fd) == 0), "a timer")?;
    ensure((0..MANY).all(|i| bind(sockets[i], i) == 0), "a socket")?;
    let (one_more, spare) = (path(MANY), black_box(unsafe { libc::malloc(1 << 18) }));
    squeeze();
    let mut said = [(0, 0); 3];
    said[0] = (create(&one_more), errno());
    said[1] = (arm(timers[MANY]), errno());
    said[2] = (bind(sockets[MANY], MANY), errno());
    unsafe { libc::free(spare) };
    ensure(said == [(-1, libc::ENOMEM); 3], format!("a file, a timer, a name: {said:?}"))
}
