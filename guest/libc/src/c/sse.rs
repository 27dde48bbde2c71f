//! The few SSE2 operations of the string functions.

use core::arch::asm;
use core::arch::x86_64::{__m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_set1_epi8};

/// 16 bytes of `byte`.
#[inline(always)]
pub fn splat(byte: u8) -> __m128i {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_set1_epi8(byte.cast_signed()) }
}

/// A bit for each byte that is equal.
#[inline(always)]
pub fn cmpeq_mask(a: __m128i, b: __m128i) -> u32 {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(a, b)).cast_unsigned() }
}

/// Loads 16 bytes from anywhere.
///
/// # Safety
/// They must be readable.
#[inline(always)]
pub unsafe fn load(at: *const u8) -> __m128i {
    // SAFETY: the caller's.
    unsafe { _mm_loadu_si128(at.cast()) }
}

/// Loads the aligned block at `at`, which may reach beyond the object but not into another page.
/// Assembly, since the language knows no read beyond an object.
///
/// # Safety
/// `at` is a multiple of 16, and one of the 16 bytes is readable.
#[inline(always)]
pub unsafe fn load_aligned(at: *const u8) -> __m128i {
    let value;
    // SAFETY: rights end at page boundaries, so all 16 are readable if one is.
    unsafe {
        asm!("movdqa {}, [{}]", out(xmm_reg) value, in(reg) at, options(nostack, preserves_flags, readonly, pure))
    };
    value
}

/// Whether none of the 64 bytes at `at` is like those of `want`.
///
/// # Safety
/// `at` is a multiple of 64, and one of the 64 bytes is readable.
#[inline(always)]
pub unsafe fn none_in_64(at: *const u8, want: __m128i) -> bool {
    let hits: u32;
    // SAFETY: rights end at page boundaries, so all 64 are readable if one is.
    unsafe {
        asm!(
            "movdqa {a}, [{at}]",
            "movdqa {b}, [{at} + 16]",
            "movdqa {c}, [{at} + 32]",
            "movdqa {d}, [{at} + 48]",
            "pcmpeqb {a}, {want}",
            "pcmpeqb {b}, {want}",
            "pcmpeqb {c}, {want}",
            "pcmpeqb {d}, {want}",
            "por {a}, {b}",
            "por {c}, {d}",
            "por {a}, {c}",
            "pmovmskb {hits:e}, {a}",
            at = in(reg) at,
            want = in(xmm_reg) want,
            hits = lateout(reg) hits,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack, preserves_flags, readonly, pure),
        );
    }
    hits == 0
}

/// Loads 16 bytes from anywhere within a page; see [`load_aligned`].
///
/// # Safety
/// `at` is readable and at least 16 bytes before the end of its page.
#[inline(always)]
pub unsafe fn load_in_page(at: *const u8) -> __m128i {
    let value;
    // SAFETY: rights end at page boundaries, so all 16 are readable if one is.
    unsafe {
        asm!("movdqu {}, [{}]", out(xmm_reg) value, in(reg) at, options(nostack, preserves_flags, readonly, pure))
    };
    value
}

/// Whether 16 bytes from `at` lie in one page.
#[inline(always)]
pub fn in_page(at: *const u8) -> bool {
    at as usize & 4095 <= 4096 - 16
}
