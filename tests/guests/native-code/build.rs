//! Compiles the C half, with the compiler's stack protector on.

fn main() {
    println!("cargo::rerun-if-changed=src/smash.c");
    cc::Build::new().file("src/smash.c").flag("-fstack-protector-all").warnings(true).compile("smash");
}
