//! A victim in its cell, and what an attacker can make it do.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use donjon_tests::{Guest, donjon_command, measure, poll_until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::code;
use super::docker::{CAPABILITIES, Capabilities};
use super::end::{By, Cause};
use super::lan::{Lan, TAP, VICTIM};

/// How the victim is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An ordinary process in a Debian-like root, with what Docker takes away by default.
    Docker,
    /// The same program as nobody in a read-only root without a shell, without capabilities.
    Hardened,
    /// A Donjon image, process engine.
    Process,
    /// The same on a TAP device that is a port of the bridge: no user-mode network stands between, only the monitor's frame filter.
    Tap,
    /// The same image under QEMU.
    Qemu,
    /// The same on a TAP device that is a port of the bridge.
    QemuTap,
}

impl Kind {
    pub const ALL: [Kind; 6] = [Kind::Docker, Kind::Hardened, Kind::Process, Kind::Tap, Kind::Qemu, Kind::QemuTap];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Docker => "container",
            Kind::Hardened => "hardened",
            Kind::Process => "process",
            Kind::Tap => "tap",
            Kind::Qemu => "qemu",
            Kind::QemuTap => "qemu-tap",
        }
    }

    /// In the tables.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Docker => "container",
            Kind::Hardened => "hardened",
            Kind::Process => "Donjon, process",
            Kind::Tap => "Donjon, process, on a TAP",
            Kind::Qemu => "Donjon, QEMU",
            Kind::QemuTap => "Donjon, QEMU, on a TAP",
        }
    }

    pub fn is_donjon(self) -> bool {
        !matches!(self, Kind::Docker | Kind::Hardened)
    }

    /// Of a container.
    pub fn capabilities(self) -> Capabilities {
        if self == Kind::Docker { Capabilities::Default } else { Capabilities::None }
    }

    pub fn is_qemu(self) -> bool {
        matches!(self, Kind::Qemu | Kind::QemuTap)
    }

    /// Whether it is on a TAP, not behind the user-mode network.
    pub fn is_on_tap(self) -> bool {
        matches!(self, Kind::Tap | Kind::QemuTap)
    }
}

/// What stands between an image and the network, for the control of the attempts on frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    /// As it is meant to be.
    Shut,
    /// On a TAP, the filter taken off. In front of the user-mode network, `--egress-any`: there is no way without the filter.
    Open,
}

/// The victim's private key, and the secret of another process in the container.
pub const KEY: &str = "-----BEGIN PRIVATE KEY----- drill";
pub const NEIGHBOUR: &str = "DB_PASSWORD=drill-neighbour-secret";
/// Where the victim of [`Kind::Docker`] logs.
pub const LOG: &str = "/var/log/access.log";

/// The victim ended while it was asked, or does not answer.
#[derive(Clone, Debug)]
pub struct Ended {
    pub by: By,
    /// In words.
    pub how: String,
}

/// What a call gave back, or how the victim ended.
pub type Answer<T = i64> = Result<T, Ended>;

/// What is needed to run victims.
pub struct Made {
    /// The container's root, made for this kind.
    pub root: PathBuf,
    /// Seccomp filter.
    pub filter: PathBuf,
    /// The Donjon image.
    pub image: PathBuf,
    /// Distance from the function `sym/text` to the library OS's pointer to the boot page.
    pub boot: Option<u64>,
}

/// A victim.
pub struct Victim<'a> {
    pub kind: Kind,
    pub lan: &'a Lan,
    pub made: &'a Made,
    pub door: Door,
    guest: Option<Guest>,
    /// In a container: another process beside the victim, with a secret of its own.
    neighbour: Option<Child>,
    /// Becomes readable when that instance's process ends.
    pidfd: Option<OwnedFd>,
    /// Injected code and scratch memory of the running instance.
    placed: HashMap<&'static [u8], u64>,
    scratch: Option<u64>,
    /// How the last instance ended, since this was last taken.
    ends: Vec<String>,
}

impl<'a> Victim<'a> {
    pub fn new(kind: Kind, lan: &'a Lan, made: &'a Made) -> Victim<'a> {
        let (placed, ends) = Default::default();
        let (guest, neighbour, pidfd, scratch) = Default::default();
        Victim { kind, lan, made, door: Door::Shut, guest, neighbour, pidfd, placed, scratch, ends }
    }

    fn command(&self) -> Command {
        let ns = &self.lan.victim;
        if self.kind.is_donjon() {
            let donjon = donjon_command();
            let ns = if self.kind.is_on_tap() { &self.lan.bridge } else { ns };
            let mut command = ns.command(donjon.get_program());
            command.arg("run").arg(&self.made.image).args(["-e", &format!("TLS_KEY={KEY}")]);
            let qemu: &[&str] = &["--engine", "qemu", "--machine", "microvm"];
            command.args(if self.kind.is_qemu() { qemu } else { &["--engine", "process"] });
            let address = Ipv4Addr::from(VICTIM);
            if self.kind.is_on_tap() {
                command.args(["--net", &format!("tap:{TAP},ip={address}/24,gw=10.66.0.1")]);
            } else {
                command.args(["-p", &format!("{address}:8080:8080")]);
                if self.door == Door::Open {
                    command.arg("--egress-any");
                }
            }
            return command;
        }
        let hardened = self.kind == Kind::Hardened;
        let mut command = ns.command(if hardened { "setpriv" } else { "env" });
        if hardened {
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        } else {
            command.arg("-i").arg("PATH=/usr/sbin:/usr/bin:/sbin:/bin");
        }
        // The filter's descriptor is opened by the shell.
        command.args(["sh", "-c", "f=$1; shift; exec bwrap --seccomp 9 \"$@\" 9<\"$f\"", "sh"]).arg(&self.made.filter);
        command.args([
            "--die-with-parent",
            "--clearenv",
            "--unshare-pid",
            "--unshare-ipc",
            "--unshare-uts",
            "--cap-drop",
            "ALL",
        ]);
        if hardened {
            command.args(["--unshare-user", "--ro-bind"]);
        } else {
            for cap in CAPABILITIES {
                command.arg("--cap-add").arg(format!("CAP_{cap}"));
            }
            command.arg("--bind");
        }
        command.arg(&self.made.root).args(["/", "--proc", "/proc", "--dev", "/dev", "--setenv", "TLS_KEY", KEY]);
        if !hardened {
            command.args(["--setenv", "ACCESS_LOG", LOG]);
        }
        command.args(["--", "/srv/drill"]);
        command
    }

    /// Starts another process beside the victim, in its PID namespace and as its user, with a secret of its own, as a sidecar has. It is not started in the cell: there the
    /// secret would be among the arguments of the cell's own first process.
    fn move_in(&self, guest: &Guest) -> Child {
        let processes = measure::tree(guest.pid()).expect("the container runs");
        let program = processes.iter().find(|p| p.name == "drill").expect("it has said that it is ready");
        let target = program.pid.to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &target, "--pid", "--", "setpriv"]);
        if self.kind == Kind::Hardened {
            // The user namespace last, as whoever has made it: inside of it nobody may become another user.
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
            command.args(["nsenter", "--target", &target, "--user", "--preserve-credentials", "--"]);
        } else {
            // No more rights than the victim: else it would not be the victim's to look at.
            let bounds: String = CAPABILITIES.iter().map(|cap| format!(",+{}", cap.to_lowercase())).collect();
            command.args(["--inh-caps=-all", &format!("--bounding-set=-all{bounds}")]);
        }
        command.args(["env", "-i", NEIGHBOUR, "sleep", "3600"]);
        let child = command.spawn().expect("nsenter runs: it has started the victim");
        let lives = || measure::tree(child.id()).ok()?.iter().any(|p| p.name == "sleep").then_some(());
        poll_until(Duration::from_secs(20), lives).expect("the neighbour lives");
        child
    }

    /// Forgets the neighbour, which has ended with its PID namespace.
    fn move_out(&mut self) {
        if let Some(mut nsenter) = self.neighbour.take() {
            let _ = nsenter.kill();
            let _ = nsenter.wait();
        }
    }

    /// Ends the instance, and gives how many of its frames the filter says that it has dropped. The inner error says what it said instead.
    pub fn dropped(&mut self) -> Answer<Result<u64, String>> {
        self.request("/", b"")?;
        let Some(guest) = self.guest.take() else { return Ok(Err("there is no instance".into())) };
        let exit = guest.stop();
        self.restart();
        let count = |line: &str| {
            let rest = line.strip_prefix("donjon: the network filter dropped ")?;
            rest.contains(" by the guest: ").then(|| rest.split(' ').next()?.parse::<u64>().ok())?
        };
        let counts: Vec<u64> = exit.stderr.lines().filter_map(count).collect();
        Ok(if counts.is_empty() {
            Err(format!("no word of the filter's: {}", exit.stderr.trim()))
        } else {
            Ok(counts.iter().sum())
        })
    }

    /// The running instance; a new one if there is none.
    fn guest(&mut self) -> &mut Guest {
        if self.guest.is_none() {
            let address = SocketAddrV4::new(VICTIM.into(), 8080);
            if !self.kind.is_on_tap() {
                // The last instance's processes are gone when nothing listens any more. The TAP has none behind it then, and nobody who could refuse.
                let to = address.into();
                let refused = || TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_err().then_some(());
                self.lan.attacker.run(|| poll_until(Duration::from_secs(10), refused));
            }
            let mut guest = Guest::program(self.kind.name(), self.command(), address, Some(self.lan.attacker.clone()));
            // By its own word: who asks before it listens waits for a second, or longer.
            guest.wait_console("ready");
            if self.kind.is_on_tap() {
                self.lan.settle_tap();
            }
            if self.door == Door::Open && self.kind.is_on_tap() {
                self.lan.unfilter_tap();
            }
            guest.wait_http("/");
            if !self.kind.is_donjon() {
                self.neighbour = Some(self.move_in(&guest));
            }
            let pid = Pid::from_raw(guest.pid().cast_signed()).expect("a child's id");
            self.pidfd = Some(pidfd_open(pid, PidfdFlags::empty()).expect("the child has not been waited for"));
            self.guest = Some(guest);
        }
        self.guest.as_mut().expect("started a line above")
    }

    /// Ends the instance as its operator would.
    pub fn restart(&mut self) {
        (self.guest, self.pidfd) = (None, None);
        self.move_out();
        self.forget();
    }

    /// What was placed is gone with the instance.
    fn forget(&mut self) {
        self.placed.clear();
        self.scratch = None;
    }

    /// What the operator has of the instances that ended since this was last asked.
    pub fn take_ends(&mut self) -> Vec<String> {
        std::mem::take(&mut self.ends)
    }

    /// Whether the console has that line, or gets it soon.
    pub fn console_has(&mut self, text: &str) -> bool {
        let guest = self.guest();
        poll_until(Duration::from_secs(3), || guest.log().contains(text).then_some(())).is_some()
    }

    /// Whether there is an instance, and it answers: its ending, if it had to end for an attempt that did not see it.
    pub fn settle(&mut self) -> Answer<()> {
        if self.guest.is_some() { self.request("/", b"").map(drop) } else { Ok(()) }
    }

    /// One request; [`Ended`] if the victim does not live to answer it.
    pub fn request(&mut self, path: &str, body: &[u8]) -> Answer<Vec<u8>> {
        let answer = {
            let guest = self.guest();
            match guest.exit_status() {
                // It has ended between two requests: then nobody may be there who refuses a connection.
                Some(_) => Err(std::io::ErrorKind::NotConnected.into()),
                None => guest.connect(),
            }
        };
        let answer = answer.and_then(|s| {
            let answer = ask(&s, path, body, self.pidfd.as_ref().map(OwnedFd::as_fd));
            if answer.is_err() {
                // Nobody is to say goodbye to the dead, over and over: the next instance at this address would hear it.
                let _ = set_socket_linger(&s, Some(Duration::ZERO));
            }
            answer
        });
        if let Ok(answer) = answer {
            return Ok(answer);
        }
        self.forget();
        self.pidfd = None;
        let silence = || Ended { by: By::Silence, how: "it does not answer any more".to_owned() };
        let Some(mut guest) = self.guest.take() else { return Err(silence()) };
        let ended = match guest.end_within(Duration::from_secs(10)) {
            Some((status, console)) => Ended {
                by: By::of(self.kind, status.code(), &console),
                how: format!("{status}; {}", last_words(&console)),
            },
            None => silence(),
        };
        drop(guest);
        self.move_out();
        self.ends.push(ended.how.clone());
        Err(ended)
    }

    /// `None` if that was the end of the victim, and the end that belongs to `cause`.
    pub fn or_ended<T>(&self, answer: Answer<T>, cause: Cause) -> Answer<Option<T>> {
        self.or_ended_by(answer, &[cause])
    }

    /// The same, where the end may belong to one of several causes.
    pub fn or_ended_by<T>(&self, answer: Answer<T>, causes: &[Cause]) -> Answer<Option<T>> {
        match answer {
            Err(ended) if causes.iter().any(|cause| ended.by.fits(*cause, self.kind)) => Ok(None),
            answer => answer.map(Some),
        }
    }

    fn number(&mut self, path: &str, body: &[u8]) -> Answer<u64> {
        let text = self.request(path, body)?;
        Ok(u64::from_str_radix(String::from_utf8_lossy(&text).trim(), 16).unwrap_or(0))
    }

    pub fn sym(&mut self, name: &str) -> Answer<u64> {
        self.number(&format!("/sym/{name}"), b"")
    }

    pub fn alloc(&mut self, len: u64) -> Answer<u64> {
        self.number(&format!("/alloc/{len:x}"), b"")
    }

    pub fn peek(&mut self, at: u64, len: u64) -> Answer<Vec<u8>> {
        self.request(&format!("/peek/{at:x}/{len:x}"), b"")
    }

    pub fn poke(&mut self, at: u64, bytes: &[u8]) -> Answer<()> {
        self.request(&format!("/poke/{at:x}"), bytes).map(drop)
    }

    /// Calls a function: what it returns, and errno.
    fn call_for(&mut self, at: u64, args: &[u64]) -> Answer<(i64, i64)> {
        let args: String = args.iter().map(|a| format!("/{a:x}")).collect();
        let text = self.request(&format!("/call/{at:x}{args}"), b"")?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let mut words = text.split(' ').map(|w| w.parse::<i64>().unwrap_or(0));
        Ok((words.next().unwrap_or(0), words.next().unwrap_or(0)))
    }

    /// Calls a function: what it returns.
    pub fn call(&mut self, at: u64, args: &[u64]) -> Answer {
        self.call_for(at, args).map(|r| r.0)
    }

    /// Calls a function of the C library: what it returns, or the negated errno.
    pub fn libc(&mut self, name: &str, args: &[u64]) -> Answer {
        let at = self.sym(name)?;
        let (result, errno) = self.call_for(at, args)?;
        // An `int` that is -1 need not fill the register.
        Ok(if result == -1 || result == 0xffff_ffff { -errno } else { result })
    }

    /// A buffer for arguments, the same for the whole instance.
    fn scratch(&mut self) -> Answer<u64> {
        if let Some(at) = self.scratch {
            return Ok(at);
        }
        let at = self.alloc(0x1000)?;
        self.scratch = Some(at);
        Ok(at)
    }

    /// A string in the victim's memory.
    pub fn text(&mut self, text: &str) -> Answer<u64> {
        let at = self.alloc(0x1000)?;
        self.poke(at, text.as_bytes())?;
        Ok(at)
    }

    /// Puts code into fresh memory and asks for the right to execute it: what a ROP chain does first. The inner error is the errno.
    pub fn inject(&mut self, code: &'static [u8]) -> Answer<Result<u64, i64>> {
        if let Some(at) = self.placed.get(code) {
            return Ok(Ok(*at));
        }
        let at = self.alloc(0x1000)?;
        self.poke(at, code)?;
        let result = self.libc("mprotect", &[at, 0x1000, 7])?;
        if result != 0 {
            return Ok(Err(-result));
        }
        self.placed.insert(code, at);
        Ok(Ok(at))
    }

    /// Runs injected code with words as its argument; for containers, where injection works.
    pub fn run(&mut self, code: &'static [u8], words: &[u64]) -> Answer {
        let Ok(at) = self.inject(code)? else { return Ok(i64::MIN) };
        let scratch = self.scratch()?;
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.poke(scratch, &bytes)?;
        self.call(at, &[scratch])
    }

    /// A system call: of injected code in a container; of an instruction that is there already in an image. Its result, or the negated errno.
    pub fn syscall(&mut self, number: u64, args: &[u64]) -> Answer {
        let mut words = [0; 7];
        words[0] = number;
        words[1..=args.len()].copy_from_slice(args);
        if self.kind.is_donjon() {
            let at = self.sym("gadget_syscall")?;
            return self.call(at, &words);
        }
        self.run(code::PROXY, &words)
    }

    /// Another program with `fd` as its standard streams: its exit status, as `wait4` gives it.
    pub fn spawn(&mut self, path: &str, args: &[&str], fd: u64) -> Answer<u64> {
        let program = self.text(path)?;
        let mut argv = Vec::new();
        for arg in std::iter::once(&path).chain(args) {
            argv.push(self.text(arg)?);
        }
        argv.push(0);
        let at = self.alloc(0x1000)?;
        let bytes: Vec<u8> = argv.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.poke(at, &bytes)?;
        let pid = self.run(code::SPAWN, &[program, at, at + 8 * (argv.len() as u64 - 1), fd])?;
        if pid <= 0 {
            return Ok(127 << 8);
        }
        self.wait(pid as u64)
    }

    /// Waits for a child.
    pub fn wait(&mut self, pid: u64) -> Answer<u64> {
        let at = self.alloc(0x1000)?;
        self.syscall(61, &[pid, at, 0, 0])?;
        let status = self.peek(at, 4)?;
        Ok(u64::from(u32::from_le_bytes(status.try_into().unwrap_or_default())))
    }

    /// A TCP connection: the descriptor, or the negated errno. `socket` and `connect` of the C library in an image, system calls elsewhere.
    pub fn connect(&mut self, ip: [u8; 4], port: u16) -> Answer {
        let [high, low] = port.to_be_bytes();
        let address = self.alloc(0x1000)?;
        let bytes = [2, 0, high, low, ip[0], ip[1], ip[2], ip[3], 0, 0, 0, 0, 0, 0, 0, 0];
        self.poke(address, &bytes)?;
        let donjon = self.kind.is_donjon();
        let fd = if donjon { self.libc("socket", &[2, 1, 0])? } else { self.syscall(41, &[2, 1, 0])? };
        if fd < 0 {
            return Ok(fd);
        }
        let args = [fd as u64, address, 16];
        let result = if donjon { self.libc("connect", &args)? } else { self.syscall(42, &args)? };
        Ok(if result < 0 { result } else { fd })
    }

    /// Opens a file in whichever way the kind has.
    pub fn open(&mut self, path: &str, flags: u64, mode: u64) -> Answer {
        let at = self.text(path)?;
        if self.kind.is_donjon() { self.libc("open", &[at, flags, mode]) } else { self.syscall(2, &[at, flags, mode]) }
    }

    /// Reads from a descriptor.
    pub fn read(&mut self, fd: i64, len: u64) -> Answer<Vec<u8>> {
        let at = self.alloc(len)?;
        let args = [fd as u64, at, len];
        let n = if self.kind.is_donjon() { self.libc("read", &args)? } else { self.syscall(0, &args)? };
        if n <= 0 { Ok(Vec::new()) } else { self.peek(at, n as u64) }
    }

    /// Writes to a descriptor.
    pub fn write(&mut self, fd: i64, bytes: &[u8]) -> Answer {
        let at = self.alloc(bytes.len() as u64)?;
        self.poke(at, bytes)?;
        let args = [fd as u64, at, bytes.len() as u64];
        if self.kind.is_donjon() { self.libc("write", &args) } else { self.syscall(1, &args) }
    }
}

/// How long nothing may come from a victim that runs.
const SILENCE: Duration = Duration::from_secs(10);

/// Asks, and waits for the whole answer or for the end of the process: from a guest on a TAP that has ended nothing comes, no reset either.
fn ask(mut s: &TcpStream, path: &str, body: &[u8], process: Option<BorrowedFd<'_>>) -> std::io::Result<Vec<u8>> {
    s.set_nonblocking(true)?;
    let head = format!("POST {path} HTTP/1.1\r\nHost: drill\r\nContent-Length: {}\r\n\r\n", body.len());
    let question = [head.as_bytes(), body].concat();
    let mut sent = 0;
    // By its length: a child of the victim's may hold the connection open.
    let bad = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let mut answer = Vec::new();
    let mut room = vec![0; 65536];
    let mut ended = false;
    loop {
        if let Some(at) = answer.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&answer[..at]).into_owned();
            let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")?.parse::<usize>().ok());
            if answer.len() - at - 4 >= length.ok_or_else(bad)? {
                return Ok(answer.split_off(at + 4));
            }
        }
        match s.read(&mut room) {
            Ok(0) => return Err(bad()),
            Ok(n) => {
                answer.extend_from_slice(&room[..n]);
                continue;
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && !ended => {}
            Err(e) => return Err(e),
        }
        let wanted = if sent < question.len() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        ended = await_any(s, wanted, process)?;
        if sent < question.len() {
            match s.write(&question[sent..]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// Waits until the connection is ready or the process has ended: whether it has.
fn await_any(s: &TcpStream, wanted: PollFlags, process: Option<BorrowedFd<'_>>) -> std::io::Result<bool> {
    let deadline = Instant::now() + SILENCE;
    let mut fds = vec![PollFd::new(s, wanted)];
    fds.extend(process.iter().map(|p| PollFd::new(p, PollFlags::IN)));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return Err(std::io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(fds.get(1).is_some_and(|p| !p.revents().is_empty())),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// The line that says why it ended.
fn last_words(log: &str) -> String {
    let lines = || log.lines().rev();
    // A crash's first line says no more than that it is one.
    let report = log.lines().skip_while(|l| !l.starts_with("donjon: the guest crashed")).nth(1);
    let line = report.or_else(|| {
        lines().find(|l| {
            let l = l.to_lowercase();
            ["fault", "system call", "donjon:", "killed", "segmentation", "panicked"].iter().any(|w| l.contains(w))
        })
    });
    line.map_or_else(|| "nothing on the console".to_owned(), |l| l.trim().to_owned())
}

/// Makes a root directory from this machine's own files: with a shell and utilities, or with nothing but the program and its libraries.
pub fn make_root(root: &Path, program: &Path, utilities: &[&str]) -> std::io::Result<()> {
    let _ = std::fs::remove_dir_all(root);
    for dir in ["srv", "bin", "usr/local/bin", "etc", "tmp", "var/log", "proc", "dev"] {
        std::fs::create_dir_all(root.join(dir))?;
    }
    let mut programs = vec![(program.to_owned(), PathBuf::from("srv/drill"))];
    for name in utilities {
        let found = ["/bin", "/usr/bin"].iter().map(|d| Path::new(d).join(name)).find(|p| p.exists());
        if let Some(path) = found {
            programs.push((path, Path::new("bin").join(name)));
        }
    }
    for (from, to) in &programs {
        std::fs::copy(from, root.join(to))?;
        let libraries = Command::new("ldd").arg(from).output()?;
        for word in String::from_utf8_lossy(&libraries.stdout).split_whitespace().filter(|w| w.starts_with('/')) {
            let to = root.join(word.trim_start_matches('/'));
            std::fs::create_dir_all(to.parent().unwrap_or(root))?;
            std::fs::copy(word, to)?;
        }
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/usr/sbin/nologin\n",
    )?;
    let shadow = root.join("etc/shadow");
    std::fs::write(&shadow, "root:$6$drill$notarealhash:19000:0:99999:7:::\n")?;
    std::fs::set_permissions(&shadow, std::os::unix::fs::PermissionsExt::from_mode(0o640))
}

impl Drop for Victim<'_> {
    fn drop(&mut self) {
        self.restart();
    }
}
