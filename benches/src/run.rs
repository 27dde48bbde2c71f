//! The measurements, the table, and the JSON.

use std::time::Duration;

use donjon_tests::{Guest, Need, have, measure, target_dir};
use serde::Serialize;

use crate::subject::Subject;
use crate::{Options, wrk};

/// Connections at which load is measured. 16 is for comparisons with figures that others published.
const CONNECTIONS: &[u32] = &[1, 16, 64, 1000];

/// All that was measured of one subject.
#[derive(Serialize, Debug)]
struct Figures {
    subject: &'static str,
    /// Size of the image or the stripped program, bytes.
    file_bytes: u64,
    /// Median time from exec to the first 200, microseconds.
    first_answer: f64,
    /// PSS of everything that was started, after the first answer, bytes.
    pss_idle: u64,
    /// The same after the load.
    pss_loaded: u64,
    /// QEMU: guest memory touched, after the first answer and after the load, bytes.
    guest_touched: Option<(u64, u64)>,
    loads: Vec<wrk::Load>,
    /// Bytes per second.
    download: Option<f64>,
    /// Bytes per second.
    upload: Option<f64>,
    notes: Vec<String>,
}

/// Measures and prints.
pub fn all(options: &Options) {
    raise_file_limit();
    let path =
        options.path.clone().unwrap_or_else(|| if options.example == "hello-std" { "/" } else { "/json" }.into());
    let wanted = |s: &Subject| options.only.is_empty() || options.only.contains(s);
    let mut figures = Vec::new();
    for subject in Subject::ALL.into_iter().filter(wanted) {
        if !subject.possible() {
            eprintln!("SKIP {}: this machine or user cannot run it", subject.name());
            continue;
        }
        eprintln!("measuring {}", subject.name());
        figures.push(one(subject, options, &path));
    }
    print_table(&figures, options, &path);
    let json = target_dir().join("bench.json");
    let text = serde_json::to_string_pretty(&figures).expect("plain data");
    match std::fs::write(&json, text) {
        Ok(()) => println!("\nwritten to {}", json.display()),
        Err(e) => eprintln!("cannot write {}: {e}", json.display()),
    }
}

fn one(subject: Subject, options: &Options, path: &str) -> Figures {
    let program = &options.example;
    let file_bytes = std::fs::metadata(subject.file(program)).map_or(0, |m| m.len());
    let spacing = if subject.is_qemu() { Duration::from_millis(5) } else { Duration::from_micros(500) };
    let mut times = Vec::new();
    let mut guest = None;
    for _ in 0..options.starts {
        // One at a time: the one before must be gone.
        drop(guest.take());
        let (started, took) = measure::first_answer(|| subject.start(program), path, spacing);
        times.push(took.as_secs_f64() * 1e6);
        guest = Some(started);
    }
    times.sort_by(f64::total_cmp);
    let guest = guest.expect("started at least once");
    let memory = |guest: &Guest| measure::tree_pss(guest.pid()).unwrap_or(0);
    let pss_idle = memory(&guest);
    let touched_idle = touched(&guest);
    let mut notes = Vec::new();
    let mut loads = Vec::new();
    if have(Need::Program("wrk")) {
        for connections in CONNECTIONS {
            // A short warm-up, not measured.
            let _ = wrk::run(&guest, &guest.url(path), &[], *connections, 1);
            match wrk::run(&guest, &guest.url(path), &[], *connections, options.seconds) {
                Ok(load) => loads.push(load),
                Err(e) => notes.push(e),
            }
        }
    } else {
        notes.push("no load measured: wrk is missing".to_owned());
    }
    let megabytes = if subject.is_qemu() { options.bulk / 10 } else { options.bulk };
    let bytes = megabytes * 1_000_000;
    let (mut download, mut upload) = (None, None);
    if program == "hello-axum" && bytes > 0 {
        let url = guest.url(&format!("/bytes/{bytes}"));
        download = curl_speed(&guest, "%{speed_download}", &["-o", "/dev/null", &url]);
        upload = upload_speed(&guest, bytes);
    }
    Figures {
        subject: subject.name(),
        file_bytes,
        first_answer: times[times.len() / 2],
        pss_idle,
        pss_loaded: memory(&guest),
        guest_touched: touched_idle.zip(touched(&guest)),
        loads,
        download,
        upload,
        notes,
    }
}

/// Guest memory that a virtual machine has touched: the resident part of its memfd, in whichever process maps it.
fn touched(guest: &Guest) -> Option<u64> {
    let tree = measure::tree(guest.pid()).ok()?;
    tree.iter().filter_map(|m| measure::mapping_resident(m.pid, "memory-backend-memfd").ok()).max().filter(|n| *n > 0)
}

fn curl_speed(guest: &Guest, format: &str, args: &[&str]) -> Option<f64> {
    let output = guest
        .command("taskset")
        .args(["-c", "1", "curl", "-sS", "--fail", "--max-time", "120", "-w", &format!("\n{format}")])
        .args(args)
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then(|| text.lines().last()?.trim().parse().ok())?
}

fn upload_speed(guest: &Guest, bytes: u64) -> Option<f64> {
    let file = target_dir().join("bench-upload.bin");
    std::fs::write(&file, vec![7; bytes as usize]).ok()?;
    let data = format!("@{}", file.display());
    let speed = curl_speed(guest, "%{speed_upload}", &["-H", "Expect:", "--data-binary", &data, &guest.url("/hash")]);
    // Scratch; what is left behind is overwritten by the next run.
    let _ = std::fs::remove_file(&file);
    speed
}

fn print_table(figures: &[Figures], options: &Options, path: &str) {
    println!(
        "\n{} {path}; {} s per load, median of {} starts; numbers in brackets: against the native process reached in the same way\n",
        options.example, options.seconds, options.starts
    );
    print!("{:<26}", "");
    figures.iter().for_each(|f| print!("{:>22}", f.subject));
    println!();
    let row = |name: &str, value: &dyn Fn(&Figures) -> Option<f64>, show: &dyn Fn(f64) -> String| {
        print!("{name:<26}");
        for f in figures {
            let baseline = Subject::from_name(f.subject)
                .and_then(Subject::baseline)
                .and_then(|b| figures.iter().find(|f| f.subject == b.name()))
                .and_then(value);
            let text = match (value(f), baseline) {
                (Some(v), Some(b)) if b > 0.0 => format!("{} ({:.2}x)", show(v), v / b),
                (Some(v), _) => show(v),
                (None, _) => "-".to_owned(),
            };
            print!("{text:>22}");
        }
        println!();
    };
    let mib = |v: f64| format!("{:.1} MiB", v / f64::from(1 << 20));
    let ms = |v: f64| format!("{:.1} ms", v / 1e3);
    row("file", &|f| Some(f.file_bytes as f64), &|v| format!("{v:.0} B"));
    row("first 200 after exec", &|f| Some(f.first_answer), &ms);
    row("PSS after first answer", &|f| Some(f.pss_idle as f64), &mib);
    row("PSS after load", &|f| Some(f.pss_loaded as f64), &mib);
    row("guest touched, first", &|f| Some(f.guest_touched?.0 as f64), &mib);
    row("guest touched, loaded", &|f| Some(f.guest_touched?.1 as f64), &mib);
    for connections in CONNECTIONS {
        let load = |f: &Figures| f.loads.iter().find(|l| l.connections == *connections).cloned();
        row(&format!("requests/s, c{connections}"), &|f| Some(load(f)?.rate), &|v| format!("{v:.0}"));
        row("  p50", &|f| Some(load(f)?.p50), &|v| format!("{v:.0} us"));
        row("  p99", &|f| Some(load(f)?.p99), &|v| format!("{v:.0} us"));
        row("  max", &|f| Some(load(f)?.max), &|v| format!("{v:.0} us"));
    }
    row("download", &|f| f.download, &|v| format!("{:.0} MB/s", v / 1e6));
    row("upload (hashed)", &|f| f.upload, &|v| format!("{:.0} MB/s", v / 1e6));
    for f in figures {
        for load in f.loads.iter().filter(|l| !l.errors.is_empty()) {
            println!("{} at c{}: {}", f.subject, load.connections, load.errors);
        }
        f.notes.iter().for_each(|note| println!("{}: {note}", f.subject));
    }
}

/// wrk has up to a thousand connections; it inherits this.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        eprintln!("cannot raise the limit of open files: {e}");
    }
}
