//! The two servers and the files that they serve.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;

use donjon_tests::{Certificate, Engine, GUEST_IP, Guest, Netns, measure, target_dir};

/// Ports of nginx: it tells HTTP/1 from HTTP/2 in the clear by the port.
const NGINX_PLAIN: u16 = 80;
const NGINX_H2: u16 = 81;
const NGINX_TLS: u16 = 443;
/// More than any measurement has.
const CONNECTIONS: u32 = 15_000;
/// Memory of the guests: the image's default is for a small site, and these serve 10,000 clients at once.
pub const MEMORY: &str = "256M";

/// Both.
pub struct Servers {
    pub nginx: Server,
    pub donjon: Server,
}

/// One of them; its parts in the clear and under TLS may be two programs.
pub struct Server {
    pub plain: Guest,
    tls: Option<Guest>,
    h2_port: u16,
}

impl Servers {
    /// Starts both, with files of these sizes in KB.
    pub fn start(sizes: &[u32]) -> Servers {
        let dir = target_dir().join("bench-web");
        let files = site(&dir, sizes);
        let certificate = Certificate::make(&dir, "bench.test");
        Servers { nginx: nginx(&dir, &files, &certificate), donjon: donjon(&dir, &files, &certificate) }
    }
}

/// What is served: files of these sizes in KB, in a fresh directory.
pub fn site(dir: &Path, sizes: &[u32]) -> PathBuf {
    // Of a run before; there may be nothing.
    let _ = fs::remove_dir_all(dir);
    let files = dir.join("files");
    fs::create_dir_all(&files).unwrap_or_else(|e| panic!("{}: {e}", files.display()));
    for size in sizes {
        let path = files.join(format!("{size}.bin"));
        fs::write(&path, noise(*size as usize * 1000)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    fs::write(files.join("healthz"), "ok\n").expect("written to a moment ago");
    files
}

impl Server {
    /// URL of a file in the clear.
    pub fn plain(&self, size: u32) -> String {
        self.plain.url(&format!("/{size}.bin"))
    }

    /// The same for clients that speak HTTP/2 from the first byte on.
    pub fn h2(&self, size: u32) -> String {
        format!("http://{}:{}/{size}.bin", self.plain.addr().ip(), self.h2_port)
    }

    /// The same under TLS.
    pub fn tls(&self, size: u32) -> String {
        format!("https://{}/{size}.bin", self.tls_address())
    }

    /// Where it speaks TLS.
    pub fn tls_address(&self) -> String {
        format!("{}:{NGINX_TLS}", self.tls_guest().addr().ip())
    }

    /// The program that speaks TLS; clients for it start from its namespace.
    pub fn tls_guest(&self) -> &Guest {
        self.tls.as_ref().unwrap_or(&self.plain)
    }

    /// The program that a URL leads to.
    pub fn guest(&self, url: &str) -> &Guest {
        if url.starts_with("https:") { self.tls_guest() } else { &self.plain }
    }

    /// Proportional set size of all that belongs to the part in the clear, bytes.
    pub fn memory(&self) -> u64 {
        measure::tree_pss(self.plain.pid()).unwrap_or(0)
    }
}

fn nginx(dir: &Path, files: &Path, certificate: &Certificate) -> Server {
    let (client, server) = Netns::veth_pair();
    forget_closed(&client);
    backlog(&server);
    let config = dir.join("nginx.conf");
    let text = format!(
        "daemon off; user root; worker_processes 1; worker_rlimit_nofile 20000; pid {dir}/nginx.pid; error_log {dir}/nginx.log crit;
events {{ worker_connections {CONNECTIONS}; }}
http {{
  types {{ }} default_type application/octet-stream;
  access_log off; sendfile on; tcp_nopush off; tcp_nodelay on;
  open_file_cache max=1000 inactive=1h; open_file_cache_valid 1h;
  keepalive_timeout 1h; keepalive_requests 1000000000;
  client_body_temp_path {dir}/1; proxy_temp_path {dir}/2; fastcgi_temp_path {dir}/3; uwsgi_temp_path {dir}/4; scgi_temp_path {dir}/5;
  server {{ listen {NGINX_PLAIN} backlog=16384; root {files}; }}
  server {{ listen {NGINX_H2} http2 backlog=16384; root {files}; }}
  server {{ listen {NGINX_TLS} ssl http2 backlog=16384; root {files}; ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {cert}; ssl_certificate_key {key}; }}
}}
",
        dir = dir.display(),
        files = files.display(),
        cert = certificate.cert.display(),
        key = certificate.key.display(),
    );
    fs::write(&config, text).expect("the directory was made a moment ago");
    let mut command = server.command("taskset");
    command.args(["-c", "0", "nginx", "-c"]).arg(&config);
    let address = SocketAddrV4::new(guest_ip(), NGINX_PLAIN);
    let mut plain = Guest::program("nginx", command, address, Some(client)).keeping(server);
    plain.wait_http("/healthz");
    Server { plain, tls: None, h2_port: NGINX_H2 }
}

fn donjon(dir: &Path, files: &Path, certificate: &Certificate) -> Server {
    let start = |name: &str, options: &[&str]| {
        let image = image(donjon_tests::donjon(), dir, files, name, options);
        let ns = Netns::with_tap();
        // Linux drops what does not fit into a TAP's queue of 1000 frames; a veth pair has none that could be full.
        ns.ip(&["link", "set", Netns::TAP, "txqueuelen", "20000"]);
        ns.ask_fast();
        forget_closed(&ns);
        backlog(&ns);
        let builder =
            Guest::builder(&image, Engine::ProcessTap).port(80).memory(MEMORY).wrapper(["taskset", "-c", "0"]);
        let mut guest = builder.start_in(Some(ns));
        guest.wait_http("/healthz");
        guest
    };
    let (cert, key) = (certificate.cert.display().to_string(), certificate.key.display().to_string());
    Server {
        plain: start("plain", &[]),
        // The bench's own key, made a moment ago.
        tls: Some(start("tls", &["--embed-key", "--tls", &cert, &key])),
        h2_port: 80,
    }
}

/// The image of the site, packed by that command.
pub fn image(donjon: &Path, dir: &Path, files: &Path, name: &str, options: &[&str]) -> PathBuf {
    let image = dir.join(format!("{name}.img"));
    let limits = ["--idle-seconds=3600".to_owned(), format!("--connections={CONNECTIONS}")];
    let output = Command::new(donjon)
        .args(["build", "--web"])
        .arg(files)
        .args(limits)
        .args(options)
        .arg("-o")
        .arg(&image)
        .output();
    let output = output.unwrap_or_else(|e| panic!("cannot run donjon: {e}"));
    assert!(output.status.success(), "donjon build --web: {}", String::from_utf8_lossy(&output.stderr));
    image
}

/// Room for all connections that a client opens at once.
pub fn backlog(ns: &Netns) {
    set(ns, "net/core/somaxconn", "16384");
    set(ns, "net/ipv4/tcp_max_syn_backlog", "16384");
}

/// A client that closes first keeps its port for a minute. With a connection for each request none would be free after two seconds, and the
/// search for one takes all of the client's time.
pub fn forget_closed(client: &Netns) {
    set(client, "net/ipv4/tcp_max_tw_buckets", "16");
}

fn set(ns: &Netns, path: &str, value: &str) {
    ns.run(|| fs::write(Path::new("/proc/sys").join(path), value).unwrap_or_else(|e| panic!("{path}: {e}")));
}

pub fn guest_ip() -> Ipv4Addr {
    GUEST_IP.parse().expect("an address")
}

/// Bytes that do not compress (SplitMix64).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Time on a core of a program and its descendants so far, seconds.
pub fn cpu(guest: &Guest) -> f64 {
    measure::tree_processor_time(guest.pid()).unwrap_or_default().as_secs_f64()
}

/// The same of all clients that have ended.
pub fn client_cpu() -> f64 {
    measure::children_processor_time().unwrap_or_default().as_secs_f64()
}

/// Runs `f` and returns with its result how long it took, and the share of that time in which server and client kept their cores busy.
pub fn timed<T>(guest: &Guest, f: impl FnOnce() -> T) -> (T, f64, f64, f64) {
    let (server, client, started) = (cpu(guest), client_cpu(), std::time::Instant::now());
    let result = f();
    let took = started.elapsed().as_secs_f64();
    (result, took, (cpu(guest) - server) / took, (client_cpu() - client) / took)
}

/// A client's command, on core 1.
pub fn client(guest: &Guest, program: &str) -> Command {
    let mut command = guest.command("taskset");
    command.args(["-c", "1", program]);
    command
}
