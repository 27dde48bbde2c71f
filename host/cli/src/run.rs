//! `donjon run`.

use std::path::PathBuf;

use donjon_image::project::Options;
use donjon_monitor::{Engine, ExitStatus, QemuOptions, RunOptions};

use crate::{
    args::{EngineArgs, EngineName, RunArgs},
    build,
    failure::Failure,
    ui,
};

pub fn run(args: &RunArgs) -> Result<u8, Failure> {
    let image = image(args)?;
    let options = RunOptions {
        engine: engine(&args.engine),
        memory: args.engine.memory,
        args: (!args.args.is_empty()).then(|| args.args.clone()),
        env: args.env.clone(),
        net: args.engine.net.clone(),
        publish: args.publish.clone(),
        egress_any: args.egress_any,
        verbose: args.verbose,
        ..RunOptions::default()
    };
    let status = donjon_monitor::run(&image, &options)?;
    match &status {
        ExitStatus::Exited(_) | ExitStatus::Stopped { .. } => {}
        crash => eprintln!("donjon: {crash}"),
    }
    Ok(status.code())
}

/// The engine that the arguments choose.
pub fn engine(args: &EngineArgs) -> Engine {
    match args.engine {
        EngineName::Auto => Engine::Auto,
        EngineName::Process => Engine::Process,
        EngineName::Qemu => {
            Engine::Qemu(QemuOptions { machine: args.machine, extra: args.qemu_arg.clone(), ..QemuOptions::default() })
        }
    }
}

fn image(args: &RunArgs) -> Result<PathBuf, Failure> {
    if !args.image.is_dir() {
        return Ok(args.image.clone());
    }
    let options = Options { plain: !ui::colour(), ..Options::default() };
    let built = build::project(&args.image, &options, None)?;
    eprintln!("donjon: {} ({} bytes)", built.image.display(), ui::bytes(built.bytes));
    Ok(built.image)
}
