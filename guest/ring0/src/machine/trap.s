# Traps, the gate's system call, and the memory functions that the compiler calls.

.section .text
.code64

# One stub for each vector, 16 bytes apart. Exceptions 8, 10-14, 17, 21, 29 and 30 push an error code by themselves.
.balign 16
.globl shim_trap_stubs
shim_trap_stubs:
.set vector, 0
.rept 48
    .balign 16
    .if (vector != 8) && ((vector < 10) || (vector > 14)) && (vector != 17) && (vector != 21) && (vector != 29) && (vector != 30)
    pushq $0
    .endif
    pushq $vector
    jmp trap_common
    .set vector, vector + 1
.endr

# Stack: vector, error, rip, cs, rflags, rsp, ss.
.balign 16
trap_common:
    testb $3, 24(%rsp)
    jz from_ring0
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    movq %rsp, %rbx
    subq $512, %rsp
    andq $-16, %rsp
    fxsave64 (%rsp)
    call shim_trap
    fxrstor64 (%rsp)
    movq %rbx, %rsp
.globl shim_return
shim_return:
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

from_ring0:
    # Interrupts are on in ring 0 only around the `hlt` of shim_halt: note the vector and go back with interrupts off.
    cmpq $32, (%rsp)
    jb 1f
    pushq %rax
    movq 8(%rsp), %rax
    movq %rax, shim_halt_vector
    popq %rax
    andq $~0x200, 32(%rsp)
    addq $16, %rsp
    iretq
1:  # An exception in the shim itself: its registers, then the report.
    subq $120, %rsp
    movq %rsp, %rdi
    andq $-16, %rsp
    cld
    call shim_fatal
    ud2

# Sleeps until an interrupt; returns its vector. Interrupts are off before and after.
.globl shim_halt
shim_halt:
    movq $0, shim_halt_vector
    sti
    hlt
    cli
    movq shim_halt_vector, %rax
    ret

# Start of ring 3: rdi points to a complete frame.
.globl shim_enter
shim_enter:
    movq %rdi, %rsp
    jmp shim_return

# Gate: rax is unused, rdi call, rsi a, rdx b, r10 c, r8 d. rcx and r11 hold rip and rflags. Only the gate's own page is served; so `sysretq`
# never gets an address that the guest chose.
.globl shim_syscall
shim_syscall:
    movq %rsp, gate_rsp
    movl $__stack_top, %esp
    cmpq %rcx, shim_gate_back
    jne not_the_gate
    pushq gate_rsp
    pushq %rcx
    pushq %r11
    subq $8, %rsp
    movq %r10, %rcx
    call shim_gate
    addq $8, %rsp
    popq %r11
    popq %rcx
    # Nothing of the shim stays in a register.
    xorl %edx, %edx
    xorl %esi, %esi
    xorl %edi, %edi
    xorl %r8d, %r8d
    xorl %r9d, %r9d
    xorl %r10d, %r10d
    popq %rsp
    sysretq

# Elsewhere the instruction does not exist: an invalid opcode.
not_the_gate:
    pushq $0x23
    pushq gate_rsp
    pushq %r11
    pushq $0x2b
    subq $2, %rcx
    pushq %rcx
    pushq $0
    pushq $6
    jmp trap_common

# What ring 3 executes as its gate; copied into a page of its own.
.section .rodata
.globl shim_gate_stub
.globl shim_gate_stub_end
shim_gate_stub:
    movq %rcx, %r10
    syscall
.globl shim_gate_stub_back
shim_gate_stub_back:
    ret
shim_gate_stub_end:

.section .text
# Loops of 16-byte moves: `rep movs` is byte by byte under emulation.
.balign 16
.globl memcpy
memcpy:
    movq %rdi, %rax
copy_forward:
    movq %rdx, %rcx
    shrq $6, %rcx
    jz 2f
1:  movups (%rsi), %xmm0
    movups 16(%rsi), %xmm1
    movups 32(%rsi), %xmm2
    movups 48(%rsi), %xmm3
    movups %xmm0, (%rdi)
    movups %xmm1, 16(%rdi)
    movups %xmm2, 32(%rdi)
    movups %xmm3, 48(%rdi)
    addq $64, %rsi
    addq $64, %rdi
    decq %rcx
    jnz 1b
2:  movl %edx, %ecx
    andl $63, %ecx
    shrl $3, %ecx
    jz 4f
3:  movq (%rsi), %r8
    movq %r8, (%rdi)
    addq $8, %rsi
    addq $8, %rdi
    decl %ecx
    jnz 3b
4:  andl $7, %edx
    jz 6f
5:  movb (%rsi), %cl
    movb %cl, (%rdi)
    incq %rsi
    incq %rdi
    decl %edx
    jnz 5b
6:  ret

.globl memmove
memmove:
    movq %rdi, %rax
    movq %rdi, %rcx
    subq %rsi, %rcx
    cmpq %rdx, %rcx
    jae copy_forward
1:  testq %rdx, %rdx
    jz 2f
    decq %rdx
    movb (%rsi, %rdx), %cl
    movb %cl, (%rdi, %rdx)
    jmp 1b
2:  ret

.globl memset
memset:
    movq %rdi, %rax
    movzbl %sil, %esi
    movabsq $0x0101010101010101, %r8
    imulq %rsi, %r8
    movq %r8, %xmm0
    punpcklqdq %xmm0, %xmm0
    movq %rdx, %rcx
    shrq $6, %rcx
    jz 2f
1:  movups %xmm0, (%rdi)
    movups %xmm0, 16(%rdi)
    movups %xmm0, 32(%rdi)
    movups %xmm0, 48(%rdi)
    addq $64, %rdi
    decq %rcx
    jnz 1b
2:  andl $63, %edx
    jz 4f
3:  movb %sil, (%rdi)
    incq %rdi
    decl %edx
    jnz 3b
4:  ret

.globl memcmp
.globl bcmp
memcmp:
bcmp:
    xorl %eax, %eax
1:  testq %rdx, %rdx
    jz 2f
    movzbl (%rdi), %eax
    movzbl (%rsi), %ecx
    subl %ecx, %eax
    jnz 2f
    incq %rdi
    incq %rsi
    decq %rdx
    jmp 1b
2:  ret

.section .bss
.balign 8
gate_rsp: .skip 8
# Where the gate's page continues after its system call, in ring 3's addresses; 0 is nowhere.
.globl shim_gate_back
shim_gate_back: .skip 8
shim_halt_vector: .skip 8
