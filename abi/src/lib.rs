//! The gate: the one contract between a guest and whoever runs it.
//!
//! Everything that guest and host both have to know stands in this crate and nowhere else: the gate
//! calls ([`Call`]), the page that describes the machine to the guest ([`boot::BootPage`]), the header
//! of an image file ([`image::ImageHeader`]), the manifest records and the file bundle inside it.
//! `docs/gate.md` explains it in prose.
//!
//! Rules of this crate: no dependency, no `unsafe`, fixed-width little-endian fields, every layout
//! asserted at compile time, and [`VERSION`] goes up whenever any of them changes.

#![no_std]
#![forbid(unsafe_code)]

pub mod bcj;
pub mod boot;
pub mod bundle;
pub mod image;
pub mod manifest;
pub mod secrets;
pub mod unwind;
pub mod zstd;

/// Version of every layout and call in this crate. Host and guest must agree exactly.
pub const VERSION: u32 = 4;

/// Bytes in a page, the unit of every address range that crosses the gate.
pub const PAGE: u64 = 4096;

/// Longest interval of uninterrupted guest execution after which the host raises the tick upcall,
/// in nanoseconds. Time spent in [`Call::Wait`] does not count.
pub const TICK_NS: u64 = 4_000_000;

/// A call through [`boot::BootPage::gate`].
///
/// The gate is a function of the System V ABI: `gate(call, a, b, c, d) -> i64`. A result below zero is
/// a negated [`Error`]. All caller-saved registers, vector registers included, are clobbered.
/// The guest makes calls with preemption off; an upcall may arrive during a call all the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Call {
    /// `exit(code)`: end the guest with exit status `code & 0xff`. Does not return.
    Exit = 0,
    /// `fault(text, len, code)`: end the guest with a crash report, UTF-8, at most [`FAULT_MAX`] bytes,
    /// and exit status `code & 0xff`. Does not return.
    Fault = 1,
    /// `console(bytes, len, stream)`: append to the host-side log. `stream` is 1 (output) or 2 (errors).
    /// Returns the number of bytes taken, which may be fewer than `len`.
    Console = 2,
    /// `wait(timeout_ns)`: sleep until something is ready or the timeout passes (`u64::MAX`: for ever).
    /// Returns a set of [`ready`] bits; 0 means a timeout, and spurious returns are allowed.
    Wait = 3,
    /// `net_send(frames, count)`: send Ethernet frames. `frames` points to `count` [`Frame`]s. Returns how many
    /// were taken, in order; fewer than `count` means that the device is full now. A frame that the device
    /// refuses for good (malformed header, forbidden address) counts as taken and is dropped.
    NetSend = 4,
    /// `net_recv(frames, count)`: receive up to `count` frames. For each the host fills the I/O vectors in order
    /// and sets [`Frame::len`]. Returns how many frames were received; 0 if none is there. A frame that
    /// does not fit into its vectors is dropped by the host.
    NetRecv = 5,
    /// `protect(addr, len, prot)`: set the rights of whole pages inside the reserve. `prot` is a [`Prot`].
    /// There is no value that makes memory executable, and the image cannot be touched at all.
    Protect = 6,
    /// `discard(addr, len)`: give the content of whole pages inside the reserve back to the host. Rights stay;
    /// the next touch finds zeros.
    Discard = 7,
    /// `set_tls(base)`: set the FS base. Only needed where [`boot::flags::FSGSBASE`] is not set.
    SetTls = 8,
}

impl Call {
    /// Number of calls; valid call numbers are below it.
    pub const COUNT: u64 = 9;

    /// The call of that number.
    pub const fn from_number(number: u64) -> Option<Call> {
        Some(match number {
            0 => Call::Exit,
            1 => Call::Fault,
            2 => Call::Console,
            3 => Call::Wait,
            4 => Call::NetSend,
            5 => Call::NetRecv,
            6 => Call::Protect,
            7 => Call::Discard,
            8 => Call::SetTls,
            _ => return None,
        })
    }
}

/// Longest text that [`Call::Fault`] takes, in bytes; the rest is cut off.
pub const FAULT_MAX: u64 = 16 * 1024;

/// Bits returned by [`Call::Wait`].
pub mod ready {
    /// At least one frame can be received, or the device can take frames again.
    pub const NET: u64 = 1;
    /// The host asks the guest to stop (its SIGTERM). Reported once; the guest ends itself with `exit`.
    pub const STOP: u64 = 2;
}

/// Why a gate call failed. The call returns the negated number (Linux's errno where one fits).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i64)]
pub enum Error {
    /// The host has no memory (page tables, pages) for it.
    NoMemory = 12,
    /// A pointer or range is not the guest's own.
    BadAddress = 14,
    /// An argument makes no sense.
    Invalid = 22,
    /// There is no such call, or no such device in this image.
    NoSuchCall = 38,
}

/// Rights of guest memory. A value that is both writable and executable cannot be expressed, and neither
/// can one that is executable: text is mapped by the host before the guest's first instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Prot {
    /// No access: guard pages and the untouched reserve.
    None = 0,
    /// Read only.
    Read = 1,
    /// Read and write; backed by a zeroed page at first touch.
    ReadWrite = 2,
}

impl Prot {
    /// The rights of that number.
    pub const fn from_number(number: u64) -> Option<Prot> {
        Some(match number {
            0 => Prot::None,
            1 => Prot::Read,
            2 => Prot::ReadWrite,
            _ => return None,
        })
    }
}

/// A range of guest memory, layout-compatible with `struct iovec`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct IoVec {
    /// Guest-virtual address of the first byte.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}

/// One Ethernet frame to send or to receive, as a list of memory pieces.
///
/// The first [`NetHdr`]-sized bytes of the pieces are the offload header; the Ethernet header follows. For
/// sending, the first piece is exactly the [`NetHdr`]. At most [`FRAME_IOV_MAX`] pieces.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Frame {
    /// Guest-virtual address of an array of [`IoVec`].
    pub iov: u64,
    /// Number of elements in that array.
    pub iov_count: u32,
    /// Received: bytes written, header included. Sending: not read.
    pub len: u32,
}

/// Most pieces that a frame may have.
pub const FRAME_IOV_MAX: u32 = 64;

/// Longest frame, offload header included, in bytes (a 64 KiB segmentation-offload super-frame and headers).
pub const FRAME_MAX: usize = 65_535 + 14 + NET_HDR_LEN;

/// Bytes in a [`NetHdr`].
pub const NET_HDR_LEN: usize = 12;

/// `struct virtio_net_hdr_v1` (virtio 1.3 §5.1.6), in front of every frame under every engine.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct NetHdr {
    /// Bit 0: checksum needed (sending: compute from `csum_start`); bit 1: data valid.
    pub flags: u8,
    /// 0 none, 1 TCPv4, 4 TCPv6; bit 7: ECN.
    pub gso_type: u8,
    /// Length of the headers that are repeated in each segment.
    pub hdr_len: u16,
    /// Payload bytes in each segment.
    pub gso_size: u16,
    /// Offset after the header from which to sum.
    pub csum_start: u16,
    /// Offset from `csum_start` at which the sum is stored.
    pub csum_offset: u16,
    /// Always 1 for sending; number of merged buffers for receiving.
    pub num_buffers: u16,
}

/// Values for [`NetHdr`].
pub mod net_hdr {
    /// `flags`: the checksum is partial and must be completed.
    pub const NEEDS_CSUM: u8 = 1;
    /// `flags`: the checksum has been verified.
    pub const DATA_VALID: u8 = 2;
    /// `gso_type`: not a super-frame.
    pub const GSO_NONE: u8 = 0;
    /// `gso_type`: TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// `gso_type`: TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
}

impl NetHdr {
    /// The header's bytes on the wire (little-endian).
    pub const fn to_bytes(self) -> [u8; NET_HDR_LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
    }

    /// The header that these bytes encode.
    pub const fn from_bytes(b: [u8; NET_HDR_LEN]) -> Self {
        NetHdr {
            flags: b[0],
            gso_type: b[1],
            hdr_len: u16::from_le_bytes([b[2], b[3]]),
            gso_size: u16::from_le_bytes([b[4], b[5]]),
            csum_start: u16::from_le_bytes([b[6], b[7]]),
            csum_offset: u16::from_le_bytes([b[8], b[9]]),
            num_buffers: u16::from_le_bytes([b[10], b[11]]),
        }
    }
}

const _: () = {
    assert!(size_of::<IoVec>() == 16);
    assert!(size_of::<Frame>() == 16);
    assert!(core::mem::offset_of!(Frame, len) == 12);
    assert!(size_of::<NetHdr>() == NET_HDR_LEN);
};
