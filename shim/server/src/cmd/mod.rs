//! The verbs, one small file each.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::app::App;
use crate::cli::{Cli, Command};

pub mod apply;
pub mod attach;
pub mod completion;
pub mod config;
pub mod cp;
pub mod describe;
pub mod dns;
pub mod doctor;
pub mod down;
pub mod events;
pub mod exec;
pub mod explain;
pub mod gc;
pub mod images;
pub mod inspect;
pub mod kube;
pub mod load;
pub mod logs;
pub mod man;
pub mod port_forward;
pub mod ps;
pub mod pull;
pub mod rm;
pub mod rmi;
pub mod run;
pub mod save;
pub mod session;
pub mod stop;
pub mod tend;
pub mod top;
pub mod version;
pub mod wait;

/// Does what the command line says; the answer is the exit code.
pub fn run(cli: Cli) -> Result<ExitCode> {
    // Asked for by packagers, without a machine to look at.
    if let Command::Completion(args) = &cli.command {
        return args.run();
    }
    if let Command::Explain(args) = &cli.command {
        return args.run();
    }
    if let Command::Man(args) = &cli.command {
        return args.run();
    }
    // Before there is a second thread, and without the machine's settings, which it must not read inside a container.
    if let Command::Copier(args) = &cli.command {
        return args.run();
    }
    // A file that cannot be read must not keep its check from telling so.
    if let Command::Config(args) = &cli.command {
        return args.run(cli.places.config.as_deref());
    }
    let app = App::new(cli.places)?;
    // A daemon has an event loop of its own, with threads.
    if let Command::Serve(args) = cli.command {
        return args.run(app);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the event loop")?;
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, dispatch(&app, cli.command));
    // A thread that still reads the terminal must not keep the program from ending.
    runtime.shutdown_background();
    result
}

async fn dispatch(app: &App, command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => args.run(app).await,
        Command::Apply(args) => args.run(app).await,
        Command::Down(args) => args.run(app).await,
        Command::Explain(args) => args.run(),
        Command::Ps(args) => args.run(app).await,
        Command::Logs(args) => args.run(app).await,
        Command::Exec(args) => args.run(app).await,
        Command::PortForward(args) => args.run(app).await,
        Command::Attach(args) => args.run(app).await,
        Command::Cp(args) => args.run(app).await,
        Command::Copier(args) => args.run(),
        Command::Describe(args) => args.run(app).await,
        Command::Kube(args) => args.run(app),
        Command::Inspect(args) => args.run(app).await,
        Command::Top(args) => args.run(app).await,
        Command::Wait(args) => args.run(app).await,
        Command::Man(args) => args.run(),
        Command::Events(args) => args.run(app).await,
        Command::Stop(args) => args.run(app).await,
        Command::Rm(args) => args.run(app).await,
        Command::Pull(args) => args.run(app),
        Command::Images(args) => args.run(app),
        Command::Rmi(args) => args.run(app),
        Command::Load(args) => args.run(app),
        Command::Save(args) => args.run(app),
        Command::Gc(args) => args.run(app).await,
        Command::Doctor(args) => args.run(app).await,
        Command::Version(args) => args.run(app),
        Command::Completion(args) => args.run(),
        Command::Config(args) => args.run(app.places.config.as_deref()),
        Command::Serve(args) => args.run(app.clone()),
        Command::Tend(args) => {
            let code = args.run(app).await?;
            crate::workload::tended(app, &args.uid).await?;
            Ok(code)
        }
        Command::Dns(args) => args.run(app).await,
    }
}

/// Does something to each of several things: all are tried, and the first error is the answer, after the others were
/// told.
pub(crate) fn first_error(results: Vec<(String, Result<()>)>) -> Result<ExitCode> {
    let mut failed: Vec<anyhow::Error> =
        results.into_iter().filter_map(|(what, result)| result.err().map(|error| error.context(what))).collect();
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let first = failed.remove(0);
    for error in failed {
        crate::print_error(&error);
    }
    Err(first)
}
