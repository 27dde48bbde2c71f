//! `donjon build`.

use std::path::Path;

use donjon_image::{
    output,
    project::{Built, Options, Project},
};

use crate::{
    args::{BuildArgs, SiteArgs},
    failure::{Failure, code},
    site::Site,
    ui,
};

pub fn build(args: &BuildArgs) -> Result<u8, Failure> {
    if args.web {
        return web(args);
    }
    if args.site != SiteArgs::default() {
        let hint = "add --web: `donjon build --web DIR`".to_owned();
        return Err(Failure::new(code::USAGE, "options of a web site are for --web only", hint));
    }
    let options = Options { allow_undefined: args.allow_undefined, ..args.program.options() };
    let built = project(args.dir.as_deref().unwrap_or(Path::new(".")), &options, args.output.as_deref())?;
    if args.json {
        donjon_monitor::out!(
            "{}",
            serde_json::json!({
                "name": built.name, "image": built.image.to_string_lossy(), "debug": built.debug.to_string_lossy(), "bytes": built.bytes,
                "direct_system_calls": built.direct_system_calls,
            })
        );
    } else {
        donjon_monitor::say!("donjon: {} ({} bytes)", built.image.display(), ui::bytes(built.bytes));
    }
    Ok(0)
}

fn web(args: &BuildArgs) -> Result<u8, Failure> {
    // Beside the image, where there must be place for the same content anyway.
    let beside = args.output.as_deref().and_then(Path::parent).filter(|p| !p.as_os_str().is_empty());
    let beside = beside.unwrap_or(Path::new("."));
    let image = |name: &str| args.output.clone().unwrap_or_else(|| format!("{name}.img").into());
    let output = |name: &str| {
        let image = image(name);
        output::check(&image)?;
        std::fs::create_dir_all(beside)
            .map_err(|e| Failure::new(code::OS, format!("cannot make {}: {e}", beside.display()), None))?;
        Ok(image)
    };
    let mut site = Site::load(args.dir.as_deref(), &args.site, None, beside, output)?;
    site.compress = args.program.compress.unwrap_or(site.compress);
    let made = site.write(&image(&site.name))?;
    if args.json {
        donjon_monitor::out!("{}", made.json(&site));
    } else {
        donjon_monitor::say!("donjon: {}", made.text(&site));
        if let Some(how) = made.start(&site) {
            donjon_monitor::say!("donjon: {how}");
        }
    }
    Ok(0)
}

/// Builds the project in `dir`.
pub fn project(dir: &Path, options: &Options, output: Option<&Path>) -> Result<Built, Failure> {
    let project = load(dir, options)?;
    let built = project.build(options, output)?;
    if let [first, rest @ ..] = built.direct_system_calls.as_slice() {
        let more = if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
        donjon_monitor::say!(
            "donjon: warning: `{first}`{more} makes system calls without the C library; a guest that gets there ends"
        );
    }
    Ok(built)
}

/// Reads the project in `dir`, and says what may have been meant to be its `Donjon.toml`.
pub fn load(dir: &Path, options: &Options) -> Result<Project, Failure> {
    let project = Project::load(dir, &options.cargo)?;
    if let Some(path) = &project.overlooked {
        let place = project.dir.join(donjon_image::config::FILE);
        donjon_monitor::say!("donjon: warning: {} is not read: it would be {}", path.display(), place.display());
    }
    Ok(project)
}
