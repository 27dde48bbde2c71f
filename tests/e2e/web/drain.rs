//! A stop while real clients are being answered: each has its whole answer before the server ends.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Stdio};

use donjon_tests::{Engine, Guest, PATIENCE, http, poll_until};

use super::{Upstream, certificate, data};

crate::under_engines! {
    curl_has_the_whole_answer: ProcessUser QemuMicrovm;
    what_the_stack_holds_is_sent: ProcessUser ProcessTap QemuMicrovm;
}

/// Of `data`: more than all the buffers between the server and a `curl` that waits, of which the host's socket (4 MiB at most) is the largest; and more
/// than half of its HTTP/2 window of 32 MiB, so that it says something (WINDOW_UPDATE) while it reads what is left after the server has ended.
const REPEATS: usize = 24;

/// A request of `curl` under way.
struct Download {
    child: Child,
    args: Vec<String>,
    version: &'static str,
}

impl Download {
    /// It writes to a pipe that nobody reads, so nothing moves when that is full.
    fn start(guest: &Guest, version: &'static str, args: &[&str]) -> Download {
        let mut command = guest.command("curl");
        command.args(["--silent", "--show-error", "--fail", "--insecure", "--no-buffer", "--max-time", "120"]);
        command.args(["--write-out", "%{stderr}%{http_version} %{http_code}\n"]).args(args);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run curl");
        Download { child, args: args.iter().map(|a| (*a).to_owned()).collect(), version }
    }

    /// Waits for the beginning of the answer.
    fn begin(&mut self, want: &[u8]) {
        let mut begun = vec![0; want.len()];
        let out = self.child.stdout.as_mut().expect("piped");
        out.read_exact(&mut begun).unwrap_or_else(|e| panic!("{:?}: {e}", self.args));
        assert!(begun == want, "{:?}", self.args);
    }

    /// Reads the rest, and how it ended.
    fn finish(self, want: &[u8]) {
        let output = self.child.wait_with_output().expect("wait for curl");
        let said = String::from_utf8_lossy(&output.stderr);
        let len = output.stdout.len();
        assert!(output.status.success(), "{:?}: {said}, {len} of {} bytes", self.args, want.len());
        assert_eq!(said, format!("{} 200\n", self.version), "{:?}", self.args);
        assert!(output.stdout == want, "{:?}: {} of {} bytes", self.args, output.stdout.len(), want.len());
    }
}

/// Over HTTP/1.1 and HTTP/2, with and without TLS, from the image and from an upstream that takes its time.
fn curl_has_the_whole_answer(engine: Engine) {
    let dir = super::scratch().join(format!("drained-{engine:?}"));
    std::fs::create_dir_all(&dir).unwrap();
    let large = data().repeat(REPEATS);
    std::fs::write(dir.join("large.bin"), &large).unwrap();
    let upstream = Upstream::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let c = certificate("one.test");
    let options = [
        dir.display().to_string(),
        "--embed-key".into(),
        "--tls".into(),
        c.cert.display().to_string(),
        c.key.display().to_string(),
        format!("--proxy=/api=10.0.2.2:{}", upstream.port()),
        "--stall-seconds=120".into(),
    ];
    let image = super::pack(&format!("drained-{engine:?}"), &options);
    let mut guest = Guest::builder(&image, engine).port(80).port(443).memory("128M").start_http("/healthz");
    let mut idle = guest.connect().unwrap();
    http::send_get_keep_alive(&mut idle, "/healthz").unwrap();
    let mut idle = std::io::BufReader::new(idle);
    assert_eq!(http::read_response(&mut idle).unwrap().text(), "ok\n");

    let secure = |path: &str| format!("https://{}{path}", guest.addr_of(1));
    let plain = |path: &str| guest.url(path);
    let mut large_ones: Vec<Download> = [
        ("2", "--http2-prior-knowledge", plain("/large.bin")),
        ("2", "--http2", secure("/large.bin")),
        ("1.1", "--http1.1", secure("/large.bin")),
    ]
    .iter()
    .map(|(version, flag, url)| Download::start(&guest, version, &[flag, url]))
    .collect();
    for download in &mut large_ones {
        download.begin(&large[..1000]);
    }
    let held: Vec<(Download, String)> = [
        ("1.1", "--http1.1", plain("/api/hold-1")),
        ("2", "--http2-prior-knowledge", plain("/api/hold-2")),
        ("2", "--http2", secure("/api/hold-3")),
    ]
    .iter()
    .map(|(version, flag, url)| {
        let line = format!("GET {} HTTP/1.1", &url[url.find("/api").expect("its path")..]);
        (Download::start(&guest, version, &[flag, url]), line)
    })
    .collect();
    for (_, line) in &held {
        let arrived = poll_until(PATIENCE, || upstream.seen().contains(line).then_some(()));
        assert!(arrived.is_some(), "{line}: {:?}\n{}", upstream.seen(), guest.log());
    }

    guest.signal(rustix::process::Signal::TERM);
    // Now the server knows.
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "an idle connection is closed");
    guest.expect_alive();
    upstream.release();
    for (mut download, line) in held {
        download.begin(line.as_bytes());
        let mut rest = Vec::new();
        download.child.stdout.take().expect("piped").read_to_end(&mut rest).unwrap();
        assert!(rest.ends_with(b"body 0\n"), "{line}: {}", String::from_utf8_lossy(&rest));
        download.finish(b"");
    }
    guest.expect_alive();
    for download in large_ones {
        download.finish(&large[1000..]);
    }
    guest.wait().expect_code(0);
}

/// All of this answer is in the guest's stack when the server is stopped, and its client takes it slowly.
fn what_the_stack_holds_is_sent(engine: Engine) {
    let dir = super::scratch().join(format!("drained-slowly-{engine:?}"));
    std::fs::create_dir_all(&dir).unwrap();
    let large = data().repeat(8);
    std::fs::write(dir.join("large.bin"), &large).unwrap();
    let options = [dir.display().to_string(), "--drain-seconds=60".into()];
    let image = super::pack(&format!("drained-slowly-{engine:?}"), &options);
    let mut guest = Guest::builder(&image, engine).port(80).memory("128M").start_http("/healthz");
    let mut client = guest.connect().unwrap();
    // Small, but not below a loopback's segment, which then is sent only when a timer says so.
    rustix::net::sockopt::set_socket_recv_buffer_size(&client, 65_536).unwrap();
    client.write_all(b"GET /large.bin HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
    let mut got = vec![0; 4096];
    client.read_exact(&mut got).unwrap();
    guest.signal(rustix::process::Signal::TERM);
    // Longer than the server listens to a client that has its answer.
    std::thread::sleep(std::time::Duration::from_secs(4));
    client.read_to_end(&mut got).unwrap();
    assert!(got.ends_with(&large) && got.starts_with(b"HTTP/1.1 200 "), "{} of {} bytes", got.len(), large.len());
    guest.wait().expect_code(0);
}
