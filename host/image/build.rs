//! Builds what goes into every image: the guest object (prelinked) and the ring-0 shim (linked), with a nested cargo.
//!
//! Nothing of the outer build's settings may leak in: the guest has its own flags, profile and target directory, so that
//! the same sources and toolchain give the same bytes whatever the outer build is (debug, test, clippy).

// Shared with the build script of donjon-variants.
#[path = "build/nested.rs"]
mod nested;

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use nested::{TARGET, Toolchain, clean, run, shared};
use object::{Object as _, ObjectSymbol as _, SymbolFlags, elf};

/// What the packer looks up besides the C names.
const ENTRIES: [&str; 3] = ["_start", "donjon_upcall", "donjon_fault"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rustc-check-cfg=cfg(donjon_guest)");
    if env::var_os("CARGO_FEATURE_GUEST").is_none() {
        return;
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../..").canonicalize().unwrap();
    for path in ["abi", "net", "guest", "Cargo.lock", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    let toolchain = Toolchain::find();
    guest_object(&root, &out, &toolchain);
    shim(&root, &out, &toolchain);
}

/// `guest.o`: one relocatable object that defines the C names and nothing else that another object can see. Functions
/// stay in sections of their own, so that the final link drops what the program does not use.
fn guest_object(root: &Path, out: &Path, toolchain: &Toolchain) {
    println!("cargo::rerun-if-env-changed=DONJON_DEV_OBJECT");
    let archive = env::var_os("DONJON_DEV_OBJECT").map(PathBuf::from).unwrap_or_else(|| {
        cargo_staticlib(
            root,
            out,
            "donjon-object",
            // The guest's own frames need no unwind tables: its panics abort, and the application's end at the door.
            &["-Crelocation-model=pic", "-Cforce-unwind-tables=no", "-Cpanic=abort"],
            &[("donjon-net", "2"), ("donjon-base", "2"), ("donjon-os", "\"z\""), ("donjon-libc", "\"z\"")],
        )
    });
    let (exports, prelinked, object) = (exports(&archive), out.join("prelinked.o"), out.join("guest.o"));
    for name in ENTRIES {
        if !exports.contains(name) {
            println!("cargo::warning=the guest object does not define `{name}` yet");
        }
    }
    let mut link = toolchain.lld();
    link.args(["-r", "--gc-sections", "--strip-debug", "-o"]).arg(&prelinked);
    exports.iter().for_each(|name| {
        link.args(["-u", name]);
    });
    run(link.arg(&archive));
    let keep = out.join("exports.txt");
    fs::write(&keep, exports.iter().map(|e| format!("{e}\n")).collect::<String>()).unwrap();
    let mut objcopy = toolchain.objcopy();
    // The names of local functions stay: crash reports and `donjon inspect --crates` use them; an image does not contain them.
    objcopy.arg(format!("--keep-global-symbols={}", keep.display()));
    run(objcopy
        .args(["--rename-section=.donjon_eh=.eh_frame", "--remove-section=.comment", "--remove-section=.llvmbc"])
        .arg(&prelinked)
        .arg(&object));
}

/// The names that the archive offers to C: every default-visible global that is not one of Rust's own.
fn exports(archive: &Path) -> BTreeSet<String> {
    let bytes = fs::read(archive).unwrap();
    let file = object::read::archive::ArchiveFile::parse(&*bytes).unwrap();
    let mut names = BTreeSet::new();
    for member in file.members() {
        let member = member.unwrap();
        let data = member.data(&*bytes).unwrap();
        if !data.starts_with(b"\x7fELF") {
            continue; // metadata
        }
        let elf = object::File::parse(data).unwrap();
        for symbol in elf.symbols().filter(|s| s.is_global() && !s.is_undefined()) {
            let SymbolFlags::Elf { st_other, .. } = symbol.flags() else { continue };
            let name = symbol.name().unwrap();
            let rust = ["_ZN", "_R", "__rust", "rust_", "anon."].iter().any(|p| name.starts_with(p));
            if st_other & 3 == elf::STV_DEFAULT && !rust {
                names.insert(name.to_owned());
            }
        }
    }
    names
}

/// `shim.elf`, empty as long as there is no linker script.
fn shim(root: &Path, out: &Path, toolchain: &Toolchain) {
    let script = root.join("guest/ring0/link.ld");
    let elf = out.join("shim.elf");
    if !script.exists() {
        println!("cargo::warning=no ring-0 shim yet: images will not boot under a hypervisor");
        return fs::write(elf, b"").unwrap();
    }
    let archive = cargo_staticlib(
        root,
        out,
        "donjon-ring0",
        &[
            "-Crelocation-model=static",
            "-Cforce-unwind-tables=no",
            "-Cpanic=abort",
            "-Cno-redzone=yes",
            "-Ctarget-feature=-mmx",
        ],
        &[],
    );
    let mut link = toolchain.lld();
    link.args(["-static", "--no-pie", "--gc-sections", "--build-id=none", "--strip-debug", "--icf=all", "-O2"]);
    link.args(["-z", "noexecstack", "-z", "max-page-size=4096", "-T"]).arg(script);
    run(link.arg("--whole-archive").arg(archive).arg("-o").arg(elf));
}

/// Builds `package` as a guest and returns its archive. All is optimised for size, what is in `levels` in its own way: the packet path for
/// speed (15 KB more of a compressed image), the door and the tables behind it at "z", which costs a tenth less of every image and no time that counts.
fn cargo_staticlib(root: &Path, out: &Path, package: &str, flags: &[&str], levels: &[(&str, &str)]) -> PathBuf {
    let target_dir = shared(out).join("donjon-guest");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap());
    clean(&mut cargo);
    let mut flags = flags.to_vec();
    flags.extend(["--cfg", "donjon_guest"]);
    // For benches that compare: leaves out what must be in every image. Nobody may get what comes out.
    println!("cargo::rerun-if-env-changed=DONJON_DEV_CFG");
    let development = env::var("DONJON_DEV_CFG").ok();
    if let Some(cfg) = &development {
        println!("cargo::warning=the guest object is built with --cfg {cfg}: for measurements only");
        flags.extend(["--cfg", cfg]);
    }
    // Paths of this machine have no place in an image.
    let home = env::var("CARGO_HOME").or_else(|_| env::var("HOME").map(|h| h + "/.cargo")).unwrap_or_default();
    let remap = [format!("--remap-path-prefix={}=donjon", root.display()), format!("--remap-path-prefix={home}=cargo")];
    flags.extend(remap.iter().map(String::as_str));
    cargo
        .current_dir(root)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args(["build", "--release", "--quiet", "--package", package, "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir);
    let all = ["lto=\"fat\"", "codegen-units=1", "panic=\"abort\"", "debug=false", "strip=\"none\"", "opt-level=\"s\""];
    for setting in all {
        cargo.arg("--config").arg(format!("profile.release.{setting}"));
    }
    for (package, level) in levels {
        cargo.arg("--config").arg(format!("profile.release.package.{package}.opt-level={level}"));
    }
    run(&mut cargo);
    target_dir.join(TARGET).join("release").join(format!("lib{}.a", package.replace('-', "_")))
}
