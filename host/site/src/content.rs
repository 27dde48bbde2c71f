//! Reads the content of a site and makes its index and compressed variants.

use crate::Error;
use crate::options::{Options, Tls, hex};
use donjon_image::bundle::Source;
use donjon_web_format::{CONFIG_PATH, Config, Host, INDEX_PATH, Resource, Variant, index_line};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Files below this size are not compressed: the headers would outweigh the gain.
const COMPRESS_FROM: usize = 256;
/// Files above this size are compressed at a faster level.
const SLOW_TO: usize = 4 << 20;
/// Modification time without a reproducible one: see [`prepare`].
const ALWAYS: u64 = 315_532_800;

/// A site that is ready to be packed.
pub struct Prepared {
    /// The configuration, also among `files`.
    pub config: Config,
    /// Guest paths and contents for the bundle.
    pub files: Vec<(String, Source)>,
    /// Files of the site, without their compressed variants.
    pub resources: usize,
    /// Bytes of the content as it is.
    pub plain_bytes: u64,
    /// Secrets that have to be handed over at start: name and the host file that the options name for it.
    pub secrets: Vec<(String, PathBuf)>,
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
}

/// Reads the content below `base` as `options` say.
///
/// Modification times come from SOURCE_DATE_EPOCH if that is set, else from the files: with it, the same content gives the
/// same image.
pub fn prepare(base: &Path, options: &Options) -> Result<Prepared, Error> {
    let (roots, hosts) = roots(base, options);
    let config = options.config(hosts)?;
    let mut out = Prepared { config, files: vec![], resources: 0, plain_bytes: 0, secrets: vec![] };
    let mut index = vec![];
    for (number, root) in roots.iter().enumerate() {
        let real = root.canonicalize().ok().filter(|r| r.is_dir()).ok_or_else(|| Error::NoDirectory(root.clone()))?;
        let mut list = vec![];
        walk(&real, &real, "", &mut list, 0)?;
        list.sort();
        for (path, file) in list {
            index.push(resource(number as u32, &path, &file, &mut out)?);
        }
    }
    let text = |e: donjon_web_format::Error| Error::Option { option: "web", problem: e.to_string() };
    for page in [&out.config.not_found, &out.config.spa].into_iter().flatten() {
        let there = index.iter().any(|line| line.split('\t').nth(1) == Some(page));
        if !there {
            return Err(Error::Option { option: "not_found / spa", problem: format!("the site has no {page}") });
        }
    }
    for (i, tls) in options.tls.iter().enumerate() {
        let read = |p: &Path| fs::read(base.join(p)).map_err(|e| Error::Io(base.join(p), e));
        out.files.push((Tls::chain_path(i), Source::Bytes(read(&tls.cert)?)));
        if tls.key_in_image {
            out.files.push((Tls::key_path(i), Source::Bytes(read(&tls.key)?)));
        } else {
            out.secrets.push((tls.secret_name(i), base.join(&tls.key)));
        }
    }
    out.files.push((CONFIG_PATH.into(), Source::Bytes(out.config.to_text().map_err(text)?.into_bytes())));
    out.files.push((INDEX_PATH.into(), Source::Bytes(index.concat().into_bytes())));
    Ok(out)
}

/// Content roots, and the virtual hosts that they belong to.
fn roots(base: &Path, options: &Options) -> (Vec<PathBuf>, Vec<Host>) {
    if options.hosts.is_empty() {
        return (vec![base.join(options.root.as_deref().unwrap_or(Path::new("public")))], vec![]);
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

fn walk(top: &Path, dir: &Path, site: &str, out: &mut Vec<(String, PathBuf)>, depth: u32) -> Result<(), Error> {
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
        let real = path.canonicalize().map_err(|e| Error::Io(path.clone(), e))?;
        if !real.starts_with(top) {
            return Err(Error::Name(path, "is a link that leads out of the directory"));
        }
        let below = format!("{site}/{name}");
        let kind = fs::metadata(&real).map_err(|e| Error::Io(path.clone(), e))?;
        if kind.is_dir() {
            walk(top, &real, &below, out, depth + 1)?;
        } else if kind.is_file() {
            out.push((below, real));
        } else {
            return Err(Error::Name(path, "is neither a file nor a directory"));
        }
    }
    Ok(())
}

fn resource(root: u32, path: &str, file: &Path, out: &mut Prepared) -> Result<String, Error> {
    let io = |e| Error::Io(file.into(), e);
    let data = fs::read(file).map_err(io)?;
    let content_type = content_type(path, &data);
    let (plain_file, brotli_file, gzip_file) =
        (format!("/site/{root}{path}"), format!("/br/{root}{path}"), format!("/gz/{root}{path}"));
    let tag = hex(&blake3::hash(&data).as_bytes()[..10]);
    let (brotli_tag, gzip_tag) = (format!("{tag}-br"), format!("{tag}-gz"));
    let (brotli, gzip) = if compressible(&content_type) && data.len() >= COMPRESS_FROM {
        (Some(brotli(&data)), Some(gzip(&data)))
    } else {
        (None, None)
    };
    // Worth its place in the image only if it saves something.
    let smaller = |packed: Option<Vec<u8>>| packed.filter(|p| p.len() + p.len() / 20 < data.len());
    let (brotli, gzip) = (smaller(brotli), smaller(gzip));
    let line = index_line(&Resource {
        root,
        path,
        content_type: &content_type,
        mtime: mtime(file).map_err(io)?,
        plain: Variant { file: &plain_file, etag: &tag, len: data.len() as u64 },
        brotli: brotli.as_ref().map(|b| Variant { file: &brotli_file, etag: &brotli_tag, len: b.len() as u64 }),
        gzip: gzip.as_ref().map(|g| Variant { file: &gzip_file, etag: &gzip_tag, len: g.len() as u64 }),
    });
    let line = line.map_err(|_| Error::Name(file.into(), "has a name that cannot be served"))?;
    out.resources += 1;
    out.plain_bytes += data.len() as u64;
    out.files.push((plain_file, Source::Path(file.into())));
    out.files.extend(brotli.map(|b| (brotli_file, Source::Bytes(b))));
    out.files.extend(gzip.map(|g| (gzip_file, Source::Bytes(g))));
    Ok(line)
}

fn mtime(file: &Path) -> std::io::Result<u64> {
    if let Some(epoch) = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|v| v.parse().ok()) {
        return Ok(epoch);
    }
    let modified = fs::metadata(file)?.modified()?;
    Ok(modified.duration_since(std::time::UNIX_EPOCH).map_or(ALWAYS, |d| d.as_secs()))
}

fn content_type(path: &str, data: &[u8]) -> String {
    let guess = mime_guess::from_path(path).first_raw().unwrap_or(match std::str::from_utf8(data) {
        Ok(_) => "text/plain",
        Err(_) => "application/octet-stream",
    });
    if guess.starts_with("text/") || matches!(guess, "application/javascript" | "application/json") {
        format!("{guess}; charset=utf-8")
    } else {
        guess.into()
    }
}

fn compressible(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or("");
    essence.starts_with("text/")
        || ["json", "javascript", "xml", "wasm", "manifest", "x-icon", "font/ttf", "font/otf", "bmp", "pdf"]
            .iter()
            .any(|part| essence.ends_with(part))
}

fn brotli(data: &[u8]) -> Vec<u8> {
    let quality = if data.len() <= SLOW_TO { 11 } else { 7 };
    let params = brotli::enc::BrotliEncoderParams { quality, lgwin: 22, ..Default::default() };
    let mut out = vec![];
    // Writing to a vector cannot fail; if it did, an empty variant would be larger than nothing and be refused.
    match brotli::BrotliCompress(&mut &data[..], &mut out, &params) {
        Ok(_) => out,
        Err(_) => data.to_vec(),
    }
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::best());
    match encoder.write_all(data).and_then(|()| encoder.finish()) {
        Ok(out) => out,
        Err(_) => data.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Auth, Proxy, Rule};

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("donjon-site-{name}-{}", std::process::id()));
        _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("public/sub")).unwrap();
        fs::create_dir_all(dir.join("public/.well-known")).unwrap();
        fs::create_dir_all(dir.join("public/.git")).unwrap();
        fs::write(dir.join("public/index.html"), "<p>hello</p>\n".repeat(100)).unwrap();
        fs::write(dir.join("public/sub/pic.png"), [7; 5000]).unwrap();
        fs::write(dir.join("public/.well-known/x"), "x").unwrap();
        fs::write(dir.join("public/.git/config"), "secret").unwrap();
        fs::write(dir.join("public/.env"), "secret").unwrap();
        dir
    }

    fn index(p: &Prepared) -> String {
        let (_, source) = p.files.iter().find(|(path, _)| path == INDEX_PATH).unwrap();
        let Source::Bytes(bytes) = source else { panic!("the index is generated") };
        String::from_utf8(bytes.clone()).unwrap()
    }

    #[test]
    fn a_directory_becomes_a_site() {
        let dir = scratch("plain");
        let p = prepare(&dir, &Options::default()).unwrap();
        let text = index(&p);
        let all: Vec<_> = donjon_web_format::parse_index(&text).map(Result::unwrap).collect();
        let paths: Vec<_> = all.iter().map(|r| r.path).collect();
        assert_eq!(paths, ["/.well-known/x", "/index.html", "/sub/pic.png"], "no dot files");
        assert_eq!(all[1].content_type, "text/html; charset=utf-8");
        assert!(all[1].brotli.unwrap().len < all[1].plain.len / 10 && all[1].gzip.is_some());
        assert_eq!((all[2].content_type, all[2].brotli), ("image/png", None));
        assert!(p.features().is_empty() && p.resources == 3);
        assert!(!donjon_image::bundle::bundle_sources(p.files).unwrap().is_empty());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn options_are_checked() {
        let dir = scratch("options");
        let problem = |f: fn(&mut Options)| {
            let mut o = Options::default();
            f(&mut o);
            prepare(&dir, &o).err().unwrap().to_string()
        };
        for (f, want) in [
            ((|o| o.root = Some("nothing".into())) as fn(&mut Options), "nothing is not a directory"),
            (|o| o.redirect = true, "redirect: there is nothing"),
            (|o| o.hsts = Some(1), "hsts:"),
            (|o| o.http = Some(0), "turns the only port off"),
            (|o| o.metrics = Some(80), "every port can be used once"),
            (|o| o.spa = Some("x".into()), "must start with /"),
            (|o| o.spa = Some("/x".into()), "the site has no /x"),
            (|o| o.headers = vec![Rule { path: "*".into(), name: "a b".into(), value: "".into() }], "not the name"),
            (|o| o.headers = vec![Rule { path: "*".into(), name: "a".into(), value: "\r\nb".into() }], "control"),
            (
                |o| o.headers = vec![Rule { path: "*".into(), name: "Connection".into(), value: "x".into() }],
                "by the server",
            ),
            (|o| o.proxy = vec![Proxy { path: "/a".into(), to: "nowhere".into() }], "not ADDRESS:PORT"),
            (|o| o.proxy = vec![Proxy { path: "a".into(), to: "a:1".into() }], "must start with /"),
            (
                |o| o.auth = vec![Auth { path: "*".into(), realm: None, user: "".into(), password: "".into() }],
                "needs a user",
            ),
        ] {
            let got = problem(f);
            assert!(got.contains(want), "{got} / {want}");
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn links_out_of_the_directory_are_refused() {
        let dir = scratch("links");
        fs::write(dir.join("outside"), "s").unwrap();
        std::os::unix::fs::symlink("../outside", dir.join("public/link")).unwrap();
        assert!(prepare(&dir, &Options::default()).err().unwrap().to_string().contains("leads out"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn secrets_stay_out_of_the_image() {
        let dir = scratch("secrets");
        fs::write(dir.join("c.pem"), "chain").unwrap();
        fs::write(dir.join("k.pem"), "private").unwrap();
        let tls = Tls { cert: "c.pem".into(), key: "k.pem".into(), secret: None, names: vec![], key_in_image: false };
        let mut o = Options { tls: vec![tls], ..Options::default() };
        o.auth = vec![Auth { path: "*".into(), realm: None, user: "u".into(), password: "pass-word".into() }];
        let has = |p: &Prepared, what: &str| {
            let bytes = donjon_image::bundle::bundle_sources(p.files.clone()).unwrap();
            bytes.windows(what.len()).any(|w| w == what.as_bytes())
        };
        let p = prepare(&dir, &o).unwrap();
        assert!(!has(&p, "private") && !has(&p, "pass-word") && has(&p, "chain"));
        assert_eq!(p.secrets, [("tls-key".into(), dir.join("k.pem"))]);
        assert_eq!(p.features(), ["auth", "tls"]);
        o.tls[0].key_in_image = true;
        let p = prepare(&dir, &o).unwrap();
        assert!(has(&p, "private") && p.secrets.is_empty());
        fs::remove_dir_all(dir).unwrap();
    }
}
