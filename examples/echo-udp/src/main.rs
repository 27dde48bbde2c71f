//! Sends every datagram back to where it came from.

use std::{env, io, net::UdpSocket};

fn main() -> io::Result<()> {
    let port = env::var("PORT").ok().and_then(|p| p.parse().ok()).unwrap_or(7777);
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    println!("listening on {}/udp", socket.local_addr()?);
    let mut buffer = vec![0; 65_536];
    loop {
        let (len, peer) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            // An ICMP error about an earlier answer is no reason to end.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(e) => return Err(e),
        };
        if let Err(e) = socket.send_to(&buffer[..len], peer) {
            eprintln!("{peer}: {e}");
        }
    }
}
