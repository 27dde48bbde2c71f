//! Where `donjon serve` keeps what it makes.

use std::hash::{BuildHasher as _, RandomState};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::{env, fs};

use rustix::fs::{Access, access};
use rustix::process::geteuid;

use crate::failure::{Failure, code};

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
}
