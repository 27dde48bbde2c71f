//! A TAP device, in a network namespace of its own: needs root.

mod common;
#[path = "common/held.rs"]
mod held;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use donjon_abi::manifest::Egress;
use donjon_skip::{Need, missing, skip, this_test};
use rustix::process::{Pid, Signal, kill_process};

use common::{Ran, Spec, first_line, image, launcher, pack, write};

/// A namespace with `tap0` (10.77.0.1/24), deleted at the end.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Option<Namespace> {
        let test = this_test();
        if missing(&test, &[Need::Tap]) {
            return None;
        }
        let name = format!("donjon-mon-{name}-{}", std::process::id());
        if !ip(&["netns", "add", &name]) {
            skip(&test, "`ip netns add` does not work here");
            return None;
        }
        let ns = Namespace(name);
        for words in
            ["tuntap add tap0 mode tap", "addr add 10.77.0.1/24 dev tap0", "link set tap0 up", "link set lo up"]
        {
            let words: Vec<&str> = ["-n", &ns.0].into_iter().chain(words.split(' ')).collect();
            assert!(ip(&words), "{words:?}");
        }
        Some(ns)
    }

    /// Moves this thread into the namespace; what it starts is there too.
    fn enter(&self) {
        let file = std::fs::File::open(format!("/run/netns/{}", self.0)).unwrap();
        rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&file),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )
        .unwrap();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.0]);
    }
}

fn ip(words: &[&str]) -> bool {
    Command::new("ip").args(words).output().is_ok_and(|o| o.status.success())
}

const NET: &str = "tap:tap0,ip=10.77.0.2/24,gw=10.77.0.1";

#[test]
fn guest_answers_over_tap_with_offloads() {
    let Some(ns) = Namespace::new("echo") else { return };
    ns.enter();
    echo(&["--net", NET]);
}

/// The same where the monitor filters instead of the kernel.
#[test]
fn guest_answers_through_the_monitor() {
    let Some(ns) = Namespace::new("relay") else { return };
    ns.enter();
    echo(&["--net", NET, "--relay-tap"]);
}

fn echo(options: &[&str]) {
    let mut child = launcher(image(), options, &["echo", "0"]).spawn().unwrap();
    assert_eq!(first_line(&mut child), "ready");
    let mut s = TcpStream::connect("10.77.0.2:7").unwrap();
    s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let data: Vec<u8> = (0..20_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80).collect();
    let (mut reader, expected) = (s.try_clone().unwrap(), data.clone());
    let reading = std::thread::spawn(move || {
        let mut all = vec![];
        reader.read_to_end(&mut all).unwrap();
        assert!(all == expected, "{} of {} bytes", all.len(), expected.len());
    });
    s.write_all(&data).unwrap();
    s.shutdown(Shutdown::Write).unwrap();
    reading.join().unwrap();

    let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
    udp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    udp.send_to(b"datagram", "10.77.0.2:7").unwrap();
    let mut got = [0; 100];
    let n = udp.recv(&mut got).unwrap();
    assert_eq!(&got[..n], b"datagram");

    // It belongs to one guest at a time.
    let r: Ran = launcher(image(), &["--net", "tap:tap0,ip=10.77.0.3/24"], &["hello"]).output().unwrap().into();
    assert_eq!(r.code, Some(71), "{r:?}");
    assert!(r.err.contains("another program uses it"), "{r:?}");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Nothing of what a guest must not send passes, and the monitor tells what it was.
#[test]
fn forged_frames_are_dropped_and_counted() {
    let Some(ns) = Namespace::new("forge") else { return };
    ns.enter();
    for extra in [&[][..], &["--relay-tap"]] {
        let before = received();
        let r: Ran = launcher(image(), &[&["--net", NET][..], extra].concat(), &["forge"]).output().unwrap().into();
        assert_eq!((r.code, r.out.as_str()), (Some(0), "forged\n"), "{r:?}");
        for reason in [
            "another Ethernet source address",
            "ARP with addresses that are not",
            "ARP for an address that the guest has no business with",
            "another IP source address",
            "to a cloud metadata address",
            "to a destination that `egress`",
            "IP options or extension headers",
            "an IP fragment",
            "a protocol other than TCP and UDP",
            "neither IP nor ARP",
        ] {
            assert!(r.err.contains(reason), "{reason}: {r:?}");
        }
        // The host's own IP layer has seen none of them.
        assert_eq!(received(), before, "{r:?}");
    }
}

/// A guest that may reach one port of the host, and what it may send in a second at most.
fn limited(name: &str, port: u16) -> std::path::PathBuf {
    let addr = std::net::Ipv4Addr::new(10, 77, 0, 1).to_ipv6_mapped().octets();
    let egress = vec![Egress { protocol: 6, prefix: 128, port, addr }];
    write(name, &pack(&Spec { egress, ..Spec::default() }))
}

/// A checksum that the kernel would write into what the filter has judged: no such frame passes, and those that are as they should be do.
#[test]
fn checksums_are_not_written_into_what_was_judged() {
    let Some(ns) = Namespace::new("checksum") else { return };
    ns.enter();
    let image = limited("misplaced-checksum", 5432);
    for extra in [&[][..], &["--relay-tap"]] {
        let before = received();
        let options = [&["--net", NET][..], extra].concat();
        let r: Ran = launcher(&image, &options, &["misplace", "5432"]).output().unwrap().into();
        assert_eq!((r.code, r.out.as_str()), (Some(0), "misplaced\n"), "{r:?}");
        assert!(r.err.contains("dropped 9 frames by the guest: an offload header that does not fit"), "{r:?}");
        assert_eq!(received(), before + 2, "{r:?}");
    }
}

/// All arrives, no faster than it may.
#[test]
fn what_a_guest_sends_keeps_to_its_limit() {
    let Some(ns) = Namespace::new("limit") else { return };
    ns.enter();
    let listener = TcpListener::bind("10.77.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let image = limited("limit-send", port);
    for extra in [&[][..], &["--relay-tap"]] {
        let start = Instant::now();
        let options = [&["--net", NET, "--limit-send", "500000"][..], extra].concat();
        let child = launcher(&image, &options, &["connect", &format!("10.77.0.1:{port}"), "800000"]).spawn().unwrap();
        let (mut s, _) = listener.accept().unwrap();
        let (mut all, mut buffer) = (0, vec![0; 65536]);
        while let Ok(n @ 1..) = s.read(&mut buffer) {
            all += n;
            // What may be sent at once, and what the time since then has earned.
            let most = 131_072.0 + 500_000.0 * start.elapsed().as_secs_f64();
            assert!(all as f64 <= most, "{all} bytes instead of {most}");
            s.write_all(&buffer[..n]).unwrap();
        }
        drop(s);
        let r: Ran = child.wait_with_output().unwrap().into();
        assert_eq!((r.code, r.out.as_str()), (Some(0), "sent 800000 received 800000 right true\n"), "{r:?}");
        assert!(r.err.contains("faster than its limit"), "{r:?}");
    }
}

#[test]
fn connections_that_a_guest_opens_keep_to_their_limit() {
    let Some(ns) = Namespace::new("flood") else { return };
    ns.enter();
    let image = limited("limit-connections", 80);
    for extra in [&[][..], &["--relay-tap"]] {
        let (before, start) = (received(), Instant::now());
        let options = [&["--net", NET, "--limit-connections", "20"][..], extra].concat();
        let r: Ran = launcher(&image, &options, &["flood", "80", "2000"]).output().unwrap().into();
        assert_eq!((r.code, r.out.as_str()), (Some(0), "asked 2000 times\n"), "{r:?}");
        assert!(r.err.contains("faster than its limit"), "{r:?}");
        let (seen, most) = (received() - before, 20.0 + 20.0 * start.elapsed().as_secs_f64());
        assert!(seen >= 20 && seen as f64 <= most, "{seen} connection attempts instead of {most}: {r:?}");
    }
}

/// IPv4 packets that this namespace has taken in (`InReceives` of /proc/net/snmp).
fn received() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let values = text.lines().filter(|l| l.starts_with("Ip:")).nth(1).unwrap();
    values.split(' ').nth(3).unwrap().parse().unwrap()
}

/// What `tc` shows of the classifiers on the device, both ways.
fn classifiers() -> String {
    let show = |way: &str| Command::new("tc").args(["filter", "show", "dev", "tap0", way]).output().unwrap().stdout;
    String::from_utf8([show("ingress"), show("egress")].concat()).unwrap()
}

/// `bytecode` takes the rest as one word.
fn tc(words: &str) {
    let (words, program) = words.split_once(" bytecode ").map_or((words, None), |(w, p)| (w, Some(p)));
    let mut command = Command::new("tc");
    command.args(words.split(' '));
    if let Some(program) = program {
        command.args(["bytecode", program]);
    }
    let out = command.output().unwrap();
    assert!(out.status.success(), "tc {words}: {out:?}");
}

/// Waits until it holds.
fn wait_until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited for {what} in vain: {}", classifiers());
}

fn started() -> Child {
    let mut child = launcher(image(), &["--net", NET], &["echo", "0"]).spawn().unwrap();
    assert_eq!(first_line(&mut child), "ready");
    assert_eq!(classifiers().matches("donjon direct-action").count(), 2);
    child
}

fn send(pid: &str, signal: Signal) {
    kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), signal).unwrap();
}

/// The filter's own process: its number.
fn keeper(child: &Child) -> String {
    let named = |pid: &&str| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() == "donjon-filter\n";
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    children.split_whitespace().find(named).expect("a keeper").to_owned()
}

/// The filter is there as long as the guest, and not longer: whether the run ends by itself, is killed, or loses the keeper.
#[test]
fn the_filter_goes_with_the_guest() {
    let Some(ns) = Namespace::new("keeper") else { return };
    ns.enter();
    let mut child = started();
    send(&child.id().to_string(), Signal::TERM);
    child.wait().unwrap();
    assert_eq!(classifiers(), "", "gone before the run ends");

    let mut child = started();
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("no filter", || classifiers().is_empty());

    // A keeper cannot be asked to go, and if it is killed the filter stays for the guest.
    let mut child = started();
    let pid = keeper(&child);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        send(&pid, signal);
    }
    assert_eq!(keeper(&child), pid);
    send(&pid, Signal::KILL);
    wait_until("the keeper's end", || {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") Z "))
    });
    assert_eq!(classifiers().matches("donjon direct-action").count(), 2);
    TcpStream::connect("10.77.0.2:7").unwrap();
    send(&child.id().to_string(), Signal::TERM);
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    child.wait().unwrap();
    assert!(said.contains("the filter is still on the TAP device"), "{said}");
    // The next run replaces what was left.
    let mut child = started();
    send(&child.id().to_string(), Signal::TERM);
    child.wait().unwrap();
    assert_eq!(classifiers(), "");
}

/// Others' classifiers stay; where one of them is in our place, the monitor filters itself.
#[test]
fn others_classifiers_are_left_alone() {
    let Some(ns) = Namespace::new("others") else { return };
    ns.enter();
    tc("qdisc add dev tap0 clsact");
    tc("filter add dev tap0 ingress pref 7 bpf bytecode 1,6 0 0 0");
    let theirs = classifiers();
    let mut child = started();
    TcpStream::connect("10.77.0.2:7").unwrap();
    send(&child.id().to_string(), Signal::TERM);
    child.wait().unwrap();
    assert_eq!(classifiers(), theirs);
    tc("filter add dev tap0 ingress protocol ip pref 1 bpf bytecode 1,6 0 0 0");
    let theirs = classifiers();
    // Root, who could have had the kernel's filter, is told.
    let r: Ran = launcher(image(), &["--net", NET], &["forge"]).output().unwrap().into();
    assert!(r.err.contains("frames pass through the monitor") && r.err.contains("neither IP nor ARP"), "{r:?}");
    assert_eq!(classifiers(), theirs);
}

/// The keeper of the filter has one right and no more descriptors than it needs, and each of its rules is needed.
#[test]
fn the_keeper_is_jailed() {
    let Some(ns) = Namespace::new("jailed") else { return };
    ns.enter();
    let plain = launcher(image(), &["--net", NET], &["echo", "0"]);
    let mut command = Command::new("prlimit");
    command.arg("--memlock=65536:").arg(plain.get_program()).args(plain.get_args());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(first_line(&mut child), "ready");
    let pid = keeper(&child);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let is = |field: &str, value: &str| {
        let found = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(":\t"));
        assert_eq!(found, Some(value), "{field}");
    };
    let (net_admin, none) = ("0000000000001000", "0000000000000000");
    for (field, value) in
        [("CapEff", net_admin), ("CapPrm", net_admin), ("CapInh", none), ("CapBnd", none), ("CapAmb", none)]
    {
        is(field, value);
    }
    is("NoNewPrivs", "1");
    is("Seccomp", "2");
    is("Uid", "65534\t65534\t65534\t65534");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    for name in ["Max core file size", "Max processes"] {
        let line = limits.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        assert!(line.split_whitespace().take(2).eq(["0", "0"]), "{name}: {line}");
    }
    // Before Linux 5.11 the filter's maps count as locked memory, of which there is little.
    let locked = limits.lines().find_map(|l| l.strip_prefix("Max locked memory")).unwrap();
    let [soft, hard]: [&str; 2] = std::array::from_fn(|n| locked.split_whitespace().nth(n).unwrap());
    assert!(soft == hard && soft != "65536", "all that root may have: {locked}");
    // The pipes' ends, the device, and the socket.
    assert_eq!(std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(), 4);
    send(&child.id().to_string(), Signal::TERM);
    child.wait().unwrap();

    for rule in donjon_monitor::jail::rules::KEEPER {
        let without = format!("keeper:{}", rule.name);
        let options = ["--net", NET, "-v", "--monitor-without-rule", &without];
        let r: Ran = launcher(image(), &options, &["hello"]).output().unwrap().into();
        let missed = ["frames pass through the monitor", "the filter is still on the TAP device"];
        assert!(missed.iter().any(|m| r.err.contains(m)), "{}: {r:?}", rule.name);
    }
}

/// So a filter on a process is one on each of its threads. (Without a TAP: `monitor_and_guest_have_no_rights_while_the_guest_runs`.)
#[test]
fn every_process_has_one_thread() {
    let Some(ns) = Namespace::new("threads") else { return };
    ns.enter();
    for (extra, count) in [(&[][..], 3), (&["--relay-tap"], 2)] {
        let mut child = launcher(image(), &[&["--net", NET][..], extra].concat(), &["echo", "0"]).spawn().unwrap();
        assert_eq!(first_line(&mut child), "ready");
        TcpStream::connect("10.77.0.2:7").unwrap();
        let monitor = child.id().to_string();
        let children = std::fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children")).unwrap();
        let processes: Vec<&str> = children.split_whitespace().chain([&*monitor]).collect();
        let threads = |pid| std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
        let found: Vec<_> = processes.iter().map(threads).collect();
        send(&monitor, Signal::TERM);
        child.wait().unwrap();
        assert_eq!(found, vec![1; count], "monitor, guest, and the keeper if the kernel filters: {extra:?}");
    }
}

/// The guest's last call before its first instruction, which puts its own rules on, comes when the filter is on the device, and monitor and keeper are jailed: whatever of that is
/// held back, the guest waits.
#[test]
fn no_guest_runs_before_its_frames_are_filtered() {
    let Some(ns) = Namespace::new("order") else { return };
    ns.enter();
    let mut command = launcher(image(), &["--net", NET], &["echo", "0"]);
    let (mut child, calls) = held::spawn(&mut command, [libc::SYS_bpf as u32, libc::SYS_seccomp as u32]).unwrap();
    let monitor = child.id().to_string();
    let of = |pid: &str, field: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let value = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(":\t"));
        value.unwrap_or_else(|| panic!("{field}")).to_owned()
    };
    // One filter is the test's own.
    let jailed = |pid: &str| of(pid, "Seccomp_filters") == "2" && of(pid, "Uid").starts_with("65534");
    let children = || std::fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children")).unwrap();
    // A process that waits for bytes.
    let reads = |pid: &str| {
        std::fs::read_to_string(format!("/proc/{pid}/syscall"))
            .is_ok_and(|s| s.starts_with(&format!("{} ", libc::SYS_read)))
    };
    let mut held = Vec::new();
    let guest = loop {
        let call = calls.next();
        let pid = call.pid.to_string();
        let who = if call.pid == child.id() {
            "monitor"
        } else if of(&pid, "Name") == "donjon-filter" {
            "keeper"
        } else {
            break call;
        };
        held.push((who, call.number == libc::SYS_seccomp as i32));
        // All that does not depend on this call goes on, until it waits.
        let settled = || match who {
            "keeper" => {
                children().split_whitespace().count() == 2
                    && children().split_whitespace().chain([&*monitor]).all(|p| p == pid || reads(p))
            }
            // Its first calls come before it has children.
            _ => children().split_whitespace().all(|p| reads(p) || of(p, "Name") == "donjon-filter"),
        };
        while !settled() {
            assert!(!calls.more(), "somebody has not waited for the {who}: {held:?}");
            std::thread::yield_now();
        }
        calls.go_on(call);
    };
    for (who, jail) in [("monitor", true), ("keeper", false), ("keeper", true)] {
        assert!(held.contains(&(who, jail)), "{who}: {held:?}");
    }
    assert_eq!(guest.number, libc::SYS_seccomp as i32, "{held:?}");
    assert!(jailed(&monitor) && jailed(&keeper(&child)));
    assert_eq!(classifiers().matches("donjon direct-action").count(), 2);
    calls.go_on(guest);
    assert_eq!(first_line(&mut child), "ready");
    send(&monitor, Signal::TERM);
    child.wait().unwrap();
}

#[test]
fn tap_errors_say_what_to_do() {
    let r: Ran = launcher(image(), &["--net", "tap:nosuchtap0"], &["hello"]).output().unwrap().into();
    assert_eq!(r.code, Some(71), "{r:?}");
    assert!(r.err.contains("there is no such interface") && r.err.contains("hint: "), "{r:?}");
    let Some(ns) = Namespace::new("down") else { return };
    ns.enter();
    assert!(ip(&["link", "set", "tap0", "down"]));
    let r: Ran = launcher(image(), &["--net", "tap:tap0"], &["hello"]).output().unwrap().into();
    assert!(r.code == Some(71) && r.err.contains("the interface is down"), "{r:?}");
}
