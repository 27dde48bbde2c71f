//! Uses up one thing, named by the first argument, and prints `PASS case: detail` if that ended in an error that a program can handle
//! and the guest works afterwards; else `FAILURE`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn mmap(addr: *mut u8, len: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
    fn munmap(addr: *mut u8, len: usize) -> i32;
    fn madvise(addr: *mut u8, len: usize, advice: i32) -> i32;
}
const MAP_PRIVATE_ANON: i32 = 0x22;
const PROT_RW: i32 = 3;
const MADV_DONTNEED: i32 = 4;
const PAGE: usize = 4096;

type Outcome = Result<String, String>;

fn main() {
    let case = std::env::args().nth(1).unwrap_or_default();
    let outcome = match case.as_str() {
        "memory" => memory(),
        "threads" => threads(),
        "sockets" => sockets(),
        "files" => files(),
        "tmpfs" => tmpfs(),
        "madvise" => madvise_is_honest(),
        "mappings" => mappings_are_honest(),
        "decommitted" => decommitted_memory_counts_for_nothing(),
        "returned" => memory_is_returned(),
        "preemption" => preemption(),
        "mutex" => a_mutex_goes_round(),
        "log" => a_full_log_blocks_its_writer(),
        "panic" => panics(),
        "abort" => std::process::abort(),
        "exit" => std::process::exit(42),
        "main-panics" => panic!("on purpose"),
        "environment" => environment(),
        "refused" => refused_by_design(),
        "stdin" => stdin_is_empty(),
        "time" => time(),
        "clock" => clock(),
        other => Err(format!("no such case: {other}")),
    };
    match outcome {
        Ok(detail) => println!("PASS {case}: {detail}"),
        Err(detail) => {
            println!("FAILURE {case}: {detail}");
            std::process::exit(1);
        }
    }
}

/// After running out, the guest must work as before.
fn still_works() -> Result<(), String> {
    let block = vec![7u8; 1 << 20];
    let sum = std::thread::spawn(move || block.iter().map(|b| u64::from(*b)).sum::<u64>())
        .join()
        .map_err(|_| "a thread panicked afterwards".to_owned())?;
    if sum == 7 << 20 { Ok(()) } else { Err(format!("wrong sum afterwards: {sum}")) }
}

fn memory() -> Outcome {
    let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(100_000);
    let error = loop {
        let mut block = Vec::new();
        if let Err(e) = block.try_reserve_exact(1 << 20) {
            break e;
        }
        block.resize(1 << 20, blocks.len() as u8);
        blocks.push(block);
        if blocks.len() == 100_000 {
            return Err("100 GB without an error".into());
        }
    };
    let got = blocks.len();
    if let Some(i) = (0..got).find(|i| blocks[*i].iter().any(|b| *b != *i as u8)) {
        return Err(format!("block {i} does not hold what was written"));
    }
    blocks.clear();
    still_works()?;
    // Half of it must be there again.
    let mut again = Vec::new();
    again.try_reserve_exact((got / 2) << 20).map_err(|e| format!("{got} MB freed, but: {e}"))?;
    again.resize((got / 2) << 20, 1u8);
    Ok(format!("{got} blocks of 1 MB, then: {error}"))
}

fn threads() -> Outcome {
    let stop = Arc::new(AtomicBool::new(false));
    let mut handles = Vec::new();
    let error = loop {
        let stop = Arc::clone(&stop);
        let spawned = std::thread::Builder::new().spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(50));
            }
        });
        match spawned {
            Ok(handle) => handles.push(handle),
            Err(e) => break e,
        }
        if handles.len() == 200_000 {
            return Err("200,000 threads without an error".into());
        }
    };
    let count = handles.len();
    stop.store(true, Ordering::Relaxed);
    for handle in handles {
        handle.join().map_err(|_| "a thread panicked".to_owned())?;
    }
    still_works()?;
    if error.raw_os_error() == Some(11) {
        Ok(format!("{count} threads, then: {error}"))
    } else {
        Err(format!("not EAGAIN: {error:?}"))
    }
}

fn sockets() -> Outcome {
    let mut sockets = Vec::new();
    let error = loop {
        match UdpSocket::bind("127.0.0.1:0") {
            Ok(socket) => sockets.push(socket),
            Err(e) => break e,
        }
        if sockets.len() == 1_000_000 {
            return Err("a million sockets without an error".into());
        }
    };
    let count = sockets.len();
    drop(sockets);
    still_works()?;
    echo_over_loopback()?;
    let known = [12, 23, 24, 98, 105];
    if error.raw_os_error().is_some_and(|e| known.contains(&e)) {
        Ok(format!("{count} sockets, then: {error}"))
    } else {
        Err(format!("unexpected error: {error:?}"))
    }
}

fn echo_over_loopback() -> Result<(), String> {
    let run = || -> io::Result<bool> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        let (mut server, _) = listener.accept()?;
        client.write_all(b"ping")?;
        let mut got = [0; 4];
        io::Read::read_exact(&mut server, &mut got)?;
        Ok(&got == b"ping")
    };
    match run() {
        Ok(true) => Ok(()),
        Ok(false) => Err("loopback changed the bytes".into()),
        Err(e) => Err(format!("loopback afterwards: {e}")),
    }
}

fn files() -> Outcome {
    let mut files = Vec::new();
    fs::write("/tmp/one", "x").map_err(|e| e.to_string())?;
    let error = loop {
        match File::open("/tmp/one") {
            Ok(file) => files.push(file),
            Err(e) => break e,
        }
        if files.len() == 1_000_000 {
            return Err("a million open files without an error".into());
        }
    };
    let count = files.len();
    drop(files);
    still_works()?;
    match error.raw_os_error() {
        Some(12 | 23 | 24) => Ok(format!("{count} files, then: {error}")),
        _ => Err(format!("unexpected error: {error:?}")),
    }
}

fn tmpfs() -> Outcome {
    let mut file = File::create("/tmp/big").map_err(|e| e.to_string())?;
    let block = vec![1u8; 64 << 10];
    let mut written = 0u64;
    let error = loop {
        match file.write_all(&block) {
            Ok(()) => written += block.len() as u64,
            Err(e) => break e,
        }
        if written > 100 << 30 {
            return Err("100 GB without an error".into());
        }
    };
    if error.raw_os_error() != Some(28) {
        return Err(format!("not ENOSPC: {error:?}"));
    }
    drop(file);
    fs::remove_file("/tmp/big").map_err(|e| e.to_string())?;
    fs::write("/tmp/small", vec![2u8; 64 << 10]).map_err(|e| format!("after removing the big file: {e}"))?;
    still_works()?;
    Ok(format!("{written} bytes, then: {error}"))
}

fn madvise_is_honest() -> Outcome {
    const LEN: usize = 64 * PAGE;
    let at = unsafe { mmap(std::ptr::null_mut(), LEN, PROT_RW, MAP_PRIVATE_ANON, -1, 0) };
    if at as isize == -1 {
        return Err(format!("mmap: {}", io::Error::last_os_error()));
    }
    let memory = unsafe { std::slice::from_raw_parts_mut(at, LEN) };
    memory.fill(0xaa);
    let result = unsafe { madvise(at, LEN / 2, MADV_DONTNEED) };
    let error = io::Error::last_os_error();
    // Read as the kernel's contract says: after success, zeros in the range and nothing else changed.
    let memory = unsafe { std::slice::from_raw_parts(at, LEN) };
    let zeros = memory[..LEN / 2].iter().all(|b| *b == 0);
    let rest = memory[LEN / 2..].iter().all(|b| *b == 0xaa);
    let invalid = unsafe { madvise(at.wrapping_add(1), LEN, MADV_DONTNEED) };
    let unknown = unsafe { madvise(at, LEN, 9999) };
    // FREE: may give zeros, must not give anything else.
    let freed = unsafe { madvise(at, LEN / 2, 8) };
    let memory = unsafe { std::slice::from_raw_parts(at, LEN) };
    if freed != 0 || memory[..LEN / 2].iter().any(|b| *b != 0) {
        return Err(format!("MADV_FREE: {freed}, {}", io::Error::last_os_error()));
    }
    // NORMAL, RANDOM, SEQUENTIAL, WILLNEED, DONTFORK, DODUMP, DONTDUMP: hints.
    for advice in [0, 1, 2, 3, 10, 17, 16] {
        if unsafe { madvise(at, LEN, advice) } != 0 {
            return Err(format!("advice {advice}: {}", io::Error::last_os_error()));
        }
    }
    let memory = unsafe { std::slice::from_raw_parts(at, LEN) };
    if memory[LEN / 2..].iter().any(|b| *b != 0xaa) {
        return Err("a hint changed the memory".into());
    }
    unsafe { munmap(at, LEN) };
    match (result, zeros, rest, invalid, unknown) {
        (0, true, true, -1, -1) => Ok("MADV_DONTNEED gives zeros; nonsense is refused".into()),
        other => Err(format!("(result, zeros, rest intact, unaligned, unknown) = {other:?}, {error}")),
    }
}

fn mappings_are_honest() -> Outcome {
    const PROT_READ: i32 = 1;
    const MAP_SHARED: i32 = 1;
    const MAP_PRIVATE: i32 = 2;
    fs::write("/tmp/mapped", vec![0xaa; PAGE]).map_err(|e| e.to_string())?;
    let file = File::options().read(true).write(true).open("/tmp/mapped").map_err(|e| e.to_string())?;
    let map = |prot, flags| unsafe { mmap(std::ptr::null_mut(), PAGE, prot, flags, file.as_raw_fd(), 0) };
    // A shared one is the file itself.
    let at = map(PROT_RW, MAP_SHARED);
    if at as isize == -1 {
        return Err(format!("shared: {}", io::Error::last_os_error()));
    }
    unsafe { at.write_volatile(0x55) };
    let mut first = [0; 2];
    file.read_exact_at(&mut first, 0).map_err(|e| e.to_string())?;
    file.write_all_at(&[0x66], 1).map_err(|e| e.to_string())?;
    let through = unsafe { [at.read_volatile(), at.add(1).read_volatile()] };
    unsafe { munmap(at, PAGE) };
    if first != [0x55, 0xaa] || through != [0x55, 0x66] {
        return Err(format!("shared: the file has {first:x?}, the mapping {through:x?}"));
    }
    file.write_all_at(&[0xaa; 2], 0).map_err(|e| e.to_string())?;
    let at = map(PROT_READ, MAP_PRIVATE);
    if at as isize == -1 {
        return Err(format!("private: {}", io::Error::last_os_error()));
    }
    // What is given back comes from the file again.
    let advised = unsafe { madvise(at, PAGE, MADV_DONTNEED) };
    let same = unsafe { std::slice::from_raw_parts(at, PAGE) }.iter().all(|b| *b == 0xaa);
    unsafe { munmap(at, PAGE) };
    if advised != 0 {
        return Err(format!("madvise of a private mapping: {}", io::Error::last_os_error()));
    }
    let at = map(PROT_RW, MAP_PRIVATE);
    if at as isize == -1 {
        return Err(format!("private and writable: {}", io::Error::last_os_error()));
    }
    unsafe { at.write_volatile(0x55) };
    let refused = unsafe { madvise(at, PAGE, MADV_DONTNEED) };
    let kept = unsafe { [at.read_volatile(), at.add(1).read_volatile()] };
    unsafe { munmap(at, PAGE) };
    if (refused, kept) != (-1, [0x55, 0xaa]) {
        return Err(format!("madvise of a private, writable mapping: {refused}, then {kept:x?}"));
    }
    if same { Ok("shared is the file, private is a copy".into()) } else { Err("not the file's content".into()) }
}

fn decommitted_memory_counts_for_nothing() -> Outcome {
    const LEN: usize = 8 << 20;
    const FIXED: i32 = 0x10;
    for round in 0..10 {
        let at = unsafe { mmap(std::ptr::null_mut(), LEN, PROT_RW, MAP_PRIVATE_ANON, -1, 0) };
        if at as isize == -1 {
            return Err(format!("round {round}: {}", io::Error::last_os_error()));
        }
        unsafe { std::slice::from_raw_parts_mut(at, LEN) }.fill(0xaa);
        // The address space stays, without rights and content.
        if unsafe { mmap(at, LEN, 0, MAP_PRIVATE_ANON | FIXED, -1, 0) } != at {
            return Err(format!("round {round}, MAP_FIXED: {}", io::Error::last_os_error()));
        }
    }
    still_works()?;
    Ok("10 times 8 MB".into())
}

fn memory_is_returned() -> Outcome {
    // Far more in total than the guest has; only so if what is freed can be used again, in changing sizes.
    let mut total = 0usize;
    for round in 0..200usize {
        let sizes: Vec<usize> = (0..64).map(|i| 1 + (round * 7919 + i * 104_729) % (128 << 10)).collect();
        let blocks: Vec<Vec<u8>> = sizes.iter().map(|s| vec![round as u8; *s]).collect();
        if blocks.iter().any(|b| b.iter().any(|x| *x != round as u8)) {
            return Err(format!("round {round}: a block changed"));
        }
        total += sizes.iter().sum::<usize>();
    }
    still_works()?;
    Ok(format!("{} MB in all", total >> 20))
}

fn preemption() -> Outcome {
    let count = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let spinner = std::thread::spawn({
        let (count, stop) = (Arc::clone(&count), Arc::clone(&stop));
        move || {
            while !stop.load(Ordering::Relaxed) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let seen = count.load(Ordering::Relaxed);
    // Two spinners that wait for each other make progress only by preemption.
    let turn = Arc::new(AtomicU64::new(0));
    let partner = std::thread::spawn({
        let turn = Arc::clone(&turn);
        move || {
            for i in 0..3 {
                while turn.load(Ordering::Acquire) != 2 * i + 1 {
                    std::hint::spin_loop();
                }
                turn.store(2 * i + 2, Ordering::Release);
            }
        }
    });
    for i in 0..3 {
        turn.store(2 * i + 1, Ordering::Release);
        while turn.load(Ordering::Acquire) != 2 * i + 2 {
            std::hint::spin_loop();
        }
    }
    stop.store(true, Ordering::Relaxed);
    let joined = spinner.join().is_ok() && partner.join().is_ok();
    if joined && seen > 0 {
        Ok(format!("the spinner counted to {seen} while main slept"))
    } else {
        Err("no progress".into())
    }
}

/// A thread that takes a mutex again and again lets others have it: the mutex is never free when its time slice ends.
fn a_mutex_goes_round() -> Outcome {
    let mutex = Arc::new(std::sync::Mutex::new(0));
    let got = Arc::new(AtomicU64::new(0));
    let (theirs, count) = (Arc::clone(&mutex), Arc::clone(&got));
    let other = std::thread::spawn(move || {
        for _ in 0..20 {
            *theirs.lock().unwrap() += 1;
            count.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let mut rounds = 0;
    while got.load(Ordering::Relaxed) < 20 && rounds < 500_000 {
        let mut held = mutex.lock().unwrap();
        for _ in 0..20_000 {
            std::hint::black_box(&mut *held);
        }
        rounds += 1;
    }
    let got = got.load(Ordering::Relaxed);
    other.join().map_err(|_| "the other thread panicked")?;
    if got == 20 {
        Ok(format!("20 times for another in {rounds} rounds"))
    } else {
        Err(format!("{got} times in {rounds} rounds"))
    }
}

/// Nobody reads standard output until standard error says that the other thread goes on.
fn a_full_log_blocks_its_writer() -> Outcome {
    let writer = std::thread::spawn(|| {
        let line = "x".repeat(99);
        for _ in 0..100_000 {
            println!("{line}");
        }
    });
    for _ in 0..200 {
        std::thread::sleep(Duration::from_millis(1));
    }
    if writer.is_finished() {
        return Err("the log has room for 10 MB".into());
    }
    eprintln!("the other thread goes on");
    writer.join().map_err(|_| "the writer panicked")?;
    Ok("all is written".into())
}

fn panics() -> Outcome {
    struct Guard(Arc<AtomicBool>);
    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let guard = Guard(Arc::clone(&dropped));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _guard = guard;
        panic!("caught in main");
    }));
    let joined = std::thread::Builder::new()
        .name("panicker".into())
        .spawn(|| panic!("in a thread"))
        .map_err(|e| e.to_string())?
        .join();
    match (caught.is_err(), dropped.load(Ordering::Relaxed), joined.is_err()) {
        (true, true, true) => Ok("caught, destructors ran, join reports it".into()),
        other => Err(format!("(caught, dropped, joined) = {other:?}")),
    }
}

fn environment() -> Outcome {
    let args: Vec<String> = std::env::args().skip(2).collect();
    let value = std::env::var("DONJON_TEST").unwrap_or_default();
    if args == ["one", "two words", ""] && value == "a value" {
        Ok("arguments and environment arrived".into())
    } else {
        Err(format!("args {args:?}, DONJON_TEST={value:?}"))
    }
}

fn refused_by_design() -> Outcome {
    let fork = std::process::Command::new("/bin/sh").spawn();
    match fork {
        Err(e) => Ok(format!("a child process: {e}")),
        Ok(_) => Err("started a child process".into()),
    }
}

fn stdin_is_empty() -> Outcome {
    let mut text = String::new();
    match io::Read::read_to_string(&mut io::stdin(), &mut text) {
        Ok(0) => Ok("standard input is at its end".into()),
        other => Err(format!("{other:?} {text:?}")),
    }
}

/// Says what time it is, until the host has heard enough.
fn clock() -> Outcome {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(600) {
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_err(|e| e.to_string())?;
        println!("clock {} {}", started.elapsed().as_nanos(), wall.as_nanos());
        std::thread::sleep(Duration::from_millis(20));
    }
    Err("nobody stopped it".into())
}

fn time() -> Outcome {
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_err(|e| e.to_string())?.as_secs();
    let started = Instant::now();
    let mut last = started;
    for _ in 0..200_000 {
        let now = Instant::now();
        if now < last {
            return Err("the monotonic clock went back".into());
        }
        last = now;
    }
    let before = Instant::now();
    std::thread::sleep(Duration::from_millis(50));
    let slept = before.elapsed();
    if slept < Duration::from_millis(50) {
        return Err(format!("slept only {slept:?}"));
    }
    Ok(format!("wall={wall}"))
}
