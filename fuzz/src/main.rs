//! libFuzzer over one of the targets; `DONJON_FUZZ_TARGET` names it. `cargo xtask fuzz` runs this.
//!
//! All targets are in one program: one build, one link. `DONJON_FUZZ_SEEDS=DIR` writes the inputs that cannot be found by chance instead.
#![no_main]

use donjon_fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::OnceLock;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fn choose() -> &'static Target {
    let name = std::env::var("DONJON_FUZZ_TARGET").unwrap_or_default();
    let target = TARGETS.iter().find(|t| t.name == name);
    let Some(target) = target else {
        let names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
        eprintln!("DONJON_FUZZ_TARGET={name:?} is none of {}", names.join(", "));
        std::process::exit(2);
    };
    if let Ok(dir) = std::env::var("DONJON_FUZZ_SEEDS") {
        for (i, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(Path::new(&dir).join(format!("seed-{i:02}")), seed).expect("a writable directory");
        }
        std::process::exit(0);
    }
    target
}

fuzz_target!(
    // Before the engine watches over the end of the process.
    init: {
        TARGET.get_or_init(choose);
    },
    |data: &[u8]| (TARGET.get_or_init(choose).run)(data)
);
