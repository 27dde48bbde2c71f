//! Many connections: at the same time, one after another, and before the guest is there.

use std::io::BufReader;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use donjon_tests::{Engine, GUEST_IP, Guest, Need, Netns, example, http, measure, missing, poll_until};

crate::under_engines! {
    a_thousand_at_once: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    a_hundred_thousand_in_turn: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    syn_while_booting: ProcessUser ProcessTap QemuMicrovm QemuQ35;
}

fn a_thousand_at_once(engine: Engine) {
    raise_file_limit();
    // hyper takes two buffers of 8 KiB for each connection.
    let mut guest = Guest::builder(&example("hello-axum"), engine).memory("64M").port(8080).start_http("/");
    let count = 1000;
    let mut connections: Vec<TcpStream> = Vec::new();
    for i in 0..count {
        connections.push(guest.connect().unwrap_or_else(|e| panic!("connection {i}: {e}\n{}", guest.log())));
    }
    for round in 0..3 {
        for (i, stream) in connections.iter_mut().enumerate() {
            http::send_get_keep_alive(stream, "/json").unwrap_or_else(|e| panic!("round {round}, {i}: {e}"));
        }
        for (i, stream) in connections.iter_mut().enumerate() {
            let response = http::read_response(&mut BufReader::new(&mut *stream));
            let response = response.unwrap_or_else(|e| panic!("round {round}, {i}: {e}\n{}", guest.log()));
            assert_eq!(response.status, 200);
        }
    }
    drop(connections);
    assert_eq!(guest.get("/json").unwrap().status, 200);
    guest.expect_alive();
}

#[test]
fn the_queue_of_a_tap_is_lengthened_unless_it_was_set() {
    if missing("the_queue_of_a_tap_is_lengthened_unless_it_was_set", &[Need::Tap]) {
        return;
    }
    for (given, then) in [(None, "4096"), (Some("700"), "700")] {
        let ns = Netns::with_tap();
        if let Some(length) = given {
            ns.ip(&["link", "set", Netns::TAP, "txqueuelen", length]);
        }
        let builder = Guest::builder(&example("hello-std"), Engine::ProcessTap).port(8080);
        let guest = builder.start_in(Some(ns.clone()));
        assert_eq!(guest.get("/").unwrap().status, 200);
        let output = ns.command("ip").args(["-o", "link", "show", Netns::TAP]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(&format!("qlen {then}")), "{given:?}: {text}");
    }
}

fn a_hundred_thousand_in_turn(engine: Engine) {
    // Under emulation fewer, to keep the run short; still five times what stops others.
    in_turn(engine, if engine.is_qemu() { 10_000 } else { 100_000 });
}

/// All of them under emulation too.
#[test]
#[ignore = "takes minutes: by hand (docs/performance.md)"]
fn a_hundred_thousand_in_turn_under_emulation() {
    let engine = Engine::QemuMicrovm;
    if !missing("a_hundred_thousand_in_turn_under_emulation", engine.needs()) {
        in_turn(engine, 100_000);
    }
}

/// What no connection may take. It is a stall, not a latency: a SYN that was lost is sent again after 1 s, and after 2 more.
const STALL: Duration = Duration::from_secs(10);

fn in_turn(engine: Engine, total: u64) {
    let mut guest = Guest::builder(&example("hello-axum"), engine).port(8080).start_http("/");
    // What the first ones cost is no leak: QEMU translates code when it runs for the first time.
    for _ in 0..200 {
        assert_eq!(guest.get("/json").unwrap().status, 200);
    }
    let memory_early = measure::tree_pss(guest.pid()).unwrap();
    let (done, longest) = (AtomicU64::new(0), Mutex::new(Duration::ZERO));
    let began = Instant::now();
    // Two clients, each with one connection at a time; each enters the guest's namespace once, not for every connection.
    let client = || {
        guest.run(|| {
            let mut own = Duration::ZERO;
            loop {
                let n = done.fetch_add(1, Ordering::Relaxed);
                if n >= total {
                    break;
                }
                let start = Instant::now();
                let answer = TcpStream::connect_timeout(&guest.addr(), STALL).and_then(|stream| {
                    stream.set_read_timeout(Some(STALL))?;
                    http::get(stream, "/json")
                });
                let took = start.elapsed();
                let response = answer.unwrap_or_else(|e| panic!("connection {n}, {took:?}: {e}\n{}", guest.log()));
                assert_eq!(response.status, 200);
                assert!(took < STALL, "connection {n} stalled for {took:?}\n{}", guest.log());
                own = own.max(took);
            }
            let mut longest = longest.lock().unwrap();
            *longest = own.max(*longest);
        });
    };
    std::thread::scope(|scope| {
        scope.spawn(client);
        scope.spawn(client);
    });
    let (took, longest) = (began.elapsed(), longest.into_inner().unwrap());
    guest.expect_alive();
    // What a connection cost has been given back: 100 bytes each would be 10 MB. Emulated, there are fewer of them, and QEMU's own memory for what it has translated
    // grows by a few MB meanwhile: 2 KB each would be 20 MB.
    let most = if engine.is_qemu() { 16 << 20 } else { 8 << 20 };
    let memory_late = measure::tree_pss(guest.pid()).unwrap();
    println!(
        "{engine}: {total} connections in {took:?}, the longest {longest:?}; {memory_early} bytes before, {memory_late} after"
    );
    assert!(memory_late < memory_early + most, "{memory_early} bytes before, {memory_late} after");
}

fn syn_while_booting(engine: Engine) {
    let builder = Guest::builder(&example("hello-axum"), engine).port(8080);
    let mut guest = if engine == Engine::ProcessTap {
        // The host knows the guest's Ethernet address, so that a SYN and not a question for that address is what waits for the guest.
        let (ns, mac) = (Netns::with_tap(), "02:00:00:00:77:02");
        ns.ip(&["neigh", "add", GUEST_IP, "lladdr", mac, "dev", Netns::TAP, "nud", "permanent"]);
        builder.tap(&format!("mac={mac}")).start_in(Some(ns))
    } else {
        builder.start()
    };
    // From the first moment on, with nobody there yet: refusals and hangs are fine. What must not happen is that the guest is
    // unreachable afterwards, or that a connection that was made does not work.
    let early = poll_until(donjon_tests::PATIENCE, || guest.connect().ok());
    let early = early.unwrap_or_else(|| panic!("no connection\n{}", guest.log()));
    let answer = http::get(early, "/json").map(|r| r.status);
    // A relay accepts for a guest that may refuse then.
    assert!(matches!(answer, Ok(200)) || engine != Engine::ProcessTap, "{answer:?}\n{}", guest.log());
    guest.wait_http("/json");
    for _ in 0..20 {
        assert_eq!(guest.get("/json").unwrap().status, 200);
    }
}

/// Each of a thousand connections is an open file here.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).expect("raise own limit");
}
