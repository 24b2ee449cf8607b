//! `coracle load`: images from an archive.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::app::App;
use crate::exit::Coded;
use crate::out;
use crate::pull::Display;

/// Load images from an archive
///
/// Of `docker save`, `podman save` or `skopeo copy`: a docker archive, or an OCI layout as an archive or a folder.
#[derive(Debug, Args)]
pub struct Load {
    /// The archive or folder; - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Load {
    /// Loads them.
    pub fn run(&self, app: &App) -> Result<ExitCode> {
        let from_pipe = self.file == Path::new("-");
        if !from_pipe && !self.file.exists() {
            return Err(Coded::usage(format!("load {}: there is no such file", self.file.display())));
        }
        let store = app.store()?;
        let options = app.pull_options();
        let display = Display::bars_only();
        let images = match from_pipe {
            true => store.load_reader(io::stdin().lock(), &options, &display)?,
            false => store.load(&self.file, &options, &display)?,
        };
        for image in images {
            let id = image.id.to_string();
            let names = if image.names.is_empty() { vec![id] } else { image.names };
            names.iter().try_for_each(|name| out::line(format!("loaded {name}")))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
