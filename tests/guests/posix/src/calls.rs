//! Locks, waits, streams and mappings where Linux and glibc are particular: the C functions that std does not call.

use crate::{Outcome, ensure};
use libc::{EDEADLK, EINVAL, ETIMEDOUT};
use std::os::fd::AsRawFd;
use std::ptr::null_mut;

const PAGE: usize = 4096;

pub fn all() -> Outcome {
    held_for_writing()?;
    over_before_1970()?;
    select()?;
    streams()?;
    mappings()?;
    removed_directory()?;
    answers()
}

fn returns(result: i32, wanted: i32, what: &str) -> Outcome {
    ensure(result == wanted, format!("{what}: {result}, not {wanted}"))
}

fn held_for_writing() -> Outcome {
    let lock: &'static mut libc::pthread_rwlock_t = Box::leak(Box::new(libc::PTHREAD_RWLOCK_INITIALIZER));
    let lock = &raw mut *lock;
    unsafe {
        returns(libc::pthread_rwlock_wrlock(lock), 0, "wrlock")?;
        returns(libc::pthread_rwlock_rdlock(lock), EDEADLK, "rdlock of one's own wrlock")?;
        returns(libc::pthread_rwlock_wrlock(lock), EDEADLK, "wrlock of one's own wrlock")?;
        returns(libc::pthread_rwlock_tryrdlock(lock), libc::EBUSY, "tryrdlock of one's own wrlock")?;
    }
    // Another thread's is waited for.
    let address = lock.expose_provenance();
    let other = std::thread::spawn(move || {
        let lock = std::ptr::with_exposed_provenance_mut(address);
        unsafe { (libc::pthread_rwlock_rdlock(lock), libc::pthread_rwlock_unlock(lock)) }
    });
    std::thread::yield_now();
    returns(unsafe { libc::pthread_rwlock_unlock(lock) }, 0, "unlock")?;
    ensure(other.join().ok() == Some((0, 0)), "rdlock of another thread's wrlock")?;
    unsafe {
        returns(libc::pthread_rwlock_rdlock(lock), 0, "rdlock")?;
        returns(libc::pthread_rwlock_rdlock(lock), 0, "a second rdlock")
    }
}

/// A time before 1970 is over; one that is none is an error.
fn over_before_1970() -> Outcome {
    let mutex = &raw mut *Box::leak(Box::new(libc::PTHREAD_MUTEX_INITIALIZER));
    let cond = &raw mut *Box::leak(Box::new(libc::PTHREAD_COND_INITIALIZER));
    let sem: *mut libc::sem_t = Box::leak(Box::new(unsafe { std::mem::zeroed() }));
    returns(unsafe { libc::pthread_mutex_lock(mutex) }, 0, "lock")?;
    for (tv_sec, tv_nsec, wanted) in [(-1, 0, ETIMEDOUT), (i64::MIN, 0, ETIMEDOUT), (1, 1_000_000_000, EINVAL)] {
        let at = libc::timespec { tv_sec, tv_nsec };
        unsafe {
            returns(libc::pthread_cond_timedwait(cond, mutex, &raw const at), wanted, "cond_timedwait")?;
            returns(libc::pthread_mutex_timedlock(mutex, &raw const at), wanted, "mutex_timedlock")?;
            crate::fails_with(libc::sem_timedwait(sem, &raw const at) as isize, wanted, "sem_timedwait")?;
        }
    }
    Ok(())
}

fn select() -> Outcome {
    let (reader, writer) = std::io::pipe().map_err(|e| e.to_string())?;
    let fd = reader.as_raw_fd();
    let with = |set: &mut libc::fd_set, time: &mut libc::timeval| unsafe {
        libc::FD_ZERO(set);
        libc::FD_SET(fd, set);
        libc::select(fd + 1, set, null_mut(), null_mut(), time)
    };
    let mut set: libc::fd_set = unsafe { std::mem::zeroed() };
    let mut time = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
    returns(with(&mut set, &mut time), 0, "select of nothing")?;
    ensure((time.tv_sec, time.tv_usec) == (0, 0), format!("time left when it is over: {} us", time.tv_usec))?;
    // A hang-up is nothing that the third set counts; the first one does.
    drop(writer);
    time.tv_usec = 20_000;
    unsafe {
        libc::FD_SET(fd, &mut set);
        returns(libc::select(fd + 1, null_mut(), null_mut(), &mut set, &mut time), 0, "select of exceptions")?;
    }
    ensure(!unsafe { libc::FD_ISSET(fd, &set) }, "a hang-up is an exception")?;
    time.tv_sec = 1000;
    returns(with(&mut set, &mut time), 1, "select of a hang-up")?;
    ensure((900..=1000).contains(&time.tv_sec), format!("time left: {} s of 1000", time.tv_sec))
}

fn streams() -> Outcome {
    let path = c"/tmp/posix-append";
    std::fs::write("/tmp/posix-append", "0123456789").map_err(|e| e.to_string())?;
    unsafe {
        let file = libc::fopen(path.as_ptr(), c"a".as_ptr());
        ensure(!file.is_null(), "fopen")?;
        let at = libc::ftell(file);
        libc::fputs(c"ab".as_ptr(), file);
        let seen = (at, libc::ftell(file), libc::fclose(file));
        ensure(seen == (10, 12, 0), format!("an appending stream: {seen:?}"))?;
        // It makes its descriptor append.
        let fd = libc::open(path.as_ptr(), libc::O_RDWR);
        let file = libc::fdopen(fd, c"a".as_ptr());
        ensure(!file.is_null() && libc::fcntl(fd, libc::F_GETFL) & libc::O_APPEND != 0, "fdopen")?;
        let seen = (libc::fclose(file), libc::unlink(path.as_ptr()));
        ensure(seen == (0, 0), format!("the end of a stream: {seen:?}"))
    }
}

fn mappings() -> Outcome {
    let (rights, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
    unsafe {
        let at = libc::mmap(null_mut(), 3 * PAGE, rights, private | libc::MAP_ANONYMOUS, -1, 0);
        ensure(at != libc::MAP_FAILED, "mmap")?;
        returns(libc::munmap(at.byte_add(PAGE), PAGE), 0, "munmap of the middle")?;
        returns(libc::munmap(at, 3 * PAGE), 0, "munmap over a hole")?;
        let zero = libc::open(c"/dev/zero".as_ptr(), libc::O_RDWR);
        let at = libc::mmap(null_mut(), PAGE, rights, private, zero, 0).cast::<[u8; PAGE]>();
        ensure(at.cast() != libc::MAP_FAILED && (*at).iter().all(|b| *b == 0), "mmap of /dev/zero")?;
        (*at)[PAGE - 1] = 1;
        returns(libc::munmap(at.cast(), PAGE), 0, "munmap of /dev/zero")?;
        returns(libc::close(zero), 0, "close")
    }
}

/// What is moved into a directory that is gone stays where it is.
fn removed_directory() -> Outcome {
    let (dir, file) = ("/tmp/posix-gone", "/tmp/posix-kept");
    let error = |e: std::io::Error| e.to_string();
    std::fs::write(file, "kept").map_err(error)?;
    std::fs::create_dir(dir).and_then(|()| std::env::set_current_dir(dir)).map_err(error)?;
    std::fs::remove_dir(dir).map_err(error)?;
    let moved = std::fs::rename(file, "x").map_err(|e| e.raw_os_error());
    std::env::set_current_dir("/").map_err(error)?;
    ensure(moved == Err(Some(libc::ENOENT)), format!("rename: {moved:?}"))?;
    let content = std::fs::read(file).map_err(error)?;
    ensure(content == b"kept", "another content")?;
    std::fs::remove_file(file).map_err(error)
}

fn answers() -> Outcome {
    for (name, wanted) in
        [(libc::_SC_LEVEL1_DCACHE_LINESIZE, 64), (libc::_SC_NGROUPS_MAX, 65_536), (libc::_SC_LINE_MAX, 2048)]
    {
        let value = unsafe { libc::sysconf(name) };
        ensure(value == wanted, format!("sysconf {name}: {value}"))?;
    }
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    returns(unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) }, 0, "getrusage of children")?;
    ensure((usage.ru_utime.tv_sec, usage.ru_utime.tv_usec) == (0, 0), "children that there are not took time")
}
