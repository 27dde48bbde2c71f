//! The filter in the kernel, on the TAP device itself: the guest, or QEMU, reads and writes the TAP without the monitor in between, and still no frame
//! passes that the manifest does not allow.
//!
//! Two eBPF programs ([`program`]) are the first classifiers of the device, one per direction ([`tc`]). A process of its own ([`keeper`]) takes them away when
//! neither the monitor nor the guest's process is there any more: not before the guest's end, and never left behind.

#![expect(unsafe_code, reason = "the bpf system call and a shared page")]
// UNSAFETY: bpf(2) with pointers to locals, and reads of a page that the kernel writes.

mod asm;
mod keeper;
mod program;
mod tc;

use std::io::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::rules::{ENTRIES_MAX, Rules};
use super::{Reason, Way};
use keeper::Keeper;
use program::{KEY_LEN, Maps, STATE_LEN};
use tc::{Hook, Message, Netlink};

// linux/bpf.h
const MAP_CREATE: u64 = 0;
const PROG_LOAD: u64 = 5;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_LRU_HASH: u32 = 9;
const MAP_FLAG_MMAPABLE: u32 = 1 << 10;
const PROG_TYPE_SCHED_CLS: u32 = 3;

/// The programs, on the device or on their way there.
#[derive(Debug)]
pub(crate) struct KernelFilter {
    keeper: Keeper,
    counters: Counters,
}

impl KernelFilter {
    /// Begins to put the filter on the device of that number, whose open descriptor is `tap`, in a process of its own. Nobody may use the device before
    /// [`Self::wait`] has said that it is there. Errors, here or then: the kernel is too old, the caller lacks CAP_BPF and CAP_NET_ADMIN, or the device has a first classifier
    /// that is somebody else's.
    /// `without_rule`: see [`crate::jail::keeper`].
    pub fn attach(
        rules: &Rules,
        interface: u32,
        tap: BorrowedFd<'_>,
        without_rule: Option<&str>,
    ) -> Result<KernelFilter> {
        let state = state_map()?;
        let counters = Counters::new(&state)?;
        let netlink = Netlink::new()?;
        let work = || {
            let undo = attach(rules, interface, &netlink, &state)?;
            crate::tap::empty(tap);
            Ok(undo)
        };
        let keeper = Keeper::start(&netlink, tap, state.as_fd(), without_rule, work)?;
        Ok(KernelFilter { keeper, counters })
    }

    /// Waits until the filter is there, and the process that keeps it jailed.
    pub fn wait(&mut self) -> Result<()> {
        self.keeper.wait()
    }

    /// Whoever keeps a copy of this open has the filter stay where it is.
    pub fn hold(&self) -> Option<BorrowedFd<'_>> {
        self.keeper.hold()
    }

    /// How many frames were dropped that went this way, by reason.
    pub fn dropped(&self, way: Way) -> [u64; Reason::ALL.len()] {
        Reason::ALL.map(|r| self.counters.read(way, r))
    }

    /// Nobody uses the device any more: waits until the filter is gone. False if it is still there; the next run replaces it.
    pub fn finish(&mut self) -> bool {
        self.keeper.finish()
    }
}

/// Puts the filter on the device. Gives what takes it away.
fn attach(rules: &Rules, interface: u32, netlink: &Netlink, state: &OwnedFd) -> Result<Vec<Message>> {
    // What the guest writes is what the device "receives".
    const HOOKS: [Hook; 2] = [Hook::Ingress, Hook::Egress];
    unlimited_maps();
    let loaded = Loaded::new(rules, state)?;
    let ours = HOOKS.map(|hook| Message::remove(interface, hook));
    let undo = match netlink.ask(&Message::add_place(interface)) {
        Ok(()) => vec![Message::remove_place(interface)],
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
            // Somebody else's, or left by a keeper that was killed; then our classifiers are still in it.
            for message in &ours {
                let _ = netlink.ask(message);
            }
            ours.to_vec()
        }
        Err(e) => return Err(e),
    };
    let added = HOOKS
        .into_iter()
        .zip(&loaded.programs)
        .try_for_each(|(hook, program)| netlink.ask(&Message::add(interface, hook, program.as_fd())));
    if added.is_err() {
        for message in &undo {
            let _ = netlink.ask(message);
        }
    }
    added.map(|()| undo)
}

/// Before Linux 5.11 maps count as locked memory, of which 64 KiB are usual.
fn unlimited_maps() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    if setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).is_err() {
        // As far as this user may.
        let maximum = getrlimit(Resource::Memlock).maximum;
        let _ = setrlimit(Resource::Memlock, Rlimit { current: maximum, maximum });
    }
}

/// The map with the counters, and what the programs have to remember beside the flows.
fn state_map() -> Result<OwnedFd> {
    map(MAP_TYPE_ARRAY, 4, STATE_LEN as u32, 1, MAP_FLAG_MMAPABLE)
}

/// Programs and the map of flows in the kernel, not attached.
#[derive(Debug)]
struct Loaded {
    /// From and to the guest.
    programs: [OwnedFd; 2],
    _flows: OwnedFd,
}

impl Loaded {
    fn new(rules: &Rules, state: &OwnedFd) -> Result<Loaded> {
        if rules.listen.len().max(rules.egress.len()) > ENTRIES_MAX {
            return Err(Error::other(format!("more than {ENTRIES_MAX} ports or destinations")));
        }
        let flows = map(MAP_TYPE_LRU_HASH, KEY_LEN as u32, 4, rules.flows, 0)?;
        let maps = Maps { flows: flows.as_raw_fd(), state: state.as_raw_fd() };
        let load = |code: Option<Vec<u64>>| load(&code.ok_or(Error::other("too many rules for one program"))?);
        let programs = [load(program::from_guest(rules, maps))?, load(program::to_guest(rules, maps))?];
        Ok(Loaded { programs, _flows: flows })
    }
}

/// The page with the counters, shared with the kernel.
#[derive(Debug)]
struct Counters(*const u64);

impl Counters {
    const LEN: usize = 4096;

    fn new(state: &OwnedFd) -> Result<Counters> {
        const { assert!(STATE_LEN <= Counters::LEN) };
        // SAFETY: a new mapping at a place that the kernel chooses.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), Self::LEN, libc::PROT_READ, libc::MAP_SHARED, state.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED { Err(Error::last_os_error()) } else { Ok(Counters(at.cast())) }
    }

    fn read(&self, way: Way, reason: Reason) -> u64 {
        let at = program::counter_at(way, reason) as usize / 8;
        // SAFETY: 1. the page is mapped as long as `self` is there, 2. `at` is within it (asserted above), 3. volatile, as the kernel writes it.
        unsafe { self.0.add(at).read_volatile() }
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing points into it any more.
        unsafe { libc::munmap(self.0.cast_mut().cast(), Self::LEN) };
    }
}

/// bpf(2). The attribute is what the kernel's `union bpf_attr` has for the command, all of it initialised; bytes that it lacks count as zero.
fn bpf<T: Copy>(command: u64, attribute: &T) -> Result<i32> {
    // SAFETY: 1. the attribute and what it points to live for the call (all callers pass locals), 2. these commands read only, except for
    // PROG_TEST_RUN, whose output buffer is the caller's own.
    let got = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attribute), size_of::<T>()) };
    if got < 0 { Err(Error::last_os_error()) } else { Ok(got as i32) }
}

fn descriptor(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn map(kind: u32, key: u32, value: u32, entries: u32, flags: u32) -> Result<OwnedFd> {
    bpf(MAP_CREATE, &[kind, key, value, entries, flags]).map(descriptor)
}

fn load(code: &[u64]) -> Result<OwnedFd> {
    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Attribute {
        kind: u32,
        count: u32,
        code: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        version: u32,
        flags: u32,
    }
    let attribute = Attribute {
        kind: PROG_TYPE_SCHED_CLS,
        count: code.len() as u32,
        code: code.as_ptr() as u64,
        // None of the helpers asks for the GPL.
        license: c"MIT OR Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        version: 0,
        flags: 0,
    };
    bpf(PROG_LOAD, &attribute).map(descriptor)
}

#[cfg(test)]
pub(super) mod run {
    //! Runs the programs on a frame, without a device.

    use super::*;

    const PROG_TEST_RUN: u64 = 10;

    /// Both programs and their counters.
    pub struct Bench {
        loaded: Loaded,
        counters: Counters,
    }

    impl Bench {
        /// `None` where we may not load programs.
        pub fn new(rules: &Rules) -> Option<Bench> {
            let loaded = state_map().and_then(|state| Ok((Loaded::new(rules, &state)?, state)));
            let (loaded, state) = match loaded {
                Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => return None,
                other => other.unwrap_or_else(|e| panic!("{e}: {}", explain(rules))),
            };
            let counters = Counters::new(&state).unwrap();
            Some(Bench { loaded, counters })
        }

        /// Frames that are too short for the kernel's test (below an Ethernet header, and in newer kernels the IP header after it) give `None`.
        pub fn run(&self, to_guest: bool, frame: &[u8]) -> Option<std::result::Result<(), Reason>> {
            let way = if to_guest { Way::ToGuest } else { Way::FromGuest };
            let before = Reason::ALL.map(|r| self.counters.read(way, r));
            let program = self.loaded.programs[usize::from(to_guest)].as_raw_fd() as u64;
            // prog_fd and retval, data_size_in and _out, data_in, data_out, repeat and duration.
            let attribute = [program, frame.len() as u64, frame.as_ptr() as u64, 0, 1];
            let mut attribute = attribute;
            // SAFETY: the kernel writes `retval`, the upper half of the first word, and sizes; all in the attribute.
            let got =
                unsafe { libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, attribute.as_mut_ptr(), size_of_val(&attribute)) };
            if got < 0 {
                let e = std::io::Error::last_os_error();
                let least = match frame.get(12..14) {
                    Some([0x08, 0x00]) => 34,
                    Some([0x86, 0xdd]) => 54,
                    _ => 14,
                };
                assert!(frame.len() < least, "a frame of {} bytes: {e}", frame.len());
                return None;
            }
            let verdict = (attribute[0] >> 32) as u32 as i32;
            let changed: Vec<Reason> =
                Reason::ALL.into_iter().filter(|r| self.counters.read(way, *r) != before[*r as usize]).collect();
            Some(match (verdict, &changed[..]) {
                (-1, []) => Ok(()),
                (2, [reason]) => Err(*reason),
                other => panic!("{other:?}"),
            })
        }
    }

    /// What the verifier has to say.
    fn explain(rules: &Rules) -> String {
        let state = state_map().unwrap();
        let flows = map(MAP_TYPE_LRU_HASH, KEY_LEN as u32, 4, rules.flows, 0).unwrap();
        let maps = Maps { flows: flows.as_raw_fd(), state: state.as_raw_fd() };
        let mut out = String::new();
        for code in [program::from_guest(rules, maps), program::to_guest(rules, maps)] {
            let code = code.unwrap();
            let mut log = vec![0u8; 1 << 20];
            let license = c"MIT OR Apache-2.0";
            let attribute: [u64; 6] = [
                u64::from(PROG_TYPE_SCHED_CLS) | (code.len() as u64) << 32,
                code.as_ptr() as u64,
                license.as_ptr() as u64,
                1 | (log.len() as u64) << 32,
                log.as_mut_ptr() as u64,
                0,
            ];
            let _ = bpf(PROG_LOAD, &attribute);
            let text = String::from_utf8_lossy(&log);
            let text = text.trim_end_matches('\0');
            out += &text[text.len().saturating_sub(3000)..];
        }
        out
    }
}
