//! Small things of `stdlib.h` and `assert.h`.

use super::chk::fatal;
use super::extern_c::{abort, write};
use super::string::strlen;
use core::ffi::{c_char, c_int, c_long, c_uint};
use core::sync::atomic::{AtomicU64, Ordering};

/// The amount of a number.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn abs(x: c_int) -> c_int {
    x.wrapping_abs()
}

/// The amount of a number.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn labs(x: c_long) -> c_long {
    x.wrapping_abs()
}

/// The amount of a number.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn llabs(x: i64) -> i64 {
    x.wrapping_abs()
}

/// A quotient and a remainder.
#[repr(C)]
#[derive(Debug, PartialEq)]
pub struct Division<T> {
    /// Rounded towards zero.
    pub quotient: T,
    /// With the sign of the dividend.
    pub remainder: T,
}

/// Divides; by zero faults, as in any C library.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn div(a: c_int, b: c_int) -> Division<c_int> {
    Division { quotient: a.wrapping_div(b), remainder: a.wrapping_rem(b) }
}

/// Divides; by zero faults, as in any C library.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn ldiv(a: c_long, b: c_long) -> Division<c_long> {
    Division { quotient: a.wrapping_div(b), remainder: a.wrapping_rem(b) }
}

/// Divides; by zero faults, as in any C library.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn lldiv(a: i64, b: i64) -> Division<i64> {
    ldiv(a, b)
}

/// The number of the lowest bit that is set, from 1; 0 if there is none.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn ffs(x: c_int) -> c_int {
    if x == 0 { 0 } else { x.trailing_zeros().cast_signed() + 1 }
}

/// The largest value of `rand`.
const RAND_MAX: u64 = 0x7fff_ffff;

static SEED: AtomicU64 = AtomicU64::new(1);

/// One step of Knuth's MMIX generator, and its upper bits.
fn step(state: u64) -> (u64, c_int) {
    let state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (state, (state >> 33 & RAND_MAX) as c_int)
}

/// A number that looks random. Not for security: `getrandom` is.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn rand() -> c_int {
    let (state, value) = step(SEED.load(Ordering::Relaxed));
    SEED.store(state, Ordering::Relaxed);
    value
}

/// Chooses the sequence of [`rand`].
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn srand(seed: c_uint) {
    SEED.store(seed.into(), Ordering::Relaxed);
}

/// [`rand`] under its BSD name.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn random() -> c_long {
    rand().into()
}

/// [`srand`] under its BSD name.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn srandom(seed: c_uint) {
    srand(seed);
}

/// [`rand`] with its state at the caller's.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn rand_r(state: *mut c_uint) -> c_int {
    // SAFETY: C contract.
    unsafe {
        let (_, value) = step(u64::from(*state));
        *state = (*state).wrapping_mul(1_103_515_245).wrapping_add(12_345);
        value
    }
}

/// Writes a C string to standard error.
///
/// # Safety
/// `s` is null or a string.
unsafe fn say(s: *const c_char) {
    let s = if s.is_null() { c"?".as_ptr() } else { s };
    // SAFETY: the caller's.
    unsafe { write(2, s.cast(), strlen(s)) };
}

/// An `assert` failed.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __assert_fail(
    assertion: *const c_char,
    file: *const c_char,
    line: c_uint,
    function: *const c_char,
) -> ! {
    let mut number = [0; 10];
    let mut at = number.len();
    let mut rest = line;
    loop {
        at -= 1;
        number[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    // SAFETY: C contract.
    unsafe {
        say(file);
        say(c":".as_ptr());
        write(2, number[at..].as_ptr().cast(), number.len() - at);
        say(c": ".as_ptr());
        say(function);
        say(c": Assertion `".as_ptr());
        say(assertion);
        say(c"' failed.\n".as_ptr());
        abort()
    }
}

/// An `assert` failed, in the words of other C libraries.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn __assert(assertion: *const c_char, file: *const c_char, line: c_int) -> ! {
    // SAFETY: C contract.
    unsafe { __assert_fail(assertion, file, line.cast_unsigned(), core::ptr::null()) }
}

/// A pure virtual C++ function was called.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn __cxa_pure_virtual() -> ! {
    fatal(b"pure virtual method called\n")
}
