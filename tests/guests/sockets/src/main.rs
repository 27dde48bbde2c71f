//! `sockets selftest`: what std::net promises, over loopback inside the guest. `sockets server [ADDRESS]`: a plain TCP server on port 9000, a
//! thread for each connection, for tests that need what HTTP servers hide.

mod selftest;
mod server;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("selftest") => selftest::main(),
        Some("server") => server::main(),
        other => {
            eprintln!("selftest or server, not {other:?}");
            std::process::exit(2);
        }
    }
}
