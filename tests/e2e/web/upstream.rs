//! A backend for the proxy: says what it was asked, echoes WebSocket messages, and remembers every request and counts connections.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};
use std::thread;

use donjon_tests::{PATIENCE, poll_until};

/// The backend, on the host's loopback or where it was told to be.
pub struct Upstream {
    port: u16,
    seen: Mutex<Vec<String>>,
    /// Connections that have come.
    connections: AtomicUsize,
    /// Requests for `release`, each of which lets those for `hold` go.
    releases: AtomicU64,
}

impl Upstream {
    /// The one that all tests share.
    pub fn shared() -> &'static Upstream {
        static SHARED: OnceLock<&Upstream> = OnceLock::new();
        SHARED.get_or_init(|| Upstream::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port")))
    }

    /// One for a test of its own, which lasts as long as the process.
    pub fn start(listener: TcpListener) -> &'static Upstream {
        let port = listener.local_addr().expect("bound").port();
        let upstream =
            Upstream { port, seen: Mutex::default(), connections: AtomicUsize::new(0), releases: AtomicU64::new(0) };
        let upstream: &'static Upstream = Box::leak(Box::new(upstream));
        thread::spawn(move || upstream.serve(&listener));
        upstream
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Request lines that have arrived so far, of all tests.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Connections that have been accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// What a request for `release` does.
    pub fn release(&self) {
        self.releases.fetch_add(1, Relaxed);
    }

    fn serve(&'static self, listener: &TcpListener) {
        for stream in listener.incoming().flatten() {
            self.connections.fetch_add(1, Relaxed);
            // A client that goes away is no concern of the backend.
            thread::spawn(move || drop(self.talk(stream)));
        }
    }

    fn talk(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        loop {
            // The whole head is looked at before it is taken, because tungstenite wants to read it itself.
            let mut head = Vec::new();
            loop {
                let from = head.len();
                if reader.read_until(b'\n', &mut head)? == 0 {
                    return Ok(());
                }
                if matches!(&head[from..], b"\r\n" | b"\n") {
                    break;
                }
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let line = head.lines().next().unwrap_or_default().to_owned();
            // Whoever sees the request may let it go at once.
            let before = self.releases.load(Relaxed);
            self.seen.lock().unwrap_or_else(|e| e.into_inner()).push(line.clone());
            let field = |name: &str| {
                let lines = head.lines().skip(1).filter_map(|l| l.split_once(':'));
                lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_owned()).next()
            };
            if field("upgrade").is_some_and(|u| u.eq_ignore_ascii_case("websocket")) {
                return echo(&head, reader, writer);
            }
            let body = body(&mut reader, field("content-length"), field("transfer-encoding"))?;
            let path = line.split(' ').nth(1).unwrap_or_default();
            if path.contains("hold") {
                poll_until(PATIENCE / 2, || (self.releases.load(Relaxed) > before).then_some(()));
            }
            if path.contains("release") {
                self.release();
            }
            if path.contains("chunks") {
                writer.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
                for n in 0..100 {
                    writer.write_all(format!("a\r\nchunk {n:03}\n\r\n").as_bytes())?;
                }
                writer.write_all(b"0\r\n\r\n")?;
                continue;
            }
            if path.contains("garbage") {
                return writer.write_all(b"this is not HTTP\r\n\r\n");
            }
            if path.contains("split") {
                // A header with a line break that a proxy must not pass on as two.
                writer.write_all(b"HTTP/1.1 200 OK\r\nx-one: a\r\n x-two: b\r\ncontent-length: 0\r\n\r\n")?;
                continue;
            }
            let text = format!("{head}body {}\n", body.len());
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-upstream: yes\r\n\r\n{text}", text.len());
            writer.write_all(answer.as_bytes())?;
        }
    }
}

fn body(reader: &mut impl BufRead, length: Option<String>, coding: Option<String>) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    let mut line = String::new();
    if coding.is_some_and(|c| c.eq_ignore_ascii_case("chunked")) {
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let size = u64::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
            reader.by_ref().take(size).read_to_end(&mut body)?;
            line.clear();
            reader.read_line(&mut line)?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
    let length = length.and_then(|l| l.parse().ok()).unwrap_or(0);
    reader.by_ref().take(length).read_to_end(&mut body)?;
    Ok(body)
}

/// Answers the handshake and returns every message.
fn echo(head: &str, reader: BufReader<TcpStream>, writer: TcpStream) -> std::io::Result<()> {
    let stream = Replayed { head: head.as_bytes().to_vec(), taken: 0, reader, writer };
    let mut socket = tungstenite::accept(stream).map_err(|e| std::io::Error::other(e.to_string()))?;
    while let Ok(message) = socket.read() {
        if (message.is_text() || message.is_binary()) && socket.send(message).is_err() {
            break;
        }
    }
    Ok(())
}

/// A connection whose head has been read already.
struct Replayed {
    head: Vec<u8>,
    taken: usize,
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Read for Replayed {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.taken < self.head.len() {
            let n = (&self.head[self.taken..]).read(buffer)?;
            self.taken += n;
            return Ok(n);
        }
        self.reader.read(buffer)
    }
}

impl Write for Replayed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.flush()
    }
}
