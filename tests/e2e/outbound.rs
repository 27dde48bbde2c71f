//! Connections that the guest makes.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};

use donjon_tests::{Engine, Guest, HOST_IP, Need, Netns, example, missing};

/// Answers one HTTP request on the listener.
fn serve_once(listener: &TcpListener) {
    let (stream, _) = listener.accept().unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    let mut stream = stream;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nConnection: close\r\n\r\nfrom a host").unwrap();
}

#[test]
fn http_client_over_tap() {
    if missing("http_client_over_tap", &[Need::Tap]) {
        return;
    }
    let ns = Netns::with_tap();
    let listener = ns.run(|| TcpListener::bind((HOST_IP, 8000)).unwrap());
    let guest = Guest::builder(&example("outbound"), Engine::ProcessTap)
        .options(["--egress-any"])
        .args([format!("http://{HOST_IP}:8000/path")])
        .start_in(Some(ns));
    serve_once(&listener);
    guest.wait().expect_code(0).expect_text("from a host");
}

#[test]
fn refused_connection_is_an_error() {
    if missing("refused_connection_is_an_error", &[Need::Tap]) {
        return;
    }
    let exit = Guest::builder(&example("outbound"), Engine::ProcessTap)
        .options(["--egress-any"])
        .args([format!("http://{HOST_IP}:1/")])
        .run();
    exit.expect_code(1).expect_text("refused");
}

#[test]
fn dns_lookup_over_tap() {
    if missing("dns_lookup_over_tap", &[Need::Tap]) {
        return;
    }
    let ns = Netns::with_tap();
    let server = ns.run(|| UdpSocket::bind((HOST_IP, 53)).unwrap());
    let answering = std::thread::spawn(move || {
        // Every A question for `named.test` is answered with 10.9.8.7, every other question with nothing.
        server.set_read_timeout(Some(donjon_tests::PATIENCE)).unwrap();
        let mut query = [0; 512];
        for _ in 0..2 {
            let Ok((n, client)) = server.recv_from(&mut query) else { return };
            let question = &query[12..n];
            let Some(end) = question.iter().position(|b| *b == 0).map(|zero| zero + 5) else { continue };
            let is_a = question[end - 4..end - 2] == [0, 1];
            let mut answer = query[..2].to_vec();
            // RFC 1035 §4.1.1: response, recursion desired and available; one question.
            answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
            answer.extend(&question[..end]);
            if is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 9, 8, 7]);
            }
            server.send_to(&answer, client).unwrap();
        }
    });
    let guest = Guest::builder(&example("outbound"), Engine::ProcessTap)
        .dns(HOST_IP)
        .options(["--egress-any"])
        .args(["dns", "named.test"])
        .start_in(Some(ns));
    guest.wait().expect_code(0).expect_text("10.9.8.7");
    // It ends by itself once both questions (A, AAAA) are in, or at its timeout.
    drop(answering);
}

#[test]
fn http_client_over_user_networking() {
    // User-mode networking lets a guest reach the host's loopback by the gateway's address, as QEMU's does.
    for engine in [Engine::ProcessUser, Engine::QemuMicrovm] {
        if missing(&format!("http_client_over_user_networking {engine}"), engine.needs()) {
            continue;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let guest = Guest::builder(&example("outbound"), engine)
            .options(["--egress-any"])
            .args([format!("http://10.0.2.2:{port}/path")])
            .start();
        serve_once(&listener);
        guest.wait().expect_code(0).expect_text("from a host");
    }
}
