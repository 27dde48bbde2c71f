//! `--hardening`: what each protection costs, in requests for each second on the core.
//!
//! The same image under the same engine, once with everything, once without each protection alone, once without all of them. They are measured in turns,
//! so that what else the machine does meets all of them alike, and compared turn by turn. Without the allocator's hardening means an image with another
//! allocator (`guest/os/src/mem/soft.rs`), which only this bench builds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use donjon_tests::{GUEST_IP, Guest, HOST_IP, Netns, donjon, measure, repo_root, target_dir};
use serde::Serialize;

use crate::server::{MEMORY, backlog, guest_ip, image, site};
use crate::{Options, wrk};

/// What is left out, and how.
const LAYERS: [(&str, &str); 4] = [
    ("allocator hardening", "allocator"),
    ("frame filter", "frames"),
    ("the guest's system call rules", "calls"),
    ("the monitor's jail", "jail"),
];

/// One way to run the server.
struct Subject {
    name: String,
    guest: Guest,
}

/// What one layer costs, with so many connections.
#[derive(Serialize)]
struct Row {
    without: String,
    size: u32,
    connections: u32,
    /// Requests for each second on the core with everything, divided by the same without it; median and quartiles of the turns.
    ratio: [f64; 3],
    turns: usize,
}

/// Runs all of it.
pub fn main(options: &Options) -> Result<(), String> {
    let dir = target_dir().join("bench-web");
    let files = site(&dir, &options.sizes);
    let (hard, soft) = (image(donjon(), &dir, &files, "hard", &[]), image(&soft_donjon()?, &dir, &files, "soft", &[]));
    let monitor = monitor()?;
    let all: Vec<&str> = LAYERS.iter().map(|l| l.1).collect();
    let start = |name: &str, image: &Path, without: &[&str]| {
        eprintln!("starting: {name}");
        Subject { name: name.to_owned(), guest: start(&monitor, image, without) }
    };
    let mut subjects = vec![start("everything", &hard, &[])];
    for (name, layer) in LAYERS {
        subjects.push(start(&format!("without {name}"), if layer == "allocator" { &soft } else { &hard }, &[layer]));
    }
    subjects.push(start("without all of these", &soft, &all));
    for (name, image) in &options.against {
        subjects.push(start(&format!("against {name}"), image, &[]));
    }
    let mut rows = Vec::new();
    for size in &options.sizes {
        for connections in &options.connections {
            rows.extend(measure(&subjects, options, *size, *connections)?);
        }
    }
    print(&rows, options);
    let json = target_dir().join("bench-hardening.json");
    fs::write(&json, serde_json::to_string_pretty(&rows).expect("plain data")).map_err(|e| e.to_string())?;
    println!("\nwritten to {}", json.display());
    Ok(())
}

fn measure(subjects: &[Subject], options: &Options, size: u32, connections: u32) -> Result<Vec<Row>, String> {
    let mut turns: Vec<Vec<f64>> = Vec::new();
    for turn in 0..=options.turns {
        eprintln!("{size} KB, c{connections}: turn {turn} of {}", options.turns);
        let mut rates = vec![0.0; subjects.len()];
        // Forwards and backwards by turns: what drifts, drifts for all.
        let order: Vec<usize> =
            if turn % 2 == 0 { (0..subjects.len()).collect() } else { (0..subjects.len()).rev().collect() };
        for i in order {
            let subject = &subjects[i];
            let before = cpu(&subject.guest);
            let load = wrk::run(
                &subject.guest,
                &subject.guest.url(&format!("/{size}.bin")),
                &[],
                connections,
                options.seconds,
            )
            .map_err(|e| format!("{}: {e}", subject.name))?;
            let used = cpu(&subject.guest) - before;
            // wrk waits for its last answers for a tenth of a second or two; the requests are those of all the time.
            rates[i] = load.requests / used;
        }
        // The first one warms up.
        if turn > 0 {
            turns.push(rates);
        }
    }
    let row = |i: usize| {
        let mut ratios: Vec<f64> = turns.iter().map(|t| t[0] / t[i]).collect();
        ratios.sort_by(f64::total_cmp);
        let at = |part: f64| ratios[((ratios.len() - 1) as f64 * part).round() as usize];
        let without = subjects[i].name.clone();
        Row { without, size, connections, ratio: [at(0.5), at(0.25), at(0.75)], turns: ratios.len() }
    };
    Ok((1..subjects.len()).map(row).collect())
}

fn print(rows: &[Row], options: &Options) {
    println!(
        "\nRequests for each second that the server was on its core, with everything / without the layer (so 0.97 means that it costs 3 %)\n\
         process engine over a TAP; {} turns of {} s; median, and between which values the middle half lies\n",
        options.turns, options.seconds
    );
    for row in rows {
        let [median, low, high] = row.ratio;
        let cell = format!("{} KB, c{}", row.size, row.connections);
        println!("{cell:<14} {:<44} {median:.3}   {low:.3} to {high:.3}", row.without);
    }
}

/// Starts the image in a namespace of its own.
fn start(monitor: &Path, image: &Path, without: &[&str]) -> Guest {
    let ns = Netns::with_tap();
    ns.ip(&["link", "set", Netns::TAP, "txqueuelen", "20000"]);
    ns.ask_fast();
    backlog(&ns);
    let mut command = ns.command("taskset");
    command.args(["-c", "0"]).arg(monitor).arg(image).args(["--engine", "process", "-m", MEMORY.trim_end_matches('M')]);
    command.args(["--net", &format!("tap:{},ip={GUEST_IP}/24,gw={HOST_IP}", Netns::TAP)]);
    for layer in without.iter().filter(|l| **l != "allocator") {
        command.args(["--without", layer]);
    }
    let address = std::net::SocketAddrV4::new(guest_ip(), 80);
    let mut guest = Guest::program("donjon-monitor", command, address, Some(ns));
    guest.wait_http("/healthz");
    guest
}

/// Time on a core of a guest and its monitor, seconds; exact, where the hundredths of `stat` are not.
fn cpu(guest: &Guest) -> f64 {
    let tree = measure::tree(guest.pid()).unwrap_or_default();
    let one = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
        text.split_ascii_whitespace().next()?.parse::<f64>().ok()
    };
    tree.iter().filter_map(|p| one(p.pid)).sum::<f64>() / 1e9
}

/// The bare launcher, which can leave protections out; `donjon` cannot.
fn monitor() -> Result<PathBuf, String> {
    cargo(&["--package", "donjon-monitor"], &[])?;
    Ok(target_dir().join("release/donjon-monitor"))
}

/// A `donjon` whose images have the other allocator.
fn soft_donjon() -> Result<PathBuf, String> {
    let target = target_dir().join("bench-soft");
    eprintln!("building the server with another allocator: takes minutes, once");
    cargo(
        &["--package", "donjon-cli"],
        &[
            ("CARGO_TARGET_DIR", &target.display().to_string()),
            ("DONJON_DEV_CFG", "donjon_soft_heap"),
            ("DONJON_DEV_VARIANTS", "plain"),
        ],
    )?;
    Ok(target.join("release/donjon"))
}

fn cargo(args: &[&str], environment: &[(&str, &str)]) -> Result<(), String> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repo_root()).args(["build", "--release", "--quiet"]).args(args);
    command.envs(environment.iter().copied());
    let status = command.status().map_err(|e| format!("cannot run cargo: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("cargo build {}: {status}", args.join(" "))) }
}
