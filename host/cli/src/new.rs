//! `donjon new`.

use std::{fs, io, io::Write as _, path::Path, process::Command};

use crate::{
    args::{NewArgs, Template},
    failure::{Failure, code},
};

/// The files of a template, with `{{name}}` for the package's name.
const STD: [(&str, &str); 4] = [
    ("Cargo.toml", include_str!("../templates/std/Cargo.toml.in")),
    ("Donjon.toml", include_str!("../templates/std/Donjon.toml")),
    ("src/main.rs", include_str!("../templates/std/main.rs.in")),
    (".gitignore", "/target\n*.img\n*.img.debug\n"),
];
const AXUM: [(&str, &str); 5] = [
    ("Cargo.toml", include_str!("../templates/axum/Cargo.toml.in")),
    ("Donjon.toml", include_str!("../templates/axum/Donjon.toml")),
    ("src/main.rs", include_str!("../templates/axum/main.rs.in")),
    ("static/index.html", include_str!("../templates/axum/index.html.in")),
    (".gitignore", "/target\n*.img\n*.img.debug\n"),
];

/// Which `cargo new` refuses, too.
const KEYWORDS: &[&str] = &[
    "Self", "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn",
    "else", "enum", "extern", "false", "final", "fn", "for", "if", "impl", "in", "let", "loop", "macro", "match",
    "mod", "move", "mut", "override", "priv", "pub", "ref", "return", "self", "static", "struct", "super", "trait",
    "true", "try", "type", "typeof", "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
];

pub fn new(args: &NewArgs) -> Result<u8, Failure> {
    let name = args.path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if let Err(why) = check(name) {
        let hint = "a package's name is letters, digits, `-` and `_`, and begins with a letter".to_owned();
        return Err(Failure::new(code::USAGE, format!("`{name}` cannot be the name of a package: {why}"), hint));
    }
    if args.path.exists() {
        let hint = "take another name, or write a Donjon.toml into it and `donjon build` it".to_owned();
        return Err(Failure::new(code::USAGE, format!("{} exists already", args.path.display()), hint));
    }
    let files: &[(&str, &str)] = match args.template {
        Template::Std => &STD,
        Template::Axum => &AXUM,
    };
    for (path, text) in files {
        write(&args.path.join(path), &text.replace("{{name}}", name)).map_err(|e| {
            Failure::new(code::OS, format!("cannot write {}: {e}", args.path.join(path).display()), None)
        })?;
    }
    stand_alone(&args.path).map_err(|e| {
        Failure::new(code::OS, format!("cannot write {}: {e}", args.path.join("Cargo.toml").display()), None)
    })?;
    let dir = args.path.display();
    donjon_monitor::say!(
        "donjon: made {dir}; next: `donjon run {dir} -p 8080:8080`, then `curl http://127.0.0.1:8080/`"
    );
    Ok(0)
}

/// Below a workspace that does not have the project as a member, cargo refuses it: it is made a workspace of its own then.
fn stand_alone(project: &Path) -> io::Result<()> {
    let around = project.canonicalize()?;
    if !around.ancestors().skip(1).any(|dir| dir.join("Cargo.toml").is_file()) {
        return Ok(());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let locate = Command::new(cargo).args(["locate-project", "--workspace"]).current_dir(project).output();
    // Without cargo nobody can say.
    if locate.is_ok_and(|o| !o.status.success()) {
        let mut manifest = fs::File::options().append(true).open(project.join("Cargo.toml"))?;
        manifest.write_all(b"\n# Not a member of the workspace around it.\n[workspace]\n")?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(path, text)
}

fn check(name: &str) -> Result<(), &'static str> {
    let ok = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    match name {
        "" => Err("it is empty"),
        "test" | "core" | "std" | "alloc" | "proc_macro" => Err("Rust has a crate of that name"),
        "build" | "deps" | "examples" | "incremental" => Err("cargo has a directory of that name beside programs"),
        _ if KEYWORDS.contains(&name) => Err("it is a keyword of Rust"),
        _ if !name.starts_with(|c: char| c.is_ascii_alphabetic()) => Err("it does not begin with a letter"),
        _ if !name.chars().all(ok) => Err("it has other characters"),
        _ => Ok(()),
    }
}
