//! Malformed packets at the guest: it drops them and goes on.

use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use donjon_tests::{
    Engine, GUEST_IP, Guest, HOST_IP, Need, Netns, PATIENCE, donjon_command, example, missing, poll_until,
};
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recv, sendto, socket};

crate::under_engines! {
    malformed_frames: ProcessTap QemuMicrovm;
}

/// The guest's address besides [`GUEST_IP`], and the host's.
const GUEST_IP6: [u8; 16] = [0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const HOST_IP6: [u8; 16] = [0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// A guest on a TAP, under QEMU too. What goes to ports that nobody serves reaches it, too: else the filter would take it away.
fn on_a_tap(engine: Engine) -> Guest {
    let image = example("hello-axum");
    if !engine.is_qemu() {
        return Guest::builder(&image, engine)
            .tap("ip=fd77::2/64")
            .options(["--listen-any"])
            .port(8080)
            .start_http("/");
    }
    let ns = Netns::with_tap();
    let donjon = donjon_command();
    let mut command = ns.command(donjon.get_program());
    let net = format!("tap:{},ip={GUEST_IP}/24,gw={HOST_IP},ip=fd77::2/64", Netns::TAP);
    command.arg("run").arg(&image).args(["--engine", "qemu", "--machine", "microvm"]).args([
        "--listen-any",
        "--net",
        &net,
    ]);
    let address = SocketAddrV4::new(GUEST_IP.parse().unwrap(), 8080);
    let mut guest = Guest::program("qemu/tap", command, address, Some(ns));
    guest.wait_http("/");
    guest
}

fn malformed_frames(engine: Engine) {
    if missing("malformed_frames", &[Need::Tap]) {
        return;
    }
    let mut guest = on_a_tap(engine);
    let ns = guest.netns().unwrap().clone();
    let macs = Macs { guest: neighbour(&ns), host: own_mac(&ns) };
    let wire = Wire::open(&ns);
    // The right ones are right: those that ask for an answer get it.
    for (what, frame) in well_formed(&macs) {
        if let Some((at, expected)) = ANSWERS.iter().find(|(name, ..)| *name == what).map(|(_, at, e)| (*at, *e)) {
            let reply = |f: &[u8]| f[12..14] == frame[12..14] && f.get(at..at + expected.len()) == Some(expected);
            poll_until(PATIENCE, || wire.ask(&macs, &frame, reply)).unwrap_or_else(|| panic!("no answer to {what}"));
        }
    }
    // A changed ARP packet is a right one with another content, and may teach the guest a wrong address of the host's: that is
    // ARP, not a fault. So the guest hears the truth before it is asked whether it still answers.
    let truth = well_formed(&macs).into_iter().find(|(what, _)| *what == "ARP request").expect("among them").1;
    let mut asked = 0u16;
    let mut answers = |guest: &Guest, what: &str| {
        // The queue between them holds so many frames, and loses the others: what the guest must hear is sent when it has taken all of it.
        asked += 1;
        wire.drained(&macs, asked);
        wire.send(&truth);
        assert_eq!(guest.get("/json").map(|r| r.status).ok(), Some(200), "after {what}\n{}", guest.log());
    };
    let mut sent = 0;
    for (what, frame) in crafted(&macs) {
        wire.send(&frame);
        sent += 1;
        answers(&guest, what);
    }
    // Every prefix, and every single-byte change, of frames that are right.
    for (what, frame) in well_formed(&macs) {
        for len in 1..frame.len() {
            wire.send(&frame[..len]);
        }
        for at in 12..frame.len() {
            for value in [0x00, 0xff, frame[at] ^ 0x01, frame[at] ^ 0x80] {
                let mut frame = frame.clone();
                frame[at] = value;
                wire.send(&frame);
                sent += 1;
            }
        }
        answers(&guest, what);
    }
    // And what a fixed random sequence makes of them.
    let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
    let seeds = well_formed(&macs);
    // An emulated guest takes twenty times as long for each.
    let rounds = if engine.is_qemu() { 5000 } else { 20_000 };
    for round in 0..rounds {
        let mut frame = seeds[random.below(seeds.len())].1.clone();
        for _ in 0..1 + random.below(8) {
            let at = 12 + random.below(frame.len() - 12);
            frame[at] = random.next() as u8;
        }
        wire.send(&frame);
        sent += 1;
        if round % 2000 == 0 {
            answers(&guest, &format!("random frame {round}"));
        }
    }
    answers(&guest, "all of them");
    guest.expect_alive();
    println!("{sent} frames");
}

#[test]
fn syn_flood_costs_little() {
    if missing("syn_flood_costs_little", &[Need::Tap]) {
        return;
    }
    let mut guest = Guest::builder(&example("hello-axum"), Engine::ProcessTap).port(8080).start_http("/");
    let ns = guest.netns().unwrap().clone();
    let macs = Macs { guest: neighbour(&ns), host: own_mac(&ns) };
    let wire = Wire::open(&ns);
    let before = donjon_tests::measure::tree_pss(guest.pid()).unwrap();
    for i in 0..50_000u32 {
        // From addresses that do not exist: nobody resets the half-open connections.
        let source = [10, 77, 0, 100 + (i % 100) as u8];
        wire.send(&macs.ipv4(6, source, &tcp_header(source, 1024 + (i / 100) as u16, 8080, 0x02, i, &[])));
    }
    guest.wait_http("/json");
    let after = donjon_tests::measure::tree_pss(guest.pid()).unwrap();
    assert!(after < before + (16 << 20), "{before} bytes before the flood, {after} after");
    guest.expect_alive();
}

struct Wire {
    fd: std::os::fd::OwnedFd,
    link: LinkAddr,
}

impl Wire {
    /// A raw socket on the host's side of the TAP: what it sends, the guest receives.
    fn open(ns: &Netns) -> Wire {
        ns.run(|| {
            let link = nix::ifaddrs::getifaddrs()
                .unwrap()
                .filter(|i| i.interface_name == Netns::TAP)
                .find_map(|i| i.address?.as_link_addr().copied())
                .expect("the TAP has a link address");
            let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll).unwrap();
            Wire { fd, link }
        })
    }

    /// Waits until the guest has taken all that was sent to it: until it answers an echo request, the `number`th of this test.
    fn drained(&self, macs: &Macs, number: u16) {
        let echo = |kind| [&[kind, 0, 0, 0, 0xd0, 0x0d][..], &number.to_be_bytes(), b"are you there?"].concat();
        let mut request = echo(8);
        let sum = checksum(&request);
        request[2..4].copy_from_slice(&sum.to_be_bytes());
        let request = macs.ipv4(1, octets(HOST_IP), &request);
        let expected = echo(0);
        let reply = |frame: &[u8]| {
            let said = frame.get(34..).filter(|_| frame[23] == 1);
            said.is_some_and(|s| s.len() == expected.len() && s[0] == 0 && s[4..] == expected[4..])
        };
        poll_until(PATIENCE, || self.ask(macs, &request, reply)).expect("the guest answers an echo request");
    }

    /// Sends a frame, and waits a while for one of the guest's that is a reply to it.
    fn ask(&self, macs: &Macs, request: &[u8], reply: impl Fn(&[u8]) -> bool) -> Option<()> {
        self.send(request);
        let until = Instant::now() + Duration::from_millis(500);
        let mut frame = [0; 2048];
        while Instant::now() < until {
            // Whomever the guest takes the host for, this socket sees what it sends.
            match recv(self.fd.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                Ok(n) if n >= 24 && frame[6..12] == macs.guest && reply(&frame[..n]) => return Some(()),
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        None
    }

    fn send(&self, frame: &[u8]) {
        // The kernel itself refuses frames shorter than an Ethernet header; and a full queue is not the test's business.
        let _ = sendto(self.fd.as_raw_fd(), frame, &self.link, MsgFlags::empty());
    }
}

struct Macs {
    guest: [u8; 6],
    host: [u8; 6],
}

impl Macs {
    fn ethernet(&self, kind: u16, payload: &[u8]) -> Vec<u8> {
        [&self.guest[..], &self.host, &kind.to_be_bytes(), payload].concat()
    }

    fn ipv4(&self, protocol: u8, source: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut header = [0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        header[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
        header[12..16].copy_from_slice(&source);
        header[16..20].copy_from_slice(&octets(GUEST_IP));
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        self.ethernet(0x0800, &[&header[..], payload].concat())
    }

    /// From the host to the guest; the checksum of the payload, which is `at` there, is made right.
    fn ipv6(&self, next: u8, at: usize, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 64];
        packet.extend(HOST_IP6);
        packet.extend(GUEST_IP6);
        packet.extend(summed6(next, at, &GUEST_IP6, payload));
        self.ethernet(0x86dd, &packet)
    }

    fn raw_ipv4(&self, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut frame = self.ipv4(17, octets(HOST_IP), &udp(&[0; 8]));
        change(&mut frame);
        // The header's checksum is made right again, so that it is not what saves the guest.
        frame[24..26].fill(0);
        let end = (14 + usize::from(frame[14] & 15) * 4).clamp(34, frame.len());
        let sum = checksum(&frame[14..end]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    }
}

/// Frames that are wrong in ways that have a name.
fn crafted(macs: &Macs) -> Vec<(&'static str, Vec<u8>)> {
    let host = octets(HOST_IP);
    let tcp = |flags, options: &[u8]| tcp_header(host, 5555, 8080, flags, 1, options);
    let tcp_with = |at: usize, value: u8| {
        let mut segment = tcp(0x02, &[]);
        segment[at] = value;
        macs.ipv4(6, host, &fix_tcp_sum(host, segment))
    };
    vec![
        ("an empty IPv4 packet", macs.ethernet(0x0800, &[])),
        ("an empty ARP packet", macs.ethernet(0x0806, &[])),
        ("an empty IPv6 packet", macs.ethernet(0x86dd, &[])),
        ("an unknown protocol", macs.ethernet(0x88cc, &[1, 2, 3])),
        ("a header length of 0", macs.raw_ipv4(|f| f[14] = 0x40)),
        ("a header length of 60 in a short packet", macs.raw_ipv4(|f| f[14] = 0x4f)),
        ("version 6 in IPv4", macs.raw_ipv4(|f| f[14] = 0x65)),
        ("a total length of 0", macs.raw_ipv4(|f| f[16..18].fill(0))),
        ("a total length of 65535", macs.raw_ipv4(|f| f[16..18].fill(0xff))),
        ("a first fragment", macs.raw_ipv4(|f| f[20] = 0x20)),
        ("a last fragment without a first", macs.raw_ipv4(|f| f[20..22].copy_from_slice(&[0x1f, 0xff]))),
        ("a time to live of 0", macs.raw_ipv4(|f| f[22] = 0)),
        ("a source of 0.0.0.0", macs.raw_ipv4(|f| f[26..30].fill(0))),
        ("a broadcast source", macs.raw_ipv4(|f| f[26..30].fill(0xff))),
        ("the guest's own address as source", macs.raw_ipv4(|f| f[26..30].copy_from_slice(&octets(GUEST_IP)))),
        ("a UDP length of 0", macs.ipv4(17, host, &[0, 9, 0, 9, 0, 0, 0, 0])),
        ("a UDP length that is too long", macs.ipv4(17, host, &[0, 9, 0, 9, 0xff, 0xff, 0, 0])),
        ("a TCP data offset of 0", tcp_with(12, 0)),
        ("a TCP data offset of 60", tcp_with(12, 0xf0)),
        ("no TCP flags", tcp_with(13, 0)),
        ("all TCP flags", tcp_with(13, 0xff)),
        ("SYN and FIN", tcp_with(13, 3)),
        ("an option of length 0", macs.ipv4(6, host, &tcp(2, &[2, 0, 0, 0]))),
        ("an option of length 1", macs.ipv4(6, host, &tcp(2, &[8, 1, 0, 0]))),
        ("an option that is too long", macs.ipv4(6, host, &tcp(2, &[8, 40, 0, 0]))),
        ("a maximum segment size of 0", macs.ipv4(6, host, &tcp(2, &[2, 4, 0, 0]))),
        ("a window scale of 255", macs.ipv4(6, host, &tcp(2, &[3, 3, 255, 0]))),
        ("SACK blocks in a SYN", macs.ipv4(6, host, &tcp(2, &[5, 10, 0xff, 0, 0, 0, 0, 0, 0, 1, 0, 0]))),
        ("an ACK of nothing", macs.ipv4(6, host, &tcp(0x10, &[]))),
        ("a source port of 0", macs.ipv4(6, host, &tcp_header(host, 0, 8080, 2, 1, &[]))),
        ("an ICMP error about itself", macs.ipv4(1, host, &[3, 4, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 0])),
        ("an ICMP `fragmentation needed` of 0 bytes", {
            let inner = macs.ipv4(6, octets(GUEST_IP), &tcp_header(octets(GUEST_IP), 8080, 5555, 0x10, 1, &[]));
            let mut icmp = vec![3, 4, 0, 0, 0, 0, 0, 0];
            icmp.extend(&inner[14..]);
            let sum = checksum(&icmp);
            icmp[2..4].copy_from_slice(&sum.to_be_bytes());
            macs.ipv4(1, host, &icmp)
        }),
        ("an IPv6 packet with a chain of extension headers", {
            let mut packet = vec![0x60, 0, 0, 0, 0, 64, 0, 64];
            packet.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            packet.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            packet.extend([0u8; 64]);
            macs.ethernet(0x86dd, &packet)
        }),
        ("an ARP reply that claims the guest's address", {
            let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 2];
            arp.extend(macs.host);
            arp.extend(octets(GUEST_IP));
            arp.extend(macs.guest);
            arp.extend(octets(GUEST_IP));
            macs.ethernet(0x0806, &arp)
        }),
        ("an ARP packet with odd lengths", macs.ethernet(0x0806, &[0, 1, 8, 0, 255, 255, 0, 1, 1, 2, 3])),
    ]
}

/// What the answers to some of [`well_formed`] have, and where: SYN and ACK, echo reply, ARP reply, neighbour advertisement. The
/// example serves IPv4 only: over IPv6 it answers with RST and ACK.
const ANSWERS: [(&str, usize, &[u8]); 6] = [
    ("SYN", 47, &[0x12]),
    ("ICMP echo", 34, &[0]),
    ("ARP request", 20, &[0, 2]),
    ("neighbour solicitation", 54, &[136]),
    ("SYN over IPv6", 67, &[0x14]),
    ("ICMPv6 echo", 54, &[129]),
];

/// Frames that are right, as seeds for changes.
fn well_formed(macs: &Macs) -> Vec<(&'static str, Vec<u8>)> {
    let host = octets(HOST_IP);
    let options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
    let mut echo = vec![8, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4];
    let sum = checksum(&echo);
    echo[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(macs.host);
    arp.extend(host);
    arp.extend([0; 6]);
    arp.extend(octets(GUEST_IP));
    let mut solicitation = vec![0x60, 0, 0, 0, 0, 32, 58, 255];
    solicitation.extend(HOST_IP6);
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2];
    solicitation.extend(group);
    let message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &GUEST_IP6, &[1, 1], &macs.host].concat();
    solicitation.extend(summed6(58, 2, &group, &message));
    vec![
        ("SYN", macs.ipv4(6, host, &tcp_header(host, 6666, 8080, 2, 7, &options))),
        ("ACK", macs.ipv4(6, host, &tcp_header(host, 6666, 8080, 0x18, 8, &options[6..18]))),
        ("UDP", macs.ipv4(17, host, &udp(b"payload"))),
        ("ICMP echo", macs.ipv4(1, host, &echo)),
        ("ARP request", macs.ethernet(0x0806, &arp)),
        ("neighbour solicitation", macs.ethernet(0x86dd, &solicitation)),
        ("SYN over IPv6", macs.ipv6(6, 16, &tcp_header(host, 6667, 8080, 2, 7, &options))),
        ("UDP over IPv6", macs.ipv6(17, 6, &udp(b"payload!"))),
        ("ICMPv6 echo", macs.ipv6(58, 2, &[128, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4])),
    ]
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x10, 0, 0, 9, 0, 0, 0, 0];
    out[4..6].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    out.extend(payload);
    out
}

fn tcp_header(source: [u8; 4], from: u16, to: u16, flags: u8, sequence: u32, options: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(from.to_be_bytes());
    out.extend(to.to_be_bytes());
    out.extend(sequence.to_be_bytes());
    out.extend([0; 4]);
    out.extend([((20 + options.len()) as u8 / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    out.extend(options);
    fix_tcp_sum(source, out)
}

fn fix_tcp_sum(source: [u8; 4], mut segment: Vec<u8>) -> Vec<u8> {
    segment[16..18].fill(0);
    let mut pseudo = [&source[..], &octets(GUEST_IP), &[0, 6]].concat();
    pseudo.extend((segment.len() as u16).to_be_bytes());
    pseudo.extend(&segment);
    let sum = checksum(&pseudo);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// The payload with the checksum that it has in a packet from the host (RFC 8200 §8.1).
fn summed6(next: u8, at: usize, to: &[u8; 16], payload: &[u8]) -> Vec<u8> {
    let mut out = payload.to_vec();
    out[at..at + 2].fill(0);
    let sum = checksum(&[&HOST_IP6[..], to, &[0, 0, 0, out.len() as u8, 0, 0, 0, next], &out].concat());
    out[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    out
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn octets(address: &str) -> [u8; 4] {
    address.parse::<std::net::Ipv4Addr>().unwrap().octets()
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text.split(':').map_while(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes.try_into().ok()
}

/// The guest's Ethernet address, as the host has learnt it.
fn neighbour(ns: &Netns) -> [u8; 6] {
    let table = ns.run(|| std::fs::read_to_string("/proc/thread-self/net/arp").unwrap());
    let line = table.lines().find(|l| l.starts_with(GUEST_IP)).unwrap_or_else(|| panic!("no neighbour in {table}"));
    line.split_whitespace().find_map(parse_mac).expect("a MAC address")
}

fn own_mac(ns: &Netns) -> [u8; 6] {
    let output = ns.command("ip").args(["-o", "link", "show", Netns::TAP]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().find_map(parse_mac).expect("a MAC address")
}

struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
