//! A peer for the OCI tests and benches: the few runc commands they need, done by the `libcontainer` crate.
//!
//! `OCI_RUNTIME=target/release/libcontainer-oci` puts it where runc and crun stand. It knows
//! `[--root DIR] create --bundle DIR [--pid-file FILE] [--console-socket SOCKET] [--preserve-fds N] ID`, `run` with the same,
//! `exec ID COMMAND...`, `start`, `state`, `pause`, `resume`, `kill ID [SIGNAL]` and `delete [--force] ID`, and nothing
//! else: it is a measure, not a product. Its exit codes are runc's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::signal::Signal;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// No test takes longer.
const PATIENCE_SECONDS: u32 = 30;

#[derive(Parser)]
struct Arguments {
    /// Where the state of containers is kept.
    #[arg(long, default_value = "/run/coracle-libcontainer-peer")]
    root: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Create(Create),
    Run(Create),
    Exec {
        id: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    Pause {
        id: String,
    },
    Resume {
        id: String,
    },
    Start {
        id: String,
    },
    State {
        id: String,
    },
    Kill {
        id: String,
        #[arg(default_value = "SIGTERM")]
        signal: String,
    },
    Delete {
        #[arg(long, short)]
        force: bool,
        id: String,
    },
}

#[derive(Args)]
struct Create {
    #[arg(long, short, default_value = ".")]
    bundle: PathBuf,
    #[arg(long)]
    pid_file: Option<PathBuf>,
    #[arg(long)]
    console_socket: Option<PathBuf>,
    #[arg(long, default_value_t = 0)]
    preserve_fds: i32,
    id: String,
}

fn create(root: &Path, args: Create, detach: bool) -> Result<Container> {
    std::fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
    let builder = ContainerBuilder::new(args.id, SyscallType::default())
        .with_root_path(root)?
        .with_pid_file(args.pid_file)?
        .with_console_socket(args.console_socket)
        .with_preserved_fds(args.preserve_fds);
    Ok(builder.as_init(args.bundle).with_systemd(false).with_detach(detach).build()?)
}

/// The exit code of a child; others that end meanwhile are reaped.
fn wait(pid: Pid) -> Result<i32> {
    loop {
        match waitpid(None, None)? {
            WaitStatus::Exited(who, code) if who == pid => return Ok(code),
            WaitStatus::Signaled(who, signal, _) if who == pid => return Ok(128 + signal as i32),
            _ => {}
        }
    }
}

fn main() -> Result<()> {
    let Arguments { root, verb } = Arguments::parse();
    // Where the library waits for a process that died.
    nix::unistd::alarm::set(PATIENCE_SECONDS);
    std::process::exit(act(&root, verb)?);
}

fn act(root: &Path, verb: Verb) -> Result<i32> {
    let load = |id: &str| Container::load(root.join(id)).with_context(|| format!("load container {id}"));
    match verb {
        Verb::Create(args) => drop(create(root, args, true)?),
        Verb::Run(args) => {
            let mut container = create(root, args, false)?;
            let pid = container.pid().context("the container has no process")?;
            container.start()?;
            let code = wait(Pid::from_raw(pid.as_raw()))?;
            container.delete(true)?;
            return Ok(code);
        }
        Verb::Exec { id, command } => {
            let builder = ContainerBuilder::new(id, SyscallType::default()).with_root_path(root)?;
            let pid = builder.as_tenant().with_detach(false).with_container_args(command).build()?;
            return wait(Pid::from_raw(pid.as_raw()));
        }
        Verb::Pause { id } => load(&id)?.pause()?,
        Verb::Resume { id } => load(&id)?.resume()?,
        Verb::Start { id } => load(&id)?.start()?,
        Verb::State { id } => {
            let mut container = load(&id)?;
            container.refresh_state()?;
            println!("{}", serde_json::to_string(&container.state)?);
        }
        Verb::Kill { id, signal } => {
            let Ok(signal) = Signal::try_from(signal.as_str()) else { bail!("unknown signal {signal}") };
            load(&id)?.kill(signal, false)?;
        }
        Verb::Delete { force, id } => load(&id)?.delete(force)?,
    }
    Ok(0)
}
