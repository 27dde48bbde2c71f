//! What the monitor's tests run as a guest: it does what its first argument says, directly on the gate.

#![no_std]
#![no_main]

extern crate alloc;

mod heap;
mod net;

use core::arch::{asm, global_asm};
use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};

use donjon_abi::boot::{BootPage, Range};
use donjon_abi::{Call, Frame, IoVec, Prot, ready};

global_asm!(
    ".globl _start, donjon_upcall, donjon_fault",
    "_start: call {main}",
    "ud2",
    "donjon_upcall: lock inc qword ptr [rip + {ticks}]",
    "popfq",
    "ret 128",
    "donjon_fault: jmp {fault}",
    main = sym main,
    ticks = sym TICKS,
    fault = sym fault,
);

// What the compiler takes for granted.
global_asm!(
    ".globl memcpy, memmove, memset, memcmp, bcmp, rust_eh_personality",
    "memmove: cmp rdi, rsi",
    "ja 2f",
    "memcpy: mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    "2: mov rax, rdi",
    "mov rcx, rdx",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "memset: mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "bcmp:",
    "memcmp: xor eax, eax",
    "xor ecx, ecx",
    "3: test rdx, rdx",
    "jz 4f",
    "movzx eax, byte ptr [rdi]",
    "movzx ecx, byte ptr [rsi]",
    "inc rdi",
    "inc rsi",
    "dec rdx",
    "sub eax, ecx",
    "jz 3b",
    "4: ret",
    "rust_eh_personality: ud2",
);

static TICKS: AtomicU64 = AtomicU64::new(0);
static BOOT: AtomicU64 = AtomicU64::new(0);
static SECOND_FAULT: AtomicU64 = AtomicU64::new(0);
/// Pointers in read-only data: relocated by the host, then read only.
static WORDS: [&str; 3] = ["relocated", "words", "work"];
/// A pointer in writable data.
static mut WRITABLE: &AtomicU64 = &TICKS;

fn boot() -> &'static BootPage {
    unsafe { &*(BOOT.load(Ordering::Relaxed) as *const BootPage) }
}

fn gate(call: Call, a: u64, b: u64, c: u64) -> i64 {
    let gate: extern "sysv64" fn(u64, u64, u64, u64, u64) -> i64 = unsafe { core::mem::transmute(boot().gate) };
    gate(call as u64, a, b, c, 0)
}

struct Out(u64);

impl Write for Out {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        let mut rest = s.as_bytes();
        while !rest.is_empty() {
            let n = gate(Call::Console, rest.as_ptr() as u64, rest.len() as u64, self.0);
            if n < 0 {
                return Err(core::fmt::Error);
            }
            rest = &rest[n as usize..];
        }
        Ok(())
    }
}

macro_rules! say {
    ($($t:tt)*) => {{ let _ = core::fmt::Write::write_fmt(&mut $crate::Out(1), format_args!("{}\n", format_args!($($t)*))); }};
}

use say;

fn exit(code: u64) -> ! {
    gate(Call::Exit, code, 0, 0);
    loop {}
}

fn report(text: &str, code: u64) -> ! {
    gate(Call::Fault, text.as_ptr() as u64, text.len() as u64, code);
    loop {}
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let _ = writeln!(Out(2), "{info}");
    report("panic", 101)
}

struct Text([u8; 512], usize);

impl Write for Text {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        let n = s.len().min(512 - self.1);
        self.0[self.1..self.1 + n].copy_from_slice(&s.as_bytes()[..n]);
        self.1 += n;
        Ok(())
    }
}

extern "sysv64" fn fault(vector: u64, address: u64, rip: u64, rsp: u64, rbp: u64, error: u64) -> ! {
    if SECOND_FAULT.load(Ordering::Relaxed) != 0 {
        unsafe { (8 as *mut u64).write_volatile(1) };
    }
    let here = &raw const vector as u64;
    let stack = boot().fault_stack;
    let on_fault_stack = here > stack.base && here < stack.base + stack.len;
    let mut t = Text([0; 512], 0);
    let base = boot().image.base;
    let _ = writeln!(t, "vector {vector} address {address:#x} error {error} at image+{:#x}", rip.wrapping_sub(base));
    let _ = writeln!(t, "rsp {rsp:#x} rbp {rbp:#x} fault stack {on_fault_stack}");
    report(core::str::from_utf8(&t.0[..t.1]).unwrap_or("?"), 70)
}

fn strings(r: Range) -> impl Iterator<Item = &'static str> {
    let bytes = unsafe { core::slice::from_raw_parts(r.base as *const u8, r.len as usize) };
    bytes.split_inclusive(|b| *b == 0).map(|s| core::str::from_utf8(&s[..s.len() - 1]).unwrap_or("?"))
}

fn now() -> u64 {
    let clock: extern "sysv64" fn(i32, *mut [i64; 2]) -> i32 = unsafe { core::mem::transmute(boot().clock.vdso) };
    let mut ts = [0i64; 2];
    assert_eq!(clock(1, &mut ts), 0);
    ts[0] as u64 * 1_000_000_000 + ts[1] as u64
}

fn raw(nr: i64, args: [u64; 6]) -> i64 {
    let result;
    unsafe {
        asm!("syscall", inlateout("rax") nr => result, in("rdi") args[0], in("rsi") args[1], in("rdx") args[2], in("r10") args[3],
             in("r8") args[4], in("r9") args[5], lateout("rcx") _, lateout("r11") _);
    }
    result
}

fn number(s: Option<&str>) -> u64 {
    let s = s.unwrap_or("");
    match s.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
        None => s.parse().unwrap(),
    }
}

extern "sysv64" fn main(page: u64) -> ! {
    BOOT.store(page, Ordering::Relaxed);
    let mut args = strings(boot().args);
    let name = args.next();
    let what = args.next().unwrap_or("hello");
    let r = boot().reserve;
    match what {
        "hello" => {
            say!("hello from {}", name.unwrap_or("?"));
            exit(7)
        }
        "args" => {
            strings(boot().args).for_each(|a| say!("arg {a}"));
            strings(boot().env).for_each(|e| say!("env {e}"));
            exit(0)
        }
        "stderr" => {
            let _ = Out(2).write_str("to stderr\n");
            exit(0)
        }
        "relocations" => {
            for w in &WORDS {
                say!("{w}");
            }
            TICKS.store(0, Ordering::Relaxed);
            let w = unsafe { (&raw const WRITABLE).read_volatile() };
            say!("same {}", core::ptr::eq(w, &TICKS));
            exit(0)
        }
        "boot" => {
            let b = boot();
            say!("engine {}", core::str::from_utf8(&b.engine).unwrap().trim_end_matches('\0'));
            say!("memory {}", b.memory);
            say!(
                "image {:#x} reserve {:#x} stack {:#x} boot {:#x} gate {:#x}",
                b.image.base,
                r.base,
                b.stack.base,
                page,
                b.gate
            );
            say!("entropy {}", b.entropy.iter().any(|e| *e != 0));
            let t = now();
            say!("clock {}", t > 0 && now() >= t);
            exit(0)
        }
        "maps" => {
            // Everything that is readable at the usual places of a monitor must be gone.
            exit(0)
        }
        "console-big" => {
            let line = [b'x'; 1000];
            let mut left = number(args.next());
            while left > 0 {
                let n = left.min(1000);
                let _ = Out(1).write_str(core::str::from_utf8(&line[..n as usize]).unwrap());
                left -= n;
            }
            exit(0)
        }
        "console-bad" => {
            let zero = gate(Call::Console, page, 0, 1);
            let stream = gate(Call::Console, page, 1, 3);
            let pointer = gate(Call::Console, 8, 1, 1);
            say!("{zero} {stream} {pointer}");
            exit(0)
        }
        "fault-call" => report("the guest says: \x1b[2J went wrong", 134),
        "null" => {
            unsafe { (16 as *mut u64).write_volatile(1) };
            exit(0)
        }
        "ud2" => unsafe { asm!("ud2", options(noreturn)) },
        "divide" => {
            unsafe {
                asm!("xor ecx, ecx", "mov eax, 1", "xor edx, edx", "div ecx", out("eax") _, out("ecx") _, out("edx") _)
            };
            exit(0)
        }
        "double-fault" => {
            SECOND_FAULT.store(1, Ordering::Relaxed);
            unsafe { (16 as *mut u64).write_volatile(1) };
            exit(0)
        }
        "overflow" => {
            // Push until the guard page.
            unsafe { asm!("2: push rax", "jmp 2b", options(noreturn)) }
        }
        "overflow-tick" => unsafe {
            // Room for 64 bytes only: the tick finds none, and is reported as a fault of this loop.
            asm!("lea rsp, [{s} + 64]", "2: jmp 2b", s = in(reg) boot().stack.base, options(noreturn))
        },
        "write-text" => {
            let at = main as *const () as *mut u8;
            unsafe { at.write_volatile(0xc3) };
            exit(0)
        }
        "write-relro" => {
            let at = (&raw const WORDS).cast_mut().cast::<u64>();
            unsafe { at.write_volatile(0) };
            exit(0)
        }
        "write-boot" => {
            unsafe { (page as *mut u64).write_volatile(0) };
            exit(0)
        }
        "write-gate" => {
            unsafe { (boot().gate as *mut u8).write_volatile(0xc3) };
            exit(0)
        }
        "write-config" => {
            unsafe { ((boot().gate & !4095) as *mut u8).add(4096).write_volatile(0) };
            exit(0)
        }
        "execute-reserve" => {
            assert_eq!(gate(Call::Protect, r.base, 4096, Prot::ReadWrite as u64), 0);
            unsafe { (r.base as *mut u8).write_volatile(0xc3) };
            let f: extern "sysv64" fn() = unsafe { core::mem::transmute(r.base) };
            f();
            exit(0)
        }
        "execute-stack" => {
            let code = [0xc3u8; 16];
            let f: extern "sysv64" fn() = unsafe { core::mem::transmute(code.as_ptr()) };
            f();
            exit(0)
        }
        "reserve" => {
            let page = |i: u64| r.base + i * 4096;
            let p = |at, len, prot: u64| gate(Call::Protect, at, len, prot);
            assert_eq!(p(page(0), 16 * 4096, 2), 0);
            let word = page(3) as *mut u64;
            unsafe {
                assert_eq!(word.read_volatile(), 0);
                word.write_volatile(42);
            }
            assert_eq!(p(page(3), 4096, 1), 0);
            assert_eq!(unsafe { word.read_volatile() }, 42);
            assert_eq!(p(page(3), 4096, 2), 0);
            assert_eq!(gate(Call::Discard, page(3), 4096, 0), 0);
            assert_eq!(unsafe { word.read_volatile() }, 0);
            assert_eq!(p(page(3), 4096, 0), 0);
            // The last page is usable, the next is not ours.
            assert_eq!(p(r.base + r.len - 4096, 4096, 2), 0);
            unsafe { ((r.base + r.len - 8) as *mut u64).write_volatile(1) };
            assert_eq!(p(r.base + r.len - 4096, 8192, 2), -14);
            assert_eq!(p(r.base - 4096, 8192, 2), -14);
            assert_eq!(p(r.base, u64::MAX - 4095, 2), -14);
            assert_eq!(p(r.base + 1, 4096, 2), -22);
            assert_eq!(p(r.base, 100, 2), -22);
            assert_eq!(p(r.base, 4096, 3), -22);
            assert_eq!(p(r.base, 4096, 7), -22);
            assert_eq!(p(boot().image.base, 4096, 2), -14);
            assert_eq!(gate(Call::Discard, boot().image.base, 4096, 0), -14);
            assert_eq!(gate(Call::Discard, r.base + r.len, 4096, 0), -14);
            assert_eq!(gate(Call::SetTls, 0, 0, 0), -38);
            let g: extern "sysv64" fn(u64, u64, u64, u64, u64) -> i64 = unsafe { core::mem::transmute(boot().gate) };
            assert_eq!(g(9, 0, 0, 0, 0), -38);
            assert_eq!(g(u64::MAX, 0, 0, 0, 0), -38);
            say!("ok");
            exit(0)
        }
        "eat" => {
            let bytes = number(args.next()) & !4095;
            assert_eq!(gate(Call::Protect, r.base, bytes, 2), 0);
            let mut at = r.base;
            while at < r.base + bytes {
                unsafe { (at as *mut u64).write_volatile(1) };
                at += 4096;
            }
            // Long enough to be seen.
            let end = now() + 100_000_000;
            while now() < end {}
            say!("ate {bytes}");
            exit(0)
        }
        "tick" => {
            let mut spins = 0u64;
            let (mut seen, mut sum) = (0, 0u64);
            while seen < 5 {
                seen = TICKS.load(Ordering::Relaxed);
                spins += 1;
                sum = sum.wrapping_mul(31).wrapping_add(spins);
            }
            say!("ticks {}", core::hint::black_box(sum) > 0);
            exit(0)
        }
        "red-zone" => {
            // Values below rsp and in all registers survive ticks.
            let bad: u64;
            unsafe {
                asm!(
                    "2: mov [rsp - 8], rax", "mov [rsp - 128], rax", "mov rcx, rax", "not rcx", "mov rdx, 2000",
                    "3: dec rdx", "jnz 3b",
                    "cmp [rsp - 8], rax", "jne 4f", "cmp [rsp - 128], rax", "jne 4f", "not rcx", "cmp rcx, rax", "jne 4f",
                    "inc rax", "cmp qword ptr [{t}], 20", "jb 2b", "xor eax, eax", "jmp 5f", "4: mov eax, 1", "5:",
                    t = in(reg) &raw const TICKS, inout("rax") 1u64 => bad, out("rcx") _, out("rdx") _,
                );
            }
            say!("bad {bad}");
            exit(bad)
        }
        "wait" | "drain-wait" => {
            let until = now() + if what == "wait" { 0 } else { 200_000_000 };
            while now() < until {
                let mut bytes = [0u8; 2048];
                let iov = IoVec { base: bytes.as_mut_ptr() as u64, len: 2048 };
                let mut f = Frame { iov: &raw const iov as u64, iov_count: 1, len: 0 };
                gate(Call::NetRecv, &raw mut f as u64, 1, 0);
                // Without sleep the wait below would fall into a tick.
                gate(Call::Wait, 1_000_000, 0, 0);
            }
            let t = now();
            let w = gate(Call::Wait, 20_000_000, 0, 0);
            let took = now() - t;
            say!("wait {w} {}", took >= 19_000_000);
            say!("wait {}", gate(Call::Wait, 0, 0, 0));
            exit(0)
        }
        "stop" => {
            say!("ready");
            loop {
                let w = gate(Call::Wait, u64::MAX, 0, 0) as u64;
                if w & ready::STOP != 0 {
                    // Once only.
                    let again = gate(Call::Wait, 400_000_000, 0, 0) as u64;
                    say!("stop {again}");
                    exit(5)
                }
            }
        }
        "deaf" => {
            say!("ready");
            loop {
                gate(Call::Wait, u64::MAX, 0, 0);
            }
        }
        "spin" => {
            say!("ready");
            loop {
                core::hint::spin_loop();
            }
        }
        "no-net" => {
            let mut byte = [0u8; 64];
            let iov = IoVec { base: byte.as_mut_ptr() as u64, len: 64 };
            let mut f = Frame { iov: &raw const iov as u64, iov_count: 1, len: 0 };
            say!("{} {}", gate(Call::NetSend, &raw mut f as u64, 1, 0), gate(Call::NetRecv, &raw mut f as u64, 1, 0));
            exit(0)
        }
        "arp" => arp(),
        "junk" => {
            junk(number(args.next()), number(args.next()));
            arp()
        }
        "echo" => net::echo(number(args.next()), net::Serves::Echo),
        "chatter" => net::echo(0, net::Serves::Chatter),
        "http" => net::echo(0, net::Serves::Http),
        "forge" => net::forge(),
        "misplace" => net::misplace(number(args.next()) as u16),
        "flood" => net::flood(number(args.next()) as u16, number(args.next())),
        "connect" => net::connect(args.next().unwrap_or("?"), number(args.next())),
        "datagram" => net::datagram(args.next().unwrap_or("?")),
        "syscall" => {
            let nr = number(args.next()) as i64;
            let mut a = [0; 6];
            for (slot, arg) in a.iter_mut().zip(args) {
                *slot = match arg {
                    "reserve" => r.base,
                    "image" => boot().image.base,
                    "stub" => boot().gate & !4095,
                    "stack" => boot().stack.base,
                    "text" => page,
                    n => number(Some(n)),
                };
            }
            say!("try");
            let result = raw(nr, a);
            say!("SURVIVED {result}");
            exit(0)
        }
        "int80" => {
            say!("try");
            unsafe { asm!("int 0x80", inout("eax") 20 => _) };
            say!("SURVIVED");
            exit(0)
        }
        "vsyscall" => {
            say!("try");
            let f: extern "sysv64" fn(u64) -> i64 = unsafe { core::mem::transmute(0xffff_ffff_ff60_0400u64) };
            f(0);
            say!("SURVIVED");
            exit(0)
        }
        "everything" => {
            // Uses every rule of the filter: see the test that none is redundant.
            gate(Call::Protect, r.base, 4096, 2);
            gate(Call::Discard, r.base, 4096, 0);
            let mut ts = [0u64; 2];
            raw(228, [1, &raw mut ts as u64, 0, 0, 0, 0]);
            let mut byte = [0u8; 64];
            let iov = IoVec { base: byte.as_mut_ptr() as u64, len: 64 };
            let mut f = Frame { iov: &raw const iov as u64, iov_count: 1, len: 0 };
            gate(Call::NetRecv, &raw mut f as u64, 1, 0);
            gate(Call::Wait, 1_000_000, 0, 0);
            while TICKS.load(Ordering::Relaxed) < 2 {}
            say!("all");
            exit(0)
        }
        other => panic!("unknown {other}"),
    }
}

/// Sends frames that are wrong in all ways: random ones, and ones that begin well.
fn junk(seed: u64, count: u64) {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut frame = [0u8; 12 + 1600];
    for _ in 0..count {
        for word in frame.chunks_exact_mut(8) {
            word.copy_from_slice(&next().to_le_bytes());
        }
        if next() % 4 != 0 {
            frame[..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        }
        let e = &mut frame[12..];
        if next() % 8 != 0 {
            e[..6].copy_from_slice(&[0x52, 0x55, 10, 0, 2, 2]);
        }
        let (kind, protocol) = (next() % 4, [1u8, 6, 17, 58][(next() % 4) as usize]);
        match kind {
            0 => {
                e[12..16].copy_from_slice(&[8, 0, 0x45 + (next() % 16 / 15) as u8, 0]);
                let len = (next() % 1500) as u16;
                e[16..18].copy_from_slice(&len.to_be_bytes());
                if next() % 2 == 0 {
                    e[20..22].fill(0);
                }
                e[23] = protocol;
                e[26..34].copy_from_slice(&[10, 0, 2, 15, 10, 0, 2, 2]);
                e[24..26].fill(0);
                let sum: u32 = e[14..34].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
                let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
                e[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            1 => {
                e[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
                let len = (next() % 1500) as u16;
                e[18..20].copy_from_slice(&len.to_be_bytes());
                e[20] = if next() % 3 == 0 { [0, 43, 44, 60][(next() % 4) as usize] } else { protocol };
                e[22..24].copy_from_slice(&[0xfd, 0]);
                e[24..37].fill(0);
                e[37] = 0x15;
                e[38..40].copy_from_slice(&[0xfd, 0]);
                e[40..53].fill(0);
                e[53] = 2;
            }
            2 => e[12..20].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4]),
            _ => {}
        }
        let len = next() % 1612 + 1;
        let first = len.min(12);
        let iov = [
            IoVec { base: frame.as_ptr() as u64, len: first },
            IoVec { base: frame.as_ptr() as u64 + 12, len: len - first },
        ];
        let mut f = Frame { iov: iov.as_ptr() as u64, iov_count: 2, len: 0 };
        while gate(Call::NetSend, &raw mut f as u64, 1, 0) == 0 {
            gate(Call::Wait, 1_000_000, 0, 0);
        }
    }
    // What came back does not matter.
    let end = now() + 300_000_000;
    while now() < end {
        let mut bytes = [0u8; 2048];
        let iov = IoVec { base: bytes.as_mut_ptr() as u64, len: 2048 };
        let mut f = Frame { iov: &raw const iov as u64, iov_count: 1, len: 0 };
        if gate(Call::NetRecv, &raw mut f as u64, 1, 0) == 0 {
            gate(Call::Wait, 10_000_000, 0, 0);
        }
    }
}

/// Asks who has 10.0.2.2 and prints the answer.
fn arp() -> ! {
    let mut frame = [0u8; 12 + 42];
    frame[10] = 1;
    let e = &mut frame[12..];
    e[..6].fill(0xff);
    e[6..12].copy_from_slice(&boot().net.mac);
    e[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    e[22..28].copy_from_slice(&boot().net.mac);
    e[28..32].copy_from_slice(&boot().net.ipv4);
    e[38..42].copy_from_slice(&boot().net.ipv4_gateway);
    let iov = [IoVec { base: frame.as_ptr() as u64, len: 12 }, IoVec { base: frame.as_ptr() as u64 + 12, len: 42 }];
    let mut f = Frame { iov: iov.as_ptr() as u64, iov_count: 2, len: 0 };
    assert_eq!(gate(Call::NetSend, &raw mut f as u64, 1, 0), 1);
    let until = now() + 2_000_000_000;
    loop {
        let mut answer = [0u8; 2048];
        let iov = IoVec { base: answer.as_mut_ptr() as u64, len: 2048 };
        let mut f = Frame { iov: &raw const iov as u64, iov_count: 1, len: 0 };
        match gate(Call::NetRecv, &raw mut f as u64, 1, 0) {
            0 => {
                // A tick may end the wait early.
                gate(Call::Wait, 2_000_000_000, 0, 0);
                assert!(now() < until, "nobody answers");
            }
            n => {
                assert_eq!(n, 1);
                if answer[24..26] == [8, 6] && answer[32..34] == [0, 2] {
                    say!("gateway {:x?}", &answer[34..40]);
                    exit(0)
                }
            }
        }
    }
}
