//! A running guest.

use std::fmt;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::http::{self, Response};
use crate::{GUEST_IP, HOST_IP, Need, Netns, donjon_command};

/// How long any wait may take before the test fails: far above what a healthy run needs on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where a guest runs, and how it is reached.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Engine {
    /// Sandboxed process, user-mode networking, published port.
    ProcessUser,
    /// Sandboxed process, TAP in a network namespace of its own.
    ProcessTap,
    /// QEMU's microvm machine, TCG, the monitor's user-mode networking.
    QemuMicrovm,
    /// QEMU's q35 machine, TCG, the monitor's user-mode networking.
    QemuQ35,
}

impl Engine {
    /// All of them.
    pub const ALL: [Engine; 4] = [Engine::ProcessUser, Engine::ProcessTap, Engine::QemuMicrovm, Engine::QemuQ35];

    /// What the machine must have for it.
    pub fn needs(self) -> &'static [Need] {
        match self {
            Engine::ProcessUser => &[],
            Engine::ProcessTap => &[Need::Tap],
            Engine::QemuMicrovm | Engine::QemuQ35 => &[Need::Qemu],
        }
    }

    /// Whether it is a virtual machine (emulated here, so slow).
    pub fn is_qemu(self) -> bool {
        matches!(self, Engine::QemuMicrovm | Engine::QemuQ35)
    }

    fn args(self) -> &'static [&'static str] {
        match self {
            Engine::ProcessUser | Engine::ProcessTap => &["--engine", "process"],
            Engine::QemuMicrovm => &["--engine", "qemu", "--machine", "microvm"],
            Engine::QemuQ35 => &["--engine", "qemu", "--machine", "q35"],
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::ProcessUser => "process/user",
            Engine::ProcessTap => "process/tap",
            Engine::QemuMicrovm => "qemu/microvm",
            Engine::QemuQ35 => "qemu/q35",
        })
    }
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Builder {
    image: PathBuf,
    engine: Engine,
    ports: Vec<u16>,
    udp_ports: Vec<u16>,
    options: Vec<String>,
    args: Vec<String>,
    wrapper: Vec<String>,
    tap: String,
}

impl Builder {
    /// The resolver of a TAP guest.
    pub fn dns(self, address: &str) -> Self {
        self.tap(&format!("dns={address}"))
    }

    /// One more word for the TAP of a guest that has one: `mac=02:00:00:00:00:07`, `ip=fd77::2/64`.
    pub fn tap(mut self, word: &str) -> Self {
        self.tap += &format!(",{word}");
        self
    }

    /// Publishes a TCP port of the guest. The first one is where [`Guest::connect`] goes.
    pub fn port(mut self, port: u16) -> Self {
        self.ports.push(port);
        self
    }

    /// Publishes a UDP port of the guest.
    pub fn udp_port(mut self, port: u16) -> Self {
        self.udp_ports.push(port);
        self
    }

    /// More options for `donjon run`.
    pub fn options<S: Into<String>>(mut self, options: impl IntoIterator<Item = S>) -> Self {
        self.options.extend(options.into_iter().map(Into::into));
        self
    }

    /// Memory, as `donjon run -m` takes it.
    pub fn memory(self, amount: &str) -> Self {
        self.options(["-m", amount])
    }

    /// Arguments of the guest program.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// A command to put in front, such as `taskset -c 1`.
    pub fn wrapper<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.wrapper.extend(words.into_iter().map(Into::into));
        self
    }

    /// Starts it. Does not wait for anything.
    pub fn start(&self) -> Guest {
        let ns = (self.engine == Engine::ProcessTap).then(Netns::with_tap);
        self.start_in(ns)
    }

    /// Starts it in the given namespace, which for a TAP guest has a TAP.
    pub fn start_in(&self, ns: Option<Netns>) -> Guest {
        // Made first: may have to build the program, which must not count as the guest's time.
        let donjon = donjon_command();
        let mut words: Vec<std::ffi::OsString> = self.wrapper.iter().map(Into::into).collect();
        words.push(donjon.get_program().to_owned());
        let mut command = match &ns {
            Some(ns) => ns.command(&words[0]),
            None => Command::new(&words[0]),
        };
        command.args(&words[1..]).arg("run").arg(&self.image).args(self.engine.args()).args(&self.options);
        let mut ports = Vec::new();
        let mut udp_ports = Vec::new();
        let tap = self.engine == Engine::ProcessTap;
        if tap {
            command.args(["--net", &format!("tap:{},ip={GUEST_IP}/24,gw={HOST_IP}{}", Netns::TAP, self.tap)]);
            ports.clone_from(&self.ports);
            udp_ports.clone_from(&self.udp_ports);
        } else {
            for guest in &self.ports {
                let host = free_tcp_port();
                command.args(["-p", &format!("127.0.0.1:{host}:{guest}")]);
                ports.push(host);
            }
            for guest in &self.udp_ports {
                let host = free_udp_port();
                command.args(["-p", &format!("127.0.0.1:{host}:{guest}/udp")]);
                udp_ports.push(host);
            }
        }
        if !self.args.is_empty() {
            command.arg("--").args(&self.args);
        }
        let address = if tap { GUEST_IP.parse().expect("an address") } else { Ipv4Addr::LOCALHOST };
        Guest::spawn(self.engine.to_string(), command, address, ports, udp_ports, ns)
    }

    /// Starts it and waits until `GET path` on the first port is answered with 200.
    pub fn start_http(&self, path: &str) -> Guest {
        let mut guest = self.start();
        guest.wait_http(path);
        guest
    }

    /// Runs it to its end.
    pub fn run(&self) -> Exit {
        self.start().wait()
    }
}

/// How a guest ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exit {
    /// Exit code; `None` if `donjon run` itself was killed by a signal.
    pub code: Option<i32>,
    /// Everything on standard output.
    pub stdout: String,
    /// Everything on standard error.
    pub stderr: String,
}

impl Exit {
    /// Fails the test unless the exit code is this one.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "exit code\n{self}");
        self
    }

    /// Fails the test unless standard output and error together contain the text.
    #[track_caller]
    pub fn expect_text(&self, text: &str) -> &Self {
        assert!(self.stdout.contains(text) || self.stderr.contains(text), "{text:?} is missing from\n{self}");
        self
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit {:?}\n--- stdout\n{}\n--- stderr\n{}", self.code, self.stdout, self.stderr)
    }
}

/// A running guest; ended, with all that belongs to it, when dropped.
pub struct Guest {
    child: Child,
    label: String,
    address: Ipv4Addr,
    ports: Vec<u16>,
    udp_ports: Vec<u16>,
    ns: Option<Netns>,
    others: Vec<Netns>,
    console: Arc<Console>,
    readers: Vec<std::thread::JoinHandle<()>>,
    started: Instant,
    exit: Option<ExitStatus>,
}

impl Guest {
    /// What to start: `image` under `engine`.
    pub fn builder(image: &Path, engine: Engine) -> Builder {
        Builder {
            image: image.to_owned(),
            engine,
            ports: Vec::new(),
            udp_ports: Vec::new(),
            options: Vec::new(),
            args: Vec::new(),
            wrapper: Vec::new(),
            tap: String::new(),
        }
    }

    /// An ordinary program in the place of a guest, for comparisons: `command` serves TCP at `address`, which is reached from `ns`.
    pub fn program(label: &str, command: Command, address: SocketAddrV4, ns: Option<Netns>) -> Guest {
        Self::spawn(label.to_owned(), command, *address.ip(), vec![address.port()], Vec::new(), ns)
    }

    /// The same guest, with another namespace that is to live as long as it does.
    pub fn keeping(mut self, ns: Netns) -> Guest {
        self.others.push(ns);
        self
    }

    fn spawn(
        label: String,
        mut command: Command,
        address: Ipv4Addr,
        ports: Vec<u16>,
        udp_ports: Vec<u16>,
        ns: Option<Netns>,
    ) -> Guest {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
        let console = Arc::new(Console::default());
        let readers = vec![
            console.follow(child.stdout.take().expect("piped"), Stream::Out),
            console.follow(child.stderr.take().expect("piped"), Stream::Err),
        ];
        Guest { child, label, address, ports, udp_ports, ns, others: Vec::new(), console, readers, started, exit: None }
    }

    /// Process id of `donjon run`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Its namespace, if it has one.
    pub fn netns(&self) -> Option<&Netns> {
        self.ns.as_ref()
    }

    /// The address of its first published TCP port, as a client (in its namespace) must name it.
    pub fn addr(&self) -> SocketAddr {
        self.addr_of(0)
    }

    /// The address of its published TCP port number `index`.
    pub fn addr_of(&self, index: usize) -> SocketAddr {
        SocketAddrV4::new(self.address, self.ports[index]).into()
    }

    /// The address of its first published UDP port.
    pub fn udp_addr(&self) -> SocketAddr {
        SocketAddrV4::new(self.address, self.udp_ports[0]).into()
    }

    /// `http://ADDR/path`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr())
    }

    /// Runs `f` where the guest can be reached: in its namespace, if it has one.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        match &self.ns {
            Some(ns) => ns.run(f),
            None => f(),
        }
    }

    /// A command that runs where the guest can be reached.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.ns.as_ref().map_or_else(|| Command::new(program), |ns| ns.command(program));
        command.stdin(Stdio::null());
        command
    }

    /// A connection to the first published TCP port.
    pub fn connect(&self) -> io::Result<TcpStream> {
        let addr = self.addr();
        self.run(|| connect(addr))
    }

    /// A socket that is connected to the first published UDP port.
    pub fn udp(&self) -> io::Result<UdpSocket> {
        let addr = self.udp_addr();
        self.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(addr)?;
            Ok(socket)
        })
    }

    /// One GET request on a fresh connection.
    pub fn get(&self, path: &str) -> io::Result<Response> {
        http::get(self.connect()?, path)
    }

    /// Runs `curl` with these arguments and returns what it printed; fails the test if curl fails.
    #[track_caller]
    pub fn curl(&self, args: &[&str]) -> Vec<u8> {
        let output = self
            .command("curl")
            .args(["--silent", "--show-error", "--max-time", "120"])
            .args(args)
            .output()
            .expect("cannot run curl");
        assert!(
            output.status.success(),
            "curl {args:?}: {}\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        output.stdout
    }

    /// Waits until `GET path` is answered with 200.
    #[track_caller]
    pub fn wait_http(&mut self, path: &str) {
        let mut last = String::new();
        let ready = poll_until(PATIENCE, || {
            if self.exit_status().is_some() {
                last = "it ended".to_owned();
                return Some(false);
            }
            match self.get(path) {
                Ok(r) if r.status == 200 => return Some(true),
                Ok(r) => last = format!("status {}", r.status),
                Err(e) => last = e.to_string(),
            }
            None
        });
        assert!(ready == Some(true), "{}: no 200 for {path}: {last}\n{}", self.label, self.log());
    }

    /// Waits until the console (output and errors) contains `text`.
    #[track_caller]
    pub fn wait_console(&mut self, text: &str) {
        if !self.console.wait_for(text, PATIENCE) {
            panic!("{}: no {text:?} on the console\n{}", self.label, self.log());
        }
    }

    /// What it has written so far to standard output and standard error.
    pub fn log(&self) -> String {
        let text = self.console.lock();
        let [out, err] = [&text.out, &text.err].map(|b| String::from_utf8_lossy(b));
        format!("--- {} stdout\n{out}\n--- stderr\n{err}", self.label)
    }

    /// Whether it has ended.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().expect("wait for own child");
        }
        self.exit
    }

    /// How it ended and all that it has written, if it ends within `patience`.
    pub fn end_within(&mut self, patience: Duration) -> Option<(ExitStatus, String)> {
        let status = poll_until(patience, || self.exit_status())?;
        // The pipes close with the last process that holds them: after this the text is complete. Nobody waits for one that stays.
        poll_until(Duration::from_secs(2), || self.readers.iter().all(|r| r.is_finished()).then_some(()));
        Some((status, self.log()))
    }

    /// Fails the test if it has ended.
    #[track_caller]
    pub fn expect_alive(&mut self) {
        if let Some(status) = self.exit_status() {
            panic!("{} ended: {status}\n{}", self.label, self.log());
        }
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub fn wait(mut self) -> Exit {
        self.wait_within(PATIENCE * 2)
    }

    /// Asks it to stop (SIGTERM) and waits until it has.
    #[track_caller]
    pub fn stop(mut self) -> Exit {
        self.signal(rustix::process::Signal::TERM);
        self.wait_within(PATIENCE)
    }

    /// Sends a signal to `donjon run`.
    pub fn signal(&mut self, signal: rustix::process::Signal) {
        if self.exit_status().is_none() {
            let pid = rustix::process::Pid::from_child(&self.child);
            // It may have ended since; then there is nothing to signal.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    #[track_caller]
    fn wait_within(&mut self, patience: Duration) -> Exit {
        let status = poll_until(patience, || self.exit_status());
        let Some(status) = status else { panic!("{} does not end\n{}", self.label, self.log()) };
        // The pipes close with the last process that holds them: after this the text is complete.
        for reader in self.readers.drain(..) {
            reader.join().expect("console reader");
        }
        let text = self.console.lock();
        let [stdout, stderr] = [&text.out, &text.err].map(|b| String::from_utf8_lossy(b).into_owned());
        Exit { code: status.code(), stdout, stderr }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        if poll_until(Duration::from_secs(5), || self.exit_status()).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Calls `f` until it returns something, or `patience` is over.
pub fn poll_until<T>(patience: Duration, mut f: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(value) = f() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn free_tcp_port() -> u16 {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    socket.local_addr().expect("bound").port()
}

fn free_udp_port() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    socket.local_addr().expect("bound").port()
}

#[derive(Clone, Copy)]
enum Stream {
    Out,
    Err,
}

#[derive(Default)]
struct Text {
    out: Vec<u8>,
    err: Vec<u8>,
}

#[derive(Default)]
struct Console {
    text: Mutex<Text>,
    changed: Condvar,
}

impl Console {
    fn lock(&self) -> MutexGuard<'_, Text> {
        // Bytes that were appended stay right whatever happened to the thread that did it.
        self.text.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn follow(self: &Arc<Self>, mut pipe: impl Read + Send + 'static, stream: Stream) -> std::thread::JoinHandle<()> {
        let console = Arc::clone(self);
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                let mut text = console.lock();
                match stream {
                    Stream::Out => text.out.extend_from_slice(&buffer[..n]),
                    Stream::Err => text.err.extend_from_slice(&buffer[..n]),
                }
                console.changed.notify_all();
            }
        })
    }

    fn wait_for(&self, needle: &str, patience: Duration) -> bool {
        let found = |text: &Text| [&text.out, &text.err].iter().any(|b| String::from_utf8_lossy(b).contains(needle));
        let (_text, timeout) = self
            .changed
            .wait_timeout_while(self.lock(), patience, |text| !found(text))
            .unwrap_or_else(|e| e.into_inner());
        !timeout.timed_out()
    }
}
