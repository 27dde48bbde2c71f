//! Booting: by QEMU alone, with little memory, with queues of any size, and when it must fail.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use donjon_abi::image::ImageHeader;
use donjon_tests::qemu::{Ended, Machine};
use donjon_tests::{
    Engine, Guest, Need, Netns, PATIENCE, compressed, donjon, example, missing, pattern, repo_root, target_dir,
    test_guest,
};

/// Memory sizes in MiB: odd ones, and those at which others failed (Nanos between 68 and 74, and below 77 on microvm).
const SIZES: &[u32] = &[4, 5, 6, 7, 8, 9, 11, 13, 16, 17, 23, 32, 33, 48, 63, 64, 68, 70, 71, 74, 76, 77, 97, 128, 255];

fn machine<'a>(image: &'a Path, machine: &'a str, memory: u32) -> Machine<'a> {
    Machine { image, machine, memory, rx_queue: None, append: "-- exit", cpu: "max", more: &[] }
}

fn run(machine: &Machine) -> Ended {
    machine.run(PATIENCE).unwrap_or_else(|| panic!("{} with {} MiB does not end", machine.machine, machine.memory))
}

/// The test guest `limits`, compressed.
fn compressed_guest() -> PathBuf {
    compressed(&repo_root().join("tests/guests/limits"))
}

/// The guest's program ran and ended as it should.
fn booted(ended: &Ended) -> bool {
    ended.status == Some(42)
}

/// `docs/getting-started.md` has a command that starts an image by QEMU alone: this runs what stands there, word for word, in a network of its own.
#[test]
fn the_documents_command_boots_an_image() {
    if missing("the_documents_command_boots_an_image", &[Need::Qemu, Need::Tap, Need::Program("curl")]) {
        return;
    }
    let document = std::fs::read_to_string(repo_root().join("docs/getting-started.md")).unwrap();
    let section = document.split("\n## ").find(|s| s.contains("Boot it yourself")).expect("its section");
    let command = section.split("```sh\n").nth(1).and_then(|s| s.split("```").next()).expect("its command");
    assert!(command.starts_with("qemu-system-x86_64 ") && command.contains("-kernel hello.img"), "{command}");
    let dir = target_dir().join("scratch/the-documents-command");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(example("hello-axum"), dir.join("hello.img")).unwrap();
    let ns = Netns::empty();
    let mut shell = ns.command("sh");
    // So that the shell's process is QEMU's.
    shell.args(["-c", &format!("exec {command}")]).current_dir(&dir);
    let mut guest = Guest::program("the document's command", shell, "127.0.0.1:8080".parse().unwrap(), Some(ns));
    guest.wait_http("/");
    let page = String::from_utf8_lossy(&guest.curl(&[&guest.url("/")])).into_owned();
    assert!(page.contains("<!doctype html>"), "{page}");
    guest.expect_alive();
}

/// Somebody who looks at a terminal sees that a virtual machine is starting; what is not a terminal gets the guest's words only.
#[test]
fn a_terminal_shows_that_a_machine_starts() {
    if missing("a_terminal_shows_that_a_machine_starts", &[Need::Qemu, Need::Program("script")]) {
        return;
    }
    let image = test_guest("limits");
    let words = format!("{} run {} --engine qemu -- exit", donjon().display(), image.display());
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &words, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(42), "{text}");
    assert!(text.contains("starting the virtual machine"), "{text}");
    let plain = Guest::builder(&image, Engine::QemuMicrovm).args(["exit"]).run();
    plain.expect_code(42);
    assert!(plain.stderr.is_empty(), "{plain}");
}

#[test]
fn lowest_memory_is_monotonic() {
    if missing("lowest_memory_is_monotonic", &[Need::Qemu]) {
        return;
    }
    let images = [test_guest("limits"), compressed_guest()];
    for (name, image) in ["microvm", "q35"].into_iter().flat_map(|name| images.iter().map(move |image| (name, image))) {
        let mut lowest = None;
        for memory in SIZES {
            let ended = run(&machine(image, name, *memory));
            match (booted(&ended), lowest) {
                (true, None) => lowest = Some(*memory),
                (true, Some(_)) => {}
                (false, Some(lowest)) => panic!("{name} boots with {lowest} MiB and not with {memory}:\n{ended:?}"),
                // Too little: it must say so, and not end like a success.
                (false, None) => {
                    assert!(!ended.text.trim().is_empty(), "{name}, {memory} MiB: no boot and no word: {ended:?}");
                    assert!(ended.status != Some(0), "{name}, {memory} MiB: {ended:?}");
                }
            }
        }
        println!("{name}: {} boots from {lowest:?} MiB on", image.display());
        assert!(lowest.is_some_and(|m| m <= 8), "{name}: lowest memory that boots: {lowest:?} MiB");
    }
}

#[test]
fn hello_axum_boots_or_says_that_memory_is_short() {
    if missing("hello_axum_boots_or_says_that_memory_is_short", &[Need::Qemu]) {
        return;
    }
    let image = example("hello-axum");
    for name in ["microvm", "q35"] {
        for memory in 2..=5 {
            let text = first_words(&Machine { append: "", ..machine(&image, name, memory) });
            let booted = text.contains("listening on");
            println!("{name}, {memory} MiB: {text:?}");
            assert!(booted || text.contains("memory"), "{name}, {memory} MiB: {text:?}");
            // It asks for 4; another firmware may keep more for itself.
            assert!(booted || memory < 5, "{name}, {memory} MiB: {text:?}");
        }
    }
}

/// The first line that is the guest's or the shim's.
fn first_words(machine: &Machine) -> String {
    let mut child = machine.command(None).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let (sender, line) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let words = ["donjon: ", "listening on"];
        let found = BufReader::new(stdout).lines().map_while(Result::ok).find(|l| words.iter().any(|w| l.contains(w)));
        // Nobody waits any more if this took too long.
        let _ = sender.send(found.unwrap_or_default());
    });
    let line = line.recv_timeout(PATIENCE);
    child.kill().unwrap();
    child.wait().unwrap();
    line.unwrap_or_default()
}

#[test]
fn queue_size_does_not_matter() {
    if missing("queue_size_does_not_matter", &[Need::Qemu]) {
        return;
    }
    let image = example("hello-axum");
    // More frames of 1,514 bytes than the longest queue has places, twice over.
    let body = pattern::bytes(3_200_000);
    let answer = format!("{} {}", body.len(), pattern::fnv(&body));
    let file = target_dir().join(format!("scratch/queue-size-{}", std::process::id()));
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, &body).unwrap();
    for name in ["microvm", "q35"] {
        for queue in [256, 512, 1024] {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let machine = Machine { rx_queue: Some(queue), append: "", ..machine(&image, name, 8) };
            let label = format!("{name}, queue of {queue}");
            let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
            let mut guest = Guest::program(&label, machine.command(Some((port, 8080))), address, None);
            guest.wait_http("/");
            let got = guest.curl(&["--fail", "--data-binary", &format!("@{}", file.display()), &guest.url("/hash")]);
            assert_eq!(String::from_utf8_lossy(&got).trim(), answer, "{label}\n{}", guest.log());
            assert_eq!(guest.get("/json").unwrap().status, 200, "{label}\n{}", guest.log());
            guest.expect_alive();
        }
    }
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn arguments_from_the_kernel_command_line() {
    if missing("arguments_from_the_kernel_command_line", &[Need::Qemu]) {
        return;
    }
    let image = test_guest("limits");
    let append = r#"donjon.env="DONJON_TEST=a value" -- environment one "two words" """#;
    let ended = run(&Machine { append, ..machine(&image, "microvm", 32) });
    assert!(ended.text.contains("PASS environment"), "{ended:?}");
}

#[test]
fn no_source_of_entropy_is_an_error() {
    if missing("no_source_of_entropy_is_an_error", &[Need::Qemu]) {
        return;
    }
    let image = test_guest("limits");
    for name in ["microvm", "q35"] {
        let ended = run(&Machine { cpu: "max,-rdrand,-rdseed", ..machine(&image, name, 32) });
        assert!(!booted(&ended) && ended.status != Some(0), "{ended:?}");
        let text = ended.text.to_lowercase();
        assert!(text.contains("entropy") || text.contains("random"), "{ended:?}");
    }
}

/// With one source only, or one beside a device that gives nothing but zeros, no start is like another; with those zeros only, there is none.
#[test]
fn one_good_source_of_entropy_is_enough() {
    if missing("one_good_source_of_entropy_is_enough", &[Need::Qemu]) {
        return;
    }
    let image = test_guest("security");
    let none = "max,-rdrand,-rdseed";
    let (good, zeros) = ("rng-builtin,id=r", "rng-random,id=r,filename=/dev/zero");
    for (name, device) in [("microvm", "virtio-rng-device,rng=r"), ("q35", "virtio-rng-pci,rng=r")] {
        let start = |cpu, source| {
            let more = ["-object", source, "-device", device];
            run(&Machine { append: "-- secrets", cpu, more: &more, ..machine(&image, name, 32) })
        };
        for (cpu, source) in [(none, good), ("max", zeros)] {
            let starts = [start(cpu, source), start(cpu, source)];
            for what in ["image ", "heap ", "stack ", "thread ", "canary ", "random "] {
                let values = starts.each_ref().map(|s| s.text.lines().find_map(|l| l.strip_prefix(what)));
                assert!(
                    values[0].is_some() && values[0] != values[1],
                    "{name}, {cpu}, {source}: {what}{values:?}\n{starts:?}"
                );
            }
        }
        let ended = start(none, zeros);
        assert!(ended.status == Some(69) && ended.text.contains("no source of randomness"), "{name}: {ended:?}");
    }
}

/// What the shim switches on in the CPU, where the CPU has it; it goes on without what only backs the separation of the rings up.
#[test]
fn the_cpu_protects_what_it_can() {
    if missing("the_cpu_protects_what_it_can", &[Need::Qemu]) {
        return;
    }
    const WP: u64 = 1 << 16;
    const NXE: u64 = 1 << 11;
    const UMIP: u64 = 1 << 11;
    const SMEP: u64 = 1 << 20;
    const SMAP: u64 = 1 << 21;
    let image = test_guest("security");
    for name in ["microvm", "q35"] {
        for (cpu, on, off) in [
            ("max", UMIP | SMEP | SMAP, 0),
            ("max,-umip", SMEP | SMAP, UMIP),
            ("max,-smap", UMIP | SMEP, SMAP),
            ("qemu64,+rdrand", 0, UMIP | SMEP | SMAP),
        ] {
            let r = Machine { append: "-- stay", cpu, ..machine(&image, name, 32) }.registers("trying stay");
            assert!(r.cr0 & WP != 0 && r.efer & NXE != 0, "{name}, {cpu}: {r:x?}");
            assert!(r.cr4 & on == on && r.cr4 & off == 0, "{name}, {cpu}: {r:x?}");
        }
        // Without it nothing that a guest may write would be out of reach of execution.
        let ended = run(&Machine { cpu: "qemu64,+rdrand,-nx", ..machine(&image, name, 32) });
        assert!(!booted(&ended) && ended.status != Some(0) && ended.text.contains("no NX bit"), "{name}: {ended:?}");
    }
}

/// A copy of the image with one byte changed at `offset`.
fn damaged(image: &Path, offset: usize, name: &str) -> PathBuf {
    let mut bytes = std::fs::read(image).unwrap();
    bytes[offset] ^= 0x40;
    let path = target_dir().join("images").join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn damaged_images_are_refused_by_the_shim() {
    if missing("damaged_images_are_refused_by_the_shim", &[Need::Qemu]) {
        return;
    }
    let image = test_guest("limits");
    // Magic, version, and a segment's place. (The hash is `donjon run`'s to check, see `bad_input::corrupt_image`.)
    // The length of what is compressed, which is the last but three words of the header: its content then has another length than it says.
    let block = 4096 + ImageHeader::LEN - 24;
    for (what, image, offset) in [
        ("magic", &image, 4096),
        ("version", &image, 4096 + 8),
        ("segment", &image, 4096 + 300),
        ("compressed part", &compressed_guest(), block),
    ] {
        let damaged = damaged(image, offset, &format!("damaged-{what}.img"));
        let ended = run(&machine(&damaged, "microvm", 32));
        assert!(!booted(&ended) && ended.status != Some(0), "{what}: {ended:?}");
        assert!(ended.text.contains("donjon"), "{what}: no word: {ended:?}");
        assert!(what != "compressed part" || ended.text.contains("cannot be unpacked"), "{ended:?}");
    }
}

#[test]
fn an_unknown_option_on_the_command_line_is_an_error() {
    if missing("an_unknown_option_on_the_command_line_is_an_error", &[Need::Qemu]) {
        return;
    }
    let image = test_guest("limits");
    let ended = run(&Machine { append: "donjon.nonsense=1 -- exit", ..machine(&image, "microvm", 32) });
    assert!(!booted(&ended) && ended.text.contains("donjon.nonsense"), "{ended:?}");
}

#[test]
fn little_memory_as_a_process() {
    // The process engine counts the same budget: once enough, always enough.
    for image in [test_guest("limits"), compressed_guest()] {
        let mut lowest = None;
        for memory in ["256K", "512K", "1M", "1537K", "2M", "3M", "4M", "5M", "8M", "13M", "16M", "31M", "64M"] {
            let exit = Guest::builder(&image, Engine::ProcessUser).memory(memory).args(["exit"]).run();
            match (exit.code == Some(42), lowest) {
                (true, None) => lowest = Some(memory),
                (true, Some(_)) => {}
                (false, Some(lowest)) => panic!("runs with {lowest} and not with {memory}:\n{exit}"),
                (false, None) => assert!(!exit.stderr.trim().is_empty(), "{memory}: no word\n{exit}"),
            }
        }
        assert!(lowest.is_some(), "does not run at all");
    }
}
