//! The process engine with a guest that works directly on the gate.

mod common;
#[path = "common/held.rs"]
#[expect(dead_code, reason = "one function of it")]
mod held;

use std::fs::read_to_string;
use std::io::Read;
use std::process::{Child, Stdio};

use common::{Ran, Spec, first_line, image, launcher, pack, run, run_with, write};
use donjon_skip::{Need, missing};

#[test]
fn hello_prints_and_exits_7() {
    let r = run(&["hello"]);
    assert_eq!((r.code, r.out.as_str(), r.err.as_str()), (Some(7), "hello from test-guest\n", ""));
}

#[test]
fn arguments_and_environment_arrive() {
    let spec = Spec {
        args: vec!["args".into(), "of manifest".into()],
        env: vec!["A=1".into(), "B=2".into()],
        ..Spec::default()
    };
    let image = write("args", &pack(&spec));
    let r: Ran =
        launcher(&image, &["--net", "none", "-e", "B=3", "-e", "C="], &["args", "x y", ""]).output().unwrap().into();
    assert_eq!(r.out, "arg test-guest\narg args\narg x y\narg \nenv A=1\nenv B=3\nenv C=\n");
    let out =
        std::process::Command::new(env!("CARGO_BIN_EXE_donjon-monitor")).arg(&image).args(["--net", "none"]).output();
    assert_eq!(Ran::from(out.unwrap()).out, "arg test-guest\narg args\narg of manifest\nenv A=1\nenv B=2\n");
    let r = run_with(&image, &["-e", "novalue"], &[]);
    assert_eq!(r.code, Some(2), "{r:?}");
}

#[test]
fn streams_are_kept_apart() {
    let r = run(&["stderr"]);
    assert_eq!((r.out.as_str(), r.err.as_str()), ("", "to stderr\n"));
}

#[test]
fn image_is_relocated() {
    assert_eq!(run(&["relocations"]).out, "relocated\nwords\nwork\nsame true\n");
}

#[test]
fn boot_page_is_filled_in_and_addresses_are_random() {
    let runs: Vec<String> = (0..8).map(|_| run(&["boot"]).out).collect();
    for r in &runs {
        assert!(r.starts_with("engine process\nmemory "), "{r}");
        assert!(r.contains("entropy true\nclock true\n"), "{r}");
    }
    let mut addresses: Vec<&str> = runs.iter().flat_map(|r| r.lines().nth(2)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 8);
}

#[test]
fn console_takes_megabytes_and_refuses_nonsense() {
    let r = run(&["console-big", "3000000"]);
    assert_eq!((r.code, r.out.len()), (Some(0), 3_000_000));
    assert_eq!(run(&["console-bad"]).out, "0 -22 -14\n");
}

#[test]
fn a_reader_that_goes_away_ends_nothing() {
    let mut child = launcher(image(), &["--net", "none"], &["console-big", "3000000"]).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn fault_call_reports_and_gives_its_code() {
    let r = run(&["fault-call"]);
    assert_eq!(r.code, Some(134));
    assert!(r.err.contains("the guest says: ^[[2J went wrong"), "{r:?}");
}

#[test]
fn exceptions_reach_the_fault_entry() {
    for (what, expected) in [
        ("null", "vector 14 address 0x10 error 6 at image+0x"),
        ("ud2", "vector 6 address 0x0 error 0 at image+0x"),
        ("divide", "vector 0 address 0x0 error 0 at image+0x"),
        ("overflow", "vector 14 address 0x"),
        ("overflow-tick", "vector 14 address 0x"),
    ] {
        let r = run(&[what]);
        assert_eq!(r.code, Some(70), "{what}: {r:?}");
        assert!(r.err.contains(expected) && r.err.contains("fault stack true"), "{what}: {r:?}");
        assert!(r.err.contains(" at image+0x") && !r.err.contains(" at image+0xf"), "{what}: in the image: {r:?}");
    }
}

#[test]
fn second_fault_ends_at_once() {
    let r = run(&["double-fault"]);
    assert_eq!(r.code, Some(70));
    assert!(r.err.contains("segmentation fault where the guest could not handle it"), "{r:?}");
}

#[test]
fn memory_rights_hold() {
    // Protection faults (bit 0) on write (bit 1) or fetch (bit 4), in user mode (bit 2).
    for (what, error) in [
        ("write-text", 7),
        ("write-relro", 7),
        ("write-boot", 7),
        ("write-gate", 7),
        ("write-config", 7),
        ("execute-reserve", 21),
        ("execute-stack", 21),
    ] {
        let r = run(&[what]);
        assert_eq!(r.code, Some(70), "FAILURE, {what} survived: {r:?}");
        assert!(r.err.contains(&format!(" error {error} ")), "{what}: {r:?}");
    }
}

#[test]
fn reserve_calls_work_and_stay_in_bounds() {
    let r = run(&["reserve"]);
    assert_eq!((r.code, r.out.as_str()), (Some(0), "ok\n"), "{r:?}");
}

#[test]
fn memory_budget_is_enforced() {
    let r = run_with(image(), &["--net", "none", "-m", "32"], &["eat", "20000000"]);
    assert_eq!((r.code, r.out.as_str()), (Some(0), "ate 19996672\n"), "{r:?}");
    let r = run_with(image(), &["--net", "none", "-m", "32"], &["eat", "60000000"]);
    assert_eq!(r.code, Some(70), "{r:?}");
    assert!(r.err.contains("its budget is 3"), "{r:?}");
}

#[test]
fn too_little_memory_says_how_much() {
    let image = write("small", &pack(&Spec { memory: 1 << 20, ..Spec::default() }));
    let r = run_with(&image, &["--net", "none"], &["hello"]);
    assert_eq!(r.code, Some(2), "{r:?}");
    assert!(r.err.contains("needs at least"), "{r:?}");
}

#[test]
fn ticks_reach_a_spinning_guest_and_change_nothing() {
    assert_eq!(run(&["tick"]).out, "ticks true\n");
    let r = run(&["red-zone"]);
    assert_eq!((r.code, r.out.as_str()), (Some(0), "bad 0\n"), "{r:?}");
}

#[test]
fn wait_waits() {
    assert_eq!(run(&["wait"]).out, "wait 0 true\nwait 0\n");
    // With a device too: first the frames that the network greets it with.
    assert_eq!(run_with(image(), &[], &["drain-wait"]).out, "wait 0 true\nwait 0\n");
}

#[test]
fn no_device_no_calls() {
    assert_eq!(run(&["no-net"]).out, "-38 -38\n");
}

/// An image that declares no network has no device, unless the operator opens something.
#[test]
fn what_is_not_declared_is_not_there() {
    let image = write("silent", &pack(&Spec { listen: vec![], ..Spec::default() }));
    let out = |options: &[&str]| {
        let r: Ran = launcher(&image, options, &["no-net"]).output().unwrap().into();
        r.out
    };
    assert_eq!(out(&[]), "-38 -38\n");
    assert_ne!(out(&["--listen-any"]), "-38 -38\n");
    assert_ne!(out(&["--egress-any"]), "-38 -38\n");
}

#[test]
fn forbidden_system_calls_kill() {
    let rw = "3";
    for call in [
        &["0", "1", "stack", "10"][..],          // read
        &["1", "1", "text", "10"],               // write
        &["2", "text", "0"],                     // open
        &["9", "0", "4096", "7", "34"],          // mmap
        &["10", "reserve", "4096", "4"],         // mprotect PROT_EXEC
        &["10", "reserve", "4096", "5"],         // mprotect PROT_READ | PROT_EXEC
        &["10", "reserve", "4096", "7"],         // mprotect all
        &["10", "reserve", "4096", "0x1000001"], // mprotect PROT_GROWSDOWN
        &["10", "image", "4096", rw],            // mprotect of the image
        &["10", "stub", "4096", rw],             // mprotect of the gate
        &["10", "stack", "4096", "0"],           // mprotect of the stack
        &["11", "image", "4096"],                // munmap
        &["25", "reserve", "4096", "8192", "1"], // mremap
        &["28", "reserve", "4096", "9"],         // madvise MADV_REMOVE
        &["28", "image", "4096", "4"],           // madvise of the image
        &["28", "stack", "4096", "4"],           // madvise of the stack
        &["41", "2", "1", "0"],                  // socket
        &["56", "0x11", "0", "0", "0", "0"],     // clone
        &["57"],                                 // fork
        &["59", "text", "0", "0"],               // execve
        &["62", "1", "9"],                       // kill
        &["101", "0"],                           // ptrace
        &["158", "0x1002", "0"],                 // arch_prctl
        &["16", "4", "0x5450", "0"],             // ioctl
        &["13", "14", "0", "0", "8"],            // rt_sigaction
        &["131", "0", "0"],                      // sigaltstack
        &["217", "4", "stack", "100"],           // getdents64
        &["228", "2", "stack"],                  // clock_gettime of another clock
        &["257", "0xffffff9c", "text", "0"],     // openat
        &["321", "0", "stack", "0"],             // bpf
        &["425", "1", "stack"],                  // io_uring_setup
        &["435", "stack", "88"],                 // clone3
        &["0x40000013", "4", "stack", "1"],      // x32 readv
        &["100000"],                             // no such call
    ] {
        let args = [&["syscall"], call].concat();
        let r = run(&args);
        assert_eq!((r.code, r.out.as_str()), (Some(70), "try\n"), "FAILURE, {args:?} survived: {r:?}");
        assert!(r.err.contains("ended by seccomp"), "{args:?}: {r:?}");
    }
    let r = run(&["int80"]);
    assert_eq!((r.code, r.out.as_str()), (Some(70), "try\n"), "FAILURE, int 0x80 survived: {r:?}");
    let r = run(&["vsyscall"]);
    assert_eq!((r.code, r.out.as_str()), (Some(70), "try\n"), "FAILURE, vsyscall survived: {r:?}");
}

#[test]
fn allowed_system_calls_are_all_needed() {
    for rule in donjon_monitor::process::seccomp::RULES {
        let r = run_with(image(), &["--without-rule", rule.name], &["everything"]);
        assert_eq!(r.code, Some(70), "{} is redundant: {r:?}", rule.name);
        assert!(r.err.contains("ended by seccomp"), "{}: {r:?}", rule.name);
    }
    assert_eq!(run_with(image(), &[], &["everything"]).code, Some(0));
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

fn finish(mut child: Child) -> Ran {
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    Ran { code: child.wait().unwrap().code(), out, err }
}

#[test]
fn stop_is_asked_for_once() {
    use rustix::process::Signal;
    for s in [Signal::INT, Signal::TERM] {
        let mut child = launcher(image(), &["--net", "none"], &["stop"]).spawn().unwrap();
        assert_eq!(first_line(&mut child), "ready");
        signal(&child, s);
        let r = finish(child);
        assert_eq!((r.code, r.out.as_str()), (Some(5), "stop 0\n"), "{r:?}");
    }
}

/// Under nohup(1), and in the background of a script.
#[test]
fn signals_that_were_ignored_stay_so() {
    use rustix::process::Signal;
    let (monitor, image) = (env!("CARGO_BIN_EXE_donjon-monitor"), image().display());
    let script = format!("trap '' HUP INT; exec {monitor} {image} --net none --stop-timeout-ms 100 -- deaf");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    assert_eq!(first_line(&mut child), "ready");
    for s in [Signal::HUP, Signal::INT, Signal::TERM] {
        signal(&child, s);
    }
    // The first that is heard is the one to blame.
    assert_eq!(finish(child).code, Some(143));
}

/// The end of what a guest says waits for a pipe that somebody has made non-blocking, too.
#[test]
fn the_end_of_the_output_waits_for_its_reader() {
    use rustix::pipe::{PipeFlags, pipe_with};
    let (from, to) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    rustix::io::ioctl_fionbio(&to, true).unwrap();
    let mut full = 0;
    while let Ok(n) = rustix::io::write(&to, &[b'x'; 4096]) {
        full += n;
    }
    let mut command = launcher(image(), &["--net", "none"], &["hello"]);
    let mut child = command.stdout(to).spawn().unwrap();
    drop(command);
    // Until it has ended, or waits for the pipe: ppoll.
    let path = format!("/proc/{}/syscall", child.id());
    while child.try_wait().unwrap().is_none() && !read_to_string(&path).is_ok_and(|call| call.starts_with("271 ")) {
        std::thread::yield_now();
    }
    let mut out = String::new();
    std::fs::File::from(from).read_to_string(&mut out).unwrap();
    assert_eq!((&out[full..], child.wait().unwrap().code()), ("hello from test-guest\n", Some(7)));
}

/// Without a watcher there is no guest: it would have all the memory that it likes.
#[test]
fn a_guest_that_cannot_be_watched_does_not_start() {
    let mut command = std::process::Command::new("prlimit");
    command.args(["--sigpending=0", env!("CARGO_BIN_EXE_donjon-monitor")]).arg(image()).args(["--net", "none"]);
    let r: Ran = command.args(["--", "hello"]).output().unwrap().into();
    assert_eq!((r.code, r.out.as_str()), (Some(71), ""), "{r:?}");
    assert!(r.err.contains("cannot watch the guest's memory"), "{r:?}");
}

/// Where /proc hides processes (hidepid), it hides one that is not dumpable from its own user, too: it stays so until the monitor watches it.
#[test]
fn a_guest_is_watched_before_it_hides() {
    // Nobody else may hold another program's system calls.
    if missing("a_guest_is_watched_before_it_hides", &[Need::Root]) {
        return;
    }
    let timer = libc::SYS_timer_create as u32;
    let mut command = launcher(image(), &["--net", "none"], &["hello"]);
    let (child, calls) = held::spawn(&mut command, [timer, timer]).unwrap();
    let call = calls.next();
    assert_eq!(call.pid, child.id(), "the monitor's comes first");
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let guest = read_to_string(children).unwrap();
    let of_guest = |file: &str| read_to_string(format!("/proc/{}/{file}", guest.trim())).unwrap();
    // Until it waits: read, or a call that the test holds.
    while !["0 ", "222 "].iter().any(|number| of_guest("syscall").starts_with(number)) {
        std::thread::yield_now();
    }
    // It takes the image's name right after it has become undumpable.
    assert_eq!(of_guest("comm"), "donjon-monitor\n", "it has gone on unwatched");
    calls.go_on(call);
    calls.go_on(calls.next());
    assert_eq!(finish(child).code, Some(7));
}

/// Also one that is ended before the guest's process has asked to end with it.
#[test]
fn no_guest_outlives_its_monitor() {
    if missing("no_guest_outlives_its_monitor", &[Need::Root]) {
        return;
    }
    // Only the guest's process makes this call, the first one after the monitor watches it.
    let chroot = libc::SYS_chroot as u32;
    let (mut child, calls) = held::spawn(&mut launcher(image(), &["--net", "none"], &["hello"]), [chroot; 2]).unwrap();
    let call = calls.next();
    let stat = format!("/proc/{}/stat", call.pid);
    assert_ne!(call.pid, child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    calls.go_on(call);
    // Whoever adopts it may be slow to collect it.
    let gone = || !read_to_string(&stat).is_ok_and(|text| !text.rsplit_once(") ").unwrap().1.starts_with(['Z', 'X']));
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !gone() {
        if std::time::Instant::now() > until {
            let pid = rustix::process::Pid::from_raw(call.pid.cast_signed()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            panic!("it waits for a monitor that is no more");
        }
        std::thread::yield_now();
    }
}

/// Where no program may be mapped from the image's file, it is from a copy in memory.
#[test]
fn images_run_from_where_no_program_may() {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("noexec-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let script =
        r#"mount -t tmpfs -o noexec none "$1" && cp "$2" "$1/x.img" && exec "$3" "$1/x.img" --net none -- "$4""#;
    let ran = |what: &str| -> Ran {
        let mut command = std::process::Command::new("unshare");
        command.args(["-m", "sh", "-c", script, "sh"]).arg(&dir).arg(image());
        command.args([env!("CARGO_BIN_EXE_donjon-monitor"), what]).output().unwrap().into()
    };
    if !missing("images_run_from_where_no_program_may", &[Need::Root]) {
        let r = ran("hello");
        assert_eq!((r.code, r.out.as_str()), (Some(7), "hello from test-guest\n"), "{r:?}");
        assert_eq!(ran("relocations").out, "relocated\nwords\nwork\nsame true\n");
        assert_eq!(ran("write-text").code, Some(70));
    }
    std::fs::remove_dir(&dir).unwrap();
}

#[test]
fn deaf_guests_are_ended() {
    use rustix::process::Signal;
    for (what, s, code) in [("deaf", Signal::INT, 130), ("spin", Signal::TERM, 143)] {
        let mut child = launcher(image(), &["--net", "none", "--stop-timeout-ms", "100"], &[what]).spawn().unwrap();
        assert_eq!(first_line(&mut child), "ready");
        signal(&child, s);
        assert_eq!(finish(child).code, Some(code), "after the timeout");

        let mut child = launcher(image(), &["--net", "none", "--stop-timeout-ms", "100000"], &[what]).spawn().unwrap();
        assert_eq!(first_line(&mut child), "ready");
        signal(&child, s);
        // Two of the same kind may merge while they are pending.
        signal(&child, if s == Signal::INT { Signal::TERM } else { Signal::INT });
        let code = finish(child).code;
        assert!(matches!(code, Some(130 | 143)), "after the second signal: {code:?}");
    }
}

#[test]
fn the_image_says_how_long_a_guest_may_take_to_end() {
    let [patient, not] = [86_400, 1].map(|stop| {
        let image = write(&format!("stop-{stop}"), &pack(&Spec { stop: Some(stop), ..Spec::default() }));
        let mut child = launcher(&image, &["--net", "none"], &["deaf"]).spawn().unwrap();
        assert_eq!(first_line(&mut child), "ready");
        child
    });
    let mut patient = patient;
    // The first to be asked would be the first to be ended if both had the same time.
    signal(&patient, rustix::process::Signal::TERM);
    signal(&not, rustix::process::Signal::TERM);
    assert_eq!(finish(not).code, Some(143));
    assert!(patient.try_wait().unwrap().is_none());
    signal(&patient, rustix::process::Signal::TERM);
    assert_eq!(finish(patient).code, Some(143));
    // Who runs it has the last word.
    let image = write("stop-by-option", &pack(&Spec { stop: Some(86_400), ..Spec::default() }));
    let mut child = launcher(&image, &["--net", "none", "--stop-timeout-ms", "100"], &["deaf"]).spawn().unwrap();
    assert_eq!(first_line(&mut child), "ready");
    signal(&child, rustix::process::Signal::TERM);
    assert_eq!(finish(child).code, Some(143));
}

#[test]
fn the_process_holds_nothing_but_the_guest() {
    if missing("the_process_holds_nothing_but_the_guest", &[Need::Root]) {
        return;
    }
    let mut child = launcher(image(), &[], &["deaf"]).spawn().unwrap();
    assert_eq!(first_line(&mut child), "ready");
    let pid = child.id();
    let guest = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let proc = std::path::PathBuf::from(format!("/proc/{}", guest.trim()));

    let maps = std::fs::read_to_string(proc.join("maps")).unwrap();
    for line in maps.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let name = words.get(5).copied().unwrap_or("");
        let known = name.is_empty() || name.ends_with(".img") || name.starts_with("[v");
        assert!(known, "FAILURE, not the guest's: {line}");
        assert!(!(words[1].contains('w') && words[1].contains('x')), "FAILURE, writable and executable: {line}");
    }
    let mut fds: Vec<_> = std::fs::read_dir(proc.join("fd")).unwrap().map(|e| e.unwrap().file_name()).collect();
    fds.sort();
    assert_eq!(fds, ["1", "2", "3", "4"]);
    let status = std::fs::read_to_string(proc.join("status")).unwrap();
    for line in [
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Threads:\t1",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapInh:\t0000000000000000",
        "Uid:\t65534\t65534\t65534\t65534",
    ] {
        assert!(status.contains(line), "{line} in {status}");
    }
    let limits = std::fs::read_to_string(proc.join("limits")).unwrap();
    for (limit, most) in
        [("Max open files", "1"), ("Max processes", "0"), ("Max core file size", "0"), ("Max locked memory", "0")]
    {
        let line = limits.lines().find(|l| l.starts_with(limit)).unwrap();
        assert_eq!(line[limit.len()..].split_ascii_whitespace().next(), Some(most), "{line}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // The guest does not outlive its monitor.
    for _ in 0..1000 {
        // Gone, or a corpse that waits for whoever runs this machine.
        if std::fs::read_to_string(proc.join("status")).map_or(true, |s| s.contains("State:\tZ")) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("FAILURE, the guest has survived its monitor");
}

#[test]
fn a_start_that_fails_says_where() {
    let script =
        format!("ulimit -v 1000000; exec {} {} --net none", env!("CARGO_BIN_EXE_donjon-monitor"), image().display());
    let r: Ran = std::process::Command::new("sh").args(["-c", &script]).output().unwrap().into();
    assert_eq!((r.code, r.out.as_str()), (Some(71), ""), "{r:?}");
    assert!(r.err.contains("mapping memory: Cannot allocate memory"), "{r:?}");
}

#[test]
fn bad_images_are_refused() {
    let good = pack(&Spec::default());
    let code = |name: &str, bytes: &[u8]| {
        let r = run_with(&write(name, bytes), &["--net", "none"], &["hello"]);
        (r.code.unwrap(), r.err)
    };
    let patched = |at: usize, value: u8| {
        let mut b = good.clone();
        b[at] = value;
        b
    };
    for (name, bytes, says) in [
        ("empty", vec![], "not a Donjon image"),
        ("text", b"hello".to_vec(), "not a Donjon image"),
        ("truncated", good[..good.len() - 4096].to_vec(), "truncated"),
        ("short", good[..5000].to_vec(), "truncated"),
        ("version", patched(4096 + 8, 99), "gate version 99"),
        ("flipped", patched(good.len() - 5000, good[good.len() - 5000] ^ 1), "damaged"),
        ("hash", patched(4096 + 30, !good[4096 + 30]), "damaged"),
    ] {
        let (code, err) = code(name, &bytes);
        assert_eq!(code, 65, "{name}: {err}");
        assert!(err.contains(says) && err.contains("hint: "), "{name}: {err}");
    }
    for memory in [10 << 40, u64::MAX] {
        let (code, err) = code("memory", &pack(&Spec { memory, ..Spec::default() }));
        assert_eq!(code, 65, "{memory}: {err}");
        assert!(err.contains("Memory record is malformed"), "{memory}: {err}");
    }
    let r = run_with(image(), &["--net", "none", "-m", "10485760"], &["hello"]);
    assert_eq!(r.code, Some(2), "{r:?}");
    assert!(r.err.contains("more than 1024 GiB"), "{r:?}");
    let r = run_with("/nowhere/at/all.img".as_ref(), &[], &[]);
    assert_eq!(r.code, Some(66), "{r:?}");
    let r = run_with("/tmp".as_ref(), &[], &[]);
    assert_eq!(r.code, Some(65), "{r:?}");
}
