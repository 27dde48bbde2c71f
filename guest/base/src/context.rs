//! Switching between stacks.
//!
//! A cooperative switch is a function call, so only the callee-saved registers and the two control words survive it (System V
//! ABI §3.2.1). Preemption saves all the rest on the interrupted stack first (see `upcall`), then switches the same way.

#![expect(unsafe_code, reason = "switches stacks")]
// UNSAFETY: assembly that replaces the stack pointer.

/// Where a thread that does not run continues.
#[derive(Debug)]
#[repr(transparent)]
pub struct Context(usize);

impl Context {
    /// The context of the running thread: filled in when it is switched away from.
    pub const fn running() -> Self {
        Context(0)
    }

    /// A context that calls `entry(arg)` on a fresh stack. `entry` must not return.
    ///
    /// # Safety
    /// `stack_top` must be the 16-byte aligned end of at least 256 writable bytes that nothing else uses.
    pub unsafe fn new(stack_top: usize, entry: extern "C" fn(usize) -> !, arg: usize) -> Self {
        let frame = [
            FPU_CONTROL,                 // x87 control word, MXCSR
            arg,                         // r15
            entry as usize,              // r14
            0,                           // r13
            0,                           // r12
            0,                           // rbx
            0,                           // rbp: ends frame-pointer chains
            start as *const () as usize, // return address
            0,                           // what a debugger takes for the return address of `start`
            0,
        ];
        let at = stack_top - size_of_val(&frame);
        // SAFETY: by contract, there is room.
        unsafe { core::ptr::write(at as *mut [usize; 10], frame) };
        Context(at)
    }

    /// The saved stack pointer.
    pub const fn stack_pointer(&self) -> usize {
        self.0
    }
}

/// MXCSR in the low half, x87 control word above: the values of a fresh process.
const FPU_CONTROL: usize = 0x1f80 | 0x037f << 32;

/// Saves the running context to `from` and continues at `to`. Returns when somebody switches back.
///
/// # Safety
/// `to` must have been made by [`Context::new`] or saved by this function, its stack must be intact, and it is consumed.
#[unsafe(naked)]
pub unsafe extern "C" fn switch(from: *mut Context, to: *const Context) {
    core::arch::naked_asm!(
        ".cfi_startproc",
        ".cfi_def_cfa_offset 8",
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "stmxcsr [rsp]",
        "fnstcw [rsp + 4]",
        "mov [rdi], rsp",
        "mov rsp, [rsi]",
        "ldmxcsr [rsp]",
        "fldcw [rsp + 4]",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        ".cfi_endproc",
    )
}

/// First code of a new context: calls r14(r15). The undefined return address ends a backtrace here.
#[unsafe(naked)]
unsafe extern "C" fn start() {
    core::arch::naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",
        "cld",
        "mov rdi, r15",
        "xor ebp, ebp",
        "call r14",
        "ud2",
        ".cfi_endproc"
    )
}

/// Continues on another stack and forgets the present one.
///
/// # Safety
/// As [`Context::new`].
pub unsafe fn jump(stack_top: usize, entry: extern "C" fn(usize) -> !, arg: usize) -> ! {
    // SAFETY: by contract.
    let to = unsafe { Context::new(stack_top, entry, arg) };
    let mut from = Context::running();
    // SAFETY: `to` was just made.
    unsafe { switch(&raw mut from, &raw const to) };
    unreachable!()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pair {
        main: Context,
        other: Context,
        log: Vec<u32>,
    }

    extern "C" fn other(arg: usize) -> ! {
        let pair = arg as *mut Pair;
        for i in 0.. {
            // SAFETY: the test keeps the pair alive; one side runs at a time.
            unsafe {
                (*pair).log.push(i);
                switch(&raw mut (*pair).other, &raw const (*pair).main);
            }
        }
        unreachable!()
    }

    #[test]
    fn switches_back_and_forth() {
        let mut stack = vec![0u128; 4096];
        let top = stack.as_mut_ptr_range().end as usize;
        let mut pair = Pair { main: Context::running(), other: Context::running(), log: vec![] };
        let p = &raw mut pair;
        // SAFETY: the stack is large enough and outlives its use.
        unsafe {
            (*p).other = Context::new(top, other, p as usize);
            for _ in 0..3 {
                switch(&raw mut (*p).main, &raw const (*p).other);
                (*p).log.push(100);
            }
        }
        assert_eq!(pair.log, [0, 100, 1, 100, 2, 100]);
    }
}
