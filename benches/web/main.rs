//! `cargo xtask bench web`: the stock web server against nginx, in one run on one machine.
//!
//! Both serve the same files to the same clients. nginx is a Linux process behind a veth pair, with one worker, `open_file_cache` on, `tcp_nopush` off
//! (Debian's default of on costs it most of its speed over veth), the access log off and no limit of requests per connection. Donjon's
//! server is an image under the process engine behind a TAP. Servers are pinned to core 0, clients to core 1. Each cell is measured for one and then
//! for the other, so that what else the machine does meets both alike.

mod client;
mod hardening;
mod report;
mod server;
#[path = "../src/wrk.rs"]
mod wrk;

use std::process::ExitCode;

use donjon_tests::{Need, missing};

use client::Figures;
use report::Row;
use server::{Server, Servers};

const HELP: &str = "\
cargo xtask bench web [OPTION...]

  --sizes LIST         sizes of the files in KB [default: 1,10,100,1000]
  --connections LIST   [default: 1,64,256,1000,4000]
  --modes LIST         keep-alive, close [default: both]
  --seconds N          length of each measurement [default: 3]
  --only LIST          of load, tls, h2, memory [default: all]
  --idle N             idle connections for the measurement of memory [default: 10000]
  --hardening          not against nginx, but with and without each protection [then 1 KB, 64 connections]
  --turns N            with --hardening: how often each is measured [default: 9]
  --against NAME=IMAGE with --hardening: another image of the same site

Needs root, nginx, wrk, h2load and openssl. Prints a table with ratios (Donjon / nginx) and writes target/bench-web.json.
";

/// What to measure.
pub struct Options {
    sizes: Vec<u32>,
    connections: Vec<u32>,
    modes: Vec<String>,
    seconds: u32,
    only: Vec<String>,
    idle: u32,
    hardening: bool,
    turns: u32,
    against: Vec<(String, std::path::PathBuf)>,
}

impl Options {
    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|p| p == part)
    }
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprint!("bench web: {message}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    if options.hardening {
        if missing("bench web --hardening", &[Need::Tap, Need::Program("wrk")]) {
            return ExitCode::FAILURE;
        }
        return match hardening::main(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => {
                eprintln!("bench web --hardening: {message}");
                ExitCode::FAILURE
            }
        };
    }
    let programs = ["nginx", "wrk", "h2load", "openssl"].map(Need::Program);
    if missing("bench web", &[&[Need::Tap], &programs[..]].concat()) {
        return ExitCode::FAILURE;
    }
    client::raise_file_limit();
    let servers = Servers::start(&options.sizes);
    let rows = measure(&servers, &options);
    report::print(&rows, &options);
    report::write(&rows);
    ExitCode::SUCCESS
}

fn measure(servers: &Servers, options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut cell = |name: String, f: &dyn Fn(&Server) -> Result<Figures, String>| {
        eprintln!("{name}");
        rows.push(Row { name, nginx: f(&servers.nginx), donjon: f(&servers.donjon) });
    };
    let seconds = options.seconds;
    if options.wants("load") {
        for mode in &options.modes {
            for size in &options.sizes {
                for connections in &options.connections {
                    cell(format!("{size} KB, {mode}, c{connections}"), &|server| {
                        client::load(server, &server.plain(*size), mode == "close", *connections, seconds)
                    });
                }
            }
        }
    }
    let size = options.sizes.first().copied().unwrap_or(1);
    if options.wants("h2") {
        for (connections, streams) in [(1, 100), (64, 10), (256, 10)] {
            cell(format!("h2, {size} KB, c{connections} m{streams}"), &|server| {
                client::h2(server, &server.h2(size), connections, streams, seconds)
            });
        }
    }
    if options.wants("tls") {
        for (version, flag) in [("TLS 1.3", "-tls1_3"), ("TLS 1.2", "-tls1_2")] {
            cell(format!("{version} handshakes"), &|server| client::handshakes(server, flag, seconds));
        }
        cell(format!("https, {size} KB, keep-alive, c64"), &|server| {
            client::load(server, &server.tls(size), false, 64, seconds)
        });
        if let Some(big) = options.sizes.last().filter(|big| **big > size) {
            cell(format!("https, {big} KB, keep-alive, c64"), &|server| {
                client::load(server, &server.tls(*big), false, 64, seconds)
            });
        }
        cell(format!("h2 over TLS, {size} KB, c64 m10"), &|server| {
            client::h2(server, &server.tls(size), 64, 10, seconds)
        });
    }
    if options.wants("memory") {
        cell(format!("{} idle connections", options.idle), &|server| client::idle(server, options.idle));
    }
    rows
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut options = Options {
        sizes: vec![1, 10, 100, 1000],
        connections: vec![1, 64, 256, 1000, 4000],
        modes: vec!["keep-alive".into(), "close".into()],
        seconds: 3,
        only: vec![],
        idle: 10_000,
        hardening: false,
        turns: 9,
        against: vec![],
    };
    let mut chosen = (false, false);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} takes a value"));
        let number = |text: &str| match text.parse() {
            Ok(0) | Err(_) => Err(format!("not a number above 0: {text:?}")),
            Ok(n) => Ok(n),
        };
        let numbers = |text: String| text.split(',').map(number).collect::<Result<Vec<u32>, _>>();
        let words = |text: String, known: &[&str]| {
            let list: Vec<String> = text.split(',').map(str::to_owned).collect();
            match list.iter().find(|w| !known.contains(&w.as_str())) {
                Some(odd) => Err(format!("{odd:?} is none of {}", known.join(", "))),
                None => Ok(list),
            }
        };
        match arg.as_str() {
            "--sizes" => (options.sizes, chosen.0) = (numbers(value()?)?, true),
            "--connections" => (options.connections, chosen.1) = (numbers(value()?)?, true),
            "--hardening" => options.hardening = true,
            "--turns" => options.turns = number(&value()?)?,
            "--against" => {
                let value = value()?;
                let (name, image) = value.split_once('=').ok_or("--against takes NAME=IMAGE")?;
                options.against.push((name.into(), image.into()));
            }
            "--modes" => options.modes = words(value()?, &["keep-alive", "close"])?,
            "--only" => options.only = words(value()?, &["load", "tls", "h2", "memory"])?,
            "--seconds" => options.seconds = number(&value()?)?,
            "--idle" => options.idle = number(&value()?)?,
            "--help" | "-h" => return Ok(None),
            other => return Err(format!("what is {other:?}?")),
        }
    }
    if options.hardening {
        if !chosen.0 {
            options.sizes = vec![1];
        }
        if !chosen.1 {
            options.connections = vec![64];
        }
    }
    Ok(Some(options))
}
