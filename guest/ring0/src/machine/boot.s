# Entry from the hypervisor: 32-bit protected mode, paging off (PVH: ebx = hvm_start_info), or 64-bit mode with a
# one-to-one mapping (Linux boot protocol: rsi = boot_params). Both end in shim_start(protocol, info) with one
# GiB mapped one to one: the first 2 MiB by 4 KiB pages (rights are set by Rust), the rest writable and not executable.

.section .bss.tables, "aw", @nobits
.balign 4096
.globl shim_root
shim_root:      .skip 4096
boot_pdpt:      .skip 4096
boot_pd:        .skip 4096
.globl shim_low_table
shim_low_table: .skip 4096

.section .text.boot, "ax"
.code32
.globl shim_entry
shim_entry:
    cli
    cld
    movl %ebx, %esi
    xorl %eax, %eax
    movl $__bss_start, %edi
    movl $__bss_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    rep stosl

    # The CPU must know long mode and no-execute.
    movl $0x80000001, %eax
    cpuid
    testl $(1 << 20), %edx
    jz hopeless
    testl $(1 << 29), %edx
    jz hopeless

    movl $(boot_pdpt + 0x23), shim_root
    movl $(boot_pd + 0x23), boot_pdpt
    movl $(shim_low_table + 0x23), boot_pd
    # 2 MiB pages: present, writable, accessed, dirty, large, global, not executable.
    movl $1, %ecx
    movl $0x2001e3, %eax
1:  movl %eax, boot_pd(, %ecx, 8)
    movl $0x80000000, boot_pd+4(, %ecx, 8)
    addl $0x200000, %eax
    incl %ecx
    cmpl $512, %ecx
    jb 1b
    # 4 KiB pages of the first 2 MiB.
    xorl %ecx, %ecx
    movl $0x63, %eax
1:  movl %eax, shim_low_table(, %ecx, 8)
    addl $0x1000, %eax
    incl %ecx
    cmpl $512, %ecx
    jb 1b

    movl %cr4, %eax
    orl $0x620, %eax            # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $shim_root, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      # EFER: SCE, LME, NXE
    rdmsr
    orl $0x901, %eax
    wrmsr
    movl $0x80010033, %eax      # PG, WP, NE, ET, MP, PE
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    xorl %edi, %edi
    ljmp $8, $start64

hopeless:
    # No 64-bit mode: say so, character by character, and stop.
    movl $hopeless_text, %esi
    movw $0x3f8, %dx
1:  lodsb
    testb %al, %al
    jz 2f
    outb %al, %dx
    jmp 1b
2:  movb $69, %al
    outb %al, $0xf4
    cli
    hlt
    jmp 2b
hopeless_text: .asciz "donjon: this CPU has no 64-bit mode or no NX bit\n"

.balign 8
# Null, ring-0 code, ring-0 data; segments.rs loads the complete table.
boot_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
boot_gdt_pointer:
    .short 24 - 1
    .long boot_gdt

.code64
.balign 256
.globl shim_entry64
shim_entry64:
    # At a fixed place: SHIM_PADDR + 512.
    cli
    cld
    xorl %eax, %eax
    movl $__bss_start, %edi
    movl $__bss_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    rep stosl
    movl $(boot_pdpt + 0x23), %eax
    movl %eax, shim_root
    movl $(boot_pd + 0x23), %eax
    movl %eax, boot_pdpt
    movl $(shim_low_table + 0x23), %eax
    movl %eax, boot_pd
    movl $1, %ecx
    movl $0x2001e3, %eax
1:  movl %eax, boot_pd(, %rcx, 8)
    movl $0x80000000, boot_pd+4(, %rcx, 8)
    addl $0x200000, %eax
    incl %ecx
    cmpl $512, %ecx
    jb 1b
    xorl %ecx, %ecx
    movl $0x63, %eax
1:  movl %eax, shim_low_table(, %rcx, 8)
    addl $0x1000, %eax
    incl %ecx
    cmpl $512, %ecx
    jb 1b
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x901, %eax
    wrmsr
    movl $0x620, %eax
    movq %rax, %cr4
    movl $shim_root, %eax
    movq %rax, %cr3
    movl $0x80010033, %eax
    movq %rax, %cr0
    lgdt boot_gdt_pointer64
    movl $1, %edi
    movl $__stack_top, %esp
    pushq $8
    pushq $start64
    lretq

.balign 8
boot_gdt_pointer64:
    .short 24 - 1
    .quad boot_gdt

start64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $__stack_top, %esp
    movl %esi, %esi
    xorl %ebp, %ebp
    call shim_start
    ud2

# XEN_ELFNOTE_PHYS32_ENTRY (18).
.section .note.Xen, "a", @note
.balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long shim_entry
