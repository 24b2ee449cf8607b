//! What was told, on the disk: `<state>/events.log`, one JSON object a line, written by one server at a time.
//!
//! ```text
//! {"id":"C","pod":"P","kind":"started"}            this was told of it, and all that comes before it in a life
//! {"id":"P","pod":"P","kind":"created","name":...}  of a sandbox also what names it
//! {"idle":1767323045000000000}                      the last subscriber left then; the last line, or it is void
//! ```
//!
//! The file begins as the list of all that is known and grows by a line for each event; a line is written in one piece,
//! so a killed server leaves whole lines, at worst one that is cut and ignored. A life's last line (`deleted`) forgets it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Event, EventKind};
use crate::error::{Error, Result};
use crate::record::{now, write_file};
use crate::types::SandboxConfig;

/// Lines after which the file is written anew.
const MAX_LINES: usize = 20_000;
/// A journal is at most this long; what is longer was not written by us.
const MAX_LEN: u64 = 64 << 20;

/// What names a sandbox when it is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Names {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    #[serde(default)]
    pub attempt: u32,
}

impl Names {
    pub(super) fn of(config: &SandboxConfig) -> Names {
        Names {
            name: config.name.clone(),
            namespace: config.namespace.clone(),
            uid: config.uid.clone(),
            attempt: config.attempt,
        }
    }

    pub(super) fn config(&self) -> SandboxConfig {
        SandboxConfig {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            uid: self.uid.clone(),
            attempt: self.attempt,
            ..SandboxConfig::default()
        }
    }
}

/// What was told of one sandbox or container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub pod: String,
    pub kind: EventKind,
    /// Of a sandbox.
    pub names: Option<Names>,
}

/// What was told, by id.
pub(super) type AllTold = HashMap<String, Told>;

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Told {
        id: String,
        pod: String,
        kind: EventKind,
        #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
        names: Option<Names>,
    },
    Idle {
        idle: i64,
    },
}

/// Reads a journal; `None` if there is none, or nobody was told for longer than `absence`.
pub(super) fn read(path: &Path, absence: Duration) -> Result<Option<AllTold>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    let (mut all, mut idle) = (AllTold::new(), None);
    for line in BufReader::new(file.take(MAX_LEN)).split(b'\n') {
        let line = line.map_err(Error::io("read", path))?;
        // A line that a kill has cut says nothing.
        let Ok(line) = serde_json::from_slice(&line) else { continue };
        idle = None;
        match line {
            Line::Told { id, kind: EventKind::Deleted, .. } => {
                all.remove(&id);
            }
            Line::Told { id, pod, kind, names } => {
                all.insert(id, Told { pod, kind, names });
            }
            Line::Idle { idle: since } => idle = Some(since),
        }
    }
    let absence = i64::try_from(absence.as_nanos()).unwrap_or(i64::MAX);
    Ok(idle.is_none_or(|since| now().saturating_sub(since) <= absence).then_some(all))
}

/// The journal that is being written.
pub(super) struct Journal {
    path: PathBuf,
    /// `None` once writing failed: then nothing more is written, and a restart may tell some things twice.
    file: Option<File>,
    lines: usize,
    all: AllTold,
    /// The time of the last event that was told; no two have the same, and every subscriber has them in order.
    last: i64,
    idle: bool,
}

fn line(id: &str, told: &Told) -> Vec<u8> {
    let line = Line::Told { id: id.into(), pod: told.pod.clone(), kind: told.kind, names: told.names.clone() };
    let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

fn write_all(path: &Path, all: &AllTold) -> Result<File> {
    let bytes: Vec<u8> = all.iter().flat_map(|(id, told)| line(id, told)).collect();
    write_file(path, &bytes, 0o600)?;
    OpenOptions::new().append(true).mode(0o600).open(path).map_err(Error::io("open", path))
}

impl Journal {
    /// Begins with what was told already.
    pub(super) fn begin(path: &Path, all: AllTold) -> Result<Journal> {
        let file = Some(write_all(path, &all)?);
        Ok(Journal { path: path.to_owned(), file, lines: all.len(), all, last: 0, idle: false })
    }

    fn append(&mut self, bytes: &[u8]) {
        let written = self.file.as_mut().is_some_and(|file| file.write_all(bytes).is_ok());
        if !written {
            self.file = None;
        }
    }

    /// An event was passed on. Of several subscribers the first counts.
    pub(super) fn told(&mut self, event: &Event) {
        if event.at <= self.last {
            return;
        }
        self.last = event.at;
        let names = (event.id == event.sandbox_id).then(|| Names::of(&event.pod.sandbox.config));
        let told = Told { pod: event.sandbox_id.clone(), kind: event.kind, names };
        let bytes = line(&event.id, &told);
        match event.kind {
            EventKind::Deleted => self.all.remove(&event.id),
            _ => self.all.insert(event.id.clone(), told),
        };
        self.lines += 1;
        if self.idle {
            // One that was cut off empties its queue: the journal stays idle, and another may have begun a new one.
            self.append(&bytes);
            self.idle();
        } else if self.lines > MAX_LINES.max(2 * self.all.len()) {
            self.file = write_all(&self.path, &self.all).ok();
            self.lines = self.all.len();
        } else {
            self.append(&bytes);
        }
    }

    /// Nobody is told any more.
    pub(super) fn idle(&mut self) {
        self.idle = true;
        let mut bytes = serde_json::to_vec(&Line::Idle { idle: now() }).unwrap_or_default();
        bytes.push(b'\n');
        self.append(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(pod: &str, kind: EventKind) -> Told {
        Told { pod: pod.into(), kind, names: None }
    }

    fn event(id: &str, kind: EventKind) -> Event {
        super::super::tests::event(id, "p", kind)
    }

    #[test]
    fn a_journal_tells_what_was_told_and_forgets_what_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.log");
        assert_eq!(read(&path, Duration::ZERO).unwrap(), None);
        let all = AllTold::from([("a".to_owned(), told("p", EventKind::Created))]);
        let mut journal = Journal::begin(&path, all).unwrap();
        let all = [
            event("a", EventKind::Started),
            event("b", EventKind::Created),
            event("p", EventKind::Created),
            event("b", EventKind::Deleted),
        ];
        // The second time for a second subscriber, who is slower.
        for event in all.iter().chain(&all) {
            journal.told(event);
        }
        let known = read(&path, Duration::ZERO).unwrap().unwrap();
        assert_eq!(known.len(), 2);
        assert_eq!(known["a"], told("p", EventKind::Started));
        assert_eq!(known["p"].names.as_ref().unwrap().name, "web");
        let lines = std::fs::read_to_string(&path).unwrap();
        assert_eq!(lines.lines().count(), 5, "{lines}");
        // A kill may cut the last line.
        std::fs::write(&path, &lines[..lines.len() - 9]).unwrap();
        assert!(read(&path, Duration::ZERO).unwrap().unwrap().contains_key("b"));
    }

    #[test]
    fn a_journal_nobody_was_told_from_grows_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.log");
        let mut journal = Journal::begin(&path, AllTold::new()).unwrap();
        journal.idle();
        assert_eq!(read(&path, Duration::from_secs(60)).unwrap(), Some(AllTold::new()));
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(read(&path, Duration::from_millis(1)).unwrap(), None);
        // Somebody came again.
        let mut journal = Journal::begin(&path, AllTold::new()).unwrap();
        journal.told(&event("a", EventKind::Created));
        assert_eq!(read(&path, Duration::ZERO).unwrap().unwrap().len(), 1);
        // One that was cut off takes the rest of its queue.
        journal.idle();
        journal.told(&event("a", EventKind::Started));
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(read(&path, Duration::from_millis(1)).unwrap(), None);
    }

    #[test]
    fn a_long_journal_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.log");
        let mut journal = Journal::begin(&path, AllTold::new()).unwrap();
        for n in 0..MAX_LINES / 2 + 10 {
            journal.told(&event(&n.to_string(), EventKind::Created));
            journal.told(&event(&n.to_string(), EventKind::Deleted));
        }
        journal.told(&event("last", EventKind::Created));
        assert!(std::fs::read_to_string(&path).unwrap().lines().count() < 100);
        assert_eq!(read(&path, Duration::ZERO).unwrap().unwrap().len(), 1);
    }
}
