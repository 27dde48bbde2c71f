//! Where `donjon serve` keeps what it makes, and when that is removed.
//!
//! Two kinds of locks (flock(2)) see to it that no image is removed that somebody is about to start, or that runs and may have to explain a crash:
//! one on the directory, which `serve` shares with others while it makes or finds its image, and one on the image until the guest has ended. Who
//! removes takes both for itself, or goes without.

use std::hash::{BuildHasher as _, RandomState};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{env, fs, fs::File};

use donjon_image::output;
use rustix::fs::{Access, access};
use rustix::process::geteuid;

use crate::failure::{Failure, code};

/// What was not used for so long is removed.
const UNUSED: Duration = Duration::from_hours(30 * 24);
/// So many images of one directory are kept: with other options there is another.
const IMAGES: usize = 4;

/// Where images and compressed contents are kept (XDG base directory specification), if that is ours and can be written to.
pub fn cache() -> Option<PathBuf> {
    let absolute = |v: std::ffi::OsString| Some(PathBuf::from(v)).filter(|p| p.is_absolute());
    let base = env::var_os("XDG_CACHE_HOME").and_then(absolute);
    let dir = base.or_else(|| Some(env::home_dir()?.join(".cache")))?.join("donjon/web");
    make(&dir, true).ok()?;
    Some(dir).filter(|dir| is_ours(dir) && access(dir, Access::WRITE_OK).is_ok())
}

/// A directory for images in `dir`, where others may write, too: the one of the last time if nobody else can have made it or can write to it.
pub fn temporary(dir: &Path) -> Result<PathBuf, Failure> {
    let usual = dir.join(format!(".donjon-{}", geteuid().as_raw()));
    let mut made = make(&usual, false);
    if made.is_ok() || is_ours(&usual) {
        return Ok(usual);
    }
    // Somebody else has been quicker, but cannot guess this.
    for _ in 0..16 {
        let random = dir.join(format!(".donjon-{:016x}", RandomState::new().hash_one(())));
        made = make(&random, false);
        if made.is_ok() {
            return Ok(random);
        }
    }
    let why = made.map_or_else(|e| e.to_string(), |()| String::new());
    let hint = "set XDG_CACHE_HOME or TMPDIR to a directory that can be written to".to_owned();
    Err(Failure::new(code::OS, format!("cannot make a directory for the image in {}: {why}", dir.display()), hint))
}

/// Has `write` put an image at `image`, or find it there. It stays for as long as what is returned beside the result lives; others that are no longer
/// used go. Where files cannot be locked, nothing goes.
pub fn keep<T>(image: &Path, write: impl FnOnce() -> Result<T, Failure>) -> Result<(T, Option<File>), Failure> {
    let place = image.parent().unwrap_or(Path::new("."));
    let shared = |path: &Path| File::open(path).ok().filter(|file| file.lock_shared().is_ok());
    let gate = shared(place);
    let made = write()?;
    let held = shared(image);
    // Used is what was touched.
    held.iter().for_each(|file| _ = file.set_modified(SystemTime::now()));
    drop(gate);
    tidy(place, folder(image), SystemTime::now());
    Ok((made, held))
}

/// Removes what nobody has used lately, and all but the newest images of `folder`.
fn tidy(place: &Path, folder: Option<&str>, now: SystemTime) {
    let gate = File::open(place).ok();
    let (Some(_gate), Ok(list)) = (gate.filter(|dir| dir.try_lock().is_ok()), fs::read_dir(place)) else { return };
    let mut of_folder = Vec::new();
    for entry in list.flatten() {
        let path = entry.path();
        let Some(meta) = entry.metadata().ok().filter(|m| m.is_file()) else { continue };
        let Ok(used) = meta.modified() else { continue };
        let unused = now.duration_since(used).is_ok_and(|time| time > UNUSED);
        match path.extension().and_then(|e| e.to_str()).unwrap_or_default() {
            "img" if unused => discard(&path),
            "img" if folder.is_some() && self::folder(&path) == folder => of_folder.push((used, path)),
            // Symbols go with their image.
            "debug" if path.with_extension("").exists() => {}
            "debug" | "br" | "gz" | "part" | "spool" if unused => _ = fs::remove_file(path),
            _ => {}
        }
    }
    of_folder.sort_unstable();
    of_folder.iter().rev().skip(IMAGES).for_each(|(_, image)| discard(image));
}

/// Removes an image if nobody runs it.
fn discard(image: &Path) {
    if File::open(image).is_ok_and(|file| file.try_lock().is_ok()) {
        [image, &output::debug(image)].iter().for_each(|path| _ = fs::remove_file(path));
    }
}

/// Which directory an image is of: the last but one of the parts of `NAME-FOLDER-KEY.img`.
fn folder(image: &Path) -> Option<&str> {
    let (rest, _) = image.file_stem()?.to_str()?.rsplit_once('-')?;
    rest.rsplit_once('-').map(|(_, folder)| folder)
}

/// Whether this is a directory (and no link to one) that nobody else can write to, save root.
fn is_ours(dir: &Path) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|m| m.is_dir() && m.uid() == geteuid().as_raw() && m.mode() & 0o022 == 0)
}

fn make(dir: &Path, recursive: bool) -> std::io::Result<()> {
    // Sites may not be meant for all users of this machine.
    fs::DirBuilder::new().recursive(recursive).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn an_image_is_only_where_nobody_else_can_write() {
        let dir = env::temp_dir().join(format!("donjon-temporary-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let mode = |dir: &Path| fs::metadata(dir).unwrap().permissions().mode() & 0o777;
        let usual = temporary(&dir).unwrap();
        assert_eq!((mode(&usual), temporary(&dir).unwrap()), (0o700, usual.clone()), "the same at the next start");
        // What somebody else may have put there is not used.
        fs::set_permissions(&usual, fs::Permissions::from_mode(0o777)).unwrap();
        let others = temporary(&dir).unwrap();
        assert!(others != usual && mode(&others) == 0o700 && others != temporary(&dir).unwrap());
        fs::remove_dir(&usual).unwrap();
        symlink(&others, &usual).unwrap();
        assert_ne!(temporary(&dir).unwrap(), usual);
        assert!(temporary(&dir.join("none")).unwrap_err().message.contains("none: No such file"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_nobody_uses_goes() {
        let dir = env::temp_dir().join(format!("donjon-tidy-{}", std::process::id()));
        _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        let now = SystemTime::now();
        // Days without use.
        let put = |name: &str, days: u64| {
            let file = File::create(dir.join(name)).unwrap();
            file.set_modified(now - Duration::from_hours(24 * days)).unwrap();
        };
        let list = || {
            let mut names: Vec<_> =
                fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort_unstable();
            names
        };
        for days in 1..6 {
            put(&format!("a-b-f1-{days}.img"), days);
            put(&format!("a-b-f1-{days}.img.debug"), 40);
        }
        for (name, days) in [
            ("a-f2-1.img", 29),
            ("a-f2-2.img", 31),
            ("a-f2-2.img.debug", 1),
            ("a-f2-3.img", 31),
            ("alone.img.debug", 31),
            ("h-3.br", 31),
            ("h-3.gz", 1),
            ("h-3.br.7.part", 31),
            ("mine.txt", 99),
        ] {
            put(name, days);
        }
        let before = list();
        let running = File::open(dir.join("a-f2-3.img")).unwrap();
        running.lock_shared().unwrap();
        // As long as somebody makes an image or is about to start one, nothing goes.
        let image = dir.join("a-b-f1-9.img");
        let made = keep(&image, || {
            tidy(&dir, Some("f1"), now);
            assert_eq!(list(), before);
            put("a-b-f1-9.img", 50);
            Ok(7)
        });
        let (made, held) = made.unwrap();
        let newest = ["1", "2", "3"].map(|n| [format!("a-b-f1-{n}.img"), format!("a-b-f1-{n}.img.debug")]).concat();
        let others = ["a-b-f1-9.img", "a-f2-1.img", "a-f2-3.img", "h-3.gz", "mine.txt"].map(String::from);
        assert_eq!((made, list()), (7, [newest, others.to_vec()].concat()));
        // One that runs stays, however long that is.
        let later = now + Duration::from_hours(24 * 99);
        tidy(&dir, None, later);
        assert_eq!(list(), ["a-b-f1-9.img", "a-f2-3.img", "mine.txt"]);
        drop((held, running));
        tidy(&dir, None, later);
        assert_eq!(list(), ["mine.txt"]);
        fs::remove_dir_all(dir).unwrap();
    }
}
