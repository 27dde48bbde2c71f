//! A bare launcher: `donjon-monitor IMAGE [-p PUBLISH]… [--net NET] [-m MIB] [-e NAME=VALUE]… [--secret NAME=FILE]… [-- ARG…]`. The `donjon` command does the same with more comfort.

use std::process::ExitCode;

use donjon_monitor::{Engine, Protection, QemuOptions, RunOptions, run};

fn main() -> ExitCode {
    let (image, options) = match parse(std::env::args().skip(1)) {
        Ok(parsed) => parsed,
        Err(e) => {
            eprintln!("donjon-monitor: {e}");
            return ExitCode::from(2);
        }
    };
    match run(image.as_ref(), &options) {
        Ok(status) => {
            if !matches!(status, donjon_monitor::ExitStatus::Exited(_)) {
                donjon_monitor::say!("{status}");
            }
            ExitCode::from(status.code())
        }
        Err(e) => {
            eprintln!("donjon-monitor: {e}");
            if let Some(hint) = e.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(e.exit_code())
        }
    }
}

/// Tries what the jail must not allow, and tells what came of it. For the tests of the jail.
fn attempts() {
    use rustix::net::{SocketType, bind, connect, ipproto};
    const STREAM: SocketType = SocketType::STREAM;
    // As the monitor opens its own: others may be refused before the call that is tried.
    let socket = |kind, protocol| {
        use rustix::net::{AddressFamily, SocketFlags, socket_with};
        socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, protocol)
    };
    let local = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let tried = |result: rustix::io::Result<()>| match result {
        Err(rustix::io::Errno::INPROGRESS) => Ok(()),
        other => other.map_err(std::io::Error::from),
    };
    let tell = |what: &str, result: std::io::Result<()>| match result {
        Ok(()) => println!("{what}: FAILURE, it is allowed"),
        Err(e) => println!("{what}: refused, {e}"),
    };
    // What the command draws on a terminal, for one, has hash tables.
    println!("{} hash table", std::collections::HashSet::from([1]).len());
    tell("read a file", std::fs::File::open("/etc/passwd").map(drop));
    tell("list files", std::fs::read_dir("/").map(drop));
    tell("write a file", std::fs::write("/tmp/donjon-jail-test", b"x"));
    tell("read another process", std::fs::read("/proc/1/environ").map(drop));
    tell("start a program", std::process::Command::new("/bin/true").spawn().map(drop));
    tell("listen", tried(socket(STREAM, None).and_then(|s| bind(&s, &local(0)))));
    tell("connect", tried(socket(STREAM, None).and_then(|s| connect(&s, &local(1)))));
    tell("connect by sending", tried(socket(STREAM, None).and_then(|s| fast_open(&s, local(1)))));
    tell(
        "connect by sending a message",
        tried(socket(STREAM, None).and_then(|s| fast_open_with_message(&s, local(1)))),
    );
    tell("connect by MPTCP", tried(socket(STREAM, Some(ipproto::MPTCP)).and_then(|s| connect(&s, &local(1)))));
    tell("bind a datagram socket", tried(socket(SocketType::DGRAM, None).and_then(|s| bind(&s, &local(0)))));
    tell("open a Unix socket", std::os::unix::net::UnixDatagram::unbound().map(drop));
    tell("start a thread", std::thread::Builder::new().spawn(|| ()).map(drop));
}

/// A connection attempt without `connect` (tcp(7), TCP Fast Open).
fn fast_open(socket: &std::os::fd::OwnedFd, to: std::net::SocketAddr) -> rustix::io::Result<()> {
    let flags = rustix::net::SendFlags::from_bits_retain(libc::MSG_FASTOPEN as u32);
    rustix::net::sendto(socket, b"x", flags, &to).map(drop)
}

/// The same by `sendmsg`.
fn fast_open_with_message(socket: &std::os::fd::OwnedFd, to: std::net::SocketAddr) -> rustix::io::Result<()> {
    let (bytes, flags) =
        ([std::io::IoSlice::new(b"x")], rustix::net::SendFlags::from_bits_retain(libc::MSG_FASTOPEN as u32));
    rustix::net::sendmsg_addr(socket, &to, &bytes, &mut Default::default(), flags).map(drop)
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<(String, RunOptions), String> {
    let mut options = RunOptions::default();
    let mut image = None;
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "-p" => options.publish.push(value()?.parse().map_err(|e| format!("{e}"))?),
            "--net" => options.net = value()?.parse().map_err(|e| format!("{e}"))?,
            "--engine" => {
                options.engine = match value()?.as_str() {
                    "process" => Engine::Process,
                    "qemu" => Engine::Qemu(QemuOptions::default()),
                    other => return Err(format!("there is no engine {other}; expected process or qemu")),
                }
            }
            "--machine" => {
                let machine = value()?.parse().map_err(|e| format!("{e}"))?;
                options.engine = Engine::Qemu(QemuOptions { machine, ..QemuOptions::default() });
            }
            "--qemu-arg" | "--qemu-unconfined" => {
                let Engine::Qemu(qemu) = &mut options.engine else {
                    return Err(format!("{arg} comes after --engine qemu"));
                };
                match arg.as_str() {
                    "--qemu-arg" => qemu.extra.push(value()?),
                    _ => qemu.unconfined = true,
                }
            }
            "-m" => options.memory = Some(value()?.parse::<u64>().map_err(|e| format!("-m: {e}"))? << 20),
            "--secret" => options.secrets.push(value()?.parse().map_err(|e| format!("{e}"))?),
            "-e" => options.env.push(value()?),
            "--listen-any" => options.listen_any = true,
            "--egress-any" => options.egress_any = true,
            "--limit-connections" => {
                options.limit_connections = Some(value()?.parse().map_err(|e| format!("--limit-connections: {e}"))?)
            }
            "--limit-send" => options.limit_send = Some(value()?.parse().map_err(|e| format!("--limit-send: {e}"))?),
            "--explain-jail" => options.explain_jail = Some(donjon_monitor::jail::Explain::Text),
            "--explain-jail-json" => options.explain_jail = Some(donjon_monitor::jail::Explain::Json),
            "--without-rule" => options.without_rule = Some(value()?.leak()),
            "--in-jail" => options.in_jail = Some(attempts),
            "--monitor-without-rule" => options.monitor_without_rule = Some(value()?.leak()),
            "--monitor-memory" => {
                options.monitor_memory = Some(value()?.parse().map_err(|e| format!("--monitor-memory: {e}"))?)
            }
            "--held" => options.held = Some(value()?.parse().map_err(|e| format!("--held: {e}"))?),
            "--relay-tap" => options.relay_tap = true,
            "--without" => options.without.push(match value()?.as_str() {
                "frames" => Protection::Frames,
                "calls" => Protection::Calls,
                "jail" => Protection::Jail,
                other => return Err(format!("--without takes frames, calls or jail, not {other}")),
            }),
            "-v" => options.verbose = true,
            "--stop-timeout-ms" => {
                let millis = value()?.parse().map_err(|e| format!("{e}"))?;
                options.stop_timeout = Some(std::time::Duration::from_millis(millis));
            }
            "--" => options.args = Some(args.by_ref().collect()),
            _ if arg.starts_with('-') => return Err(format!("unknown option {arg}")),
            _ if image.is_none() => image = Some(arg),
            _ => return Err(format!("unexpected {arg}")),
        }
    }
    Ok((image.ok_or("no image given")?, options))
}
