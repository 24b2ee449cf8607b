//! `coracle config`: the settings with their meaning, and what is wrong with a file of them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::config::{self, File};
use crate::exit::Coded;
use crate::out;

/// Show the settings, or check a file of them
#[derive(Debug, Args)]
pub struct Config {
    /// What to do.
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print a configuration file with every setting, its meaning and its default
    Default,
    /// Tell what is wrong with a configuration file, each problem on a line with its place
    Check {
        /// The file [default: that of --config]
        file: Option<PathBuf>,
    },
}

impl Config {
    /// Prints or checks.
    pub fn run(&self, named: Option<&Path>) -> Result<ExitCode> {
        match &self.what {
            What::Default => out::line(config::DEFAULT_TEXT.trim_end())?,
            What::Check { file } => check(file.as_deref().or(named))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn check(named: Option<&Path>) -> Result<()> {
    let file = File::read(named)?;
    let mut problems = file.problems();
    problems.extend(file.missing_programs());
    let Some((last, others)) = problems.split_last() else {
        let found = if file.exists() { "no problem" } else { "no such file, so all settings are the defaults" };
        return out::line(format!("{}: {found}", file.path().display()));
    };
    others.iter().for_each(|problem| eprintln!("coracle: {problem}"));
    Err(Coded::usage(last.clone()))
}
