//! From a cargo project to images: runs cargo with this program as the linker, then packs what it made.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Deserialize;

use crate::{
    bundle::{BundleError, Layout, bundle},
    child::ends_with_us,
    config::{self, Config, ConfigError, Optimize},
    linker::{self, Diagnosis, Refreshed, Spec},
    output::{self, NotAFile, with_suffix},
    pack::{PackError, Parts, pack},
    scan::direct_system_calls,
    settings,
};

/// The only target there is.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The guest object: everything that a program finds in place of the C library.
pub const GUEST_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.o"));
/// The linked ring-0 shim.
pub const SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shim.elf"));

/// Why a project was not built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// There is no `Cargo.toml` there or above.
    #[error("{0} is not a cargo project: there is no Cargo.toml in it or above")]
    NoProject(PathBuf),
    /// A program that is needed does not start.
    #[error("`{0}` does not start: {1}")]
    Tool(&'static str, #[source] io::Error),
    /// `cargo metadata` failed; it has said why.
    #[error("cargo does not take the project")]
    Metadata,
    /// `cargo metadata` says what we do not understand.
    #[error("cargo describes the project in another way than expected: {0}")]
    Description(#[source] serde_json::Error),
    /// Not exactly one package.
    #[error("{0} is a workspace of several programs: {1}")]
    Packages(PathBuf, String),
    /// Not exactly one program in the package.
    #[error("package `{package}` has {}", if programs.is_empty() { "no program (a src/main.rs or [[bin]])".into() } else { format!("several programs: {}", programs.join(", ")) })]
    Programs {
        /// The package.
        package: String,
        /// Its programs.
        programs: Vec<String>,
    },
    /// No such program.
    #[error("package `{package}` has no program `{bin}`, only: {}", programs.join(", "))]
    NoProgram {
        /// The package.
        package: String,
        /// What was asked for.
        bin: String,
        /// Its programs.
        programs: Vec<String>,
    },
    /// cargo failed; it has said why.
    #[error("cargo could not build the project")]
    Cargo,
    /// The program does not link against the guest object.
    #[error("{} does not link", program_name(&.0.output))]
    Link(Box<Diagnosis>),
    /// A library that comes with the C compiler is missing.
    #[error("`{0}` does not know where {1} is")]
    Libgcc(String, &'static str),
    /// The C compiler does not start.
    #[error("`{0}` does not start: {1}")]
    Compiler(String, #[source] io::Error),
    /// The Rust toolchain lacks its linker or the target.
    #[error("the Rust toolchain has no {0}")]
    Toolchain(PathBuf),
    /// `Donjon.toml`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The packer.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// Where the image was to be put.
    #[error(transparent)]
    Output(#[from] NotAFile),
    /// cargo does not say which programs it has linked how.
    #[error("{0} was not linked by this program: remove {1}")]
    Unknown(PathBuf, PathBuf),
    /// A file could not be read or written.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

/// A package that can be built, with its `Donjon.toml`.
#[derive(Debug)]
pub struct Project {
    /// Name of the package.
    pub package: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Its programs.
    pub bins: Vec<String>,
    /// What cargo itself would run: `default-run`.
    default_run: Option<String>,
    /// Whether it has a build script, which may make files.
    build_script: bool,
    version: String,
    /// Its `Donjon.toml`.
    pub config: Config,
    /// A file that looks as if it was meant to be its `Donjon.toml`, if it has none.
    pub overlooked: Option<PathBuf>,
    /// Where we build, within cargo's target directory.
    pub target_dir: PathBuf,
    workspace: PathBuf,
    /// Directories of the sources of published crates.
    registries: BTreeSet<PathBuf>,
}

/// How to build.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which program; the only one if not given.
    pub bin: Option<String>,
    /// Overrides `Donjon.toml`.
    pub optimize: Option<Optimize>,
    /// Overrides `Donjon.toml`.
    pub compress: Option<bool>,
    /// More arguments for cargo.
    pub cargo: Vec<String>,
    /// Do not draw, do not colour.
    pub plain: bool,
    /// For work on the guest object: see [`Spec::allow_undefined`].
    pub allow_undefined: bool,
}

/// An image that was made.
#[derive(Clone, Debug)]
pub struct Built {
    /// Name of the program or test.
    pub name: String,
    /// The image.
    pub image: PathBuf,
    /// The linked program with its symbols, for debuggers.
    pub debug: PathBuf,
    /// Bytes in the image.
    pub bytes: u64,
    /// Functions that contain `syscall` instructions: calling them ends the guest.
    pub direct_system_calls: Vec<String>,
}

/// A program that cargo has made.
#[derive(Clone, Debug)]
pub struct Program {
    /// Name of the cargo target.
    pub name: String,
    /// The linked program.
    pub path: PathBuf,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
    workspace_root: PathBuf,
    workspace_members: Vec<String>,
    #[serde(default)]
    workspace_default_members: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    id: String,
    version: String,
    source: Option<String>,
    manifest_path: PathBuf,
    default_run: Option<String>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Target {
    fn is(&self, kind: &str) -> bool {
        self.kind.iter().any(|k| k == kind)
    }
}

impl Project {
    /// Finds the package in `given`; `cargo` are arguments as in [`Options::cargo`], of which those count that are about the network and the lock
    /// file.
    pub fn load(given: &Path, cargo: &[String]) -> Result<Project, BuildError> {
        let none = |_| BuildError::NoProject(given.into());
        let given_dir = given.canonicalize().map_err(none)?;
        // As cargo looks for it; but a file is no place to begin.
        let has_manifest = |dir: &&Path| dir.join("Cargo.toml").is_file();
        let dir = Some(&given_dir).filter(|d| d.is_dir()).and_then(|d| d.ancestors().find(has_manifest));
        let dir = dir.ok_or_else(|| BuildError::NoProject(given.into()))?.to_owned();
        let manifest = dir.join("Cargo.toml").canonicalize().map_err(none)?;
        // What it says goes to the user: it may be downloading.
        let mut metadata = Command::new(self::cargo());
        let output = ends_with_us(&mut metadata)
            .args(["metadata", "--format-version=1", "--filter-platform", TARGET, "--manifest-path"])
            .arg(&manifest)
            .args(cargo.iter().filter(|a| ["--locked", "--offline"].contains(&a.as_str())))
            .current_dir(&dir)
            .stderr(Stdio::inherit())
            .output()
            .map_err(|e| BuildError::Tool("cargo", e))?;
        if !output.status.success() {
            return Err(BuildError::Metadata);
        }
        let Metadata { mut packages, target_directory, workspace_root, workspace_members, workspace_default_members } =
            serde_json::from_slice(&output.stdout).map_err(BuildError::Description)?;
        let registries = packages.iter().filter(|p| p.source.as_ref().is_some_and(|s| s.starts_with("registry+")));
        let registries: BTreeSet<PathBuf> =
            registries.filter_map(|p| Some(p.manifest_path.parent()?.parent()?.to_owned())).collect();
        packages.retain(|p| workspace_members.contains(&p.id));
        let of_root = |p: &Package| p.manifest_path == workspace_root.join("Cargo.toml");
        let is_virtual = !packages.iter().any(of_root);
        let is_here = |p: &Package| p.manifest_path.canonicalize().is_ok_and(|m| m == manifest);
        if packages.iter().any(is_here) {
            packages.retain(is_here);
        } else {
            let runs = |p: &Package| p.targets.iter().any(|t| t.is("bin"));
            packages.retain(|p| workspace_default_members.contains(&p.id) && runs(p));
        }
        if packages.len() != 1 {
            let list: Vec<_> =
                packages.iter().filter_map(|p| p.manifest_path.parent()).map(|p| p.display().to_string()).collect();
            return Err(BuildError::Packages(given.into(), list.join(", ")));
        }
        let package = packages.remove(0);
        let dir = package.manifest_path.parent().map_or(dir, Path::to_owned);
        let others = [Some(dir.join("donjon.toml")), is_virtual.then(|| workspace_root.join(config::FILE))];
        let overlooked = others.into_iter().flatten().find(|p| !dir.join(config::FILE).exists() && p.exists());
        Ok(Project {
            config: Config::load(&dir)?,
            overlooked,
            package: package.name,
            dir,
            build_script: package.targets.iter().any(|t| t.is("custom-build")),
            bins: package.targets.into_iter().filter(|t| t.is("bin")).map(|t| t.name).collect(),
            default_run: package.default_run,
            version: package.version,
            target_dir: target_directory.join("donjon"),
            workspace: workspace_root,
            registries,
        })
    }

    /// Builds the package's program into an image at `out`, or at the default place.
    pub fn build(&self, options: &Options, out: Option<&Path>) -> Result<Built, BuildError> {
        let name = self.config.name.clone().map_or_else(|| self.choose(options.bin.as_deref()), Ok)?;
        let default = self.target_dir.join(format!("{name}.img"));
        let out = out.unwrap_or(&default);
        // What is wrong with these is better said before a long compilation.
        output::check(out)?;
        self.files_so_far(out)?;
        let program = self.program(options)?;
        self.write(&program, &self.bundle(out)?, options.compress, out)
    }

    /// Whether there is what `files` lists, as far as that can be known before a build script has run.
    fn files_so_far(&self, out: &Path) -> Result<(), BuildError> {
        match self.bundle(out) {
            Err(BundleError::Missing(_) | BundleError::NoMatch(_)) if self.build_script => Ok(()),
            other => other.map(drop).map_err(BuildError::from),
        }
    }

    /// What `files` lists, without what we make: nobody who lists the directory around it means that.
    fn bundle(&self, out: &Path) -> Result<Layout, BundleError> {
        let (ours, out) = (&self.target_dir, output::real(out));
        let made = |path: &Path| path == ours || Some(path) == ours.parent() || output::belongs_to(path, &out);
        bundle(&self.dir, &self.config.files, &made)
    }

    /// Builds the package's program, linked with the guest object but not packed.
    pub fn program(&self, options: &Options) -> Result<Program, BuildError> {
        let bin = self.choose(options.bin.as_deref())?;
        let mut args = vec!["build".into(), "--release".into(), "--bin".into(), bin.clone()];
        args.extend(self.profile(options.optimize.unwrap_or(self.config.optimize)));
        let programs = self.cargo(args, options, |t, test| !test && t.is("bin") && t.name == bin)?;
        programs.into_iter().next().ok_or(BuildError::Cargo)
    }

    /// Builds the package's tests, as `cargo test --no-run` would; `args` go to cargo.
    pub fn tests(&self, args: &[String], options: &Options) -> Result<Vec<Program>, BuildError> {
        let mut all = vec!["test".to_owned(), "--no-run".into()];
        all.extend(args.iter().cloned());
        let mut programs = self.cargo(all, options, |_, test| test)?;
        programs.sort_by(|a, b| a.name.cmp(&b.name)); // cargo tells them as they are done
        Ok(programs)
    }

    /// Makes the image of a program that cargo has made.
    pub fn pack(&self, program: &Program, out: &Path) -> Result<Built, BuildError> {
        self.write(program, &self.bundle(out)?, None, out)
    }

    fn write(
        &self,
        program: &Program,
        bundle: &Layout,
        compress: Option<bool>,
        out: &Path,
    ) -> Result<Built, BuildError> {
        let compress = compress.or(self.config.compress).unwrap_or(false);
        let io = |path: &Path| {
            let path = path.to_owned();
            move |e| BuildError::Io(path.clone(), e)
        };
        let elf = fs::read(&program.path).map_err(io(&program.path))?;
        let manifest = self.config.manifest(&program.name);
        let image = pack(Parts { program: &elf, manifest: &manifest, bundle, shim: SHIM, compress })?;
        if let Some(dir) = out.parent() {
            fs::create_dir_all(dir).map_err(io(dir))?;
        }
        output::replace(out, io(out), |file| image.write_to(file).map_err(BuildError::from))?;
        let debug = output::debug(out);
        _ = fs::remove_file(&debug);
        fs::hard_link(&program.path, &debug)
            .or_else(|_| fs::copy(&program.path, &debug).map(drop))
            .map_err(io(&debug))?;
        Ok(Built {
            name: program.name.clone(),
            image: out.into(),
            debug,
            bytes: image.len(),
            direct_system_calls: direct_system_calls(&elf).into_iter().collect(),
        })
    }

    /// The variables that cargo sets for a test that it runs, as far as they make sense in a guest.
    pub fn test_env(&self) -> Vec<String> {
        vec![
            "CARGO_MANIFEST_DIR=/".into(),
            format!("CARGO_PKG_NAME={}", self.package),
            format!("CARGO_PKG_VERSION={}", self.version),
        ]
    }

    fn choose(&self, asked: Option<&str>) -> Result<String, BuildError> {
        if let Some(bin) = asked.or(self.config.bin.as_deref()) {
            let bin = bin.to_owned();
            return match self.bins.contains(&bin) {
                true => Ok(bin),
                false => Err(BuildError::NoProgram { package: self.package.clone(), bin, programs: self.bins.clone() }),
            };
        }
        match (&self.default_run, self.bins.as_slice()) {
            (Some(bin), _) => Ok(bin.clone()),
            (None, [bin]) => Ok(bin.clone()),
            _ => Err(BuildError::Programs { package: self.package.clone(), programs: self.bins.clone() }),
        }
    }

    /// Settings of the release profile, where the project itself has none.
    fn profile(&self, optimize: Optimize) -> Vec<String> {
        let text = fs::read_to_string(self.workspace.join("Cargo.toml")).unwrap_or_default();
        let table: toml::Table = toml::from_str(&text).unwrap_or_default();
        let mut tables = settings::files(&self.dir);
        tables.push(table);
        let own =
            |key: &str| tables.iter().any(|t| t.get("profile").and_then(|p| p.get("release")?.get(key)).is_some());
        let level = match optimize {
            Optimize::Size => "\"s\"",
            Optimize::Speed => "3",
        };
        let mut out = Vec::new();
        for (key, value) in [("opt-level", level), ("lto", "\"fat\""), ("codegen-units", "1")] {
            let variable = format!("CARGO_PROFILE_RELEASE_{}", key.to_ascii_uppercase().replace('-', "_"));
            if !own(key) && env::var_os(variable).is_none() {
                out.extend(["--config".to_owned(), format!("profile.release.{key}={value}")]);
            }
        }
        out
    }

    /// Runs cargo with us as the linker; returns the programs that `wanted` picks, linked with the current guest object.
    fn cargo(
        &self,
        args: Vec<String>,
        options: &Options,
        wanted: impl Fn(&Target, bool) -> bool,
    ) -> Result<Vec<Program>, BuildError> {
        let spec = self.spec(options)?;
        let run = || {
            let programs = self.cargo_with(&spec, &args, options, &wanted)?;
            let mut unknown = Vec::new();
            for Program { path, .. } in &programs {
                let io = |e| BuildError::Io(path.clone(), e);
                match spec.refresh(path).map_err(io)?.map_err(|d| BuildError::Link(Box::new(d)))? {
                    Refreshed::Current => {}
                    Refreshed::Unknown => unknown.push(path.clone()),
                }
            }
            Ok((programs, unknown))
        };
        let known = |(programs, unknown): (_, Vec<PathBuf>)| match unknown.into_iter().next() {
            None => Ok(programs),
            Some(path) => Err(BuildError::Unknown(path, self.target_dir.clone())),
        };
        spec.forget();
        let result = run().and_then(|(programs, unknown)| {
            if unknown.is_empty() {
                return Ok(programs);
            }
            // With which guest object, nobody knows: cargo links what is not there.
            for path in &unknown {
                linker::discard(path).map_err(|e| BuildError::Io(path.clone(), e))?;
            }
            run().and_then(known)
        });
        spec.forget();
        result
    }

    fn cargo_with(
        &self,
        spec: &Spec,
        args: &[String],
        options: &Options,
        wanted: &impl Fn(&Target, bool) -> bool,
    ) -> Result<Vec<Program>, BuildError> {
        let spec_path = spec.save().map_err(|e| BuildError::Io(spec.state.clone(), e))?;
        let flags = self.flags(spec)?;
        let mut cargo = Command::new(cargo());
        ends_with_us(&mut cargo)
            .args(args)
            .args(["--target", TARGET, "--target-dir"])
            .arg(&self.target_dir)
            .args(&options.cargo);
        let format = if options.plain { "json" } else { "json-diagnostic-rendered-ansi" };
        cargo.arg("--message-format").arg(format).current_dir(&self.dir).env(linker::SPEC_VAR, &spec_path);
        if options.plain {
            cargo.args(["--color", "never"]);
        }
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        let mut child = cargo.stdout(Stdio::piped()).spawn().map_err(|e| BuildError::Tool("cargo", e))?;
        let mut programs = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let Ok(message) = serde_json::from_str::<Message>(&line) else { continue };
                match message {
                    // What the linker has to say is said better by our own diagnosis.
                    Message::CompilerMessage { message } if spec.diagnosis().is_none() || !message.is_link_error() => {
                        // Who reads it may have gone.
                        _ = io::stderr().write_all(message.rendered.unwrap_or_default().as_bytes());
                    }
                    Message::CompilerArtifact { target, executable: Some(path), profile }
                        if wanted(&target, profile.test) =>
                    {
                        programs.push(Program { name: target.name, path });
                    }
                    _ => {}
                }
            }
        }
        let status = child.wait().map_err(|e| BuildError::Tool("cargo", e))?;
        if let Some(diagnosis) = spec.diagnosis() {
            return Err(BuildError::Link(Box::new(diagnosis)));
        }
        if !status.success() {
            return Err(BuildError::Cargo);
        }
        Ok(programs)
    }

    /// The flags for rustc: the user's own, whichever way they are given, then ours.
    fn flags(&self, spec: &Spec) -> Result<Vec<String>, BuildError> {
        // By a name that stays: with another path of this program, cargo would compile everything anew.
        let ourselves = env::current_exe().map_err(|e| BuildError::Tool("donjon", e))?;
        let (link, part) = (spec.state.join("linker"), spec.state.join(format!("linker-{}", std::process::id())));
        if fs::read_link(&link).ok().as_ref() != Some(&ourselves) {
            std::os::unix::fs::symlink(&ourselves, &part)
                .and_then(|()| fs::rename(&part, &link))
                .map_err(|e| BuildError::Io(link.clone(), e))?;
        }
        let mut flags = settings::rustflags(&self.dir);
        flags.extend([
            format!("-Clinker={}", link.display()),
            "-Clinker-flavor=ld".into(),
            "-Ctarget-feature=+crt-static".into(),
            "-Crelocation-model=pic".into(),
            "--cfg=rustix_use_libc".into(),
        ]);
        // Messages of panics name source files: not where they are on this machine.
        flags.extend(self.registries.iter().map(|r| format!("--remap-path-prefix={}=", r.display())));
        Ok(flags)
    }

    fn spec(&self, options: &Options) -> Result<Spec, BuildError> {
        let output = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["--print", "sysroot"])
            .current_dir(&self.dir)
            .output()
            .map_err(|e| BuildError::Tool("rustc", e))?;
        let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let lld = sysroot.join("lib/rustlib").join(TARGET).join("bin/gcc-ld/ld.lld");
        if !lld.is_file() {
            return Err(BuildError::Toolchain(lld));
        }
        let state = self.target_dir.join(".donjon");
        let stamp = blake3::hash(GUEST_OBJECT).to_hex()[..16].to_owned();
        let object = state.join(format!("guest-{stamp}.o"));
        let io = |e| BuildError::Io(object.clone(), e);
        fs::create_dir_all(&state).map_err(|e| BuildError::Io(state.clone(), e))?;
        if fs::read(&object).ok().as_deref() != Some(GUEST_OBJECT) {
            // Another invocation may be linking with it.
            let part = with_suffix(&object, &format!(".{}", std::process::id()));
            fs::write(&part, GUEST_OBJECT).and_then(|()| fs::rename(&part, &object)).map_err(io)?;
        }
        let stamp = format!("{stamp}-{}", linker::REVISION);
        let invocation = std::process::id();
        Ok(Spec { lld, object, libgcc: libgcc()?, state, invocation, stamp, allow_undefined: options.allow_undefined })
    }
}

#[derive(Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
#[expect(clippy::enum_variant_names, reason = "cargo's own names")]
enum Message {
    CompilerMessage {
        message: Diagnostic,
    },
    CompilerArtifact {
        target: Target,
        executable: Option<PathBuf>,
        profile: Profile,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

#[derive(Deserialize)]
struct Diagnostic {
    rendered: Option<String>,
    message: String,
    level: String,
}

impl Diagnostic {
    fn is_link_error(&self) -> bool {
        self.message.starts_with("linking with ")
            || self.level == "error" && self.message.starts_with("aborting due to")
            || self.message.starts_with("linker stderr")
    }
}

fn cargo() -> std::ffi::OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The static libraries for unwinding and arithmetic that come with the C compiler.
fn libgcc() -> Result<Vec<PathBuf>, BuildError> {
    let cc = env::var("CC").unwrap_or_default();
    // It may have arguments, or be one of another program: `ccache gcc`.
    let mut words = cc.split_whitespace();
    let (program, arguments) = match Path::new(&cc).is_file() {
        true => (&*cc, vec![]),
        false => (words.next().unwrap_or("cc"), words.collect::<Vec<_>>()),
    };
    ["libgcc_eh.a", "libgcc.a"]
        .into_iter()
        .map(|name| {
            let output = Command::new(program)
                .args(&arguments)
                .arg(format!("-print-file-name={name}"))
                .output()
                .map_err(|e| BuildError::Compiler(program.into(), e))?;
            let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
            if path.is_absolute() && path.is_file() { Ok(path) } else { Err(BuildError::Libgcc(program.into(), name)) }
        })
        .collect()
}

/// The name of a program that cargo has made, without cargo's hash.
fn program_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match name.rsplit_once('-') {
        Some((name, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => name.to_owned(),
        _ => name.into_owned(),
    }
}

/// Symbols that a program wants and the guest object lacks, by what they are for.
pub fn advice(symbol: &str) -> Option<&'static str> {
    let known: [(&[&str], &str); 6] = [
        (
            &["fork", "vfork", "exec", "posix_spawn", "wait", "clone"],
            "an image has exactly one process: start threads instead",
        ),
        (
            &["dlopen", "dlsym", "dlclose", "dlerror", "dladdr"],
            "an image cannot load code at run time: link the library statically",
        ),
        (&["_Zn", "_Zd", "_ZSt", "__cxa", "__gxx", "_ZNSt", "_ZNKSt"], "the C++ runtime is not supported yet"),
        (&["shm_", "sem_open", "msg", "semget"], "there is no other process to share memory with: use threads"),
        (&["getpw", "getgr", "setuid", "setgid", "initgroups"], "an image has no users"),
        (
            &["SSL_", "X509_", "EVP_", "deflate", "inflate", "sqlite3_"],
            "a C library is not linked: use a crate feature such as `vendored` or `bundled`",
        ),
    ];
    let found = known.iter().find(|(prefixes, _)| prefixes.iter().any(|p| symbol.starts_with(p)));
    found.map(|(_, text)| *text)
}

/// Groups a diagnosis for people: one line per symbol, most wanted first.
pub fn explain(d: &Diagnosis) -> Vec<String> {
    let mut lines = Vec::new();
    let who = |list: &[String]| match list {
        [] => String::new(),
        [one] => format!(", wanted by {one}"),
        [one, two] => format!(", wanted by {one} and {two}"),
        [one, two, rest @ ..] => format!(", wanted by {one}, {two} and {} more", rest.len()),
    };
    let mut undefined: Vec<_> = d.undefined.iter().collect();
    undefined.sort_by_key(|(_, list)| std::cmp::Reverse(list.len()));
    for (symbol, list) in undefined {
        let advice = advice(symbol).map(|a| format!(": {a}")).unwrap_or_default();
        lines.push(format!("missing symbol `{symbol}`{}{advice}", who(list)));
    }
    for (symbol, list) in &d.duplicate {
        lines.push(format!("symbol `{symbol}` is defined twice: by {}", list.join(" and by ")));
    }
    for library in &d.libraries {
        lines.push(format!(
            "the library `{library}` is not there as a static archive (lib{library}.a): only directories that a build script names are looked at, \
             such as with `println!(\"cargo::rustc-link-search=native=/usr/lib/x86_64-linux-gnu\");` in build.rs"
        ));
    }
    if lines.is_empty() {
        lines.extend(d.text.lines().map(String::from));
    }
    lines
}

/// The sizes of a program's functions and data by crate, largest first, for the question what fills an image.
pub fn sizes_by_crate(elf: &[u8]) -> BTreeMap<String, u64> {
    use object::{Object as _, ObjectSymbol as _};
    let mut out = BTreeMap::new();
    let Ok(file) = object::File::parse(elf) else { return out };
    for symbol in file.symbols().filter(|s| s.is_definition() && s.size() > 0) {
        let name = symbol.name().unwrap_or_default();
        *out.entry(crate_of(name)).or_default() += symbol.size();
    }
    out
}

/// The crate in a mangled Rust name (legacy or v0), or "C".
fn crate_of(name: &str) -> String {
    let digits = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let ident = |s: &str| {
        let n = digits(s);
        let len: usize = s[..n].parse().ok()?;
        s.get(n..n + len).map(String::from)
    };
    if let Some(rest) = name.strip_prefix("_ZN") {
        let found = ident(rest).unwrap_or_default();
        // `<Type as Trait>`: the crate is that of the first path within, whose parts have two dots between them.
        let path = found.split_once("..").map(|(before, _)| before);
        let first = path.map_or(found.as_str(), |p| p.rsplit('$').next().unwrap_or_default());
        let first = first.trim_start_matches('_');
        return if first.is_empty() || first.contains('$') { "(other)".into() } else { first.into() };
    }
    if let Some(rest) = name.strip_prefix("_R") {
        // v0: the first crate root is `C` (with an optional `s…_` disambiguator), then the identifier.
        if let Some(at) = rest.find('C') {
            let rest = &rest[at + 1..];
            let rest = rest.strip_prefix('s').and_then(|r| r.split_once('_')).map_or(rest, |(_, r)| r);
            // Between the length and a name that begins like a number or with `_` there is one more `_`.
            let (length, name) = rest.split_at(digits(rest));
            let name = name.strip_prefix('_').unwrap_or(name);
            return ident(&format!("{length}{name}")).unwrap_or_else(|| "(other)".into());
        }
    }
    "C".into()
}

#[cfg(test)]
mod tests;
