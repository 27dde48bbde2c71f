//! `donjon serve`.

use std::hash::{BuildHasher as _, RandomState};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use donjon_monitor::{NetMode, Protocol, Publish, RunOptions, Secret};
use rustix::fs::{Access, access};
use rustix::process::geteuid;

use crate::{
    args::ServeArgs,
    failure::{Failure, code},
    run,
    site::Site,
    ui,
};

pub fn serve(args: &ServeArgs) -> Result<u8, Failure> {
    let cache = cache();
    // One place for each site, so that the next start finds what has not changed.
    let place = cache.clone().map_or_else(|| temporary(&env::temp_dir()), Ok)?;
    let mut site = Site::load(args.dir.as_deref(), &args.site, cache.as_deref(), &place, |_| Ok(place.clone()))?;
    site.compress = args.compress.unwrap_or(site.compress);
    if let Some(memory) = args.engine.memory {
        site.holds("--memory", memory, |mib| format!("`--memory {mib}M`"))?;
    }
    let image = place.join(format!("{}-{}.img", site.name, site.key()?));
    let made = site.write(&image)?;
    let publish = publish(args, &site);
    if args.json {
        donjon_monitor::out!("{}", made.json(&site));
    } else {
        donjon_monitor::say!("donjon: {}", made.text(&site));
        urls(&site, &publish);
    }
    let options = RunOptions {
        engine: run::engine(&args.engine),
        memory: args.engine.memory,
        net: args.engine.net.clone(),
        publish,
        secrets: secrets(args, &site),
        stop_timeout: args.stop_timeout.map(Duration::from_secs),
        verbose: args.verbose,
        starting: ui::io_is_terminal().then_some(ui::starting),
        ..RunOptions::default()
    };
    // The content is in the image; the server's life long nobody needs it here.
    drop(site);
    run::to_the_end(&image, &options)
}

/// What the user says, and for the other secrets the files that the options name.
fn secrets(args: &ServeArgs, site: &Site) -> Vec<Secret> {
    let mut out = args.secret.clone();
    for (name, file) in &site.prepared.secrets {
        if let Some(file) = file
            && !args.secret.iter().any(|s| s.name == *name)
        {
            out.push(Secret { name: name.clone(), file: file.clone() });
        }
    }
    out
}

/// What the user says, or the ports that one tries first.
fn publish(args: &ServeArgs, site: &Site) -> Vec<Publish> {
    if !args.publish.is_empty() || args.engine.net != NetMode::User {
        return args.publish.clone();
    }
    let local = |host: u16, guest| Publish { host: ([127, 0, 0, 1], host).into(), guest, protocol: Protocol::Tcp };
    site.usual_ports().map(|(host, guest)| local(host, guest)).collect()
}

fn urls(site: &Site, publish: &[Publish]) {
    let config = &site.prepared.config;
    for (scheme, port) in [("http", config.http), ("https", config.https)] {
        for p in publish.iter().filter(|p| Some(p.guest) == port && p.host.port() != 0) {
            donjon_monitor::say!("donjon: {scheme}://{}/", p.host);
        }
    }
}

/// Where images and compressed contents are kept (XDG base directory specification), if that is ours and can be written to.
fn cache() -> Option<PathBuf> {
    let absolute = |v: std::ffi::OsString| Some(PathBuf::from(v)).filter(|p| p.is_absolute());
    let base = env::var_os("XDG_CACHE_HOME").and_then(absolute);
    let dir = base.or_else(|| Some(env::home_dir()?.join(".cache")))?.join("donjon/web");
    make(&dir, true).ok()?;
    Some(dir).filter(|dir| is_ours(dir) && access(dir, Access::WRITE_OK).is_ok())
}

/// A directory for images in `dir`, where others may write, too: the one of the last time if nobody else can have made it or can write to it.
fn temporary(dir: &Path) -> Result<PathBuf, Failure> {
    let usual = dir.join(format!(".donjon-{}", geteuid().as_raw()));
    let mut made = make(&usual, false);
    if made.is_ok() || is_ours(&usual) {
        return Ok(usual);
    }
    // Somebody else has been quicker, but cannot guess this.
    for _ in 0..16 {
        let random = dir.join(format!(".donjon-{:016x}", RandomState::new().hash_one(())));
        made = make(&random, false);
        if made.is_ok() {
            return Ok(random);
        }
    }
    let why = made.map_or_else(|e| e.to_string(), |()| String::new());
    let hint = "set XDG_CACHE_HOME or TMPDIR to a directory that can be written to".to_owned();
    Err(Failure::new(code::OS, format!("cannot make a directory for the image in {}: {why}", dir.display()), hint))
}

/// Whether this is a directory (and no link to one) that nobody else can write to, save root.
fn is_ours(dir: &Path) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|m| m.is_dir() && m.uid() == geteuid().as_raw() && m.mode() & 0o022 == 0)
}

fn make(dir: &Path, recursive: bool) -> std::io::Result<()> {
    // Sites may not be meant for all users of this machine.
    fs::DirBuilder::new().recursive(recursive).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn an_image_is_only_where_nobody_else_can_write() {
        let dir = env::temp_dir().join(format!("donjon-temporary-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let mode = |dir: &Path| fs::metadata(dir).unwrap().permissions().mode() & 0o777;
        let usual = temporary(&dir).unwrap();
        assert_eq!((mode(&usual), temporary(&dir).unwrap()), (0o700, usual.clone()), "the same at the next start");
        // What somebody else may have put there is not used.
        fs::set_permissions(&usual, fs::Permissions::from_mode(0o777)).unwrap();
        let others = temporary(&dir).unwrap();
        assert!(others != usual && mode(&others) == 0o700 && others != temporary(&dir).unwrap());
        fs::remove_dir(&usual).unwrap();
        symlink(&others, &usual).unwrap();
        assert_ne!(temporary(&dir).unwrap(), usual);
        assert!(temporary(&dir.join("none")).unwrap_err().message.contains("none: No such file"));
        fs::remove_dir_all(dir).unwrap();
    }
}
