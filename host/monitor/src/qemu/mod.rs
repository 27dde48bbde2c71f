//! The QEMU engine: the same image as a virtual machine, without hardware help.
//!
//! The monitor starts QEMU, relays the serial port, serves user-mode networking (its own, so that the manifest is enforced as under the process
//! engine), and reads the guest's exit status from a port that the ring-0 shim writes it to. How the shim
//! takes addresses, arguments and environment: `guest/ring0/src/cmdline.rs`.

#![expect(unsafe_code, reason = "runs between fork and exec")]
// UNSAFETY: `pre_exec` with system calls only.

mod command;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::console::{Relay, Stream, harmless};
use crate::error::Error;
use crate::exit::ExitStatus;
use crate::net::Link;
use crate::options::{QemuOptions, RunOptions};
use crate::probe::find_program;
use crate::reactor::{Interest, Reactor, Token};
use crate::signals::{CPU_TIMER, Signals};
use crate::source::Source;
use crate::stop::{Action, Stop};
use crate::usernet::Wire;

const SIGNALS: Token = 0;
const CHILD: Token = 1;
const OUTPUT: (Token, Token) = (2, 3);
const ERRORS: (Token, Token) = (4, 5);
/// Tokens from here on are the network's.
const NETWORK: Token = 16;

/// The byte on the serial port's input that asks the guest to stop (Ctrl-C).
const STOP_BYTE: [u8; 1] = [3];

/// Runs the guest to its end.
pub(crate) fn run(source: &Source, options: &RunOptions, qemu: &QemuOptions) -> Result<ExitStatus, Error> {
    let program = qemu.program.clone().or_else(|| find_program("qemu-system-x86_64")).ok_or(Error::EngineUnavailable {
        engine: "qemu",
        reason: "qemu-system-x86_64 is not installed".into(),
        hint: "install the package qemu-system-x86 (Debian, Ubuntu) or qemu-system-x86-core (Fedora), or use --engine process",
    })?;
    let link = Link::open(options, &source.manifest, Wire::Plain)?;
    let (status, guest_status) =
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(Error::host("cannot create a pipe"))?;
    let arguments =
        command::arguments(source, options, qemu, guest_status.as_raw_fd(), link.guest_fd().map(|t| t.as_raw_fd()))?;
    if options.verbose {
        eprintln!("starting QEMU: {} {}", program.display(), arguments.join(" "));
    }
    let mut reactor = Reactor::new().map_err(Error::host("cannot create an epoll instance"))?;
    let signals = Signals::take().map_err(Error::host("cannot take signals over"))?;
    reactor.add(&signals, SIGNALS, Interest::READ).map_err(Error::host("cannot watch signals"))?;

    let mut command = Command::new(&program);
    command.args(&arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Out of the terminal's process group: Ctrl-C is for the monitor.
    command.process_group(0);
    let inherited = [Some(guest_status.as_raw_fd()), link.guest_fd().map(|t| t.as_raw_fd())];
    let mut child = Qemu(spawn(command, inherited).map_err(Error::host("cannot start QEMU"))?);
    drop(guest_status);
    let mut link = link.into_running(NETWORK, &reactor)?;

    let watch = || Error::host::<rustix::io::Errno>("cannot watch QEMU");
    let pidfd =
        rustix::process::pidfd_open(rustix::process::Pid::from_child(&child.0), rustix::process::PidfdFlags::empty())
            .map_err(watch())?;
    reactor.add(&pidfd, CHILD, Interest::READ).map_err(watch())?;
    let missing = || Error::Host { what: "cannot watch QEMU", source: io::ErrorKind::BrokenPipe.into() };
    let output: OwnedFd = child.0.stdout.take().ok_or_else(missing)?.into();
    let errors: OwnedFd = child.0.stderr.take().ok_or_else(missing)?.into();
    let input: OwnedFd = child.0.stdin.take().ok_or_else(missing)?.into();
    for fd in [&output, &errors, &input] {
        rustix::io::ioctl_fionbio(fd, true).map_err(watch())?;
    }
    // The guest's standard error comes by the same serial line as its output.
    let mut output = Relay::new(output, Stream::Output, OUTPUT, &reactor).map_err(watch())?.with_names(&source.path);
    let mut errors = Relay::new(errors, Stream::Errors, ERRORS, &reactor).map_err(watch())?;

    let mut stop = Stop::new(options.stop_timeout);
    let (mut killed, mut ready) = (None, Vec::new());
    'run: loop {
        let at = [stop.deadline(), link.deadline()].into_iter().flatten().min();
        let timeout = at.map(|at| at.saturating_duration_since(Instant::now()));
        reactor.wait(timeout, &mut ready).map_err(Error::host("cannot wait for events"))?;
        let mut actions = vec![];
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
                _ => link.ready(*r, &reactor),
            }
        }
        link.work(&reactor);
        actions.push(stop.time(Instant::now()));
        for action in actions {
            match action {
                Action::Nothing => {}
                Action::Ask => {
                    let _ = rustix::io::write(&input, &STOP_BYTE);
                }
                Action::Kill(signal) => {
                    killed = Some(ExitStatus::Stopped { signal });
                    let _ = child.0.kill();
                }
            }
        }
    }
    drop(signals);
    link.finish(&reactor);
    output.finish();
    errors.finish();
    let ended = child.0.wait().map_err(Error::host("cannot learn how QEMU ended"))?;
    let said = last_words(&status);
    match (said.split_last(), killed, ended.code(), ended.signal()) {
        (Some((code, [])), ..) => Ok(ExitStatus::Exited(*code)),
        (Some((code, report)), ..) => {
            let report = crate::symbols::annotate(&harmless(report), &source.path);
            Ok(ExitStatus::Fault { code: *code, report })
        }
        (None, Some(killed), ..) => Ok(killed),
        // isa-debug-exit: (status << 1) | 1. 1 alone is also QEMU's own failure, and a guest says its status on the other port first.
        (None, None, Some(code), _) if code > 1 && code & 1 == 1 => Ok(ExitStatus::Exited((code >> 1) as u8)),
        (None, None, Some(0), _) => {
            Ok(ExitStatus::Killed { reason: "the machine was reset or powered off without an exit status".into() })
        }
        (None, None, Some(_), _) => Err(Error::EngineUnavailable {
            engine: "qemu",
            reason: "QEMU refused to start (its own words are above)".into(),
            hint: "look at the command with -v, or use --engine process",
        }),
        (None, None, None, signal) => {
            Ok(ExitStatus::Killed { reason: format!("QEMU was ended by signal {}", signal.unwrap_or(0)) })
        }
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
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(mut command: Command, inherited: [Option<RawFd>; 2]) -> io::Result<Child> {
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        for fd in inherited.into_iter().flatten() {
            // SAFETY: the descriptor is open: its owner lives until after the spawn.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
            rustix::io::fcntl_setfd(fd.as_fd(), rustix::io::FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}
