use super::*;
use crate::{Auth, Proxy, Rule};

fn prepare(base: &Path, options: &Options, cache: Option<&Path>, scratch: &Path) -> Result<Prepared, Error> {
    super::prepare(base, options, Places { cache, scratch, output: Path::new("/site.img") })
}

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
    let p = prepare(&dir, &Options::default(), None, &dir).unwrap();
    let text = index(&p);
    let all: Vec<_> = donjon_web_format::parse_index(&text).map(Result::unwrap).collect();
    let paths: Vec<_> = all.iter().map(|r| r.path).collect();
    assert_eq!(paths, ["/.well-known/x", "/index.html", "/sub/pic.png"], "no dot files");
    assert_eq!(all[1].content_type, "text/html; charset=utf-8");
    assert!(all[1].brotli.unwrap().len < all[1].plain.len / 10 && all[1].gzip.is_some());
    assert_eq!((all[2].content_type, all[2].brotli), ("image/png", None));
    assert!(p.features().is_empty() && p.resources == 3);
    let tags: Vec<_> = [Some(all[1].plain), all[1].brotli, all[1].gzip].map(|v| v.unwrap().etag).into();
    let of = |v: Variant<'_>| {
        let mut bytes = vec![];
        p.files.iter().find(|(path, _)| path == v.file).unwrap().1.write_to(&mut bytes).unwrap();
        hex(&blake3::hash(&bytes).as_bytes()[..10])
    };
    assert_eq!(tags, [of(all[1].plain), of(all[1].brotli.unwrap()), of(all[1].gzip.unwrap())]);

    // What the index says of a file is what is packed.
    let bundle = donjon_image::bundle::bundle_sources(p.files.clone()).unwrap();
    assert!(!bundle.to_bytes().unwrap().is_empty());
    fs::write(dir.join("public/index.html"), "<p>HELLO</p>\n".repeat(100)).unwrap();
    let changed = bundle.to_bytes().map(|b| b.len()).unwrap_err().to_string();
    assert!(changed.contains("index.html has changed"), "{changed}");
    fs::remove_dir_all(dir).unwrap();
}

fn to(path: &str, upstream: &str) -> Proxy {
    Proxy { path: path.into(), to: upstream.into(), pin: false }
}

fn area(pattern: &str) -> Auth {
    let password = Some("x".into());
    Auth { path: pattern.into(), realm: None, user: "u".into(), password, password_file: None }
}

fn host(name: &str) -> std::collections::BTreeMap<String, PathBuf> {
    [(name.to_owned(), "public".into())].into()
}

#[test]
fn options_are_checked() {
    let dir = scratch("options");
    let problem = |f: fn(&mut Options)| {
        let mut o = Options::default();
        f(&mut o);
        prepare(&dir, &o, None, &dir).err().unwrap().to_string()
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
        (|o| o.trusted_proxy = vec!["10.0.0.1/8".into()], "`10.0.0.1/8` is no network"),
        (|o| o.proxy = vec![to("/a", "nowhere")], "not ADDRESS:PORT"),
        (|o| o.proxy = vec![to("a", "a:1")], "must start with /"),
        (|o| o.proxy = vec![to("/a", "[::1]:1")], "the image itself"),
        (|o| o.proxy = vec![to("/a", "http://10.0.0.1:80")], "not ADDRESS:PORT"),
        (|o| o.proxy = vec![Proxy { pin: true, ..to("/a", "no-such-name.invalid:80") }], "cannot find"),
        (|o| o.proxy = vec![to("/glob/*", "a:1")], "`/glob/*` would match nothing"),
        (|o| o.proxy = vec![to("/a//b", "a:1")], "`/a//b` would match nothing"),
        (|o| o.proxy = vec![to("/a/../b", "a:1")], "`/a/../b` would match nothing"),
        (|o| o.proxy = vec![to("/my%20api", "a:1")], "`/my%20api` would match nothing"),
        (|o| o.hosts = host("*.w.example"), "`*.w.example` is not the name of a host"),
        (|o| o.hosts = host("b\u{fc}cher.example"), "`b\u{fc}cher.example` is not the name of a host"),
        (|o| o.hosts = host("p.example:8080"), "`p.example:8080` is not the name of a host"),
        (|o| o.hosts = host("p.example."), "`p.example.` is not the name of a host"),
        (|o| o.hosts = host(""), "`` is not the name of a host"),
        (
            |o| o.hosts = [host("a.example"), host("A.example")].into_iter().flatten().collect(),
            "`a.example` is there twice",
        ),
        (|o| o.auth = vec![area("admin/*")], "auth: the pattern `admin/*` matches no path"),
        (|o| o.cache = vec![("a.css".into(), "x".into())], "cache: the pattern `a.css` matches no path"),
        (
            |o| o.headers = vec![Rule { path: ".html".into(), name: "a".into(), value: "b".into() }],
            "header: the pattern `.html` matches no path",
        ),
        (|o| o.upstream_seconds = Some(0), "upstream_seconds: 0"),
        (|o| o.auth = vec![Auth { user: "".into(), ..area("*") }], "needs a user"),
    ] {
        let got = problem(f);
        assert!(got.contains(want), "{got} / {want}");
    }
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn upstreams_that_may_be_anywhere_are_said() {
    let dir = scratch("upstreams");
    let warnings = |upstream: &str| {
        let o = Options { proxy: vec![to("/a", upstream)], upstream_seconds: Some(7), ..Options::default() };
        let p = prepare(&dir, &o, None, &dir).unwrap();
        assert_eq!(p.config.limits.upstream_seconds, 7);
        p.warnings
    };
    assert!(warnings("10.0.0.5:80").is_empty() && warnings("[fd00::1]:80").is_empty());
    let said = warnings("api.example:8080");
    assert!(said.len() == 1 && said[0].contains("`api.example`") && said[0].contains("port 8080 of any"), "{said:?}");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn times_that_say_nothing() {
    let dir = scratch("times");
    let time = |epoch: Option<&str>| mtime(&dir.join("public"), epoch.map(String::from)).unwrap();
    assert!(time(None) > 1_500_000_000 && time(Some("yesterday")) == time(None));
    assert_eq!(time(Some("1700000000")), 0);
}

#[test]
fn areas_that_protect_nothing_are_said() {
    let dir = scratch("areas");
    fs::create_dir(dir.join("public/my files")).unwrap();
    fs::write(dir.join("public/my files/x.pdf"), "x").unwrap();
    let areas = [
        ("*", true),
        ("*.png", true),
        ("/sub/*", true),
        ("/sub/pic.png/*", true),
        ("/my files/", true),
        ("/healthz", true),
        ("/api/*", true),
        ("/api*", true),
        ("/api/x", true),
        ("/a*/x", true),
        ("/Sub/*", false),
        ("/sub", false),
        ("/my%20files/*", false),
        ("/apis/*", false),
        ("/apis", false),
    ];
    let options = Options {
        auth: areas.iter().map(|(pattern, _)| area(pattern)).collect(),
        proxy: vec![to("/api/", "10.0.0.5:80")],
        ..Options::default()
    };
    let said = prepare(&dir, &options, None, &dir).unwrap().warnings;
    for (pattern, protects) in areas {
        let of_it = said.iter().filter(|w| w.starts_with(&format!("auth: `{pattern}` is for no file"))).count();
        assert_eq!(of_it, usize::from(!protects), "{pattern}: {said:?}");
    }
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_default_root_that_is_not_packed_is_said() {
    let dir = scratch("hosts");
    fs::create_dir(dir.join("a")).unwrap();
    let warnings = |root: Option<&str>, hosts: &[(&str, &str)]| {
        let hosts = hosts.iter().map(|(name, dir)| ((*name).to_owned(), (*dir).into())).collect();
        let o = Options { root: root.map(Into::into), hosts, ..Options::default() };
        prepare(&dir, &o, None, &dir).unwrap().warnings
    };
    let said = warnings(None, &[("a.example", "a")]);
    assert!(said.len() == 1 && said[0].contains("421: `root = \"public\"`"), "{said:?}");
    assert!(warnings(Some("public"), &[("a.example", "a")]).is_empty());
    assert!(warnings(None, &[("a.example", "a"), ("*", "a")]).is_empty());
    assert!(warnings(None, &[("a.example", "a"), ("b.example", "public")]).is_empty());
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn text_is_known_from_its_bytes() {
    let dir = scratch("text");
    let file = dir.join("x");
    // Characters of two bytes that the ends of chunks cut through, and a file that ends in the middle of one.
    let text = format!("x{}", "\u{e9}".repeat(100_000));
    for (bytes, utf8) in [
        (text.as_bytes(), true),
        (&text.as_bytes()[..200_000], false),
        (&[text.as_bytes(), b"\xff", text.as_bytes()].concat(), false),
        (b"", true),
    ] {
        fs::write(&file, bytes).unwrap();
        let seen = read(&file).unwrap();
        assert_eq!((seen.len, seen.hash, seen.utf8), (bytes.len() as u64, blake3::hash(bytes), utf8));
    }
    for (name, in_utf8, else_as) in [
        ("/a.html", "text/html; charset=utf-8", "text/html"),
        ("/a.json", "application/json; charset=utf-8", "application/json"),
        ("/a.png", "image/png", "image/png"),
        ("/a", "text/plain; charset=utf-8", "application/octet-stream"),
    ] {
        assert_eq!([content_type(name, true), content_type(name, false)], [in_utf8, else_as]);
    }
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn content_has_an_end() {
    let dir = scratch("much");
    let refused = || {
        let error = prepare(&dir, &Options::default(), None, &dir).err().unwrap();
        assert!(matches!(error, Error::TooMuch(..)) && error.hint().is_some(), "{error}");
    };
    // It occupies nothing on the disk.
    let sparse = dir.join("public/sparse.bin");
    fs::File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
    refused();
    fs::remove_file(sparse).unwrap();
    // Each has two links to the next: twice as many files in each.
    let level = |n: usize| dir.join(format!("public/level{n}"));
    for n in 0..40 {
        fs::create_dir(level(n)).unwrap();
    }
    for (n, link) in (0..39).flat_map(|n| [(n, "a"), (n, "b")]) {
        std::os::unix::fs::symlink(level(n + 1), level(n).join(link)).unwrap();
    }
    fs::write(level(39).join("file"), "x").unwrap();
    refused();
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn links_out_of_the_directory_are_refused() {
    let dir = scratch("links");
    fs::write(dir.join("outside"), "s").unwrap();
    std::os::unix::fs::symlink("../outside", dir.join("public/link")).unwrap();
    assert!(prepare(&dir, &Options::default(), None, &dir).err().unwrap().to_string().contains("leads out"));
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn an_image_is_not_in_the_next() {
    let dir = scratch("again");
    let public = dir.join("public");
    let paths = |output: &Path, options: &Options| {
        let places = Places { cache: None, scratch: &dir, output };
        super::prepare(&dir, options, places).map(|p| index(&p)).map_err(|e| e.to_string())
    };
    let (output, before) = (public.join("site.img"), paths(&public.join("site.img"), &Options::default()).unwrap());
    for name in ["site.img", "site.img.debug", "site.img.17.part", "site.img.debug.17.part"] {
        fs::write(public.join(name), "image").unwrap();
    }
    std::os::unix::fs::symlink("../site.img", public.join("sub/latest")).unwrap();
    assert_eq!(paths(&output, &Options::default()).unwrap(), before);
    // By another name for its directory; and a directory that it will be in.
    std::os::unix::fs::symlink("public", dir.join("www")).unwrap();
    assert_eq!(paths(&dir.join("www/site.img"), &Options::default()).unwrap(), before);
    assert!(!paths(&public.join("sub"), &Options::default()).unwrap().contains("pic.png"));
    assert!(paths(&dir.join("site.img"), &Options::default()).unwrap().contains("/site.img.debug"), "not made here");
    // One that has a key in it is refused there: from another place the next one would have it.
    let tls = Tls { cert: "c".into(), key: Some("k".into()), secret: None, names: vec![], embed_key: true };
    let embedded = Options { tls: vec![tls], ..Options::default() };
    let error = paths(&output, &embedded).unwrap_err();
    assert!(error.contains("site.img is in the directory that would be served to everybody"), "{error}");
    assert!(paths(&dir.join("site.img"), &embedded).unwrap_err().contains("/c: No such file"));
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn secrets_stay_out_of_the_image() {
    let dir = scratch("secrets");
    let pair = rcgen::generate_simple_self_signed(["a.example".into(), "*.b.example".into()]).unwrap();
    let (cert, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
    fs::write(dir.join("c.pem"), &cert).unwrap();
    fs::write(dir.join("k.pem"), &key).unwrap();
    fs::write(dir.join("pw"), "pass-word\n").unwrap();
    let tls = Tls { cert: "c.pem".into(), key: Some("k.pem".into()), secret: None, names: vec![], embed_key: false };
    let mut o = Options { tls: vec![tls], ..Options::default() };
    let file = Some("pw".into());
    o.auth = vec![Auth { path: "*".into(), realm: None, user: "u".into(), password: None, password_file: file }];
    let has = |p: &Prepared, what: &str| {
        let bytes = donjon_image::bundle::bundle_sources(p.files.clone()).unwrap().to_bytes().unwrap();
        bytes.windows(what.len()).any(|w| w == what.as_bytes())
    };
    let p = prepare(&dir, &o, None, &dir).unwrap();
    assert!(!has(&p, &key) && !has(&p, "pass-word") && has(&p, &cert));
    assert_eq!(p.secrets, [("tls-key".into(), Some(dir.join("k.pem")))]);
    assert_eq!(p.features(), ["auth", "tls"]);
    assert_eq!(p.config.certificates[0].names, "a.example,*.b.example");
    assert!(p.warnings.is_empty(), "{:?}", p.warnings);
    let hosts = ["a.example", "x.b.example", "b.example", "*"].map(|name| (name.to_owned(), "public".into()));
    let more = Options { hosts: hosts.into(), ..o.clone() };
    let p = prepare(&dir, &more, None, &dir).unwrap();
    assert!(p.warnings.len() == 1 && p.warnings[0].contains("virtual host `b.example`"), "{:?}", p.warnings);
    let mut named = o.clone();
    named.tls[0].names = vec!["A.example".into(), "c.example".into()];
    let p = prepare(&dir, &named, None, &dir).unwrap();
    assert!(p.warnings.len() == 1 && p.warnings[0].contains("not for `c.example`"), "{:?}", p.warnings);
    // Certificates for one key, and more keys than a guest can be handed.
    let same = Tls { secret: Some("tls-key".into()), key: None, ..o.tls[0].clone() };
    let mut two = Options { tls: vec![same.clone(), o.tls[0].clone(), same], ..o.clone() };
    assert_eq!(
        prepare(&dir, &two, None, &dir).unwrap().secrets,
        [("tls-key".into(), None), ("tls-key-2".into(), Some(dir.join("k.pem")))]
    );
    fs::copy(dir.join("k.pem"), dir.join("copy.pem")).unwrap();
    (two.tls[0].key, two.tls[2].key) = (Some("k.pem".into()), Some("copy.pem".into()));
    let error = prepare(&dir, &two, None, &dir).unwrap_err().to_string();
    assert!(error.contains("`tls-key` is for two keys"), "{error}");
    let mut many = Options { tls: vec![o.tls[0].clone(); 16], ..o.clone() };
    assert_eq!(prepare(&dir, &many, None, &dir).unwrap().secrets.len(), 16);
    many.tls.push(o.tls[0].clone());
    let error = prepare(&dir, &many, None, &dir).unwrap_err().to_string();
    assert!(error.contains("more than 16 keys"), "{error}");
    for bad in [".key", "a/b", "", "a-name-that-is-more-than-32-bytes-"] {
        let mut named = o.clone();
        named.tls[0].secret = Some(bad.into());
        let error = prepare(&dir, &named, None, &dir).unwrap_err().to_string();
        assert!(error.contains("is no name"), "{bad}: {error}");
    }
    o.tls[0].embed_key = true;
    let p = prepare(&dir, &o, None, &dir).unwrap();
    assert!(has(&p, &key) && p.secrets.is_empty());

    // What is wrong with a certificate or a key is said here, not when the guest starts.
    let problem = |o: &Options| prepare(&dir, o, None, &dir).unwrap_err().to_string();
    o.tls[0].key = None;
    assert!(problem(&o).contains("needs a `key`"));
    o.tls[0].embed_key = false;
    assert_eq!(prepare(&dir, &o, None, &dir).unwrap().secrets, [("tls-key".into(), None)]);
    let other = rcgen::generate_simple_self_signed(["a.example".into()]).unwrap();
    fs::write(dir.join("other.pem"), other.signing_key.serialize_pem()).unwrap();
    fs::write(dir.join("text"), "hello").unwrap();
    o.tls[0].key = Some("other.pem".into());
    assert!(problem(&o).contains("other.pem: is not the key of"), "{}", problem(&o));
    o.tls[0].key = Some("text".into());
    assert!(problem(&o).contains("text: has no private key in it"), "{}", problem(&o));
    o.tls[0].key = Some("c.pem".into());
    assert!(problem(&o).contains("c.pem: has no private key in it"), "{}", problem(&o));
    o.tls[0] = Tls { cert: "text".into(), key: None, ..o.tls[0].clone() };
    assert!(problem(&o).contains("text: has no certificate in it"), "{}", problem(&o));
    o.tls[0] = Tls { cert: "nothing".into(), ..o.tls[0].clone() };
    assert!(problem(&o).contains("nothing: No such file"), "{}", problem(&o));
    fs::copy(dir.join("k.pem"), dir.join("public/k.pem")).unwrap();
    o.tls[0] = Tls { cert: "c.pem".into(), key: Some("public/k.pem".into()), ..o.tls[0].clone() };
    assert!(problem(&o).contains("served to everybody"), "{}", problem(&o));
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn the_table_is_read_and_not_served() {
    let dir = scratch("table");
    assert_eq!(Options::load(&dir).unwrap(), None);
    fs::write(dir.join("Donjon.toml"), "memory = \"32M\"\n").unwrap();
    assert_eq!(Options::load(&dir).unwrap(), None);
    let text = "[web]\nroot = \".\"\nhsts = 60\ntls = [{ cert = \"c\" }]\n[web.cache]\n\"/*\" = \"no-cache\"\n\"*.css\" = \"max-age=9\"\n";
    fs::write(dir.join("Donjon.toml"), text).unwrap();
    let o = Options::load(&dir).unwrap().unwrap();
    assert_eq!((o.hsts, o.tls[0].key.as_ref()), (Some(60), None));
    let cache = |o: &Options| o.cache.iter().map(|(path, value)| format!("{path}={value}")).collect::<Vec<_>>();
    assert_eq!(cache(&o), ["/*=no-cache", "*.css=max-age=9"], "as written, for the last that matches holds");
    assert_eq!(o.config(&dir, vec![]).unwrap().cache[1].pattern, "*.css");
    let inline = "[web]\ncache = { z = \"1\", b = \"2\", a = \"3\" }\n[[web.headers]]\nname = \"x\"\nvalue = \"y\"\n";
    fs::write(dir.join("Donjon.toml"), inline).unwrap();
    assert_eq!(cache(&Options::load(&dir).unwrap().unwrap()), ["z=1", "b=2", "a=3"]);
    assert!(prepare(&dir, &o, None, &dir).unwrap_err().to_string().contains("Donjon.toml is in the directory"));
    fs::write(dir.join("Donjon.toml"), "[web]\nhtps = 1\n").unwrap();
    let problem = Options::load(&dir).unwrap_err().to_string();
    assert!(problem.contains("line 2") && problem.contains("unknown field `htps`"), "{problem}");
    fs::remove_dir_all(dir).unwrap();
}
