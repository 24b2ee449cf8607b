//! `coracle exec`: a command in a running container.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::{ContainerState, ExecConfig, Output, OutputStream, SessionControl, Stdin};
use nix::sys::termios::{self, SetArg, Termios};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use crate::app::{self, App};
use crate::exit::{self, Coded};
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
        Ok(ExitCode::from(u8::try_from(code).unwrap_or(exit::ERROR)))
    }

    async fn exec(&self, app: &App) -> Result<i32> {
        let engine = app.engine()?;
        let found = app::find(&engine, &self.pod)?;
        let status = found.container(&engine, self.container.as_deref()).await?;
        if status.state != ContainerState::Running {
            let text = format!("container {} is not running: it is {}", status.config.name, status.state.as_str());
            return Err(Coded::error(exit::CONFLICT, text));
        }
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
            tokio::task::spawn_local(feed(session.stdin));
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

/// Read from standard input at once.
const CHUNK: usize = 32 << 10;

/// Passes standard input on until it ends. That the command has gone is told by its end, not here.
async fn feed(mut to: Stdin) {
    let mut input = tokio::io::stdin();
    let mut chunk = vec![0; CHUNK];
    loop {
        match input.read(&mut chunk).await {
            Ok(0) | Err(_) => {
                let _ = to.close().await;
                return;
            }
            Ok(length) => {
                if to.write(&chunk[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Tells the command's terminal each new size of ours.
async fn follow_size(control: SessionControl) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    while changes.recv().await.is_some() {
        if let Some((columns, rows)) = sys::terminal_size(io::stdout()) {
            let _ = control.resize(columns, rows).await;
        }
    }
}

/// Passes Ctrl-C and SIGTERM on to the command, whose end ends us.
async fn pass_signals(control: SessionControl) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    loop {
        let number = tokio::select! {
            _ = interrupt.recv() => libc::SIGINT,
            _ = terminate.recv() => libc::SIGTERM,
        };
        let _ = control.kill(number).await;
    }
}

async fn copy_output(mut output: OutputStream) -> Result<()> {
    while let Some(piece) = output.next().await? {
        let written = match &piece {
            Output::Stdout(bytes) => write(io::stdout().lock(), bytes),
            Output::Stderr(bytes) => write(io::stderr().lock(), bytes),
        };
        match written {
            // Nobody reads on: `coracle exec ... | head -1`.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("write the command's output")?,
        }
    }
    Ok(())
}

fn write(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// The terminal in raw mode: every key goes to the command.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> Result<RawTerminal> {
        let stdin = io::stdin();
        let before = termios::tcgetattr(stdin.as_fd()).context("read the terminal's settings")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw).context("set the terminal to raw mode")?;
        Ok(RawTerminal { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &self.before);
    }
}
