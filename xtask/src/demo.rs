//! `cargo xtask demo`: from nothing to a page that a sealed machine serves.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use donjon_tests::{Engine, Guest, measure};

use crate::process::{self, Result, cargo, failed, usage};
use crate::setup;

const EXAMPLE: &str = "hello-axum";
const PORT: u16 = 8080;

/// The task.
pub fn main<'a>(mut args: impl Iterator<Item = &'a str>) -> Result {
    let mut once = false;
    let mut engine = Engine::ProcessUser;
    while let Some(arg) = args.next() {
        match arg {
            "--once" => once = true,
            "--engine" => {
                engine = match args.next() {
                    Some("process") => Engine::ProcessUser,
                    Some("qemu") => Engine::QemuMicrovm,
                    other => return Err(usage(format!("--engine takes process or qemu, not {other:?}"))),
                }
            }
            _ => return Err(usage(format!("demo does not know {arg:?}"))),
        }
    }
    let missing = setup::ensure()?;
    for (needed, package) in [(true, "curl"), (engine.is_qemu(), "qemu-system-x86")] {
        if needed && missing.contains(&package) {
            return Err(failed(format!("this demo needs the package {package}; see above how to install it")));
        }
    }

    say("building the donjon command");
    // Without the web server that it carries, which takes minutes to build and is not shown here.
    process::run(cargo().args(["build", "--release", "--package", "donjon-cli", "--no-default-features"]))?;
    donjon_tests::choose_donjon(donjon_tests::target_dir().join("release/donjon"));

    say(&format!("building examples/{EXAMPLE}, an ordinary axum program, into an image"));
    let image = donjon_tests::target_dir().join("images").join(format!("{EXAMPLE}.img"));
    std::fs::create_dir_all(image.parent().expect("in a directory"))
        .map_err(|e| failed(format!("{}: {e}", image.display())))?;
    let source = donjon_tests::repo_root().join("examples").join(EXAMPLE);
    let started = Instant::now();
    process::run(donjon_tests::donjon_command().arg("build").arg(&source).arg("-o").arg(&image))?;
    let built = started.elapsed();
    let size = std::fs::metadata(&image).map_err(|e| failed(format!("{}: {e}", image.display())))?.len();

    say(&format!("booting it ({engine}) and waiting for its first answer"));
    let builder = Guest::builder(&image, engine).port(PORT);
    let spacing = if engine.is_qemu() { Duration::from_millis(5) } else { Duration::from_millis(1) };
    let (mut guest, first) = measure::first_answer(|| builder.start(), "/", spacing);

    say(&format!("fetching {} with curl", guest.url("/")));
    let page = String::from_utf8_lossy(&guest.curl(&["--include", &guest.url("/")])).into_owned();
    println!();
    for line in page.lines().take(24) {
        println!("    {line}");
    }

    let memory = measure::tree(guest.pid()).map_err(|e| failed(format!("memory of the guest: {e}")))?;
    println!("\n    image           {} bytes ({})", size, image.display());
    println!("    image built in  {:.1} s", built.as_secs_f64());
    println!("    first answer    {:.1} ms after exec", first.as_secs_f64() * 1e3);
    for m in &memory {
        let kind = if m.exact { "PSS" } else { "RSS" };
        println!("    memory ({kind})    {:.1} MiB  {} (pid {})", mib(m.pss), m.name, m.pid);
    }
    println!("    memory, total   {:.1} MiB", mib(memory.iter().map(|m| m.pss).sum()));

    if !once {
        println!("\n    It runs until Ctrl-C: {}\n", guest.url("/"));
        let (sender, stop) = mpsc::channel();
        let stop_now = move || {
            // Nobody listens any more only when the demo is ending anyway.
            let _ = sender.send(());
        };
        ctrlc::set_handler(stop_now).map_err(|e| failed(format!("signal handler: {e}")))?;
        while stop.recv_timeout(Duration::from_millis(200)).is_err() {
            if let Some(status) = guest.exit_status() {
                // Ctrl-C on a terminal reaches the guest's monitor as well, and perhaps before us.
                if stop.recv_timeout(Duration::from_millis(200)).is_ok() {
                    break;
                }
                return Err(failed(format!("the guest ended: {status}\n{}", guest.log())));
            }
        }
    }
    drop(guest);
    say("ended; nothing is left running");
    Ok(())
}

fn say(text: &str) {
    eprintln!("demo: {text}");
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
