//! Tries one forbidden thing, named by the first argument. Whoever survives it prints FAILURE and ends with 0; the test expects that the
//! guest is ended instead, with a crash report.
//!
//! An ordinary program: under plain Linux some of these survive, which shows that they do what they say.

use std::arch::asm;
use std::hint::black_box;

unsafe extern "C" {
    fn malloc(len: usize) -> *mut u8;
    fn free(at: *mut u8);
    fn realloc(at: *mut u8, len: usize) -> *mut u8;
    fn mprotect(addr: *mut u8, len: usize, prot: i32) -> i32;
    fn mmap(addr: *mut u8, len: usize, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
    fn pthread_self() -> usize;
    fn pthread_getattr_np(thread: usize, attributes: *mut [u64; 7]) -> i32;
    fn pthread_attr_getstack(attributes: *const [u64; 7], at: *mut *mut u8, len: *mut usize) -> i32;
    /// The image's first byte, and where it ends, by the linker.
    static __ehdr_start: u8;
    static _end: u8;
}
const PROT_WRITE: i32 = 2;
const PROT_RW: i32 = 3;
const PROT_RX: i32 = 5;
const PROT_RWX: i32 = 7;
const MAP_PRIVATE_ANON: i32 = 0x22;
const PAGE: usize = 4096;
/// `mov eax, 42; ret`
const CODE: [u8; 6] = [0xb8, 42, 0, 0, 0, 0xc3];

#[inline(never)]
fn victim() -> u32 {
    black_box(7)
}

static CONSTANT: [u64; 4] = [1, 2, 3, 4];
/// Relocated, so it lies in the part that is read-only after relocation.
static RELOCATED: [fn() -> u32; 1] = [victim];

fn call(code: *const u8) -> u32 {
    let f: extern "C" fn() -> u32 = unsafe { std::mem::transmute(code) };
    f()
}

fn page_of<T>(at: *const T) -> *mut u8 {
    (at as usize & !(PAGE - 1)) as *mut u8
}

fn peek(what: &str, at: usize) -> String {
    format!("read {} {what}", unsafe { (at as *const u8).read_volatile() })
}

fn poke(what: &str, at: usize) -> String {
    unsafe { (at as *mut u8).write_volatile(1) };
    format!("wrote {what}")
}

/// Bytes of a large allocation.
const LARGE: usize = 1 << 20;

/// The addresses of three large allocations, one after the other, that are in use.
fn large() -> [usize; 3] {
    std::array::from_fn(|_| {
        let at = black_box(unsafe { malloc(LARGE) });
        unsafe { at.write_bytes(1, LARGE) };
        at.addr()
    })
}

/// Where the running thread's stack ends: its lowest address.
fn stack() -> usize {
    let (mut attributes, mut at, mut len) = ([0; 7], std::ptr::null_mut(), 0);
    let known = unsafe {
        pthread_getattr_np(pthread_self(), &mut attributes) == 0
            && pthread_attr_getstack(&attributes, &mut at, &mut len) == 0
    };
    assert!(known && len > 0);
    at.addr()
}

/// Does it on a thread of which another one has its stack below.
fn on_a_thread(f: impl FnOnce() -> String + Send + 'static) -> String {
    let below = std::thread::spawn(std::thread::park);
    let result = std::thread::spawn(f).join().unwrap_or_else(|_| "panicked instead".into());
    below.thread().unpark();
    result
}

/// Each case returns what it got away with.
fn attempt(case: &str) -> String {
    match case {
        "write-text" => {
            let at = victim as *mut u8;
            unsafe { at.write_volatile(0xc3) };
            "wrote to its own text".into()
        }
        "write-rodata" => {
            unsafe { (&raw const CONSTANT).cast::<u64>().cast_mut().write_volatile(9) };
            "wrote to a constant".into()
        }
        "write-relro" => {
            unsafe { (&raw const RELOCATED).cast::<u64>().cast_mut().write_volatile(9) };
            "wrote to a relocated constant".into()
        }
        "exec-heap" => {
            let code = black_box(CODE.to_vec());
            format!("executed the heap: {}", call(code.as_ptr()))
        }
        "exec-stack" => {
            let code = black_box(CODE);
            format!("executed the stack: {}", call(code.as_ptr()))
        }
        "exec-data" => {
            static mut DATA: [u8; 6] = CODE;
            format!("executed data: {}", call((&raw const DATA).cast()))
        }
        "null-read" => format!("read {} at 0", unsafe { black_box(std::ptr::null::<u8>()).read_volatile() }),
        "null-write" => {
            unsafe { black_box(std::ptr::null_mut::<u8>()).write_volatile(1) };
            "wrote to 0".into()
        }
        "null-page-end" => peek("the end of the first page", black_box(PAGE - 1)),
        // Each between two others, so that without guards there would be memory on both sides.
        "heap-below" => peek("before an allocation", large()[1] - 1),
        "heap-above" => peek("behind an allocation", large()[1] + LARGE),
        "heap-write-above" => poke("behind an allocation", large()[1] + LARGE),
        "heap-grown-above" => unsafe {
            let (all, len) = (large(), 3 * LARGE);
            peek("behind an allocation that has grown", realloc(all[2] as *mut u8, len).addr() + len)
        },
        "stack-below" => peek("below the stack", stack() - 1),
        "stack-page-below" => peek("a page below the stack", stack() - PAGE),
        "thread-stack-below" => on_a_thread(|| peek("below a thread's stack", stack() - 1)),
        "thread-stack-page-below" => on_a_thread(|| peek("a page below a thread's stack", stack() - PAGE)),
        "thread-stack-write-below" => on_a_thread(|| poke("below a thread's stack", stack() - 1)),
        "image-below" => peek("before the image", (&raw const __ehdr_start).addr() - 1),
        "image-above" => peek("behind the image", (&raw const _end).addr().next_multiple_of(PAGE)),
        "null-call" => format!("called 0: {}", call(black_box(std::ptr::null()))),
        // The addresses of nothing, and of Linux.
        "call-nowhere" => format!("called nothing: {}", call(black_box(std::ptr::without_provenance(0x1000_0000)))),
        "call-kernel" => {
            format!("called a kernel: {}", call(black_box(std::ptr::without_provenance(0xffff_ffff_8100_0000))))
        }
        "stack-overflow" => {
            fn deeper(n: u64) -> u64 {
                let frame = black_box([n; 64]);
                if n == 0 { frame[0] } else { deeper(n - 1) + frame[1] }
            }
            format!("went {} deep", deeper(black_box(1 << 40)))
        }
        "thread-stack-overflow" => on_a_thread(|| attempt("stack-overflow")),
        // Here it is an errno that is expected, not an end: the guest reports REFUSED.
        "mprotect-exec" | "mprotect-text-write" | "mmap-exec" | "mprotect-wx" => refusal(case),
        // Not forbidden, but shown: each start has its own.
        "secrets" => secrets(),
        // Nor this: for whoever looks at it from outside.
        "stay" => loop {
            std::thread::park();
        },
        "double-free" => unsafe {
            let at = black_box(malloc(100));
            free(at);
            free(at);
            "freed twice".into()
        },
        "double-free-large" => unsafe {
            let at = black_box(malloc(1 << 20));
            free(at);
            free(at);
            "freed twice".into()
        },
        "free-inside" => unsafe {
            free(black_box(malloc(100)).add(16));
            "freed the middle of an allocation".into()
        },
        "free-stack" => unsafe {
            let mut local = black_box([0u64; 8]);
            free(local.as_mut_ptr().cast());
            "freed the stack".into()
        },
        // What has been freed is not what the next call gets.
        "reuse" => unsafe {
            for size in [16, 64, 100, 500, 4000] {
                let first = black_box(malloc(size));
                free(first);
                let second = black_box(malloc(size));
                if first == second {
                    return format!("{size} bytes were handed out again at once");
                }
                free(second);
            }
            refused("each got another place")
        },
        // Nor if it is the only free memory of its size.
        "reuse-when-full" => unsafe {
            for size in [16, 64, 500] {
                let all: Vec<*mut u8> = (0..1024).map(|_| black_box(malloc(size))).collect();
                let freed = &all[500..508];
                for at in freed {
                    free(*at);
                    if freed.contains(&black_box(malloc(size))) {
                        return format!("{size} bytes were handed out again at once");
                    }
                }
            }
            refused("each got another place")
        },
        // UMIP: where the kernel's tables are is not for programs.
        "sgdt" => {
            let mut table = [0u8; 10];
            unsafe { asm!("sgdt [{}]", in(reg) table.as_mut_ptr()) };
            format!("read the descriptor table's address: {table:x?}")
        }
        // Nor are there others than the shim's own few: of a local table not even its access rights can be read.
        "local-descriptors" => {
            let found = (4u32..0x1_0000).step_by(8).find(|selector| {
                let present: u8;
                unsafe { asm!("lar {0:e}, {1:e}", "setz {2}", out(reg) _, in(reg) selector, out(reg_byte) present) };
                present != 0
            });
            found.map_or_else(|| refused("none is there"), |selector| format!("{selector:#x} is a descriptor"))
        }
        // The manifest names neither ports nor destinations.
        "listen" => network(std::net::TcpListener::bind("0.0.0.0:8080")),
        "listen-any-port" => network(std::net::TcpListener::bind("[::]:0")),
        "bind-datagrams" => network(std::net::UdpSocket::bind("0.0.0.0:53")),
        "connect" => network(std::net::TcpStream::connect("192.0.2.1:80")),
        "connect-gateway" => network(std::net::TcpStream::connect("10.0.2.2:80")),
        "connect-metadata" => network(std::net::TcpStream::connect("169.254.169.254:80")),
        "datagram" => network(std::net::UdpSocket::bind("0.0.0.0:0").and_then(|s| s.send_to(b"x", "192.0.2.1:9"))),
        // A raw system call: no engine may carry it out. `read`-only calls would prove little, so: open, socket, execve by number.
        "syscall-open" => raw(2, c"/etc/passwd".as_ptr() as u64, 0, 0),
        // Its first argument is the number of the gate's `exit`: only the gate's own page may call that.
        "syscall-close" => raw(3, 0, 0, 0),
        "syscall-socket" => raw(41, 2, 1, 0),
        "syscall-execve" => raw(59, c"/bin/sh".as_ptr() as u64, 0, 0),
        "syscall-mprotect" => {
            let code = vec![0u8; 2 * PAGE];
            raw(10, page_of(&raw const code[PAGE - 1]) as u64, PAGE as u64, PROT_RWX as u64)
        }
        "int80" => {
            let result: u32;
            // getpid of the 32-bit table.
            unsafe {
                asm!("int 0x80", inlateout("eax") 20u32 => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _)
            };
            format!("int 0x80 returned {}", result as i32)
        }
        "hlt" => {
            unsafe { asm!("hlt") };
            "halted the CPU".into()
        }
        "cr3" => {
            let value: u64;
            unsafe { asm!("mov {}, cr3", out(reg) value) };
            format!("read cr3: {value:#x}")
        }
        "out" => {
            unsafe { asm!("out dx, al", in("dx") 0xf4u16, in("al") 0u8) };
            "wrote to an I/O port".into()
        }
        other => {
            eprintln!("no such case: {other}");
            std::process::exit(2)
        }
    }
}

fn raw(number: u64, a: u64, b: u64, c: u64) -> String {
    let result: i64;
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, out("rcx") _, out("r11") _)
    };
    // An errno is a refusal too: where a raw system call can be bounced to the libc door, it gets the door's answer.
    if result < 0 { refused(&format!("errno {}", -result)) } else { format!("system call {number} returned {result}") }
}

/// Prints what must differ from start to start, and ends. The second argument is where in the image the library OS's pointer to the boot
/// page is, the others are words of that page: a name, `=`, an offset.
fn secrets() -> ! {
    use std::hash::{BuildHasher, RandomState};
    let canary: u64;
    unsafe { asm!("mov {}, fs:[0x28]", out(reg) canary, options(nostack, readonly, preserves_flags)) };
    let local = black_box(0u8);
    let thread = std::thread::spawn(|| {
        let local = black_box(0u8);
        (&raw const local).addr()
    });
    println!("image {:x}", attempt as *const u8 as u64);
    println!("heap {:x}", Box::into_raw(Box::new([0u8; 1000])).addr());
    println!("large {:x}", vec![1u8; 1 << 20].leak().as_ptr().addr());
    println!("stack {:x}", (&raw const local).addr());
    println!("thread {:x}", thread.join().unwrap_or(0));
    println!("canary {canary:x}");
    println!("random {:x}", RandomState::new().hash_one(1));
    let number = |word: &str| usize::from_str_radix(word, 16).expect("a hexadecimal number");
    let mut words = std::env::args().skip(2);
    if let Some(at) = words.next() {
        let boot = unsafe { (&raw const __ehdr_start).byte_add(number(&at)).cast::<*const u8>().read_volatile() };
        assert_eq!(unsafe { boot.cast::<[u8; 8]>().read_volatile() }, *b"DONJBOOT");
        println!("boot {:x}", boot.addr());
        for word in words {
            let (name, offset) = word.split_once('=').expect("NAME=OFFSET");
            println!("{name} {:x}", unsafe { boot.byte_add(number(offset)).cast::<u64>().read_volatile() });
        }
    }
    std::process::exit(0)
}

/// Here, too: an errno, at once.
fn network<T>(result: std::io::Result<T>) -> String {
    match result {
        Ok(_) => "reached the network".into(),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => refused(&e.to_string()),
        Err(e) => format!("failed for another reason: {e}"),
    }
}

fn refused(how: &str) -> ! {
    println!("REFUSED: {how}");
    std::process::exit(3)
}

fn refusal(case: &str) -> String {
    let heap = vec![0u8; 4 * PAGE];
    let heap_page = unsafe { page_of(heap.as_ptr()).add(PAGE) };
    let result = match case {
        "mprotect-exec" => unsafe { mprotect(heap_page, PAGE, PROT_RX) },
        "mprotect-wx" => unsafe { mprotect(heap_page, PAGE, PROT_RWX) },
        "mprotect-text-write" => unsafe { mprotect(page_of(victim as *const u8), PAGE, PROT_RW | PROT_WRITE) },
        _ => {
            let at = unsafe { mmap(std::ptr::null_mut(), PAGE, PROT_RWX, MAP_PRIVATE_ANON, -1, 0) };
            if at as isize == -1 { -1 } else { 0 }
        }
    };
    if result == -1 {
        refused(&std::io::Error::last_os_error().to_string());
    }
    format!("{case} succeeded")
}

fn main() {
    let case = std::env::args().nth(1).unwrap_or_default();
    println!("trying {case}");
    let survived = attempt(&case);
    println!("FAILURE: {survived}");
}
