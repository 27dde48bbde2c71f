//! What an attacker finds in a program: the C functions that it calls, and instructions. The instructions are a gift: few programs contain them.

use std::arch::naked_asm;

unsafe extern "C" {
    fn mprotect();
    fn mmap();
    fn open();
    fn read();
    fn write();
    fn socket();
    fn connect();
    fn fork();
    fn execve();
    fn system();
    fn ptrace();
    fn process_vm_readv();
    fn setuid();
    fn mknod();
    fn syscall();
}

/// `syscall` with the registers of choice.
#[unsafe(naked)]
extern "C" fn gadget_syscall() {
    naked_asm!(
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, [rsp + 8]",
        "syscall",
        "ret"
    )
}

/// The door of 32-bit programs.
#[unsafe(naked)]
extern "C" fn gadget_int80() {
    naked_asm!("mov rax, rdi", "int 0x80", "ret")
}

#[unsafe(naked)]
extern "C" fn gadget_read_cr3() {
    naked_asm!("mov rax, cr3", "ret")
}

#[unsafe(naked)]
extern "C" fn gadget_write_cr3() {
    naked_asm!("mov cr3, rdi", "ret")
}

/// Clears CR0.WP.
#[unsafe(naked)]
extern "C" fn gadget_cr0() {
    naked_asm!("mov rax, cr0", "and rax, -65537", "mov cr0, rax", "ret")
}

/// Writes LSTAR, where `syscall` goes.
#[unsafe(naked)]
extern "C" fn gadget_wrmsr() {
    naked_asm!("mov ecx, 0xc0000082", "mov eax, edi", "xor edx, edx", "wrmsr", "ret")
}

#[unsafe(naked)]
extern "C" fn gadget_in() {
    naked_asm!("mov edx, edi", "in al, dx", "ret")
}

#[unsafe(naked)]
extern "C" fn gadget_out() {
    naked_asm!("mov edx, edi", "mov eax, esi", "out dx, al", "ret")
}

macro_rules! table {
    ($($name:ident)*) => { &[$((stringify!($name), $name as *const ())),*] };
}

/// The address of a function by name; 0 if it is not in the program.
pub fn find(name: &str) -> u64 {
    let table: &[(&str, *const ())] = table! {
        mprotect mmap open read write socket connect fork execve system ptrace process_vm_readv setuid mknod syscall
        gadget_syscall gadget_int80 gadget_read_cr3 gadget_write_cr3 gadget_cr0 gadget_wrmsr gadget_in gadget_out
    };
    table.iter().find(|(n, _)| *n == name).map_or(0, |(_, at)| *at as u64)
}
