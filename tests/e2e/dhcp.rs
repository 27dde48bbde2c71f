//! A guest on a TAP that asks a DHCP server for its address. The server is a real one, as small as it can be; filter and library OS are what is tested.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use donjon_tests::{Engine, GUEST_IP, Guest, HOST_IP, Netns, donjon_command, example};

crate::under_engines! {
    a_guest_gets_its_address: ProcessTap QemuMicrovm;
}

/// Under QEMU on a TAP, too.
fn a_guest_gets_its_address(engine: Engine) {
    if donjon_tests::missing("dhcp::a_guest_gets_its_address", Engine::ProcessTap.needs()) {
        return;
    }
    leased(&["--engine", if engine.is_qemu() { "qemu" } else { "process" }]);
}

fn leased(engine: &[&str]) {
    let image = example("hello-std");
    let ns = Netns::with_tap();
    // Broadcasts go out there.
    ns.ip(&["route", "add", "255.255.255.255", "dev", Netns::TAP]);
    let server = ns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67))).expect("port 67 of a new namespace");
    server.set_broadcast(true).expect("a socket that may broadcast");
    server.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let serving = std::thread::spawn(move || {
        // What it discovers is offered, what it requests is granted.
        let (mut kinds, mut room) = (Vec::new(), [0; 1500]);
        while kinds.last() != Some(&3) {
            let n = server.recv(&mut room).expect("a question from the guest");
            let kind = option(&room[..n], 53).expect("a kind of message")[0];
            kinds.push(kind);
            let answer = answer(&room[..n], if kind == 1 { 2 } else { 5 });
            server.send_to(&answer, (Ipv4Addr::BROADCAST, 68)).expect("an answer goes out");
        }
        kinds
    });
    let donjon = donjon_command();
    let mut command = ns.command(donjon.get_program());
    command.arg("run").arg(&image).args(engine).args(["--net", &format!("tap:{}", Netns::TAP)]);
    let address = SocketAddrV4::new(GUEST_IP.parse().expect("an address"), 8080);
    let mut guest = Guest::program("dhcp", command, address, Some(ns));
    guest.wait_http("/");
    assert_eq!(serving.join().expect("a server"), [1, 3], "discover, request");
}

/// The value of an option (RFC 2132).
fn option(message: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = message.get(240..)?;
    loop {
        match rest {
            [255, ..] | [] => return None,
            [0, more @ ..] => rest = more,
            [kind, len, more @ ..] => {
                let (value, more) = more.split_at_checked((*len).into())?;
                if *kind == wanted {
                    return Some(value);
                }
                rest = more;
            }
            _ => return None,
        }
    }
}

/// An offer (2) or acknowledgement (5) of [`GUEST_IP`] (RFC 2131 §2).
fn answer(question: &[u8], kind: u8) -> Vec<u8> {
    let ip = |text: &str| text.parse::<Ipv4Addr>().expect("an address").octets();
    let mut m = vec![0; 240];
    m[..4].copy_from_slice(&[2, 1, 6, 0]);
    m[4..8].copy_from_slice(&question[4..8]);
    m[10..12].copy_from_slice(&question[10..12]);
    m[16..20].copy_from_slice(&ip(GUEST_IP));
    m[20..24].copy_from_slice(&ip(HOST_IP));
    m[28..44].copy_from_slice(&question[28..44]);
    m[236..240].copy_from_slice(&[99, 130, 83, 99]);
    let mut put = |option: u8, value: &[u8]| {
        m.extend([option, value.len() as u8]);
        m.extend(value);
    };
    put(53, &[kind]);
    put(54, &ip(HOST_IP));
    put(51, &3600u32.to_be_bytes());
    put(1, &[255, 255, 255, 0]);
    put(3, &ip(HOST_IP));
    m.push(255);
    m
}
