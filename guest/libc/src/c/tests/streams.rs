use crate::c::std::ffi::CString;
use crate::c::std::string::ToString;
use crate::c::std::{env, format, fs, process};
use crate::c::stdio::{self, File};
use crate::c::{printf, scanf};
use core::ffi::{CStr, c_char, c_int};
use core::ptr::null_mut;

/// A file name that no other test has.
fn name(what: &str) -> CString {
    let path = env::temp_dir().join(format!("donjon-libc-{what}-{}", process::id()));
    CString::new(path.to_string_lossy().to_string()).expect("no zero inside")
}

fn content(path: &CStr) -> crate::c::std::vec::Vec<u8> {
    fs::read(path.to_str().expect("UTF-8")).expect("the file is there")
}

#[test]
fn writing_and_reading_a_file() {
    let path = name("file");
    type Fprintf = unsafe extern "C" fn(*mut File, *const c_char, ...) -> c_int;
    type Fscanf = unsafe extern "C" fn(*mut File, *const c_char, ...) -> c_int;
    // SAFETY: variadic functions, strings and streams.
    unsafe {
        let fprintf: Fprintf = core::mem::transmute(printf::fprintf as *const ());
        let fscanf: Fscanf = core::mem::transmute(scanf::fscanf as *const ());
        let file = stdio::fopen(path.as_ptr(), c"w".as_ptr());
        assert!(!file.is_null());
        for i in 0..3000 {
            assert_eq!(fprintf(file, c"line %d\n".as_ptr(), i), 6 + i.to_string().len() as c_int);
        }
        assert_eq!(stdio::fgetc(file), -1, "not open for reading");
        assert_ne!(stdio::ferror(file), 0);
        stdio::clearerr(file);
        let at = stdio::ftell(file);
        assert_eq!(stdio::fclose(file), 0);
        let text = content(&path);
        assert_eq!(text.len() as i64, at);
        assert!(text.starts_with(b"line 0\nline 1\n") && text.ends_with(b"line 2999\n"));

        let file = stdio::fopen(path.as_ptr(), c"r+".as_ptr());
        let mut line = [0u8; 8];
        let p = line.as_mut_ptr().cast::<c_char>();
        assert_eq!(CStr::from_ptr(stdio::fgets(p, 8, file)), c"line 0\n");
        assert_eq!(CStr::from_ptr(stdio::fgets(p, 4, file)), c"lin");
        assert_eq!(stdio::ftell(file), 10);
        assert_eq!(stdio::fgetc(file), b'e'.into());
        assert_eq!(stdio::ungetc(b'E'.into(), file), b'E'.into());
        assert_eq!(stdio::ungetc(b'E'.into(), file), -1, "one is all there is room for");
        assert_eq!(stdio::ftell(file), 10);
        let (mut memory, mut size) = (null_mut(), 0);
        assert_eq!(stdio::getline(&raw mut memory, &raw mut size, file), 4);
        assert_eq!(CStr::from_ptr(memory), c"E 1\n");
        for i in 2..2999 {
            let n = stdio::getline(&raw mut memory, &raw mut size, file);
            assert_eq!(CStr::from_ptr(memory).to_bytes(), format!("line {i}\n").as_bytes());
            assert_eq!(n, CStr::from_ptr(memory).count_bytes() as isize);
        }
        crate::c::extern_c::free(memory.cast());
        let mut number = 0 as c_int;
        assert_eq!(fscanf(file, c"line %d".as_ptr(), &raw mut number), 1);
        assert_eq!((number, stdio::fgetc(file)), (2999, b'\n'.into()));
        assert_eq!((stdio::fgetc(file), stdio::feof(file) != 0), (-1, true));
        // From reading to writing, where the program is, not where the buffer ends.
        assert_eq!(stdio::fseek(file, 0, 0), 0);
        assert_eq!(stdio::feof(file), 0);
        assert_eq!(stdio::fgetc(file), b'l'.into());
        assert_eq!(stdio::fputs(c"INE".as_ptr(), file), 0);
        assert_eq!(stdio::fseek(file, 2, 1), 0);
        assert_eq!(stdio::fputc(b'!'.into(), file), b'!'.into());
        assert_eq!(stdio::fflush(file), 0);
        assert!(content(&path).starts_with(b"lINE 0!line 1"));
        let big = crate::c::std::vec![7u8; 100_000];
        stdio::fseek(file, 0, 2);
        assert_eq!(stdio::fwrite(big.as_ptr().cast(), 10, 10_000, file), 10_000);
        stdio::fseek(file, -100_000, 1);
        let mut back = crate::c::std::vec![0u8; 100_010];
        assert_eq!(stdio::fread(back.as_mut_ptr().cast(), 10, 10_001, file), 10_000);
        assert!(back[..100_000] == big);
        assert_eq!(stdio::fclose(file), 0);

        assert!(stdio::fopen(path.as_ptr(), c"wx".as_ptr()).is_null(), "it exists");
        assert!(stdio::fopen(path.as_ptr(), c"q".as_ptr()).is_null());
        let file = stdio::fopen(path.as_ptr(), c"a".as_ptr());
        stdio::fputs(c"end".as_ptr(), file);
        // What `exit` does.
        let hook = stdio::EXIT_HOOK.load(core::sync::atomic::Ordering::Relaxed);
        let flush: extern "C" fn() -> c_int = core::mem::transmute(hook);
        flush();
        assert!(content(&path).ends_with(b"\x07end"));
        stdio::fclose(file);
    }
    fs::remove_file(path.to_str().expect("UTF-8")).expect("removes");
}

#[test]
fn an_appending_stream_is_at_the_end() {
    let path = name("append");
    // SAFETY: strings and streams.
    unsafe {
        fs::write(path.to_str().expect("UTF-8"), b"0123456789").expect("writes");
        let file = stdio::fopen(path.as_ptr(), c"a".as_ptr());
        assert_eq!(stdio::ftell(file), 10);
        stdio::fputs(c"ab".as_ptr(), file);
        assert_eq!(stdio::ftell(file), 12);
        // Wherever it is put, what is written goes to the end.
        assert_eq!((stdio::fseek(file, 1, 0), stdio::ftell(file)), (0, 1));
        stdio::fputs(c"c".as_ptr(), file);
        assert_eq!(stdio::ftell(file), 13);
        assert_eq!(stdio::fclose(file), 0);
        // One that reads as well begins with that, at the start.
        let file = stdio::fopen(path.as_ptr(), c"a+".as_ptr());
        assert_eq!((stdio::ftell(file), stdio::fgetc(file), stdio::ftell(file)), (0, b'0'.into(), 1));
        stdio::fputs(c"d".as_ptr(), file);
        assert_eq!(stdio::ftell(file), 14);
        assert_eq!(stdio::fclose(file), 0);
        assert_eq!(content(&path), b"0123456789abcd");
        // A descriptor that did not append does so from now on.
        let fd = libc::open(path.as_ptr(), libc::O_RDWR);
        let file = stdio::fdopen(fd, c"a".as_ptr());
        assert_eq!((stdio::ftell(file), stdio::fseek(file, 0, 0)), (14, 0));
        stdio::fputs(c"e".as_ptr(), file);
        assert_eq!((stdio::ftell(file), stdio::fclose(file)), (15, 0));
        assert_eq!(content(&path), b"0123456789abcde");
    }
    fs::remove_file(path.to_str().expect("UTF-8")).expect("removes");
}

#[test]
fn an_error_of_long_ago_costs_no_line() {
    let mut ends = [0; 2];
    // SAFETY: strings and streams.
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        assert_eq!(libc::fcntl(ends[0], libc::F_SETFL, libc::O_NONBLOCK), 0);
        let put = |text: &[u8]| assert_eq!(libc::write(ends[1], text.as_ptr().cast(), text.len()), text.len() as isize);
        let file = stdio::fdopen(ends[0], c"r".as_ptr());
        let mut line = [0u8; 32];
        let mut next = || {
            let p = stdio::fgets(line.as_mut_ptr().cast(), 32, file);
            (!p.is_null()).then(|| CStr::from_ptr(p).to_bytes().to_vec())
        };
        assert_eq!(next(), None);
        assert_ne!(stdio::ferror(file), 0);
        put(b"hello\nag");
        assert_eq!(next().as_deref(), Some(&b"hello\n"[..]));
        // What has come of a line is not lost, and the error stays until it is cleared.
        assert_eq!(next().as_deref(), Some(&b"ag"[..]));
        assert_ne!(stdio::ferror(file), 0);
        let (mut memory, mut size) = (null_mut(), 0);
        let mut next = || match stdio::getline(&raw mut memory, &raw mut size, file) {
            -1 => None,
            n => Some(CStr::from_ptr(memory).to_bytes().to_vec()).filter(|text| text.len() as isize == n),
        };
        assert_eq!(next(), None);
        put(b"one\ntw");
        assert_eq!(next().as_deref(), Some(&b"one\n"[..]));
        assert_eq!(next().as_deref(), Some(&b"tw"[..]));
        assert_eq!(next(), None);
        assert_ne!(stdio::ferror(file), 0);
        crate::c::extern_c::free(memory.cast());
        stdio::fclose(file);
        libc::close(ends[1]);
    }
}

#[test]
fn buffering() {
    let path = name("buffering");
    // SAFETY: strings and streams.
    unsafe {
        let file = stdio::fopen(path.as_ptr(), c"w".as_ptr());
        stdio::fputs(c"a\nb".as_ptr(), file);
        assert_eq!(content(&path), b"");
        stdio::setvbuf(file, null_mut(), 1, 0);
        assert_eq!(content(&path), b"a\nb");
        stdio::fputs(c"c\nd\ne".as_ptr(), file);
        assert_eq!(content(&path), b"a\nbc\nd\n");
        stdio::setvbuf(file, null_mut(), 2, 0);
        stdio::fputs(c"f".as_ptr(), file);
        assert_eq!(content(&path), b"a\nbc\nd\nef");
        stdio::fclose(file);
        // A full disk is seen.
        let file = stdio::fopen(c"/dev/full".as_ptr(), c"w".as_ptr());
        assert_eq!(stdio::fputs(c"x".as_ptr(), file), 0);
        assert_eq!(stdio::fflush(file), -1);
        assert_ne!(stdio::ferror(file), 0);
        assert_eq!(stdio::fclose(file), 0);
    }
    fs::remove_file(path.to_str().expect("UTF-8")).expect("removes");
}

#[test]
fn streams_are_locked() {
    let path = name("locked");
    // SAFETY: strings and streams.
    unsafe {
        let file = stdio::fopen(path.as_ptr(), c"w".as_ptr());
        let shared = file as usize;
        crate::c::std::thread::scope(|scope| {
            for thread in 0..4u8 {
                scope.spawn(move || {
                    let file = shared as *mut File;
                    for _ in 0..500 {
                        stdio::flockfile(file);
                        for _ in 0..10 {
                            stdio::fputc((b'0' + thread).into(), file);
                        }
                        stdio::fputc(b'\n'.into(), file);
                        stdio::funlockfile(file);
                    }
                });
            }
        });
        stdio::fclose(file);
        let text = content(&path);
        assert_eq!(text.len(), 4 * 500 * 11);
        assert!(text.chunks(11).all(|line| line[..10].iter().all(|b| *b == line[0]) && line[10] == b'\n'));
    }
    fs::remove_file(path.to_str().expect("UTF-8")).expect("removes");
}
