//! What a caller may choose about a run.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use donjon_image::Protocol;

use crate::jail;
use crate::secrets::Secret;

/// Everything about a run that is not in the image.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Which engine.
    pub engine: Engine,
    /// Memory budget in bytes; `None` is what the manifest says.
    pub memory: Option<u64>,
    /// Arguments after the program's name; `None` is what the manifest says.
    pub args: Option<Vec<String>>,
    /// `NAME=value` entries on top of the manifest's; a later one replaces an earlier one of the same name.
    pub env: Vec<String>,
    /// The network.
    pub net: NetMode,
    /// Ports of the host that lead to ports of the guest ([`NetMode::User`] only).
    pub publish: Vec<Publish>,
    /// What the guest is handed at its start and what is not in its image.
    pub secrets: Vec<Secret>,
    /// How long the guest may take to stop after it has been asked to; `None` is what the manifest says.
    pub stop_timeout: Option<Duration>,
    /// Lets the guest serve on any port, whatever its manifest says.
    pub listen_any: bool,
    /// Lets the guest connect to anything, whatever its manifest says.
    pub egress_any: bool,
    /// TCP connections that the guest may open in a second (0: no limit); `None` is what the manifest says.
    pub limit_connections: Option<u32>,
    /// Bytes that the guest may send in a second (0: no limit); `None` is what the manifest says.
    pub limit_send: Option<u64>,
    /// Talk on standard error about what is being done.
    pub verbose: bool,
    /// Called while a virtual machine starts, which takes a while; called in the jail, so that it can write but not open anything.
    pub starting: Option<fn(Starting)>,
    /// Print the jail as it was put on, and end before the guest's first instruction.
    pub explain_jail: Option<jail::Explain>,
    /// For tests: frames of a TAP pass through the monitor even if the kernel could filter them.
    #[doc(hidden)]
    pub relay_tap: bool,
    /// For `cargo xtask bench web --hardening`, which shows what these cost: not put on. The `donjon` command has no option for it.
    #[doc(hidden)]
    pub without: Vec<Protection>,
    /// For tests: called in the jail, before the guest starts.
    #[doc(hidden)]
    pub in_jail: Option<fn()>,
    /// For the test that no rule of the seccomp list is redundant: leaves one out, by name.
    #[doc(hidden)]
    pub without_rule: Option<&'static str>,
    /// The same for the monitor's own list.
    #[doc(hidden)]
    pub monitor_without_rule: Option<&'static str>,
    /// For tests: the address space that the monitor may get in its jail, bytes.
    #[doc(hidden)]
    pub monitor_memory: Option<u64>,
    /// For tests: the bytes that all connections of user-mode networking hold together.
    #[doc(hidden)]
    pub held: Option<usize>,
}

impl Default for RunOptions {
    fn default() -> Self {
        RunOptions {
            engine: Engine::Auto,
            memory: None,
            args: None,
            env: Vec::new(),
            net: NetMode::User,
            publish: Vec::new(),
            secrets: Vec::new(),
            stop_timeout: None,
            listen_any: false,
            egress_any: false,
            limit_connections: None,
            limit_send: None,
            verbose: false,
            starting: None,
            explain_jail: None,
            relay_tap: false,
            without: Vec::new(),
            in_jail: None,
            without_rule: None,
            monitor_without_rule: None,
            monitor_memory: None,
            held: None,
        }
    }
}

/// How far a virtual machine is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Starting {
    /// Nothing has come from it; said ten times a second.
    Waiting,
    /// It has written something or sent a frame, or has ended, or there is no more use in waiting; said once.
    Over,
}

/// See [`RunOptions::without`].
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    /// The filter of a TAP's frames.
    Frames,
    /// The rules for the system calls of the guest's process.
    Calls,
    /// The monitor's jail.
    Jail,
}

/// Who serves the gate.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Engine {
    /// The best one that fits here.
    Auto,
    /// A sandboxed process of this host.
    Process,
    /// A virtual machine in QEMU.
    Qemu(QemuOptions),
}

/// How to start QEMU.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct QemuOptions {
    /// Machine type.
    pub machine: Machine,
    /// The program; `None` is `qemu-system-x86_64` on the search path.
    pub program: Option<PathBuf>,
    /// Arguments that are passed on as they are. QEMU may use the files that they name.
    pub extra: Vec<String>,
    /// Without Landlock and without QEMU's own sandbox, because the arguments need more than that.
    pub unconfined: bool,
}

/// QEMU's machine types that an image boots on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Machine {
    /// No PCI, no firmware: the fastest.
    #[default]
    Microvm,
    /// A PC with PCI Express.
    Q35,
}

impl FromStr for Machine {
    type Err = OptionError;

    fn from_str(s: &str) -> Result<Self, OptionError> {
        match s {
            "microvm" => Ok(Machine::Microvm),
            "q35" => Ok(Machine::Q35),
            _ => Err(OptionError::new("a machine", s, "microvm or q35")),
        }
    }
}

/// What the guest's network device is connected to.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub enum NetMode {
    /// There is no device.
    None,
    /// User-mode networking in the monitor: 10.0.2.0/24, no rights needed.
    #[default]
    User,
    /// A TAP device of the host.
    Tap(TapOptions),
}

impl FromStr for NetMode {
    type Err = OptionError;

    /// `none`, `user`, or `tap:NAME[,ip=CIDR][,gw=IP][,mac=MAC][,dns=IP]`; IPv6 too (`ip=fd00::2/64,gw=fd00::1`).
    fn from_str(s: &str) -> Result<Self, OptionError> {
        match s.split_once(':') {
            None if s == "none" => Ok(NetMode::None),
            None if s == "user" => Ok(NetMode::User),
            Some(("tap", rest)) => rest.parse().map(NetMode::Tap),
            _ => Err(OptionError::new(
                "a network",
                s,
                "none, user, or tap:NAME[,ip=ADDR/LEN][,gw=ADDR][,mac=MAC][,dns=ADDR]",
            )),
        }
    }
}

/// A TAP device and the guest's addresses on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TapOptions {
    /// The host's interface name.
    pub name: String,
    /// The guest's addresses with prefix lengths. None of IPv4: the guest asks DHCP.
    pub addresses: Vec<(IpAddr, u8)>,
    /// The guest's default routers.
    pub gateways: Vec<IpAddr>,
    /// The guest's resolvers.
    pub dns: Vec<IpAddr>,
    /// The guest's Ethernet address; `None` is a stable one, made of the interface's name.
    pub mac: Option<[u8; 6]>,
}

impl FromStr for TapOptions {
    type Err = OptionError;

    fn from_str(s: &str) -> Result<Self, OptionError> {
        let mut parts = s.split(',');
        let name = parts.next().unwrap_or_default();
        // IFNAMSIZ is 16 with the NUL; the kernel refuses '/' and white space.
        if name.is_empty() || name.len() > 15 || name.contains(|c: char| c == '/' || c.is_whitespace()) {
            return Err(OptionError::new("an interface name", name, "1 to 15 characters, such as tap0"));
        }
        let mut tap = TapOptions { name: name.into(), addresses: vec![], gateways: vec![], dns: vec![], mac: None };
        for part in parts {
            match part.split_once('=') {
                Some(("ip", v)) => tap.addresses.push(cidr(v)?),
                Some(("gw", v)) => tap.gateways.push(ip(v)?),
                Some(("dns", v)) => tap.dns.push(ip(v)?),
                Some(("mac", v)) => tap.mac = Some(mac(v)?),
                _ => {
                    return Err(OptionError::new(
                        "a setting of tap",
                        part,
                        "ip=ADDR/LEN, gw=ADDR, dns=ADDR or mac=MAC",
                    ));
                }
            }
        }
        Ok(tap)
    }
}

fn ip(s: &str) -> Result<IpAddr, OptionError> {
    s.parse().map_err(|_| OptionError::new("an address", s, "such as 10.0.0.1 or fd00::1"))
}

fn cidr(s: &str) -> Result<(IpAddr, u8), OptionError> {
    let bad = || OptionError::new("an address with prefix", s, "such as 10.0.0.2/24");
    let (addr, prefix) = s.split_once('/').ok_or_else(bad)?;
    let addr: IpAddr = addr.parse().map_err(|_| bad())?;
    let prefix: u8 = prefix.parse().map_err(|_| bad())?;
    if prefix > if addr.is_ipv4() { 32 } else { 128 } { Err(bad()) } else { Ok((addr, prefix)) }
}

fn mac(s: &str) -> Result<[u8; 6], OptionError> {
    let bad = || {
        OptionError::new("an Ethernet address", s, "six hexadecimal bytes, not multicast, such as 02:00:00:00:00:01")
    };
    let mut out = [0; 6];
    let mut parts = s.split(':');
    for byte in &mut out {
        let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
    }
    if parts.next().is_some() || out[0] & 1 == 1 || out == [0; 6] { Err(bad()) } else { Ok(out) }
}

/// How a protocol is written.
pub(crate) fn protocol_name(p: Protocol) -> &'static str {
    match p {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// A port of the host that leads to a port of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Publish {
    /// Where the host listens. Port 0 is any free one.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest: u16,
    /// Protocol of both.
    pub protocol: Protocol,
}

impl FromStr for Publish {
    type Err = OptionError;

    /// `[ADDR:]HOST:GUEST[/tcp|/udp]`, the address in brackets if it is IPv6. Without address: 127.0.0.1.
    fn from_str(s: &str) -> Result<Self, OptionError> {
        let bad = || {
            OptionError::new("a port to publish", s, "[ADDR:]HOST:GUEST[/udp], such as 8080:80 or 0.0.0.0:53:53/udp")
        };
        let (ports, protocol) = match s.rsplit_once('/') {
            None => (s, Protocol::Tcp),
            Some((p, "tcp")) => (p, Protocol::Tcp),
            Some((p, "udp")) => (p, Protocol::Udp),
            Some(_) => return Err(bad()),
        };
        let (host, guest) = ports.rsplit_once(':').ok_or_else(bad)?;
        let guest: u16 = guest.parse().ok().filter(|p| *p != 0).ok_or_else(bad)?;
        let (addr, host) = match host.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), host),
            Some((addr, port)) => {
                let bare = addr.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
                let addr: IpAddr = bare.unwrap_or(addr).parse().map_err(|_| bad())?;
                if addr.is_ipv6() != bare.is_some() {
                    return Err(bad());
                }
                (addr, port)
            }
        };
        Ok(Publish { host: SocketAddr::new(addr, host.parse().map_err(|_| bad())?), guest, protocol })
    }
}

/// A setting that could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("\"{got}\" is not {what}; expected {expected}")]
pub struct OptionError {
    what: &'static str,
    got: String,
    expected: &'static str,
}

impl OptionError {
    pub(crate) fn new(what: &'static str, got: &str, expected: &'static str) -> Self {
        OptionError { what, got: got.into(), expected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publish_parses() {
        let p = |s: &str| s.parse::<Publish>();
        let tcp = |host: &str, guest| Publish { host: host.parse().unwrap(), guest, protocol: Protocol::Tcp };
        assert_eq!(p("8080:80"), Ok(tcp("127.0.0.1:8080", 80)));
        assert_eq!(p("0.0.0.0:8080:80/tcp"), Ok(tcp("0.0.0.0:8080", 80)));
        assert_eq!(p("[::1]:8080:80"), Ok(tcp("[::1]:8080", 80)));
        assert_eq!(p("53:53/udp").unwrap().protocol, Protocol::Udp);
        for bad in
            ["", "80", "80:", ":80", "80:0", "80:65536", "::1:80:80", "[1.2.3.4]:80:80", "80:80/sctp", "a:b", "x:80:80"]
        {
            assert!(p(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn net_parses() {
        assert_eq!("user".parse(), Ok(NetMode::User));
        assert_eq!("none".parse(), Ok(NetMode::None));
        let NetMode::Tap(t) =
            "tap:tap0,ip=10.9.0.2/24,gw=10.9.0.1,mac=02:00:00:00:00:01,ip=fd00::2/64".parse().unwrap()
        else {
            panic!("not a tap")
        };
        assert_eq!(t.addresses, [("10.9.0.2".parse().unwrap(), 24), ("fd00::2".parse().unwrap(), 64)]);
        assert_eq!(t.mac, Some([2, 0, 0, 0, 0, 1]));
        for bad in [
            "tap:",
            "tap",
            "tap:a/b",
            "tap:t,ip=1.2.3.4",
            "tap:t,ip=1.2.3.4/33",
            "tap:t,mac=01:0:0:0:0:0",
            "tap:t,x=1",
            "bridge",
            "tap:0123456789abcdef",
        ] {
            assert!(bad.parse::<NetMode>().is_err(), "{bad}");
        }
        assert!("tap:t,mac=01:00:00:00:00:01".parse::<NetMode>().is_err(), "multicast");
    }
}
