//! Files that are made anew: never half-written under their final name, and never in the place of what is no file.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// A path at which no file can be put.
#[derive(Debug, thiserror::Error)]
#[error("{0} {1}: no image can be put there")]
pub struct NotAFile(pub PathBuf, pub &'static str);

/// Whether a file can be put at `path`, and its symbols beside it: whatever is there now is replaced by rename, which as root works with devices, too.
pub fn check(path: &Path) -> Result<(), NotAFile> {
    one(path)?;
    one(&debug(path))
}

fn one(path: &Path) -> Result<(), NotAFile> {
    let is = |what| Err(NotAFile(path.into(), what));
    if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return is("is a directory");
    }
    match fs::metadata(path) {
        Ok(m) if m.is_dir() => return is("is a directory"),
        Ok(m) if !m.is_file() => return is("is not a regular file"),
        _ => {}
    }
    // A link there may lead to a regular file, such as /dev/stdout to where the shell has sent the output.
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match dir.canonicalize() {
        Ok(real) if real == Path::new("/dev") || real.starts_with("/proc") => is("is not a regular file"),
        _ => Ok(()),
    }
}

/// The path of a file that may not be there yet, with all links to its directory followed.
pub fn real(path: &Path) -> PathBuf {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (dir.canonicalize(), path.file_name()) {
        (Ok(dir), Some(name)) => dir.join(name),
        _ => path.into(),
    }
}

/// Where the symbols of an image are: beside it.
pub fn debug(image: &Path) -> PathBuf {
    with_suffix(image, ".debug")
}

/// Whether `file` is `output`, or made together with it: its symbols, or one of the two half-written.
pub fn belongs_to(file: &Path, output: &Path) -> bool {
    let name = |p: &Path| p.file_name().map(|n| n.as_encoded_bytes().to_owned()).unwrap_or_default();
    let (file_name, output_name) = (name(file), name(output));
    let rest = file_name.strip_prefix(&output_name[..]);
    file.parent() == output.parent()
        && rest.is_some_and(|r| r.is_empty() || r == b".debug" || r.starts_with(b".") && r.ends_with(b".part"))
}

/// Has `write` write what will be at `path`.
pub fn replace<E>(
    path: &Path,
    io: impl Fn(io::Error) -> E,
    write: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    let part = with_suffix(path, &format!(".{}.part", std::process::id()));
    // Of a process of the same number that was killed; and what is there is not written to.
    _ = fs::remove_file(&part);
    let mut file = File::create_new(&part).map_err(&io)?;
    let done = write(&mut file).and_then(|()| fs::rename(&part, path).map_err(&io));
    if done.is_err() {
        _ = fs::remove_file(&part);
    }
    done
}

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::{fs::symlink, net::UnixListener};

    #[test]
    fn only_files_are_replaced() {
        let dir = std::env::temp_dir().join(format!("donjon-output-{}", std::process::id()));
        fs::create_dir_all(dir.join("d")).unwrap();
        let at = |name: &str| dir.join(name);
        let refused = |path: &Path| check(path).err().map(|e| e.to_string()).unwrap_or_default();
        fs::write(at("old.img"), "old").unwrap();
        symlink("old.img", at("link.img")).unwrap();
        for name in ["new.img", "old.img", "link.img"] {
            assert_eq!(refused(&at(name)), "");
        }
        let _socket = UnixListener::bind(at("special")).unwrap();
        symlink("special", at("link")).unwrap();
        symlink("special", at("b.img.debug")).unwrap();
        for name in ["special", "link", "b.img"] {
            assert!(refused(&at(name)).contains("is not a regular file"), "{name}");
        }
        for name in ["d", "d/", "d/..", "new/"] {
            assert!(refused(&at(name)).contains("is a directory"), "{name}");
        }
        // Nobody makes a file where devices are, whatever there is now.
        symlink("/dev", at("devices")).unwrap();
        for path in [at("devices/donjon-none"), "/dev/donjon-none".into(), "/proc/self/fd/donjon-none".into()] {
            assert!(refused(&path).contains("is not a regular file"), "{path:?}");
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        use io::Write as _;
        let dir = std::env::temp_dir().join(format!("donjon-replace-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (path, other) = (dir.join("a.img"), dir.join("other"));
        fs::write(&path, "old").unwrap();
        fs::write(&other, "other").unwrap();
        let list = || fs::read_dir(&dir).unwrap().count();
        let failed = replace(&path, |e| e, |file| file.write_all(b"half").and(Err(io::Error::other("no"))));
        assert_eq!((failed.is_err(), fs::read(&path).unwrap(), list()), (true, b"old".to_vec(), 2));
        // What somebody has put where we write first.
        symlink(&other, with_suffix(&path, &format!(".{}.part", std::process::id()))).unwrap();
        replace(&path, |e| e, |file| file.write_all(b"new")).unwrap();
        assert_eq!((fs::read(&path).unwrap(), fs::read(&other).unwrap(), list()), (b"new".into(), b"other".into(), 2));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_is_made_together_is_known() {
        let output = Path::new("/s/a.img");
        for (file, belongs) in [
            ("/s/a.img", true),
            ("/s/a.img.debug", true),
            ("/s/a.img.12.part", true),
            ("/s/a.img.debug.12.part", true),
            ("/s/a.img2", false),
            ("/s/b/a.img", false),
            ("/s/a.img.html", false),
            ("/s/xa.img", false),
        ] {
            assert_eq!(belongs_to(Path::new(file), output), belongs, "{file}");
        }
    }
}
