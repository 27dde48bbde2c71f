//! Bad input is met with an error that says what is wrong and what to do, and with the documented exit code.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Output;

use donjon_tests::{donjon_command, example, target_dir, test_guest};

pub fn donjon(args: &[&str]) -> Output {
    donjon_command().args(args).output().unwrap()
}

/// Fails unless the command ended with this code and its errors contain all of these texts.
#[track_caller]
pub fn expect(output: &Output, code: i32, texts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for text in texts {
        assert!(stderr.contains(&text.to_lowercase()), "{text:?} is missing from: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// The image of `limits`, changed.
fn changed(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = std::fs::read(test_guest("limits")).unwrap();
    change(&mut bytes);
    let path = target_dir().join("images").join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn run(image: &Path) -> Output {
    donjon(&["run", image.to_str().unwrap(), "--", "exit"])
}

#[test]
fn corrupt_image() {
    let image = changed("corrupt.img", |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    expect(&run(&image), 65, &["corrupt.img"]);
    let output = donjon(&["run", image.to_str().unwrap(), "--engine", "qemu", "--", "exit"]);
    expect(&output, 65, &["corrupt.img"]);
}

#[test]
fn every_truncation_of_an_image() {
    let whole = std::fs::metadata(test_guest("limits")).unwrap().len() as usize;
    for len in [0, 1, 64, 4095, 4096, 4100, 8191, 8192, whole / 2, whole - 1] {
        let image = changed(&format!("truncated-{len}.img"), |bytes| bytes.truncate(len));
        expect(&run(&image), 65, &["truncated-"]);
    }
}

#[test]
fn image_of_another_version() {
    let image = changed("version.img", |bytes| bytes[4096 + 8] = 99);
    expect(&run(&image), 65, &["version", "99"]);
}

#[test]
fn not_an_image() {
    expect(&donjon(&["run", "/bin/ls"]), 65, &["/bin/ls"]);
    expect(&donjon(&["run", "/no/such/file.img"]), 66, &["/no/such/file.img"]);
}

#[test]
fn unknown_manifest_key() {
    let dir = scratch_crate("unknown-key", "nmae = \"x\"\n");
    let output = donjon(&["build", dir.to_str().unwrap()]);
    expect(&output, 65, &["Donjon.toml", "nmae", "did you mean `name`"]);
}

#[test]
fn missing_bundle_file() {
    let dir = scratch_crate("missing-file", "files = [\"no-such-file.txt\"]\n");
    let output = donjon(&["build", dir.to_str().unwrap()]);
    expect(&output, 66, &["no-such-file.txt"]);
}

#[test]
fn port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let image = example("hello-std");
    let output = donjon(&["run", image.to_str().unwrap(), "-p", &format!("127.0.0.1:{port}:8080")]);
    expect(&output, 71, &[&port, "in use"]);
}

#[test]
fn missing_symbol_is_named_with_who_wants_it() {
    let dir = scratch_crate("missing-symbol", "");
    std::fs::write(
        dir.join("src/main.rs"),
        "unsafe extern \"C\" { fn no_such_function_anywhere() -> i32; }\n\
         fn main() { println!(\"{}\", unsafe { no_such_function_anywhere() }); }\n",
    )
    .unwrap();
    let output = donjon(&["build", dir.to_str().unwrap()]);
    expect(&output, 65, &["no_such_function_anywhere", "main"]);
}

#[test]
fn a_program_that_does_not_compile_shows_the_compilers_words() {
    let dir = scratch_crate("does-not-compile", "");
    std::fs::write(dir.join("src/main.rs"), "fn main() { let x: u32 = \"text\"; }\n").unwrap();
    let output = donjon(&["build", dir.to_str().unwrap()]);
    expect(&output, 1, &["mismatched types"]);
}

#[test]
fn wrong_arguments() {
    assert_eq!(donjon(&["nonsense"]).status.code(), Some(2));
    assert_eq!(donjon(&["run"]).status.code(), Some(2));
    let image = test_guest("limits");
    let image = image.to_str().unwrap();
    assert_eq!(donjon(&["run", image, "-p", "nonsense"]).status.code(), Some(2));
    assert_eq!(donjon(&["run", image, "-m", "lots"]).status.code(), Some(2));
    assert_eq!(donjon(&["run", image, "--engine", "magic"]).status.code(), Some(2));
    let tap = donjon(&["run", image, "--net", "tap:donjon-none,ip=10.0.0.2/24"]);
    assert!(!tap.status.success(), "a TAP that does not exist");
}

/// A crate that says hello, with this Donjon.toml.
pub fn scratch_crate(name: &str, manifest: &str) -> PathBuf {
    let dir = target_dir().join("scratch").join(name);
    std::fs::create_dir_all(dir.join("src")).unwrap();
    std::fs::write(dir.join("src/main.rs"), "fn main() { println!(\"hello\"); }\n").unwrap();
    std::fs::write(
        dir.join("Cargo.toml"),
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n"),
    )
    .unwrap();
    std::fs::write(dir.join("Donjon.toml"), manifest).unwrap();
    dir
}
