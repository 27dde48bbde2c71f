//! What build scripts need that run cargo themselves.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

/// The only target there is.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The outer build's target directory, one for all its profiles and features: what ends up in guests does not depend on them.
pub fn shared(out: &Path) -> &Path {
    // `OUT_DIR` is TARGET/PROFILE/build/PACKAGE/out.
    out.ancestors().find(|a| a.ends_with("build")).and_then(|build| build.parent()?.parent()).unwrap_or(out)
}

/// Takes the outer cargo's and the outer user's settings out of a child's environment.
pub fn clean(command: &mut Command) {
    let keep =
        ["CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_TERM_COLOR", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "RUSTC_BOOTSTRAP"];
    let ours = |name: &str| {
        ["CARGO", "RUST", "DEP_"].iter().any(|p| name.starts_with(p))
            || ["MAKEFLAGS", "MFLAGS", "TARGET", "HOST", "NUM_JOBS", "OUT_DIR", "PROFILE", "OPT_LEVEL", "DEBUG"]
                .contains(&name)
    };
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|n| ours(n) && !keep.contains(&n)) {
            command.env_remove(name);
        }
    }
}

/// The linker and objcopy that come with rustc.
pub struct Toolchain {
    bin: PathBuf,
    lib: OsString,
}

impl Toolchain {
    /// Asks rustc.
    pub fn find() -> Toolchain {
        let rustc = env::var_os("RUSTC").unwrap();
        let output = Command::new(rustc).args(["--print", "sysroot"]).output().expect("rustc runs");
        let sysroot = PathBuf::from(String::from_utf8(output.stdout).expect("the sysroot is UTF-8").trim());
        Toolchain { bin: sysroot.join("lib/rustlib").join(TARGET).join("bin"), lib: sysroot.join("lib").into() }
    }

    /// The linker.
    pub fn lld(&self) -> Command {
        self.tool("gcc-ld/ld.lld")
    }

    /// `objcopy`.
    pub fn objcopy(&self) -> Command {
        self.tool("rust-objcopy")
    }

    fn tool(&self, name: &str) -> Command {
        let path = self.bin.join(name);
        assert!(path.exists(), "the Rust toolchain has no {name}; install one with rustup (stable, {TARGET})");
        let mut command = Command::new(path);
        command.env("LD_LIBRARY_PATH", &self.lib);
        command
    }
}

/// Runs a command to its end; the build fails with its words if it does.
pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{:?} does not start: {e}", command.get_program()));
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?} failed:\n{talk}", command.get_program());
}
