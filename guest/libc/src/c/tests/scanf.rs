use super::random::Random;
use crate::c::scanf;
use crate::c::std::ffi::CString;
use crate::c::std::format;
use crate::c::std::string::String;
use crate::c::valist::VaList;
use core::ffi::{c_char, c_int};

mod host {
    use super::{VaList, c_char, c_int};
    unsafe extern "C" {
        pub fn __isoc99_vsscanf(s: *const c_char, format: *const c_char, list: *mut VaList) -> c_int;
    }
}

type Scanner = unsafe extern "C" fn(*const c_char, *const c_char, *mut VaList) -> c_int;

fn run(scanner: Scanner, text: &CString, format: &CString) -> (c_int, [[u8; 64]; 4]) {
    let mut targets = [[0x55u8; 64]; 4];
    let pointers = targets.each_mut().map(|t| t.as_mut_ptr() as u64);
    let mut list = VaList::from_stack(pointers.as_ptr().cast());
    // SAFETY: the targets are large enough for the texts here.
    let n = unsafe { scanner(text.as_ptr(), format.as_ptr(), &raw mut list) };
    (n, targets)
}

#[test]
fn as_on_the_host() {
    let mut random = Random(40);
    let pieces = [
        "12",
        "-7",
        "0x1f",
        "017",
        "1.5",
        "-2e3",
        "abc",
        " ",
        "\t\n",
        ",",
        "%",
        "inf",
        "99999999999",
        "0x",
        "-",
        "z]",
        "+4",
        "1e",
        ".5",
    ];
    let conversions = [
        "%d", "%i", "%u", "%x", "%o", "%hhd", "%hd", "%ld", "%3d", "%*d", "%s", "%4s", "%*s", "%c", "%2c", "%[a-c]",
        "%[^,]", "%[]z]", "%f", "%lf", "%4lf", "%n", "%%", ",", " ", "%lu", "%zu",
    ];
    for _ in 0..60_000 {
        let text: String = (0..1 + random.below(6)).map(|_| pieces[random.below(pieces.len())]).collect();
        let format: String = (0..1 + random.below(4)).map(|_| conversions[random.below(conversions.len())]).collect();
        // glibc takes some of `0x.`, not all.
        if format.contains('f') && text.contains("0x.") {
            continue;
        }
        let (text, format) = (CString::new(text).expect("no zero"), CString::new(format).expect("no zero"));
        let (ours, theirs) = (run(scanf::vsscanf, &text, &format), run(host::__isoc99_vsscanf, &text, &format));
        if ours == theirs {
            continue;
        }
        assert_eq!(format!("{ours:x?}"), format!("{theirs:x?}"), "{text:?} {format:?}");
    }
}
