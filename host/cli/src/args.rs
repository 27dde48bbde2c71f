//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use donjon_monitor::{Machine, NetMode, Publish};

const EXIT_CODES: &str = "\
Exit codes:
  donjon run ends with the guest's own exit code. Otherwise:
    1   the project does not compile, or a test failed
    2   the command line makes no sense
   65   an image is damaged, a program does not link, or Donjon.toml is wrong
   66   a file is missing
   69   this host lacks something that is needed (a tool, an engine)
   70   the guest crashed without an exit code of its own
   71   the host's system refused something (a port in use, a TAP)
  130, 143  ended by Ctrl-C or SIGTERM";

const EXAMPLES: &str = "\
Examples:
  donjon new hello --template axum    make a project
  donjon run hello -p 8080:8080       build it and run it
  curl http://127.0.0.1:8080/         use it";

/// Turns a Rust web program into one sealed machine image, and runs it.
#[derive(Debug, Parser)]
#[command(name = "donjon", version, max_term_width = 100)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    New(NewArgs),
    Build(BuildArgs),
    Run(RunArgs),
    Test(TestArgs),
    Inspect(InspectArgs),
}

/// Make a new project.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  donjon new hello                    std only, a thread per connection
  donjon new hello --template axum    axum on tokio")]
pub struct NewArgs {
    /// The directory to make; its last part is the name of the package.
    pub path: PathBuf,
    /// What to start from.
    #[arg(long, short, value_enum, default_value_t = Template::Std)]
    pub template: Template,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Template {
    /// The standard library only.
    Std,
    /// axum on tokio's multi-threaded runtime.
    Axum,
}

/// Build a cargo project into an image.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  donjon build                        the project here, into target/donjon/NAME.img
  donjon build hello -o hello.img     another project, another place
  donjon build --features tls --json  features as with cargo; the result as JSON")]
pub struct BuildArgs {
    /// The project's directory.
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Where to put the image [default: target/donjon/NAME.img].
    #[arg(long, short, value_name = "IMAGE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub compile: CompileArgs,
    /// Which of the package's programs.
    #[arg(long, value_name = "NAME")]
    pub bin: Option<String>,
    /// Compile for speed rather than for size, whatever Donjon.toml says.
    #[arg(long)]
    pub speed: bool,
    /// Print what was made as JSON.
    #[arg(long)]
    pub json: bool,
    /// Link although symbols are missing (calling one crashes the guest).
    #[arg(long, hide = true)]
    pub allow_undefined: bool,
}

/// What goes to cargo as it is.
#[derive(Clone, Debug, Default, Args)]
pub struct CompileArgs {
    /// Features of the package, as with cargo.
    #[arg(long, short = 'F', value_name = "LIST")]
    pub features: Vec<String>,
    /// All features of the package.
    #[arg(long)]
    pub all_features: bool,
    /// Without the package's default features.
    #[arg(long)]
    pub no_default_features: bool,
    /// Do not touch the network.
    #[arg(long)]
    pub offline: bool,
    /// Cargo.lock must not change.
    #[arg(long)]
    pub locked: bool,
}

impl CompileArgs {
    /// As arguments for cargo.
    pub fn cargo(&self) -> Vec<String> {
        let mut out: Vec<String> = self.features.iter().map(|f| format!("--features={f}")).collect();
        let flags = [
            (self.all_features, "--all-features"),
            (self.no_default_features, "--no-default-features"),
            (self.offline, "--offline"),
            (self.locked, "--locked"),
        ];
        out.extend(flags.iter().filter(|(on, _)| *on).map(|(_, flag)| (*flag).to_owned()));
        out
    }
}

/// Run an image, or a project (which is built first).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  donjon run hello.img -p 8080:80              port 80 of the guest is 127.0.0.1:8080 here
  donjon run . -p 0.0.0.0:53:53/udp            the project here; UDP; on all addresses
  donjon run hello.img -e RUST_LOG=info -- -v  environment and arguments
  donjon run hello.img --engine qemu           as a virtual machine
  donjon run hello.img --net tap:tap0,ip=10.0.0.2/24,gw=10.0.0.1")]
pub struct RunArgs {
    /// An image, or a project's directory.
    #[arg(value_name = "IMAGE|DIR")]
    pub image: PathBuf,
    /// Publish a port of the guest: [ADDR:]HOST:GUEST[/udp]. May be given several times.
    #[arg(long, short, value_name = "PORTS")]
    pub publish: Vec<Publish>,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// A variable of the guest's environment. May be given several times.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<String>,
    /// Let the guest connect to anything, whatever its manifest says.
    #[arg(long)]
    pub egress_any: bool,
    /// Say what is being done.
    #[arg(long, short)]
    pub verbose: bool,
    /// End when this process, which has started us, does.
    #[arg(long, hide = true, value_name = "PID")]
    pub child_of: Option<i32>,
    /// Arguments for the guest, in place of those in its manifest.
    #[arg(last = true)]
    pub args: Vec<String>,
}

/// Which engine, and with what.
#[derive(Clone, Debug, Args)]
pub struct EngineArgs {
    /// Who runs the guest.
    #[arg(long, value_enum, default_value_t = EngineName::Auto)]
    pub engine: EngineName,
    /// QEMU's machine type: microvm or q35.
    #[arg(long, value_name = "TYPE", default_value = "microvm")]
    pub machine: Machine,
    /// Another argument for QEMU. May be given several times.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub qemu_arg: Vec<String>,
    /// Memory of the guest, such as 64M [default: what the image says].
    #[arg(long, short, value_name = "SIZE", value_parser = donjon_image::config::parse_size)]
    pub memory: Option<u64>,
    /// The network: user, none, or tap:NAME[,ip=ADDR/LEN][,gw=ADDR][,dns=ADDR][,mac=MAC].
    #[arg(long, value_name = "NET", default_value = "user")]
    pub net: NetMode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    /// The best one that works here.
    Auto,
    /// A sandboxed process: no rights, no QEMU, no KVM needed.
    Process,
    /// A virtual machine in QEMU.
    Qemu,
}

/// Run a crate's tests as images.
///
/// Works like `cargo test` for any crate: each test program becomes an image and runs as a guest; its output and its
/// verdict are passed on. Documentation tests are left out.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  donjon test                                 all tests of the crate here
  donjon test tokio --test tcp_echo           one file of tests
  donjon test --no-fail-fast --jobs 2 -- io:: only tests with io:: in their names
  donjon test --engine qemu --timeout 120     as virtual machines")]
pub struct TestArgs {
    /// The crate's directory.
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Only this file of integration tests. May be given several times.
    #[arg(long, value_name = "NAME")]
    pub test: Vec<String>,
    /// Only the library's unit tests.
    #[arg(long)]
    pub lib: bool,
    /// Only the programs' unit tests.
    #[arg(long)]
    pub bins: bool,
    #[command(flatten)]
    pub compile: CompileArgs,
    /// Compile with optimisation.
    #[arg(long)]
    pub release: bool,
    /// Make the images but do not run them.
    #[arg(long)]
    pub no_run: bool,
    /// Go on after a test program has failed.
    #[arg(long)]
    pub no_fail_fast: bool,
    /// How many test programs run at the same time.
    #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,
    /// Seconds after which a test program is ended and has failed.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// A variable of the guest's environment. May be given several times.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<String>,
    /// Print one line of JSON for each test program, and its output on standard error.
    #[arg(long)]
    pub json: bool,
    /// Link although symbols are missing (calling one crashes the guest).
    #[arg(long, hide = true)]
    pub allow_undefined: bool,
    /// Arguments for the test programs: a filter, --ignored, --test-threads=1 and so on.
    #[arg(last = true)]
    pub args: Vec<String>,
}

/// Show what is in an image and what it may do.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  donjon inspect hello.img            for people
  donjon inspect hello.img --json     for programs
  donjon inspect hello.img --crates   which crate fills how many bytes")]
pub struct InspectArgs {
    /// The image.
    pub image: PathBuf,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
    /// Which crate fills how many bytes (from IMAGE.debug).
    #[arg(long)]
    pub crates: bool,
}

fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.into()),
        _ => Err("expected NAME=VALUE".into()),
    }
}
