//! The command's own work: new projects, inspection, and `donjon test`.

use donjon_tests::{Engine, Guest, donjon_command, example, target_dir};

use crate::bad_input::{donjon, scratch_crate};

crate::under_engines! {
    a_crates_own_tests: ProcessUser QemuMicrovm;
}

fn a_crates_own_tests(engine: Engine) {
    let dir = scratch_crate(&format!("own-tests-{}", if engine.is_qemu() { "qemu" } else { "process" }), "");
    let tests = "#[test]\nfn good() { println!(\"in a guest\"); }\n#[test]\n#[ignore]\nfn later() {}\n";
    let run = |more: &[&str]| {
        let engine = if engine.is_qemu() { "qemu" } else { "process" };
        let args = ["test", dir.to_str().unwrap(), "--engine", engine];
        donjon(&[&args, more].concat())
    };
    std::fs::create_dir_all(dir.join("tests")).unwrap();
    std::fs::write(dir.join("tests/some.rs"), tests).unwrap();
    let output = run(&[]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("test good ... ok") && text.contains("1 passed; 0 failed; 1 ignored"), "{text}");

    // A test that fails, one that panics across threads, and one that ends the guest.
    for (name, body, seen) in
        [("wrong", "assert_eq!(1, 2)", "test wrong ... FAILED"), ("gone", "std::process::abort()", "")]
    {
        std::fs::write(dir.join("tests/some.rs"), format!("{tests}#[test]\nfn {name}() {{ {body}; }}\n")).unwrap();
        let output = run(&["--test", "some"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // As `cargo test`.
        assert!(output.status.code() == Some(101) && text.contains(seen), "{name}: {:?} {text}", output.status);
    }
    std::fs::write(dir.join("tests/some.rs"), "#[test]\nfn wrong() -> u8 { \"text\" }\n").unwrap();
    assert_eq!(run(&["--test", "some"]).status.code(), Some(101), "what does not compile");
    std::fs::write(dir.join("tests/some.rs"), format!("{tests}#[test]\nfn wrong() {{ assert_eq!(1, 2); }}\n")).unwrap();
    let output = run(&["--test", "some", "--", "good"]);
    assert!(output.status.success(), "a filter that leaves the failing test out");
}

#[test]
fn a_new_project_builds_and_answers() {
    for template in ["std", "axum"] {
        let dir = target_dir().join("scratch");
        std::fs::create_dir_all(&dir).unwrap();
        let name = format!("new-{template}");
        let project = dir.join(&name);
        let _ = std::fs::remove_dir_all(&project);
        let output = donjon_command().current_dir(&dir).args(["new", &name, "--template", template]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let image = donjon_tests::image(&project);
        let guest = Guest::builder(&image, Engine::ProcessUser).port(8080).start_http("/");
        drop(guest);
        // Twice into the same place is an error, not an overwrite.
        let output = donjon_command().current_dir(&dir).args(["new", &name]).output().unwrap();
        assert!(!output.status.success());
    }
}

#[test]
fn inspect_lists_what_is_inside() {
    let image = example("hello-axum");
    let output = donjon(&["inspect", image.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("hello-axum"), "{text}");
    let output = donjon(&["inspect", image.to_str().unwrap(), "--json"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.trim_start().starts_with('{'), "{text}");
}

#[test]
fn inspect_shows_where_an_image_may_go() {
    let egress = "egress = [\"10.1.0.0/16:443/tcp\", \"192.0.2.7\", \"[2001:db8::]/32:53/udp\"]\n";
    for (name, manifest, shown) in [
        ("egress-some", egress, &["10.1.0.0/16:443/tcp", "192.0.2.7/32", "[2001:db8::]/32:53/udp"][..]),
        ("egress-any", "egress = [\"any\"]\n", &["any"]),
        ("egress-none", "", &[]),
    ] {
        let image = donjon_tests::image(&scratch_crate(name, manifest));
        let output = donjon(&["inspect", image.to_str().unwrap(), "--json"]);
        let about = String::from_utf8_lossy(&output.stdout).into_owned();
        let listed =
            about.lines().skip_while(|l| !l.contains("\"egress\": [")).take_while(|l| !l.trim().starts_with(']'));
        let found: Vec<&str> = match about.contains("\"egress\": []") {
            true => vec![],
            false => listed.skip(1).filter_map(|l| l.split('"').nth(1)).collect(),
        };
        assert_eq!(found, shown, "{name}: {about}");
        let output = donjon(&["inspect", image.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find(|l| l.starts_with("may reach")).unwrap_or_else(|| panic!("{text}"));
        let all = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
        assert_eq!(line.split_once("reach").map(|(_, rest)| rest.trim()), Some(&*all), "{name}");
    }
}
