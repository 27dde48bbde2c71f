//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use donjon_image::{STOP, config::Optimize, project::Options};
use donjon_monitor::{Machine, NetMode, Publish, Secret};

use crate::ui;

const EXIT_CODES: &str = "\
Exit codes:
  donjon run ends with the guest's own exit code. Otherwise:
    1   the project does not compile
  101   donjon test: a test failed, or the project does not compile (as cargo test says)
    2   the command line makes no sense
   65   an image is damaged, a program does not link, or Donjon.toml or an option of a
        web site is wrong
   66   a file is missing
   69   this host lacks something that is needed (a tool, an engine)
   70   the guest crashed without an exit code of its own
   71   the host's system refused something (a port in use, a TAP)
  143   asked to stop by Ctrl-C, SIGTERM or SIGHUP, and without a handler for it
  129, 130, 143  ended by SIGHUP, Ctrl-C or SIGTERM when it did not stop, or at the
                 second one";

const EXAMPLES: &str = "\
Examples:
  donjon new hello --template axum    make a project
  donjon run hello -p 8080:8080       build it and run it
  curl http://127.0.0.1:8080/         use it
  donjon serve ./public -p 8080:80    serve a directory: no project, no compiler";

/// Turns a Rust web program into one sealed machine image, and runs it.
#[derive(Debug, Parser)]
#[command(name = "donjon", version, max_term_width = 100)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

impl Command {
    /// What the command line says. Ends the process where that makes no sense, or is a question that clap answers.
    pub fn parse() -> Command {
        match Self::run_alone(std::env::args_os()) {
            Some(run) => Command::Run(run),
            None => Cli::parse().command,
        }
    }

    /// `donjon run` without the other commands' options, which take time to build at every start of a guest. `None` for other commands, and where there is something to
    /// say, which needs the whole.
    fn run_alone(words: impl Iterator<Item = OsString>) -> Option<RunArgs> {
        let mut words = words.skip(1).peekable();
        if words.peek()? != "run" {
            return None;
        }
        let matches = RunArgs::augment_args(clap::Command::new("run")).try_get_matches_from(words).ok()?;
        RunArgs::from_arg_matches(&matches).ok()
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    New(NewArgs),
    Build(BuildArgs),
    Run(RunArgs),
    Serve(ServeArgs),
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

/// Build a cargo project, or a directory of web content, into an image.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  donjon build                        the project here, into target/donjon/NAME.img
  donjon build hello -o hello.img     another project, another place
  donjon build --features tls --json  features as with cargo; the result as JSON
  donjon build --web ./public -o site.img              a directory and the stock web server; no compiler
  donjon build --web ./public --tls cert.pem key.pem   with HTTPS; the key stays outside of the image")]
pub struct BuildArgs {
    /// The project's directory; with --web, the directory of the content or one with a Donjon.toml that has a [web] table [default: .].
    pub dir: Option<PathBuf>,
    /// Pack a directory of web content together with the stock web server, instead of compiling a project.
    #[arg(long, conflicts_with_all = ["features", "all_features", "no_default_features", "offline", "locked", "bin", "speed"])]
    pub web: bool,
    /// Where to put the image [default: target/donjon/NAME.img; with --web: NAME.img].
    #[arg(long, short, value_name = "IMAGE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub program: ProgramArgs,
    /// Print what was made as JSON.
    #[arg(long)]
    pub json: bool,
    /// Link although symbols are missing (calling one crashes the guest).
    #[arg(long, hide = true)]
    pub allow_undefined: bool,
    #[command(flatten)]
    pub site: SiteArgs,
}

/// How a project becomes a program.
#[derive(Clone, Debug, Default, Args)]
pub struct ProgramArgs {
    #[command(flatten)]
    pub compile: CompileArgs,
    /// Which of the package's programs.
    #[arg(long, value_name = "NAME")]
    pub bin: Option<String>,
    /// Compile for speed rather than for size, whatever Donjon.toml says.
    #[arg(long)]
    pub speed: bool,
    /// As it always is.
    #[arg(long, hide = true)]
    pub release: bool,
    /// Compress the program in the image, or with --compress=false do not, whatever Donjon.toml says: half the size as a file, unpacked into memory at every start
    /// [default: for web sites only].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub compress: Option<bool>,
}

impl ProgramArgs {
    /// Whether one of them was given.
    pub fn any(&self) -> bool {
        !self.compile.cargo().is_empty() || self.bin.is_some() || self.speed || self.release || self.compress.is_some()
    }

    /// As options for a build, the others as they are by default.
    pub fn options(&self) -> Options {
        Options {
            bin: self.bin.clone(),
            optimize: self.speed.then_some(Optimize::Speed),
            compress: self.compress,
            cargo: self.compile.cargo(),
            plain: !ui::colour(),
            ..Options::default()
        }
    }
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
  donjon run site.img -p 8443:443 --secret tls-key=key.pem    with what must not be in the image
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
    /// Hand the guest a secret that its image asks for: it becomes /run/secrets/NAME. May be given several times.
    #[arg(long, value_name = "NAME=FILE")]
    pub secret: Vec<Secret>,
    /// Let the guest listen on any port, whatever its manifest says.
    #[arg(long)]
    pub listen_any: bool,
    /// Let the guest connect to anything but this host's own services, whatever its manifest says.
    #[arg(long)]
    pub egress_any: bool,
    /// TCP connections that the guest may open in a second, whatever its manifest says; 0 is no limit.
    #[arg(long, value_name = "N")]
    pub limit_connections: Option<u32>,
    /// Bytes that the guest may send in a second, such as 10M, whatever its manifest says; 0 is no limit.
    #[arg(long, value_name = "SIZE", value_parser = donjon_image::config::parse_size)]
    pub limit_send: Option<u64>,
    /// How long the guest may take to end after Ctrl-C or SIGTERM, in seconds, before it is ended [default: what the image says].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(STOP))]
    pub stop_timeout: Option<u64>,
    #[command(flatten)]
    pub program: ProgramArgs,
    /// Print how guest and monitor are jailed here, and end before the guest starts.
    #[arg(long)]
    pub explain_jail: bool,
    /// With --explain-jail: as JSON.
    #[arg(long, requires = "explain_jail")]
    pub json: bool,
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
    /// Another argument for QEMU, which may use the files that it names. May be given several times.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub qemu_arg: Vec<String>,
    /// Run QEMU without its jail, where the arguments for it need more than the files that they name.
    #[arg(long)]
    pub qemu_unconfined: bool,
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

/// Serve a directory from a sealed web server.
///
/// Packs the directory and the stock web server into an image, with nothing in it that the options do not need, and runs it. No compiler
/// is needed. Every option can also stand in the [web] table of a Donjon.toml; docs/web.md goes through them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  donjon serve ./public                        http://127.0.0.1:8080/
  donjon serve ./public -p 0.0.0.0:80:80       to everybody
  donjon serve ./public --tls cert.pem key.pem --redirect --redirect-port 8443
  donjon serve ./public --spa /index.html --proxy /api=10.0.2.2:3000    with a backend on this host
  donjon serve ./public --cache '*.css=max-age=3600' --header 'X-Frame-Options: DENY' --log")]
pub struct ServeArgs {
    /// The directory of the content, or one with a Donjon.toml that has a [web] table [default: the one here].
    pub dir: Option<PathBuf>,
    /// Publish a port of the guest: [ADDR:]HOST:GUEST [default: 8080:80, and 8443:443 with --tls]. May be given several times.
    #[arg(long, short, value_name = "PORTS")]
    pub publish: Vec<Publish>,
    /// How long the server may take to end after Ctrl-C or SIGTERM, in seconds, before it is ended [default: --drain-seconds and 2 more].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(STOP))]
    pub stop_timeout: Option<u64>,
    /// Hand a secret over, in place of the file that the options name. May be given several times.
    #[arg(long, value_name = "NAME=FILE")]
    pub secret: Vec<Secret>,
    #[command(flatten)]
    pub site: SiteArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Compress the server in the image, or with --compress=false do not [default: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub compress: Option<bool>,
    /// Say what is being done.
    #[arg(long, short)]
    pub verbose: bool,
    /// Print what was made as one line of JSON before it runs.
    #[arg(long)]
    pub json: bool,
}

/// What a site does, on top of the `[web]` table of `Donjon.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Web site")]
pub struct SiteArgs {
    /// HTTPS with this certificate and key (PEM). Several are chosen by the server names in them. The key is not put into the
    /// image: it is handed over at every start.
    #[arg(long, num_args = 2, value_names = ["CERT", "KEY"], action = ArgAction::Append)]
    pub tls: Vec<PathBuf>,
    /// Put the private keys into the image. ANYBODY WHO HAS THE IMAGE THEN HAS THE KEYS, and can pose as the server.
    #[arg(long, requires = "tls")]
    pub embed_key: bool,
    /// Answer plain HTTP with a redirect to HTTPS.
    #[arg(long)]
    pub redirect: bool,
    /// The port that clients know for HTTPS, if it is not 443.
    #[arg(long, value_name = "PORT")]
    pub redirect_port: Option<u16>,
    /// Tell browsers to use HTTPS only, for this many seconds [without a value: a year].
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "31536000")]
    pub hsts: Option<u32>,
    /// Port inside the guest for plain HTTP; 0 is none [default: 80].
    #[arg(long, value_name = "PORT")]
    pub http: Option<u16>,
    /// Port inside the guest for HTTPS [default: 443].
    #[arg(long, value_name = "PORT")]
    pub https: Option<u16>,
    /// Send a header, such as 'X-Frame-Options: DENY', or '*.html=X-Frame-Options: DENY' for some paths.
    #[arg(long, value_name = "[PATTERN=]NAME: VALUE")]
    pub header: Vec<String>,
    /// Cache-Control for some paths, such as '*.css=max-age=3600'.
    #[arg(long, value_name = "PATTERN=VALUE", value_parser = pair)]
    pub cache: Vec<(String, String)>,
    /// The page for what is not there, such as /404.html.
    #[arg(long, value_name = "PATH")]
    pub not_found: Option<String>,
    /// The page for every path that is not there: a single-page application, such as /index.html.
    #[arg(long, value_name = "PATH")]
    pub spa: Option<String>,
    /// List directories that have no index.html.
    #[arg(long)]
    pub listing: bool,
    /// Ask for a password, for some paths such as '/admin/*=alice:pw.txt'. Its first line is the password; the image has a derived key only.
    #[arg(long, value_name = "[PATTERN=]USER:FILE")]
    pub auth: Vec<String>,
    /// Serve another directory under this name; '*' is for all other names.
    #[arg(long, value_name = "NAME=DIR", value_parser = pair)]
    pub host: Vec<(String, String)>,
    /// Forward a path to an upstream, such as /api=10.0.0.5:8080. Services of this host are at 10.0.2.2.
    #[arg(long, value_name = "PATH=ADDR:PORT", value_parser = pair)]
    pub proxy: Vec<(String, String)>,
    /// Look the names of upstreams up now: the image may then connect to the addresses that were found, instead of to that port of any address.
    #[arg(long, requires = "proxy")]
    pub pin: bool,
    /// Believe X-Forwarded-For and X-Forwarded-Proto of proxies in this network, such as 10.0.0.0/8.
    #[arg(long, value_name = "NETWORK")]
    pub trusted_proxy: Vec<String>,
    /// Access log on standard output, one line of JSON for each request.
    #[arg(long)]
    pub log: bool,
    /// Port inside the guest for Prometheus metrics.
    #[arg(long, value_name = "PORT")]
    pub metrics: Option<u16>,
    /// Most open connections [default: 10000].
    #[arg(long, value_name = "N")]
    pub connections: Option<u32>,
    /// Most open connections of one address, or of one /64 with IPv6; more are refused [default: no bound].
    #[arg(long, value_name = "N")]
    pub connections_per_address: Option<u32>,
    /// Largest request line and headers, bytes [default: 16384].
    #[arg(long, value_name = "BYTES")]
    pub header_bytes: Option<u32>,
    /// Longest time for request line and headers [default: 10].
    #[arg(long, value_name = "SECONDS")]
    pub header_seconds: Option<u32>,
    /// Largest request body, bytes [default: 16777216].
    #[arg(long, value_name = "BYTES")]
    pub body_bytes: Option<u64>,
    /// Longest pause within a transfer [default: 30].
    #[arg(long, value_name = "SECONDS")]
    pub stall_seconds: Option<u32>,
    /// Longest pause between two requests of a connection [default: 75].
    #[arg(long, value_name = "SECONDS")]
    pub idle_seconds: Option<u32>,
    /// Longest wait for an upstream's answer, and for more of it [default: 60].
    #[arg(long, value_name = "SECONDS")]
    pub upstream_seconds: Option<u32>,
    /// Longest time for requests in progress when the server is stopped [default: 10].
    #[arg(long, value_name = "SECONDS")]
    pub drain_seconds: Option<u32>,
}

/// Run a crate's tests as images.
///
/// Works like `cargo test` for any crate: each test program becomes an image and runs as a guest; its output and its
/// verdict are passed on. Documentation tests are left out.
#[derive(Debug, Args)]
#[command(mut_arg("net", |net| net.help("The network: user or none")))]
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

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.into(), value.into())),
        _ => Err("expected two parts with = between them".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_alone_is_as_among_all_commands() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        for line in [
            "donjon run a.img",
            "donjon run dir -p 8080:80 -p 127.0.0.1:1:2/udp -e A=b --verbose -- run --help",
            "donjon run --engine qemu --machine q35 --memory 32M --explain-jail --json a.img",
            "donjon run dir --bin b -F x --no-default-features --offline --locked --speed --release --compress=false",
            "donjon run a.img --net tap:tap0,ip=10.0.0.2/24,gw=10.0.0.1 --secret k=f --limit-send 10M",
        ] {
            let alone = Command::run_alone(words(line).into_iter()).map(Command::Run);
            let among_all = Cli::try_parse_from(words(line)).unwrap().command;
            assert_eq!(format!("{alone:?}"), format!("{:?}", Some(among_all)), "{line}");
        }
        for line in [
            "donjon",
            "donjon --help",
            "donjon new run",
            "donjon run",
            "donjon run --help",
            "donjon run -V",
            "donjon run a.img --json",
            "donjon run a.img -p x",
            "donjon run a.img b.img",
        ] {
            assert!(Command::run_alone(words(line).into_iter()).is_none(), "{line}");
        }
    }
}
