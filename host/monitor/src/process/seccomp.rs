//! What the guest's process may ask of the kernel (`guest.seccomp.toml`, as constants), and how such rules become a filter program.
//!
//! Everything that is not listed ends the process (`SECCOMP_RET_KILL_PROCESS`), a call of another architecture's table too.

use donjon_abi::boot::Range;

/// One allowed system call.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its name.
    pub name: &'static str,
    /// Its number (x86-64).
    pub number: u32,
    /// What its arguments must be.
    pub check: Check,
    /// Why it is needed, and why it is harmless.
    pub reason: &'static str,
}

/// A condition on arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// None.
    Any,
    /// This argument (counted from 0) is one of these.
    Is(u32, &'static [u32]),
    /// This argument (counted from 0) has none of these bits.
    Without(u32, u32),
    /// All of these hold.
    All(&'static [Check]),
    /// The range (first, second argument) lies in the guest's reserve and the third argument is one of these.
    InReserve(&'static [u32]),
}

include!(concat!(env!("OUT_DIR"), "/guest_rules.rs"));

// linux/filter.h, linux/seccomp.h
const LD_ABS: u16 = 0x20;
const LD_MEM: u16 = 0x60;
const LDX_MEM: u16 = 0x61;
const ST: u16 = 0x02;
const ADD_X: u16 = 0x0c;
const ADD_K: u16 = 0x04;
const JMP_JEQ: u16 = 0x15;
const JMP_JGT: u16 = 0x25;
const JMP_JGE_K: u16 = 0x35;
const JMP_JGE_X: u16 = 0x3d;
const JMP_JSET: u16 = 0x45;
const RET: u16 = 0x06;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// `SECCOMP_RET_KILL_PROCESS`.
pub const KILL: u32 = 0x8000_0000;
/// `SECCOMP_RET_ERRNO` with EPERM.
const REFUSE: u32 = 0x0005_0001;
/// `SECCOMP_RET_ALLOW`.
pub const ALLOW: u32 = 0x7fff_0000;

const NR: u32 = 0;
const ARCH: u32 = 4;
const fn low(arg: u32) -> u32 {
    16 + arg * 8
}
const fn high(arg: u32) -> u32 {
    low(arg) + 4
}

/// One instruction as the kernel wants it: `code: u16, jt: u8, jf: u8, k: u32`.
fn op(code: u16, jt: u8, jf: u8, k: u32) -> u64 {
    u64::from(code) | u64::from(jt) << 16 | u64::from(jf) << 24 | u64::from(k) << 32
}

/// What happens at a call that is not listed, or not so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Otherwise {
    /// The process ends.
    Kill,
    /// The call fails with EPERM.
    Refuse,
}

/// The filter for a guest with this reserve.
pub fn filter(rules: &[Rule], reserve: Range) -> Vec<u64> {
    program(rules, reserve, Otherwise::Kill)
}

/// The filter that passes everything, for measurements.
pub fn everything() -> Vec<u64> {
    vec![op(RET, 0, 0, ALLOW)]
}

/// The filter for these rules. A call of another architecture's table always ends the process.
pub fn program(rules: &[Rule], reserve: Range, otherwise: Otherwise) -> Vec<u64> {
    let verdict = match otherwise {
        Otherwise::Kill => KILL,
        Otherwise::Refuse => REFUSE,
    };
    let refuse = op(RET, 0, 0, verdict);
    let kill = op(RET, 0, 0, KILL);
    let mut out = vec![op(LD_ABS, 0, 0, ARCH), op(JMP_JEQ, 1, 0, AUDIT_ARCH_X86_64), kill, op(LD_ABS, 0, 0, NR)];
    for rule in rules {
        let mut body = check(rule.check, reserve);
        body.push(op(RET, 0, 0, ALLOW));
        body.push(refuse);
        // No rule is longer than a jump reaches; the longest has 34 instructions (asserted by a test).
        out.push(op(JMP_JEQ, 0, body.len() as u8, rule.number));
        out.extend(body);
    }
    out.push(refuse);
    out
}

/// Instructions that go on behind their end if the check holds, and else to the instruction after the next one.
/// They may change the accumulator: behind them is nothing but the verdict.
fn check(check: Check, reserve: Range) -> Vec<u64> {
    let mut out = Vec::new();
    condition(&mut out, check, reserve);
    patch(&mut out);
    out
}

fn condition(out: &mut Vec<u64>, check: Check, reserve: Range) {
    match check {
        Check::Any => {}
        Check::All(checks) => checks.iter().for_each(|c| condition(out, *c, reserve)),
        Check::Is(argument, values) => one_of(out, argument, values),
        Check::Without(argument, bits) => {
            out.extend([op(LD_ABS, 0, 0, low(argument)), op(JMP_JSET, FAIL, 0, bits)]);
        }
        Check::InReserve(values) => {
            one_of(out, 2, values);
            let end = reserve.base + reserve.len;
            // addr >= base
            at_least(out, (low(0), high(0)), reserve.base);
            // M[0], M[1] = addr + len, low and high word. The high words are bounded first, so that nothing wraps.
            at_most_word(out, high(0), (end >> 32) as u32);
            at_most_word(out, high(1), (end >> 32) as u32);
            out.extend([
                op(LD_ABS, 0, 0, low(0)),
                op(ST, 0, 0, 2),
                op(LD_ABS, 0, 0, high(0)),
                op(ST, 0, 0, 1),
                op(LD_ABS, 0, 0, low(1)),
                op(LDX_MEM, 0, 0, 2),
                op(ADD_X, 0, 0, 0),
                op(ST, 0, 0, 0),
                // Carry: the sum is below an addend (still in X).
                op(JMP_JGE_X, 3, 0, 0),
                op(LD_MEM, 0, 0, 1),
                op(ADD_K, 0, 0, 1),
                op(ST, 0, 0, 1),
                op(LD_ABS, 0, 0, high(1)),
                op(LDX_MEM, 0, 0, 1),
                op(ADD_X, 0, 0, 0),
                // addr + len <= end
                op(JMP_JGT, FAIL, 0, (end >> 32) as u32),
                // When the high word is below, the low word does not matter.
                op(JMP_JEQ, 0, 2, (end >> 32) as u32),
                op(LD_MEM, 0, 0, 0),
                op(JMP_JGT, FAIL, 0, end as u32),
            ]);
        }
    }
}

/// A jump target that [`patch`] replaces by the way to the kill instruction.
const FAIL: u8 = 0xff;

fn one_of(out: &mut Vec<u64>, arg: u32, values: &[u32]) {
    out.extend([op(LD_ABS, 0, 0, high(arg)), op(JMP_JEQ, 0, FAIL, 0), op(LD_ABS, 0, 0, low(arg))]);
    for (i, value) in values.iter().enumerate() {
        let left = values.len() - 1 - i;
        out.push(op(JMP_JEQ, left as u8, if left == 0 { FAIL } else { 0 }, *value));
    }
}

fn at_least(out: &mut Vec<u64>, (low, high): (u32, u32), bound: u64) {
    out.extend([
        op(LD_ABS, 0, 0, high),
        op(JMP_JGT, 3, 0, (bound >> 32) as u32),
        op(JMP_JEQ, 0, FAIL, (bound >> 32) as u32),
        op(LD_ABS, 0, 0, low),
        op(JMP_JGE_K, 0, FAIL, bound as u32),
    ]);
}

fn at_most_word(out: &mut Vec<u64>, word: u32, bound: u32) {
    out.extend([op(LD_ABS, 0, 0, word), op(JMP_JGT, FAIL, 0, bound)]);
}

/// Turns [`FAIL`] into the distance to the instruction behind the next one after `out` (the kill after the allow).
fn patch(out: &mut [u64]) {
    let len = out.len();
    for (i, instruction) in out.iter_mut().enumerate() {
        let distance = (len - i) as u64;
        for shift in [16, 24] {
            if *instruction >> shift & 0xff == u64::from(FAIL) {
                *instruction = *instruction & !(0xff << shift) | distance << shift;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do.
    fn run(program: &[u64], nr: u32, arch: u32, args: [u64; 6]) -> u32 {
        let (mut a, mut x, mut m, mut pc) = (0u32, 0u32, [0u32; 16], 0usize);
        loop {
            let i = program[pc];
            let (code, jt, jf, k) = (i as u16, (i >> 16) as u8, (i >> 24) as u8, (i >> 32) as u32);
            pc += 1;
            let jump = |c: bool| usize::from(if c { jt } else { jf });
            match code {
                LD_ABS => {
                    a = match k {
                        NR => nr,
                        ARCH => arch,
                        k => (args[((k - 16) / 8) as usize] >> (8 * (k % 8))) as u32,
                    }
                }
                LD_MEM => a = m[k as usize],
                LDX_MEM => x = m[k as usize],
                ST => m[k as usize] = a,
                ADD_X => a = a.wrapping_add(x),
                ADD_K => a = a.wrapping_add(k),
                JMP_JEQ => pc += jump(a == k),
                JMP_JGT => pc += jump(a > k),
                JMP_JGE_K => pc += jump(a >= k),
                JMP_JSET => pc += jump(a & k != 0),
                JMP_JGE_X => pc += jump(a >= x),
                RET => return k,
                _ => panic!("instruction {code:#x}"),
            }
        }
    }

    const RESERVE: Range = Range { base: 0x1234_ffff_f000, len: 0x1_0000_2000 };

    fn allowed(nr: u32, args: [u64; 3]) -> bool {
        let args = [args[0], args[1], args[2], 0, 0, 0];
        run(&filter(&RULES, RESERVE), nr, AUDIT_ARCH_X86_64, args) == ALLOW
    }

    #[test]
    fn list_is_short_and_has_reasons() {
        assert!(RULES.len() <= 9);
        assert!(RULES.iter().all(|r| r.reason.len() > 10));
        let program = filter(&RULES, RESERVE);
        assert!(program.len() <= super::super::stub::FILTER_MAX, "{}", program.len());
    }

    #[test]
    fn only_listed_calls_pass() {
        for nr in 0..600 {
            let listed = RULES.iter().find(|r| r.number == nr);
            let expected = listed.is_some_and(|r| !matches!(r.check, Check::InReserve(_)));
            assert_eq!(allowed(nr, [0; 3]), expected, "call {nr}");
        }
        assert!(!allowed(0x4000_0013, [0; 3]), "x32 readv");
        let program = filter(&RULES, RESERVE);
        assert_eq!(run(&program, 231, 0x4000_0003, [0; 6]), KILL, "i386");
    }

    #[test]
    fn clock_gettime_has_two_clocks() {
        assert!(allowed(228, [1, 0, 0]));
        assert!(!allowed(228, [2, 0, 0]));
        assert!(!allowed(228, [1 << 32, 0, 0]));
    }

    #[test]
    fn bits_of_arguments_are_checked() {
        let rule = |number, check| Rule { name: "x", number, check, reason: "for this test" };
        let socket = Check::All(&[Check::Is(0, &[2, 10]), Check::Is(1, &[1, 2]), Check::Is(2, &[0])]);
        let rules = [rule(9, Check::Without(2, 4)), rule(41, socket), rule(60, Check::Any)];
        let program = program(&rules, RESERVE, Otherwise::Refuse);
        let verdict = |nr, args: [u64; 3]| run(&program, nr, AUDIT_ARCH_X86_64, [args[0], args[1], args[2], 0, 0, 0]);
        assert_eq!([3, 1, 0].map(|prot| verdict(9, [0, 4096, prot])), [ALLOW; 3]);
        assert_eq!([4, 5, 7, 0xff].map(|prot| verdict(9, [0, 4096, prot])), [REFUSE; 4]);
        assert_eq!([2, 10, 1, 16].map(|family| verdict(41, [family, 1, 0])), [ALLOW, ALLOW, REFUSE, REFUSE]);
        assert_eq!([1, 2, 3, 1 << 32 | 1].map(|kind| verdict(41, [2, kind, 0])), [ALLOW, ALLOW, REFUSE, REFUSE]);
        assert_eq!([0, 6, 262].map(|protocol| verdict(41, [10, 2, protocol])), [ALLOW, REFUSE, REFUSE]);
        assert_eq!((verdict(60, [0; 3]), verdict(59, [0; 3])), (ALLOW, REFUSE));
    }

    #[test]
    fn memory_calls_stay_in_the_reserve() {
        let (base, len) = (RESERVE.base, RESERVE.len);
        let end = base + len;
        for (addr, n, ok) in [
            (base, 0, true),
            (base, 4096, true),
            (base, len, true),
            (base, len + 1, false),
            (base, len + 4096, false),
            (base - 1, 1, false),
            (base - 4096, 8192, false),
            (base - 4096, 4096, false),
            (base - (1 << 32), 4096, false),
            (base + (1 << 32), 0x2000, true),
            (base + (1 << 32), 0x3000, false),
            (end - 4096, 4096, true),
            (end - 4096, 8192, false),
            (end, 0, true),
            (end, 4096, false),
            (end + 4096, 4096, false),
            (end + (1 << 32), 4096, false),
            (0, 4096, false),
            (u64::MAX, 4096, false),
            (base, u64::MAX, false),
            (base + 4096, u64::MAX - 4095, false),
            (base + 4096, base.wrapping_neg(), false),
            (0x1234_ffff_f000, 0xffff_ffff, true),
            (0x1234_ffff_f000, 0x1_ffff_ffff, false),
        ] {
            assert_eq!(allowed(10, [addr, n, 3]), ok, "mprotect({addr:#x}, {n:#x})");
            assert_eq!(allowed(28, [addr, n, 4]), ok, "madvise({addr:#x}, {n:#x})");
        }
        for prot in 0..64 {
            assert_eq!(allowed(10, [base, 4096, prot]), matches!(prot, 0 | 1 | 3), "prot {prot}");
            assert_eq!(allowed(28, [base, 4096, prot]), prot == 4, "advice {prot}");
        }
        assert!(!allowed(10, [base, 4096, 1 << 32]));
        assert!(!allowed(10, [base, 4096, 0x0100_0001]), "PROT_GROWSDOWN");
    }

    #[test]
    fn memory_calls_agree_with_plain_arithmetic() {
        // A xorshift generator: the same cases in every run.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..20_000 {
            let reserve = Range { base: next() >> 17 & !4095, len: next() >> (20 + next() % 20) & !4095 };
            let end = reserve.base + reserve.len;
            let addr =
                reserve.base.wrapping_add(next() >> (16 + next() % 40)).wrapping_sub(next() >> (20 + next() % 40));
            let len = next() >> (next() % 60);
            let expected = addr >= reserve.base && addr.checked_add(len).is_some_and(|e| e <= end);
            let got = run(&filter(&RULES, reserve), 10, AUDIT_ARCH_X86_64, [addr, len, 1, 0, 0, 0]) == ALLOW;
            assert_eq!(got, expected, "{addr:#x} {len:#x} in {reserve:x?}");
        }
    }
}
