//! Where the guest's output goes: readers that do not read, and files that take no more.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use common::{first_line, image, launcher};
use rustix::process::{Pid, Signal, kill_process};

/// A pseudoterminal: who reads what is written, and where to write.
#[expect(unsafe_code, reason = "UNSAFETY: openpty(3) with two locals")]
fn terminal() -> (File, OwnedFd) {
    let (mut master, mut slave) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: 1. the integers live for the call, 2. null pointers are for what is not wanted.
    let failed = unsafe { libc::openpty(&raw mut master, &raw mut slave, none, none.cast(), none.cast()) };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    for fd in [master, slave] {
        // SAFETY: a number.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    // SAFETY: the descriptors are new and nobody else's.
    unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) }
}

fn line(mut from: &File) -> String {
    let mut line = vec![];
    let mut byte = [0];
    while from.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8_lossy(&line).trim_end().into()
}

/// The guest goes on serving, and is ended as always: also where what the monitor has to say itself has no room either.
#[test]
fn a_terminal_that_nobody_reads_holds_nothing_up() {
    for for_errors in [false, true] {
        let (master, slave) = terminal();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let publish = format!("{port}:7");
        let mut command = launcher(image(), &["-p", &publish, "--stop-timeout-ms", "3600000"], &["chatter"]);
        command.stdout(slave.try_clone().unwrap());
        if for_errors {
            command.stderr(slave.try_clone().unwrap());
        }
        let mut child = command.spawn().unwrap();
        drop(command);
        assert_eq!(line(&master), "ready");
        // A terminal holds 4,095 bytes for its reader, and what has not got there yet.
        while rustix::io::ioctl_fionread(&master).unwrap() < 4000 {
            std::thread::yield_now();
        }
        for _ in 0..20 {
            let mut s = TcpStream::connect(("127.0.0.1", port)).unwrap();
            s.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            s.write_all(b"hello").unwrap();
            let mut answer = [0; 5];
            s.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"hello");
        }
        let pid = Pid::from_child(&child);
        for signal in [Signal::TERM, Signal::INT] {
            kill_process(pid, signal).unwrap();
        }
        if for_errors {
            // How the guest ended is said last, to whoever reads it then.
            let guest = format!("/proc/{0}/task/{0}/children", child.id());
            while std::fs::read_to_string(&guest).is_ok_and(|list| !list.is_empty()) {
                std::thread::yield_now();
            }
            drop(master);
        }
        let status = child.wait().unwrap();
        assert!(matches!(status.code(), Some(130 | 143)), "{for_errors}: {status:?}");
    }
}

/// A guest's colours, of which one hides text, end with it.
#[test]
fn a_guest_hides_nothing_that_is_said_after_it() {
    let (mut master, slave) = terminal();
    let mut command = launcher(image(), &["--net", "none"], &["args", "\x1b[8mhidden"]);
    command.stdout(slave.try_clone().unwrap()).stderr(slave);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut shown = vec![];
    // It ends with EIO when nobody has the terminal any more.
    let _ = master.read_to_end(&mut shown);
    let shown = String::from_utf8_lossy(&shown);
    assert!(
        child.wait().unwrap().success() && shown.contains("\x1b[8mhidden") && shown.ends_with("\x1b[0m"),
        "{shown:?}"
    );
}

/// What the monitor has to say of a guest that has ended finds no room: whoever ends the monitor then succeeds.
#[test]
fn a_report_that_nobody_reads_holds_nothing_up() {
    let (_reader, writer) = rustix::pipe::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    let mut child = launcher(image(), &["-p", "127.0.0.1:0:7"], &["forge"]).stderr(writer).spawn().unwrap();
    assert_eq!(first_line(&mut child), "forged");
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        if started.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("it does not end");
        }
        std::thread::yield_now();
    }
}

/// A full disk costs what it did not take, which is said, and not all that comes after.
#[test]
fn a_full_disk_costs_what_it_did_not_take() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let out = launcher(image(), &["--net", "none"], &["console-big", "3000000"]).stdout(full).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{said}");
    assert!(said.starts_with("donjon: 3000000 bytes of the guest's output are lost: No space left"), "{said}");
}
