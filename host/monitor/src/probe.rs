//! Which engines can run here.

use std::path::PathBuf;

/// What [`probe`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Probe {
    /// The process engine.
    pub process: Fitness,
    /// QEMU without hardware help.
    pub qemu: Fitness,
}

/// Whether an engine can run here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fitness {
    /// It can.
    Fit,
    /// It cannot, for this reason.
    Unfit(String),
}

/// Looks which engines can run here.
pub fn probe() -> Probe {
    Probe {
        process: crate::process::unfit().map_or(Fitness::Fit, Fitness::Unfit),
        qemu: match find_program("qemu-system-x86_64") {
            Some(_) => Fitness::Fit,
            None => Fitness::Unfit("qemu-system-x86_64 is not installed".into()),
        },
    }
}

/// A program on the search path.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|p| {
        use std::os::unix::fs::PermissionsExt;
        p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    })
}
