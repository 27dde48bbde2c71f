//! The stock web server, as `donjon build --web` makes it, talked to by real clients.
//!
//! Four sites, each packed once for the whole run: [`Site::Plain`] needs no feature of the server, [`Site::App`] has passwords, a proxy and virtual
//! hosts, [`Site::Secure`] has TLS, [`Site::Redirect`] sends everybody there.

mod audit;
mod browser;
mod clients;
mod documented;
mod drain;
mod exhaustion;
mod hostile;
mod load;
mod proxied;
mod tls;
mod upstream;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use donjon_tests::{Builder, Certificate, Engine, Guest, donjon_command, target_dir};

pub use upstream::Upstream;

/// Stands in files that no client may ever get: beside the site's directory, in the image's own files, and in the root of another virtual host.
pub const CANARY: &str = "CANARY-9f31c0de";
/// What a file says that takes a password in [`Site::App`].
pub const SECRET: &str = "for alice";
/// Length of `/data.bin`, which does not compress.
pub const DATA: usize = 1 << 20;
/// The user and the password of `/private/` in [`Site::App`].
pub const USER: &str = "alice:correct horse";

/// A web site and its image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Site {
    Plain,
    App,
    Secure,
    Redirect,
}

impl Site {
    /// Its image, packed at the first call.
    pub fn image(self) -> PathBuf {
        static IMAGES: [OnceLock<PathBuf>; 4] = [const { OnceLock::new() }; 4];
        IMAGES[self as usize].get_or_init(|| pack(&format!("{self:?}").to_lowercase(), &self.options())).clone()
    }

    /// Port of the guest that clients use.
    pub fn port(self) -> u16 {
        if self == Site::Secure { 443 } else { 80 }
    }

    /// The image under an engine, its main port published.
    pub fn builder(self, engine: Engine) -> Builder {
        Guest::builder(&self.image(), engine).port(self.port())
    }

    /// Started, and ready to answer.
    pub fn start(self, engine: Engine) -> Guest {
        match self {
            Site::Plain | Site::App => self.builder(engine).start_http("/healthz"),
            // Plain HTTP is there too, and says when the server is up.
            Site::Secure | Site::Redirect => {
                Guest::builder(&self.image(), engine).port(80).port(443).start_http("/healthz")
            }
        }
    }

    fn options(self) -> Vec<String> {
        let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let [content, other] = ["content", "other"].map(|dir| scratch().join(dir).display().to_string());
        let certificates = || -> Vec<String> {
            let all = [certificate("one.test"), certificate("two.test"), Certificate::rsa(scratch(), "rsa.test")];
            // The tests are about TLS, not about how a key is handed over; and the keys were made a moment ago.
            let mut list = words(&["--embed-key"]);
            for c in all {
                list.extend(["--tls".into(), c.cert.display().to_string(), c.key.display().to_string()]);
            }
            list
        };
        let mut out = vec![content.clone()];
        out.extend(match self {
            Site::Plain => words(&[
                "--not-found",
                "/404.html",
                "--cache",
                "*.css=public, max-age=3600",
                "--header",
                "X-Frame-Options: DENY",
                "--header-seconds",
                "5",
                "--stall-seconds",
                "5",
                "--body-bytes",
                "100000",
            ]),
            Site::App => {
                let password = scratch().join("password.txt");
                fs::write(&password, USER.split_once(':').expect("user:password").1).expect("scratch is writable");
                let mut list = vec![format!("--auth=/private/*=alice:{}", password.display())];
                list.push(format!("--proxy=/api=10.0.2.2:{}", Upstream::shared().port()));
                // Nobody listens there.
                list.push("--proxy=/down=10.0.2.2:1".into());
                list.push(format!("--host=*={content}"));
                list.push(format!("--host=other.test={other}"));
                list.extend(words(&["--spa", "/index.html", "--listing", "--log", "--metrics", "9100"]));
                list.extend(words(&["--body-bytes", "2000000", "--stall-seconds", "5"]));
                list
            }
            Site::Secure => certificates(),
            Site::Redirect => [certificates(), words(&["--redirect", "--hsts", "--redirect-port", "8443"])].concat(),
        });
        out
    }
}

/// Packs a site, and returns its image.
fn pack(name: &str, options: &[String]) -> PathBuf {
    content();
    let image = scratch().join(format!("{name}.img"));
    let mut command = donjon_command();
    command.args(["build", "--web"]).args(options).arg("-o").arg(&image);
    let output = command.output().expect("run donjon");
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    image
}

/// A directory of this test run: content, images, keys. Made anew, so that nothing of an earlier run is taken for this one's.
pub fn scratch() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let all = target_dir().join("web-tests");
        // What is left over from runs that have ended; there may be nothing.
        for old in fs::read_dir(&all).into_iter().flatten().flatten() {
            if !Path::new("/proc").join(old.file_name()).exists() {
                let _ = fs::remove_dir_all(old.path());
            }
        }
        let dir = all.join(std::process::id().to_string());
        // A process of the same number may have been here.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("the target directory is writable");
        dir
    })
}

/// The directory that is served.
pub fn content() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = scratch().join("content");
        let write = |path: &str, bytes: &[u8]| {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().expect("below the directory")).expect("the target directory is writable");
            fs::write(&path, bytes).expect("the target directory is writable");
        };
        write("index.html", include_bytes!("page/index.html"));
        write("app.js", include_bytes!("page/app.js"));
        write("style.css", &[&include_bytes!("page/style.css")[..], "/* padding */\n".repeat(200).as_bytes()].concat());
        write("picture.png", PICTURE);
        write("404.html", b"<!doctype html><title>404</title><p>nothing here\n");
        write("text.txt", text().as_bytes());
        write("data.bin", &data());
        write("empty.txt", b"");
        write("sub/index.html", b"<!doctype html><p>the index of sub\n");
        write("files/a b.txt", b"a file with a space\n");
        write("files/\u{fc}ber & <co>.txt", b"a file with an umlaut\n");
        write("private/secret.txt", format!("{SECRET}\n").as_bytes());
        // None of these is to be had.
        write(".env", CANARY.as_bytes());
        write("../canary.txt", CANARY.as_bytes());
        write("../other/index.html", b"the other host\n");
        write("../other/other-canary.txt", CANARY.as_bytes());
        dir
    })
}

/// The content of `/text.txt`: compressible.
pub fn text() -> String {
    (0..4000).map(|n| format!("line {n} of a text that compresses well\n")).collect()
}

/// The content of `/data.bin`.
pub fn data() -> Vec<u8> {
    // SplitMix64: no run of it compresses.
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..DATA / 8).flat_map(|_| next().to_le_bytes()).collect()
}

/// One white pixel.
const PICTURE: &[u8] = &[
    0x89, b'P', b'N', b'G', 13, 10, 26, 10, 0, 0, 0, 13, b'I', b'H', b'D', b'R', 0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0,
    0x3a, 0x7e, 0x9b, 0x55, 0, 0, 0, 10, b'I', b'D', b'A', b'T', 0x78, 0x9c, 0x63, 0xf8, 0x0f, 0, 1, 1, 1, 0, 0x1b,
    0xb6, 0xee, 0x56, 0, 0, 0, 0, b'I', b'E', b'N', b'D', 0xae, 0x42, 0x60, 0x82,
];

/// A certificate and its key for this name, made for this run only.
pub fn certificate(name: &str) -> Certificate {
    Certificate::make(scratch(), name)
}

/// What `curl` said.
#[derive(Clone, Debug)]
pub struct Curl {
    /// `%{http_code}`.
    pub status: u16,
    /// `%{http_version}`.
    pub version: String,
    /// Header lines of the last response, names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Curl {
    /// Runs `curl` where the guest is reached. Fails the test if curl fails.
    #[track_caller]
    pub fn run(guest: &Guest, args: &[&str]) -> Curl {
        let mark = "\n--donjon-test--";
        let format = format!("{mark}%{{http_code}} %{{http_version}} %{{size_header}}");
        let out = guest.curl(&[&["--include", "--path-as-is", "--write-out", &format], args].concat());
        let at = out.windows(mark.len()).rposition(|w| w == mark.as_bytes()).expect("curl wrote its mark");
        let last = String::from_utf8_lossy(&out[at + mark.len()..]).into_owned();
        let mut words = last.split(' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let (status, version) = (word().parse().expect("a status"), word());
        // Several heads (100 Continue, redirects) may stand before the body; `size_header` is the sum of all.
        let size: usize = word().trim().parse().expect("a size");
        let head = String::from_utf8_lossy(&out[..size]).into_owned();
        let last_head = head.trim_end().rsplit("\r\n\r\n").next().unwrap_or_default();
        let headers = last_head.lines().filter_map(|l| l.split_once(':'));
        let headers = headers.map(|(n, v)| (n.trim().to_ascii_lowercase(), v.trim().to_owned())).collect();
        Curl { status, version, headers, body: out[size..at].to_vec() }
    }

    /// The value of a header; empty without one.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Curl {
        assert_eq!(self.status, status, "{:?}\n{}", self.headers, self.text());
        self
    }
}
