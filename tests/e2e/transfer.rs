//! Bulk data, and clients that misbehave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Stdio;

use donjon_tests::{
    Engine, Guest, HOST_IP, Need, Netns, PATIENCE, example, http, missing, pattern, poll_until, test_guest,
};

crate::under_engines! {
    download: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    upload: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    echo_both_ways: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    half_closed_client_gets_its_reply: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    client_that_is_killed: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    client_that_never_reads: ProcessUser ProcessTap QemuMicrovm QemuQ35;
}

/// Bytes of a long transfer in one direction.
const BULK: usize = 100_000_000;

fn server(engine: Engine) -> Guest {
    let mut guest = Guest::builder(&test_guest("sockets"), engine).port(9000).args(["server"]).start();
    guest.wait_console("listening");
    // Listening inside is not yet reachable outside (address from DHCP, say).
    let up = poll_until(PATIENCE, || live(&guest).ok());
    assert!(up.is_some(), "{}", guest.log());
    guest
}

/// Open connections in the guest, this question's own not counted.
fn live(guest: &Guest) -> std::io::Result<u64> {
    let mut stream = guest.connect()?;
    stream.write_all(b"L")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let count: u64 = line.trim().parse().map_err(|_| std::io::Error::other(format!("not a count: {line:?}")))?;
    Ok(count - 1)
}

fn download(engine: Engine) {
    let guest = Guest::builder(&example("hello-axum"), engine).port(8080).start_http("/");
    let len = BULK;
    let mut curl = guest
        .command("curl")
        .args(["-sS", "--fail", &guest.url(&format!("/bytes/{len}"))])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let got = pattern::check(curl.stdout.take().unwrap());
    assert!(curl.wait().unwrap().success(), "{}", guest.log());
    assert_eq!(got.unwrap(), len as u64);
}

fn upload(engine: Engine) {
    let guest = Guest::builder(&example("hello-axum"), engine).port(8080).start_http("/");
    let body = pattern::bytes(BULK);
    let mut curl = guest
        .command("curl")
        .args(["-sS", "--fail", "--data-binary", "@-", &guest.url("/hash")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    curl.stdin.take().unwrap().write_all(&body).unwrap();
    let answer = curl.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&answer.stdout).trim(),
        format!("{} {}", body.len(), pattern::fnv(&body)),
        "{}",
        guest.log()
    );
}

fn echo_both_ways(engine: Engine) {
    let guest = server(engine);
    let len = BULK / 10;
    let mut stream = guest.connect().unwrap();
    stream.write_all(b"E").unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        writer.write_all(&pattern::bytes(len)).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    assert_eq!(pattern::check(&mut stream).unwrap(), len as u64);
    sender.join().unwrap();
}

fn half_closed_client_gets_its_reply(engine: Engine) {
    let guest = server(engine);
    for len in [0usize, 1, 1_000_000] {
        let body = pattern::bytes(len);
        let mut stream = guest.connect().unwrap();
        stream.write_all(b"H").unwrap();
        stream.write_all(&body).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.trim(), format!("{len} {}", pattern::fnv(&body)));
    }
}

fn client_that_is_killed(engine: Engine) {
    let guest = server(engine);
    for _ in 0..10 {
        let mut stream = guest.connect().unwrap();
        stream.write_all(b"B").unwrap();
        stream.write_all(&(1u64 << 40).to_le_bytes()).unwrap();
        stream.read_exact(&mut [0; 100_000]).unwrap();
        // Unread data: the host's kernel sends a reset, as it does for a process that is killed.
        drop(stream);
    }
    let gone = poll_until(PATIENCE, || (live(&guest).ok()? == 0).then_some(()));
    assert!(gone.is_some(), "{:?} connections stay\n{}", live(&guest), guest.log());
}

fn client_that_never_reads(engine: Engine) {
    let guest = server(engine);
    let silent: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = guest.connect().unwrap();
            stream.write_all(b"B").unwrap();
            stream.write_all(&(1u64 << 40).to_le_bytes()).unwrap();
            stream
        })
        .collect();
    // Whoever does read is served all the same.
    let mut stream = guest.connect().unwrap();
    stream.write_all(b"B").unwrap();
    stream.write_all(&1_000_000u64.to_le_bytes()).unwrap();
    assert_eq!(pattern::check(stream).unwrap(), 1_000_000, "{}", guest.log());
    drop(silent);
    let gone = poll_until(PATIENCE, || (live(&guest).ok()? == 0).then_some(()));
    assert!(gone.is_some(), "{:?} connections stay\n{}", live(&guest), guest.log());
}

#[test]
fn client_that_vanishes_without_a_word() {
    if missing("client_that_vanishes_without_a_word", &[Need::Tap]) {
        return;
    }
    // A second address of the host's is the client's; taking it away makes the client vanish: no FIN, no RST, no ARP answer.
    let ns = Netns::with_tap();
    let mut guest = Guest::builder(&test_guest("sockets"), Engine::ProcessTap)
        .port(9000)
        .args(["server"])
        .start_in(Some(ns.clone()));
    guest.wait_console("listening");
    ns.ip(&["addr", "add", "10.77.0.9/24", "dev", Netns::TAP]);
    let url = guest.addr();
    let mut curl = guest
        .command("curl")
        .args(["-sS", "--interface", "10.77.0.9", "-o", "/dev/null", &format!("telnet://{url}")])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut request = b"B".to_vec();
    request.extend(1_000_000_000_000u64.to_le_bytes());
    let mut stdin = curl.stdin.take().unwrap();
    stdin.write_all(&request).unwrap();
    stdin.flush().unwrap();
    let streaming = poll_until(PATIENCE, || (live(&guest).ok()? == 1).then_some(()));
    assert!(streaming.is_some(), "{}", guest.log());
    ns.ip(&["addr", "del", "10.77.0.9/24", "dev", Netns::TAP]);
    // Others go on being served, from the address that is left.
    for _ in 0..50 {
        let mut stream = guest.connect().unwrap();
        assert_eq!(stream.local_addr().unwrap().ip().to_string(), HOST_IP);
        stream.write_all(b"B").unwrap();
        stream.write_all(&100_000u64.to_le_bytes()).unwrap();
        assert_eq!(pattern::check(stream).unwrap(), 100_000);
    }
    curl.kill().unwrap();
    curl.wait().unwrap();
    guest.expect_alive();
}

#[test]
fn ipv6_over_tap() {
    if missing("ipv6_over_tap", &[Need::Tap]) {
        return;
    }
    // The host is fd77::1.
    let builder = Guest::builder(&test_guest("sockets"), Engine::ProcessTap).port(9000).tap("ip=fd77::2/64");
    let mut guest = builder.args(["server", "::"]).start();
    guest.wait_console("listening");
    // An address that is not announced yet is as good as no answer.
    let connect = || guest.run(|| TcpStream::connect("[fd77::2]:9000")).ok();
    let mut stream = poll_until(PATIENCE, connect).unwrap_or_else(|| panic!("unreachable\n{}", guest.log()));
    assert_eq!(stream.local_addr().unwrap().ip().to_string(), "fd77::1");
    stream.write_all(b"B").unwrap();
    stream.write_all(&1_000_000u64.to_le_bytes()).unwrap();
    assert_eq!(pattern::check(stream).unwrap(), 1_000_000, "{}", guest.log());
    // The same socket, by IPv4.
    live(&guest).unwrap();
}

#[test]
fn a_pipelining_client_over_http() {
    // Not a matter of the engine: the smallest one does.
    let guest = Guest::builder(&example("hello-axum"), Engine::ProcessUser).port(8080).start_http("/");
    let stream = guest.connect().unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for _ in 0..500 {
            http::send_get_keep_alive(&mut writer, "/json").unwrap();
        }
    });
    let mut reader = BufReader::new(stream);
    for _ in 0..500 {
        assert_eq!(http::read_response(&mut reader).unwrap().status, 200);
    }
    sender.join().unwrap();
}
