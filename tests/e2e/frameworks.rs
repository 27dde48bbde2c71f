//! Programs on other people's web frameworks, unmodified, with the clients of their users. `docs/compatibility.md` lists what else was tried.

use donjon_tests::{Builder, Engine, Guest, Need, missing, test_guest};

crate::under_engines! {
    actix_web: ProcessUser ProcessTap QemuMicrovm QemuQ35;
    tiny_http_and_sqlite: ProcessUser ProcessTap QemuMicrovm QemuQ35;
}

fn frameworks(engine: Engine) -> Builder {
    Guest::builder(&test_guest("frameworks"), engine).memory("64M").port(8080).port(8081)
}

/// What curl prints; port number `index` of the guest.
fn ask(guest: &Guest, index: usize, path: &str, options: &[&str]) -> String {
    let url = format!("http://{}{path}", guest.addr_of(index));
    String::from_utf8_lossy(&guest.curl(&[options, &[url.as_str()]].concat())).into_owned()
}

fn actix_web(engine: Engine) {
    let mut guest = frameworks(engine).start_http("/");
    assert_eq!(ask(&guest, 0, "/", &[]), "Hello from actix-web");
    assert_eq!(ask(&guest, 0, "/sum/40/2", &[]), r#"{"path":"40/2","sum":42}"#);
    let bundled =
        std::fs::metadata(donjon_tests::repo_root().join("tests/guests/frameworks/bundled.db")).unwrap().len();
    assert_eq!(ask(&guest, 0, "/blocking", &[]), format!("Ok(Ok({bundled}))"));
    let body = "x".repeat(100_000);
    assert!(ask(&guest, 0, "/echo", &["--data-binary", body.as_str()]) == body);
    assert_eq!(guest.get("/sum/40/-2").unwrap().status, 404);
    if !missing(&format!("frameworks under wrk {engine}"), &[Need::Program("wrk")]) {
        let url = guest.url("/sum/1/2");
        let output = guest.command("wrk").args(["-t1", "-c64", "-d2s", &url]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("Requests/sec"), "{text}\n{}", guest.log());
        assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}\n{}", guest.log());
    }
    guest.expect_alive();
    // It handles the signal itself, stops in order and returns from `main`.
    guest.stop().expect_code(0).expect_text("actix-web has stopped: Ok(())");
}

fn tiny_http_and_sqlite(engine: Engine) {
    let mut guest = frameworks(engine).start_http("/");
    assert_eq!(ask(&guest, 1, "/page", &[]), "Hello from tiny_http: /page");
    // Several clients at a time, each with its own notes.
    let (clients, notes) = (4, 10);
    std::thread::scope(|scope| {
        let guest = &guest;
        for client in 0..clients {
            scope.spawn(move || {
                for n in 0..notes {
                    let id = ask(guest, 1, "/add", &["--data", &format!("note {n} of {client}")]);
                    assert!(id.parse::<u32>().is_ok(), "{id}\n{}", guest.log());
                }
            });
        }
    });
    let all = clients * notes;
    assert_eq!(ask(&guest, 1, "/count", &[]), format!("{all} {all}"));
    assert_eq!(ask(&guest, 1, "/check", &[]), "wal ok");
    assert_eq!(ask(&guest, 1, "/count", &[]), format!("{all} {all}"));
    assert_eq!(ask(&guest, 1, "/bundled", &[]), "donjon, keep, bergfried");
    assert_eq!(ask(&guest, 1, "/read-only", &[]), "attempt to write a readonly database");
    guest.expect_alive();
}
