//! Builds `apps/web` once for every set of its features, linked with the guest object and compressed.
//!
//! This program plays three parts. Cargo runs it as the build script; it then runs itself again with a clean environment, which builds
//! the variants as `donjon build` would; and rustc calls it as the linker while that goes on.
//!
//! Everything is kept in one directory for all profiles of the outer build, so that `cargo test` and `cargo clippy` find what `cargo build` has
//! made. A new guest object means linking again, not compiling again.

#[path = "../image/build/nested.rs"]
#[expect(dead_code, reason = "not all of it is needed here")]
mod nested;

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::Instant,
};

use donjon_image::project::{BuildError, Options, Project, explain};
use nested::{Toolchain, clean, run, shared};

/// The features of `apps/web` that a site may or may not need, sorted.
const FEATURES: [&str; 3] = ["auth", "proxy", "tls"];
/// The set of features that are built one after the other in the same place is told by this bit, so that two cores have about as much to do.
const LANE_BIT: usize = 0;
const LANES: usize = 2;

/// Names the only variants that are built, with a comma between them: for measurements. The command can then make no image with another.
const ONLY_VAR: &str = "DONJON_DEV_VARIANTS";
/// Names the directory for the results; its presence makes this program build them.
const STAGE_VAR: &str = "DONJON_VARIANTS_OUT";

fn main() -> ExitCode {
    if let Some(status) = donjon_image::linker::run_if_linker() {
        return status.into();
    }
    match env::var_os(STAGE_VAR) {
        None => script(),
        Some(out) => build_all(Path::new(&out)),
    }
    ExitCode::SUCCESS
}

/// The build script: has the variants built, and writes the table that the library includes.
fn script() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../..").canonicalize().unwrap();
    // The guest and the packer are a part of this program: cargo runs it again when they change.
    for path in
        ["apps/web/Cargo.toml", "apps/web/Cargo.lock", "apps/web/src", "apps/web-format", "host/variants/build.rs"]
    {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    println!("cargo::rerun-if-changed={}", root.join("host/image/build").display());
    println!("cargo::rerun-if-env-changed={ONLY_VAR}");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    let place = shared(&out).join("donjon-web");
    fs::create_dir_all(&place).unwrap();
    let mut again = Command::new(env::current_exe().unwrap());
    clean(&mut again);
    again.current_dir(root.join("apps/web")).env(STAGE_VAR, &place);
    // Of all that the outer cargo says, which tools it uses stays.
    for name in ["CARGO", "RUSTC"] {
        again.env(name, env::var_os(name).unwrap());
    }
    run(&mut again);
    let mut table = String::from("/// The features of the web server that a site may or may not need, sorted.\n");
    table += &format!("pub const FEATURES: [&str; {}] = {FEATURES:?};\n", FEATURES.len());
    table += &format!("static PROGRAMS: [Packed; {}] = [\n", 1 << FEATURES.len());
    for set in 0..1 << FEATURES.len() {
        if !wanted(set) {
            table += "    Packed { len: usize::MAX, bytes: &[] },\n";
            continue;
        }
        let (from, to) = (place.join(format!("{}.br", name(set))), out.join(format!("{}.br", name(set))));
        _ = fs::remove_file(&to);
        fs::copy(&from, &to).unwrap();
        let len = fs::metadata(place.join(format!("{}.elf", name(set)))).unwrap().len();
        table += &format!("    Packed {{ len: {len}, bytes: include_bytes!({to:?}) }},\n");
    }
    fs::write(out.join("table.rs"), table + "];\n").unwrap();
}

fn build_all(place: &Path) {
    // Another cargo (an editor's, say) may have started the same: the programs of a lane follow each other under one name.
    let lock = fs::File::create(place.join("lock")).unwrap();
    lock.lock().unwrap();
    if env::var_os(ONLY_VAR).is_none() && !place.join("tls.br").exists() {
        tell("in all its variants: takes some minutes, once");
    }
    thread::scope(|scope| {
        for lane in 0..LANES {
            scope.spawn(move || {
                let sets = (0..1usize << FEATURES.len()).filter(|set| set >> LANE_BIT & 1 == lane && wanted(*set));
                sets.for_each(|set| build_one(place, lane, set));
            });
        }
    });
}

fn build_one(place: &Path, lane: usize, set: usize) {
    let started = Instant::now();
    let cargo = vec![
        "--locked".into(),
        "--quiet".into(),
        "--no-default-features".into(),
        format!("--features={}", features(set)),
    ];
    let mut project = Project::load(Path::new("."), &cargo).unwrap_or_else(|e| panic!("apps/web: {e}"));
    project.target_dir = place.join(format!("lane-{lane}"));
    let options = Options { cargo, plain: true, ..Options::default() };
    let program = project.program(&options).unwrap_or_else(|e| {
        let why = if let BuildError::Link(d) = &e { explain(d).join("\n") } else { String::new() };
        panic!("apps/web with {}: {e}\n{why}", name(set))
    });
    // Names of functions stay, for crash reports and `donjon inspect --crates`; what debuggers want would be two thirds of it.
    let (part, elf) = (place.join(format!("{}.part", name(set))), place.join(format!("{}.elf", name(set))));
    let packed = elf.with_extension("br");
    run(Toolchain::find().objcopy().arg("--strip-debug").arg(&program.path).arg(&part));
    let bytes = fs::read(&part).unwrap();
    if !packed.exists() || fs::read(&elf).ok().as_ref() != Some(&bytes) {
        // Whole, or not at all: this may be killed, and a copy of the directory may share its files.
        let part = packed.with_extension("br.part");
        fs::write(&part, compress(&bytes)).unwrap();
        fs::rename(&part, &packed).unwrap();
        tell(&format!("{} ({:.0} s)", name(set), started.elapsed().as_secs_f64()));
    }
    // Last: what is compressed belongs to it.
    fs::rename(&part, &elf).unwrap();
}

fn compress(bytes: &[u8]) -> Vec<u8> {
    let params = brotli::enc::BrotliEncoderParams { quality: 9, lgwin: 22, ..Default::default() };
    let mut out = Vec::new();
    brotli::BrotliCompress(&mut &bytes[..], &mut out, &params).unwrap();
    out
}

fn features(set: usize) -> String {
    let on: Vec<&str> = (0..FEATURES.len()).filter(|i| set >> i & 1 == 1).map(|i| FEATURES[i]).collect();
    on.join(",")
}

fn wanted(set: usize) -> bool {
    env::var(ONLY_VAR).map_or(true, |only| only.split(',').any(|n| n == name(set)))
}

fn name(set: usize) -> String {
    match features(set) {
        none if none.is_empty() => "plain".into(),
        some => some.replace(',', "-"),
    }
}

/// Cargo shows nothing of what a build script says, and this one takes minutes the first time: tells a person at the terminal how far it is.
fn tell(text: &str) {
    if env::var_os("CI").is_none()
        && let Ok(mut terminal) = fs::OpenOptions::new().write(true).open("/dev/tty")
    {
        _ = write!(terminal, "\r\x1b[K   Web server {text}\n");
    }
}
