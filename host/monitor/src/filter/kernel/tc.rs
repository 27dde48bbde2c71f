//! Classifiers on a network device, over rtnetlink (rtnetlink(7), linux/pkt_sched.h, linux/pkt_cls.h): the few messages that the filter needs.

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const NEW_QDISC: u16 = 36;
const DELETE_QDISC: u16 = 37;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;

/// The answer to a message: a number follows, negative if it failed.
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;

const CLSACT: u32 = 0xffff_fff1;
/// Ours is the first classifier, for frames of all protocols (`ETH_P_ALL` in network order). The number is how we know it again.
const FIRST: u32 = 1 << 16 | 0x0300;
const HANDLE: u32 = 0xd0_1101;

const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const NESTED: u16 = 0x8000;
const BPF_FD: u16 = 6;
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
/// The program's result is the verdict.
const DIRECT_ACTION: u32 = 1;

/// A direction, as the device sees it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hook {
    /// What is written to a TAP.
    Ingress,
    /// What is read from it.
    Egress,
}

impl Hook {
    /// Where its classifiers are.
    fn parent(self) -> u32 {
        match self {
            Hook::Ingress => 0xffff_fff2,
            Hook::Egress => 0xffff_fff3,
        }
    }
}

/// A request, ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, interface: u32, handle: u32, parent: u32, info: u32) -> Message {
        let mut m = Message(Vec::with_capacity(128));
        // nlmsghdr: length (set at the end), type, flags, sequence, port.
        m.word(0);
        m.word(u32::from(kind) | u32::from(flags | REQUEST | ACK) << 16);
        m.word(0);
        m.word(0);
        // tcmsg: family and padding, then these.
        m.word(0);
        for word in [interface, handle, parent, info] {
            m.word(word);
        }
        m
    }

    fn word(&mut self, word: u32) {
        self.0.extend(word.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.word((4 + value.len()) as u32 | u32::from(kind) << 16);
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn nested(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let at = self.0.len();
        self.word(0);
        content(self);
        let len = (self.0.len() - at) as u32;
        self.0[at..at + 4].copy_from_slice(&(len | u32::from(kind | NESTED) << 16).to_ne_bytes());
    }

    fn finish(mut self) -> Message {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self
    }

    /// Gives the device a place for classifiers; EEXIST if it has one.
    pub fn add_place(interface: u32) -> Message {
        Self::place(NEW_QDISC, CREATE | EXCLUSIVE, interface)
    }

    /// Takes the place away, with all that is in it.
    pub fn remove_place(interface: u32) -> Message {
        Self::place(DELETE_QDISC, 0, interface)
    }

    fn place(kind: u16, flags: u16, interface: u32) -> Message {
        let mut m = Self::new(kind, flags, interface, CLSACT & 0xffff_0000, CLSACT, 0);
        m.attribute(KIND, b"clsact\0");
        m.finish()
    }

    /// Puts the program there as the first classifier.
    pub fn add(interface: u32, hook: Hook, program: BorrowedFd<'_>) -> Message {
        let mut m = Self::new(NEW_FILTER, CREATE | EXCLUSIVE, interface, HANDLE, hook.parent(), FIRST);
        m.attribute(KIND, b"bpf\0");
        m.nested(OPTIONS, |m| {
            m.attribute(BPF_FD, &(program.as_raw_fd() as u32).to_ne_bytes());
            m.attribute(BPF_NAME, b"donjon\0");
            m.attribute(BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes());
        });
        m.finish()
    }

    /// Takes our classifier away.
    pub fn remove(interface: u32, hook: Hook) -> Message {
        let mut m = Self::new(DELETE_FILTER, 0, interface, HANDLE, hook.parent(), FIRST);
        m.attribute(KIND, b"bpf\0");
        m.finish()
    }
}

/// A connection to the kernel's routing service.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    pub fn new() -> Result<Netlink> {
        // Protocol 0: NETLINK_ROUTE.
        Ok(Netlink(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?))
    }

    /// Sends a message whose outcome does not matter. The kernel carries it out before it returns from the call.
    pub fn tell(&self, message: &Message) {
        let _ = send(&self.0, &message.0, SendFlags::empty());
    }

    /// Sends a message and gives the kernel's answer.
    pub fn ask(&self, message: &Message) -> Result<()> {
        send(&self.0, &message.0, SendFlags::empty())?;
        let mut answer = [0u8; 4096];
        let (_, len) = recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        match answer[..len.min(answer.len())].split_at_checked(HEADER) {
            Some((header, [a, b, c, d, ..])) if header[4..6] == NLMSG_ERROR.to_ne_bytes() => {
                match i32::from_ne_bytes([*a, *b, *c, *d]) {
                    0 => Ok(()),
                    errno => Err(Error::from_raw_os_error(-errno)),
                }
            }
            _ => Err(Error::other("the kernel's answer is not understood")),
        }
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }
}
