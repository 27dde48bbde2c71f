//! Connections that the guest makes, and names that it looks up.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;

use donjon_tests::qemu::Machine;
use donjon_tests::{Builder, Engine, Guest, HOST_IP, Need, Netns, example, missing};

crate::under_engines! {
    http_client: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    refused_connection_is_an_error: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    dns_lookup: ProcessUser ProcessTap QemuMicrovm QemuQ35;
}

/// The host as the guest sees it, in a namespace of its own if the engine has a TAP.
struct Host {
    ns: Option<Netns>,
    address: &'static str,
}

impl Host {
    fn new(engine: Engine) -> Host {
        match engine {
            Engine::ProcessTap => Host { ns: Some(Netns::with_tap()), address: HOST_IP },
            // User-mode networking: the gateway's address is the host's loopback, as in QEMU's.
            _ => Host { ns: None, address: "10.0.2.2" },
        }
    }

    /// Runs `f` with the address to bind to, where the guest can reach it.
    fn run<T: Send>(&self, f: impl FnOnce(&str) -> T + Send) -> T {
        match &self.ns {
            Some(ns) => ns.run(|| f(HOST_IP)),
            None => f("127.0.0.1"),
        }
    }

    fn start(&self, builder: Builder) -> Guest {
        builder.options(["--egress-any"]).start_in(self.ns.clone())
    }
}

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

fn http_client(engine: Engine) {
    let host = Host::new(engine);
    let listener = host.run(|ip| TcpListener::bind((ip, 0)).unwrap());
    let url = format!("http://{}:{}/path", host.address, listener.local_addr().unwrap().port());
    let guest = host.start(Guest::builder(&example("outbound"), engine).args([url]));
    serve_once(&listener);
    guest.wait().expect_code(0).expect_text("from a host");
}

fn refused_connection_is_an_error(engine: Engine) {
    let host = Host::new(engine);
    let url = format!("http://{}:1/", host.address);
    let guest = host.start(Guest::builder(&example("outbound"), engine).args([url]));
    guest.wait().expect_code(1).expect_text("refused");
}

fn dns_lookup(engine: Engine) {
    let test = format!("dns_lookup {engine}");
    if engine == Engine::ProcessTap {
        let host = Host::new(engine);
        let server = Resolver::start(host.run(|ip| UdpSocket::bind((ip, 53)).unwrap()));
        let guest = host.start(Guest::builder(&example("outbound"), engine).dns(HOST_IP).args(["dns", "named.test"]));
        guest.wait().expect_code(0).expect_text("10.9.8.7");
        server.expect_asked();
        return;
    }
    // The resolver of user-mode networking is the host's. In namespaces of its own (mount and network), the host's is ours.
    if missing(&test, &[Need::Tap, Need::Program("unshare")]) {
        return;
    }
    let ns = Netns::empty();
    let server = Resolver::start(ns.run(|| UdpSocket::bind("127.0.0.1:53").unwrap()));
    let conf = scratch("resolv.conf");
    std::fs::write(&conf, "nameserver 127.0.0.1\n").unwrap();
    let bind = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", conf.display());
    let guest = Guest::builder(&example("outbound"), engine)
        .options(["--egress-any"])
        .wrapper(["unshare", "--mount", "sh", "-c", &bind, "sh"])
        .args(["dns", "named.test"])
        .start_in(Some(ns));
    guest.wait().expect_code(0).expect_text("10.9.8.7");
    server.expect_asked();
}

/// A machine without `donjon run`, with QEMU's own user network, as anybody starts it.
#[test]
fn http_client_on_plain_qemu() {
    if missing("http_client_on_plain_qemu", &[Need::Qemu]) {
        return;
    }
    for machine in ["microvm", "q35"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let append = format!("-- http://10.0.2.2:{}/", listener.local_addr().unwrap().port());
        let image = example("outbound");
        let machine =
            Machine { image: &image, machine, memory: 32, rx_queue: None, append: &append, cpu: "max", more: &[] };
        let serving = std::thread::spawn(move || serve_once(&listener));
        let ended = machine.run(donjon_tests::PATIENCE).expect("it ends");
        assert!(ended.status == Some(0) && ended.text.contains("from a host"), "{ended:?}");
        serving.join().unwrap();
    }
}

fn scratch(name: &str) -> PathBuf {
    let dir = donjon_tests::target_dir().join("scratch");
    std::fs::create_dir_all(&dir).unwrap();
    dir.join(format!("{}-{name}", std::process::id()))
}

/// A DNS server with one name.
struct Resolver {
    thread: std::thread::JoinHandle<()>,
}

impl Resolver {
    /// Answers two questions: an A question for any name with 10.9.8.7, every other question with nothing.
    fn start(socket: UdpSocket) -> Resolver {
        socket.set_read_timeout(Some(donjon_tests::PATIENCE)).unwrap();
        let thread = std::thread::spawn(move || {
            for _ in 0..2 {
                let mut query = [0; 512];
                let (n, client): (usize, SocketAddr) = socket.recv_from(&mut query).expect("a question");
                let question = &query[12..n];
                let end = question.iter().position(|b| *b == 0).expect("the name's end") + 5;
                let is_a = question[end - 4..end - 2] == [0, 1];
                let mut answer = query[..2].to_vec();
                // RFC 1035 §4.1.1: response, recursion desired and available; one question.
                answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
                answer.extend(&question[..end]);
                if is_a {
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 9, 8, 7]);
                }
                socket.send_to(&answer, client).unwrap();
            }
        });
        Resolver { thread }
    }

    /// Fails unless both questions (A, AAAA) came.
    fn expect_asked(self) {
        self.thread.join().expect("two questions");
    }
}
