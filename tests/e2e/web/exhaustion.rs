//! Clients that would have all of a guest's memory: others are served all the same. There is little of it, so that few clients need it all; but in one
//! test as much as an image gets that does not say.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use donjon_tests::{Engine, Guest, PATIENCE, poll_until};
use rustix::net::sockopt::set_socket_recv_buffer_size;

crate::under_engines! {
    unfinished_heads: ProcessUser;
    idle_http2: ProcessUser ProcessTap;
    idle_http2_by_the_thousand: ProcessUser;
    unfinished_http2_heads: ProcessUser;
    many_header_fields: ProcessUser;
    streams_without_a_window: ProcessUser;
    pings_instead_of_a_window: ProcessUser;
    unfinished_handshakes: ProcessUser;
    silent_upstream: ProcessUser;
    upstream_that_does_not_read: ProcessUser;
    small_frames_to_an_upstream_that_does_not_read: ProcessUser;
    answers_of_an_upstream_that_nobody_reads: ProcessUser;
    large_listings: ProcessUser;
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Little memory, and more connections over HTTP/2 than would fit.
const LITTLE: (&str, usize) = ("24M", 600);
/// As much as there is by default, and more connections over HTTP/2 than would fit.
const DEFAULT: (&str, usize) = ("64M", 2500);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
/// None that anybody knows.
const GREASE: u8 = 0xfa;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// An HTTP/2 frame (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A request's head, uncompressed.
fn head(method: &str, path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [(":method", method), (":path", path), (":scheme", "http"), (":authority", "test")] {
        for text in [name, value] {
            // A literal field without indexing begins with 0, then has two strings with their lengths.
            if text == name {
                block.push(0);
            }
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

fn start(engine: Engine, name: &str, memory: &str) -> Guest {
    crate::load::raise_file_limit();
    let mut options = vec![super::content().display().to_string()];
    if name == "proxied" {
        options.push(format!("--proxy=/api=10.0.2.2:{}", upstream()));
    }
    let image = super::pack(&format!("exhaustion-{name}-{engine:?}"), &options);
    Guest::builder(&image, engine).memory(memory).port(80).start_http("/")
}

/// That many connections, each of which says this and then waits. Fewer if nobody takes them.
fn crowd(guest: &Guest, count: usize, words: &[u8]) -> Vec<TcpStream> {
    let mut crowd = Vec::new();
    for _ in 0..count {
        let Ok(mut stream) = guest.connect() else { break };
        // What the kernel takes; who was refused has been refused.
        stream.set_nonblocking(true).unwrap();
        let _ = stream.write(words);
        crowd.push(stream);
    }
    println!("{} connections", crowd.len());
    crowd
}

/// Another client gets what it asks for, at once or a little later, while the crowd is there and when it has gone.
#[track_caller]
fn expect_served<T>(mut guest: Guest, crowd: T) {
    let asked = Instant::now();
    let text = super::text();
    let mut expect = |when: &str| {
        // The crowd is let go two seconds after memory got short; on a busy machine, thousands of ends take their time.
        let served = poll_until(PATIENCE * 3, || {
            guest.expect_alive();
            guest.get("/text.txt").ok().filter(|a| a.status == 200 && a.body == text.as_bytes())
        });
        assert!(served.is_some(), "{when}: {}", guest.log());
        println!("{when}: served after {:?}", asked.elapsed());
    };
    expect("with the crowd");
    drop(crowd);
    expect("without it");
}

fn unfinished_heads(engine: Engine) {
    let guest = start(engine, "plain", LITTLE.0);
    let line = format!("x: {}\r\n", "y".repeat(1000));
    let crowd = crowd(&guest, LITTLE.1 * 3, format!("GET / HTTP/1.1\r\nhost: test\r\n{}", line.repeat(15)).as_bytes());
    expect_served(guest, crowd);
}

fn idle_http2(engine: Engine) {
    many_idle_http2(engine, LITTLE);
}

fn idle_http2_by_the_thousand(engine: Engine) {
    many_idle_http2(engine, DEFAULT);
}

fn many_idle_http2(engine: Engine, (memory, count): (&str, usize)) {
    let guest = start(engine, "plain", memory);
    let crowd = crowd(&guest, count, &[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
    expect_served(guest, crowd);
}

fn unfinished_http2_heads(engine: Engine) {
    let guest = start(engine, "plain", LITTLE.0);
    let words = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 0, 1, &[0; 15 * 1024])].concat();
    let crowd = crowd(&guest, LITTLE.1, &words);
    expect_served(guest, crowd);
}

/// Few bytes each, which become more than a hundred for each of them; all at once, so that they are read before anything is answered.
fn many_header_fields(engine: Engine) {
    let guest = start(engine, "plain", LITTLE.0);
    let crowd = crowd(&guest, 20, &[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
    let letters = (b'a'..=b'z').chain(b'0'..=b'9');
    let mut names = letters.clone().flat_map(|a| letters.clone().map(move |b| [a, b])).filter(|name| name != b"te");
    // The first has them put into the table, from where the others have them by a byte each: the last in is the first, at 62.
    let indexed: Vec<u8> = names.by_ref().take(65).flat_map(|[a, b]| [0x40, 2, a, b, 0]).collect();
    let literal: Vec<u8> = names.take(400).flat_map(|[a, b]| [0, 2, a, b, 0]).collect();
    let request = head("GET", "/");
    let mut words = frame(HEADERS, END_STREAM | END_HEADERS, 1, &[&request[..], &indexed].concat());
    let fields: Vec<u8> = (62..127).map(|index| 0x80 | index).chain(literal).collect();
    let others =
        (1..128).map(|n| frame(HEADERS, END_STREAM | END_HEADERS, 1 + 2 * n, &[&request[..], &fields].concat()));
    words.extend(others.flatten());
    send_all(&crowd, &words);
    expect_served(guest, crowd);
}

/// Sends this to all of them, in turns, as far as it is taken within some seconds.
fn send_all(crowd: &[TcpStream], words: &[u8]) {
    let begun = Instant::now();
    let mut left = vec![words; crowd.len()];
    while begun.elapsed() < PATIENCE / 6 && left.iter().any(|l| !l.is_empty()) {
        for (mut stream, left) in crowd.iter().zip(&mut left) {
            match stream.write(left) {
                Ok(n) => *left = &left[n..],
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => *left = &[],
            }
        }
    }
}

/// Requests by the client's choice for ever: it lets nothing be sent.
fn without_a_window() -> Vec<u8> {
    // SETTINGS_INITIAL_WINDOW_SIZE is 0.
    let mut words = [PREFACE, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])].concat();
    let streams = (0..128).map(|n| 1 + 2 * n);
    words.extend(streams.flat_map(|n| frame(HEADERS, END_STREAM | END_HEADERS, n, &head("GET", "/data.bin"))));
    words
}

fn streams_without_a_window(engine: Engine) {
    let guest = start(engine, "plain", LITTLE.0);
    let crowd = crowd(&guest, LITTLE.1 / 2, &without_a_window());
    expect_served(guest, crowd);
}

/// Whoever takes nothing may not have all that there is for HTTP/2 by saying something now and then.
fn pings_instead_of_a_window(engine: Engine) {
    let guest = start(engine, "plain", LITTLE.0);
    let crowd = crowd(&guest, LITTLE.1, &without_a_window());
    let served = poll_until(PATIENCE * 3, || {
        for mut stream in &crowd {
            // Some have been sent away.
            let _ = stream.write(&frame(PING, 0, 0, &[0; 8]));
        }
        let mut curl = guest.command("curl");
        curl.args(["-sf", "-m", "1", "--http2-prior-knowledge", "-o", "/dev/null", &guest.url("/text.txt")]);
        curl.status().unwrap().success().then_some(())
    });
    assert!(served.is_some(), "{}", guest.log());
    expect_served(guest, crowd);
}

/// All but the last byte of a long hello, over TLS.
fn unfinished_handshakes(engine: Engine) {
    let guest =
        Guest::builder(&super::Site::Secure.image(), engine).memory(LITTLE.0).port(80).port(443).start_http("/");
    let hello = [&[1, 0, 0xff, 0xf0, 3, 3][..], &[0; 0xffe0]].concat();
    let words: Vec<u8> = hello
        .chunks(16_000)
        .flat_map(|part| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[22, 3, 1][..], &length, part].concat()
        })
        .collect();
    crate::load::raise_file_limit();
    let addr = guest.addr_of(1);
    let crowd: Vec<_> = (0..LITTLE.1).map_while(|_| TcpStream::connect(addr).ok()).collect();
    crowd.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
    send_all(&crowd, &words);
    expect_served(guest, crowd);
}

fn silent_upstream(engine: Engine) {
    let guest = start(engine, "proxied", LITTLE.0);
    let mut words = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let streams = (0..128).map(|n| 1 + 2 * n);
    words.extend(streams.flat_map(|n| frame(HEADERS, END_STREAM | END_HEADERS, n, &head("GET", "/api/silent"))));
    let crowd = crowd(&guest, 100, &words);
    expect_served(guest, crowd);
}

fn upstream_that_does_not_read(engine: Engine) {
    uploads(engine, 100, 16_384, 0);
}

/// What lies between frames is kept with them, if they are read into one buffer.
fn small_frames_to_an_upstream_that_does_not_read(engine: Engine) {
    uploads(engine, 30, 256, 16_384);
}

/// That many uploads to an upstream that does not read, with frames of this many bytes, and between them frames that nobody knows.
fn uploads(engine: Engine, count: usize, bytes: i64, between: usize) {
    let guest = start(engine, "proxied", LITTLE.0);
    let start = || Some(Upload { bytes, between, ..Upload::start(guest.connect().ok()?) });
    let mut uploads: Vec<_> = (0..count).filter_map(|_| start()).collect();
    let begun = Instant::now();
    // Until nothing moves, or for long enough.
    while begun.elapsed() < PATIENCE / 6 && !uploads.is_empty() {
        uploads.retain_mut(|upload| upload.step().is_some());
    }
    println!("{} uploads", uploads.len());
    expect_served(guest, uploads);
}

/// Over both protocols; others get what is forwarded, too.
fn answers_of_an_upstream_that_nobody_reads(engine: Engine) {
    let mut words = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    words.extend((0..8).flat_map(|n| frame(HEADERS, END_STREAM | END_HEADERS, 1 + 2 * n, &head("GET", "/api/big"))));
    for words in [&b"GET /api/big HTTP/1.1\r\nhost: test\r\n\r\n"[..], &words] {
        let mut guest = start(engine, "proxied", LITTLE.0);
        let crowd: Vec<_> = (0..200)
            .map_while(|_| {
                let mut stream = guest.connect().ok()?;
                set_socket_recv_buffer_size(&stream, 8192).unwrap();
                stream.write_all(words).ok()?;
                Some(stream)
            })
            .collect();
        println!("{} connections", crowd.len());
        // All that can be on its way is.
        thread::sleep(Duration::from_secs(3));
        let asked = Instant::now();
        let served = poll_until(PATIENCE / 2, || {
            guest.expect_alive();
            guest.get("/api/small").ok().filter(|a| a.status == 200)
        });
        assert!(served.is_some(), "nothing is forwarded: {}", guest.log());
        println!("forwarded after {:?}", asked.elapsed());
        expect_served(guest, crowd);
    }
}

/// The pages of a large directory, by clients that do not read them: each has 6 MB.
fn large_listings(engine: Engine) {
    let name = format!("exhaustion-listing-{engine:?}");
    let dir = super::scratch().join(&name).join("content");
    let large = dir.join("large");
    std::fs::create_dir_all(&large).unwrap();
    for n in 0..30_000 {
        std::fs::write(large.join(format!("{n:05}{}", "n".repeat(85))), b"").unwrap();
    }
    std::fs::write(dir.join("text.txt"), super::text()).unwrap();
    std::fs::write(dir.join("index.html"), b"").unwrap();
    let image = super::pack(&name, &[dir.display().to_string(), "--listing".into()]);
    let guest = Guest::builder(&image, engine).port(80).start_http("/healthz");
    let whole = guest.get("/large/").unwrap();
    assert_eq!((whole.status, whole.text().matches("<li>").count()), (200, 30_001), "{}", guest.log());
    // One after the other, also where HTTP/2 has a stream for each.
    let mut words = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    words.extend((0..128).flat_map(|n| frame(HEADERS, END_STREAM | END_HEADERS, 1 + 2 * n, &head("GET", "/large/"))));
    let mut crowds = vec![crowd(&guest, 300, b"GET /large/ HTTP/1.1\r\nhost: test\r\n\r\n")];
    crowds.push(crowd(&guest, 100, &words));
    expect_served(guest, crowds);
}

/// A request over HTTP/2 that has a body for as long as the server opens windows.
struct Upload {
    stream: TcpStream,
    unread: Vec<u8>,
    unsent: Vec<u8>,
    /// What may be sent on the connection and on the stream.
    windows: [i64; 2],
    /// Whether the server has said how large windows are.
    agreed: bool,
    /// In a frame at most, and in one of another kind after each.
    bytes: i64,
    between: usize,
}

impl Upload {
    fn start(stream: TcpStream) -> Upload {
        stream.set_nonblocking(true).unwrap();
        let head = frame(HEADERS, END_HEADERS, 1, &head("POST", "/api/unread"));
        let unsent = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &head].concat();
        Upload { stream, unread: vec![], unsent, windows: [65_535; 2], agreed: false, bytes: 0, between: 0 }
    }

    /// Reads what is there, and sends what it may. `None` if the connection has ended.
    fn step(&mut self) -> Option<()> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(n) => self.unread.extend(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
        while let Some(head) = self.unread.first_chunk::<9>().copied() {
            let number = |bytes: &[u8]| bytes.iter().fold(0i64, |n, b| n << 8 | i64::from(*b));
            let end = 9 + number(&head[..3]) as usize;
            if self.unread.len() < end {
                break;
            }
            let frame: Vec<u8> = self.unread.drain(..end).skip(9).collect();
            match (head[3], head[4]) {
                (SETTINGS, 0) => {
                    for setting in frame.chunks(6).filter(|s| s[..2] == [0, 4]) {
                        self.windows[1] += number(&setting[2..]) - 65_535;
                    }
                    self.unsent.extend(self::frame(SETTINGS, 1, 0, &[]));
                    self.agreed = true;
                }
                (WINDOW_UPDATE, _) => self.windows[usize::from(head[8])] += number(&frame),
                _ => {}
            }
        }
        let most = self.windows[0].min(self.windows[1]).min(self.bytes);
        if self.agreed && self.unsent.is_empty() && most > 0 {
            self.unsent = frame(DATA, 0, 1, &vec![b'x'; most as usize]);
            if self.between > 0 {
                self.unsent.extend(frame(GREASE, 0, 0, &vec![0; self.between]));
            }
            self.windows.iter_mut().for_each(|w| *w -= most);
        }
        match self.stream.write(&self.unsent) {
            Ok(n) => drop(self.unsent.drain(..n)),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
        Some(())
    }
}

/// The port of a server that reads nothing but heads and answers nothing, or more than anybody takes.
fn upstream() -> u16 {
    static PORT: OnceLock<u16> = OnceLock::new();
    *PORT.get_or_init(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // The kernel shall not read in its place.
        set_socket_recv_buffer_size(&listener, 4096).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || drop(talk(stream)));
            }
        });
        port
    })
}

fn talk(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::with_capacity(1, stream.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    if head.contains(" /api/small ") {
        return stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
    }
    if head.contains(" /api/big ") {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")?;
        while stream.write_all(&[0; 65_536]).is_ok() {}
        return Ok(());
    }
    // Until it is given up.
    let closed = || (stream.peek(&mut [0]).map_or(true, |n| n == 0)).then_some(());
    if head.contains(" /api/silent ") {
        stream.set_nonblocking(false)?;
        let _ = closed();
        return Ok(());
    }
    thread::sleep(PATIENCE * 4);
    Ok(())
}
