//! QEMU without `donjon run` in between: the image must boot by itself with `-kernel`, and some tests turn knobs that users do not have.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::{Guest, PATIENCE, poll_until};

/// A virtual machine to be run to its end.
pub struct Machine<'a> {
    /// The image.
    pub image: &'a Path,
    /// `microvm` or `q35`.
    pub machine: &'a str,
    /// Memory in MiB.
    pub memory: u32,
    /// Size of the receive queue.
    pub rx_queue: Option<u32>,
    /// Kernel command line.
    pub append: &'a str,
    /// CPU model.
    pub cpu: &'a str,
    /// More arguments.
    pub more: &'a [&'a str],
}

/// How it ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// The guest's exit status, if it reported one: QEMU ends with `(status & 0x7f) << 1 | 1`.
    pub status: Option<i32>,
    /// Everything on the serial port, and QEMU's own messages.
    pub text: String,
}

impl Machine<'_> {
    /// The command, with QEMU's own user network. `forward` is a host port that leads to a port of the guest.
    pub fn command(&self, forward: Option<(u16, u16)>) -> Command {
        let queue = self.rx_queue.map(|n| format!(",rx_queue_size={n}")).unwrap_or_default();
        let forward =
            forward.map(|(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}")).unwrap_or_default();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-no-reboot", "-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]);
        command.args(["-M", self.machine, "-netdev", &format!("user,id=n0{forward}")]);
        if self.machine == "microvm" {
            command.args(["-global", "virtio-mmio.force-legacy=false"]);
            command.args(["-device", &format!("virtio-net-device,netdev=n0{queue}")]);
        } else {
            command.args(["-device", &format!("virtio-net-pci,netdev=n0,romfile={queue}")]);
        }
        command.args(["-cpu", self.cpu, "-m", &self.memory.to_string()]);
        if !self.append.is_empty() {
            command.args(["-append", self.append]);
        }
        command.args(self.more);
        command.arg("-kernel").arg(self.image);
        command
    }

    /// Runs it to its end; `None` if it does not end in that time.
    pub fn run(&self, patience: Duration) -> Option<Ended> {
        let mut command = self.command(None);
        let scratch = std::env::temp_dir().join(format!("donjon-qemu-{}-{:p}", std::process::id(), self));
        let output = std::fs::File::create(&scratch).expect("scratch file");
        let errors = output.try_clone().expect("scratch file");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
        let status = poll_until(patience, || child.try_wait().expect("own child"));
        if status.is_none() {
            // Still our child, so the id is still its own.
            let _ = child.kill();
            let _ = child.wait();
        }
        let text = String::from_utf8_lossy(&std::fs::read(&scratch).unwrap_or_default()).into_owned();
        let _ = std::fs::remove_file(&scratch);
        let code = status?.code();
        Some(Ended { status: code.filter(|c| c & 1 == 1).map(|c| c >> 1), text })
    }

    /// Runs it until its console has that text: what the CPU's registers hold then.
    #[track_caller]
    pub fn registers(&self, text: &str) -> Registers {
        let socket = std::env::temp_dir().join(format!("donjon-qmp-{}-{:p}", std::process::id(), self));
        let mut command = self.command(None);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        let nowhere = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let mut guest = Guest::program(&format!("{} with {}", self.machine, self.cpu), command, nowhere, None);
        guest.wait_console(text);
        let answer = human_monitor(&socket, "info registers").unwrap_or_else(|e| panic!("QMP: {e}\n{}", guest.log()));
        let _ = std::fs::remove_file(&socket);
        let read = |name: &str| {
            let (_, rest) = answer.split_once(&format!("{name}="))?;
            u64::from_str_radix(rest.split(|c: char| !c.is_ascii_hexdigit()).next()?, 16).ok()
        };
        let register = |name| read(name).unwrap_or_else(|| panic!("no {name} in {answer}"));
        Registers { cr0: register("CR0"), cr4: register("CR4"), efer: register("EFER") }
    }
}

/// Control registers (Intel SDM vol. 3 §2.2.1, §2.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registers {
    /// CR0.
    pub cr0: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
}

/// What QEMU's monitor answers to a command: one JSON string.
fn human_monitor(socket: &Path, command: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut ask = |request: &str| {
        writeln!(stream, "{request}")?;
        // The greeting, and events, are no answers.
        let answer = lines.find(|l| l.as_ref().map_or(true, |l| l.starts_with("{\"return\"")));
        answer.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
    };
    ask(r#"{"execute":"qmp_capabilities"}"#)?;
    ask(&format!(r#"{{"execute":"human-monitor-command","arguments":{{"command-line":"{command}"}}}}"#))
}
