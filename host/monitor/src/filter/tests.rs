use std::net::{Ipv4Addr, Ipv6Addr};

use donjon_abi::manifest::{Egress, Limit};

use super::kernel::run::Bench;
use super::*;

const MAC: [u8; 6] = [0x02, 1, 2, 3, 4, 5];
const PEER_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
const OWN: [u8; 4] = [10, 9, 0, 2];
const GATEWAY: [u8; 4] = [10, 9, 0, 1];
const CLIENT: [u8; 4] = [10, 9, 0, 77];
const SERVER: [u8; 4] = [192, 0, 2, 8];
const OWN6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const PEER6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const RST: u8 = 4;

fn egress(protocol: u8, addr: &str, prefix: u8, port: u16) -> Egress {
    Egress { protocol, prefix, port, addr: mapped(addr.parse().unwrap()) }
}

/// A web server on TCP 80 and UDP 53 that may reach one machine's port 5432 over TCP.
fn rules() -> Rules {
    Rules {
        mac: MAC,
        source4: Source4::Static(OWN.into()),
        gateway4: Some(GATEWAY.into()),
        source6: Some(OWN6.into()),
        slaac: false,
        listen: vec![(TCP, 80), (UDP, 53)],
        listen_any: false,
        egress: vec![egress(TCP, "192.0.2.8", 128, 5432), egress(0, "2001:db8::", 32, 0)],
        limit: Limit::default(),
        flows: 16 * 1024,
    }
}

fn dhcp_rules() -> Rules {
    Rules { source4: Source4::Dhcp, gateway4: None, source6: None, slaac: true, egress: vec![], ..rules() }
}

fn any_rules() -> Rules {
    Rules { egress: vec![egress(0, "::", 0, 0)], ..rules() }
}

fn ethernet(from: [u8; 6], kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&PEER_MAC[..], &from, &kind, payload].concat()
}

fn ipv4(from: [u8; 4], to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut h = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    h.extend(from);
    h.extend(to);
    h.extend(payload);
    let len = (h.len() as u16).to_be_bytes();
    h[2..4].copy_from_slice(&len);
    h
}

fn ipv6(from: [u8; 16], to: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0, len[0], len[1], next, 255][..], &from, &to, payload].concat()
}

fn tcp(from: u16, to: u16, flags: u8) -> Vec<u8> {
    let mut h = [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 8], &[0x50, flags], &[0; 6]].concat();
    h.extend(b"data");
    h
}

fn udp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &(8 + data.len() as u16).to_be_bytes(), &[0; 2], data].concat()
}

fn out4(to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(MAC, IPV4, &ipv4(OWN, to, protocol, payload))
}

fn in4(from: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(PEER_MAC, IPV4, &ipv4(from, OWN, protocol, payload))
}

fn arp(operation: u8, mac: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, operation][..], &mac, &sender, &[0; 6], &target].concat()
}

/// Both implementations, which must agree on every frame.
struct Both {
    filter: Filter,
    kernel: Option<Bench>,
}

impl Both {
    fn new(rules: Rules) -> Both {
        let kernel = Bench::new(&rules);
        if kernel.is_none() {
            donjon_skip::skip(&donjon_skip::this_test(), "needs CAP_BPF and CAP_NET_ADMIN for the kernel's half");
        }
        Both { filter: Filter::new(rules), kernel }
    }

    fn from(&mut self, frame: &[u8]) -> Result<(), Reason> {
        self.agree(false, frame)
    }

    fn to(&mut self, frame: &[u8]) -> Result<(), Reason> {
        self.agree(true, frame)
    }

    fn agree(&mut self, to_guest: bool, frame: &[u8]) -> Result<(), Reason> {
        let f = &mut self.filter;
        let ours = if to_guest { f.check_to_guest(frame.into()) } else { f.check_from_guest(frame.into()) };
        if let Some(kernels) = self.kernel.as_ref().and_then(|k| k.run(to_guest, frame)) {
            assert_eq!(kernels, ours, "the kernel's verdict (left) on {frame:02x?}, to the guest: {to_guest}");
        }
        ours
    }
}

/// A test that had the monitor's half only has not passed: `cargo xtask test` gets to know.
#[test]
fn a_missing_half_is_said() {
    let test = "filter::tests::both_implementations_agree";
    if donjon_skip::missing("a_missing_half_is_said", &[donjon_skip::Need::Root]) {
        return;
    }
    let list = std::env::temp_dir().join(format!("donjon-half-{}", std::process::id()));
    let mut command = std::process::Command::new("setpriv");
    command.arg("--bounding-set=-all").arg(std::env::current_exe().unwrap()).args(["--exact", test]);
    let output = command.env("DONJON_SKIP_LOG", &list).output().unwrap();
    let text = std::fs::read_to_string(&list).unwrap_or_default();
    let _ = std::fs::remove_file(&list);
    assert!(text.contains(&format!("SKIP {test}: needs")), "{text:?}: {output:?}");
}

#[test]
fn served_connections_pass_and_only_they() {
    let mut f = Both::new(rules());
    // Nobody has asked yet.
    assert_eq!(f.from(&out4(CLIENT, TCP, &tcp(80, 4000, SYN_ACK))), Err(Reason::Egress));
    assert_eq!(f.to(&in4(CLIENT, TCP, &tcp(4000, 80, SYN))), Ok(()));
    for flags in [SYN_ACK, ACK, RST] {
        assert_eq!(f.from(&out4(CLIENT, TCP, &tcp(80, 4000, flags))), Ok(()));
    }
    assert_eq!(f.from(&out4(CLIENT, TCP, &tcp(80, 4000, SYN))), Err(Reason::Egress), "it may answer, not dial");
    assert_eq!(f.from(&out4(CLIENT, TCP, &tcp(80, 4001, ACK))), Err(Reason::Egress), "another port");
    assert_eq!(f.from(&out4([10, 9, 0, 78], TCP, &tcp(80, 4000, ACK))), Err(Reason::Egress), "another host");
    assert_eq!(f.to(&in4(CLIENT, TCP, &tcp(4000, 81, SYN))), Err(Reason::Listen));
    assert_eq!(f.to(&in4(CLIENT, UDP, &udp(4000, 80, b""))), Err(Reason::Listen), "TCP's port is not UDP's");
    assert_eq!(f.to(&in4(CLIENT, UDP, &udp(4000, 53, b"?"))), Ok(()));
    assert_eq!(f.from(&out4(CLIENT, UDP, &udp(53, 4000, b"!"))), Ok(()));
    assert_eq!(f.from(&out4(CLIENT, UDP, &udp(54, 4000, b"!"))), Err(Reason::Egress));
}

#[test]
fn declared_destinations_pass_and_only_they() {
    let mut f = Both::new(rules());
    assert_eq!(f.from(&out4(SERVER, TCP, &tcp(40000, 5432, SYN))), Ok(()));
    assert_eq!(f.to(&in4(SERVER, TCP, &tcp(5432, 40000, SYN_ACK))), Ok(()));
    assert_eq!(f.to(&in4(SERVER, TCP, &tcp(5432, 40000, SYN))), Err(Reason::Listen), "it may not dial in");
    assert_eq!(f.from(&out4(SERVER, UDP, &udp(40000, 5432, b""))), Err(Reason::Egress));
    assert_eq!(f.from(&out4(SERVER, TCP, &tcp(40000, 22, SYN))), Err(Reason::Egress));
    assert_eq!(f.from(&out4([192, 0, 2, 9], TCP, &tcp(40000, 5432, SYN))), Err(Reason::Egress));
    let to = Ipv6Addr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7]).octets();
    assert_eq!(f.from(&ethernet(MAC, IPV6, &ipv6(OWN6, to, UDP, &udp(1, 2, b"")))), Ok(()));
    assert_eq!(f.from(&ethernet(MAC, IPV6, &ipv6(OWN6, PEER6, UDP, &udp(1, 2, b"")))), Err(Reason::Egress));
}

#[test]
fn metadata_multicast_and_loopback_need_a_rule_that_means_them() {
    let mut f = Both::new(any_rules());
    let dial = |to| out4(to, TCP, &tcp(40000, 80, SYN));
    assert_eq!(f.from(&dial([8, 8, 8, 8])), Ok(()));
    assert_eq!(f.from(&dial([169, 254, 169, 254])), Err(Reason::Metadata));
    for to in [[224, 0, 0, 251], [255; 4], [127, 0, 0, 1], [0, 0, 0, 1]] {
        assert_eq!(f.from(&dial(to)), Err(Reason::Egress), "{to:?}");
    }
    let v6 =
        |to: &str| ethernet(MAC, IPV6, &ipv6(OWN6, to.parse::<Ipv6Addr>().unwrap().octets(), TCP, &tcp(1, 80, SYN)));
    assert_eq!(f.from(&v6("2001:db8::1")), Ok(()));
    for (to, reason) in [
        ("fd00:ec2::254", Reason::Metadata),
        ("::ffff:169.254.169.254", Reason::Metadata),
        ("ff02::1", Reason::Egress),
        ("fe80::1", Reason::Egress),
        ("::1", Reason::Egress),
        ("::", Reason::Egress),
    ] {
        assert_eq!(f.from(&v6(to)), Err(reason), "{to}");
    }
    // Having been asked by such a host changes nothing, unless it is a neighbour.
    assert_eq!(f.to(&in4([169, 254, 169, 254], TCP, &tcp(1, 80, SYN))), Ok(()));
    assert_eq!(f.from(&out4([169, 254, 169, 254], TCP, &tcp(80, 1, ACK))), Err(Reason::Metadata));
    let mut f = Both::new(Rules { egress: vec![egress(TCP, "169.254.169.254", 128, 80)], ..rules() });
    assert_eq!(f.from(&dial([169, 254, 169, 254])), Ok(()));
    let mut f = Both::new(Rules { egress: vec![egress(TCP, "169.0.0.0", 104, 80)], ..rules() });
    assert_eq!(f.from(&dial([169, 254, 169, 254])), Err(Reason::Metadata));
}

#[test]
fn nothing_is_spoofed() {
    let mut f = Both::new(rules());
    assert_eq!(f.to(&in4(CLIENT, TCP, &tcp(4000, 80, SYN))), Ok(()));
    let good = ipv4(OWN, CLIENT, TCP, &tcp(80, 4000, ACK));
    assert_eq!(f.from(&ethernet(MAC, IPV4, &good)), Ok(()));
    assert_eq!(f.from(&ethernet(PEER_MAC, IPV4, &good)), Err(Reason::SourceMac));
    assert_eq!(f.from(&ethernet([0x02, 1, 2, 3, 4, 6], IPV4, &good)), Err(Reason::SourceMac));
    let other = ipv4([10, 9, 0, 3], CLIENT, TCP, &tcp(80, 4000, ACK));
    assert_eq!(f.from(&ethernet(MAC, IPV4, &other)), Err(Reason::SourceAddress));
    let nobody = ipv4([0; 4], [255; 4], UDP, &udp(68, 67, b"discover"));
    assert_eq!(f.from(&ethernet(MAC, IPV4, &nobody)), Err(Reason::SourceAddress), "its address is static");
    let other = ipv6(PEER6, OWN6, TCP, &tcp(80, 4000, ACK));
    assert_eq!(f.from(&ethernet(MAC, IPV6, &other)), Err(Reason::SourceAddress));
    for kind in [[0x81, 0], [0x88, 0xcc], [0x88, 0x64], [0, 38], [0x88, 0xa8]] {
        assert_eq!(f.from(&ethernet(MAC, kind, &good)), Err(Reason::EtherType), "{kind:x?}");
    }
}

#[test]
fn ports_cannot_be_hidden() {
    let mut f = Both::new(rules());
    assert_eq!(f.to(&in4(CLIENT, TCP, &tcp(4000, 80, SYN))), Ok(()));
    let good = out4(CLIENT, TCP, &tcp(80, 4000, ACK));
    for fragment in [[0x20, 0], [0, 1], [0x1f, 0xff], [0x60, 0], [0x80, 0]] {
        let mut frame = good.clone();
        frame[ETH + 6..ETH + 8].copy_from_slice(&fragment);
        assert_eq!(f.from(&frame), Err(Reason::Fragment), "{fragment:x?}");
    }
    // Of datagrams, the first one opens the way for the others to the same host.
    assert_eq!(f.to(&in4(CLIENT, UDP, &udp(4000, 53, b"?"))), Ok(()));
    let piece = |to, protocol: u8, id: u8, fragment: u16, payload: &[u8]| {
        let mut frame = out4(to, protocol, payload);
        frame[ETH + 5] = id;
        frame[ETH + 6..ETH + 8].copy_from_slice(&fragment.to_be_bytes());
        frame
    };
    assert_eq!(f.from(&piece(CLIENT, UDP, 7, 0x2001, &[0; 16])), Err(Reason::Fragment));
    assert_eq!(f.from(&piece(CLIENT, UDP, 7, 0x2000, &udp(54, 4000, b"12345678"))), Err(Reason::Egress));
    assert_eq!(f.from(&piece(CLIENT, UDP, 7, 0x2001, &[0; 16])), Err(Reason::Fragment));
    assert_eq!(f.from(&piece(CLIENT, UDP, 7, 0x2000, &udp(53, 4000, b"12345678"))), Ok(()));
    assert_eq!(f.from(&piece(CLIENT, UDP, 7, 0x2002, &[0; 16])), Ok(()));
    assert_eq!(f.from(&piece(CLIENT, UDP, 7, 4, &[0; 16])), Ok(()));
    assert_eq!(f.from(&piece(CLIENT, UDP, 8, 4, &[0; 16])), Err(Reason::Fragment));
    assert_eq!(f.from(&piece(GATEWAY, UDP, 7, 4, &[0; 16])), Err(Reason::Fragment));
    assert_eq!(f.from(&piece(CLIENT, TCP, 7, 4, &[0; 16])), Err(Reason::Fragment));
    let piece6 = |id: u8, offset: u16, next: u8, payload: &[u8]| {
        let head = [&[next, 0][..], &offset.to_be_bytes(), &[0, 0, 0, id]].concat();
        ethernet(MAC, IPV6, &ipv6(OWN6, PEER6, 44, &[head, payload.to_vec()].concat()))
    };
    assert_eq!(f.to(&ethernet(PEER_MAC, IPV6, &ipv6(PEER6, OWN6, UDP, &udp(4000, 53, b"?")))), Ok(()));
    assert_eq!(f.from(&piece6(9, 16, UDP, &[0; 16])), Err(Reason::Fragment));
    assert_eq!(f.from(&piece6(9, 1, UDP, &udp(53, 4001, b""))), Err(Reason::Egress));
    assert_eq!(f.from(&piece6(9, 1, TCP, &tcp(53, 4000, ACK))), Err(Reason::Fragment));
    assert_eq!(f.from(&piece6(9, 1, UDP, &udp(53, 4000, b""))), Ok(()));
    assert_eq!(f.from(&piece6(9, 16, UDP, &[0; 16])), Ok(()));
    assert_eq!(f.from(&piece6(8, 16, UDP, &[0; 16])), Err(Reason::Fragment));
    let mut routed = ipv4(OWN, CLIENT, TCP, &[&[0x83, 3, 4, 0][..], &tcp(80, 4000, ACK)].concat());
    routed[0] = 0x46;
    assert_eq!(f.from(&ethernet(MAC, IPV4, &routed)), Err(Reason::Options));
    for (next, reason) in [
        (0u8, Reason::Options),
        (43, Reason::Options),
        (60, Reason::Options),
        (44, Reason::Fragment),
        (41, Reason::Protocol),
        (4, Reason::Protocol),
    ] {
        assert_eq!(f.from(&ethernet(MAC, IPV6, &ipv6(OWN6, PEER6, next, &[0; 40]))), Err(reason), "{next}");
    }
    for protocol in [2, 4, 41, 47, 50, 89, 132, 255] {
        assert_eq!(f.from(&out4(CLIENT, protocol, &[0; 40])), Err(Reason::Protocol), "{protocol}");
    }
    // The IP packet ends before its ports, whatever the frame still contains.
    for len in [20u16, 24, 39] {
        let mut frame = good.clone();
        frame[ETH + 2..ETH + 4].copy_from_slice(&len.to_be_bytes());
        assert_eq!(f.from(&frame), Err(Reason::Truncated), "{len}");
    }
    let mut longer = good.clone();
    longer[ETH + 2..ETH + 4].copy_from_slice(&2000u16.to_be_bytes());
    assert_eq!(f.from(&longer), Err(Reason::Truncated));
    // Flags in another fragment than the ports.
    let mut tiny = in4(CLIENT, TCP, &tcp(4000, 80, SYN));
    tiny[ETH + 6..ETH + 8].copy_from_slice(&[0x20, 0]);
    assert_eq!(f.to(&tiny), Err(Reason::Fragment));
}

#[test]
fn arp_is_about_oneself_and_ones_peers() {
    let mut f = Both::new(rules());
    let ask = |target| ethernet(MAC, ARP, &arp(1, MAC, OWN, target));
    assert_eq!(f.from(&ask(GATEWAY)), Ok(()));
    assert_eq!(f.from(&ask(OWN)), Ok(()), "an announcement");
    assert_eq!(f.from(&ask(SERVER)), Ok(()), "a declared destination");
    assert_eq!(f.from(&ask(CLIENT)), Err(Reason::ArpTarget), "a scan");
    assert_eq!(f.to(&ethernet(PEER_MAC, ARP, &arp(1, PEER_MAC, CLIENT, OWN))), Ok(()));
    assert_eq!(f.from(&ask(CLIENT)), Ok(()));
    assert_eq!(f.from(&ethernet(MAC, ARP, &arp(2, MAC, OWN, CLIENT))), Ok(()));
    for bad in [
        arp(2, MAC, CLIENT, GATEWAY),
        arp(2, PEER_MAC, OWN, GATEWAY),
        arp(1, MAC, [0; 4], GATEWAY),
        arp(3, MAC, OWN, GATEWAY),
    ] {
        assert_eq!(f.from(&ethernet(MAC, ARP, &bad)), Err(Reason::Arp), "{bad:?}");
    }
    assert_eq!(f.from(&ethernet(MAC, ARP, &arp(1, MAC, OWN, GATEWAY)[..27])), Err(Reason::Truncated));
}

/// With DHCP nobody tells the filter who the router is.
#[test]
fn a_guest_with_dhcp_asks_for_few_strangers() {
    let mut f = Both::new(dhcp_rules());
    let discover = dhcp_question();
    f.from(&discover).unwrap();
    f.to(&dhcp_answer(MAC, 5, OWN)).unwrap();
    let ask = |target| ethernet(MAC, ARP, &arp(1, MAC, OWN, target));
    let strangers = (100..200).map(|host| [10, 9, 0, host]);
    let passed: Vec<_> = strangers.filter(|target| f.from(&ask(*target)).is_ok()).collect();
    assert_eq!(passed.len(), STRANGERS);
    assert!(passed.iter().all(|target| f.from(&ask(*target)) == Ok(())), "again");
    assert_eq!(f.from(&ask(GATEWAY)), Err(Reason::ArpTarget), "one too many");
    assert_eq!(f.from(&ask(OWN)), Ok(()));
    // A new lease, even of another address, does not begin a new scan.
    f.from(&discover).unwrap();
    f.to(&dhcp_answer(MAC, 5, OWN)).unwrap();
    assert_eq!(f.from(&ask(GATEWAY)), Err(Reason::ArpTarget));
    // Whoever has shown up is no stranger.
    assert_eq!(f.to(&ethernet(PEER_MAC, ARP, &arp(1, PEER_MAC, CLIENT, OWN))), Ok(()));
    assert_eq!(f.from(&ask(CLIENT)), Ok(()));
}

/// Of the transaction that [`dhcp_answer`] answers.
fn dhcp_question() -> Vec<u8> {
    ethernet(MAC, IPV4, &ipv4([0; 4], [255; 4], UDP, &udp(68, 67, &[1, 1, 6, 0, 7, 7, 7, 7])))
}

fn dhcp_answer(mac: [u8; 6], kind: u8, address: [u8; 4]) -> Vec<u8> {
    let mut m = vec![0; 244];
    m[0] = 2;
    m[4..8].copy_from_slice(&[7; 4]);
    m[16..20].copy_from_slice(&address);
    m[28..34].copy_from_slice(&mac);
    m[240..243].copy_from_slice(&[53, 1, kind]);
    ethernet(PEER_MAC, IPV4, &ipv4(GATEWAY, [255; 4], UDP, &udp(67, 68, &m)))
}

#[test]
fn neighbour_discovery_is_about_oneself() {
    let mut f = Both::new(rules());
    let own_link_local = {
        let mut a = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        a[8..].copy_from_slice(&rules().interface_id());
        a
    };
    let all = Ipv6Addr::from([0xff02, 0, 0, 0, 0, 0, 0, 1]).octets();
    let message = |kind: u8, target: [u8; 16], option: u8, mac: [u8; 6]| {
        [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target, &[option, 1], &mac].concat()
    };
    let routers = Ipv6Addr::from([0xff02, 0, 0, 0, 0, 0, 0, 2]).octets();
    let solicited = Ipv6Addr::from([0xff02, 0, 0, 0, 0, 1, 0xff00, 9]).octets();
    let sent_to = |from, to, payload: &[u8]| ethernet(MAC, IPV6, &ipv6(from, to, ICMPV6, payload));
    let frame = |from, payload: &[u8]| {
        let to = match payload[0] {
            133 => routers,
            135 => solicited,
            _ => all,
        };
        sent_to(from, to, payload)
    };
    let bad = Err(Reason::NeighbourDiscovery);
    for own in [OWN6, own_link_local] {
        assert_eq!(f.from(&frame(own, &message(136, own, 2, MAC))), Ok(()));
        assert_eq!(f.from(&frame(own, &message(135, PEER6, 1, MAC))), Ok(()));
        assert_eq!(f.from(&frame(own, &message(136, PEER6, 2, MAC))), bad, "somebody else's address");
        assert_eq!(f.from(&frame(own, &message(136, own, 2, PEER_MAC))), bad, "to somebody else");
        assert_eq!(f.from(&frame(own, &message(135, PEER6, 1, PEER_MAC))), bad);
        assert_eq!(f.from(&frame(own, &message(134, own, 1, MAC))), Err(Reason::Protocol), "it is no router");
        assert_eq!(f.from(&frame(own, &message(137, own, 2, MAC))), Err(Reason::Protocol), "no redirects");
        assert_eq!(f.from(&frame(own, &[133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 1, 2, 3, 4, 5])), Ok(()));
        assert_eq!(f.from(&frame(own, &message(136, own, 2, MAC)[..24])), bad);
        assert_eq!(f.from(&frame(own, &[0; 4])), Err(Reason::Truncated));
    }
    assert_eq!(f.from(&frame(PEER6, &message(136, OWN6, 2, MAC))), Err(Reason::SourceAddress));
    // Only to whom it may concern: anything else could be sent on by a router.
    let far = Ipv6Addr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7]).octets();
    let near = Ipv6Addr::from([0xfe80, 0, 0, 0, 0, 0, 0, 7]).octets();
    let solicit = [133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 1, 2, 3, 4, 5];
    for (to, allowed) in
        [(far, [false; 3]), (PEER6, [false; 3]), (near, [false, true, true]), (all, [false, false, true])]
    {
        for (message, passes) in
            [solicit.to_vec(), message(135, PEER6, 1, MAC), message(136, OWN6, 2, MAC)].iter().zip(allowed)
        {
            assert_eq!(
                f.from(&sent_to(OWN6, to, message)),
                if passes { Ok(()) } else { bad },
                "{to:02x?} {message:02x?}"
            );
        }
    }
    // An answer goes to who has asked, if it is a neighbour.
    let mut asked = ethernet(PEER_MAC, IPV6, &ipv6(PEER6, OWN6, ICMPV6, &message(135, OWN6, 1, PEER_MAC)));
    let answer = sent_to(OWN6, PEER6, &message(136, OWN6, 2, MAC));
    asked[ETH + 7] = 254;
    assert_eq!((f.to(&asked), f.from(&answer)), (Ok(()), bad));
    asked[ETH + 7] = 255;
    assert_eq!((f.to(&asked), f.from(&answer)), (Ok(()), Ok(())));
    let mut relayed = frame(OWN6, &message(136, OWN6, 2, MAC));
    relayed[ETH + 7] = 64;
    assert_eq!(f.from(&relayed), bad);
}

#[test]
fn pings_are_answered_not_sent() {
    let mut f = Both::new(any_rules());
    assert_eq!(f.from(&out4(CLIENT, ICMP, &[0, 0, 0, 0, 7, 7, 0, 1])), Err(Reason::Egress));
    assert_eq!(f.to(&in4(CLIENT, ICMP, &[8, 0, 0, 0, 7, 7, 0, 1])), Ok(()));
    assert_eq!(f.from(&out4(CLIENT, ICMP, &[0, 0, 0, 0, 7, 7, 0, 1])), Ok(()));
    assert_eq!(f.from(&out4(CLIENT, ICMP, &[0, 0, 0, 0, 7, 8, 0, 1])), Err(Reason::Egress));
    for kind in [3, 5, 8, 11, 13] {
        assert_eq!(f.from(&out4(CLIENT, ICMP, &[kind, 0, 0, 0, 7, 7, 0, 1])), Err(Reason::Protocol), "{kind}");
    }
    for (kind, passes) in [(0, false), (3, true), (5, false), (11, true), (13, false)] {
        assert_eq!(f.to(&in4(CLIENT, ICMP, &[kind, 0, 0, 0, 0, 0, 0, 0])).is_ok(), passes, "{kind}");
    }
}

#[test]
fn dhcp_pins_the_address_it_gives() {
    let mut f = Both::new(dhcp_rules());
    let discover = dhcp_question();
    assert_eq!(f.from(&discover), Ok(()));
    let elsewhere = ethernet(MAC, IPV4, &ipv4([0; 4], [10, 9, 0, 1], UDP, &udp(68, 67, b"")));
    assert_eq!(f.from(&elsewhere), Err(Reason::SourceAddress));
    assert_eq!(f.from(&ethernet(MAC, ARP, &arp(1, MAC, OWN, GATEWAY))), Err(Reason::Arp), "no lease yet");
    assert_eq!(f.to(&in4(CLIENT, TCP, &tcp(4000, 80, SYN))), Ok(()));
    assert_eq!(f.from(&out4(CLIENT, TCP, &tcp(80, 4000, SYN_ACK))), Err(Reason::SourceAddress));
    let answer = dhcp_answer;
    for ignored in [answer(PEER_MAC, 5, OWN), answer(MAC, 2, OWN), answer(MAC, 6, OWN), answer(MAC, 5, [0; 4])] {
        assert_eq!(f.to(&ignored), Ok(()));
        assert_eq!(f.from(&out4(CLIENT, TCP, &tcp(80, 4000, SYN_ACK))), Err(Reason::SourceAddress));
    }
    let mut unasked = answer(MAC, 5, OWN);
    unasked[ETH + 32] ^= 1;
    assert_eq!(f.to(&unasked), Ok(()));
    assert_eq!(
        f.from(&out4(CLIENT, TCP, &tcp(80, 4000, SYN_ACK))),
        Err(Reason::SourceAddress),
        "another's transaction"
    );
    assert_eq!(f.to(&answer(MAC, 5, OWN)), Ok(()));
    assert_eq!(f.from(&out4(CLIENT, TCP, &tcp(80, 4000, SYN_ACK))), Ok(()));
    // The question is answered: what comes now changes nothing.
    assert_eq!(f.to(&answer(MAC, 5, [10, 9, 0, 66])), Ok(()));
    assert_eq!(f.from(&out4(CLIENT, TCP, &tcp(80, 4000, SYN_ACK))), Ok(()));
    // Nor does an answer that the guest has sent to itself.
    assert_eq!(f.from(&discover), Ok(()));
    let mut own = answer(MAC, 5, [10, 9, 0, 66]);
    own[ETH + 12..ETH + 16].copy_from_slice(&OWN);
    assert_eq!(f.to(&own), Ok(()));
    assert_eq!(f.from(&out4(CLIENT, TCP, &tcp(80, 4000, SYN_ACK))), Ok(()));
    assert_eq!(f.from(&ethernet(MAC, ARP, &arp(1, MAC, OWN, GATEWAY))), Ok(()));
    assert_eq!(f.from(&out4(GATEWAY, UDP, &udp(68, 67, b"renewing"))), Ok(()));
    assert_eq!(f.from(&out4(CLIENT, UDP, &udp(68, 67, b"renew"))), Err(Reason::Egress));
    assert_eq!(f.from(&discover), Ok(()), "the lease may be lost");
    let mut announced = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    announced[8..].copy_from_slice(&dhcp_rules().interface_id());
    assert_eq!(f.to(&ethernet(PEER_MAC, IPV6, &ipv6(PEER6, announced, TCP, &tcp(1, 80, SYN)))), Ok(()));
    assert_eq!(f.from(&ethernet(MAC, IPV6, &ipv6(announced, PEER6, TCP, &tcp(80, 1, ACK)))), Ok(()));
    announced[15] ^= 1;
    assert_eq!(
        f.from(&ethernet(MAC, IPV6, &ipv6(announced, PEER6, TCP, &tcp(80, 1, ACK)))),
        Err(Reason::SourceAddress)
    );
}

#[test]
fn offload_headers_stay_in_the_frame() {
    let mut f = Filter::new(rules());
    let frame = out4(SERVER, TCP, &tcp(40000, 5432, SYN));
    let ok = NetHdr { flags: net_hdr::NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..NetHdr::default() };
    assert_eq!(f.outbound(NetHdr::default(), frame[..].into()), Ok(()));
    assert_eq!(f.outbound(ok, frame[..].into()), Ok(()));
    let end = frame.len() as u16;
    for bad in [
        NetHdr { csum_start: end - 17, ..ok },
        NetHdr { csum_start: u16::MAX, csum_offset: u16::MAX, ..ok },
        NetHdr { csum_start: 2, ..ok },
        // Into the ports, the flags, the addresses: by the start, by the offset.
        NetHdr { csum_start: 20, ..ok },
        NetHdr { csum_start: 33, ..ok },
        NetHdr { csum_offset: 2, ..ok },
        NetHdr { csum_offset: 12, ..ok },
        NetHdr { csum_offset: 6, ..ok },
        NetHdr { gso_type: net_hdr::GSO_TCPV6, gso_size: 1448, ..ok },
        NetHdr { gso_type: net_hdr::GSO_TCPV4, ..ok },
        NetHdr { gso_type: net_hdr::GSO_TCPV4, gso_size: 1448, ..NetHdr::default() },
        NetHdr { gso_type: net_hdr::GSO_TCPV4, gso_size: 1448, hdr_len: end + 1, ..ok },
    ] {
        assert_eq!(f.outbound(bad, frame[..].into()), Err(Reason::Offload), "{bad:?}");
    }
    let ping = out4(CLIENT, ICMP, &[0, 0, 0, 0, 7, 7, 0, 1]);
    assert_eq!(f.outbound(ok, ping[..].into()), Err(Reason::Offload), "no protocol whose checksum is made");
    let mut fragment = frame.clone();
    fragment[ETH + 6] = 0x20;
    assert_eq!(f.outbound(ok, fragment[..].into()), Err(Reason::Offload), "a fragment");
    assert_eq!(f.outbound(NetHdr { gso_type: net_hdr::GSO_TCPV4, gso_size: 1448, ..ok }, frame[..].into()), Ok(()));
    assert_eq!(f.dropped(Way::FromGuest)[Reason::Offload as usize], 14);
    assert_eq!(f.dropped(Way::ToGuest), [0; _]);
}

#[test]
fn a_frame_that_will_be_cut_counts_with_the_headers_of_its_segments() {
    assert_eq!(bytes_on_the_line(1000, NetHdr::default()), 1000);
    let cut = |gso_size| NetHdr { gso_type: net_hdr::GSO_TCPV4, gso_size, ..NetHdr::default() };
    assert_eq!(bytes_on_the_line(64_066, cut(1448)), 64_066 + 44 * 66);
    assert_eq!(bytes_on_the_line(1000, cut(1)), 1000 + 1000 * 66);
    assert_eq!(bytes_on_the_line(1000, cut(0)), 1000 + 1000 * 66);
}

/// A xorshift generator: the same cases in every run.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % below
    }

    fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.next(items.len())]
    }
}

/// A frame made of likely parts, so that every branch is taken.
fn any_frame(r: &mut Random) -> Vec<u8> {
    let v4 = [OWN, GATEWAY, CLIENT, SERVER, [0; 4], [255; 4], [169, 254, 169, 254], [224, 0, 0, 1], [127, 0, 0, 1]];
    let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0xff, 0xfe, 3, 4, 5];
    let v6 = [OWN6, PEER6, link_local, [0; 16], [0xff; 16], mapped(Ipv4Addr::from(SERVER).into())];
    let ports = [80, 53, 67, 68, 5432, 4000];
    let payload = match r.next(5) {
        0 | 1 => tcp(r.of(&ports), r.of(&ports), r.of(&[SYN, SYN_ACK, ACK, RST, 0, 0xff])),
        2 => udp(r.of(&ports), r.of(&ports), &vec![5; r.of(&[0, 30, 260])]),
        3 => {
            let mut p = vec![r.of(&[0, 3, 8, 11, 128, 129, 133, 134, 135, 136, 137]), 0, 0, 0, 0, 0, 0, 0];
            p.extend(r.of(&v6));
            p.extend([r.of(&[1, 2]), 1]);
            p.extend(r.of(&[MAC, PEER_MAC]));
            p.truncate(r.of(&[4, 8, 16, 32]));
            p
        }
        _ => vec![0; r.next(50)],
    };
    let protocols = [TCP, TCP, UDP, UDP, ICMP, ICMPV6, ICMPV6, 0, 44, 43, 47];
    let (kind, packet) = match r.next(8) {
        0 => (ARP, arp(r.of(&[1, 1, 2, 3]), r.of(&[MAC, PEER_MAC]), r.of(&v4), r.of(&v4))),
        1..4 => (IPV4, ipv4(r.of(&v4), r.of(&v4), r.of(&protocols), &payload)),
        4..7 => (IPV6, ipv6(r.of(&v6), r.of(&v6), r.of(&protocols), &payload)),
        _ => (r.of(&[IPV4, IPV6, ARP, [0x81, 0], [1, 2]]), payload),
    };
    let mut frame = ethernet(r.of(&[MAC, MAC, MAC, PEER_MAC]), kind, &packet);
    if r.next(3) == 0 {
        let at = r.next(frame.len());
        frame[at] = r.of(&[0, 1, 6, 17, 0x20, 0x45, 0x46, 0xff, 0x80]);
    }
    if r.next(4) == 0 {
        frame.truncate(r.next(frame.len() + 1));
    }
    frame
}

/// The two implementations decide alike, for the same reason, whatever has happened before.
#[test]
fn both_implementations_agree() {
    let mut verdicts = std::collections::HashMap::new();
    for (seed, rules) in [rules(), dhcp_rules(), any_rules()].into_iter().enumerate() {
        let mut f = Both::new(rules);
        let mut r = Random(0x9e37_79b9_7f4a_7c15 + seed as u64);
        for _ in 0..40_000 {
            let frame = any_frame(&mut r);
            let to_guest = r.next(2) == 0;
            *verdicts.entry((to_guest, f.agree(to_guest, &frame))).or_insert(0) += 1;
        }
    }
    // Every reason that a frame without offload header can have whatever the time is was among them, and both directions let something through.
    for reason in Reason::ALL.into_iter().filter(|r| !matches!(r, Reason::Offload | Reason::Rate)) {
        assert!([true, false].iter().any(|d| verdicts.contains_key(&(*d, Err(reason)))), "{reason:?} never came");
    }
    assert!(verdicts[&(true, Ok(()))] > 1000 && verdicts[&(false, Ok(()))] > 300, "{verdicts:?}");
}

/// Whatever passes from a guest bears its own addresses, whatever it has been sent before.
#[test]
fn what_passes_is_the_guests_own() {
    let mut f = Filter::new(rules());
    let mut r = Random(77);
    let mut passed = 0;
    for _ in 0..200_000 {
        let frame = any_frame(&mut r);
        if r.next(2) == 0 {
            f.inbound(frame[..].into());
            continue;
        }
        if f.outbound(NetHdr::default(), frame[..].into()).is_err() {
            continue;
        }
        passed += 1;
        assert_eq!(frame[6..12], MAC);
        match [frame[12], frame[13]] {
            ARP => assert_eq!((&frame[22..28], &frame[28..32]), (&MAC[..], &OWN[..])),
            IPV4 => {
                assert_eq!(frame[26..30], OWN);
                assert_ne!(frame[30..32], [169, 254]);
            }
            IPV6 => assert!(f.owns6(frame[22..38].try_into().unwrap())),
            other => panic!("{other:x?}"),
        }
    }
    assert!(passed > 300, "{passed}");
}

/// Frames that pass are the burst and then what the time since has earned, in both implementations; frames that are dropped for another reason cost nothing.
#[test]
fn what_passes_keeps_to_the_limits() {
    let syn = out4(SERVER, TCP, &tcp(40_000, 5432, SYN));
    let data = out4(SERVER, TCP, &[&tcp(40_000, 5432, ACK)[..], &[0; 1000]].concat());
    let elsewhere = out4(CLIENT, TCP, &tcp(40_000, 5432, SYN));
    let cases = [
        (Limit { connections: 5, send: 0 }, &syn, 1, 5, 5),
        (Limit { connections: 0, send: 1000 }, &data, data.len(), 1000, 128 * 1024),
    ];
    for (limit, frame, units, rate, burst) in cases {
        let rules = Rules { limit, ..rules() };
        let check = |name: &str, pass: &mut dyn FnMut(&[u8]) -> Result<(), Reason>| {
            let start = std::time::Instant::now();
            for _ in 0..1000 {
                assert_eq!(pass(&elsewhere), Err(Reason::Egress));
            }
            let mut passed = 0;
            for _ in 0..1000 {
                match pass(frame) {
                    Ok(()) => passed += units,
                    Err(reason) => assert_eq!(reason, Reason::Rate, "{name}"),
                }
            }
            let most = burst as f64 + start.elapsed().as_secs_f64() * rate as f64;
            assert!(passed + units > burst && passed as f64 <= most + units as f64, "{name}: {passed} of {most}");
        };
        let mut filter = Filter::new(rules.clone());
        check("monitor", &mut |frame| filter.outbound(NetHdr::default(), frame.into()));
        match Bench::new(&rules) {
            Some(bench) => check("kernel", &mut |frame| bench.run(false, frame).expect("a frame that the test takes")),
            None => {
                donjon_skip::skip(&donjon_skip::this_test(), "needs CAP_BPF and CAP_NET_ADMIN for the kernel's half")
            }
        }
    }
    // The other kind of frame is not limited.
    let mut filter = Filter::new(Rules { limit: Limit { connections: 1, send: 0 }, ..rules() });
    assert!((0..100).all(|_| filter.outbound(NetHdr::default(), data[..].into()).is_ok()));
}

/// What user-mode networking gets, to refuse it or because it belongs to a connection that is not remembered any more, keeps to the limit too. Only the former was dropped.
#[test]
fn what_passes_to_a_stack_keeps_to_its_limit() {
    for to in [CLIENT, [169, 254, 7, 7]] {
        let mut f = Filter::new(Rules { limit: Limit { connections: 0, send: 1000 }, ..rules() });
        let ask = |f: &mut Filter, frame: &[u8]| f.outbound_to_stack(NetHdr::default(), frame.into());
        let reason = if to == CLIENT { Reason::Egress } else { Reason::Metadata };
        for (n, frame) in [out4(to, TCP, &tcp(4000, 22, SYN)), out4(to, UDP, &udp(4000, 53, b""))].iter().enumerate() {
            assert_eq!(ask(&mut f, frame), Ok(()));
            assert_eq!(f.dropped(Way::FromGuest)[reason as usize], n as u64 + 1);
        }
        let data = out4(to, TCP, &[&tcp(80, 4000, ACK)[..], &[0; 1000]].concat());
        let start = std::time::Instant::now();
        let passed = (0..1000).filter(|_| ask(&mut f, &data).is_ok()).count();
        let most = (128.0 * 1024.0 + start.elapsed().as_secs_f64() * 1000.0) / data.len() as f64 + 1.0;
        assert!((100.0..most).contains(&(passed as f64)), "{passed} of {most}");
        let dropped = f.dropped(Way::FromGuest);
        assert_eq!((dropped[reason as usize], dropped[Reason::Rate as usize]), (2, 1000 - passed as u64));
        assert_eq!(ask(&mut f, &ethernet(PEER_MAC, IPV4, &data[14..])), Err(Reason::SourceMac));
    }
}
