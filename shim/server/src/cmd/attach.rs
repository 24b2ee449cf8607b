//! `coracle attach`: this terminal on what a container runs.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::{ContainerStatus, SessionControl};

use super::session::{DetachKeys, RawTerminal, copy_output, feed, follow_size};
use crate::app::{self, App};
use crate::exit::{self, Coded};
use crate::sys;

/// Attach to a running container
///
/// Shows what its main process writes from now on, and with -i passes standard input to it. The exit code is that of
/// the container; with a terminal, the keys of --detach-keys leave it running.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coracle attach web
  coracle attach -it -c shell web      leave with Ctrl-P Ctrl-Q")]
pub struct Attach {
    /// Pass standard input on: the container has `stdin: true`
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Use the container's terminal: it has `tty: true`
    #[arg(short = 't', long)]
    tty: bool,
    /// The container [default: the pod's first]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// The keys that leave the container running; empty for none
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: String,
    /// Name or id
    pod: String,
}

impl Attach {
    /// Attaches.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let keys = DetachKeys::parse(&self.detach_keys)?;
        self.attach(app, keys).await.with_context(|| format!("attach to {}", self.pod))
    }

    async fn attach(&self, app: &App, keys: Option<DetachKeys>) -> Result<ExitCode> {
        let engine = app.engine()?;
        let found = app::find(&engine, &self.pod)?;
        let status = found.container(&engine, self.container.as_deref()).await?;
        self.check(&status)?;
        let session = engine.attach(&status.id, self.stdin).await?;
        let raw = self.tty && self.stdin && io::stdin().is_terminal();
        let _raw = raw.then(RawTerminal::enter).transpose()?;
        if self.tty {
            redraw(&session.control).await;
            tokio::task::spawn_local(follow_size(session.control.clone()));
        }
        let (stdin, wants_stdin) = (session.stdin, self.stdin);
        let detached = async move {
            match wants_stdin {
                true => feed(stdin, keys.filter(|_| raw)).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            copied = copy_output(session.output) => copied?,
            () = detached => return Ok(ExitCode::SUCCESS),
        }
        let code = session.control.wait().await?;
        Ok(exit::of(code))
    }

    /// Refuses what the container has not: keys that nobody reads would be lost without a word.
    fn check(&self, status: &ContainerStatus) -> Result<()> {
        let (config, name) = (&status.config, &status.config.name);
        app::check_running(status)?;
        if self.stdin && !config.stdin {
            return Err(Coded::usage(format!(
                "container {name} has no standard input (its spec says no `stdin: true`)"
            )));
        }
        if self.tty && !config.tty {
            return Err(Coded::usage(format!("container {name} has no terminal (its spec says no `tty: true`)")));
        }
        Ok(())
    }
}

/// Has what runs there draw its screen anew: it does so when the size changes.
async fn redraw(control: &SessionControl) {
    if let Some((columns, rows)) = sys::terminal_size(io::stdout()) {
        let _ = control.resize(columns.saturating_add(1), rows).await;
        let _ = control.resize(columns, rows).await;
    }
}
