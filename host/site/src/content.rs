//! Reads the content of a site and makes its index and compressed variants.

use crate::certificate::Checked;
use crate::compress::{Compressed, Compressor, Content, Packed, Spool};
use crate::options::{FILE, Options, Tls, hex};
use crate::{Error, certificate};
use donjon_image::{
    bundle::Source,
    output::{belongs_to, real},
    secrets,
};
use donjon_web_format::{CONFIG_PATH, Config, Host, INDEX_PATH, Resource, Variant, index_line, matches};
use std::fs::{self, File};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

/// Where the content is if the options do not say.
const ROOT: &str = "public";
/// Most files of a site.
const FILES_MAX: usize = if cfg!(test) { 10_000 } else { 1_000_000 };
/// Most bytes of them: more than an image may have.
const BYTES_MAX: u64 = 3 << 30;

/// Most threads that read and compress: each takes up to 50 MB for a file of some megabytes.
const WORKERS: usize = 8;

/// What the server keeps of a file in its own form, bytes (`Page` in `apps/web/src/site.rs`, with its path).
const RECORD: u64 = 512;

/// A site that is ready to be packed.
#[derive(Debug)]
pub struct Prepared {
    /// The configuration, also among `files`.
    pub config: Config,
    /// Guest paths and contents for the bundle.
    pub files: Vec<(String, Source)>,
    /// Files of the site, without their compressed variants.
    pub resources: usize,
    /// Bytes of the content as it is.
    pub plain_bytes: u64,
    /// Length of the index, bytes.
    pub index_bytes: u64,
    /// Secrets that have to be handed over at start: name and the host file that the options name for it, if they do.
    pub secrets: Vec<(String, Option<PathBuf>)>,
    /// What works and may not be meant.
    pub warnings: Vec<String>,
}

impl Prepared {
    /// The features of `apps/web` that the site needs, sorted.
    pub fn features(&self) -> Vec<&'static str> {
        let all = [
            ("auth", !self.config.auth.is_empty()),
            ("proxy", !self.config.proxies.is_empty()),
            ("tls", self.config.https.is_some()),
        ];
        all.into_iter().filter_map(|(name, on)| on.then_some(name)).collect()
    }

    /// Bytes of the guest's memory that the server takes for its index of the files, about and rather too many: a record for each, what the index says
    /// in strings of their own, and the index itself while it is read.
    pub fn index_memory(&self) -> u64 {
        self.resources as u64 * RECORD + self.index_bytes * 3
    }

    /// The ports on which the server listens.
    pub fn ports(&self) -> Vec<u16> {
        [self.config.http, self.config.https, self.config.metrics].into_iter().flatten().collect()
    }
}

/// Where things are that are no content.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// The directory in which compressed variants are kept, if they are.
    pub cache: Option<&'a Path>,
    /// The directory for what is made on the way.
    pub scratch: &'a Path,
    /// The image that will be made, or the directory that it will be in: that of the last time is no content of the site, and neither are its symbols.
    pub output: &'a Path,
}

/// Reads the content below `base` as `options` say. Compressed variants are in files without names in the scratch directory as long as the result
/// lives. Nothing is held in memory that grows with the content.
///
/// If SOURCE_DATE_EPOCH is set, there are no modification times: with it, the same content gives the same image.
pub fn prepare(base: &Path, options: &Options, places: Places<'_>) -> Result<Prepared, Error> {
    let (roots, hosts) = roots(base, options);
    let output = real(places.output);
    let (mut list, mut bytes) = (vec![], 0);
    for (number, root) in roots.iter().enumerate() {
        let real = root.canonicalize().ok().filter(|r| r.is_dir()).ok_or_else(|| Error::NoDirectory(root.clone()))?;
        exposed(base, options, &output, &real)?;
        let mut files = vec![];
        walk((&real, &output), &real, "", &mut (&mut files, &mut bytes), 0)?;
        files.sort();
        list.extend(files.into_iter().map(|(path, file)| (number as u32, path, file)));
    }
    let mut config = options.config(base, hosts)?;
    let (mut files, mut secrets, mut warnings) = (vec![], vec![], vec![]);
    for (i, tls) in options.tls.iter().enumerate() {
        let checked = pack_certificate(base, tls, i, &mut files, &mut secrets)?;
        warnings.extend(checked.warnings);
        for name in tls.names.iter().filter(|name| !checked.names.iter().any(|n| certificate::covers(n, name))) {
            warnings.push(format!("{}: its certificate is not for `{name}`, which chooses it", tls.cert.display()));
        }
        config.certificates[i].expires = checked.expires;
        if tls.names.is_empty() {
            config.certificates[i].names = checked.names.join(",");
        }
    }
    if options.root.is_none() && !options.hosts.is_empty() && !options.hosts.contains_key("*") {
        let unused = |dir: &Path| base.join(dir).is_dir() && options.hosts.values().all(|d| d != dir);
        if unused(Path::new(ROOT)) {
            warnings.push(format!(
                "with `hosts`, `{ROOT}` is not packed and other names are answered 421: `root = \"{ROOT}\"` is for them"
            ));
        }
    }
    for host in config.hosts.iter().filter(|h| h.name != "*" && config.https.is_some()) {
        let mut names = config.certificates.iter().flat_map(|c| c.names.split(','));
        if !names.any(|name| certificate::covers(name, &host.name)) {
            warnings.push(format!("no certificate is for the virtual host `{}`: clients will refuse it", host.name));
        }
    }
    for proxy in
        config.proxies.iter().filter(|p| p.upstream.parse::<SocketAddr>().is_err() && !p.upstream.contains(','))
    {
        let (name, port) = proxy.upstream.rsplit_once(':').unwrap_or_default();
        warnings.push(format!("`{name}` is a name, so the image may connect to port {port} of any address; `pin` limits it to those of today"));
    }
    for area in config.auth.iter().filter(|a| !protects(&a.pattern, &config, &list)) {
        warnings.push(format!(
            "auth: `{}` is for no file of the site and for nothing that is forwarded, so it protects nothing: `/admin/*` is for a directory, case counts, and a pattern is for decoded paths (a space, not %20)",
            area.pattern
        ));
    }
    for page in [&config.not_found, &config.spa].into_iter().flatten() {
        if !list.iter().any(|(_, path, _)| path == page) {
            return Err(Error::Option { option: "not_found / spa", problem: format!("the site has no {page}") });
        }
    }
    let made = resources(&list, &Compressor::new(places.cache), places.scratch)?;
    let mut out = Prepared { config, files, resources: made.len(), plain_bytes: 0, index_bytes: 0, secrets, warnings };
    let mut index = String::new();
    for made in made {
        index += &made.line;
        out.plain_bytes += made.bytes;
        out.files.extend(made.files);
    }
    out.index_bytes = index.len() as u64;
    let text = |e: donjon_web_format::Error| Error::Option { option: "web", problem: e.to_string() };
    out.files.push((CONFIG_PATH.into(), Source::Bytes(out.config.to_text().map_err(text)?.into_bytes())));
    out.files.push((INDEX_PATH.into(), Source::Bytes(index.into_bytes())));
    Ok(out)
}

/// Checks certificate and key, packs the certificate, and packs the key or notes that it is to be handed over.
fn pack_certificate(
    base: &Path,
    tls: &Tls,
    index: usize,
    files: &mut Vec<(String, Source)>,
    secrets: &mut Vec<(String, Option<PathBuf>)>,
) -> Result<Checked, Error> {
    let read = |p: &PathBuf| {
        let path = base.join(p);
        fs::read(&path).map(|bytes| (path.clone(), bytes)).map_err(|e| Error::Io(path, e))
    };
    let (cert_path, cert) = read(&tls.cert)?;
    let key = tls.key.as_ref().map(read).transpose()?;
    let own_key = key.as_ref().map(|(path, bytes)| (path.as_path(), &bytes[..]));
    let checked = certificate::check((&cert_path, &cert), own_key, SystemTime::now())?;
    files.push((Tls::chain_path(index), Source::Bytes(cert)));
    match (key, tls.embed_key) {
        (Some((_, key)), true) => files.push((Tls::key_path(index), Source::Bytes(key))),
        (None, true) => {
            return Err(Error::Option { option: "tls", problem: "`embed_key` needs a `key`".into() });
        }
        (key, false) => secret(tls.secret_name(index), key.map(|(path, _)| path), secrets)?,
    }
    Ok(checked)
}

/// Notes a key that is to be handed over. Two certificates may have the same.
fn secret(name: String, file: Option<PathBuf>, all: &mut Vec<(String, Option<PathBuf>)>) -> Result<(), Error> {
    let option = |problem| Err(Error::Option { option: "tls", problem });
    let full = all.len() == secrets::COUNT_MAX;
    match all.iter_mut().find(|(known, _)| *known == name) {
        Some((_, Some(known))) if file.as_ref().is_some_and(|file| file != known) => {
            return option(format!("the secret `{name}` is for two keys: give one of them another `secret`"));
        }
        Some((_, known)) => *known = known.take().or(file),
        None if full => {
            return option(format!("more than {} keys would have to be handed over", secrets::COUNT_MAX));
        }
        None => all.push((name, file)),
    }
    Ok(())
}

/// What must not be served must not lie where it would be.
fn exposed(base: &Path, options: &Options, output: &Path, root: &Path) -> Result<(), Error> {
    // An image with a key in it is a secret, too: the next one, in another place, would have it.
    if output.starts_with(root) && options.tls.iter().any(|t| t.embed_key) {
        return Err(Error::Exposed(output.into()));
    }
    let keys = options.tls.iter().filter_map(|t| t.key.as_ref());
    let passwords = options.auth.iter().filter_map(|a| a.password_file.as_ref());
    for file in keys.chain(passwords).map(|p| base.join(p)).chain([root.join(FILE)]) {
        // One that does not exist is somebody else's complaint.
        if file.canonicalize().is_ok_and(|real| real.starts_with(root)) {
            return Err(Error::Exposed(file));
        }
    }
    Ok(())
}

/// Whether there is anything in an area. (What is to be served for paths that do not exist can be had without a password.)
fn protects(pattern: &str, config: &Config, list: &[(u32, String, PathBuf)]) -> bool {
    // As the server has it: `/admin/*` is for `/admin`, too.
    let covers = |path: &str| matches(pattern, path) || pattern.strip_suffix("/*").is_some_and(|d| matches(d, path));
    let directories = |path: &str| path.match_indices('/').any(|(at, _)| covers(&path[..=at]));
    let head = pattern.split('*').next().unwrap_or_default();
    let forwards = |prefix: &str| {
        let prefix = prefix.trim_end_matches('/');
        let below = head.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        below || pattern != head && prefix.starts_with(head)
    };
    covers("/healthz")
        || config.proxies.iter().any(|p| forwards(&p.prefix))
        || list.iter().any(|(_, path, _)| covers(path) || directories(path))
}

/// Content roots, and the virtual hosts that they belong to.
fn roots(base: &Path, options: &Options) -> (Vec<PathBuf>, Vec<Host>) {
    if options.hosts.is_empty() {
        return (vec![base.join(options.root.as_deref().unwrap_or(Path::new(ROOT)))], vec![]);
    }
    let mut roots: Vec<PathBuf> = options.root.iter().map(|r| base.join(r)).collect();
    let mut hosts = vec![];
    for (name, dir) in &options.hosts {
        hosts.push(Host { name: name.to_ascii_lowercase(), root: roots.len() as u32 });
        roots.push(base.join(dir));
    }
    if options.root.is_some() && !options.hosts.contains_key("*") {
        hosts.push(Host { name: "*".into(), root: 0 });
    }
    (roots, hosts)
}

/// Files with their paths in the site, and how many bytes they have together, others before them counted in.
type Found<'a> = (&'a mut Vec<(String, PathBuf)>, &'a mut u64);

fn walk((top, output): (&Path, &Path), dir: &Path, site: &str, out: &mut Found<'_>, depth: u32) -> Result<(), Error> {
    let io = |e| Error::Io(dir.into(), e);
    if depth > 64 {
        return Err(Error::Name(dir.into(), "is nested too deeply"));
    }
    for entry in fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        let name = entry.file_name().into_string().map_err(|_| Error::Name(path.clone(), "is not UTF-8"))?;
        if name.chars().any(|c| c.is_control() || c == '\\') {
            return Err(Error::Name(path, "has a character that no URL path can have"));
        }
        // Dot files (.git, .env, .htpasswd) are not meant for the web; .well-known is (RFC 8615).
        if name.starts_with('.') && !(site.is_empty() && name == ".well-known") {
            continue;
        }
        if belongs_to(&path, output) {
            continue;
        }
        let real = path.canonicalize().map_err(|e| Error::Io(path.clone(), e))?;
        if belongs_to(&real, output) {
            continue;
        }
        if !real.starts_with(top) {
            return Err(Error::Name(path, "is a link that leads out of the directory"));
        }
        let below = format!("{site}/{name}");
        let kind = fs::metadata(&real).map_err(|e| Error::Io(path.clone(), e))?;
        if kind.is_dir() {
            walk((top, output), &real, &below, out, depth + 1)?;
        } else if kind.is_file() {
            out.0.push((below, real));
            *out.1 = out.1.saturating_add(kind.len());
            // Before anything is read: few links make many files, and a file may have more bytes than it has on the disk.
            if out.0.len() > FILES_MAX {
                return Err(Error::TooMuch(top.into(), "a million files"));
            }
            if *out.1 > BYTES_MAX {
                return Err(Error::TooMuch(top.into(), "3 GiB, which an image cannot have"));
            }
        } else {
            return Err(Error::Name(path, "is neither a file nor a directory"));
        }
    }
    Ok(())
}

/// A file of the site, with its variants.
struct Made {
    line: String,
    bytes: u64,
    files: Vec<(String, Source)>,
}

/// Makes the resources in the order of the list, on as many cores as there are, up to [`WORKERS`].
fn resources(list: &[(u32, String, PathBuf)], compressor: &Compressor<'_>, scratch: &Path) -> Result<Vec<Made>, Error> {
    let (next, made) = (AtomicUsize::new(0), Mutex::new(vec![]));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = cores.min(WORKERS).min(list.len()).max(1);
    let spools = (0..workers).map(|_| Spool::new(scratch)).collect::<Result<Vec<_>, _>>();
    let mut spools = spools.map_err(|e| Error::Scratch(scratch.into(), e))?;
    let worker = |spool: &mut Spool| {
        while let Some((at, (root, path, file))) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, list.get(i)?)))
        {
            let one = resource(*root, path, file, compressor, spool);
            made.lock().unwrap_or_else(|e| e.into_inner()).push((at, one));
        }
    };
    std::thread::scope(|scope| {
        for spool in &mut spools {
            scope.spawn(|| worker(spool));
        }
    });
    let mut made = made.into_inner().unwrap_or_else(|e| e.into_inner());
    made.sort_by_key(|(at, _)| *at);
    made.into_iter().map(|(_, one)| one).collect()
}

fn resource(root: u32, path: &str, file: &Path, compressor: &Compressor<'_>, spool: &mut Spool) -> Result<Made, Error> {
    let io = |e| Error::Io(file.into(), e);
    let Seen { len, hash, utf8 } = read(file).map_err(io)?;
    let content_type = content_type(path, utf8);
    let (plain_file, brotli_file, gzip_file) =
        (format!("/site/{root}{path}"), format!("/br/{root}{path}"), format!("/gz/{root}{path}"));
    let tag = hex(&hash.as_bytes()[..10]);
    let content = Content { path: file, content_type: &content_type, len, hash };
    let Compressed { brotli, gzip } = compressor.compress(&content, spool)?;
    // A strong tag is for these very bytes (RFC 9110 §8.8.1).
    let tag_of = |packed: &Option<Packed>| packed.as_ref().map(|p| hex(&p.hash.as_bytes()[..10])).unwrap_or_default();
    let (brotli_tag, gzip_tag) = (tag_of(&brotli), tag_of(&gzip));
    let line = index_line(&Resource {
        root,
        path,
        content_type: &content_type,
        mtime: mtime(file, std::env::var("SOURCE_DATE_EPOCH").ok()).map_err(io)?,
        plain: Variant { file: &plain_file, etag: &tag, len },
        brotli: brotli.as_ref().map(|p| Variant { file: &brotli_file, etag: &brotli_tag, len: p.len }),
        gzip: gzip.as_ref().map(|p| Variant { file: &gzip_file, etag: &gzip_tag, len: p.len }),
    });
    let line = line.map_err(|_| Error::Name(file.into(), "has a name that cannot be served"))?;
    let mut files = vec![(plain_file, Source::Exactly(file.into(), len, hash.into()))];
    files.extend(brotli.map(|p| (brotli_file, p.source)));
    files.extend(gzip.map(|p| (gzip_file, p.source)));
    Ok(Made { line, bytes: len, files })
}

/// What one reading of a file tells.
struct Seen {
    len: u64,
    hash: blake3::Hash,
    /// Whether it is text.
    utf8: bool,
}

fn read(file: &Path) -> std::io::Result<Seen> {
    let (mut file, mut hasher, mut chunk) = (File::open(file)?, blake3::Hasher::new(), vec![0; 64 * 1024]);
    // The beginning of a character that the last chunk has cut through.
    let (mut len, mut utf8, mut cut) = (0, true, 0);
    loop {
        let n = file.read(&mut chunk[cut..])?;
        if n == 0 {
            return Ok(Seen { len, hash: hasher.finalize(), utf8: utf8 && cut == 0 });
        }
        len += n as u64;
        hasher.update(&chunk[cut..cut + n]);
        let all = cut + n;
        cut = 0;
        if let Err(e) = std::str::from_utf8(&chunk[..all]) {
            utf8 &= e.error_len().is_none();
            cut = all - e.valid_up_to();
            chunk.copy_within(e.valid_up_to()..all, 0);
        }
        if !utf8 {
            cut = 0;
        }
    }
}

/// When a file was changed. With SOURCE_DATE_EPOCH that says nothing (0): of one date for all, in every build, a client that asks whether a page was
/// changed since would be told that it was not.
fn mtime(file: &Path, epoch: Option<String>) -> std::io::Result<u64> {
    if epoch.is_some_and(|epoch| epoch.parse::<u64>().is_ok()) {
        return Ok(0);
    }
    let modified = fs::metadata(file)?.modified()?;
    Ok(modified.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs()))
}

fn content_type(path: &str, utf8: bool) -> String {
    let unknown = if utf8 { "text/plain" } else { "application/octet-stream" };
    let guess = mime_guess::from_path(path).first_raw().unwrap_or(unknown);
    // What is in another encoding may say so itself.
    if utf8 && (guess.starts_with("text/") || matches!(guess, "application/javascript" | "application/json")) {
        format!("{guess}; charset=utf-8")
    } else {
        guess.into()
    }
}

#[cfg(test)]
mod tests;
