//! From a list of system calls (`*.seccomp.toml`) to Rust constants. Whatever could be a slip is an error that names the file and the line.
//!
//! Names are not looked up here but by the compiler, in the `libc` crate: beside every rule stands an assertion that `libc::SYS_…` is its number, with the
//! place in its message.

use std::collections::HashMap;
use std::fmt::Write as _;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The text of a Rust file with one constant per section, in the file's order; `sections` are those that it must have, and no others.
pub(crate) fn constants(file: &str, text: &str, sections: &[&str]) -> Result<String, String> {
    let source = Source { file, text };
    let document = DeTable::parse(text).map_err(|e| source.error(e.span().unwrap_or(0..0).start, e.message()))?;
    let mut missing = sections.to_vec();
    let mut code = String::new();
    let mut seen = HashMap::new();
    for (name, at, value) in in_order(document.get_ref()) {
        let Some(place) = missing.iter().position(|s| *s == name) else {
            return Err(source.error(at, &format!("there is no section `{name}`; expected: {}", sections.join(", "))));
        };
        missing.remove(place);
        let Some(table) = value.as_table() else { return Err(source.error(at, &format!("`{name}` is not a section"))) };
        source.section(name, at, table, &mut seen, &mut code)?;
    }
    match missing.first() {
        Some(name) => Err(source.error(text.len(), &format!("the section `{name}` is missing"))),
        None => Ok(code),
    }
}

type Entry<'a> = (&'a str, usize, &'a DeValue<'a>);

/// The entries as they stand in the file, with their places.
fn in_order<'a>(table: &'a DeTable<'a>) -> Vec<Entry<'a>> {
    let entry = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| -> Entry<'a> {
        let name: &std::borrow::Cow<'a, str> = key.get_ref();
        (name, key.span().start, value.get_ref())
    };
    let mut entries: Vec<_> = table.iter().map(entry).collect();
    entries.sort_by_key(|(_, at, _)| *at);
    entries
}

struct Source<'a> {
    file: &'a str,
    text: &'a str,
}

impl<'a> Source<'a> {
    /// The name of the file and the line of this byte.
    fn place(&self, at: usize) -> String {
        let line = 1 + self.text.as_bytes().iter().take(at).filter(|b| **b == b'\n').count();
        format!("{}:{line}", self.file)
    }

    fn error(&self, at: usize, message: &str) -> String {
        format!("{}: {message}", self.place(at))
    }

    /// `seen` has the calls of the sections before: one process may get more than one.
    fn section(
        &self,
        name: &str,
        at: usize,
        table: &'a DeTable<'a>,
        seen: &mut HashMap<&'a str, usize>,
        code: &mut String,
    ) -> Result<(), String> {
        let (mut about, mut rules, mut checks) = (None, String::new(), String::new());
        let mut count = 0;
        for (key, at, value) in in_order(table) {
            if key == "about" {
                about = Some(self.words(key, at, value)?);
                continue;
            }
            if let Some(before) = seen.insert(key, at) {
                return Err(self.error(at, &format!("`{key}` is already allowed at {}", self.place(before))));
            }
            let Some(call) = value.as_table() else {
                return Err(
                    self.error(at, &format!("`{key}` is neither `about` nor a call with its number and reason"))
                );
            };
            let rule = self.rule(key, at, call)?;
            let wrong = self.error(at, &format!("`{key}` does not have the number {}", rule.number));
            let _ = writeln!(checks, "const _: () = assert!(libc::SYS_{key} == {}, {wrong:?});", rule.number);
            for bits in &rule.bits {
                let none = self.error(
                    at,
                    &format!("the condition on `{key}` is about none of the lower 32 bits, or about others"),
                );
                let _ = writeln!(
                    checks,
                    "const _: () = assert!(({bits}) as u32 != 0 && ({bits}) as u32 as u64 == ({bits}) as u64, {none:?});"
                );
            }
            let Rule { number, check, reason, .. } = rule;
            let _ =
                writeln!(rules, "    Rule {{ name: {key:?}, number: {number}, check: {check}, reason: {reason:?} }},");
            count += 1;
        }
        let Some(about) = about else { return Err(self.error(at, "`about` is missing: whom is the section for?")) };
        let constant = name.to_uppercase();
        let _ = writeln!(code, "#[doc = {about:?}]\npub const {constant}: [Rule; {count}] = [\n{rules}];\n{checks}");
        Ok(())
    }

    fn rule(&self, name: &str, at: usize, table: &'a DeTable<'a>) -> Result<Rule<'a>, String> {
        if !name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_')) {
            return Err(self.error(at, &format!("`{name}` is not the name of a system call")));
        }
        let (mut number, mut reason, mut more) = (None, None, vec![]);
        let mut bits = vec![];
        let mut first = vec![];
        for (key, at, value) in in_order(table) {
            match key {
                "number" => number = Some(self.number(key, at, value)?),
                "reason" => reason = Some(self.words(key, at, value)?),
                "and" => {
                    let tables = value.as_array().map(|list| list.iter().map(|v| v.get_ref().as_table()).collect());
                    let tables: Option<Vec<_>> = tables.flatten().filter(|t: &Vec<_>| !t.is_empty());
                    more = tables.ok_or_else(|| self.error(at, &format!("`and` of `{name}` lists no conditions")))?;
                }
                _ => first.push((key, at, value)),
            }
        }
        let mut check = self.check(name, at, first, &mut bits)?;
        if !more.is_empty() {
            let mut all = vec![check];
            for table in more {
                all.push(self.check(name, at, in_order(table), &mut bits)?);
            }
            if all.iter().any(|c| c == "Check::Any") {
                return Err(self.error(at, &format!("`and` of `{name}` goes with other conditions")));
            }
            check = format!("Check::All(&[{}])", all.join(", "));
        }
        let missing = |what| self.error(at, &format!("`{what}` of `{name}` is missing"));
        let number = number.ok_or_else(|| missing("number"))?;
        let reason = reason.ok_or_else(|| missing("reason"))?;
        Ok(Rule { number, check, reason, bits })
    }

    /// A condition as an expression. What an argument must not have is added to `none`.
    fn check(&self, name: &str, at: usize, entries: Vec<Entry<'a>>, none: &mut Vec<String>) -> Result<String, String> {
        let (mut argument, mut is, mut without, mut inside) = (None, None, None, false);
        for (key, at, value) in entries {
            match key {
                "argument" => match self.number(key, at, value)? {
                    n @ 0..6 => argument = Some(n),
                    n => return Err(self.error(at, &format!("a call has the arguments 0 to 5, not {n}"))),
                },
                "is" => is = Some(self.values(key, at, value)?),
                "without" => without = Some(self.values(key, at, value)?.join(" | ")),
                "inside" if value.as_str() == Some("reserve") => inside = true,
                "inside" => return Err(self.error(at, "`inside` can only be \"reserve\"")),
                _ => return Err(self.error(at, &format!("unknown key `{key}` of `{name}`"))),
            }
        }
        none.extend(without.clone());
        Ok(match (inside, argument, is, without) {
            (false, None, None, None) => "Check::Any".into(),
            (false, Some(n), Some(is), None) => format!("Check::Is({n}, &{})", array(&is)),
            (false, Some(n), None, Some(bits)) => format!("Check::Without({n}, ({bits}) as u32)"),
            (true, Some(2), Some(is), None) => format!("Check::InReserve(&{})", array(&is)),
            _ => {
                let one_of = "nothing, `argument` (0 to 5) with `is`, `argument` with `without`, or `inside` with `argument = 2` and `is`";
                return Err(self.error(at, &format!("the condition on `{name}` must be {one_of}")));
            }
        })
    }

    fn number(&self, key: &str, at: usize, value: &DeValue<'_>) -> Result<u32, String> {
        let number = value.as_integer().and_then(|n| u32::from_str_radix(n.as_str(), n.radix()).ok());
        number.ok_or_else(|| self.error(at, &format!("`{key}` is not a number of 32 bits")))
    }

    fn words(&self, key: &str, at: usize, value: &'a DeValue<'a>) -> Result<&'a str, String> {
        let words = value.as_str().filter(|w| w.trim().len() > 5);
        words.ok_or_else(|| self.error(at, &format!("`{key}` says nothing")))
    }

    /// Names of constants of the libc crate, or some of them with `|` between, as expressions.
    fn values(&self, key: &str, at: usize, value: &DeValue<'_>) -> Result<Vec<String>, String> {
        let named = |v: &Spanned<DeValue<'_>>| {
            let one = |name: &str| {
                let sound = name.starts_with(|c: char| c.is_ascii_uppercase())
                    && name.bytes().all(|b| matches!(b, b'A'..=b'Z' | b'0'..=b'9' | b'_'));
                sound.then(|| format!("libc::{name}"))
            };
            let all: Option<Vec<_>> = v.get_ref().as_str()?.split('|').map(|name| one(name.trim())).collect();
            all.map(|all| all.join(" | "))
        };
        let values: Option<Vec<_>> = value.as_array().and_then(|list| list.iter().map(named).collect());
        values
            .filter(|v| !v.is_empty())
            .ok_or_else(|| self.error(at, &format!("`{key}` is not a list of constants' names, in quotes")))
    }
}

/// One call, its check as an expression.
struct Rule<'a> {
    number: u32,
    check: String,
    reason: &'a str,
    /// The bits that arguments must not have, as expressions.
    bits: Vec<String>,
}

fn array(values: &[String]) -> String {
    let all: Vec<_> = values.iter().map(|v| format!("({v}) as u32")).collect();
    format!("[{}]", all.join(", "))
}
