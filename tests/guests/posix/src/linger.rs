//! `SO_LINGER`, which std has not.

use crate::{Outcome, ensure, fails_with};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

fn text(e: std::io::Error) -> String {
    format!("{e} ({:?})", e.raw_os_error())
}

fn set(stream: &TcpStream, on: i32, seconds: i32) -> Outcome {
    let value = libc::linger { l_onoff: on, l_linger: seconds };
    let size = size_of::<libc::linger>() as u32;
    let at = (&raw const value).cast();
    let result = unsafe { libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, at, size) };
    ensure(result == 0, format!("setsockopt: {}", std::io::Error::last_os_error()))
}

fn get(stream: &TcpStream) -> Result<(i32, i32), String> {
    let mut value = libc::linger { l_onoff: 7, l_linger: 7 };
    let mut size = size_of::<libc::linger>() as u32;
    let at = (&raw mut value).cast();
    let result = unsafe { libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, at, &mut size) };
    ensure(result == 0 && size as usize == size_of::<libc::linger>(), "getsockopt")?;
    Ok((value.l_onoff, value.l_linger))
}

fn pair() -> Result<(TcpStream, TcpStream), String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
    let client = TcpStream::connect(listener.local_addr().map_err(text)?).map_err(text)?;
    Ok((client, listener.accept().map_err(text)?.0))
}

/// Writes until the peer, who does not read, takes no more.
fn fill(stream: &TcpStream) -> Result<usize, String> {
    stream.set_nonblocking(true).map_err(text)?;
    let (block, mut sent) = (vec![7; 64 << 10], 0);
    let full = loop {
        match (&mut &*stream).write(&block) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => break Ok(sent),
            Err(e) => break Err(text(e)),
        }
    };
    stream.set_nonblocking(false).map_err(text)?;
    full
}

pub fn all() -> Outcome {
    let (client, _server) = pair()?;
    ensure(get(&client)? == (0, 0), format!("at first: {:?}", get(&client)?))?;
    set(&client, 1, 3)?;
    ensure(get(&client)? == (1, 3), format!("set: {:?}", get(&client)?))?;
    set(&client, 0, 0)?;
    ensure(get(&client)?.0 == 0, "not off")?;
    let size = 4;
    let at = (&raw const size).cast();
    let result = unsafe { libc::setsockopt(client.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, at, size) };
    fails_with(result as isize, libc::EINVAL, "half a struct linger")?;

    // 0: what was not sent is thrown away, and the peer sees a reset.
    let (client, mut server) = pair()?;
    set(&client, 1, 0)?;
    fill(&client)?;
    drop(client);
    let error = server.read_to_end(&mut Vec::new()).err().map(|e| e.kind());
    ensure(error == Some(ErrorKind::ConnectionReset), format!("after linger 0: {error:?}"))?;

    // A time that is over before the peer reads: close returns then, and not before.
    let (client, server) = pair()?;
    set(&client, 1, 1)?;
    fill(&client)?;
    let started = Instant::now();
    drop(client);
    let took = started.elapsed();
    ensure(took >= Duration::from_millis(990), format!("close waited {took:?} for a peer that does not read"))?;
    drop(server);

    // Without the option it returns at once, and the peer still gets everything.
    let (client, mut server) = pair()?;
    let sent = fill(&client)?;
    let started = Instant::now();
    drop(client);
    let took = started.elapsed();
    ensure(took < Duration::from_secs(10), format!("close without linger took {took:?}"))?;
    let mut got = Vec::new();
    server.read_to_end(&mut got).map_err(text)?;
    ensure(got.len() == sent, format!("{} of {sent} bytes without linger", got.len()))?;

    // A peer that reads later: close waits until it has everything.
    let (client, mut server) = pair()?;
    set(&client, 1, 60)?;
    let sent = fill(&client)?;
    let pause = Duration::from_millis(300);
    let reader = thread::spawn(move || {
        // This is what close is to wait for.
        thread::sleep(pause);
        let mut got = Vec::new();
        server.read_to_end(&mut got).map(|_| got.len())
    });
    let started = Instant::now();
    drop(client);
    let took = started.elapsed();
    ensure(took >= pause && took < Duration::from_secs(50), format!("close took {took:?} with linger 60"))?;
    let got = reader.join().map_err(|_| "the reader panicked")?.map_err(text)?;
    ensure(got == sent, format!("{got} of {sent} bytes with linger"))
}

/// Ends while a connection from outside is open, with an answer that has just been written.
pub fn exit() -> Outcome {
    let listener = TcpListener::bind("0.0.0.0:9000").map_err(text)?;
    println!("listening");
    let (mut stream, _) = listener.accept().map_err(text)?;
    stream.read_exact(&mut [0; 4]).map_err(text)?;
    // A first one, after which the next is not sent at once; together they are less than a new connection may send.
    stream.write_all(&[1; 100]).map_err(text)?;
    stream.write_all(&[2; 10_000]).map_err(text)?;
    std::process::exit(0)
}

/// Ends one connection from outside with a reset, and one when the peer has everything, which keeps its own half open.
pub fn serve() -> Outcome {
    let listener = TcpListener::bind("0.0.0.0:9000").map_err(text)?;
    println!("listening");
    let (mut stream, _) = listener.accept().map_err(text)?;
    stream.read_exact(&mut [0; 4]).map_err(text)?;
    set(&stream, 1, 0)?;
    drop(stream);
    let (mut stream, _) = listener.accept().map_err(text)?;
    set(&stream, 1, 3600)?;
    stream.write_all(b"hello").map_err(text)?;
    let started = Instant::now();
    drop(stream);
    let took = started.elapsed();
    ensure(took < Duration::from_secs(50), format!("close took {took:?} with linger 3600"))
}
