//! What the boot page points at, as the library OS reads it: manifest records, file bundle, arguments, and the device's addresses.
//!
//! The host is trusted with the guest's memory, but what it hands over comes from the image and the command line, which are not.

use crate::input::Input;
use donjon_abi::boot::{Net, Range};
use donjon_abi::bundle::{Bundle, Kind};
use donjon_abi::manifest::{Egress, Tag, records};
use donjon_net::{Config, Domain, Limits, Offload, Stack};

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 4 {
        0 => manifest(input.rest()),
        1 => bundle(input.rest()),
        2 => strings(input.rest()),
        _ => addresses(&mut input),
    }
}

fn manifest(bytes: &[u8]) {
    let mut total = 0;
    for record in records(bytes) {
        let Ok((tag, value)) = record else { break };
        total += 8 + value.len();
        if let (Tag::Egress, Some(e)) = (tag, Egress::from_bytes(value)) {
            assert_eq!(Egress::from_bytes(&e.to_bytes()), Some(e));
            let _ = e.allows(6, [0xff; 16], 443);
        }
    }
    assert!(total <= bytes.len());
    // The host's own reader agrees that records are what they are.
    if donjon_image::Manifest::parse(bytes).is_ok() {
        assert!(records(bytes).all(|r| r.is_ok()));
    }
}

fn bundle(bytes: &[u8]) {
    let Some(bundle) = Bundle::parse(bytes) else { return };
    let mut below_root = 0;
    for i in 0..bundle.len() {
        let e = bundle.get(i).expect("a checked entry");
        assert_eq!(bundle.lookup(e.path).map(|e| e.index), Some(i), "{:?} is not found", e.path);
        below_root += u32::from(!e.path.contains('/'));
        if e.kind == Kind::Dir {
            assert!(bundle.children(e.path, 0).all(|c| c.path.starts_with(e.path)));
        }
    }
    assert_eq!(bundle.children("", 0).count() as u32, below_root);
}

fn strings(bytes: &[u8]) {
    let range = Range { base: bytes.as_ptr() as u64, len: bytes.len() as u64 };
    let all: usize = donjon_base::strings(range).map(|s| s.len() + 1).sum();
    assert!(all <= bytes.len());
}

/// As `guest/os/src/netif.rs` does it.
fn addresses(input: &mut Input<'_>) {
    let mut net = Net { flags: input.u32(), mtu: input.u32(), ..Net::default() };
    net.mac.copy_from_slice(&fill::<6>(input));
    (net.ipv4_prefix, net.ipv6_prefix) = (input.u8(), input.u8());
    (net.ipv4, net.ipv4_gateway) = (fill(input), fill(input));
    (net.ipv6, net.ipv6_gateway) = (fill(input), fill(input));
    let mut stack = Stack::new(
        Config {
            mac: net.mac,
            mtu: net.mtu,
            offload: Offload::from_boot_flags(net.flags),
            key: [7; 32],
            limits: Limits::for_memory(input.u64()),
            lasting: &[],
            any_ip: false,
            dhcp: net.flags & 1 != 0,
            slaac: net.flags & 32 != 0,
        },
        input.u64() >> 1,
    );
    let _ = stack.add_address(net.ipv4.into(), net.ipv4_prefix);
    let _ = stack.add_address(net.ipv6.into(), net.ipv6_prefix);
    stack.set_router(Domain::V4, Some(net.ipv4_gateway.into()));
    stack.set_router(Domain::V6, Some(net.ipv6_gateway.into()));
    let to: [u8; 4] = fill(input);
    if let Ok(source) = stack.source_for(to.into()) {
        assert!(source.is_loopback() || stack.addresses().iter().any(|a| a.address == source));
    }
    let mut out = crate::packet::Collect::default();
    stack.output(1 << 63, &mut out);
}

fn fill<const N: usize>(input: &mut Input<'_>) -> [u8; N] {
    let bytes = input.take(N);
    std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(0))
}

pub fn seeds() -> Vec<Vec<u8>> {
    let manifest = donjon_image::Manifest {
        name: "web".into(),
        memory: 1 << 26,
        listen: vec!["80".parse().expect("a port"), "53/udp".parse().expect("a port")],
        egress: vec![Egress { protocol: 6, prefix: 120, port: 443, addr: [7; 16] }],
        args: vec!["-v".into()],
        env: vec!["A=b".into()],
        tmpfs: Some(4096),
        tool: "0.1".into(),
        ..donjon_image::Manifest::default()
    };
    let mut net = vec![3];
    net.extend([33, 0, 0, 0, 0xdc, 5, 0, 0, 2, 0, 0, 0, 0, 1, 24, 64, 10, 0, 2, 15, 10, 0, 2, 2]);
    vec![
        [vec![0], manifest.to_bytes()].concat(),
        [vec![1], crate::image::bundle()].concat(),
        b"\x02web\0-v\0\0A=b\0".to_vec(),
        net,
    ]
}
