//! The fuzz targets: each a function of bytes that a hostile peer could have chosen. It panics where a claim of `docs/soundness.md` does not hold.
//!
//! A target is deterministic, apart from `usernet`, which works with real sockets. No target sends anything out of a network namespace of its own.

mod answers;
mod boot;
mod dhcp;
mod filter;
mod firmware;
mod frames;
mod gate;
mod http;
mod image;
mod input;
mod machine;
mod packet;
mod usernet;
mod virtqueue;
mod zstd;

/// A target.
pub struct Target {
    /// Its name, also of its corpus.
    pub name: &'static str,
    /// Whose bytes these are.
    pub about: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

fn none() -> Vec<Vec<u8>> {
    Vec::new()
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "image", about: "image file: command, monitor and shim", run: image::run, seeds: image::seeds },
    Target { name: "zstd", about: "the program in a compressed image", run: zstd::run, seeds: zstd::seeds },
    Target { name: "boot", about: "what the boot page points at", run: boot::run, seeds: boot::seeds },
    Target { name: "gate", about: "the guest's gate calls, as the shim sees them", run: gate::run, seeds: none },
    Target { name: "virtqueue", about: "a virtio device that lies", run: virtqueue::run, seeds: none },
    Target {
        name: "firmware",
        about: "command line, boot information, ACPI and PCI",
        run: firmware::run,
        seeds: firmware::seeds,
    },
    Target {
        name: "frames",
        about: "the guest's peers: frames, with connections open",
        run: frames::run,
        seeds: frames::seeds,
    },
    Target {
        name: "dhcp",
        about: "answers of a DHCP server and of an IPv6 router",
        run: dhcp::run,
        seeds: dhcp::seeds,
    },
    Target { name: "dns", about: "answers of a resolver", run: answers::run, seeds: answers::seeds },
    Target { name: "http", about: "a client of the web server", run: http::run, seeds: http::seeds },
    Target {
        name: "usernet",
        about: "the guest's frames into the monitor's network",
        run: usernet::run,
        seeds: frames::seeds,
    },
    Target {
        name: "filter",
        about: "a guest's frames at the monitor's filter",
        run: filter::run,
        seeds: filter::seeds,
    },
];
