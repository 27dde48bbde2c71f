//! The monitor's jail and the guest's process, looked at from outside and tried from inside, as root and as an ordinary user.

mod common;
#[path = "common/no_vdso.rs"]
mod no_vdso;
#[path = "common/refused.rs"]
mod refused;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Ran, Spec, first_line, image, launcher, pack, write};
use donjon_abi::manifest::Egress;
use donjon_monitor::jail::rules;
use donjon_skip::{Need, missing, skip, this_test};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// A user without a name, for tests that root runs.
const SOMEBODY: &str = "54321";

/// The launcher as root, if we are, and as an ordinary user.
fn as_users(options: &[&str], args: &[&str]) -> Vec<(&'static str, Command)> {
    as_users_with(image(), options, args)
}

fn as_users_with(image: &Path, options: &[&str], args: &[&str]) -> Vec<(&'static str, Command)> {
    let plain = launcher(image, options, args);
    if missing(&format!("{} as root", this_test()), &[Need::Root]) {
        return vec![("user", plain)];
    }
    let mut user = Command::new("setpriv");
    user.args(["--reuid", SOMEBODY, "--regid", SOMEBODY, "--clear-groups", "--bounding-set=-all"]);
    user.arg(plain.get_program()).args(plain.get_args());
    user.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    vec![("root", plain), ("user", user)]
}

/// A field of `/proc/PID/status`.
fn status(pid: &str, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {text}")).trim().to_owned()
}

fn children(pid: u32) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(str::to_owned).collect()
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn monitor_and_guest_have_no_rights_while_the_guest_runs() {
    for (user, mut command) in as_users(&[], &["echo", "0"]).into_iter().chain(as_users(&["--net", "none"], &["deaf"]))
    {
        let mut child = command.spawn().unwrap();
        assert_eq!(first_line(&mut child), "ready");
        let mut processes = children(child.id());
        assert_eq!(processes.len(), 1, "one guest");
        processes.push(child.id().to_string());
        for pid in &processes {
            let of = |field| status(pid, field);
            assert_eq!(
                (of("Seccomp"), of("NoNewPrivs"), of("Threads")),
                ("2".into(), "1".into(), "1".into()),
                "{user}"
            );
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(of(set), "0000000000000000", "{set} of {user}'s {pid}");
            }
            assert!(!of("Uid").split_whitespace().any(|id| id == "0"), "{user}: {}", of("Uid"));
        }
        let monitor = child.id().to_string();
        assert_eq!(status(&monitor, "CapBnd"), "0000000000000000", "{user}");
        let own = |name: &str| std::fs::read_link(format!("/proc/{monitor}/ns/{name}")).unwrap();
        let ours = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        if rustix::process::geteuid().is_root() {
            for name in ["mnt", "net", "ipc", "uts", "cgroup"] {
                assert_ne!(own(name), ours(name), "{user}: {name}");
            }
            let guests = |name: &str| std::fs::read_link(format!("/proc/{}/ns/{name}", processes[0])).unwrap();
            for name in ["net", "ipc", "uts", "cgroup", "pid"] {
                assert_ne!(guests(name), ours(name), "the guest of {user}: {name}");
            }
            let root = std::fs::read_dir(format!("/proc/{monitor}/root")).unwrap();
            assert_eq!(root.count(), 0, "{user}: an empty root");
        }
        end(child);
    }
}

/// The soft and the hard limit of that name in `/proc/PID/limits`.
fn limits(pid: &str, name: &str) -> [String; 2] {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    let mut words = line.split_whitespace().map(str::to_owned);
    std::array::from_fn(|_| words.next().unwrap())
}

#[test]
fn resources_are_limited_while_the_guest_runs() {
    let silent = write("limited", &pack(&Spec { listen: vec![], ..Spec::default() }));
    let both =
        [("Max core file size", "0"), ("Max processes", "0"), ("Max locked memory", "0"), ("Max msgqueue size", "0")];
    let guest = [("Max open files", "1"), ("Max file size", "0")];
    for (image, files) in [(image(), None), (silent.as_path(), Some("64"))] {
        for (user, mut command) in as_users_with(image, &[], &["deaf"]) {
            let mut child = command.spawn().unwrap();
            assert_eq!(first_line(&mut child), "ready");
            // With user-mode networking each connection of the monitor's is a descriptor.
            let of_monitor = both.into_iter().chain(files.map(|n| ("Max open files", n)));
            let of_guest = both.into_iter().chain(guest);
            let guests = children(child.id());
            let limited = |pid: &str, name: &'static str, most| (name, limits(pid, name), [most, most]);
            let found: Vec<_> = of_monitor
                .map(|(name, most)| limited(&child.id().to_string(), name, most))
                .chain(of_guest.map(|(name, most)| limited(&guests[0], name, most)))
                .collect();
            end(child);
            for (name, is, most) in found {
                assert_eq!(is, most, "{name}, as {user}: {:?}", image.file_name());
            }
        }
    }
}

/// More address space than that is left to the monitor, and only with user-mode networking.
#[test]
fn the_monitors_memory_is_limited() {
    let silent = write("bounded", &pack(&Spec { listen: vec![], ..Spec::default() }));
    let mib = |n: u64| n << 20;
    for (image, most) in [(silent.as_path(), mib(32)), (image(), mib(256))] {
        for (user, mut command) in as_users_with(image, &[], &["deaf"]) {
            let mut child = command.spawn().unwrap();
            assert_eq!(first_line(&mut child), "ready");
            let pid = child.id().to_string();
            let (limits, now) = (limits(&pid, "Max address space"), status(&pid, "VmSize"));
            end(child);
            assert_eq!(limits[0], limits[1], "{user}");
            let limit: u64 = limits[0].parse().unwrap_or_else(|_| panic!("{user}: {limits:?}"));
            let left = limit - 1024 * now.strip_suffix(" kB").unwrap().parse::<u64>().unwrap();
            // A little has been taken since.
            assert!(left <= most + mib(1) && left > most - mib(4), "{user}: {left} bytes are left");
        }
    }
}

/// It says so and ends, at once.
#[test]
fn a_monitor_without_memory_ends() {
    use std::os::unix::process::ExitStatusExt;
    let out = launcher(with_symbols(), &["--monitor-memory", "1000000"], &["null"]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("memory allocation of ") && said.contains(" bytes failed"), "{said}");
    // Raising SIGABRT is not on the list; abort(3) then executes what no program may.
    assert_eq!(out.status.signal(), Some(libc::SIGSEGV), "{said}");
    // With what it is given for a file of this size, it has enough.
    let r: Ran = launcher(with_symbols(), &[], &["null"]).output().unwrap().into();
    assert!(r.code == Some(70) && r.err.contains("image+0x"), "{r:?}");
}

#[test]
fn nothing_can_be_done_from_inside() {
    // With user-mode networking, and with nothing that has hash tables of its own.
    for (user, mut command) in
        as_users(&["--in-jail"], &["hello"]).into_iter().chain(as_users(&["--net", "none", "--in-jail"], &["hello"]))
    {
        let r: Ran = command.output().unwrap().into();
        assert!(r.out.starts_with("1 hash table\n"), "{user}: {r:?}");
        assert_eq!(r.out.matches(": refused, ").count(), 13, "{user}: {r:?}");
        assert!(!r.out.contains("FAILURE") && r.out.ends_with("hello from test-guest\n"), "{user}: {r:?}");
    }
    assert!(!std::path::Path::new("/tmp/donjon-jail-test").exists());
}

/// Even for a guest that may connect, the monitor can reach declared ports only, and open nothing else.
#[test]
fn a_dialling_monitor_reaches_declared_ports_only() {
    let addr = std::net::Ipv4Addr::new(10, 0, 2, 2).to_ipv6_mapped().octets();
    let egress = vec![Egress { protocol: 6, prefix: 128, port: 9, addr }];
    let image = write("dials", &pack(&Spec { egress, ..Spec::default() }));
    let r: Ran = launcher(&image, &["--in-jail"], &["hello"]).output().unwrap().into();
    assert_eq!(r.out.matches(": refused, ").count(), 13, "{r:?}");
    // By Landlock, as the call itself is listed: to a port that is not declared.
    match rules_have_landlock() {
        true => assert!(r.out.contains("connect: refused, Permission denied"), "{r:?}"),
        false => skip("a_dialling_monitor_reaches_declared_ports_only", "needs Landlock"),
    }
    // Landlock does not look at these ways to connect.
    for way in ["sending", "sending a message", "MPTCP"] {
        assert!(r.out.contains(&format!("connect by {way}: refused, Operation not permitted")), "{r:?}");
    }
}

/// Whether this kernel has Landlock, which the explanation says.
fn rules_have_landlock() -> bool {
    let r: Ran = launcher(image(), &["--explain-jail"], &["hello"]).output().unwrap().into();
    r.out.lines().any(|l| l.trim_start().starts_with("yes  Landlock"))
}

#[test]
fn the_jail_explains_itself() {
    for (user, mut command) in as_users(&["--explain-jail"], &["hello"]) {
        let r: Ran = command.output().unwrap().into();
        assert_eq!(r.code, Some(0), "{user}: {r:?}");
        for layer in ["the guest's process", "the monitor", "seccomp", "Landlock", "capabilities", "mount namespace"] {
            assert!(r.out.contains(layer), "{user}: {layer}: {r:?}");
        }
        assert!(!r.out.contains("hello from test-guest"), "{user}: it does not start: {r:?}");
    }
    let r: Ran = launcher(image(), &["--explain-jail-json"], &["hello"]).output().unwrap().into();
    assert!(r.out.starts_with("[{\"process\":") && r.out.contains("\"applied\":true"), "{r:?}");
}

/// Root without the rights for namespaces and another root, if we are root. The bounding set is what is left to it after exec.
fn weak_root(options: &[&str], args: &[&str]) -> Command {
    let plain = launcher(image(), options, args);
    let mut weak = Command::new("setpriv");
    weak.arg("--bounding-set=-sys_admin,-sys_chroot").arg(plain.get_program()).args(plain.get_args());
    weak.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    weak
}

/// Root that can become nobody else serves as an ordinary user does: in a container without capabilities, which may have no namespaces either, and in a user
/// namespace of one user.
#[test]
fn root_that_can_become_nobody_else_serves() {
    if missing("root_that_can_become_nobody_else_serves", &[Need::Root]) {
        return;
    }
    let ways: [(&[&str], bool); 3] = [
        (&["setpriv", "--bounding-set=-all"], false),
        (&["setpriv", "--bounding-set=-all"], true),
        (&["unshare", "-Ur"], false),
    ];
    for (way, without_namespaces) in ways {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let publish = format!("{port}:7");
        let as_it = |options: &[&str]| {
            let plain = launcher(image(), options, &["echo", "0"]);
            let mut command = Command::new(way[0]);
            command.args(&way[1..]).arg(plain.get_program()).args(plain.get_args());
            if without_namespaces {
                refused::from_the_start(&mut command, libc::SYS_unshare as u32);
            }
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        };
        let r: Ran = as_it(&["--explain-jail"]).output().unwrap().into();
        assert!(r.out.contains("root, who cannot become anybody else here"), "{way:?}: {r:?}");
        let mut child = as_it(&["-p", &publish]).spawn().unwrap();
        assert_eq!(first_line(&mut child), "ready", "{way:?}");
        let monitor = child.id().to_string();
        let guest = children(child.id());
        for pid in [&monitor, &guest[0]] {
            assert_eq!(status(pid, "CapPrm"), "0000000000000000", "{way:?}");
        }
        let mut s = TcpStream::connect(("127.0.0.1", port)).unwrap();
        s.write_all(b"hello").unwrap();
        let mut answer = [0; 5];
        s.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let r: Ran = child.wait_with_output().unwrap().into();
        assert_eq!((r.code, r.err.as_str()), (Some(0), ""), "{way:?}");
    }
}

/// What is explained of the guest's root is what its process has.
#[test]
fn the_root_of_the_guest_is_what_is_explained() {
    if missing("the_root_of_the_guest_is_what_is_explained", &[Need::Root]) {
        return;
    }
    type Make = fn(&[&str], &[&str]) -> Command;
    let full: Make = |options, args| launcher(image(), options, args);
    for (make, bare) in [(full, true), (weak_root as Make, false)] {
        let r: Ran = make(&["--explain-jail"], &["hello"]).output().unwrap().into();
        let root = r.out.lines().find_map(|l| l.trim_start().split_once("  root ")).unwrap_or_else(|| panic!("{r:?}"));
        assert_eq!(root.0 == "yes", bare, "{r:?}");
        let mut child = make(&[], &["deaf"]).spawn().unwrap();
        assert_eq!(first_line(&mut child), "ready");
        let list = std::fs::read_dir(format!("/proc/{}/root", children(child.id())[0])).unwrap();
        let names: Vec<_> = list.map(|entry| entry.unwrap().file_name()).collect();
        end(child);
        assert_eq!(names.iter().all(|n| n.to_str().is_some_and(|n| n.parse::<u32>().is_ok())), bare, "{names:?}");
    }
}

/// A layer that promises rest on is not lost without a word, nor is one that backs it up with `-v`; without the filter nothing starts.
#[test]
fn what_the_host_refuses_is_said() {
    const LINE: &str = "donjon: the host refused layers of the jail: ";
    let ran = |call: Option<i64>, options: &[&str]| -> Ran {
        let mut command = launcher(image(), options, &["hello"]);
        if let Some(call) = call {
            refused::from_the_start(&mut command, call as u32);
        }
        command.output().unwrap().into()
    };
    let r = ran(None, &[]);
    assert!(r.code == Some(7) && !r.err.contains(LINE), "{r:?}");
    let r = ran(Some(libc::SYS_landlock_create_ruleset), &[]);
    assert!(r.code == Some(7) && r.err.contains(&format!("{LINE}Landlock of the monitor (")), "{r:?}");
    let r = ran(Some(libc::SYS_seccomp), &[]);
    assert!(
        r.code == Some(71) && r.err.contains("cannot limit the monitor's system calls") && r.out.is_empty(),
        "{r:?}"
    );
    let r = ran(Some(libc::SYS_seccomp), &["--explain-jail"]);
    assert!(r.code == Some(0) && r.out.contains("  no   seccomp "), "{r:?}");
    for (options, said) in [(&[][..], false), (&["-v"], true)] {
        let r = ran(Some(libc::SYS_unshare), options);
        assert_eq!((r.code, r.err.contains(LINE)), (Some(7), said), "{r:?}");
        assert_eq!(r.err.contains("mount namespace of the monitor"), said, "{r:?}");
    }
}

/// Some hosts (AppArmor of Ubuntu 24.04) let an ordinary user make a user namespace, but give no rights in it: others are had together with it or not at all.
#[test]
fn namespaces_come_with_the_user_namespace() {
    for (user, mut command) in as_users(&["--explain-jail"], &["hello"]) {
        if user == "root" {
            continue;
        }
        refused::without_bits(&mut command, libc::SYS_unshare as u32, libc::CLONE_NEWUSER as u32);
        let r: Ran = command.output().unwrap().into();
        let monitors = r.out.split_once("the monitor\n").unwrap_or_else(|| panic!("{r:?}")).1;
        if monitors.contains("  no   user namespace") {
            return skip(&this_test(), "needs user namespaces for ordinary users");
        }
        for layer in ["mount namespace", "network namespace", "IPC, UTS and cgroup namespaces"] {
            assert!(monitors.contains(&format!("  yes  {layer}")), "{layer}: {r:?}");
        }
    }
}

/// Runs everything that the monitor does, without one of its rules; true if it ended for that.
fn needs(rule: &str) -> bool {
    let runs = [crash, dial, stop, serve, without_vdso];
    runs.iter().any(|run| {
        run(&|image, options, args| launcher(image, &[options, &["--monitor-without-rule", rule]].concat(), args))
    })
}

/// A launcher of an image with options and arguments.
type Launch<'a> = dyn Fn(&Path, &[&str], &[&str]) -> Command + 'a;

/// An image whose symbols are those of the monitor itself: megabytes.
fn with_symbols() -> &'static Path {
    static IMAGE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    IMAGE.get_or_init(|| {
        let image = write("with-symbols", &pack(&Spec::default()));
        std::fs::copy(env!("CARGO_BIN_EXE_donjon-monitor"), donjon_monitor::symbols::beside(&image)).unwrap();
        image
    })
}

/// A crash, whose report gets the names of functions.
fn crash(launch: &Launch<'_>) -> bool {
    killed(launch(with_symbols(), &[], &["null"]).spawn().unwrap())
}

/// A guest that does not listen is asked to stop, and ended at the second request. Between these, and before, the monitor is stopped and goes on.
fn stop(launch: &Launch<'_>) -> bool {
    let mut child = launch(image(), &["--stop-timeout-ms", "3600000"], &["deaf"]).spawn().unwrap();
    if first_line(&mut child) == "ready" {
        let pid = Pid::from_child(&child);
        let send = |signal| {
            let _ = kill_process(pid, signal);
        };
        for _ in 0..2 {
            if idle(pid) {
                send(Signal::STOP);
                let _ =
                    waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
                send(Signal::CONT);
                idle(pid);
            }
            send(Signal::TERM);
        }
    }
    killed(child)
}

/// Waits until the process does; false if it has ended.
fn idle(pid: Pid) -> bool {
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
        match stat.rsplit_once(") ").unwrap().1.as_bytes()[0] {
            b'S' => return true,
            b'Z' => return false,
            _ => std::thread::yield_now(),
        }
    }
}

/// Where the kernel has no vDSO, or the host no clock that it can read.
fn without_vdso(launch: &Launch<'_>) -> bool {
    killed(no_vdso::spawn(&mut launch(image(), &[], &["hello"])).unwrap())
}

/// A guest that connects.
fn dial(launch: &Launch<'_>) -> bool {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = format!("10.0.2.2:{}", listener.local_addr().unwrap().port());
    let gateway =
        Egress { protocol: 0, prefix: 128, port: 0, addr: Ipv4Addr::new(10, 0, 2, 2).to_ipv6_mapped().octets() };
    let image = write("dial", &pack(&Spec { egress: vec![gateway], ..Spec::default() }));
    let child = launch(&image, &[], &["connect", &to, "3000000"]).spawn().unwrap();
    let server = std::thread::spawn(move || {
        listener.set_nonblocking(true).unwrap();
        for _ in 0..300 {
            if let Ok((mut s, _)) = listener.accept() {
                s.set_nonblocking(false).unwrap();
                s.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
                let mut buffer = vec![0; 65536];
                while let Ok(n @ 1..) = s.read(&mut buffer) {
                    if s.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let killed = killed(child);
    drop(server);
    killed
}

/// A guest that serves, and is asked to stop.
fn serve(launch: &Launch<'_>) -> bool {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let publish = [format!("{port}:7"), format!("{port}:7/udp")];
    let mut child = launch(image(), &["-p", &publish[0], "-p", &publish[1]], &["echo", "0"]).spawn().unwrap();
    if first_line(&mut child) == "ready" {
        talk(port);
        let _ = kill_process(Pid::from_child(&child), Signal::TERM);
    }
    killed(child)
}

/// A few connections and a datagram. Errors are what the monitor's end looks like from here.
fn talk(port: u16) {
    let talk = || -> std::io::Result<()> {
        let timeout = Some(Duration::from_secs(3));
        let mut s = TcpStream::connect(("127.0.0.1", port))?;
        s.set_read_timeout(timeout)?;
        let mut writer = s.try_clone()?;
        let writing = std::thread::spawn(move || {
            let _ = writer.write_all(&vec![b'x'; 2_000_000]);
            let _ = writer.shutdown(Shutdown::Write);
        });
        let mut all = Vec::new();
        let read = s.read_to_end(&mut all);
        let _ = writing.join();
        read?;
        let mut s = TcpStream::connect(("127.0.0.1", port))?;
        s.set_read_timeout(timeout)?;
        s.write_all(b"R")?;
        let _ = s.read(&mut [0]);
        let u = UdpSocket::bind("127.0.0.1:0")?;
        u.set_read_timeout(timeout)?;
        u.send_to(b"datagram", ("127.0.0.1", port))?;
        u.recv(&mut [0; 16]).map(drop)
    };
    let _ = talk();
}

/// Whether the monitor was ended by its filter.
fn killed(mut child: Child) -> bool {
    use std::os::unix::process::ExitStatusExt;
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while let Some(Ok(_)) = lines.next() {}
    child.wait().unwrap().signal() == Some(SIGSYS)
}

/// The number of SIGSYS on x86-64.
const SIGSYS: i32 = 31;

#[test]
fn no_rule_of_the_monitor_is_redundant() {
    // Without any rule missing, nothing is ended.
    assert!(!needs("none of them"));
    // Only debug builds of the standard library ask for that.
    let needed = |name: &&str| cfg!(debug_assertions) || *name != "fcntl";
    let all = rules::ALWAYS.iter().chain(&rules::FRAMES).chain(&rules::USERNET).chain(&rules::DIAL);
    let redundant: Vec<_> = all.map(|r| r.name).filter(needed).filter(|name| !needs(name)).collect();
    assert!(redundant.is_empty(), "{redundant:?}");
}
