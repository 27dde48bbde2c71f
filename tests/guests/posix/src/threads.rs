//! What `std::thread` promises.

use crate::{Outcome, ensure};
use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex};
use std::thread;

const PAGE: usize = 4096;

pub fn all() -> Outcome {
    names()?;
    results()?;
    adaptive_mutexes()?;
    thread_locals()?;
    stacks()
}

fn pthread_name() -> Result<String, String> {
    let mut name = [0u8; 32];
    let result = unsafe { libc::pthread_getname_np(libc::pthread_self(), name.as_mut_ptr().cast(), name.len()) };
    ensure(result == 0, format!("pthread_getname_np: {result}"))?;
    let end = name.iter().position(|b| *b == 0).ok_or("a name without an end")?;
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

fn names() -> Outcome {
    ensure(thread::current().name() == Some("main"), "the first thread's name")?;
    // The system's name has 15 bytes at most.
    for (given, seen) in [("worker", "worker"), ("a-name-that-is-much-too-long", "a-name-that-is-")] {
        let body = || (thread::current().name().map(str::to_owned), pthread_name());
        let thread = thread::Builder::new().name(given.into()).spawn(body).map_err(|e| e.to_string())?;
        let (own, system) = thread.join().map_err(|_| "a thread panicked")?;
        ensure(own.as_deref() == Some(given), format!("{given}: own name {own:?}"))?;
        ensure(system? == seen, format!("{given}: not {seen} to pthread_getname_np"))?;
    }
    let unnamed = thread::spawn(|| thread::current().name().is_none()).join();
    ensure(unnamed.unwrap_or(false), "a thread without a name has one")
}

fn results() -> Outcome {
    let sum: u64 = (0..50).map(|i| thread::spawn(move || i * i).join().unwrap_or(0)).sum();
    ensure(sum == 40_425, format!("join: {sum}"))?;
    let panicked = thread::spawn(|| -> u8 { panic!("on purpose") }).join().err();
    let message = panicked.and_then(|p| p.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    ensure(message.as_deref() == Some("on purpose"), format!("join of a panic: {message:?}"))?;
    // A mutex that a panicking thread held says so.
    let mutex = Arc::new(Mutex::new(1));
    let other = Arc::clone(&mutex);
    let result = thread::spawn(move || {
        let _held = other.lock();
        panic!("on purpose, with a mutex");
    });
    ensure(result.join().is_err() && mutex.is_poisoned(), "a mutex is not poisoned")?;
    let mut values = vec![1, 2, 3];
    thread::scope(|scope| values.iter_mut().for_each(|v| drop(scope.spawn(move || *v *= 2))));
    ensure(values == [2, 4, 6], "scoped threads")
}

/// glibc's adaptive type is a plain mutex that spins a little.
fn adaptive_mutexes() -> Outcome {
    // As `PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP` has it, and as made with attributes.
    let mut mutexes = [libc::PTHREAD_MUTEX_INITIALIZER; 2];
    unsafe {
        (&raw mut mutexes[0]).cast::<i32>().add(4).write(3);
        let mut attr = std::mem::zeroed();
        libc::pthread_mutexattr_init(&mut attr);
        ensure(libc::pthread_mutexattr_settype(&mut attr, 3) == 0, "no adaptive mutexes")?;
        ensure(libc::pthread_mutex_init(&mut mutexes[1], &attr) == 0, "pthread_mutex_init")?;
        for m in &mut mutexes {
            ensure(libc::pthread_mutex_lock(m) == 0, "lock")?;
            ensure(libc::pthread_mutex_trylock(m) == libc::EBUSY, "an adaptive mutex is recursive")?;
            ensure(libc::pthread_mutex_unlock(m) == 0 && libc::pthread_mutex_trylock(m) == 0, "unlock")?;
        }
    }
    Ok(())
}

/// Writes its name down when it is dropped.
struct Noted(&'static str);

thread_local! {
    static LOG: Cell<Option<&'static Mutex<Vec<String>>>> = const { Cell::new(None) };
    static FIRST: RefCell<Option<Noted>> = const { RefCell::new(None) };
    static SECOND: RefCell<Option<Noted>> = const { RefCell::new(None) };
    static LATE: RefCell<Option<Noted>> = const { RefCell::new(None) };
}

impl Drop for Noted {
    fn drop(&mut self) {
        LOG.get().expect("a log").lock().expect("a log").push(self.0.to_owned());
        if self.0 == "second" {
            // A variable that a destructor uses for the first time has its own destructor run too.
            LATE.set(Some(Noted("late")));
        }
    }
}

fn thread_locals() -> Outcome {
    let end = |how: fn()| {
        let log: &'static Mutex<Vec<String>> = Box::leak(Box::default());
        let thread = thread::spawn(move || {
            LOG.set(Some(log));
            FIRST.set(Some(Noted("first")));
            SECOND.set(Some(Noted("second")));
            how();
        });
        let _ = thread.join();
        let mut seen = log.lock().map(|l| l.clone()).unwrap_or_default();
        seen.sort();
        seen
    };
    for (what, how) in [("return", (|| ()) as fn()), ("panic", || panic!("on purpose, with thread locals"))] {
        let seen = end(how);
        ensure(seen == ["first", "late", "second"], format!("destructors after a {what}: {seen:?}"))?;
    }
    keys()
}

/// Destructors of pthread keys run, again if one sets a value, for a bounded number of rounds.
fn keys() -> Outcome {
    static KEY: Mutex<(libc::pthread_key_t, u32)> = Mutex::new((0, 0));
    unsafe extern "C" fn again(value: *mut libc::c_void) {
        let key = {
            let mut k = KEY.lock().expect("a key");
            k.1 += 1;
            k.0
        };
        unsafe { libc::pthread_setspecific(key, value) };
    }
    let mut key = 0;
    ensure(unsafe { libc::pthread_key_create(&mut key, Some(again)) } == 0, "pthread_key_create")?;
    KEY.lock().expect("a key").0 = key;
    let set = move || unsafe { libc::pthread_setspecific(key, std::ptr::without_provenance(1)) };
    ensure(thread::spawn(set).join().ok() == Some(0), "pthread_setspecific")?;
    let rounds = KEY.lock().expect("a key").1;
    ensure(rounds == 4, format!("{rounds} rounds of destructors, not PTHREAD_DESTRUCTOR_ITERATIONS"))
}

/// Uses `pages` pages of the stack, one a call.
#[inline(never)]
fn deep(pages: usize) -> usize {
    let page = std::hint::black_box([pages as u8; PAGE]);
    if pages == 0 { 0 } else { 1 + deep(pages - 1) + usize::from(page[0] != pages as u8) }
}

fn stacks() -> Outcome {
    for (size, used) in [(4 << 20, 3584 << 10), (256 << 10, 200 << 10)] {
        let thread = thread::Builder::new().stack_size(size).spawn(move || {
            let mut attr: libc::pthread_attr_t = unsafe { std::mem::zeroed() };
            let (mut at, mut len) = (std::ptr::null_mut(), 0);
            unsafe {
                libc::pthread_getattr_np(libc::pthread_self(), &mut attr);
                libc::pthread_attr_getstack(&attr, &mut at, &mut len);
            }
            // A frame is a page and some.
            (deep(used / (PAGE + 256)), len)
        });
        let (depth, len) = thread.map_err(|e| e.to_string())?.join().map_err(|_| "a thread panicked")?;
        ensure(depth == used / (PAGE + 256), format!("a stack of {size}: {depth} pages"))?;
        ensure(len >= size, format!("a stack of {len}, not {size}"))?;
    }
    Ok(())
}

/// Does not return: a thread with a small stack runs into its guard page.
pub fn overflow() -> Outcome {
    let small = thread::Builder::new().name("small".into()).stack_size(64 << 10).spawn(|| deep(1 << 20));
    let depth = small.map_err(|e| e.to_string())?.join();
    Err(format!("a stack of 64 KiB had {depth:?} pages"))
}
