//! `coracle man`: manual pages of all commands.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::out;

/// Write manual pages
///
/// For example: coracle man /usr/local/share/man/man1
#[derive(Debug, Args)]
pub struct Man {
    /// The folder that gets them; it is made if it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Man {
    /// Writes them.
    pub fn run(&self) -> Result<ExitCode> {
        let context = || format!("write manual pages into {}", self.dir.display());
        fs::create_dir_all(&self.dir).with_context(context)?;
        clap_mangen::generate_to(crate::cli::command(), &self.dir).with_context(context)?;
        out::line(format!("wrote manual pages into {}", self.dir.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
