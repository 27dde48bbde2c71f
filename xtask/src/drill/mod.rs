//! `cargo xtask drill`: the same exploits against the same program in a container, in a hardened container, and as a Donjon image under two engines, each with
//! both networks.
//!
//! The victim (`tests/guests/drill`) does with its memory what a request asks for. In a container the attacker's first step is to make memory executable and to
//! inject a system call proxy; all else is driven through that. In an image that step fails, so the attempts are made with what
//! is left: the C library's functions, the gate, and the instructions that the program contains. All of it runs in network namespaces of its own.

mod abis;
mod attempts;
mod cell;
mod code;
mod docker;
mod end;
mod gate;
mod lan;
mod raw;

use std::path::Path;

use donjon_tests::{Need, have_program, image, repo_root, target_dir};

use crate::process::{Result, cargo, failed, run, usage};
use crate::test::skipped;
use attempts::{ATTEMPTS, Attempt, Form, Outcome};
use cell::{Answer, Door, Ended, Kind, Made, Victim};
use end::By;
use lan::Lan;

const UTILITIES: &[&str] =
    &["sh", "bash", "ls", "cat", "id", "cp", "chmod", "rm", "sleep", "env", "ps", "grep", "perl"];

/// What one attempt came to under one kind.
struct Cell {
    kind: Kind,
    attempt: &'static Attempt,
    outcome: Outcome,
    /// Whether the filter was off.
    control: bool,
    /// What its operator has of it.
    trace: String,
}

impl Cell {
    /// Whether it has left more than requests, which look like any others.
    fn is_seen(&self) -> bool {
        !["", "its requests"].contains(&self.trace.as_str())
    }
}

/// The task.
pub fn main<'a>(mut args: impl Iterator<Item = &'a str>) -> Result {
    let (mut json, mut form, mut kinds, mut word) = (false, Form::Whole, Vec::new(), "");
    while let Some(arg) = args.next() {
        match arg {
            "--json" => json = true,
            "--short" => form = Form::Short,
            "--attempt" => word = args.next().unwrap_or_default(),
            "--only" => {
                let name = args.next().unwrap_or_default();
                let kind = Kind::ALL.into_iter().find(|k| k.name() == name);
                kinds.push(
                    kind.ok_or_else(|| usage("--only takes container, hardened, process, tap, qemu or qemu-tap"))?,
                );
            }
            other => return Err(usage(format!("the drill does not know {other:?}"))),
        }
    }
    if kinds.is_empty() {
        kinds = Kind::ALL.to_vec();
    }
    let cells = drill(&kinds, form, word)?;
    if json {
        print_json(&cells)
    } else {
        print_table(&cells, &kinds)
    }
    verdict(&cells)
}

/// The short form, for `cargo xtask test`.
pub fn short(passed: &mut u64) -> Result {
    let needs =
        [Need::Tap, Need::Program("bwrap"), Need::Program("setpriv"), Need::Program("tc"), Need::Program("readelf")];
    if skipped("drill", &needs) {
        return Ok(());
    }
    let no_qemu = skipped("drill::qemu", &[Need::Qemu]);
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|k| !k.is_qemu() || !no_qemu).collect();
    let cells = drill(&kinds, Form::Short, "")?;
    print_table(&cells, &kinds);
    *passed += cells.len() as u64;
    verdict(&cells)
}

/// Makes the attempts whose names contain `word`.
fn drill(kinds: &[Kind], form: Form, word: &str) -> Result<Vec<Cell>> {
    for (program, package) in [
        ("bwrap", "bubblewrap"),
        ("setpriv", "util-linux"),
        ("ip", "iproute2"),
        ("tc", "iproute2"),
        ("readelf", "binutils"),
    ] {
        if !have_program(program) {
            return Err(failed(format!(
                "the drill needs {program} (package {package}); `cargo xtask setup` installs it"
            )));
        }
    }
    if !donjon_tests::is_root() {
        return Err(failed("the drill makes network namespaces and containers: it needs root"));
    }
    let dir = repo_root().join("tests/guests/drill");
    let native = target_dir().join("native");
    run(cargo()
        .args(["build", "--quiet", "--release", "--manifest-path"])
        .arg(dir.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", &native))?;
    let image = image(&dir);
    let boot = boot_distance(&image)?;
    let work = target_dir().join("drill");
    let io = |e: std::io::Error| failed(format!("{}: {e}", work.display()));
    std::fs::create_dir_all(&work).map_err(io)?;
    let lan = Lan::new();
    let mut cells = Vec::new();
    for kind in kinds {
        // Readable for nobody, whom the hardened cell runs as: not below a target directory that may be root's.
        let root = std::env::temp_dir().join(format!("donjon-drill-{}-{}", kind.name(), std::process::id()));
        if !kind.is_donjon() {
            let utilities = if *kind == Kind::Docker { UTILITIES } else { &[] };
            cell::make_root(&root, &native.join("release/drill"), utilities).map_err(io)?;
        }
        let filter = root.with_extension("bpf");
        std::fs::write(&filter, docker::filter(kind.capabilities())).map_err(io)?;
        // Nobody may read it, too.
        std::fs::set_permissions(&filter, std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(io)?;
        let made = Made { root: root.clone(), filter, image: image.clone(), boot };
        if kind.is_on_tap() {
            lan.plug_tap();
        }
        lan.forget_neighbours();
        let mut victim = Victim::new(*kind, &lan, &made);
        // Under QEMU the two networks are all that differs.
        let frames_only = form == Form::Short && *kind == Kind::QemuTap;
        let chosen = |a: &&Attempt| a.name.contains(word) && (!frames_only || a.name.contains("frames"));
        // What the last kind has left.
        lan.take_frames();
        for attempt in ATTEMPTS.iter().filter(chosen) {
            cells.push(try_one(&mut victim, attempt, form));
        }
        if kind.is_donjon() {
            // The same frames, with nothing in their way: that they would have been seen.
            victim.restart();
            victim.door = Door::Open;
            for attempt in ATTEMPTS.iter().filter(chosen).filter(|a| a.frames) {
                cells.push(try_one(&mut victim, attempt, form));
            }
        }
        drop(victim);
        if kind.is_on_tap() {
            lan.unplug_tap();
        }
        let _ = std::fs::remove_dir_all(&root);
        let _ = std::fs::remove_file(&made.filter);
    }
    Ok(cells)
}

fn try_one(victim: &mut Victim<'_>, attempt: &'static Attempt, form: Form) -> Cell {
    let control = victim.door == Door::Open;
    let how = if control { " (control: the filter is off)" } else { "" };
    eprintln!("drill: {:<9} {}{how}", victim.kind.name(), attempt.name);
    // The last attempt may have harmed the instance: then the attempt starts with a new one, which must serve.
    let serves = victim.request("/", b"").or_else(|_| victim.request("/", b"")).is_ok();
    victim.take_ends();
    let mut outcome = match serves.then(|| (attempt.run)(victim, form)) {
        Some(answer) => judged(victim, answer),
        None => Outcome::Broken("the victim did not serve before the attempt".into()),
    };
    if victim.kind.is_donjon() && !control {
        // Whatever the attempt was about: no frame of it may have come to another machine.
        let seen = victim.lan.take_frames();
        if !seen.is_empty() {
            let said = format!("others saw {}", seen.join(", "));
            outcome = if attempt.conceded { Outcome::Broken(said) } else { Outcome::Succeeded(said) };
        }
    }
    let ends = victim.take_ends();
    let trace = match (ends.as_slice(), &outcome) {
        ([how], _) => how.clone(),
        ([.., how], _) => format!("{} endings, the last: {how}", ends.len()),
        ([], Outcome::Absent(_)) => String::new(),
        ([], _) => "its requests".to_owned(),
    };
    Cell { kind: victim.kind, attempt, outcome, control, trace }
}

/// What an attempt came to, if it did not come to an end that is not its own: whatever has then ended the instance, it was not what the attempt is about.
fn judged(victim: &mut Victim<'_>, answer: Answer<Outcome>) -> Outcome {
    let host = |how: String| Outcome::Succeeded(format!("the host's side broke: {how}"));
    match answer {
        Err(Ended { by: By::Host, how }) => host(how),
        Err(Ended { by, how }) => Outcome::Broken(format!("an ending that is not the attempt's ({by:?}): {how}")),
        // What the attempt has left behind may end a moment later.
        Ok(outcome) => match victim.settle() {
            Err(Ended { by: By::Host, how }) => host(how),
            _ => outcome,
        },
    }
}

/// From the victim's function `answer` to the library OS's pointer to the boot page, by the symbols beside the image.
fn boot_distance(image: &Path) -> Result<Option<u64>> {
    let debug = format!("{}.debug", image.display());
    let (_, table) = crate::process::output(std::process::Command::new("readelf").args(["-sW", &debug]))?;
    let address = |part: &[&str]| {
        table.lines().find(|l| part.iter().all(|p| l.contains(p))).and_then(|l| {
            let word = l.split_whitespace().nth(1)?;
            u64::from_str_radix(word, 16).ok()
        })
    };
    let (text, boot) = (address(&["drill", "answer"]), address(&["donjon_base", "BOOT"]));
    Ok(text.zip(boot).map(|(text, boot)| boot.wrapping_sub(text)))
}

/// What must hold: Donjon stops all that it claims to stop, and the exploits are exploits.
fn verdict(cells: &[Cell]) -> Result {
    if cells.is_empty() {
        return Err(failed("no attempt was made"));
    }
    let mut wrong = Vec::new();
    for cell in cells {
        let what = format!("{} under {}", cell.attempt.name, cell.kind.name());
        let succeeded = matches!(cell.outcome, Outcome::Succeeded(_));
        let (donjon, conceded) = (cell.kind.is_donjon(), cell.attempt.conceded);
        let must = conceded || cell.control || cell.kind == Kind::Docker && cell.attempt.works;
        match &cell.outcome {
            Outcome::Broken(why) => wrong.push(format!("the drill is broken: {what}: {why}")),
            // This machine has no such thing, or no way to it.
            Outcome::Absent(_) if !conceded => {}
            Outcome::Succeeded(_) if donjon && !conceded && !cell.control => wrong.push(format!("FAILURE: {what}")),
            _ if !succeeded && must => {
                wrong.push(format!("the drill is broken: {what} must succeed"));
            }
            _ => {}
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(failed(wrong.join("; "))) }
}

/// The tables of `docs/drill.md`: how many, what each attempt came to, and what it has left.
fn print_table(cells: &[Cell], kinds: &[Kind]) {
    let head = |what: &str| {
        println!("\n| {what} | {} |", kinds.iter().map(|k| k.title()).collect::<Vec<_>>().join(" | "));
        println!("| --- |{}", " --- |".repeat(kinds.len()));
    };
    head("");
    let count = |what: &str, f: fn(&Cell) -> bool| {
        let of = |kind: &Kind| cells.iter().filter(|c| c.kind == *kind && !c.control && f(c)).count().to_string();
        println!("| {what} | {} |", kinds.iter().map(of).collect::<Vec<_>>().join(" | "));
    };
    count("succeeded", |c| matches!(c.outcome, Outcome::Succeeded(_)));
    count("failed", |c| matches!(c.outcome, Outcome::Failed(_)));
    count("ended the program, which its operator sees", Cell::is_seen);
    let each = |control: bool, text: fn(&Cell) -> String| {
        let cells = || cells.iter().filter(|c| c.control == control);
        for attempt in ATTEMPTS.iter().filter(|a| cells().any(|c| c.attempt.name == a.name)) {
            print!("| {} |", attempt.name);
            for kind in kinds {
                let cell = cells().find(|c| c.kind == *kind && c.attempt.name == attempt.name);
                print!(" {} |", cell.map(text).unwrap_or_default().replace('|', "/").replace('\n', " "));
            }
            println!();
        }
    };
    let outcome = |c: &Cell| match &c.outcome {
        Outcome::Succeeded(how) => format!("**succeeded**: {how}"),
        Outcome::Failed(how) => format!("failed: {how}"),
        Outcome::Absent(why) => format!("- ({why})"),
        Outcome::Broken(why) => format!("**broken**: {why}"),
    };
    head("attempt");
    each(false, outcome);
    if cells.iter().any(|c| c.control) {
        head("control, with the filter off");
        each(true, outcome);
    }
    head("trace left by");
    each(false, |c| if c.trace.is_empty() { "-".to_owned() } else { c.trace.clone() });
}

fn print_json(cells: &[Cell]) {
    let quote = |s: &str| {
        let mut out = String::from("\"");
        for c in s.chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                c if c.is_control() => out.push(' '),
                c => out.push(c),
            }
        }
        out + "\""
    };
    let rows: Vec<String> = cells
        .iter()
        .map(|c| {
            let (outcome, how) = match &c.outcome {
                Outcome::Succeeded(how) => ("succeeded", how.as_str()),
                Outcome::Failed(how) => ("failed", how.as_str()),
                Outcome::Absent(why) => ("absent", *why),
                Outcome::Broken(why) => ("broken", why.as_str()),
            };
            format!(
                "  {{\"attempt\": {}, \"kind\": {}, \"control\": {}, \"outcome\": {}, \"how\": {}, \"trace\": {}, \"conceded\": {}}}",
                quote(c.attempt.name),
                quote(c.kind.name()),
                c.control,
                quote(outcome),
                quote(how),
                quote(&c.trace),
                c.attempt.conceded
            )
        })
        .collect();
    println!("[\n{}\n]", rows.join(",\n"));
}
