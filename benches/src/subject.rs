//! What is measured, and how it is started.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;

use donjon_tests::qemu::Machine;
use donjon_tests::{Engine, GUEST_IP, Guest, Need, Netns, example, for_speed, have, host_program, repo_root};

/// Port of the examples.
const PORT: u16 = 8080;
/// Ethernet address of guests on a TAP.
const MAC: &str = "02:00:00:00:00:07";
/// Memory of guests, MiB.
const MEMORY: u32 = 64;

/// A way to run the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// A Linux process; the client is at the other end of a veth pair.
    NativeVeth,
    /// A Linux process; the client is beside it.
    NativeLoopback,
    /// A guest under the process engine, TAP.
    ProcessTap,
    /// The same, its image compiled with `--speed`, as the native process is.
    ProcessTapSpeed,
    /// A guest under the process engine, user-mode networking.
    ProcessUser,
    /// A guest under QEMU's microvm, TCG, the monitor's user-mode networking.
    QemuMicrovm,
    /// The same image booted by QEMU alone, with QEMU's own user network.
    QemuSlirp,
}

impl Subject {
    /// All of them.
    pub const ALL: [Subject; 7] = [
        Subject::NativeVeth,
        Subject::ProcessTap,
        Subject::ProcessTapSpeed,
        Subject::NativeLoopback,
        Subject::ProcessUser,
        Subject::QemuMicrovm,
        Subject::QemuSlirp,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Subject::NativeVeth => "native-veth",
            Subject::NativeLoopback => "native-loopback",
            Subject::ProcessTap => "process-tap",
            Subject::ProcessTapSpeed => "process-tap-speed",
            Subject::ProcessUser => "process-user",
            Subject::QemuMicrovm => "qemu-microvm",
            Subject::QemuSlirp => "qemu-slirp",
        }
    }

    /// The subject of that name.
    pub fn from_name(name: &str) -> Option<Subject> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }

    /// Whether this machine can run it.
    pub fn possible(self) -> bool {
        match self {
            Subject::NativeVeth | Subject::ProcessTap | Subject::ProcessTapSpeed => have(Need::Tap),
            Subject::NativeLoopback | Subject::ProcessUser => true,
            Subject::QemuMicrovm | Subject::QemuSlirp => have(Need::Qemu),
        }
    }

    /// What it is compared with: the native process that is reached in the same way.
    pub fn baseline(self) -> Option<Subject> {
        match self {
            Subject::NativeVeth | Subject::NativeLoopback => None,
            Subject::ProcessTap | Subject::ProcessTapSpeed => Some(Subject::NativeVeth),
            Subject::ProcessUser | Subject::QemuMicrovm | Subject::QemuSlirp => Some(Subject::NativeLoopback),
        }
    }

    /// The file that runs: image or stripped program.
    pub fn file(self, program: &str) -> PathBuf {
        match self {
            Subject::NativeVeth | Subject::NativeLoopback => host_program(program),
            Subject::ProcessTapSpeed => for_speed(&repo_root().join("examples").join(program)),
            _ => example(program),
        }
    }

    /// Whether it is an emulated machine.
    pub fn is_qemu(self) -> bool {
        matches!(self, Subject::QemuMicrovm | Subject::QemuSlirp)
    }

    /// Starts it.
    pub fn start(self, program: &str) -> Guest {
        // Without root there is no namespace to be had; then the machine's own loopback has to do.
        let own_loopback = || have(Need::Tap).then(Netns::empty);
        let builder = |engine| {
            Guest::builder(&self.file(program), engine)
                .port(PORT)
                .memory(&format!("{MEMORY}M"))
                .options(["-e", "RUST_LOG=off"])
        };
        let pinned = ["taskset", "-c", "0"];
        match self {
            Subject::NativeVeth => {
                let (client, server) = Netns::veth_pair();
                let address = SocketAddrV4::new(GUEST_IP.parse().expect("an address"), PORT);
                let mut command = server.command(pinned[0]);
                command.args(&pinned[1..]).arg(host_program(program)).env("PORT", PORT.to_string());
                command.current_dir(repo_root().join("examples").join(program));
                Guest::program(self.name(), command, address, Some(client)).keeping(server)
            }
            Subject::NativeLoopback => {
                let ns = own_loopback();
                let port = if ns.is_some() { PORT } else { 18_080 };
                let mut command = ns.as_ref().map_or_else(|| Command::new(pinned[0]), |ns| ns.command(pinned[0]));
                command.args(&pinned[1..]).arg(host_program(program)).env("PORT", port.to_string());
                command.current_dir(repo_root().join("examples").join(program));
                Guest::program(self.name(), command, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), ns)
            }
            Subject::ProcessTap | Subject::ProcessTapSpeed => {
                let ns = Netns::with_tap();
                ns.know_guest(MAC);
                builder(Engine::ProcessTap).tap(&format!("mac={MAC}")).wrapper(pinned).start_in(Some(ns))
            }
            Subject::ProcessUser => builder(Engine::ProcessUser).wrapper(pinned).start_in(own_loopback()),
            Subject::QemuMicrovm => {
                let options = memfd().into_iter().flat_map(|arg| ["--qemu-arg".to_owned(), arg]);
                builder(Engine::QemuMicrovm).options(options).start_in(own_loopback())
            }
            Subject::QemuSlirp => {
                let ns = own_loopback();
                let port = if ns.is_some() { PORT } else { 18_080 };
                let image = example(program);
                let machine = Machine {
                    image: &image,
                    machine: "microvm",
                    memory: MEMORY,
                    rx_queue: None,
                    append: "",
                    cpu: "max",
                    more: &[],
                };
                let qemu = machine.command(Some((port, PORT)));
                let mut command = ns.as_ref().map_or_else(|| Command::new("env"), |ns| ns.command("env"));
                command.arg(qemu.get_program()).args(qemu.get_args()).args(memfd());
                Guest::program(self.name(), command, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), ns)
            }
        }
    }
}

/// Arguments that let QEMU take the guest's memory from a memfd: its resident pages are those that the guest has touched.
fn memfd() -> [String; 4] {
    let object = format!("memory-backend-memfd,id=guest,size={MEMORY}M");
    ["-object", &object, "-machine", "memory-backend=guest"].map(str::to_owned)
}
