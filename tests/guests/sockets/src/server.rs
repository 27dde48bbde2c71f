//! The server. The first byte of a connection says what the client wants:
//! - `H`: everything up to the client's FIN is hashed; the answer is `LENGTH HASH\n` (FNV-1a, 64 bits, hexadecimal).
//! - `B`, then a `u64` (little-endian): that many bytes, byte `i` being `(31 i + 7) mod 251`.
//! - `E`: everything is sent back.
//! - `L`: `LIVE\n`, the number of connections that are open, this one included.
//! - `X`: the guest ends with status 0.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};

static LIVE: AtomicU64 = AtomicU64::new(0);

pub fn main() {
    let address = std::env::args().nth(2).unwrap_or("0.0.0.0".to_owned());
    let listener = TcpListener::bind((address.as_str(), 9000)).expect("bind");
    println!("listening");
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                LIVE.fetch_add(1, Ordering::Relaxed);
                let spawned = std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
                    if let Err(e) = serve(stream) {
                        println!("connection: {e}");
                    }
                    LIVE.fetch_sub(1, Ordering::Relaxed);
                });
                if let Err(e) = spawned {
                    LIVE.fetch_sub(1, Ordering::Relaxed);
                    println!("no thread: {e}");
                }
            }
            Err(e) => println!("accept: {e}"),
        }
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut command = [0];
    stream.read_exact(&mut command)?;
    match command[0] {
        b'H' => {
            let (mut length, mut hash) = (0u64, 0xcbf2_9ce4_8422_2325u64);
            let mut buffer = vec![0; 32 << 10];
            loop {
                let n = stream.read(&mut buffer)?;
                if n == 0 {
                    break;
                }
                length += n as u64;
                for byte in &buffer[..n] {
                    hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
                }
            }
            writeln!(stream, "{length} {hash:016x}")
        }
        b'B' => {
            let mut length = [0; 8];
            stream.read_exact(&mut length)?;
            let mut left = u64::from_le_bytes(length);
            // A whole number of periods, so that one buffer serves for all.
            let block: Vec<u8> = (0..251 * 128u64).map(|i| ((i * 31 + 7) % 251) as u8).collect();
            while left > 0 {
                let n = left.min(block.len() as u64);
                stream.write_all(&block[..n as usize])?;
                left -= n;
            }
            stream.shutdown(Shutdown::Write)
        }
        b'E' => {
            let mut reader = stream.try_clone()?;
            io::copy(&mut reader, &mut stream)?;
            stream.shutdown(Shutdown::Write)
        }
        b'L' => writeln!(stream, "{}", LIVE.load(Ordering::Relaxed)),
        b'X' => std::process::exit(0),
        other => writeln!(stream, "unknown command {other}"),
    }
}
