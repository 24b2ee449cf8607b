//! The events of pods: what happened, in kubelet's reasons and words, counted as kubelet's correlator counts.
//!
//! ```text
//! STATE/events/UID.jsonl      first line: whose events these are; then one line for each kind of event ([`Event`])
//! STATE/events/lock           held while a file is read and replaced: two writers never lose each other's event
//! ```
//!
//! A file is replaced whole by rename, so a reader sees the old or the new one. It outlives its pod: an event is kept
//! for an hour after it was last seen, as an API server keeps it, and a file without any is removed by whoever records
//! the first event of another pod. How events are counted and how many are kept is [`correlate`]'s.

mod correlate;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use coracle_engine::{Paths, lock, record};
use serde::{Deserialize, Serialize};

use super::keep::Kept;
use crate::kube::pod::Pod;
use crate::time;

const FOLDER: &str = "events";
const LOCK: &str = "lock";
const SUFFIX: &str = ".jsonl";
const MODE: u32 = 0o600;
/// An event is kept for this long after it was last seen: an API server's default.
const KEPT: Duration = Duration::from_secs(3600);
/// A longer file was not written by us: the correlator bounds both the number of events and their length.
const MAX_LEN: u64 = 4 << 20;

/// Whether all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Type {
    /// As expected.
    Normal,
    /// Worth a look.
    Warning,
}

impl Type {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Type::Normal => "Normal",
            Type::Warning => "Warning",
        }
    }
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On<'a> {
    /// The pod as a whole.
    Pod,
    /// One of its containers.
    Container(&'a str),
    /// One of its init containers.
    InitContainer(&'a str),
}

impl<'a> On<'a> {
    /// A container of the pod, by its name.
    pub fn container(pod: &Pod, name: &'a str) -> On<'a> {
        match pod.init.iter().any(|container| container.name == name) {
            true => On::InitContainer(name),
            false => On::Container(name),
        }
    }

    /// The path of the field, as `involvedObject.fieldPath` has it; empty for the pod.
    fn field_path(self) -> String {
        match self {
            On::Pod => String::new(),
            On::Container(name) => format!("spec.containers{{{name}}}"),
            On::InitContainer(name) => format!("spec.initContainers{{{name}}}"),
        }
    }
}

/// An event, as often as it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Grows with each change of the pod's events: who has seen all up to one number knows what is new.
    pub number: u64,
    /// Whether all is well.
    #[serde(rename = "type")]
    pub kind: Type,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// The field of the Pod that it is about; empty for the pod as a whole.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field_path: String,
    /// How often it happened.
    pub count: u32,
    /// When first: nanoseconds since the epoch.
    pub first: i64,
    /// When last.
    pub last: i64,
    /// Whether it stands for several whose messages differ.
    #[serde(default, skip_serializing_if = "is_false")]
    pub combined: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Whose events a file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The pod's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// A pod's events.
#[derive(Debug, Clone)]
pub struct Log {
    /// Whose.
    pub owner: Owner,
    /// In the order of their last change.
    pub events: Vec<Event>,
}

/// Records the events of one pod. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    dir: PathBuf,
    owner: Arc<Owner>,
}

impl Recorder {
    /// A recorder for the pod of this name and uid.
    pub fn new(paths: &Paths, namespace: &str, name: &str, uid: &str) -> Recorder {
        let owner = Owner { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.to_owned() };
        Recorder { dir: paths.state.join(FOLDER), owner: Arc::new(owner) }
    }

    /// The recorder of a pod that is kept.
    pub fn of(paths: &Paths, kept: &Kept) -> Recorder {
        Recorder::new(paths, &kept.pod.namespace, &kept.pod.name, &kept.uid)
    }

    /// Records that something happened as it should.
    pub fn normal(&self, on: On<'_>, reason: &'static str, message: impl AsRef<str>) {
        self.record(Type::Normal, on, reason, message.as_ref());
    }

    /// Records that something is not as it should be.
    pub fn warning(&self, on: On<'_>, reason: &'static str, message: impl AsRef<str>) {
        self.record(Type::Warning, on, reason, message.as_ref());
    }

    /// Whoever makes something happen must not fail because it cannot be told: it is said once, and life goes on.
    fn record(&self, kind: Type, on: On<'_>, reason: &str, message: &str) {
        static TOLD: AtomicBool = AtomicBool::new(false);
        if let Err(error) = self.write(kind, on, reason, message)
            && !TOLD.swap(true, Ordering::Relaxed)
        {
            eprintln!("coracle: events are not recorded: {error:#}");
        }
    }

    fn write(&self, kind: Type, on: On<'_>, reason: &str, message: &str) -> Result<()> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.with_context(|| format!("make folder {}", self.dir.display()))?;
        let _section = lock::section(&self.dir.join(LOCK), true)?;
        let path = self.dir.join(format!("{}{SUFFIX}", file_name(&self.owner.uid)));
        let (now, known) = (time::now(), read(&path)?);
        if known.is_none() {
            remove_old(&self.dir);
        }
        let mut events = known.map(|log| log.events).unwrap_or_default();
        forget(&mut events, now);
        correlate::add(&mut events, correlate::Happened { kind, field_path: on.field_path(), reason, message, now });
        let mut text = serde_json::to_vec(&*self.owner)?;
        for event in &events {
            text.push(b'\n');
            serde_json::to_writer(&mut text, event)?;
        }
        text.push(b'\n');
        Ok(record::write_file(&path, &text, MODE)?)
    }
}

/// A uid is a UUID; that of another client of the records may be any text, and must not lead elsewhere.
fn file_name(uid: &str) -> String {
    uid.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).take(128).collect()
}

/// The events of all pods that have any.
pub fn list(paths: &Paths) -> Result<Vec<Log>> {
    let dir = paths.state.join(FOLDER);
    let now = time::now();
    let mut logs = Vec::new();
    for path in files(&dir).with_context(|| format!("list {}", dir.display()))? {
        // One that vanished in between was too old.
        let Some(mut log) = read(&path)? else { continue };
        forget(&mut log.events, now);
        if !log.events.is_empty() {
            logs.push(log);
        }
    }
    Ok(logs)
}

/// The events of the pod with this uid.
pub fn of(paths: &Paths, uid: &str) -> Result<Vec<Event>> {
    let path = paths.state.join(FOLDER).join(format!("{}{SUFFIX}", file_name(uid)));
    let mut events = read(&path)?.map(|log| log.events).unwrap_or_default();
    forget(&mut events, time::now());
    Ok(events)
}

fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let is_log = |path: &PathBuf| path.to_str().is_some_and(|path| path.ends_with(SUFFIX));
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    Ok(paths?.into_iter().filter(is_log).collect())
}

/// Reads a file; None if there is none. A line that is no event is passed over: what else there is counts.
fn read(path: &Path) -> Result<Option<Log>> {
    let context = || format!("read {}", path.display());
    let text = match fs::metadata(path).and_then(|meta| match meta.len() > MAX_LEN {
        true => Err(io::Error::other(format!("it has {} bytes, more than {MAX_LEN}", meta.len()))),
        false => fs::read_to_string(path),
    }) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(context)?,
    };
    let mut lines = text.lines();
    let Some(owner) = lines.next().and_then(|line| serde_json::from_str(line).ok()) else { return Ok(None) };
    Ok(Some(Log { owner, events: lines.filter_map(|line| serde_json::from_str(line).ok()).collect() }))
}

fn forget(events: &mut Vec<Event>, now: i64) {
    events.retain(|event| event.last > now - time::nanos(KEPT));
}

/// Removes the files that hold nothing any more: their last event is older than any is kept.
fn remove_old(dir: &Path) {
    let Ok(paths) = files(dir) else { return };
    for path in paths {
        let changed = fs::metadata(&path).and_then(|meta| meta.modified()).unwrap_or_else(|_| SystemTime::now());
        if changed.elapsed().is_ok_and(|age| age > KEPT) {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(dir: &Path) -> Paths {
        Paths { state: dir.to_owned(), ..Paths::default() }
    }

    fn recorder(dir: &Path, uid: &str) -> Recorder {
        Recorder::new(&paths(dir), "default", "web", uid)
    }

    #[test]
    fn an_event_is_kept_with_what_it_is_about_and_the_same_again_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let recorder = recorder(dir.path(), "u-1");
        recorder.normal(On::Container("app"), "Created", "Created container: app");
        recorder.normal(On::Container("app"), "Created", "Created container: app");
        recorder.warning(On::Pod, "FailedSync", "error");
        let events = of(&paths(dir.path()), "u-1").unwrap();
        assert_eq!(events.len(), 2);
        assert_eq!((events[0].count, events[0].field_path.as_str()), (2, "spec.containers{app}"));
        assert_eq!((events[1].kind, events[1].field_path.as_str()), (Type::Warning, ""));
        let logs = list(&paths(dir.path())).unwrap();
        assert_eq!((logs.len(), logs[0].owner.name.as_str()), (1, "web"));
    }

    #[test]
    fn writers_side_by_side_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let write = |_: usize| {
            let recorder = recorder(dir.path(), "u-1");
            std::thread::spawn(move || (0..20).for_each(|_| recorder.normal(On::Pod, "Pulled", "x")))
        };
        let threads: Vec<_> = (0..4).map(write).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(of(&paths(dir.path()), "u-1").unwrap()[0].count, 80);
    }

    #[test]
    fn what_is_an_hour_old_is_forgotten_and_its_file_goes_with_the_next_pods_first_event() {
        let dir = tempfile::tempdir().unwrap();
        recorder(dir.path(), "old").normal(On::Pod, "Killing", "x");
        let path = dir.path().join("events/old.jsonl");
        let hours = time::nanos(2 * KEPT);
        let mut log = read(&path).unwrap().unwrap();
        forget(&mut log.events, time::now() + hours);
        assert!(log.events.is_empty());
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - 2 * KEPT).unwrap();
        recorder(dir.path(), "new").normal(On::Pod, "Pulled", "x");
        assert!(!path.exists());
    }

    #[test]
    fn a_damaged_line_costs_one_event() {
        let dir = tempfile::tempdir().unwrap();
        recorder(dir.path(), "u").normal(On::Pod, "Pulled", "x");
        let path = dir.path().join("events/u.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}{{half\n")).unwrap();
        recorder(dir.path(), "u").normal(On::Pod, "Created", "y");
        assert_eq!(of(&paths(dir.path()), "u").unwrap().len(), 2);
    }

    #[test]
    fn a_uid_cannot_lead_out_of_the_folder() {
        assert_eq!(file_name("../../etc/passwd"), "______etc_passwd");
    }

    #[test]
    fn a_store_that_cannot_be_written_does_not_fail_the_caller() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("events"), "a file where the folder should be").unwrap();
        recorder(dir.path(), "u").normal(On::Pod, "Pulled", "x");
    }
}
