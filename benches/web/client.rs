//! The clients, and what they measure.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use donjon_tests::http;
use serde::Serialize;

use crate::server::{Server, client, timed};
use crate::wrk;

/// One measurement of one server.
#[derive(Clone, Default, Serialize, Debug)]
pub struct Figures {
    /// Requests, or handshakes, a second; for memory: bytes for each connection.
    pub rate: f64,
    /// The same for each second that the server was on a core.
    pub rate_per_cpu: Option<f64>,
    /// Share of the time in which the server was on its core.
    pub server_busy: Option<f64>,
    /// Share of the time in which the client was on its core: near 1, it is the limit, unless the server is it, too.
    pub client_busy: Option<f64>,
    /// Median latency, microseconds.
    pub p50: Option<f64>,
    /// 99th percentile of the latency, microseconds.
    pub p99: Option<f64>,
    /// What went wrong, or is to be known.
    pub note: String,
}

impl Figures {
    fn of(rate: f64, server_busy: f64, client_busy: f64) -> Figures {
        Figures {
            rate,
            rate_per_cpu: (server_busy > 0.0).then(|| rate / server_busy),
            server_busy: Some(server_busy),
            client_busy: Some(client_busy),
            ..Figures::default()
        }
    }

    /// Rate for each second that server and client were on a core. The kernel's TCP works on the core of whoever happens to send: over a veth pair
    /// the server's receiving side is on the client's. Behind a TAP all of the server's TCP is on its own.
    pub fn rate_per_both(&self) -> Option<f64> {
        let busy = self.server_busy? + self.client_busy?;
        (busy > 0.0).then(|| self.rate / busy)
    }
}

/// `wrk`.
pub fn load(server: &Server, url: &str, close: bool, connections: u32, seconds: u32) -> Result<Figures, String> {
    let guest = server.guest(url);
    let more: &[&str] = if close { &["-H", "Connection: close"] } else { &[] };
    // Caches warm up, and a backlog of closed connections is gone; not measured.
    wrk::run(guest, url, more, connections, 1)?;
    let (load, _, server_busy, client_busy) = timed(guest, || wrk::run(guest, url, more, connections, seconds));
    let load = load?;
    let figures = Figures::of(load.rate, server_busy, client_busy);
    Ok(Figures { p50: Some(load.p50), p99: Some(load.p99), note: load.errors, ..figures })
}

/// `h2load`.
pub fn h2(server: &Server, url: &str, connections: u32, streams: u32, seconds: u32) -> Result<Figures, String> {
    let guest = server.guest(url);
    let mut command = client(guest, "h2load");
    command.args([
        "-t1",
        "--warm-up-time=1",
        &format!("-c{connections}"),
        &format!("-m{streams}"),
        &format!("-D{seconds}"),
    ]);
    let (output, _, server_busy, client_busy) = timed(guest, || command.arg(url).output());
    let text = String::from_utf8_lossy(&output.map_err(|e| format!("cannot run h2load: {e}"))?.stdout).into_owned();
    // `finished in 3.00s, 44033.33 req/s, 45.27MB/s`
    let rate = text
        .lines()
        .find_map(|l| l.strip_prefix("finished in ")?.split(", ").nth(1)?.strip_suffix(" req/s")?.parse().ok());
    let rate: f64 = rate.ok_or_else(|| format!("h2load: {text}"))?;
    let failed = text
        .lines()
        .find_map(|l| l.strip_prefix("requests:"))
        .filter(|l| !l.contains(" 0 failed, 0 errored, 0 timeout"));
    Ok(Figures { note: failed.unwrap_or_default().trim().to_owned(), ..Figures::of(rate, server_busy, client_busy) })
}

/// Full handshakes by eight clients at a time: `openssl s_time`, which never resumes a session with `-new`.
pub fn handshakes(server: &Server, version: &str, seconds: u32) -> Result<Figures, String> {
    let guest = server.tls_guest();
    let address = server.tls_address();
    let (rate, _, server_busy, client_busy) = timed(guest, || {
        let start = |_| {
            let mut command = client(guest, "openssl");
            command.args(["s_time", "-new", version, "-time", &seconds.to_string(), "-connect", &address]);
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
        };
        let clients =
            (0..8).map(start).collect::<Result<Vec<_>, _>>().map_err(|e| format!("cannot run openssl: {e}"))?;
        let mut rate = 0.0;
        for client in clients {
            let output = client.wait_with_output().map_err(|e| e.to_string())?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // `1234 connections in 4 real seconds, 0 bytes read per connection`
            let line = text.lines().find(|l| l.contains(" real seconds"));
            let words: Vec<&str> = line.unwrap_or_default().split(' ').collect();
            let count: f64 = words.first().and_then(|w| w.parse().ok()).ok_or_else(|| format!("openssl: {text}"))?;
            rate += count / f64::from(seconds);
        }
        Ok::<f64, String>(rate)
    });
    Ok(Figures::of(rate?, server_busy, client_busy))
}

/// Memory for each of many connections that have had an answer and then nothing more to ask.
pub fn idle(server: &Server, count: u32) -> Result<Figures, String> {
    let guest = &server.plain;
    let settle = || std::thread::sleep(Duration::from_secs(5));
    settle();
    let (user, kernel) = (server.memory(), kernel_memory());
    let address = guest.addr();
    let connections = guest.run(|| {
        let one = |n| {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: bench\r\n\r\n")?;
            let answer = http::read_response(&mut BufReader::new(&mut stream))?;
            if answer.status == 200 {
                Ok(stream)
            } else {
                Err(std::io::Error::other(format!("{n}: {}", answer.status)))
            }
        };
        (0..count).map(one).collect::<Result<Vec<TcpStream>, _>>()
    });
    let connections = connections.map_err(|e| e.to_string())?;
    // A server that gives memory back does it after a while.
    settle();
    let each = |before: u64, after: u64| after.saturating_sub(before) as f64 / f64::from(count);
    let (user, kernel) = (each(user, server.memory()), each(kernel, kernel_memory()));
    drop(connections);
    settle();
    let note = format!(
        "and {kernel:.0} bytes of kernel memory for both ends; all in all {:.1} MiB then",
        server.memory() as f64 / f64::from(1 << 20)
    );
    Ok(Figures { rate: user, note, ..Figures::default() })
}

/// The kernel's own allocations, bytes.
fn kernel_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let slab = text.lines().find_map(|l| l.strip_prefix("Slab:")?.split_ascii_whitespace().next()?.parse::<u64>().ok());
    slab.unwrap_or(0) * 1024
}

/// This process opens as many connections as any measurement needs, and what it starts inherits the limit.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        eprintln!("cannot raise the limit of open files: {e}");
    }
}
