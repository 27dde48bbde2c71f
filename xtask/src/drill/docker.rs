//! Docker's default seccomp profile, for the cells: whom it lets through, under each of the three ABIs that x86-64's kernel has.
//!
//! It is the profile of a container with the default capabilities, or with none. The list of names and numbers is data (`docker.list`, which says what it is modelled
//! on); what depends on arguments is here. As in Docker, 32-bit programs (`int 0x80`) and x32 are let through with lists of their own.

/// What the container may do besides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Capabilities {
    /// Docker's default ones.
    Default,
    /// `--cap-drop ALL`.
    None,
}

/// Names of Docker's default capabilities (without `CAP_`).
pub const CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The errno with which the cells' filter refuses where Docker's says EPERM: no errno of Linux, so that the drill can tell the filter's refusals from the kernel's.
pub const REFUSED: u16 = 200;

const LIST: &str = include_str!("docker.list");

/// An ABI of system calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Abi {
    X86_64,
    I386,
    X32,
}

/// The bit that tells x32's numbers from x86-64's.
const X32: u32 = 1 << 30;

impl Abi {
    /// The calls of the list and their numbers, as the kernel sees them.
    fn calls(self) -> impl Iterator<Item = (&'static str, u32)> {
        LIST.lines().filter(|l| !l.starts_with('#')).filter_map(move |line| {
            let mut words = line.split(' ');
            let name = words.next()?;
            let number: u32 = words.nth(self as usize)?.parse().ok()?;
            Some((name, if self == Abi::X32 { number | X32 } else { number }))
        })
    }
}

/// Beyond it, the filter says ENOSYS, as `runc` has it do for calls that are newer than the profile.
fn last(abi: Abi) -> u32 {
    abi.calls().map(|c| c.1).max().unwrap_or(0)
}

/// Whether the filter lets x86-64's call pass when all arguments are -1.
pub fn passes(number: u64, capabilities: Capabilities) -> bool {
    let refused = |name: &str| match name {
        "clone" | "clone3" | "personality" | "socket" => true,
        "chroot" => capabilities == Capabilities::None,
        _ => false,
    };
    Abi::X86_64.calls().any(|(name, n)| u64::from(n) == number && !refused(name))
}

/// Whether that answer (an errno) is the filter's own refusal of x86-64's call.
pub fn is_refusal(number: u64, errno: u64) -> bool {
    const ENOSYS: u64 = 38;
    let unknown = Abi::X86_64.calls().any(|c| c == ("clone3", number as u32)) || number > last(Abi::X86_64).into();
    errno == REFUSED.into() || errno == ENOSYS && unknown
}

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const AT_LEAST: u16 = 0x35;
const ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const REFUSE: u32 = ERRNO | REFUSED as u32;
const UNKNOWN: u32 = ERRNO | 38;
const KILL: u32 = 0x8000_0000;

/// Where `struct seccomp_data` has the number, the architecture and the first argument's halves.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const LOW: u32 = 16;
const HIGH: u32 = 20;

/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_I386`.
const OF_64: u32 = 0xc000_003e;
const OF_32: u32 = 0x4000_0003;

/// The families of sockets that are refused: AF_DECnet, AF_ECONET, AF_ATMSVC, AF_IRDA, AF_WANPIPE, AF_ISDN, AF_CAIF, AF_ALG, AF_VSOCK.
const FAMILIES_REFUSED: [u32; 9] = [12, 19, 20, 23, 25, 34, 37, 38, 40];
/// The first family that the profile does not know.
const FAMILIES_END: u32 = 46;

/// An instruction of the filter: code, how far to jump if true and if false, constant.
type Instruction = (u16, u8, u8, u32);

/// The filter, for `seccomp(2)`.
pub fn filter(capabilities: Capabilities) -> Vec<u8> {
    let mut out = Vec::new();
    for (code, if_true, if_false, k) in instructions(capabilities) {
        out.extend(code.to_ne_bytes());
        out.extend([if_true, if_false]);
        out.extend(k.to_ne_bytes());
    }
    out
}

fn instructions(capabilities: Capabilities) -> Vec<Instruction> {
    let [native, old, x32] = [Abi::X86_64, Abi::I386, Abi::X32].map(|abi| section(abi, capabilities));
    let mut out = vec![(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, OF_32), (JUMP, 0, 0, old.len() as u32)];
    out.extend(old);
    // Every section ends the program.
    out.extend([(EQUAL, 1, 0, OF_64), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER), (AT_LEAST, 1, 0, X32)]);
    out.push((JUMP, 0, 0, x32.len() as u32));
    out.extend(x32);
    out.extend(native);
    out
}

/// What is said about the calls of an ABI.
fn section(abi: Abi, capabilities: Capabilities) -> Vec<Instruction> {
    let mut out = vec![(LOAD, 0, 0, NUMBER)];
    let mut numbers = Vec::new();
    for (name, number) in abi.calls() {
        let mut rule = |of: &[Instruction]| {
            out.push((EQUAL, 0, of.len() as u8, number));
            out.extend(of);
        };
        match name {
            // Its flags lie in memory, where no filter sees them.
            "clone3" => rule(&[(RETURN, 0, 0, UNKNOWN)]),
            // Flags of namespaces.
            "clone" => {
                rule(&[(LOAD, 0, 0, LOW), (ANY_BIT, 0, 1, 0x7e02_0000), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)])
            }
            "socket" => {
                let n = FAMILIES_REFUSED.len() as u8;
                let mut of = vec![(LOAD, 0, 0, HIGH), (EQUAL, 0, n + 3, 0)];
                of.extend([(LOAD, 0, 0, LOW), (AT_LEAST, n + 1, 0, FAMILIES_END)]);
                of.extend(FAMILIES_REFUSED.iter().zip((1..=n).rev()).map(|(family, left)| (EQUAL, left, 0, *family)));
                of.extend([(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]);
                rule(&of);
            }
            // PER_LINUX, PER_LINUX32, each with UNAME26, and the question which it is.
            "personality" => rule(&[
                (LOAD, 0, 0, HIGH),
                (EQUAL, 0, 6, 0),
                (LOAD, 0, 0, LOW),
                (EQUAL, 5, 0, 0),
                (EQUAL, 4, 0, 8),
                (EQUAL, 3, 0, 0x2_0000),
                (EQUAL, 2, 0, 0x2_0008),
                (EQUAL, 1, 0, u32::MAX),
                (RETURN, 0, 0, REFUSE),
                (RETURN, 0, 0, ALLOW),
            ]),
            "chroot" if capabilities == Capabilities::None => {}
            _ => numbers.push(number),
        }
    }
    numbers.sort_unstable();
    for run in numbers.chunk_by(|a, b| a + 1 >= *b) {
        out.extend([(AT_LEAST, 1, 0, run[0]), (RETURN, 0, 0, REFUSE)]);
        out.extend([(GREATER, 1, 0, run[run.len() - 1]), (RETURN, 0, 0, ALLOW)]);
    }
    out.extend([(GREATER, 1, 0, last(abi)), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, UNKNOWN)]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel makes of the filter.
    fn run(capabilities: Capabilities, architecture: u32, number: u32, first: u64) -> u32 {
        let program = instructions(capabilities);
        let (mut at, mut a) = (0, 0);
        loop {
            let (code, if_true, if_false, k) = program[at];
            at += 1;
            let holds = match code {
                LOAD => {
                    a = match k {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        LOW => first as u32,
                        HIGH => (first >> 32) as u32,
                        other => panic!("offset {other}"),
                    };
                    continue;
                }
                JUMP => {
                    at += k as usize;
                    continue;
                }
                RETURN => return k,
                EQUAL => a == k,
                GREATER => a > k,
                AT_LEAST => a >= k,
                ANY_BIT => a & k != 0,
                other => panic!("code {other:#x}"),
            };
            at += usize::from(if holds { if_true } else { if_false });
        }
    }

    fn native(number: u32, first: u64) -> u32 {
        run(Capabilities::Default, OF_64, number, first)
    }

    #[test]
    fn without_capabilities_these_are_refused() {
        // pidfd_getfd, process_madvise, migrate_pages, syslog, fanotify_init, sethostname, setdomainname; bpf, io_uring_setup, mount, userfaultfd, keyctl.
        for number in [438, 440, 256, 103, 300, 170, 171, 321, 425, 165, 323, 250] {
            assert_eq!(native(number, 0), REFUSE, "{number}");
        }
        for number in 459..=461 {
            assert_eq!(native(number, 0), REFUSE, "lsm_get_self_attr and its kin");
        }
        // read, clock_adjtime, ptrace, process_vm_readv, unlinkat, removexattrat.
        for number in [0, 305, 101, 310, 263, 466] {
            assert_eq!(native(number, 0), ALLOW, "{number}");
        }
        assert_eq!([native(467, 0), native(X32 - 1, 0)], [UNKNOWN; 2], "newer than the profile");
        assert_eq!(native(161, 0), ALLOW, "chroot");
        assert_eq!(run(Capabilities::None, OF_64, 161, 0), REFUSE, "chroot");
    }

    #[test]
    fn arguments_decide() {
        // clone: a thread's flags, and a user namespace.
        assert_eq!([native(56, 0x3d_0f00), native(56, 0x1000_0000), native(435, 0)], [ALLOW, REFUSE, UNKNOWN]);
        // socket: the families as the profile lists them, and no others.
        let listed = |family: u64| {
            family < 12
                || [13, 14, 15, 16, 17, 18, 21, 22, 24, 35, 36, 39].contains(&family)
                || (26..34).contains(&family)
                || (41..46).contains(&family)
        };
        for family in 0..64 {
            assert_eq!(native(41, family), if listed(family) { ALLOW } else { REFUSE }, "socket({family})");
            assert_eq!(native(41, 1 << 32 | family), REFUSE);
        }
        for (persona, said) in [(0, ALLOW), (8, ALLOW), (0x2_0008, ALLOW), (0xffff_ffff, ALLOW), (4, REFUSE)] {
            assert_eq!(native(135, persona), said, "personality({persona:#x})");
        }
        assert_eq!(native(135, u64::MAX), REFUSE);
    }

    #[test]
    fn other_abis_have_lists_of_their_own() {
        let old = |number| run(Capabilities::Default, OF_32, number, 0);
        // getpid, socketcall, clone, mount, bpf.
        assert_eq!([20, 102, 120, 21, 357].map(old), [ALLOW, ALLOW, ALLOW, REFUSE, REFUSE]);
        // getpid, ioctl by x32's own number, mount.
        assert_eq!([39, 514, 165].map(|n| native(X32 | n, 0)), [ALLOW, ALLOW, REFUSE]);
        assert_eq!(run(Capabilities::Default, 0x4000_0028, 0, 0), KILL, "AUDIT_ARCH_ARM");
    }

    #[test]
    fn the_filter_says_what_is_expected_of_it() {
        for capabilities in [Capabilities::Default, Capabilities::None] {
            // The kernel takes at most 4,096 instructions.
            assert!(filter(capabilities).len() <= 8 * 4096);
            for number in 0..600 {
                let said = run(capabilities, OF_64, number, u64::MAX);
                assert_eq!(said == ALLOW, passes(number.into(), capabilities), "{number}");
                assert_eq!(said != ALLOW, is_refusal(number.into(), (said & 0xffff).into()), "{number}");
            }
        }
        assert!(!is_refusal(0, 38) && !is_refusal(101, 1), "the kernel's own");
    }
}
