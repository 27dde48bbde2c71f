//! What a hypervisor's memory has of a secret, while the guest runs and when it has ended.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};

use donjon_tests::qemu::Machine;
use donjon_tests::{Guest, Need, missing, target_dir, test_guest};

/// The virtual machine's memory is a file, which outlives it.
#[test]
fn the_shim_wipes_secrets() {
    if missing("the_shim_wipes_secrets", &[Need::Qemu]) {
        return;
    }
    let image = test_guest("secret");
    let (memory, secret) = (scratch("memory"), scratch("needle"));
    // Each time another one: the file may have been another machine's memory before.
    let needle: String = (0..4).map(|_| format!("{:016x}", random())).collect();
    std::fs::write(&secret, &needle).unwrap();
    for name in ["microvm", "q35"] {
        for (how, status) in [("exit", 42), ("abort", 134), ("fault", 70)] {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let append = format!("-- {how}");
            let file = format!("memory-backend-file,id=ram,size=32M,share=on,mem-path={}", memory.display());
            let handed = format!("name=opt/donjon/secret/needle,file={}", secret.display());
            let more = ["-object", &file, "-machine", "memory-backend=ram", "-fw_cfg", &handed];
            let machine = Machine {
                image: &image,
                machine: name,
                memory: 32,
                rx_queue: None,
                append: &append,
                cpu: "max",
                more: &more,
            };
            let command = machine.command(Some((port, 9000)));
            let mut guest =
                Guest::program(&format!("{name}, {how}"), command, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), None);
            guest.wait_console("ready, a secret of 64 bytes");
            assert_eq!(found(&memory, &needle), 1, "{name}: the secret is in memory once\n{}", guest.log());
            drop(guest.connect().unwrap());
            let ended = guest.wait();
            // isa-debug-exit keeps seven bits.
            ended.expect_code((status & 0x7f) << 1 | 1);
            assert_eq!(found(&memory, &needle), 0, "FAILURE, {name}: the secret outlives a guest that ends by {how}");
        }
    }
    std::fs::remove_file(&memory).unwrap();
}

/// How often the file has these words.
fn found(file: &Path, words: &str) -> usize {
    let bytes = std::fs::read(file).unwrap();
    assert_eq!(bytes.len(), 32 << 20);
    bytes.windows(words.len()).filter(|w| *w == words.as_bytes()).count()
}

fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

fn scratch(name: &str) -> PathBuf {
    let dir = target_dir().join("scratch");
    std::fs::create_dir_all(&dir).unwrap();
    dir.join(format!("secret-{name}-{}", std::process::id()))
}
