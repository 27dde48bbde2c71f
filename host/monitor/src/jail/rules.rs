//! What the monitor, and the process that keeps a filter on a TAP, may ask of the kernel while a guest runs: `monitor.seccomp.toml` and
//! `keeper.seccomp.toml`, as constants (`build.rs`).

use crate::process::seccomp::{Check, Rule};

include!(concat!(env!("OUT_DIR"), "/monitor_rules.rs"));
include!(concat!(env!("OUT_DIR"), "/keeper_rules.rs"));

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
            assert!(rule.number != 72 || rule.check == Check::Is(1, &[libc::F_GETFD as u32]), "fcntl");
        }
    }
}
