//! `coracle exec`: a command in a running container.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::ExecConfig;

use super::session::{RawTerminal, copy_output, feed, follow_size, pass_signals};
use crate::app::{self, App};
use crate::exit;
use crate::sys;

/// Run a command in a container
///
/// The exit code is that of the command.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coracle exec web -- ps
  coracle exec -it web -- sh
  tar c . | coracle exec -i -c app web -- tar x -C /data")]
pub struct Exec {
    /// Pass standard input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// The container [default: the pod's first]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Name or id
    pod: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Exec {
    /// Runs it.
    pub async fn run(&self, app: &App) -> Result<ExitCode> {
        let context = || format!("exec in {}", self.pod);
        let code = self.exec(app).await.with_context(context)?;
        Ok(exit::of(code))
    }

    async fn exec(&self, app: &App) -> Result<i32> {
        let engine = app.engine()?;
        let found = app::find(&engine, &self.pod)?;
        let status = found.container(&engine, self.container.as_deref()).await?;
        app::check_running(&status)?;
        let raw = self.tty && self.stdin && io::stdin().is_terminal();
        if self.tty && self.stdin && !raw {
            eprintln!(
                "coracle: standard input is not a terminal: the command gets one, but its keys are not passed raw"
            );
        }
        let config = ExecConfig {
            cmd: self.command.clone(),
            tty: self.tty,
            stdin: self.stdin,
            env: self.terminal_type(),
            size: sys::terminal_size(io::stdout()),
            ..ExecConfig::default()
        };
        let session = engine.exec(&status.id, config).await?;
        // From here on the terminal is the command's; it is ours again when this is dropped, whatever happens.
        let _raw = raw.then(RawTerminal::enter).transpose()?;
        if self.stdin {
            tokio::task::spawn_local(feed(session.stdin, None));
        }
        if self.tty {
            tokio::task::spawn_local(follow_size(session.control.clone()));
        }
        if !raw {
            tokio::task::spawn_local(pass_signals(session.control.clone()));
        }
        copy_output(session.output).await?;
        Ok(session.control.wait().await?)
    }

    /// A program in a terminal needs to know which kind it is.
    fn terminal_type(&self) -> Vec<(String, String)> {
        match std::env::var("TERM") {
            Ok(term) if self.tty && !term.is_empty() => vec![("TERM".to_owned(), term)],
            _ => Vec::new(),
        }
    }
}
