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
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use donjon_tests::Netns;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType};

/// Addresses.
pub const DATABASE: [u8; 4] = [10, 66, 0, 5];
pub const METADATA: [u8; 4] = [169, 254, 169, 254];
pub const VICTIM: [u8; 4] = [10, 66, 0, 10];
/// A port of the bridge for a guest in the victim's place.
pub const TAP: &str = "tap0";
pub const ATTACKER: [u8; 4] = [10, 66, 0, 66];
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
/// The source port of the segments that it forges.
pub const MARK: [u8; 2] = [0xd0, 0x0d];

/// The network.
pub struct Lan {
    pub victim: Netns,
    pub attacker: Netns,
    pub bridge: Netns,
    database: Netns,
    heard: Arc<Heard>,
    done: Arc<AtomicBool>,
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
        for (i, (ns, address)) in
            [(&victim, VICTIM), (&attacker, ATTACKER), (&database, DATABASE)].into_iter().enumerate()
        {
            let port = format!("port{i}");
            bridge.ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", ns.name()]);
            bridge.ip(&["link", "set", &port, "master", "br0", "up"]);
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
        let lan = Lan { victim, attacker, bridge, database, heard: Arc::default(), done: Arc::default() };
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
        lan.watch(&lan.attacker);
        lan.watch(&lan.database);
        lan
    }

    /// Puts a TAP device in the place of the victim's host on the bridge.
    pub fn plug_tap(&self) {
        self.victim.ip(&["link", "set", "eth0", "down"]);
        self.bridge.ip(&["tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"]);
        self.bridge.ip(&["link", "set", TAP, "master", "br0", "up"]);
        // Who has spoken with the host of that address asks anew.
        self.attacker.ip(&["neigh", "flush", "all"]);
    }

    /// Makes the bridge forward to a TAP that a guest has just opened. Linux tells it once a second at most that somebody is there again; but whoever asks for the state of
    /// the link is told the truth, and Linux first makes it true (since 6.8; before that it does take the second).
    pub fn settle_tap(&self) {
        self.bridge.ip(&["link", "show", "dev", TAP]);
    }

    /// And back.
    pub fn unplug_tap(&self) {
        self.bridge.ip(&["link", "del", TAP]);
        self.victim.ip(&["link", "set", "eth0", "up"]);
        self.attacker.ip(&["neigh", "flush", "all"]);
    }

    /// Serves on a thread of its own until the drill's process ends.
    fn serve(&self, ns: &Netns, ip: [u8; 4], port: u16, f: fn(TcpStream, &Heard)) {
        let listener = ns.run(|| TcpListener::bind((Ipv4Addr::from(ip), port)).expect("a free port"));
        let heard = Arc::clone(&self.heard);
        std::thread::spawn(move || listener.incoming().flatten().for_each(|s| f(s, &heard)));
    }

    /// Looks at every frame that arrives at a machine.
    fn watch(&self, ns: &Netns) {
        // ETH_P_ALL, in network order.
        let all = NonZeroU32::new(0x0300).map(Protocol::from_raw);
        let socket = ns.run(|| {
            rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, all).expect("root may listen to packets")
        });
        let (heard, done) = (Arc::clone(&self.heard), Arc::clone(&self.done));
        std::thread::spawn(move || {
            let mut frame = [0; 2048];
            while !done.load(Ordering::Relaxed) {
                let Ok((n, _)) = rustix::net::recv(&socket, &mut frame, RecvFlags::empty()) else { continue };
                if let Some(kind) = classify(&frame[..n]) {
                    heard.seen(kind);
                }
            }
        });
    }

    /// What a reverse shell has said so far; it is forgotten then.
    pub fn take_shell(&self) -> String {
        let heard = || {
            let mut shell = lock(&self.heard.shell);
            (!shell.is_empty()).then(|| std::mem::take(&mut *shell))
        };
        donjon_tests::poll_until(Duration::from_millis(1500), heard).unwrap_or_default()
    }

    /// Which of the attacker's frames and connections have come to other machines since the last call.
    pub fn take_frames(&self) -> Vec<&'static str> {
        std::thread::sleep(Duration::from_millis(200));
        std::mem::take(&mut *lock(&self.heard.seen)).into_iter().collect()
    }
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
