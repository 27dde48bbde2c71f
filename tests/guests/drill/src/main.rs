//! The breach drill's victim: a web server that does with its memory what a request asks for, which is where every exploit of a
//! memory error ends. `cargo xtask drill` runs it as an ordinary process in containers and as a Donjon image.
//!
//! | request | does |
//! | --- | --- |
//! | `GET /` | answers |
//! | `POST /run-heap`, `/run-stack` | copies the body there and calls it |
//! | `GET /sym/NAME` | the address of a function that is linked in, or of some data: what an information leak gives |
//! | `GET /alloc/LEN` | the address of that much memory, page-aligned |
//! | `GET /peek/ADDRESS/LEN`, `POST /poke/ADDRESS` | reads, writes |
//! | `GET /call/ADDRESS/A/B/C/D/E/F/G` | calls with these arguments: a hijacked function pointer. Result and errno |
//!
//! Numbers are hexadecimal. An ordinary program: nothing in here knows Donjon.

mod gadgets;

use std::alloc::{Layout, alloc_zeroed};
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

type Function = unsafe extern "C" fn(u64, u64, u64, u64, u64, u64, u64) -> i64;

const PAGE: usize = 4096;
/// Most bytes of a body.
const BODY: usize = 1 << 20;

fn main() {
    // What the server has to know to serve: in its memory for as long as it runs.
    let key = std::env::var("TLS_KEY").unwrap_or_default();
    let listener = TcpListener::bind("0.0.0.0:8080").expect("port 8080 is free");
    println!("ready");
    for stream in listener.incoming().flatten() {
        if let Err(e) = serve(stream, &key) {
            eprintln!("a request failed: {e}");
        }
    }
}

fn serve(mut stream: TcpStream, key: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or("/").to_owned();
    log(line.trim_end());
    let mut length = 0;
    loop {
        line.clear();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = n.trim().parse().unwrap_or(0).min(BODY);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let answer = answer(&path, &body, key);
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", answer.len())?;
    stream.write_all(&answer)
}

/// As servers do: to a file where there is one, and to standard output.
fn log(line: &str) {
    if let Ok(path) = std::env::var("ACCESS_LOG") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        // A log that cannot be written stops no server.
        let _ = file.and_then(|mut f| writeln!(f, "{line}"));
    }
    println!("{line}");
}

fn answer(path: &str, body: &[u8], key: &str) -> Vec<u8> {
    let mut words = path.split('/').skip(1);
    let what = words.next().unwrap_or("");
    let name = words.clone().next().unwrap_or("");
    let mut numbers = words.map(|w| u64::from_str_radix(w, 16).unwrap_or(0));
    let mut number = || numbers.next().unwrap_or(0);
    match what {
        "run-heap" => {
            let code = black_box(body.to_vec());
            call(code.as_ptr() as u64, [0; 7])
        }
        "run-stack" => {
            let mut code = [0u8; 256];
            let n = body.len().min(256);
            code[..n].copy_from_slice(&body[..n]);
            call(black_box(&code).as_ptr() as u64, [0; 7])
        }
        "sym" => {
            let local = 0u8;
            let address = match name {
                "key" => key.as_ptr() as u64,
                "stack" => &raw const local as u64,
                "text" => answer as *const () as u64,
                name => gadgets::find(name),
            };
            format!("{address:x}").into_bytes()
        }
        "alloc" => {
            let layout = Layout::from_size_align(number() as usize, PAGE);
            // SAFETY: the layout is not empty; the memory is given away for ever.
            let at = layout.ok().filter(|l| l.size() > 0).map_or(0, |l| unsafe { alloc_zeroed(l) } as u64);
            format!("{at:x}").into_bytes()
        }
        "peek" => {
            let (at, len) = (number(), number().min(BODY as u64));
            // SAFETY: none. This is the hole.
            unsafe { std::slice::from_raw_parts(at as *const u8, len as usize) }.to_vec()
        }
        "poke" => {
            // SAFETY: none. This is the hole.
            unsafe { std::ptr::copy(body.as_ptr(), number() as *mut u8, body.len()) };
            b"done".to_vec()
        }
        "call" => {
            let at = number();
            call(at, std::array::from_fn(|_| number()))
        }
        _ => b"ok".to_vec(),
    }
}

fn call(at: u64, a: [u64; 7]) -> Vec<u8> {
    // SAFETY: none. This is the hole.
    let result = unsafe {
        let f: Function = std::mem::transmute(at as usize);
        f(a[0], a[1], a[2], a[3], a[4], a[5], a[6])
    };
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    format!("{result} {errno}").into_bytes()
}
