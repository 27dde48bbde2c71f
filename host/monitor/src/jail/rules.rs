//! What the monitor may ask of the kernel while a guest runs, as data. What is not listed fails with EPERM; nothing opens a file, starts a program or
//! makes memory executable.

use crate::process::seccomp::{Check, Rule};

const PROT_EXEC: u32 = 4;
const F_GETFD: u32 = 1;
const MSG_FASTOPEN: u32 = 0x2000_0000;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

const fn rule(name: &'static str, number: u32, check: Check, reason: &'static str) -> Rule {
    Rule { name, number, check, reason }
}

/// For every guest.
pub const ALWAYS: [Rule; 23] = [
    rule("read", 0, Check::Any, "the guest's console, signals, QEMU's status port; open descriptors only"),
    rule("write", 1, Check::Any, "our own standard streams, and QEMU's console input"),
    rule("close", 3, Check::Any, "gives descriptors up"),
    rule("ppoll", 271, Check::Any, "asks whether our own output takes more"),
    rule("pread64", 17, Check::Any, "the guest's memory use, and the names of functions in a crash report"),
    rule("epoll_pwait", 281, Check::Any, "the event loop without a deadline"),
    rule(
        "fcntl",
        72,
        Check::Is(1, &[F_GETFD]),
        "debug builds of the standard library look whether what they close is open",
    ),
    rule("epoll_pwait2", 441, Check::Any, "the event loop with a deadline"),
    rule("epoll_ctl", 233, Check::Any, "what the event loop waits for"),
    rule("waitid", 247, Check::Any, "how the guest ended"),
    rule(
        "pidfd_send_signal",
        424,
        Check::Any,
        "asks the guest to stop, and ends it; it is the only process that we have a descriptor of",
    ),
    rule("timer_delete", 226, Check::Any, "ends the timer that watches the guest's memory"),
    rule("rt_sigprocmask", 14, Check::Any, "gives signals back at the end"),
    rule("rt_sigreturn", 15, Check::Any, "return from a signal handler of the Rust runtime"),
    rule("sigaltstack", 131, Check::Any, "the Rust runtime takes its signal stack down at the end"),
    rule("mmap", 9, Check::Without(2, PROT_EXEC), "the allocator; never executable"),
    rule("munmap", 11, Check::Any, "the allocator"),
    rule("mremap", 25, Check::Any, "the allocator, for large vectors; keeps rights"),
    rule("brk", 12, Check::Any, "the allocator"),
    rule("getrandom", 318, Check::Any, "keys of hash tables"),
    rule("clock_gettime", 228, Check::Any, "where the clock cannot be read in user mode"),
    rule("exit_group", 231, Check::Any, "the end"),
    rule("restart_syscall", 219, Check::Any, "the kernel's own way to go on after a stop signal"),
];

/// If frames pass through the monitor.
pub const FRAMES: [Rule; 2] =
    [rule("readv", 19, Check::Any, "frames of the guest"), rule("writev", 20, Check::Any, "frames to the guest")];

/// With user-mode networking.
pub const USERNET: [Rule; 6] = [
    rule("accept4", 288, Check::Any, "connections to published ports, which were opened before"),
    rule("recvfrom", 45, Check::Any, "data from the other side of a connection, or a datagram"),
    rule(
        "sendto",
        44,
        Check::Without(3, MSG_FASTOPEN),
        "data to the other side, or a datagram; never a connection attempt, which Landlock would not see",
    ),
    rule("setsockopt", 54, Check::Any, "no delay; reset instead of FIN"),
    rule("getsockopt", 55, Check::Any, "whether a connection attempt has succeeded"),
    rule("shutdown", 48, Check::Any, "half-closes"),
];

/// With user-mode networking for a guest that may reach something.
pub const DIAL: [Rule; 2] = [
    rule("socket", 41, Check::Is(0, &[AF_INET, AF_INET6]), "connections to destinations that the manifest declares"),
    rule("connect", 42, Check::Any, "the same"),
];

/// For the process that keeps the filter on a TAP.
pub const KEEPER: [Rule; 4] = [
    rule(
        "write",
        1,
        Check::Any,
        "tells the monitor that it is jailed; of its descriptors only this pipe and the device can be written",
    ),
    rule("ppoll", 271, Check::Any, "waits for the end of the guest"),
    rule("sendto", 44, Check::Any, "takes the filter away, over the one socket that it has"),
    rule("exit_group", 231, Check::Any, "the end"),
];

/// Rules that a short test run does not come to need: they depend on the moment, on how much is to be done, on the host's clock, or on the kernel.
pub const RARE: [&str; 8] =
    ["epoll_pwait2", "rt_sigreturn", "restart_syscall", "clock_gettime", "getrandom", "pread64", "mmap", "mremap"];

#[cfg(test)]
mod tests {
    use super::*;

    /// Why the monitor needs no PID namespace: it has no call that takes another process by its number.
    #[test]
    fn no_call_names_another_process() {
        // getpgid, setpgid, getsid, kill, wait4, ptrace, rt_sigqueueinfo, the priorities and schedulers, capget, capset, tkill, affinities, tgkill, ioprio,
        // migrate_pages, get_robust_list, move_pages, rt_tgsigqueueinfo, perf_event_open, prlimit64, process_vm_*, kcmp, sched_*attr, pidfd_open,
        // pidfd_getfd, process_madvise, process_mrelease; and what has a signal sent to a number later: ioctl, timer_create, fcntl but for F_GETFD.
        let by_number = [
            16, 61, 62, 101, 109, 121, 124, 125, 126, 129, 140, 141, 142, 143, 144, 145, 147, 148, 200, 203, 204, 222,
            234, 251, 252, 256, 274, 279, 297, 298, 302, 310, 311, 312, 314, 315, 434, 438, 440, 448,
        ];
        for rule in ALWAYS.iter().chain(&FRAMES).chain(&USERNET).chain(&DIAL).chain(&KEEPER) {
            assert!(!by_number.contains(&rule.number), "{}", rule.name);
            assert!(rule.number != 72 || matches!(rule.check, Check::Is(1, &[F_GETFD])), "fcntl");
        }
    }
}
