//! What is kept of a local pod, in its sandbox's folder beside the engine's record.
//!
//! - `pod.json`: what runs, written once before the first container is made;
//! - `tend.json`: what the pod has come to (restart delays, failures, hooks that are done, what probes found), written
//!   by whoever holds `tender.lock`;
//! - `stop`: since when the pod is to stop, and how long that may take. From when it is there, no container of the pod
//!   starts again; whoever tends the pod ends what runs.
//!
//! Each is replaced as a whole by rename. They lie on a tmpfs and go with the sandbox.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use coracle_engine::{Paths, record};
use serde::{Deserialize, Serialize};

use super::images::Pulls;
use super::policy::Backoff;
use crate::kube::pod::Pod;
use crate::time;

const POD: &str = "pod.json";
const TEND: &str = "tend.json";
pub(super) const STOP: &str = "stop";
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
    /// When the pod began to be tended; 0 before. Its deadline counts from here.
    pub begun: i64,
    /// When the end of what runs began; 0 before.
    pub ending: i64,
    /// Why the pod has failed as a whole, once it has.
    pub over: Option<Over>,
    /// Whether Services send it traffic: all containers are ready.
    pub ready: bool,
    /// Since when each condition is what it is, by its type.
    pub conditions: BTreeMap<String, Held>,
}

/// A condition's last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What it is.
    pub status: bool,
    /// Since when.
    pub since: i64,
}

/// Why a pod has failed as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Over {
    /// When.
    pub at: i64,
    /// One word: `DeadlineExceeded`.
    pub reason: String,
    /// A sentence.
    pub message: String,
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
    /// The incarnation that the next fields are about, by its id in the engine.
    pub id: String,
    /// Its postStart hook is done, or it has none.
    pub hooked: bool,
    /// Its startup probe has succeeded too, or it has none.
    pub started: bool,
    /// Traffic may come.
    pub ready: bool,
    /// It is being killed for a reason of its own.
    pub kill: Option<Kill>,
    /// Its preStop hook was called and has ended, or is not to be waited for any longer.
    pub pre_stopped: bool,
    /// How the incarnation before it ended.
    pub last_state: Option<Last>,
    /// How often it was started again.
    pub restart_count: u32,
}

impl Memory {
    /// Begins anew for another incarnation.
    pub fn begin(&mut self, id: &str, attempt: u32) {
        *self = Memory {
            id: id.to_owned(),
            restart_count: attempt,
            backoff: self.backoff,
            failure: self.failure.take(),
            pulls: std::mem::take(&mut self.pulls),
            last_state: self.last_state.take(),
            ..Memory::default()
        };
    }
}

/// Why a single container is killed, and how much time it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {
    /// The event's message.
    pub message: String,
    /// Since when.
    pub since: i64,
    /// Seconds.
    pub grace: u64,
}

/// How an incarnation of a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Last {
    /// Its id in the engine.
    pub id: String,
    /// Its exit code.
    pub exit_code: i32,
    /// One word.
    pub reason: String,
    /// Its termination message.
    pub message: String,
    /// When it started.
    pub started_at: i64,
    /// When it ended.
    pub finished_at: i64,
}

/// A container that could not be started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// When.
    pub at: i64,
    /// One word, as the container's waiting state has it; empty for `StartError`.
    pub reason: String,
    /// Why.
    pub message: String,
    /// It was not even made, for a reason that may pass: it is tried again then, whatever its restart policy.
    pub retry_at: Option<i64>,
}

/// `stop`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stop {
    /// When it was asked for; 0 for longer ago than anyone knows.
    pub at: i64,
    /// Nanoseconds from then until what still runs is killed; None for the pod's own grace period.
    pub grace: Option<i64>,
}

impl Stop {
    /// When what still runs is killed.
    pub fn deadline(&self, own: Duration) -> i64 {
        self.at.saturating_add(self.grace.unwrap_or(time::nanos(own)))
    }
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

    /// Asks that the pod stops, within the pod's `own` grace or another. A sandbox that is gone has nothing to stop;
    /// one that is stopping already is only ever hurried.
    pub fn ask_to_stop(&self, own: Duration, grace: Option<Duration>) -> Result<()> {
        let stop = Stop { at: time::now(), grace: grace.map(time::nanos) };
        if !self.0.exists() || self.stop().is_some_and(|other| other.deadline(own) <= stop.deadline(own)) {
            return Ok(());
        }
        match write(&self.0.join(STOP), &stop) {
            Err(_) if !self.0.exists() => Ok(()),
            written => written,
        }
    }

    /// What was asked, if that was. One that cannot be read was asked for all the same.
    pub fn stop(&self) -> Option<Stop> {
        let read: coracle_engine::Result<Option<Stop>> = record::read_json(&self.0.join(STOP));
        read.unwrap_or_else(|_| Some(Stop::default()))
    }

    /// Whether that was asked.
    pub fn is_stopping(&self) -> bool {
        self.0.join(STOP).exists()
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(value).with_context(|| format!("write {}", path.display()))?;
    Ok(record::write_file(path, &bytes, MODE)?)
}
