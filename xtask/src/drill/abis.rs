//! The host kernel's other doors: ways to make a system call that are not `syscall` with a number of x86-64.
//!
//! Some filters forget them: their rules are for one architecture's numbers.

use super::attempts::Form;
use super::attempts::Outcome::{self, Failed, Succeeded};
use super::attempts::errno;
use super::cell::{Answer, Victim};
use super::code;
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
    let mut open = false;
    let mut note = |name: &str, answer: Option<i64>| {
        let came = match answer {
            Some(result) if result > 0 => {
                open = true;
                "answered".to_owned()
            }
            Some(result) => errno(-result),
            None => "ends it".to_owned(),
        };
        said.push(format!("{name}: {came}"));
    };

    let answer = if v.kind.is_donjon() {
        let at = v.sym("gadget_int80")?;
        v.call(at, &[GETPID_32])
    } else {
        v.run(code::INT_80, &[])
    };
    // By the filter where the kernel has this door, by the CPU where it has not: ring 3 may not use that descriptor.
    note("int 0x80", v.or_ended_by(answer, &[Cause::Call, Cause::Privileged])?);
    let answer = v.syscall(GETPID_X32, &[]);
    note("x32", v.or_ended_by(answer, &[Cause::Call])?);
    let answer = v.call(VSYSCALL_TIME, &[0]);
    note("vsyscall", v.or_ended_by(answer, &[Cause::Call, Cause::Access(Access::Execution, VSYSCALL_TIME)])?);

    let said = said.join("; ");
    Ok(if open { Succeeded(said) } else { Failed(said) })
}
