//! `donjon run`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use donjon_monitor::jail::Explain;
use donjon_monitor::{Engine, ExitStatus, QemuOptions, RunOptions};

use crate::{
    args::{EngineArgs, EngineName, RunArgs},
    build,
    failure::{Failure, code},
    ui,
};

pub fn run(args: &RunArgs) -> Result<u8, Failure> {
    if let Some(parent) = args.child_of {
        end_with(parent)?;
    }
    let image = image(args)?;
    let options = RunOptions {
        engine: engine(&args.engine),
        memory: args.engine.memory,
        args: (!args.args.is_empty()).then(|| args.args.clone()),
        env: args.env.clone(),
        net: args.engine.net.clone(),
        publish: args.publish.clone(),
        secrets: args.secret.clone(),
        listen_any: args.listen_any,
        egress_any: args.egress_any,
        limit_connections: args.limit_connections,
        limit_send: args.limit_send,
        stop_timeout: args.stop_timeout.map(Duration::from_secs),
        explain_jail: args.explain_jail.then_some(if args.json { Explain::Json } else { Explain::Text }),
        verbose: args.verbose,
        starting: ui::io_is_terminal().then_some(ui::starting),
        ..RunOptions::default()
    };
    to_the_end(&image, &options)
}

/// Runs the image and says how it ended, if that was not by itself.
pub fn to_the_end(image: &Path, options: &RunOptions) -> Result<u8, Failure> {
    let status = donjon_monitor::run(image, options)?;
    match &status {
        ExitStatus::Exited(_) | ExitStatus::Stopped { .. } => {}
        crash => donjon_monitor::say!("donjon: {crash}"),
    }
    Ok(status.code())
}

/// The engine that the arguments choose.
pub fn engine(args: &EngineArgs) -> Engine {
    match args.engine {
        EngineName::Auto => Engine::Auto,
        EngineName::Process => Engine::Process,
        EngineName::Qemu => {
            let (extra, unconfined) = (args.qemu_arg.clone(), args.qemu_unconfined);
            Engine::Qemu(QemuOptions { machine: args.machine, extra, unconfined, ..QemuOptions::default() })
        }
    }
}

/// Has us asked to stop when the process that started us ends, however it ends.
fn end_with(parent: i32) -> Result<(), Failure> {
    let os = |e| Failure::new(code::OS, format!("cannot ask for a signal when the parent ends: {e}"), None);
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM)).map_err(os)?;
    // It may have ended before that.
    let now = rustix::process::getppid().map_or(0, rustix::process::Pid::as_raw_pid);
    if now == parent {
        Ok(())
    } else {
        Err(Failure::new(code::OS, "the process that started this one has ended", None))
    }
}

fn image(args: &RunArgs) -> Result<PathBuf, Failure> {
    if !args.image.is_dir() {
        if args.program.any() {
            let hint = "leave them out, or name the project's directory".to_owned();
            return Err(Failure::new(code::USAGE, "options for building are for a project, not for an image", hint));
        }
        return Ok(args.image.clone());
    }
    let is_content = ["index.html", "public/index.html"].iter().any(|page| args.image.join(page).is_file());
    if is_content && !args.image.join("Cargo.toml").exists() {
        // The project around it, if there is one, is not what was meant.
        let dir = args.image.display();
        let hint = format!("`donjon serve {dir}` serves it");
        return Err(Failure::new(code::NO_INPUT, format!("{dir} has web pages in it, and no Cargo.toml"), hint));
    }
    let built = build::project(&args.image, &args.program.options(), None)?;
    donjon_monitor::say!("donjon: {} ({} bytes)", built.image.display(), ui::bytes(built.bytes));
    Ok(built.image)
}
