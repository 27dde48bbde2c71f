//! A network namespace with one TAP device: the only place in which tests touch the network.

use std::fs::File;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The host's address in every namespace.
pub const HOST_IP: &str = "10.77.0.1";
/// The guest's address in every namespace.
pub const GUEST_IP: &str = "10.77.0.2";

/// The client's address behind a narrow link.
pub const CLIENT_IP: &str = "10.77.0.3";

/// A network namespace; removed when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
}

impl Netns {
    /// Name of the TAP device.
    pub const TAP: &'static str = "tap0";

    /// A namespace with loopback up and, with `tap`, a TAP device at [`HOST_IP`]`/24`.
    fn make(tap: bool) -> Netns {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("donjon-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let ns = Netns(Arc::new(Inner { name }));
        ns.ip(&["link", "set", "lo", "up"]);
        if tap {
            ns.ip(&["tuntap", "add", "dev", Self::TAP, "mode", "tap", "vnet_hdr"]);
            ns.ip(&["addr", "add", &format!("{HOST_IP}/24"), "dev", Self::TAP]);
            ns.ip(&["addr", "add", "fd77::1/64", "dev", Self::TAP, "nodad"]);
            ns.ip(&["link", "set", Self::TAP, "up"]);
        }
        ns
    }

    /// A namespace with loopback only.
    pub fn empty() -> Netns {
        Self::make(false)
    }

    /// A namespace with a TAP device, its host side at [`HOST_IP`].
    pub fn with_tap() -> Netns {
        Self::make(true)
    }

    /// A namespace with a TAP device whose guest reaches the second namespace, at [`CLIENT_IP`], by a bridge and a link that is too narrow for both:
    /// whatever a short queue does not hold is lost on the way to the client.
    pub fn with_narrow_tap() -> (Netns, Netns) {
        let (bridge, client) = (Self::make(true), Self::make(false));
        bridge.ip(&["link", "add", "br0", "type", "bridge"]);
        bridge.ip(&["link", "add", "veth0", "type", "veth", "peer", "name", "veth1", "netns", client.name()]);
        bridge.ip(&["addr", "flush", "dev", Self::TAP]);
        bridge.ip(&["addr", "add", &format!("{HOST_IP}/24"), "dev", "br0"]);
        for port in [Self::TAP, "veth0"] {
            bridge.ip(&["link", "set", port, "master", "br0"]);
        }
        for device in ["veth0", "br0"] {
            bridge.ip(&["link", "set", device, "up"]);
        }
        client.ip(&["addr", "add", &format!("{CLIENT_IP}/24"), "dev", "veth1"]);
        client.ip(&["link", "set", "veth1", "up"]);
        let narrow = ["add", "dev", "veth0", "root", "tbf", "rate", "200mbit", "burst", "20kb", "limit", "60kb"];
        bridge.tc("qdisc", &narrow);
        (bridge, client)
    }

    /// Packets that were lost on that link.
    pub fn lost(&self) -> u64 {
        // ` Sent 1 bytes 2 pkt (dropped 3, overlimits 4 requeues 5)`
        let text = self.tc("-s", &["qdisc", "show", "dev", "veth0"]);
        let number = text.split("(dropped ").nth(1).and_then(|t| t.split(',').next()?.parse().ok());
        number.unwrap_or_else(|| panic!("tc: {text}"))
    }

    fn tc(&self, first: &str, args: &[&str]) -> String {
        let output = self.command("tc").arg(first).args(args).output().unwrap_or_else(|e| panic!("cannot run tc: {e}"));
        assert!(output.status.success(), "tc {first} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Two namespaces that a veth pair joins: the first at [`HOST_IP`], the second at [`GUEST_IP`].
    pub fn veth_pair() -> (Netns, Netns) {
        let (host, guest) = (Self::make(false), Self::make(false));
        ip(&[
            "link",
            "add",
            "veth0",
            "netns",
            host.name(),
            "type",
            "veth",
            "peer",
            "name",
            "veth1",
            "netns",
            guest.name(),
        ]);
        for (ns, device, address) in [(&host, "veth0", HOST_IP), (&guest, "veth1", GUEST_IP)] {
            ns.ip(&["addr", "add", &format!("{address}/24"), "dev", device]);
            ns.ip(&["link", "set", device, "up"]);
        }
        (host, guest)
    }

    /// The namespace's name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Runs `ip -n NAMESPACE ARGS` and panics if it fails.
    pub fn ip(&self, args: &[&str]) {
        ip(&[&["-n", self.name()], args].concat());
    }

    /// Lets the host's side ask for the guest's Ethernet address again after 5 ms rather than after 1 s, so that a measurement of the time to
    /// the first answer does not measure the host's ARP timer.
    pub fn ask_fast(&self) {
        let path = format!("/proc/sys/net/ipv4/neigh/{}/retrans_time_ms", Self::TAP);
        self.run(|| std::fs::write(&path, "5").unwrap_or_else(|e| panic!("{path}: {e}")));
    }

    /// Tells the host's side the Ethernet address of the guest that will be there, as a router in front of it knows it already: without it, the time to the first
    /// answer has the host's ARP timer in it, which ticks every 5 ms at best.
    pub fn know_guest(&self, mac: &str) {
        self.ip(&["neigh", "replace", GUEST_IP, "lladdr", mac, "dev", Self::TAP, "nud", "permanent"]);
    }

    /// A command that runs `program` in the namespace. The process id stays the one of the spawned child.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg("--").arg(program);
        command
    }

    /// Runs `f` on a thread that is in the namespace. Sockets that it makes stay there.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let ns = File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
                move_into_link_name_space(ns.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
                f()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.name())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Best effort: a failure to clean up must not hide the test's own result.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap_or_else(|e| panic!("cannot run ip: {e}"));
    assert!(output.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
}
