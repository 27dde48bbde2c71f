//! Programs whose business is to find fault: `testssl.sh` and `slowhttptest`.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use donjon_tests::{Engine, Guest, Need, missing};

use super::Site;

/// Longest that a well-behaved client may have to wait while others do their worst. Far more than it ever does, far less than they last.
const SERVED: Duration = Duration::from_secs(10);

#[test]
#[ignore = "takes minutes: cargo xtask web-clients"]
fn testssl_finds_nothing_serious() {
    if missing("testssl_finds_nothing_serious", &[Need::Program("testssl")]) {
        return;
    }
    for engine in [Engine::ProcessUser, Engine::QemuMicrovm] {
        testssl(engine);
    }
}

fn testssl(engine: Engine) {
    let guest = Site::Redirect.start(engine);
    let json = super::scratch().join(format!("testssl-{engine:?}.json"));
    let mut command = guest.command("timeout");
    command.args(["1200", "testssl", "--quiet", "--color", "0", "--warnings", "off", "--nodns", "none"]);
    // Complaints about the certificate are about the one that this test has made: self-signed, no revocation, no DNS.
    let about_the_certificate = ["cert_", "OCSP", "DNS_CAArecord", "security_headers"];
    let output = command.arg("--jsonfile").arg(&json).arg(guest.addr_of(1).to_string()).output().unwrap();
    let report = std::fs::read_to_string(&json).unwrap_or_else(|e| {
        panic!("{e}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    });
    let findings = findings(&report);
    assert!(findings.len() > 50, "{report}");
    let serious: Vec<_> = findings
        .iter()
        .filter(|f| ["HIGH", "CRITICAL", "FATAL"].contains(&&*f.severity))
        .filter(|f| !about_the_certificate.iter().any(|c| f.id.starts_with(c)))
        .collect();
    assert!(serious.is_empty(), "{serious:#?}");
    // That it has looked at all.
    for id in ["TLS1_2", "TLS1_3", "heartbleed", "ROBOT", "BREACH"] {
        assert!(findings.iter().any(|f| f.id == id), "{id} was not tested: {report}");
    }
}

#[derive(Debug)]
struct Finding {
    id: String,
    severity: String,
    #[expect(dead_code, reason = "shown when the test fails")]
    text: String,
}

/// The records of testssl's flat JSON: objects of strings, one key a line.
fn findings(report: &str) -> Vec<Finding> {
    let objects = report.split("\"id\"").skip(1);
    let value = |object: &str, key: &str| {
        let rest = object.split(&format!("\"{key}\"")).nth(1)?;
        Some(rest.split('"').nth(1)?.to_owned())
    };
    objects
        .filter_map(|o| {
            let id = o.split('"').nth(1)?.to_owned();
            Some(Finding { id, severity: value(o, "severity")?, text: value(o, "finding")? })
        })
        .collect()
}

#[test]
fn slowhttptest_takes_no_service_away() {
    if missing("slowhttptest_takes_no_service_away", &[Need::Program("slowhttptest")]) {
        return;
    }
    crate::load::raise_file_limit();
    // Slow readers get a file each that fits into the kernel's buffers, so it is fewer of them: else this would be about bandwidth.
    let (head, body) = (&["-H", "-i", "1"][..], &["-B", "-i", "1", "-s", "8192"][..]);
    for (engine, site, path, connections, mode) in [
        (Engine::ProcessUser, Site::Plain, "/", "500", head),
        (Engine::ProcessUser, Site::Plain, "/", "500", body),
        (Engine::ProcessUser, Site::App, "/api/slow", "500", body),
        (
            Engine::ProcessUser,
            Site::Plain,
            "/data.bin",
            "100",
            &["-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "32"],
        ),
        (Engine::QemuMicrovm, Site::Plain, "/", "500", head),
        (Engine::QemuMicrovm, Site::App, "/api/slow", "500", body),
    ] {
        let mut guest = site.start(engine);
        let mut attack = attack(&guest, path, connections, mode);
        let (mut worst, mut served) = (Duration::ZERO, 0);
        while attack.try_wait().unwrap().is_none() {
            let started = Instant::now();
            assert_eq!(guest.get("/text.txt").unwrap().status, 200, "{mode:?}");
            worst = worst.max(started.elapsed());
            served += 1;
            // A visitor, not a load.
            std::thread::sleep(Duration::from_millis(50));
        }
        let output = attack.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            text.contains("slow HTTP test status"),
            "it has not run: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!text.contains("service available:   NO"), "{mode:?}: {text}");
        assert!(served > 5 && worst < SERVED, "{mode:?}: {served} served, the slowest in {worst:?}");
        println!("{engine}, {mode:?}: {served} served, the slowest in {worst:?}");
        guest.expect_alive();
    }
}

/// Connections that dawdle, for 8 seconds.
fn attack(guest: &Guest, path: &str, connections: &str, mode: &[&str]) -> Child {
    guest
        .command("slowhttptest")
        .args(["-c", connections, "-r", "200", "-l", "8", "-p", "3", "-u", &guest.url(path)])
        .args(mode)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}
