//! Files that were packed into the image: `bundle/` of this crate, as `/data`.

use crate::{Outcome, ensure, fails_with};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};

const PAGE: usize = 4096;
/// Length of `long.bin`, whose byte `i` is `i % 251`.
const LONG: usize = 2 * PAGE + 100;

fn text(e: std::io::Error) -> String {
    format!("{e} ({:?})", e.raw_os_error())
}

fn long(i: usize) -> u8 {
    (i % 251) as u8
}

pub fn all() -> Outcome {
    reads()?;
    seeks()?;
    status()?;
    directories()?;
    mappings()?;
    refusals()
}

fn reads() -> Outcome {
    ensure(fs::read_to_string("/data/short.txt").map_err(text)? == "abcdefghij", "short.txt")?;
    ensure(fs::read("/data/empty").map_err(text)?.is_empty(), "empty")?;
    let whole = fs::read("/data/long.bin").map_err(text)?;
    ensure(whole.len() == LONG && whole.iter().enumerate().all(|(i, b)| *b == long(i)), "long.bin")?;

    let file = File::open("/data/long.bin").map_err(text)?;
    let mut b = [0; 64];
    // Across a page, at the end, beyond it.
    for (at, len) in [(0, 64), (PAGE - 7, 64), (LONG - 10, 10), (LONG, 0), (LONG + 1_000_000, 0)] {
        let n = file.read_at(&mut b, at as u64).map_err(text)?;
        ensure(n == len, format!("pread at {at}: {n} bytes"))?;
        ensure((0..n).all(|i| b[i] == long(at + i)), format!("pread at {at}: other bytes"))?;
    }
    // It has not moved the position.
    ensure((&file).stream_position().map_err(text)? == 0, "pread moved the position")?;
    let result = unsafe { libc::pread(file.as_raw_fd(), b.as_mut_ptr().cast(), 1, -1) };
    fails_with(result, libc::EINVAL, "pread at -1")?;
    let mut vectors = [[0u8; 5]; 2];
    let iov = vectors.each_mut().map(|v| libc::iovec { iov_base: v.as_mut_ptr().cast(), iov_len: 5 });
    let n = unsafe { libc::preadv(file.as_raw_fd(), iov.as_ptr(), 2, 3) };
    ensure(n == 10 && vectors.concat() == (3..13).map(long).collect::<Vec<_>>(), format!("preadv: {n}"))
}

fn seeks() -> Outcome {
    let mut file = File::open("/data/short.txt").map_err(text)?;
    let rest = |file: &mut File| -> Result<String, String> {
        let mut s = String::new();
        file.read_to_string(&mut s).map_err(text)?;
        Ok(s)
    };
    ensure(file.seek(SeekFrom::Start(3)).map_err(text)? == 3 && rest(&mut file)? == "defghij", "SEEK_SET")?;
    ensure(file.seek(SeekFrom::End(-2)).map_err(text)? == 8 && rest(&mut file)? == "ij", "SEEK_END")?;
    ensure(file.seek(SeekFrom::Current(-5)).map_err(text)? == 5 && rest(&mut file)? == "fghij", "SEEK_CUR")?;
    // Past the end is allowed, and reads nothing.
    ensure(file.seek(SeekFrom::Start(1000)).map_err(text)? == 1000 && rest(&mut file)?.is_empty(), "past the end")?;
    ensure(file.seek(SeekFrom::End(10)).map_err(text)? == 20 && rest(&mut file)?.is_empty(), "SEEK_END past the end")?;
    let fd = file.as_raw_fd();
    let seek = |offset, whence| unsafe { libc::lseek(fd, offset, whence) as isize };
    fails_with(seek(-1, libc::SEEK_SET), libc::EINVAL, "SEEK_SET -1")?;
    fails_with(seek(-11, libc::SEEK_END), libc::EINVAL, "SEEK_END before the start")?;
    fails_with(seek(-21, libc::SEEK_CUR), libc::EINVAL, "SEEK_CUR before the start")?;
    fails_with(seek(0, 77), libc::EINVAL, "a whence that there is not")?;
    ensure(seek(0, libc::SEEK_CUR) == 20, "a failed seek moved the position")?;
    // A file without holes: data up to the end, where the one hole begins.
    ensure(seek(4, libc::SEEK_DATA) == 4 && seek(4, libc::SEEK_HOLE) == 10, "SEEK_DATA, SEEK_HOLE")?;
    fails_with(seek(10, libc::SEEK_DATA), libc::ENXIO, "SEEK_DATA at the end")?;
    fails_with(seek(10, libc::SEEK_HOLE), libc::ENXIO, "SEEK_HOLE at the end")
}

fn status() -> Outcome {
    let (file, dir) = (fs::metadata("/data/long.bin").map_err(text)?, fs::metadata("/data").map_err(text)?);
    ensure(file.is_file() && file.len() == LONG as u64 && file.mode() == libc::S_IFREG | 0o444, format!("{file:?}"))?;
    ensure(dir.is_dir() && dir.mode() == libc::S_IFDIR | 0o555, format!("{dir:?}"))?;
    let opened = File::open("/data/long.bin").and_then(|f| f.metadata()).map_err(text)?;
    let same = |a: &fs::Metadata, b: &fs::Metadata| (a.dev(), a.ino(), a.len()) == (b.dev(), b.ino(), b.len());
    ensure(same(&file, &opened), "stat and fstat differ")?;
    ensure(file.ino() != dir.ino(), "two files with one inode number")?;

    let mut x: libc::statx = unsafe { std::mem::zeroed() };
    let path = c"/data/long.bin".as_ptr();
    let result = unsafe { libc::statx(libc::AT_FDCWD, path, 0, libc::STATX_BASIC_STATS | libc::STATX_BTIME, &mut x) };
    ensure(result == 0, "statx")?;
    let basic = libc::STATX_BASIC_STATS;
    ensure(x.stx_mask & basic == basic && x.stx_mask & libc::STATX_BTIME == 0, format!("mask {:#x}", x.stx_mask))?;
    ensure(x.stx_size == LONG as u64 && x.stx_ino == file.ino(), "statx: size, inode number")?;
    ensure(u32::from(x.stx_mode) == file.mode() && x.stx_mtime.tv_sec == file.mtime(), "statx: mode, time")?;
    let missing = unsafe { libc::statx(libc::AT_FDCWD, c"/data/none".as_ptr(), 0, basic, &mut x) };
    fails_with(missing as isize, libc::ENOENT, "statx of nothing")?;
    let below = fs::metadata("/data/short.txt/x").map_err(|e| e.raw_os_error());
    ensure(below.err() == Some(Some(libc::ENOTDIR)), "below a file")
}

fn directories() -> Outcome {
    let names = |path: &str| -> Result<Vec<(String, bool)>, String> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path).map_err(text)? {
            let entry = entry.map_err(text)?;
            let kind = entry.file_type().map_err(text)?;
            names.push((entry.file_name().to_string_lossy().into_owned(), kind.is_dir()));
        }
        names.sort();
        Ok(names)
    };
    let expected = [("dir", true), ("empty", false), ("long.bin", false), ("short.txt", false)];
    let found = names("/data")?;
    ensure(found == expected.map(|(n, d)| (n.to_owned(), d)), format!("/data: {found:?}"))?;
    let found = names("/data/dir")?;
    ensure(found == [("a".to_owned(), false), ("b".to_owned(), false)], format!("/data/dir: {found:?}"))?;
    let root = names("/")?;
    ensure(["data", "dev", "tmp"].iter().all(|n| root.contains(&((*n).to_owned(), true))), format!("/: {root:?}"))?;

    // Back to the start, and back to a place.
    let dir = unsafe { libc::opendir(c"/data".as_ptr()) };
    ensure(!dir.is_null(), "opendir")?;
    let next = || {
        let entry = unsafe { libc::readdir(dir) };
        (!entry.is_null()).then(|| unsafe { std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()) }.to_owned())
    };
    let first: Vec<CString> = std::iter::from_fn(next).collect();
    ensure(first.len() == 6 && first.contains(&c".".to_owned()) && first.contains(&c"..".to_owned()), "dots")?;
    unsafe { libc::rewinddir(dir) };
    let _ = next();
    let place = unsafe { libc::telldir(dir) };
    let second = next();
    let _ = next();
    unsafe { libc::seekdir(dir, place) };
    ensure(next() == second && second.is_some(), "seekdir")?;
    unsafe { libc::closedir(dir) };
    let not = fs::read_dir("/data/short.txt").map_err(|e| e.raw_os_error());
    ensure(not.err() == Some(Some(libc::ENOTDIR)), "a file's entries")
}

fn map(fd: RawFd, len: usize, prot: i32, flags: i32, offset: i64) -> Result<*mut u8, i32> {
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, offset) };
    if at == libc::MAP_FAILED {
        Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    } else {
        Ok(at.cast())
    }
}

fn mappings() -> Outcome {
    for (name, content) in [
        ("long.bin", (0..LONG).map(long).collect::<Vec<u8>>()),
        ("short.txt", b"abcdefghij".to_vec()),
        ("empty", Vec::new()),
        ("dir/a", b"one".to_vec()),
        ("dir/b", b"two".to_vec()),
    ] {
        let file = File::open(format!("/data/{name}")).map_err(text)?;
        let fd = file.as_raw_fd();
        for flags in [libc::MAP_PRIVATE, libc::MAP_SHARED] {
            for offset in [0, PAGE, 2 * PAGE] {
                if offset > content.len() {
                    continue;
                }
                // The file's last page has zeros behind the end of the file.
                let rest = &content[offset..];
                let len = rest.len().next_multiple_of(PAGE).max(PAGE);
                let what = format!("{name} from {offset}, flags {flags}");
                let at = map(fd, len, libc::PROT_READ, flags, offset as i64).map_err(|e| format!("{what}: {e}"))?;
                let advised = unsafe { libc::madvise(at.cast(), len, libc::MADV_DONTNEED) };
                ensure(advised == 0, format!("{what}: madvise: {}", std::io::Error::last_os_error()))?;
                let seen = unsafe { std::slice::from_raw_parts(at, rest.len().next_multiple_of(PAGE)) };
                ensure(seen[..rest.len()] == *rest, format!("{what}: other bytes"))?;
                ensure(seen[rest.len()..].iter().all(|b| *b == 0), format!("{what}: no zeros behind the end"))?;
                ensure(unsafe { libc::munmap(at.cast(), len) } == 0, format!("{what}: munmap"))?;
            }
        }
        // It is a copy if it may be written to.
        let at = map(fd, PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE, 0)
            .map_err(|e| format!("copy: {e}"))?;
        unsafe { at.write(b'X') };
        ensure(fs::read(format!("/data/{name}")).map_err(text)? == content, "writing to a copy changed the file")?;
        ensure(unsafe { libc::munmap(at.cast(), PAGE) } == 0, "munmap of a copy")?;
    }
    let file = File::open("/data/long.bin").map_err(text)?;
    let fd = file.as_raw_fd();
    let refused = |len, prot, flags, offset, errno| {
        let result = map(fd, len, prot, flags, offset);
        ensure(result == Err(errno), format!("mmap({len}, {prot}, {flags}, {offset}): {result:?}, not {errno}"))
    };
    let (read, private) = (libc::PROT_READ, libc::MAP_PRIVATE);
    refused(PAGE, read, private, 100, libc::EINVAL)?;
    refused(PAGE, read, private, -(PAGE as i64), libc::EINVAL)?;
    refused(0, read, private, 0, libc::EINVAL)?;
    refused(PAGE, read, 0, 0, libc::EINVAL)?;
    refused(PAGE, read | libc::PROT_EXEC, private, 0, libc::EACCES)?;
    let dir = File::open("/data").map_err(text)?;
    ensure(map(dir.as_raw_fd(), PAGE, read, private, 0) == Err(libc::ENODEV), "mmap of a directory")?;
    ensure(map(9999, PAGE, read, private, 0) == Err(libc::EBADF), "mmap of nothing")
}

fn refusals() -> Outcome {
    let file = File::open("/data/short.txt").map_err(text)?;
    let code = |r: std::io::Result<()>| r.err().and_then(|e| e.raw_os_error());
    let expect =
        |what: &str, got: Option<i32>, errno| ensure(got == Some(errno), format!("{what}: {got:?}, not {errno}"));
    expect("write", code((&file).write(b"x").map(drop)), libc::EBADF)?;
    expect("pwrite", code(file.write_at(b"x", 0).map(drop)), libc::EBADF)?;
    expect("ftruncate", code(file.set_len(0)), libc::EINVAL)?;
    let open = |path: &str, o: &mut fs::OpenOptions| code(o.open(path).map(drop));
    expect("open for writing", open("/data/short.txt", File::options().write(true)), libc::EROFS)?;
    expect("open for appending", open("/data/short.txt", File::options().append(true)), libc::EROFS)?;
    expect("truncate", open("/data/short.txt", File::options().write(true).truncate(true)), libc::EROFS)?;
    expect("create", open("/data/new", File::options().write(true).create(true)), libc::EROFS)?;
    expect("create new over old", open("/data/short.txt", File::options().write(true).create_new(true)), libc::EEXIST)?;
    expect("open a directory for writing", open("/data", File::options().write(true)), libc::EISDIR)?;
    expect("open nothing", open("/data/none", File::options().read(true)), libc::ENOENT)?;
    expect("remove", code(fs::remove_file("/data/short.txt")), libc::EROFS)?;
    expect("rename", code(fs::rename("/data/short.txt", "/data/x")), libc::EROFS)?;
    expect("mkdir", code(fs::create_dir("/data/x")), libc::EROFS)?;
    expect("rmdir", code(fs::remove_dir("/data/dir")), libc::EROFS)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    expect("chmod", code(fs::set_permissions("/data/short.txt", mode)), libc::EROFS)?;
    expect("link", code(fs::hard_link("/data/short.txt", "/data/x")), libc::EROFS)?;
    expect("symlink", code(std::os::unix::fs::symlink("short.txt", "/data/x")), libc::EROFS)
}
