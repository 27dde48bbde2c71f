//! The drill's network: namespaces of its own on one bridge, from which no frame leaves.
//!
//! | host | address |
//! | --- | --- |
//! | the bridge, with the cloud's metadata service | 10.66.0.1, 169.254.169.254 |
//! | another machine of the subnet, with a database | 10.66.0.5 |
//! | the victim | 10.66.0.10 |
//! | the attacker | 10.66.0.66 |

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use donjon_tests::{Netns, poll_until};
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket};

/// Addresses.
pub const DATABASE: [u8; 4] = [10, 66, 0, 5];
pub const METADATA: [u8; 4] = [169, 254, 169, 254];
pub const VICTIM: [u8; 4] = [10, 66, 0, 10];
/// A port of the bridge for a guest in the victim's place.
pub const TAP: &str = "tap0";
pub const ATTACKER: [u8; 4] = [10, 66, 0, 66];
/// Ethernet addresses of the machines that a frame from the victim may be for.
pub const BRIDGE_MAC: [u8; 6] = [2, 0xd0, 0, 0, 1, 1];
pub const DATABASE_MAC: [u8; 6] = [2, 0xd0, 0, 0, 1, 5];
pub const ATTACKER_MAC: [u8; 6] = [2, 0xd0, 0, 0, 1, 66];
const VICTIM_MAC: [u8; 6] = [2, 0xd0, 0, 0, 1, 10];
/// Where the attacker waits for a shell, and serves a program.
pub const SHELL_PORT: u16 = 4444;
pub const PROGRAM_PORT: u16 = 8000;
/// What the metadata service gives to whoever asks.
pub const CREDENTIALS: &str = "AKIADRILLCREDENTIALS";
/// Ethernet type of the raw frames that the attacker makes the victim send (for experiments: IEEE 802).
pub const RAW_TYPE: [u8; 2] = [0x88, 0xb5];
/// Addresses that the victim pretends to have.
pub const SPOOFED: [u8; 4] = [10, 66, 0, 1];
pub const STRANGER: [u8; 4] = [10, 66, 0, 77];
/// Who nobody is, and the last bytes of the addresses that it looks for.
pub const NOBODY: [u8; 4] = [10, 66, 0, 99];
pub const SEARCHED: [u8; 4] = [100, 101, 102, 103];
/// The source port of the segments that it forges: none that a kernel chooses for a connection of its own (32768 to 60999).
pub const MARK: [u8; 2] = [0x70, 0x0d];

/// What [`Lan::take_frames`] calls a connection that goes out from the victim's address.
pub const OPENED: &str = "a connection that the victim opened";

/// What the drill itself says to every machine, in front of a number (see [`Lan::take_frames`]).
const BARRIER: &[u8] = b"donjon drill barrier ";
/// The port that it says it to, which nobody listens at.
const DISCARD: u16 = 9;

/// The network.
pub struct Lan {
    pub victim: Netns,
    pub attacker: Netns,
    pub bridge: Netns,
    database: Netns,
    heard: Arc<Heard>,
    done: Arc<AtomicBool>,
    /// The last barrier that each machine has seen, and the last that was raised.
    passed: Vec<Arc<AtomicU64>>,
    raised: AtomicU64,
}

/// What the other machines have heard of the victim.
#[derive(Default)]
struct Heard {
    /// From a reverse shell.
    shell: Mutex<String>,
    /// Which of the attacker's frames, and which connections.
    seen: Mutex<BTreeSet<&'static str>>,
}

impl Heard {
    fn seen(&self, what: &'static str) {
        lock(&self.seen).insert(what);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Lan {
    pub fn new() -> Lan {
        let [bridge, victim, attacker, database] = std::array::from_fn(|_| Netns::empty());
        bridge.ip(&["link", "add", "br0", "type", "bridge"]);
        bridge.ip(&["link", "set", "br0", "address", &text(BRIDGE_MAC)]);
        let machines =
            [(&victim, VICTIM, VICTIM_MAC), (&attacker, ATTACKER, ATTACKER_MAC), (&database, DATABASE, DATABASE_MAC)];
        for (i, (ns, address, mac)) in machines.into_iter().enumerate() {
            let port = format!("port{i}");
            bridge.ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", ns.name()]);
            bridge.ip(&["link", "set", &port, "master", "br0", "up"]);
            ns.ip(&["link", "set", "eth0", "address", &text(mac)]);
            ns.ip(&["addr", "add", &format!("{}/24", Ipv4Addr::from(address)), "dev", "eth0"]);
            ns.ip(&["link", "set", "eth0", "up"]);
            ns.ip(&["route", "add", "default", "via", "10.66.0.1"]);
        }
        // Who asks a guest on a TAP while the bridge has not yet learnt of it asks again at once, not after a second.
        let path = "/proc/sys/net/ipv4/neigh/eth0/retrans_time_ms";
        attacker.run(|| std::fs::write(path, "5").unwrap_or_else(|e| panic!("{path}: {e}")));
        bridge.ip(&["addr", "add", "10.66.0.1/24", "dev", "br0"]);
        bridge.ip(&["addr", "add", "169.254.169.254/32", "dev", "br0"]);
        bridge.ip(&["link", "set", "br0", "up"]);
        let (heard, done, passed, raised) = Default::default();
        let mut lan = Lan { victim, attacker, bridge, database, heard, done, passed, raised };
        lan.serve(&lan.bridge, METADATA, 80, |mut s, heard| {
            heard.seen("a connection to the metadata service");
            let mut request = [0; 512];
            let _ = s.read(&mut request);
            let _ = write!(s, "HTTP/1.0 200 OK\r\n\r\n{CREDENTIALS}");
        });
        lan.serve(&lan.database, DATABASE, 5432, |_, heard| heard.seen("a connection to the database"));
        lan.serve(&lan.attacker, ATTACKER, PROGRAM_PORT, |mut s, _| {
            let _ = s.write_all(&super::code::elf());
        });
        lan.serve(&lan.attacker, ATTACKER, SHELL_PORT, |mut s, heard| {
            let _ = s.set_read_timeout(Some(Duration::from_secs(5)));
            let _ = s.write_all(b"id\nexit\n");
            let mut text = String::new();
            let _ = s.read_to_string(&mut text);
            lock(&heard.shell).push_str(&text);
        });
        // On its own device the bridge has what it takes for itself, after the filter; on its ports it would have what the filter then drops.
        let watched = [(&lan.bridge, "br0"), (&lan.attacker, "eth0"), (&lan.database, "eth0")];
        let passed = watched.map(|(ns, device)| lan.watch(ns, device));
        lan.passed.extend(passed);
        lan
    }

    /// Puts a TAP device in the place of the victim's host on the bridge.
    pub fn plug_tap(&self) {
        self.victim.ip(&["link", "set", "eth0", "down"]);
        self.bridge.ip(&["tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"]);
        self.bridge.ip(&["link", "set", TAP, "master", "br0", "up"]);
    }

    /// Has every machine ask for the others' Ethernet addresses anew: there may be another host at the victim's, and an attempt may have claimed it for nobody.
    pub fn forget_neighbours(&self) {
        for ns in [&self.bridge, &self.attacker, &self.database] {
            ns.ip(&["neigh", "flush", "all"]);
        }
    }

    /// Makes the bridge forward to a TAP that a guest has just opened. Linux tells it once a second at most that somebody is there again; but whoever asks for the state of
    /// the link is told the truth, and Linux first makes it true (since 6.8; before that it does take the second).
    pub fn settle_tap(&self) {
        self.bridge.ip(&["link", "show", "dev", TAP]);
    }

    /// Takes the filter off a TAP behind the back of whoever has put it on.
    pub fn unfilter_tap(&self) {
        let args = ["qdisc", "del", "dev", TAP, "clsact"];
        let output = self.bridge.command("tc").args(args).output().expect("tc runs: ip of the same package does");
        assert!(output.status.success(), "tc: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// And back.
    pub fn unplug_tap(&self) {
        self.bridge.ip(&["link", "del", TAP]);
        self.victim.ip(&["link", "set", "eth0", "up"]);
    }

    /// Serves on a thread of its own until the drill's process ends.
    fn serve(&self, ns: &Netns, ip: [u8; 4], port: u16, f: fn(TcpStream, &Heard)) {
        let listener = ns.run(|| TcpListener::bind((Ipv4Addr::from(ip), port)).expect("a free port"));
        let heard = Arc::clone(&self.heard);
        std::thread::spawn(move || listener.incoming().flatten().for_each(|s| f(s, &heard)));
    }

    /// Looks at every frame that arrives at a machine. The number is the last barrier's that has arrived there.
    fn watch(&self, ns: &Netns, device: &str) -> Arc<AtomicU64> {
        let (socket, index) = ns.run(|| {
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll);
            let index = nix::net::if_::if_nametoindex(device).expect("the device is there");
            (socket.expect("root may listen to packets"), index as usize)
        });
        let (heard, done) = (Arc::clone(&self.heard), Arc::clone(&self.done));
        let passed = Arc::<AtomicU64>::default();
        let ours = Arc::clone(&passed);
        std::thread::spawn(move || {
            let mut frame = [0; 2048];
            while !done.load(Ordering::Relaxed) {
                let Ok((n, from)) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame) else { continue };
                if from.is_none_or(|from| from.ifindex() != index) {
                    continue;
                }
                if let Some(number) = barrier(&frame[..n]) {
                    ours.fetch_max(number, Ordering::Relaxed);
                } else if let Some(kind) = classify(&frame[..n]) {
                    heard.seen(kind);
                }
            }
        });
        passed
    }

    /// What a reverse shell has said so far; it is forgotten then.
    pub fn take_shell(&self) -> String {
        let heard = || {
            let mut shell = lock(&self.heard.shell);
            (!shell.is_empty()).then(|| std::mem::take(&mut *shell))
        };
        poll_until(Duration::from_millis(1500), heard).unwrap_or_default()
    }

    /// Which of the attacker's frames and connections have come to other machines since the last call: of all that was on its way before a barrier, a frame to
    /// everybody which each machine sees behind them. Who asks makes sure that the victim has no frame left that is not on its way, by a request that it answers.
    pub fn take_frames(&self) -> Vec<&'static str> {
        let number = self.raised.fetch_add(1, Ordering::Relaxed) + 1;
        let socket = self.bridge.run(|| UdpSocket::bind("10.66.0.1:0").expect("the bridge has that address"));
        socket.set_broadcast(true).expect("an ordinary option");
        let words = [BARRIER, &number.to_be_bytes()].concat();
        let arrived = || {
            // Again where one was lost.
            socket.send_to(&words, ("10.66.0.255", DISCARD)).expect("the bridge is up");
            self.passed.iter().all(|p| p.load(Ordering::Relaxed) >= number).then_some(())
        };
        poll_until(Duration::from_secs(20), arrived).expect("each machine sees what is sent to all");
        std::mem::take(&mut *lock(&self.heard.seen)).into_iter().collect()
    }
}

/// An Ethernet address for `ip`.
fn text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// The number of the barrier that the frame is.
fn barrier(frame: &[u8]) -> Option<u64> {
    // Behind the headers of Ethernet, IPv4 and UDP.
    let number = frame.get(42..)?.strip_prefix(BARRIER)?;
    Some(u64::from_be_bytes(number.get(..8)?.try_into().ok()?))
}

/// Which of the attacker's frames that is, by what only they have.
fn classify(frame: &[u8]) -> Option<&'static str> {
    if frame.get(12..14)? == RAW_TYPE {
        return Some("a frame of an unknown type");
    }
    match frame.get(12..14)? {
        [8, 6] => match (frame.get(20..22)?, frame.get(28..32)?, frame.get(38..42)?) {
            ([0, 2], from, to) if from == SPOOFED && to == NOBODY => Some("an ARP reply for another's address"),
            ([0, 1], _, to) if to == METADATA => Some("a question for the metadata address"),
            ([0, 1], _, [10, 66, 0, last]) if SEARCHED.contains(last) => Some("a search for neighbours"),
            _ => None,
        },
        // SYN without ACK, from a port of the victim's own choice: the host's kernel has opened it, in a container or for the user-mode network.
        [8, 0] if frame.get(23) == Some(&6) && frame.get(26..30)? == VICTIM && frame.get(34..36)? != MARK => {
            (frame.get(47)? & 0x12 == 2).then_some(OPENED)
        }
        // The victim resets what answers a forged segment, which is no attempt. It may do so half a minute later, during another one: an attempt that claims the victim's
        // address for nobody's Ethernet address has the answers sent there, again and again, until the machine asks anew.
        [8, 0] if frame.get(34..36)? == MARK && frame.get(23) == Some(&6) && frame.get(47)? & 4 != 0 => None,
        // The port is the mark: nobody else sends from there.
        [8, 0] if frame.get(34..36)? == MARK => {
            Some(match (frame.get(26..30)?, frame.get(30..34)?, frame.get(36..38)?) {
                (from, ..) if from == STRANGER => "a packet from another's address",
                (_, to, _) if to == METADATA => "a connection attempt to the metadata address",
                (.., [0x15, 0x38]) => "a connection attempt to the database",
                _ => "a scan of ports",
            })
        }
        _ => None,
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::raw::{frame, syn};

    #[test]
    fn what_answers_an_answer_is_no_attempt() {
        let mut segment = frame(BRIDGE_MAC, VICTIM_MAC, &syn(VICTIM, METADATA, 80));
        assert_eq!(classify(&segment), Some("a connection attempt to the metadata address"));
        segment[47] = 4;
        assert_eq!(classify(&segment), None);
        segment[34..36].copy_from_slice(&[0x90, 0]);
        assert_eq!(classify(&segment), None);
        segment[47] = 2;
        assert_eq!(classify(&segment), Some(OPENED));
    }
}
