//! `memcpy` and its kin.
//!
//! The four that compilers call on their own (`memcpy`, `memmove`, `memset`, `memcmp`) are assembly, because LLVM turns such loops written in
//! Rust into calls to the very function. Small sizes use loads that overlap in the middle instead of a loop over bytes; large ones an
//! SSE2 loop of 64 bytes with aligned stores. `rep movsb` would win a little above some KiB on real processors but costs a trip
//! per byte under QEMU's TCG. AVX is left alone so that a context switch need not save it.

use super::sse::{cmpeq_mask, load, load_aligned, none_in_64, splat};
use core::arch::naked_asm;
use core::ffi::{c_int, c_void};

/// Copies `n` bytes from `src` to `dst`; overlapping ranges are fine too.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn memcpy(dst: *mut c_void, src: *const c_void, n: usize) -> *mut c_void {
    naked_asm!("jmp {}", sym memmove)
}

/// Like [`memcpy`], and returns the end of what was written.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn mempcpy(dst: *mut c_void, src: *const c_void, n: usize) -> *mut c_void {
    naked_asm!("push rdx", "call {}", "pop rdx", "add rax, rdx", "ret", sym memmove)
}

/// Copies `n` bytes between ranges that may overlap.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn memmove(dst: *mut c_void, src: *const c_void, n: usize) -> *mut c_void {
    // Every path but the two loops reads all that it needs before its first store, so that the direction does not matter there.
    naked_asm!(
        "mov rax, rdi",
        "cmp rdx, 16",
        "jb 20f",
        "cmp rdx, 32",
        "ja 30f",
        // 16..=32: both ends, overlapping in the middle.
        "movups xmm0, [rsi]",
        "movups xmm1, [rsi + rdx - 16]",
        "movups [rdi], xmm0",
        "movups [rdi + rdx - 16], xmm1",
        "ret",
        "30:",
        "cmp rdx, 64",
        "ja 31f",
        // 33..=64
        "movups xmm0, [rsi]",
        "movups xmm1, [rsi + 16]",
        "movups xmm2, [rsi + rdx - 32]",
        "movups xmm3, [rsi + rdx - 16]",
        "movups [rdi], xmm0",
        "movups [rdi + 16], xmm1",
        "movups [rdi + rdx - 32], xmm2",
        "movups [rdi + rdx - 16], xmm3",
        "ret",
        "31:",
        "cmp rdx, 128",
        "ja 12f",
        // 65..=128
        "movups xmm0, [rsi]",
        "movups xmm1, [rsi + 16]",
        "movups xmm2, [rsi + 32]",
        "movups xmm3, [rsi + 48]",
        "movups xmm4, [rsi + rdx - 64]",
        "movups xmm5, [rsi + rdx - 48]",
        "movups xmm6, [rsi + rdx - 32]",
        "movups xmm7, [rsi + rdx - 16]",
        "movups [rdi], xmm0",
        "movups [rdi + 16], xmm1",
        "movups [rdi + 32], xmm2",
        "movups [rdi + 48], xmm3",
        "movups [rdi + rdx - 64], xmm4",
        "movups [rdi + rdx - 48], xmm5",
        "movups [rdi + rdx - 32], xmm6",
        "movups [rdi + rdx - 16], xmm7",
        "ret",
        // More than 128. Backward only if dst lies within (src, src + n).
        "12:",
        "mov rcx, rdi",
        "sub rcx, rsi",
        "je 19f",
        "cmp rcx, rdx",
        "jb 15f",
        // Forward: the head (16, unaligned) and the tail (64) are read now and written last.
        "movups xmm8, [rsi]",
        "movups xmm4, [rsi + rdx - 64]",
        "movups xmm5, [rsi + rdx - 48]",
        "movups xmm6, [rsi + rdx - 32]",
        "movups xmm7, [rsi + rdx - 16]",
        "lea r8, [rdi + rdx]",
        "lea r9, [rdi + 16]",
        "and r9, -16",
        "mov rcx, r9",
        "sub rcx, rdi",
        "add rsi, rcx",
        "sub rdx, rcx",
        ".p2align 4",
        "13:",
        "movups xmm0, [rsi]",
        "movups xmm1, [rsi + 16]",
        "movups xmm2, [rsi + 32]",
        "movups xmm3, [rsi + 48]",
        "movaps [r9], xmm0",
        "movaps [r9 + 16], xmm1",
        "movaps [r9 + 32], xmm2",
        "movaps [r9 + 48], xmm3",
        "add rsi, 64",
        "add r9, 64",
        "sub rdx, 64",
        "cmp rdx, 64",
        "ja 13b",
        "movups [r8 - 64], xmm4",
        "movups [r8 - 48], xmm5",
        "movups [r8 - 32], xmm6",
        "movups [r8 - 16], xmm7",
        "movups [rdi], xmm8",
        "ret",
        // Backward: the mirror image.
        "15:",
        "movups xmm8, [rsi + rdx - 16]",
        "movups xmm4, [rsi]",
        "movups xmm5, [rsi + 16]",
        "movups xmm6, [rsi + 32]",
        "movups xmm7, [rsi + 48]",
        "lea r8, [rdi + rdx]",
        "lea r9, [r8 - 1]",
        "and r9, -16",
        "mov rcx, r8",
        "sub rcx, r9",
        "sub rdx, rcx",
        "add rsi, rdx",
        ".p2align 4",
        "16:",
        "movups xmm0, [rsi - 16]",
        "movups xmm1, [rsi - 32]",
        "movups xmm2, [rsi - 48]",
        "movups xmm3, [rsi - 64]",
        "movaps [r9 - 16], xmm0",
        "movaps [r9 - 32], xmm1",
        "movaps [r9 - 48], xmm2",
        "movaps [r9 - 64], xmm3",
        "sub rsi, 64",
        "sub r9, 64",
        "sub rdx, 64",
        "cmp rdx, 64",
        "ja 16b",
        "movups [rdi], xmm4",
        "movups [rdi + 16], xmm5",
        "movups [rdi + 32], xmm6",
        "movups [rdi + 48], xmm7",
        "movups [r8 - 16], xmm8",
        "19:",
        "ret",
        // 0..=15
        "20:",
        "cmp edx, 8",
        "jb 21f",
        "mov rcx, [rsi]",
        "mov r8, [rsi + rdx - 8]",
        "mov [rdi], rcx",
        "mov [rdi + rdx - 8], r8",
        "ret",
        "21:",
        "cmp edx, 4",
        "jb 22f",
        "mov ecx, [rsi]",
        "mov r8d, [rsi + rdx - 4]",
        "mov [rdi], ecx",
        "mov [rdi + rdx - 4], r8d",
        "ret",
        "22:",
        "test edx, edx",
        "je 23f",
        // 1..=3: first, middle and last, some of them the same byte.
        "movzx ecx, byte ptr [rsi]",
        "movzx r8d, byte ptr [rsi + rdx - 1]",
        "mov r9d, edx",
        "shr r9d, 1",
        "movzx r10d, byte ptr [rsi + r9]",
        "mov [rdi + r9], r10b",
        "mov [rdi], cl",
        "mov [rdi + rdx - 1], r8b",
        "23:",
        "ret",
    )
}

/// Fills `n` bytes at `dst` with the low byte of `c`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn memset(dst: *mut c_void, c: c_int, n: usize) -> *mut c_void {
    naked_asm!(
        "mov rax, rdi",
        "movzx ecx, sil",
        "mov r8, 0x0101010101010101",
        "imul rcx, r8",
        "cmp rdx, 16",
        "jb 20f",
        "movq xmm0, rcx",
        "punpcklqdq xmm0, xmm0",
        "cmp rdx, 64",
        "ja 31f",
        // 16..=64: up to four stores that overlap.
        "movups [rdi], xmm0",
        "movups [rdi + rdx - 16], xmm0",
        "cmp edx, 32",
        "jbe 30f",
        "movups [rdi + 16], xmm0",
        "movups [rdi + rdx - 32], xmm0",
        "30:",
        "ret",
        // Above 64: unaligned head, aligned loop, unaligned tail.
        "31:",
        "movups [rdi], xmm0",
        "lea r8, [rdi + rdx - 64]",
        "movups [r8], xmm0",
        "movups [r8 + 16], xmm0",
        "movups [r8 + 32], xmm0",
        "movups [r8 + 48], xmm0",
        "add rdi, 16",
        "and rdi, -16",
        "cmp rdi, r8",
        "jae 13f",
        ".p2align 4",
        "12:",
        "movaps [rdi], xmm0",
        "movaps [rdi + 16], xmm0",
        "movaps [rdi + 32], xmm0",
        "movaps [rdi + 48], xmm0",
        "add rdi, 64",
        "cmp rdi, r8",
        "jb 12b",
        "13:",
        "ret",
        // 0..=15
        "20:",
        "cmp edx, 8",
        "jb 21f",
        "mov [rdi], rcx",
        "mov [rdi + rdx - 8], rcx",
        "ret",
        "21:",
        "cmp edx, 4",
        "jb 22f",
        "mov [rdi], ecx",
        "mov [rdi + rdx - 4], ecx",
        "ret",
        "22:",
        "test edx, edx",
        "je 23f",
        "mov [rdi], cl",
        "mov [rdi + rdx - 1], cl",
        "shr edx, 1",
        "mov [rdi + rdx], cl",
        "23:",
        "ret",
    )
}

/// Compares `n` bytes as unsigned: negative, zero or positive.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn memcmp(a: *const c_void, b: *const c_void, n: usize) -> c_int {
    naked_asm!(
        "cmp rdx, 16",
        "jb 20f",
        "cmp rdx, 32",
        "jbe 12f",
        "cmp rdx, 64",
        "jbe 31f",
        // Above 64: loop over 64 bytes while more than 64 are left, then the rest below.
        ".p2align 4",
        "30:",
        "movups xmm0, [rdi]",
        "movups xmm1, [rdi + 16]",
        "movups xmm2, [rdi + 32]",
        "movups xmm3, [rdi + 48]",
        "movups xmm4, [rsi]",
        "movups xmm5, [rsi + 16]",
        "movups xmm6, [rsi + 32]",
        "movups xmm7, [rsi + 48]",
        "pcmpeqb xmm0, xmm4",
        "pcmpeqb xmm1, xmm5",
        "pcmpeqb xmm2, xmm6",
        "pcmpeqb xmm3, xmm7",
        "movdqa xmm4, xmm0",
        "pand xmm4, xmm1",
        "pand xmm4, xmm2",
        "pand xmm4, xmm3",
        "pmovmskb eax, xmm4",
        "cmp eax, 0xffff",
        "jne 15f",
        "add rdi, 64",
        "add rsi, 64",
        "sub rdx, 64",
        "cmp rdx, 64",
        "ja 30b",
        // 1..=64 left; what lies before was equal, so the last 64 bytes may be looked at as a whole.
        "lea rdi, [rdi + rdx - 64]",
        "lea rsi, [rsi + rdx - 64]",
        "mov edx, 64",
        // 33..=64: the first 32, then the last 32.
        "31:",
        "movups xmm0, [rdi]",
        "movups xmm1, [rdi + 16]",
        "movups xmm4, [rsi]",
        "movups xmm5, [rsi + 16]",
        "pcmpeqb xmm0, xmm4",
        "pcmpeqb xmm1, xmm5",
        "pmovmskb eax, xmm0",
        "pmovmskb ecx, xmm1",
        "shl ecx, 16",
        "or eax, ecx",
        "not eax",
        "test eax, eax",
        "jne 17f",
        "lea rdi, [rdi + rdx - 32]",
        "lea rsi, [rsi + rdx - 32]",
        "mov edx, 32",
        // 16..=32: the first 16, then the last 16.
        "12:",
        "movups xmm0, [rdi]",
        "movups xmm1, [rdi + rdx - 16]",
        "movups xmm4, [rsi]",
        "movups xmm5, [rsi + rdx - 16]",
        "pcmpeqb xmm0, xmm4",
        "pcmpeqb xmm1, xmm5",
        "pmovmskb eax, xmm0",
        "xor eax, 0xffff",
        "jne 17f",
        "pmovmskb eax, xmm1",
        "xor eax, 0xffff",
        "jne 16f",
        "ret",
        // A difference in the 64 bytes of the loop: find the first.
        "15:",
        "pmovmskb eax, xmm0",
        "pmovmskb ecx, xmm1",
        "shl ecx, 16",
        "or eax, ecx",
        "pmovmskb ecx, xmm2",
        "pmovmskb r8d, xmm3",
        "shl r8d, 16",
        "or ecx, r8d",
        "shl rcx, 32",
        "or rax, rcx",
        "not rax",
        "bsf rax, rax",
        "jmp 18f",
        "16:",
        "lea rdi, [rdi + rdx - 16]",
        "lea rsi, [rsi + rdx - 16]",
        "17:",
        "bsf eax, eax",
        "18:",
        "movzx ecx, byte ptr [rsi + rax]",
        "movzx eax, byte ptr [rdi + rax]",
        "sub eax, ecx",
        "ret",
        // 0..=15: big-endian words compare like bytes.
        "20:",
        "cmp edx, 8",
        "jb 21f",
        "mov rax, [rdi]",
        "mov rcx, [rsi]",
        "cmp rax, rcx",
        "jne 24f",
        "mov rax, [rdi + rdx - 8]",
        "mov rcx, [rsi + rdx - 8]",
        "cmp rax, rcx",
        "jne 24f",
        "xor eax, eax",
        "ret",
        "21:",
        "cmp edx, 4",
        "jb 22f",
        "mov eax, [rdi]",
        "mov ecx, [rsi]",
        "cmp eax, ecx",
        "jne 24f",
        "mov eax, [rdi + rdx - 4]",
        "mov ecx, [rsi + rdx - 4]",
        "cmp eax, ecx",
        "jne 24f",
        "xor eax, eax",
        "ret",
        "24:",
        "bswap rax",
        "bswap rcx",
        "cmp rax, rcx",
        "sbb eax, eax",
        "or eax, 1",
        "ret",
        // 0..=3
        "22:",
        "xor r8d, r8d",
        "23:",
        "cmp r8d, edx",
        "je 25f",
        "movzx eax, byte ptr [rdi + r8]",
        "movzx ecx, byte ptr [rsi + r8]",
        "inc r8d",
        "sub eax, ecx",
        "je 23b",
        "ret",
        "25:",
        "xor eax, eax",
        "ret",
    )
}

/// Like [`memcmp`]; only zero or not zero counts.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn bcmp(a: *const c_void, b: *const c_void, n: usize) -> c_int {
    naked_asm!("jmp {}", sym memcmp)
}

/// Finds the first byte `c` in `n` bytes at `s`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn memchr(s: *const c_void, c: c_int, n: usize) -> *mut c_void {
    let mut at = s.cast::<u8>();
    if n == 0 {
        return core::ptr::null_mut();
    }
    let want = splat(c as u8);
    // SAFETY: 1. aligned loads never cross into a page without a byte of the range; 2. hits outside the range are masked.
    unsafe {
        let end = (at as usize).saturating_add(n);
        let mut block = at.map_addr(|a| a & !15);
        let mut mask = cmpeq_mask(load_aligned(block), want) & (!0 << (at as usize & 15));
        loop {
            if mask != 0 {
                at = block.wrapping_add(mask.trailing_zeros() as usize);
                return if (at as usize) < end { at.cast_mut().cast() } else { core::ptr::null_mut() };
            }
            block = block.wrapping_add(16);
            if block as usize & 63 == 0 {
                while (block as usize) < end && end - block as usize >= 64 && none_in_64(block, want) {
                    block = block.wrapping_add(64);
                }
            }
            // An end that saturates never comes: the C contract says that the byte is found before.
            if block as usize >= end {
                return core::ptr::null_mut();
            }
            mask = cmpeq_mask(load_aligned(block), want);
        }
    }
}

/// Finds the byte `c`, which must be there.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn rawmemchr(s: *const c_void, c: c_int) -> *mut c_void {
    // SAFETY: the caller vouches for the byte.
    unsafe { memchr(s, c, usize::MAX) }
}

/// Finds the last byte `c` in `n` bytes at `s`.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn memrchr(s: *const c_void, c: c_int, n: usize) -> *mut c_void {
    let s = s.cast::<u8>();
    let mut left = n;
    let want = splat(c as u8);
    // SAFETY: reads only within the `n` bytes.
    unsafe {
        while left >= 16 {
            let mask = cmpeq_mask(load(s.add(left - 16)), want);
            if mask != 0 {
                return s.add(left - 16 + mask.ilog2() as usize).cast_mut().cast();
            }
            left -= 16;
        }
        while left > 0 {
            left -= 1;
            if *s.add(left) == c as u8 {
                return s.add(left).cast_mut().cast();
            }
        }
    }
    core::ptr::null_mut()
}

/// Copies up to and including the first byte `c`, at most `n` bytes; returns the end if `c` was met.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn memccpy(dst: *mut c_void, src: *const c_void, c: c_int, n: usize) -> *mut c_void {
    // SAFETY: C contract: both ranges hold `n` bytes, or up to `c`.
    unsafe {
        let found = memchr(src, c, n);
        let len = if found.is_null() { n } else { found as usize - src as usize + 1 };
        memcpy(dst, src, len);
        if found.is_null() { found } else { dst.cast::<u8>().add(len).cast() }
    }
}

/// Finds the `n` bytes at `needle` in the `h` bytes at `hay`, in linear time.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn memmem(hay: *const c_void, h: usize, needle: *const c_void, n: usize) -> *mut c_void {
    if n > h {
        return core::ptr::null_mut();
    }
    if n == 0 {
        return hay.cast_mut();
    }
    // SAFETY: both ranges are readable by the C contract; empty ones were sorted out above.
    unsafe {
        let (hay, needle) =
            (core::slice::from_raw_parts(hay.cast::<u8>(), h), core::slice::from_raw_parts(needle.cast::<u8>(), n));
        match super::search::find(hay, needle) {
            Some(at) => hay.as_ptr().add(at).cast_mut().cast(),
            None => core::ptr::null_mut(),
        }
    }
}

/// Zeroes memory in a way that no compiler may leave out.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn explicit_bzero(s: *mut c_void, n: usize) {
    // SAFETY: C contract; the empty assembly makes the bytes look used.
    unsafe {
        memset(s, 0, n);
        core::arch::asm!("/* {} */", in(reg) s, options(nostack, preserves_flags));
    }
}

/// Zeroes memory.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn bzero(s: *mut c_void, n: usize) {
    // SAFETY: C contract.
    unsafe { memset(s, 0, n) };
}
