//! `donjon build`: what it does with a project, and where it puts what it makes.

use std::fs;
use std::os::unix::{
    fs::{MetadataExt as _, chown, symlink},
    net::UnixListener,
};
use std::path::Path;

use donjon_tests::{Certificate, donjon_command, is_root, target_dir};

use crate::bad_input::{donjon, expect, scratch_crate};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_image_is_put_where_a_file_can_be() {
    let dir = scratch_crate("outputs", "");
    // It does not compile: what is refused is refused before.
    fs::write(dir.join("src/main.rs"), "fn main() { x }\n").unwrap();
    let socket = dir.join("socket");
    _ = fs::remove_file(&socket);
    let _listens = UnixListener::bind(&socket).unwrap();
    for link in ["link", "other.img.debug"] {
        _ = fs::remove_file(dir.join(link));
        symlink("socket", dir.join(link)).unwrap();
    }
    for (output, why) in [
        ("socket", "socket is not a regular"),
        ("link", "link is not a regular"),
        ("other.img", "other.img.debug is not a regular"),
        ("src", "src is a directory"),
    ] {
        let output = text(&dir).to_owned() + "/" + output;
        expect(&donjon(&["build", text(&dir), "-o", &output]), 2, &[why, "hint"]);
        expect(&donjon(&["build", "--web", text(&dir), "-o", &output]), 2, &[why, "hint"]);
    }
    expect(&donjon(&["build", text(&dir), "-o", "/dev/donjon-none"]), 2, &["/dev/donjon-none is not a regular"]);
}

#[test]
fn locked_holds_for_all_that_cargo_does() {
    let dir = scratch_crate("no-lock", "");
    let lock = dir.join("Cargo.lock");
    _ = fs::remove_file(&lock);
    expect(&donjon(&["build", "--locked", text(&dir)]), 65, &["--locked"]);
    assert!(!lock.exists());
}

#[test]
fn what_a_build_script_makes_is_packed() {
    let dir = scratch_crate("build-script", "files = [\"made\", \"dir\"]\n");
    _ = fs::remove_dir_all(dir.join("dir"));
    _ = fs::remove_file(dir.join("made"));
    fs::create_dir(dir.join("dir")).unwrap();
    // Another text each time: cargo runs it again.
    let script = format!(
        "fn main() {{ std::fs::write(\"made\", \"x\").unwrap(); std::fs::write(\"dir/more\", \"{}\").unwrap(); }}\n",
        std::process::id()
    );
    fs::write(dir.join("build.rs"), script).unwrap();
    let image = dir.join("made.img");
    expect(&donjon(&["build", text(&dir), "-o", text(&image)]), 0, &[]);
    let output = donjon(&["inspect", "--json", text(&image)]);
    let about = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(about.contains("made") && about.contains("dir/more"), "{about}");
}

#[test]
fn a_program_of_which_no_link_is_known_is_linked_again() {
    let dir = scratch_crate("no-record", "");
    let target = target_dir().join("scratch/no-record-target");
    let build = || {
        let output = donjon_command().env("CARGO_TARGET_DIR", &target).args(["build", text(&dir)]).output().unwrap();
        expect(&output, 0, &[]);
        fs::read(target.join("donjon/no-record.img")).unwrap()
    };
    let first = build();
    let state = target.join("donjon/.donjon");
    fs::remove_dir_all(&state).unwrap();
    assert!(build() == first, "the same image");
    let records = fs::read_dir(state.join("links"))
        .map_or(0, |list| list.flatten().filter(|e| e.path().join("link.json").exists()).count());
    assert_eq!(records, 1);
}

#[test]
fn a_site_is_packed_without_its_own_image() {
    let dir = target_dir().join("scratch/self-site");
    _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("index.html"), "hello\n").unwrap();
    let build =
        |more: &[&str]| donjon_command().current_dir(&dir).args(["build", "--web", "."]).args(more).output().unwrap();
    expect(&build(&[]), 0, &["1 file,"]);
    let first = fs::read(dir.join("self-site.img")).unwrap();
    expect(&build(&[]), 0, &["1 file,"]);
    assert!(fs::read(dir.join("self-site.img")).unwrap() == first, "the same image");
    // One with the key in it may not be there at all.
    let pair = Certificate::make(dir.parent().unwrap(), "self.example");
    let embedded = build(&["--tls", text(&pair.cert), text(&pair.key), "--embed-key"]);
    expect(&embedded, 65, &["self-site.img is in the directory"]);
    let elsewhere = target_dir().join("scratch/new-directory/self-site.img");
    _ = fs::remove_dir_all(elsewhere.parent().unwrap());
    expect(&build(&["-o", text(&elsewhere)]), 0, &["3 files,"]);
}

#[test]
fn an_image_that_somebody_else_owns_is_written_anew() {
    let dir = target_dir().join("scratch/owned-site");
    _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("index.html"), "hello\n").unwrap();
    let image = dir.join("owned.img");
    let build = || expect(&donjon(&["build", "--web", text(&dir), "-o", text(&image)]), 0, &[]);
    build();
    let before = fs::metadata(&image).unwrap();
    build();
    assert_eq!(fs::metadata(&image).unwrap().ino(), before.ino(), "what is there is taken");
    if !is_root() {
        return; // nobody else can give a file away
    }
    chown(&image, Some(before.uid() + 1), None).unwrap();
    build();
    let after = fs::metadata(&image).unwrap();
    assert_eq!(after.uid(), before.uid());
    assert_ne!(after.ino(), before.ino());
}

#[test]
fn a_folder_has_few_images_in_the_cache() {
    let base = target_dir().join("scratch/small-cache");
    _ = fs::remove_dir_all(&base);
    let (cache, site) = (base.join("cache"), base.join("site"));
    fs::create_dir_all(&site).unwrap();
    fs::write(site.join("index.html"), "hello\n").unwrap();
    for n in 0..6 {
        // It makes its image, and then does not start it.
        let (header, secret) = (format!("X-N: {n}"), format!("none={}/index.html", text(&site)));
        let mut serve = donjon_command();
        serve.args(["serve", text(&site), "--header", &header, "--secret", &secret]);
        expect(&serve.env("XDG_CACHE_HOME", &cache).output().unwrap(), 2, &["does not ask for a secret"]);
    }
    let count = |end: &str| {
        let list = fs::read_dir(cache.join("donjon/web")).unwrap();
        list.filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().ends_with(end)).count()
    };
    assert_eq!((count(".img"), count(".img.debug")), (4, 4));
}
