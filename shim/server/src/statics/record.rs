//! What the server has made of the folder's files: `STATE/statics.json`, replaced whole by rename. It lies beside the
//! pods' own records, and goes with them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use coracle_engine::{Engine, Paths, record};
use serde::{Deserialize, Serialize};

use crate::kube::pod::Pod;

const FILE: &str = "statics.json";
const MODE: u32 = 0o600;

/// All files.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// By path.
    pub files: BTreeMap<PathBuf, File>,
}

/// A file as it was when its pods were made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct File {
    /// What it said.
    pub text: String,
    /// Its pods; written before they are made.
    pub pods: Vec<Made>,
}

/// A pod that was made, or is being made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its sandbox, once that is known.
    #[serde(default)]
    pub sandbox: Option<String>,
}

impl Made {
    /// A pod that is to be made.
    pub fn of(pod: &Pod) -> Made {
        Made { namespace: pod.namespace.clone(), name: pod.name.clone(), sandbox: None }
    }

    /// How commands call it.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether both mean the same pod.
    pub fn same(&self, other: &Made) -> bool {
        (&self.namespace, &self.name) == (&other.namespace, &other.name)
    }

    /// Finds its sandbox, if that is not known.
    pub fn look_up(&mut self, engine: &Engine) {
        if self.sandbox.is_none() {
            self.sandbox = engine.find_sandbox(&self.full_name()).ok();
        }
    }
}

impl Record {
    /// Reads it; an empty one if there is none.
    pub fn read(paths: &Paths) -> Result<Record> {
        Ok(record::read_json(&paths.state.join(FILE))?.unwrap_or_default())
    }

    /// Replaces it.
    pub fn write(&self, paths: &Paths) -> Result<()> {
        let bytes = serde_json::to_vec(self).context("write the record of static pods")?;
        Ok(record::write_file(&paths.state.join(FILE), &bytes, MODE)?)
    }
}
