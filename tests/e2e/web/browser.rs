//! A real browser.

use std::process::Stdio;

use donjon_tests::{Engine, Need, missing};

use super::Site;

/// Loads a page with a style, a script, a picture, a request to the backend and a WebSocket, all through the server; the page itself
/// checks that everything has arrived and says so in its title.
#[test]
#[ignore = "needs Chromium: cargo xtask web-clients"]
fn chromium_loads_a_page() {
    if missing("chromium_loads_a_page", &[Need::Program("chromium")]) {
        return;
    }
    for engine in [Engine::ProcessUser, Engine::QemuMicrovm] {
        let guest = Site::App.start(engine);
        let profile = super::scratch().join(format!("chromium-{engine:?}"));
        let mut command = guest.command("timeout");
        // A profile of its own; no sandbox, because root has none in it; nothing that talks to anybody else.
        command
            .args(["120", "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg("--dump-dom")
            .arg(guest.url("/"));
        let output = command.stderr(Stdio::piped()).output().unwrap();
        let dom = String::from_utf8_lossy(&output.stdout);
        assert!(
            dom.contains("<title>all there</title>"),
            "{engine}: {dom}\n{}\n{}",
            String::from_utf8_lossy(&output.stderr),
            guest.log()
        );
    }
}
