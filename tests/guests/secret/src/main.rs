//! `secret HOW`: waits for a connection and ends: with `exit`, `abort` or `fault`. It looks whether its secret is there but does not read it, so that it is in the
//! memory where the host has put it, and nowhere else.

use std::net::TcpListener;

fn main() {
    let how = std::env::args().nth(1).expect("exit, abort or fault");
    let listener = TcpListener::bind("0.0.0.0:9000").unwrap();
    println!("ready, a secret of {} bytes", std::fs::metadata("/run/secrets/needle").unwrap().len());
    listener.accept().unwrap();
    match &*how {
        "abort" => std::process::abort(),
        // SAFETY: there is none; the address is not mapped.
        "fault" => unsafe { std::ptr::with_exposed_provenance_mut::<u8>(16).write_volatile(1) },
        _ => std::process::exit(42),
    }
}
