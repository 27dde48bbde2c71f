//! A tiny HTTP server on a TAP device, to measure the stack with real clients:
//! `tap_http TAP OWN_IP/PREFIX [--no-gso] [BODY_BYTES]`. Needs a TAP that exists and may be opened. Serves `GET /` with keep-alive, and swallows `POST` bodies.

#[path = "../tests/tap/mod.rs"]
mod tap;

use donjon_net::*;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::time::Instant;
use tap::Tap;

#[derive(Default)]
struct Client {
    request: Vec<u8>,
    /// Bytes of a request body still to come.
    body: u64,
    /// Requests that wait for their answer, and how much of the first one's is sent.
    owed: usize,
    sent: usize,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let gso = !args.iter().any(|a| a == "--no-gso");
    let mut words = args.iter().filter(|a| !a.starts_with("--"));
    let (Some(name), Some(own)) = (words.next(), words.next()) else {
        eprintln!("usage: tap_http TAP IP/PREFIX [--no-gso] [BODY_BYTES]");
        std::process::exit(2);
    };
    let (ip, prefix) = own.split_once('/').expect("IP/PREFIX");
    let body = words.next().map_or(1024, |n| n.parse().expect("bytes"));
    let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {body}\r\n\r\n").into_bytes();
    answer.resize(answer.len() + body, b'x');

    let mut tap = Tap::open(name, gso).expect("TAP");
    let start = Instant::now();
    let mut key = [0; 32];
    File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut key)).expect("urandom");
    let mut stack = Stack::new(
        Config {
            mac: [2, 0, 0, 0, 0, 0x77],
            mtu: 1500,
            offload: Offload { tx_csum: gso, tso4: gso, tso6: gso },
            key,
            limits: Limits::for_memory(256 << 20),
            lasting: &[],
            any_ip: false,
            dhcp: false,
            slaac: false,
        },
        0,
    );
    let now = || start.elapsed().as_nanos() as u64;
    stack.add_address(ip.parse().expect("IP"), prefix.parse().expect("prefix")).expect("address");
    let listener = stack.tcp_socket(Domain::V6).expect("socket");
    let any: SocketAddr = "[::]:80".parse().expect("constant");
    stack.bind(listener, any, BindOptions::default()).expect("bind");
    stack.listen(listener, 4096).expect("listen");

    let mut clients: HashMap<Handle, Client> = HashMap::new();
    let mut frame = vec![0; 65_535 + 14 + 12];
    let mut buffer = vec![0; 256 << 10];
    loop {
        let mut budget = 64;
        while budget > 0
            && let Ok(n) = tap.0.read(&mut frame)
        {
            if let Some((hdr, bytes)) = frame[..n].split_first_chunk::<12>() {
                stack.input(now(), NetHdr::from_bytes(*hdr), bytes);
            }
            budget -= 1;
        }
        while let Some(event) = stack.next_event() {
            if event.handle == listener {
                while let Ok((h, _)) = stack.accept(listener) {
                    let o = TcpOptions { nodelay: true, ..stack.tcp_options(h).expect("options") };
                    stack.set_tcp_options(h, o).expect("options");
                    clients.insert(h, Client::default());
                    serve(&mut stack, h, &mut clients, &answer, &mut buffer);
                }
            } else {
                serve(&mut stack, event.handle, &mut clients, &answer, &mut buffer);
            }
        }
        let full = stack.output(now(), &mut tap) == Output::Full;
        if budget == 0 {
            continue;
        }
        let wait = stack.deadline().map_or(-1, |d| (d.saturating_sub(now())).div_ceil(1_000_000).min(1000) as i32);
        tap.wait(full, wait);
    }
}

fn serve(stack: &mut Stack, h: Handle, clients: &mut HashMap<Handle, Client>, answer: &[u8], buffer: &mut [u8]) {
    let Some(c) = clients.get_mut(&h) else { return };
    let mut gone = false;
    loop {
        match stack.recv(h, &mut [buffer], RecvMode::Take) {
            Ok(0) => {
                gone = true;
                break;
            }
            Ok(n) => {
                let mut data = &buffer[..n];
                let skip = c.body.min(data.len() as u64);
                c.body -= skip;
                data = &data[skip as usize..];
                if skip > 0 && c.body == 0 {
                    c.owed += 1;
                }
                c.request.extend_from_slice(data);
                while let Some(end) = c.request.windows(4).position(|w| w == b"\r\n\r\n") {
                    let head = String::from_utf8_lossy(&c.request[..end]).to_ascii_lowercase();
                    c.request.drain(..end + 4);
                    let length = head.split("content-length: ").nth(1).and_then(|l| l.lines().next()?.parse().ok());
                    let length: u64 = length.unwrap_or(0);
                    if head.contains("expect: 100-continue") {
                        let _ = stack.send(h, &[b"HTTP/1.1 100 Continue\r\n\r\n"]);
                    }
                    let here = length.min(c.request.len() as u64);
                    c.request.drain(..here as usize);
                    c.body = length - here;
                    if c.body == 0 {
                        c.owed += 1;
                    }
                }
            }
            Err(Error::WouldBlock) => break,
            Err(_) => {
                stack.close(h);
                clients.remove(&h);
                return;
            }
        }
    }
    while c.owed > 0 {
        match stack.send(h, &[&answer[c.sent..]]) {
            Ok(n) => {
                c.sent += n;
                if c.sent == answer.len() {
                    c.sent = 0;
                    c.owed -= 1;
                }
            }
            Err(_) => break,
        }
    }
    if gone && c.owed == 0 {
        stack.close(h);
        clients.remove(&h);
    }
}
