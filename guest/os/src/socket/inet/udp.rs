//! UDP sockets.

use super::{destination, err, fitting, plain, shown, stack_domain};
use crate::errno::{Errno, Result};
use crate::fd::watch::{Watch, events};
use crate::fd::{self, Anon, Ctl, FileRef, Object};
use crate::fs::{Stat, kind};
use crate::netif;
use crate::socket::option::{self, IPPROTO_UDP, SOL_SOCKET, so};
use crate::socket::policy;
use crate::socket::{Addr, Common, How, Received, SOCK_DGRAM, Socket, Value, msg};
use core::cell::Cell;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use donjon_net::{Error, Handle, RecvMode};

/// Linux's default of both buffers, bytes.
const BUFFER: u32 = 212_992;

struct Udp {
    handle: Handle,
    common: Common,
    /// The peer is this machine.
    local: Cell<bool>,
    /// Receive and send buffer, as `getsockopt` shows them.
    buffers: Cell<(u32, u32)>,
    /// Halves that are shut down.
    read_shut: Cell<bool>,
    write_shut: Cell<bool>,
    watch: Watch,
}

/// A new socket.
pub fn socket(domain: i32, status: i32) -> Result<FileRef> {
    fd::headroom()?;
    let handle = netif::with(|s| s.udp_socket(stack_domain(domain)))?.map_err(err)?;
    let udp = Udp {
        handle,
        common: Common::new(domain, SOCK_DGRAM, IPPROTO_UDP),
        local: Cell::new(false),
        buffers: Cell::new((BUFFER, BUFFER)),
        read_shut: Cell::new(false),
        write_shut: Cell::new(false),
        watch: Watch::new(),
    };
    let file = fd::open_file(udp, fd::O_RDWR | status)?;
    netif::own(handle, &file)?;
    Ok(file)
}

impl Udp {
    fn may_reach(&self, remote: SocketAddr) -> Result<()> {
        let local = || {
            netif::with(|s| s.local_addr(self.handle)).ok().and_then(core::result::Result::ok).map_or(0, |a| a.port())
        };
        policy::reach(IPPROTO_UDP, local, remote)
    }

    fn set_buffers(&self, receive: u32, send: u32) -> Result<()> {
        netif::with(|s| s.set_udp_buffers(self.handle, receive, send))?.map_err(err)?;
        self.buffers.set((receive, send));
        Ok(())
    }
}

impl Socket for Udp {
    fn common(&self) -> &Common {
        &self.common
    }

    fn bind(&self, addr: &Addr) -> Result<()> {
        let addr = fitting(self.common.domain, addr)?;
        policy::bind_datagram(addr)?;
        let options = super::bind_options(&self.common);
        netif::with(|s| s.bind(self.handle, addr, options))?.map_err(err)
    }

    fn before_connect(&self, addr: &Addr) -> Result<()> {
        match addr {
            Addr::Inet(a) => netif::await_address(plain(a.ip())),
            _ => Ok(()),
        }
    }

    fn connect(&self, addr: &Addr) -> Result<()> {
        if *addr == Addr::Unspecified {
            return netif::with(|s| s.disconnect(self.handle))?.map_err(err);
        }
        let addr = destination(self.common.domain, addr)?;
        self.may_reach(addr)?;
        netif::with(|s| s.connect(self.handle, addr))?.map_err(err)?;
        self.local.set(netif::is_local(addr.ip()));
        Ok(())
    }

    fn send(&self, bufs: &[&[u8]], to: Option<&Addr>, _flags: i32) -> Result<usize> {
        if self.write_shut.get() {
            return Err(Errno::EPIPE);
        }
        let to = to.map(|a| destination(self.common.domain, a)).transpose()?;
        if let Some(to) = to {
            self.may_reach(to)?;
        }
        let broadcast = IpAddr::V4(Ipv4Addr::BROADCAST);
        if to.is_some_and(|t| plain(t.ip()) == broadcast) && !self.common.broadcast.get() {
            return Err(Errno::EACCES);
        }
        let send = || netif::with(|s| s.send_to(self.handle, bufs, to, None));
        let n = match send()? {
            // Full of datagrams that only wait for company.
            Err(Error::WouldBlock) => {
                netif::flush_now();
                send()?
            }
            done => done,
        };
        let local = match to {
            Some(to) => netif::is_local(to.ip()),
            None => self.local.get(),
        };
        netif::flush_to(local);
        n.map_err(err)
    }

    fn recv(&self, bufs: &mut [&mut [u8]], flags: i32) -> Result<Received> {
        let mode = if flags & msg::PEEK != 0 { RecvMode::Peek } else { RecvMode::Take };
        match netif::with(|s| s.recv_from(self.handle, bufs, mode))? {
            Ok(d) => Ok(Received { copied: d.copied, len: d.len, from: Some(shown(self.common.domain, d.from)) }),
            Err(Error::WouldBlock) if self.read_shut.get() => Ok(Received::default()),
            Err(e) => Err(err(e)),
        }
    }

    fn shutdown(&self, how: How) -> Result<()> {
        self.peer()?;
        self.read_shut.set(self.read_shut.get() || how != How::Write);
        self.write_shut.set(self.write_shut.get() || how != How::Read);
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
        let (receive, send) = self.buffers.get();
        match (level, name) {
            (SOL_SOCKET, so::RCVBUF) => Ok(Value::int(receive as i32)),
            (SOL_SOCKET, so::SNDBUF) => Ok(Value::int(send as i32)),
            (SOL_SOCKET, so::KEEPALIVE) => Ok(Value::int(0)),
            _ => super::ip_option(self.handle, &self.common, level, name).unwrap_or(Err(Errno::ENOPROTOOPT)),
        }
    }

    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> Result<()> {
        let (receive, send) = self.buffers.get();
        match (level, name) {
            (SOL_SOCKET, so::RCVBUF) => {
                self.set_buffers((option::int(value)?.max(0) as u32).saturating_mul(2).max(2304), send)
            }
            (SOL_SOCKET, so::SNDBUF) => {
                self.set_buffers(receive, (option::int(value)?.max(0) as u32).saturating_mul(2).max(4608))
            }
            _ => super::set_ip_option(self.handle, &self.common, level, name, value).unwrap_or(Err(Errno::ENOPROTOOPT)),
        }
    }
}

impl Object for Udp {
    fn read(&self, _ctl: &Ctl, bufs: &mut [&mut [u8]]) -> Result<usize> {
        Ok(self.recv(bufs, 0)?.copied)
    }

    fn write(&self, _ctl: &Ctl, bufs: &[&[u8]]) -> Result<usize> {
        self.send(bufs, None, 0)
    }

    fn ready(&self) -> u32 {
        let mut bits = netif::with(|s| s.readiness(self.handle)).map_or(0, netif::poll_bits);
        if self.read_shut.get() {
            bits |= events::READ | events::RDHUP;
            if self.write_shut.get() {
                bits |= events::HUP;
            }
        }
        bits
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
        Ok(netif::with(|s| s.next_datagram_len(self.handle))?.unwrap_or(0))
    }

    fn socket(&self) -> Option<&dyn Socket> {
        Some(self)
    }

    fn timeout(&self, reading: bool) -> Option<u64> {
        if reading { self.common.receive_timeout.get() } else { self.common.send_timeout.get() }
    }
}

impl Drop for Udp {
    fn drop(&mut self) {
        netif::disown(self.handle);
        // Fails only if there is no stack, and then there is no handle either.
        let _ = netif::with(|s| s.close(self.handle));
        netif::flush();
    }
}
