//! A peer for the OCI tests and benches: the few runc commands they need, done by the `libcontainer` crate.
//!
//! `OCI_RUNTIME=target/release/libcontainer-oci` puts it where runc and crun stand. It knows
//! `[--root DIR] create --bundle DIR [--pid-file FILE] ID`, `start ID`, `state ID`, `kill ID [SIGNAL]`
//! and `delete [--force] ID`, and nothing else: it is a measure, not a product.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::signal::Signal;
use libcontainer::syscall::syscall::SyscallType;

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
    Create {
        #[arg(long, short, default_value = ".")]
        bundle: PathBuf,
        #[arg(long)]
        pid_file: Option<PathBuf>,
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

fn main() -> Result<()> {
    let Arguments { root, verb } = Arguments::parse();
    let load = |id: &str| Container::load(root.join(id)).with_context(|| format!("load container {id}"));
    match verb {
        Verb::Create { bundle, pid_file, id } => {
            std::fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
            ContainerBuilder::new(id, SyscallType::default())
                .with_root_path(&root)?
                .with_pid_file(pid_file)?
                .as_init(bundle)
                .with_systemd(false)
                .with_detach(true)
                .build()?;
        }
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
    Ok(())
}
