//! The access log: one JSON object a line, on standard output.

use hyper::header::{self, HeaderName};
use hyper::http::request::Parts;
use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

/// A line whose end is not known yet.
pub struct Line(String);

/// How a request ended.
pub struct End {
    /// The response's status.
    pub status: u16,
    /// Bytes of the body that were passed on to the connection.
    pub bytes: u64,
    /// From the request's head to the response's head, and to the end of its body.
    pub took: [Duration; 2],
    /// Whether all of the response was passed on.
    pub complete: bool,
}

impl Line {
    /// The beginning, now: who asks for what. `None` if a request's head was refused.
    pub fn new(peer: SocketAddr, request: Option<&Parts>) -> Line {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Line::at(now, peer, request)
    }

    fn at(now: Duration, peer: SocketAddr, request: Option<&Parts>) -> Line {
        let mut out = format!("{{\"time\":{}.{:03}", now.as_secs(), now.subsec_millis());
        let mut field = |name: &str, value: &str| {
            out.push_str(&format!(",\"{name}\":"));
            string(&mut out, value);
        };
        // A dual-stack listener's IPv4 clients have IPv6 addresses.
        let ip = peer.ip().to_canonical();
        field("client", &if peer.port() == 0 { ip.to_string() } else { SocketAddr::new(ip, peer.port()).to_string() });
        if let Some(r) = request {
            let value = |name: HeaderName| String::from_utf8_lossy(r.headers.get(name).map_or(b"", |v| v.as_bytes()));
            field("method", r.method.as_str());
            field("target", r.uri.path_and_query().map_or("*", |p| p.as_str()));
            field("version", &format!("{:?}", r.version));
            field("host", crate::respond::host(r).unwrap_or(""));
            field("agent", &value(header::USER_AGENT));
            field("referer", &value(header::REFERER));
        }
        Line(out)
    }

    /// Writes the line. A console that takes nothing loses whole log lines, and holds up no request.
    pub fn write(self, end: &End) {
        LOG.with_borrow_mut(|log| log.add(self.ended(end)));
    }

    fn ended(self, end: &End) -> String {
        let Line(mut out) = self;
        let [head, all] = end.took;
        out.push_str(&format!(
            ",\"status\":{},\"bytes\":{},\"micros\":{},\"total_micros\":{}",
            end.status,
            end.bytes,
            head.as_micros(),
            all.as_micros()
        ));
        out.push_str(if end.complete { "}\n" } else { ",\"complete\":false}\n" });
        out
    }
}

/// Where lines go, and what it has not taken yet of the last one.
struct Log<W> {
    out: Option<W>,
    rest: Vec<u8>,
}

// There is one thread.
thread_local!(static LOG: RefCell<Log<File>> = RefCell::new(Log { out: output(), rest: vec![] }));

/// Standard output, which does not wait for its reader from now on.
fn output() -> Option<File> {
    let out = std::io::stdout().as_fd().try_clone_to_owned().ok()?;
    socket2::SockRef::from(&out).set_nonblocking(true).ok()?;
    Some(File::from(out))
}

impl<W: Write> Log<W> {
    fn add(&mut self, line: String) {
        self.send();
        if self.rest.is_empty() {
            self.rest = line.into_bytes();
            self.send();
        }
    }

    fn send(&mut self) {
        let Some(out) = &mut self.out else { return };
        while !self.rest.is_empty()
            && let Ok(n @ 1..) = out.write(&self.rest)
        {
            self.rest.drain(..n);
        }
    }
}

/// A string as JSON has it, and Prometheus.
pub fn string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json_whatever_the_client_sends() {
        let request = hyper::Request::get("/a%22?x=\\").header("user-agent", "a\"b\tc\u{e9}").body(()).unwrap();
        let (request, ()) = request.into_parts();
        let peer = "[::ffff:10.0.0.1]:5".parse().unwrap();
        let line = || Line::at(Duration::from_millis(1_002), peer, Some(&request));
        let took = [7, 9].map(Duration::from_micros);
        let begun = "{\"time\":1.002,\"client\":\"10.0.0.1:5\",\"method\":\"GET\",\"target\":\"/a%22?x=\\\\\",\"version\":\"HTTP/1.1\",\
             \"host\":\"\",\"agent\":\"a\\\"b\\u0009c\u{e9}\",\"referer\":\"\",\"status\":200,\"bytes\":5,\"micros\":7,\"total_micros\":9";
        let end = End { status: 200, bytes: 5, took, complete: true };
        assert_eq!(line().ended(&end), format!("{begun}}}\n"));
        assert_eq!(line().ended(&End { complete: false, ..end }), format!("{begun},\"complete\":false}}\n"));
    }

    #[test]
    fn a_console_that_takes_little_gets_whole_lines() {
        /// Takes this many bytes more.
        struct Console(usize, Vec<u8>);
        impl Write for Console {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                let n = bytes.len().min(self.0);
                self.0 -= n;
                self.1.extend(&bytes[..n]);
                if n > 0 { Ok(n) } else { Err(std::io::ErrorKind::WouldBlock.into()) }
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut log = Log { out: Some(Console(8, vec![])), rest: vec![] };
        for line in ["one\n", "two two\n", "three\n"] {
            log.add(line.into());
        }
        log.out.as_mut().unwrap().0 = 100;
        log.add("four\n".into());
        assert_eq!(String::from_utf8(log.out.unwrap().1).unwrap(), "one\ntwo two\nfour\n");
    }
}
