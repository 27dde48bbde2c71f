//! A TAP device of the host: the guest reads and writes its frames itself.

#![expect(unsafe_code, reason = "ioctls of the tun driver")]
// UNSAFETY: ioctl calls whose argument is a local structure or integer.

use std::fs::OpenOptions;
use std::io::{Error, Result};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use donjon_abi::boot;

use crate::options::TapOptions;

// linux/if_tun.h
const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;
const TUN_F_CSUM: u64 = 1;
const TUN_F_TSO4: u64 = 2;
const TUN_F_TSO6: u64 = 4;

/// How long to wait for a device that somebody else has open: a run that has just been killed takes a moment to let go of it.
const BUSY_PATIENCE: Duration = Duration::from_millis(300);

/// Lengths of the queue of frames for the guest that the driver gives a new device. A thousand clients at once fill it; the kernel drops the rest, which comes again after 200 ms
/// at the earliest.
const QUEUE_UNCHOSEN: [i32; 2] = [500, 1000];
/// What it gets instead.
const QUEUE: i32 = 4096;

/// Opens the device: one frame per read and write, with the 12-byte virtio header in front, checksum and segmentation offload both ways.
pub(crate) fn open(options: &TapOptions) -> Result<OwnedFd> {
    // Without this check the driver would create an interface of that name, if we may, which would vanish at the end.
    let flags = query(&options.name, libc::SIOCGIFFLAGS).map_err(|e| match e.raw_os_error() {
        Some(libc::ENODEV) => Error::other("there is no such interface"),
        _ => e,
    })?;
    if flags & libc::IFF_UP == 0 {
        return Err(Error::other("the interface is down"));
    }
    lengthen_queue(&options.name)?;
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: 1. an ifreq of zeros is valid, 2. the name is at most 15 bytes (checked when the options were parsed), 3. both live for the call.
    unsafe {
        let mut request = named(&options.name);
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        let until = Instant::now() + BUSY_PATIENCE;
        while let Err(e) = ioctl(&file, TUNSETIFF, (&raw mut request) as u64) {
            if e.raw_os_error() != Some(libc::EBUSY) || Instant::now() > until {
                return Err(e);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let size = donjon_abi::NET_HDR_LEN as i32;
        ioctl(&file, TUNSETVNETHDRSZ, (&raw const size) as u64)?;
        ioctl(&file, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)?;
    }
    Ok(file.into())
}

/// Throws away what waits for the guest: it came before the device had a filter, which might not have let it pass and does not know who sent it.
pub(crate) fn empty(tap: BorrowedFd<'_>) {
    // What does not fit into it is cut off.
    let mut frame = [0; 2048];
    // More than the longest queue that anybody sets; a peer that sends faster than this reads does not hold the guest up.
    for _ in 0..1 << 16 {
        if rustix::io::read(tap, &mut frame).is_err() {
            return;
        }
    }
}

/// A longer queue, if its length is nobody's choice and we may. It takes 0.1 ms as long as nobody has the device open.
fn lengthen_queue(name: &str) -> Result<()> {
    if !QUEUE_UNCHOSEN.contains(&query(name, libc::SIOCGIFTXQLEN)?) {
        return Ok(());
    }
    let mut request = named(name);
    request.ifr_ifru.ifru_metric = QUEUE;
    match ask(&mut request, libc::SIOCSIFTXQLEN) {
        // An ordinary user; docs/getting-started.md has the length on the line that makes the device.
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => Ok(()),
        other => other,
    }
}

/// Has the kernel hand over whole frames with complete checksums only.
pub(crate) fn complete_frames(tap: &OwnedFd) -> Result<()> {
    // SAFETY: the argument is a number.
    unsafe { ioctl(tap, TUNSETOFFLOAD, 0) }
}

unsafe fn ioctl(file: &impl AsRawFd, request: u64, argument: u64) -> Result<()> {
    // SAFETY: the caller's promise: the argument fits the request.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// What the guest is told about it.
pub(crate) fn boot_net(options: &TapOptions) -> boot::Net {
    use boot::net::{DHCP, RX_GSO, SLAAC, TX_CSUM, TX_TSO4, TX_TSO6};
    let mut net = boot::Net {
        flags: TX_CSUM | TX_TSO4 | TX_TSO6 | RX_GSO | SLAAC,
        mtu: mtu(&options.name),
        mac: options.mac.unwrap_or_else(|| stable_mac(&options.name)),
        ..boot::Net::default()
    };
    for (address, prefix) in &options.addresses {
        match address {
            IpAddr::V4(a) => (net.ipv4, net.ipv4_prefix) = (a.octets(), *prefix),
            IpAddr::V6(a) => (net.ipv6, net.ipv6_prefix) = (a.octets(), *prefix),
        }
    }
    if net.ipv4 == [0; 4] {
        net.flags |= DHCP;
    }
    for gateway in &options.gateways {
        match gateway {
            IpAddr::V4(a) => net.ipv4_gateway = a.octets(),
            IpAddr::V6(a) => net.ipv6_gateway = a.octets(),
        }
    }
    let mut resolvers = net.ipv4_dns.iter_mut();
    for resolver in &options.dns {
        match resolver {
            IpAddr::V4(a) => {
                if let Some(slot) = resolvers.next() {
                    *slot = a.octets();
                }
            }
            IpAddr::V6(a) => net.ipv6_dns = a.octets(),
        }
    }
    net
}

/// The interface's own MTU.
fn mtu(name: &str) -> u32 {
    let mtu = query(name, libc::SIOCGIFMTU).unwrap_or(1500);
    u32::try_from(mtu).ok().filter(|m| (576..=65_535).contains(m)).unwrap_or(1500)
}

/// The interface's number.
pub(crate) fn number(name: &str) -> Result<u32> {
    query(name, libc::SIOCGIFINDEX).map(|n| n as u32).map_err(|e| match e.raw_os_error() {
        Some(libc::ENODEV) => Error::other("there is no such interface"),
        _ => e,
    })
}

/// A request about the interface of that name (at most 15 bytes count).
fn named(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq of zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from as libc::c_char;
    }
    request
}

/// Asks the kernel about an interface (netdevice(7)): a number of 32 bits, or of 16 in its lower half.
fn query(name: &str, request: u64) -> Result<i32> {
    let mut answer = named(name);
    ask(&mut answer, request)?;
    // SAFETY: all of its bytes are initialised.
    Ok(unsafe { answer.ifr_ifru.ifru_mtu })
}

/// The request itself; the kernel writes its answer where the question was.
fn ask(interface: &mut libc::ifreq, request: u64) -> Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: the structure is whole and lives for the call.
    unsafe { ioctl(&socket, request, (&raw mut *interface) as u64) }
}

/// A locally administered address that stays the same for an interface name (FNV-1a), so that neighbours' caches stay right over restarts.
pub(crate) fn stable_mac(name: &str) -> [u8; 6] {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let [a, b, c, d, e, ..] = hash.to_le_bytes();
    [0x02, a, b, c, d, e]
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::net::UdpSocket;
    use std::process::Command;

    #[test]
    fn what_waits_is_thrown_away() {
        if donjon_skip::missing("tap::what_waits_is_thrown_away", &[donjon_skip::Need::Tap]) {
            return;
        }
        // SAFETY: this thread gets a network of its own, which goes with it.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        // The kernel's own questions about neighbours could come in between.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        for words in ["tuntap add tap0 mode tap", "addr add 192.0.2.1/30 dev tap0", "link set tap0 up"] {
            assert!(Command::new("ip").args(words.split(' ')).status().unwrap().success(), "{words}");
        }
        let tap = open(&"tap0".parse().unwrap()).unwrap();
        // Nobody answers for that address: the question for it waits on the device.
        UdpSocket::bind("192.0.2.1:0").unwrap().send_to(b"x", "192.0.2.2:9").unwrap();
        let patience = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&tap, PollFlags::IN)], Some(&patience)), Ok(1));
        empty(std::os::fd::AsFd::as_fd(&tap));
        assert_eq!(rustix::io::read(&tap, &mut [0; 64]), Err(rustix::io::Errno::AGAIN));
    }

    #[test]
    fn boot_page_says_what_the_options_say() {
        let net = boot_net(&"tap9,ip=10.9.0.2/24,gw=10.9.0.1,dns=10.9.0.3,ip=fd00::2/64,gw=fd00::1".parse().unwrap());
        assert_eq!((net.ipv4, net.ipv4_prefix, net.ipv4_gateway), ([10, 9, 0, 2], 24, [10, 9, 0, 1]));
        assert_eq!((net.ipv4_dns[0], net.ipv6_prefix, net.mtu), ([10, 9, 0, 3], 64, 1500));
        assert_eq!(net.flags & boot::net::DHCP, 0);
        assert_eq!(net.mac[0] & 3, 2);
        let net = boot_net(&"tap9".parse().unwrap());
        assert_ne!(net.flags & boot::net::DHCP, 0);
        assert_ne!(stable_mac("tap1"), stable_mac("tap2"));
    }
}
