//! The monitor's own jail: put on before the guest's first instruction, when everything that the monitor needs is open. A guest that takes the monitor
//! over finds a process that can do nothing but go on with what it has.
//!
//! Each layer stands alone, and one that this machine does not offer is left out with the reason, which `donjon run --explain-jail` shows. A run says it of those that
//! a promise rests on, and needs the last, the filter on system calls.

mod report;
pub mod rules;
mod sys;

use std::io::{Error, Result};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus, Scope,
};

pub use report::{Explain, Layer, Report, State};

use crate::net::Choice;
use crate::options::{Protection, RunOptions};
use crate::process::seccomp::{self, Otherwise, Rule};

/// The user that root becomes.
pub(crate) const NOBODY: u32 = 65_534;

/// What the monitor still has to do with the network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Network {
    /// Nothing.
    None,
    /// It passes frames on between open descriptors.
    Frames,
    /// User-mode networking for a guest that may only serve.
    Serve,
    /// User-mode networking for a guest that may connect: to these TCP ports, or to any.
    Dial(Option<Vec<u16>>),
}

/// How to jail.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub network: Network,
    /// This is root, who can become nobody ([`is_root`]).
    pub root: bool,
    /// Leave this rule out and end the process at what is not listed: for the test that none is redundant.
    pub without_rule: Option<&'static str>,
    /// Address space that the monitor may get, beyond what it has, bytes.
    pub memory: u64,
    /// Where this process is by now.
    pub place: Place,
    /// For measurements: no jail.
    pub off: bool,
}

impl Plan {
    /// For a monitor with this to do, of root or not; `symbols` are the bytes of symbols' files that it may have to read.
    pub fn new(network: Network, root: bool, symbols: u64, options: &RunOptions) -> Plan {
        let work = match network {
            Network::None | Network::Frames => MEMORY_PLAIN,
            Network::Serve | Network::Dial(_) => MEMORY_USERNET,
        };
        Plan {
            network,
            root,
            without_rule: options.monitor_without_rule,
            memory: options.monitor_memory.unwrap_or(work + symbols.saturating_mul(MEMORY_SYMBOLS)),
            place: Place::Host,
            off: options.without.contains(&Protection::Jail),
        }
    }
}

/// What the monitor may take for the console, crash reports and the filter of frames: it needs hundreds of KiB.
const MEMORY_PLAIN: u64 = 32 << 20;
/// The same with user-mode networking: its stack's queues hold 64 MiB at most, what its connections hold beside them 32 MiB (`flow::HELD_MAX`), and 30,000 connections
/// take some KiB each.
const MEMORY_USERNET: u64 = 256 << 20;
/// For each byte of a file with symbols: its content, and the table of functions with their names, with room for that to grow.
const MEMORY_SYMBOLS: u64 = 4;

/// Whose network namespace a process is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// The host's.
    Host,
    /// One without a network, which monitor and guest share.
    Nowhere,
}

/// Whether this is root that can become [`NOBODY`]. In a container without capabilities, or in a user namespace that has root only, it is an ordinary user to
/// the jail, which gets what those get.
pub(crate) fn is_root() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    let both = CapabilitySet::SETUID | CapabilitySet::SETGID;
    let may = || capabilities(None).is_ok_and(|sets| sets.effective.contains(both));
    // Kernels without user namespaces do not have these files.
    let says = |file: &str, sound: fn(&str) -> bool| std::fs::read_to_string(file).map_or(true, |text| sound(&text));
    rustix::process::geteuid().is_root()
        && may()
        && says("/proc/self/uid_map", has_nobody)
        && says("/proc/self/gid_map", has_nobody)
        && says("/proc/self/setgroups", |text| text.trim() == "allow")
}

/// Whether [`NOBODY`] is in this map of ids: lines of the first one, who it is outside, and how many there are.
fn has_nobody(map: &str) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_ascii_whitespace().map(|n| n.parse().unwrap_or(0u64));
        let (first, _, count) = (numbers.next(), numbers.next(), numbers.next());
        first.zip(count).is_some_and(|(first, count)| (first..first + count).contains(&NOBODY.into()))
    })
}

/// Leaves the host's network for a namespace without one, for the guest's process too, which is started next: making one takes as long as starting a process, so there is one
/// for both, and nobody in it who could open a socket. It stays where it is if it needs the host's network, or the host refuses.
pub(crate) fn leave_the_network(root: bool, network: &Network, options: &RunOptions) -> Place {
    let stays = matches!(network, Network::Dial(_)) || options.without.contains(&Protection::Jail);
    // An ordinary user gets one with a user namespace only, each its own.
    match !stays && root && sys::unshare(libc::CLONE_NEWNET).is_ok() {
        true => Place::Nowhere,
        false => Place::Host,
    }
}

/// Jails this process, for good. The guest's process has been started and waits.
pub(crate) fn enter(plan: &Plan) -> Report {
    begin(plan).complete(plan)
}

/// All layers but the last are on.
#[derive(Debug)]
#[must_use = "the system calls are still free"]
pub(crate) struct Begun(Report);

impl Begun {
    /// Puts the last layer on: the calls that are left. Of the plan, only what there is to do for frames may be less than at the beginning.
    pub fn complete(self, plan: &Plan) -> Report {
        let Begun(mut report) = self;
        // Most of the program has done its work, and `madvise` is not among the calls that are left.
        crate::memory::release_program();
        if !plan.off {
            report.add("seccomp", filter(plan));
        }
        report
    }
}

/// Begins to: there are no rights any more, but for calls that work on what is open.
pub(crate) fn begin(plan: &Plan) -> Begun {
    let mut report = Report::new("the monitor");
    if plan.off {
        report.skip("all of it", "for a measurement");
        return Begun(report);
    }
    // The standard library asks for the keys of its hash tables once for each thread, and there is one: later it could not (`getrandom`).
    let _ = std::hash::RandomState::new();
    let root = plan.root;
    let user = rustix::process::geteuid();
    report.add("faults", sys::no_handlers().map(|()| "the kernel ends it, and no handler".into()));
    let at_parents_end = sys::at_parents_end();
    report.add("not dumpable", sys::not_dumpable().map(|()| "no core dumps, no ptrace by others".into()));
    report.add("resource limits", limits(plan));
    report.add("memory", memory(plan.memory));
    namespaces(&mut report, root, plan);
    report.add(
        "capabilities",
        sys::no_capabilities(root).map(|()| match sys::bounding_set_is_empty() {
            true => "all sets empty, the bounding set too".into(),
            false => "all sets empty, but the bounding set, as the host refused the user namespace".into(),
        }),
    );
    match root {
        true => report.add("user", sys::become_user(NOBODY).map(|()| format!("root has become nobody ({NOBODY})"))),
        false => report.add("user", Ok(of_user(user))),
    }
    let _ = sys::set_at_parents_end(at_parents_end);
    report.add("no new privileges", sys::no_new_privileges().map(|()| "no program can give rights back".into()));
    report.add("Landlock", monitor_ruleset(&plan.network).and_then(|r| restrict(r, describe(&plan.network))));
    Begun(report)
}

/// Whose a process stays.
fn of_user(user: rustix::process::Uid) -> String {
    match user.is_root() {
        true => "root, who cannot become anybody else here".into(),
        false => format!("an ordinary user ({})", user.as_raw()),
    }
}

fn limits(plan: &Plan) -> Result<String> {
    sys::limit(libc::RLIMIT_CORE, 0)?;
    sys::limit(libc::RLIMIT_NPROC, 0)?;
    sys::limit(libc::RLIMIT_MEMLOCK, 0)?;
    sys::limit(libc::RLIMIT_MSGQUEUE, 0)?;
    if matches!(plan.network, Network::Serve | Network::Dial(_)) {
        return Ok("no processes, no core dumps, no locked memory".into());
    }
    sys::limit(libc::RLIMIT_NOFILE, 64)?;
    Ok("no processes, no core dumps, no locked memory, 64 descriptors".into())
}

/// Bounds the address space. (`RLIMIT_DATA` would leave shared mappings out.)
fn memory(more: u64) -> Result<String> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    let now = pages.ok_or_else(|| Error::other("/proc/self/statm is not understood"))? * donjon_abi::PAGE;
    sys::limit(libc::RLIMIT_AS, now + more)?;
    Ok(format!("at most {} MiB more than at the start", more.div_ceil(1 << 20)))
}

fn namespaces(report: &mut Report, root: bool, plan: &Plan) {
    let rest = libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
    let stays = matches!(plan.network, Network::Dial(_));
    let network = if stays || plan.place == Place::Nowhere { 0 } else { libc::CLONE_NEWNET };
    // Some hosts (AppArmor of Ubuntu 24.04) give an ordinary user no rights in a user namespace: what comes with it is all that there is.
    let at_once = !root && sys::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS | network | rest).is_ok();
    let own = |spaces| if at_once { Ok(()) } else { sys::unshare(spaces) };
    if !root {
        report.add("user namespace", own(libc::CLONE_NEWUSER).map(|()| "its own, without mappings".into()));
    } else {
        report.skip("user namespace", "not needed: capabilities are given up instead");
    }
    let mounts = own(libc::CLONE_NEWNS).and_then(|()| sys::empty_root());
    report.add("mount namespace", mounts.map(|()| "an empty, read-only root".into()));
    match plan.place {
        _ if stays => report.skip("network namespace", "`egress` goes through the host's network"),
        Place::Nowhere => report.add("network namespace", Ok("an empty one, its own and the guest's".into())),
        Place::Host => report.add("network namespace", own(network).map(|()| "its own, empty".into())),
    }
    report.add("IPC, UTS and cgroup namespaces", own(rest).map(|()| "its own".into()));
    report.skip("PID namespace", "a process cannot change its own; seccomp lets it signal the guest only");
}

/// Nothing on the file system, no listening, and no TCP connection but to declared ports.
fn monitor_ruleset(network: &Network) -> Result<RulesetCreated> {
    let build = || -> std::result::Result<RulesetCreated, landlock::RulesetError> {
        // What the kernel does not know is left out.
        let abi = ABI::V6;
        let mut net = AccessNet::from_all(abi);
        if matches!(network, Network::Dial(None)) {
            net.remove(AccessNet::ConnectTcp);
        }
        let created = Ruleset::default()
            .handle_access(AccessFs::from_all(abi))?
            .handle_access(net)?
            // Not signals: the guest's process is outside, and must be ended.
            .scope(Scope::AbstractUnixSocket)?
            .create()?;
        let ports = match network {
            Network::Dial(Some(ports)) => &ports[..],
            _ => &[],
        };
        created
            .add_rules(ports.iter().map(|p| Ok::<_, landlock::RulesetError>(NetPort::new(*p, AccessNet::ConnectTcp))))
    };
    build().map_err(Error::other)
}

fn describe(network: &Network) -> &'static str {
    match network {
        Network::Dial(None) => "no files, no listening",
        Network::Dial(Some(_)) => "no files, no listening, TCP connections to declared ports only",
        _ => "no files, no listening, no TCP connections",
    }
}

fn restrict(ruleset: RulesetCreated, what: &str) -> Result<String> {
    let status = ruleset.restrict_self().map_err(Error::other)?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(what.into()),
        RulesetStatus::PartiallyEnforced => Ok(format!("{what}, as far as this kernel knows these")),
        RulesetStatus::NotEnforced => Err(Error::other("the kernel has no Landlock, or it is off (Linux 5.13, lsm=)")),
    }
}

/// The rules for what the monitor still has to do.
pub(crate) fn rules_for(network: &Network) -> Vec<Rule> {
    let mut rules = rules::ALWAYS.to_vec();
    if *network != Network::None {
        rules.extend(rules::FRAMES);
    }
    if matches!(network, Network::Serve | Network::Dial(_)) {
        rules.extend(rules::USERNET);
    }
    if matches!(network, Network::Dial(_)) {
        rules.extend(rules::DIAL);
    }
    rules
}

fn filter(plan: &Plan) -> Result<String> {
    let mut rules = rules_for(&plan.network);
    rules.retain(|r| plan.without_rule != Some(r.name));
    let otherwise = if plan.without_rule.is_some() { Otherwise::Kill } else { Otherwise::Refuse };
    let program = seccomp::program(&rules, donjon_abi::boot::Range::default(), otherwise);
    sys::seccomp(&program)?;
    Ok(format!("{} system calls, none that opens, executes or maps executable", rules.len()))
}

/// The jail of a program that the monitor starts (QEMU), prepared before the fork.
#[derive(Debug)]
pub(crate) struct Confinement {
    landlock: Option<RulesetCreated>,
    root: bool,
}

impl Confinement {
    /// For a program that reads the first of these files, and reads and writes the second, if they are there. `files` is `None` if it is not known what it needs.
    pub fn new(root: bool, files: Option<(&[&Path], &[PathBuf])>, report: &mut Report) -> Confinement {
        let landlock = match files {
            Some((files, named)) => {
                let built = program_ruleset(files, named);
                let named: Vec<_> = named.iter().filter(|p| p.exists()).map(|p| p.display().to_string()).collect();
                let writes = if named.is_empty() { "no file".into() } else { format!("only {}", named.join(", ")) };
                report.add(
                    "Landlock",
                    built
                        .as_ref()
                        .map(|_| format!("reads its own installation, writes {writes}, no TCP"))
                        .map_err(|e| Error::other(e.to_string())),
                );
                built.ok()
            }
            None => {
                report.skip("Landlock", "its arguments may need any file (--qemu-unconfined)");
                None
            }
        };
        report.add("user", Ok(if root { format!("nobody ({NOBODY})") } else { of_user(rustix::process::geteuid()) }));
        report.add("capabilities", Ok("all sets empty, the bounding set too where the host allows it".into()));
        report.add("no new privileges", Ok("no program can give rights back".into()));
        report.add("namespaces", Ok("network, IPC, UTS, cgroup, where the host allows them".into()));
        Confinement { landlock, root }
    }

    /// Confines this process, which is about to become the program.
    pub fn enter(&mut self) -> Result<()> {
        let at_parents_end = sys::at_parents_end();
        let spaces = libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
        let user = if self.root { 0 } else { libc::CLONE_NEWUSER };
        // In some places an ordinary user may have none.
        let _ = sys::unshare(user | spaces);
        sys::limit(libc::RLIMIT_CORE, 0)?;
        sys::no_capabilities(self.root)?;
        if self.root {
            sys::become_user(NOBODY)?;
        }
        sys::set_at_parents_end(at_parents_end)?;
        sys::no_new_privileges()?;
        if let Some(ruleset) = self.landlock.take() {
            ruleset.restrict_self().map_err(Error::other)?;
        }
        Ok(())
    }
}

fn program_ruleset(files: &[&Path], named: &[PathBuf]) -> Result<RulesetCreated> {
    let build = || -> std::result::Result<RulesetCreated, landlock::RulesetError> {
        let abi = ABI::V6;
        let read = AccessFs::from_read(abi);
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(abi))?
            .handle_access(AccessNet::from_all(abi))?
            .scope(Scope::AbstractUnixSocket)?
            .create()?;
        let system = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/dev/null", "/dev/urandom"];
        for path in system.iter().map(Path::new).chain(files.iter().copied()) {
            // What is not there needs no rule.
            if let Ok(fd) = PathFd::new(path) {
                let access = if path.is_dir() { read } else { read & AccessFs::from_file(abi) };
                ruleset = ruleset.add_rule(PathBeneath::new(fd, access))?;
            }
        }
        for path in named {
            if let Ok(fd) = PathFd::new(path) {
                let all = AccessFs::from_all(abi);
                let access = if path.is_dir() { all } else { all & AccessFs::from_file(abi) };
                ruleset = ruleset.add_rule(PathBeneath::new(fd, access & !AccessFs::Execute))?;
            }
        }
        Ok(ruleset)
    };
    build().map_err(Error::other)
}

/// Jails the process that keeps a filter on a TAP ([`crate::filter::kernel`]). It has no input, so what it needs for its only task is left to it.
/// `without_rule` leaves the rule `keeper:NAME` out: for the test that none is redundant.
pub(crate) fn keeper(without_rule: Option<&str>) -> Result<()> {
    const NET_ADMIN: u32 = 1 << 12;
    sys::not_dumpable()?;
    sys::limit(libc::RLIMIT_CORE, 0)?;
    sys::limit(libc::RLIMIT_NPROC, 0)?;
    let root = is_root();
    sys::only_capabilities(NET_ADMIN, root)?;
    if root {
        sys::become_user_with(NOBODY, NET_ADMIN)?;
    }
    sys::no_new_privileges()?;
    let left_out = without_rule.and_then(|name| name.strip_prefix("keeper:"));
    let rules: Vec<_> = rules::KEEPER.into_iter().filter(|r| left_out != Some(r.name)).collect();
    sys::seccomp(&seccomp::program(&rules, donjon_abi::boot::Range::default(), Otherwise::Kill))
}

/// What [`keeper`] has done: all of it, or there is no such process.
pub(crate) fn describe_keeper() -> Report {
    let mut report = Report::new("the keeper of the TAP's filter");
    for (layer, what) in [
        ("user", "nobody, or the ordinary user"),
        ("descriptors", "a pipe, the device, a socket to the kernel's routing service"),
        ("resource limits", "no processes, no core dumps"),
        ("capabilities", "CAP_NET_ADMIN only, to take the filter away at the end"),
        ("no new privileges", "no program can give rights back"),
    ] {
        report.add(layer, Ok(what.into()));
    }
    report.add("seccomp", Ok(format!("{} system calls; any other one ends it", rules::KEEPER.len())));
    report
}

/// What comes from the [`Gate`].
pub(crate) const GATE_FIRST: u8 = 1;
/// See [`GATE_FIRST`].
pub(crate) const GATE_OTHER: u8 = 2;

/// Waits until the monitor is jailed, and the guest's frames are filtered: the guest's side reads a byte from this pipe before it goes on.
#[derive(Debug)]
pub(crate) struct Gate(OwnedFd);

impl Gate {
    /// The monitor's end, and the descriptor to wait at.
    pub fn new() -> Result<(Gate, OwnedFd)> {
        let (wait, open) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok((Gate(open), wait))
    }

    /// The monitor's end: who waits must not have it, or it would wait for itself.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Lets the guest start, with this one of its devices.
    pub fn open(self, device: Choice) {
        let byte = match device {
            Choice::First => GATE_FIRST,
            Choice::Other => GATE_OTHER,
        };
        let _ = rustix::io::write(&self.0, &[byte]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn maps_of_ids_are_read() {
        for map in ["         0          0 4294967295\n", "0 1000 1\n1 100000 65536\n", "65534 7 1"] {
            assert!(has_nobody(map), "{map}");
        }
        for map in ["", "         0          0          1\n", "0 1000 65534", "65535 1 1", "0 x"] {
            assert!(!has_nobody(map), "{map}");
        }
    }

    use std::io::ErrorKind::{ConnectionRefused, PermissionDenied};
    use std::net::{TcpListener, TcpStream};

    /// Landlock without any other layer: it holds for the thread that puts it on. `None` where the kernel has none.
    fn alone<T: Send>(network: &Network, f: impl FnOnce() -> T + Send) -> Option<T> {
        let ruleset = monitor_ruleset(network).unwrap();
        let result = std::thread::scope(|s| s.spawn(|| restrict(ruleset, "").ok().map(|_| f())).join().unwrap());
        if result.is_none() {
            donjon_skip::skip(&donjon_skip::this_test(), "needs Landlock");
        }
        result
    }

    #[test]
    fn landlock_alone_keeps_all_files_away() {
        let dir = std::env::temp_dir().join(format!("donjon-landlock-{}", std::process::id()));
        let at = |name: &str| dir.join(name);
        fs::create_dir_all(at("sub")).unwrap();
        fs::write(at("file"), "text").unwrap();
        let open = fs::File::open(at("file")).unwrap();
        let results = alone(&Network::None, || {
            let text = std::io::read_to_string(&open).map(drop);
            let options = || fs::OpenOptions::new();
            let tried = [
                ("read", fs::File::open(at("file")).map(drop)),
                ("write", options().write(true).open(at("file")).map(drop)),
                ("truncate", options().write(true).truncate(true).open(at("file")).map(drop)),
                ("list", fs::read_dir(&dir).map(drop)),
                ("make a file", fs::write(at("new"), "")),
                ("make a directory", fs::create_dir(at("dir"))),
                ("make a link", std::os::unix::fs::symlink("file", at("link"))),
                ("make another name", fs::hard_link(at("file"), at("sub/name"))),
                ("rename", fs::rename(at("file"), at("name"))),
                ("remove", fs::remove_file(at("file"))),
                ("remove a directory", fs::remove_dir(at("sub"))),
                ("execute", std::process::Command::new("/bin/true").status().map(drop)),
                ("read what the kernel says", fs::read("/proc/self/maps").map(drop)),
                ("open a device", options().write(true).open("/dev/null").map(drop)),
            ];
            (text, tried)
        });
        let untouched =
            fs::read_to_string(at("file")).is_ok_and(|t| t == "text") && fs::read_dir(&dir).unwrap().count() == 2;
        fs::remove_dir_all(&dir).unwrap();
        let Some((text, tried)) = results else { return };
        assert!(text.is_ok() && untouched, "what is open stays open: {text:?}");
        for (what, result) in tried {
            assert_eq!(result.map_err(|e| e.kind()), Err(PermissionDenied), "{what}");
        }
    }

    #[test]
    fn landlock_alone_keeps_all_but_declared_ports_away() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let tries = || {
            let kind = |r: Result<()>| r.map_err(|e| e.kind());
            [
                kind(TcpListener::bind("127.0.0.1:0").map(drop)),
                kind(TcpStream::connect(("127.0.0.1", port)).map(drop)),
                kind(TcpStream::connect(("127.0.0.1", 1)).map(drop)),
            ]
        };
        let no = Err(PermissionDenied);
        for (network, connects, elsewhere) in [
            (Network::Serve, no, no),
            (Network::Dial(Some(vec![port])), Ok(()), no),
            (Network::Dial(None), Ok(()), Err(ConnectionRefused)),
        ] {
            let Some(results) = alone(&network, tries) else { return };
            assert_eq!(results, [no, connects, elsewhere], "{network:?}");
        }
    }
}
