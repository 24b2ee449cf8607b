//! `coracle completion`: a script for the shell.

use std::io;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use clap_complete::Shell;

/// Print a completion script
///
/// For bash: coracle completion bash > /etc/bash_completion.d/coracle
#[derive(Debug, Args)]
pub struct Completion {
    /// The shell
    pub shell: Shell,
}

impl Completion {
    /// Prints it.
    pub fn run(&self) -> Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut crate::cli::command(), "coracle", &mut script);
        match io::Write::write_all(&mut io::stdout(), &script) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("write the script"),
            _ => Ok(ExitCode::SUCCESS),
        }
    }
}
