//! Builds the test guest, packs it, and runs it under the launcher.

#![allow(dead_code, missing_docs, reason = "each test file uses a part")]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use donjon_abi::image::{Extent, ImageHeader, MAGIC, SEGMENTS_MAX, Segment, SegmentProt};
use donjon_abi::manifest::{Tag, write_record};

/// The linked guest.
fn program() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
        let flags = "-Crelocation-model=pie -Clink-arg=-nostartfiles -Clink-arg=-nostdlib -Clink-arg=-static-pie \
                     -Clink-arg=-Wl,--pack-dyn-relocs=relr,-z,relro,-z,now,-z,separate-loadable-segments,-z,max-page-size=4096,--no-dynamic-linker,--build-id=none";
        let out = Command::new(env!("CARGO"))
            .args(["build", "--release", "--quiet", "--target=x86_64-unknown-linux-gnu", "--manifest-path"])
            .arg(dir.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .env("RUSTFLAGS", flags)
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .output()
            .expect("cargo runs");
        assert!(out.status.success(), "the test guest does not build:\n{}", String::from_utf8_lossy(&out.stderr));
        std::fs::read(target.join("x86_64-unknown-linux-gnu/release/monitor-test-guest")).expect("the guest was built")
    })
}

fn u16_at(b: &[u8], at: usize) -> usize {
    u16::from_le_bytes(b[at..at + 2].try_into().unwrap()).into()
}
fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}
fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
}

fn symbol(elf: &[u8], name: &str) -> u64 {
    let (shoff, count) = (u64_at(elf, 40) as usize, u16_at(elf, 60));
    for s in (0..count).map(|i| shoff + i * 64) {
        if u32_at(elf, s + 4) != 2 {
            continue;
        }
        let strings = shoff + u32_at(elf, s + 40) as usize * 64;
        let (symbols, len) = (u64_at(elf, s + 24) as usize, u64_at(elf, s + 32) as usize);
        for at in (symbols..symbols + len).step_by(24) {
            let text = &elf[u64_at(elf, strings + 24) as usize + u32_at(elf, at) as usize..];
            if text.starts_with(name.as_bytes()) && text[name.len()] == 0 {
                return u64_at(elf, at + 8);
            }
        }
    }
    panic!("no symbol {name}");
}

/// Options of an image.
#[derive(Clone)]
pub struct Spec {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub memory: u64,
    pub listen: Vec<(u8, u16)>,
    pub egress: Vec<donjon_abi::manifest::Egress>,
    pub limit: donjon_abi::manifest::Limit,
    /// Seconds.
    pub stop: Option<u64>,
}

impl Default for Spec {
    fn default() -> Self {
        Spec {
            args: vec![],
            env: vec![],
            memory: 16 << 20,
            listen: vec![(6, 7), (17, 7)],
            egress: vec![],
            limit: Default::default(),
            stop: None,
        }
    }
}

/// The image's bytes.
pub fn pack(spec: &Spec) -> Vec<u8> {
    let elf = program();
    let mut out = vec![0u8; 8192];
    out[..4].copy_from_slice(b"\x7fELF");
    let mut manifest = vec![];
    {
        let mut put = |tag, value: &[u8]| write_record(tag, value, |b| manifest.extend_from_slice(b));
        put(Tag::Name, b"test-guest");
        put(Tag::Memory, &spec.memory.to_le_bytes());
        put(Tag::Tool, b"tests");
        for (protocol, port) in &spec.listen {
            let [p0, p1] = port.to_le_bytes();
            put(Tag::Listen, &[*protocol, 0, p0, p1]);
        }
        for e in &spec.egress {
            put(Tag::Egress, &e.to_bytes());
        }
        put(Tag::Limit, &spec.limit.to_bytes());
        if let Some(stop) = spec.stop {
            put(Tag::Stop, &stop.to_le_bytes());
        }
        for a in &spec.args {
            put(Tag::Arg, a.as_bytes());
        }
        for e in &spec.env {
            put(Tag::Env, e.as_bytes());
        }
    }
    let pad = |out: &mut Vec<u8>| out.resize(out.len().next_multiple_of(4096), 0);
    let manifest_at = Extent { offset: out.len() as u64, len: manifest.len() as u64 };
    out.extend(manifest);
    pad(&mut out);

    let headers: Vec<usize> = (0..u16_at(elf, 56)).map(|i| u64_at(elf, 32) as usize + i * 56).collect();
    let relro = headers
        .iter()
        .find(|p| u32_at(elf, **p) == 0x6474_e552)
        .map(|p| (u64_at(elf, p + 16), u64_at(elf, p + 16) + u64_at(elf, p + 40)));
    let mut segments = [Segment::default(); SEGMENTS_MAX];
    let (mut count, mut span) = (0, 0u64);
    let mut file_at = vec![];
    for p in headers.iter().filter(|p| u32_at(elf, **p) == 1) {
        let (flags, offset, vaddr) = (u32_at(elf, p + 4), u64_at(elf, p + 8), u64_at(elf, p + 16));
        let (filesz, memsz) = (u64_at(elf, p + 32), u64_at(elf, p + 40));
        assert_eq!(vaddr % 4096, 0, "segments start on pages");
        let prot = match flags {
            4 => SegmentProt::Read,
            5 => SegmentProt::ReadExecute,
            6 if relro.is_some_and(|(from, to)| from <= vaddr && vaddr < to) => {
                assert!(relro.unwrap().1.next_multiple_of(4096) >= vaddr + memsz, "relro has its own segment");
                SegmentProt::ReadAfterRelocation
            }
            6 => SegmentProt::ReadWrite,
            other => panic!("segment flags {other}"),
        };
        segments[count] = Segment {
            file: Extent { offset: out.len() as u64, len: filesz },
            mem_offset: vaddr,
            mem_len: memsz,
            prot: prot as u32,
            _pad: 0,
        };
        file_at.push((vaddr, filesz, out.len() as u64));
        out.extend(&elf[offset as usize..(offset + filesz) as usize]);
        pad(&mut out);
        span = (vaddr + memsz).next_multiple_of(4096);
        count += 1;
    }
    let dynamic = headers.iter().find(|p| u32_at(elf, **p) == 2).map(|p| u64_at(elf, p + 8) as usize).unwrap();
    let tag =
        |wanted| (0..64).map(|i| dynamic + i * 16).find(|d| u64_at(elf, *d) == wanted).map(|d| u64_at(elf, d + 8));
    assert!(tag(7).is_none() || tag(8) == Some(0), "only RELR relocations");
    let relr = match (tag(36), tag(35)) {
        (Some(at), Some(len)) => {
            let (vaddr, _, file) = file_at.iter().find(|(v, n, _)| at >= *v && at < v + n).unwrap();
            Extent { offset: file + at - vaddr, len }
        }
        _ => Extent::default(),
    };
    let mut header = ImageHeader {
        magic: MAGIC,
        version: donjon_abi::VERSION,
        segment_count: count as u32,
        file_len: out.len() as u64,
        hash: [0; 32],
        span,
        entry: symbol(elf, "_start"),
        upcall: symbol(elf, "donjon_upcall"),
        fault: symbol(elf, "donjon_fault"),
        relr,
        manifest: manifest_at,
        bundle: Extent::default(),
        shim: Extent::default(),
        segments,
        packed: Extent::default(),
        unpacked: Extent::default(),
    };
    let put = |out: &mut Vec<u8>, h: &ImageHeader| out[4096..4096 + ImageHeader::LEN].copy_from_slice(&h.to_bytes());
    put(&mut out, &header);
    header.hash = *blake3::hash(&out).as_bytes();
    put(&mut out, &header);
    out
}

/// Writes an image file with this content; removed by the operating system's own housekeeping of the target folder.
pub fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.img", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    path
}

/// The image with default settings.
pub fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| write("guest", &pack(&Spec::default())))
}

/// The launcher with these options, not started.
pub fn launcher(image: &Path, options: &[&str], args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_donjon-monitor"));
    c.arg(image).args(options).arg("--").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    hears_signals(&mut c);
    c
}

/// SIGINT is ignored by what a script runs in the background, perhaps by this test, and so would it be by what it starts.
#[expect(unsafe_code, reason = "UNSAFETY: system calls of a child of ours before exec")]
pub fn hears_signals(command: &mut Command) {
    let default = || {
        for signal in [libc::SIGINT, libc::SIGHUP] {
            // SAFETY: a number and a constant.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec these are system calls only.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, default) };
}

/// What a run gave.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(o: Output) -> Ran {
        Ran {
            code: o.status.code(),
            out: String::from_utf8_lossy(&o.stdout).into(),
            err: String::from_utf8_lossy(&o.stderr).into(),
        }
    }
}

/// Runs the default image with guest arguments.
pub fn run(args: &[&str]) -> Ran {
    run_with(image(), &["--net", "none"], args)
}

pub fn run_with(image: &Path, options: &[&str], args: &[&str]) -> Ran {
    launcher(image, options, args).output().unwrap().into()
}

/// Reads the first line of a child's output.
pub fn first_line(child: &mut Child) -> String {
    let mut line = vec![];
    let out = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    while out.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8_lossy(&line).into()
}
