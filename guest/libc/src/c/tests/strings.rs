use super::random::Random;
use crate::c::std::vec;
use crate::c::std::vec::Vec;
use crate::c::{mem, search, string};
use core::ffi::{c_char, c_int, c_void};

/// The host's.
mod host {
    use core::ffi::{c_char, c_int, c_void};
    unsafe extern "C" {
        pub fn mmap(at: *mut c_void, n: usize, prot: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void;
        pub fn mprotect(at: *mut c_void, n: usize, prot: c_int) -> c_int;
        pub fn strcasecmp(a: *const c_char, b: *const c_char) -> c_int;
        pub fn strspn(a: *const c_char, b: *const c_char) -> usize;
        pub fn strcspn(a: *const c_char, b: *const c_char) -> usize;
    }
}

/// A page of bytes with nothing readable before and behind it.
fn lonely_page() -> &'static mut [u8] {
    // SAFETY: fresh memory.
    unsafe {
        let at = host::mmap(core::ptr::null_mut(), 3 * 4096, 0, 0x22, -1, 0).cast::<u8>();
        assert_eq!(host::mprotect(at.add(4096).cast(), 4096, 3), 0);
        core::slice::from_raw_parts_mut(at.add(4096), 4096)
    }
}

fn lengths() -> impl Iterator<Item = usize> {
    (0..=300).chain([511, 512, 513, 1000, 1023, 1024, 1025, 2047, 2048, 2049, 4000])
}

#[test]
fn memcpy_and_memmove_at_all_alignments() {
    let mut random = Random(1);
    let source: Vec<u8> = (0..9000).map(|_| random.next() as u8).collect();
    for n in lengths() {
        for (from, to) in (0..16).flat_map(|a| (0..16).map(move |b| (a, b))) {
            if n > 300 && (from + to) % 5 != 0 {
                continue;
            }
            let mut out = vec![0xaau8; n + 64];
            // SAFETY: in bounds.
            let end = unsafe { mem::memcpy(out.as_mut_ptr().add(to).cast(), source.as_ptr().add(from).cast(), n) };
            assert_eq!(end.cast::<u8>(), out.as_mut_ptr().wrapping_add(to));
            assert_eq!(&out[to..to + n], &source[from..from + n], "{n} {from} {to}");
            assert!(out[..to].iter().chain(&out[to + n..]).all(|&b| b == 0xaa), "{n} {from} {to}");
        }
        for distance in (-70isize..=70).chain([-129, -1000, 129, 1000]) {
            let mut ours: Vec<u8> = source[..n + 2500].to_vec();
            let mut expect = ours.clone();
            let to = (1200 + distance).cast_unsigned();
            expect.copy_within(1200..1200 + n, to);
            // SAFETY: in bounds.
            unsafe { mem::memmove(ours.as_mut_ptr().add(to).cast(), ours.as_ptr().add(1200).cast(), n) };
            assert!(ours == expect, "{n} {distance}");
        }
    }
    let big: Vec<u8> = (0..3_000_001).map(|_| random.next() as u8).collect();
    let mut out = vec![0; big.len()];
    // SAFETY: in bounds.
    unsafe { mem::memcpy(out.as_mut_ptr().cast(), big.as_ptr().cast(), big.len()) };
    assert!(out == big);
}

#[test]
fn memset_at_all_alignments() {
    for n in lengths() {
        for to in 0..16 {
            let mut out = vec![0xaau8; n + 64];
            // SAFETY: in bounds.
            unsafe { mem::memset(out.as_mut_ptr().add(to).cast(), 0x1_5b, n) };
            assert!(out[to..to + n].iter().all(|&b| b == 0x5b), "{n} {to}");
            assert!(out[..to].iter().chain(&out[to + n..]).all(|&b| b == 0xaa), "{n} {to}");
        }
    }
}

#[test]
fn memory_functions_stay_in_bounds() {
    let (a, b) = (lonely_page(), lonely_page());
    for n in lengths() {
        let from = a.len() - n;
        // SAFETY: in bounds, at either edge.
        unsafe {
            mem::memset(a.as_mut_ptr().add(from).cast(), 7, n);
            mem::memset(a.as_mut_ptr().cast(), 7, n);
            mem::memcpy(b.as_mut_ptr().add(from).cast(), a.as_ptr().cast(), n);
            mem::memcpy(b.as_mut_ptr().cast(), a.as_ptr().add(from).cast(), n);
            assert_eq!(mem::memcmp(b.as_ptr().cast(), a.as_ptr().add(from).cast(), n), 0);
            assert_eq!(mem::memcmp(b.as_ptr().add(from).cast(), a.as_ptr().cast(), n), 0);
            assert!(mem::memchr(a.as_ptr().add(from).cast(), 8, n).is_null());
            assert!(mem::memrchr(a.as_ptr().cast(), 8, n).is_null());
        }
    }
}

fn sign(x: c_int) -> c_int {
    x.signum()
}

#[test]
fn memcmp_finds_every_difference() {
    let mut random = Random(2);
    let a: Vec<u8> = (0..5000).map(|_| random.next() as u8).collect();
    for n in lengths() {
        for shift in [0, 1, 7, 15] {
            let mut b = vec![0; shift];
            b.extend_from_slice(&a[..n]);
            let compare = |b: &[u8]| {
                // SAFETY: both have n bytes.
                unsafe { sign(mem::memcmp(a.as_ptr().cast(), b.as_ptr().add(shift).cast(), n)) }
            };
            assert_eq!(compare(&b), 0);
            for at in (0..n).step_by(1 + n / 301) {
                let old = b[shift + at];
                b[shift + at] = old.wrapping_add(1 + random.below(255) as u8);
                // Differences behind the first do not count.
                let last = b[shift + n - 1];
                if at < n - 1 {
                    b[shift + n - 1] = random.next() as u8;
                }
                assert_eq!(compare(&b), if old < b[shift + at] { -1 } else { 1 }, "{n} {at}");
                b[shift + n - 1] = last;
                b[shift + at] = old;
            }
        }
    }
}

#[test]
fn memchr_and_memrchr() {
    let page = lonely_page();
    for n in 0..200usize {
        for at in 0..n {
            for start in [page.len() - n, 0, 5] {
                page.fill(1);
                page[start + at] = 2;
                if at + 1 < n {
                    page[start + n - 1] = 2;
                }
                let s = page.as_ptr().wrapping_add(start);
                // SAFETY: in bounds.
                unsafe {
                    assert_eq!(mem::memchr(s.cast(), 0x102, n), s.add(at).cast_mut().cast());
                    assert_eq!(mem::memrchr(s.cast(), 2, n), s.add((n - 1).max(at)).cast_mut().cast());
                    assert!(mem::memchr(s.cast(), 2, at).is_null());
                    assert_eq!(mem::rawmemchr(s.cast(), 2), s.add(at).cast_mut().cast());
                }
            }
        }
    }
}

#[test]
fn strlen_strchr_strcmp_up_to_a_page_end() {
    let (a, b) = (lonely_page(), lonely_page());
    for n in 0..150usize {
        a.fill(b'x');
        b.fill(b'x');
        let (sa, sb) = (a.len() - n - 1, b.len() - n - 1 - n % 7);
        a[sa + n] = 0;
        b[sb + n] = 0;
        let (pa, pb) =
            (a.as_mut_ptr().wrapping_add(sa).cast::<c_char>(), b.as_mut_ptr().wrapping_add(sb).cast::<c_char>());
        // SAFETY: both are strings.
        unsafe {
            assert_eq!(string::strlen(pa), n);
            assert_eq!(string::strnlen(pa, n + 5), n);
            assert_eq!(string::strnlen(pa, n / 2), n / 2);
            assert_eq!(string::strcmp(pa, pb), 0);
            assert_eq!(string::strcmp(pb, pa), 0);
            assert!(string::strchr(pa, b'y'.into()).is_null());
            assert_eq!(string::strchr(pa, 0), pa.add(n));
            assert_eq!(string::strrchr(pa, 0), pa.add(n));
            if n > 0 {
                assert_eq!(string::strchr(pa, b'x'.into()), pa);
                assert_eq!(string::strrchr(pa, b'x'.into()), pa.add(n - 1));
            }
            for at in 0..n {
                b[sb + at] = b'z';
                assert!(string::strcmp(pa, pb) < 0);
                assert!(string::strncmp(pb, pa, at + 1) > 0);
                assert_eq!(string::strncmp(pa, pb, at), 0);
                assert_eq!(string::strchr(pb, b'z'.into()), pb.add(at));
                b[sb + at] = 0xff;
                assert!(string::strcmp(pa, pb) < 0, "bytes are unsigned");
                b[sb + at] = b'x';
            }
        }
    }
}

#[test]
fn copies_of_strings() {
    for n in 0..100usize {
        let source: Vec<u8> = (0..n).map(|i| 1 + (i % 200) as u8).chain([0]).collect();
        let s = source.as_ptr().cast::<c_char>();
        let mut out = vec![0xaau8; 400];
        let o = out.as_mut_ptr().cast::<c_char>();
        // SAFETY: in bounds.
        unsafe {
            assert_eq!(string::strcpy(o, s), o);
            assert_eq!(core::slice::from_raw_parts(o.cast::<u8>(), n + 2), [&source[..], &[0xaa]].concat());
            assert_eq!(string::stpcpy(o, s), o.add(n));
            string::strcat(o, s);
            assert_eq!(string::strlen(o), 2 * n);
            string::strncat(o, s, n / 2);
            assert_eq!(string::strlen(o), 2 * n + n / 2);
            for limit in [0, 1, n / 2, n, n + 1, n + 20] {
                let mut out = [0xaau8; 200];
                string::strncpy(out.as_mut_ptr().cast(), s, limit);
                let copied = limit.min(n);
                assert_eq!(out[..copied], source[..copied]);
                assert!(out[copied..limit].iter().all(|&b| b == 0) && out[limit] == 0xaa);
                let mut out = [0xaau8; 200];
                assert_eq!(string::strlcpy(out.as_mut_ptr().cast(), s, limit), n);
                if limit > 0 {
                    assert_eq!(string::strlen(out.as_ptr().cast()), n.min(limit - 1));
                }
                let copy = string::strndup(s, limit);
                assert_eq!(string::strlen(copy), copied);
                crate::c::extern_c::free(copy.cast());
            }
        }
    }
}

#[test]
fn find_agrees_with_the_naive_search() {
    let mut random = Random(3);
    for round in 0..60_000 {
        let letters = 1 + round % 4;
        let mut text = |max: usize| -> Vec<u8> {
            let n = random.below(max + 1);
            (0..n).map(|_| b'a' + random.below(letters) as u8).collect()
        };
        let (hay, needle) = (text(80), text(if round % 3 == 0 { 4 } else { 14 }));
        if needle.is_empty() {
            continue;
        }
        let naive = hay.windows(needle.len()).position(|w| w == needle);
        if needle.len() <= hay.len() {
            assert_eq!(search::find(&hay, &needle), naive, "{hay:?} {needle:?}");
        }
        // SAFETY: slices.
        let at = unsafe { mem::memmem(hay.as_ptr().cast(), hay.len(), needle.as_ptr().cast(), needle.len()) };
        assert_eq!((!at.is_null()).then(|| at as usize - hay.as_ptr() as usize), naive);
    }
}

#[test]
fn sets_and_tokens() {
    let mut random = Random(4);
    for _ in 0..20_000 {
        let mut text = |max: usize| -> Vec<u8> {
            let n = random.below(max + 1);
            (0..n).map(|_| [b'a', b'B', b'b', 0xe4, b'-', b'A'][random.below(6)]).chain([0]).collect()
        };
        let (a, b) = (text(20), text(5));
        let (pa, pb) = (a.as_ptr().cast::<c_char>(), b.as_ptr().cast::<c_char>());
        // SAFETY: strings.
        unsafe {
            assert_eq!(string::strspn(pa, pb), host::strspn(pa, pb));
            assert_eq!(string::strcspn(pa, pb), host::strcspn(pa, pb));
            assert_eq!(sign(string::strcasecmp(pa, pb)), sign(host::strcasecmp(pa, pb)));
        }
    }
    let mut text = *b"  one two  three\0";
    let mut state = core::ptr::null_mut();
    let mut tokens = vec![];
    let mut next = text.as_mut_ptr().cast::<c_char>();
    loop {
        // SAFETY: strings.
        let token = unsafe { string::strtok_r(next, c" ".as_ptr(), &raw mut state) };
        if token.is_null() {
            break;
        }
        next = core::ptr::null_mut();
        // SAFETY: a token is a string.
        tokens.push(unsafe { core::ffi::CStr::from_ptr(token) }.to_bytes().to_vec());
    }
    assert_eq!(tokens, [&b"one"[..], b"two", b"three"]);
    let mut text = *b"a,,b\0";
    let mut at = text.as_mut_ptr().cast::<c_char>();
    let mut fields = 0;
    // SAFETY: a string.
    while !unsafe { string::strsep(&raw mut at, c",".as_ptr()) }.is_null() {
        fields += 1;
    }
    assert_eq!(fields, 3);
    let mut target = [1u8; 9];
    // SAFETY: in bounds.
    unsafe {
        mem::explicit_bzero(target.as_mut_ptr().cast::<c_void>(), 8);
        assert_eq!(target, [0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let end = mem::memccpy(target.as_mut_ptr().cast(), b"ab-cd".as_ptr().cast(), b'-'.into(), 5);
        assert_eq!(end as usize - target.as_ptr() as usize, 3);
    }
}

#[test]
fn parts_of_paths() {
    for (path, base, dir) in [
        ("/usr/lib", "lib", "/usr"),
        ("/usr/", "usr", "/"),
        ("usr", "usr", "."),
        ("/", "/", "/"),
        ("//", "/", "/"),
        ("a//b//", "b", "a"),
        (".", ".", "."),
        ("", ".", "."),
    ] {
        // SAFETY: strings.
        unsafe {
            let mut text = [0u8; 20];
            text[..path.len()].copy_from_slice(path.as_bytes());
            let at = string::__xpg_basename(text.as_mut_ptr().cast());
            assert_eq!(core::ffi::CStr::from_ptr(at).to_str(), Ok(base), "{path}");
            text[..path.len()].copy_from_slice(path.as_bytes());
            let at = string::dirname(text.as_mut_ptr().cast());
            assert_eq!(core::ffi::CStr::from_ptr(at).to_str(), Ok(dir), "{path}");
        }
    }
    // SAFETY: a string.
    assert_eq!(unsafe { core::ffi::CStr::from_ptr(string::basename(c"a/b.c".as_ptr())) }, c"b.c");
}

#[test]
fn wide_strings() {
    use crate::c::wide;
    let text = "aé€😀";
    let c_text = crate::c::std::ffi::CString::new(text).expect("no zero inside");
    let mut out = [7u32; 10];
    let mut back = [7 as c_char; 20];
    // SAFETY: in bounds.
    unsafe {
        assert_eq!(wide::mbstowcs(out.as_mut_ptr(), c_text.as_ptr(), 10), 4);
        assert_eq!(out[..6], [0x61, 0xe9, 0x20ac, 0x1f600, 0, 7]);
        assert_eq!(wide::mbstowcs(core::ptr::null_mut(), c_text.as_ptr(), 0), 4);
        assert_eq!(wide::wcstombs(back.as_mut_ptr(), out.as_ptr(), 20), 10);
        assert_eq!(core::ffi::CStr::from_ptr(back.as_ptr()), &*c_text);
        assert_eq!(wide::wcstombs(back.as_mut_ptr(), out.as_ptr(), 5), 3, "whole characters only");
        assert_eq!((wide::wcslen(out.as_ptr()), wide::wcsnlen(out.as_ptr(), 2)), (4, 2));
        assert_eq!(wide::wcsncmp(out.as_ptr(), [0x61, 0xe9, 1].as_ptr(), 2), 0);
        assert_eq!(wide::wcscmp(out.as_ptr(), [0x61, 0xea, 0].as_ptr()), -1);
        for bad in [&b"\xc0\x80"[..], b"\xff", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"] {
            assert_eq!(wide::mbtowc(core::ptr::null_mut(), bad.as_ptr().cast(), bad.len()), -1, "{bad:x?}");
        }
        // Byte by byte.
        let mut state = core::mem::MaybeUninit::<wide::State>::zeroed();
        let mut c = 0;
        for (i, byte) in "€".bytes().enumerate() {
            let n = wide::mbrtowc(&raw mut c, (&raw const byte).cast(), 1, state.as_mut_ptr());
            assert_eq!(n, if i < 2 { usize::MAX - 1 } else { 1 });
        }
        assert_eq!(c, 0x20ac);
    }
}
