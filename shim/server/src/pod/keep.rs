//! What is kept of a local pod, in its sandbox's folder beside the engine's record.
//!
//! - `pod.json`: what runs, written once before the first container is made;
//! - `tend.json`: restart delays and failures, written by whoever holds `tender.lock`;
//! - `stop`: empty; from when it is there, no container of the pod starts again.
//!
//! Each is replaced as a whole by rename. They lie on a tmpfs and go with the sandbox.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use coracle_engine::{Paths, record};
use serde::{Deserialize, Serialize};

use super::images::Pulls;
use super::policy::Backoff;
use crate::kube::pod::Pod;

const POD: &str = "pod.json";
const TEND: &str = "tend.json";
const STOP: &str = "stop";
const MODE: u32 = 0o600;

/// `pod.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The pod.
    pub pod: Pod,
    /// Its uid: new for each run.
    pub uid: String,
    /// The image of the store that each container runs.
    pub images: BTreeMap<String, String>,
}

/// `tend.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tended {
    /// By container.
    pub containers: BTreeMap<String, Memory>,
}

/// What is remembered of a container beyond its engine record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Its restart delay.
    pub backoff: Backoff,
    /// The last attempt to start it that failed, until one succeeds.
    pub failure: Option<Failure>,
    /// Pulls of its images that failed.
    pub pulls: Pulls,
}

/// A container that could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When.
    pub at: i64,
    /// Why.
    pub message: String,
}

/// The folder of a pod's files.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// That of a sandbox.
    pub fn of(paths: &Paths, sandbox: &str) -> Folder {
        Folder(paths.pod(sandbox))
    }

    /// Writes what runs.
    pub fn write_pod(&self, kept: &Kept) -> Result<()> {
        write(&self.0.join(POD), kept)
    }

    /// Reads what runs; None for a sandbox that is not a local pod.
    pub fn read_pod(&self) -> Result<Option<Kept>> {
        Ok(record::read_json(&self.0.join(POD))?)
    }

    /// Writes what the tender remembers.
    pub fn write_tended(&self, tended: &Tended) -> Result<()> {
        write(&self.0.join(TEND), tended)
    }

    /// Reads what the tender remembers.
    pub fn read_tended(&self) -> Result<Tended> {
        Ok(record::read_json(&self.0.join(TEND))?.unwrap_or_default())
    }

    /// Asks that nothing of the pod starts again. A sandbox that is gone has nothing to start.
    pub fn ask_to_stop(&self) -> Result<()> {
        let path = self.0.join(STOP);
        match fs::File::create(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("write {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Whether that was asked.
    pub fn is_stopping(&self) -> bool {
        self.0.join(STOP).exists()
    }
}

fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(value).with_context(|| format!("write {}", path.display()))?;
    Ok(record::write_file(path, &bytes, MODE)?)
}
