//! The verbs.

pub mod args;
mod inspect;
mod launch;
pub mod log;
mod template;
mod terminal;
mod update;

use anyhow::{Context, Result};
use args::{Cli, Command};
use coracle_runtime::Runtime;

/// Runs one verb; the exit code is the program's for `run` and `exec`, else 0.
pub fn run(cli: Cli) -> Result<i32> {
    let driver = launch::CgroupDriver::of(&cli)?;
    // Only these become, for a moment, a process of a container.
    if matches!(cli.command, Command::Create(_) | Command::Run(_) | Command::Exec(_)) {
        coracle_runtime::seal_self()?;
    }
    let root = std::path::absolute(&cli.root).context("--root")?;
    let runtime = Runtime::new(root);
    match cli.command {
        Command::Create(args) => launch::create(&runtime, args, driver)?,
        Command::Run(args) => return launch::run(&runtime, args, driver),
        Command::Exec(args) => return launch::exec(&runtime, *args),
        Command::Start(args) => runtime.start(&args.id)?,
        Command::State(args) => inspect::state(&runtime, &args.id)?,
        Command::Kill(args) => runtime.kill(&args.id, inspect::signal(&args.signal)?, args.all)?,
        Command::Delete(args) => runtime.delete(&args.id, args.force)?,
        Command::List(args) => inspect::list(&runtime, &args)?,
        Command::Ps(args) => inspect::ps(&runtime, &args)?,
        Command::Pause(args) => runtime.pause(&args.id)?,
        Command::Resume(args) => runtime.resume(&args.id)?,
        Command::Update(args) => update::update(&runtime, &args)?,
        Command::Events(args) => inspect::events(&runtime, &args)?,
        Command::Stats(args) => inspect::stats(&runtime, &args.id)?,
        Command::Spec(args) => template::write(&args)?,
        Command::Features => template::features()?,
    }
    Ok(0)
}
