//! One case, named by the first argument: prints `PASS case`, or `FAILURE case: why` and ends with status 1.

mod bundle;
mod calls;
mod ends;
mod files;
mod linger;
mod short;
mod signals;
mod stop;
mod threads;

use std::io;

type Outcome = Result<(), String>;

fn main() {
    let case = std::env::args().nth(1).unwrap_or_default();
    let outcome = match case.as_str() {
        "bundle" => bundle::all(),
        "calls" => calls::all(),
        "threads" => threads::all(),
        "overflow" => threads::overflow(),
        "files" => files::all(),
        "linger" => linger::all(),
        "linger-serve" => linger::serve(),
        "exit-serve" => linger::exit(),
        "last-thread" => ends::with_the_last_thread(),
        "key-at-exit" => ends::without_key_destructors(),
        "exit-while-others-read" => ends::while_others_read(),
        "short-of-memory" => short::ordinary_calls(),
        "full-tables" => short::full_tables(),
        "signals" => signals::between_threads(),
        "stop" => stop::is_heard_once(),
        other => Err(format!("no such case: {other}")),
    };
    match outcome {
        Ok(()) => println!("PASS {case}"),
        Err(why) => {
            println!("FAILURE {case}: {why}");
            std::process::exit(1);
        }
    }
}

fn ensure(ok: bool, what: impl Into<String>) -> Outcome {
    if ok { Ok(()) } else { Err(what.into()) }
}

/// Fails unless a C function that returned `result` failed with this error.
fn fails_with(result: isize, errno: i32, what: &str) -> Outcome {
    let error = io::Error::last_os_error();
    ensure(result == -1 && error.raw_os_error() == Some(errno), format!("{what}: {result}, {error}, not errno {errno}"))
}
