//! The QEMU engine: the same image as a virtual machine, without hardware help.
//!
//! The monitor starts QEMU, relays the serial port, serves user-mode networking (its own, so that the manifest is enforced as under the process
//! engine), and reads the guest's exit status from a port that the ring-0 shim writes it to. How the shim
//! takes addresses, arguments and environment: `guest/ring0/src/cmdline.rs`.

#![expect(unsafe_code, reason = "forks")]
// UNSAFETY: fork in a process of one thread, and descriptors that the child takes over.

mod command;

use std::io::{self, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};

use crate::console::{Relay, Stream};
use crate::error::Error;
use crate::exit::ExitStatus;
use crate::jail::{self, Confinement, Gate};
use crate::net::Link;
use crate::options::{QemuOptions, RunOptions, Starting};
use crate::probe::find_program;
use crate::process::{End, wait};
use crate::reactor::{Interest, Reactor, Token};
use crate::signals::{CPU_TIMER, Signals};
use crate::source::Source;
use crate::stop::{ASKED, Action, Stop};
use crate::symbols::Names;
use crate::usernet::Wire;

const SIGNALS: Token = 0;
const CHILD: Token = 1;
const OUTPUT: (Token, Token) = (2, 3);
const ERRORS: (Token, Token) = (4, 5);
/// Tokens from here on are the network's.
const NETWORK: Token = 16;

/// Time between two signs to the user that the machine is still starting, and after how long there are no more: it may serve without a word.
const SIGN_EVERY: Duration = Duration::from_millis(100);
const SIGNS_FOR: Duration = Duration::from_secs(20);

/// The byte on the serial port's input that asks the guest to stop (Ctrl-C).
const STOP_BYTE: [u8; 1] = [3];

/// Runs the guest to its end.
pub(crate) fn run(source: &Source, options: &RunOptions, qemu: &QemuOptions) -> Result<ExitStatus, Error> {
    let program = qemu.program.clone().or_else(|| find_program("qemu-system-x86_64")).ok_or(Error::EngineUnavailable {
        engine: "qemu",
        reason: "qemu-system-x86_64 is not installed".into(),
        hint: "install the package qemu-system-x86 (Debian, Ubuntu) or qemu-system-x86-core (Fedora), or use --engine process",
    })?;
    let mut link = Link::open(options, &source.manifest, Wire::Plain)?;
    // QEMU is told which descriptor is its network.
    let device = link.decide()?;
    let pipe = |flags| pipe_with(PipeFlags::CLOEXEC | flags).map_err(Error::host("cannot create a pipe"));
    let (status, guest_status) = pipe(PipeFlags::NONBLOCK)?;
    let root = jail::is_root();
    if root {
        // It opens the port by its name in /proc, as nobody.
        let nobody = rustix::process::Uid::from_raw(jail::NOBODY);
        rustix::fs::fchown(&guest_status, Some(nobody), None).map_err(Error::host("cannot create a pipe"))?;
    }
    let image = readable(source, root).map_err(Error::host("cannot copy the image for QEMU"))?;
    let secrets = crate::secrets::copies(&crate::secrets::check(&source.manifest, options)?)?;
    let fds = command::Fds { status: guest_status.as_raw_fd(), image: image.as_raw_fd(), secrets: &secrets };
    let arguments = command::arguments(source, options, qemu, fds, &link)?;
    if options.verbose {
        crate::say!("starting QEMU: {} {}", program.display(), arguments.join(" "));
    }
    let mut reactor = Reactor::new().map_err(Error::host("cannot create an epoll instance"))?;
    let signals = Signals::take().map_err(Error::host("cannot take signals over"))?;
    reactor.add(&signals, SIGNALS, Interest::READ).map_err(Error::host("cannot watch signals"))?;

    let ((input_end, input), (output, output_end), (errors, errors_end)) =
        (pipe(PipeFlags::empty())?, pipe(PipeFlags::empty())?, pipe(PipeFlags::empty())?);
    let mut command = Command::new(&program);
    command.args(&arguments).stdin(input_end).stdout(output_end).stderr(errors_end);
    // Out of the terminal's process group: Ctrl-C is for the monitor.
    command.process_group(0);
    let inherited = [Some(guest_status.as_fd()), Some(image.as_fd()), link.guest_fd(), link.filter_fd()];
    let mut jailed = jail::Report::new("QEMU");
    let patience = source.stop_timeout(options);
    let files = [source.path.as_path(), program.as_path()];
    let named = command::named_files(&qemu.extra);
    let confinement = Confinement::new(root, (!qemu.unconfined).then_some((&files[..], &named[..])), &mut jailed);
    match command::sandboxed(qemu) {
        true => jailed.add("its own seccomp", Ok(command::SANDBOX.into())),
        false => jailed.skip("its own seccomp", "as the arguments say (--qemu-unconfined, or another -sandbox)"),
    }
    let (gate, failure, child) = start(
        command,
        inherited.into_iter().flatten().chain(secrets.iter().map(|s| s.1.as_fd())).map(|fd| fd.as_raw_fd()).collect(),
        confinement,
    )
    .map_err(Error::host("cannot start QEMU"))?;
    drop((guest_status, image, secrets));
    if let Some(keeper) = link.describe() {
        jailed = keeper.after(jailed);
    }
    let (mut names, of_output) = (Names::new(&source.path), Names::new(&source.path));
    let plan = jail::Plan::new(link.needs(), root, names.bytes() + of_output.bytes(), options);
    let mut link = link.into_running(NETWORK, &reactor)?;

    let watch = || Error::host::<rustix::io::Errno>("cannot watch QEMU");
    reactor.add(&child.0, CHILD, Interest::READ).map_err(watch())?;
    for fd in [&output, &errors, &input] {
        rustix::io::ioctl_fionbio(fd, true).map_err(watch())?;
    }
    // The guest's standard error comes by the same serial line as its output.
    let mut output = Relay::new(output, Stream::Output, OUTPUT, &reactor).map_err(watch())?.with_names(of_output);
    let mut errors = Relay::new(errors, Stream::Errors, ERRORS, &reactor).map_err(watch())?;

    let mut stop = Stop::new(patience);
    if let Some(result) =
        jail::enter(&plan).after(jailed).before_the_guest(options, |line| errors.say(line, &reactor)).transpose()
    {
        // QEMU's process, which waits there, is root's still, and we are nobody: it cannot be killed, but ends when nobody can open the gate any more.
        drop(gate);
        return result;
    }
    let mut waiting = options.starting.map(Waiting::new);
    gate.open(device);
    failed(&failure).map_err(Error::host("cannot start QEMU"))?;

    let (mut killed, mut ready) = (None, Vec::new());
    'run: loop {
        let sign = waiting.as_ref().map(|w| w.next);
        let at = [stop.deadline(), link.deadline(), sign].into_iter().flatten().min();
        let timeout = at.map(|at| at.saturating_duration_since(Instant::now()));
        reactor.wait(timeout, &mut ready).map_err(Error::host("cannot wait for events"))?;
        let mut actions = vec![];
        let spoke = |t: Token| [OUTPUT.0, OUTPUT.1, ERRORS.0, ERRORS.1].contains(&t);
        if ready.iter().any(|r| spoke(r.token) || r.token == CHILD) || link.heard() {
            waiting = None;
        }
        waiting = waiting.and_then(|w| w.go_on(Instant::now()));
        for r in &ready {
            match r.token {
                SIGNALS => {
                    while let Some(signal) = signals.next() {
                        if signal != CPU_TIMER {
                            actions.push(stop.signal(signal, Instant::now()));
                        }
                    }
                }
                CHILD => break 'run,
                t if t == OUTPUT.0 || t == OUTPUT.1 => output.pump(&reactor),
                t if t == ERRORS.0 || t == ERRORS.1 => errors.pump(&reactor),
                _ => {
                    if let Some(line) = link.ready(*r, &reactor) {
                        errors.say(line, &reactor);
                    }
                }
            }
        }
        link.work(&reactor);
        actions.push(stop.time(Instant::now()));
        for action in actions {
            match action {
                Action::Nothing => {}
                Action::Ask | Action::AskFirst => {
                    let _ = rustix::io::write(&input, &STOP_BYTE);
                    if action == Action::AskFirst {
                        errors.tell(ASKED, &reactor);
                    }
                }
                Action::Kill(signal) => {
                    killed = Some(ExitStatus::Stopped { signal });
                    child.kill();
                }
            }
        }
    }
    output.pump(&reactor);
    errors.pump(&reactor);
    let mut said = link.finish(&reactor, &signals, stop.end(Instant::now()));
    drop(signals);
    let until = stop.patience(Instant::now());
    output.finish(until, &mut said);
    errors.finish_with(until, said);
    let ended = wait(&child.0).map_err(Error::host("cannot learn how QEMU ended"))?;
    let said = last_words(&status);
    match (said.split_last(), killed, ended) {
        (Some((code, [])), ..) => Ok(ExitStatus::Exited(*code)),
        (Some((code, report)), ..) => Ok(ExitStatus::Fault { code: *code, report: names.report(report) }),
        (None, Some(killed), _) => Ok(killed),
        // isa-debug-exit: (status << 1) | 1. 1 alone is also QEMU's own failure, and a guest says its status on the other port first.
        (None, None, End::Exited(code)) if code > 1 && code & 1 == 1 => Ok(ExitStatus::Exited(code >> 1)),
        (None, None, End::Exited(0)) => {
            Ok(ExitStatus::Killed { reason: "the machine was reset or powered off without an exit status".into() })
        }
        (None, None, End::Exited(_)) => Err(Error::EngineUnavailable {
            engine: "qemu",
            reason: "QEMU refused to start (its own words are above)".into(),
            hint: "look at the command with -v, or use --engine process",
        }),
        (None, None, End::Signal(signal)) => {
            Ok(ExitStatus::Killed { reason: format!("QEMU was ended by signal {signal}") })
        }
    }
}

/// Signs to the user for as long as nothing has come from the machine.
struct Waiting {
    tell: fn(Starting),
    until: Instant,
    next: Instant,
}

impl Waiting {
    fn new(tell: fn(Starting)) -> Waiting {
        tell(Starting::Waiting);
        let now = Instant::now();
        Waiting { tell, until: now + SIGNS_FOR, next: now + SIGN_EVERY }
    }

    /// Gives the sign that is due; `None` after the last one.
    fn go_on(mut self, now: Instant) -> Option<Waiting> {
        if now >= self.next {
            (self.tell)(Starting::Waiting);
            self.next = now + SIGN_EVERY;
        }
        (now < self.until).then_some(self)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        (self.tell)(Starting::Over);
    }
}

/// What the shim has written to the status port: a crash report, which may be empty, and the exit status.
fn last_words(status: &OwnedFd) -> Vec<u8> {
    const MOST: usize = donjon_abi::FAULT_MAX as usize + 1;
    let mut out = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = rustix::io::read(status, &mut chunk) {
        out.extend_from_slice(&chunk[..n]);
    }
    // More than that is not from the shim; the status is still what came last.
    let excess = out.len().saturating_sub(MOST);
    out.drain(..excess);
    out
}

/// QEMU as a child that does not outlive its run.
struct Qemu(OwnedFd);

impl Qemu {
    fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.0, rustix::process::Signal::KILL);
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
        let _ = wait(&self.0);
    }
}

/// The image for QEMU, which root starts as nobody: a copy in memory if nobody could not read the file.
fn readable(source: &Source, root: bool) -> io::Result<OwnedFd> {
    let everybody = source.file.metadata()?.permissions().mode() & 0o004 != 0;
    if everybody || !root {
        return Ok(source.file.try_clone()?.into());
    }
    // Of the file that was checked: behind its name there may be another by now.
    let mut file = &source.file;
    file.seek(io::SeekFrom::Start(0))?;
    crate::memfd::sealed("donjon-image", &mut file)
}

/// Forks. The child waits at the gate, confines itself and becomes QEMU; the second value gives the error if it could not.
fn start(
    mut command: Command,
    inherited: Vec<RawFd>,
    mut confinement: Confinement,
) -> io::Result<(Gate, OwnedFd, Qemu)> {
    let (gate, open) = Gate::new()?;
    let (failure, failed) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: this process has one thread, so that the child may do what it could.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        drop((gate, failure));
        let error = become_qemu(&mut command, &inherited, &mut confinement, &open);
        let _ = rustix::io::write(&failed, &error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes());
        // SAFETY: ends the process without running the parent's destructors.
        unsafe { libc::_exit(127) };
    }
    let pid = rustix::process::Pid::from_raw(pid).ok_or_else(io::Error::last_os_error)?;
    Ok((gate, failure, Qemu(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)))
}

fn become_qemu(command: &mut Command, inherited: &[RawFd], confinement: &mut Confinement, open: &OwnedFd) -> io::Error {
    let mut prepare = || -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        let mut byte = [0];
        if rustix::io::read(open, &mut byte)? != 1 {
            // The monitor has given up.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        for fd in inherited {
            // SAFETY: the descriptor is open: its owner is the parent's copy of it.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
            rustix::io::fcntl_setfd(fd.as_fd(), rustix::io::FdFlags::empty())?;
        }
        confinement.enter()
    };
    match prepare() {
        Ok(()) => command.exec(),
        Err(e) => e,
    }
}

/// The child's error; returns when it has become QEMU.
fn failed(failure: &OwnedFd) -> io::Result<()> {
    let mut errno = [0; 4];
    match rustix::io::read(failure, &mut errno)? {
        4 => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
        _ => Ok(()),
    }
}
