//! What cargo's configuration files and environment say, where our own flags and profile would hide it.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use crate::project::TARGET;

/// What holds in `cfg(...)` for the only target there is; what crates and flags add is not known.
const CFG: [(&str, &str); 9] = [
    ("unix", ""),
    ("panic", "unwind"),
    ("target_arch", "x86_64"),
    ("target_endian", "little"),
    ("target_env", "gnu"),
    ("target_family", "unix"),
    ("target_os", "linux"),
    ("target_pointer_width", "64"),
    ("target_vendor", "unknown"),
];

/// The configuration files for a project in `dir`, that of cargo's home first and the nearest last.
pub(crate) fn files(dir: &Path) -> Vec<toml::Table> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let mut places: Vec<PathBuf> = dir.ancestors().map(|a| a.join(".cargo")).collect();
    places.extend(home.filter(|h| !places.contains(h)));
    let read = |place: &PathBuf| {
        let text = ["config", "config.toml"].iter().find_map(|name| fs::read_to_string(place.join(name)).ok());
        text.and_then(|t| toml::from_str(&t).ok()).unwrap_or_default()
    };
    places.iter().rev().map(read).collect()
}

/// The flags that cargo would give rustc for `dir`: of the environment, else of the configuration for the target, else of that for all
/// targets.
pub(crate) fn rustflags(dir: &Path) -> Vec<String> {
    flags(&files(dir), |name| env::var(name).ok())
}

fn flags(files: &[toml::Table], variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let words = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
    if let Some(encoded) = variable("CARGO_ENCODED_RUSTFLAGS") {
        return encoded.split('\x1f').filter(|f| !f.is_empty()).map(String::from).collect();
    }
    if let Some(text) = variable("RUSTFLAGS") {
        return words(&text);
    }
    let own = |section: Option<&toml::Value>| match section.and_then(|s| s.get("rustflags")) {
        Some(toml::Value::String(text)) => words(text),
        Some(toml::Value::Array(list)) => list.iter().filter_map(|f| Some(f.as_str()?.to_owned())).collect(),
        _ => Vec::new(),
    };
    // Lists of several files are joined, and what a variable says comes last.
    let from = |name: &str| variable(name).map(|text| words(&text)).unwrap_or_default();
    let (mut target, mut matching, mut build) = (Vec::new(), Vec::new(), Vec::new());
    for file in files {
        let targets = file.get("target").and_then(toml::Value::as_table);
        for (key, section) in targets.into_iter().flatten() {
            match key.strip_prefix("cfg(").and_then(|k| k.strip_suffix(')')) {
                Some(condition) if holds(condition) => matching.extend(own(Some(section))),
                None if key == TARGET => target.extend(own(Some(section))),
                _ => {}
            }
        }
        build.extend(own(file.get("build")));
    }
    target.extend(from("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS"));
    build.extend(from("CARGO_BUILD_RUSTFLAGS"));
    target.extend(matching);
    if target.is_empty() { build } else { target }
}

/// Whether a condition holds for the target (`all`, `any`, `not`, names and `name = "value"`).
fn holds(condition: &str) -> bool {
    let condition = condition.trim();
    let inner = |name: &str| condition.strip_prefix(name)?.trim_start().strip_prefix('(')?.strip_suffix(')');
    if let Some(list) = inner("all") {
        return split(list).all(holds);
    }
    if let Some(list) = inner("any") {
        return split(list).any(holds);
    }
    if let Some(one) = inner("not") {
        return !holds(one);
    }
    let (name, value) = condition.split_once('=').unwrap_or((condition, ""));
    CFG.contains(&(name.trim(), value.trim().trim_matches('"')))
}

/// The items of a list, which may have lists in them.
fn split(list: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    let items = list.split(move |c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    });
    items.filter(|item| !item.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_configuration_files_are_kept() {
        let dir = env::temp_dir().join(format!("donjon-flags-{}", std::process::id()));
        let write = |at: &str, text: &str| {
            fs::create_dir_all(dir.join(at).join(".cargo")).unwrap();
            fs::write(dir.join(at).join(".cargo/config.toml"), text).unwrap();
        };
        let flags = |at: &str| flags(&files(&dir.join(at)), |_| None);
        write("", "[build]\nrustflags = [\"--cfg\", \"outer\"]\n");
        write("a", "[build]\nrustflags = \"--cfg inner\"\n");
        assert!(flags("a").ends_with(&["--cfg", "outer", "--cfg", "inner"].map(String::from)));
        write("a/b", &format!("[target.{TARGET}]\nrustflags = [\"-Ctarget-cpu=native\"]\n"));
        assert_eq!(flags("a/b"), ["-Ctarget-cpu=native"]);
        write(
            "c",
            "[target.'cfg(all(unix, target_os = \"linux\"))']\nrustflags = \"-Cx\"\n[target.'cfg(windows)']\nrustflags = \"-Cy\"\n",
        );
        assert_eq!(flags("c"), ["-Cx"]);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn flags_of_the_environment_are_kept() {
        let file = toml::from_str("[build]\nrustflags = \"-Ca\"\n").unwrap();
        let with = |set: &[(&str, &str)]| {
            let one = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
            flags(std::slice::from_ref(&file), one).join(" ")
        };
        let (build, target) = ("CARGO_BUILD_RUSTFLAGS", "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS");
        assert_eq!(with(&[(build, "-Cb -Cc")]), "-Ca -Cb -Cc");
        assert_eq!(with(&[(build, "-Cb"), (target, "-Cd")]), "-Cd");
        assert_eq!(with(&[(target, "-Cd"), ("RUSTFLAGS", "-Ce")]), "-Ce");
        assert_eq!(with(&[("RUSTFLAGS", "-Ce"), ("CARGO_ENCODED_RUSTFLAGS", "-Cf\x1f-C g")]), "-Cf -C g");
    }

    #[test]
    fn conditions_hold_for_the_target() {
        for (condition, expected) in [
            ("unix", true),
            ("windows", false),
            ("target_os = \"linux\"", true),
            ("target_os=\"macos\"", false),
            ("all(unix, not(target_env = \"musl\"))", true),
            ("any(windows, all(target_arch = \"x86_64\", target_pointer_width = \"32\"))", false),
            ("any(all(windows, x), all(unix, target_arch = \"x86_64\"),)", true),
            ("all()", true),
            ("any()", false),
            ("feature = \"x\"", false),
        ] {
            assert_eq!(holds(condition), expected, "{condition}");
        }
    }
}
