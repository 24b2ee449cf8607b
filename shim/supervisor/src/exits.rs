//! How processes end: exit codes, and `exit.json`, which is on disk before anyone is told.
//!
//! ```json
//! {"pid":12,"exit_status":137,"exited_at":"2026-01-02T03:04:05.123456789Z","oom_killed":true,"signal":9}
//! {"pid":12,...,"signal":9,"reason":"VirtualMachineLost","message":"the virtual machine has ended (killed by signal 9)"}
//! ```
//! `exit_status` is the exit code, or 128 + the signal; `signal` is there only if one killed it; `oom_killed` says that
//! the kernel killed a process of the container for want of memory, whichever process it was. The kernel counts such a kill
//! before it sends the signal, so the count that is read after a death has it for certain, with no watch kept. `reason` (a
//! word) and `message` are there if the container did not end by itself but with what it was in.

use crate::sys::Death;
use coracle_runtime::time;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

/// The file's name in a container's bundle.
pub const FILE: &str = "exit.json";
/// Of a process whose end nobody saw, as the engine and containerd have it.
pub const STATUS_UNSEEN: u32 = 255;
/// Of a process that was asked for and never ran.
pub const STATUS_NEVER_RAN: u32 = 128;

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + the signal.
    pub status: u32,
    /// What killed it.
    pub signal: Option<i32>,
    /// When it was reaped.
    pub at: SystemTime,
}

impl Exit {
    /// A death, now.
    pub fn new(death: Death) -> Self {
        let (status, signal) = match death {
            Death::Exited(code) => (code as u32, None),
            Death::Signaled(signal) => (128 + signal as u32, Some(signal)),
        };
        Exit { status, signal, at: SystemTime::now() }
    }

    /// Of a process whose end nobody saw.
    pub fn unseen() -> Self {
        Exit { status: STATUS_UNSEEN, signal: None, at: SystemTime::now() }
    }

    /// Of a process that never ran.
    pub fn never_ran() -> Self {
        Exit { status: STATUS_NEVER_RAN, signal: None, at: SystemTime::now() }
    }
}

#[derive(Serialize)]
struct Record<'a> {
    pid: i32,
    exit_status: u32,
    exited_at: String,
    oom_killed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

/// Writes `exit.json` so that it is either not there or whole.
///
/// `lost` says how the virtual machine ended that the container was in, if that is why.
pub fn record(bundle: &Path, pid: i32, exit: &Exit, oom_killed: bool, lost: Option<&str>) -> io::Result<()> {
    let record = Record {
        pid,
        exit_status: exit.status,
        exited_at: time::rfc3339_string(exit.at),
        oom_killed,
        signal: exit.signal,
        reason: lost.map(|_| crate::vm::LOST),
        message: lost,
    };
    let text = serde_json::to_vec(&record)?;
    let temporary = bundle.join(".exit.json.new");
    let mut file = File::create(&temporary)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&temporary, bundle.join(FILE))
}

/// The file's name with v2.
pub const V2_EVENTS: &str = "memory.events";

/// The number of processes the kernel killed in a cgroup for want of memory: the `oom_kill` line of `memory.events`
/// (v2) or `memory.oom_control` (v1). A cgroup that is gone killed none.
pub fn oom_kills(file: &str) -> u64 {
    MemoryCounts::read(file).of("oom_kill")
}

/// What the kernel has counted in that file.
pub struct MemoryCounts(String);

impl MemoryCounts {
    /// Reads the file; no name and no file are no counts.
    pub fn read(file: &str) -> MemoryCounts {
        MemoryCounts(if file.is_empty() { String::new() } else { fs::read_to_string(file).unwrap_or_default() })
    }

    /// One count; 0 if there is none of this name.
    pub fn of(&self, name: &str) -> u64 {
        let mut words = self.0.lines().filter_map(|line| line.split_once(' '));
        words.find(|(word, _)| *word == name).and_then(|(_, count)| count.trim().parse().ok()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn the_record_is_what_the_head_says() {
        let dir = tempfile::tempdir().unwrap();
        let at = UNIX_EPOCH + Duration::new(1_767_323_045, 5);
        let killed = Exit { at, ..Exit::new(Death::Signaled(9)) };
        record(dir.path(), 12, &killed, true, None).unwrap();
        assert_eq!(
            fs::read_to_string(dir.path().join(FILE)).unwrap(),
            r#"{"pid":12,"exit_status":137,"exited_at":"2026-01-02T03:04:05.000000005Z","oom_killed":true,"signal":9}"#
        );
        record(dir.path(), 12, &Exit { at, ..Exit::new(Death::Exited(3)) }, false, None).unwrap();
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(text.contains(r#""exit_status":3,"#) && !text.contains("signal"), "{text}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        record(dir.path(), 12, &killed, false, Some("it has ended")).unwrap();
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(text.ends_with(r#""reason":"VirtualMachineLost","message":"it has ended"}"#), "{text}");
    }

    #[test]
    fn oom_kills_are_counted_from_both_forms_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        fs::write(&path, "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n").unwrap();
        assert_eq!(oom_kills(path.to_str().unwrap()), 2);
        fs::write(&path, "low 0\noom 1\noom_kill 1\noom_group_kill 0\n").unwrap();
        assert_eq!(oom_kills(path.to_str().unwrap()), 1);
        assert_eq!((oom_kills("/no/such/file"), oom_kills("")), (0, 0));
    }
}
