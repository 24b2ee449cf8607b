//! Where documents come from: files, folders, standard input.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::exit::Coded;
use crate::kube::{self, Documents, Source, yaml};

/// Most files of one call: a folder of more is another folder than was meant.
const MAX_FILES: usize = 1000;

/// The documents of a call.
#[derive(Debug, Clone, Args)]
pub struct Input {
    /// Files, folders (their *.yaml, *.yml and *.json, sorted); - for standard input
    #[arg(value_name = "FILE", required_unless_present = "filename")]
    files: Vec<PathBuf>,
    /// The same, as kubectl has it; may be repeated
    #[arg(short, long, value_name = "FILE")]
    filename: Vec<PathBuf>,
}

impl Input {
    /// Reads all of them.
    pub fn read(&self) -> Result<Documents> {
        Ok(kube::read(&self.sources()?)?)
    }

    fn sources(&self) -> Result<Vec<Source>> {
        let mut out = Vec::new();
        for path in self.files.iter().chain(&self.filename) {
            if path.is_dir() {
                for path in folder(path)? {
                    out.push(file(&path)?);
                }
            } else {
                out.push(file(path)?);
            }
            if out.len() > MAX_FILES {
                bail!("read {}: more than {MAX_FILES} files", path.display());
            }
        }
        Ok(out)
    }
}

/// The files of a folder that hold documents, sorted; folders in it are not entered.
fn folder(dir: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("read {}", dir.display());
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if kube::is_document(&path) && path.is_file() {
            out.push(path);
        }
    }
    if out.is_empty() {
        return Err(Coded::usage(format!("read {}: the folder has no *.yaml, *.yml or *.json", dir.display())));
    }
    out.sort();
    Ok(out)
}

/// The text of a file, and its name for messages.
fn file(path: &Path) -> Result<Source> {
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    // One byte more than allowed tells that there is more.
    let limit = yaml::MAX_BYTES as u64 + 1;
    if name == "-" {
        io::stdin().lock().take(limit).read_to_end(&mut bytes).context("read standard input")?;
    } else {
        let file = match fs::File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Coded::usage(format!("read {name}: there is no such file")));
            }
            file => file.with_context(|| format!("read {name}"))?,
        };
        file.take(limit).read_to_end(&mut bytes).with_context(|| format!("read {name}"))?;
    }
    let name = if name == "-" { "standard input".to_owned() } else { name };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source { name, text }),
        Err(_) => Err(Coded::usage(format!("read {name}: it is not UTF-8 text"))),
    }
}
