//! Compiles the C half as hardened distributions do: with the stack protector, and with fortified functions at levels 2 and 3.

fn main() {
    println!("cargo::rerun-if-changed=src");
    cc::Build::new().file("src/smash.c").flag("-fstack-protector-all").warnings(true).compile("smash");
    for level in ["2", "3"] {
        let mut build = cc::Build::new();
        // Only optimised code is fortified, whatever this crate's profile says.
        build.file("src/fortify.c").opt_level(2).flag("-fstack-protector-strong").warnings(false);
        build.flag("-U_FORTIFY_SOURCE").define("_FORTIFY_SOURCE", level);
        build.define("FORTIFIED", &*format!("fortified_{level}")).compile(&format!("fortify{level}"));
    }
}
