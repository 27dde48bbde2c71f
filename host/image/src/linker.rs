//! The linker mode: rustc calls this program as its linker, and this program calls the toolchain's `ld.lld` with the guest
//! object in place of the C library.
//!
//! What to link with is in a [`Spec`], a file named by the environment variable [`SPEC_VAR`]. The inputs of each
//! link are kept, so that an image can be linked again with a newer guest object without compiling anything.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use serde::{Deserialize, Serialize};

use crate::trim::cut;

/// Names the [`Spec`]; its presence makes the `donjon` program a linker.
pub const SPEC_VAR: &str = "DONJON_LINK_SPEC";

/// Goes up whenever the arguments to `ld.lld` change.
pub const REVISION: u32 = 2;

/// Libraries that the guest object replaces, and those that are added by path.
const REPLACED: [&str; 12] =
    ["c", "m", "pthread", "dl", "rt", "util", "resolv", "crypt", "gcc", "gcc_s", "gcc_eh", "unwind"];

/// What to link programs with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// The `ld.lld` of the Rust toolchain.
    pub lld: PathBuf,
    /// The guest object.
    pub object: PathBuf,
    /// `libgcc_eh.a` and `libgcc.a`.
    pub libgcc: Vec<PathBuf>,
    /// Where the inputs and the diagnoses of links are kept.
    pub state: PathBuf,
    /// Tells apart what runs at the same time: a process id.
    pub invocation: u32,
    /// Changes whenever a program must be linked again although cargo sees no change.
    pub stamp: String,
    /// For work on the guest object itself: link although symbols are missing. Calling one ends the guest.
    pub allow_undefined: bool,
}

/// Why a link failed, as kept for the command line tool.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The program that did not link.
    pub output: PathBuf,
    /// Symbols that nothing defines, with those who refer to them.
    pub undefined: BTreeMap<String, Vec<String>>,
    /// Symbols that are defined twice, with those who define them.
    pub duplicate: BTreeMap<String, Vec<String>>,
    /// The libraries that were asked for but are not there.
    pub libraries: Vec<String>,
    /// The linker's own words.
    pub text: String,
}

/// A link that was done, kept to be repeated.
#[derive(Serialize, Deserialize)]
struct Kept {
    stamp: String,
    output: PathBuf,
    args: Vec<String>,
    /// The directory to which relative paths among the arguments belong; cargo chooses it by package.
    #[serde(default)]
    dir: Option<PathBuf>,
}

/// What is known of a program that cargo says it has linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refreshed {
    /// It is linked as the [`Spec`] says.
    Current,
    /// Nothing: there is no record of the link.
    Unknown,
}

impl Spec {
    /// Writes the spec to a file; the path is the value for [`SPEC_VAR`].
    pub fn save(&self) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.state)?;
        let path = self.own("spec");
        fs::write(&path, serde_json::to_vec(self)?)?;
        Ok(path)
    }

    /// A file of this invocation of the command; others may run at the same time.
    fn own(&self, what: &str) -> PathBuf {
        self.state.join(format!("{what}-{}.json", self.invocation))
    }

    /// The diagnosis of the last link of this invocation that failed, if any did.
    pub fn diagnosis(&self) -> Option<Diagnosis> {
        serde_json::from_slice(&fs::read(self.own("diagnosis")).ok()?).ok()
    }

    /// Removes the files of this invocation.
    pub fn forget(&self) {
        ["spec", "diagnosis"].iter().for_each(|what| _ = fs::remove_file(self.own(what)));
    }

    /// Links `program` again if that was last done with another guest object.
    pub fn refresh(&self, program: &Path) -> io::Result<Result<Refreshed, Diagnosis>> {
        let Some(kept) = self.link_of(program)? else { return Ok(Ok(Refreshed::Unknown)) };
        if kept.stamp == self.stamp {
            return Ok(Ok(Refreshed::Current));
        }
        let done = self.link(kept.args, kept.dir, &kept.output)?;
        if done.is_ok() && kept.output != program {
            fs::remove_file(program)?;
            fs::hard_link(&kept.output, program).or_else(|_| fs::copy(&kept.output, program).map(drop))?;
        }
        Ok(done.map(|()| Refreshed::Current))
    }

    /// The link that made `program`. cargo gives programs another name after the link, so that the content tells.
    fn link_of(&self, program: &Path) -> io::Result<Option<Kept>> {
        let wanted = fs::read(program)?;
        for entry in fs::read_dir(self.state.join("links")).into_iter().flatten() {
            // What another version of this program has written, or what is being written, is not ours.
            let kept = fs::read(entry?.path().join("link.json")).ok();
            let Some(kept) = kept.and_then(|b| serde_json::from_slice::<Kept>(&b).ok()) else { continue };
            let same_length = fs::metadata(&kept.output).is_ok_and(|m| m.len() == wanted.len() as u64);
            if same_length && fs::read(&kept.output).is_ok_and(|bytes| bytes == wanted) {
                return Ok(Some(kept));
            }
        }
        Ok(None)
    }

    fn kept(&self, output: &Path) -> PathBuf {
        self.state.join("links").join(output.file_name().unwrap_or_default())
    }

    /// Runs `ld.lld` in `dir`, keeps the inputs.
    fn link(&self, args: Vec<String>, dir: Option<PathBuf>, output: &Path) -> io::Result<Result<(), Diagnosis>> {
        let mut lld = Command::new(&self.lld);
        dir.iter().for_each(|dir| _ = lld.current_dir(dir));
        lld.args(&args).arg("-o").arg(output).arg(&self.object).args(&self.libgcc);
        // The packer needs: one page-aligned segment per kind of rights, RELRO in a segment of its own (lld always makes one),
        // relative relocations only, the entry points, and the symbol table.
        lld.args([
            "-static",
            "-pie",
            "--no-dynamic-linker",
            "--gc-sections",
            "--eh-frame-hdr",
            "--build-id=none",
            "-O2",
        ]);
        for z in ["text", "relro", "now", "noexecstack", "separate-loadable-segments", "max-page-size=4096"] {
            lld.args(["-z", z]);
        }
        lld.args(["--pack-dyn-relocs=relr", "--hash-style=gnu", "--error-limit=0"]);
        lld.args(["-e", "_start", "-u", "donjon_upcall", "-u", "donjon_fault"]);
        if self.allow_undefined {
            lld.arg("--unresolved-symbols=ignore-all");
        }
        let done = lld.output()?;
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        if !done.status.success() {
            return Ok(Err(Diagnosis { output: output.into(), ..diagnose(text) }));
        }
        if !text.is_empty() {
            _ = io::stderr().write_all(text.as_bytes());
        }
        let kept = Kept { stamp: self.stamp.clone(), output: output.into(), args, dir };
        fs::write(self.kept(output).join("link.json"), serde_json::to_vec(&kept)?)?;
        Ok(Ok(()))
    }
}

/// Removes a program that cargo has made, and what cargo has made it from (the same file under another name, or a copy): it is then made again.
pub fn discard(program: &Path) -> io::Result<()> {
    let bytes = fs::read(program)?;
    let deps = program.parent().map(|dir| dir.join("deps"));
    for entry in deps.and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten() {
        let path = entry?.path();
        let same_length = fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() == bytes.len() as u64);
        if same_length && fs::read(&path)? == bytes {
            fs::remove_file(&path)?;
        }
    }
    fs::remove_file(program)
}

/// Acts as rustc's linker if the environment says so. Returns the exit status.
pub fn run_if_linker() -> Option<u8> {
    let path = env::var_os(SPEC_VAR)?;
    Some(match run(Path::new(&path)) {
        Ok(Ok(())) => 0,
        Ok(Err(diagnosis)) => {
            _ = io::stderr().write_all(diagnosis.text.as_bytes());
            1
        }
        Err(e) => {
            _ = io::stderr().write_all(format!("donjon, as the linker: {e}\n").as_bytes());
            1
        }
    })
}

fn run(spec: &Path) -> io::Result<Result<(), Diagnosis>> {
    let spec: Spec = serde_json::from_slice(&fs::read(spec)?)?;
    let raw = expand(env::args().skip(1))?;
    if raw.iter().any(|a| a == "-shared") {
        // A `cdylib` beside the program: of no use in an image, but cargo wants it made.
        let status = Command::new(&spec.lld).args(raw).arg("--unresolved-symbols=ignore-all").status()?;
        return Ok(if status.success() { Ok(()) } else { Err(Diagnosis::default()) });
    }
    let Some((args, output)) = translate(raw) else {
        return Err(io::Error::other("no output file among the arguments"));
    };
    let kept = spec.kept(&output);
    if kept.exists() {
        fs::remove_dir_all(&kept)?;
    }
    fs::create_dir_all(&kept)?;
    let args = args.into_iter().enumerate().map(|(i, arg)| keep(&kept, i, arg)).collect::<io::Result<_>>()?;
    let result = spec.link(args, env::current_dir().ok(), &output)?;
    if let Err(diagnosis) = &result {
        fs::write(spec.own("diagnosis"), serde_json::to_vec(diagnosis)?)?;
    }
    Ok(result)
}

/// rustc's own object files, and the archives that it makes for this link only (those with native code, without what LTO has taken in), are gone
/// after it: keeps them under another name.
fn keep(kept: &Path, index: usize, arg: String) -> io::Result<String> {
    let path = Path::new(&arg);
    let object = arg.ends_with(".o");
    let folder = path.parent().and_then(Path::file_name).unwrap_or_default();
    let passing = arg.ends_with(".rlib") && folder.to_string_lossy().starts_with("rustc");
    if !(object || passing) || arg.starts_with('-') || !path.is_file() {
        return Ok(arg);
    }
    // The file's own name stays: it says which crate a symbol comes from.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let copy = kept.join(format!("{index}.{name}"));
    let mut bytes = if object { fs::read(path)? } else { Vec::new() };
    if object && cut(&mut bytes) {
        fs::write(&copy, bytes)?;
    } else if fs::hard_link(path, &copy).is_err() {
        fs::copy(path, &copy)?;
    }
    Ok(copy.to_string_lossy().into_owned())
}

/// Reads the `@file`s that rustc uses for long command lines: one argument per line, `\` before a space or `\`.
fn expand(args: impl Iterator<Item = String>) -> io::Result<Vec<String>> {
    let mut out = Vec::new();
    for arg in args {
        let Some(file) = arg.strip_prefix('@') else {
            out.push(arg);
            continue;
        };
        for line in fs::read_to_string(file)?.lines() {
            let (mut word, mut chars) = (String::new(), line.chars());
            while let Some(c) = chars.next() {
                word.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
            }
            out.push(word);
        }
    }
    Ok(out)
}

/// Takes out what belongs to the C library, to dynamic linking or to a C compiler as linker. Returns the rest and the output.
fn translate(raw: Vec<String>) -> Option<(Vec<String>, PathBuf)> {
    let (mut args, mut output) = (Vec::new(), None);
    let mut raw = raw.into_iter().flat_map(|a| match a.strip_prefix("-Wl,") {
        Some(list) => list.split(',').map(String::from).collect(),
        None => vec![a],
    });
    while let Some(arg) = raw.next() {
        match arg.as_str() {
            "-o" => output = raw.next().map(PathBuf::from),
            "-l" => {
                let name = raw.next()?;
                if !REPLACED.contains(&name.as_str()) {
                    args.extend([arg, name]);
                }
            }
            "-z" => args.extend([arg, raw.next()?]),
            "-dynamic-linker" | "--dynamic-linker" => _ = raw.next(),
            // The symbol table stays: the image does not contain it, the file for debugging does.
            "--strip-all" | "--strip-debug" | "-s" | "-S" => {}
            "-O1" | "-pie" | "-no-pie" | "--no-pie" | "-static-pie" | "-rdynamic" | "--export-dynamic" | "-pthread" => {
            }
            "-nostartfiles" | "-nodefaultlibs" | "-nostdlib" | "-m64" => {}
            _ if arg.starts_with("-fuse-ld") || arg.starts_with("-B/") => {}
            _ if arg.strip_prefix("-l").is_some_and(|name| REPLACED.contains(&name)) => {}
            _ => args.push(arg),
        }
    }
    Some((args, output?))
}

/// Understands `ld.lld`'s messages.
fn diagnose(text: String) -> Diagnosis {
    let mut out = Diagnosis::default();
    let mut current: Option<&mut Vec<String>> = None;
    for line in text.lines() {
        if let Some(message) = line.split_once("error: ").map(|(_, m)| m) {
            current = if let Some(symbol) = message.strip_prefix("undefined symbol: ") {
                Some(out.undefined.entry(symbol.into()).or_default())
            } else if let Some(symbol) = message.strip_prefix("duplicate symbol: ") {
                Some(out.duplicate.entry(symbol.into()).or_default())
            } else {
                if let Some(library) = message.strip_prefix("unable to find library -l") {
                    out.libraries.push(library.into());
                }
                None
            };
        } else if let Some((list, detail)) = current.as_deref_mut().zip(line.strip_prefix(">>>")) {
            // Either `>>> referenced by file.rs:12` (where there is debug information) or an object file with a function.
            let detail = detail.trim();
            let who = detail.trim_start_matches("referenced by ").trim_start_matches("defined at ");
            let crate_of = origin(who);
            if detail.starts_with("referenced ") && detail.ends_with(" more times") || crate_of.is_empty() {
                continue;
            }
            if !list.contains(&crate_of) {
                list.push(crate_of);
            }
        }
    }
    out.text = text;
    out
}

/// Turns `path/libfoo-0123.rlib`, `path/foo-0123.foo.4567-cgu.0.rcgu.o:(function)` and the like into a name for people.
fn origin(who: &str) -> String {
    let function = who.split_once(":(").and_then(|(_, f)| f.rsplit_once(')')).map(|(f, _)| f);
    let file = who.split(":(").next().unwrap_or(who);
    let archive = who.rsplit_once(" in archive ").map(|(_, a)| a);
    let name =
        Path::new(archive.unwrap_or(file)).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if archive.is_none() && !name.ends_with(".o") {
        return String::new(); // a source position
    }
    let stem = name.trim_start_matches("lib").split(['-', '.']).find(|s| s.parse::<u32>().is_err()).unwrap_or(&name);
    match function.map(|f| shorten(f.trim_start_matches(".text."))) {
        Some(f) if !f.starts_with('.') => format!("{f} ({stem})"),
        _ => stem.to_owned(),
    }
}

/// A demangled name without the hash of Rust's older mangling, and not longer than a line.
fn shorten(name: &str) -> String {
    let name = match name.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => name,
        _ => name,
    };
    match name.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &name[..at]),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(String::from).collect()
    }

    #[test]
    fn the_c_library_is_taken_out() {
        let raw = words(
            "a.o --as-needed -Bstatic x.rlib -lutil -lc -lgcc_eh -lz -l m -o out -static -pie -O1 --strip-debug -Wl,-z,now -z text",
        );
        let (args, output) = translate(raw).unwrap();
        assert_eq!(args, words("a.o --as-needed -Bstatic x.rlib -lz -static -z now -z text"));
        assert_eq!(output, Path::new("out"));
        assert!(translate(words("a.o")).is_none());
    }

    #[test]
    fn a_program_is_linked_again_with_another_guest_object() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = env::temp_dir().join(format!("donjon-link-{}", std::process::id()));
        fs::create_dir_all(dir.join("deps")).unwrap();
        // A linker that writes the object's name and where it runs into the program.
        let lld = dir.join("lld");
        let script =
            "#!/bin/sh\nwhile [ \"$1\" != -o ]; do shift; done\nrm -f \"$2\"; echo \"$3 ${PWD##*/}\" > \"$2\"\n";
        fs::write(&lld, script).unwrap();
        fs::set_permissions(&lld, fs::Permissions::from_mode(0o755)).unwrap();
        let mut spec = Spec {
            lld,
            object: "first.o".into(),
            libgcc: vec![],
            state: dir.clone(),
            invocation: 1,
            stamp: "1".into(),
            allow_undefined: false,
        };
        let (output, program) = (dir.join("deps/web-0123"), dir.join("web"));
        fs::create_dir_all(spec.kept(&output)).unwrap();
        spec.link(vec!["a.o".into()], Some(dir.join("deps")), &output).unwrap().unwrap();
        fs::hard_link(&output, &program).unwrap();
        let refresh = |spec: &Spec| spec.refresh(&program).unwrap().unwrap();
        assert_eq!(refresh(&spec), Refreshed::Current);
        assert_eq!(fs::read_to_string(&program).unwrap(), "first.o deps\n");
        (spec.object, spec.stamp) = ("second.o".into(), "2".into());
        assert_eq!(refresh(&spec), Refreshed::Current);
        assert_eq!(fs::read_to_string(&program).unwrap(), "second.o deps\n", "where rustc has run the linker");
        assert_eq!(fs::read_to_string(&output).unwrap(), "second.o deps\n");
        // Without the record of the link nobody knows the object: cargo is to make the program again.
        fs::remove_dir_all(dir.join("links")).unwrap();
        assert_eq!(refresh(&spec), Refreshed::Unknown);
        fs::write(dir.join("deps/other"), "second.o DEPS\n").unwrap();
        discard(&program).unwrap();
        assert!(!program.exists() && !output.exists() && dir.join("deps/other").exists());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_rustc_removes_after_the_link_is_kept() {
        let dir = env::temp_dir().join(format!("donjon-keep-{}", std::process::id()));
        fs::create_dir_all(dir.join("rustcAbC123")).unwrap();
        let write = |name: &str| {
            fs::write(dir.join(name), name).unwrap();
            dir.join(name).to_string_lossy().into_owned()
        };
        let (passing, stays) = (write("rustcAbC123/libring-1.rlib"), write("libhyper-1.rlib"));
        assert_eq!(keep(&dir, 1, stays.clone()).unwrap(), stays);
        assert_eq!(keep(&dir, 2, "-z".into()).unwrap(), "-z");
        let kept = keep(&dir, 3, passing.clone()).unwrap();
        fs::remove_file(passing).unwrap();
        assert_eq!(fs::read_to_string(kept).unwrap(), "rustcAbC123/libring-1.rlib");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn undefined_symbols_are_understood() {
        let text = "ld.lld: error: undefined symbol: fork\n\
            >>> referenced by hello.9f-cgu.0\n\
            >>>               /t/links/hello-46/1.hello-46.hello.9f-cgu.0.rcgu.o:(hello::main)\n\
            >>> referenced by lib.rs:12\n\
            >>>               foo.cgu.0.rcgu.o:(foo::bar::baz) in archive /t/deps/libfoo-1234.rlib\n\
            >>> referenced 7 more times\n\
            \n\
            ld.lld: error: unable to find library -lstdc++\n\
            ld.lld: error: duplicate symbol: malloc\n\
            >>> defined at x.c\n\
            >>>            mimalloc.o:(malloc) in archive /t/libmimalloc.a\n\
            >>> defined at guest.o\n";
        let d = diagnose(text.into());
        assert_eq!(d.undefined["fork"], ["hello::main (hello)", "foo::bar::baz (foo)"]);
        assert_eq!(d.duplicate["malloc"], ["malloc (mimalloc)", "guest"]);
        assert_eq!(d.libraries, ["stdc++"]);
    }
}
