use super::*;

#[test]
fn the_crate_is_in_the_name() {
    for (name, of) in [
        ("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE", "core"),
        ("_ZN66_$LT$h2..frame..Data$LT$T$GT$$u20$as$u20$core..fmt..Debug$GT$3fmt17hE", "h2"),
        ("_ZN52_$LT$T$u20$as$u20$alloc..string..ToString$GT$9to_stringE", "alloc"),
        ("_ZN51_$LT$$RF$mut$u20$hyper..Client$u20$as$u20$x..Y$GT$1zE", "hyper"),
        ("_ZN54_$LT$$u5b$T$u5d$$u20$as$u20$core..fmt..Debug$GT$3fmt17E", "core"),
        ("_ZN10_$LT$T$GT$3fooE", "(other)"),
        ("_RNvCs1234_7___rustc35___rust_no_alloc_shim_is_unstable_v2", "__rustc"),
        ("_RNvNtCs5678_5tokio7runtime4spawn", "tokio"),
        ("memcpy", "C"),
    ] {
        assert_eq!(crate_of(name), of, "{name}");
    }
}

/// `DONJON_DEV_CFG=donjon_soft_heap` is for a bench; its object says so.
#[test]
fn the_guest_object_has_the_hardened_allocator() {
    let mark: &[u8] = b"donjon_soft_heap";
    assert!(!GUEST_OBJECT.windows(mark.len()).any(|w| w == mark));
}

/// A member of a workspace in `root`.
fn member(root: &Path) -> Project {
    let dir = root.join("ws/member");
    _ = fs::remove_dir_all(root);
    fs::create_dir_all(dir.join(".cargo")).unwrap();
    fs::write(root.join("ws/Cargo.toml"), "").unwrap();
    Project {
        package: "member".into(),
        target_dir: dir.join("target/donjon"),
        dir,
        bins: vec![],
        default_run: None,
        build_script: false,
        version: "0.1.0".into(),
        config: Config::default(),
        overlooked: None,
        workspace: root.join("ws"),
        registries: BTreeSet::new(),
    }
}

#[test]
fn a_release_profile_of_ones_own_holds() {
    let root = env::temp_dir().join(format!("donjon-profile-{}", std::process::id()));
    let project = member(&root);
    let set = || {
        let args = project.profile(Optimize::Size);
        args.iter().filter_map(|a| a.strip_prefix("profile.release.")).map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(set(), ["opt-level=\"s\"", "lto=\"fat\"", "codegen-units=1"]);
    fs::write(project.dir.join(".cargo/config.toml"), "[profile.release]\nlto = false\n").unwrap();
    assert_eq!(set(), ["opt-level=\"s\"", "codegen-units=1"]);
    fs::write(root.join("ws/Cargo.toml"), "[profile.release]\nopt-level = 2\n").unwrap();
    assert_eq!(set(), ["codegen-units=1"]);
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn what_is_made_is_not_packed_with_what_lies_around_it() {
    let root = env::temp_dir().join(format!("donjon-around-{}", std::process::id()));
    let mut project = member(&root);
    project.dir = project.dir.canonicalize().unwrap();
    project.target_dir = project.dir.join("target/donjon");
    project.config.files = vec![config::Files { from: ".".into(), to: None }];
    fs::create_dir_all(project.target_dir.join(".donjon")).unwrap();
    std::os::unix::fs::symlink("/usr/bin/env", project.target_dir.join(".donjon/linker")).unwrap();
    for name in ["page", "a.img", "a.img.debug", "b.img"] {
        fs::write(project.dir.join(name), name).unwrap();
    }
    let bytes = project.bundle(&project.dir.join(".cargo/../a.img")).unwrap().to_bytes().unwrap();
    let bundle = donjon_abi::bundle::Bundle::parse(&bytes).unwrap();
    let paths: Vec<_> = (0..bundle.len()).map(|i| bundle.get(i).unwrap().path.to_owned()).collect();
    assert_eq!(paths, [".cargo", "b.img", "page"]);
    // What is below cargo's directory can be listed, if it is not ours.
    fs::write(project.dir.join("target/x"), "x").unwrap();
    project.config.files[0].from = "target".into();
    assert_eq!(
        project.bundle(Path::new("a.img")).unwrap().to_bytes().unwrap().windows(8).filter(|w| w == b"target/x").count(),
        1
    );
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn crates_of_names() {
    assert_eq!(crate_of("_ZN4core3fmt5write17h0123456789abcdefE"), "core");
    assert_eq!(crate_of("_ZN61_$LT$axum..routing..Router$u20$as$u20$core..clone..Clone$GT$5clone17h0123E"), "axum");
    assert_eq!(crate_of("_RNvCs1234_7mycrate3foo"), "mycrate");
    assert_eq!(crate_of("memcpy"), "C");
}

#[test]
fn explanations_name_symbol_user_and_remedy() {
    let mut d = Diagnosis::default();
    d.undefined.insert("fork".into(), vec!["daemon::start (daemon)".into()]);
    d.duplicate.insert("malloc".into(), vec!["mimalloc".into(), "guest".into()]);
    d.libraries.push("bz2".into());
    assert_eq!(
        explain(&d),
        [
            "missing symbol `fork`, wanted by daemon::start (daemon): an image has exactly one process: start threads instead",
            "symbol `malloc` is defined twice: by mimalloc and by guest",
            "the library `bz2` is not there as a static archive (libbz2.a): only directories that a build script names are looked at, \
             such as with `println!(\"cargo::rustc-link-search=native=/usr/lib/x86_64-linux-gnu\");` in build.rs",
        ]
    );
}
