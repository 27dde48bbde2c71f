//! How an instance ended, from what its operator has: the exit code of `donjon run` (docs/cli.md), and the console.
//!
//! An attempt that ends the instance has failed only if the ending is its own. A monitor that falls over, a host without memory, or an assertion would
//! look the same to who only waits for an answer.

use super::cell::Kind;

/// What ended an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// A page fault at that address.
    Page(Access, u64),
    /// A general protection fault.
    Protection,
    /// An invalid instruction.
    Invalid,
    /// Another exception, or one whose report could not be made: the program's stack or data were gone.
    Fault,
    /// A system call that is not allowed.
    Call,
    /// It had no more memory.
    Memory,
    /// Itself, by `abort`.
    Abort,
    /// Itself, with that status.
    Exit(i32),
    /// A signal (in containers).
    Signal(i32),
    /// Nothing: it runs, and does not answer.
    Silence,
    /// The host's side: the monitor, QEMU or the shim.
    Host,
    /// Something that none of these is.
    Other,
}

/// Of a page fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    Write,
    Execution,
}

/// The ending that belongs to an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// Execution of what is not executable.
    Execution,
    /// An access to that address.
    Access(Access, u64),
    /// A privileged instruction.
    Privileged,
    /// A system call.
    Call,
    /// Whatever a program does that has lost its way.
    Astray,
    /// Too much memory.
    Memory,
}

const SIGILL: i32 = 4;
const SIGBUS: i32 = 7;
const SIGSEGV: i32 = 11;
const SIGSYS: i32 = 31;

/// First words of lines that only the host's side says when it has broken.
const HOST: [&str; 6] = [
    "donjon: the shim panicked",
    "donjon: exception in the shim",
    "donjon: fatal exception",
    "donjon: the network device breaks the rules",
    "donjon: the guest was killed: QEMU was ended by signal",
    "donjon: the guest was killed: the machine was reset",
];

impl By {
    /// From an exit code (`None`: a signal ended it) and everything on the console.
    pub fn of(kind: Kind, code: Option<i32>, console: &str) -> By {
        match code {
            // Of `donjon run` itself; bubblewrap's shell never gives one.
            None => By::Host,
            Some(code) if kind.is_donjon() => By::of_image(code, console),
            Some(code @ 129..=192) => By::Signal(code - 128),
            Some(code) => By::Exit(code),
        }
    }

    fn of_image(code: i32, console: &str) -> By {
        let says = |words: &str| console.lines().any(|l| l.starts_with(words));
        let panicked = |l: &str| l.starts_with("thread ") && l.contains(" panicked at host/");
        if HOST.iter().any(|words| says(words)) || console.lines().any(panicked) {
            return By::Host;
        }
        let report = console.lines().skip_while(|l| !l.starts_with("donjon: the guest crashed")).nth(1);
        match (code, report) {
            (70, _) if says("donjon: the guest was killed: it made a system call") => By::Call,
            (70, _) if says("donjon: the guest was killed: it touched") || says("donjon: out of memory") => By::Memory,
            (70, _) if says("donjon: the guest faulted in its fault entry") => By::Fault,
            (70, Some(report)) => By::of_report(report),
            (134, Some(_)) => By::Abort,
            // The other codes of `donjon run` come with an error of its own.
            (code, None) if !says("error:") => By::Exit(code),
            _ => By::Other,
        }
    }

    /// From the first line of a crash report.
    fn of_report(line: &str) -> By {
        // `thread 'NAME': ` is in front where there is a thread.
        let what = line.rsplit_once("': ").map_or(line, |(_, rest)| rest);
        if let Some(rest) = what.strip_prefix("page fault: ") {
            let access = [("read", Access::Read), ("write", Access::Write), ("execution", Access::Execution)];
            let found = access.into_iter().find_map(|(name, access)| {
                let at = rest.strip_prefix(name)?.strip_prefix(" at 0x")?;
                Some(By::Page(access, u64::from_str_radix(at.trim(), 16).ok()?))
            });
            return found.unwrap_or(By::Other);
        }
        match what.trim() {
            "general protection fault" => By::Protection,
            "invalid instruction" => By::Invalid,
            "division error" => By::Fault,
            other if other.starts_with("exception ") || other.contains("has overflowed its stack") => By::Fault,
            // The process engine's own words for a second fault.
            other if other.contains("where the guest could not handle it") => By::Fault,
            _ => By::Other,
        }
    }

    /// Whether the ending is the one that belongs to that.
    pub fn fits(self, cause: Cause, kind: Kind) -> bool {
        let crash = matches!(self, By::Signal(SIGILL | SIGBUS | SIGSEGV));
        match cause {
            Cause::Execution => crash || matches!(self, By::Page(Access::Execution, _)),
            Cause::Access(access, at) => {
                // An address that is none at all has no page to be absent, and no address in the report.
                crash || self == By::Page(access, at) || self == By::Protection && !canonical(at)
            }
            Cause::Privileged => crash || self == By::Protection,
            // The shim does not know the instruction outside of the gate's own page.
            Cause::Call if kind.is_qemu() => self == By::Invalid,
            Cause::Call => self == By::Call || self == By::Signal(SIGSYS),
            Cause::Astray => {
                crash
                    || matches!(self, By::Page(..) | By::Protection | By::Invalid | By::Fault | By::Abort | By::Memory)
            }
            Cause::Memory => self == By::Memory,
        }
    }
}

/// Whether bits 47 to 63 are the same (Intel SDM vol. 1 §3.3.7.1).
fn canonical(at: u64) -> bool {
    matches!(at >> 47, 0 | 0x1_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(code: i32, console: &str) -> By {
        By::of(Kind::Process, Some(code), console)
    }

    #[test]
    fn crash_reports_say_what_it_was() {
        let crash =
            |what: &str| by(70, &format!("POST /call/1\ndonjon: the guest crashed\n{what}\n   0: image+0x12\n"));
        assert_eq!(
            crash("thread 'main': page fault: write at 0x438171159024"),
            By::Page(Access::Write, 0x4381_7115_9024)
        );
        assert_eq!(crash("page fault: execution at 0x10"), By::Page(Access::Execution, 0x10));
        assert_eq!(crash("thread 'main': general protection fault"), By::Protection);
        assert_eq!(crash("thread 'main': invalid instruction"), By::Invalid);
        assert_eq!(
            crash("segmentation fault where the guest could not handle it (a second fault, or none)"),
            By::Fault
        );
        assert_eq!(crash("thread 'main': free of what was not allocated"), By::Other);
    }

    #[test]
    fn endings_that_are_not_the_guests_are_told_apart() {
        let fault = "donjon: the guest crashed\nthread 'main': page fault: read at 0x0\n";
        assert_eq!(by(70, fault), By::Page(Access::Read, 0));
        assert_eq!(By::of(Kind::Tap, None, fault), By::Host, "the monitor was ended by a signal");
        for (code, words) in [
            (101, "thread 'main' (7) panicked at host/monitor/src/net.rs:1:1:"),
            (70, "donjon: the guest was killed: QEMU was ended by signal 6"),
            (70, "donjon: exception in the shim: exception 0xe"),
        ] {
            assert_eq!(by(code, &format!("ready\n{words}\n{fault}")), By::Host, "{words}");
        }
        assert_eq!(by(71, "error: cannot publish port 8080\n"), By::Other);
        let killed = |why: &str| by(70, &format!("donjon: the guest was killed: {why}\n"));
        assert_eq!(killed("it made a system call that the gate does not have (ended by seccomp)"), By::Call);
        assert_eq!(killed("it touched 40000 KiB of memory, its budget is 32768 KiB"), By::Memory);
        assert!(!killed("somebody sent it SIGKILL; the host may be out of memory").fits(Cause::Astray, Kind::Process));
        assert_eq!(by(255, "ready\n"), By::Exit(255));
        // What the guest itself prints in the middle of a line is not the host's word.
        assert_eq!(by(0, "GET /donjon: exception in the shim\n"), By::Exit(0));
    }

    #[test]
    fn each_attempt_has_an_ending_of_its_own() {
        let page = |access| By::Page(access, 0x1000);
        assert!(page(Access::Execution).fits(Cause::Execution, Kind::Process));
        assert!(!page(Access::Read).fits(Cause::Execution, Kind::Process));
        assert!(page(Access::Write).fits(Cause::Access(Access::Write, 0x1000), Kind::Qemu));
        assert!(!page(Access::Write).fits(Cause::Access(Access::Write, 0x2000), Kind::Qemu));
        assert!(By::Protection.fits(Cause::Access(Access::Read, 1 << 47), Kind::Qemu));
        assert!(!By::Protection.fits(Cause::Access(Access::Read, 0x1000), Kind::Qemu));
        assert!(By::Call.fits(Cause::Call, Kind::Tap) && !By::Invalid.fits(Cause::Call, Kind::Tap));
        assert!(By::Invalid.fits(Cause::Call, Kind::QemuTap) && !By::Call.fits(Cause::Call, Kind::QemuTap));
        assert!(By::Invalid.fits(Cause::Call, Kind::Qemu) && !By::Call.fits(Cause::Call, Kind::Qemu));
        assert_eq!(By::of(Kind::Docker, Some(139), ""), By::Signal(SIGSEGV));
        assert!(By::Signal(SIGSEGV).fits(Cause::Privileged, Kind::Docker));
        assert!(!By::Signal(9).fits(Cause::Astray, Kind::Docker));
        for by in [By::Host, By::Silence, By::Other, By::Exit(0)] {
            assert!(
                [Cause::Execution, Cause::Privileged, Cause::Call, Cause::Astray, Cause::Memory]
                    .into_iter()
                    .all(|cause| !by.fits(cause, Kind::Process))
            );
        }
    }
}
