//! Memory of a process tree, as the kernel counts it, and the time to the first answer.

use std::fs;
use std::io;
use std::sync::mpsc;
use std::time::Duration;

use crate::{Guest, PATIENCE, http};

/// Memory of one process, from `/proc/PID/smaps_rollup` or, where the kernel keeps that from us (a guest shuts out its own user, too),
/// from `/proc/PID/statm`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Memory {
    /// Process id.
    pub pid: u32,
    /// Name from `/proc/PID/comm`.
    pub name: String,
    /// Proportional set size in bytes: what the process has for itself plus its share of what it has with others. If not `exact`, the
    /// resident set size, which is at least that.
    pub pss: u64,
    /// Pages that only this process has, bytes; if not `exact`, those that no file backs.
    pub private: u64,
    /// See `pss`.
    pub exact: bool,
}

/// The process and all its descendants.
pub fn tree(pid: u32) -> io::Result<Vec<Memory>> {
    let mut out = Vec::new();
    let mut todo = vec![pid];
    while let Some(pid) = todo.pop() {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end while we look.
            let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            todo.extend(children.split_ascii_whitespace().filter_map(|c| c.parse::<u32>().ok()));
        }
        out.push(one(pid)?);
    }
    Ok(out)
}

/// Sum of the proportional set sizes of the process and all its descendants, bytes.
pub fn tree_pss(pid: u32) -> io::Result<u64> {
    Ok(tree(pid)?.iter().map(|m| m.pss).sum())
}

/// Sum of what no file backs in the process and all its descendants, bytes: memory that the kernel cannot take back.
pub fn tree_anonymous(pid: u32) -> io::Result<u64> {
    let one = |m: &Memory| {
        let status = fs::read_to_string(format!("/proc/{}/status", m.pid))?;
        Ok(sum_of(&status, "RssAnon:") + sum_of(&status, "RssShmem:"))
    };
    tree(pid)?.iter().map(one).sum()
}

/// Processor time of the process and all its descendants so far, in user and kernel mode (proc_pid_stat(5), fields 14 and 15).
pub fn tree_processor_time(pid: u32) -> io::Result<Duration> {
    tree(pid)?.iter().map(|process| processor_time(&process.pid.to_string(), 14)).sum()
}

/// The same of this process's children that have ended (fields 16 and 17).
pub fn children_processor_time() -> io::Result<Duration> {
    processor_time("self", 16)
}

/// The sum of two fields that count clock ticks, the first of them with that number.
fn processor_time(process: &str, field: usize) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name before, field 2, may contain anything, `)` too.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    let ticks: u64 = fields.skip(field - 3).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(1000 * ticks / rustix::param::clock_ticks_per_second()))
}

/// The most that a process has had resident so far, bytes; `None` once it has ended.
pub fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(sum_of(&status, "VmHWM:")).filter(|n| *n > 0)
}

/// One process.
pub fn one(pid: u32) -> io::Result<Memory> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm"))?.trim().to_owned();
    let rollup = match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return resident(pid, name),
        other => other?,
    };
    let field = |name: &str| sum_of(&rollup, name);
    let private = field("Private_Clean:") + field("Private_Dirty:");
    Ok(Memory { pid, name, pss: field("Pss:"), private, exact: true })
}

/// What everybody may see of a process (proc_pid_statm(5)).
fn resident(pid: u32, name: String) -> io::Result<Memory> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let mut pages = statm.split_ascii_whitespace().map(|n| n.parse::<u64>().unwrap_or(0)).skip(1);
    let (all, shared) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
    Ok(Memory { pid, name, pss: all * 4096, private: all.saturating_sub(shared) * 4096, exact: false })
}

/// Bytes resident in the mapping of `pid` whose name contains `name` (say a memfd that backs a virtual machine's memory).
pub fn mapping_resident(pid: u32, name: &str) -> io::Result<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut inside = false;
    let mut total = 0;
    for line in smaps.lines() {
        if line.split('-').next().is_some_and(|a| a.len() >= 8 && a.bytes().all(|b| b.is_ascii_hexdigit())) {
            inside = line.contains(name);
        } else if inside && line.starts_with("Rss:") {
            total += sum_of(line, "Rss:");
        }
    }
    Ok(total)
}

/// Starts a guest and returns it with the time from exec to its first 200 for `GET path`.
///
/// A guest that is not up yet refuses connections, or leaves one hanging: QEMU's user network accepts for the guest and retransmits a
/// lost SYN only seconds later. So a new attempt starts every `spacing`, whatever became of those before, and the first answer counts.
#[track_caller]
pub fn first_answer(start: impl FnOnce() -> Guest, path: &str, spacing: Duration) -> (Guest, Duration) {
    let guest = start();
    let (sender, answers) = mpsc::channel();
    let took = std::thread::scope(|scope| {
        loop {
            let sender = sender.clone();
            let guest = &guest;
            scope.spawn(move || {
                if attempt(guest, path).is_ok_and(|r| r.status == 200) {
                    // The receiver is gone once an earlier attempt has won.
                    let _ = sender.send(guest.started().elapsed());
                }
            });
            if let Ok(took) = answers.recv_timeout(spacing) {
                return took;
            }
            assert!(guest.started().elapsed() < PATIENCE, "no answer\n{}", guest.log());
        }
    });
    (guest, took)
}

fn attempt(guest: &Guest, path: &str) -> io::Result<http::Response> {
    let stream = guest.connect()?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    http::get(stream, path)
}

fn sum_of(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_its_own_processor_time_grow() {
        let used = || tree_processor_time(std::process::id()).unwrap();
        let before = used();
        let grown = crate::poll_until(PATIENCE, || {
            std::hint::black_box((0..1_000_000u64).map(std::hint::black_box).sum::<u64>());
            (used() > before).then_some(())
        });
        assert!(grown.is_some(), "{before:?}");
    }

    #[test]
    fn sees_its_own_memory_grow() {
        let me = std::process::id();
        let before = one(me).unwrap();
        let block = vec![1u8; 32 << 20];
        let after = one(me).unwrap();
        assert!(after.private >= before.private + (30 << 20), "{before:?} {after:?} {}", block.len());
        assert!(tree_pss(me).unwrap() > 0);
    }
}
