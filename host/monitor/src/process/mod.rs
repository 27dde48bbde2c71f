//! The process engine: the guest is a process of this host that can do nothing but what the gate offers.
//!
//! The monitor prepares everything ([`layout`], [`child::Plan`]), clones itself, and serves console and user-mode networking until
//! the child ends. The child maps the guest at random addresses, unmaps all else, and puts a seccomp filter on
//! ([`seccomp`]) before the guest's first instruction. Gate calls are system calls made by a page of assembly ([`stub`]).

mod child;
mod layout;
pub mod seccomp;
mod stub;
mod sys;
mod vdso;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use donjon_abi::boot::{BootPage, Clock, Range, flags};
use donjon_abi::{FAULT_MAX, PAGE};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::console::{Relay, Stream};
use crate::error::Error;
use crate::exit::ExitStatus;
use crate::jail::{self, Gate, Place};
use crate::net::Link;
use crate::options::{Protection, RunOptions};
use crate::reactor::{Interest, Reactor, Ready, Token};
use crate::secrets::{self, Region};
use crate::signals::{CPU_TIMER, CpuTimer, Signals};
use crate::source::Source;
use crate::stop::{ASKED, Action, Stop};
use crate::symbols::Names;
use crate::usernet::Wire;
use child::{Plan, Rseq, Step};
use layout::{Layout, Lengths};
use stub::Config;

const SIGNALS: Token = 0;
const CHILD: Token = 1;
const OUTPUT: (Token, Token) = (2, 3);
const ERRORS: (Token, Token) = (4, 5);
/// Tokens from here on are the network's.
const NETWORK: Token = 16;

/// Processor time of the guest between two looks at its memory.
const MEMORY_PERIOD_NS: i64 = 20_000_000;
/// What a guest may use beyond its budget before it is ended: stacks of the gate, and what the kernel counts late.
const MEMORY_SLACK: u64 = 1 << 20;
/// Least reserve that a guest can start with.
const MEMORY_LEAST: u64 = 1 << 20;

/// Why this engine cannot run here, if it cannot.
pub fn unfit() -> Option<String> {
    if !fsgsbase() {
        return Some("the processor or kernel does not let programs set their FS base (FSGSBASE, Linux 5.9)".into());
    }
    None
}

/// Runs the guest to its end.
pub(crate) fn run(mut source: Source, options: &RunOptions) -> Result<ExitStatus, Error> {
    if let Some(reason) = unfit() {
        return Err(Error::EngineUnavailable { engine: "process", reason, hint: "use --engine qemu" });
    }
    source.make_executable().map_err(Error::host("cannot copy the image into memory"))?;
    let patience = source.stop_timeout(options);
    let mut link = Link::open(options, &source.manifest, Wire::Offload)?;
    let mut reactor = Reactor::new().map_err(Error::host("cannot create an epoll instance"))?;
    let signals = Signals::take().map_err(Error::host("cannot take signals over"))?;
    reactor.add(&signals, SIGNALS, Interest::READ).map_err(Error::host("cannot watch signals"))?;

    let (gate, wait) = Gate::new().map_err(Error::host("cannot create a pipe"))?;
    let root = jail::is_root();
    let place = jail::leave_the_network(root, &link.needs(), options);
    let (guest, pipes, said) = start(&source, options, &link, (wait, &gate), (place, root))?;
    let (names, of_errors) = (Names::new(&source.path), Names::new(&source.path));
    let mut plan = jail::Plan::new(link.needs(), root, names.bytes() + of_errors.bytes(), options);
    plan.place = place;
    let output =
        Relay::new(pipes.output, Stream::Output, OUTPUT, &reactor).map_err(Error::host("cannot watch the console"))?;
    let errors = Relay::new(pipes.errors, Stream::Errors, ERRORS, &reactor)
        .map_err(Error::host("cannot watch the console"))?
        .with_names(of_errors);
    reactor.add(&guest.child.0, CHILD, Interest::READ).map_err(Error::host("cannot watch the guest"))?;
    drop(source);
    let jail = jail::begin(&plan);
    // The filter was on its way to the kernel all the time.
    let device = link.decide()?;
    plan.network = link.needs();
    let mut guests = describe(&guest, said);
    if let Some(keeper) = link.describe() {
        guests = keeper.after(guests);
    }
    let link = link.into_running(NETWORK, &reactor)?;
    let stop = Stop::new(patience);
    let mut run = Running { output, errors, report: pipes.report, link, guest, stop, killed: None };
    if let Some(status) =
        jail.complete(&plan).after(guests).before_the_guest(options, |line| run.errors.say(line, &reactor))?
    {
        return Ok(status);
    }
    gate.open(device);
    let mut ready = Vec::new();
    loop {
        let timeout = run.timeout();
        reactor.wait(timeout, &mut ready).map_err(Error::host("cannot wait for events"))?;
        if run.handle(&ready, &signals, &reactor)? {
            break;
        }
    }
    run.end(&reactor, signals, names)
}

/// The jail of the guest's own process, which is put on before its first instruction. It says itself whether its root has no files.
fn describe(guest: &Guest, said: OwnedFd) -> jail::Report {
    let mut report = jail::Report::new("the guest's process");
    report.add("user", Ok("nobody, or the same user as the monitor".into()));
    match guest.namespaces {
        true => {
            report.add("namespaces", Ok("network, PID, IPC, UTS and cgroup (and user, of an ordinary user)".into()))
        }
        false => report.refused("namespaces", "the host refused them to this user"),
    }
    let mut bare = [0];
    match rustix::io::retry_on_intr(|| rustix::io::read(&said, &mut bare)) {
        Ok(1) if bare == [1] => report.add("root", Ok("a folder that only lists its descriptors".into())),
        _ => report.refused("root", "the host's, which refused another one; no call opens anything in it"),
    }
    let rules = seccomp::RULES.len();
    for (layer, what) in [
        ("memory", "the guest's only: the monitor's is unmapped; nothing writable is executable"),
        ("descriptors", "console, crash report, network device"),
        ("resource limits", "no processes, files, core dumps or locked memory"),
        ("capabilities", "all sets empty"),
        ("no new privileges", "no program can give rights back"),
    ] {
        report.add(layer, Ok(what.into()));
    }
    report.add("seccomp", Ok(format!("{rules} system calls; any other one ends the guest")));
    report
}

/// How long a guest's process that still has its rights is asked to end, before it is left to the end of its pipe.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// A started guest.
struct Guest {
    /// First: what follows is dropped when it has ended.
    child: Child,
    /// Wiped when the guest has ended.
    _secrets: Option<Region>,
    memory: MemoryUse,
    /// Anonymous memory that it may have, bytes.
    limit: u64,
    _timer: CpuTimer,
    /// It has its own.
    namespaces: bool,
}

/// The guest's process.
struct Child(OwnedFd);

impl Child {
    fn signal(&self, signal: rustix::process::Signal) -> rustix::io::Result<()> {
        rustix::process::pidfd_send_signal(&self.0, signal)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // On every way out, the early ones too: no guest outlives its run. Where the monitor has become nobody before the guest's
        // process has, it is refused until that one has, too.
        let patience = Instant::now() + KILL_PATIENCE;
        while self.signal(rustix::process::Signal::KILL) == Err(rustix::io::Errno::PERM) {
            if Instant::now() > patience {
                return;
            }
            std::thread::yield_now();
        }
        let _ = wait(&self.0);
    }
}

struct Pipes {
    output: OwnedFd,
    errors: OwnedFd,
    report: OwnedFd,
}

struct Running {
    output: Relay,
    errors: Relay,
    report: OwnedFd,
    link: crate::net::RunningLink,
    guest: Guest,
    stop: Stop,
    killed: Option<ExitStatus>,
}

impl Running {
    fn timeout(&self) -> Option<Duration> {
        let at = [self.stop.deadline(), self.link.deadline()].into_iter().flatten().min()?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    /// Handles events; true when the guest has ended.
    fn handle(&mut self, ready: &[Ready], signals: &Signals, reactor: &Reactor) -> Result<bool, Error> {
        let mut ended = false;
        for r in ready {
            match r.token {
                SIGNALS => {
                    while let Some(signal) = signals.next() {
                        self.signal(signal, reactor);
                    }
                }
                CHILD => ended = true,
                t if t == OUTPUT.0 || t == OUTPUT.1 => self.output.pump(reactor),
                t if t == ERRORS.0 || t == ERRORS.1 => self.errors.pump(reactor),
                _ => {
                    if let Some(line) = self.link.ready(*r, reactor) {
                        self.errors.say(line, reactor);
                    }
                }
            }
        }
        self.link.work(reactor);
        let action = self.stop.time(Instant::now());
        self.act(action, reactor);
        Ok(ended)
    }

    fn signal(&mut self, signal: i32, reactor: &Reactor) {
        if signal == CPU_TIMER {
            return self.check_memory();
        }
        let action = self.stop.signal(signal, Instant::now());
        self.act(action, reactor);
    }

    fn act(&mut self, action: Action, reactor: &Reactor) {
        match action {
            Action::Nothing => {}
            Action::Ask | Action::AskFirst => {
                let _ = self.guest.child.signal(rustix::process::Signal::TERM);
                if action == Action::AskFirst {
                    self.errors.tell(ASKED, reactor);
                }
            }
            Action::Kill(signal) => self.kill(ExitStatus::Stopped { signal }),
        }
    }

    fn kill(&mut self, why: ExitStatus) {
        if self.killed.is_none() {
            let _ = self.guest.child.signal(rustix::process::Signal::KILL);
            self.killed = Some(why);
        }
    }

    fn check_memory(&mut self) {
        let (memory, limit) = (&self.guest.memory, self.guest.limit);
        if let Some(used) = excess(limit + MEMORY_SLACK, memory.anonymous(), || memory.counted()) {
            self.kill(ExitStatus::Killed {
                reason: format!(
                    "it touched {} KiB of memory, its budget is {} KiB (--memory or `memory` in Donjon.toml raises it)",
                    used / 1024,
                    limit / 1024
                ),
            });
        }
    }

    /// Collects what the guest has left behind.
    fn end(mut self, reactor: &Reactor, signals: Signals, mut names: Names) -> Result<ExitStatus, Error> {
        self.output.pump(reactor);
        self.errors.pump(reactor);
        let mut said = self.link.finish(reactor, &signals, self.stop.end(Instant::now()));
        drop(signals);
        let until = self.stop.patience(Instant::now());
        self.output.finish(until, &mut said);
        self.errors.finish_with(until, said);
        let report = read_report(&self.report);
        let status = wait(&self.guest.child.0).map_err(Error::host("cannot learn how the guest ended"))?;
        if let Some([step, e0, e1, e2, e3]) = report.strip_prefix(&stub::SETUP_FAILED) {
            let errno = i32::from_ne_bytes([*e0, *e1, *e2, *e3]);
            return Err(Error::Host { what: Step::describe(*step), source: io::Error::from_raw_os_error(errno) });
        }
        let mut annotated = || names.report(&report);
        Ok(match (status, self.killed) {
            (End::Exited(code), _) if !report.is_empty() => ExitStatus::Fault { code, report: annotated() },
            (End::Exited(code), _) => ExitStatus::Exited(code),
            (End::Signal(_), Some(why)) => why,
            (End::Signal(libc::SIGSYS), None) => ExitStatus::Killed {
                reason: "it made a system call that the gate does not have (ended by seccomp)".into(),
            },
            (End::Signal(libc::SIGKILL), None) => {
                ExitStatus::Killed { reason: "somebody sent it SIGKILL; the host may be out of memory".into() }
            }
            (End::Signal(signal), None) => ExitStatus::Fault {
                code: 70,
                report: format!(
                    "{} where the guest could not handle it (a second fault, or none of its own stack left)\n{}",
                    signal_name(signal),
                    annotated()
                ),
            },
        })
    }
}

fn signal_name(signal: i32) -> String {
    match signal {
        libc::SIGSEGV => "segmentation fault".into(),
        libc::SIGBUS => "bus error".into(),
        libc::SIGILL => "illegal instruction".into(),
        libc::SIGFPE => "arithmetic fault".into(),
        libc::SIGTRAP => "breakpoint".into(),
        other => format!("signal {other}"),
    }
}

/// How a child ended: with a status, or by a signal.
pub(crate) enum End {
    Exited(u8),
    Signal(i32),
}

/// Waits for a child's end.
pub(crate) fn wait(pidfd: &OwnedFd) -> io::Result<End> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let status = loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => break status,
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    };
    Ok(match status.exit_status() {
        Some(code) => End::Exited(code as u8),
        None => End::Signal(status.terminating_signal().unwrap_or(0)),
    })
}

/// What is used, bytes, if it is more than `most`: by the kernel's own figure, and where that says so and there is another, by a count of the pages.
fn excess(most: u64, figure: Option<u64>, counted: impl FnOnce() -> Option<u64>) -> Option<u64> {
    let figure = figure.filter(|bytes| *bytes > most)?;
    counted().or(Some(figure)).filter(|bytes| *bytes > most)
}

/// What the host says about a process's memory.
struct MemoryUse {
    /// Open `/proc/PID/statm`.
    statm: File,
    /// Open `/proc/PID/status`.
    status: File,
    /// Open `/proc/PID/smaps_rollup`; some kernels are built without.
    rollup: Option<File>,
}

impl MemoryUse {
    fn of(pid: i32) -> io::Result<MemoryUse> {
        let open = |name| File::open(format!("/proc/{pid}/{name}"));
        Ok(MemoryUse { statm: open("statm")?, status: open("status")?, rollup: open("smaps_rollup").ok() })
    }

    /// Bytes of private anonymous pages, also those that are in swap (proc(5)). Before Linux 6.2 the kernel counts 64 faults late; from then until 6.15
    /// it may be off by max(32, 2 * CPUs) pages for each CPU, in both directions.
    fn anonymous(&self) -> Option<u64> {
        let mut text = [0; 128];
        let n = self.statm.read_at(&mut text, 0).ok()?;
        let mut numbers = std::str::from_utf8(&text[..n]).ok()?.split(' ').skip(1).map(str::parse::<u64>);
        let (resident, shared) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(resident.saturating_sub(shared) * PAGE + self.swapped().unwrap_or(0))
    }

    /// The same, page by page: exact, but work for as long as there are pages.
    fn counted(&self) -> Option<u64> {
        let mut text = [0; 4096];
        let n = self.rollup.as_ref()?.read_at(&mut text, 0).ok()?;
        counted(std::str::from_utf8(&text[..n]).ok()?)
    }

    /// Bytes in swap. `None` if that is not to be found, as where its user is in so many groups that they fill the room.
    fn swapped(&self) -> Option<u64> {
        let mut text = [0; 8192];
        let n = self.status.read_at(&mut text, 0).ok()?;
        swapped(std::str::from_utf8(&text[..n]).ok()?)
    }
}

/// `VmSwap` of a `/proc/PID/status`, bytes.
fn swapped(status: &str) -> Option<u64> {
    field(status, "VmSwap:")
}

/// `Anonymous` and `Swap` of a `/proc/PID/smaps_rollup`, bytes.
fn counted(rollup: &str) -> Option<u64> {
    Some(field(rollup, "Anonymous:")? + field(rollup, "Swap:")?)
}

/// The value of the line that begins with `name`, bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

fn read_report(pipe: &OwnedFd) -> Vec<u8> {
    let mut report = vec![0; FAULT_MAX as usize];
    let n = rustix::io::read(pipe, &mut report).unwrap_or(0);
    report.truncate(n);
    report
}

fn start(
    source: &Source,
    options: &RunOptions,
    link: &Link,
    (wait, gate): (OwnedFd, &Gate),
    (place, root): (Place, bool),
) -> Result<(Guest, Pipes, OwnedFd), Error> {
    let memory = options.memory.unwrap_or(source.manifest.memory);
    let private = source.private_len();
    let least = source.unpacked_len() + private + MEMORY_LEAST;
    if memory < least {
        return Err(Error::Usage {
            what: format!(
                "{} KiB of memory are too little: this image needs at least {} KiB",
                memory / 1024,
                least.div_ceil(1024)
            ),
            hint: "give it more with --memory, or in Donjon.toml",
        });
    }
    let memory = memory - source.unpacked_len();
    let secrets = Region::new(&secrets::check(&source.manifest, options)?)?;
    let strings = Strings::new(source, options)?;
    let vdso = vdso::find().map_err(Error::host("cannot read /proc/self/maps"))?;
    if vdso.clock_gettime == 0 {
        return Err(Error::EngineUnavailable {
            engine: "process",
            reason: "the kernel offers no vDSO clock".into(),
            hint: "use --engine qemu",
        });
    }
    let layout = Layout::choose(
        Lengths {
            image: source.header.span,
            bundle: Source::pages(source.header.bundle),
            boot: PAGE + strings.bytes.len() as u64,
            stub: stub::PAGES * PAGE,
            reserve: memory.saturating_mul(8).max(4 << 30),
            secrets: secrets.as_ref().map_or(0, Region::len),
        },
        crate::random,
    )
    .ok_or_else(|| Error::Usage {
        what: "the image and its memory have no room in an address space".into(),
        hint: "give it less with --memory",
    })?;
    let mut boot = boot_page(source, options, link, memory - private, &layout, &strings, vdso.clock_gettime);
    boot.secrets = Range { base: layout.secrets.base, len: secrets.as_ref().map_or(0, Region::len) };
    let rules: Vec<_> = seccomp::RULES.into_iter().filter(|r| options.without_rule != Some(r.name)).collect();
    let filter = match options.without.contains(&Protection::Calls) {
        true => seccomp::everything(),
        false => seccomp::filter(&rules, layout.reserve),
    };
    let config = config(source, link, &layout, &vdso, &filter);

    let pipe = |flags| pipe_with(flags).map_err(Error::host("cannot create a pipe"));
    let (watched, watch) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(Error::host("cannot create a pair of sockets"))?;
    let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
    let ((output, guest_output), (errors, guest_errors), (report, guest_report)) =
        (pipe(flags)?, pipe(flags)?, pipe(flags)?);
    let mut name = [0; 16];
    let text = source.manifest.name.as_bytes();
    let n = text.len().min(15);
    name[..n].copy_from_slice(&text[..n]);
    let mut plan = Plan {
        header: &source.header,
        relocations: &source.relocations,
        layout,
        boot,
        boot_tail: &strings.bytes,
        config,
        offsets: stub::offsets(),
        image_fd: source.file.as_raw_fd(),
        content_fd: source.content.as_ref().map_or(-1, |fd| fd.as_raw_fd()),
        secrets_fd: secrets.as_ref().map_or(-1, Region::fd),
        fds: [
            guest_output.as_raw_fd(),
            guest_errors.as_raw_fd(),
            guest_report.as_raw_fd(),
            link.guest_fd().map_or(-1, |fd| fd.as_raw_fd()),
            link.filter_fd().map_or(-1, |fd| fd.as_raw_fd()),
        ],
        other_fd: link.other_fd().map_or(-1, |fd| fd.as_raw_fd()),
        watched_fds: [watched.as_raw_fd(), watch.as_raw_fd()],
        gate_fds: [wait.as_raw_fd(), gate.as_fd().as_raw_fd()],
        parent: u64::from(std::process::id()),
        root,
        rseq: rseq(),
        name,
    };
    let network = if place == Place::Nowhere { 0 } else { libc::CLONE_NEWNET };
    let (pid, pidfd, namespaces) = clone(&mut plan, NAMESPACES | network)?;
    let child = Child(pidfd);
    // It waits: later, where /proc hides what is not one's own (hidepid), these files may not be there for an ordinary user.
    let use_of = MemoryUse::of(pid).map_err(Error::host("cannot watch the guest's memory"))?;
    let timer = CpuTimer::new(pid, MEMORY_PERIOD_NS).map_err(Error::host("cannot watch the guest's memory"))?;
    rustix::io::write(&watch, &[0]).map_err(Error::host("cannot start the guest's process"))?;
    let guest = Guest {
        child,
        memory: use_of,
        limit: memory + layout.stack.len.min(64 * 1024),
        _timer: timer,
        _secrets: secrets,
        namespaces,
    };
    Ok((guest, Pipes { output, errors, report }, watch))
}

/// What follows the boot page.
struct Strings {
    bytes: Vec<u8>,
    manifest: Range,
    args: Range,
    env: Range,
}

impl Strings {
    /// Ranges are relative to the page after the boot page.
    fn new(source: &Source, options: &RunOptions) -> Result<Strings, Error> {
        let mut bytes = source.manifest_bytes.clone();
        let manifest = Range { base: 0, len: bytes.len() as u64 };
        let (args, env) = crate::net::strings(source, options)?;
        let mut list = |strings: &[String]| {
            let base = bytes.len() as u64;
            for s in strings {
                bytes.extend_from_slice(s.as_bytes());
                bytes.push(0);
            }
            Range { base, len: bytes.len() as u64 - base }
        };
        let (args, env) = (list(&args), list(&env));
        Ok(Strings { bytes, manifest, args, env })
    }
}

fn boot_page(
    source: &Source,
    options: &RunOptions,
    link: &Link,
    memory: u64,
    layout: &Layout,
    strings: &Strings,
    clock: u64,
) -> BootPage {
    let at = |r: Range| Range { base: layout.boot.base + PAGE + r.base, len: r.len };
    let mut boot = BootPage::empty();
    boot.flags = flags::FSGSBASE;
    if let Some(net) = link.boot() {
        boot.flags |= flags::NET;
        boot.net = net;
    }
    if std::arch::is_x86_feature_detected!("rdrand") {
        boot.flags |= flags::RDRAND;
    }
    if options.listen_any {
        boot.flags |= flags::LISTEN_ANY;
    }
    if options.egress_any {
        boot.flags |= flags::EGRESS_ANY;
    }
    boot.gate = layout.stub.base + stub::offsets().gate;
    boot.image = Range { base: layout.image.base, len: source.header.span };
    boot.manifest = at(strings.manifest);
    boot.bundle = Range { base: layout.bundle.base, len: source.header.bundle.len };
    boot.reserve = layout.reserve;
    boot.memory = memory;
    boot.stack = layout.stack;
    boot.fault_stack = layout.fault_stack;
    boot.args = at(strings.args);
    boot.env = at(strings.env);
    boot.clock = Clock { vdso: clock, ..Clock::default() };
    boot.engine[..7].copy_from_slice(b"process");
    for word in boot.entropy.chunks_exact_mut(8) {
        word.copy_from_slice(&crate::random().to_ne_bytes());
    }
    boot
}

fn config(source: &Source, link: &Link, layout: &Layout, vdso: &vdso::Vdso, filter: &[u64]) -> Config {
    let mut config = Config {
        reserve_base: layout.reserve.base,
        reserve_end: layout.reserve.base + layout.reserve.len,
        upcall: layout.image.base + source.header.upcall,
        fault: layout.image.base + source.header.fault,
        fault_stack: layout.fault_stack.base + layout.fault_stack.len,
        net: u64::from(link.guest_fd().is_some()),
        frame: child::frame_at(layout),
        filter_len: filter.len() as u64,
        filter_at: layout.stub.base + PAGE + std::mem::offset_of!(Config, filter) as u64,
        gap_count: 0,
        gaps: [[0; 2]; stub::GAPS_MAX],
        filter: [0; stub::FILTER_MAX],
    };
    config.filter[..filter.len()].copy_from_slice(filter);
    let keep = layout.all().into_iter().chain(vdso.keep.iter().copied());
    for (slot, gap) in config.gaps.iter_mut().zip(layout::gaps(keep)) {
        *slot = [gap.base, gap.len];
        config.gap_count += 1;
    }
    config
}

/// Namespaces of its own for the child, empty ones, beside the network's. An ordinary user may have them only together with a user namespace, and in
/// some places not at all: then the filter stands alone.
const NAMESPACES: i32 = libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWPID | libc::CLONE_NEWCGROUP;

fn clone(plan: &mut Plan<'_>, namespaces: i32) -> Result<(i32, OwnedFd, bool), Error> {
    let user = if plan.root { 0 } else { libc::CLONE_NEWUSER };
    let monitor = std::mem::take(&mut plan.parent);
    // In a namespace of its own the child cannot see the monitor's number.
    clone_with(plan, namespaces | user).map(|(pid, fd)| (pid, fd, true)).or_else(|_| {
        plan.parent = monitor;
        clone_with(plan, 0).map(|(pid, fd)| (pid, fd, false))
    })
}

fn clone_with(plan: &Plan<'_>, namespaces: i32) -> Result<(i32, OwnedFd), Error> {
    use sys::{Errno, syscall};
    let mut pidfd = -1i32;
    let flags = (libc::CLONE_PIDFD | libc::SIGCHLD | namespaces) as u64;
    let everything: [u64; 1] = [!0];
    let mut before = [0u64; 1];
    // SAFETY: 1. like fork: the child has a copy of this thread and its memory, and runs `child::main` only, which makes system calls and
    // touches nothing that a lock protects, 2. its signals stay blocked until the guest starts.
    #[expect(unsafe_code, reason = "UNSAFETY: starts the child")]
    let pid = unsafe {
        let mask =
            |set: u64, old: u64| syscall(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as u64, set, old, 8, 0, 0]);
        let _ = mask(everything.as_ptr() as u64, before.as_mut_ptr() as u64);
        let pid = syscall(libc::SYS_clone, [flags, 0, (&raw mut pidfd) as u64, 0, 0, 0]);
        if pid == Ok(0) {
            child::main(plan);
        }
        let _ = mask(before.as_ptr() as u64, 0);
        pid
    };
    let pid = pid
        .map_err(|Errno(e)| Error::Host { what: "cannot start a process", source: io::Error::from_raw_os_error(e) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    #[expect(unsafe_code, reason = "UNSAFETY: takes a new descriptor over")]
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((pid as i32, pidfd))
}

/// Finds the area that libc has registered for this thread (`__rseq_offset`, glibc 2.35).
fn rseq() -> Rseq {
    #[expect(unsafe_code, reason = "UNSAFETY: reads two constants of libc, if it has them, and the FS base")]
    // SAFETY: 1. dlsym with a NUL-terminated name, 2. glibc documents `__rseq_offset` as ptrdiff_t and `__rseq_size` as unsigned int, both constant,
    // 3. the word at FS base 0 is the thread pointer itself (x86-64 psABI).
    unsafe {
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>();
        let size = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()).cast::<u32>();
        if offset.is_null() || size.is_null() || size.read() == 0 {
            return Rseq::default();
        }
        let thread: u64;
        std::arch::asm!("mov {}, fs:[0]", out(reg) thread, options(nostack, readonly, preserves_flags));
        // getauxval(AT_RSEQ_FEATURE_SIZE): the registered length may follow the kernel's.
        let feature = libc::getauxval(27) as u32;
        Rseq {
            address: thread.wrapping_add_signed(offset.read() as i64),
            // The original structure, what libc says, and the kernel's feature size rounded up to its alignment.
            lengths: [32, size.read(), feature, feature.next_multiple_of(32)],
        }
    }
}

/// Whether `wrfsbase` works in user mode (`HWCAP2_FSGSBASE`).
fn fsgsbase() -> bool {
    // SAFETY: reads the auxiliary vector.
    #[expect(unsafe_code, reason = "UNSAFETY: a call into libc without pointers")]
    let hwcap2 = unsafe { libc::getauxval(libc::AT_HWCAP2) };
    hwcap2 & 2 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_swap_is_found() {
        let text =
            "Name:\tguest\nVmHWM:\t    9000 kB\nRssAnon:\t     100 kB\nVmPTE:\t      44 kB\nVmSwap:\t    2048 kB\n";
        assert_eq!(swapped(text), Some(2 << 20));
        assert_eq!(swapped("Name:\tguest\nGroups:\t1 2 3"), None);
        // And this process has the line, whatever it says.
        let own = MemoryUse::of(std::process::id().cast_signed()).unwrap();
        assert!(own.swapped().is_some());
        assert!(own.anonymous().is_some_and(|bytes| bytes > 0));
        assert!(own.rollup.is_none() || own.counted().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn pages_are_counted_before_a_guest_is_ended() {
        let text = "00400000-7ffe [rollup]\nRss: 9 kB\nPrivate_Dirty:  8 kB\nAnonymous:  1024 kB\nAnonHugePages: 3 kB\nSwap:  2048 kB\nSwapPss: 1 kB\n";
        assert_eq!(counted(text), Some(3 << 20));
        assert_eq!(counted("Anonymous: 1 kB\n"), None);
        // 256 CPUs: 512 pages of each may be missing or too many.
        let (most, off) = (64 << 20, 256 * 512 * PAGE);
        assert_eq!(excess(most, Some(most + off), || Some(most)), None, "the figure is off");
        assert_eq!(excess(most, Some(most + off), || Some(most + 1)), Some(most + 1));
        assert_eq!(excess(most, Some(most + 1), || None), Some(most + 1), "nothing else to go by");
        assert_eq!(excess(most, Some(most), || unreachable!()), None, "no work while all is well");
        assert_eq!(excess(most, None, || unreachable!()), None);
    }
}
