//! A client: fetches a page over HTTP, or looks a name up.
//!
//! `outbound http://HOST[:PORT]/PATH` prints the body; `outbound dns NAME` prints the addresses. Without arguments the variable `TARGET`
//! says what to fetch. Ends with status 1 if that did not work.

use std::{
    env,
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    process::ExitCode,
    time::Duration,
};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let target = env::var("TARGET").unwrap_or_default();
    let done = match args.as_slice() {
        ["dns", name] => lookup(name),
        [url] => fetch(url),
        [] if !target.is_empty() => fetch(&target),
        _ => {
            eprintln!("usage: outbound http://HOST[:PORT]/PATH | dns NAME");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn lookup(name: &str) -> io::Result<()> {
    for address in (name, 0).to_socket_addrs()? {
        println!("{}", address.ip());
    }
    Ok(())
}

fn fetch(url: &str) -> io::Result<()> {
    let bad = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
    let rest = url.strip_prefix("http://").ok_or_else(|| bad("only http:// is understood"))?;
    let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let port = if host.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok()) { "" } else { ":80" };
    let timeout = Duration::from_secs(10);
    let mut last = bad("the name has no address");
    for address in format!("{host}{port}").to_socket_addrs()? {
        let mut stream = match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => stream,
            Err(e) => {
                last = e;
                continue;
            }
        };
        stream.set_read_timeout(Some(timeout))?;
        write!(stream, "GET {path} HTTP/1.0\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let at =
            answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(|| bad("the answer has no end of headers"))?;
        io::stdout().write_all(&answer[at + 4..])?;
        let head = String::from_utf8_lossy(&answer[..at]);
        let status = head.split_whitespace().nth(1).unwrap_or_default().to_owned();
        return if status == "200" { Ok(()) } else { Err(io::Error::other(format!("the server said {status}"))) };
    }
    Err(last)
}
