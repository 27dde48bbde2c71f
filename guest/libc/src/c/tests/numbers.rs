use super::random::Random;
use crate::c::extern_c::{errno, set_errno};
use crate::c::std::ffi::CString;
use crate::c::std::string::String;
use crate::c::std::vec::Vec;
use crate::c::std::{format, vec};
use crate::c::{ctype, math, misc, setjmp, sort, strto};
use core::ffi::{c_char, c_int, c_void};
use core::ptr::null_mut;

mod host {
    use super::{c_char, c_int};
    unsafe extern "C" {
        pub fn strtol(s: *const c_char, end: *mut *mut c_char, base: c_int) -> i64;
        pub fn strtoul(s: *const c_char, end: *mut *mut c_char, base: c_int) -> u64;
        pub fn strtod(s: *const c_char, end: *mut *mut c_char) -> f64;
        pub fn strtof(s: *const c_char, end: *mut *mut c_char) -> f32;
        pub fn __ctype_b_loc() -> *const *const u16;
        pub fn __ctype_toupper_loc() -> *const *const i32;
        pub fn __ctype_tolower_loc() -> *const *const i32;
    }
}

/// A result, how much was consumed, and errno.
fn call<T>(text: &CString, f: impl FnOnce(*const c_char, *mut *mut c_char) -> T) -> (T, usize, c_int) {
    let mut end = null_mut();
    set_errno(0);
    let value = f(text.as_ptr(), &raw mut end);
    (value, if end.is_null() { usize::MAX } else { end as usize - text.as_ptr() as usize }, errno())
}

#[test]
fn whole_numbers_as_on_the_host() {
    let mut random = Random(20);
    for round in 0..60_000 {
        let base = [0, 10, 16, 8, 2, 36, 3, 37, 1, -1][random.below(10)];
        let value = random.next() >> random.below(64);
        let mut text = match round % 6 {
            0 => format!("{value}"),
            1 => format!("{:#x}", value),
            2 => format!("-{value}"),
            3 => format!("0{value:o}"),
            4 => format!("{value}{value}"),
            _ => (0..random.below(8))
                .map(|_| ['0', '1', 'x', 'X', '-', '+', ' ', '\t', 'f', 'z', '9'][random.below(11)])
                .collect(),
        };
        if random.below(4) == 0 {
            text = format!(" \n{}{text}g", ["", "+", "-"][random.below(3)]);
        }
        let text = CString::new(text).expect("no zero inside");
        // SAFETY: strings.
        unsafe {
            let ours = call(&text, |s, e| strto::strtol(s, e, base));
            assert_eq!(ours, call(&text, |s, e| host::strtol(s, e, base)), "{text:?} {base}");
            let ours = call(&text, |s, e| strto::strtoul(s, e, base));
            assert_eq!(ours, call(&text, |s, e| host::strtoul(s, e, base)), "{text:?} {base}");
        }
    }
    // SAFETY: strings.
    unsafe {
        assert_eq!(strto::strtol(c"0b101".as_ptr(), null_mut(), 0), 0);
        assert_eq!(strto::__isoc23_strtol(c"-0b101".as_ptr(), null_mut(), 0), -5);
        assert_eq!(strto::atoi(c" -42x".as_ptr()), -42);
    }
}

#[test]
fn floating_numbers_as_on_the_host() {
    let mut random = Random(21);
    for round in 0..100_000 {
        let bits = random.next();
        let value = f64::from_bits(bits);
        let mut text = match round % 12 {
            0 => format!("{value:e}"),
            1 => format!("{}", f32::from_bits(bits as u32)),
            2 => format!("{:.*}", random.below(30), bits as f64 / 1e9),
            3 => format!("{}e{}", bits >> random.below(64), random.below(700) as i32 - 350),
            4 => format!("0x{:x}p{}", bits >> random.below(64), random.below(2300) as i32 - 1200),
            5 => format!("0x{:x}.{:x}P{:+}", bits >> random.below(64), random.next(), random.below(200) as i32 - 140),
            6 => format!("0x.{:016x}{:x}", bits, random.next() >> random.below(64)),
            7 => format!(
                "0x1.{:013x}{}p{}",
                bits >> 12,
                ["8", "80000000000", "80000000001", "7ffffffffff"][random.below(4)],
                random.below(10)
            ),
            8 => format!(
                "0x1.{:06x}{}p{}",
                (bits >> 41) << 1,
                ["8", "80000000001", "", "1"][random.below(4)],
                random.below(300) as i32 - 150
            ),
            9 => String::from(
                [
                    "inf",
                    "INFINITY",
                    "nan",
                    "NaN(12)",
                    "nan(",
                    "infinit",
                    "in",
                    "1e",
                    "1e+",
                    ".",
                    "-.5",
                    "5.",
                    "0x",
                    "0x.",
                    "0x.p1",
                    "0xp",
                    "1e99999999999999999999",
                    "0e99999",
                    "1e-99999999999",
                    "0x1p99999999999999999999",
                    "0x1p-99999999999999",
                    "00000000000000000000000000000000000001e5",
                    "0x1p-1075",
                    "0x1.8p-1075",
                    "0x1p-1074",
                    "0x0.fffffffffffff8p-1022",
                    "4.9e-324",
                    "2e-324",
                    "1e-310",
                ][random.below(29)],
            ),
            10 => format!("0x1.{:013x}p-{}", bits >> 12, 1020 + random.below(60)),
            _ => (0..random.below(9))
                .map(|_| ['0', '1', '.', 'e', '-', '+', ' ', 'p', 'x', 'i', 'n', 'f', 'a', '7'][random.below(14)])
                .collect(),
        };
        if random.below(4) == 0 {
            text = format!("\t {}{text}q", ["", "+", "-"][random.below(3)]);
        }
        let text = CString::new(text).expect("no zero inside");
        let bits =
            |(value, n, error): (f64, usize, c_int)| (if value.is_nan() { 1 } else { value.to_bits() }, n, error);
        let bits_f =
            |(value, n, error): (f32, usize, c_int)| (if value.is_nan() { 1 } else { value.to_bits() }, n, error);
        // SAFETY: strings.
        let (ours, theirs) =
            unsafe { (call(&text, |s, e| strto::strtod(s, e)), call(&text, |s, e| host::strtod(s, e))) };
        // An exact subnormal is an underflow here, and none there.
        let exact = ours.0 != 0.0 && ours.0.abs() < f64::MIN_POSITIVE;
        assert_eq!(bits(ours).0, bits(theirs).0, "{text:?}");
        assert_eq!((ours.1, if exact { theirs.2 } else { ours.2 }), (theirs.1, theirs.2), "{text:?}");
        // SAFETY: strings.
        let (ours, theirs) =
            unsafe { (call(&text, |s, e| strto::strtof(s, e)), call(&text, |s, e| host::strtof(s, e))) };
        let exact = ours.0 != 0.0 && ours.0.abs() <= f32::MIN_POSITIVE;
        assert_eq!(bits_f(ours).0, bits_f(theirs).0, "{text:?}");
        assert_eq!((ours.1, if exact { theirs.2 } else { ours.2 }), (theirs.1, theirs.2), "{text:?}");
    }
}

unsafe extern "C" fn by_first_byte(a: *const c_void, b: *const c_void) -> c_int {
    // SAFETY: elements.
    unsafe { c_int::from(*a.cast::<u8>()) - c_int::from(*b.cast::<u8>()) }
}

unsafe extern "C" fn nonsense(_: *const c_void, _: *const c_void, state: *mut c_void) -> c_int {
    // SAFETY: the test's.
    unsafe { ((*state.cast::<Random>()).next() % 3) as c_int - 1 }
}

#[test]
fn sorting() {
    let mut random = Random(22);
    for round in 0..3000usize {
        let size = [1, 2, 3, 4, 8, 16, 24, 200][round % 8];
        let n = random.below(if round % 100 == 0 { 3000 } else { 40 });
        let kinds = [3, 256][round % 2];
        let elements: Vec<Vec<u8>> = (0..n)
            .map(|i| {
                let mut element = vec![i as u8; size];
                element[size - 1] = (i >> 8) as u8;
                element[0] = random.below(kinds) as u8;
                element
            })
            .collect();
        let mut expect = elements.clone();
        expect.sort_by_key(|e| e[0]);
        let mut ours = elements.concat();
        // SAFETY: n elements of that size.
        unsafe { sort::qsort(ours.as_mut_ptr().cast(), n, size, by_first_byte) };
        assert_eq!(ours, expect.concat(), "stable");
        let mut heap = elements.concat();
        // SAFETY: n elements of that size.
        unsafe { sort::heap_sort(heap.as_mut_ptr().cast(), n, size, by_first_byte) };
        assert!(heap.iter().step_by(size).eq(ours.iter().step_by(size)));
        for key in 0..=255u8 {
            // SAFETY: n elements of that size, sorted.
            let found = unsafe { sort::bsearch((&raw const key).cast(), ours.as_ptr().cast(), n, size, by_first_byte) };
            assert_eq!(!found.is_null(), expect.iter().any(|e| e[0] == key));
        }
        // Whatever the comparison says, the same elements stay.
        // SAFETY: n elements of that size.
        unsafe { sort::qsort_r(ours.as_mut_ptr().cast(), n, size, nonsense, (&raw mut random).cast()) };
        let mut left: Vec<&[u8]> = ours.chunks(size).collect();
        left.sort_unstable();
        let mut all: Vec<&[u8]> = elements.iter().map(|e| &e[..]).collect();
        all.sort_unstable();
        assert_eq!(left, all);
    }
}

#[test]
fn character_tables_as_on_the_host() {
    for i in -128..256isize {
        // SAFETY: the tables have these entries.
        unsafe {
            assert_eq!(*(*ctype::__ctype_b_loc()).offset(i), *(*host::__ctype_b_loc()).offset(i), "{i}");
            assert_eq!(*(*ctype::__ctype_toupper_loc()).offset(i), *(*host::__ctype_toupper_loc()).offset(i), "{i}");
            assert_eq!(*(*ctype::__ctype_tolower_loc()).offset(i), *(*host::__ctype_tolower_loc()).offset(i), "{i}");
        }
    }
    assert_ne!(ctype::isalpha(b'x'.into()), 0);
    assert_eq!(
        (ctype::isalpha(-1), ctype::isdigit(1000), ctype::toupper(b'q'.into()), ctype::tolower(-1)),
        (0, 0, b'Q'.into(), -1)
    );
}

#[unsafe(naked)]
unsafe extern "C" fn jump(env: *mut setjmp::JmpBuf, value: c_int) -> c_int {
    core::arch::naked_asm!(
        "push rbx",
        "push r12",
        "push rbp",
        "mov rbx, rdi",
        "mov r12d, esi",
        "mov ebp, 7",
        "call {set}",
        "test eax, eax",
        "jne 2f",
        "mov rdi, rbx",
        "mov esi, r12d",
        "mov ebp, 8",
        "xor r12d, r12d",
        "sub rsp, 800",
        "call {jump}",
        "ud2",
        "2:",
        // The registers are as they were at the call.
        "lea eax, [rax + rbp - 7]",
        "add eax, r12d",
        "pop rbp",
        "pop r12",
        "pop rbx",
        "ret",
        set = sym setjmp::setjmp,
        jump = sym setjmp::__longjmp_chk,
    )
}

#[test]
fn long_jumps() {
    let mut env = core::mem::MaybeUninit::uninit();
    // SAFETY: the frame is alive.
    unsafe {
        assert_eq!(jump(env.as_mut_ptr(), 42), 84);
        assert_eq!(jump(env.as_mut_ptr(), 0), 1);
        assert_eq!(jump(env.as_mut_ptr(), -3), -6);
    }
}

#[test]
fn small_things() {
    assert_eq!(misc::div(-7, 2), misc::Division { quotient: -3, remainder: -1 });
    assert_eq!((misc::abs(-5), misc::ffs(0), misc::ffs(8)), (5, 0, 4));
    misc::srand(5);
    let first: Vec<c_int> = (0..5).map(|_| misc::rand()).collect();
    misc::srand(5);
    assert!(first.iter().all(|&x| x == misc::rand() && x >= 0));
    assert_eq!(math::lround(-2.5), -3);
    assert_eq!(math::lrint(2.5), 2);
    assert_eq!(math::logb(0.0), f64::NEG_INFINITY);
    assert_eq!(math::scalbln(1.0, -5_000_000_000), 0.0);
    let mut exponent = 0;
    // SAFETY: in bounds.
    unsafe { assert_eq!((math::frexp(12.0, &raw mut exponent), exponent), (0.75, 4)) };
    assert!((math::pow(2.0, 0.5) - math::sqrt(2.0)).abs() < 1e-15);
}
