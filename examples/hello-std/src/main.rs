//! A web server with nothing but the standard library: one thread per connection, keep-alive, read timeouts.

use std::{
    env,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

const PAGE: &str = "Hello\n";

fn main() -> io::Result<()> {
    let port = env::var("PORT").ok().and_then(|p| p.parse().ok()).unwrap_or(8080);
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening on {}", listener.local_addr()?);
    for stream in listener.incoming() {
        // A client that has gone, or too many connections: the next one may work.
        let stream = match stream {
            Ok(stream) => stream,
            Err(e) => {
                eprintln!("accept: {e}");
                thread::sleep(Duration::from_millis(10));
                continue;
            }
        };
        let spawned = thread::Builder::new().stack_size(64 << 10).spawn(move || {
            if let Err(e) = serve(stream) {
                eprintln!("connection: {e}");
            }
        });
        if let Err(e) = spawned {
            eprintln!("thread: {e}");
        }
    }
    Ok(())
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    loop {
        line.clear();
        match reader.read_line(&mut line) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // Idle for too long, or gone.
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionReset) => return Ok(()),
            Err(e) => return Err(e),
        }
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (status, body) = match (method, path) {
            ("GET", "/") => ("200 OK", PAGE),
            ("GET", _) => ("404 Not Found", "not found\n"),
            _ => ("405 Method Not Allowed", "only GET\n"),
        };
        let mut keep = words.next() == Some("HTTP/1.1");
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let header = line.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("connection:") {
                keep = value.trim() != "close" && (keep || value.trim() == "keep-alive");
            }
        }
        let connection = if keep { "keep-alive" } else { "close" };
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: {connection}\r\n\r\n{body}"
        );
        stream.write_all(answer.as_bytes())?;
        if !keep {
            return Ok(());
        }
    }
}
