//! `donjon`: thin over `donjon-image` and `donjon-monitor`.
fn main() -> std::process::ExitCode {
    if let Some(status) = donjon_image::linker::run_if_linker() {
        return status.into();
    }
    let p = donjon_image::project::Project::load(std::path::Path::new(&std::env::args().nth(2).unwrap())).unwrap();
    match p.build(&donjon_image::project::Options { allow_undefined: std::env::var_os("DONJON_ALLOW_UNDEFINED").is_some(), ..Default::default() }, None) {
        Ok(b) => println!("{b:?}"),
        Err(donjon_image::project::BuildError::Link(d)) => donjon_image::project::explain(&d).iter().for_each(|l| println!("{l}")),
        Err(e) => println!("{e}"),
    }
    0.into()
}
