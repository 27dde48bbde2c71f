//! The child between `clone` and the guest's first instruction.
//!
//! It has a copy of the monitor's memory, in which everything is prepared ([`Plan`]). It maps the guest, gives up what it
//! can give up, and jumps to the stub, which unmaps the rest and puts the filter on.

#![expect(unsafe_code, reason = "maps the guest's address space")]
// UNSAFETY: mmap at fixed addresses that `Layout` has chosen to be free, writes into these mappings, and the jump into the guest.

use core::arch::asm;

use donjon_abi::PAGE;
use donjon_abi::boot::{BootPage, Range};
use donjon_abi::image::{ImageHeader, SegmentProt};

use super::layout::Layout;
use super::stub::{self, Config, Offsets};
use super::sys::{Errno, syscall};
use crate::jail::{GATE_FIRST, GATE_OTHER};

/// Everything that the child needs, prepared by the monitor.
pub(super) struct Plan<'a> {
    pub header: &'a ImageHeader,
    pub relocations: &'a [u32],
    pub layout: Layout,
    pub boot: BootPage,
    /// What follows the boot page in its mapping: manifest, arguments, environment.
    pub boot_tail: &'a [u8],
    pub config: Config,
    pub offsets: Offsets,
    pub image_fd: i32,
    /// What is unpacked of a compressed image, or -1.
    pub content_fd: i32,
    /// The secrets, or -1.
    pub secrets_fd: i32,
    /// Console output, console errors, report, the network device if there is one, and what keeps the kernel's filter on it.
    pub fds: [i32; stub::LAST_FD as usize],
    /// The network device if the gate says so, without a filter in the kernel.
    pub other_fd: i32,
    /// A byte comes from the first when the monitor watches this process, and one goes back: whether its root has no files. The second is the monitor's end.
    pub watched_fds: [i32; 2],
    /// A byte comes from the first when the monitor is jailed and the network's frames are filtered; it says which device to take. The second is the monitor's end.
    pub gate_fds: [i32; 2],
    /// The monitor's process id, or 0 if the child cannot see it.
    pub parent: u64,
    /// The monitor is root's: the child becomes nobody.
    pub root: bool,
    /// Address and possible lengths of libc's rseq area; length 0 is none.
    pub rseq: Rseq,
    /// Name of the process, with a NUL.
    pub name: [u8; 16],
}

/// Where libc has registered restartable sequences for the thread that forks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rseq {
    pub address: u64,
    pub lengths: [u32; 4],
}

/// What the child was doing when it failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Step {
    Descriptors = 1,
    Session = 2,
    Rseq = 3,
    MapImage = 4,
    MapMemory = 5,
    Protect = 6,
    Signals = 7,
    Timer = 8,
    Limits = 9,
    Privileges = 10,
    Jail = 11,
}

impl Step {
    /// In words.
    pub fn describe(number: u8) -> &'static str {
        match number {
            1 => "handing over descriptors",
            2 => "detaching from the terminal",
            3 => "ending libc's restartable sequences",
            4 => "mapping the image",
            5 => "mapping memory",
            6 => "setting rights of memory",
            7 => "installing signal handlers",
            8 => "starting the timer",
            9 => "setting limits",
            10 => "giving up privileges",
            11 => "waiting for the monitor's jail",
            stub::STEP_UNMAP => "unmapping the monitor",
            stub::STEP_SECCOMP => "installing the seccomp filter",
            _ => "starting",
        }
    }
}

const READ: u64 = libc::PROT_READ as u64;
const WRITE: u64 = libc::PROT_WRITE as u64;
const EXEC: u64 = libc::PROT_EXEC as u64;

/// Runs in the child. All signals are blocked.
///
/// # Safety
/// Only in a process of one thread that nothing else needs: its memory is replaced.
pub(super) unsafe fn main(plan: &Plan<'_>) -> ! {
    // Where the report pipe is: at first where the monitor had it, then in its final place.
    let mut report_fd = plan.fds[2];
    // SAFETY: the caller's promise.
    let (step, Errno(errno)) = match unsafe { prepare(plan, &mut report_fd) } {
        // SAFETY: the guest is mapped as the plan says.
        Ok(()) => unsafe { launch(plan) },
        Err(failed) => failed,
    };
    let mut report = [0; 7];
    report[..2].copy_from_slice(&stub::SETUP_FAILED);
    report[2] = step as u8;
    report[3..].copy_from_slice(&errno.to_ne_bytes());
    // SAFETY: reads `report`.
    let _ = unsafe { sys(libc::SYS_write, [report_fd as u64, report.as_ptr() as u64, 7, 0, 0, 0]) };
    loop {
        // SAFETY: ends the process.
        let _ = unsafe { sys(libc::SYS_exit_group, [70, 0, 0, 0, 0, 0]) };
    }
}

unsafe fn sys(nr: libc::c_long, args: [u64; 6]) -> Result<u64, Errno> {
    // SAFETY: the caller's promise.
    unsafe { syscall(nr, args) }
}

unsafe fn prepare(plan: &Plan<'_>, report_fd: &mut i32) -> Result<(), (Step, Errno)> {
    // SAFETY: for all calls: 1. the process is ours alone, 2. mappings are made only at addresses that were free, 3. the image's
    // descriptor stays open until it has been mapped.
    unsafe {
        watched(plan)?;
        session(plan)?;
        map(plan)?;
        signals(plan)?;
        privileges()?;
        rseq(plan)?;
        let fds = wait_for_monitor(plan)?;
        descriptors(fds).map_err(|e| (Step::Descriptors, e))?;
        *report_fd = stub::REPORT_FD;
        // Last: no descriptor could get its number with this. Not 0: poll(2) takes no more entries.
        limit(libc::RLIMIT_NOFILE, 1)
    }
}

/// Waits until the monitor watches this process, before it is hidden from an ordinary user's monitor (PR_SET_DUMPABLE).
unsafe fn watched(plan: &Plan<'_>) -> Result<(), (Step, Errno)> {
    let [from, to] = plan.watched_fds.map(|fd| fd as u64);
    let mut byte = 0u8;
    // SAFETY: 1. descriptors are not memory, 2. writes at most one byte, to `byte`. Without the other ends here, the monitor's are the last ones.
    unsafe {
        let _ = sys(libc::SYS_close, [to, 0, 0, 0, 0, 0]);
        let _ = sys(libc::SYS_close, [plan.gate_fds[1] as u64, 0, 0, 0, 0, 0]);
        match sys(libc::SYS_read, [from, (&raw mut byte) as u64, 1, 0, 0, 0]) {
            Ok(1) => Ok(()),
            Ok(_) => Err((Step::Session, Errno(libc::EPIPE))),
            Err(e) => Err((Step::Session, e)),
        }
    }
}

unsafe fn session(plan: &Plan<'_>) -> Result<(), (Step, Errno)> {
    let step = |e| (Step::Session, e);
    // SAFETY: these calls touch no memory, except that some read a constant string, a local of one byte, or 16 bytes of the plan.
    unsafe {
        // A root folder without files: proc(5) gives each process one that lists its descriptors. Without the right to do so, there is still no call to
        // open anything. The monitor is told.
        let bare = sys(libc::SYS_chdir, [c"/proc/self/fdinfo".as_ptr() as u64, 0, 0, 0, 0, 0]).is_ok()
            && sys(libc::SYS_chroot, [c".".as_ptr() as u64, 0, 0, 0, 0, 0]).is_ok();
        let _ = sys(libc::SYS_write, [plan.watched_fds[0] as u64, (&raw const bare) as u64, 1, 0, 0, 0]);
        if plan.root {
            const NOBODY: u64 = 65_534;
            let step = |e| (Step::Privileges, e);
            sys(libc::SYS_setgroups, [0; 6]).map_err(step)?;
            sys(libc::SYS_setresgid, [NOBODY, NOBODY, NOBODY, 0, 0, 0]).map_err(step)?;
            sys(libc::SYS_setresuid, [NOBODY, NOBODY, NOBODY, 0, 0, 0]).map_err(step)?;
        }
        prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64).map_err(step)?;
        if plan.parent != 0 && sys(libc::SYS_getppid, [0; 6]) != Ok(plan.parent) {
            // The monitor died before the line above.
            return Err((Step::Session, Errno(libc::ESRCH)));
        }
        // Out of the terminal's process group: Ctrl-C is for the monitor, which asks the guest to stop.
        sys(libc::SYS_setsid, [0; 6]).map_err(step)?;
        prctl(libc::PR_SET_DUMPABLE, 0).map_err(step)?;
        let _ = prctl(libc::PR_SET_NAME, plan.name.as_ptr() as u64);
        // Memory is counted as it is touched; a huge page would count 512 at a time.
        let _ = prctl(libc::PR_SET_THP_DISABLE, 1);
        // Without READ_IMPLIES_EXEC and ADDR_COMPAT_LAYOUT, whatever the monitor was started with.
        sys(libc::SYS_personality, [0; 6]).map_err(step)?;
    }
    Ok(())
}

unsafe fn prctl(option: i32, value: u64) -> Result<u64, Errno> {
    // SAFETY: the caller's promise.
    unsafe { sys(libc::SYS_prctl, [option as u64, value, 0, 0, 0, 0]) }
}

unsafe fn map(plan: &Plan<'_>) -> Result<(), (Step, Errno)> {
    let l = &plan.layout;
    let base = l.image.base;
    // SAFETY: 1. `mmap` with MAP_FIXED_NOREPLACE takes only free addresses, 2. each write below goes into a mapping made here, within its
    // length (`relocations` were checked against the writable segments, the boot and stub lengths are sums of what is copied).
    unsafe {
        for (s, prot) in plan.header.segments() {
            let at = base + s.mem_offset;
            let first = match prot {
                SegmentProt::Read => READ,
                SegmentProt::ReadExecute => READ | EXEC,
                SegmentProt::ReadWrite | SegmentProt::ReadAfterRelocation => READ | WRITE,
            };
            let in_file = s.file.len.next_multiple_of(PAGE);
            if in_file > 0 {
                let (fd, offset) = match s.file.offset.checked_sub(plan.header.unpacked.offset) {
                    Some(offset) if plan.content_fd >= 0 => (plan.content_fd, offset),
                    _ => (plan.image_fd, s.file.offset),
                };
                mmap(at, in_file, first, fd, offset).map_err(|e| (Step::MapImage, e))?;
            }
            let rest = s.mem_len.next_multiple_of(PAGE) - in_file.min(s.mem_len.next_multiple_of(PAGE));
            if rest > 0 {
                mmap(at + in_file, rest, first, -1, 0).map_err(|e| (Step::MapImage, e))?;
            }
        }
        for offset in plan.relocations {
            let word = (base + u64::from(*offset)) as *mut u64;
            word.write_unaligned(word.read_unaligned().wrapping_add(base));
        }
        for (s, prot) in plan.header.segments() {
            if prot == SegmentProt::ReadAfterRelocation {
                mprotect(Range { base: base + s.mem_offset, len: s.mem_len }, READ)?;
            }
        }
        if l.bundle.len > 0 {
            mmap(l.bundle.base, l.bundle.len, READ, plan.image_fd, plan.header.bundle.offset)
                .map_err(|e| (Step::MapImage, e))?;
        }
        if l.secrets.len > 0 {
            // Private, but never written: the pages are the monitor's, and so is the wiping.
            mmap(l.secrets.base, l.secrets.len, READ, plan.secrets_fd, 0).map_err(|e| (Step::MapMemory, e))?;
        }
        let memory = |r: Range, prot| mmap(r.base, r.len, prot, -1, 0).map_err(|e| (Step::MapMemory, e));
        memory(l.reserve, 0)?;
        memory(l.stack, READ | WRITE)?;
        memory(l.fault_stack, READ | WRITE)?;
        memory(l.signal_stack, READ | WRITE)?;
        memory(l.boot, READ | WRITE)?;
        (l.boot.base as *mut BootPage).write(plan.boot);
        copy(plan.boot_tail, l.boot.base + PAGE);
        mprotect(l.boot, READ)?;

        memory(l.stub, READ | WRITE)?;
        copy(stub::text(), l.stub.base);
        ((l.stub.base + PAGE) as *mut Config).write(plan.config);
        mprotect(Range { base: l.stub.base, len: PAGE }, READ | EXEC)?;
        mprotect(Range { base: l.stub.base + PAGE, len: PAGE }, READ)?;
        start_frame(plan);
        // From Linux 6.3 and 6.10 on. The filter says the same; this is a second, independent lock.
        const PR_SET_MDWE: i32 = 65;
        let _ = prctl(PR_SET_MDWE, 1);
        const SYS_MSEAL: libc::c_long = 462;
        for r in [l.bundle, l.boot, l.secrets, Range { base: l.stub.base, len: 2 * PAGE }] {
            let _ = sys(SYS_MSEAL, [r.base, r.len, 0, 0, 0, 0]);
        }
        for (s, _) in plan.header.segments() {
            let _ = sys(SYS_MSEAL, [base + s.mem_offset, s.mem_len.next_multiple_of(PAGE), 0, 0, 0, 0]);
        }
    }
    Ok(())
}

/// Gives the descriptors that the guest is to have.
unsafe fn wait_for_monitor(plan: &Plan<'_>) -> Result<[i32; stub::LAST_FD as usize], (Step, Errno)> {
    let mut byte = 0u8;
    loop {
        // SAFETY: writes at most one byte, to `byte`.
        match unsafe { sys(libc::SYS_read, [plan.gate_fds[0] as u64, (&raw mut byte) as u64, 1, 0, 0, 0]) } {
            Ok(1) if byte == GATE_FIRST => return Ok(plan.fds),
            Ok(1) if byte == GATE_OTHER => {
                let [output, errors, report, _, _] = plan.fds;
                return Ok([output, errors, report, plan.other_fd, -1]);
            }
            Err(Errno(libc::EINTR)) => {}
            Ok(_) => return Err((Step::Jail, Errno(libc::EPIPE))),
            Err(e) => return Err((Step::Jail, e)),
        }
    }
}

unsafe fn copy(bytes: &[u8], to: u64) {
    // SAFETY: the caller's promise: `to` is a fresh mapping of at least that length.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) }
}

unsafe fn mmap(at: u64, len: u64, prot: u64, fd: i32, offset: u64) -> Result<(), Errno> {
    let kind = if fd < 0 { libc::MAP_ANONYMOUS | libc::MAP_NORESERVE } else { 0 };
    let flags = (libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE | kind) as u64;
    // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
    let got = unsafe { sys(libc::SYS_mmap, [at, len, prot, flags, fd as i64 as u64, offset]) }?;
    // Kernels before 4.17 take the address for a hint.
    if got == at { Ok(()) } else { Err(Errno(libc::EEXIST)) }
}

unsafe fn mprotect(r: Range, prot: u64) -> Result<(), (Step, Errno)> {
    // SAFETY: the caller's promise: the range is the guest's.
    unsafe { sys(libc::SYS_mprotect, [r.base, r.len.next_multiple_of(PAGE), prot, 0, 0, 0]) }
        .map(drop)
        .map_err(|e| (Step::Protect, e))
}

/// Where the frame that starts the guest lies: at the low end of the fault stack, which nothing uses before a fault.
pub(super) fn frame_at(layout: &Layout) -> u64 {
    layout.fault_stack.base + 64
}

/// Writes the `ucontext` from which `rt_sigreturn` starts the guest: all registers zero except what the boot page's contract says, no signal blocked,
/// vector state initial.
unsafe fn start_frame(plan: &Plan<'_>) {
    let l = &plan.layout;
    let at = frame_at(l) as *mut u64;
    let words: [(usize, u64); 9] = [
        (0, 6), // UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
        (16, l.signal_stack.base),
        (32, l.signal_stack.len),
        (104, l.boot.base),                      // rdi
        (160, l.stack.base + l.stack.len),       // rsp
        (168, l.image.base + plan.header.entry), // rip
        (176, 0x202),                            // IF
        (184, 0x33 | 0x2b << 48),                // cs, ss
        (296, 0),                                // signal mask
    ];
    for (offset, value) in words {
        // SAFETY: 1. the fault stack has just been mapped, 2. a ucontext is 304 bytes.
        unsafe { at.byte_add(offset).write(value) }
    }
}

unsafe fn descriptors(fds: [i32; stub::LAST_FD as usize]) -> Result<(), Errno> {
    let mut high = [-1i32; stub::LAST_FD as usize];
    // SAFETY: descriptors are not memory.
    unsafe {
        // First out of the way of the final numbers, then down.
        for (to, from) in high.iter_mut().zip(fds) {
            if from >= 0 {
                *to = sys(libc::SYS_fcntl, [from as u64, libc::F_DUPFD as u64, 16, 0, 0, 0])? as i32;
            }
        }
        for (fd, number) in high.into_iter().zip(1u64..) {
            if fd >= 0 {
                sys(libc::SYS_dup2, [fd as u64, number, 0, 0, 0, 0])?;
            } else {
                let _ = sys(libc::SYS_close, [number, 0, 0, 0, 0, 0]);
            }
        }
        let _ = sys(libc::SYS_close, [0; 6]);
        sys(libc::SYS_close_range, [stub::LAST_FD as u64 + 1, u64::from(u32::MAX), 0, 0, 0, 0])?;
    }
    Ok(())
}

/// The kernel's `struct sigaction`.
#[repr(C)]
struct KernelAction {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

/// The signal of the tick.
const TICK: i32 = libc::SIGVTALRM;

unsafe fn signals(plan: &Plan<'_>) -> Result<(), (Step, Errno)> {
    let step = |e| (Step::Signals, e);
    const SA_RESTORER: u64 = 0x0400_0000;
    let flags = (libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART) as u64 | SA_RESTORER;
    let bit = |signal: i32| 1u64 << (signal - 1);
    let stub = plan.layout.stub.base;
    // SAFETY: 1. handlers point into the stub, whose text is final, 2. all structures are read during the call only.
    unsafe {
        for signal in 1..=64 {
            let (handler, mask) = match signal {
                libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGTRAP => {
                    (plan.offsets.on_fault, !0)
                }
                TICK => (plan.offsets.on_tick, bit(TICK) | bit(libc::SIGTERM)),
                libc::SIGTERM => (plan.offsets.on_stop, bit(TICK) | bit(libc::SIGTERM)),
                libc::SIGKILL | libc::SIGSTOP => continue,
                // From a terminal or a broken pipe: not the guest's business.
                libc::SIGINT | libc::SIGHUP | libc::SIGQUIT | libc::SIGPIPE => (libc::SIG_IGN as u64, 0),
                _ => (libc::SIG_DFL as u64, 0),
            };
            let action = if handler > 1 {
                KernelAction { handler: stub + handler, flags, restorer: stub + plan.offsets.restorer, mask }
            } else {
                KernelAction { handler, flags: 0, restorer: 0, mask: 0 }
            };
            sys(libc::SYS_rt_sigaction, [signal as u64, (&raw const action) as u64, 0, 8, 0, 0]).map_err(step)?;
        }
        let stack = libc::stack_t {
            ss_sp: plan.layout.signal_stack.base as *mut libc::c_void,
            ss_flags: 0,
            ss_size: plan.layout.signal_stack.len as usize,
        };
        sys(libc::SYS_sigaltstack, [(&raw const stack) as u64, 0, 0, 0, 0, 0]).map_err(step)?;

        // The tick counts time that the guest runs, so an idle guest has none.
        let step = |e| (Step::Timer, e);
        let mut event: libc::sigevent = core::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = TICK;
        let mut timer = 0i32;
        sys(
            libc::SYS_timer_create,
            [libc::CLOCK_PROCESS_CPUTIME_ID as u64, (&raw const event) as u64, (&raw mut timer) as u64, 0, 0, 0],
        )
        .map_err(step)?;
        let period = libc::timespec { tv_sec: 0, tv_nsec: donjon_abi::TICK_NS as i64 };
        let times = libc::itimerspec { it_interval: period, it_value: period };
        sys(libc::SYS_timer_settime, [timer as u64, 0, (&raw const times) as u64, 0, 0, 0]).map_err(step)?;
    }
    Ok(())
}

unsafe fn limit(resource: libc::__rlimit_resource_t, most: u64) -> Result<(), (Step, Errno)> {
    let most = libc::rlimit64 { rlim_cur: most, rlim_max: most };
    // SAFETY: reads the structure.
    unsafe { sys(libc::SYS_prlimit64, [0, u64::from(resource), (&raw const most) as u64, 0, 0, 0]) }
        .map(drop)
        .map_err(|e| (Step::Limits, e))
}

unsafe fn privileges() -> Result<(), (Step, Errno)> {
    // SAFETY: none of these touches memory except by reading the arguments.
    unsafe {
        for resource in
            [libc::RLIMIT_NPROC, libc::RLIMIT_CORE, libc::RLIMIT_FSIZE, libc::RLIMIT_MEMLOCK, libc::RLIMIT_MSGQUEUE]
        {
            limit(resource, 0)?;
        }
        let step = |e| (Step::Privileges, e);
        sys(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0, 0]).map_err(step)?;
        // Capabilities: all sets empty. (Version 3 of the interface: two words per set.)
        let header = [0x2008_0522u32, 0];
        let none = [0u32; 6];
        sys(libc::SYS_capset, [header.as_ptr() as u64, none.as_ptr() as u64, 0, 0, 0, 0]).map_err(step)?;
    }
    Ok(())
}

unsafe fn rseq(plan: &Plan<'_>) -> Result<(), (Step, Errno)> {
    // SAFETY: 1. takes a registration away, 2. nothing of libc runs in this process any more.
    unsafe {
        let _ = sys(libc::SYS_set_robust_list, [0, 24, 0, 0, 0, 0]);
        let _ = sys(libc::SYS_set_tid_address, [0; 6]);
        if plan.rseq.address == 0 {
            return Ok(());
        }
        const UNREGISTER: u64 = 1;
        const SIGNATURE: u64 = 0x5305_3053;
        let mut last = Errno(0);
        for len in plan.rseq.lengths {
            match sys(libc::SYS_rseq, [plan.rseq.address, u64::from(len), UNREGISTER, SIGNATURE, 0, 0]) {
                Ok(_) => return Ok(()),
                Err(e) => last = e,
            }
        }
        // The kernel would write to the area, which is about to go.
        Err((Step::Rseq, last))
    }
}

/// Leaves the monitor's code for good.
unsafe fn launch(plan: &Plan<'_>) -> ! {
    let stack = plan.layout.stack.base + plan.layout.stack.len;
    let entry = plan.layout.stub.base + plan.offsets.launch;
    // SAFETY: 1. the stub's text is mapped and needs a stack and its config page only, 2. nothing returns here. FS base 0: thread-local storage of the monitor
    // is gone with its memory.
    unsafe {
        let _ = sys(libc::SYS_arch_prctl, [0x1002, 0, 0, 0, 0, 0]); // ARCH_SET_FS
        asm!("mov rsp, {stack}", "xor ebp, ebp", "jmp {entry}", stack = in(reg) stack, entry = in(reg) entry, options(noreturn));
    }
}
