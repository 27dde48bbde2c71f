//! The build script's reading of the lists of system calls.

#[path = "../build/rules.rs"]
mod rules;

use rules::constants;

const SOUND: &str = r#"
[second]
about = "For somebody."
write = { number = 1, reason = "its output" }
[first]
about = "For nobody."
socket = { number = 41, argument = 0, is = ["AF_INET", "AF_INET6"], and = [{ argument = 2, is = ["IPPROTO_IP"] }], reason = "connections" }
mmap = { number = 9, argument = 2, without = ["PROT_EXEC"], reason = "more memory" }
mprotect = { number = 10, inside = "reserve", argument = 2, is = ["PROT_READ | PROT_WRITE"], reason = "protect" }
"#;

fn read(text: &str) -> Result<String, String> {
    constants("a/list.toml", text, &["first", "second"])
}

#[test]
fn a_list_becomes_constants_and_assertions() {
    let code = read(SOUND).unwrap();
    for line in [
        r#"#[doc = "For nobody."]"#,
        "pub const SECOND: [Rule; 1] = [",
        "pub const FIRST: [Rule; 3] = [",
        r#"    Rule { name: "write", number: 1, check: Check::Any, reason: "its output" },"#,
        r#"    Rule { name: "socket", number: 41, check: Check::All(&[Check::Is(0, &[(libc::AF_INET) as u32, (libc::AF_INET6) as u32]), Check::Is(2, &[(libc::IPPROTO_IP) as u32])]), reason: "connections" },"#,
        r#"    Rule { name: "mmap", number: 9, check: Check::Without(2, (libc::PROT_EXEC) as u32), reason: "more memory" },"#,
        r#"    Rule { name: "mprotect", number: 10, check: Check::InReserve(&[(libc::PROT_READ | libc::PROT_WRITE) as u32]), reason: "protect" },"#,
        // Nor does a condition that is none.
        r#"const _: () = assert!((libc::PROT_EXEC) as u32 != 0 && (libc::PROT_EXEC) as u32 as u64 == (libc::PROT_EXEC) as u64, "a/list.toml:8: the condition on `mmap` is about none of the lower 32 bits, or about others");"#,
        // A wrong number does not compile, and the compiler names the place.
        r#"const _: () = assert!(libc::SYS_socket == 41, "a/list.toml:7: `socket` does not have the number 41");"#,
    ] {
        assert!(code.lines().any(|l| l == line), "{line}\n{code}");
    }
    let places: Vec<_> = ["write", "socket", "mmap", "mprotect"].map(|n| code.find(&format!("name: {n:?}"))).to_vec();
    assert!(places.is_sorted(), "in the file's order: {code}");
}

/// A slip, put into the sound list, and what is said of it.
#[test]
fn slips_name_the_file_and_the_line() {
    let wrong = |from: &str, to: &str, message: &str| {
        assert!(SOUND.contains(from), "{from}");
        assert_eq!(read(&SOUND.replacen(from, to, 1)).unwrap_err(), format!("a/list.toml:{message}"));
    };
    wrong("[second]", "[other]", "2: there is no section `other`; expected: first, second");
    wrong("[second]\nabout = \"For somebody.\"\nwrite", "#\n#\n#", "10: the section `second` is missing");
    wrong("about = \"For somebody.\"", "", "2: `about` is missing: whom is the section for?");
    wrong("about = \"For nobody.\"", "about = \"\"", "6: `about` says nothing");
    wrong(
        "{ number = 1, reason = \"its output\" }",
        "1",
        "4: `write` is neither `about` nor a call with its number and reason",
    );
    wrong("write =", "Write =", "4: `Write` is not the name of a system call");
    wrong("number = 1,", "", "4: `number` of `write` is missing");
    wrong("number = 1,", "number = -1,", "4: `number` is not a number of 32 bits");
    wrong("number = 1,", "number = \"1\",", "4: `number` is not a number of 32 bits");
    wrong(", reason = \"its output\"", "", "4: `reason` of `write` is missing");
    wrong("\"its output\"", "\"  \"", "4: `reason` says nothing");
    wrong("number = 1,", "number = 1, flags = 2,", "4: unknown key `flags` of `write`");
    wrong("socket", "write", "7: `write` is already allowed at a/list.toml:4");
    wrong("mmap", "socket", "8: duplicate key");
    wrong("[{ argument = 2, is = [\"IPPROTO_IP\"] }]", "[]", "7: `and` of `socket` lists no conditions");
    wrong("[{ argument = 2, is = [\"IPPROTO_IP\"] }]", "[{}]", "7: `and` of `socket` goes with other conditions");
    wrong("{ argument = 2, is = [\"IPPROTO_IP\"] }", "{ number = 2 }", "7: unknown key `number` of `socket`");
    wrong("\"AF_INET\",", "2,", "7: `is` is not a list of constants' names, in quotes");
    wrong("[\"PROT_EXEC\"]", "[]", "8: `without` is not a list of constants' names, in quotes");
    wrong("PROT_READ |", "PROT_READ | |", "9: `is` is not a list of constants' names, in quotes");
    wrong("\"reserve\"", "\"heap\"", "9: `inside` can only be \"reserve\"");
    wrong("[second]", "second]", "2: key with no value, expected `=`");
    let condition =
        "nothing, `argument` (0 to 5) with `is`, `argument` with `without`, or `inside` with `argument = 2` and `is`";
    wrong("argument = 0, is", "is", &format!("7: the condition on `socket` must be {condition}"));
    wrong("argument = 0,", "argument = 6,", "7: a call has the arguments 0 to 5, not 6");
    wrong("number = 1,", "number = 1, argument = 6,", "4: a call has the arguments 0 to 5, not 6");
    wrong("number = 1,", "number = 1, argument = 0,", &format!("4: the condition on `write` must be {condition}"));
    wrong(
        "without = [",
        "is = [\"PROT_READ\"], without = [",
        &format!("8: the condition on `mmap` must be {condition}"),
    );
    wrong(
        "\"reserve\", argument = 2",
        "\"reserve\", argument = 3",
        &format!("9: the condition on `mprotect` must be {condition}"),
    );
}
