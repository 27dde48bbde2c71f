//! A small HTTP/1.1 client for what curl cannot do: a hundred thousand connections from one process, half-closed
//! connections, clients that vanish. Where curl can do it, tests use curl.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, chunked encoding undone.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends a GET request that asks the server to close.
pub fn send_get(stream: &mut TcpStream, path: &str) -> io::Result<()> {
    // One write, so that one segment carries the request.
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").as_bytes())
}

/// Sends a GET request that keeps the connection.
pub fn send_get_keep_alive(stream: &mut impl Write, path: &str) -> io::Result<()> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes())
}

/// One request and its answer on a fresh connection.
pub fn get(mut stream: TcpStream, path: &str) -> io::Result<Response> {
    send_get(&mut stream, path)?;
    read_response(&mut BufReader::new(stream))
}

/// Reads one answer.
pub fn read_response(reader: &mut impl BufRead) -> io::Result<Response> {
    let status_line = line(reader)?;
    let status = status_line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split_ascii_whitespace().nth(1)?.parse().ok())
        .ok_or_else(|| invalid(format!("not a status line: {status_line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let line = line(reader)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| invalid(format!("not a header: {line:?}")))?;
        headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut response = Response { status, headers, body: Vec::new() };
    if response.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        loop {
            let size = line(reader)?;
            let size = u64::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)
                .map_err(|e| invalid(format!("chunk size {size:?}: {e}")))?;
            read_exactly(reader, size, &mut response.body)?;
            line(reader)?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = response.header("content-length") {
        let length = length.parse().map_err(|e| invalid(format!("content-length {length:?}: {e}")))?;
        read_exactly(reader, length, &mut response.body)?;
    } else {
        reader.read_to_end(&mut response.body)?;
    }
    Ok(response)
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}

fn read_exactly(reader: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> io::Result<()> {
    let got = reader.by_ref().take(length).read_to_end(body)? as u64;
    if got != length {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("body of {length} bytes ended after {got}")));
    }
    Ok(())
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_length_chunks_and_close() {
        let read = |text: &str| read_response(&mut text.as_bytes());
        let r = read("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloEXTRA").unwrap();
        assert_eq!((r.status, r.text().as_str()), (200, "hello"));
        let r =
            read("HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n").unwrap();
        assert_eq!((r.status, r.text().as_str()), (500, "hello!"));
        let r = read("HTTP/1.0 404 Gone\r\n\r\nrest").unwrap();
        assert_eq!((r.status, r.text().as_str()), (404, "rest"));
    }

    #[test]
    fn refuses_short_bodies_and_nonsense() {
        assert!(read_response(&mut &b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"[..]).is_err());
        assert!(read_response(&mut &b"SSH-2.0\r\n\r\n"[..]).is_err());
        assert!(read_response(&mut &b""[..]).is_err());
    }
}
