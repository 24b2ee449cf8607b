//! What is done for one file: its former pods end, and those it tells of now are started; each by a command.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use coracle_engine::Engine;

use super::record::Made;
use crate::exit;

/// A job.
pub struct Job {
    /// For finding what the commands have made.
    pub engine: Engine,
    /// `coracle` with the places of this server.
    pub command: Vec<String>,
    /// The pods that end.
    pub old: Vec<Made>,
    /// The pods that are made.
    pub wanted: Vec<Made>,
    /// The file's text; None when it has gone.
    pub text: Option<String>,
}

impl Job {
    /// Does it; the answer is the pods there are afterwards.
    pub fn run(self) -> Result<Vec<Made>> {
        for made in &self.old {
            let Some(sandbox) = &made.sandbox else { continue };
            // Those that have gone meanwhile are as wished.
            self.coracle(&["stop", sandbox], "", &[exit::NOT_FOUND]).with_context(|| format!("stop {}", made.name))?;
            self.coracle(&["rm", sandbox], "", &[exit::NOT_FOUND]).with_context(|| format!("remove {}", made.name))?;
        }
        let Some(text) = &self.text else { return Ok(Vec::new()) };
        self.coracle(&["run", "-d", "-"], text, &[])?;
        let mut made = self.wanted;
        made.iter_mut().for_each(|made| made.look_up(&self.engine));
        Ok(made)
    }

    fn coracle(&self, args: &[&str], input: &str, fine: &[u8]) -> Result<()> {
        let (program, places) = self.command.split_first().context("no command")?;
        let mut command = Command::new(program);
        command.args(places).args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        // Those are the server's own.
        ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID"].iter().for_each(|name| {
            command.env_remove(name);
        });
        let mut child = command.spawn().with_context(|| format!("start {program}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read to the end says why by its exit code.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().context("wait for the command")?;
        let code = output.status.code().and_then(|code| u8::try_from(code).ok());
        if output.status.success() || code.is_some_and(|code| fine.contains(&code)) {
            return Ok(());
        }
        let error = String::from_utf8_lossy(&output.stderr);
        let last = error.lines().rev().find(|line| line.starts_with("coracle: ")).unwrap_or(error.trim());
        bail!("{}", last.trim_start_matches("coracle: "))
    }
}
