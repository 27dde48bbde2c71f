//! Files that are memory only.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

/// An empty one, which may be sealed. Nobody can execute it as a program, so that hosts that forbid those (`vm.memfd_noexec=2`) allow it.
pub(crate) fn create(name: &str) -> rustix::io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => memfd_create(name, flags),
        other => other,
    };
    fd.map(File::from)
}

/// One with these bytes, which nobody can change any more.
pub(crate) fn sealed(name: &str, bytes: &mut impl Read) -> io::Result<OwnedFd> {
    let mut file = create(name)?;
    io::copy(bytes, &mut file)?;
    seal(file)
}

/// Nobody can change it any more.
pub(crate) fn seal(file: File) -> io::Result<OwnedFd> {
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
}
