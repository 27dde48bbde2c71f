//! `donjon serve` and `donjon build --web`: from a directory to a server, with real clients.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use donjon_tests::{Engine, Guest, Need, donjon_command, have_program, measure, missing, target_dir};

use crate::bad_input::donjon;

crate::under_engines! {
    tls_with_a_key_that_is_handed_over: ProcessUser QemuMicrovm;
    a_directory_is_served_and_served_anew: ProcessUser QemuMicrovm;
}

/// A fresh directory with a small site in `public`.
fn site(name: &str) -> PathBuf {
    let dir = target_dir().join("scratch").join(format!("serve-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(dir.join("public/css")).unwrap();
    std::fs::write(dir.join("public/index.html"), "<!doctype html><title>first</title>\n").unwrap();
    std::fs::write(dir.join("public/css/a.css"), "p { color: red }\n".repeat(200)).unwrap();
    dir
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the scratch directory is UTF-8")
}

/// A certificate for `site.test` and its key, as files in `dir`.
fn certificate(dir: &Path) -> (PathBuf, PathBuf, String) {
    let made = rcgen::generate_simple_self_signed(["site.test".to_owned()]).unwrap();
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let secret = made.signing_key.serialize_pem();
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, &secret).unwrap();
    (cert, key, secret)
}

fn tls_with_a_key_that_is_handed_over(engine: Engine) {
    let dir = site(&format!("tls-{}", engine.to_string().replace('/', "-")));
    let (cert, key, secret) = certificate(&dir);
    let image = dir.join("site.img");
    let (public, out) = (dir.join("public"), text(&image));
    let options = ["--tls", text(&cert), text(&key), "--redirect", "--hsts=60", "--cache", "*.css=max-age=9"];
    let built = donjon(&[&["build", "--web", text(&public), "-o", out, "--json"], &options[..]].concat());
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let about = String::from_utf8_lossy(&built.stdout).into_owned();
    assert!(about.contains(r#""secrets":["tls-key"]"#) && about.contains(r#""features":["tls"]"#), "{about}");

    // The key is in the image only if asked for.
    let holds_key = |path: &Path| {
        let (bytes, line) = (std::fs::read(path).unwrap(), secret.lines().nth(1).unwrap());
        bytes.windows(line.len()).any(|w| w == line.as_bytes())
    };
    assert!(!holds_key(&image));
    let open = dir.join("open.img");
    let args = [&["build", "--web", text(&public), "-o", text(&open), "--embed-key"], &options[..]].concat();
    assert!(donjon(&args).status.success() && holds_key(&open));
    let inspected = String::from_utf8_lossy(&donjon(&["inspect", out]).stdout).into_owned();
    assert!(inspected.contains("tls: in") && inspected.contains("proxy: absent"), "{inspected}");
    assert!(inspected.contains("tls-key") && inspected.contains("443/tcp"), "{inspected}");

    let without = donjon(&["run", out]);
    let why = String::from_utf8_lossy(&without.stderr).into_owned();
    assert!(without.status.code() == Some(2) && why.contains("--secret tls-key=FILE"), "{why}");

    let secret = format!("--secret=tls-key={}", text(&key));
    let mut guest = Guest::builder(&image, engine).port(80).port(443).options([secret]).start();
    let https = guest.addr_of(1).port();
    let pinned = format!("site.test:{https}:127.0.0.1");
    let url = format!("https://site.test:{https}");
    let curl = |more: &[&str]| {
        let all = [
            &[
                "--resolve",
                pinned.as_str(),
                "--cacert",
                text(&cert),
                "--retry-all-errors",
                "--retry",
                "20",
                "--retry-delay",
                "1",
            ],
            more,
        ]
        .concat();
        String::from_utf8_lossy(&guest.curl(&all)).into_owned()
    };
    for (version, shown) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let format = "\n%{http_version} %{response_code}";
        let got = curl(&[version, "-w", format, &format!("{url}/")]);
        assert!(got.contains("<title>first</title>") && got.ends_with(&format!("{shown} 200")), "{got}");
    }
    let head = curl(&["-D", "-", "-o", "/dev/null", "-H", "Accept-Encoding: br", &format!("{url}/css/a.css")])
        .to_ascii_lowercase();
    assert!(head.contains("cache-control: max-age=9") && head.contains("content-encoding: br"), "{head}");
    assert!(head.contains("strict-transport-security: max-age=60"), "{head}");
    let plain = String::from_utf8_lossy(&guest.curl(&["-i", &guest.url("/x?y")])).to_ascii_lowercase();
    assert!(plain.contains("301") || plain.contains("308"), "{plain}");
    assert!(plain.contains("location: https://"), "{plain}");
    guest.expect_alive();
    std::fs::remove_dir_all(dir).unwrap();
}

/// `donjon serve` on a free port.
fn serve(dir: &Path, engine: Engine, more: &[&str]) -> Guest {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = donjon_command();
    let kind = if engine.is_qemu() { "qemu" } else { "process" };
    command.args(["serve", text(dir), "-p", &format!("{port}:80"), "--engine", kind]).args(more);
    command.env("XDG_CACHE_HOME", target_dir().join("scratch/cache"));
    Guest::program("donjon serve", command, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), None)
}

fn a_directory_is_served_and_served_anew(engine: Engine) {
    assert!(have_program("curl"));
    let dir = site(&format!("plain-{engine:?}"));
    let public = dir.join("public");
    let mut guest = serve(&public, engine, &["--listing", "--metrics", "9100"]);
    guest.wait_http("/");
    let log = guest.log();
    assert!(log.contains("tls: absent") && log.contains("http://127.0.0.1:"), "{log}");
    for (flag, version) in [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
        let got = guest.curl(&[flag, "-w", "%{http_version}", &guest.url("/css/a.css"), "-o", "/dev/null"]);
        assert_eq!(String::from_utf8_lossy(&got), version);
    }
    assert!(String::from_utf8_lossy(&guest.curl(&[&guest.url("/css/")])).contains("a.css"), "a listing");
    assert_eq!(guest.get("/healthz").unwrap().status, 200);
    // Asked to stop, it drains and ends well.
    let exit = guest.stop();
    assert_eq!(exit.code, Some(0), "{exit}");

    std::fs::write(public.join("index.html"), "<!doctype html><title>second</title>\n").unwrap();
    let mut guest = serve(&public, engine, &[]);
    guest.wait_http("/");
    assert!(String::from_utf8_lossy(&guest.curl(&[&guest.url("/")])).contains("second"));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn options_may_stand_in_donjon_toml() {
    let dir = site("table");
    let table = "name = \"mine\"\nmemory = \"32M\"\n[web]\nspa = \"/index.html\"\n[[web.headers]]\nname = \"X-Own\"\nvalue = \"yes\"\n";
    std::fs::write(dir.join("Donjon.toml"), table).unwrap();
    let mut guest = serve(&dir, Engine::ProcessUser, &[]);
    guest.wait_http("/");
    let got = String::from_utf8_lossy(&guest.curl(&["-i", "-H", "Accept: text/html", &guest.url("/no/such")]))
        .to_ascii_lowercase();
    assert!(got.contains(" 200 ") && got.contains("x-own: yes") && got.contains("<title>first"), "{got}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn what_is_wrong_is_said_before_anything_starts() {
    let dir = site("mistakes");
    let (cert, key, _) = certificate(&dir);
    let other = dir.join("other");
    std::fs::create_dir(&other).unwrap();
    let (_, wrong_key, _) = certificate(&other);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("{}:80", taken.local_addr().unwrap().port());
    let public = dir.join("public");
    let (nowhere, garbage, exposed) = (dir.join("nowhere"), dir.join("text"), public.join("key.pem"));
    std::fs::write(&garbage, "hello").unwrap();
    let text = |p: &Path| p.to_str().unwrap().to_owned();
    let [cert, key, wrong_key, nowhere, garbage] = [&cert, &key, &wrong_key, &nowhere, &garbage].map(|p| text(p));
    std::fs::copy(&key, &exposed).unwrap();
    let output = donjon(&["serve", &text(&public), "--tls", &cert, &text(&exposed)]);
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(65) && talk.contains("served to everybody"), "{talk}");
    std::fs::remove_file(&exposed).unwrap();
    for (args, code, said) in [
        (&["--tls", &cert, &wrong_key][..], 65, "is not the key of"),
        (&["--tls", &garbage, &key], 65, "has no certificate in it"),
        (&["--tls", &cert, &garbage], 65, "has no private key in it"),
        (&["--tls", &nowhere, &key], 66, "cannot read"),
        (&["--proxy", "/api=nowhere"], 65, "is not ADDRESS:PORT"),
        (&["--proxy", "/api=127.0.0.1:80"], 65, "would be the image itself"),
        (
            &["--proxy", "/api=no-such-name.invalid:80", "--pin"],
            65,
            "cannot find the address of `no-such-name.invalid`",
        ),
        (&["--pin"], 2, "--proxy"),
        (&["--upstream-seconds", "0"], 65, "no time at all"),
        (&["--header", "nonsense"], 2, "is not a header"),
        (&["--header", "A: b\u{1}"], 65, "control characters"),
        (&["--not-found", "/404.html"], 65, "the site has no /404.html"),
        (&["--auth", &format!("me:{nowhere}")], 66, "cannot read"),
        (&["--auth", &format!("admin/*=me:{nowhere}")], 65, "must start with / or *"),
        (&["--proxy", "/glob/*=10.0.0.5:80"], 65, "would match nothing"),
        (&["--redirect"], 65, "nothing to redirect to"),
        (&["--secret", &format!("x={key}")], 2, "does not ask for a secret `x`"),
        (&["-p", &port], 71, "cannot publish"),
    ] {
        let output = donjon_command().arg("serve").arg(&public).args(args).stdin(Stdio::null()).output().unwrap();
        let talk = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && talk.contains(said), "{args:?}: {talk}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn what_may_not_be_meant_is_said() {
    let dir = site("warnings");
    let mut params = rcgen::CertificateParams::new(["site.test".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2021, 1, 1));
    let made_key = rcgen::KeyPair::generate().unwrap();
    let (public, cert, key, image) = (dir.join("public"), dir.join("c.pem"), dir.join("k.pem"), dir.join("site.img"));
    std::fs::write(&cert, params.self_signed(&made_key).unwrap().pem()).unwrap();
    std::fs::write(&key, made_key.serialize_pem()).unwrap();
    let host = format!("--host=other.test={}", text(&public));
    let password = dir.join("pw");
    std::fs::write(&password, "secret\n").unwrap();
    let area = format!("--auth=/Admin/*=me:{}", text(&password));
    let output = donjon(&[
        "build",
        "--web",
        text(&public),
        "--tls",
        text(&cert),
        text(&key),
        &host,
        "--proxy",
        "/a=up.test:81",
        &area,
        "-o",
        text(&image),
        "--json",
    ]);
    let [said, talk] = [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b).into_owned());
    assert!(output.status.success(), "{talk}");
    for want in
        ["its certificate has expired", "virtual host `other.test`", "port 81 of any address", "`/Admin/*` is for no"]
    {
        let warned = talk.lines().any(|l| l.starts_with("donjon: warning: ") && l.contains(want));
        assert!(warned && said.contains(want), "{want}: {said}{talk}");
    }
    // An address is no reason for a word, and the only place where the image may go.
    let options = ["--proxy", "/a=10.0.0.5:81", "--pin", "--drain-seconds", "30", "-o", text(&image)];
    let output = donjon(&[&["build", "--web", text(&public)], &options[..]].concat());
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !talk.contains("warning:"), "{talk}");
    let about = String::from_utf8_lossy(&donjon(&["inspect", text(&image), "--json"]).stdout).into_owned();
    assert!(about.contains("10.0.0.5/32:81/tcp") && !about.contains("any:"), "{about}");
    // `donjon run` waits for what the server waits for.
    assert!(about.replace(' ', "").contains(r#""stop_seconds":32"#), "{about}");
    std::fs::remove_dir_all(dir).unwrap();
}

/// HTTP/1.1 and HTTP/2, and no TLS, proxy or passwords.
#[test]
fn a_small_site_is_below_a_million_bytes() {
    let dir = site("small");
    let image = dir.join("site.img");
    let built = donjon(&["build", "--web", text(&dir.join("public")), "-o", text(&image)]);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let bytes = std::fs::metadata(&image).unwrap().len();
    assert!(bytes < 1_000_000, "{bytes} bytes");
}

/// Most memory for packing, and for serving, what is several times as large.
const LITTLE: u64 = 100 << 20;
const SERVING: u64 = 8 << 20;

/// Where there is no other program at all, a site becomes an image; and only what it needs is in it.
#[test]
fn no_compiler_is_needed_and_nothing_unused_is_in() {
    let dir = site("bare");
    let image = dir.join("site.img");
    let bare = |words: &[&str]| {
        let mut command = Command::new(donjon_tests::donjon());
        let output = command.args(words).current_dir(&dir).env_clear().env("PATH", "").output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let (cert, key, _) = certificate(&dir);
    let crates = |more: &[&str]| -> Vec<String> {
        let started = std::time::Instant::now();
        bare(&[&["build", "--web", "public", "-o", text(&image)], more].concat());
        println!("{more:?}: {:?}", started.elapsed());
        let report = bare(&["inspect", "--crates", text(&image)]);
        report
            .lines()
            .filter(|l| l.starts_with("crate "))
            .filter_map(|l| l.split(' ').next_back())
            .map(String::from)
            .collect()
    };
    let plain = crates(&[]);
    let proxy = crates(&["--proxy", "/api=10.0.0.5:8080"]);
    let tls = crates(&["--tls", text(&cert), text(&key)]);
    let has = |list: &[String], name: &str| list.iter().any(|c| c == name);
    assert!(["hyper", "h2", "tokio", "donjon_os", "core"].iter().all(|c| has(&plain, c)), "{plain:?}");
    assert!(has(&tls, "rustls") && has(&tls, "ring"), "{tls:?}");
    assert!(!has(&plain, "rustls") && !has(&plain, "ring") && !has(&proxy, "rustls"), "{plain:?}");
    // Names of crates, and nothing else that stands in symbols.
    assert!(tls.iter().all(|c| c == "C" || c.len() > 1 && c != "mut"), "{tls:?}");
}

#[test]
fn large_content_costs_little_memory() {
    if missing("large_content_costs_little_memory", &[Need::Program("curl")]) {
        return;
    }
    let dir = site("large");
    let public = dir.join("public");
    // A file that is not compressed, and occupies no disk here (in the image it does); and text for each way of compressing.
    let video = 1 << 30;
    std::fs::File::create(public.join("video.bin")).unwrap().set_len(video).unwrap();
    let line = |n: u64| format!("{n} {:016x} a line of a log\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let text: String = (0..500_000).map(line).collect();
    std::fs::write(public.join("large.txt"), &text).unwrap();
    std::fs::write(public.join("middle.txt"), &text[..text.len() / 3]).unwrap();
    assert!(text.len() > 17 << 20 && text.len() < 24 << 20, "{}", text.len());

    let image = dir.join("site.img");
    let donjon = donjon_command();
    let mut command = Command::new("sh");
    // The limit makes sure; what was seen makes it a number.
    let limited = format!("ulimit -d {}; exec \"$0\" \"$@\"", LITTLE / 1024);
    command
        .args(["-c", &limited])
        .arg(donjon.get_program())
        .args(["build", "--web"])
        .arg(&public)
        .arg("-o")
        .arg(&image);
    let mut build = command.stdin(Stdio::null()).spawn().unwrap();
    let mut most = 0;
    let status = loop {
        most = most.max(measure::peak(build.id()).unwrap_or(0));
        if let Some(status) = build.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success());
    let content = video + text.len() as u64;
    println!("packing {content} bytes took {most} bytes of memory");
    assert!(most > 1 << 20 && most < LITTLE, "{most} bytes");
    let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "the site, the image and its symbols: {left:?}");

    let guest = Guest::builder(&image, Engine::ProcessUser).port(80).start_http("/healthz");
    let script = format!("curl -sS --fail '{}' | cmp -n {video} - /dev/zero", guest.url("/video.bin"));
    assert!(guest.command("sh").args(["-c", &script]).status().unwrap().success(), "{}", guest.log());
    for file in ["large.txt", "middle.txt"] {
        let plain = if file == "large.txt" { text.as_bytes() } else { &text.as_bytes()[..text.len() / 3] };
        for encoding in ["gzip", "br", "identity"] {
            let accept = format!("Accept-Encoding: {encoding}");
            let got = guest.curl(&["--compressed", "-H", &accept, &guest.url(&format!("/{file}"))]);
            assert!(got == plain, "{file} {encoding}: {} of {} bytes", got.len(), plain.len());
        }
    }
    let memory = measure::tree_anonymous(guest.pid()).unwrap();
    println!("serving it took {memory} bytes of memory that no file backs");
    // What has been read is mapped, and counted as the file's; how much of it the host keeps in memory is its own affair.
    let all = measure::tree(guest.pid()).unwrap();
    assert!(all.iter().map(|m| m.pss).sum::<u64>() > 2 * SERVING, "{all:?}");
    assert!(memory > 100_000 && memory < SERVING, "{memory} bytes: {all:?}");
    std::fs::remove_dir_all(dir).unwrap();
}

/// More of them than the guest has memory, in both of the ways in which they are sent: from the image, and as copies of which some are kept.
#[test]
fn many_small_files_fit_a_small_guest() {
    if missing("many_small_files_fit_a_small_guest", &[Need::Program("curl")]) {
        return;
    }
    const FILES: usize = 8000;
    let dir = site("many");
    std::fs::write(dir.join("Donjon.toml"), "memory = \"32M\"\n[web]\n").unwrap();
    for (kind, len) in [("mapped", 4000), ("copied", 2000)] {
        std::fs::create_dir(dir.join("public").join(kind)).unwrap();
        for n in 0..FILES {
            std::fs::write(dir.join(format!("public/{kind}/{n}.bin")), vec![n as u8; len]).unwrap();
        }
    }
    let image = dir.join("site.img");
    let built = donjon(&["build", "--web", text(&dir), "-o", text(&image)]);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let guest = Guest::builder(&image, Engine::ProcessUser).port(80).start_http("/healthz");
    // The second round is for what was not kept.
    for (kind, len) in [("mapped", 4000), ("copied", 2000)].repeat(2) {
        let all = guest.url(&format!("/{kind}/[0-{}].bin", FILES - 1));
        let got = guest.curl(&["-o", "/dev/null", "-w", "%{http_code} %{size_download}\n", &all]);
        let want = format!("200 {len}");
        let right = String::from_utf8_lossy(&got).lines().filter(|l| **l == want).count();
        assert_eq!(right, FILES, "{kind}: {}\n{}", guest.log(), String::from_utf8_lossy(&got));
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// The index lies in the guest's memory: an image of many files declares as much as that takes, and one that cannot hold it is not made.
#[test]
fn many_files_have_the_memory_that_their_index_takes() {
    const FILES: usize = 100_000;
    let dir = site("index");
    for n in 0..FILES {
        let sub = dir.join(format!("public/{}", n % 100));
        if n < 100 {
            std::fs::create_dir(&sub).unwrap();
        }
        std::fs::write(sub.join(format!("{n}.bin")), n.to_string()).unwrap();
    }
    let image = dir.join("site.img");
    let toml = |text: &str| std::fs::write(dir.join("Donjon.toml"), format!("{text}[web]\n")).unwrap();
    let build = || donjon(&["build", "--web", text(&dir), "-o", text(&image)]);
    let serves = |image: &Path| {
        let guest = Guest::builder(image, Engine::ProcessUser).port(80).start_http("/healthz");
        for n in [0, 4711, FILES - 1] {
            let answer = guest.get(&format!("/{}/{n}.bin", n % 100)).unwrap();
            assert_eq!((answer.status, answer.text()), (200, n.to_string()), "{}", guest.log());
        }
    };
    // Without a word about memory.
    toml("");
    let built = build();
    let said = String::from_utf8_lossy(&built.stderr).into_owned() + &String::from_utf8_lossy(&built.stdout);
    assert!(built.status.success() && said.contains(" MiB of memory"), "{said}");
    serves(&image);
    // With too little when it is started, which is said before it is.
    let refused = donjon(&["serve", text(&dir), "--memory", "64M"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(65), "{said}");
    assert!(said.contains("`--memory` is 67,108,864 bytes, and the server's index of 100,002 files"), "{said}");
    // With too little, which is what every image has by default.
    toml("memory = \"64M\"\n");
    let refused = build();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(65), "{said}");
    assert!(
        said.contains("`memory` is 67,108,864 bytes, and the server's index of 100,002 files takes about"),
        "{said}"
    );
    // With what it says that is enough.
    let enough =
        said.split("`memory = \"").nth(1).and_then(|s| s.split('"').next()).unwrap_or_else(|| panic!("{said}"));
    toml(&format!("memory = \"{enough}\"\n"));
    let built = build();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    serves(&image);
    std::fs::remove_dir_all(dir).unwrap();
}
