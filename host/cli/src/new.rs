//! `donjon new`.

use std::{fs, io, path::Path};

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
    let dir = args.path.display();
    donjon_monitor::say!(
        "donjon: made {dir}; next: `donjon run {dir} -p 8080:8080`, then `curl http://127.0.0.1:8080/`"
    );
    Ok(0)
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
        _ if !name.starts_with(|c: char| c.is_ascii_alphabetic()) => Err("it does not begin with a letter"),
        _ if !name.chars().all(ok) => Err("it has other characters"),
        _ => Ok(()),
    }
}
