//! The boot page: what the host tells the guest about its machine.
//!
//! One read-only page, passed in `rdi` to the guest's entry point. `rsp` is the top of [`BootPage::stack`], 16-byte
//! aligned; the direction flag is clear; all other registers are unspecified. The image is relocated and all its
//! rights are final: **a guest is born sealed** (ADR 0001).

use crate::PAGE;

/// First field of a boot page.
pub const MAGIC: u64 = u64::from_le_bytes(*b"DONJBOOT");

/// A range of guest-virtual addresses.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Range {
    /// First address; page-aligned.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Bits of [`BootPage::flags`].
pub mod flags {
    /// The guest may execute `wrfsbase`; without it, it must use `Call::SetTls`.
    pub const FSGSBASE: u32 = 1;
    /// There is a network device, described by `net`.
    pub const NET: u32 = 2;
    /// The CPU has RDRAND; the guest mixes it into its generator.
    pub const RDRAND: u32 = 4;
    /// The operator lets the guest serve on any port, whatever its manifest says.
    pub const LISTEN_ANY: u32 = 8;
    /// The operator lets the guest connect to anything, whatever its manifest says.
    pub const EGRESS_ANY: u32 = 16;
}

/// How to read the time without leaving the guest.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Clock {
    /// If not 0: address of a Linux vDSO `clock_gettime(clockid, *mut timespec) -> i32`, which is then
    /// the source of both clocks, and the other fields are not used.
    pub vdso: u64,
    /// Nanoseconds = `mono_base + (((rdtsc - tsc_base) as u128 * mult as u128) >> shift)`.
    pub mult: u64,
    /// See `mult`.
    pub shift: u32,
    /// Always 0.
    pub _pad: u32,
    /// See `mult`.
    pub tsc_base: u64,
    /// Monotonic time at `tsc_base`, ns.
    pub mono_base: u64,
    /// Realtime (Unix epoch, ns) minus monotonic time.
    pub wall_offset: u64,
}

/// Bits of [`Net::flags`].
pub mod net {
    /// Addresses come from DHCP; the IPv4 fields are not used.
    pub const DHCP: u32 = 1;
    /// The device completes checksums of sent frames.
    pub const TX_CSUM: u32 = 2;
    /// The device segments TCPv4 super-frames.
    pub const TX_TSO4: u32 = 4;
    /// The device segments TCPv6 super-frames.
    pub const TX_TSO6: u32 = 8;
    /// Received frames may carry partial checksums and may be super-frames of up to 64 KiB.
    pub const RX_GSO: u32 = 16;
    /// IPv6 addresses come from router advertisements as well (SLAAC); the static one, if any, stays.
    pub const SLAAC: u32 = 32;
}

/// The network device. An address of all zeros is none.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Net {
    /// See [`net`].
    pub flags: u32,
    /// Largest IP packet, bytes.
    pub mtu: u32,
    /// Ethernet address.
    pub mac: [u8; 6],
    /// Prefix length of `ipv4`.
    pub ipv4_prefix: u8,
    /// Prefix length of `ipv6`.
    pub ipv6_prefix: u8,
    /// Own IPv4 address.
    pub ipv4: [u8; 4],
    /// IPv4 default router.
    pub ipv4_gateway: [u8; 4],
    /// IPv4 resolvers.
    pub ipv4_dns: [[u8; 4]; 2],
    /// Own IPv6 address.
    pub ipv6: [u8; 16],
    /// IPv6 default router.
    pub ipv6_gateway: [u8; 16],
    /// IPv6 resolver.
    pub ipv6_dns: [u8; 16],
}

/// The boot page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct BootPage {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`crate::VERSION`].
    pub version: u32,
    /// See [`flags`].
    pub flags: u32,
    /// Address of the gate function.
    pub gate: u64,
    /// Where the image is mapped; `base` is what was added to every relocated word.
    pub image: Range,
    /// The manifest records ([`crate::manifest`]), read-only.
    pub manifest: Range,
    /// The file bundle ([`crate::bundle`]), read-only; `len` 0 if there is none.
    pub bundle: Range,
    /// Address space for heap and stacks, wholly without rights at first; see `Call::Protect`.
    pub reserve: Range,
    /// How many bytes of the reserve the guest may have backed at one time. Touching more ends the guest.
    pub memory: u64,
    /// The first stack, read-write, with an unmapped page below.
    pub stack: Range,
    /// Stack on which the host calls the image's fault entry, read-write, with an unmapped page below.
    pub fault_stack: Range,
    /// Arguments: strings that each end with a NUL, the program's name first.
    pub args: Range,
    /// Environment: `NAME=value` strings that each end with a NUL.
    pub env: Range,
    /// The clock.
    pub clock: Clock,
    /// The network device.
    pub net: Net,
    /// Name of the engine, for messages; padded with NUL.
    pub engine: [u8; 16],
    /// Fresh entropy from the host's generator.
    pub entropy: [u8; 64],
    /// The secrets ([`crate::secrets`]), read-only; `len` 0 if there are none.
    pub secrets: Range,
}

impl BootPage {
    /// A page with magic and version set and all else zero.
    pub const fn empty() -> Self {
        const NONE: Range = Range { base: 0, len: 0 };
        BootPage {
            magic: MAGIC,
            version: crate::VERSION,
            flags: 0,
            gate: 0,
            image: NONE,
            manifest: NONE,
            bundle: NONE,
            reserve: NONE,
            memory: 0,
            stack: NONE,
            fault_stack: NONE,
            args: NONE,
            env: NONE,
            clock: Clock { vdso: 0, mult: 0, shift: 0, _pad: 0, tsc_base: 0, mono_base: 0, wall_offset: 0 },
            net: Net {
                flags: 0,
                mtu: 0,
                mac: [0; 6],
                ipv4_prefix: 0,
                ipv6_prefix: 0,
                ipv4: [0; 4],
                ipv4_gateway: [0; 4],
                ipv4_dns: [[0; 4]; 2],
                ipv6: [0; 16],
                ipv6_gateway: [0; 16],
                ipv6_dns: [0; 16],
            },
            engine: [0; 16],
            entropy: [0; 64],
            secrets: NONE,
        }
    }
}

const _: () = {
    assert!(size_of::<BootPage>() as u64 <= PAGE);
    assert!(size_of::<Clock>() == 48);
    assert!(size_of::<Net>() == 80);
    assert!(core::mem::offset_of!(BootPage, gate) == 16);
    assert!(core::mem::offset_of!(BootPage, memory) == 88);
    assert!(core::mem::offset_of!(BootPage, clock) == 160);
    assert!(core::mem::offset_of!(BootPage, net) == 208);
    assert!(core::mem::offset_of!(BootPage, entropy) == 304);
    assert!(core::mem::offset_of!(BootPage, secrets) == 368);
};
