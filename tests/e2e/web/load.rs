//! Many requests, many connections, slow clients; memory and size.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use donjon_tests::{Engine, Guest, Need, Netns, PATIENCE, http, measure, missing, poll_until};

use super::Site;

crate::under_engines! {
    h2load_plain: ProcessUser ProcessTap QemuMicrovm;
    h2load_tls: ProcessUser QemuMicrovm;
    memory: ProcessUser ProcessTap;
    memory_over_tls: ProcessUser ProcessTap;
    memory_when_nobody_reads: ProcessUser ProcessTap;
    a_large_file_arrives_whole_over_a_bad_link: ProcessTap;
    a_crowd_with_pipelines: ProcessUser ProcessTap;
    slow_heads_time_out: ProcessUser QemuMicrovm;
    what_is_under_way_is_finished: ProcessUser ProcessTap QemuMicrovm;
    slow_clients_keep_nobody_out: ProcessUser QemuMicrovm;
    more_connections_than_places_wait: ProcessUser QemuMicrovm;
    idle_connections_are_closed: ProcessUser QemuMicrovm;
}

/// All memory of a server under the process engine, the monitor's included, idle and with 1,000 open connections: bytes.
const MEMORY_MAX: u64 = 12_000_000;
/// Bytes of the monitor's program, at most, that are counted twice where they cannot be told apart.
const SHARED: u64 = 2_000_000;
/// The same at any moment: what the project promises.
const PROMISE: u64 = 25_000_000;
/// Bytes of the image of a site of one page, with everything.
const MOST: u64 = 1_000_000;
/// Without TLS.
const PLAIN_MAX: u64 = 700_000;
/// With neither TLS nor proxy and passwords, and not compressed, as it is only for who asks for it (`compress = false`).
const OPEN_MAX: u64 = 1_100_000;

/// Runs `h2load` and checks that every request was answered with 2xx.
#[track_caller]
fn h2load(guest: &Guest, requests: u32, args: &[&str], url: &str) {
    if missing("h2load", &[Need::Program("h2load")]) {
        return;
    }
    let output =
        guest.command("timeout").args(["120", "h2load", "-n", &requests.to_string()]).args(args).arg(url).output();
    let output = output.expect("run h2load");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let all = format!("{requests} done, {requests} succeeded, 0 failed, 0 errored, 0 timeout");
    assert!(text.contains(&all), "{args:?}: {text}\n{}", guest.log());
    assert!(text.contains(&format!("{requests} 2xx, 0 3xx, 0 4xx, 0 5xx")), "{text}");
}

fn h2load_plain(engine: Engine) {
    let mut guest = Site::Plain.start(engine);
    let n = if engine.is_qemu() { 500 } else { 20_000 };
    for args in
        [&["-c", "1", "-m", "1"][..], &["-c", "10", "-m", "32"], &["-c", "50", "-m", "10"], &["--h1", "-c", "20"]]
    {
        h2load(&guest, n, args, &guest.url("/"));
    }
    // Windows fill up and are opened again.
    h2load(&guest, n / 50, &["-c", "4", "-m", "8", "-w", "16", "-W", "17"], &guest.url("/data.bin"));
    guest.expect_alive();
}

fn h2load_tls(engine: Engine) {
    let mut guest = Site::Secure.start(engine);
    let url = format!("https://{}/", guest.addr_of(1));
    let n = if engine.is_qemu() { 200 } else { 5000 };
    for args in [&["-c", "10", "-m", "10"][..], &["-c", "10", "--npn-list", "http/1.1"]] {
        h2load(&guest, n, args, &url);
    }
    h2load(&guest, n / 50, &["-c", "2", "-m", "4"], &format!("{url}data.bin"));
    guest.expect_alive();
}

fn memory(engine: Engine) {
    let (options, connect) = (vec![], |guest: &Guest| guest.connect().unwrap());
    memory_of(engine, "memory", &options, &[80], connect);
}

/// The same with a handshake for each connection.
fn memory_over_tls(engine: Engine) {
    // Not by `openssl`, which makes each an authority: rustls takes none for a server.
    let made = rcgen::generate_simple_self_signed(["one.test".to_owned()]).unwrap();
    let file = |end: &str, text: String| {
        let path = super::scratch().join(format!("memory-tls-{engine:?}.{end}"));
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (cert, key) = (file("pem", made.cert.pem()), file("key", made.signing_key.serialize_pem()));
    let options = ["--embed-key".into(), "--tls".into(), cert, key];
    let client = tls_client(made.cert.der());
    memory_of(engine, "memory-tls", &options, &[80, 443], |guest: &Guest| {
        let address = guest.addr_of(1);
        let stream = guest.run(|| TcpStream::connect(address)).unwrap();
        let name = "one.test".try_into().unwrap();
        rustls::StreamOwned::new(rustls::ClientConnection::new(client.clone(), name).unwrap(), stream)
    });
}

/// Idle, and with 1,000 connections that have just been used.
fn memory_of<S: Read + Write>(
    engine: Engine,
    name: &str,
    options: &[String],
    ports: &[u16],
    connect: impl Fn(&Guest) -> S,
) {
    crate::load::raise_file_limit();
    // Not `Site::Plain`: a connection must be able to wait for its turn.
    let image = super::pack(
        &format!("{name}-{engine:?}"),
        &[&[super::content().display().to_string(), "--header-seconds=120".into()], options].concat(),
    );
    let builder = ports.iter().fold(Guest::builder(&image, engine), |builder, port| builder.port(*port));
    let guest = builder.start_http("/healthz");
    let total = || measure::tree_pss(guest.pid()).unwrap();
    // For an ordinary user what the processes share counts for each of them.
    let exact = measure::tree(guest.pid()).unwrap().iter().all(|m| m.exact);
    let most = if exact { MEMORY_MAX } else { MEMORY_MAX + SHARED };
    let idle = total();
    assert!(idle < MEMORY_MAX, "idle: {:?}", measure::tree(guest.pid()));
    let ask = |stream: &mut S| {
        http::send_get_keep_alive(stream, "/").unwrap();
        assert_eq!(http::read_response(&mut BufReader::new(stream)).unwrap().status, 200);
    };
    let mut connections: Vec<S> = (0..1000).map(|_| connect(&guest)).collect();
    connections.iter_mut().for_each(ask);
    let busy = total();
    // Among so many, a connection keeps nothing between requests. What it has freed goes back to the host a little later.
    let open = poll_until(PATIENCE, || Some(total()).filter(|bytes| *bytes < most));
    let all = measure::tree(guest.pid());
    println!("{engine}, {name}: {idle} bytes idle, {busy} with 1,000 connections just used, {open:?} a little later");
    assert!(open.is_some() && busy < most, "{busy} just used; later {all:?}");
    // They are all still there.
    connections.iter_mut().for_each(ask);
}

/// A client that trusts this certificate.
fn tls_client(cert: &rustls::pki_types::CertificateDer<'static>) -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.clone()).unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

/// What is lost is sent again from the image, to which the send queues only refer.
fn a_large_file_arrives_whole_over_a_bad_link(engine: Engine) {
    if missing("a_large_file_arrives_whole_over_a_bad_link", &[Need::Program("tc")]) {
        return;
    }
    let dir = super::scratch().join("large");
    std::fs::create_dir_all(&dir).unwrap();
    let large: Vec<u8> = super::data().repeat(8);
    std::fs::write(dir.join("large.bin"), &large).unwrap();
    let image = super::pack("large", &[dir.display().to_string()]);
    let (bridge, client) = Netns::with_narrow_tap();
    let mut guest = Guest::builder(&image, engine).port(80).start_in(Some(bridge.clone()));
    guest.wait_http("/healthz");
    let (address, large) = (guest.addr(), &large[..]);
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let client = &client;
            scope.spawn(move || {
                let mut stream = client.run(|| TcpStream::connect(address)).unwrap();
                http::send_get(&mut stream, "/large.bin").unwrap();
                // Each takes it in other pieces.
                let mut piece = vec![0; [100_003, 1777, 64, 1 << 20][reader]];
                let mut all = Vec::new();
                while let n @ 1.. = stream.read(&mut piece).unwrap() {
                    all.extend_from_slice(&piece[..n]);
                }
                let answer = http::read_response(&mut &all[..]).unwrap();
                assert_eq!(answer.status, 200);
                assert!(answer.body == large, "{} bytes of {}", answer.body.len(), large.len());
            });
        }
    });
    let lost = bridge.lost();
    println!("{lost} packets lost");
    assert!(lost > 0, "the link was wide enough");
    guest.expect_alive();
}

/// With so many connections, none keeps its buffers between requests; what has begun, and what came with the request before, is not forgotten.
fn a_crowd_with_pipelines(engine: Engine) {
    crate::load::raise_file_limit();
    // Not `Site::Plain`: a connection must be able to wait for its turn.
    let options = [super::content().display().to_string(), "--stall-seconds=120".into()];
    let image = super::pack(&format!("crowd-{engine:?}"), &options);
    let (guest, data) = (Guest::builder(&image, engine).port(80).start_http("/healthz"), super::data());
    let mut crowd: Vec<TcpStream> = (0..300).map(|_| guest.connect().unwrap()).collect();
    for _ in 0..2 {
        for stream in &mut crowd {
            // The first answer fills all buffers on the way before anybody reads, so the second request waits.
            http::send_get_keep_alive(stream, "/data.bin").unwrap();
            http::send_get_keep_alive(stream, "/text.txt").unwrap();
        }
        for stream in &mut crowd {
            let mut reader = BufReader::new(stream);
            assert!(http::read_response(&mut reader).unwrap().body == data);
            assert!(http::read_response(&mut reader).unwrap().body == super::text().as_bytes());
            assert!(reader.buffer().is_empty());
        }
    }
}

/// Whoever asks the server to stop ends no answer that is under way, and waits for no connection without one.
fn what_is_under_way_is_finished(engine: Engine) {
    let image = super::pack(&format!("drain-{engine:?}"), &[super::content().display().to_string()]);
    let (mut guest, data) = (Guest::builder(&image, engine).port(80).start_http("/healthz"), super::data());
    let mut idle = guest.connect().unwrap();
    http::send_get_keep_alive(&mut idle, "/text.txt").unwrap();
    let mut idle = BufReader::new(idle);
    assert!(http::read_response(&mut idle).unwrap().body == super::text().as_bytes());
    // Much of the answer is still with the server.
    let mut busy = guest.connect().unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&busy, 8192).unwrap();
    http::send_get_keep_alive(&mut busy, "/data.bin").unwrap();
    assert_eq!(busy.peek(&mut [0]).unwrap(), 1);
    guest.signal(rustix::process::Signal::TERM);
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "an idle connection is closed");
    std::thread::sleep(Duration::from_millis(500));
    guest.expect_alive();
    let answer = http::read_response(&mut BufReader::new(&mut busy)).unwrap();
    assert!(answer.status == 200 && answer.body == data, "{}, {} bytes", answer.status, answer.body.len());
    drop(busy);
    guest.wait().expect_code(0);
}

/// 1,000 clients have asked for a file that none of them takes: what waits for them is in the image, not in memory.
fn memory_when_nobody_reads(engine: Engine) {
    crate::load::raise_file_limit();
    let options = [super::content().display().to_string(), "--stall-seconds=120".into()];
    let image = super::pack(&format!("unread-{engine:?}"), &options);
    let guest = Guest::builder(&image, engine).port(80).start_http("/healthz");
    let crowd: Vec<TcpStream> = (0..1000)
        .map(|_| {
            let mut stream = guest.connect().unwrap();
            // The kernel shall not take it all instead.
            rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 8192).unwrap();
            http::send_get_keep_alive(&mut stream, "/data.bin").unwrap();
            stream
        })
        .collect();
    for stream in &crowd {
        assert_eq!(stream.peek(&mut [0]).unwrap(), 1);
    }
    for when in ["under way", "under way for a while"] {
        let total = measure::tree_pss(guest.pid()).unwrap();
        println!("{engine}: {total} bytes with 1,000 answers of 1 MiB {when}");
        assert!(total < PROMISE, "{when}: {:?}", measure::tree(guest.pid()));
        std::thread::sleep(Duration::from_secs(3));
    }
}

#[test]
fn size() {
    // Only a page: what the server itself takes.
    let dir = super::scratch().join("one-page");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("index.html"), "<!doctype html><title>Hello</title><p>Hello from a page\n").unwrap();
    let size = |name: &str, more: &[String]| {
        let image = super::pack(name, &[&[dir.display().to_string()], more].concat());
        std::fs::metadata(image).unwrap().len()
    };
    let plain = size("size-plain", &[]);
    println!("a page over HTTP/1.1 and HTTP/2: {plain} bytes");
    assert!(plain < PLAIN_MAX, "{plain} bytes");
    let open = size("size-open", &["--compress=false".into()]);
    println!("not compressed: {open} bytes");
    assert!(plain < open && open < OPEN_MAX, "{open} bytes");
    for engine in [Engine::ProcessUser, Engine::QemuMicrovm].into_iter().filter(|e| !missing("size", e.needs())) {
        let guest = Guest::builder(&super::scratch().join("size-open.img"), engine).port(80).start_http("/");
        assert!(String::from_utf8_lossy(&guest.curl(&[&guest.url("/")])).contains("Hello from a page"));
    }
    let c = super::certificate("one.test");
    let tls_too = ["--tls".into(), c.cert.display().to_string(), c.key.display().to_string()];
    let tls = size("size-tls", &tls_too);
    println!("the same with TLS: {tls} bytes");
    std::fs::write(dir.join("../password"), "correct horse\n").unwrap();
    let password = format!("/private/*=alice:{}", dir.join("../password").display());
    let others = ["--auth".into(), password, "--proxy".into(), "/api=10.0.2.2:8080".into()];
    let more = size("size-more", &others);
    println!("all but TLS: {more} bytes");
    assert!(more < PLAIN_MAX, "{more} bytes");
    let most = size("size-most", &[&others[..], &tls_too].concat());
    println!("all: {most} bytes");
    assert!(most < MOST, "{most} bytes");
    assert!(plain < tls, "TLS is in it only when it is asked for");
}

/// `--header-seconds 5` is what [`Site::Plain`] says.
fn slow_heads_time_out(engine: Engine) {
    let guest = Site::Plain.start(engine);
    let started = Instant::now();
    let mut stream = guest.connect().unwrap();
    let mut other = stream.try_clone().unwrap();
    // A byte now and then does not put the deadline off.
    let dripping = std::thread::spawn(move || {
        other.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nX: ").unwrap();
        while other.write_all(b"x").is_ok() && started.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let mut answer = Vec::new();
    // A reset after the answer is a close as well.
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(started.elapsed() < PATIENCE && text.starts_with("HTTP/1.1 408 "), "{text:?}");
    drop(stream);
    dripping.join().unwrap();
}

/// As many connections as there may be, none of which asks for anything: whoever comes then is served all the same, if not at once.
fn slow_clients_keep_nobody_out(engine: Engine) {
    let dir = super::scratch().join(format!("few-places-{engine:?}"));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("index.html"), "<p>there is a place\n").unwrap();
    let options = [dir.display().to_string(), "--connections=50".into(), "--header-seconds=3".into()];
    let image = super::pack(&format!("few-places-{engine:?}"), &options);
    let mut guest = Guest::builder(&image, engine).port(80).start_http("/");
    let mut silent: Vec<TcpStream> = (0..120).map(|_| guest.connect().unwrap()).collect();
    for stream in &mut silent {
        // Those beyond the limit wait in the backlog, where this goes nowhere.
        let _ = stream.write_all(b"GET / HTT");
    }
    assert_eq!(guest.get("/").unwrap().status, 200);
    guest.expect_alive();
}

/// Whoever comes when all places are taken is served as soon as one is free, and not before.
fn more_connections_than_places_wait(engine: Engine) {
    let mut options = vec![super::content().display().to_string(), "--metrics=9100".into()];
    options.extend(["--connections=2", "--header-seconds=120", "--stall-seconds=120"].map(String::from));
    let image = super::pack(&format!("two-places-{engine:?}"), &options);
    let mut guest = Guest::builder(&image, engine).port(80).port(9100).start_http("/healthz");
    let (data, metrics) = (super::data(), guest.addr_of(1));
    let mut held: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = guest.connect().unwrap();
            http::send_get(&mut stream, "/data.bin").unwrap();
            let mut begun = vec![0; 1000];
            stream.read_exact(&mut begun).unwrap();
            BufReader::new(std::io::Cursor::new(begun).chain(stream))
        })
        .collect();
    // Those who ask for numbers have places of their own, and are counted.
    let accepted = || -> u64 {
        let text = http::get(TcpStream::connect(metrics).unwrap(), "/metrics").unwrap().text();
        let found = text.lines().find_map(|l| l.strip_prefix("donjon_web_connections_accepted_total ")?.parse().ok());
        found.unwrap_or_else(|| panic!("{text}"))
    };
    let before = accepted();
    let mut waiting = guest.connect().unwrap();
    http::send_get(&mut waiting, "/text.txt").unwrap();
    // Later than it, and served meanwhile.
    for n in 1..=10 {
        assert_eq!(accepted(), before + n);
    }
    waiting.set_nonblocking(true).unwrap();
    let early = waiting.read(&mut [0]);
    assert!(early.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock), "{early:?}");
    waiting.set_nonblocking(false).unwrap();
    drop(held.pop());
    assert!(http::read_response(&mut BufReader::new(waiting)).unwrap().body == super::text().as_bytes());
    // The other one has lost nothing.
    assert!(http::read_response(&mut held[0]).unwrap().body == data);
    guest.expect_alive();
}

/// A connection that has been of use, and then is not for longer than it may: closed, without a word.
fn idle_connections_are_closed(engine: Engine) {
    let options = [super::content().display().to_string(), "--idle-seconds=1".into()];
    let image = super::pack(&format!("idle-{engine:?}"), &options);
    let mut guest = Guest::builder(&image, engine).port(80).start_http("/healthz");
    let mut stream = BufReader::new(guest.connect().unwrap());
    for _ in 0..2 {
        http::send_get_keep_alive(stream.get_mut(), "/text.txt").unwrap();
        assert!(http::read_response(&mut stream).unwrap().body == super::text().as_bytes());
    }
    // The client only waits, and for less than the limit that holds without the option.
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed");
    guest.expect_alive();
}
