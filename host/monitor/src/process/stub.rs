//! The gate's server side in the guest's own process: position-independent assembly that is copied to a page of its own.
//!
//! The stub is convenience, not a boundary: the guest could execute `syscall` itself. The boundary is the seccomp filter
//! ([`super::seccomp`]), and what the filter allows is all that the stub does.
//!
//! ```text
//! +0x0000  text      read, execute
//! +0x1000  Config    read only: addresses, and what `launch` needs
//! +0x2000  state     read, write: stop flag, transmit-full flag, dead-device flag
//! ```
//!
//! Descriptors are fixed: 1 and 2 console, 3 crash report, 4 network device, 5 and 6 links of the network filter. Nothing else is open.

#![expect(unsafe_code, reason = "assembly")]
// UNSAFETY: the stub's text; it runs in the child only, after the monitor's own memory is gone.

use core::arch::global_asm;
use core::mem::offset_of;

use donjon_abi::{FAULT_MAX, PAGE};

/// Descriptor of the crash report pipe in the child.
pub const REPORT_FD: i32 = 3;
/// Descriptor of the network device in the child.
pub const NET_FD: i32 = 4;
/// The last descriptor: it keeps the kernel's network filter where it is. There is nothing to read from it, and it cannot be written.
pub const LAST_FD: i32 = NET_FD + 1;
/// Pages of the stub: text, config, state.
pub const PAGES: u64 = 3;
/// Most ranges that `launch` unmaps.
pub const GAPS_MAX: usize = 32;
/// Most instructions of the filter.
pub const FILTER_MAX: usize = 128;

/// First bytes of a report that says why the child could not start: this, a step, an errno (`i32`).
pub const SETUP_FAILED: [u8; 2] = [0xff, b'S'];

/// Steps that only the stub itself does (others are numbered by `child::Step`).
pub const STEP_UNMAP: u8 = 100;
/// See [`STEP_UNMAP`].
pub const STEP_SECCOMP: u8 = 101;

/// The config page.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Config {
    pub reserve_base: u64,
    pub reserve_end: u64,
    /// Address of the image's tick upcall.
    pub upcall: u64,
    /// Address of the image's fault entry.
    pub fault: u64,
    /// Top of the fault stack.
    pub fault_stack: u64,
    /// 1 if there is a network device.
    pub net: u64,
    /// Address of a signal frame that starts the guest.
    pub frame: u64,
    /// `struct sock_fprog`: instruction count, then the address of `filter`.
    pub filter_len: u64,
    pub filter_at: u64,
    pub gap_count: u64,
    /// Ranges to unmap: everything that is not the guest's.
    pub gaps: [[u64; 2]; GAPS_MAX],
    pub filter: [u64; FILTER_MAX],
}

const _: () = assert!(size_of::<Config>() as u64 <= PAGE);

/// Offsets into the stub's text.
#[derive(Clone, Copy, Debug)]
pub struct Offsets {
    pub gate: u64,
    pub launch: u64,
    pub on_fault: u64,
    pub on_tick: u64,
    pub on_stop: u64,
    pub restorer: u64,
}

/// The text.
pub fn text() -> &'static [u8] {
    let start = &raw const donjon_stub_start;
    let end = &raw const donjon_stub_end;
    // SAFETY: 1. both symbols bound the same run of bytes in this program's text (the assembly below), 2. which is never written.
    unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// Where things are in [`text`].
pub fn offsets() -> Offsets {
    let start = (&raw const donjon_stub_start).addr();
    let at = |symbol: *const u8| (symbol.addr() - start) as u64;
    Offsets {
        gate: at(&raw const donjon_stub_gate),
        launch: at(&raw const donjon_stub_launch),
        on_fault: at(&raw const donjon_stub_on_fault),
        on_tick: at(&raw const donjon_stub_on_tick),
        on_stop: at(&raw const donjon_stub_on_stop),
        restorer: at(&raw const donjon_stub_restorer),
    }
}

unsafe extern "C" {
    static donjon_stub_start: u8;
    static donjon_stub_end: u8;
    static donjon_stub_gate: u8;
    static donjon_stub_launch: u8;
    static donjon_stub_on_fault: u8;
    static donjon_stub_on_tick: u8;
    static donjon_stub_on_stop: u8;
    static donjon_stub_restorer: u8;
}

// Registers: the gate is called as gate(rdi = call, rsi = a, rdx = b, rcx = c, r8 = d) and may clobber what the System V ABI
// says; a system call clobbers rax, rcx and r11.
//
// `ucontext` offsets (Linux, x86-64): rdx 136, rsp 160, rip 168, eflags 176, err 192, trapno 200, cr2 216, sigmask 296; rdi 104, rsi 112, rbp 120,
// rcx 152, r8 40, r9 48.
global_asm!(
    r#"
    .pushsection .text.donjon_stub, "ax", @progbits
    .balign 64
    .globl donjon_stub_start, donjon_stub_end, donjon_stub_gate, donjon_stub_launch
    .globl donjon_stub_on_fault, donjon_stub_on_tick, donjon_stub_on_stop, donjon_stub_restorer
    .hidden donjon_stub_start, donjon_stub_end, donjon_stub_gate, donjon_stub_launch
    .hidden donjon_stub_on_fault, donjon_stub_on_tick, donjon_stub_on_stop, donjon_stub_restorer
donjon_stub_start:
    .set .Lconfig, donjon_stub_start + {page}
    .set .Lstop, donjon_stub_start + 2 * {page}
    .set .Ltx_full, donjon_stub_start + 2 * {page} + 8
    .set .Lnet_dead, donjon_stub_start + 2 * {page} + 16

donjon_stub_gate:
    cmp rdi, 5
    je .Lnet_recv
    cmp rdi, 4
    je .Lnet_send
    cmp rdi, 3
    je .Lwait
    cmp rdi, 6
    je .Lprotect
    cmp rdi, 7
    je .Ldiscard
    cmp rdi, 2
    je .Lconsole
    cmp rdi, 0
    je .Lexit
    cmp rdi, 1
    je .Lfault
    mov rax, -38
    ret

    # exit(code)
.Lexit:
    movzx edi, sil
    mov eax, 231
    syscall
    ud2

    # fault(text, len, code)
.Lfault:
    push rcx
    mov eax, {fault_max}
    cmp rdx, rax
    cmova rdx, rax
    push rdx
    push rsi
    mov edi, {report_fd}
    mov rsi, rsp
    mov edx, 1
    mov eax, 20
    syscall
    pop rsi
    pop rdx
    pop rsi
    jmp .Lexit

    # console(bytes, len, stream)
.Lconsole:
    lea rax, [rcx - 1]
    cmp rax, 1
    ja .Linvalid
    mov edi, ecx
    push rdx
    push rsi
.Lconsole_try:
    mov rsi, rsp
    mov edx, 1
    mov eax, 20
    syscall
    cmp rax, -4
    je .Lconsole_try
    # The pipe is full: nothing was taken.
    xor ecx, ecx
    cmp rax, -11
    cmove rax, rcx
    pop rsi
    pop rdx
    ret

    # wait(timeout_ns). The part from .Lwait_check to .Lwait_done is restartable: a stop signal that arrives in it
    # makes it begin again, so that none is slept through.
.Lwait:
    cmp byte ptr [rip + .Lnet_dead], 0
    jne .Lwait_without_net
    mov r9, [rip + .Lconfig + {net}]
    jmp .Lwait_build
.Lwait_without_net:
    xor r9d, r9d
.Lwait_build:
    sub rsp, 40
    mov dword ptr [rsp], {net_fd}
    movzx eax, byte ptr [rip + .Ltx_full]
    # POLLIN, and POLLOUT if a send found the device full.
    lea eax, [1 + rax * 4]
    mov [rsp + 4], eax
    mov qword ptr [rsp + 32], 0
    cmp rsi, -1
    je .Lwait_check
    mov rax, rsi
    xor edx, edx
    mov ecx, 1000000000
    div rcx
    mov [rsp + 8], rax
    mov [rsp + 16], rdx
    lea rax, [rsp + 8]
    mov [rsp + 32], rax
.Lwait_check:
    cmp byte ptr [rip + .Lstop], 1
    je .Lwait_stop
    mov rdi, rsp
    mov rsi, r9
    mov rdx, [rsp + 32]
    xor r10d, r10d
    mov r8d, 8
    mov eax, 271
    syscall
.Lwait_done:
    cmp byte ptr [rip + .Lstop], 1
    je .Lwait_stop
    xor ecx, ecx
    test rax, rax
    jle .Lwait_return
    movzx edx, word ptr [rsp + 6]
    test edx, 4
    jz .Lwait_in
    mov byte ptr [rip + .Ltx_full], 0
.Lwait_in:
    # POLLERR, POLLHUP, POLLNVAL: the device is gone. Do not spin on it.
    test edx, 0x38
    setnz al
    or byte ptr [rip + .Lnet_dead], al
    mov ecx, 1
.Lwait_return:
    mov eax, ecx
    add rsp, 40
    ret
.Lwait_stop:
    mov byte ptr [rip + .Lstop], 2
    mov eax, 2
    add rsp, 40
    ret

    # net_send(frames, count)
.Lnet_send:
    push rbx
    push r12
    push r13
    mov rbx, rsi
    mov r12, rdx
    xor r13d, r13d
.Lsend_next:
    cmp r13, r12
    jae .Lnet_return
    cmp qword ptr [rip + .Lconfig + {net}], 0
    je .Lno_device
.Lsend_again:
    mov rsi, [rbx]
    mov edx, [rbx + 8]
    mov edi, {net_fd}
    mov eax, 20
    syscall
    test rax, rax
    js .Lsend_failed
.Lsend_taken:
    add rbx, 16
    inc r13
    jmp .Lsend_next
.Lsend_failed:
    cmp rax, -4
    je .Lsend_again
    cmp rax, -14
    je .Lnet_bad
    cmp rax, -11
    # Any other error: the device refuses this frame for good.
    jne .Lsend_taken
    mov byte ptr [rip + .Ltx_full], 1
.Lnet_return:
    mov rax, r13
.Lnet_return_rax:
    pop r13
    pop r12
    pop rbx
    ret
.Lnet_bad:
    test r13, r13
    jnz .Lnet_return
    jmp .Lnet_return_rax
.Lno_device:
    mov rax, -38
    jmp .Lnet_return_rax

    # net_recv(frames, count)
.Lnet_recv:
    push rbx
    push r12
    push r13
    mov rbx, rsi
    mov r12, rdx
    xor r13d, r13d
.Lrecv_next:
    cmp r13, r12
    jae .Lnet_return
    cmp qword ptr [rip + .Lconfig + {net}], 0
    je .Lno_device
.Lrecv_again:
    mov rsi, [rbx]
    mov edx, [rbx + 8]
    mov edi, {net_fd}
    mov eax, 19
    syscall
    test rax, rax
    jle .Lrecv_failed
    mov [rbx + 12], eax
    add rbx, 16
    inc r13
    jmp .Lrecv_next
.Lrecv_failed:
    cmp rax, -4
    je .Lrecv_again
    cmp rax, -14
    je .Lnet_bad
    cmp rax, -22
    je .Lnet_bad
    jmp .Lnet_return

    # protect(addr, len, prot)
.Lprotect:
    cmp rcx, 2
    ja .Linvalid
    call .Lcheck_range
    jnz .Lrange_error
    # 0, 1, 2 -> PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE
    lea r8, [rcx + rcx]
    shr r8, 2
    lea rdx, [rcx + r8]
    mov eax, 10
    syscall
    ret

    # discard(addr, len)
.Ldiscard:
    call .Lcheck_range
    jnz .Lrange_error
    mov edx, 4
    mov eax, 28
    syscall
    ret

    # rsi = addr, rdx = len -> rdi, rsi = addr, len and ZF set, or rax = error and ZF clear
.Lcheck_range:
    mov rdi, rsi
    mov rax, rsi
    or rax, rdx
    test eax, 0xfff
    mov rax, -22
    jnz 1f
    mov rax, -14
    cmp rdi, [rip + .Lconfig + {reserve_base}]
    jb 1f
    mov rsi, rdi
    add rsi, rdx
    jc 1f
    cmp rsi, [rip + .Lconfig + {reserve_end}]
    ja 1f
    mov rsi, rdx
    xor eax, eax
    ret
1:  test rax, rax
    ret
.Lrange_error:
    ret
.Linvalid:
    mov rax, -22
    ret

    # Signal handlers: (edi = signal, rsi = siginfo, rdx = ucontext)

donjon_stub_on_tick:
    mov rax, [rdx + 160]
    add rax, -128
    mov rcx, [rdx + 168]
.Ltick_push:
    mov [rax - 8], rcx
    mov rcx, [rdx + 176]
    mov [rax - 16], rcx
.Ltick_pushed:
    add rax, -16
    mov [rdx + 160], rax
    mov rcx, [rip + .Lconfig + {upcall}]
    mov [rdx + 168], rcx
    ret

donjon_stub_on_stop:
    cmp byte ptr [rip + .Lstop], 0
    jne 1f
    mov byte ptr [rip + .Lstop], 1
1:  mov rax, [rdx + 168]
    lea rcx, [rip + .Lwait_check]
    cmp rax, rcx
    jb 2f
    lea r8, [rip + .Lwait_done]
    cmp rax, r8
    jae 2f
    mov [rdx + 168], rcx
2:  ret

donjon_stub_on_fault:
    mov rsi, rdx
    mov rax, [rdx + 168]
    lea rcx, [rip + .Ltick_push]
    cmp rax, rcx
    jb 1f
    lea rcx, [rip + .Ltick_pushed]
    cmp rax, rcx
    jae 1f
    # A tick found no room on the guest's stack: report the code that the tick interrupted.
    mov rsi, [rdx + 136]
1:  mov rax, [rsi + 168]
    mov r8, [rsi + 160]
    mov r9, [rsi + 120]
    mov [rdx + 136], rax
    mov [rdx + 152], r8
    mov [rdx + 40], r9
    mov rax, [rdx + 192]
    mov [rdx + 48], rax
    mov rax, [rdx + 200]
    mov [rdx + 104], rax
    # CR2 is of page faults only.
    xor ecx, ecx
    cmp rax, 14
    jne 2f
    mov rcx, [rdx + 216]
2:  mov [rdx + 112], rcx
    mov rax, [rip + .Lconfig + {fault_stack}]
    mov qword ptr [rax - 8], 0
    add rax, -8
    mov [rdx + 160], rax
    mov rax, [rip + .Lconfig + {fault}]
    mov [rdx + 168], rax
    # DF, TF and AC off.
    and qword ptr [rdx + 176], ~0x40500
    # No tick from now on, and a second fault finds its signal blocked: the kernel then ends the process.
    mov qword ptr [rdx + 296], -1
    ret

donjon_stub_restorer:
    mov eax, 15
    syscall
    ud2

    # The child jumps here, on the guest's stack, with all signals blocked. From here on nothing of the monitor is used.
donjon_stub_launch:
    lea rbx, [rip + .Lconfig + {gaps}]
    mov r12, [rip + .Lconfig + {gap_count}]
1:  test r12, r12
    jz 2f
    mov rdi, [rbx]
    mov rsi, [rbx + 8]
    mov eax, 11
    syscall
    mov ecx, {step_unmap}
    test rax, rax
    js .Llaunch_failed
    add rbx, 16
    dec r12
    jmp 1b
2:  mov edi, 1
    xor esi, esi
    lea rdx, [rip + .Lconfig + {filter_len}]
    mov eax, 317
    syscall
    mov ecx, {step_seccomp}
    test rax, rax
    jnz .Llaunch_failed
    # The guest starts by "returning" from a signal: sets all registers, and unblocks the signals, in one step that the filter allows.
    mov rsp, [rip + .Lconfig + {frame}]
    mov eax, 15
    syscall
    ud2
.Llaunch_failed:
    neg eax
    shl rax, 24
    shl ecx, 16
    or rax, rcx
    or rax, {setup_failed}
    push rax
    mov rcx, rsp
    push 7
    push rcx
    mov edi, {report_fd}
    mov rsi, rsp
    mov edx, 1
    mov eax, 20
    syscall
    mov sil, 70
    jmp .Lexit
donjon_stub_end:
    .popsection
"#,
    page = const PAGE,
    fault_max = const FAULT_MAX,
    report_fd = const REPORT_FD,
    net_fd = const NET_FD,
    reserve_base = const offset_of!(Config, reserve_base),
    reserve_end = const offset_of!(Config, reserve_end),
    upcall = const offset_of!(Config, upcall),
    fault = const offset_of!(Config, fault),
    fault_stack = const offset_of!(Config, fault_stack),
    net = const offset_of!(Config, net),
    frame = const offset_of!(Config, frame),
    filter_len = const offset_of!(Config, filter_len),
    gap_count = const offset_of!(Config, gap_count),
    gaps = const offset_of!(Config, gaps),
    step_unmap = const STEP_UNMAP,
    step_seccomp = const STEP_SECCOMP,
    setup_failed = const u16::from_le_bytes(SETUP_FAILED),
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_fits_its_page() {
        assert!(text().len() as u64 <= PAGE, "{} bytes", text().len());
        assert!(text().len() > 500);
        assert!(offsets().gate < text().len() as u64);
    }
}
