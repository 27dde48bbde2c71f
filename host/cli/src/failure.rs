//! What went wrong, what to do about it, and the exit code that says so.

use std::path::Path;

use donjon_image::{
    OpenError,
    bundle::BundleError,
    config::ConfigError,
    output::NotAFile,
    project::{self, BuildError},
};
use donjon_monitor::Error as RunError;

/// The exit codes of `donjon` (after BSD's sysexits).
pub mod code {
    /// The project does not compile.
    pub const FAILED: u8 = 1;
    /// `donjon test`: a test failed, or the project does not compile. Cargo's own, as `donjon test` stands where `cargo test` stood.
    pub const TEST_FAILED: u8 = 101;
    /// The command line makes no sense.
    pub const USAGE: u8 = 2;
    /// The input is damaged or wrong.
    pub const DATA: u8 = 65;
    /// A file is missing.
    pub const NO_INPUT: u8 = 66;
    /// This host lacks something.
    pub const UNAVAILABLE: u8 = 69;
    /// The host's system refused something.
    pub const OS: u8 = 71;
}

/// An error for the user.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub message: String,
    /// The next command, or what to change.
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(code: u8, message: impl std::fmt::Display, hint: impl Into<Option<String>>) -> Failure {
        Failure { code, message: message.to_string(), hint: hint.into() }
    }

    pub fn print(&self) {
        let (red, cyan, off) = if crate::ui::colour() { ("\x1b[1;31m", "\x1b[1;36m", "\x1b[0m") } else { ("", "", "") };
        donjon_monitor::say!("{red}error{off}: {}", self.message);
        if let Some(hint) = &self.hint {
            donjon_monitor::say!("{cyan}hint{off}: {hint}");
        }
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

impl From<BuildError> for Failure {
    fn from(e: BuildError) -> Failure {
        let text = e.to_string();
        match e {
            BuildError::NoProject(dir) => Failure::new(
                code::NO_INPUT,
                text,
                // `donjon new` makes its directory, and `cargo init` takes one that is there.
                if dir.is_dir() {
                    format!("`cargo init {}` makes a program there, `donjon new NAME` a project elsewhere", shown(&dir))
                } else {
                    format!("`donjon new {}` makes a project", shown(&dir))
                },
            ),
            BuildError::Compiler(..) | BuildError::Libgcc(..) => Failure::new(
                code::UNAVAILABLE,
                text,
                "a C compiler is needed, as for Rust itself: `apt-get install gcc`, or set CC".to_owned(),
            ),
            BuildError::Tool("donjon", _) => Failure::new(code::OS, text, None),
            BuildError::Tool(..) => Failure::new(
                code::UNAVAILABLE,
                text,
                "install Rust (rustup), and see that cargo is on the PATH".to_owned(),
            ),
            BuildError::Toolchain(lld) => {
                // A distribution's Rust has the target's library, but not this.
                let has_target = lld.ancestors().any(|d| d.ends_with(project::TARGET) && d.join("lib").is_dir());
                let hint = if has_target {
                    "this Rust comes without its linker: install Rust with rustup".into()
                } else {
                    format!("`rustup target add {}`", project::TARGET)
                };
                Failure::new(code::UNAVAILABLE, text, hint)
            }
            BuildError::Packages(..) => {
                Failure::new(code::USAGE, text, "name one of them: `donjon build DIR`".to_owned())
            }
            BuildError::Programs { ref programs, .. } if programs.is_empty() => Failure::new(
                code::DATA,
                text,
                "add a src/main.rs; `donjon test` runs the tests of a library".to_owned(),
            ),
            BuildError::Programs { .. } | BuildError::NoProgram { .. } => {
                Failure::new(code::USAGE, text, "name one with `--bin NAME`, or with `bin` in Donjon.toml".to_owned())
            }
            BuildError::Output(not_a_file) => not_a_file.into(),
            BuildError::Cargo => Failure::new(code::FAILED, text, None),
            BuildError::Link(d) => {
                let lines: String = project::explain(&d).iter().map(|l| format!("\n  {l}")).collect();
                let hint = "docs/compatibility.md lists what exists; `cargo tree -i CRATE` shows what brings a crate in, so that its feature can be left out";
                Failure::new(code::DATA, format!("{text}{lines}"), hint.to_owned())
            }
            BuildError::Config(ConfigError::Key { .. }) => {
                let keys = donjon_image::config::KEYS.join(", ");
                Failure::new(code::DATA, text, format!("the keys are {keys}"))
            }
            BuildError::Config(ConfigError::Value { key, .. }) => {
                let hint = format!("docs/getting-started.md shows what `{key}` takes");
                Failure::new(code::DATA, text, hint)
            }
            BuildError::Bundle(BundleError::Missing(_) | BundleError::NoMatch(_)) => Failure::new(
                code::NO_INPUT,
                text,
                "paths in `files` are relative to the directory of Donjon.toml".to_owned(),
            ),
            BuildError::Bundle(BundleError::Outside(_)) => {
                Failure::new(code::DATA, text, "copy the file into the project".to_owned())
            }
            BuildError::Bundle(BundleError::Changed(_)) => {
                Failure::new(code::DATA, text, "build it again when nobody writes there".to_owned())
            }
            BuildError::Bundle(BundleError::Io(..) | BundleError::Write(_)) | BuildError::Io(..) => {
                Failure::new(code::OS, text, None)
            }
            _ => Failure::new(code::DATA, text, None),
        }
    }
}

impl From<NotAFile> for Failure {
    fn from(e: NotAFile) -> Failure {
        Failure::new(code::USAGE, e, "name a file: `-o NAME.img`".to_owned())
    }
}

impl From<donjon_site::Error> for Failure {
    fn from(e: donjon_site::Error) -> Failure {
        use donjon_site::Error as E;
        let code = match &e {
            E::NoDirectory(_) => code::NO_INPUT,
            E::Io(_, cause) if cause.kind() == std::io::ErrorKind::NotFound => code::NO_INPUT,
            E::Io(..) => code::OS,
            _ => code::DATA,
        };
        Failure::new(code, &e, e.hint().map(String::from))
    }
}

impl From<OpenError> for Failure {
    fn from(e: OpenError) -> Failure {
        RunError::from(e).into()
    }
}

impl From<RunError> for Failure {
    fn from(e: RunError) -> Failure {
        Failure { code: e.exit_code(), message: e.to_string(), hint: e.hint() }
    }
}
