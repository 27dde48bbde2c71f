//! `donjon inspect`.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
};

use donjon_abi::image::{SegmentProt, relr_offsets};
use donjon_image::{OpenError, config::show_egress, head, head::Head, project, shown};
use serde_json::{Value, json};

use crate::{
    args::InspectArgs,
    failure::{Failure, code},
    site::part,
    ui::bytes,
};

pub fn inspect(args: &InspectArgs) -> Result<u8, Failure> {
    let path = &args.image;
    let file = File::open(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => OpenError::Missing(path.clone()),
        _ => OpenError::Io(path.clone(), e),
    })?;
    let head = Head::read(&file, path)?;
    let mut about = describe(&head, &head::files(&file, &head.header, path)?);
    if args.crates {
        let debug = args.image.with_added_extension("debug");
        let elf = fs::read(&debug).map_err(|e| {
            let hint = "it is made beside the image by `donjon build`".to_owned();
            Failure::new(code::NO_INPUT, format!("cannot read {}: {e}", debug.display()), hint)
        })?;
        about["crates"] = json!(project::sizes_by_crate(&elf));
    }
    let text = if args.json { machine(&about) } else { human(&about) };
    // A reader that has enough (`| head`) is no error.
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(code::OS, format!("cannot write to standard output: {e}"), None))
        }
        _ => Ok(0),
    }
}

fn describe(image: &Head, files: &[(String, u64)]) -> Value {
    let (h, m) = (&image.header, &image.manifest);
    let segments: Vec<Value> = h
        .segments()
        .map(|(s, prot)| {
            let rights = match prot {
                SegmentProt::Read => "r--",
                SegmentProt::ReadWrite => "rw-",
                SegmentProt::ReadExecute => "r-x",
                SegmentProt::ReadAfterRelocation => "r-- after relocation",
            };
            json!({"rights": rights, "offset": s.mem_offset, "file_bytes": s.file.len, "memory_bytes": s.mem_len})
        })
        .collect();
    let words = image.relr.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w));
    let files: Vec<Value> = files.iter().map(|(path, len)| json!({"path": format!("/{path}"), "bytes": len})).collect();
    json!({
        "name": m.name,
        "bytes": h.file_len,
        "blake3": h.hash.iter().map(|b| format!("{b:02x}")).collect::<String>(),
        "gate_version": h.version,
        "made_by": m.tool,
        "memory": m.memory,
        "tmpfs": m.tmpfs,
        "stop_seconds": m.stop,
        "listen": m.listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "egress": m.egress.iter().map(show_egress).collect::<Vec<_>>(),
        "limit": {"connections": m.limit.connections, "send": m.limit.send},
        "args": m.args,
        "env": m.env,
        "secrets": m.secrets,
        "parts": m.parts.iter().map(|(name, there)| (name.clone(), json!(there))).collect::<serde_json::Map<_, _>>(),
        "segments": segments,
        "relocations": relr_offsets(words).count(),
        "compressed": if h.packed.len > 0 { json!({"file_bytes": h.packed.len, "bytes": h.unpacked.len}) } else { Value::Null },
        "sections": {"bundle": h.bundle.len, "shim": h.shim.len, "manifest": h.manifest.len},
        "bootable": h.shim.len > 0,
        "files": files,
    })
}

/// JSON, in lines; a terminal may be what reads it.
fn machine(about: &Value) -> String {
    // JSON has line feeds between strings only, where the other characters are not.
    format!("{about:#}").lines().map(|line| shown(line) + "\n").collect()
}

/// Lines, whose values are whatever the image's maker wanted them to be.
fn human(about: &Value) -> String {
    let text = |key: &str| about[key].as_str().unwrap_or_default().to_owned();
    let number = |v: &Value| bytes(v.as_u64().unwrap_or_default());
    let list = |key: &str| -> String {
        let items = about[key].as_array().map(Vec::as_slice).unwrap_or_default();
        let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
        if items.is_empty() { "none".into() } else { items.join(", ") }
    };
    let mut out = String::new();
    let mut line = |name: &str, value: String| out += &format!("{name:<14}{}\n", shown(&value));
    line("name", text("name"));
    line("size", format!("{} bytes", number(&about["bytes"])));
    let (packed, plain) = (&about["compressed"]["file_bytes"], &about["compressed"]["bytes"]);
    if !packed.is_null() {
        line("compressed", format!("the segments, {} bytes of the file; {} unpacked", number(packed), number(plain)));
    }
    line("blake3", text("blake3"));
    line("made by", format!("{}, gate version {}", text("made_by"), about["gate_version"]));
    line("memory", format!("{} bytes", number(&about["memory"])));
    if !about["stop_seconds"].is_null() {
        line("may take", format!("{} s to end after it was asked to", number(&about["stop_seconds"])));
    }
    if !about["tmpfs"].is_null() {
        line("/tmp", format!("at most {} bytes", number(&about["tmpfs"])));
    }
    line("listens on", list("listen"));
    line("may reach", list("egress"));
    let limits = [("connections", "connections"), ("send", "bytes")].map(|(key, unit)| (&about["limit"][key], unit));
    let limits: Vec<String> = limits
        .iter()
        .filter(|(v, _)| v.as_u64().is_some_and(|n| n > 0))
        .map(|(v, unit)| format!("{} {unit}", number(v)))
        .collect();
    if !limits.is_empty() {
        line("sends at most", format!("{} a second", limits.join(" and ")));
    }
    line("arguments", list("args"));
    line("environment", list("env"));
    line("secrets", list("secrets"));
    if let Some(parts) = about["parts"].as_object().filter(|p| !p.is_empty()) {
        let parts = parts.iter().map(|(name, there)| part(&(name.clone(), *there == true)));
        line("parts", parts.collect::<Vec<_>>().join(", "));
    }
    line("relocations", number(&about["relocations"]));
    let shim = &about["sections"]["shim"];
    line(
        "hypervisors",
        if about["bootable"] == true { format!("PVH, by a shim of {} bytes", number(shim)) } else { "no".into() },
    );
    for s in about["segments"].as_array().into_iter().flatten() {
        let rights = s["rights"].as_str().unwrap_or_default();
        line(
            "segment",
            format!(
                "{:>10} bytes in file, {:>10} in memory, {rights}",
                number(&s["file_bytes"]),
                number(&s["memory_bytes"])
            ),
        );
    }
    for f in about["files"].as_array().into_iter().flatten() {
        line("file", format!("{:>10} bytes  {}", number(&f["bytes"]), f["path"].as_str().unwrap_or_default()));
    }
    if let Some(crates) = about["crates"].as_object() {
        let mut crates: Vec<_> = crates.iter().map(|(name, n)| (n.as_u64().unwrap_or_default(), name)).collect();
        crates.sort_unstable_by(|a, b| b.cmp(a));
        for (n, name) in crates {
            line("crate", format!("{:>10} bytes  {name}", bytes(n)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_adds_and_hides_no_lines() {
        let evil = "x\u{1b}[2A\u{1b}[Jlistens on    none\nmay reach     none\u{9b}1A\u{202e}";
        let about = json!({
            "name": evil, "bytes": 1, "blake3": "0", "gate_version": 3, "made_by": evil, "memory": 1, "tmpfs": null, "listen": ["80/tcp"],
            "egress": [], "limit": {"connections": 0, "send": 0}, "args": [evil], "env": [evil], "secrets": [evil], "parts": {evil: true},
            "segments": [], "relocations": 0, "compressed": null, "sections": {"bundle": 0, "shim": 0, "manifest": 0}, "bootable": false,
            "files": [{"path": evil, "bytes": 1}], "crates": {evil: 1},
        });
        let (human, machine) = (human(&about), machine(&about));
        for text in [&human, &machine] {
            assert!(!text.contains(|c| c != '\n' && donjon_image::deceives(c)), "{text:?}");
        }
        assert_eq!(human.lines().filter(|l| l.starts_with("listens on") || l.starts_with("may reach")).count(), 2);
        assert_eq!(serde_json::from_str::<Value>(&machine).unwrap(), about);
    }
}
