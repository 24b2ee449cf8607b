//! `coracle save`: images to an archive.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use coracle_rootfs::Format;

use crate::app::App;
use crate::exit::{self, Coded};

/// Save images to an archive
#[derive(Debug, Args)]
pub struct Save {
    /// The archive or folder to make; - for standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// What to make
    #[arg(short, long, value_enum, default_value_t)]
    format: Kind,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// What can be made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// What `docker load` reads
    #[default]
    DockerArchive,
    /// An OCI layout in an archive
    OciArchive,
    /// An OCI layout in a folder
    OciDir,
}

impl Save {
    /// Saves them.
    pub fn run(&self, app: &App) -> Result<ExitCode> {
        let to_stdout = self.output == Path::new("-");
        if to_stdout && self.format == Kind::OciDir {
            return Err(Coded::usage("save: a folder cannot go to standard output (name it with --output)"));
        }
        if to_stdout && io::stdout().is_terminal() {
            return Err(Coded::usage("save: standard output is a terminal (name a file with --output)"));
        }
        let store = app.store()?;
        for image in &self.images {
            if store.image(image)?.is_none() {
                let text = format!("save: no image {image} (`coracle images` lists them)");
                return Err(Coded::error(exit::NOT_FOUND, text));
            }
        }
        let format = match self.format {
            Kind::DockerArchive => Format::DockerArchive,
            Kind::OciArchive => Format::OciArchive,
            Kind::OciDir => Format::OciDir,
        };
        let names: Vec<&str> = self.images.iter().map(String::as_str).collect();
        match to_stdout {
            true => store.save_to(&names, format, &mut io::stdout().lock())?,
            false => store.save(&names, format, &self.output)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
