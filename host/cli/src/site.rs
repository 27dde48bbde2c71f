//! From a directory and options to an image with the stock web server, for `donjon serve` and `donjon build --web`.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{self, Path, PathBuf};

use donjon_image::{
    Manifest, Port, Protocol, STOP,
    bundle::{BundleError, bundle_sources},
    config::{Config, DEFAULT_MEMORY, parse_egress},
    output,
    pack::{Parts, pack},
    project::SHIM,
};
use donjon_site::{Auth, Options, Places, Prepared, Proxy, Rule, Tls, prepare};
use serde_json::{Value, json};

use crate::{
    args::SiteArgs,
    failure::{Failure, code},
    ui,
};

const MIB: u64 = 1 << 20;
/// What the server takes itself, before any client comes, bytes.
const SERVER_MEMORY: u64 = 8 * MIB;

/// A site that is ready to be packed.
pub struct Site {
    pub name: String,
    pub prepared: Prepared,
    /// Whether its image is compressed.
    pub compress: bool,
    base: PathBuf,
    options: Options,
    config: Config,
}

/// An image that was made.
pub struct Made {
    image: PathBuf,
    bytes: u64,
    /// Of the guest.
    memory: u64,
}

impl Site {
    /// Reads the options of `dir` and the command line, and the content that they name. `output` says, for a site of this name, where its image will
    /// be, or the directory for it.
    pub fn load(
        dir: Option<&Path>,
        args: &SiteArgs,
        cache: Option<&Path>,
        scratch: &Path,
        output: impl FnOnce(&str) -> Result<PathBuf, Failure>,
    ) -> Result<Site, Failure> {
        let given = dir.unwrap_or(Path::new("."));
        let base = given.canonicalize().ok().filter(|d| d.is_dir());
        let base = base.ok_or_else(|| Failure::from(donjon_site::Error::NoDirectory(given.into())))?;
        let table = Options::load(&base)?;
        let (mut options, config) = match table {
            Some(options) => {
                (options, Config::load(&base).map_err(|e| Failure::from(donjon_image::project::BuildError::from(e)))?)
            }
            // Without a table the directory is the content: but not one that happens to be the current one.
            None if dir.is_none() => {
                let hint = "name a directory: `donjon serve DIR`, or add a [web] table to Donjon.toml".to_owned();
                return Err(Failure::new(code::NO_INPUT, "there is no Donjon.toml with a [web] table here", hint));
            }
            None => (Options { root: Some(".".into()), ..Options::default() }, Config::default()),
        };
        add(args, &mut options)?;
        let name = config.name.clone().unwrap_or_else(|| {
            let own = base.file_name().map(|n| n.to_string_lossy().replace(donjon_image::deceives, "_"));
            own.filter(|n| !n.is_empty()).unwrap_or_else(|| "site".into())
        });
        let output = output(&name)?;
        let bar = ui::spinner("reading the content");
        let prepared = prepare(&base, &options, Places { cache, scratch, output: &output });
        bar.finish_and_clear();
        let prepared = prepared?;
        prepared.warnings.iter().for_each(|w| donjon_monitor::say!("donjon: warning: {w}"));
        let compress = config.compress.unwrap_or(true);
        Ok(Site { name, prepared, compress, base, options, config })
    }

    /// `FOLDER-OPTIONS`: tells sites apart, and one with a password from the same without: two commands that are started at the same time do not take each other's image.
    /// Only what is in the files of the content may differ.
    pub fn key(&self) -> Result<String, Failure> {
        let mut options = self.options.clone();
        // The name of a file is not for these; of which file they are read is in it.
        options.auth.iter_mut().for_each(|a| a.password = None);
        let folder = blake3::hash(self.base.as_os_str().as_encoded_bytes()).to_hex();
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{:?} {options:?} {}", self.base, self.compress).as_bytes());
        hasher.update(&self.manifest()?.to_bytes());
        Ok(format!("{}-{}", &folder[..8], &hasher.finalize().to_hex()[..16]))
    }

    /// Ports that one tries first: here, and the guest's for them.
    pub fn usual_ports(&self) -> impl Iterator<Item = (u16, u16)> {
        let ports = [(8080, self.prepared.config.http), (8443, self.prepared.config.https)];
        ports.into_iter().filter_map(|(host, guest)| Some((host, guest?)))
    }

    /// The guest's memory, bytes: what Donjon.toml says if the index fits; without a word there, enough for both the index and the server's work.
    fn memory(&self) -> Result<u64, Failure> {
        let index = self.prepared.index_memory();
        let Some(memory) = self.config.memory else {
            return Ok(DEFAULT_MEMORY.max((index + DEFAULT_MEMORY / 2).next_multiple_of(MIB)));
        };
        self.holds("memory", memory, |mib| format!("`memory = \"{mib}M\"` in Donjon.toml"))?;
        Ok(memory)
    }

    /// Whether the index fits into so much memory, bytes, which the user gives as `option`; `enough` says how to give so many MiB.
    pub fn holds(&self, option: &str, memory: u64, enough: fn(u64) -> String) -> Result<(), Failure> {
        let index = self.prepared.index_memory();
        let least = (index + SERVER_MEMORY).next_multiple_of(MIB);
        // A small site is not judged: how little it gets by with depends on what it is for.
        if index <= MIB || memory >= least {
            return Ok(());
        }
        let files = ui::bytes(self.prepared.resources as u64);
        Err(Failure::new(
            code::DATA,
            format!(
                "`{option}` is {} bytes, and the server's index of {files} files takes about {}",
                ui::bytes(memory),
                ui::bytes(index)
            ),
            format!("{}, or nothing, which is then enough", enough(least / MIB)),
        ))
    }

    /// What the image may do: what its options need, and what Donjon.toml adds.
    fn manifest(&self) -> Result<Manifest, Failure> {
        let mut manifest = self.config.manifest(&self.name);
        manifest.memory = self.memory()?;
        for port in self.prepared.ports() {
            let port = Port { protocol: Protocol::Tcp, port };
            if !manifest.listen.contains(&port) {
                manifest.listen.push(port);
            }
        }
        for proxy in &self.prepared.config.proxies {
            for upstream in proxy.upstream.split(',') {
                // A name can be any address; which port, is known all the same.
                let port = upstream.rsplit(':').next().unwrap_or_default();
                let egress = parse_egress(&format!("{upstream}/tcp"))
                    .or_else(|_| parse_egress(&format!("any:{port}/tcp")))
                    .map_err(|e| Failure::new(code::DATA, e, None))?;
                if !manifest.egress.contains(&egress) {
                    manifest.egress.push(egress);
                }
            }
        }
        let secrets = self.prepared.secrets.iter().map(|(name, _)| name.clone());
        manifest.secrets.extend(secrets.filter(|name| !self.config.secrets.contains(name)));
        manifest.parts = self.parts();
        // What it gives its own connections, and a little to end in.
        let drain = u64::from(self.prepared.config.limits.drain_seconds);
        manifest.stop = manifest.stop.or(Some((drain + 2).min(*STOP.end())));
        Ok(manifest)
    }

    /// The variant of the server that has what this site needs and nothing else, linked.
    #[cfg(feature = "serve")]
    fn program(&self) -> Result<Vec<u8>, Failure> {
        let broken = |e: &dyn std::fmt::Display| Failure::new(code::OS, format!("this program is damaged: {e}"), None);
        self.variant().ok_or_else(|| broken(&"it lacks a variant of the web server"))?.program().map_err(|e| broken(&e))
    }

    #[cfg(feature = "serve")]
    fn variant(&self) -> Option<donjon_variants::Variant> {
        donjon_variants::Variant::with(&self.prepared.features())
    }

    /// What could have been left out of the server, and whether it is there.
    #[cfg(feature = "serve")]
    fn parts(&self) -> Vec<(String, bool)> {
        self.variant().into_iter().flat_map(|v| v.features()).map(|(name, there)| (name.into(), there)).collect()
    }

    #[cfg(not(feature = "serve"))]
    fn program(&self) -> Result<Vec<u8>, Failure> {
        let hint = "build it with its default features: `cargo build --release -p donjon-cli`".to_owned();
        Err(Failure::new(code::UNAVAILABLE, "this donjon was built without the web server", hint))
    }

    #[cfg(not(feature = "serve"))]
    fn parts(&self) -> Vec<(String, bool)> {
        vec![]
    }

    /// Makes the image, and the file for `donjon inspect --crates` and crash reports beside it.
    pub fn write(&self, out: &Path) -> Result<Made, Failure> {
        let program = self.program()?;
        let files = bundle_sources(self.prepared.files.iter().cloned())
            .map_err(|e| Failure::from(donjon_image::project::BuildError::from(e)))?;
        let manifest = self.manifest()?;
        let image =
            pack(Parts { program: &program, manifest: &manifest, bundle: &files, shim: SHIM, compress: self.compress })
                .map_err(|e| Failure::new(code::DATA, e, None))?;
        let failed = |e| match e {
            BundleError::Write(e) => cannot_write(out, &e),
            e => donjon_image::project::BuildError::from(e).into(),
        };
        // What is there already is not written again: the content may be large. But whose file it is can change it.
        let ours = |file: &File| file.metadata().is_ok_and(|m| m.uid() == rustix::process::geteuid().as_raw());
        let is_there = |old: &File| ours(old) && image.is_in(old);
        if !(out.is_file() && File::open(out).is_ok_and(|old| is_there(&old))) {
            output::replace(out, |e| cannot_write(out, &e), |file| image.write_to(file).map_err(failed))?;
        }
        let debug = output::debug(out);
        if !fs::read(&debug).is_ok_and(|old| old == program) {
            let failed = |e| cannot_write(&debug, &e);
            output::replace(&debug, failed, |file| file.write_all(&program).map_err(failed))?;
        }
        Ok(Made { image: out.into(), bytes: image.len(), memory: manifest.memory })
    }
}

impl Made {
    pub fn text(&self, site: &Site) -> String {
        let p = &site.prepared;
        let files = if p.resources == 1 { "1 file".into() } else { format!("{} files", p.resources) };
        let parts: Vec<String> = site.parts().iter().map(part).collect();
        // The usual one is not worth a word.
        let memory = match self.memory {
            DEFAULT_MEMORY => String::new(),
            other => format!(", {} MiB of memory", other / MIB),
        };
        format!(
            "{} ({} bytes): {files}, {} bytes{memory}; {}",
            self.image.display(),
            ui::bytes(self.bytes),
            ui::bytes(p.plain_bytes),
            parts.join(", ")
        )
    }

    /// How to start the image, where that takes more than a port.
    pub fn start(&self, site: &Site) -> Option<String> {
        let flag = |(name, file): &(String, Option<PathBuf>)| {
            let file = file.as_ref().map_or("FILE".into(), |f| f.display().to_string());
            format!(" --secret {name}={file}")
        };
        let secrets: String = site.prepared.secrets.iter().map(flag).collect();
        let ports: String = site.usual_ports().map(|(host, guest)| format!(" -p {host}:{guest}")).collect();
        let image = self.image.display();
        (!secrets.is_empty()).then(|| format!("the private key is not in it: `donjon run {image}{ports}{secrets}`"))
    }

    pub fn json(&self, site: &Site) -> Value {
        let p = &site.prepared;
        json!({
            "name": site.name, "image": self.image.to_string_lossy(), "debug": output::debug(&self.image).to_string_lossy(), "bytes": self.bytes,
            "files": p.resources, "content_bytes": p.plain_bytes, "memory": self.memory,
            "features": p.features(),
            "ports": {"http": p.config.http, "https": p.config.https, "metrics": p.config.metrics},
            "warnings": p.warnings,
            "secrets": p.secrets.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        })
    }
}

/// A part of a program that could have been left out.
pub fn part((name, there): &(String, bool)) -> String {
    format!("{name}: {}", if *there { "in" } else { "absent" })
}

fn cannot_write(path: &Path, e: &io::Error) -> Failure {
    Failure::new(code::OS, format!("cannot write {}: {e}", path.display()), None)
}

/// What the command line says, on top of the table. Paths on the command line are relative to where we are.
fn add(args: &SiteArgs, to: &mut Options) -> Result<(), Failure> {
    let usage = |message: String, hint: &str| Failure::new(code::USAGE, message, hint.to_owned());
    let here = |p: &Path| path::absolute(p).unwrap_or_else(|_| p.into());
    for pair in args.tls.as_chunks::<2>().0 {
        let [cert, key] = pair.each_ref().map(|p| here(p));
        to.tls.push(Tls { cert, key: Some(key), secret: None, names: vec![], embed_key: args.embed_key });
    }
    for text in &args.header {
        let bad = || {
            let hint = "a header is 'NAME: VALUE', or 'PATTERN=NAME: VALUE' for some paths, such as '*.html=X-Frame-Options: DENY'";
            usage(format!("--header `{text}` is not a header"), hint)
        };
        let (left, value) = text.split_once(':').ok_or_else(bad)?;
        let (path, name) = left.rsplit_once('=').unwrap_or(("*", left));
        to.headers.push(Rule { path: path.into(), name: name.trim().into(), value: value.trim().into() });
    }
    for text in &args.auth {
        let (path, rest) = text.split_once('=').unwrap_or(("*", text));
        let Some((user, file)) = rest.split_once(':').filter(|(u, f)| !u.is_empty() && !f.is_empty()) else {
            return Err(usage(
                format!("--auth `{text}` is not USER:FILE"),
                "the file's first line is the password; '/admin/*=alice:pw.txt' is for some paths",
            ));
        };
        let file = Some(here(Path::new(file)));
        to.auth.push(Auth { path: path.into(), realm: None, user: user.into(), password: None, password_file: file });
    }
    to.hosts.extend(args.host.iter().map(|(name, dir)| (name.clone(), here(Path::new(dir)))));
    let proxy = |(path, to): &(String, String)| Proxy { path: path.clone(), to: to.clone(), pin: args.pin };
    to.proxy.extend(args.proxy.iter().map(proxy));
    to.cache.extend(args.cache.iter().cloned());
    to.trusted_proxy.extend(args.trusted_proxy.iter().cloned());
    to.redirect |= args.redirect;
    to.listing |= args.listing;
    to.log |= args.log;
    let text = |to: &mut Option<String>, from: &Option<String>| *to = from.clone().or(to.take());
    text(&mut to.not_found, &args.not_found);
    text(&mut to.spa, &args.spa);
    for (to, from) in [
        (&mut to.http, args.http),
        (&mut to.https, args.https),
        (&mut to.redirect_port, args.redirect_port),
        (&mut to.metrics, args.metrics),
    ] {
        *to = from.or(*to);
    }
    for (to, from) in [
        (&mut to.hsts, args.hsts),
        (&mut to.connections, args.connections),
        (&mut to.connections_per_address, args.connections_per_address),
        (&mut to.header_bytes, args.header_bytes),
        (&mut to.header_seconds, args.header_seconds),
        (&mut to.stall_seconds, args.stall_seconds),
        (&mut to.idle_seconds, args.idle_seconds),
        (&mut to.upstream_seconds, args.upstream_seconds),
        (&mut to.drain_seconds, args.drain_seconds),
    ] {
        *to = from.or(*to);
    }
    to.body_bytes = args.body_bytes.or(to.body_bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_options_make_another_image() {
        let dir = std::env::temp_dir().join(format!("donjon-key-{}", std::process::id()));
        let (site, other) = (dir.join("site"), dir.join("other"));
        for content in [&site, &other] {
            fs::create_dir_all(content).unwrap();
            fs::write(content.join("index.html"), "hello").unwrap();
        }
        let file = dir.join("password");
        fs::write(&file, "correct horse\n").unwrap();
        let with = SiteArgs { auth: vec![format!("alice:{}", file.display())], ..SiteArgs::default() };
        let key = |content: &Path, args: &SiteArgs| {
            let site = Site::load(Some(content), args, None, &dir, |_| Ok(dir.join("x.img"))).unwrap();
            let key = site.key().unwrap();
            let (folder, options) = key.split_once('-').unwrap();
            (folder.to_owned(), options.to_owned())
        };
        let (open, closed) = (key(&site, &SiteArgs::default()), key(&site, &with));
        assert_eq!(open.0, closed.0, "the same folder");
        assert_ne!(open.1, closed.1, "the one without a password never takes the place of the other");
        fs::write(&file, "another\n").unwrap();
        assert_eq!(key(&site, &with), closed, "a name does not tell the password");
        fs::write(site.join("index.html"), "changed").unwrap();
        assert_eq!(key(&site, &SiteArgs::default()), open, "the next start finds what has not changed");
        assert_ne!(key(&other, &SiteArgs::default()).0, open.0);
        fs::remove_dir_all(dir).unwrap();
    }
}
