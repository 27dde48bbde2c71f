//! `math.h`, from the `libm` crate. Errors are seen in the results (infinity, not a number), never in `errno` (which C permits,
//! `math_errhandling`); the rounding mode is always to nearest.

use core::ffi::{c_char, c_int, c_long};

/// Defines functions that `libm` has under the same name.
macro_rules! same {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {$(
        /// As in C.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub extern "C" fn $name($($arg: $ty),*) -> $ret {
            libm::$name($($arg),*)
        }
    )*};
}

/// Defines functions of one argument.
macro_rules! unary {
    ($($double:ident $float:ident;)*) => { same! { $($double(x: f64) -> f64; $float(x: f32) -> f32;)* } };
}

/// Defines functions of two arguments.
macro_rules! binary {
    ($($double:ident $float:ident;)*) => { same! { $($double(x: f64, y: f64) -> f64; $float(x: f32, y: f32) -> f32;)* } };
}

unary! {
    acos acosf;
    acosh acoshf;
    asin asinf;
    asinh asinhf;
    atan atanf;
    atanh atanhf;
    cbrt cbrtf;
    ceil ceilf;
    cos cosf;
    cosh coshf;
    erf erff;
    erfc erfcf;
    exp expf;
    exp10 exp10f;
    exp2 exp2f;
    expm1 expm1f;
    fabs fabsf;
    floor floorf;
    lgamma lgammaf;
    log logf;
    log10 log10f;
    log1p log1pf;
    log2 log2f;
    rint rintf;
    round roundf;
    roundeven roundevenf;
    sin sinf;
    sinh sinhf;
    sqrt sqrtf;
    tan tanf;
    tanh tanhf;
    tgamma tgammaf;
    trunc truncf;
    j0 j0f;
    j1 j1f;
    y0 y0f;
    y1 y1f;
}

binary! {
    atan2 atan2f;
    copysign copysignf;
    fdim fdimf;
    fmax fmaxf;
    fmin fminf;
    fmod fmodf;
    hypot hypotf;
    nextafter nextafterf;
    pow powf;
    remainder remainderf;
}

same! {
    fma(x: f64, y: f64, z: f64) -> f64;
    fmaf(x: f32, y: f32, z: f32) -> f32;
    ldexp(x: f64, n: c_int) -> f64;
    ldexpf(x: f32, n: c_int) -> f32;
    scalbn(x: f64, n: c_int) -> f64;
    scalbnf(x: f32, n: c_int) -> f32;
    ilogb(x: f64) -> c_int;
    ilogbf(x: f32) -> c_int;
    jn(n: c_int, x: f64) -> f64;
    yn(n: c_int, x: f64) -> f64;
}

/// Defines the functions that `libm` has not, or in another shape, for both types.
macro_rules! others {
    ($type:ty: $rint:ident, $round:ident, $scalbn:ident, $frexp:ident, $modf:ident, $lgamma_r:ident, $remquo:ident, $sincos:ident, $ilogb:ident =>
     $nearbyint:ident, $lrint:ident, $llrint:ident, $lround:ident, $llround:ident, $scalbln:ident, $logb:ident) => {
        /// Rounds half to even.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub extern "C" fn $nearbyint(x: $type) -> $type {
            libm::$rint(x)
        }
        /// Rounds half to even.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub extern "C" fn $lrint(x: $type) -> c_long {
            libm::$rint(x) as c_long
        }
        /// Rounds half to even.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub extern "C" fn $llrint(x: $type) -> i64 {
            libm::$rint(x) as i64
        }
        /// Rounds half away from zero.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub extern "C" fn $lround(x: $type) -> c_long {
            libm::$round(x) as c_long
        }
        /// Rounds half away from zero.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub extern "C" fn $llround(x: $type) -> i64 {
            libm::$round(x) as i64
        }
        /// Multiplies with a power of two.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub extern "C" fn $scalbln(x: $type, n: c_long) -> $type {
            libm::$scalbn(x, n.clamp(-100_000, 100_000) as c_int)
        }
        /// The exponent of a number.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub extern "C" fn $logb(x: $type) -> $type {
            if x == 0.0 {
                -<$type>::INFINITY
            } else if x.is_finite() {
                libm::$ilogb(x) as $type
            } else {
                x * x
            }
        }
        /// A fraction from 0.5 to below 1, and the exponent.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $frexp(x: $type, exponent: *mut c_int) -> $type {
            let (fraction, e) = libm::$frexp(x);
            // SAFETY: C contract.
            unsafe { *exponent = e };
            fraction
        }
        /// The fraction, and the whole part.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $modf(x: $type, whole: *mut $type) -> $type {
            let (fraction, w) = libm::$modf(x);
            // SAFETY: C contract.
            unsafe { *whole = w };
            fraction
        }
        /// The logarithm of the gamma function's amount, and its sign.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $lgamma_r(x: $type, sign: *mut c_int) -> $type {
            let (value, s) = libm::$lgamma_r(x);
            // SAFETY: C contract.
            unsafe { *sign = s };
            value
        }
        /// The remainder, and the low bits of the quotient.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $remquo(x: $type, y: $type, quotient: *mut c_int) -> $type {
            let (value, q) = libm::$remquo(x, y);
            // SAFETY: C contract.
            unsafe { *quotient = q };
            value
        }
        /// Sine and cosine.
        #[cfg_attr(donjon_guest, unsafe(no_mangle))]
        pub unsafe extern "C" fn $sincos(x: $type, sine: *mut $type, cosine: *mut $type) {
            let (s, c) = libm::$sincos(x);
            // SAFETY: C contract.
            unsafe { (*sine, *cosine) = (s, c) };
        }
    };
}

others!(f64: rint, round, scalbn, frexp, modf, lgamma_r, remquo, sincos, ilogb =>
    nearbyint, lrint, llrint, lround, llround, scalbln, logb);
others!(f32: rintf, roundf, scalbnf, frexpf, modff, lgammaf_r, remquof, sincosf, ilogbf =>
    nearbyintf, lrintf, llrintf, lroundf, llroundf, scalblnf, logbf);

/// Not a number.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn nan(_tag: *const c_char) -> f64 {
    f64::NAN
}

/// Not a number.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub unsafe extern "C" fn nanf(_tag: *const c_char) -> f32 {
    f32::NAN
}

/// Whether a number is none; what glibc's headers call.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn __isnan(x: f64) -> c_int {
    c_int::from(x.is_nan())
}

/// The sign of an infinity, or 0; what glibc's headers call.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn __isinf(x: f64) -> c_int {
    if x.is_infinite() { x.signum() as c_int } else { 0 }
}

/// Whether a number is finite; what glibc's headers call.
#[cfg_attr(donjon_guest, unsafe(no_mangle))]
pub extern "C" fn __finite(x: f64) -> c_int {
    c_int::from(x.is_finite())
}
