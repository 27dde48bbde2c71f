//! TCP sockets.

use super::{destination, err, fitting, plain, shown, stack_domain};
use crate::errno::{Errno, Result};
use crate::fd::watch::{Watch, events};
use crate::fd::{self, Anon, Ctl, File, FileRef, Object, Woken};
use crate::fs::{Stat, kind};
use crate::netif;
use crate::socket::option::{self, IPPROTO_TCP, SOL_SOCKET, so, tcp};
use crate::socket::policy;
use crate::socket::{Addr, Common, How, Received, SOCK_STREAM, Socket, Value, msg};
use core::cell::Cell;
use donjon_net::{Error, Handle, KeepAlive, Ready, RecvMode, Shutdown, TcpOptions, TcpState};

/// What Linux says for keep-alive parameters that nobody has set.
const KEEP_ALIVE: KeepAlive = KeepAlive { idle: 7200, interval: 75, count: 9 };

struct Tcp {
    handle: Handle,
    common: Common,
    /// The peer is this machine.
    local: Cell<bool>,
    /// Parameters while keep-alive is off; the stack knows them only while it is on.
    keep_alive: Cell<KeepAlive>,
    watch: Watch,
}

/// A new socket.
pub fn socket(domain: i32, status: i32) -> Result<FileRef> {
    fd::headroom()?;
    let handle = netif::with(|s| s.tcp_socket(stack_domain(domain)))?.map_err(err)?;
    open(handle, Common::new(domain, SOCK_STREAM, IPPROTO_TCP), false, status)
}

fn open(handle: Handle, common: Common, local: bool, status: i32) -> Result<FileRef> {
    let tcp = Tcp { handle, common, local: Cell::new(local), keep_alive: Cell::new(KEEP_ALIVE), watch: Watch::new() };
    // If this fails, dropping `tcp` closes the handle.
    let file = fd::open_file(tcp, fd::O_RDWR | status)?;
    netif::own(handle, &file)?;
    Ok(file)
}

impl Tcp {
    fn ready_bits(&self) -> Ready {
        netif::with(|s| s.readiness(self.handle)).unwrap_or_default()
    }

    fn options(&self) -> Result<TcpOptions> {
        netif::with(|s| s.tcp_options(self.handle))?.map_err(err)
    }

    fn set_options(&self, change: impl FnOnce(&mut TcpOptions)) -> Result<()> {
        let mut options = self.options()?;
        change(&mut options);
        netif::with(|s| s.set_tcp_options(self.handle, options))?.map_err(err)?;
        netif::flush_to(self.local.get());
        Ok(())
    }

    fn keep_alive_now(&self) -> Result<(bool, KeepAlive)> {
        let on = self.options()?.keep_alive;
        Ok((on.is_some(), on.unwrap_or(self.keep_alive.get())))
    }

    fn set_keep_alive(&self, on: bool, value: KeepAlive) -> Result<()> {
        self.keep_alive.set(value);
        self.set_options(|o| o.keep_alive = on.then_some(value))
    }

    fn info(&self) -> Result<Value> {
        let i = netif::with(|s| s.tcp_info(self.handle))?.map_err(err)?;
        let mut b = [0; option::VALUE_MAX];
        let mut put = |at: usize, v: u32| b[at..at + 4].copy_from_slice(&v.to_ne_bytes());
        // struct tcp_info of linux/tcp.h: eight bytes of flags, then 32-bit fields.
        put(8, i.rto_us);
        put(16, u32::from(i.send_mss));
        put(68, i.rtt_us);
        put(72, i.rtt_var_us);
        put(76, i.slow_start_threshold);
        put(80, i.congestion_window / u32::from(i.send_mss).max(1));
        put(84, u32::from(i.send_mss));
        put(100, i.retransmits);
        b[0] = i.state as u8;
        // Up to and with tcpi_total_retrans, as older kernels answer.
        Ok(Value::new(&b[..104]))
    }
}

fn positive(value: &[u8], max: i32) -> Result<u32> {
    match option::int(value)? {
        v if v >= 1 && v <= max => Ok(v as u32),
        _ => Err(Errno::EINVAL),
    }
}

impl Socket for Tcp {
    fn common(&self) -> &Common {
        &self.common
    }

    fn bind(&self, addr: &Addr) -> Result<()> {
        let addr = fitting(self.common.domain, addr)?;
        let options = super::bind_options(&self.common);
        netif::with(|s| s.bind(self.handle, addr, options))?.map_err(err)
    }

    fn listen(&self, backlog: u32) -> Result<()> {
        let local = netif::with(|s| s.local_addr(self.handle))?.map_err(err)?;
        policy::serve(IPPROTO_TCP, local)?;
        netif::with(|s| s.listen(self.handle, backlog.clamp(1, 4096)))?.map_err(err)?;
        self.common.listening.set(true);
        Ok(())
    }

    fn accept(&self, flags: i32) -> Result<(FileRef, Addr)> {
        if !self.common.listening.get() {
            return Err(Errno::EINVAL);
        }
        fd::headroom()?;
        let (handle, peer) = netif::with(|s| s.accept(self.handle))?.map_err(err)?;
        // Another SYN may be answered now.
        netif::flush();
        let file = open(handle, self.common.inherited(), netif::is_local(peer.ip()), flags)?;
        Ok((file, shown(self.common.domain, peer)))
    }

    fn before_connect(&self, addr: &Addr) -> Result<()> {
        match addr {
            Addr::Inet(a) => netif::await_address(plain(a.ip())),
            _ => Ok(()),
        }
    }

    fn connect(&self, addr: &Addr) -> Result<()> {
        let addr = destination(self.common.domain, addr)?;
        policy::dial(addr)?;
        netif::with(|s| s.connect(self.handle, addr))?.map_err(err)?;
        self.local.set(netif::is_local(addr.ip()));
        netif::flush_now();
        // Over loopback the answer may be there already.
        match self.connected() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Errno::EINPROGRESS),
            Err(e) => Err(e),
        }
    }

    fn connected(&self) -> Result<bool> {
        if let Some(e) = self.take_error() {
            return Err(e);
        }
        let state = netif::with(|s| s.tcp_info(self.handle))?.map_err(err)?.state;
        match state {
            TcpState::SynSent | TcpState::SynReceived => Ok(false),
            TcpState::Closed => Err(Errno::ECONNABORTED),
            _ => Ok(true),
        }
    }

    fn send(&self, bufs: &[&[u8]], _to: Option<&Addr>, flags: i32) -> Result<usize> {
        let more = flags & msg::MORE != 0;
        let n = netif::with(|s| if more { s.send_more(self.handle, bufs) } else { s.send(self.handle, bufs) })?
            .map_err(|e| match e {
                // What Linux's TCP says before there is a connection.
                Error::NotConnected => Errno::EPIPE,
                e => err(e),
            })?;
        netif::flush_to(self.local.get());
        Ok(n)
    }

    fn recv(&self, bufs: &mut [&mut [u8]], flags: i32) -> Result<Received> {
        let mode = if flags & msg::PEEK != 0 { RecvMode::Peek } else { RecvMode::Take };
        let n = netif::with(|s| s.recv(self.handle, bufs, mode))?.map_err(err)?;
        netif::flush_to(self.local.get());
        Ok(Received { copied: n, len: n, from: None })
    }

    fn shutdown(&self, how: How) -> Result<()> {
        let how = match how {
            How::Read => Shutdown::Read,
            How::Write => Shutdown::Write,
            How::Both => Shutdown::Both,
        };
        netif::with(|s| s.shutdown(self.handle, how))?.map_err(err)?;
        netif::flush_to(self.local.get());
        self.watch.notify(events::ALL);
        Ok(())
    }

    fn local(&self) -> Result<Addr> {
        let addr = netif::with(|s| s.local_addr(self.handle))?.map_err(err)?;
        Ok(shown(self.common.domain, addr))
    }

    fn peer(&self) -> Result<Addr> {
        let addr = netif::with(|s| s.peer_addr(self.handle))?.map_err(err)?;
        Ok(shown(self.common.domain, addr))
    }

    fn take_error(&self) -> Option<Errno> {
        netif::with(|s| s.take_error(self.handle)).ok().flatten().map(err)
    }

    fn option(&self, level: i32, name: i32) -> Result<Value> {
        let int = |n: u32| Ok(Value::int(i32::try_from(n).unwrap_or(i32::MAX)));
        match (level, name) {
            (SOL_SOCKET, so::KEEPALIVE) => int(self.keep_alive_now()?.0.into()),
            (SOL_SOCKET, so::SNDBUF) => int(self.options()?.send_buffer.unwrap_or(128 << 10)),
            (SOL_SOCKET, so::RCVBUF) => int(self.options()?.receive_buffer.unwrap_or(128 << 10)),
            (SOL_SOCKET, so::OOBINLINE) => int(0),
            (IPPROTO_TCP, tcp::NODELAY) => int(self.options()?.nodelay.into()),
            (IPPROTO_TCP, tcp::CORK) => int(self.options()?.cork.into()),
            // A new socket has it on, as in Linux.
            (IPPROTO_TCP, tcp::QUICKACK) => int(self.options()?.quick_ack.unwrap_or(true).into()),
            (IPPROTO_TCP, tcp::KEEPIDLE) => int(self.keep_alive_now()?.1.idle),
            (IPPROTO_TCP, tcp::KEEPINTVL) => int(self.keep_alive_now()?.1.interval),
            (IPPROTO_TCP, tcp::KEEPCNT) => int(self.keep_alive_now()?.1.count.into()),
            (IPPROTO_TCP, tcp::USER_TIMEOUT) => int(self.options()?.user_timeout),
            (IPPROTO_TCP, tcp::MAXSEG) => {
                int(netif::with(|s| s.tcp_info(self.handle))?.map_or(536, |i| u32::from(i.send_mss)))
            }
            (IPPROTO_TCP, tcp::INFO) => self.info(),
            _ => super::ip_option(self.handle, &self.common, level, name).unwrap_or(Err(Errno::ENOPROTOOPT)),
        }
    }

    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> Result<()> {
        match (level, name) {
            (SOL_SOCKET, so::KEEPALIVE) => self.set_keep_alive(option::int(value)? != 0, self.keep_alive_now()?.1),
            // As in Linux, twice what was asked for, and at least a little.
            (SOL_SOCKET, so::SNDBUF) => {
                let size = (option::int(value)?.max(0) as u32).saturating_mul(2).max(4608);
                self.set_options(|o| o.send_buffer = Some(size))
            }
            (SOL_SOCKET, so::RCVBUF) => {
                let size = (option::int(value)?.max(0) as u32).saturating_mul(2).max(2304);
                self.set_options(|o| o.receive_buffer = Some(size))
            }
            (IPPROTO_TCP, tcp::NODELAY) => {
                let on = option::int(value)? != 0;
                self.set_options(|o| o.nodelay = on)
            }
            (IPPROTO_TCP, tcp::CORK) => {
                let on = option::int(value)? != 0;
                self.set_options(|o| o.cork = on)
            }
            (IPPROTO_TCP, tcp::QUICKACK) => {
                let on = option::int(value)? != 0;
                self.set_options(|o| o.quick_ack = Some(on))
            }
            (IPPROTO_TCP, tcp::KEEPIDLE | tcp::KEEPINTVL | tcp::KEEPCNT) => {
                let (on, mut keep) = self.keep_alive_now()?;
                match name {
                    tcp::KEEPIDLE => keep.idle = positive(value, 32767)?,
                    tcp::KEEPINTVL => keep.interval = positive(value, 32767)?,
                    _ => keep.count = positive(value, 127)? as u8,
                }
                self.set_keep_alive(on, keep)
            }
            (IPPROTO_TCP, tcp::USER_TIMEOUT) => {
                let ms = u32::try_from(option::int(value)?).map_err(|_| Errno::EINVAL)?;
                self.set_options(|o| o.user_timeout = ms)
            }
            _ => super::set_ip_option(self.handle, &self.common, level, name, value).unwrap_or(Err(Errno::ENOPROTOOPT)),
        }
    }
}

impl Object for Tcp {
    fn read(&self, _ctl: &Ctl, bufs: &mut [&mut [u8]]) -> Result<usize> {
        Ok(self.recv(bufs, 0)?.copied)
    }

    fn write(&self, _ctl: &Ctl, bufs: &[&[u8]]) -> Result<usize> {
        self.send(bufs, None, 0)
    }

    fn ready(&self) -> u32 {
        netif::poll_bits(self.ready_bits())
    }

    fn watch(&self) -> Option<&Watch> {
        Some(&self.watch)
    }

    fn stat(&self) -> Stat {
        Stat { mode: kind::SOCKET | 0o777, ..Anon::stat() }
    }

    fn as_any(&self) -> &dyn core::any::Any {
        self
    }

    fn available(&self) -> Result<usize> {
        if self.common.listening.get() {
            return Err(Errno::EINVAL);
        }
        Ok(netif::with(|s| s.tcp_info(self.handle))?.map_err(err)?.receive_queue as usize)
    }

    fn unsent(&self) -> Result<usize> {
        if self.common.listening.get() {
            return Err(Errno::EINVAL);
        }
        Ok(netif::with(|s| s.tcp_info(self.handle))?.map_err(err)?.send_queue as usize)
    }

    fn socket(&self) -> Option<&dyn Socket> {
        Some(self)
    }

    fn timeout(&self, reading: bool) -> Option<u64> {
        if reading { self.common.receive_timeout.get() } else { self.common.send_timeout.get() }
    }

    /// `SO_LINGER` with a time: `close` waits until the peer has everything.
    fn closing(&self, file: &File<dyn Object>) {
        let Some(seconds @ 1..) = self.common.linger.get() else { return };
        if file.ctl.nonblocking() || netif::with(|s| s.shutdown(self.handle, Shutdown::Write)) != Ok(Ok(())) {
            return;
        }
        netif::flush_to(self.local.get());
        let deadline = donjon_base::clock::monotonic().saturating_add(u64::from(seconds) * 1_000_000_000);
        let done = || netif::with(|s| s.tcp_info(self.handle).map_or(true, |i| i.send_queue == 0)).unwrap_or(true);
        while !done() {
            match fd::wait_on(&self.watch, events::ALL, Some(deadline)) {
                Ok(Woken::Event) => {}
                _ => break,
            }
        }
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        netif::disown(self.handle);
        // Fails only if there is no stack, and then there is no handle either.
        let _ =
            netif::with(
                |s| {
                    if self.common.linger.get() == Some(0) { s.abort(self.handle) } else { s.close(self.handle) }
                },
            );
        netif::flush_to(self.local.get());
    }
}
