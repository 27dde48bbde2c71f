//! What is measured, and how it is started.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;

use donjon_tests::{Engine, GUEST_IP, Guest, Need, Netns, example, have, host_program, repo_root};

/// Port of the examples.
const PORT: u16 = 8080;
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
    /// A guest under the process engine, user-mode networking.
    ProcessUser,
    /// A guest under QEMU's microvm, TCG, QEMU's user network.
    QemuMicrovm,
}

impl Subject {
    /// All of them.
    pub const ALL: [Subject; 5] =
        [Subject::NativeVeth, Subject::ProcessTap, Subject::NativeLoopback, Subject::ProcessUser, Subject::QemuMicrovm];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Subject::NativeVeth => "native-veth",
            Subject::NativeLoopback => "native-loopback",
            Subject::ProcessTap => "process-tap",
            Subject::ProcessUser => "process-user",
            Subject::QemuMicrovm => "qemu-microvm",
        }
    }

    /// The subject of that name.
    pub fn from_name(name: &str) -> Option<Subject> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }

    /// Whether this machine can run it.
    pub fn possible(self) -> bool {
        match self {
            Subject::NativeVeth | Subject::ProcessTap => have(Need::Tap),
            Subject::NativeLoopback | Subject::ProcessUser => true,
            Subject::QemuMicrovm => have(Need::Qemu),
        }
    }

    /// What it is compared with: the native process that is reached in the same way.
    pub fn baseline(self) -> Option<Subject> {
        match self {
            Subject::NativeVeth | Subject::NativeLoopback => None,
            Subject::ProcessTap => Some(Subject::NativeVeth),
            Subject::ProcessUser | Subject::QemuMicrovm => Some(Subject::NativeLoopback),
        }
    }

    /// The file that runs: image or stripped program.
    pub fn file(self, program: &str) -> PathBuf {
        match self {
            Subject::NativeVeth | Subject::NativeLoopback => host_program(program),
            _ => example(program),
        }
    }

    /// Starts it.
    pub fn start(self, program: &str) -> Guest {
        // Without root there is no namespace to be had; then the machine's own loopback has to do.
        let own_loopback = || have(Need::Tap).then(Netns::empty);
        let builder = |engine| {
            Guest::builder(&example(program), engine)
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
                // The client's namespace lives as long as the guest does, and with it the veth pair; the server's process
                // keeps the server's namespace alive.
                Guest::program(self.name(), command, address, Some(client))
            }
            Subject::NativeLoopback => {
                let ns = own_loopback();
                let port = if ns.is_some() { PORT } else { 18_080 };
                let mut command = ns.as_ref().map_or_else(|| Command::new(pinned[0]), |ns| ns.command(pinned[0]));
                command.args(&pinned[1..]).arg(host_program(program)).env("PORT", port.to_string());
                command.current_dir(repo_root().join("examples").join(program));
                Guest::program(self.name(), command, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), ns)
            }
            Subject::ProcessTap => {
                let ns = Netns::with_tap();
                ns.ask_fast();
                builder(Engine::ProcessTap).wrapper(pinned).start_in(Some(ns))
            }
            Subject::ProcessUser => builder(Engine::ProcessUser).wrapper(pinned).start_in(own_loopback()),
            Subject::QemuMicrovm => {
                // Memory from a memfd: then its resident pages are those that the guest has touched.
                let memfd = format!("memory-backend-memfd,id=guest,size={MEMORY}M");
                let args = ["-object", &memfd, "-machine", "memory-backend=guest"].map(str::to_owned);
                let options = args.into_iter().flat_map(|arg| ["--qemu-arg".to_owned(), arg]);
                builder(Engine::QemuMicrovm).options(options).start_in(own_loopback())
            }
        }
    }
}
