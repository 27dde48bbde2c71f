use super::*;
use crate::fd::tests::start;
use core::sync::atomic::{AtomicU16, Ordering::SeqCst};
use std::vec;

/// What the server answers to a question for A and for AAAA, high and low byte: a code, or `ADDRESS`.
static ANSWERS: AtomicU16 = AtomicU16::new(0);
const ADDRESS: u8 = 0xff;
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;
const FORMERR: u8 = 1;
const REFUSED: u8 = 5;
/// No such record.
const NONE: u8 = 0;

/// Waits for both questions and answers the second one first.
fn serve(socket: usize) {
    let fd = socket as i32;
    let mut replies = vec![];
    for _ in 0..2 {
        let mut m = [0; 512];
        let got = socket::recv(fd, &mut [&mut m], 0).unwrap();
        let mut m = m[..got.copied].to_vec();
        let aaaa = m[got.copied - 3] == Kind::Aaaa as u8;
        let code = ANSWERS.load(SeqCst).to_be_bytes()[usize::from(aaaa)];
        m[2..4].copy_from_slice(&[0x81, 0x80 | if code == ADDRESS { 0 } else { code }]);
        if code == ADDRESS {
            m[7] = 1;
            let len = if aaaa { 16 } else { 4 };
            m.extend([0xc0, 12, 0, if aaaa { 28 } else { 1 }, 0, 1, 0, 0, 0, 9, 0, len]);
            m.extend([1].repeat(usize::from(len)));
        }
        replies.push((m, got.from));
    }
    for (m, from) in replies.iter().rev() {
        socket::send(fd, &[m], from.as_ref(), 0).unwrap();
    }
    fd::close(fd).unwrap();
}

#[test]
fn what_two_answers_come_to() {
    let _s = start();
    let v4 = vec![IpAddr::from([1; 4])];
    let cases = [
        (NONE, NONE, Err(Failure::NoData)),
        // What the server could not find out may be there.
        (SERVFAIL, NONE, Err(Failure::Again)),
        (NONE, SERVFAIL, Err(Failure::Again)),
        (REFUSED, NONE, Err(Failure::Again)),
        (NONE, REFUSED, Err(Failure::Again)),
        (FORMERR, NONE, Err(Failure::Broken)),
        (NONE, FORMERR, Err(Failure::Broken)),
        (SERVFAIL, NXDOMAIN, Err(Failure::NoName)),
        (NXDOMAIN, SERVFAIL, Err(Failure::NoName)),
        (NXDOMAIN, NONE, Err(Failure::NoName)),
        (ADDRESS, SERVFAIL, Ok(v4.clone())),
        (ADDRESS, NONE, Ok(v4)),
    ];
    for (a, aaaa, expected) in cases {
        ANSWERS.store(u16::from_be_bytes([a, aaaa]), SeqCst);
        let server = socket::socket(socket::addr::AF_INET, SOCK_DGRAM, 0).unwrap();
        socket::bind(server, &Addr::Inet(SocketAddr::from(([127, 0, 0, 1], PORT)))).unwrap();
        crate::sched::spawn(serve, server as usize, 64 << 10).unwrap();
        assert_eq!(ask(IpAddr::V4(Ipv4Addr::LOCALHOST), "a.b", Family::Any), expected, "{a} {aaaa}");
    }
}

#[test]
fn who_sends_without_end_is_not_listened_to_without_end() {
    /// Much that answers nothing, all of it late, and the answer behind it.
    fn flood(socket: usize) {
        let fd = socket as i32;
        let mut m = [0; 512];
        let got = socket::recv(fd, &mut [&mut m], 0).unwrap();
        // The one who asks gets its turn when all is there.
        let _off = donjon_base::preempt::off();
        donjon_base::host::machine(|m| m.now += PATIENCE);
        for _ in 0..20 {
            socket::send(fd, &[b"no answer"], got.from.as_ref(), 0).unwrap();
        }
        m[2..4].copy_from_slice(&[0x81, 0x83]);
        socket::send(fd, &[&m[..got.copied]], got.from.as_ref(), 0).unwrap();
        fd::close(fd).unwrap();
    }
    let _s = start();
    let server = socket::socket(socket::addr::AF_INET, SOCK_DGRAM, 0).unwrap();
    socket::bind(server, &Addr::Inet(SocketAddr::from(([127, 0, 0, 1], PORT)))).unwrap();
    crate::sched::spawn(flood, server as usize, 64 << 10).unwrap();
    assert_eq!(ask(IpAddr::V4(Ipv4Addr::LOCALHOST), "a.b", Family::V4), Err(Failure::Again));
}
