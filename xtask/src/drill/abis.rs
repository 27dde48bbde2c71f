//! The host kernel's other doors: ways to make a system call that are not `syscall` with a number of x86-64.
//!
//! Some filters forget them: their rules are for one architecture's numbers.

use super::attempts::Form;
use super::attempts::Outcome::{self, Absent, Failed, Succeeded};
use super::attempts::errno;
use super::cell::{Answer, Victim};
use super::code;
use super::docker::REFUSED;
use super::end::{Access, Cause};

/// `getpid` of 32-bit programs.
const GETPID_32: u64 = 20;
/// `getpid` of x86-64, with the bit of the x32 ABI.
const GETPID_X32: u64 = 39 | 1 << 30;
/// `time` on the page for programs from before 2012, at the same address in every process.
const VSYSCALL_TIME: u64 = 0xffff_ffff_ff60_0400;

/// Asks for what harms nobody by each of them.
pub fn others(v: &mut Victim<'_>, _: Form) -> Answer<Outcome> {
    let mut said = Vec::new();
    let (mut open, mut filtered) = (false, false);
    let mut note = |name: &str, answer: Option<i64>| {
        let came = match answer {
            Some(result) if result > 0 => {
                open = true;
                "answered".to_owned()
            }
            Some(result) => {
                filtered |= -result == REFUSED.into();
                errno(-result)
            }
            None => "ends it".to_owned(),
        };
        said.push(format!("{name}: {came}"));
    };

    // The cells' filter refuses with an errno: what ends a container here is the kernel.
    let by_filter = if v.kind.is_donjon() { &[Cause::Call][..] } else { &[] };
    let or = |cause| [by_filter, &[cause]].concat();
    let answer = if v.kind.is_donjon() {
        let at = v.sym("gadget_int80")?;
        v.call(at, &[GETPID_32])
    } else {
        v.run(code::INT_80, &[])
    };
    // By the filter where the kernel has this door, by the CPU where it has not: ring 3 may not use that descriptor.
    note("int 0x80", v.or_ended_by(answer, &or(Cause::Privileged))?);
    let answer = v.syscall(GETPID_X32, &[]);
    note("x32", v.or_ended_by(answer, by_filter)?);
    let answer = v.call(VSYSCALL_TIME, &[0]);
    note("vsyscall", v.or_ended_by(answer, &or(Cause::Access(Access::Execution, VSYSCALL_TIME)))?);

    // What the cells' filter lets through, and nobody serves, the kernel does not have.
    if !open && !filtered && !v.kind.is_donjon() {
        return Ok(Absent("this kernel has none of these doors"));
    }
    let said = said.join("; ");
    Ok(if open { Succeeded(said) } else { Failed(said) })
}
