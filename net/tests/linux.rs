//! Against Linux' own TCP, over a TAP in a network namespace of its own, with frames lost on purpose. Needs root; skipped loudly otherwise.

#[path = "sim/mod.rs"]
mod sim;
mod tap;

use donjon_net::*;
use donjon_skip::{Need, missing};
use sim::{MS, Rng, SECOND, feed, pattern};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};
use tap::Tap;

const IN_NAMESPACE: &str = "DONJON_NET_TEST_NAMESPACE";

#[test]
fn linux_is_a_peer() {
    if std::env::var_os(IN_NAMESPACE).is_some() {
        return;
    }
    if missing("linux_is_a_peer", &[Need::Tap]) {
        return;
    }
    let output = Command::new("unshare")
        .arg("-n")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "inside", "--ignored", "--nocapture"])
        .env(IN_NAMESPACE, "1")
        .output()
        .expect("unshare");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    assert!(output.status.success(), "{text}");
}

fn ip(args: &str) {
    assert!(Command::new("ip").args(args.split(' ')).status().expect("ip").success(), "ip {args}");
}

/// Loses some of what is sent.
struct Lossy<'a> {
    tap: &'a mut Tap,
    rng: &'a mut Rng,
    drop: u64,
}

impl FrameSink for Lossy<'_> {
    fn send(&mut self, header: NetHdr, head: &[u8], payload: &[&[u8]]) -> Sent {
        if self.rng.chance(self.drop) { Sent::Done } else { self.tap.send(header, head, payload) }
    }
}

/// What the stack does with a connection.
enum Role {
    /// Sends back what it gets; bytes that wait.
    Echo(Vec<u8>, bool),
    /// Sends the pattern and closes; position.
    Source(u64, u64),
}

/// Runs a stack: echo on port 7, a source of 3 MB on port 19; connects to `dial` if given, as an echo.
fn serve(gso: bool, drop: u64, dial: Option<SocketAddr>, until: impl Fn() -> bool) {
    let mut tap = Tap::open("tap0", gso).unwrap();
    let start = Instant::now();
    let now = || start.elapsed().as_nanos() as u64;
    let offload = Offload { tx_csum: gso, tso4: gso, tso6: gso };
    let mut stack = Stack::new(Config { offload, ..sim::config(7) }, 0);
    stack.add_address("10.9.0.2".parse().unwrap(), 24).unwrap();
    stack.add_address("fd09::2".parse().unwrap(), 64).unwrap();
    let mut listeners = HashMap::new();
    for port in [7, 19] {
        let l = stack.tcp_socket(Domain::V6).unwrap();
        stack.bind(l, format!("[::]:{port}").parse().unwrap(), BindOptions::default()).unwrap();
        stack.listen(l, 64).unwrap();
        listeners.insert(l, port);
    }
    let mut connections = HashMap::new();
    if let Some(to) = dial {
        let c = stack.tcp_socket(Domain::V6).unwrap();
        stack.connect(c, to).unwrap();
        connections.insert(c, Role::Echo(Vec::new(), false));
    }
    let mut rng = Rng(12345);
    let mut frame = vec![0; 70_000];
    while !until() {
        while let Ok(n) = tap.0.read(&mut frame) {
            if let Some((hdr, bytes)) = frame[..n].split_first_chunk::<12>()
                && !rng.chance(drop)
            {
                stack.input(now(), NetHdr::from_bytes(*hdr), bytes);
            }
        }
        while let Some(e) = stack.next_event() {
            let mut work = vec![e.handle];
            if let Some(port) = listeners.get(&e.handle) {
                work.clear();
                while let Ok((h, _)) = stack.accept(e.handle) {
                    let role = if *port == 7 { Role::Echo(Vec::new(), false) } else { Role::Source(0, 3_000_000) };
                    connections.insert(h, role);
                    work.push(h);
                }
            }
            for h in work {
                if let Some(role) = connections.get_mut(&h)
                    && !step(&mut stack, h, role)
                {
                    stack.close(h);
                    connections.remove(&h);
                }
            }
        }
        let mut sink = Lossy { tap: &mut tap, rng: &mut rng, drop };
        let full = stack.output(now(), &mut sink) == Output::Full;
        let wait = stack.deadline().map_or(20, |d| (d.saturating_sub(now()) / MS + 1).min(20) as i32);
        tap.wait(full, wait);
    }
    // Let the last acknowledgements out. A lost FIN takes a few retransmission timeouts; only an orphan that is never given up is an error.
    let end = now() + 90 * SECOND;
    let left = |stack: &Stack| {
        let (sockets, half, _) = stack.counts();
        (sockets - 2, half)
    };
    while now() < end && left(&stack) != (0, 0) {
        while let Ok(n) = tap.0.read(&mut frame) {
            if let Some((hdr, bytes)) = frame[..n].split_first_chunk::<12>() {
                stack.input(now(), NetHdr::from_bytes(*hdr), bytes);
            }
        }
        stack.output(now(), &mut tap);
        tap.wait(false, 5);
    }
    assert_eq!(left(&stack), (0, 0), "connections are left over");
}

fn step(stack: &mut Stack, h: Handle, role: &mut Role) -> bool {
    match role {
        Role::Source(position, total) => {
            *position = feed(stack, h, *position, *total);
            *position < *total
        }
        Role::Echo(waiting, end) => loop {
            if !waiting.is_empty() {
                match stack.send(h, &[waiting]) {
                    Ok(n) => drop(waiting.drain(..n)),
                    Err(Error::WouldBlock) => return true,
                    Err(_) => return false,
                }
                continue;
            }
            if *end {
                return false;
            }
            let mut b = [0; 20_000];
            match stack.recv(h, &mut [&mut b], RecvMode::Take) {
                Ok(0) => *end = true,
                Ok(n) => waiting.extend(&b[..n]),
                Err(Error::WouldBlock) => return true,
                Err(_) => return false,
            }
        },
    }
}

fn echo_client(mut s: TcpStream, total: usize) {
    s.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut writer = s.try_clone().unwrap();
    let w = std::thread::spawn(move || {
        for at in (0..total).step_by(50_000) {
            writer.write_all(&pattern(at as u64, 50_000.min(total - at))).unwrap();
        }
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    s.read_to_end(&mut got).unwrap();
    w.join().unwrap();
    assert!(got == pattern(0, total), "{} of {total}", got.len());
}

#[test]
#[ignore = "run by linux_is_a_peer in a namespace of its own"]
fn inside() {
    if std::env::var_os(IN_NAMESPACE).is_none() {
        return;
    }
    ip("link set lo up");
    ip("tuntap add dev tap0 mode tap vnet_hdr");
    ip("addr add 10.9.0.1/24 dev tap0");
    ip("-6 addr add fd09::1/64 dev tap0 nodad");
    ip("link set tap0 up");
    for (gso, drop) in [(false, 0), (true, 0), (false, 20), (true, 20)] {
        let begin = Instant::now();
        let listener = TcpListener::bind("10.9.0.1:9000").unwrap();
        let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = done.clone();
        let total = if drop > 0 { 400_000 } else { 3_000_000 };
        let clients = std::thread::spawn(move || {
            let dialled = std::thread::spawn(move || echo_client(listener.accept().unwrap().0, 200_000));
            for to in ["10.9.0.2", "fd09::2"] {
                let address = |port: u16| SocketAddr::new(to.parse().unwrap(), port);
                echo_client(TcpStream::connect(address(7)).unwrap(), total);
                let mut got = Vec::new();
                TcpStream::connect(address(19)).unwrap().read_to_end(&mut got).unwrap();
                assert!(got == pattern(0, 3_000_000));
                // Nobody listens.
                assert!(TcpStream::connect(address(99)).is_err());
                // Many short ones; a half-closed client still gets its answer.
                for i in 0..50 {
                    echo_client(TcpStream::connect(address(7)).unwrap(), i * 10);
                }
            }
            dialled.join().unwrap();
            flag.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        let limit = Instant::now() + Duration::from_secs(100);
        serve(gso, drop, Some("10.9.0.1:9000".parse().unwrap()), || {
            assert!(Instant::now() < limit, "not done in time");
            clients.is_finished() || done.load(std::sync::atomic::Ordering::SeqCst)
        });
        clients.join().unwrap();
        println!("gso {gso}, {drop} per mille lost each way: {:?}", begin.elapsed());
    }
}
