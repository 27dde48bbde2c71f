//! A prepared site, the server on it, and a client that says exactly what it is told.

use donjon_web_format::{CONFIG_PATH, Config, INDEX_PATH, Resource, Variant, index_line};
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Longer than anything takes that ends at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server.
pub struct Server {
    child: Child,
    console: Option<BufReader<ChildStdout>>,
    dir: PathBuf,
    pub address: SocketAddr,
}

impl Server {
    /// Serves `files` (path and content) with this configuration, on a port of its own.
    pub fn start(config: Config, files: &[(&str, &[u8])]) -> Server {
        let server = Server::spawn(config, files);
        let start = Instant::now();
        while TcpStream::connect(server.address).is_err() {
            assert!(start.elapsed() < PATIENCE, "the server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// The exit code of a server that does not start with this configuration.
    #[cfg(feature = "tls")]
    pub fn refused(config: Config) -> i32 {
        Server::spawn(config, &[]).wait()
    }

    fn spawn(config: Config, files: &[(&str, &[u8])]) -> Server {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("donjon-web-server-{}-{n}", std::process::id()));
        let put = |path: &str, data: &[u8]| {
            let path = dir.join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, data).unwrap();
        };
        let mut files = files.to_vec();
        files.sort_unstable();
        let mut index = String::new();
        for (path, data) in files {
            let file = format!("/site/0{path}");
            put(&file, data);
            let plain = Variant { file: &file, etag: "tag", len: data.len() as u64 };
            let content_type = "text/plain";
            let resource = Resource { root: 0, path, content_type, mtime: 1, plain, brotli: None, gzip: None };
            index.push_str(&index_line(&resource).unwrap());
        }
        let address = free_address();
        let config = Config { http: Some(address.port()), ..config };
        put(CONFIG_PATH, config.to_text().unwrap().as_bytes());
        put(INDEX_PATH, index.as_bytes());
        put("/secret.txt", b"SECRET");
        let console = if config.log { Stdio::piped() } else { Stdio::null() };
        let mut child = Command::new(env!("CARGO_BIN_EXE_donjon-web")).arg(&dir).stdout(console).spawn().unwrap();
        let console = child.stdout.take().map(BufReader::new);
        Server { child, console, dir, address }
    }

    /// A plain site: `/` says "home", `/a.txt` has 100,000 bytes.
    pub fn plain() -> Server {
        Server::start(Config::default(), &[("/index.html", b"home"), ("/a.txt", &[b'a'; 100_000])])
    }

    pub fn connect(&self) -> Client {
        self.connect_to(self.address)
    }

    /// Connects to another of its ports.
    pub fn connect_to(&self, address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream, unread: vec![], reset: false }
    }

    /// Connects with little room for what comes.
    pub fn connect_small(&self) -> Client {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&self.address.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream, unread: vec![], reset: false }
    }

    /// Sends a request on a connection of its own.
    pub fn ask(&self, request: &str) -> Response {
        let mut client = self.connect();
        client.send(request);
        client.response(request.starts_with("HEAD"))
    }

    pub fn get(&self, path: &str) -> Response {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"))
    }

    /// Whether it still serves.
    pub fn assert_alive(&self) {
        assert_eq!(self.get("/healthz").status, 200);
    }

    /// The next line of the access log.
    pub fn logged(&mut self) -> String {
        let mut line = String::new();
        self.console.as_mut().unwrap().read_line(&mut line).unwrap();
        line
    }

    /// Bytes of memory in use.
    pub fn resident(&self) -> u64 {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    pub fn terminate(&self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the process to end.
    pub fn wait(&mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// An address of this machine where nothing listens.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub struct Client {
    pub stream: TcpStream,
    unread: Vec<u8>,
    /// Whether the server has ended the connection without reading all that was sent.
    pub reset: bool,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|l| l.split_once(':'));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    /// Sends; a server that has closed already is no error here, what it said is read later.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.reset |= self.stream.write_all(bytes.as_ref()).is_err();
    }

    /// Reads more. `false` at the end.
    fn fill(&mut self) -> bool {
        let mut buffer = [0; 16384];
        match self.stream.read(&mut buffer) {
            Ok(n) => {
                self.unread.extend(&buffer[..n]);
                n > 0
            }
            Err(e) if e.kind() == ErrorKind::ConnectionReset => {
                self.reset = true;
                false
            }
            Err(e) => {
                let last = &self.unread[self.unread.len().saturating_sub(1000)..];
                panic!("{e}, after {} bytes: {:?}", self.unread.len(), String::from_utf8_lossy(last))
            }
        }
    }

    /// Reads one response; `None` if the connection ends before it.
    pub fn try_response(&mut self, head_only: bool) -> Option<Response> {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.fill() {
                assert!(self.unread.is_empty(), "cut off: {:?}", String::from_utf8_lossy(&self.unread));
                return None;
            }
        };
        let head = String::from_utf8(self.unread.drain(..end).collect()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut response = Response { status, head, body: vec![] };
        if head_only || status == 304 || status == 204 || status < 200 {
            return Some(response);
        }
        if response.header("transfer-encoding").is_some_and(|t| t.contains("chunked")) {
            loop {
                let line = self.line();
                let len = usize::from_str_radix(line.trim(), 16).unwrap();
                let chunk = self.exactly(len);
                response.body.extend(chunk);
                assert_eq!(self.line(), "");
                if len == 0 {
                    return Some(response);
                }
            }
        }
        match response.header("content-length").map(|l| l.parse().unwrap()) {
            Some(len) => response.body = self.exactly(len),
            None => response.body = self.rest(),
        }
        Some(response)
    }

    pub fn response(&mut self, head_only: bool) -> Response {
        self.try_response(head_only).expect("the connection was closed")
    }

    pub fn exactly(&mut self, len: usize) -> Vec<u8> {
        while self.unread.len() < len {
            assert!(self.fill(), "{} of {len} bytes", self.unread.len());
        }
        self.unread.drain(..len).collect()
    }

    fn line(&mut self) -> String {
        loop {
            if let Some(at) = self.unread.windows(2).position(|w| w == b"\r\n") {
                let line = self.unread.drain(..at + 2).take(at).collect();
                return String::from_utf8(line).unwrap();
            }
            assert!(self.fill(), "cut off");
        }
    }

    /// All until the server closes.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.unread)
    }

    pub fn is_closed(&mut self) -> bool {
        self.rest().is_empty()
    }
}
