#![expect(unsafe_code, reason = "reads and writes mappings")]
// UNSAFETY: at addresses that were just mapped.

use super::*;
use crate::fd::tests::start;
use crate::fd::{O_APPEND, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use donjon_abi::Prot;
use std::string::String;
use std::{vec, vec::Vec};

fn o(path: &str, flags: i32) -> Result<i32> {
    open(At::Cwd, path.as_bytes(), flags, 0o666)
}

fn put(fd: i32, text: &[u8]) -> Result<usize> {
    fd::write(fd, &[text])
}

fn content(path: &str) -> Result<Vec<u8>> {
    let fd = o(path, O_RDONLY)?;
    let mut buf = vec![0; 100];
    let n = fd::read(fd, &mut [&mut buf])?;
    fd::close(fd)?;
    buf.truncate(n);
    Ok(buf)
}

fn make(path: &str, text: &[u8]) {
    let fd = o(path, O_WRONLY | O_CREAT | O_TRUNC).unwrap();
    put(fd, text).unwrap();
    fd::close(fd).unwrap();
}

fn list(path: &str) -> Vec<String> {
    let fd = o(path, O_RDONLY | O_DIRECTORY).unwrap();
    let mut names = Vec::new();
    while let Some(e) = read_dir(fd).unwrap() {
        names.push(String::from_utf8(e.name).unwrap());
    }
    fd::close(fd).unwrap();
    names
}

#[test]
fn files_are_made_read_and_replaced() {
    let _s = start();
    assert_eq!(o("/tmp/a", O_RDONLY), Err(Errno::ENOENT));
    assert_eq!(o("/tmp/a/b", O_WRONLY | O_CREAT), Err(Errno::ENOENT));
    make("/tmp/a", b"hello");
    assert_eq!(content("/tmp/a"), Ok(b"hello".to_vec()));
    assert_eq!(o("/tmp/a", O_WRONLY | O_CREAT | O_EXCL), Err(Errno::EEXIST));
    assert_eq!(o("/tmp/a/", O_RDONLY), Err(Errno::ENOTDIR));
    assert_eq!(o("/tmp/a/x", O_RDONLY), Err(Errno::ENOTDIR));
    assert_eq!(o("/tmp", O_WRONLY), Err(Errno::EISDIR));
    assert_eq!(o("/tmp/b/", O_WRONLY | O_CREAT), Err(Errno::EISDIR));
    assert_eq!(o("/x", O_WRONLY | O_CREAT), Err(Errno::EROFS));
    assert_eq!(o("", O_RDONLY), Err(Errno::ENOENT));
    assert_eq!(o(&"x".repeat(5000), O_RDONLY), Err(Errno::ENAMETOOLONG));
    assert_eq!(o(&std::format!("/tmp/{}", "x".repeat(256)), O_RDONLY), Err(Errno::ENAMETOOLONG));
    let fd = o("/tmp/a", O_WRONLY | O_APPEND).unwrap();
    put(fd, b" you").unwrap();
    assert_eq!(fd::read(fd, &mut [&mut [0; 1]]), Err(Errno::EBADF));
    assert_eq!(content("/tmp/../tmp/./a"), Ok(b"hello you".to_vec()));
    make("/tmp/a", b"");
    assert_eq!(stat(At::Cwd, b"/tmp/a", true, false).unwrap().size, 0);
}

#[test]
fn positions_holes_and_truncation() {
    let _s = start();
    let fd = o("/tmp/h", O_RDWR | O_CREAT).unwrap();
    assert_eq!(fd::write_at(fd, &[b"end"], 10_000), Ok(3));
    let s = fd::stat(fd).unwrap();
    assert_eq!((s.size, s.used, s.mode), (10_003, 4096, kind::FILE | 0o644));
    let mut buf = [9; 8];
    assert_eq!(fd::read_at(fd, &mut [&mut buf], 9_997), Ok(6));
    assert_eq!(&buf, b"\0\0\0end\x09\x09");
    assert_eq!(fd::seek(fd, -3, 2), Ok(10_000));
    assert_eq!(fd::read(fd, &mut [&mut buf[..2], &mut [0; 9]]), Ok(3));
    assert_eq!((fd::seek(fd, -1, 0), fd::seek(fd, 0, 9)), (Err(Errno::EINVAL), Err(Errno::EINVAL)));
    fd::truncate(fd, 10_001).unwrap();
    fd::truncate(fd, 20_000).unwrap();
    // What was cut off must not come back.
    assert_eq!(fd::read_at(fd, &mut [&mut buf[..3]], 10_000), Ok(3));
    assert_eq!(&buf[..3], b"e\0\0");
    fd::truncate(fd, 0).unwrap();
    assert_eq!(fd::stat(fd).unwrap().used, 0);
    assert_eq!(fd::truncate(fd, -1), Err(Errno::EINVAL));
    assert_eq!(fd::truncate(fd, i64::MAX), Err(Errno::EFBIG));
}

#[test]
fn a_full_tmpfs_says_so_and_space_comes_back() {
    let _s = start();
    let (before, limit) = usage();
    let fd = o("/tmp/big", O_RDWR | O_CREAT).unwrap();
    let chunk = vec![1; 100_000];
    let mut total = 0;
    let error = loop {
        match put(fd, &chunk) {
            Ok(n) => total += n as u64,
            Err(e) => break e,
        }
    };
    assert_eq!(error, Errno::ENOSPC);
    assert!(total <= limit && total > limit - 3 * 4096, "{total} of {limit}");
    assert_eq!(o("/tmp/more", O_RDWR | O_CREAT).and_then(|f| put(f, &[1; 4096])), Err(Errno::ENOSPC));
    unlink(At::Cwd, b"/tmp/big", false).unwrap();
    assert!(usage().0 >= total, "an open file keeps its space");
    fd::close(fd).unwrap();
    let _ = unlink(At::Cwd, b"/tmp/more", false);
    for n in 3..10 {
        let _ = fd::close(n);
    }
    assert_eq!(usage().0, before);
    let mut made = 0;
    while mkdir(At::Cwd, std::format!("/tmp/d{made}").as_bytes(), 0o777).is_ok() {
        made += 1;
    }
    assert!((1000..10_000).contains(&made), "directories cost something: {made}");
}

#[test]
fn directories_and_names() {
    let _s = start();
    assert_eq!(mkdir(At::Cwd, b"/tmp/d", 0o777), Ok(()));
    assert_eq!(mkdir(At::Cwd, b"/tmp/d", 0o777), Err(Errno::EEXIST));
    assert_eq!(mkdir(At::Cwd, b"/d", 0o777), Err(Errno::EROFS));
    make("/tmp/d/b", b"1");
    make("/tmp/d/a", b"2");
    assert_eq!(list("/tmp/d"), [".", "..", "a", "b"]);
    assert_eq!(list("/dev")[..4], [".", "..", "null", "zero"]);
    assert_eq!(list("/"), [".", "..", "tmp", "dev"]);
    assert_eq!(unlink(At::Cwd, b"/tmp/d", true), Err(Errno::ENOTEMPTY));
    assert_eq!(unlink(At::Cwd, b"/tmp/d", false), Err(Errno::EISDIR));
    assert_eq!(unlink(At::Cwd, b"/tmp/d/a", true), Err(Errno::ENOTDIR));
    assert_eq!(unlink(At::Cwd, b"/tmp", true), Err(Errno::EBUSY));
    let re = |a: &str, b: &str| rename(At::Cwd, a.as_bytes(), At::Cwd, b.as_bytes(), true);
    assert_eq!(re("/tmp/d/a", "/tmp/d/b"), Ok(()));
    assert_eq!(content("/tmp/d/b"), Ok(b"2".to_vec()));
    assert_eq!(re("/tmp/d", "/tmp/d/x"), Err(Errno::EINVAL));
    assert_eq!(re("/tmp/d", "/tmp/e"), Ok(()));
    assert_eq!(re("/tmp/e/b", "/dev/b"), Err(Errno::EXDEV));
    assert_eq!(rename(At::Cwd, b"/tmp/e/b", At::Cwd, b"/tmp/e/b", false), Err(Errno::EEXIST));
    chdir(b"/tmp/e").unwrap();
    assert_eq!(cwd(), Ok(b"/tmp/e".to_vec()));
    assert_eq!(content("b"), Ok(b"2".to_vec()));
    let dir = o(".", O_RDONLY).unwrap();
    assert_eq!(open(At::Fd(dir), b"b", O_RDONLY, 0).map(|_| ()), Ok(()));
    assert_eq!(open(At::Fd(1), b"b", O_RDONLY, 0), Err(Errno::ENOTDIR));
    assert_eq!(unlink(At::Cwd, b"b", false), Ok(()));
    assert_eq!(unlink(At::Cwd, b"/tmp/e", true), Ok(()));
    assert_eq!(o("x", O_WRONLY | O_CREAT), Err(Errno::ENOENT));
    assert_eq!(cwd(), Err(Errno::ENOENT));
    // What is moved there stays where it is.
    make("/tmp/kept", b"kept");
    assert_eq!(re("/tmp/kept", "x"), Err(Errno::ENOENT));
    assert_eq!(content("/tmp/kept"), Ok(b"kept".to_vec()));
    chdir(b"/").unwrap();
}

#[test]
fn a_directory_that_moves_counts_where_it_is() {
    let _s = start();
    let nlink = |path: &str| stat(At::Cwd, path.as_bytes(), true, false).unwrap().nlink;
    for path in ["/tmp/a", "/tmp/a/d", "/tmp/b", "/tmp/b/d"] {
        mkdir(At::Cwd, path.as_bytes(), 0o777).unwrap();
    }
    // Over an empty one, and within one directory.
    rename(At::Cwd, b"/tmp/a/d", At::Cwd, b"/tmp/b/d", true).unwrap();
    rename(At::Cwd, b"/tmp/b/d", At::Cwd, b"/tmp/b/e", true).unwrap();
    assert_eq!((nlink("/tmp/a"), nlink("/tmp/b")), (2, 3));
    assert_eq!(
        (list("/tmp/a"), list("/tmp/b")),
        (vec![".".into(), "..".into()], vec![".".into(), "..".into(), "e".into()])
    );
    chdir(b"/tmp/b/e").unwrap();
    assert_eq!(cwd(), Ok(b"/tmp/b/e".to_vec()));
    chdir(b"/").unwrap();
}

#[test]
fn links() {
    let _s = start();
    make("/tmp/f", b"x");
    symlink(b"f", At::Cwd, b"/tmp/l").unwrap();
    symlink(b"/tmp/loop", At::Cwd, b"/tmp/loop").unwrap();
    symlink(b"/tmp/new", At::Cwd, b"/tmp/dangling").unwrap();
    assert_eq!(content("/tmp/l"), Ok(b"x".to_vec()));
    assert_eq!(o("/tmp/l", O_RDONLY | O_NOFOLLOW), Err(Errno::ELOOP));
    assert_eq!(o("/tmp/loop", O_RDONLY), Err(Errno::ELOOP));
    assert_eq!(read_link(At::Cwd, b"/tmp/l"), Ok(b"f".to_vec()));
    assert_eq!(read_link(At::Cwd, b"/tmp/f"), Err(Errno::EINVAL));
    assert_eq!(stat(At::Cwd, b"/tmp/l", false, false).unwrap().mode & kind::MASK, kind::LINK);
    assert_eq!(o("/tmp/dangling", O_WRONLY | O_CREAT | O_EXCL), Err(Errno::EEXIST));
    make("/tmp/dangling", b"made");
    assert_eq!(content("/tmp/new"), Ok(b"made".to_vec()));
    assert_eq!(real_path(b"/tmp/../tmp/l"), Ok(b"/tmp/f".to_vec()));
    assert_eq!(real_path(b"/tmp/nothing"), Err(Errno::ENOENT));
    assert_eq!(real_path(b"/"), Ok(b"/".to_vec()));
    link(At::Cwd, b"/tmp/f", At::Cwd, b"/tmp/g", false).unwrap();
    assert_eq!(stat(At::Cwd, b"/tmp/g", true, false).unwrap().nlink, 2);
    unlink(At::Cwd, b"/tmp/f", false).unwrap();
    assert_eq!(content("/tmp/g"), Ok(b"x".to_vec()));
    assert_eq!(stat(At::Cwd, b"/tmp/g", true, false).unwrap().nlink, 1);
}

#[test]
fn devices_and_rights() {
    let _s = start();
    assert_eq!(content("/dev/null"), Ok(vec![]));
    assert_eq!(content("/dev/zero"), Ok(vec![0; 100]));
    assert_ne!(content("/dev/urandom").unwrap(), content("/dev/urandom").unwrap());
    assert_eq!(o("/dev/full", O_WRONLY).and_then(|f| put(f, b"x")), Err(Errno::ENOSPC));
    make("/dev/null", b"x");
    make("/tmp/f", b"x");
    assert_eq!(access(At::Cwd, b"/tmp/f", 6, true), Ok(()));
    assert_eq!(access(At::Cwd, b"/tmp/f", 1, true), Err(Errno::EACCES));
    assert_eq!(access(At::Cwd, b"/", 2, true), Err(Errno::EROFS));
    chmod(At::Cwd, Some(b"/tmp/f"), 0o600, true).unwrap();
    set_times(At::Cwd, Some(b"/tmp/f"), Some(Time { sec: -1, nsec: 5 }), None, true).unwrap();
    let s = stat(At::Cwd, b"/tmp/f", true, false).unwrap();
    assert_eq!((s.mode, s.atime), (kind::FILE | 0o600, Time { sec: -1, nsec: 5 }));
    assert_eq!(chmod(At::Cwd, Some(b"/"), 0, true), Err(Errno::EROFS));
}

#[test]
fn locks_exclude() {
    let _s = start();
    make("/tmp/f", b"");
    let (a, b) = (o("/tmp/f", O_RDONLY).unwrap(), o("/tmp/f", O_RDONLY).unwrap());
    flock(a, Some(LockKind::Shared), false).unwrap();
    flock(b, Some(LockKind::Shared), false).unwrap();
    assert_eq!(flock(a, Some(LockKind::Exclusive), false), Err(Errno::EAGAIN));
    flock(b, None, false).unwrap();
    flock(a, Some(LockKind::Exclusive), false).unwrap();
    fn release(fd: usize) {
        fd::close(fd as i32).unwrap();
    }
    crate::sched::spawn(release, a as usize, 64 << 10).unwrap();
    flock(b, Some(LockKind::Exclusive), true).unwrap();
}

#[test]
fn copies_between_files() {
    let _s = start();
    make("/tmp/a", b"0123456789");
    let (from, to) = (o("/tmp/a", O_RDONLY).unwrap(), o("/tmp/b", O_RDWR | O_CREAT).unwrap());
    let mut at = 2;
    assert_eq!(copy_range(from, Some(&mut at), to, None, 5), Ok(5));
    assert_eq!((at, content("/tmp/b")), (7, Ok(b"23456".to_vec())));
    assert_eq!(copy_range(from, None, to, Some(&mut 0), 100), Ok(10));
    assert_eq!(copy_range(from, None, to, None, 100), Ok(0));
    assert_eq!(content("/tmp/b"), Ok(b"0123456789".to_vec()));
    let (r, w) = crate::io::pipe::create(0).unwrap();
    assert_eq!(copy_range(from, Some(&mut 8), w, None, 9), Ok(2));
    assert_eq!(copy_range(r, None, to, None, 9), Err(Errno::EINVAL));
}

#[test]
fn named_pipes_bring_two_sides_together() {
    let _s = start();
    assert_eq!(mkfifo(At::Cwd, b"/tmp/p", 0o600), Ok(()));
    assert_eq!(mkfifo(At::Cwd, b"/tmp/p", 0o600), Err(Errno::EEXIST));
    let nonblock = fd::O_NONBLOCK;
    assert_eq!(o("/tmp/p", O_WRONLY | nonblock), Err(Errno::ENXIO));
    let r = o("/tmp/p", O_RDONLY | nonblock).unwrap();
    assert_eq!(fd::stat(r).unwrap().mode, kind::FIFO | 0o600);
    // Nobody has written: the end, but no hang-up.
    assert_eq!(fd::read(r, &mut [&mut [0; 4]]), Ok(0));
    let w = o("/tmp/p", O_WRONLY | nonblock).unwrap();
    assert_eq!(fd::read(r, &mut [&mut [0; 4]]), Err(Errno::EAGAIN));
    assert_eq!(put(w, b"abc"), Ok(3));
    fd::close(w).unwrap();
    assert_eq!(fd::read(r, &mut [&mut [0; 4]]), Ok(3));
    assert_eq!(fd::read(r, &mut [&mut [0; 4]]), Ok(0));
    fd::close(r).unwrap();
    fn writer(_: usize) {
        let w = o("/tmp/p", O_WRONLY).unwrap();
        assert_eq!(put(w, b"hello"), Ok(5));
        fd::close(w).unwrap();
    }
    crate::sched::spawn(writer, 0, 64 << 10).unwrap();
    assert_eq!(content("/tmp/p"), Ok(b"hello".to_vec()));
    let both = o("/tmp/p", O_RDWR).unwrap();
    assert_eq!((put(both, b"x"), fd::read(both, &mut [&mut [0; 4]])), (Ok(1), Ok(1)));
}

#[test]
fn readers_of_a_named_pipe_wait_for_a_writer_only() {
    static OPEN: AtomicUsize = AtomicUsize::new(0);
    let _s = start();
    let others_run = || crate::sched::sleep_until(donjon_base::clock::monotonic() + 1_000_000);
    mkfifo(At::Cwd, b"/tmp/p", 0o600).unwrap();
    fn reader(_: usize) {
        o("/tmp/p", O_RDONLY).unwrap();
        OPEN.fetch_add(1, SeqCst);
    }
    fn writer(_: usize) {
        o("/tmp/p", O_WRONLY).unwrap();
        OPEN.fetch_add(1, SeqCst);
    }
    for (other, nonblocking) in [(reader as fn(usize), O_WRONLY), (writer, O_RDONLY)] {
        OPEN.store(0, SeqCst);
        for _ in 0..2 {
            crate::sched::spawn(other, 0, 64 << 10).unwrap();
            others_run();
        }
        assert_eq!(OPEN.load(SeqCst), 0);
        // Who came and went counts.
        fd::close(o("/tmp/p", nonblocking | fd::O_NONBLOCK).unwrap()).unwrap();
        others_run();
        assert_eq!(OPEN.load(SeqCst), 2);
        for n in 3..10 {
            let _ = fd::close(n);
        }
    }
    // A writer of an earlier time is no hang-up for a reader of today, and neither is another reader.
    let hung_up = |fd| fd::get(fd).unwrap().obj.ready() & fd::watch::events::HUP != 0;
    let [a, b] = [0; 2].map(|_| o("/tmp/p", O_RDONLY | fd::O_NONBLOCK).unwrap());
    assert!(!hung_up(a) && !hung_up(b));
    fd::close(o("/tmp/p", O_WRONLY).unwrap()).unwrap();
    assert!(hung_up(a) && hung_up(b));
    let c = o("/tmp/p", O_RDONLY | fd::O_NONBLOCK).unwrap();
    assert!(hung_up(a) && !hung_up(c));
}

#[test]
fn threads_share_the_lock_of_a_description() {
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    let _s = start();
    let others_run = || crate::sched::sleep_until(donjon_base::clock::monotonic() + 1_000_000);
    let [a, b] = [0; 2].map(|_| o("/tmp/f", O_RDWR | O_CREAT).unwrap());
    fn locker(fd: usize) {
        flock(fd as i32, Some(LockKind::Exclusive), true).unwrap();
        TAKEN.fetch_add(1, SeqCst);
    }
    TAKEN.store(0, SeqCst);
    flock(b, Some(LockKind::Exclusive), false).unwrap();
    for _ in 0..2 {
        crate::sched::spawn(locker, a as usize, 64 << 10).unwrap();
    }
    others_run();
    assert_eq!(TAKEN.load(SeqCst), 0);
    flock(b, None, false).unwrap();
    others_run();
    assert_eq!(TAKEN.load(SeqCst), 2);
    assert_eq!(flock(b, Some(LockKind::Shared), false), Err(Errno::EAGAIN));
    // It is one lock, however many have asked for it.
    flock(a, None, false).unwrap();
    flock(b, Some(LockKind::Shared), false).unwrap();
}

/// What a mapping shows.
fn seen(at: usize, len: usize) -> Vec<u8> {
    // SAFETY: the tests read what is mapped.
    unsafe { core::slice::from_raw_parts(at as *const u8, len) }.to_vec()
}

/// What a program does to a mapping.
fn poke(at: usize, bytes: &[u8]) {
    // SAFETY: the tests write to what is mapped, and hold no reference to it.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) }
}

#[test]
fn shared_mappings_are_the_file() {
    let _s = start();
    let fd = o("/tmp/m", O_RDWR | O_CREAT).unwrap();
    let mut buf = [0; 4];
    assert_eq!(fd::write_at(fd, &[b"file"], 4096), Ok(4));
    let used = usage().0;
    // Two mappings of the same range are the same memory; the hole before it is made.
    let at = shared::map(fd, 0, 8192, Prot::ReadWrite).unwrap().unwrap();
    assert_eq!(usage().0, used + 4096);
    assert_eq!(shared::map(fd, 4096, 4096, Prot::Read), Ok(Some(at + 4096)));
    assert_eq!(seen(at + 4096, 5), b"file\0");
    poke(at + 4096, b"seen");
    assert_eq!(fd::read_at(fd, &mut [&mut buf], 4096), Ok(4));
    assert_eq!(&buf, b"seen");
    fd::write_at(fd, &[b"back"], 4094).unwrap();
    assert_eq!(seen(at + 4094, 6), b"backen");
    // What was written behind the end is not there when the file grows over it.
    poke(at + 4100, b"evil");
    fd::write_at(fd, &[b"."], 4103).unwrap();
    assert_eq!(fd::read_at(fd, &mut [&mut buf], 4100), Ok(4));
    assert_eq!(&buf, b"\0\0\0.");
    fd::truncate(fd, 4096).unwrap();
    assert_eq!(seen(at + 4096, 2), b"\0\0");
    fd::truncate(fd, 4200).unwrap();
    assert_eq!(shared::mapped(at + 100, 1), Some(true));
    assert_eq!(shared::mapped(at + 4096, 1), Some(false));
    assert_eq!(shared::mapped(at + 8192, 1), None);
    // Only what lies within can be mapped a second time.
    assert_eq!(shared::map(fd, 4096, 8192, Prot::Read), Err(Errno::ENODEV));
    assert!(shared::map(fd, 8192, 4096, Prot::Read).unwrap().is_some());
    // The file stays while it is mapped, under no name and with no descriptor.
    poke(at, b"stay");
    fd::close(fd).unwrap();
    unlink(At::Cwd, b"/tmp/m", false).unwrap();
    assert_eq!(seen(at, 4), b"stay");
    assert!(usage().0 > used);
}

#[test]
fn what_is_behind_the_end_goes_with_the_mapping() {
    let _s = start();
    make("/tmp/t", &[b'a'; 100]);
    let fd = o("/tmp/t", O_RDWR).unwrap();
    let at = shared::map(fd, 0, 2 * 4096, Prot::ReadWrite).unwrap().unwrap();
    poke(at + 99, b"bsecret");
    poke(at + 4096, b"secret");
    assert_eq!(shared::unmap(at, 2 * 4096), Some(Ok(())));
    fd::truncate(fd, 2 * 4096).unwrap();
    let mut buf = [1; 2 * 4096];
    assert_eq!(fd::read_at(fd, &mut [&mut buf], 0), Ok(2 * 4096));
    assert_eq!(buf[98..100], *b"ab");
    assert!(buf[100..].iter().all(|b| *b == 0));
}

#[test]
fn zeros_can_be_mapped_and_other_devices_not() {
    let _s = start();
    let [zero, null] = ["/dev/zero", "/dev/null"].map(|path| o(path, O_RDWR).unwrap());
    assert_eq!(fd::map_source(zero, 0, 4096), Ok(fd::MapSource::Copy));
    assert_eq!(fd::map_source(null, 0, 4096), Err(Errno::ENODEV));
    let mut page = [1; 4096];
    assert_eq!(fd::pread_into(zero, &mut page, 4096), Ok(4096));
    assert_eq!(page, [0; 4096]);
}

#[test]
fn a_mapping_ends_in_parts() {
    let _s = start();
    make("/tmp/p", b"abcd");
    let before = usage().0;
    let (fd, read_only) = (o("/tmp/p", O_RDWR).unwrap(), o("/tmp/p", O_RDONLY).unwrap());
    assert_eq!(shared::map(read_only, 0, 4096, Prot::ReadWrite), Err(Errno::EACCES));
    assert_eq!(shared::unmap(4096, 4096), None);
    let at = shared::map(fd, 0, 4 * 4096, Prot::ReadWrite).unwrap().unwrap();
    poke(at + 1, b"BC");
    assert_eq!(shared::unmap(at - 4096, 8192), Some(Err(Errno::EINVAL)));
    assert_eq!(shared::unmap(at + 4096, 4096), Some(Ok(())));
    assert_eq!(shared::mapped(at + 4096, 4096), None);
    assert_eq!((shared::mapped(at, 1), shared::mapped(at + 8192, 8192)), (Some(true), Some(true)));
    // The memory stays until the last part is gone; then the file has blocks again, and no more than before.
    assert_eq!(usage().0, before + 3 * 4096);
    assert_eq!(shared::unmap(at, 4096), Some(Ok(())));
    assert_eq!(shared::unmap(at + 8192, 8192), Some(Ok(())));
    assert_eq!((usage().0, fd::stat(fd).unwrap().used), (before, 4096));
    assert_eq!(content("/tmp/p"), Ok(b"aBCd".to_vec()));
    // A read-only one does not keep `write` out.
    let at = shared::map(read_only, 0, 4096, Prot::Read).unwrap().unwrap();
    fd::write_at(fd, &[b"W"], 0).unwrap();
    assert_eq!(seen(at, 4), b"WBCd");
    fd::close(fd).unwrap();
    unlink(At::Cwd, b"/tmp/p", false).unwrap();
    fd::close(read_only).unwrap();
    assert_eq!(shared::unmap(at, 4096), Some(Ok(())));
    assert_eq!(usage().0, before - 4096 - 256);
    // Nothing is mapped that the limit does not allow.
    let fd = o("/tmp/big", O_RDWR | O_CREAT).unwrap();
    assert_eq!(shared::map(fd, 0, 1 << 30, Prot::ReadWrite), Err(Errno::ENOMEM));
}

#[test]
fn names_and_targets_count_and_end_somewhere() {
    let _s = start();
    make("/tmp/a", b"");
    let before = usage().0;
    let mut made = 0;
    let error = loop {
        match link(At::Cwd, b"/tmp/a", At::Cwd, std::format!("/tmp/l{made}").as_bytes(), false) {
            Ok(()) => made += 1,
            Err(e) => break e,
        }
        assert!((made as u64) < usage().1 / 64, "names cost nothing");
    };
    assert_eq!((error, made > 100), (Errno::ENOSPC, true));
    unlink(At::Cwd, b"/tmp/a", false).unwrap();
    rename(At::Cwd, b"/tmp/l0", At::Cwd, b"/tmp/a", true).unwrap();
    for n in 1..made {
        unlink(At::Cwd, std::format!("/tmp/l{n}").as_bytes(), false).unwrap();
    }
    assert_eq!(usage().0, before);
    unlink(At::Cwd, b"/tmp/a", false).unwrap();
    let before = usage().0;
    symlink(&[b'x'; 4000], At::Cwd, b"/tmp/s").unwrap();
    assert!(usage().0 - before >= 4000);
    unlink(At::Cwd, b"/tmp/s", false).unwrap();
    assert_eq!(usage().0, before);
}

#[test]
fn an_allocation_succeeds_or_takes_nothing_and_goes_with_the_end() {
    let _s = start();
    let fd = o("/tmp/a", O_RDWR | O_CREAT).unwrap();
    fd::write_at(fd, &[b"x"], 3 * 4096).unwrap();
    let before = usage().0;
    assert_eq!(fd::allocate(fd, 0, 1 << 30, false), Err(Errno::ENOSPC));
    assert_eq!((usage().0, fd::stat(fd).unwrap().used), (before, 4096));
    fd::allocate(fd, 0, 10 * 4096, true).unwrap();
    assert_eq!(fd::stat(fd).unwrap().used, 10 * 4096);
    fd::truncate(fd, 3 * 4096 + 1).unwrap();
    assert_eq!(fd::stat(fd).unwrap().used, 4 * 4096);
}
