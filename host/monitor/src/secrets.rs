//! Secrets on their way into a guest.
//!
//! Under the process engine they lie in memory of their own (a memfd that only monitor and guest map), which is wiped when the guest has ended; they
//! never touch the monitor's heap. QEMU gets copies in memory, of which the monitor keeps none.

#![expect(unsafe_code, reason = "maps the region")]
// UNSAFETY: a fresh shared mapping of a descriptor that nobody else has, turned into a slice while no guest runs.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use donjon_abi::secrets::{NAME_MAX, REGION_MAX, encode, is_name, region_len};
use donjon_image::Manifest;
use rustix::fs::ftruncate;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::error::Error;
use crate::memfd;
use crate::options::{OptionError, RunOptions};

/// A secret that is handed to the guest: it finds it as the read-only file `/run/secrets/NAME`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Secret {
    /// Its name, as the image declares it.
    pub name: String,
    /// The host's file that contains it.
    pub file: PathBuf,
}

impl FromStr for Secret {
    type Err = OptionError;

    /// `NAME=FILE`.
    fn from_str(s: &str) -> Result<Self, OptionError> {
        let parts = s.split_once('=').filter(|(name, file)| is_name(name.as_bytes()) && !file.is_empty());
        let (name, file) =
            parts.ok_or_else(|| OptionError::new("a secret", s, "NAME=FILE, the name as in the image's manifest"))?;
        Ok(Secret { name: name.into(), file: file.into() })
    }
}

/// Checks that exactly what the image declares is handed over. Returns it in the order of the names.
pub(crate) fn check<'a>(manifest: &Manifest, options: &'a RunOptions) -> Result<Vec<&'a Secret>, Error> {
    let usage = |what: String, hint| Err(Error::Usage { what, hint });
    let mut given: Vec<&Secret> = options.secrets.iter().collect();
    given.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(two) = given.windows(2).find(|w| w[0].name == w[1].name) {
        return usage(format!("the secret `{}` is given twice", two[0].name), "give each --secret once");
    }
    if let Some(other) = given.iter().find(|s| !manifest.secrets.contains(&s.name)) {
        let list = if manifest.secrets.is_empty() { "none".into() } else { manifest.secrets.join(", ") };
        let what = format!("the image does not ask for a secret `{}`; it asks for: {list}", other.name);
        return usage(what, "an image declares its secrets: `secrets` in Donjon.toml, or --tls");
    }
    if let Some(missing) = manifest.secrets.iter().find(|n| !given.iter().any(|s| s.name == **n)) {
        let what = format!("the image needs the secret `{missing}`: --secret {missing}=FILE");
        return usage(what, "the file's content becomes /run/secrets/NAME of the guest; it is not kept anywhere else");
    }
    Ok(given)
}

fn open(secret: &Secret) -> Result<File, Error> {
    let open = || {
        // A pipe would have us wait for whoever writes to it.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&secret.file)?;
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
    };
    open().map_err(|e| unreadable(&secret.file, &e))
}

fn unreadable(file: &Path, e: &io::Error) -> Error {
    Error::Usage {
        what: format!("cannot read the secret {}: {e}", file.display()),
        hint: "the file must be readable for whoever starts the guest",
    }
}

/// Copies in memory for QEMU, which may not open the files themselves: it is nobody, and jailed.
pub(crate) fn copies<'a>(secrets: &[&'a Secret]) -> Result<Vec<(&'a str, OwnedFd)>, Error> {
    let copy = |s: &&'a Secret| {
        let mut file = open(s)?;
        let mut copy = memfd::create("donjon-secret").map_err(Error::host("cannot copy a secret"))?;
        io::copy(&mut file, &mut copy).map_err(|e| unreadable(&s.file, &e))?;
        Ok((s.name.as_str(), copy.into()))
    };
    secrets.iter().map(copy).collect()
}

/// The secrets as QEMU's arguments. The shim takes them from there, under any QEMU.
pub(crate) fn fw_cfg(copies: &[(&str, OwnedFd)]) -> Vec<String> {
    let prefix = donjon_abi::secrets::FW_CFG_PREFIX;
    let one = |(name, fd): &(&str, OwnedFd)| {
        ["-fw_cfg".into(), format!("name={prefix}{name},file=/proc/self/fd/{}", fd.as_raw_fd())]
    };
    copies.iter().flat_map(one).collect()
}

/// The region for the guest, in memory that monitor and guest share.
#[derive(Debug)]
pub(crate) struct Region {
    fd: OwnedFd,
    map: *mut u8,
    len: usize,
}

impl Region {
    /// Reads the files into a new region; `None` if there are none.
    pub fn new(secrets: &[&Secret]) -> Result<Option<Region>, Error> {
        let mut files = Vec::new();
        for s in secrets {
            let file = open(s)?;
            let len = file.metadata().map_err(|e| unreadable(&s.file, &e))?.len();
            files.push((file, len as usize));
        }
        let list: Vec<(&[u8], usize)> =
            secrets.iter().zip(&files).map(|(s, (_, len))| (s.name.as_bytes(), *len)).collect();
        let Some(len) = region_len(&list) else {
            let what = format!("the secrets are too large: at most {REGION_MAX} bytes in all, names of {NAME_MAX}");
            return Err(Error::Usage { what, hint: "a secret is a key or a password; content belongs into `files`" });
        };
        if len == 0 {
            return Ok(None);
        }
        let mut region = Region::map(len).map_err(Error::host("cannot make memory for secrets"))?;
        let filled = encode(&list, region.bytes(), |i, place| {
            let (file, _) = &mut files[i];
            file.read_exact(place).map_err(|e| unreadable(&secrets[i].file, &e))
        });
        filled.map(|()| Some(region))
    }

    fn map(len: usize) -> rustix::io::Result<Region> {
        let fd = OwnedFd::from(memfd::create("donjon-secrets")?);
        ftruncate(&fd, len as u64)?;
        // SAFETY: 1. a new mapping at an address that the kernel chooses, 2. it ends in `drop` only.
        let map = unsafe {
            mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd.as_fd(), 0)
        }?;
        let region = Region { fd, map: map.cast(), len };
        // SAFETY: changes what a core dump contains, not the memory.
        unsafe { madvise(map, len, Advice::LinuxDontDump) }?;
        Ok(region)
    }

    /// Only before the guest starts and after it has ended.
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: 1. the mapping is `len` bytes long and lives as long as `self`, 2. the descriptor's only other mapping is the guest's, which reads
        // it and does not exist yet or any more.
        unsafe { std::slice::from_raw_parts_mut(self.map, self.len) }
    }

    /// What the child maps.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.bytes().fill(0);
        // SAFETY: the address is not used any more. Not optimised away: the memory is shared with a descriptor, and what was stored is
        // visible to the kernel at the call.
        let _ = unsafe { munmap(self.map.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, file: &Path) -> Secret {
        Secret { name: name.into(), file: file.into() }
    }

    #[test]
    fn exactly_what_is_declared_is_handed_over() {
        let manifest = Manifest { secrets: vec!["a".into(), "b".into()], ..Manifest::default() };
        let given = |names: &[&str]| RunOptions {
            secrets: names.iter().map(|n| secret(n, Path::new("f"))).collect(),
            ..RunOptions::default()
        };
        let problem = |names: &[&str]| check(&manifest, &given(names)).unwrap_err().to_string();
        assert_eq!(problem(&["a"]), "the image needs the secret `b`: --secret b=FILE");
        assert!(problem(&["a", "b", "c"]).contains("does not ask for a secret `c`; it asks for: a, b"));
        assert!(problem(&["b", "a", "b"]).contains("twice"));
        let options = given(&["b", "a"]);
        let names: Vec<&str> = check(&manifest, &options).unwrap().iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn the_region_is_wiped() {
        let file = std::env::temp_dir().join(format!("donjon-secret-{}", std::process::id()));
        std::fs::write(&file, "hunter2").unwrap();
        let s = secret("db", &file);
        let region = Region::new(&[&s]).unwrap().unwrap();
        let copy = File::from(region.fd.try_clone().unwrap());
        let read = || {
            let mut all = vec![0; 4096];
            let n = std::os::unix::fs::FileExt::read_at(&copy, &mut all, 0).unwrap();
            all.truncate(n);
            all
        };
        let bundle =
            donjon_abi::bundle::Bundle::parse(&read()).unwrap().lookup("run/secrets/db").unwrap().data.to_vec();
        assert_eq!(bundle, b"hunter2");
        drop(region);
        assert!(read().iter().all(|b| *b == 0) && !read().is_empty());
        assert!(Region::new(&[]).unwrap().is_none());
        std::fs::write(&file, vec![1; REGION_MAX]).unwrap();
        assert!(Region::new(&[&s]).unwrap_err().to_string().contains("too large"));
        std::fs::remove_file(&file).unwrap();
        assert!(Region::new(&[&s]).unwrap_err().to_string().contains("cannot read the secret"));
    }

    #[test]
    fn nobody_waits_for_who_writes_to_a_pipe() {
        let pipe = std::env::temp_dir().join(format!("donjon-secret-pipe-{}", std::process::id()));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let s = secret("db", &pipe);
        let refused = [Region::new(&[&s]).unwrap_err(), copies(&[&s]).unwrap_err()];
        std::fs::remove_file(&pipe).unwrap();
        assert!(refused.iter().all(|e| e.to_string().ends_with("it is not a regular file")), "{refused:?}");
    }

    #[test]
    fn secrets_are_parsed_and_copied_for_qemu() {
        assert_eq!("a=b=c".parse(), Ok(secret("a", Path::new("b=c"))));
        for bad in ["", "a", "a=", "=b", "a/b=c"] {
            assert!(bad.parse::<Secret>().is_err(), "{bad}");
        }
        let file = std::env::temp_dir().join(format!("donjon,secret-{}", std::process::id()));
        std::fs::write(&file, "x").unwrap();
        let key = secret("k", &file);
        let copies = copies(&[&key]).unwrap();
        let args = fw_cfg(&copies);
        assert!(args[1].starts_with("name=opt/donjon/secret/k,file=/proc/self/fd/"), "{args:?}");
        // No comma in the path could end the argument early; the copy is the content.
        assert_eq!(std::fs::read(args[1].rsplit_once("file=").unwrap().1).unwrap(), b"x");
        std::fs::remove_file(file).unwrap();
    }
}
