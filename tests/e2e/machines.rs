//! Virtual machines that are not as QEMU makes them by default: other clocks, other buses.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use donjon_tests::qemu::Machine;
use donjon_tests::{Guest, Need, PATIENCE, example, missing, test_guest};

/// QEMU without a word about its own APIC timer in CPUID, as other hypervisors are.
const STRANGER: &str = "max,tcg-cpuid=off";

fn machine<'a>(image: &'a Path, machine: &'a str, cpu: &'a str, more: &'a [&'a str]) -> Machine<'a> {
    Machine { image, machine, memory: 32, rx_queue: None, append: "", cpu, more }
}

/// How fast the guest's clock runs by the host's, over four seconds.
fn speed(machine: &Machine) -> f64 {
    let mut command = Machine { append: "-- clock", ..*machine }.command(None);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("QEMU");
    let (mut first, mut speed) = (None, None);
    let mut text = String::new();
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines().map_while(Result::ok) {
        let host = Instant::now();
        let told = line.strip_prefix("clock ").and_then(|l| l.split(' ').next()?.parse().ok());
        let Some(guest) = told.map(Duration::from_nanos) else {
            text += &format!("{line}\n");
            continue;
        };
        let (host0, guest0) = *first.get_or_insert((host, guest));
        let passed = host - host0;
        if passed > Duration::from_secs(4) {
            speed = Some((guest - guest0).as_secs_f64() / passed.as_secs_f64());
            break;
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    speed.unwrap_or_else(|| panic!("{} with {} tells no time: {text}", machine.machine, machine.cpu))
}

/// Whatever tells the clock's speed. The host's own clock is what is compared with; a busy host makes no difference to either.
#[test]
fn clocks_run_at_the_hosts_speed() {
    if missing("clocks_run_at_the_hosts_speed", &[Need::Qemu]) {
        return;
    }
    let image = test_guest("limits");
    // So slow that the boot takes longer than the APIC timer counts, 4.29 s.
    let slow = |device| ["-object", "rng-builtin,id=r", "-device", device];
    let (mmio, pci) = (
        slow("virtio-rng-device,rng=r,max-bytes=128,period=3000"),
        slow("virtio-rng-pci,rng=r,max-bytes=128,period=3000"),
    );
    for (name, cpu, more) in [
        ("microvm", "max", &[][..]),
        ("microvm", STRANGER, &[]),
        ("q35", STRANGER, &[]),
        ("pc", STRANGER, &[]),
        ("microvm", "max", &mmio),
        ("q35", "max", &pci),
        ("microvm", STRANGER, &mmio),
        ("q35", STRANGER, &pci),
    ] {
        let speed = speed(&machine(&image, name, cpu, more));
        assert!((0.9..1.1).contains(&speed), "{name}, {cpu}, {more:?}: the clock runs at {speed} of its speed");
    }
}

#[test]
fn no_clock_is_said() {
    if missing("no_clock_is_said", &[Need::Qemu]) {
        return;
    }
    let image = test_guest("limits");
    let ended = machine(&image, "microvm", STRANGER, &["-machine", "pit=off"]).run(PATIENCE).expect("it ends");
    assert!(ended.status == Some(69) && ended.text.contains("no clock of known speed"), "{ended:?}");
}

/// A q35 whose network device is where `devices` put it, on `bus=b`.
fn q35(image: &Path, devices: &[String], card: Option<u16>) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-cpu", "max", "-m", "64", "-M", "q35", "-nodefaults", "-no-user-config"]);
    command.args(["-display", "none", "-no-reboot", "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4"]);
    command.args(devices.iter().flat_map(|d| ["-device", d]));
    if let Some(port) = card {
        command.args(["-netdev", &format!("user,id=n0,hostfwd=tcp:127.0.0.1:{port}-:8080")]);
        command.args(["-device", "virtio-net-pci,netdev=n0,romfile=,bus=b"]);
    }
    command.arg("-kernel").arg(image);
    command
}

#[test]
fn a_network_device_is_found_on_any_bus() {
    if missing("a_network_device_is_found_on_any_bus", &[Need::Qemu]) {
        return;
    }
    let image = example("hello-axum");
    let port = |id: &str, chassis: u32, more: &str| format!("pcie-root-port,id={id},chassis={chassis}{more}");
    let mut twenty: Vec<String> = (1..20).map(|i| port(&format!("p{i}"), i, &format!(",addr={:#x}", i + 1))).collect();
    twenty.push(port("b", 20, ",addr=0x15"));
    let far = "pxb-pcie,id=far,bus_nr=128,bus=pcie.0".to_owned();
    let second = vec!["virtio-rng-pci".to_owned(), far, port("b", 1, ",bus=far")];
    for (what, devices) in [("the twentieth port", twenty), ("a second root bus", second)] {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let mut guest = Guest::program(what, q35(&image, &devices, Some(port)), address, None);
        guest.wait_http("/");
        guest.expect_alive();
    }
}

#[test]
fn a_missing_network_device_is_said() {
    if missing("a_missing_network_device_is_said", &[Need::Qemu]) {
        return;
    }
    let nowhere = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    let mut guest = Guest::program("no device", q35(&example("hello-axum"), &[], None), nowhere, None);
    guest.wait_console("there is no network device");
    // Not to an image that has no use for one.
    let mut command = q35(&test_guest("limits"), &[], None);
    let output = command.args(["-append", "-- exit"]).stdin(Stdio::null()).output().expect("QEMU");
    assert!(output.status.code() == Some(42 << 1 | 1) && output.stdout.is_empty(), "{output:?}");
}
