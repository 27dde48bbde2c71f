//! Every example, under every engine, with the client that a user would take.

use std::io::BufReader;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use donjon_tests::{Builder, Engine, Guest, compressed, example, http, pattern, repo_root};

crate::under_engines! {
    hello_std: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    hello_axum: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    hello_std_compressed: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    panicking_handler: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    echo_udp: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    keep_alive: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    load_with_wrk: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    idle_does_not_spin: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    little_real_memory: ProcessUser ProcessTap;
    stops_when_asked: ProcessUser ProcessTap QemuMicrovm QemuQ35;
}

fn axum(engine: Engine) -> Builder {
    Guest::builder(&example("hello-axum"), engine).port(8080)
}

fn hello_std(engine: Engine) {
    let guest = Guest::builder(&example("hello-std"), engine).port(8080).start_http("/");
    let page = String::from_utf8_lossy(&guest.curl(&[&guest.url("/")])).into_owned();
    assert!(page.contains("Hello"), "{page}");
}

fn hello_std_compressed(engine: Engine) {
    let (plain, image) = (example("hello-std"), compressed(&repo_root().join("examples/hello-std")));
    let bytes = |path: &Path| std::fs::metadata(path).unwrap().len();
    assert!(bytes(&image) * 3 < bytes(&plain) * 2, "{} of {} bytes", bytes(&image), bytes(&plain));
    let guest = Guest::builder(&image, engine).port(8080).start_http("/");
    let page = String::from_utf8_lossy(&guest.curl(&[&guest.url("/")])).into_owned();
    assert!(page.contains("Hello"), "{page}");
}

fn hello_axum(engine: Engine) {
    let mut guest = axum(engine).start_http("/");
    let curl = |path: &str| String::from_utf8_lossy(&guest.curl(&[&guest.url(path)])).into_owned();
    assert!(curl("/").contains("<html") || curl("/").contains("<!doctype"), "{}", curl("/"));
    let json = curl("/json");
    assert!(json.starts_with('{') && json.ends_with('}'), "{json}");
    let head = String::from_utf8_lossy(&guest.curl(&["--head", &guest.url("/json")])).to_ascii_lowercase();
    assert!(head.contains("content-type: application/json"), "{head}");

    let before = std::time::Instant::now();
    curl("/sleep?ms=150");
    assert!(before.elapsed().as_millis() >= 150, "the timer fired early: {:?}", before.elapsed());

    let bundled = donjon_tests::repo_root().join("examples/hello-axum");
    let served = curl("/file");
    assert!(!served.is_empty());
    let found = walk(&bundled).into_iter().any(|f| std::fs::read_to_string(f).is_ok_and(|text| text == served));
    assert!(found, "what /file serves is no file of the example: {served:?}");

    assert!(curl("/tmp").starts_with("written"), "{}", curl("/tmp"));
    assert_eq!(guest.get("/no-such-page").unwrap().status, 404);
    guest.expect_alive();
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "target" {
            out.extend(walk(&path));
        } else if path.is_file() {
            out.push(path);
        }
    }
    out
}

fn panicking_handler(engine: Engine) {
    let mut guest = axum(engine).start_http("/");
    for _ in 0..20 {
        assert_eq!(guest.get("/panic").unwrap().status, 500);
        assert_eq!(guest.get("/json").unwrap().status, 200);
    }
    guest.expect_alive();
    guest.wait_console("panicked at");
}

fn echo_udp(engine: Engine) {
    let guest = Guest::builder(&example("echo-udp"), engine).udp_port(7777).start();
    let socket = guest.udp().unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    let mut buffer = [0; 2048];
    // A datagram may be lost, above all while the guest boots: ask until answered.
    let echoed = |text: &[u8], buffer: &mut [u8]| {
        donjon_tests::poll_until(donjon_tests::PATIENCE, || {
            // Errors (refused while it boots) are as good as no answer.
            let _ = socket.send(text);
            socket.recv(buffer).ok().filter(|n| buffer[..*n] == *text)
        })
    };
    assert!(echoed(b"hello", &mut buffer).is_some(), "no echo\n{}", guest.log());
    for len in [0usize, 1, 512, 1400] {
        let text = pattern::bytes(len);
        assert!(echoed(&text, &mut buffer).is_some(), "no echo of {len} bytes\n{}", guest.log());
    }
}

fn keep_alive(engine: Engine) {
    let guest = axum(engine).start_http("/");
    let mut stream = guest.connect().unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for _ in 0..100 {
        http::send_get_keep_alive(&mut stream, "/json").unwrap();
        assert_eq!(http::read_response(&mut reader).unwrap().status, 200);
    }
    // Pipelined: three requests before the first answer is read.
    for _ in 0..3 {
        http::send_get_keep_alive(&mut stream, "/json").unwrap();
    }
    for _ in 0..3 {
        assert_eq!(http::read_response(&mut reader).unwrap().status, 200);
    }
}

fn load_with_wrk(engine: Engine) {
    if donjon_tests::missing(&format!("load_with_wrk {engine}"), &[donjon_tests::Need::Program("wrk")]) {
        return;
    }
    let mut guest = axum(engine).start_http("/");
    wrk(&guest, "/json");
    crowd(&guest, "/json");
    guest.expect_alive();
    let mut guest = Guest::builder(&example("hello-std"), engine).port(8080).start_http("/");
    wrk(&guest, "/");
    guest.expect_alive();
}

/// `wrk` with 1,000 connections: each is answered, and none is refused, reset or late by ten seconds.
fn crowd(guest: &Guest, path: &str) {
    let text = load(guest, path, &["-c1000", "-d4s", "--timeout", "10s"]);
    let requests = text.lines().find_map(|l| l.trim().split_once(" requests in ")?.0.parse::<u64>().ok());
    // Each connection makes its next request only after the answer to the one before.
    assert!(requests.is_some_and(|n| n >= 1000), "{text}\n{}", guest.log());
}

/// What `wrk` prints, without errors.
fn load(guest: &Guest, path: &str, options: &[&str]) -> String {
    let output = guest.command("wrk").arg("-t1").args(options).arg(guest.url(path)).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("Requests/sec"), "{text}");
    // wrk prints these lines only if there were any.
    assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}\n{}", guest.log());
    text
}

/// Two seconds of `wrk` with 16 connections: no errors, and no answer that took a second or more.
fn wrk(guest: &Guest, path: &str) {
    let text = load(guest, path, &["-c16", "-d2s"]);
    let longest = longest_latency(&text).unwrap_or_else(|| panic!("no latency in {text}"));
    assert!(longest < Duration::from_secs(1), "an answer took {longest:?}\n{text}\n{}", guest.log());
}

/// The column `Max` of the line that begins with `Latency`: `30.25ms`, for example.
fn longest_latency(text: &str) -> Option<Duration> {
    let line = text.lines().find_map(|l| l.trim_start().strip_prefix("Latency "))?;
    let word = line.split_whitespace().nth(2)?;
    let (number, unit) = word.split_at(word.find(|c: char| c.is_ascii_alphabetic())?);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
}

#[test]
fn the_longest_latency_is_read() {
    for (max, expected) in [("950.00us", Some(950)), ("30.25ms", Some(30_250)), ("1.60s", Some(1_600_000)), ("x", None)]
    {
        let text = format!(
            "  Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency     1.20ms    3.40ms  {max}   90.00%\n"
        );
        assert_eq!(longest_latency(&text), expected.map(Duration::from_micros), "{max}");
    }
}

fn little_real_memory(engine: Engine) {
    let most = 16 << 20;
    let mut guest = axum(engine).start_http("/");
    let check = |when: &str| {
        let memory = donjon_tests::measure::tree(guest.pid()).unwrap();
        let sum: u64 = memory.iter().map(|m| m.pss).sum();
        println!("{engine}, {when}: {sum} bytes");
        assert!(sum < most, "{when}: {sum} bytes, {memory:?}");
    };
    check("after an answer");
    if !donjon_tests::missing(&format!("memory after wrk {engine}"), &[donjon_tests::Need::Program("wrk")]) {
        wrk(&guest, "/json");
        check("after a load");
    }
    guest.expect_alive();
}

fn idle_does_not_spin(engine: Engine) {
    let guest = Guest::builder(&example("hello-std"), engine).port(8080).start_http("/");
    let used = || donjon_tests::measure::tree_processor_time(guest.pid()).unwrap();
    let before = used();
    // This is what is measured, not a wait for something. Processor time does not grow when the machine is busy with other things.
    let idle = Duration::from_secs(3);
    std::thread::sleep(idle);
    let spent = used() - before;
    println!("{engine}: {spent:?} of processor time in {idle:?}");
    assert!(spent < idle / 10, "{spent:?} in {idle:?}\n{}", guest.log());
}

fn stops_when_asked(engine: Engine) {
    // What this process ignores, as in the background of a script, the command that it starts ignores, too.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("SigIgn:")?.trim(), 16).ok()).unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        if ignored >> (signal.as_raw() - 1) & 1 == 1 {
            donjon_tests::skip(&format!("stops_when_asked::{engine}"), &format!("{signal:?} is ignored here"));
            continue;
        }
        let mut guest = axum(engine).start_http("/");
        let addr = guest.addr();
        guest.signal(signal);
        // The guest has no handler, and what it gets is SIGTERM either way.
        guest.wait().expect_code(143);
        if engine != Engine::ProcessTap {
            // Nothing is left that holds the port.
            std::net::TcpListener::bind(addr).unwrap();
        }
    }
}

/// The same source as a Linux program, with plain `cargo run`, one request each.
#[test]
fn examples_are_ordinary_programs() {
    let free_port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (name, seen) in [("hello-std", "Hello"), ("hello-axum", "<!doctype html>")] {
        let port = free_port();
        let _server = Native::start(name, port);
        let page = donjon_tests::poll_until(NATIVE_PATIENCE, || {
            let output = Command::new("curl").args(["-s", &format!("http://127.0.0.1:{port}/")]).output().unwrap();
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        });
        assert!(page.as_ref().is_some_and(|p| p.contains(seen)), "{name}: {page:?}");
        if name == "hello-axum" {
            let url = format!("http://127.0.0.1:{port}/");
            let output = donjon_tests::cargo_run("outbound").args(["--", &url]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && text.contains(seen), "outbound: {output:?}");
        }
    }
    let port = free_port();
    let _server = Native::start("echo-udp", port);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut buffer = [0; 16];
    let echoed = donjon_tests::poll_until(NATIVE_PATIENCE, || {
        let _ = socket.send(b"hello");
        socket.recv(&mut buffer).ok()
    });
    assert_eq!(echoed, Some(5), "echo-udp");
    assert_eq!(&buffer[..5], b"hello");
    let output = donjon_tests::cargo_run("outbound").args(["--", "dns", "localhost"]).output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(b"127.0.0.1"), "outbound dns: {output:?}");
}

/// It may have to be compiled first.
const NATIVE_PATIENCE: Duration = Duration::from_secs(900);

/// `cargo run`, which the program takes the place of.
struct Native(std::process::Child);

impl Native {
    fn start(name: &str, port: u16) -> Native {
        Native(donjon_tests::cargo_run(name).env("PORT", port.to_string()).spawn().unwrap())
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // It is our child until it is waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn images_are_small() {
    let size = |name| std::fs::metadata(example(name)).unwrap().len();
    assert!(size("hello-std") < 500_000, "hello-std: {} bytes", size("hello-std"));
    assert!(size("hello-axum") < 1_000_000, "hello-axum: {} bytes", size("hello-axum"));
}
