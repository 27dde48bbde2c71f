//! What the jail is made of on this machine.

use crate::error::Error;
use crate::exit::ExitStatus;
use crate::options::RunOptions;
use std::fmt::Write as _;
use std::io::Result;

/// How `--explain-jail` writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Explain {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// One layer of a jail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layer {
    /// Whose jail.
    pub process: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Whether it is there.
    pub state: State,
}

impl Layer {
    /// Whether a promise rests on it. Namespaces and another root only back up the others, and many hosts refuse them to ordinary users.
    fn is_relied_on(&self) -> bool {
        self.name != "root" && !self.name.contains("namespace")
    }
}

/// Whether a layer is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// It is, and does this.
    Applied(String),
    /// It is not, as it was not wanted here.
    Absent(String),
    /// It is not, as the host refused it.
    Refused(String),
}

/// The layers in the order in which they were put on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    process: &'static str,
    layers: Vec<Layer>,
}

impl Report {
    /// Of a process that has none yet.
    pub(crate) fn new(process: &'static str) -> Report {
        Report { process, layers: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: &'static str, result: Result<String>) {
        let state = match result {
            Ok(what) => State::Applied(what),
            Err(e) => State::Refused(format!("the host refused: {e}")),
        };
        self.layers.push(Layer { process: self.process, name, state });
    }

    pub(crate) fn skip(&mut self, name: &'static str, reason: &str) {
        self.layers.push(Layer { process: self.process, name, state: State::Absent(reason.into()) });
    }

    /// Not there, because of the host.
    pub(crate) fn refused(&mut self, name: &'static str, reason: &str) {
        self.layers.push(Layer { process: self.process, name, state: State::Refused(reason.into()) });
    }

    /// With another process's layers in front.
    pub(crate) fn after(mut self, mut others: Report) -> Report {
        others.layers.append(&mut self.layers);
        others
    }

    /// Does what the options want done in the jail before the guest starts: explains it, which ends the run with this status, or has a
    /// test try to get out. Says what promises rest on and is not there; without a filter on the monitor's system calls no guest starts.
    pub(crate) fn before_the_guest(
        &self,
        options: &RunOptions,
        say: impl FnOnce(&str),
    ) -> std::result::Result<Option<ExitStatus>, Error> {
        if let Some(how) = options.explain_jail {
            _ = std::io::Write::write_all(&mut std::io::stdout(), self.show(how).as_bytes());
            return Ok(Some(ExitStatus::Exited(0)));
        }
        let mut lost = String::new();
        for l in &self.layers {
            let State::Refused(why) = &l.state else { continue };
            if l.name == "seccomp" {
                let source = std::io::Error::other(why.clone());
                return Err(Error::Host { what: "cannot limit the monitor's system calls", source });
            }
            if options.verbose || l.is_relied_on() {
                let _ = write!(lost, "{}{} of {}", if lost.is_empty() { "" } else { ", " }, l.name, l.process);
            }
        }
        if !lost.is_empty() {
            say(&format!("the host refused layers of the jail: {lost} (--explain-jail says why)"));
        }
        if let Some(attempt) = options.in_jail {
            attempt();
        }
        Ok(None)
    }

    /// The layers.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// As text or JSON, with a line feed at the end.
    pub fn show(&self, how: Explain) -> String {
        let mut out = String::new();
        let mut process = "";
        if how == Explain::Json {
            let row = |l: &Layer| {
                let (applied, detail) = match &l.state {
                    State::Applied(what) => (true, what),
                    State::Absent(why) | State::Refused(why) => (false, why),
                };
                format!(
                    "{{\"process\":{},\"layer\":{},\"applied\":{applied},\"detail\":{}}}",
                    quoted(l.process),
                    quoted(l.name),
                    quoted(detail)
                )
            };
            let rows: Vec<String> = self.layers.iter().map(row).collect();
            return format!("[{}]\n", rows.join(",\n "));
        }
        for l in &self.layers {
            if l.process != process {
                process = l.process;
                let _ = writeln!(out, "{process}");
            }
            let (mark, detail) = match &l.state {
                State::Applied(what) => ("yes", what),
                State::Absent(why) | State::Refused(why) => ("no ", why),
            };
            let _ = writeln!(out, "  {mark}  {:<32}{detail}", l.name);
        }
        out
    }
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_text_and_json() {
        let mut r = Report::new("the monitor");
        r.add("seccomp", Ok("3 calls".into()));
        r.add("Landlock", Err(std::io::Error::other("a \"quote\"\n")));
        r.skip("PID namespace", "no need");
        assert!(r.show(Explain::Text).starts_with("the monitor\n  yes  seccomp"));
        assert!(r.show(Explain::Json).contains(r#""applied":false,"detail":"the host refused: a \"quote\"\u000a"}"#));
    }
}
